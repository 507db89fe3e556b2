//! `assay-target report`: evidence for a period, and that somebody else can verify it by what it says itself.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use assay_common::verdict::Outcome;
use jiff::{SignedDuration, Timestamp};

use crate::{
    pair::{Done, Pair, json},
    past::Planned,
    site::{Site, write_past},
};

/// A verdict an hour for three days, one of them a FAIL, and a night without any.
fn three_days() -> Vec<Planned> {
    let begin: Timestamp = "2026-10-01T00:30:00Z".parse().expect("a time");
    let hours = (0..72).filter(|hour| !(30..36).contains(hour));
    let all = hours.map(|hour| Planned::pass(begin + SignedDuration::from_hours(hour)));
    let mut all: Vec<_> = all.collect();
    all[20].outcome = Outcome::Fail;
    all[20].reason = "damage-found";
    all[20].message = "<script>alert(1)</script>".to_owned();
    all
}

fn with_past(past: &[Planned]) -> Pair {
    let pair = Pair::plain(1);
    pair.kill("target");
    write_past(&pair, "repo", past);
    pair.start("target");
    pair
}

fn report(pair: &Pair, words: &[&str]) -> Done {
    pair.target(&[&["report"], words].concat())
}

/// What an auditor has: copies of the ledger and of the public keys, and the commands of the report.
fn evidence(pair: &Pair, name: &str, keys: &[PathBuf]) -> PathBuf {
    let folder = pair.path(name);
    for part in ["ledger", "keys"] {
        fs::create_dir_all(folder.join(part)).expect("mkdir");
    }
    for entry in fs::read_dir(pair.path("store/repo/ledger")).expect("list") {
        let path = entry.expect("entry").path();
        fs::copy(&path, folder.join("ledger").join(path.file_name().expect("a name"))).expect("copy");
    }
    for (key, number) in keys.iter().zip(1..) {
        fs::copy(key, folder.join("keys").join(format!("{number}.pub"))).expect("copy");
    }
    folder
}

