//! Everything that happens is told, once: by the agent that saw it or by the next one, whatever became of the first or of the receiver.

use std::{fs, path::PathBuf, process::Command};

use assay_common::fault::Point;
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    metrics::{get, with_metrics},
    pair::{EVENTS, Pair, json, plain_check_and},
};

/// A check that fails while there is a file called `bad`.
fn pair() -> Pair {
    let check = plain_check_and("test ! -e bad");
    Pair::engine("generic", &format!("vars = {{ check = {check} }}\nmax_drop_percent = 100\n"))
}

/// Lets the agent of `role` write each notice to a file, a line each, while there is a file `role-hears`.
fn listen(pair: &Pair, role: &str) {
    let (file, hears) = (pair.path(&format!("{role}-notices")), pair.path(&format!("{role}-hears")));
    fs::write(&hears, "").expect("write");
    let script = format!("test -e {} || exit 1; (cat; echo) >> {}", hears.display(), file.display());
    let section = format!(
        "[[notify]]\nkind = \"command\"\nargv = [\"/bin/sh\", \"-c\", {script:?}]\n{EVENTS}[[repository]]"
    );
    pair.configure(role, "[[repository]]", &section);
}

fn notices(pair: &Pair, role: &str) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(pair.path(&format!("{role}-notices"))).unwrap_or_default();
    text.lines().filter(|line| line.ends_with('}')).map(json).collect()
}

fn events(pair: &Pair, role: &str) -> Vec<String> {
    let notices = notices(pair, role);
    notices.iter().filter_map(|notice| Some(notice["event"].as_str()?.to_owned())).collect()
}

fn stop(pair: &Pair, role: &str, signal: Signal) {
    let process = i32::try_from(pair.process(role)).ok().and_then(Pid::from_raw).expect("a process");
    kill_process(process, signal).expect("it runs");
    pair.eventually("the agent has ended", || !pair.is_alive(role));
    pair.kill(role);
}

/// The target is killed when the verdict is in its ledger and nobody has heard of it. The next one tells, also when the receiver is down
/// at first; the one after that does not tell again.
#[test]
fn a_target_that_dies_after_a_verdict_has_it_told_by_the_next_start_once() {
    let pair = pair();
    listen(&pair, "target");
    pair.kill("target");
    pair.start("target");
    // The source waits for a target that comes back.
    pair.restart_with("source", "[[repository]]", "retry = \"60s\"\n[[repository]]");
    fs::write(pair.root(0).join("file"), "x").expect("write");
    pair.run(0);
    pair.kill("target");
    fs::remove_file(pair.path("target-hears")).expect("remove");
    pair.set_environment("target", &[("ASSAY_FAULTS", format!("{}=kill", Point::LedgerAppended.name()))]);
    pair.start("target");
    fs::write(pair.root(0).join("bad"), "x").expect("write");
    let mut run = pair.spawn_source(&["run", "--follow"]);
    pair.eventually("the target is dead", || !pair.is_alive("target"));
    pair.kill("target");
    pair.set_environment("target", &[]);
    // Nobody hears it now: it waits, over another end of the agent.
    pair.start("target");
    pair.eventually("the notice waits", || waiting(&pair) == 1);
    stop(&pair, "target", Signal::KILL);
    fs::write(pair.path("target-hears"), "").expect("write");
    pair.start("target");
    pair.eventually("the next start tells", || events(&pair, "target") == ["fail"]);
    stop(&pair, "target", Signal::TERM);
    pair.start("target");
    fs::remove_file(pair.root(0).join("bad")).expect("remove");
    drop(run.wait());
    pair.run(0);
    pair.eventually("the recovery is told", || events(&pair, "target").len() >= 2);
    assert_eq!(events(&pair, "target"), ["fail", "recovery"]);
    let told = fs::read_to_string(pair.path("store/repo/told.json")).expect("a marker");
    assert_eq!(told.trim_matches('"').len(), 9, "{told}");
}

/// Notices that wait on the target's disk.
fn waiting(pair: &Pair) -> usize {
    let entries = fs::read_dir(pair.path("store/.notices/command")).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().trim_end_matches(".json").parse::<u64>().is_ok())
        .count()
}

