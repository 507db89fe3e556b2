//! The generation that a run builds upon, as a source of pieces: entries by their position, files by their entries.

use std::{
    collections::{HashSet, VecDeque},
    fs::File,
    os::unix::fs::FileExt as _,
    sync::{Arc, Mutex, PoisonError},
};

use assay_common::{
    confined::Folder,
    digest::ContentDigest,
    error::{IoContext as _, PathError},
    id::GenerationNumber,
    manifest::{EntryKind, content_pieces, entry_at, reuse::DigestedPiece, validate_entry},
};

use super::{ReceiveError, protocol};
use crate::store::{MANIFEST, POSITIONS, Store, TREE};

/// Files of the base that are kept at hand: as many as a source reads side by side, and some.
const CACHED_FILES: usize = 8;

/// A sealed generation's manifest and tree.
pub struct Base {
    manifest: File,
    positions: File,
    tree: Folder,
    /// No file is trusted.
    compares: bool,
    /// Paths of files that the disk has not kept, as far as is known.
    rotten: HashSet<Vec<u8>>,
    cached: Mutex<VecDeque<Arc<BaseFile>>>,
}

/// A file of the base.
pub(super) struct BaseFile {
    pub(super) position: u64,
    pub(super) path: Vec<u8>,
    pub(super) digest: ContentDigest,
    pub(super) size: u64,
    /// Its pieces in order, with their offsets.
    pub(super) pieces: Vec<(u64, DigestedPiece)>,
    /// `None` when it is not there or no file: damage, and all of its pieces are asked for.
    pub(super) file: Option<File>,
    /// Some of it may not be what it was: each piece is held against its digest.
    pub(super) is_doubted: bool,
}

impl Base {
    /// Opens a sealed generation, of which these files are known to be rotten, or of which no file is trusted.
    ///
    /// # Errors
    /// When its manifest or tree is not there.
    pub fn open(
        store: &Store,
        number: GenerationNumber,
        (compares, rotten): (bool, HashSet<Vec<u8>>),
    ) -> Result<Self, PathError> {
        let folder = store.generation_path(number);
        let open = |name: &str| File::open(folder.join(name)).at("open", &folder.join(name));
        let tree = folder.join(TREE);
        Ok(Self {
            manifest: open(MANIFEST)?,
            positions: open(POSITIONS)?,
            tree: Folder::open(&tree).at("open", &tree)?,
            compares,
            rotten,
            cached: Mutex::default(),
        })
    }

    /// True when no file is trusted.
    pub(super) fn compares(&self) -> bool {
        self.compares
    }

    /// The file whose entry is at `position`.
    pub(super) fn file(&self, position: u64) -> Result<Arc<BaseFile>, ReceiveError> {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = cached.iter().position(|file| file.position == position) {
            cached.swap(0, index);
        } else {
            let file = Arc::new(self.load(position)?);
            cached.truncate(CACHED_FILES - 1);
            cached.push_front(file);
        }
        Ok(Arc::clone(&cached[0]))
    }

    fn load(&self, position: u64) -> Result<BaseFile, ReceiveError> {
        let mut word = [0; 8];
        let at = position.saturating_mul(8);
        if self.positions.read_exact_at(&mut word, at).is_err() {
            return protocol("what is reused stands in the base");
        }
        let entry = entry_at(&self.manifest, u64::from_le_bytes(word)).map_err(ReceiveError::Base)?;
        let path = validate_entry(&entry).map_err(|fault| ReceiveError::Base(fault.into()))?;
        if entry.kind() != EntryKind::File {
            return protocol("what is reused is a file of the base");
        }
        let pieces =
            content_pieces(&entry).map(|(offset, piece, digest)| (offset, (piece, digest))).collect();
        let file = self.tree.open_file_below(&path).ok();
        let file = file.filter(|file| file.metadata().is_ok_and(|metadata| metadata.is_file()));
        let digest = ContentDigest::from_slice(&entry.digest).expect("the entry was validated");
        let is_doubted = self.compares || self.rotten.contains(&entry.path);
        Ok(BaseFile { position, digest, size: entry.size, path: entry.path, pieces, file, is_doubted })
    }
}
