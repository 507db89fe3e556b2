//! Runs that ended without a PASS. Each leaves a verdict in the ledger, from which nothing is ever removed: a source that opens runs and
//! gives them up in a loop could make it grow without bound, so only so many may fail within an hour.

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
    /// In how long one may be opened, when `limit` or more have failed within an hour.
    pub fn may_open(&self, limit: u32) -> Result<(), Duration> {
        self.may_open_at(limit, jiff::Timestamp::now())
    }

    fn may_open_at(&self, limit: u32, now: jiff::Timestamp) -> Result<(), Duration> {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        forget_old(&mut times, now);
        let over = times.len().checked_sub(limit as usize);
        let Some(first) = over.and_then(|over| times.get(over)) else {
            return Ok(());
        };
        let again = HOUR - now.duration_since(*first);
        Err(again.try_into().unwrap_or(Duration::from_secs(1)))
    }
}

/// A time in the future, left by a clock that was put right, holds nobody up.
fn forget_old(times: &mut VecDeque<jiff::Timestamp>, now: jiff::Timestamp) {
    times.retain(|time| *time <= now && now.duration_since(*time) < HOUR);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_may_fail_within_an_hour_and_the_next_when_it_is_over() {
        let failed = FailedRuns::default();
        let now = jiff::Timestamp::now();
        let ago = |minutes| now - jiff::SignedDuration::from_mins(minutes);
        for minutes in [70, 50, 40] {
            failed.note(ago(minutes));
        }
        failed.may_open_at(3, now).expect("one is older than an hour");
        failed.note(ago(10));
        assert_eq!(failed.may_open_at(3, now), Err(Duration::from_mins(10)));
        assert_eq!(failed.may_open_at(2, now), Err(Duration::from_mins(20)));
        failed.may_open_at(3, now + jiff::SignedDuration::from_mins(11)).expect("the oldest is over");
        failed.note(now + jiff::SignedDuration::from_hours(500));
        failed.may_open_at(4, now).expect("a clock that was wrong counts for nothing");
    }
}
