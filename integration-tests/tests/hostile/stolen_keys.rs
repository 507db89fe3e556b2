//! Somebody has a key that was replaced, and the ledger, the target's disk, or its place in the network. It names nobody, signs nothing that
//! counts, and is not pinned again.

use std::fs;

use assay_common::{
    dsse::{Envelope, IN_TOTO_PAYLOAD_TYPE},
    keyring::{Keyring, Place, keep},
    ledger::{Ledger, LedgerFault},
    signing::{SigningKey, VerifyingKey},
    verdict::{HexDigest, KeyChange, KeyOwner, link_digest, sign_key_change},
};

use crate::{
    pair::{Done, Pair},
    restores,
};

/// Agents with two verdicts, one of each key of the target, and the old key as its thief has it.
struct Stolen {
    pair: Pair,
    old: SigningKey,
    new: VerifyingKey,
}

fn stolen() -> Stolen {
    let pair = restores::pair();
    fs::create_dir(pair.path("pins")).expect("mkdir");
    fs::copy(pair.path("pki/target-signing.pub"), pair.path("pins/target-signing.pub")).expect("copy");
    pair.restart_with("source", "pki/target-signing.pub", "pins/target-signing.pub");
    let private = pair.path("pki/target-signing.key");
    fs::copy(&private, pair.path("pki/stolen.key")).expect("copy");
    let old = SigningKey::load(&private).expect("a key");
    pair.kill("target");
    good(&pair.target(&["keys", "rotate"]));
    let new = VerifyingKey::load(&pair.path("pki/target-signing.pub")).expect("a key");
    good(&pair.source(&["keys", "add", "pki/target-signing.pub"]));
    pair.start("target");
    fs::write(pair.root(0).join("file"), "better").expect("write");
    pair.run(0);
    Stolen { pair, old, new }
}

fn good(done: &Done) {
    assert_eq!(done.code, 0, "{done:?}");
}

impl Stolen {
    fn ring(&self) -> Keyring {
        let folder = tempfile::tempdir().expect("temp");
        let file = folder.path().join("key.pub");
        self.new.save(&file).expect("save");
        keep(&file, Place::Former, &self.old.verifying_key()).expect("kept");
        Keyring::load(&file).expect("two keys")
    }

    fn ledger(&self) -> Ledger {
        Ledger::at(&self.pair.path("store/repo/ledger"))
    }

    fn faults(&self) -> Vec<LedgerFault> {
        self.ledger().check(&self.ring(), None).expect("readable").faults
    }

    /// A key change in the place `sequence` that the thief signs.
    fn forged(&self, sequence: u64, change: impl FnOnce(&mut KeyChange)) -> Envelope {
        let previous = match sequence {
            1 => HexDigest::ZERO,
            _ => link_digest(&self.ledger().get(&format!("{:09}", sequence - 1)).expect("an entry")),
        };
        let mut forged = KeyChange {
            repository: "repo".to_owned(),
            sequence,
            previous,
            owner: KeyOwner::Target,
            former_key: HexDigest(self.old.verifying_key().to_bytes()),
            new_key: HexDigest(SigningKey::generate().verifying_key().to_bytes()),
            since: sequence + 1,
            generation: 1,
            without_former_key: false,
            time: jiff::Timestamp::now(),
            why: String::new(),
        };
        change(&mut forged);
        sign_key_change(&forged, &self.old).expect("signed")
    }

    fn append(&self, envelope: &Envelope) {
        self.ledger().append(|_, _| Ok(envelope.clone())).expect("appended");
    }
}

