//! Which parts are checked now, and which results are carried. Nothing here reads a file or a clock.

use std::{collections::BTreeMap, time::Duration};

use assay_common::verdict::HexDigest;
use jiff::Timestamp;

use super::listing::Part;

/// What is remembered of a part that passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Passed {
    /// What its result depended on.
    pub(super) inputs: HexDigest,
    /// When the check began in which it passed.
    pub(super) checked: Timestamp,
    /// The place of that check's verdict in the ledger.
    pub(super) sequence: u64,
}

/// Why a part is checked, or from where its result is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// Nothing is remembered of it, or it has changed since, or what it depends on is not known.
    Changed,
    /// Its result is dated in the future: a clock was wrong, now or then.
    Clock,
    /// It is as old as a result may become.
    Deadline,
    /// It is among the oldest, whose turn it is.
    Turn,
    /// Its result is carried.
    Carry(Passed),
}

impl Choice {
    pub(super) fn is_check(self) -> bool {
        !matches!(self, Self::Carry(_))
    }
}

/// When it is, and how old results may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// By the clock that results are dated with.
    pub(super) now: Timestamp,
    /// The mark of the generation, by the source's clock. Results age by whichever of the two clocks is ahead.
    pub(super) mark: Timestamp,
    /// When the check began that remembered last.
    pub(super) last: Timestamp,
    /// How long a part keeps its PASS.
    pub(super) within: Duration,
}

impl Times {
    fn age(&self, time: Timestamp) -> Duration {
        let now = self.now.max(self.mark);
        Duration::try_from(time.duration_until(now)).unwrap_or_default()
    }
}

/// Chooses for each of the parts of a step, in their order. At least one of them is checked.
///
/// Beside what has changed, a share of the parts is checked that is as large as the time since the last check is of `within`, those
/// that were checked longest ago first. So the work is spread evenly, and none grows older than `within`.
pub(super) fn choose(parts: &[Part], passed: &BTreeMap<String, Passed>, times: &Times) -> Vec<Choice> {
    let mut choices: Vec<_> =
        parts.iter().map(|part| choose_one(part, passed.get(&part.name), times)).collect();
    let mut oldest_first: Vec<_> = choices
        .iter()
        .enumerate()
        .filter_map(|(at, choice)| match choice {
            Choice::Carry(passed) => Some((passed.checked, at)),
            _ => None,
        })
        .collect();
    oldest_first.sort_unstable();
    let share = times.age(times.last).as_secs_f64() / times.within.as_secs_f64().max(f64::MIN_POSITIVE);
    let turns = (share.min(1.0) * parts.len() as f64).ceil() as usize;
    // What has reached its deadline was among the oldest, too.
    let turns = turns.saturating_sub(choices.iter().filter(|choice| **choice == Choice::Deadline).count());
    let is_idle = !choices.iter().any(|choice| choice.is_check());
    for (_, at) in oldest_first.into_iter().take(turns.max(usize::from(is_idle))) {
        choices[at] = Choice::Turn;
    }
    choices
}

/// Which remembered results may be carried if their parts turn out to be unchanged: parts that an engine finds, of which there may be few and
/// large ones, so that none is checked before its turn.
///
/// The turn of the one that was checked longest ago has come when more parts should have been checked since then than were: so the
/// re-checks are spread evenly over `within`, also after a check of all.
pub(super) fn choose_known(passed: &BTreeMap<String, Passed>, times: &Times) -> BTreeMap<String, Passed> {
    let is_usable = |it: &Passed| it.checked <= times.now && times.age(it.checked) < times.within;
    let mut left: Vec<_> = passed.iter().filter(|(_, it)| is_usable(it)).collect();
    left.sort_by_key(|(name, it)| (std::cmp::Reverse(it.checked), *name));
    // Those that are checked now are the newest.
    let mut now = passed.len() - left.len();
    while let Some((_, oldest)) = left.last() {
        let share =
            times.age(oldest.checked).as_secs_f64() / times.within.as_secs_f64().max(f64::MIN_POSITIVE);
        let wanted = (share * passed.len() as f64).floor() as usize;
        let newer = left.iter().filter(|(_, it)| it.checked > oldest.checked).count();
        if wanted <= newer + now {
            break;
        }
        left.pop();
        now += 1;
    }
    left.into_iter().map(|(name, it)| (name.clone(), *it)).collect()
}

