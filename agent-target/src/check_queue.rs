//! Checks of several repositories queue: a bounded number at a time, the repository with the oldest PASS first.
//!
//! A check reads a whole copy and keeps a core busy, so a hundred at once would be slower than one after the other, and each would reach its time limit.
//! A check waits here before it makes its workspace, and its time limit starts when it starts. What is due by the clock (negative controls, checks
//! that are made again) comes after the checks of runs and operators, until it has waited for `PATIENCE`.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

/// After this what is due by the clock has the same rights as a run: without a negative control no PASS counts.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// How often a check that waits looks whether it was cancelled.
const CANCEL_POLL: Duration = Duration::from_millis(100);
/// How long a check waits when the configuration does not say.
pub const DEFAULT_WAIT: Duration = Duration::from_secs(6 * 3600);

/// Who wants a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// A run, or an operator: somebody waits for it.
    Now,
    /// The clock.
    ByTheClock,
}

/// The queue of one agent.
#[derive(Debug)]
pub struct CheckQueue {
    table: Mutex<Table>,
    changed: Condvar,
    at_a_time: usize,
    wait: Duration,
}

#[derive(Debug, Default)]
struct Table {
    running: usize,
    arrivals: u64,
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    arrival: u64,
    repository: String,
    wanted: Wanted,
    /// The mark of the newest PASS.
    proven: Option<Timestamp>,
    since: (Instant, Timestamp),
    given_up: bool,
}

impl Waiting {
    /// Lower is earlier.
    fn rank(&self, now: Instant) -> (bool, Option<Timestamp>, u64) {
        let yields =
            self.wanted == Wanted::ByTheClock && now.saturating_duration_since(self.since.0) < PATIENCE;
        (yields, self.proven, self.arrival)
    }
}

/// A check that waits, for `status` and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingCheck {
    /// Whose it is.
    pub repository: String,
    /// Checks that come before it, those that run not counted.
    pub before: usize,
    /// Since when it waits.
    pub since: Timestamp,
}

/// Why a check did not start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotStarted {
    /// Nobody wants it any longer.
    Cancelled,
    /// It waited for as long as the configuration allows.
    WaitedTooLong {
        /// How long.
        wait: Duration,
        /// How many run at a time.
        at_a_time: usize,
    },
}

impl std::fmt::Display for NotStarted {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cancelled => formatter.write_str("the check was cancelled while it waited for a slot"),
            Self::WaitedTooLong { wait, at_a_time } => write!(
                formatter,
                "the check waited for {} behind others, of which {at_a_time} run at a time; agent.check_wait is how long it may",
                humantime::format_duration(*wait)
            ),
        }
    }
}

impl Default for CheckQueue {
    fn default() -> Self {
        Self::new(default_at_a_time(), DEFAULT_WAIT)
    }
}

/// Checks at a time when the configuration does not say: half of the cores, the other half is for runs.
pub fn default_at_a_time() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1))
}

