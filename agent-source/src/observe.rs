//! What this agent makes known of itself: the record of each repository, the page of metrics, systemd's line, and who is told.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use assay_common::{
    cli::show,
    metrics::{Facts, MetricsServer, Page, RepositoryFacts},
    notify::Notifier,
    service_manager,
    tls::renewal,
    traces::Tracer,
    watch::{Ended, Watch, look_after},
};
use assay_proto::v1::Run;
use jiff::Timestamp;

use crate::{
    agent::{Agent, Repository},
    run::Context,
    state::StateError,
};

/// How often systemd's line is written anew, when something has changed.
const STATUS_TICK: Duration = Duration::from_secs(2);

/// How the repository stands, from the runs on disk.
///
/// # Errors
/// When they cannot be listed.
pub fn learn(context: &Context) -> Result<Watch, StateError> {
    let (mut last, mut last_pass, mut since) = (None, None, None);
    for id in context.state.run_ids()? {
        // A record that cannot be read was told of in the log, and is nobody's proof.
        let Some(ended) = context.state.run(&id).ok().as_ref().and_then(Ended::of_run) else {
            continue;
        };
        since = ended.started.or(since);
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
    Ok(Watch::new("source", &repository.name, repository.max_age, last, last_pass, since))
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
        tokio::spawn(look_after(Arc::clone(&repository.watch)));
    }
    if let Some(metrics) = metrics {
        let (agent, notifier, tracer) = (Arc::clone(agent), notifier.clone(), tracer.clone());
        tokio::spawn(metrics.serve(move || {
            let now = Timestamp::now();
            Page::of(&facts(&agent, fixed), &notifier, &tracer, now)
        }));
    }
    let agent = Arc::clone(agent);
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(STATUS_TICK);
        loop {
            tick.tick().await;
            service_manager::status(&line(&agent, Timestamp::now()));
        }
    });
}

fn facts(agent: &Agent, fixed: Fixed) -> Facts {
    Facts {
        role: "source",
        agent: agent.name.clone(),
        version: env!("CARGO_PKG_VERSION"),
        started: Some(fixed.started),
        certificate_expiry: renewal::expires(),
        repositories: agent.repositories().map(|repository| repository_facts(repository)).collect(),
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
