//! Reads files and cuts them into pieces.
//!
//! The digest of a chunk and the bytes that are sent come from the same read. A file that changes while it is read is read
//! again, a bounded number of times; if it never holds still it is taken as last read and flagged. Of a file that the base
//! has too, only what is new is described at length (`reader/progress.rs`).

use std::{
    fs::File,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use assay_common::{
    chunking::Cut,
    confined::{Folder, xattrs_of},
    fault::{Point, at},
    fidelity::{Filter, Refused},
    manifest::Entry,
    path::TreePath,
    uncached,
};
use assay_proto::v1::PutEntry;
use bytes::Bytes;
use rustix::fs::{FileType, SeekFrom, Stat};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use self::progress::{CutPiece, Progress, is_mostly_known};
use super::{
    Counters, Plan,
    basis::{Seen, file_clock, time_to_next_tick},
    batch::{BLOCK_BYTES, Batcher, Blocks, Closed},
    block_memory::{self, BlockMemory},
    links::HeldFiles,
    open::{open_live, protect_mapped_pages},
    readings::Pace,
    scan::{Found, describe_stat},
};
use crate::file_system::FileSystems;

mod progress;

/// How often a file is read before it is taken as it is.
const READ_ATTEMPTS: usize = 3;
/// How often a name is looked at that is a file and no file by turns.
const MAX_LOOKS: usize = 20;
/// How long a run may wait in all for files that were written to just now. Where times are whole seconds a write is only told from the
/// one before it when a second has passed.
const WAIT_FOR_TICKS: Duration = Duration::from_secs(20);
/// Files up to here are read into memory of their own size: a shared block would be held for them alone.
const SMALL_BYTES: usize = 256 * 1024;

/// A file that is to be read.
#[derive(Debug)]
pub struct Job {
    /// Where it is in the tree.
    pub path: TreePath,
    /// The folder that holds it.
    pub folder: Arc<Folder>,
    /// Its name there.
    pub name: Vec<u8>,
    /// Only ever appended to: growth while it is read is no change.
    pub append_only: bool,
    /// Read once, whatever happens to it meanwhile.
    pub may_change: bool,
    /// Length of its pages in bytes, when the profile says that it has any.
    pub page_bytes: Option<u32>,
    /// The same file in the base.
    pub base: Option<BaseFile>,
    /// Set for a file that is held.
    pub held: Option<HeldFile>,
    /// The target's disk has not kept it, as far as is known: what it should have is likely to be asked for.
    pub rotten: bool,
    /// What it should be: its size, times and inode are as they were.
    pub expected: Option<Expected>,
    /// Its length when it was found, in bytes: what it counts for progress.
    pub size: u64,
}

/// What a file should be that seems not to have changed.
#[derive(Debug, Clone)]
pub struct Expected {
    /// How it looked.
    pub seen: Seen,
    /// The digest of its content.
    pub digest: Vec<u8>,
    /// It has its turn to be read again, and only another content is news.
    pub compare: bool,
}

/// A file whose content never changes, and whose name may go away while it is read.
#[derive(Debug)]
pub struct HeldFile(Option<File>);

/// A file of the base.
#[derive(Debug)]
pub struct BaseFile {
    /// Position of its entry in the base's manifest, from 0.
    pub position: u64,
    /// Its entry.
    pub entry: Entry,
}

impl Job {
    /// A job as the rules of `plan` have it for a file that is `in_root` of its root.
    pub fn new(
        plan: &Plan,
        in_root: &TreePath,
        path: TreePath,
        (folder, name): (Arc<Folder>, Vec<u8>),
        base: Option<BaseFile>,
    ) -> Self {
        let append_only = plan.rules.is_append_only(in_root);
        let (may_change, page_bytes) = (plan.rules.may_change(in_root), plan.rules.page_bytes(in_root));
        let rotten = plan.rotten.contains(path.as_bytes());
        Self {
            path,
            folder,
            name,
            append_only,
            may_change,
            page_bytes,
            base,
            held: None,
            rotten,
            expected: None,
            size: 0,
        }
    }

    /// Makes it a file that is held: open already, unless there were too many.
    pub fn hold(&mut self, file: Option<File>) {
        self.held = Some(HeldFile(file));
    }

    /// What is open of a file that is held.
    pub fn held_file(&self) -> Option<&File> {
        self.held.as_ref()?.0.as_ref()
    }
}

/// What came of reading it.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// Its entry, with digest and pieces, and how it looked. Boxed: it is large and most of the others are small.
    Read(Box<(PutEntry, Seen)>),
    /// It was to be read again, and is what it was. False: its name was gone, and what was held of it was not looked at.
    Same(bool),
    /// It was gone, or is a folder.
    Vanished,
}

