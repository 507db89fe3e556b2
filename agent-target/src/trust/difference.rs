//! What differs between two sealed generations: one merge of their manifests.

use std::{fs::File, io::BufReader};

use assay_common::{
    error::IoContext as _,
    id::GenerationNumber,
    manifest::{Entry, EntryFault, EntryKind, ManifestError, ManifestReader, validate_entry},
    merge_join::MergeJoin,
    path::TreePath,
};

use crate::store::{MANIFEST, Store, StoreError};

/// Why manifests cannot be compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DifferenceError {
    /// The file.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is in it.
    #[error("the manifest of generation {generation}: {source}")]
    Manifest {
        /// Whose.
        generation: GenerationNumber,
        /// What is wrong.
        source: ManifestError,
    },
}

/// An entry that is not the same in both.
#[derive(Debug)]
pub struct Change {
    /// Where.
    pub path: TreePath,
    /// In the older generation.
    pub before: Option<Entry>,
    /// In the newer one.
    pub after: Option<Entry>,
}

impl Change {
    /// The word for it: `added`, `removed`, `content` or `metadata`.
    pub fn kind(&self) -> &'static str {
        match (&self.before, &self.after) {
            (None, _) => "added",
            (_, None) => "removed",
            (Some(before), Some(after)) => {
                let same = before.kind == after.kind
                    && (before.size, &before.digest) == (after.size, &after.digest)
                    && before.link_target == after.link_target;
                if same { "metadata" } else { "content" }
            }
        }
    }

    /// Whether the content of a file is concerned.
    pub fn is_content(&self) -> bool {
        let is_file =
            |entry: &Option<Entry>| entry.as_ref().is_some_and(|entry| entry.kind() == EntryKind::File);
        self.kind() != "metadata" && (is_file(&self.before) || is_file(&self.after))
    }
}

/// Entries of one manifest, in order.
struct Entries {
    generation: GenerationNumber,
    reader: ManifestReader<BufReader<File>>,
}

impl Entries {
    fn open(store: &Store, generation: GenerationNumber) -> Result<Self, DifferenceError> {
        let path = store.generation_path(generation).join(MANIFEST);
        let file = File::open(&path).at("open", &path).map_err(StoreError::from)?;
        let reader = ManifestReader::open(BufReader::new(file))
            .map_err(|source| DifferenceError::Manifest { generation, source })?;
        Ok(Self { generation, reader })
    }

    fn next(&mut self) -> Result<Option<(TreePath, Entry)>, DifferenceError> {
        let fault = |source| DifferenceError::Manifest { generation: self.generation, source };
        let Some(entry) = self.reader.next_entry().map_err(fault)? else {
            return Ok(None);
        };
        let path = validate_entry(&entry).map_err(|error: EntryFault| fault(error.into()))?;
        Ok(Some((path, entry)))
    }
}

/// Tells every entry that differs from `older` to `newer`, in the order of the tree. Folders whose times alone differ are
/// left out: they follow from what is in them.
///
/// # Errors
/// When a manifest cannot be read.
pub fn differences(
    store: &Store,
    (older, newer): (GenerationNumber, GenerationNumber),
    mut sink: impl FnMut(Change),
) -> Result<(), DifferenceError> {
    let (mut old, mut new) = (Entries::open(store, older)?, Entries::open(store, newer)?);
    let mut join = MergeJoin::default();
    while let Some(joined) = join.next(|| old.next(), || new.next())? {
        let (before, after) = joined.split();
        let Some(path) = after.as_ref().or(before.as_ref()).map(|(path, _)| path.clone()) else {
            continue;
        };
        let change =
            Change { path, before: before.map(|(_, entry)| entry), after: after.map(|(_, entry)| entry) };
        if !is_same(&change) {
            sink(change);
        }
    }
    Ok(())
}

fn is_same(change: &Change) -> bool {
    let (Some(before), Some(after)) = (&change.before, &change.after) else {
        return false;
    };
    if before.kind() != EntryKind::Directory || after.kind() != EntryKind::Directory {
        return before == after;
    }
    let timeless = |entry: &Entry| Entry { mtime_seconds: 0, mtime_nanos: 0, ..entry.clone() };
    timeless(before) == timeless(after)
}
