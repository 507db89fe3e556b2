//! Receives content: answers each offer with what this machine lacks, and verifies every chunk before it is kept.
//!
//! Nothing here knows a name. A content is a numbered file in staging; its pieces are copied from chunks that are already
//! on this machine or written as they arrive, each after its digest has been compared; pieces of a file of the base are compared together, by
//! the digest of what becomes of them. What could not be had is a wanted chunk, never a gap: a content with a missing piece does not match
//! its digest when the generation is sealed.
//!
//! A message is worked on in two steps. [`Receiver::accept`] holds it against the rules, in the order of arrival and without
//! touching a file; what it gives is then settled beside other messages, in any order: each writes pieces of its own.
//!
//! The receiver belongs to the run and outlives a stream that is cut: a batch that is offered again is answered with what
//! of it has not arrived.

mod allowance;
mod base;
mod buffers;
mod fill;
mod places;
mod seen;
mod turns;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use assay_common::{
    config::Size,
    digest::{ContentDigest, DIGEST_BYTES},
    error::{IoContext as _, PathError},
    limits::{
        MAX_BATCH_BYTES, MAX_CHUNK_BYTES, MAX_CONTENT, MAX_FILE_BYTES, MAX_OFFER_PIECES, MAX_OPEN_CONTENTS,
        MAX_OUTSTANDING_BATCHES, MAX_OUTSTANDING_BYTES, MAX_OUTSTANDING_PIECES, MAX_RUN_HOLE_BYTES,
    },
    manifest::{
        ManifestError, Piece,
        reuse::{self, in_order},
    },
    path::display_short,
    rpc_status::RpcFault,
};
use assay_proto::v1::{FilePart, Offer, Pack, TransferResponse};
use bytes::Bytes;

use crate::{
    ahead::copies::Copies,
    store::{Promised, Staging, StoreError, index::IndexError},
};

