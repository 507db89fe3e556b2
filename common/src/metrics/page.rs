//! What stands on the page. Every family is there at both ends, with or without values: alert rules and dashboards are checked
//! against these names.

use std::sync::atomic::AtomicU64;

use jiff::Timestamp;
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::{
    clock,
    notify::Notifier,
    outbox::Counts,
    supervise, telemetry,
    traces::Tracer,
    trouble,
    verdict::{Outcome, Trust, timestamp_from_proto},
    watch::Standing,
};

type Labels = Vec<(String, String)>;
type Gauges = Family<Labels, Gauge<f64, AtomicU64>>;
type Counters = Family<Labels, Counter>;

/// What a target knows of a repository's store.
#[derive(Debug, Clone, Default)]
pub struct StoreFacts {
    /// Sealed generations.
    pub generations: u64,
    /// Number of the newest one, and of the newest verified one.
    pub latest: Option<u64>,
    /// See `latest`.
    pub verified: Option<u64>,
    /// Content of the newest generation, in bytes.
    pub content_bytes: Option<u64>,
    /// Content that the newest generation brought, in bytes.
    pub new_bytes: Option<u64>,
    /// Free room on the store's file system, in bytes.
    pub free_bytes: u64,
}

/// The newest negative control.
#[derive(Debug, Clone, Copy)]
pub struct ControlFacts {
    /// Whether the checker's word counts.
    pub trust: Trust,
    /// When it was made.
    pub time: Timestamp,
}

/// The newest scrub.
#[derive(Debug, Clone, Copy)]
pub struct ScrubFacts {
    /// When it ended.
    pub time: Timestamp,
    /// Files that are not what their manifest says, and have not been healed.
    pub damaged_files: u64,
}

/// The newest restore.
#[derive(Debug, Clone, Copy)]
pub struct RestoreFacts {
    /// When it ended.
    pub time: Timestamp,
    /// How long it took.
    pub seconds: f64,
}

/// What is known of one repository.
#[derive(Debug, Clone, Default)]
pub struct RepositoryFacts {
    /// Its name.
    pub repository: String,
    /// The record.
    pub standing: Standing,
    /// How old the newest proof may become.
    pub max_age: Option<std::time::Duration>,
    /// True while a run or a check is under way.
    pub under_way: bool,
    /// When the schedule starts the next run; the source knows.
    pub next_run: Option<Timestamp>,
    /// Slots that passed without a run; the source knows.
    pub missed_slots: Option<u64>,
    /// The target knows.
    pub store: Option<StoreFacts>,
    /// The target knows.
    pub control: Option<ControlFacts>,
    /// The target knows.
    pub scrub: Option<ScrubFacts>,
    /// Where one was made.
    pub restore: Option<RestoreFacts>,
}

/// What an agent knows.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// "source" or "target".
    pub role: &'static str,
    /// Its name.
    pub agent: String,
    /// Of its build.
    pub version: &'static str,
    /// When it started.
    pub started: Option<Timestamp>,
    /// The end of its certificate.
    pub certificate_expiry: Option<Timestamp>,
    /// Its repositories.
    pub repositories: Vec<RepositoryFacts>,
    /// The queue of checks; `None` of an agent that makes none.
    pub checks: Option<CheckQueueFacts>,
    /// The queue of runs; `None` of an agent that starts none.
    pub runs: Option<RunQueueFacts>,
}

/// The checks of all repositories.
#[derive(Debug, Clone, Copy, Default)]
pub struct CheckQueueFacts {
    /// Run now.
    pub running: u64,
    /// May run at a time.
    pub at_a_time: u64,
    /// Wait for one of those to end.
    pub waiting: u64,
    /// Since when the one waits that has waited longest.
    pub oldest_since: Option<Timestamp>,
}

/// The runs of all repositories.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunQueueFacts {
    /// Copy now.
    pub copying: u64,
    /// May copy at a time.
    pub at_a_time: u64,
    /// Wait for their turn.
    pub waiting: u64,
}

/// The page that is being made.
pub struct Page {
    registry: Registry,
    now: Timestamp,
}

fn seconds(time: Timestamp) -> f64 {
    time.as_millisecond() as f64 / 1000.0
}

fn label(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Pass => "pass",
        Outcome::Fail => "fail",
        Outcome::Inconclusive => "inconclusive",
        Outcome::NotRun => "not_run",
    }
}

const OUTCOMES: [Outcome; 4] = [Outcome::Pass, Outcome::Fail, Outcome::Inconclusive, Outcome::NotRun];

