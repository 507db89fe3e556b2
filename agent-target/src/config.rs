//! The target agent's configuration: a file, and a folder of further repositories. Relative paths start at the file's own folder.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    time::Duration,
};

use assay_common::{
    config::{self, ConfigError, ConfigText, Size, Span, SpanOrNever, ValueFault},
    fidelity::{CopyRules, SpecialFile, is_pattern},
    id::is_plain_name,
    metrics::MetricsSection,
    notify::{NotifySection, Way},
    pki::authority::{self, ReachableKey},
    profile::{Limits, Profile, ProfileError, TargetNames, Value},
    telemetry::LogFormat,
    tls::{
        TlsFiles,
        revocation::{Revoked, RevokedSetting},
    },
    traces::{Collector, TracesSection},
};
use serde::Deserialize;

use crate::{
    check::{IoClass, Priority, sandbox},
    check_queue::{CheckQueue, DEFAULT_WAIT, default_at_a_time},
    keep::retention::Retention,
    userns::Account,
    web::WebSection,
};

mod account;

/// A configuration that has been checked as far as that goes without running anything.
#[derive(Debug)]
pub struct Config {
    /// `[agent]`.
    pub agent: AgentSection,
    /// This agent's certificate.
    pub tls: TlsFiles,
    /// The operator's, for the command line.
    pub operator_tls: TlsFiles,
    /// Private keys of the certificate authority that lie in reach of this agent.
    pub authority_keys: Vec<ReachableKey>,
    /// Certificates that are not accepted.
    pub revoked: Revoked,
    /// `[limits]`.
    pub limits: PeerLimits,
    /// `[metrics]`.
    pub metrics: Option<MetricsSection>,
    /// `[web]`.
    pub web: Option<WebSection>,
    /// `[traces]`.
    pub traces: Option<Collector>,
    /// `[[notify]]`.
    pub notify: Vec<Way>,
    /// The repositories.
    pub repositories: Vec<Repository>,
}

/// How long a source may be silent. What else it may ask for is in [`assay_common::limits`].
#[derive(Debug, Clone, Copy)]
pub struct PeerLimits {
    /// From a call to the first message of its stream.
    pub first_message: Duration,
    /// From one message of a stream to the next. A source that walks over what has not changed has nothing to say.
    pub idle: Duration,
    /// Runs of a repository that may end without a PASS within an hour.
    pub failed_runs_per_hour: u32,
    /// Runs of all repositories that are received at a time.
    pub runs_at_a_time: usize,
}

impl Default for PeerLimits {
    fn default() -> Self {
        Self {
            first_message: Duration::from_secs(30),
            idle: Duration::from_secs(6 * 3600),
            failed_runs_per_hour: 60,
            runs_at_a_time: 16,
        }
    }
}

/// What is missing between `init` and the first `accept`.
pub const NO_REPOSITORY: &str = "repository: there is none yet, and nothing to serve. `assay-target invite NAME` writes an invitation for a source; \
                                 `assay-source init --join FILE PATH` prints a line there; `assay-target accept LINE` adds its repository";

/// What copies of large files may take when nothing is said.
const COPY_AHEAD: Size = Size(16 * 1024 * 1024 * 1024);

/// `[limits]`: how long a source may be silent, how often it may fail, and how much is received at a time.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct PeerLimitsSection {
    /// From a call to the first message of its stream, more than no time and at most a year. Default: 30s.
    first_message: Option<Span>,
    /// From one message of a stream to the next. Default: 6h.
    idle: Option<Span>,
    /// Runs of a repository that may end without a PASS within an hour, more than none; then one is opened in that part of an hour (a minute, for 60) until fewer have failed within an hour.
    /// Default: 60.
    failed_runs_per_hour: Option<u32>,
    /// Runs of all repositories that are received at a time, 1 to 256; one source has half of them at most, and whoever comes when there are
    /// enough is told to come back and waits. Default: 16.
    runs_at_a_time: Option<usize>,
}

