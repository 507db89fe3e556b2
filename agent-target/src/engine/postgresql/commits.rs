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

/// Transactions in a file of the log: two bits each, 32 pages of 8 KiB (access/transam/clog.c, slru.h).
const PER_FILE: u32 = 32 * 8192 * 4;

/// What the log says of a transaction.
const COMMITTED: u8 = 1;
/// Of a part of a transaction, until the whole has ended.
const PART_COMMITTED: u8 = 3;

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
        let number = transaction / PER_FILE;
        if !self.files.contains_key(&number) {
            let read = match fs::read(self.folder.join(name(number))) {
                Ok(bytes) => Some(bytes),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
            self.files.insert(number, read);
        }
        let within = transaction % PER_FILE;
        let byte = self.files.get(&number).and_then(|file| file.as_ref()?.get(within as usize / 4));
        Ok(byte.is_some_and(|byte| !matches!(byte >> (2 * (within % 4)) & 3, COMMITTED | PART_COMMITTED)))
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
}
