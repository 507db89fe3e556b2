//! The source agent's configuration: a file, and a folder of further repositories. Relative paths start at the file's own folder.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    time::Duration,
};

use assay_common::{
    config::{self, ConfigError, ConfigText, FileText, Span, ValueFault},
    fidelity::is_pattern,
    id::is_plain_name,
    manifest::{Header, Root},
    metrics::MetricsSection,
    notify::{NotifySection, Way},
    pki::authority::{self, ReachableKey},
    profile::{FileRules, Profile, ProfileError, Scope, Value},
    telemetry::LogFormat,
    tls::{
        TlsFiles,
        revocation::{Revoked, RevokedSetting},
    },
    traces::{Collector, TracesSection},
};
use serde::Deserialize;
use toml::Spanned;

use crate::{
    replicate::{
        scan::Ground,
        transfer::{Compression, TransferOptions},
    },
    snapshot::{Settings as SnapshotSettings, SnapshotSection},
    target::DEFAULT_WAIT,
};

/// Content that all runs hold in memory when the file does not say, in bytes: enough for 1 GB/s at 64 ms of round trip.
const DEFAULT_MEMORY_MIB: u32 = 64;
/// Repositories that copy at a time when the file does not say: enough to fill the pauses of each.
const DEFAULT_RUNS_AT_A_TIME: usize = 4;
/// Niceness of the agent when the file does not say: the live server goes first. The kernel derives the priority of reads
/// and writes from it as well.
const DEFAULT_NICE: i32 = 10;
/// How long a cut connection is tried again when the file does not say: a router restarts in less.
const DEFAULT_RETRY: Duration = Duration::from_secs(10 * 60);
/// How long the target may owe an answer: it may have a slow disk, and a great many names to make.
const DEFAULT_PATIENCE: Duration = Duration::from_secs(6 * 3600);
/// Share of the entries that a run may drop when the file does not say, in per cent: an hour of work never drops half.
const DEFAULT_MAX_DROP_PERCENT: u8 = 50;

/// Every byte is read again within this time when the file does not say.
const DEFAULT_REREAD_WITHIN: Duration = Duration::from_secs(7 * 24 * 3600);
/// Reading again takes this much of a disk at most when the file does not say, in MiB a second: a share of a disk's speed.
const DEFAULT_REREAD_MIB: u32 = 128;

/// A configuration that has been checked as far as that goes without running anything.
#[derive(Debug)]
pub struct Config {
    /// The file.
    pub path: PathBuf,
    /// A fault, with its line, for each schedule that has no slot from now on.
    pub never: Vec<String>,
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
    /// Private signing key.
    pub signing_key: PathBuf,
    /// `[target]`.
    pub target: TargetSection,
    /// `[metrics]`.
    pub metrics: Option<MetricsSection>,
    /// `[traces]`.
    pub traces: Option<Collector>,
    /// `[[notify]]`.
    pub notify: Vec<Way>,
    /// The repositories.
    pub repositories: Vec<Repository>,
}

/// A repository, bound to its profile.
#[derive(Debug, Clone)]
pub struct Repository {
    /// Its name, here and on the target.
    pub name: String,
    /// Another name of it for people.
    pub alias: Option<String>,
    /// The engine.
    pub profile: Profile,
    /// The profile's variables.
    pub vars: BTreeMap<String, Value>,
    /// The roots, in order; also the header of its manifests.
    pub header: Header,
    /// For each root, in the header's order: what is mounted below it is left out.
    pub one_file_system: Vec<bool>,
    /// Patterns that are excluded beside the profile's.
    pub exclude: Vec<String>,
    /// When it runs by itself.
    pub schedule: Option<Schedule>,
    /// Largest share of its entries that a run may drop, in per cent.
    pub max_drop_percent: u8,
    /// Every how many runs all files are read whatever `stat` says; 0 for never.
    pub full_read_every: u32,
    /// Every byte is read again within this time, whatever `stat` says; zero: never.
    pub reread_within: Duration,
    /// Bytes that are read again in a second, at most.
    pub reread_bytes_per_second: u64,
    /// How old the newest PASS may become before somebody is told; `None`: nobody is.
    pub max_age: Option<Duration>,
    /// How old a reading of an unchanged file may be for a verdict to claim anything of the live repository; `None`: any age.
    pub max_reading_age: Option<Duration>,
    /// Attributes that it does not need.
    pub ignore_attributes: Vec<String>,
    /// Times may be brought to what the target holds.
    pub clamp_times: bool,
    /// How a snapshot is made that is copied instead of the live files.
    pub(crate) snapshot: Option<SnapshotSettings>,
}

