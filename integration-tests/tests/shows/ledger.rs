//! The ledger as a whole, at the target and as a copy elsewhere.

use std::{fs, path::Path, process::Command};

use assay_common::{
    ledger::Ledger,
    signing::VerifyingKey,
    verdict::{LiveClaim, Outcome, verify_control, verify_verdict},
    watch::Ended,
};

use crate::pair::{Pair, json, wrong_clock};

#[test]
fn a_ledger_is_checked_here_and_as_a_copy() {
    let pair = Pair::plain(1);
    for content in ["one", "two", "three"] {
        fs::write(pair.root(0).join("file"), content).expect("write");
        pair.run(0);
    }
    let sound = pair.target(&["ledger", "verify", "--every", "1d", "--copies", "state/repo/verdicts"]);
    assert_eq!(sound.code, 0, "{sound:?}");
    assert!(sound.stdout.contains("sound: 3 verdicts, 3 compared"), "{sound:?}");
    let head = pair.target(&["ledger", "head"]).stdout;
    let head = head.trim();

    // On a copy, with keys that are given.
    let copied =
        Command::new("cp").arg("-r").args([pair.path("store/repo/ledger"), pair.path("copy")]).status();
    assert!(copied.expect("cp").success());
    let without = pair.target(&["ledger", "verify", "--folder", "copy"]);
    assert!(without.code == 2 && without.stderr.contains("HINT:"), "{without:?}");
    let on_copy = |further: &[&str]| {
        let keys = ["--key", "pki/target-signing.pub", "--source-key", "pki/source-signing.pub"];
        let place = ["--json", "ledger", "verify", "--folder", "copy"];
        pair.target(&[&place[..], &keys[..], further].concat())
    };
    let sound = on_copy(&["--expect-head", head]);
    assert_eq!((sound.code, &json(&sound.stdout)["sound"]), (0, &true.into()), "{sound:?}");
    // Another key, the newest gone, one that another took the place of.
    let other = pair.target(&["ledger", "verify", "--folder", "copy", "--key", "pki/source-signing.pub"]);
    assert_eq!(other.code, 1, "{other:?}");
    fs::remove_file(pair.path("copy/000000003.json")).expect("remove");
    assert_eq!(on_copy(&[]).code, 0, "the chain alone does not show it");
    for further in [["--expect-head", head], ["--copies", "state/repo/verdicts"]] {
        let gone = on_copy(&further);
        assert_eq!(gone.code, 1, "{gone:?}");
    }
    fs::copy(pair.path("copy/000000001.json"), pair.path("copy/000000002.json")).expect("copy");
    assert_eq!(on_copy(&[]).code, 1);

    // Another tree in a generation's place.
    let (one, two) = (pair.path("store/repo/generations/000001"), pair.path("store/repo/generations/000002"));
    fs::rename(&one, pair.path("aside")).expect("rename");
    fs::rename(&two, &one).expect("rename");
    let exchanged = pair.target(&["ledger", "verify"]);
    assert_eq!(exchanged.code, 1, "{exchanged:?}");
    assert!(exchanged.stdout.contains("another tree than generation 1 has"), "{exchanged:?}");
    assert!(exchanged.stdout.contains("2 compared"), "{exchanged:?}");
}

