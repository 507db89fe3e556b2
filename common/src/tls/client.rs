//! The calling side: a `tonic` channel whose server is known to be the right one, and errors that say what to
//! do.
//!
//! In TLS 1.3 a client has finished its handshake before the server has looked at its certificate, so a
//! refusal arrives with the first read. An HTTP/2 server speaks first (RFC 9113, 3.4), so each new connection
//! waits for its first byte here, and a refusal is told as what it is.

use std::{
    error::Error,
    io,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rustls::{AlertDescription, CertificateError, ClientConfig};
use rustls_pki_types::{ServerName, UnixTime};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, BufReader, ReadBuf},
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use super::credentials::{Credentials, PeerFault, TlsError, TlsFiles};
use crate::{
    dial::{self, DialError, EstablishError},
    error::{Hint, ShowPath},
    limits::{CONNECTION_WINDOW_BYTES, MAX_FRAME_BYTES, MAX_HEADER_LIST_BYTES, STREAM_WINDOW_BYTES},
    path::display_bytes,
    pki::{IdentityError, PeerIdentity, Role},
    rpc_status::{RpcFault, fault_from_status},
};

/// Holds the first bytes of a connection, no more: longer reads go past it.
const FIRST_READ_BYTES: usize = 256;

/// How to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectOptions {
    /// For all of it: name, TCP, TLS, and the server's first byte.
    pub timeout: Duration,
    /// How often an idle connection is tried.
    pub keep_alive_interval: Duration,
    /// How long the answer may take before the connection is given up.
    pub keep_alive_timeout: Duration,
    /// The name to expect in the server's certificate, when it is not the one in the URL.
    pub server_name: Option<String>,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(10),
            keep_alive_interval: Duration::from_secs(20),
            keep_alive_timeout: Duration::from_secs(20),
            server_name: None,
        }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Not an address that we call.
    #[error("'{url}' is not of the form https://HOST:PORT")]
    Url {
        /// The text, shown safely.
        url: String,
    },
    /// Not a name that a certificate can have.
    #[error("'{name}' is neither a host name nor an address that a certificate can have")]
    ServerName {
        /// The text, shown safely.
        name: String,
    },
    /// The own files cannot be used.
    #[error(transparent)]
    Own(#[from] TlsError),
    /// The host name is not known.
    #[error("cannot find the address of {host}: {source}")]
    Resolve {
        /// The name.
        host: String,
        /// Why not.
        source: io::Error,
    },
    /// The name service says nothing.
    #[error("the name service has not said within {timeout:?} which address {host} has")]
    ResolveTimeout {
        /// The name.
        host: String,
        /// How long it was waited for.
        timeout: Duration,
    },
    /// Nobody answers there.
    #[error("cannot reach {peer} ({address}{}): {source}", others(*tried))]
    Unreachable {
        /// Host and port.
        peer: String,
        /// The last address that was tried.
        address: SocketAddr,
        /// The number of addresses that were tried.
        tried: usize,
        /// Why not.
        source: io::Error,
    },
    /// It took too long.
    #[error("{peer}: no {phase} within {timeout:?}")]
    Timeout {
        /// Host and port.
        peer: String,
        /// What was waited for.
        phase: &'static str,
        /// How long.
        timeout: Duration,
    },
    /// The server's certificate has expired.
    #[error("the certificate of the server {peer} has expired{}", show_when(" on ", when))]
    PeerExpired {
        /// Host and port.
        peer: String,
        /// Its last moment.
        when: Option<Timestamp>,
    },
    /// The server's certificate is not valid yet.
    #[error("the certificate of the server {peer} is not valid yet{}", show_when(", only from ", when))]
    PeerNotYetValid {
        /// Host and port.
        peer: String,
        /// Its first moment.
        when: Option<Timestamp>,
    },
    /// The server's certificate comes from another CA.
    #[error("the certificate of the server {peer} was not issued by the CA in {}", ShowPath(ca))]
    UnknownCa {
        /// Host and port.
        peer: String,
        /// The CA that we trust.
        ca: PathBuf,
    },
    /// The server's certificate is for other hosts.
    #[error("the certificate of the server {peer} is not for '{expected}' but for {presented}")]
    HostName {
        /// Host and port.
        peer: String,
        /// The name that we called.
        expected: String,
        /// The names that it is for, shown safely.
        presented: String,
    },
    /// The server is somebody else.
    #[error("the server {peer} is the {found}, expected a {expected}")]
    WrongRole {
        /// Host and port.
        peer: String,
        /// Who it is.
        found: PeerIdentity,
        /// What it should be.
        expected: Role,
    },
    /// The server's certificate does not say who it is.
    #[error("the server {peer}: {source}")]
    PeerIdentity {
        /// Host and port.
        peer: String,
        /// What is wrong.
        source: IdentityError,
    },
    /// The server's certificate is refused for another reason.
    #[error("the certificate of the server {peer} is refused: {source}")]
    PeerCertificate {
        /// Host and port.
        peer: String,
        /// Why.
        source: rustls::Error,
    },
    /// The server refused our certificate.
    #[error("the server {peer} refused our certificate {}: {}", ShowPath(cert), refusal(*alert))]
    RefusedUs {
        /// Host and port.
        peer: String,
        /// Our certificate.
        cert: PathBuf,
        /// What the server said.
        alert: AlertDescription,
    },
    /// The server speaks something else.
    #[error("{peer} does not speak TLS")]
    NotTls {
        /// Host and port.
        peer: String,
    },
    /// The server closed the connection.
    #[error("{peer} closed the connection during the {phase}")]
    Closed {
        /// Host and port.
        peer: String,
        /// When.
        phase: &'static str,
    },
    /// The handshake failed for another reason.
    #[error("TLS with {peer} failed: {source}")]
    Handshake {
        /// Host and port.
        peer: String,
        /// Why.
        source: io::Error,
    },
    /// HTTP/2 failed.
    #[error("HTTP/2 with {peer} failed: {source}")]
    Http {
        /// Host and port.
        peer: String,
        /// Why.
        source: tonic::transport::Error,
    },
}

