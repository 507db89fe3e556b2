//! One connection for all that a process asks of one server at a time.
//!
//! A hundred runs that are due at one minute would make a hundred connections and handshakes, each with windows of its own. Here they share
//! one: whoever asks while a connection stands, or is being made, gets that one. It is closed when the last of them has let go of it, and made
//! anew for whoever comes after the certificates on disk or the list of revoked ones have changed, or when it is old: the server's own certificate
//! may have been renewed.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::{Buf as _, Bytes};
use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared, WeakShared},
};
use hyper::body::{Frame, SizeHint};
use tonic::{Status, body::Body, transport::Channel};

use super::{
    client::{ConnectError, ConnectOptions, WireCounter, connect},
    credentials::TlsFiles,
    renewal, revocation,
};
use crate::pki::Role;

/// Makes connections to one server, and lets those who want one at the same time share it.
#[derive(Debug)]
pub struct Connections {
    url: String,
    expected: Role,
    files: TlsFiles,
    own: Vec<Role>,
    options: ConnectOptions,
    newest: Mutex<Newest>,
}

/// Nobody new comes to a connection that is older.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// What a connection was made with: the content of the certificates' files, and the list of revoked ones.
type MadeWith = blake3::Hash;
type Connecting = Shared<BoxFuture<'static, Result<Arc<Connection>, Arc<ConnectError>>>>;
type WeakConnecting = WeakShared<BoxFuture<'static, Result<Arc<Connection>, Arc<ConnectError>>>>;

#[derive(Debug, Default)]
struct Newest {
    connecting: Option<(MadeWith, WeakConnecting)>,
    standing: Option<(MadeWith, Instant, Weak<Connection>)>,
}

/// A connection, and the bytes of all calls over it.
#[derive(Debug)]
struct Connection {
    channel: Channel,
    socket: Arc<WireCounter>,
    calls: Traffic,
}

impl Connections {
    /// To the agent of role `expected` at `url`, as one of the roles `own`.
    pub fn new(url: &str, expected: Role, files: &TlsFiles, own: &[Role], options: &ConnectOptions) -> Self {
        let (url, files, own, options) = (url.to_owned(), files.clone(), own.to_vec(), options.clone());
        Self { url, expected, files, own, options, newest: Mutex::default() }
    }

    /// The connection that stands or is being made, else a new one. Whoever waits for one that fails gets its error.
    ///
    /// # Errors
    /// As [`connect`].
    pub async fn get(&self) -> Result<MeteredChannel, Arc<ConnectError>> {
        let made_with = self.made_with();
        let connecting = {
            let mut newest = self.lock();
            let is_good =
                |(with, made, _): &&(MadeWith, Instant, _)| *with == made_with && made.elapsed() < MAX_AGE;
            let standing = newest.standing.as_ref().filter(is_good);
            if let Some(connection) = standing.and_then(|(.., connection)| connection.upgrade()) {
                return Ok(MeteredChannel::new(connection, false));
            }
            let connecting = newest.connecting.as_ref().filter(|(with, _)| *with == made_with);
            let connecting = connecting.and_then(|(_, connecting)| connecting.upgrade());
            // One that has failed by now is of the past.
            match connecting.filter(|it| it.peek().is_none_or(Result::is_ok)) {
                Some(connecting) => connecting,
                None => {
                    let connecting = self.connecting();
                    newest.connecting = connecting.downgrade().map(|connecting| (made_with, connecting));
                    connecting
                }
            }
        };
        let connection = connecting.await?;
        let is_first = {
            let mut newest = self.lock();
            let weak = Arc::downgrade(&connection);
            let is_first = newest.standing.as_ref().is_none_or(|(.., known)| !known.ptr_eq(&weak));
            if is_first {
                newest.standing = Some((made_with, Instant::now(), weak));
            }
            is_first
        };
        Ok(MeteredChannel::new(connection, is_first))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Newest> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connecting(&self) -> Connecting {
        let (url, expected, files) = (self.url.clone(), self.expected, self.files.clone());
        let (own, options) = (self.own.clone(), self.options.clone());
        let connecting = async move {
            match connect(&url, expected, &files, &own, &options).await {
                Ok((channel, socket)) => {
                    Ok(Arc::new(Connection { channel, socket, calls: Traffic::default() }))
                }
                Err(error) => Err(Arc::new(error)),
            }
        };
        connecting.boxed().shared()
    }

    /// A file that cannot be read is told when it is used.
    fn made_with(&self) -> MadeWith {
        let mut hasher = renewal::content_of(&self.files);
        hasher.update(&revocation::digest());
        hasher.finalize()
    }
}

/// Bytes of messages, in both directions.
#[derive(Debug, Default)]
struct Traffic {
    read: AtomicU64,
    written: AtomicU64,
}

/// A share of a connection: a channel that counts what its own calls carry. Clones count together, and the connection stands for as long as any
/// of them does.
#[derive(Debug, Clone)]
pub struct MeteredChannel {
    channel: Channel,
    meter: Meter,
}

/// The count of a [`MeteredChannel`].
#[derive(Debug, Clone)]
pub struct Meter(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    connection: Arc<Connection>,
    own: Traffic,
    /// Bytes on the socket, and of all calls, when this share began.
    socket_before: (u64, u64),
    calls_before: (u64, u64),
}

impl MeteredChannel {
    /// Whoever comes first counts the handshakes as its own.
    fn new(connection: Arc<Connection>, is_first: bool) -> Self {
        let (socket, calls) = (&connection.socket, &connection.calls);
        let socket_before = if is_first { (0, 0) } else { (socket.bytes_in(), socket.bytes_out()) };
        let calls_before = (calls.read.load(Ordering::Relaxed), calls.written.load(Ordering::Relaxed));
        let channel = connection.channel.clone();
        let counts = Counts { connection, own: Traffic::default(), socket_before, calls_before };
        Self { channel, meter: Meter(Arc::new(counts)) }
    }