pub use allowance::Allowance;
pub use base::Base;
use base::BaseFile;
pub(crate) use buffers::Buffers;
pub use places::PlaceReader;
use seen::{Refused, Seen};
use turns::Turns;

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
    /// The disk has not kept these files of the base, or what was made of them: a content that shares pieces with them is not what
    /// it should be.
    #[error("of the generation that the run builds upon, {} was not kept by the disk", shown(paths))]
    BaseRotten {
        /// Their paths.
        paths: Vec<Vec<u8>>,
    },
    /// The repository holds what it may.
    #[error("with this run the repository would hold more than its quota of {quota} on the target")]
    Quota {
        /// The quota.
        quota: Size,
    },
    /// The store's file system has no more room than it is to keep.
    #[error("the store's file system has {free} left, and {reserve} are kept free")]
    Reserve {
        /// What is kept.
        reserve: Size,
        /// What is free.
        free: Size,
    },
    /// The stream's messages stopped, or cannot be read.
    #[error(transparent)]
    Stream(RpcFault),
    /// The manifest of the generation that the run builds upon.
    #[error("the base's manifest: {0}")]
    Base(#[source] ManifestError),
    /// A file of the store.
    #[error(transparent)]
    Io(#[from] PathError),
    /// What earlier sessions left.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The chunk index.
    #[error(transparent)]
    Index(#[from] IndexError),
}

fn shown(paths: &[Vec<u8>]) -> String {
    paths.iter().map(|path| display_short(path)).collect::<Vec<_>>().join(", ")
}

/// The digest of a file's list of pieces, in order: what a manifest says of them is held against what was received.
pub(crate) fn piece_list_digest(pieces: impl Iterator<Item = (Piece, Option<ContentDigest>)>) -> [u8; 32] {
    let mut list = blake3::Hasher::new();
    pieces.for_each(|(piece, digest)| add_to_list(&mut list, piece, digest));
    *list.finalize().as_bytes()
}

fn add_to_list(list: &mut blake3::Hasher, piece: Piece, digest: Option<ContentDigest>) {
    list.update(&piece.to_wire().to_le_bytes());
    if let Some(digest) = digest {
        list.update(&digest.0);
    }
}

fn protocol<T>(rule: &'static str) -> Result<T, ReceiveError> {
    Err(ReceiveError::Protocol { rule })
}

/// A piece of data and where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Target {
    content: u64,
    offset: u64,
    bytes: usize,
    digest: ContentDigest,
    /// It is all that its content has.
    alone: bool,
    /// All of its content is in one message: nothing else of it is settled meanwhile.
    in_one_message: bool,
}

impl Target {
    /// True when what the base's file has for this piece needs no look of its own: the digest of the whole tells. Of a piece that is
    /// alone its own digest is that of the whole.
    fn is_trusted_to(&self, base: &BaseFile) -> bool {
        !self.alone && !base.is_doubted
    }
}

/// What an offer says of one piece.
enum Item {
    Hole {
        content: u64,
        offset: u64,
        bytes: u64,
    },
    Data(Target),
    /// Data that the base's file has at this position of its pieces.
    Reused(Target, Arc<BaseFile>, usize),
    /// Data that the content has had since it began.
    Kept(Target),
}

impl Item {
    fn bytes(&self) -> u64 {
        match self {
            Self::Hole { bytes, .. } => *bytes,
            Self::Data(target) | Self::Reused(target, ..) | Self::Kept(target) => target.bytes as u64,
        }
    }
}

/// The end of a content.
struct End {
    content: u64,
    length: u64,
    ends_in_data: bool,
    /// Its only piece of data says all of it.
    alone: bool,
    /// What it must turn out to be, where that was said.
    promised: Option<Promised>,
}

/// An offer that keeps to the rules.
pub struct Accepted {
    batch: u64,
    items: Vec<Item>,
    ends: Vec<End>,
    /// What is known already, of a batch that is offered again.
    answer: Option<TransferResponse>,
    /// Contents that came to an end without belonging to a file.
    abandoned: Vec<u64>,
}

impl Accepted {
    fn new(batch: u64) -> Self {
        let (items, ends, abandoned) = Default::default();
        Self { batch, items, ends, answer: None, abandoned }
    }
}

/// A batch of which something is on its way.
struct Outstanding {
    pieces: Vec<Target>,
    bitmap: Vec<u8>,
    bytes: u64,
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

/// A content whose end has not been offered.
#[derive(Default)]
struct Open {
    /// Offset of the next part.
    next: u64,
    /// The digest of its list of pieces so far: [`piece_list_digest`].
    list: Box<blake3::Hasher>,
    /// Position of the base's file that it began as a copy of.
    copy_of: Option<u64>,
    /// Position of a file of the base that it takes pieces from.
    reuses: Option<u64>,
    /// Some of those pieces are not compared by themselves.
    trusts: bool,
}

#[derive(Default)]
struct State {
    last_batch: u64,
    /// Contents whose end has not been offered.
    open: HashMap<u64, Open>,
    /// Contents whose start has been offered.
    seen: Seen,
    wanted: HashMap<u64, Outstanding>,
    outstanding_bytes: u64,
    outstanding_pieces: usize,
    /// Something that came could not be accepted or settled: nothing more is taken.
    failed: bool,
    /// Of all contents so far.
    hole_bytes: u64,
    stats: ReceiveStats,
}

/// The receiving end of one run's content.
pub struct Receiver {
    staging: Arc<Staging>,
    places: PlaceReader,
    base: Option<(Base, Arc<Copies>)>,
    allowance: Allowance,
    buffers: Buffers,
    turns: Turns,
    /// Contents that began as a copy of so many bytes: they hold bytes where there should be a hole, and may be too long.
    copied: Mutex<HashMap<u64, u64>>,
    state: Mutex<State>,
}

impl Receiver {
    /// A receiver into `staging` that finds known chunks through `places`, and what is reused in a base, of whose files there may be
    /// copies. It writes what the allowance has room for.
    pub fn new(
        staging: Arc<Staging>,
        places: PlaceReader,
        base: Option<(Base, Arc<Copies>)>,
        allowance: Allowance,
    ) -> Self {
        let (buffers, turns, copied, state) = Default::default();
        Self { staging, places, base, allowance, buffers, turns, copied, state }
    }

    /// What was received so far.
    pub fn stats(&self) -> ReceiveStats {
        self.state().stats
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an offer, in the order of arrival.
    ///
    /// # Errors
    /// When it breaks the protocol.
    pub fn accept(&self, offer: &Offer) -> Result<Accepted, ReceiveError> {
        let mut state = self.state();
        if state.failed {
            return protocol("nothing is sent after an error");
        }
        let accepted = self.accept_offer(&mut state, offer);
        state.failed = accepted.is_err();
        accepted
    }

    fn accept_offer(&self, state: &mut State, offer: &Offer) -> Result<Accepted, ReceiveError> {
        let batch = offer.batch;
        if batch > 0 && batch <= state.last_batch {
            // Offered again after a cut: what is wanted of it is known.
            let answer = match state.wanted.get(&batch) {
                Some(waiting) => TransferResponse { batch, wanted: waiting.bitmap.clone(), stored: false },
                None => TransferResponse { batch, wanted: Vec::new(), stored: true },
            };
            return Ok(Accepted { answer: Some(answer), ..Accepted::new(batch) });
        }
        if batch != state.last_batch + 1 {
            return protocol("batches are numbered 1, 2, 3 ...");
        }
        let counted = offer.parts.iter().try_fold(0u64, |total, part| {
            let reused = part.reuse.iter().try_fold(0u64, |total, run| total.checked_add(run.count))?;
            total.checked_add(part.pieces.len() as u64)?.checked_add(reused)
        });
        if counted.is_none_or(|pieces| pieces > MAX_OFFER_PIECES as u64) {
            return protocol("an offer has at most 262144 pieces");
        }
        if state.wanted.len() >= MAX_OUTSTANDING_BATCHES {
            return protocol("at most 65536 batches are on their way");
        }
        let mut accepted = Accepted::new(batch);
        for part in &offer.parts {
            self.accept_part(state, part, &mut accepted)?;
        }
        let data = accepted.items.iter().map(|item| match item {
            Item::Data(target) | Item::Reused(target, ..) | Item::Kept(target) => target.bytes as u64,
            Item::Hole { .. } => 0,
        });
        if data.sum::<u64>() > MAX_BATCH_BYTES {
            return protocol("an offer is of at most 8 MiB of content");
        }
        let holes = accepted.items.iter().map(|item| match item {
            Item::Hole { bytes, .. } => *bytes,
            Item::Data(_) | Item::Reused(..) | Item::Kept(_) => 0,
        });
        state.hole_bytes = holes.fold(state.hole_bytes, u64::saturating_add);
        if state.hole_bytes > MAX_RUN_HOLE_BYTES {
            return protocol("the holes of a run are of at most 32 TiB together");
        }
        let promised: Vec<_> =
            accepted.ends.iter().filter_map(|end| Some((end.content, end.promised?))).collect();
        if !self.staging.whole().promises().add(&promised) {
            return protocol("at most 262144 contents that reuse pieces are on their way");
        }
        state.last_batch = batch;
        Ok(accepted)
    }

    fn accept_part(
        &self,
        state: &mut State,
        part: &FilePart,
        accepted: &mut Accepted,
    ) -> Result<(), ReceiveError> {
        let content = part.content;
        if content == 0 || content > MAX_CONTENT {
            return protocol("contents are numbered from 1 to 2^38");
        }
        let data = part.pieces.iter().filter(|word| **word & 1 == 0).count();
        if part.digests.len() != data * DIGEST_BYTES {
            return protocol("a part has one digest of 32 bytes for each data piece");
        }
        let mut open = match state.open.remove(&content) {
            None if part.offset == 0 => {
                if state.open.len() >= MAX_OPEN_CONTENTS {
                    return protocol("at most 1024 contents are open at a time");
                }
                match state.seen.insert(content) {
                    Ok(()) => {}
                    Err(Refused::Twice) => return protocol("a content is offered once"),
                    Err(Refused::Scattered) => {
                        return protocol("contents are numbered one after the other");
                    }
                }
                Open::default()
            }
            Some(open) if open.next == part.offset => open,
            _ => return protocol("a content's parts come without gaps, from its start"),
        };
        let promised = match (ContentDigest::from_slice(&part.digest), part.last && !part.abandoned) {
            (Some(digest), true) => Some(digest),
            (None, _) if part.digest.is_empty() => None,
            _ => return protocol("the digest of a content has 32 bytes, and comes with its last part"),
        };
        let base = match (&self.base, part.reuse.is_empty()) {
            (_, true) => None,
            (Some((base, _)), false) => Some(base.file(part.base_entry)?),
            (None, false) => return protocol("nothing is reused where there is no base"),
        };
        if let Some(base) = &base {
            open.reuses = Some(base.position);
        }
        let count =
            part.reuse.iter().fold(part.pieces.len() as u64, |count, run| count.saturating_add(run.count));
        let in_one_message = part.offset == 0 && part.last;
        let (alone, first_item) = (in_one_message && count == 1, accepted.items.len());
        if part.offset == 0
            && !alone
            && let Some(base) = &base
        {
            open.copy_of = self.begin_as_copy(content, base)?;
        }
        let digests = part.digests.as_chunks::<DIGEST_BYTES>().0;
        let (mut offset, mut digest, mut fault, mut ends_in_data) = (part.offset, 0, None, false);
        let base_count = base.as_ref().map_or(0, |base| base.pieces.len());
        let walked = in_order(part.pieces.len(), &part.reuse, base_count, |place| {
            let (piece, known) = match (place, &base) {
                (reuse::Place::New(position), _) => match Piece::from_wire(part.pieces[position]) {
                    Some(piece @ Piece::Hole { .. }) => (piece, None),
                    Some(piece) => {
                        digest += 1;
                        (piece, Some(ContentDigest(digests[digest - 1])))
                    }
                    None => return fault = Some("a piece has at least 1 byte, and a chunk at most 1 MiB"),
                },
                (reuse::Place::Reused(position), Some(base)) => base.pieces[position].1,
                (reuse::Place::Reused(_), None) => return,
            };
            let bytes = piece.bytes();
            ends_in_data = known.is_some();
            add_to_list(&mut open.list, piece, known);
            accepted.items.push(match (known, place, &base) {
                (None, ..) => Item::Hole { content, offset, bytes },
                (Some(digest), place, base) => {
                    let bytes = bytes as usize;
                    let target = Target { content, offset, bytes, digest, alone, in_one_message };
                    match (place, base) {
                        (reuse::Place::Reused(position), Some(base))
                            if open.copy_of == Some(base.position) && base.pieces[position].0 == offset =>
                        {
                            Item::Kept(target)
                        }
                        (reuse::Place::Reused(position), Some(base)) => {
                            open.trusts |= target.is_trusted_to(base);
                            Item::Reused(target, Arc::clone(base), position)
                        }
                        _ => Item::Data(target),
                    }
                }
            });
            match offset.checked_add(bytes).filter(|end| *end <= MAX_FILE_BYTES) {
                Some(end) => offset = end,
                None => fault = Some("a content is at most 16 TiB long"),
            }
        });
        if let Some(rule) = fault {
            return protocol(rule);
        }
        if walked.is_err() {
            return protocol("what is reused stands in the base, in order");
        }
        if part.offset == 0
            && !part.last
            && let Some(Item::Data(first)) = accepted.items.get(first_item)
        {
            self.adopt_first(first)?;
        }
        if part.last {
            // Of a content that is one piece of data its digest says all.
            if !(alone && ends_in_data) {
                let noted = self.staging.whole().note_list(content, *open.list.finalize().as_bytes());
                noted.at("write", self.staging.path())?;
            }
            if !part.abandoned {
                let promised = match (open.reuses, promised) {
                    (Some(base_entry), Some(digest)) => Some(Promised { digest, length: offset, base_entry }),
                    (_, None) if open.trusts => {
                        return protocol("a content that reuses pieces says its digest with its last part");
                    }
                    (None, Some(_)) => {
                        return protocol("only a content that reuses pieces says its digest");
                    }
                    (_, None) => None,
                };
                let alone = alone && ends_in_data;
                accepted.ends.push(End { content, length: offset, ends_in_data, alone, promised });
            } else {
                accepted.abandoned.push(content);
            }
        } else {
            state.open.insert(content, Open { next: offset, ..open });
        }
        Ok(())
    }

    /// Stops what goes on for a run that is given up.
    pub fn stop(&self) {
        self.staging.whole().stop();
    }

    #[cfg(test)]
    fn offer(&self, offer: &Offer) -> Result<TransferResponse, ReceiveError> {
        self.settle(self.accept(offer)?)
    }

    /// Fills what this machine has and answers what is wanted. May run beside other messages.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub fn settle(&self, accepted: Accepted) -> Result<TransferResponse, ReceiveError> {
        let settled = self.settle_accepted(accepted);
        if settled.is_err() {
            // Offered again, it would be taken for stored.
            self.state().failed = true;
        }
        settled
    }

    fn settle_accepted(&self, accepted: Accepted) -> Result<TransferResponse, ReceiveError> {
        let Accepted { batch, items, ends, answer, abandoned } = accepted;
        if let Some(answer) = answer {
            return Ok(answer);
        }
        let here = self.fill(&items)?;
        let data = items.iter().filter_map(|item| match item {
            Item::Data(target) | Item::Reused(target, ..) | Item::Kept(target) => Some(*target),
            Item::Hole { .. } => None,
        });
        let (mut bitmap, mut pieces, mut count) = (Vec::new(), Vec::new(), 0);
        for (index, (target, here)) in data.zip(here).enumerate() {
            count = index + 1;
            if !here {
                bitmap.resize(index / 8 + 1, 0u8);
                bitmap[index / 8] |= 1 << (index % 8);
                pieces.push(target);
            }
        }
        self.end(&ends)?;
        self.hold_to_promises()?;
        abandoned.iter().for_each(|content| self.staging.whole().forget(*content));
        let mut state = self.state();
        state.stats.offered += count as u64;
        state.stats.found += (count - pieces.len()) as u64;
        if pieces.is_empty() {
            return Ok(TransferResponse { batch, wanted: bitmap, stored: true });
        }
        let bytes = pieces.iter().map(|piece| piece.bytes as u64).sum();
        state.outstanding_bytes += bytes;
        if state.outstanding_bytes > MAX_OUTSTANDING_BYTES {
            return protocol("at most 512 MiB of wanted content are on their way");
        }
        state.outstanding_pieces += pieces.len();
        if state.outstanding_pieces > MAX_OUTSTANDING_PIECES {
            return protocol("at most 4194304 pieces of wanted content are on their way");
        }
        state.wanted.insert(batch, Outstanding { pieces, bitmap: bitmap.clone(), bytes });
        Ok(TransferResponse { batch, wanted: bitmap, stored: false })
    }

    /// Takes the wanted chunks of one batch: verifies all, then keeps them. May run beside other messages.
    ///
    /// # Errors
    /// When the pack is not what was wanted, or the store cannot be written. Nothing of a bad pack is kept.
    pub fn pack(&self, pack: &Pack) -> Result<TransferResponse, ReceiveError> {
        let waiting = self.state().wanted.remove(&pack.batch);
        let Some(waiting) = waiting else {
            return protocol("a pack answers an offer of which something was wanted");
        };
        let kept = self.keep(pack, &waiting).and_then(|()| self.hold_to_promises());
        let mut state = self.state();
        if let Err(error) = kept {
            // It is still wanted: of a stream that is taken up again, or of nobody.
            state.wanted.insert(pack.batch, waiting);
            return Err(error);
        }
        state.outstanding_bytes -= waiting.bytes;
        state.outstanding_pieces -= waiting.pieces.len();
        state.stats.received += waiting.pieces.len() as u64;
        state.stats.received_bytes += waiting.bytes;
        Ok(TransferResponse { batch: pack.batch, wanted: Vec::new(), stored: true })
    }

    fn keep(&self, pack: &Pack, waiting: &Outstanding) -> Result<(), ReceiveError> {
        if pack.raw_bytes != waiting.bytes || waiting.bytes > MAX_BATCH_BYTES {
            return protocol("a pack holds what was wanted of its batch, at most 8 MiB");
        }
        if !pack.zstd {
            // It lies in the connection's memory, of which nobody knows how much that is: it is not held.
            return self.keep_content((&pack.data, usize::MAX), waiting);
        }
        let offset = waiting.pieces.first().map_or(0, |piece| piece.offset);
        let mut content = self.buffers.take(waiting.bytes as usize, offset);
        // The buffer is the limit: a frame that unfolds to more is an error, not an allocation.
        let bytes = zstd::bulk::decompress_to_buffer(&pack.data, &mut content[..])
            .or_else(|_| protocol("a pack's data is one zstd frame of its raw_bytes"))?;
        let memory_bytes = content.memory_bytes();
        self.keep_content((&content.share(bytes), memory_bytes), waiting)
    }

    /// Keeps content that lies in so many bytes of memory.
    fn keep_content(
        &self,
        (content, memory_bytes): (&Bytes, usize),
        waiting: &Outstanding,
    ) -> Result<(), ReceiveError> {
        if content.len() as u64 != waiting.bytes {
            return protocol("a pack's content has the length of its raw_bytes");
        }
        let mut rest = &content[..];
        let pieces: Vec<(Target, &[u8])> = waiting
            .pieces
            .iter()
            .map(|piece| {
                let (bytes, after) = rest.split_at(piece.bytes);
                rest = after;
                (*piece, bytes)
            })
            .collect();
        // Packs come side by side, as many as there are processors: one does not take those of the others.
        pieces.iter().try_for_each(|(piece, bytes)| {
            debug_assert!(bytes.len() <= MAX_CHUNK_BYTES);
            let actual = ContentDigest::of(bytes);
            if actual == piece.digest {
                Ok(())
            } else {
                Err(ReceiveError::ChunkMismatch { expected: piece.digest, actual })
            }
        })?;
        let targets: Vec<Target> = pieces.iter().map(|(target, _)| *target).collect();
        self.write(&targets, (content, memory_bytes))
    }

    /// Ends the content: everything that was wanted has come and every content has its end.
    ///
    /// # Errors
    /// When something is missing, or the index cannot be written.
    pub fn finish(&self) -> Result<(), ReceiveError> {
        {
            let state = self.state();
            if !state.wanted.is_empty() {
                return protocol("the stream ends when all that was wanted has been sent");
            }
            if !state.open.is_empty() {
                return protocol("the stream ends when every content has ended");
            }
        }
        self.prove_promises()?;
        Ok(self.places.flush()?)
    }

    /// True when something taken from the base was not what it should be, of this run or of how it was opened before.
    pub fn doubts_base(&self) -> bool {
        let compares = self.base.as_ref().is_some_and(|(base, _)| base.compares());
        compares || !self.staging.whole().promises().broken().is_empty()
    }

    /// Ends what shares pieces with a base that turned out not to have them.
    fn hold_to_promises(&self) -> Result<(), ReceiveError> {
        let broken = self.staging.whole().promises().broken();
        let (Some((base, _)), false) = (&self.base, broken.is_empty()) else { return Ok(()) };
        let paths = broken.into_iter().map(|position| Ok(base.file(position)?.path.clone()));
        let error = ReceiveError::BaseRotten { paths: paths.collect::<Result<_, ReceiveError>>()? };
        tracing::error!(%error, "what was taken from the disk is not what was sealed there: scrub the repository");
        Err(error)
    }

    /// Reads what could not be hashed while it was written.
    fn prove_promises(&self) -> Result<(), ReceiveError> {
        let promises = self.staging.whole().promises();
        for (content, promised) in promises.open() {
            let digest = self.read_digest(content, promised.length)?;
            promises.hold(content, promised.length, digest);
        }
        self.hold_to_promises()
    }

    /// Keeps what is known of the chunks that came, when the stream was cut.
    ///
    /// # Errors
    /// When the index cannot be written.
    pub fn interrupt(&self) -> Result<(), ReceiveError> {
        Ok(self.places.flush()?)
    }
}

#[cfg(test)]
mod tests;