/// A store of an earlier version has no marker: nothing of its past is told, everything from then on.
#[test]
fn a_store_without_the_marker_tells_nothing_of_its_past() {
    let pair = pair();
    fs::write(pair.root(0).join("bad"), "x").expect("write");
    pair.run(1);
    listen(&pair, "target");
    pair.kill("target");
    fs::remove_file(pair.path("store/repo/told.json")).expect("remove");
    pair.start("target");
    pair.eventually("the marker is made", || pair.path("store/repo/told.json").exists());
    fs::write(pair.root(0).join("bad"), "y").expect("write");
    pair.run(1);
    pair.eventually("the next is told", || !events(&pair, "target").is_empty());
    assert_eq!(events(&pair, "target"), ["fail"]);
}

/// Killed or told to stop in the middle of a run: each end is told once, and the recovery after it.
#[test]
fn a_source_that_ends_in_the_middle_of_a_run_has_it_told() {
    let pair = Pair::with_blocking_mark();
    listen(&pair, "source");
    pair.kill("source");
    pair.start("source");
    fs::write(pair.root(0).join("file"), "x").expect("write");
    for (number, signal) in [Signal::KILL, Signal::TERM].into_iter().enumerate() {
        drop(fs::remove_file(pair.path("mark-waits")));
        assert_eq!(pair.source(&["run"]).code, 0);
        pair.eventually("the mark waits", || pair.path("mark-waits").exists());
        stop(&pair, "source", signal);
        pair.start("source");
        pair.eventually("it is told", || events(&pair, "source").len() > number);
    }
    let told = notices(&pair, "source");
    assert!(told.iter().all(|notice| notice["event"] == "not-run"), "{told:?}");
    assert_ne!(told[0]["run_id"], told[1]["run_id"], "{told:?}");
    assert_eq!(told.len(), 2, "{told:?}");
}

/// Two receivers, of which one is down: the other hears at once, and the first when it is back.
#[test]
fn a_receiver_that_is_down_holds_up_no_other_and_hears_it_later() {
    let pair = pair();
    listen(&pair, "source");
    let (file, section) =
        (pair.path("second-notices"), "[[notify]]\nkind = \"command\"\nname = \"second\"\n");
    let script = format!("(cat; echo) >> {}", file.display());
    let section = format!("{section}argv = [\"/bin/sh\", \"-c\", {script:?}]\n{EVENTS}[[repository]]");
    pair.configure("source", "[[repository]]", &section);
    fs::remove_file(pair.path("source-hears")).expect("remove");
    pair.kill("source");
    pair.start("source");
    fs::write(pair.root(0).join("bad"), "x").expect("write");
    pair.run(1);
    pair.eventually("the second hears", || {
        fs::read_to_string(&file).is_ok_and(|text| text.contains("\"fail\""))
    });
    assert!(events(&pair, "source").is_empty());
    fs::write(pair.path("source-hears"), "").expect("write");
    // Told to stop, it notes what has arrived. After a kill in that moment the second would hear it again, with the same id.
    stop(&pair, "source", Signal::TERM);
    pair.start("source");
    pair.eventually("the first hears", || events(&pair, "source") == ["fail"]);
    assert_eq!(fs::read_to_string(&file).expect("read").matches("\"fail\"").count(), 1);
}

/// A task that panics: it is counted, told and started again, whichever write of the state it happens at; runs go on.
#[test]
fn a_schedule_that_panics_is_told_and_goes_on() {
    let pair = Pair::plain(1);
    fs::write(pair.root(0).join("file"), "x").expect("write");
    pair.run(0);
    listen(&pair, "source");
    let [port, _] = with_metrics(&pair);
    pair.kill("source");
    pair.configure("source", "profile = ", "schedule = { every = \"1s\" }\nprofile = ");
    let mut told = 0;
    for number in 1..=6 {
        let faults = format!("{}=panic@{number}", Point::DurableWrite.name());
        pair.set_environment("source", &[("ASSAY_FAULTS", faults)]);
        if !pair.start_doomed("source") {
            // It was one of its start.
            pair.kill("source");
            continue;
        }
        let value = |name: &str| {
            let page = get(port, "/metrics");
            let line = page.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|text| text.trim().parse::<f64>().ok()).unwrap_or_default()
        };
        pair.eventually("the panic is counted", || value("assay_panics_total ") >= 1.0);
        pair.eventually("runs pass", || {
            value("assay_runs_total{repository=\"repo\",outcome=\"pass\"} ") >= 2.0
        });
        told += 1;
        pair.eventually("each is told", || {
            notices(&pair, "source").iter().filter(|notice| notice["reason"] == "task-panicked").count()
                >= told
        });
        let status = pair.source(&["status"]).stdout;
        assert!(status.contains("TROUBLE") && status.contains("task-panicked"), "{status}");
        pair.kill("source");
    }
    assert!(told >= 2, "only {told} panics were met while it served");
}

