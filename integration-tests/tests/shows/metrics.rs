//! What the agents make known of themselves: metrics, health, systemd, and what is made from the command line's definition.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use assay_common::{
    metrics::{
        CheckQueueFacts, ControlFacts, Facts, Page, RepositoryFacts, RestoreFacts, RunQueueFacts, ScrubFacts,
        StoreFacts,
    },
    notify::Notifier,
    traceless::Traceless,
    traces::Tracer,
    verdict::{Outcome, Trust},
    watch::{Ended, PhaseTaken, Watch},
};
use assay_proto::v1::Counts;

use crate::{
    pair::{Pair, free_port, program, rsync_finds_no_difference},
    scrub::flip,
};

/// One GET, as any HTTP client makes it.
pub(crate) fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a limit");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").expect("write");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

/// Turns metrics on at both ends; gives the ports, the source's first.
pub(crate) fn with_metrics(pair: &Pair) -> [u16; 2] {
    ["source", "target"].map(|role| {
        let port = free_port();
        let section = format!("[metrics]\nlisten = \"127.0.0.1:{port}\"\n[tls]");
        pair.restart_with(role, "[tls]", &section);
        port
    })
}

/// The value of a sample, whose name stands as the page has it, with its labels.
fn value(page: &str, sample: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{sample} is missing in:\n{page}")).trim().parse().expect("a number")
}

pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// Both pages say what the run was, and everything that rules and dashboard ask for is on them.
#[test]
fn metrics_tell_of_the_newest_run_and_cover_rules_and_dashboard() {
    let pair = Pair::plain(1);
    let [source, target] = with_metrics(&pair);
    fs::write(pair.root(0).join("file"), vec![7; 100_000]).expect("write");
    let before = get(source, "/metrics");
    assert_eq!(value(&before, "assay_last_pass_age_seconds{repository=\"repo\"}"), f64::INFINITY);
    pair.run(0);
    // The second one is the first whose checker is known to find damage when it ends.
    fs::write(pair.root(0).join("file"), vec![8; 100_000]).expect("write");
    let run = pair.run(0);
    // The run is over for those who watch it a moment before it is for the page.
    let passed = "assay_runs_total{repository=\"repo\",outcome=\"pass\"} 2";
    pair.eventually("the page knows", || get(source, "/metrics").contains(passed));
    let pages = [get(source, "/metrics"), get(target, "/metrics")];
    for (page, role) in pages.iter().zip(["source", "target"]) {
        assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
        assert!(page.contains(&format!("role=\"{role}\"")) && page.trim_end().ends_with("# EOF"), "{page}");
        let age = value(page, "assay_last_pass_age_seconds{repository=\"repo\"}");
        assert!((0.0..600.0).contains(&age), "{age}");
        assert_eq!(value(page, "assay_last_run_outcome{repository=\"repo\",outcome=\"pass\"}"), 1.0);
        assert_eq!(value(page, "assay_last_run_outcome{repository=\"repo\",outcome=\"fail\"}"), 0.0);
        assert_eq!(value(page, "assay_runs_total{repository=\"repo\",outcome=\"pass\"}"), 2.0);
        // The generic profile's check may look at anything: it proves nothing of the live repository.
        assert_eq!(value(page, "assay_last_pass_live_proven{repository=\"repo\"}"), 0.0);
        assert!(value(page, "assay_certificate_expiry_timestamp_seconds") > 1.7e9);
        assert!(value(page, "assay_last_run_phase_seconds{repository=\"repo\",phase=\"checking\"}") > 0.0);
    }
    let read = value(&pages[0], "assay_last_run_read_bytes{repository=\"repo\"}");
    assert_eq!(Some(read), run["counts"]["bytesRead"].as_f64(), "{run}");
    assert_eq!(value(&pages[0], "assay_last_run_content_bytes{repository=\"repo\"}"), 100_000.0);
    assert_eq!(value(&pages[1], "assay_latest_generation_stored_bytes{repository=\"repo\"}"), 100_000.0);
    assert_eq!(value(&pages[1], "assay_verified_generation{repository=\"repo\"}"), 2.0);
    let times = run["phaseTimes"].as_array().expect("times").len();
    assert_eq!(times, 5, "opening, marking, replicating, sealing, checking: {run}");
    // A restart forgets nothing that counts.
    pair.kill("source");
    pair.start("source");
    let again = get(source, "/metrics");
    assert_eq!(value(&again, "assay_last_run_outcome{repository=\"repo\",outcome=\"pass\"}"), 1.0);
    assert!(get(source, "/").starts_with("HTTP/1.1 404 "));
    assert_names_exist(&pages);
    promtool(&pages[0]);
}

