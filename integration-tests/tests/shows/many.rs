//! Many repositories of one source: they are due at one minute, share one connection and one memory, and their checks queue.
//!
//! The short mode has thirty of them. `ASSAY_MANY_REPOSITORIES=100` (`./test many`) has as many as that says, twice in a row.

use std::{
    collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration, time::Instant,
};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::Value;

use crate::pair::{Pair, json};

/// Patience for a busy machine, not a measurement.
const PATIENCE: Duration = Duration::from_secs(1800);
/// What each agent may hold in memory at its highest.
const MEMORY_KIB: u64 = 256 * 1024;
/// Files of a root, and bytes of each.
const FILES: (usize, usize) = (8, 96 * 1024);

fn repositories() -> (usize, usize) {
    match std::env::var("ASSAY_MANY_REPOSITORIES") {
        Ok(number) => (number.parse().expect("a number"), 2),
        Err(_) => (30, 1),
    }
}

fn name(number: usize) -> String {
    format!("many-{number:03}")
}

/// Adds repositories beside the one that a pair has, each with a root of its own; the agents have to be started again.
fn add(pair: &Pair, number: usize, profile: &str, (on_source, on_target): (&str, &str)) {
    let (mut source, mut target) = (String::new(), String::new());
    for name in (0..number).map(name) {
        let root = pair.path(&name);
        fs::create_dir(&root).expect("mkdir");
        source.push_str(&format!(
            "[[repository]]\nname = {name:?}\nprofile = {profile:?}\n{on_source}[[repository.root]]\npath = {root:?}\n"
        ));
        target.push_str(&format!(
            "[[repository]]\nname = {name:?}\nsource = \"source\"\nsource_key = \"pki/source-signing.pub\"\n\
             control_every = \"never\"\nprofile = {profile:?}\n{on_target}"
        ));
    }
    let first = "[[repository]]\nname = \"repo\"";
    for (role, text) in [("source", source), ("target", target)] {
        pair.configure(role, first, &format!("{text}{first}"));
    }
}

/// The most memory that an agent has held, in KiB.
fn highest(pair: &Pair, role: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", pair.process(role))).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel says it");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Runs that have ended, by their repositories.
fn ended(pair: &Pair) -> BTreeMap<String, Vec<Value>> {
    let runs = pair.source(&["--json", "runs", "--limit", "1000"]);
    let mut ended: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for run in runs.stdout.lines().map(json) {
        let run = run.get("runs").cloned().unwrap_or(run);
        let all = run.as_array().cloned().unwrap_or_else(|| vec![run]);
        for run in all.into_iter().filter(|run| run["outcome"].is_string()) {
            ended.entry(run["repository"].as_str().expect("a name").to_owned()).or_default().push(run);
        }
    }
    ended
}

/// Connections that the source has to the target's proxy.
fn connections(pair: &Pair) -> usize {
    let port = format!(":{:04X} 01", pair.link().port());
    let own = fs::read_dir(format!("/proc/{}/fd", pair.process("source"))).expect("it runs").flatten();
    let sockets: Vec<_> = own
        .filter_map(|fd| {
            fs::read_link(fd.path())
                .ok()?
                .to_str()?
                .strip_prefix("socket:[")?
                .strip_suffix(']')
                .map(str::to_owned)
        })
        .collect();
    let table = fs::read_to_string("/proc/net/tcp").expect("the kernel's table");
    let to_target = table.lines().filter(|line| {
        line.split_whitespace().nth(2).is_some_and(|remote| {
            let state = line.split_whitespace().nth(3).unwrap_or_default();
            format!("{}{}", &remote[8..], format_args!(" {state}")) == port
        })
    });
    to_target
        .filter(|line| {
            line.split_whitespace().nth(9).is_some_and(|inode| sockets.iter().any(|own| own == inode))
        })
        .count()
}

