//! Bit rot: found, told, healed from a sibling or from the source, and never called verified.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::Path,
    process::Command,
};

use crate::{
    noise,
    pair::{Pair, json, rsync_finds_no_difference},
};

/// Changes one byte in place and leaves the times as they were.
pub(crate) fn flip(path: &Path, offset: u64) {
    let time = fs::metadata(path).expect("stat").modified().expect("time");
    let file = File::options().read(true).write(true).open(path).expect("open");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("read");
    file.write_all_at(&[byte[0] ^ 1], offset).expect("write");
    file.set_modified(time).expect("utimes");
}

/// Waits until the source will trust a file to be unchanged, so that the next generation shares it.
fn at_rest(pair: &Pair, file: &Path) {
    let changed = fs::metadata(file).expect("stat").ctime();
    let now =
        || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    pair.eventually("the file is at rest", || now().cast_signed() > changed + 1);
}

fn b3sum_accepts(generation: &Path) {
    let output =
        Command::new("b3sum").args(["--check", "--quiet", "manifest.b3"]).current_dir(generation).output();
    let output = output.expect("b3sum is installed by ./test");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn rot_is_found_and_healed_from_a_sibling_or_from_the_source() {
    let pair = Pair::plain(1);
    let root = pair.root(0);
    let long = noise(1, 2_000_000);
    fs::write(root.join("same"), noise(2, 300_000)).expect("write");
    fs::write(root.join("grows"), &long[..1_500_000]).expect("write");
    fs::hard_link(root.join("same"), root.join("zz further name")).expect("link");
    at_rest(&pair, &root.join("same"));
    pair.run(0);
    fs::write(root.join("grows"), &long).expect("write");
    pair.run(0);
    let clean = pair.target(&["scrub"]);
    assert!(clean.code == 0 && clean.stdout.contains("0 rotten"), "{clean:?}");

    // Generation 2 has every piece of it in another file.
    flip(&pair.generation("000001").join("grows"), 200_000);
    let healed = pair.target(&["scrub", "--share", "100"]);
    assert!(healed.code == 0 && healed.stdout.contains("ROTTEN grows in generation 1: "), "{healed:?}");
    assert!(healed.stdout.contains(": healed"), "{healed:?}");
    b3sum_accepts(&pair.path("store/repo/generations/000001"));

    // Both generations share this one, and nobody else has it.
    flip(&pair.generation("000002").join("same"), 123_456);
    let found = pair.target(&["--json", "scrub"]);
    assert_eq!(found.code, 1, "{found:?}");
    let rotten = json(found.stdout.lines().next().expect("a line"));
    assert_eq!(rotten["rotten"]["generations"], serde_json::json!([1, 2]), "{rotten}");
    assert_eq!(pair.verified(), "none");
    let shown = pair.target(&["generations"]).stdout;
    assert!(shown.contains("ROTTEN same: its content is not what arrived"), "{shown}");
    // It survives a kill.
    pair.kill("target");
    pair.start("target");
    assert_eq!(pair.verified(), "none");

    // The next run reads and sends it, though it has not changed, and the old ones are healed with it.
    let run = pair.run(0);
    assert!(run["counts"]["bytesSent"].as_u64().is_some_and(|sent| sent > 0 && sent <= 300_000), "{run}");
    assert_eq!(pair.verified(), "generations/000003");
    rsync_finds_no_difference(&root, &pair.latest());
    pair.eventually("the old ones are healed", || !pair.target(&["generations"]).stdout.contains("ROTTEN"));
    for generation in ["000001", "000002", "000003"] {
        b3sum_accepts(&pair.path("store/repo/generations").join(generation));
        let inode = |name: &str| {
            use std::os::unix::fs::MetadataExt as _;
            fs::metadata(pair.generation(generation).join(name)).expect("stat").ino()
        };
        assert_eq!(inode("same"), inode("zz further name"), "{generation}");
    }
    rsync_finds_no_difference(&root, &pair.generation("000002"));
    assert_eq!(pair.target(&["scrub"]).code, 0);
    // And the next run is as ever.
    pair.run(0);
    rsync_finds_no_difference(&root, &pair.latest());
}

/// A damaged manifest cannot be healed: its generation is not verified, and the next run builds upon the one before.
#[test]
fn a_damaged_manifest_is_found_and_not_built_upon() {
    let pair = Pair::plain(1);
    pair.restart_with("target", "name = \"repo\"\n", "name = \"repo\"\nscrub_every = \"1s\"\n");
    for content in ["one", "two"] {
        fs::write(pair.root(0).join("file"), content).expect("write");
        pair.run(0);
    }
    let manifest = pair.path("store/repo/generations/000002/manifest");
    flip(&manifest, fs::metadata(&manifest).expect("stat").len() - 3);
    // By the clock, without anybody's asking.
    pair.eventually("it is found", || pair.verified() == "generations/000001");
    let shown = pair.target(&["generations"]).stdout;
    assert!(shown.contains("ROTTEN its manifest is not the one that was sealed"), "{shown}");
    fs::write(pair.root(0).join("file"), "three").expect("write");
    let run = pair.run(0);
    assert_eq!(run["baseGeneration"], 1, "{run}");
    assert_eq!(pair.verified(), "generations/000003");
    rsync_finds_no_difference(&pair.root(0), &pair.latest());
}
