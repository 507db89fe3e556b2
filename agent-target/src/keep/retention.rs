//! Which generations are kept. A pure function: it reads no clock and no disk.
//!
//! Only verified generations count towards a rule, so that a week of failed runs does not push out the last good week. What
//! proves nothing is kept as long as it may still tell something: generations newer than the newest good one, the first
//! failure after it, and the newest failures for a stated time.
//!
//! **Clocks.** A clock that jumps must not cost a generation.
//!
//! - The order is that of the numbers, which only grow; no time changes it.
//! - Hours, days, weeks and months are counted, not measured: `daily = 7` keeps one of each of the newest seven days that
//!   have a generation, however long ago they were. A clock that jumped ahead takes a place, and removes nothing by itself.
//! - `within` is measured back from the newest verified generation, not from now, and from the earlier of two clocks: the
//!   target's at the seal and the source's at the mark. Either clock alone, or the present, can only make it keep more. The
//!   age of a generation is by the later of its two times, for the same reason.
//! - Hours and days are those of the target's clock alone (UTC). A source that lies about its marks can have more kept, up to
//!   the quota, and never less.

use std::{collections::HashSet, fmt, time::Duration};

use assay_common::id::GenerationNumber;
use jiff::{Timestamp, tz::TimeZone};

/// How many of what are kept. What a rule keeps, no other one removes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// The newest so many.
    pub last: u32,
    /// The newest of each of so many hours.
    pub hourly: u32,
    /// The newest of each of so many days.
    pub daily: u32,
    /// The newest of each of so many weeks (ISO 8601, from Monday).
    pub weekly: u32,
    /// The newest of each of so many months.
    pub monthly: u32,
    /// All that are no older than this, seen from the newest.
    pub within: Option<Duration>,
    /// The newest so many that failed, if they are not older than `failed_within`.
    pub failed_last: u32,
    /// How long those are kept, and what proves nothing beside them.
    pub failed_within: Duration,
}

impl Retention {
    /// Failed generations that are kept when the configuration does not say.
    pub const DEFAULT_FAILED_LAST: u32 = 3;
    /// How long they are kept when the configuration does not say: two weeks, so that a holiday is not the end of the evidence.
    pub const DEFAULT_FAILED_WITHIN: Duration = Duration::from_secs(14 * 24 * 3600);

    /// False when no rule keeps a verified generation: that is a mistake, and not a wish to keep one only.
    pub fn keeps_any(&self) -> bool {
        [self.last, self.hourly, self.daily, self.weekly, self.monthly].iter().any(|count| *count > 0)
            || self.within.is_some_and(|within| !within.is_zero())
    }
}

/// What is known of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its last conclusive verdict is PASS, and no rot is known in it.
    Verified,
    /// Its last conclusive verdict is PASS, and rot has been found in it since.
    Rotten,
    /// Its last conclusive verdict is FAIL.
    Failed,
    /// There is no PASS and no FAIL.
    Unproven,
}

/// A generation that is there.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Its number.
    pub number: GenerationNumber,
    /// When it was sealed, by the target's clock.
    pub sealed: Timestamp,
    /// Its mark, by the source's clock.
    pub mark: Timestamp,
    /// What is known of it.
    pub state: State,
    /// An operator holds on to it.
    pub pinned: bool,
    /// Something is using it.
    pub in_use: bool,
}

/// Why a generation is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// It is the newest: the next run builds upon it.
    Latest,
    /// It is the newest that passed.
    NewestPass,
    /// `verified` points at it.
    Verified,
    /// An operator pinned it.
    Pinned,
    /// A check, a restore or a bisection uses it.
    InUse,
    /// By `last`.
    Last,
    /// By `hourly`.
    Hourly,
    /// By `daily`.
    Daily,
    /// By `weekly`.
    Weekly,
    /// By `monthly`.
    Monthly,
    /// By `within`.
    Within,
    /// It is newer than the newest that passed, and nothing says that it is bad.
    NotJudged,
    /// It is the first that failed after the newest that passed.
    FirstFail,
    /// It proves nothing, and is young enough for a post-mortem.
    PostMortem,
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Latest => "latest",
            Self::NewestPass => "newest-pass",
            Self::Verified => "verified",
            Self::Pinned => "pinned",
            Self::InUse => "in-use",
            Self::Last => "last",
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Within => "within",
            Self::NotJudged => "not-judged",
            Self::FirstFail => "first-fail",
            Self::PostMortem => "post-mortem",
        })
    }
}

/// What becomes of a generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Its number.
    pub number: GenerationNumber,
    /// Why it is kept; nothing keeps what is to be pruned.
    pub keep: Vec<Reason>,
}

impl Decision {
    /// True when nothing keeps it.
    pub fn is_prune(&self) -> bool {
        self.keep.is_empty()
    }
}