/// When runs start by themselves.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// The slots.
    pub slots: Slots,
    /// Each start is delayed by a random time up to this.
    pub jitter: Duration,
}

/// The slots of a schedule.
#[derive(Debug, Clone)]
pub enum Slots {
    /// Whole multiples of this since 1970.
    Every(Duration),
    /// A cron expression, in UTC.
    Cron(Box<croner::Cron>),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    agent: AgentSection,
    tls: TlsSection,
    operator: Option<OperatorSection>,
    target: TargetSection,
    metrics: Option<MetricsSection>,
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
    /// Address and port on which operators are served.
    pub listen: std::net::SocketAddr,
    /// Folder for what the agent must remember.
    pub state: PathBuf,
    /// Private Ed25519 key (PKCS#8, PEM) for the source's statements.
    signing_key: PathBuf,
    /// Names in the certificates of those operators who may operate this source. Default: every operator of the CA.
    pub operators: Option<Vec<String>>,
    /// Form of the log, a line or a JSON object for each event. Default: plain.
    #[serde(default)]
    pub log: LogFormat,
    /// Files read side by side, and threads that cut and compress. Default: 2, or 1 on a machine with one core.
    pub threads: Option<usize>,
    /// Repositories that copy at a time, 1 to 64; further runs wait for their turn, the one with the oldest proof first. Fewer where `memory_mib` has
    /// less than 6 MiB for each. Default: 4.
    runs_at_a_time: Option<usize>,
    /// Content that all runs together hold in memory between reading and the target's acknowledgement, in MiB, 8 to 4096. Default: 64.
    pub memory_mib: Option<u32>,
    /// Niceness, 0 to 19: the live server goes first. Default: 10.
    nice: Option<i32>,
}

impl AgentSection {
    /// Files read side by side: two, or one on a machine with one core.
    pub fn threads(&self) -> usize {
        self.threads
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |cores| cores.get().min(2)))
    }

    /// Niceness, 0 to 19.
    pub fn nice(&self) -> i32 {
        self.nice.unwrap_or(DEFAULT_NICE)
    }

    /// Repositories that copy at a time.
    pub fn runs_at_a_time(&self) -> usize {
        self.runs_at_a_time.unwrap_or(DEFAULT_RUNS_AT_A_TIME)
    }

    /// Content held in memory, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.memory_mib.unwrap_or(DEFAULT_MEMORY_MIB) as usize * 1024 * 1024
    }
}

/// `[tls]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsSection {
    /// Certificate authorities (PEM) of the target and the operators. The file is looked at again while the agent runs.
    ca: PathBuf,
    /// This agent's certificate (PEM), for its name and the role "source".
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

/// `[target]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetSection {
    /// `https://host:port`.
    pub url: String,
    /// The target's public signing key (PEM), pinned: verdicts are checked against it. Its former and its announced keys are in the folder
    /// `NAME.keys.d` beside `NAME.pub`, where `keys add` puts them.
    pub signing_key: PathBuf,
    /// `"auto"` follows the link, `"off"`, or a level of zstd from 1 to 19. Default: auto.
    #[serde(default = "auto", deserialize_with = "compression")]
    compression: Compression,
    /// Content that may go out in a second, after compression, in KiB. Default: no limit.
    limit_kib_per_second: Option<u64>,
    /// How long a cut connection is tried again. Default: 10m.
    retry: Option<Span>,
    /// How long the target may owe an answer, more than no time and at most a year. Default: 6h.
    patience: Option<Span>,
    /// How long a run waits for a target that is busy, at most a year; one that the schedule started never waits beyond its next slot. `"0s"`: it
    /// does not wait. Default: 1h.
    wait: Option<Span>,
}

impl TargetSection {
    /// How long a run waits for a target that is busy.
    pub fn wait(&self) -> Duration {
        self.wait.map_or(DEFAULT_WAIT, |wait| wait.0)
    }

    /// How content is sent, with `threads` compressing.
    pub fn transfer(&self, threads: usize) -> TransferOptions {
        TransferOptions {
            compression: self.compression,
            threads,
            limit_bytes_per_second: self.limit_kib_per_second.map(|kib| kib.saturating_mul(1024)),
            retry: self.retry.map_or(DEFAULT_RETRY, |retry| retry.0),
            patience: self.patience.map_or(DEFAULT_PATIENCE, |patience| patience.0),
        }
    }
}

