//! How runs, generations and verdicts read for a person: short lines, the outcome first.

use std::fmt::Write as _;

use assay_proto::v1::{self, Generation, Phase, Run};

use super::screen::{self, safe};
use crate::verdict::{
    BackupClaim, NegativeControl, Outcome, Trust, Verdict, coverage::meaning, timestamp_from_proto,
};

/// A number and the word for what it counts, which gets an `s` unless there is one of it.
pub fn counted(count: u64, word: &str) -> String {
    if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") }
}

/// A number and what it counts, where only the word for several is known: `12 tables`, `1 table`, `1 index`, `1 entry`.
pub fn of_kind(count: u64, several: &str) -> String {
    let one = || {
        let of_two = [("ies", "y"), ("xes", "x"), ("s", "")];
        let found =
            of_two.iter().find_map(|(end, other)| Some(several.strip_suffix(end)?.to_owned() + other));
        found.unwrap_or_else(|| several.to_owned())
    };
    if count == 1 { format!("1 {}", one()) } else { format!("{count} {several}") }
}

/// The place in a queue, by how many come first: `it is next`, `3 before it`.
pub fn queued(before: usize) -> String {
    if before == 0 { "it is next".to_owned() } else { format!("{before} before it") }
}

/// Bytes with a unit: `0 B`, `812 B`, `1.4 MB`. Decimal, as disks and networks are sold.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let (mut value, mut unit) = (count as f64, 0);
    while value >= 999.95 && unit < UNITS.len() - 1 {
        (value, unit) = (value / 1000.0, unit + 1);
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A time as people write it, UTC, to the second.
pub fn time(time: Option<&prost_types::Timestamp>) -> String {
    time.and_then(timestamp_from_proto)
        .map_or_else(|| "-".to_owned(), |time| time.strftime("%Y-%m-%d %H:%M:%SZ").to_string())
}

/// A line about an agent's certificate that expires soon; nothing when there is time.
pub fn certificate(expires: Option<&prost_types::Timestamp>) -> String {
    let expires = expires.and_then(timestamp_from_proto);
    let warning = expires.and_then(|expires| crate::tls::renewal::warning(expires, jiff::Timestamp::now()));
    warning.map_or_else(String::new, |warning| format!("WARNING: {warning}\n"))
}

/// An age as people say it: `45 s`, `12 min`, `3 h`, `9 days`.
pub fn age(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// How long something took, as people say it: `0.3 s`, `8.2 s`, `45 s`, `12 min`, `3 h`.
pub fn took(milliseconds: u64) -> String {
    match milliseconds {
        0..=9_949 => format!("{}.{} s", (milliseconds + 50) / 1000, (milliseconds + 50) % 1000 / 100),
        _ => age((milliseconds + 500) / 1000),
    }
}

/// How long ago that was at `now`: `12 min ago`; `just now` for what a clock beside ours has in the future.
pub fn ago(time: Option<&prost_types::Timestamp>, now: jiff::Timestamp) -> String {
    let Some(time) = time.and_then(timestamp_from_proto) else {
        return "at an unknown time".to_owned();
    };
    match u64::try_from(time.duration_until(now).as_secs()) {
        Ok(seconds) => format!("{} ago", age(seconds)),
        Err(_) => "just now".to_owned(),
    }
}

/// How long something has lasted at `now`: `12 min`.
pub fn so_far(since: Option<&prost_types::Timestamp>, now: jiff::Timestamp) -> String {
    let seconds = since.and_then(timestamp_from_proto).map(|since| since.duration_until(now).as_secs());
    age(seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or_default())
}

/// How long it is from `now` until then: `in 12 min`; `now` for what has come.
pub fn until(time: Option<&prost_types::Timestamp>, now: jiff::Timestamp) -> String {
    let left = time.and_then(timestamp_from_proto).map(|time| now.duration_until(time).as_secs());
    match left.and_then(|left| u64::try_from(left).ok()) {
        None | Some(0) => "now".to_owned(),
        Some(left) => format!("in {}", age(left)),
    }
}

/// An outcome as people read it.
pub fn outcome(outcome: v1::Outcome) -> &'static str {
    match outcome {
        v1::Outcome::Pass => "PASS",
        v1::Outcome::Fail => "FAIL",
        v1::Outcome::Inconclusive => "INCONCLUSIVE",
        v1::Outcome::NotRun => "NOT_RUN",
        v1::Outcome::Unspecified => "-",
    }
}

/// What an agent says that an outcome means: its own sentence, and that of the outcome alone where an older agent says none.
pub fn says(outcome: v1::Outcome, sentence: &str) -> String {
    match Outcome::try_from(outcome) {
        _ if !sentence.is_empty() => safe(sentence),
        Ok(outcome) => meaning(outcome).to_owned(),
        Err(_) => String::new(),
    }
}

/// What a run is doing.
pub fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Unspecified => "waiting",
        Phase::Opening => "opening",
        Phase::Marking => "marking",
        Phase::Replicating => "replicating",
        Phase::Sealing => "sealing",
        Phase::Checking => "checking",
        Phase::Done => "done",
    }
}

