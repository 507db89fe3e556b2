//! Verdicts that are believed only where they stand: signed by this target, about this repository, and linked to the one before.

use assay_common::{
    ledger::EntryId,
    verdict::{HexDigest, Verdict, link_digest, verify_verdict},
};

use super::Repository;

impl Repository {
    /// The places of the newest verdicts in the ledger, at most `count`, newest first.
    pub(crate) fn newest_places(&self, count: usize) -> Vec<EntryId> {
        let mut ids = self.verdicts.ledger.entries().unwrap_or_default();
        ids.truncate(count);
        ids
    }

    /// The verdict in this place of the ledger.
    ///
    /// # Errors
    /// When it does not bear this target's signature, was signed for another place or another repository, or does not name the verdict
    /// that stands before it.
    pub(crate) fn verdict_in_place(&self, id: EntryId) -> Result<Verdict, String> {
        let read = |id: EntryId| {
            self.verdicts.ledger.get(&id.to_string()).map_err(|error| format!("verdict {id}: {error}"))
        };
        let key = self.verdicts.signing_key.verifying_key();
        let verified =
            verify_verdict(&read(id)?, &key, None).map_err(|error| format!("verdict {id}: {error}"))?;
        let verdict = verified.verdict;
        let before = match id.sequence() {
            1 => HexDigest::ZERO,
            sequence => link_digest(&read(EntryId(sequence - 1))?),
        };
        let name = &self.config.name;
        let rules = [
            (verdict.repository == *name, "is of another repository"),
            (verdict.sequence == id.sequence(), "was signed for another place in the ledger"),
            (verdict.previous == before, "does not follow the verdict that stands before it"),
        ];
        match rules.into_iter().find(|(holds, _)| !holds) {
            None => Ok(verdict),
            Some((_, fault)) => Err(format!("verdict {id} {fault}")),
        }
    }
}
