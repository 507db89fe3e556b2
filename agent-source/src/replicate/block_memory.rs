//! What is remembered of large files, so that what is as it was is known without a second BLAKE3 digest over the same bytes: the
//! chaining values of their blocks, for what stands where it stood, and a fingerprint of each piece (XXH3, 64 bits), for what has moved or stands beside what is new.
//!
//! A file of records: content digest, number of blocks, number of pieces, values, fingerprints. A list of values is used only when it
//! adds up to the digest that the basis has of the file; nothing adds up for fingerprints, and a piece that has another's is told to be
//! what it is not. Then the digest of the whole, which is of what was read, is not that of what the target puts together: it says so, and
//! the run is taken up again without fingerprints. So the file need not be flushed, nor belong to the same run as the rest of the basis.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufReader, BufWriter, Read as _, Write as _},
    os::unix::fs::FileExt as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use assay_common::{
    closed,
    digest::{BLOCK_BYTES, BlockList, ContentDigest, DIGEST_BYTES},
    manifest::Entry,
};

/// Files below this length are not worth remembering.
pub(super) const LEAST_BYTES: u64 = 4 * BLOCK_BYTES;
/// Digest, number of blocks, number of pieces.
const HEAD_BYTES: usize = DIGEST_BYTES + 4 + 4;
const FINGERPRINT_BYTES: usize = 8;

/// A short digest of a piece: equal for equal bytes, and not for others unless somebody sees to it.
pub(super) type Fingerprint = u64;

/// What is remembered of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    /// Its blocks.
    pub(super) blocks: BlockList,
    /// A fingerprint for each of its pieces; that of a hole is 0.
    pub(super) fingerprints: Vec<Fingerprint>,
}

/// Lists that were written before.
#[derive(Debug)]
pub(super) struct Remembered {
    file: File,
    /// Where the values of each begin, how many there are, and how many fingerprints stand behind them.
    places: HashMap<ContentDigest, (u64, u32, u32)>,
}

impl Remembered {
    /// What stands in the file at `path`, as far as it can be read.
    pub(super) fn open(path: &Path) -> Option<Self> {
        let file = File::open(path).ok()?;
        let length = file.metadata().ok()?.len();
        let mut reader = BufReader::new(file.try_clone().ok()?);
        let (mut places, mut at) = (HashMap::new(), 0);
        let mut head = [0; HEAD_BYTES];
        while reader.read_exact(&mut head).is_ok() {
            let (digest, counts) = head.split_at(DIGEST_BYTES);
            let (blocks, pieces) = counts.split_at(4);
            let count = |bytes: &[u8]| bytes.try_into().map(u32::from_le_bytes).ok();
            let (blocks, pieces) = (count(blocks)?, count(pieces)?);
            at += HEAD_BYTES as u64;
            let bytes = record_bytes(blocks, pieces);
            if length - at < bytes {
                break;
            }
            places.insert(ContentDigest::from_slice(digest)?, (at, blocks, pieces));
            at += bytes;
            reader.seek_relative(i64::try_from(bytes).ok()?).ok()?;
        }
        Some(Self { file, places })
    }

    /// What is known of a file of `size` bytes with this digest.
    pub(super) fn find(&self, digest: ContentDigest, size: u64) -> Option<Known> {
        let (at, count, pieces) = *self.places.get(&digest)?;
        if u64::from(count) != size.div_ceil(BLOCK_BYTES) {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(record_bytes(count, pieces)).ok()?];
        self.file.read_exact_at(&mut bytes, at).ok()?;
        let (values, fingerprints) = bytes.split_at(count as usize * DIGEST_BYTES);
        let blocks = BlockList::of(values.as_chunks::<DIGEST_BYTES>().0.to_vec(), size, digest)?;
        let fingerprints = fingerprints.as_chunks::<FINGERPRINT_BYTES>().0;
        Some(Known {
            blocks,
            fingerprints: fingerprints.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect(),
        })
    }
}

/// Length of what stands behind a head.
fn record_bytes(blocks: u32, pieces: u32) -> u64 {
    u64::from(blocks) * DIGEST_BYTES as u64 + u64::from(pieces) * FINGERPRINT_BYTES as u64
}

/// Writes lists. When that fails it is given up: they can be had again by reading.
#[derive(Debug, Default)]
pub(super) struct Writer(Option<BufWriter<File>>);

impl Writer {
    /// Writes a file at `path`.
    pub(super) fn create(path: &Path) -> Self {
        let file = closed::create_file(path);
        Self(file.inspect_err(told).ok().map(BufWriter::new))
    }

    /// Appends a list.
    pub(super) fn push(&mut self, digest: ContentDigest, known: &Known) {
        let (values, fingerprints) = (known.blocks.values(), &known.fingerprints);
        let (Ok(blocks), Ok(pieces)) = (u32::try_from(values.len()), u32::try_from(fingerprints.len()))
        else {
            return;
        };
        self.write(|file| {
            file.write_all(&digest.0)?;
            file.write_all(&blocks.to_le_bytes())?;
            file.write_all(&pieces.to_le_bytes())?;
            file.write_all(values.as_flattened())?;
            fingerprints.iter().try_for_each(|fingerprint| file.write_all(&fingerprint.to_le_bytes()))
        });
    }

