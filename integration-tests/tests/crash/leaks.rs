//! Thousands of runs by one process each: memory, descriptors, threads and tasks stay where they were. `./test leaks` goes on for twenty
//! minutes with two repositories that each run once a second.

use std::{
    fmt,
    fs::{self, OpenOptions},
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    noise,
    pair::{Pair, free_port, plain_vars},
};

/// Runs before the first look: caches are filled, threads started.
const WARM_UP: u64 = 20;
/// Runs after that in the short mode.
const SHORT_RUNS: u64 = 30;
/// Patience for a busy machine, not a measurement.
const PATIENCE: Duration = Duration::from_secs(900);
/// What an allocator may keep for itself, in kilobytes.
const MEMORY_SLACK: u64 = 48 * 1024;

/// What a process holds.
#[derive(Debug, Clone, Copy)]
struct Held {
    resident_kilobytes: u64,
    descriptors: usize,
    threads: usize,
    tasks: u64,
}

impl fmt::Display for Held {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { resident_kilobytes, descriptors, threads, tasks } = self;
        write!(
            formatter,
            "{resident_kilobytes} kB resident, {descriptors} descriptors, {threads} threads, {tasks} tasks"
        )
    }
}

fn page(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    write!(stream, "GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").expect("write");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

fn sum(page: &str, name: &str) -> u64 {
    let lines = page.lines().filter(|line| line.starts_with(name));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
}

fn held(pair: &Pair, role: &str, port: u16) -> Held {
    let folder = format!("/proc/{}", pair.process(role));
    let status = fs::read_to_string(format!("{folder}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    let count = |name: &str| fs::read_dir(format!("{folder}/{name}")).expect("it runs").count();
    Held {
        resident_kilobytes: line.trim().trim_end_matches(" kB").parse().expect("a number"),
        descriptors: count("fd"),
        threads: count("task"),
        tasks: sum(&page(port), "assay_tasks"),
    }
}

fn bytes_below(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => bytes_below(&entry.path()),
            Ok(found) => found.len(),
            Err(_) => 0,
        })
        .sum()
}

#[test]
fn runs_leave_nothing_behind_in_the_agents() {
    let seconds = std::env::var("ASSAY_LEAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let long = Duration::from_secs(seconds);
    let pair = Pair::plain(1);
    pair.kill("source");
    pair.kill("target");
    for (role, further) in [
        (
            "source",
            format!(
                "[[repository]]\nname = \"second\"\nprofile = \"generic\"\nschedule = {{ every = \"1s\" }}\nmax_drop_percent = 100\n{}\n[[repository.root]]\npath = {:?}\n",
                plain_vars(),
                pair.path("second")
            ),
        ),
        (
            "target",
            format!(
                "[[repository]]\nname = \"second\"\nsource = \"source\"\nsource_key = \"pki/source-signing.pub\"\ncontrol_every = \"never\"\nretention = {{ last = 10, failed_last = 3 }}\nprofile = \"generic\"\n{}\n",
                plain_vars()
            ),
        ),
    ] {
        let file = OpenOptions::new().append(true).open(pair.path(&format!("{role}.toml")));
        file.expect("there").write_all(further.as_bytes()).expect("write");
    }
    pair.configure(
        "source",
        "name = \"repo\"\nprofile = ",
        "name = \"repo\"\nschedule = { every = \"1s\" }\nprofile = ",
    );
    pair.configure(
        "target",
        "name = \"repo\"\nsource = \"source\"",
        "name = \"repo\"\nretention = { last = 10, failed_last = 3 }\nsource = \"source\"",
    );
    let ports = ["source", "target"].map(|role| {
        let port = free_port();
        pair.configure(role, "[tls]", &format!("[metrics]\nlisten = \"127.0.0.1:{port}\"\n[tls]"));
        port
    });
    fs::create_dir(pair.path("second")).expect("mkdir");
    for (number, root) in [pair.root(0), pair.path("second")].iter().enumerate() {
        for file in 0..20 {
            fs::write(root.join(format!("file{file}")), noise(file + 100 * number as u64, 20_000))
                .expect("write");
        }
    }
    pair.start("target");
    pair.start("source");
    let mut round = 0;
    let mut until = |runs: u64, time: Instant| {
        let start = Instant::now();
        loop {
            let done = sum(&page(ports[0]), "assay_runs_total{");
            if done >= runs && Instant::now() >= time {
                return done;
            }
            assert!(start.elapsed() < PATIENCE + long, "{done} runs of {runs}\n{}", pair.logs());
            round += 1;
            for root in [pair.root(0), pair.path("second")] {
                fs::write(root.join("changes"), noise(round, 5000)).expect("write");
            }
            std::thread::park_timeout(Duration::from_millis(400));
        }
    };
    let first = until(WARM_UP, Instant::now());
    let look = || ["source", "target"].map(|role| held(&pair, role, ports[usize::from(role == "target")]));
    let sizes = || (bytes_below(&pair.path("state")), bytes_below(&pair.path("store/repo/ledger")));
    let (before, began, size_before) = (look(), Instant::now(), sizes());
    let last = until(first + SHORT_RUNS, began + long);
    let (after, size_after) = (look(), sizes());
    let runs = last - first;
    let end = page(ports[0]);
    let all = sum(&end, "assay_runs_total{");
    let of = |repository: &str| {
        sum(&end, &format!("assay_runs_total{{repository=\"{repository}\",outcome=\"pass\"}}"))
    };
    let passed = of("repo") + of("second");
    println!("{runs} runs in {:.0} s; {passed} of {all} passed", began.elapsed().as_secs_f64());
    println!(
        "state {} bytes, then {}; ledger {} bytes, then {}",
        size_before.0, size_after.0, size_before.1, size_after.1
    );
    for ((role, before), after) in ["source", "target"].iter().zip(before).zip(after) {
        println!("{role} at the start: {before}\n{role} at the end:   {after}");
        assert!(
            after.descriptors <= before.descriptors + 16,
            "{role} leaks descriptors: {before}, then {after}"
        );
        assert!(after.threads <= before.threads + 16, "{role} leaks threads: {before}, then {after}");
        assert!(after.tasks <= before.tasks + 32, "{role} leaks tasks: {before}, then {after}");
        let more = after.resident_kilobytes.saturating_sub(before.resident_kilobytes);
        assert!(more < MEMORY_SLACK, "{role} leaks memory: {before}, then {after}");
    }
    assert_eq!(passed, all, "not every run passed\n{}", pair.logs());
}
