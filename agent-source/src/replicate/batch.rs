//! What is on its way between reading and the target: batches of pieces, and the budget of bytes that they may hold.

use std::sync::{Arc, Mutex, PoisonError, Weak, atomic::Ordering};

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
    /// What progress does not count yet.
    pub on_the_way: OnTheWay,
}

/// Content that has been read and that the target has not acknowledged: it is on its way for as long as this lives.
#[derive(Debug, Default)]
pub struct OnTheWay {
    counters: Arc<Counters>,
    bytes: u64,
}

impl OnTheWay {
    fn new(counters: Arc<Counters>) -> Self {
        Self { counters, bytes: 0 }
    }

    fn add(&mut self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.bytes += bytes;
        self.counters.on_the_way.fetch_add(bytes, Ordering::Relaxed);
    }

    fn take(&mut self) -> Self {
        Self { counters: Arc::clone(&self.counters), bytes: std::mem::take(&mut self.bytes) }
    }
}

impl Drop for OnTheWay {
    fn drop(&mut self) {
        self.counters.on_the_way.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What a piece that was let go is counted for: that it is remembered where it was costs memory too.
const LET_GO_BYTES: usize = 256;

type Spare = Mutex<Vec<Vec<u8>>>;

/// The memory for content that all runs of an agent share.
///
/// Each run that copies has as much for itself as it needs to make progress, so that none waits for another; the rest is for whoever needs it.
#[derive(Clone)]
pub struct Memory {
    runs: usize,
    own_bytes: usize,
    common: Arc<Semaphore>,
    blocks: Arc<Mutex<Weak<Spare>>>,
}

impl Memory {
    /// `bytes` for up to `runs` at a time, or for as many as they are enough for.
    pub fn new(bytes: usize, runs: usize) -> Self {
        let runs = runs.min(bytes / MIN_BUDGET_BYTES).max(1);
        let own_bytes = if runs == 1 { bytes } else { MIN_BUDGET_BYTES };
        let common = bytes.saturating_sub(runs * own_bytes) / BUDGET_UNIT;
        Self { runs, own_bytes, common: Arc::new(Semaphore::new(common)), blocks: Arc::default() }
    }

    /// How many runs may copy at a time.
    pub fn runs(&self) -> usize {
        self.runs
    }

    /// The budget of one run.
    pub fn budget(&self) -> Budget {
        Budget { common: Some(Arc::clone(&self.common)), ..Budget::new(self.own_bytes) }
    }

    /// The blocks of those that read now; they go when nobody reads.
    pub fn blocks(&self) -> Blocks {
        let mut known = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        let blocks = known.upgrade().unwrap_or_default();
        *known = Arc::downgrade(&blocks);
        Blocks(blocks)
    }
}

/// Bytes that may be held between reading and the target's acknowledgement.
#[derive(Clone)]
pub struct Budget {
    own: Arc<Semaphore>,
    /// What the runs of an agent have together.
    common: Option<Arc<Semaphore>>,
    units: usize,
}

impl Budget {
    /// A budget of `bytes`, or of as much as is needed to make progress at all.
    pub fn new(bytes: usize) -> Self {
        let units = bytes.max(MIN_BUDGET_BYTES) / BUDGET_UNIT;
        Self { own: Arc::new(Semaphore::new(units)), common: None, units }
    }

    fn units(&self, bytes: usize) -> u32 {
        bytes.div_ceil(BUDGET_UNIT).clamp(1, self.units) as u32
    }

    fn try_claim(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let units = self.units(bytes);
        let mut both = [Some(&self.own), self.common.as_ref()].into_iter().flatten();
        both.find_map(|semaphore| Arc::clone(semaphore).try_acquire_many_owned(units).ok())
    }

    fn claim(&self, bytes: usize, runtime: &Handle) -> Result<OwnedSemaphorePermit, Closed> {
        let units = self.units(bytes);
        let own = Arc::clone(&self.own).acquire_many_owned(units);
        let Some(common) = self.common.clone() else {
            return runtime.block_on(own).map_err(|_| Closed);
        };
        // What is its own comes back when its batches are stored; what is common may be held by others for long.
        runtime.block_on(async {
            tokio::select! {
                biased;
                own = own => own.map_err(|_| Closed),
                Ok(common) = common.acquire_many_owned(units) => Ok(common),
            }
        })
    }

    /// What is left of a claim when all but `bytes` and the places of so many pieces was let go; the rest is free for others.
    fn reduce(&self, mut claim: OwnedSemaphorePermit, bytes: usize, let_go: usize) -> OwnedSemaphorePermit {
        let units = self.units(bytes.saturating_add(let_go * LET_GO_BYTES)) as usize;
        claim.split(units).unwrap_or(claim)
    }

    /// Wakes readers that wait, to stop them.
    pub fn close(&self) {
        self.own.close();
    }
}

/// The transfer has ended: nothing more is taken.
#[derive(Debug)]
pub struct Closed;

/// Blocks of memory that are read into again and again: fresh memory is slow to come by, and clearing it is work.
#[derive(Clone, Default)]
pub struct Blocks(Arc<Spare>);

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
    on_the_way: OnTheWay,
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
            on_the_way: OnTheWay::new(Arc::clone(&counters)),
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
        self.on_the_way.add(bytes);
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
        self.on_the_way.add(bytes);
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
            on_the_way: self.on_the_way.take(),
        };
        self.counters.chunks_offered.add(batch.chunks.len() as u64);
        self.batches.blocking_send(batch).map_err(|_| Closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    /// Takes what it can get at once.
    fn take_all(budget: &Budget) -> Vec<OwnedSemaphorePermit> {
        std::iter::from_fn(|| budget.try_claim(MIB)).collect()
    }

    #[test]
    fn runs_share_one_memory_and_none_keeps_another_from_going_on() {
        let memory = Memory::new(64 * MIB, 4);
        let (first, second) = (memory.budget(), memory.budget());
        let held = take_all(&first);
        // All but what the three others have for themselves.
        assert_eq!(held.len(), 64 - 3 * 6);
        assert_eq!(take_all(&second).len(), 6);
        drop(held);
        assert_eq!(take_all(&second).len(), 64 - 3 * 6);
    }

    #[test]
    fn one_repository_has_all_the_memory_and_little_memory_is_for_few_runs() {
        let alone = Memory::new(64 * MIB, 1);
        assert_eq!((alone.runs(), take_all(&alone.budget()).len()), (1, 64));
        assert_eq!(Memory::new(8 * MIB, 4).runs(), 1);
        assert_eq!(Memory::new(13 * MIB, 4).runs(), 2);
        assert_eq!((Memory::new(0, 4).runs(), take_all(&Memory::new(0, 4).budget()).len()), (1, 6));
    }

    /// Reading is ahead of a slow link: what waits for it is not done yet, or the time left would be that of the reading.
    #[test]
    fn progress_counts_what_the_target_has() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let counters = Arc::new(Counters::default());
        let (batches, mut queue) = mpsc::channel(1);
        let budget = Budget::new(20 * MIB);
        let claim = budget.try_claim(MIB).expect("free");
        let mut batcher = Batcher::new(batches, budget, runtime.handle().clone(), Arc::clone(&counters));
        counters.to_read.add(3 * MIB as u64);
        counters.is_walked.store(true, Ordering::Relaxed);
        // Found to be the same as before: read, and nothing to send.
        counters.done.add(MIB as u64);
        assert_eq!(counters.work(), (3 * MIB as u64, MIB as u64));
        counters.done.add(MIB as u64);
        batcher.hold([Bytes::from(vec![0; MIB])], MIB, claim);
        assert_eq!(counters.work(), (3 * MIB as u64, MIB as u64));
        batcher.push(FilePart::default()).expect("pushed");
        batcher.flush().expect("sent");
        let batch = queue.try_recv().expect("a batch");
        assert_eq!(counters.work(), (3 * MIB as u64, MIB as u64));
        drop(batch);
        assert_eq!(counters.work(), (3 * MIB as u64, 2 * MIB as u64));
    }

