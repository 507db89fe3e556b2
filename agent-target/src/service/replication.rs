//! `assay.v1.ReplicationService`: what a source asks of the target.

use std::{
    pin::{Pin, pin},
    sync::{Arc, PoisonError},
    time::Duration,
};

use assay_common::{
    digest::RootDigest,
    id::{GenerationNumber, RunId},
    limits::{
        MAX_MANIFEST_STREAMS, MAX_MARK_BYTES, MAX_OVERRIDES, MAX_REASON_BYTES, MAX_REASON_MESSAGE_BYTES,
    },
    manifest::ManifestError,
    pki::{PeerIdentity, Role},
    rpc_status::RpcFault,
    telemetry,
    tls::require_role,
    verdict::{self, Outcome, Verdict, verify_source_statement},
};
use assay_proto::v1::{
    AbandonRunRequest, AbandonRunResponse, CheckRunRequest, FetchManifestRequest, GetOutlookRequest,
    ManifestPart, OpenRunRequest, OpenRunResponse, Outlook, ReportReadingsRequest, ReportReadingsResponse,
    RunCheckProgress, SealFinish, SealRunRequest, SealRunResponse, SealStart, TransferRequest,
    TransferResponse, replication_service_server::ReplicationService, seal_run_request, transfer_request,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming};
use tracing::Instrument as _;

use super::{Repositories, internal, invalid};
use crate::{
    config::{self, PeerLimits},
    receive::{Allowance, Base, PlaceReader, ReceiveError, Receiver},
    repository::{Active, CheckState, Repository, Stage, times_now},
    seal::{self, Draft, Provenance, SealError, seal},
    store::{MANIFEST, MarkRecord, Record, Staging},
    verify,
};

/// Version of the replication protocol that this agent speaks.
const PROTOCOL: u32 = 2;
/// Messages that wait while as many as there are processors are worked on.
const WAITING_MESSAGES: usize = 2;
/// Messages between the connection and the thread that works on them.
const QUEUE: usize = 16;
/// With less than this free there is no room for a run.
const LITTLE_BYTES: u64 = 1024 * 1024;
/// Bytes of a manifest in one message.
const PART_BYTES: usize = 256 * 1024;

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
pub struct Replication {
    repositories: Arc<Repositories>,
    limits: PeerLimits,
}

impl Replication {
    /// For these repositories.
    pub fn new(repositories: Arc<Repositories>, limits: PeerLimits) -> Self {
        Self { repositories, limits }
    }

    /// The repository, if it is this source's.
    fn repository<T>(&self, request: &Request<T>, name: &str) -> Result<Arc<Repository>, Status> {
        let peer = require_role(request, &[Role::Source])?;
        self.repository_of(&peer, name)
    }

    fn repository_of(&self, peer: &PeerIdentity, name: &str) -> Result<Arc<Repository>, Status> {
        // One answer for a repository that is not there and one that is another source's: a source learns of its own only.
        let refused = || {
            RpcFault::new(
                Code::PermissionDenied,
                "not-your-repository",
                format!("the source {:?} has no repository {name:?} on this target", peer.name),
            )
            .with_hint("compare repository.name and repository.source in the target's configuration")
        };
        match self.repositories.get(name) {
            Ok(repository) if repository.config.source == peer.name && repository.config.name == name => {
                Ok(Arc::clone(repository))
            }
            _ => Err(refused().into()),
        }
    }
}

/// The next message of a stream, which may not be silent for longer than `limit`, a key of the configuration called `key`.
async fn next_message<T>(
    messages: &mut Streaming<T>,
    limit: Duration,
    key: &str,
) -> Result<Option<T>, RpcFault> {
    match tokio::time::timeout(limit, messages.message()).await {
        Ok(Ok(message)) => Ok(message),
        Ok(Err(status)) => Err(unreadable(&status)),
        Err(_) => Err(stalled(limit, key)),
    }
}

