//! Walks hash, GIN, GiST and SP-GiST indexes in the files, from their first pages on: each page that another names must be there, and each
//! row that a leaf names is given to the caller.
//!
//! Only pages that are reached count. A crash in the middle of a change may leave pages that nothing leads to, and VACUUM does not empty those.
//! The formats are those of PostgreSQL 14 to 18 (access/hash.h, ginblock.h, gist.h, spgist_private.h): each number is read within its page.

use std::{collections::VecDeque, io};

use super::{
    files::Segments,
    page::{LINE_POINTERS, PAGE_BYTES, RowPlace, is_new, long, place, pointers, word},
};

/// No page, where a link may be.
const NONE: u32 = u32::MAX;

/// A kind of index that is walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Hash,
    Gin,
    Gist,
    Spgist,
}

impl Kind {
    /// By the name of its access method.
    pub(super) fn of(access_method: &str) -> Option<Self> {
        match access_method {
            "hash" => Some(Self::Hash),
            "gin" => Some(Self::Gin),
            "gist" => Some(Self::Gist),
            "spgist" => Some(Self::Spgist),
            _ => None,
        }
    }

    /// How many bytes at a page's end are the index' own.
    fn special_bytes(self) -> usize {
        match self {
            Self::Hash | Self::Gist => 16,
            Self::Gin | Self::Spgist => 8,
        }
    }

    /// The pages at which a walk begins. They need the first page of the file.
    fn roots(self, first: &[u8], end: u64) -> Vec<u32> {
        match self {
            Self::Gist => vec![0],
            // Rows with a value, rows without one.
            Self::Spgist => vec![1, 2],
            Self::Gin => {
                let pending = long(first, LINE_POINTERS);
                [1, pending].into_iter().filter(|it| *it != NONE).collect()
            }
            Self::Hash => buckets(first, end),
        }
    }

    /// What a page names.
    fn names(self, page: &[u8]) -> Names {
        let mut names = Names::default();
        match self {
            Self::Hash => hash(page, &mut names),
            Self::Gin => gin(page, &mut names),
            Self::Gist => gist(page, &mut names),
            Self::Spgist => spgist(page, &mut names),
        }
        names.pages.retain(|it| *it != NONE);
        names
    }
}

/// What a page names: rows of the table, other pages of the index.
#[derive(Debug, Default, PartialEq, Eq)]
struct Names {
    rows: Vec<RowPlace>,
    pages: Vec<u32>,
}

/// A page that another names and that is not there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Lost {
    pub(super) block: u32,
    pub(super) from: Option<u32>,
    pub(super) fault: LostFault,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LostFault {
    BeyondEnd,
    Zeros,
    OtherKind,
}

/// Walks an index and calls `row` with each row that a leaf names, and with the leaf. Gives the pages that are lost.
pub(super) fn walk(
    kind: Kind,
    segments: &Segments,
    mut row: impl FnMut(RowPlace, u32),
) -> io::Result<Vec<Lost>> {
    let end = segments.blocks();
    let mut lost = Vec::new();
    let mut page = vec![0; PAGE_BYTES];
    let mut pages = segments.pages();
    pages.read(0, &mut page)?;
    let mut seen = vec![false; usize::try_from(end).unwrap_or(usize::MAX)];
    let roots = kind.roots(&page, end);
    // Only a hash index whose first page is none of its kind has no roots.
    if roots.is_empty() {
        lost.push(Lost { block: 0, from: None, fault: LostFault::OtherKind });
    }
    let mut queue: VecDeque<(u32, Option<u32>)> = roots.into_iter().map(|root| (root, None)).collect();
    while let Some((block, from)) = queue.pop_front() {
        let Some(seen) = seen.get_mut(block as usize) else {
            lost.push(Lost { block, from, fault: LostFault::BeyondEnd });
            continue;
        };
        if std::mem::replace(seen, true) {
            continue;
        }
        pages.read(u64::from(block), &mut page)?;
        let fault = match usize::from(word(&page, 16)) {
            _ if is_new(&page) => Some(LostFault::Zeros),
            special if special != PAGE_BYTES - kind.special_bytes() => Some(LostFault::OtherKind),
            _ => None,
        };
        if let Some(fault) = fault {
            lost.push(Lost { block, from, fault });
            continue;
        }
        let names = kind.names(&page);
        names.rows.into_iter().for_each(|place| row(place, block));
        queue.extend(names.pages.into_iter().map(|it| (it, Some(block))));
    }
    Ok(lost)
}

