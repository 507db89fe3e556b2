//! `assay.v1.TargetService`: what operators ask of the target.

use std::{pin::Pin, sync::Arc};

use assay_common::{
    id::{GenerationNumber, RunId},
    ledger::EntryId,
    pki::Role,
    rpc_status::RpcFault,
    tls::require_role,
    verdict::timestamp_to_proto,
};
use assay_proto::v1::{
    self, BisectProgress, BisectRequest, CheckProgress, ControlProgress, CreateWebLoginRequest, Generation,
    GetGenerationRequest, GetTargetStatusRequest, GetTargetStatusResponse, GetVerdictRequest,
    ListGenerationsRequest, ListGenerationsResponse, ListVerdictsRequest, ListVerdictsResponse,
    RunControlRequest, VerifyGenerationRequest, WebLogin, target_service_server::TargetService,
};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Code, Request, Response, Status};

use super::{Repositories, busy, internal, invalid, keeping};
use crate::{
    check_queue::Wanted,
    repository::Repository,
    status,
    store::Record,
    trust::{bisect, control},
    verify::{self, AskedBy},
    web::Links,
};

/// Verdicts in a list when the request does not say.
const DEFAULT_LIMIT: usize = 20;
/// Verdicts in a list at most.
const MAX_LIMIT: usize = 1000;

/// The service.
pub struct Operator {
    repositories: Arc<Repositories>,
    name: String,
    /// Links to the page for a browser, where it is served.
    links: Option<Links>,
}

impl Operator {
    /// For these repositories of the agent called `name`.
    pub fn new(repositories: Arc<Repositories>, name: String, links: Option<Links>) -> Self {
        Self { repositories, name, links }
    }

    fn repository<T>(&self, request: &Request<T>, name: &str) -> Result<Arc<Repository>, Status> {
        require_role(request, &[Role::Operator])?;
        Ok(Arc::clone(self.repositories.get(name)?))
    }
}

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What a piece of work tells those who asked for it. They are told all of it, or have gone away: the work goes on.
struct Sender<T>(tokio::sync::mpsc::Sender<Result<T, Status>>);

impl<T> Sender<T> {
    fn send(&self, message: T) {
        drop(self.0.blocking_send(Ok(message)));
    }
}

/// Does checks of an operator's on a thread of their own, and holds the repository meanwhile, in the name of the run that
/// made generation `number`.
fn work<T: Send + 'static>(
    repository: &Arc<Repository>,
    number: GenerationNumber,
    body: impl FnOnce(&Repository, &Sender<T>) -> Result<(), String> + Send + 'static,
) -> Result<Response<BoxStream<T>>, Status> {
    let id: RunId = record(repository, number)?.run_id.parse().map_err(|_| internal_record(number))?;
    let lease = tokio::task::block_in_place(|| repository.occupancy.examine(&id)).map_err(busy)?;
    let (sender, queue) = tokio::sync::mpsc::channel(16);
    let held = Arc::clone(repository);
    // A thread, not a task: the sandbox dies with the thread that started it.
    let started = std::thread::Builder::new().name("examine".to_owned()).spawn(move || {
        let done = body(&held, &Sender(sender.clone()));
        drop(lease);
        if let Err(error) = done {
            let fault = RpcFault::new(Code::FailedPrecondition, "not-done", error);
            drop(sender.blocking_send(Err(fault.into())));
        }
    });
    if let Err(error) = started {
        return Err(internal("starting a thread", &error).into());
    }
    Ok(Response::new(Box::pin(ReceiverStream::new(queue))))
}

/// Reads the store off the runtime's threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RpcFault> + Send + 'static,
) -> Result<Response<T>, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(Response::new(done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?))
}

#[tonic::async_trait]
impl TargetService for Operator {
    async fn list_generations(
        &self,
        request: Request<ListGenerationsRequest>,
    ) -> Result<Response<ListGenerationsResponse>, Status> {
        let repository = self.repository(&request, &request.get_ref().repository)?;
        blocking(move || {
            let mut numbers = repository.store.generations().map_err(|error| internal("listing", &error))?;
            numbers.reverse();
            let generations = numbers
                .into_iter()
                .filter_map(|number| {
                    let record = repository.store.record(number).ok()?;
                    Some(status::of_generation(&repository, &record, repository.last_verdict(number)))
                })
                .collect();
            Ok(ListGenerationsResponse { generations })
        })
        .await
    }

    async fn get_generation(
        &self,
        request: Request<GetGenerationRequest>,
    ) -> Result<Response<Generation>, Status> {
        let repository = self.repository(&request, &request.get_ref().repository)?;
        let number = request.get_ref().number;
        blocking(move || {
            let number = match number {
                0 => repository.store.verified().ok_or_else(|| {
                    RpcFault::new(Code::NotFound, "none-verified", "no generation has been verified yet")
                })?,
                number => GenerationNumber(number),
            };
            let record = record(&repository, number)?;
            let last = repository.last_verdict(number);
            Ok(status::of_generation(&repository, &record, last))
        })
        .await
    }