/// With the ledger's folder at hand: a change behind the one that ended its time, in its place, or before it.
#[test]
fn an_old_key_names_nobody_after_its_time() {
    let stolen = stolen();
    assert!(stolen.faults().is_empty(), "{:?}", stolen.faults());
    let entry = |id: u64| stolen.pair.path(&format!("store/repo/ledger/{id:09}.json"));
    let forged: [(u64, Envelope); 3] = [
        (4, stolen.forged(4, |_| {})),
        (
            4,
            stolen.forged(4, |change| {
                // Back to the stolen key, on its own word.
                (change.former_key, change.new_key) = (HexDigest(stolen.new.to_bytes()), change.former_key);
                (change.without_former_key, change.since) = (true, 4);
            }),
        ),
        (4, stolen.forged(4, |change| change.owner = KeyOwner::Source)),
    ];
    for (id, envelope) in forged {
        stolen.append(&envelope);
        let faults = stolen.faults();
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(
            matches!(&faults[0], LedgerFault::FormerKey { .. } | LedgerFault::WrongChange { .. }),
            "{faults:?}"
        );
        let told = stolen.pair.target(&["ledger", "verify"]);
        assert!(told.code == 1 && told.stdout.contains("NOT SOUND"), "{told:?}");
        fs::remove_file(entry(id)).expect("remove");
    }
    // In the place of the true change, with what follows gone: the new key, which is pinned, is never come to.
    let (second, third) = (fs::read(entry(2)).expect("read"), fs::read(entry(3)).expect("read"));
    fs::remove_file(entry(3)).expect("remove");
    fs::remove_file(entry(2)).expect("remove");
    stolen.append(&stolen.forged(2, |_| {}));
    let faults = stolen.faults();
    assert!(faults.iter().any(|fault| matches!(fault, LedgerFault::Unpinned { .. })), "{faults:?}");
    // And with the true entries behind it again: they do not follow it.
    fs::write(entry(3), &third).expect("write");
    let faults = stolen.faults();
    assert!(faults.iter().any(|fault| matches!(fault, LedgerFault::BrokenLink { .. })), "{faults:?}");
    // A ledger that ends before the change is one whose newest entries are gone.
    fs::remove_file(entry(3)).expect("remove");
    fs::remove_file(entry(2)).expect("remove");
    let faults = stolen.faults();
    assert!(matches!(&faults[..], [LedgerFault::NotReached { .. }]), "{faults:?}");
    fs::write(entry(2), second).expect("write");
    fs::write(entry(3), third).expect("write");
    assert!(stolen.faults().is_empty());
}

/// With the target's place in the network: the source has seen the new key, and believes the old one no longer. One that it never saw is told.
#[test]
fn a_source_never_goes_back_to_a_key_that_was_replaced() {
    let stolen = stolen();
    let pair = &stolen.pair;
    pair.kill("target");
    let own = fs::read_to_string(pair.path("target.toml")).expect("read");
    // Another host with the old key: its store and its ledger are of before the change.
    for (store, key) in [("other-store", "pki/stolen.key"), ("third-store", "pki/third.key")] {
        let third = SigningKey::generate();
        if key == "pki/third.key" {
            third.save(&pair.path(key)).expect("save");
        }
        let text = own.replace("pki/target-signing.key", key).replace("\"store\"", &format!("{store:?}"));
        fs::write(pair.path("target.toml"), text).expect("write");
        pair.start("target");
        fs::write(pair.root(0).join("file"), store).expect("write");
        let ended = pair.source(&["run", "--follow", "--accept-history"]);
        let word = if key == "pki/third.key" { "signed with another key than" } else { "has replaced" };
        let text = format!("{}{}", ended.stdout, ended.stderr);
        assert!(ended.code != 0 && text.contains("verdict-not-trusted"), "{ended:?}");
        assert!(text.contains(word) && text.contains("HINT: "), "{word}: {ended:?}");
        pair.kill("target");
    }
    // Nor is it pinned again by whoever asks for that.
    stolen.old.verifying_key().save(&pair.path("old.pub")).expect("save");
    good(&pair.source(&["keys", "add", "--now", "pki/target-signing.pub"]));
    let refused = pair.source(&["keys", "add", "--now", "old.pub"]);
    assert!(refused.code == 2 && refused.stderr.contains("was replaced before"), "{refused:?}");
}

/// A verdict in the old key's name and of its time, for a restore: the source's host has kept the true one.
#[test]
fn an_old_key_makes_no_verdict_for_a_restore() {
    let stolen = stolen();
    let pair = &stolen.pair;
    let entry = pair.path("store/repo/ledger/000000001.json");
    let honest = fs::read(&entry).expect("read");
    let envelope = Envelope::parse(&honest).expect("an envelope");
    let payload = envelope.unverified_payload(IN_TOTO_PAYLOAD_TYPE).expect("a payload");
    let payload = String::from_utf8(payload).expect("text").replacen("check-passed", "check-passeD", 1);
    let forged = Envelope::sign(IN_TOTO_PAYLOAD_TYPE, payload.as_bytes(), &stolen.old);
    fs::write(&entry, forged.to_json()).expect("write");
    let to = pair.path("back");
    let refused = restores::restore(pair, &to, &["--generation", "1"]);
    assert!(refused.code == 4 && refused.stderr.contains("HINT: ") && !to.exists(), "{refused:?}");
    assert!(refused.stderr.contains("another one than this host has"), "{refused:?}");
    fs::write(&entry, honest).expect("write");
    good(&restores::restore(pair, &to, &["--generation", "1"]));
}
