//! `assay.v1.TargetService`: what operators ask of the target.

use std::{pin::Pin, sync::Arc};

use assay_common::{
    id::{GenerationNumber, RunId},
    pki::Role,
    rpc_status::RpcFault,
    tls::{renewal, require_role},
    trouble,
    verdict::{Verdict, timestamp_to_proto},
    watch::Ended,
};
use assay_proto::v1::{
    self, BisectProgress, BisectRequest, CheckProgress, CheckQueueStatus, CheckWait, ControlProgress,
    Generation, GetGenerationRequest, GetTargetStatusRequest, GetTargetStatusResponse, GetVerdictRequest,
    ListGenerationsRequest, ListGenerationsResponse, ListVerdictsRequest, ListVerdictsResponse,
    RunControlRequest, TargetRepositoryStatus, VerifyGenerationRequest, target_service_server::TargetService,
};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Code, Request, Response, Status};

use super::{Repositories, busy, internal, invalid, keeping};
use crate::{
    check_queue::{CheckQueue, Wanted},
    repository::Repository,
    store::{Record, TREE},
    trust::{bisect, control},
    verify::{self, AskedBy},
};

/// Verdicts in a list when the request does not say.
const DEFAULT_LIMIT: usize = 20;
/// Verdicts in a list at most.
const MAX_LIMIT: usize = 1000;

/// The service.
pub struct Operator {
    repositories: Arc<Repositories>,
    name: String,
}

