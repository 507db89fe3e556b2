//! Agents under a schedule of one second that are killed, stopped, starved and given a wrong clock. After each fault runs go on by
//! themselves, and everything that happened was told: in notices, each once, and by `status`, `health` and the metrics meanwhile.
//!
//! The short mode has each fault once. `./test starve` goes on for ten minutes with each agent.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use assay_common::{ledger::Ledger, verdict::unverified_verdict};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};

use crate::{
    noise,
    pair::{EVENTS, Pair, free_port, json, rsync_finds_no_difference, wrong_clock},
};

/// Patience for a busy machine, not a measurement.
const PATIENCE: Duration = Duration::from_secs(180);
/// How far the clock jumps, in seconds: the certificates are valid from an hour ago on.
const JUMP: i64 = 1800;
/// Runs that must pass by themselves before the next fault.
const RUNS_BETWEEN: usize = 2;

/// What is done to an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Kill,
    Terminate,
    Stop,
    /// Its state (source) or its store (target).
    FullDisk,
    ReadOnlyDisk,
    NoInodes,
    FullLog,
    FullTemporary,
    Descriptors,
    Memory,
    ClockAhead,
    ClockBack,
}

impl Fault {
    const ALL: [Self; 12] = [
        Self::Kill,
        Self::Terminate,
        Self::Stop,
        Self::FullDisk,
        Self::ReadOnlyDisk,
        Self::NoInodes,
        Self::FullLog,
        Self::FullTemporary,
        Self::Descriptors,
        Self::Memory,
        Self::ClockAhead,
        Self::ClockBack,
    ];

    /// The trouble that the agent itself must tell of meanwhile.
    fn trouble(self, role: &str) -> Option<&'static str> {
        match (self, role) {
            (Self::FullDisk | Self::ReadOnlyDisk | Self::NoInodes, "source") => Some("state-unusable"),
            (Self::FullDisk | Self::ReadOnlyDisk | Self::NoInodes, _) => Some("store-unusable"),
            (Self::FullLog, _) => Some("log-unwritable"),
            (Self::ClockAhead | Self::ClockBack, _) => Some("clock-jumped"),
            _ => None,
        }
    }

    /// How long it lasts at least, where nothing of the agent's says that it has met it.
    fn shortest(self) -> Duration {
        match self {
            Self::Stop | Self::FullTemporary | Self::Descriptors | Self::Memory => Duration::from_secs(3),
            _ => Duration::ZERO,
        }
    }

    /// True for what keeps the agent from its work: then `health` must say so.
    fn stops_work(self) -> bool {
        matches!(self, Self::FullDisk | Self::ReadOnlyDisk | Self::NoInodes)
    }
}

/// A file system in memory, whose room can be changed.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf, options: &str) -> Self {
        fs::create_dir_all(&at).expect("mkdir");
        let small = Self(at);
        small.mount_with(&["-t", "tmpfs", "-o", options, "assay-test"]);
        small
    }

    fn mount_with(&self, arguments: &[&str]) {
        let done = Command::new("mount").args(arguments).arg(&self.0).output().expect("mount is there");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    fn remount(&self, options: &str) {
        self.mount_with(&["-o", &format!("remount,{options}")]);
    }

    /// Takes all room that is left.
    fn fill(&self) {
        let mut file =
            fs::File::options().create(true).append(true).open(self.0.join("filler")).expect("create");
        let mut step = vec![0; 1 << 20];
        while !step.is_empty() {
            // Ever smaller: a write that does not fit is made in part, or not at all.
            if file.write_all(&step).is_err() {
                step.truncate(step.len() / 2);
            }
        }
    }

    /// Takes all inodes that are left.
    fn fill_inodes(&self) {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let folder = self.0.join("fillers");
        // When it is there already, or when no inode is left for it, what is left is too little for it as well.
        drop(fs::create_dir(&folder));
        while fs::File::create(folder.join(NEXT.fetch_add(1, Ordering::Relaxed).to_string())).is_ok() {}
    }

    fn empty(&self) {
        drop(fs::remove_file(self.0.join("filler")));
        drop(fs::remove_dir_all(self.0.join("fillers")));
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily: an agent that is being ended may still be in it.
        drop(Command::new("umount").arg("--lazy").arg(&self.0).status());
    }
}

