//! Replication: the walk, the comparison with the last generation, reading, and sending, each beside the others.
//!
//! ```text
//! scan ──► compare ──► steps ──► spool ───────────────────────────► (seal)
//!   (1 thread)   └───► jobs ───► readers ──► batches ──► transfer ══► target
//!                               (n threads)              (async)
//! ```
//!
//! Every arrow is bounded. A step waits in its queue for the reader of its file, a reader for the budget, the budget for the
//! target.

mod as_it_is;
pub mod basis;
mod batch;
mod block_memory;
mod chunk;
mod compare;
mod early;
mod links;
mod open;
pub mod preflight;
pub mod preview;
pub mod reader;
pub mod readings;
pub mod scan;
pub mod spool;
mod step_queue;
pub mod transfer;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use assay_common::{
    confined::Folder,
    fidelity::{Filter, Refused},
    manifest::Header,
    path::TreePath,
    profile::FileRules,
    tls::MeteredChannel,
};
use assay_proto::v1::{Counts, TransferStart, replication_service_client::ReplicationServiceClient};
use tokio::{runtime::Handle, sync::mpsc};
use tokio_util::sync::CancellationToken;

use basis::{BasisFolder, BasisReader};
pub use batch::Memory;
use batch::{Batch, Batcher};
use block_memory::BlockMemory;
use compare::{Compared, LateJob};
use links::Links;
use reader::{Outcome, ReadError, Reader};
use spool::{LateOutcomes, STEPS_BLOCKS, SpoolError, SpoolWriter};
use step_queue::{Named, Names, StepQueue};
use transfer::{Method, TransferError, TransferOptions};

/// Batches that wait for the transfer.
const BATCH_QUEUE: usize = 4;
/// Files that wait for a reader.
const JOB_QUEUE: usize = 4096;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// Begins anew.
    fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// What it has come to.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a replication counts while it runs.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct Counters {
    pub scanned: Counter,
    pub files_read: Counter,
    pub bytes_read: Counter,
    pub chunks_offered: Counter,
    pub chunks_sent: Counter,
    pub bytes_sent: Counter,
    pub unstable: Counter,
    pub vanished: Counter,
    pub reconnects: Counter,
    pub files_reread: Counter,
    pub bytes_reread: Counter,
    /// Content of the files that were found to be read, how much of it has been read, and what of that the target has not acknowledged.
    pub to_read: Counter,
    pub done: Counter,
    pub on_the_way: AtomicU64,
    /// All content there is, of a run that reads everything; 0 where that is not known.
    pub tree_bytes: Counter,
    /// The walk has come to its end: nothing more is found to be read.
    pub is_walked: AtomicBool,
    pub current: Mutex<String>,
    changed_without_trace: Mutex<BTreeSet<Vec<u8>>>,
    never_still: Mutex<BTreeSet<Vec<u8>>>,
    warnings: Mutex<Vec<String>>,
}

impl Counters {
    /// The counts so far.
    pub fn counts(&self) -> Counts {
        Counts {
            files_read: self.files_read.get(),
            bytes_read: self.bytes_read.get(),
            chunks_offered: self.chunks_offered.get(),
            chunks_sent: self.chunks_sent.get(),
            bytes_sent: self.bytes_sent.get(),
            files_unstable: self.unstable.get(),
            files_vanished: self.vanished.get(),
            entries_scanned: self.scanned.get(),
            reconnects: self.reconnects.get(),
            files_reread: self.files_reread.get(),
            bytes_reread: self.bytes_reread.get(),
            files_changed_without_trace: self.changed_without_trace().len() as u64,
            ..Default::default()
        }
    }

    /// Bytes that the run reads in all, 0 while that is not known, and bytes of them that have been read and that the target has: reading is
    /// ahead of a slow link by what memory allows.
    pub fn work(&self) -> (u64, u64) {
        let on_the_way = self.on_the_way.load(Ordering::Relaxed);
        let (found, done) = (self.to_read.get(), self.done.get().saturating_sub(on_the_way));
        let all = match (self.is_walked.load(Ordering::Relaxed), self.tree_bytes.get()) {
            (true, _) => found,
            (false, 0) => return (0, 0),
            (false, tree) => tree.max(found),
        };
        (all, done.min(all))
    }

