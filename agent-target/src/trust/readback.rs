//! Reads a sealed generation back against its manifest.
//!
//! Every file is read whole, as a check sees it: what the page cache holds is what the check was given. A file that differs
//! is read once more from the disk itself, which tells the disk from the memory.

use std::{
    fs::File,
    io::{self, BufReader},
};

use assay_common::{
    confined::Folder,
    digest::{ContentDigest, RootDigest},
    error::{IoContext as _, PathError},
    id::GenerationNumber,
    manifest::{Entry, EntryKind, ManifestError, ManifestReader, content_pieces, validate_entry},
    path::TreePath,
    uncached,
};
use rustix::fs::Advice;

use crate::store::{MANIFEST, Store, TREE};

/// Bytes that are read at a time.
const BLOCK_BYTES: usize = 1024 * 1024;
/// Differing files that are described; all are counted.
const DESCRIBED: usize = 100;

/// What was read.
#[derive(Debug, Default)]
pub struct Report {
    /// Files.
    pub files: u64,
    /// Their bytes, as the manifest has them.
    pub bytes: u64,
    /// Files that are not what arrived.
    pub differ: u64,
    /// The first of them.
    pub found: Vec<Differing>,
}

/// A file that is not what arrived.
#[derive(Debug)]
pub struct Differing {
    /// Its path below the tree, made printable.
    pub path: String,
    /// In which way.
    pub what: String,
}

/// Reads generation `number`, whose manifest had this root digest when it was sealed. `each` hears of every entry.
///
/// # Errors
/// When manifest or tree cannot be opened: then nothing can be said.
pub fn read_back(
    store: &Store,
    number: GenerationNumber,
    root: Option<RootDigest>,
    mut each: impl FnMut(&TreePath, &Entry),
) -> Result<Report, PathError> {
    let folder = store.generation_path(number);
    let path = folder.join(MANIFEST);
    let manifest = File::open(&path).at("open", &path)?;
    let tree_path = folder.join(TREE);
    let tree = Folder::open(&tree_path).at("open", &tree_path)?;
    let mut report = Report::default();
    let walked = walk(manifest, root, |path, entry| {
        each(path, entry);
        if entry.kind() != EntryKind::File {
            return;
        }
        report.files += 1;
        report.bytes += entry.size;
        if let Some(what) = compare(&tree, path, entry) {
            report.add(path.to_string(), what);
        }
    });
    if let Err(what) = walked {
        report.add(MANIFEST.to_owned(), what);
    }
    Ok(report)
}

impl Report {
    fn add(&mut self, path: String, what: String) {
        self.differ += 1;
        if self.found.len() < DESCRIBED {
            self.found.push(Differing { path, what });
        }
    }
}

/// Every valid entry of the manifest; then says what is wrong with the manifest itself, if anything is.
fn walk(
    manifest: File,
    root: Option<RootDigest>,
    mut each: impl FnMut(&TreePath, &Entry),
) -> Result<(), String> {
    let told = |error: ManifestError| format!("the generation's own manifest is damaged: {error}");
    let mut reader = ManifestReader::open(BufReader::new(manifest)).map_err(told)?;
    while let Some(entry) = reader.next_entry().map_err(told)? {
        let path = validate_entry(&entry).map_err(|fault| told(fault.into()))?;
        each(&path, &entry);
    }
    match root {
        Some(root) if root == reader.root_digest() => Ok(()),
        _ => Err("the generation's own manifest has not the root digest that was sealed".to_owned()),
    }
}

/// What is different about a file; `None` when it is what arrived.
fn compare(tree: &Folder, path: &TreePath, entry: &Entry) -> Option<String> {
    let file = match tree.open_file_below(path) {
        Ok(file) => file,
        Err(error) => return Some(format!("cannot be opened: {error}")),
    };
    match file.metadata() {
        Ok(metadata) if !metadata.is_file() => return Some("is no regular file".to_owned()),
        Ok(metadata) if metadata.len() != entry.size => {
            return Some(format!("has {} bytes, {} arrived", metadata.len(), entry.size));
        }
        Ok(_) => {}
        Err(error) => return Some(format!("cannot be looked at: {error}")),
    }
    uncached::read_once(&file);
    match digest(&file, entry.size) {
        Err(error) => return Some(format!("cannot be read: {error}")),
        Ok(digest) if digest.0 == entry.digest[..] => return None,
        Ok(_) => {}
    }
    let place = first_difference(&file, entry).unwrap_or_else(|| "its content".to_owned());
    // Nothing of ours writes to it, so its pages are clean and can be given up.
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).ok();
    let where_from = match digest(&file, entry.size) {
        Ok(digest) if digest.0 == entry.digest[..] => {
            "; read again from the disk it is what arrived: this host's memory"
        }
        _ => "",
    };
    Some(format!("{place} is not what arrived{where_from}"))
}

fn digest(file: &File, size: u64) -> io::Result<ContentDigest> {
    let mut hasher = blake3::Hasher::new();
    let mut block = vec![0; BLOCK_BYTES.min(usize::try_from(size).unwrap_or(BLOCK_BYTES)).max(1)];
    let mut offset = 0;
    while offset < size {
        let want = usize::try_from(size - offset).unwrap_or(usize::MAX).min(block.len());
        let got = uncached::read_full_at(file, &mut block[..want], offset)?;
        if got == 0 {
            break;
        }
        hasher.update(&block[..got]);
        offset += got as u64;
    }
    Ok(ContentDigest(*hasher.finalize().as_bytes()))
}

/// The first piece that is not what arrived.
fn first_difference(file: &File, entry: &Entry) -> Option<String> {
    for (offset, piece, expected) in content_pieces(entry) {
        let mut bytes = match expected {
            Some(_) => vec![0; usize::try_from(piece.bytes()).ok()?],
            // A hole reads as zeros, however long: looked at in blocks.
            None => Vec::new(),
        };
        let differs = match expected {
            Some(expected) => {
                uncached::read_full_at(file, &mut bytes, offset).ok()?;
                ContentDigest::of(&bytes) != expected
            }
            None => !is_zero(file, offset, piece.bytes()).ok()?,
        };
        if differs {
            return Some(format!("bytes {offset} to {}", offset + piece.bytes()));
        }
    }
    None
}

fn is_zero(file: &File, offset: u64, bytes: u64) -> io::Result<bool> {
    let mut block = vec![0; BLOCK_BYTES];
    let (mut at, end) = (offset, offset + bytes);
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(block.len());
        let got = uncached::read_full_at(file, &mut block[..want], at)?;
        if got == 0 || block[..got].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        at += got as u64;
    }
    Ok(true)
}