/// Why reading stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The file cannot be read. Its content is not known, so the run cannot go on.
    #[error("{path}: cannot be read: {source}")]
    File {
        /// The file.
        path: String,
        /// What the file system said.
        source: io::Error,
    },
    /// A file that could not be held, because there were too many, went away.
    #[error("{path}: went away before it was read, and what it held may be in another file by now")]
    Moved {
        /// The file.
        path: String,
    },
    /// The target would not take the file as it is.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The run was cancelled, or the transfer has ended.
    #[error("reading was stopped")]
    Stopped,
}

/// What all readers of a run share.
#[derive(Clone, Default)]
pub struct Shared {
    /// Memory that is read into.
    pub blocks: Blocks,
    /// Blocks of large files.
    pub memory: BlockMemory,
    /// The number of the newest content.
    pub contents: Arc<AtomicU64>,
    /// How many read a file at the moment.
    pub at_work: Arc<AtomicUsize>,
    /// How many processors may be used.
    pub threads: usize,
    /// Whether a piece of the base may be known by its fingerprint.
    pub fingerprints: bool,
    /// What is left out of the entries.
    pub filter: Arc<Filter>,
    /// The file systems that were met.
    pub file_systems: Arc<FileSystems>,
    /// Files that are held open for their further names.
    pub held_files: Arc<HeldFiles>,
    /// Holds reading again to a rate.
    pub pace: Arc<Pace>,
    /// How long readers have waited for files that were written to just now, in milliseconds.
    pub waited: Arc<AtomicU64>,
}

impl Shared {
    /// True while there are processors that no reader uses: then the pieces of one file are hashed side by side. When every
    /// reader has a file at hand, handing parts of it to others costs and gains nothing.
    fn has_idle_processors(&self) -> bool {
        self.at_work.load(Ordering::Relaxed) < self.threads
    }
}

/// One reader: a thread's worth of state.
pub struct Reader {
    batcher: Batcher,
    shared: Shared,
    counters: Arc<Counters>,
    cancel: CancellationToken,
    /// What the file that is being read may still count for progress.
    uncounted: u64,
}

impl Reader {
    /// A reader that puts what it reads into `batcher`.
    pub fn new(batcher: Batcher, shared: Shared, counters: Arc<Counters>, cancel: CancellationToken) -> Self {
        Self { batcher, shared, counters, cancel, uncounted: 0 }
    }

    /// Reads one file.
    ///
    /// # Errors
    /// When it is there and cannot be read, or when the run was stopped.
    pub fn read(&mut self, job: &Job) -> Result<Outcome, ReadError> {
        self.shared.at_work.fetch_add(1, Ordering::Relaxed);
        self.uncounted = job.size;
        let outcome = match self.read_again(job) {
            Ok(None) => self.read_until_still(job),
            Ok(Some(same)) => Ok(same),
            Err(error) => Err(error),
        };
        self.shared.at_work.fetch_sub(1, Ordering::Relaxed);
        // It may have become shorter, or have gone away.
        self.passed(u64::MAX);
        outcome
    }

    /// So much more is to be read.
    pub fn expect(&self, bytes: u64) {
        self.counters.to_read.add(bytes);
    }

