//! Receives content: answers each offer with what this machine lacks, and verifies every chunk before it is kept.
//!
//! Nothing here knows a name. A content is a numbered file in staging; its pieces are copied from chunks that are already
//! on this machine or written as they arrive, each after its digest has been compared. What could not be had is a wanted
//! chunk, never a gap: a content with a missing piece does not match its digest when the generation is sealed.

mod places;

use std::{collections::HashMap, fs::File, os::unix::fs::FileExt as _, path::PathBuf, sync::Arc};

use assay_common::{
    chunking::MAX_CHUNK_BYTES,
    digest::{ContentDigest, DIGEST_BYTES},
    error::{IoContext as _, PathError},
    manifest::Piece,
};
use assay_proto::v1::{FilePart, Offer, Pack, TransferResponse};
use rayon::prelude::*;

use crate::store::{
    Staging,
    index::{ContentKey, IndexError, Place},
};

pub use places::PlaceReader;

/// Content that was wanted and has not come yet, in bytes: bounds what a source can make us remember. More than a source
/// that follows the protocol keeps in flight.
const MAX_OUTSTANDING_BYTES: u64 = 512 * 1024 * 1024;
/// Pieces of one offer.
const MAX_OFFER_PIECES: usize = 256 * 1024;
/// Content of one pack, in bytes, after decompression.
const MAX_PACK_BYTES: u64 = 8 * 1024 * 1024;
/// Contents whose end has not come yet: a source reads a few files at a time.
const MAX_OPEN_CONTENTS: usize = 1024;
/// Highest content number: it shares a word with the session in the index.
const MAX_CONTENT: u64 = 1 << 47;

