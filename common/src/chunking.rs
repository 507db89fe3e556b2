//! Where content is cut into chunks: pure rules, no input or output.

use std::ops::Range;

/// Sizes of the chunks of one class of files, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// FastCDC (2020, normalisation level 1): cut points follow the content, so that an insertion moves but does not
    /// change the chunks behind it.
    Content {
        /// No chunk but the last of a file is smaller.
        minimum: u32,
        /// Aimed at.
        average: u32,
        /// No chunk is larger.
        maximum: u32,
    },
    /// Pieces of one length, for files that a database writes in pages.
    Pages {
        /// Length of a piece.
        bytes: u32,
    },
}

/// For all files that no profile says more about. An average of 32 KiB keeps what an edit costs small (1 MiB chunks send
/// five times as much) while a manifest stays near a thousandth of the data.
pub const GENERAL: Cut = Cut::Content { minimum: 8 * 1024, average: 32 * 1024, maximum: 128 * 1024 };

/// Most pieces that a file of pages is cut into: beyond, a piece is two, four, eight ... pages. 2^18 pieces are 9 MB of
/// manifest (36 bytes each); a PostgreSQL segment (1 GiB of pages of 8 KiB) has half as many.
const MAX_PAGE_PIECES: u64 = 1 << 18;
/// Smallest piece: a database of pages of 512 bytes is not described page by page.
const MIN_PAGE_PIECE_BYTES: u64 = 4096;

pub use crate::limits::MAX_CHUNK_BYTES;

impl Cut {
    /// How to cut a file of `length` bytes that starts with `head`. `page_bytes` is what the profile says of its pages; a
    /// SQLite database says it itself (sqlite.org/fileformat2.html, 1.3). `last_piece_bytes` is the length of its pieces last
    /// time: they keep it as long as that makes sense, because other pieces would all be new.
    pub fn choose(head: &[u8], length: u64, page_bytes: Option<u32>, last_piece_bytes: Option<u64>) -> Self {
        let Some(page) = page_bytes.map(u64::from).or_else(|| sqlite_page_bytes(head)) else {
            return GENERAL;
        };
        let mut piece = page.max(1);
        while piece < MIN_PAGE_PIECE_BYTES || length / piece > MAX_PAGE_PIECES {
            piece *= 2;
        }
        let limit = MAX_CHUNK_BYTES as u64;
        let fits = |last: &u64| last.is_power_of_two() && *last >= MIN_PAGE_PIECE_BYTES && *last >= page;
        let last = last_piece_bytes
            .filter(|last| fits(last) && *last <= limit && length / last <= 2 * MAX_PAGE_PIECES);
        // `limit` is far below 2^32.
        Self::Pages { bytes: last.unwrap_or(piece.min(limit)) as u32 }
    }

    /// Cuts the front of `data`, which is a part of a file that starts at a cut point, and returns the ranges in order.
    /// Unless `end_of_file` is true the rest, less than [`Cut::lookahead`] bytes, stays uncut: the caller puts it in front of
    /// the next part, so that cut points do not depend on the sizes of reads.
    pub fn ranges(self, data: &[u8], end_of_file: bool) -> Vec<Range<usize>> {
        let mut ranges = Vec::new();
        let mut start = 0;
        match self {
            Self::Content { minimum, average, maximum } => {
                let cutter = fastcdc::v2020::FastCDC::new(data, minimum, average, maximum);
                while start < data.len() && (end_of_file || data.len() - start >= maximum as usize) {
                    let (_, end) = cutter.cut(start, data.len() - start);
                    ranges.push(start..end);
                    start = end;
                }
            }
            Self::Pages { bytes } => {
                while start < data.len() && (end_of_file || data.len() - start >= bytes as usize) {
                    let end = (start + bytes as usize).min(data.len());
                    ranges.push(start..end);
                    start = end;
                }
            }
        }
        ranges
    }

    /// Bytes that must be at hand to find the next cut for certain.
    pub fn lookahead(self) -> usize {
        match self {
            Self::Content { maximum, .. } => maximum as usize,
            Self::Pages { bytes } => bytes as usize,
        }
    }
}

