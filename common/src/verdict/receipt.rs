//! Receipts: what a source signs when it has a verdict, so that the verdict cannot be younger than that.
//!
//! A verdict carries the nonce that its source chose for the run, and the mark that the source signed: it was made after both.
//! The receipt closes the interval from the other side. It names the verdict by the digest of its bytes, and the ledger's head, so
//! that everything before it in the chain is no younger either.

use std::{fs, io, path::Path};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{HexDigest, Verdict, VerdictError, check_subject, link_digest, parse, same, sign};
use crate::{
    dsse::{Envelope, IN_TOTO_PAYLOAD_TYPE},
    id::RunId,
    ledger::EntryId,
    signing::{SigningKey, VerifyingKey},
};

/// Predicate type of a receipt.
pub const RECEIPT_TYPE: &str = "https://assay.dev/receipt/v1";
const RECEIPT_PART: &str = "receipt";
/// Longest receipt that is taken, in bytes: one has about a kilobyte.
pub const MAX_RECEIPT_BYTES: usize = 16 * 1024;

/// What the source vouches for: that it had a verdict at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Receipt {
    /// The repository.
    pub repository: String,
    /// The run that the verdict ended.
    pub run_id: RunId,
    /// BLAKE3 of the verdict's envelope as it came: what `b3sum` says of its file.
    pub verdict: HexDigest,
    /// The ledger's head as the verdict shows it: its place, and the digest that the next verdict names.
    pub ledger_head: String,
    /// When the source had it, by the source host's clock.
    pub received: Timestamp,
}

/// Signs the receipt for `envelope`, which holds `verdict`.
///
/// # Panics
/// Never: these types are always JSON.
pub fn sign_receipt(verdict: &Verdict, envelope: &[u8], received: Timestamp, key: &SigningKey) -> Envelope {
    let receipt = Receipt {
        repository: verdict.repository.clone(),
        run_id: verdict.run_id.clone(),
        verdict: HexDigest(*blake3::hash(envelope).as_bytes()),
        ledger_head: head(verdict.sequence, envelope),
        received,
    };
    sign(RECEIPT_TYPE, None, &receipt, key)
}

/// Checks a receipt: its signature with the source's key, and that it is for `envelope`, which holds `verdict`.
///
/// # Errors
/// [`VerdictError`].
pub fn verify_receipt(
    receipt_json: &[u8],
    key: &VerifyingKey,
    verdict: &Verdict,
    envelope: &[u8],
) -> Result<Receipt, VerdictError> {
    verify_receipt_among(receipt_json, std::slice::from_ref(key), verdict, envelope)
        .map(|(receipt, _)| receipt)
}

/// The same with one of `keys`: gives the receipt and the place of the key that signed it.
///
/// # Errors
/// [`VerdictError`].
pub fn verify_receipt_among(
    receipt_json: &[u8],
    keys: &[VerifyingKey],
    verdict: &Verdict,
    envelope: &[u8],
) -> Result<(Receipt, usize), VerdictError> {
    let (payload, place) = Envelope::parse(receipt_json)
        .and_then(|receipt| receipt.verify_among(IN_TOTO_PAYLOAD_TYPE, keys))
        .map_err(|source| VerdictError::Receipt { source })?;
    let (subject, receipt): (_, Receipt) = parse(&payload, RECEIPT_PART, RECEIPT_TYPE)?;
    check_subject(&subject, None)?;
    same("repository", &receipt.repository, &verdict.repository)?;
    same("run", receipt.run_id.as_str(), verdict.run_id.as_str())?;
    let digest = HexDigest(*blake3::hash(envelope).as_bytes());
    same("verdict's digest", &receipt.verdict.to_string(), &digest.to_string())?;
    same("ledger's head", &receipt.ledger_head, &head(verdict.sequence, envelope))?;
    Ok((receipt, place))
}

fn head(sequence: u64, envelope: &[u8]) -> String {
    format!("{}:{}", EntryId(sequence), link_digest(envelope))
}

/// Name of the file that holds the receipt for a verdict, in the folder of receipts.
pub fn receipt_name(id: EntryId) -> String {
    format!("{id}.json")
}

/// The receipt for a verdict in a folder of receipts; `None` when there is none.
///
/// # Errors
/// When it cannot be read, or is too long for one.
pub fn read_receipt(folder: &Path, id: EntryId) -> io::Result<Option<Vec<u8>>> {
    let path = folder.join(receipt_name(id));
    match fs::metadata(&path) {
        Ok(stat) if stat.len() > MAX_RECEIPT_BYTES as u64 => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "too long for a receipt"))
        }
        Ok(_) => fs::read(&path).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
