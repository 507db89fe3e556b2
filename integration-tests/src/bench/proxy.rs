//! A link with a delay: a proxy that holds every block of bytes for as long as it would travel.
//!
//! It does not limit the bandwidth, and no block overtakes another.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    sync::mpsc,
    time::Instant,
};

const BLOCK_BYTES: usize = 64 * 1024;
/// Blocks under way in one direction. At 40 ms this lets 6 GB/s pass: more than loopback does, so it never limits.
const BLOCKS_UNDER_WAY: usize = 4096;

/// A proxy in threads of its own, which end with it.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    _runtime: Runtime,
}

impl Proxy {
    /// Forwards connections to a port on this host, with a delay each way.
    ///
    /// # Errors
    ///
    /// When no port is free.
    pub fn start(target: u16, delay: Duration) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .context("the proxy's threads")?;
        let listener =
            runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).context("a port for the proxy")?;
        let port = listener.local_addr().context("the proxy's port")?.port();
        drop(runtime.spawn(serve(listener, SocketAddr::from((Ipv4Addr::LOCALHOST, target)), delay)));
        Ok(Self { port, _runtime: runtime })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }
}

async fn serve(listener: TcpListener, target: SocketAddr, delay: Duration) {
    while let Ok((client, _)) = listener.accept().await {
        drop(tokio::spawn(async move {
            // A target that is not there looks like a connection that ends: that is the client's to report.
            drop(forward(client, target, delay).await);
        }));
    }
}

async fn forward(client: TcpStream, target: SocketAddr, delay: Duration) -> std::io::Result<()> {
    let server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    // The client could connect at once. Over the real link that costs a round trip, and it sends nothing before.
    let out = relay(from_client, to_server, delay, Instant::now() + 3 * delay);
    let back = relay(from_server, to_client, delay, Instant::now());
    let (out, back) = tokio::join!(out, back);
    out.and(back)
}

/// Moves bytes from one end to the other; each arrives `delay` after it was sent, and none before `earliest`.
async fn relay(
    mut from: impl AsyncRead + Unpin + Send + 'static,
    mut to: impl AsyncWrite + Unpin,
    delay: Duration,
    earliest: Instant,
) -> std::io::Result<()> {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(BLOCKS_UNDER_WAY);
    let reader = tokio::spawn(async move {
        let mut buffer = vec![0; BLOCK_BYTES];
        loop {
            // A reset arrives as an end: the writer closes its side either way.
            let count = from.read(&mut buffer).await.unwrap_or(0);
            let block = (Instant::now() + delay, buffer[..count].to_vec());
            if sender.send(block).await.is_err() || count == 0 {
                break;
            }
        }
    });
    let result = async {
        while let Some((due, block)) = receiver.recv().await {
            if !delay.is_zero() {
                tokio::time::sleep_until(due.max(earliest)).await;
            }
            if block.is_empty() {
                return to.shutdown().await;
            }
            to.write_all(&block).await?;
        }
        Ok(())
    }
    .await;
    reader.abort();
    result
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    /// What goes through comes out unchanged and in order, at either delay, and the end of one direction passes too.
    #[test]
    fn bytes_come_back_unchanged_and_never_before_the_round_trip() {
        for delay in [Duration::ZERO, Duration::from_millis(20)] {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
            let target = listener.local_addr().expect("bound").port();
            let echo = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().expect("a connection");
                let mut all = Vec::new();
                stream.read_to_end(&mut all).expect("read");
                stream.write_all(&all).expect("write");
            });
            let proxy = Proxy::start(target, delay).expect("a proxy");
            let sent: Vec<u8> = (0..1_000_003_u32).map(|n| (n * 31 % 251) as u8).collect();
            let start = std::time::Instant::now();
            let mut stream = std::net::TcpStream::connect(("127.0.0.1", proxy.port())).expect("connect");
            stream.write_all(&sent).expect("write");
            stream.shutdown(std::net::Shutdown::Write).expect("shutdown");
            let mut back = Vec::new();
            stream.read_to_end(&mut back).expect("read");
            assert!(start.elapsed() >= 2 * delay, "{:?} is less than a round trip", start.elapsed());
            assert!(back == sent, "{} bytes came back of {}", back.len(), sent.len());
            echo.join().expect("no panic");
        }
    }
}
