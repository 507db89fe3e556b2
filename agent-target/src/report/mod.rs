//! Evidence for a period: what the ledgers say of it, made on the store of this host without asking any agent, and how somebody else
//! verifies it.
//!
//! The report itself is not signed. It is a reading of the ledger, whose entries are, and it says how to repeat it from them.

mod html;

use std::time::Duration;

use assay_common::{
    audit::{Audit, Expected, Finding, Interval, Noted, audit},
    keyring::Keyring,
    ledger::{EntryId, Ledger, LedgerError},
    verdict::{NoteSubject, Outcome, Verdict, link_digest, unverified_verdict},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub(crate) use html::page;

/// How to verify a ledger with b3sum and openssl: commands of a shell, run in a folder with `ledger/` and `keys/`.
pub(crate) const VERIFY: &str = include_str!("verify.sh");
/// Which parts speak to which requirement.
const MAPPING: &str = include_str!("mapping.toml");

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Period {
    /// Its first moment.
    pub(crate) from: Timestamp,
    /// The first moment after it.
    pub(crate) to: Timestamp,
    /// A run is due in each slot of this length.
    pub(crate) every: Option<Duration>,
}

/// A report.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    /// Name of the target agent.
    pub(crate) target: String,
    /// Version of the program that made it.
    pub(crate) version: &'static str,
    /// When it was made, by the clock of this host.
    pub(crate) made: Timestamp,
    /// First moment of the period.
    pub(crate) from: Timestamp,
    /// First moment after it.
    pub(crate) to: Timestamp,
    /// The period has not ended: what comes later is not in it.
    pub(crate) unfinished: bool,
    /// Each repository.
    pub(crate) repositories: Vec<OfRepository>,
    /// Which parts speak to which requirement.
    pub(crate) requirements: Vec<Requirement>,
    /// Commands that verify a copy of a ledger without this program.
    pub(crate) verify: &'static str,
}

/// A requirement, and the parts of the report that speak to it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Requirement {
    /// Where it stands.
    pub(crate) of: String,
    /// What it is about, in short.
    pub(crate) about: String,
    /// The parts.
    pub(crate) parts: Vec<String>,
}

/// What the ledger of a repository says of the period.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OfRepository {
    /// Its name.
    pub(crate) repository: String,
    /// The newest entry of the whole ledger and the digest of its bytes.
    pub(crate) head: Option<String>,
    /// True when nothing is wrong with the whole ledger.
    pub(crate) sound: bool,
    /// What is wrong with it.
    pub(crate) findings: Vec<String>,
    /// The times of the keys, the target's first, a line each.
    pub(crate) keys: Vec<String>,
    /// Verdicts whose times an operator has said not to be true, a line each.
    pub(crate) acknowledged: Vec<String>,
    /// Operators' notes on verdicts, generations and slots of the period, oldest first.
    pub(crate) notes: Vec<Noted>,
    /// Verdicts of the period, oldest first.
    pub(crate) verdicts: Vec<Entry>,
    /// Stretches of the period without a run, where it was said how often one is due.
    pub(crate) missed: Option<Vec<Missed>>,
    /// Verdicts of the period that are no PASS or that do not verify, each with the next PASS.
    pub(crate) exceptions: Vec<Exception>,
}

/// A verdict of the period.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Entry {
    pub(crate) id: String,
    pub(crate) outcome: Outcome,
    pub(crate) reason: String,
    pub(crate) sentence: String,
    pub(crate) run_id: String,
    pub(crate) generation: Option<u64>,
    pub(crate) root: Option<String>,
    /// When the mark was made, by the source's clock.
    pub(crate) mark: Option<Timestamp>,
    /// When it was signed, by the target's clock.
    pub(crate) signed: Timestamp,
    /// When the source had it, by the source's clock: none, and its time rests on the target's word alone.
    pub(crate) received: Option<Timestamp>,
    /// Its signatures verify, at its place in the ledger. Of one that does not, nothing here is evidence.
    pub(crate) verified: bool,
    /// Between which moments it was signed, in words; none for one that is not verified.
    pub(crate) interval: Option<String>,
    pub(crate) depth: Option<String>,
    pub(crate) profile: Option<String>,
    pub(crate) engine: Option<String>,
    /// Digest of the checker, hexadecimal.
    pub(crate) checker: Option<String>,
    /// "trusted", "not-trusted" or "unknown"; none when there was no control.
    pub(crate) control: Option<&'static str>,
    pub(crate) control_time: Option<Timestamp>,
    pub(crate) files: Option<u64>,
    pub(crate) files_read: Option<u64>,
    pub(crate) oldest_reading: Option<Timestamp>,
    pub(crate) oldest_carried: Option<Timestamp>,
    pub(crate) not_covered: Option<u64>,
    pub(crate) content_bytes: Option<u64>,
    pub(crate) check_milliseconds: Option<u64>,
    pub(crate) isolation: Vec<String>,
    pub(crate) not_isolated: Vec<String>,
    /// Operators' notes on it and on its generation, oldest first.
    pub(crate) notes: Vec<Noted>,
    /// Digest of its file as the next entry names it, hexadecimal.
    pub(crate) digest: String,
}

