//! Pages of PostgreSQL 14 to 18 as they lie on the disk: the checksum, a heap page's rows, a B-tree leaf's entries, a visibility map.
//!
//! Every number is read within its page's bounds: pages come from the copy, and a page that makes no sense has no rows and no
//! entries. Whether it is sound is for amcheck to say.

/// A page, as every distribution builds it.
pub(crate) const PAGE_BYTES: usize = 8192;
/// Where a page's line pointers begin.
pub(crate) const LINE_POINTERS: usize = 24;
/// Blocks whose bits one page of a visibility map holds: two bits a block.
const BLOCKS_PER_MAP_PAGE: u64 = (PAGE_BYTES as u64 - LINE_POINTERS as u64) * 4;

/// Where a row lies: block, and number from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RowPlace {
    pub(super) block: u32,
    pub(super) number: u16,
}

pub(super) fn word(page: &[u8], at: usize) -> u16 {
    page.get(at..at + 2).map_or(0, |bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
}

pub(super) fn long(page: &[u8], at: usize) -> u32 {
    page.get(at..at + 4).map_or(0, |bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

/// A row's place as an index has it (`ItemPointerData`).
pub(super) fn place(page: &[u8], at: usize) -> RowPlace {
    RowPlace {
        block: u32::from(word(page, at)) << 16 | u32::from(word(page, at + 2)),
        number: word(page, at + 4),
    }
}

/// True for a page that was never written: the server takes a page of zeros for a new one.
pub(super) fn is_new(page: &[u8]) -> bool {
    word(page, 14) == 0
}

/// The line pointers of a page: offset, state (0 unused, 1 normal, 2 redirect, 3 dead), length.
pub(super) fn pointers(page: &[u8]) -> impl Iterator<Item = (usize, u32, usize)> {
    let lower = (word(page, 12) as usize).min(page.len());
    let count = if is_new(page) { 0 } else { lower.saturating_sub(LINE_POINTERS) / 4 };
    (0..count).map(|item| {
        let pointer = long(page, LINE_POINTERS + 4 * item);
        ((pointer & 0x7fff) as usize, pointer >> 15 & 3, (pointer >> 17) as usize)
    })
}

/// For each row pointer of a heap page, whether an entry of an index may point at it: it is in use, and is not a later version
/// within a chain, which only the chain's first leads to.
pub(super) fn heap_targets(page: &[u8]) -> impl Iterator<Item = bool> {
    const HEAP_ONLY: u16 = 0x8000;
    pointers(page).map(|(offset, state, _)| match state {
        0 => false,
        1 => word(page, offset + 18) & HEAP_ONLY == 0,
        _ => true,
    })
}

/// A version of a row, as far as its transactions go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Version {
    /// Its number in the page, from 1.
    pub(super) number: u16,
    /// The transactions that it says have committed: the one that made it, the one that ended it.
    pub(super) committed: [Option<u32>; 2],
}

/// The versions of rows in a heap page that say of a transaction that it has committed (htup_details.h).
pub(super) fn versions(page: &[u8]) -> impl Iterator<Item = Version> {
    const MADE_COMMITTED: u16 = 0x0100;
    const MADE_MASK: u16 = 0x0300;
    const ENDED_COMMITTED: u16 = 0x0400;
    // The end is void, is a list of several transactions, or is a lock.
    const NO_END: u16 = 0x0800 | 0x1000 | 0x0080;
    // Of versions before 9.0.
    const MOVED: u16 = 0xc000;
    const FIRST_NORMAL: u32 = 3;
    (1..).zip(pointers(page)).filter_map(|(number, (offset, state, length))| {
        if state != 1 || length < 23 {
            return None;
        }
        let mask = word(page, offset + 20);
        if mask & MOVED != 0 {
            return None;
        }
        let normal = |at: usize| Some(long(page, at)).filter(|it| *it >= FIRST_NORMAL);
        let made = if mask & MADE_MASK == MADE_COMMITTED { normal(offset) } else { None };
        let ended =
            if mask & (ENDED_COMMITTED | NO_END) == ENDED_COMMITTED { normal(offset + 4) } else { None };
        let committed = [made, ended];
        committed.iter().any(Option::is_some).then_some(Version { number, committed })
    })
}

/// The transactions that made and ended a version of a row, whatever its marks say of them; `None`: several transactions, or of a version
/// before 9.0.
pub(super) type Ends = Option<[u32; 2]>;

/// The same for each version of a heap page, 0 where there is none and where a version is frozen.
pub(super) fn ends(page: &[u8]) -> impl Iterator<Item = Ends> {
    const FROZEN: u16 = 0x0300;
    const SEVERAL: u16 = 0x1000;
    const MOVED: u16 = 0xc000;
    pointers(page).filter(|(_, state, length)| *state == 1 && *length >= 23).map(|(offset, ..)| {
        let mask = word(page, offset + 20);
        let (made, ended) = (long(page, offset), long(page, offset + 4));
        if mask & MOVED != 0 || (mask & SEVERAL != 0 && ended != 0) {
            return None;
        }
        Some([if mask & FROZEN == FROZEN { 0 } else { made }, ended])
    })
}

/// True if the first page of a sequence is one (commands/sequence.c).
pub(super) fn is_sequence(page: &[u8]) -> bool {
    const MAGIC: u32 = 0x1717;
    let special = usize::from(word(page, 16));
    special == page.len() - 8
        && long(page, special) == MAGIC
        && matches!(pointers(page).next(), Some((_, 1, _)))
}

/// A leaf of a B-tree that is in use.
pub(super) struct Leaf<'a> {
    page: &'a [u8],
    /// Where its entries end.
    special: usize,
    /// The block of the leaf behind it; 0 for the last.
    pub(super) next: u32,
}

/// An entry of a leaf: its key as it is stored, and the rows that it points at.
pub(super) struct Entry<'a> {
    page: &'a [u8],
    pub(super) key: &'a [u8],
    /// A column of the key is null.
    pub(super) has_null: bool,
    /// Where its rows begin in the page, and how many there are.
    rows: (usize, usize),
}

