//! What a step says that it looked at: the checker's version, parts that were checked, parts that were not.
//!
//! Memory is bounded whatever is printed: further parts are counted, and further kinds are added to one.

use std::collections::BTreeMap;

use assay_common::profile::Check;
use regex::bytes::{Captures, Regex};

use super::{NotCovered, PartsChecked, output::quote};

/// More parts that were not looked at than this are counted, not kept.
const MAX_NOT_COVERED: usize = 200;
/// More kinds of parts than this are counted as one.
const MAX_KINDS: usize = 50;
const OTHER_KINDS: &str = "parts of further kinds";

/// The expressions of a step that tell what it looked at.
#[derive(Debug)]
pub(super) struct Looks {
    engine: Option<Regex>,
    checked: Option<Regex>,
    not_covered: Vec<Regex>,
}

impl Looks {
    pub(super) fn new(check: &Check) -> Self {
        Self {
            engine: check.engine_version.as_ref().map(|it| it.regex().clone()),
            checked: check.parts_checked.as_ref().map(|it| it.regex().clone()),
            not_covered: check.not_covered_patterns.iter().map(|it| it.pattern.regex().clone()).collect(),
        }
    }
}

/// What the lines so far said.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    engine: Option<String>,
    checked: BTreeMap<String, u64>,
    /// The number of the pattern, the part, and why.
    not_covered: Vec<(usize, String, String)>,
    not_covered_dropped: u64,
}

/// What a step looked at, for its report.
#[derive(Clone, Debug, Default)]
pub(super) struct Coverage {
    pub(super) engine: Option<String>,
    pub(super) checked: Vec<PartsChecked>,
    pub(super) not_covered: Vec<NotCovered>,
}

impl Seen {
    /// Searches lines, the last one without its end.
    pub(super) fn search(&mut self, looks: &Looks, lines: &[u8]) {
        if let (None, Some(engine)) = (&self.engine, &looks.engine) {
            self.engine = engine.captures(lines).and_then(|it| group(&it, 1)).filter(|it| !it.is_empty());
        }
        if let Some(checked) = &looks.checked {
            for captures in checked.captures_iter(lines) {
                if let (Some(count), Some(kind)) = (group(&captures, 1), group(&captures, 2))
                    && let Ok(count) = count.parse()
                {
                    self.count(kind, count);
                }
            }
        }
        for (index, pattern) in looks.not_covered.iter().enumerate() {
            for captures in pattern.captures_iter(lines) {
                let part = group(&captures, 1).or_else(|| group(&captures, 0)).unwrap_or_default();
                let message = group(&captures, 2).unwrap_or_else(|| quote(line_around(lines, &captures)));
                self.miss((index, part, message));
            }
        }
    }

    fn count(&mut self, kind: String, count: u64) {
        let known = self.checked.contains_key(&kind);
        let kind = if known || self.checked.len() < MAX_KINDS { kind } else { OTHER_KINDS.to_owned() };
        let sum = self.checked.entry(kind).or_default();
        *sum = sum.saturating_add(count);
    }

    fn miss(&mut self, missed: (usize, String, String)) {
        if self.not_covered.contains(&missed) {
            return;
        }
        if self.not_covered.len() < MAX_NOT_COVERED {
            self.not_covered.push(missed);
        } else {
            self.not_covered_dropped += 1;
        }
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.engine = self.engine.take().or(other.engine);
        for (kind, count) in other.checked {
            self.count(kind, count);
        }
        for missed in other.not_covered {
            self.miss(missed);
        }
        self.not_covered_dropped += other.not_covered_dropped;
    }

