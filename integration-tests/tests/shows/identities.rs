//! Who may ask for what, tried over the wire with the operator's own tool, and agents that are not who they should be.

use std::{fs, time::Duration};

use assay_common::{
    pki::{Party, PkiOptions, Role, init_pki, issue},
    verdict::Outcome,
};
use jiff::ToSpan as _;

use crate::pair::{Pair, json};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn party(name: &str) -> Party {
    Party { name: name.to_owned(), hosts: vec!["127.0.0.1".to_owned()] }
}

/// Agents that have one verified generation.
fn proven() -> Pair {
    let pair = Pair::plain(1);
    fs::write(pair.root(0).join("file"), "good").expect("write");
    pair.run(0);
    pair
}

/// Another CA, with certificates of the same roles and names, in the folder `foreign`.
fn foreign_pki(pair: &Pair) {
    let options = PkiOptions {
        organisation: "Stranger".to_owned(),
        source: party("source"),
        target: party("target"),
        operator: Party { name: "operator".to_owned(), hosts: Vec::new() },
        validity: DAY,
        ca_validity: DAY,
        signing_keys: true,
    };
    init_pki(
        &pair.path("foreign"),
        Some(&pair.authority().join("foreign")),
        &options,
        jiff::Timestamp::now(),
    )
    .expect("pki");
}

/// Only the one generation is there, it is verified, and the ledger has its verdict alone.
fn assert_nothing_happened(pair: &Pair) {
    assert_eq!(pair.verified(), "generations/000001");
    assert_eq!(fs::read_dir(pair.path("store/repo/generations")).expect("read").count(), 1);
    pair.assert_ledger(&[Outcome::Pass]);
}

