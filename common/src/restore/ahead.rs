//! How far the comparison may be ahead of the work, in bytes: one entry may have a megabyte of attributes, or millions of pieces.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Memory that is left for what is ahead.
#[derive(Debug, Clone)]
pub(super) struct Ahead {
    held: Arc<(Mutex<usize>, Condvar)>,
    max_bytes: usize,
}

/// A share of it, until this is dropped.
#[derive(Debug)]
pub(super) struct Claim {
    ahead: Ahead,
    bytes: usize,
}

impl Ahead {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { held: Arc::default(), max_bytes }
    }

    /// Waits until there is room for `bytes`. What would have room at no time goes alone.
    pub(super) fn claim(&self, bytes: usize) -> Claim {
        let (held, freed) = &*self.held;
        let held = held.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |held: &mut usize| *held > 0 && held.saturating_add(bytes) > self.max_bytes;
        *freed.wait_while(held, full).unwrap_or_else(PoisonError::into_inner) += bytes;
        Claim { ahead: self.clone(), bytes }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let (held, freed) = &*self.ahead.held;
        *held.lock().unwrap_or_else(PoisonError::into_inner) -= self.bytes;
        freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Counts what is queued until it is dropped, which is before its claim is.
    struct Queued<'a> {
        now: &'a AtomicUsize,
        bytes: usize,
    }

    impl Drop for Queued<'_> {
        fn drop(&mut self) {
            self.now.fetch_sub(self.bytes, Ordering::SeqCst);
        }
    }

    /// What is ahead is bounded by its bytes, and what is too large for that goes alone. When the other end goes, whoever waits ends.
    #[test]
    fn what_is_ahead_is_bounded_in_bytes() {
        let ahead = Ahead::new(100);
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (out, jobs) = std::sync::mpsc::sync_channel(64);
        std::thread::scope(|scope| {
            let (ahead, now, most) = (&ahead, &now, &most);
            scope.spawn(move || {
                for bytes in (0..300).map(|number| [40, 30, 250, 1, 99][number % 5]) {
                    let claim = ahead.claim(bytes);
                    let held = now.fetch_add(bytes, Ordering::SeqCst) + bytes;
                    assert!(held <= 100 || held == bytes, "{held} bytes at a time, the last of them {bytes}");
                    most.fetch_max(held, Ordering::SeqCst);
                    if out.send((Queued { now, bytes }, claim)).is_err() {
                        return;
                    }
                }
                panic!("nobody took the last hundred");
            });
            let taken = jobs.into_iter().take(200).map(drop).count();
            assert_eq!(taken, 200);
        });
        assert_eq!(most.into_inner(), 250);
        assert_eq!(*ahead.held.0.lock().expect("no panic"), 0);
    }
}
