//! What both agents' servers share: the listening socket, TLS, health, reflection, and the end on a signal.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{net::TcpListener, signal::unix::SignalKind};
use tonic::{Code, Request, Status, service::Routes};
use tonic_health::ServingStatus;

use crate::{
    listen,
    pki::Role,
    rpc_status::RpcFault,
    service_manager,
    tls::{
        Credentials, IncomingLimits, RevocationGuardLayer, TlsError, incoming_renewed, renewal, require_role,
        server_builder,
    },
    trouble,
};

/// Why an agent cannot serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("{address} cannot be listened on: {source}\nHINT: {}", listen::hint(source, "agent.listen"))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Reflection cannot be set up: the build is broken.
    #[error("gRPC reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The server broke.
    #[error("the server ended: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// It takes no connections any more, and nobody has told it to stop.
    #[error(
        "the server takes no connections any more: a task of it has ended; the log says why\nHINT: restart the agent"
    )]
    Deaf,
    /// Signals cannot be waited for.
    #[error("signals cannot be waited for: {0}")]
    Signal(#[source] io::Error),
}

/// Serves what `add` adds, the services called `names`, with health and reflection (v1 and v1alpha), until SIGTERM or SIGINT.
///
/// # Errors
/// [`ServeError`].
pub async fn run(
    address: SocketAddr,
    credentials: &Credentials,
    names: &[&str],
    add: impl FnOnce(Routes) -> Routes,
) -> Result<(), ServeError> {
    let configs = renewal::renewed(credentials)?;
    let listener =
        TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })?;
    let bound = listener.local_addr().unwrap_or(address);
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status("", ServingStatus::Serving).await;
    let builder = || {
        let builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(assay_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // The details of errors, so that grpcurl can print them.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
            .with_service_name("grpc.health.v1.Health");
        // The contract has services of both agents: only this one's are named.
        names.iter().fold(builder, |builder, name| builder.with_service_name(*name))
    };
    let routes = Routes::new(health_service)
        .add_service(builder().build_v1()?)
        .add_service(builder().build_v1alpha()?);
    let routes = add(routes);
    crate::supervise::spawn("health", move || report_health(health.clone()));
    let signal = |kind| tokio::signal::unix::signal(kind).map_err(ServeError::Signal);
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tracing::info!(address = %bound, identity = %credentials.identity(), "serving");
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("told to stop");
        service_manager::stopping();
    };
    let _service = service_manager::ready(&format!("serving on {bound}"));
    let connections = incoming_renewed(listener, configs, IncomingLimits::default());
    let serving =
        server_builder().layer(RevocationGuardLayer).add_routes(routes).serve_with_incoming(connections);
    // Streams that operators watch may stay open for ever: the end is not waited for. What is on disk is sound at any
    // instant, so there is nothing to drain that a restart would not find again.
    tokio::select! {
        served = serving => {
            served?;
            Err(ServeError::Deaf)
        }
        () = stop => Ok(()),
    }
}

/// The health service says what is true: an agent that answers and cannot do its work does not serve.
async fn report_health(health: tonic_health::server::HealthReporter) {
    let mut tick = tokio::time::interval(HEALTH_TICK);
    let mut told = None;
    loop {
        tick.tick().await;
        let serves = trouble::can_work() && service_manager::silent(Instant::now()).is_none();
        if told != Some(serves) {
            let status = if serves { ServingStatus::Serving } else { ServingStatus::NotServing };
            health.set_service_status("", status).await;
            told = Some(serves);
        }
    }
}

/// How often the health service is told how the agent is.
const HEALTH_TICK: Duration = Duration::from_secs(1);

/// Lets only those operators through that `agent.operators` names, to whatever call; all of them when it names none. The operators
/// of other agents have certificates of the same CA.
///
/// # Errors
/// `PERMISSION_DENIED` for everybody else.
#[allow(clippy::result_large_err)] // tonic's own error type, returned as it is.
pub fn only(operators: Option<&[String]>, request: Request<()>) -> Result<Request<()>, Status> {
    let Some(operators) = operators else {
        return Ok(request);
    };
    let peer = require_role(&request, &[Role::Operator])?;
    if operators.contains(&peer.name) {
        return Ok(request);
    }
    tracing::warn!(operator = peer.name, "call refused: not an operator of this agent");
    let text = format!("the {peer} does not operate this agent");
    Err(RpcFault::new(Code::PermissionDenied, "operator-not-allowed", text)
        .with_hint("ask one who does, or add the name to agent.operators there")
        .into())
}
