//! What operators ask about what is kept: pruning, pins, scrubs.

use std::sync::Arc;

use assay_common::{id::GenerationNumber, rpc_status::RpcFault, verdict::timestamp_to_proto};
use assay_proto::v1::{
    DiscardAbandonedResponse, Generation, PinGenerationRequest, PruneDecision, PruneGenerationsResponse,
    Rotten, ScrubGenerationsRequest, ScrubProgress, ScrubStatus, UnpinGenerationRequest,
};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tonic::{Code, Status};

use super::{busy, internal, invalid, operator};
use crate::{
    keep::{
        pins::{PinError, Pins},
        prune::{self, PruneError},
        scrub::{self, Told, Wanted},
    },
    repository::{Repository, abandoned::DiscardError, occupancy::Refusal},
    status,
};

/// Prunes, or says what a pruning would do.
pub(super) fn prune(
    repository: &Arc<Repository>,
    dry_run: bool,
) -> Result<PruneGenerationsResponse, RpcFault> {
    if !dry_run {
        repository.occupancy.preempt_background();
    }
    let sealed_of = |number| {
        let record = repository.store.record(number).ok()?;
        Some(timestamp_to_proto(record.sealed))
    };
    // Before: afterwards those that went are not there to be read.
    let sealed: std::collections::BTreeMap<_, _> = repository
        .store
        .generations()
        .unwrap_or_default()
        .into_iter()
        .map(|it| (it, sealed_of(it)))
        .collect();
    let pruned = prune::prune(repository, Timestamp::now(), dry_run).map_err(prune_fault)?;
    if !pruned.gone.is_empty() {
        let repository = Arc::clone(repository);
        let body = move || prune::clear_trash(&repository);
        if let Err(error) = std::thread::Builder::new().name("trash".to_owned()).spawn(body) {
            tracing::warn!(%error, "no thread to delete what was pruned; it is deleted after the next verdict");
        }
    }
    let decisions = pruned.decisions.into_iter().map(|decision| PruneDecision {
        generation: decision.number.0,
        keep: decision.keep.iter().map(ToString::to_string).collect(),
        pruned: pruned.gone.contains(&decision.number),
        sealed: sealed.get(&decision.number).copied().flatten(),
    });
    Ok(PruneGenerationsResponse { decisions: decisions.collect() })
}

fn prune_fault(error: PruneError) -> RpcFault {
    match &error {
        PruneError::NoRetention { .. } => {
            RpcFault::new(Code::FailedPrecondition, "no-retention", error.to_string()).with_hint(
                "add for example retention = { last = 24, daily = 14, monthly = 12 } to the repository in the target's \
                 configuration, and restart the agent",
            )
        }
        PruneError::Busy(run_id) => RpcFault::new(Code::Aborted, "busy", error.to_string())
            .with_run_id(run_id.as_str())
            .with_hint("wait for it to end; assay-target status shows it"),
        PruneError::Pins(_) => RpcFault::new(Code::FailedPrecondition, "pins-unknown", error.to_string())
            .with_hint("put pins.json in the repository's store right, or move it away, and restart the agent"),
        PruneError::Store(error) => internal("pruning", error),
    }
}

/// Removes what runs left that did not come to their end.
pub(super) fn discard(repository: &Repository) -> Result<DiscardAbandonedResponse, RpcFault> {
    match repository.discard_abandoned() {
        Ok(discarded) => Ok(DiscardAbandonedResponse {
            repository: repository.config.name.clone(),
            bytes: discarded.bytes,
            entries: discarded.entries,
        }),
        Err(DiscardError::Busy(refusal)) => Err(busy(refusal)),
        Err(DiscardError::Store(error)) => Err(internal("discarding", &error)),
    }
}

/// Pins a generation.
pub(super) fn pin(repository: &Repository, request: &PinGenerationRequest) -> Result<Generation, RpcFault> {
    let number = match request.number {
        0 => repository.store.verified().ok_or_else(|| {
            RpcFault::new(Code::NotFound, "none-verified", "no generation has been verified yet")
        })?,
        number => GenerationNumber(number),
    };
    change_pins(repository, number, |pins| pins.pin(number, &request.note, Timestamp::now()))
}

