//! A restore does what its words say: onto a new disk, by a user who is not root, by paths as people type them, and before a checker is
//! proven.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::Command,
    time::Duration,
};

use assay_common::pki::{Party, Role, issue};

use crate::{
    file_systems::{Kind, Mounted},
    pair::{Done, Pair, copy_program, done, json, rsync_finds_no_difference},
};

/// A user without any right.
const NOBODY: u32 = 65_534;

fn restore(pair: &Pair, to: &Path, further: &[&str]) -> Done {
    pair.target(&[&["restore", "--to", to.to_str().expect("text")], further].concat())
}

/// Both agents vouch for the bytes, and no control for the check: the restore goes on, and says so at each place.
#[test]
fn before_the_checker_is_proven_the_newest_pass_comes_back_and_says_so() {
    let pair = Pair::plain(1).unproved();
    let none = restore(&pair, &pair.path("none"), &[]);
    assert_eq!(none.code, 4, "{none:?}");
    assert!(none.stderr.contains("no generation of repo has passed its check"), "{none:?}");
    for content in ["first", "second"] {
        fs::write(pair.root(0).join("file"), content).expect("write");
        pair.run(0);
    }
    assert_eq!(pair.verified(), "none");
    let plain = restore(&pair, &pair.path("plain"), &[]);
    assert_eq!(plain.code, 0, "{plain:?}");
    assert!(plain.stdout.contains("generation 2: PASS"), "{plain:?}");
    assert_eq!(plain.stdout.matches("CHECKER NOT PROVEN: no negative control").count(), 2, "{plain:?}");
    assert_eq!(fs::read(pair.path("plain/file")).expect("there"), b"second");
    // A restore moves nothing: what is claimed is the controls' to say.
    assert_eq!(pair.verified(), "none");
    let status = pair.target(&["status"]).stdout;
    assert!(status.contains("by a check that was not proven"), "{status}");
    let shown = json(&pair.target(&["--json", "status"]).stdout);
    assert_eq!(shown["repositories"][0]["lastRestore"]["unproven"], true, "{shown}");
    // Both signatures are demanded all the same.
    let key = pair.path("pki/target-signing.pub");
    let other = restore(&pair, &pair.path("other"), &["--source-key", key.to_str().expect("text")]);
    assert!(other.code == 4 && other.stderr.contains("the source has not signed this tree"), "{other:?}");
    assert!(!pair.path("other").exists());
    pair.prove();
    let proven = pair.target(&["--json", "restore", "--to", pair.path("proven").to_str().expect("text")]);
    let report = json(proven.stdout.lines().last().expect("a line"));
    assert_eq!((&report["checkerProven"], &report["generation"]), (&true.into(), &2.into()), "{proven:?}");
}

/// The first thing that is tried after a new disk was put in.
#[test]
fn a_fresh_file_system_is_empty_and_its_lost_and_found_stays() {
    let pair = Pair::plain(1);
    fs::write(pair.root(0).join("file"), "x").expect("write");
    pair.run(0);
    let disk = Mounted::new(Kind::Ext4, &pair.path("disk"));
    let to = pair.path("disk");
    let first = restore(&pair, &to, &[]);
    assert_eq!(first.code, 0, "{first:?}");
    assert!(to.join("lost+found").is_dir());
    fs::write(to.join("stale"), "x").expect("write");
    let second = restore(&pair, &to, &["--onto-existing", "--delete"]);
    assert_eq!(second.code, 0, "{second:?}");
    assert!(second.stdout.contains("1 name was removed that the generation does not have"), "{second:?}");
    assert!(to.join("lost+found").is_dir() && to.join("file").exists() && !to.join("stale").exists());
    // Elsewhere it is a folder like any other.
    let inside = pair.path("inside");
    fs::create_dir_all(inside.join("lost+found")).expect("mkdir");
    let refused = restore(&pair, &inside, &[]);
    assert_eq!(refused.code, 2, "{refused:?}");
    drop(disk);
}