/// All are due at the same moments: each passes, and neither agent needs more memory than for a few.
#[test]
fn repositories_that_are_due_at_one_minute_all_pass() {
    let (number, rounds) = repositories();
    let pair = Pair::plain(1).unproved();
    for role in ["source", "target"] {
        pair.kill(role);
    }
    let every = if number > 50 { "5m" } else { "1m" };
    let vars = "vars = { check = [\"true\"] }\n";
    let source = format!("{vars}schedule = {{ every = {every:?} }}\n");
    add(&pair, number, "generic", (&source, vars));
    for name in (0..number).map(name) {
        for file in 0..FILES.0 {
            let mut content = Vec::with_capacity(FILES.1);
            let mut reader = blake3::Hasher::new().update(format!("{name} {file}").as_bytes()).finalize_xof();
            content.resize(FILES.1, 0);
            reader.fill(&mut content);
            fs::write(pair.path(&name).join(file.to_string()), content).expect("write");
        }
    }
    pair.start("target");
    pair.start("source");
    let (started, mut most_connections, mut first) = (Instant::now(), 0, None);
    loop {
        let ended = ended(&pair);
        if first.is_none() && !ended.is_empty() {
            first = Some(Instant::now());
        }
        most_connections = most_connections.max(connections(&pair));
        let bad: Vec<_> =
            ended.values().flatten().filter(|run| run["outcome"] != "OUTCOME_PASS").take(3).collect();
        assert!(bad.is_empty(), "{bad:#?}\n{}", pair.logs());
        if ended.len() == number && ended.values().all(|runs| runs.len() >= rounds) {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "not in time: {} of {number}\n{}", ended.len(), pair.logs());
        std::thread::park_timeout(Duration::from_millis(500));
    }
    let took = first.map(|first| first.elapsed()).unwrap_or_default();
    let memory = ["source", "target"].map(|role| highest(&pair, role));
    let runs: usize = ended(&pair).values().map(Vec::len).sum();
    println!(
        "{number} repositories, {runs} runs, every one PASS; {:.0} s from the first end to the last; source {} MiB, target {} MiB at most; \
         {most_connections} connection(s)",
        took.as_secs_f64(),
        memory[0] / 1024,
        memory[1] / 1024
    );
    assert!(memory.iter().all(|kib| *kib <= MEMORY_KIB), "KiB: {memory:?}");
    // One that its last run has left may still be closing beside the next.
    assert!(most_connections <= 2, "{most_connections} connections of one source");
}

/// The gate that checks of a test wait at: each reads a line of it.
fn gated(gate: &Path) -> String {
    fs::set_permissions(gate, fs::Permissions::from_mode(0o755)).expect("chmod");
    mknodat(CWD, gate.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o666), 0).expect("mkfifo");
    fs::set_permissions(gate.join("fifo"), fs::Permissions::from_mode(0o666)).expect("chmod");
    let fifo = gate.join("fifo");
    format!(
        "[sandbox]\nvisible = [{gate:?}]\n[[check]]\nname = \"gate\"\nargv = [\"sh\", \"-c\", \"read line < {}\"]\nfail_exit = [1, 2]\n",
        fifo.display()
    )
}

/// The queue as `status` tells of it.
fn status(pair: &Pair) -> Value {
    let done = pair.target(&["--json", "status"]);
    assert_eq!(done.code, 0, "{done:?}");
    json(&done.stdout)
}

fn waiting(pair: &Pair) -> u64 {
    status(pair)["checks"]["waiting"].as_u64().unwrap_or(0)
}