impl Page {
    /// The whole page, as OpenMetrics text.
    pub fn of(facts: &Facts, notifier: &Notifier, tracer: &Tracer, now: Timestamp) -> String {
        let mut page = Self { registry: Registry::with_prefix("assay"), now };
        page.agent(facts);
        page.queues(facts);
        page.proof(&facts.repositories);
        page.runs(&facts.repositories);
        page.readings(&facts.repositories);
        page.schedule(&facts.repositories);
        page.store(&facts.repositories);
        page.trust(&facts.repositories);
        page.notices(notifier);
        page.traces(tracer);
        page.own_troubles();
        let mut text = String::new();
        match encode(&mut text, &page.registry) {
            Ok(()) => text,
            // A String takes everything.
            Err(error) => unreachable!("{error}"),
        }
    }

    fn gauge(&mut self, name: &str, help: &str) -> Gauges {
        let family = Gauges::default();
        self.registry.register(name, help, family.clone());
        family
    }

    fn counter(&mut self, name: &str, help: &str) -> Counters {
        let family = Counters::default();
        self.registry.register(name, help, family.clone());
        family
    }

    fn agent(&mut self, facts: &Facts) {
        let build = self.gauge("build_info", "Version, role and name of this agent; always 1");
        let labels =
            vec![label("version", facts.version), label("role", facts.role), label("agent", &facts.agent)];
        build.get_or_create(&labels).set(1.0);
        for (name, help, time) in [
            ("start_time_seconds", "When this agent started", facts.started),
            (
                "certificate_expiry_timestamp_seconds",
                "When this agent's certificate, an intermediate that it needs, or its CA ends",
                facts.certificate_expiry,
            ),
        ] {
            let gauge = Gauge::<f64, AtomicU64>::default();
            gauge.set(time.map_or(f64::NAN, seconds));
            self.registry.register(name, help, gauge);
        }
    }

    fn number(&mut self, name: &str, help: &str, value: f64) {
        let gauge = Gauge::<f64, AtomicU64>::default();
        gauge.set(value);
        self.registry.register(name, help, gauge);
    }

    /// Who waits for whom.
    fn queues(&mut self, facts: &Facts) {
        if let Some(checks) = facts.checks {
            let oldest =
                checks.oldest_since.map_or(0.0, |since| (seconds(self.now) - seconds(since)).max(0.0));
            self.number("checks_running", "Checks that run now", checks.running as f64);
            self.number("checks_at_a_time", "Checks that may run at a time", checks.at_a_time as f64);
            self.number(
                "checks_waiting",
                "Checks that wait for one of those that run to end",
                checks.waiting as f64,
            );
            self.number(
                "checks_oldest_wait_seconds",
                "How long the check has waited that waits longest; 0 when none waits",
                oldest,
            );
        }
        if let Some(runs) = facts.runs {
            self.number("runs_copying", "Runs that copy now", runs.copying as f64);
            self.number("runs_at_a_time", "Runs that may copy at a time", runs.at_a_time as f64);
            self.number("runs_waiting", "Runs that wait for their turn", runs.waiting as f64);
        }
    }

    fn proof(&mut self, repositories: &[RepositoryFacts]) {
        let age = self.gauge(
            "last_pass_age_seconds",
            "Age of the newest PASS that holds, counted from its mark; +Inf when there never was one",
        );
        let time = self.gauge(
            "last_pass_timestamp_seconds",
            "Mark of the newest PASS that holds: until then proven good",
        );
        let live = self.gauge(
            "last_pass_live_proven",
            "1 when the newest PASS that holds claims that the live repository was good at its mark, as far as it was covered",
        );
        let not_covered = self.gauge(
            "last_pass_not_covered_parts",
            "Parts that nobody looked at for the newest PASS that holds: its sentence names the first of them",
        );
        let carried = self.gauge(
            "last_pass_carried_parts",
            "Parts of the check whose result was carried over for the newest PASS that holds",
        );
        let oldest_carried = self.gauge(
            "last_pass_oldest_carried_timestamp_seconds",
            "When the part was checked that was checked longest ago; absent when no result was carried",
        );
        let max_age = self.gauge(
            "max_age_seconds",
            "How old the newest PASS may become (max_age); absent when nothing is set",
        );
        for facts in repositories {
            let labels = vec![label("repository", &facts.repository)];
            let known = facts.standing.age(self.now).map_or(f64::INFINITY, |age| age.as_secs_f64());
            age.get_or_create(&labels).set(known);
            if let Some(mark) = facts.standing.last_pass.as_ref().and_then(|pass| pass.mark) {
                time.get_or_create(&labels).set(seconds(mark));
            }
            if let Some(pass) = &facts.standing.last_pass {
                live.get_or_create(&labels).set(f64::from(u8::from(pass.proves_live())));
                let count = pass.claims.as_ref().map_or(0, |claims| claims.not_covered);
                not_covered.get_or_create(&labels).set(count as f64);
                let claims = pass.claims.clone().unwrap_or_default();
                carried.get_or_create(&labels).set(claims.parts_carried as f64);
                if let Some(oldest) = claims.oldest_carried.as_ref().and_then(timestamp_from_proto) {
                    oldest_carried.get_or_create(&labels).set(seconds(oldest));
                }
            }
            if let Some(limit) = facts.max_age {
                max_age.get_or_create(&labels).set(limit.as_secs_f64());
            }
        }
    }

