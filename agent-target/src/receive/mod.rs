//! Receives content: answers each offer with what this machine lacks, and verifies every chunk before it is kept.
//!
//! Nothing here knows a name. A content is a numbered file in staging; its pieces are copied from chunks that are already
//! on this machine or written as they arrive, each after its digest has been compared; pieces of a file of the base are compared together, by
//! the digest of what becomes of them. What could not be had is a wanted chunk, never a gap: a content with a missing piece does not match
//! its digest when the generation is sealed.
//!
//! A message is worked on in two steps. [`Receiver::accept`] holds it against the rules, in the order of arrival and without
//! touching a file but to begin one; what it gives is then settled beside other messages, in any order: each writes pieces of its own.
//!
//! The receiver belongs to the run and outlives a stream that is cut: a batch that is offered again is answered with what
//! of it has not arrived.

mod allowance;
mod base;
mod error;
mod fill;
mod offer;
mod places;
mod seen;
mod turns;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use assay_common::{
    digest::ContentDigest,
    limits::{MAX_BATCH_BYTES, MAX_CHUNK_BYTES, MAX_OUTSTANDING_BYTES, MAX_OUTSTANDING_PIECES},
};
use assay_proto::v1::{Offer, Pack, TransferResponse};
use bytes::Bytes;

use crate::{ahead::copies::Copies, buffers::Buffers, store::Staging};

pub(crate) use allowance::FREE_ENTRIES_PART;
pub use allowance::{Allowance, Spare, quota_entries, reserve};
pub use base::Base;
pub use error::ReceiveError;
use error::protocol;
pub use offer::Accepted;
use offer::{End, Item, Open, Target};
pub use places::PlaceReader;
use seen::Seen;
use turns::Turns;

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
    allowance: Arc<Allowance>,
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
        Self { staging, places, base, allowance: Arc::new(allowance), buffers, turns, copied, state }
    }

    /// What the run may make us hold, of which the seal takes its part.
    pub fn allowance(&self) -> Arc<Allowance> {
        Arc::clone(&self.allowance)
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