/// Why the stream cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// The source does not keep to the protocol.
    #[error("the source's message breaks the protocol: {rule}")]
    Protocol {
        /// The rule.
        rule: &'static str,
    },
    /// A chunk does not have the digest that was offered.
    #[error("a chunk does not match its digest: {expected} was offered, {actual} came")]
    ChunkMismatch {
        /// As offered.
        expected: ContentDigest,
        /// As received.
        actual: ContentDigest,
    },
    /// A file of the store.
    #[error(transparent)]
    Io(#[from] PathError),
    /// The chunk index.
    #[error(transparent)]
    Index(#[from] IndexError),
}

fn protocol<T>(rule: &'static str) -> Result<T, ReceiveError> {
    Err(ReceiveError::Protocol { rule })
}

/// A data piece whose bytes are on their way.
struct Wanted {
    digest: ContentDigest,
    content: u64,
    attempt: u32,
    offset: u64,
    bytes: usize,
}

/// A content whose end has not been offered yet.
#[derive(Default)]
struct OpenContent {
    next_offset: u64,
}

/// What was received so far.
#[derive(Debug, Default, Clone, Copy)]
pub struct ReceiveStats {
    /// Data pieces that were offered.
    pub offered: u64,
    /// Data pieces that were found on this machine.
    pub found: u64,
    /// Chunks that came over the wire, and their bytes.
    pub received: u64,
    /// Bytes of those chunks.
    pub received_bytes: u64,
}

/// The receiving end of one stream.
pub struct Receiver {
    staging: Arc<Staging>,
    places: PlaceReader,
    next_batch: u64,
    open: HashMap<u64, OpenContent>,
    /// How often a content was started anew; most never are.
    attempts: HashMap<u64, u32>,
    /// Contents that took over the file of an earlier session: they may hold bytes where there should be a hole.
    adopted: HashMap<u64, ContentKey>,
    wanted: HashMap<u64, Vec<Wanted>>,
    outstanding_bytes: u64,
    file: Option<(u64, File)>,
    stats: ReceiveStats,
}

impl Receiver {
    /// A receiver into `staging` that finds known chunks through `places`.
    pub fn new(staging: Arc<Staging>, places: PlaceReader) -> Self {
        Self {
            staging,
            places,
            next_batch: 1,
            open: HashMap::new(),
            attempts: HashMap::new(),
            adopted: HashMap::new(),
            wanted: HashMap::new(),
            outstanding_bytes: 0,
            file: None,
            stats: ReceiveStats::default(),
        }
    }

    /// What was received so far.
    pub fn stats(&self) -> ReceiveStats {
        self.stats
    }

    /// Takes a batch of pieces and answers which of their chunks are wanted.
    ///
    /// # Errors
    /// When the offer breaks the protocol or the store cannot be read or written.
    pub fn offer(&mut self, offer: &Offer) -> Result<TransferResponse, ReceiveError> {
        if offer.batch != self.next_batch {
            return protocol("batches are numbered 1, 2, 3 ...");
        }
        self.next_batch += 1;
        if offer.parts.iter().map(|part| part.pieces.len()).sum::<usize>() > MAX_OFFER_PIECES {
            return protocol("an offer has at most 262144 pieces");
        }
        let digests: Vec<_> = offer
            .parts
            .iter()
            .flat_map(|part| part.digests.chunks_exact(DIGEST_BYTES))
            .map(|digest| ContentDigest(digest.try_into().expect("chunks are exact")))
            .collect();
        let places = self.places.find(&digests)?;
        let mut known = digests.iter().copied().zip(places);
        let (mut bitmap, mut wanted, mut index) = (Vec::new(), Vec::new(), 0usize);
        for part in &offer.parts {
            self.take_part(part, &mut known, |piece| {
                if let Some(piece) = piece {
                    bitmap.resize(index / 8 + 1, 0u8);
                    bitmap[index / 8] |= 1 << (index % 8);
                    wanted.push(piece);
                }
                index += 1;
            })?;
        }
        self.outstanding_bytes += wanted.iter().map(|piece| piece.bytes as u64).sum::<u64>();
        if self.outstanding_bytes > MAX_OUTSTANDING_BYTES {
            return protocol("at most 512 MiB of wanted content are on their way");
        }
        self.stats.offered += index as u64;
        self.stats.found += (index - wanted.len()) as u64;
        if !wanted.is_empty() {
            self.wanted.insert(offer.batch, wanted);
        }
        self.places.settle()?;
        Ok(TransferResponse { batch: offer.batch, wanted: bitmap, stored: false })
    }

    /// Takes one part of a content; `decide` hears of each data piece in order, with `Some` when it is wanted.
    fn take_part(
        &mut self,
        part: &FilePart,
        known: &mut impl Iterator<Item = (ContentDigest, Option<Place>)>,
        mut decide: impl FnMut(Option<Wanted>),
    ) -> Result<(), ReceiveError> {
        let content = part.content;
        if content == 0 || content > MAX_CONTENT {
            return protocol("contents are numbered from 1 to 2^47");
        }
        let data = part.pieces.iter().filter(|word| **word & 1 == 0).count();
        if part.digests.len() != data * DIGEST_BYTES {
            return protocol("a part has one digest of 32 bytes for each data piece");
        }
        if part.offset == 0 {
            if self.open.remove(&content).is_some() {
                self.restart(content)?;
            }
            if self.open.len() >= MAX_OPEN_CONTENTS {
                return protocol("at most 1024 contents are open at a time");
            }
            self.open.insert(content, OpenContent::default());
        }
        let Some(state) = self.open.get(&content) else {
            return protocol("a part goes on where a content that is still open stopped");
        };
        if state.next_offset != part.offset {
            return protocol("a content's parts come without gaps");
        }
        let attempt = self.attempts.get(&content).copied().unwrap_or(0);
        let mut offset = part.offset;
        let mut ends_in_data = false;
        for word in &part.pieces {
            let Some(piece) = Piece::from_wire(*word) else {
                return protocol("a piece has at least 1 byte, and a chunk at most 1 MiB");
            };
            match piece {
                Piece::Hole { bytes } => {
                    self.make_hole(content, offset, bytes)?;
                    ends_in_data = false;
                }
                Piece::Data { bytes } => {
                    let (digest, place) = known.next().expect("digests were counted");
                    let bytes = bytes as usize;
                    let here = match place {
                        Some(place) if place.bytes as usize == bytes => {
                            self.fill_from(content, offset, digest, place)?
                        }
                        _ => false,
                    };
                    decide((!here).then_some(Wanted { digest, content, attempt, offset, bytes }));
                    ends_in_data = true;
                }
            }
            offset = match offset.checked_add(piece.bytes()) {
                Some(next) if i64::try_from(next).is_ok() => next,
                _ => return protocol("a content is not longer than a file can be"),
            };
        }
        if part.last {
            self.open.remove(&content);
            // Data sets a file's length when it is written; a hole at the end, or nothing at all, does not.
            if !ends_in_data || self.adopted.contains_key(&content) {
                let path = self.staging.content_path(content);
                self.content_file(content)?.set_len(offset).at("set the length of", &path)?;
            }
        } else if let Some(state) = self.open.get_mut(&content) {
            state.next_offset = offset;
        }
        Ok(())
    }

    /// The file changed while it was read and is sent again from its start.
    fn restart(&mut self, content: u64) -> Result<(), ReceiveError> {
        *self.attempts.entry(content).or_default() += 1;
        let path = self.staging.content_path(content);
        self.content_file(content)?.set_len(0).at("truncate", &path)?;
        Ok(())
    }

    fn make_hole(&mut self, content: u64, offset: u64, bytes: u64) -> Result<(), ReceiveError> {
        if !self.adopted.contains_key(&content) {
            return Ok(());
        }
        let path = self.staging.content_path(content);
        let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        let file = self.content_file(content)?;
        rustix::fs::fallocate(file, flags, offset, bytes)
            .map_err(std::io::Error::from)
            .at("punch a hole in", &path)?;
        Ok(())
    }

    /// Fills a piece with a chunk that is said to be on this machine. False when it is not there, or not what it was.
    fn fill_from(
        &mut self,
        content: u64,
        offset: u64,
        digest: ContentDigest,
        place: Place,
    ) -> Result<bool, ReceiveError> {
        let own = self.staging.key(content);
        let fresh = offset == 0 && place.offset == 0 && place.key.generation == own.generation;
        if fresh && place.key.session != own.session && !self.adopted.contains_key(&content) {
            self.adopt(content, place.key)?;
        }
        let mut place = place;
        if self.adopted.get(&content) == Some(&place.key) {
            place.key = own;
        }
        let Some(bytes) = self.places.read(place, digest) else {
            return Ok(false);
        };
        if place.key != own || place.offset != offset {
            let path = self.staging.content_path(content);
            self.content_file(content)?.write_all_at(&bytes, offset).at("write", &path)?;
        }
        if place.key.generation == own.generation && place.key.session != own.session || place.key == own {
            // The earlier session's file goes away with the seal: the place to remember is this one.
            self.places.insert(digest, Place { key: own, offset, bytes: place.bytes })?;
        }
        Ok(true)
    }

    /// Takes over a file of an earlier session, so that what it holds is not written a second time.
    fn adopt(&mut self, content: u64, from: ContentKey) -> Result<(), ReceiveError> {
        let (old_folder, old_name) = self.staging.locate(from.session, from.content)?;
        let (folder, name) = self.staging.locate(self.staging.session(), content)?;
        // Another content may have taken it already, or this one has been started: then it is copied from, or sent.
        if old_folder.rename(&old_name, &folder, &name).is_ok() {
            self.places.forget(from);
            self.adopted.insert(content, from);
        }
        Ok(())
    }

    /// The content's file, kept open for the next piece.
    fn content_file(&mut self, content: u64) -> Result<&File, ReceiveError> {
        if self.file.as_ref().is_none_or(|(open, _)| *open != content) {
            self.file = Some((content, self.staging.open_content(content)?));
        }
        Ok(&self.file.as_ref().expect("it was opened above").1)
    }

    /// Takes the wanted chunks of one batch: verifies all, then keeps them.
    ///
    /// # Errors
    /// When the pack is not what was wanted, or the store cannot be written. Nothing of a bad pack is kept.
    pub fn pack(&mut self, pack: &Pack) -> Result<(), ReceiveError> {
        let Some(wanted) = self.wanted.remove(&pack.batch) else {
            return protocol("a pack answers an offer of which something was wanted");
        };
        let expected: u64 = wanted.iter().map(|piece| piece.bytes as u64).sum();
        if pack.raw_bytes != expected || expected > MAX_PACK_BYTES {
            return protocol("a pack holds what was wanted of its batch, at most 8 MiB");
        }
        let decompressed;
        let content: &[u8] = if pack.zstd {
            // The capacity is the limit: a frame that unfolds to more is an error, not an allocation.
            decompressed = zstd::bulk::decompress(&pack.data, expected as usize)
                .or_else(|_| protocol("a pack's data is one zstd frame of its raw_bytes"))?;
            &decompressed
        } else {
            &pack.data
        };
        if content.len() as u64 != expected {
            return protocol("a pack's content has the length of its raw_bytes");
        }
        let mut rest = content;
        let pieces: Vec<(&Wanted, &[u8])> = wanted
            .iter()
            .map(|piece| {
                let (bytes, after) = rest.split_at(piece.bytes);
                rest = after;
                (piece, bytes)
            })
            .collect();
        pieces.par_iter().try_for_each(|(piece, bytes)| {
            debug_assert!(bytes.len() <= MAX_CHUNK_BYTES);
            let actual = ContentDigest::of(bytes);
            if actual == piece.digest {
                Ok(())
            } else {
                Err(ReceiveError::ChunkMismatch { expected: piece.digest, actual })
            }
        })?;
        for run in pieces.chunk_by(|(left, _), (right, _)| {
            left.content == right.content && left.offset + left.bytes as u64 == right.offset
        }) {
            self.keep(run)?;
        }
        self.outstanding_bytes -= expected;
        self.stats.received += pieces.len() as u64;
        self.stats.received_bytes += expected;
        Ok(self.places.settle()?)
    }

    /// Writes verified pieces that lie side by side in one content.
    fn keep(&mut self, run: &[(&Wanted, &[u8])]) -> Result<(), ReceiveError> {
        let (first, _) = run[0];
        if self.attempts.get(&first.content).copied().unwrap_or(0) != first.attempt {
            // Of a reading that was given up; the content has been started anew since.
            return Ok(());
        }
        let path: PathBuf = self.staging.content_path(first.content);
        let file = self.content_file(first.content)?;
        for (piece, bytes) in run {
            file.write_all_at(bytes, piece.offset).at("write", &path)?;
        }
        let key = self.staging.key(first.content);
        for (piece, _) in run {
            self.places
                .insert(piece.digest, Place { key, offset: piece.offset, bytes: piece.bytes as u32 })?;
        }
        Ok(())
    }

    /// Ends the stream: everything that was wanted has come and every content has its end.
    ///
    /// # Errors
    /// When something is missing, or the index cannot be written.
    pub fn finish(&mut self) -> Result<(), ReceiveError> {
        self.file = None;
        if !self.wanted.is_empty() {
            return protocol("the stream ends when all that was wanted has been sent");
        }
        if !self.open.is_empty() {
            return protocol("the stream ends when every content has ended");
        }
        Ok(self.places.flush()?)
    }

    /// Keeps what is known of the chunks that came, when the stream was cut.
    ///
    /// # Errors
    /// When the index cannot be written.
    pub fn interrupt(&mut self) -> Result<(), ReceiveError> {
        Ok(self.places.flush()?)
    }
}

#[cfg(test)]
mod tests;
