//! The decision: what a request may do in a state. Pure, so that a test can go through every pair.
//!
//! | request | free | a run is being opened | a run waits for its source | a stream is attached | being sealed | sealed | being checked | generations are pruned |
//! | --- | --- | --- | --- | --- | --- | --- | --- | --- |
//! | OpenRun of the same run | begins | waits | takes it up again | takes it up again; the older stream ends | busy | busy | busy | waits |
//! | OpenRun of another run | begins | waits | takes over | busy | busy | begins | busy | waits |
//! | Transfer of the same run | no such run | no such run | begins | takes the older stream's place | no such run | no such run | no such run | no such run |
//! | SealRun of the same run | no such run | busy | begins | busy | busy | busy | busy | no such run |
//! | CheckRun of the same run | begins | busy | busy | busy | busy | begins | follows the check | waits |
//! | AbandonRun of the same run | no such run | waits | begins | begins | busy | begins | busy | waits |
//! | VerifyGeneration, RunControl, Bisect | begins | busy | busy | busy | busy | begins | busy | waits |
//! | PruneGenerations | begins | busy | busy | busy | busy | begins | busy | waits |
//! | DiscardAbandoned | begins | not now | ends the run | busy | busy | begins | busy | not now |
//! | background work | begins | not now | not now | not now | not now | not now | not now | waits |
//!
//! Opening a run and pruning take a moment, so whoever can wait for their end waits.

use assay_common::id::RunId;

/// Who has the repository now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Activity {
    /// Nobody.
    Free,
    /// A run is being opened.
    Opening(RunId),
    /// A run is open, and no stream of content is attached to it.
    WaitingForSource(RunId),
    /// A stream of content is attached to a run.
    Receiving(RunId),
    /// A run is being sealed.
    Sealing(RunId),
    /// A run is sealed and has no verdict yet.
    Sealed(RunId),
    /// The generation of a run is being checked.
    Checking(RunId),
    /// An operator's negative control or bisection runs.
    Examining(RunId),
    /// Generations are being pruned.
    Pruning,
}

/// Background work that is under way. It shares nothing with a run but the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Background {
    /// None.
    None,
    /// A scrub, a check by the clock or a negative control.
    Preemptible,
    /// A negative control that has lost its turn to runs too often: it goes on beside them.
    Insistent,
}

/// What somebody wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request<'a> {
    /// A source opens a run.
    OpenRun(&'a RunId),
    /// A source attaches a stream of content to its run.
    Transfer(&'a RunId),
    /// A source seals its run.
    SealRun(&'a RunId),
    /// A source asks for the verdict on its run.
    CheckRun(&'a RunId),
    /// A source gives its run up.
    AbandonRun(&'a RunId),
    /// An operator has a generation checked again.
    Verify,
    /// An operator asks for a negative control or a bisection.
    Examine,
    /// Generations that no rule keeps are to be removed.
    Prune,
    /// What runs left that did not come to their end is to be removed. Never waits: whoever asks may have another repository.
    Discard,
    /// Background work is due.
    Background,
    /// A negative control is due that has lost its turn to runs too often.
    InsistentControl,
    /// Large files are to be copied ahead of the next run.
    CopyAhead,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// It begins.
    Begin,
    /// A check of this run is under way: the request follows it.
    Follow,
    /// Work that takes a moment is under way: the request is decided again when that has ended.
    Wait,
    /// It may not begin.
    Refuse(Refusal),
}

/// Why a request may not begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// A run has the repository.
    Busy {
        /// The run.
        run: RunId,
        /// In which way.
        why: Busy,
    },
    /// The run is not open.
    NoSuchRun,
    /// Background work begins only while nothing else is under way.
    NotNow,
}

/// In which way a run has the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Busy {
    /// It is under way.
    UnderWay,
    /// It is open, and its source sends nothing.
    WaitsForSource,
    /// It is being sealed or checked.
    SealedOrChecked,
    /// It is sealed.
    SealedAlready,
    /// It is not in a state in which it can be sealed.
    NotReadyToSeal,
}

impl Busy {
    /// What is said of the run.
    pub fn text(self) -> &'static str {
        match self {
            Self::UnderWay | Self::WaitsForSource => "is under way",
            Self::SealedOrChecked => "is being sealed or checked",
            Self::SealedAlready => "is sealed already",
            Self::NotReadyToSeal => "is not ready to be sealed",
        }
    }
}

impl Activity {
    /// The run that has the repository.
    pub fn run(&self) -> Option<&RunId> {
        match self {
            Self::Free | Self::Pruning => None,
            Self::Opening(run)
            | Self::WaitingForSource(run)
            | Self::Receiving(run)
            | Self::Sealing(run)
            | Self::Sealed(run)
            | Self::Checking(run)
            | Self::Examining(run) => Some(run),
        }
    }

    /// What is being done, in words.
    pub fn text(&self) -> &'static str {
        match self {
            Self::Free => "nothing",
            Self::Opening(_) => "opening",
            Self::WaitingForSource(_) => "waiting for its source",
            Self::Receiving(_) => "receiving",
            Self::Sealing(_) => "sealing",
            Self::Sealed(_) => "sealed, not checked yet",
            Self::Checking(_) => "checking",
            Self::Examining(_) => "an operator's checks",
            Self::Pruning => "pruning",
        }
    }

    fn busy(&self, why: Busy) -> Admission {
        // Nobody is refused because of a run that is not there.
        self.run().cloned().map_or(Admission::Wait, |run| Admission::Refuse(Refusal::Busy { run, why }))
    }
}

