//! The ranges of revisions of a Subversion repository as parts, and what each depends on.

use std::{collections::BTreeMap, io, path::Path};

use assay_common::{
    confined::Folder,
    digest::ContentDigest,
    manifest::{Entry, EntryKind},
    path::TreePath,
    verdict::HexDigest,
};

use super::{inputs::Inputs, listing::Part};
use crate::{
    check::PartArgument,
    engine::subversion::layout::{Layout, Place},
};

/// Files that say where the revisions are. Longer ones are of no repository.
const MAX_BYTES: u64 = 4096;
const FORMAT: &str = "db/format";
const MIN_UNPACKED: &str = "db/min-unpacked-rev";
const CURRENT: &str = "db/current";

/// Gathers what the ranges of revisions depend on.
pub(super) struct RevisionParts {
    settings: HexDigest,
    /// `None`: the ranges are not known.
    layout: Option<Layout>,
    /// The files that the layout was read from, until the manifest has said the same of them.
    read: BTreeMap<&'static str, ContentDigest>,
    common: Inputs,
    /// By the first revision of a range.
    content: BTreeMap<u64, Inputs>,
    properties: BTreeMap<u64, Inputs>,
    /// By the first revision of a shard.
    packed_properties: BTreeMap<u64, Inputs>,
}

impl RevisionParts {
    /// Of the repository whose copy lies in `folder`.
    pub(super) fn of(folder: &Path, settings: HexDigest) -> Self {
        let files = [FORMAT, MIN_UNPACKED, CURRENT].map(|name| (name, read_small(folder, name)));
        let text = |at: usize| files[at].1.as_deref().unwrap_or_default();
        // A format that has no packs has no such file; a file that cannot be read is another matter.
        let has_all = files.iter().all(|(name, text)| match text {
            Ok(_) => true,
            Err(error) => *name == MIN_UNPACKED && error.kind() == io::ErrorKind::NotFound,
        });
        let min_unpacked = if files[1].1.is_ok() { text(1) } else { b"0\n" };
        let layout = Layout::read(text(0), min_unpacked, text(2)).filter(|_| has_all);
        let read = files.into_iter().filter_map(|(name, text)| Some((name, ContentDigest::of(&text.ok()?))));
        Self {
            settings,
            layout,
            read: read.collect(),
            common: Inputs::new(),
            content: BTreeMap::new(),
            properties: BTreeMap::new(),
            packed_properties: BTreeMap::new(),
        }
    }

    /// Takes an entry of the repository.
    pub(super) fn take(&mut self, path: &TreePath, entry: &Entry, digest: HexDigest, is_altered: bool) {
        let Some(layout) = self.layout else { return };
        if let Some(name) =
            [FORMAT, MIN_UNPACKED, CURRENT].into_iter().find(|it| it.as_bytes() == path.as_bytes())
        {
            // The disk, or a control, has made something else of it.
            let is_as_read = self.read.remove(name).is_some_and(|read| entry.digest == read.0);
            if !is_as_read || is_altered {
                self.layout = None;
                return;
            }
        }
        let place = layout.place(path.as_bytes());
        if place != Place::Unread && !matches!(entry.kind(), EntryKind::File | EntryKind::Directory) {
            // The check itself refuses links, and a further name of a file has its content elsewhere.
            self.layout = None;
            return;
        }
        let inputs = match place {
            Place::Unread => return,
            Place::Common => &mut self.common,
            Place::Content(revision) => {
                self.content.entry(layout.range_of(revision)).or_insert_with(Inputs::new)
            }
            Place::Properties(revision) => {
                self.properties.entry(layout.range_of(revision)).or_insert_with(Inputs::new)
            }
            Place::PackedProperties(shard) => self.packed_properties.entry(shard).or_insert_with(Inputs::new),
        };
        inputs.add(&digest.0);
    }

    /// The ranges; `None` when they cannot be told apart, and all is to be verified as one.
    pub(super) fn finish(self) -> Option<Vec<Part>> {
        // A file that the layout was read from and that the manifest does not have.
        let layout = self.layout.filter(|_| self.read.is_empty())?;
        let nothing = Inputs::new().finish();
        let digest = |inputs: Option<&Inputs>| inputs.map_or(nothing, Inputs::finish);
        // Of all revisions so far: a revision may be made of any older one.
        let mut so_far = Inputs::new();
        let mut content = self.content.iter().peekable();
        let parts = layout.ranges()?.into_iter().map(|range| {
            while let Some((_, inputs)) = content.next_if(|(first, _)| **first <= range.last) {
                so_far.add(&inputs.finish().0);
            }
            let mut inputs = Inputs::new();
            inputs.add(b"revisions").add(&self.settings.0).number(range.first).number(range.last);
            inputs.add(&digest(Some(&self.common)).0).number(layout.packed_up_to(range.last));
            inputs.add(&so_far.finish().0);
            inputs.add(&digest(self.properties.get(&range.first)).0);
            inputs.add(&digest(self.packed_properties.get(&layout.shard_start(range.first))).0);
            Part {
                name: format!("revisions {range}"),
                argument: PartArgument::Text(range.to_string()),
                inputs: Some(inputs.finish()),
            }
        });
        Some(parts.collect())
    }
}

/// The content of a small file of the copy.
fn read_small(folder: &Path, name: &str) -> io::Result<Vec<u8>> {
    let path = TreePath::parse(name.as_bytes()).map_err(io::Error::other)?;
    Folder::open(folder)?.read_small_below(&path, MAX_BYTES)
}

#[cfg(test)]
mod tests;
