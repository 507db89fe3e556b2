//! Tells people and programs what came out: a command, a webhook, or mail. Nothing here holds anything up ([`crate::outbox`]).

mod certificate;
mod command;
mod config;
mod mail;
mod mailbox;
mod queues;
mod webhook;

use std::{fmt, path::Path, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    cli::{screen::safe, show},
    outbox::Counts,
    telemetry,
    tls::renewal,
    trouble,
    verdict::Outcome,
    watch::{About, Ended},
};

pub use config::{NotifySection, Way};
pub use mailbox::{MAX_WAITING, Mailbox};

/// How the id of a notice ends that says that something is over.
const OVER: &str = "/over";

/// What a notice is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// The data is bad.
    Fail,
    /// The check could not do its work.
    Inconclusive,
    /// A run ended before its check.
    NotRun,
    /// The first PASS after one of the others.
    Recovery,
    /// A PASS that counts as a proof. Sent each time, for receivers that alert when none arrives, and only if `on` names it.
    Pass,
    /// No PASS for longer than `max_age`.
    Overdue,
    /// Content changed although size, times and inode did not.
    ChangedWithoutTrace,
    /// A PASS rests on readings or carried results that are older than their limit, or the next PASS does so no longer.
    Coverage,
    /// The certificate with which the agent serves ends soon, or was renewed.
    Certificate,
    /// Something is wrong with the agent itself.
    Trouble,
    /// An operator tries whether notices arrive.
    Test,
}

impl fmt::Display for Event {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Fail => "FAIL",
            Self::Inconclusive => "INCONCLUSIVE",
            Self::NotRun => "NOT_RUN",
            Self::Recovery => "PASS again",
            Self::Pass => "PASS",
            Self::Overdue => "OVERDUE",
            Self::ChangedWithoutTrace => "CHANGED WITHOUT A TRACE",
            Self::Coverage => "COVERAGE",
            Self::Certificate => "CERTIFICATE",
            Self::Trouble => "TROUBLE",
            Self::Test => "TEST",
        })
    }
}

/// The newest PASS that holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastPass {
    /// Its run.
    pub run_id: String,
    /// Its generation.
    pub generation: Option<u64>,
    /// Until then the repository is proven good.
    pub mark: Option<Timestamp>,
    /// How long ago that was, in seconds.
    pub age_seconds: Option<u64>,
}

/// What is told: the JSON that a command reads and a webhook gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// Version of this record's form.
    pub version: u32,
    /// The same for every try, and at both ends for what both tell of one run.
    pub id: String,
    /// What it is about.
    pub event: Event,
    /// One line for a person.
    pub summary: String,
    /// "source" or "target": who tells.
    pub role: String,
    /// Its name.
    pub agent: String,
    /// Its host's name.
    pub host: String,
    /// The repository; empty in a test.
    pub repository: String,
    /// When it was told.
    pub time: Timestamp,
    /// The outcome of the newest run.
    pub outcome: Option<Outcome>,
    /// Its short stable word.
    pub reason: String,
    /// What the outcome means, in one sentence: a PASS claims what was looked at and no more.
    pub sentence: String,
    /// Why, for a person.
    pub message: String,
    /// Its id.
    pub run_id: String,
    /// Its generation.
    pub generation: Option<u64>,
    /// Its verdict in the target's ledger.
    pub verdict_id: String,
    /// The newest PASS that holds; null when there never was one.
    pub last_pass: Option<LastPass>,
}

