//! Where chunks may be found on this machine: a hint for every digest, kept in an embedded database.
//!
//! A hint is never believed: whoever uses one reads the bytes and compares their digest, and asks the source when they do
//! not match. So the index may lose entries (a crash, a pruned generation, a deleted file) without any harm but a chunk
//! that is sent again, and it needs no reference counts and no garbage collection that could race a run.

use std::{
    cell::Cell,
    collections::HashMap,
    fs::File,
    io::{Read as _, Seek as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use assay_common::{
    closed,
    digest::ContentDigest,
    fault::{self, Point},
};
use redb::{Database, ReadableDatabase as _, TableDefinition};

/// Digest to place.
const CHUNKS: TableDefinition<'_, &[u8; 32], &[u8; PLACE_BYTES]> = TableDefinition::new("chunks-1");
/// (generation, session and content) to path below the generation's tree, filled in when the generation is sealed.
const CONTENTS: TableDefinition<'_, (u64, u64), &[u8]> = TableDefinition::new("contents-1");

/// Memory that the database may use to hold pages, in bytes: enough for the inner nodes of a terabyte's chunks.
const CACHE_BYTES: usize = 48 * 1024 * 1024;
/// Places that wait in memory for the next write: few enough to be cheap, many enough to make a write worth its while.
const RECENT_PLACES: usize = 16 * 1024;
const PLACE_BYTES: usize = 28;
/// What a place takes in the index, in bytes: its record in the tree, whose pages are two thirds full, and what the file grows by ahead.
pub const PLACE_HELD_BYTES: u64 = 160;
/// A place with its digest, as it stands in the journal.
const RECORD_BYTES: usize = 32 + PLACE_BYTES;

/// A content as the stream of one run knew it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentKey {
    /// Generation that the run was making.
    pub generation: u64,
    /// Count of the connection that brought it, from 1: a resumed run numbers its contents anew.
    pub session: u16,
    /// Number that the source gave it, below 2^48.
    pub content: u64,
}

impl ContentKey {
    fn packed(self) -> (u64, u64) {
        (self.generation, u64::from(self.session) << 48 | self.content)
    }
}

/// Where a chunk may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The content that it is a part of.
    pub key: ContentKey,
    /// Offset of its first byte.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u32,
}

impl Place {
    fn encode(self) -> [u8; PLACE_BYTES] {
        let (generation, content) = self.key.packed();
        let mut place = [0; PLACE_BYTES];
        place[..8].copy_from_slice(&generation.to_le_bytes());
        place[8..16].copy_from_slice(&content.to_le_bytes());
        place[16..24].copy_from_slice(&self.offset.to_le_bytes());
        place[24..].copy_from_slice(&self.bytes.to_le_bytes());
        place
    }

    fn decode(place: &[u8; PLACE_BYTES]) -> Self {
        let word = |range: std::ops::Range<usize>| {
            u64::from_le_bytes(place[range].try_into().expect("eight bytes are a word"))
        };
        let packed = word(8..16);
        Self {
            key: ContentKey {
                generation: word(0..8),
                session: (packed >> 48) as u16,
                content: packed & ((1 << 48) - 1),
            },
            offset: word(16..24),
            bytes: u32::from_le_bytes(place[24..].try_into().expect("four bytes are left")),
        }
    }
}

/// The database does not answer. Its content can be thrown away: it is only hints.
#[derive(Debug, thiserror::Error)]
#[error("the chunk index {path}: {source}")]
pub struct IndexError {
    path: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

impl IndexError {
    /// True if there was no room on the disk.
    pub fn is_full(&self) -> bool {
        self.source.downcast_ref::<std::io::Error>().is_some_and(is_full)
    }

