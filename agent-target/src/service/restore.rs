//! `assay.v1.RestoreService`: sealed generations for those who may take them back.

use std::{io::Read as _, pin::Pin, sync::Arc, time::Duration};

use assay_common::{
    error::Hint as _,
    id::GenerationNumber,
    limits::MAX_RESTORES,
    path::display_bytes,
    pki::Role,
    restore::{Part, SupplyError, Want},
    rpc_status::RpcFault,
    tls::require_role,
    verdict::timestamp_to_proto,
};
use assay_proto::v1::{
    ContentPart, ContentRequest, FetchManifestRequest, ManifestPart, OpenRestoreRequest, OpenRestoreResponse,
    ReportRestoreRequest, ReportRestoreResponse, RestoreRecord, restore_service_server::RestoreService,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Code, Request, Response, Status, Streaming};

use super::{Repositories, internal};
use crate::{
    repository::Repository,
    restore::{Done, Sealed, SealedError, last, note},
};

/// Bytes of the manifest in one message.
const MANIFEST_PART_BYTES: usize = 1024 * 1024;
/// Requests that wait for the disk.
const WANTS_AHEAD: usize = 64;
/// Parts that wait for the network.
const PARTS_AHEAD: usize = 4;
/// Pieces that one request may list.
const MAX_WANTED_PIECES: usize = 64 * 1024;
/// Longest reason of an unverified restore, in bytes.
const MAX_UNVERIFIED_BYTES: usize = 4096;
/// The first message of FetchContent must come within this time.
const FIRST_REQUEST: Duration = Duration::from_secs(30);

/// No restore takes longer: a year.
const MAX_SECONDS: f64 = 366.0 * 86_400.0;

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
pub struct Restore {
    repositories: Arc<Repositories>,
    slots: Arc<Semaphore>,
}

impl Restore {
    /// For these repositories.
    pub fn new(repositories: Arc<Repositories>) -> Self {
        Self { repositories, slots: Arc::new(Semaphore::new(MAX_RESTORES)) }
    }

    /// One of the restores that are served at a time, until it is dropped. A client opens, then takes the manifest, then content: it
    /// has one slot at a time.
    fn slot(&self) -> Result<OwnedSemaphorePermit, RpcFault> {
        Arc::clone(&self.slots).try_acquire_owned().map_err(|_| {
            let text = format!("{MAX_RESTORES} restores are being served already");
            RpcFault::new(Code::ResourceExhausted, "too-many-restores", text)
                .with_hint("run the same command again when one of them has ended")
        })
    }

    /// The repository, if the caller may take generations of it back.
    fn allow<T>(&self, request: &Request<T>, name: &str) -> Result<(Arc<Repository>, String), Status> {
        let peer = require_role(request, &[Role::Restore])?;
        // Whoever may restore some repositories does not learn the names of others.
        let repository = self.repositories.get(name).ok().map(Arc::clone);
        let Some(repository) = repository.filter(|it| it.config.restore.contains(&peer.name)) else {
            tracing::warn!(peer = %peer, repository = name, "restore refused: not listed, or not there");
            let text = format!("there is no repository {name:?} on this target that {peer} may restore");
            let hint = format!(
                "add \"{}\" to `restore` of this repository in the target's configuration",
                peer.name
            );
            return Err(RpcFault::new(Code::PermissionDenied, "restore-not-allowed", text)
                .with_hint(hint)
                .into());
        };
        Ok((repository, peer.name))
    }
}

fn number(generation: u64) -> Option<GenerationNumber> {
    (generation > 0).then_some(GenerationNumber(generation))
}

fn open(repository: &Repository, generation: u64) -> Result<Sealed, RpcFault> {
    Sealed::open(repository.store.path(), number(generation)).map_err(|error| {
        let (code, reason) = match &error {
            SealedError::NoSuch { .. } => (Code::NotFound, "no-such-generation"),
            SealedError::NonePassed { .. } => (Code::FailedPrecondition, "none-passed"),
            _ => return internal("opening a sealed generation", &error),
        };
        let fault = RpcFault::new(code, reason, error.to_string());
        match error.hint() {
            Some(hint) => fault.with_hint(hint),
            None => fault,
        }
    })
}

/// Off the runtime's threads: the disk may be slow.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RpcFault> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?)
}

#[tonic::async_trait]
impl RestoreService for Restore {
    async fn open_restore(
        &self,
        request: Request<OpenRestoreRequest>,
    ) -> Result<Response<OpenRestoreResponse>, Status> {
        let (repository, _) = self.allow(&request, &request.get_ref().repository)?;
        let generation = request.get_ref().generation;
        let slot = self.slot()?;
        let answer = blocking(move || {
            // The ledger may be long. A call that is given up goes on until it is read.
            let _slot = slot;
            let sealed = open(&repository, generation)?;
            let root = sealed.root_digest();
            let root =
                root.ok_or_else(|| internal("reading a record", &std::io::Error::other("no root digest")))?;
            Ok(OpenRestoreResponse {
                generation: sealed.record.generation,
                root_digest: root.0.to_vec(),
                verdict: sealed.verdict.unwrap_or_default(),
                entries: sealed.record.entries,
                total_bytes: sealed.record.total_bytes,
                verified: Some(sealed.is_verified),
            })
        });
        Ok(Response::new(answer.await?))
    }

    type FetchSealedManifestStream = BoxStream<ManifestPart>;

