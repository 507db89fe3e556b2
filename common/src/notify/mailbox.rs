//! The queue of one way out: on disk, so that neither a receiver that is away nor the end of the agent loses a notice.
//!
//! A notice stays until it has arrived, until it no longer holds (an OVERDUE that a PASS has ended), or for [`KEPT`]. Its id is
//! remembered after it has arrived: the same notice is not told again, also by the next start of the agent.

use std::{
    collections::VecDeque,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{sync::Notify, time::Instant};

use super::{Event, Notice, Way};
use crate::{
    durable::{remove_temporary, write_durable},
    error::{IoContext as _, PathError},
    outbox::{Counts, DeliveryError, Way as _},
};

/// Notices that wait on one way, at most: the oldest goes first when there are more.
pub const MAX_WAITING: usize = 1000;
/// Ids of notices that have arrived, of which each is told once.
const MAX_REMEMBERED: usize = 1000;
/// Pauses between the tries of one round: what restarts is back in seconds.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];
/// Pause after a round that failed, at first; doubled with each.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
/// The longest pause between two rounds.
const MAX_PAUSE: Duration = Duration::from_secs(600);
/// Rounds that a notice is tried at least, whatever the clock says of its age: it may have jumped.
const MIN_ROUNDS: u32 = 24;
/// How long a notice that does not arrive is kept.
const KEPT: jiff::SignedDuration = jiff::SignedDuration::from_hours(7 * 24);
/// The file of remembered ids.
const REMEMBERED: &str = "told.json";

/// A notice that waits.
#[derive(Debug)]
struct Entry {
    number: u64,
    notice: Arc<Notice>,
    /// Rounds that failed.
    rounds: u32,
    /// Not tried before.
    due: Instant,
    /// It is on disk.
    is_saved: bool,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Entry>,
    remembered: VecDeque<String>,
    next: u64,
    /// A round is under way.
    is_trying: bool,
}

#[derive(Debug)]
struct Inner {
    way: Way,
    folder: Option<PathBuf>,
    state: Mutex<State>,
    changed: Notify,
    counts: Counts,
}

/// A way out with its queue and its task. Clones are of the same one.
#[derive(Debug, Clone)]
pub struct Mailbox(Arc<Inner>);

impl Mailbox {
    /// Takes up what waits in `folder`, and starts the task. Needs a runtime. Without a folder nothing outlives the process.
    pub fn start(way: Way, folder: Option<&Path>) -> Self {
        let folder = folder.map(|folder| folder.join(&way.name));
        let mut state = State::default();
        if let Some(folder) = &folder
            && let Err(error) = state.load(folder)
        {
            tracing::error!(way = way.name, %error, "the notices that wait cannot be read; new ones are told all the same");
        }
        let (state, counts, changed) = (Mutex::new(state), Counts::default(), Notify::new());
        let inner = Arc::new(Inner { way, folder, state, changed, counts });
        crate::supervise::spawn("notices", {
            let inner = Arc::clone(&inner);
            move || Arc::clone(&inner).deliver()
        });
        Self(inner)
    }

    /// The way.
    pub fn way(&self) -> &Way {
        &self.0.way
    }

    /// What has become of its notices.
    pub fn counts(&self) -> &Counts {
        &self.0.counts
    }

    /// Notices that wait.
    pub fn waiting(&self) -> usize {
        self.0.lock().waiting.len()
    }

    /// Puts a notice into the queue, unless it waits there or has arrived already. Returns when it is on disk, or cannot be brought there.
    pub fn post(&self, notice: &Arc<Notice>) {
        self.0.post(notice);
        self.0.changed.notify_one();
    }

    /// Takes back what has not arrived and holds no longer; the word that it is over stays.
    pub fn withdraw(&self, repository: &str, event: Event) {
        let mut state = self.0.lock();
        let is_gone =
            |notice: &Notice| notice.event == event && notice.repository == repository && !notice.is_over();
        let (gone, kept) = state.waiting.drain(..).partition(|entry| is_gone(&entry.notice));
        let gone: VecDeque<Entry> = gone;
        state.waiting = kept;
        for entry in gone {
            self.0.remove(entry.number);
        }
    }

    /// Waits until each notice that waits has arrived or has been tried in vain, for `patience` at most.
    pub async fn drain(&self, patience: Duration) {
        let settled = async {
            while !self.0.is_settled() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        drop(tokio::time::timeout(patience, settled).await);
        let (way, left) = (self.0.way.name.as_str(), self.waiting());
        if left > 0 {
            tracing::warn!(way, left, "notices wait: the next start of the agent sends them");
        }
    }
}

impl State {
    fn load(&mut self, folder: &Path) -> Result<(), PathError> {
        fs::create_dir_all(folder).at("create", folder)?;
        remove_temporary(folder)?;
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).at("read", folder)? {
            let path = entry.at("read", folder)?.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            if let Ok(number) = stem.parse::<u64>() {
                found.push((number, path));
            }
        }
        found.sort_unstable();
        // A new one never takes the place of one that waits, whatever becomes of its reading.
        self.next = found.last().map_or(0, |(number, _)| number + 1);
        for (number, path) in found {
            let text = match fs::read(&path).at("read", &path) {
                Ok(text) => text,
                Err(error) => {
                    tracing::error!(%error, "a notice that waited is left out; the next start tries again");
                    continue;
                }
            };
            match serde_json::from_slice(&text) {
                Ok(notice) => self.waiting.push_back(Entry::new(number, Arc::new(notice), true)),
                Err(error) => {
                    tracing::warn!(file = %path.display(), %error, "a notice that waited is not understood");
                    drop(fs::remove_file(&path));
                }
            }
        }
        let path = folder.join(REMEMBERED);
        match fs::read(&path) {
            Ok(text) => self.remembered = serde_json::from_slice(&text).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => Err(error).at("read", &path)?,
        }
        Ok(())
    }

    fn knows(&self, id: &str) -> bool {
        self.remembered.iter().any(|known| known == id)
            || self.waiting.iter().any(|entry| entry.notice.id == id)
    }
}

impl Entry {
    fn new(number: u64, notice: Arc<Notice>, is_saved: bool) -> Self {
        Self { number, notice, rounds: 0, due: Instant::now(), is_saved }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, number: u64) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(format!("{number:012}.json")))
    }

    fn post(&self, notice: &Arc<Notice>) {
        let mut state = self.lock();
        // A test is one each time.
        if notice.event != Event::Test && state.knows(&notice.id) {
            return;
        }
        if state.waiting.len() >= MAX_WAITING
            && let Some(oldest) = state.waiting.pop_front()
        {
            self.remove(oldest.number);
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
            let (way, run_id) = (self.way.name.as_str(), oldest.notice.run_id.as_str());
            tracing::error!(way, run_id, "the oldest notice is dropped: too many wait");
        }
        let number = state.next;
        state.next += 1;
        state.waiting.push_back(Entry::new(number, Arc::clone(notice), false));
        if let Err(error) = self.save(&mut state) {
            // It is told all the same, unless the agent ends before.
            tracing::warn!(way = self.way.name, %error, "a notice is kept in memory only, until the disk takes it");
        }
    }

    /// Brings to disk what it has not taken yet, the oldest first.
    fn save(&self, state: &mut State) -> Result<(), PathError> {
        for entry in state.waiting.iter_mut().filter(|entry| !entry.is_saved) {
            if let Some(path) = self.path(entry.number) {
                let text = serde_json::to_vec(&*entry.notice).unwrap_or_default();
                write_durable(&path, &text, 0o600)?;
            }
            entry.is_saved = true;
        }
        Ok(())
    }

    fn remove(&self, number: u64) {
        if let Some(path) = self.path(number) {
            // It was never there when the disk was full.
            drop(fs::remove_file(path));
        }
    }

    /// A notice has arrived, or is given up.
    fn settle(&self, entry_number: u64, id: &str, arrived: bool) {
        let mut state = self.lock();
        state.waiting.retain(|entry| entry.number != entry_number);
        if arrived {
            state.remembered.push_back(id.to_owned());
            while state.remembered.len() > MAX_REMEMBERED {
                state.remembered.pop_front();
            }
            if let Some(folder) = &self.folder {
                // Before the notice is removed: one that was told must not be told again.
                let text = serde_json::to_vec(&state.remembered).unwrap_or_default();
                if let Err(error) = write_durable(&folder.join(REMEMBERED), &text, 0o600) {
                    tracing::warn!(way = self.way.name, %error, "a notice that was sent may be sent again by the next start");
                }
            }
        }
        self.remove(entry_number);
    }

    /// True when nothing is tried now and what waits, waits for its next round.
    fn is_settled(&self) -> bool {
        let state = self.lock();
        let now = Instant::now();
        !state.is_trying && state.waiting.iter().all(|entry| entry.due > now)
    }

    /// The next notice to be tried, or when there is one.
    fn next(&self) -> Result<(u64, Arc<Notice>), Option<Instant>> {
        let mut state = self.lock();
        let now = Instant::now();
        let due = state.waiting.iter().find(|entry| entry.due <= now);
        let found = due.map(|entry| (entry.number, Arc::clone(&entry.notice)));
        state.is_trying = found.is_some();
        found.ok_or_else(|| state.waiting.iter().map(|entry| entry.due).min())
    }

    async fn deliver(self: Arc<Self>) {
        loop {
            let (number, notice) = match self.next() {
                Ok(next) => next,
                Err(due) => {
                    let timer = async {
                        match due {
                            Some(due) => tokio::time::sleep_until(due).await,
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        () = self.changed.notified() => {}
                        () = timer => {}
                    }
                    continue;
                }
            };
            let (way, run_id) = (self.way.name.as_str(), notice.run_id.as_str());
            match self.try_again(&notice).await {
                Ok(()) => {
                    tracing::info!(way, run_id, "a notice was sent");
                    self.counts.sent.fetch_add(1, Ordering::Relaxed);
                    self.settle(number, &notice.id, true);
                }
                Err(error) if error.partly && !error.transient => {
                    self.counts.failed.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(way, run_id, %error, "a notice has not reached everyone");
                    self.settle(number, &notice.id, true);
                }
                Err(error) => {
                    self.counts.failed.fetch_add(1, Ordering::Relaxed);
                    if self.rounds(number) >= MIN_ROUNDS
                        && notice.time.duration_until(Timestamp::now()) > KEPT
                    {
                        tracing::error!(way, run_id, %error, "a notice was not sent for a week, and is given up");
                        self.counts.dropped.fetch_add(1, Ordering::Relaxed);
                        self.settle(number, &notice.id, false);
                    } else {
                        tracing::error!(way, run_id, %error, "a notice was not sent; it waits and is tried again");
                        self.put_off(number, error.transient);
                    }
                }
            }
        }
    }

    fn rounds(&self, number: u64) -> u32 {
        let state = self.lock();
        state.waiting.iter().find(|entry| entry.number == number).map_or(0, |entry| entry.rounds)
    }

    /// A round has failed. A receiver that is away is left alone with all; one that refuses a notice may take the others.
    fn put_off(&self, number: u64, all: bool) {
        let mut state = self.lock();
        state.is_trying = false;
        // The disk may have room by now; it was told when it had none.
        drop(self.save(&mut state));
        let Some(entry) = state.waiting.iter_mut().find(|entry| entry.number == number) else { return };
        entry.rounds += 1;
        let pause = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(entry.rounds - 1)).min(MAX_PAUSE);
        let due = Instant::now() + pause;
        entry.due = due;
        if all {
            for entry in &mut state.waiting {
                entry.due = entry.due.max(due);
            }
        }
    }

    async fn try_again(&self, notice: &Notice) -> Result<(), DeliveryError> {
        for pause in PAUSES {
            match self.way.send(notice).await {
                Err(error) if error.transient => {
                    let (way, run_id) = (self.way.name.as_str(), notice.run_id.as_str());
                    tracing::warn!(way, run_id, %error, "a notice is tried again");
                    tokio::time::sleep(pause).await;
                }
                sent => return sent,
            }
        }
        self.way.send(notice).await
    }
}
