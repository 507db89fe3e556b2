//! Puts the service together and runs it until it is told to stop.

use std::{path::Path, sync::Arc};

use assay_common::{
    serve,
    signing::{SigningKey, VerifyingKey},
    tls::{Credentials, Role},
};
use assay_proto::v1::source_service_server::SourceServiceServer;

use crate::{
    agent::Agent,
    config::Config,
    run::Context,
    schedule,
    service::Source,
    state::{self, RepositoryState},
    target::Target,
};

/// Serves until a signal comes.
///
/// # Errors
/// When something that the configuration names cannot be used.
pub async fn serve(config: Config, config_path: &Path) -> anyhow::Result<()> {
    let credentials = Credentials::load(&config.tls, &[Role::Source])?;
    let _lock = state::lock(&config.agent.state)?;
    let target = Target { url: config.target.url.clone(), files: config.tls.clone() };
    let mut contexts = Vec::new();
    for repository in config.repositories {
        contexts.push(Context {
            state: RepositoryState::open(&config.agent.state, &repository.name)?,
            repository,
            target: target.clone(),
            signing_key: SigningKey::load(&config.signing_key)?,
            target_key: VerifyingKey::load(&config.target.signing_key)?,
            threads: config.agent.threads(),
            memory_bytes: config.agent.memory_bytes(),
        });
    }
    let agent = Arc::new(Agent::new(config.agent.name.clone(), contexts)?);
    for repository in agent.repositories() {
        if let Some(schedule) = repository.context.repository.schedule.clone() {
            tokio::spawn(schedule::run(Arc::clone(repository), schedule));
        }
    }
    let service = SourceServiceServer::new(Source::new(agent));
    tracing::info!(agent = config.agent.name, config = %config_path.display(), "assay-source starts");
    serve::run(config.agent.listen, &credentials, |router| router.add_service(service)).await?;
    Ok(())
}
