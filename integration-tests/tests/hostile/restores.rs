//! A target that was taken over, and a host that restores from it as root: nothing comes back that the source has not signed, unless the
//! operator says so.

use std::{fs, path::Path, time::Duration};

use assay_common::{
    dsse::{Envelope, IN_TOTO_PAYLOAD_TYPE},
    pki::{Party, Role, issue},
    signing::SigningKey,
};
use integration_tests::evil::target::{EvilTarget, Lie};

use crate::{
    ground::target_url,
    pair::{Done, Pair, json},
};

/// Agents with one PASS, whose target lets "bob" restore.
pub(crate) fn pair() -> Pair {
    let pair = Pair::plain(1);
    pair.restart_with("target", "source = \"source\"", "source = \"source\"\nrestore = [\"bob\"]");
    let bob = Party { name: "bob".to_owned(), hosts: Vec::new() };
    let day = Duration::from_secs(24 * 3600);
    issue(&pair.path("pki"), pair.authority(), Role::Restore, &bob, day, jiff::Timestamp::now())
        .expect("issue");
    fs::write(pair.root(0).join("file"), "good").expect("write");
    pair.run(0);
    pair
}

pub(crate) const BOB: [&str; 6] =
    ["--json", "--cert", "pki/restore-bob.crt", "--key", "pki/restore-bob.key", "restore"];

pub(crate) fn restore(pair: &Pair, to: &Path, further: &[&str]) -> Done {
    pair.source(&[&BOB[..], &["--to", to.to_str().expect("text")], further].concat())
}

/// Nothing was written, and the exit code says so.
fn assert_refused(done: &Done, to: &Path, words: &str) {
    assert_eq!(done.code, 4, "{done:?}");
    assert!(
        done.stderr.contains(words) && done.stderr.contains("HINT: "),
        "{words:?} is missing in {done:?}"
    );
    assert!(!to.exists(), "{to:?} was made");
}

/// Whoever has the target's host, certificate and key makes a tree, a statement of a source of his own, and a PASS.
#[test]
fn a_target_alone_cannot_have_a_tree_of_its_own_restored() {
    let pair = pair();
    let honest = ["source", "target"]
        .map(|role| fs::read_to_string(pair.path(&format!("{role}.toml"))).expect("read"));
    for role in ["source", "target"] {
        pair.kill(role);
    }
    let evil = SigningKey::generate();
    evil.save(&pair.path("evil.key")).expect("save");
    evil.verifying_key().save(&pair.path("evil.pub")).expect("save");
    pair.configure("source", "pki/source-signing.key", "evil.key");
    pair.configure("source", "state = \"state\"", "state = \"evil-state\"");
    pair.configure("target", "pki/source-signing.pub", "evil.pub");
    pair.configure("target", "store = \"store\"", "store = \"evil-store\"");
    for role in ["target", "source"] {
        pair.start(role);
    }
    fs::write(pair.root(0).join("backdoor"), "* * * * * root sh").expect("write");
    pair.run(0);
    pair.kill("source");
    fs::remove_file(pair.root(0).join("backdoor")).expect("remove");
    // The victim's host is as it was.
    fs::write(pair.path("source.toml"), &honest[0]).expect("write");

    let to = pair.path("back");
    let words = "the source has not signed this tree";
    assert_refused(&restore(&pair, &to, &[]), &to, words);
    assert_refused(&restore(&pair, &to, &["--generation", "1"]), &to, words);
    assert_refused(&restore(&pair, &to, &["--path", "backdoor"]), &to, words);
    assert_refused(&restore(&pair, &to, &["--source-key", "pki/source-signing.pub"]), &to, words);
    let existing = pair.path("existing");
    fs::create_dir(&existing).expect("mkdir");
    fs::write(existing.join("file"), "mine").expect("write");
    let onto = restore(&pair, &existing, &["--onto-existing", "--delete"]);
    assert_eq!(onto.code, 4, "{onto:?}");
    assert_eq!(fs::read_to_string(existing.join("file")).expect("read"), "mine");
    assert_eq!(fs::read_dir(&existing).expect("list").count(), 1);

    // An operator may take it all the same; it is said, and kept.
    let taken = restore(&pair, &to, &["--unverified"]);
    assert_eq!(taken.code, 0, "{taken:?}");
    let result = json(taken.stdout.lines().last().expect("a line"));
    assert_eq!(result["verified"], false, "{result}");
    assert!(result["unverified"].as_str().is_some_and(|why| why.contains(words)), "{result}");
    let record = fs::read_to_string(pair.path("evil-store/repo/restores.jsonl")).expect("a record");
    assert!(record.contains(words), "{record}");
    let status = pair.target(&["status"]);
    assert!(status.stdout.contains("UNVERIFIED"), "{status:?}");

    // The operator on the target's host goes by the key that is configured there.
    fs::write(pair.path("target.toml"), honest[1].replace("store = \"store\"", "store = \"evil-store\""))
        .expect("write");
    let local = pair.path("local");
    assert_refused(&pair.target(&["restore", "--to", local.to_str().expect("text")]), &local, words);
}