fn stalled(limit: Duration, key: &str) -> RpcFault {
    let text = format!("no message has come for {limit:?} ({key})");
    RpcFault::new(Code::DeadlineExceeded, "stalled", text)
        .with_hint("look for what holds the source up; the run can be started again")
}

/// Why a message could not be taken from its stream: it is too large or none, or the connection was cut.
fn unreadable(status: &Status) -> RpcFault {
    match status.code() {
        Code::OutOfRange | Code::InvalidArgument => {
            RpcFault::new(Code::InvalidArgument, "message-refused", status.message().to_owned())
        }
        _ => RpcFault::new(Code::Aborted, "cut-off", "the stream was cut off before its end"),
    }
}

fn run_id(text: &str) -> Result<RunId, RpcFault> {
    text.parse().map_err(|fault| invalid(format!("run_id: {fault}")))
}

fn busy(active: &Active, doing: &str) -> RpcFault {
    RpcFault::new(Code::Aborted, "busy", format!("run {} {doing}", active.run_id))
        .with_run_id(active.run_id.as_str())
        .with_hint("wait for it to end; assay-target status shows it")
}

fn no_such_run(id: &RunId) -> RpcFault {
    RpcFault::new(Code::FailedPrecondition, "no-such-run", format!("run {id} is not open on this target"))
        .with_hint("the target may have been restarted: start a new run")
}

#[tonic::async_trait]
impl ReplicationService for Replication {
    async fn open_run(&self, request: Request<OpenRunRequest>) -> Result<Response<OpenRunResponse>, Status> {
        let repository = self.repository(&request, &request.get_ref().repository)?;
        let request = request.into_inner();
        if request.protocol != PROTOCOL {
            let text = format!("the source speaks protocol {}, this target {PROTOCOL}", request.protocol);
            return Err(RpcFault::new(Code::FailedPrecondition, "protocol-version", text)
                .with_hint("install the same version of both agents")
                .into());
        }
        let id = run_id(&request.run_id)?;
        let span = telemetry::of_run(&id);
        let response = blocking(move || span.in_scope(|| open(&repository, id))).await?;
        Ok(Response::new(response))
    }

    type FetchManifestStream = BoxStream<ManifestPart>;