/// A repository, bound to its profile.
#[derive(Debug, Clone)]
pub struct Repository {
    /// Its name, here and on the source.
    pub name: String,
    /// Another name of it for people.
    pub alias: Option<String>,
    /// Name in the certificate of the source that may write it.
    pub source: String,
    /// The source's public signing key, pinned.
    pub source_key: PathBuf,
    /// The engine, for its check.
    pub profile: Profile,
    /// The profile's variables, as given; they are bound when the roots are known.
    pub vars: BTreeMap<String, Value>,
    /// Files of this host that are laid over the workspace: path in the root to file here.
    pub overlays: BTreeMap<String, PathBuf>,
    /// What no check may see of this host: the store of all repositories, the agent's private keys, passwords and
    /// configuration.
    pub hidden: Vec<PathBuf>,
    /// Names of this host for patches.
    pub names: TargetNames,
    /// How the workspace is made.
    pub workspace: WorkspacePreference,
    /// How the check is isolated.
    pub isolation: IsolationPolicy,
    /// Who its steps are on this host, where the agent is root.
    pub account: Account,
    /// Where the roots are live, by their names; `None`: where the source says.
    pub live_paths: Option<BTreeMap<String, PathBuf>>,
    /// What a step of the check may use, before what the profile says.
    pub limits: Limits,
    /// Whether a check that says FAIL is also run on a generation that it had passed.
    pub recheck_on_fail: bool,
    /// How old the newest negative control may become; `None`: it is made when an operator asks for it.
    pub control_every: Option<Duration>,
    /// How old a reading of the live repository may be for a verdict to claim anything of it; `None`: as the source says.
    pub max_reading_age: Option<Duration>,
    /// How old the newest verdict on a generation may become; `None`: it is checked again when an operator asks for it.
    pub reverify_after: Option<Duration>,
    /// How long a part of a check keeps its PASS; `None`: as the profile says. Zero: no result is carried.
    pub recheck_within: Option<Duration>,
    /// How old the newest check may become that looked at all parts; `None`: one is made when an operator asks for it.
    pub full_check_every: Option<Duration>,
    /// Names in certificates of the role "restore" that may take generations back.
    pub restore: Vec<String>,
    /// How old the newest PASS may become before somebody is told; `None`: nobody is.
    pub max_age: Option<Duration>,
    /// How long ago a generation may have been read last; `None`: it is when an operator asks for it.
    pub scrub_every: Option<Duration>,
    /// What is kept; `None`: all of it, for ever.
    pub retention: Option<Retention>,
    /// Content that all generations may hold together; `None`: what the disk holds.
    pub quota: Option<Size>,
    /// Files and folders that they may hold together; `None`: half of what the file system can.
    pub quota_entries: Option<u64>,
    /// What a run leaves free on the store's file system; `None`: a twentieth, 1 GiB at most.
    pub reserve: Option<Size>,
    /// What copies of large files that change often may take between the runs.
    pub copy_ahead: Size,
    /// What is taken from the source, of attributes and special files.
    pub copy_rules: CopyRules,
    /// How the processes of its check stand beside others of this host.
    pub check_priority: Priority,
}

/// How a workspace is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkspacePreference {
    /// The cheapest that works: overlay, then reflink, then copy.
    #[default]
    Auto,
    /// An overlay mount.
    Overlay,
    /// A copy that shares its blocks.
    Reflink,
    /// A full copy.
    Copy,
}

/// How a check is isolated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IsolationPolicy {
    /// As far as this host can; the verdict says what could not be.
    Auto,
    /// Fully, or the outcome is INCONCLUSIVE.
    #[default]
    Require,
    /// Not at all.
    None,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    agent: AgentSection,
    tls: TlsSection,
    operator: Option<OperatorSection>,
    #[serde(default)]
    limits: PeerLimitsSection,
    metrics: Option<MetricsSection>,
    web: Option<WebSection>,
    traces: Option<TracesSection>,
    #[serde(default)]
    notify: Vec<NotifySection>,
    #[serde(rename = "repository", default)]
    repositories: Vec<RepositorySection>,
}

