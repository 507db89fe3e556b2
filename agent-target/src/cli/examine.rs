//! How controls and bisections read for a person.

use std::{fmt::Write as _, process::ExitCode};

use assay_common::{
    cli::{screen::safe, show},
    verdict::timestamp_from_proto,
};
use assay_proto::v1::{BisectProgress, Bisected, NegativeControl, Outcome};

/// A control, whole.
pub(super) fn control(control: &NegativeControl) -> String {
    let word = match control.outcome() {
        Outcome::Fail => "TRUSTED: the check finds damage",
        Outcome::Pass => "NOT TRUSTED: the check passes damaged data",
        _ => "UNKNOWN: the check could not do its work",
    };
    let mut text = format!("{word}\n  {}\n", safe(&control.message));
    for damage in &control.damages {
        let _ = writeln!(
            text,
            "  {} in {}: {} -> {} {}",
            safe(&damage.kind),
            safe(&damage.file),
            safe(&damage.what),
            show::outcome(damage.outcome()),
            safe(&damage.reason)
        );
    }
    let _ = writeln!(text, "  generation {}, seed {}", control.generation, control.seed);
    text
}

/// 0 when the checker is trusted. Its FAIL is what is wanted.
pub(super) fn control_code(outcome: Outcome) -> ExitCode {
    ExitCode::from(match outcome {
        Outcome::Fail => 0,
        Outcome::Pass => 1,
        _ => 3,
    })
}

/// What is known of the checker, in a line.
pub(super) fn trust(
    control: Option<&NegativeControl>,
    former: Option<&prost_types::Timestamp>,
    now: Option<&prost_types::Timestamp>,
) -> String {
    let Some(control) = control else {
        if let Some(former) = former.and_then(timestamp_from_proto) {
            return format!(
                "whether the checker finds damage is unknown: it has changed (its profile, a variable or a program) since its negative control of {}; \
                 assay-target control makes another, and with control_every one follows by itself",
                former.strftime("%Y-%m-%d %H:%M:%SZ")
            );
        }
        return "whether the checker finds damage is unknown: there was no negative control".to_owned();
    };
    let word = match control.trust.as_str() {
        "trusted" => "the checker is trusted",
        "not-trusted" => "the checker is NOT TRUSTED",
        _ => "whether the checker finds damage is unknown",
    };
    let age = control
        .time
        .as_ref()
        .and_then(timestamp_from_proto)
        .zip(now.and_then(timestamp_from_proto))
        .map(|(time, now)| u64::try_from(time.duration_until(now).as_secs()).unwrap_or(0));
    let age = age.map_or_else(|| "of unknown age".to_owned(), |age| format!("{} old", show::age(age)));
    format!("{word}: negative control {age}; {}", control.message)
}

/// How a bisection goes on.
pub(super) fn bisecting(progress: &BisectProgress) -> String {
    match &progress.verdict {
        Some(verdict) => format!(
            "generation {}: {} {} (verdict {})\n",
            verdict.generation,
            show::outcome(verdict.outcome()),
            safe(&verdict.reason),
            safe(&verdict.id)
        ),
        None => format!("checking generation {}\n", progress.checking),
    }
}

/// What a bisection found.
pub(super) fn bisected(found: &Bisected) -> String {
    let mut text = format!("{}\n", safe(&found.message));
    if !found.inconclusive.is_empty() {
        let numbers: Vec<_> = found.inconclusive.iter().map(u64::to_string).collect();
        let _ = writeln!(text, "the check could do no work on: {}", numbers.join(", "));
    }
    if found.last_good > 0 {
        let _ = writeln!(text, "what changed from generation {} to {}:", found.last_good, found.first_bad);
    }
    for entry in &found.changes {
        let size = match entry.size_before == entry.size_after {
            true => String::new(),
            false => format!("  ({} to {})", show::bytes(entry.size_before), show::bytes(entry.size_after)),
        };
        let _ = writeln!(text, "  {:<8} {}{size}", safe(&entry.change), safe(&entry.path));
    }
    if found.further_changes > 0 {
        let _ = writeln!(text, "  and {} more", found.further_changes);
    }
    text
}
