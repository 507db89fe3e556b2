//! The next tree, laid out ahead: between runs the newest generation's tree is linked a second time, entry by entry, so that
//! sealing the next generation costs as much as has changed, not as much as there is (docs/adr/0005).
//!
//! `ahead/tree` is whole when `ahead/of` stands beside it, with the root digest that it is of:
//!
//! 1. `of` is removed, then the tree;
//! 2. the tree is built and everything is on disk (`syncfs`);
//! 3. `of` is written (temporary file, fsync, rename, fsync of the folder).
//!
//! A crash before 3 leaves a tree that nobody uses, which the next preparation removes. Taking it goes the other way: `of` is
//! removed, durably, before the tree is renamed into staging; a crash in between leaves the same.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::PoisonError,
};

use assay_common::{
    closed,
    confined::Folder,
    digest::RootDigest,
    durable,
    error::{IoContext as _, PathError},
    fault::{self, Point},
    id::GenerationNumber,
    manifest::EntryKind,
};

use crate::{
    seal::{SealError, Source, Trust, build_tree, open_manifest},
    store::{FolderCost, Staging, Store, TREE},
};

/// Behind the root digest in `of`: a tree of an earlier version, whose entries may have inherited an ACL, lacks it.
const EXACT: &str = " exact";

fn folder(store: &Store) -> PathBuf {
    store.path().join("ahead")
}

fn of(store: &Store) -> PathBuf {
    folder(store).join("of")
}

/// The tree that is laid out, by its root digest.
fn laid_out(store: &Store) -> Option<RootDigest> {
    let text = fs::read_to_string(of(store)).ok()?;
    RootDigest::from_hex(text.trim().strip_suffix(EXACT)?)
}

/// Lays the tree of a sealed generation out a second time, unless that has been done. Waits for one that is being done.
///
/// # Errors
/// When the store cannot be written to. The next seal then builds its tree from nothing.
pub fn prepare(store: &Store, number: GenerationNumber) -> Result<(), SealError> {
    let _turn = store.ahead().lock().unwrap_or_else(PoisonError::into_inner);
    let root = RootDigest::from_hex(&store.record(number)?.root_digest);
    if laid_out(store).is_some() && laid_out(store) == root {
        return Ok(());
    }
    let folder = folder(store);
    closed::create_folder(&folder).at("create", &folder)?;
    let step = |point| fault::at(point).at("write", &folder);
    step(Point::AheadForget)?;
    forget(store)?;
    step(Point::AheadBuild)?;
    link_tree(store, number, &folder)?;
    let root = root.ok_or(io::ErrorKind::InvalidData).map_err(io::Error::from).at("read", &folder)?;
    step(Point::AheadSync)?;
    Folder::open(&folder).and_then(|folder| folder.sync_file_system()).at("sync", &folder)?;
    step(Point::AheadOf)?;
    durable::write_durable(&of(store), format!("{root}{EXACT}\n").as_bytes(), 0o600)?;
    Ok(())
}

/// Makes `tree` in the folder `parent` the same as a sealed generation's, file by file.
pub(crate) fn link_tree(store: &Store, number: GenerationNumber, parent: &Path) -> Result<(), SealError> {
    let tree = store.generation_path(number).join(TREE);
    let base = Folder::open(&tree).at("open", &tree)?;
    let mut manifest = open_manifest(store, number)?;
    let trust = Trust::of(&store.record(number)?);
    build_tree(parent, Some(base), trust, None, || {
        Ok(manifest.next_entry()?.map(|entry| {
            // A hard link is one to its first name in the same tree.
            let source = if entry.kind() == EntryKind::Hardlink { Source::Entry } else { Source::Base };
            (entry, source)
        }))
    })
}

/// Moves the tree that is laid out into staging, if it is that of `base`. Waits for one that is being laid out.
///
/// # Errors
/// When it is there and cannot be moved.
pub fn take(store: &Store, staging: &Staging, base: RootDigest) -> Result<bool, SealError> {
    let _turn = store.ahead().lock().unwrap_or_else(PoisonError::into_inner);
    if laid_out(store) != Some(base) {
        return Ok(false);
    }
    let (path, of) = (folder(store), of(store));
    fault::at(Point::AheadTake).at("remove", &of)?;
    fs::remove_file(&of).at("remove", &of)?;
    let from = Folder::open(&path).at("open", &path)?;
    from.sync().at("sync", &path)?;
    fault::at(Point::AheadTaken).at("move", &path.join(TREE))?;
    let to = Folder::open(staging.path()).at("open", staging.path())?;
    from.rename(TREE.as_bytes(), &to, TREE.as_bytes()).at("move", &path.join(TREE))?;
    Ok(true)
}

/// What is laid out takes so much beside what generations hold: its folders. The tree of `latest` alone counts: another one goes with the
/// next preparation.
pub fn held(store: &Store) -> FolderCost {
    let record = store.latest().ok().flatten().and_then(|latest| store.record(latest).ok());
    let Some(record) = record.filter(|record| {
        laid_out(store).is_some_and(|root| Some(root) == RootDigest::from_hex(&record.root_digest))
    }) else {
        return FolderCost::default();
    };
    record.folders.unwrap_or_default()
}

/// Removes what is laid out, durably. Waits for one that is being laid out.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn give_up(store: &Store) -> Result<(), PathError> {
    let _turn = store.ahead().lock().unwrap_or_else(PoisonError::into_inner);
    remove(store)
}

/// The same, for one who holds the turn.
pub(crate) fn forget(store: &Store) -> Result<(), SealError> {
    Ok(remove(store)?)
}

fn remove(store: &Store) -> Result<(), PathError> {
    let path = folder(store);
    let held = Folder::open(&path).at("open", &path)?;
    for name in ["of", TREE] {
        match held.remove_all(name.as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).at("remove", &path.join(name));
            }
            _ => {}
        }
    }
    held.sync().at("sync", &path)
}
