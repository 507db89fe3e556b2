//! From a sealed generation to a signed verdict: workspace, check, evidence, signature, ledger.

mod checking;
mod gather;

use std::sync::Arc;

use assay_common::{
    id::{GenerationNumber, RunId},
    profile::{Depth as ProfileDepth, Profile},
    telemetry,
    verdict::{
        Attribution, CARRIED_STATEMENTS, Coverage, Depth, FaultOrigin, HexDigest, Mark, NotCovered, Outcome,
        OverlayFile, PartResults, PartsChecked, Patch, ProfileUsed, Step, Times, Trust, Verdict, Versions,
        WorkspaceKind as UsedKind, WorkspaceUsed, output_tail,
    },
};
use assay_proto::v1::ReadAgain;
use tokio::sync::watch;
use tokio_stream::{Stream, StreamExt as _, wrappers::WatchStream};
use tokio_util::sync::CancellationToken;

use crate::{
    ahead,
    carried::{self, Plan},
    check::{self, CheckReport, StepEnd, StepReport},
    check_queue::{NotStarted, Wanted},
    keep::prune,
    repository::{
        CheckState, Repository,
        occupancy::{Checking, Lease},
    },
    store::Record,
    trust::schedule,
    workspace::WorkspaceKind,
};

pub(crate) use checking::{check_all, check_in_full, check_planned};

/// Why a check has no verdict that nobody wanted any more before it started.
const NOT_WANTED: &str = "the check was given up while it waited for its turn";
/// The checker says two things of the same bytes.
pub(crate) const CONTRADICTION: &str = "checker-contradiction";
/// Findings of one step that go into a verdict; more of the same would not tell more.
const FINDINGS: usize = 100;

/// Who waits for a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AskedBy {
    /// The source of the run, which can be asked to read again.
    Source,
    /// An operator, or a schedule.
    Operator,
}

/// Tells those who follow a check how it goes on.
pub(crate) struct Teller<'a> {
    pub(crate) step: &'a dyn Fn(&str),
    pub(crate) read_again: &'a dyn Fn(Vec<ReadAgain>),
    /// Ends the check.
    pub(crate) cancel: CancellationToken,
    /// Which place it has among those that wait.
    pub(crate) wanted: Wanted,
}

impl Teller<'_> {
    fn step(&self, step: &str) {
        (self.step)(step);
    }

    fn ask(&self, wanted: Vec<ReadAgain>) {
        (self.read_again)(wanted);
    }
}

/// Starts the check of a generation on a thread of its own. It goes on whoever follows it, and frees the repository when it ends:
/// with a verdict, by a panic, or because there is no thread for it.
pub fn start(
    repository: Arc<Repository>,
    lease: Lease<Checking>,
    id: RunId,
    record: Record,
    asked_by: AskedBy,
) {
    // A thread, not a task: the sandbox dies with the thread that started it.
    let body = move || {
        let _of_run = telemetry::of_run(&id).entered();
        let teller = Teller {
            step: &|step| {
                lease.tell(|state| {
                    step.clone_into(&mut state.step);
                    state.step_of = step_of(&repository.config.profile, step);
                });
            },
            read_again: &|wanted| lease.tell(|state| state.read_again = Some(wanted.into())),
            cancel: repository.ending.child_token(),
            wanted: Wanted::Now,
        };
        let done = check_and_record(&repository, &id, &record, asked_by, &teller);
        match done {
            Err(why) if why == NOT_WANTED => {
                tracing::info!("the check was given up before it started");
                return lease.give_back(why);
            }
            Err(error) => {
                tracing::error!(error, "the check has no verdict");
                lease.done(Err(error));
            }
            done => lease.done(done),
        }
        ahead::lay_out_tree(&repository);
        prune::after_verdict(&repository);
        schedule::after_verdict(&repository);
        ahead::copy_files(&repository);
    };
    if let Err(error) = std::thread::Builder::new().name("check".to_owned()).spawn(body) {
        tracing::error!(%error, "no thread for the check");
    }
}

/// The states of a check as they come, up to the one that is its end.
pub fn follow(state: watch::Receiver<CheckState>) -> impl Stream<Item = CheckState> + Send {
    let mut ended = false;
    WatchStream::new(state).take_while(move |state| {
        let more = !ended;
        ended |= state.done.is_some();
        more
    })
}

