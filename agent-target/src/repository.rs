//! One repository on the target: who may write to it now, and what is being done to it.
//!
//! | who | while a run receives | while a run seals | while a check runs |
//! | --- | --- | --- | --- |
//! | OpenRun of the same run | takes it up again; the older stream ends | refused, busy | refused, busy |
//! | Transfer of the same run | takes the older stream's place once that has ended | refused | refused |
//! | OpenRun of another run | refused, busy, while a stream is attached; else takes over | refused, busy | refused, busy |
//! | CheckRun of the same run | refused | refused | follows the check |
//! | ReportReadings of the same run | refused | refused | taken while it is waited for |
//! | VerifyGeneration, RunControl, Bisect | refused, busy | refused, busy | refused, busy |
//! | PruneGenerations | refused, busy | refused, busy | refused, busy |
//!
//! A pruning that a verdict brings about comes after the next one when it meets any of these. It holds the lock while it renames
//! what goes, and what anybody holds ([`Repository::holds`]) stays.
//!
//! What is done by the clock ([`crate::trust::schedule`]) begins only while nothing of this is under way, and OpenRun and every
//! check end it. A negative control that has lost its turn to runs several times begins all the same, and OpenRun does not end it.
//!
//! All of it is decided under one lock, which is never held across a wait.

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use assay_common::{
    digest::ContentDigest,
    error::IoContext as _,
    fault::{self, Point},
    fidelity::{CopyRules, FsLimits},
    id::{GenerationNumber, RunId},
    ledger::{Ledger, LedgerError},
    limits::MAX_MANIFEST_STREAMS,
    signing::{SigningKey, VerifyingKey},
    verdict::{
        self, HexDigest, NegativeControl, Outcome, Trust, Verdict, VerdictError, sign_control, sign_verdict,
        unverified_verdict, verify_control,
    },
    watch::{Ended, Watch},
};
use assay_proto::v1::ReadAgain;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    ahead::copies::Copies,
    config,
    failed_runs::FailedRuns,
    keep::{
        holds::Holds,
        pins::{PinError, Pins},
        rot::Rot,
    },
    observe,
    receive::Receiver,
    store::{
        FILE_BYTES, Held, Record, Staging, Store, StoreError,
        index::{ChunkIndex, IndexError},
    },
    trust::second::Desk,
};

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
    /// Files that the run's source is to read again before FAIL is said.
    pub read_again: Option<Arc<[ReadAgain]>>,
    /// Set at the end: the verdict's id and envelope, or why there is none.
    pub done: Option<Result<(String, String), String>>,
}

/// What is known of a run since it was opened.
#[derive(Debug, Clone, Copy)]
pub struct Opened {
    /// When, by this host's clock.
    pub time: jiff::Timestamp,
    /// The number that its source chose; `None` from a source that knows no coverage.
    pub nonce: Option<HexDigest>,
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
        /// Ends the stream that is attached, when another takes its place. `None`: no stream is attached.
        attached: Option<CancellationToken>,
        /// When the run was opened, and with what.
        opened: Opened,
    },
    /// Names arrive, or the generation is being sealed.
    Sealing,
    /// Sealed and not checked yet.
    Sealed,
    /// An operator's checks run, on generations that are there.
    Examining,
    /// A check runs.
    Checking(watch::Receiver<CheckState>),
}

/// The folder in a store in which its file system is tried out.
const PROBE: &str = "probe";

