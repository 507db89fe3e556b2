//! Keys that are replaced: the ledger stays sound, every generation can be restored and checked again, and each end says what it believes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use assay_common::{
    pki::{Party, Role, issue},
    signing::{SigningKey, VerifyingKey},
};

use crate::pair::{Done, Pair, json};

/// Agents with one PASS, on hosts with folders of pinned keys of their own. "bob" may restore.
fn pair() -> Pair {
    let pair = Pair::plain(1);
    fs::create_dir(pair.path("pins")).expect("mkdir");
    for name in ["target-signing.pub", "source-signing.pub"] {
        fs::copy(pair.path("pki").join(name), pair.path("pins").join(name)).expect("copy");
    }
    let bob = Party { name: "bob".to_owned(), hosts: Vec::new() };
    let day = Duration::from_secs(24 * 3600);
    issue(&pair.path("pki"), pair.authority(), Role::Restore, &bob, day, jiff::Timestamp::now())
        .expect("issue");
    pair.kill("source");
    pair.kill("target");
    pair.configure("target", "source = \"source\"", "source = \"source\"\nrestore = [\"bob\"]");
    pair.configure("target", "pki/source-signing.pub", "pins/source-signing.pub");
    pair.configure("source", "pki/target-signing.pub", "pins/target-signing.pub");
    pair.start("target");
    pair.start("source");
    write(&pair, "one");
    pair.run(0);
    pair
}

fn write(pair: &Pair, content: &str) {
    fs::write(pair.root(0).join("file"), content).expect("write");
}

fn good(done: Done) -> String {
    assert_eq!(done.code, 0, "{done:?}");
    done.stdout
}

/// The command ends with this exit code, and all these words are in what is told.
fn told(done: &Done, code: i32, words: &[&str]) {
    let text = format!("{}{}", done.stdout, done.stderr);
    assert_eq!(done.code, code, "{done:?}");
    for word in words {
        assert!(text.contains(word), "{word:?} is missing in: {text}");
    }
}

fn key(path: &Path) -> VerifyingKey {
    VerifyingKey::load(path).expect("a key")
}

/// The file that a command names on its line `its public half: `.
fn public_half(printed: &str) -> PathBuf {
    let line = printed.lines().find_map(|line| line.trim_start().strip_prefix("its public half: "));
    PathBuf::from(line.expect("a line"))
}

/// Restores a generation on the source's host and at the target, and both have this content.
fn restores(pair: &Pair, generation: &str, content: &str) {
    for role in ["source", "target"] {
        let to = pair.path(&format!("back-{role}-{generation}"));
        let words = ["restore", "--to", to.to_str().expect("text"), "--generation", generation];
        let bob = ["--cert", "pki/restore-bob.crt", "--key", "pki/restore-bob.key"];
        let done =
            if role == "source" { pair.source(&[&bob[..], &words].concat()) } else { pair.target(&words) };
        assert_eq!(done.code, 0, "{role} {generation}: {done:?}");
        assert_eq!(fs::read_to_string(to.join("file")).expect("read"), content, "{role} {generation}");
        fs::remove_dir_all(&to).expect("remove");
    }
}

