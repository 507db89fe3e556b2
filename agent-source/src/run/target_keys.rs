//! Which of the target's keys a verdict may bear.
//!
//! The keys are those that an operator has pinned: the one that the configuration names, and those that were announced beside it. A source
//! goes from one to the next when a verdict comes that bears it, tells of it, and never goes back: a key that was replaced is worth nothing
//! from then on, whoever has it. The keys are read anew for each verdict, so that one can be announced while the agent runs.

use std::path::{Path, PathBuf};

use assay_common::{
    keyring::Keyring,
    signing::KeyError,
    trouble::{self, Kind},
    verdict::{HexDigest, VerifiedVerdict, verify_verdict_with},
};
use serde::{Deserialize, Serialize};

use super::{Attempt, Fault, history::SHOWN};

/// The target's pinned keys, on disk.
#[derive(Debug, Clone)]
pub struct TargetKeys {
    file: PathBuf,
}

impl TargetKeys {
    /// Reads them once, so that a fault is told when the agent starts.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn open(file: &Path) -> Result<Self, KeyError> {
        Keyring::load(file)?;
        Ok(Self { file: file.to_owned() })
    }

    /// Reads them.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn load(&self) -> Result<Keyring, KeyError> {
        Keyring::load(&self.file)
    }
}

/// The newest of the target's keys that this source has got a verdict of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenKey {
    /// The key's 32 bytes.
    pub key: HexDigest,
    /// Place of the first verdict that it signed and this source got.
    pub since: u64,
}

impl SeenKey {
    /// Its place among the pinned keys; nothing where it is not pinned any longer.
    pub fn place(&self, keys: &Keyring) -> Option<usize> {
        keys.all().iter().position(|key| key.to_bytes() == self.key.0)
    }
}

/// The least place that a key of a new verdict may have.
fn least(keys: &Keyring, seen: Option<SeenKey>) -> usize {
    keys.current_place().max(seen.and_then(|seen| seen.place(keys)).unwrap_or(0))
}

impl Attempt {
    /// Checks the signatures of a verdict that has just come.
    pub(super) fn verify(&self, envelope: &str, own: Option<&Keyring>) -> Result<VerifiedVerdict, Fault> {
        let doubt = |text: String| Fault::verdict_not_trusted(text);
        let keys = self.context.target_keys.load().map_err(|error| doubt(error.to_string()))?;
        let verified = verify_verdict_with(envelope.as_bytes(), &keys, own).map_err(|error| {
            let fault = doubt(error.to_string());
            if error.is_of_other_key() { fault.hint(OTHER_KEY) } else { fault }
        })?;
        let least = least(&keys, self.context.state.history().target_key);
        if verified.target_place < least {
            let (old, new) = (&keys.all()[verified.target_place], &keys.all()[least]);
            return Err(doubt(format!(
                "it is signed with key {}, which key {} has replaced",
                old.key_id(),
                new.key_id()
            ))
            .hint(
                "whoever has the target's old key signs with it: look whether the target runs with a configuration from a backup, or somebody \
                 answers in its place",
            ));
        }
        Ok(verified)
    }

    /// Notes the key of a verdict that is believed, and tells of one that was not seen before.
    pub(super) fn note_target_key(&self, verified: &VerifiedVerdict) {
        let Ok(keys) = self.context.target_keys.load() else { return };
        let (Some(key), sequence) = (keys.all().get(verified.target_place), verified.verdict.sequence) else {
            return;
        };
        let raw = HexDigest(key.to_bytes());
        let seen = self.context.state.history().target_key;
        if seen.is_some_and(|seen| seen.key == raw) {
            return;
        }
        self.context
            .state
            .update_history(|known| known.target_key = Some(SeenKey { key: raw, since: sequence }));
        if let Some(before) = seen {
            let before = before.place(&keys).map_or_else(
                || "one that is not pinned any longer".to_owned(),
                |place| keys.all()[place].key_id(),
            );
            let text = format!(
                "the target signs with key {} from verdict {sequence:09} on, and signed with key {before} before: verdicts of that key are \
                 refused from now on",
                key.key_id()
            );
            trouble::happened(Kind::TargetKeyChanged, &self.context.repository.name, SHOWN, text);
        }
    }
}

/// What to do about a verdict of a key that is not pinned.
const OTHER_KEY: &str = "`assay-source keys show` lists the keys that are pinned (target.signing_key), and `assay-target keys show` at the target its own. When the target has a new \
                         key and its operator says so, bring its public half here and run: assay-source keys add FILE. When it has not, somebody \
                         else answers in its place";

#[cfg(test)]
mod tests {
    use assay_common::signing::SigningKey;

    use super::*;

    #[test]
    fn a_key_that_was_replaced_is_never_taken_again() {
        let folder = tempfile::tempdir().expect("temp");
        let file = folder.path().join("target.pub");
        let [former, current, next] = std::array::from_fn(|_| SigningKey::generate().verifying_key());
        current.save(&file).expect("save");
        assay_common::keyring::keep(&file, assay_common::keyring::Place::Former, &former).expect("kept");
        assay_common::keyring::keep(&file, assay_common::keyring::Place::Next, &next).expect("kept");
        let keys = Keyring::load(&file).expect("keys");
        let seen = |key: &assay_common::signing::VerifyingKey| {
            Some(SeenKey { key: HexDigest(key.to_bytes()), since: 1 })
        };
        // A source without a memory believes no former key either.
        assert_eq!(least(&keys, None), 1);
        assert_eq!(least(&keys, seen(&former)), 1);
        assert_eq!(least(&keys, seen(&current)), 1);
        assert_eq!(least(&keys, seen(&next)), 2);
        assert_eq!(least(&keys, seen(&SigningKey::generate().verifying_key())), 1);
    }
}
