//! Memory that is used for one message after the other: fresh pages are slow to come by, and clearing them is work.

use std::sync::{Mutex, PoisonError};

#[cfg(doc)]
use assay_common::uncached;
use assay_common::uncached::BLOCK_BYTES;

/// As many buffers as messages were ever worked on side by side, each as large as the largest of them.
#[derive(Default)]
pub(crate) struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    /// Does `work` with `bytes` bytes that nobody else uses, and that can be written directly when they begin at `offset` of their file
    /// ([`uncached::write_blocks_at`]). What is in them is left from others.
    pub(crate) fn with<T>(&self, bytes: usize, offset: u64, work: impl FnOnce(&mut [u8]) -> T) -> T {
        let free = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = free().pop().unwrap_or_default();
        if buffer.len() < bytes + 2 * BLOCK_BYTES {
            buffer.resize(bytes + 2 * BLOCK_BYTES, 0);
        }
        let aligned = buffer.as_ptr().align_offset(BLOCK_BYTES).min(BLOCK_BYTES);
        let start = aligned + (offset % BLOCK_BYTES as u64) as usize;
        let done = work(&mut buffer[start..start + bytes]);
        free().push(buffer);
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_and_never_by_two() {
        let buffers = Buffers::default();
        buffers.with(10, 0, |outer| {
            outer.fill(1);
            buffers.with(20, 7, |inner| assert_eq!((inner.len(), inner[0]), (20, 0)));
            assert_eq!(outer, [1; 10]);
        });
        for offset in [0, 1, 4095, 4096, 10_000] {
            buffers.with(5, offset, |bytes| {
                assert_eq!(bytes.len(), 5);
                assert_eq!((bytes.as_ptr().addr() as u64 ^ offset) % BLOCK_BYTES as u64, 0);
            });
        }
        assert_eq!(buffers.0.lock().expect("no panic").len(), 2);
    }
}
