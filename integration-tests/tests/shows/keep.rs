//! What is kept, and for how long.

use std::fs;

use assay_common::verdict::Outcome;

use crate::pair::{Pair, json, plain_check_and, plain_vars, rsync_finds_no_difference};

/// A check that fails when there is a file of this name.
fn not_bad() -> String {
    format!("vars = {{ check = {} }}", plain_check_and("test ! -e bad"))
}

/// Numbers of the generations that are there.
fn generations(pair: &Pair) -> Vec<u64> {
    let names = fs::read_dir(pair.path("store/repo/generations")).expect("read");
    let mut numbers: Vec<_> = names
        .map(|entry| entry.expect("entry").file_name().to_str().expect("utf-8").parse().expect("a number"))
        .collect();
    numbers.sort_unstable();
    numbers
}

fn edit_and_run(pair: &Pair, content: &str, code: i32) {
    fs::write(pair.root(0).join("file"), content).expect("write");
    pair.run(code);
}

/// After each verdict what no rule keeps goes; what is pinned stays, and failures push nothing out.
#[test]
fn what_no_rule_keeps_goes_after_the_verdict() {
    let pair = Pair::plain(1);
    pair.restart_with("target", &plain_vars(), &not_bad());
    fs::write(pair.root(0).join("same"), "always").expect("write");
    edit_and_run(&pair, "1", 0);
    edit_and_run(&pair, "2", 0);
    edit_and_run(&pair, "3", 0);
    let refused = pair.target(&["prune"]);
    assert_eq!(refused.code, 4, "{refused:?}");
    assert!(
        refused.stderr.contains("nothing is ever pruned") && refused.stderr.contains("HINT:"),
        "{refused:?}"
    );
    assert_eq!(generations(&pair), [1, 2, 3]);

    let retention = "[repository.retention]\nlast = 2\nfailed_last = 1\n";
    let text = fs::read_to_string(pair.path("target.toml")).expect("read");
    pair.kill("target");
    fs::write(pair.path("target.toml"), text + retention).expect("write");
    pair.start("target");
    let pinned = pair.target(&["--json", "pin", "--generation", "1", "--note", "before the upgrade"]);
    assert_eq!(json(&pinned.stdout)["pinNote"], "before the upgrade", "{pinned:?}");
    assert_eq!(pair.target(&["pin", "--generation", "99"]).code, 2);
    let dry = pair.target(&["prune", "--dry-run"]);
    assert!(dry.code == 0 && dry.stdout.contains("0 of 3 would be pruned"), "{dry:?}");
    edit_and_run(&pair, "4", 0);
    edit_and_run(&pair, "5", 0);
    pair.eventually("it is pruned", || generations(&pair) == [1, 4, 5]);
    let shown = pair.target(&["generations"]).stdout;
    assert!(shown.contains("pinned: before the upgrade"), "{shown}");
    rsync_finds_no_difference(&pair.root(0), &pair.latest());
    assert_eq!(fs::read_to_string(pair.generation("000001").join("file")).expect("read"), "1");

    // Failures: the first and the newest are evidence, and the good ones stay.
    fs::write(pair.root(0).join("bad"), "x").expect("write");
    edit_and_run(&pair, "6", 1);
    edit_and_run(&pair, "7", 1);
    edit_and_run(&pair, "8", 1);
    pair.eventually("it is pruned", || generations(&pair) == [1, 4, 5, 6, 8]);
    assert_eq!(pair.verified(), "generations/000005");
    let dry = pair.target(&["prune", "--dry-run"]).stdout;
    assert!(dry.contains("first-fail") && dry.contains("latest, post-mortem"), "{dry}");
    assert_eq!(pair.target(&["unpin", "--generation", "1"]).code, 0);
    let pruned = pair.target(&["prune"]);
    assert!(pruned.code == 0 && pruned.stdout.contains("1 of 5 pruned"), "{pruned:?}");
    assert_eq!(generations(&pair), [4, 5, 6, 8]);
    pair.eventually("its room is free", || {
        fs::read_dir(pair.path("store/repo/trash")).expect("read").count() == 0
    });
    // The ledger knows all of them.
    use Outcome::{Fail, Pass};
    pair.assert_ledger(&[Pass, Pass, Pass, Pass, Pass, Fail, Fail, Fail]);
}

