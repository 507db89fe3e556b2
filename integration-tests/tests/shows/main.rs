//! The promises of the first backup, shown with real processes: rsync as referee, grpcurl, openssl and b3sum as third
//! parties, and counted work.

mod alerts;
mod bad_checks;
mod bad_input;
mod copies;
mod doctor;
mod engines;
mod exact;
mod exfat;
// Other suites take the rest of it.
#[allow(dead_code)]
mod file_systems;
mod following;
mod histories;
mod identities;
mod init;
mod ipv6;
mod json_contract;
mod keep;
mod keys;
mod ledger;
// Other suites take the rest of it.
#[allow(dead_code)]
mod link;
mod log_readers;
mod logs;
mod many;
mod marks;
mod metrics;
mod nasty;
mod newer;
mod notify;
mod odd_metadata;
mod outcomes;
#[allow(dead_code)]
mod pair;
mod plan;
mod reference;
mod restore;
mod restore_words;
mod resume;
mod room;
mod rot;
mod schema;
mod scrub;
mod snapshots;
mod telling;
mod traces;
mod trouble;
mod trust;
mod upgrade;

use std::{fs, os::unix::fs::MetadataExt as _, process::Command};

use assay_common::{ledger::Ledger, signing::VerifyingKey};
use pair::{Pair, rsync_finds_no_difference};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

/// Bytes that look random and are the same on every run.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Everything that a file system can hold is in the generation, and rsync finds no difference.
#[test]
fn a_nasty_tree_is_copied_exactly() {
    let pair = Pair::plain(1);
    nasty::make(&pair.root(0));
    let run = pair.run(0);
    assert_eq!(run["outcome"], "OUTCOME_PASS", "{run}");
    // Its devices, FIFOs and sockets are in the copy, no check saw them, and the PASS says so.
    let shown = pair.target(&["--json", "verdict", "show"]).stdout;
    assert!(shown.contains("not covered: fifo, "), "{shown}");
    rsync_finds_no_difference(&pair.root(0), &pair.latest());
    // Again, upon the first one: kept entries are as good as new ones.
    fs::write(pair.root(0).join("one more"), "x").expect("write");
    pair.run(0);
    rsync_finds_no_difference(&pair.root(0), &pair.latest());
}

/// Several roots are in one generation, each in its folder, and links between names work in each.
#[test]
fn several_roots_are_in_one_generation() {
    let pair = Pair::plain(2);
    nasty::make(&pair.root(0));
    fs::write(pair.root(1).join("file"), "second root").expect("write");
    for _ in 0..2 {
        assert_eq!(pair.run(0)["outcome"], "OUTCOME_PASS");
        rsync_finds_no_difference(&pair.root(0), &pair.latest().join("root0"));
        rsync_finds_no_difference(&pair.root(1), &pair.latest().join("root1"));
    }
}

/// Many rounds of random work: after each, the new generation is the tree.
#[test]
fn random_edits_are_copied_exactly() {
    let pair = Pair::plain(1);
    let root = pair.root(0);
    fs::write(root.join("anchor"), "never removed").expect("write");
    let mut random = StdRng::seed_from_u64(20_261_122);
    for round in 0..25 {
        for _ in 0..random.random_range(1..20) {
            nasty::edit(&root, &mut random);
        }
        let run = pair.run(0);
        assert_eq!(run["outcome"], "OUTCOME_PASS", "round {round}: {run}");
        rsync_finds_no_difference(&root, &pair.latest());
    }
}