fn show_when(before: &str, when: &Option<Timestamp>) -> String {
    when.map_or(String::new(), |when| format!("{before}{when}"))
}

/// What an alert means when it answers our certificate.
fn refusal(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateRequired => "it got none".to_owned(),
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            "it was not issued by the CA that the server trusts".to_owned()
        }
        AlertDescription::CertificateExpired => "it is not valid now, by the server's clock".to_owned(),
        AlertDescription::CertificateRevoked => "it was revoked".to_owned(),
        AlertDescription::UnsupportedCertificate => "it is not for clients".to_owned(),
        AlertDescription::CertificateUnknown => {
            "it does not name one identity urn:assay:ROLE:NAME".to_owned()
        }
        other => format!("TLS alert {other:?}"),
    }
}

/// True for what a server says to a certificate that it does not like.
fn is_refusal(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::CertificateRequired
            | AlertDescription::UnknownCA
            | AlertDescription::DecryptError
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::BadCertificate
            | AlertDescription::AccessDenied
    )
}

fn others(tried: usize) -> String {
    if tried > 1 { format!(", the last of {tried} addresses") } else { String::new() }
}

/// What an operator can look at when a name has no address.
fn name_service(host: &str) -> String {
    format!(
        "this host's name servers (/etc/resolv.conf); until they answer, /etc/hosts can say the address of {host}"
    )
}

