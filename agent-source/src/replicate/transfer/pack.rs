//! Packs: the wanted chunks of a batch in one compressed message.

use std::{
    sync::{
        Arc, PoisonError,
        atomic::{AtomicI32, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use assay_proto::v1::{Pack, TransferRequest, transfer_request::Kind};
use bytes::Bytes;
use tokio::sync::{Mutex, Semaphore, mpsc};

use super::{
    Compression, TransferOptions, Wanted,
    compress::{Benches, Method, Packed},
    request,
};
use crate::replicate::{Counters, batch::Batch, chunk::Changed};

/// Slower links and their levels, in bytes a second of compressed content: below 100 Mbit/s a level 5 keeps up on one
/// core, below 25 Mbit/s a level 9. Beyond, the live server's processors would be kept busy for very little.
const SLOW_LINKS: [(f64, i32); 2] = [(3e6, 9), (12e6, 5)];
/// A link's speed is known when packs have had to wait for it for this long.
const LINK_WINDOW: Duration = Duration::from_secs(1);

/// Packs that wait for the link while others are made.
const WAITING_PACKS: usize = 2;

/// After this many packs in a row that were not worth compressing, only every eighth is tried.
const HOPELESS: u32 = 4;

/// Makes packs, a few at a time.
pub(super) struct Packer {
    compression: Compression,
    threads: Semaphore,
    /// Packs that are made or wait for the link: they are in no budget.
    unsent: Semaphore,
    /// How a pack is compressed while the link is faster than the compressor.
    usual: Method,
    /// The level for a slow link; 0 while the link is faster than the compressor.
    level: AtomicI32,
    /// Since when packs have had to wait for the link, and the bytes that have gone out since.
    waiting: std::sync::Mutex<Option<(Instant, u64)>>,
    /// Packs in a row that did not get smaller.
    in_vain: AtomicU32,
    benches: Arc<Benches>,
    pace: Option<Pace>,
    counters: Arc<Counters>,
}

/// Why a batch could not be packed.
#[derive(Debug)]
pub(super) enum Unpacked {
    /// The runtime is being shut down.
    Stopped,
    /// A file has changed since a piece of it was let go.
    Changed(Changed),
}

impl Packer {
    pub(super) fn new(options: &TransferOptions, usual: Method, counters: Arc<Counters>) -> Self {
        Self {
            compression: options.compression,
            threads: Semaphore::new(options.threads.max(1)),
            unsent: Semaphore::new(options.threads.max(1) + WAITING_PACKS),
            usual,
            level: AtomicI32::new(0),
            waiting: std::sync::Mutex::default(),
            in_vain: AtomicU32::new(0),
            benches: Arc::default(),
            pace: options.limit_bytes_per_second.map(Pace::new),
            counters,
        }
    }

    /// Makes a pack and sends it, when there are not many already that wait for the link.
    pub(super) async fn pack_and_send(
        &self,
        number: u64,
        (batch, wanted): (Arc<Batch>, Wanted),
        requests: &mpsc::Sender<TransferRequest>,
    ) -> Result<(), Unpacked> {
        let _unsent = self.unsent.acquire().await.map_err(|_| Unpacked::Stopped)?;
        let pack = self.pack(number, batch, wanted).await?;
        self.send(pack, requests).await;
        Ok(())
    }

    /// Puts the wanted chunks of a batch into one message. They share one compression context.
    async fn pack(&self, number: u64, batch: Arc<Batch>, wanted: Wanted) -> Result<Pack, Unpacked> {
        let _thread = self.threads.acquire().await.map_err(|_| Unpacked::Stopped)?;
        let method = self.next_method();
        let chunks = wanted.0.len() as u64;
        let benches = Arc::clone(&self.benches);
        let work = move || {
            let chosen: Vec<Bytes> =
                wanted.0.iter().map(|index| batch.chunks[*index].content()).collect::<Result<_, _>>()?;
            Ok(benches.with(|bench| bench.pack(chosen.iter().map(|chunk| &chunk[..]), method)))
        };
        let packed = tokio::task::spawn_blocking(work).await.map_err(|_| Unpacked::Stopped)?;
        let packed = packed.map_err(Unpacked::Changed)?;
        self.counters.chunks_sent.add(chunks);
        self.counters.bytes_sent.add(packed.raw_bytes);
        if method.is_some() {
            match packed.compressed {
                true => self.in_vain.store(0, Ordering::Relaxed),
                false => drop(self.in_vain.fetch_add(1, Ordering::Relaxed)),
            }
        }
        let Packed { raw_bytes, compressed, data } = packed;
        Ok(Pack { batch: number, raw_bytes, zstd: compressed, data: Bytes::from(data) })
    }

    /// `None`: this pack is not compressed.
    fn next_method(&self) -> Option<Method> {
        let in_vain = self.in_vain.load(Ordering::Relaxed);
        if in_vain >= HOPELESS && !in_vain.is_multiple_of(8) {
            self.in_vain.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        match self.compression {
            Compression::Off => None,
            Compression::Level(level) => Some(Method::Level(level)),
            Compression::Auto => Some(match self.level.load(Ordering::Relaxed) {
                0 => self.usual,
                level => Method::Level(level),
            }),
        }
    }

    /// Sends a pack. How long the connection keeps it waiting tells whether compressing more would pay.
    async fn send(&self, pack: Pack, requests: &mpsc::Sender<TransferRequest>) {
        if let Some(pace) = &self.pace {
            pace.wait(pack.data.len() as u64).await;
        }
        let bytes = pack.data.len() as u64;
        let message = request(Kind::Pack(pack));
        // The stream's own error tells more than a closed queue does.
        match requests.try_reserve() {
            Ok(permit) => {
                permit.send(message);
                self.follow_link(None);
            }
            Err(_) => {
                drop(requests.send(message).await);
                self.follow_link(Some(bytes));
            }
        }
    }

    /// Notes that a pack of so many bytes had to wait for the link, or that one had not.
    fn follow_link(&self, waited: Option<u64>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(bytes) = waited else {
            *waiting = None;
            return;
        };
        let (since, sent) = waiting.get_or_insert_with(|| (Instant::now(), 0));
        *sent += bytes;
        let seconds = since.elapsed();
        if seconds >= LINK_WINDOW {
            let level = level_for(*sent as f64 / seconds.as_secs_f64());
            self.level.store(level, Ordering::Relaxed);
            *waiting = None;
        }
    }
}

/// The level for a link that takes so many bytes a second; 0 for a fast one.
fn level_for(bytes_per_second: f64) -> i32 {
    let slow = SLOW_LINKS.iter().find(|(limit, _)| bytes_per_second < *limit);
    slow.map_or(0, |(_, level)| *level)
}

/// Lets so many bytes out in a second.
struct Pace {
    bytes_per_second: u64,
    /// When the next bytes may go.
    next: Mutex<Instant>,
}

impl Pace {
    fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), next: Mutex::new(Instant::now()) }
    }

    async fn wait(&self, bytes: u64) {
        let mut next = self.next.lock().await;
        let until = *next;
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        // Time in which nothing was sent is not saved up.
        *next = until.max(Instant::now()) + takes;
        drop(next);
        tokio::time::sleep_until(until.into()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replicate::{batch::OnTheWay, chunk::Chunk};

    fn packer(compression: Compression) -> Packer {
        let (retry, patience) = (Duration::ZERO, Duration::MAX);
        let options =
            TransferOptions { compression, threads: 1, limit_bytes_per_second: None, retry, patience };
        Packer::new(&options, Method::Light, Arc::default())
    }

    fn batch(bytes: Vec<u8>) -> Arc<Batch> {
        let (content_bytes, chunks) = (bytes.len(), vec![Chunk::Held(bytes.into())]);
        Arc::new(Batch {
            parts: Vec::new(),
            chunks,
            content_bytes,
            budget: Vec::new(),
            on_the_way: OnTheWay::default(),
        })
    }

    #[tokio::test]
    async fn what_does_not_compress_is_not_compressed_and_soon_not_tried() {
        let packer = packer(Compression::Auto);
        let mut noise = vec![0; 100_000];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        for _ in 0..HOPELESS {
            let pack = packer.pack(1, batch(noise.clone()), Wanted(vec![0])).await.expect("packed");
            assert!(!pack.zstd && pack.data == noise);
        }
        let mut tried = 0;
        for _ in 0..16 {
            let before = packer.in_vain.load(Ordering::Relaxed);
            packer.pack(1, batch(noise.clone()), Wanted(vec![0])).await.expect("packed");
            tried += u32::from(before.is_multiple_of(8));
            assert_eq!(packer.in_vain.load(Ordering::Relaxed), before + 1);
        }
        assert_eq!(tried, 2);
        let text = packer.pack(2, batch(vec![b'a'; 100_000]), Wanted(vec![0])).await.expect("packed");
        assert!(text.raw_bytes == 100_000);
    }

    #[tokio::test]
    async fn the_level_follows_the_link() {
        assert_eq!([1e6, 5e6, 50e6].map(level_for), [9, 5, 0]);
        let auto = packer(Compression::Auto);
        assert_eq!(auto.next_method(), Some(Method::Light));
        *auto.waiting.lock().expect("no panic") = Some((Instant::now() - 2 * LINK_WINDOW, 0));
        let (requests, mut queue) = mpsc::channel(1);
        let pack = || Pack { data: Bytes::from_static(b"some"), ..Pack::default() };
        requests.send(TransferRequest::default()).await.expect("the queue is open");
        tokio::join!(auto.send(pack(), &requests), async {
            queue.recv().await.expect("the first");
        });
        assert_eq!(auto.next_method(), Some(Method::Level(9)), "four bytes in two seconds");
        queue.recv().await.expect("the second");
        auto.send(pack(), &requests).await;
        assert!(auto.waiting.lock().expect("no panic").is_none(), "there was room");
        assert_eq!(packer(Compression::Off).next_method(), None);
        assert_eq!(packer(Compression::Level(7)).next_method(), Some(Method::Level(7)));
    }

    /// However much is wanted at once: a pack is made when there are not many already that have not gone.
    #[tokio::test(start_paused = true)]
    async fn few_packs_wait_for_the_link() {
        let packer = packer(Compression::Off);
        let (requests, mut queue) = mpsc::channel(1);
        let send = |number| packer.pack_and_send(number, (batch(vec![1; 100]), Wanted(vec![0])), &requests);
        let others = packer.unsent.acquire_many(1 + WAITING_PACKS as u32).await.expect("it is open");
        let waits = tokio::time::timeout(Duration::from_secs(60), send(1)).await;
        assert!(waits.is_err() && packer.counters.chunks_sent.get() == 0);
        drop(others);
        send(1).await.expect("sent");
        assert!(queue.recv().await.is_some());
        assert_eq!(packer.unsent.available_permits(), 1 + WAITING_PACKS, "it has gone");
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_is_kept() {
        let pace = Pace::new(1000);
        let start = tokio::time::Instant::now();
        for _ in 0..5 {
            pace.wait(500).await;
        }
        // The first goes at once, and the clock of the test stands still but for waiting.
        assert!(start.elapsed() >= Duration::from_millis(1900), "{:?}", start.elapsed());
    }
}