/// A small change costs a small transfer, counted on the wire by a proxy of ours; no change costs none and reads nothing.
#[test]
fn work_follows_the_change() {
    const FILES: u64 = 2000;
    const FILE_BYTES: usize = 250_000;
    let pair = Pair::plain(1);
    let path = |file: u64| pair.root(0).join(format!("d{}", file % 40)).join(format!("f{file}"));
    for file in 0..FILES {
        fs::create_dir_all(path(file).parent().expect("a folder")).expect("mkdir");
        fs::write(path(file), noise(file, FILE_BYTES)).expect("write");
    }
    let first = pair.run(0);
    assert_eq!(first["counts"]["bytesSent"], FILES * FILE_BYTES as u64, "{first}");
    for file in 0..FILES / 100 {
        fs::write(path(file * 7), noise(file + 1_000_000, FILE_BYTES)).expect("write");
    }
    let before = pair.wire_bytes();
    let delta = pair.run(0);
    let sent = pair.wire_bytes() - before;
    assert_eq!(delta["counts"]["filesRead"], FILES / 100, "{delta}");
    let two_percent = FILES * FILE_BYTES as u64 / 50;
    assert!(sent < two_percent, "{sent} bytes went over the wire, 2 % are {two_percent}");
    assert!(delta["counts"]["wireBytesOut"].as_u64().expect("count") <= sent);
    // What was written within the clock's tick of being read is read once more; then nothing is.
    pair.run(0);
    let still = pair.run(0);
    assert_eq!(still["outcome"], "OUTCOME_PASS", "{still}");
    for nothing in ["filesRead", "bytesRead", "chunksOffered", "chunksSent", "bytesSent"] {
        assert_eq!(still["counts"][nothing].as_u64().unwrap_or(0), 0, "{nothing}: {still}");
    }
    println!("1 % changed: {sent} of {} bytes on the wire", FILES * FILE_BYTES as u64);
    // Unchanged files are shared with the generation before, and cost no room.
    let inode =
        |generation: &str| fs::metadata(pair.generation(generation).join("d1/f1")).expect("stat").ino();
    assert_eq!(inode("000003"), inode("000004"));
}

/// A renamed folder costs no data.
#[test]
fn renamed_files_cost_no_data() {
    let pair = Pair::plain(1);
    fs::create_dir(pair.root(0).join("old")).expect("mkdir");
    fs::write(pair.root(0).join("old/data"), noise(1, 3_000_000)).expect("write");
    pair.run(0);
    fs::rename(pair.root(0).join("old"), pair.root(0).join("new")).expect("rename");
    let run = pair.run(0);
    assert_eq!(run["counts"]["bytesSent"].as_u64().unwrap_or(0), 0, "{run}");
    rsync_finds_no_difference(&pair.root(0), &pair.latest());
}

/// The operator's own tool, with a client certificate and no proto files.
#[test]
fn grpcurl_needs_no_proto_files() {
    let pair = Pair::plain(1);
    fs::write(pair.root(0).join("file"), "x").expect("write");
    let listed = pair.grpcurl(false, &["list"]);
    assert!(
        listed.contains("assay.v1.SourceService") && !listed.contains("assay.v1.TargetService"),
        "{listed}"
    );
    assert!(pair.grpcurl(true, &["list"]).contains("assay.v1.TargetService"));
    let described = pair.grpcurl(false, &["describe", "assay.v1.SourceService.StartRun"]);
    assert!(described.contains("rpc StartRun"), "{described}");
    let started = pair.grpcurl_call(false, "{}", "assay.v1.SourceService/StartRun");
    let id = pair::json(&started)["run"]["id"].as_str().expect("an id").to_owned();
    let watched =
        pair.grpcurl_call(false, &format!("{{\"runId\": {id:?}}}"), "assay.v1.SourceService/WatchRun");
    let last = &watched[watched.rfind("\n{").map_or(0, |start| start + 1)..];
    let last = pair::json(last);
    assert_eq!((&last["outcome"], &last["id"]), (&"OUTCOME_PASS".into(), &id.as_str().into()), "{watched}");
    let verdict = pair.grpcurl_call(true, "{}", "assay.v1.TargetService/GetVerdict");
    assert_eq!(pair::json(&verdict)["runId"], id.as_str());
    pair.prove();
    let generations = pair.grpcurl_call(true, "{}", "assay.v1.TargetService/ListGenerations");
    assert_eq!(pair::json(&generations)["generations"][0]["verified"], true);
    let health = pair.grpcurl_call(false, "{}", "grpc.health.v1.Health/Check");
    assert_eq!(pair::json(&health)["status"], "SERVING");
}

