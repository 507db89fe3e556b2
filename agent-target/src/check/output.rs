//! What a check prints: searched and digested whole, kept in part.
//!
//! Memory is bounded whatever is printed: a stream is kept by its first and its last bytes, and searched line
//! by line as it arrives. A line is searched up to [`MAX_LINE_BYTES`]; a longer one is noted, because what is
//! behind might have mattered.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use assay_common::{path::display_bytes, profile::Check};
use regex::bytes::{Regex, RegexSet, RegexSetBuilder};

use super::{
    coverage::{Coverage, Looks, Seen},
    obstacles,
};

/// A line is searched up to here.
pub const MAX_LINE_BYTES: usize = 1024 * 1024;
/// More findings than this are counted, not kept.
const MAX_FINDINGS: usize = 200;
/// What is quoted of a line, in bytes.
const MAX_QUOTED_BYTES: usize = 500;

/// What is kept of one output stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Captured {
    /// Its first bytes; all of it when `tail` is empty.
    pub head: Vec<u8>,
    /// Its last bytes, where it was too long to be kept whole.
    pub tail: Vec<u8>,
    /// How many bytes there were.
    pub bytes: u64,
    /// BLAKE3 of all of them, in hexadecimal digits.
    pub digest: String,
}

impl Captured {
    /// How many bytes between head and tail were not kept.
    pub fn dropped_bytes(&self) -> u64 {
        self.bytes - (self.head.len() + self.tail.len()) as u64
    }
}

/// All patterns of a step, searched in one pass.
#[derive(Debug)]
pub(super) struct Patterns {
    set: RegexSet,
    findings: Option<Regex>,
    /// The rules that have a group, by their numbers in the set: the group is what is quoted.
    grouped: BTreeMap<usize, Regex>,
    looks: Looks,
    /// Where each list begins in the set.
    retry: usize,
    inconclusive: usize,
    fail: usize,
    refused: usize,
}

impl Patterns {
    pub(super) fn new(check: &Check) -> Result<Self, regex::Error> {
        let (retry, fail) = (check.must_match.len(), &check.fail_patterns);
        let inconclusive = retry + check.retry_next_candidate_on.len();
        let texts = check.must_match.iter().chain(&check.retry_next_candidate_on);
        let rules = || check.inconclusive_patterns.iter().chain(fail).map(|rule| &rule.pattern);
        let grouped = rules().enumerate().filter(|(_, pattern)| pattern.regex().captures_len() > 1);
        let grouped =
            grouped.map(|(index, pattern)| (inconclusive + index, pattern.regex().clone())).collect();
        Ok(Self {
            set: RegexSetBuilder::new(
                texts.chain(rules()).map(|it| it.as_str()).chain(obstacles::expressions()),
            )
            .multi_line(true)
            .crlf(true)
            .build()?,
            findings: check.findings.as_ref().map(|pattern| pattern.regex().clone()),
            grouped,
            looks: Looks::new(check),
            retry,
            inconclusive,
            fail: inconclusive + check.inconclusive_patterns.len(),
            refused: inconclusive + check.inconclusive_patterns.len() + fail.len(),
        })
    }
}

/// What was found in the output.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    /// The patterns that matched, by their numbers over all lists, each with the first line that it matched.
    matched: BTreeMap<usize, String>,
    pub(super) findings: Vec<String>,
    pub(super) findings_dropped: u64,
    seen: Seen,
    /// A line was longer than [`MAX_LINE_BYTES`].
    pub(super) overlong: bool,
}

impl Found {
    pub(super) fn merge(mut self, other: Self) -> Self {
        for (index, line) in other.matched {
            self.matched.entry(index).or_insert(line);
        }
        self.findings.extend(other.findings);
        let dropped = self.findings.len().saturating_sub(MAX_FINDINGS);
        self.findings.truncate(MAX_FINDINGS);
        self.findings_dropped += other.findings_dropped + dropped as u64;
        self.seen.merge(other.seen);
        self.overlong |= other.overlong;
        self
    }

    /// What the step said that it looked at, and what not.
    pub(super) fn coverage(&self, check: &Check) -> Coverage {
        self.seen.coverage(check)
    }

    /// The `must_match` patterns that matched nothing, by their numbers.
    pub(super) fn unmatched(&self, patterns: &Patterns) -> Vec<usize> {
        (0..patterns.retry).filter(|index| !self.matched.contains_key(index)).collect()
    }

