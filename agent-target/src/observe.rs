//! What this agent makes known of itself: the record of each repository, the page of metrics, systemd's line, and who is told.

use std::{path::PathBuf, sync::Arc, time::Duration};

use assay_common::{
    cli::show,
    clock,
    metrics::{
        CheckQueueFacts, ControlFacts, Facts, MetricsServer, Page, RepositoryFacts, RestoreFacts, ScrubFacts,
        StoreFacts,
    },
    notify::{Notifier, tell_troubles},
    service_manager, supervise,
    tls::renewal,
    traces::Tracer,
    trouble::Kind,
    watch::{Ended, Watch, look_after},
    writable,
};
use jiff::Timestamp;

use crate::{check_queue::CheckQueue, repository::Repository, restore::last_complete, service::Repositories};

/// Who speaks in notices.
const ROLE: &str = "target";
/// How often systemd's line is written anew, when something has changed.
const STATUS_TICK: Duration = Duration::from_secs(5);

/// Verdicts that are looked at for content that changed without a trace.
const VERDICTS_LOOKED_AT: usize = 500;

/// How the repository stands, from its ledger as far as it was told, and the verdicts after that, oldest first: the agent before this
/// one ended before it had told of them.
pub fn learn(repository: &Repository) -> (Watch, Vec<Ended>) {
    let told = repository.store.told();
    let (mut last, mut untold) = (None, Vec::new());
    for (id, verdict) in repository.verdicts() {
        let ended = Ended::of_verdict(&id, &verdict);
        // Ids have leading zeros. In a store of an older version all counts as told.
        if told.as_ref().is_none_or(|told| id <= *told) {
            last = Some(ended);
            break;
        }
        untold.insert(0, ended);
    }
    if told.is_none() {
        note_told(repository, last.as_ref().map_or("", |last| last.verdict_id.as_str()));
    }
    let proven = proven(repository);
    let generations = repository.store.generations().unwrap_or_default();
    let first = generations.first().and_then(|first| repository.store.record(*first).ok());
    let since = first.map_or_else(Timestamp::now, |record| record.sealed);
    let config = &repository.config;
    let watch = Watch::new(ROLE, &config.name, config.max_age, last, proven, since);
    // A generation that was checked again tells of its run once more: the newest generation counts.
    let verdicts = repository.verdicts().skip(untold.len()).take(VERDICTS_LOOKED_AT);
    let found = verdicts.filter_map(|(id, verdict)| Ended::of_verdict(&id, &verdict).found_traceless());
    watch.learn_traceless(found.max_by_key(|found| found.generation));
    (watch, untold)
}

fn note_told(repository: &Repository, id: &str) {
    if let Err(error) = repository.store.note_told(id) {
        let repository = &repository.config.name;
        tracing::warn!(repository, verdict = id, %error, "a verdict may be told again by the next start");
    }
}

/// The newest PASS that holds: that of the generation that is called verified.
fn proven(repository: &Repository) -> Option<Ended> {
    let (id, verdict) = repository.last_conclusive(repository.store.verified()?)?;
    // A control that came after the verdict counts.
    let (sentence, claims) = verdict.says_under(repository.trust_in(&verdict));
    Some(Ended { sentence, claims: Some(claims), ..Ended::of_verdict(&id, &verdict) })
}

/// Tells of a verdict. [`Repository::tell_verdicts`] calls this in the order of the ledger.
pub fn ended(repository: &Repository, ended: Ended) {
    let id = ended.verdict_id.clone();
    repository.watch.ended(ended, proven(repository));
    note_told(repository, &id);
}

/// A negative control has ended: which PASS counts may have changed.
pub fn proved(repository: &Repository) {
    repository.watch.proved(proven(repository));
}

/// What stays the same for as long as the agent runs.
#[derive(Debug, Clone)]
pub struct Fixed {
    /// Name of the agent.
    pub agent: String,
    /// Folder of the store.
    pub store: PathBuf,
    /// When it started.
    pub started: Timestamp,
}

