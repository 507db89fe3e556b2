//! The digest of each whole content, computed from its bytes while they are at hand, so that a file need not be
//! read a second time to be held against its digest.
//!
//! Pieces are written in any order, and a digest is computed in one: what comes early waits, in memory up to a bound, and
//! beyond it in its file, from which it is read when its turn has come. A content that was begun by an earlier session, or
//! that cannot be read, gets no digest here; the seal reads it back then.
//!
//! Of a content that began as a copy of the base's file ([`Whole::began_as`]) what is still as it was is neither written nor
//! read: the values of its blocks are known, and only blocks that are partly new are read from the base.

use std::{
    collections::{HashMap, hash_map::Entry},
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use assay_common::digest::{BlockHasher, ContentDigest, DIGEST_BYTES};
use bytes::Bytes;

pub use self::{promises::Promised, track::Original};
use self::{
    promises::Promises,
    track::{ReadContent, Segment, Track},
};

mod promises;
mod track;

/// Bytes that may wait for those before them, of all contents.
const MAX_WAITING_BYTES: usize = 32 * 1024 * 1024;
/// Length and digest, and the digest of the list of pieces.
const RECORD_BYTES: u64 = 8 + 2 * DIGEST_BYTES as u64;
/// Of these, length and digest.
const KNOWN_BYTES: usize = 8 + DIGEST_BYTES;
/// Contents that are followed at a time: each has a hasher of 2 KiB. The digests of others are computed when they are sealed.
const MAX_TRACKS: usize = 32 * 1024;
/// In place of a length: the content belongs to no file, or is not followed.
const FORGOTTEN: u64 = u64::MAX;

/// What is known of the contents of one session.
#[derive(Debug)]
pub struct Whole {
    /// Records by content number, in a file that has no name: a hundred million contents do not stay in memory, and nobody
    /// needs them after a restart.
    records: File,
    tracks: Mutex<HashMap<u64, Arc<Mutex<Track>>>>,
    waiting_bytes: AtomicUsize,
    /// Nobody waits for the digests any more.
    stopped: AtomicBool,
    promises: Promises,
}

impl Whole {
    /// Nothing is known yet. `records` is an empty file.
    pub fn new(records: File) -> Self {
        let (tracks, waiting_bytes, stopped, promises) = Default::default();
        Self { records, tracks, waiting_bytes, stopped, promises }
    }

    /// What contents must turn out to be.
    pub fn promises(&self) -> &Promises {
        &self.promises
    }

    /// The digest of a content of `length` bytes, if it is known.
    pub fn digest(&self, content: u64, length: u64) -> Option<ContentDigest> {
        let mut record = [0; KNOWN_BYTES];
        self.records.read_exact_at(&mut record, content.checked_mul(RECORD_BYTES)?).ok()?;
        let (known, digest) = record.split_at(8);
        // One more than the length, so that an empty content is told from a record that was never written.
        let known = u64::from_le_bytes(known.try_into().expect("eight bytes")).checked_sub(1)?;
        (known == length).then(|| ContentDigest(digest.try_into().expect("the rest is a digest")))
    }

    /// Notes the digest of a content.
    pub fn note(&self, content: u64, length: u64, digest: ContentDigest) -> io::Result<()> {
        let mut record = [0; KNOWN_BYTES];
        record[..8].copy_from_slice(&(length + 1).to_le_bytes());
        record[8..].copy_from_slice(&digest.0);
        self.records.write_all_at(&record, content * RECORD_BYTES)
    }

    /// Notes the digest of a content's list of pieces.
    pub fn note_list(&self, content: u64, digest: [u8; DIGEST_BYTES]) -> io::Result<()> {
        self.records.write_all_at(&digest, content * RECORD_BYTES + KNOWN_BYTES as u64)
    }

    /// True when a content was received in pieces with this digest of their list.
    pub fn has_list(&self, content: u64, digest: [u8; DIGEST_BYTES]) -> bool {
        let mut known = [0; DIGEST_BYTES];
        let at = content.checked_mul(RECORD_BYTES).map(|at| at + KNOWN_BYTES as u64);
        at.is_some_and(|at| self.records.read_exact_at(&mut known, at).is_ok()) && known == digest
    }

    /// The run is given up: what is being hashed stops.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Takes bytes of a content, which stand in its file, and in a buffer of so many bytes. `read` reads from the file.
    pub fn wrote(
        &self,
        content: u64,
        offset: u64,
        (bytes, buffer_bytes): (&Bytes, usize),
        read: ReadContent<'_>,
    ) -> io::Result<()> {
        self.advance(content, read, |track| {
            if track.next == offset
                && let Some(mut hasher) = track.hasher.take()
            {
                return Some(Box::new(move || {
                    hasher.update(bytes);
                    (hasher, bytes.len() as u64)
                }));
            }
            let waiting = self.waiting_bytes.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len();
            let segment = if waiting <= MAX_WAITING_BYTES {
                // Whoever waits holds the buffer, unless most of that is others'.
                let is_most = bytes.len() >= buffer_bytes / 2;
                Segment::Bytes(if is_most { bytes.clone() } else { Bytes::copy_from_slice(bytes) })
            } else {
                self.waiting_bytes.fetch_sub(bytes.len(), Ordering::Relaxed);
                Segment::Written(bytes.len() as u64)
            };
            self.put(track, offset, segment);
            None
        })
    }

    /// Takes a hole of a content.
    pub fn hole(&self, content: u64, offset: u64, bytes: u64, read: ReadContent<'_>) -> io::Result<()> {
        self.advance(content, read, |track| {
            self.put(track, offset, Segment::Hole(bytes));
            None
        })
    }

    /// The content is a copy of `original`, before anything of it is told here.
    pub fn began_as(&self, content: u64, original: Original) {
        let mut tracks = self.tracks.lock().unwrap_or_else(PoisonError::into_inner);
        let track = Track { original: Some(Arc::new(original)), ..Track::default() };
        tracks.insert(content, Arc::new(Mutex::new(track)));
    }

    /// Takes bytes of a content that are as they are in its original.
    pub fn kept(&self, content: u64, offset: u64, bytes: u64, read: ReadContent<'_>) -> io::Result<()> {
        self.advance(content, read, |track| {
            self.put(track, offset, Segment::Kept(bytes));
            None
        })
    }

    /// Takes the length of a content.
    pub fn ended(&self, content: u64, length: u64, read: ReadContent<'_>) -> io::Result<()> {
        self.advance(content, read, |track| {
            track.length = Some(length);
            None
        })
    }

    /// The content belongs to no file.
    pub fn forget(&self, content: u64) {
        // What is left of it may still come. When that cannot be noted it costs memory, and nothing else.
        self.records.write_all_at(&FORGOTTEN.to_le_bytes(), content * RECORD_BYTES).ok();
        let track = self.tracks.lock().unwrap_or_else(PoisonError::into_inner).remove(&content);
        if let Some(track) = track {
            self.give_up(&mut track.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// As if nothing could be read of what is on its way.
    #[cfg(test)]
    pub(crate) fn give_up_all(&self) {
        for track in self.tracks.lock().unwrap_or_else(PoisonError::into_inner).values() {
            self.give_up(&mut track.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    fn is_forgotten(&self, content: u64) -> bool {
        let mut length = [0; 8];
        let known = self.records.read_exact_at(&mut length, content * RECORD_BYTES);
        known.is_ok() && u64::from_le_bytes(length) == FORGOTTEN
    }

    fn put(&self, track: &mut Track, offset: u64, segment: Segment) {
        if let Some(before) = track.waiting.insert(offset, segment) {
            self.waiting_bytes.fetch_sub(before.waiting_bytes(), Ordering::Relaxed);
        }
    }

    /// What came twice has had its turn.
    fn drop_doubles(&self, track: &mut Track) {
        while let Some(first) = track.waiting.first_entry().filter(|first| *first.key() < track.next) {
            self.waiting_bytes.fetch_sub(first.remove().waiting_bytes(), Ordering::Relaxed);
        }
    }

    fn give_up(&self, track: &mut Track) {
        let waiting: usize = track.waiting.values().map(Segment::waiting_bytes).sum();
        self.waiting_bytes.fetch_sub(waiting, Ordering::Relaxed);
        track.waiting.clear();
        track.given_up = true;
    }

    /// Lets `step` add to what is known, then hashes what has its turn. Nothing is hashed or read while the track is locked:
    /// others may add to it meanwhile, and who hashes goes on with that.
    fn advance<'b>(
        &self,
        content: u64,
        read: ReadContent<'_>,
        step: impl FnOnce(&mut Track) -> Option<Box<dyn FnOnce() -> (BlockHasher, u64) + 'b>>,
    ) -> io::Result<()> {
        let shared = {
            let mut tracks = self.tracks.lock().unwrap_or_else(PoisonError::into_inner);
            let is_full = tracks.len() >= MAX_TRACKS;
            match tracks.entry(content) {
                Entry::Occupied(track) => Arc::clone(track.get()),
                Entry::Vacant(_) if self.is_forgotten(content) => return Ok(()),
                Entry::Vacant(_) if is_full => {
                    return self.records.write_all_at(&FORGOTTEN.to_le_bytes(), content * RECORD_BYTES);
                }
                Entry::Vacant(place) => Arc::clone(place.insert(Arc::default())),
            }
        };
        let lock = || shared.lock().unwrap_or_else(PoisonError::into_inner);
        let mut track = lock();
        if track.given_up {
            return Ok(());
        }
        if let Some(first) = step(&mut track) {
            drop(track);
            let (hasher, bytes) = first();
            track = lock();
            (track.hasher, track.next) = (Some(hasher), track.next + bytes);
        }
        while !track.given_up
            && let Some(mut hasher) = track.hasher.take()
        {
            self.drop_doubles(&mut track);
            let Some((offset, segment)) = track.next_segment() else {
                track.hasher = Some(hasher);
                break;
            };
            let original = track.original.clone();
            drop(track);
            let hashed = segment.hash(&mut hasher, offset, (read, original.as_deref()), &self.stopped);
            self.waiting_bytes.fetch_sub(segment.waiting_bytes(), Ordering::Relaxed);
            track = lock();
            if let Err(error) = hashed {
                tracing::debug!(content, %error, "what was written cannot be read yet");
                self.give_up(&mut track);
            }
            (track.hasher, track.next) = (Some(hasher), offset + segment.bytes());
        }
        if !track.given_up
            && track.length == Some(track.next)
            && let Some(hasher) = track.hasher.take()
        {
            let (digest, length) = (hasher.finish().0, track.next);
            self.tracks.lock().unwrap_or_else(PoisonError::into_inner).remove(&content);
            let noted = self.note(content, length, digest);
            self.promises.hold(content, length, digest);
            return noted;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use assay_common::digest::BLOCK_BYTES;

    fn whole() -> Whole {
        Whole::new(tempfile::tempfile().expect("temp"))
    }

    fn wrote(
        whole: &Whole,
        content: u64,
        offset: u64,
        bytes: &[u8],
        read: ReadContent<'_>,
    ) -> io::Result<()> {
        whole.wrote(content, offset, (&Bytes::copy_from_slice(bytes), bytes.len()), read)
    }

    fn unread(_: &mut [u8], _: u64) -> io::Result<()> {
        panic!("it fits in memory")
    }

    /// Beyond so many unfinished contents the seal reads back what it must know; those that are followed come to their ends.
    #[test]
    fn no_more_contents_are_followed_than_may_be() {
        let whole = whole();
        let last = MAX_TRACKS as u64 + 5;
        (1..=last).for_each(|content| wrote(&whole, content, 0, b"begin", &unread).expect("written"));
        assert_eq!(whole.tracks.lock().expect("no panic").len(), MAX_TRACKS);
        for content in [1, MAX_TRACKS as u64, last] {
            wrote(&whole, content, 5, b" and end", &unread).expect("written");
            whole.ended(content, 13, &unread).expect("end");
        }
        let expected = Some(ContentDigest::of(b"begin and end"));
        assert_eq!([1, MAX_TRACKS as u64, last].map(|it| whole.digest(it, 13)), [expected, expected, None]);
        assert_eq!(whole.tracks.lock().expect("no panic").len(), MAX_TRACKS - 2);
    }

    #[test]
    fn pieces_in_any_order_give_the_digest_of_the_whole() {
        let whole = whole();
        let content: Vec<u8> = (0..100_000u32).map(|number| number as u8).collect();
        let expected = [&content[..], &vec![0; 5000], b"end"].concat();
        wrote(&whole, 7, 50_000, &content[50_000..], &unread).expect("second");
        wrote(&whole, 7, 50_000, &content[50_000..], &unread).expect("the second again");
        whole.ended(7, 105_003, &unread).expect("end");
        wrote(&whole, 7, 105_000, b"end", &unread).expect("last");
        whole.hole(7, 100_000, 5000, &unread).expect("hole");
        assert_eq!(whole.digest(7, 105_003), None, "the first is missing");
        wrote(&whole, 7, 0, &content[..50_000], &unread).expect("first");
        assert_eq!(whole.digest(7, 105_003), Some(ContentDigest::of(&expected)));
        assert_eq!(whole.digest(7, 105_002), None);
        assert_eq!((whole.digest(6, 0), whole.digest(8, 0)), (None, None), "never heard of");
        whole.ended(8, 0, &unread).expect("empty");
        assert_eq!(whole.digest(8, 0), Some(ContentDigest::of(b"")));
        assert!(whole.tracks.lock().expect("no panic").is_empty());
        assert_eq!(whole.waiting_bytes.load(Ordering::Relaxed), 0);
    }

    /// A short piece of a long buffer would keep all of it.
    #[test]
    fn what_waits_holds_its_buffer_when_that_is_most_of_it() {
        for (bytes, is_held) in [(49, false), (50, true), (100, true)] {
            let (whole, buffer) = (whole(), Bytes::from(vec![1; 100]));
            whole.wrote(1, 7, (&buffer.slice(..bytes), 100), &unread).expect("early");
            assert_eq!(buffer.is_unique(), !is_held, "{bytes}");
            wrote(&whole, 1, 0, &[2; 7], &unread).expect("what it waited for");
            assert!(buffer.is_unique(), "{bytes}");
        }
    }

    /// What waits in memory is bounded: beyond, it is read from the file, and when that cannot be the seal does it.
    #[test]
    fn what_waits_for_too_much_is_read_again() {
        let content: Vec<u8> =
            (0..3 * MAX_WAITING_BYTES as u32 / 2).map(|number| (number >> 8) as u8).collect();
        let block = MAX_WAITING_BYTES / 4;
        let reads = std::cell::Cell::new(0);
        let from_file = |buffer: &mut [u8], offset: u64| {
            reads.set(reads.get() + buffer.len());
            buffer.copy_from_slice(&content[offset as usize..][..buffer.len()]);
            Ok(())
        };
        let unreadable = |_: &mut [u8], _| Err(io::Error::other("a bad sector"));
        let ways: [(ReadContent<'_>, _); 2] = [(&from_file, true), (&unreadable, false)];
        for (read, known) in ways {
            let whole = whole();
            for (number, bytes) in content.chunks(block).enumerate().skip(1) {
                wrote(&whole, 1, (number * block) as u64, bytes, read).expect("early");
            }
            assert_eq!(whole.waiting_bytes.load(Ordering::Relaxed), MAX_WAITING_BYTES);
            whole.ended(1, content.len() as u64, read).expect("end");
            wrote(&whole, 1, 0, &content[..block], read).expect("what they waited for");
            let digest = whole.digest(1, content.len() as u64);
            assert_eq!(digest, known.then(|| ContentDigest::of(&content)));
            assert_eq!(whole.waiting_bytes.load(Ordering::Relaxed), 0);
        }
        assert_eq!(reads.get(), block, "no more than what had no room");
        let whole = whole();
        wrote(&whole, 2, 10, b"of a reading that was given up", &unread).expect("early");
        whole.forget(2);
        assert_eq!(whole.waiting_bytes.load(Ordering::Relaxed), 0);
    }

    /// A copy of the base's file in which a few places are new: whole blocks that are as they were are not even read.
    #[test]
    fn what_is_as_it_was_is_known_by_its_blocks() {
        let block = BLOCK_BYTES as usize;
        let old: Vec<u8> = (0..5 * block as u32 + 77).map(|number| (number >> 9) as u8).collect();
        let mut hasher = BlockHasher::default();
        hasher.update(&old);
        let blocks = hasher.finish().1.expect("six");
        let mut new = [&old[..], &[3; 1000]].concat();
        new[3 * block + 500..3 * block + 600].fill(9);
        // The original's second and last whole blocks cannot be read any more: nobody needs them.
        let (file, mut damaged) = (tempfile::tempfile().expect("temp"), old.clone());
        damaged[block..3 * block].fill(0);
        damaged[4 * block..5 * block].fill(0);
        file.write_all_at(&damaged, 0).expect("write");
        // Kept and new parts in pieces whose ends are nobody's blocks.
        let place = 3 * block + 500;
        let kept = [(0, 700_000), (700_000, place), (place + 100, 4 * block + 9), (4 * block + 9, old.len())];
        let parts: Vec<(usize, usize, bool)> = kept
            .into_iter()
            .map(|(from, to)| (from, to, true))
            .chain([(place, place + 100, false), (old.len(), new.len(), false)])
            .collect();
        for turn in 0..parts.len() {
            let whole = whole();
            let original = Original { file: file.try_clone().expect("a handle"), blocks: blocks.clone() };
            whole.began_as(1, original);
            if turn == 2 {
                whole.ended(1, new.len() as u64, &unread).expect("end");
            }
            for index in 0..parts.len() {
                let (from, to, is_kept) = parts[(index * 5 + turn) % parts.len()];
                if is_kept {
                    whole.kept(1, from as u64, (to - from) as u64, &unread).expect("kept");
                } else {
                    wrote(&whole, 1, from as u64, &new[from..to], &unread).expect("wrote");
                }
            }
            if turn != 2 {
                whole.ended(1, new.len() as u64, &unread).expect("end");
            }
            assert_eq!(whole.digest(1, new.len() as u64), Some(ContentDigest::of(&new)), "{turn}");
            assert!(whole.tracks.lock().expect("no panic").is_empty());
        }
        // Nothing is kept of what is no copy, and what cannot be read has no digest here.
        let whole = whole();
        whole.kept(2, 0, 10, &unread).expect("kept");
        whole.ended(2, 10, &unread).expect("end");
        assert_eq!(whole.digest(2, 10), None);
    }

    /// What comes late of a content that was given up is not kept in memory for ever.
    #[test]
    fn what_was_forgotten_leaves_nothing_behind() {
        let whole = whole();
        wrote(&whole, 3, 100, b"early", &unread).expect("wrote");
        whole.forget(3);
        whole.forget(4);
        for content in [3, 4] {
            wrote(&whole, content, 0, b"late", &unread).expect("wrote");
            whole.ended(content, 4, &unread).expect("ended");
            assert_eq!(whole.digest(content, 4), None);
        }
        assert!(whole.tracks.lock().expect("no panic").is_empty());
    }

    /// A hole of terabytes is not hashed to its end for nobody.
    #[test]
    fn what_is_given_up_is_not_hashed_to_its_end() {
        let whole = whole();
        whole.stop();
        whole.hole(1, 0, 1 << 43, &unread).expect("it gives up");
        whole.ended(1, 1 << 43, &unread).expect("ended");
        assert_eq!(whole.digest(1, 1 << 43), None);
    }

    /// Whoever comes first hashes for all.
    #[test]
    fn threads_that_bring_pieces_side_by_side_give_the_digest() {
        let content: Vec<u8> = (0..8_000_000u32).map(|number| (number % 251) as u8).collect();
        for _ in 0..20 {
            let whole = whole();
            std::thread::scope(|scope| {
                for thread in 0..4 {
                    let (whole, content) = (&whole, &content);
                    scope.spawn(move || {
                        for (number, bytes) in
                            content.chunks(10_007).enumerate().filter(|(it, _)| it % 4 == thread)
                        {
                            wrote(whole, 3, number as u64 * 10_007, bytes, &unread).expect("piece");
                        }
                        if thread == 0 {
                            whole.ended(3, content.len() as u64, &unread).expect("end");
                        }
                    });
                }
            });
            assert_eq!(whole.digest(3, content.len() as u64), Some(ContentDigest::of(&content)));
            assert_eq!(whole.waiting_bytes.load(Ordering::Relaxed), 0);
        }
    }
}
