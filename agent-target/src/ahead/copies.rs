//! Copies of large files that change often, made between the runs (docs/adr/0011).
//!
//! A file of a sealed generation is never written to, so a file of which a page has changed is a new file. Where the file
//! system cannot share blocks, that is all of it to read and to write while the run waits. A copy that is there already only
//! gets what is new written into it.
//!
//! A copy is of a path and a digest: its bytes were held against the manifest when it was made, and the chaining values of its blocks are
//! remembered with it, so that the digest of what becomes of it costs as much as has changed. It belongs to the first content that
//! begins as it. Nothing of this outlives the agent: what is found at its start is removed.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use assay_common::{
    closed,
    confined::Folder,
    digest::{BlockHasher, BlockList, ContentDigest},
    error::{IoContext as _, PathError},
    fault::{self, Point},
    id::GenerationNumber,
    manifest::{EntryKind, Piece, content_pieces},
    path::{TreePath, display_bytes},
    uncached,
};
use tokio_util::sync::CancellationToken;

use crate::{
    buffers::Buffers,
    seal::{SealError, open_manifest},
    store::{Store, TREE, free_bytes},
};

/// Shorter files are written anew as fast as they are found.
pub const LEAST_BYTES: u64 = 4 * 1024 * 1024;
/// Files that were written so long before the mark, in seconds, are taken for files that change.
const CHANGED_SECONDS: i64 = 24 * 60 * 60;
/// Of the room that is free, the part that may be taken is one of so many.
const PART_OF_FREE: u64 = 4;
/// Copied at a time.
const STEP_BYTES: usize = 4 * 1024 * 1024;
/// Says of which generation all copies have been made: the root digest.
const OF: &str = "of";

/// What copies may take of the disk.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// All together, in bytes.
    pub most: u64,
    /// What a run leaves free, in bytes.
    pub reserve: u64,
}

/// The copies of one repository.
#[derive(Debug)]
pub struct Copies {
    folder: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    held: HashMap<Key, Held>,
    /// The number of the next copy.
    next: u64,
    /// Ends the work that goes on.
    turn: CancellationToken,
}

/// What a copy is of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    path: Vec<u8>,
    digest: ContentDigest,
}

#[derive(Debug)]
struct Held {
    number: u64,
    bytes: u64,
    blocks: BlockList,
}

/// A file that is likely to change again.
struct Candidate {
    key: Key,
    size: u64,
    /// Without holes, in bytes.
    data: u64,
    /// When it was written last: seconds and nanoseconds.
    written: (i64, u32),
}

impl Copies {
    /// None yet: what an agent before this one left in `folder` is removed.
    ///
    /// # Errors
    /// When the folder cannot be emptied or made.
    pub fn open(folder: &Path) -> Result<Self, PathError> {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).at("remove", folder),
            _ => {}
        }
        fs::DirBuilder::new().mode(0o700).create(folder).at("create", folder)?;
        Ok(Self { folder: folder.to_owned(), state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to make copies: whoever makes some now stops, and so will the caller when the token is cancelled.
    pub fn begin(&self) -> CancellationToken {
        let mut state = self.state();
        state.turn.cancel();
        state.turn = CancellationToken::new();
        state.turn.clone()
    }

    /// Moves the copy of the file that had this path and digest to `name` in the folder `to`. Returns its blocks.
    pub fn take(&self, path: &[u8], digest: ContentDigest, to: &Folder, name: &[u8]) -> Option<BlockList> {
        let held = self.state().held.remove(&Key { path: path.to_vec(), digest })?;
        self.lack_some();
        fault::at(Point::CopyTake).ok()?;
        let moved = Folder::open(&self.folder)
            .and_then(|folder| folder.rename(held.number.to_string().as_bytes(), to, name));
        if let Err(error) = moved {
            tracing::debug!(path = display_bytes(path), %error, "a copy that was made ahead is not used");
            return None;
        }
        Some(held.blocks)
    }

    /// Removes all copies, for the room that they take. False when there are none.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn forget(&self) -> Result<bool, PathError> {
        let held = {
            let mut state = self.state();
            state.turn.cancel();
            std::mem::take(&mut state.held)
        };
        self.lack_some();
        held.values().try_for_each(|held| self.remove(held.number))?;
        Ok(!held.is_empty())
    }

    /// True when there are any.
    pub fn are_there(&self) -> bool {
        !self.state().held.is_empty()
    }

    /// There are not all copies of any generation from now on, though the next one may have the same root digest.
    fn lack_some(&self) {
        drop(fs::remove_file(self.folder.join(OF)));
    }

    fn remove(&self, number: u64) -> Result<(), PathError> {
        let path = self.folder.join(number.to_string());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).at("remove", &path),
            _ => Ok(()),
        }
    }

    /// Makes copies of the files of a sealed generation that are likely to change again, the latest changed first, until there is no more
    /// room for them or the turn ends. Copies of others are removed.
    ///
    /// # Errors
    /// When the generation cannot be read or a copy not be written. What has been made stays.
    pub fn prepare(
        &self,
        store: &Store,
        number: GenerationNumber,
        room: Room,
        turn: &CancellationToken,
    ) -> Result<(), SealError> {
        let record = store.record(number)?;
        let of = self.folder.join(OF);
        if fs::read_to_string(&of).is_ok_and(|of| of.trim() == record.root_digest) {
            return Ok(());
        }
        let since = record.mark.time.as_second().saturating_sub(CHANGED_SECONDS);
        let mut candidates = candidates(store, number, since, turn)?;
        if turn.is_cancelled() {
            // They are not all: what has been made stays.
            return Ok(());
        }
        candidates.sort_by_key(|candidate| std::cmp::Reverse(candidate.written));
        let held: u64 = self.state().held.values().map(|held| held.bytes).sum();
        let free = free_bytes(&self.folder).unwrap_or(0).saturating_add(held).saturating_sub(room.reserve);
        let mut rest = room.most.min(free / PART_OF_FREE);
        candidates.retain(|candidate| {
            let fits = candidate.data <= rest;
            rest -= if fits { candidate.data } else { 0 };
            fits
        });
        self.keep_only(&candidates)?;
        let tree = store.generation_path(number).join(TREE);
        let tree = Folder::open(&tree).at("open", &tree)?;
        // While all of it fits well into memory, the originals stay there: what has moved is read from them.
        let warm =
            available_memory() / PART_OF_FREE > candidates.iter().map(|candidate| candidate.data).sum();
        let buffers = Buffers::default();
        for candidate in candidates {
            if turn.is_cancelled() {
                return Ok(());
            }
            if !self.state().held.contains_key(&candidate.key) {
                self.make(&tree, candidate, (&buffers, warm), turn)?;
            }
        }
        if !turn.is_cancelled() {
            // Nobody goes by it but who waits for the work's end.
            closed::write(&of, format!("{}\n", record.root_digest)).at("write", &of)?;
        }
        Ok(())
    }

    /// Removes what is no candidate any more.
    fn keep_only(&self, candidates: &[Candidate]) -> Result<(), PathError> {
        let wanted: HashSet<&Key> = candidates.iter().map(|candidate| &candidate.key).collect();
        let mut gone = Vec::new();
        self.state().held.retain(|key, held| {
            let stays = wanted.contains(key);
            if !stays {
                gone.push(held.number);
            }
            stays
        });
        gone.into_iter().try_for_each(|number| self.remove(number))
    }

    fn make(
        &self,
        tree: &Folder,
        candidate: Candidate,
        (buffers, warm): (&Buffers, bool),
        turn: &CancellationToken,
    ) -> Result<(), PathError> {
        let number = {
            let mut state = self.state();
            state.next += 1;
            state.next
        };
        let path = self.folder.join(number.to_string());
        let blocks = match copy(tree, &candidate, &path, (buffers, warm), turn) {
            Ok(Some((digest, blocks))) if digest == candidate.key.digest => blocks,
            other => {
                self.remove(number)?;
                if other.at("copy to", &path)?.is_some() {
                    let path = display_bytes(&candidate.key.path);
                    tracing::warn!(path, "the disk has not kept what was sealed: scrub the repository");
                }
                return Ok(());
            }
        };
        let mut state = self.state();
        match blocks {
            // Whoever wanted the room meanwhile has it.
            Some(blocks) if !turn.is_cancelled() => {
                state.held.insert(candidate.key, Held { number, bytes: candidate.data, blocks });
                Ok(())
            }
            _ => {
                drop(state);
                self.remove(number)
            }
        }
    }
}

