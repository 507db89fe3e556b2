//! What goes wrong is told clearly, with the thing and the remedy, and the last verified generation stays as it was.

use std::{fs, time::Duration};

use assay_common::{
    ledger::Ledger,
    pki::{Party, Role, issue},
    signing::{SigningKey, VerifyingKey},
};
use jiff::ToSpan as _;

use crate::pair::{Done, Pair, plain_vars};

/// Agents that have one verified generation.
fn proven() -> Pair {
    let pair = Pair::plain(1);
    for file in 0..10 {
        fs::write(pair.root(0).join(format!("file{file}")), "good").expect("write");
    }
    pair.run(0);
    pair
}

/// After a fault: the one generation is there, verified, and has its content.
fn assert_untouched(pair: &Pair) {
    let verified = fs::read_link(pair.path("store/repo/verified")).expect("a link");
    assert_eq!(verified.to_str(), Some("generations/000001"));
    assert_eq!(fs::read(pair.path("store/repo/verified/tree/file0")).expect("read"), b"good");
}

/// The run ends with this exit code, and all these words are in what is told.
fn assert_told(pair: &Pair, code: i32, words: &[&str]) {
    assert_words(&pair.source(&["run", "--follow"]), code, words);
    assert_untouched(pair);
}

fn assert_words(done: &Done, code: i32, words: &[&str]) {
    let told = format!("{}{}", done.stdout, done.stderr);
    assert_eq!(done.code, code, "{told}");
    for word in words.iter().chain(&["HINT:"]) {
        assert!(told.contains(word), "{word:?} is missing in: {told}");
    }
}

#[test]
fn a_verdict_that_another_key_signed_is_not_believed() {
    let pair = proven();
    let stranger = SigningKey::generate();
    stranger.verifying_key().save(&pair.path("pki/stranger.pub")).expect("save");
    pair.restart_with("source", "pki/target-signing.pub", "pki/stranger.pub");
    let told = pair.source(&["run", "--follow"]);
    assert_words(&told, 3, &["INCONCLUSIVE", "verdict-not-trusted", "target.signing_key"]);
}

#[test]
fn a_source_with_another_signing_key_seals_nothing() {
    let pair = proven();
    SigningKey::generate().save(&pair.path("pki/stranger.key")).expect("save");
    pair.restart_with("source", "pki/source-signing.key", "pki/stranger.key");
    fs::write(pair.root(0).join("new"), "x").expect("write");
    assert_told(&pair, 4, &["NOT_RUN", "statement", "repository.source_key"]);
    assert!(!pair.path("store/repo/generations/000002").exists());
    // It is in the ledger, which is whole.
    let ledger = Ledger::open(&pair.path("store/repo/ledger")).expect("ledger");
    assert_eq!(ledger.entries().expect("entries").len(), 2);
    let target_key = VerifyingKey::load(&pair.path("pki/target-signing.pub")).expect("key");
    assert!(ledger.verify(&target_key, None).expect("readable").is_empty());
}

#[test]
fn certificates_of_another_role_expired_or_missing_are_refused() {
    let pair = proven();
    // The agents themselves.
    for (role, from, to) in [
        (
            "source",
            "pki/source.crt\"\nkey = \"pki/source.key",
            "pki/operator.crt\"\nkey = \"pki/operator.key",
        ),
        ("target", "pki/target.crt\"\nkey = \"pki/target.key", "pki/source.crt\"\nkey = \"pki/source.key"),
    ] {
        pair.configure(role, from, to);
        let checked = if role == "source" {
            pair.source(&["config", "check"])
        } else {
            pair.target(&["config", "check"])
        };
        assert_eq!(checked.code, 2, "{checked:?}");
        assert!(checked.stderr.contains("role"), "{checked:?}");
        pair.configure(role, to, from);
    }
    // An operator's command line with a certificate that has expired, is of another role, or is not there.
    let day = Duration::from_secs(24 * 3600);
    let past = jiff::Timestamp::now() - 720.hours();
    let party = Party { name: "late".to_owned(), hosts: Vec::new() };
    issue(&pair.path("pki"), pair.authority(), Role::Operator, &party, day, past).expect("issue");
    for (name, word) in [("operator-late", "expired"), ("source", "role"), ("nobody", "nobody.crt")] {
        let (cert, key) = (format!("pki/{name}.crt"), format!("pki/{name}.key"));
        let done = pair.source(&["status", "--cert", &cert, "--key", &key]);
        assert_eq!(done.code, 4, "{done:?}");
        assert!(done.stderr.contains(word), "{word}: {done:?}");
    }
    assert_untouched(&pair);
}

