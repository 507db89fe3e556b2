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

/// No piece of data is larger than this, whatever the class: what one side must be ready to hold.
pub const MAX_CHUNK_BYTES: usize = 1024 * 1024;

impl Cut {
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
}
