//! Reads files, cuts them into pieces, and packs pieces into batches for the target.
//!
//! The digest of a chunk and the bytes that are sent come from the same read. A file that changes while it is read is read
//! again, a bounded number of times; if it never holds still it is taken as last read and flagged.

use std::{fs::File, io, os::unix::fs::FileExt as _, sync::Arc};

use assay_common::{
    chunking::{Cut, GENERAL},
    confined::Folder,
    digest::ContentDigest,
    manifest::{Entry, Piece},
    path::TreePath,
};
use assay_proto::v1::FilePart;
use bytes::Bytes;
use rayon::prelude::*;
use rustix::fs::{FileType, SeekFrom, Stat};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_util::sync::CancellationToken;

use super::{
    Counters,
    basis::{Seen, file_clock},
    scan::describe_stat,
};

/// How often a file is read before it is taken as it is.
const READ_ATTEMPTS: usize = 3;
/// Read at a time.
const BLOCK_BYTES: usize = 1024 * 1024;
/// A batch is sent when it holds this much content ...
const BATCH_BYTES: usize = 1024 * 1024;
/// ... or this many parts, so that a million tiny files do not make one endless message.
const BATCH_PARTS: usize = 1024;
/// Unit of the budget: a semaphore counts in 32 bits.
const BUDGET_UNIT: usize = 1024;

/// A file that is to be read.
#[derive(Debug)]
pub struct Job {
    /// Number of its content.
    pub content: u64,
    /// Where it is in the tree.
    pub path: TreePath,
    /// The folder that holds it.
    pub folder: Arc<Folder>,
    /// Its name there.
    pub name: Vec<u8>,
    /// Only ever appended to: growth while it is read is no change.
    pub append_only: bool,
}

/// What came of reading it.
#[derive(Debug)]
pub enum Outcome {
    /// Its entry, with digest and pieces, and how it looked. Boxed: it is large and most of the others are small.
    Read(Box<(Entry, Seen)>),
    /// It was gone, or no longer a regular file.
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
    /// The run was cancelled, or the transfer has ended.
    #[error("reading was stopped")]
    Stopped,
}

/// A batch on its way to the target.
pub struct Batch {
    /// The pieces, for the offer.
    pub parts: Vec<FilePart>,
    /// The content of the data pieces, in the order of their digests.
    pub chunks: Vec<Bytes>,
    /// Given back when the content is no longer held.
    pub budget: Vec<OwnedSemaphorePermit>,
}

/// Bytes that may be held between reading and sending.
#[derive(Clone)]
pub struct Budget {
    semaphore: Arc<Semaphore>,
    units: usize,
}

impl Budget {
    /// A budget of at least one block for each of two readers, whatever is asked for: less could never make progress.
    pub fn new(bytes: usize) -> Self {
        let units = bytes.max(8 * BLOCK_BYTES) / BUDGET_UNIT;
        Self { semaphore: Arc::new(Semaphore::new(units)), units }
    }

    fn claim(&self, bytes: usize, runtime: &Handle) -> Result<OwnedSemaphorePermit, ReadError> {
        let units = bytes.div_ceil(BUDGET_UNIT).clamp(1, self.units) as u32;
        let claim = Arc::clone(&self.semaphore).acquire_many_owned(units);
        runtime.block_on(claim).map_err(|_| ReadError::Stopped)
    }

    /// Wakes readers that wait, to stop them.
    pub fn close(&self) {
        self.semaphore.close();
    }
}

/// One reader: a thread's worth of state.
pub struct Reader {
    batches: mpsc::Sender<Batch>,
    budget: Budget,
    runtime: Handle,
    counters: Arc<Counters>,
    cancel: CancellationToken,
    parts: Vec<FilePart>,
    chunks: Vec<Bytes>,
    held: Vec<OwnedSemaphorePermit>,
    held_bytes: usize,
}

impl Reader {
    /// A reader that sends its batches to `batches`.
    pub fn new(
        batches: mpsc::Sender<Batch>,
        budget: Budget,
        runtime: Handle,
        counters: Arc<Counters>,
        cancel: CancellationToken,
    ) -> Self {
        Self {
            batches,
            budget,
            runtime,
            counters,
            cancel,
            parts: Vec::new(),
            chunks: Vec::new(),
            held: Vec::new(),
            held_bytes: 0,
        }
    }

