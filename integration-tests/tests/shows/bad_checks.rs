//! Checks that cannot do their work, and checkers that misbehave: each has a reason of its own, none is FAIL, and nothing of them
//! is left, not even when the agent is killed in the middle.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
};

use assay_common::verdict::Outcome;

use crate::{
    engines::accurev,
    pair::{Pair, plain_vars},
};

/// A run that must end so.
#[track_caller]
fn assert_run(pair: &Pair, outcome: &str, reason: &str) -> serde_json::Value {
    let code = if outcome == "OUTCOME_PASS" { 0 } else { 3 };
    let run = pair.run(code);
    assert_eq!((run["outcome"].as_str(), run["reason"].as_str()), (Some(outcome), Some(reason)), "{run}");
    run
}

/// What AccuRev's manual warns of in acserver.cnf: repaired in the workspace, or named.
#[test]
fn faults_of_the_copied_configuration_are_repaired_or_named() {
    let (pair, _server) = accurev();
    let cnf = pair.root(0).join("bin/acserver.cnf");
    let sound = fs::read_to_string(&cnf).expect("read");
    let line = sound.lines().find(|line| line.starts_with("MASTER_SERVER")).expect("there").to_owned();
    let with = |new: &str| sound.replace(&line, new);
    let commented = format!("#MASTER_SERVER = old.example\n{line}\n# MASTER_SERVER = older.example");
    for repaired in [
        with(&format!("{line} \t")),
        with(&line.replace(" = ", "=")),
        with(&line.replace(" = ", "  =\t")),
        with(&commented),
    ] {
        fs::write(&cnf, &repaired).expect("write");
        assert_run(&pair, "OUTCOME_PASS", "check-passed");
        // The generation is what was read; the repair is in the workspace and stands in the verdict.
        assert_eq!(fs::read_to_string(pair.latest().join("bin/acserver.cnf")).expect("read"), repaired);
        let shown = pair.target(&["verdict", "show"]);
        assert!(shown.stdout.contains("patched bin/acserver.cnf: MASTER_SERVER = "), "{shown:?}");
    }
    let verified = pair.verified();
    for (named, reason, word) in [
        (with(&format!("{line}\nMASTER_SERVER = other.example")), "key-twice", "lines 2, 3"),
        (with(&format!("#{line}")), "key-missing", "MASTER_SERVER"),
        (sound.replace('\n', "\r\n"), "carriage-return", "CRLF"),
    ] {
        fs::write(&cnf, named).expect("write");
        let run = assert_run(&pair, "OUTCOME_INCONCLUSIVE", reason);
        assert!(run["message"].as_str().is_some_and(|text| text.contains(word)), "{run}");
        assert_eq!(pair.verified(), verified);
    }
    // A program that takes them for line ends is content: they are kept as they are.
    fs::write(&cnf, sound.replace('\n', "\r\n")).expect("write");
    let texts = pair.root(0).join("bin/standin.toml");
    let text = fs::read_to_string(&texts).expect("read");
    fs::write(&texts, text.replace("carriage_return_ends_lines = 0", "carriage_return_ends_lines = 1"))
        .expect("write");
    assert_run(&pair, "OUTCOME_PASS", "check-passed");
}

/// Each by the agents' own configuration, from the live file to the verdict.
#[test]
fn checkers_that_misbehave_are_inconclusive_each_with_its_reason() {
    let pair = Pair::plain(1);
    fs::write(pair.root(0).join("file"), "x").expect("write");
    pair.run(0);
    let sound = plain_vars();
    let mut before = sound.clone();
    let limits = "limits = { memory = \"64MiB\", processes = 60, disk = \"16MiB\", output = \"16MiB\" }";
    for (script, reason) in [
        // FAIL is exit code 1 in this profile: none of these may come to that.
        ("yes | head -c 1000000000; exit 1", "output-limit"),
        ("tail /dev/zero; exit 1", "memory-limit"),
        ("while :; do sleep 1000 & done; exit 1", "process-limit"),
        ("yes > big; exit 1", "disk-limit"),
        ("bash -c 'echo hello > /dev/tcp/192.0.2.1/25'; exit 1", "network-refused"),
        ("bash -c 'echo hello > /dev/tcp/127.0.0.1/25'; exit 1", "network-refused"),
        ("echo x > /etc/assay-was-here; exit 1", "access-refused"),
    ] {
        let with = format!("{limits}\nvars = {{ check = [\"sh\", \"-c\", {script:?}] }}");
        pair.restart_with("target", &before, &with);
        let run = assert_run(&pair, "OUTCOME_INCONCLUSIVE", reason);
        let explained = pair.target(&["explain"]);
        assert!(explained.stdout.contains("INCONCLUSIVE"), "{explained:?}");
        assert_eq!(pair.verified(), "generations/000001", "{run}");
        assert!(fs::read_dir(pair.path("store/repo/workspaces")).expect("read").next().is_none());
        before = with;
    }
    assert!(!Path::new("/etc/assay-was-here").exists());
    pair.restart_with("target", &before, &sound);
    pair.run(0);
    let outcomes = [&[Outcome::Pass][..], &[Outcome::Inconclusive; 7], &[Outcome::Pass]].concat();
    pair.assert_ledger(&outcomes);
}

