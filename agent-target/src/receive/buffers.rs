//! Memory that is used for one message after the other: fresh pages are slow to come by, and clearing them is work.

use std::sync::{Mutex, PoisonError};

/// As many buffers as messages were ever worked on side by side, each as large as the largest of them.
#[derive(Default)]
pub(super) struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    /// Does `work` with `bytes` bytes that nobody else uses. What is in them is left from others.
    pub(super) fn with<T>(&self, bytes: usize, work: impl FnOnce(&mut [u8]) -> T) -> T {
        let free = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = free().pop().unwrap_or_default();
        if buffer.len() < bytes {
            buffer.resize(bytes, 0);
        }
        let done = work(&mut buffer[..bytes]);
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
        buffers.with(10, |outer| {
            outer.fill(1);
            buffers.with(20, |inner| assert_eq!((inner.len(), inner[0]), (20, 0)));
            assert_eq!(outer, [1; 10]);
        });
        assert_eq!(buffers.with(5, |bytes| bytes.len()), 5);
        assert_eq!(buffers.0.lock().expect("no panic").len(), 2);
    }
}
