//! What earlier verdicts say of parts that passed.
//!
//! Nothing is believed because it lies in the store. The newest PASS must bear this target's signature, stand in its place of this
//! repository's ledger, come of the checker of now, and name the digest of the record. The same goes for each verdict in whose check a
//! part passed. A verdict after it that found damage, or a checker that contradicts itself, starts anew, and so does a checker for which
//! no negative control vouches.

use std::collections::BTreeMap;

use assay_common::{
    ledger::EntryId,
    verdict::{HexDigest, Outcome, Trust, Verdict},
};
use jiff::Timestamp;

use super::{
    choice::Passed,
    record::{CheckOfParts, PartsRecord},
};
use crate::{repository::Repository, verify::CONTRADICTION};

/// How far back in the ledger the newest PASS is looked for.
const LOOKED_AT: usize = 1000;

/// What is remembered.
#[derive(Debug, Clone)]
pub(super) struct Memory {
    /// When the check began that remembered last.
    pub(super) time: Timestamp,
    /// When the newest check began that carried nothing.
    pub(super) full_check: Timestamp,
    /// By the step's name.
    pub(super) steps: BTreeMap<String, StepMemory>,
}

/// What is remembered of a step.
#[derive(Debug, Clone, Default)]
pub(super) struct StepMemory {
    /// The engine's name and version.
    pub(super) engine: Option<String>,
    /// What the step told of the whole in the newest check.
    pub(super) state: Option<String>,
    /// The parts that passed, by their names.
    pub(super) parts: BTreeMap<String, Passed>,
}

/// What is remembered of the parts of a repository's check by the checker of now.
///
/// # Errors
/// Why nothing is remembered.
pub(super) fn recall(repository: &Repository, checker: HexDigest) -> Result<Memory, String> {
    let trust = repository.control().map(|control| control.trust());
    if trust != Some(Trust::Trusted) {
        return Err("no negative control of this checker has passed".to_owned());
    }
    let (id, digest) = newest_record(repository, checker)?;
    let record = PartsRecord::read(repository.store.path(), digest)
        .filter(|record| record.repository == repository.config.name)
        .ok_or("the record of the parts that have passed is not there")?;
    let checks: Vec<_> = record.checks.iter().map(|check| believed(repository, checker, id, check)).collect();
    let passed = |(inputs, check): (HexDigest, usize)| {
        let (sequence, checked) = (*checks.get(check)?)?;
        Some(Passed { inputs, checked, sequence })
    };
    let steps = record.steps.into_iter().map(|(name, step)| {
        let parts = step.parts.into_iter().filter_map(|(name, part)| Some((name, passed(part)?)));
        (name, StepMemory { engine: step.engine, state: step.state, parts: parts.collect() })
    });
    Ok(Memory { time: record.time, full_check: record.full_check, steps: steps.collect() })
}

/// The newest verdict that names a record of parts, with the record's digest.
fn newest_record(repository: &Repository, checker: HexDigest) -> Result<(EntryId, HexDigest), String> {
    for id in repository.newest_places(LOOKED_AT) {
        let verdict = repository.verdict_in_place(id)?;
        if verdict.outcome == Outcome::Fail || verdict.reason == CONTRADICTION {
            return Err(format!("verdict {id} found damage, or a checker that contradicts itself"));
        }
        let record = verdict.coverage.as_ref().and_then(|coverage| coverage.check.parts_record);
        if let Some(record) = record {
            vouches(&verdict, checker)?;
            return Ok((id, record));
        }
    }
    Err("no verdict names parts that have passed".to_owned())
}

/// The verdict must be a PASS of the checker of now, and not of a time when that checker was known to pass damaged data.
fn vouches(verdict: &Verdict, checker: HexDigest) -> Result<(), String> {
    let is_of_checker = verdict.coverage.as_ref().is_some_and(|coverage| coverage.checker == checker);
    let was_trusted = verdict.negative_control.as_ref().is_none_or(|it| it.trust() != Trust::NotTrusted);
    if verdict.outcome == Outcome::Pass && is_of_checker && was_trusted {
        return Ok(());
    }
    Err(format!("the checker has changed since verdict {:09}, or was not trusted then", verdict.sequence))
}

/// The place of a check's verdict, and when the check began, if the verdict is there and vouches for its parts.
fn believed(
    repository: &Repository,
    checker: HexDigest,
    newest: EntryId,
    check: &CheckOfParts,
) -> Option<(u64, Timestamp)> {
    let id = check.sequence.map_or(newest, EntryId);
    let is_believed = id <= newest
        && repository.verdict_in_place(id).and_then(|verdict| {
            vouches(&verdict, checker)?;
            // What the record says of the check's time must be what was signed.
            if verdict.times.check_started == Some(check.time) {
                Ok(())
            } else {
                Err("another time".to_owned())
            }
        }) == Ok(());
    is_believed.then_some((id.sequence(), check.time))
}