impl Operator {
    /// For these repositories of the agent called `name`.
    pub fn new(repositories: Arc<Repositories>, name: String) -> Self {
        Self { repositories, name }
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
                    Some(describe(&repository, &record, repository.last_verdict(number)))
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
            Ok(describe(&repository, &record, last))
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
                Ok(CheckProgress { step: String::new(), verdict: Some(message(&id, &verdict, envelope)) })
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
                    let verdict = Some(message(&id, &verdict, String::new()));
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
            let verdicts = verdicts.map(|(id, verdict)| message(&id, &verdict, String::new())).collect();
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
            Ok(message(&id, &verdict, envelope))
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

    async fn get_target_status(
        &self,
        request: Request<GetTargetStatusRequest>,
    ) -> Result<Response<GetTargetStatusResponse>, Status> {
        require_role(&request, &[Role::Operator])?;
        let (repositories, agent) = (Arc::clone(&self.repositories), self.name.clone());
        blocking(move || {
            Ok(GetTargetStatusResponse {
                agent,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                now: Some(timestamp_to_proto(jiff::Timestamp::now())),
                repositories: repositories.iter().map(|repository| status(repository)).collect(),
                certificate_expires: renewal::expires().map(timestamp_to_proto),
                troubles: trouble::lines(),
                checks: repositories.iter().next().map(|repository| checks(&repository.checks)),
            })
        })
        .await
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

fn status(repository: &Repository) -> TargetRepositoryStatus {
    let of = |number: GenerationNumber| {
        let record = repository.store.record(number).ok()?;
        Some(describe(repository, &record, repository.last_verdict(number)))
    };
    let generations = repository.store.generations().unwrap_or_default();
    let latest = generations.last().copied().and_then(of);
    let standing = repository.watch.standing();
    let now = repository.occupancy.now();
    let (current_run_id, doing) = now.map(|now| (now.run.to_string(), now.doing)).unwrap_or_default();
    TargetRepositoryStatus {
        repository: repository.config.name.clone(),
        current_run_id,
        verified: repository.store.verified().and_then(of),
        generations: generations.len() as u64,
        free_bytes: repository.store.free_bytes(),
        negative_control: repository.control().as_ref().map(Into::into),
        former_control: repository.former_control().map(|control| timestamp_to_proto(control.time)),
        last_restore: super::restore::last_restore(repository),
        scrub: keeping::scrub_status(repository),
        last_pass_age_seconds: standing.age(jiff::Timestamp::now()).map_or(0, |age| age.as_secs()),
        overdue_after_seconds: repository.watch.max_age().map_or(0, |age| age.as_secs()),
        doing,
        last_verdict: standing.last.as_ref().and_then(|last| newest_verdict(last, latest.as_ref())),
        latest,
        changed_without_trace: standing.traceless.as_ref().map(Into::into),
        check_wait: check_wait(repository),
    }
}

/// The check of a repository that waits for a slot.
fn check_wait(repository: &Repository) -> Option<CheckWait> {
    let waiting = repository.checks.waiting();
    let own = waiting.into_iter().find(|waiting| waiting.repository == repository.config.name)?;
    Some(CheckWait {
        before: u32::try_from(own.before).unwrap_or(u32::MAX),
        since: Some(timestamp_to_proto(own.since)),
    })
}

/// How the queue of all checks stands.
fn checks(queue: &CheckQueue) -> CheckQueueStatus {
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let waiting = queue.waiting();
    CheckQueueStatus {
        running: number(queue.running()),
        at_a_time: number(queue.at_a_time()),
        waiting: number(waiting.len()),
        oldest_since: waiting.iter().map(|waiting| waiting.since).min().map(timestamp_to_proto),
    }
}

pub(super) fn describe(
    repository: &Repository,
    record: &Record,
    last: Option<(String, Verdict)>,
) -> Generation {
    let number = GenerationNumber(record.generation);
    // What it claims today: a control that came after its verdict counts.
    let says = last.as_ref().map(|(_, verdict)| verdict.says_under(repository.trust_in(verdict)));
    let (sentence, claims) = says.unzip();
    let (verdict_id, outcome, reason) = last.map_or_else(Default::default, |(id, verdict)| {
        (id, v1::Outcome::from(verdict.outcome).into(), verdict.reason)
    });
    let mut rot = repository.rot().of(number);
    rot.truncate(20);
    let pin = repository.pins().as_ref().ok().and_then(|pins| Some(pins.get(number)?.note.clone()));
    Generation {
        repository: record.repository.clone(),
        number: record.generation,
        run_id: record.run_id.clone(),
        sealed: Some(timestamp_to_proto(record.sealed)),
        mark: Some(v1::Mark { id: record.mark.id.clone(), time: Some(timestamp_to_proto(record.mark.time)) }),
        root_digest: record.root_digest.clone(),
        entries: record.entries,
        total_bytes: record.total_bytes,
        new_bytes: record.new_bytes,
        outcome,
        reason,
        verdict_id,
        verified: repository.store.verified() == Some(number),
        path: repository.store.generation_path(number).join(TREE).display().to_string(),
        pinned: pin.is_some(),
        pin_note: pin.unwrap_or_default(),
        rot,
        sentence: sentence.unwrap_or_default(),
        claims,
        proven: repository.is_proven(number),
    }
}

fn message(id: &str, verdict: &Verdict, envelope: String) -> v1::Verdict {
    v1::Verdict {
        id: id.to_owned(),
        sequence: verdict.sequence,
        repository: verdict.repository.clone(),
        run_id: verdict.run_id.to_string(),
        generation: verdict.generation.map_or(0, |generation| generation.0),
        outcome: v1::Outcome::from(verdict.outcome).into(),
        reason: verdict.reason.clone(),
        message: verdict.message.clone(),
        time: Some(timestamp_to_proto(verdict.times.signed)),
        root_digest: verdict.root.map(|root| root.to_string()).unwrap_or_default(),
        envelope,
        attribution: verdict.attribution.as_ref().map(Into::into),
        negative_control: verdict.negative_control.as_ref().map(Into::into),
        sentence: verdict.sentence(),
        claims: Some(verdict.claims_proto()),
        received: None,
    }
}

/// What the newest verdict says, unless the newest generation says it.
fn newest_verdict(last: &Ended, latest: Option<&Generation>) -> Option<v1::Verdict> {
    if latest.is_some_and(|latest| latest.verdict_id == last.verdict_id) {
        return None;
    }
    Some(v1::Verdict {
        id: last.verdict_id.clone(),
        run_id: last.run_id.clone(),
        generation: last.generation.unwrap_or(0),
        outcome: v1::Outcome::from(last.outcome).into(),
        reason: last.reason.clone(),
        message: last.message.clone(),
        sentence: last.sentence.clone(),
        claims: last.claims.clone(),
        time: Some(timestamp_to_proto(last.finished)),
        ..Default::default()
    })
}