/// One that the live tree has is content: it comes back as it was.
#[test]
fn a_lost_and_found_of_the_live_tree_comes_back_with_its_content() {
    let pair = Pair::plain(1);
    fs::create_dir(pair.root(0).join("lost+found")).expect("mkdir");
    fs::write(pair.root(0).join("lost+found/#1234"), "saved by fsck").expect("write");
    pair.run(0);
    let _disk = Mounted::new(Kind::Ext4, &pair.path("disk"));
    let done = restore(&pair, &pair.path("disk"), &[]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(fs::read(pair.path("disk/lost+found/#1234")).expect("there"), b"saved by fsck");
}

#[test]
fn paths_are_taken_as_people_type_them_and_none_means_none() {
    let pair = Pair::plain(1);
    fs::create_dir(pair.root(0).join("folder")).expect("mkdir");
    for name in ["a.txt", "folder/b.txt", "c.txt"] {
        fs::write(pair.root(0).join(name), name).expect("write");
    }
    pair.run(0);
    for (number, (typed, file)) in
        [("./a.txt", "a.txt"), ("folder//b.txt", "folder/b.txt"), ("./folder/", "folder/b.txt")]
            .iter()
            .enumerate()
    {
        let to = pair.path(&format!("to{number}"));
        let done = restore(&pair, &to, &["--path", typed]);
        assert_eq!(done.code, 0, "{typed}: {done:?}");
        assert!(to.join(file).exists() && !to.join("c.txt").exists(), "{typed}");
    }
    let kept = pair.path("kept");
    fs::create_dir(&kept).expect("mkdir");
    fs::write(kept.join("mine"), "x").expect("write");
    for typed in ["", ".", "./", "/", "..", "/etc"] {
        let done = restore(&pair, &kept, &["--onto-existing", "--delete", "--path", typed]);
        assert_eq!(done.code, 2, "{typed:?}: {done:?}");
        assert!(done.stderr.contains("--path") && done.stderr.contains("HINT: "), "{typed:?}: {done:?}");
        assert_eq!(fs::read_dir(&kept).expect("there").count(), 1, "{typed:?} wrote or removed something");
    }
    // What is beside a path stays, also with --delete.
    let done = restore(&pair, &kept, &["--onto-existing", "--delete", "--path", "folder"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(kept.join("mine").exists() && kept.join("folder/b.txt").exists());
}

/// Who is not root gets the content back, owned by themselves, and is told so.
#[test]
fn a_user_who_is_not_root_gets_the_files_back_as_their_own() {
    let pair = Pair::plain(1);
    pair.restart_with("target", "source = \"source\"", "source = \"source\"\nrestore = [\"bob\"]");
    let (party, day) = (Party { name: "bob".to_owned(), hosts: Vec::new() }, Duration::from_secs(24 * 3600));
    issue(&pair.path("pki"), pair.authority(), Role::Restore, &party, day, jiff::Timestamp::now())
        .expect("issue");
    fs::write(pair.root(0).join("file"), "content").expect("write");
    std::os::unix::fs::chown(pair.root(0).join("file"), Some(1234), Some(1234)).expect("chown");
    fs::set_permissions(pair.root(0).join("file"), fs::Permissions::from_mode(0o640)).expect("chmod");
    pair.run(0);
    let home = pair.path("home");
    fs::create_dir(&home).expect("mkdir");
    fs::set_permissions(pair.path(""), fs::Permissions::from_mode(0o755)).expect("chmod");
    for name in ["ca.crt", "restore-bob.crt", "restore-bob.key", "target-signing.pub", "source-signing.pub"] {
        fs::copy(pair.path("pki").join(name), home.join(name)).expect("copied");
        std::os::unix::fs::chown(home.join(name), Some(NOBODY), Some(NOBODY)).expect("chown");
    }
    std::os::unix::fs::chown(&home, Some(NOBODY), Some(NOBODY)).expect("chown");
    // The test's own programs may lie where only root can go.
    copy_program("assay-source", &home);
    let status = json(
        &fs::read_to_string(pair.path("target.toml"))
            .map(|text| {
                let line =
                    text.lines().find(|line| line.starts_with("listen")).unwrap_or_default().to_owned();
                format!("{{\"listen\": {}}}", line.split_once(" = ").expect("a value").1)
            })
            .expect("read"),
    );
    let server = format!("https://{}", status["listen"].as_str().expect("an address"));
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "./assay-source"])
        .args([
            "--server",
            &server,
            "--ca",
            "ca.crt",
            "--cert",
            "restore-bob.crt",
            "--key",
            "restore-bob.key",
        ])
        .args(["restore", "repo", "--to", "back", "--target-key", "target-signing.pub"])
        .args(["--source-key", "source-signing.pub"])
        .env("TMPDIR", &home)
        .current_dir(&home);
    let taken = done(&mut command);
    assert_eq!(taken.code, 0, "{taken:?}");
    assert!(taken.stdout.contains("only root can give files away"), "{taken:?}");
    let file = fs::metadata(home.join("back/file")).expect("there");
    assert_eq!((file.uid(), file.mode() & 0o777), (NOBODY, 0o640));
    assert_eq!(fs::read(home.join("back/file")).expect("there"), b"content");
    // As root the same generation comes back exactly.
    assert_eq!(restore(&pair, &pair.path("exact"), &[]).code, 0);
    rsync_finds_no_difference(&pair.latest(), &pair.path("exact"));
}