    /// So much more of the file has been read. A file that is read again counts once.
    fn passed(&mut self, bytes: u64) {
        let counted = bytes.min(self.uncounted);
        self.uncounted -= counted;
        self.counters.done.add(counted);
    }

    /// Reads a file that has its turn and compares its content with what it was. `None`: it is to be read in full, because it has
    /// changed, or nothing is expected of it.
    fn read_again(&mut self, job: &Job) -> Result<Option<Outcome>, ReadError> {
        let Some(expected) = job.expected.as_ref().filter(|expected| expected.compare) else {
            return Ok(None);
        };
        let fault = |source| ReadError::File { path: job.path.to_string(), source };
        at(Point::ReadOpen).map_err(fault)?;
        let file = match open_live(&job.folder, &job.name, &self.cancel) {
            Ok(file) => file,
            // It was there when its name was needed, and is not open: nothing has been learnt of its content.
            Err(error) if is_gone(&error) && job.held.is_some() => return Ok(Some(Outcome::Same(false))),
            Err(_) => return Ok(None),
        };
        let is_as_it_was = || rustix::fs::fstat(&file).is_ok_and(|stat| expected.seen.looks_like(&stat));
        if protect_mapped_pages(&file).is_err() || !is_as_it_was() {
            return Ok(None);
        }
        let length = expected.seen.size();
        let mut hasher = blake3::Hasher::new();
        let (mut offset, mut block) =
            (0, vec![0; BLOCK_BYTES.min(usize::try_from(length).unwrap_or(BLOCK_BYTES))]);
        uncached::read_once(&file);
        while offset < length {
            if self.cancel.is_cancelled() {
                return Err(ReadError::Stopped);
            }
            at(Point::ReadBlock).map_err(fault)?;
            let want = usize::try_from(length - offset).unwrap_or(usize::MAX).min(block.len());
            let got = uncached::read_full_at(&file, &mut block[..want], offset).map_err(fault)?;
            if got == 0 {
                return Ok(None);
            }
            hasher.update(&block[..got]);
            offset += got as u64;
            self.counters.bytes_read.add(got as u64);
            self.counters.bytes_reread.add(got as u64);
            self.passed(got as u64);
            self.shared.pace.wait(got as u64, &self.cancel);
        }
        let is_same = hasher.finalize().as_bytes()[..] == *expected.digest && is_as_it_was();
        if is_same {
            self.counters.files_read.add(1);
            self.counters.files_reread.add(1);
        }
        Ok(is_same.then_some(Outcome::Same(true)))
    }

