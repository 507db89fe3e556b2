//! Starts runs by the clock, and counts the slots that passed without one.
//!
//! A slot is missed when the agent did not run at its time, or when the run before it was still under way. Missed slots are
//! told in the log and in status; one run then stands in for all of them, at once after a start.

mod period;

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use assay_common::{
    clock::{self, Monitor},
    rpc_status::RpcFault,
    service_manager,
    trouble::{self, Kind},
};
use assay_proto::v1::Trigger;
use jiff::{SignedDuration, Timestamp};
use rand::Rng as _;

use crate::{
    agent::Repository,
    config::{Schedule, Slots},
    run::Options,
};

/// A slot that is this late still counts as served in time: a busy machine is not a missed hour.
const GRACE: Duration = Duration::from_secs(30);
/// Longer than any sleep.
const FAR: Duration = Duration::from_secs(3600);
/// Slots of a cron expression that are counted one by one after a long absence.
const MAX_COUNTED: u64 = 100_000;

/// The first slot after `time`.
pub fn next_slot(slots: &Slots, time: Timestamp) -> Option<Timestamp> {
    match slots {
        Slots::Every(every) => {
            let every = i64::try_from(every.as_millis()).ok()?.max(1);
            let next = (time.as_millisecond().div_euclid(every) + 1).checked_mul(every)?;
            Timestamp::from_millisecond(next).ok()
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
    match slots {
        Slots::Every(every) => {
            let every = i64::try_from(every.as_millis()).unwrap_or(i64::MAX).max(1);
            let slot = |time: Timestamp| time.as_millisecond().div_euclid(every);
            let count = u64::try_from(slot(now) - slot(last)).unwrap_or(0);
            let newest = slot(now).checked_mul(every).and_then(|time| Timestamp::from_millisecond(time).ok());
            (count, newest.filter(|_| count > 0))
        }
        Slots::Cron(cron) => {
            let (mut count, mut newest) = (0, None);
            let mut slot = next_slot(slots, last);
            while let Some(time) = slot.filter(|time| *time <= now) {
                if count == MAX_COUNTED {
                    // The rest is not counted, and must not be served one by one either.
                    let now = chrono::DateTime::from_timestamp(now.as_second(), 0);
                    let before = now.and_then(|now| cron.find_previous_occurrence(&now, true).ok());
                    newest = before.and_then(|time| Timestamp::from_second(time.timestamp()).ok()).or(newest);
                    break;
                }
                (count, newest) = (count + 1, Some(time));
                slot = next_slot(slots, time);
            }
            (count, newest)
        }
    }
}

/// The slot from which the schedule goes on at `now`. One in the future was served by a clock that was ahead: that time is not
/// waited for.
fn resume_from(last: Option<Timestamp>, now: Timestamp) -> Timestamp {
    match last {
        Some(last) if !clock::is_ahead(last, now) => last,
        _ => now,
    }
}

/// How many of the slots that passed were missed, when the newest of them is served at `now`. A slot that its jitter has put off is not.
fn missed(count: u64, newest: Timestamp, jitter: Duration, now: Timestamp) -> u64 {
    count - u64::from(is_in_time(newest, jitter, now))
}

fn is_in_time(slot: Timestamp, jitter: Duration, now: Timestamp) -> bool {
    slot.duration_until(now).unsigned_abs() <= GRACE + jitter
}

/// When the run of `slot` starts: put off by chance, and never beyond the slot after it, which would be missed then.
fn start_of(slot: Timestamp, schedule: &Schedule) -> Timestamp {
    let room = next_slot(&schedule.slots, slot)
        .map_or(Duration::MAX, |next| slot.duration_until(next).unsigned_abs().saturating_sub(MIN_GAP));
    let most = u64::try_from(schedule.jitter.min(room).as_millis()).unwrap_or(0);
    let delay = if most > 0 { rand::rng().random_range(0..=most) } else { 0 };
    slot.saturating_add(SignedDuration::from_millis(i64::try_from(delay).unwrap_or(0))).unwrap_or(slot)
}

/// Left between a run that was put off and the next slot.
const MIN_GAP: Duration = Duration::from_millis(1);

/// Runs a repository's schedule for ever.
pub async fn run(repository: Arc<Repository>, schedule: Schedule) {
    let name = repository.context.repository.name.clone();
    let state = &repository.context.state;
    let pulse = format!("schedule of {name}");
    loop {
        service_manager::beat(&pulse);
        let mut monitor = Monitor::default();
        let now = Timestamp::now();
        let known = state.schedule().last_slot;
        let last = resume_from(known, now);
        if let Some(ahead) = known.filter(|known| clock::is_ahead(*known, now)) {
            tracing::warn!(
                repository = name, last_slot = %ahead, %now,
                "the clock was ahead when a slot was served last; the schedule goes on from now"
            );
        }
        let (count, newest) = passed(&schedule.slots, last, now);
        if let Some(newest) = newest {
            let started = repository.start(Trigger::Schedule, Options::default());
            let is_busy = started.is_err() && is_in_time(newest, schedule.jitter, now);
            let missed = missed(count, newest, schedule.jitter, now) + u64::from(is_busy);
            repository.update_schedule(|known| {
                known.last_slot = Some(newest);
                known.missed += missed;
            });
            if missed > 0 {
                let why = started.as_ref().err().map(|fault: &RpcFault| fault.message.clone());
                tracing::warn!(repository = name, missed, why, "scheduled slots passed without a run");
            }
        } else if known != Some(last) {
            repository.update_schedule(|known| known.last_slot = Some(last));
        }
        let Some(slot) = next_slot(&schedule.slots, newest.unwrap_or(last)) else {
            *repository.next_run.lock().unwrap_or_else(PoisonError::into_inner) = None;
            let text = "the schedule never comes again: there is no such day and time from now on";
            trouble::raise(Kind::NoSlot, &name, text);
            // Until somebody sets the clock or the schedule.
            service_manager::sleep(&pulse, FAR).await;
            continue;
        };
        trouble::clear(Kind::NoSlot, &name);
        let at = start_of(slot, &schedule);
        *repository.next_run.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
        // In steps of the steady clock. When the wall clock jumps, another slot is the next one.
        loop {
            let left = Timestamp::now().duration_until(at);
            if !left.is_positive() || monitor.look().is_some() {
                break;
            }
            service_manager::sleep(&pulse, left.unsigned_abs()).await;
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

    fn cron(text: &str) -> Slots {
        Slots::Cron(Box::new(croner::parser::CronParser::new().parse(text).expect("cron")))
    }

    #[test]
    fn slots_may_be_a_second_and_a_half_apart() {
        let slots = Slots::Every(Duration::from_millis(1500));
        let first = next_slot(&slots, time("2026-11-22T10:00:00Z")).expect("a slot");
        assert_eq!(first, time("2026-11-22T10:00:01.5Z"));
        assert_eq!(next_slot(&slots, first), Some(time("2026-11-22T10:00:03Z")));
        let from = time("2026-11-22T10:00:00Z");
        assert_eq!(
            passed(&slots, from, time("2026-11-22T10:00:04.4Z")),
            (2, Some(time("2026-11-22T10:00:03Z")))
        );
    }

    /// A year away with a schedule of seconds: one run stands in for all, and it is over at once.
    #[test]
    fn the_newest_slot_is_served_however_many_passed() {
        let (from, now) = (time("2025-11-22T10:00:00Z"), time("2026-11-22T10:00:00.2Z"));
        let every = Slots::Every(Duration::from_secs(1));
        assert_eq!(passed(&every, from, now), (365 * 86_400, Some(time("2026-11-22T10:00:00Z"))));
        let (count, newest) = passed(&cron("* * * * *"), from, now);
        assert_eq!((count, newest), (MAX_COUNTED, Some(time("2026-11-22T10:00:00Z"))));
    }

    #[test]
    fn a_slot_that_its_jitter_has_put_off_is_not_missed() {
        let slot = time("2026-11-22T10:00:00Z");
        let jitter = Duration::from_secs(119);
        assert_eq!(missed(1, slot, jitter, time("2026-11-22T10:01:59Z")), 0);
        assert_eq!(missed(1, slot, Duration::ZERO, time("2026-11-22T10:01:59Z")), 1);
        assert_eq!(missed(3, slot, jitter, time("2026-11-22T10:01:59Z")), 2);
        assert_eq!(missed(3, slot, jitter, time("2026-11-22T10:03:00Z")), 3);
    }

    /// A jitter that is longer than the time between two slots would make every other slot a missed one.
    #[test]
    fn jitter_does_not_reach_the_next_slot() {
        let schedule =
            Schedule { slots: Slots::Every(Duration::from_secs(60)), jitter: Duration::from_secs(3600) };
        let (slot, next) = (time("2026-11-22T10:00:00Z"), time("2026-11-22T10:01:00Z"));
        let starts: Vec<_> = (0..200).map(|_| start_of(slot, &schedule)).collect();
        assert!(starts.iter().all(|start| (slot..next).contains(start)));
        assert!(starts.iter().any(|start| *start > slot + SignedDuration::from_secs(10)));
    }

    /// The clock was ahead once: nothing waits for that time to come.
    #[test]
    fn a_slot_in_the_future_is_not_waited_for() {
        let now = time("2026-11-22T10:20:00Z");
        assert_eq!(resume_from(Some(time("2027-12-27T10:00:00Z")), now), now);
        assert_eq!(resume_from(None, now), now);
        let last = time("2026-11-22T10:00:00Z");
        assert_eq!(resume_from(Some(last), now), last);
        // A time service that draws the clock back by a moment does not make a slot come twice.
        let moment = time("2026-11-22T10:00:00.01Z");
        assert_eq!(resume_from(Some(moment), time("2026-11-22T09:59:59.99Z")), moment);
    }

    /// Cron's fields are UTC. Where a zone goes over to summer time and back nothing is left out, and nothing comes twice.
    #[test]
    fn the_nights_of_summer_time_have_one_slot_each() {
        for text in ["30 2 * * *", "30 1 * * *", "0 0 * * *"] {
            let nightly = cron(text);
            // Europe's and North America's nights of 2026 and 2027.
            for (from, to, nights) in [
                ("2026-10-20T12:00:00Z", "2026-11-05T12:00:00Z", 16),
                ("2027-03-10T12:00:00Z", "2027-04-01T12:00:00Z", 22),
            ] {
                let (count, newest) = passed(&nightly, time(from), time(to));
                assert_eq!(count, nights, "{text}: {from}");
                let mut slot = next_slot(&nightly, time(from)).expect("a slot");
                while let Some(next) = next_slot(&nightly, slot).filter(|next| *next <= time(to)) {
                    assert_eq!(slot.duration_until(next), SignedDuration::from_hours(24), "{text}: {slot}");
                    slot = next;
                }
                assert_eq!(newest, Some(slot));
            }
        }
    }

    #[test]
    fn leap_days_and_ends_of_months_have_their_slots() {
        for (text, from, expected) in [
            ("0 0 29 2 *", "2026-11-30T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("0 0 29 2 *", "2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"),
            // 2100 has none.
            ("0 0 29 2 *", "2096-03-01T00:00:00Z", "2104-02-29T00:00:00Z"),
            ("59 23 31 12 *", "2026-12-31T23:59:00Z", "2027-12-31T23:59:00Z"),
            ("0 0 31 * *", "2027-01-31T00:00:00Z", "2027-03-31T00:00:00Z"),
            ("0 12 L 2 *", "2027-03-01T00:00:00Z", "2028-02-29T12:00:00Z"),
        ] {
            assert_eq!(next_slot(&cron(text), time(from)), Some(time(expected)), "{text} after {from}");
        }
        // Off for a decade: three leap days, of which one run stands in for all.
        let leap = cron("0 0 29 2 *");
        let (from, now) = (time("2026-11-30T00:00:00Z"), time("2037-01-01T00:00:00Z"));
        assert_eq!(passed(&leap, from, now), (3, Some(time("2036-02-29T00:00:00Z"))));
    }

    /// The host slept from one slot over the night. The slots that passed are counted once, the newest is served, and it is the wall clock
    /// at the end of the sleep that says which comes next.
    #[test]
    fn a_host_that_slept_serves_the_newest_slot_and_goes_on() {
        let hourly = cron("5 * * * *");
        let (asleep, awake) = (time("2026-11-22T22:10:00Z"), time("2026-11-23T07:40:00Z"));
        let last = resume_from(Some(time("2026-11-22T22:05:00Z")), awake);
        let (count, newest) = passed(&hourly, last, awake);
        assert_eq!((count, newest), (9, Some(time("2026-11-23T07:05:00Z"))));
        assert_eq!(missed(count, time("2026-11-23T07:05:00Z"), Duration::ZERO, awake), 9);
        assert_eq!(next_slot(&hourly, newest.expect("one")), Some(time("2026-11-23T08:05:00Z")));
        // It slept between two slots: nothing is missed.
        assert_eq!(passed(&hourly, last, asleep), (0, None));
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
