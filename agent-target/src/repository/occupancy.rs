//! Who has a repository, and for how long: one lock, and a lease for whoever was admitted.
//!
//! [`admit`] decides, under the lock and without a wait. Whoever is admitted gets a [`Lease`] and does the file work under the
//! lease, outside of the lock: handlers, `status` and metrics never wait for a disk. A lease ends in one of two ways: by the step
//! that the work was for ([`Lease::receive`], [`Lease::sealed`], [`Lease::done`]), or by being dropped, on an error and on a panic
//! alike. Then it puts back what was before, so that nothing but a lease that lives keeps the next run waiting.
//!
//! Background work has leases as well. An admission preempts it: it cancels the lease's token. Nobody waits for the end of a
//! scrub, a check by the clock or a negative control, because they share nothing with a run but the machine. A pruning removes
//! generations, so a run that is opened waits until the rename that is under way has ended.

mod admission;
mod lease;

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use assay_common::{
    id::{GenerationNumber, RunId},
    verdict::HexDigest,
};
use assay_proto::v1::ReadAgain;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use admission::{Activity, Admission, Background, Busy, Refusal, Request, admit};
use admission::{hurries, preempts};
pub use lease::{
    ByTheClock, Checking, CopyingAhead, Examining, Lease, Opening, Phase, Pruning, Receiving, Sealing,
};

use crate::{receive::Receiver, store::Staging};

/// Turns that a negative control loses to runs before it goes on beside them: with a run every minute it would never come to its
/// end otherwise.
const LOST_TURNS: u32 = 3;

/// How a check stands, for those who follow it.
#[derive(Debug, Clone, Default)]
pub struct CheckState {
    /// The step that runs.
    pub step: String,
    /// Which of the profile's steps it is, from 1, and how many there are.
    pub step_of: Option<(u32, u32)>,
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
    /// The newest form of statements that source and target both read.
    pub statements: u32,
    /// Somebody asked for a check that carries no result.
    pub full_check: bool,
}

/// What an open run writes to.
#[derive(Clone)]
pub struct Reception {
    /// Where content goes.
    pub staging: Arc<Staging>,
    /// The generation that the run builds upon.
    pub base: Option<GenerationNumber>,
    /// What takes the content, across streams.
    pub receiver: Arc<Receiver>,
    /// When the run was opened, and with what.
    pub opened: Opened,
}

/// Tells the leases of one repository apart.
type Ticket = u64;

/// The owner of a repository's state.
#[derive(Clone, Default)]
pub struct Occupancy(Arc<Shared>);

#[derive(Default)]
struct Shared {
    table: Mutex<Table>,
    /// A lease has ended that somebody may wait for.
    changed: Condvar,
}

/// The state, for this module alone.
#[derive(Default)]
pub struct Table {
    held: Held,
    clock: Option<Clock>,
    ahead: Option<Ahead>,
    /// Turns in a row that a negative control lost to runs.
    lost_turns: u32,
    last_ticket: Ticket,
}

/// Who has the repository. Without a lease it is one of the first three.
#[derive(Default)]
enum Held {
    #[default]
    Free,
    Open {
        run: RunId,
        reception: Reception,
        stream: Option<Stream>,
        /// When the last stream ended, or the run was opened.
        quiet_since: Instant,
    },
    Sealed {
        run: RunId,
    },
    Leased {
        ticket: Ticket,
        work: Work,
        /// Never leased itself.
        before: Box<Held>,
    },
}

/// What a lease is for.
enum Work {
    Open(RunId),
    Seal(RunId),
    Check(RunId, watch::Receiver<CheckState>),
    Examine(RunId),
    Prune(CancellationToken),
}

/// The stream that is attached to a run.
struct Stream {
    ticket: Ticket,
    token: CancellationToken,
}

/// Background work by the clock or of an operator's.
struct Clock {
    ticket: Ticket,
    token: CancellationToken,
    insists: bool,
}

/// Large files that are being copied ahead.
struct Ahead {
    ticket: Ticket,
    token: CancellationToken,
}

impl Held {
    fn activity(&self) -> Activity {
        match self {
            Self::Free => Activity::Free,
            Self::Open { run, stream: None, .. } => Activity::WaitingForSource(run.clone()),
            Self::Open { run, .. } => Activity::Receiving(run.clone()),
            Self::Sealed { run } => Activity::Sealed(run.clone()),
            Self::Leased { work, .. } => match work {
                Work::Open(run) => Activity::Opening(run.clone()),
                Work::Seal(run) => Activity::Sealing(run.clone()),
                Work::Check(run, _) => Activity::Checking(run.clone()),
                Work::Examine(run) => Activity::Examining(run.clone()),
                Work::Prune(_) => Activity::Pruning,
            },
        }
    }

