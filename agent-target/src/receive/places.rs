//! Reads chunks that are already on this machine, wherever the index says they may be.

use std::{
    collections::VecDeque,
    fs::File,
    os::unix::fs::FileExt as _,
    sync::{Arc, Mutex, PoisonError},
};

use assay_common::{confined::Folder, digest::ContentDigest, id::GenerationNumber, path::TreePath};

use crate::store::{
    Staging, Store, TREE,
    index::{ChunkIndex, ContentKey, IndexError, Place},
};

/// Files that are held open: the parts of one old file are asked for one after the other.
const OPEN_FILES: usize = 16;

/// Finds chunks through the index and reads them from sealed generations and from staging.
pub struct PlaceReader {
    store: Arc<Store>,
    staging: Arc<Staging>,
    index: Arc<Mutex<ChunkIndex>>,
    base: Option<GenerationNumber>,
    open: VecDeque<(ContentKey, Option<File>)>,
}

impl PlaceReader {
    /// A reader for a run that builds upon `base`.
    pub fn new(
        store: Arc<Store>,
        staging: Arc<Staging>,
        index: Arc<Mutex<ChunkIndex>>,
        base: Option<GenerationNumber>,
    ) -> Self {
        Self { store, staging, index, base, open: VecDeque::new() }
    }

    pub(super) fn find(&self, digests: &[ContentDigest]) -> Result<Vec<Option<Place>>, IndexError> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner).find(digests)
    }

    pub(super) fn insert(&self, digest: ContentDigest, place: Place) -> Result<(), IndexError> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner).insert(digest, place)
    }

    pub(super) fn settle(&self) -> Result<(), IndexError> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner).settle()
    }

    pub(super) fn flush(&self) -> Result<(), IndexError> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner).flush()
    }

    /// Closes a file whose place has changed.
    pub(super) fn forget(&mut self, key: ContentKey) {
        self.open.retain(|(open, _)| *open != key);
    }

    /// The chunk at `place`, if it is there and has this digest.
    pub(super) fn read(&mut self, place: Place, digest: ContentDigest) -> Option<Vec<u8>> {
        let file = self.file(place.key)?;
        let mut bytes = vec![0; place.bytes as usize];
        file.read_exact_at(&mut bytes, place.offset).ok()?;
        (ContentDigest::of(&bytes) == digest).then_some(bytes)
    }

    fn file(&mut self, key: ContentKey) -> Option<&File> {
        if let Some(position) = self.open.iter().position(|(open, _)| *open == key) {
            self.open.swap(0, position);
        } else {
            let file = self.open_file(key);
            // A content of this session may come into being later: its absence is not remembered.
            if file.is_none() && key.generation == self.staging.number().0 {
                return None;
            }
            self.open.truncate(OPEN_FILES - 1);
            self.open.push_front((key, file));
        }
        self.open[0].1.as_ref()
    }

    fn open_file(&self, key: ContentKey) -> Option<File> {
        if key.generation == self.staging.number().0 {
            let (folder, name) = self.staging.locate(key.session, key.content).ok()?;
            return folder.open_file(&name).ok();
        }
        let path = self.index.lock().unwrap_or_else(PoisonError::into_inner).content_path(key).ok()??;
        let path = TreePath::parse(&path).ok()?;
        // The generation that brought the chunk may be gone; the base most often still has the file under its name.
        [Some(GenerationNumber(key.generation)), self.base].into_iter().flatten().find_map(|generation| {
            let tree = Folder::open(&self.store.generation_path(generation).join(TREE)).ok()?;
            let file = tree.open_file_below(&path).ok()?;
            file.metadata().ok()?.is_file().then_some(file)
        })
    }
}