/// On a host that has no configuration, the source's key is demanded before the target is asked.
#[test]
fn a_host_without_configuration_needs_both_keys() {
    let pair = pair();
    let url = target_url(&pair);
    let to = pair.path("back");
    let line = |further: &[&str]| {
        let mut words =
            vec!["--json", "--server", &url, "--ca", "pki/ca.crt", "--cert", "pki/restore-bob.crt"];
        words.extend(["--key", "pki/restore-bob.key", "--config", "none.toml", "restore", "repo"]);
        words.extend(["--target-key", "pki/target-signing.pub", "--to", to.to_str().expect("text")]);
        words.extend(further);
        pair.source_without_configuration(&words)
    };
    let refused = line(&[]);
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.stderr.contains("--source-key") && refused.stderr.contains("HINT: "), "{refused:?}");
    assert!(!to.exists());
    // Not the source's: the target's own.
    assert_refused(
        &line(&["--source-key", "pki/target-signing.pub"]),
        &to,
        "the source has not signed this tree",
    );
    let unverified = line(&["--unverified"]);
    assert_eq!(unverified.code, 0, "{unverified:?}");
    let result = json(unverified.stdout.lines().last().expect("a line"));
    assert!(result["unverified"].as_str().is_some_and(|why| why.contains("was not checked")), "{result}");
    fs::remove_dir_all(&to).expect("remove");
    let done = line(&["--source-key", "pki/source-signing.pub"]);
    assert_eq!(done.code, 0, "{done:?}");
    let result = json(done.stdout.lines().last().expect("a line"));
    assert_eq!(
        (&result["verified"], &result["unverified"]),
        (&true.into(), &serde_json::Value::Null),
        "{result}"
    );
    assert_eq!(fs::read_to_string(to.join("file")).expect("read"), "good");
}

/// One part of an honest answer is changed and signed with the target's own key.
#[test]
fn no_part_of_a_verdict_can_be_changed_for_a_restore() {
    let pair = pair();
    fs::write(pair.root(0).join("file"), "good, and newer").expect("write");
    pair.run(0);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let evil = runtime.block_on(EvilTarget::start(&pair.path("pki"), &target_url(&pair)));
    let url = evil.url();
    let earlier = fs::read(pair.path("store/repo/ledger/000000001.json")).expect("a verdict");
    let payload = |envelope: &[u8]| -> serde_json::Value {
        let envelope = Envelope::parse(envelope).expect("an envelope");
        serde_json::from_slice(&envelope.unverified_payload(IN_TOTO_PAYLOAD_TYPE).expect("a payload"))
            .expect("JSON")
    };
    let old = payload(&earlier);
    let lie = |change: Box<dyn Fn(&mut serde_json::Value) + Send + Sync>| {
        let key = SigningKey::load(&pair.path("pki/target-signing.key")).expect("key");
        Lie::Restore(Box::new(move |mut opened| {
            let mut statement = payload(&opened.verdict);
            change(&mut statement);
            let bytes = serde_json::to_vec(&statement).expect("JSON");
            opened.verdict = Envelope::sign(IN_TOTO_PAYLOAD_TYPE, &bytes, &key).to_json().into();
            Ok(opened)
        }))
    };
    let target_alone = {
        let key = SigningKey::load(&pair.path("pki/target-signing.key")).expect("key");
        move |statement: &mut serde_json::Value| {
            let inner = serde_json::to_vec(&statement["predicate"]["sourceStatement"]).expect("JSON");
            let inner =
                Envelope::parse(&inner).expect("an envelope").unverified_payload(IN_TOTO_PAYLOAD_TYPE);
            let signed = Envelope::sign(IN_TOTO_PAYLOAD_TYPE, &inner.expect("a payload"), &key).to_json();
            statement["predicate"]["sourceStatement"] = serde_json::from_str(&signed).expect("JSON");
        }
    };
    let to = pair.path("back");
    let old_statement = old["predicate"]["sourceStatement"].clone();
    let lies: Vec<(&str, Lie)> = vec![
        ("a statement that the target has signed", lie(Box::new(target_alone))),
        (
            "the statement about an earlier tree",
            lie(Box::new(move |it| it["predicate"]["sourceStatement"] = old_statement.clone())),
        ),
        ("no statement", lie(Box::new(|it| it["predicate"]["sourceStatement"] = serde_json::Value::Null))),
        ("another mark", lie(Box::new(|it| it["predicate"]["mark"]["time"] = "2031-01-01T00:00:00Z".into()))),
        (
            "an earlier verdict",
            Lie::Restore(Box::new(move |mut opened| {
                opened.verdict = earlier.clone();
                Ok(opened)
            })),
        ),
        (
            "another root",
            Lie::Restore(Box::new(|mut opened| {
                opened.root_digest = vec![7; 32];
                Ok(opened)
            })),
        ),
    ];
    for (name, lie) in lies {
        evil.tell(lie);
        let done = restore_from(&pair, &url, &to);
        assert_eq!(done.code, 4, "{name}: {done:?}");
        assert!(done.stderr.contains("HINT: ") && !to.exists(), "{name}: {done:?}");
    }
    evil.tell(Lie::None);
    let done = restore_from(&pair, &url, &to);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(fs::read_to_string(to.join("file")).expect("read"), "good, and newer");
}

