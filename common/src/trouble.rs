//! What is wrong with this agent itself, as against with what it protects: a state folder that cannot be written, a task that panicked,
//! a clock that jumped, a history that is not the one it knows.
//!
//! One list in the process. Metrics, `status`, the health service and notices all come from it, so that none of them can say that all
//! is well while another does not.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;

use crate::error::without_codes;

/// What kind of trouble, by a short stable word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// The folder of the agent's state cannot be written.
    StateUnusable,
    /// The target's store cannot be written.
    StoreUnusable,
    /// A task of the agent panicked, and was started again.
    TaskPanicked,
    /// The wall clock jumped.
    ClockJumped,
    /// The newest proof is dated in the future.
    ClockAhead,
    /// The schedule has no further slot.
    NoSlot,
    /// The other end does not have the history that this one holds, or another source writes here.
    HistoryDiffers,
    /// The log cannot be written.
    LogUnwritable,
    /// Connections cannot be accepted: the process or the host has no descriptors left.
    CannotAccept,
    /// Certificates that were put in place of those in use are refused.
    RenewalRefused,
    /// The target signs with another key than before, which an operator had announced.
    TargetKeyChanged,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::StateUnusable,
        Self::StoreUnusable,
        Self::TaskPanicked,
        Self::ClockJumped,
        Self::ClockAhead,
        Self::NoSlot,
        Self::HistoryDiffers,
        Self::LogUnwritable,
        Self::CannotAccept,
        Self::RenewalRefused,
        Self::TargetKeyChanged,
    ];

    /// The word in metrics, notices and documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::StateUnusable => "state-unusable",
            Self::StoreUnusable => "store-unusable",
            Self::TaskPanicked => "task-panicked",
            Self::ClockJumped => "clock-jumped",
            Self::ClockAhead => "clock-ahead",
            Self::NoSlot => "no-slot",
            Self::HistoryDiffers => "history-differs",
            Self::LogUnwritable => "log-unwritable",
            Self::CannotAccept => "cannot-accept",
            Self::RenewalRefused => "renewal-refused",
            Self::TargetKeyChanged => "target-key-changed",
        }
    }

    /// True for what keeps the agent from its work: the health service says `NOT_SERVING` meanwhile.
    pub fn stops_work(self) -> bool {
        matches!(self, Self::StateUnusable | Self::StoreUnusable)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// One trouble.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What kind.
    pub kind: Kind,
    /// The repository that it is about; empty for all of the agent.
    pub repository: String,
    /// For a person.
    pub message: String,
    /// Since when it holds.
    pub since: Timestamp,
    /// An event that is over, and is shown until then; `None`: it holds until it is cleared.
    until: Option<Instant>,
}

type Key = (Kind, String);

static LIST: Mutex<BTreeMap<Key, Trouble>> = Mutex::new(BTreeMap::new());

fn list() -> MutexGuard<'static, BTreeMap<Key, Trouble>> {
    LIST.lock().unwrap_or_else(PoisonError::into_inner)
}

fn put(kind: Kind, repository: &str, message: String, until: Option<Instant>) -> bool {
    let key = (kind, repository.to_owned());
    let mut list = list();
    let known = list.get(&key);
    // The same trouble goes on since it began; another event of its kind is a new one.
    let since = known.filter(|known| known.until.is_none()).map(|known| known.since);
    let is_new = since.is_none();
    let since = since.unwrap_or_else(Timestamp::now);
    let message = without_codes(&message);
    let trouble = Trouble { kind, repository: repository.to_owned(), message, since, until };
    list.insert(key, trouble);
    is_new
}

/// Notes a trouble that holds until it is [`clear`]ed, and logs it when it is new.
pub fn raise(kind: Kind, repository: &str, message: impl Into<String>) {
    let message = message.into();
    if put(kind, repository, message.clone(), None) {
        tracing::error!(trouble = kind.as_str(), repository, "{message}");
    }
}

/// Notes an event that is shown for a while, and logs it.
pub fn happened(kind: Kind, repository: &str, shown: Duration, message: impl Into<String>) {
    let message = message.into();
    tracing::warn!(trouble = kind.as_str(), repository, "{message}");
    put(kind, repository, message, Instant::now().checked_add(shown));
}

/// As [`happened`], for a panicking thread: without a word in the log, and not while this list is in use, perhaps by that thread.
pub fn happened_if_free(kind: Kind, repository: &str, shown: Duration, message: String) {
    let until = Instant::now().checked_add(shown);
    let (key, since) = ((kind, repository.to_owned()), Timestamp::now());
    if let Ok(mut list) = LIST.try_lock() {
        list.insert(key, Trouble { kind, repository: repository.to_owned(), message, since, until });
    }
}