/// Third parties can check the evidence: openssl the signature, b3sum the files and the root.
#[test]
fn openssl_and_b3sum_accept_the_evidence() {
    let pair = Pair::plain(1);
    nasty::make(&pair.root(0));
    pair.run(0);
    let verdict = pair.path("store/repo/ledger/000000001.json");
    let prefix = pair.path("evidence");
    let (verdict, key) = (verdict.to_str().expect("utf-8"), pair.path("pki/target-signing.pub"));
    let (key, prefix) = (key.to_str().expect("utf-8"), prefix.to_str().expect("utf-8"));
    let verified = pair.target(&["verdict", "verify", verdict, "--key", key, "--export", prefix]);
    assert_eq!(verified.code, 0, "{verified:?}");
    let openssl = Command::new("openssl")
        .args(["pkeyutl", "-verify", "-pubin", "-inkey", key, "-rawin"])
        .args(["-in", &format!("{prefix}.pae"), "-sigfile", &format!("{prefix}.sig")])
        .output()
        .expect("openssl is installed by ./test");
    assert!(openssl.status.success(), "{openssl:?}");
    let generation = pair.path("store/repo/generations/000001");
    let b3sum = |arguments: &[&str]| {
        let output = Command::new("b3sum").args(arguments).current_dir(&generation).output();
        let output = output.expect("b3sum is installed by ./test");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("utf-8")
    };
    let checked = b3sum(&["--check", "manifest.b3"]);
    assert!(checked.lines().count() > 10 && checked.lines().all(|line| line.ends_with(": OK")), "{checked}");
    let root = b3sum(&["--derive-key", "assay v1 manifest root", "--no-names", "manifest"]);
    let record = pair::json(&fs::read_to_string(generation.join("record.json")).expect("record"));
    assert_eq!(record["root_digest"], root.trim());
    // One byte changed, and it verifies no more.
    let envelope = fs::read_to_string(verdict).expect("read");
    let position = envelope.len() / 2;
    let byte = if &envelope[position..=position] == "A" { "B" } else { "A" };
    let forged = pair.path("forged.json");
    fs::write(&forged, format!("{}{byte}{}", &envelope[..position], &envelope[position + 1..]))
        .expect("write");
    let refused = pair.target(&["verdict", "verify", forged.to_str().expect("utf-8"), "--key", key]);
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.stderr.contains("NOT VALID") && refused.stderr.contains("HINT:"), "{refused:?}");
}

/// Two triggers at once: one run, and the second caller gets its id. The mark blocks on a FIFO, so there is no race.
#[test]
fn a_second_trigger_is_told_the_id_of_the_first() {
    let pair = Pair::with_blocking_mark();
    fs::write(pair.root(0).join("file"), "x").expect("write");
    let first = pair.source(&["--json", "run"]);
    let id = pair::json(&first.stdout)["id"].as_str().expect("an id").to_owned();
    let second = pair.source(&["run"]);
    assert_eq!(second.code, 4, "{second:?}");
    assert!(second.stderr.contains(&id) && second.stderr.contains("HINT:"), "{second:?}");
    pair.release_mark();
    let watched = pair.source(&["watch", &id]);
    assert_eq!(watched.code, 0, "{watched:?}");
    let runs = pair.source(&["--json", "runs"]);
    assert_eq!(runs.stdout.lines().count(), 1, "{runs:?}");
}

/// A cancelled run ends NOT_RUN, and the target's ledger says so.
#[test]
fn a_cancelled_run_is_recorded() {
    let pair = Pair::with_blocking_mark();
    fs::write(pair.root(0).join("file"), "x").expect("write");
    let started = pair.source(&["--json", "run"]);
    let id = pair::json(&started.stdout)["id"].as_str().expect("an id").to_owned();
    pair.eventually("the mark command waits", || pair.path("mark-waits").exists());
    assert_eq!(pair.source(&["cancel", &id]).code, 0);
    let watched = pair.source(&["--json", "watch", &id]);
    assert_eq!(watched.code, 4, "{watched:?}");
    let run = pair::json(watched.stdout.lines().last().expect("a line"));
    assert_eq!((&run["outcome"], &run["reason"]), (&"OUTCOME_NOT_RUN".into(), &"cancelled".into()), "{run}");
    assert_eq!(run["verdictId"], "000000001");
    let ledger = Ledger::open(&pair.path("store/repo/ledger")).expect("ledger");
    let target_key = VerifyingKey::load(&pair.path("pki/target-signing.pub")).expect("key");
    assert!(ledger.verify(&target_key, None).expect("readable").is_empty());
}
