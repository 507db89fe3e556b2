//! Duplicate keys of unique indexes.
//!
//! From PostgreSQL 17 on amcheck looks for them, with the index's own comparison. Here it is done in the files, for every version: a key is a
//! duplicate when two of its entries have the same bytes and lead to two live rows. Equal keys with other bytes (`1.0` and `1.00`,
//! collations that take letters for the same) are not found. A null is equal to nothing.

use std::io;

use super::{
    commits::CommitLog,
    files::{Pages, Segments},
    liveness::Rows,
    page::{Leaf, PAGE_BYTES, RowPlace},
};

/// Leaves behind a leaf in which entries of its last key are looked for.
const MAX_LEAVES: usize = 16;

/// Duplicate keys of an index.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Duplicates {
    /// Block of the index, and two live rows of one key.
    pub(super) first: Option<(u64, [RowPlace; 2])>,
    /// How many there are; one that goes on over a page's end may count twice.
    pub(super) count: u64,
}

/// Finds the duplicate keys of a unique index.
pub(super) fn find(index: &Segments, table: &Segments, log: &mut CommitLog) -> io::Result<Duplicates> {
    let mut search =
        Search { index, ahead: index.pages(), rows: Rows::of(table, log), found: Duplicates::default() };
    let mut failed = Ok(());
    index.each_page(|block, page| {
        if failed.is_ok() {
            failed = search.leaf(block, page);
        }
    })?;
    failed.map(|()| search.found)
}

struct Search<'a> {
    index: &'a Segments,
    /// Reads leaves behind the one that is looked at.
    ahead: Pages<'a>,
    rows: Rows<'a>,
    found: Duplicates,
}