impl CheckQueue {
    /// So many checks at a time, of which each waits for `wait` at most.
    pub fn new(at_a_time: usize, wait: Duration) -> Self {
        Self { table: Mutex::default(), changed: Condvar::new(), at_a_time: at_a_time.max(1), wait }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a slot, on a thread that may wait. `waits` hears how many checks are before it whenever that changes; not at all when there is
    /// a slot at once.
    ///
    /// # Errors
    /// When it was cancelled, or has waited for too long.
    pub fn wait(
        self: &Arc<Self>,
        (repository, wanted): (&str, Wanted),
        proven: Option<Timestamp>,
        cancel: &CancellationToken,
        waits: &dyn Fn(usize),
    ) -> Result<CheckSlot, NotStarted> {
        let started = Instant::now();
        let mut table = self.lock();
        table.arrivals += 1;
        let arrival = table.arrivals;
        table.waiting.push(Waiting {
            arrival,
            repository: repository.to_owned(),
            wanted,
            proven,
            since: (started, Timestamp::now()),
            given_up: false,
        });
        // Whoever comes later may be the next one.
        self.changed.notify_all();
        let mut told = None;
        let ended = loop {
            let Some(own) = table.waiting.iter().position(|waiting| waiting.arrival == arrival) else {
                break Err(NotStarted::Cancelled);
            };
            if cancel.is_cancelled() || table.waiting[own].given_up {
                break Err(NotStarted::Cancelled);
            }
            let before = table.before(own, Instant::now());
            if before == 0 && table.running < self.at_a_time {
                table.running += 1;
                break Ok(CheckSlot { queue: Arc::clone(self) });
            }
            if started.elapsed() >= self.wait {
                break Err(NotStarted::WaitedTooLong { wait: self.wait, at_a_time: self.at_a_time });
            }
            if told != Some(before) {
                told = Some(before);
                drop(table);
                waits(before);
                table = self.lock();
                continue;
            }
            table = self.changed.wait_timeout(table, CANCEL_POLL).unwrap_or_else(PoisonError::into_inner).0;
        };
        table.waiting.retain(|waiting| waiting.arrival != arrival);
        drop(table);
        self.changed.notify_all();
        ended
    }

    /// Ends the waiting of a repository's check that a run or an operator wants. False when none waits: one that runs goes on.
    pub fn give_up(&self, repository: &str) -> bool {
        let mut table = self.lock();
        let wanted =
            |waiting: &&mut Waiting| waiting.repository == repository && waiting.wanted == Wanted::Now;
        let found = table.waiting.iter_mut().find(wanted).map(|waiting| waiting.given_up = true);
        self.changed.notify_all();
        found.is_some()
    }

    /// Those that wait, the next one first.
    pub fn waiting(&self) -> Vec<WaitingCheck> {
        let table = self.lock();
        let now = Instant::now();
        let mut waiting: Vec<_> = table.waiting.iter().collect();
        waiting.sort_by_key(|waiting| waiting.rank(now));
        let numbered = waiting.into_iter().enumerate();
        numbered
            .map(|(before, waiting)| WaitingCheck {
                repository: waiting.repository.clone(),
                before,
                since: waiting.since.1,
            })
            .collect()
    }

    /// How many run now.
    pub fn running(&self) -> usize {
        self.lock().running
    }

    /// How many may run at a time.
    pub fn at_a_time(&self) -> usize {
        self.at_a_time
    }
}

impl Table {
    /// How many come before one of those that wait.
    fn before(&self, own: usize, now: Instant) -> usize {
        let rank = self.waiting[own].rank(now);
        self.waiting.iter().filter(|waiting| waiting.rank(now) < rank).count()
    }
}

/// The right to check, until it is dropped.
#[derive(Debug)]
pub struct CheckSlot {
    queue: Arc<CheckQueue>,
}

impl Drop for CheckSlot {
    fn drop(&mut self) {
        self.queue.lock().running -= 1;
        self.queue.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, sync_channel};

    use super::*;

    fn at(second: i64) -> Option<Timestamp> {
        Timestamp::from_second(second).ok()
    }

    fn queue(at_a_time: usize, wait: Duration) -> Arc<CheckQueue> {
        Arc::new(CheckQueue::new(at_a_time, wait))
    }