/// `[agent]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentSection {
    /// Name of this agent, as in its certificate.
    pub name: String,
    /// Address and port on which sources and operators are served.
    pub listen: std::net::SocketAddr,
    /// Folder of the store.
    pub store: PathBuf,
    /// Private Ed25519 key (PKCS#8, PEM) for verdicts; `keys rotate` replaces it.
    pub signing_key: PathBuf,
    /// User that checks run as on this host where the agent is root: a name or a number, never root and no system account but
    /// one named assay-check. Default: assay-check where this host has it, else 65530.
    pub check_user: Option<UserName>,
    /// Their group. Default: the user's own, of a number the same number.
    pub check_group: Option<UserName>,
    /// Checks that run at a time, of all repositories, at least 1; further ones wait, and the repository with the oldest PASS is next. Default:
    /// half of the cores, at least 1.
    checks_at_a_time: Option<usize>,
    /// How long a check waits for its turn, more than no time and at most a year; then its verdict is INCONCLUSIVE check-not-started. Default: 6h.
    check_wait: Option<Span>,
    /// Niceness of checks, 0 to 19: what else this host does goes first. Default: the agent's own.
    check_nice: Option<u8>,
    /// How reads and writes of checks stand beside those of others: `"idle"`, only when nobody else has any, or `"best-effort"`, last of the usual
    /// class. Default: the agent's own.
    check_io: Option<IoClass>,
    /// Names in the certificates of those operators who may operate this target. Default: every operator of the CA.
    pub operators: Option<Vec<String>>,
    /// `quota` of each repository that sets none of its own. Default: none, as much as the disk does.
    pub quota: Option<Size>,
    /// `reserve` of each repository that sets none of its own. Default: as there.
    pub reserve: Option<Size>,
    /// Form of the log, a line or a JSON object for each event. Default: plain.
    #[serde(default)]
    pub log: LogFormat,
}

impl AgentSection {
    /// The queue of all checks.
    pub fn check_queue(&self) -> CheckQueue {
        let at_a_time = self.checks_at_a_time.unwrap_or_else(default_at_a_time);
        CheckQueue::new(at_a_time, self.check_wait.map_or(DEFAULT_WAIT, |wait| wait.0))
    }

    fn faults(&self) -> impl Iterator<Item = String> {
        let no_check = self.checks_at_a_time == Some(0);
        let no_limit = self.check_wait.is_some_and(|wait| !config::is_limit(wait.0));
        let not_nice = self.check_nice.is_some_and(|nice| nice > 19);
        [
            no_check.then(|| "agent.checks_at_a_time: must be at least 1".to_owned()),
            no_limit.then(|| format!("agent.check_wait: {}", config::LIMIT_RULE)),
            not_nice.then(|| "agent.check_nice: must be 0 to 19".to_owned()),
        ]
        .into_iter()
        .flatten()
    }
}

/// A user or a group of this host, by name or number.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum UserName {
    /// By number.
    Number(u32),
    /// By name, or by a number in quotes.
    Name(String),
}

/// `[tls]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsSection {
    /// Certificate authorities (PEM) of the sources and the operators. The file is looked at again while the agent runs.
    ca: PathBuf,
    /// This agent's certificate (PEM), for its name, its hosts and the role "target".
    cert: PathBuf,
    /// Its private key (PEM), which nobody else may read.
    key: PathBuf,
    /// Certificates that are not accepted any longer: their serial numbers or the SHA-256 of their keys (`pki show` prints both), in a list, or
    /// the path of a file with one a line. Read again while the agent runs. Default: none.
    revoked: Option<RevokedSetting>,
}

/// `[operator]`: what this command line uses to talk to the agent. Default: the agent's own certificate, which no agent takes for an
/// operator's.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OperatorSection {
    /// The operator's certificate (PEM).
    cert: PathBuf,
    /// Its private key (PEM).
    key: PathBuf,
}