    /// Its count.
    pub fn meter(&self) -> Meter {
        self.meter.clone()
    }
}

impl Meter {
    /// Bytes that came in over the socket, under TLS, for the calls that are counted here. Of what several share, each is counted its part.
    pub fn bytes_in(&self) -> u64 {
        let Counts { connection, own, socket_before, calls_before } = &*self.0;
        let socket = connection.socket.bytes_in().saturating_sub(socket_before.0);
        share(socket, &own.read, &connection.calls.read, calls_before.0)
    }

    /// The same of bytes that went out.
    pub fn bytes_out(&self) -> u64 {
        let Counts { connection, own, socket_before, calls_before } = &*self.0;
        let socket = connection.socket.bytes_out().saturating_sub(socket_before.1);
        share(socket, &own.written, &connection.calls.written, calls_before.1)
    }

    fn count_in(&self, bytes: usize) {
        self.0.own.read.fetch_add(bytes as u64, Ordering::Relaxed);
        self.0.connection.calls.read.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn count_out(&self, bytes: usize) {
        self.0.own.written.fetch_add(bytes as u64, Ordering::Relaxed);
        self.0.connection.calls.written.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// The part of `socket` bytes that belongs to `own` of `all` bytes of messages.
fn share(socket: u64, own: &AtomicU64, all: &AtomicU64, all_before: u64) -> u64 {
    let own = own.load(Ordering::Relaxed);
    let all = all.load(Ordering::Relaxed).saturating_sub(all_before);
    if own >= all {
        return socket;
    }
    let part = u128::from(socket) * u128::from(own) / u128::from(all);
    u64::try_from(part).unwrap_or(u64::MAX)
}

impl tower::Service<http::Request<Body>> for MeteredChannel {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        tower::Service::<http::Request<Body>>::poll_ready(&mut self.channel, context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (out, back) = (self.meter(), self.meter());
        let request = request.map(|inner| Body::new(Metered { inner, meter: out, count: Meter::count_out }));
        let answer = tower::Service::call(&mut self.channel, request);
        Box::pin(async move {
            let answer = answer.await?;
            Ok(answer.map(|inner| Body::new(Metered { inner, meter: back, count: Meter::count_in })))
        })
    }
}

/// A body whose bytes are counted.
struct Metered {
    inner: Body,
    meter: Meter,
    count: fn(&Meter, usize),
}

impl hyper::body::Body for Metered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = hyper::body::Body::poll_frame(Pin::new(&mut self.inner), context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            (self.count)(&self.meter, data.remaining());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        hyper::body::Body::is_end_stream(&self.inner)
    }

    fn size_hint(&self) -> SizeHint {
        hyper::body::Body::size_hint(&self.inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_socket_carries_is_shared_by_what_each_has_sent() {
        let (own, all) = (AtomicU64::new(300), AtomicU64::new(1_400));
        // Since it came, 400 bytes of messages went out, 300 of them its own.
        assert_eq!(share(440, &own, &all, 1_000), 330);
        // Alone on it, it is counted all of it, with what is no message.
        assert_eq!(share(440, &own, &all, 1_100), 440);
        assert_eq!(share(440, &AtomicU64::new(0), &AtomicU64::new(0), 0), 440);
    }
}
