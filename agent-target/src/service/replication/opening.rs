//! A run begins: what it builds upon, and what it may write.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use assay_common::{
    cli::show,
    config::HISTORY_DIFFERS,
    digest::RootDigest,
    id::{GenerationNumber, RunId},
    ledger::EntryId,
    rpc_status::{RpcFault, TOO_MANY_FAILED_RUNS},
    trouble::{self, Kind},
    verdict::{STATEMENTS, link_digest},
};
use assay_proto::v1::{OpenRunRequest, OpenRunResponse};
use tonic::Code;

use super::{super::internal, refused_for};
use crate::{
    ahead::tree,
    config,
    receive::{self, Allowance, Base, PlaceReader, Receiver, Spare},
    repository::{Opened, Repository, occupancy::Reception},
};

/// A source that fails over and over adds a verdict to the ledger each time, which is never removed.
fn too_many_failed(limit: u32, again: Duration) -> RpcFault {
    let text = format!(
        "{} of this repository failed within an hour: the next one is opened in {}",
        show::counted(limit.into(), "run"),
        show::age(again.as_secs())
    );
    RpcFault::new(Code::ResourceExhausted, TOO_MANY_FAILED_RUNS, text)
        .with_retry_after(again)
        .with_hint("look at why they failed (assay-target verdict list); limits.failed_runs_per_hour on the target sets how many may")
}

/// With less than this free there is no room for a run beside what an earlier one left.
const LITTLE_BYTES: u64 = 1024 * 1024;

/// Compares what the source knows of this repository with what is here. A generation or verdict that the source holds and this target has
/// not, or has as another one, means that one of the two was set back, or that this is another store.
pub(super) fn check_history(repository: &Repository, request: &OpenRunRequest) -> Result<(), RpcFault> {
    let Some(text) = difference(repository, request) else {
        return Ok(());
    };
    if request.accept_history {
        tracing::warn!("{text}; the source's operator accepts it");
        trouble::clear(Kind::HistoryDiffers, &repository.config.name);
        return Ok(());
    }
    trouble::raise(Kind::HistoryDiffers, &repository.config.name, text.clone());
    tracing::warn!(reason = HISTORY_DIFFERS, "the run is refused: {text}");
    Err(RpcFault::new(Code::FailedPrecondition, HISTORY_DIFFERS, text).with_hint(
        "find out which of the two was set back (a restored snapshot, a clone); when all is as it should be, run once with \
         --accept-history",
    ))
}

fn difference(repository: &Repository, request: &OpenRunRequest) -> Option<String> {
    let (generation, sequence) = (GenerationNumber(request.last_generation), request.last_verdict_sequence);
    let latest = repository.store.latest().ok().flatten();
    if generation > latest.unwrap_or(GenerationNumber(0)) {
        return Some(format!(
            "the source has had generation {generation} sealed here, and the newest one here is {}: this store was set back",
            latest.map_or_else(|| "none".to_owned(), |latest| latest.to_string())
        ));
    }
    // One that retention has removed cannot be compared.
    let record = (generation.0 > 0).then(|| repository.store.record(generation).ok()).flatten();
    if let Some(record) = record
        && RootDigest::from_hex(&record.root_digest) != RootDigest::from_slice(&request.last_root_digest)
    {
        return Some(format!(
            "generation {generation} here, of run {}, is another one than the source has had sealed: this store was set back and \
             has gone on since, or two sources write here",
            record.run_id
        ));
    }
    if sequence > 0 {
        let id = EntryId(sequence);
        let here = repository.envelope(&id.to_string()).ok();
        let here = here.map(|envelope| link_digest(envelope.as_bytes()).0.to_vec());
        if here.as_deref() != Some(&*request.last_verdict_digest) {
            let found = if here.is_some() { "is another one" } else { "is not there" };
            return Some(format!(
                "verdict {id}, which the source holds, {found} in the ledger here: this store was set back"
            ));
        }
    }
    trouble::clear(Kind::HistoryDiffers, &repository.config.name);
    None
}