/// The entries of a page that are in use: where each begins.
fn entries(page: &[u8]) -> impl Iterator<Item = usize> {
    let special = usize::from(word(page, 16));
    pointers(page)
        .filter(move |(offset, state, length)| *state == 1 && *length >= 8 && offset + 8 <= special)
        .map(|(offset, _, _)| offset)
}

/// The first page of each bucket (`BUCKET_TO_BLKNO`).
fn buckets(first: &[u8], end: u64) -> Vec<u32> {
    const MAGIC: u32 = 0x0644_0640;
    const SPARES: usize = 76;
    if long(first, 24) != MAGIC || long(first, 28) != 4 {
        return Vec::new();
    }
    let last = long(first, 48);
    // The number is read from a page that may be damaged. Bucket N is at block N + 1 or later, so one beyond the end is enough to be reported.
    let last = last.min(u32::try_from(end).unwrap_or(u32::MAX - 1));
    (0..=last)
        .map(|bucket| {
            let before = match bucket {
                0 => 0,
                _ => long(first, SPARES + 4 * (spare_index(bucket + 1).saturating_sub(1) as usize).min(97)),
            };
            bucket.saturating_add(before).saturating_add(1)
        })
        .collect()
}

/// `_hash_spareindex`: how many phases of splitting there were when the index had so many buckets.
fn spare_index(buckets: u32) -> u32 {
    const GROUPS_OF_ONE: u32 = 10;
    let group = buckets.next_power_of_two().trailing_zeros();
    if group < GROUPS_OF_ONE {
        return group;
    }
    GROUPS_OF_ONE + ((group - GROUPS_OF_ONE) << 2) + ((buckets - 1) >> (group - 3) & 3)
}

fn hash(page: &[u8], names: &mut Names) {
    const OVERFLOW: u16 = 1;
    const BUCKET: u16 = 2;
    let special = PAGE_BYTES - 16;
    if word(page, special + 12) & (OVERFLOW | BUCKET) != 0 {
        names.rows.extend(entries(page).map(|at| place(page, at)));
        names.pages.push(long(page, special + 4));
    }
}

fn gist(page: &[u8], names: &mut Names) {
    const LEAF: u16 = 1;
    const DELETED: u16 = 2;
    const FOLLOW_RIGHT: u16 = 8;
    let special = PAGE_BYTES - 16;
    let flags = word(page, special + 12);
    if flags & DELETED != 0 {
        return;
    }
    if flags & FOLLOW_RIGHT != 0 {
        names.pages.push(long(page, special + 8));
    }
    let places = entries(page).map(|at| place(page, at));
    if flags & LEAF != 0 {
        names.rows.extend(places);
    } else {
        names.pages.extend(places.map(|it| it.block));
    }
}

fn spgist(page: &[u8], names: &mut Names) {
    const META: u16 = 1;
    const DELETED: u16 = 2;
    const LEAF: u16 = 4;
    let special = PAGE_BYTES - 8;
    let flags = word(page, special);
    if flags & (META | DELETED) != 0 {
        return;
    }
    for at in entries(page) {
        let head = long(page, at);
        // Not a redirection, a dead one, or a place that is kept free.
        if head & 3 != 0 {
            continue;
        }
        if flags & LEAF != 0 {
            names.rows.push(place(page, at + 6));
            continue;
        }
        let (count, prefix, size) =
            (head >> 3 & 0x1fff, (head >> 16) as usize, usize::from(word(page, at + 4)));
        let end = (at + size).min(special);
        let mut node = at + 8 + prefix;
        for _ in 0..count {
            if node + 8 > end {
                break;
            }
            names.pages.push(place(page, node).block);
            node += usize::from(word(page, node + 6) & 0x1fff).max(8);
        }
    }
}

