//! The small HTTP server.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use serde::Deserialize;
use tokio::net::TcpListener;

use crate::listen::{self, HttpLimits, serve_http};

/// Prometheus keeps its connection for as long as it scrapes.
const LIMITS: HttpLimits = HttpLimits { connections: 16, lifetime: Duration::from_secs(600) };
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
    #[error(
        "{address} cannot be listened on for metrics: {source}\nHINT: {}",
        listen::hint(source, "metrics.listen")
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
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
        serve_http(&self.listener, "metrics", LIMITS, |_| {
            let page = Arc::clone(&page);
            service_fn(move |request| answer(request, Arc::clone(&page)))
        })
        .await;
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