    /// Reads it again while it changes, so often.
    fn read_until_still(&mut self, job: &Job) -> Result<Outcome, ReadError> {
        let fault = |source| ReadError::File { path: job.path.to_string(), source };
        let stop = |error| match error {
            ReadFault::Io(source) => fault(source),
            ReadFault::Stopped => ReadError::Stopped,
        };
        let (mut attempt, mut looks) = (0, 0);
        loop {
            looks += 1;
            if looks > MAX_LOOKS {
                // It is a file and no file by turns.
                return Ok(self.vanished());
            }
            at(Point::ReadOpen).map_err(fault)?;
            let open = match &job.held {
                Some(HeldFile(Some(file))) => file.try_clone(),
                Some(HeldFile(None)) | None => open_live(&job.folder, &job.name, &self.cancel),
            };
            let file = match open {
                Ok(file) => Arc::new(file),
                Err(error) if is_gone(&error) && job.held.is_some() => {
                    return Err(ReadError::Moved { path: job.path.to_string() });
                }
                Err(error) if is_gone(&error) => return Ok(self.vanished()),
                Err(error) if is_no_file(&error) => match self.describe_other(job)? {
                    Some(other) => return Ok(other),
                    None => continue,
                },
                Err(_) if self.cancel.is_cancelled() => return Err(ReadError::Stopped),
                Err(error) => return Err(fault(error)),
            };
            // First of all: what is written through a mapping from now on changes the times that are looked at next.
            let is_protected = protect_mapped_pages(&file).is_ok();
            let mut before = rustix::fs::fstat(&file).map_err(|error| fault(error.into()))?;
            if FileType::from_raw_mode(before.st_mode) != FileType::RegularFile {
                match self.describe_other(job)? {
                    Some(other) => return Ok(other),
                    None => continue,
                }
            }
            attempt += 1;
            let changes_show = job.held.is_some() || job.may_change || job.append_only;
            let changes_show = changes_show || self.wait_for_tick(&file, &mut before).map_err(stop)?;
            let seen = Seen::new(&before, file_clock());
            let mut entry = Entry { path: job.path.as_bytes().to_vec(), ..Default::default() };
            describe_stat(&mut entry, &before);
            let content = self.shared.contents.fetch_add(1, Ordering::Relaxed) + 1;
            let mut progress = Progress::new(content, job, &self.shared);
            self.read_content(job, &file, &before, &mut progress).map_err(stop)?;
            at(Point::ReadChanged).map_err(fault)?;
            entry.xattrs = xattrs_of(&file).map_err(fault)?;
            self.shared.filter.apply(&mut entry)?;
            let after = rustix::fs::fstat(&file).map_err(|error| fault(error.into()))?;
            let unchanged = changes_show
                && before.st_size == after.st_size
                && (before.st_mtime, before.st_mtime_nsec) == (after.st_mtime, after.st_mtime_nsec)
                && (before.st_ctime, before.st_ctime_nsec) == (after.st_ctime, after.st_ctime_nsec);
            let whole = progress.offset == before.st_size as u64;
            // Of a file that is held only times and the number of its names change.
            let held_still = whole && (unchanged || (job.held.is_some() && before.st_size == after.st_size));
            let only_grew = whole && job.append_only && after.st_size >= before.st_size;
            let taken = held_still || only_grew || job.may_change || attempt == READ_ATTEMPTS;
            progress.last = true;
            progress.abandoned = !taken;
            if taken {
                progress.sum_up(&self.shared.memory);
            }
            self.push_part(&mut progress).map_err(stop)?;
            if taken {
                entry.unstable = !held_still && !only_grew && !job.may_change;
                if entry.unstable {
                    self.counters.note_never_still(&job.path);
                }
                let put = progress.describe(entry);
                let leaves_trace =
                    is_protected && self.shared.file_systems.leaves_trace(&file, before.st_dev);
                let seen = if held_still && unchanged && leaves_trace { seen } else { seen.distrusted() };
                self.shared.held_files.keep(&file, &before);
                let has_other_content = |expected: &&Expected| {
                    let entry = put.entry.as_ref();
                    expected.seen.looks_like_on_any_device(&before)
                        && entry.is_some_and(|entry| entry.digest != expected.digest)
                };
                if held_still && unchanged && job.expected.as_ref().is_some_and(|it| has_other_content(&it)) {
                    tracing::warn!(path = %job.path, "its content has changed, and its size, times and inode have not");
                    self.counters.note_change_without_trace(&job.path);
                }
                return Ok(Outcome::Read(Box::new((put, seen))));
            }
        }
    }

    /// Waits until a write to `file` is sure to leave another time than the last one did, and looks at it again. False when the run
    /// has waited long enough for files that are written to all the time.
    fn wait_for_tick(&self, file: &File, stat: &mut Stat) -> Result<bool, ReadFault> {
        let Some(wait) = time_to_next_tick(stat, file_clock()) else {
            return Ok(true);
        };
        let milliseconds = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
        let waited = self.shared.waited.fetch_add(milliseconds, Ordering::Relaxed);
        if u128::from(waited) > WAIT_FOR_TICKS.as_millis() {
            return Ok(false);
        }
        super::pause(wait);
        if self.cancel.is_cancelled() {
            return Err(ReadFault::Stopped);
        }
        *stat = rustix::fs::fstat(file).map_err(io::Error::from)?;
        Ok(time_to_next_tick(stat, file_clock()).is_none())
    }

