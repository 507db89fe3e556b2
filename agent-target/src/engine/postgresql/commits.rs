//! The commit log of the copy (`pg_xact`), as far as rows depend on it.
//!
//! A version of a row that says that its transaction has committed is proof that the log said so once: the server sets that mark after it has
//! read the log, and writes the page after the commit is safe in the WAL. A log that says otherwise now has lost the commit, and rows without
//! such a mark are gone without a word.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Transactions in a file of the log: two bits each, 32 pages of 8 KiB (access/transam/clog.c, slru.h).
const PER_FILE: u32 = 32 * 8192 * 4;

/// Transactions with smaller numbers are the cluster's own (access/transam.h).
const FIRST_NORMAL: u32 = 3;
/// More that have not ended are not remembered.
const MAX_OPEN: usize = 10_000;

/// What the log says of a transaction.
const COMMITTED: u8 = 1;
const ROLLED_BACK: u8 = 2;
/// Of a part of a transaction, until the whole has ended.
const PART_COMMITTED: u8 = 3;

/// What the log said of a span of transactions. Two checks whose history is the same saw the same fate of each transaction that had ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct History {
    /// The oldest transaction of the span, and the first behind it.
    pub(super) oldest: u32,
    pub(super) next: u32,
    /// Transactions that had not ended, in order: their state may change.
    pub(super) open: Vec<u32>,
    /// Digest of the state of each other transaction of the span.
    digest: String,
}

impl History {
    /// Reads what the log says of the transactions from `oldest` to `next`. `None` where it has no place for one of them, and where too
    /// many have not ended.
    pub(super) fn read(data: &Path, oldest: u32, next: u32) -> io::Result<Option<Self>> {
        let mut open = Vec::new();
        let Some(digest) = digest(data, (oldest, next), |transaction, fate| {
            let is_open = !matches!(fate, COMMITTED | ROLLED_BACK);
            if is_open {
                open.push(transaction);
            }
            is_open
        })?
        else {
            return Ok(None);
        };
        Ok((open.len() <= MAX_OPEN).then_some(Self { oldest, next, open, digest }))
    }

    /// True if the log says now what it said then.
    pub(super) fn holds(&self, data: &Path) -> io::Result<bool> {
        let mut open = self.open.iter().copied().peekable();
        let now =
            digest(data, (self.oldest, self.next), |transaction, _| open.next_if_eq(&transaction).is_some())?;
        Ok(now.is_some_and(|now| now == self.digest))
    }

    /// True for a transaction that had ended: one of the span, or one before it, of which no row needs the log any more.
    pub(super) fn has_ended(&self, transaction: u32) -> bool {
        let span = self.next.wrapping_sub(self.oldest);
        let within = transaction.wrapping_sub(self.oldest);
        if transaction < FIRST_NORMAL || within >= 1 << 31 {
            return true;
        }
        within < span
            && (self.open.is_empty()
                || self.open.binary_search_by_key(&within, |it| it.wrapping_sub(self.oldest)).is_err())
    }
}

/// A digest of what the log says of a span, but of those for which `is_left_out` is true. `None` where the log has no place for one.
fn digest(
    data: &Path,
    (oldest, next): (u32, u32),
    mut is_left_out: impl FnMut(u32, u8) -> bool,
) -> io::Result<Option<String>> {
    let is_span = oldest >= FIRST_NORMAL && next >= FIRST_NORMAL && next.wrapping_sub(oldest) < 1 << 31;
    if !is_span {
        return Ok(None);
    }
    let mut hasher = blake3::Hasher::new_derive_key("assay v1 history of transactions");
    let mut fates = Vec::new();
    let mut transaction = oldest;
    // A file at a time.
    while transaction != next {
        let Some(file) = read(&data.join("pg_xact"), transaction / PER_FILE)? else { return Ok(None) };
        while transaction != next {
            if transaction >= FIRST_NORMAL {
                let Some(fate) = fate_in(&file, transaction) else { return Ok(None) };
                fates.push(if is_left_out(transaction, fate) { 0 } else { fate });
            }
            transaction = transaction.wrapping_add(1);
            if transaction.is_multiple_of(PER_FILE) {
                break;
            }
        }
        hasher.update(&fates);
        fates.clear();
    }
    Ok(Some(hasher.finalize().to_hex().to_string()))
}

