//! Whether a row is live: a statement that begins now would see a version of it.
//!
//! It is decided as `HeapTupleSatisfiesMVCC` and `heap_hot_search_buffer` do it, from the marks in the row and from the commit log, without
//! the server. What these do not say (lists of transactions, versions of before 9.0) is not live here: a wrong "live" would be a false FAIL.

use std::io;

use super::{
    commits::CommitLog,
    files::{Pages, Segments},
    page::{PAGE_BYTES, RowPlace, long, place, pointers, word},
};

/// Line pointers of a page: no chain of versions is longer.
const MAX_VERSIONS: usize = 2048;

/// Rows of a table.
pub(super) struct Rows<'a> {
    pages: Pages<'a>,
    blocks: u64,
    log: &'a mut CommitLog,
    /// The block whose page is held.
    held: Option<u32>,
    page: Vec<u8>,
}

impl<'a> Rows<'a> {
    pub(super) fn of(table: &'a Segments, log: &'a mut CommitLog) -> Self {
        Self { pages: table.pages(), blocks: table.blocks(), log, held: None, page: vec![0; PAGE_BYTES] }
    }

    /// True if a version of the chain that begins at `place` is live.
    pub(super) fn is_live(&mut self, place: RowPlace) -> io::Result<bool> {
        if u64::from(place.block) >= self.blocks {
            return Ok(false);
        }
        if self.held != Some(place.block) {
            self.held = None;
            self.pages.read(place.block.into(), &mut self.page)?;
            self.held = Some(place.block);
        }
        let (mut number, mut made_by) = (place.number, None);
        for _ in 0..MAX_VERSIONS {
            let version = match step(&self.page, number) {
                Step::Nothing => return Ok(false),
                Step::Redirect(to) => {
                    number = to;
                    continue;
                }
                Step::Version(version) => version,
            };
            // A place that was used again belongs to another chain (`heap_hot_search_buffer`).
            if made_by.is_some_and(|it| it != version.made_by)
                || self.has_committed(version.made)? != Some(true)
            {
                return Ok(false);
            }
            match self.has_committed(version.ended)? {
                Some(true) => {}
                Some(false) => return Ok(true),
                None => return Ok(false),
            }
            let Some(later) = version.later else { return Ok(false) };
            (number, made_by) = (later, Some(version.ended_by));
        }
        Ok(false)
    }

    /// `None`: nothing says it.
    fn has_committed(&mut self, fate: Fate) -> io::Result<Option<bool>> {
        match fate {
            Fate::Committed => Ok(Some(true)),
            Fate::NotCommitted => Ok(Some(false)),
            Fate::Unknown => Ok(None),
            Fate::AskLog(transaction) => self.log.has_committed(transaction),
        }
    }
}

/// What a line pointer of a heap page leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Another line pointer of the page: its number.
    Redirect(u16),
    Version(RowVersion),
    /// No version: it is dead or not in use.
    Nothing,
}

/// A version of a row: who made and who ended it (htup_details.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RowVersion {
    made: Fate,
    ended: Fate,
    /// The transactions as they stand in the row.
    made_by: u32,
    ended_by: u32,
    /// The number of the version that follows it in its page, to which no index leads.
    later: Option<u16>,
}

/// Whether the transaction that made or ended a version has committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Committed,
    NotCommitted,
    /// The commit log says it of this transaction.
    AskLog(u32),
    /// A list of transactions, or a version of before 9.0.
    Unknown,
}

/// Reads the line pointer with this number, from 1.
fn step(page: &[u8], number: u16) -> Step {
    const LOCK_ONLY: u16 = 0x0080;
    const LOCKS: u16 = 0x0050;
    const EXCLUSIVE_LOCK: u16 = 0x0040;
    const MADE_COMMITTED: u16 = 0x0100;
    const MADE_VOID: u16 = 0x0200;
    const ENDED_COMMITTED: u16 = 0x0400;
    const ENDED_VOID: u16 = 0x0800;
    const SEVERAL: u16 = 0x1000;
    const MOVED: u16 = 0xc000;
    const FOLLOWED: u16 = 0x4000;
    const FIRST_NORMAL: u32 = 3;
    let found = number.checked_sub(1).and_then(|index| pointers(page).nth(index.into()));
    let Some((offset, state, length)) = found else { return Step::Nothing };
    match state {
        2 => return Step::Redirect(u16::try_from(offset).unwrap_or(0)),
        1 if length >= 23 => {}
        _ => return Step::Nothing,
    }
    let (mask, mask2) = (word(page, offset + 20), word(page, offset + 18));
    let (made_by, ended_by) = (long(page, offset), long(page, offset + 4));
    let made = match mask {
        _ if mask & MOVED != 0 => Fate::Unknown,
        // An insertion that was taken back on a conflict.
        _ if made_by == 0 => Fate::NotCommitted,
        // Both marks together: frozen.
        _ if mask & MADE_COMMITTED != 0 || made_by < FIRST_NORMAL => Fate::Committed,
        _ if mask & MADE_VOID != 0 => Fate::NotCommitted,
        _ => Fate::AskLog(made_by),
    };
    let is_lock = mask & LOCK_ONLY != 0 || mask & (SEVERAL | LOCKS) == EXCLUSIVE_LOCK;
    let ended = match mask {
        _ if mask & ENDED_VOID != 0 || ended_by == 0 || is_lock => Fate::NotCommitted,
        _ if mask & SEVERAL != 0 => Fate::Unknown,
        _ if mask & ENDED_COMMITTED != 0 => Fate::Committed,
        _ => Fate::AskLog(ended_by),
    };
    let next = place(page, offset + 12);
    let later = (mask2 & FOLLOWED != 0 && next.number != number).then_some(next.number);
    Step::Version(RowVersion { made, ended, made_by, ended_by, later })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of a page that point outside of it lead nowhere.
    #[test]
    fn rubbish_is_read_within_its_page() {
        let mut seed = blake3::Hasher::new().finalize_xof();
        for _ in 0..200 {
            let mut page = vec![0; PAGE_BYTES];
            seed.fill(&mut page);
            for number in [0, 1, 5, 300, u16::MAX] {
                let _ = step(&page, number);
            }
        }
    }
}
