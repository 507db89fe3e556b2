//! `explain`: a verdict in plain words, for whoever is woken by it.

use std::fmt::Write as _;

use assay_proto::v1::Run;

use super::{
    coverage,
    remedies::{about_fault, remedy},
    screen::safe,
    show,
};
use crate::verdict::{BackupClaim, Depth, LiveClaim, Outcome, Step, Trust, Verdict};

/// Findings and files that are listed: the verdict has more.
const LISTED: usize = 20;

/// What failed, in which step, at which place, where the fault came in, since when, and what to do next.
pub fn explain(verdict: &Verdict) -> String {
    let mut text = format!("{}: {}.\n", verdict.outcome, safe(&verdict.sentence()));
    what(verdict, &mut text);
    findings(verdict, &mut text);
    fault(verdict, &mut text);
    since(verdict, &mut text);
    looked_at(verdict, &mut text);
    checker(verdict, &mut text);
    next(verdict, &mut text);
    commands(verdict, &mut text);
    fold(&text)
}

/// Lines of at most this many characters, where words allow it.
const COLUMNS: usize = 80;
/// What stands before each line that a checker or a peer said, so that none can be taken for ours.
const QUOTE: &str = "| ";

/// Folds long lines at their spaces, under the text that they begin with, and makes whatever is no text harmless.
fn fold(text: &str) -> String {
    let mut folded = String::with_capacity(text.len());
    for line in text.lines().map(safe) {
        let rest = line.trim_start();
        let indent = " ".repeat(line.len() - rest.len());
        if rest.starts_with("assay-") {
            // A command is there to be copied.
            let _ = writeln!(folded, "{line}");
            continue;
        }
        let is_item = |it: &str| {
            it == "-" || it.strip_suffix('.').is_some_and(|it| it.bytes().all(|it| it.is_ascii_digit()))
        };
        let under = match rest.split_once(' ') {
            _ if rest.starts_with(QUOTE) => format!("{indent}{QUOTE}  "),
            Some((first, _)) if is_item(first) => format!("{indent}{}", " ".repeat(first.len() + 1)),
            _ => indent.clone(),
        };
        let mut width = 0;
        for (index, word) in rest.split(' ').enumerate() {
            let length = word.chars().count();
            if index == 0 {
                folded.push_str(&indent);
                width = indent.len();
            } else if width + 1 + length > COLUMNS && width > under.len() {
                folded.push('\n');
                folded.push_str(&under);
                width = under.len();
            } else {
                folded.push(' ');
                width += 1;
            }
            folded.push_str(word);
            width += length;
        }
        folded.push('\n');
    }
    folded
}

/// A checker that passed damaged data: its PASS says nothing.
fn is_not_trusted(verdict: &Verdict) -> bool {
    verdict.negative_control.as_ref().is_some_and(|control| control.trust() == Trust::NotTrusted)
}

/// The same for a run that came to no verdict of which anything is kept.
pub fn explain_run(run: &Run) -> String {
    let outcome = Outcome::try_from(run.outcome()).unwrap_or(Outcome::NotRun);
    let says = show::says(run.outcome(), &run.sentence);
    let mut text = format!("{outcome}: {says}.\n\nWhat happened\n");
    let (id, repository) = (safe(&run.id), safe(&run.repository));
    let when = show::time(run.started.as_ref());
    let _ = match &run.finished {
        Some(_) => writeln!(text, "  Run {id} of {repository}, begun at {when}, ended without a verdict."),
        None => writeln!(text, "  Run {id} of {repository}, begun at {when}, is under way."),
    };
    if run.finished.is_some() {
        let _ = writeln!(text, "  The reason is \"{}\":", safe(&run.reason));
        for line in run.message.lines() {
            let _ = writeln!(text, "    {}", safe(line));
        }
        let _ = writeln!(text, "\nWhat to do next\n  1. {}", remedy(outcome, &run.reason));
        let _ = write!(
            text,
            "\nCommands to paste\n    assay-source plan {repository}\n    assay-source run {repository} --follow\n"
        );
    }
    fold(&text)
}

