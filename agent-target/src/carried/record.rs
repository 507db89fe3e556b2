//! The record of the parts that have passed. It lies beside the ledger, and counts for nothing but by its digest, which a signed verdict
//! names: so it needs no signature of its own, and a verdict stays small whatever the number of parts.

use std::{collections::BTreeMap, fs, io, path::Path};

use assay_common::{
    closed,
    digest::ContentDigest,
    durable::{remove_temporary, write_durable},
    error::PathError,
    verdict::HexDigest,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Folder of the records in a repository's store.
pub(super) const FOLDER: &str = "parts";
/// Version of the record's form, and of how parts and their inputs are found.
pub(super) const FORM: u32 = 2;
/// A longer record is not ours.
const MAX_BYTES: u64 = 32 << 20;

/// The parts of all steps that have passed, up to one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PartsRecord {
    pub(super) form: u32,
    pub(super) repository: String,
    /// When the check began for whose verdict it was made.
    pub(super) time: Timestamp,
    /// When the newest check began that carried nothing.
    pub(super) full_check: Timestamp,
    /// The checks in which the parts passed.
    pub(super) checks: Vec<CheckOfParts>,
    /// By the step's name.
    pub(super) steps: BTreeMap<String, StepRecord>,
}

/// A check in which parts passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CheckOfParts {
    /// The place of its verdict in the ledger; `None`: the verdict that names this record.
    pub(super) sequence: Option<u64>,
    /// When it began.
    pub(super) time: Timestamp,
}

/// The parts of a step.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StepRecord {
    /// The engine's name and version, as the step said.
    pub(super) engine: Option<String>,
    /// What the step told of the whole when it passed.
    pub(super) state: Option<String>,
    /// By its name: the digest of what the part depended on, and the number of its check in `checks`.
    pub(super) parts: BTreeMap<String, (HexDigest, usize)>,
}

impl PartsRecord {
    /// Writes the record below a repository's store, and gives the digest by which a verdict names it. What another verdict names stays.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn write(&self, store: &Path) -> Result<HexDigest, PathError> {
        let folder = store.join(FOLDER);
        let text = serde_json::to_vec(self).expect("these types are always JSON");
        let digest = HexDigest::from(ContentDigest::of(&text));
        match closed::create_one_folder(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(PathError::new("create", &folder, error));
            }
            _ => {}
        }
        write_durable(&folder.join(name(digest)), &text, closed::FILE_MODE)?;
        Ok(digest)
    }

    /// The record with this digest. `None` when it is not there, or is not what the digest says.
    pub(super) fn read(store: &Path, digest: HexDigest) -> Option<Self> {
        let path = store.join(FOLDER).join(name(digest));
        if fs::symlink_metadata(&path).ok()?.len() > MAX_BYTES {
            return None;
        }
        let text = fs::read(&path).ok()?;
        if HexDigest::from(ContentDigest::of(&text)) != digest {
            tracing::warn!(path = %path.display(), "the record of parts is not what the verdict names: nothing is carried");
            return None;
        }
        serde_json::from_slice(&text).ok().filter(|record: &Self| record.form == FORM)
    }
}

/// Removes all records but that with the digest `keep`: the newest verdict that names one names that one.
pub(super) fn remove_others(store: &Path, keep: Option<HexDigest>) {
    let folder = store.join(FOLDER);
    drop(remove_temporary(&folder));
    let keep = keep.map(name);
    for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
        if keep.as_deref().is_none_or(|keep| entry.file_name() != keep) {
            // One that stays is read by nobody.
            drop(fs::remove_file(entry.path()));
        }
    }
}

fn name(digest: HexDigest) -> String {
    format!("{digest}.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> PartsRecord {
        let time = Timestamp::from_second(1_800_000_000).expect("a time");
        let parts = BTreeMap::from([("revisions 0:99".to_owned(), (HexDigest([1; 32]), 0))]);
        PartsRecord {
            form: FORM,
            repository: "r".to_owned(),
            time,
            full_check: time,
            checks: vec![CheckOfParts { sequence: None, time }],
            steps: BTreeMap::from([("verify".to_owned(), StepRecord { engine: None, state: None, parts })]),
        }
    }

    #[test]
    fn a_record_that_was_edited_is_none() {
        let store = tempfile::tempdir().expect("temp");
        let record = record();
        let digest = record.write(store.path()).expect("written");
        assert_eq!(PartsRecord::read(store.path(), digest), Some(record.clone()));
        let path = store.path().join(FOLDER).join(name(digest));
        let text = fs::read_to_string(&path).expect("read");
        for edited in [text.replace("0:99", "0:98"), text[1..].to_owned(), String::new()] {
            fs::write(&path, edited).expect("write");
            assert_eq!(PartsRecord::read(store.path(), digest), None);
        }
        assert_eq!(PartsRecord::read(store.path(), HexDigest([7; 32])), None);
        // Of another form: its digest holds, and it says what is not known here.
        let other = PartsRecord { form: FORM + 1, ..record.clone() };
        let other = other.write(store.path()).expect("written");
        assert_eq!(PartsRecord::read(store.path(), other), None);
        let digest = record.write(store.path()).expect("written again");
        remove_others(store.path(), Some(digest));
        assert_eq!(fs::read_dir(store.path().join(FOLDER)).expect("list").count(), 1);
        assert_eq!(PartsRecord::read(store.path(), digest), Some(record));
        remove_others(store.path(), None);
        assert_eq!(fs::read_dir(store.path().join(FOLDER)).expect("list").count(), 0);
    }
}
