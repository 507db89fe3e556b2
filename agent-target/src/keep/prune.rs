//! Removes what no rule keeps.
//!
//! 1. What is there is read: numbers, times. Without a lock.
//! 2. Under a lease of the repository, while no run and no check is under way: [`decide`], then each generation to go is renamed
//!    to `trash/N` — from here on nobody finds it. A generation that is held stays. A run or a check that begins preempts this
//!    after the rename that is under way. A crash leaves each generation on the one side or the other, whole.
//! 3. Both folders are synced. A crash before this may bring a generation back, whole: nothing of it is deleted yet.
//! 4. Without the lease, and as nice as it gets, what is in `trash` is deleted. A crash leaves a part of it, which the next start
//!    or the next pruning deletes.
//!
//! So a run waits for some renames, never for a tree to be unlinked. Hints of the chunk index for what went stay, and are not
//! believed: whoever follows one finds no file, or compares the digest of what is there.

use assay_common::id::{GenerationNumber, RunId};
use jiff::Timestamp;

use super::{
    pins::Pins,
    retention::{Candidate, Decision, State, decide},
    scrub,
};
use crate::{
    repository::{Repository, occupancy::Refusal},
    store::{Record, StoreError},
};

/// Why nothing is pruned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PruneError {
    /// No rule says what is kept, so all of it is.
    #[error("repository {repository} has no [repository.retention]: nothing is ever pruned")]
    NoRetention {
        /// The repository.
        repository: String,
    },
    /// A run or a check is under way.
    #[error("run {0} is under way")]
    Busy(RunId),
    /// It is not known what operators hold on to.
    #[error("nothing is pruned, because it is not known what is pinned: {0}")]
    Pins(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a pruning decided, and did unless it was only asked.
#[derive(Debug)]
pub struct Pruned {
    /// On every generation, oldest first.
    pub decisions: Vec<Decision>,
    /// Those that are gone.
    pub gone: Vec<GenerationNumber>,
}

/// Decides, and removes unless `dry_run`. What is removed is in the trash when this returns: [`crate::store::Store::clear_trash`]
/// frees its room.
///
/// # Errors
/// [`PruneError`]. With [`PruneError::Store`] some may be gone already, each of them whole.
pub fn prune(repository: &Repository, now: Timestamp, dry_run: bool) -> Result<Pruned, PruneError> {
    let Some(retention) = &repository.config.retention else {
        return Err(PruneError::NoRetention { repository: repository.config.name.clone() });
    };
    let records = records(repository)?;
    let lease = match dry_run {
        true => None,
        false => Some(repository.occupancy.prune().map_err(|refusal| match refusal {
            Refusal::Busy { run, .. } => PruneError::Busy(run),
            Refusal::NoSuchRun | Refusal::NotNow => {
                unreachable!("a pruning is refused because of a run alone")
            }
        })?),
    };
    // Held until the end: what is pinned meanwhile is pinned before or after.
    let pins = repository.pins();
    let known = pins.as_ref().map_err(|error| PruneError::Pins(error.to_string()))?;
    let candidates = candidates(repository, &records, known);
    let decisions = decide(retention, &candidates, repository.store.verified(), now);
    let mut gone = Vec::new();
    if let Some(lease) = &lease {
        for decision in decisions.iter().filter(|decision| decision.is_prune()) {
            if lease.is_preempted() {
                break;
            }
            let number = decision.number;
            // A restore may hold it, in this process or, at the store itself, in another one.
            let Some(_alone) = repository.store.alone(number) else { continue };
            match repository.holds.unless_held(number, || repository.store.discard(number)) {
                None => {}
                Some(discarded) => {
                    discarded?;
                    gone.push(number);
                }
            }
        }
    }
    drop(pins);
    drop(lease);
    if !gone.is_empty() {
        repository.store.settle_trash()?;
        let (oldest, newest) = (gone.first().map(|it| it.0), gone.last().map(|it| it.0));
        tracing::info!(repository = repository.config.name, count = gone.len(), oldest, newest, "pruned");
    }
    Ok(Pruned { decisions, gone })
}

/// The records of all generations. One that cannot be read is no candidate: what is not understood is kept.
fn records(repository: &Repository) -> Result<Vec<Record>, StoreError> {
    let numbers = repository.store.generations()?;
    let records = numbers.into_iter().filter_map(|number| match repository.store.record(number) {
        Ok(record) if record.generation == number.0 => Some(record),
        Ok(_) => {
            tracing::warn!(repository = repository.config.name, %number, "another generation's record; it is kept");
            None
        }
        Err(error) => {
            tracing::warn!(repository = repository.config.name, %number, %error, "a generation without a record is kept");
            None
        }
    });
    Ok(records.collect())
}

fn candidates(repository: &Repository, records: &[Record], pins: &Pins) -> Vec<Candidate> {
    let candidates = records.iter().map(|record| {
        let number = GenerationNumber(record.generation);
        Candidate {
            number,
            sealed: record.sealed,
            mark: record.mark.time,
            state: state(repository, number),
            pinned: pins.get(number).is_some(),
            in_use: repository.holds.is_held(number),
        }
    });
    candidates.collect()
}

/// What is known of a generation.
fn state(repository: &Repository, number: GenerationNumber) -> State {
    use assay_common::verdict::Outcome;
    match repository.standing(number) {
        Some(Outcome::Pass) if repository.rot().has(number) => State::Rotten,
        Some(Outcome::Pass) => State::Verified,
        Some(Outcome::Fail) => State::Failed,
        _ => State::Unproven,
    }
}

/// After a verdict: heals what can be healed now, prunes, and frees the room. On a thread that may be slow. What cannot be done now comes after the next
/// verdict.
pub fn after_verdict(repository: &Repository) {
    // The run may have brought what a rotten file lacked.
    scrub::heal_known(repository);
    let name = &repository.config.name;
    match prune(repository, Timestamp::now(), false) {
        Ok(_) | Err(PruneError::NoRetention { .. }) => {}
        Err(PruneError::Busy(_)) => tracing::debug!(repository = name, "a run is under way: pruned after it"),
        Err(error) => tracing::error!(repository = name, %error, "nothing is pruned"),
    }
    clear_trash(repository);
}

/// Deletes what was pruned, behind everything else that this host does. On a thread that has nothing else to do: it keeps the
/// niceness.
pub fn clear_trash(repository: &Repository) {
    rustix::process::setpriority_process(None, 19).ok();
    if let Err(error) = repository.store.clear_trash() {
        tracing::error!(repository = repository.config.name, %error, "what was pruned cannot be deleted");
    }
}

#[cfg(test)]
mod tests;
