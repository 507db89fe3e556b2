//! The digest of each whole content, computed from the verified bytes while they are at hand, so that a file need not be
//! read a second time to be held against its digest.
//!
//! Pieces are written in any order, and a digest is computed in one: what comes early waits, up to a bound. A content whose
//! pieces wait for too much, or that was begun by an earlier session, gets no digest here; the seal reads it back then.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use assay_common::digest::{ContentDigest, DIGEST_BYTES};

/// Bytes that may wait for those before them, of all contents.
const MAX_WAITING_BYTES: usize = 32 * 1024 * 1024;
/// Length and digest.
const RECORD_BYTES: u64 = 8 + DIGEST_BYTES as u64;

/// What is known of the contents of one session.
#[derive(Debug)]
pub struct Whole {
    /// Records by content number, in a file that has no name: a hundred million contents do not stay in memory, and nobody
    /// needs them after a restart.
    records: File,
    tracks: Mutex<HashMap<u64, Arc<Mutex<Track>>>>,
    waiting_bytes: AtomicUsize,
}

/// How far the digest of one content has come.
#[derive(Debug, Default)]
struct Track {
    next: u64,
    hasher: blake3::Hasher,
    waiting: BTreeMap<u64, Segment>,
    length: Option<u64>,
    given_up: bool,
}

#[derive(Debug)]
enum Segment {
    Bytes(Vec<u8>),
    Hole(u64),
}

impl Segment {
    fn waiting_bytes(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Hole(_) => 0,
        }
    }
}

impl Track {
    fn hash(&mut self, segment: &Segment) {
        static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
        match segment {
            Segment::Bytes(bytes) => {
                self.hasher.update(bytes);
                self.next += bytes.len() as u64;
            }
            Segment::Hole(bytes) => {
                let mut rest = *bytes;
                while rest > 0 {
                    let step = rest.min(ZEROS.len() as u64);
                    self.hasher.update(&ZEROS[..step as usize]);
                    rest -= step;
                }
                self.next += bytes;
            }
        }
    }
}

impl Whole {
    /// Nothing is known yet. `records` is an empty file.
    pub fn new(records: File) -> Self {
        Self { records, tracks: Mutex::default(), waiting_bytes: AtomicUsize::new(0) }
    }

    /// The digest of a content of `length` bytes, if it is known.
    pub fn digest(&self, content: u64, length: u64) -> Option<ContentDigest> {
        let mut record = [0; RECORD_BYTES as usize];
        self.records.read_exact_at(&mut record, content.checked_mul(RECORD_BYTES)?).ok()?;
        let (known, digest) = record.split_at(8);
        // One more than the length, so that an empty content is told from a record that was never written.
        let known = u64::from_le_bytes(known.try_into().expect("eight bytes")).checked_sub(1)?;
        (known == length).then(|| ContentDigest(digest.try_into().expect("the rest is a digest")))
    }

    /// Notes the digest of a content.
    pub fn note(&self, content: u64, length: u64, digest: ContentDigest) -> io::Result<()> {
        let mut record = [0; RECORD_BYTES as usize];
        record[..8].copy_from_slice(&(length + 1).to_le_bytes());
        record[8..].copy_from_slice(&digest.0);
        self.records.write_all_at(&record, content * RECORD_BYTES)
    }

    /// Takes verified bytes of a content.
    pub fn wrote(&self, content: u64, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.advance(content, |track| {
            if track.next == offset {
                track.hasher.update(bytes);
                track.next += bytes.len() as u64;
            } else if self.waiting_bytes.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len()
                <= MAX_WAITING_BYTES
            {
                track.waiting.insert(offset, Segment::Bytes(bytes.to_vec()));
            } else {
                self.waiting_bytes.fetch_sub(bytes.len(), Ordering::Relaxed);
                track.given_up = true;
            }
        })
    }

    /// Takes a hole of a content.
    pub fn hole(&self, content: u64, offset: u64, bytes: u64) -> io::Result<()> {
        self.advance(content, |track| drop(track.waiting.insert(offset, Segment::Hole(bytes))))
    }