    async fn fetch_manifest(
        &self,
        request: Request<FetchManifestRequest>,
    ) -> Result<Response<Self::FetchManifestStream>, Status> {
        let repository = self.repository(&request, &request.get_ref().repository)?;
        let number = GenerationNumber(request.get_ref().generation);
        let path = repository.store.generation_path(number).join(MANIFEST);
        let file = std::fs::File::open(&path).map_err(|_| {
            RpcFault::new(Code::NotFound, "no-such-generation", format!("there is no generation {number}"))
        })?;
        // Each holds a thread for as long as its source likes.
        let slot = Arc::clone(&repository.manifest_streams).try_acquire_owned().map_err(|_| {
            let text = format!("{MAX_MANIFEST_STREAMS} manifests of this repository are being sent already");
            RpcFault::new(Code::ResourceExhausted, "too-many-streams", text)
        })?;
        let (parts, queue) = mpsc::channel(QUEUE);
        tokio::task::spawn_blocking(move || {
            use std::io::Read as _;
            let _slot = slot;
            let mut file = file;
            loop {
                let mut data = vec![0; PART_BYTES];
                let part = match file.read(&mut data) {
                    Ok(0) => break,
                    Ok(count) => {
                        data.truncate(count);
                        Ok(ManifestPart { data: data.into() })
                    }
                    Err(error) => Err(internal("reading a manifest", &error).into()),
                };
                let ended = part.is_err();
                if parts.blocking_send(part).is_err() || ended {
                    break;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(queue))))
    }

    type TransferStream = BoxStream<TransferResponse>;

    async fn transfer(
        &self,
        request: Request<Streaming<TransferRequest>>,
    ) -> Result<Response<Self::TransferStream>, Status> {
        let peer = require_role(&request, &[Role::Source])?;
        let mut messages = request.into_inner();
        let first = next_message(&mut messages, self.limits.first_message, "limits.first_message").await?;
        let start = match first.and_then(|message| message.kind) {
            Some(transfer_request::Kind::Start(start)) => start,
            _ => return Err(invalid("the first message of a transfer is its start").into()),
        };
        let idle = self.limits.idle;
        let repository = self.repository_of(&peer, &start.repository)?;
        let id = run_id(&start.run_id)?;
        let Attached { receiver, turn, token } = attach(&repository, &id)?;
        let (responses, queue) = mpsc::channel(QUEUE);
        let span = telemetry::of_run(&id);
        let work = async move {
            // What the stream before this one brought is settled first: then it is known what is still wanted.
            let turn = turn.lock_owned().await;
            let received = receive(&receiver, messages, &responses, &token, idle).await;
            let end = match received {
                Ok(true) => tokio::task::block_in_place(|| receiver.finish())
                    .map(|()| TransferResponse { stored: true, ..Default::default() })
                    .map_err(receive_fault),
                Ok(false) => {
                    drop(tokio::task::block_in_place(|| receiver.interrupt()));
                    Err(RpcFault::new(Code::Aborted, "cut-off", "the transfer was cut off before its end"))
                }
                Err(error) => {
                    drop(tokio::task::block_in_place(|| receiver.interrupt()));
                    Err(receive_fault(error))
                }
            };
            drop(turn);
            detach(&repository, &id, &token);
            let stats = receiver.stats();
            tracing::info!(?stats, ended = end.is_ok(), "content was received");
            drop(responses.send(end.map_err(Status::from)).await);
        };
        tokio::spawn(work.instrument(span));
        Ok(Response::new(Box::pin(ReceiverStream::new(queue))))
    }

    type SealRunStream = BoxStream<SealRunResponse>;

    async fn seal_run(
        &self,
        request: Request<Streaming<SealRunRequest>>,
    ) -> Result<Response<Self::SealRunStream>, Status> {
        let peer = require_role(&request, &[Role::Source])?;
        let mut messages = request.into_inner();
        let first = next_message(&mut messages, self.limits.first_message, "limits.first_message").await?;
        let start = match first.and_then(|message| message.kind) {
            Some(seal_run_request::Kind::Start(start)) => start,
            _ => return Err(invalid("the first message of a seal is its start").into()),
        };
        let idle = self.limits.idle;
        let repository = self.repository_of(&peer, &start.repository)?;
        let id = run_id(&start.run_id)?;
        let sealing = match sealed_already(&repository, &id) {
            Some(record) => Err(record),
            None => Ok(begin_seal(&repository, &id)?),
        };
        let (responses, queue) = mpsc::channel(QUEUE);
        // A task: a generation that is whole is checked, even when its source is gone by then.
        tokio::spawn(async move {
            let sealed = match sealing {
                Ok(sealing) => seal_and_settle(&repository, &id, sealing, start, messages, idle).await,
                Err(record) => Ok(record),
            };
            let ended = async {
                let record = sealed?;
                responses.send(Ok(sealed_response(&record))).await.ok();
                let mut answers = pin!(check_answers(check_states(&repository, id).await?));
                while let Some(answer) = answers.next().await {
                    let response = SealRunResponse { check: Some(answer?), ..Default::default() };
                    responses.send(Ok(response)).await.ok();
                }
                Ok::<_, RpcFault>(())
            };
            if let Err(fault) = ended.await {
                responses.send(Err(fault.into())).await.ok();
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(queue))))
    }

    type CheckRunStream = BoxStream<RunCheckProgress>;

    async fn check_run(
        &self,
        request: Request<CheckRunRequest>,
    ) -> Result<Response<Self::CheckRunStream>, Status> {
        let repository = self.repository(&request, &request.get_ref().repository)?;
        let id = run_id(&request.get_ref().run_id)?;
        let states = check_states(&repository, id).await?;
        Ok(Response::new(Box::pin(check_answers(states).map(|answer| Ok(answer?)))))
    }

    async fn report_readings(
        &self,
        request: Request<ReportReadingsRequest>,
    ) -> Result<Response<ReportReadingsResponse>, Status> {
        let repository = self.repository(&request, &request.get_ref().repository)?;
        let id = run_id(&request.get_ref().run_id)?;
        repository.desk.report(&id, request.into_inner())?;
        Ok(Response::new(ReportReadingsResponse {}))
    }

    async fn abandon_run(
        &self,
        request: Request<AbandonRunRequest>,
    ) -> Result<Response<AbandonRunResponse>, Status> {
        let repository = self.repository(&request, &request.get_ref().repository)?;
        let request = request.into_inner();
        let id = run_id(&request.run_id)?;
        let opened = {
            let mut active = repository.active();
            match active.as_ref() {
                Some(Active { run_id, stage: Stage::Receiving { attached, opened, .. } })
                    if *run_id == id =>
                {
                    if let Some(attached) = attached {
                        attached.cancel();
                    }
                    let opened = *opened;
                    *active = None;
                    Some(opened)
                }
                Some(Active { run_id, stage: Stage::Sealed }) if *run_id == id => {
                    *active = None;
                    None
                }
                Some(active) if active.run_id == id => {
                    return Err(busy(active, "is sealed or checked").into());
                }
                _ => return Err(no_such_run(&id).into()),
            }
        };
        let span = telemetry::of_run(&id);
        let noted = blocking(move || span.in_scope(|| abandon(&repository, id, request, opened))).await;
        let (verdict_id, envelope) = noted?;
        Ok(Response::new(AbandonRunResponse { verdict_id, envelope }))
    }

    async fn get_outlook(&self, request: Request<GetOutlookRequest>) -> Result<Response<Outlook>, Status> {
        let repository = self.repository(&request, &request.get_ref().repository)?;
        Ok(Response::new(blocking(move || super::outlook::outlook(&repository)).await?))
    }
}

/// Runs file work off the runtime's threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RpcFault> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?)
}

