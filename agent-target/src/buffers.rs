//! Memory that is used for one message after the other: fresh pages are slow to come by, and clearing them is work.

use std::{
    ops::{Deref, DerefMut, Range},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

#[cfg(doc)]
use assay_common::uncached;
use assay_common::uncached::BLOCK_BYTES;
use bytes::Bytes;

/// Buffers that are kept for the next message.
const SPARE: usize = 8;

/// As many buffers as messages are worked on side by side, each as large as the largest of them.
#[derive(Clone, Default)]
pub(crate) struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

impl Buffers {
    /// `bytes` bytes that nobody else uses, and that can be written directly when they begin at `offset` of their file
    /// ([`uncached::write_blocks_at`]). What is in them is left from others.
    pub(crate) fn take(&self, bytes: usize, offset: u64) -> Buffer {
        let mut memory = self.spare().pop().unwrap_or_default();
        if memory.len() < bytes + 2 * BLOCK_BYTES {
            memory.resize(bytes + 2 * BLOCK_BYTES, 0);
        }
        let aligned = memory.as_ptr().align_offset(BLOCK_BYTES).min(BLOCK_BYTES);
        let start = aligned + (offset % BLOCK_BYTES as u64) as usize;
        Buffer { memory, range: start..start + bytes, home: self.clone() }
    }

    fn spare(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes that go back when nobody holds them any longer.
pub(crate) struct Buffer {
    memory: Vec<u8>,
    range: Range<usize>,
    home: Buffers,
}

impl Buffer {
    /// What is held with it, in bytes: it may have been a larger one before.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.memory.len()
    }

    /// The first `filled` bytes, for several who only read them.
    pub(crate) fn share(mut self, filled: usize) -> Bytes {
        self.range.end = self.range.end.min(self.range.start + filled);
        Bytes::from_owner(self)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.range.clone()]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.range.clone()]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut spare = self.home.spare();
        if spare.len() < SPARE {
            spare.push(std::mem::take(&mut self.memory));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_and_never_by_two() {
        let buffers = Buffers::default();
        let mut first = buffers.take(10, 0);
        first.fill(1);
        let second = buffers.take(20, 7);
        assert_eq!((second.len(), second[0]), (20, 0));
        drop(second);
        let shared = first.share(9);
        let slice = shared.slice(3..5);
        drop(shared);
        assert_eq!((&slice[..], buffers.spare().len()), (&[1, 1][..], 1), "it is held");
        drop(slice);
        assert_eq!(buffers.spare().len(), 2);
        for offset in [0, 1, 4095, 4096, 10_000] {
            let bytes = buffers.take(5, offset);
            assert_eq!(bytes.len(), 5);
            assert_eq!((bytes.as_ptr().addr() as u64 ^ offset) % BLOCK_BYTES as u64, 0);
        }
        assert_eq!(buffers.spare().len(), 2);
        drop(buffers.take(100_000, 0));
        assert!(buffers.take(1, 0).memory_bytes() >= 100_000, "it was a larger one before");
        let many: Vec<_> = (0..2 * SPARE).map(|_| buffers.take(1, 0)).collect();
        drop(many);
        assert_eq!(buffers.spare().len(), SPARE);
    }
}