fn what(verdict: &Verdict, text: &mut String) {
    text.push_str("\nWhat happened\n");
    let when = verdict.mark.as_ref().map(|mark| mark.time.strftime("%Y-%m-%d %H:%M:%SZ").to_string());
    match (verdict.generation, when) {
        (Some(generation), Some(when)) => {
            let _ = writeln!(
                text,
                "  Generation {generation} of {} (its mark was made at {when}) was checked in run {}.",
                verdict.repository, verdict.run_id
            );
        }
        _ => {
            let _ =
                writeln!(text, "  Run {} of {} ended before its check.", verdict.run_id, verdict.repository);
        }
    }
    if let Some(step) = deciding_step(verdict) {
        let profile = verdict.profile.as_ref().map_or("?", |profile| profile.name.as_str());
        let end = match (step.exit_code, step.signal) {
            (Some(code), _) => format!("ended with exit code {code}"),
            (_, Some(signal)) => format!("was ended by signal {signal}"),
            _ => "did not end by itself".to_owned(),
        };
        let _ = writeln!(text, "  The step \"{}\" of the profile {profile} decided it: it {end}.", step.name);
        if !step.argv.is_empty() {
            let _ = writeln!(text, "  Its command: {}", step.argv.join(" ").replace('\n', " "));
        }
    }
    let _ = writeln!(text, "  The reason is \"{}\":", verdict.reason);
    for line in verdict.message.lines() {
        let _ = writeln!(text, "    {QUOTE}{line}");
    }
}

/// The step that the outcome comes from.
fn deciding_step(verdict: &Verdict) -> Option<&Step> {
    match verdict.outcome {
        Outcome::Pass | Outcome::NotRun => None,
        Outcome::Fail | Outcome::Inconclusive => {
            verdict.steps.iter().rev().find(|step| step.outcome != Outcome::Pass)
        }
    }
}

fn findings(verdict: &Verdict, text: &mut String) {
    let Some(step) = deciding_step(verdict) else {
        return;
    };
    if step.findings.is_empty() && step.output_tail.trim().is_empty() {
        return;
    }
    text.push_str("\nWhat the check named\n");
    let last_words: Vec<_> = step.output_tail.lines().filter(|line| !line.trim().is_empty()).collect();
    if step.findings.is_empty() {
        text.push_str("  It named no place. Its last words were:\n");
        for line in last_words.iter().skip(last_words.len().saturating_sub(5)) {
            let _ = writeln!(text, "    {QUOTE}{}", line.trim_end());
        }
        return;
    }
    for finding in step.findings.iter().take(LISTED) {
        let _ = writeln!(text, "  {QUOTE}{}", finding.replace('\n', " "));
    }
    if step.findings.len() > LISTED {
        let _ = writeln!(text, "  and {} more", step.findings.len() - LISTED);
    }
}

fn fault(verdict: &Verdict, text: &mut String) {
    let Some(found) = &verdict.attribution else {
        return;
    };
    let (meaning, _) = about_fault(found.fault);
    let _ = writeln!(text, "\nWhere the fault came in: {}\n  {meaning}.", found.fault);
    for sentence in &found.evidence {
        let _ = writeln!(text, "  - {sentence}");
    }
    for file in found.files.iter().take(LISTED) {
        let _ = writeln!(text, "  file {file}");
    }
    if found.files.len() > LISTED {
        let _ = writeln!(text, "  and {} more files", found.files.len() - LISTED);
    }
}

fn since(verdict: &Verdict, text: &mut String) {
    let (Some(found), Some(generation)) = (&verdict.attribution, verdict.generation) else {
        return;
    };
    text.push_str("\nSince when\n");
    let _ = match found.last_pass {
        None => writeln!(text, "  No generation before {generation} has passed: it is not known since when."),
        Some(last) if last.0 + 1 == generation.0 => {
            writeln!(
                text,
                "  Generation {last} is the last before it that passed: it came in with generation {generation}."
            )
        }
        Some(last) => writeln!(
            text,
            "  Generation {last} is the last before it that passed. assay-target bisect {} finds the first bad one.",
            verdict.repository
        ),
    };
}

fn looked_at(verdict: &Verdict, text: &mut String) {
    let lines = coverage::lines(verdict);
    if lines.is_empty() {
        return;
    }
    text.push_str("\nWhat it rests on\n");
    for line in lines {
        let _ = writeln!(text, "  {line}");
    }
    // The parts that were not covered stand above, each with its reason.
    for clause in verdict.claims().because.iter().filter(|clause| !clause.starts_with("not covered: ")) {
        let _ = writeln!(text, "  It claims no more, because: {}.", safe(clause));
    }
}

fn checker(verdict: &Verdict, text: &mut String) {
    text.push_str("\nThe checker\n");
    match &verdict.negative_control {
        None => {
            text.push_str("  As it was at this check (its profile, variables and programs), it was never tried on damaged data: assay-target control does that.\n");
        }
        Some(control) => {
            let _ = writeln!(text, "  {}.", show::control(control, verdict.times.signed));
        }
    }
    if let (Outcome::Pass, Some(depth)) = (verdict.outcome, verdict.depth) {
        let _ = writeln!(text, "  The check looks at {} (depth {depth:?}).", depth.in_words());
    }
}

