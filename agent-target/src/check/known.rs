//! What a step is told whose engine finds the parts itself, and what it tells of them.
//!
//! Some parts are known only when the engine runs: which files are a table's stands in the catalogue of a database. Such a step reads
//! [`Known`] from its standard input and leaves [`Found`] in its scratch folder, in the file [`FILE`]. What it finds counts only for a
//! step that passed, and a part that it carries must be one that it was told of.

use std::{collections::BTreeMap, fs::Metadata, io, os::unix::fs::MetadataExt as _, path::Path};

use assay_common::{confined::Folder, path::TreePath, verdict::HexDigest};
use serde::{Deserialize, Serialize};

/// The argument that stands for `{parts}`: there is something to read.
pub(crate) const ARGUMENT: &str = "--known-parts";
/// The file in the step's scratch folder.
pub(crate) const FILE: &str = "parts";
/// More than this is not read of it.
const MAX_BYTES: u64 = 32 << 20;

/// What a step is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known {
    /// Digest of what all parts depend on: programs, settings, versions.
    pub(crate) common: String,
    /// Files of the first root, by their path in it.
    pub(crate) files: BTreeMap<String, KnownFile>,
    /// Parts whose result may be carried, with the digest of what it depended on.
    pub(crate) parts: BTreeMap<String, HexDigest>,
    /// What the step told of the whole when they passed.
    pub(crate) state: Option<String>,
}

/// A file as the generation's manifest has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KnownFile {
    /// Digest of its content and, for relations of PostgreSQL, of its metadata.
    pub(crate) digest: HexDigest,
    pub(crate) size: u64,
    /// When it was changed last: seconds, and nanoseconds.
    pub(crate) written: (i64, u32),
}

/// What a step found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Found {
    /// What the parts depend on as a whole, for the next check alone.
    pub(crate) state: Option<String>,
    /// Parts that were checked and are sound, with the digest of what the result depends on.
    pub(crate) passed: BTreeMap<String, HexDigest>,
    /// How many parts were checked, those included whose result cannot be carried.
    pub(crate) checked: u64,
    /// Parts that were not checked, because they depend on what they depended on when they passed.
    pub(crate) carried: BTreeMap<String, HexDigest>,
}

impl KnownFile {
    /// A file that is in the workspace as the manifest has it.
    #[cfg(test)]
    pub(crate) fn of(digest: HexDigest, there: &Metadata) -> Self {
        let written = (there.mtime(), u32::try_from(there.mtime_nsec()).expect("nanoseconds"));
        Self { digest, size: there.len(), written }
    }

    /// True if a file in the workspace has the kind, size and time of the manifest's.
    pub(crate) fn matches(&self, there: &Metadata) -> bool {
        let written = u32::try_from(there.mtime_nsec()).map(|nanoseconds| (there.mtime(), nanoseconds));
        there.is_file() && there.len() == self.size && written == Ok(self.written)
    }
}

/// Reads what a step left in its scratch folder; `None` when it left nothing of the kind.
pub(super) fn read(scratch: &Path) -> Option<Found> {
    match read_file(scratch) {
        Ok(text) => serde_json::from_slice(&text).ok(),
        Err(error) => {
            tracing::debug!(%error, "the step has named no parts");
            None
        }
    }
}

fn read_file(scratch: &Path) -> io::Result<Vec<u8>> {
    let name = TreePath::parse(FILE.as_bytes()).map_err(io::Error::other)?;
    Folder::open(scratch)?.read_small_below(&name, MAX_BYTES)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    /// What lies in the scratch folder was written by a step: a link, a FIFO or rubbish is nothing.
    #[test]
    fn only_a_regular_file_of_this_form_is_read_from_the_scratch_folder() {
        let scratch = tempfile::tempdir().expect("temp");
        let path = scratch.path().join(FILE);
        assert_eq!(read(scratch.path()), None);
        let found = Found { checked: 3, ..Default::default() };
        let text = serde_json::to_string(&found).expect("JSON");
        fs::write(&path, &text).expect("write");
        assert_eq!(read(scratch.path()), Some(found));
        for rubbish in ["", "{}", "[1]", &text.replace("checked", "cheked")] {
            fs::write(&path, rubbish).expect("write");
            assert_eq!(read(scratch.path()), None, "{rubbish}");
        }
        fs::write(scratch.path().join("other"), &text).expect("write");
        fs::remove_file(&path).expect("remove");
        symlink(scratch.path().join("other"), &path).expect("link");
        assert_eq!(read(scratch.path()), None, "a link");
    }
}