/// Six repositories at once and one check at a time: five wait, and `status`, the run and the metrics say so. One that is cancelled while it
/// waits is not checked; the others are, one after the other.
#[test]
fn checks_queue_and_whoever_waits_can_be_seen_and_cancelled() {
    let gate = tempfile::Builder::new().prefix("assay-gate-").tempdir().expect("temp");
    let pair = Pair::with_profile(&gated(gate.path()), "").unproved();
    add(&pair, 6, "profile.toml", ("", ""));
    let [_, metrics] = crate::metrics::with_metrics(&pair);
    pair.restart_with(
        "target",
        "[agent]\n",
        "[agent]\nchecks_at_a_time = 1\ncheck_nice = 15\ncheck_io = \"idle\"\n",
    );
    let mut runs = Vec::new();
    for number in 0..6 {
        fs::write(pair.path(&name(number)).join("file"), name(number)).expect("write");
        let started = pair.source(&["--json", "run", &name(number)]);
        assert_eq!(started.code, 0, "{started:?}");
        runs.push(json(&started.stdout)["id"].as_str().expect("an id").to_owned());
        // In this order: the first one is being checked when the others come.
        pair.eventually("it has come", || {
            let checks = status(&pair)["checks"].clone();
            checks["running"] == 1 && checks["waiting"].as_u64().unwrap_or(0) == number as u64
        });
    }
    let shown = pair.target(&["status"]).stdout;
    assert!(shown.contains("1 running, 5 waiting") && shown.contains("1 at a time"), "{shown}");
    assert!(shown.contains("waiting for a check slot, 4 before it"), "{shown}");
    println!("{shown}");
    let page = crate::metrics::get(metrics, "/metrics");
    assert!(
        page.contains("\nassay_checks_waiting 5") && page.contains("assay_checks_oldest_wait_seconds"),
        "{page}"
    );
    pair.eventually("the source knows", || {
        let done = pair.source(&["status"]);
        done.stdout.contains("waiting for a check slot, 2 before it")
    });
    // The one in the middle is not wanted any more.
    let cancelled = pair.source(&["cancel", &runs[3]]);
    assert_eq!(cancelled.code, 0, "{cancelled:?}");
    pair.eventually("it waits no longer", || waiting(&pair) == 4);
    let ended = pair.source(&["--json", "watch", &runs[3]]);
    let ended = json(ended.stdout.lines().last().expect("a run"));
    assert_eq!(
        (&ended["outcome"], &ended["reason"]),
        (&"OUTCOME_NOT_RUN".into(), &"cancelled".into()),
        "{ended}"
    );
    assert!(
        ended["verdictId"].as_str().is_some_and(|id| !id.is_empty()),
        "its end is in the ledger: {ended}"
    );
    for number in [0, 1, 2, 4, 5] {
        // Opened by the check that is next, and by no other: they come one after the other.
        fs::write(gate.path().join("fifo"), "go\n").expect("write");
        let watched = pair.source(&["--json", "watch", &runs[number]]);
        assert_eq!(watched.code, 0, "{watched:?}\n{}", pair.logs());
    }
    assert_eq!(waiting(&pair), 0);
}

/// A check that waits for too long is INCONCLUSIVE and says why, and the copy can be checked later. A run whose repository is being checked
/// waits for the target instead of ending NOT_RUN.
#[test]
fn a_check_waits_for_a_limited_time_and_a_run_for_a_busy_target() {
    let gate = tempfile::Builder::new().prefix("assay-gate-").tempdir().expect("temp");
    let pair = Pair::with_profile(&gated(gate.path()), "").unproved();
    add(&pair, 1, "profile.toml", ("", ""));
    pair.restart_with("target", "[agent]\n", "[agent]\nchecks_at_a_time = 1\ncheck_wait = \"1s\"\n");
    pair.restart_with("source", "[target]\n", "[target]\nwait = \"10m\"\n");
    fs::write(pair.root(0).join("file"), "one").expect("write");
    fs::write(pair.path(&name(0)).join("file"), "other").expect("write");
    let first = pair.source(&["--json", "run", "repo"]);
    let first = json(&first.stdout)["id"].as_str().expect("an id").to_owned();
    pair.eventually("it is being checked", || status(&pair)["checks"]["running"] == 1);
    let second = pair.source(&["--json", "run", &name(0), "--follow"]);
    let run = json(second.stdout.lines().last().expect("a run"));
    assert_eq!((second.code, &run["reason"]), (3, &"check-not-started".into()), "{run}");
    assert!(run["message"].as_str().is_some_and(|text| text.contains("agent.checks_at_a_time")), "{run}");
    // The source goes away, and its check goes on: the next run finds the target busy.
    pair.kill("source");
    pair.start("source");
    let next = pair.source(&["--json", "run", "repo"]);
    let next = json(&next.stdout)["id"].as_str().expect("an id").to_owned();
    pair.eventually("it waits for the target", || {
        pair.source(&["status"]).stdout.contains("waiting for the target, which is busy")
    });
    assert_ne!(first, next);
    fs::write(gate.path().join("fifo"), "go\n").expect("write");
    pair.eventually("it goes on", || !pair.source(&["status"]).stdout.contains("waiting for the target"));
    fs::write(gate.path().join("fifo"), "go\n").expect("write");
    let watched = pair.source(&["--json", "watch", &next]);
    assert_eq!(watched.code, 0, "{watched:?}\n{}", pair.logs());
}
