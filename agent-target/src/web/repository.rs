//! The page of one repository, and that of one of its verdicts.

use std::collections::BTreeMap;

use assay_common::{
    audit::Noted,
    cli::{
        explain,
        screen::{harmless, safe},
        show,
    },
    id::GenerationNumber,
    ledger::EntryId,
    verdict::{MAX_LISTED, Outcome, Verdict},
};
use assay_proto::v1::Generation;
use jiff::Timestamp;
use maud::{Markup, html};

use super::{
    ledgers::Verification,
    page,
    row::{Row, outcome_of},
    strip,
};
use crate::{keep::prune, repository::Repository, status};

/// Generations that are listed.
const GENERATIONS: usize = 200;
/// Verdicts on one page of the ledger.
pub(super) const VERDICTS: usize = 100;
/// Findings and parts that are listed.
const LISTED: usize = MAX_LISTED;

/// A verdict of the ledger: its id, and what it says or why it is not believed.
type Read = (String, Result<Verdict, String>);

/// The page. Verdicts are listed from `before` on, newest first.
pub(super) fn whole(repository: &Repository, row: &Row, before: Option<EntryId>, now: Timestamp) -> Markup {
    let newest = row.facts.as_ref().and_then(|facts| facts.newest.as_ref());
    let newest = newest.map(|newest| read(repository, EntryId(newest.sequence)));
    html! {
        section class=(format!("hero {}", row.level.class())) {
            div .left { (page::head(row, false)) (page::whys(row)) }
            @if let Some(facts) = &row.facts {
                div .right { (page::newest(facts, now)) (page::plots(facts)) }
            }
        }
        @if let Some(facts) = &row.facts {
            section .card {
                h2 { "90 days" }
                (strip::strip(&facts.days, now, true))
                (strip::legend())
            }
            section .card { h2 { "How sure the newest proof is" } (page::sure(facts)) }
        }
        @match &newest {
            Some((id, Ok(verdict))) => { h2 .part { "The newest verdict, " (id) } (verdict_parts(verdict)) }
            Some((id, Err(error))) => {
                section .card .bad { h2 { "The newest verdict, " (id) } p .fault { "It is not shown: " (safe(error)) } }
            }
            None => section .card { h2 { "The newest verdict" } p .muted { "There is none yet." } },
        }
        (generations(repository, now))
        (ledger(repository, row, before))
    }
}

/// A verdict from the ledger, when its signatures verify: a browser cannot verify them.
pub(super) fn read(repository: &Repository, id: EntryId) -> Read {
    (id.to_string(), repository.verified_verdict(id).map_err(|error| error.to_string()))
}

/// What `explain` says of a verdict, its steps with their findings, and what was not covered.
pub(super) fn verdict_parts(verdict: &Verdict) -> Markup {
    let last = verdict.steps.last().map(|step| step.attempt);
    let not_covered =
        verdict.coverage.as_ref().map(|coverage| (&coverage.not_covered, coverage.not_covered_total));
    html! {
        section .card {
            h2 { "What it says" }
            pre .explain { (harmless(&explain(verdict))) }
        }
        section .card {
            h2 { "Steps of the check" }
            @if verdict.steps.is_empty() { p .muted { "The run ended before its check." } }
            @else {
                div .scroll { table {
                    thead { tr { th { "step" } th { "outcome" } th { "end" } th .number { "took" } th { "looked at" } } }
                    tbody {
                        @for step in &verdict.steps {
                            tr {
                                td { (safe(&step.name)) @if Some(step.attempt) != last { span .muted { " (another candidate)" } } }
                                td { (badge(step.outcome)) }
                                td {
                                    @match (step.exit_code, step.signal) {
                                        (Some(code), _) => { "exit " (code) }
                                        (_, Some(signal)) => { "signal " (signal) }
                                        _ => "no exit",
                                    }
                                }
                                td .number { (show::took(step.duration_ms)) }
                                td {
                                    @for (index, parts) in step.checked.iter().take(LISTED).enumerate() {
                                        @if index > 0 { ", " } (show::of_kind(parts.count, &safe(&parts.kind)))
                                    }
                                }
                            }
                            @for finding in step.findings.iter().take(LISTED) {
                                tr .finding { td colspan="5" { (safe(finding)) } }
                            }
                            @if step.findings.len() > LISTED {
                                tr .finding { td colspan="5" { "and " (step.findings.len() - LISTED) " more" } }
                            }
                        }
                    }
                } }
            }
        }
        section .card {
            h2 { "Parts not covered" }
            @match not_covered {
                None => p .muted { "The verdict does not say." },
                Some((_, 0)) => p { "Nothing that is known." },
                Some((parts, total)) => {
                    ul .plain {
                        @for part in parts.iter().take(LISTED) {
                            li { code { (safe(&part.part)) } " " span .muted { (safe(&part.reason)) } ": " (safe(&part.message)) }
                        }
                        @if total > parts.len().min(LISTED) as u64 {
                            li .muted { "and " (total - parts.len().min(LISTED) as u64) " more" }
                        }
                    }
                }
            }
        }
    }
}

