//! The digest of a file, put together from those of its blocks.
//!
//! BLAKE3 is a tree: the digest of a long input is made of chaining values, one for each part of it. Those of aligned blocks of
//! [`BLOCK_BYTES`] are kept here. Whoever knows them from the last time sees which blocks of a file are as they were, while it computes the
//! file's digest, without a second digest over the same bytes. And they are as good as the digest that they add up to: what a disk
//! has kept of them is checked by putting it together again ([`BlockList::of`]).

use blake3::hazmat::{ChainingValue, HasherExt as _, Mode, merge_subtrees_non_root, merge_subtrees_root};

use super::ContentDigest;

/// Length of a block. A power of two, and so a subtree of BLAKE3.
pub const BLOCK_BYTES: u64 = 1024 * 1024;

/// The chaining values of the blocks of a file that has at least two, all whole but the last.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BlockList(Vec<ChainingValue>);

impl BlockList {
    /// The blocks of a file of `size` bytes with this digest; `None` when `values` are others'.
    pub fn of(values: Vec<ChainingValue>, size: u64, digest: ContentDigest) -> Option<Self> {
        let is_right =
            values.len() >= 2 && values.len() as u64 == size.div_ceil(BLOCK_BYTES) && root(&values) == digest;
        is_right.then_some(Self(values))
    }

    /// The values, in order.
    pub fn values(&self) -> &[ChainingValue] {
        &self.0
    }

    /// The value of the whole block at `number`: of one that is not whole it must not be asked.
    pub fn value(&self, number: u64) -> Option<&ChainingValue> {
        self.0.get(usize::try_from(number).ok()?)
    }

    /// True when the whole block at `number` has this value. (That of a last block that is not whole is of fewer bytes, and so never equal.)
    pub fn has(&self, number: u64, value: &ChainingValue) -> bool {
        usize::try_from(number).is_ok_and(|number| self.0.get(number) == Some(value))
    }
}

/// Puts two or more values together. The left subtree is the largest power of two that leaves something for the right one (the BLAKE3
/// paper, 2.1 "Tree Structure").
fn root(values: &[ChainingValue]) -> ContentDigest {
    let (left, right) = values.split_at(left_count(values.len()));
    let hash = merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash);
    ContentDigest(*hash.as_bytes())
}

fn subtree(values: &[ChainingValue]) -> ChainingValue {
    match values {
        [value] => *value,
        values => {
            let (left, right) = values.split_at(left_count(values.len()));
            merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
        }
    }
}

fn left_count(count: usize) -> usize {
    count.next_power_of_two() / 2
}

/// Computes the digest of a file from front to end, and keeps the values of its blocks.
#[derive(Debug, Clone, Default)]
pub struct BlockHasher {
    done: Vec<ChainingValue>,
    /// The block that is being filled. It is not done before something comes behind it: a file of one block has no values.
    block: Box<blake3::Hasher>,
    filled: u64,
}

