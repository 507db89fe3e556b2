//! How a repository stands, as a row of the page says it: its level, why, and how sure it is.

use std::{panic::AssertUnwindSafe, sync::Arc};

use assay_common::{
    cli::{screen::safe, show},
    id::GenerationNumber,
    verdict::{Outcome, Verdict, timestamp_from_proto},
};
use assay_proto::v1::{self, TargetRepositoryStatus};
use jiff::Timestamp;

use super::{
    ledgers::{Ledgers, Verification},
    strip::{self, Day},
};
use crate::{
    repository::{Repository, history::Past},
    status,
};

/// How urgently somebody should look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// Not proven in time, damage, or evidence that does not verify.
    Bad,
    /// Proven in time, and something is not as it should be.
    Warn,
    /// Proven in time.
    Good,
}

impl Level {
    /// The class of the style sheet.
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Bad => "bad",
            Self::Warn => "warn",
            Self::Good => "good",
        }
    }

    /// The word for it: colour alone tells nobody who does not see it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Bad => "alarm",
            Self::Warn => "look",
            Self::Good => "in order",
        }
    }
}

/// The share of the limit, in quarters, from which on an age is a warning.
const WARN_QUARTERS: u64 = 3;
/// Days of which plots show values.
const PLOT_SECONDS: i64 = strip::DAYS as i64 * 86_400;

/// A repository on the page.
pub(super) struct Row {
    /// Its name.
    pub(super) name: String,
    /// Another name for people.
    pub(super) alias: Option<String>,
    /// When the row was made.
    pub(super) now: Timestamp,
    /// How urgent it is.
    pub(super) level: Level,
    /// Why it is not in order, a sentence each.
    pub(super) why: Vec<String>,
    /// The record; none where it could not be made.
    pub(super) facts: Option<Facts>,
}

/// What a row shows when the record could be made.
pub(super) struct Facts {
    /// The record that `status` prints.
    pub(super) status: TargetRepositoryStatus,
    /// Whether there is a proof whose age is known.
    pub(super) is_proven: bool,
    /// The newest verdict.
    pub(super) newest: Option<Arc<Past>>,
    /// Verdicts after the newest proof that are no PASS: FAIL, INCONCLUSIVE, NOT_RUN.
    pub(super) since: [u32; 3],
    /// How sure the newest proof is: a name and a value each.
    pub(super) sure: Vec<(&'static str, String)>,
    /// The strip.
    pub(super) days: Vec<Day>,
    /// Content of the live tree, in bytes, through time.
    pub(super) sizes: Vec<(Timestamp, f64)>,
    /// How long checks took, in milliseconds, through time.
    pub(super) checks: Vec<(Timestamp, f64)>,
    /// The newest verification of the ledger.
    pub(super) ledger: Option<Arc<Verification>>,
}

impl Row {
    /// Of this repository at `now`. A bug that one of them meets costs the page that one alone.
    pub(super) fn of(repository: &Repository, ledgers: &Ledgers, now: Timestamp) -> Self {
        let made = std::panic::catch_unwind(AssertUnwindSafe(|| Self::whole(repository, ledgers, now)));
        made.unwrap_or_else(|_| Self {
            name: repository.config.name.clone(),
            alias: repository.config.alias.clone(),
            now,
            level: Level::Bad,
            why: vec![
                "this repository cannot be shown: the agent has a bug, and its log says where".to_owned(),
            ],
            facts: None,
        })
    }

