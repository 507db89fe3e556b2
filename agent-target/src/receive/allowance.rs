//! How much a run may write: within the repository's quota, and not into the room that the store's file system is to keep.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use assay_common::config::Size;

use super::ReceiveError;
use crate::store::free_bytes;

/// Free space is looked at again when half of it has been written, but for so many bytes at least, and at most: others write, too.
const LOOK_AGAIN_BYTES: [u64; 2] = [1024 * 1024, 64 * 1024 * 1024];

/// What one session may write.
#[derive(Debug)]
pub struct Allowance {
    quota: Option<Size>,
    /// Bytes of content that the repository's store holds without this session.
    held: u64,
    reserve: Size,
    folder: PathBuf,
    written: AtomicU64,
    /// When so much has been written, free space is looked at again.
    look_at: AtomicU64,
}

impl Allowance {
    /// At most what is missing to `quota` beside the `held` bytes, and with at least `reserve` free on the file system of
    /// `folder`.
    pub fn new(quota: Option<Size>, held: u64, reserve: Size, folder: &Path) -> Self {
        Self {
            quota,
            held,
            reserve,
            folder: folder.to_owned(),
            written: AtomicU64::new(0),
            look_at: AtomicU64::new(0),
        }
    }

    /// Takes bytes that are about to be written.
    ///
    /// # Errors
    /// When there is no room for them.
    pub fn claim(&self, bytes: u64) -> Result<(), ReceiveError> {
        let before = self.written.fetch_add(bytes, Ordering::Relaxed);
        let held = self.held.saturating_add(before).saturating_add(bytes);
        if let Some(quota) = self.quota.filter(|quota| held > quota.0) {
            return Err(ReceiveError::Quota { quota });
        }
        if self.reserve.0 > 0 && before >= self.look_at.load(Ordering::Relaxed) {
            let free = free_bytes(&self.folder).unwrap_or(u64::MAX);
            let Some(rest) = free.checked_sub(self.reserve.0).filter(|rest| *rest >= bytes) else {
                return Err(ReceiveError::Reserve { reserve: self.reserve, free: Size(free) });
            };
            let [least, most] = LOOK_AGAIN_BYTES;
            self.look_at.store(before.saturating_add((rest / 2).clamp(least, most)), Ordering::Relaxed);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_counts_what_is_held_and_what_is_written() {
        let folder = Path::new("/");
        let allowance = Allowance::new(Some(Size(100)), 70, Size(0), folder);
        allowance.claim(20).expect("90");
        allowance.claim(10).expect("100");
        let refused = allowance.claim(1).expect_err("101");
        assert!(matches!(refused, ReceiveError::Quota { quota: Size(100) }), "{refused}");
        Allowance::new(None, u64::MAX, Size(0), folder).claim(u64::MAX).expect("no quota");
    }

    #[test]
    fn the_reserve_is_looked_at_with_the_first_byte_and_then_now_and_again() {
        let folder = Path::new("/");
        let none = Allowance::new(None, 0, Size(u64::MAX), folder);
        for _ in 0..2 {
            let refused = none.claim(1).expect_err("no disk has so much");
            assert!(matches!(refused, ReceiveError::Reserve { .. }), "{refused}");
        }
        let some = Allowance::new(None, 0, Size(1), folder);
        some.claim(1).expect("there is more than two bytes");
        let next = some.look_at.load(Ordering::Relaxed);
        assert!((LOOK_AGAIN_BYTES[0]..=LOOK_AGAIN_BYTES[1]).contains(&next), "{next}");
        some.claim(u64::MAX / 2).expect("not looked at again so soon");
        some.claim(u64::MAX / 4).expect_err("no disk has so much");
    }
}