impl Hint for ConnectError {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Own(error) => return error.hint(),
            Self::Url { .. } => "for example https://backup.example.org:7443".to_owned(),
            Self::ServerName { .. } => "set the name that stands in the server's certificate".to_owned(),
            Self::Resolve { host, .. } => {
                format!("check the spelling of {host}, and {}", name_service(host))
            }
            Self::ResolveTimeout { host, .. } => format!("check {}", name_service(host)),
            Self::Unreachable { .. } => {
                "check that the agent runs there, its port, and the firewalls".to_owned()
            }
            Self::Timeout { .. } => {
                "check the firewalls between, and that the agent is alive there (see its log)".to_owned()
            }
            Self::PeerExpired { .. } => {
                "issue a new certificate for that server, and check the clocks of both hosts".to_owned()
            }
            Self::PeerNotYetValid { .. } => "check the clocks of both hosts".to_owned(),
            Self::UnknownCa { ca, .. } => format!(
                "both agents need certificates of one CA: compare {} with the server's file, and check \
                 that this is the right server",
                ShowPath(ca)
            ),
            Self::HostName { .. } => {
                "call it by a name that its certificate has, or issue one with this name".to_owned()
            }
            Self::WrongRole { expected, .. } => format!("check the port: no {expected} answers there"),
            Self::PeerIdentity { .. } => {
                "issue that server's certificate with one URI name urn:assay:ROLE:NAME".to_owned()
            }
            Self::RefusedUs { alert: AlertDescription::CertificateExpired, .. } => {
                "compare the clocks of both hosts, or issue a new certificate".to_owned()
            }
            Self::RefusedUs { .. } => {
                "use a certificate of the server's CA (its log has the reason)".to_owned()
            }
            Self::NotTls { .. } => "check the port: something else answers there".to_owned(),
            Self::Closed { .. } => "the server's log has the reason (too many connections?)".to_owned(),
            Self::PeerCertificate { .. } | Self::Handshake { .. } | Self::Http { .. } => return None,
        };
        Some(hint)
    }
}

/// Bytes that went over a channel's connections, as counted on the socket, under TLS.
#[derive(Debug, Default)]
pub struct WireCounter {
    read: AtomicU64,
    written: AtomicU64,
}

impl WireCounter {
    /// Bytes that came in.
    pub fn bytes_in(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Bytes that went out.
    pub fn bytes_out(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}

/// Connects to the agent of role `expected` at `url`, as one of the roles `own`. The certificate files are
/// read anew for each connection that the channel makes later, so that renewed ones are taken up.
///
/// # Errors
/// [`ConnectError`], also when the server refuses our certificate.
pub async fn connect(
    url: &str,
    expected: Role,
    files: &TlsFiles,
    own: &[Role],
    options: &ConnectOptions,
) -> Result<(Channel, Arc<WireCounter>), ConnectError> {
    let dialer = Arc::new(Dialer::new(url, expected, files, own, options)?);
    let first = Mutex::new(Some(dialer.dial().await?));
    let counter = Arc::clone(&dialer.counter);

    let peer = dialer.peer.clone();
    let http = |source| ConnectError::Http { peer: peer.clone(), source };
    let url_fault = |_| ConnectError::Url { url: display_bytes(url.as_bytes()) };
    // `tonic` refuses https:// with a connector of one's own; calls carry the true scheme all the same.
    let endpoint = Endpoint::from_shared(format!("http://{peer}"))
        .map_err(http)?
        .origin(format!("https://{peer}").parse().map_err(url_fault)?)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_adaptive_window(false)
        .http2_keep_alive_interval(options.keep_alive_interval)
        .keep_alive_timeout(options.keep_alive_timeout)
        .keep_alive_while_idle(true)
        .http2_max_header_list_size(MAX_HEADER_LIST_BYTES)
        .max_frame_size(MAX_FRAME_BYTES);
    let connector = tower::service_fn(move |_| {
        let first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
        let dialer = Arc::clone(&dialer);
        async move {
            let stream = match first {
                Some(stream) => stream,
                None => dialer.dial().await?,
            };
            Ok::<_, ConnectError>(TokioIo::new(stream))
        }
    });
    let channel = endpoint.connect_with_connector(connector).await.map_err(http)?;
    Ok((channel, counter))
}

/// What to tell about a failed call to `peer`: what the other agent said, or, when a connection was the
/// problem, what [`ConnectError`] says about it.
pub fn explain_rpc_error(status: &Status, peer: &str) -> RpcFault {
    if let Some(error) = connect_error_of(status) {
        let fault = RpcFault::new(Code::Unavailable, "not-connected", error.to_string());
        return match error.hint() {
            Some(hint) => fault.with_hint(hint),
            None => fault,
        };
    }
    let fault = fault_from_status(status);
    // What the other agent said has no cause here: a status with one was made of what the connection ended with.
    let cause = root_cause(status);
    let is_of_the_connection = fault.code == Code::Unavailable
        || cause.is_some() && matches!(fault.code, Code::Unknown | Code::Internal | Code::Cancelled);
    if fault.reason.is_empty() && is_of_the_connection {
        let cause = cause.map_or(fault.message, ToString::to_string);
        let message = format!("the connection to {peer} was lost: {cause}");
        return RpcFault::new(Code::Unavailable, "connection-lost", message).with_hint(
            "check that the agent still runs there (its log tells why it stopped), then try again",
        );
    }
    fault
}

/// The last of what a status was made of; `None` where the other agent made it.
fn root_cause(status: &Status) -> Option<&(dyn Error + 'static)> {
    let mut cause = status.source()?;
    while let Some(further) = cause.source() {
        cause = further;
    }
    Some(cause)
}

/// Why a call failed that found no connection: the channel had to make a new one, and could not.
pub fn connect_error_of(status: &Status) -> Option<&ConnectError> {
    let mut cause = status.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<ConnectError>() {
            return Some(error);
        }
        cause = error.source();
    }
    None
}

/// What a connection is to `tonic`.
pub(super) type ClientStream = BufReader<TlsStream<Counted<TcpStream>>>;

/// Makes connections to one server.
pub(super) struct Dialer {
    host: String,
    port: u16,
    /// Host and port, for texts and for HTTP's authority.
    peer: String,
    server_name: ServerName<'static>,
    expected: Role,
    files: TlsFiles,
    own: Vec<Role>,
    timeout: Duration,
    counter: Arc<WireCounter>,
}

impl Dialer {
    pub(super) fn new(
        url: &str,
        expected: Role,
        files: &TlsFiles,
        own: &[Role],
        options: &ConnectOptions,
    ) -> Result<Self, ConnectError> {
        let fault = || ConnectError::Url { url: display_bytes(url.as_bytes()) };
        let uri: http::Uri = url.parse().map_err(|_| fault())?;
        let bare =
            uri.scheme_str() == Some("https") && matches!(uri.path(), "" | "/") && uri.query().is_none();
        let authority = uri.authority().filter(|authority| bare && !authority.as_str().contains('@'));
        let authority = authority.ok_or_else(fault)?;
        let port = authority.port_u16().filter(|port| *port > 0).ok_or_else(fault)?;
        let host = authority.host();
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host).to_owned();
        let name = options.server_name.as_ref().unwrap_or(&host);
        let server_name = ServerName::try_from(name.clone())
            .map_err(|_| ConnectError::ServerName { name: display_bytes(name.as_bytes()) })?;
        Ok(Self {
            port,
            peer: authority.to_string(),
            server_name,
            host,
            expected,
            files: files.clone(),
            own: own.to_vec(),
            timeout: options.timeout,
            counter: Arc::default(),
        })
    }