    /// Nothing is free in either: the claim is met by what comes back first, and ends when the transfer does.
    #[test]
    fn a_claim_waits_for_whichever_is_free_first() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let memory = Memory::new(20 * MIB, 2);
        let (first, second) = (memory.budget(), memory.budget());
        let (mut theirs, mut ours) = (take_all(&first), take_all(&second));
        assert_eq!((theirs.len(), ours.len()), (14, 6));
        std::thread::scope(|scope| {
            let claiming = scope.spawn(|| second.claim(MIB, runtime.handle()));
            // The last ones are of what is common.
            theirs.truncate(6);
            let common = claiming.join().expect("no panic").expect("some of what is common");
            theirs.extend(take_all(&first));
            let claiming = scope.spawn(|| second.claim(MIB, runtime.handle()));
            ours.pop();
            let own = claiming.join().expect("no panic").expect("its own");
            let claiming = scope.spawn(|| second.claim(MIB, runtime.handle()));
            second.close();
            assert!(claiming.join().expect("no panic").is_err());
            drop((common, own));
        });
    }

    #[test]
    fn blocks_are_shared_by_those_that_read_and_go_with_the_last() {
        let memory = Memory::new(64 * MIB, 4);
        let (one, other) = (memory.blocks(), memory.blocks());
        drop(one.share(one.take(10), 10));
        assert_eq!(other.0.lock().expect("no panic").len(), 1);
        drop((one, other));
        assert!(memory.blocks().0.lock().expect("no panic").is_empty());
    }
}