fn auto() -> Compression {
    Compression::Auto
}

fn compression<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Compression, D::Error> {
    match toml::Value::deserialize(deserializer)? {
        toml::Value::String(text) if text == "auto" => Ok(Compression::Auto),
        toml::Value::String(text) if text == "off" => Ok(Compression::Off),
        toml::Value::Integer(level @ 1..=19) => Ok(Compression::Level(level as i32)),
        _ => Err(serde::de::Error::custom("must be \"auto\", \"off\" or a level from 1 to 19")),
    }
}

/// `[[repository]]`: what is protected.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RepositorySection {
    /// Its name, the same as on the target.
    name: String,
    /// Another name of it for people, for example the one that it was given since. What is signed, stored and sent has `name`, which never
    /// changes. Default: none.
    alias: Option<String>,
    /// Name of a profile of Assay's own, or the path of one of yours (docs/PROFILES.md).
    profile: String,
    /// The folders that are copied, at least one.
    #[serde(rename = "root")]
    roots: Vec<RootSection>,
    /// Variables of the profile; the profile says which there are, and their defaults.
    #[serde(default)]
    vars: BTreeMap<String, Value>,
    /// File patterns that are left out beside the profile's. Default: none.
    #[serde(default)]
    exclude: Vec<String>,
    /// When it runs by itself. Default: when an operator starts it.
    #[serde(default, deserialize_with = "checked_schedule")]
    schedule: Option<Spanned<ScheduleSection>>,
    /// Pause between the mark and the copy. Default: the profile's.
    settle: Option<Span>,
    /// A run that would drop more of the last generation's entries stops, in per cent. Default: 50.
    max_drop_percent: Option<u8>,
    /// Every so many runs all files are read, whatever `stat` says of them. Default: 0, never.
    #[serde(default)]
    full_read_every: u32,
    /// Files that have not changed are read again, those first that were read longest ago, so that every byte is read within this time.
    /// `"off"` or `"0s"`: never. Default: 7d.
    #[serde(default, deserialize_with = "span_or_off")]
    reread_within: Option<Span>,
    /// Files that have not changed are read again at this rate at most, in MiB a second. Default: 128.
    reread_mib_per_second: Option<u32>,
    /// How old the newest PASS may become before somebody is told. Default: twice the longest time between two slots of the
    /// schedule; none without a schedule.
    max_age: Option<Span>,
    /// How old a reading of a file that has not changed may be for a verdict to claim anything of the live repository. Default:
    /// any age, which the verdict names.
    max_reading_age: Option<Span>,
    /// Attributes that this repository does not need: names, or beginnings of names with `*` behind them, for example
    /// `["user.thumbnail", "trusted.*"]`. They are left out of the copy, and the verdict says so. Default: none.
    #[serde(default)]
    ignore_attributes: Vec<String>,
    /// Times of modification that the target's file system cannot hold (far ones, or fractions of a second) are brought to the nearest
    /// that it holds, and the verdict says so. False: such a time ends the run before it copies. Default: false.
    #[serde(default)]
    clamp_times: bool,
    /// A snapshot of the file system that is copied instead of the live files. Default: none.
    snapshot: Option<SnapshotSection>,
}

/// `[[repository.root]]`: a folder that is copied.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RootSection {
    /// Its name in the copy, when there are several. Default: main.
    #[serde(default = "main_root")]
    name: String,
    /// Its real, absolute path: no symbolic link.
    path: String,
    /// Leaves out what is mounted below it, as `rsync -x` does. Default: false, all of it is copied.
    #[serde(default)]
    one_file_system: bool,
}

fn span_or_off<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Span>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text == "off" {
        return Ok(Some(Span(Duration::ZERO)));
    }
    let span = humantime::parse_duration(&text);
    span.map(|span| Some(Span(span))).map_err(|_| {
        serde::de::Error::custom("must be \"off\", or a length of time with its unit, for example \"7d\"")
    })
}

fn main_root() -> String {
    "main".to_owned()
}

