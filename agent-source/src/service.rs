//! `assay.v1.SourceService`: thin handlers that check who asks, decode, call, encode.

use std::{
    pin::Pin,
    sync::{Arc, PoisonError},
};

use assay_common::{
    pki::Role,
    rpc_status::RpcFault,
    tls::{renewal, require_role},
    trouble,
    verdict::timestamp_to_proto,
    watch::Ended,
};
use assay_proto::v1::{
    CancelRunRequest, GetRunRequest, GetStatusRequest, GetStatusResponse, ListRunsRequest, ListRunsResponse,
    Phase, PlanRunRequest, RepositoryStatus, Run, RunPlan, StartRunRequest, StartRunResponse, Trigger,
    WatchRunRequest, source_service_server::SourceService,
};
use jiff::Timestamp;
use tokio_stream::{Stream, StreamExt as _, wrappers::WatchStream};
use tonic::{Code, Request, Response, Status};

use crate::{
    agent::{Agent, Repository},
    run::Options,
};

/// Runs in a list when the request does not say.
const DEFAULT_LIMIT: usize = 20;
/// Runs in a list at most.
const MAX_LIMIT: usize = 1000;

/// The service.
pub struct Source {
    agent: Arc<Agent>,
}

impl Source {
    /// Of this agent.
    pub fn new(agent: Arc<Agent>) -> Self {
        Self { agent }
    }
}

/// Reads the state off the runtime's threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RpcFault> + Send + 'static,
) -> Result<Response<T>, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(Response::new(done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?))
}

#[tonic::async_trait]
impl SourceService for Source {
    async fn start_run(
        &self,
        request: Request<StartRunRequest>,
    ) -> Result<Response<StartRunResponse>, Status> {
        let peer = require_role(&request, &[Role::Operator])?;
        let request = request.into_inner();
        let repository = self.agent.repository(&request.repository)?;
        let options = Options {
            full_read: request.full_read,
            allow_mass_drop: request.allow_mass_drop,
            allow_new_root: request.allow_new_root,
            accept_history: request.accept_history,
            full_check: request.full_check,
        };
        let run = repository.start(Trigger::Operator, options)?;
        tracing::info!(run_id = run.id, operator = peer.name, overrides = %options, "triggered");
        Ok(Response::new(StartRunResponse { run: Some(run) }))
    }

    async fn get_run(&self, request: Request<GetRunRequest>) -> Result<Response<Run>, Status> {
        require_role(&request, &[Role::Operator])?;
        let (agent, id) = (Arc::clone(&self.agent), request.into_inner().run_id);
        blocking(move || Ok(agent.find(&id)?.0)).await
    }

    type WatchRunStream = Pin<Box<dyn Stream<Item = Result<Run, Status>> + Send>>;

    async fn watch_run(
        &self,
        request: Request<WatchRunRequest>,
    ) -> Result<Response<Self::WatchRunStream>, Status> {
        require_role(&request, &[Role::Operator])?;
        let (agent, id) = (Arc::clone(&self.agent), request.into_inner().run_id);
        let (run, progress) = blocking(move || agent.find(&id)).await?.into_inner();
        let Some(progress) = progress else {
            return Ok(Response::new(Box::pin(tokio_stream::once(Ok(run)))));
        };
        let mut ended = false;
        let states = WatchStream::new(progress.subscribe()).take_while(move |run: &Run| {
            let more = !ended;
            ended |= run.phase() == Phase::Done;
            more
        });
        Ok(Response::new(Box::pin(states.map(Ok))))
    }

    async fn list_runs(
        &self,
        request: Request<ListRunsRequest>,
    ) -> Result<Response<ListRunsResponse>, Status> {
        require_role(&request, &[Role::Operator])?;
        let request = request.into_inner();
        let limit = match request.limit as usize {
            0 => DEFAULT_LIMIT,
            limit if limit <= MAX_LIMIT => limit,
            _ => {
                let text = "limit: must be 0 to 1000";
                return Err(RpcFault::new(Code::InvalidArgument, "invalid-argument", text).into());
            }
        };
        let repositories: Vec<_> = match request.repository.as_str() {
            "" => self.agent.repositories().cloned().collect(),
            name => vec![Arc::clone(self.agent.repository(name)?)],
        };
        blocking(move || {
            let (mut runs, several) = (Vec::new(), repositories.len() > 1);
            for repository in repositories {
                runs.extend(newest_runs(&repository, limit));
            }
            if several {
                // Within a repository the order is that of the starts; between several the ids must do.
                runs.sort_by(|left, right| right.id.cmp(&left.id));
            }
            runs.truncate(limit);
            Ok(ListRunsResponse { runs })
        })
        .await
    }

    async fn cancel_run(&self, request: Request<CancelRunRequest>) -> Result<Response<Run>, Status> {
        let peer = require_role(&request, &[Role::Operator])?;
        let run = self.agent.cancel(&request.into_inner().run_id)?;
        tracing::info!(run_id = run.id, operator = peer.name, "told to cancel");
        Ok(Response::new(run))
    }

    async fn get_status(
        &self,
        request: Request<GetStatusRequest>,
    ) -> Result<Response<GetStatusResponse>, Status> {
        require_role(&request, &[Role::Operator])?;
        let agent = Arc::clone(&self.agent);
        blocking(move || {
            let now = Timestamp::now();
            Ok(GetStatusResponse {
                agent: agent.name.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                now: Some(timestamp_to_proto(now)),
                repositories: agent.repositories().map(|repository| status(repository, now)).collect(),
                certificate_expires: renewal::expires().map(timestamp_to_proto),
                troubles: trouble::lines(),
            })
        })
        .await
    }

    async fn plan_run(&self, request: Request<PlanRunRequest>) -> Result<Response<RunPlan>, Status> {
        require_role(&request, &[Role::Operator])?;
        let request = request.into_inner();
        let repository = self.agent.repository(&request.repository)?;
        Ok(Response::new(repository.plan(request.full_read).await?))
    }
}

fn newest_runs(repository: &Repository, limit: usize) -> Vec<Run> {
    let current = repository.current_run();
    let ids = repository.context.state.run_ids().unwrap_or_default();
    ids.into_iter()
        .take(limit)
        .filter_map(|id| match &current {
            // The file of a run that is under way is as old as its start.
            Some(run) if run.id == id.as_str() => Some(run.clone()),
            _ => repository.context.state.run(&id).ok(),
        })
        .collect()
}

fn status(repository: &Repository, now: Timestamp) -> RepositoryStatus {
    let standing = repository.watch.standing();
    let run = |ended: &Option<Ended>| {
        let id = ended.as_ref()?.run_id.parse().ok()?;
        repository.context.state.run(&id).ok()
    };
    let next_run = *repository.next_run.lock().unwrap_or_else(PoisonError::into_inner);
    RepositoryStatus {
        repository: repository.context.repository.name.clone(),
        profile: repository.context.repository.profile.name.clone(),
        current_run: repository.current_run(),
        last_run: run(&standing.last),
        last_pass: run(&standing.last_pass),
        last_pass_age_seconds: standing.age(now).map_or(0, |age| age.as_secs()),
        next_run: next_run.map(timestamp_to_proto),
        missed_slots: repository.context.state.schedule().missed,
        max_age_seconds: repository.watch.max_age().map_or(0, |age| age.as_secs()),
        changed_without_trace: standing.traceless.as_ref().map(Into::into),
    }
}