    async fn fetch_sealed_manifest(
        &self,
        request: Request<FetchManifestRequest>,
    ) -> Result<Response<Self::FetchSealedManifestStream>, Status> {
        let (repository, _) = self.allow(&request, &request.get_ref().repository)?;
        let generation = request.get_ref().generation;
        let slot = self.slot()?;
        let sealed = blocking(move || open(&repository, generation)).await?;
        let mut manifest = sealed.manifest().map_err(|error| internal("opening a manifest", &error))?;
        let (sender, queue) = tokio::sync::mpsc::channel(PARTS_AHEAD);
        tokio::task::spawn_blocking(move || {
            // The generation is held for as long as it is read. The slot is free before the stream ends: the next call wants it.
            let (sender, _held, _slot) = (sender, sealed, slot);
            loop {
                let mut data = Vec::with_capacity(MANIFEST_PART_BYTES);
                let part = match (&mut manifest).take(MANIFEST_PART_BYTES as u64).read_to_end(&mut data) {
                    Ok(0) => return,
                    Ok(_) => Ok(ManifestPart { data: data.into() }),
                    Err(error) => Err(internal("reading a manifest", &error).into()),
                };
                let ended = part.is_err();
                if sender.blocking_send(part).is_err() || ended {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(queue))))
    }

    type FetchContentStream = BoxStream<ContentPart>;

    async fn fetch_content(
        &self,
        request: Request<Streaming<ContentRequest>>,
    ) -> Result<Response<Self::FetchContentStream>, Status> {
        require_role(&request, &[Role::Restore])?;
        let (metadata, extensions, mut requests) = request.into_parts();
        let first = tokio::time::timeout(FIRST_REQUEST, requests.message()).await;
        let first =
            first.map_err(|_| RpcFault::new(Code::DeadlineExceeded, "no-request", "no request came"))??;
        let Some(start) = first.as_ref().and_then(|first| first.start.clone()) else {
            return Err(RpcFault::invalid("the first request must say which generation").into());
        };
        let (repository, peer) =
            self.allow(&Request::from_parts(metadata, extensions, ()), &start.repository)?;
        let name = repository.config.name.clone();
        let slot = self.slot()?;
        let sealed = blocking(move || open(&repository, start.generation)).await?;
        let content = sealed.content().map_err(|error| internal("opening a generation", &error))?;
        tracing::info!(
            repository = name,
            generation = sealed.record.generation,
            by = peer,
            "a restore reads content"
        );
        let (wants_out, wants_in) = tokio::sync::mpsc::channel(WANTS_AHEAD);
        let (parts_out, parts_in) = tokio::sync::mpsc::channel(PARTS_AHEAD);
        let refused = parts_out.clone();
        tokio::spawn(async move {
            // The first message only opens the stream.
            while let Some(request) = requests.next().await {
                // A client that went away; what is being read for it ends with the answers' stream.
                let Ok(request) = request else { return };
                if request.pieces.len() > MAX_WANTED_PIECES {
                    let why = "more pieces than one request may list".to_owned();
                    drop(refused.send(Err(SupplyError::Cut(why))).await);
                    return;
                }
                if wants_out.send(Want { entry: request.entry, pieces: request.pieces }).await.is_err() {
                    return;
                }
            }
        });
        tokio::task::spawn_blocking(move || {
            let (parts_out, _held, _slot) = (parts_out, sealed, slot);
            content.answer(wants_in, &parts_out);
        });
        let parts = ReceiverStream::new(parts_in).map(|part| match part {
            Ok(Part { pieces, raw_bytes, data, lost }) => Ok(ContentPart { pieces, raw_bytes, data, lost }),
            Err(error) => Err(RpcFault::invalid(error.to_string()).into()),
        });
        Ok(Response::new(Box::pin(parts)))
    }

    async fn report_restore(
        &self,
        request: Request<ReportRestoreRequest>,
    ) -> Result<Response<ReportRestoreResponse>, Status> {
        let (repository, by) = self.allow(&request, &request.get_ref().repository)?;
        let report = request.into_inner();
        if !(0.0..=MAX_SECONDS).contains(&report.seconds) {
            return Err(RpcFault::invalid("seconds must be a number from 0 to those of a year").into());
        }
        if report.unverified.len() > MAX_UNVERIFIED_BYTES {
            return Err(RpcFault::invalid("the reason of an unverified restore is too long").into());
        }
        blocking(move || {
            let sealed = open(&repository, report.generation)?;
            if report.total_bytes > sealed.record.total_bytes || report.files > sealed.record.files {
                return Err(RpcFault::invalid("a restore has at most what its generation has"));
            }
            let done = Done {
                time: jiff::Timestamp::now(),
                generation: GenerationNumber(report.generation),
                seconds: report.seconds,
                files: report.files,
                total_bytes: report.total_bytes,
                received_bytes: report.received_bytes,
                complete: report.complete,
                by,
                unverified: (!report.unverified.is_empty())
                    .then(|| display_bytes(report.unverified.as_bytes())),
                unproven: !sealed.is_proven(),
            };
            tracing::info!(
                repository = repository.config.name,
                generation = report.generation,
                seconds = report.seconds,
                complete = report.complete,
                by = done.by,
                "a restore has ended"
            );
            note(repository.store.path(), &done).map_err(|error| internal("noting a restore", &error))
        })
        .await?;
        Ok(Response::new(ReportRestoreResponse {}))
    }
}

/// The newest restore of a repository, for its status.
pub(crate) fn last_restore(repository: &Repository) -> Option<RestoreRecord> {
    let done = last(repository.store.path())?;
    Some(RestoreRecord {
        time: Some(timestamp_to_proto(done.time)),
        generation: done.generation.0,
        seconds: done.seconds,
        files: done.files,
        total_bytes: done.total_bytes,
        received_bytes: done.received_bytes,
        complete: done.complete,
        by: done.by,
        unverified: done.unverified.unwrap_or_default(),
        unproven: done.unproven,
    })
}
