//! The agent: its repositories, which run each of them is in, and who starts one.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use assay_common::{config::no_such_repository, id::RunId, rpc_status::RpcFault, telemetry, watch::Watch};
use assay_proto::v1::{Phase, Run, RunPlan, Trigger};
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tracing::Instrument as _;

use crate::{
    observe,
    run::{Attempt, Context, Due, Options, Progress, new_run, plan},
    state::{ScheduleState, StateError},
};

/// A run that is under way.
#[derive(Clone)]
struct Current {
    id: RunId,
    progress: Progress,
    cancel: CancellationToken,
}

/// One repository.
pub struct Repository {
    /// What its runs need.
    pub context: Arc<Context>,
    current: Mutex<Option<Current>>,
    /// Plans are made one at a time: each walks the live tree.
    pub planning: tokio::sync::Semaphore,
    /// When the schedule will start the next run.
    pub next_run: Mutex<Option<jiff::Timestamp>>,
    /// Ends that the agent before this one has told nobody, oldest first.
    untold: Mutex<Vec<Run>>,
    /// How it stands, for all who ask and for those who are told.
    pub watch: Arc<Watch>,
}

/// The agent.
pub struct Agent {
    /// Its name.
    pub name: String,
    repositories: BTreeMap<String, Arc<Repository>>,
}