/// The target's key is replaced as the guide says it. Not one run is lost, and the old verdicts count for ever.
#[test]
fn a_new_target_key_leaves_the_ledger_sound_and_every_generation_restorable() {
    let pair = pair();
    let old = pair.path("old.pub");
    fs::copy(pair.path("pki/target-signing.pub"), &old).expect("copy");
    let announced = public_half(&good(pair.target(&["keys", "next"])));
    assert_eq!(public_half(&good(pair.target(&["keys", "next"]))), announced, "it is made once");
    let new_id = key(&announced).key_id();
    let added = good(pair.source(&["keys", "add", announced.to_str().expect("text")]));
    assert!(added.contains(&new_id) && added.contains("no restart is needed"), "{added}");
    // Nothing has changed yet.
    write(&pair, "two");
    pair.run(0);
    // An agent that runs would go on with the old key.
    told(
        &pair.target(&["keys", "rotate"]),
        4,
        &["assay-target runs", "nothing was changed", "HINT: stop it"],
    );
    pair.kill("target");
    let rotated = good(pair.target(&["keys", "rotate", "--why", "two years old"]));
    assert!(rotated.contains(&new_id) && rotated.contains("the sources are: source"), "{rotated}");
    assert_eq!(key(&pair.path("pki/target-signing.pub")).key_id(), new_id);
    assert!(SigningKey::load(&pair.path("pki/target-signing.key")).is_ok_and(|key| key.key_id() == new_id));
    pair.start("target");
    // What a control has proven is proven still.
    let status = good(pair.target(&["status"]));
    assert!(status.contains("the checker is trusted"), "{status}");
    write(&pair, "three");
    pair.run(0);
    let status = good(pair.source(&["status"]));
    assert!(status.contains("TROUBLE") && status.contains("target-key-changed"), "{status}");
    restores(&pair, "1", "one");
    restores(&pair, "3", "three");
    assert_eq!(pair.target(&["verify", "--generation", "1"]).code, 0, "it is checked again");
    restores(&pair, "1", "one");

    let old_id = key(&old).key_id();
    let sound = good(pair.target(&["ledger", "verify", "--copies", "state/repo/verdicts"]));
    for line in [
        format!("target's key {old_id}: entries 000000001 to 000000003"),
        format!("target's key {new_id}: entries 000000004 on"),
        "sound: 4 verdicts".to_owned(),
    ] {
        assert!(sound.contains(&line), "{line:?} is missing in: {sound}");
    }
    // An auditor's copy, with the keys that he has.
    let on_copy = |keys: &[&str]| {
        let keys: Vec<_> = keys.iter().flat_map(|key| ["--key", key]).collect();
        let place = ["ledger", "verify", "--folder", "store/repo/ledger", "--source-key"];
        pair.target(&[&place[..], &["pins/source-signing.pub"], &keys].concat())
    };
    fs::copy(pair.path("pki/target-signing.pub"), pair.path("new.pub")).expect("copy");
    told(&on_copy(&["old.pub", "new.pub"]), 0, &["sound: 4 verdicts"]);
    told(&on_copy(&["pki/target-signing.pub"]), 0, &["sound: 4 verdicts"]);
    told(
        &on_copy(&["old.pub"]),
        1,
        &["NOT SOUND", "takes over, and it is not among", "HINT: ask the operator"],
    );
    told(&on_copy(&["new.pub"]), 1, &["NOT SOUND", "HINT: when a host has had several keys"]);
    told(&on_copy(&["new.pub", "old.pub"]), 1, &["NOT SOUND"]);
    let one = |keys: &[&str]| {
        let keys: Vec<_> = keys.iter().flat_map(|key| ["--key", key]).collect();
        pair.source(&[&["verdict", "verify", "store/repo/ledger/000000001.json"][..], &keys].concat())
    };
    told(&one(&["old.pub", "new.pub"]), 0, &["this is a former key"]);
    told(&one(&["new.pub"]), 2, &["NOT VALID"]);
    let entry = fs::read(pair.path("store/repo/ledger/000000003.json")).expect("read");
    let published = crate::schema::schema("key-change-v1.json");
    crate::schema::assert_valid(&published, &crate::schema::payload(&entry), "a key change");
    // The entry itself is no verdict, and nothing takes it for one.
    told(&pair.target(&["verdict", "show", "000000003"]), 2, &["is a key change", "HINT: "]);
    let listed = good(pair.target(&["verdict", "list"]));
    assert!(!listed.contains("000000003"), "{listed}");
    let keys = json(&good(pair.target(&["--json", "ledger", "verify"])));
    assert_eq!(keys["keys"][0]["to"], 3, "{keys}");
    // A backup of the configuration brings the old key back: nothing is signed with it.
    assert!(good(pair.target(&["keys", "show"])).contains(&format!("{old_id}  former")));
}

/// The source's key is replaced: the target takes the new one from an operator alone, and the old one vouches for its own generations.
#[test]
fn a_new_source_key_is_pinned_by_an_operator_and_the_old_one_keeps_its_generations() {
    let pair = pair();
    fs::copy(pair.path("pki/source-signing.key"), pair.path("pki/old.key")).expect("copy");
    let public = pair.path("pki/source-signing.pub");
    let before = fs::read(&public).expect("read");
    let printed = good(pair.source(&["keys", "rotate"]));
    // As if the host had died after the private key was replaced: the command goes on with that key, and keeps the old public one.
    fs::write(&public, &before).expect("write");
    fs::remove_dir_all(pair.path("pki/source-signing.keys.d")).expect("remove");
    assert_eq!(good(pair.source(&["keys", "rotate"])), printed);
    let line = printed.lines().find_map(|line| line.strip_prefix("assay-target accept --replace-key "));
    let line = line.expect("a line").to_owned();
    // Without the word the earlier pin stays, and the hint says what to do.
    told(&pair.target(&["accept", &line]), 2, &["pins another key of source", "HINT: ", "--replace-key"]);
    pair.kill("source");
    pair.start("source");
    write(&pair, "two");
    let refused = pair.source(&["run", "--follow"]);
    told(&refused, 4, &["target-refused", "HINT: ", "accept --replace-key"]);
    told(&pair.target(&["accept", "--replace-key", &line]), 0, &["restart assay-target"]);
    pair.kill("target");
    pair.start("target");
    pair.run(0);
    restores(&pair, "1", "one");
    restores(&pair, "2", "two");
    for generation in ["1", "2"] {
        assert_eq!(pair.target(&["verify", "--generation", generation]).code, 0, "{generation}");
    }
    let sound = good(pair.target(&["ledger", "verify"]));
    assert!(sound.contains("source's key ") && sound.contains("generations up to 1"), "{sound}");
    // The entry is made once.
    pair.kill("target");
    pair.start("target");
    assert_eq!(good(pair.target(&["ledger", "verify"])).matches("source's key").count(), 2);
    // The old key is worth nothing for what comes, and is never pinned again.
    pair.restart_with("source", "pki/source-signing.key", "pki/old.key");
    write(&pair, "three");
    told(&pair.source(&["run", "--follow"]), 4, &["target-refused"]);
    told(&pair.target(&["ledger", "verify"]), 0, &["sound: "]);
}