    /// The entry of what has taken the place of a file: a link, a FIFO, a device. A folder has not been walked: the next run finds it.
    /// `None` when it is a file again.
    fn describe_other(&self, job: &Job) -> Result<Option<Outcome>, ReadError> {
        let fault = |source| ReadError::File { path: job.path.to_string(), source };
        let place = Some((Arc::clone(&job.folder), job.name.clone()));
        let mut found = Found { path: job.path.clone(), place, stat: None, own_folder: None };
        match found.complete() {
            Ok(Some(mut entry)) => {
                self.shared.filter.apply(&mut entry)?;
                let seen = found.stat.map(|stat| Seen::new(&stat, file_clock())).unwrap_or_default();
                let put = PutEntry { entry: Some(entry), ..Default::default() };
                Ok(Some(Outcome::Read(Box::new((put, seen)))))
            }
            Ok(None) => Ok(None),
            Err(error) if is_gone(&error) => Ok(Some(self.vanished())),
            Err(error) => Err(fault(error)),
        }
    }

    /// Leaves out of an entry what is not to be copied.
    ///
    /// # Errors
    /// When the target would not take it.
    pub fn filter(&self, entry: &mut Entry) -> Result<(), ReadError> {
        Ok(self.shared.filter.apply(entry)?)
    }

    /// True when the file of `job` has this content now.
    ///
    /// # Errors
    /// When the run was stopped. A file that cannot be read has another content.
    pub fn has_digest(&self, job: &Job, digest: &[u8]) -> Result<bool, ReadError> {
        let file = match &job.held {
            Some(HeldFile(Some(file))) => file.try_clone(),
            _ => open_live(&job.folder, &job.name, &self.cancel),
        };
        let Ok(file) = file else { return Ok(false) };
        let mut hasher = blake3::Hasher::new();
        let (mut offset, mut block) = (0, vec![0; BLOCK_BYTES]);
        uncached::read_once(&file);
        loop {
            if self.cancel.is_cancelled() {
                return Err(ReadError::Stopped);
            }
            match uncached::read_full_at(&file, &mut block, offset) {
                Ok(0) => return Ok(hasher.finalize().as_bytes()[..] == *digest),
                Ok(got) => {
                    hasher.update(&block[..got]);
                    offset += got as u64;
                    self.counters.bytes_read.add(got as u64);
                }
                Err(_) => return Ok(false),
            }
        }
    }

    /// A name has gone away.
    pub fn vanished(&self) -> Outcome {
        self.counters.vanished.add(1);
        Outcome::Vanished
    }

    /// Reads up to the length that the file had when it was opened. The last part is left for the caller to push.
    fn read_content(
        &mut self,
        job: &Job,
        file: &File,
        stat: &Stat,
        progress: &mut Progress,
    ) -> Result<(), ReadFault> {
        let length = stat.st_size as u64;
        if length >= block_memory::LEAST_BYTES {
            progress.fingerprints = Some(Vec::new());
        }
        let sparse = (stat.st_blocks as u64).saturating_mul(512) < length;
        self.counters.files_read.add(1);
        uncached::read_once(file);
        let mut cut = None;
        while progress.offset < length {
            let data_end = if sparse {
                let data = seek(file, SeekFrom::Data(progress.offset))?.unwrap_or(length).min(length);
                if data > progress.offset {
                    self.passed(data - progress.offset);
                    progress.hole(data - progress.offset);
                    continue;
                }
                seek(file, SeekFrom::Hole(progress.offset))?.unwrap_or(length).min(length)
            } else {
                length
            };
            if !self.read_extent(job, file, (length, data_end), &mut cut, progress)? {
                break;
            }
        }
        Ok(())
    }