impl Notice {
    /// About `ended`, the newest end.
    pub fn new(
        event: Event,
        about: &About,
        ended: Option<&Ended>,
        last_pass: Option<LastPass>,
        time: Timestamp,
    ) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let run_id = ended.map(|ended| ended.run_id.clone()).unwrap_or_default();
        // An OVERDUE is about the proof that has grown too old: it is one, whatever runs end meanwhile.
        let subject = match (event, &last_pass) {
            (Event::Overdue, Some(pass)) => pass.run_id.clone(),
            (Event::Overdue, None) => "never".to_owned(),
            _ => run_id.clone(),
        };
        let word = serde_json::to_value(event).ok().and_then(|word| word.as_str().map(str::to_owned));
        let mut notice = Self {
            version: 1,
            id: format!("{}/{}/{}", about.repository, subject, word.unwrap_or_default()),
            event,
            summary: String::new(),
            role: about.role.to_owned(),
            agent: about.agent.clone(),
            host,
            repository: about.repository.clone(),
            time,
            outcome: ended.map(|ended| ended.outcome),
            reason: ended.map(|ended| ended.reason.clone()).unwrap_or_default(),
            sentence: ended.map(|ended| ended.sentence.clone()).unwrap_or_default(),
            message: ended.map(|ended| ended.message.clone()).unwrap_or_default(),
            run_id,
            generation: ended.and_then(|ended| ended.generation),
            verdict_id: ended.map(|ended| ended.verdict_id.clone()).unwrap_or_default(),
            last_pass,
        };
        notice.summary = safe(&notice.in_a_line());
        notice
    }

    /// About content that changed without a trace in the run that has `ended`.
    pub fn of_traceless(about: &About, ended: &Ended, last_pass: Option<LastPass>) -> Self {
        let mut notice = Self::new(Event::ChangedWithoutTrace, about, Some(ended), last_pass, ended.finished);
        notice.message = ended.traceless.text();
        notice.summary = safe(&notice.in_a_line());
        notice
    }

    /// About the coverage of the PASS that has `ended`: it is too old, or, where it is within its limits, what was too old before is so
    /// no longer.
    pub fn of_coverage(about: &About, ended: &Ended, last_pass: Option<LastPass>) -> Self {
        let mut notice = Self::new(Event::Coverage, about, Some(ended), last_pass, ended.finished);
        let too_old = ended.too_old();
        notice.message = if too_old.is_empty() {
            notice.id.push_str(OVER);
            "over: all that the newest PASS rests on is within its limit".to_owned()
        } else {
            let hint = "read and check all of it now with `assay-source run --full-read --full-check`; when it comes again, raise \
                        max_reading_age or recheck_within, or let runs come more often";
            format!("too old: {}\nHINT: {hint}", too_old.join("; "))
        };
        notice.summary = safe(&notice.in_a_line());
        notice
    }

    /// A notice for trying whether notices arrive.
    pub fn test(role: &'static str, agent: &str) -> Self {
        let about = About { role, agent: agent.to_owned(), repository: String::new() };
        let mut notice = Self::new(Event::Test, &about, None, None, Timestamp::now());
        notice.id = format!("test/{}", notice.time);
        notice
    }

    /// About something that is wrong with the agent itself, or is no longer.
    pub fn of_trouble(about: &About, change: &trouble::Change) -> Self {
        let trouble::Change { trouble, is_over } = change;
        let now = Timestamp::now();
        let mut notice = Self::new(Event::Trouble, about, None, None, now);
        let state = if *is_over { "over: " } else { "" };
        notice.id = format!("{}/{}/{}/{state}", about.repository, trouble.kind, trouble.since);
        trouble.kind.as_str().clone_into(&mut notice.reason);
        notice.message = format!("{state}{}", trouble.message);
        notice.summary = safe(&notice.in_a_line());
        notice
    }

    /// True for the end of a state whose beginning has a notice of its own.
    fn is_over(&self) -> bool {
        self.id.ends_with(OVER)
    }

    fn in_a_line(&self) -> String {
        let Self { event, repository, host, reason, .. } = self;
        match event {
            Event::Certificate => format!("{event}: {} on {host}, {}", self.agent, self.message),
            Event::Trouble => {
                let about = if repository.is_empty() { &self.agent } else { repository };
                format!("{event}: {about} on {host}, {reason}: {}", self.message)
            }
            Event::Test => format!("{event}: notices from {} on {host} arrive", self.agent),
            Event::ChangedWithoutTrace | Event::Coverage => {
                let what = self.message.lines().next().unwrap_or_default();
                format!("{event}: {repository} on {host}, {what}; {}", self.proven())
            }
            Event::Recovery | Event::Pass | Event::Overdue => {
                format!("{event}: {repository} on {host}, {}", self.proven())
            }
            _ => format!("{event}: {repository} on {host}, {reason}; {}", self.proven()),
        }
    }

    fn proven(&self) -> String {
        match &self.last_pass {
            Some(LastPass { age_seconds: Some(age), .. }) => {
                format!("last proven good {} ago", show::age(*age))
            }
            _ => "never proven good".to_owned(),
        }
    }

    /// The JSON that Slack, Mattermost and similar services accept: the summary as `text`.
    pub fn slack(&self) -> String {
        serde_json::json!({ "text": self.summary }).to_string()
    }

    /// The notice as text, for mail and for webhooks with `body = "text"`.
    pub fn text(&self) -> String {
        let mut lines = vec![self.summary.clone(), String::new()];
        if !self.sentence.is_empty() && self.event != Event::Overdue {
            lines.push(safe(&self.sentence));
        }
        // Text of checkers and peers is marked, so that no line of it can be taken for one of ours.
        lines.extend(self.message.lines().map(|line| format!("| {}", safe(line))));
        lines.push(String::new());
        let mut fact = |name: &str, value: String| {
            if !value.is_empty() {
                lines.push(format!("{name:<12} {}", safe(&value)));
            }
        };
        fact("repository", self.repository.clone());
        fact("told by", format!("{} {} on {}", self.role, self.agent, self.host));
        fact("time", self.time.strftime("%Y-%m-%d %H:%M:%SZ").to_string());
        fact("run", self.run_id.clone());
        fact("generation", self.generation.map_or_else(String::new, |number| number.to_string()));
        fact("verdict", self.verdict_id.clone());
        if let Some(pass) = &self.last_pass {
            let mark = pass.mark.map(|mark| mark.strftime("%Y-%m-%d %H:%M:%SZ").to_string());
            fact("proven good", mark.unwrap_or_default());
        }
        if !self.run_id.is_empty() {
            lines.push(String::new());
            lines.push(match self.role.as_str() {
                "source" => format!("What to do: assay-source explain {}", self.run_id),
                _ => format!("What to do: assay-target explain {}", self.verdict_id),
            });
        }
        lines.push(String::new());
        lines.join("\n")
    }
}