/// Each call needs its role; a certificate of the wrong role gets a refusal that names both.
#[test]
fn calls_need_the_role_that_they_are_for() {
    let pair = proven();
    let open = r#"{"repository": "repo", "runId": "20261122T224501Z-7f3a9c", "protocol": 1}"#;
    let abandon = r#"{"repository": "repo", "runId": "20261122T224501Z-7f3a9c", "reason": "x"}"#;
    for (identity, target, message, method) in [
        ("pki/source", false, "{}", "assay.v1.SourceService/StartRun"),
        ("pki/source", false, "{}", "assay.v1.SourceService/GetStatus"),
        ("pki/target", false, r#"{"runId": "x"}"#, "assay.v1.SourceService/CancelRun"),
        ("pki/source", true, "{}", "assay.v1.TargetService/ListGenerations"),
        ("pki/source", true, "{}", "assay.v1.TargetService/VerifyGeneration"),
        ("pki/target", true, "{}", "assay.v1.TargetService/GetVerdict"),
        ("pki/operator", true, open, "assay.v1.ReplicationService/OpenRun"),
        ("pki/operator", true, abandon, "assay.v1.ReplicationService/AbandonRun"),
        ("pki/operator", true, r#"{"start": {}}"#, "assay.v1.ReplicationService/SealRun"),
        ("pki/operator", true, r#"{"start": {}}"#, "assay.v1.ReplicationService/Transfer"),
        ("pki/target", true, r#"{"runId": "x"}"#, "assay.v1.ReplicationService/CheckRun"),
    ] {
        let done = pair.grpcurl_as(identity, target, &["-d", message], &[method]);
        assert_ne!(done.code, 0, "{identity} {method}: {done:?}");
        for word in ["PermissionDenied", "needs the role", "role-not-allowed"] {
            assert!(done.stderr.contains(word), "{word:?} is missing for {identity} {method}: {done:?}");
        }
    }
    assert_nothing_happened(&pair);
}

/// Without a certificate, or with one that the CA did not issue or that has expired, nobody gets as far as a call.
#[test]
fn strangers_get_no_answer_at_all() {
    let pair = proven();
    foreign_pki(&pair);
    let past = jiff::Timestamp::now() - 720.hours();
    let late = Party { name: "late".to_owned(), hosts: Vec::new() };
    issue(&pair.path("pki"), pair.authority(), Role::Operator, &late, DAY, past).expect("issue");
    for identity in ["", "foreign/operator", "pki/operator-late"] {
        for target in [false, true] {
            let done = pair.grpcurl_as(identity, target, &["-connect-timeout", "3"], &["list"]);
            assert_ne!(done.code, 0, "{identity:?}: {done:?}");
            assert!(!done.stdout.contains("assay"), "{identity:?}: {done:?}");
        }
    }
    // Nor without TLS.
    let plain = pair.grpcurl_as("", false, &["-plaintext", "-connect-timeout", "5"], &["list"]);
    assert_ne!(plain.code, 0, "{plain:?}");
    assert_nothing_happened(&pair);
    // After all that the agents serve as before.
    pair.run(0);
    assert_eq!(pair.verified(), "generations/000002");
}

/// A source that the CA knows, with the right role, but whose repository it is not.
#[test]
fn a_repository_belongs_to_the_source_that_the_target_names() {
    let pair = proven();
    issue(&pair.path("pki"), pair.authority(), Role::Source, &party("other"), DAY, jiff::Timestamp::now())
        .expect("issue");
    pair.kill("source");
    pair.configure("source", "name = \"source\"", "name = \"other\"");
    pair.restart_with("source", "pki/source.", "pki/source-other.");
    let done = pair.source(&["run", "--follow"]);
    assert_eq!(done.code, 4, "{done:?}");
    for word in ["NOT_RUN", "target-refused", "\"other\"", "repository.source", "HINT:"] {
        assert!(done.stdout.contains(word), "{word:?} is missing in {done:?}");
    }
    assert_nothing_happened(&pair);
}

/// An agent whose certificate has expired says so, and which, and does not serve.
#[test]
fn an_agent_does_not_start_with_an_expired_certificate() {
    let pair = proven();
    let past = jiff::Timestamp::now() - 720.hours();
    for (role, name) in [(Role::Source, "source"), (Role::Target, "target")] {
        let file = format!("pki/{name}-late");
        issue(&pair.path("pki"), pair.authority(), role, &party("late"), DAY, past).expect("issue");
        pair.configure(name, &format!("name = \"{name}\"\nlisten"), "name = \"late\"\nlisten");
        pair.configure(name, &format!("pki/{name}.crt"), &format!("{file}.crt"));
        pair.configure(name, &format!("pki/{name}.key"), &format!("{file}.key"));
        let done = pair.refused_start(name);
        assert_eq!(done.code, 4, "{done:?}");
        assert!(done.stderr.contains(&format!("{file}.crt expired on")), "{done:?}");
        assert!(done.stderr.contains("HINT:"), "{done:?}");
    }
    assert_nothing_happened(&pair);
}

/// A target that another CA vouches for is not talked to: not a byte of the repository reaches it.
#[test]
fn a_target_of_another_ca_gets_nothing() {
    let pair = proven();
    foreign_pki(&pair);
    pair.restart_with("target", "\"pki/", "\"foreign/");
    fs::write(pair.root(0).join("secret"), "never sent").expect("write");
    let done = pair.source(&["--json", "run", "--follow"]);
    assert_eq!(done.code, 4, "{done:?}");
    let run = json(done.stdout.lines().last().expect("a line"));
    assert_eq!(run["outcome"], "OUTCOME_NOT_RUN", "{run}");
    let message = run["message"].as_str().expect("text");
    assert!(message.contains("certificate") && message.contains("HINT:"), "{message}");
    assert_eq!(pair.verified(), "generations/000001");
    // With the right one again, all is well.
    pair.restart_with("target", "\"foreign/", "\"pki/");
    pair.run(0);
    assert_eq!(pair.verified(), "generations/000002");
    pair.assert_ledger(&[Outcome::Pass, Outcome::Pass]);
}

/// Nobody changes a word of a verdict, wherever in it the word is.
#[test]
fn a_verdict_with_any_byte_changed_does_not_verify() {
    let pair = proven();
    let verdict = fs::read(pair.path("store/repo/ledger/000000001.json")).expect("read");
    let forged = pair.path("forged.json");
    let verify = |bytes: &[u8], key: &str| {
        fs::write(&forged, bytes).expect("write");
        let source_key = pair.path("pki/source-signing.pub");
        let (file, key) = (forged.to_str().expect("utf-8"), pair.path(key));
        let keys =
            ["--key", key.to_str().expect("utf-8"), "--source-key", source_key.to_str().expect("utf-8")];
        pair.target(&[&["verdict", "verify", file][..], &keys].concat())
    };
    pair.kill("target");
    pair.kill("source");
    let good = verify(&verdict, "pki/target-signing.pub");
    assert_eq!(good.code, 0, "{good:?}");
    // Letters and digits only: white space between the envelope's members is covered by the chain, not by the signature.
    let places: Vec<_> = (0..verdict.len()).filter(|place| verdict[*place].is_ascii_alphanumeric()).collect();
    for place in places.iter().step_by(places.len() / 40) {
        let mut bytes = verdict.clone();
        bytes[*place] = if bytes[*place] == b'A' { b'B' } else { b'A' };
        let refused = verify(&bytes, "pki/target-signing.pub");
        assert_eq!(refused.code, 2, "byte {place}: {refused:?}");
        assert!(refused.stderr.contains("NOT VALID") && refused.stderr.contains("HINT:"), "{refused:?}");
        assert!(!refused.stdout.contains("PASS"), "{refused:?}");
    }
    // The source's key is no stand-in for the target's.
    let refused = verify(&verdict, "pki/source-signing.pub");
    assert_eq!(refused.code, 2, "{refused:?}");
}
