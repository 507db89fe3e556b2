//! What runs that did not come to their end left in the store. The next run of the repository takes it over, so it stays as long as there
//! is room. It goes when an operator says so, and when a run of any repository has no room beside it.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use super::{Repository, occupancy::Refusal};
use crate::store::{Staged, StoreError};

/// The file system of a repository's store.
fn device(repository: &Repository) -> Option<u64> {
    use std::os::unix::fs::MetadataExt as _;
    repository.store.path().metadata().map(|stat| stat.dev()).ok()
}

/// Why what was left stays.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiscardError {
    /// A run, a check or a pruning is under way.
    #[error("the repository is in use")]
    Busy(Refusal),
    /// It cannot be removed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A run that lost its source so lately keeps what it brought: its source may be back in a moment.
const PATIENCE: Duration = Duration::from_secs(60);

impl Repository {
    /// Names the other repositories of this agent, once they are all open.
    pub fn know_neighbours(&self, all: &[Arc<Self>]) {
        let others = all.iter().filter(|other| !std::ptr::eq(Arc::as_ptr(other), self));
        // Told once, at the start of the agent.
        self.neighbours.set(others.map(Arc::downgrade).collect()).ok();
    }

    /// Bytes that [`Self::discard_abandoned`] would free; 0 while a run is under way.
    pub fn abandoned_bytes(&self) -> u64 {
        if self.occupancy.may_discard(Duration::ZERO) { self.store.staged().bytes } else { 0 }
    }

    /// Removes what runs that did not come to their end left. A run that waits for its source ends: when the source is back, it opens the
    /// run again, as after a restart of this agent.
    ///
    /// # Errors
    /// When the repository is in use, or it cannot be removed.
    pub fn discard_abandoned(&self) -> Result<Staged, DiscardError> {
        let busy = || DiscardError::Busy(Refusal::NotNow);
        // Its stream may have gone, and what it brought is still being written.
        let _turn = self.turn.try_lock().map_err(|_| busy())?;
        let (_lease, reception) = self.occupancy.discard().map_err(DiscardError::Busy)?;
        if let Some(reception) = reception {
            reception.receiver.stop();
        }
        let held = self.store.staged();
        self.store.forget_staged()?;
        tracing::info!(
            repository = self.config.name,
            bytes = held.bytes,
            "what runs left that did not come to their end was removed"
        );
        Ok(held)
    }

    /// The other repositories whose store is on the same file system.
    fn neighbours(&self) -> impl Iterator<Item = Arc<Self>> {
        let own = device(self);
        let others = self.neighbours.get().into_iter().flatten().filter_map(Weak::upgrade);
        others.filter(move |other| own.is_some() && device(other) == own)
    }

    /// Bytes that other repositories would give up for a run of this one.
    pub fn abandoned_elsewhere(&self) -> u64 {
        self.neighbours().map(|other| other.abandoned_bytes()).fold(0, u64::saturating_add)
    }

    /// Makes room on the disk for a run of this repository at the cost of runs of others that did not come to their end. True if there was
    /// anything to give up.
    pub fn make_room_elsewhere(&self) -> bool {
        let mut freed = false;
        for other in self.neighbours() {
            let copies = match other.occupancy.begin_background() {
                Some(_lease) => other.copies.forget().unwrap_or_else(|error| {
                    tracing::warn!(repository = other.config.name, %error, "copies that were made ahead stay");
                    false
                }),
                None => false,
            };
            let is_left = other.occupancy.may_discard(PATIENCE) && other.store.staged().bytes > 0;
            let staged = if !is_left {
                false
            } else {
                match other.discard_abandoned() {
                    Ok(discarded) => discarded.bytes > 0,
                    Err(DiscardError::Busy(_)) => false,
                    Err(error) => {
                        tracing::warn!(repository = other.config.name, %error, "what an abandoned run left stays");
                        false
                    }
                }
            };
            freed |= copies || staged;
        }
        freed
    }
}

#[cfg(test)]
mod tests {
    use assay_common::id::RunId;

    use super::*;
    use crate::keep::bench::Bench;

    fn leave(repository: &Repository, bytes: usize) {
        let staging = repository.store.open_staging().expect("staging");
        let mut file = staging.open_content(1).expect("create");
        std::io::Write::write_all(&mut file, &vec![1; bytes]).expect("write");
        file.sync_all().expect("blocks are counted when they are on disk");
    }

    #[test]
    fn discard_removes_what_an_abandoned_run_left_and_nothing_else() {
        let bench = Bench::new(None);
        leave(&bench.repository, 100_000);
        assert!(bench.repository.abandoned_bytes() >= 100_000);
        let discarded = bench.repository.discard_abandoned().expect("free");
        assert!(discarded.bytes >= 100_000 && discarded.entries > 0, "{discarded:?}");
        assert_eq!(bench.repository.abandoned_bytes(), 0);
        assert_eq!(bench.repository.discard_abandoned().expect("free").bytes, 0);
    }

    #[test]
    fn a_run_that_is_being_opened_keeps_what_it_takes_over() {
        let bench = Bench::new(None);
        leave(&bench.repository, 4096);
        let run: RunId = "20261122T224501Z-7f3a9c".parse().expect("an id");
        let lease = bench.repository.occupancy.open(&run).expect("free");
        assert_eq!(bench.repository.abandoned_bytes(), 0);
        assert!(matches!(bench.repository.discard_abandoned(), Err(DiscardError::Busy(_))));
        drop(lease);
        assert!(bench.repository.discard_abandoned().expect("free").bytes >= 4096);
    }

    #[test]
    fn a_neighbour_gives_up_what_its_abandoned_run_left() {
        let (one, two) = (Bench::new(None), Bench::new(None));
        let all = [Arc::clone(&one.repository), Arc::clone(&two.repository)];
        all.iter().for_each(|repository| repository.know_neighbours(&all));
        leave(&two.repository, 100_000);
        // The benches' folders are on one file system.
        assert!(one.repository.abandoned_elsewhere() >= 100_000);
        assert!(one.repository.make_room_elsewhere());
        assert_eq!(two.repository.abandoned_bytes(), 0);
        assert!(!one.repository.make_room_elsewhere(), "there is nothing more");
        leave(&one.repository, 4096);
        assert!(!one.repository.make_room_elsewhere(), "its own is not a neighbour's");
    }
}