    /// The line that asks for the next candidate.
    pub(super) fn retry(&self, patterns: &Patterns) -> Option<&str> {
        self.first(patterns.retry..patterns.inconclusive).map(|(_, line)| line)
    }

    /// The number of the first inconclusive pattern that matched, and the first line that it matched.
    pub(super) fn inconclusive(&self, patterns: &Patterns) -> Option<(usize, &str)> {
        self.first(patterns.inconclusive..patterns.fail)
    }

    /// The same for the patterns of damage.
    pub(super) fn fail(&self, patterns: &Patterns) -> Option<(usize, &str)> {
        self.first(patterns.fail..patterns.refused)
    }

    /// The obstacle that the step itself names: the reason, and the first line that says so.
    pub(super) fn refused(&self, patterns: &Patterns) -> Option<(&'static str, &str)> {
        let (index, line) = self.first(patterns.refused..usize::MAX)?;
        Some((obstacles::reason(index), line))
    }

    /// Of the patterns in a range, the first that matched, by its number in the range.
    fn first(&self, range: std::ops::Range<usize>) -> Option<(usize, &str)> {
        let (index, line) = self.matched.range(range.clone()).next()?;
        Some((index - range.start, line.as_str()))
    }
}

/// Takes in one stream.
#[derive(Debug)]
pub(super) struct Capture {
    patterns: Arc<Patterns>,
    half_limit: usize,
    head: Vec<u8>,
    tail: VecDeque<u8>,
    bytes: u64,
    hasher: blake3::Hasher,
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    /// The rest of the current line is not searched.
    skipping: bool,
    found: Found,
}

impl Capture {
    pub(super) fn new(patterns: Arc<Patterns>, limit: usize) -> Self {
        Self {
            patterns,
            half_limit: limit / 2,
            head: Vec::new(),
            tail: VecDeque::new(),
            bytes: 0,
            hasher: blake3::Hasher::new(),
            line: Vec::new(),
            skipping: false,
            found: Found::default(),
        }
    }

    /// How many bytes have come.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        self.keep(bytes);
        let mut rest = bytes;
        if self.skipping || !self.line.is_empty() {
            let (end, after) = match bytes.iter().position(|byte| *byte == b'\n') {
                Some(end) => (end, Some(end + 1)),
                None => (bytes.len(), None),
            };
            self.continue_line(&bytes[..end]);
            let Some(after) = after else { return };
            self.end_line();
            rest = &bytes[after..];
        }
        // Whole lines are searched together, which is much faster than one by one.
        if let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') {
            self.search(&rest[..end]);
            rest = &rest[end + 1..];
        }
        self.continue_line(rest);
    }

    fn keep(&mut self, bytes: &[u8]) {
        let (first, rest) = bytes.split_at(bytes.len().min(self.half_limit - self.head.len()));
        self.head.extend_from_slice(first);
        let rest = &rest[rest.len().saturating_sub(self.half_limit)..];
        let excess = (self.tail.len() + rest.len()).saturating_sub(self.half_limit);
        drop(self.tail.drain(..excess));
        self.tail.extend(rest);
    }

    fn continue_line(&mut self, bytes: &[u8]) {
        if self.skipping {
            return;
        }
        let room = MAX_LINE_BYTES - self.line.len();
        self.line.extend_from_slice(&bytes[..bytes.len().min(room)]);
        if bytes.len() > room {
            self.skipping = true;
            self.found.overlong = true;
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        self.skipping = false;
        self.search(&line);
    }

    /// Searches lines, the last one without its end.
    fn search(&mut self, lines: &[u8]) {
        // In an expression `.` stands for a character, and so would not match what is not UTF-8.
        let lossy = String::from_utf8_lossy(lines);
        let lines = lossy.as_bytes();
        for index in self.patterns.set.matches(lines) {
            self.found.matched.entry(index).or_insert_with(|| {
                let mut each = lines.split(|byte| *byte == b'\n');
                let line = each.find(|line| self.patterns.set.matches(line).matched(index));
                let line = line.unwrap_or_default();
                let captures = self.patterns.grouped.get(&index).and_then(|it| it.captures(line));
                quote(captures.and_then(|it| it.get(1)).map_or(line, |group| group.as_bytes()))
            });
        }
        self.found.seen.search(&self.patterns.looks, lines);
        if let Some(findings) = &self.patterns.findings {
            for captures in findings.captures_iter(lines) {
                if self.found.findings.len() >= MAX_FINDINGS {
                    self.found.findings_dropped += 1;
                    continue;
                }
                let group = captures.iter().skip(1).flatten().next().or(captures.get(0));
                self.found.findings.push(group.map(|it| quote(it.as_bytes())).unwrap_or_default());
            }
        }
    }

    /// What has come so far. A line without its end counts as a line.
    pub(super) fn finish(&mut self) -> (Captured, Found) {
        if !self.line.is_empty() {
            self.end_line();
        }
        let captured = Captured {
            head: std::mem::take(&mut self.head),
            tail: std::mem::take(&mut self.tail).into(),
            bytes: self.bytes,
            digest: self.hasher.finalize().to_hex().to_string(),
        };
        (captured, std::mem::take(&mut self.found))
    }
}

