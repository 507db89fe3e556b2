//! A webhook: one POST of JSON. Redirects are not followed: what was configured is what is told.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use http::{HeaderValue, Method, Request, Uri, header};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::NotifyError;
use crate::signing::read_private;

/// Where, and as whom. The files are read for each notice, so that renewed ones are taken up.
#[derive(Debug)]
pub(super) struct Webhook {
    uri: Uri,
    host: String,
    port: u16,
    is_tls: bool,
    token_file: Option<PathBuf>,
    ca: Option<PathBuf>,
}

impl Webhook {
    pub(super) fn new(url: &str, token_file: Option<PathBuf>, ca: Option<PathBuf>) -> Result<Self, String> {
        // The text itself may hold a secret and is not shown.
        let fault = || "url: https://HOST/PATH or http://HOST/PATH was expected".to_owned();
        let uri: Uri = url.parse().map_err(|_| fault())?;
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(fault()),
        };
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(fault)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err("url: a password belongs in token_file, not in the URL".to_owned());
        }
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        if ca.is_some() && !is_tls {
            return Err("ca: of use with https only".to_owned());
        }
        Ok(Self { uri, host, port, is_tls, token_file, ca })
    }

    /// Host and port, for messages: the path may hold a secret.
    fn peer(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    pub(super) async fn tell(&self, json: String) -> Result<(), NotifyError> {
        let request = self.request(json)?;
        let failed =
            |error: &dyn std::fmt::Display| NotifyError::transient(format!("{}: {error}", self.peer()));
        let stream =
            TcpStream::connect((self.host.as_str(), self.port)).await.map_err(|error| failed(&error))?;
        if !self.is_tls {
            return self.post(stream, request).await;
        }
        let name = ServerName::try_from(self.host.clone())
            .map_err(|_| NotifyError::lasting(format!("{}: no name for a certificate", self.peer())))?;
        let connector = TlsConnector::from(Arc::new(self.tls()?));
        let stream = connector.connect(name, stream).await.map_err(|error| failed(&error))?;
        self.post(stream, request).await
    }

    fn request(&self, json: String) -> Result<Request<Full<bytes::Bytes>>, NotifyError> {
        let lasting = |error: &dyn std::fmt::Display| NotifyError::lasting(error.to_string());
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let authority = self.uri.authority().map_or("", |authority| authority.as_str());
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(header::HOST, authority)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("assay/", env!("CARGO_PKG_VERSION")));
        if let Some(file) = &self.token_file {
            let bytes = read_private(file).map_err(|error| lasting(&error))?;
            let token = String::from_utf8_lossy(&bytes);
            let mut value = HeaderValue::try_from(format!("Bearer {}", token.trim()))
                .map_err(|_| NotifyError::lasting(format!("{}: not a token", file.display())))?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        request.body(Full::new(json.into())).map_err(|error| lasting(&error))
    }

    async fn post(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        request: Request<Full<bytes::Bytes>>,
    ) -> Result<(), NotifyError> {
        let failed = |error: hyper::Error| NotifyError::transient(format!("{}: {error}", self.peer()));
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        // Ends with this call, and so with its time limit.
        let mut connections = tokio::task::JoinSet::new();
        connections.spawn(connection);
        let status = sender.send_request(request).await.map_err(failed)?.status();
        if status.is_success() {
            return Ok(());
        }
        let text = format!("{}: {status}", self.peer());
        // What it does not like, it will not like the next time.
        let is_lasting = (status.is_client_error() || status.is_redirection())
            && ![http::StatusCode::REQUEST_TIMEOUT, http::StatusCode::TOO_MANY_REQUESTS].contains(&status);
        Err(if is_lasting { NotifyError::lasting(text) } else { NotifyError::transient(text) })
    }

    fn tls(&self) -> Result<ClientConfig, NotifyError> {
        let roots = match &self.ca {
            Some(file) => authorities(file)?,
            None => {
                let found = rustls_native_certs::load_native_certs();
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(found.certs);
                roots
            }
        };
        if roots.is_empty() {
            return Err(NotifyError::lasting(
                "this system has no certificate authorities: install ca-certificates, or set ca",
            ));
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| NotifyError::lasting(error.to_string()))?;
        Ok(builder.with_root_certificates(roots).with_no_client_auth())
    }
}

fn authorities(file: &Path) -> Result<RootCertStore, NotifyError> {
    let fault = |error: &dyn std::fmt::Display| NotifyError::lasting(format!("{}: {error}", file.display()));
    let bytes = std::fs::read(file).map_err(|error| fault(&error))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        let certificate = certificate.map_err(|_| fault(&"not a certificate in PEM"))?;
        roots.add(certificate).map_err(|error| fault(&error))?;
    }
    Ok(roots)
}
