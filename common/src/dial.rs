//! TCP connections to a host that has several addresses: Happy Eyeballs (RFC 8305).
//!
//! A name often leads to an address that swallows packets: a broken IPv6 route beside a good IPv4 one, or one dead node of two. The
//! addresses are therefore tried side by side, each a moment after the one before it, and the first that answers wins. Every
//! connection that an agent makes over the network goes through here.
//!
//! An address can also take the connection and then say nothing: a program that hangs, a proxy whose backend is gone. Where a handshake
//! follows ([`establish`]), the next address is tried when it takes too long, and the first whose handshake succeeds wins.

use std::{
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
    time::Duration,
};

use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::{
    net::TcpStream,
    sync::{Semaphore, oneshot},
    time::{Instant, sleep, sleep_until},
};

/// Pause before the next address is tried beside the ones before it (RFC 8305, 5: "Connection Attempt Delay").
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// Pause before the next address is tried beside one whose handshake does not end, at most.
const HANDSHAKE_DELAY: Duration = Duration::from_secs(2);
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 32;

/// Lookups that are under way at a time. A name service that does not answer holds each of them for half a minute and more.
const MAX_LOOKUPS: usize = 16;
static LOOKUPS: Semaphore = Semaphore::const_new(MAX_LOOKUPS);

/// Why no address could be reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The name service does not know the host.
    #[error("cannot find the address of {host}: {source}")]
    Resolve {
        /// The name.
        host: String,
        /// The name service's answer.
        source: io::Error,
    },
    /// Every address refused.
    #[error("{address}: {source}{}", others(*tried))]
    Unreachable {
        /// The address that was tried last.
        address: SocketAddr,
        /// Its answer.
        source: io::Error,
        /// The number of addresses that were tried.
        tried: usize,
    },
}

fn others(tried: usize) -> String {
    if tried > 1 { format!(" (the last of {tried} addresses)") } else { String::new() }
}

/// `HOST:PORT` as it stands in a URL: an IPv6 address in brackets.
pub fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// The addresses of `host`, in the order in which they are tried: the name service's order, with the two families in turn.
///
/// The caller limits the time. A lookup that hangs goes on in a thread of its own: neither other work nor the end of the process waits for
/// it.
///
/// # Errors
/// When there is none.
pub async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, DialError> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let fault = |source| DialError::Resolve { host: host.to_owned(), source };
    let permit = LOOKUPS.acquire().await.map_err(|error| fault(io::Error::other(error)))?;
    let (answer, found) = oneshot::channel();
    let name = host.to_owned();
    let lookup = move || {
        let found = (name.as_str(), port).to_socket_addrs().map(Vec::from_iter);
        drop(permit);
        // Nobody waits for it any more when its time was up.
        answer.send(found).ok();
    };
    std::thread::Builder::new().name("lookup".to_owned()).spawn(lookup).map_err(fault)?;
    let found = found.await.map_err(|error| fault(io::Error::other(error)))?;
    let addresses = in_turn(found.map_err(fault)?);
    if addresses.is_empty() {
        return Err(fault(io::Error::new(io::ErrorKind::NotFound, "it has no address")));
    }
    Ok(addresses)
}

/// The first family keeps its place, the other one comes between (RFC 8305, 4). Duplicates are dropped.
fn in_turn(found: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let mut unique: Vec<SocketAddr> = Vec::new();
    for address in found {
        if !unique.contains(&address) {
            unique.push(address);
        }
    }
    let first_is_v6 = unique.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) =
        unique.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut ordered = Vec::new();
    loop {
        let pair = [first.next(), second.next()];
        if pair.iter().all(Option::is_none) {
            break;
        }
        ordered.extend(pair.into_iter().flatten());
    }
    ordered.truncate(MAX_ADDRESSES);
    ordered
}

/// Connects to one of `addresses`: the first that answers. The caller limits the time.
///
/// # Errors
/// When each of them refuses.
pub async fn connect_any(addresses: &[SocketAddr]) -> Result<TcpStream, DialError> {
    let mut waiting = addresses.iter().copied();
    let mut attempts = FuturesUnordered::new();
    let attempt = |address: SocketAddr| async move { (address, TcpStream::connect(address).await) };
    let Some(first) = waiting.next() else {
        let source = io::Error::new(io::ErrorKind::NotFound, "it has no address");
        return Err(DialError::Resolve { host: String::new(), source });
    };
    attempts.push(attempt(first));
    let mut refused = None;
    loop {
        let next = waiting.len() > 0;
        tokio::select! {
            ended = attempts.next() => match ended {
                Some((_, Ok(stream))) => {
                    stream.set_nodelay(true).ok();
                    return Ok(stream);
                }
                Some((address, Err(source))) => {
                    refused = Some((address, source));
                    // A refusal frees the next one at once.
                    attempts.extend(waiting.next().map(attempt));
                }
                None => {
                    let (address, source) = refused.unwrap_or((first, io::ErrorKind::NotConnected.into()));
                    return Err(DialError::Unreachable { address, source, tried: addresses.len() });
                }
            },
            () = sleep(ATTEMPT_DELAY), if next => attempts.extend(waiting.next().map(attempt)),
        }
    }
}