    /// Reads one file.
    ///
    /// # Errors
    /// When it is there and cannot be read, or when the run was stopped.
    pub fn read(&mut self, job: &Job) -> Result<Outcome, ReadError> {
        let fault = |source| ReadError::File { path: job.path.to_string(), source };
        let mut attempt = 0;
        loop {
            attempt += 1;
            let file = match job.folder.open_file(&job.name) {
                Ok(file) => file,
                Err(error) if is_gone(&error) => return Ok(self.vanished()),
                Err(error) => return Err(fault(error)),
            };
            let before = rustix::fs::fstat(&file).map_err(|error| fault(error.into()))?;
            if FileType::from_raw_mode(before.st_mode) != FileType::RegularFile {
                return Ok(self.vanished());
            }
            let seen = Seen::new(&before, file_clock());
            let mut entry = Entry { path: job.path.as_bytes().to_vec(), ..Default::default() };
            describe_stat(&mut entry, &before);
            let stop = |error| match error {
                ReadFault::Io(source) => fault(source),
                ReadFault::Stopped => ReadError::Stopped,
            };
            let mut progress = self.read_content(job.content, &file, &before).map_err(stop)?;
            entry.xattrs = match job.folder.xattrs(&job.name) {
                Ok(xattrs) => xattrs,
                Err(error) if is_gone(&error) => Vec::new(),
                Err(error) => return Err(fault(error)),
            };
            let after = rustix::fs::fstat(&file).map_err(|error| fault(error.into()))?;
            let unchanged = before.st_size == after.st_size
                && (before.st_mtime, before.st_mtime_nsec) == (after.st_mtime, after.st_mtime_nsec)
                && (before.st_ctime, before.st_ctime_nsec) == (after.st_ctime, after.st_ctime_nsec);
            let whole = progress.offset == before.st_size as u64;
            let held_still = whole && unchanged;
            let only_grew = whole && job.append_only && after.st_size >= before.st_size;
            let taken = held_still || only_grew || attempt == READ_ATTEMPTS;
            // A part at offset 0 of a content that has not ended starts it anew: so the end is said only when it is one.
            progress.part.last = taken;
            self.push_part(&mut progress).map_err(stop)?;
            if taken {
                entry.unstable = !held_still && !only_grew;
                if entry.unstable {
                    self.counters.unstable.add(1);
                }
                progress.describe(&mut entry);
                let seen = if held_still { seen } else { seen.distrusted() };
                return Ok(Outcome::Read(Box::new((entry, seen))));
            }
        }
    }

    fn vanished(&self) -> Outcome {
        self.counters.vanished.add(1);
        Outcome::Vanished
    }

    /// Reads up to the length that the file had when it was opened. The last part is left for the caller to push.
    fn read_content(&mut self, content: u64, file: &File, stat: &Stat) -> Result<Progress, ReadFault> {
        let length = stat.st_size as u64;
        let sparse = (stat.st_blocks as u64).saturating_mul(512) < length;
        let mut progress = Progress {
            content,
            part: FilePart { content, ..Default::default() },
            whole: blake3::Hasher::new(),
            pieces: Vec::new(),
            digests: Vec::new(),
            offset: 0,
        };
        self.counters.files_read.add(1);
        while progress.offset < length {
            let data_end = if sparse {
                let data = seek(file, SeekFrom::Data(progress.offset))?.unwrap_or(length).min(length);
                if data > progress.offset {
                    progress.hole(data - progress.offset);
                    continue;
                }
                seek(file, SeekFrom::Hole(progress.offset))?.unwrap_or(length).min(length)
            } else {
                length
            };
            if !self.read_extent(file, data_end, &mut progress)? {
                break;
            }
        }
        Ok(progress)
    }

    /// Reads data up to `end`. False when the file ended before: it was cut while it was read.
    fn read_extent(&mut self, file: &File, end: u64, progress: &mut Progress) -> Result<bool, ReadFault> {
        let cut: Cut = GENERAL;
        let mut carried: Bytes = Bytes::new();
        let mut position = progress.offset;
        loop {
            if self.cancel.is_cancelled() {
                return Err(ReadFault::Stopped);
            }
            let want = usize::try_from(end - position).unwrap_or(usize::MAX).min(BLOCK_BYTES);
            let permit =
                self.budget.claim(carried.len() + want, &self.runtime).map_err(|_| ReadFault::Stopped)?;
            let mut block = vec![0; carried.len() + want];
            block[..carried.len()].copy_from_slice(&carried);
            let got = read_full(file, &mut block[carried.len()..], position)?;
            let filled = carried.len() + got;
            block.truncate(filled);
            position += got as u64;
            self.counters.bytes_read.add(got as u64);
            let ended = got < want || position == end;
            let block = Bytes::from(block);
            let ranges = cut.ranges(&block, ended);
            let used = ranges.last().map_or(0, |range| range.end);
            let digests: Vec<ContentDigest> = if ranges.len() > 4 {
                ranges.par_iter().map(|range| ContentDigest::of(&block[range.clone()])).collect()
            } else {
                ranges.iter().map(|range| ContentDigest::of(&block[range.clone()])).collect()
            };
            progress.whole.update(&block[..used]);
            for (range, digest) in ranges.into_iter().zip(digests) {
                progress.data(range.len() as u64, digest);
                self.chunks.push(block.slice(range));
            }
            self.held.push(permit);
            self.held_bytes += used;
            carried = block.slice(used..);
            if ended {
                return Ok(position == end);
            }
            if self.held_bytes >= BATCH_BYTES {
                self.push_part(progress)?;
            }
        }
    }