/// `schedule = { … }`: one of `every` and `cron`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ScheduleSection {
    /// A run at every whole multiple of this since 1970, at least 1s, in whole milliseconds.
    every: Option<Span>,
    /// Five fields of cron, in UTC.
    cron: Option<String>,
    /// Each start is put off by a random time up to this. Default: none.
    jitter: Option<Span>,
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
    let file: File = text.main.parse()?;
    let further = text.further_repositories::<RepositorySection>()?;
    let sections: Vec<(&FileText, &RepositorySection)> = {
        let main = file.repositories.iter().map(|section| (&text.main, section));
        main.chain(further.iter().map(|(file, section)| (*file, section))).collect()
    };
    let resolve = |file: &Path| config::resolve(path, file);
    let mut faults = Vec::new();
    if !is_plain_name(&file.agent.name) {
        faults.push(name_fault("agent.name", &file.agent.name));
    }
    if file.agent.threads == Some(0) {
        faults.push("agent.threads: must be at least 1".to_owned());
    }
    if file.agent.memory_mib.is_some_and(|mib| !(8..=4096).contains(&mib)) {
        faults.push("agent.memory_mib: must be 8 to 4096".to_owned());
    }
    if file.agent.nice.is_some_and(|nice| !(0..=19).contains(&nice)) {
        faults.push("agent.nice: must be 0 to 19".to_owned());
    }
    if file.target.limit_kib_per_second == Some(0) {
        faults.push("target.limit_kib_per_second: must be at least 1".to_owned());
    }
    if file.target.patience.is_some_and(|patience| !config::is_limit(patience.0)) {
        faults.push(format!("target.patience: {}", config::LIMIT_RULE));
    }
    if file.target.wait.is_some_and(|wait| !wait.0.is_zero() && !config::is_limit(wait.0)) {
        faults.push("target.wait: must be at most a year".to_owned());
    }
    if file.agent.runs_at_a_time.is_some_and(|runs| !(1..=64).contains(&runs)) {
        faults.push("agent.runs_at_a_time: must be 1 to 64".to_owned());
    }
    if sections.is_empty() {
        faults.push("repository: at least one [[repository]] is needed".to_owned());
    }
    let mut names = HashSet::new();
    let mut repositories = Vec::new();
    let mut faults_of_repositories = Vec::new();
    for (file, section) in &sections {
        let mut faults = Vec::new();
        if !names.insert(&section.name) {
            faults.push(format!("repository {:?} is defined twice", section.name));
        }
        repositories.extend(repository(path, section, &mut faults)?);
        faults_of_repositories.extend(ValueFault::all(&file.path, faults));
    }
    let ca = resolve(&file.tls.ca);
    let tls = TlsFiles { ca: ca.clone(), cert: resolve(&file.tls.cert), key: resolve(&file.tls.key) };
    let authority_keys = authority::reachable_keys(&tls, path);
    let roots = repositories.iter().flat_map(|repository| &repository.header.roots);
    for root in roots.map(|root| Path::new(&root.live_path)) {
        let root = std::fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
        for key in authority_keys.iter().filter(|key| key.path.starts_with(&root)) {
            faults.push(format!(
                "repository.root: {} has the certificate authority's private key in it, {}: it would be copied to the target; move it to another host",
                root.display(),
                key.path.display()
            ));
        }
    }
    let named = sections.iter().map(|(_, section)| (section.name.as_str(), section.alias.as_deref()));
    faults.extend(config::alias_faults(named));
    let names: Vec<_> = sections.iter().map(|(_, section)| section.name.as_str()).collect();
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
    let agent = AgentSection { state: resolve(&file.agent.state), ..file.agent };
    let target = TargetSection { signing_key: resolve(&file.target.signing_key), ..file.target };
    let signing_key = resolve(&agent.signing_key);
    let metrics = file.metrics;
    let never = sections.iter().filter_map(|(file, section)| without_slots(file, section)).collect();
    let path = path.to_owned();
    Ok(Config {
        path,
        never,
        agent,
        tls,
        operator_tls,
        authority_keys,
        revoked,
        signing_key,
        target,
        metrics,
        traces,
        notify,
        repositories,
    })
}

fn name_fault(key: &str, name: &str) -> String {
    format!("{key}: {name:?}: a name has 1 to 64 letters, digits, '-' or '_'")
}