/// A generation to build upon, and its files that are known to be rotten.
pub type NextBase = (GenerationNumber, HashSet<Vec<u8>>);

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
    /// Where second readings of the run that is being checked arrive.
    pub desk: Desk,
    /// How it stands, for all who ask and for those who are told.
    pub watch: Arc<Watch>,
    /// Verdicts that the agent before this one has told nobody.
    untold: Mutex<Vec<Ended>>,
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
    ledger: Ledger,
    standings: Mutex<BTreeMap<GenerationNumber, Standing>>,
    /// What the newest negative control of each checker says.
    trust: Mutex<TrustTable>,
    signing_key: Arc<SigningKey>,
    active: Mutex<Option<Active>>,
    /// Slots for manifests that are being sent.
    pub manifest_streams: Arc<Semaphore>,
    /// Runs that failed lately.
    pub failed_runs: FailedRuns,
    /// What the ledger takes.
    ledger_held: Mutex<Held>,
    /// Runs that have a verdict.
    ended_runs: Mutex<HashSet<RunId>>,
    /// What is done by the clock.
    background: Mutex<Option<Background>>,
    /// Turns in a row that a negative control lost to runs.
    lost_turns: AtomicU32,
    /// What the store's file system holds, with the device that it was found out on.
    limits: Mutex<Option<(u64, FsLimits)>>,
}

/// What is done by the clock now.
struct Background {
    /// Ends it.
    token: CancellationToken,
    /// It has lost so many turns to runs that it goes on beside them.
    insists: bool,
}

/// Turns that a negative control loses to runs before it goes on beside them: with a run every minute it would never come to its
/// end otherwise.
const LOST_TURNS: u32 = 3;

/// What the ledger says of a generation. It is read once, when the repository is opened; nobody else writes to the ledger.
#[derive(Debug, Clone)]
struct Standing {
    /// Its newest verdict.
    last: String,
    /// The newest that is PASS or FAIL.
    conclusive: Option<Conclusive>,
}

/// A verdict that is PASS or FAIL.
#[derive(Debug, Clone)]
struct Conclusive {
    id: String,
    outcome: Outcome,
    /// Whose word it is.
    checker: Option<Checker>,
}

