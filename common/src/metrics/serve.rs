//! The small HTTP server.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Deserialize;
use tokio::{net::TcpListener, sync::Semaphore};

/// Scrapers that are served side by side.
const CONNECTIONS: usize = 16;
/// How long a client may take to ask.
const HEADER_PATIENCE: Duration = Duration::from_secs(5);
/// How long one connection may stay: Prometheus keeps its own for as long as it scrapes.
const LIFETIME: Duration = Duration::from_secs(600);
/// What OpenMetrics text is called (OpenMetrics 1.0, "Protocol Negotiation").
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// `[metrics]`: for Prometheus. Without this section nothing is served.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsSection {
    /// Address and port of `GET /metrics`. Plain HTTP without a password: keep it on this host, or behind a firewall.
    pub listen: SocketAddr,
}

/// Why no metrics are served.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The address cannot be listened on.
    #[error("{address} cannot be listened on for metrics: {source}\nHINT: {}", listen_hint(source))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
}

fn listen_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "another program has this port: stop it, or change metrics.listen",
        io::ErrorKind::AddrNotAvailable => "metrics.listen must be an address of this host",
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need a privilege: use another one in metrics.listen"
        }
        _ => "check metrics.listen in the configuration",
    }
}

/// A listening socket that serves nothing yet.
#[derive(Debug)]
pub struct MetricsServer {
    listener: TcpListener,
}

impl MetricsServer {
    /// Takes the address.
    ///
    /// # Errors
    /// When it cannot be had.
    pub async fn bind(section: MetricsSection) -> Result<Self, MetricsError> {
        let address = section.listen;
        let listener =
            TcpListener::bind(address).await.map_err(|source| MetricsError::Listen { address, source })?;
        if !address.ip().is_loopback() {
            tracing::warn!(%address, "metrics are served to other hosts, without a password");
        }
        Ok(Self { listener })
    }

    /// Serves what `page` makes, for ever. It is called on a thread that may wait.
    pub async fn serve(self: Arc<Self>, page: Arc<impl Fn() -> String + Send + Sync + 'static>) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let address = self.listener.local_addr().map_or_else(|error| error.to_string(), |it| it.to_string());
        tracing::info!(address, "serving metrics");
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection for metrics was not taken");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let page = Arc::clone(&page);
            tokio::spawn(async move {
                let service = service_fn(move |request| answer(request, Arc::clone(&page)));
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_PATIENCE)
                    .serve_connection(TokioIo::new(stream), service);
                // Whatever was wrong with it, it was the client's connection.
                drop(tokio::time::timeout(LIFETIME, connection).await);
                drop(place);
            });
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    page: Arc<impl Fn() -> String + Send + Sync + 'static>,
) -> Result<Response<Full<bytes::Bytes>>, Infallible> {
    let plain = |status, text: &'static str| {
        let mut response = Response::new(Full::new(bytes::Bytes::from_static(text.as_bytes())));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/metrics" {
        return Ok(plain(StatusCode::NOT_FOUND, "metrics are at /metrics\n"));
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return Ok(plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n"));
    }
    let Ok(text) = tokio::task::spawn_blocking(move || page()).await else {
        return Ok(plain(StatusCode::INTERNAL_SERVER_ERROR, "the agent has a bug: its log tells where\n"));
    };
    let mut response = Response::new(Full::new(text.into()));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(CONTENT_TYPE));
    Ok(response)
}
