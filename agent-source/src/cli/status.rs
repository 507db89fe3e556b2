//! `status`: when was it last proven good, and what comes next, on one screen.

use assay_common::{
    cli::{
        screen::{counted, lines, row, safe},
        show,
    },
    verdict::timestamp_from_proto,
};
use assay_proto::v1::{GetStatusResponse, Outcome, Phase, RepositoryStatus, Run};
use jiff::Timestamp;

/// All repositories.
pub(super) fn text(status: &GetStatusResponse) -> String {
    let now = status.now.as_ref().and_then(timestamp_from_proto).unwrap_or_else(Timestamp::now);
    let mut text = format!("{} (assay-source {})\n", safe(&status.agent), safe(&status.version));
    for repository in &status.repositories {
        one(&mut text, repository, now);
    }
    // After the answer to the one question.
    for trouble in &status.troubles {
        lines(&mut text, "TROUBLE", trouble);
    }
    lines(&mut text, "", &show::certificate(status.certificate_expires.as_ref()));
    text
}

fn one(text: &mut String, repository: &RepositoryStatus, now: Timestamp) {
    let name = safe(&repository.repository);
    match &repository.last_pass {
        None => text.push_str(&format!("{name}: never proven good\n")),
        Some(run) => text.push_str(&format!(
            "{name}: proven good {} ago, at {}, generation {}\n",
            show::age(repository.last_pass_age_seconds),
            show::time(run.mark.as_ref().and_then(|mark| mark.time.as_ref())),
            run.generation
        )),
    }
    // What the newest PASS says, whether it counts as a proof or not.
    let newest = repository.last_run.as_ref().filter(|run| run.outcome() == Outcome::Pass);
    if let Some(run) = newest.or(repository.last_pass.as_ref()).filter(|run| !run.sentence.is_empty()) {
        row(text, "  says", &show::says(Outcome::Pass, &run.sentence));
    }
    let max_age = repository.max_age_seconds;
    if max_age > 0 && repository.last_pass.is_some() && repository.last_pass_age_seconds > max_age {
        row(text, "  OVERDUE", &format!("there should be a PASS every {}", show::age(max_age)));
    }
    if let Some(run) = &repository.last_run {
        let ended = show::ago(run.finished.as_ref(), now);
        row(text, "  newest", &format!("{} {}, {ended}", show::outcome(run.outcome()), safe(&run.reason)));
        if run.outcome() != Outcome::Pass {
            lines(text, "", &run.message);
        }
    }
    if let Some(found) = &repository.changed_without_trace {
        lines(text, "  CHANGED", &show::traceless(found, now));
    }
    if let Some(run) = &repository.current_run {
        row(text, "  now", &under_way(run));
    }
    match &repository.next_run {
        Some(next) => row(
            text,
            "  next run",
            &format!("{}, at {}", show::until(Some(next), now), show::time(Some(next))),
        ),
        None => row(text, "  next run", "not scheduled (manual only)"),
    }
    if repository.missed_slots > 0 {
        row(
            text,
            "  missed",
            &format!("{} passed without a run", counted(repository.missed_slots, "slot", "slots")),
        );
    }
}

fn under_way(run: &Run) -> String {
    let mut text = show::phase(run.phase()).to_owned();
    if let Some(counts) = &run.counts
        && run.phase() == Phase::Replicating
    {
        let sent = show::bytes(counts.wire_bytes_out);
        text.push_str(&format!(", {} read, {sent} sent", show::bytes(counts.bytes_read)));
    }
    if !run.waiting.is_empty() {
        text.push_str(&format!(", waiting {}", safe(&run.waiting)));
    }
    if !run.check_step.is_empty() {
        text.push_str(&format!(", step {}", safe(&run.check_step)));
    }
    format!("{text} (run {})", run.id)
}

#[cfg(test)]
mod tests {
    use assay_common::{cli::screen::COLUMNS, verdict::timestamp_to_proto};
    use assay_proto::v1::{ChangedWithoutTrace, Counts, Mark};

    use super::*;

    #[test]
    fn the_last_proof_comes_first_and_all_of_it_fits() {
        let time = |text: &str| text.parse::<Timestamp>().ok().map(timestamp_to_proto);
        let mut failed = Run {
            reason: "licence-missing".to_owned(),
            message: "the licence of the copy does not belong to this host, and there is no other one\nHINT: configure overlay".to_owned(),
            finished: time("2026-11-23T12:30:00Z"),
            ..Default::default()
        };
        failed.set_outcome(Outcome::Inconclusive);
        let mut current = Run {
            id: "20261123T130000Z-7f3a9c".to_owned(),
            counts: Some(Counts { bytes_read: 5_000_000, wire_bytes_out: 1_000_000, ..Default::default() }),
            ..Default::default()
        };
        current.set_phase(Phase::Replicating);
        let passed = Run {
            generation: 41,
            mark: Some(Mark { time: time("2026-11-23T10:00:00Z"), ..Default::default() }),
            ..Default::default()
        };
        let status = GetStatusResponse {
            agent: "live".to_owned(),
            version: "1".to_owned(),
            now: time("2026-11-23T13:00:10Z"),
            repositories: vec![RepositoryStatus {
                repository: "app".to_owned(),
                last_pass: Some(passed),
                last_pass_age_seconds: 10_810,
                max_age_seconds: 7200,
                last_run: Some(failed),
                current_run: Some(current),
                next_run: time("2026-11-23T14:00:10Z"),
                missed_slots: 2,
                changed_without_trace: Some(ChangedWithoutTrace {
                    run_id: "20261123T110000Z-7f3a9c".to_owned(),
                    time: time("2026-11-23T11:00:10Z"),
                    files: 2,
                    paths: vec!["db/revs/0/3".to_owned()],
                    ..Default::default()
                }),
                ..Default::default()
            }],
            ..Default::default()
        };
        let text = text(&status);
        assert!(text.lines().all(|line| line.chars().count() <= COLUMNS), "{text}");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[1], "app: proven good 3 h ago, at 2026-11-23 10:00:00Z, generation 41");
        assert_eq!(lines[2], "  OVERDUE    there should be a PASS every 2 h");
        assert_eq!(lines[3], "  newest     INCONCLUSIVE licence-missing, 30 min ago");
        assert!(text.contains("             HINT: configure overlay\n"), "{text}");
        assert!(text.contains("  CHANGED    2 files without a trace, 2 h ago, in run"), "{text}");
        assert!(text.contains("db/revs/0/3\n"), "{text}");
        assert!(text.contains("  now        replicating, 5.0 MB read, 1.0 MB sent (run 2026"), "{text}");
        assert!(text.contains("  next run   in 60 min, at 2026-11-23 14:00:10Z\n"), "{text}");
    }
}
