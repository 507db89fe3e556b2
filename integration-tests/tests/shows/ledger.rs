//! The ledger as a whole, at the target and as a copy elsewhere.

use std::{fs, path::Path, process::Command};

use assay_common::{
    ledger::Ledger,
    signing::{SigningKey, VerifyingKey},
    verdict::{LiveClaim, Outcome, sign_note, verify_control, verify_note_among, verify_verdict},
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

/// A note is signed, kept once and listed; what cannot be one is refused with the reason; a file that was edited or signed by somebody
/// else counts for nothing and makes the ledger NOT SOUND.
#[test]
fn a_note_is_kept_once_and_one_that_does_not_verify_is_told() {
    let pair = Pair::plain(1);
    fs::write(pair.root(0).join("file"), "one").expect("write");
    pair.run(0);
    let by = ["note", "add", "--by", "A. Smith"];
    let add = |words: &[&str]| pair.target(&[&by[..], words].concat());
    assert_eq!(pair.target(&["note", "list"]).stdout, "no notes\n");
    let (long, name) = ("x".repeat(1025), "y".repeat(129));
    for (words, word) in [
        (&["--verdict", "9", "--text", "why"][..], "the ledger has no verdict 000000009"),
        (&["--verdict", "0", "--text", "why"], "must be the number of a verdict"),
        (&["--verdict", "none", "--text", "why"], "must be the number of a verdict"),
        (&["--generation", "7", "--text", "why"], "no verdict is about generation 7"),
        (&["--slot", "2999-01-01T00:00:00Z", "--text", "why"], "is in the future"),
        (&["--slot", "yesterday", "--text", "why"], "--slot"),
        (&["--text", "why"], "--verdict"),
        (&["--verdict", "1", "--generation", "1", "--text", "why"], "cannot be used with"),
        (&["--verdict", "1"], "--text"),
        (&["--verdict", "1", "--text", ""], "--text: must be a text of 1 to 1024 bytes"),
        (&["--verdict", "1", "--text", "   "], "--text: must be a text of 1 to 1024 bytes"),
        (&["--verdict", "1", "--text", &long], "--text: must be a text of 1 to 1024 bytes"),
        (
            &["--verdict", "1", "--text", "\u{1b}[2Jgone"],
            "--text: must be one line without control characters",
        ),
        (&["--verdict", "1", "--text", "two\nlines"], "--text: must be one line without control characters"),
        (&["--verdict", "1", "--text", "left\u{202e}right"], "--text: must be one line"),
        (&["nobody", "--verdict", "1", "--text", "why"], "nobody"),
    ] {
        let refused = add(words);
        assert!(refused.code == 2 && refused.stderr.contains(word), "{words:?}: {refused:?}");
        assert!(!refused.stderr.contains('\u{1b}'), "{refused:?}");
    }
    let refused = pair.target(&["note", "add", "--verdict", "1", "--text", "why", "--by", &name]);
    assert!(refused.code == 2 && refused.stderr.contains("--by: must be a text of 1 to 128"), "{refused:?}");
    let kept = pair.path("store/repo/notes");
    assert!(!kept.exists(), "nothing was kept");
    let why = ["--verdict", "000000001", "--text", "a trial"];
    let done = add(&why);
    assert!(done.code == 0 && done.stdout.starts_with("noted: verdict 000000001; kept as "), "{done:?}");
    let again = add(&why);
    assert_eq!((again.code, again.stdout.as_str()), (0, "noted before: verdict 000000001\n"), "{again:?}");
    assert_eq!(fs::read_dir(&kept).expect("list").count(), 1);
    assert_eq!(add(&["repo", "--verdict", "1", "--text", "another"]).code, 0);
    let listed = pair.target(&["note", "list"]);
    assert!(listed.code == 0 && listed.stdout.lines().count() == 2, "{listed:?}");
    assert!(listed.stdout.starts_with("note on verdict 000000001 by A. Smith, "), "{listed:?}");
    let sound = pair.target(&["ledger", "verify"]);
    assert!(
        sound.code == 0 && sound.stdout.contains("by A. Smith, ") && sound.stdout.contains(": a trial\n"),
        "{sound:?}"
    );
    // No more than the limit about one thing.
    for number in 3..=20 {
        assert_eq!(add(&["--verdict", "1", "--text", &number.to_string()]).code, 0);
    }
    let refused = add(&["--verdict", "1", "--text", "one more"]);
    assert!(refused.code == 2 && refused.stderr.contains("has 20 notes, which is the limit"), "{refused:?}");
    // One that was edited, and one that is signed by a key that is none of the target's.
    let file = kept.join("000002.json");
    let text = fs::read_to_string(&file).expect("read");
    let read = |name: &str| SigningKey::load(&pair.path(name)).expect("a key");
    let (own, stranger) = (read("pki/target-signing.key"), read("pki/source-signing.key"));
    let (note, _) = verify_note_among(text.as_bytes(), &[own.verifying_key()]).expect("a note");
    for wrong in
        [text.replacen("\"payload\":\"", "\"payload\":\"e", 1), sign_note(&note, &stranger).to_json()]
    {
        fs::write(&file, wrong).expect("write");
        for words in [&["ledger", "verify"][..], &["note", "list"]] {
            let told = pair.target(words);
            assert!(told.code == 1 && told.stdout.contains("WRONG: the note 000002.json: "), "{told:?}");
            assert!(!told.stdout.contains(": another\n"), "{told:?}");
        }
        assert!(!pair.target(&["explain"]).stdout.contains(": another\n"));
    }
    fs::write(&file, text).expect("write");
    assert_eq!(pair.target(&["ledger", "verify"]).code, 0);
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