/// nbtree.h, itup.h: what the first eight bytes of an entry say.
const ALTERNATIVE: u16 = 0x2000;
const HAS_NULL: u16 = 0x8000;
const LENGTH: u16 = 0x1fff;
const POSTING: u16 = 0x2000;
const KEY_ENDS_IN_ROW: u16 = 0x1000;

impl<'a> Leaf<'a> {
    /// `None` for every other page.
    pub(super) fn of(page: &'a [u8]) -> Option<Self> {
        // nbtree.h: BTPageOpaqueData is the last 16 bytes.
        const LEAF: u16 = 1;
        const GONE: u16 = 4 | 8 | 16; // deleted, meta, half dead
        let special = word(page, 16) as usize;
        if is_new(page) || special != page.len() - 16 {
            return None;
        }
        let (next, flags) = (long(page, special + 4), word(page, special + 12));
        (flags & LEAF != 0 && flags & GONE == 0).then_some(Self { page, special, next })
    }

    /// Its entries in order, without those that are known to lead to dead rows.
    pub(super) fn entries(&self) -> impl Iterator<Item = Entry<'a>> {
        let Self { page, special, .. } = *self;
        // Of all leaves but the last, the first item is the high key.
        pointers(page).skip(usize::from(self.next != 0)).filter_map(move |(offset, state, length)| {
            if state != 1 || offset + 8 > special || length < 8 {
                return None;
            }
            let (own, info) = (place(page, offset), word(page, offset + 6));
            let whole = usize::from(info & LENGTH).min(length);
            // A posting list: how many there are, and where they begin in the entry.
            let (key_end, rows) = if info & ALTERNATIVE == 0 {
                (offset + whole, (offset, 1))
            } else if own.number & POSTING == 0 {
                return None;
            } else {
                let (count, start) = (usize::from(own.number & 0x0fff), offset + own.block as usize);
                let end = start.saturating_add(6 * count);
                if end > special || end > offset + length {
                    return None;
                }
                (start, (start, count))
            };
            let key = page.get(offset + 8..key_end.min(special)).unwrap_or_default();
            Some(Entry { page, key, has_null: info & HAS_NULL != 0, rows })
        })
    }

    /// True if the next leaf may begin with entries of the key with which this one ends. Its high key then ends in the place of a row
    /// (`_bt_truncate`, version 4 of the tree: PostgreSQL 12 and later).
    pub(super) fn may_go_on(&self) -> bool {
        let Some((offset, 1, _)) = pointers(self.page).next() else { return false };
        let (own, info) = (place(self.page, offset), word(self.page, offset + 6));
        self.next != 0 && info & ALTERNATIVE != 0 && own.number & KEY_ENDS_IN_ROW != 0
    }
}

impl Entry<'_> {
    pub(super) fn rows(&self) -> impl Iterator<Item = RowPlace> {
        let (start, count) = self.rows;
        (0..count).map(move |index| place(self.page, start + 6 * index))
    }
}