fn gin(page: &[u8], names: &mut Names) {
    const DATA: u16 = 1;
    const LEAF: u16 = 2;
    const DELETED: u16 = 4;
    const META: u16 = 8;
    const LIST: u16 = 16;
    const COMPRESSED: u16 = 128;
    /// Behind the right bound.
    const DATA_START: usize = 32;
    let special = PAGE_BYTES - 8;
    let (right, count, flags) = (long(page, special), word(page, special + 4), word(page, special + 6));
    if flags & META != 0 {
        return;
    }
    names.pages.push(right);
    if flags & DELETED != 0 {
        return;
    }
    match (flags & (DATA | LIST), flags & LEAF != 0) {
        (LIST, _) => names.rows.extend(entries(page).map(|at| place(page, at))),
        (DATA, false) => {
            let items = (0..usize::from(count)).map(|item| DATA_START + 10 * item);
            names.pages.extend(items.filter(|at| at + 10 <= special).map(|at| place(page, at).block));
        }
        // Of before 9.4 when it is not compressed: those lists are left out.
        (DATA, true) if flags & COMPRESSED != 0 => {
            let end = usize::from(word(page, 12)).min(special);
            let mut at = DATA_START;
            while at + 8 <= end {
                at = posting_list(page, at, end, &mut names.rows);
            }
        }
        (0, false) => names.pages.extend(entries(page).map(|at| place(page, at).block)),
        (0, true) => {
            const TREE: u16 = 0xffff;
            for at in entries(page) {
                let own = place(page, at);
                if own.number == TREE {
                    names.pages.push(own.block);
                    continue;
                }
                let size = usize::from(word(page, at + 6) & 0x1fff);
                let end = (at + size).min(special);
                let start = at + (own.block & 0x7fff_ffff) as usize;
                if own.number == 0 || start >= end {
                    continue;
                }
                if own.block >> 31 == 1 {
                    posting_list(page, start, end, &mut names.rows);
                } else {
                    let items = (0..usize::from(own.number)).map(|item| start + 6 * item);
                    names.rows.extend(items.filter(|it| it + 6 <= end).map(|it| place(page, it)));
                }
            }
        }
        _ => {}
    }
}