/// Why no address could be used.
#[derive(Debug)]
pub enum EstablishError<E> {
    /// No address could be reached.
    Dial(DialError),
    /// The handshake failed at one address at least; this is the first failure.
    Handshake(E),
    /// The time was over before any address had answered in full.
    Late,
}

/// Connects to one of `addresses` and shakes hands: the first whose handshake succeeds, by `deadline`.
///
/// # Errors
/// When there is none.
pub async fn establish<T, E, F>(
    addresses: &[SocketAddr],
    deadline: Instant,
    handshake: impl Fn(TcpStream) -> F,
) -> Result<T, EstablishError<E>>
where
    F: Future<Output = Result<T, E>>,
{
    let handshake = &handshake;
    let attempt = |address: SocketAddr| async move {
        let connected: io::Result<TcpStream> = TcpStream::connect(address).await;
        (address, connected)
    };
    let pause = HANDSHAKE_DELAY.min(deadline.saturating_duration_since(Instant::now()) / 4);
    let mut waiting = addresses.iter().copied();
    // The first one goes at once.
    let mut attempts: FuturesUnordered<_> = waiting.next().map(attempt).into_iter().collect();
    let mut handshakes = FuturesUnordered::<F>::new();
    let (mut unreachable, mut failed) = (None, None);
    let mut next = Instant::now() + ATTEMPT_DELAY;
    let expiry = sleep_until(deadline);
    tokio::pin!(expiry);
    loop {
        if waiting.len() == 0 && attempts.is_empty() && handshakes.is_empty() {
            let nowhere = || DialError::Resolve {
                host: String::new(),
                source: io::Error::new(io::ErrorKind::NotFound, "it has no address"),
            };
            return Err(match (failed, unreachable) {
                (Some(failed), _) => EstablishError::Handshake(failed),
                (None, Some((address, source))) => {
                    EstablishError::Dial(DialError::Unreachable { address, source, tried: addresses.len() })
                }
                (None, None) => EstablishError::Dial(nowhere()),
            });
        }
        tokio::select! {
            biased;
            Some(ended) = handshakes.next(), if !handshakes.is_empty() => match ended {
                Ok(done) => return Ok(done),
                Err(error) => {
                    failed.get_or_insert(error);
                    next = Instant::now();
                }
            },
            Some((address, ended)) = attempts.next(), if !attempts.is_empty() => match ended {
                Ok(stream) => {
                    stream.set_nodelay(true).ok();
                    handshakes.push(handshake(stream));
                    next = Instant::now() + pause;
                }
                Err(source) => {
                    unreachable = Some((address, source));
                    // A refusal frees the next one at once.
                    next = Instant::now();
                }
            },
            () = sleep_until(next), if waiting.len() > 0 => {
                attempts.extend(waiting.next().map(attempt));
                next = Instant::now() + ATTEMPT_DELAY;
            }
            () = &mut expiry => return Err(failed.map_or(EstablishError::Late, EstablishError::Handshake)),
        }
    }
}

