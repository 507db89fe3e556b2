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

/// What a run of one repository left that did not come to its end goes by need of another one, and by a command; a plan without room ends
/// with 4.
#[test]
fn what_an_abandoned_run_left_starves_no_other_repository() {
    let pair = Pair::plain(1).unproved();
    ["source", "target"].into_iter().for_each(|role| pair.kill(role));
    let store = pair.path("store");
    let _disk = SmallDisk::mount(&store, 96);
    let add = |role: &str, section: &str| {
        let path = pair.path(&format!("{role}.toml"));
        let text = fs::read_to_string(&path).expect("read");
        fs::write(
            path,
            format!("{text}\n[[repository]]\nname = \"other\"\nprofile = \"generic\"\n{section}\n"),
        )
        .expect("write");
    };
    let other = pair.path("other");
    fs::create_dir(&other).expect("mkdir");
    let vars = crate::pair::plain_vars();
    add("source", &format!("{vars}\n[[repository.root]]\nname = \"main\"\npath = {other:?}"));
    let limits = "limits = { disk_reserve = \"1MiB\" }\nreserve = \"4MiB\"";
    pair.configure("target", "source = \"source\"", &format!("source = \"source\"\n{limits}"));
    let keys = "source = \"source\"\nsource_key = \"pki/source-signing.pub\"\ncontrol_every = \"never\"";
    add("target", &format!("{keys}\n{limits}\n{vars}"));
    ["target", "source"].into_iter().for_each(|role| pair.start(role));

    let run = |name: &str| {
        let done = pair.source(&["--json", "run", name, "--follow"]);
        let last = done.stdout.lines().last().map(crate::pair::json).unwrap_or_default();
        (done.code, last)
    };
    let staged = |name: &str| {
        let du =
            Command::new("du").args(["-s", "--block-size=1"]).arg(store.join(name).join("staging")).output();
        let text = String::from_utf8(du.expect("du").stdout).expect("text");
        text.split_whitespace().next().expect("a number").parse::<usize>().expect("a number")
    };
    let content = |mebibytes: usize| {
        fs::write(other.join("content"), noise(1, mebibytes * MIB)).expect("write");
    };
    content(128);
    let plan = pair.source(&["plan", "other"]);
    assert!(plan.code == 4 && plan.stdout.contains("NOT ENOUGH"), "{plan:?}");
    assert!(plan.stdout.contains("STOP         target-full: "), "{plan:?}");
    let (code, refused) = run("other");
    assert!(code == 4 && refused["reason"] == "target-full", "{refused}");
    assert!(staged("other") > 60 * MIB, "{} bytes are staged", staged("other"));

    // There is no room for it beside that.
    replace(&pair, 2, 40);
    let plan = pair.source(&["plan", "repo"]);
    assert!(plan.code == 0 && !plan.stdout.contains("NOT ENOUGH"), "{plan:?}");
    assert_eq!(run("repo").0, 0);
    assert!(staged("other") < MIB, "{} bytes are staged", staged("other"));

    let (code, refused) = run("other");
    assert!(code == 4 && refused["reason"] == "target-full", "{refused}");
    let before = staged("other");
    assert!(before > 10 * MIB, "{before} bytes are staged");
    let discarded = pair.target(&["--json", "discard", "other"]);
    assert_eq!(discarded.code, 0, "{discarded:?}");
    let bytes = crate::pair::json(&discarded.stdout)["bytes"].as_u64().expect("a number");
    assert!(bytes > 10 * MIB as u64 && staged("other") < MIB, "{discarded:?}");
    let again = pair.target(&["discard", "other"]);
    assert_eq!((again.code, again.stdout.as_str()), (0, "other: no run left anything behind\n"));
    content(10);
    assert_eq!(run("other").0, 0);

    // One after the other, for all; and one of them by its name.
    let all = pair.target(&["generations", "--all"]);
    assert!(all.code == 0 && all.stdout.contains("other:\n") && all.stdout.contains("repo:\n"), "{all:?}");
    for command in
        [&["ledger", "verify", "--all"][..], &["scrub", "--all"], &["verify", "--all"], &["discard", "--all"]]
    {
        let done = pair.target(&[&["--json"], command].concat());
        let names: std::collections::BTreeSet<_> = done
            .stdout
            .lines()
            .map(|line| crate::pair::json(line)["repository"].as_str().unwrap_or_default().to_owned())
            .collect();
        assert!(
            done.code == 0 && names == ["other".to_owned(), "repo".to_owned()].into(),
            "{command:?}: {done:?}"
        );
    }
    // Neither has a retention: each says so, and the exit code is the worst.
    let pruned = pair.target(&["prune", "--all"]);
    assert!(pruned.code == 4 && pruned.stderr.matches("error: ").count() == 2, "{pruned:?}");
    for status in [pair.source(&["status", "other"]), pair.target(&["status", "other"])] {
        assert!(status.code == 0 && !status.stdout.contains("repo:"), "{status:?}");
    }
    assert_eq!(pair.source(&["status", "nobody"]).code, 2);
    let explained = pair.target(&["explain", "other"]);
    assert!(explained.code == 0 && explained.stdout.starts_with("PASS"), "{explained:?}");
    // Which one is meant must be said; gRPC says that the request itself is wrong.
    let unnamed = pair.target(&["generations"]);
    assert!(
        unnamed.code == 2 && unnamed.stderr.contains("there are several repositories: name one"),
        "{unnamed:?}"
    );
    for (target, method) in [(true, "TargetService/ListGenerations"), (false, "SourceService/PlanRun")] {
        let method = format!("assay.v1.{method}");
        let asked = pair.grpcurl_as("pki/operator", target, &["-d", "{}"], &[&method]);
        assert!(asked.code != 0 && asked.stderr.contains("InvalidArgument"), "{asked:?}");
    }
    pair.kill("target");
}