    async fn dial(&self) -> Result<ClientStream, ConnectError> {
        // Three small files: not worth another thread.
        let config = Credentials::load(&self.files, &self.own)?.client_config(self.expected)?;
        self.dial_with(config).await
    }

    pub(super) async fn dial_with(&self, config: Arc<ClientConfig>) -> Result<ClientStream, ConnectError> {
        let deadline = Instant::now() + self.timeout;
        let late = |phase| {
            let (peer, timeout) = (self.peer.clone(), self.timeout);
            move |()| ConnectError::Timeout { peer, phase, timeout }
        };
        let addresses = timeout_at(deadline, dial::resolve(&self.host, self.port))
            .await
            .map_err(|_| ConnectError::ResolveTimeout { host: self.host.clone(), timeout: self.timeout })?
            .map_err(|error| self.not_reached(error))?;
        // How far the best of them came.
        let reached = AtomicU8::new(0);
        let shaken = dial::establish(&addresses, deadline, |tcp| {
            reached.fetch_max(1, Ordering::Relaxed);
            self.shake_hands(tcp, Arc::clone(&config), &reached)
        });
        shaken.await.map_err(|error| match error {
            EstablishError::Dial(error) => self.not_reached(error),
            EstablishError::Handshake(error) => error,
            EstablishError::Late => {
                let phases = ["answer", "TLS handshake", "first byte of HTTP/2"];
                late(phases[usize::from(reached.load(Ordering::Relaxed))])(())
            }
        })
    }