/// The target's clock was two hours ahead for a while. Its times contradict others for ever, until an operator says why.
#[test]
fn an_hour_of_a_wrong_clock_can_be_acknowledged() {
    let pair = Pair::plain(1);
    let run = |content: &str, clock: &str| {
        pair.kill("target");
        let clock = if clock.is_empty() { Vec::new() } else { wrong_clock(clock) };
        pair.set_environment("target", &clock);
        pair.start("target");
        fs::write(pair.root(0).join("file"), content).expect("write");
        pair.run(0);
    };
    run("one", "");
    run("two", "+7200");
    run("three", "");
    run("four", "");
    let wrong = pair.target(&["ledger", "verify"]);
    assert_eq!(wrong.code, 1, "{wrong:?}");
    assert_eq!(wrong.stdout.matches("WRONG: verdict 00000000").count(), 2, "{wrong:?}");
    assert!(wrong.stdout.contains("NOT SOUND") && wrong.stdout.contains("ledger acknowledge"), "{wrong:?}");
    let said = ["--by", "A. Smith", "--why", "the time service was down"];
    let acknowledge =
        |verdict: &str| pair.target(&[&["ledger", "acknowledge", "--verdict", verdict][..], &said].concat());
    // Of the first nobody needs to say anything, and there is no ninth.
    for verdict in ["1", "9", "0", "x"] {
        let refused = acknowledge(verdict);
        assert_eq!(refused.code, 2, "{verdict}: {refused:?}");
    }
    let done = acknowledge("2");
    assert_eq!(done.code, 0, "{done:?}");
    let sound = pair.target(&["ledger", "verify"]);
    assert_eq!(sound.code, 0, "{sound:?}");
    let line = sound.stdout.lines().find(|line| line.starts_with("ACKNOWLEDGED: verdict 000000002"));
    assert!(
        line.is_some_and(|line| line.contains("says A. Smith on ") && line.contains("service")),
        "{sound:?}"
    );
    let shown = json(&pair.target(&["--json", "ledger", "verify"]).stdout);
    assert_eq!((&shown["sound"], &shown["acknowledged"][0]["verdict"]), (&true.into(), &2.into()), "{shown}");
    // It covers times alone.
    let entry = pair.path("store/repo/ledger/000000002.json");
    let text = fs::read(&entry).expect("read");
    fs::remove_file(&entry).expect("remove");
    assert_eq!(pair.target(&["ledger", "verify"]).code, 1);
    fs::write(&entry, &text).expect("write");
    assert_eq!(pair.target(&["ledger", "verify"]).code, 0);
    // Nor does one count that somebody else has made.
    let kept = pair.path("store/repo/acknowledgements/000001.json");
    let forged = fs::read_to_string(&kept).expect("read").replacen("\"payload\":\"", "\"payload\":\"e", 1);
    fs::write(&kept, forged).expect("write");
    let refused = pair.target(&["ledger", "verify"]);
    assert!(
        refused.code == 1 && refused.stdout.contains("WRONG: the acknowledgement 000001.json"),
        "{refused:?}"
    );
}

/// The ledger, the control and the run's record that agents of commit 0727a00 wrote, before there was a coverage, are read and
/// verified for ever. Of the live repository they claim nothing: nobody recorded when its bytes were read.
#[test]
fn what_an_older_version_signed_verifies_for_ever() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/0727a00");
    let key = |name: &str| VerifyingKey::load(&folder.join(name)).expect("key");
    let (target, source) = (key("target-signing.pub"), key("source-signing.pub"));
    let ledger = Ledger::at(&folder.join("ledger"));
    assert!(ledger.verify(&target, Some(&source)).expect("readable").is_empty());
    let mut outcomes = Vec::new();
    for id in ledger.entries().expect("entries") {
        let envelope = ledger.get(&id.to_string()).expect("an entry");
        let verdict = verify_verdict(&envelope, &target, Some(&source)).expect("it verifies").verdict;
        assert!(verdict.coverage.is_none() && verdict.nonce.is_none());
        assert_eq!(verdict.claims().live, LiveClaim::Nothing, "{verdict:?}");
        assert!(!verdict.sentence().contains("the live repository was good"), "{}", verdict.sentence());
        assert!(!assay_common::cli::explain(&verdict).is_empty());
        outcomes.push(verdict.outcome);
    }
    use Outcome::{Fail, NotRun, Pass};
    assert_eq!(outcomes, [NotRun, Fail, Pass, Pass, Pass]);
    let control = fs::read(folder.join("control.json")).expect("read");
    assert_eq!(verify_control("repo", &control, &target).expect("it verifies").outcome, Outcome::Pass);
    let run = fs::read_to_string(folder.join("run.json")).expect("read");
    let run = assay_common::json::from_json("Run", &run).expect("a run");
    assert_eq!(Ended::of_run(&run).expect("it has ended").outcome, Outcome::Pass);

    let pair = Pair::plain(1).unproved();
    let path = |name: &str| folder.join(name).to_str().expect("utf-8").to_owned();
    let (ledger, key) = (path("ledger"), path("target-signing.pub"));
    let source_key = path("source-signing.pub");
    let arguments = ["ledger", "verify", "--folder", &ledger, "--key", &key, "--source-key", &source_key];
    let sound = pair.target(&arguments);
    assert_eq!(sound.code, 0, "{sound:?}");
    assert!(sound.stdout.contains("sound: 5 verdicts"), "{sound:?}");
}

