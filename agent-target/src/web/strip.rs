//! Pictures of the past as inline SVG: a strip of 90 days, and small plots. Colours are classes of the style sheet.

use std::{fmt::Write as _, sync::Arc};

use assay_common::verdict::Outcome;
use jiff::{SignedDuration, Timestamp};
use maud::{Markup, PreEscaped, html};

use crate::repository::history::Past;

/// Days in a strip; the last one is today, in UTC.
pub(super) const DAYS: usize = 90;
/// Seconds in a day.
const DAY: i64 = 86_400;
/// Width of a day and of the gap behind it, in the strip's own units.
const WIDTH: f64 = 7.0;
const GAP: f64 = 1.0;
/// Height of the strip.
const HEIGHT: f64 = 28.0;
/// What is bad is never thinner than this, however much was good on that day.
const LEAST: f64 = 6.0;
/// Points of a plot.
const POINTS: usize = 60;

/// What came out on one day.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Day {
    /// Verdicts: PASS, FAIL, INCONCLUSIVE, NOT_RUN.
    pub(super) counts: [u32; 4],
    /// Share of the day, 0 to 1, in which no verdict came although one was due.
    pub(super) missed: f64,
}

/// The words and classes of outcomes, in the order of [`Day::counts`].
pub(super) const OUTCOMES: [(&str, &str); 4] =
    [("PASS", "pass"), ("FAIL", "fail"), ("INCONCLUSIVE", "inconclusive"), ("NOT_RUN", "not-run")];

/// The place of an outcome in [`OUTCOMES`].
pub(super) fn place(outcome: Outcome) -> usize {
    match outcome {
        Outcome::Pass => 0,
        Outcome::Fail => 1,
        Outcome::Inconclusive => 2,
        Outcome::NotRun => 3,
    }
}

/// The last [`DAYS`] days, oldest first. A verdict was due `max_age` seconds after the one before it; where that is 0, on each whole day.
pub(super) fn days(past: &[Arc<Past>], max_age: u64, now: Timestamp) -> Vec<Day> {
    let mut days = vec![Day::default(); DAYS];
    let today = now.as_second().div_euclid(DAY);
    let first_day = today - (DAYS as i64 - 1);
    let index = |day: i64| usize::try_from(day - first_day).ok().filter(|index| *index < DAYS);
    let mut times: Vec<i64> = past.iter().map(|one| one.signed.as_second()).collect();
    // A clock may have been set back.
    times.sort_unstable();
    for one in past {
        if let Some(index) = index(one.signed.as_second().div_euclid(DAY)) {
            days[index].counts[place(one.outcome)] += 1;
        }
    }
    let Some(first) = times.first().copied() else { return days };
    let due_after = i64::try_from(max_age).unwrap_or(i64::MAX);
    if due_after == 0 {
        let begin = first.div_euclid(DAY).max(first_day);
        for day in begin..today {
            let day = &mut days[usize::try_from(day - first_day).unwrap_or(0)];
            if day.counts == [0; 4] {
                day.missed = 1.0;
            }
        }
        return days;
    }
    times.push(now.as_second());
    for pair in times.windows(2) {
        let (from, to) = (pair[0].saturating_add(due_after), pair[1]);
        if from >= to {
            continue;
        }
        for day in from.div_euclid(DAY).max(first_day)..=to.div_euclid(DAY).min(today) {
            let (begin, end) = (day * DAY, ((day + 1) * DAY).min(now.as_second().max(day * DAY + 1)));
            let missed = (to.min(end) - from.max(begin)).max(0);
            if let Some(index) = index(day) {
                days[index].missed += missed as f64 / (end - begin) as f64;
            }
        }
    }
    days
}

/// How high the parts of a day stand, from the bottom: class and height. Nothing for a day of which nothing is known.
fn parts(day: &Day) -> Vec<(&'static str, f64)> {
    let total: u32 = day.counts.iter().sum();
    let missed = day.missed.clamp(0.0, 1.0);
    if total == 0 && missed == 0.0 {
        return Vec::new();
    }
    let of_verdicts = if total == 0 { 0.0 } else { HEIGHT * (1.0 - missed) };
    let share = |index: usize| {
        let count = day.counts[index];
        if count == 0 { 0.0 } else { (of_verdicts * f64::from(count) / f64::from(total)).max(LEAST) }
    };
    let missed = if missed == 0.0 { 0.0 } else { (HEIGHT * missed).max(LEAST) };
    // From the bottom: what is good takes what the others leave.
    let bad = [("not-run", share(3)), ("inconclusive", share(2)), ("fail", share(1)), ("missed", missed)];
    let sum: f64 = bad.iter().map(|(_, height)| height).sum();
    let room = if day.counts[0] > 0 { HEIGHT - LEAST } else { HEIGHT };
    let scale = if sum > room { room / sum } else { 1.0 };
    let mut parts = Vec::with_capacity(5);
    if day.counts[0] > 0 {
        parts.push(("pass", HEIGHT - sum * scale));
    }
    // Without a PASS the others fill the day.
    let scale = if day.counts[0] == 0 { HEIGHT / sum } else { scale };
    parts.extend(
        bad.into_iter().filter(|(_, height)| *height > 0.0).map(|(class, height)| (class, height * scale)),
    );
    parts
}

