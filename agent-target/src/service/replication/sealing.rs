//! A run becomes a generation: its mark, the source's statement and its manifest, held against each other.

use std::{sync::Arc, time::Duration};

use assay_common::{
    confined::cannot_hold,
    digest::RootDigest,
    fidelity::{CANNOT_HOLD, CANNOT_HOLD_HINT},
    id::{GenerationNumber, RunId},
    limits::{MAX_MARK_BYTES, MAX_OVERRIDES, MAX_REASON_BYTES},
    manifest::ManifestError,
    rpc_status::RpcFault,
    telemetry,
    verdict::{self, verify_source_statement},
};
use assay_proto::v1::{SealFinish, SealRunRequest, SealRunResponse, SealStart, seal_run_request};
use tokio::sync::mpsc;
use tonic::{Code, Streaming};

use super::{
    super::{internal, invalid},
    QUEUE, joined, next_message, receive_fault,
};
use crate::{
    repository::{
        Opened, Repository,
        occupancy::{Lease, Reception, Sealing},
    },
    seal::{self, Charge, Draft, Provenance, SealError, seal},
    store::{MarkRecord, Record, Staging},
};

/// The generation of a run whose source did not hear that it was sealed.
pub(super) fn sealed_already(repository: &Repository, id: &RunId) -> Option<Record> {
    repository.occupancy.may_be_sealed(id).then(|| repository.generation_of_run(id)).flatten()
}

pub(super) fn sealed_response(record: &Record) -> SealRunResponse {
    let root = RootDigest::from_hex(&record.root_digest).map(|root| root.0.to_vec());
    let root_digest = root.unwrap_or_default();
    SealRunResponse { generation: record.generation, root_digest, check: None }
}

/// What a seal that does not come to its end has made in staging, until this is dropped: on a panic as well.
struct HalfMade<'a> {
    staging: &'a Staging,
    charge: Charge,
    is_whole: bool,
}

impl Drop for HalfMade<'_> {
    fn drop(&mut self) {
        if self.is_whole {
            return;
        }
        // The next attempt makes it anew. What cannot be removed stays charged.
        match self.staging.remove_half_made() {
            Ok(()) => self.charge.give_back(),
            Err(error) => tracing::error!(%error, "what a refused seal left cannot be removed"),
        }
    }
}

/// Seals a run from the rest of its stream. When it cannot be sealed, the run is open as it was before.
pub(super) async fn seal_and_settle(
    repository: &Arc<Repository>,
    id: &RunId,
    lease: Lease<Sealing>,
    start: SealStart,
    mut messages: Streaming<SealRunRequest>,
    idle: Duration,
) -> Result<Record, RpcFault> {
    let (steps, queue) = mpsc::channel(QUEUE);
    let span = telemetry::of_run(id);
    let working = tokio::task::spawn_blocking({
        let (repository, id, span) = (Arc::clone(repository), id.clone(), span.clone());
        move || span.in_scope(|| seal_under_lease(&repository, &id, lease, &start, queue))
    });
    // A cut-off manifest has no finish: the thread notices. After the finish nothing is waited for: a source that leaves its
    // stream open does not keep the generation from its check.
    let ended = loop {
        match next_message(&mut messages, idle, "limits.idle").await {
            Ok(Some(SealRunRequest { kind: Some(kind) })) => {
                let last = matches!(kind, seal_run_request::Kind::Finish(_));
                if steps.send(kind).await.is_err() || last {
                    break None;
                }
            }
            Ok(Some(SealRunRequest { kind: None })) => break Some(invalid("a message of no known kind")),
            Ok(None) => break None,
            Err(fault) => break Some(fault),
        }
    };
    drop(steps);
    let sealed = joined(working.await);
    // What ended the stream says more than that it ended.
    let sealed = sealed.map_err(|fault| match ended {
        Some(ended) if fault.reason == "cut-off" => ended,
        _ => fault,
    });
    span.in_scope(|| match &sealed {
        Ok(record) => tracing::info!(generation = record.generation, root = record.root_digest, "sealed"),
        Err(fault) => tracing::warn!(reason = %fault.reason, message = fault.message, "not sealed"),
    });
    sealed
}