/// A run that has ended, in a few lines.
pub fn run(run: &Run) -> String {
    let mut text = format!("{}  {}\n", outcome(run.outcome()), safe(&run.reason));
    let says = says(run.outcome(), &run.sentence);
    if !says.is_empty() {
        let _ = writeln!(text, "  {says}");
    }
    if let (v1::Outcome::Pass, Some(claims)) = (run.outcome(), &run.claims) {
        text.push_str(&because(&claims.backup, &claims.because));
    }
    for (index, line) in run.message.lines().enumerate() {
        let indent = if index == 0 || line.starts_with("HINT:") { "" } else { "  " };
        let _ = writeln!(text, "  {indent}{}", safe(line));
    }
    if let Some(found) = &run.attribution {
        let _ = writeln!(text, "  fault: {}", safe(&found.fault.to_string()));
        text.push_str(&evidence(&found.evidence, &found.files));
    }
    let _ = writeln!(
        text,
        "  run {} of {}, {}",
        safe(&run.id),
        safe(&run.repository),
        time(run.started.as_ref())
    );
    if let Some(mark) = &run.mark {
        let _ = writeln!(text, "  {}", self::mark(&mark.id, &time(mark.time.as_ref())));
    }
    if run.generation > 0 {
        let _ = writeln!(text, "  generation {}, root {}", run.generation, safe(short(&run.root_digest)));
    }
    if let Some(counts) = &run.counts {
        let _ = writeln!(text, "  {}", sent(counts));
    }
    if !run.overrides.is_empty() {
        let _ = writeln!(text, "  overridden safety stops: {}", safe(&run.overrides.join(", ")));
    }
    if !run.verdict_id.is_empty() {
        let _ = writeln!(text, "  verdict {}", safe(&run.verdict_id));
    }
    text
}

/// Why a PASS claims nothing of content: the sentence does not say it.
fn because(backup: &str, because: &[String]) -> String {
    let clauses = because.iter().filter(|_| backup == BackupClaim::AsRead.as_str());
    let clauses = clauses.filter(|clause| !clause.starts_with("not covered: "));
    clauses.fold(String::new(), |text, clause| format!("{text}  because {}\n", safe(clause)))
}

/// What shows where a fault came in.
fn evidence(evidence: &[String], files: &[String]) -> String {
    const SHOWN: usize = 10;
    let mut text = String::new();
    for sentence in evidence {
        let _ = writeln!(text, "    {}", safe(sentence));
    }
    for file in files.iter().take(SHOWN) {
        let _ = writeln!(text, "    file {}", safe(file));
    }
    if files.len() > SHOWN {
        let _ = writeln!(text, "    and {} more files", files.len() - SHOWN);
    }
    text
}

/// A negative control, and how old it was at `now`.
pub fn control(control: &NegativeControl, now: jiff::Timestamp) -> String {
    let word = match control.trust() {
        Trust::Trusted => "the checker is trusted",
        Trust::NotTrusted => "the checker is NOT TRUSTED",
        Trust::Unknown => "whether the checker finds damage is unknown",
    };
    let age = u64::try_from(control.time.duration_until(now).as_secs()).unwrap_or(0);
    let mut text = format!("{word}: negative control {} old", self::age(age));
    if let Some(generation) = control.generation {
        let _ = write!(text, ", on generation {generation}");
    }
    if !control.message.is_empty() {
        let _ = write!(text, "; {}", control.message);
    }
    text
}

