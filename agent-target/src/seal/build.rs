//! Builds the tree from a validated manifest: one walk in manifest order, every call below a held folder.

use std::{io, os::unix::fs::FileExt as _, sync::Arc};

use assay_common::{
    confined::Folder,
    error::IoContext as _,
    id::GenerationNumber,
    manifest::{Entry, EntryKind},
    path::TreePath,
};

use super::{PlannedEntries, SealError, Source, named};
use crate::store::{Staging, Store, TREE};

/// A folder above the place where the walk stands. It gets its metadata when the walk leaves it, because everything
/// made in it changes its time.
struct Level {
    path: TreePath,
    entry: Entry,
    new: Arc<Folder>,
    /// The same folder of the base, if it has one.
    base: Option<Folder>,
}

/// Builds `staging/N/tree`. Files that the base has are linked to it: both generations share them, and neither is ever
/// written to again.
///
/// # Errors
/// Names the entry that cannot be made.
pub fn build_tree(store: &Store, staging: &Staging, base: Option<GenerationNumber>) -> Result<(), SealError> {
    let parent = Folder::open(staging.path()).at("open", staging.path())?;
    let root_path = staging.path().join(TREE);
    let root = Arc::new(parent.create_folder(TREE.as_bytes()).at("create", &root_path)?);
    let mut base_root = match base {
        None => None,
        Some(base) => {
            let path = store.generation_path(base).join(TREE);
            Some(Folder::open(&path).at("open", &path)?)
        }
    };
    let mut levels: Vec<Level> = Vec::new();
    let mut planned = PlannedEntries::open(staging)?;
    while let Some((entry, source)) = planned.next_entry()? {
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
        place(staging, &root, level, name, &entry, source).map_err(|source| named(&path, source))?;
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

fn place(
    staging: &Staging,
    root: &Folder,
    level: &Level,
    name: &[u8],
    entry: &Entry,
    source: Source,
) -> io::Result<()> {
    match (entry.kind(), source) {
        (EntryKind::Hardlink, _) => {
            let first = TreePath::parse(&entry.link_target).expect("the entry was validated");
            let parent = TreePath::parse(first.parent().expect("not the root")).expect("a prefix of a path");
            root.open_folder_below(&parent)?.link(first.name(), &level.new, name)
        }
        (_, Source::Base) => {
            let base = level.base.as_ref().ok_or(io::ErrorKind::NotFound)?;
            match base.link(name, &level.new, name) {
                // As many names as the file system allows (ext4: 65 000): this generation gets a file of its own.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::MLINK.raw_os_error()) => {
                    copy_file(base, level, name)?;
                    level.new.set_metadata(name, entry)
                }
                linked => linked,
            }
        }
        (EntryKind::File, Source::Content(content)) => {
            let (folder, content) = staging.locate(staging.session(), content).map_err(io::Error::other)?;
            folder.rename(&content, &level.new, name)?;
            level.new.set_metadata(name, entry)
        }
        _ => {
            level.new.create_special(name, entry)?;
            level.new.set_metadata(name, entry)
        }
    }
}

/// Copies a file of the base, holes included.
fn copy_file(base: &Folder, level: &Level, name: &[u8]) -> io::Result<()> {
    let (from, to) = (base.open_file(name)?, level.new.create_file(name)?);
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
