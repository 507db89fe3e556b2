//! The steps from the basis to the new manifest, kept on disk between the walk, which finds them, and the seal, which
//! sends them. Files of the tree are read in several threads and their steps are written in the walk's order.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufReader, BufWriter, Read as _, Write as _},
    path::{Path, PathBuf},
};

use assay_common::{
    closed,
    digest::RootDigest,
    error::{IoContext as _, PathError},
    fault::{self, Point},
    manifest::{Entry, EntryKind, Header, ManifestError, ManifestWriter, reuse},
};
use assay_proto::v1::{Counts, ManifestDelta, ManifestStep, PutEntry, manifest_step::Kind};
use prost::Message as _;

use super::{
    basis::{BasisFolder, BasisReader, SEEN_BYTES, Seen},
    block_memory::{self, Remembered},
    reader::Outcome,
    readings::{self, Moment, MomentWriter, NO_CONTENT, PositionReader, Rereading, Standing, Summary},
};

/// A message of steps is sent when it has this many bytes.
const DELTA_BYTES: usize = 256 * 1024;
/// It is little, and every byte of it stands between the last content and the seal.
const DELTA_LEVEL: i32 = 3;

/// What the readers of a run remember of the blocks of large files, beside the steps.
pub const STEPS_BLOCKS: &str = "steps-blocks";
/// The positions of entries that were read again and are as they were, beside the steps.
const STEPS_READ: &str = "steps-read";

/// One step, as the walk gives it.
pub enum Step {
    /// The basis' next entry is as it was.
    Keep,
    /// The basis' next entry is as it was, and was read again.
    ReadAgain {
        /// Its position in the basis.
        entry: u64,
    },
    /// The basis' next entry is gone, or another stands in its place.
    Drop,
    /// An entry that is complete; a file has a content.
    Put(Box<(PutEntry, Seen)>),
    /// A file that is read after everything else.
    Late {
        /// Number of its job.
        job: u64,
    },
}

/// Why the steps cannot be kept or told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpoolError {
    /// A file of the state folder.
    #[error(transparent)]
    Io(#[from] PathError),
    /// The basis, or the new manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The spool is not what was written to it.
    #[error("the spool is damaged")]
    Damaged(#[from] prost::DecodeError),
    /// A reader has stopped.
    #[error("reading was stopped")]
    Stopped,
}

/// Writes steps.
pub struct SpoolWriter {
    steps: BufWriter<File>,
    seen: BufWriter<File>,
    read_again: BufWriter<File>,
    path: PathBuf,
    run: Option<Kind>,
    buffer: Vec<u8>,
    kept: u64,
    dropped: u64,
}

impl SpoolWriter {
    /// A spool in `folder`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(folder: &Path) -> Result<Self, SpoolError> {
        let path = folder.join("steps");
        let (seen, read) = (folder.join("steps-seen"), folder.join(STEPS_READ));
        Ok(Self {
            read_again: BufWriter::new(closed::create_file(&read).at("create", &read)?),
            steps: BufWriter::with_capacity(256 * 1024, closed::create_file(&path).at("create", &path)?),
            seen: BufWriter::with_capacity(64 * 1024, closed::create_file(&seen).at("create", &seen)?),
            path,
            run: None,
            buffer: Vec::new(),
            kept: 0,
            dropped: 0,
        })
    }

    /// Writes one step.
    ///
    /// # Errors
    /// When the spool cannot be written to.
    pub fn push(&mut self, step: Step) -> Result<(), SpoolError> {
        match step {
            Step::Keep => {
                self.kept += 1;
                self.run = Some(match self.run.take() {
                    Some(Kind::Keep(count)) => Kind::Keep(count + 1),
                    other => {
                        self.write(other)?;
                        Kind::Keep(1)
                    }
                });
                Ok(())
            }
            Step::ReadAgain { entry } => {
                self.read_again.write_all(&entry.to_le_bytes()).at("write", &self.path)?;
                self.push(Step::Keep)
            }
            Step::Drop => {
                self.dropped += 1;
                self.run = Some(match self.run.take() {
                    Some(Kind::Drop(count)) => Kind::Drop(count + 1),
                    other => {
                        self.write(other)?;
                        Kind::Drop(1)
                    }
                });
                Ok(())
            }
            Step::Put(put) => {
                let (put, seen) = *put;
                self.put(put, seen)
            }
            // An entry that comes later stands here by the number of its job.
            Step::Late { job } => self.put(PutEntry { content: job, ..Default::default() }, Seen::default()),
        }
    }

    fn put(&mut self, put: PutEntry, seen: Seen) -> Result<(), SpoolError> {
        let run = self.run.take();
        self.write(run)?;
        self.seen.write_all(&seen.encode()).at("write", &self.path)?;
        self.write(Some(Kind::Put(put)))
    }

    fn write(&mut self, kind: Option<Kind>) -> Result<(), SpoolError> {
        if kind.is_some() {
            fault::at(Point::SpoolWrite).at("write", &self.path)?;
            self.buffer.clear();
            ManifestStep { kind }
                .encode_length_delimited(&mut self.buffer)
                .expect("a vector grows as needed");
            self.steps.write_all(&self.buffer).at("write", &self.path)?;
        }
        Ok(())
    }

    /// Ends the spool. Returns how many entries were kept and dropped.
    ///
    /// # Errors
    /// When it cannot be written to.
    pub fn finish(mut self) -> Result<(u64, u64), SpoolError> {
        let run = self.run.take();
        self.write(run)?;
        self.steps.flush().at("write", &self.path)?;
        self.seen.flush().at("write", &self.path)?;
        self.read_again.flush().at("write", &self.path)?;
        Ok((self.kept, self.dropped))
    }
}