/// What a backup stands for.
fn mark(id: &str, time: &str) -> String {
    match id {
        // What the source writes for a profile without a mark.
        "none" => format!("read from {time} on, without a mark of the engine's"),
        id => format!("mark {id:?} at {time}"),
    }
}

/// How much was sent of how much.
pub fn sent(counts: &v1::Counts) -> String {
    if counts.total_bytes == 0 {
        // The run ended before its manifest was complete.
        return format!(
            "sent {} before it ended; read {}",
            bytes(counts.bytes_sent),
            counted(counts.files_read, "file")
        );
    }
    let (sent, total) = (bytes(counts.bytes_sent), bytes(counts.total_bytes));
    let of = match counts.bytes_sent > counts.total_bytes {
        // What was sent of a file that changed meanwhile is sent again.
        true => format!("sent {sent}, with what was read more than once, of a tree of {total}"),
        false => format!("sent {sent} of {total}"),
    };
    let mut text = format!(
        "{of} ({} over the wire)\n  read {}, kept {}",
        bytes(counts.wire_bytes_out),
        counted(counts.files_read, "file"),
        screen::counted(counts.entries_kept, "entry", "entries"),
    );
    if counts.entries_dropped > 0 {
        let _ = write!(text, ", dropped {}", counts.entries_dropped);
    }
    if counts.files_reread > 0 {
        let files = counted(counts.files_reread, "unchanged file");
        let bytes = bytes(counts.bytes_reread);
        let _ = write!(text, "\n  read {files} again, {bytes}: their turn had come");
    }
    if counts.files_changed_without_trace > 0 {
        let files = counted(counts.files_changed_without_trace, "file");
        let _ = write!(text, "\n  CHANGED WITHOUT A TRACE: {files}, with size, times and inode as they were");
    }
    if counts.files_unstable > 0 {
        let _ = write!(text, "\n  {} changed during the reading", counted(counts.files_unstable, "file"));
    }
    text
}

/// Files that changed without a trace that `status` names.
const LISTED: usize = 5;

/// Content that changed without a trace, for `status`; `now` is the clock of the agent that tells.
pub fn traceless(found: &v1::ChangedWithoutTrace, now: jiff::Timestamp) -> String {
    let (when, files) = (ago(found.time.as_ref(), now), counted(found.files, "file"));
    let mut text = format!("{files} without a trace, {when}, in run {}", safe(&found.run_id));
    for path in found.paths.iter().take(LISTED) {
        let _ = write!(text, "\n  {}", safe(path));
    }
    if found.paths.len() > LISTED {
        text.push_str("\n  ...");
    }
    text
}

/// The front of a digest: enough to tell two apart.
pub fn short(digest: &str) -> &str {
    digest.get(..16).unwrap_or(digest)
}

/// A table of runs.
pub fn runs(runs: &[Run]) -> String {
    // A run's id begins with the time of its start.
    let mut text = format!("{:<24} {:<12} {:<21} {:>6} {:>9}\n", "RUN", "OUTCOME", "REASON", "GEN", "SENT");
    for run in runs {
        let state = if run.phase() == Phase::Done { outcome(run.outcome()) } else { phase(run.phase()) };
        let sent = run.counts.as_ref().map_or(0, |counts| counts.bytes_sent);
        let generation = if run.generation > 0 { run.generation.to_string() } else { "-".to_owned() };
        let _ = writeln!(
            text,
            "{:<24} {:<12} {:<21} {:>6} {:>9}",
            safe(&run.id),
            state,
            safe(&run.reason),
            generation,
            bytes(sent)
        );
    }
    text
}

