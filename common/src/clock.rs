//! The clock policy of both agents.
//!
//! - Waiting is measured by a clock that nobody sets and that goes on while the host sleeps. The wall clock says when a slot is,
//!   and nothing else.
//! - A wall clock that jumps is noticed ([`Monitor`]), told, and survived: whoever waits for a time plans again.
//! - A time that lies in the future was written by a clock that was ahead. It counts as of the moment at which it was first seen
//!   ([`bounded`]), so that it can neither hold a job back nor keep a proof fresh.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};

use crate::trouble::{self, Kind};

/// Clocks that are kept by a time service are put right by less than this at a time.
pub const SLACK: SignedDuration = SignedDuration::from_secs(5);

/// A time that nobody sets, since the host's start; it goes on while the host sleeps.
fn steady() -> SignedDuration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    SignedDuration::new(time.tv_sec, i32::try_from(time.tv_nsec).unwrap_or_default())
}

/// A jump of the wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Jump {
    /// The wall clock's time after the jump.
    pub now: Timestamp,
    /// How far it jumped; negative for back.
    pub by: SignedDuration,
}

impl std::fmt::Display for Jump {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let direction = if self.by.is_negative() { "back" } else { "ahead" };
        let length = std::time::Duration::from_secs(self.by.unsigned_abs().as_secs());
        write!(formatter, "the clock jumped {direction} by {}", humantime::format_duration(length))
    }
}

/// Compares the wall clock with the steady one.
#[derive(Debug)]
pub struct Monitor {
    wall: Timestamp,
    steady: SignedDuration,
}

impl Default for Monitor {
    fn default() -> Self {
        Self { wall: Timestamp::now(), steady: steady() }
    }
}

impl Monitor {
    /// A jump since the last look, or since the monitor was made.
    pub fn look(&mut self) -> Option<Jump> {
        self.compare(Timestamp::now(), steady())
    }

    fn compare(&mut self, wall: Timestamp, steady: SignedDuration) -> Option<Jump> {
        let by = self.wall.duration_until(wall) - (steady - self.steady);
        if by.abs() < SLACK {
            // The start stays as it is: a clock that is drawn along slowly becomes a jump, too, once it has gone far enough.
            return None;
        }
        (self.wall, self.steady) = (wall, steady);
        Some(Jump { now: wall, by })
    }
}

/// True for a time that the clock has not come to yet, by more than [`SLACK`].
pub fn is_ahead(time: Timestamp, now: Timestamp) -> bool {
    now.duration_until(time) > SLACK
}

/// `time`, or `seen` when `time` lies in its future: what a clock that was ahead has claimed counts from when it was seen.
pub fn bounded(time: Timestamp, seen: Timestamp) -> Timestamp {
    time.min(seen)
}

static JUMPS: AtomicU64 = AtomicU64::new(0);
/// How often the clocks are compared.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long `status` shows a jump.
const SHOWN: Duration = Duration::from_secs(24 * 3600);

/// Jumps of the wall clock that [`watch`] has seen.
pub fn jumps() -> u64 {
    JUMPS.load(Ordering::Relaxed)
}

/// Looks for jumps of the wall clock, for as long as the agent runs; each is counted and told.
pub async fn watch() {
    let mut monitor = Monitor::default();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if let Some(jump) = monitor.look() {
            JUMPS.fetch_add(1, Ordering::Relaxed);
            let text = format!("{jump}, to {}", jump.now.strftime("%Y-%m-%d %H:%M:%SZ"));
            trouble::happened(Kind::ClockJumped, "", SHOWN, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    #[test]
    fn jumps_in_either_direction_are_seen_once_and_the_passing_of_time_is_none() {
        let second = SignedDuration::from_secs;
        let mut monitor = Monitor { wall: at(1000), steady: second(10) };
        assert_eq!(monitor.compare(at(5000), second(4010)), None, "the host slept");
        assert_eq!(monitor.compare(at(5001), second(4010)), None, "a time service at work");
        let ahead = monitor.compare(at(8601), second(4011)).expect("a jump");
        assert_eq!(ahead.to_string(), "the clock jumped ahead by 1h");
        assert_eq!(monitor.compare(at(8602), second(4012)), None);
        let back = monitor.compare(at(5003), second(4013)).expect("a jump");
        assert_eq!(back.by, second(-3600));
        assert_eq!(back.to_string(), "the clock jumped back by 1h");
    }

    #[test]
    fn what_the_future_claims_is_bounded() {
        assert!(is_ahead(at(100), at(10)) && !is_ahead(at(12), at(10)) && !is_ahead(at(9), at(10)));
        assert_eq!((bounded(at(100), at(10)), bounded(at(9), at(10))), (at(10), at(9)));
    }
}
