//! The negative control: the check is run on data that was damaged on purpose, and must say FAIL.
//!
//! First it must say PASS to the same generation undamaged, or its FAIL would mean nothing. Each damage is made in a
//! workspace of its own; the generation stays as it is. Where results of parts can be carried, the check of damaged data carries
//! all that does not depend on the damaged file, as any check would: so the control proves the choice of parts, too. What a profile lists must be found, each of it; when it lists
//! nothing that fits, a few kinds are tried on the largest files, and one of them must be found.

use std::{fs::File, io::BufReader};

use assay_common::{
    cli::show,
    id::GenerationNumber,
    manifest::{EntryKind, ManifestReader, Root, validate_entry},
    path::TreePath,
    profile::{Control, DamageKind},
    verdict::{ControlDamage, HexDigest, NegativeControl, Outcome, Trust},
};
use tokio_util::sync::CancellationToken;

use super::damage::{Dice, damage};
use crate::{
    carried::{Plan, Undamaged},
    check::CheckReport,
    repository::Repository,
    store::{MANIFEST, Record},
    verify,
    workspace::Workspace,
};

/// Largest files that are thought of for one control.
const CANDIDATES: usize = 8;
/// Ends of names that are settings and notes rather than data: the check may not read them at all.
const NOT_DATA: [&str; 15] = [
    "conf", "cnf", "cfg", "ini", "toml", "yaml", "yml", "json", "xml", "txt", "md", "log", "lock", "pid",
    "sh",
];
/// Relations of a PostgreSQL cluster that are nobody's data have smaller numbers (access/transam.h).
const FIRST_NORMAL_OID: u64 = 16384;

/// Runs a control on the newest generation that passed, signs it and keeps it. `None` when it was cancelled.
///
/// # Errors
/// When there is no such generation, or when the result cannot be kept.
pub fn run(
    repository: &Repository,
    seed: u64,
    cancel: &CancellationToken,
    on_step: &dyn Fn(&str),
) -> Result<Option<NegativeControl>, String> {
    let generation = repository.newest_pass().ok_or("no generation has passed its check yet")?;
    let record = repository.store.record(generation).map_err(|error| error.to_string())?;
    let checker = repository.checker();
    let mut run =
        Run { repository, record: &record, undamaged: None, seed, cancel, on_step, damages: Vec::new() };
    let (outcome, message) = run.all();
    let damages = run.damages;
    if cancel.is_cancelled() {
        return Ok(None);
    }
    if repository.checker() != checker {
        return Err("the programs of the check were exchanged while the control ran, so that it proves nothing: it is to run again".to_owned());
    }
    let control = NegativeControl {
        outcome,
        time: jiff::Timestamp::now(),
        generation: Some(generation),
        message,
        seed: Some(seed),
        profile: HexDigest::parse(repository.config.profile.digest()),
        damages,
    };
    repository.record_control(&control).map_err(|error| error.to_string())?;
    let name = &repository.config.name;
    match control.trust() {
        Trust::NotTrusted => {
            tracing::error!(repository = name, %generation, message = control.message, "the checker is NOT TRUSTED");
        }
        trust => {
            let trust = trust.as_str();
            tracing::info!(repository = name, %generation, trust, message = control.message, "negative control");
        }
    }
    Ok(Some(control))
}

/// A seed that nobody chose.
pub fn new_seed() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _, RandomState};
    RandomState::new().build_hasher().finish()
}

struct Run<'a> {
    repository: &'a Repository,
    record: &'a Record,
    /// The check that passed, once it has.
    undamaged: Option<Undamaged>,
    seed: u64,
    cancel: &'a CancellationToken,
    on_step: &'a dyn Fn(&str),
    damages: Vec<ControlDamage>,
}