/// The target's disk with its key is gone, and a new key was put in its place by hand: a word in the ledger makes it whole.
#[test]
fn a_lost_key_is_followed_by_one_that_says_so() {
    let pair = pair();
    fs::copy(pair.path("pki/target-signing.pub"), pair.path("old.pub")).expect("copy");
    pair.kill("target");
    fs::remove_file(pair.path("pki/target-signing.key")).expect("remove");
    fs::remove_file(pair.path("pki/target-signing.pub")).expect("remove");
    let new = SigningKey::generate();
    new.save(&pair.path("pki/target-signing.key")).expect("save");
    new.verifying_key().save(&pair.path("pki/target-signing.pub")).expect("save");
    pair.start("target");
    write(&pair, "two");
    let refused = pair.source(&["run", "--follow"]);
    told(&refused, 3, &["INCONCLUSIVE", "verdict-not-trusted", "HINT: ", "assay-source keys add FILE"]);
    told(&pair.source(&["keys", "add", "--now", "pki/target-signing.pub"]), 0, &["are refused"]);
    pair.run(0);
    let hint = "assay-target keys rotate --lost OLD.pub";
    told(&pair.target(&["ledger", "verify"]), 1, &["NOT SOUND"]);
    let with = ["ledger", "verify", "--folder", "store/repo/ledger", "--key", "old.pub"];
    let both = [&with[..], &["--key", "pki/target-signing.pub"]].concat();
    told(&pair.target(&both), 1, &["has not named it", hint]);
    pair.kill("target");
    let other = SigningKey::generate();
    other.verifying_key().save(&pair.path("other.pub")).expect("save");
    let wrong = pair.target(&["keys", "rotate", "--lost", "other.pub"]);
    told(&wrong, 4, &["has entries of key", "HINT: ", "--lost PUB"]);
    let why = ["--why", "the disk of the old host is gone"];
    good(pair.target(&[&["keys", "rotate", "--lost", "old.pub"][..], &why].concat()));
    pair.start("target");
    write(&pair, "three");
    pair.run(0);
    told(&pair.target(&["ledger", "verify"]), 0, &["sound: ", "lost, or not trusted"]);
    restores(&pair, "1", "one");
    restores(&pair, "4", "three");
}

/// The host dies between the ledger's entry and the change of the files: the agent does not start with the old key, and the command goes on.
#[test]
fn a_rotation_that_was_cut_short_goes_on() {
    let pair = pair();
    let path = |name: &str| pair.path("pki").join(name);
    let before = fs::read(path("target-signing.key")).expect("read");
    let before_public = fs::read(path("target-signing.pub")).expect("read");
    good(pair.target(&["keys", "next"]));
    pair.kill("target");
    let next = fs::read(path("target-signing.next.key")).expect("read");
    let rotated = good(pair.target(&["keys", "rotate"]));
    let private = |name: &str, bytes: &[u8]| {
        fs::write(path(name), bytes).expect("write");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(path(name), mode).expect("chmod");
    };
    // As it was after the entries: the old key signs, the new one waits.
    private("target-signing.key", &before);
    private("target-signing.next.key", &next);
    fs::write(path("target-signing.pub"), &before_public).expect("write");
    fs::remove_dir_all(path("target-signing.keys.d")).expect("remove");
    let refused = pair.refused_start("target");
    told(&refused, 4, &["the ledger goes on with key", "HINT: ", "assay-target keys rotate"]);
    assert_eq!(good(pair.target(&["keys", "rotate"])), rotated);
    assert_eq!(fs::read_dir(pair.path("store/repo/ledger")).expect("list").count(), 2, "no second entry");
    // And after the private key was replaced, before the public ones were.
    fs::write(path("target-signing.pub"), &before_public).expect("write");
    fs::remove_dir_all(path("target-signing.keys.d")).expect("remove");
    assert_eq!(good(pair.target(&["keys", "rotate"])), rotated);
    pair.start("target");
    good(pair.source(&["keys", "add", "pki/target-signing.pub"]));
    write(&pair, "two");
    pair.run(0);
    told(&pair.target(&["ledger", "verify"]), 0, &["sound: 2 verdicts"]);
}

