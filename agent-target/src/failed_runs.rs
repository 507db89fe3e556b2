//! Runs that ended without a PASS. Each leaves a verdict in the ledger, from which nothing is ever removed: a source that opens runs and
//! gives them up in a loop could make it grow without bound, so only so many may fail within an hour. Then one is tried again from time to
//! time, no faster than that: a fault that is over must not keep a repository unproven for the rest of the hour.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::Duration,
};

const HOUR: jiff::SignedDuration = jiff::SignedDuration::from_hours(1);

/// When runs failed, oldest first, as far as that matters.
#[derive(Debug, Default)]
pub struct FailedRuns(Mutex<VecDeque<jiff::Timestamp>>);

impl FailedRuns {
    /// A run has failed.
    pub fn note(&self, time: jiff::Timestamp) {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = times.partition_point(|other| *other <= time);
        times.insert(place, time);
        forget_old(&mut times, jiff::Timestamp::now());
    }

    /// Whether a run may be opened.
    ///
    /// # Errors
    /// In how long one may be opened, when `limit` or more have failed within an hour, and the last of them a moment ago: less than the `limit`th
    /// part of an hour. No hour ever has more than twice `limit`.
    pub fn may_open(&self, limit: u32) -> Result<(), Duration> {
        self.may_open_at(limit, jiff::Timestamp::now())
    }

    fn may_open_at(&self, limit: u32, now: jiff::Timestamp) -> Result<(), Duration> {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        forget_old(&mut times, now);
        let Some(last) = times.back().filter(|_| times.len() >= limit as usize) else {
            return Ok(());
        };
        let again = HOUR / i32::try_from(limit.max(1)).unwrap_or(i32::MAX) - now.duration_since(*last);
        if again.is_positive() { Err(again.try_into().unwrap_or(Duration::from_secs(1))) } else { Ok(()) }
    }
}

/// A time in the future, left by a clock that was put right, holds nobody up.
fn forget_old(times: &mut VecDeque<jiff::Timestamp>, now: jiff::Timestamp) {
    times.retain(|time| *time <= now && now.duration_since(*time) < HOUR);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ago(now: jiff::Timestamp, minutes: i64) -> jiff::Timestamp {
        now - jiff::SignedDuration::from_mins(minutes)
    }

    #[test]
    fn so_many_may_fail_within_an_hour() {
        let failed = FailedRuns::default();
        let now = jiff::Timestamp::now();
        for minutes in [70, 50, 40] {
            failed.note(ago(now, minutes));
        }
        failed.may_open_at(3, now).expect("one is older than an hour");
        failed.note(ago(now, 10));
        assert_eq!(failed.may_open_at(3, now), Err(Duration::from_mins(10)));
        failed.may_open_at(3, now + jiff::SignedDuration::from_mins(11)).expect("the oldest is over");
        failed.note(now + jiff::SignedDuration::from_hours(500));
        failed.may_open_at(4, now).expect("a clock that was wrong counts for nothing");
    }

    /// Sixty runs of a schedule that runs each second fail within a minute of a full disk. When the disk has room again, the next one is a
    /// minute away and not an hour; and a source that fails for ever has a verdict each minute.
    #[test]
    fn a_fault_that_is_over_holds_up_the_next_run_for_a_moment() {
        let failed = FailedRuns::default();
        let now = jiff::Timestamp::now();
        for second in 0..60 {
            failed.note(now - jiff::SignedDuration::from_secs(second));
        }
        assert_eq!(failed.may_open_at(60, now), Err(Duration::from_mins(1)));
        failed.may_open_at(60, now + jiff::SignedDuration::from_mins(1)).expect("one is tried again");
        failed.note(now);
        assert_eq!(failed.may_open_at(60, now), Err(Duration::from_mins(1)), "it has failed as well");
        assert_eq!(failed.may_open_at(1, now), Err(Duration::from_hours(1)));
    }
}
