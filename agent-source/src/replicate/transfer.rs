//! Sends batches: offers them, hears what the target lacks, sends that, and keeps each until the target has it.
//!
//! Offers run far ahead of the answers, so that neither the number of files nor the round-trip time sets the pace; what is
//! held meanwhile is bounded by the budget, and what was let go by `MAX_OFFERED_BYTES`. When the connection is cut, a new stream
//! offers again what was not acknowledged: a chunk that had arrived is not wanted a second time, and no file is read a second time.

mod compress;
mod pack;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use assay_common::{
    fault::{Point, at},
    limits::MAX_OUTSTANDING_BYTES,
    path::TreePath,
    rpc_status::fault_from_status,
    tls::MeteredChannel,
};
use assay_proto::v1::{
    Offer, TransferRequest, TransferResponse, TransferStart,
    replication_service_client::ReplicationServiceClient, transfer_request::Kind,
};
use futures::{StreamExt as _, TryFutureExt as _};
use tokio::{
    sync::mpsc,
    task::{JoinError, JoinSet},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::{Counters, batch::Batch, chunk::Changed};
pub use compress::Method;
use pack::{Packer, Unpacked};

/// Messages that wait for the connection.
const QUEUE: usize = 8;
/// Pause before a cut connection is tried again; twice as long each time ...
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// ... up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Packs that are on their way after a cut, until the first of them is stored. What is on its way when a connection is cut is
/// lost: on a link that is cut often, a source that sends all it has at once may lose all of it each time. With one at a time, a
/// connection that lasts for one batch (5 MiB) takes the run further.
const PACKS_AFTER_CUT: usize = 1;

/// Content of batches that were offered and are not stored, in bytes, held here or not: any of it may be wanted, and a target
/// refuses to want more than twice as much.
const MAX_OFFERED_BYTES: usize = MAX_OUTSTANDING_BYTES as usize / 2;

/// How content is sent.
#[derive(Debug, Clone)]
pub struct TransferOptions {
    /// How content is compressed.
    pub compression: Compression,
    /// Batches that are compressed side by side.
    pub threads: usize,
    /// Bytes of content that may go out in a second, after compression.
    pub limit_bytes_per_second: Option<u64>,
    /// How long a connection that was cut is tried again.
    pub retry: Duration,
    /// How long the target may owe an answer.
    pub patience: Duration,
}

/// How content is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// As far as the link makes it worth the while.
    Auto,
    /// At this level of zstd.
    Level(i32),
    /// Not at all.
    Off,
}

/// Why content could not be sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// The target ended the stream, or the connection was cut and did not come back.
    #[error("the transfer to the target broke off: {}", .0.message())]
    Rpc(#[from] Box<Status>),
    /// The target was restarted: it knows what it stored, not what this stream was about.
    #[error("the target was restarted while content was sent")]
    TargetRestarted,
    /// The target's disk has not kept what a file here was to share with the base.
    #[error("the target's disk has not kept what was sealed: {}", .0.message())]
    BaseRotten(Box<Status>),
    /// The target owes an answer and gives none, on a connection that stands.
    #[error("the target has owed an answer for {patience:?} (target.patience)")]
    Stalled {
        /// How long it may.
        patience: Duration,
    },
    /// The target lacks a piece that it had, and the file here no longer has it either.
    #[error("{path}: the target's disk has not kept it, and it has changed since it was read")]
    Changed {
        /// The file.
        path: TreePath,
    },
    /// The target does not keep to the protocol.
    #[error("the target's message breaks the protocol: {rule}")]
    Protocol {
        /// The rule.
        rule: &'static str,
    },
}

impl TransferError {
    /// The error as a status, for whoever waits for the target's answer.
    pub fn into_status(self) -> Status {
        match self {
            Self::Rpc(status) => *status,
            error => Status::deadline_exceeded(error.to_string()),
        }
    }
}

impl From<Status> for TransferError {
    fn from(status: Status) -> Self {
        Self::Rpc(Box::new(status))
    }
}