pub(super) fn open(
    repository: &Arc<Repository>,
    id: RunId,
    opened: Opened,
    failed_runs_per_hour: u32,
) -> Result<OpenRunResponse, RpcFault> {
    let lease = repository.occupancy.open(&id).map_err(refused_for(&id))?;
    // A run that has ended is not opened again: its verdict would stand for a tree that nobody checked.
    let goes_on = lease.before().is_some_and(|(before, _)| *before == id);
    if !goes_on && (repository.has_verdict(&id) || repository.generation_of_run(&id).is_some()) {
        let text = format!("run {id} has ended; a new run needs an id of its own");
        return Err(RpcFault::new(Code::FailedPrecondition, "run-id-used", text)
            .with_hint("check the source's clock: ids are made of the time"));
    }
    if !goes_on {
        repository
            .failed_runs
            .may_open(failed_runs_per_hour)
            .map_err(|again| too_many_failed(failed_runs_per_hour, again))?;
    }
    // Content of the base that was found not to be what it should be is compared closely this time.
    let compares = goes_on && lease.before().is_some_and(|(_, before)| before.receiver.doubts_base());
    if let Some((_, before)) = lease.before() {
        before.receiver.stop();
    }
    let config::Repository { quota, quota_entries, reserve, .. } = repository.config;
    let reserve = receive::reserve(reserve, repository.store.path());
    // The index and the new session want some room themselves.
    if repository.store.free_bytes() <= reserve.0.saturating_add(LITTLE_BYTES) {
        repository.copies.forget().map_err(|error| internal("the store", &error))?;
        repository.store.forget_staged().map_err(|error| internal("the store", &error))?;
        if repository.store.free_bytes() <= reserve.0.saturating_add(LITTLE_BYTES) {
            repository.make_room_elsewhere();
        }
    }
    let recovered = repository.index.lock().unwrap_or_else(PoisonError::into_inner).recover();
    recovered.map_err(|error| internal("opening the chunk index again", &error))?;
    let (base, rotten) = repository.next_base().map_err(|error| internal("the store", &error))?.unzip();
    let rotten = rotten.unwrap_or_default();
    if !rotten.is_empty() {
        // They may share their blocks with what has rotted.
        repository.copies.forget().map_err(|error| internal("the store", &error))?;
    }
    let (base_root, base_entries) = match base {
        None => (Vec::new(), 0),
        Some(base) => {
            let record = repository.store.record(base).map_err(|error| internal("the store", &error))?;
            let root = RootDigest::from_hex(&record.root_digest);
            (root.map(|root| root.0.to_vec()).unwrap_or_default(), record.entries)
        }
    };
    let staging = repository.store.open_staging().map_err(|error| internal("the store", &error))?;
    let latest = repository.store.latest().ok().flatten();
    let latest = latest.and_then(|latest| repository.store.record(latest).ok());
    let response = OpenRunResponse {
        generation: staging.number().0,
        base_generation: base.map_or(0, |base| base.0),
        base_root_digest: base_root,
        staged_bytes: staging.staged_bytes(),
        base_entries,
        statements: STATEMENTS,
        rotten: rotten.iter().cloned().collect(),
        latest_generation: latest.as_ref().map_or(0, |latest| latest.generation),
        latest_run_id: latest.map(|latest| latest.run_id).unwrap_or_default(),
        store_holds: repository.store_limits().as_ref().map(Into::into),
        copy_rules: Some((&repository.copy_rules()).into()),
    };
    tracing::info!(generation = response.generation, base = response.base_generation, "the run is open");
    let staging = Arc::new(staging);
    // Verdicts are never removed, and count as well.
    let held = repository.store.held().and(repository.ledger_held());
    let copies = Arc::clone(&repository.copies);
    let allowance = Allowance::new(quota, held.bytes(), reserve, (Arc::clone(&staging), Arc::clone(&copies)))
        .with_entries(quota_entries, held.inodes)
        .with_spare(spare(repository))
        .with_elsewhere({
            let repository = Arc::downgrade(repository);
            move || repository.upgrade().is_some_and(|repository| repository.make_room_elsewhere())
        });
    let (store, index) = (Arc::clone(&repository.store), Arc::clone(&repository.index));
    let places = PlaceReader::new(store, Arc::clone(&staging), index, base);
    let known = match base {
        None => None,
        Some(base) => Some(
            Base::open(&repository.store, base, (compares, rotten))
                .map_err(|error| internal("the base", &error))?,
        ),
    };
    let receiver =
        Arc::new(Receiver::new(Arc::clone(&staging), places, known.map(|base| (base, copies)), allowance));
    let opened = Opened { time: jiff::Timestamp::now(), ..opened };
    lease.receive(id, Reception { staging, base, receiver, opened });
    Ok(response)
}

/// What the repository holds only to make runs faster.
fn spare(repository: &Repository) -> Vec<Spare> {
    let ahead = tree::held(&repository.store);
    let index = repository.index.lock().unwrap_or_else(PoisonError::into_inner).held_bytes();
    let store = Arc::clone(&repository.store);
    let laid_out = Spare::new((ahead.bytes, ahead.count), move || Ok(tree::give_up(&store)?));
    let places = Arc::clone(&repository.index);
    let hints = Spare::new((index, 0), move || {
        tracing::info!("the quota has no room beside the chunk index: it is rebuilt");
        Ok(places.lock().unwrap_or_else(PoisonError::into_inner).start_over()?)
    })
    .that_finds_what_arrived();
    vec![laid_out, hints]
}
