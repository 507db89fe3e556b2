//! The serving side: connections for `tonic`, each with the identity of its client.
//!
//! A connection has one deadline from its acceptance to its first HTTP/2 frame, and is counted: unfinished
//! ones by address, finished ones by identity. Many sources behind one address may come at once: those for whose
//! handshake there is no room wait a moment, a bounded number of them. A failed handshake is logged and ends nothing but itself. When
//! the stream is dropped, the listener is closed and unfinished handshakes are given up.

use std::{
    collections::HashMap,
    hash::Hash,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch},
    task::JoinSet,
    time::{Instant, Sleep, timeout_at},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Status,
    transport::{Server, server::Connected},
};

use super::{
    credentials::list,
    revocation::{self, Fingerprints},
};
use crate::{
    limits::{self, CONNECTION_WINDOW_BYTES, MAX_FRAME_BYTES, MAX_HEADER_LIST_BYTES, STREAM_WINDOW_BYTES},
    pki::{PeerIdentity, Role},
    rpc_status::RpcFault,
    trouble::{self, Kind},
};

/// Length of HTTP/2's connection preface: with it, the client has said its first word.
const PREFACE_BYTES: usize = 24;
/// Connections that wait for each handshake that may go on.
const WAITING_FOR_EACH: usize = 4;
/// Pause after a failed accept, which is mostly a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a server grants to those who connect. Zero grants nothing; it never means 'unlimited'.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncomingLimits {
    /// From the acceptance of a connection to its first HTTP/2 frame.
    pub deadline: Duration,
    /// Unfinished handshakes at a time; further connections wait.
    pub handshakes: usize,
    /// Unfinished handshakes at a time from one address; four times as many further connections wait for half of the
    /// deadline at most, and those beyond are closed.
    pub handshakes_per_address: usize,
    /// Connections at a time; further ones are closed.
    pub connections: usize,
    /// Connections at a time of one identity; further ones are closed.
    pub connections_per_peer: usize,
}

impl Default for IncomingLimits {
    fn default() -> Self {
        Self {
            deadline: limits::FIRST_FRAME,
            handshakes: limits::HANDSHAKES,
            handshakes_per_address: limits::HANDSHAKES_PER_ADDRESS,
            connections: limits::CONNECTIONS,
            connections_per_peer: limits::CONNECTIONS_PER_PEER,
        }
    }
}

/// Who is calling: in the extensions of every request that came through [`incoming`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// Where the connection comes from. For the log; it proves nothing.
    pub address: SocketAddr,
    /// Who it is, by its certificate.
    pub identity: PeerIdentity,
    /// What its certificate is known by.
    pub fingerprints: Fingerprints,
    /// What the certificates that vouch for it are known by.
    pub(super) vouching: Vec<Fingerprints>,
}

/// A `tonic` server with our windows and limits, and pings that find out when a client is gone.
pub fn server_builder() -> Server {
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_adaptive_window(Some(false))
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .http2_max_header_list_size(MAX_HEADER_LIST_BYTES)
        .max_concurrent_streams(limits::STREAMS_PER_CONNECTION)
        .max_frame_size(MAX_FRAME_BYTES)
}

/// The caller, if it has one of `roles`.
///
/// # Errors
/// `Unauthenticated` when the connection has no identity, `PermissionDenied` when it has another role.
#[allow(clippy::result_large_err)] // tonic's own error type, returned as it is.
pub fn require_role<T>(request: &Request<T>, roles: &[Role]) -> Result<PeerIdentity, Status> {
    let Some(peer) = request.extensions().get::<PeerInfo>() else {
        let fault =
            RpcFault::new(Code::Unauthenticated, "no-identity", "this call needs a client certificate");
        return Err(fault.with_hint("connect over TLS with a certificate that the CA issued").into());
    };
    // It may have been revoked since the connection was made.
    refuse_revoked(peer)?;
    if !roles.contains(&peer.identity.role) {
        tracing::warn!(peer = %peer.identity, address = %peer.address, "call refused: wrong role");
        let message =
            format!("this call needs the role {}, the caller is the {}", list(roles), peer.identity);
        let hint = format!("use a certificate that was issued with the role {}", list(roles));
        return Err(RpcFault::new(Code::PermissionDenied, "role-not-allowed", message)
            .with_hint(hint)
            .into());
    }
    Ok(peer.identity.clone())
}

/// Refuses a caller whose certificate, or one that vouches for it, is revoked by now.
#[allow(clippy::result_large_err)] // tonic's own error type, returned as it is.
pub(super) fn refuse_revoked(peer: &PeerInfo) -> Result<(), Status> {
    let PeerInfo { address, identity, fingerprints, vouching } = peer;
    if !revocation::is_revoked(fingerprints) && !vouching.iter().any(revocation::is_revoked) {
        return Ok(());
    }
    tracing::warn!(peer = %identity, %address, serial = fingerprints.serial, "call refused: certificate revoked");
    let text = format!("the certificate of the {identity} is revoked here");
    Err(RpcFault::new(Code::Unauthenticated, "certificate-revoked", text)
        .with_hint("use a certificate that was issued since, with a key of its own")
        .into())
}