/// A pair of agents, one of which is to suffer.
struct Starving {
    // Before the disks: the agents are gone when they are unmounted.
    pair: Pair,
    role: &'static str,
    metrics: [u16; 2],
    disk: Small,
    log: Small,
    temporary: Small,
    round: u64,
    report: String,
    faults: u64,
    /// The fault that is under way.
    suffers: Option<Fault>,
    /// Verdicts that need no notice, or have one.
    heard: RefCell<BTreeSet<String>>,
}

fn page(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(stream, "GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

impl Starving {
    fn new(role: &'static str) -> Self {
        let pair = Pair::plain(1);
        fs::write(pair.root(0).join("file"), "first").expect("write");
        fs::write(pair.root(0).join("large"), noise(1, 1 << 20)).expect("write");
        pair.kill("source");
        pair.kill("target");
        let disk = Small::mount(pair.path("small"), "size=192m,nr_inodes=60k");
        let log = Small::mount(pair.path("log"), "size=2m");
        let temporary = Small::mount(pair.path("temporary"), "size=1m");
        if role == "source" {
            pair.configure("source", "state = \"state\"", "state = \"small/state\"");
        } else {
            pair.configure("target", "store = \"store\"", "store = \"small/store\"");
        }
        let limits = "source = \"source\"\nretention = { last = 5, failed_last = 3 }\nlimits = { disk_reserve = \"1MiB\" }";
        pair.configure("target", "source = \"source\"", limits);
        let metrics = ["source", "target"].map(|role| {
            let port = free_port();
            let notices = pair.path(&format!("{role}-notices"));
            let script = format!("cat >> {0}; echo >> {0}", notices.display());
            let notify = format!(
                "[[notify]]\nkind = \"command\"\nargv = [\"/bin/sh\", \"-c\", {script:?}]\n{EVENTS}[tls]"
            );
            pair.configure(role, "[tls]", &format!("[metrics]\nlisten = \"127.0.0.1:{port}\"\n{notify}"));
            port
        });
        // The log of the one that suffers is on a disk of its own.
        let link = pair.path(&format!("{role}.log"));
        drop(fs::remove_file(&link));
        std::os::unix::fs::symlink(pair.path(&format!("log/{role}.log")), link).expect("link");
        fs::write(pair.path("clock"), "+0").expect("write");
        let mut own = Self {
            pair,
            role,
            metrics,
            disk,
            log,
            temporary,
            round: 0,
            report: String::new(),
            faults: 0,
            suffers: None,
            heard: RefCell::default(),
        };
        own.start_target();
        own.start_source();
        own.pair.run(0);
        own.pair.restart_with(
            "source",
            "profile = ",
            "schedule = { every = \"1s\" }\nmax_age = \"1h\"\nprofile = ",
        );
        own
    }

    fn environment(&self, role: &str) {
        let temporary = self.pair.path("temporary").to_string_lossy().into_owned();
        let mut variables = wrong_clock(&format!("@{}", self.pair.path("clock").display()));
        variables.push(("TMPDIR", temporary));
        if role == self.role {
            self.pair.set_environment(role, &variables);
        }
    }

    fn start_target(&mut self) {
        self.environment("target");
        self.pair.start("target");
    }

    fn start_source(&mut self) {
        self.environment("source");
        self.pair.start("source");
    }

    fn port(&self) -> u16 {
        self.metrics[usize::from(self.role == "target")]
    }

    fn pid(&self) -> Pid {
        let process = self.pair.process(self.role);
        i32::try_from(process).ok().and_then(Pid::from_raw).expect("a process")
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("it runs");
    }

    fn state(&self) -> PathBuf {
        self.pair.path(if self.role == "source" { "small/state/repo" } else { "state/repo" })
    }

    fn store(&self) -> PathBuf {
        self.pair.path(if self.role == "target" { "small/store/repo" } else { "store/repo" })
    }

    /// The source's records of runs that have ended, by their number.
    fn runs(&self) -> BTreeMap<u64, serde_json::Value> {
        let entries = fs::read_dir(self.state().join("runs")).into_iter().flatten().flatten();
        let texts = entries.filter_map(|entry| fs::read_to_string(entry.path()).ok());
        let runs = texts.filter_map(|text| serde_json::from_str::<serde_json::Value>(&text).ok());
        let ended = runs.filter(|run| run["phase"] == "PHASE_DONE");
        ended.filter_map(|run| Some((run["sequence"].as_u64()?, run))).collect()
    }

    fn notices(&self, role: &str) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(self.pair.path(&format!("{role}-notices"))).unwrap_or_default();
        text.lines().filter(|line| line.ends_with('}')).map(json).collect()
    }

    /// Starts again what has ended, as systemd does, and looks until `ready`.
    fn wait(&mut self, what: &str, mut ready: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        while !ready(self) {
            // What the agent gives back is taken by others at once, as on a disk that somebody else fills.
            match self.suffers {
                Some(Fault::FullDisk) => self.disk.fill(),
                Some(Fault::NoInodes) => self.disk.fill_inodes(),
                _ => {}
            }
            for role in ["target", "source"] {
                if !self.pair.is_alive(role) {
                    let _ = writeln!(self.report, "  {role} has ended and is started again");
                    self.environment(role);
                    self.pair.kill(role);
                    self.pair.start_doomed(role);
                }
            }
            assert!(start.elapsed() < PATIENCE, "not in time: {what}\n{}\n{}", self.report, self.pair.logs());
            std::thread::park_timeout(Duration::from_millis(250));
        }
    }

    /// A change that a run has to copy; a large one needs memory and descriptors.
    fn edit(&mut self) {
        self.round += 1;
        fs::write(self.pair.root(0).join("file"), format!("round {}", self.round)).expect("write");
        fs::write(self.pair.root(0).join("large"), noise(self.round, 1 << 20)).expect("write");
    }

    /// Runs pass by themselves.
    fn goes_on(&mut self) {
        self.edit();
        let newest = self.runs().keys().last().copied().unwrap_or_default();
        self.wait("runs pass again by themselves", |own| {
            let runs = own.runs();
            let passes = runs.range(newest + 1..).filter(|(_, run)| run["outcome"] == "OUTCOME_PASS");
            passes.count() >= RUNS_BETWEEN
        });
    }

    fn limit(&self, resource: Resource, most: Option<u64>) {
        let limit = Rlimit { current: most, maximum: None };
        // It may have ended of it by now.
        prlimit(Some(self.pid()), resource, limit).ok();
    }

    fn virtual_bytes(&self) -> u64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.pid().as_raw_nonzero())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmSize:")).expect("a size");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// What an operator sees now: of `status`, `health` and the metrics.
    fn look(&self) -> (String, i32, String) {
        let command = |arguments: &[&str]| {
            if self.role == "source" { self.pair.source(arguments) } else { self.pair.target(arguments) }
        };
        let (status, health) = (command(&["status"]), command(&["health"]));
        let metrics = page(self.port()).unwrap_or_default();
        (status.stdout, health.code, metrics)
    }

    /// In one step: the library reads the file at any time.
    fn set_clock(&self, by: &str) {
        fs::write(self.pair.path("clock.new"), by).expect("write");
        fs::rename(self.pair.path("clock.new"), self.pair.path("clock")).expect("rename");
    }

    fn begin(&mut self, fault: Fault) {
        match fault {
            Fault::Kill => self.signal(Signal::KILL),
            Fault::Terminate => self.signal(Signal::TERM),
            Fault::Stop => self.signal(Signal::STOP),
            Fault::FullDisk => self.disk.fill(),
            Fault::ReadOnlyDisk => {
                // Who has a file open for writing keeps the file system from it: a bind mount can be closed all the same.
                self.disk.mount_with(&["--bind", &self.disk.0.to_string_lossy()]);
                self.disk.remount("bind,ro");
            }
            Fault::NoInodes => self.disk.fill_inodes(),
            Fault::FullLog => self.log.fill(),
            Fault::FullTemporary => self.temporary.fill(),
            Fault::Descriptors => self.limit(Resource::Nofile, Some(64)),
            Fault::Memory => self.limit(Resource::As, Some(self.virtual_bytes() + (2 << 20))),
            Fault::ClockAhead => self.set_clock(&format!("+{JUMP}")),
            Fault::ClockBack => self.set_clock(&format!("-{JUMP}")),
        }
    }

    fn end(&mut self, fault: Fault) {
        match fault {
            Fault::Kill | Fault::Terminate => {}
            Fault::Stop => self.signal(Signal::CONT),
            Fault::FullDisk | Fault::NoInodes => self.disk.empty(),
            Fault::ReadOnlyDisk => {
                let done = Command::new("umount").arg("--lazy").arg(&self.disk.0).status();
                assert!(done.is_ok_and(|status| status.success()));
            }
            Fault::FullLog => self.log.empty(),
            Fault::FullTemporary => self.temporary.empty(),
            Fault::Descriptors | Fault::Memory => {
                let resource = if fault == Fault::Memory { Resource::As } else { Resource::Nofile };
                if self.pair.is_alive(self.role) {
                    self.limit(resource, Some(1 << 40).filter(|_| fault == Fault::Memory).or(Some(4096)));
                }
            }
            Fault::ClockAhead | Fault::ClockBack => self.set_clock("+0"),
        }
    }

    /// One fault, from its beginning until runs go on and all has been told.
    fn suffer(&mut self, fault: Fault, hold: Duration) {
        self.faults += 1;
        self.report.clear();
        let (role, began) = (self.role, Instant::now());
        let before = ["source", "target"].map(|role| self.notices(role).len());
        self.edit();
        self.begin(fault);
        self.suffers = Some(fault);
        if let Some(kind) = fault.trouble(role) {
            let line = format!("assay_trouble{{kind=\"{kind}\"}}");
            self.wait(&format!("{fault:?}: {role} tells of {kind} in its metrics"), |own| {
                let metrics = page(own.port()).unwrap_or_default();
                metrics.lines().any(|found| {
                    found.starts_with("assay_trouble{") && found.contains(kind) && found.contains("} 1")
                })
            });
            let _ = writeln!(self.report, "  metrics have {line}");
            self.wait(&format!("{fault:?}: {role} tells of {kind}"), |own| {
                own.notices(role)[before[usize::from(role == "target")]..]
                    .iter()
                    .any(|notice| notice["event"] == "trouble" && notice["reason"] == kind)
            });
        }
        if !matches!(fault, Fault::Kill | Fault::Terminate | Fault::Stop | Fault::Memory) {
            if fault.stops_work() {
                self.wait(&format!("{fault:?}: health says that the {role} does not work"), |own| {
                    own.look().1 == 4
                });
            }
            let (status, health, metrics) = self.look();
            if let Some(kind) = fault.trouble(role) {
                assert!(
                    status.contains(kind),
                    "{fault:?}: status of {role} does not tell of {kind}:\n{status}"
                );
            }
            for line in status.lines().filter(|line| line.contains("TROUBLE") || line.contains("last run")) {
                let _ = writeln!(self.report, "  status: {}", line.trim());
            }
            let _ = writeln!(self.report, "  health: exit code {health}");
            for line in
                metrics.lines().filter(|line| line.starts_with("assay_trouble{") && line.contains("} 1"))
            {
                let _ = writeln!(self.report, "  metrics: {line}");
            }
        }
        // Longer in the long mode. The end of the fault is the test's to choose, whatever has happened by then.
        let until = Instant::now() + hold.max(fault.shortest());
        while Instant::now() < until {
            std::thread::park_timeout(until.saturating_duration_since(Instant::now()));
        }
        self.suffers = None;
        self.end(fault);
        self.goes_on();
        self.all_was_told(fault);
        for role in ["source", "target"] {
            for notice in &self.notices(role)[before[usize::from(role == "target")]..] {
                let _ = writeln!(
                    self.report,
                    "  {role} told: {}",
                    notice["summary"].as_str().unwrap_or_default()
                );
            }
        }
        println!("{role}: {fault:?}, {:.1} s\n{}", began.elapsed().as_secs_f64(), self.report);
    }

    /// Every end that was no PASS was told, by both agents, and nothing was told twice.
    fn all_was_told(&mut self, fault: Fault) {
        self.wait(&format!("{fault:?}: all ends are told"), |own| own.untold().is_empty());
        for role in ["source", "target"] {
            let mut ids = BTreeSet::new();
            for notice in self.notices(role) {
                let id = notice["id"].as_str().expect("an id").to_owned();
                assert!(ids.insert(id), "{fault:?}: the {role} has told twice: {notice}");
            }
        }
        if let Some(kind) = fault.trouble(self.role).filter(|kind| *kind != "clock-jumped") {
            let role = self.role;
            self.wait(&format!("{fault:?}: the end of {kind} is told"), |own| {
                let notices = own.notices(role);
                let of_kind =
                    |notice: &&serde_json::Value| notice["event"] == "trouble" && notice["reason"] == kind;
                let newest = notices.iter().rfind(of_kind);
                newest
                    .and_then(|notice| notice["message"].as_str())
                    .is_some_and(|text| text.starts_with("over: "))
            });
        }
    }

    /// Ends in the source's records and in the target's ledger of which there is no notice.
    fn untold(&self) -> Vec<String> {
        let told = |role: &str| -> BTreeSet<String> {
            let notices = self.notices(role);
            notices.iter().filter_map(|notice| Some(notice["id"].as_str()?.to_owned())).collect()
        };
        let (by_source, by_target) = (told("source"), told("target"));
        let mut untold = Vec::new();
        for run in self.runs().values() {
            let event = match run["outcome"].as_str().unwrap_or_default() {
                "OUTCOME_NOT_RUN" => "not-run",
                "OUTCOME_INCONCLUSIVE" => "inconclusive",
                "OUTCOME_FAIL" => "fail",
                _ => continue,
            };
            let id = format!("repo/{}/{event}", run["id"].as_str().unwrap_or_default());
            if !by_source.contains(&id) {
                untold.push(format!("source: {id}"));
            }
        }
        let ledger = Ledger::at(&self.store().join("ledger"));
        let mut heard = self.heard.borrow_mut();
        for id in ledger.entries().unwrap_or_default() {
            let name = id.to_string();
            if heard.contains(&name) {
                continue;
            }
            let Some(verdict) =
                ledger.get(&id.to_string()).ok().and_then(|bytes| unverified_verdict(&bytes).ok())
            else {
                continue;
            };
            let event = match verdict.outcome.to_string().as_str() {
                "NOT_RUN" => "not-run",
                "INCONCLUSIVE" => "inconclusive",
                "FAIL" => "fail",
                _ => {
                    heard.insert(name);
                    continue;
                }
            };
            let id = format!("repo/{}/{event}", verdict.run_id);
            if by_target.contains(&id) {
                heard.insert(name);
            } else {
                untold.push(format!("target: {id}"));
            }
        }
        untold
    }
}

