//! The verdict is the product: where a fault came in, whether the checker finds damage, which generation was the first bad
//! one, and what to do.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use assay_common::verdict::Outcome;

use crate::{
    engines::{accurev, standin},
    noise,
    pair::{Pair, json},
};

/// A check that compares a tree with the digests that stand in it.
const SUMS: &str = "vars = { check = [\"sh\", \"-c\", \"sha256sum --check --quiet sums || exit 1\"] }";

/// Agents for a tree whose check compares `data` and `other` with the digests in `sums`.
fn summed() -> Pair {
    let pair = Pair::plain(1);
    pair.restart_with("target", "vars = { check = [\"ls\", \"-la\"] }", SUMS);
    write_summed(&pair, 1);
    pair
}

fn write_summed(pair: &Pair, seed: u64) {
    let root = pair.root(0);
    fs::write(root.join("data"), noise(seed, 300_000)).expect("write");
    fs::write(root.join("other.txt"), format!("state {seed}")).expect("write");
    let sums = std::process::Command::new("sha256sum")
        .args(["data", "other.txt"])
        .current_dir(&root)
        .output()
        .expect("sha256sum");
    fs::write(root.join("sums"), sums.stdout).expect("write");
}

/// Changes one byte in place and leaves the times as they were.
fn flip(path: &Path, offset: u64) {
    let metadata = fs::metadata(path).expect("stat");
    let file = File::options().read(true).write(true).open(path).expect("open");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("read");
    file.write_all_at(&[byte[0] ^ 1], offset).expect("write");
    file.set_modified(metadata.modified().expect("time")).expect("utimes");
}

fn evidence(verdict: &serde_json::Value) -> String {
    verdict["attribution"]["evidence"].to_string()
}

#[test]
fn damage_of_the_live_data_is_attributed_to_it() {
    let pair = summed();
    pair.run(0);
    fs::write(pair.root(0).join("other.txt"), "damaged").expect("write");
    let run = pair.run(1);
    assert_eq!(run["attribution"]["fault"], "live", "{run}");
    assert_eq!(run["attribution"]["lastPass"], 1, "{run}");
    assert_eq!(run["attribution"]["files"], serde_json::json!(["other.txt"]), "{run}");
    assert!(evidence(&run).contains("passes generation 1 again"), "{run}");
    assert_eq!(pair.verified(), "generations/000001");
    let shown = pair.target(&["verdict", "show"]).stdout;
    assert!(shown.contains("fault: live") && shown.contains("read again as sent"), "{shown}");
    // Checked again without a source, the bytes being still those, it is what that verdict found.
    let again = pair.target(&["--json", "verify"]);
    let again = json(again.stdout.lines().last().expect("a line"));
    assert_eq!(again["attribution"]["fault"], "live", "{again}");
    assert!(evidence(&again).contains("as verdict 000000002"), "{again}");
    pair.assert_ledger(&[Outcome::Pass, Outcome::Fail, Outcome::Fail]);
}

/// A server that goes on writing does not hide it: what was read is the beginning of what is there.
#[test]
fn damage_of_a_live_accurev_is_attributed_to_it() {
    let (pair, _server) = accurev();
    pair.run(0);
    standin(&["damage", pair.root(0).to_str().expect("utf-8"), "flip-record"]);
    let run = pair.run(1);
    assert_eq!(run["attribution"]["fault"], "live", "{run}");
    assert!(run["attribution"]["files"].to_string().contains("element.ndb"), "{run}");
}

#[test]
fn damage_of_the_targets_copy_is_attributed_to_its_disk() {
    let pair = summed();
    pair.run(0);
    write_summed(&pair, 2);
    pair.run(0);
    flip(&pair.generation("000002").join("data"), 123_456);
    let done = pair.target(&["--json", "verify", "--generation", "2"]);
    assert_eq!(done.code, 1, "{done:?}");
    let verdict = json(done.stdout.lines().last().expect("a line"));
    assert_eq!(verdict["attribution"]["fault"], "target-disk", "{verdict}");
    assert_eq!(verdict["attribution"]["files"], serde_json::json!(["data"]), "{verdict}");
    // The place is told as exactly as the pieces are small.
    assert!(evidence(&verdict).contains("data: bytes "), "{verdict}");
    // What was verified is so no longer; the one before it is.
    assert_eq!(pair.verified(), "generations/000001");
    pair.assert_ledger(&[Outcome::Pass, Outcome::Pass, Outcome::Fail]);
}

