//! The coverage of a verdict in whole sentences: what was read, what was checked, and what nobody looked at.

use std::fmt::Write as _;

use super::{screen::safe, show};
use crate::{
    fidelity::LeftOut,
    verdict::{Carried, Coverage, NotCovered, Outcome, Readings, Step, Verdict},
};

/// Parts and files that are listed: the verdict has more.
const LISTED: usize = 20;

/// What a verdict rests on, a sentence a line. Empty when nothing was checked.
pub fn lines(verdict: &Verdict) -> Vec<String> {
    let mut lines = Vec::new();
    let Some(coverage) = &verdict.coverage else {
        if verdict.outcome == Outcome::Pass {
            lines.push("The verdict is of a version that did not record what was looked at.".to_owned());
        }
        return lines;
    };
    match &coverage.reading {
        Some(reading) => reading_lines(reading, &mut lines),
        None => lines.push("The source does not say when it read which file.".to_owned()),
    }
    if let Some(limit) = coverage.max_reading_age_seconds {
        let limit = show::age(limit);
        lines
            .push(format!("A reading that is older than {limit} allows no claim about the live repository."));
    }
    let last = verdict.steps.last().map(|step| step.attempt);
    let steps = verdict.steps.iter().filter(|step| Some(step.attempt) == last);
    lines.extend(steps.map(step_line));
    lines.extend(coverage.check.carried.as_ref().map(carried_line));
    not_covered_lines(coverage, &mut lines);
    not_copied_lines(verdict, &mut lines);
    lines
}

fn carried_line(carried: &Carried) -> String {
    let time = |time: jiff::Timestamp| time.strftime("%Y-%m-%d %H:%M:%SZ").to_string();
    let (now, oldest, newest) = (carried.parts_checked_now, time(carried.oldest), time(carried.newest));
    let mut line = format!(
        "The check looked at {now} of {} parts now. The rest has not changed since it passed, between {oldest} and {newest}, for {}",
        now.saturating_add(carried.parts),
        show::counted(carried.verdicts_total, "verdict")
    );
    if let (Some(first), Some(last)) = (carried.verdicts.first(), carried.verdicts.last()) {
        // As the ledger calls them.
        let _ = match carried.verdicts_total {
            1 => write!(line, " ({:09})", first.sequence),
            _ if carried.verdicts_total > carried.verdicts.len() as u64 => {
                write!(line, " ({:09} and later)", first.sequence)
            }
            _ => write!(line, " ({:09} to {:09})", first.sequence, last.sequence),
        };
    }
    line.push('.');
    if let Some(limit) = carried.limit_seconds {
        let _ = write!(line, " Each part is checked again within {}.", show::age(limit));
    }
    line
}

/// What of the live tree the copy does not have, by the source's own signed word.
fn not_copied_lines(verdict: &Verdict, lines: &mut Vec<String>) {
    let left_out = verdict.not_copied();
    if left_out.is_empty() {
        return;
    }
    lines.push(format!("Not copied, {}:", left_out.len()));
    let one = |it: &LeftOut| {
        format!("  {} (for example of {}): {}", safe(&it.what), safe(&it.example), safe(&it.why))
    };
    lines.extend(left_out.iter().take(LISTED).map(one));
    lines.extend(rest(left_out.len() as u64, left_out.len(), "kinds"));
}

fn reading_lines(reading: &Readings, lines: &mut Vec<String>) {
    let (total, now) = (reading.files_total, reading.files_read_now);
    let bytes = show::bytes;
    if now >= total {
        let files = match total {
            1 => "the only file".to_owned(),
            total => format!("all {total} files"),
        };
        lines.push(format!("The source read {files} in this run, {}.", bytes(reading.bytes_total)));
    } else {
        let mut line = format!(
            "The source read {now} of {total} files in this run, {} of {}.",
            bytes(reading.bytes_read_now),
            bytes(reading.bytes_total)
        );
        if let (Some(oldest), Some(newest)) = (reading.oldest_reading, reading.newest_carried_reading) {
            let time = |time: jiff::Timestamp| time.strftime("%Y-%m-%d %H:%M:%SZ").to_string();
            let _ = write!(
                line,
                " It read the rest, which has not changed since, between {} and {}.",
                time(oldest),
                time(newest)
            );
        }
        if reading.files_of_unknown_age > 0 {
            let _ = write!(
                line,
                " When it read {} is not known.",
                show::counted(reading.files_of_unknown_age, "file")
            );
        }
        lines.push(line);
    }
    let traceless = reading.changed_without_trace_total;
    if traceless > 0 {
        lines.push(format!(
            "WARNING: the content of {} changed although size, times and inode did not. The disk or the memory of \
             the live host changed them, or a program that leaves no trace. The new content was copied and checked:",
            show::counted(traceless, "file")
        ));
        let listed = reading.changed_without_trace.iter().take(LISTED);
        lines.extend(listed.map(|path| format!("  file {}", safe(path))));
        lines.extend(rest(traceless, reading.changed_without_trace.len(), "files"));
    }
}

