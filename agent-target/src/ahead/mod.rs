//! Between the runs: what the next run will want is made ready while nobody waits for it.
//!
//! - [`tree`]: the newest generation's tree, laid out a second time, so that sealing costs as much as has changed;
//! - [`copies`]: copies of large files that change often, so that receiving writes as much as has changed.
//!
//! Both are only ever a start: without them the run does the same work itself.

pub mod copies;
pub mod tree;

use assay_common::id::GenerationNumber;

use crate::{
    receive::{FREE_ENTRIES_PART, quota_entries, reserve},
    repository::Repository,
    seal::SealError,
    store::inodes,
};

/// Lays out the tree of the newest generation for the next run, behind everything else that this host does. On a thread that
/// has nothing else to do: it keeps the niceness.
pub fn lay_out_tree(repository: &Repository) {
    rustix::process::setpriority_process(None, 10).ok();
    let prepared = match repository.store.latest() {
        Ok(None) => return,
        Ok(Some(latest)) => {
            let _held = repository.holds.hold(latest);
            if !is_room_for_tree(repository, latest) {
                tracing::debug!(
                    repository = repository.config.name,
                    "there is no room to lay the next tree out"
                );
                tree::give_up(&repository.store).map_err(SealError::from)
            } else {
                tree::prepare(&repository.store, latest)
            }
        }
        Err(error) => Err(error.into()),
    };
    if let Err(error) = prepared {
        let repository = &repository.config.name;
        tracing::warn!(repository, %error, "the next tree is not laid out; the next seal takes longer");
    }
}

/// True if the folders of another tree of this generation fit into the repository's quotas and into what is free.
fn is_room_for_tree(repository: &Repository, latest: GenerationNumber) -> bool {
    let store = &repository.store;
    let Some(cost) = store.record(latest).ok().and_then(|record| record.folders) else {
        // Of an earlier version, which did not count folders.
        return true;
    };
    let config = &repository.config;
    let held = store.held().and(repository.ledger_held());
    let reserve = reserve(config.reserve, store.path()).0;
    let fits = |held: u64, more: u64, most: u64| held.saturating_add(more) <= most;
    config.quota.is_none_or(|quota| fits(held.bytes(), cost.bytes, quota.0))
        && fits(held.inodes, cost.count, quota_entries(config.quota_entries, store.path()))
        && fits(reserve, cost.bytes, store.free_bytes())
        && inodes(store.path()).is_none_or(|(all, free)| fits(all / FREE_ENTRIES_PART, cost.count, free))
}

/// Copies what will change again, unless a run or a check is under way: those also preempt it. On a thread like that of
/// [`lay_out_tree`], and after what takes and gives room.
pub fn copy_files(repository: &Repository) {
    rustix::process::setpriority_process(None, 19).ok();
    let Ok(Some(latest)) = repository.store.latest() else {
        return;
    };
    let _held = repository.holds.hold(latest);
    let Some(lease) = repository.occupancy.begin_copying_ahead(|| repository.copies.begin()) else {
        return;
    };
    let config = &repository.config;
    let reserve = reserve(config.reserve, repository.store.path());
    let room = copies::Room { most: config.copy_ahead.0, reserve: reserve.0 };
    if let Err(error) = repository.copies.prepare(&repository.store, latest, room, lease.token()) {
        let repository = &config.name;
        tracing::warn!(repository, %error, "large files are not copied ahead; the next run takes longer");
    }
}