    pub(crate) fn new(path: &str, error: redb::Error) -> Self {
        let source = match error {
            // What the file system said, for whoever asks whether the disk is full.
            redb::Error::Io(error) => error.into(),
            error => error.into(),
        };
        Self { path: path.to_owned(), source }
    }
}

/// The index of one repository.
///
/// Places that are not in the database yet are in a journal beside it, written without waiting for the disk: it makes what
/// had arrived survive a kill of the agent. After a power cut its end may be missing, or point at bytes that are not there:
/// hints, all of them.
pub struct ChunkIndex {
    /// `None` when it could not be opened again.
    database: Option<Database>,
    /// After a fault of the disk the database refuses everything until it is opened again, also when there is room again.
    broken: Cell<bool>,
    path: String,
    recent: HashMap<ContentDigest, Place>,
    journal: File,
    unwritten: Vec<u8>,
}

impl ChunkIndex {
    /// Opens the index, or makes a new one when there is none or when it is damaged.
    ///
    /// # Errors
    /// When no database can be made there either.
    pub fn open_or_create(path: &Path) -> Result<Self, IndexError> {
        let open = || {
            // An empty file is a new database, and the names in it are nobody else's to read.
            closed::options().append(true).create(true).open(path)?;
            redb::Builder::new().set_cache_size(CACHE_BYTES).create(path)
        };
        let database = open().or_else(|error: redb::DatabaseError| {
            // A full disk says nothing about the index.
            if matches!(&error, redb::DatabaseError::Storage(redb::StorageError::Io(error)) if is_full(error))
            {
                return Err(error);
            }
            tracing::warn!(path = %path.display(), %error, "the chunk index is unusable and is rebuilt");
            drop(std::fs::remove_file(path));
            open()
        });
        let journal_path = journal_path(path);
        let path = path.display().to_string();
        let failed = |source: redb::Error| IndexError::new(&path, source);
        let database = database.map_err(|error| failed(error.into()))?;
        let mut journal = closed::options()
            .create(true)
            .truncate(false)
            .read(true)
            .append(true)
            .open(journal_path)
            .map_err(|error| failed(error.into()))?;
        let mut bytes = Vec::new();
        journal.read_to_end(&mut bytes).map_err(|error| failed(error.into()))?;
        let records = bytes.chunks_exact(RECORD_BYTES).map(|record| {
            let (digest, place) = record.split_at(32);
            let digest = ContentDigest(digest.try_into().expect("a digest is 32 bytes"));
            (digest, Place::decode(place.try_into().expect("the rest is a place")))
        });
        let recent = records.collect();
        let mut index = Self {
            database: Some(database),
            broken: Cell::new(false),
            path,
            recent,
            journal,
            unwritten: Vec::new(),
        };
        index.wrapped(|| {
            let transaction = index.database()?.begin_write()?;
            transaction.open_table(CHUNKS)?;
            transaction.open_table(CONTENTS)?;
            Ok(transaction.commit()?)
        })?;
        index.flush()?;
        Ok(index)
    }

    /// Opens the index again after a fault of the disk. What had been settled is in the journal.
    ///
    /// # Errors
    /// When it still cannot be opened.
    pub fn recover(&mut self) -> Result<(), IndexError> {
        if self.broken.get() {
            // It holds a lock on its file.
            self.database = None;
            *self = Self::open_or_create(Path::new(&self.path.clone()))?;
        }
        Ok(())
    }

    /// Bytes that the index and its journal take on the disk.
    pub fn held_bytes(&self) -> u64 {
        let path = Path::new(&self.path);
        let blocks =
            |path: &Path| std::fs::metadata(path).map_or(0, |stat| stat.blocks().saturating_mul(512));
        blocks(path).saturating_add(blocks(&journal_path(path)))
    }

    /// Throws the index away and begins a new one. What it knew were hints: chunks that only they led to are sent again.
    ///
    /// # Errors
    /// When no new one can be made.
    pub fn start_over(&mut self) -> Result<(), IndexError> {
        let path = self.path.clone();
        // It holds a lock on its file.
        self.database = None;
        self.broken.set(true);
        for file in [PathBuf::from(&path), journal_path(Path::new(&path))] {
            match std::fs::remove_file(&file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(IndexError::new(&path, redb::Error::Io(error)));
                }
                _ => {}
            }
        }
        *self = Self::open_or_create(Path::new(&path))?;
        Ok(())
    }

