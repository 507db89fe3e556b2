//! `plan`: what a run would do is what it then does, and asking changes nothing.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use crate::pair::{Pair, json};

/// Every file below a folder with its inode, length, times and content's start, but for logs.
fn snapshot(folder: &Path) -> Vec<(PathBuf, u64, u64, i64, i64)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("list") {
            let path = entry.expect("an entry").path();
            let stat = path.symlink_metadata().expect("stat");
            if stat.is_dir() {
                folders.push(path.clone());
            }
            found.push((path, stat.ino(), stat.size(), stat.mtime_nsec(), stat.ctime_nsec()));
        }
    }
    found.sort();
    found
}

fn plan(pair: &Pair, code: i32, further: &[&str]) -> serde_json::Value {
    let done = pair.source(&[&["--json", "plan"], further].concat());
    assert_eq!(done.code, code, "{done:?}");
    json(&done.stdout)
}

fn count(value: &serde_json::Value) -> u64 {
    value.as_str().and_then(|text| text.parse().ok()).or(value.as_u64()).unwrap_or(0)
}

#[test]
fn a_plan_tells_what_the_run_then_does_and_changes_nothing() {
    let pair = Pair::plain(1);
    let file = |name: &str| pair.root(0).join(name);
    for (name, size) in [("kept", 10_000), ("grows", 20_000), ("moves", 30_000), ("goes", 40_000)] {
        fs::write(file(name), vec![7; size]).expect("write");
    }
    let first = plan(&pair, 0, &[]);
    assert_eq!(count(&first["work"]["newBytes"]), 100_000, "{first}");
    assert!(!first["basisKnown"].as_bool().unwrap_or(false), "{first}");
    pair.run(0);
    // What was read within the clock's tick of being written is read once more.
    pair.run(0);
    fs::write(file("grows"), vec![8; 25_000]).expect("write");
    fs::rename(file("moves"), file("moved")).expect("rename");
    fs::remove_file(file("goes")).expect("remove");
    fs::write(file("new"), vec![9; 5_000]).expect("write");

    let before = (snapshot(&pair.path("store")), snapshot(&pair.path("state")));
    let planned = plan(&pair, 0, &[]);
    let shown = pair.source(&["plan"]);
    assert_eq!(
        before,
        (snapshot(&pair.path("store")), snapshot(&pair.path("state"))),
        "a plan changes nothing"
    );
    assert_eq!(pair.source(&["--json", "runs"]).stdout.lines().count(), 2, "a plan is no run");

    let work = &planned["work"];
    for (key, value) in [
        ("entries", 5),
        ("newFiles", 1),
        ("newBytes", 5_000),
        ("movedFiles", 1),
        ("movedBytes", 30_000),
        ("changedFiles", 1),
        ("changedBytes", 25_000),
        ("droppedEntries", 2),
        ("baseEntries", 5),
        ("readFiles", 3),
        ("readBytes", 60_000),
        ("sendBytes", 30_000),
    ] {
        assert_eq!(count(&work[key]), value, "{key}: {planned}");
    }
    assert_eq!(work["largest"][0]["path"], "moved", "{planned}");
    assert_eq!(planned["target"]["steps"][0]["name"], "check", "{planned}");
    assert_eq!(planned["target"]["steps"][0]["depth"], "L0", "{planned}");
    assert!(planned["stops"].is_null(), "{planned}");
    let text = &shown.stdout;
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    assert!(text.contains("to read      3 files, 60.0 kB, since generation 2\n"), "{text}");
    assert!(
        text.contains("dropped      2 of 5 entries, 40.0 %; more than 100 % would stop the run\n"),
        "{text}"
    );

    let run = pair.run(0);
    assert_eq!(count(&run["counts"]["filesRead"]), 3, "{run}");
    assert_eq!(count(&run["counts"]["bytesRead"]), 60_000, "{run}");
    assert!(count(&run["counts"]["bytesSent"]) <= 30_000, "{run}");
    let full = plan(&pair, 0, &["--full-read"]);
    assert_eq!(count(&full["work"]["readFiles"]), 4, "{full}");
}

/// What the mark makes is planned as well: it is neither nothing nor dropped.
#[test]
fn a_plan_counts_the_databases_that_the_mark_copies() {
    let pair = Pair::engine("sqlite", "vars = { databases = [\"app.db\", \"more.db\"] }\n");
    let root = pair.root(0);
    let missing = plan(&pair, 4, &[]);
    assert!(missing["stops"].to_string().contains("app.db"), "{missing}");
    let sql = "CREATE TABLE t (x); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 900) INSERT INTO t SELECT hex(zeroblob(100)) FROM n";
    for name in ["app.db", "more.db"] {
        let made = std::process::Command::new("sqlite3").arg(root.join(name)).arg(sql).status();
        assert!(made.expect("sqlite3").success());
    }
    let bytes = fs::metadata(root.join("app.db")).expect("stat").len();
    let first = plan(&pair, 0, &[]);
    assert_eq!(count(&first["work"]["newFiles"]), 2, "{first}");
    assert_eq!(count(&first["work"]["sendBytes"]), 2 * bytes, "{first}");
    let run = pair.run(0);
    assert_eq!(count(&run["counts"]["bytesRead"]), 2 * bytes, "{run}");
    let second = plan(&pair, 0, &[]);
    let work = &second["work"];
    for (key, value) in [
        ("newFiles", 0),
        ("changedFiles", 2),
        ("droppedEntries", 0),
        ("readBytes", 2 * bytes),
        ("totalBytes", 2 * bytes),
        ("baseEntries", count(&work["entries"])),
    ] {
        assert_eq!(count(&work[key]), value, "{key}: {second}");
    }
    assert_eq!(work["largest"][0]["path"], "more.db", "{second}");
}