/// A calendar period of the target's clock, in UTC.
type Period = fn(Timestamp) -> (i16, i16, i8, i8);

fn hour(time: Timestamp) -> (i16, i16, i8, i8) {
    let time = time.to_zoned(TimeZone::UTC);
    (time.year(), i16::from(time.month()), time.day(), time.hour())
}

fn day(time: Timestamp) -> (i16, i16, i8, i8) {
    let time = time.to_zoned(TimeZone::UTC);
    (time.year(), i16::from(time.month()), time.day(), 0)
}

fn week(time: Timestamp) -> (i16, i16, i8, i8) {
    let week = time.to_zoned(TimeZone::UTC).date().iso_week_date();
    (week.year(), 0, week.week(), 0)
}

fn month(time: Timestamp) -> (i16, i16, i8, i8) {
    let time = time.to_zoned(TimeZone::UTC);
    (time.year(), i16::from(time.month()), 0, 0)
}

/// Decides on all of `candidates`, in any order; without a retention all are kept, by `Reason`s that hold anyway. `verified` is
/// what the link of that name points at.
///
/// The decisions come oldest first, one for each candidate.
pub fn decide(
    retention: &Retention,
    candidates: &[Candidate],
    verified: Option<GenerationNumber>,
    now: Timestamp,
) -> Vec<Decision> {
    let mut newest_first: Vec<&Candidate> = candidates.iter().collect();
    newest_first.sort_unstable_by_key(|candidate| std::cmp::Reverse(candidate.number));
    let newest_pass = newest_first.iter().find(|it| it.state == State::Verified);
    let after_pass = |it: &Candidate| newest_pass.is_none_or(|pass| it.number > pass.number);
    let first_fail = newest_first.iter().rfind(|it| it.state == State::Failed && after_pass(it));
    let good_anchor = newest_pass.map(|pass| earliest(pass, now));
    let anchor = newest_first.first().map(|newest| earliest(newest, now));
    let mut rules: Vec<(Reason, u32, Option<Period>, HashSet<_>)> = [
        (Reason::Last, retention.last, None),
        (Reason::Hourly, retention.hourly, Some(hour as Period)),
        (Reason::Daily, retention.daily, Some(day as Period)),
        (Reason::Weekly, retention.weekly, Some(week as Period)),
        (Reason::Monthly, retention.monthly, Some(month as Period)),
    ]
    .map(|(reason, count, period)| (reason, count, period, HashSet::new()))
    .into();
    let (mut counted, mut failed) = (0, 0);
    let mut decisions: Vec<Decision> = Vec::with_capacity(newest_first.len());
    for (index, it) in newest_first.iter().enumerate() {
        let mut keep = Vec::new();
        let mut because = |holds: bool, reason| {
            if holds {
                keep.push(reason);
            }
        };
        because(index == 0, Reason::Latest);
        because(newest_pass.is_some_and(|pass| pass.number == it.number), Reason::NewestPass);
        because(verified == Some(it.number), Reason::Verified);
        because(it.pinned, Reason::Pinned);
        because(it.in_use, Reason::InUse);
        match it.state {
            State::Verified => {
                for (reason, count, period, seen) in &mut rules {
                    let holds = match period {
                        None => counted < *count,
                        Some(period) => seen.len() < *count as usize && seen.insert(period(it.sealed)),
                    };
                    because(holds, *reason);
                }
                counted += 1;
                let within = retention.within.zip(good_anchor);
                because(within.is_some_and(|(within, anchor)| is_within(it, anchor, within)), Reason::Within);
            }
            State::Failed => {
                because(first_fail.is_some_and(|first| first.number == it.number), Reason::FirstFail);
                let young = anchor.is_some_and(|anchor| is_within(it, anchor, retention.failed_within));
                because(failed < retention.failed_last && young, Reason::PostMortem);
                failed += 1;
            }
            State::Rotten | State::Unproven => {
                because(after_pass(it), Reason::NotJudged);
                let young = anchor.is_some_and(|anchor| is_within(it, anchor, retention.failed_within));
                because(young, Reason::PostMortem);
            }
        }
        decisions.push(Decision { number: it.number, keep });
    }
    decisions.reverse();
    decisions
}

/// The earliest that it may be now, as far as this generation and the clock tell.
fn earliest(newest: &Candidate, now: Timestamp) -> Timestamp {
    newest.sealed.min(newest.mark).min(now)
}

/// A generation as young as the later of its clocks has it.
fn is_within(it: &Candidate, anchor: Timestamp, within: Duration) -> bool {
    match anchor.checked_sub(within) {
        Ok(start) => it.sealed.max(it.mark) >= start,
        // Longer than there have been clocks.
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests;
