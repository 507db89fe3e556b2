//! What operators ask about what is kept: pruning and pins.

use std::sync::Arc;

use assay_common::{id::GenerationNumber, rpc_status::RpcFault, verdict::timestamp_to_proto};
use assay_proto::v1::{
    Generation, PinGenerationRequest, PruneDecision, PruneGenerationsResponse, UnpinGenerationRequest,
};
use jiff::Timestamp;
use tonic::Code;

use super::{internal, invalid, operator};
use crate::{
    keep::{
        pins::{PinError, Pins},
        prune::{self, PruneError},
    },
    repository::Repository,
};

/// Prunes, or says what a pruning would do.
pub(super) fn prune(
    repository: &Arc<Repository>,
    dry_run: bool,
) -> Result<PruneGenerationsResponse, RpcFault> {
    if !dry_run {
        repository.give_way();
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
                 configuration, and start the agent anew",
            )
        }
        PruneError::Busy(run_id) => RpcFault::new(Code::Aborted, "busy", error.to_string())
            .with_run_id(run_id.as_str())
            .with_hint("wait for it to end; assay-target status shows it"),
        PruneError::Pins(_) => RpcFault::new(Code::FailedPrecondition, "pins-unknown", error.to_string())
            .with_hint("put pins.json in the repository's store right, or move it away, and start the agent anew"),
        PruneError::Store(error) => internal("pruning", error),
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
    Ok(operator::describe(repository, &record, repository.last_verdict(number)))
}