fn open(repository: &Repository, id: RunId) -> Result<OpenRunResponse, RpcFault> {
    let mut active = repository.active();
    repository.give_way();
    match active.as_ref() {
        Some(Active { run_id, stage: Stage::Receiving { attached, .. } }) => {
            if let Some(attached) = attached {
                if *run_id != id {
                    return Err(busy(active.as_ref().expect("it is some"), "is under way"));
                }
                attached.cancel();
            }
        }
        Some(other @ Active { stage: Stage::Sealed, run_id, .. }) if *run_id == id => {
            return Err(busy(other, "is sealed already"));
        }
        // Its source went away between seal and check: the generation stays, without a verdict.
        None | Some(Active { stage: Stage::Sealed, .. }) => {}
        Some(active) => return Err(busy(active, "is being sealed or checked")),
    }
    // A run that has ended is not opened again: its verdict would stand for a tree that nobody checked.
    let goes_on = active.as_ref().is_some_and(|active| active.run_id == id);
    if !goes_on && (repository.has_verdict(&id) || repository.generation_of_run(&id).is_some()) {
        let text = format!("run {id} has ended; a new run needs an id of its own");
        return Err(RpcFault::new(Code::FailedPrecondition, "run-id-used", text)
            .with_hint("check the source's clock: ids are made of the time"));
    }
    let recovered = repository.index.lock().unwrap_or_else(PoisonError::into_inner).recover();
    recovered.map_err(|error| internal("opening the chunk index again", &error))?;
    let (base, rotten) = repository.next_base().map_err(|error| internal("the store", &error))?.unzip();
    let rotten = rotten.unwrap_or_default();
    let (base_root, base_entries) = match base {
        None => (Vec::new(), 0),
        Some(base) => {
            let record = repository.store.record(base).map_err(|error| internal("the store", &error))?;
            let root = RootDigest::from_hex(&record.root_digest);
            (root.map(|root| root.0.to_vec()).unwrap_or_default(), record.entries)
        }
    };
    let staging = repository.store.open_staging().map_err(|error| internal("the store", &error))?;
    let allowance = allowance(repository, &staging)?;
    let response = OpenRunResponse {
        generation: staging.number().0,
        base_generation: base.map_or(0, |base| base.0),
        base_root_digest: base_root,
        staged_bytes: staging.staged_bytes(),
        base_entries,
        rotten: rotten.into_iter().collect(),
    };
    tracing::info!(generation = response.generation, base = response.base_generation, "the run is open");
    let staging = Arc::new(staging);
    let (store, index) = (Arc::clone(&repository.store), Arc::clone(&repository.index));
    let places = PlaceReader::new(store, Arc::clone(&staging), index, base);
    let known = match base {
        None => None,
        Some(base) => {
            Some(Base::open(&repository.store, base).map_err(|error| internal("the base", &error))?)
        }
    };
    let receiver = Arc::new(Receiver::new(Arc::clone(&staging), places, known, allowance));
    let (turn, opened) = (Arc::default(), jiff::Timestamp::now());
    let stage = Stage::Receiving { staging, base, receiver, turn, attached: None, opened };
    *active = Some(Active { run_id: id, stage });
    Ok(response)
}

