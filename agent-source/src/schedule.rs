//! Starts runs by the clock, and counts the slots that passed without one.
//!
//! A slot is missed when the agent did not run at its time, or when the run before it was still under way. Missed slots are
//! told in the log and in status; one run then stands in for all of them, at once after a start.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use assay_common::rpc_status::RpcFault;
use assay_proto::v1::Trigger;
use jiff::Timestamp;
use rand::Rng as _;

use crate::{
    agent::Repository,
    config::{Schedule, Slots},
    run::Options,
};

/// A slot that is this late still counts as served in time: a busy machine is not a missed hour.
const GRACE: Duration = Duration::from_secs(30);
/// Slots that are looked through after a long absence, so that a schedule of seconds and a year away end soon.
const MAX_COUNTED: u64 = 100_000;

/// The first slot after `time`.
pub fn next_slot(slots: &Slots, time: Timestamp) -> Option<Timestamp> {
    match slots {
        Slots::Every(every) => {
            let every = i64::try_from(every.as_secs()).ok()?.max(1);
            Timestamp::from_second((time.as_second().div_euclid(every) + 1).checked_mul(every)?).ok()
        }
        Slots::Cron(cron) => {
            let time = chrono::DateTime::from_timestamp(time.as_second(), 0)?;
            let next = cron.find_next_occurrence(&time, false).ok()?;
            Timestamp::from_second(next.timestamp()).ok()
        }
    }
}

/// Slots after `last` that are over by `now`, and the newest of them.
pub fn passed(slots: &Slots, last: Timestamp, now: Timestamp) -> (u64, Option<Timestamp>) {
    let (mut count, mut newest) = (0, None);
    let mut slot = next_slot(slots, last);
    while let Some(time) = slot
        && time <= now
        && count < MAX_COUNTED
    {
        (count, newest) = (count + 1, Some(time));
        slot = next_slot(slots, time);
    }
    (count, newest)
}

/// Runs a repository's schedule for ever.
pub async fn run(repository: Arc<Repository>, schedule: Schedule) {
    let name = repository.context.repository.name.clone();
    let state = &repository.context.state;
    loop {
        let mut known = state.schedule().unwrap_or_default();
        let now = Timestamp::now();
        let last = known.last_slot.unwrap_or(now);
        let (count, newest) = passed(&schedule.slots, last, now);
        if let Some(newest) = newest {
            let in_time = newest.duration_until(now).unsigned_abs() <= GRACE;
            let missed = count - u64::from(in_time);
            let started = repository.start(Trigger::Schedule, Options::default());
            known = state.schedule().unwrap_or_default();
            known.last_slot = Some(newest);
            known.missed += missed + u64::from(started.is_err() && in_time);
            if missed > 0 || started.is_err() {
                let why = started.as_ref().err().map(|fault: &RpcFault| fault.message.clone());
                tracing::warn!(repository = name, missed, why, "scheduled slots passed without a run");
            }
        } else if known.last_slot.is_none() {
            known.last_slot = Some(now);
        }
        if let Err(error) = state.save_schedule(&known) {
            tracing::warn!(repository = name, %error, "the schedule's state cannot be kept");
        }
        let Some(slot) = next_slot(&schedule.slots, known.last_slot.unwrap_or(now).max(last)) else {
            tracing::error!(repository = name, "the schedule has no further slot");
            return;
        };
        let jitter = match u64::try_from(schedule.jitter.as_millis()) {
            Ok(jitter) if jitter > 0 => Duration::from_millis(rand::rng().random_range(0..=jitter)),
            _ => Duration::ZERO,
        };
        let at =
            slot.saturating_add(jiff::SignedDuration::try_from(jitter).unwrap_or_default()).unwrap_or(slot);
        *repository.next_run.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
        // In steps, so that a clock that was set is noticed.
        loop {
            let left = Timestamp::now().duration_until(at);
            if left.is_negative() || left.is_zero() {
                break;
            }
            tokio::time::sleep(left.unsigned_abs().min(Duration::from_secs(30))).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn slots_are_whole_multiples_and_cron_times() {
        let hourly = Slots::Every(Duration::from_secs(3600));
        assert_eq!(next_slot(&hourly, time("2026-11-22T10:00:00Z")), Some(time("2026-11-22T11:00:00Z")));
        assert_eq!(next_slot(&hourly, time("2026-11-22T10:59:59Z")), Some(time("2026-11-22T11:00:00Z")));
        let cron = croner::parser::CronParser::new().parse("30 2 * * *").expect("cron");
        let nightly = Slots::Cron(Box::new(cron));
        assert_eq!(next_slot(&nightly, time("2026-11-22T02:30:00Z")), Some(time("2026-11-23T02:30:00Z")));
    }

    /// A missed slot is noticed: all that passed are counted, and the newest is told apart.
    #[test]
    fn slots_that_passed_are_counted() {
        let hourly = Slots::Every(Duration::from_secs(3600));
        let count = |now| passed(&hourly, time("2026-11-22T10:00:00Z"), time(now));
        assert_eq!(count("2026-11-22T10:59:59Z"), (0, None));
        assert_eq!(count("2026-11-22T11:00:00Z"), (1, Some(time("2026-11-22T11:00:00Z"))));
        assert_eq!(count("2026-11-22T14:20:00Z"), (4, Some(time("2026-11-22T14:00:00Z"))));
    }
}
