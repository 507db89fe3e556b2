//! The new manifest while it is being put together, and the plan that goes with it.

use std::{
    fs::File,
    io::{BufReader, BufWriter, Read as _, Write as _},
    path::PathBuf,
};

use assay_common::{
    digest::RootDigest,
    error::IoContext as _,
    id::GenerationNumber,
    manifest::{
        DeltaFault, DeltaMerger, Entry, EntryFault, EntryKind, Header, ManifestError, ManifestReader,
        ManifestWriter, Origin,
    },
    path::display_bytes,
};
use assay_proto::v1::ManifestStep;

use super::{SealError, open_manifest, parse_header};
use crate::store::{MANIFEST, POSITIONS, Staging, Store};

/// Entries that a manifest may have: a tree ten times as large as any that we know of.
const MAX_ENTRIES: u64 = 200_000_000;
/// In the plan: the entry is the base's.
const FROM_BASE: u64 = u64::MAX;

type BaseEntries = Box<dyn FnMut() -> Result<Option<Entry>, ManifestError> + Send>;

/// Where an entry of the new tree comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The base has the same entry under the same path.
    Base,
    /// A file with new content, which lies in staging under this number.
    Content(u64),
    /// Made from the entry alone: a folder, a link, a FIFO, a device.
    Entry,
}

/// A manifest that is being put together in staging.
pub struct Draft {
    merger: DeltaMerger<BaseEntries>,
    manifest: ManifestWriter<BufWriter<File>>,
    plan: BufWriter<File>,
    plan_path: PathBuf,
    positions: BufWriter<File>,
    positions_path: PathBuf,
    base: Option<GenerationNumber>,
    finished: Finished,
}

/// What the finished manifest adds up to.
#[derive(Debug)]
pub struct Finished {
    /// Its header.
    pub header: Header,
    /// Entries.
    pub entries: u64,
    /// Files among them.
    pub files: u64,
    /// Bytes of all files, and of those with new content.
    pub total_bytes: u64,
    /// Bytes of the files with new content.
    pub new_bytes: u64,
}

fn plan_path(staging: &Staging) -> PathBuf {
    staging.path().join("plan")
}

pub(super) fn remove_plan(staging: &Staging) -> Result<(), SealError> {
    let path = plan_path(staging);
    Ok(std::fs::remove_file(&path).at("remove", &path)?)
}

impl Draft {
    /// Starts the manifest of `staging` upon `base`.
    ///
    /// # Errors
    /// When the header is not valid or staging cannot be written to.
    pub fn create(
        store: &Store,
        staging: &Staging,
        base: Option<GenerationNumber>,
        header: &str,
    ) -> Result<Self, SealError> {
        let header = parse_header(header)?;
        let entries: BaseEntries = match base {
            None => Box::new(|| Ok(None)),
            Some(base) => {
                let mut reader = open_manifest(store, base)?;
                Box::new(move || reader.next_entry())
            }
        };
        let path = staging.path().join(MANIFEST);
        let file = BufWriter::with_capacity(256 * 1024, File::create(&path).at("create", &path)?);
        let plan_path = plan_path(staging);
        let plan = BufWriter::new(File::create(&plan_path).at("create", &plan_path)?);
        let positions_path = staging.path().join(POSITIONS);
        let positions = BufWriter::new(File::create(&positions_path).at("create", &positions_path)?);
        Ok(Self {
            merger: DeltaMerger::new(entries, MAX_ENTRIES),
            manifest: ManifestWriter::create(file, &header)?,
            plan,
            plan_path,
            positions,
            positions_path,
            base,
            finished: Finished { header, entries: 0, files: 0, total_bytes: 0, new_bytes: 0 },
        })
    }

    /// The generation that the steps are against.
    pub fn base(&self) -> Option<GenerationNumber> {
        self.base
    }

    /// Applies the next step.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn apply(&mut self, step: ManifestStep) -> Result<(), SealError> {
        let Self { merger, manifest, plan, plan_path, positions, positions_path, finished, .. } = self;
        merger.apply(step, &mut |entry, origin| {
            let source = match origin {
                Origin::Base => FROM_BASE,
                Origin::Put { content } => {
                    // A file has a content and nothing else has: the plan below relies on it.
                    if (entry.kind() == EntryKind::File) != (1..FROM_BASE).contains(&content) {
                        let path = display_bytes(&entry.path);
                        let rule = "is a file without a content, or has one and is no file";
                        return Err(DeltaFault::from(EntryFault::Field { path, rule }).into());
                    }
                    content
                }
            };
            finished.entries += 1;
            if entry.kind() == EntryKind::File {
                finished.files += 1;
                finished.total_bytes = finished.total_bytes.saturating_add(entry.size);
                if source != FROM_BASE {
                    finished.new_bytes = finished.new_bytes.saturating_add(entry.size);
                }
            }
            plan.write_all(&source.to_le_bytes()).at("write", plan_path)?;
            positions.write_all(&manifest.position().to_le_bytes()).at("write", positions_path)?;
            Ok::<_, SealError>(manifest.push(&entry)?)
        })
    }

    /// Ends the manifest, whose root digest must be `expected`.
    ///
    /// # Errors
    /// When it is another, or when entries of the base are left.
    pub fn finish(mut self, expected: RootDigest) -> Result<Finished, SealError> {
        self.merger.finish()?;
        self.plan.flush().at("write", &self.plan_path)?;
        self.positions.flush().at("write", &self.positions_path)?;
        let (_, actual, _) = self.manifest.finish()?;
        if actual != expected {
            return Err(SealError::RootMismatch { expected, actual });
        }
        Ok(self.finished)
    }
}

/// The entries of a finished draft with where each comes from, in order.
pub struct PlannedEntries {
    manifest: ManifestReader<BufReader<File>>,
    plan: BufReader<File>,
    plan_path: PathBuf,
}

impl PlannedEntries {
    /// Opens manifest and plan of a staging area.
    ///
    /// # Errors
    /// When they are not there.
    pub fn open(staging: &Staging) -> Result<Self, SealError> {
        let path = staging.path().join(MANIFEST);
        let plan_path = plan_path(staging);
        let manifest = File::open(&path).at("open", &path)?;
        let plan = BufReader::new(File::open(&plan_path).at("open", &plan_path)?);
        let manifest = ManifestReader::open(BufReader::with_capacity(256 * 1024, manifest))?;
        Ok(Self { manifest, plan, plan_path })
    }

    /// The next entry.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub fn next_entry(&mut self) -> Result<Option<(Entry, Source)>, SealError> {
        let Some(entry) = self.manifest.next_entry()? else {
            return Ok(None);
        };
        let mut word = [0; 8];
        self.plan.read_exact(&mut word).at("read", &self.plan_path)?;
        let source = match u64::from_le_bytes(word) {
            FROM_BASE => Source::Base,
            0 => Source::Entry,
            content => Source::Content(content),
        };
        Ok(Some((entry, source)))
    }
}