impl Search<'_> {
    fn leaf(&mut self, block: u64, page: &[u8]) -> io::Result<()> {
        let Some(leaf) = Leaf::of(page) else { return Ok(()) };
        let mut key: &[u8] = &[];
        let mut places: Vec<RowPlace> = Vec::new();
        for entry in leaf.entries().filter(|entry| !entry.has_null) {
            if entry.key != key {
                self.decide(block, &places)?;
                places.clear();
                key = entry.key;
            }
            places.extend(entry.rows());
        }
        let mut next = leaf.may_go_on().then_some(leaf.next);
        let mut behind = Vec::new();
        for _ in 0..MAX_LEAVES {
            let Some(number) = next.take().filter(|it| u64::from(*it) < self.index.blocks()) else { break };
            behind.resize(PAGE_BYTES, 0);
            self.ahead.read(number.into(), &mut behind)?;
            let Some(leaf) = Leaf::of(&behind) else { break };
            let mut all_are = true;
            for entry in leaf.entries() {
                all_are = entry.key == key && !entry.has_null;
                if !all_are {
                    break;
                }
                places.extend(entry.rows());
            }
            next = (all_are && leaf.may_go_on()).then_some(leaf.next);
        }
        self.decide(block, &places)
    }

    /// Of the rows that one key leads to, one may be live.
    fn decide(&mut self, block: u64, places: &[RowPlace]) -> io::Result<()> {
        if places.len() < 2 {
            return Ok(());
        }
        let mut live: Option<RowPlace> = None;
        for place in places {
            if live == Some(*place) || !self.rows.is_live(*place)? {
                continue;
            }
            let Some(other) = live else {
                live = Some(*place);
                continue;
            };
            self.found.count += 1;
            self.found.first = self.found.first.or(Some((block, [other, *place])));
            break;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::{
        super::{
            files::Folders,
            page::tests::{entry, opaque, page_of, row},
        },
        *,
    };

    /// A version of a row at `number` of block 0.
    fn version(made_by: u32, ended_by: u32, mask: u16, next: u16) -> (u32, Vec<u8>) {
        let mut row = row(if next == 0 { 0 } else { 0x4000 });
        for (at, value) in [(0, made_by), (4, ended_by)] {
            row[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        row[16..18].copy_from_slice(&next.to_le_bytes());
        row[20..22].copy_from_slice(&mask.to_le_bytes());
        (1, row)
    }

    fn keyed(key: u64, number: u16, info: u16) -> (u32, Vec<u8>) {
        let mut entry = entry(0, number);
        entry[8..16].copy_from_slice(&key.to_le_bytes());
        entry[6..8].copy_from_slice(&(16 | info).to_le_bytes());
        (1, entry)
    }

    fn found(data: &Path, index: &[Vec<u8>], table: &[u8]) -> Duplicates {
        fs::create_dir_all(data.join("pg_xact")).expect("mkdir");
        // Transactions 100 to 103: under way, committed, rolled back, a part that committed.
        let mut log = vec![0; 64];
        log[25] = 0b1110_0100;
        fs::write(data.join("pg_xact/0000"), log).expect("write");
        fs::write(data.join("index"), index.concat()).expect("write");
        fs::write(data.join("table"), table).expect("write");
        let mut folders = Folders::default();
        let mut segments = |name| folders.segments(&data.join(name), 131_072).expect("read").expect("there");
        let (index, table) = (segments("index"), segments("table"));
        find(&index, &table, &mut CommitLog::of(data)).expect("read")
    }

    /// Each state that the second of two rows with one key can be in.
    #[test]
    fn two_live_rows_with_one_key_are_a_duplicate() {
        const MADE: u16 = 0x0100 | 0x0800;
        let live = version(101, 0, MADE, 0);
        let temp = tempfile::tempdir().expect("temp");
        let leaf = page_of(&[keyed(7, 1, 0), keyed(7, 2, 0)], &opaque(0, 1));
        for (name, second, is_shared) in [
            ("marked as made", version(101, 0, MADE, 0), true),
            ("frozen", version(9, 0, 0x0300 | 0x0800, 0), true),
            ("of the log", version(101, 0, 0x0800, 0), true),
            ("ended by what was rolled back", version(101, 102, 0x0100, 0), true),
            ("ended by what is under way", version(101, 100, 0x0100, 0), true),
            ("locked", version(101, 101, 0x0180, 0), true),
            ("locked, as it was done before 9.3", version(101, 101, 0x0140, 0), true),
            ("ended", version(101, 101, 0x0500, 0), false),
            ("ended, by the log", version(101, 101, 0x0100, 0), false),
            ("rolled back", version(102, 0, 0x0800, 0), false),
            ("under way", version(100, 0, 0x0800, 0), false),
            ("marked as void", version(101, 0, 0x0200 | 0x0800, 0), false),
            ("ended by a part of a transaction", version(101, 103, 0x0100, 0), false),
            ("ended by one that the log does not know", version(101, 9_000_000, 0x0100, 0), false),
            ("taken back on a conflict", version(0, 0, 0x0800, 0), false),
            ("ended by several", version(101, 5, 0x1100, 0), false),
            ("moved by a version before 9.0", version(101, 0, MADE | 0x4000, 0), false),
            ("dead", (3, vec![]), false),
            ("not in use", (0, vec![]), false),
        ] {
            let table = page_of(&[live.clone(), second], &[]);
            let found = found(temp.path(), std::slice::from_ref(&leaf), &table);
            let places = [RowPlace { block: 0, number: 1 }, RowPlace { block: 0, number: 2 }];
            let right = Duplicates { first: is_shared.then_some((0, places)), count: u64::from(is_shared) };
            assert_eq!(found, right, "{name}");
        }
    }

    /// An entry leads to the first version of a chain, and the last stands for the row.
    #[test]
    fn the_last_version_of_a_chain_counts() {
        let temp = tempfile::tempdir().expect("temp");
        let leaf = page_of(&[keyed(7, 1, 0), keyed(7, 2, 0)], &opaque(0, 1));
        let live = version(101, 0, 0x0900, 0);
        let count = |rows: &[(u32, Vec<u8>)]| {
            found(temp.path(), std::slice::from_ref(&leaf), &page_of(rows, &[])).count
        };
        let ended = version(9, 101, 0x0500, 3);
        assert_eq!(count(&[live.clone(), ended.clone(), version(101, 0, 0x0900, 0)]), 1);
        assert_eq!(count(&[live.clone(), ended.clone(), version(101, 101, 0x0500, 0)]), 0);
        assert_eq!(count(&[live.clone(), ended.clone(), version(77, 0, 0x0900, 0)]), 0, "of another chain");
        assert_eq!(count(&[live.clone(), ended]), 0, "nothing follows");
        // A pointer to the place of the row, and a ring of two.
        assert_eq!(count(&[live.clone(), (2, vec![]), live.clone()]), 0, "it leads to no row");
        let ring = [live, version(101, 101, 0x0500, 3), version(101, 101, 0x0500, 2)];
        assert_eq!(count(&ring), 0);
    }

    #[test]
    fn different_keys_and_nulls_are_no_duplicates() {
        let temp = tempfile::tempdir().expect("temp");
        let row = || version(101, 0, 0x0900, 0);
        let table = page_of(&[row(), row(), row()], &[]);
        let count =
            |items: &[(u32, Vec<u8>)]| found(temp.path(), &[page_of(items, &opaque(0, 1))], &table).count;
        assert_eq!(count(&[keyed(7, 1, 0), keyed(8, 2, 0)]), 0);
        assert_eq!(count(&[keyed(7, 1, 0x8000), keyed(7, 2, 0x8000)]), 0);
        assert_eq!(count(&[keyed(7, 1, 0), keyed(7, 1, 0)]), 0, "twice to one row");
        assert_eq!(count(&[keyed(6, 1, 0), keyed(7, 2, 0), keyed(7, 3, 0)]), 1);
    }

    /// A key may go on in the next leaf when the high key ends in the place of a row.
    #[test]
    fn a_key_is_followed_into_the_next_leaf() {
        let temp = tempfile::tempdir().expect("temp");
        let row = || version(101, 0, 0x0900, 0);
        let table = page_of(&[row(), row()], &[]);
        let high_key = |flags: u16| {
            let mut key = keyed(7, flags | 1, 0x2000);
            key.1[6..8].copy_from_slice(&(0x2000_u16 | 16).to_le_bytes());
            key
        };
        let last = page_of(&[keyed(7, 2, 0)], &opaque(0, 1));
        for (flags, count) in [(0x1000, 1), (0, 0)] {
            let first = page_of(&[high_key(flags), keyed(7, 1, 0)], &opaque(1, 1));
            assert_eq!(found(temp.path(), &[first, last.clone()], &table).count, count, "{flags}");
        }
        // A leaf that is its own next one.
        let ring = page_of(&[high_key(0x1000), keyed(7, 1, 0)], &opaque(0x0, 1));
        assert_eq!(found(temp.path(), &[ring], &table).count, 0);
    }
}