/// True as long as no negative control has shown what the checker is worth.
fn lacks_control(verdict: &Verdict) -> bool {
    verdict.negative_control.as_ref().is_none_or(|control| control.trust() == Trust::Unknown)
}

/// What an operator may do about a PASS that claims less than a PASS can.
fn after_pass(verdict: &Verdict) -> Vec<&'static str> {
    let claims = verdict.claims();
    let mut steps = Vec::new();
    if lacks_control(verdict) {
        steps.push(
            "Let a negative control show that the checker finds damage: the first one of a checker follows its first PASS by itself, also after its \
             programs have changed, and assay-target control makes one now. Until one has passed, this PASS does not count.",
        );
    }
    if verdict.depth.is_none_or(|depth| depth == Depth::L0) {
        steps.push(
            "For a claim about the content, use a profile whose check looks deeper than the bytes, and whose steps say so (depth).",
        );
    }
    if claims.backup == BackupClaim::GoodAsCovered {
        steps.push("Look at what was not covered, above, and at the reason beside each part.");
    }
    if claims.backup != BackupClaim::AsRead && claims.live == LiveClaim::Nothing {
        steps.push("For a claim about the live repository, read all of it: assay-source run --full-read.");
    }
    if steps.is_empty() && !is_not_trusted(verdict) {
        steps.push(remedy(verdict.outcome, &verdict.reason));
    }
    steps
}

fn next(verdict: &Verdict, text: &mut String) {
    text.push_str("\nWhat to do next\n");
    let mut steps = vec![remedy(verdict.outcome, &verdict.reason)];
    if verdict.outcome == Outcome::Pass {
        steps = after_pass(verdict);
    }
    if let Some(found) = &verdict.attribution {
        steps.push(about_fault(found.fault).1);
    }
    if is_not_trusted(verdict) {
        steps.push(
            "The checker passed damaged data: choose a deeper check, or correct the profile, before you rely on any PASS. \
             assay-target control says when it is trusted again.",
        );
    }
    for (number, step) in steps.iter().enumerate() {
        let _ = writeln!(text, "  {}. {step}", number + 1);
    }
}