/// The versions that a verdict names.
pub fn versions(source: Option<String>) -> Versions {
    Versions { source, target: env!("CARGO_PKG_VERSION").to_owned() }
}

/// Checks a generation, finds out where a fault came in, signs what came out and keeps it.
pub(crate) fn check_and_record(
    repository: &Repository,
    id: &RunId,
    record: &Record,
    asked_by: AskedBy,
    teller: &Teller<'_>,
) -> Result<(String, String), String> {
    let recorded = check_unless_cancelled(repository, id, record, asked_by, teller)?;
    recorded.ok_or_else(|| "the check was cancelled".to_owned())
}

/// The same; nothing is recorded, and `None` given, when the check was cancelled.
pub(crate) fn check_unless_cancelled(
    repository: &Repository,
    id: &RunId,
    record: &Record,
    asked_by: AskedBy,
    teller: &Teller<'_>,
) -> Result<Option<(String, String)>, String> {
    let asked = jiff::Timestamp::now();
    let _slot = match repository.check_slot(teller.wanted, &teller.cancel, teller.step) {
        Ok(slot) => slot,
        Err(NotStarted::WaitedTooLong { wait, at_a_time }) if teller.wanted == Wanted::Now => {
            let judged = not_started(wait, at_a_time, repository.checker());
            let times = (asked, jiff::Timestamp::now());
            return keep(repository, id, record, &judged, asked_by, times).map(Some);
        }
        Err(NotStarted::Cancelled) if teller.wanted == Wanted::Now => return Err(NOT_WANTED.to_owned()),
        // What is due by the clock comes again.
        Err(_) => return Ok(None),
    };
    let check_started = jiff::Timestamp::now();
    let checker = repository.checker();
    tracing::info!(generation = record.generation, "the check starts");
    // An operator who has a generation checked again wants to know what it is, not what it was.
    let may_carry = asked_by == AskedBy::Source && !record.full_check && reads_carried(record, asked_by);
    let checked = check_as_far_as_needed(repository, record, may_carry, (checker, check_started), teller);
    let check_finished = jiff::Timestamp::now();
    let mut judged = match checked {
        Ok((report, plan)) => Judged {
            outcome: outcome(report.outcome),
            reason: report.reason.clone(),
            message: report.message.clone(),
            report: Some(report),
            plan: Some(plan),
            attribution: None,
            checker,
        },
        Err(message) => Judged {
            outcome: Outcome::Inconclusive,
            reason: "workspace-failed".to_owned(),
            message,
            report: None,
            plan: None,
            attribution: None,
            checker,
        },
    };
    let mut rotten = None;
    if let (Outcome::Fail, Some(report)) = (judged.outcome, &judged.report) {
        let gathered = gather::gather(repository, id, record, report, asked_by, teller);
        if gathered.attribution.fault == FaultOrigin::Checker {
            // Nothing is known of the data when what is said of it can also be said of data that is good.
            judged.outcome = Outcome::Inconclusive;
            judged.message =
                format!("{} (it had said: {})", gathered.attribution.evidence[0], judged.message);
            judged.reason = CONTRADICTION.to_owned();
        }
        judged.attribution = Some(gathered.attribution);
        rotten = gathered.rotten;
    }
    if teller.cancel.is_cancelled() {
        return Ok(None);
    }
    let times = (check_started, check_finished);
    let recorded = keep(repository, id, record, &judged, asked_by, times)?;
    if let Some(gather::Rotten { record, report, attribution }) = rotten {
        keep_rotten(repository, &record, report, attribution, times);
    }
    Ok(Some(recorded))
}

/// A check that found no slot has looked at nothing.
fn not_started(wait: std::time::Duration, at_a_time: usize, checker: HexDigest) -> Judged {
    let message = format!(
        "the check waited for {} behind the checks of other repositories and was not started; {at_a_time} run at a time\nHINT: run \
         assay-target verify when there is time, let more checks run at a time (agent.checks_at_a_time), spread the schedules, or let a check \
         wait longer (agent.check_wait)",
        humantime::format_duration(wait)
    );
    Judged {
        outcome: Outcome::Inconclusive,
        reason: "check-not-started".to_owned(),
        message,
        report: None,
        plan: None,
        attribution: None,
        checker,
    }
}