    /// A file has another content, and its size, times and inode are as they were.
    pub fn note_change_without_trace(&self, path: &TreePath) {
        let mut changed = self.changed_without_trace.lock().unwrap_or_else(PoisonError::into_inner);
        changed.insert(path.as_bytes().to_vec());
    }

    /// Paths of such files.
    pub fn changed_without_trace(&self) -> BTreeSet<Vec<u8>> {
        self.changed_without_trace.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A file changed on every try and was taken as last read.
    pub fn note_never_still(&self, path: &TreePath) {
        self.unstable.add(1);
        let mut torn = self.never_still.lock().unwrap_or_else(PoisonError::into_inner);
        torn.insert(path.as_bytes().to_vec());
    }

    /// Paths of such files.
    pub fn never_still(&self) -> BTreeSet<Vec<u8>> {
        self.never_still.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The run's record says it once.
    pub fn warn(&self, text: String) {
        tracing::warn!("{text}");
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        if !warnings.contains(&text) {
            warnings.push(text);
        }
    }

    /// What the run's record says.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is being read now.
    pub fn set_current(&self, path: &TreePath) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = path.to_string();
    }

    /// What is being read now.
    pub fn current(&self) -> String {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Lets time pass: for what only time brings about, and the kernel has no event for.
#[allow(clippy::disallowed_methods, reason = "a lease that is given up and a clock's tick have no event")]
fn pause(time: std::time::Duration) {
    std::thread::sleep(time);
}

/// Why a replication ended before its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplicateError {
    /// A folder or name of a root.
    #[error(transparent)]
    Scan(#[from] scan::ScanError),
    /// A file of a root.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The mark did not end before its own files were read.
    #[error(transparent)]
    Mark(#[from] crate::mark::MarkError),
    /// The spool or the basis.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The target.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// The tree has what the target does not take, or cannot hold.
    #[error("{0}")]
    Refused(#[from] Refused),
    /// Files that are to be held never held still.
    #[error("{path}: files that must be there all at once came and went each time they were looked at")]
    NeverStill {
        /// One that went away last.
        path: String,
    },
    /// The run was cancelled.
    #[error("the run was cancelled")]
    Cancelled,
}

/// What is replicated, and how.
pub struct Plan {
    /// Header of the new manifest.
    pub header: Header,
    /// The roots, open, in the header's order.
    pub roots: Vec<Arc<Folder>>,
    /// The mark's own files.
    pub mark: Option<Arc<Folder>>,
    /// Asked before each file that is read last.
    pub late_files: crate::mark::LateFiles,
    /// What is copied and in which order.
    pub rules: Arc<FileRules>,
    /// The file systems that it is on.
    pub ground: scan::Ground,
    /// The basis that is known here to be the target's base.
    pub basis: Option<BasisFolder>,
    /// What is left out of the entries, and what the target takes.
    pub filter: Arc<Filter>,
    /// The basis was filtered otherwise: the attributes of each entry are looked at once.
    pub filtered_otherwise: bool,
    /// How files that have not changed are read again.
    pub rereading: readings::Rereading,
    /// Read every file, whatever the basis says of it.
    pub full_read: bool,
    /// Files that have rotted on the target: they are read and sent again, changed or not.
    pub rotten: std::collections::HashSet<Vec<u8>>,
    /// Pieces of the base may be known by their fingerprints.
    pub fingerprints: bool,
    /// Folder for the spool.
    pub work: PathBuf,
    /// Files that are read side by side.
    pub threads: usize,
    /// What content may be held in, with the agent's other runs.
    pub memory: Memory,
    /// How content is sent.
    pub transfer: TransferOptions,
}

impl Plan {
    /// Reads the basis, if there is one.
    fn read_basis(&self) -> Result<BasisReader, assay_common::manifest::ManifestError> {
        let open = |basis| BasisReader::open(basis, self.rereading.clock);
        self.basis.as_ref().map_or_else(|| Ok(BasisReader::empty()), open)
    }
}

/// What a replication leaves for the seal.
#[derive(Debug)]
pub struct Replicated {
    /// Entries carried over, and entries of the basis that are gone.
    pub kept: u64,
    /// Entries of the basis that were left out or replaced.
    pub dropped_or_replaced: u64,
    /// Entries of the basis whose path is not in the tree any more, without those that may have been moved to others.
    pub gone: u64,
    /// Files whose path is gone and that stand at another.
    pub moved: u64,
    /// Entries that the basis has.
    pub basis_entries: u64,
    /// Files that were read last.
    pub late: LateOutcomes,
    /// When it began to read, and where reading again stands.
    pub readings: spool::Readings,
}

/// Replicates the content of the roots. When this returns, the target has every chunk, and the steps are in the spool.
///
/// # Errors
/// The first thing that went wrong; everything else is stopped then.
pub async fn replicate(
    client: ReplicationServiceClient<MeteredChannel>,
    start: TransferStart,
    plan: Plan,
    counters: Arc<Counters>,
    cancel: CancellationToken,
) -> Result<Replicated, ReplicateError> {
    // After the target was restarted all of it is looked at again.
    counters.to_read.reset();
    counters.done.reset();
    counters.is_walked.store(false, Ordering::Relaxed);
    // One token for this replication: whichever part fails first stops the others.
    let stop = cancel.child_token();
    let budget = plan.memory.budget();
    let (batches, queue) = mpsc::channel::<Batch>(BATCH_QUEUE);
    let options = plan.transfer.clone();
    // Of what the base has nothing is sent, and the rest is little.
    let method = if plan.basis.is_some() { Method::Light } else { Method::Thorough };
    let local = tokio::task::spawn_blocking({
        let (stop, counters, budget) = (stop.clone(), Arc::clone(&counters), budget.clone());
        let (runtime, span) = (Handle::current(), tracing::Span::current());
        move || {
            let _of_run = span.entered();
            let result = run_threads(&plan, &batches, &budget, &runtime, &counters, &stop);
            if result.is_err() {
                stop.cancel();
            }
            result
        }
    });
    let sent = tokio::select! {
        sent = transfer::transfer(client, start, queue, (&options, method), counters) => sent.map_err(ReplicateError::from),
        () = stop.cancelled() => Err(ReplicateError::Cancelled),
    };
    if sent.is_err() {
        stop.cancel();
        budget.close();
    }
    let local = local.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
    match (local, sent) {
        (Ok(replicated), Ok(())) => Ok(replicated),
        // Of two errors one is the cause: that a part was stopped is never it.
        (
            Err(
                ReplicateError::Read(ReadError::Stopped)
                | ReplicateError::Spool(SpoolError::Stopped)
                | ReplicateError::Cancelled,
            ),
            Err(sent),
        ) => Err(sent),
        (Err(local), _) => Err(local),
        (Ok(_), Err(sent)) => Err(sent),
    }
}

/// The synchronous side: one thread walks, compares and writes the spool, `threads` read.
fn run_threads(
    plan: &Plan,
    batches: &mpsc::Sender<Batch>,
    budget: &batch::Budget,
    runtime: &Handle,
    counters: &Arc<Counters>,
    stop: &CancellationToken,
) -> Result<Replicated, ReplicateError> {
    let before = plan.basis.as_ref().map(BasisFolder::blocks);
    let memory = BlockMemory::new(before.as_deref(), &plan.work.join(STEPS_BLOCKS));
    let (blocks, contents, at_work, threads) =
        (plan.memory.blocks(), Arc::default(), Arc::default(), plan.threads);
    let fingerprints = plan.fingerprints;
    let shared = reader::Shared {
        blocks,
        memory: memory.clone(),
        contents,
        at_work,
        threads,
        fingerprints,
        filter: Arc::clone(&plan.filter),
        file_systems: Arc::clone(&plan.ground.file_systems),
        pace: Arc::new(readings::Pace::new(plan.rereading.bytes_per_second)),
        ..Default::default()
    };
    let reader = || {
        let batcher = Batcher::new(batches.clone(), budget.clone(), runtime.clone(), Arc::clone(counters));
        Reader::new(batcher, shared.clone(), Arc::clone(counters), stop.clone())
    };
    let mut own_reader = reader();
    let early = early::take(plan, &mut own_reader, stop)?;
    own_reader.flush()?;
    let (jobs, job_queue) = crossbeam_channel::bounded::<compare::ReadJob>(JOB_QUEUE);
    let names = Names { reader: own_reader, links: Links::new(Arc::clone(&shared.held_files)) };
    let mut steps = StepQueue::new(SpoolWriter::create(&plan.work)?, names);
    let (compared, read) = thread::scope(|scope| {
        let readers: Vec<_> = (0..plan.threads.max(1))
            .map(|_| {
                let (job_queue, mut reader) = (job_queue.clone(), reader());
                scope.spawn(move || read_or_stop(&job_queue, &mut reader, counters, stop))
            })
            .collect();
        drop(job_queue);
        let compared = compare::compare(plan, early, &mut steps, &jobs, counters, &shared.held_files, stop);
        drop(jobs);
        let compared = compared.and_then(|compared| Ok((compared, steps.finish()?)));
        if compared.is_err() {
            stop.cancel();
        }
        let mut read = Ok(());
        for reader in readers {
            if let Err(error) = reader.join().expect("readers do not panic")
                && matches!(read, Ok(()) | Err(ReadError::Stopped))
            {
                read = Err(error);
            }
        }
        (compared, read)
    });
    let (compared, ((kept, dropped_or_replaced), mut names)) = match (read, compared) {
        (Ok(()), compared) => compared?,
        // Of two errors one is the cause: that a part was stopped is never it.
        (Err(ReadError::Stopped), Err(compared)) => return Err(compared),
        (Err(read), _) => return Err(read.into()),
    };
    let Compared { late_jobs, gone, basis_entries, vanished, standing, moved } = compared;
    counters.vanished.add(vanished);
    let mut late = LateOutcomes::new();
    for (number, job) in late_jobs {
        let is_there = plan.late_files.before(job.path())?;
        let outcome = match job {
            _ if !is_there => Outcome::Vanished,
            LateJob::File(job) => {
                let outcome = names.reader.read(&job)?;
                names.note(&outcome);
                outcome
            }
            LateJob::Further(further) => match names.resolve(*further)? {
                Named::Put(put) => Outcome::Read(put),
                Named::Kept | Named::Vanished => Outcome::Vanished,
            },
        };
        late.insert(number, outcome);
    }
    names.reader.flush()?;
    memory.finish();
    let readings = spool::Readings { rereading: plan.rereading, standing };
    Ok(Replicated { kept, dropped_or_replaced, gone, moved, basis_entries, late, readings })
}

/// Reads until there is nothing more to read. A reader that cannot go on stops everything.
fn read_or_stop(
    jobs: &crossbeam_channel::Receiver<compare::ReadJob>,
    reader: &mut Reader,
    counters: &Counters,
    stop: &CancellationToken,
) -> Result<(), ReadError> {
    let result = read_all(jobs, reader, counters);
    if result.is_err() {
        stop.cancel();
        // The walk may wait for a file that is in here, and would for ever: nobody else may be left to take it out. What comes
        // after this is followed by the walk's look at the token.
        while jobs.try_recv().is_ok() {}
    }
    result
}

fn read_all(
    jobs: &crossbeam_channel::Receiver<compare::ReadJob>,
    reader: &mut Reader,
    counters: &Counters,
) -> Result<(), ReadError> {
    loop {
        let job = match jobs.try_recv() {
            Ok(job) => job,
            Err(crossbeam_channel::TryRecvError::Disconnected) => break,
            Err(crossbeam_channel::TryRecvError::Empty) => {
                // Nothing to do at once: let go of what is held.
                reader.flush()?;
                match jobs.recv() {
                    Ok(job) => job,
                    Err(crossbeam_channel::RecvError) => break,
                }
            }
        };
        counters.set_current(&job.job.path);
        let outcome = reader.read(&job.job)?;
        // The walk is gone only when it failed, and then it says why.
        drop(job.outcome.send(outcome));
    }
    reader.flush()
}