/// `ledger verify` shows between which two moments each verdict was signed, and names those that rest on the target's word alone.
#[test]
fn each_verdict_has_an_interval_or_is_named() {
    let pair = Pair::plain(1);
    fs::write(pair.root(0).join("file"), "one").expect("write");
    pair.run(0);
    pair.run(0);
    // No run waits for this one: there is nobody who could give a receipt.
    assert_eq!(pair.target(&["verify"]).code, 0);
    // A run that ends before its check has one as well.
    fs::remove_file(pair.root(0).join("file")).expect("remove");
    fs::remove_dir(pair.root(0)).expect("remove");
    pair.run(4);
    fs::create_dir(pair.root(0)).expect("mkdir");
    let verify = |code: i32| {
        let done = pair.target(&["ledger", "verify"]);
        assert_eq!(done.code, code, "{done:?}");
        done.stdout
    };
    let text = verify(0);
    let line = |id: u32| {
        let begin = format!("verdict {id:09}: ");
        text.lines().find(|line| line.starts_with(&begin)).expect("a line").to_owned()
    };
    for id in [1, 2] {
        assert!(line(id).contains(" (mark) and ") && line(id).contains(" (receipt)"), "{text}");
    }
    assert!(line(3).contains("WITHOUT A RECEIPT") && line(3).contains("target's word alone"), "{text}");
    // The chain bounds it all the same.
    assert!(line(3).contains("verdict 000000004 follows it and has a receipt: before "), "{text}");
    assert!(line(4).contains("signed before ") && line(4).contains("it follows verdict 000000002"), "{text}");
    assert!(text.contains("1 without a receipt: 000000003\n"), "{text}");
    let told = json(&pair.target(&["--json", "ledger", "verify"]).stdout);
    assert_eq!(told["withoutReceipt"], serde_json::json!(["000000003"]), "{told}");
    assert!(told["intervals"][0]["mark"].as_str() < told["intervals"][0]["received"].as_str(), "{told}");

    // A receipt that is gone is named; one that was edited, or is for another verdict, is wrong.
    let receipt = |id: u32| pair.path(&format!("store/repo/receipts/{id:09}.json"));
    let (first, second) = (fs::read(receipt(1)).expect("read"), fs::read(receipt(2)).expect("read"));
    fs::remove_file(receipt(1)).expect("remove");
    assert!(verify(0).contains("2 without a receipt: 000000001, 000000003\n"));
    fs::write(receipt(1), &second).expect("write");
    assert!(verify(1).contains("WRONG: the receipt for verdict 000000001: the run differs"));
    fs::write(receipt(1), String::from_utf8_lossy(&first).replacen("payload\":\"ey", "payload\":\"eY", 1))
        .expect("write");
    assert!(verify(1).contains("WRONG: the receipt for verdict 000000001: "));
    fs::write(receipt(1), &first).expect("write");
    // Receipts outlive the newest entries of a ledger that was cut.
    fs::remove_file(pair.path("store/repo/ledger/000000004.json")).expect("remove");
    assert!(verify(1).contains("WRONG: the receipt for verdict 000000004: the ledger has no such verdict"));
}

/// A receipt that could not be delivered goes with the next run, and the verdict of the run is valid without.
#[test]
fn a_receipt_that_was_not_delivered_goes_with_the_next_run() {
    let pair = Pair::plain(1).unproved();
    fs::write(pair.root(0).join("file"), "one").expect("write");
    pair.run(0);
    let receipt = pair.path("store/repo/receipts/000000001.json");
    let kept = fs::read(&receipt).expect("read");
    let unsent = pair.path("state/repo/receipts/000000001.json");
    assert!(!unsent.exists(), "what was delivered is not kept");
    fs::rename(&receipt, &unsent).expect("rename");
    pair.run(0);
    assert_eq!(fs::read(&receipt).expect("it came again"), kept);
    assert!(!unsent.exists());
}
