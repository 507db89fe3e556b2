//! The report as one page that needs nothing else, and prints well.

use assay_common::{
    audit::Noted,
    cli::{
        screen::{harmless, safe},
        show,
    },
    verdict::{NoteSubject, Outcome},
};
use jiff::Timestamp;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{Entry, OfRepository, Report, VERIFY};

const STYLE: &str = include_str!("report.css");

fn time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

fn or_dash(value: Option<String>) -> String {
    value.unwrap_or_else(|| "-".to_owned())
}

/// The page.
pub(crate) fn page(report: &Report) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                // It is opened as a file, by whoever it is given to.
                meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'";
                title { "Assay report " (safe(&report.target)) " " (time(report.from)) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "Backups that were proven, and those that were not" }
                p {
                    "Target " b { (safe(&report.target)) } ", from " b { (time(report.from)) } " until before " b { (time(report.to)) } ". Made at "
                    (time(report.made)) " by assay-target " (report.version) " on the target's host."
                }
                @if report.unfinished { p .warn { "The period has not ended: what comes later is not in this report." } }
                (summary(report))
                @for repository in &report.repositories { (one(repository)) }
                (how_to_verify(report))
                (requirements(report))
                (glossary())
            }
        }
    };
    harmless(&page.into_string()).into_owned()
}

fn summary(report: &Report) -> Markup {
    html! {
        table {
            thead { tr { th { "repository" } th .n { "PASS" } th .n { "FAIL" } th .n { "INCONCLUSIVE" } th .n { "NOT_RUN" } th .n { "not verified" } th .n { "missed slots" } th { "ledger" } } }
            tbody {
                @for repository in &report.repositories {
                    @let count = |word: &str| repository.verdicts.iter().filter(|entry| entry.verified && entry.outcome.to_string() == word).count();
                    @let unverified = repository.verdicts.iter().filter(|entry| !entry.verified).count();
                    tr {
                        td { (safe(&repository.repository)) }
                        @for word in ["PASS", "FAIL", "INCONCLUSIVE", "NOT_RUN"] { td .n { (count(word)) } }
                        td .n { @if unverified > 0 { b .bad { (unverified) } } @else { "0" } }
                        td .n {
                            @match &repository.missed {
                                Some(missed) => (missed.iter().map(|stretch| stretch.slots).sum::<i64>()),
                                None => "not asked",
                            }
                        }
                        td { @if repository.sound { "sound" } @else { b .bad { "NOT SOUND" } } }
                    }
                }
            }
        }
    }
}

fn one(repository: &OfRepository) -> Markup {
    html! {
        section {
            h2 { (safe(&repository.repository)) }
            p {
                "Ledger: " @if repository.sound { "sound" } @else { b .bad { "NOT SOUND" } }
                @if let Some(head) = &repository.head { ", head " code { (head) } }
            }
            @if !repository.findings.is_empty() { ul { @for finding in &repository.findings { li .bad { (safe(finding)) } } } }
            @if !repository.acknowledged.is_empty() { ul { @for line in &repository.acknowledged { li { (safe(line)) } } } }
            @if repository.keys.len() > 2 { ul { @for line in &repository.keys { li { (safe(line)) } } } }
            h3 { "Exceptions" }
            @if repository.verdicts.is_empty() { p { "There is no verdict of this period." } }
            @else if repository.exceptions.is_empty() { p { "None: every verdict of the period is a PASS." } }
            @else {
                table {
                    thead { tr { th { "verdict" } th { "outcome" } th { "reason" } th { "signed" } th { "next PASS" } } }
                    tbody {
                        @for exception in &repository.exceptions {
                            tr {
                                td { (exception.id) } td { (outcome(exception.outcome, exception.verified)) } td { (safe(&exception.reason)) } td { (time(exception.signed)) }
                                td {
                                    @match (&exception.next_pass, exception.next_pass_signed) {
                                        (Some(id), Some(signed)) => { (id) ", " (time(signed)) }
                                        _ => b .bad { "none so far" },
                                    }
                                }
                            }
                            @for note in &exception.notes { tr { td colspan="5" { (said(note)) } } }
                        }
                    }
                }
            }
            h3 { "Missed slots" }
            @match &repository.missed {
                None => p { "Not asked for: " code { "--every" } " says how often a run is due." },
                Some(missed) if missed.is_empty() => p { "None." },
                Some(missed) => ul { @for stretch in missed { li { (stretch.slots) " between " (time(stretch.from)) " and " (time(stretch.to)) @for note in &stretch.notes { br; (said(note)) } } } },
            }
            @let elsewhere = noted_elsewhere(repository);
            @if !elsewhere.is_empty() { ul { @for note in elsewhere { li { (said(note)) } } } }
            h3 { "Verdicts" }
            @if repository.verdicts.is_empty() { p .warn { "There is no verdict of this period: nothing was proven in it." } }
            @else {
                table .verdicts {
                    thead { tr { th { "verdict" } th { "outcome" } th { "mark" } th { "signed between" } th { "what it rests on" } th { "digest" } } }
                    tbody { @for entry in &repository.verdicts { (verdict(entry)) } }
                }
            }
        }
    }
}