/// How long each agent suffers; zero for the short mode.
fn long() -> Duration {
    let seconds = std::env::var("ASSAY_STARVE_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(0))
}

fn starve(role: &'static str) {
    let mut starving = Starving::new(role);
    let (began, long) = (Instant::now(), long());
    let mut hold = Duration::ZERO;
    loop {
        for fault in Fault::ALL {
            starving.suffer(fault, hold);
            if began.elapsed() > long && !long.is_zero() {
                break;
            }
        }
        if began.elapsed() >= long {
            break;
        }
        // Each round lasts longer than the one before, up to what makes connections end.
        hold = (hold + Duration::from_secs(5)).min(Duration::from_secs(45));
    }
    // With the schedule gone: what is there is what is alive.
    starving.pair.restart_with("source", "schedule = { every = \"1s\" }\n", "");
    starving.pair.run(0);
    rsync_finds_no_difference(&starving.pair.root(0), &starving.store().join("latest/tree"));
    let runs = starving.runs();
    let passed = runs.values().filter(|run| run["outcome"] == "OUTCOME_PASS").count();
    println!(
        "{role}: {} faults in {:.0} s; of the {} newest runs {passed} passed, {} did not, and each of those was told once",
        starving.faults,
        began.elapsed().as_secs_f64(),
        runs.len(),
        runs.len() - passed,
    );
}

#[test]
fn a_source_that_starves_goes_on_and_tells() {
    starve("source");
}

#[test]
fn a_target_that_starves_goes_on_and_tells() {
    starve("target");
}
