//! What a step prints: findings, parts that were not looked at, and counts. The profile reads these lines.
//!
//! | line | what it means |
//! | --- | --- |
//! | `damage: …` | a finding |
//! | `not covered: PART: WHY` | a part that was not looked at |
//! | `checked N KIND` | how much was looked at |
//! | `incomplete: REASON: …` | the step could not look at a part that it must look at, and found no damage |

use std::collections::{BTreeMap, BTreeSet};

use super::{End, Unchecked, catalog::Relation, meaning::Reason};

/// Findings about one part beyond these are counted, not printed.
const MAX_FINDINGS: usize = 50;

#[derive(Debug, Default)]
pub(super) struct Report {
    damaged: u64,
    missed: BTreeMap<Reason, Vec<String>>,
    counts: BTreeMap<&'static str, u64>,
    /// The files of relations of which something could not be looked at.
    lacking: BTreeSet<String>,
}

impl Report {
    /// A finding: something in the copy is damaged.
    pub(super) fn damage(&mut self, text: &str) {
        self.damaged += 1;
        println!("damage: {}", one_line(text));
    }

    /// Findings about one part.
    pub(super) fn damages(&mut self, texts: &[String]) {
        for text in texts.iter().take(MAX_FINDINGS) {
            self.damage(text);
        }
        if let Some(last) = texts.get(MAX_FINDINGS..).filter(|rest| !rest.is_empty()) {
            self.damaged += last.len() as u64;
            println!("damage: and {} or more findings of the same kind there", last.len());
        }
    }

    /// A part that the step must look at and could not.
    pub(super) fn missed(&mut self, reason: Reason, part: &str, why: &str) {
        let (part, why) = (one_line(part), one_line(why));
        println!("not covered: {part}: {why}");
        self.missed.entry(reason).or_default().push(format!("{part}: {why}"));
    }

    /// A part that the step must look at and could not, because of this relation.
    pub(super) fn missed_of(&mut self, relation: &Relation, reason: Reason, part: &str, why: &str) {
        self.is_lacking(relation);
        self.missed(reason, part, why);
    }

    /// Something of this relation could not be looked at: its result is not carried.
    pub(super) fn is_lacking(&mut self, relation: &Relation) {
        self.lacking.insert(relation.file.clone());
    }

    /// True if something of the relation with this file could not be looked at.
    pub(super) fn lacks(&self, file: &str) -> bool {
        self.lacking.contains(file)
    }

    /// True if there is a part that the step must look at and could not, for another reason than what is missing on this host.
    pub(super) fn has_missed(&self) -> bool {
        self.missed.contains_key(&Reason::Other) || self.missed.contains_key(&Reason::ServerEnded)
    }

    /// A part of a kind that the step does not look at.
    pub(super) fn not_covered(&self, part: &str, why: &str) {
        println!("not covered: {}: {}", one_line(part), one_line(why));
    }

    /// Something to know for whoever reads the output.
    pub(super) fn note(&self, text: &str) {
        println!("note: {}", one_line(text));
    }

    pub(super) fn count(&mut self, kind: &'static str, number: u64) {
        *self.counts.entry(kind).or_default() += number;
    }

    /// Prints the counts and says how the step ends.
    pub(super) fn end(&self, unchecked: Unchecked) -> Result<(), End> {
        for (kind, number) in &self.counts {
            println!("checked {number} {kind}");
        }
        if self.damaged > 0 {
            return Err(End::Damage);
        }
        let Some((reason, parts)) = self.missed.first_key_value() else { return Ok(()) };
        let Some(first) = parts.first() else { return Ok(()) };
        if unchecked == Unchecked::Accept {
            return Ok(());
        }
        let count: usize = self.missed.values().map(Vec::len).sum();
        let more = if count > 1 { format!(" (and {} further parts)", count - 1) } else { String::new() };
        println!("incomplete: {}: {first}{more}", reason.word());
        Err(End::Incomplete(count))
    }
}

/// Names come from the copy: a line end in one must not make a line of its own.
pub(super) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() {
            line.extend(letter.escape_default());
        } else {
            line.push(letter);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_counts_before_what_could_not_be_looked_at() {
        let mut report = Report::default();
        assert!(report.end(Unchecked::Inconclusive).is_ok());
        report.missed(Reason::Collation, "B-tree index \"a.b.c\"", "sorted otherwise");
        assert!(matches!(report.end(Unchecked::Inconclusive), Err(End::Incomplete(1))));
        assert!(report.end(Unchecked::Accept).is_ok());
        report.damage("x");
        assert!(matches!(report.end(Unchecked::Accept), Err(End::Damage)));
    }

    #[test]
    fn a_name_with_a_line_end_stays_in_its_line() {
        assert_eq!(one_line("a\nchecked 9 tables\u{1b}[2J"), "a\\nchecked 9 tables\\u{1b}[2J");
    }
}