/// A stretch without a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Missed {
    /// Its start.
    pub(crate) from: Timestamp,
    /// Its end.
    pub(crate) to: Timestamp,
    /// How many slots.
    pub(crate) slots: i64,
    /// Operators' notes on slots of it, oldest first.
    pub(crate) notes: Vec<Noted>,
}

impl Missed {
    /// True if this moment lies in it.
    pub(crate) fn has(&self, moment: Timestamp) -> bool {
        self.from <= moment && moment < self.to
    }
}

/// A verdict that is no PASS, or that does not verify.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Exception {
    pub(crate) id: String,
    pub(crate) outcome: Outcome,
    pub(crate) reason: String,
    pub(crate) verified: bool,
    pub(crate) signed: Timestamp,
    /// The next PASS in the ledger, also after the period.
    pub(crate) next_pass: Option<String>,
    pub(crate) next_pass_signed: Option<Timestamp>,
    /// Operators' notes on it and on its generation, oldest first.
    pub(crate) notes: Vec<Noted>,
}

impl Entry {
    fn new(
        id: EntryId,
        verdict: &Verdict,
        envelope: &[u8],
        interval: Option<&Interval>,
        notes: Vec<Noted>,
    ) -> Self {
        let coverage = verdict.coverage.as_ref();
        let reading = coverage.and_then(|coverage| coverage.reading.as_ref());
        let times = &verdict.times;
        let took = times.check_started.zip(times.check_finished);
        let took = took.and_then(|(from, to)| u64::try_from(from.duration_until(to).as_millis()).ok());
        let control = verdict.negative_control.as_ref();
        let line = interval.map(Interval::line);
        let workspace = verdict.workspace.as_ref();
        Self {
            id: id.to_string(),
            outcome: verdict.outcome,
            reason: verdict.reason.clone(),
            sentence: verdict.sentence(),
            run_id: verdict.run_id.to_string(),
            generation: verdict.generation.map(|generation| generation.0),
            root: verdict.root.map(|root| root.to_string()),
            mark: verdict.mark.as_ref().map(|mark| mark.time),
            signed: times.signed,
            received: interval.and_then(|interval| interval.received),
            verified: interval.is_some(),
            // Its id is beside it.
            interval: line
                .map(|line| line.split_once(": ").map_or(line.clone(), |(_, rest)| rest.to_owned())),
            depth: verdict.depth.map(|depth| format!("{depth:?}")),
            profile: verdict.profile.as_ref().map(|profile| format!("{} {}", profile.name, profile.version)),
            engine: verdict.steps.iter().rev().find_map(|step| step.engine.clone()),
            checker: coverage.map(|coverage| coverage.checker.to_string()),
            control: control.map(|control| control.trust().as_str()),
            control_time: control.map(|control| control.time),
            files: reading.map(|reading| reading.files_total),
            files_read: reading.map(|reading| reading.files_read_now),
            oldest_reading: reading.and_then(|reading| reading.oldest_reading),
            oldest_carried: coverage.and_then(|coverage| coverage.check.carried.as_ref()).map(|it| it.oldest),
            not_covered: coverage.map(|coverage| coverage.not_covered_total),
            content_bytes: reading.map(|reading| reading.bytes_total),
            check_milliseconds: took,
            isolation: workspace.map(|workspace| workspace.isolation.clone()).unwrap_or_default(),
            not_isolated: workspace.map(|workspace| workspace.not_isolated.clone()).unwrap_or_default(),
            notes,
            digest: link_digest(envelope).to_string(),
        }
    }
}

/// What stands beside a ledger.
pub(crate) struct Beside<'a> {
    pub(crate) receipts: &'a std::path::Path,
    pub(crate) acknowledgements: &'a std::path::Path,
    pub(crate) notes: &'a std::path::Path,
}

