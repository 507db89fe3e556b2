//! The ledger as a whole, at the target and as a copy elsewhere.

use std::{fs, process::Command};

use crate::pair::{Pair, json};

#[test]
fn a_ledger_is_checked_here_and_as_a_copy() {
    let pair = Pair::plain(1);
    for content in ["one", "two", "three"] {
        fs::write(pair.root(0).join("file"), content).expect("write");
        pair.run(0);
    }
    let sound = pair.target(&["ledger", "verify", "--every", "1d", "--copies", "state/repo/verdicts"]);
    assert_eq!(sound.code, 0, "{sound:?}");
    assert!(sound.stdout.contains("sound: 3 verdicts, 3 compared"), "{sound:?}");
    let head = pair.target(&["ledger", "head"]).stdout;
    let head = head.trim();

    // On a copy, with keys that are given.
    let copied =
        Command::new("cp").arg("-r").args([pair.path("store/repo/ledger"), pair.path("copy")]).status();
    assert!(copied.expect("cp").success());
    let without = pair.target(&["ledger", "verify", "--folder", "copy"]);
    assert!(without.code == 2 && without.stderr.contains("HINT:"), "{without:?}");
    let on_copy = |further: &[&str]| {
        let keys = ["--key", "pki/target-signing.pub", "--source-key", "pki/source-signing.pub"];
        let place = ["--json", "ledger", "verify", "--folder", "copy"];
        pair.target(&[&place[..], &keys[..], further].concat())
    };
    let sound = on_copy(&["--expect-head", head]);
    assert_eq!((sound.code, &json(&sound.stdout)["sound"]), (0, &true.into()), "{sound:?}");
    // Another key, the newest gone, one that another took the place of.
    let other = pair.target(&["ledger", "verify", "--folder", "copy", "--key", "pki/source-signing.pub"]);
    assert_eq!(other.code, 1, "{other:?}");
    fs::remove_file(pair.path("copy/000000003.json")).expect("remove");
    assert_eq!(on_copy(&[]).code, 0, "the chain alone does not show it");
    for further in [["--expect-head", head], ["--copies", "state/repo/verdicts"]] {
        let gone = on_copy(&further);
        assert_eq!(gone.code, 1, "{gone:?}");
    }
    fs::copy(pair.path("copy/000000001.json"), pair.path("copy/000000002.json")).expect("copy");
    assert_eq!(on_copy(&[]).code, 1);

    // Another tree in a generation's place.
    let (one, two) = (pair.path("store/repo/generations/000001"), pair.path("store/repo/generations/000002"));
    fs::rename(&one, pair.path("aside")).expect("rename");
    fs::rename(&two, &one).expect("rename");
    let exchanged = pair.target(&["ledger", "verify"]);
    assert_eq!(exchanged.code, 1, "{exchanged:?}");
    assert!(exchanged.stdout.contains("another tree than generation 1 has"), "{exchanged:?}");
    assert!(exchanged.stdout.contains("2 compared"), "{exchanged:?}");
}
