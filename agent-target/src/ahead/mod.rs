//! Between the runs: what the next run will want is made ready while nobody waits for it.
//!
//! - [`tree`]: the newest generation's tree, laid out a second time, so that sealing costs as much as has changed;
//! - [`copies`]: copies of large files that change often, so that receiving writes as much as has changed.
//!
//! Both are only ever a start: without them the run does the same work itself.

pub mod copies;
pub mod tree;

use crate::repository::Repository;

/// Lays out the tree of the newest generation for the next run, behind everything else that this host does. On a thread that
/// has nothing else to do: it keeps the niceness.
pub fn lay_out_tree(repository: &Repository) {
    rustix::process::setpriority_process(None, 10).ok();
    let prepared = match repository.store.latest() {
        Ok(None) => return,
        Ok(Some(latest)) => {
            let _held = repository.holds.hold(latest);
            tree::prepare(&repository.store, latest)
        }
        Err(error) => Err(error.into()),
    };
    if let Err(error) = prepared {
        let repository = &repository.config.name;
        tracing::warn!(repository, %error, "the next tree is not laid out; the next seal takes longer");
    }
}

/// Copies what will change again, unless a run or a check is under way: those also end it. On a thread like that of
/// [`lay_out_tree`], and after what takes and gives room.
pub fn copy_files(repository: &Repository) {
    rustix::process::setpriority_process(None, 19).ok();
    let Ok(Some(latest)) = repository.store.latest() else {
        return;
    };
    let _held = repository.holds.hold(latest);
    let turn = {
        let active = repository.active();
        if active.is_some() {
            return;
        }
        repository.copies.begin()
    };
    let config = &repository.config;
    let room = copies::Room { most: config.copy_ahead.0, reserve: config.reserve.0 };
    if let Err(error) = repository.copies.prepare(&repository.store, latest, room, &turn) {
        let repository = &config.name;
        tracing::warn!(repository, %error, "large files are not copied ahead; the next run takes longer");
    }
}