/// The blocks that a page of a visibility map says are visible to all. `number` is that page's own.
pub(super) fn visible_blocks(page: &[u8], number: u64) -> impl Iterator<Item = u64> {
    let bits = if is_new(page) { &[][..] } else { page.get(LINE_POINTERS..).unwrap_or_default() };
    let first = number * BLOCKS_PER_MAP_PAGE;
    bits.iter().enumerate().filter(|(_, byte)| **byte != 0).flat_map(move |(at, byte)| {
        (0..4_u64)
            .filter(move |place| byte >> (2 * place) & 3 != 0)
            .map(move |place| first + at as u64 * 4 + place)
    })
}

/// The checksum that a page says it has; 0 for none.
pub(crate) fn stored_checksum(page: &[u8]) -> u16 {
    word(page, 8)
}

/// The checksum of a page (storage/checksum_impl.h): FNV-1a in 32 lanes, with the block's number.
pub(crate) fn checksum(page: &[u8], block: u32) -> u16 {
    const OFFSETS: [u32; 32] = [
        0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
        0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
        0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
        0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
    ];
    let mix = |sum: &mut u32, value: u32| {
        let mixed = *sum ^ value;
        *sum = mixed.wrapping_mul(16_777_619) ^ (mixed >> 17);
    };
    let mut sums = OFFSETS;
    // Row by row, so that the lanes go side by side.
    for (row, bytes) in page.chunks_exact(128).enumerate() {
        let mut values = [0; 32];
        for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(4)) {
            *value = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        if row == 0 {
            // The place of the checksum itself counts as zero.
            values[2] &= 0xffff_0000;
        }
        for (sum, value) in sums.iter_mut().zip(values) {
            mix(sum, value);
        }
    }
    for _ in 0..2 {
        sums.iter_mut().for_each(|sum| mix(sum, 0));
    }
    let folded = sums.iter().fold(0, |all, sum| all ^ sum) ^ block;
    (folded % 65535 + 1) as u16
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn put(page: &mut [u8], at: usize, bytes: &[u8]) {
        page[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// A page with these items, from its end on, before `special` bytes.
    pub(in crate::engine::postgresql) fn page_of(items: &[(u32, Vec<u8>)], special: &[u8]) -> Vec<u8> {
        let mut page = vec![0; PAGE_BYTES];
        let end = PAGE_BYTES - special.len();
        put(&mut page, end, special);
        let mut upper = end;
        for (number, (state, bytes)) in items.iter().enumerate() {
            upper -= bytes.len();
            put(&mut page, upper, bytes);
            let pointer = upper as u32 | state << 15 | (bytes.len() as u32) << 17;
            put(&mut page, LINE_POINTERS + 4 * number, &pointer.to_le_bytes());
        }
        let lower = (LINE_POINTERS + 4 * items.len()) as u16;
        for (at, value) in [(12, lower), (14, upper as u16), (16, end as u16), (18, 8192 | 4)] {
            put(&mut page, at, &value.to_le_bytes());
        }
        page
    }

    pub(in crate::engine::postgresql) fn row(infomask2: u16) -> Vec<u8> {
        let mut row = vec![0; 32];
        put(&mut row, 18, &infomask2.to_le_bytes());
        row
    }

    /// What a place looks like within an entry.
    fn tid(block: u32, number: u16) -> [u8; 6] {
        let (high, low) = ((block >> 16) as u16, block as u16);
        let mut bytes = [0; 6];
        put(&mut bytes, 0, &high.to_le_bytes());
        put(&mut bytes, 2, &low.to_le_bytes());
        put(&mut bytes, 4, &number.to_le_bytes());
        bytes
    }

    pub(in crate::engine::postgresql) fn entry(block: u32, number: u16) -> Vec<u8> {
        let mut entry = vec![0; 16];
        put(&mut entry, 0, &tid(block, number));
        put(&mut entry, 6, &16_u16.to_le_bytes());
        entry
    }

    fn posting(places: &[(u32, u16)]) -> Vec<u8> {
        let mut entry = vec![0; 16 + 6 * places.len()];
        put(&mut entry, 0, &tid(16, 0x2000 | places.len() as u16));
        let length = entry.len() as u16;
        put(&mut entry, 6, &(0x2000 | length).to_le_bytes());
        for (index, (block, number)) in places.iter().enumerate() {
            put(&mut entry, 16 + 6 * index, &tid(*block, *number));
        }
        entry
    }

    /// The special part of a B-tree's page.
    pub(in crate::engine::postgresql) fn opaque(next: u32, flags: u16) -> Vec<u8> {
        let mut special = vec![0; 16];
        put(&mut special, 4, &next.to_le_bytes());
        put(&mut special, 12, &flags.to_le_bytes());
        special
    }

    #[test]
    fn an_index_may_point_at_rows_in_use_that_are_no_later_versions() {
        let page = page_of(&[(1, row(2)), (0, row(0)), (1, row(0x8002)), (2, vec![]), (3, vec![])], &[]);
        assert_eq!(heap_targets(&page).collect::<Vec<_>>(), [true, false, false, true, true]);
        assert_eq!(heap_targets(&[0; PAGE_BYTES]).count(), 0);
        assert!(is_new(&[0; PAGE_BYTES]) && !is_new(&page));
    }

    #[test]
    fn a_version_says_of_its_transactions_that_they_have_committed() {
        let version = |made: u32, ended: u32, mask: u16| {
            let mut row = row(0);
            put(&mut row, 0, &made.to_le_bytes());
            put(&mut row, 4, &ended.to_le_bytes());
            put(&mut row, 20, &mask.to_le_bytes());
            (1, row)
        };
        let page = page_of(
            &[
                version(700, 0, 0x0900),            // made, and not ended
                version(700, 701, 0x0500),          // both
                version(700, 701, 0x0300),          // frozen
                version(2, 0, 0x0900),              // of the time before transactions
                version(700, 701, 0x0580),          // locked
                version(700, 5, 0x1500),            // ended by one of a list
                version(700, 701, 0x0500 | 0x4000), // moved by a version before 9.0
                version(700, 701, 0x0800),          // nothing is said
            ],
            &[],
        );
        let found: Vec<_> = versions(&page).map(|it| (it.number, it.committed)).collect();
        let made = [Some(700), None];
        assert_eq!(found, [(1, made), (2, [Some(700), Some(701)]), (5, made), (6, made)]);
        assert_eq!(versions(&[0; PAGE_BYTES]).count(), 0);
    }

    #[test]
    fn a_sequence_has_its_mark_and_one_row() {
        let mut special = vec![0; 8];
        put(&mut special, 0, &0x1717_u32.to_le_bytes());
        assert!(is_sequence(&page_of(&[(1, row(0))], &special)));
        assert!(!is_sequence(&page_of(&[], &special)) && !is_sequence(&page_of(&[(1, row(0))], &[])));
        assert!(!is_sequence(&page_of(&[(1, row(0))], &[0; 8])));
    }

    #[test]
    fn entries_of_leaves_are_read_posting_lists_and_all() {
        let items =
            [(1, entry(1, 1)), (1, entry(70_000, 2)), (3, entry(9, 9)), (1, posting(&[(3, 4), (5, 6)]))];
        let place = |block, number| RowPlace { block, number };
        let leaf_entries = |page: &[u8]| -> Vec<RowPlace> {
            Leaf::of(page)
                .iter()
                .flat_map(Leaf::entries)
                .flat_map(|it| it.rows().collect::<Vec<_>>())
                .collect()
        };
        let leaf = leaf_entries(&page_of(&items, &opaque(0, 1)));
        assert_eq!(leaf, [place(1, 1), place(70_000, 2), place(3, 4), place(5, 6)]);
        // Its first item is the high key where another leaf follows.
        assert_eq!(leaf_entries(&page_of(&items, &opaque(7, 1))), leaf[1..]);
        for flags in [0, 1 | 4, 1 | 16, 8] {
            assert_eq!(leaf_entries(&page_of(&items, &opaque(0, flags))), [], "{flags}");
        }
        assert_eq!(leaf_entries(&[0; PAGE_BYTES]), []);
    }

    /// Numbers of a page that point outside of it lead nowhere.
    #[test]
    fn rubbish_has_no_rows_and_no_entries_and_ends() {
        let mut seed = blake3::Hasher::new().finalize_xof();
        for special in [PAGE_BYTES as u16, PAGE_BYTES as u16 - 16] {
            for _ in 0..200 {
                let mut page = vec![0; PAGE_BYTES];
                seed.fill(&mut page);
                put(&mut page, 16, &special.to_le_bytes());
                put(&mut page, PAGE_BYTES - 4, &1_u16.to_le_bytes());
                assert!(heap_targets(&page).count() <= 2048);
                for entry in Leaf::of(&page).iter().flat_map(Leaf::entries) {
                    assert!(entry.rows().count() < 4096 && entry.key.len() < PAGE_BYTES);
                }
                let _ = Leaf::of(&page).map(|leaf| leaf.may_go_on());
            }
        }
    }

    #[test]
    fn bits_of_a_visibility_map_name_blocks() {
        let mut map = page_of(&[], &[]);
        map[24] = 0b0000_1101;
        map[25] = 0b1000_0000;
        assert_eq!(visible_blocks(&map, 0).collect::<Vec<_>>(), [0, 1, 7]);
        assert_eq!(visible_blocks(&map, 2).next(), Some(2 * 32_672));
    }
}
