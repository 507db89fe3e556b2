//! `doctor` finds beforehand what a run would find out, and says what to do.

use std::fs;

use crate::pair::{Done, PLAIN_CHECK, Pair};

fn assert_found(done: &Done, code: i32, words: &[&str]) {
    assert_eq!(done.code, code, "{done:?}");
    for word in words {
        assert!(done.stdout.contains(word), "{word:?} is missing in: {done:?}");
    }
    // One screen's width, remedies included.
    assert!(done.stdout.lines().filter(|line| line.starts_with("BAD")).count() > 0 || code != 1, "{done:?}");
}

#[test]
fn a_sound_pair_has_nothing_bad() {
    let pair = Pair::plain(1);
    fs::write(pair.root(0).join("file"), "x").expect("write");
    for (role, done) in [("source", pair.source(&["doctor"])), ("target", pair.target(&["doctor"]))] {
        assert!([0, 3].contains(&done.code), "{role}: {done:?}");
        assert!(done.stdout.contains("0 BAD, "), "{role}: {done:?}");
    }
    assert!(pair.source(&["doctor"]).stdout.contains("of difference to the target's"));
}

#[test]
fn what_would_keep_a_run_from_passing_is_found() {
    let pair = Pair::plain(1);
    // The root is empty: what an unmounted file system looks like.
    assert_found(
        &pair.source(&["doctor"]),
        1,
        &["BAD   repo: root root0", "is empty", "-> check that its file system"],
    );
    fs::write(pair.root(0).join("file"), "x").expect("write");
    pair.kill("target");
    // The test's proxy takes the connection and has nobody behind it.
    assert_found(&pair.source(&["doctor"]), 1, &["BAD   target: ", "closed the connection"]);
    let json = pair.source(&["--json", "doctor"]);
    let bad = json.stdout.lines().map(crate::pair::json).filter(|finding| finding["level"] == "BAD").count();
    assert_eq!((json.code, bad), (1, 1), "{json:?}");
    pair.configure("target", &format!("check = {PLAIN_CHECK}"), "check = [\"/no/such/program\"]");
    fs::remove_file(pair.path("pki/source-signing.pub")).expect("remove");
    assert_found(
        &pair.target(&["doctor"]),
        1,
        &[
            "BAD   repo: check check: /no/such/program",
            "BAD   repo: source's key",
            "-> install it on this host",
        ],
    );
}

/// A run of the same things comes to the same end.
#[test]
fn an_engine_that_is_not_there_is_found() {
    let pair = Pair::engine("git", "");
    fs::write(pair.root(0).join("file"), "x").expect("write");
    assert_found(
        &pair.source(&["doctor"]),
        1,
        &["BAD   repo: engine", "HEAD is not there", "-> this is nothing for"],
    );
}

/// Before a byte is copied: a variable that only the target lacks, and a checker that its sandbox does not show.
#[test]
fn what_the_target_lacks_is_found_before_the_first_copy() {
    let pair = Pair::plain(1);
    let vars = format!("vars = {{ check = {PLAIN_CHECK} }}");
    pair.configure("target", &vars, "");
    let lacks = "vars.check is missing: the command that checks the copy";
    assert_found(&pair.target(&["doctor"]), 1, &[&format!("BAD   repo: vars: {lacks}"), "-> set it in vars"]);
    let check = pair.target(&["config", "check"]);
    assert_eq!(check.code, 2, "{check:?}");
    assert!(check.stderr.contains(lacks), "{check:?}");

    let checker = pair.path("tools/checker");
    fs::create_dir_all(pair.path("tools")).expect("mkdir");
    fs::write(&checker, "#!/bin/sh\nexit 0\n").expect("write");
    let set = std::process::Command::new("chmod").arg("755").arg(&checker).status().expect("chmod");
    assert!(set.success());
    let source = format!("source = \"source\"\nvars = {{ check = [{:?}] }}", checker.display().to_string());
    pair.configure("target", "source = \"source\"", &source);
    assert_found(
        &pair.target(&["doctor"]),
        1,
        &["BAD   repo: check check: ", "does not show it", "[sandbox] visible = ["],
    );
    let check = pair.target(&["config", "check"]);
    assert_eq!(check.code, 0, "{check:?}");
}
