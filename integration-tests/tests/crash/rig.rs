//! Two agents that die again and again: what is done to them, what they had promised by then, and what must hold afterwards.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::{FileExt as _, symlink},
    path::PathBuf,
    process::Child,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use assay_common::{fault::Agent, fault::Point, signing::VerifyingKey};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    disk::{Disk, Kind},
    judge::{Promises, judge, judge_settled, stragglers},
    noise,
    pair::{LIST, Pair, rsync_finds_no_difference},
};

/// Patience for a busy machine, not a measurement.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// What begins the names of the places that are passed before a run, while it is prepared.
const PREPARING: [&str; 3] = ["ahead", "copy.make", "copy.made"];
/// The large file, and a little more than the least that is copied ahead.
const PAGE_BYTES: usize = 8192;
const PAGES: usize = 4 * 1024 * 1024 / PAGE_BYTES + 3;

/// Which agent dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Victim {
    Source,
    Target,
}

impl Victim {
    pub(crate) fn role(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Source => Self::Target,
            Self::Target => Self::Source,
        }
    }

    /// Who passes a point.
    pub(crate) fn of(point: Point) -> Vec<Self> {
        match point.agent() {
            Agent::Source => vec![Self::Source],
            Agent::Target => vec![Self::Target],
            Agent::Both => vec![Self::Source, Self::Target],
        }
    }
}

/// What became of a run whose agent was to die.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// The place was not passed, and the run has ended by itself.
    NotReached,
    /// It left no new generation.
    Nothing,
    /// It left a generation without a verdict.
    Sealed,
    /// It left a verdict.
    Verdict,
}

impl Outcome {
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::NotReached => "not reached",
            Self::Nothing => "staging only",
            Self::Sealed => "sealed",
            Self::Verdict => "verdict",
        }
    }
}

/// How a run is started and followed.
struct Following {
    command: Child,
    lines: Arc<AtomicU64>,
}

/// A pair of agents with a tree that changes, a judge's memory, and a disk when the store is on one.
pub(crate) struct Rig {
    // Before the disk: the agents are gone when it is unmounted.
    pub(crate) pair: Pair,
    pub(crate) disk: Option<Disk>,
    promises: Promises,
    random: StdRng,
    round: u64,
    /// The source's state is on the disk as well.
    state_on_disk: bool,
    /// Files whose content the judge has compared, and how often it was asked.
    pub(crate) judged: (u64, u64),
    is_proven: bool,
}

impl Rig {
    /// Agents that are down, with one verified generation. The store is on a disk of this kind.
    pub(crate) fn new(kind: Option<Kind>, state_on_disk: bool, seed: u64) -> Self {
        let mark = "[mark]\nkind = \"command\"\nbegin = [\"sh\", \"-c\", \"touch ../held; echo mark\"]\n\
                    end = [\"rm\", \"-f\", \"../held\"]\n[copy]\nspecial_files = [\"fifo\"]\n";
        let pair = Pair::with_profile(&format!("{mark}{LIST}"), "max_drop_percent = 100\n").unproved();
        pair.kill("source");
        pair.kill("target");
        let disk = kind.map(|kind| {
            let disk = Disk::mount(&pair.path(""), kind, &pair.path("disk"));
            pair.configure("target", "store = \"store\"", "store = \"disk/store\"");
            // A check leaves 64 MiB by default, and these disks are small.
            pair.configure(
                "target",
                "source = \"source\"",
                "source = \"source\"\nreserve = \"0B\"\nlimits = { disk_reserve = \"1KiB\" }",
            );
            if state_on_disk {
                pair.configure("source", "state = \"state\"", "state = \"disk/state\"");
            }
            disk
        });
        // Against a killed target that comes back.
        pair.configure("source", "[[repository]]", "retry = \"60s\"\n[[repository]]");
        let random = StdRng::seed_from_u64(seed);
        let promises = Promises::default();
        let mut rig =
            Self { pair, disk, promises, random, round: 0, state_on_disk, judged: (0, 0), is_proven: false };
        rig.plant();
        rig.clean_run("the first run");
        rig
    }

    fn store(&self) -> PathBuf {
        self.pair.path(if self.disk.is_some() { "disk/store/repo" } else { "store/repo" })
    }

    fn state(&self) -> PathBuf {
        self.pair.path(if self.state_on_disk { "disk/state/repo" } else { "state/repo" })
    }