/// Starts all that makes the agent known.
pub fn start(
    repositories: &Arc<Repositories>,
    (notifier, tracer): (&Notifier, &Tracer),
    metrics: Option<MetricsServer>,
    fixed: Fixed,
) {
    for repository in repositories.iter() {
        repository.watch.connect(&fixed.agent, notifier.clone(), tracer.clone());
        // The agent before this one may have ended between a verdict and its telling.
        repository.tell_verdicts();
        supervise::spawn("age", {
            let watch = Arc::clone(&repository.watch);
            move || look_after(Arc::clone(&watch))
        });
    }
    supervise::spawn("clock", clock::watch);
    supervise::spawn("store", {
        let store = fixed.store.clone();
        move || writable::watch(store.clone(), Kind::StoreUnusable, String::new(), || true)
    });
    let (role, name, of_troubles) = (ROLE, fixed.agent.clone(), notifier.clone());
    supervise::spawn("troubles", move || tell_troubles(of_troubles.clone(), role, name.clone()));
    if let Some(metrics) = metrics {
        let (repositories, notifier, tracer) = (Arc::clone(repositories), notifier.clone(), tracer.clone());
        let page = Arc::new(move || {
            let now = Timestamp::now();
            Page::of(&facts(&repositories, &fixed), &notifier, &tracer, now)
        });
        let metrics = Arc::new(metrics);
        supervise::spawn("metrics", move || Arc::clone(&metrics).serve(Arc::clone(&page)));
    }
    let repositories = Arc::clone(repositories);
    supervise::spawn("systemd", move || tell_systemd(Arc::clone(&repositories)));
}

async fn tell_systemd(repositories: Arc<Repositories>) {
    let mut tick = tokio::time::interval(STATUS_TICK);
    loop {
        tick.tick().await;
        service_manager::status(&line(&repositories, Timestamp::now()));
    }
}

fn facts(repositories: &Repositories, fixed: &Fixed) -> Facts {
    Facts {
        role: ROLE,
        agent: fixed.agent.clone(),
        version: env!("CARGO_PKG_VERSION"),
        started: Some(fixed.started),
        certificate_expiry: renewal::expires(),
        repositories: repositories.iter().map(|repository| repository_facts(repository)).collect(),
        checks: repositories.iter().next().map(|repository| check_queue(&repository.checks)),
        runs: None,
    }
}

fn check_queue(queue: &CheckQueue) -> CheckQueueFacts {
    let waiting = queue.waiting();
    CheckQueueFacts {
        running: queue.running() as u64,
        at_a_time: queue.at_a_time() as u64,
        waiting: waiting.len() as u64,
        oldest_since: waiting.iter().map(|waiting| waiting.since).min(),
    }
}

fn repository_facts(repository: &Repository) -> RepositoryFacts {
    let store = &repository.store;
    let generations = store.generations().unwrap_or_default();
    let latest = generations.last().and_then(|latest| store.record(*latest).ok());
    RepositoryFacts {
        repository: repository.config.name.clone(),
        standing: repository.watch.standing(),
        max_age: repository.watch.max_age(),
        under_way: repository.occupancy.now().is_some(),
        store: Some(StoreFacts {
            generations: generations.len() as u64,
            latest: latest.as_ref().map(|record| record.generation),
            verified: store.verified().map(|number| number.0),
            content_bytes: latest.as_ref().map(|record| record.total_bytes),
            new_bytes: latest.as_ref().map(|record| record.new_bytes),
            free_bytes: store.free_bytes(),
        }),
        control: repository
            .control()
            .map(|control| ControlFacts { trust: control.trust(), time: control.time }),
        scrub: scrub(repository),
        restore: restore(repository),
        ..Default::default()
    }
}

/// The newest scrub that came to its end, and what is rotten now: what a run has healed since counts no longer.
fn scrub(repository: &Repository) -> Option<ScrubFacts> {
    let rot = repository.rot();
    let time = rot.last()?.finished?;
    Some(ScrubFacts { time, damaged_files: rot.unhealed() })
}

/// The newest restore that brought back all that it was to.
fn restore(repository: &Repository) -> Option<RestoreFacts> {
    let done = last_complete(repository.store.path())?;
    Some(RestoreFacts { time: done.time, seconds: done.seconds })
}

/// For `systemctl status`: how old the proofs are, to the minute.
fn line(repositories: &Repositories, now: Timestamp) -> String {
    let parts = repositories.iter().map(|repository| {
        let name = &repository.config.name;
        let proof = repository.watch.standing().age(now).map_or_else(
            || "never proven good".to_owned(),
            |age| format!("proven good {} ago", show::age(age.as_secs() / 60 * 60)),
        );
        match repository.occupancy.now() {
            Some(now) => format!("{name}: {proof}, run {}", now.run),
            None => format!("{name}: {proof}"),
        }
    });
    parts.collect::<Vec<_>>().join("; ")
}