/// A table of generations.
pub fn generations(generations: &[Generation]) -> String {
    let mut text =
        format!("{:>5}  {:<12} {:<20} {:>8} {:>8}  {}\n", "GEN", "OUTCOME", "REASON", "SIZE", "NEW", "MARK");
    for generation in generations {
        let state = match generation.outcome() {
            v1::Outcome::Unspecified => "not checked",
            known => outcome(known),
        };
        let _ = writeln!(
            text,
            "{:>5}  {:<12} {:<20} {:>8} {:>8}  {}",
            generation.number,
            state,
            safe(&generation.reason),
            bytes(generation.total_bytes),
            bytes(generation.new_bytes),
            time(generation.mark.as_ref().and_then(|mark| mark.time.as_ref()))
        );
        if let (v1::Outcome::Pass, Some(claims)) = (generation.outcome(), &generation.claims) {
            text.push_str(&claim_lines(claims));
        }
        if generation.verified {
            text.push_str("       <- verified\n");
        }
        if generation.pinned {
            let note = if generation.pin_note.is_empty() { "" } else { ": " };
            let _ = writeln!(text, "       pinned{note}{}", safe(&generation.pin_note));
        }
        for rotten in &generation.rot {
            let _ = writeln!(text, "       ROTTEN {}", safe(rotten));
        }
    }
    text
}

/// What a PASS claims, under its line in a table: the words of its claims, and how many parts were not covered.
pub fn claim_lines(claims: &v1::Claims) -> String {
    let mut text = format!("       claims: backup {}, live {}\n", safe(&claims.backup), safe(&claims.live));
    if claims.not_covered > 0 {
        let word = if claims.not_covered == 1 { "part" } else { "parts" };
        let _ = writeln!(text, "       not covered: {} {word}", claims.not_covered);
    }
    if claims.parts_carried > 0 {
        let of = claims.parts_checked.saturating_add(claims.parts_carried);
        let _ = write!(text, "       checked now: {} of {of} parts", claims.parts_checked);
        if let Some(oldest) = claims.oldest_carried.as_ref().and_then(timestamp_from_proto) {
            let _ = write!(text, ", the rest since {}", oldest.strftime("%Y-%m-%d %H:%M:%SZ"));
        }
        text.push('\n');
    }
    text
}

/// Operators' notes on a verdict, a line each.
pub fn notes(notes: &[v1::Note]) -> String {
    let line = |note: &v1::Note| {
        let (about, by, text) = (safe(&note.about), safe(&note.by), safe(&note.text));
        format!("note on {about} by {by}, {}: {text}\n", time(note.time.as_ref()))
    };
    notes.iter().map(line).collect()
}

/// A table of verdicts.
pub fn verdicts(verdicts: &[v1::Verdict]) -> String {
    let mut text = format!(
        "{:<10} {:<13} {:<22} {:>6}  {:<20}  {}\n",
        "VERDICT", "OUTCOME", "REASON", "GEN", "TIME", "RUN"
    );
    for verdict in verdicts {
        let generation = if verdict.generation > 0 { verdict.generation.to_string() } else { "-".to_owned() };
        let _ = writeln!(
            text,
            "{:<10} {:<13} {:<22} {:>6}  {:<20}  {}",
            safe(&verdict.id),
            outcome(verdict.outcome()),
            safe(&verdict.reason),
            generation,
            time(verdict.time.as_ref()),
            safe(&verdict.run_id)
        );
        if let (v1::Outcome::Pass, Some(claims)) = (verdict.outcome(), &verdict.claims) {
            text.push_str(&claim_lines(claims));
        }
    }
    text
}

/// A verdict as JSON: its own fields, and beside them what it says and claims, and what the source has left out, which stands in the
/// statement inside.
pub fn verdict_json(verdict: &Verdict) -> serde_json::Value {
    let mut value = serde_json::to_value(verdict).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        let claims = serde_json::to_value(verdict.claims()).unwrap_or_default();
        let not_copied = serde_json::to_value(verdict.not_copied()).unwrap_or_default();
        fields.insert("sentence".to_owned(), verdict.sentence().into());
        fields.insert("claims".to_owned(), claims);
        fields.insert("notCopied".to_owned(), not_copied);
    }
    value
}