/// Says more of an event that is known; one that is not known has [`happened`].
pub fn amend(kind: Kind, repository: &str, shown: Duration, message: String) {
    tracing::warn!(trouble = kind.as_str(), repository, "{message}");
    if let Some(known) = list().get_mut(&(kind, repository.to_owned())) {
        known.message = message;
        return;
    }
    put(kind, repository, message, Instant::now().checked_add(shown));
}

/// As [`raise`], without a word in the log: for the log itself.
pub fn note(kind: Kind, repository: &str, message: impl Into<String>) {
    put(kind, repository, message.into(), None);
}

/// A trouble is over.
pub fn clear(kind: Kind, repository: &str) {
    if let Some(trouble) = list().remove(&(kind, repository.to_owned())) {
        tracing::info!(trouble = kind.as_str(), repository, "over: {}", trouble.message);
    }
}

/// All that hold now.
pub fn all() -> Vec<Trouble> {
    let mut list = list();
    let now = Instant::now();
    list.retain(|_, trouble| trouble.until.is_none_or(|until| now < until));
    list.values().cloned().collect()
}

/// All that hold now, a line each, for `status`.
pub fn lines() -> Vec<String> {
    let line = |trouble: &Trouble| {
        let about =
            if trouble.repository.is_empty() { String::new() } else { format!("{}: ", trouble.repository) };
        let since = trouble.since.strftime("%Y-%m-%d %H:%M:%SZ");
        format!("{about}{} ({}, since {since})", trouble.message, trouble.kind)
    };
    all().iter().map(line).collect()
}

/// True while nothing keeps the agent from its work.
pub fn can_work() -> bool {
    !all().iter().any(|trouble| trouble.kind.stops_work())
}

/// What to tell of the difference between two looks: each new trouble, and each that is over and lasted.
#[derive(Debug, Default)]
pub struct Teller {
    told: BTreeMap<Key, Trouble>,
}

/// A change in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The trouble.
    pub trouble: Trouble,
    /// True when it is over.
    pub is_over: bool,
}

impl Teller {
    /// What has changed since the last look.
    pub fn look(&mut self) -> Vec<Change> {
        self.compare(all())
    }

    fn compare(&mut self, now: Vec<Trouble>) -> Vec<Change> {
        let now: BTreeMap<Key, Trouble> =
            now.into_iter().map(|trouble| ((trouble.kind, trouble.repository.clone()), trouble)).collect();
        let mut changes = Vec::new();
        for (key, trouble) in &self.told {
            if trouble.until.is_none() && !now.contains_key(key) {
                changes.push(Change { trouble: trouble.clone(), is_over: true });
            }
        }
        for (key, trouble) in &now {
            if self.told.get(key).is_none_or(|told| told.since != trouble.since) {
                changes.push(Change { trouble: trouble.clone(), is_over: false });
            }
        }
        self.told = now;
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_trouble_is_told_when_it_begins_and_when_it_is_over() {
        let trouble = |kind, second, until| Trouble {
            kind,
            repository: "app".to_owned(),
            message: "m".to_owned(),
            since: Timestamp::from_second(second).expect("a time"),
            until,
        };
        let full = trouble(Kind::StateUnusable, 1, None);
        let jumped = |second| trouble(Kind::ClockJumped, second, Some(Instant::now()));
        let mut teller = Teller::default();
        let told = |changes: Vec<Change>| {
            changes.iter().map(|change| (change.trouble.kind, change.is_over)).collect::<Vec<_>>()
        };
        assert_eq!(told(teller.compare(vec![full.clone()])), [(Kind::StateUnusable, false)]);
        assert_eq!(told(teller.compare(vec![full.clone(), jumped(2)])), [(Kind::ClockJumped, false)]);
        assert_eq!(told(teller.compare(vec![full, jumped(3)])), [(Kind::ClockJumped, false)]);
        // What only happened is not over: it was never going on.
        assert_eq!(told(teller.compare(Vec::new())), [(Kind::StateUnusable, true)]);
    }

    #[test]
    fn a_trouble_that_goes_on_keeps_its_beginning() {
        raise(Kind::NoSlot, "of-this-test", "first");
        let since = |message: &str| {
            let all = all();
            let found = all.iter().find(|trouble| trouble.repository == "of-this-test").expect("it is there");
            assert_eq!(found.message, message);
            found.since
        };
        let first = since("first");
        raise(Kind::NoSlot, "of-this-test", "second");
        assert_eq!(since("second"), first);
        clear(Kind::NoSlot, "of-this-test");
        assert!(all().iter().all(|trouble| trouble.repository != "of-this-test"));
    }
}