/// Reads steps back.
struct SpoolReader {
    steps: BufReader<File>,
    seen: BufReader<File>,
    path: PathBuf,
    record: Vec<u8>,
}

impl SpoolReader {
    fn open(folder: &Path) -> Result<Self, SpoolError> {
        let path = folder.join("steps");
        let seen = folder.join("steps-seen");
        Ok(Self {
            steps: BufReader::with_capacity(256 * 1024, File::open(&path).at("open", &path)?),
            seen: BufReader::with_capacity(64 * 1024, File::open(&seen).at("open", &seen)?),
            path,
            record: Vec::new(),
        })
    }

    fn next_step(&mut self) -> Result<Option<Kind>, SpoolError> {
        let mut length = 0u64;
        for group in 0..10 {
            let mut byte = [0];
            match self.steps.read_exact(&mut byte) {
                Ok(()) => {}
                Err(error) if group == 0 && error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                Err(error) => {
                    return Err(Err::<(), _>(error).at("read", &self.path).expect_err("one").into());
                }
            }
            length |= u64::from(byte[0] & 0x7f) << (7 * group);
            if byte[0] & 0x80 == 0 {
                break;
            }
        }
        self.record.resize(length as usize, 0);
        self.steps.read_exact(&mut self.record).at("read", &self.path)?;
        Ok(ManifestStep::decode(self.record.as_slice())?.kind)
    }

    fn next_seen(&mut self) -> Result<Seen, SpoolError> {
        let mut record = [0; SEEN_BYTES];
        self.seen.read_exact(&mut record).at("read", &self.path)?;
        Ok(Seen::decode(&record))
    }
}

/// Files that were read after everything else, by the numbers of their jobs.
pub type LateOutcomes = HashMap<u64, Outcome>;

/// What a run leaves of its readings.
#[derive(Debug, Clone, Copy)]
pub struct Readings {
    /// How it read unchanged files again.
    pub rereading: Rereading,
    /// Where reading again stands.
    pub standing: Standing,
}