/// What the ledger of a repository says of a period, at `now`.
///
/// # Errors
/// When the ledger cannot be read. What is wrong with it is part of the report.
pub(crate) fn of_repository(
    repository: &str,
    ledger: &Ledger,
    (keys, source_keys): (&Keyring, &Keyring),
    beside: &Beside<'_>,
    period: Period,
    now: Timestamp,
) -> Result<OfRepository, LedgerError> {
    let expected = Expected {
        receipts: Some(beside.receipts),
        acknowledgements: Some(beside.acknowledgements),
        notes: Some(beside.notes),
        every: period.every,
        until: Some(period.to.min(now)),
        ..Expected::default()
    };
    let Audit { findings, acknowledged, mut notes, head, intervals, keys, .. } =
        audit(ledger, keys, Some(source_keys), &expected)?;
    let (mut wrong, mut missed) = (Vec::new(), Vec::new());
    for finding in findings {
        match finding {
            Finding::Missed { from, to, slots } => {
                let is_here = |note: &&Noted| matches!(note.about, NoteSubject::Slot(slot) if from <= slot && slot < to);
                let notes = notes.iter().filter(is_here).cloned().collect();
                missed.push(Missed { from, to, slots, notes });
            }
            finding => wrong.push(finding.to_string()),
        }
    }
    missed.retain(|stretch| stretch.to > period.from && stretch.from < period.to);
    let interval_of = |id: EntryId| {
        let place = intervals.binary_search_by_key(&id.sequence(), |interval| interval.verdict).ok()?;
        intervals.get(place)
    };
    let (mut verdicts, mut exceptions): (Vec<Entry>, Vec<Exception>) = (Vec::new(), Vec::new());
    let mut open = 0;
    let mut ids = ledger.entries()?;
    ids.reverse();
    for id in ids {
        let Ok(envelope) = ledger.get(&id.to_string()) else { continue };
        let Ok(verdict) = unverified_verdict(&envelope) else { continue };
        let signed = verdict.times.signed;
        let interval = interval_of(id);
        if verdict.outcome == Outcome::Pass && interval.is_some() {
            for exception in exceptions.iter_mut().skip(open) {
                exception.next_pass = Some(id.to_string());
                exception.next_pass_signed = Some(signed);
            }
            open = exceptions.len();
        }
        if signed < period.from || signed >= period.to {
            continue;
        }
        let generation = verdict.generation.map(|generation| generation.0);
        let on_it: Vec<Noted> =
            notes.iter().filter(|note| note.about.is_verdict(id.sequence(), generation)).cloned().collect();
        if verdict.outcome != Outcome::Pass || interval.is_none() {
            exceptions.push(Exception {
                id: id.to_string(),
                outcome: verdict.outcome,
                reason: verdict.reason.clone(),
                verified: interval.is_some(),
                signed,
                next_pass: None,
                next_pass_signed: None,
                notes: on_it.clone(),
            });
        }
        verdicts.push(Entry::new(id, &verdict, &envelope, interval, on_it));
    }
    let is_of_period = |note: &Noted| match note.about {
        NoteSubject::Slot(slot) => slot >= period.from && slot < period.to,
        _ => verdicts.iter().any(|entry| entry.notes.contains(note)),
    };
    notes.retain(is_of_period);
    Ok(OfRepository {
        repository: repository.to_owned(),
        head: head.map(|head| head.to_string()),
        sound: wrong.is_empty(),
        findings: wrong,
        keys: keys.iter().map(|period| period.line()).collect(),
        acknowledged: acknowledged.iter().map(|one| one.line()).collect(),
        notes,
        verdicts,
        missed: period.every.map(|_| missed),
        exceptions,
    })
}

/// The requirements of the mapping.
///
/// # Panics
/// When the file of this program is none: a test reads it.
pub(crate) fn requirements() -> Vec<Requirement> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Mapping {
        requirement: Vec<Requirement>,
    }
    toml::from_str::<Mapping>(MAPPING).expect("the mapping is TOML of this form").requirement
}

/// The columns of a table, and what stands in them, one verdict a row.
pub(crate) fn rows(report: &Report) -> Vec<Vec<String>> {
    let time = |time: Option<Timestamp>| time.map(|time| time.to_string()).unwrap_or_default();
    let number = |number: Option<u64>| number.map(|number| number.to_string()).unwrap_or_default();
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let mut rows = vec![
        [
            "repository",
            "verdict",
            "outcome",
            "reason",
            "verified",
            "run",
            "generation",
            "root",
            "mark",
            "signed",
            "received",
            "depth",
            "profile",
            "engine",
            "checker",
            "control",
            "controlTime",
            "files",
            "filesRead",
            "oldestReading",
            "oldestCarried",
            "notCovered",
            "contentBytes",
            "checkMilliseconds",
            "isolation",
            "notIsolated",
            "notes",
            "digest",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for repository in &report.repositories {
        for entry in &repository.verdicts {
            rows.push(vec![
                repository.repository.clone(),
                entry.id.clone(),
                entry.outcome.to_string(),
                entry.reason.clone(),
                entry.verified.to_string(),
                entry.run_id.clone(),
                number(entry.generation),
                text(&entry.root),
                time(entry.mark),
                entry.signed.to_string(),
                time(entry.received),
                text(&entry.depth),
                text(&entry.profile),
                text(&entry.engine),
                text(&entry.checker),
                entry.control.unwrap_or_default().to_owned(),
                time(entry.control_time),
                number(entry.files),
                number(entry.files_read),
                time(entry.oldest_reading),
                time(entry.oldest_carried),
                number(entry.not_covered),
                number(entry.content_bytes),
                number(entry.check_milliseconds),
                entry.isolation.join(" "),
                entry.not_isolated.join(" "),
                entry.notes.iter().map(Noted::words).collect::<Vec<_>>().join(" | "),
                entry.digest.clone(),
            ]);
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mapping_names_parts_that_there_are() {
        let all = requirements();
        assert!(all.len() >= 5);
        for part in all.iter().flat_map(|requirement| &requirement.parts) {
            assert!(["verdicts", "coverage", "missed", "exceptions"].contains(&part.as_str()), "{part}");
        }
    }
}