    type VerifyGenerationStream = Pin<Box<dyn Stream<Item = Result<CheckProgress, Status>> + Send>>;

    async fn verify_generation(
        &self,
        request: Request<VerifyGenerationRequest>,
    ) -> Result<Response<Self::VerifyGenerationStream>, Status> {
        let repository = self.repository(&request, &request.get_ref().repository)?;
        let number =
            match request.get_ref().number {
                0 => repository.store.latest().map_err(|error| internal("listing", &error))?.ok_or_else(
                    || RpcFault::new(Code::NotFound, "no-generation", "there is no generation yet"),
                )?,
                number => GenerationNumber(number),
            };
        let record = record(&repository, number)?;
        // The verdict names the run whose mark and tree it is about, and the source's statement is of that run.
        let id: RunId = record.run_id.parse().map_err(|_| internal_record(number))?;
        let (lease, state) =
            tokio::task::block_in_place(|| repository.occupancy.verify(&id)).map_err(busy)?;
        verify::start(repository, lease, id, record, AskedBy::Operator);
        let stream = verify::follow(state).map(move |state| match state.done {
            None => Ok(CheckProgress { step: state.step, verdict: None }),
            Some(Ok((id, envelope))) => {
                let verdict = assay_common::verdict::unverified_verdict(envelope.as_bytes())
                    .map_err(|error| internal("reading the verdict", &error))?;
                Ok(CheckProgress {
                    step: String::new(),
                    verdict: Some(status::of_verdict(&id, &verdict, envelope)),
                })
            }
            Some(Err(message)) => Err(RpcFault::new(Code::Internal, "check-failed", message).into()),
        });
        Ok(Response::new(Box::pin(stream)))
    }

    type RunControlStream = BoxStream<ControlProgress>;

    async fn run_control(
        &self,
        request: Request<RunControlRequest>,
    ) -> Result<Response<Self::RunControlStream>, Status> {
        let repository = self.repository(&request, &request.get_ref().repository)?;
        let number = repository.newest_pass().ok_or_else(|| {
            RpcFault::new(Code::FailedPrecondition, "none-passed", "no generation has passed its check yet")
                .with_hint("a control damages a copy of a generation that passed: let a run pass first")
        })?;
        let name = repository.config.name.clone();
        tracing::info!(repository = name, generation = number.0, "an operator asks for a negative control");
        work(&repository, number, move |repository, sender| {
            let step = |step: &str| sender.send(ControlProgress { step: step.to_owned(), control: None });
            let cancel = repository.ending.child_token();
            let slot = repository.check_slot(Wanted::Now, &cancel, &|text| {
                if !text.is_empty() {
                    step(text);
                }
            });
            let _slot = slot.map_err(|not_started| not_started.to_string())?;
            let done = control::run(repository, control::new_seed(), &cancel, &step)?;
            let done = done.as_ref().map(Into::into);
            sender.send(ControlProgress { step: String::new(), control: done });
            Ok(())
        })
    }

    type BisectStream = BoxStream<BisectProgress>;

    async fn bisect(&self, request: Request<BisectRequest>) -> Result<Response<Self::BisectStream>, Status> {
        let repository = self.repository(&request, &request.get_ref().repository)?;
        let newest = repository.store.latest().map_err(|error| internal("listing", &error))?;
        let newest = newest
            .ok_or_else(|| RpcFault::new(Code::NotFound, "no-generation", "there is no generation yet"))?;
        work(&repository, newest, move |repository, sender| {
            let step = |generation: GenerationNumber, step: &str| {
                let step = step.to_owned();
                sender.send(BisectProgress { checking: generation.0, step, ..Default::default() });
            };
            let checked = |id: String, envelope: String| {
                if let Ok(verdict) = assay_common::verdict::unverified_verdict(envelope.as_bytes()) {
                    let verdict = Some(status::of_verdict(&id, &verdict, String::new()));
                    sender.send(BisectProgress { verdict, ..Default::default() });
                }
            };
            let ended = Some(bisect::run(repository, &step, &checked)?);
            sender.send(BisectProgress { ended, ..Default::default() });
            Ok(())
        })
    }

    async fn list_verdicts(
        &self,
        request: Request<ListVerdictsRequest>,
    ) -> Result<Response<ListVerdictsResponse>, Status> {
        let repository = self.repository(&request, &request.get_ref().repository)?;
        let limit = match request.get_ref().limit as usize {
            0 => DEFAULT_LIMIT,
            limit if limit <= MAX_LIMIT => limit,
            _ => return Err(invalid("limit: must be 0 to 1000").into()),
        };
        blocking(move || {
            let verdicts = repository.verdicts().take(limit);
            let verdicts =
                verdicts.map(|(id, verdict)| status::of_verdict(&id, &verdict, String::new())).collect();
            Ok(ListVerdictsResponse { verdicts })
        })
        .await
    }

