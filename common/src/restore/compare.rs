//! The first stage: walks the manifest beside the destination, and says of each file what of it is right already.

use std::{fs::File, sync::mpsc::SyncSender};

use prost::Message as _;
use tokio::sync::mpsc::Sender;

use super::{
    Checked, Destination, Options, RestoreError, Selection, Want,
    ahead::{Ahead, Claim},
    part,
};
use crate::{
    digest::ContentDigest,
    manifest::{Entry, EntryKind, Piece, content_pieces},
    path::TreePath,
    uncached,
};

/// Pieces that one request lists.
const PIECES_OF_A_WANT: usize = 8 * 1024;
/// Entries and what is known of their pieces that wait to be worked on, in bytes; beside them one is compared and one worked on.
const AHEAD_BYTES: usize = 32 * 1024 * 1024;

/// Where a piece of data is taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    /// The file of an earlier attempt, which has it in its place.
    Part,
    /// The file that is in the destination.
    Old,
    /// The supply.
    Supply,
}

/// What is to be done about an entry.
#[derive(Debug)]
pub(super) enum Action {
    /// The file's content is right.
    Right,
    /// The file is to be put together, each piece of data from here.
    Make(Vec<From>),
    /// It is no file.
    Other,
}

/// An entry, and what is to be done.
#[derive(Debug)]
pub(super) struct Job {
    pub place: u64,
    pub path: TreePath,
    pub entry: Entry,
    pub selection: Selection,
    pub action: Action,
    /// Until it is done.
    pub _claim: Claim,
}

/// Sends a job for each entry that is asked for, or on the way to one, and a request for what is wrong. Ends early, and well, when
/// nobody takes them any longer: whoever took them says why.
pub(super) fn compare(
    destination: &Destination,
    checked: &Checked,
    options: &Options,
    wants: &Sender<Want>,
    jobs: &SyncSender<Job>,
) -> Result<(), RestoreError> {
    let mut entries = checked.entries()?;
    let ahead = Ahead::new(AHEAD_BYTES);
    while let Some((place, path, entry)) = entries.next_entry()? {
        let selection = Selection::of(&path, &options.paths);
        if selection == Selection::Not
            || (selection == Selection::Above && entry.kind() != EntryKind::Directory)
        {
            continue;
        }
        let action = match entry.kind() {
            EntryKind::File => look(destination, place, &path, &entry),
            _ => Action::Other,
        };
        let wanted = match &action {
            Action::Make(pieces) => wanted(place, pieces),
            _ => Vec::new(),
        };
        let pieces = if let Action::Make(pieces) = &action { pieces.len() } else { 0 };
        let claim = ahead.claim(entry.encoded_len() + pieces);
        if jobs.send(Job { place, path, entry, selection, action, _claim: claim }).is_err() {
            return Ok(());
        }
        for want in wanted {
            if wants.blocking_send(want).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn wanted(entry: u64, pieces: &[From]) -> Vec<Want> {
    if !pieces.is_empty() && pieces.iter().all(|from| *from == From::Supply) {
        return vec![Want { entry, pieces: Vec::new() }];
    }
    let lacking: Vec<u32> =
        (0u32..).zip(pieces).filter(|(_, from)| **from == From::Supply).map(|(piece, _)| piece).collect();
    lacking.chunks(PIECES_OF_A_WANT).map(|pieces| Want { entry, pieces: pieces.to_vec() }).collect()
}

/// What of a file is right.
fn look(destination: &Destination, place: u64, path: &TreePath, entry: &Entry) -> Action {
    let regular = |file: std::io::Result<File>| {
        let file = file.ok()?;
        let metadata = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
        Some((file, metadata))
    };
    let old = regular(destination.root.open_file_below(path));
    let part = part::left_behind(&destination.scratch, place, entry);
    let data: Vec<_> = content_pieces(entry)
        .filter_map(|(offset, piece, digest)| match piece {
            Piece::Data { bytes } => Some((offset, bytes as usize, digest?)),
            Piece::Hole { .. } => None,
        })
        .collect();
    let mut whole = old.as_ref().is_some_and(|(_, metadata)| {
        // A further name, which may be outside of this tree, would see every change: such a file is made anew.
        metadata.len() == entry.size && part::is_alone(metadata)
    });
    let mut buffer = Vec::new();
    let mut has = |file: &File, (offset, bytes, digest): (u64, usize, ContentDigest)| {
        buffer.resize(bytes, 0);
        uncached::read_full_at(file, &mut buffer, offset)
            .is_ok_and(|got| got == bytes && ContentDigest::of(&buffer) == digest)
    };
    let pieces: Vec<_> = data
        .into_iter()
        .map(|piece| {
            if part.as_ref().is_some_and(|file| has(file, piece)) {
                // The old one is told from it by its own content only.
                whole = whole && old.as_ref().is_some_and(|(file, _)| has(file, piece));
                From::Part
            } else if old.as_ref().is_some_and(|(file, _)| has(file, piece)) {
                From::Old
            } else {
                whole = false;
                From::Supply
            }
        })
        .collect();
    whole = whole && old.as_ref().is_some_and(|(file, _)| holes_are_zero(file, entry));
    if whole { Action::Right } else { Action::Make(pieces) }
}

/// Whether the file reads as zeros where the manifest has a hole.
pub(super) fn holes_are_zero(file: &File, entry: &Entry) -> bool {
    let mut buffer = vec![0; 256 * 1024];
    content_pieces(entry).all(|(offset, piece, _)| {
        let Piece::Hole { bytes } = piece else { return true };
        let (mut at, end) = (offset, offset + bytes);
        while at < end {
            // What the file system knows to be a hole need not be read.
            match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
                Ok(data) if data < end => at = at.max(data),
                Ok(_) | Err(rustix::io::Errno::NXIO) => return true,
                Err(_) => return false,
            }
            let step = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            match uncached::read_full_at(file, &mut buffer[..step], at) {
                Ok(got) if got == step && buffer[..step].iter().all(|byte| *byte == 0) => at += step as u64,
                _ => return false,
            }
        }
        true
    })
}