    fn whole(repository: &Repository, ledgers: &Ledgers, now: Timestamp) -> Self {
        let status = status::of_repository(repository, now);
        let past = repository.history();
        let name = repository.config.name.clone();
        let ledger = ledgers.of(&name);
        let newest = past.last().cloned();
        let proof = repository.watch.standing().last_pass;
        let proven_by = proof.as_ref().and_then(|proof| proof.verdict_id.parse::<u64>().ok());
        let after = past.iter().filter(|one| Some(one.sequence) > proven_by);
        let mut since = [0; 3];
        after
            .filter(|one| one.outcome != Outcome::Pass)
            .for_each(|one| since[strip::place(one.outcome) - 1] += 1);
        let verified = status.verified.as_ref().map(|verified| GenerationNumber(verified.number));
        let verdict =
            verified.and_then(|number| repository.last_conclusive(number)).map(|(_, verdict)| verdict);
        let from = now.as_second().saturating_sub(PLOT_SECONDS);
        let lately = || past.iter().filter(|one| one.signed.as_second() >= from);
        let sizes = lately().filter_map(|one| Some((one.signed, one.content_bytes? as f64))).collect();
        let checks =
            lately().filter_map(|one| Some((one.signed, one.checking?.as_secs_f64() * 1000.0))).collect();
        let facts = Facts {
            is_proven: proof.as_ref().is_some_and(|proof| proof.mark.is_some()),
            newest,
            since,
            sure: sure(&status, verdict.as_ref(), now),
            days: strip::days(&past, status.overdue_after_seconds, now),
            sizes,
            checks,
            ledger,
            status,
        };
        let (level, why) = judge(&facts, &repository.unreadable_entries(), now);
        Self { name, alias: repository.config.alias.clone(), now, level, why, facts: Some(facts) }
    }
}

/// How urgent it is, and why.
fn judge(facts: &Facts, unreadable: &[u64], now: Timestamp) -> (Level, Vec<String>) {
    let (mut bad, mut warn) = (Vec::new(), Vec::new());
    let status = &facts.status;
    let (age, limit) = (status.last_pass_age_seconds, status.overdue_after_seconds);
    if !facts.is_proven {
        bad.push("no generation has passed a check that is known to find damage".to_owned());
    } else if limit > 0 && age > limit {
        bad.push(format!(
            "there should be a PASS every {}, and the newest is of {} ago",
            show::age(limit),
            show::age(age)
        ));
    } else if limit > 0 && age > limit / 4 * WARN_QUARTERS {
        warn.push(format!("the newest PASS is {} old, of {} at most", show::age(age), show::age(limit)));
    }
    if let Some(newest) = facts.newest.as_ref().filter(|newest| newest.outcome != Outcome::Pass) {
        let what = format!("the newest verdict is {} {}", newest.outcome, newest.reason);
        if newest.outcome == Outcome::Fail { bad.push(what) } else { warn.push(what) }
    }
    match facts.ledger.as_ref().and_then(|ledger| Some((ledger.fault()?, ledger.time))) {
        Some((fault, time)) => {
            let when = show::age(u64::try_from(time.duration_until(now).as_secs()).unwrap_or(0));
            bad.push(format!("the ledger does not verify: {fault} (verified {when} ago)"));
        }
        None => bad.extend(unreadable.first().map(|entry| {
            let more = if unreadable.len() > 1 {
                format!(", and {} more", unreadable.len() - 1)
            } else {
                String::new()
            };
            format!("entry {entry:09} of the ledger cannot be read{more}")
        })),
    }
    if let Some(scrub) = status.scrub.as_ref().filter(|scrub| scrub.unhealed > 0) {
        bad.push(format!("corrupt on the target's disk: {}", show::counted(scrub.unhealed, "file")));
    }
    if let Some(control) = &status.negative_control {
        match control.trust.as_str() {
            "trusted" => {}
            "not-trusted" => bad.push("the checker passed data that was damaged on purpose".to_owned()),
            _ => warn.push("the newest negative control came to no result".to_owned()),
        }
    } else if facts.newest.is_some() {
        warn.push("no negative control has shown that the checker, as it is now, finds damage".to_owned());
    }
    if let Some(found) = &status.changed_without_trace {
        warn.push(format!("the content of {} changed without a trace", show::counted(found.files, "file")));
    }
    let level = match (bad.is_empty(), warn.is_empty()) {
        (false, _) => Level::Bad,
        (true, false) => Level::Warn,
        (true, true) => Level::Good,
    };
    bad.extend(warn);
    (level, bad.into_iter().map(|text| safe(&text)).collect())
}

fn ago(time: Timestamp, now: Timestamp) -> String {
    match u64::try_from(time.duration_until(now).as_secs()) {
        Ok(seconds) => format!("{} ago", show::age(seconds)),
        Err(_) => "just now".to_owned(),
    }
}

/// How sure the newest proof is: what it claims, how old its oldest reading and result are, and whether its checker finds damage.
fn sure(
    status: &TargetRepositoryStatus,
    proof: Option<&Verdict>,
    now: Timestamp,
) -> Vec<(&'static str, String)> {
    let mut sure = Vec::new();
    if let Some(verdict) = proof {
        let claims = status.verified.as_ref().and_then(|verified| verified.claims.as_ref());
        if let Some(claims) = claims {
            sure.push(("claims", format!("backup {}, live {}", safe(&claims.backup), safe(&claims.live))));
        }
        if let Some(depth) = verdict.depth {
            sure.push(("depth", format!("{depth:?}: {}", depth.in_words())));
        }
        let coverage = verdict.coverage.as_ref();
        if let Some(reading) = coverage.and_then(|coverage| coverage.reading.as_ref()) {
            let files = match reading.files_read_now >= reading.files_total {
                true => format!("all of {}", show::counted(reading.files_total, "file")),
                false => {
                    format!("{} of {}", reading.files_read_now, show::counted(reading.files_total, "file"))
                }
            };
            let oldest =
                reading.oldest_reading.map(|oldest| format!(", the oldest reading {}", ago(oldest, now)));
            let unknown = match reading.files_of_unknown_age {
                0 => String::new(),
                files => format!(", {} of unknown age", show::counted(files, "file")),
            };
            sure.push(("read", format!("{files} in that run{}{unknown}", oldest.unwrap_or_default())));
        }
        if let Some(carried) = coverage.and_then(|coverage| coverage.check.carried.as_ref()) {
            let of = carried.parts_checked_now.saturating_add(carried.parts);
            let oldest = ago(carried.oldest, now);
            sure.push((
                "checked",
                format!(
                    "{} of {of} parts in that run, the oldest carried result {oldest}",
                    carried.parts_checked_now
                ),
            ));
        }
        match coverage.map(|coverage| coverage.not_covered_total) {
            Some(0) => sure.push(("not covered", "nothing that is known".to_owned())),
            Some(parts) => sure.push(("not covered", show::counted(parts, "part"))),
            None => {}
        }
    }
    let control = status.negative_control.as_ref();
    sure.push((
        "checker",
        match control
            .map(|control| (control.trust.as_str(), control.time.as_ref().and_then(timestamp_from_proto)))
        {
            Some(("trusted", time)) => {
                let when = time.map_or_else(String::new, |time| format!(", {}", ago(time, now)));
                format!("found the damage of its negative control{when}")
            }
            Some(("not-trusted", _)) => "NOT TRUSTED: it passed damaged data".to_owned(),
            Some(_) => "its negative control came to no result".to_owned(),
            None if status.former_control.is_some() => "has changed since its negative control".to_owned(),
            None => "never tried on damaged data".to_owned(),
        },
    ));
    if let Some(scrub) = &status.scrub {
        let when = scrub
            .finished
            .as_ref()
            .map_or_else(|| "under way".to_owned(), |_| show::ago(scrub.finished.as_ref(), now));
        sure.push(("scrubbed", format!("{when}, {} corrupt", show::counted(scrub.unhealed, "file"))));
    }
    if let Some(restore) = &status.last_restore {
        let what = if restore.complete { "" } else { ", not all of it" };
        let when = show::ago(restore.time.as_ref(), now);
        sure.push((
            "restored",
            format!("generation {} in {:.1} s, {when}{what}", restore.generation, restore.seconds),
        ));
    }
    sure
}

/// The outcome as the style sheet and people know it.
pub(super) fn outcome_of(outcome: v1::Outcome) -> (&'static str, &'static str) {
    match Outcome::try_from(outcome) {
        Ok(outcome) => strip::OUTCOMES[strip::place(outcome)],
        Err(_) => ("not checked", "none"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            status: TargetRepositoryStatus {
                overdue_after_seconds: 7200,
                last_pass_age_seconds: 600,
                negative_control: Some(v1::NegativeControl {
                    trust: "trusted".to_owned(),
                    ..Default::default()
                }),
                ..Default::default()
            },
            is_proven: true,
            newest: Some(Arc::new(Past::example())),
            since: [0; 3],
            sure: Vec::new(),
            days: Vec::new(),
            sizes: Vec::new(),
            checks: Vec::new(),
            ledger: None,
        }
    }

    /// Green needs all of it; each thing that is wrong is named.
    #[test]
    fn a_repository_is_in_order_only_when_nothing_is_wrong() {
        let now = Timestamp::UNIX_EPOCH;
        let judged = |change: &dyn Fn(&mut Facts)| {
            let mut facts = facts();
            change(&mut facts);
            judge(&facts, &[], now)
        };
        assert_eq!(judged(&|_| {}), (Level::Good, Vec::new()));
        let outcome = |facts: &mut Facts, outcome| {
            Arc::make_mut(facts.newest.as_mut().expect("one")).outcome = outcome;
        };
        type Change = Box<dyn Fn(&mut Facts)>;
        let cases: [(Change, Level, &str); 10] = [
            (
                Box::new(|it| it.status.last_pass_age_seconds = 7201),
                Level::Bad,
                "there should be a PASS every 2 h",
            ),
            (
                Box::new(|it| it.status.last_pass_age_seconds = 5401),
                Level::Warn,
                "the newest PASS is 90 min old",
            ),
            (Box::new(|it| it.is_proven = false), Level::Bad, "known to find damage"),
            (Box::new(move |it| outcome(it, Outcome::Fail)), Level::Bad, "the newest verdict is FAIL"),
            (Box::new(move |it| outcome(it, Outcome::Inconclusive)), Level::Warn, "INCONCLUSIVE"),
            (Box::new(move |it| outcome(it, Outcome::NotRun)), Level::Warn, "NOT_RUN"),
            (Box::new(|it| it.status.negative_control = None), Level::Warn, "no negative control"),
            (
                Box::new(|it| it.status.negative_control.as_mut().expect("one").trust = "not-trusted".into()),
                Level::Bad,
                "damaged on purpose",
            ),
            (
                Box::new(|it| it.status.scrub = Some(v1::ScrubStatus { unhealed: 2, ..Default::default() })),
                Level::Bad,
                "2 files",
            ),
            (
                Box::new(|it| {
                    let (time, audit) = (Timestamp::UNIX_EPOCH, Err("gone\u{202e}".to_owned()));
                    it.ledger = Some(Arc::new(Verification { time, audit }));
                }),
                Level::Bad,
                "the ledger does not verify: gone\\u{202e}",
            ),
        ];
        for (change, level, word) in cases {
            let (found, why) = judged(&*change);
            assert_eq!(found, level, "{word}: {why:?}");
            assert!(why.iter().any(|why| why.contains(word)), "{word}: {why:?}");
        }
        let (level, why) = judge(&facts(), &[3, 4], now);
        assert_eq!(
            (level, why),
            (Level::Bad, vec!["entry 000000003 of the ledger cannot be read, and 1 more".to_owned()])
        );
    }
}
