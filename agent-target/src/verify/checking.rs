//! One check of a sealed generation: a workspace, the profile's steps in it, and what they said.

use std::path::{Path, PathBuf};

use assay_common::id::GenerationNumber;
use tokio_util::sync::CancellationToken;

use crate::{
    carried::Plan,
    check::{self, CheckContext, CheckReport, Isolation, Progress, run_check},
    config::{IsolationPolicy, WorkspacePreference},
    repository::Repository,
    store::{MANIFEST, Record, TREE},
    workspace::{Oddities, Preference, RootView, Workspace, WorkspaceOptions},
};

/// Checks all of a generation in a workspace of its own.
pub(crate) fn check_in_full(
    repository: &Repository,
    record: &Record,
    cancel: &CancellationToken,
    on_step: &dyn Fn(&str),
) -> Result<CheckReport, String> {
    check_all(repository, record, cancel, on_step).map(|(report, _)| report)
}

/// The same, with the parts that it looked at.
pub(crate) fn check_all(
    repository: &Repository,
    record: &Record,
    cancel: &CancellationToken,
    on_step: &dyn Fn(&str),
) -> Result<(CheckReport, Plan), String> {
    let mut plan = Plan::full(repository, repository.checker(), record, jiff::Timestamp::now())?;
    let report = check_planned(repository, record, &plan, cancel, on_step, |_| Ok(()))?;
    plan.settle(&report)?;
    Ok((report, plan))
}

/// Checks what `plan` says of a generation in a workspace of its own, after `prepare` has done what it likes to the workspace.
pub(crate) fn check_planned(
    repository: &Repository,
    record: &Record,
    plan: &Plan,
    cancel: &CancellationToken,
    on_step: &dyn Fn(&str),
    prepare: impl FnOnce(&Workspace) -> Result<(), String>,
) -> Result<CheckReport, String> {
    let config = &repository.config;
    let _held = repository.holds.hold(GenerationNumber(record.generation));
    let generation = repository.store.generation_path(GenerationNumber(record.generation));
    let roots: Vec<_> = record
        .roots
        .iter()
        .map(|root| RootView {
            name: root.name.clone(),
            live_path: PathBuf::from(&root.live_path),
            subdirectory: root.subdirectory.clone(),
        })
        .collect();
    let names: Vec<_> = roots.iter().map(|root| root.name.as_str()).collect();
    let vars =
        config.profile.bind_for_checks(&config.vars, Some(&names)).map_err(|faults| faults.join("; "))?;
    let oddities = oddities(record, &generation.join(MANIFEST));
    let options = WorkspaceOptions {
        generation_tree: generation.join(TREE),
        roots: roots.clone(),
        directory: repository.store.path().join("workspaces"),
        preference: match config.workspace {
            WorkspacePreference::Auto => Preference::Auto,
            WorkspacePreference::Overlay => Preference::Overlay,
            WorkspacePreference::Reflink => Preference::Reflink,
            WorkspacePreference::Copy => Preference::Copy,
        },
        account: config.account,
        oddities,
        special_files: config.profile.sandbox.special_files,
    };
    // A check may write as much as there is, and what was copied ahead is only ever in its way.
    let wanted =
        record.total_bytes.saturating_add(check::disk_reserve(&config.limits.or(config.profile.limits)));
    if repository.store.free_bytes() < wanted {
        repository.copies.forget().map_err(|error| error.to_string())?;
    }
    let mut workspace = Workspace::create(&options).map_err(|error| error.to_string())?;
    prepare(&workspace)?;
    let context = CheckContext {
        target: config.names.clone(),
        vars,
        parts: plan.arguments(),
        known: plan.known(),
        overlay_files: config.overlays.clone(),
        mark_id: record.mark.id.clone(),
        isolation: match config.isolation {
            IsolationPolicy::Auto => Isolation::Auto,
            IsolationPolicy::Require => Isolation::Require,
            IsolationPolicy::None => Isolation::None,
        },
        account: config.account,
        live_paths: config.live_paths.clone(),
        limits: config.limits,
        priority: config.check_priority,
        hidden: config.hidden.clone(),
        cancel: cancel.clone(),
        ..Default::default()
    };
    let report = run_check(&config.profile, &mut workspace, &context, &mut |progress| {
        if let Progress::StepStarted { name, .. } = &progress {
            on_step(name);
        }
        tracing::debug!(?progress, "check");
    });
    if let Err(error) = workspace.remove() {
        // The verdict stands: what is left is cleared when the agent starts again.
        tracing::error!(%error, "the workspace cannot be removed");
    }
    Ok(report)
}

/// What a workspace must know of the tree. Most trees have nothing of the kind, and the seal has noted that.
fn oddities(record: &Record, manifest: &Path) -> Oddities {
    if record.is_plain == Some(true) {
        return Oddities::default();
    }
    Oddities::read(manifest).unwrap_or_else(|error| {
        tracing::warn!(manifest = %manifest.display(), %error, "the manifest cannot be read before a check");
        Oddities::unknown(error)
    })
}