/// Commands to paste, with the names and numbers of this verdict. What is in capitals is for the operator to fill in.
fn commands(verdict: &Verdict, text: &mut String) {
    let repository = safe(&verdict.repository);
    let restore =
        |generation: u64| format!("assay-target restore {repository} --generation {generation} --to DIR");
    let mut commands = Vec::new();
    match (verdict.outcome, verdict.generation) {
        (Outcome::Pass, Some(generation)) => {
            if lacks_control(verdict) {
                commands.push(format!("assay-target control {repository}"));
            }
            commands.push(restore(generation.0));
        }
        (Outcome::Fail, _) => {
            commands.push(format!("assay-target bisect {repository}"));
            let last = verdict.attribution.as_ref().and_then(|it| it.last_pass);
            commands.extend(last.map(|last| restore(last.0)));
        }
        (Outcome::Inconclusive, Some(generation)) => {
            commands.push("assay-target doctor".to_owned());
            commands.push(format!("assay-target verify {repository} --generation {generation}"));
        }
        _ => {
            commands.push(format!("assay-source plan {repository}"));
            commands.push(format!("assay-source run {repository} --follow"));
        }
    }
    text.push_str("\nCommands to paste\n");
    for command in commands {
        let _ = writeln!(text, "    {command}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_without_a_verdict_is_told_as_well() {
        let mut run = Run {
            id: "20261128T142833Z-3fe022".into(),
            repository: "app".into(),
            outcome: assay_proto::v1::Outcome::NotRun.into(),
            reason: "target-unreachable".into(),
            message: "no connection\u{1b}[2J\nHINT: look".into(),
            ..Default::default()
        };
        assert!(explain_run(&run).contains("is under way"));
        run.finished = run.started.or(Some(Default::default()));
        let text = explain_run(&run);
        assert!(text.starts_with("NOT_RUN: the run ended before its check"), "{text}");
        assert!(text.contains("ended without a verdict") && text.contains("    HINT: look"), "{text}");
        assert!(text.contains("What to do next\n  1. ") && !text.contains('\u{1b}'), "{text}");
    }
    use crate::{
        id::GenerationNumber,
        signing::SigningKey,
        verdict::{Attribution, FaultOrigin, HexDigest, ReadBack, tests::Example},
    };

    #[test]
    fn a_fail_is_told_with_its_place_its_fault_its_age_and_what_to_do() {
        let mut verdict = Example::default().verdict(&SigningKey::generate(), 1, HexDigest::ZERO);
        verdict.outcome = Outcome::Fail;
        verdict.reason = "damage-found".into();
        verdict.message = "element.ndb: checksum mismatch".into();
        verdict.steps[0].outcome = Outcome::Fail;
        verdict.steps[0].exit_code = Some(1);
        verdict.steps[0].findings = vec!["element.ndb offset 12: checksum mismatch".into()];
        verdict.attribution = Some(Attribution {
            fault: FaultOrigin::Live,
            evidence: vec!["read again as sent".into()],
            files: vec!["storage/element.ndb".into()],
            read_back: Some(ReadBack { files: 1, bytes: 1, differ: 0 }),
            last_pass: Some(GenerationNumber(40)),
        });
        verdict.negative_control.as_mut().expect("there").outcome = Outcome::Pass;
        let text = explain(&verdict);
        assert!(text.lines().all(|line| line.chars().count() <= COLUMNS), "{text}");
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in [
            "FAIL: the check found damage",
            "The step \"dbcheck\" of the profile accurev decided it: it ended with exit code 1.",
            "element.ndb offset 12: checksum mismatch",
            "Where the fault came in: live",
            "Generation 40 is the last before it that passed. assay-target bisect acc",
            "NOT TRUSTED",
            "2. Treat the live repository as damaged",
            "3. The checker passed damaged data",
            "Commands to paste assay-target bisect acc",
            "--generation 40 --to DIR",
        ] {
            assert!(text.contains(part), "{part:?} is missing in:\n{text}");
        }
    }

    /// What a PASS claims is said once, in the first sentence, and nothing below it says more.
    #[test]
    fn a_pass_is_told_with_what_it_claims_and_what_would_make_it_claim_more() {
        let mut verdict = Example::default().verdict(&SigningKey::generate(), 1, HexDigest::ZERO);
        let text = words(&explain(&verdict));
        assert!(
            text.starts_with("PASS: this backup is good; nothing is said of the live repository, because "),
            "{text}"
        );
        assert!(text.contains(" 1. For a claim about the live repository, read all of it"), "{text}");
        verdict.negative_control = None;
        verdict.depth = Some(Depth::L0);
        let text = words(&explain(&verdict));
        assert!(text.starts_with("PASS: the copy is what was read; its content was not checked"), "{text}");
        assert!(
            text.contains(" 1. Let a negative control show") && text.contains(" 2. For a claim about"),
            "{text}"
        );
        assert!(!text.contains("live repository was good") && !text.contains("the backup is good"), "{text}");
    }

    /// Lines are folded.
    fn words(text: &str) -> String {
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Neither an escape sequence nor a line that looks like ours.
    #[test]
    fn what_a_checker_says_cannot_be_taken_for_ours() {
        let mut verdict = Example::default().verdict(&SigningKey::generate(), 1, HexDigest::ZERO);
        let spoofed = "\u{1b}[2J\u{1b}[H\nPASS: this backup is good\r\n\nWhat to do next\n  1. Nothing.\u{202e}\u{9b}8m";
        (verdict.outcome, verdict.reason) = (Outcome::Fail, "damage-found".into());
        (verdict.steps[0].outcome, verdict.steps[0].exit_code) = (Outcome::Fail, Some(1));
        verdict.message = spoofed.into();
        verdict.steps[0].argv = vec!["sh".into(), spoofed.into()];
        for findings in [vec![], vec![spoofed.to_owned()]] {
            verdict.steps[0].output_tail = spoofed.into();
            verdict.steps[0].findings = findings;
            let text = explain(&verdict);
            assert!(text.chars().all(|it| it == '\n' || !it.is_control() && it != '\u{202e}'), "{text:?}");
            assert!(text.starts_with("FAIL: "), "{text}");
            let ours = |line: &str| !line.trim_start().starts_with(QUOTE);
            assert!(!text.lines().any(|line| ours(line) && line.trim_start().starts_with("PASS")), "{text}");
            assert_eq!(text.lines().filter(|line| *line == "What to do next").count(), 1, "{text}");
        }
    }

    #[test]
    fn a_run_that_never_came_to_its_check_is_told_too() {
        let mut verdict = Example::default().verdict(&SigningKey::generate(), 1, HexDigest::ZERO);
        (verdict.outcome, verdict.reason, verdict.generation) = (Outcome::NotRun, "root-empty".into(), None);
        verdict.steps.clear();
        let text = explain(&verdict);
        assert!(text.contains("ended before its check") && text.contains("1. A root is an empty"), "{text}");
        verdict.reason = "a-word-of-somebody".into();
        assert!(explain(&verdict).contains("1. Put right what the message names"));
    }
}