/// What has rotted is on the page for as long as it is rotten, and so is how long a restore took, when there was one.
#[test]
fn metrics_tell_of_rot_and_of_the_time_to_restore() {
    let pair = Pair::plain(1);
    let [_, target] = with_metrics(&pair);
    fs::write(pair.root(0).join("file"), crate::noise(1, 100_000)).expect("write");
    pair.run(0);
    let page = || get(target, "/metrics");
    assert!(!page().contains("assay_scrub_") && !page().contains("assay_restore_"), "there was neither");
    assert_eq!(pair.target(&["scrub"]).code, 0);
    let clean = page();
    assert_eq!(value(&clean, "assay_scrub_damaged_files{repository=\"repo\"}"), 0.0);
    assert!(value(&clean, "assay_scrub_timestamp_seconds{repository=\"repo\"}") > 1.7e9);
    let back = pair.restored("back");
    rsync_finds_no_difference(&pair.latest(), &back);
    let restored = page();
    assert!(value(&restored, "assay_restore_duration_seconds{repository=\"repo\"}") > 0.0);
    assert!(value(&restored, "assay_restore_timestamp_seconds{repository=\"repo\"}") > 1.7e9);
    flip(&pair.generation("000001").join("file"), 50_000);
    assert_eq!(pair.target(&["scrub"]).code, 1);
    assert_eq!(value(&page(), "assay_scrub_damaged_files{repository=\"repo\"}"), 1.0);
}

/// The names on a page, as queries have them.
fn names(page: &str) -> BTreeSet<String> {
    let families = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    families
        .map(|(name, kind)| if kind == "counter" { format!("{name}_total") } else { name.to_owned() })
        .collect()
}

/// The page of an agent that knows everything: a family without a value is on no page.
fn whole_page() -> String {
    let now = jiff::Timestamp::now();
    let ended = Ended {
        run_id: "run".to_owned(),
        outcome: Outcome::Pass,
        reason: String::new(),
        sentence: String::new(),
        claims: None,
        message: String::new(),
        generation: Some(1),
        verdict_id: String::new(),
        started: Some(now),
        finished: now,
        mark: Some(now),
        phases: vec![PhaseTaken {
            name: "checking",
            from: now,
            took: Duration::from_secs(1),
            steps: Vec::new(),
        }],
        counts: Some(Counts::default()),
        traceless: Traceless { files: 1, paths: Vec::new() },
        oldest_reading: Some(now),
    };
    let watch = Watch::new("source", "repo", None, Some(ended.clone()), Some(ended.clone()), now);
    watch.learn_traceless(ended.found_traceless());
    let facts = RepositoryFacts {
        repository: "repo".to_owned(),
        standing: watch.standing(),
        max_age: Some(Duration::from_secs(7200)),
        under_way: true,
        next_run: Some(now),
        missed_slots: Some(0),
        store: Some(StoreFacts {
            latest: Some(1),
            verified: Some(1),
            content_bytes: Some(1),
            new_bytes: Some(1),
            ..StoreFacts::default()
        }),
        control: Some(ControlFacts { trust: Trust::Trusted, time: now }),
        scrub: Some(ScrubFacts { time: now, damaged_files: 0 }),
        restore: Some(RestoreFacts { time: now, seconds: 1.0 }),
    };
    let (checks, runs) = (Some(CheckQueueFacts::default()), Some(RunQueueFacts::default()));
    let facts = Facts { repositories: vec![facts], checks, runs, ..Facts::default() };
    Page::of(&facts, &Notifier::default(), &Tracer::default(), now)
}

/// Rules and dashboard use metrics that exist, and what was really served is what is known to exist.
fn assert_names_exist(pages: &[String]) {
    let mut exist = names(&whole_page());
    // It is on a page when there is a way to tell somebody.
    exist.extend(["assay_notices_total", "assay_notices_waiting"].map(str::to_owned));
    // It is on a page that a runtime makes.
    exist.insert("assay_tasks".to_owned());
    for served in pages.iter().flat_map(|page| names(page)) {
        assert!(exist.contains(&served), "{served} is new: add it to the whole page");
    }
    for file in ["deploy/prometheus/assay.rules.yml", "deploy/grafana/assay.json"] {
        let text = fs::read_to_string(repository().join(file)).expect(file);
        let is_part = |character: char| character.is_ascii_alphanumeric() || character == '_';
        let names: BTreeSet<_> =
            text.split(|character| !is_part(character)).filter(|word| word.starts_with("assay_")).collect();
        assert!(names.len() > 10, "{file}: {names:?}");
        for name in names {
            assert!(exist.contains(name), "{file}: {name} is on no page");
        }
    }
}