    pub(super) fn coverage(&self, check: &Check) -> Coverage {
        let checked = self.checked.iter();
        let checked = checked.map(|(kind, count)| PartsChecked { kind: kind.clone(), count: *count });
        let reason = |index: &usize| check.not_covered_patterns[*index].reason.clone();
        let missed = self.not_covered.iter().map(|(index, part, message)| NotCovered {
            part: part.clone(),
            reason: reason(index),
            message: message.clone(),
        });
        let rest = (self.not_covered_dropped > 0).then(|| NotCovered {
            part: format!("{} further parts", self.not_covered_dropped),
            reason: "list-too-long".to_owned(),
            message: format!("the list names {MAX_NOT_COVERED} parts; the checker's output names the others"),
        });
        Coverage {
            engine: self.engine.clone(),
            checked: checked.collect(),
            not_covered: missed.chain(rest).collect(),
        }
    }
}

fn group(captures: &Captures<'_>, index: usize) -> Option<String> {
    captures.get(index).map(|it| quote(it.as_bytes()))
}

/// The whole line in which a match begins.
fn line_around<'a>(lines: &'a [u8], captures: &Captures<'_>) -> &'a [u8] {
    let at = captures.get(0).map_or(0, |it| it.start());
    let start = lines[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |it| it + 1);
    let end = lines[at..].iter().position(|byte| *byte == b'\n').map_or(lines.len(), |it| at + it);
    &lines[start..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use assay_common::profile::Profile;
    use std::path::Path;

    fn check() -> Check {
        let text = r#"
name = "x"
description = "x"
version = "1"
depth = "L0"
[[check]]
name = "x"
argv = ["x"]
fail_exit = [1]
engine_version = '^engine: (.*)$'
parts_checked = '^checked (\d+) (.*)$'
not_covered_patterns = [
    { pattern = '^not covered: ([^:]*): (.*)$', reason = "not-covered" },
    { pattern = '^skipped \S+', reason = "skipped" },
]
"#;
        let profile = Profile::parse(Path::new("x.toml"), text).unwrap_or_else(|error| panic!("{error}"));
        profile.checks.into_iter().next().expect("one")
    }

    fn seen(text: &str) -> Seen {
        let mut seen = Seen::default();
        seen.search(&Looks::new(&check()), text.as_bytes());
        seen
    }

    #[test]
    fn version_counts_and_parts_come_from_lines() {
        let mut first = seen(
            "engine: SQLite 3.50.2\nengine: other 1\nchecked 3 tables\nchecked 4 tables\nchecked x tables\n\
             not covered: index i: no function f\nso: skipped page 9\nskipped page 9",
        );
        first.merge(seen("engine: late 2\nchecked 1 indexes\nskipped page 9\nnot covered: t: \x1b[2Jx"));
        let coverage = first.coverage(&check());
        assert_eq!(coverage.engine.as_deref(), Some("SQLite 3.50.2"));
        let counts: Vec<_> = coverage.checked.iter().map(|it| (it.count, it.kind.as_str())).collect();
        assert_eq!(counts, [(1, "indexes"), (7, "tables")]);
        let parts: Vec<_> = coverage
            .not_covered
            .iter()
            .map(|it| (it.part.as_str(), it.reason.as_str(), it.message.as_str()))
            .collect();
        assert_eq!(
            parts,
            [
                ("index i", "not-covered", "no function f"),
                ("skipped page", "skipped", "skipped page 9"),
                ("t", "not-covered", "\\u{1b}[2Jx"),
            ]
        );
    }

    #[test]
    fn lists_are_bounded_and_the_rest_is_counted() {
        let mut all = Seen::default();
        for half in 0..2 {
            let lines: String = (0..150)
                .map(|at| format!("not covered: part {half}-{at}: why\nchecked 2 kind {half}-{at}\n"))
                .collect();
            all.merge(seen(&lines));
        }
        let coverage = all.coverage(&check());
        assert_eq!(coverage.not_covered.len(), MAX_NOT_COVERED + 1);
        let last = coverage.not_covered.last().expect("some");
        assert_eq!((last.part.as_str(), last.reason.as_str()), ("100 further parts", "list-too-long"));
        assert_eq!(coverage.checked.len(), MAX_KINDS + 1);
        assert_eq!(coverage.checked.iter().map(|it| it.count).sum::<u64>(), 600);
        assert_eq!(seen("checked 99999999999999999999 tables").checked.len(), 0, "no number");
    }
}