/// A verdict, whole.
pub fn verdict(verdict: &Verdict) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{}  {}\n  {}", verdict.outcome, safe(&verdict.reason), safe(&verdict.sentence()));
    let claims = verdict.claims();
    if verdict.outcome == Outcome::Pass {
        text.push_str(&because(claims.backup.as_str(), &claims.because));
    }
    for line in verdict.message.lines() {
        let _ = writeln!(text, "  {}", safe(line));
    }
    if let Some(found) = &verdict.attribution {
        let _ = writeln!(text, "  fault: {}", safe(&found.fault.to_string()));
        text.push_str(&evidence(&found.evidence, &found.files));
    }
    let _ = writeln!(
        text,
        "  repository {}, run {}, verdict {:09}",
        safe(&verdict.repository),
        verdict.run_id,
        verdict.sequence
    );
    if let Some(mark) = &verdict.mark {
        let time = mark.time.strftime("%Y-%m-%d %H:%M:%SZ").to_string();
        let _ = writeln!(text, "  {}", self::mark(&mark.id, &time));
    }
    if let (Some(generation), Some(root)) = (verdict.generation, verdict.root) {
        let _ = writeln!(text, "  generation {generation}, root {root}");
    }
    if let Some(profile) = &verdict.profile {
        let depth = verdict.depth.map_or_else(String::new, |depth| {
            format!(", depth {depth:?}: the check looks at {}", depth.in_words())
        });
        let _ = writeln!(text, "  profile {} {}{depth}", safe(&profile.name), safe(&profile.version));
    }
    for line in super::coverage::lines(verdict) {
        let _ = writeln!(text, "  {line}");
    }
    for step in &verdict.steps {
        let end = match (step.exit_code, step.signal) {
            (Some(code), _) => format!("exit {code}"),
            (_, Some(signal)) => format!("signal {signal}"),
            _ => "no exit".to_owned(),
        };
        let _ = writeln!(
            text,
            "  step {}: {} ({end}, {})",
            safe(&step.name),
            step.outcome,
            took(step.duration_ms)
        );
        for finding in step.findings.iter().take(10) {
            let _ = writeln!(text, "    {}", safe(finding));
        }
        if step.findings.len() > 10 {
            let _ = writeln!(text, "    and {} more", step.findings.len() - 10);
        }
    }
    for patch in &verdict.patches {
        let _ =
            writeln!(text, "  patched {}: {} = {}", safe(&patch.file), safe(&patch.key), safe(&patch.value));
    }
    if let Some(workspace) = &verdict.workspace {
        let _ = writeln!(
            text,
            "  workspace: {}; isolated: {}",
            workspace.kind.in_words(),
            safe(&workspace.isolation.join(", "))
        );
        if !workspace.not_isolated.is_empty() {
            let _ = writeln!(text, "  not isolated: {}", safe(&workspace.not_isolated.join(", ")));
        }
    }
    match &verdict.negative_control {
        Some(found) => {
            let _ = writeln!(text, "  {}", safe(&control(found, verdict.times.signed)));
        }
        None => {
            text.push_str("  whether the checker finds damage is unknown: there was no negative control\n")
        }
    }
    if !verdict.overrides.is_empty() {
        let _ = writeln!(text, "  overridden safety stops: {}", safe(&verdict.overrides.join(", ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use assay_proto::v1::{Counts, Generation, Mark, Outcome, Run};

    use super::*;

    /// With the longest words and numbers that are to be expected.
    #[test]
    fn tables_fit_a_terminal() {
        let time = Some(prost_types::Timestamp { seconds: 1_795_000_000, nanos: 0 });
        let generation = Generation {
            number: 99_999,
            outcome: Outcome::Inconclusive.into(),
            reason: "checker-not-isolated".to_owned(),
            total_bytes: 999_900_000_000,
            new_bytes: 999_900_000_000,
            mark: Some(Mark { time, ..Default::default() }),
            verified: true,
            pinned: true,
            pin_note: "before the upgrade".to_owned(),
            ..Default::default()
        };
        let run = Run {
            id: "20261123T170932Z-9860eb".to_owned(),
            phase: Phase::Done.into(),
            outcome: Outcome::Inconclusive.into(),
            reason: "checker-contradiction".to_owned(),
            generation: 999_999,
            counts: Some(Counts { bytes_sent: 999_900_000_000, ..Default::default() }),
            ..Default::default()
        };
        for table in [generations(std::slice::from_ref(&generation)), runs(std::slice::from_ref(&run))] {
            assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
            let widths: Vec<_> = table
                .lines()
                .take(2)
                .map(|line| line.find("INCONCLUSIVE").or(line.find("OUTCOME")))
                .collect();
            assert_eq!(widths[0], widths[1], "{table}");
        }
        let claims = v1::Claims {
            backup: "good-as-covered".to_owned(),
            live: "good-as-covered".to_owned(),
            not_covered: 12,
            ..Default::default()
        };
        let passed = Generation { outcome: Outcome::Pass.into(), claims: Some(claims), ..generation.clone() };
        let shown = generations(std::slice::from_ref(&passed));
        assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
        assert!(
            shown.contains("\n       claims: backup good-as-covered, live good-as-covered\n       not covered: 12 parts\n"),
            "{shown}"
        );
        let shown = generations(&[generation]);
        assert!(shown.contains("\n       <- verified\n       pinned: before the upgrade\n"), "{shown}");
    }

    #[test]
    fn one_of_a_kind_is_no_plural() {
        for (kind, one) in
            [("tables", "1 table"), ("indexes", "1 index"), ("entries", "1 entry"), ("WAL", "1 WAL")]
        {
            assert_eq!(of_kind(1, kind), one);
            assert_eq!(of_kind(2, kind), format!("2 {kind}"));
        }
    }

    #[test]
    fn lengths_of_time_are_read_by_people() {
        let shown =
            [0, 49, 50, 8_239, 9_949, 9_950, 45_400, 119_499, 119_500, 3_600_000, 7_200_000].map(took);
        let told =
            ["0.0 s", "0.0 s", "0.1 s", "8.2 s", "9.9 s", "10 s", "45 s", "119 s", "2 min", "60 min", "2 h"];
        assert_eq!(shown, told);
    }

    /// A peer's word, a checker's, a file's name: none begins a line of its own.
    #[test]
    fn no_text_from_elsewhere_begins_a_line() {
        let spoofed = || "x\nPASS  check-passed\n  this backup is good\u{1b}[2J".to_owned();
        let run = Run {
            id: spoofed(),
            repository: spoofed(),
            phase: Phase::Done.into(),
            outcome: Outcome::Fail.into(),
            reason: spoofed(),
            message: "one line".to_owned(),
            overrides: vec![spoofed()],
            verdict_id: spoofed(),
            generation: 3,
            root_digest: spoofed(),
            mark: Some(Mark { id: spoofed(), time: None }),
            attribution: Some(assay_proto::v1::Attribution {
                fault: spoofed(),
                evidence: vec![spoofed()],
                files: vec![spoofed()],
                ..Default::default()
            }),
            ..Default::default()
        };
        let generation = Generation {
            reason: spoofed(),
            pinned: true,
            pin_note: spoofed(),
            rot: vec![spoofed()],
            ..Default::default()
        };
        let verdict =
            v1::Verdict { id: spoofed(), reason: spoofed(), run_id: spoofed(), ..Default::default() };
        for text in [super::run(&run), runs(&[run]), generations(&[generation]), verdicts(&[verdict])] {
            assert!(!text.lines().any(|line| line.trim_start().starts_with("PASS")), "{text}");
            assert!(!text.contains('\u{1b}'), "{text:?}");
        }
    }

    /// A file that changed while it was read is sent again: that is no more than there is.
    #[test]
    fn bytes_sent_more_than_once_are_no_part_of_a_whole() {
        let counts = Counts { bytes_sent: 17_900_000, total_bytes: 11_300_000, ..Default::default() };
        let text = sent(&counts);
        assert!(
            text.starts_with("sent 17.9 MB, with what was read more than once, of a tree of 11.3 MB"),
            "{text}"
        );
        let text = sent(&Counts { bytes_sent: 1000, total_bytes: 2000, ..Default::default() });
        assert!(text.starts_with("sent 1.0 kB of 2.0 kB ("), "{text}");
    }

    #[test]
    fn a_profile_without_a_mark_has_none() {
        let mark = Mark { id: "none".to_owned(), time: None };
        let run = Run { mark: Some(mark), ..Default::default() };
        let text = super::run(&run);
        assert!(text.contains("without a mark of the engine's") && !text.contains("mark \"none\""), "{text}");
    }

    #[test]
    fn sizes_have_a_unit() {
        for (count, text) in
            [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (1_400_000, "1.4 MB")]
        {
            assert_eq!(bytes(count), text);
        }
    }
}