    fn reception(&self) -> Option<(&RunId, &Reception)> {
        match self {
            Self::Open { run, reception, .. } => Some((run, reception)),
            _ => None,
        }
    }
}

impl Table {
    fn background(&self) -> Background {
        match &self.clock {
            None => Background::None,
            Some(Clock { insists: false, .. }) => Background::Preemptible,
            Some(Clock { insists: true, .. }) => Background::Insistent,
        }
    }

    fn next_ticket(&mut self) -> Ticket {
        self.last_ticket += 1;
        self.last_ticket
    }

    /// The work begins; `before` stays to be put back.
    fn lease(&mut self, work: Work) -> Ticket {
        let ticket = self.next_ticket();
        let before = Box::new(std::mem::take(&mut self.held));
        debug_assert!(!matches!(*before, Held::Leased { .. }), "admitted beside another lease");
        self.held = Held::Leased { ticket, work, before };
        ticket
    }

    /// Ends a lease: `next` is made of what was before it. False when it has ended already.
    fn end_lease(&mut self, ticket: Ticket, next: impl FnOnce(Held) -> Held) -> bool {
        match &mut self.held {
            Held::Leased { ticket: held, before, .. } if *held == ticket => {
                self.held = next(std::mem::take(&mut **before));
                true
            }
            _ => false,
        }
    }

    fn preempt_background(&self) {
        if let Some(clock) = &self.clock {
            clock.token.cancel();
        }
        self.preempt_ahead();
    }

    fn preempt_ahead(&self) {
        if let Some(ahead) = &self.ahead {
            ahead.token.cancel();
        }
    }
}

/// How a source's wish for a check was met.
pub enum CheckAdmission {
    /// The check of this run is under way.
    Follow(watch::Receiver<CheckState>),
    /// It may begin.
    Begin(Lease<Checking>, watch::Receiver<CheckState>),
}

/// What a repository is doing, for `status` and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Now {
    /// The run that has it.
    pub run: RunId,
    /// What is being done, in words.
    pub doing: String,
}

impl Occupancy {
    fn table(&self) -> MutexGuard<'_, Table> {
        // A panic leaves the table whole: every change is one assignment.
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the table, and wakes whoever waits for that.
    fn change<T>(&self, change: impl FnOnce(&mut Table) -> T) -> T {
        let changed = change(&mut self.table());
        self.0.changed.notify_all();
        changed
    }

    fn lease_of<P: Phase>(&self, ticket: Ticket, phase: P) -> Lease<P> {
        Lease { occupancy: self.clone(), ticket, phase }
    }

    /// Decides a request, when what takes a moment has ended. On a thread that may wait.
    fn admit(&self, request: Request<'_>) -> Result<(MutexGuard<'_, Table>, Admission), Refusal> {
        let mut table = self.table();
        loop {
            match admit(&table.held.activity(), table.background(), request) {
                Admission::Refuse(refusal) => return Err(refusal),
                Admission::Wait => {
                    if let (true, Held::Leased { work: Work::Prune(token), .. }) =
                        (hurries(request), &table.held)
                    {
                        token.cancel();
                    }
                    table = self.0.changed.wait(table).unwrap_or_else(PoisonError::into_inner);
                }
                admitted => {
                    if preempts(request, table.background()) {
                        table.preempt_background();
                    } else if hurries(request) {
                        table.preempt_ahead();
                    }
                    return Ok((table, admitted));
                }
            }
        }
    }

    /// Begins to open a run. A stream that is attached to the same run ends.
    ///
    /// # Errors
    /// When another run has the repository, or this one is past receiving.
    pub fn open(&self, run: &RunId) -> Result<Lease<Opening>, Refusal> {
        let (mut table, _) = self.admit(Request::OpenRun(run))?;
        if let Held::Open { stream, .. } = &mut table.held
            && let Some(stream) = stream.take()
        {
            stream.token.cancel();
        }
        let before = table.held.reception().map(|(run, reception)| (run.clone(), reception.clone()));
        let ticket = table.lease(Work::Open(run.clone()));
        drop(table);
        Ok(self.lease_of(ticket, Opening { before }))
    }