/// True if whoever gets the verdict reads what it says of carried results.
fn reads_carried(record: &Record, asked_by: AskedBy) -> bool {
    asked_by == AskedBy::Operator || record.statements.is_some_and(|form| form >= CARRIED_STATEMENTS)
}

/// Checks a generation, and carries what may be carried. Results of another version of the engine are not: then all is checked.
fn check_as_far_as_needed(
    repository: &Repository,
    record: &Record,
    may_carry: bool,
    (checker, started): (HexDigest, jiff::Timestamp),
    teller: &Teller<'_>,
) -> Result<(CheckReport, Plan), String> {
    let check =
        |plan: &Plan| check_planned(repository, record, plan, &teller.cancel, teller.step, |_| Ok(()));
    if may_carry {
        let mut plan = Plan::carrying(repository, checker, record, started)?;
        let report = check(&plan)?;
        let is_of_other_engine = plan.is_of_other_engine(&report);
        match plan.settle(&report) {
            Ok(()) if !is_of_other_engine => return Ok((report, plan)),
            Ok(()) => tracing::info!("the engine's version has changed: the check looks at all parts"),
            Err(why) => tracing::warn!(why, "nothing is carried: the check looks at all parts"),
        }
    }
    let mut plan = Plan::full(repository, checker, record, started)?;
    let report = check(&plan)?;
    plan.settle(&report)?;
    Ok((report, plan))
}

/// A generation that had passed is known to be bad now: that is a verdict of its own.
fn keep_rotten(
    repository: &Repository,
    record: &Record,
    report: CheckReport,
    attribution: Attribution,
    times: (jiff::Timestamp, jiff::Timestamp),
) {
    let judged = Judged {
        outcome: Outcome::Fail,
        reason: report.reason.clone(),
        message: report.message.clone(),
        report: Some(report),
        plan: None,
        attribution: Some(attribution),
        checker: repository.checker(),
    };
    let kept = match record.run_id.parse() {
        Ok(id) => keep(repository, &id, record, &judged, AskedBy::Operator, times).map(drop),
        Err(_) => Err("its record names no run".to_owned()),
    };
    if let Err(error) = kept {
        tracing::error!(
            generation = record.generation,
            error,
            "a generation went bad and has no verdict that says so"
        );
    }
}

/// What a check came to.
struct Judged {
    outcome: Outcome,
    reason: String,
    message: String,
    /// Absent when there was no workspace.
    report: Option<CheckReport>,
    /// The parts that this check looked at, and those whose results it carried.
    plan: Option<Plan>,
    attribution: Option<Attribution>,
    /// What the check was when it began.
    checker: HexDigest,
}

/// What a PASS says of the parts of its check. Later checks carry the results of the newest generation's alone, and of no check whose
/// programs were exchanged while it ran (`is_told` is false).
fn part_results(repository: &Repository, record: &Record, judged: &Judged, is_told: bool) -> PartResults {
    let (Outcome::Pass, true, Some(plan), Some(report)) =
        (judged.outcome, is_told, &judged.plan, &judged.report)
    else {
        return PartResults::default();
    };
    let latest = repository.store.latest().ok().flatten();
    let is_latest = latest == Some(GenerationNumber(record.generation));
    let passed = is_latest.then(|| plan.write_record(repository, report)).flatten();
    PartResults { carried: plan.carried(), record: passed }
}

