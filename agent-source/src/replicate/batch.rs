//! What is on its way between reading and the target: batches of pieces, and the budget of bytes that they may hold.

use std::sync::{Arc, Mutex, PoisonError};

use assay_proto::v1::FilePart;
use bytes::Bytes;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};

use super::{Counters, chunk::Chunk};

/// Read at a time, in bytes.
pub(super) const BLOCK_BYTES: usize = 1024 * 1024;
/// A batch is offered when it holds this much content: the chunks of a batch share a compression context, which is
/// worth some per cent up to here and little beyond (docs/PERFORMANCE.md) ...
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// ... or this many parts, so that a million tiny files do not make one endless message.
const BATCH_PARTS: usize = 2048;
/// Unit of the budget: a semaphore counts in 32 bits.
const BUDGET_UNIT: usize = 1024;
/// The smallest budget that can make progress: one block that is being read, one batch on its way.
const MIN_BUDGET_BYTES: usize = 2 * BLOCK_BYTES + BATCH_BYTES;
/// Blocks that are kept for the next reading.
const SPARE_BLOCKS: usize = 32;

/// A batch on its way to the target, held until the target has acknowledged it.
pub struct Batch {
    /// The pieces, for the offer.
    pub parts: Vec<FilePart>,
    /// The content of the data pieces, in the order of the parts, reused pieces among them.
    pub chunks: Vec<Chunk>,
    /// Bytes of that content, held or not.
    pub content_bytes: usize,
    /// Given back when the content is no longer held.
    pub budget: Vec<OwnedSemaphorePermit>,
}

/// What a piece that was let go is counted for: that it is remembered where it was costs memory too.
const LET_GO_BYTES: usize = 256;

/// Bytes that may be held between reading and the target's acknowledgement.
#[derive(Clone)]
pub struct Budget {
    semaphore: Arc<Semaphore>,
    units: usize,
}

impl Budget {
    /// A budget of `bytes`, or of as much as is needed to make progress at all.
    pub fn new(bytes: usize) -> Self {
        let units = bytes.max(MIN_BUDGET_BYTES) / BUDGET_UNIT;
        Self { semaphore: Arc::new(Semaphore::new(units)), units }
    }

    fn units(&self, bytes: usize) -> u32 {
        bytes.div_ceil(BUDGET_UNIT).clamp(1, self.units) as u32
    }

    fn try_claim(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.semaphore).try_acquire_many_owned(self.units(bytes)).ok()
    }

    fn claim(&self, bytes: usize, runtime: &Handle) -> Result<OwnedSemaphorePermit, Closed> {
        let claim = Arc::clone(&self.semaphore).acquire_many_owned(self.units(bytes));
        runtime.block_on(claim).map_err(|_| Closed)
    }

    /// What is left of a claim when all but `bytes` and the places of so many pieces was let go; the rest is free for others.
    fn reduce(&self, mut claim: OwnedSemaphorePermit, bytes: usize, let_go: usize) -> OwnedSemaphorePermit {
        let units = self.units(bytes.saturating_add(let_go * LET_GO_BYTES)) as usize;
        claim.split(units).unwrap_or(claim)
    }

    /// Wakes readers that wait, to stop them.
    pub fn close(&self) {
        self.semaphore.close();
    }
}

/// The transfer has ended: nothing more is taken.
#[derive(Debug)]
pub struct Closed;

/// Blocks of memory that are read into again and again: fresh memory is slow to come by, and clearing it is work.
#[derive(Clone, Default)]
pub struct Blocks(Arc<Mutex<Vec<Vec<u8>>>>);

impl Blocks {
    /// A block of at least `bytes`, whatever was in it.
    pub fn take(&self, bytes: usize) -> Vec<u8> {
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut block = spare.unwrap_or_default();
        if block.len() < bytes {
            block.resize(bytes.max(BLOCK_BYTES + BLOCK_BYTES / 4), 0);
        }
        block
    }