/// A file of the log, if it is there.
fn read(folder: &Path, number: u32) -> io::Result<Option<Vec<u8>>> {
    match fs::read(folder.join(name(number))) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a file says of one of its transactions.
fn fate_in(file: &[u8], transaction: u32) -> Option<u8> {
    let within = transaction % PER_FILE;
    file.get(within as usize / 4).map(|byte| byte >> (2 * (within % 4)) & 3)
}

/// The log's files, as they are needed.
#[derive(Debug)]
pub(super) struct CommitLog {
    folder: PathBuf,
    files: HashMap<u32, Option<Vec<u8>>>,
}

impl CommitLog {
    pub(super) fn of(data: &Path) -> Self {
        Self { folder: data.join("pg_xact"), files: HashMap::new() }
    }

    /// True if the log has a place for the transaction and does not say there that it has committed. A file that is missing is for the
    /// server to name: it was removed for good when all rows of its transactions were frozen.
    pub(super) fn lost(&mut self, transaction: u32) -> io::Result<bool> {
        Ok(self.fate(transaction)?.is_some_and(|fate| !matches!(fate, COMMITTED | PART_COMMITTED)))
    }

    /// Whether the transaction has committed. `None` where the log does not say: a part of a transaction, and one that it has no place for.
    pub(super) fn has_committed(&mut self, transaction: u32) -> io::Result<Option<bool>> {
        Ok(match self.fate(transaction)? {
            Some(COMMITTED) => Some(true),
            None | Some(PART_COMMITTED) => None,
            Some(_) => Some(false),
        })
    }

    /// What the log says of a transaction, if it has a place for it.
    fn fate(&mut self, transaction: u32) -> io::Result<Option<u8>> {
        let number = transaction / PER_FILE;
        if !self.files.contains_key(&number) {
            self.files.insert(number, read(&self.folder, number)?);
        }
        Ok(self.files.get(&number).and_then(|file| fate_in(file.as_ref()?, transaction)))
    }

    /// The file that a transaction is in, as the data directory names it.
    pub(super) fn file_of(transaction: u32) -> String {
        format!("pg_xact/{}", name(transaction / PER_FILE))
    }
}

fn name(number: u32) -> String {
    format!("{number:04X}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_lost_where_the_log_has_a_place_for_it_and_says_otherwise() {
        let data = tempfile::tempdir().expect("temp");
        fs::create_dir(data.path().join("pg_xact")).expect("mkdir");
        // Transactions 4 to 7: under way, committed, rolled back, a part that committed.
        fs::write(data.path().join("pg_xact/0001"), [0, 0b1110_0100]).expect("write");
        let mut log = CommitLog::of(data.path());
        let lost: Vec<_> = (4..9).map(|it| log.lost(PER_FILE + it).expect("read")).collect();
        assert_eq!(lost, [true, false, true, false, false]);
        assert!(!log.lost(5).expect("read"), "no such file");
        assert_eq!(CommitLog::file_of(PER_FILE * 17), "pg_xact/0011");
    }

    /// Transactions 3 to 7: committed, under way, committed, rolled back, a part that committed.
    #[test]
    fn the_logged_state_of_an_ended_transaction_may_not_change() {
        let data = tempfile::tempdir().expect("temp");
        fs::create_dir(data.path().join("pg_xact")).expect("mkdir");
        let write = |fates: [u8; 10]| {
            let bytes: Vec<u8> = fates
                .chunks(4)
                .map(|four| four.iter().rev().fold(0, |byte, fate| byte << 2 | fate))
                .collect();
            fs::write(data.path().join("pg_xact/0000"), bytes).expect("write");
        };
        let good = [0, 0, 0, 1, 0, 1, 2, 3, 0, 0];
        write(good);
        let history = History::read(data.path(), 3, 8).expect("read").expect("all there");
        assert_eq!(history.open, [4, 7]);
        let ended: Vec<_> = (0..12).filter(|it| history.has_ended(*it)).collect();
        assert_eq!(ended, [0, 1, 2, 3, 5, 6]);
        for (at, fate, holds) in [
            (8, 1, true),
            (9, 2, true),
            (4, 1, true),
            (4, 2, true),
            (7, 1, true),
            (3, 0, false),
            (5, 2, false),
            (6, 1, false),
            (6, 0, false),
        ] {
            let mut changed = good;
            changed[at] = fate;
            write(changed);
            assert_eq!(history.holds(data.path()).expect("read"), holds, "{at} {fate}");
        }
        fs::write(data.path().join("pg_xact/0000"), [0]).expect("write");
        assert!(!history.holds(data.path()).expect("read"), "the log is cut");
        assert_eq!(History::read(data.path(), 3, 8).expect("read"), None);
        fs::remove_file(data.path().join("pg_xact/0000")).expect("remove");
        assert!(!history.holds(data.path()).expect("read"), "the log is gone");
    }

    #[test]
    fn numbers_of_transactions_go_round() {
        let history =
            History { oldest: u32::MAX - 1, next: 6, open: vec![u32::MAX, 4], digest: String::new() };
        let ended: Vec<_> = [u32::MAX - 2, u32::MAX - 1, u32::MAX, 3, 4, 5, 6]
            .into_iter()
            .filter(|it| history.has_ended(*it))
            .collect();
        assert_eq!(ended, [u32::MAX - 2, u32::MAX - 1, 3, 5], "one before the span needs no log");
    }
}