impl Run<'_> {
    fn all(&mut self) -> (Outcome, String) {
        (self.on_step)("the check on undamaged data");
        let undamaged = verify::check_all(self.repository, self.record, self.cancel, &|_| {});
        match undamaged.map(|(report, plan)| (verify::outcome(report.outcome), report, plan)) {
            Ok((Outcome::Pass, _, plan)) => self.undamaged = Some(plan.into_undamaged()),
            Ok((_, report, _)) => {
                let text = format!(
                    "the check does not pass the undamaged data: {}: {}",
                    report.reason, report.message
                );
                return (Outcome::Inconclusive, text);
            }
            Err(error) => return (Outcome::Inconclusive, error),
        }
        let listed = &self.repository.config.profile.controls;
        let planned = self.plan(listed);
        let planned = match planned {
            Ok(planned) => planned,
            Err(error) => return (Outcome::Inconclusive, error),
        };
        if !planned.is_empty() {
            return self.listed(planned);
        }
        let default = |damage, page_bytes| Control { files: "*".into(), damage, page_bytes, places: 2 };
        let own = [
            default(DamageKind::FlipByte, 4096),
            default(DamageKind::ZeroPage, 512),
            default(DamageKind::SwapPages, 4096),
            default(DamageKind::Truncate, 4096),
        ];
        match self.plan(&own) {
            Ok(planned) => self.own(planned),
            Err(error) => (Outcome::Inconclusive, error),
        }
    }

    /// Each must be found.
    fn listed(&mut self, planned: Vec<(Control, Vec<Candidate>)>) -> (Outcome, String) {
        let (mut found, mut missed, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
        for (number, (control, candidates)) in planned.iter().enumerate() {
            let name = format!("{} of {}", control.damage.as_str(), control.files);
            match self.one(number, control, candidates) {
                Some(Outcome::Fail) => found.push(name),
                Some(Outcome::Pass) => missed.push(name),
                // Not every file is a database, and only some databases have such an index.
                None if is_of_databases(control.damage) && !self.cancel.is_cancelled() => {}
                _ => unknown.push(name),
            }
        }
        let count = found.len();
        if found.is_empty() && missed.is_empty() && unknown.is_empty() {
            return (Outcome::Inconclusive, "there is no file to damage".to_owned());
        }
        if !missed.is_empty() {
            return (Outcome::Pass, format!("the check passed damaged data: {}", missed.join(", ")));
        }
        if !unknown.is_empty() {
            let text = format!("the check could not do its work, or no place fits: {}", unknown.join(", "));
            return (Outcome::Inconclusive, text);
        }
        (
            Outcome::Fail,
            format!(
                "found {} of {} of damage: {}",
                found.len(),
                show::counted(count as u64, "kind"),
                found.join(", ")
            ),
        )
    }

    /// One must be found: nobody has said which of them such a check can see.
    fn own(&mut self, planned: Vec<(Control, Vec<Candidate>)>) -> (Outcome, String) {
        let mut outcomes = Vec::new();
        for (number, (control, candidates)) in planned.iter().enumerate() {
            let outcome = self.one(number, control, candidates);
            if outcome == Some(Outcome::Fail) {
                return (Outcome::Fail, format!("{} was found", control.damage.as_str()));
            }
            outcomes.extend(outcome);
        }
        if outcomes.is_empty() {
            return (Outcome::Inconclusive, "there is no file to damage".to_owned());
        }
        if outcomes.contains(&Outcome::Inconclusive) {
            return (Outcome::Inconclusive, "the check could not do its work on damaged data".to_owned());
        }
        (Outcome::Pass, format!("the check passed damaged data, in {} places", self.damages.len()))
    }

    /// Makes one damage, in one place after the other until it is found. `None` when no place fits.
    fn one(&mut self, number: usize, control: &Control, candidates: &[Candidate]) -> Option<Outcome> {
        let mut worst = None;
        for place in 0..control.places as usize {
            if self.cancel.is_cancelled() {
                return None;
            }
            let candidate = &candidates[place % candidates.len()];
            let file = candidate.path.to_string();
            (self.on_step)(&format!("{} in {file}", control.damage.as_str()));
            let mut dice = Dice::new(self.seed, number, place);
            let mut made = None;
            let undamaged =
                self.undamaged.as_ref().ok_or("the check of undamaged data has not passed".to_owned());
            let plan = undamaged.and_then(|undamaged| {
                Plan::with_damage(self.repository, self.record, &candidate.path, undamaged)
            });
            let report = plan.and_then(|plan| {
                let prepare = |workspace: &Workspace| {
                    let folder = workspace.root_folder(&candidate.root).map_err(|error| error.to_string())?;
                    let done =
                        damage(&folder, &candidate.in_root, control.damage, control.page_bytes, &mut dice);
                    made = done.map_err(|error| format!("{file}: {error}"))?;
                    if made.is_some() { Ok(()) } else { Err("no place fits".to_owned()) }
                };
                let mut plan = plan;
                let report = verify::check_planned(
                    self.repository,
                    self.record,
                    &plan,
                    self.cancel,
                    &|_| {},
                    prepare,
                )?;
                plan.settle(&report)?;
                Ok(report)
            });
            let Some(what) = made else {
                if let Err(error) = report {
                    tracing::debug!(file, error, "no damage was made");
                }
                continue;
            };
            if leaves_out(&report, &candidate.in_root) {
                continue;
            }
            let (outcome, reason) = told(report);
            self.damages.push(ControlDamage {
                kind: control.damage.as_str().to_owned(),
                file,
                what,
                outcome,
                reason,
            });
            match (outcome, worst) {
                (Outcome::Fail, _) => return Some(Outcome::Fail),
                // One place at which nothing is known keeps the others from telling that it misses all.
                (Outcome::Inconclusive, _) | (_, Some(Outcome::Inconclusive)) => {
                    worst = Some(Outcome::Inconclusive);
                }
                (outcome, _) => worst = Some(outcome),
            }
        }
        worst
    }

    /// The files for each control; those that no file fits are left out.
    fn plan(&self, controls: &[Control]) -> Result<Vec<(Control, Vec<Candidate>)>, String> {
        let own = controls.iter().all(|control| control.files == "*");
        let mut planned: Vec<(_, _, Vec<Candidate>)> =
            controls.iter().filter_map(|control| Some((control, control.matcher()?, Vec::new()))).collect();
        let number = GenerationNumber(self.record.generation);
        let path = self.repository.store.generation_path(number).join(MANIFEST);
        let fault = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let file = File::open(&path).map_err(|error| fault(&error))?;
        let mut reader = ManifestReader::open(BufReader::new(file)).map_err(|error| fault(&error))?;
        while let Some(entry) = reader.next_entry().map_err(|error| fault(&error))? {
            if entry.kind() != EntryKind::File || entry.size == 0 {
                continue;
            }
            let path = validate_entry(&entry).map_err(|error| fault(&error))?;
            let Some((root, in_root)) = place(&self.record.roots, &path) else { continue };
            for (control, matches, candidates) in &mut planned {
                if matches(&in_root) && is_data(&in_root, control.damage, own) {
                    let candidate = Candidate {
                        path: path.clone(),
                        root: root.clone(),
                        in_root: in_root.clone(),
                        size: entry.size,
                    };
                    keep_largest(candidates, candidate, control.damage);
                }
            }
        }
        let planned = planned.into_iter().filter(|(.., candidates)| !candidates.is_empty());
        Ok(planned.map(|(control, _, candidates)| (control.clone(), candidates)).collect())
    }
}