fn choose_one(part: &Part, passed: Option<&Passed>, times: &Times) -> Choice {
    match passed {
        Some(passed) if part.inputs == Some(passed.inputs) => {
            if passed.checked > times.now {
                Choice::Clock
            } else if times.age(passed.checked) >= times.within {
                Choice::Deadline
            } else {
                Choice::Carry(*passed)
            }
        }
        _ => Choice::Changed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::PartArgument;

    const HOUR: u64 = 3600;
    const WEEK: u64 = 7 * 24 * HOUR;

    fn at(hours: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + hours * HOUR as i64).expect("a time")
    }

    fn part(name: &str, inputs: u8) -> Part {
        let argument = PartArgument::Text(name.to_owned());
        Part { name: name.to_owned(), argument, inputs: Some(HexDigest([inputs; 32])) }
    }

    fn passed(inputs: u8, hours: i64) -> Passed {
        Passed { inputs: HexDigest([inputs; 32]), checked: at(hours), sequence: 1 }
    }

    fn times(now: i64) -> Times {
        Times { now: at(now), mark: at(now), last: at(now), within: Duration::from_secs(WEEK) }
    }

    /// What becomes of one part beside another one that is checked in any case.
    fn chosen(part: Part, passed: Option<Passed>, times: Times) -> Choice {
        let known = passed.map(|passed| (part.name.clone(), passed)).into_iter().collect();
        choose(&[part, self::part("other", 0)], &known, &times)[0]
    }

    /// The table of what becomes of a part.
    #[test]
    fn a_part_is_carried_only_if_nothing_speaks_against_it() {
        let known = Some(passed(1, 0));
        let carried = Choice::Carry(passed(1, 0));
        let week = WEEK as i64 / HOUR as i64;
        let rows = [
            ("unchanged", part("a", 1), known, times(1), carried),
            ("the same moment", part("a", 1), known, times(0), carried),
            ("new", part("a", 1), None, times(1), Choice::Changed),
            ("changed", part("a", 2), known, times(1), Choice::Changed),
            ("inputs not known", Part { inputs: None, ..part("a", 1) }, known, times(1), Choice::Changed),
            ("just before its deadline", part("a", 1), known, times(week - 1), carried),
            ("at its deadline", part("a", 1), known, times(week), Choice::Deadline),
            ("long after it", part("a", 1), known, times(50 * week), Choice::Deadline),
            ("dated in the future", part("a", 1), known, times(-1), Choice::Clock),
            (
                "old by the source's clock",
                part("a", 1),
                known,
                Times { mark: at(week), ..times(1) },
                Choice::Deadline,
            ),
            (
                "no result may be carried",
                part("a", 1),
                known,
                Times { within: Duration::ZERO, ..times(0) },
                Choice::Deadline,
            ),
        ];
        for (name, part, known, times, expected) in rows {
            assert_eq!(chosen(part, known, times), expected, "{name}");
        }
    }

    /// A part that has the name of another one, and other content, is not that part.
    #[test]
    fn a_part_that_was_renamed_is_checked() {
        let known = BTreeMap::from([("a".to_owned(), passed(1, 0)), ("b".to_owned(), passed(2, 0))]);
        let choices = choose(&[part("b", 1), part("a", 2), part("c", 1)], &known, &times(1));
        assert_eq!(choices, [Choice::Changed; 3]);
    }

    #[test]
    fn something_is_checked_even_if_nothing_changed() {
        let known = BTreeMap::from([("a".to_owned(), passed(1, 1)), ("b".to_owned(), passed(2, 0))]);
        let choices = choose(&[part("a", 1), part("b", 2)], &known, &times(1));
        assert_eq!(choices, [Choice::Carry(passed(1, 1)), Choice::Turn], "the oldest one");
        assert!(choose(&[], &known, &times(1)).is_empty());
    }

    /// Hour by hour for four weeks: no result grows older than a week, and no check has much more to do than another one.
    #[test]
    fn re_checks_are_spread_evenly_and_none_is_late() {
        let parts: Vec<_> = (0..1000).map(|number| part(&number.to_string(), 1)).collect();
        let mut known: BTreeMap<_, _> = parts.iter().map(|part| (part.name.clone(), passed(1, 0))).collect();
        let (mut most, mut last) = (0, 0);
        for now in 1..=4 * 7 * 24 {
            // Some hours are missed.
            if now % 10 == 3 {
                continue;
            }
            let times = Times { last: at(last), ..times(now) };
            let choices = choose(&parts, &known, &times);
            most = most.max(choices.iter().filter(|choice| choice.is_check()).count());
            for (part, choice) in parts.iter().zip(&choices) {
                match choice {
                    Choice::Carry(passed) => {
                        assert!(times.age(passed.checked) < times.within, "{now}: {passed:?}");
                    }
                    _ => drop(known.insert(part.name.clone(), passed(1, now))),
                }
            }
            last = now;
        }
        // A thousand parts in 168 hours are six an hour, and twice that after an hour that was missed.
        assert!((6..=13).contains(&most), "{most}");
    }

    /// Four large parts, hour by hour for three weeks after a check of all: one is checked at a time, each once a week, and none is late.
    #[test]
    fn re_checks_of_few_parts_are_spread_evenly_too() {
        let mut known: BTreeMap<_, _> =
            ["a", "b", "c", "d"].map(|name| (name.to_owned(), passed(1, 0))).into();
        let week = WEEK as i64 / HOUR as i64;
        let mut checked = 0;
        for now in 1..=3 * week {
            let carried = choose_known(&known, &times(now));
            assert!(carried.values().all(|it| times(now).age(it.checked) < times(now).within));
            assert!(known.len() - carried.len() <= 1, "{now}: {carried:?}");
            for (name, it) in &mut known {
                if !carried.contains_key(name) {
                    checked += 1;
                    *it = passed(1, now);
                }
            }
        }
        assert_eq!(checked, 12, "four parts in three weeks");
    }

    #[test]
    fn a_remembered_part_is_checked_when_a_clock_speaks_against_it() {
        let known = BTreeMap::from([("a".to_owned(), passed(1, 0)), ("b".to_owned(), passed(1, 2))]);
        let names = |times: Times| choose_known(&known, &times).into_keys().collect::<Vec<_>>();
        assert_eq!(names(times(2)), ["a", "b"]);
        assert_eq!(names(times(1)), ["a"], "dated in the future");
        assert!(names(times(-1)).is_empty());
        assert!(names(times(WEEK as i64 / HOUR as i64 + 2)).is_empty(), "at the deadline");
        assert!(names(Times { mark: at(9000), ..times(2) }).is_empty(), "old by the source's clock");
        assert!(names(Times { within: Duration::ZERO, ..times(2) }).is_empty());
    }

    /// A clock that runs ahead and is put right: what was dated meanwhile is checked, whatever it says.
    #[test]
    fn a_clock_that_jumps_carries_nothing_that_it_should_not() {
        let parts = [part("a", 1), part("b", 1)];
        let known = BTreeMap::from([("a".to_owned(), passed(1, 0)), ("b".to_owned(), passed(1, 9000))]);
        // Ahead: all is old. Put right: what was dated ahead is in the future.
        let ahead = choose(&parts, &known, &times(20_000));
        assert_eq!(ahead, [Choice::Deadline; 2]);
        let right = choose(&parts, &known, &times(1));
        assert_eq!(right, [Choice::Carry(passed(1, 0)), Choice::Clock]);
    }
}
