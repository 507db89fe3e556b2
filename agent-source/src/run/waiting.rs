//! What a run waits for before it does anything: its turn, and a target that is busy.
//!
//! Neither ends a run before its slot does: an hour in which a backup could have been proven a minute later is not a missed one.

use std::{sync::Arc, time::Duration};

use assay_common::{
    cli::show,
    rpc_status::{BUSY, fault_from_status},
    tls::{ConnectError, MeteredChannel},
};
use jiff::{SignedDuration, Timestamp};
use rand::Rng as _;
use tokio::time::Instant;
use tonic::Status;

use super::{Attempt, Fault};
use crate::turns::{Rank, Turn};

/// How often a connection that the target closes in the handshake is tried, with [`FIRST_PAUSE`] before the second time and twice as much before each
/// further one: many sources behind one address may have come at once.
const CONNECT_ATTEMPTS: u32 = 4;
/// See there.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Pause before a target is tried again that has as many connections as it takes.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// A busy target may ask to be tried again after this, at the earliest and at the latest: no peer sets our pace.
const COME_BACK: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(60));

/// Which place a run has among those that wait, and for how long it may wait for the target.
#[derive(Debug, Clone, Copy)]
pub struct Due {
    rank: Rank,
    triggered: Instant,
    /// From the trigger to the next slot of its schedule.
    slot: Option<Duration>,
}

impl Due {
    /// Of a run that the schedule starts now, or an operator; `proven` is the mark of the newest PASS, `slot` how long it is to the next slot.
    pub fn new(is_scheduled: bool, proven: Option<Timestamp>, slot: Option<SignedDuration>) -> Self {
        let slot = slot.map(|slot| Duration::try_from(slot).unwrap_or_default());
        Self { rank: Rank::new(is_scheduled, proven), triggered: Instant::now(), slot }
    }

    /// Until when it waits for a target that is busy.
    fn until(&self, wait: Duration) -> Instant {
        self.triggered + self.slot.map_or(wait, |slot| slot.min(wait))
    }
}

impl Attempt {
    /// Waits until few enough others are under way.
    pub(super) async fn wait_for_turn(&self) -> Result<Turn, Fault> {
        let turns = Arc::clone(&self.context.turns);
        let turn = turns.wait(self.due.rank, |before| {
            tracing::info!(before, "the run waits for its turn");
            self.waits(format!("for its turn on the source, {}", show::queued(before)));
        });
        let turn = tokio::select! {
            turn = turn => turn,
            () = self.cancel.cancelled() => {
                return Err(Fault { was_not_opened: true, ..Fault::cancelled() });
            }
        };
        self.waits(String::new());
        Ok(turn)
    }

    /// The connection that the runs share. A target that closes it for there being too many is tried again.
    pub(super) async fn connect(&self) -> Result<MeteredChannel, Fault> {
        let (mut attempt, mut pause) = (1, FIRST_PAUSE);
        loop {
            let connected = tokio::select! {
                connected = self.context.target.connect() => connected,
                () = self.cancel.cancelled() => {
                    return Err(Fault { was_not_opened: true, ..Fault::cancelled() });
                }
            };
            let error = match connected {
                Ok(channel) => {
                    self.waits(String::new());
                    return Ok(channel);
                }
                Err(error) => error,
            };
            let again = match &*error {
                // It said who it is and closed the connection when it knew who we are: it has enough of us. Nobody stands by a scheduled run.
                ConnectError::Closed { phase, .. }
                    if *phase != "TLS handshake" && self.due.slot.is_some() =>
                {
                    self.has_time_for(pause)
                }
                ConnectError::Closed { .. } => attempt < CONNECT_ATTEMPTS,
                _ => false,
            };
            if !again {
                return Err(error.into());
            }
            tracing::info!(%error, attempt, "the target is tried again");
            self.waits("for the target, which closed the connection".to_owned());
            self.pause(pause).await.map_err(|fault| Fault { was_not_opened: true, ..fault })?;
            (attempt, pause) = (attempt + 1, (pause * 2).min(LONGEST_PAUSE));
        }
    }

    /// True when the target is busy for now and has been waited for; false when its answer is final.
    pub(super) async fn waits_for_target(&self, status: &Status) -> Result<bool, Fault> {
        let fault = fault_from_status(status);
        let Some(after) = fault.retry_after.filter(|_| fault.reason == BUSY) else {
            self.waits(String::new());
            return Ok(false);
        };
        let after = after.clamp(COME_BACK.0, COME_BACK.1);
        if !self.has_time_for(after) {
            return Ok(false);
        }
        if self.progress.get().waiting.is_empty() {
            tracing::info!(message = fault.message, "the target is busy; the run waits for it");
        }
        self.waits(format!("for the target, which is busy: {}", fault.message));
        self.pause(after).await?;
        Ok(true)
    }

    fn has_time_for(&self, pause: Duration) -> bool {
        Instant::now() + pause < self.due.until(self.context.target.wait)
    }

    /// A pause, or a little more: those who wait for the same do not all come back at once.
    async fn pause(&self, pause: Duration) -> Result<(), Fault> {
        let pause = pause.mul_f64(rand::rng().random_range(1.0..1.25));
        tokio::select! {
            () = tokio::time::sleep(pause) => Ok(()),
            () = self.cancel.cancelled() => Err(Fault::cancelled()),
        }
    }

    pub(super) fn waits(&self, what: String) {
        self.progress.update(|run| run.waiting = what);
    }
}
