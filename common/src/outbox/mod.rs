//! What is sent to somebody who may be slow, or not there: notices and traces.
//!
//! Sending never holds anything up. Each way out has a bounded queue and one task of its own: a peer that hangs keeps neither a
//! run nor the other ways waiting, has a time limit, and is tried a bounded number of times. What does not fit in the queue is
//! dropped, counted and logged.

mod peer;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::mpsc;

use crate::error::without_codes;

pub use peer::{Peer, system_roots};

/// Messages that wait on one way out: a day of hourly trouble of a few repositories.
pub const QUEUE: usize = 64;
/// Pauses before a message is tried again: what restarts is back in seconds, what is broken is broken.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];

/// Why a message did not arrive.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct DeliveryError {
    /// What went wrong.
    pub message: String,
    /// True when trying again may help.
    pub transient: bool,
    /// True when some of those who were to hear it have.
    pub partly: bool,
}

impl DeliveryError {
    /// It may arrive when it is tried again.
    pub fn transient(message: impl Into<String>) -> Self {
        Self { message: without_codes(&message.into()), transient: true, partly: false }
    }

    /// It never will.
    pub fn lasting(message: impl Into<String>) -> Self {
        Self { message: without_codes(&message.into()), transient: false, partly: false }
    }
}

/// Something that is sent.
pub trait Message: Send + Sync + 'static {
    /// What it is called in the log.
    const KIND: &'static str;
    /// The run that it is about; empty when it is about none.
    fn run_id(&self) -> &str;
}

/// A way out.
pub trait Way: Send + Sync + 'static {
    /// What goes this way.
    type Message: Message;

    /// Its name in the log and the metrics.
    fn name(&self) -> &str;

    /// Sends it once, within the way's time limit.
    fn send(&self, message: &Self::Message) -> impl Future<Output = Result<(), DeliveryError>> + Send;
}

/// What has become of one way's messages since the agent started.
#[derive(Debug, Default)]
pub struct Counts {
    /// Arrived.
    pub sent: AtomicU64,
    /// Tried, and given up.
    pub failed: AtomicU64,
    /// Never tried: the queue was full.
    pub dropped: AtomicU64,
}

impl Counts {
    /// Each with its name in the metrics.
    pub fn by_result(&self) -> [(&'static str, u64); 3] {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        [("sent", of(&self.sent)), ("failed", of(&self.failed)), ("dropped", of(&self.dropped))]
    }
}

/// A way out with its queue and its task.
#[derive(Debug)]
pub struct Outbox<W: Way> {
    way: Arc<W>,
    queue: mpsc::Sender<Arc<W::Message>>,
    counts: Arc<Counts>,
    pending: Arc<AtomicUsize>,
}

impl<W: Way> Outbox<W> {
    /// Starts the task. Needs a runtime.
    pub fn start(way: W) -> Self {
        let (queue, messages) = mpsc::channel(QUEUE);
        let (way, counts, pending) = (Arc::new(way), Arc::default(), Arc::default());
        tokio::spawn(deliver(Arc::clone(&way), messages, Arc::clone(&counts), Arc::clone(&pending)));
        Self { way, queue, counts, pending }
    }

    /// The way.
    pub fn way(&self) -> &W {
        &self.way
    }

    /// What has become of its messages.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Puts a message into the queue, when it has room. Returns at once.
    pub fn post(&self, message: Arc<W::Message>) {
        self.pending.fetch_add(1, Ordering::SeqCst);
        if let Err(error) = self.queue.try_send(message) {
            self.pending.fetch_sub(1, Ordering::SeqCst);
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
            let (way, run_id) = (self.way.name(), error.into_inner().run_id().to_owned());
            tracing::error!(way, run_id, "a {} is dropped: too many wait", W::Message::KIND);
        }
    }

    /// Waits until nothing waits to be sent, for `patience` at most.
    pub async fn drain(&self, patience: Duration) {
        let empty = async {
            while self.pending.load(Ordering::SeqCst) > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(patience, empty).await.is_err() {
            let (way, left) = (self.way.name(), self.pending.load(Ordering::SeqCst));
            tracing::warn!(way, left, "the agent ends before every {} was sent", W::Message::KIND);
        }
    }
}

async fn deliver<W: Way>(
    way: Arc<W>,
    mut messages: mpsc::Receiver<Arc<W::Message>>,
    counts: Arc<Counts>,
    pending: Arc<AtomicUsize>,
) {
    let kind = W::Message::KIND;
    while let Some(message) = messages.recv().await {
        let run_id = message.run_id();
        let count = match try_again(&*way, &*message).await {
            Ok(()) => {
                tracing::info!(way = way.name(), run_id, "a {kind} was sent");
                &counts.sent
            }
            Err(error) => {
                tracing::error!(way = way.name(), run_id, %error, "a {kind} was not sent");
                &counts.failed
            }
        };
        count.fetch_add(1, Ordering::Relaxed);
        pending.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn try_again<W: Way>(way: &W, message: &W::Message) -> Result<(), DeliveryError> {
    for pause in PAUSES {
        match way.send(message).await {
            Err(error) if error.transient => {
                let (run_id, kind) = (message.run_id(), W::Message::KIND);
                tracing::warn!(way = way.name(), run_id, %error, "a {kind} is tried again");
                tokio::time::sleep(pause).await;
            }
            sent => return sent,
        }
    }
    way.send(message).await
}
