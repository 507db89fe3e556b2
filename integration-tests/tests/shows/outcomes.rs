//! Each kind of damage is found and named, each check that cannot do its work says why, and each outcome is a record.

use std::{fs, os::unix::fs::MetadataExt as _};

use assay_common::{profile::Profile, verdict::Outcome};

use crate::{
    engines::{accurev, standin},
    nasty,
    pair::{PLAIN_CHECK, Pair, json, plain_vars, rsync_finds_no_difference},
};

/// A live stand-in passes; then it is damaged, and the check finds it in `file` of the copy. Afterwards the evidence speaks
/// for itself, without any agent.
fn assert_found(damage: &str, file: &str) {
    let (pair, _server) = accurev();
    pair.run(0);
    let done = standin(&["damage", pair.root(0).to_str().expect("utf-8"), damage]);
    let run = pair.run(1);
    assert_eq!(run["outcome"], "OUTCOME_FAIL", "{run}");
    let message = run["message"].as_str().expect("text");
    assert!(message.contains(file), "{file:?} is missing in {message}; {done}");
    assert_eq!(pair.verified(), "generations/000001");
    pair.assert_ledger(&[Outcome::Pass, Outcome::Fail]);
    pair.kill("source");
    pair.kill("target");
    let path = |name: &str| pair.path(name).to_str().expect("utf-8").to_owned();
    let (verdict, key) = (path("store/repo/ledger/000000002.json"), path("pki/target-signing.pub"));
    let source_key = path("pki/source-signing.pub");
    let arguments = ["--json", "verdict", "verify", &verdict, "--key", &key, "--source-key", &source_key];
    let verified = pair.target(&arguments);
    assert_eq!(verified.code, 1, "{verified:?}");
    let told = json(&verified.stdout);
    assert_eq!(told["valid"], true, "{told}");
    assert!(told["verdict"].to_string().contains(file), "{told}");
}

#[test]
fn a_flipped_record_is_found() {
    assert_found("flip-record", "element.ndb");
}

#[test]
fn a_truncated_table_is_found() {
    assert_found("truncate-table", ".ndb");
}

#[test]
fn a_missing_container_is_found() {
    assert_found("missing-container", ".sto");
}

#[test]
fn a_flipped_container_is_found() {
    assert_found("flip-container", ".sto");
}

#[test]
fn exchanged_transaction_numbers_are_found() {
    assert_found("non-monotonic", ".ndb");
}

/// What lies beyond the mark is not part of the backup: no damage.
#[test]
fn rubbish_beyond_the_mark_is_no_damage() {
    let (pair, _server) = accurev();
    pair.run(0);
    standin(&["damage", pair.root(0).to_str().expect("utf-8"), "beyond-mark"]);
    assert_eq!(pair.run(0)["generation"], 2);
    assert_eq!(pair.verified(), "generations/000002");
    pair.assert_ledger(&[Outcome::Pass, Outcome::Pass]);
}

/// A name that the check refuses says nothing of the data; the next of the candidates is tried.
#[test]
fn a_host_name_that_is_refused_is_inconclusive_and_another_is_tried() {
    let (pair, _server) = accurev();
    pair.run(0);
    // The copy believes that it is on a host which goes by one name only.
    let profile = Profile::builtin_text("accurev-4").expect("built in");
    let (before, after) = profile.split_once("run_as = \"owner\"\n").expect("a check");
    let env = "env = { ACCUREV_STANDIN_HOSTNAMES = \"right\" }\n";
    fs::write(pair.path("named.toml"), format!("{before}run_as = \"owner\"\n{env}{after}")).expect("write");
    let host = |name: &str| {
        format!("[repository.host]\nfqdn = \"wrong.example\"\nname = \"{name}\"\naddress = \"192.0.2.1\"\n")
    };
    let with_host = format!("profile = \"./named.toml\"\n{}", host("wrong"));
    pair.restart_with("target", "profile = \"accurev-4\"\n", &with_host);
    let run = pair.run(3);
    assert_eq!(
        (&run["outcome"], &run["reason"]),
        (&"OUTCOME_INCONCLUSIVE".into(), &"host-name-error".into()),
        "{run}"
    );
    assert_eq!(pair.verified(), "generations/000001");
    // The full name is refused, the next one is this host's.
    pair.restart_with("target", &host("wrong"), &host("right"));
    assert_eq!(pair.run(0)["outcome"], "OUTCOME_PASS");
    assert_eq!(pair.verified(), "generations/000003");
    let shown = pair.target(&["verdict", "show"]);
    assert!(shown.stdout.contains("patched bin/acserver.cnf: MASTER_SERVER = right"), "{shown:?}");
    pair.assert_ledger(&[Outcome::Pass, Outcome::Inconclusive, Outcome::Pass]);
}

/// A plain tree whose check is this command: the outcome and reason that it gets.
fn assert_inconclusive(check: &str, reason: &str) {
    let pair = Pair::plain(1);
    fs::write(pair.root(0).join("file"), "x").expect("write");
    pair.run(0);
    pair.restart_with("target", &plain_vars(), check);
    let run = pair.run(3);
    assert_eq!((&run["outcome"], &run["reason"]), (&"OUTCOME_INCONCLUSIVE".into(), &reason.into()), "{run}");
    assert_eq!(pair.verified(), "generations/000001");
    pair.assert_ledger(&[Outcome::Pass, Outcome::Inconclusive]);
    assert!(fs::read_dir(pair.path("store/repo/workspaces")).expect("read").next().is_none());
}

