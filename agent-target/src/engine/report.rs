//! What a built-in check says, in lines that its profile reads.
//!
//! | line | what it means |
//! | --- | --- |
//! | `engine: NAME VERSION` | the program that looked |
//! | `checked COUNT KIND` | parts that were looked at |
//! | `not covered: PART: WHY` | a part that was not looked at |
//! | `damage: TEXT` | known damage |
//! | `note: TEXT` | something that a person may want to know, and that is no damage |
//!
//! What kept a check from looking is the only thing on standard error.

use std::io::{self, Write};

use assay_common::{error::without_codes, path::display_bytes};

/// More lines of damage, and as many of notes, than this are counted, not printed.
const MAX_LINES: u64 = 2000;

/// Says what kept a check from looking.
pub(super) fn unable(text: &str) {
    eprintln!("{}", display_bytes(without_codes(text.trim_end()).as_bytes()));
}

/// Prints what a check finds, and counts it.
#[derive(Debug)]
pub(super) struct Report<W: Write> {
    out: W,
    damage: u64,
    notes: u64,
    /// Parts that were not looked at.
    missed: u64,
}

impl Report<io::Stdout> {
    pub(super) fn new() -> Self {
        Self::to(io::stdout())
    }
}

impl<W: Write> Report<W> {
    pub(super) fn to(out: W) -> Self {
        Self { out, damage: 0, notes: 0, missed: 0 }
    }

    /// One line, whatever the text holds.
    fn line(&mut self, text: &str) {
        // Nobody reads any more: the step has been ended.
        drop(writeln!(self.out, "{}", display_bytes(without_codes(text.trim_end()).as_bytes())));
    }

    pub(super) fn engine(&mut self, version: &str) {
        self.line(&format!("engine: {version}"));
    }

    pub(super) fn checked(&mut self, count: u64, kind: &str) {
        if count > 0 {
            self.line(&format!("checked {count} {kind}"));
        }
    }

    pub(super) fn not_covered(&mut self, part: &str, why: &str) {
        self.missed += 1;
        // The first colon with a space behind it ends the part.
        let part = part.replace(": ", ":");
        self.line(&format!("not covered: {part}: {why}"));
    }

    pub(super) fn damage(&mut self, text: &str) {
        self.damage += 1;
        if self.damage <= MAX_LINES {
            self.line(&format!("damage: {text}"));
        }
    }

    pub(super) fn note(&mut self, text: &str) {
        self.notes += 1;
        if self.notes <= MAX_LINES {
            self.line(&format!("note: {text}"));
        }
    }

    /// The last line of a check that came to its end.
    pub(super) fn done(&mut self, text: &str) {
        for (count, kind) in [(self.damage, "lines of damage"), (self.notes, "notes")] {
            if count > MAX_LINES {
                self.line(&format!("{} further {kind} are not listed", count - MAX_LINES));
            }
        }
        self.line(text);
    }

    pub(super) fn is_damaged(&self) -> bool {
        self.damage > 0
    }

    /// The number of lines that say more of a part than that it is sound: damage, notes, uncovered parts.
    pub(super) fn said(&self) -> u64 {
        self.damage + self.notes + self.missed
    }

    pub(super) fn into_inner(self) -> W {
        self.out
    }

    /// Says what another report of the same kind said, which holds whole lines of no damage.
    pub(super) fn repeat(&mut self, other: &[u8]) {
        for line in String::from_utf8_lossy(other).lines() {
            self.line(line);
        }
    }
}

impl Report<Vec<u8>> {
    /// The first damage that was told.
    pub(super) fn first_damage(&self) -> String {
        let text = String::from_utf8_lossy(&self.out);
        text.lines().find_map(|line| line.strip_prefix("damage: ")).unwrap_or_default().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_is_one_line_that_cannot_be_taken_for_another() {
        let mut report = Report::to(Vec::new());
        report.engine("git 2.47.3");
        report.checked(0, "objects");
        report.checked(3, "objects");
        report.not_covered("a: b", "because: so");
        report.note("first\ndamage: forged");
        assert!(!report.is_damaged());
        report.damage("\x1b[2J");
        assert!(report.is_damaged());
        report.done("git: checked");
        let text = String::from_utf8(report.into_inner()).expect("text");
        assert_eq!(
            text,
            "engine: git 2.47.3\nchecked 3 objects\nnot covered: a:b: because: so\nnote: first\\ndamage: forged\n\
             damage: \\u{1b}[2J\ngit: checked\n"
        );
    }
}