/// A run that fails tries the check on what had passed; when that has gone bad on the disk, it is said, and in the ledger.
#[test]
fn a_verified_generation_that_went_bad_is_found_by_the_next_fail() {
    let pair = summed();
    pair.run(0);
    flip(&pair.generation("000001").join("data"), 1);
    fs::write(pair.root(0).join("other.txt"), "damaged").expect("write");
    fs::write(pair.root(0).join("data"), noise(1, 300_000)).expect("write");
    let run = pair.run(1);
    assert!(evidence(&run).contains("generation 1, which had passed, is not what arrived"), "{run}");
    assert_eq!(pair.verified(), "none");
    let shown = pair.target(&["verdict", "show", "000000003"]).stdout;
    assert!(shown.contains("fault: target-disk") && shown.contains("generation 1,"), "{shown}");
    pair.assert_ledger(&[Outcome::Pass, Outcome::Fail, Outcome::Fail]);
}

/// A file that changes on every try while it is read may be torn: that is not the live data's fault, nor anyone else's.
#[test]
fn a_file_that_never_holds_still_is_attributed_to_a_torn_read() {
    let pair = Pair::plain(1);
    pair.restart_with("target", "[\"ls\", \"-la\"]", "[\"sh\", \"-c\", \"echo busy: bad; exit 1\"]");
    fs::write(pair.root(0).join("still"), "x").expect("write");
    let busy = pair.root(0).join("busy");
    fs::write(&busy, noise(3, 64 << 20)).expect("write");
    let stop = Arc::new(AtomicBool::new(false));
    let writer = std::thread::spawn({
        let (stop, file) = (Arc::clone(&stop), File::options().write(true).open(&busy).expect("open"));
        move || {
            let mut count = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                count += 1;
                file.write_all_at(&count.to_le_bytes(), count * 4096 % (60 << 20)).expect("write");
            }
        }
    });
    // It is read three times, and nearly always changes in each.
    let torn = (0..20).map(|_| pair.run(1)).find(|run| run["counts"]["filesUnstable"] == 1);
    stop.store(true, Ordering::Relaxed);
    writer.join().expect("writer");
    let torn = torn.expect("a file that never held still");
    assert_eq!(torn["attribution"]["fault"], "torn-read", "{torn}");
    assert_eq!(torn["attribution"]["files"], serde_json::json!(["busy"]), "{torn}");
}

/// A checker whose surroundings broke says FAIL to what it had passed: that is no word about the data.
#[test]
fn a_checker_that_contradicts_itself_is_inconclusive() {
    let around = tempfile::tempdir().expect("temp");
    let broken = around.path().join("broken");
    let tables = format!(
        "[mark]\nkind = \"none\"\n[sandbox]\nvisible = [{:?}]\n[[check]]\nname = \"check\"\n\
         argv = [\"test\", \"!\", \"-e\", {broken:?}]\nfail_exit = [1]\n",
        around.path()
    );
    let pair = Pair::with_profile(&tables, "");
    fs::write(pair.root(0).join("file"), "x").expect("write");
    pair.run(0);
    fs::write(&broken, "").expect("write");
    fs::write(pair.root(0).join("file"), "y").expect("write");
    let run = pair.run(3);
    assert_eq!(
        (&run["reason"], &run["attribution"]["fault"]),
        (&"checker-contradiction".into(), &"checker".into()),
        "{run}"
    );
    assert!(run["message"].as_str().expect("text").contains("now fails generation 1 as well"), "{run}");
    // And of the generation itself that it had passed.
    let again = pair.target(&["--json", "verify", "--generation", "1"]);
    assert_eq!(again.code, 3, "{again:?}");
    assert!(again.stdout.contains("passed these same bytes before (verdict 000000001)"), "{again:?}");
    assert_eq!(pair.verified(), "generations/000001");
    pair.assert_ledger(&[Outcome::Pass, Outcome::Inconclusive, Outcome::Inconclusive]);
}
