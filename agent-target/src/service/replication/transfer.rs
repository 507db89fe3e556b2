//! Content comes in: one stream at a time is attached to a run.

use std::{sync::Arc, time::Duration};

use assay_common::rpc_status::RpcFault;
use assay_proto::v1::{TransferRequest, TransferResponse, transfer_request};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

use super::{
    super::{internal, invalid},
    joined, stalled, unreadable,
};
use crate::receive::{ReceiveError, Receiver};

/// Messages that wait while as many as there are processors are worked on.
const WAITING_MESSAGES: usize = 2;

/// Works on a stream's messages, a few side by side. False when it was cut, or when another took its place. When this
/// returns, everything that came is settled.
pub(super) async fn receive(
    receiver: &Arc<Receiver>,
    mut messages: Streaming<TransferRequest>,
    responses: &mpsc::Sender<Result<TransferResponse, Status>>,
    taken_over: &CancellationToken,
    idle: Duration,
) -> Result<bool, ReceiveError> {
    let slots = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) + WAITING_MESSAGES;
    let mut work: JoinSet<Result<(), ReceiveError>> = JoinSet::new();
    let mut next = async || {
        loop {
            // While all are busy nothing more is taken from the connection: its window fills, and the source waits.
            let message = tokio::select! {
                message = messages.message(), if work.len() < slots => message,
                Some(done) = work.join_next() => {
                    joined(done)?;
                    continue;
                }
                () = taken_over.cancelled() => return Ok(false),
                () = tokio::time::sleep(idle), if work.is_empty() => return Err(ReceiveError::Stream(stalled(idle, "limits.idle"))),
            };
            let kind = match message {
                Ok(Some(TransferRequest { kind: Some(kind) })) => kind,
                Ok(None) => return Ok(true),
                Ok(Some(TransferRequest { kind: None })) => {
                    return Err(ReceiveError::Protocol { rule: "a message of no known kind" });
                }
                Err(status) => match unreadable(&status) {
                    fault if fault.reason == "cut-off" => return Ok(false),
                    fault => return Err(ReceiveError::Stream(fault)),
                },
            };
            let receiver = Arc::clone(receiver);
            let job: Box<dyn FnOnce() -> Result<TransferResponse, ReceiveError> + Send> = match kind {
                transfer_request::Kind::Start(_) => {
                    return Err(ReceiveError::Protocol { rule: "a transfer starts once" });
                }
                transfer_request::Kind::Offer(offer) => {
                    let accepted = tokio::task::block_in_place(|| receiver.accept(&offer))?;
                    Box::new(move || receiver.settle(accepted))
                }
                transfer_request::Kind::Pack(pack) => Box::new(move || receiver.pack(&pack)),
            };
            let (responses, taken_over) = (responses.clone(), taken_over.clone());
            work.spawn(async move {
                let response = joined(tokio::task::spawn_blocking(job).await)?;
                tokio::select! {
                    // A source that is gone takes no answer; the end of its messages says so as well.
                    sent = responses.send(Ok(response)) => drop(sent),
                    // And one that takes none does not keep another stream from its turn.
                    () = taken_over.cancelled() => {}
                }
                Ok(())
            });
        }
    };
    let mut ended = next().await;
    while let Some(done) = work.join_next().await {
        if let Err(error) = joined(done) {
            ended = ended.and(Err(error));
        }
    }
    ended
}

pub(super) fn receive_fault(error: ReceiveError) -> RpcFault {
    match &error {
        ReceiveError::Protocol { .. } => invalid(error.to_string()),
        ReceiveError::Stream(fault) => fault.clone(),
        // The source opens the run again: then every piece is compared.
        ReceiveError::BaseRotten { .. } => RpcFault::new(Code::Aborted, "base-rotten", error.to_string())
            .with_hint("start the run again; assay-target scrub shows what the disk has not kept"),
        ReceiveError::ChunkMismatch { .. } => {
            RpcFault::new(Code::DataLoss, "chunk-mismatch", error.to_string())
                .with_hint("start the run again; if it comes back, test the memory and network of both hosts")
        }
        ReceiveError::Reserve { .. } => {
            RpcFault::new(Code::ResourceExhausted, "store-full", format!("the target's disk is full: {error}"))
                .with_hint("free some space on the target (assay-target discard and prune, of any repository), or lower repository.reserve there; what has arrived is kept and not sent again")
        }
        ReceiveError::ReserveEntries { .. } => {
            RpcFault::new(Code::ResourceExhausted, "store-full", format!("the target's disk is full: {error}"))
                .with_hint("prune generations, or make a file system with more inodes for the store")
        }
        ReceiveError::QuotaEntries { .. } => {
            RpcFault::new(Code::ResourceExhausted, "quota-exceeded", error.to_string()).with_hint(
                "raise repository.quota_entries on the target, or let repository.retention remove generations there (assay-target prune)",
            )
        }
        ReceiveError::Quota { .. } => RpcFault::new(Code::ResourceExhausted, "quota-exceeded", error.to_string())
            .with_hint("raise repository.quota on the target, or let repository.retention remove generations there (assay-target prune)"),
        _ => internal("receiving content", &error),
    }
}
