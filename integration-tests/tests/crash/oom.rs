//! The kernel kills an agent for want of memory in the middle of a run, as it does where a unit says `MemoryMax=`.

use std::{
    fs, io,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
};

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};

use crate::{
    noise,
    pair::{EVENTS, Pair, json, rsync_finds_no_difference},
};

/// Less than an agent takes for one connection.
const MOST_BYTES: u64 = 64 << 10;
/// Callers after which an agent that lives has memory enough.
const MOST_CALLERS: usize = 60;

/// A control group with a memory limit, of either version. It goes when this is dropped.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    /// Makes one below the memory controller of this machine.
    fn new(name: &str) -> io::Result<Self> {
        let table = fs::read_to_string("/proc/self/mountinfo")?;
        let mounts = table.lines().filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let (place, kind) = (left.split(' ').nth(4)?, right.split(' ').next()?);
            let is_memory = right.split([' ', ',']).any(|word| word == "memory");
            (kind == "cgroup2" || (kind == "cgroup" && is_memory)).then(|| Path::new(place).to_owned())
        });
        let mut fault = io::Error::new(io::ErrorKind::NotFound, "no cgroup file system is mounted");
        for mount in mounts {
            let own = Self(mount.join(name));
            match own.make() {
                Ok(()) => return Ok(own),
                Err(error) => fault = io::Error::new(error.kind(), format!("{}: {error}", mount.display())),
            }
        }
        Err(fault)
    }

    fn make(&self) -> io::Result<()> {
        fs::create_dir(&self.0)?;
        let limits = ["memory.max", "memory.limit_in_bytes"].map(|file| self.0.join(file));
        let limit = limits.iter().find(|file| file.exists());
        let limit = limit.ok_or_else(|| io::Error::other("it has no memory controller"))?;
        fs::write(limit, MOST_BYTES.to_string())?;
        // Without it the kernel would write pages out instead of killing.
        let swap = self.0.join("memory.swap.max");
        if swap.exists() { fs::write(swap, "0") } else { Ok(()) }
    }

    /// Puts a process into it. What it has already taken does not count.
    fn take(&self, process: u32) -> io::Result<()> {
        fs::write(self.0.join("cgroup.procs"), process.to_string())
    }

    /// Processes that the kernel has killed in it for want of memory.
    fn kills(&self) -> u64 {
        let files = ["memory.events", "memory.oom_control"].map(|file| fs::read_to_string(self.0.join(file)));
        let texts = files.into_iter().flatten().collect::<String>();
        let count = texts.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
        count.unwrap_or(0)
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        drop(fs::remove_dir(&self.0));
    }
}

/// The agent gets no more memory, until it dies of that. Says how it died.
fn starve_to_death(pair: &Pair, role: &str) {
    let process = pair.process(role);
    let group = match MemoryGroup::new(&format!("assay-test-{process}")) {
        Ok(group) => Some(group),
        Err(error) => {
            println!(
                "oom: {role}: this machine makes no memory cgroup ({error}); the address space is limited instead"
            );
            None
        }
    };
    match &group {
        Some(group) => group.take(process).expect("the group takes a process"),
        None => {
            let pid = i32::try_from(process).ok().and_then(Pid::from_raw).expect("a process");
            let limit = Rlimit { current: Some(MOST_BYTES), maximum: None };
            prlimit(Some(pid), Resource::As, limit).expect("it is ours");
        }
    }
    // Each caller costs it memory, as long as what it was given before does not suffice. The run waits meanwhile.
    let mut callers = 0;
    while pair.is_alive(role) && callers < MOST_CALLERS {
        let command = |arguments: &[&str]| {
            if role == "source" { pair.source(arguments) } else { pair.target(arguments) }
        };
        command(&["status"]);
        callers += 1;
    }
    let has_enough = pair.is_alive(role);
    if has_enough {
        println!(
            "oom: {role}: it needed no new memory for {callers} callers and is killed in the killer's place"
        );
        let pid = i32::try_from(process).ok().and_then(Pid::from_raw).expect("a process");
        kill_process(pid, Signal::KILL).expect("it is ours");
    }
    let status = pair.reap(role);
    if let Some(group) = group.filter(|_| !has_enough) {
        assert_eq!((status.signal(), group.kills()), (Some(Signal::KILL.as_raw()), 1), "{status}");
        println!("oom: {role}: the kernel's OOM killer has ended it: {status}");
    } else if !has_enough {
        println!("oom: {role}: it has ended for want of address space: {status}");
    }
}

