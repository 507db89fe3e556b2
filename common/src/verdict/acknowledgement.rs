//! Acknowledgements: what an operator signs, with the target's key, about verdicts whose time of signing is not true because a clock was
//! wrong. The chain is append-only, so that such times stay in it for ever; an acknowledgement says who looked, when, and why all is well.
//!
//! It is about times alone. It covers no broken chain, no signature, no missing verdict and no tree that differs.

use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{HexDigest, VerdictError, check_subject, parse, sign};
use crate::{
    closed,
    dsse::{Envelope, IN_TOTO_PAYLOAD_TYPE},
    durable::create_durable,
    error::{IoContext as _, PathError},
    ledger::EntryId,
    signing::{SigningKey, VerifyingKey},
};

/// Predicate type of an acknowledgement.
pub const ACKNOWLEDGEMENT_TYPE: &str = "https://assay.dev/acknowledgement/v1";
const ACKNOWLEDGEMENT_PART: &str = "acknowledgement";
/// Longest text that an operator may give, in bytes.
pub const MAX_ACKNOWLEDGED_BYTES: usize = 1024;
/// Signed files of one kind in one repository.
const MAX_FILES: u32 = 100_000;

/// A verdict whose time is not true.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AcknowledgedVerdict {
    /// Its place in the ledger.
    pub sequence: u64,
    /// The digest by which the next verdict names it.
    pub digest: HexDigest,
}

/// What an operator vouches for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Acknowledgement {
    /// The repository.
    pub repository: String,
    /// Who has looked.
    pub by: String,
    /// When, by the target host's clock.
    pub time: Timestamp,
    /// What had happened.
    pub why: String,
    /// The verdicts.
    pub verdicts: Vec<AcknowledgedVerdict>,
}

/// Signs an acknowledgement.
///
/// # Panics
/// Never: these types are always JSON.
pub fn sign_acknowledgement(acknowledgement: &Acknowledgement, key: &SigningKey) -> Envelope {
    sign(ACKNOWLEDGEMENT_TYPE, None, acknowledgement, key)
}

/// Checks the signature of an acknowledgement with the target's key. Whether its verdicts are those of a ledger is the caller's to see.
///
/// # Errors
/// [`VerdictError`].
pub fn verify_acknowledgement(json: &[u8], key: &VerifyingKey) -> Result<Acknowledgement, VerdictError> {
    verify_acknowledgement_among(json, std::slice::from_ref(key)).map(|(acknowledgement, _)| acknowledgement)
}

/// The same with one of `keys`: gives the acknowledgement and the place of the key that signed it.
///
/// # Errors
/// [`VerdictError`].
pub fn verify_acknowledgement_among(
    json: &[u8],
    keys: &[VerifyingKey],
) -> Result<(Acknowledgement, usize), VerdictError> {
    let (payload, place) = Envelope::parse(json)
        .and_then(|envelope| envelope.verify_among(IN_TOTO_PAYLOAD_TYPE, keys))
        .map_err(|source| VerdictError::Acknowledgement { source })?;
    let (subject, acknowledgement): (_, Acknowledgement) =
        parse(&payload, ACKNOWLEDGEMENT_PART, ACKNOWLEDGEMENT_TYPE)?;
    check_subject(&subject, None)?;
    Ok((acknowledgement, place))
}

/// Keeps an acknowledgement in `folder`, and replaces none.
///
/// # Errors
/// When it cannot be written.
pub fn keep_acknowledgement(folder: &Path, envelope: &Envelope) -> Result<std::path::PathBuf, PathError> {
    keep_numbered(folder, envelope)
}

/// Keeps a signed file of an operator in `folder` under the next number, and replaces none.
pub(super) fn keep_numbered(folder: &Path, envelope: &Envelope) -> Result<std::path::PathBuf, PathError> {
    closed::create_folder(folder).at("create", folder)?;
    for number in 1..=MAX_FILES {
        let path = folder.join(format!("{number:06}.json"));
        if path.exists() {
            continue;
        }
        create_durable(&path, envelope.to_json().as_bytes(), closed::FILE_MODE)?;
        return Ok(path);
    }
    Err(PathError::new("add to", folder, std::io::Error::other("it has too many already")))
}

/// Verdicts as an operator names them: `5`, `5-8`.
///
/// # Errors
/// When the text is no such thing.
pub fn parse_verdicts(text: &str) -> Result<std::ops::RangeInclusive<u64>, &'static str> {
    const FORM: &str = "must be a verdict's number, or two with '-' between, for example 5-8";
    let number = |text: &str| {
        let number = text.trim().parse::<u64>().ok().filter(|number| *number > 0);
        number.or_else(|| Some(EntryId::parse(text)?.sequence())).ok_or(FORM)
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = number(first)?..=number(last)?;
    if range.is_empty() { Err(FORM) } else { Ok(range) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledgement_is_the_target_keys_alone() {
        let key = SigningKey::generate();
        let acknowledgement = Acknowledgement {
            repository: "acc".to_owned(),
            by: "alice".to_owned(),
            time: Timestamp::now(),
            why: "the clock".to_owned(),
            verdicts: vec![AcknowledgedVerdict { sequence: 2, digest: HexDigest([7; 32]) }],
        };
        let json = sign_acknowledgement(&acknowledgement, &key).to_json();
        let checked = verify_acknowledgement(json.as_bytes(), &key.verifying_key()).expect("it is signed");
        assert_eq!(checked, acknowledgement);
        let other = SigningKey::generate().verifying_key();
        assert!(verify_acknowledgement(json.as_bytes(), &other).is_err());
        let folder = tempfile::tempdir().expect("temp");
        let folder = folder.path().join("acknowledgements");
        let envelope = sign_acknowledgement(&acknowledgement, &key);
        let first = keep_acknowledgement(&folder, &envelope).expect("kept");
        let second = keep_acknowledgement(&folder, &envelope).expect("kept");
        assert!(first.ends_with("000001.json") && second.ends_with("000002.json"));
    }

    #[test]
    fn verdicts_are_named_by_number_or_range() {
        for (text, expected) in [("5", 5..=5), ("5-8", 5..=8), ("000000005-000000008", 5..=8)] {
            assert_eq!(parse_verdicts(text), Ok(expected), "{text}");
        }
        for text in ["", "0", "8-5", "a", "-", "1-", "-1"] {
            assert!(parse_verdicts(text).is_err(), "{text}");
        }
    }
}