    fn database(&self) -> Result<&Database, redb::Error> {
        self.database.as_ref().ok_or(redb::Error::PreviousIo)
    }

    fn wrapped<T>(&self, work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, IndexError> {
        work().map_err(|source| {
            self.broken.set(true);
            IndexError::new(&self.path, source)
        })
    }

    /// Looks up many digests at once; the answers come in the order of the questions.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn find(&self, digests: &[ContentDigest]) -> Result<Vec<Option<Place>>, IndexError> {
        self.wrapped(|| {
            let transaction = self.database()?.begin_read()?;
            let table = transaction.open_table(CHUNKS)?;
            digests
                .iter()
                .map(|digest| match self.recent.get(digest) {
                    Some(place) => Ok(Some(*place)),
                    None => Ok(table.get(&digest.0)?.map(|place| Place::decode(place.value()))),
                })
                .collect()
        })
    }

    /// Notes where a chunk is now.
    ///
    /// # Errors
    /// When the database cannot be written to.
    pub fn insert(&mut self, digest: ContentDigest, place: Place) -> Result<(), IndexError> {
        self.recent.insert(digest, place);
        self.unwritten.extend_from_slice(&digest.0);
        self.unwritten.extend_from_slice(&place.encode());
        if self.recent.len() >= RECENT_PLACES { self.flush() } else { Ok(()) }
    }

    /// Writes what was noted since the last call to the journal, so that a kill does not lose it.
    ///
    /// # Errors
    /// When the journal cannot be written to.
    pub fn settle(&mut self) -> Result<(), IndexError> {
        let unwritten = std::mem::take(&mut self.unwritten);
        self.wrapped(|| {
            fault::at(Point::JournalWrite)?;
            Ok((&self.journal).write_all(&unwritten)?)
        })
    }

    /// Writes what waits in memory, durably.
    ///
    /// # Errors
    /// When the database cannot be written to.
    pub fn flush(&mut self) -> Result<(), IndexError> {
        if self.recent.is_empty() {
            return Ok(());
        }
        let mut recent: Vec<_> = std::mem::take(&mut self.recent).into_iter().collect();
        recent.sort_unstable_by_key(|(digest, _)| *digest);
        self.wrapped(|| {
            let transaction = self.database()?.begin_write()?;
            {
                let mut table = transaction.open_table(CHUNKS)?;
                for (digest, place) in &recent {
                    table.insert(&digest.0, &place.encode())?;
                }
            }
            fault::at(Point::IndexCommit)?;
            transaction.commit()?;
            fault::at(Point::IndexCommitted)?;
            // What the journal says is in the database now.
            self.journal.set_len(0)?;
            Ok((&self.journal).rewind()?)
        })?;
        self.unwritten.clear();
        Ok(())
    }

    /// Notes under which paths the contents of a generation went into its tree.
    ///
    /// # Errors
    /// When the database cannot be written to.
    pub fn name_contents<'a>(
        &mut self,
        names: impl Iterator<Item = (ContentKey, &'a [u8])>,
    ) -> Result<(), IndexError> {
        self.flush()?;
        self.wrapped(|| {
            let transaction = self.database()?.begin_write()?;
            {
                let mut table = transaction.open_table(CONTENTS)?;
                for (key, path) in names {
                    table.insert(key.packed(), path)?;
                }
            }
            Ok(transaction.commit()?)
        })
    }

    /// The path of a sealed content below its generation's tree.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn content_path(&self, key: ContentKey) -> Result<Option<Vec<u8>>, IndexError> {
        self.wrapped(|| {
            let transaction = self.database()?.begin_read()?;
            let table = transaction.open_table(CONTENTS)?;
            Ok(table.get(key.packed())?.map(|path| path.value().to_vec()))
        })
    }
}