/// While a run is under way nothing is pruned; a killed target forgets no pin.
#[test]
fn a_run_that_is_under_way_keeps_everything() {
    let pair = Pair::with_blocking_mark();
    pair.restart_with("target", "name = \"repo\"\n", "name = \"repo\"\nretention = { last = 1 }\n");
    fs::write(pair.root(0).join("file"), "x").expect("write");
    for round in 1..=3 {
        let started = pair.source(&["--json", "run"]);
        let id = json(&started.stdout)["id"].as_str().expect("an id").to_owned();
        pair.eventually("the mark command waits", || pair.path("mark-waits").exists());
        fs::remove_file(pair.path("mark-waits")).expect("remove");
        let refused = pair.target(&["prune"]);
        assert!(refused.code == 4 && refused.stderr.contains(&id), "{refused:?}");
        assert_eq!(pair.target(&["prune", "--dry-run"]).code, 0);
        if round == 2 {
            assert_eq!(pair.target(&["pin", "--note", "while a run is under way"]).code, 0);
        }
        pair.release_mark();
        let watched = pair.source(&["watch", &id]);
        assert_eq!(watched.code, 0, "{watched:?}");
        if round == 1 {
            pair.prove();
        }
    }
    pair.eventually("it is pruned", || generations(&pair) == [1, 3]);
    pair.kill("target");
    pair.start("target");
    let shown = pair.target(&["generations"]).stdout;
    assert!(shown.contains("pinned: while a run is under way"), "{shown}");
}

/// A source with valid certificates that replaces all files by noise and deletes the rest: the safety stop; with the override
/// FAIL; and however often it tries, the last verified generation stays what it was, and is what a restore brings back.
#[test]
fn ransomware_does_not_reach_what_is_verified() {
    const SUMS: &str = "vars = { check = [\"sh\", \"-c\", \"sha256sum --check --quiet sums || exit 1\"] }\nretention = { last = 1, failed_last = 2 }";
    let pair = Pair::plain(1);
    pair.restart_with("source", "max_drop_percent = 100", "max_drop_percent = 50");
    pair.restart_with("target", &plain_vars(), SUMS);
    let root = pair.root(0);
    let names: Vec<_> = (0..20).map(|number| format!("file{number}")).collect();
    for (seed, name) in (0..).zip(&names) {
        fs::write(root.join(name), crate::noise(seed, 50_000)).expect("write");
    }
    let sums = std::process::Command::new("sha256sum").args(&names).current_dir(&root).output();
    fs::write(root.join("sums"), sums.expect("sha256sum").stdout).expect("write");
    pair.run(0);
    let before = pair.path("before");
    let copied = std::process::Command::new("cp").arg("-a").args([&root, &before]).status();
    assert!(copied.expect("cp").success());

    let attack = |round: u64| {
        for (seed, name) in (100 * round..).zip(&names[..4]) {
            fs::write(root.join(name), crate::noise(seed, 50_000)).expect("write");
        }
        fs::write(root.join("sums"), crate::noise(round, 500)).expect("write");
        names[4..].iter().for_each(|name| drop(fs::remove_file(root.join(name))));
    };
    attack(1);
    let stopped = pair.run(4);
    assert_eq!((&stopped["outcome"], &stopped["reason"]), (&"OUTCOME_NOT_RUN".into(), &"mass-drop".into()));
    for round in 2..6 {
        attack(round);
        let done = pair.source(&["--json", "run", "--follow", "--allow-mass-drop"]);
        assert_eq!(done.code, 1, "{done:?}");
    }
    let shown = pair.target(&["verdict", "show", "000000003"]).stdout;
    assert!(shown.contains("FAIL") && shown.contains("allow_mass_drop"), "{shown}");
    pair.eventually("it is pruned", || generations(&pair) == [1, 2, 4, 5]);
    assert_eq!(pair.verified(), "generations/000001");
    rsync_finds_no_difference(&before, &pair.generation("000001"));
    assert_eq!(pair.target(&["scrub"]).code, 0);
    // What is restored is what was verified, not what came last.
    rsync_finds_no_difference(&before, &pair.restored("back"));
    use Outcome::{Fail, NotRun, Pass};
    pair.assert_ledger(&[Pass, NotRun, Fail, Fail, Fail, Fail]);
}