/// Turns the spool into the new basis in `next`, and hands the steps to `send` in messages of a fair size. Returns the new
/// root digest and what is to be said of readings, and adds up what the new manifest holds.
///
/// # Errors
/// When a file of the state folder fails, or `send` does (`None`).
pub fn tell(
    folder: &Path,
    header: &Header,
    basis: Option<&BasisFolder>,
    next: &BasisFolder,
    (late, of_run): (&LateOutcomes, &Readings),
    counts: &mut Counts,
    mut send: impl FnMut(ManifestDelta) -> Option<()>,
) -> Result<(RootDigest, Summary), SpoolError> {
    if let Some(same) = tell_same(folder, header, basis, next, of_run, counts)? {
        send(same.2).ok_or(SpoolError::Stopped)?;
        return Ok((same.0, same.1));
    }
    next.forget()?;
    let mut spool = SpoolReader::open(folder)?;
    let basis_folder = basis;
    let mut basis = basis
        .map_or_else(|| Ok(BasisReader::empty()), |basis| BasisReader::open(basis, of_run.rereading.clock))?;
    let path = next.manifest();
    let file = BufWriter::with_capacity(256 * 1024, closed::create_file(&path).at("create", &path)?);
    let mut manifest = ManifestWriter::create(file, header)?;
    let seen_path = next.seen();
    let mut seen_file = BufWriter::new(closed::create_file(&seen_path).at("create", &seen_path)?);
    let mut moments = MomentWriter::create(&next.moments())?;
    let (mut read_again, mut position) = (PositionReader::open(&folder.join(STEPS_READ)), 0u64);
    let (mut summary, started) = (Summary::default(), of_run.rereading.started);
    let known = basis_folder.and_then(|basis| Remembered::open(&basis.blocks()));
    let mut blocks = block_memory::Writer::create(&next.blocks());
    let (mut delta, mut delta_bytes) = (ManifestDelta::default(), 0);
    let mut dropped: Option<Entry> = None;
    while let Some(mut kind) = spool.next_step()? {
        let mut write = |entry: &Entry, seen: &Seen, read: Moment| -> Result<(), SpoolError> {
            let read = if entry.kind() == EntryKind::File { read } else { NO_CONTENT };
            summary.add(read, seen.size(), started);
            moments.push(read)?;
            match entry.kind() {
                EntryKind::File => {
                    counts.files += 1;
                    counts.total_bytes += entry.size;
                }
                EntryKind::Directory => counts.directories += 1,
                _ => counts.other_entries += 1,
            }
            manifest.push(entry)?;
            Ok(seen_file.write_all(&seen.encode()).at("write", &seen_path)?)
        };
        match &mut kind {
            Kind::Keep(count) => {
                for _ in 0..*count {
                    let (entry, seen) = basis.take()?.ok_or(ManifestError::CutOff)?;
                    let seen = seen.unwrap_or_default();
                    let read = if read_again.has(position) { started } else { seen.read() };
                    position += 1;
                    write(&entry, &seen, read)?;
                    if let Some(known) = &known {
                        blocks.keep(known, &entry);
                    }
                }
            }
            Kind::Drop(count) => {
                for _ in 0..*count {
                    dropped = Some(basis.take()?.ok_or(ManifestError::CutOff)?.0);
                    position += 1;
                }
            }
            Kind::Put(put) => {
                let mut seen = spool.next_seen()?;
                if put.entry.is_none() {
                    match late.get(&put.content) {
                        Some(Outcome::Read(read)) => (*put, seen) = (**read).clone(),
                        Some(Outcome::Same(_) | Outcome::Vanished) | None => continue,
                    }
                }
                let entry = put.entry.as_mut().expect("filled in above");
                if put.reuse.is_empty() {
                    write(entry, &seen, started)?;
                } else {
                    // What goes to the target names what is shared; what is kept here is the whole list, as over there.
                    let mut whole = entry.clone();
                    let base = dropped.take().unwrap_or_default();
                    reuse::expand(&mut whole, &put.reuse, &base).map_err(ManifestError::from)?;
                    write(&whole, &seen, started)?;
                }
                // The target has it from the content. What the root digest says of it is what stands here.
                if put.content > 0 {
                    entry.digest.clear();
                }
            }
        }
        let step = ManifestStep { kind: Some(kind) };
        delta_bytes += step.encoded_len();
        delta.steps.push(step);
        if delta_bytes >= DELTA_BYTES {
            send(packed(std::mem::take(&mut delta))).ok_or(SpoolError::Stopped)?;
            delta_bytes = 0;
        }
    }
    if !delta.steps.is_empty() {
        send(packed(delta)).ok_or(SpoolError::Stopped)?;
    }
    blocks.append(&folder.join(STEPS_BLOCKS));
    blocks.finish();
    let (file, root, _) = manifest.finish()?;
    file.into_inner().map_err(io::IntoInnerError::into_error).at("write", &path)?;
    seen_file.into_inner().map_err(io::IntoInnerError::into_error).at("write", &seen_path)?;
    moments.finish()?;
    readings::keep_standing(next, &of_run.standing)?;
    let held = Counts {
        files: counts.files,
        directories: counts.directories,
        other_entries: counts.other_entries,
        total_bytes: counts.total_bytes,
        ..Default::default()
    };
    next.set_held(&held)?;
    fault::at(Point::BasisTell).at("write", &path)?;
    next.set_root_digest(root)?;
    Ok((root, summary))
}

/// Packs steps where that makes them smaller: names in order have much in common.
fn packed(delta: ManifestDelta) -> ManifestDelta {
    let plain = delta.encode_to_vec();
    match zstd::bulk::compress(&plain, DELTA_LEVEL) {
        Ok(packed) if packed.len() < plain.len() => {
            ManifestDelta { steps: Vec::new(), packed, packed_raw_bytes: plain.len() as u64 }
        }
        _ => delta,
    }
}

/// The same for a tree in which nothing has changed: one step, and the new basis is the old one.
fn tell_same(
    folder: &Path,
    header: &Header,
    basis: Option<&BasisFolder>,
    next: &BasisFolder,
    of_run: &Readings,
    counts: &mut Counts,
) -> Result<Option<(RootDigest, Summary, ManifestDelta)>, SpoolError> {
    let Some(basis) = basis else {
        return Ok(None);
    };
    let mut spool = SpoolReader::open(folder)?;
    let kept_all = match (spool.next_step()?, spool.next_step()?) {
        (Some(keep @ Kind::Keep(_)), None) => keep,
        _ => return Ok(None),
    };
    next.forget()?;
    if BasisReader::open(basis, of_run.rereading.clock)?.header() != Some(header) {
        return Ok(None);
    }
    let read = readings::carry_over(basis, next, &folder.join(STEPS_READ), &of_run.rereading)?;
    let Some(summary) = read else {
        return Ok(None);
    };
    let Some((root, held)) = next.same_as(basis) else {
        return Ok(None);
    };
    readings::keep_standing(next, &of_run.standing)?;
    counts.files += held.files;
    counts.directories += held.directories;
    counts.other_entries += held.other_entries;
    counts.total_bytes += held.total_bytes;
    next.set_root_digest(root)?;
    Ok(Some((
        root,
        summary,
        ManifestDelta { steps: vec![ManifestStep { kind: Some(kept_all) }], ..Default::default() },
    )))
}
