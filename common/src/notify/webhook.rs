//! A webhook: one HTTP request. The agent does not follow redirects: only the configured address receives notices.

use std::{path::PathBuf, sync::Arc};

use http::{Method, Request, header};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, crypto::ring};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};
use tokio_rustls::TlsConnector;

use crate::{
    dial::{self, EstablishError},
    outbox::{DeliveryError, Peer},
};

/// Where to.
#[derive(Debug)]
pub(super) struct Webhook(Peer);

/// A request.
#[derive(Debug)]
pub(super) enum Message {
    /// GET without a body.
    Get,
    /// POST of JSON.
    Json(String),
    /// POST of plain text in UTF-8.
    Text(String),
}

impl Webhook {
    pub(super) fn new(url: &str, token_file: Option<PathBuf>, ca: Option<PathBuf>) -> Result<Self, String> {
        Peer::new(("url", url), "https://HOST/PATH or http://HOST/PATH", (80, 443), token_file, ca).map(Self)
    }

    /// Sends `message`, by `deadline`.
    pub(super) async fn tell(&self, message: Message, deadline: Instant) -> Result<(), DeliveryError> {
        let request = self.request(message)?;
        let failed =
            |error: &dyn std::fmt::Display| DeliveryError::transient(format!("{}: {error}", self.0.label()));
        if !self.0.is_tls {
            let stream = dial::connect(&self.0.host, self.0.port).await.map_err(|error| failed(&error))?;
            return self.send(stream, request).await;
        }
        let name = ServerName::try_from(self.0.host.clone())
            .map_err(|_| DeliveryError::lasting(format!("{}: no name for a certificate", self.0.label())))?;
        let connector = TlsConnector::from(Arc::new(self.tls()?));
        let addresses = dial::resolve(&self.0.host, self.0.port).await.map_err(|error| failed(&error))?;
        let shaken =
            dial::establish(&addresses, deadline, |stream| connector.connect(name.clone(), stream)).await;
        let stream = shaken.map_err(|error| match error {
            EstablishError::Dial(error) => failed(&error),
            EstablishError::Handshake(error) => failed(&error),
            EstablishError::Late => failed(&"the TLS handshake does not end"),
        })?;
        self.send(stream, request).await
    }

    fn request(&self, message: Message) -> Result<Request<Full<bytes::Bytes>>, DeliveryError> {
        let lasting = |error: &dyn std::fmt::Display| DeliveryError::lasting(error.to_string());
        let path = self.0.uri.path_and_query().map_or("/", |path| path.as_str());
        let authority = self.0.uri.authority().map_or("", |authority| authority.as_str());
        let (method, content) = match message {
            Message::Get => (Method::GET, None),
            Message::Json(json) => (Method::POST, Some(("application/json", json))),
            Message::Text(text) => (Method::POST, Some(("text/plain; charset=utf-8", text))),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, authority)
            .header(header::USER_AGENT, concat!("assay/", env!("CARGO_PKG_VERSION")));
        let mut body = bytes::Bytes::new();
        if let Some((kind, text)) = content {
            request = request.header(header::CONTENT_TYPE, kind);
            body = text.into();
        }
        if let Some(value) = self.0.bearer()? {
            request = request.header(header::AUTHORIZATION, value);
        }
        request.body(Full::new(body)).map_err(|error| lasting(&error))
    }

    async fn send(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        request: Request<Full<bytes::Bytes>>,
    ) -> Result<(), DeliveryError> {
        let failed = |error: hyper::Error| DeliveryError::transient(format!("{}: {error}", self.0.label()));
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        // Ends with this call, and so with its time limit.
        let mut connections = tokio::task::JoinSet::new();
        connections.spawn(connection);
        let status = sender.send_request(request).await.map_err(failed)?.status();
        if status.is_success() {
            return Ok(());
        }
        let mut text = format!("{}: {status}", self.0.label());
        if status.is_redirection() {
            text.push_str(": redirects are not followed, url must be where it leads");
        }
        // What it does not like, it will not like the next time.
        let is_lasting = (status.is_client_error() || status.is_redirection())
            && ![http::StatusCode::REQUEST_TIMEOUT, http::StatusCode::TOO_MANY_REQUESTS].contains(&status);
        Err(if is_lasting { DeliveryError::lasting(text) } else { DeliveryError::transient(text) })
    }

    fn tls(&self) -> Result<ClientConfig, DeliveryError> {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| DeliveryError::lasting(error.to_string()))?;
        Ok(builder.with_root_certificates(self.0.roots()?).with_no_client_auth())
    }
}