/// Decides what a request may do now.
pub fn admit(activity: &Activity, background: Background, request: Request<'_>) -> Admission {
    use Activity::{
        Checking, Examining, Free, Opening, Pruning, Receiving, Sealed, Sealing, WaitingForSource,
    };
    let no_such_run = Admission::Refuse(Refusal::NoSuchRun);
    let is_same = |id: &RunId| activity.run() == Some(id);
    match request {
        Request::OpenRun(id) => match activity {
            // A run that is sealed and not checked: its source went away. The generation stays, without a verdict.
            Free | WaitingForSource(_) => Admission::Begin,
            Sealed(_) if is_same(id) => activity.busy(Busy::SealedAlready),
            Sealed(_) => Admission::Begin,
            // The source has given the connection of the older stream up, whether or not this host has noticed.
            Receiving(_) if is_same(id) => Admission::Begin,
            Receiving(_) => activity.busy(Busy::UnderWay),
            Sealing(_) | Checking(_) | Examining(_) => activity.busy(Busy::SealedOrChecked),
            Opening(_) | Pruning => Admission::Wait,
        },
        Request::Transfer(id) => match activity {
            WaitingForSource(_) | Receiving(_) if is_same(id) => Admission::Begin,
            _ => no_such_run,
        },
        Request::SealRun(id) => match activity {
            WaitingForSource(_) if is_same(id) => Admission::Begin,
            _ if is_same(id) => activity.busy(Busy::NotReadyToSeal),
            _ => no_such_run,
        },
        Request::CheckRun(id) => match activity {
            Checking(_) if is_same(id) => Admission::Follow,
            Sealed(_) if is_same(id) => Admission::Begin,
            // The agent was restarted between seal and check.
            Free => Admission::Begin,
            Pruning => Admission::Wait,
            _ => activity.busy(Busy::UnderWay),
        },
        Request::AbandonRun(id) => match activity {
            Opening(_) | Pruning => Admission::Wait,
            WaitingForSource(_) | Receiving(_) | Sealed(_) if is_same(id) => Admission::Begin,
            Sealing(_) | Checking(_) | Examining(_) if is_same(id) => activity.busy(Busy::SealedOrChecked),
            _ => no_such_run,
        },
        Request::Verify | Request::Examine => match activity {
            Free | Sealed(_) => Admission::Begin,
            Pruning => Admission::Wait,
            WaitingForSource(_) => activity.busy(Busy::WaitsForSource),
            _ => activity.busy(Busy::UnderWay),
        },
        Request::Prune => match activity {
            Free | Sealed(_) => Admission::Begin,
            Pruning => Admission::Wait,
            _ => activity.busy(Busy::UnderWay),
        },
        Request::Discard => match activity {
            Free | Sealed(_) | WaitingForSource(_) => Admission::Begin,
            Opening(_) | Pruning => Admission::Refuse(Refusal::NotNow),
            _ => activity.busy(Busy::UnderWay),
        },
        Request::Background | Request::InsistentControl if background != Background::None => {
            Admission::Refuse(Refusal::NotNow)
        }
        Request::InsistentControl => Admission::Begin,
        Request::Background | Request::CopyAhead => match activity {
            Free => Admission::Begin,
            Pruning => Admission::Wait,
            _ => Admission::Refuse(Refusal::NotNow),
        },
    }
}

/// True if an admitted request ends the background work that is under way. A run leaves a negative control that insists alone;
/// an operator's request does not.
pub(super) fn preempts(request: Request<'_>, background: Background) -> bool {
    match request {
        Request::OpenRun(_) | Request::CheckRun(_) => background == Background::Preemptible,
        Request::Verify | Request::Examine => background != Background::None,
        _ => false,
    }
}

/// True if a request ends large files being copied ahead, and a pruning that is under way.
pub(super) fn hurries(request: Request<'_>) -> bool {
    matches!(request, Request::OpenRun(_) | Request::CheckRun(_) | Request::Verify | Request::Examine)
}
