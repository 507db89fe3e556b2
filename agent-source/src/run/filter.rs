//! What of the tree's metadata a run leaves out, and what ends it before it copies.

use std::sync::Arc;

use assay_common::fidelity::Filter;
use assay_proto::v1::{CopyRules, OpenRunResponse, StoreLimits};

use super::{Attempt, Context, Fault, roots};
use crate::{
    replicate::{ReplicateError, preflight::preflight},
    state::Filtered,
};

impl Context {
    /// What is left out of the entries of a run, by the configuration and by what the target says that it holds and takes.
    pub(super) fn filter(&self, (limits, rules): (Option<&StoreLimits>, Option<&CopyRules>)) -> Filter {
        let repository = &self.repository;
        Filter::new(repository.ignore_attributes.clone(), repository.clamp_times)
            .for_target(limits.map(Into::into), rules.map(Into::into))
    }
}

impl Attempt {
    /// Takes up what the target says that it holds and takes.
    pub(super) fn set_filter(&mut self, opened: &OpenRunResponse, basis_known: bool) {
        let filter = self.context.filter((opened.store_holds.as_ref(), opened.copy_rules.as_ref()));
        let before = self.context.state.filtered();
        let is_the_same = before.by == filter.fingerprint();
        // What is kept is not looked at again: what was left out of it before is left out still.
        let left_out = if basis_known && is_the_same { before.left_out } else { Vec::new() };
        self.filtered_otherwise = basis_known && !is_the_same;
        self.filter = Arc::new(filter.with_left_out(left_out));
    }

    /// Before a first copy: walks the roots, and ends the run when the target would not take an entry as it is.
    pub(super) async fn preflight(&self, roots: &roots::OpenRoots) -> Result<(), Fault> {
        let repository = &self.context.repository;
        let (header, rules) = (repository.header.clone(), Arc::new(repository.rules()));
        let (folders, filter, stop) = (roots.folders.clone(), Arc::clone(&self.filter), self.cancel.clone());
        let ground = repository.ground();
        let work = move || preflight(&header, &folders, rules, (&filter, &ground), &stop);
        let done = tokio::task::spawn_blocking(work).await;
        let bytes =
            done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())).map_err(|error| {
                match error {
                    ReplicateError::Cancelled => Fault::cancelled(),
                    error => error.into(),
                }
            })?;
        self.counters.tree_bytes.add(bytes);
        match self.filter.refused() {
            (_, 0) => Ok(()),
            (named, all) => Err(Fault::refused(&named, all)),
        }
    }

    /// Keeps what the sealed generation was filtered by, once the basis is that generation's.
    pub(super) fn keep_filtered(&self) -> Result<(), Fault> {
        let left_out = self.filter.left_out();
        for left_out in &left_out {
            let (what, why, example) = (&left_out.what, &left_out.why, &left_out.example);
            tracing::info!(what, why, example, "the copy does not have it");
        }
        self.context.state.save_filtered(&Filtered { by: self.filter.fingerprint(), left_out })?;
        Ok(())
    }
}