/// The processes that have this word among their arguments.
fn processes(word: &str) -> Vec<String> {
    let has = |entry: &fs::DirEntry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|argument| argument == word.as_bytes())
    };
    let entries = fs::read_dir("/proc").expect("list").flatten();
    entries.filter(has).map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Ends what a test that fails would leave.
struct Stragglers(String);

impl Drop for Stragglers {
    fn drop(&mut self) {
        for pid in
            processes(&self.0).iter().filter_map(|pid| rustix::process::Pid::from_raw(pid.parse().ok()?))
        {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
        }
    }
}

/// Folders of control groups of checks of this agent.
fn control_groups(agent: u32) -> Vec<PathBuf> {
    let prefix = format!("assay-check-{agent}-");
    let (mut found, mut left) = (Vec::new(), vec![PathBuf::from("/sys/fs/cgroup")]);
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                left.push(entry.path());
                if entry.file_name().to_string_lossy().starts_with(&prefix) {
                    found.push(entry.path());
                }
            }
        }
    }
    found
}

/// A daemon as good ones are made: it forks twice, has a session, a folder and an environment of its own, holds none of its
/// parent's files, and listens.
const DAEMON: &str = "use POSIX; use IO::Socket::INET; exit if fork; POSIX::setsid(); exit if fork; chdir q(/); \
                      $socket = IO::Socket::INET->new(Listen => 1, LocalAddr => q(127.0.0.1), LocalPort => $ARGV[1]) or die; \
                      open my $ready, q(>), $ARGV[2] or die; close $ready; POSIX::close($_) for 0..2; sleep 1000";

/// The target agent is killed, as a power cut would, in the middle of a check whose daemon has gone its own ways.
fn assert_swept(isolation: &str) {
    let word = format!("daemon-of-{}-{isolation}", std::process::id());
    let _stragglers = Stragglers(word.clone());
    let port = TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address").port();
    let script =
        format!("env -i perl -e '{DAEMON}' {word} {port} $PWD/ready; while :; do sleep 1; done; exit 1");
    let check = format!(
        "[mark]\nkind = \"none\"\n[[check]]\nname = \"left\"\nargv = [\"sh\", \"-c\", {:?}]\nfail_exit = [1]\n",
        script
    );
    let pair = Pair::with_profile(&check, "");
    let profile = "profile = \"profile.toml\"\n";
    pair.restart_with("target", profile, &format!("{profile}isolation = {isolation:?}\n"));
    fs::write(pair.root(0).join("file"), "x").expect("write");
    let agent = pair.process("target");
    let started = pair.source(&["run"]);
    assert_eq!(started.code, 0, "{started:?}");
    let workspaces = pair.path("store/repo/workspaces");
    let is_ready = || {
        let entries = fs::read_dir(&workspaces).into_iter().flatten().flatten();
        entries.map(|entry| entry.path().join("tree/ready")).any(|ready| ready.exists())
    };
    pair.eventually("the daemon listens", is_ready);
    assert!(!processes(&word).is_empty());
    if isolation == "none" && control_groups(agent).is_empty() {
        println!("no control groups here: a daemon like this one is not found without a sandbox");
        return;
    }
    pair.kill("target");
    // So that it does not ask for the check again.
    pair.kill("source");
    // Without a sandbox the daemon lives on, until an agent that starts on this host sweeps what a dead one has left: the one below,
    // or one of another test before it.
    if isolation != "none" {
        // Before any sweep: the sandbox dies with the agent, and the daemon with the sandbox.
        pair.eventually("the sandbox dies with the agent", || processes(&word).is_empty());
    }
    assert!(fs::read_dir(&workspaces).expect("read").next().is_some(), "a workspace is left");
    pair.start("target");
    assert_eq!(processes(&word), [] as [&str; 0]);
    assert!(fs::read_dir(&workspaces).expect("read").next().is_none());
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read");
    assert!(!mounts.contains(workspaces.to_str().expect("utf-8")), "{mounts}");
    assert_eq!(control_groups(agent), [] as [PathBuf; 0]);
    TcpListener::bind(("127.0.0.1", port)).expect("nobody listens any more");
    // The generation is whole and has no verdict.
    assert!(pair.latest().join("file").exists());
    assert_eq!(pair.verified(), "none");
}

#[test]
fn nothing_of_a_check_survives_a_killed_agent() {
    assert_swept("auto");
}

#[test]
fn nothing_of_a_check_without_a_sandbox_survives_a_killed_agent_that_starts_again() {
    assert_swept("none");
}