/// `[[repository]]`: what is received and checked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RepositorySection {
    /// Its name, the same as on the source.
    name: String,
    /// Another name of it for people, for example the one that it was given since. What is signed, stored and sent has `name`, which never
    /// changes. Default: none.
    alias: Option<String>,
    /// Name in the certificate of the source that may write it.
    source: String,
    /// The source's public signing key (PEM), pinned. Its former keys are in the folder `NAME.keys.d` beside `NAME.pub`, where
    /// `accept --replace-key` puts them.
    source_key: PathBuf,
    /// Name of a profile of Assay's own, or the path of one of yours (docs/PROFILES.md).
    profile: String,
    /// Variables of the profile; the profile says which there are, and their defaults.
    #[serde(default)]
    vars: BTreeMap<String, Value>,
    /// Files of this host that are laid over the throw-away copy: place in the root to file here. Default: none.
    #[serde(default)]
    overlay: BTreeMap<String, PathBuf>,
    /// Names of this host that the copy is told.
    host: Option<HostSection>,
    /// How the throw-away copy is made; `"auto"` takes the cheapest that works. Default: auto.
    #[serde(default)]
    workspace: WorkspacePreference,
    /// How the check is shut off from the network and this host; with `"require"` one that cannot be is INCONCLUSIVE, with `"auto"` it
    /// is as far as this host can, and the verdict says what could not be. Default: require.
    #[serde(default)]
    isolation: IsolationPolicy,
    /// Where the roots are live, name to absolute path: with it, the check sees each root there, and a root that is not named here
    /// ends it. Default: where the source says, which must not be a place that the check reads.
    live_paths: Option<BTreeMap<String, PathBuf>>,
    /// What a step of the check may use, before what the profile says.
    #[serde(default)]
    limits: Limits,
    /// Before FAIL is said, the check is also run on the newest verified generation. Default: true.
    #[serde(default = "yes")]
    recheck_on_fail: bool,
    /// How old the newest negative control may become, or `"never"`: then one is made when an operator asks for it, and until one
    /// has passed no PASS counts. Default: 7 days; the first control follows the first PASS.
    control_every: Option<SpanOrNever>,
    /// How old a reading of a file that has not changed may be for a verdict to claim anything of the live repository. Default:
    /// as the source's configuration says.
    max_reading_age: Option<Span>,
    /// How old the newest verdict on a generation may become before it is checked again. Default: when an operator asks for it.
    reverify_after: Option<Span>,
    /// How long a part of the check keeps its PASS while nothing that it depends on changes, where the profile has parts; `"0s"` carries no
    /// result, so that every check looks at all. Default: the profile's, which is 7 days where it says nothing.
    recheck_within: Option<Span>,
    /// How old the newest check may become that looked at all parts, before the next one does. Default: when an operator asks for it.
    full_check_every: Option<Span>,
    /// Names in certificates of the role "restore" that may take generations back. Default: nobody.
    #[serde(default)]
    restore: Vec<String>,
    /// How old the newest PASS may become before somebody is told, also when the source says nothing at all. Default: nobody is.
    max_age: Option<Span>,
    /// How long ago a sealed generation may have been read last. Default: it is when an operator asks for it.
    scrub_every: Option<Span>,
    /// What all its generations may hold together with what is being received: content, manifests, attributes, 512 bytes for each file and 4096
    /// for each folder, verdicts, the chunk index and the tree that is laid out ahead, for example `"500GiB"`. Default: as much as the disk does.
    quota: Option<Size>,
    /// Files and folders that its generations, what is being received and its ledger may hold together. Default: half of those that the file
    /// system can hold (100 million where it sets no number). Whatever it is, a run leaves one in twenty free.
    quota_entries: Option<u64>,
    /// What a run leaves free on the store's file system. Default: a twentieth of it, and 1 GiB at most; `"0B"` leaves nothing free.
    reserve: Option<Size>,
    /// What copies of large files that change often may take, made between the runs so that the next run only writes what is
    /// new in them. Never more than a quarter of what is free. `"0B"` makes none. Default: 16 GiB.
    copy_ahead: Option<Size>,
    /// What is kept. Default: all of it, for ever.
    retention: Option<RetentionSection>,
    /// Attributes that a copy may have beside those of `user.` and ACLs: names, or beginnings of names with `*` behind them, for
    /// example `["security.capability", "trusted.*"]`. Default: the profile's, which is `["security.capability"]` where it says nothing.
    attributes: Option<Vec<String>>,
    /// Special files that a copy may have: `"fifo"`, `"socket"`, `"device"`. A device also needs an agent that is root. Default: the
    /// profile's, which never has devices.
    special_files: Option<Vec<SpecialFile>>,
}

/// How old the newest negative control may become where the configuration does not say.
const CONTROL_EVERY: Duration = Duration::from_secs(7 * 24 * 3600);

fn every(said: SpanOrNever) -> Option<Span> {
    match said {
        SpanOrNever::Every(span) => Some(span),
        SpanOrNever::Never => None,
    }
}

fn yes() -> bool {
    true
}