impl Agent {
    /// With these repositories. Runs that a crash cut short are closed as NOT_RUN.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn new(name: String, contexts: Vec<Context>) -> Result<Self, StateError> {
        let mut repositories = BTreeMap::new();
        for context in contexts {
            let closed = close_interrupted(&context)?;
            let name = context.repository.name.clone();
            let (watch, untold) = observe::learn(&context, &closed)?;
            let repository = Repository {
                watch: Arc::new(watch),
                untold: Mutex::new(untold),
                context: Arc::new(context),
                current: Mutex::default(),
                planning: tokio::sync::Semaphore::new(1),
                next_run: Mutex::default(),
            };
            repositories.insert(name, Arc::new(repository));
        }
        Ok(Self { name, repositories })
    }

    /// All repositories, by name.
    pub fn repositories(&self) -> impl Iterator<Item = &Arc<Repository>> {
        self.repositories.values()
    }

    /// The repository with this name; an empty name is the only one's.
    ///
    /// # Errors
    /// When there is none.
    pub fn repository(&self, name: &str) -> Result<&Arc<Repository>, RpcFault> {
        if name.is_empty() && self.repositories.len() == 1 {
            return Ok(self.repositories.values().next().expect("there is one"));
        }
        let by_alias = || {
            let mut all = self.repositories.values();
            all.find(|it| !name.is_empty() && it.context.repository.alias.as_deref() == Some(name))
        };
        self.repositories.get(name).or_else(by_alias).ok_or_else(|| {
            // It must be named: to look for it again would not help.
            let code = if name.is_empty() { Code::InvalidArgument } else { Code::NotFound };
            let known = self.repositories.keys().cloned().collect::<Vec<_>>().join(", ");
            RpcFault::new(code, "no-such-repository", no_such_repository(name, "on this source"))
                .with_hint(format!("this agent's repositories are: {known}"))
        })
    }

    /// Finds a run wherever it is: as it is now, and its progress when it is under way.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(&self, id: &str) -> Result<(Run, Option<Progress>), RpcFault> {
        if id.is_empty() {
            return self.newest();
        }
        let id: RunId = id.parse().map_err(|fault| {
            RpcFault::new(Code::InvalidArgument, "invalid-argument", format!("run_id: {fault}"))
                .with_hint("assay-source runs lists them")
        })?;
        for repository in self.repositories.values() {
            if let Some(current) = repository.current().filter(|current| current.id == id) {
                return Ok((current.progress.get(), Some(current.progress)));
            }
            if let Ok(run) = repository.context.state.run(&id) {
                return Ok((run, None));
            }
        }
        Err(RpcFault::new(Code::NotFound, "no-such-run", format!("there is no run {id}"))
            .with_hint("assay-source runs lists those that there are"))
    }

    fn newest(&self) -> Result<(Run, Option<Progress>), RpcFault> {
        if let Some(current) = self.repositories.values().find_map(|repository| repository.current()) {
            return Ok((current.progress.get(), Some(current.progress)));
        }
        let ids = self.repositories.values().filter_map(|repository| {
            let id = repository.context.state.run_ids().ok()?.into_iter().next()?;
            Some((id, repository))
        });
        // Within a repository runs have an order; between several their times of start must do.
        let runs = ids.filter_map(|(id, repository)| repository.context.state.run(&id).ok());
        let started = |run: &Run| run.started.map_or(0, |time| time.seconds);
        runs.max_by(|left, right| started(left).cmp(&started(right)).then(left.id.cmp(&right.id)))
            .map(|run| (run, None))
            .ok_or_else(|| RpcFault::new(Code::NotFound, "no-such-run", "there has been no run yet"))
    }

    /// Tells what the agent before this one could not: that it ended in the middle of a run, or before the run's end was told.
    pub fn tell_ends_that_nobody_heard(&self) {
        for repository in self.repositories.values() {
            let untold =
                std::mem::take(&mut *repository.untold.lock().unwrap_or_else(PoisonError::into_inner));
            for run in untold {
                repository.tell_end(&run);
            }
        }
    }

    /// Stops all runs and waits until each has ended its mark and told the target, for `patience` at most.
    pub async fn stop(&self, patience: Duration) {
        let ending = self.repositories.values().map(|repository| async move {
            if let Some(current) = repository.current() {
                current.cancel.cancel();
            }
            // Until its end has been told, too.
            while repository.current().is_some() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        if tokio::time::timeout(patience, futures::future::join_all(ending)).await.is_err() {
            tracing::warn!("a run did not end in time; its mark may still be held");
        }
    }

    /// Asks a run to stop.
    ///
    /// # Errors
    /// When it is not under way.
    pub fn cancel(&self, id: &str) -> Result<Run, RpcFault> {
        let (run, _) = self.find(id)?;
        for repository in self.repositories.values() {
            if let Some(current) = repository.current().filter(|current| current.id.as_str() == run.id) {
                current.cancel.cancel();
                return Ok(current.progress.get());
            }
        }
        Err(RpcFault::new(Code::FailedPrecondition, "not-under-way", format!("run {} has ended", run.id)))
    }
}

/// How often an end is told when telling it panics. What is in the mailboxes by then is not put there again.
const TELL_TRIES: u32 = 2;

/// The repository's run is over when this is dropped, also by a panic: nothing leaves it busy for ever.
struct FreeAgain(Arc<Repository>);

impl Drop for FreeAgain {
    fn drop(&mut self) {
        *self.0.current.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Repository {
    fn current(&self) -> Option<Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The run that is under way.
    pub fn current_run(&self) -> Option<Run> {
        self.current().map(|current| current.progress.get())
    }

    /// Starts a run, unless one is under way: then its id is in the error's metadata, and nothing is started.
    ///
    /// # Errors
    /// `ABORTED` while a run is under way.
    pub fn start(self: &Arc<Self>, trigger: Trigger, options: Options) -> Result<Run, RpcFault> {
        let id = RunId::generate(jiff::Timestamp::now());
        let name = &self.context.repository.name;
        let current = {
            // Looked at and taken under one lock: of two triggers at once exactly one wins.
            let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(current) = current.as_ref() {
                let text = format!("run {} of {name} is under way", current.id);
                return Err(RpcFault::new(Code::Aborted, "run-under-way", text)
                    .with_run_id(current.id.as_str())
                    .with_hint(format!("watch it with: assay-source watch {}", current.id)));
            }
            let run = Run { sequence: self.context.state.next_sequence(), ..new_run(&id, name, trigger) };
            let progress = Progress::new(run);
            current.insert(Current { id: id.clone(), progress, cancel: CancellationToken::new() }).clone()
        };
        // From here on, whatever panics.
        let free = FreeAgain(Arc::clone(self));
        let run = current.progress.get();
        // A disk that does not take it does not stop the schedule: the run says itself what it cannot do without.
        self.context.state.save_run(&id, &run);
        let span = telemetry::of_run(&id);
        let options = Options { full_read: options.full_read || self.full_read_is_due(), ..options };
        let context = Arc::clone(&self.context);
        let attempt =
            Attempt::new(context, id, options, current.progress.clone(), current.cancel, self.due(trigger));
        let progress = current.progress;
        let repository = Arc::clone(self);
        tokio::spawn(async move {
            let _free = free;
            // In tasks of their own, so that a panic ends no more than they do.
            let ended = tokio::spawn(attempt.run().instrument(span)).await;
            if ended.is_err() {
                let closing = Arc::clone(&repository);
                drop(tokio::spawn(async move { closing.close_panicked() }).await);
            }
            for _ in 0..TELL_TRIES {
                let (telling, run) = (Arc::clone(&repository), progress.get());
                if tokio::spawn(async move { telling.tell_end(&run) }).await.is_ok() {
                    break;
                }
            }
        });
        Ok(run)
    }

    /// Which place a run that is triggered now has among those that wait, and for how long it may.
    fn due(&self, trigger: Trigger) -> Due {
        let proof = self.watch.standing().last_pass;
        let proven = proof.and_then(|pass| pass.mark.or(Some(pass.finished)));
        let now = jiff::Timestamp::now();
        let schedule = self.context.repository.schedule.as_ref().filter(|_| trigger == Trigger::Schedule);
        let slot_end = schedule.and_then(|schedule| schedule.next_slot(now));
        Due::new(trigger == Trigger::Schedule, proven, slot_end.map(|end| now.duration_until(end)))
    }

    /// What a run would do now. When this is dropped, its walk ends.
    ///
    /// # Errors
    /// `ABORTED` while a run is under way, which is about to change what a plan compares with, or another plan is made.
    pub async fn plan(&self, full_read: bool) -> Result<RunPlan, RpcFault> {
        let name = &self.context.repository.name;
        if let Some(current) = self.current() {
            let text = format!("run {} of {name} is under way", current.id);
            return Err(RpcFault::new(Code::Aborted, "run-under-way", text)
                .with_run_id(current.id.as_str())
                .with_hint(format!("watch it with: assay-source watch {}", current.id)));
        }
        let Ok(_alone) = self.planning.try_acquire() else {
            let text = format!("a plan of {name} is being made already");
            return Err(RpcFault::new(Code::Aborted, "busy", text).with_hint("wait for it to end"));
        };
        let every = self.context.repository.full_read_every;
        let runs = self.context.state.schedule().runs_since_full_read;
        let full_read = full_read || (every > 0 && runs.saturating_add(1) >= every);
        let stop = CancellationToken::new();
        let _stops_with_us = stop.clone().drop_guard();
        let planned = plan::plan(Arc::clone(&self.context), full_read, stop).await;
        let mut planned = planned
            .map_err(|fault| RpcFault::new(Code::FailedPrecondition, fault.reason, fault.message.clone()))?;
        let next = *self.next_run.lock().unwrap_or_else(PoisonError::into_inner);
        planned.next_run = next.map(assay_common::verdict::timestamp_to_proto);
        Ok(planned)
    }

    fn full_read_is_due(&self) -> bool {
        let every = self.context.repository.full_read_every;
        if every == 0 {
            return false;
        }
        let mut due = false;
        self.update_schedule(|schedule| {
            schedule.runs_since_full_read += 1;
            due = schedule.runs_since_full_read >= every;
            if due {
                schedule.runs_since_full_read = 0;
            }
        });
        due
    }

    /// Changes where the schedule stands; a disk that does not take it does not stop the schedule.
    pub fn update_schedule(&self, change: impl FnOnce(&mut ScheduleState)) {
        if let Err(error) = self.context.state.update_schedule(change) {
            let repository = &self.context.repository.name;
            tracing::warn!(repository, %error, "the schedule's state cannot be written");
        }
    }

    /// Tells of a run's end: metrics, traces, and all who want to hear of it.
    fn tell_end(&self, run: &Run) {
        observe::ended(&self.watch, run);
        if let Ok(id) = run.id.parse() {
            self.context.state.note_told(&id);
        }
    }

    fn close_panicked(&self) {
        if let Some(current) = self.current() {
            current.progress.update(|run| {
                end_not_run(
                    run,
                    "internal",
                    "the agent has a bug: its log tells where; the run was given up",
                );
            });
            let run = current.progress.get();
            self.context.state.save_run(&current.id, &run);
        }
    }
}

fn end_not_run(run: &mut Run, reason: &str, message: &str) {
    run.set_outcome(assay_proto::v1::Outcome::NotRun);
    (run.reason, run.message) = (reason.to_owned(), message.to_owned());
    run.finished = Some(assay_common::verdict::timestamp_to_proto(jiff::Timestamp::now()));
    run.set_phase(Phase::Done);
}

/// Runs that were under way when the agent ended have no outcome. They get one: a missed hour is a record too.
fn close_interrupted(context: &Context) -> Result<Vec<RunId>, StateError> {
    let mut closed = Vec::new();
    // Only the newest can be: the one before it had ended before that one started.
    for id in context.state.run_ids()?.into_iter().take(2) {
        let mut run = match context.state.run(&id) {
            Ok(run) => run,
            Err(error) => {
                tracing::warn!(run_id = %id, %error, "a run's record is left out");
                continue;
            }
        };
        if run.phase() != Phase::Done {
            end_not_run(&mut run, "agent-stopped", "the source agent ended while the run was under way");
            context.state.save_run(&id, &run);
            closed.push(id);
        }
    }
    Ok(closed)
}
