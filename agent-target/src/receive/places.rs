//! Reads chunks that are already on this machine, wherever the index says they may be.

use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use assay_common::{
    confined::Folder,
    digest::ContentDigest,
    fault::{self, Point},
    id::GenerationNumber,
    path::TreePath,
    uncached,
};

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
    open: Mutex<OpenFiles>,
    /// Contents that took over the file of an earlier session: they may hold bytes where there should be a hole.
    adopted: Mutex<HashMap<u64, ContentKey>>,
}

type OpenFiles = VecDeque<(ContentKey, Option<Arc<File>>)>;

impl PlaceReader {
    /// A reader for a run that builds upon `base`.
    pub fn new(
        store: Arc<Store>,
        staging: Arc<Staging>,
        index: Arc<Mutex<ChunkIndex>>,
        base: Option<GenerationNumber>,
    ) -> Self {
        Self { store, staging, index, base, open: Mutex::default(), adopted: Mutex::default() }
    }

    fn index(&self) -> MutexGuard<'_, ChunkIndex> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn find(&self, digests: &[ContentDigest]) -> Result<Vec<Option<Place>>, IndexError> {
        if digests.is_empty() { Ok(Vec::new()) } else { self.index().find(digests) }
    }

    /// Notes where chunks are, so that a kill does not lose it.
    pub(super) fn insert(&self, places: &[(ContentDigest, Place)]) -> Result<(), IndexError> {
        let mut index = self.index();
        for (digest, place) in places {
            index.insert(*digest, *place)?;
        }
        index.settle()
    }

    pub(super) fn flush(&self) -> Result<(), IndexError> {
        self.index().flush()
    }

    /// Notes that a content has taken over the file of `from`.
    pub(super) fn adopt(&self, content: u64, from: ContentKey) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).retain(|(open, _)| *open != from);
        self.adopted.lock().unwrap_or_else(PoisonError::into_inner).insert(content, from);
    }

    /// The content of an earlier session whose file this content has taken over.
    pub(super) fn adopted(&self, content: u64) -> Option<ContentKey> {
        self.adopted.lock().unwrap_or_else(PoisonError::into_inner).get(&content).copied()
    }

    /// The chunk at `place`, if it is there and has this digest.
    pub(super) fn read(&self, place: Place, digest: ContentDigest) -> Option<Vec<u8>> {
        fault::at(Point::StoreRead).ok()?;
        let file = self.file(place.key)?;
        let mut bytes = vec![0; place.bytes as usize];
        let got = uncached::read_full_at(&file, &mut bytes, place.offset).ok()?;
        (got == bytes.len() && ContentDigest::of(&bytes) == digest).then_some(bytes)
    }

    fn file(&self, key: ContentKey) -> Option<Arc<File>> {
        {
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((_, file)) = open.iter().find(|(open, _)| *open == key) {
                return file.clone();
            }
        }
        let file = self.open_file(key).map(Arc::new);
        // A content of this session may come into being later: its absence is not remembered.
        if file.is_some() || key.generation != self.staging.number().0 {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.truncate(OPEN_FILES - 1);
            open.push_front((key, file.clone()));
        }
        file
    }

    fn open_file(&self, key: ContentKey) -> Option<File> {
        if key.generation == self.staging.number().0 {
            let (folder, name) = self.staging.locate(key.session, key.content).ok()?;
            return folder.open_file(&name).ok();
        }
        let path = self.index().content_path(key).ok()??;
        let path = TreePath::parse(&path).ok()?;
        // The generation that brought the chunk may be gone; the base most often still has the file under its name.
        [Some(GenerationNumber(key.generation)), self.base].into_iter().flatten().find_map(|generation| {
            let tree = Folder::open(&self.store.generation_path(generation).join(TREE)).ok()?;
            let file = tree.open_file_below(&path).ok()?;
            file.metadata().ok()?.is_file().then_some(file)
        })
    }
}