/// One line for people, without control characters and of bounded length.
pub(super) fn quote(line: &[u8]) -> String {
    let kept = &line[..line.len().min(MAX_QUOTED_BYTES)];
    let more = if kept.len() < line.len() { " …" } else { "" };
    format!("{}{more}", display_bytes(kept.trim_ascii()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use assay_common::profile::Profile;
    use std::path::Path;

    fn patterns(keys: &str) -> Arc<Patterns> {
        let text = format!(
            "name = 'x'\ndescription = 'x'\nversion = '1'\ndepth = 'L0'\n[[check]]\nname = 'x'\nargv = ['x']\nfail_exit = [1]\n{keys}"
        );
        let profile = Profile::parse(Path::new("x.toml"), &text).unwrap_or_else(|error| panic!("{error}"));
        Arc::new(Patterns::new(&profile.checks[0]).expect("patterns"))
    }

    const KEYS: &str = "must_match = ['^done$']\nfail_patterns = [{ pattern = '^bad: ', reason = 'bad' }]\nfindings = '^bad: (.*)$'";

    /// The result does not depend on how the kernel cuts the stream.
    #[test]
    fn lines_are_found_however_they_arrive() {
        let text = b"one\r\nbad: page 7\r\n\nxbad: no\nbad: page \xff\ndone";
        for step in 1..text.len() {
            let patterns = patterns(KEYS);
            let mut capture = Capture::new(Arc::clone(&patterns), 1024);
            for piece in text.chunks(step) {
                capture.push(piece);
            }
            let (captured, found) = capture.finish();
            assert_eq!(captured.head, text);
            assert_eq!(captured.digest, blake3::hash(text).to_hex().as_str());
            assert_eq!(found.findings, ["page 7", "page \u{fffd}"], "in pieces of {step}");
            assert_eq!(found.fail(&patterns), Some((0, "bad: page 7")));
            assert_eq!(found.unmatched(&patterns), [] as [usize; 0]);
        }
    }

    #[test]
    fn head_and_tail_are_kept_and_everything_is_searched() {
        let patterns = patterns(KEYS);
        let mut capture = Capture::new(Arc::clone(&patterns), 10);
        for piece in ["0123", "456\nbad: middle\n", "xxxxxxx\n", "done\n"] {
            capture.push(piece.as_bytes());
        }
        let (captured, found) = capture.finish();
        assert_eq!((&captured.head[..], &captured.tail[..]), (&b"01234"[..], &b"done\n"[..]));
        assert_eq!(captured.bytes, captured.dropped_bytes() + 10);
        assert_eq!(found.findings, ["middle"]);
        assert_eq!(found.unmatched(&patterns), [] as [usize; 0]);
    }

    #[test]
    fn a_line_without_end_costs_no_memory_and_is_noted() {
        let patterns = patterns(KEYS);
        let mut capture = Capture::new(Arc::clone(&patterns), 10);
        for _ in 0..40 {
            capture.push(&[b'x'; 64 * 1024]);
            assert!(capture.line.capacity() <= 2 * MAX_LINE_BYTES);
        }
        capture.push(b"\ndone\n");
        let (_, found) = capture.finish();
        assert!(found.overlong);
        assert_eq!(found.unmatched(&patterns), [] as [usize; 0]);
    }

    /// Each list of patterns begins where the one before ends, also where one of them is empty.
    #[test]
    fn a_pattern_is_found_in_its_own_list() {
        let lists = [
            ("must_match = ['^a$', '^b$']", "b"),
            ("retry_next_candidate_on = ['^c$', '^d$']", "d"),
            (
                "inconclusive_patterns = [{ pattern = '^e$', reason = 'e' }, { pattern = '^f$', reason = 'f' }]",
                "f",
            ),
            ("fail_patterns = [{ pattern = '^g$', reason = 'g' }, { pattern = '^h$', reason = 'h' }]", "h"),
        ];
        let patch = "[[patch]]\nfile = 'f'\nkind = 'key-value'\nkey = 'K'\nvalues = ['v']\n";
        for without in 0..=lists.len() {
            let rules: Vec<_> = lists.iter().enumerate().filter(|(at, _)| *at != without).collect();
            let keys: Vec<_> = rules.iter().map(|(_, (keys, _))| *keys).collect();
            let patterns = patterns(&format!("{}\n{patch}", keys.join("\n")));
            for (list, (_, line)) in &rules {
                let mut capture = Capture::new(Arc::clone(&patterns), 1024);
                capture.push(line.as_bytes());
                let (_, found) = capture.finish();
                let told = (
                    found.unmatched(&patterns).len(),
                    found.retry(&patterns).map(str::to_owned),
                    found.inconclusive(&patterns).map(|(index, line)| (index, line.to_owned())),
                    found.fail(&patterns).map(|(index, line)| (index, line.to_owned())),
                );
                let must_match = if without == 0 { 0 } else { 2 };
                let second = || Some((1, (*line).to_owned()));
                let expected = match list {
                    0 => (1, None, None, None),
                    1 => (must_match, Some((*line).to_owned()), None, None),
                    2 => (must_match, None, second(), None),
                    _ => (must_match, None, None, second()),
                };
                assert_eq!(told, expected, "{line} without list {without}");
                assert_eq!(found.refused(&patterns), None);
            }
        }
    }

    /// What is found on either stream counts, the first line of the first stream is quoted, and both are counted.
    #[test]
    fn two_streams_are_one_output() {
        let patterns = patterns(KEYS);
        let found = |text: &str| {
            let mut capture = Capture::new(Arc::clone(&patterns), 1024);
            capture.push(text.as_bytes());
            assert_eq!(capture.bytes(), text.len() as u64);
            capture.finish().1
        };
        let merged = found("bad: one\n").merge(found("bad: two\ndone\n"));
        assert_eq!(merged.fail(&patterns), Some((0, "bad: one")));
        assert_eq!(merged.findings, ["one", "two"]);
        assert!(merged.unmatched(&patterns).is_empty() && !merged.overlong);
        let many = "bad: x\n".repeat(MAX_FINDINGS + 3);
        let merged = found(&many).merge(found(&many));
        let all = 2 * (MAX_FINDINGS as u64 + 3);
        assert_eq!(
            (merged.findings.len(), merged.findings_dropped),
            (MAX_FINDINGS, all - MAX_FINDINGS as u64)
        );
        let long = "x".repeat(MAX_LINE_BYTES + 1);
        assert!(found("done\n").merge(found(&long)).overlong && found(&long).merge(found("done\n")).overlong);
        assert!(!found(&long[1..]).overlong, "a line of exactly the limit is searched whole");
    }

    /// A quoted line has a limit and no control characters, and says where it was cut.
    #[test]
    fn a_quoted_line_is_short_and_plain() {
        let whole = "x".repeat(MAX_QUOTED_BYTES);
        assert_eq!(quote(whole.as_bytes()), whole);
        assert_eq!(quote(format!("{whole}y").as_bytes()), format!("{whole} …"));
        assert_eq!(quote(b"  page 7 \r"), "page 7");
        assert!(!quote(b"a\x1b[31mb").contains('\x1b'));
    }

    #[test]
    fn findings_beyond_the_limit_are_counted() {
        let mut capture = Capture::new(patterns(KEYS), 10);
        for _ in 0..MAX_FINDINGS + 5 {
            capture.push(b"bad: x\n");
        }
        let (_, found) = capture.finish();
        assert_eq!((found.findings.len(), found.findings_dropped), (MAX_FINDINGS, 5));
    }
}