/// Large files that were written lately, and are more data than holes.
fn candidates(
    store: &Store,
    number: GenerationNumber,
    since: i64,
    turn: &CancellationToken,
) -> Result<Vec<Candidate>, SealError> {
    let (mut manifest, mut found) = (open_manifest(store, number)?, Vec::new());
    while let Some(entry) = manifest.next_entry()? {
        if turn.is_cancelled() {
            return Ok(Vec::new());
        }
        if entry.kind() == EntryKind::File && entry.size >= LEAST_BYTES && entry.mtime_seconds >= since {
            let data = content_pieces(&entry)
                .map(|(_, piece, _)| if matches!(piece, Piece::Data { .. }) { piece.bytes() } else { 0 })
                .sum();
            if data > entry.size / 2 {
                let digest = ContentDigest::from_slice(&entry.digest).expect("it was validated");
                let written = (entry.mtime_seconds, entry.mtime_nanos);
                found.push(Candidate {
                    key: Key { path: entry.path, digest },
                    size: entry.size,
                    data,
                    written,
                });
            }
        }
    }
    Ok(found)
}

/// Copies a file; what is nothing but zeros for a whole step is left out. Its digest and blocks; `None` when the turn has ended.
fn copy(
    tree: &Folder,
    candidate: &Candidate,
    path: &Path,
    (buffers, warm): (&Buffers, bool),
    turn: &CancellationToken,
) -> io::Result<Option<(ContentDigest, Option<BlockList>)>> {
    let name = TreePath::parse(&candidate.key.path).map_err(io::Error::other)?;
    let from = tree.open_file_below(&name)?;
    let size = candidate.size;
    if !from.metadata()?.is_file() || from.metadata()?.len() != size {
        return Ok(Some((ContentDigest::of(b""), None)));
    }
    fault::at(Point::CopyMake)?;
    let to = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    let shared = rustix::fs::ioctl_ficlone(&to, &from).is_ok();
    to.set_len(size)?;
    let mut hasher = BlockHasher::default();
    let mut offset = 0;
    while offset < size {
        if turn.is_cancelled() {
            return Ok(None);
        }
        let bytes = (size - offset).min(STEP_BYTES as u64) as usize;
        let mut read = buffers.take(bytes, offset);
        if warm {
            from.read_exact_at(&mut read, offset)?;
        } else if uncached::read_full_at(&from, &mut read, offset)? != bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hasher.update(&read);
        if !shared && read.iter().any(|byte| *byte != 0) {
            uncached::write_blocks_at(&to, &read, offset)?;
        }
        offset += bytes as u64;
    }
    to.sync_data()?;
    fault::at(Point::CopyMade)?;
    Ok(Some(hasher.finish()))
}

/// Memory that can be had, in bytes.
fn available_memory() -> u64 {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kibibytes = line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok());
    kibibytes.unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests;