#[test]
fn a_checker_that_is_not_there_is_inconclusive() {
    assert_inconclusive("vars = { check = [\"no-such-checker\"] }", "program-missing");
}

#[test]
fn a_checker_with_an_exit_code_of_its_own_is_inconclusive() {
    assert_inconclusive("vars = { check = [\"sh\", \"-c\", \"exit 42\"] }", "unexpected-exit");
}

#[test]
fn a_checker_that_dies_is_inconclusive() {
    assert_inconclusive("vars = { check = [\"sh\", \"-c\", \"kill -KILL $$\"] }", "check-killed");
}

/// A check that does not end is ended, and nothing of it stays.
#[test]
fn a_checker_that_does_not_end_is_inconclusive() {
    let tables = "[mark]\nkind = \"none\"\n[[check]]\nname = \"endless\"\nargv = [\"tail\", \"-f\", \"/dev/null\"]\n\
                  timeout = \"1s\"\nfail_exit = [1]\n";
    let pair = Pair::with_profile(tables, "");
    fs::write(pair.root(0).join("file"), "x").expect("write");
    let run = pair.run(3);
    assert_eq!(
        (&run["outcome"], &run["reason"]),
        (&"OUTCOME_INCONCLUSIVE".into(), &"check-timeout".into()),
        "{run}"
    );
    pair.assert_ledger(&[Outcome::Inconclusive]);
}

/// A check may do to its workspace what it likes: the generation stays the exact copy.
#[test]
fn a_check_that_writes_does_not_touch_the_generation() {
    let pair = Pair::plain(1);
    fs::write(pair.root(0).join("file"), "x").expect("write");
    fs::create_dir(pair.root(0).join("folder")).expect("mkdir");
    fs::write(pair.root(0).join("folder/inner"), "y").expect("write");
    let work =
        "vars = { check = [\"sh\", \"-c\", \"echo z > file; rm -r folder; echo new > new; chmod 7 file\"] }";
    pair.restart_with("target", &plain_vars(), work);
    assert_eq!(pair.run(0)["outcome"], "OUTCOME_PASS");
    rsync_finds_no_difference(&pair.root(0), &pair.latest());
}

/// Missed runs are records too: the chain goes on over them, and each verifies offline with the exit code of its outcome.
#[test]
fn every_outcome_is_in_the_chain() {
    let pair = Pair::plain(1);
    let file = pair.root(0).join("file");
    fs::write(&file, "x").expect("write");
    pair.run(0);
    fs::remove_file(&file).expect("remove");
    let empty = pair.run(4);
    assert_eq!(
        (&empty["reason"], &empty["verdictId"]),
        (&"root-empty".into(), &"000000002".into()),
        "{empty}"
    );
    fs::write(&file, "x").expect("write");
    pair.restart_with("target", PLAIN_CHECK, "[\"false\"]");
    pair.run(1);
    pair.restart_with("target", "[\"false\"]", "[\"ls\"]");
    pair.run(0);
    pair.assert_ledger(&[Outcome::Pass, Outcome::NotRun, Outcome::Fail, Outcome::Pass]);
    let key = pair.path("pki/target-signing.pub");
    for (number, code) in [(1, 0), (2, 4), (3, 1), (4, 0)] {
        let file = pair.path(&format!("store/repo/ledger/{number:09}.json"));
        let (file, key) = (file.to_str().expect("utf-8"), key.to_str().expect("utf-8"));
        let verified = pair.source(&["verdict", "verify", file, "--key", key]);
        assert_eq!(verified.code, code, "{verified:?}");
    }
}

/// Holes stay holes, and are not sent.
#[test]
fn holes_stay_holes() {
    let pair = Pair::plain(1);
    nasty::make(&pair.root(0));
    let run = pair.run(0);
    for name in ["sparse", "all-hole"] {
        let (live, copy) = (pair.root(0).join(name), pair.latest().join(name));
        let (live, copy) = (fs::metadata(live).expect("stat"), fs::metadata(copy).expect("stat"));
        assert_eq!(live.len(), copy.len());
        assert!(copy.blocks() <= live.blocks() + 64, "{name}: {} of {}", copy.blocks(), live.blocks());
    }
    assert!(run["counts"]["bytesSent"].as_u64().expect("count") < 6_000_000, "{run}");
}

/// What the source remembers is only a cache of what the target has.
#[test]
fn a_source_that_lost_its_state_sends_nothing_again() {
    let pair = Pair::plain(1);
    nasty::make(&pair.root(0));
    pair.run(0);
    pair.kill("source");
    fs::remove_dir_all(pair.path("state")).expect("remove");
    pair.start("source");
    let run = pair.run(0);
    assert_eq!(run["counts"]["bytesSent"].as_u64().unwrap_or(0), 0, "{run}");
    assert_eq!(run["baseGeneration"], 1, "{run}");
    rsync_finds_no_difference(&pair.root(0), &pair.latest());
    assert_eq!(pair.verified(), "generations/000002");
}