/// Accepts connections, does their handshakes side by side, and gives those that succeed. The stream never
/// ends by itself and holds no errors.
///
/// Must be called within a tokio runtime.
pub fn incoming(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    limits: IncomingLimits,
) -> ReceiverStream<io::Result<TlsConnection>> {
    incoming_renewed(listener, watch::channel(config).1, limits)
}

/// [`incoming`], each connection with the newest of `configs`.
pub fn incoming_renewed(
    listener: TcpListener,
    configs: watch::Receiver<Arc<ServerConfig>>,
    limits: IncomingLimits,
) -> ReceiverStream<io::Result<TlsConnection>> {
    let (sender, receiver) = mpsc::channel(16);
    let gate = Gate {
        configs,
        connections: Arc::new(Semaphore::new(limits.connections)),
        handshakes: Arc::new(Semaphore::new(limits.handshakes)),
        addresses: Arc::default(),
        waiting: Arc::default(),
        waiting_in_all: Arc::new(Semaphore::new(limits.handshakes.saturating_mul(WAITING_FOR_EACH))),
        peers: Arc::default(),
        limits,
        sender,
    };
    tokio::spawn(gate.run(listener));
    ReceiverStream::new(receiver)
}

#[derive(Clone)]
struct Gate {
    configs: watch::Receiver<Arc<ServerConfig>>,
    connections: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    addresses: Arc<SlotTable<IpAddr>>,
    /// Connections that wait for a place in [`Self::addresses`].
    waiting: Arc<SlotTable<IpAddr>>,
    waiting_in_all: Arc<Semaphore>,
    peers: Arc<SlotTable<PeerIdentity>>,
    limits: IncomingLimits,
    sender: mpsc::Sender<io::Result<TlsConnection>>,
}

