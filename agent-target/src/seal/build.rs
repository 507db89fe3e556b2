//! Builds the tree from a validated manifest: one walk in manifest order, every call below a held folder.

use std::{io, path::Path, sync::Arc};

use assay_common::{
    confined::Folder,
    error::IoContext as _,
    fault::{self, Point},
    fidelity::most_names,
    manifest::{Entry, EntryKind},
    path::TreePath,
};

use super::{
    SealError, Source, named,
    names::{copy_special_or_file, count_names, give_group_its_own_file, is_full},
};
use crate::store::{Record, Staging, TREE};

/// A folder above the place where the walk stands. It gets its metadata when the walk leaves it, because everything
/// made in it changes its time.
struct Level {
    path: TreePath,
    entry: Entry,
    new: Arc<Folder>,
    /// The same folder of the base, if it has one.
    base: Option<Folder>,
}

/// Whether the metadata in the base's tree is what the base's manifest says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// It is.
    Exact,
    /// A version before this one made the tree: entries in it may have inherited an ACL. What differs is copied, not linked.
    Compare,
}

impl Trust {
    /// How the tree of this record is trusted.
    pub(crate) fn of(record: &Record) -> Self {
        if record.copy_rules.is_some() { Self::Exact } else { Self::Compare }
    }
}

/// Builds `tree` in the folder `parent` from `entries`. Files that the base has are linked to it: both trees share them, and
/// neither is ever written to again. New content comes out of `staging`.
///
/// # Errors
/// Names the entry that cannot be made.
pub(crate) fn build_tree(
    parent: &Path,
    base: Option<Folder>,
    trust: Trust,
    staging: Option<&Staging>,
    mut entries: impl FnMut() -> Result<Option<(Entry, Source)>, SealError>,
) -> Result<(), SealError> {
    let root_path = parent.join(TREE);
    let parent = Folder::open(parent).at("open", parent)?;
    let root = Arc::new(parent.create_folder(TREE.as_bytes()).at("create", &root_path)?);
    let most_names = most_names(&root).at("look at", &root_path)?;
    let mut base_root = base;
    let mut levels: Vec<Level> = Vec::new();
    while let Some((entry, source)) = entries()? {
        let path = TreePath::parse(&entry.path).expect("the draft was validated");
        let Some(folder) = path.parent() else {
            let (new, base) = (Arc::clone(&root), base_root.take());
            levels.push(Level { path, entry, new, base });
            continue;
        };
        while levels.last().is_some_and(|level| level.path.as_bytes() != folder) {
            leave(&mut levels)?;
        }
        let level = levels.last().expect("the draft was validated: every folder comes first");
        let name = path.name();
        if entry.kind() == EntryKind::Directory {
            let new = level.new.create_folder(name).map_err(|source| named(&path, source))?;
            let base = level.base.as_ref().and_then(|base| base.open_folder(name).ok());
            levels.push(Level { path, entry, new: Arc::new(new), base });
            continue;
        }
        let places =
            Places { staging, root: &root, new: &level.new, base: level.base.as_ref(), trust, most_names };
        places.put(name, &entry, source).map_err(|source| named(&path, source))?;
    }
    while !levels.is_empty() {
        leave(&mut levels)?;
    }
    Ok(())
}

/// Gives the deepest folder its metadata.
fn leave(levels: &mut Vec<Level>) -> Result<(), SealError> {
    let level = levels.pop().expect("the caller looked");
    level.new.set_own_metadata(&level.entry).map_err(|source| named(&level.path, source))
}

/// Where an entry that is no folder goes, and where it may come from.
pub(super) struct Places<'a> {
    pub staging: Option<&'a Staging>,
    /// Root of the new tree.
    pub root: &'a Folder,
    /// The entry's folder in the new tree.
    pub new: &'a Folder,
    /// The same folder of the base.
    pub base: Option<&'a Folder>,
    pub trust: Trust,
    /// Names that a file may have on the store's file system.
    pub most_names: u64,
}

impl Places<'_> {
    /// True for a file of the base that has so many names that all further names which this tree may have for it might not fit: more
    /// than half of what the file system allows. With fewer, as many again fit.
    fn has_many_names(&self, base: &Folder, name: &[u8], entry: &Entry) -> io::Result<bool> {
        if self.most_names == u64::MAX || entry.kind() != EntryKind::File {
            return Ok(false);
        }
        Ok(count_names(base, name)? > self.most_names / 2)
    }

    /// Makes the entry, which may not exist yet.
    pub(super) fn put(&self, name: &[u8], entry: &Entry, source: Source) -> io::Result<()> {
        fault::at(Point::SealEntry)?;
        match (entry.kind(), source) {
            (EntryKind::Hardlink, _) => {
                let first = TreePath::parse(&entry.link_target).expect("the entry was validated");
                let parent =
                    TreePath::parse(first.parent().expect("not the root")).expect("a prefix of a path");
                let parent = self.root.open_folder_below(&parent)?;
                match parent.link(first.name(), self.new, name) {
                    Err(error) if is_full(&error) => {
                        give_group_its_own_file(self.root, &parent, first.name())?;
                        parent.link(first.name(), self.new, name)
                    }
                    linked => linked,
                }
            }
            (_, Source::Base) => {
                let base = self.base.ok_or(io::ErrorKind::NotFound)?;
                let is_as_sealed = self.trust == Trust::Exact || base.has_metadata(name, entry)?;
                if is_as_sealed && !self.has_many_names(base, name, entry)? {
                    match base.link(name, self.new, name) {
                        Err(error) if is_full(&error) => {}
                        linked => return linked,
                    }
                }
                // This tree gets a file of its own.
                copy_special_or_file(base, self.new, name, entry)?;
                self.new.set_metadata(name, entry)
            }
            (EntryKind::File, Source::Content(content)) => {
                let staging = self.staging.ok_or(io::ErrorKind::NotFound)?;
                let (folder, content) =
                    staging.locate(staging.session(), content).map_err(io::Error::other)?;
                folder.rename(&content, self.new, name).map_err(|error| match error.kind() {
                    io::ErrorKind::NotFound => io::Error::new(
                        io::ErrorKind::InvalidData,
                        "its content was not received, or belongs to an entry before it",
                    ),
                    _ => error,
                })?;
                self.new.set_metadata(name, entry)
            }
            _ => {
                self.new.create_special(name, entry)?;
                self.new.set_metadata(name, entry)
            }
        }
    }
}