    async fn shake_hands(
        &self,
        tcp: TcpStream,
        config: Arc<ClientConfig>,
        reached: &AtomicU8,
    ) -> Result<ClientStream, ConnectError> {
        let tcp = Counted { inner: tcp, counter: Arc::clone(&self.counter) };
        let tls = TlsConnector::from(config).connect(self.server_name.clone(), tcp).await;
        let tls = tls.map_err(|error| self.explain(error, "TLS handshake"))?;
        reached.fetch_max(2, Ordering::Relaxed);
        let mut stream = BufReader::with_capacity(FIRST_READ_BYTES, tls);
        let first = stream.fill_buf().await;
        let first = first.map_err(|error| self.explain(error, "check of our certificate"))?;
        if first.is_empty() {
            return Err(ConnectError::Closed { peer: self.peer.clone(), phase: "start of HTTP/2" });
        }
        Ok(stream)
    }

    fn not_reached(&self, error: DialError) -> ConnectError {
        match error {
            DialError::Resolve { source, .. } => ConnectError::Resolve { host: self.host.clone(), source },
            DialError::Unreachable { address, source, tried } => {
                ConnectError::Unreachable { peer: self.peer.clone(), address, tried, source }
            }
        }
    }

    fn explain(&self, error: io::Error, phase: &'static str) -> ConnectError {
        let peer = self.peer.clone();
        let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
            return match error.kind() {
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                    ConnectError::Closed { peer, phase }
                }
                _ => ConnectError::Handshake { peer, source: error },
            };
        };
        match tls {
            rustls::Error::InvalidCertificate(fault) => self.explain_certificate(fault, tls),
            rustls::Error::AlertReceived(alert) if is_refusal(*alert) => {
                ConnectError::RefusedUs { peer, cert: self.files.cert.clone(), alert: *alert }
            }
            rustls::Error::InvalidMessage(_) => ConnectError::NotTls { peer },
            _ => ConnectError::Handshake { peer, source: error },
        }
    }

    fn explain_certificate(&self, fault: &CertificateError, error: &rustls::Error) -> ConnectError {
        let peer = self.peer.clone();
        match fault {
            CertificateError::Expired => ConnectError::PeerExpired { peer, when: None },
            CertificateError::ExpiredContext { not_after, .. } => {
                ConnectError::PeerExpired { peer, when: timestamp(*not_after) }
            }
            CertificateError::NotValidYet => ConnectError::PeerNotYetValid { peer, when: None },
            CertificateError::NotValidYetContext { not_before, .. } => {
                ConnectError::PeerNotYetValid { peer, when: timestamp(*not_before) }
            }
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                ConnectError::UnknownCa { peer, ca: self.files.ca.clone() }
            }
            CertificateError::NotValidForName => self.host_name(peer, "other names".to_owned()),
            CertificateError::NotValidForNameContext { presented, .. } if presented.is_empty() => {
                self.host_name(peer, "no host at all".to_owned())
            }
            CertificateError::NotValidForNameContext { presented, .. } => {
                self.host_name(peer, display_bytes(presented.join(", ").as_bytes()))
            }
            CertificateError::Other(other) => match other.0.downcast_ref::<PeerFault>() {
                Some(PeerFault::WrongRole { found, expected }) => {
                    ConnectError::WrongRole { peer, found: found.clone(), expected: *expected }
                }
                Some(PeerFault::Identity(source)) => {
                    ConnectError::PeerIdentity { peer, source: source.clone() }
                }
                None => ConnectError::PeerCertificate { peer, source: error.clone() },
            },
            _ => ConnectError::PeerCertificate { peer, source: error.clone() },
        }
    }

    fn host_name(&self, peer: String, presented: String) -> ConnectError {
        ConnectError::HostName { peer, expected: self.server_name.to_str().into_owned(), presented }
    }
}

fn timestamp(time: UnixTime) -> Option<Timestamp> {
    Timestamp::from_second(i64::try_from(time.as_secs()).ok()?).ok()
}

/// Counts what goes through.
pub(super) struct Counted<S> {
    inner: S,
    counter: Arc<WireCounter>,
}

impl<S> Counted<S> {
    fn wrote(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &polled {
            self.counter.written.fetch_add(*bytes as u64, Ordering::Relaxed);
        }
        polled
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(context, buffer);
        self.counter.read.fetch_add((buffer.filled().len() - before) as u64, Ordering::Relaxed);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.wrote(polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(context, buffers);
        self.wrote(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
