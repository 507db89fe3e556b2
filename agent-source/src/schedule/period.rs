//! How far apart the slots of a schedule are: nights, weekends, the ends of months and leap days included.

use std::time::Duration;

use chrono::Datelike as _;
use croner::Cron;
use jiff::Timestamp;

use crate::config::{Schedule, Slots};

/// Days after which weekdays, months and leap years have met in every way that a century has (28 years).
const COMMON_DAYS: i64 = 28 * 1461 / 4;
/// Days after which the calendar repeats itself: 400 years.
const ALL_DAYS: i64 = 146_097;
/// A schedule with a longer pause hangs on leap days: only the whole calendar shows its longest one.
const RARE_DAYS: i64 = 366;

impl Schedule {
    /// The first slot after `time`.
    pub fn next_slot(&self, time: Timestamp) -> Option<Timestamp> {
        super::next_slot(&self.slots, time)
    }

    /// The longest time between two slots, with the jitter; `None` when there are no two.
    pub fn longest_gap(&self, now: Timestamp) -> Option<Duration> {
        let gap = match &self.slots {
            Slots::Every(every) => *every,
            Slots::Cron(cron) => longest_of_cron(cron, now)?,
        };
        Some(gap + self.jitter)
    }
}

/// The times of a day at which a slot is: the first, the last and the longest pause between two of them, in seconds.
struct Day {
    first: i64,
    last: i64,
    pause: i64,
}

fn day_of(cron: &Cron) -> Option<Day> {
    let pattern = &cron.pattern;
    let mut day: Option<Day> = None;
    for hour in (0..24).filter(|hour| pattern.hour_match(*hour).unwrap_or(false)) {
        for minute in (0..60).filter(|minute| pattern.minute_match(*minute).unwrap_or(false)) {
            for second in (0..60).filter(|second| pattern.second_match(*second).unwrap_or(false)) {
                let time = i64::from(hour * 3600 + minute * 60 + second);
                day = Some(match day {
                    None => Day { first: time, last: time, pause: 0 },
                    Some(day) => Day { last: time, pause: day.pause.max(time - day.last), ..day },
                });
            }
        }
    }
    day
}

fn longest_of_cron(cron: &Cron, now: Timestamp) -> Option<Duration> {
    let day = day_of(cron)?;
    let mut days = longest_days(cron, now, COMMON_DAYS);
    if days.is_none_or(|days| days > RARE_DAYS) {
        days = longest_days(cron, now, ALL_DAYS);
    }
    let between = days.map(|days| days * 86_400 - day.last + day.first);
    let longest = between.unwrap_or(0).max(day.pause);
    (longest > 0).then(|| Duration::from_secs(longest.unsigned_abs()))
}

/// The longest time between two days that have slots, in days, among those after `now`.
fn longest_days(cron: &Cron, now: Timestamp, horizon: i64) -> Option<i64> {
    let pattern = &cron.pattern;
    let first = chrono::DateTime::from_timestamp(now.as_second(), 0)?.date_naive();
    let (mut last, mut longest) = (None, None);
    for (number, date) in (0..horizon).zip(first.iter_days()) {
        let fits = pattern.month_match(date.month()).unwrap_or(false)
            && pattern.year_match(date.year()).unwrap_or(false)
            && pattern.day_match(date.year(), date.month(), date.day()).unwrap_or(false);
        if fits {
            longest = last.map(|last| number - last).max(longest);
            last = Some(number);
        }
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3600;
    const DAY: u64 = 24 * HOUR;

    fn gap(text: &str) -> u64 {
        let cron = croner::parser::CronParser::new().parse(text).expect("cron");
        let schedule = Schedule { slots: Slots::Cron(Box::new(cron)), jitter: Duration::ZERO };
        let now: Timestamp = "2026-11-22T10:00:00Z".parse().expect("a time");
        schedule.longest_gap(now).expect("slots").as_secs()
    }

    #[test]
    fn the_longest_pause_counts_wherever_it_is() {
        for (text, seconds) in [
            ("* * * * *", 60),
            ("*/15 8-17 * * 1-5", 224_100),
            ("30 2 * * *", DAY),
            ("0 * * * *", HOUR),
            ("0 0 1 * *", 31 * DAY),
            ("0 0 31 * *", 61 * DAY),
            ("0 12 29 2 *", 2921 * DAY),
            ("0 0 * * SUN#5", 119 * DAY),
            ("0 0 L * *", 31 * DAY),
            ("0 6,18 1 1 *", 365 * DAY + DAY - 12 * HOUR),
        ] {
            assert_eq!(gap(text), seconds, "{text}");
        }
        // One hour of the day is left out.
        assert_eq!(gap("* 0-21,23 * * *"), 61 * 60);
    }

    #[test]
    fn jitter_makes_it_longer_and_a_single_slot_has_none() {
        let every = Duration::from_secs(3600);
        let schedule = Schedule { slots: Slots::Every(every), jitter: Duration::from_secs(60) };
        assert_eq!(schedule.longest_gap(Timestamp::UNIX_EPOCH), Some(Duration::from_secs(3660)));
        let cron = croner::parser::CronParser::new().parse("0 0 2 30 1 * 2031").expect("cron");
        let schedule = Schedule { slots: Slots::Cron(Box::new(cron)), jitter: Duration::ZERO };
        assert_eq!(schedule.longest_gap(Timestamp::UNIX_EPOCH), None);
    }
}
