//! File systems that were made for other machines: no owners, no modes, no times of change, and names in any case are one.

use std::{fs, path::Path, process::Command};

use crate::{
    file_systems::{Kind, Mounted},
    pair::{Pair, rsync_finds_no_difference},
};

fn write_at(path: &Path, text: &str, time: &str) {
    fs::write(path, text).expect("write");
    let done = Command::new("touch").arg("-d").arg(time).arg(path).status();
    assert!(done.expect("touch").success());
}

/// A program that sets a file's time back (an unpacker, a copier that keeps times, an editor of photographs) leaves no trace there, and
/// the copy has the new content all the same.
#[test]
fn a_write_whose_time_is_set_back_is_copied() {
    let pair = Pair::on(Kind::ExFat, Kind::Ext4);
    let (live, time) = (pair.root(0), "2020-01-01 00:00:02");
    fs::create_dir(live.join("Folder")).expect("mkdir");
    write_at(&live.join("Folder/File"), "first", time);
    write_at(&live.join("other"), "other", time);
    pair.run(0);
    rsync_finds_no_difference(&live, &pair.latest());
    write_at(&live.join("Folder/File"), "again", time);
    let run = pair.run(0);
    assert_eq!(fs::read_to_string(pair.latest().join("Folder/File")).expect("read"), "again", "{run}");
    rsync_finds_no_difference(&live, &pair.latest());
    // The same name in another case is another name in the copy.
    fs::rename(live.join("other"), live.join("Other")).expect("rename");
    pair.run(0);
    rsync_finds_no_difference(&live, &pair.latest());
    // What a plan says of it is what the run then does.
    let plan = pair.source(&["plan"]);
    assert!(plan.code == 0 && plan.stdout.contains("to read      2 files"), "{plan:?}");
    assert_eq!(pair.run(0)["counts"]["filesRead"], 2);
}

/// A tree with owners and modes, and with names that differ in case only, is not restored there: the restore says so before it writes.
#[test]
fn a_restore_says_what_such_a_file_system_cannot_hold() {
    let pair = Pair::plain(1);
    let live = pair.root(0);
    fs::write(live.join("Makefile"), "one").expect("write");
    fs::write(live.join("makefile"), "the other").expect("write");
    fs::set_permissions(live.join("makefile"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("chmod");
    std::os::unix::fs::chown(live.join("makefile"), Some(1), Some(1)).expect("chown");
    pair.run(0);
    let mounted = Mounted::new(Kind::ExFat, &pair.path("stick"));
    let to = mounted.place().join("back");
    let done = pair.target(&["restore", "--clamp-times", "--to", to.to_str().expect("text")]);
    assert!(done.code != 0 && !to.join("makefile").exists(), "{done:?}");
    for words in ["keeps no owners and modes", "differs from another name in case only", "HINT: "] {
        assert!(done.stderr.contains(words), "{words}: {done:?}");
    }
}

/// A store there is refused before anything is copied: `doctor` says what it does not hold, and `plan` and the run which entries those are.
#[test]
fn a_store_there_holds_no_copy_that_differs() {
    let pair = Pair::plain(1).unproved();
    let live = pair.root(0);
    for name in ["Makefile", "makefile"] {
        write_at(&live.join(name), name, "2020-01-01 00:00:02");
    }
    let mounted = Mounted::new(Kind::ExFat, &pair.path("stick"));
    pair.kill("target");
    pair.configure("target", "store = \"store\"", "store = \"stick/store\"");
    fs::create_dir(mounted.place().join("store")).expect("mkdir");
    let doctor = pair.target(&["doctor"]);
    for words in [
        "BAD   store holds",
        "it keeps no owners and modes",
        "names that differ in case only are one name there",
    ] {
        assert!(doctor.stdout.contains(words), "{words}: {doctor:?}");
    }
    pair.start("target");
    pair.restart_with("source", "profile = ", "clamp_times = true\nprofile = ");
    let what = "makefile has a name that differs from another one in case only";
    let plan = pair.source(&["--json", "plan"]).stdout;
    assert!(plan.contains(what) && plan.contains("HINT: rename or exclude one of the two"), "{plan}");
    let run = pair.run(4);
    assert_eq!(run["reason"], "target-cannot-hold", "{run}");
    let message = run["message"].as_str().unwrap_or_default();
    assert!(
        message.contains(what) && message.contains("HINT: rename or exclude one of the two"),
        "{message}"
    );
    println!("{message}");
    // An owner of its own is named as well.
    fs::remove_file(live.join("makefile")).expect("remove");
    std::os::unix::fs::chown(live.join("Makefile"), Some(1), Some(1)).expect("chown");
    let message = pair.run(4)["message"].to_string();
    assert!(
        message.contains("Makefile has the owner 1:1") && message.contains("keeps no owners and modes"),
        "{message}"
    );
    assert!(!pair.path("stick/store/repo/generations/000001").exists());
    pair.kill("target");
}