/// A plan says NOT_RUN's reasons beforehand, in the run's own words.
#[test]
fn a_plan_tells_what_would_stop_the_run() {
    let pair = Pair::plain(1);
    let reasons = |planned: &serde_json::Value| -> Vec<String> {
        let stops = planned["stops"].as_array().cloned().unwrap_or_default();
        stops.iter().map(|stop| stop["reason"].as_str().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(reasons(&plan(&pair, 4, &[])), ["root-empty"]);
    for file in 0..10 {
        fs::write(pair.root(0).join(file.to_string()), "x").expect("write");
    }
    pair.run(0);
    pair.restart_with("source", "max_drop_percent = 100", "max_drop_percent = 50");
    for file in 0..9 {
        fs::remove_file(pair.root(0).join(file.to_string())).expect("remove");
    }
    assert_eq!(reasons(&plan(&pair, 4, &[])), ["mass-drop"]);
    assert_eq!(pair.run(4)["reason"], "mass-drop");
    pair.kill("target");
    let alone = plan(&pair, 4, &[]);
    let reason = reasons(&alone)[0].clone();
    assert_eq!(pair.run(4)["reason"], reason.as_str(), "{alone}");
    assert_eq!(count(&alone["work"]["droppedEntries"]), 9, "the tree is looked at all the same: {alone}");
    pair.start("target");
    // Another folder in the root's place.
    fs::rename(pair.root(0), pair.path("aside")).expect("rename");
    fs::create_dir(pair.root(0)).expect("mkdir");
    fs::write(pair.root(0).join("file"), "x").expect("write");
    let changed = pair.source(&["plan"]);
    assert_eq!(changed.code, 4, "{changed:?}");
    assert!(changed.stdout.contains("STOP         root-changed: "), "{changed:?}");
    assert!(changed.stdout.contains("             HINT: "), "{changed:?}");
}

/// While a run is under way a plan would compare with what is about to change.
#[test]
fn a_plan_waits_for_no_run() {
    let pair = Pair::with_blocking_mark();
    fs::write(pair.root(0).join("file"), "x").expect("write");
    let id = json(&pair.source(&["--json", "run"]).stdout)["id"].as_str().expect("an id").to_owned();
    pair.eventually("the mark command waits", || pair.path("mark-waits").exists());
    let refused = pair.source(&["plan"]);
    assert_eq!(refused.code, 4, "{refused:?}");
    assert!(refused.stderr.contains(&id) && refused.stderr.contains("HINT:"), "{refused:?}");
    let status = pair.source(&["status"]).stdout;
    assert!(
        status.contains("repo: never proven good\n")
            && status.contains(&format!("  now        marking (run {id})\n")),
        "{status}"
    );
    assert!(
        pair.target(&["status"])
            .stdout
            .contains(&format!("  now        waiting for its source (run {id})\n"))
    );
    // Nothing has ended yet that could be explained; what is under way is when it is named.
    assert_eq!(pair.source(&["explain"]).code, 2);
    // The text is folded at the width of a terminal, wherever a line happens to end.
    let explained = pair.source(&["explain", &id]);
    let words: Vec<_> = explained.stdout.split_whitespace().collect();
    assert!(words.join(" ").contains("is under way"), "{explained:?}");
    pair.release_mark();
    assert_eq!(pair.source(&["watch", &id]).code, 0);
    // A PASS does not count before its checker has found damage.
    for status in [pair.source(&["status"]).stdout, pair.target(&["status"]).stdout] {
        let says = status.contains("\n  says       the copy is what was read;");
        assert!(status.contains("repo: never proven good\n") && says, "{status}");
    }
    pair.prove();
    let id = json(&pair.source(&["--json", "run"]).stdout)["id"].as_str().expect("an id").to_owned();
    pair.release_mark();
    assert_eq!(pair.source(&["watch", &id]).code, 0);
    for (role, status) in
        [("source", pair.source(&["status"]).stdout), ("target", pair.target(&["status"]).stdout)]
    {
        assert!(status.lines().all(|line| line.chars().count() <= 80), "{role}: {status}");
        // The answer to the one question comes first.
        let first = status.lines().nth(1).expect("a line");
        assert!(
            first.starts_with("repo: proven good ") && first.ends_with(", generation 2"),
            "{role}: {status}"
        );
    }
}
