//! `assay.v1.ReplicationService`: what a source asks of the target.

mod acknowledging;
mod copying;
mod ending;
mod opening;
mod sealing;
mod transfer;

use std::{
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use assay_common::{
    id::{GenerationNumber, RunId},
    limits::MAX_MANIFEST_STREAMS,
    pki::{PeerIdentity, Role},
    rpc_status::RpcFault,
    telemetry,
    tls::require_role,
    verdict::{HexDigest, STATEMENTS},
};
use assay_proto::v1::{
    AbandonRunRequest, AbandonRunResponse, AcknowledgeVerdictRequest, AcknowledgeVerdictResponse,
    CheckRunRequest, FetchManifestRequest, GetOutlookRequest, ManifestPart, OpenRunRequest, OpenRunResponse,
    Outlook, ReportReadingsRequest, ReportReadingsResponse, RunCheckProgress, SealRunRequest,
    SealRunResponse, TransferRequest, TransferResponse, replication_service_server::ReplicationService,
    seal_run_request, transfer_request,
};
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Code, Request, Response, Status, Streaming};
use tracing::Instrument as _;

use self::{
    copying::CopySlots,
    ending::{abandon, check_answers, check_states},
    opening::{check_history, open},
    sealing::{seal_and_settle, sealed_already, sealed_response},
    transfer::{receive, receive_fault},
};
use super::{Repositories, internal, invalid};
use crate::{
    config::PeerLimits,
    repository::{Opened, Repository, occupancy::Refusal},
    store::MANIFEST,
};

/// Version of the replication protocol that this agent speaks.
const PROTOCOL: u32 = 3;
/// Messages between the connection and the thread that works on them.
const QUEUE: usize = 16;
/// Bytes of a manifest in one message.
const PART_BYTES: usize = 256 * 1024;

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
pub struct Replication {
    repositories: Arc<Repositories>,
    limits: PeerLimits,
    copying: Arc<CopySlots>,
}

impl Replication {
    /// For these repositories.
    pub fn new(repositories: Arc<Repositories>, limits: PeerLimits) -> Self {
        Self { repositories, limits, copying: Arc::new(CopySlots::new(limits.runs_at_a_time)) }
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

fn refused_for(id: &RunId) -> impl FnOnce(Refusal) -> RpcFault + '_ {
    move |refusal| match refusal {
        Refusal::NoSuchRun => no_such_run(id),
        refusal => super::busy(refusal),
    }
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
        let nonce = match (request.statements, HexDigest::from_slice(&request.nonce)) {
            (0, None) if request.nonce.is_empty() => None,
            (1.., Some(nonce)) => Some(nonce),
            _ => return Err(invalid("nonce: must have 32 bytes, and none with statements of form 0").into()),
        };
        let span = telemetry::of_run(&id);
        let failed_runs_per_hour = self.limits.failed_runs_per_hour;
        let name = repository.config.name.clone();
        let is_receiving = |name: &str| {
            self.repositories.get(name).is_ok_and(|repository| repository.occupancy.is_receiving())
        };
        self.copying.take(&name, &repository.config.source, is_receiving)?;
        let response = blocking(move || {
            span.in_scope(|| {
                check_history(&repository, &request)?;
                let opened = Opened {
                    time: jiff::Timestamp::now(),
                    nonce,
                    statements: request.statements.min(STATEMENTS),
                    full_check: request.full_check,
                };
                open(&repository, id, opened, failed_runs_per_hour)
            })
        })
        .await
        .inspect_err(|_| self.copying.free(&name))?;
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
        let lease = repository.occupancy.attach(&id).map_err(refused_for(&id))?;
        let turn = Arc::clone(&repository.turn);
        let (responses, queue) = mpsc::channel(QUEUE);
        let span = telemetry::of_run(&id);
        let work = async move {
            // What the stream before this one brought is settled first: then it is known what is still wanted.
            let turn = turn.lock_owned().await;
            let receiver = Arc::clone(lease.receiver());
            let received = receive(&receiver, messages, &responses, lease.token(), idle).await;
            let end = tokio::task::block_in_place(|| match received {
                Ok(true) => receiver
                    .finish()
                    .map(|()| TransferResponse { stored: true, ..Default::default() })
                    .map_err(receive_fault),
                Ok(false) => {
                    drop(receiver.interrupt());
                    Err(RpcFault::new(Code::Aborted, "cut-off", "the transfer was cut off before its end"))
                }
                Err(error) => {
                    drop(receiver.interrupt());
                    Err(receive_fault(error))
                }
            });
            drop(turn);
            drop(lease);
            let stats = receiver.stats();
            tracing::info!(
                offered = stats.offered,
                found = stats.found,
                received = stats.received,
                received_bytes = stats.received_bytes,
                ended = end.is_ok(),
                "content was received"
            );
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
            None => Ok(repository.occupancy.seal(&id).map_err(refused_for(&id))?),
        };
        let (responses, queue) = mpsc::channel(QUEUE);
        let copying = Arc::clone(&self.copying);
        // A task: a generation that is whole is checked, even when its source is gone by then.
        tokio::spawn(async move {
            let sealed = match sealing {
                Ok(lease) => seal_and_settle(&repository, &id, lease, start, messages, idle).await,
                Err(record) => Ok(record),
            };
            copying.free(&repository.config.name);
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
        let span = telemetry::of_run(&id);
        let copying = Arc::clone(&self.copying);
        let noted = blocking(move || {
            span.in_scope(|| {
                // A check that has not started is not wanted any more; one that runs goes on.
                if repository.occupancy.is_checking(&id) && repository.checks.give_up(&repository.config.name)
                {
                    repository.occupancy.check_has_ended(&id);
                }
                let given_up = repository.occupancy.abandon(&id).map_err(refused_for(&id))?;
                if let Some(reception) = &given_up {
                    reception.receiver.stop();
                }
                copying.free(&repository.config.name);
                abandon(&repository, id, request, given_up.map(|reception| reception.opened))
            })
        })
        .await;
        let (verdict_id, envelope) = noted?;
        Ok(Response::new(AbandonRunResponse { verdict_id, envelope }))
    }

    async fn acknowledge_verdict(
        &self,
        request: Request<AcknowledgeVerdictRequest>,
    ) -> Result<Response<AcknowledgeVerdictResponse>, Status> {
        let repository = self.repository(&request, &request.get_ref().repository)?;
        let request = request.into_inner();
        blocking(move || acknowledging::acknowledge(&repository, &request)).await?;
        Ok(Response::new(AcknowledgeVerdictResponse {}))
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

fn joined<T>(done: Result<T, tokio::task::JoinError>) -> T {
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}