/// What the run may write. What earlier sessions left stays, to be found, as long as there is room beside it.
fn allowance(repository: &Repository, staging: &Staging) -> Result<Allowance, RpcFault> {
    let config::Repository { quota, reserve, .. } = repository.config;
    let (stored, staged) = (repository.store.stored_bytes(), staging.staged_bytes());
    let is_over = quota.is_some_and(|quota| stored.saturating_add(staged) >= quota.0);
    let is_short = repository.store.free_bytes() <= reserve.0.saturating_add(LITTLE_BYTES);
    if staged > 0 && (is_over || is_short) {
        staging.forget_earlier().map_err(|error| internal("the store", &error))?;
    }
    let held = stored.saturating_add(staging.staged_bytes());
    Ok(Allowance::new(quota, held, reserve, staging.path()))
}

struct Attached {
    receiver: Arc<Receiver>,
    turn: Arc<tokio::sync::Mutex<()>>,
    token: CancellationToken,
}

/// Attaches a stream to its run. A stream that is attached already is of a connection that the source has given up, whether
/// or not that has been noticed here: it ends.
fn attach(repository: &Repository, id: &RunId) -> Result<Attached, RpcFault> {
    let mut active = repository.active();
    match active.as_mut() {
        Some(Active { run_id, stage: Stage::Receiving { receiver, turn, attached, .. } }) if run_id == id => {
            let token = CancellationToken::new();
            if let Some(before) = attached.replace(token.clone()) {
                before.cancel();
            }
            Ok(Attached { receiver: Arc::clone(receiver), turn: Arc::clone(turn), token })
        }
        _ => Err(no_such_run(id)),
    }
}

fn detach(repository: &Repository, id: &RunId, token: &CancellationToken) {
    // A token that was cancelled belongs to a stream whose place has been taken.
    if let Some(Active { run_id, stage: Stage::Receiving { attached, .. } }) = repository.active().as_mut()
        && run_id == id
        && !token.is_cancelled()
    {
        *attached = None;
    }
}

