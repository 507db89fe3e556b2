//! What a run would meet here now. Looks, and changes nothing.

use assay_common::{digest::RootDigest, rpc_status::RpcFault, verdict::timestamp_to_proto};
use assay_proto::v1::{Outlook, PlannedStep};

use super::internal;
use crate::{config::IsolationPolicy, receive, repository::Repository};

/// The outlook of this repository.
pub(super) fn outlook(repository: &Repository) -> Result<Outlook, RpcFault> {
    let (base, rotten) = repository.next_base().map_err(|error| internal("the store", &error))?.unzip();
    let record = base.map(|base| repository.store.record(base)).transpose();
    let record = record.map_err(|error| internal("the store", &error))?;
    let root = record.as_ref().and_then(|record| RootDigest::from_hex(&record.root_digest));
    let busy = repository.occupancy.now().map(|now| now.run.to_string());
    let (config, control) = (&repository.config, repository.control());
    let profile = &config.profile;
    let step = |check: &assay_common::profile::Check| PlannedStep {
        name: check.name.clone(),
        depth: check.depth.unwrap_or(profile.depth).to_string(),
        may_take_seconds: check.timeout.0.as_secs(),
    };
    // The first one follows the first PASS.
    let control_due = config.control_every.map(|every| {
        let last = control.as_ref().map(|control| control.time);
        last.and_then(|last| last.checked_add(every).ok()).unwrap_or_else(jiff::Timestamp::now)
    });
    let (room, of_quota) = room(repository);
    Ok(Outlook {
        busy_run_id: busy.unwrap_or_default(),
        base_generation: base.map_or(0, |base| base.0),
        base_root_digest: root.map(|root| root.0.to_vec()).unwrap_or_default(),
        base_entries: record.map_or(0, |record| record.entries),
        rotten_files: rotten.map_or(0, |rotten| rotten.len() as u64),
        free_bytes: repository.store.free_bytes(),
        profile: profile.name.clone(),
        profile_version: profile.version.clone(),
        steps: profile.checks.iter().map(step).collect(),
        isolation: match config.isolation {
            IsolationPolicy::Auto => "auto",
            IsolationPolicy::Require => "require",
            IsolationPolicy::None => "none",
        }
        .to_owned(),
        negative_control: control.as_ref().map(Into::into),
        control_due: control_due.map(timestamp_to_proto),
        store_holds: repository.store_limits().as_ref().map(Into::into),
        copy_rules: Some((&repository.copy_rules()).into()),
        room_bytes: Some(room),
        room_of_quota: of_quota,
    })
}

/// Bytes that a run may write, and whether the quota sets that.
fn room(repository: &Repository) -> (u64, bool) {
    let store = &repository.store;
    let reserve = receive::reserve(repository.config.reserve, store.path());
    let goes_first = store.staged().bytes.saturating_add(repository.abandoned_elsewhere());
    let of_disk = store.free_bytes().saturating_add(goes_first).saturating_sub(reserve.0);
    let held = store.held().and(repository.ledger_held()).bytes();
    match repository.config.quota.map(|quota| quota.0.saturating_sub(held)) {
        Some(of_quota) if of_quota < of_disk => (of_quota, true),
        _ => (of_disk, false),
    }
}
