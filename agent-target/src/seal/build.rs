//! Builds the tree from a validated manifest: one walk in manifest order, every call below a held folder.

use std::{io, os::unix::fs::FileExt as _, path::Path, sync::Arc};

use assay_common::{
    confined::Folder,
    error::IoContext as _,
    fault::{self, Point},
    manifest::{Entry, EntryKind},
    path::TreePath,
};

use super::{SealError, Source, named};
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
        let places = Places { staging, root: &root, new: &level.new, base: level.base.as_ref(), trust };
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
}

impl Places<'_> {
    /// Makes the entry, which may not exist yet.
    pub(super) fn put(&self, name: &[u8], entry: &Entry, source: Source) -> io::Result<()> {
        fault::at(Point::SealEntry)?;
        match (entry.kind(), source) {
            (EntryKind::Hardlink, _) => {
                let first = TreePath::parse(&entry.link_target).expect("the entry was validated");
                let parent =
                    TreePath::parse(first.parent().expect("not the root")).expect("a prefix of a path");
                self.root.open_folder_below(&parent)?.link(first.name(), self.new, name)
            }
            (_, Source::Base) => {
                let base = self.base.ok_or(io::ErrorKind::NotFound)?;
                if self.trust == Trust::Compare && !base.has_metadata(name, entry)? {
                    if entry.kind() == EntryKind::File {
                        copy_file(base, self.new, name)?;
                    } else {
                        self.new.create_special(name, entry)?;
                    }
                    return self.new.set_metadata(name, entry);
                }
                match base.link(name, self.new, name) {
                    // As many names as the file system allows (ext4: 65 000): this tree gets a file of its own.
                    Err(error) if error.raw_os_error() == Some(rustix::io::Errno::MLINK.raw_os_error()) => {
                        if entry.kind() == EntryKind::File {
                            copy_file(base, self.new, name)?;
                        } else {
                            self.new.create_special(name, entry)?;
                        }
                        self.new.set_metadata(name, entry)
                    }
                    linked => linked,
                }
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

/// Copies a file of the base, holes included.
fn copy_file(base: &Folder, new: &Folder, name: &[u8]) -> io::Result<()> {
    let (from, to) = (base.open_file(name)?, new.create_file(name)?);
    if rustix::fs::ioctl_ficlone(&to, &from).is_ok() {
        return Ok(());
    }
    to.set_len(from.metadata()?.len())?;
    let (mut offset, mut buffer) = (0, vec![0; 256 * 1024]);
    loop {
        let count = from.read_at(&mut buffer, offset)?;
        if count == 0 {
            return Ok(());
        }
        if buffer[..count].iter().any(|byte| *byte != 0) {
            to.write_all_at(&buffer[..count], offset)?;
        }
        offset += count as u64;
    }
}