fn notices(pair: &Pair, role: &str) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(pair.path(&format!("{role}-notices"))).unwrap_or_default();
    text.lines().filter(|line| line.ends_with('}')).map(json).collect()
}

/// The source's records of runs that have ended, oldest first.
fn ended(pair: &Pair) -> Vec<serde_json::Value> {
    let done = pair.source(&["--json", "runs"]);
    let mut runs: Vec<_> = done.stdout.lines().map(json).filter(|run| run["phase"] == "PHASE_DONE").collect();
    runs.reverse();
    runs
}

fn is_killed_in_the_middle_of_a_run(role: &'static str) {
    let pair = Pair::plain(1);
    for role in ["source", "target"] {
        let notices = pair.path(&format!("{role}-notices"));
        let script = format!("cat >> {0}; echo >> {0}", notices.display());
        let notify = format!(
            "[[notify]]\nkind = \"command\"\nargv = [\"/bin/sh\", \"-c\", {script:?}]\n{EVENTS}[tls]"
        );
        pair.restart_with(role, "[tls]", &notify);
    }
    fs::write(pair.root(0).join("large"), noise(1, 1 << 20)).expect("write");
    pair.run(0);
    fs::write(pair.root(0).join("large"), noise(2, 8 << 20)).expect("write");
    // In the middle of the content.
    pair.link().hold_after(2 << 20);
    pair.restart_with("source", "profile = ", "schedule = { every = \"1s\" }\nmax_age = \"1h\"\nprofile = ");
    pair.link().wait_until_held();
    let before = ended(&pair).len();
    let current = pair.source(&["--json", "runs"]).stdout;
    let current = json(current.lines().next().expect("a run"))["id"].clone();

    starve_to_death(&pair, role);
    pair.link().go_on();
    // As systemd does.
    pair.start(role);
    pair.eventually("runs pass again by themselves", || {
        let runs = ended(&pair);
        runs.iter().skip(before + 1).filter(|run| run["outcome"] == "OUTCOME_PASS").count() >= 2
    });
    let killed =
        ended(&pair).into_iter().find(|run| run["id"] == current).expect("the killed run has an end");
    println!("oom: {role}: the run ended {} {}: {}", killed["outcome"], killed["reason"], killed["message"]);
    if role == "source" {
        assert_eq!(killed["outcome"], "OUTCOME_NOT_RUN", "{killed}");
    }
    // Every end that is no PASS is told by the source, each once, and the target tells nothing twice.
    let told = |role: &str, id: &serde_json::Value| {
        let is_of_run = |notice: &serde_json::Value| {
            notice["run_id"] == *id && notice["event"] != "recovery" && notice["event"] != "trouble"
        };
        notices(&pair, role).iter().filter(|notice| is_of_run(notice)).count()
    };
    pair.eventually("each end that is no PASS is told", || {
        let runs = ended(&pair);
        let failed = runs.iter().filter(|run| run["outcome"] != "OUTCOME_PASS");
        failed.into_iter().all(|run| told("source", &run["id"]) > 0)
    });
    // What comes after a restart is no second telling either.
    pair.kill(role);
    pair.start(role);
    pair.eventually("a run passes after a further start", || {
        ended(&pair).last().is_some_and(|run| run["outcome"] == "OUTCOME_PASS")
    });
    for run in ended(&pair) {
        let expected = usize::from(run["outcome"] != "OUTCOME_PASS");
        assert_eq!(told("source", &run["id"]), expected, "{run}\n{:?}", notices(&pair, "source"));
        assert!(told("target", &run["id"]) <= 1, "{run}\n{:?}", notices(&pair, "target"));
    }
    pair.restart_with("source", "schedule = { every = \"1s\" }\n", "");
    pair.run(0);
    rsync_finds_no_difference(&pair.root(0), &pair.latest());
}

#[test]
fn a_source_that_is_killed_for_want_of_memory_goes_on_and_tells_once() {
    is_killed_in_the_middle_of_a_run("source");
}

#[test]
fn a_target_that_is_killed_for_want_of_memory_goes_on_and_tells_once() {
    is_killed_in_the_middle_of_a_run("target");
}