fn shell(folder: &Path, script: &str) -> String {
    let output = Command::new("sh").args(["-c", script]).current_dir(folder).output().expect("a shell");
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The last line of a report's own commands is its head, and nothing is wrong; one changed byte is found.
fn assert_verifies(folder: &Path, report: &serde_json::Value) {
    let script = report["verify"].as_str().expect("commands");
    let head = report["repositories"][0]["head"].as_str().expect("a head");
    assert_eq!(shell(folder, script), format!("head {head}\n"));
    let file = folder.join("ledger/000000003.json");
    let text = fs::read_to_string(&file).expect("read");
    let middle = text.len() / 2;
    let other = if &text[middle..=middle] == "A" { "B" } else { "A" };
    fs::write(&file, format!("{}{other}{}", &text[..middle], &text[middle + 1..])).expect("write");
    let said = shell(folder, script);
    for word in ["ledger/000000003.json: WRONG SIGNATURE", "ledger/000000004.json: WRONG LINK"] {
        assert!(said.contains(word), "{word}: {said}");
    }
}

/// Every verdict and missed slot of the period, the exception with the PASS after it; openssl and b3sum agree by the report's own words.
#[test]
fn a_report_has_its_period_and_verifies_offline() {
    let pair = with_past(&three_days());
    let period = ["--from", "2026-10-01", "--to", "2026-10-02", "--every", "1h"];
    let done = report(&pair, &[&period[..], &["--format", "json"]].concat());
    assert_eq!(done.code, 0, "{done:?}");
    let value = json(&done.stdout);
    let one = &value["repositories"][0];
    let verdicts = one["verdicts"].as_array().expect("a list");
    assert_eq!(verdicts.len(), 48 - 6, "{value:#}");
    let missed = one["missed"].as_array().expect("a list");
    assert!(missed.len() == 1 && missed[0]["slots"] == 6, "{missed:?}");
    let exceptions = one["exceptions"].as_array().expect("a list");
    assert_eq!(exceptions.len(), 1);
    assert_eq!(
        (&exceptions[0]["id"], &exceptions[0]["nextPass"]),
        (&"000000021".into(), &"000000022".into())
    );
    assert_eq!(exceptions[0]["outcome"], "OUTCOME_FAIL");
    assert!(
        one["sound"] == true && verdicts[0]["interval"].as_str().is_some_and(|it| it.contains("(mark)")),
        "{one}"
    );
    assert!(value["requirements"].as_array().is_some_and(|all| all.len() >= 5), "{value}");
    assert_verifies(&evidence(&pair, "evidence", &[pair.path("pki/target-signing.pub")]), &value);
    // The page stands alone, and what the data says is text on it.
    let page = report(&pair, &period).stdout;
    for word in [
        "000000021",
        "next PASS",
        "1 part not covered",
        "DORA",
        "b3sum --derive-key",
        "6 between 2026-10-02 06:00:00Z",
    ] {
        assert!(page.contains(word), "{word}: {page}");
    }
    assert!(
        !page.contains("<script") && !page.contains("http-equiv=\"refresh\"") && !page.contains(" src="),
        "{page}"
    );
    if let Some(folder) = crate::fleet::screenshots() {
        fs::write(folder.join("report.html"), &page).expect("write");
    }
    let table = report(&pair, &[&period[..], &["--format", "csv"]].concat()).stdout;
    assert_eq!(table.lines().count(), 1 + 42, "{table}");
    assert!(table.starts_with("repository,verdict,outcome,"), "{table}");
    // A tree of a generation that is there has the root that was signed.
    fs::write(pair.root(0).join("file"), "content").expect("write");
    pair.run(0);
    let today = Timestamp::now().strftime("%Y-%m-%d").to_string();
    let value = json(&report(&pair, &["--from", &today, "--to", &today, "--format", "json"]).stdout);
    assert_eq!(value["unfinished"], true);
    let root = shell(
        &pair.path("store/repo/latest"),
        "b3sum --derive-key 'assay v1 manifest root' --no-names manifest",
    );
    assert_eq!(value["repositories"][0]["verdicts"][0]["root"].as_str(), Some(root.trim()), "{value:#}");
}

/// A period without runs says that nothing was proven; one in the future, or the wrong way round, is an error that says so.
#[test]
fn a_period_that_cannot_be_is_refused_and_an_empty_one_says_so() {
    let pair = with_past(&three_days());
    let empty = report(&pair, &["--from", "2026-08-01", "--to", "2026-08-31"]);
    assert_eq!(empty.code, 0, "{empty:?}");
    assert!(
        empty.stdout.contains("nothing was proven in it") && empty.stdout.contains("Not asked for"),
        "{empty:?}"
    );
    for (words, code, word) in [
        (&["--from", "2026-10-02", "--to", "2026-10-01"][..], 2, "must be after --from"),
        (&["--from", "2999-01-01", "--to", "2999-02-01"], 2, "lies in the future"),
        (&["--from", "yesterday", "--to", "2026-10-01"], 2, "must be a day"),
        (&["--from", "2026-02-30", "--to", "2026-10-01"], 2, "must be a day"),
        (&["--from", "2026-10-01", "--to", "2026-10-02", "--every", "0s"], 2, "at least a second"),
        (&["--from", "2026-10-01", "--to", "2026-10-02", "--repository", "nobody"], 2, "nobody"),
        (&["--from", "2026-10-01"], 2, "--to"),
    ] {
        let done = report(&pair, words);
        assert!(done.code == code && done.stderr.contains(word), "{words:?}: {done:?}");
    }
    // A ledger that was edited is told in the report and by the exit code.
    let entry = pair.path("store/repo/ledger/000000005.json");
    fs::copy(pair.path("store/repo/ledger/000000006.json"), entry).expect("copy");
    let done = report(&pair, &["--from", "2026-10-01", "--to", "2026-10-02"]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stdout.contains("NOT SOUND") && done.stdout.contains("verdict 000000005"), "{done:?}");
    // What a verdict says whose signature is another's counts for nothing, in any format.
    let entry = pair.path("store/repo/ledger/000000003.json");
    let text = fs::read_to_string(&entry).expect("read");
    let (head, signature) = text.split_once("\"sig\":\"").expect("a signature");
    let other = if signature.starts_with('A') { "B" } else { "A" };
    fs::write(entry, format!("{head}\"sig\":\"{other}{}", &signature[1..])).expect("write");
    let period = ["--from", "2026-10-01", "--to", "2026-10-01"];
    let value = json(&report(&pair, &[&period[..], &["--format", "json"]].concat()).stdout);
    let verdicts = value["repositories"][0]["verdicts"].as_array().expect("a list");
    let third = verdicts.iter().find(|entry| entry["id"] == "000000003").expect("the third");
    assert_eq!((&third["outcome"], &third["verified"]), (&"OUTCOME_PASS".into(), &false.into()), "{third}");
    let exceptions = value["repositories"][0]["exceptions"].as_array().expect("a list");
    assert!(exceptions.iter().any(|entry| entry["id"] == "000000003"), "{exceptions:?}");
    let table = report(&pair, &[&period[..], &["--format", "csv"]].concat()).stdout;
    assert!(table.contains("000000003,PASS,check-passed,false,"), "{table}");
    let page = report(&pair, &period).stdout;
    assert!(page.contains("NOT VERIFIED") && page.contains("(it says PASS)"), "{page}");
}

/// Both keys of a target whose key was replaced verify their own part.
#[test]
fn a_report_across_a_new_key_verifies_with_both() {
    let pair = with_past(&three_days());
    let old = pair.path("old.pub");
    fs::copy(pair.path("pki/target-signing.pub"), &old).expect("copy");
    assert_eq!(pair.target(&["keys", "next"]).code, 0);
    pair.kill("target");
    let rotated = pair.target(&["keys", "rotate", "--why", "two years old"]);
    assert_eq!(rotated.code, 0, "{rotated:?}");
    let done = report(&pair, &["--from", "2026-10-01", "--to", "2026-10-03", "--format", "json"]);
    assert_eq!(done.code, 0, "{done:?}");
    let value = json(&done.stdout);
    assert!(value["repositories"][0]["keys"].as_array().is_some_and(|keys| keys.len() >= 2), "{value:#}");
    let keys = [old, pair.path("pki/target-signing.pub")];
    assert_verifies(&evidence(&pair, "evidence", &keys), &value);
}

/// Notes stand beside what they are about: in each form of the report, on the page of the verdict, in `verdict show` and `explain`.
#[test]
fn a_report_has_operators_notes_beside_the_exceptions() {
    let pair = with_past(&three_days());
    let note = |words: &[&str]| pair.target(&[&["note", "add", "--by", "A. Smith"], words].concat());
    // The FAIL, the PASS after it, a slot that was missed, and one that was not.
    for words in [
        ["--verdict", "000000021", "--text", "the disk was <b>replaced</b> on Thursday"],
        ["--verdict", "22", "--text", "checked on the new disk"],
        ["--slot", "2026-10-02T08:10:00Z", "--text", "the power was out"],
        ["--slot", "2026-10-01T08:10:00Z", "--text", "a restart, planned"],
        ["--slot", "2026-10-09T08:10:00Z", "--text", "after the period"],
    ] {
        let done = note(&words);
        assert!(done.code == 0 && done.stdout.starts_with("noted: "), "{words:?}: {done:?}");
    }
    let period = ["--from", "2026-10-01", "--to", "2026-10-02", "--every", "1h"];
    let done = report(&pair, &[&period[..], &["--format", "json"]].concat());
    assert_eq!(done.code, 0, "{done:?}");
    let one = &json(&done.stdout)["repositories"][0];
    assert_eq!(one["notes"].as_array().map(Vec::len), Some(4), "{:#}", one["notes"]);
    let exception = &one["exceptions"][0];
    assert_eq!(
        (&exception["id"], &exception["notes"][0]["verdict"]),
        (&"000000021".into(), &21.into()),
        "{exception}"
    );
    assert_eq!(exception["notes"][0]["by"], "A. Smith", "{exception}");
    assert_eq!(one["missed"][0]["notes"][0]["text"], "the power was out", "{}", one["missed"]);
    let verdicts = one["verdicts"].as_array().expect("a list");
    let noted: Vec<_> = verdicts
        .iter()
        .filter(|entry| entry["notes"] != serde_json::json!([]))
        .map(|entry| entry["id"].clone())
        .collect();
    assert_eq!(noted, ["000000021", "000000022"]);
    let page = report(&pair, &period).stdout;
    let exceptions = page.split("<h3>Exceptions</h3>").nth(1).and_then(|rest| rest.split("<h3>").next());
    assert!(
        exceptions.is_some_and(|part| part.contains("the disk was &lt;b&gt;replaced&lt;/b&gt; on Thursday")),
        "{page}"
    );
    let missed = page.split("<h3>Missed slots</h3>").nth(1).and_then(|rest| rest.split("<h3>").next());
    let missed = missed.expect("a part");
    assert!(missed.contains("the power was out") && missed.contains("a restart, planned"), "{missed}");
    assert!(!page.contains("after the period") && !page.contains("<b>replaced"), "{page}");
    let table = report(&pair, &[&period[..], &["--format", "csv"]].concat()).stdout;
    let (head, rows) = table.split_once('\n').expect("rows");
    assert!(head.contains(",notes,digest"), "{head}");
    let row = rows.lines().find(|row| row.starts_with("repo,000000021,")).expect("the row");
    assert!(row.contains("A. Smith, ") && row.contains("Thursday"), "{row}");
    // Whoever looks at the verdict sees it, too.
    let shown = pair.target(&["verdict", "show", "000000021"]).stdout;
    let line = "note on verdict 000000021 by A. Smith, ";
    assert!(shown.contains(line), "{shown}");
    assert!(pair.target(&["explain", "000000021"]).stdout.contains(line));
    assert!(!pair.target(&["explain", "000000020"]).stdout.contains("note on"));
    let value = json(&pair.target(&["--json", "verdict", "show", "000000021"]).stdout);
    assert_eq!(value["notes"][0]["about"], "verdict 000000021", "{value:#}");
    let site = Site::new(pair);
    let page = site.page("/repository/repo/verdict/000000021");
    assert!(
        page.contains("Notes of operators") && page.contains("the disk was &lt;b&gt;replaced&lt;/b&gt;"),
        "{page}"
    );
    assert!(!site.page("/repository/repo/verdict/000000020").contains("Notes of operators"));
}

/// A note on a generation is one on each of its verdicts.
#[test]
fn a_note_on_a_generation_is_shown_with_its_verdicts() {
    let pair = Pair::plain(1);
    fs::write(pair.root(0).join("file"), "content").expect("write");
    pair.run(0);
    assert_eq!(pair.target(&["verify"]).code, 0);
    let done =
        pair.target(&["note", "add", "--generation", "1", "--by", "B", "--text", "kept for the audit"]);
    assert_eq!(done.code, 0, "{done:?}");
    for id in ["000000001", "000000002"] {
        let shown = pair.target(&["verdict", "show", id]).stdout;
        assert!(shown.contains("note on generation 1 by B, "), "{id}: {shown}");
    }
}