/// `[repository.retention]`: which verified generations are kept. Every generation that a rule keeps stays.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RetentionSection {
    /// The newest. Default: 0.
    #[serde(default)]
    last: u32,
    /// The newest of each of so many hours. Default: 0.
    #[serde(default)]
    hourly: u32,
    /// The newest of each of so many days. Default: 0.
    #[serde(default)]
    daily: u32,
    /// The newest of each of so many weeks. Default: 0.
    #[serde(default)]
    weekly: u32,
    /// The newest of each of so many months. Default: 0.
    #[serde(default)]
    monthly: u32,
    /// All that are younger. Default: none for their age.
    within: Option<Span>,
    /// Newest generations that failed, for a post-mortem. Default: 3.
    failed_last: Option<u32>,
    /// How long failed generations are kept. Default: 14d.
    failed_within: Option<Span>,
}

impl From<RetentionSection> for Retention {
    fn from(section: RetentionSection) -> Self {
        Self {
            last: section.last,
            hourly: section.hourly,
            daily: section.daily,
            weekly: section.weekly,
            monthly: section.monthly,
            within: section.within.map(|span| span.0),
            failed_last: section.failed_last.unwrap_or(Self::DEFAULT_FAILED_LAST),
            failed_within: section.failed_within.map_or(Self::DEFAULT_FAILED_WITHIN, |span| span.0),
        }
    }
}

/// `[repository.host]`: names of this host that the checked copy may be told; what is absent is asked of the system.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct HostSection {
    /// The full name. Default: the kernel's, when it has dots.
    fqdn: Option<String>,
    /// The short name. Default: the first part of the kernel's.
    name: Option<String>,
    /// An address. Default: none.
    address: Option<String>,
}

/// Why the configuration is not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A profile that it names.
    #[error(transparent)]
    Profile(#[from] ProfileError),
}

/// Reads and checks a configuration file and its further files.
///
/// # Errors
/// All that is wrong, with file and key.
pub fn load(path: &Path) -> Result<Config, LoadError> {
    parse(&ConfigText::read(path)?)
}

