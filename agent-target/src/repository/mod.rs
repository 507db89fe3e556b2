//! One repository on the target.
//!
//! - [`abandoned`]: what runs left that did not come to their end;
//! - [`history`]: its verdicts in short;
//! - `keys`: the keys with which its ledger goes on;
//! - [`occupancy`]: who has it now, and what may begin beside that;
//! - [`verdicts`]: what is known of its generations, and which one is called verified;
//! - `telling`: the order in which verdicts are told.

pub mod abandoned;
pub mod history;
pub(crate) mod keys;
pub mod occupancy;
mod telling;
pub mod verdicts;

use std::{
    collections::HashSet,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
};

use assay_common::{
    cli::show,
    fidelity::{CopyRules, FsLimits},
    id::{GenerationNumber, RunId},
    keyring::Keyring,
    ledger::{Ledger, LedgerError},
    limits::MAX_MANIFEST_STREAMS,
    signing::SigningKey,
    watch::Watch,
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{
    ahead::copies::Copies,
    check_queue::{CheckQueue, CheckSlot, NotStarted, Wanted},
    config,
    failed_runs::FailedRuns,
    keep::{
        holds::Holds,
        pins::{PinError, Pins},
        rot::Rot,
    },
    observe,
    store::{
        Record, Store, StoreError,
        index::{ChunkIndex, IndexError},
    },
    trust::second::Desk,
};

pub use occupancy::{CheckState, Occupancy, Opened};
use telling::Untold;
use verdicts::Verdicts;
pub use verdicts::times_now;

/// Bytes of paths that a source is told to read again at most: they must fit into a message.
const MAX_ROTTEN_BYTES: usize = 1024 * 1024;

/// Why a repository cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Its store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Its chunk index.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The source's public keys, or the agent's own key is not the one that the ledger goes on with.
    #[error(transparent)]
    Key(#[from] assay_common::signing::KeyError),
    /// Left-over workspaces cannot be cleared away.
    #[error(transparent)]
    Workspace(#[from] crate::workspace::WorkspaceError),
}

/// The folder in a store in which its file system is tried out.
const PROBE: &str = "probe";

/// A generation to build upon, and its files that are known to be rotten.
pub type NextBase = (GenerationNumber, HashSet<Vec<u8>>);

/// One repository.
pub struct Repository {
    /// Its configuration.
    pub config: config::Repository,
    /// Who has it now.
    pub occupancy: Occupancy,
    /// Cancelled when the agent ends: a check that is under way then records nothing.
    pub ending: CancellationToken,
    /// Its store.
    pub store: Arc<Store>,
    /// Its chunk index.
    pub index: Arc<Mutex<ChunkIndex>>,
    /// The source's pinned keys.
    pub source_keys: Keyring,
    /// Where second readings of the run that is being checked arrive.
    pub desk: Desk,
    /// How it stands, for all who ask and for those who are told.
    pub watch: Arc<Watch>,
    /// Verdicts that were told to nobody yet.
    untold: Untold,
    /// Generations that are being used.
    pub holds: Holds,
    /// Large files that were copied ahead.
    pub copies: Arc<Copies>,
    /// Held by a stream of content until all that it brought is settled, whatever has become of its run: what another run takes over
    /// from its staging area is written to by nobody else.
    pub turn: Arc<tokio::sync::Mutex<()>>,
    /// Held while something is healed: a scrub that was told to end may be at it still.
    pub healing: Mutex<()>,
    pins: Mutex<Result<Pins, PinError>>,
    rot: Mutex<Rot>,
    verdicts: Verdicts,
    /// Slots for manifests that are being sent.
    pub manifest_streams: Arc<Semaphore>,
    /// Runs that failed lately.
    pub failed_runs: FailedRuns,
    /// Where its checks wait beside those of the agent's other repositories.
    pub checks: Arc<CheckQueue>,
    /// What the store's file system holds, with the device that it was found out on.
    limits: Mutex<Option<(u64, FsLimits)>>,
    /// The other repositories of this agent.
    neighbours: OnceLock<Vec<Weak<Self>>>,
}

impl Repository {
    /// Waits until a check of this repository may start. `step` hears how many are before it.
    ///
    /// # Errors
    /// When it was cancelled, or has waited for too long.
    pub fn check_slot(
        &self,
        wanted: Wanted,
        cancel: &CancellationToken,
        step: &dyn Fn(&str),
    ) -> Result<CheckSlot, NotStarted> {
        let proven = self.watch.standing().last_pass.and_then(|pass| pass.mark.or(Some(pass.finished)));
        let waited = std::cell::Cell::new(false);
        let slot = self.checks.wait((&self.config.name, wanted), proven, cancel, &|before| {
            waited.set(true);
            step(&format!("waiting for a check slot, {}", show::queued(before)));
        });
        if waited.get() {
            step("");
        }
        slot
    }

    /// What the file system of the store holds; `None` when there is too little room to try it out, or nothing can be made there.
    pub fn store_limits(&self) -> Option<FsLimits> {
        use std::os::unix::fs::MetadataExt as _;
        let path = self.store.path();
        let device = std::fs::metadata(path).ok()?.dev();
        let mut known = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, limits)) = known.as_ref().filter(|(on, _)| *on == device) {
            return Some(limits.clone());
        }
        let limits = match FsLimits::probe(path, PROBE) {
            Ok(limits) => limits?,
            Err(error) => {
                let repository = &self.config.name;
                tracing::warn!(repository, %error, "it cannot be tried out what the store's file system holds");
                return None;
            }
        };
        *known = Some((device, limits.clone()));
        Some(limits)
    }

    /// What is taken from the source. A property of btrfs is taken where the store is on one.
    pub fn copy_rules(&self) -> CopyRules {
        let mut rules = self.config.copy_rules.clone();
        if self.store_limits().is_some_and(|limits| limits.file_system == "btrfs") {
            rules.attributes.push("btrfs.compression".to_owned());
        }
        rules
    }

    /// Opens a repository below the store's folder and puts right what a crash may have left:
    ///
    /// 1. what is left of checks is ended, workspaces and their mounts are cleared away, and files that were being written;
    /// 2. `latest` is pointed at the newest sealed generation (a crash between seal and link);
    /// 3. `verified` is pointed where the ledger says (a crash between verdict and link).
    ///
    /// # Errors
    /// When the store cannot be used.
    pub fn open(
        store: &Path,
        config: config::Repository,
        signing_key: Arc<SigningKey>,
        own_keys: &Keyring,
    ) -> Result<Self, OpenError> {
        let store = Store::open_or_create(&store.join(&config.name))?;
        crate::check::sweep_groups();
        crate::workspace::sweep(&store.path().join("workspaces"))?;
        store.remove_unfinished()?;
        let copies = Copies::open(&store.path().join("copies")).map_err(StoreError::from)?;
        if let Some(latest) = store.latest()? {
            store.set_latest(latest)?;
        }
        let ledger =
            Ledger::open(&store.path().join("ledger"))?.with_reserve(store.path().join("ledger.reserve"));
        let place = store.path().join("index.redb");
        let index = match ChunkIndex::open_or_create(&place) {
            // The agent must start on a full disk, or nobody could prune: what an unfinished run left goes first.
            Err(error) if error.is_full() => {
                tracing::warn!(%error, "the content that an unfinished run left is removed");
                store.forget_staged()?;
                ChunkIndex::open_or_create(&place)?
            }
            opened => opened?,
        };
        let source_keys = Keyring::load(&config.source_key)?;
        let rot = Rot::load(&store.path().join("scrub.json"));
        let pins = Pins::load(&store.path().join("pins.json"));
        if let Err(error) = &pins {
            tracing::error!(repository = config.name, %error, "nothing is pruned until it is known what is pinned");
        }
        let mut repository = Self {
            config,
            occupancy: Occupancy::default(),
            ending: CancellationToken::new(),
            store: Arc::new(store),
            index: Arc::new(Mutex::new(index)),
            source_keys,
            desk: Desk::default(),
            watch: Arc::default(),
            holds: Holds::default(),
            copies: Arc::new(copies),
            turn: Arc::default(),
            healing: Mutex::default(),
            pins: Mutex::new(pins),
            rot: Mutex::new(rot),
            untold: Untold::default(),
            verdicts: Verdicts::new(ledger, signing_key, own_keys.clone()),
            manifest_streams: Arc::new(Semaphore::new(MAX_MANIFEST_STREAMS)),
            failed_runs: FailedRuns::default(),
            checks: Arc::default(),
            limits: Mutex::new(None),
            neighbours: OnceLock::new(),
        };
        let keys = repository.learn_verdicts();
        repository.follow_keys(&keys)?;
        repository.settle()?;
        let (watch, untold) = observe::learn(&repository);
        repository.watch = Arc::new(watch);
        repository.untold = Untold::of(untold);
        Ok(repository)
    }

    /// What operators hold on to, or why that is not known.
    pub fn pins(&self) -> MutexGuard<'_, Result<Pins, PinError>> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What scrubs found.
    pub fn rot(&self) -> MutexGuard<'_, Rot> {
        self.rot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes away the workspaces of checks that are under way, with all that runs and is mounted there: the agent ends.
    pub fn end_checks(&self) {
        self.ending.cancel();
        self.occupancy.preempt_background();
        let folder = self.store.path().join("workspaces");
        if let Err(error) = crate::workspace::sweep(&folder) {
            tracing::warn!(%error, "a workspace is left behind; the next start removes it");
        }
    }

    /// Tells of the verdicts that were told to nobody yet, also of those that the agent before this one left, oldest first.
    pub fn tell_verdicts(&self) {
        self.untold.tell_each(|ended| observe::ended(self, ended));
    }

    /// The generation that the next run builds upon: the newest whose manifest is sound and whose rotten files can be named.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn next_base(&self) -> Result<Option<NextBase>, StoreError> {
        let rot = self.rot();
        let mut generations = self.store.generations()?.into_iter().rev();
        Ok(generations.find_map(|number| {
            let paths = rot.paths(number);
            let bytes: usize = paths.iter().map(Vec::len).sum();
            (!rot.is_unusable(number) && bytes <= MAX_ROTTEN_BYTES).then_some((number, paths))
        }))
    }

    /// The generation that a run has sealed.
    pub fn generation_of_run(&self, run_id: &RunId) -> Option<Record> {
        let latest = self.store.latest().ok()??;
        self.store.record(latest).ok().filter(|record| record.run_id == run_id.as_str())
    }
}