    /// Reads data of a file of `length` bytes up to `end`. False when the file ended before: it was cut while it was read.
    fn read_extent(
        &mut self,
        job: &Job,
        file: &File,
        (length, end): (u64, u64),
        cut: &mut Option<Cut>,
        progress: &mut Progress,
    ) -> Result<bool, ReadFault> {
        let mut carried = Bytes::new();
        let mut position = progress.offset;
        loop {
            if self.cancel.is_cancelled() {
                return Err(ReadFault::Stopped);
            }
            let want = usize::try_from(end - position).unwrap_or(usize::MAX).min(BLOCK_BYTES);
            let size = carried.len() + want;
            let claim = self.claim(size, progress)?;
            let (mut block, small) = if size <= SMALL_BYTES {
                (vec![0; size], true)
            } else {
                (self.shared.blocks.take(size), false)
            };
            block[..carried.len()].copy_from_slice(&carried);
            at(Point::ReadBlock)?;
            let got = uncached::read_full_at(file, &mut block[carried.len()..size], position)?;
            let filled = carried.len() + got;
            let block = if small {
                Bytes::from(block).slice(..filled)
            } else {
                self.shared.blocks.share(block, filled)
            };
            if progress.before.is_some() {
                progress.note_block(&block[carried.len()..], position);
            }
            position += got as u64;
            self.counters.bytes_read.add(got as u64);
            self.passed(got as u64);
            let ended = got < want || position == end;
            let cut = *cut.get_or_insert_with(|| progress.cut(job, length, &block));
            let slices = progress.cut_up(cut, &block, ended);
            let used = slices.last().map_or(0, |slice| slice.range.end);
            let to_the_end = ended && (position == length || got < want);
            let digests = progress.digests(&block[..used], &slices, to_the_end, &self.shared);
            let pieces: Vec<CutPiece> = slices
                .into_iter()
                .zip(digests)
                .map(|(slice, digest)| progress.push_cut(&block, slice, digest))
                .collect();
            carried = match &progress.origin {
                Some(origin) if !small && is_mostly_known(&pieces) => {
                    let chunks = pieces.iter().map(|piece| piece.let_go_if_known(&block, origin)).collect();
                    // The rest as well: a part of the block would hold all of it.
                    let carried = Bytes::copy_from_slice(&block[used..]);
                    drop(block);
                    self.batcher.hold_some(chunks, used, claim);
                    carried
                }
                _ => {
                    let chunks = pieces.into_iter().map(|piece| block.slice(piece.range));
                    self.batcher.hold(chunks, used, claim);
                    block.slice(used..)
                }
            };
            if ended {
                return Ok(position == end);
            }
            if self.batcher.is_full() {
                self.push_part(progress)?;
            }
        }
    }

    /// Claims memory for a block. When it has to wait, everything that is held is on its way first.
    fn claim(&mut self, bytes: usize, progress: &mut Progress) -> Result<OwnedSemaphorePermit, ReadFault> {
        if let Some(claim) = self.batcher.try_claim(bytes) {
            return Ok(claim);
        }
        self.push_part(progress)?;
        self.batcher.flush()?;
        Ok(self.batcher.claim(bytes)?)
    }

    fn push_part(&mut self, progress: &mut Progress) -> Result<(), ReadFault> {
        match progress.take_part() {
            Some(part) => Ok(self.batcher.push(part)?),
            None => Ok(()),
        }
    }

    /// Sends what waits.
    ///
    /// # Errors
    /// When the transfer has ended.
    pub fn flush(&mut self) -> Result<(), ReadError> {
        self.batcher.flush().map_err(|Closed| ReadError::Stopped)
    }
}

enum ReadFault {
    Io(io::Error),
    Stopped,
}

impl From<io::Error> for ReadFault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Closed> for ReadFault {
    fn from(Closed: Closed) -> Self {
        Self::Stopped
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

/// What opening says when a link, a socket or a device without a driver has taken the file's place.
fn is_no_file(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(rustix::io::Errno::from_raw_os_error),
        Some(rustix::io::Errno::LOOP | rustix::io::Errno::NXIO | rustix::io::Errno::NODEV)
    )
}

/// Seeks to data or to a hole; `None` when there is none before the end.
fn seek(file: &File, to: SeekFrom) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, to) {
        Ok(offset) => Ok(Some(offset)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