    /// Takes the length of a content.
    pub fn ended(&self, content: u64, length: u64) -> io::Result<()> {
        self.advance(content, |track| track.length = Some(length))
    }

    /// The content belongs to no file.
    pub fn forget(&self, content: u64) {
        let track = self.tracks.lock().unwrap_or_else(PoisonError::into_inner).remove(&content);
        if let Some(track) = track {
            self.give_up(&mut track.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    fn give_up(&self, track: &mut Track) {
        let waiting: usize = track.waiting.values().map(Segment::waiting_bytes).sum();
        self.waiting_bytes.fetch_sub(waiting, Ordering::Relaxed);
        track.waiting.clear();
        track.given_up = true;
    }

    fn advance(&self, content: u64, step: impl FnOnce(&mut Track)) -> io::Result<()> {
        let track = {
            let mut tracks = self.tracks.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(tracks.entry(content).or_default())
        };
        let mut track = track.lock().unwrap_or_else(PoisonError::into_inner);
        if !track.given_up {
            step(&mut track);
        }
        if track.given_up {
            self.give_up(&mut track);
            return Ok(());
        }
        while let Some((offset, segment)) = track.waiting.pop_first() {
            if offset != track.next {
                track.waiting.insert(offset, segment);
                break;
            }
            self.waiting_bytes.fetch_sub(segment.waiting_bytes(), Ordering::Relaxed);
            track.hash(&segment);
        }
        if track.length == Some(track.next) {
            self.tracks.lock().unwrap_or_else(PoisonError::into_inner).remove(&content);
            let digest = ContentDigest(*track.hasher.finalize().as_bytes());
            return self.note(content, track.next, digest);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole() -> Whole {
        Whole::new(tempfile::tempfile().expect("temp"))
    }

    #[test]
    fn pieces_in_any_order_give_the_digest_of_the_whole() {
        let whole = whole();
        let content: Vec<u8> = (0..100_000u32).map(|number| number as u8).collect();
        let expected = [&content[..], &vec![0; 5000], b"end"].concat();
        whole.wrote(7, 50_000, &content[50_000..]).expect("second");
        whole.ended(7, 105_003).expect("end");
        whole.wrote(7, 105_000, b"end").expect("last");
        whole.hole(7, 100_000, 5000).expect("hole");
        assert_eq!(whole.digest(7, 105_003), None, "the first is missing");
        whole.wrote(7, 0, &content[..50_000]).expect("first");
        assert_eq!(whole.digest(7, 105_003), Some(ContentDigest::of(&expected)));
        assert_eq!(whole.digest(7, 105_002), None);
        assert_eq!((whole.digest(6, 0), whole.digest(8, 0)), (None, None), "never heard of");
        whole.ended(8, 0).expect("empty");
        assert_eq!(whole.digest(8, 0), Some(ContentDigest::of(b"")));
        assert!(whole.tracks.lock().expect("no panic").is_empty());
        assert_eq!(whole.waiting_bytes.load(Ordering::Relaxed), 0);
    }

    /// What waits is bounded: beyond, there is no digest, and the seal reads the file.
    #[test]
    fn what_waits_for_too_much_is_given_up() {
        let whole = whole();
        let block = vec![1; MAX_WAITING_BYTES / 4];
        for number in 1..=5u64 {
            whole.wrote(1, number * block.len() as u64, &block).expect("early");
        }
        assert_eq!(whole.waiting_bytes.load(Ordering::Relaxed), 0);
        whole.wrote(1, 0, &block).expect("too late");
        whole.ended(1, 6 * block.len() as u64).expect("end");
        assert_eq!(whole.digest(1, 6 * block.len() as u64), None);
        whole.wrote(2, 10, b"of a reading that was given up").expect("early");
        whole.forget(2);
        assert_eq!(whole.waiting_bytes.load(Ordering::Relaxed), 0);
    }
}
