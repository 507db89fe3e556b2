//! The verdicts of the past in short, in memory: strips and plots are drawn from them without reading the ledger again.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use assay_common::{
    id::GenerationNumber,
    verdict::{Outcome, Verdict},
};
use jiff::Timestamp;

/// Verdicts that are kept, the newest: those of 90 days of a run every six minutes, in some three megabytes.
const KEPT: usize = 21_600;

/// A verdict in short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Past {
    /// Its place in the ledger.
    pub sequence: u64,
    /// When it was signed, by the target's clock.
    pub signed: Timestamp,
    /// What came out.
    pub outcome: Outcome,
    /// The short stable word for it.
    pub reason: Box<str>,
    /// The sealed generation.
    pub generation: Option<GenerationNumber>,
    /// Content of the live tree, in bytes, where the source says it.
    pub content_bytes: Option<u64>,
    /// From the run's opening to its seal.
    pub receiving: Option<Duration>,
    /// How long the check took.
    pub checking: Option<Duration>,
}

impl Past {
    /// Of a verdict.
    pub fn of(verdict: &Verdict) -> Self {
        let times = &verdict.times;
        let between = |from: Option<Timestamp>, to: Option<Timestamp>| {
            Duration::try_from(from?.duration_until(to?)).ok()
        };
        let reading = verdict.coverage.as_ref().and_then(|coverage| coverage.reading.as_ref());
        Self {
            sequence: verdict.sequence,
            signed: times.signed,
            outcome: verdict.outcome,
            reason: verdict.reason.as_str().into(),
            generation: verdict.generation,
            content_bytes: reading.map(|reading| reading.bytes_total),
            receiving: between(times.opened, times.sealed),
            checking: between(times.check_started, times.check_finished),
        }
    }
}

#[cfg(test)]
impl Past {
    /// A PASS, for tests.
    pub(crate) fn example() -> Self {
        Self {
            sequence: 0,
            signed: Timestamp::UNIX_EPOCH,
            outcome: Outcome::Pass,
            reason: "check-passed".into(),
            generation: None,
            content_bytes: None,
            receiving: None,
            checking: None,
        }
    }
}

/// The newest verdicts, and the entries that are neither a verdict nor a key change.
#[derive(Debug, Clone, Default)]
pub(super) struct History {
    verdicts: BTreeMap<u64, Arc<Past>>,
    unreadable: Vec<u64>,
}

impl History {
    /// A verdict at its place in the ledger, whatever it says of its place itself.
    pub(super) fn note(&mut self, sequence: u64, past: Past) {
        self.verdicts.insert(sequence, Arc::new(Past { sequence, ..past }));
        while self.verdicts.len() > KEPT {
            self.verdicts.pop_first();
        }
    }

    /// An entry that cannot be read.
    pub(super) fn note_unreadable(&mut self, sequence: u64) {
        self.unreadable.push(sequence);
    }

    /// The verdicts, oldest first.
    pub(super) fn verdicts(&self) -> Vec<Arc<Past>> {
        self.verdicts.values().cloned().collect()
    }

    /// Places of the entries that could not be read when the agent started.
    pub(super) fn unreadable(&self) -> Vec<u64> {
        self.unreadable.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_whatever_their_order() {
        let past = Past::example();
        let mut history = History::default();
        let last = KEPT as u64 + 10;
        (1..=last).rev().for_each(|sequence| history.note(sequence, past.clone()));
        let kept = history.verdicts();
        assert_eq!((kept.len(), kept[0].sequence, kept[KEPT - 1].sequence), (KEPT, 11, last));
    }
}