    fn runs(&mut self, repositories: &[RepositoryFacts]) {
        let outcome = self.gauge(
            "last_run_outcome",
            "1 for the outcome of the newest run (source) or verdict (target), else 0",
        );
        let finished = self.gauge("last_run_timestamp_seconds", "When the newest run or verdict ended");
        let duration = self.gauge("last_run_duration_seconds", "How long the newest run took");
        let phases = self.gauge("last_run_phase_seconds", "How long each phase of the newest run took");
        let content = self.gauge("last_run_content_bytes", "Content of the newest run's tree");
        let read = self.gauge("last_run_read_bytes", "Bytes that the newest run read");
        let sent = self.gauge("last_run_sent_bytes", "Content that the newest run sent, before compression");
        let wire = self.gauge("last_run_wire_bytes", "Bytes that the newest run sent over the connection");
        let dropped =
            self.gauge("last_run_dropped_entries", "Entries of the base that were gone in the newest run");
        let under_way = self.gauge("run_under_way", "1 while a run or a check is under way, else 0");
        let ends =
            self.counter("runs", "Runs (source) or verdicts (target) since the agent started, by outcome");
        for facts in repositories {
            let name = label("repository", &facts.repository);
            let labels = vec![name.clone()];
            under_way.get_or_create(&labels).set(f64::from(u8::from(facts.under_way)));
            for (which, count) in OUTCOMES.into_iter().zip(facts.standing.ends) {
                ends.get_or_create(&vec![name.clone(), label("outcome", word(which))]).inc_by(count);
            }
            let Some(last) = &facts.standing.last else {
                continue;
            };
            for which in OUTCOMES {
                let is_it = f64::from(u8::from(last.outcome == which));
                outcome.get_or_create(&vec![name.clone(), label("outcome", word(which))]).set(is_it);
            }
            finished.get_or_create(&labels).set(seconds(last.finished));
            if let Some(started) = last.started {
                let took = std::time::Duration::try_from(started.duration_until(last.finished));
                duration.get_or_create(&labels).set(took.unwrap_or_default().as_secs_f64());
            }
            for phase in &last.phases {
                let labels = vec![name.clone(), label("phase", phase.name)];
                phases.get_or_create(&labels).set(phase.took.as_secs_f64());
            }
            if let Some(counts) = &last.counts {
                for (family, value) in [
                    (&content, counts.total_bytes),
                    (&read, counts.bytes_read),
                    (&sent, counts.bytes_sent),
                    (&wire, counts.wire_bytes_out),
                    (&dropped, counts.entries_dropped),
                ] {
                    family.get_or_create(&labels).set(value as f64);
                }
            }
        }
    }

    /// When the files were read last, and which of them changed without a trace.
    fn readings(&mut self, repositories: &[RepositoryFacts]) {
        let reread = self.gauge(
            "last_run_reread_bytes",
            "Unchanged content that the newest run read again, because it had its turn",
        );
        let oldest = self.gauge(
            "oldest_reading_timestamp_seconds",
            "When the file was read that was read longest ago, as of the newest run or verdict; absent when that does not say",
        );
        let files = self.gauge(
            "changed_without_trace_files",
            "Files whose content changed although size, times and inode did not, in the newest run that found any",
        );
        let time = self.gauge(
            "changed_without_trace_timestamp_seconds",
            "When the newest run ended that found content that changed without a trace; absent when none did",
        );
        for facts in repositories {
            let labels = vec![label("repository", &facts.repository)];
            if let Some(last) = &facts.standing.last {
                if let Some(counts) = &last.counts {
                    reread.get_or_create(&labels).set(counts.bytes_reread as f64);
                }
                if let Some(read) = last.oldest_reading {
                    oldest.get_or_create(&labels).set(seconds(read));
                }
            }
            if let Some(found) = &facts.standing.traceless {
                files.get_or_create(&labels).set(found.traceless.files as f64);
                time.get_or_create(&labels).set(seconds(found.time));
            }
        }
    }

    fn schedule(&mut self, repositories: &[RepositoryFacts]) {
        let next = self.gauge(
            "next_run_timestamp_seconds",
            "When the schedule starts the next run; absent without a schedule",
        );
        let missed = self.counter(
            "missed_slots",
            "Scheduled slots that passed without a run, since the agent's state was made",
        );
        for facts in repositories {
            let labels = vec![label("repository", &facts.repository)];
            if let Some(time) = facts.next_run {
                next.get_or_create(&labels).set(seconds(time));
            }
            if let Some(count) = facts.missed_slots {
                missed.get_or_create(&labels).inc_by(count);
            }
        }
    }