/// Reads a compressed list of rows (`GinPostingList`) and says where it ends: the first row, then differences in seven bits a byte.
fn posting_list(page: &[u8], start: usize, end: usize, rows: &mut Vec<RowPlace>) -> usize {
    const NUMBER_BITS: u32 = 11;
    let first = place(page, start);
    rows.push(first);
    let bytes = usize::from(word(page, start + 6));
    let stop = (start + 8 + bytes).min(end);
    let mut value = u64::from(first.block) << NUMBER_BITS | u64::from(first.number);
    let (mut delta, mut shift) = (0_u64, 0);
    for byte in page.get(start + 8..stop).unwrap_or_default() {
        // The seventh byte is the last, and is whole.
        let last = shift == 42 || byte & 0x80 == 0;
        let bits = if shift == 42 { *byte } else { byte & 0x7f };
        delta |= u64::from(bits) << shift;
        shift += 7;
        if !last {
            continue;
        }
        if delta == 0 {
            // What fills the list up.
            break;
        }
        value = value.wrapping_add(delta);
        let block = u32::try_from(value >> NUMBER_BITS).unwrap_or(NONE);
        rows.push(RowPlace { block, number: (value & ((1 << NUMBER_BITS) - 1)) as u16 });
        (delta, shift) = (0, 0);
    }
    start + 8 + bytes.next_multiple_of(2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::postgresql::page::tests::{entry, page_of};

    fn at(block: u32, number: u16) -> RowPlace {
        RowPlace { block, number }
    }

    /// The end of a page, from its flags at `flags_at`.
    fn special(bytes: usize, numbers: &[(usize, u32)], (flags_at, flags): (usize, u16)) -> Vec<u8> {
        let mut special = vec![0; bytes];
        for (at, number) in numbers {
            special[*at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
        special[flags_at..flags_at + 2].copy_from_slice(&flags.to_le_bytes());
        special
    }

    #[test]
    fn leaves_name_rows_and_inner_pages_name_pages() {
        let items = [(1, entry(7, 1)), (3, entry(8, 1)), (1, entry(9, 2))];
        let gist = |flags| Kind::Gist.names(&page_of(&items, &special(16, &[(8, 5)], (12, flags))));
        assert_eq!(gist(1), Names { rows: vec![at(7, 1), at(9, 2)], pages: vec![] });
        assert_eq!(gist(0).pages, [7, 9]);
        assert_eq!(gist(1 | 8).pages, [5]);
        assert_eq!(gist(1 | 2), Names::default());
        let hash = |flags| Kind::Hash.names(&page_of(&items, &special(16, &[(4, NONE)], (12, flags))));
        assert_eq!(hash(2).rows, [at(7, 1), at(9, 2)]);
        assert_eq!(hash(4), Names::default());
        let gin = |flags| Kind::Gin.names(&page_of(&items, &special(8, &[(0, 3)], (6, flags))));
        assert_eq!(gin(16), Names { rows: vec![at(7, 1), at(9, 2)], pages: vec![3] });
        assert_eq!(gin(0).pages, [3, 7, 9]);
    }

    #[test]
    fn buckets_lie_behind_the_pages_of_earlier_splits() {
        // From _hash_spareindex, for the ends of groups and phases.
        for (buckets, index) in
            [(1, 0), (2, 1), (3, 2), (4, 2), (512, 9), (513, 10), (640, 10), (641, 11), (1024, 13)]
        {
            assert_eq!(spare_index(buckets), index, "{buckets}");
        }
        let mut first = vec![0; PAGE_BYTES];
        for (at, number) in [(24, 0x0644_0640_u32), (28, 4), (48, 2), (76 + 4, 1)] {
            first[at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
        assert_eq!(buckets(&first, 5), [1, 2, 4]);
        assert!(buckets(&[0; PAGE_BYTES], 1).is_empty());
    }

    /// As ginCompressPostingList writes (1,1), (1,2), (1,130) and (70000,3).
    #[test]
    fn a_compressed_list_of_rows_is_read() {
        let rows = [at(1, 1), at(1, 2), at(1, 130), at(70_000, 3)];
        let value = |row: &RowPlace| u64::from(row.block) << 11 | u64::from(row.number);
        let mut bytes = Vec::new();
        for pair in rows.windows(2) {
            let mut delta = value(&pair[1]) - value(&pair[0]);
            while delta > 0x7f {
                bytes.push((delta & 0x7f) as u8 | 0x80);
                delta >>= 7;
            }
            bytes.push(delta as u8);
        }
        let mut page = vec![0; PAGE_BYTES];
        page[100..106].copy_from_slice(&[0, 0, 1, 0, 1, 0]);
        page[106..108].copy_from_slice(&(bytes.len() as u16).to_le_bytes());
        page[108..108 + bytes.len()].copy_from_slice(&bytes);
        let mut read = Vec::new();
        let end = posting_list(&page, 100, 8000, &mut read);
        assert_eq!((read, end), (rows.to_vec(), 108 + bytes.len().next_multiple_of(2)));
    }

    /// Numbers of a page that point outside of it lead nowhere, and the reading ends.
    #[test]
    fn rubbish_is_read_within_its_page() {
        let mut seed = blake3::Hasher::new().finalize_xof();
        for kind in [Kind::Hash, Kind::Gin, Kind::Gist, Kind::Spgist] {
            for _ in 0..300 {
                let mut page = vec![0; PAGE_BYTES];
                seed.fill(&mut page);
                page[16..18].copy_from_slice(&((PAGE_BYTES - kind.special_bytes()) as u16).to_le_bytes());
                let names = kind.names(&page);
                assert!(names.rows.len() + names.pages.len() < 20 * PAGE_BYTES, "{kind:?}");
            }
        }
    }
}
