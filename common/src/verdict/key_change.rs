//! Key changes: entries of the ledger that say which key signs from there on.
//!
//! | whose key | who signs the entry | what it does |
//! | --- | --- | --- |
//! | the target's, which is at hand | the old key | ends the old key's time at this entry, and names the one that signs the next |
//! | the target's, which is lost or stolen | the new key | the same, on the new key's word alone |
//! | the source's | the target's key of that time | ends the old key's time at a generation |
//!
//! The entry makes nobody believe a key: whoever verifies a ledger must have pinned both ([`crate::keyring`]). It ends the time of the old
//! one, at a place that nobody can move, because the chain goes on from it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{HexDigest, VerdictError, check_subject, parse, sign};
use crate::{
    dsse::{Envelope, IN_TOTO_PAYLOAD_TYPE},
    id::GenerationNumber,
    signing::{SigningKey, VerifyingKey},
};

/// Predicate type of a key change.
pub const KEY_CHANGE_TYPE: &str = "https://assay.dev/key-change/v1";
const KEY_CHANGE_PART: &str = "key change";
/// Longest text that an operator may give, in bytes.
pub const MAX_KEY_CHANGE_BYTES: usize = 1024;

/// Whose key has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyOwner {
    /// The target's, which signs verdicts.
    Target,
    /// The source's, which signs what it read.
    Source,
}

impl std::fmt::Display for KeyOwner {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Target => "target",
            Self::Source => "source",
        })
    }
}

/// What the signer vouches for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct KeyChange {
    /// The repository.
    pub repository: String,
    /// Place in the ledger, from 1.
    pub sequence: u64,
    /// Digest of the entry before it; zero for the first.
    pub previous: HexDigest,
    /// Whose key has changed.
    pub owner: KeyOwner,
    /// The old public key, its 32 bytes.
    pub former_key: HexDigest,
    /// The new public key, its 32 bytes.
    pub new_key: HexDigest,
    /// The first entry that the new key signs; with `without_former_key` this may be an entry before this one. Of a source's key it is this one.
    pub since: u64,
    /// The newest generation that was sealed when this was signed; 0 for none. A source's old key vouches for no later one.
    pub generation: u64,
    /// The old key was lost or is not trusted: the new one signs this.
    pub without_former_key: bool,
    /// When, by the target host's clock.
    pub time: Timestamp,
    /// What the operator says of it.
    pub why: String,
}

impl KeyChange {
    /// The old key; nothing when it is no key.
    pub fn former(&self) -> Option<VerifyingKey> {
        VerifyingKey::from_bytes(&self.former_key.0)
    }

    /// The new key; nothing when it is no key.
    pub fn successor(&self) -> Option<VerifyingKey> {
        VerifyingKey::from_bytes(&self.new_key.0)
    }

    /// The newest generation that the old key of a source vouches for.
    pub fn last_generation(&self) -> GenerationNumber {
        GenerationNumber(self.generation)
    }

    /// The rules that every key change keeps, whoever signed it.
    fn check(&self) -> Result<(), VerdictError> {
        let rule = if self.former().is_none() || self.successor().is_none() {
            "both keys must be Ed25519 public keys"
        } else if self.former_key == self.new_key {
            "the old key and the new one must differ"
        } else if self.why.len() > MAX_KEY_CHANGE_BYTES {
            "its text must have at most 1024 bytes"
        } else if self.since > self.sequence.saturating_add(1) || self.since == 0 {
            "the new key signs from the next entry on at the latest"
        } else if self.without_former_key && self.owner == KeyOwner::Source {
            "the target's key signs a change of the source's"
        } else {
            return Ok(());
        };
        Err(VerdictError::KeyChange { rule })
    }
}

/// Signs a key change.
///
/// # Errors
/// [`VerdictError::KeyChange`].
///
/// # Panics
/// Never: these types are always JSON.
pub fn sign_key_change(change: &KeyChange, key: &SigningKey) -> Result<Envelope, VerdictError> {
    change.check()?;
    Ok(sign(KEY_CHANGE_TYPE, None, change, key))
}

/// Checks the signature of a key change with one of `keys`, and gives it with the place of that key. Whether that key may sign it is
/// the ledger's to say.
///
/// # Errors
/// [`VerdictError`]; [`VerdictError::OtherType`] for another statement.
pub fn verify_key_change(json: &[u8], keys: &[VerifyingKey]) -> Result<(KeyChange, usize), VerdictError> {
    let (payload, place) = Envelope::parse(json)
        .and_then(|envelope| envelope.verify_among(IN_TOTO_PAYLOAD_TYPE, keys))
        .map_err(|source| VerdictError::Envelope { source })?;
    Ok((parse_key_change(&payload)?, place))
}

/// Reads a key change without checking its signature.
///
/// # Errors
/// [`VerdictError`] when it is not one.
pub fn unverified_key_change(json: &[u8]) -> Result<KeyChange, VerdictError> {
    let payload = Envelope::parse(json)
        .and_then(|envelope| envelope.unverified_payload(IN_TOTO_PAYLOAD_TYPE))
        .map_err(|source| VerdictError::Envelope { source })?;
    parse_key_change(&payload)
}

fn parse_key_change(payload: &[u8]) -> Result<KeyChange, VerdictError> {
    let (subject, change): (_, KeyChange) = parse(payload, KEY_CHANGE_PART, KEY_CHANGE_TYPE)?;
    check_subject(&subject, None)?;
    change.check()?;
    Ok(change)
}
