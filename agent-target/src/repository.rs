//! One repository on the target: who may write to it now, and what is being done to it.
//!
//! | who | while a run receives | while a run seals | while a check runs |
//! | --- | --- | --- | --- |
//! | OpenRun of the same run | takes it up again; the older stream ends | refused, busy | refused, busy |
//! | Transfer of the same run | takes the older stream's place once that has ended | refused | refused |
//! | OpenRun of another run | refused, busy, while a stream is attached; else takes over | refused, busy | refused, busy |
//! | CheckRun of the same run | refused | refused | follows the check |
//! | VerifyGeneration | refused, busy | refused, busy | refused, busy |
//!
//! All of it is decided under one lock, which is never held across a wait.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use assay_common::{
    id::{GenerationNumber, RunId},
    ledger::{Ledger, LedgerError},
    signing::{SigningKey, VerifyingKey},
    verdict::{self, HexDigest, Outcome, Verdict, VerdictError, sign_verdict, unverified_verdict},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    config,
    receive::Receiver,
    store::{
        Record, Staging, Store, StoreError,
        index::{ChunkIndex, IndexError},
    },
};

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
    /// The source's public key.
    #[error(transparent)]
    Key(#[from] assay_common::signing::KeyError),
    /// Left-over workspaces cannot be cleared away.
    #[error(transparent)]
    Workspace(#[from] crate::workspace::WorkspaceError),
}

/// How a check stands, for those who follow it.
#[derive(Debug, Clone, Default)]
pub struct CheckState {
    /// The step that runs.
    pub step: String,
    /// Set at the end: the verdict's id and envelope, or why there is none.
    pub done: Option<Result<(String, String), String>>,
}

/// What is being done now.
pub enum Stage {
    /// Content arrives.
    Receiving {
        /// Where to.
        staging: Arc<Staging>,
        /// The generation that the run builds upon.
        base: Option<GenerationNumber>,
        /// What takes it, across streams.
        receiver: Arc<Receiver>,
        /// Held by the stream that is attached, until all that it brought is settled.
        turn: Arc<tokio::sync::Mutex<()>>,
        /// Ends the stream that is attached, when another takes its place. `None`: no stream is attached.
        attached: Option<CancellationToken>,
        /// When the run was opened.
        opened: jiff::Timestamp,
    },
    /// Names arrive, or the generation is being sealed.
    Sealing,
    /// Sealed and not checked yet.
    Sealed,
    /// A check runs.
    Checking(watch::Receiver<CheckState>),
}

/// A run, or a check that an operator asked for.
pub struct Active {
    /// Its id.
    pub run_id: RunId,
    /// What it does now.
    pub stage: Stage,
}

/// One repository.
pub struct Repository {
    /// Its configuration.
    pub config: config::Repository,
    /// Its store.
    pub store: Arc<Store>,
    /// Its chunk index.
    pub index: Arc<Mutex<ChunkIndex>>,
    /// The source's pinned key.
    pub source_key: VerifyingKey,
    ledger: Ledger,
    signing_key: Arc<SigningKey>,
    active: Mutex<Option<Active>>,
}

impl Repository {
    /// Opens a repository below the store's folder and puts right what a crash may have left:
    ///
    /// 1. what is left of checks is ended, and workspaces and their mounts are cleared away;
    /// 2. `latest` is pointed at the newest sealed generation (a crash between seal and link);
    /// 3. `verified` is pointed where the ledger says (a crash between verdict and link).
    ///
    /// # Errors
    /// When the store cannot be used.
    pub fn open(
        store: &Path,
        config: config::Repository,
        signing_key: Arc<SigningKey>,
    ) -> Result<Self, OpenError> {
        let store = Store::open_or_create(&store.join(&config.name))?;
        crate::check::sweep_groups();
        crate::workspace::sweep(&store.path().join("workspaces"))?;
        if let Some(latest) = store.latest()? {
            store.set_latest(latest)?;
        }
        let ledger = Ledger::open(&store.path().join("ledger"))?;
        let index = ChunkIndex::open_or_create(&store.path().join("index.redb"))?;
        let source_key = VerifyingKey::load(&config.source_key)?;
        let repository = Self {
            config,
            store: Arc::new(store),
            index: Arc::new(Mutex::new(index)),
            source_key,
            ledger,
            signing_key,
            active: Mutex::new(None),
        };
        repository.settle_verified()?;
        Ok(repository)
    }

    /// What is being done now.
    pub fn active(&self) -> MutexGuard<'_, Option<Active>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The repository is free again, if it was this run that had it.
    pub fn release(&self, run_id: &RunId) {
        let mut active = self.active();
        if active.as_ref().is_some_and(|active| active.run_id == *run_id) {
            *active = None;
        }
    }

    /// The verdicts in the ledger with their ids, newest first. What is not a verdict is left out here: `ledger verify`
    /// tells of it.
    pub fn verdicts(&self) -> impl Iterator<Item = (String, Verdict)> + '_ {
        let ids = self.ledger.entries().unwrap_or_default();
        ids.into_iter().filter_map(|id| {
            let id = id.to_string();
            let envelope = self.ledger.get(&id).ok()?;
            Some((id, unverified_verdict(&envelope).ok()?))
        })
    }

    /// A verdict's envelope.
    ///
    /// # Errors
    /// When there is none with this id.
    pub fn envelope(&self, id: &str) -> Result<String, LedgerError> {
        Ok(String::from_utf8_lossy(&self.ledger.get(id)?).into_owned())
    }

    /// The newest verdict on a generation.
    pub fn last_verdict(&self, generation: GenerationNumber) -> Option<(String, Verdict)> {
        self.verdicts().find(|(_, verdict)| verdict.generation == Some(generation))
    }

    /// Signs a verdict, appends it to the ledger, and moves `verified`, in this order: a `verified` without
    /// its verdict could never be explained. A crash in between is put right when the repository is opened. Returns id and
    /// envelope.
    ///
    /// # Errors
    /// When the verdict does not hold together, or cannot be written.
    pub fn record_verdict(
        &self,
        build: impl FnOnce(u64, HexDigest) -> Verdict,
    ) -> Result<(String, String), RecordError> {
        let id = self
            .ledger
            .append(|sequence, previous| sign_verdict(&build(sequence, previous), &self.signing_key))?;
        self.settle_verified()?;
        let id = id.to_string();
        let envelope = self.envelope(&id)?;
        Ok((id, envelope))
    }

    /// Points `verified` at the newest generation whose last conclusive verdict is PASS. A new generation that fails moves
    /// nothing; a generation that passed once and fails when it is checked again is not called verified any longer.
    fn settle_verified(&self) -> Result<(), StoreError> {
        let mut last: BTreeMap<GenerationNumber, Outcome> = BTreeMap::new();
        for (_, verdict) in self.verdicts() {
            if let (Some(generation), Outcome::Pass | Outcome::Fail) = (verdict.generation, verdict.outcome) {
                // Newest first: what came before does not count any more.
                last.entry(generation).or_insert(verdict.outcome);
            }
        }
        let passed = last
            .iter()
            .rev()
            .find(|(generation, outcome)| {
                **outcome == Outcome::Pass && self.store.generation_path(**generation).is_dir()
            })
            .map(|(generation, _)| *generation);
        match (passed, self.store.verified()) {
            (Some(passed), verified) if verified != Some(passed) => self.store.set_verified(passed),
            (None, Some(verified)) if last.get(&verified) == Some(&Outcome::Fail) => {
                self.store.clear_verified()
            }
            _ => Ok(()),
        }
    }

    /// The generation that a run has sealed.
    pub fn generation_of_run(&self, run_id: &RunId) -> Option<Record> {
        let latest = self.store.latest().ok()??;
        self.store.record(latest).ok().filter(|record| record.run_id == run_id.as_str())
    }
}

/// Why a verdict is not recorded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The link to the verified generation.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The verdict.
    #[error(transparent)]
    Verdict(#[from] VerdictError),
}

/// The times of a verdict that has none yet.
pub fn times_now() -> verdict::Times {
    verdict::Times {
        opened: None,
        sealed: None,
        check_started: None,
        check_finished: None,
        signed: jiff::Timestamp::now(),
    }
}
