//! Puts the service together and runs it until it is told to stop.

use std::{path::Path, sync::Arc};

use assay_common::{
    error::IoContext as _,
    metrics::MetricsServer,
    notify::Notifier,
    pki::authority,
    serve,
    signing::SigningKey,
    supervise,
    tls::{Credentials, Role, revocation},
    traces::{Speaker, Tracer},
};
use assay_proto::v1::source_service_server::SourceServiceServer;
use tonic::service::interceptor::InterceptedService;

use crate::{
    agent::Agent,
    config::Config,
    observe,
    replicate::Memory,
    run::{Context, TargetKeys},
    schedule,
    service::Source,
    snapshot,
    state::{self, RepositoryState},
    target::Target,
    turns::{RUNS_UNDER_WAY, Turns},
};

/// How long runs may take to end when the agent is told to stop: a mark's end command, and a word to the target.
const STOP_PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);
/// The folder of notices that wait, in the state: no repository can have this name.
const NOTICES: &str = ".notices";
/// How long notices may take to be told then.
const NOTICE_PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

/// Serves until a signal comes.
///
/// # Errors
/// When something that the configuration names cannot be used.
pub async fn serve(config: Config, config_path: &Path) -> anyhow::Result<()> {
    supervise::watch_panics();
    assay_common::descriptors::raise_limit();
    authority::refuse_or_warn(&config.authority_keys)?;
    let credentials = Credentials::load(&config.tls, &[Role::Source])?;
    let _lock = state::lock(&config.agent.state)?;
    let metrics = match config.metrics {
        Some(section) => Some(MetricsServer::bind(section).await?),
        None => None,
    };
    let mut target = Target::new(&config.target.url, &config.tls);
    target.wait = config.target.wait();
    let memory = Memory::new(
        config.agent.memory_bytes(),
        config.agent.runs_at_a_time().min(config.repositories.len()),
    );
    let turns = Turns::new(memory.runs(), RUNS_UNDER_WAY);
    let mut contexts = Vec::new();
    for repository in config.repositories {
        let state = RepositoryState::open(&config.agent.state, &repository.name)?;
        state.remove_unfinished()?;
        contexts.push(Context {
            state,
            repository,
            target: target.clone(),
            signing_key: SigningKey::load(&config.signing_key)?,
            target_keys: TargetKeys::open(&config.target.signing_key)?,
            threads: config.agent.threads(),
            memory: memory.clone(),
            turns: Arc::clone(&turns),
            transfer: config.target.transfer(config.agent.threads()),
        });
    }
    let agent = Arc::new(Agent::new(config.agent.name.clone(), contexts)?);
    let notifier = Notifier::start_in(config.notify, &config.agent.state.join(NOTICES), &config.agent.name);
    let agent_name = config.agent.name.clone();
    let speaker = Speaker { role: "source", agent: agent_name, version: env!("CARGO_PKG_VERSION") };
    let tracer = Tracer::start(config.traces, speaker);
    let fixed = observe::Fixed { started: jiff::Timestamp::now() };
    observe::start(&agent, (&notifier, &tracer), metrics, fixed);
    agent.tell_ends_that_nobody_heard();
    for note in state::snapshot_notes(&config.agent.state).at("list", &config.agent.state)? {
        // Beside everything else: a command of the run before may still be at work. A run waits for that by itself.
        tokio::spawn(async move {
            if let Err(error) = snapshot::remove_left_over(&note).await {
                tracing::error!(note = %note.display(), %error, "a left-over snapshot is still there");
            }
        });
    }
    for repository in agent.repositories() {
        // An engine may hold back its own cleaning for as long as a mark is held.
        let left_over = match repository.context.marker() {
            Ok(mut marker) => marker.end_left_over().await.map_err(|error| error.to_string()),
            Err(fault) => Err(fault.text()),
        };
        if let Err(error) = left_over {
            tracing::error!(
                repository = repository.context.repository.name,
                error,
                "a left-over mark is still held"
            );
        }
        if let Some(schedule) = repository.context.repository.schedule.clone() {
            supervise::spawn("schedule", {
                let repository = Arc::clone(repository);
                move || schedule::run(Arc::clone(&repository), schedule.clone())
            });
        }
    }
    let service = SourceServiceServer::new(Source::new(Arc::clone(&agent)));
    let operators = config.agent.operators.clone();
    let service = InterceptedService::new(service, move |request| serve::only(operators.as_deref(), request));
    tracing::info!(agent = config.agent.name, config = %config_path.display(), "assay-source starts");
    revocation::watch(config_path.to_owned());
    serve::run(config.agent.listen, &credentials, &["assay.v1.SourceService"], |router| {
        router.add_service(service)
    })
    .await?;
    agent.stop(STOP_PATIENCE).await;
    tokio::join!(notifier.drain(NOTICE_PATIENCE), tracer.drain(NOTICE_PATIENCE));
    Ok(())
}