fn seal_under_lease(
    repository: &Repository,
    id: &RunId,
    lease: Lease<Sealing>,
    start: &SealStart,
    queue: mpsc::Receiver<seal_run_request::Kind>,
) -> Result<Record, RpcFault> {
    // A stream whose place was taken may still settle what it brought.
    let _turn = Arc::clone(&repository.turn).blocking_lock_owned();
    let Reception { staging, base, receiver, opened } = lease.reception();
    let charge = Charge::on(receiver.allowance());
    let mut half_made = HalfMade { staging, charge: charge.clone(), is_whole: false };
    let record = seal_blocking(repository, (id, *opened), staging, *base, (start, charge), queue)?;
    half_made.is_whole = true;
    drop(half_made);
    lease.sealed();
    Ok(record)
}

fn seal_blocking(
    repository: &Repository,
    (id, opened): (&RunId, Opened),
    staging: &Staging,
    base: Option<GenerationNumber>,
    (start, charge): (&SealStart, Charge),
    mut queue: mpsc::Receiver<seal_run_request::Kind>,
) -> Result<Record, RpcFault> {
    let named = (start.base_generation > 0).then_some(GenerationNumber(start.base_generation));
    if start.generation != staging.number().0 || (named.is_some() && named != base) {
        let error =
            SealError::WrongBase { named: start.base_generation, base: base.map_or(0, |base| base.0) };
        return Err(seal_fault(error));
    }
    let mut draft =
        Draft::create(&repository.store, staging, named, &start.manifest_header).map_err(seal_fault)?;
    draft.allow(repository.copy_rules());
    draft.charge_to(charge);
    draft.refuse(named.map(|base| repository.rot().paths(base)).unwrap_or_default());
    while let Some(kind) = queue.blocking_recv() {
        match kind {
            seal_run_request::Kind::Start(_) => return Err(invalid("a seal starts once")),
            seal_run_request::Kind::Delta(delta) => {
                for step in seal::steps(staging, delta).map_err(seal_fault)? {
                    draft.apply(step).map_err(seal_fault)?;
                }
            }
            seal_run_request::Kind::Finish(finish) => {
                let (root, provenance) = provenance(repository, (id, opened), finish)?;
                let store = &repository.store;
                return seal(store, staging, &repository.index, draft, root, provenance).map_err(seal_fault);
            }
        }
    }
    Err(RpcFault::new(Code::Aborted, "cut-off", "the manifest was cut off before its end"))
}

/// A mark, whose text is of a length that can stand in a verdict.
pub(super) fn checked_mark(mark: Option<&assay_proto::v1::Mark>) -> Result<Option<verdict::Mark>, RpcFault> {
    if mark.is_some_and(|mark| mark.id.len() > MAX_MARK_BYTES) {
        return Err(invalid("mark.id: must have at most 4096 bytes"));
    }
    Ok(mark.and_then(verdict::Mark::from_proto))
}