fn journal_path(index: &Path) -> PathBuf {
    index.with_extension("journal")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was settled is there after a kill, though the database was never written; half a record is not.
    #[test]
    fn settled_places_survive_a_kill() {
        let folder = tempfile::tempdir().expect("temp");
        let path = folder.path().join("index.redb");
        let place = Place { key: ContentKey { generation: 1, session: 1, content: 1 }, offset: 0, bytes: 3 };
        let mut index = ChunkIndex::open_or_create(&path).expect("new");
        index.insert(ContentDigest::of(b"settled"), place).expect("insert");
        index.settle().expect("settle");
        index.insert(ContentDigest::of(b"not settled"), place).expect("insert");
        drop(index);
        File::options()
            .append(true)
            .open(journal_path(&path))
            .expect("open")
            .write_all(b"half")
            .expect("write");
        let index = ChunkIndex::open_or_create(&path).expect("again");
        let found = index.find(&[ContentDigest::of(b"settled"), ContentDigest::of(b"not settled")]);
        assert_eq!(found.expect("find"), [Some(place), None]);
        assert_eq!(std::fs::metadata(journal_path(&path)).expect("stat").len(), 0);
    }

    #[test]
    fn an_index_that_starts_over_knows_nothing_and_goes_on() {
        let folder = tempfile::tempdir().expect("temp");
        let path = folder.path().join("index.redb");
        let digest = |number: u64| ContentDigest::of(&number.to_le_bytes());
        let place = |number: u64| Place {
            key: ContentKey { generation: 1, session: 1, content: number },
            offset: number,
            bytes: 7,
        };
        let mut index = ChunkIndex::open_or_create(&path).expect("index");
        for number in 0..50_000 {
            index.insert(digest(number), place(number)).expect("insert");
        }
        index.flush().expect("flush");
        let full = index.held_bytes();
        // What a run is charged for each of them is enough.
        assert!(full > 1 << 20 && full <= 50_000 * PLACE_HELD_BYTES + (2 << 20), "{full}");
        index.start_over().expect("anew");
        assert!(index.held_bytes() < full / 2, "{} of {full}", index.held_bytes());
        assert_eq!(index.find(&[digest(1)]).expect("find"), [None]);
        index.insert(digest(2), place(2)).expect("insert");
        index.flush().expect("flush");
        drop(index);
        let index = ChunkIndex::open_or_create(&path).expect("index");
        assert_eq!(index.find(&[digest(1), digest(2)]).expect("find"), [None, Some(place(2))]);
    }

    #[test]
    fn places_survive_a_restart_and_a_damaged_index_is_made_anew() {
        let folder = tempfile::tempdir().expect("temp");
        let path = folder.path().join("index.redb");
        let key = ContentKey { generation: 7, session: 3, content: 99 };
        let place = Place { key, offset: 1 << 40, bytes: 4096 };
        let (known, unknown) = (ContentDigest::of(b"known"), ContentDigest::of(b"unknown"));
        let mut index = ChunkIndex::open_or_create(&path).expect("new");
        index.insert(known, place).expect("insert");
        assert_eq!(index.find(&[unknown, known]).expect("find"), [None, Some(place)]);
        index.name_contents([(key, b"a/b".as_slice())].into_iter()).expect("names");
        drop(index);
        let index = ChunkIndex::open_or_create(&path).expect("again");
        assert_eq!(index.find(&[known]).expect("find"), [Some(place)]);
        assert_eq!(index.content_path(key).expect("path").as_deref(), Some(b"a/b".as_slice()));
        drop(index);
        std::fs::write(&path, b"not a database").expect("write");
        let index = ChunkIndex::open_or_create(&path).expect("anew");
        assert_eq!(index.find(&[known]).expect("find"), [None]);
    }
}
