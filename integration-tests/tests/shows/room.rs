//! Room at the target: a quota for a repository, what is kept free, and a disk that is full all the same.

use std::{fs, process::Command};

use assay_common::verdict::Outcome::{NotRun, Pass};

use crate::{noise, pair::Pair, trouble::SmallDisk};

const MIB: usize = 1 << 20;

fn replace(pair: &Pair, seed: u64, mebibytes: usize) {
    fs::write(pair.root(0).join("content"), noise(seed, mebibytes * MIB)).expect("write");
}

fn names(pair: &Pair, folder: &str) -> usize {
    fs::read_dir(pair.path("store/repo").join(folder)).expect("read").count()
}

fn counted(pair: &Pair) -> u64 {
    let text = fs::read(pair.path("store/repo/usage.json")).expect("read");
    serde_json::from_slice::<serde_json::Value>(&text).expect("JSON")["bytes"].as_u64().expect("a number")
}

/// Content counts once however many generations have it, comes off the count with the last of them, and never exceeds the quota.
#[test]
fn a_run_that_needs_more_than_the_quota_is_not_run() {
    let pair = Pair::plain(1);
    let settings = "source = \"source\"\nquota = \"5MiB\"\nretention = { last = 1, failed_last = 0 }";
    pair.restart_with("target", "source = \"source\"", settings);
    // Six times two MiB pass, because what was pruned is gone.
    for seed in 0..6 {
        replace(&pair, seed, 2);
        pair.run(0);
        pair.eventually("what was pruned is deleted, and counted", || {
            names(&pair, "generations") == 1 && names(&pair, "trash") == 0 && counted(&pair) == 2 * MIB as u64
        });
        if seed == 3 {
            // Counted by the next agent as well.
            pair.kill("target");
            pair.start("target");
        }
    }
    replace(&pair, 10, 4);
    let refused = pair.run(4);
    assert_eq!(refused["reason"], "quota-exceeded", "{refused}");
    let message = refused["message"].to_string();
    assert!(message.contains("5MiB") && message.contains("prune"), "{refused}");
    let blocks =
        Command::new("du").args(["-s", "--block-size=1"]).arg(pair.path("store/repo/staging")).output();
    let blocks = String::from_utf8(blocks.expect("du").stdout).expect("text");
    let staged: usize = blocks.split_whitespace().next().expect("a number").parse().expect("a number");
    assert!(staged < 3 * MIB + MIB / 2, "{staged} bytes are staged beside two MiB of content");
    // What it left is no hindrance to a run that fits.
    replace(&pair, 11, 2);
    pair.run(0);
    pair.assert_ledger(&[Pass, Pass, Pass, Pass, Pass, Pass, NotRun, Pass]);
}

/// A disk that is full to the last block still takes the verdict that says so, and what filled it does not stay there; with a reserve it
/// does not get so far.
#[test]
fn a_full_disk_is_told_in_the_ledger_and_the_next_run_has_room() {
    for (reserve, disk_mib, said) in [
        ("\nreserve = \"0B\"", 32, "No space left"),
        ("\nreserve = \"8MiB\"", 32, "8MiB are kept free"),
        // A twentieth, where nobody says anything. Packs that are being written when it is looked at are smaller than that.
        ("", 256, "12MiB are kept free"),
    ] {
        let pair = Pair::plain(1);
        pair.kill("target");
        let store = pair.path("store");
        let _disk = SmallDisk::mount(&store, disk_mib);
        // A check leaves more room than that by default.
        let settings = format!("source = \"source\"\nlimits = {{ disk_reserve = \"1MiB\" }}{reserve}");
        pair.configure("target", "source = \"source\"", &settings);
        pair.start("target");
        replace(&pair, 1, 2);
        pair.run(0);
        replace(&pair, 2, disk_mib as usize + 16);
        let refused = pair.run(4);
        assert_eq!(refused["reason"], "target-full", "{refused}");
        assert!(refused["message"].to_string().contains(said), "{refused}");
        pair.assert_ledger(&[Pass, NotRun]);
        // A target that is killed on a full disk starts again.
        pair.kill("target");
        pair.start("target");
        let was_given_up = !store.join("repo/ledger.reserve").exists();
        // Where nothing is kept free, the write that met the end may have left a block, or not.
        assert!(reserve.contains("0B") || !was_given_up, "with room kept free the ledger has its own");
        // There is no room for this beside what the run before it left.
        replace(&pair, 3, 12);
        pair.run(0);
        pair.assert_ledger(&[Pass, NotRun, Pass]);
        assert!(store.join("repo/ledger.reserve").exists(), "made again");
        pair.kill("target");
    }
}
