//! Puts the service together and runs it until it is told to stop.

use std::{path::Path, sync::Arc};

use anyhow::Context as _;
use assay_common::{
    keyring::Keyring,
    limits::MAX_MESSAGE_BYTES,
    metrics::MetricsServer,
    notify::Notifier,
    pki::authority,
    serve,
    signing::SigningKey,
    supervise,
    tls::{Credentials, Role, revocation},
    traces::{Speaker, Tracer},
};
use assay_proto::v1::{
    replication_service_server::ReplicationServiceServer, restore_service_server::RestoreServiceServer,
    target_service_server::TargetServiceServer,
};
use tonic::service::interceptor::InterceptedService;

use crate::{
    ahead,
    config::Config,
    keep::prune,
    observe,
    repository::{OpenError, Repository},
    service::{Repositories, operator::Operator, replication::Replication, restore::Restore},
    trust::schedule,
    web::WebServer,
};

/// The folder of notices that wait, in the store: no repository can have this name.
const NOTICES: &str = ".notices";
/// How long notices may take to be told when the agent is told to stop.
const NOTICE_PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

/// Serves until a signal comes.
///
/// # Errors
/// When something that the configuration names cannot be used.
pub async fn serve(config: Config, config_path: &Path) -> anyhow::Result<()> {
    supervise::watch_panics();
    assay_common::descriptors::raise_limit();
    authority::refuse_or_warn(&config.authority_keys)?;
    let credentials = Credentials::load(&config.tls, &[Role::Target])?;
    let signing_key = Arc::new(SigningKey::load(&config.agent.signing_key)?);
    let own_keys = Keyring::around(signing_key.verifying_key(), &config.agent.signing_key)?;
    let metrics = match config.metrics {
        Some(section) => Some(MetricsServer::bind(section).await?),
        None => None,
    };
    let web = match config.web {
        Some(section) => Some(WebServer::bind(section).await?),
        None => None,
    };
    let mut repositories = Vec::new();
    let checks = Arc::new(config.agent.check_queue());
    for repository in config.repositories {
        let name = repository.name.clone();
        // It is received all the same: a copy that cannot be checked yet is better than none.
        if let Err(faults) = repository.profile.bind_for_checks(&repository.vars, None) {
            let faults = faults.join("; ");
            tracing::error!(repository = %name, %faults, "no check of this repository can run: see assay-target config check");
        }
        let opened = Repository::open(&config.agent.store, repository, Arc::clone(&signing_key), &own_keys);
        let opened = opened.map_err(|error| match error {
            // Its hint is looked for by its type.
            OpenError::Key(error) => anyhow::Error::new(error),
            error => anyhow::Error::new(error),
        });
        let mut opened = opened.with_context(|| format!("repository {name}"))?;
        opened.checks = Arc::clone(&checks);
        let opened = Arc::new(opened);
        let repository = Arc::clone(&opened);
        std::thread::Builder::new().name("ahead".to_owned()).spawn(move || {
            ahead::lay_out_tree(&repository);
            prune::clear_trash(&repository);
            ahead::copy_files(&repository);
        })?;
        supervise::spawn("schedule", {
            let opened = Arc::clone(&opened);
            move || schedule::run(Arc::clone(&opened))
        });
        repositories.push(opened);
    }
    repositories.iter().for_each(|repository: &Arc<Repository>| repository.know_neighbours(&repositories));
    let repositories = Arc::new(Repositories::new(repositories));
    let notifier = Notifier::start_in(config.notify, &config.agent.store.join(NOTICES), &config.agent.name);
    let agent_name = config.agent.name.clone();
    let speaker = Speaker { role: "target", agent: agent_name, version: env!("CARGO_PKG_VERSION") };
    let tracer = Tracer::start(config.traces, speaker);
    let fixed = observe::Fixed {
        agent: config.agent.name.clone(),
        store: config.agent.store.clone(),
        started: jiff::Timestamp::now(),
    };
    observe::start(&repositories, (&notifier, &tracer), metrics, fixed);
    let links = web.as_ref().map(WebServer::links);
    if let Some(web) = web {
        web.start(&repositories, &config.agent.name);
    }
    let replication =
        ReplicationServiceServer::new(Replication::new(Arc::clone(&repositories), config.limits))
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
    let served = Arc::clone(&repositories);
    let restore = RestoreServiceServer::new(Restore::new(Arc::clone(&repositories)));
    let operator = TargetServiceServer::new(Operator::new(repositories, config.agent.name.clone(), links));
    let operators = config.agent.operators.clone();
    let operator =
        InterceptedService::new(operator, move |request| serve::only(operators.as_deref(), request));
    tracing::info!(agent = config.agent.name, config = %config_path.display(), "assay-target starts");
    revocation::watch(config_path.to_owned());
    serve::run(
        config.agent.listen,
        &credentials,
        &["assay.v1.ReplicationService", "assay.v1.RestoreService", "assay.v1.TargetService"],
        |router| router.add_service(replication).add_service(restore).add_service(operator),
    )
    .await?;
    // A mount that is left would keep the store's disk from being unmounted.
    tokio::task::spawn_blocking(move || served.iter().for_each(|repository| repository.end_checks()))
        .await
        .ok();
    tokio::join!(notifier.drain(NOTICE_PATIENCE), tracer.drain(NOTICE_PATIENCE));
    Ok(())
}