/// Prometheus's own tool accepts rules and page, and the rules fire when they should.
fn promtool(page: &str) {
    let run = |arguments: &[&str], input: &str| {
        let mut child = Command::new("promtool")
            .args(arguments)
            .current_dir(repository().join("deploy/prometheus"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("promtool is installed by ./test");
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("write");
        let output = child.wait_with_output().expect("an end");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    };
    run(&["check", "rules", "assay.rules.yml"], "");
    run(&["test", "rules", "assay.rules.test.yml"], "");
    // It reads the older form of the page, in which a family of counters has the name of its samples.
    let body = page.split("\r\n\r\n").nth(1).expect("a body").replace("# EOF\n", "");
    let classic = body.lines().map(|line| {
        let counter = [
            "assay_runs",
            "assay_missed_slots",
            "assay_notices ",
            "assay_panics",
            "assay_log_lines_lost",
            "assay_clock_jumps",
        ]
        .map(str::trim)
        .into_iter()
        .find(|name| line.strip_prefix("# ").is_some_and(|rest| rest.split(' ').nth(1) == Some(name)));
        counter.map_or_else(|| line.to_owned(), |name| line.replace(name, &format!("{name}_total")))
    });
    run(&["check", "metrics"], &(classic.collect::<Vec<_>>().join("\n") + "\n"));
}

/// A port that is taken is told with its number and the key that names it; a client that says nothing holds nobody up.
#[test]
fn a_metrics_port_in_use_is_told_and_a_silent_client_hinders_nobody() {
    let pair = Pair::plain(1);
    let [source, target] = with_metrics(&pair);
    let silent: Vec<_> =
        (0..8).map(|_| TcpStream::connect(("127.0.0.1", source)).expect("connect")).collect();
    assert!(get(source, "/metrics").contains("assay_build_info"));
    drop(silent);
    pair.kill("target");
    pair.configure("target", &format!("127.0.0.1:{target}"), &format!("127.0.0.1:{source}"));
    let refused = pair.refused_start("target");
    assert_eq!(refused.code, 4, "{refused:?}");
    for word in [source.to_string().as_str(), "metrics.listen", "HINT:"] {
        assert!(refused.stderr.contains(word), "{word}: {refused:?}");
    }
}

/// `health` is what a container engine asks: 0 while the agent serves, 4 when it does not.
#[test]
fn health_completions_and_manual_pages() {
    let pair = Pair::plain(1);
    for (role, name) in [("source", "assay-source"), ("target", "assay-target")] {
        let run = |arguments: &[&str]| match role {
            "source" => pair.source(arguments),
            _ => pair.target(arguments),
        };
        let health = run(&["health"]);
        assert_eq!((health.code, health.stdout.contains("SERVING")), (0, true), "{health:?}");
        pair.kill(role);
        let health = run(&["health"]);
        assert_eq!((health.code, health.stderr.contains("HINT:")), (4, true), "{health:?}");
        let script = run(&["completions", "bash"]);
        assert!(
            script.code == 0
                && script.stdout.contains(name)
                && script.stdout.contains("--follow") == (role == "source")
        );
        // bash itself takes it.
        let file = pair.path("completions");
        fs::write(&file, &script.stdout).expect("write");
        assert!(Command::new("bash").arg("-n").arg(&file).status().expect("bash").success());
        for shell in ["zsh", "fish"] {
            assert!(run(&["completions", shell]).stdout.contains(name));
        }
        let pages = pair.path("man");
        assert_eq!(run(&["man", "--out", pages.to_str().expect("utf-8")]).code, 0);
        for page in [format!("{name}.1"), format!("{name}-serve.1"), format!("{name}-status.1")] {
            let text = fs::read_to_string(pages.join(&page)).expect(&page);
            assert!(text.contains(".SH NAME") && text.contains(name), "{text}");
        }
    }
}

/// Goes with the test, however that ends.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// systemd hears that the agent serves, how it stands, that it is alive, and that it ends.
#[test]
fn systemd_is_told_ready_status_watchdog_and_stopping() {
    let pair = Pair::plain(1);
    for role in ["source", "target"] {
        pair.kill(role);
        let path = pair.path(&format!("{role}-notify"));
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a limit");
        let agent = Command::new(program(&format!("assay-{role}")))
            .args(["--config", &format!("{role}.toml"), "serve"])
            .current_dir(pair.path(""))
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "200000")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the agent starts");
        let mut agent = Killed(agent);
        let mut told = String::new();
        let mut hear = |word: &str| {
            while !told.contains(word) {
                let mut buffer = [0; 4096];
                let length =
                    socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{word}: {error}: {told}"));
                told.push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
        };
        for word in ["READY=1", "WATCHDOG=1", "STATUS=repo: never proven good"] {
            hear(word);
        }
        let id = rustix::process::Pid::from_raw(agent.0.id().cast_signed()).expect("a process");
        rustix::process::kill_process(id, rustix::process::Signal::TERM).expect("kill");
        hear("STOPPING=1");
        assert!(agent.0.wait().expect("an end").success());
    }
}
