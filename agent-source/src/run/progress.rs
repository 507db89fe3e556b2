//! How far a run has come, for all who watch it.

use std::time::Duration;

use assay_proto::v1::{Phase, Run};
use tokio::sync::watch;

/// How often counts are shown while content is replicated: often enough for an eye, rarely enough to cost nothing.
pub(super) const TICK: Duration = Duration::from_millis(250);

/// The one place where a run's state is; clones are of the same run.
#[derive(Clone)]
pub struct Progress(watch::Sender<Run>);

impl Progress {
    /// Of a run that starts as `run`.
    pub fn new(run: Run) -> Self {
        Self(watch::Sender::new(run))
    }

    /// As it is now.
    pub fn get(&self) -> Run {
        self.0.borrow().clone()
    }

    /// Hears of every change, though not of each one of several quick ones.
    pub fn subscribe(&self) -> watch::Receiver<Run> {
        self.0.subscribe()
    }

    /// Changes it.
    pub fn update(&self, change: impl FnOnce(&mut Run)) {
        self.0.send_if_modified(|run| {
            let before = run.clone();
            change(run);
            *run != before
        });
    }

    /// Enters a phase.
    pub fn phase(&self, phase: Phase) {
        tracing::info!(run_id = self.0.borrow().id, phase = phase.as_str_name(), "the run goes on");
        self.update(|run| run.set_phase(phase));
    }
}
