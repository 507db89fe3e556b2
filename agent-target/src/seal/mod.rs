//! From received content to a sealed generation: the whole manifest first, then names, then the seal.
//!
//! 1. [`Draft`]: the base's manifest and the source's steps become `staging/N/manifest`, validated entry by entry, beside
//!    a plan that says where each entry comes from. Its root digest must be the one that the source signed.
//! 2. `verify_contents`: the digest and length of every new content, computed from the verified bytes as they were written
//!    or from the file itself, are compared with the manifest.
//! 3. `make_tree`: the base's tree, which was laid out a second time between the runs ([`crate::ahead`]), is changed into the new
//!    one; where there is none, folders are made and kept files linked from the base. New files are moved in.
//! 4. `manifest.b3` and `record.json` are written beside the tree.
//! 5. [`Store::publish`]: flush, rename, flush.
//!
//! A crash before the rename in 5 leaves staging, from which the next run starts again at 1 with all content at hand.

mod build;
mod change;
mod charge;
mod delta;
mod draft;
mod names;

use std::{
    fs::File,
    io::{BufReader, BufWriter, Write as _},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use assay_common::{
    closed,
    confined::{CannotHold, Folder},
    digest::{ContentDigest, RootDigest},
    error::{IoContext as _, PathError},
    fault::{self, Point},
    id::GenerationNumber,
    manifest::{DeltaFault, Entry, EntryKind, Header, ManifestError, ManifestReader, content_pieces},
    path::{TreePath, display_bytes},
    uncached,
};
use rayon::prelude::*;

use crate::{
    ahead::tree,
    receive::ReceiveError,
    store::{
        MANIFEST, MANIFEST_B3, MarkRecord, POSITIONS, RECORD, Record, Staging, Store, StoreError, TREE,
        index::{ChunkIndex, IndexError},
        piece_list_digest,
    },
};

pub(crate) use build::{Trust, build_tree};
use change::change_tree;
pub use charge::Charge;
pub use delta::steps;
use draft::PlannedContents;
pub use draft::{Draft, PlannedEntries, Source};
pub(crate) use names::make_room_for_names;

/// Contents that are read back side by side.
const VERIFY_BATCH: usize = 1024;
/// Read at a time when content is read back.
const READ_BYTES: usize = 512 * 1024;

/// Why a generation is not sealed. Nothing that readers see has changed then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The steps do not make a manifest.
    #[error(transparent)]
    Delta(#[from] DeltaFault),
    /// The manifest that was put together is not the one that the source has.
    #[error("the manifest's root digest does not match: the source has {expected}, the steps give {actual}")]
    RootMismatch {
        /// As the source signed it.
        expected: RootDigest,
        /// As it came out here.
        actual: RootDigest,
    },
    /// The base that the steps are against is not the one that this run builds upon.
    #[error("the steps are against generation {named}, and this run builds upon {base}")]
    WrongBase {
        /// As the source named it; 0 for none.
        named: u64,
        /// As this run was opened; 0 for none.
        base: u64,
    },
    /// A file that has rotted in the base is not sent anew.
    #[error("{path}: it has rotted in the base, and was not sent anew")]
    Rotten {
        /// The entry.
        path: String,
    },
    /// An entry has what this target does not take.
    #[error("{path:?} {what}")]
    NotAllowed {
        /// The entry, made printable.
        path: String,
        /// What of it.
        what: String,
    },
    /// A file's content is not what its digest says.
    #[error("{path}: its content as read back from disk does not match: {expected} expected, {actual} read")]
    ContentMismatch {
        /// The entry.
        path: String,
        /// As in the manifest.
        expected: ContentDigest,
        /// As read back.
        actual: ContentDigest,
    },
    /// A file's list of pieces is not the one that it was received in.
    #[error("{path}: its pieces in the manifest are not those that were received")]
    PiecesMismatch {
        /// The entry.
        path: String,
    },
    /// Steps that cannot be unpacked.
    #[error("the manifest's steps break the protocol: {rule}")]
    Packed {
        /// The rule.
        rule: &'static str,
    },
    /// A file's content is not as long as its entry says.
    #[error("{path}: its content has {actual} bytes and must have {expected}")]
    LengthMismatch {
        /// The entry.
        path: String,
        /// As in the manifest, in bytes.
        expected: u64,
        /// As it came, in bytes.
        actual: u64,
    },
    /// A file's content never came.
    #[error("{path}: its content {content} was not received")]
    ContentMissing {
        /// The entry.
        path: String,
        /// The number that the source gave.
        content: u64,
    },
    /// An entry cannot be made in the tree.
    #[error("{path}: {source}")]
    Entry {
        /// The entry.
        path: String,
        /// What the file system said.
        source: std::io::Error,
    },
    /// The manifest cannot be written or read back.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The repository may not hold so much.
    #[error(transparent)]
    NoRoom(#[from] ReceiveError),
    /// A file of the store.
    #[error(transparent)]
    Io(#[from] PathError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The chunk index.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The record cannot be put into JSON.
    #[error("the generation's record cannot be written")]
    Record(#[source] serde_json::Error),
}

/// Where a generation comes from, beside its manifest.
#[derive(Debug, Clone)]
pub struct Provenance {
    /// The repository.
    pub repository: String,
    /// The run.
    pub run_id: String,
    /// When the source opened it, by the target's clock.
    pub opened: jiff::Timestamp,
    /// The newest form of statements that its source and this target both read.
    pub statements: u32,
    /// Somebody asked for a check that carries no result.
    pub full_check: bool,
    /// The mark.
    pub mark: MarkRecord,
    /// Overridden safety stops.
    pub overrides: Vec<String>,
    /// Counts, as JSON.
    pub counts: serde_json::Value,
    /// The source's DSSE envelope, as JSON.
    pub source_statement: serde_json::Value,
}

/// Seals the generation whose manifest is in `draft`. Returns its record.
///
/// # Errors
/// When anything of the generation is not what its manifest says, or the store cannot be written to.
pub fn seal(
    store: &Store,
    staging: &Staging,
    index: &Arc<Mutex<ChunkIndex>>,
    draft: Draft,
    expected: RootDigest,
    provenance: Provenance,
) -> Result<Record, SealError> {
    let base = draft.base();
    let step = |point| fault::at(point).at("write", staging.path());
    step(Point::SealManifest)?;
    let copy_rules = draft.rules_fingerprint();
    let finished = draft.finish(store, staging, expected)?;
    let not_in_manifest_b3 = if finished.unchanged {
        step(Point::SealTree)?;
        make_same_tree(store, staging, base)?;
        finished.not_in_manifest_b3
    } else {
        // The list of digests needs nothing but the manifest: it is written beside the rest.
        std::thread::scope(|scope| {
            let sums = scope.spawn(|| {
                step(Point::SealSums)?;
                write_manifest_b3(staging)
            });
            step(Point::SealContents)?;
            verify_contents(staging)?;
            step(Point::SealTree)?;
            make_tree(store, staging, base)?;
            step(Point::SealNames)?;
            name_contents(staging, index)?;
            sums.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?
    };
    let overhead = finished.overhead;
    // A generation without changes has these by another name of its base's.
    let listed = [MANIFEST, POSITIONS, MANIFEST_B3].into_iter().filter(|_| !finished.unchanged);
    let listed = listed.filter_map(|name| std::fs::metadata(staging.path().join(name)).ok());
    let listed = listed.map(|stat| stat.len()).sum();
    let record = Record {
        version: 1,
        repository: provenance.repository,
        generation: staging.number().0,
        run_id: provenance.run_id,
        base_generation: base.map(|base| base.0),
        opened: Some(provenance.opened),
        statements: Some(provenance.statements),
        full_check: provenance.full_check,
        sealed: jiff::Timestamp::now(),
        mark: provenance.mark,
        root_digest: expected.to_string(),
        roots: finished.header.roots,
        entries: finished.entries,
        files: finished.files,
        total_bytes: finished.total_bytes,
        new_bytes: finished.new_bytes,
        stored_bytes: Some(finished.stored_bytes),
        copy_rules,
        overhead_bytes: overhead.map(|overhead| overhead.made.saturating_add(listed)),
        inodes: overhead.map(|overhead| overhead.inodes),
        folders: finished.folders,
        not_in_manifest_b3,
        is_plain: finished.is_plain,
        overrides: provenance.overrides,
        counts: provenance.counts,
        source_statement: provenance.source_statement,
    };
    let path = staging.path().join(RECORD);
    let mut text = serde_json::to_vec_pretty(&record).map_err(SealError::Record)?;
    text.push(b'\n');
    step(Point::SealRecord)?;
    closed::write(&path, text).at("write", &path)?;
    step(Point::SealClear)?;
    staging.remove_content()?;
    draft::remove_plan(staging)?;
    store.publish(staging)?;
    store.count(&record);
    Ok(record)
}

/// Makes `staging/N/tree` the same as the base's.
fn make_same_tree(store: &Store, staging: &Staging, base: Option<GenerationNumber>) -> Result<(), SealError> {
    let base = base.expect("what has not changed has a base");
    if let Some(root) = RootDigest::from_hex(&store.record(base)?.root_digest)
        && tree::take(store, staging, root)?
    {
        return Ok(());
    }
    tree::link_tree(store, base, staging.path())
}

/// Makes `staging/N/tree`: from the base's tree that was laid out ahead, or from nothing.
fn make_tree(store: &Store, staging: &Staging, base: Option<GenerationNumber>) -> Result<(), SealError> {
    let Some(base) = base else {
        let mut planned = PlannedEntries::open(staging)?;
        return build_tree(staging.path(), None, Trust::Exact, Some(staging), || planned.next_entry());
    };
    let path = store.generation_path(base).join(TREE);
    let tree = Folder::open(&path).at("open", &path)?;
    let record = store.record(base)?;
    let root = RootDigest::from_hex(&record.root_digest);
    if let Some(root) = root
        && tree::take(store, staging, root)?
    {
        let mut before = open_manifest(store, base)?;
        return change_tree(staging, tree, Trust::of(&record), || before.next_entry());
    }
    let mut planned = PlannedEntries::open(staging)?;
    build_tree(staging.path(), Some(tree), Trust::of(&record), Some(staging), || planned.next_entry())
}

/// Compares every content that the plan names with the manifest: by the digest of the bytes that were written, where they
/// came in one session, else by reading the file back.
fn verify_contents(staging: &Staging) -> Result<(), SealError> {
    let mut planned = PlannedContents::open(staging)?;
    loop {
        let mut batch = Vec::with_capacity(VERIFY_BATCH);
        while batch.len() < VERIFY_BATCH
            && let Some(next) = planned.next_content()?
        {
            batch.push(next);
        }
        if batch.is_empty() {
            return Ok(());
        }
        batch.par_iter().try_for_each(|(entry, content)| verify_content(staging, entry, *content))?;
    }
}

fn verify_content(staging: &Staging, entry: &Entry, content: u64) -> Result<(), SealError> {
    let expected = ContentDigest::from_slice(&entry.digest).expect("the entry was validated");
    let path = display_bytes(&entry.path);
    if !entry.pieces.is_empty() {
        // What the manifest says of the pieces is what scrubs, restores and later runs go by.
        let pieces = content_pieces(entry).map(|(_, piece, digest)| (piece, digest));
        if !staging.whole().has_list(content, piece_list_digest(pieces)) {
            return Err(SealError::PiecesMismatch { path });
        }
    }
    // The digest is of the bytes that were written. What was there before them, and is behind them, it knows nothing of.
    let (folder, name) = staging.locate(staging.session(), content)?;
    let length = match folder.stat(&name) {
        Ok(stat) => stat.st_size as u64,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(SealError::ContentMissing { path, content });
        }
        Err(error) => return Err(error).at("look at", &staging.content_path(content))?,
    };
    if length != entry.size {
        return Err(SealError::LengthMismatch { path, expected: entry.size, actual: length });
    }
    if staging.whole().digest(content, entry.size) == Some(expected) {
        return Ok(());
    }
    let (total, actual) = read_back(staging, &path, entry.size, content)?;
    if total != entry.size || actual != expected {
        return Err(SealError::ContentMismatch { path, expected, actual });
    }
    Ok(())
}

/// Length and digest of a content as it lies in staging. Of one that is longer than `size` no more is read than shows that.
fn read_back(
    staging: &Staging,
    entry: &str,
    size: u64,
    content: u64,
) -> Result<(u64, ContentDigest), SealError> {
    let path = staging.content_path(content);
    let (folder, name) = staging.locate(staging.session(), content)?;
    let file = match folder.open_file(&name) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(SealError::ContentMissing { path: entry.to_owned(), content });
        }
        opened => opened.at("open", &path)?,
    };
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; READ_BYTES.min(usize::try_from(size).unwrap_or(usize::MAX).saturating_add(1))];
    let mut total = 0u64;
    loop {
        let count = uncached::read_full_at(&file, &mut buffer, total).at("read back", &path)?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
        total += count as u64;
        if total > size {
            break;
        }
    }
    Ok((total, ContentDigest(*hasher.finalize().as_bytes())))
}

/// Writes the digests of all files whose names are UTF-8 in `b3sum`'s form, paths relative to the generation's folder.
/// Returns how many files had to be left out.
fn write_manifest_b3(staging: &Staging) -> Result<u64, SealError> {
    let path = staging.path().join(MANIFEST_B3);
    let mut output = BufWriter::new(draft::create_fresh(&path)?);
    let mut planned = PlannedEntries::open(staging)?;
    let mut left_out = 0;
    while let Some((entry, _)) = planned.next_entry()? {
        if entry.kind() != EntryKind::File {
            continue;
        }
        match b3sum_line(&entry) {
            Some(line) => output.write_all(line.as_bytes()).at("write", &path)?,
            None => left_out += 1,
        }
    }
    output.into_inner().map_err(std::io::IntoInnerError::into_error).at("write", &path)?;
    Ok(left_out)
}

/// One line of `manifest.b3`: a name with a backslash or a line feed is escaped, and the line starts with a backslash, as
/// `b3sum` and the coreutils do it. `None` for names that `b3sum` cannot take.
fn b3sum_line(entry: &Entry) -> Option<String> {
    let name = std::str::from_utf8(&entry.path).ok()?;
    // b3sum prints U+FFFD for what is not Unicode and refuses to check a name that has one.
    if name.contains(['\u{fffd}', '\r']) {
        return None;
    }
    let digest = hex::encode(&entry.digest);
    Some(if name.contains(['\\', '\n']) {
        format!("\\{digest}  {TREE}/{}\n", name.replace('\\', "\\\\").replace('\n', "\\n"))
    } else {
        format!("{digest}  {TREE}/{name}\n")
    })
}

/// Tells the chunk index under which names the contents went into the tree.
fn name_contents(staging: &Staging, index: &Arc<Mutex<ChunkIndex>>) -> Result<(), SealError> {
    let mut planned = PlannedContents::open(staging)?;
    loop {
        let mut batch = Vec::new();
        while batch.len() < 64 * 1024
            && let Some((entry, content)) = planned.next_content()?
        {
            batch.push((staging.key(content), entry.path));
        }
        if batch.is_empty() {
            return Ok(());
        }
        let names = batch.iter().map(|(key, path)| (*key, path.as_slice()));
        index.lock().unwrap_or_else(PoisonError::into_inner).name_contents(names)?;
    }
}

/// Opens the manifest of a sealed generation.
///
/// # Errors
/// When it is not there or not one.
pub fn open_manifest(
    store: &Store,
    number: GenerationNumber,
) -> Result<ManifestReader<BufReader<File>>, SealError> {
    let path: PathBuf = store.generation_path(number).join(MANIFEST);
    let file = File::open(&path).at("open", &path)?;
    Ok(ManifestReader::open(BufReader::with_capacity(256 * 1024, file))?)
}

/// The header that a manifest file starts with.
pub(crate) fn parse_header(text: &str) -> Result<Header, SealError> {
    Ok(Header::from_json(text)?)
}

/// An error with the entry that it is about.
fn named(path: &TreePath, source: std::io::Error) -> SealError {
    // The manifest has each name once, and the tree is new.
    let source = match source.kind() {
        std::io::ErrorKind::AlreadyExists => {
            CannotHold("two names in one folder that differ in case only".to_owned()).into()
        }
        _ => source,
    };
    SealError::Entry { path: path.to_string(), source }
}

#[cfg(test)]
mod tests;
