//! A store and a state that agents of commit 0727a00 wrote, under agents of this version: they are closed at the start, nothing of a sealed
//! tree changes, verdicts verify, the next run goes on from there, and the oldest generation is restored.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileTypeExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    process::Command,
};

use assay_common::verdict::Outcome;

use crate::pair::{Pair, rsync_finds_no_difference};

const ARCHIVE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/0727a00/upgrade.tar.gz");

/// Puts what version 0.1 wrote in the place of what the agents of `pair` have, which do not run.
fn unpack(pair: &Pair) {
    for folder in ["store", "state"] {
        fs::remove_dir_all(pair.path(folder)).expect("remove");
    }
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--gzip", "--numeric-owner", "--same-owner", "--same-permissions", "--acls"]);
    tar.args(["--xattrs", "--xattrs-include=*", "--file", ARCHIVE, "--directory"]).arg(pair.path("."));
    assert!(tar.status().expect("tar").success());
}

/// Mode, owner, size, time, content and attributes of every entry below a folder. Not the number of names: generations share files.
fn entries(folder: &Path) -> BTreeMap<PathBuf, String> {
    fn below(folder: &Path, found: &mut BTreeMap<PathBuf, String>) {
        for entry in fs::read_dir(folder).expect("list") {
            let path = entry.expect("entry").path();
            let stat = fs::symlink_metadata(&path).expect("stat");
            let content = match stat.file_type() {
                kind if kind.is_symlink() => {
                    fs::read_link(&path).expect("link").as_os_str().as_bytes().to_vec()
                }
                kind if kind.is_file() => fs::read(&path).expect("read"),
                kind if kind.is_fifo() => b"a FIFO".to_vec(),
                _ => Vec::new(),
            };
            let attributes = Command::new("getfattr")
                .args(["--no-dereference", "--dump", "--match=-", "--encoding=hex", "--absolute-names", "--"])
                .arg(&path)
                .output()
                .expect("getfattr");
            assert!(attributes.status.success(), "{attributes:?}");
            let told = format!(
                "{:o} {}:{} {} {}.{:09} {} {}",
                stat.mode(),
                stat.uid(),
                stat.gid(),
                stat.size(),
                stat.mtime(),
                stat.mtime_nsec(),
                blake3::hash(&content),
                String::from_utf8_lossy(&attributes.stdout),
            );
            if stat.is_dir() {
                below(&path, found);
            }
            found.insert(path, told);
        }
    }
    let mut found = BTreeMap::new();
    below(folder, &mut found);
    found
}

/// What others may enter, read or lock below `folder`, trees left out: theirs are the modes of the live repository.
fn open_to_others(folder: &Path) -> Vec<String> {
    let mut open = Vec::new();
    for entry in fs::read_dir(folder).expect("list") {
        let entry = entry.expect("entry");
        let stat = entry.metadata().expect("stat");
        if stat.is_symlink() || entry.file_name() == "tree" {
            continue;
        }
        if stat.mode() & 0o077 != 0 {
            open.push(format!("{:o} {}", stat.mode() & 0o7777, entry.path().display()));
        }
        if stat.is_dir() {
            open.extend(open_to_others(&entry.path()));
        }
    }
    open
}

#[test]
fn a_store_of_version_0_1_is_closed_and_goes_on() {
    assert!(
        rustix::process::geteuid().is_root(),
        "owners and attributes are compared: run this test as root"
    );
    let pair = Pair::plain(1).unproved();
    pair.kill("source");
    pair.kill("target");
    unpack(&pair);
    let sealed =
        || [1, 2].map(|number| entries(&pair.path(&format!("store/repo/generations/{number:06}/tree"))));
    let before = sealed();
    assert_eq!(before.each_ref().map(BTreeMap::len), [14, 14], "{before:#?}");
    let (store, state) = (pair.path("store"), pair.path("state"));
    assert!(!open_to_others(&store).is_empty() && !open_to_others(&state).is_empty(), "0.1 left them open");

    pair.start("target");
    pair.start("source");
    for folder in [&store, &state] {
        assert_eq!(open_to_others(folder), [""; 0]);
        assert_eq!(fs::metadata(folder).expect("stat").mode() & 0o7777, 0o700);
    }
    assert_eq!(sealed(), before, "the start changed a sealed tree");
    assert_eq!(pair.verified(), "generations/000002");
    let ledger = pair.target(&["ledger", "verify", "--copies", "state/repo/verdicts"]);
    assert!(ledger.code == 0 && ledger.stdout.contains("sound: 2 verdicts"), "{ledger:?}");
    for generation in ["1", "2"] {
        let scrubbed = pair.target(&["scrub", "--generation", generation]);
        assert_eq!(scrubbed.code, 0, "{scrubbed:?}");
    }

    // The live tree as the second generation has it, at another place, which version 0.1 did not know.
    let copied = Command::new("cp").arg("-aT").args([pair.generation("000002"), pair.root(0)]).status();
    assert!(copied.expect("cp").success());
    fs::write(pair.root(0).join("open/changes"), "by this version").expect("write");
    assert_eq!(pair.run(0)["outcome"], "OUTCOME_PASS");
    rsync_finds_no_difference(&pair.root(0), &pair.latest());
    assert_eq!(sealed(), before, "the next run changed a sealed tree");
    assert_eq!(pair.run(0)["outcome"], "OUTCOME_PASS");
    assert_eq!(fs::read_link(pair.path("store/repo/latest")).expect("link"), Path::new("generations/000004"));
    pair.assert_ledger(&[Outcome::Pass; 4]);

    // What version 0.1 sealed is checked once more, and brought back: both signatures are demanded.
    let checked = pair.target(&["verify", "--generation", "1"]);
    assert_eq!(checked.code, 0, "{checked:?}");
    let back = pair.path("back");
    let restored = pair.target(&["restore", "--generation", "1", "--to", back.to_str().expect("text")]);
    assert_eq!(restored.code, 0, "{restored:?}");
    rsync_finds_no_difference(&pair.generation("000001"), &back);
    assert_eq!(sealed(), before, "a check or a restore changed a sealed tree");
    assert_eq!(open_to_others(&store), [""; 0]);
}