impl BlockHasher {
    /// Takes the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.filled == BLOCK_BYTES {
                self.done.push(self.block.finalize_non_root());
                self.begin_block();
            }
            let room = usize::try_from(BLOCK_BYTES - self.filled).expect("a block fits in memory");
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.block.update(now);
            self.filled += now.len() as u64;
            bytes = later;
        }
    }

    fn begin_block(&mut self) {
        *self.block = blake3::Hasher::new();
        self.block.set_input_offset(self.done.len() as u64 * BLOCK_BYTES);
        self.filled = 0;
    }

    /// Takes a whole block by its value instead of its bytes. False, and nothing is taken, when the block before is not whole, or there is
    /// none: the digest of a file of one block cannot be told from its value.
    pub fn update_block(&mut self, value: &ChainingValue) -> bool {
        match self.filled {
            BLOCK_BYTES => self.done.push(self.block.finalize_non_root()),
            0 if !self.done.is_empty() => {}
            _ => return false,
        }
        self.done.push(*value);
        self.begin_block();
        true
    }

    /// True when nothing has been taken.
    pub fn is_empty(&self) -> bool {
        self.done.is_empty() && self.filled == 0
    }

    /// Number and value of the block that is whole right now.
    pub fn whole_block(&self) -> Option<(u64, ChainingValue)> {
        (self.filled == BLOCK_BYTES).then(|| (self.done.len() as u64, self.block.finalize_non_root()))
    }

    /// The digest, and the blocks of a file that has at least two.
    pub fn finish(mut self) -> (ContentDigest, Option<BlockList>) {
        if self.done.is_empty() {
            return (ContentDigest(*self.block.finalize().as_bytes()), None);
        }
        // Nothing has come behind a block that was taken by its value.
        if self.filled > 0 {
            self.done.push(self.block.finalize_non_root());
        }
        (root(&self.done), Some(BlockList(self.done)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noise(length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    fn hashed(bytes: &[u8], step: usize) -> (ContentDigest, Option<BlockList>) {
        let mut hasher = BlockHasher::default();
        bytes.chunks(step.max(1)).for_each(|part| hasher.update(part));
        hasher.finish()
    }

    #[test]
    fn the_digest_is_that_of_blake3_at_every_edge() {
        let block = BLOCK_BYTES as usize;
        let bytes = noise(9 * block + 5);
        let edges = [0, 1, 1024, 1025, block - 1, block, block + 1, 2 * block, 2 * block + 1];
        for length in edges
            .into_iter()
            .chain((3..=9).flat_map(|count| [count * block - 7, count * block, count * block + 5]))
        {
            for step in [block, 100_003, length] {
                let (digest, blocks) = hashed(&bytes[..length], step);
                assert_eq!(digest, ContentDigest::of(&bytes[..length]), "{length} in steps of {step}");
                let count = blocks.map_or(0, |blocks| blocks.values().len());
                assert_eq!(count, if length > block { length.div_ceil(block) } else { 0 }, "{length}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn steps_make_no_difference(length in 0usize..6_000_000, step in 1000usize..3_000_000) {
            let bytes = noise(length);
            prop_assert_eq!(hashed(&bytes, step).0, ContentDigest::of(&bytes));
        }
    }

    #[test]
    fn a_block_is_taken_by_its_value() {
        let block = BLOCK_BYTES as usize;
        for length in [2 * block, 3 * block + 7, 6 * block] {
            let bytes = noise(length);
            let (digest, blocks) = hashed(&bytes, block);
            let blocks = blocks.expect("more than one");
            // Every second block, and every one that can be.
            for every in [1, 2] {
                let (mut hasher, mut taken) = (BlockHasher::default(), 0);
                for (number, part) in bytes.chunks(block).enumerate() {
                    let value =
                        blocks.value(number as u64).filter(|_| part.len() == block && number % every == 0);
                    match value {
                        Some(value) if hasher.update_block(value) => taken += 1,
                        _ => hasher.update(part),
                    }
                }
                let (found, list) = hasher.finish();
                assert_eq!((found, list.as_ref()), (digest, Some(&blocks)), "{length}, {every}");
                assert_eq!(taken, (1..length / block).filter(|number| number % every == 0).count());
            }
        }
        let mut hasher = BlockHasher::default();
        assert!(!hasher.update_block(&[0; 32]), "the first");
        hasher.update(&[1; 7]);
        assert!(!hasher.update_block(&[0; 32]), "in the middle of one");
        assert_eq!(hasher.finish().0, ContentDigest::of(&[1; 7]));
    }

    #[test]
    fn values_are_as_good_as_the_digest_that_they_add_up_to() {
        let bytes = noise(3_500_000);
        let (digest, blocks) = hashed(&bytes, 1 << 20);
        let values = blocks.expect("four").values().to_vec();
        let of = |values: Vec<_>, size| BlockList::of(values, size, digest).is_some();
        assert!(of(values.clone(), 3_500_000));
        assert!(!of(values.clone(), 5_500_000), "another size");
        assert!(
            !of(values[..3].to_vec(), 3_000_000)
                && !of(values[..1].to_vec(), 1_000_000)
                && !of(Vec::new(), 0)
        );
        for place in 0..values.len() {
            let mut others = values.clone();
            others[place][31] ^= 1;
            assert!(!of(others, 3_500_000), "{place}");
        }
    }

    #[test]
    fn a_block_is_known_again_when_it_is_whole() {
        let (old, mut new) = (noise(3_000_000), noise(4_000_000));
        new[1_500_000] ^= 1;
        let (_, blocks) = hashed(&old, 1 << 20);
        let (blocks, mut hasher, mut known) = (blocks.expect("three"), BlockHasher::default(), Vec::new());
        for part in new.chunks(1 << 19) {
            hasher.update(part);
            known.extend(hasher.whole_block().map(|(number, value)| blocks.has(number, &value)));
        }
        // The first is as it was, the second is changed, the third was not whole.
        assert_eq!(known, [true, false, false]);
    }
}