/// A check's thread that panics is told as well, and the run ends.
#[test]
fn a_check_that_panics_is_told() {
    let pair = pair();
    fs::write(pair.root(0).join("file"), "x").expect("write");
    pair.run(0);
    listen(&pair, "target");
    pair.kill("target");
    pair.set_environment("target", &[("ASSAY_FAULTS", format!("{}=panic", Point::WorkspaceCreate.name()))]);
    pair.start("target");
    let done = pair.source(&["run", "--follow"]);
    assert_ne!(done.code, 1, "{done:?}");
    pair.eventually("it is told", || {
        notices(&pair, "target").iter().any(|notice| notice["reason"] == "task-panicked")
    });
    assert!(pair.target(&["status"]).stdout.contains("task-panicked"));
    pair.run(0);
}

/// The mounts of a check that was under way go with an agent that is told to stop, and with the next start after a kill.
#[test]
fn checks_leave_no_mounts_behind() {
    let mounts = |pair: &Pair| {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        let below = pair.path("store").display().to_string();
        mounts.lines().filter(|line| line.contains(&below)).count()
    };
    let folders = |pair: &Pair| fs::read_dir(pair.path("store/repo/workspaces")).map_or(0, Iterator::count);
    let check = plain_check_and("while test -e wait; do sleep 0.1; done");
    let pair = Pair::engine("generic", &format!("vars = {{ check = {check} }}\nmax_drop_percent = 100\n"));
    fs::write(pair.root(0).join("wait"), "x").expect("write");
    for signal in [Signal::TERM, Signal::KILL] {
        let mut run = pair.spawn_source(&["run", "--follow"]);
        pair.eventually("the check runs", || mounts(&pair) > 0 && folders(&pair) > 0);
        stop(&pair, "target", signal);
        if signal == Signal::TERM {
            assert_eq!((mounts(&pair), folders(&pair)), (0, 0), "{}", pair.logs());
        }
        drop(run.kill());
        drop(run.wait());
        pair.kill("source");
        pair.start("target");
        pair.eventually("the next start has cleared all", || mounts(&pair) == 0 && folders(&pair) == 0);
        pair.start("source");
    }
}