fn badge(outcome: Outcome) -> Markup {
    let (word, class) = strip::OUTCOMES[strip::place(outcome)];
    html! { span class=(format!("badge {class}")) { (word) } }
}

/// Why generations are kept; nothing where no rule decides.
fn kept(repository: &Repository, now: Timestamp) -> Result<BTreeMap<u64, String>, String> {
    let pruned = prune::prune(repository, now, true).map_err(|error| error.to_string())?;
    let words = |decision: &crate::keep::retention::Decision| {
        let words: Vec<_> = decision.keep.iter().map(ToString::to_string).collect();
        if words.is_empty() { "goes with the next pruning".to_owned() } else { words.join(", ") }
    };
    Ok(pruned.decisions.iter().map(|decision| (decision.number.0, words(decision))).collect())
}

fn generations(repository: &Repository, now: Timestamp) -> Markup {
    let numbers = repository.store.generations();
    let all = numbers.as_ref().map_or(0, Vec::len);
    let kept = kept(repository, now);
    let listed =
        numbers.as_ref().map(|numbers| numbers.iter().rev().take(GENERATIONS).copied().collect::<Vec<_>>());
    html! {
        section .card {
            h2 { "Generations" }
            @match &listed {
                Err(error) => p .fault { "They cannot be listed: " (safe(&error.to_string())) },
                Ok(numbers) if numbers.is_empty() => p .muted { "There is none yet." },
                Ok(numbers) => {
                    @if let Err(error) = &kept { p .muted { "Kept: " (safe(error)) } }
                    div .scroll { table {
                        thead { tr {
                            th .number { "number" } th { "outcome" } th { "mark" } th .number { "size" } th .number { "new" } th { "kept because" }
                        } }
                        tbody { @for number in numbers { (generation(repository, *number, kept.as_ref().ok())) } }
                    } }
                    @if all > numbers.len() { p .muted { "The newest " (numbers.len()) " of " (all) ": assay-target generations lists all." } }
                }
            }
        }
    }
}

fn generation(
    repository: &Repository,
    number: GenerationNumber,
    kept: Option<&BTreeMap<u64, String>>,
) -> Markup {
    let record = match repository.store.record(number) {
        Ok(record) => record,
        Err(error) => {
            return html! { tr .finding { td .number { (number) } td colspan="5" .fault { "its record cannot be read: " (safe(&error.to_string())) } } };
        }
    };
    let shown: Generation = status::of_generation(repository, &record, repository.last_verdict(number));
    let (word, class) = outcome_of(shown.outcome());
    html! {
        tr {
            td .number { (shown.number) }
            td {
                span class=(format!("badge {class}")) { (word) }
                @if shown.verified { " " span .tag { "verified" } }
                @if shown.pinned { " " span .tag { "pinned" } }
            }
            td { (show::time(shown.mark.as_ref().and_then(|mark| mark.time.as_ref()))) }
            td .number { (show::bytes(shown.total_bytes)) }
            td .number { (show::bytes(shown.new_bytes)) }
            td {
                @if let Some(words) = kept.and_then(|kept| kept.get(&shown.number)) { (words) }
                @if !shown.pin_note.is_empty() { " “" (safe(&shown.pin_note)) "”" }
            }
        }
        @for rotten in &shown.rot { tr .finding { td colspan="6" .fault { "corrupt on the target's disk: " (safe(rotten)) } } }
    }
}