impl crate::outbox::Message for Notice {
    const KIND: &'static str = "notice";

    fn run_id(&self) -> &str {
        &self.run_id
    }
}

/// Tells on all ways that are configured. Clones are of the same one.
#[derive(Debug, Clone, Default)]
pub struct Notifier {
    outlets: Arc<Vec<Mailbox>>,
    /// Held until the last clone is gone.
    _queues: Option<Arc<queues::Queues>>,
}

impl Notifier {
    /// Starts a task for each way. What waits is kept in memory only. Needs a runtime.
    pub fn start(ways: Vec<Way>) -> Self {
        Self::with(ways, queues::Queues::none())
    }

    /// The same for `agent`, whose queues are in the folder `place`, and takes up what waits there.
    pub fn start_in(ways: Vec<Way>, place: &Path, agent: &str) -> Self {
        Self::with(ways, queues::Queues::of(place, agent))
    }

    fn with(ways: Vec<Way>, queues: queues::Queues) -> Self {
        let folder = queues.folder.as_deref();
        let outlets = ways.into_iter().map(|way| Mailbox::start(way, folder)).collect();
        Self { outlets: Arc::new(outlets), _queues: Some(Arc::new(queues)) }
    }

    /// Tells all who want to hear of it. Returns when the notice is in their queues.
    pub fn tell(&self, notice: Notice) {
        let notice = Arc::new(notice);
        for outlet in self.outlets.iter().filter(|outlet| outlet.way().wants(&notice)) {
            outlet.post(&notice);
        }
    }

    /// Takes back what has not arrived and holds no longer; the word that it is over stays.
    pub fn withdraw(&self, repository: &str, event: Event) {
        for outlet in self.outlets.iter() {
            outlet.withdraw(repository, event);
        }
    }

    /// Each way's name and counts.
    pub fn counts(&self) -> impl Iterator<Item = (&str, &Counts)> {
        self.outlets.iter().map(|outlet| (outlet.way().name.as_str(), outlet.counts()))
    }

    /// Each way's name, and how many notices wait there.
    pub fn waiting(&self) -> impl Iterator<Item = (&str, usize)> {
        self.outlets.iter().map(|outlet| (outlet.way().name.as_str(), outlet.waiting()))
    }

    /// Waits until each notice has arrived or was tried in vain, for `patience` at most.
    pub async fn drain(&self, patience: Duration) {
        futures::future::join_all(self.outlets.iter().map(|outlet| outlet.drain(patience))).await;
    }
}

/// Tells of the agent's own troubles, and of the end of its certificate, for as long as it runs.
pub async fn tell_troubles(notifier: Notifier, role: &'static str, agent: String) {
    let mut teller = trouble::Teller::default();
    let mut certificate = certificate::Teller::default();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        telemetry::look_for_dropped();
        for change in teller.look() {
            let about = About { role, agent: agent.clone(), repository: change.trouble.repository.clone() };
            notifier.tell(Notice::of_trouble(&about, &change));
        }
        let about = About { role, agent: agent.clone(), repository: String::new() };
        certificate.tell(&notifier, &about, renewal::expires(), Timestamp::now());
    }
}

#[cfg(test)]
pub(crate) mod tests;
