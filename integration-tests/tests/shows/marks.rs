//! Marks are ended on every way out, and triggers never make two runs of one.

use std::{fs, thread};

use assay_common::verdict::Outcome;

use crate::pair::{LIST, Pair, json};

/// A mark that is begun and ended by commands, each of which leaves a line; then a settle time that no test lives to see
/// the end of.
fn settling() -> Pair {
    let tables = format!(
        "[mark]\nkind = \"command\"\nbegin = [\"sh\", \"-c\", \"echo begin >> ../marks; echo mark-1\"]\n\
         end = [\"sh\", \"-c\", \"echo end {{mark_id}} >> ../marks\"]\n{LIST}"
    );
    let pair = Pair::with_profile(&tables, "settle = \"1h\"\n");
    fs::write(pair.root(0).join("file"), "x").expect("write");
    pair
}

/// Starts a run and waits until its mark is held.
fn start_and_hold(pair: &Pair) -> String {
    let started = pair.source(&["--json", "run"]);
    let id = json(&started.stdout)["id"].as_str().expect("an id").to_owned();
    let held = || fs::read(pair.path("state/repo/mark.held")).is_ok_and(|id| id == b"mark-1");
    pair.eventually("the mark is held", held);
    id
}

fn marks(pair: &Pair) -> String {
    fs::read_to_string(pair.path("marks")).expect("the mark command ran")
}

#[test]
fn a_cancelled_run_ends_its_mark() {
    let pair = settling();
    let id = start_and_hold(&pair);
    assert_eq!(pair.source(&["cancel", &id]).code, 0);
    let watched = pair.source(&["--json", "watch", &id]);
    assert_eq!(watched.code, 4, "{watched:?}");
    let run = json(watched.stdout.lines().last().expect("a line"));
    assert_eq!((&run["outcome"], &run["reason"]), (&"OUTCOME_NOT_RUN".into(), &"cancelled".into()), "{run}");
    assert_eq!(marks(&pair), "begin\nend mark-1\n");
    assert_eq!(pair.verified(), "none");
    pair.assert_ledger(&[Outcome::NotRun]);
    // A second cancel has nothing to stop, and says so.
    let again = pair.source(&["cancel", &id]);
    assert_ne!(again.code, 0, "{again:?}");
    assert!(again.stderr.contains(&id), "{again:?}");
}

/// The next run ends the mark that a killed agent held, before it makes its own.
#[test]
fn a_killed_source_leaves_no_mark_behind() {
    let pair = settling();
    start_and_hold(&pair);
    pair.restart_with("source", "settle = \"1h\"", "settle = \"0s\"");
    let run = pair.run(0);
    assert_eq!(run["outcome"], "OUTCOME_PASS", "{run}");
    assert_eq!(marks(&pair), "begin\nend mark-1\nbegin\nend mark-1\n");
    // The killed run is told of as ended, not as under way.
    let runs = pair.source(&["--json", "runs"]);
    let killed = json(runs.stdout.lines().last().expect("a line"));
    assert_eq!(killed["outcome"], "OUTCOME_NOT_RUN", "{killed}");
    assert_eq!(pair.verified(), "generations/000001");
}

/// What cannot be ended is no backup: the engine may still be in its backup mode.
#[test]
fn a_mark_that_cannot_be_ended_seals_nothing() {
    let tables = format!(
        "[mark]\nkind = \"command\"\nbegin = [\"echo\", \"mark-1\"]\n\
         end = [\"sh\", \"-c\", \"echo it does not end >&2; exit 9\"]\n{LIST}"
    );
    let pair = Pair::with_profile(&tables, "");
    fs::write(pair.root(0).join("file"), "x").expect("write");
    let run = pair.run(4);
    assert_eq!(
        (&run["outcome"], &run["reason"]),
        (&"OUTCOME_NOT_RUN".into(), &"mark-failed".into()),
        "{run}"
    );
    assert!(run["message"].as_str().expect("text").contains("it does not end"), "{run}");
    assert_eq!(pair.verified(), "none");
    pair.assert_ledger(&[Outcome::NotRun]);
}

/// Many callers at the same moment: one gets a run, all others get its id, in the error's details too.
#[test]
fn of_many_triggers_one_starts_a_run() {
    let pair = Pair::with_blocking_mark();
    fs::write(pair.root(0).join("file"), "x").expect("write");
    let trigger = || {
        let arguments = ["assay.v1.SourceService/StartRun"];
        pair.grpcurl_as("pki/operator", false, &["-d", "{}", "-format-error"], &arguments)
    };
    let answers: Vec<_> = thread::scope(|scope| {
        let callers: Vec<_> = (0..6).map(|_| scope.spawn(trigger)).collect();
        callers.into_iter().map(|caller| caller.join().expect("a caller")).collect()
    });
    let (started, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.code == 0);
    assert_eq!(started.len(), 1, "{started:?} {refused:?}");
    let id = json(&started[0].stdout)["run"]["id"].as_str().expect("an id").to_owned();
    for answer in &refused {
        let error = json(&answer.stderr);
        // ABORTED
        assert_eq!(error["code"], 10, "{answer:?}");
        let details = error["details"].as_array().expect("details");
        let told = details.iter().any(|detail| detail["metadata"]["run_id"] == id.as_str());
        assert!(told, "{id} is not in {answer:?}");
    }
    pair.release_mark();
    assert_eq!(pair.source(&["watch", &id]).code, 0);
    pair.assert_ledger(&[Outcome::Pass]);
}