/// The page size of a SQLite database, from its header.
fn sqlite_page_bytes(head: &[u8]) -> Option<u64> {
    let rest = head.strip_prefix(b"SQLite format 3\0")?;
    match u16::from_be_bytes([*rest.first()?, *rest.get(1)?]) {
        1 => Some(65536),
        bytes if bytes.is_power_of_two() && bytes >= 512 => Some(u64::from(bytes)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bytes that look random and are the same on every run.
    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    fn cut_in_reads(cut: Cut, data: &[u8], read: usize) -> Vec<Range<usize>> {
        let (mut all, mut start, mut end) = (Vec::new(), 0, 0);
        while end < data.len() {
            end = (end + read).min(data.len());
            for range in cut.ranges(&data[start..end], end == data.len()) {
                all.push(start + range.start..start + range.end);
            }
            start = all.last().map_or(0, |range: &Range<usize>| range.end);
        }
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        /// However the file is read, it is cut at the same places, without gap or overlap.
        #[test]
        fn cut_points_do_not_depend_on_reads(seed: u64, length in 0usize..600_000, read in 1_000usize..300_000) {
            let data = noise(seed, length);
            for cut in [GENERAL, Cut::Pages { bytes: 8192 }] {
                let whole = cut.ranges(&data, true);
                prop_assert_eq!(&cut_in_reads(cut, &data, read), &whole);
                let mut position = 0;
                for range in &whole {
                    prop_assert_eq!(range.start, position);
                    prop_assert!(range.len() <= cut.lookahead() && !range.is_empty());
                    position = range.end;
                }
                prop_assert_eq!(position, length);
            }
        }
    }

    #[test]
    fn an_insertion_changes_only_the_chunks_around_it() {
        let before = noise(1, 4_000_000);
        let mut after = before.clone();
        after.splice(2_000_000..2_000_000, *b"three lines inserted");
        let chunks = |data: &[u8]| -> std::collections::HashSet<_> {
            GENERAL.ranges(data, true).into_iter().map(|range| blake3::hash(&data[range])).collect()
        };
        let new = chunks(&after).difference(&chunks(&before)).count();
        assert!(new <= 3, "{new} chunks changed");
    }

    #[test]
    fn files_of_pages_are_cut_in_pages() {
        let sqlite = |size: [u8; 2]| [b"SQLite format 3\0".as_slice(), &size].concat();
        let pages = |bytes| Cut::Pages { bytes };
        let (mib, gib) = (1 << 20, 1 << 30);
        let cases = [
            ("text", Cut::choose(b"text", mib, None, None), GENERAL),
            ("the profile says so", Cut::choose(b"text", gib, Some(8192), None), pages(8192)),
            ("SQLite", Cut::choose(&sqlite([0x10, 0]), mib, None, None), pages(4096)),
            ("SQLite, 64 KiB", Cut::choose(&sqlite([0, 1]), mib, None, None), pages(65536)),
            ("SQLite, small pages", Cut::choose(&sqlite([2, 0]), mib, None, None), pages(4096)),
            ("not SQLite after all", Cut::choose(&sqlite([3, 0]), mib, None, None), GENERAL),
            ("cut off", Cut::choose(&sqlite([3, 0])[..17], mib, None, None), GENERAL),
            ("large", Cut::choose(&sqlite([0x10, 0]), 8 * gib, None, None), pages(32768)),
            ("as last time", Cut::choose(&sqlite([0x10, 0]), 2 * gib, None, Some(4096)), pages(4096)),
            ("grown out of it", Cut::choose(&sqlite([0x10, 0]), 8 * gib, None, Some(4096)), pages(32768)),
            ("was not cut in pages", Cut::choose(b"", gib, Some(8192), Some(9000)), pages(8192)),
            ("endless", Cut::choose(b"", u64::MAX, Some(8192), None), pages(1 << 20)),
        ];
        for (name, actual, expected) in cases {
            assert_eq!(actual, expected, "{name}");
        }
    }
}