    /// Appends the list of a file that was not read, if there is one.
    pub(super) fn keep(&mut self, before: &Remembered, entry: &Entry) {
        if entry.size >= LEAST_BYTES
            && let Some(digest) = ContentDigest::from_slice(&entry.digest)
            && let Some(known) = before.find(digest, entry.size)
        {
            self.push(digest, &known);
        }
    }

    /// Appends all that stands in the file at `path`.
    pub(super) fn append(&mut self, path: &Path) {
        let Ok(mut from) = File::open(path) else {
            return;
        };
        self.write(|file| io::copy(&mut from, file).map(drop));
    }

    fn write(&mut self, work: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) {
        if let Some(file) = &mut self.0
            && let Err(error) = work(file)
        {
            told(&error);
            self.0 = None;
        }
    }

    /// Ends the file.
    pub(super) fn finish(&mut self) {
        self.write(|file| file.flush());
        self.0 = None;
    }
}

fn told(error: &io::Error) {
    tracing::debug!(%error, "blocks of files are not remembered");
}

/// What the readers of a run share: lists of before, and those that they make.
#[derive(Debug, Clone, Default)]
pub struct BlockMemory(Arc<(Option<Remembered>, Mutex<Writer>)>);

impl BlockMemory {
    /// Remembers what stands at `before`, and writes to `after`.
    pub(super) fn new(before: Option<&Path>, after: &Path) -> Self {
        Self(Arc::new((before.and_then(Remembered::open), Mutex::new(Writer::create(after)))))
    }

    /// What is known of a file of the basis.
    pub(super) fn find(&self, digest: &[u8], size: u64) -> Option<Known> {
        self.0.0.as_ref()?.find(ContentDigest::from_slice(digest)?, size)
    }

    /// Keeps what is known of a file of `size` bytes that was read.
    pub(super) fn keep(&self, digest: ContentDigest, size: u64, known: &Known) {
        if size >= LEAST_BYTES {
            self.0.1.lock().unwrap_or_else(PoisonError::into_inner).push(digest, known);
        }
    }

    /// All files have been read.
    pub(super) fn finish(&self) {
        self.0.1.lock().unwrap_or_else(PoisonError::into_inner).finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use assay_common::digest::BlockHasher;

    fn file(seed: u8, size: usize) -> (ContentDigest, u64, Known) {
        let mut hasher = BlockHasher::default();
        hasher.update(&vec![seed; size]);
        let (digest, blocks) = hasher.finish();
        let (blocks, fingerprints) =
            (blocks.expect("more than one"), vec![u64::from(seed); size / 1_000_000]);
        (digest, size as u64, Known { blocks, fingerprints })
    }

    #[test]
    fn what_was_kept_is_found_and_what_is_damaged_is_not() {
        let folder = tempfile::tempdir().expect("temp");
        let (path, next) = (folder.path().join("blocks"), folder.path().join("next"));
        let files = [file(1, 5_000_000), file(2, 4_194_304), file(3, 9_999_999)];
        let memory = BlockMemory::new(None, &path);
        assert_eq!(memory.find(&files[0].0.0, files[0].1), None);
        for (digest, size, blocks) in &files {
            memory.keep(*digest, *size, blocks);
        }
        let (digest, size, blocks) = file(4, 4_194_303);
        memory.keep(digest, size, &blocks);
        memory.finish();
        let again = BlockMemory::new(Some(&path), &next);
        for (digest, size, blocks) in &files {
            assert_eq!(again.find(&digest.0, *size).as_ref(), Some(blocks));
            assert_eq!(again.find(&digest.0, size + BLOCK_BYTES), None, "another file's size");
        }
        assert_eq!(again.find(&digest.0, size), None, "too small to be kept");
        again.finish();
        // A bit anywhere in the second list: that one alone is lost. A file that is cut off loses what is behind the cut.
        let whole = std::fs::read(&path).expect("read");
        let mut damaged = whole.clone();
        damaged[HEAD_BYTES + 5 * DIGEST_BYTES + HEAD_BYTES + 40] ^= 1;
        std::fs::write(&path, &damaged).expect("write");
        let found = |path: &Path| {
            let known = Remembered::open(path).expect("it is there");
            files.each_ref().map(|(digest, size, _)| known.find(*digest, *size).is_some())
        };
        assert_eq!(found(&path), [true, false, true]);
        std::fs::write(&path, &whole[..whole.len() - 1]).expect("write");
        assert_eq!(found(&path), [true, true, false]);
        std::fs::write(&path, [&whole[..], &[0xff; HEAD_BYTES]].concat()).expect("write");
        assert_eq!(found(&path), [true; 3], "a count that the file has not");
        let mut writer = Writer::create(&next);
        writer.append(&path);
        writer.append(Path::new("/nowhere"));
        writer.finish();
        assert_eq!(found(&next), [true; 3]);
    }

    /// A state folder that cannot be written costs the memory, not the run.
    #[test]
    fn nothing_is_remembered_where_nothing_can_be_written() {
        let memory = BlockMemory::new(Some(Path::new("/nowhere/blocks")), Path::new("/nowhere/next"));
        let (digest, size, blocks) = file(1, 5_000_000);
        memory.keep(digest, size, &blocks);
        memory.finish();
        assert_eq!(memory.find(&digest.0, size), None);
    }
}
