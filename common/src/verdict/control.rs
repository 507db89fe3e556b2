//! Negative controls: whether a check finds damage that was made on purpose. The target signs each, and each later verdict
//! carries the newest.

use serde::{Deserialize, Serialize};

use super::{HexDigest, Outcome, VerdictError, check_subject, parse, same, sign};
use crate::{
    dsse::{Envelope, IN_TOTO_PAYLOAD_TYPE},
    id::GenerationNumber,
    signing::{SigningKey, VerifyingKey},
};

/// Predicate type of a signed control.
pub const CONTROL_TYPE: &str = "https://assay.dev/negative-control/v1";
const CONTROL_PART: &str = "negative control";

/// A check of data that was damaged on purpose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NegativeControl {
    /// FAIL: the damage was found, as it must be. PASS: some was not, and the checker cannot be trusted. INCONCLUSIVE: the
    /// check could not do its work, and nothing is known of it.
    pub outcome: Outcome,
    /// When.
    pub time: jiff::Timestamp,
    /// The generation whose data was damaged, in a workspace; null in verdicts of the first version, which had no more
    /// than the two fields above.
    #[serde(default)]
    pub generation: Option<GenerationNumber>,
    /// Why, for a person.
    #[serde(default)]
    pub message: String,
    /// What the places were chosen by.
    #[serde(default)]
    pub seed: Option<u64>,
    /// BLAKE3 of the profile's file that was used.
    #[serde(default)]
    pub profile: Option<HexDigest>,
    /// Each damage that was made, in order.
    #[serde(default)]
    pub damages: Vec<ControlDamage>,
}

/// One damage, and what the check said to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ControlDamage {
    /// For example `flip-byte`.
    pub kind: String,
    /// Path below the tree, made printable.
    pub file: String,
    /// What was done there, with offsets in bytes.
    pub what: String,
    /// What the check said.
    pub outcome: Outcome,
    /// Its reason.
    pub reason: String,
}

/// Whether a checker's word counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// It found the damage.
    Trusted,
    /// It passed damaged data.
    NotTrusted,
    /// Nothing is known.
    Unknown,
}

impl Trust {
    /// The word for it on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trusted => "trusted",
            Self::NotTrusted => "not-trusted",
            Self::Unknown => "unknown",
        }
    }
}

impl NegativeControl {
    /// What it says of the checker that it was made with.
    pub fn trust(&self) -> Trust {
        match self.outcome {
            Outcome::Fail => Trust::Trusted,
            Outcome::Pass => Trust::NotTrusted,
            Outcome::Inconclusive | Outcome::NotRun => Trust::Unknown,
        }
    }
}

/// A control with the repository that it is of.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Signed {
    repository: String,
    control: NegativeControl,
}

/// Signs a control of `repository`.
///
/// # Panics
/// Never: these types are always JSON.
pub fn sign_control(repository: &str, control: &NegativeControl, key: &SigningKey) -> Envelope {
    sign(CONTROL_TYPE, None, &Signed { repository: repository.to_owned(), control: control.clone() }, key)
}

/// Checks a signed control: its signature, and that it is of `repository`.
///
/// # Errors
/// [`VerdictError`].
pub fn verify_control(
    repository: &str,
    envelope_json: &[u8],
    key: &VerifyingKey,
) -> Result<NegativeControl, VerdictError> {
    verify_control_among(repository, envelope_json, std::slice::from_ref(key))
}

/// The same with one of `keys`.
///
/// # Errors
/// [`VerdictError`].
pub fn verify_control_among(
    repository: &str,
    envelope_json: &[u8],
    keys: &[VerifyingKey],
) -> Result<NegativeControl, VerdictError> {
    let (payload, _) = Envelope::parse(envelope_json)
        .and_then(|envelope| envelope.verify_among(IN_TOTO_PAYLOAD_TYPE, keys))
        .map_err(|source| VerdictError::Envelope { source })?;
    let (subject, signed): (_, Signed) = parse(&payload, CONTROL_PART, CONTROL_TYPE)?;
    check_subject(&subject, None)?;
    same("repository", &signed.repository, repository)?;
    Ok(signed.control)
}
