//! Ledgers of the past: verdicts that are signed as agents sign them, at times of the test's own choice.

use std::{fs, path::Path};

use assay_common::{
    digest::ContentDigest,
    id::GenerationNumber,
    signing::SigningKey,
    verdict::{
        ControlDamage, Counts, Coverage, Depth, HexDigest, Mark, NegativeControl, NotCovered, Outcome,
        PartResults, PartsChecked, ProfileUsed, Readings, SourceStatement, Step, Times, Verdict, Versions,
        link_digest, sign_source_statement, sign_verdict,
    },
};
use jiff::{SignedDuration, Timestamp};

/// A verdict that is to be.
#[derive(Debug, Clone)]
pub(crate) struct Planned {
    /// When it was signed.
    pub(crate) signed: Timestamp,
    /// What came out.
    pub(crate) outcome: Outcome,
    /// The word for it.
    pub(crate) reason: &'static str,
    /// What is said of it.
    pub(crate) message: String,
    /// Content of the live tree, in bytes.
    pub(crate) content: u64,
    /// How long the check took.
    pub(crate) took: SignedDuration,
}

impl Planned {
    /// A PASS.
    pub(crate) fn pass(signed: Timestamp) -> Self {
        Self {
            signed,
            outcome: Outcome::Pass,
            reason: "check-passed",
            message: "all steps passed".to_owned(),
            content: 4_200_000_000,
            took: SignedDuration::from_secs(12),
        }
    }
}

/// Writes a ledger of these verdicts for a repository whose agents do not run and have written none yet.
pub(crate) fn write(
    folder: &Path,
    repository: &str,
    (target, source): (&SigningKey, &SigningKey),
    all: &[Planned],
) {
    let mut previous = HexDigest::ZERO;
    for (planned, sequence) in all.iter().zip(1..) {
        let signed = sign_verdict(&verdict(repository, source, planned, sequence, previous), target);
        let text = signed.expect("it holds together").to_json();
        previous = link_digest(text.as_bytes());
        fs::write(folder.join(format!("{sequence:09}.json")), text).expect("write");
    }
}

fn verdict(
    repository: &str,
    source: &SigningKey,
    planned: &Planned,
    sequence: u64,
    previous: HexDigest,
) -> Verdict {
    let before = |seconds| planned.signed - SignedDuration::from_secs(seconds) - planned.took;
    let is_sealed = planned.outcome != Outcome::NotRun;
    let mark = Mark { id: format!("backup mark {sequence}"), time: before(40) };
    let run_id = format!("{}-{:06x}", before(45).strftime("%Y%m%dT%H%M%SZ"), sequence & 0xff_ffff);
    let root = HexDigest(ContentDigest::of(run_id.as_bytes()).0);
    let not_covered = NotCovered {
        part: "log/<script>alert(1)</script>.log".to_owned(),
        reason: "unstable".to_owned(),
        message: "changed on every try while the source read it".to_owned(),
    };
    let statement = SourceStatement {
        repository: repository.to_owned(),
        run_id: run_id.parse().expect("an id"),
        mark: mark.clone(),
        root: Some(root),
        base_generation: (sequence > 1).then(|| GenerationNumber(sequence - 1)),
        counts: Counts { files: 41_880, total_bytes: planned.content, ..Default::default() },
        overrides: Vec::new(),
        source_version: env!("CARGO_PKG_VERSION").to_owned(),
        nonce: None,
        readings: Some(Readings {
            files_total: 41_880,
            bytes_total: planned.content,
            files_read_now: 612,
            bytes_read_now: planned.content / 9,
            oldest_reading: Some(before(40) - SignedDuration::from_hours(6 * 24)),
            newest_carried_reading: Some(before(40) - SignedDuration::from_hours(1)),
            not_covered: vec![not_covered],
            not_covered_total: 1,
            ..Default::default()
        }),
        not_copied: Vec::new(),
    };
    let (exit_code, findings) = match planned.outcome {
        Outcome::Fail => (Some(1), vec![planned.message.clone()]),
        Outcome::Inconclusive => (None, Vec::new()),
        Outcome::Pass | Outcome::NotRun => (Some(0), Vec::new()),
    };
    let step = Step {
        name: "amcheck".to_owned(),
        attempt: 0,
        argv: vec!["pg_amcheck".to_owned(), "--all".to_owned()],
        exit_code,
        signal: None,
        duration_ms: u64::try_from(planned.took.as_millis()).unwrap_or(0),
        output_digest: HexDigest([2; 32]),
        output_tail: String::new(),
        outcome: planned.outcome,
        findings,
        depth: Some(Depth::L2),
        engine: Some("PostgreSQL 15.14".to_owned()),
        checked: vec![PartsChecked { kind: "relations".to_owned(), count: 312 }],
        not_covered: Vec::new(),
    };
    let mut verdict = Verdict {
        repository: repository.to_owned(),
        run_id: run_id.parse().expect("an id"),
        sequence,
        previous,
        outcome: planned.outcome,
        reason: planned.reason.to_owned(),
        message: planned.message.clone(),
        generation: is_sealed.then_some(GenerationNumber(sequence)),
        root: is_sealed.then_some(root),
        mark: is_sealed.then_some(mark),
        depth: is_sealed.then_some(Depth::L2),
        profile: Some(ProfileUsed {
            name: "postgresql".to_owned(),
            version: "2".to_owned(),
            digest: HexDigest([1; 32]),
        }),
        steps: if is_sealed { vec![step] } else { Vec::new() },
        patches: Vec::new(),
        overlay_files: Vec::new(),
        workspace: None,
        attribution: None,
        negative_control: is_sealed.then(|| NegativeControl {
            outcome: Outcome::Fail,
            time: before(40) - SignedDuration::from_hours(50),
            generation: Some(GenerationNumber(1)),
            message: "2 of 2 damages were found".to_owned(),
            seed: Some(7),
            profile: Some(HexDigest([1; 32])),
            damages: vec![ControlDamage {
                kind: "flip-byte".to_owned(),
                file: "base/5/16384".to_owned(),
                what: "byte 12: 41 to 51".to_owned(),
                outcome: Outcome::Fail,
                reason: "damage-found".to_owned(),
            }],
        }),
        overrides: Vec::new(),
        times: Times {
            opened: Some(before(45)),
            sealed: is_sealed.then(|| before(2)),
            check_started: is_sealed.then(|| before(1)),
            check_finished: is_sealed.then(|| planned.signed - SignedDuration::from_secs(1)),
            signed: planned.signed,
        },
        versions: Versions {
            source: Some(env!("CARGO_PKG_VERSION").to_owned()),
            target: env!("CARGO_PKG_VERSION").to_owned(),
        },
        // What ended before there was anything to state.
        source_statement: is_sealed.then(|| sign_source_statement(&statement, source)),
        coverage: None,
        nonce: None,
    };
    if is_sealed {
        let checker = HexDigest([9; 32]);
        verdict.coverage = Some(Coverage::new(&verdict, &statement, checker, None, PartResults::default()));
    }
    verdict
}