    /// Starts a check that waits, and comes back when it does.
    fn start(
        queue: &Arc<CheckQueue>,
        (repository, wanted): (&'static str, Wanted),
        proven: Option<Timestamp>,
    ) -> Receiver<Result<CheckSlot, NotStarted>> {
        let (ended, end) = sync_channel(1);
        let (waits, waiting) = sync_channel(64);
        let queue = Arc::clone(queue);
        std::thread::spawn(move || {
            let cancel = CancellationToken::new();
            let told = |before| {
                waits.send(before).ok();
            };
            ended.send(queue.wait((repository, wanted), proven, &cancel, &told)).ok();
        });
        waiting.recv().expect("it waits");
        end
    }

    #[test]
    fn the_oldest_pass_is_checked_first_and_what_the_clock_wants_last() {
        let queue = queue(1, DEFAULT_WAIT);
        let cancel = CancellationToken::new();
        let slot = queue.wait(("first", Wanted::Now), at(5), &cancel, &|_| panic!("nothing is before it"));
        let ends = [
            ("control", Wanted::ByTheClock, None),
            ("young", Wanted::Now, at(20)),
            ("old", Wanted::Now, at(10)),
            ("never", Wanted::Now, None),
        ]
        .map(|(name, wanted, proven)| (name, start(&queue, (name, wanted), proven)));
        let order: Vec<_> = queue.waiting().into_iter().map(|waiting| waiting.repository).collect();
        assert_eq!(order, ["never", "old", "young", "control"]);
        assert_eq!(queue.waiting()[2].before, 2);
        assert_eq!((queue.running(), queue.at_a_time()), (1, 1));
        let mut slot = slot.expect("a slot");
        for name in order {
            // The one before it ends.
            drop(slot);
            let (_, end) = ends.iter().find(|(of, _)| *of == name).expect("it was started");
            slot = end.recv().expect("it ends").expect("its turn");
        }
        drop(slot);
        assert_eq!((queue.running(), queue.waiting().len()), (0, 0));
    }

    #[test]
    fn several_run_at_a_time_and_no_more() {
        let queue = queue(2, DEFAULT_WAIT);
        let cancel = CancellationToken::new();
        let take = |name| queue.wait((name, Wanted::Now), None, &cancel, &|_| {}).expect("a slot");
        let (first, second) = (take("a"), take("b"));
        let third = start(&queue, ("c", Wanted::Now), None);
        assert_eq!(queue.waiting().len(), 1);
        drop(first);
        let third = third.recv().expect("it ends").expect("its turn");
        assert_eq!(queue.running(), 2);
        drop((second, third));
    }

    #[test]
    fn a_check_that_waits_can_be_cancelled_and_given_up_and_waits_for_a_limited_time() {
        let blocked = queue(1, DEFAULT_WAIT);
        let cancel = CancellationToken::new();
        let slot = blocked.wait(("a", Wanted::Now), None, &cancel, &|_| {}).expect("a slot");
        cancel.cancel();
        let cancelled = blocked.wait(("b", Wanted::Now), None, &cancel, &|_| {});
        assert_eq!(cancelled.expect_err("cancelled"), NotStarted::Cancelled);
        let waiting = start(&blocked, ("c", Wanted::Now), None);
        assert!(!blocked.give_up("a"), "it runs");
        assert!(blocked.give_up("c"));
        assert_eq!(waiting.recv().expect("it ends").expect_err("given up"), NotStarted::Cancelled);
        drop(slot);
        let short = queue(1, Duration::ZERO);
        let open = CancellationToken::new();
        let _slot = short.wait(("a", Wanted::Now), None, &open, &|_| {}).expect("it need not wait");
        let late = short.wait(("d", Wanted::Now), None, &open, &|_| {}).expect_err("no time");
        assert_eq!(late, NotStarted::WaitedTooLong { wait: Duration::ZERO, at_a_time: 1 });
        assert_eq!((blocked.waiting().len(), short.waiting().len()), (0, 0));
    }

    /// A target that is never idle would never make a negative control otherwise, and no PASS would count.
    #[test]
    fn a_scheduled_check_does_not_wait_for_ever() {
        let now = Instant::now();
        let waiting = |wanted, since: Duration| {
            Waiting {
                arrival: 1,
                repository: "a".to_owned(),
                wanted,
                proven: None,
                since: (now, Timestamp::now()),
                given_up: false,
            }
            .rank(now + since)
        };
        assert!(waiting(Wanted::ByTheClock, Duration::ZERO) > waiting(Wanted::Now, Duration::ZERO));
        assert_eq!(waiting(Wanted::ByTheClock, PATIENCE), waiting(Wanted::Now, Duration::ZERO));
    }
}