    fn push_part(&mut self, progress: &mut Progress) -> Result<(), ReadFault> {
        let next = FilePart { content: progress.content, offset: progress.offset, ..Default::default() };
        let part = std::mem::replace(&mut progress.part, next);
        self.counters.chunks_offered.add((part.digests.len() / 32) as u64);
        self.parts.push(part);
        if self.held_bytes >= BATCH_BYTES || self.parts.len() >= BATCH_PARTS {
            self.flush().map_err(|_| ReadFault::Stopped)?;
        }
        Ok(())
    }

    /// Sends what waits.
    ///
    /// # Errors
    /// When the transfer has ended.
    pub fn flush(&mut self) -> Result<(), ReadError> {
        if self.parts.is_empty() {
            return Ok(());
        }
        let batch = Batch {
            parts: std::mem::take(&mut self.parts),
            chunks: std::mem::take(&mut self.chunks),
            budget: std::mem::take(&mut self.held),
        };
        self.held_bytes = 0;
        self.batches.blocking_send(batch).map_err(|_| ReadError::Stopped)
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

/// How far one reading of a file has come.
struct Progress {
    content: u64,
    part: FilePart,
    whole: blake3::Hasher,
    pieces: Vec<u64>,
    digests: Vec<u8>,
    offset: u64,
}

impl Progress {
    /// Fills in size, digest and pieces.
    fn describe(self, entry: &mut Entry) {
        entry.size = self.offset;
        entry.digest = self.whole.finalize().as_bytes().to_vec();
        // A file that is one chunk, as most are, says so by its size and digest alone.
        let one_chunk = matches!(self.pieces.as_slice(), [word] if word & 1 == 0);
        if !one_chunk {
            entry.pieces = self.pieces;
            entry.piece_digests = self.digests;
        }
    }

    fn data(&mut self, bytes: u64, digest: ContentDigest) {
        let word = Piece::Data { bytes }.to_wire();
        self.part.pieces.push(word);
        self.part.digests.extend_from_slice(&digest.0);
        self.pieces.push(word);
        self.digests.extend_from_slice(&digest.0);
        self.offset += bytes;
    }

    fn hole(&mut self, bytes: u64) {
        static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
        let mut rest = bytes;
        while rest > 0 {
            let step = rest.min(ZEROS.len() as u64);
            self.whole.update(&ZEROS[..step as usize]);
            rest -= step;
        }
        let word = Piece::Hole { bytes }.to_wire();
        self.part.pieces.push(word);
        self.pieces.push(word);
        self.offset += bytes;
    }
}

fn is_gone(error: &io::Error) -> bool {
    // ELOOP: a link has taken the file's place.
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

/// Seeks to data or to a hole; `None` when there is none before the end.
fn seek(file: &File, to: SeekFrom) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, to) {
        Ok(offset) => Ok(Some(offset)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    struct Bench {
        folder: tempfile::TempDir,
        runtime: tokio::runtime::Runtime,
    }

    impl Bench {
        fn new() -> Self {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build();
            Self { folder: tempfile::tempdir().expect("temp"), runtime: runtime.expect("runtime") }
        }

        /// Reads `name` and returns what came out, the parts, and the bytes of the chunks.
        fn read(&self, name: &str, append_only: bool) -> (Outcome, Vec<FilePart>, Vec<u8>) {
            self.read_beside(name, append_only, || {})
        }

        /// The same; `on_batch` is called for each batch while its content is still held.
        fn read_beside(
            &self,
            name: &str,
            append_only: bool,
            mut on_batch: impl FnMut() + Send + 'static,
        ) -> (Outcome, Vec<FilePart>, Vec<u8>) {
            let (sender, mut queue) = mpsc::channel(64);
            let runtime = self.runtime.handle().clone();
            let mut reader =
                Reader::new(sender, Budget::new(0), runtime, Arc::default(), CancellationToken::new());
            let job = Job {
                content: 1,
                path: TreePath::parse(name.as_bytes()).expect("valid"),
                folder: Arc::new(Folder::open(self.folder.path()).expect("open")),
                name: name.as_bytes().to_vec(),
                append_only,
            };
            // The batches are taken beside the reading, as a transfer takes them: the budget is small.
            let collector = std::thread::spawn(move || {
                let (mut parts, mut bytes) = (Vec::new(), Vec::new());
                while let Some(batch) = queue.blocking_recv() {
                    on_batch();
                    parts.extend(batch.parts);
                    bytes.extend(batch.chunks.iter().flat_map(|chunk| chunk.to_vec()));
                }
                (parts, bytes)
            });
            let outcome = reader.read(&job).expect("readable");
            reader.flush().expect("flush");
            drop(reader);
            let (parts, bytes) = collector.join().expect("collector");
            (outcome, parts, bytes)
        }
    }

    fn entry(outcome: Outcome) -> Entry {
        match outcome {
            Outcome::Read(read) => read.0,
            Outcome::Vanished => panic!("it is there"),
        }
    }

    /// A zero budget still makes progress, and what is sent is the file, its pieces gap-free and its digest right.
    #[test]
    fn pieces_add_up_to_the_file() {
        let bench = Bench::new();
        for length in [0usize, 1, 8191, 32 * 1024, 1024 * 1024, 1024 * 1024 + 1, 3_333_333] {
            let mut content = vec![0; length];
            blake3::Hasher::new().finalize_xof().fill(&mut content);
            std::fs::write(bench.folder.path().join("file"), &content).expect("write");
            let (outcome, parts, bytes) = bench.read("file", false);
            let entry = entry(outcome);
            assert_eq!(bytes, content);
            assert_eq!(entry.size, length as u64);
            assert_eq!(entry.digest, blake3::hash(&content).as_bytes());
            assert!(assay_common::manifest::validate_entry(&entry).is_ok());
            assert!(
                parts.iter().rev().skip(1).all(|part| !part.last)
                    && parts.last().is_some_and(|part| part.last)
            );
            let mut offset = 0;
            for part in &parts {
                assert_eq!(part.offset, offset);
                offset += part.pieces.iter().map(|word| word >> 1).sum::<u64>();
            }
        }
    }

    /// Holes are pieces: their zeros are neither read nor sent, and the digest is that of the whole file.
    #[test]
    fn holes_are_neither_read_nor_sent() {
        let bench = Bench::new();
        let path = bench.folder.path().join("sparse");
        let file = File::create(&path).expect("create");
        file.set_len(64 << 20).expect("length");
        file.write_all_at(b"data in the middle", 32 << 20).expect("write");
        let (outcome, _, bytes) = bench.read("sparse", false);
        assert!(bytes.len() < 1 << 20, "{} bytes were read", bytes.len());
        let entry = entry(outcome);
        assert_eq!(entry.digest, blake3::hash(&std::fs::read(&path).expect("read")).as_bytes());
        assert!(entry.pieces.iter().any(|word| word & 1 == 1));
        assert!(assay_common::manifest::validate_entry(&entry).is_ok());
    }

    #[test]
    fn a_file_that_is_gone_or_no_file_is_vanished() {
        let bench = Bench::new();
        std::os::unix::fs::symlink("/etc/passwd", bench.folder.path().join("link")).expect("symlink");
        std::fs::create_dir(bench.folder.path().join("folder")).expect("mkdir");
        for name in ["none", "link", "folder"] {
            assert!(matches!(bench.read(name, false).0, Outcome::Vanished), "{name}");
        }
    }

    /// A file that never holds still is read a bounded number of times, taken as last read, and flagged; one that only
    /// grows is not flagged when the profile says that it may.
    #[test]
    fn a_file_that_never_holds_still_is_flagged() {
        let bench = Bench::new();
        let path = bench.folder.path().join("busy");
        // Four times the budget: the reader cannot come to the end before batches have been taken, and with each one that
        // is taken the file grows.
        std::fs::write(&path, vec![7; 32 << 20]).expect("write");
        let append = move || {
            let mut file = File::options().append(true).open(&path).expect("open");
            file.write_all(b"x").expect("append");
        };
        let (busy, parts, _) = bench.read_beside("busy", false, append.clone());
        let busy = entry(busy);
        assert!(busy.unstable);
        assert_eq!(parts.iter().filter(|part| part.offset == 0).count(), READ_ATTEMPTS);
        assert!(assay_common::manifest::validate_entry(&busy).is_ok());
        let growing = entry(bench.read_beside("busy", true, append).0);
        assert!(!growing.unstable);
    }
}