    /// Attaches a stream of content to its run. An older stream ends.
    ///
    /// # Errors
    /// When the run is not open.
    pub fn attach(&self, run: &RunId) -> Result<Lease<Receiving>, Refusal> {
        let (mut table, _) = self.admit(Request::Transfer(run))?;
        let ticket = table.next_ticket();
        let Held::Open { reception, stream, .. } = &mut table.held else { return Err(Refusal::NoSuchRun) };
        let token = CancellationToken::new();
        if let Some(before) = stream.replace(Stream { ticket, token: token.clone() }) {
            before.token.cancel();
        }
        let receiver = Arc::clone(&reception.receiver);
        drop(table);
        Ok(self.lease_of(ticket, Receiving { receiver, token }))
    }

    /// Begins to seal a run.
    ///
    /// # Errors
    /// When the run is not open, or a stream is attached to it.
    pub fn seal(&self, run: &RunId) -> Result<Lease<Sealing>, Refusal> {
        let (mut table, _) = self.admit(Request::SealRun(run))?;
        let Some((_, reception)) = table.held.reception() else { return Err(Refusal::NoSuchRun) };
        let reception = reception.clone();
        let ticket = table.lease(Work::Seal(run.clone()));
        drop(table);
        Ok(self.lease_of(ticket, Sealing { reception }))
    }

    /// Begins the check of a run's generation, or follows the one that is under way.
    ///
    /// # Errors
    /// When something else has the repository.
    pub fn check(&self, run: &RunId) -> Result<CheckAdmission, Refusal> {
        let (mut table, admission) = self.admit(Request::CheckRun(run))?;
        if let (Admission::Follow, Held::Leased { work: Work::Check(_, states), .. }) =
            (admission, &table.held)
        {
            return Ok(CheckAdmission::Follow(states.clone()));
        }
        let (lease, states) = self.begin_check(&mut table, run);
        Ok(CheckAdmission::Begin(lease, states))
    }

    /// Begins an operator's check of the generation that `run` made.
    ///
    /// # Errors
    /// When something else has the repository.
    pub fn verify(&self, run: &RunId) -> Result<(Lease<Checking>, watch::Receiver<CheckState>), Refusal> {
        let (mut table, _) = self.admit(Request::Verify)?;
        Ok(self.begin_check(&mut table, run))
    }

    fn begin_check(&self, table: &mut Table, run: &RunId) -> (Lease<Checking>, watch::Receiver<CheckState>) {
        let (sender, states) = watch::channel(CheckState::default());
        let ticket = table.lease(Work::Check(run.clone(), states.clone()));
        (self.lease_of(ticket, Checking { states: Some(sender) }), states)
    }

    /// Begins an operator's negative control or bisection, in the name of the run that made a generation.
    ///
    /// # Errors
    /// When something else has the repository.
    pub fn examine(&self, run: &RunId) -> Result<Lease<Examining>, Refusal> {
        let (mut table, _) = self.admit(Request::Examine)?;
        let ticket = table.lease(Work::Examine(run.clone()));
        drop(table);
        Ok(self.lease_of(ticket, Examining))
    }

    /// Begins to prune generations.
    ///
    /// # Errors
    /// When something else has the repository.
    pub fn prune(&self) -> Result<Lease<Pruning>, Refusal> {
        let (mut table, _) = self.admit(Request::Prune)?;
        let token = CancellationToken::new();
        let ticket = table.lease(Work::Prune(token.clone()));
        drop(table);
        Ok(self.lease_of(ticket, Pruning { token }))
    }

    /// Begins to remove what runs left that did not come to their end. A run that waits for its source ends, and is returned.
    ///
    /// # Errors
    /// When something has the repository. Nobody waits here.
    pub fn discard(&self) -> Result<(Lease<Pruning>, Option<Reception>), Refusal> {
        let (mut table, _) = self.admit(Request::Discard)?;
        let reception = table.held.reception().map(|(_, reception)| reception.clone());
        if reception.is_some() {
            table.held = Held::Free;
        }
        let token = CancellationToken::new();
        let ticket = table.lease(Work::Prune(token.clone()));
        drop(table);
        Ok((self.lease_of(ticket, Pruning { token }), reception))
    }

    /// True if [`Self::discard`] would begin, and no run has waited for its source for less than `patience`.
    pub fn may_discard(&self, patience: Duration) -> bool {
        let table = self.table();
        if let Held::Open { quiet_since, .. } = &table.held
            && quiet_since.elapsed() < patience
        {
            return false;
        }
        admit(&table.held.activity(), table.background(), Request::Discard) == Admission::Begin
    }