/// Takes a pin away.
pub(super) fn unpin(
    repository: &Repository,
    request: &UnpinGenerationRequest,
) -> Result<Generation, RpcFault> {
    let number = GenerationNumber(request.number);
    change_pins(repository, number, |pins| pins.unpin(number).map(drop))
}

fn change_pins(
    repository: &Repository,
    number: GenerationNumber,
    change: impl FnOnce(&mut Pins) -> Result<(), PinError>,
) -> Result<Generation, RpcFault> {
    // Held first: what is looked at below is not pruned before it is pinned.
    let _held = repository.holds.hold(number);
    let record = operator::record(repository, number)?;
    match repository.pins().as_mut() {
        Err(error) => return Err(prune_fault(PruneError::Pins(error.to_string()))),
        Ok(pins) => change(pins).map_err(|error| match error {
            PinError::Note => invalid(error.to_string()),
            error => internal("keeping the pins", &error),
        })?,
    }
    tracing::info!(repository = repository.config.name, generation = number.0, "an operator changed a pin");
    Ok(status::of_generation(repository, &record, repository.last_verdict(number)))
}

/// The newest scrub, and what is rotten now.
pub(crate) fn scrub_status(repository: &Repository) -> Option<ScrubStatus> {
    let rot = repository.rot();
    let last = rot.last()?;
    Some(ScrubStatus {
        started: Some(timestamp_to_proto(last.started)),
        finished: last.finished.map(timestamp_to_proto),
        generations: last.generations,
        files: last.files,
        bytes: last.bytes,
        found: last.found,
        healed: last.healed,
        unhealed: rot.unhealed(),
    })
}

/// Scrubs on a thread of its own, as what is done by the clock is done: behind runs, and ended by one.
pub(super) fn scrub(
    repository: &Arc<Repository>,
    request: &ScrubGenerationsRequest,
) -> Result<mpsc::Receiver<Result<ScrubProgress, Status>>, RpcFault> {
    let generations = match (request.number, request.share_percent) {
        (0, share @ 0..=100) => {
            let percent = if share == 0 { 100 } else { share };
            scrub::by_age(repository, percent, Timestamp::now())
                .map_err(|error| internal("listing generations", &error))?
        }
        (number, 0) => {
            let number = GenerationNumber(number);
            operator::record(repository, number)?;
            [number].into()
        }
        _ => return Err(invalid("share_percent: must be 1 to 100, or absent beside a number")),
    };
    let lease = tokio::task::block_in_place(|| repository.occupancy.begin_background());
    let lease = lease.ok_or_else(|| busy(Refusal::NotNow))?;
    let (sender, queue) = mpsc::channel(16);
    let wanted = Wanted { generations, only: None, after: None };
    let body = {
        let repository = Arc::clone(repository);
        move || {
            rustix::process::setpriority_process(None, 19).ok();
            // They are told all of it, or have gone away: the work goes on.
            let send = |progress| drop(sender.blocking_send(progress));
            let told = |told| {
                send(Ok(match told {
                    Told::Read(bytes_read) => ScrubProgress { bytes_read, ..Default::default() },
                    Told::Rotten { path, generations, what, healed } => {
                        let generations = generations.iter().map(|number| number.0).collect();
                        let rotten = Some(Rotten { path, generations, what, healed });
                        ScrubProgress { rotten, ..Default::default() }
                    }
                }));
            };
            let done = scrub::run(&repository, &wanted, lease.token(), &told);
            drop(lease);
            send(match done {
                Ok(_) => Ok(ScrubProgress { ended: scrub_status(&repository), ..Default::default() }),
                Err(error) => Err(internal("the scrub", &error).into()),
            });
        }
    };
    if let Err(error) = std::thread::Builder::new().name("scrub".to_owned()).spawn(body) {
        return Err(internal("starting a thread", &error));
    }
    Ok(queue)
}