fn step_line(step: &Step) -> String {
    let mut line = format!("The step \"{}\"", safe(&step.name));
    if let Some(engine) = &step.engine {
        let _ = write!(line, " ({})", safe(engine));
    }
    match step.depth {
        Some(depth) => {
            let _ = write!(line, " looks at {}", depth.in_words());
        }
        None => line.push_str(" ran"),
    }
    let parts: Vec<_> = step.checked.iter().map(|it| show::of_kind(it.count, &safe(&it.kind))).collect();
    if !parts.is_empty() {
        let _ = write!(line, "; it checked {}", parts.join(", "));
    }
    line.push('.');
    line
}

fn not_covered_lines(coverage: &Coverage, lines: &mut Vec<String>) {
    let total = coverage.not_covered_total;
    if total == 0 {
        return;
    }
    lines.push(format!("Not covered, {total}:"));
    let one = |part: &NotCovered| match part.message.as_str() {
        "" => format!("  {}: {}", safe(&part.part), safe(&part.reason)),
        message => format!("  {}: {}", safe(&part.part), safe(message)),
    };
    lines.extend(coverage.not_covered.iter().take(LISTED).map(one));
    lines.extend(rest(total, coverage.not_covered.len(), "parts"));
}

/// A line for those of `total` that are not among the `listed` ones.
fn rest(total: u64, listed: usize, what: &str) -> Option<String> {
    let shown = listed.min(LISTED) as u64;
    (total > shown).then(|| format!("  and {} more {what}", total - shown))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        signing::SigningKey,
        verdict::{Depth, HexDigest, PartResults, PartsChecked, tests::Example},
    };

    /// What the source has left out is in its own statement, and is shown with the coverage.
    #[test]
    fn attributes_that_the_source_left_out_are_listed() {
        let source = SigningKey::generate();
        let mut verdict = Example::default().verdict(&source, 1, HexDigest::ZERO);
        let mut statement = Example::default().statement();
        statement.not_copied = vec![LeftOut {
            what: "security.selinux".into(),
            why: "it is a label of the live host, and no part of the tree".into(),
            example: "etc/app\u{1b}.conf".into(),
        }];
        verdict.source_statement = Some(crate::verdict::sign_source_statement(&statement, &source));
        verdict.coverage =
            Some(Coverage::new(&verdict, &statement, HexDigest([6; 32]), None, PartResults::default()));
        let text = lines(&verdict).join("\n");
        assert!(
            text.contains("Not copied, 1:\n  security.selinux (for example of etc/app")
                && !text.contains('\u{1b}'),
            "{text}"
        );
    }

    #[test]
    fn what_was_looked_at_is_told_in_whole_sentences() {
        let source = SigningKey::generate();
        let mut verdict = Example::default().verdict(&source, 1, HexDigest::ZERO);
        assert!(lines(&verdict)[0].contains("did not record"), "{:?}", lines(&verdict));
        let mut statement = Example::default().statement();
        statement.readings = Some(Readings {
            files_total: 30,
            bytes_total: 3000,
            files_read_now: 4,
            bytes_read_now: 400,
            oldest_reading: "2026-11-20T00:00:00Z".parse().ok(),
            newest_carried_reading: "2026-11-21T00:00:00Z".parse().ok(),
            changed_without_trace: vec!["cold/file".into()],
            changed_without_trace_total: 1,
            not_covered: vec![NotCovered {
                part: "torn".into(),
                reason: "unstable".into(),
                message: "moved".into(),
            }],
            not_covered_total: 5,
            ..Default::default()
        });
        let step = &mut verdict.steps[0];
        step.depth = Some(Depth::L2);
        step.engine = Some("Engine 5\u{1b}[2J".into());
        step.checked = vec![PartsChecked { kind: "tables".into(), count: 12 }];
        verdict.coverage =
            Some(Coverage::new(&verdict, &statement, HexDigest([6; 32]), None, PartResults::default()));
        let text = lines(&verdict).join("\n");
        for part in [
            "The source read 4 of 30 files in this run, 400 B of 3.0 kB. It read the rest, which has not changed since, between \
             2026-11-20 00:00:00Z and 2026-11-21 00:00:00Z.",
            "WARNING: the content of 1 file changed although size, times and inode did not.",
            "  file cold/file",
            "The step \"dbcheck\" (Engine 5",
            "looks at the structure; it checked 12 tables.",
            "Not covered, 5:\n  torn: moved\n  and 4 more parts",
        ] {
            assert!(text.contains(part), "{part:?} is missing in:\n{text}");
        }
        assert!(!text.contains('\u{1b}'), "{text}");
        let readings = statement.readings.as_mut().expect("some");
        *readings = Readings { files_total: 2, files_read_now: 2, ..Default::default() };
        verdict.coverage =
            Some(Coverage::new(&verdict, &statement, HexDigest([6; 32]), None, PartResults::default()));
        assert!(
            lines(&verdict)[0].starts_with("The source read all 2 files in this run"),
            "{:?}",
            lines(&verdict)
        );
    }
}