fn repository(
    path: &Path,
    section: &RepositorySection,
    faults: &mut Vec<String>,
) -> Result<Option<Repository>, LoadError> {
    let before = faults.len();
    let name = &section.name;
    for pattern in section.ignore_attributes.iter().filter(|pattern| !is_pattern(pattern)) {
        faults.push(format!(
            "repository {name}: ignore_attributes: {pattern:?} must be the name of an attribute, or the beginning of one with '*' behind it"
        ));
    }
    if !is_plain_name(name) {
        faults.push(name_fault("repository.name", name));
    }
    if section.roots.is_empty() {
        faults.push(format!("repository {name}: root: at least one [[repository.root]] is needed"));
    }
    let several = section.roots.len() > 1;
    let mut header = Header { roots: Vec::new() };
    for root in &section.roots {
        if !is_plain_name(&root.name) || header.roots.iter().any(|other: &Root| other.name == root.name) {
            faults.push(format!(
                "repository {name}: root.name: {:?} is not valid, or is defined twice",
                root.name
            ));
        }
        let clean = Path::new(&root.path);
        if !clean.is_absolute() || clean.components().any(|part| part == std::path::Component::ParentDir) {
            faults.push(format!("repository {name}: root.path: {:?}: must be an absolute path", root.path));
        }
        let live_path = root.path.trim_end_matches('/');
        header.roots.push(Root {
            name: root.name.clone(),
            live_path: if live_path.is_empty() { "/" } else { live_path }.to_owned(),
            subdirectory: if several { root.name.clone() } else { String::new() },
        });
    }
    let mut profile = assay_common::profile::named(path, &section.profile)?;
    if let Some(settle) = section.settle {
        profile.mark.settle = settle;
    }
    let root_names: Vec<_> = header.roots.iter().map(|root| root.name.as_str()).collect();
    let vars = profile.bind(&section.vars, &root_names).unwrap_or_else(|mistakes| {
        faults.extend(mistakes.into_iter().map(|mistake| format!("repository {name}: {mistake}")));
        BTreeMap::new()
    });
    let max_drop_percent = section.max_drop_percent.unwrap_or(DEFAULT_MAX_DROP_PERCENT);
    if max_drop_percent > 100 {
        faults.push(format!("repository {name}: max_drop_percent: must be 0 to 100"));
    }
    // What is wrong with it was told with its line, when the file was read.
    let schedule = section.schedule.as_ref().and_then(|section| schedule(section.get_ref()).ok());
    if section.max_age.is_some_and(|span| span.0.is_zero()) {
        faults.push(format!("repository {name}: max_age: must be greater than zero"));
    }
    if section.max_reading_age.is_some_and(|span| span.0.is_zero()) {
        faults.push(format!("repository {name}: max_reading_age: must be longer than no time"));
    }
    let snapshot = section.snapshot.as_ref().and_then(|snapshot| {
        let settings = snapshot.settings();
        let fault = |fault: String| format!("repository {name}: snapshot.{fault}");
        settings.map_err(|found| faults.extend(found.into_iter().map(fault))).ok()
    });
    if let Some(why) = profile.mark.no_snapshot.as_ref().filter(|_| snapshot.is_some()) {
        faults.push(format!(
            "repository {name}: snapshot: the profile {:?} cannot use one, leave it out: {why}",
            profile.name
        ));
    }
    let max_age = section
        .max_age
        .map(|span| span.0)
        .or_else(|| Some(2 * schedule.as_ref()?.longest_gap(jiff::Timestamp::now())?));
    if faults.len() > before {
        return Ok(None);
    }
    if let Err(fault) = FileRules::new(&profile, &vars, &section.exclude) {
        faults.push(format!("repository {name}: {fault}"));
        return Ok(None);
    }
    Ok(Some(Repository {
        name: name.clone(),
        alias: section.alias.clone(),
        profile,
        vars,
        header,
        one_file_system: section.roots.iter().map(|root| root.one_file_system).collect(),
        exclude: section.exclude.clone(),
        max_age,
        max_reading_age: section.max_reading_age.map(|span| span.0),
        schedule,
        max_drop_percent,
        full_read_every: section.full_read_every,
        ignore_attributes: section.ignore_attributes.clone(),
        clamp_times: section.clamp_times,
        snapshot,
        reread_within: section.reread_within.map_or(DEFAULT_REREAD_WITHIN, |span| span.0),
        reread_bytes_per_second: u64::from(section.reread_mib_per_second.unwrap_or(DEFAULT_REREAD_MIB)) << 20,
    }))
}

