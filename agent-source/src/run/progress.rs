//! How far a run has come, for all who watch it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use assay_proto::v1::{Phase, PhaseTime, Run};
use tokio::sync::watch;

/// How often counts are shown while content is replicated: often enough for an eye, rarely enough to cost nothing.
pub(super) const TICK: Duration = Duration::from_millis(250);

/// The one place where a run's state is; clones are of the same run.
#[derive(Clone)]
pub struct Progress {
    run: watch::Sender<Run>,
    /// When the phase that it is in began.
    entered: Arc<Mutex<Instant>>,
}

impl Progress {
    /// Of a run that starts as `run`.
    pub fn new(run: Run) -> Self {
        Self { run: watch::Sender::new(run), entered: Arc::new(Mutex::new(Instant::now())) }
    }

    /// As it is now.
    pub fn get(&self) -> Run {
        self.run.borrow().clone()
    }

    /// Hears of every change, though not of each one of several quick ones.
    pub fn subscribe(&self) -> watch::Receiver<Run> {
        self.run.subscribe()
    }

    /// Changes it.
    pub fn update(&self, change: impl FnOnce(&mut Run)) {
        self.run.send_if_modified(|run| {
            let before = run.clone();
            change(run);
            if run.phase != before.phase {
                let mut entered = self.entered.lock().unwrap_or_else(PoisonError::into_inner);
                let took = std::mem::replace(&mut *entered, Instant::now()).elapsed();
                let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
                run.phase_times.push(PhaseTime { phase: before.phase, milliseconds });
            }
            *run != before
        });
    }

    /// Enters a phase.
    pub fn phase(&self, phase: Phase) {
        tracing::info!(phase = phase.as_str_name(), "the run goes on");
        self.update(|run| run.set_phase(phase));
    }
}