/// The metric follows a certificate that was renewed while the agent runs.
#[test]
fn the_metric_of_the_certificates_end_follows_a_renewal() {
    let pair = Pair::plain(1);
    let [port, _] = with_metrics(&pair);
    let end = || {
        let page = get(port, "/metrics");
        let line =
            page.lines().find_map(|line| line.strip_prefix("assay_certificate_expiry_timestamp_seconds"));
        line.and_then(|text| text.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or_default() as i64
    };
    let issue = |hours: u64| {
        for name in ["source-source.crt", "source-source.key"] {
            drop(fs::remove_file(pair.path("pki").join(name)));
        }
        let party = assay_common::pki::Party { name: "source".into(), hosts: vec!["127.0.0.1".into()] };
        let validity = std::time::Duration::from_secs(hours * 3600);
        let now = jiff::Timestamp::now();
        let role = assay_common::pki::Role::Source;
        assay_common::pki::issue(&pair.path("pki"), pair.authority(), role, &party, validity, now)
            .expect("issue");
        // By a rename of both, as a renewal does; the key first.
        for kind in ["key", "crt"] {
            fs::rename(
                pair.path(&format!("pki/source-source.{kind}")),
                pair.path(&format!("pki/source.{kind}")),
            )
            .expect("rename");
        }
        let process = i32::try_from(pair.process("source")).ok().and_then(Pid::from_raw).expect("a process");
        kill_process(process, Signal::HUP).expect("it runs");
    };
    issue(3);
    pair.eventually("three hours are left", || {
        (end() - jiff::Timestamp::now().as_second()) / 3600 <= 3 && end() > 0
    });
    let before = end();
    issue(9);
    pair.eventually("the metric follows", || end() > before + 5 * 3600);
    // A refused one is told, and what was good stays.
    let after = end();
    fs::write(pair.path("pki/source.crt"), "").expect("write");
    let process = i32::try_from(pair.process("source")).ok().and_then(Pid::from_raw).expect("a process");
    kill_process(process, Signal::HUP).expect("it runs");
    pair.eventually("status tells", || {
        pair.target(&["status"]).code == 0
            && get(port, "/metrics").contains("assay_trouble{kind=\"renewal-refused\"} 1")
    });
    assert_eq!(end(), after);
    assert!(
        pair.logs().contains("source.crt does not hold a certificate (PEM): it is empty"),
        "{}",
        pair.logs()
    );
}

/// Each unusable key is named with its file, the reason and the remedy.
#[test]
fn unusable_keys_are_named_with_reason_and_remedy() {
    let pair = Pair::plain(1);
    let openssl = |arguments: &[&str]| {
        let done =
            Command::new("openssl").args(arguments).current_dir(pair.path("pki")).output().expect("openssl");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    openssl(&["pkey", "-in", "source.key", "-aes256", "-passout", "pass:x", "-out", "encrypted.key"]);
    openssl(&["genpkey", "-algorithm", "RSA", "-out", "rsa.key"]);
    openssl(&["pkey", "-in", "source-signing.key", "-outform", "DER", "-out", "der.key"]);
    fs::write(pair.path("pki/empty.key"), "").expect("write");
    let text = fs::read_to_string(pair.path("pki/source-signing.key")).expect("read");
    fs::write(pair.path("pki/crlf.key"), text.replace('\n', "\r\n")).expect("write");
    fs::write(pair.path("pki/cut.key"), &text[..40]).expect("write");
    let keys = ["encrypted", "rsa", "der", "empty", "crlf", "cut", "source-signing"];
    let private: Vec<PathBuf> = keys.iter().map(|name| pair.path(&format!("pki/{name}.key"))).collect();
    for path in &private {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("chmod");
    }
    let config = fs::read_to_string(pair.path("source.toml")).expect("read");
    let try_with = |from: &str, to: &str| {
        assert!(config.contains(from), "{from}");
        fs::write(pair.path("source.toml"), config.replacen(from, to, 1)).expect("write");
        let done = pair.refused_start("source");
        fs::write(pair.path("source.toml"), &config).expect("write");
        done
    };
    for (from, name, reason) in [
        ("pki/source-signing.key", "empty.key", "it is empty"),
        ("pki/source-signing.key", "encrypted.key", "passphrase"),
        ("pki/source-signing.key", "rsa.key", "another algorithm"),
        ("pki/source-signing.key", "der.key", "DER"),
        ("pki/source-signing.key", "cut.key", "PEM"),
        ("pki/source-signing.key", "source.crt", "can be read by others"),
        ("pki/target-signing.pub", "target-signing.key", "it holds a private key"),
        ("pki/target-signing.pub", "ca.crt", "it holds a certificate"),
        ("pki/source.key", "encrypted.key", "passphrase"),
        ("pki/source.key", "empty.key", "it is empty"),
        ("pki/source.key", "source-signing.key", "does not belong to the certificate"),
        ("pki/source.crt", "source.key", "it holds a private key"),
    ] {
        let done = try_with(from, &format!("pki/{name}"));
        assert!(done.code != 0, "{name}: {done:?}");
        let tells =
            done.stderr.contains(name) && done.stderr.contains(reason) && done.stderr.contains("HINT: ");
        assert!(tells, "{from} = {name}: {reason:?} and a hint are not in {}", done.stderr);
    }
    // Line ends of another system are no fault.
    pair.configure("source", "pki/source-signing.key", "pki/crlf.key");
    pair.start("source");
    fs::write(pair.root(0).join("file"), "x").expect("write");
    pair.run(0);
}