impl Repository {
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
        let index = ChunkIndex::open_or_create(&store.path().join("index.redb"))?;
        let source_key = VerifyingKey::load(&config.source_key)?;
        let rot = Rot::load(&store.path().join("scrub.json"));
        let pins = Pins::load(&store.path().join("pins.json"));
        if let Err(error) = &pins {
            tracing::error!(repository = config.name, %error, "nothing is pruned until it is known what is pinned");
        }
        let mut repository = Self {
            config,
            store: Arc::new(store),
            index: Arc::new(Mutex::new(index)),
            source_key,
            desk: Desk::default(),
            watch: Arc::default(),
            holds: Holds::default(),
            copies: Arc::new(copies),
            turn: Arc::default(),
            healing: Mutex::default(),
            pins: Mutex::new(pins),
            rot: Mutex::new(rot),
            ledger,
            untold: Mutex::default(),
            standings: Mutex::default(),
            trust: Mutex::default(),
            signing_key,
            active: Mutex::new(None),
            manifest_streams: Arc::new(Semaphore::new(MAX_MANIFEST_STREAMS)),
            failed_runs: FailedRuns::default(),
            ledger_held: Mutex::default(),
            ended_runs: Mutex::default(),
            background: Mutex::new(None),
            lost_turns: AtomicU32::new(0),
            limits: Mutex::new(None),
        };
        repository.learn_standings();
        repository.settle_verified()?;
        let (watch, untold) = observe::learn(&repository);
        repository.watch = Arc::new(watch);
        repository.untold = Mutex::new(untold);
        Ok(repository)
    }

    /// What is being done now.
    pub fn active(&self) -> MutexGuard<'_, Option<Active>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What operators hold on to, or why that is not known.
    pub fn pins(&self) -> MutexGuard<'_, Result<Pins, PinError>> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What scrubs found.
    pub fn rot(&self) -> MutexGuard<'_, Rot> {
        self.rot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something that is done by the clock may begin, unless anything is under way. It ends when the token is cancelled.
    pub fn begin_background(&self) -> Option<CancellationToken> {
        self.begin(false)
    }

    /// The same for a negative control. One that has lost its turn to runs again and again begins beside them and goes on.
    pub fn begin_control(&self) -> Option<CancellationToken> {
        let begun = self.begin(self.lost_turns.load(Ordering::Relaxed) >= LOST_TURNS);
        if begun.is_none() {
            self.control_lost_its_turn();
        }
        begun
    }

    /// A negative control could not begin, or was ended by a run.
    pub fn control_lost_its_turn(&self) {
        self.lost_turns.fetch_add(1, Ordering::Relaxed);
    }

    /// A negative control has come to its end.
    pub fn control_had_its_turn(&self) {
        self.lost_turns.store(0, Ordering::Relaxed);
    }

    fn begin(&self, insists: bool) -> Option<CancellationToken> {
        // In this order everywhere: a run that is opened meanwhile finds the token.
        let active = self.active();
        let mut background = self.background.lock().unwrap_or_else(PoisonError::into_inner);
        if (active.is_some() && !insists) || background.is_some() {
            return None;
        }
        let token = CancellationToken::new();
        *background = Some(Background { token: token.clone(), insists });
        Some(token)
    }

    /// What was done by the clock has ended.
    pub fn end_background(&self, cancel: &CancellationToken) {
        cancel.cancel();
        *self.background.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Ends what is done by the clock, because an operator wants something. It shares nothing with it but the machine, so
    /// nobody waits for its end.
    pub fn give_way(&self) {
        self.end_background_unless(|_| false);
    }

    /// The same because a run is opened; a negative control that insists goes on.
    pub fn give_way_to_run(&self) {
        self.end_background_unless(|background| background.insists);
    }

    fn end_background_unless(&self, stays: impl Fn(&Background) -> bool) {
        self.copies.stop();
        let background = self.background.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(background) = background.as_ref().filter(|background| !stays(background)) {
            background.token.cancel();
        }
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

    fn standings(&self) -> MutexGuard<'_, BTreeMap<GenerationNumber, Standing>> {
        self.standings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn trust(&self) -> MutexGuard<'_, TrustTable> {
        self.trust.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn learn_standings(&self) {
        let mut standings: BTreeMap<GenerationNumber, Standing> = BTreeMap::new();
        let mut ended_runs = self.ended_runs.lock().unwrap_or_else(PoisonError::into_inner);
        *self.ledger_held.lock().unwrap_or_else(PoisonError::into_inner) = measure(self.ledger.folder());
        for (id, verdict) in self.verdicts() {
            self.trust().learn(&verdict);
            ended_runs.insert(verdict.run_id.clone());
            if verdict.outcome != Outcome::Pass {
                self.failed_runs.note(verdict.times.signed);
            }
            if let Some(generation) = verdict.generation {
                // Newest first: what came before does not count any more.
                let standing = standings
                    .entry(generation)
                    .or_insert_with(|| Standing { last: id.clone(), conclusive: None });
                if standing.conclusive.is_none() && is_conclusive(verdict.outcome) {
                    let checker = Checker::of(&verdict);
                    standing.conclusive = Some(Conclusive { id, outcome: verdict.outcome, checker });
                }
            }
        }
        *self.standings() = standings;
        self.learn_control();
    }

    /// The control that is kept counts for the checker that the configuration names now.
    fn learn_control(&self) {
        if let Some(control) = self.control() {
            self.trust().add(Checker::Digest(self.checker().0), &control);
            if let Some(profile) = control.profile {
                self.trust().add(Checker::Profile(profile.0), &control);
            }
        }
    }

    /// What the newest negative control of the checker that gave this verdict says; `None` when there was none.
    pub fn trust_in(&self, verdict: &Verdict) -> Option<Trust> {
        self.trust().of(Checker::of(verdict).as_ref())
    }

    /// True for a generation whose last conclusive verdict is a PASS that counts: its checker has found damage in its newest
    /// negative control.
    pub fn is_proven(&self, generation: GenerationNumber) -> bool {
        let conclusive = self.standings().get(&generation).and_then(|standing| standing.conclusive.clone());
        conclusive.is_some_and(|conclusive| {
            conclusive.outcome == Outcome::Pass
                && self.trust().of(conclusive.checker.as_ref()) == Some(Trust::Trusted)
        })
    }

    /// As if the ledger said so.
    #[cfg(test)]
    pub(crate) fn set_standing(&self, generation: GenerationNumber, outcome: Outcome) {
        let (last, checker) = ("000000001".to_owned(), Checker::Digest(self.checker().0));
        self.trust().set(checker.clone(), Trust::Trusted);
        let conclusive = Some(Conclusive { id: last.clone(), outcome, checker: Some(checker) });
        self.standings().insert(generation, Standing { last, conclusive });
        self.settle_verified().expect("the link");
    }

    fn verdict(&self, id: &str) -> Option<Verdict> {
        unverified_verdict(&self.ledger.get(id).ok()?).ok()
    }

    /// Takes away the workspaces of checks that are under way, with all that runs and is mounted there: the agent ends.
    pub fn end_checks(&self) {
        let folder = self.store.path().join("workspaces");
        if let Err(error) = crate::workspace::sweep(&folder) {
            tracing::warn!(%error, "a workspace is left behind; the next start removes it");
        }
    }

    /// The verdicts that the agent before this one has told nobody, oldest first; they are to be told now.
    pub fn take_untold(&self) -> Vec<Ended> {
        std::mem::take(&mut *self.untold.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The newest verdict on a generation.
    pub fn last_verdict(&self, generation: GenerationNumber) -> Option<(String, Verdict)> {
        let id = self.standings().get(&generation)?.last.clone();
        let verdict = self.verdict(&id)?;
        Some((id, verdict))
    }

    /// The newest verdict on a generation that is PASS or FAIL.
    pub fn last_conclusive(&self, generation: GenerationNumber) -> Option<(String, Verdict)> {
        let Conclusive { id, .. } = self.standings().get(&generation)?.conclusive.clone()?;
        let verdict = self.verdict(&id)?;
        Some((id, verdict))
    }

    /// The outcome of the newest verdict on a generation that is PASS or FAIL.
    pub fn standing(&self, generation: GenerationNumber) -> Option<Outcome> {
        self.standings().get(&generation)?.conclusive.as_ref().map(|conclusive| conclusive.outcome)
    }

    /// The newest generation that is there, stands before `generation`, whose last conclusive verdict is PASS, and in which no
    /// rot is known.
    pub fn last_pass_before(&self, generation: GenerationNumber) -> Option<GenerationNumber> {
        let standings = self.standings();
        let mut passed = standings.range(..generation).rev().filter(|(number, standing)| {
            matches!(standing.conclusive, Some(Conclusive { outcome: Outcome::Pass, .. }))
                && self.store.generation_path(**number).is_dir()
                && !self.rot().has(**number)
        });
        passed.next().map(|(number, _)| *number)
    }

    /// The newest generation that passed, whether its PASS counts or not: what a negative control damages a copy of.
    pub fn newest_pass(&self) -> Option<GenerationNumber> {
        self.last_pass_before(GenerationNumber(u64::MAX))
    }

    /// The newest generation whose PASS counts and that is there and sound.
    fn newest_proven(&self) -> Option<GenerationNumber> {
        let mut before = self.newest_pass();
        while let Some(generation) = before.filter(|generation| !self.is_proven(*generation)) {
            before = self.last_pass_before(generation);
        }
        before
    }

    /// What the check of this repository is: a digest of its profile and variables. Another profile, or another program in a
    /// variable, is another checker.
    fn check_digest(&self) -> ContentDigest {
        let mut hasher = blake3::Hasher::new();
        let mut add = |text: &str| {
            hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
        };
        add(self.config.profile.digest());
        for (name, value) in &self.config.vars {
            add(name);
            add(&value.texts().len().to_string());
            value.texts().iter().for_each(|text| add(text));
        }
        ContentDigest(*hasher.finalize().as_bytes())
    }

    /// Digest of the checker of this repository, as verdicts name it: a control vouches for verdicts of the same checker only.
    pub fn checker(&self) -> HexDigest {
        self.check_digest().into()
    }

    /// The newest negative control; none when there was none of this check, or when it does not bear this target's signature.
    pub fn control(&self) -> Option<NegativeControl> {
        let bytes = self.store.control().filter(|_| self.store.has_control_of(self.check_digest()))?;
        let name = &self.config.name;
        match verify_control(name, &bytes, &self.signing_key.verifying_key()) {
            Ok(control) => Some(control),
            Err(error) => {
                tracing::error!(repository = name, %error, "the negative control's record is not believed");
                None
            }
        }
    }

    /// Signs a negative control and keeps it in the place of the one before.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn record_control(&self, control: &NegativeControl) -> Result<(), StoreError> {
        let envelope = sign_control(&self.config.name, control, &self.signing_key);
        self.store.set_control(envelope.to_json().as_bytes(), self.check_digest())?;
        self.learn_control();
        self.settle_verified()?;
        observe::proved(self);
        Ok(())
    }

    /// Signs a verdict, appends it to the ledger, and moves `verified`, in this order: a `verified` without
    /// its verdict could never be explained. Returns id and envelope.
    ///
    /// 1. It is signed and appended ([`Ledger::append`]). A crash before its end leaves the generation without a verdict: it
    ///    can be verified again, and is the base of the next run all the same.
    /// 2. `verified` is moved, when this verdict changes which generation it is. A crash before leaves the link where it was;
    ///    opening the repository moves it as the ledger says.
    /// 3. Whoever asked is told. A crash before loses nothing: the source asks again and is given the same verdict.
    ///
    /// # Errors
    /// When the verdict does not hold together, or cannot be written.
    pub fn record_verdict(
        &self,
        build: impl FnOnce(u64, HexDigest) -> Verdict,
    ) -> Result<(String, String), RecordError> {
        let step = |point| fault::at(point).at("write", self.ledger.folder()).map_err(StoreError::from);
        let (mut about, mut run, mut ended, mut failed) = (None, None, None, false);
        step(Point::Sign)?;
        let id = self.ledger.append(|sequence, previous| {
            let verdict = build(sequence, previous);
            about = verdict.generation.map(|generation| (generation, verdict.outcome, Checker::of(&verdict)));
            run = Some(verdict.run_id.clone());
            failed = verdict.outcome != Outcome::Pass;
            ended = Some(Ended::of_verdict("", &verdict));
            sign_verdict(&verdict, &self.signing_key)
        })?;
        let id = id.to_string();
        let is_first = match &run {
            Some(run) => self.ended_runs.lock().unwrap_or_else(PoisonError::into_inner).insert(run.clone()),
            None => false,
        };
        if is_first && failed {
            self.failed_runs.note(jiff::Timestamp::now());
        }
        if let Some((generation, outcome, checker)) = about {
            let mut standings = self.standings();
            let before = standings.get(&generation).and_then(|standing| standing.conclusive.clone());
            let conclusive = match is_conclusive(outcome) {
                true => Some(Conclusive { id: id.clone(), outcome, checker }),
                false => before,
            };
            standings.insert(generation, Standing { last: id.clone(), conclusive });
        }
        step(Point::LedgerAppended)?;
        self.settle_verified()?;
        step(Point::VerifiedMoved)?;
        observe::ended(self, &id, ended);
        let envelope = self.envelope(&id)?;
        let mut held = self.ledger_held.lock().unwrap_or_else(PoisonError::into_inner);
        *held = held.and(entry_held(envelope.len() as u64));
        Ok((id, envelope))
    }

    /// What the ledger takes.
    pub fn ledger_held(&self) -> Held {
        *self.ledger_held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Points `verified` at the newest generation whose PASS counts ([`Self::is_proven`]). It moves forward only: a new
    /// generation that fails moves nothing, and neither does a checker that turns out to miss damage. A generation that passed
    /// once and fails when it is checked again, or in which rot is found, is not called verified any longer: then `verified`
    /// moves to the newest whose PASS counts, else to the newest before it that passed.
    fn settle_verified(&self) -> Result<(), StoreError> {
        let (verified, proven) = (self.store.verified(), self.newest_proven());
        let Some(current) = verified else {
            return proven.map_or(Ok(()), |proven| self.store.set_verified(proven));
        };
        let is_bad = self.standing(current) == Some(Outcome::Fail) || self.rot().has(current);
        let is_gone = !self.store.generation_path(current).is_dir();
        if is_bad || is_gone {
            return match proven.or_else(|| self.last_pass_before(current)) {
                Some(other) => self.store.set_verified(other),
                None if is_bad => self.store.clear_verified(),
                None => Ok(()),
            };
        }
        match proven {
            Some(proven) if proven > current => self.store.set_verified(proven),
            _ => Ok(()),
        }
    }

    /// True for a run that has a verdict.
    pub fn has_verdict(&self, run_id: &RunId) -> bool {
        self.ended_runs.lock().unwrap_or_else(PoisonError::into_inner).contains(run_id)
    }

    /// Points `verified` where it belongs, after something became known of a generation.
    ///
    /// # Errors
    /// When the link cannot be moved.
    pub fn settle(&self) -> Result<(), StoreError> {
        self.settle_verified()
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

/// Who gave a verdict: a negative control vouches for verdicts of the same checker only.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Checker {
    /// The profile and its variables.
    Digest([u8; 32]),
    /// The profile: verdicts of before there was a coverage name no more.
    Profile([u8; 32]),
}

impl Checker {
    fn of(verdict: &Verdict) -> Option<Self> {
        match (&verdict.coverage, &verdict.profile) {
            (Some(coverage), _) => Some(Self::Digest(coverage.checker.0)),
            (None, Some(profile)) => Some(Self::Profile(profile.digest.0)),
            (None, None) => None,
        }
    }
}

/// What the newest negative control of each checker says.
#[derive(Debug, Default)]
struct TrustTable(BTreeMap<Checker, (jiff::Timestamp, Trust)>);

impl TrustTable {
    /// A control of a checker; one that is older than what is known changes nothing.
    fn add(&mut self, checker: Checker, control: &NegativeControl) {
        let newest = self.0.entry(checker).or_insert((control.time, control.trust()));
        if newest.0 < control.time {
            *newest = (control.time, control.trust());
        }
    }

    /// The control that a verdict embeds is of the checker that gave it.
    fn learn(&mut self, verdict: &Verdict) {
        if let (Some(checker), Some(control)) = (Checker::of(verdict), &verdict.negative_control) {
            self.add(checker, control);
        }
    }

    fn of(&self, checker: Option<&Checker>) -> Option<Trust> {
        self.0.get(checker?).map(|(_, trust)| *trust)
    }

    #[cfg(test)]
    fn set(&mut self, checker: Checker, trust: Trust) {
        self.0.insert(checker, (jiff::Timestamp::now(), trust));
    }
}

/// What a ledger's entry takes.
fn entry_held(bytes: u64) -> Held {
    Held { content: 0, overhead: bytes.saturating_add(FILE_BYTES), inodes: 1 }
}

/// What all entries of a ledger take.
fn measure(ledger: &Path) -> Held {
    let entries = std::fs::read_dir(ledger).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| entry.metadata().ok()).filter(std::fs::Metadata::is_file);
    sizes.fold(Held::default(), |sum, stat| sum.and(entry_held(stat.len())))
}

fn is_conclusive(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Pass | Outcome::Fail)
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
