//! Connections that are cut and agents that are killed: the run goes on, or the next one does, and nothing that had arrived is
//! sent a second time.

use std::fs;

use crate::pair::{Pair, rsync_finds_no_difference};

const FILES: u64 = 300;
const FILE_BYTES: usize = 100_000;
const LARGE_BYTES: usize = 12_000_000;
const CONTENT_BYTES: u64 = FILES * FILE_BYTES as u64 + LARGE_BYTES as u64;
/// What the source may have on its way: with `memory_mib = 8` in its configuration.
const IN_FLIGHT_BYTES: u64 = 9 << 20;

/// Agents with one generation, and content for the next that does not compress.
fn pair() -> Pair {
    let pair = Pair::plain(1);
    pair.restart_with("source", "state = \"state\"", "state = \"state\"\nmemory_mib = 8");
    fs::write(pair.root(0).join("first"), "first").expect("write");
    assert_eq!(pair.source(&["run", "--follow"]).code, 0);
    for file in 0..FILES {
        fs::write(pair.root(0).join(format!("new{file}")), crate::noise(file, FILE_BYTES)).expect("write");
    }
    fs::write(pair.root(0).join("large"), crate::noise(FILES, LARGE_BYTES)).expect("write");
    pair
}

fn count(run: &serde_json::Value, name: &str) -> u64 {
    run["counts"][name]
        .as_str()
        .map_or_else(|| run["counts"][name].as_u64(), |text| text.parse().ok())
        .unwrap_or(0)
}

/// More than a batch has at most, which is 5 MiB: of each connection's bytes at least one batch arrives.
const CUT_EVERY_BYTES: u64 = 7_000_000;

/// The run goes on after each cut; no file is read again, and what is sent twice is at most what was on its way.
#[test]
fn a_run_survives_a_connection_that_is_cut_again_and_again() {
    let pair = pair();
    pair.link().cut_every(CUT_EVERY_BYTES);
    let (run, cuts) = (pair.run(0), pair.link().cuts());
    println!("{cuts} cuts, {} bytes of content, {} sent", CONTENT_BYTES, count(&run, "bytesSent"));
    assert!(cuts >= 5, "{cuts} cuts");
    // The one of the generation before had been written too shortly before its run to be trusted.
    assert!(count(&run, "filesRead") <= FILES + 2, "{run}");
    assert!(count(&run, "reconnects") >= 5, "{run}");
    assert!(count(&run, "bytesSent") <= CONTENT_BYTES + cuts * IN_FLIGHT_BYTES, "{run}");
    rsync_finds_no_difference(&pair.root(0), &pair.latest());
}

/// The run goes on when the target is back: files are read again, and what had arrived is not sent again.
#[test]
fn a_run_survives_the_target_being_killed() {
    let pair = pair();
    pair.link().hold_after(25_000_000);
    assert_eq!(pair.source(&["run"]).code, 0);
    pair.link().wait_until_held();
    pair.kill("target");
    pair.link().go_on();
    pair.start("target");
    let done = pair.source(&["--json", "watch"]);
    assert_eq!(done.code, 0, "{done:?}");
    let run = crate::pair::json(done.stdout.lines().last().expect("a line"));
    println!("{CONTENT_BYTES} bytes of content, {} sent", count(&run, "bytesSent"));
    assert!(count(&run, "bytesSent") <= CONTENT_BYTES + IN_FLIGHT_BYTES, "{run}");
    assert!(count(&run, "filesRead") > FILES + 1, "they were read again: {run}");
    rsync_finds_no_difference(&pair.root(0), &pair.latest());
}

/// The next run finds what the killed one had brought.
#[test]
fn what_a_killed_source_had_sent_is_not_sent_again() {
    let pair = pair();
    pair.link().hold_after(25_000_000);
    assert_eq!(pair.source(&["run"]).code, 0);
    pair.link().wait_until_held();
    let sent_before = pair.link().bytes();
    pair.kill("source");
    pair.link().go_on();
    pair.start("source");
    let before = pair.link().bytes();
    let done = pair.source(&["run", "--follow"]);
    assert_eq!(done.code, 0, "{done:?}");
    let sent = pair.link().bytes() - before;
    println!("{sent_before} bytes went out before the kill, {sent} after it");
    assert!(sent <= CONTENT_BYTES - 25_000_000 + IN_FLIGHT_BYTES + 1_000_000, "{sent} bytes were sent");
    rsync_finds_no_difference(&pair.root(0), &pair.latest());
}
