//! Whose turn it is: a bounded number of an agent's runs at a time, the one with the oldest proof first.
//!
//! A hundred repositories that are due at one minute do not all read and send at once: that would need the memory, the connections and the
//! disks of a hundred. A run waits here before it does anything. Two bounds hold: of runs that copy (from their start to the seal), and of runs
//! that are under way at all, since each that waits for its check at the target holds a stream of the one connection open.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use tokio::sync::watch;

/// Runs that are under way at a time, with those whose generation is being checked: fewer than a connection has streams
/// ([`assay_common::limits::STREAMS_PER_CONNECTION`]), so that one that copies always finds one.
pub const RUNS_UNDER_WAY: usize = 48;

/// The order of runs: an operator waits for his, then the one whose repository was proven longest ago, and never before all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    is_scheduled: bool,
    /// The mark of the newest PASS.
    proven: Option<Timestamp>,
}

impl Rank {
    /// Of a run that the schedule starts, or an operator.
    pub fn new(is_scheduled: bool, proven: Option<Timestamp>) -> Self {
        Self { is_scheduled, proven }
    }
}

/// The turns of one agent.
#[derive(Debug)]
pub struct Turns {
    table: Mutex<Table>,
    /// Changes whenever a place may have become free, or the order has changed.
    changed: watch::Sender<()>,
    copying: usize,
    under_way: usize,
}

#[derive(Debug, Default)]
struct Table {
    waiting: BTreeSet<Ticket>,
    arrivals: u64,
    copying: usize,
    under_way: usize,
}

/// Who waits; of two of one rank the first to come is first.
type Ticket = (Rank, u64);

impl Turns {
    /// So many runs copy at a time, and so many are under way.
    pub fn new(copying: usize, under_way: usize) -> Arc<Self> {
        let (copying, under_way) = (copying.max(1), under_way.max(1));
        let (table, changed) = (Mutex::default(), watch::Sender::new(()));
        Arc::new(Self { table, changed, copying, under_way })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs that copy, that may copy at a time, and that wait for their turn.
    pub fn counts(&self) -> (usize, usize, usize) {
        let table = self.lock();
        (table.copying, self.copying, table.waiting.len())
    }

    /// Waits for the turn. `waits` hears how many are before it, whenever that changes; not at all when it has its turn at once. When this is
    /// dropped, it waits no longer.
    pub async fn wait(self: &Arc<Self>, rank: Rank, mut waits: impl FnMut(usize)) -> Turn {
        let mut changed = self.changed.subscribe();
        let waiting = Waiting::join(self, rank);
        let mut told = None;
        loop {
            changed.borrow_and_update();
            match waiting.look() {
                Ok(turn) => return turn,
                Err(before) if told != Some(before) => {
                    told = Some(before);
                    waits(before);
                }
                Err(_) => {}
            }
            changed.changed().await.expect("the sender is in here");
        }
    }
}

struct Waiting<'a> {
    turns: &'a Arc<Turns>,
    ticket: Ticket,
}

impl<'a> Waiting<'a> {
    fn join(turns: &'a Arc<Turns>, rank: Rank) -> Self {
        let mut table = turns.lock();
        table.arrivals += 1;
        let ticket = (rank, table.arrivals);
        table.waiting.insert(ticket);
        drop(table);
        turns.changed.send_replace(());
        Self { turns, ticket }
    }

    /// The turn, if it has come; else how many are before it.
    fn look(&self) -> Result<Turn, usize> {
        let mut table = self.turns.lock();
        let before = table.waiting.range(..self.ticket).count();
        let has_room = table.copying < self.turns.copying && table.under_way < self.turns.under_way;
        if before > 0 || !has_room {
            return Err(before);
        }
        table.waiting.remove(&self.ticket);
        table.copying += 1;
        table.under_way += 1;
        Ok(Turn { turns: Arc::clone(self.turns), copies: true })
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.turns.lock().waiting.remove(&self.ticket);
        self.turns.changed.send_replace(());
    }
}

/// A run's turn, until it is dropped.
#[derive(Debug)]
pub struct Turn {
    turns: Arc<Turns>,
    copies: bool,
}

impl Turn {
    /// Nothing is read or sent any more: another run may.
    pub fn end_copying(&mut self) {
        if std::mem::take(&mut self.copies) {
            self.turns.lock().copying -= 1;
            self.turns.changed.send_replace(());
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.end_copying();
        self.turns.lock().under_way -= 1;
        self.turns.changed.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, future::BoxFuture};

    use super::*;

    fn scheduled(proven: Option<i64>) -> Rank {
        Rank::new(true, proven.map(|second| Timestamp::from_second(second).expect("a time")))
    }

    fn queue(turns: &Arc<Turns>, rank: Rank) -> BoxFuture<'static, Turn> {
        let turns = Arc::clone(turns);
        async move { turns.wait(rank, |_| {}).await }.boxed()
    }

    #[tokio::test]
    async fn the_oldest_proof_goes_first_and_operators_before_all() {
        let turns = Turns::new(1, 8);
        let first = turns.wait(scheduled(None), |_| panic!("nobody is before it")).await;
        let ranks = [
            scheduled(Some(20)),
            scheduled(Some(10)),
            scheduled(None),
            Rank::new(false, Timestamp::now().into()),
        ];
        let mut waiting: Vec<_> = ranks.into_iter().map(|rank| queue(&turns, rank)).collect();
        // Each takes its place in the queue, and none is let through.
        assert!(waiting.iter_mut().all(|one| one.now_or_never().is_none()));
        drop(first);
        for next in [3, 2, 1, 0] {
            let ready: Vec<_> = (0..waiting.len())
                .filter_map(|at| Some((at, waiting[at].as_mut().now_or_never()?)))
                .collect();
            assert_eq!(ready.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [next]);
            waiting.truncate(next);
        }
    }

    #[tokio::test]
    async fn one_that_is_sealed_lets_another_copy_until_too_many_are_under_way() {
        let turns = Turns::new(1, 2);
        let mut first = turns.wait(scheduled(None), |_| {}).await;
        let mut second = queue(&turns, scheduled(None));
        assert!(second.as_mut().now_or_never().is_none());
        first.end_copying();
        let mut second = second.now_or_never().expect("its turn");
        second.end_copying();
        let mut third = queue(&turns, scheduled(None));
        assert!(third.as_mut().now_or_never().is_none(), "two are under way");
        drop(first);
        assert!(third.now_or_never().is_some());
    }

    #[tokio::test]
    async fn one_that_gives_up_is_not_waited_for() {
        let turns = Turns::new(1, 8);
        let first = turns.wait(scheduled(None), |_| {}).await;
        let mut before = queue(&turns, scheduled(Some(1)));
        let (mut after, places) = {
            let (turns, places) = (Arc::clone(&turns), Arc::new(Mutex::new(Vec::new())));
            let told = Arc::clone(&places);
            let wait = async move {
                turns.wait(scheduled(Some(2)), |at| told.lock().expect("no panic").push(at)).await
            };
            (wait.boxed(), places)
        };
        assert!(before.as_mut().now_or_never().is_none() && after.as_mut().now_or_never().is_none());
        drop(before);
        assert!(after.as_mut().now_or_never().is_none());
        drop(first);
        assert!(after.now_or_never().is_some());
        assert_eq!(*places.lock().expect("no panic"), [1, 0]);
    }
}
