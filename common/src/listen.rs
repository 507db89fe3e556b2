//! Listening sockets: what to do when an address cannot be had, and small HTTP servers for a few clients.

use std::{error::Error, io, net::SocketAddr, sync::Arc, time::Duration};

use hyper::{
    body::{Body, Incoming},
    server::conn::http1,
    service::HttpService,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};

/// How long a client may take to ask.
const HEADER_PATIENCE: Duration = Duration::from_secs(5);

/// The remedy for an address that cannot be listened on; `setting` is the name of the setting that has it.
pub fn hint(error: &io::Error, setting: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!("another program has this port: stop it, or change {setting}"),
        io::ErrorKind::AddrNotAvailable => format!("{setting} must be an address of this host"),
        io::ErrorKind::PermissionDenied => {
            format!("ports below 1024 need a privilege: use another one in {setting}")
        }
        _ => format!("check {setting} in the configuration"),
    }
}

/// What the clients of a small HTTP server may have.
#[derive(Debug, Clone, Copy)]
pub struct HttpLimits {
    /// Connections at a time; further ones wait.
    pub connections: usize,
    /// How long one connection may stay.
    pub lifetime: Duration,
}

/// Serves HTTP/1 on `listener` for ever. `what` is its name in the log; `service` is called for each connection with the client's address.
pub async fn serve_http<S>(
    listener: &TcpListener,
    what: &'static str,
    limits: HttpLimits,
    service: impl Fn(SocketAddr) -> S,
) where
    S: HttpService<Incoming> + Send + 'static,
    S::Future: Send,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    S::ResBody: Send + 'static,
    <S::ResBody as Body>::Data: Send,
    <S::ResBody as Body>::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let places = Arc::new(Semaphore::new(limits.connections));
    let address = listener.local_addr().map_or_else(|error| error.to_string(), |it| it.to_string());
    tracing::info!(address, "serving {what}");
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection for {what} was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let service = service(peer);
        tokio::spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_PATIENCE)
                .serve_connection(TokioIo::new(stream), service);
            // Whatever was wrong with it, it was the client's connection.
            drop(tokio::time::timeout(limits.lifetime, connection).await);
            drop(place);
        });
    }
}