/// Signs what came out and appends it to the ledger.
fn keep(
    repository: &Repository,
    id: &RunId,
    record: &Record,
    judged: &Judged,
    asked_by: AskedBy,
    (check_started, check_finished): (jiff::Timestamp, jiff::Timestamp),
) -> Result<(String, String), String> {
    let profile = &repository.config.profile;
    let root = HexDigest::parse(&record.root_digest).ok_or("the generation's record has no root digest")?;
    let source_statement = serde_json::to_vec(&record.source_statement)
        .ok()
        .and_then(|json| assay_common::dsse::Envelope::parse(&json).ok())
        .ok_or("the generation's record has no source statement")?;
    // An earlier key of the source may have signed it: which one may have, the ledger says.
    let (statement, _) =
        assay_common::verdict::verify_source_statement_among(&source_statement, repository.source_keys.all())
            .map_err(|error| error.to_string())?;
    let profile_digest = HexDigest::parse(profile.digest()).ok_or("the profile has no digest")?;
    let (checker, negative_control) = repository.checker_since(judged.checker);
    let mut message = judged.message.clone();
    if let (Outcome::Pass, None, Some(former)) =
        (judged.outcome, &negative_control, repository.former_control())
    {
        message.push_str(&format!(
            "\nThe checker has changed since its negative control of {}: its profile, a variable or a program of it. It does not count until \
             another control has passed",
            former.time.strftime("%Y-%m-%d %H:%M:%SZ")
        ));
    }
    if let Some(control) = negative_control.as_ref().filter(|it| it.trust() == Trust::NotTrusted) {
        message.push_str(&format!(
            "\nThe checker is NOT TRUSTED: at {} it passed data that had been damaged on purpose",
            control.time.strftime("%Y-%m-%d %H:%M:%SZ")
        ));
    }
    let Judged { outcome, reason, report, attribution, .. } = judged;
    // An older source reads no verdict with a coverage, and refuses fields that it does not know.
    let with_coverage = statement.nonce.is_some() || asked_by == AskedBy::Operator;
    let mut verdict = Verdict {
        repository: repository.config.name.clone(),
        run_id: id.clone(),
        // Filled in when its place in the ledger is known.
        sequence: 0,
        previous: HexDigest::ZERO,
        outcome: *outcome,
        reason: reason.clone(),
        message: message.clone(),
        generation: Some(GenerationNumber(record.generation)),
        root: Some(root),
        mark: Some(Mark { id: record.mark.id.clone(), time: record.mark.time }),
        depth: report.as_ref().and_then(|report| report.depth).map(depth),
        profile: Some(ProfileUsed {
            name: profile.name.clone(),
            version: profile.version.clone(),
            digest: profile_digest,
        }),
        steps: report.iter().flat_map(|report| &report.steps).map(|it| step(it, with_coverage)).collect(),
        patches: report.iter().flat_map(patches).collect(),
        overlay_files: report.iter().flat_map(overlay_files).collect(),
        workspace: report.as_ref().map(|report| WorkspaceUsed {
            kind: match report.workspace {
                WorkspaceKind::Overlay => UsedKind::Overlay,
                WorkspaceKind::Reflink => UsedKind::Reflink,
                WorkspaceKind::Copy => UsedKind::Copy,
            },
            isolation: report.isolation.clone(),
            not_isolated: report.not_isolated.clone(),
        }),
        attribution: attribution.clone(),
        negative_control: negative_control.clone(),
        overrides: record.overrides.clone(),
        times: Times {
            opened: record.opened,
            sealed: Some(record.sealed),
            check_started: Some(check_started),
            check_finished: Some(check_finished),
            signed: jiff::Timestamp::now(),
        },
        versions: versions(Some(statement.source_version.clone())),
        source_statement: Some(source_statement.clone()),
        coverage: None,
        nonce: statement.nonce,
    };
    if with_coverage {
        let limit = repository.config.max_reading_age;
        let is_of_one = checker == judged.checker;
        let parts = part_results(repository, record, judged, is_of_one && reads_carried(record, asked_by));
        verdict.coverage = Some(Coverage::new(&verdict, &statement, checker, limit, parts));
    }
    let build = |sequence, previous| Verdict {
        sequence,
        previous,
        times: Times { signed: jiff::Timestamp::now(), ..verdict.times.clone() },
        ..verdict.clone()
    };
    let recorded = repository.record_verdict(build).map_err(|error| error.to_string())?;
    if let Some(parts) = verdict.coverage.as_ref().and_then(|coverage| coverage.check.parts_record) {
        carried::keep_record(&repository.store, parts);
    }
    let fault = attribution.as_ref().map(|attribution| attribution.fault.as_str());
    let (generation, verdict, message) =
        (record.generation, recorded.0.as_str(), message.replace('\n', "; "));
    match outcome {
        Outcome::Pass => {
            tracing::info!(run_id = %id, generation, verdict, %outcome, reason, message, fault, "verdict");
        }
        Outcome::Fail => {
            tracing::error!(run_id = %id, generation, verdict, %outcome, reason, message, fault, "verdict");
        }
        Outcome::Inconclusive | Outcome::NotRun => {
            tracing::warn!(run_id = %id, generation, verdict, %outcome, reason, message, fault, "verdict");
        }
    }
    Ok(recorded)
}