    /// What stays the same: an entry of every kind.
    fn plant(&self) {
        let at = |name: &str| self.pair.root(0).join(name);
        fs::create_dir(at("folder")).expect("mkdir");
        fs::create_dir(at("empty")).expect("mkdir");
        for file in 0..4 {
            fs::write(at(&format!("folder/still{file}")), noise(file, 3000 * file as usize)).expect("write");
        }
        fs::hard_link(at("folder/still1"), at("second name")).expect("link");
        symlink("folder/still2", at("link")).expect("symlink");
        fs::write(at("folder/large"), noise(99, 200_000)).expect("write");
        fs::write(at("folder/pages"), noise(98, PAGES * PAGE_BYTES)).expect("write");
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), fifo, rustix::fs::Mode::from_raw_mode(0o600), 0)
            .expect("mkfifo");
        rustix::fs::lsetxattr(at("folder/still3"), "user.note", b"text", rustix::fs::XattrFlags::empty())
            .expect("xattr");
    }

    /// A change that passes every step of a run: new content, content of which a part is as it was, a page of a file that is large
    /// enough to be copied ahead, a file that goes, a folder.
    fn edit(&mut self) {
        let round = self.round;
        self.round += 1;
        let at = |name: &str| self.pair.root(0).join(name);
        let mut large = fs::read(at("folder/large")).expect("read");
        let offset = self.random.random_range(0..large.len() - 3000);
        large[offset..offset + 2000].copy_from_slice(&noise(self.random.random(), 2000));
        fs::write(at("folder/large"), large).expect("write");
        let pages = fs::File::options().write(true).open(at("folder/pages")).expect("open");
        let page = noise(self.random.random(), PAGE_BYTES);
        let place = self.random.random_range(0..PAGES) * PAGE_BYTES;
        pages.write_all_at(&page, place as u64).expect("write");
        fs::write(at(&format!("new{}", round % 5)), noise(self.random.random(), 20_000)).expect("write");
        drop(fs::remove_file(at(&format!("new{}", (round + 2) % 5))));
        let (old, new) = (at(&format!("moves{}", round % 2)), at(&format!("moves{}", (round + 1) % 2)));
        match fs::rename(old, new) {
            Ok(()) => {}
            Err(_) => fs::create_dir(at(&format!("moves{}", (round + 1) % 2))).expect("mkdir"),
        }
    }

    fn keys(&self) -> (VerifyingKey, VerifyingKey) {
        let key = |name: &str| VerifyingKey::load(&self.pair.path(name)).expect("key");
        (key("pki/target-signing.pub"), key("pki/source-signing.pub"))
    }

    /// Envelopes that the source has received.
    fn received(&self) -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(self.state().join("verdicts")).into_iter().flatten().flatten();
        let whole = entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(".json"));
        whole
            .map(|entry| {
                (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).expect("a verdict"))
            })
            .collect()
    }

    /// Holds the store against all that was promised, and remembers what is there now.
    fn judge(&mut self, when: &str) {
        self.promises.verdicts.append(&mut self.received());
        let (target, source) = self.keys();
        let found = judge(&self.store(), (&target, &source), &self.promises);
        assert!(found.faults.is_empty(), "{when}: {:#?}\n{}", found.faults, self.pair.logs());
        self.promises = Promises { verdicts: std::mem::take(&mut self.promises.verdicts), ..found.promises };
        self.judged.0 += found.files;
        self.judged.1 += 1;
    }

    fn start(&self, victim: Victim, variables: &[(&str, String)]) -> bool {
        self.pair.set_environment(victim.role(), variables);
        self.pair.start_doomed(victim.role())
    }

    /// Waits until the tree of the newest generation is laid out and its large file is copied, as they are when nothing hurries,
    /// or until the target is dead: so every run takes the same way.
    fn wait_until_prepared(&self) {
        let start = Instant::now();
        while !self.is_prepared() && self.pair.is_alive("target") {
            assert!(start.elapsed() < PATIENCE, "the next run is not prepared\n{}", self.pair.logs());
            std::thread::park_timeout(LOOK_AGAIN);
        }
    }

    fn is_prepared(&self) -> bool {
        let generations = fs::read_dir(self.store().join("generations")).into_iter().flatten().flatten();
        let Some(newest) = generations.map(|entry| entry.path()).max() else {
            return true;
        };
        let record = fs::read(newest.join("record.json")).unwrap_or_default();
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap_or_default();
        ["ahead/of", "copies/of"].into_iter().all(|of| {
            let of = fs::read_to_string(self.store().join(of)).unwrap_or_default();
            // Behind the digest stands by which rules the tree was made.
            of.split_whitespace().next().is_some_and(|root| record["root_digest"] == root)
        })
    }

    fn follow(&self) -> Following {
        let mut command = self.pair.spawn_source(&["--json", "run", "--follow"]);
        let lines = Arc::new(AtomicU64::new(0));
        let (output, count) = (command.stdout.take().expect("piped"), Arc::clone(&lines));
        std::thread::spawn(move || {
            for _ in BufReader::new(output).lines().map_while(Result::ok) {
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        Following { command, lines }
    }

    /// Looks until `done`, or until the run has ended by itself. True when it was `done`.
    fn wait(&self, following: &mut Following, mut done: impl FnMut(&Following) -> bool) -> bool {
        let start = Instant::now();
        loop {
            if done(following) {
                return true;
            }
            if following.command.try_wait().expect("it is ours").is_some() {
                return done(following);
            }
            assert!(start.elapsed() < PATIENCE, "the run does not end\n{}", self.pair.logs());
            std::thread::park_timeout(LOOK_AGAIN);
        }
    }

    fn end(&self, mut following: Following) {
        drop(following.command.kill());
        drop(following.command.wait());
    }

    /// Prepares what a point needs to be passed at all.
    fn prepare(&self, point: Option<Point>) {
        if point == Some(Point::BasisFetch) {
            drop(fs::remove_dir_all(self.state().join("basis")));
        }
    }

    /// Starts both agents, the victim with a plan that kills it, and runs until it is dead. The other one is killed as well.
    pub(crate) fn kill_by_plan(&mut self, victim: Victim, plan: &str, point: Option<Point>) -> Outcome {
        self.prepare(point);
        self.edit();
        let trace = self.pair.path("trace");
        drop(fs::remove_file(&trace));
        let variables =
            [("ASSAY_FAULTS", plan.to_owned()), ("ASSAY_FAULTS_TRACE", trace.to_string_lossy().into_owned())];
        let started = self.start(victim, &variables) && self.start(victim.other(), &[]);
        if started {
            if !PREPARING.iter().any(|place| plan.starts_with(place)) {
                self.wait_until_prepared();
            }
            let mut following = self.follow();
            let died = self.wait(&mut following, |_| !self.pair.is_alive(victim.role()));
            // What is done behind the run's back may still come to the place.
            if !died && victim == Victim::Target {
                self.wait_until_prepared();
            }
            self.end(following);
        }
        // The trace tells for certain: a process that dies is still there for a moment.
        let died = fs::read_to_string(&trace).unwrap_or_default().lines().any(|line| line.ends_with('!'));
        self.settle_kill(victim, &format!("{} {plan}", victim.role()), died)
    }

    /// Kills an agent when so many messages of the run's progress have been seen.
    pub(crate) fn kill_by_progress(&mut self, victim: Victim, messages: u64) -> Outcome {
        self.edit();
        self.start(Victim::Target, &[]);
        self.start(Victim::Source, &[]);
        let mut following = self.follow();
        let died = self.wait(&mut following, |following| following.lines.load(Ordering::SeqCst) >= messages);
        self.pair.kill(victim.role());
        self.end(following);
        self.settle_kill(victim, &format!("{} after {messages} messages", victim.role()), died)
    }

    fn settle_kill(&mut self, victim: Victim, what: &str, died: bool) -> Outcome {
        self.pair.kill(victim.role());
        self.pair.kill(victim.other().role());
        let before = (self.promises.generations.len(), self.promises.ledger.len());
        self.judge(what);
        let after = (self.promises.generations.len(), self.promises.ledger.len());
        match died {
            false => Outcome::NotReached,
            true if after.1 > before.1 => Outcome::Verdict,
            true if after.0 > before.0 => Outcome::Sealed,
            true => Outcome::Nothing,
        }
    }

    /// The power goes when the target is at `plan`, and comes back.
    pub(crate) fn cut_by_plan(&mut self, plan: &str) -> Outcome {
        self.edit();
        let folder = self.pair.path("");
        let paused = folder.join("paused");
        let variables =
            [("ASSAY_FAULTS", plan.to_owned()), ("ASSAY_FAULTS_DIR", folder.to_string_lossy().into_owned())];
        // It may come to the place before it serves.
        self.pair.set_environment("target", &variables);
        let mut following = None;
        let mut reached = false;
        if self.pair.start_until("target", &paused) {
            self.start(Victim::Source, &[]);
            let mut run = self.follow();
            reached = self.wait(&mut run, |_| paused.exists());
            following = Some(run);
        }
        reached |= paused.exists();
        let before = (self.promises.generations.len(), self.promises.ledger.len());
        if reached {
            let target =
                i32::try_from(self.pair.process("target")).ok().and_then(Pid::from_raw).expect("a process");
            kill_process(target, Signal::STOP).expect("it runs");
            if self.state_on_disk {
                self.pair.kill("source");
            }
            // What the source has by now it has been told: it is not lost, whatever is.
            if !self.state_on_disk {
                self.promises.verdicts.append(&mut self.received());
            }
            let snapshot = self.disk.as_ref().expect("a disk").snapshot();
            self.pair.kill("target");
            self.disk.as_mut().expect("a disk").cut_to(snapshot);
            drop(fs::remove_file(&paused));
        }
        self.pair.kill("source");
        self.pair.kill("target");
        if let Some(following) = following {
            self.end(following);
        }
        self.judge(&format!("power cut at {plan}"));
        let after = (self.promises.generations.len(), self.promises.ledger.len());
        match reached {
            false => Outcome::NotReached,
            true if after.1 > before.1 => Outcome::Verdict,
            true if after.0 > before.0 => Outcome::Sealed,
            true => Outcome::Nothing,
        }
    }

    /// Starts both agents as they are installed: the next run passes, rsync finds no difference, and nothing is left of any crash.
    pub(crate) fn clean_run(&mut self, when: &str) {
        self.edit();
        assert!(self.start(Victim::Target, &[]), "{when}: the target does not start\n{}", self.pair.logs());
        assert!(self.start(Victim::Source, &[]), "{when}: the source does not start\n{}", self.pair.logs());
        let own = [self.pair.process("target"), self.pair.process("source")];
        let start = Instant::now();
        let folder = fs::canonicalize(self.pair.path("")).expect("it is there");
        loop {
            let left = stragglers(&folder, &own);
            if left.is_empty() {
                break;
            }
            assert!(start.elapsed() < PATIENCE, "{when}: these run still: {left:?}");
            std::thread::park_timeout(LOOK_AGAIN);
        }
        let done = self.pair.source(&["--json", "run", "--follow"]);
        assert_eq!(done.code, 0, "{when}: {done:?}\n{}", self.pair.logs());
        rsync_finds_no_difference(&self.pair.root(0), &self.store().join("latest/tree"));
        assert!(!self.pair.path("held").exists(), "{when}: the mark is still held");
        // The next run is prepared behind this one; then the agents are at rest.
        self.judge(when);
        self.wait_until_prepared();
        if !std::mem::replace(&mut self.is_proven, true) {
            // From now on each PASS counts at once.
            self.pair.prove();
        }
        let faults = judge_settled(&self.store(), &self.state());
        assert!(faults.is_empty(), "{when}: {faults:#?}\n{}", self.pair.logs());
        self.pair.kill("source");
        self.pair.kill("target");
    }

    /// How often a run passes each point, from the start of the agents to their rest.
    pub(crate) fn trace(&mut self, victim: Victim) -> BTreeMap<String, u64> {
        let path = self.pair.path("trace");
        drop(fs::remove_file(&path));
        self.edit();
        self.start(victim, &[("ASSAY_FAULTS_TRACE", path.to_string_lossy().into_owned())]);
        self.start(victim.other(), &[]);
        self.wait_until_prepared();
        let done = self.pair.source(&["--json", "run", "--follow"]);
        assert_eq!(done.code, 0, "{done:?}\n{}", self.pair.logs());
        self.judge("a traced run");
        self.wait_until_prepared();
        self.pair.kill("source");
        self.pair.kill("target");
        let mut passed = BTreeMap::new();
        for name in fs::read_to_string(&path).expect("a trace").lines() {
            *passed.entry(name.to_owned()).or_default() += 1;
        }
        passed
    }

    /// A number of the rig's own dice.
    pub(crate) fn dice(&mut self, sides: u64) -> u64 {
        self.random.random_range(0..sides.max(1))
    }
}

/// Runs with agents that stay up.
impl Rig {
    /// Starts both agents as they are installed.
    pub(crate) fn start_both(&mut self) {
        self.start(Victim::Target, &[]);
        self.start(Victim::Source, &[]);
    }

    /// Ends both.
    pub(crate) fn stop_both(&mut self) {
        self.pair.kill("source");
        self.pair.kill("target");
    }

    /// The next run has to fetch the base's manifest.
    pub(crate) fn forget_basis(&self) {
        drop(fs::remove_dir_all(self.state().join("basis")));
    }

    /// Starts both agents, one of them with errors that it will meet. Where it meets one before it serves, it is started again
    /// with the others. Returns the file that tells which have struck.
    pub(crate) fn start_gauntlet(&mut self, victim: Victim, faults: &[String]) -> PathBuf {
        let trace = self.pair.path("trace");
        drop(fs::remove_file(&trace));
        let mut faults: Vec<_> = faults.to_vec();
        loop {
            let variables = [
                ("ASSAY_FAULTS", faults.join(",")),
                ("ASSAY_FAULTS_TRACE", trace.to_string_lossy().into_owned()),
            ];
            if self.start(victim, &variables) {
                break;
            }
            let struck = fs::read_to_string(&trace).unwrap_or_default();
            let before = faults.len();
            faults.retain(|fault| {
                let name = fault.split('=').next().unwrap_or_default();
                !struck.lines().any(|line| line.strip_suffix('!') == Some(name))
            });
            assert!(faults.len() < before, "it does not start\n{}", self.pair.logs());
        }
        self.start(victim.other(), &[]);
        trace
    }

    /// One run, in words. The agent with the errors must be up afterwards.
    pub(crate) fn gauntlet_run(&mut self, victim: Victim) -> String {
        self.edit();
        let done = self.pair.source(&["--json", "run", "--follow"]);
        assert!(self.pair.is_alive(victim.role()), "it has ended: {done:?}\n{}", self.pair.logs());
        assert!(matches!(done.code, 0 | 3 | 4), "{done:?}\n{}", self.pair.logs());
        self.wait_for_preparation();
        let (target, source) = self.keys();
        let found = judge(&self.store(), (&target, &source), &self.promises);
        assert!(found.faults.is_empty(), "{done:?}: {:#?}\n{}", found.faults, self.pair.logs());
        let run =
            done.stdout.lines().last().and_then(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        match (done.code, run) {
            (0, _) => "PASS".to_owned(),
            (_, Some(run)) if run["reason"].is_string() => {
                format!("`{}`", run["reason"].as_str().expect("it is one"))
            }
            _ => "refused".to_owned(),
        }
    }

    /// The next run is prepared, or could not be.
    fn wait_for_preparation(&self) {
        let start = Instant::now();
        let log = self.pair.path("target.log");
        let failed = |text: &str| {
            let said = ["the next tree is not laid out", "large files are not copied ahead"];
            said.iter().map(|said| text.matches(said).count()).sum::<usize>()
        };
        let before = failed(&fs::read_to_string(&log).unwrap_or_default());
        while !self.is_prepared() && start.elapsed() < Duration::from_secs(1) {
            if failed(&fs::read_to_string(&log).unwrap_or_default()) > before {
                return;
            }
            std::thread::park_timeout(LOOK_AGAIN);
        }
    }

    /// The agents are as they were installed again; the run that passes is made by the same process.
    pub(crate) fn end_gauntlet(&mut self) {
        let done = self.pair.source(&["--json", "run", "--follow"]);
        assert_eq!(done.code, 0, "{done:?}\n{}", self.pair.logs());
        self.judge("the run after the last error");
        self.stop_both();
    }

    /// The same, when the run that passes must be made by this process of the target.
    pub(crate) fn end_gauntlet_of(&mut self, process: u32) {
        assert_eq!(self.pair.process("target"), process, "the target was started again");
        self.end_gauntlet();
    }

    /// One run with so many bytes free on the store's disk, and its exit code.
    pub(crate) fn run_with_room(&mut self, bytes: u64) -> i32 {
        self.start_both();
        self.wait_until_prepared();
        self.edit();
        let disk = self.disk.as_ref().expect("a disk");
        let filler = self.pair.path("disk/filler");
        let file = fs::File::create(&filler).expect("create");
        let (mut offset, mut step) = (0, 4 << 20);
        // Reserved in ever smaller pieces, because an allocation that does not fit is not made in part.
        while step >= 4096 {
            let room = disk.free_bytes().saturating_sub(bytes);
            let flags = rustix::fs::FallocateFlags::empty();
            let taken = room >= step && rustix::fs::fallocate(&file, flags, offset, step).is_ok();
            if taken {
                offset += step;
            } else {
                step /= 2;
            }
        }
        let done = self.pair.source(&["--json", "run", "--follow"]);
        drop(file);
        fs::remove_file(&filler).expect("remove");
        self.stop_both();
        self.judge(&format!("with {bytes} bytes free"));
        done.code
    }

    /// One run by agents that are up, over a link that something is done to. Bytes that the source sent, and the exit code.
    pub(crate) fn run_over_link(&mut self, trouble: impl FnOnce(&crate::link::Link)) -> (u64, i32) {
        self.edit();
        let before = self.pair.link().bytes();
        trouble(self.pair.link());
        let done = self.pair.source(&["--json", "run", "--follow"]);
        let sent = self.pair.link().bytes() - before;
        self.judge("a run over a bad link");
        (sent, done.code)
    }
}
