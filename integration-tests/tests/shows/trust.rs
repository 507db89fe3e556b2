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
    pair::{PLAIN_CHECK, Pair, json, plain_check_and, plain_vars, rsync_finds_no_difference},
};

/// A check that compares a tree with the digests that stand in it.
const SUMS: &str = "vars = { check = [\"sh\", \"-c\", \"sha256sum --check --quiet sums || exit 1\"] }";

/// Agents for a tree whose check compares `data` and `other` with the digests in `sums`.
fn summed() -> Pair {
    let pair = Pair::plain(1);
    pair.restart_with("target", &plain_vars(), SUMS);
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

/// A server that goes on writing does not hide it: what was read is the beginning of what is there. A run in which the file changed on
/// every try while it was read blames the read, which may be true, too: on a busy machine that happens, and another run follows.
#[test]
fn damage_of_a_live_accurev_is_attributed_to_it() {
    let (pair, _server) = accurev();
    pair.run(0);
    standin(&["damage", pair.root(0).to_str().expect("utf-8"), "flip-record"]);
    let mut runs = (0..20).map(|_| pair.run(1));
    let run = runs
        .find(|run| run["attribution"]["fault"] != "torn-read")
        .expect("a run that read the file in one piece");
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
    flip(&pair.generation("000001").join("sums"), 1);
    fs::write(pair.root(0).join("other.txt"), "damaged").expect("write");
    // The same again, so that this generation has its own.
    let sums = fs::read(pair.root(0).join("sums")).expect("read");
    fs::write(pair.root(0).join("sums"), sums).expect("write");
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
    pair.restart_with("target", PLAIN_CHECK, "[\"sh\", \"-c\", \"echo busy: bad; exit 1\"]");
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
    let check = plain_check_and(&format!("cd \\\"$0\\\" && test ! -e {}", broken.display()));
    let check = check.replace(']', ", \"{root}\"]");
    let tables = format!(
        "[mark]\nkind = \"none\"\n[sandbox]\nvisible = [{:?}]\n[[check]]\nname = \"check\"\n\
         argv = {check}\nfail_exit = [1]\n",
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

/// The control that the target keeps, and what the newest verdict says of it.
fn control_in_verdict(pair: &Pair) -> serde_json::Value {
    let verdict = pair.target(&["--json", "verdict", "show"]);
    json(&verdict.stdout)["negativeControl"].clone()
}

#[test]
fn a_checker_that_always_says_yes_is_caught() {
    let pair = summed();
    pair.restart_with("target", SUMS, "vars = { check = [\"true\"] }");
    let early = pair.target(&["control"]);
    assert!(early.code == 4 && early.stderr.contains("no generation has passed its check"), "{early:?}");
    pair.run(0);
    assert!(control_in_verdict(&pair).is_null());
    let control = pair.target(&["control"]);
    assert_eq!(control.code, 1, "{control:?}");
    assert!(control.stdout.contains("\nNOT TRUSTED") && control.stdout.contains("-> PASS"), "{control:?}");
    let status = pair.target(&["status"]).stdout;
    assert!(status.contains("the checker is NOT TRUSTED"), "{status}");
    // Every later verdict says so, signed, at both ends, and after a restart.
    pair.kill("target");
    pair.start("target");
    fs::write(pair.root(0).join("data"), "new").expect("write");
    let run = pair.run(0);
    assert!(run["message"].as_str().expect("text").contains("NOT TRUSTED"), "{run}");
    let told = control_in_verdict(&pair);
    assert_eq!((&told["trust"], &told["generation"]), (&"not-trusted".into(), &1.into()), "{told}");
    let explained = pair.source(&["explain"]);
    assert!(explained.stdout.contains("NOT TRUSTED") && explained.code == 0, "{explained:?}");
    // The generation that was damaged in workspaces is what it was, and so is the chain.
    assert_eq!(pair.target(&["verify", "--generation", "1"]).code, 0);
    pair.assert_ledger(&[Outcome::Pass, Outcome::Pass, Outcome::Pass]);
    assert!(fs::read_dir(pair.path("store/repo/workspaces")).expect("read").next().is_none());
    // A control that somebody edited is not believed.
    let file = pair.path("store/repo/control.json");
    let text = fs::read_to_string(&file).expect("read");
    let at = text.find("payload\":\"").expect("payload") + 100;
    let letter = if &text[at..=at] == "A" { "B" } else { "A" };
    fs::write(&file, format!("{}{letter}{}", &text[..at], &text[at + 1..])).expect("write");
    pair.target(&["verify"]);
    assert!(control_in_verdict(&pair).is_null());
}

#[test]
fn a_checker_that_reads_what_it_checks_is_trusted() {
    let pair = summed();
    pair.run(0);
    let control = pair.target(&["--json", "control"]);
    let told = json(control.stdout.lines().last().expect("a line"));
    assert_eq!((control.code, &told["trust"]), (0, &"trusted".into()), "{control:?}");
    assert_eq!(told["damages"][0]["outcome"], "OUTCOME_FAIL", "{told}");
    assert!(told["damages"][0]["what"].as_str().expect("text").starts_with("byte "), "{told}");
    pair.target(&["verify"]);
    assert_eq!(control_in_verdict(&pair)["trust"], "trusted");
    // Of another checker nothing is known, by whatever name it goes; of the same one what was found out is.
    let yes = "vars = { check = [\"true\"] }";
    pair.restart_with("target", SUMS, yes);
    pair.target(&["verify"]);
    assert!(control_in_verdict(&pair).is_null());
    assert!(pair.target(&["status"]).stdout.contains("unknown"));
    pair.restart_with("target", yes, SUMS);
    pair.target(&["verify"]);
    assert_eq!(control_in_verdict(&pair)["trust"], "trusted");
    // A check that does not pass what is undamaged tells nothing by failing what is.
    pair.restart_with("target", SUMS, "vars = { check = [\"false\"] }");
    let control = pair.target(&["--json", "control"]);
    let told = json(control.stdout.lines().last().expect("a line"));
    assert_eq!((control.code, &told["trust"]), (3, &"unknown".into()), "{control:?}");
}

/// A profile says itself which damage its check must find, each of it.
#[test]
fn what_a_profile_lists_must_be_found() {
    let control = |files: &str, damage: &str| {
        format!("[[control]]\nfiles = {files:?}\ndamage = {damage:?}\nplaces = 1\n")
    };
    let tables = format!(
        "[mark]\nkind = \"none\"\n[[check]]\nname = \"length\"\nargv = [\"sh\", \"-c\", \"test $(stat -c %s data) = 300000\"]\n\
         fail_exit = [1]\n{}{}",
        control("data", "truncate"),
        control("data", "flip-byte")
    );
    let pair = Pair::with_profile(&tables, "");
    write_summed(&pair, 1);
    pair.run(0);
    let done = pair.target(&["control"]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stdout.contains("passed damaged data: flip-byte of data\n"), "{done:?}");
    assert!(done.stdout.contains("truncate in data: cut from 300000 to 150000 bytes -> FAIL"), "{done:?}");
}

#[test]
fn the_accurev_checker_finds_what_its_profile_lists() {
    let (pair, _server) = accurev();
    pair.run(0);
    let done = pair.target(&["control"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stdout.contains("found 2 of 2 kinds of damage"), "{done:?}");
}

/// The first bad one of seven, of which the check could say nothing when they were made, is found by halves.
#[test]
fn bisect_finds_the_first_bad_generation_and_what_changed_in_it() {
    let pair = summed();
    pair.run(0);
    let none = pair.target(&["bisect"]);
    assert!(none.code == 4 && none.stderr.contains("no generation has failed"), "{none:?}");
    pair.restart_with("target", SUMS, "vars = { check = [\"no-such-checker\"] }");
    for generation in 2..=6 {
        if generation == 4 {
            fs::write(pair.root(0).join("other.txt"), "damaged").expect("write");
        }
        fs::write(pair.root(0).join(format!("file{generation}")), "more").expect("write");
        pair.run(3);
    }
    pair.restart_with("target", "vars = { check = [\"no-such-checker\"] }", SUMS);
    fs::write(pair.root(0).join("file7"), "more").expect("write");
    let failed = pair.run(1);
    assert_eq!(
        (&failed["generation"], &failed["attribution"]["lastPass"]),
        (&7.into(), &1.into()),
        "{failed}"
    );
    let done = pair.target(&["--json", "bisect"]);
    assert_eq!(done.code, 0, "{done:?}");
    let found = json(done.stdout.lines().last().expect("a line"));
    assert_eq!((&found["lastGood"], &found["firstBad"]), (&3.into(), &4.into()), "{found}");
    let changes: Vec<_> = found["changes"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|change| {
            format!("{} {}", change["change"].as_str().expect("text"), change["path"].as_str().expect("text"))
        })
        .collect();
    assert_eq!(changes, ["added file4", "content other.txt"]);
    // Three halvings at most, each a verdict; asked again, the ledger knows it all.
    let ledger = || fs::read_dir(pair.path("store/repo/ledger")).expect("read").count();
    let before = ledger();
    assert!(before <= 7 + 3, "{before} verdicts");
    let again = pair.target(&["bisect"]);
    assert!(again.stdout.contains("generation 4 the first bad one"), "{again:?}");
    assert_eq!(ledger(), before);
    assert_eq!(pair.verified(), "generations/000003");
}

#[test]
fn a_fail_is_explained_at_both_ends() {
    let (pair, _server) = accurev();
    pair.run(0);
    standin(&["damage", pair.root(0).to_str().expect("utf-8"), "flip-record"]);
    let run = pair.run(1);
    let id = run["id"].as_str().expect("id");
    let (target, source) = (pair.target(&["explain"]), pair.source(&["explain", id]));
    assert_eq!((target.code, source.code), (0, 0), "{target:?}{source:?}");
    assert_eq!(target.stdout, source.stdout);
    // Lines are folded.
    let told = target.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "FAIL: the check found damage",
        "The step \"dbcheck\" of the profile accurev-4 decided it: it ended with exit code 1.",
        "element.ndb",
        "Where the fault came in: live",
        "it came in with generation 2",
        "Treat the live repository as damaged",
    ] {
        assert!(told.contains(part), "{part:?} is missing in {}", target.stdout);
    }
    // The newest run is explained, though it came to no verdict.
    pair.kill("target");
    let run = pair.run(4);
    let (newest, named) =
        (pair.source(&["explain"]), pair.source(&["explain", run["id"].as_str().expect("id")]));
    assert!(newest.code == 0 && newest.stdout == named.stdout, "{newest:?}{named:?}");
    assert!(newest.stdout.starts_with("NOT_RUN: the run ended before its check"), "{newest:?}");
    assert!(
        newest.stdout.contains("\"target-unreachable\"") && newest.stdout.contains("What to do next"),
        "{newest:?}"
    );
    let nobody = pair.source(&["explain", "20200101T000000Z-000000"]);
    assert!(nobody.code == 2 && nobody.stderr.contains("HINT"), "{nobody:?}");
}

/// Controls and old verdicts are looked after by the clock, behind runs: nobody asks for them here.
#[test]
fn controls_and_old_generations_are_looked_after_by_the_clock() {
    let pair = summed().unproved();
    pair.run(0);
    let never = "control_every = \"never\"";
    let by_the_clock = "control_every = \"1h\"\nreverify_after = \"1s\"";
    pair.restart_with("target", never, by_the_clock);
    let ledger = || fs::read_dir(pair.path("store/repo/ledger")).expect("read").count();
    pair.eventually("a control and two verdicts more", || {
        pair.path("store/repo/control.json").exists() && ledger() >= 3
    });
    // A run begins at once whatever is going on, and what it ended is no verdict.
    write_summed(&pair, 2);
    assert_eq!(pair.run(0)["generation"], 2);
    let status = pair.target(&["status"]).stdout;
    assert!(status.contains("the checker is trusted"), "{status}");
    pair.restart_with("target", by_the_clock, never);
    pair.assert_ledger(&vec![Outcome::Pass; ledger()]);
}

/// Nobody asks for the first control: it follows the first PASS. Until it has passed, the PASS does not count and nothing is said
/// of the live repository.
#[test]
fn the_first_control_follows_the_first_pass_by_itself() {
    let deep = crate::pair::LIST.replace("name = \"list\"", "name = \"list\"\ndepth = \"L2\"");
    let pair = Pair::with_profile(&format!("[mark]\nkind = \"none\"\n{deep}"), "").unproved();
    pair.restart_with("target", "control_every = \"never\"\n", "");
    fs::write(pair.root(0).join("file"), "x").expect("write");
    let first = pair.run(0);
    assert_eq!(
        (&first["claims"]["backup"], &first["claims"]["live"]),
        (&"as-read".into(), &"nothing".into()),
        "{first}"
    );
    let says = first["sentence"].as_str().expect("text");
    assert!(
        says.starts_with("the copy is what was read; its content was not checked by a checker"),
        "{says}"
    );
    pair.eventually("a control has passed", || pair.verified() == "generations/000001");
    let generation = json(&pair.target(&["--json", "generations"]).stdout);
    assert_eq!(
        (&generation["proven"], &generation["claims"]["live"]),
        (&true.into(), &"good".into()),
        "{generation}"
    );
    let status = pair.target(&["status"]).stdout;
    assert!(status.contains("repo: proven good "), "{status}");
    fs::write(pair.root(0).join("file"), "other").expect("write");
    let second = pair.run(0);
    assert_eq!(second["claims"]["proven"], true, "{second}");
    assert!(second["sentence"].as_str().expect("text").starts_with("this backup is good"), "{second}");
    assert_eq!(pair.verified(), "generations/000002");
    // What was looked at stands in the verdict, at both ends.
    let shown = pair.target(&["--json", "verdict", "show"]).stdout;
    let envelope: serde_json::Value = json(json(&shown)["envelope"].as_str().expect("an envelope"));
    assert!(envelope["payload"].is_string(), "{shown}");
    for explained in [pair.target(&["explain"]), pair.source(&["explain"])] {
        assert!(explained.stdout.contains("\nWhat it rests on\n"), "{explained:?}");
        assert!(explained.stdout.contains("The step \"list\" looks at the structure."), "{explained:?}");
    }
}

/// A checker that passes everything moves nothing and proves nothing, before its control and after it; what another checker
/// proved stays.
#[test]
fn a_checker_that_passes_anything_moves_nothing() {
    let pair = summed();
    pair.run(0);
    assert_eq!(pair.verified(), "generations/000001");
    pair.restart_with("target", SUMS, "vars = { check = [\"true\"] }");
    pair.restart_with("target", "control_every = \"never\"\n", "");
    write_summed(&pair, 2);
    let run = pair.run(0);
    assert_eq!(
        (&run["claims"]["backup"], &run["claims"]["live"]),
        (&"as-read".into(), &"nothing".into()),
        "{run}"
    );
    pair.eventually("the control has ended", || {
        pair.target(&["status"]).stdout.contains("the checker is NOT TRUSTED")
    });
    for _ in 0..2 {
        let run = pair.run(0);
        let says = run["sentence"].as_str().expect("text");
        assert!(says.starts_with("the copy is what was read; its content was not checked"), "{says}");
        assert!(run["claims"]["proven"].is_null(), "{run}");
    }
    assert_eq!(pair.verified(), "generations/000001");
    let status = pair.source(&["status"]).stdout;
    assert!(!status.contains("the live repository was good"), "{status}");
    // The generation is there, and says of itself what it is.
    let to = pair.path("back").to_str().expect("text").to_owned();
    assert_eq!(pair.target(&["restore", "--to", &to]).code, 0);
    let proven = pair.target(&["generations"]).stdout;
    assert!(proven.contains("<- verified"), "{proven}");
}

/// Every reason that the code can give has a remedy of its own.
#[test]
fn every_reason_has_a_remedy() {
    use assay_common::{cli::remedies::known_remedy, profile::Profile};
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace");
    let mut reasons = std::collections::BTreeSet::new();
    let word = |text: &str| {
        let quoted = text.trim_start().strip_prefix('"')?.split('"').next()?;
        let plain = quoted.len() > 2 && quoted.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
        plain.then(|| quoted.to_owned())
    };
    let mut folders = vec![workspace.join("agent-source/src"), workspace.join("agent-target/src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("read").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).expect("source");
            for call in [
                "not_run(",
                "remote(",
                "inconclusive(",
                "fail(",
                "let reason =",
                "reason: ",
                "end_not_run(&mut run,",
                "CONTRADICTION: &str =",
            ] {
                reasons.extend(text.split(call).skip(1).filter_map(word));
            }
            // The functions that give the word for an error.
            for body in text.split("fn reason(").skip(1).filter_map(|rest| rest.split("\n    }\n").next()) {
                reasons.extend(body.split("=>").skip(1).filter_map(word));
            }
            for body in text.split("let reason = match").skip(1).filter_map(|rest| rest.split("};").next()) {
                reasons.extend(body.split("=>").skip(1).filter_map(word));
            }
        }
    }
    for known in
        ["root-empty", "check-timeout", "key-twice", "target-busy", "checker-contradiction", "agent-stopped"]
    {
        assert!(reasons.contains(known), "the search does not find {known}: {reasons:?}");
    }
    for profile in Profile::builtin_names().map(|name| Profile::builtin(name).expect("built in")) {
        reasons.extend(profile.overlays.iter().map(|overlay| overlay.missing_reason.clone()));
        for check in &profile.checks {
            reasons.extend(check.inconclusive_exit.iter().map(|rule| rule.reason.clone()));
            let patterns = check.fail_patterns.iter().chain(&check.inconclusive_patterns);
            reasons.extend(patterns.map(|rule| rule.reason.clone()));
        }
    }
    let without: Vec<_> = reasons.iter().filter(|reason| known_remedy(reason).is_none()).collect();
    assert!(without.is_empty(), "no remedy for {without:?}");
}

/// A run that reads everything does not carry over what the target's disk has not kept, although the source finds nothing
/// changed: neither of a file that several generations share, nor of one that is read before all others.
#[test]
fn a_full_run_replaces_what_the_targets_disk_has_not_kept() {
    use std::os::unix::fs::MetadataExt as _;
    let tables = format!("[mark]\nkind = \"none\"\n[copy]\nfirst = [\"/first\"]\n{}", crate::pair::LIST);
    let pair = Pair::with_profile(&tables, "");
    for (seed, name) in ["first", "large", "small", "sound"].into_iter().enumerate() {
        fs::write(
            pair.root(0).join(name),
            noise(seed as u64, if name == "large" { 3_000_000 } else { 5000 }),
        )
        .expect("write");
    }
    fs::hard_link(pair.root(0).join("large"), pair.root(0).join("linked")).expect("link");
    pair.run(0);
    // What was written a moment ago is read once more; then nothing is, and files are shared.
    pair.run(0);
    pair.run(0);
    let copy = |generation: &str, name: &str| pair.generation(generation).join(name);
    let inode = |generation: &str, name: &str| fs::metadata(copy(generation, name)).expect("stat").ino();
    assert_eq!(inode("000002", "large"), inode("000003", "large"), "they share their files");
    for name in ["first", "large", "small"] {
        flip(&copy("000003", name), 4000);
    }
    // A run that trusts times carries it on, and a scrub or the check's own reading has to find it.
    pair.run(0);
    let is_sound = |generation: &str, name: &str| {
        fs::read(copy(generation, name)).expect("read") == fs::read(pair.root(0).join(name)).expect("read")
    };
    assert!(!is_sound("000004", "large"), "it is shared, and so is what happened to it");
    let full = pair.source(&["--json", "run", "--follow", "--full-read"]);
    assert_eq!(full.code, 0, "{full:?}");
    for name in ["first", "large", "linked", "small", "sound"] {
        assert!(is_sound("000005", name), "{name}");
    }
    assert_eq!(inode("000005", "large"), inode("000005", "linked"));
    // What was sealed is evidence and stays as it is.
    assert!(!is_sound("000003", "large") && !is_sound("000003", "first"));
    // And what comes after builds upon the sound one.
    pair.run(0);
    assert!(is_sound("000006", "large") && is_sound("000006", "first"));
    rsync_finds_no_difference(&pair.root(0), &pair.latest());
}

/// What the target's disk has lost of files that change is noticed when they are taken over, and it is sent from what the source has: in
/// one run, however many files have lost some.
#[test]
fn what_the_disk_has_lost_is_not_taken_over() {
    let pair = Pair::plain(1);
    let names: Vec<String> = (0..9).map(|number| format!("large{number}")).collect();
    let live = |name: &str| pair.root(0).join(name);
    for (seed, name) in names.iter().enumerate() {
        fs::write(live(name), noise(seed as u64, 1 << 20)).expect("write");
    }
    pair.run(0);
    for (seed, name) in names.iter().enumerate() {
        flip(&pair.generation("000001").join(name), 123_456);
        let content = [noise(seed as u64, 1 << 20), b"one more line".to_vec()].concat();
        fs::write(live(name), content).expect("write");
    }
    let run = pair.run(0);
    let (read, sent) = (&run["counts"]["filesRead"], &run["counts"]["bytesSent"]);
    assert!(read.as_u64().is_some_and(|read| (10..=18).contains(&read)), "once more at most: {run}");
    assert!(sent.as_u64().is_some_and(|sent| sent < 3 << 20), "what was lost, and what is new: {run}");
    rsync_finds_no_difference(&pair.root(0), &pair.latest());
    assert!(pair.logs().contains("was not kept by the disk"), "{}", pair.logs());
    let scrubbed = pair.target(&["scrub"]);
    assert!(
        scrubbed.code == 0 && scrubbed.stdout.contains("ROTTEN large0 in generation 1: "),
        "{scrubbed:?}"
    );
}

/// What the base has is not held at the source until the target has looked. When the target cannot read it, it is read again; and
/// when it is no longer what it was, the whole of its file is.
#[test]
fn what_was_let_go_is_read_again_when_the_target_lacks_it() {
    for (fault, files_read) in [("", 1), ("read.block=eio@5", 2)] {
        let pair = Pair::plain(1);
        let large = pair.root(0).join("large");
        let mut content = noise(1, 3 << 20);
        fs::write(&large, &content).expect("write");
        pair.run(0);
        let sealed = File::options().write(true).open(pair.generation("000001").join("large")).expect("open");
        sealed.set_len((3 << 20) - 200_000).expect("cut off");
        content.extend(b"one more line");
        fs::write(&large, &content).expect("write");
        // Three blocks and the line; the fifth reading is the one that the target asks for.
        pair.kill("source");
        let trace = pair.path("trace");
        let variables = [
            ("ASSAY_FAULTS", fault.to_owned()),
            ("ASSAY_FAULTS_TRACE", trace.to_string_lossy().into_owned()),
        ];
        pair.set_environment("source", &variables);
        pair.start("source");
        let run = pair.run(0);
        let passed = fs::read_to_string(&trace).expect("a trace");
        let count = |line: &str| passed.lines().filter(|passed| *passed == line).count();
        assert_eq!(run["counts"]["filesRead"], files_read, "{run}");
        match fault {
            "" => assert!(count("read.block") > 4, "{passed}"),
            _ => assert_eq!((count("read.block"), count("read.block!")), (5 + 4, 1), "{passed}"),
        }
        let sent = run["counts"]["bytesSent"].as_u64().expect("a count");
        assert!((13..1 << 20).contains(&sent), "what was lost, and what is new: {run}");
        rsync_finds_no_difference(&pair.root(0), &pair.latest());
    }
}