/// Is removed with what is in it.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

fn hang_up(pair: &Pair, role: &str) {
    let id = rustix::process::Pid::from_raw(pair.process(role).try_into().expect("a process id"));
    rustix::process::kill_process(id.expect("not 0"), rustix::process::Signal::HUP).expect("it runs");
}

fn issuer(pem: &str) -> String {
    let mut openssl = Command::new("openssl")
        .args(["x509", "-noout", "-issuer"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("openssl");
    std::io::Write::write_all(openssl.stdin.as_mut().expect("stdin"), pem.as_bytes()).expect("write");
    let done = openssl.wait_with_output().expect("openssl");
    String::from_utf8(done.stdout).expect("text")
}

/// A new CA beside the old one, every certificate renewed, the old one dropped: not one call is refused on the way, and the signing keys stay.
#[test]
fn a_new_authority_takes_over_without_a_gap() {
    let pair = pair();
    let old = fs::read_to_string(pair.path("pki/ca.crt")).expect("read");
    let signing = fs::read(pair.path("pki/target-signing.key")).expect("read");
    let printed = good(pair.target(&["pki", "new-ca", "pki"]));
    let ca = printed.lines().find_map(|line| line.strip_prefix("made a new CA in ")).expect("a line");
    let ca = PathBuf::from(ca.split(';').next().expect("a folder"));
    let _gone = Removed(ca.clone());
    assert!(ca.starts_with("/var/lib/assay-ca"), "{printed}");
    let new = fs::read_to_string(ca.join("ca.crt")).expect("read");
    assert_eq!(fs::read_to_string(pair.path("pki/ca.crt")).expect("read"), format!("{new}{old}"));
    // Agents that run take the file; half of the certificates are of the one, half of the other.
    let mut reloads = 0;
    let mut reloaded = || {
        reloads += 1;
        for role in ["source", "target"] {
            hang_up(&pair, role);
            pair.eventually("the files are read again", || {
                let log = fs::read_to_string(pair.path(&format!("{role}.log"))).expect("log");
                log.matches("the certificate was reloaded").count() >= reloads
            });
        }
        pair.run(0);
    };
    reloaded();
    good(pair.target(&["pki", "renew", "pki", "pki/target.crt"]));
    good(pair.target(&["pki", "renew", "pki", "pki/source.crt"]));
    reloaded();
    good(pair.target(&["pki", "renew", "pki"]));
    for name in ["source", "target", "operator"] {
        let certificate = fs::read_to_string(pair.path(&format!("pki/{name}.crt"))).expect("read");
        assert_eq!(issuer(&certificate), issuer(&new), "{name}: the new CA signs itself");
    }
    reloaded();
    // An invitation is of the new one, and brings both.
    good(pair.target(&["invite", "db2", "--url", "https://127.0.0.1:7402", "--out", "invitation.json"]));
    let invitation = json(&fs::read_to_string(pair.path("invitation.json")).expect("read"));
    assert_eq!(issuer(invitation["cert"].as_str().expect("PEM")), issuer(&new));
    assert!(invitation["ca"].as_str().expect("PEM").starts_with(&new));
    // The old one is dropped.
    fs::copy(ca.join("ca.crt"), pair.path("pki/ca.crt")).expect("copy");
    for role in ["target", "source"] {
        pair.kill(role);
        pair.start(role);
    }
    pair.run(0);
    told(&pair.target(&["ledger", "verify"]), 0, &["sound: "]);
    assert_eq!(fs::read(pair.path("pki/target-signing.key")).expect("read"), signing);
}

/// `pki init --without-signing-keys` makes certificates for hosts whose agents go on with the keys that they have.
#[test]
fn certificates_are_made_without_signing_keys() {
    let pair = pair();
    let ca = pair.authority().join("other");
    let ca = ca.to_str().expect("text");
    let hosts = ["--source-host", "127.0.0.1", "--target-host", "127.0.0.1", "--ca-folder", ca];
    let printed =
        good(pair.target(&[&["pki", "init", "fresh", "--without-signing-keys"][..], &hosts].concat()));
    assert!(!printed.contains("signing"), "{printed}");
    let names = fs::read_dir(pair.path("fresh")).expect("list").flatten();
    let signing = names.filter(|entry| entry.file_name().to_string_lossy().contains("signing"));
    assert_eq!(signing.count(), 0);
}
