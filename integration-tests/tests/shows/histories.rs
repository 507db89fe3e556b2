//! Source and target have one history. When one of them is put back, or a clone writes beside the original, nothing is copied until an
//! operator has looked.

use std::{fs, process::Command};

use super::pair::{Pair, json};

fn copy(pair: &Pair, from: &str, to: &str) {
    let copied = Command::new("cp").arg("-a").args([pair.path(from), pair.path(to)]).status();
    assert!(copied.expect("cp").success());
}

/// Puts `folder` of the agent `role` back to what it was when it was copied to `earlier`.
fn put_back(pair: &Pair, role: &str, folder: &str, earlier: &str) {
    pair.kill(role);
    fs::rename(pair.path(folder), pair.path(&format!("{folder}.later"))).expect("moved");
    copy(pair, earlier, folder);
    pair.start(role);
}

fn run_with(pair: &Pair, content: &str, arguments: &[&str]) -> (i32, serde_json::Value) {
    fs::write(pair.root(0).join("file"), content).expect("write");
    let done = pair.source(&[&["--json", "run", "--follow"], arguments].concat());
    let last = done.stdout.lines().last().unwrap_or_default().to_owned();
    (done.code, json(&last))
}

#[test]
fn a_source_that_was_put_back_copies_nothing_until_it_is_accepted() {
    let pair = Pair::plain(1);
    run_with(&pair, "day 1", &[]);
    pair.kill("source");
    copy(&pair, "state", "state.day1");
    pair.start("source");
    assert_eq!(run_with(&pair, "day 2", &[]).0, 0);
    // A clone of the live host looks like this, too.
    put_back(&pair, "source", "state", "state.day1");
    let (code, run) = run_with(&pair, "of the clone", &[]);
    assert_eq!((code, &run["reason"]), (4, &"history-differs".into()), "{run}");
    assert_eq!(fs::read_to_string(pair.latest().join("file")).expect("read"), "day 2");
    let status = pair.source(&["status"]).stdout;
    assert!(status.contains("TROUBLE") && status.contains("history-differs"), "{status}");
    let (code, run) = run_with(&pair, "accepted", &["--accept-history"]);
    assert_eq!((code, &run["overrides"][0]), (0, &"accept_history".into()), "{run}");
    assert_eq!(run_with(&pair, "and goes on", &[]).0, 0);
    assert!(!pair.source(&["status"]).stdout.contains("TROUBLE"));
}

#[test]
fn a_target_that_was_put_back_is_told_and_its_ledger_does_not_fork() {
    let pair = Pair::plain(1);
    run_with(&pair, "day 1", &[]);
    pair.kill("target");
    copy(&pair, "store", "store.day1");
    pair.start("target");
    assert_eq!(run_with(&pair, "day 2", &[]).0, 0);
    put_back(&pair, "target", "store", "store.day1");
    let (code, run) = run_with(&pair, "day 3", &[]);
    assert_eq!((code, &run["reason"]), (4, &"history-differs".into()), "{run}");
    let message = run["message"].as_str().unwrap_or_default();
    assert!(message.contains("this store was set back") && message.contains("--accept-history"), "{run}");
    assert!(pair.target(&["status"]).stdout.contains("TROUBLE"));
    assert_eq!(run_with(&pair, "day 3", &["--accept-history"]).0, 0);
    assert_eq!(run_with(&pair, "day 4", &[]).0, 0);
}