pub(crate) fn restore_from(pair: &Pair, url: &str, to: &Path) -> Done {
    pair.source(&[&["--server", url], &BOB[..], &["--to", to.to_str().expect("text")]].concat())
}

/// A target that was taken over presents what was really signed, and not what was asked for: an older generation as the newest, and the tree of
/// another repository of the same source.
#[test]
fn a_generation_cannot_be_exchanged_for_another() {
    let pair = pair();
    fs::write(pair.root(0).join("file"), "good, and newer").expect("write");
    pair.run(0);
    let to = pair.path("back");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let evil = runtime.block_on(EvilTarget::start(&pair.path("pki"), &target_url(&pair)));
    // Everything of the first generation, as the newest: its root, its verdict, and its content when that is asked for.
    let (first, earlier) = (
        fs::read_to_string(pair.path("store/repo/generations/000001/record.json")).expect("a record"),
        fs::read(pair.path("store/repo/ledger/000000001.json")).expect("a verdict"),
    );
    let root = json(&first)["root_digest"].as_str().expect("a digest").to_owned();
    let root = assay_common::digest::RootDigest::from_hex(&root).expect("a digest").0.to_vec();
    evil.tell(Lie::Restore(Box::new(move |mut opened| {
        (opened.generation, opened.root_digest) = (1, root.clone());
        opened.verdict = earlier.clone();
        Ok(opened)
    })));
    let done = restore_from(&pair, &evil.url(), &to);
    assert_eq!(done.code, 4, "{done:?}");
    for words in ["generation 1 as the newest", "signed PASS of generation 2", "HINT: "] {
        assert!(done.stderr.contains(words), "{words:?} is missing in {done:?}");
    }
    assert!(!to.exists());
    // Whoever asks for it by its number gets it.
    let asked = ["--server", &evil.url(), "--generation", "1"].map(str::to_owned);
    let line: Vec<&str> = asked[..2].iter().map(String::as_str).chain(BOB).collect();
    let line = [&line[..], &["--to", to.to_str().expect("text"), &asked[2], &asked[3]]].concat();
    let done = pair.source(&line);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(fs::read_to_string(to.join("file")).expect("read"), "good");
    fs::remove_dir_all(&to).expect("remove");

    // The same source and target, another repository, another tree: its verdict is signed by both, and is not about this one.
    for (role, keys) in [
        ("source", format!("[[repository.root]]\nname = \"root0\"\npath = {:?}\n", pair.path("other"))),
        (
            "target",
            "source = \"source\"\nsource_key = \"pki/source-signing.pub\"\nrestore = [\"bob\"]\n".to_owned(),
        ),
    ] {
        let path = pair.path(&format!("{role}.toml"));
        let text = fs::read_to_string(&path).expect("read");
        let own = format!(
            "\n[[repository]]\nname = \"other\"\nprofile = \"generic\"\n{}\n{keys}",
            crate::pair::plain_vars()
        );
        fs::write(&path, text + &own).expect("write");
    }
    fs::create_dir(pair.path("other")).expect("mkdir");
    fs::write(pair.path("other/backdoor"), "of another repository").expect("write");
    for role in ["target", "source"] {
        pair.restart_with(role, "[tls]", "[tls]");
    }
    let done = pair.source(&["--json", "run", "other", "--follow"]);
    assert_eq!(done.code, 0, "{done:?}\n{}", pair.logs());
    let record =
        fs::read_to_string(pair.path("store/other/generations/000001/record.json")).expect("a record");
    let root = json(&record)["root_digest"].as_str().expect("a digest").to_owned();
    let root = assay_common::digest::RootDigest::from_hex(&root).expect("a digest").0.to_vec();
    let verdict = fs::read(pair.path("store/other/ledger/000000001.json")).expect("a verdict");
    let evil = runtime.block_on(EvilTarget::start(&pair.path("pki"), &target_url(&pair)));
    evil.tell(Lie::Restore(Box::new(move |mut opened| {
        (opened.generation, opened.root_digest) = (1, root.clone());
        opened.verdict = verdict.clone();
        Ok(opened)
    })));
    let url = evil.url();
    let head = ["--server", &url];
    let tail = ["repo", "--generation", "1", "--to", to.to_str().expect("text")];
    let done = pair.source(&[&head[..], &BOB[..], &tail[..]].concat());
    assert_eq!(done.code, 4, "{done:?}");
    assert!(done.stderr.contains("it is about another generation") && !to.exists(), "{done:?}");
}