/// What a day was, in words.
fn told(day: &Day) -> String {
    let mut told = String::new();
    for ((word, _), count) in OUTCOMES.iter().zip(day.counts).filter(|(_, count)| *count > 0) {
        let _ = write!(told, "{}{count} {word}", if told.is_empty() { "" } else { ", " });
    }
    if day.missed > 0.0 {
        let hours = (day.missed.min(1.0) * 24.0).round();
        let _ = write!(told, "{}none for {hours} h of the day", if told.is_empty() { "" } else { ", " });
    }
    if told.is_empty() { "nothing".to_owned() } else { told }
}

/// The strip for eyes that see no colours.
fn summary(days: &[Day]) -> String {
    let sum = |index: usize| days.iter().map(|day| day.counts[index]).sum::<u32>();
    let missed = days.iter().filter(|day| day.missed > 0.0).count();
    let words: Vec<_> =
        OUTCOMES.iter().enumerate().map(|(index, (word, _))| format!("{} {word}", sum(index))).collect();
    format!("{DAYS} days: {}; verdicts missed on {missed} days", words.join(", "))
}

/// The strip. With `titles` each day says what it was when it is pointed at.
pub(super) fn strip(days: &[Day], now: Timestamp, titles: bool) -> Markup {
    let total = DAYS as f64 * (WIDTH + GAP) - GAP;
    let mut paths: [(&str, String); 5] =
        ["pass", "not-run", "inconclusive", "fail", "missed"].map(|class| (class, String::new()));
    let mut pointed = String::new();
    let mut base = String::new();
    for (index, day) in days.iter().enumerate() {
        let x = index as f64 * (WIDTH + GAP);
        let mut y = HEIGHT;
        for (class, height) in parts(day) {
            y -= height;
            if let Some((_, path)) = paths.iter_mut().find(|(known, _)| *known == class) {
                let _ = write!(path, "M{x} {y:.1}h{WIDTH}v{height:.1}h-{WIDTH}z");
            }
        }
        if y == HEIGHT {
            let _ = write!(base, "M{x} {}h{WIDTH}v2h-{WIDTH}z", HEIGHT - 2.0);
        }
        if titles {
            let back = SignedDuration::from_hours(24 * (DAYS as i64 - 1 - index as i64));
            let date = now.checked_sub(back).unwrap_or(now).strftime("%Y-%m-%d");
            let _ = write!(
                pointed,
                "<rect class=\"pointed\" x=\"{x}\" y=\"0\" width=\"{WIDTH}\" height=\"{HEIGHT}\"><title>{date}: {}</title></rect>",
                told(day)
            );
        }
    }
    html! {
        svg .strip viewBox=(format!("0 0 {total} {HEIGHT}")) preserveAspectRatio="none" role="img" aria-label=(summary(days)) {
            path .none d=(base) {}
            @for (class, path) in paths.iter().filter(|(_, path)| !path.is_empty()) {
                path class=(*class) d=(path) {}
            }
            (PreEscaped(pointed))
        }
    }
}

/// The pattern of what was missed, once on a page.
pub(super) fn patterns() -> Markup {
    html! {
        svg .patterns width="0" height="0" aria-hidden="true" {
            defs {
                pattern #hatch patternUnits="userSpaceOnUse" width="4" height="4" patternTransform="rotate(45)" {
                    rect .hatch-ground width="4" height="4" {}
                    rect .hatch-line width="1.6" height="4" {}
                }
            }
        }
    }
}

/// What the strip's colours mean.
pub(super) fn legend() -> Markup {
    html! {
        p .legend {
            @for (word, class) in OUTCOMES {
                span .key { i class=(format!("swatch {class}")) {} (word) }
            }
            span .key { i .swatch.missed {} "missed" }
            span .key { "one column a day, 90 days, today on the right (UTC)" }
        }
    }
}

/// A value through time, downsampled to [`POINTS`] by the largest of each stretch.
fn sampled(values: &[(Timestamp, f64)]) -> Vec<(f64, f64)> {
    let (Some(first), Some(last)) = (values.first(), values.last()) else { return Vec::new() };
    let (from, span) = (first.0.as_second() as f64, (last.0.as_second() - first.0.as_second()).max(1) as f64);
    let mut sampled: Vec<(usize, f64, f64)> = Vec::new();
    for (time, value) in values {
        let x = ((time.as_second() as f64 - from) / span).clamp(0.0, 1.0);
        let stretch = ((x * POINTS as f64) as usize).min(POINTS - 1);
        match sampled.last_mut() {
            Some((known, at, largest)) if *known == stretch => (*at, *largest) = (x, largest.max(*value)),
            _ => sampled.push((stretch, x, *value)),
        }
    }
    sampled.into_iter().map(|(_, x, value)| (x, value)).collect()
}

