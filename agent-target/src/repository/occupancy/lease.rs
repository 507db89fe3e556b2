//! Leases: the right to do something to a repository, which ends by itself.

use std::sync::Arc;

use assay_common::id::RunId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{CheckState, Held, Occupancy, Reception, Table, Ticket, Work};
use crate::receive::Receiver;

/// What a lease is for.
pub trait Phase {
    /// Puts back what was before the lease. False when it has ended already.
    fn put_back(&self, table: &mut Table, ticket: Ticket) -> bool {
        table.end_lease(ticket, |before| before)
    }

    /// Tells whoever follows, when the lease has been put back.
    fn tell(&mut self) {}
}

/// The right to do something to a repository, until it is done or this is dropped.
#[must_use = "it ends when it is dropped"]
pub struct Lease<P: Phase> {
    pub(super) occupancy: Occupancy,
    pub(super) ticket: Ticket,
    pub(super) phase: P,
}

impl<P: Phase> Drop for Lease<P> {
    fn drop(&mut self) {
        let was_held = self.occupancy.change(|table| self.phase.put_back(table, self.ticket));
        if was_held && std::thread::panicking() {
            tracing::error!("a task panicked while it had a repository: the repository is as it was before");
        }
        self.phase.tell();
    }
}

/// A run is being opened.
pub struct Opening {
    pub(super) before: Option<(RunId, Reception)>,
}

/// A stream of content is attached to a run.
pub struct Receiving {
    pub(super) receiver: Arc<Receiver>,
    pub(super) token: CancellationToken,
}

/// A run is being sealed.
pub struct Sealing {
    pub(super) reception: Reception,
}

/// A generation is being checked.
pub struct Checking {
    pub(super) states: Option<watch::Sender<CheckState>>,
}

/// An operator's negative control or bisection runs.
pub struct Examining;

/// Generations are being pruned.
pub struct Pruning {
    pub(super) token: CancellationToken,
}

/// Background work is under way.
pub struct ByTheClock {
    pub(super) token: CancellationToken,
}

/// Large files are being copied ahead.
pub struct CopyingAhead {
    pub(super) token: CancellationToken,
}

impl Phase for Opening {}
impl Phase for Sealing {}
impl Phase for Examining {}
impl Phase for Pruning {}
impl Phase for CopyingAhead {
    fn put_back(&self, table: &mut Table, ticket: Ticket) -> bool {
        table.ahead.take_if(|ahead| ahead.ticket == ticket).is_some()
    }
}

impl Phase for Receiving {
    fn put_back(&self, table: &mut Table, ticket: Ticket) -> bool {
        match &mut table.held {
            Held::Open { stream, quiet_since, .. }
                if stream.as_ref().is_some_and(|stream| stream.ticket == ticket) =>
            {
                *stream = None;
                *quiet_since = std::time::Instant::now();
                true
            }
            // Another stream has taken its place, or the run is gone.
            _ => false,
        }
    }
}

impl Phase for Checking {
    fn tell(&mut self) {
        if let Some(states) = self.states.take() {
            let text = match std::thread::panicking() {
                true => "the target has a bug: the check's thread panicked, and its log says where",
                false => {
                    "the check ended without a verdict: it could not start, and the target's log says why"
                }
            };
            states.send_modify(|state| state.done = Some(Err(text.to_owned())));
        }
    }
}

impl Phase for ByTheClock {
    fn put_back(&self, table: &mut Table, ticket: Ticket) -> bool {
        self.token.cancel();
        table.clock.take_if(|clock| clock.ticket == ticket).is_some()
    }
}

impl Lease<Opening> {
    /// The run that was open before, and what it wrote to.
    pub fn before(&self) -> Option<(&RunId, &Reception)> {
        self.phase.before.as_ref().map(|(run, reception)| (run, reception))
    }

    /// The run is open: its source may send content.
    pub fn receive(self, run: RunId, reception: Reception) {
        let open = Held::Open { run, reception, stream: None, quiet_since: std::time::Instant::now() };
        self.occupancy.change(|table| table.end_lease(self.ticket, |_| open));
    }
}

impl Lease<Receiving> {
    /// What takes the content.
    pub fn receiver(&self) -> &Arc<Receiver> {
        &self.phase.receiver
    }

    /// Cancelled when another stream takes this one's place, or the run is given up.
    pub fn token(&self) -> &CancellationToken {
        &self.phase.token
    }
}

impl Lease<Sealing> {
    /// What the run has written to.
    pub fn reception(&self) -> &Reception {
        &self.phase.reception
    }

    /// The generation is there, and waits for its check.
    pub fn sealed(self) {
        self.occupancy.change(|table| {
            table.end_lease(self.ticket, |before| match before {
                Held::Open { run, .. } => Held::Sealed { run },
                other => other,
            })
        });
    }
}

impl Lease<Checking> {
    /// Tells those who follow the check.
    pub fn tell(&self, change: impl FnOnce(&mut CheckState)) {
        if let Some(states) = &self.phase.states {
            states.send_modify(change);
        }
    }

    /// The check has not started and is not wanted any more: the generation waits for one, as before, and whoever follows is told why.
    pub fn give_back(mut self, why: String) {
        if let Some(states) = self.phase.states.take() {
            states.send_modify(|state| state.done = Some(Err(why)));
        }
    }

    /// The check has ended: the repository is free, and whoever follows is told.
    pub fn done(mut self, done: Result<(String, String), String>) {
        self.occupancy.change(|table| {
            let Held::Leased { work: Work::Check(run, _), .. } = &table.held else { return };
            let run = run.clone();
            table.end_lease(self.ticket, |before| match before {
                Held::Sealed { run: sealed } if sealed == run => Held::Free,
                // An operator's check of another generation.
                other => other,
            });
        });
        if let Some(states) = self.phase.states.take() {
            states.send_modify(|state| state.done = Some(done));
        }
    }
}

impl Lease<Pruning> {
    /// True when somebody waits for the repository: what has not been pruned comes another time.
    pub fn is_preempted(&self) -> bool {
        self.phase.token.is_cancelled()
    }
}

impl Lease<ByTheClock> {
    /// Cancelled when something else wants the machine.
    pub fn token(&self) -> &CancellationToken {
        &self.phase.token
    }
}

impl Lease<CopyingAhead> {
    /// Cancelled when a run or a check begins.
    pub fn token(&self) -> &CancellationToken {
        &self.phase.token
    }
}
