//! What this agent makes known of itself: the record of each repository, the page of metrics, systemd's line, and who is told.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use assay_common::{
    cli::show,
    clock,
    id::RunId,
    metrics::{Facts, MetricsServer, Page, RepositoryFacts, RunQueueFacts},
    notify::{Notifier, tell_troubles},
    service_manager, supervise,
    tls::renewal,
    traceless::Found,
    traces::Tracer,
    trouble::Kind,
    watch::{Ended, Watch, look_after},
    writable,
};
use assay_proto::v1::Run;
use jiff::Timestamp;

use crate::{
    agent::{Agent, Repository},
    run::Context,
    state::StateError,
};

/// Who speaks in notices.
const ROLE: &str = "source";
/// How often systemd's line is written anew, when something has changed.
const STATUS_TICK: Duration = Duration::from_secs(2);

/// How the repository stands, from the runs on disk whose end was told, and the runs after those, oldest first. `closed` are the runs
/// that the agent before this one left open.
///
/// # Errors
/// When they cannot be listed.
pub fn learn(context: &Context, closed: &[RunId]) -> Result<(Watch, Vec<Run>), StateError> {
    let (mut last, mut last_pass, mut since, mut untold) = (None, None, None, Vec::new());
    let mut bound = None::<Timestamp>;
    let ids = context.state.run_ids()?;
    let told = context.state.told().and_then(|told| ids.iter().position(|id| *id == told));
    for (place, id) in ids.iter().enumerate() {
        // A record that cannot be read was told of in the log, and is nobody's proof.
        let Ok(run) = context.state.run(id) else { continue };
        let Some(ended) = Ended::of_run(&run) else { continue };
        // Without a note of what was told (a state of an older version) only what was closed just now was not.
        if told.map_or_else(|| closed.contains(id), |told| place < told) {
            untold.insert(0, run);
            continue;
        }
        since = ended.started.or(since);
        if !ended.is_proof() {
            // What an older run proved was there by then.
            bound = bound.into_iter().chain([ended.finished]).min();
        }
        if last.is_none() {
            last = Some(ended.clone());
        }
        if ended.is_proof() {
            last_pass = Some(ended);
            break;
        }
    }
    let repository = &context.repository;
    let since = since.unwrap_or_else(Timestamp::now);
    let watch = Watch::new(ROLE, &repository.name, repository.max_age, last, last_pass, since);
    if let Some(bound) = bound {
        watch.bound_proof(bound);
    }
    watch.learn_traceless(newest_traceless(context, &ids, &untold));
    Ok((watch, untold))
}

/// What the newest run found of content that changed without a trace. Runs that are still to be told of bring their own.
fn newest_traceless(context: &Context, ids: &[RunId], untold: &[Run]) -> Option<Found> {
    let is_untold = |id: &&RunId| untold.iter().any(|run| run.id == id.as_str());
    let runs = ids.iter().filter(|id| !is_untold(id)).filter_map(|id| context.state.run(id).ok());
    runs.filter_map(|run| Ended::of_run(&run)).find_map(|ended| ended.found_traceless())
}

/// A run has ended.
pub fn ended(watch: &Watch, run: &Run) {
    let Some(ended) = Ended::of_run(run) else {
        return;
    };
    let proven = if ended.is_proof() { Some(ended.clone()) } else { watch.standing().last_pass };
    watch.ended(ended, proven);
}

/// What stays the same for as long as the agent runs.
#[derive(Debug, Clone, Copy)]
pub struct Fixed {
    /// When it started.
    pub started: Timestamp,
}

/// Starts all that makes the agent known.
pub fn start(
    agent: &Arc<Agent>,
    (notifier, tracer): (&Notifier, &Tracer),
    metrics: Option<MetricsServer>,
    fixed: Fixed,
) {
    for repository in agent.repositories() {
        repository.watch.connect(&agent.name, notifier.clone(), tracer.clone());
        supervise::spawn("age", {
            let watch = Arc::clone(&repository.watch);
            move || look_after(Arc::clone(&watch))
        });
        supervise::spawn("state", {
            let repository = Arc::clone(repository);
            move || {
                let (context, state) = (Arc::clone(&repository.context), repository.context.state.path());
                let name = repository.context.repository.name.clone();
                writable::watch(state.to_owned(), Kind::StateUnusable, name, move || {
                    context.state.save_unsaved()
                })
            }
        });
    }
    supervise::spawn("clock", clock::watch);
    let (role, name, of_troubles) = (ROLE, agent.name.clone(), notifier.clone());
    supervise::spawn("troubles", move || tell_troubles(of_troubles.clone(), role, name.clone()));
    if let Some(metrics) = metrics {
        let (agent, notifier, tracer) = (Arc::clone(agent), notifier.clone(), tracer.clone());
        let page = Arc::new(move || {
            let now = Timestamp::now();
            Page::of(&facts(&agent, fixed), &notifier, &tracer, now)
        });
        let metrics = Arc::new(metrics);
        supervise::spawn("metrics", move || Arc::clone(&metrics).serve(Arc::clone(&page)));
    }
    let agent = Arc::clone(agent);
    supervise::spawn("systemd", move || tell_systemd(Arc::clone(&agent)));
}

async fn tell_systemd(agent: Arc<Agent>) {
    let mut tick = tokio::time::interval(STATUS_TICK);
    loop {
        tick.tick().await;
        service_manager::status(&line(&agent, Timestamp::now()));
    }
}

fn facts(agent: &Agent, fixed: Fixed) -> Facts {
    Facts {
        role: ROLE,
        agent: agent.name.clone(),
        version: env!("CARGO_PKG_VERSION"),
        started: Some(fixed.started),
        certificate_expiry: renewal::expires(),
        repositories: agent.repositories().map(|repository| repository_facts(repository)).collect(),
        checks: None,
        runs: agent.repositories().next().map(|repository| {
            let (copying, at_a_time, waiting) = repository.context.turns.counts();
            let (copying, at_a_time, waiting) = (copying as u64, at_a_time as u64, waiting as u64);
            RunQueueFacts { copying, at_a_time, waiting }
        }),
    }
}

fn repository_facts(repository: &Repository) -> RepositoryFacts {
    RepositoryFacts {
        repository: repository.context.repository.name.clone(),
        standing: repository.watch.standing(),
        max_age: repository.watch.max_age(),
        under_way: repository.current_run().is_some(),
        next_run: *repository.next_run.lock().unwrap_or_else(PoisonError::into_inner),
        missed_slots: Some(repository.context.state.schedule().missed),
        ..Default::default()
    }
}

/// For `systemctl status`: what is being done, and how old the proofs are, to the minute.
fn line(agent: &Agent, now: Timestamp) -> String {
    let parts = agent.repositories().map(|repository| {
        let name = &repository.context.repository.name;
        let proof = repository.watch.standing().age(now).map_or_else(
            || "never proven good".to_owned(),
            |age| format!("proven good {} ago", show::age(age.as_secs() / 60 * 60)),
        );
        match repository.current_run() {
            Some(run) => format!("{name}: {proof}, {}", show::phase(run.phase())),
            None => format!("{name}: {proof}"),
        }
    });
    parts.collect::<Vec<_>>().join("; ")
}