/// Checks what the source says of the generation: its statement must carry its signature and agree with the rest.
fn provenance(
    repository: &Repository,
    (id, opened): (&RunId, Opened),
    finish: SealFinish,
) -> Result<(RootDigest, Provenance), RpcFault> {
    let root = RootDigest::from_slice(&finish.root_digest)
        .ok_or_else(|| invalid("finish.root_digest: must have 32 bytes"))?;
    let mark = checked_mark(finish.mark.as_ref())?
        .ok_or_else(|| invalid("finish.mark: must have an id and a time"))?;
    let plain = |word: &String| {
        (1..=MAX_REASON_BYTES).contains(&word.len())
            && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    };
    if finish.overrides.len() > MAX_OVERRIDES || !finish.overrides.iter().all(plain) {
        return Err(invalid("finish.overrides: must be at most 8 words of up to 64 small letters and '_'"));
    }
    let refused = |text: String| {
        RpcFault::new(Code::PermissionDenied, "statement-refused", format!("the source's statement: {text}"))
            .with_hint(
                "compare repository.source_key in the target's configuration with the source's public key; when the source has a new key, pin it at the target: assay-target accept --replace-key LINE",
            )
    };
    let envelope = assay_common::dsse::Envelope::parse(finish.source_statement.as_bytes())
        .map_err(|error| refused(error.to_string()))?;
    let statement = verify_source_statement(&envelope, repository.source_keys.current())
        .map_err(|error| refused(error.to_string()))?;
    let agrees = statement.repository == repository.config.name
        && statement.run_id == *id
        && statement.root.is_some_and(|signed| signed.0 == root.0)
        && statement.mark == mark
        && statement.overrides == finish.overrides
        && statement.nonce == opened.nonce;
    if !agrees {
        return Err(refused(
            "it is about another run, mark or tree than the one that was sent, or names another nonce"
                .to_owned(),
        ));
    }
    let counts = finish.counts.unwrap_or_default();
    let provenance = Provenance {
        repository: repository.config.name.clone(),
        run_id: id.to_string(),
        opened: opened.time,
        statements: opened.statements,
        full_check: opened.full_check,
        mark: MarkRecord { id: mark.id, time: mark.time },
        overrides: finish.overrides,
        counts: assay_common::json::to_json("Counts", &counts),
        source_statement: serde_json::from_str(&finish.source_statement)
            .map_err(|_| invalid("finish.source_statement: must be JSON"))?,
    };
    Ok((root, provenance))
}

fn seal_fault(error: SealError) -> RpcFault {
    let error = match error {
        SealError::NoRoom(error) => return receive_fault(error),
        error => error,
    };
    match &error {
        SealError::Manifest(ManifestError::Io(_)) => internal("writing the manifest", &error),
        SealError::Delta(_) | SealError::Manifest(_) | SealError::Packed { .. } => {
            RpcFault::new(Code::InvalidArgument, "manifest-refused", error.to_string())
        }
        SealError::NotAllowed { .. } => RpcFault::new(Code::InvalidArgument, CANNOT_HOLD, error.to_string())
            .with_hint("exclude it, let the source leave the attribute out (ignore_attributes), or let this target take it: attributes and \
                        special_files of the repository, docs/CONFIGURATION.md"),
        SealError::Rotten { .. } => RpcFault::new(Code::FailedPrecondition, "base-rotten", error.to_string())
            .with_hint("start the run again: it sends that file anew"),
        SealError::WrongBase { .. } => RpcFault::new(Code::FailedPrecondition, "wrong-base", error.to_string()),
        SealError::RootMismatch { .. }
        | SealError::ContentMismatch { .. }
        | SealError::PiecesMismatch { .. }
        | SealError::LengthMismatch { .. }
        | SealError::ContentMissing { .. } => RpcFault::new(Code::DataLoss, "tree-mismatch", error.to_string())
            .with_hint("start the run again; nothing was sealed"),
        SealError::Entry { source, .. } if cannot_hold(source).is_some() => {
            RpcFault::new(Code::FailedPrecondition, CANNOT_HOLD, error.to_string()).with_hint(CANNOT_HOLD_HINT)
        }
        SealError::Entry { source, .. } if source.kind() == std::io::ErrorKind::InvalidData => {
            RpcFault::new(Code::DataLoss, "tree-mismatch", error.to_string())
                .with_hint("start the run again; nothing was sealed")
        }
        SealError::Entry { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            RpcFault::new(Code::FailedPrecondition, "not-privileged", error.to_string()).with_hint(
                "run assay-target as root, so that it can give files the owners and modes that they have at the source",
            )
        }
        _ => internal("sealing the generation", &error),
    }
}
