//! How this host's clock went between two runs. One that was set back shows times again that it has shown before: then the times of
//! files say less than they seem to, and readings seem younger than they are.
//!
//! The clock is compared with one that nobody sets, which begins anew with each boot. Within one boot the step is known, and readings
//! keep their ages. Across a boot only a clock that stands before the last run shows that it was set back: no reading has a known age
//! then, and the share of each run makes up for it.

use std::time::Duration;

use assay_common::cli::show;
use serde::{Deserialize, Serialize};

use super::{Moment, NO_CONTENT, Standing, UNKNOWN};

/// A clock that is put right by less than this shows no time of a file again: that takes longer than the coarsest of them.
const LEAST_STEP: Moment = 1_000;

/// A moment by the clock that nobody sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steady {
    /// Which boot it counts from: a part of the kernel's id of it.
    pub boot: u64,
    /// Time since then, in milliseconds; it goes on while the host sleeps.
    pub milliseconds: i64,
}

impl Steady {
    /// Now. `None` where the kernel does not say which boot this is.
    pub fn now() -> Option<Self> {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let digits: String = id.chars().filter(char::is_ascii_hexdigit).take(16).collect();
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let milliseconds = time.tv_sec * 1000 + time.tv_nsec / 1_000_000;
        Some(Self { boot: u64::from_str_radix(&digits, 16).ok()?, milliseconds })
    }
}

/// How the clock was set back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Back {
    /// By so many milliseconds.
    By(Moment),
    /// Nobody knows how far: the host was restarted meanwhile.
    Unknown,
}

/// How the clock went since the basis was made, and so what the times in it mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockSince {
    back: Option<Back>,
    /// When the run began.
    now: Moment,
    /// Times of files from here on may have been shown twice, or are still to come.
    repeated: Moment,
    steady: Option<Steady>,
    /// Time since the last run, in milliseconds.
    since_last: Moment,
}

impl Default for ClockSince {
    /// A clock that went as it should, for what has no times.
    fn default() -> Self {
        Self { back: None, now: Moment::MAX, repeated: Moment::MAX, steady: None, since_last: 0 }
    }
}

impl ClockSince {
    /// Compares a run that begins at `now` with where the last one left.
    pub(super) fn new(last: Option<&Standing>, now: Moment, steady: Option<Steady>) -> Self {
        let is_one_boot = |last: &Standing| {
            let (then, now) = (last.steady?, steady?);
            (then.boot == now.boot).then(|| now.milliseconds.saturating_sub(then.milliseconds))
        };
        let back = last.and_then(|last| match is_one_boot(last) {
            Some(passed) => {
                let by = last.time.saturating_add(passed).saturating_sub(now);
                (by >= LEAST_STEP).then_some(Back::By(by))
            }
            None => (now < last.time).then_some(Back::Unknown),
        });
        let time = last.map_or(now, |last| last.time);
        let repeated = match back {
            None => now,
            // The step may have come right after the last run began.
            Some(Back::By(by)) => now.min(time.saturating_sub(by)),
            // The clock has shown no earlier time since the host was started.
            Some(Back::Unknown) => now.saturating_sub(steady.map_or(now, |steady| steady.milliseconds)),
        };
        let clock = Self { back, now, repeated, steady, since_last: 0 };
        Self { since_last: last.map_or(0, |last| clock.elapsed(last, now)), ..clock }
    }

    /// Time between the last run and this one, in milliseconds.
    pub(super) fn since_last(&self) -> Moment {
        self.since_last
    }

    /// By the clock that nobody sets, when the run began.
    pub(super) fn steady(&self) -> Option<Steady> {
        self.steady
    }

    /// The time of a reading by today's clock. A reading never becomes younger by that; one that seems to lie ahead has no known time.
    pub fn put_right(&self, moment: Moment) -> Moment {
        if moment == NO_CONTENT || moment == UNKNOWN {
            return moment;
        }
        let moment = match self.back {
            None => moment,
            Some(Back::By(by)) => moment.saturating_sub(by),
            Some(Back::Unknown) => return UNKNOWN,
        };
        if moment > self.now || moment <= UNKNOWN { UNKNOWN } else { moment }
    }

    /// True when the clock cannot show this time of a file's change again, in seconds and nanoseconds since 1970.
    pub fn has_passed(&self, changed: (i64, u32)) -> bool {
        let milliseconds = changed.0.saturating_mul(1000).saturating_add(i64::from(changed.1) / 1_000_000);
        milliseconds < self.repeated
    }

    /// Time since the last run, in milliseconds.
    pub(super) fn elapsed(&self, last: &Standing, started: Moment) -> Moment {
        let set_back = match self.back {
            Some(Back::By(by)) => by,
            None | Some(Back::Unknown) => 0,
        };
        let by_wall = started.saturating_sub(last.time.saturating_sub(set_back)).max(0);
        match (last.steady, self.steady) {
            // A clock that was set ahead is no reason to wait, and one that was set back none to wait longer.
            (Some(then), Some(now)) if then.boot == now.boot => {
                by_wall.max(now.milliseconds.saturating_sub(then.milliseconds))
            }
            _ if self.back == Some(Back::Unknown) => 0,
            _ => by_wall,
        }
    }