/// Finds `host` and connects to one of its addresses. The caller limits the time.
///
/// # Errors
/// When the name is not known, or each address refuses.
pub async fn connect(host: &str, port: u16) -> Result<TcpStream, DialError> {
    connect_any(&resolve(host, port).await?).await
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn an_ipv6_address_stands_in_brackets_before_a_port() {
        for (host, expected) in [
            ("::1", "[::1]:1"),
            ("fe80::1", "[fe80::1]:1"),
            ("127.0.0.1", "127.0.0.1:1"),
            ("a.example", "a.example:1"),
        ] {
            assert_eq!(authority(host, 1), expected);
        }
    }

    #[test]
    fn families_take_turns_and_duplicates_are_dropped() {
        let found = ["[::1]:1", "[::1]:1", "[::2]:1", "1.1.1.1:1", "1.1.1.2:1", "1.1.1.3:1"];
        let ordered = in_turn(found.into_iter().map(address).collect());
        let expected = ["[::1]:1", "1.1.1.1:1", "[::2]:1", "1.1.1.2:1", "1.1.1.3:1"];
        assert_eq!(ordered, expected.into_iter().map(address).collect::<Vec<_>>());
    }

    /// A listener whose queue is full: the kernel drops what else knocks there, as a dead node does.
    async fn hole() -> (SocketAddr, Vec<tokio::net::TcpStream>, TcpListener) {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(address("127.0.0.1:0")).expect("bound");
        let listener = socket.listen(1).expect("listening");
        let local = listener.local_addr().expect("an address");
        let mut kept = Vec::new();
        // Until the queue is full, and a connection hangs.
        while let Ok(Ok(stream)) =
            tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(local)).await
        {
            kept.push(stream);
        }
        (local, kept, listener)
    }

    #[tokio::test]
    async fn an_address_that_swallows_packets_does_not_hold_up_the_next() {
        let (hole, _kept, _listener) = hole().await;
        let good = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let good_address = good.local_addr().expect("an address");
        let refused = {
            let closed = TcpListener::bind("127.0.0.1:0").await.expect("bound");
            closed.local_addr().expect("an address")
        };
        let stream = connect_any(&[hole, refused, good_address]).await.expect("the third answers");
        assert_eq!(stream.peer_addr().expect("a peer"), good_address);
    }

    /// It takes connections and says nothing, whatever it is sent.
    async fn mute() -> (SocketAddr, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        (listener.local_addr().expect("an address"), listener)
    }

    /// It greets with a byte.
    async fn greeter(byte: u8) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                drop(tokio::io::AsyncWriteExt::write_all(&mut stream, &[byte]).await);
            }
        });
        address
    }

    async fn greeted(mut stream: TcpStream) -> Result<SocketAddr, String> {
        let address = stream.peer_addr().expect("a peer");
        match tokio::io::AsyncReadExt::read_u8(&mut stream).await {
            Ok(b'+') => Ok(address),
            Ok(_) => Err(format!("{address} is somebody else")),
            Err(error) => Err(error.to_string()),
        }
    }

    #[tokio::test]
    async fn an_address_that_says_nothing_does_not_hold_up_the_next() {
        let ((mute, _kept), good) = (mute().await, greeter(b'+').await);
        let deadline = Instant::now() + Duration::from_secs(60);
        let found = establish(&[mute, good], deadline, greeted).await.expect("the second answers");
        assert_eq!(found, good);
    }

    #[tokio::test]
    async fn a_handshake_that_fails_at_one_address_leaves_the_others() {
        let ((hole, _held, _full), other, good) = (hole().await, greeter(b'-').await, greeter(b'+').await);
        let deadline = Instant::now() + Duration::from_secs(60);
        let found = establish(&[hole, other, good], deadline, greeted).await.expect("the third answers");
        assert_eq!(found, good);
        let ended = establish(&[other], deadline, greeted).await.expect_err("it is somebody else");
        assert!(matches!(ended, EstablishError::Handshake(text) if text.contains("somebody else")));
    }

    /// What is known is told, rather than that the time was over.
    #[tokio::test]
    async fn when_the_time_is_over_the_first_failure_is_told() {
        let ((mute, _kept), other) = (mute().await, greeter(b'-').await);
        let soon = || Instant::now() + Duration::from_millis(400);
        let ended = establish(&[other, mute], soon(), greeted).await.expect_err("nobody answers");
        assert!(matches!(ended, EstablishError::Handshake(text) if text.contains("somebody else")));
        let ended = establish(&[mute], soon(), greeted).await.expect_err("nobody answers");
        assert!(matches!(ended, EstablishError::Late));
        let closed = TcpListener::bind("127.0.0.1:0").await.expect("bound").local_addr().expect("an address");
        let ended = establish(&[closed], soon(), greeted).await.expect_err("nobody listens");
        assert!(matches!(ended, EstablishError::Dial(DialError::Unreachable { .. })));
        let ended = establish(&[], soon(), greeted).await.expect_err("nobody is there");
        assert!(matches!(ended, EstablishError::Dial(DialError::Resolve { .. })));
    }

    #[tokio::test]
    async fn when_all_refuse_the_error_says_how_many() {
        let closed = TcpListener::bind("127.0.0.1:0").await.expect("bound").local_addr().expect("an address");
        let text = connect_any(&[closed, closed]).await.expect_err("nobody listens").to_string();
        assert!(text.contains("Connection refused") && text.contains("the last of 2 addresses"), "{text}");
        assert!(resolve("no.such.host.invalid", 1).await.is_err());
    }
}