    async fn get_verdict(
        &self,
        request: Request<GetVerdictRequest>,
    ) -> Result<Response<v1::Verdict>, Status> {
        let repository = self.repository(&request, &request.get_ref().repository)?;
        let id = request.into_inner().id;
        blocking(move || {
            let id = match id.as_str() {
                "" => repository.verdicts().next().map(|(id, _)| id).unwrap_or_default(),
                _ => id,
            };
            let envelope = repository
                .envelope(&id)
                .map_err(|error| RpcFault::new(Code::NotFound, "no-such-verdict", error.to_string()))?;
            if assay_common::verdict::unverified_key_change(envelope.as_bytes()).is_ok() {
                let text = format!("entry {id} of the ledger is a key change and no verdict");
                return Err(RpcFault::new(Code::NotFound, "no-such-verdict", text)
                    .with_hint("`assay-target ledger verify` shows the keys and their times"));
            }
            let verdict = assay_common::verdict::unverified_verdict(envelope.as_bytes())
                .map_err(|error| internal("reading the verdict", &error))?;
            let sequence = EntryId::parse(&id).map_or(verdict.sequence, EntryId::sequence);
            let notes = repository.notes_on(sequence, verdict.generation);
            let notes = notes.iter().map(v1::Note::from).collect();
            Ok(v1::Verdict { notes, ..status::of_verdict(&id, &verdict, envelope) })
        })
        .await
    }

    async fn prune_generations(
        &self,
        request: Request<v1::PruneGenerationsRequest>,
    ) -> Result<Response<v1::PruneGenerationsResponse>, Status> {
        let repository = self.repository(&request, &request.get_ref().repository)?;
        let dry_run = request.get_ref().dry_run;
        blocking(move || keeping::prune(&repository, dry_run)).await
    }

    async fn discard_abandoned(
        &self,
        request: Request<v1::DiscardAbandonedRequest>,
    ) -> Result<Response<v1::DiscardAbandonedResponse>, Status> {
        let repository = self.repository(&request, &request.get_ref().repository)?;
        blocking(move || keeping::discard(&repository)).await
    }

    async fn pin_generation(
        &self,
        request: Request<v1::PinGenerationRequest>,
    ) -> Result<Response<Generation>, Status> {
        let repository = self.repository(&request, &request.get_ref().repository)?;
        blocking(move || keeping::pin(&repository, request.get_ref())).await
    }

    async fn unpin_generation(
        &self,
        request: Request<v1::UnpinGenerationRequest>,
    ) -> Result<Response<Generation>, Status> {
        let repository = self.repository(&request, &request.get_ref().repository)?;
        blocking(move || keeping::unpin(&repository, request.get_ref())).await
    }

    type ScrubGenerationsStream = BoxStream<v1::ScrubProgress>;

    async fn scrub_generations(
        &self,
        request: Request<v1::ScrubGenerationsRequest>,
    ) -> Result<Response<Self::ScrubGenerationsStream>, Status> {
        let repository = self.repository(&request, &request.get_ref().repository)?;
        let queue = keeping::scrub(&repository, request.get_ref())?;
        Ok(Response::new(Box::pin(ReceiverStream::new(queue))))
    }

    async fn create_web_login(
        &self,
        request: Request<CreateWebLoginRequest>,
    ) -> Result<Response<WebLogin>, Status> {
        let operator = require_role(&request, &[Role::Operator])?;
        let links = self.links.as_ref().ok_or_else(|| {
            RpcFault::new(Code::FailedPrecondition, "no-web-page", "this target serves no page for a browser")
                .with_hint(
                    "add [web] with listen = \"127.0.0.1:7480\" to its configuration, and restart the agent",
                )
        })?;
        let (url, expires) = links.create(&operator.name);
        tracing::info!(operator = operator.name, "an operator asks for a link to the web page");
        Ok(Response::new(WebLogin { url, expires: Some(timestamp_to_proto(expires)) }))
    }

    async fn get_target_status(
        &self,
        request: Request<GetTargetStatusRequest>,
    ) -> Result<Response<GetTargetStatusResponse>, Status> {
        require_role(&request, &[Role::Operator])?;
        let (repositories, agent) = (Arc::clone(&self.repositories), self.name.clone());
        blocking(move || Ok(status::of_target(&repositories, &agent, jiff::Timestamp::now()))).await
    }
}

fn internal_record(number: GenerationNumber) -> RpcFault {
    RpcFault::new(Code::DataLoss, "record-damaged", format!("the record of generation {number} is damaged"))
}

pub(super) fn record(repository: &Repository, number: GenerationNumber) -> Result<Record, RpcFault> {
    repository.store.record(number).map_err(|error| {
        RpcFault::new(Code::NotFound, "no-such-generation", format!("generation {number}: {error}"))
            .with_hint("assay-target generations lists those that there are")
    })
}
