//! The keys with which the ledger of a repository goes on.
//!
//! An agent whose own key is not the one that the ledger names last does not start: each verdict that it signed would make the ledger unsound.
//! A source that has another key than before is noted in the ledger when the agent starts, since from then on it believes that key alone.

use assay_common::{
    dsse::Envelope,
    ledger::{EntryId, Ledger, LedgerError},
    signing::{KeyError, VerifyingKey},
    verdict::{HexDigest, KeyChange, KeyOwner, sign_key_change, unverified_key_change},
};

use super::{OpenError, Repository};

/// What the ledger says of keys.
#[derive(Debug, Default)]
pub(crate) struct LastKeys {
    /// The newest change of the target's key.
    pub(crate) target: Option<(EntryId, KeyChange)>,
    /// The newest change of the source's key.
    pub(crate) source: Option<(EntryId, KeyChange)>,
    /// Id of the key that the newest entry names as its signer.
    pub(crate) newest_signer: Option<String>,
}

impl LastKeys {
    /// Reads a whole ledger.
    ///
    /// # Errors
    /// When it cannot be listed.
    pub(crate) fn read(ledger: &Ledger) -> Result<Self, LedgerError> {
        let mut last = Self::default();
        for id in ledger.entries()? {
            if let Ok(bytes) = ledger.get(&id.to_string()) {
                last.note(id, &bytes);
            }
        }
        Ok(last)
    }

    /// Takes an entry; the newest comes first.
    pub(super) fn note(&mut self, id: EntryId, envelope: &[u8]) {
        self.note_signer(envelope);
        let Ok(change) = unverified_key_change(envelope) else { return };
        let known = match change.owner {
            KeyOwner::Target => &mut self.target,
            KeyOwner::Source => &mut self.source,
        };
        known.get_or_insert((id, change));
    }

    /// Takes the signer of an entry that is no key change; the newest comes first.
    pub(super) fn note_signer(&mut self, envelope: &[u8]) {
        if self.newest_signer.is_none() {
            self.newest_signer =
                Envelope::parse(envelope).ok().map(|envelope| envelope.claimed_key_id().to_owned());
        }
    }
}

fn raw(key: &VerifyingKey) -> HexDigest {
    HexDigest(key.to_bytes())
}

impl Repository {
    /// Compares the agent's own key and the source's with those that the ledger goes on with, and notes a source's new key.
    pub(super) fn follow_keys(&self, last: &LastKeys) -> Result<(), OpenError> {
        let own = self.verdicts.signing_key.verifying_key();
        match &last.target {
            Some((id, change)) if change.new_key != raw(&own) => {
                let ledger = change.successor().map(|key| key.key_id()).unwrap_or_default();
                return Err(KeyError::Replaced { own: own.key_id(), ledger, entry: id.to_string() }.into());
            }
            Some(_) => {}
            None => {
                if let Some(signer) = last.newest_signer.as_ref().filter(|signer| **signer != own.key_id()) {
                    tracing::error!(
                        repository = self.config.name,
                        former = signer,
                        key = own.key_id(),
                        "this agent signs with another key than before, and the ledger does not say so: ledger verify says NOT SOUND until \
                         assay-target keys rotate --lost OLD.pub was run"
                    );
                }
            }
        }
        let Some(former) = self.source_keys.former().last() else { return Ok(()) };
        let current = self.source_keys.current();
        let former = match &last.source {
            Some((_, change)) if change.new_key == raw(current) => return Ok(()),
            Some((_, change)) => change.new_key,
            None => raw(former),
        };
        let generation = self.store.latest()?.map_or(0, |generation| generation.0);
        let id = self.verdicts.ledger.append(|sequence, previous| {
            let change = KeyChange {
                repository: self.config.name.clone(),
                sequence,
                previous,
                owner: KeyOwner::Source,
                former_key: former,
                new_key: raw(current),
                since: sequence,
                generation,
                without_former_key: false,
                time: jiff::Timestamp::now(),
                why: String::new(),
            };
            sign_key_change(&change, &self.verdicts.signing_key)
        })?;
        tracing::warn!(
            repository = self.config.name,
            entry = %id,
            key = current.key_id(),
            "the source has a new key: the one before it vouches for no generation after {generation}"
        );
        Ok(())
    }
}