/// An operator's note.
fn said(note: &Noted) -> Markup {
    html! { (safe(&note.line())) }
}

/// Notes on slots that are not listed as missed: nobody asked, or there was a run.
fn noted_elsewhere(repository: &OfRepository) -> Vec<&Noted> {
    let is_listed = |slot| repository.missed.iter().flatten().any(|stretch| stretch.has(slot));
    let is_elsewhere = |note: &&Noted| matches!(note.about, NoteSubject::Slot(slot) if !is_listed(slot));
    repository.notes.iter().filter(is_elsewhere).collect()
}

/// What a verdict that does not verify says is nobody's word.
fn outcome(outcome: Outcome, is_verified: bool) -> Markup {
    html! { @if is_verified { (outcome) } @else { b .bad { "NOT VERIFIED" } " (it says " (outcome) ")" } }
}

fn verdict(entry: &Entry) -> Markup {
    let read = entry.files.zip(entry.files_read).map(|(files, read)| format!("{read} of {files} files read"));
    let oldest = entry.oldest_reading.map(|oldest| format!("oldest reading {}", time(oldest)));
    let carried = entry.oldest_carried.map(|oldest| format!("oldest carried result {}", time(oldest)));
    let left = entry.not_covered.map(|parts| format!("{} not covered", show::counted(parts, "part")));
    let depth = entry.depth.as_ref().map(|depth| format!("depth {depth}"));
    let size = entry.content_bytes.map(show::bytes);
    let took = entry.check_milliseconds.map(|took| format!("checked in {}", show::took(took)));
    let control = entry.control.map(|control| {
        let when = entry.control_time.map_or_else(String::new, |when| format!(" at {}", time(when)));
        format!("checker {control}{when}")
    });
    let weak = (!entry.not_isolated.is_empty())
        .then(|| format!("not isolated: {}", safe(&entry.not_isolated.join(", "))));
    let profile = entry.profile.as_ref().map(|profile| format!("profile {}", safe(profile)));
    let engine = entry.engine.as_ref().map(|engine| safe(engine));
    let facts = [depth, profile, engine, control, read, oldest, carried, left, size, took, weak];
    html! {
        tr {
            td { (entry.id) @if let Some(generation) = entry.generation { br; "generation " (generation) } }
            td { (outcome(entry.outcome, entry.verified)) br; (safe(&entry.reason)) }
            td { (or_dash(entry.mark.map(time))) }
            td { @match &entry.interval { Some(interval) => (safe(interval)), None => b .bad { "not verified: see the ledger's findings" } } }
            td {
                (facts.into_iter().flatten().collect::<Vec<_>>().join("; "))
                @for note in &entry.notes { br; (said(note)) }
            }
            td .digest { (entry.digest) }
        }
    }
}

fn how_to_verify(report: &Report) -> Markup {
    html! {
        section {
            h2 { "How to verify it without this program" }
            p { "Copy the folder " code { "ledger" } " of a repository's store, and put the target's public keys into a folder " code { "keys" }
                " beside it: get them from where you trust them, not from the target. With " code { "b3sum" } ", " code { "openssl" } " and a shell:" }
            pre { (VERIFY) }
            p { "It names each entry whose signature or link is wrong. The last line must be the head of this report, as long as no verdict has come since:" }
            ul { @for repository in &report.repositories { @if let Some(head) = &repository.head { li { (safe(&repository.repository)) ": " code { "head " (head) } } } } }
            p { "What ties a verdict to the files: its " code { "root" } " is the digest of the file " code { "manifest" } " of its generation, and "
                code { "manifest.b3" } " has the digest of each file. In the folder of a generation:" }
            pre { "b3sum --derive-key 'assay v1 manifest root' --no-names manifest\nb3sum --check manifest.b3" }
        }
    }
}

fn requirements(report: &Report) -> Markup {
    html! {
        section {
            h2 { "Where this may be evidence" }
            p { "The table maps parts of this report to requirements. It does not say that they are met." }
            table {
                thead { tr { th { "requirement" } th { "about" } th { "parts" } } }
                tbody { @for requirement in &report.requirements {
                    tr { td { (requirement.of) } td { (requirement.about) } td { (requirement.parts.join(", ")) } }
                } }
            }
        }
    }
}

fn glossary() -> Markup {
    html! {
        section {
            h2 { "Words" }
            p { "PASS: the check ran to its end and found no damage. FAIL: it found damage. INCONCLUSIVE: it could not do its work, and nothing is known of the data. "
                "NOT_RUN: the run ended before the check. The mark is the point in time that a backup stands for. A checker is trusted when it has found data that was damaged on purpose." }
        }
    }
}