fn is_of_databases(kind: DamageKind) -> bool {
    matches!(kind, DamageKind::SqliteFullText | DamageKind::SqliteWalFrame)
}

/// True if the check passed and names this file as not covered: the configuration leaves it out of what decides, so the damage
/// in it says nothing of the checker.
fn leaves_out(report: &Result<CheckReport, String>, in_root: &TreePath) -> bool {
    let Ok(report) = report else { return false };
    let name = in_root.to_string();
    let mut parts = report.steps.iter().flat_map(|step| &step.not_covered);
    verify::outcome(report.outcome) == Outcome::Pass && parts.any(|it| it.part == name)
}

fn told(report: Result<CheckReport, String>) -> (Outcome, String) {
    match report {
        Ok(report) => (verify::outcome(report.outcome), report.reason),
        Err(error) => (Outcome::Inconclusive, error),
    }
}

/// A file that may be damaged.
#[derive(Debug, Clone)]
struct Candidate {
    path: TreePath,
    root: String,
    in_root: TreePath,
    size: u64,
}

/// The root that a path of the tree is in, and the path in it.
fn place(roots: &[Root], path: &TreePath) -> Option<(String, TreePath)> {
    roots.iter().find_map(|root| {
        let inner = match root.subdirectory.as_bytes() {
            b"" => path.as_bytes(),
            folder => path.as_bytes().strip_prefix(folder)?.strip_prefix(b"/")?,
        };
        Some((root.name.clone(), TreePath::parse(inner).ok()?))
    })
}

fn name(path: &TreePath) -> &[u8] {
    path.as_bytes().rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

fn is_data(path: &TreePath, kind: DamageKind, own: bool) -> bool {
    if kind == DamageKind::PostgresqlItem {
        // The first segment of a relation's main file: a number and nothing else.
        return name(path).iter().all(u8::is_ascii_digit);
    }
    let end = name(path).rsplit(|byte| *byte == b'.').next().unwrap_or_default();
    !own || !NOT_DATA.iter().any(|not| not.as_bytes() == end)
}

/// Keeps the [`CANDIDATES`] best, the best first: relations that are somebody's data before others, larger before smaller.
fn keep_largest(candidates: &mut Vec<Candidate>, candidate: Candidate, kind: DamageKind) {
    let rank = |candidate: &Candidate| {
        let number = std::str::from_utf8(name(&candidate.path)).ok().and_then(|name| name.parse().ok());
        let is_users =
            kind == DamageKind::PostgresqlItem && number.is_some_and(|it: u64| it >= FIRST_NORMAL_OID);
        (is_users, candidate.size, candidate.path.clone())
    };
    let at = candidates.partition_point(|other| rank(other) > rank(&candidate));
    if at < CANDIDATES {
        candidates.insert(at, candidate);
        candidates.truncate(CANDIDATES);
    }
}
