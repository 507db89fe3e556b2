//! Files that are being put together, in the destination's `.assay-restore`, and what an earlier attempt has left of one.
//!
//! What is found there counts for as much as the destination itself does: nothing. It may be a link that was planted, a further name
//! of a file that lives elsewhere and would be cut off or written over with it, or bytes where the manifest has a hole. So a part is
//! taken up only when it is a regular file with one name, zero in its holes, and each of its pieces has its digest, when it is found and
//! again when it is used. Anything else of its name goes, and the file is put together from nothing. Whose it is does not matter: only
//! this user writes to the folder that it is in, which [`super::Destination::open`] sees to.

use std::{
    fs::{File, Metadata},
    io::{self, ErrorKind},
    os::unix::fs::MetadataExt as _,
};

use super::compare::holes_are_zero;
use crate::{confined::Folder, manifest::Entry};

/// The file in which the entry at `place` is put together.
pub(super) fn part_name(place: u64) -> Vec<u8> {
    format!("part-{place}").into_bytes()
}

/// A regular file without a further name, by which others would see every change.
pub(super) fn is_alone(metadata: &Metadata) -> bool {
    metadata.is_file() && metadata.nlink() == 1
}

/// What an earlier attempt has left of `entry`, for reading and writing; none when it is not to be taken up, or cannot be written to
/// (its mode may have been set already).
pub(super) fn left_behind(scratch: &Folder, place: u64, entry: &Entry) -> Option<File> {
    let file = scratch.open_file_to_write(&part_name(place)).ok()?;
    (is_alone(&file.metadata().ok()?) && holes_are_zero(&file, entry)).then_some(file)
}

/// The same, as long as `entry` says.
///
/// # Errors
/// When it is no longer what [`left_behind`] found.
pub(super) fn take_up(scratch: &Folder, place: u64, entry: &Entry) -> io::Result<File> {
    let changes = || io::Error::other("what an earlier attempt has left of it changes while it is restored");
    let file = left_behind(scratch, place, entry).ok_or_else(changes)?;
    file.set_len(entry.size)?;
    Ok(file)
}

/// A new file of zeros, as long as `entry` says. What has its name goes, and is not followed.
///
/// # Errors
/// As the kernel says.
pub(super) fn create(scratch: &Folder, place: u64, entry: &Entry) -> io::Result<File> {
    let name = part_name(place);
    let file = match scratch.create_file(&name) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            scratch.remove_all(&name)?;
            scratch.create_file(&name)
        }
        created => created,
    }?;
    file.set_len(entry.size)?;
    Ok(file)
}