    fn store(&mut self, repositories: &[RepositoryFacts]) {
        let generations = self.gauge("generations", "Sealed generations in the store");
        let latest = self.gauge("latest_generation", "Number of the newest generation");
        let verified = self.gauge("verified_generation", "Number of the newest verified generation");
        let content = self.gauge("latest_generation_content_bytes", "Content of the newest generation");
        let stored = self.gauge(
            "latest_generation_stored_bytes",
            "Content that the newest generation does not share with the one before",
        );
        let free = self.gauge("store_free_bytes", "Free room on the file system of the store");
        for facts in repositories {
            let labels = vec![label("repository", &facts.repository)];
            let Some(store) = &facts.store else {
                continue;
            };
            for (family, value) in [
                (&generations, Some(store.generations)),
                (&latest, store.latest),
                (&verified, store.verified),
                (&content, store.content_bytes),
                (&stored, store.new_bytes),
                (&free, Some(store.free_bytes)),
            ] {
                if let Some(value) = value {
                    family.get_or_create(&labels).set(value as f64);
                }
            }
        }
    }

    fn trust(&mut self, repositories: &[RepositoryFacts]) {
        let trust = self.gauge(
            "negative_control_trust",
            "1 for what the newest negative control says of the checker, else 0",
        );
        let control =
            self.gauge("negative_control_timestamp_seconds", "When the newest negative control was made");
        let scrub = self.gauge("scrub_timestamp_seconds", "When the newest scrub ended");
        let damaged = self.gauge("scrub_damaged_files", "Files of the store that are not what was sealed");
        let restore = self.gauge("restore_timestamp_seconds", "When the newest restore ended");
        let took = self.gauge("restore_duration_seconds", "How long the newest restore took");
        for facts in repositories {
            let name = label("repository", &facts.repository);
            let labels = vec![name.clone()];
            if let Some(known) = facts.control {
                for which in [Trust::Trusted, Trust::NotTrusted, Trust::Unknown] {
                    let is_it = f64::from(u8::from(which == known.trust));
                    trust.get_or_create(&vec![name.clone(), label("trust", which.as_str())]).set(is_it);
                }
                control.get_or_create(&labels).set(seconds(known.time));
            }
            if let Some(known) = facts.scrub {
                scrub.get_or_create(&labels).set(seconds(known.time));
                damaged.get_or_create(&labels).set(known.damaged_files as f64);
            }
            if let Some(known) = facts.restore {
                restore.get_or_create(&labels).set(seconds(known.time));
                took.get_or_create(&labels).set(known.seconds);
            }
        }
    }

    fn notices(&mut self, notifier: &Notifier) {
        let waiting = self.gauge("notices_waiting", "Notices that have not arrived yet, by way");
        for (way, count) in notifier.waiting() {
            waiting.get_or_create(&vec![label("way", way)]).set(count as f64);
        }
        let notices =
            self.counter("notices", "Notices since the agent started, by way and by what became of them");
        for (way, counts) in notifier.counts() {
            for (result, count) in counts.by_result() {
                let labels = vec![label("way", way), label("result", result)];
                notices.get_or_create(&labels).inc_by(count);
            }
        }
    }

    /// What is wrong with the agent itself.
    fn own_troubles(&mut self) {
        let family = self.gauge("trouble", "1 while the agent itself has this trouble, else 0");
        let now = trouble::all();
        for kind in trouble::Kind::ALL {
            let holds = now.iter().any(|trouble| trouble.kind == kind);
            family.get_or_create(&vec![label("kind", kind.as_str())]).set(f64::from(u8::from(holds)));
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let tasks = Gauge::<f64, AtomicU64>::default();
            tasks.set(runtime.metrics().num_alive_tasks() as f64);
            self.registry.register("tasks", "Tasks of the agent's runtime that are alive", tasks);
        }
        for (name, help, count) in [
            ("panics", "Panics of the agent's tasks since it started", supervise::panics()),
            (
                "log_lines_lost",
                "Lines of the log that could not be written since the agent started",
                telemetry::lost_lines(),
            ),
            ("clock_jumps", "Jumps of this host's clock since the agent started", clock::jumps()),
        ] {
            let counter = Counter::<u64>::default();
            counter.inc_by(count);
            self.registry.register(name, help, counter);
        }
    }

    fn traces(&mut self, tracer: &Tracer) {
        let traces = self.counter("traces", "Traces since the agent started, by what became of them");
        for (result, count) in tracer.counts().into_iter().flat_map(Counts::by_result) {
            traces.get_or_create(&vec![label("result", result)]).inc_by(count);
        }
    }
}
