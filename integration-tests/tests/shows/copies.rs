//! Large files that change from run to run: copied between the runs, so that the next one writes what is new in them.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use assay_common::verdict::Outcome::Pass;

use crate::{
    noise,
    pair::{Pair, rsync_finds_no_difference},
    trouble::SmallDisk,
};

const MIB: usize = 1 << 20;

/// Waits until all copies are made, and returns them.
fn copies(pair: &Pair, store: &Path) -> Vec<PathBuf> {
    let record = fs::read(store.join("latest/record.json")).expect("a record");
    let record: serde_json::Value = serde_json::from_slice(&record).expect("JSON");
    pair.eventually("what may change is copied", || {
        let of = fs::read_to_string(store.join("copies/of")).unwrap_or_default();
        record["root_digest"] == of.trim()
    });
    let files = fs::read_dir(store.join("copies")).expect("read").flatten().map(|entry| entry.path());
    files.filter(|path| path.file_name().is_some_and(|name| name != "of")).collect()
}

fn inode(path: &Path) -> u64 {
    fs::metadata(path).expect("it is there").ino()
}

fn edit(path: &Path, work: impl FnOnce(&File, u64)) {
    let file = File::options().read(true).write(true).open(path).expect("open");
    work(&file, file.metadata().expect("metadata").len());
}

/// Whatever becomes of a file: the generation has it as it is at the source, and it is the copy that was made of it before.
#[test]
fn a_large_file_becomes_what_it_is_at_the_source() {
    let pair = Pair::plain(1).unproved();
    let store = pair.path("store/repo");
    let large = pair.root(0).join("large");
    let put = |bytes: &[u8]| fs::write(&large, bytes).expect("write");
    put(&noise(1, 9 * MIB + 77));
    fs::write(pair.root(0).join("small"), noise(2, MIB)).expect("write");
    pair.run(0);
    let edits: [(&str, &dyn Fn()); 9] = [
        ("a page", &|| edit(&large, |file, _| file.write_all_at(&noise(3, 8192), 3 << 20).expect("write"))),
        ("longer", &|| edit(&large, |file, end| file.write_all_at(&noise(4, 3 * MIB), end).expect("write"))),
        ("shorter", &|| edit(&large, |file, end| file.set_len(end - 2_500_001).expect("cut"))),
        ("with a hole", &|| {
            edit(&large, |file, _| {
                let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(file, flags, 2 << 20, 1 << 20).expect("punch");
            });
        }),
        ("with a hole at its end", &|| {
            edit(&large, |file, end| file.set_len(end + (4 << 20)).expect("extend"))
        }),
        ("with an insertion", &|| {
            let old = fs::read(&large).expect("read");
            put(&[&old[..5 * MIB], &b"three lines\n".repeat(3), &old[5 * MIB..]].concat());
        }),
        ("turned around", &|| {
            let old = fs::read(&large).expect("read");
            put(&[&old[6 * MIB..], &old[..6 * MIB]].concat());
        }),
        ("as it was", &|| {}),
        ("another", &|| put(&noise(5, 7 * MIB))),
    ];
    for (what, edit) in edits {
        let before = copies(&pair, &store);
        assert_eq!(before.len(), 1, "before it is {what}: {before:?}");
        let copy = inode(&before[0]);
        edit();
        pair.run(0);
        rsync_finds_no_difference(&pair.root(0), &pair.latest());
        let now = pair.latest().join("large");
        match what {
            // Linked, or looked at once more because it was written a moment before the last run; of the other nothing is as it was.
            "as it was" | "another" => {}
            _ => assert_eq!(inode(&now), copy, "{what}: the generation has the copy"),
        }
    }
    let scrubbed = pair.target(&["scrub"]);
    assert_eq!(scrubbed.code, 0, "{scrubbed:?}");
    pair.assert_ledger(&[Pass; 10]);
}

/// A file that is nobody's copy is nobody's business: of other files' copies none is left when the setting forbids them.
#[test]
fn no_copies_are_made_when_they_may_take_nothing() {
    let pair = Pair::plain(1).unproved();
    pair.restart_with("target", "source = \"source\"", "source = \"source\"\ncopy_ahead = \"0B\"");
    fs::write(pair.root(0).join("large"), noise(1, 6 * MIB)).expect("write");
    pair.run(0);
    assert!(copies(&pair, &pair.path("store/repo")).is_empty());
    pair.restart_with("target", "copy_ahead = \"0B\"", "copy_ahead = \"6MiB\"");
    assert_eq!(copies(&pair, &pair.path("store/repo")).len(), 1);
    pair.restart_with("target", "copy_ahead = \"6MiB\"", "copy_ahead = \"4MiB\"");
    assert!(copies(&pair, &pair.path("store/repo")).is_empty());
}

/// Copies never stand in the way: a run that has no room beside them, and a check that may have none, make it.
#[test]
fn copies_give_way_to_a_run_and_to_a_check() {
    let pair = Pair::plain(1).unproved();
    pair.kill("target");
    let disk = pair.path("store");
    let _disk = SmallDisk::mount(&disk, 64);
    // A check leaves more room than that by default.
    let settings = "source = \"source\"\nreserve = \"0B\"\nlimits = { disk_reserve = \"1MiB\" }\nretention = { last = 1, failed_last = 0 }";
    pair.configure("target", "source = \"source\"", settings);
    pair.start("target");
    let store = disk.join("repo");
    fs::write(pair.root(0).join("large"), noise(1, 11 * MIB)).expect("write");
    pair.run(0);
    assert_eq!(copies(&pair, &store).len(), 1);
    // 11 MiB are sealed and as many are a copy: what comes beside them needs the room of the copy.
    fs::remove_file(pair.root(0).join("large")).expect("remove");
    fs::write(pair.root(0).join("other"), noise(2, 45 * MIB)).expect("write");
    pair.run(0);
    rsync_finds_no_difference(&pair.root(0), &store.join("latest/tree"));
    // There is no room for any now.
    assert!(copies(&pair, &store).is_empty());
    pair.assert_ledger(&[Pass, Pass]);
    pair.kill("target");
}