/// What is wrong with a schedule that has no slot from now on. The agent serves all the same, and says so: after years, or with a clock
/// that is wrong, this is no reason to take the other repositories down.
fn without_slots(file: &FileText, section: &RepositorySection) -> Option<String> {
    let spanned = section.schedule.as_ref()?;
    let schedule = schedule(spanned.get_ref()).ok()?;
    if schedule.next_slot(jiff::Timestamp::now()).is_some() {
        return None;
    }
    let (line, column) = config::position(&file.text, spanned.span().start);
    Some(format!(
        "{}:{line}:{column}: repository {}: schedule: never comes: there is no such day and time from now on",
        file.path.display(),
        section.name
    ))
}

/// The schedule is checked while the file is read, so that a fault has its line.
fn checked_schedule<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Spanned<ScheduleSection>>, D::Error> {
    let section = Spanned::<ScheduleSection>::deserialize(deserializer)?;
    schedule(section.get_ref()).map_err(|fault| serde::de::Error::custom(format!("schedule: {fault}")))?;
    Ok(Some(section))
}

fn schedule(section: &ScheduleSection) -> Result<Schedule, String> {
    let jitter = section.jitter.map_or(Duration::ZERO, |jitter| jitter.0);
    let slots = match (&section.every, &section.cron) {
        (Some(every), None) if every.0 < Duration::from_secs(1) => {
            return Err("every: must be at least \"1s\"".to_owned());
        }
        (Some(every), None) if every.0.subsec_nanos() % 1_000_000 != 0 => {
            return Err("every: must be a whole number of milliseconds".to_owned());
        }
        (Some(every), None) => Slots::Every(every.0),
        (None, Some(text)) => {
            let cron = croner::parser::CronParser::new().parse(text);
            Slots::Cron(Box::new(cron.map_err(|error| format!("cron: {error}"))?))
        }
        _ => return Err("must have one of 'every' and 'cron'".to_owned()),
    };
    Ok(Schedule { slots, jitter })
}

impl Repository {
    /// What placeholders stand for on the live host.
    pub fn scope(&self) -> Scope {
        let roots = self.header.roots.iter();
        Scope {
            roots: roots.map(|root| (root.name.clone(), PathBuf::from(&root.live_path))).collect(),
            vars: self.vars.clone(),
            ..Default::default()
        }
    }

    /// What a walk over this repository goes by beside names.
    pub fn ground(&self) -> Ground {
        Ground { one_file_system: self.one_file_system.clone(), ..Default::default() }
    }

    /// The profile's rules for this repository's files.
    pub fn rules(&self) -> FileRules {
        FileRules::new(&self.profile, &self.vars, &self.exclude).expect("the configuration was checked")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section_of(line: &str) -> (String, Result<RepositorySection, String>) {
        let text =
            format!("name = 'app'\nprofile = 'generic'\n\nschedule = {line}\n[[root]]\npath = '/srv'\n");
        let section = config::parse(Path::new("source.toml"), &text).map_err(|error| error.to_string());
        (text, section)
    }

    #[test]
    fn a_schedule_that_is_none_is_refused_with_its_line() {
        for (line, told) in [
            ("{ every = '1 lightyear' }", "a length of time"),
            ("{ cron = 'daily' }", "cron: "),
            ("{ every = '100ms' }", "every: must be at least"),
            ("{ every = '1500us' }", "every: must be at least"),
            ("{ every = '1500ms 1us' }", "every: must be a whole number of milliseconds"),
            ("{ every = '1h', cron = '* * * * *' }", "one of 'every' and 'cron'"),
            ("{ }", "one of 'every' and 'cron'"),
        ] {
            let fault = section_of(line).1.expect_err(line);
            assert!(fault.starts_with("source.toml:4:") && fault.contains(told), "{line}: {fault}");
        }
    }

    #[test]
    fn a_schedule_that_never_comes_is_told_with_its_line() {
        for (line, never) in [
            ("{ cron = '0 2 30 2 *' }", true),
            ("{ cron = '0 2 31 4,6,9,11 *' }", true),
            ("{ cron = '0 0 2 1 1 * 1999' }", true),
            ("{ every = '200000years' }", true),
            ("{ every = '1500ms' }", false),
            ("{ cron = '0 2 29 2 *' }", false),
            ("{ cron = '@daily' }", false),
        ] {
            let (text, section) = section_of(line);
            let file = FileText { path: "source.toml".into(), text };
            let fault = without_slots(&file, &section.expect(line));
            assert_eq!(fault.is_some(), never, "{line}: {fault:?}");
            if let Some(fault) = fault {
                let told = "source.toml:4:12: repository app: schedule: never comes";
                assert!(fault.starts_with(told), "{fault}");
            }
        }
    }
}