    /// A source gives its run up: what the run has written to, unless it is sealed.
    ///
    /// # Errors
    /// When the run is not open, or is being sealed or checked.
    pub fn abandon(&self, run: &RunId) -> Result<Option<Reception>, Refusal> {
        let (mut table, _) = self.admit(Request::AbandonRun(run))?;
        let Held::Open { reception, stream, .. } = std::mem::take(&mut table.held) else { return Ok(None) };
        if let Some(stream) = stream {
            stream.token.cancel();
        }
        Ok(Some(reception))
    }

    /// Begins background work, unless anything is under way.
    pub fn begin_background(&self) -> Option<Lease<ByTheClock>> {
        self.begin_by_the_clock(Request::Background)
    }

    /// Begins a negative control by the clock. One that has lost its turn to runs again and again begins beside them and goes on.
    pub fn begin_control(&self) -> Option<Lease<ByTheClock>> {
        let insists = self.table().lost_turns >= LOST_TURNS;
        let begun =
            self.begin_by_the_clock(if insists { Request::InsistentControl } else { Request::Background });
        if begun.is_none() {
            self.control_lost_its_turn();
        }
        begun
    }

    fn begin_by_the_clock(&self, request: Request<'_>) -> Option<Lease<ByTheClock>> {
        let (mut table, _) = self.admit(request).ok()?;
        let (ticket, token) = (table.next_ticket(), CancellationToken::new());
        let insists = request == Request::InsistentControl;
        table.clock = Some(Clock { ticket, token: token.clone(), insists });
        drop(table);
        Some(self.lease_of(ticket, ByTheClock { token }))
    }

    /// A negative control could not begin, or was ended by a run.
    pub fn control_lost_its_turn(&self) {
        self.table().lost_turns += 1;
    }

    /// A negative control has come to its end.
    pub fn control_had_its_turn(&self) {
        self.table().lost_turns = 0;
    }

    /// Large files may be copied ahead until the token that `begin` gives is cancelled, unless anything is under way.
    pub fn begin_copying_ahead(
        &self,
        begin: impl FnOnce() -> CancellationToken,
    ) -> Option<Lease<CopyingAhead>> {
        let (mut table, _) = self.admit(Request::CopyAhead).ok()?;
        let (ticket, token) = (table.next_ticket(), begin());
        table.ahead = Some(Ahead { ticket, token: token.clone() });
        drop(table);
        Some(self.lease_of(ticket, CopyingAhead { token }))
    }

    /// Ends background work, because an operator wants something. It shares nothing with it but the machine, so nobody waits for
    /// its end.
    pub fn preempt_background(&self) {
        self.table().preempt_background();
    }

    /// The run that has the repository and what it does; `None` while no run has it.
    pub fn now(&self) -> Option<Now> {
        let table = self.table();
        let held = match &table.held {
            Held::Leased { work: Work::Prune(_), before, .. } => &**before,
            held => held,
        };
        let activity = held.activity();
        let doing = match (&activity, held) {
            (_, Held::Leased { work: Work::Check(_, states), .. }) => match states.borrow().step.as_str() {
                "" => "checking".to_owned(),
                step => format!("checking: {step}"),
            },
            (activity, _) => activity.text().to_owned(),
        };
        Some(Now { run: activity.run()?.clone(), doing })
    }

    /// True while the generation of a run is being checked, or waits for that.
    pub fn is_checking(&self, run: &RunId) -> bool {
        self.table().held.activity() == Activity::Checking(run.clone())
    }

    /// Waits until the check of a run has ended, which somebody has told to end. On a thread that may wait.
    pub fn check_has_ended(&self, run: &RunId) {
        let checking = Activity::Checking(run.clone());
        let mut table = self.table();
        while table.held.activity() == checking {
            table = self.0.changed.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// True while a run is being opened, content comes in, or it is sealed.
    pub fn is_receiving(&self) -> bool {
        let activity = self.table().held.activity();
        matches!(activity, Activity::Opening(_) | Activity::Receiving(_) | Activity::Sealing(_))
    }

    /// True if this run may have been sealed without its source having heard of it.
    pub fn may_be_sealed(&self, run: &RunId) -> bool {
        let table = self.table();
        let held = match &table.held {
            Held::Leased { work: Work::Prune(_), before, .. } => &**before,
            held => held,
        };
        match held {
            Held::Free => true,
            Held::Sealed { run: sealed } => sealed == run,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests;