/// Keys that others can read are refused.
#[test]
fn a_private_key_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let pair = proven();
    fs::set_permissions(pair.path("pki/operator.key"), fs::Permissions::from_mode(0o644)).expect("chmod");
    let done = pair.source(&["status"]);
    assert_words(&done, 4, &["operator.key", "chmod 600"]);
}

#[test]
fn a_target_that_is_away_is_named() {
    let pair = proven();
    let url = fs::read_to_string(pair.path("source.toml")).expect("read");
    let url = url.split('"').find(|part| part.starts_with("https://")).expect("a url").to_owned();
    pair.restart_with("source", &url, "https://127.0.0.1:1");
    assert_told(&pair, 4, &["NOT_RUN", "target-unreachable", "127.0.0.1:1"]);
}

#[test]
fn roots_that_are_missing_empty_or_mostly_gone_stop_the_run() {
    let pair = proven();
    let (root, away) = (pair.root(0), pair.path("away"));
    fs::rename(&root, &away).expect("rename");
    assert_told(&pair, 4, &["NOT_RUN", "root-missing", "root0"]);
    fs::create_dir(&root).expect("mkdir");
    assert_told(&pair, 4, &["NOT_RUN", "root-empty", "mounted"]);
    fs::write(root.join("stranger"), "x").expect("write");
    assert_told(&pair, 4, &["NOT_RUN", "root-changed", "--allow-new-root"]);
    fs::remove_dir_all(&root).expect("remove");
    fs::rename(&away, &root).expect("rename");
    pair.restart_with("source", "max_drop_percent = 100", "max_drop_percent = 50");
    for file in 0..9 {
        fs::remove_file(root.join(format!("file{file}"))).expect("remove");
    }
    fs::write(root.join("file0"), "good").expect("write");
    assert_told(&pair, 4, &["NOT_RUN", "mass-drop", "--allow-mass-drop"]);
    // The override is explicit, for one run, and stands in the verdict.
    let allowed = pair.source(&["run", "--follow", "--allow-mass-drop"]);
    assert_eq!(allowed.code, 0, "{allowed:?}");
    let verdict = pair.target(&["verdict", "show"]);
    assert!(verdict.stdout.contains("overridden safety stops: allow_mass_drop"), "{verdict:?}");
}

#[test]
fn a_mark_that_fails_copies_nothing() {
    let pair = proven();
    fs::write(
        pair.path("failing.toml"),
        "name = \"failing\"\ndescription = \"x\"\nversion = \"1\"\ndepth = \"L0\"\n[mark]\nkind = \"command\"\n\
         begin = [\"sh\", \"-c\", \"echo no server answers >&2; exit 7\"]\n\
         [[check]]\nname = \"list\"\nargv = [\"ls\", \"{root}\"]\nfail_exit = [1, 2]\n",
    )
    .expect("write");
    pair.kill("source");
    pair.configure("source", &format!("{}\n", plain_vars()), "");
    pair.restart_with("source", "\"generic\"", "\"failing.toml\"");
    assert_told(&pair, 4, &["NOT_RUN", "mark-failed", "no server answers"]);
}

#[test]
fn faults_of_configurations_and_profiles_name_file_line_and_key() {
    let pair = proven();
    pair.configure("source", "max_drop_percent = 100", "max_drop_percnt = 100");
    let done = pair.source(&["config", "check"]);
    assert_eq!(done.code, 2, "{done:?}");
    assert!(done.stderr.contains("source.toml:") && done.stderr.contains("max_drop_percnt"), "{done:?}");
    pair.configure("source", "max_drop_percnt = 100", "max_drop_percent = 100");
    fs::write(
        pair.path("bad.toml"),
        "name = \"bad\"\ndescription = \"x\"\nversion = \"1\"\ndepth = \"L0\"\nsurprise = 1\n",
    )
    .expect("write");
    pair.configure("target", "\"generic\"", "\"./bad.toml\"");
    let done = pair.target(&["config", "check"]);
    assert_eq!(done.code, 2, "{done:?}");
    assert!(done.stderr.contains("bad.toml:5") && done.stderr.contains("surprise"), "{done:?}");
    assert_untouched(&pair);
}