/// Works on a stream's messages, a few side by side. False when it was cut, or when another took its place. When this
/// returns, everything that came is settled.
async fn receive(
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
            let responses = responses.clone();
            work.spawn(async move {
                let response = joined(tokio::task::spawn_blocking(job).await)?;
                // A source that is gone takes no answer; the end of its messages says so as well.
                drop(responses.send(Ok(response)).await);
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

fn joined<T>(done: Result<T, tokio::task::JoinError>) -> T {
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

fn receive_fault(error: ReceiveError) -> RpcFault {
    match &error {
        ReceiveError::Protocol { .. } => invalid(error.to_string()),
        ReceiveError::Stream(fault) => fault.clone(),
        ReceiveError::ChunkMismatch { .. } => {
            RpcFault::new(Code::DataLoss, "chunk-mismatch", error.to_string())
                .with_hint("start the run again; if it comes back, test the memory and network of both hosts")
        }
        ReceiveError::Reserve { .. } => {
            RpcFault::new(Code::ResourceExhausted, "store-full", format!("the target's disk is full: {error}"))
                .with_hint("free some space on the target, or lower repository.reserve there; what has arrived is kept and not sent again")
        }
        ReceiveError::Quota { .. } => RpcFault::new(Code::ResourceExhausted, "quota-exceeded", error.to_string())
            .with_hint("raise repository.quota on the target, or let repository.retention remove generations there (assay-target prune)"),
        _ => internal("receiving content", &error),
    }
}

/// A run that is being sealed, with what is needed to take it up again when it is not.
struct Sealing {
    staging: Arc<Staging>,
    base: Option<GenerationNumber>,
    receiver: Arc<Receiver>,
    turn: Arc<tokio::sync::Mutex<()>>,
    opened: jiff::Timestamp,
}

/// The generation of a run whose source did not hear that it was sealed.
fn sealed_already(repository: &Repository, id: &RunId) -> Option<Record> {
    match repository.active().as_ref() {
        None => {}
        Some(Active { run_id, stage: Stage::Sealed }) if run_id == id => {}
        Some(_) => return None,
    }
    repository.generation_of_run(id)
}

fn sealed_response(record: &Record) -> SealRunResponse {
    let root = RootDigest::from_hex(&record.root_digest).map(|root| root.0.to_vec());
    let root_digest = root.unwrap_or_default();
    SealRunResponse { generation: record.generation, root_digest, check: None }
}

fn begin_seal(repository: &Repository, id: &RunId) -> Result<Sealing, RpcFault> {
    let mut active = repository.active();
    let parts = match active.as_ref() {
        Some(Active {
            run_id,
            stage: Stage::Receiving { staging, base, receiver, turn, attached: None, opened },
        }) if run_id == id => Sealing {
            staging: Arc::clone(staging),
            base: *base,
            receiver: Arc::clone(receiver),
            turn: Arc::clone(turn),
            opened: *opened,
        },
        Some(other) if other.run_id == *id => return Err(busy(other, "is not ready to be sealed")),
        _ => return Err(no_such_run(id)),
    };
    *active = Some(Active { run_id: id.clone(), stage: Stage::Sealing });
    Ok(parts)
}

/// Seals a run from the rest of its stream. When it cannot be sealed, the run is open as it was before.
async fn seal_and_settle(
    repository: &Arc<Repository>,
    id: &RunId,
    sealing: Sealing,
    start: SealStart,
    mut messages: Streaming<SealRunRequest>,
    idle: Duration,
) -> Result<Record, RpcFault> {
    let Sealing { staging, base, receiver, turn, opened } = sealing;
    let (steps, queue) = mpsc::channel(QUEUE);
    let span = telemetry::of_run(id);
    let working = tokio::task::spawn_blocking({
        let (repository, id, staging) = (Arc::clone(repository), id.clone(), Arc::clone(&staging));
        let span = span.clone();
        move || span.in_scope(|| seal_blocking(&repository, &id, &staging, base, &start, queue))
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
    let stage = match &sealed {
        Ok(record) => {
            span.in_scope(|| {
                tracing::info!(generation = record.generation, root = record.root_digest, "sealed")
            });
            Stage::Sealed
        }
        Err(fault) => {
            span.in_scope(|| tracing::warn!(reason = %fault.reason, message = fault.message, "not sealed"));
            Stage::Receiving { staging, base, receiver, turn, attached: None, opened }
        }
    };
    *repository.active() = Some(Active { run_id: id.clone(), stage });
    sealed
}

fn seal_blocking(
    repository: &Repository,
    id: &RunId,
    staging: &Staging,
    base: Option<GenerationNumber>,
    start: &SealStart,
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
                let (root, provenance) = provenance(repository, id, finish)?;
                let store = &repository.store;
                return seal(store, staging, &repository.index, draft, root, provenance).map_err(seal_fault);
            }
        }
    }
    Err(RpcFault::new(Code::Aborted, "cut-off", "the manifest was cut off before its end"))
}

/// A mark, whose text is of a length that can stand in a verdict.
fn checked_mark(mark: Option<&assay_proto::v1::Mark>) -> Result<Option<verdict::Mark>, RpcFault> {
    if mark.is_some_and(|mark| mark.id.len() > MAX_MARK_BYTES) {
        return Err(invalid("mark.id: at most 4096 bytes were expected"));
    }
    Ok(mark.and_then(verdict::Mark::from_proto))
}

/// Checks what the source says of the generation: its statement must carry its signature and agree with the rest.
fn provenance(
    repository: &Repository,
    id: &RunId,
    finish: SealFinish,
) -> Result<(RootDigest, Provenance), RpcFault> {
    let root = RootDigest::from_slice(&finish.root_digest)
        .ok_or_else(|| invalid("finish.root_digest: 32 bytes were expected"))?;
    let mark = checked_mark(finish.mark.as_ref())?
        .ok_or_else(|| invalid("finish.mark: an id and a time were expected"))?;
    let plain = |word: &String| {
        (1..=MAX_REASON_BYTES).contains(&word.len())
            && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    };
    if finish.overrides.len() > MAX_OVERRIDES || !finish.overrides.iter().all(plain) {
        return Err(invalid(
            "finish.overrides: at most 8 words of up to 64 small letters and '_' were expected",
        ));
    }
    let refused = |text: String| {
        RpcFault::new(Code::PermissionDenied, "statement-refused", format!("the source's statement: {text}"))
            .with_hint(
                "compare repository.source_key in the target's configuration with the source's public key",
            )
    };
    let envelope = assay_common::dsse::Envelope::parse(finish.source_statement.as_bytes())
        .map_err(|error| refused(error.to_string()))?;
    let statement = verify_source_statement(&envelope, &repository.source_key)
        .map_err(|error| refused(error.to_string()))?;
    let agrees = statement.repository == repository.config.name
        && statement.run_id == *id
        && statement.root.is_some_and(|signed| signed.0 == root.0)
        && statement.mark == mark
        && statement.overrides == finish.overrides;
    if !agrees {
        return Err(refused("it is about another run, mark or tree than the one that was sent".to_owned()));
    }
    let counts = finish.counts.unwrap_or_default();
    let provenance = Provenance {
        repository: repository.config.name.clone(),
        run_id: id.to_string(),
        mark: MarkRecord { id: mark.id, time: mark.time },
        overrides: finish.overrides,
        counts: assay_common::json::to_json("Counts", &counts),
        source_statement: serde_json::from_str(&finish.source_statement)
            .map_err(|_| invalid("finish.source_statement: JSON was expected"))?,
    };
    Ok((root, provenance))
}

fn seal_fault(error: SealError) -> RpcFault {
    match &error {
        SealError::Manifest(ManifestError::Io(_)) => internal("writing the manifest", &error),
        SealError::Delta(_) | SealError::Manifest(_) | SealError::Packed { .. } => {
            RpcFault::new(Code::InvalidArgument, "manifest-refused", error.to_string())
        }
        SealError::Rotten { .. } => RpcFault::new(Code::FailedPrecondition, "base-rotten", error.to_string())
            .with_hint("start the run again: it sends that file anew"),
        SealError::WrongBase { .. } => RpcFault::new(Code::FailedPrecondition, "wrong-base", error.to_string()),
        SealError::RootMismatch { .. }
        | SealError::ContentMismatch { .. }
        | SealError::LengthMismatch { .. }
        | SealError::ContentMissing { .. } => RpcFault::new(Code::DataLoss, "tree-mismatch", error.to_string())
            .with_hint("start the run again; nothing was sealed"),
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

fn verdict_of_run(repository: &Repository, id: &RunId) -> Option<(String, String)> {
    let (verdict_id, _) = repository
        .verdicts()
        .find(|(_, verdict)| verdict.run_id == *id && verdict.outcome != Outcome::NotRun)?;
    let envelope = repository.envelope(&verdict_id).ok()?;
    Some((verdict_id, envelope))
}

/// How the check of a run stands: the one that runs, one that starts now, or the end of the one that there was.
async fn check_states(
    repository: &Arc<Repository>,
    id: RunId,
) -> Result<watch::Receiver<CheckState>, RpcFault> {
    let known = tokio::task::spawn_blocking({
        let (repository, id) = (Arc::clone(repository), id.clone());
        move || verdict_of_run(&repository, &id)
    });
    match joined(known.await) {
        Some(verdict) => {
            let done = CheckState { done: Some(Ok(verdict)), ..Default::default() };
            Ok(watch::Sender::new(done).subscribe())
        }
        None => start_check(repository, id),
    }
}

/// What the source is told of a check. It is asked for a second reading once.
fn check_answers(
    states: watch::Receiver<CheckState>,
) -> impl Stream<Item = Result<RunCheckProgress, RpcFault>> + Send {
    let mut asked = false;
    verify::follow(states).map(move |state| match state.done {
        None => {
            let read_again = state.read_again.filter(|_| !asked);
            asked |= read_again.is_some();
            let read_again = read_again.map(|files| files.to_vec()).unwrap_or_default();
            Ok(RunCheckProgress { step: state.step, read_again, ..Default::default() })
        }
        Some(Ok((verdict_id, envelope))) => {
            Ok(RunCheckProgress { verdict_id, envelope, ..Default::default() })
        }
        Some(Err(message)) => Err(RpcFault::new(Code::Internal, "check-failed", message)),
    })
}

/// Starts the check of a run's generation, or joins the one that runs.
fn start_check(repository: &Arc<Repository>, id: RunId) -> Result<watch::Receiver<CheckState>, RpcFault> {
    let mut active = repository.active();
    match active.as_ref() {
        Some(Active { run_id, stage: Stage::Checking(state) }) if *run_id == id => return Ok(state.clone()),
        Some(Active { run_id, stage: Stage::Sealed }) if *run_id == id => {}
        Some(other) => return Err(busy(other, "is under way")),
        // The agent was restarted between seal and check.
        None => {}
    }
    let record = repository.generation_of_run(&id).ok_or_else(|| no_such_run(&id))?;
    let state = verify::start(Arc::clone(repository), id.clone(), record, verify::AskedBy::Source);
    *active = Some(Active { run_id: id, stage: Stage::Checking(state.clone()) });
    Ok(state)
}

fn abandon(
    repository: &Repository,
    id: RunId,
    request: AbandonRunRequest,
    opened: Option<jiff::Timestamp>,
) -> Result<(String, String), RpcFault> {
    let reason = request.reason;
    let plain = !reason.is_empty()
        && reason.len() <= MAX_REASON_BYTES
        && reason.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    if !plain || request.message.len() > MAX_REASON_MESSAGE_BYTES {
        return Err(invalid(
            "reason: up to 64 small letters and '-' were expected; message: up to 4096 bytes",
        ));
    }
    let mark = checked_mark(request.mark.as_ref())?;
    tracing::warn!(reason, message = request.message, "the source gave the run up");
    let recorded = repository.record_verdict(|sequence, previous| Verdict {
        repository: repository.config.name.clone(),
        run_id: id,
        sequence,
        previous,
        outcome: Outcome::NotRun,
        reason,
        message: request.message,
        generation: None,
        root: None,
        mark,
        depth: None,
        profile: None,
        steps: Vec::new(),
        patches: Vec::new(),
        overlay_files: Vec::new(),
        workspace: None,
        attribution: None,
        negative_control: repository.control(),
        overrides: Vec::new(),
        times: verdict::Times { opened, ..times_now() },
        versions: verify::versions(None),
        source_statement: None,
    });
    recorded.map_err(|error| internal("recording the verdict", &error))
}