    /// The first `filled` bytes of a block; when the last of them is dropped, the block is free again.
    pub fn share(&self, block: Vec<u8>, filled: usize) -> Bytes {
        Bytes::from_owner(Shared { block, filled, home: self.clone() })
    }
}

struct Shared {
    block: Vec<u8>,
    filled: usize,
    home: Blocks,
}

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.block[..self.filled]
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let mut spare = self.home.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE_BLOCKS {
            spare.push(std::mem::take(&mut self.block));
        }
    }
}

/// Where one reader puts what it has read.
pub struct Batcher {
    batches: mpsc::Sender<Batch>,
    budget: Budget,
    runtime: Handle,
    counters: Arc<Counters>,
    parts: Vec<FilePart>,
    chunks: Vec<Chunk>,
    held: Vec<OwnedSemaphorePermit>,
    content_bytes: usize,
}

impl Batcher {
    /// Batches go to `batches`, their bytes are claimed from `budget`.
    pub fn new(
        batches: mpsc::Sender<Batch>,
        budget: Budget,
        runtime: Handle,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            batches,
            budget,
            runtime,
            counters,
            parts: Vec::new(),
            chunks: Vec::new(),
            held: Vec::new(),
            content_bytes: 0,
        }
    }

    /// Claims `bytes` if that is possible at once.
    pub fn try_claim(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        self.budget.try_claim(bytes)
    }

    /// Claims `bytes` and waits for them. Everything that this batcher holds must have been flushed: what waits here would
    /// wait for itself.
    ///
    /// # Errors
    /// When the transfer has ended.
    pub fn claim(&mut self, bytes: usize) -> Result<OwnedSemaphorePermit, Closed> {
        debug_assert!(self.held.is_empty());
        self.budget.claim(bytes, &self.runtime)
    }

    /// Adds content of so many bytes, with the claim that covers it.
    pub fn hold(
        &mut self,
        chunks: impl IntoIterator<Item = Bytes>,
        bytes: usize,
        claim: OwnedSemaphorePermit,
    ) {
        self.chunks.extend(chunks.into_iter().map(Chunk::Held));
        self.held.push(claim);
        self.content_bytes += bytes;
    }

    /// Adds content of so many bytes, some of which was let go: of the claim only as much is kept as the rest takes.
    pub fn hold_some(&mut self, chunks: Vec<Chunk>, bytes: usize, claim: OwnedSemaphorePermit) {
        let (mut held_bytes, mut let_go) = (0, 0);
        for chunk in &chunks {
            match chunk {
                Chunk::Held(bytes) => held_bytes += bytes.len(),
                Chunk::LetGo(_) => let_go += 1,
            }
        }
        self.held.push(self.budget.reduce(claim, held_bytes, let_go));
        self.chunks.extend(chunks);
        self.content_bytes += bytes;
    }

    /// True when a batch is full, and the part that is being made should be pushed.
    pub fn is_full(&self) -> bool {
        self.content_bytes >= BATCH_BYTES
    }

    /// Adds a part, whose content has been added before, and sends the batch when it is full.
    ///
    /// # Errors
    /// When the transfer has ended.
    pub fn push(&mut self, part: FilePart) -> Result<(), Closed> {
        self.parts.push(part);
        if self.is_full() || self.parts.len() >= BATCH_PARTS { self.flush() } else { Ok(()) }
    }

    /// Sends what waits.
    ///
    /// # Errors
    /// When the transfer has ended.
    pub fn flush(&mut self) -> Result<(), Closed> {
        if self.parts.is_empty() {
            return Ok(());
        }
        let batch = Batch {
            parts: std::mem::take(&mut self.parts),
            chunks: std::mem::take(&mut self.chunks),
            content_bytes: std::mem::take(&mut self.content_bytes),
            budget: std::mem::take(&mut self.held),
        };
        self.counters.chunks_offered.add(batch.chunks.len() as u64);
        self.batches.blocking_send(batch).map_err(|_| Closed)
    }
}
