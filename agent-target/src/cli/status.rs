//! `status`: when was it last proven good, and what is done here, on one screen.

use assay_common::{
    cli::{
        screen::{lines, row, safe},
        show,
    },
    verdict::timestamp_from_proto,
};
use assay_proto::v1::{Generation, GetTargetStatusResponse, Outcome, TargetRepositoryStatus};
use jiff::Timestamp;

use super::{examine, keep};

/// All repositories.
pub(super) fn text(status: &GetTargetStatusResponse) -> String {
    let now = status.now.as_ref().and_then(timestamp_from_proto).unwrap_or_else(Timestamp::now);
    let mut text = format!("{} (assay-target {})\n", safe(&status.agent), safe(&status.version));
    for repository in &status.repositories {
        one(&mut text, repository, status.now.as_ref(), now);
    }
    if let Some(checks) = status.checks.as_ref().filter(|checks| checks.waiting > 0) {
        let waited = show::so_far(checks.oldest_since.as_ref(), now);
        let (running, waiting, at_a_time) = (checks.running, checks.waiting, checks.at_a_time);
        lines(
            &mut text,
            "checks",
            &format!("{running} running, {waiting} waiting, the first for {waited}; {at_a_time} at a time"),
        );
    }
    // After the answer to the one question.
    for trouble in &status.troubles {
        lines(&mut text, "TROUBLE", trouble);
    }
    lines(&mut text, "", &show::certificate(status.certificate_expires.as_ref()));
    text
}

/// What the newest verdict on a generation says, where that is a PASS.
fn says(text: &mut String, generation: &Generation) {
    if generation.outcome() == Outcome::Pass {
        row(text, "  says", &show::says(generation.outcome(), &generation.sentence));
    }
}

fn one(
    text: &mut String,
    repository: &TargetRepositoryStatus,
    asked: Option<&prost_types::Timestamp>,
    now: Timestamp,
) {
    let name = safe(&repository.repository);
    let age = repository.last_pass_age_seconds;
    match &repository.verified {
        None => text.push_str(&format!("{name}: never proven good\n")),
        Some(generation) => {
            let mark = generation.mark.as_ref().and_then(|mark| mark.time.as_ref());
            text.push_str(&format!(
                "{name}: proven good {} ago, at {}, generation {}\n",
                show::age(age),
                show::time(mark),
                generation.number
            ));
            says(text, generation);
        }
    }
    let max_age = repository.overdue_after_seconds;
    if max_age > 0 && repository.verified.is_some() && age > max_age {
        row(text, "  OVERDUE", &format!("there should be a PASS every {}", show::age(max_age)));
    }
    if let Some(latest) = &repository.latest {
        let outcome = match latest.outcome() {
            Outcome::Unspecified => "not checked yet".to_owned(),
            outcome => format!("{} {}", show::outcome(outcome), safe(&latest.reason)),
        };
        let sealed = show::ago(latest.sealed.as_ref(), now);
        row(text, "  newest", &format!("generation {}, {outcome}, sealed {sealed}", latest.number));
        if repository.verified.as_ref().is_none_or(|verified| verified.number != latest.number) {
            says(text, latest);
        }
    }
    // A run that made no generation, or a later check of an older one.
    if let Some(last) = &repository.last_verdict {
        let ended = show::ago(last.time.as_ref(), now);
        let of =
            if last.generation > 0 { format!(" of generation {}", last.generation) } else { String::new() };
        let (outcome, reason) = (show::outcome(last.outcome()), safe(&last.reason));
        row(text, "  verdict", &format!("{outcome} {reason}{of}, {ended} ({})", safe(&last.id)));
        if last.outcome() != Outcome::Pass {
            lines(text, "", &last.message);
        }
    }
    if let Some(found) = &repository.changed_without_trace {
        lines(text, "  CHANGED", &show::traceless(found, now));
    }
    if !repository.doing.is_empty() {
        row(
            text,
            "  now",
            &format!("{} (run {})", safe(&repository.doing), safe(&repository.current_run_id)),
        );
    }
    if let Some(wait) = &repository.check_wait {
        let waited = show::so_far(wait.since.as_ref(), now);
        row(
            text,
            "  waits",
            &format!("for a check slot, {waited} so far, {}", show::queued(wait.before as usize)),
        );
    }
    row(
        text,
        "  checker",
        &safe(&examine::trust(
            repository.negative_control.as_ref(),
            repository.former_control.as_ref(),
            asked,
        )),
    );
    if let Some(scrub) = &repository.scrub {
        lines(text, "  scrub", keep::scrub_status(scrub).trim_start_matches("scrub of "));
    }
    if let Some(last) = &repository.last_restore {
        let what = if last.complete { "restored" } else { "not all of it was restored" };
        let (bytes, when) = (show::bytes(last.total_bytes), show::ago(last.time.as_ref(), now));
        row(
            text,
            "  restore",
            &format!(
                "generation {}, {bytes}, {what}{} in {:.1} s, {when}, by {}",
                last.generation,
                match (last.unverified.is_empty(), last.unproven) {
                    (false, _) => " UNVERIFIED",
                    (true, true) => ", by a check that was not proven",
                    (true, false) => "",
                },
                last.seconds,
                safe(&last.by)
            ),
        );
    }
    let free = show::bytes(repository.free_bytes);
    row(text, "  kept", &format!("{}, {free} free", show::counted(repository.generations, "generation")));
}
