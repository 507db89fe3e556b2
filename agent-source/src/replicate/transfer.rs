//! Sends batches: offers them, hears what the target lacks, sends that. Offers run far ahead of the answers, so that
//! neither the number of files nor the round-trip time sets the pace; what is held meanwhile is bounded by the budget.

use std::{collections::HashMap, sync::Arc};

use assay_proto::v1::{
    Offer, Pack, TransferRequest, TransferStart, replication_service_client::ReplicationServiceClient,
    transfer_request::Kind,
};
use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, transport::Channel};

use super::{Counters, reader::Batch};

/// Level of compression: about as small as zlib's usual one at a fraction of its cost.
const ZSTD_LEVEL: i32 = 3;
/// What does not get smaller than this share is sent as it is.
const WORTH_PERCENT: usize = 97;
/// Messages that wait for the connection.
const QUEUE: usize = 16;

/// Why content could not be sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// The target ended the stream, or the connection was cut.
    #[error("the transfer to the target broke off: {}", .0.message())]
    Rpc(#[from] Box<Status>),
    /// The target does not keep to the protocol.
    #[error("the target's message breaks the protocol: {rule}")]
    Protocol {
        /// The rule.
        rule: &'static str,
    },
}

impl From<Status> for TransferError {
    fn from(status: Status) -> Self {
        Self::Rpc(Box::new(status))
    }
}

/// Sends all batches and returns when the target has stored what it wanted.
///
/// # Errors
/// When the connection breaks or the target refuses something.
pub async fn transfer(
    mut client: ReplicationServiceClient<Channel>,
    start: TransferStart,
    mut batches: mpsc::Receiver<Batch>,
    counters: Arc<Counters>,
) -> Result<(), TransferError> {
    let (requests, queue) = mpsc::channel(QUEUE);
    let send = |kind| async {
        // The stream's own error tells more than a closed queue does.
        drop(requests.send(TransferRequest { kind: Some(kind) }).await);
    };
    send(Kind::Start(start)).await;
    let mut responses = client.transfer(ReceiverStream::new(queue)).await?.into_inner();
    let mut offered: HashMap<u64, Batch> = HashMap::new();
    let mut number = 0;
    let mut more = true;
    while more || !offered.is_empty() {
        tokio::select! {
            batch = batches.recv(), if more => match batch {
                None => more = false,
                Some(mut batch) => {
                    number += 1;
                    let parts = std::mem::take(&mut batch.parts);
                    offered.insert(number, batch);
                    send(Kind::Offer(Offer { batch: number, parts })).await;
                }
            },
            response = responses.message() => {
                let Some(response) = response? else {
                    return Err(TransferError::Protocol { rule: "the stream ends with 'stored'" });
                };
                let Some(batch) = offered.remove(&response.batch) else {
                    return Err(TransferError::Protocol { rule: "an answer names an offer that waits for one" });
                };
                if response.wanted.iter().any(|byte| *byte != 0) {
                    send(Kind::Pack(pack(response.batch, batch, &response.wanted, &counters).await?)).await;
                }
            }
        }
    }
    drop(requests);
    match responses.message().await? {
        Some(response) if response.stored => Ok(()),
        _ => Err(TransferError::Protocol { rule: "the stream ends with 'stored'" }),
    }
}

/// Puts the wanted chunks of a batch into one message. They share one compression context.
async fn pack(number: u64, batch: Batch, wanted: &[u8], counters: &Counters) -> Result<Pack, TransferError> {
    let mut content = BytesMut::new();
    let mut sent = 0;
    for (index, chunk) in batch.chunks.iter().enumerate() {
        if wanted.get(index / 8).is_some_and(|byte| byte >> (index % 8) & 1 == 1) {
            content.extend_from_slice(chunk);
            sent += 1;
        }
    }
    if wanted.len() > batch.chunks.len().div_ceil(8) || sent == 0 {
        return Err(TransferError::Protocol { rule: "only offered chunks are wanted" });
    }
    let content = content.freeze();
    let raw_bytes = content.len() as u64;
    counters.chunks_sent.add(sent);
    counters.bytes_sent.add(raw_bytes);
    let raw = content.clone();
    let compressed = tokio::task::spawn_blocking(move || zstd::bulk::compress(&raw, ZSTD_LEVEL))
        .await
        .ok()
        .and_then(Result::ok)
        .filter(|data| data.len() * 100 < content.len() * WORTH_PERCENT);
    // The budget is given back here: what waits in the queue from now on is bounded by the queue.
    drop(batch);
    Ok(match compressed {
        Some(data) => Pack { batch: number, raw_bytes, zstd: true, data: Bytes::from(data) },
        None => Pack { batch: number, raw_bytes, zstd: false, data: content },
    })
}