/// True when nobody said no: the connection was lost, or never came about.
pub fn is_cut(status: &Status) -> bool {
    let by_code =
        matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled);
    // What an agent says has a reason; what a broken connection says has none.
    let reason = fault_from_status(status).reason;
    by_code && reason.is_empty() || status.code() == Code::Aborted && reason == "cut-off"
}

/// Sends all batches and returns when the target has stored what it wanted.
///
/// # Errors
/// When the connection breaks for longer than the options allow, or the target refuses something.
pub async fn transfer(
    client: ReplicationServiceClient<MeteredChannel>,
    start: TransferStart,
    batches: mpsc::Receiver<Batch>,
    (options, usual): (&TransferOptions, Method),
    counters: Arc<Counters>,
) -> Result<(), TransferError> {
    let packer = Arc::new(Packer::new(options, usual, Arc::clone(&counters)));
    let patience = options.patience;
    let mut sending = Sending {
        batches,
        more: true,
        number: 0,
        held: BTreeMap::new(),
        offered_bytes: 0,
        packer,
        patience,
        packs_on_their_way: usize::MAX,
    };
    let (mut cut_since, mut pause) = (None::<Instant>, FIRST_PAUSE);
    loop {
        let before = sending.progress();
        match sending.stream(client.clone(), start.clone()).await {
            Err(TransferError::Rpc(status)) if is_cut(&status) => {
                if sending.progress() != before {
                    // It worked for a while: this is a new cut.
                    (cut_since, pause) = (None, FIRST_PAUSE);
                }
                if cut_since.get_or_insert_with(Instant::now).elapsed() + pause > options.retry {
                    return Err(TransferError::Rpc(status));
                }
                counters.reconnects.add(1);
                sending.packs_on_their_way = PACKS_AFTER_CUT;
                tracing::warn!(error = status.message(), "the connection was lost and is tried again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Err(TransferError::Rpc(status)) => {
                return Err(match &*fault_from_status(&status).reason {
                    "no-such-run" => TransferError::TargetRestarted,
                    "base-rotten" => TransferError::BaseRotten(status),
                    _ => TransferError::Rpc(status),
                });
            }
            ended => return ended,
        }
    }
}

/// What is being sent, across streams.
struct Sending {
    batches: mpsc::Receiver<Batch>,
    /// False when the readers have ended.
    more: bool,
    /// Of the batch that was offered last.
    number: u64,
    /// Batches that are not acknowledged.
    held: BTreeMap<u64, Arc<Batch>>,
    /// Bytes of their content.
    offered_bytes: usize,
    packer: Arc<Packer>,
    patience: Duration,
    /// How many packs may be on their way; one more with each that is stored.
    packs_on_their_way: usize,
}

impl Sending {
    /// Changes whenever anything is acknowledged.
    fn progress(&self) -> (u64, usize) {
        (self.held.keys().next().copied().unwrap_or(self.number + 1), self.held.len())
    }

    /// One stream, from its start to its end or to the cut. Nothing waits for an answer that it does not need: offers go out
    /// before the target has said that it heard the start, and the end before it has said that all is stored.
    async fn stream(
        &mut self,
        mut client: ReplicationServiceClient<MeteredChannel>,
        start: TransferStart,
    ) -> Result<(), TransferError> {
        let (requests, queue) = mpsc::channel(QUEUE);
        send(&requests, Kind::Start(start)).await;
        let responses = async move { Ok(client.transfer(ReceiverStream::new(queue)).await?.into_inner()) };
        let mut responses = pin!(responses.try_flatten_stream());
        let patience = self.patience;
        let mut heard = tokio::time::Instant::now();
        // What an earlier stream left open comes first, and beside the answers to it.
        let mut again: Vec<u64> = self.held.keys().rev().copied().collect();
        let mut line = Line {
            requests: Some(requests),
            packing: JoinSet::new(),
            unanswered: BTreeSet::new(),
            on_their_way: BTreeSet::new(),
            waiting: VecDeque::new(),
        };
        while self.more || !line.is_quiet() || !again.is_empty() {
            let requests = line.requests.clone().expect("it is closed below");
            if let Some(number) = again.last().copied() {
                tokio::select! {
                    biased;
                    response = responses.next() => {
                        heard = tokio::time::Instant::now();
                        self.answer(response, &mut line)?;
                    }
                    () = tokio::time::sleep_until(heard + patience) => {
                        return Err(TransferError::Stalled { patience });
                    }
                    permit = requests.reserve() => {
                        again.pop();
                        // The stream's own error tells more than a closed queue does.
                        if let (Ok(permit), Some(batch)) = (permit, self.held.get(&number)) {
                            permit.send(request(offer(number, batch)));
                            line.unanswered.insert(number);
                        }
                    }
                }
                continue;
            }
            tokio::select! {
                batch = self.batches.recv(), if self.more && self.offered_bytes < MAX_OFFERED_BYTES => match batch {
                    None => self.more = false,
                    Some(batch) => {
                        if self.held.is_empty() {
                            // Until now nothing was owed.
                            heard = tokio::time::Instant::now();
                        }
                        self.number += 1;
                        let batch = Arc::new(batch);
                        self.offered_bytes += batch.content_bytes;
                        self.held.insert(self.number, Arc::clone(&batch));
                        at(Point::StreamCut).map_err(|error| Status::unavailable(error.to_string()))?;
                        line.unanswered.insert(self.number);
                        send(&requests, offer(self.number, &batch)).await;
                    }
                },
                response = responses.next() => {
                    heard = tokio::time::Instant::now();
                    self.answer(response, &mut line)?;
                }
                () = tokio::time::sleep_until(heard + patience), if !self.held.is_empty() => {
                    return Err(TransferError::Stalled { patience });
                }
                Some(packed) = line.packing.join_next() => joined(packed)?,
            }
        }
        line.requests = None;
        let stalled = |_| TransferError::Stalled { patience };
        while !self.held.is_empty() {
            let response = tokio::time::timeout(patience, responses.next()).await.map_err(stalled)?;
            self.answer(response, &mut line)?;
        }
        let last = tokio::time::timeout(patience, responses.next()).await.map_err(stalled)?;
        match last.transpose()? {
            Some(TransferResponse { batch: 0, stored: true, .. }) => Ok(()),
            _ => Err(TransferError::Protocol { rule: "the stream ends with 'stored'" }),
        }
    }

    fn answer(
        &mut self,
        response: Option<Result<TransferResponse, Status>>,
        line: &mut Line,
    ) -> Result<(), TransferError> {
        let rule = "the stream ends with 'stored'";
        let response = response.transpose()?.ok_or(TransferError::Protocol { rule })?;
        let number = response.batch;
        let Some(batch) = self.held.get(&number) else {
            return Err(TransferError::Protocol { rule: "an answer names a batch that waits for one" });
        };
        if response.stored {
            line.unanswered.remove(&number);
            self.offered_bytes -= batch.content_bytes;
            self.held.remove(&number);
            if line.on_their_way.remove(&number) {
                self.packs_on_their_way = self.packs_on_their_way.saturating_add(1);
            } else {
                line.waiting.retain(|(waiting, _)| *waiting != number);
            }
        } else {
            if !line.unanswered.remove(&number) {
                return Err(TransferError::Protocol { rule: "a batch is answered once, and stored" });
            }
            line.waiting.push_back((number, Wanted::new(&response.wanted, batch.chunks.len())?));
        }
        self.pack(line)
    }

    /// Sends packs, as many as may be on their way.
    fn pack(&self, line: &mut Line) -> Result<(), TransferError> {
        while line.on_their_way.len() < self.packs_on_their_way
            && let Some((number, wanted)) = line.waiting.pop_front()
        {
            let (Some(batch), Some(requests)) = (self.held.get(&number), &line.requests) else { continue };
            let (packer, batch, requests) = (Arc::clone(&self.packer), Arc::clone(batch), requests.clone());
            line.on_their_way.insert(number);
            line.packing.spawn(async move {
                match packer.pack_and_send(number, (batch, wanted), &requests).await {
                    // The stream's own error tells more.
                    Ok(()) | Err(Unpacked::Stopped) => Ok(()),
                    Err(Unpacked::Changed(Changed(path))) => Err(TransferError::Changed { path }),
                }
            });
        }
        // Those that are done are forgotten here.
        while let Some(packed) = line.packing.try_join_next() {
            joined(packed)?;
        }
        Ok(())
    }
}

/// One stream's way out.
struct Line {
    /// `None`: nothing more is said.
    requests: Option<mpsc::Sender<TransferRequest>>,
    /// Packs that are being made and sent.
    packing: JoinSet<Result<(), TransferError>>,
    /// Batches that were offered, and of which it is not known what is wanted.
    unanswered: BTreeSet<u64>,
    /// Batches whose pack was made or sent, and is not stored.
    on_their_way: BTreeSet<u64>,
    /// Batches whose pack may not be made yet, and what is wanted of each.
    waiting: VecDeque<(u64, Wanted)>,
}

impl Line {
    /// True when nothing is to be said but what new batches bring.
    fn is_quiet(&self) -> bool {
        self.unanswered.is_empty() && self.packing.is_empty() && self.waiting.is_empty()
    }
}

fn joined<T>(packed: Result<T, JoinError>) -> T {
    packed.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

fn request(kind: Kind) -> TransferRequest {
    TransferRequest { kind: Some(kind) }
}

fn offer(number: u64, batch: &Batch) -> Kind {
    Kind::Offer(Offer { batch: number, parts: batch.parts.clone() })
}

async fn send(requests: &mpsc::Sender<TransferRequest>, kind: Kind) {
    // The stream's own error tells more than a closed queue does.
    drop(requests.send(request(kind)).await);
}

/// Which chunks of a batch are wanted.
struct Wanted(Vec<usize>);

impl Wanted {
    fn new(bitmap: &[u8], chunks: usize) -> Result<Self, TransferError> {
        // Before it is unfolded: a bit for each chunk, and no more.
        if bitmap.len() > chunks.div_ceil(8) {
            return Err(TransferError::Protocol { rule: "only offered chunks are wanted" });
        }
        let set = |index: &usize| bitmap.get(index / 8).is_some_and(|byte| byte >> (index % 8) & 1 == 1);
        let wanted: Vec<usize> = (0..bitmap.len().saturating_mul(8)).filter(set).collect();
        match wanted.last() {
            Some(last) if *last < chunks => Ok(Self(wanted)),
            _ => Err(TransferError::Protocol { rule: "only offered chunks are wanted" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_offered_can_be_wanted() {
        assert_eq!(Wanted::new(&[0b101, 1], 9).map(|wanted| wanted.0).ok(), Some(vec![0, 2, 8]));
        assert!(Wanted::new(&[0b101, 1], 8).is_err(), "the ninth of eight");
        assert!(Wanted::new(&[0, 0], 9).is_err(), "nothing is wanted, and it is not said that it is stored");
        assert!(Wanted::new(&[], 9).is_err());
        assert!(Wanted::new(&[1, 0, 0], 9).is_err(), "more bits than chunks, whatever they are");
    }

    #[test]
    fn what_an_agent_says_is_no_cut() {
        use assay_common::rpc_status::RpcFault;
        assert!(is_cut(&Status::unavailable("tcp connect error")));
        assert!(is_cut(&Status::unknown("h2 protocol error")));
        assert!(is_cut(&RpcFault::new(Code::Aborted, "cut-off", "the transfer was cut off").into()));
        assert!(!is_cut(&RpcFault::new(Code::Internal, "internal", "a bug").into()));
        assert!(!is_cut(&RpcFault::new(Code::Aborted, "busy", "another run").into()));
        assert!(!is_cut(&Status::permission_denied("no")));
    }
}
