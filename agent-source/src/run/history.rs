//! Whether source and target have one history.
//!
//! A source remembers the generation that it had sealed last and the verdict that it got last, and shows both when it opens a run; the
//! target compares them with its store and its ledger, and names its newest generation and the run that made it. So each end notices
//! what the other cannot see: a clone of the live host that writes into the same repository, a source whose state was put back, a
//! target that was restored from an older snapshot and has forked its ledger. Nothing is sealed then, until an operator has looked and
//! says so with `--accept-history`, for one run.

use assay_common::{
    config::HISTORY_DIFFERS,
    digest::RootDigest,
    id::RunId,
    trouble::{self, Kind},
    verdict::{HexDigest, Verdict, link_digest},
};
use assay_proto::v1::{OpenRunRequest, OpenRunResponse};
use serde::{Deserialize, Serialize};

use super::{Attempt, Fault, target_keys::SeenKey};

/// What the source knows of the common history, in `STATE/REPOSITORY/history.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The generation that this source had sealed last.
    pub generation: u64,
    /// The run that made it.
    pub run_id: Option<RunId>,
    /// Root digest of its manifest.
    pub root: Option<HexDigest>,
    /// Place of the newest verdict that this source got, in the target's ledger.
    pub sequence: u64,
    /// The digest by which the verdict after it names it.
    pub verdict: Option<HexDigest>,
    /// The key that signed it.
    #[serde(default)]
    pub target_key: Option<SeenKey>,
}

impl History {
    /// What is shown to the target when a run is opened.
    pub(super) fn show(&self, request: &mut OpenRunRequest) {
        request.last_generation = self.generation;
        request.last_root_digest = self.root.map(|root| root.0.to_vec()).unwrap_or_default();
        request.last_verdict_sequence = self.sequence;
        request.last_verdict_digest = self.verdict.map(|verdict| verdict.0.to_vec()).unwrap_or_default();
    }

    /// What is wrong with a verdict that has just come, if it does not follow the one that this source got last.
    fn fork(&self, sequence: u64, previous: HexDigest, digest: HexDigest) -> Option<String> {
        let (held, place) = (self.verdict?, self.sequence);
        let same = sequence == place && digest == held;
        let follows = sequence > place + 1 || sequence == place + 1 && previous == held;
        (!same && !follows).then(|| {
            format!(
                "the target's verdict {sequence:09} does not follow verdict {place:09}, which this source holds: \
                 the target's ledger has been set back, and goes on with other verdicts"
            )
        })
    }
}

fn differs(text: String) -> Fault {
    Fault::not_run(HISTORY_DIFFERS, text).hint(
        "look which host made what is there (assay-target explain): a clone of the live host must not use its keys; when all is as it \
         should be, run once with --accept-history",
    )
}

impl Attempt {
    /// Compares what the target has with what this source knows.
    pub(super) fn check_history(&mut self, opened: &OpenRunResponse) -> Result<(), Fault> {
        let state = &self.context.state;
        let known = state.history();
        let repository = &self.context.repository.name;
        // A target of an older version does not say who made it.
        let made_by = opened.latest_run_id.parse::<RunId>().ok();
        let is_ours =
            made_by.as_ref().is_none_or(|run| known.run_id.as_ref() == Some(run) || state.run(run).is_ok());
        if is_ours {
            trouble::clear(Kind::HistoryDiffers, repository);
            return Ok(());
        }
        let text = format!(
            "generation {} of the target was made by run {}, of which this source knows nothing",
            opened.latest_generation, opened.latest_run_id
        );
        let is_new = known == History::default() && state.run_ids().is_ok_and(|ids| ids.len() <= 1);
        if is_new {
            let text = format!("{text}: its state is new. From now on it goes on from there");
            trouble::happened(Kind::HistoryDiffers, repository, SHOWN, text);
            return Ok(());
        }
        if self.options.accept_history {
            tracing::warn!("{text}; the operator accepts it");
            self.accepts_history();
            return Ok(());
        }
        let text = format!("{text}: another source writes here, or this source's state was put back");
        trouble::raise(Kind::HistoryDiffers, repository, text.clone());
        Err(differs(text))
    }

    fn accepts_history(&mut self) {
        let word = "accept_history".to_owned();
        if !self.overrides.contains(&word) {
            self.overrides.push(word);
        }
    }

    /// The target has sealed this run's generation.
    pub(super) fn note_sealed(&self, generation: u64, root: RootDigest) {
        let (run_id, root) = (Some(self.id.clone()), Some(HexDigest(root.0)));
        self.context
            .state
            .update_history(|known| *known = History { generation, run_id, root, ..known.clone() });
    }

    /// A verdict that is believed must follow the one before it.
    pub(super) fn check_link(&self, verdict: &Verdict, envelope: &str) -> Result<(), Fault> {
        let state = &self.context.state;
        let digest = link_digest(envelope.as_bytes());
        if let Some(text) = state.history().fork(verdict.sequence, verdict.previous, digest) {
            if !self.options.accept_history {
                trouble::raise(Kind::HistoryDiffers, &self.context.repository.name, text.clone());
                let outcome = assay_common::verdict::Outcome::Inconclusive;
                return Err(Fault { outcome, ..differs(text) });
            }
            tracing::warn!("{text}; the operator accepts it");
        }
        state.update_history(|known| (known.sequence, known.verdict) = (verdict.sequence, Some(digest)));
        Ok(())
    }
}

/// How long `status` shows that the state was new.
pub(super) const SHOWN: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_that_does_not_follow_the_one_that_is_held_is_a_fork() {
        let digest = |byte| HexDigest([byte; 32]);
        let known = History { sequence: 5, verdict: Some(digest(5)), ..Default::default() };
        for (sequence, previous, own, is_fork) in [
            (6, 5, 6, false),
            // Checks by the clock came between.
            (9, 8, 9, false),
            // The same one again.
            (5, 4, 5, false),
            (6, 7, 6, true),
            (5, 4, 7, true),
            (3, 2, 3, true),
        ] {
            let fork = known.fork(sequence, digest(previous), digest(own));
            assert_eq!(fork.is_some(), is_fork, "{sequence} after {previous}: {fork:?}");
        }
        assert_eq!(History::default().fork(1, digest(0), digest(1)), None);
    }
}