    /// What an operator should know.
    pub fn warning(&self) -> Option<String> {
        Some(match self.back? {
            Back::By(by) => {
                let by = Duration::from_millis(u64::try_from(by).unwrap_or_default());
                format!(
                    "this host's clock was set back by {} since the last run: readings keep their ages, and files whose time of \
                     change it may show again are read",
                    show::age(by.as_secs())
                )
            }
            Back::Unknown => "this host's clock was set back and the host was restarted since the last run: the ages of all \
                              readings are unknown, and all files have their turn to be read again"
                .to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Moment = 3_600_000;
    const NOW: Moment = 1_800_000_000_000;

    fn steady(boot: u64, milliseconds: i64) -> Option<Steady> {
        Some(Steady { boot, milliseconds })
    }

    fn last(time: Moment, steady: Option<Steady>) -> Standing {
        Standing { time, credit: 0.0, steady }
    }

    fn seconds(moment: Moment) -> (i64, u32) {
        (moment.div_euclid(1000), u32::try_from(moment.rem_euclid(1000)).expect("small") * 1_000_000)
    }

    #[test]
    fn a_clock_that_goes_on_changes_nothing() {
        for (standing, now) in [
            (last(NOW - HOUR, steady(1, 5000)), steady(1, 5000 + HOUR)),
            (last(NOW - HOUR, steady(1, 5000)), steady(2, 10)),
            (last(NOW - HOUR, None), steady(1, 10)),
            // Put right by less than a second, and set ahead.
            (last(NOW - HOUR, steady(1, 5000)), steady(1, 5900 + HOUR)),
            (last(NOW - 30 * HOUR, steady(1, 5000)), steady(1, 5000 + HOUR)),
        ] {
            let clock = ClockSince::new(Some(&standing), NOW, now);
            assert_eq!((clock.warning(), clock.put_right(NOW - 7)), (None, NOW - 7), "{standing:?}");
            assert!(clock.has_passed(seconds(NOW - 1)), "{standing:?}");
            assert!(
                !clock.has_passed(seconds(NOW)),
                "a file that changed in the future may change again then"
            );
            assert_eq!(clock.put_right(NOW + 1), UNKNOWN, "a reading in the future");
        }
    }

    /// An hour after the last run the clock stands where it stood an hour before it.
    #[test]
    fn a_clock_that_was_set_back_makes_no_reading_younger_and_no_file_rest() {
        let standing = last(NOW + HOUR, steady(1, 1000));
        let clock = ClockSince::new(Some(&standing), NOW, steady(1, 1000 + HOUR));
        assert!(
            clock.warning().is_some_and(|text| text.contains("set back by 2 h")),
            "{:?}",
            clock.warning()
        );
        assert_eq!(clock.put_right(NOW + HOUR), NOW - HOUR, "read by the last run, an hour ago");
        assert_eq!(clock.put_right(NOW - HOUR), NOW - 3 * HOUR);
        assert_eq!((clock.put_right(UNKNOWN), clock.put_right(NO_CONTENT)), (UNKNOWN, NO_CONTENT));
        assert_eq!(clock.put_right(HOUR), UNKNOWN, "before 1970");
        for (changed, has_passed) in [(NOW + 1, false), (NOW - HOUR, false), (NOW - HOUR - 1, true)] {
            assert_eq!(clock.has_passed(seconds(changed)), has_passed, "{changed}");
        }
        assert_eq!(clock.elapsed(&standing, NOW), HOUR);
        // Small, and while the last run went on: the times of files are shown again all the same.
        let standing = last(NOW, steady(1, 1000));
        let clock = ClockSince::new(Some(&standing), NOW - 2000, steady(1, 1500));
        assert!(!clock.has_passed(seconds(NOW - 2001)) && clock.has_passed(seconds(NOW - 2501)));
    }

    #[test]
    fn a_clock_that_was_set_back_across_a_boot_leaves_no_age_known() {
        let standing = last(NOW + HOUR, steady(1, 1000));
        for (now, repeated) in [(steady(2, 60_000), NOW - 60_000), (None, 0)] {
            let clock = ClockSince::new(Some(&standing), NOW, now);
            assert!(clock.warning().is_some_and(|text| text.contains("ages of all readings are unknown")));
            assert_eq!(clock.put_right(NOW - HOUR), UNKNOWN);
            assert!(!clock.has_passed(seconds(repeated)) && clock.has_passed(seconds(repeated - 1)));
            assert_eq!(clock.elapsed(&standing, NOW), 0);
        }
    }

    /// A time service that puts the clock right by a part of a second, right after a run: the last run lies ahead, and no time has passed.
    #[test]
    fn a_clock_that_was_put_right_by_less_than_a_second_makes_no_time_pass() {
        for back in [1, 500, LEAST_STEP - 1] {
            for (then, now, passed) in [
                (steady(1, 1000), steady(1, 1000), 0),
                (steady(1, 1000), steady(1, 1040), 40),
                (None, None, 0),
                (steady(1, 1000), None, 0),
            ] {
                let standing = last(NOW + back - passed, then);
                let clock = ClockSince::new(Some(&standing), NOW, now);
                assert_eq!(
                    (clock.since_last(), clock.elapsed(&standing, NOW)),
                    (passed, passed),
                    "{back} {now:?}"
                );
            }
        }
    }

    #[test]
    fn a_standing_of_an_older_version_has_no_steady_moment() {
        let standing: Standing = serde_json::from_str(r#"{"time":5,"credit":1.5}"#).expect("valid");
        assert_eq!(standing, Standing { time: 5, credit: 1.5, steady: None });
        assert_eq!(serde_json::to_string(&standing).expect("text"), r#"{"time":5,"credit":1.5}"#);
        let now = Steady::now().expect("this is Linux");
        assert!(now.milliseconds > 0);
        let text = serde_json::to_string(&Standing { steady: Some(now), ..standing }).expect("text");
        assert_eq!(serde_json::from_str::<Standing>(&text).expect("valid").steady, Some(now));
    }
}