/// As [`load`], of text that is to be written.
///
/// # Errors
/// All that is wrong, with file and key.
pub fn parse(text: &ConfigText) -> Result<Config, LoadError> {
    let path = text.main.path.as_path();
    let mut file: File = text.main.parse()?;
    let sections: Vec<(&Path, RepositorySection)> = {
        let further = text.further_repositories()?;
        let main = std::mem::take(&mut file.repositories).into_iter().map(|section| (path, section));
        main.chain(further.into_iter().map(|(file, section)| (file.path.as_path(), section))).collect()
    };
    let resolve = |file: &Path| config::resolve(path, file);
    let mut faults = Vec::new();
    faults.extend(name_fault("agent.name", &file.agent.name));
    faults.extend(file.agent.faults());
    if sections.is_empty() {
        faults.push(NO_REPOSITORY.to_owned());
    }
    faults.extend(file.web.iter().flat_map(WebSection::faults));
    let check_priority = Priority { nice: file.agent.check_nice, io: file.agent.check_io };
    let limits = PeerLimits {
        first_message: file.limits.first_message.map_or(PeerLimits::default().first_message, |span| span.0),
        idle: file.limits.idle.map_or(PeerLimits::default().idle, |span| span.0),
        failed_runs_per_hour: file
            .limits
            .failed_runs_per_hour
            .unwrap_or(PeerLimits::default().failed_runs_per_hour),
        runs_at_a_time: file.limits.runs_at_a_time.unwrap_or(PeerLimits::default().runs_at_a_time),
    };
    if !(1..=256).contains(&limits.runs_at_a_time) {
        faults.push("limits.runs_at_a_time: must be 1 to 256".to_owned());
    }
    if limits.failed_runs_per_hour == 0 {
        faults
            .push("limits.failed_runs_per_hour: must be greater than zero: 0 is not 'unlimited'".to_owned());
    }
    for (key, limit) in [("first_message", limits.first_message), ("idle", limits.idle)] {
        if !config::is_limit(limit) {
            faults.push(format!("limits.{key}: {}", config::LIMIT_RULE));
        }
    }
    let keys =
        [&file.tls.key, &file.agent.signing_key].into_iter().chain(file.operator.iter().map(|it| &it.key));
    let passwords = file.notify.iter().flat_map(NotifySection::secret_files);
    let passwords = passwords.chain(file.traces.iter().filter_map(TracesSection::secret_file));
    let passwords = passwords.chain(file.web.iter().filter_map(WebSection::secret_file));
    let hidden = keys.map(PathBuf::as_path).chain(passwords).chain([file.agent.store.as_path()]).map(resolve);
    // An authority that signs certificates is elsewhere, or at least where no check looks.
    let authority = file.tls.ca.with_file_name("ca.key");
    let hidden =
        hidden.chain([resolve(&authority), resolve(Path::new("ca")), resolve(Path::new("pki/ca.key"))]);
    // The configuration itself may hold what a webhook's address or a profile's variable should not tell.
    let hidden = hidden.chain([path.to_owned(), config::further_folder(path)]);
    let ca = resolve(&file.tls.ca);
    let tls = TlsFiles { ca: ca.clone(), cert: resolve(&file.tls.cert), key: resolve(&file.tls.key) };
    // Nor the authority's key, where it lies in reach. A profile that would show it is refused below.
    let authority_keys = authority::reachable_keys(&tls, path);
    let hidden: Vec<_> = hidden.chain(authority_keys.iter().map(|key| key.path.clone())).collect();
    let account = account::find(file.agent.check_user.as_ref(), file.agent.check_group.as_ref(), &mut faults);
    let mut names = HashSet::new();
    let mut repositories = Vec::new();
    let mut faults_of_repositories = Vec::new();
    for (in_file, section) in sections {
        let shown = section.name.clone();
        let mut faults = Vec::new();
        faults.extend(name_fault("name", &section.name));
        faults.extend(name_fault("source", &section.source));
        faults.extend(section.restore.iter().filter_map(|name| name_fault("restore", name)));
        let wrong = section.limits.faults();
        faults.extend(wrong.map(|(key, message)| format!("limits.{key}: {message}")));
        if !names.insert(section.name.clone()) {
            let twice = format!("repository {:?} is defined twice", section.name);
            faults_of_repositories.extend(ValueFault::all(in_file, [twice]));
        }
        for (key, span) in [
            ("control_every", section.control_every.and_then(every)),
            ("reverify_after", section.reverify_after),
            ("full_check_every", section.full_check_every),
            ("max_reading_age", section.max_reading_age),
            ("max_age", section.max_age),
            ("scrub_every", section.scrub_every),
        ] {
            if span.is_some_and(|span| span.0.is_zero()) {
                faults.push(format!("{key}: must be greater than zero"));
            }
        }
        let quota = section.quota.or(file.agent.quota);
        if quota.is_some_and(|quota| quota.0 == 0) {
            faults.push("quota: must be greater than zero; without it the disk is the limit".to_owned());
        }
        if section.quota_entries == Some(0) {
            faults.push(
                "quota_entries: must be greater than zero; without it half of the file system's is the limit"
                    .to_owned(),
            );
        }
        let retention = section.retention.map(Retention::from);
        if retention.as_ref().is_some_and(|retention| !retention.keeps_any()) {
            let rules = "last, hourly, daily, weekly, monthly or within";
            faults.push(format!("retention: at least one of {rules} must keep something"));
        }
        for pattern in section.attributes.iter().flatten().filter(|pattern| !is_pattern(pattern)) {
            faults.push(format!(
                "attributes: {pattern:?} must be the name of an attribute, or the beginning of one with '*' behind it"
            ));
        }
        let host = section.host.unwrap_or_default();
        let own = own_names();
        let profile = assay_common::profile::named(path, &section.profile)?;
        for shown in &profile.sandbox.visible {
            if let Some(why) = sandbox::reaches(shown, &hidden) {
                faults.push(format!("profile: {}: [sandbox] visible: {why}", section.profile));
            } else if let Some(key) = authority::key_below(&ca, shown) {
                faults.push(format!(
                    "profile: {}: [sandbox] visible: {} would show {}, the certificate authority's private key",
                    section.profile,
                    shown.display(),
                    key.display()
                ));
            }
        }
        for (place, file) in section.overlay.iter().map(|(place, file)| (place, resolve(file))) {
            if authority::key_below(&ca, &file).is_some() {
                let file = file.display();
                faults.push(format!("overlay.{place:?}: {file} is the certificate authority's private key"));
            }
        }
        let absolute = |path: &Path| {
            path.is_absolute()
                && !path.components().any(|part| matches!(part, std::path::Component::ParentDir))
        };
        for (root, live) in section.live_paths.iter().flatten() {
            if !absolute(live) {
                let live = live.display();
                faults.push(format!("live_paths.{root}: {live} must be an absolute path without '..'"));
            }
        }
        repositories.push(Repository {
            check_priority,
            copy_rules: CopyRules {
                attributes: section.attributes.unwrap_or_else(|| profile.copy.attributes.clone()),
                special_files: section.special_files.unwrap_or_else(|| profile.copy.special_files.clone()),
            },
            profile,
            account,
            live_paths: section.live_paths,
            source_key: resolve(&section.source_key),
            overlays: section.overlay.into_iter().map(|(place, file)| (place, resolve(&file))).collect(),
            hidden: hidden.clone(),
            names: TargetNames {
                fqdn: host.fqdn.or(own.fqdn),
                host: host.name.or(own.host),
                address: host.address.or(own.address),
            },
            name: section.name,
            alias: section.alias,
            source: section.source,
            vars: section.vars,
            workspace: section.workspace,
            isolation: section.isolation,
            limits: section.limits,
            recheck_on_fail: section.recheck_on_fail,
            control_every: match section.control_every {
                None => Some(CONTROL_EVERY),
                Some(said) => every(said).map(|span| span.0),
            },
            max_reading_age: section.max_reading_age.map(|span| span.0),
            reverify_after: section.reverify_after.map(|span| span.0),
            recheck_within: section.recheck_within.map(|span| span.0),
            full_check_every: section.full_check_every.map(|span| span.0),
            restore: section.restore,
            max_age: section.max_age.map(|span| span.0),
            scrub_every: section.scrub_every.map(|span| span.0),
            retention,
            quota,
            quota_entries: section.quota_entries,
            reserve: section.reserve.or(file.agent.reserve),
            copy_ahead: section.copy_ahead.unwrap_or(COPY_AHEAD),
        });
        let faults = faults.into_iter().map(|fault| format!("repository {shown}: {fault}"));
        faults_of_repositories.extend(ValueFault::all(in_file, faults));
    }
    let named = repositories.iter().map(|it| (it.name.as_str(), it.alias.as_deref()));
    faults.extend(config::alias_faults(named));
    let names: Vec<_> = repositories.iter().map(|repository| repository.name.as_str()).collect();
    let notify = Way::all(path, &file.notify, &names, &mut faults);
    let traces = Collector::new(path, file.traces.as_ref(), &mut faults);
    let revoked = Revoked::load(path, file.tls.revoked.as_ref()).unwrap_or_else(|fault| {
        faults.push(format!("tls.revoked: {fault}"));
        Revoked::default()
    });
    let faults: Vec<_> = ValueFault::all(path, faults).chain(faults_of_repositories).collect();
    if !faults.is_empty() {
        return Err(ConfigError::Values { faults }.into());
    }
    let operator_tls = match &file.operator {
        Some(operator) => TlsFiles { ca, cert: resolve(&operator.cert), key: resolve(&operator.key) },
        None => tls.clone(),
    };
    let agent = AgentSection {
        store: resolve(&file.agent.store),
        signing_key: resolve(&file.agent.signing_key),
        ..file.agent
    };
    Ok(Config {
        agent,
        tls,
        operator_tls,
        authority_keys,
        revoked,
        limits,
        metrics: file.metrics,
        web: file.web.map(|web| web.resolved(path)),
        traces,
        notify,
        repositories,
    })
}

fn name_fault(key: &str, name: &str) -> Option<String> {
    let fault = || format!("{key}: {name:?}: a name has 1 to 64 letters, digits, '-' or '_'");
    (!is_plain_name(name)).then(fault)
}

/// The names that this host goes by: the kernel's node name, as the full name when it has dots, and its first label.
fn own_names() -> TargetNames {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let short = name.split('.').next().unwrap_or(&name).to_owned();
    TargetNames { fqdn: name.contains('.').then(|| name.clone()), host: Some(short), address: None }
}