/// The result of verifying the ledger.
fn soundness(verification: Option<&Verification>) -> Markup {
    let Some(verification) = verification else {
        return html! { p .muted { "It has not been verified since the agent started." } };
    };
    html! {
        @match &verification.audit {
            Err(error) => p .fault { "It cannot be read: " (safe(error)) },
            Ok(audit) if audit.findings.is_empty() => {
                p { span .badge.pass { "sound" } " " (show::counted(audit.verdicts as u64, "verdict")) ", every signature and link verified at " (page::time(verification.time)) }
            }
            Ok(audit) => {
                p { span .badge.fail { "NOT SOUND" } " verified at " (page::time(verification.time)) }
                ul .plain {
                    @for finding in audit.findings.iter().take(LISTED) { li .fault { (safe(&finding.to_string())) } }
                    @if audit.findings.len() > LISTED { li .fault { "and " (audit.findings.len() - LISTED) " more" } }
                }
            }
        }
        @if let Ok(audit) = &verification.audit {
            @if let Some(head) = &audit.head { p { "head " code .long { (head) } } }
            @if audit.keys.iter().any(|period| period.to.is_some()) {
                ul .plain { @for period in &audit.keys { li { (safe(&period.line())) } } }
            }
            @for one in audit.acknowledged.iter().take(LISTED) { p .fact { (safe(&one.line())) } }
            @for note in audit.notes.iter().rev().take(LISTED) { p .fact { (safe(&note.line())) } }
        }
    }
}

fn ledger(repository: &Repository, row: &Row, before: Option<EntryId>) -> Markup {
    let verification = row.facts.as_ref().and_then(|facts| facts.ledger.as_deref());
    let intervals: BTreeMap<u64, String> = match verification.map(|it| &it.audit) {
        Some(Ok(audit)) => {
            audit.intervals.iter().map(|interval| (interval.verdict, interval.line())).collect()
        }
        _ => BTreeMap::new(),
    };
    let mut past = repository.history();
    past.retain(|one| before.is_none_or(|before| one.sequence < before.sequence()));
    let older = past.len() > VERDICTS;
    let shown = past.iter().rev().take(VERDICTS);
    let oldest = past.get(past.len().saturating_sub(VERDICTS)).map(|one| EntryId(one.sequence));
    let unreadable = repository.unreadable_entries();
    html! {
        section .card #ledger {
            h2 { "Ledger" }
            (soundness(verification))
            @for entry in unreadable.iter().take(LISTED) { p .fault { "entry " (EntryId(*entry)) " cannot be read" } }
            @if past.is_empty() { p .muted { "There is no verdict here." } }
            @else {
                div .scroll { table {
                    thead { tr { th { "verdict" } th { "outcome" } th { "reason" } th .number { "generation" } th { "signed between" } } }
                    tbody {
                        @for one in shown {
                            @let id = EntryId(one.sequence).to_string();
                            tr {
                                td { a href=(format!("{}/verdict/{id}", page::path_of(&row.name))) { (id) } }
                                td { (badge(one.outcome)) }
                                td { (safe(&one.reason)) }
                                td .number { @if let Some(generation) = one.generation { (generation) } @else { "-" } }
                                td .interval {
                                    @match intervals.get(&one.sequence) {
                                        // Its id stands in the first column.
                                        Some(line) => (safe(line.split_once(": ").map_or(line, |(_, rest)| rest))),
                                        None => { "by the target's clock at " (page::time(one.signed)) }
                                    }
                                }
                            }
                        }
                    }
                } }
                p .pages {
                    @if before.is_some() { a href=(format!("{}#ledger", page::path_of(&row.name))) { "newest" } " " }
                    @if let (true, Some(oldest)) = (older, oldest) {
                        a href=(format!("{}?before={oldest}#ledger", page::path_of(&row.name))) { "older than " (oldest) }
                    }
                }
            }
        }
    }
}

/// The page of one verdict.
pub(super) fn verdict_page(repository: &str, id: &str, verdict: &Verdict, notes: &[Noted]) -> Markup {
    html! {
        section .card {
            p { a href=(page::path_of(repository)) { (safe(repository)) } }
            h1 { "Verdict " (id) " " (badge(verdict.outcome)) }
            p .muted { "run " (safe(verdict.run_id.as_str())) ", signed at " (page::time(verdict.times.signed)) " by the target's clock" }
        }
        @if !notes.is_empty() {
            section .card {
                h2 { "Notes of operators" }
                ul .plain { @for note in notes { li { (safe(&note.line())) } } }
            }
        }
        (verdict_parts(verdict))
    }
}