pub(crate) fn outcome(outcome: check::Outcome) -> Outcome {
    match outcome {
        check::Outcome::Pass => Outcome::Pass,
        check::Outcome::Fail => Outcome::Fail,
        check::Outcome::Inconclusive => Outcome::Inconclusive,
    }
}

/// Which of the profile's steps is called `step`, from 1, and how many there are. A step that runs for each member of a list has the
/// member behind its name.
fn step_of(profile: &Profile, step: &str) -> Option<(u32, u32)> {
    let is_it = |name: &str| {
        step.strip_prefix(name)
            .is_some_and(|rest| !rest.starts_with(|it: char| it.is_alphanumeric() || it == '-'))
    };
    let at = profile.checks.iter().position(|check| is_it(&check.name))?;
    Some((u32::try_from(at + 1).ok()?, u32::try_from(profile.checks.len()).ok()?))
}

fn depth(depth: ProfileDepth) -> Depth {
    match depth {
        ProfileDepth::L0 => Depth::L0,
        ProfileDepth::L1 => Depth::L1,
        ProfileDepth::L2 => Depth::L2,
        ProfileDepth::L3 => Depth::L3,
    }
}

fn step(report: &StepReport, with_coverage: bool) -> Step {
    let (exit_code, signal) = match report.end {
        StepEnd::Exited(code) => (Some(code), None),
        StepEnd::Signalled(signal) => (None, Some(signal)),
        StepEnd::TimedOut | StepEnd::Cancelled | StepEnd::Limited | StepEnd::NotStarted => (None, None),
    };
    let mut output = Vec::new();
    for captured in [&report.stdout, &report.stderr] {
        output.extend_from_slice(&captured.head);
        output.extend_from_slice(&captured.tail);
    }
    // Of both streams, each by its own digest: a text that any reader of the verdict can put together again.
    let both = format!("stdout {}\nstderr {}\n", report.stdout.digest, report.stderr.digest);
    Step {
        name: report.name.clone(),
        attempt: u32::try_from(report.attempt).unwrap_or(u32::MAX),
        argv: report.argv.clone(),
        exit_code,
        signal,
        duration_ms: u64::try_from(report.duration.as_millis()).unwrap_or(u64::MAX),
        output_digest: HexDigest(*blake3::hash(both.as_bytes()).as_bytes()),
        output_tail: output_tail(&output),
        outcome: outcome(report.outcome),
        findings: report.findings.iter().take(FINDINGS).cloned().collect(),
        depth: with_coverage.then_some(depth(report.depth)),
        engine: report.engine.clone().filter(|_| with_coverage),
        checked: report.checked.iter().filter(|_| with_coverage).map(parts).collect(),
        not_covered: report.not_covered.iter().filter(|_| with_coverage).map(missed).collect(),
    }
}

fn parts(parts: &check::PartsChecked) -> PartsChecked {
    PartsChecked { kind: parts.kind.clone(), count: parts.count }
}

fn missed(missed: &check::NotCovered) -> NotCovered {
    NotCovered { part: missed.part.clone(), reason: missed.reason.clone(), message: missed.message.clone() }
}

fn patches(report: &CheckReport) -> impl Iterator<Item = Patch> + '_ {
    report.patches.iter().filter_map(|applied| {
        Some(Patch {
            file: applied.record.file.to_string(),
            digest_before: HexDigest::parse(&applied.record.digest_before)?,
            digest_after: HexDigest::parse(&applied.record.digest_after)?,
            key: applied.record.key.clone(),
            value: applied.record.value.clone(),
        })
    })
}

fn overlay_files(report: &CheckReport) -> impl Iterator<Item = OverlayFile> + '_ {
    report.overlay_files.iter().filter_map(|overlay| {
        let digest = HexDigest::parse(&overlay.file.digest)?;
        Some(OverlayFile { path: overlay.file.path.to_string(), digest })
    })
}
