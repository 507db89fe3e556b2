//! Puts the service together and runs it until it is told to stop.

use std::{path::Path, sync::Arc};

use anyhow::Context as _;
use assay_common::{
    serve,
    signing::SigningKey,
    tls::{Credentials, Role},
};
use assay_proto::v1::{
    replication_service_server::ReplicationServiceServer, target_service_server::TargetServiceServer,
};

use crate::{
    config::Config,
    keep::prune,
    repository::Repository,
    service::{Repositories, operator::Operator, replication::Replication},
    trust::schedule,
    verify,
};

/// Largest message from a source, in bytes: a pack of content with room to spare.
pub(crate) const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// Serves until a signal comes.
///
/// # Errors
/// When something that the configuration names cannot be used.
pub async fn serve(config: Config, config_path: &Path) -> anyhow::Result<()> {
    let credentials = Credentials::load(&config.tls, &[Role::Target])?;
    let signing_key = Arc::new(SigningKey::load(&config.agent.signing_key)?);
    let mut repositories = Vec::new();
    for repository in config.repositories {
        let name = repository.name.clone();
        let opened = Repository::open(&config.agent.store, repository, Arc::clone(&signing_key));
        let opened = Arc::new(opened.with_context(|| format!("repository {name}"))?);
        let repository = Arc::clone(&opened);
        std::thread::Builder::new().name("ahead".to_owned()).spawn(move || {
            verify::lay_out_ahead(&repository);
            prune::clear_trash(&repository);
        })?;
        tokio::spawn(schedule::run(Arc::clone(&opened)));
        repositories.push(opened);
    }
    let repositories = Arc::new(Repositories::new(repositories));
    let replication = ReplicationServiceServer::new(Replication::new(Arc::clone(&repositories)))
        .max_decoding_message_size(MAX_MESSAGE_BYTES);
    let operator = TargetServiceServer::new(Operator::new(repositories, config.agent.name.clone()));
    tracing::info!(agent = config.agent.name, config = %config_path.display(), "assay-target starts");
    serve::run(
        config.agent.listen,
        &credentials,
        &["assay.v1.ReplicationService", "assay.v1.TargetService"],
        |router| router.add_service(replication).add_service(operator),
    )
    .await?;
    Ok(())
}