/// A small plot of a value through the time of the strip, from 0 to its largest, with its newest value beside it.
pub(super) fn plot(name: &str, values: &[(Timestamp, f64)], word: &dyn Fn(f64) -> String) -> Markup {
    let Some((_, newest)) = values.last() else {
        return html! { div .plot { span .plot-name { (name) } span .plot-value.muted { "-" } } };
    };
    let largest = values.iter().map(|(_, value)| *value).fold(0.0, f64::max);
    let (width, height) = (120.0, 30.0);
    let points: Vec<_> = sampled(values)
        .into_iter()
        .map(|(x, value)| {
            (x * width, height - 1.0 - if largest > 0.0 { value / largest } else { 0.0 } * (height - 3.0))
        })
        .collect();
    let mut line = String::new();
    for (index, (x, y)) in points.iter().enumerate() {
        let _ = write!(line, "{}{x:.1} {y:.1}", if index == 0 { "M" } else { "L" });
    }
    if let [(_, y)] = points[..] {
        let _ = write!(line, "M0 {y:.1}L{width} {y:.1}");
    }
    let area = format!("{line}L{width} {height}L0 {height}z");
    html! {
        div .plot {
            span .plot-name { (name) }
            svg viewBox=(format!("0 0 {width} {height}")) preserveAspectRatio="none" role="img"
                aria-label=(format!("{name}: {} now, at most {}", word(*newest), word(largest))) {
                path .area d=(area) {}
                path .line d=(line) {}
            }
            span .plot-value { (word(*newest)) }
            span .plot-most { "at most " (word(largest)) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn past(signed: &str, outcome: Outcome) -> Arc<Past> {
        Arc::new(Past { sequence: 1, signed: at(signed), outcome, ..Past::example() })
    }

    #[test]
    fn a_day_has_what_came_out_on_it_and_what_was_missed() {
        let now = at("2026-11-30T12:00:00Z");
        let all = [
            past("2026-01-01T00:00:00Z", Outcome::Fail),
            past("2026-11-28T23:00:00Z", Outcome::Pass),
            past("2026-11-29T01:00:00Z", Outcome::Fail),
            past("2026-11-30T11:30:00Z", Outcome::NotRun),
        ];
        let days = super::days(&all, 2 * 3600, now);
        assert_eq!(days.len(), DAYS);
        assert_eq!(days[DAYS - 3].counts, [1, 0, 0, 0]);
        assert_eq!(days[DAYS - 2].counts, [0, 1, 0, 0]);
        assert_eq!(days[DAYS - 1].counts, [0, 0, 0, 1]);
        // From 03:00 on nothing came on the 29th; on the 30th until 11:30, of the half day that has passed.
        assert!((days[DAYS - 2].missed - 21.0 / 24.0).abs() < 1e-9, "{:?}", days[DAYS - 2]);
        assert!((days[DAYS - 1].missed - 11.5 / 12.0).abs() < 1e-9, "{:?}", days[DAYS - 1]);
        assert_eq!(days[0].missed, 1.0);
        // Without a limit it is a whole day without a verdict that counts, and never today.
        let days = super::days(&all[..2], 0, now);
        assert_eq!((days[DAYS - 2].missed, days[DAYS - 1].missed, days[DAYS - 3].missed), (1.0, 0.0, 0.0));
        assert_eq!(super::days(&[], 3600, now), vec![Day::default(); DAYS]);
    }

    /// One FAIL among a thousand PASS is seen.
    #[test]
    fn a_bad_slot_stays_visible_and_a_day_fits_into_its_height() {
        for counts in [[1000, 1, 0, 0], [0, 1, 0, 0], [1, 1000, 1000, 1000], [5, 0, 0, 0], [1000, 1, 1, 1]] {
            for missed in [0.0, 0.001, 0.5, 1.0] {
                let day = Day { counts, missed };
                let parts = parts(&day);
                let sum: f64 = parts.iter().map(|(_, height)| height).sum();
                assert!((sum - HEIGHT).abs() < 1e-6, "{day:?}: {parts:?}");
                assert!(parts.iter().all(|(_, height)| *height >= 2.5), "{day:?}: {parts:?}");
            }
        }
        assert!(parts(&Day::default()).is_empty());
    }

    #[test]
    fn plots_have_few_points_and_keep_the_largest() {
        let values: Vec<_> = (0..10_000_u32)
            .map(|index| {
                (
                    at("2026-11-01T00:00:00Z") + SignedDuration::from_secs(i64::from(index) * 60),
                    f64::from(index % 5000),
                )
            })
            .collect();
        let points = sampled(&values);
        assert!(points.len() <= POINTS, "{}", points.len());
        assert!(points.iter().any(|(_, value)| *value == 4999.0));
        for values in [&values[..0], &values[..1], &values[..2]] {
            let markup = plot("size", values, &|value| value.to_string()).into_string();
            assert!(!markup.contains("NaN"), "{markup}");
        }
    }
}