impl Gate {
    async fn run(self, listener: TcpListener) {
        // Dropped, and its tasks with it, when the stream is.
        let mut tasks = JoinSet::new();
        let mut is_deaf = false;
        loop {
            while tasks.try_join_next().is_some() {}
            let next = async {
                let permit = Arc::clone(&self.handshakes)
                    .acquire_owned()
                    .await
                    .expect("this semaphore is never closed");
                (permit, listener.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                () = self.sender.closed() => return,
                next = next => next,
            };
            match accepted {
                Ok((stream, address)) => {
                    if std::mem::take(&mut is_deaf) {
                        trouble::clear(Kind::CannotAccept, "");
                    }
                    let accepted = Instant::now();
                    let deadline = accepted + self.limits.deadline;
                    let gate = self.clone();
                    if let Some(slot) = self.addresses.claim(address.ip(), self.limits.handshakes_per_address)
                    {
                        tasks.spawn(async move {
                            gate.admit(stream, address, deadline).await;
                            drop((permit, slot));
                        });
                        continue;
                    }
                    drop(permit);
                    let Some(place) = self.waiting_place(address.ip()) else {
                        tracing::warn!(%address, "connection refused: too many unfinished handshakes");
                        continue;
                    };
                    tasks.spawn(async move {
                        let until = accepted + gate.limits.deadline / 2;
                        let turn = timeout_at(until, gate.handshake_turn(address.ip())).await;
                        drop(place);
                        match turn {
                            Ok(turn) => {
                                gate.admit(stream, address, deadline).await;
                                drop(turn);
                            }
                            Err(_) => {
                                tracing::warn!(%address, "connection refused: too many unfinished handshakes");
                            }
                        }
                    });
                }
                Err(error) => {
                    is_deaf = true;
                    let hint = crate::error::PathError::new("accept", std::path::Path::new(""), error);
                    let (error, hint) = (&hint.source, crate::error::Hint::hint(&hint));
                    let hint = hint.map(|hint| format!("; {hint}")).unwrap_or_default();
                    trouble::raise(
                        Kind::CannotAccept,
                        "",
                        format!("connections cannot be accepted: {error}{hint}"),
                    );
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// A place among those that wait for a handshake; `None` when there are too many.
    fn waiting_place(&self, address: IpAddr) -> Option<(Slot<IpAddr>, OwnedSemaphorePermit)> {
        let in_all = Arc::clone(&self.waiting_in_all).try_acquire_owned().ok()?;
        let limit = self.limits.handshakes_per_address.saturating_mul(WAITING_FOR_EACH);
        Some((self.waiting.claim(address, limit)?, in_all))
    }

    /// Waits until one more handshake from this address may begin.
    async fn handshake_turn(&self, address: IpAddr) -> (Slot<IpAddr>, OwnedSemaphorePermit) {
        loop {
            let mut freed = std::pin::pin!(self.addresses.freed.notified());
            freed.as_mut().enable();
            if let Some(slot) = self.addresses.claim(address, self.limits.handshakes_per_address) {
                let permit = Arc::clone(&self.handshakes).acquire_owned().await;
                return (slot, permit.expect("this semaphore is never closed"));
            }
            freed.await;
        }
    }

    async fn admit(&self, stream: TcpStream, address: SocketAddr, deadline: Instant) {
        match self.handshake(stream, address, deadline).await {
            // An error means that nobody serves any more.
            Ok(connection) => drop(self.sender.send(Ok(connection)).await),
            Err(Refusal::Gone) => tracing::info!(%address, "the client went away during the TLS handshake"),
            Err(refusal) => tracing::warn!(%address, reason = %refusal, "connection refused"),
        }
    }

    async fn handshake(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        deadline: Instant,
    ) -> Result<TlsConnection, Refusal> {
        stream.set_nodelay(true)?;
        let acceptor = TlsAcceptor::from(Arc::clone(&self.configs.borrow()));
        let stream = timeout_at(deadline, acceptor.accept(stream)).await.map_err(|_| Refusal::Deadline)??;
        let certificates = stream.get_ref().1.peer_certificates();
        let identity = certificates
            .and_then(<[_]>::first)
            .and_then(|certificate| PeerIdentity::from_certificate(certificate).ok())
            .ok_or(Refusal::NoIdentity)?;
        let fingerprints = certificates.and_then(<[_]>::first).and_then(|it| Fingerprints::of(it));
        let fingerprints = fingerprints.ok_or(Refusal::NoIdentity)?;
        let vouching = revocation::vouching(certificates.unwrap_or_default());
        let limit = self.limits.connections_per_peer;
        let slot = self
            .peers
            .claim(identity.clone(), limit)
            .ok_or_else(|| Refusal::PeerLimit { peer: identity.clone(), limit })?;
        let permit = Arc::clone(&self.connections)
            .try_acquire_owned()
            .map_err(|_| Refusal::Limit { limit: self.limits.connections })?;
        tracing::debug!(peer = %identity, %address, "connected");
        Ok(TlsConnection {
            stream,
            info: PeerInfo { address, identity, fingerprints, vouching },
            preface: Some(Preface {
                missing: PREFACE_BYTES,
                deadline: Box::pin(tokio::time::sleep_until(deadline)),
            }),
            _slot: slot,
            _permit: permit,
        })
    }
}

#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("it went away")]
    Gone,
    #[error("no TLS handshake within the deadline")]
    Deadline,
    #[error("TLS handshake failed: {0}")]
    Handshake(io::Error),
    #[error("its certificate does not say who it is")]
    NoIdentity,
    #[error("the {peer} has {limit} connections already")]
    PeerLimit { peer: PeerIdentity, limit: usize },
    #[error("there are {limit} connections already")]
    Limit { limit: usize },
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => Self::Gone,
            _ => Self::Handshake(error),
        }
    }
}

/// Counts what each key holds.
struct SlotTable<K: Eq + Hash> {
    held: Mutex<HashMap<K, usize>>,
    /// Wakes whoever waits for one to be given back.
    freed: Notify,
}

impl<K: Eq + Hash> Default for SlotTable<K> {
    fn default() -> Self {
        Self { held: Mutex::default(), freed: Notify::new() }
    }
}

impl<K: Eq + Hash + Clone> SlotTable<K> {
    fn claim(self: &Arc<Self>, key: K, limit: usize) -> Option<Slot<K>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.get(&key).copied().unwrap_or(0);
        if count >= limit {
            return None;
        }
        held.insert(key.clone(), count + 1);
        Some(Slot { table: Arc::clone(self), key })
    }
}

struct Slot<K: Eq + Hash> {
    table: Arc<SlotTable<K>>,
    key: K,
}

impl<K: Eq + Hash> Drop for Slot<K> {
    fn drop(&mut self) {
        let mut held = self.table.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.key);
            }
        }
        drop(held);
        self.table.freed.notify_waiters();
    }
}

/// A connection whose client proved who it is.
pub struct TlsConnection {
    stream: TlsStream<TcpStream>,
    info: PeerInfo,
    /// Until the client has said its first word.
    preface: Option<Preface>,
    _slot: Slot<PeerIdentity>,
    _permit: OwnedSemaphorePermit,
}

struct Preface {
    missing: usize,
    deadline: Pin<Box<Sleep>>,
}

impl Connected for TlsConnection {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.info.clone()
    }
}

impl AsyncRead for TlsConnection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(context, buffer);
        if let Some(preface) = &mut this.preface {
            if let Poll::Ready(Ok(())) = &polled {
                preface.missing = preface.missing.saturating_sub(buffer.filled().len() - before);
                if preface.missing == 0 {
                    this.preface = None;
                }
            } else if polled.is_pending() {
                ready!(preface.deadline.as_mut().poll(context));
                tracing::warn!(
                    peer = %this.info.identity,
                    address = %this.info.address,
                    "connection closed: no HTTP/2 preface within the deadline"
                );
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        polled
    }
}

impl AsyncWrite for TlsConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
