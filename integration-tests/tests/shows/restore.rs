//! Generations that are taken back: to a new folder, onto a damaged one, after a cut, and never where they must not go.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use assay_common::pki::{Party, Role, issue};

use crate::{
    nasty,
    pair::{Done, Pair, json, program, rsync_finds_no_difference},
};

/// Agents whose target lets "bob" restore; "eve" has a certificate too.
fn pair() -> Pair {
    let pair = Pair::plain(1);
    pair.restart_with("target", "source = \"source\"", "source = \"source\"\nrestore = [\"bob\"]");
    for name in ["bob", "eve"] {
        let party = Party { name: name.to_owned(), hosts: Vec::new() };
        let day = Duration::from_secs(24 * 3600);
        issue(&pair.path("pki"), pair.authority(), Role::Restore, &party, day, jiff::Timestamp::now())
            .expect("issue");
    }
    pair
}

fn restore_as(pair: &Pair, identity: &str, to: &Path, further: &[&str]) -> Done {
    let (cert, key) = (format!("pki/{identity}.crt"), format!("pki/{identity}.key"));
    let to = to.to_str().expect("text");
    pair.source(&[&["--json", "--cert", &cert, "--key", &key, "restore", "--to", to], further].concat())
}

fn restore(pair: &Pair, to: &Path, further: &[&str]) -> Done {
    restore_as(pair, "restore-bob", to, further)
}

fn restored(pair: &Pair, to: &Path, further: &[&str]) -> serde_json::Value {
    let done = restore(pair, to, further);
    assert_eq!(done.code, 0, "{done:?}");
    json(done.stdout.lines().last().expect("a line"))
}

/// Everything that a tree can have comes back, over the network and at the target itself, where no agent need run.
#[test]
fn a_nasty_tree_comes_back_as_it_was() {
    let pair = pair();
    nasty::make(&pair.root(0));
    pair.run(0);
    let (network, local) = (pair.path("back"), pair.path("back-local"));
    let done = restored(&pair, &network, &[]);
    assert_eq!(done["complete"], true, "{done}");
    rsync_finds_no_difference(&pair.latest(), &network);
    let status = json(&pair.target(&["--json", "status"]).stdout);
    let last = &status["repositories"][0]["lastRestore"];
    assert_eq!((&last["complete"], &last["by"]), (&true.into(), &"bob".into()), "{status}");
    pair.kill("target");
    let done = pair.target(&["restore", "--to", local.to_str().expect("text")]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stdout.contains("generation 1: PASS"), "{done:?}");
    rsync_finds_no_difference(&pair.latest(), &local);
}

/// Of a damaged tree only what is wrong is fetched; what does not belong goes when that is said.
#[test]
fn a_damaged_tree_is_put_right_by_what_it_lacks() {
    let pair = pair();
    fs::write(pair.root(0).join("large"), crate::noise(1, 8_000_000)).expect("write");
    for number in 0..50 {
        fs::write(pair.root(0).join(format!("small{number}")), crate::noise(number + 2, 1000))
            .expect("write");
    }
    fs::create_dir(pair.root(0).join("folder")).expect("mkdir");
    symlink("small1", pair.root(0).join("folder/link")).expect("symlink");
    pair.run(0);
    let back = pair.path("back");
    let first = restored(&pair, &back, &[]);
    assert_eq!(first["fetchedBytes"], 8_050_000, "{first}");

    let mut content = fs::read(back.join("large")).expect("read");
    content[4_000_000] ^= 1;
    fs::write(back.join("large"), content).expect("write");
    fs::remove_file(back.join("small7")).expect("remove");
    fs::set_permissions(back.join("small8"), fs::Permissions::from_mode(0o777)).expect("chmod");
    fs::write(back.join("folder/extra"), "not of this tree").expect("write");
    fs::remove_file(back.join("folder/link")).expect("remove");
    fs::create_dir_all(back.join("folder/link/a-folder-now")).expect("mkdir");
    fs::write(back.join("small9"), "").expect("write");

    let refused = restore(&pair, &back, &[]);
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.stderr.contains("--onto-existing"), "{refused:?}");
    let second = restore(&pair, &back, &["--onto-existing"]);
    assert_eq!(second.code, 1, "a folder with content goes only when that is said: {second:?}");
    let second = json(second.stdout.lines().last().expect("a line"));
    assert_eq!(
        (&second["leftOver"], &second["lost"][0]["path"]),
        (&1.into(), &"folder/link".into()),
        "{second}"
    );
    assert!(back.join("folder/link/a-folder-now").exists());
    assert!(back.join("folder/extra").exists());
    let fetched = second["fetchedBytes"].as_u64().expect("a number");
    assert!((2000..200_000).contains(&fetched), "one piece of the large file and two small files: {second}");
    let third = restored(&pair, &back, &["--onto-existing", "--delete"]);
    assert_eq!((&third["deleted"], &third["fetchedBytes"]), (&1.into(), &0.into()), "{third}");
    rsync_finds_no_difference(&pair.latest(), &back);
}

/// What had arrived before a kill, at either end, is not fetched again.
#[test]
fn a_restore_that_was_cut_is_taken_up() {
    const FILES: u64 = 200;
    const BYTES: usize = 200_000;
    const LARGE: usize = 20_000_000;
    let pair = pair();
    for file in 0..FILES {
        fs::write(pair.root(0).join(format!("a{file}")), crate::noise(file, BYTES)).expect("write");
    }
    fs::write(pair.root(0).join("large"), crate::noise(FILES, LARGE)).expect("write");
    pair.run(0);
    let back = pair.path("back");
    let total = FILES * BYTES as u64 + LARGE as u64;
    let there = || fs::read_dir(&back).map_or(0, Iterator::count);
    let begun = |files: usize| {
        let mut child = Command::new(program("assay-source"))
            .args([
                "--config",
                "source.toml",
                "--cert",
                "pki/restore-bob.crt",
                "--key",
                "pki/restore-bob.key",
            ])
            .args(["restore", "--to", "back"])
            .current_dir(pair.path(""))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        pair.eventually("it goes on", || there() >= files || child.try_wait().expect("wait").is_some());
        child
    };
    let mut client = begun(40);
    client.kill().expect("kill");
    client.wait().expect("wait");
    let after_kill = there();
    let mut client = begun(after_kill + 30);
    pair.kill("target");
    let ended = client.wait().expect("wait");
    assert_eq!(ended.code(), Some(4), "the target was killed; {} names are there", there());
    let after_cut = there();
    pair.start("target");
    let last = restored(&pair, &back, &[]);
    println!(
        "{after_kill} names were there after the kill, {after_cut} after the cut; of {total} bytes the rest: {}",
        last["fetchedBytes"]
    );
    let fetched = last["fetchedBytes"].as_u64().expect("a number");
    // One of the names is that of the folder in which files are put together.
    assert!(fetched <= total - (after_cut as u64 - 1) * BYTES as u64, "{last}");
    assert!(!back.join(".assay-restore").exists());
    rsync_finds_no_difference(&pair.latest(), &back);
}

/// One file, or one folder, with the folders above it.
#[test]
fn single_paths_come_back() {
    let pair = pair();
    fs::create_dir_all(pair.root(0).join("a/b/c")).expect("mkdir");
    fs::write(pair.root(0).join("a/b/c/wanted"), "wanted").expect("write");
    fs::write(pair.root(0).join("a/b/other"), "other").expect("write");
    fs::write(pair.root(0).join("a/b.txt"), "a name that begins alike").expect("write");
    fs::write(pair.root(0).join("top"), "top").expect("write");
    pair.run(0);
    let back = pair.path("back");
    let done = restored(&pair, &back, &["--path", "a/b/c/", "--path", "top"]);
    assert_eq!(done["files"], 2, "{done}");
    assert_eq!(fs::read(back.join("a/b/c/wanted")).expect("there"), b"wanted");
    assert_eq!(fs::read(back.join("top")).expect("there"), b"top");
    assert!(!back.join("a/b/other").exists() && !back.join("a/b.txt").exists());
    let again = restored(&pair, &back, &["--path", "a", "--onto-existing", "--delete"]);
    assert_eq!(again["files"], 3, "{again}");
    rsync_finds_no_difference(&pair.latest().join("a"), &back.join("a"));
    let unknown = restore(&pair, &pair.path("nowhere"), &["--path", "a/x"]);
    assert_eq!(unknown.code, 2, "{unknown:?}");
    assert!(unknown.stderr.contains("generation 1 has no a/x: nothing was written"), "{unknown:?}");
    assert!(!pair.path("nowhere").exists());
    let climbs = restore(&pair, &pair.path("nowhere"), &["--path", "../pki"]);
    assert_eq!(climbs.code, 2, "{climbs:?}");
}

/// Nothing is written over a live repository, over sealed generations, or through a link, unless it is said in words.
#[test]
fn a_restore_does_not_go_where_something_lives() {
    let pair = pair();
    fs::write(pair.root(0).join("live"), "live").expect("write");
    pair.run(0);
    fs::write(pair.root(0).join("live"), "newer").expect("write");
    symlink(pair.root(0), pair.path("to-live")).expect("symlink");
    let cases: [(PathBuf, &str); 8] = [
        (pair.path("store"), "where sealed generations are kept"),
        (pair.path("store/repo"), "where sealed generations are kept"),
        (pair.path("store/new"), "where sealed generations are kept"),
        (pair.root(0), "is where the live repository is"),
        (pair.root(0).join("inside"), "is where the live repository is"),
        (pair.path("to-live"), "it is a symbolic link"),
        (pair.path("store/repo/generations/000001/tree"), "where sealed generations are kept"),
        (pair.path("target.toml"), "it is no folder"),
    ];
    fs::create_dir(pair.root(0).join("inside")).expect("mkdir");
    fs::write(pair.root(0).join("inside/file"), "of the live server").expect("write");
    for (to, why) in cases {
        // At the target itself, whose configuration says where its store is.
        let words = ["restore", "--onto-existing", "--delete", "--to", to.to_str().expect("text")];
        let done = pair.target(&words);
        assert_eq!(done.code, 2, "{}: {done:?}", to.display());
        assert!(done.stderr.contains(why), "{}: {done:?}", to.display());
    }
    let done = restore(&pair, &pair.root(0), &["--onto-existing", "--delete"]);
    assert!(done.code == 2 && done.stderr.contains("is where the live repository is"), "{done:?}");
    assert_eq!(fs::read(pair.root(0).join("live")).expect("there"), b"newer");
    assert!(pair.verified().ends_with("000001"));
    let live = pair.root(0);
    let said = ["--onto-existing", "--delete", "--over-live-root", live.to_str().expect("text")];
    let done = restored(&pair, &live, &said);
    assert_eq!(done["deleted"], 1, "{done}");
    rsync_finds_no_difference(&pair.latest(), &live);
}

/// What is mounted in the destination is not of the tree, and is never emptied.
#[test]
fn a_mounted_file_system_is_left_alone() {
    let pair = pair();
    fs::write(pair.root(0).join("file"), "x").expect("write");
    pair.run(0);
    let back = pair.path("back");
    fs::create_dir_all(back.join("with a blank/mounted")).expect("mkdir");
    let mounted = back.join("with a blank/mounted");
    let status = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&mounted).status();
    assert!(status.is_ok_and(|status| status.success()));
    let _unmounted = Unmount(&mounted);
    fs::write(mounted.join("precious"), "precious").expect("write");
    let done = restore(&pair, &back, &["--onto-existing", "--delete"]);
    assert!(done.code == 2 && done.stderr.contains("is mounted in it"), "{done:?}");
    assert_eq!(fs::read(mounted.join("precious")).expect("there"), b"precious");
}

/// A restore has a role of its own, and the target lists who may restore what.
#[test]
fn only_those_who_are_listed_restore() {
    let pair = pair();
    fs::write(pair.root(0).join("secret"), "secret").expect("write");
    pair.run(0);
    for (identity, why) in [
        ("restore-eve", "there is no repository \"repo\" on this target that restore 'eve' may restore"),
        ("source", "role"),
        ("operator", "role"),
    ] {
        let done = restore_as(&pair, identity, &pair.path("back"), &[]);
        assert_eq!(done.code, 4, "{identity}: {done:?}");
        assert!(done.stderr.contains(why), "{identity}: {done:?}");
        assert!(!pair.path("back").exists());
    }
    let call = |identity: &str, method: &str| {
        let message = "{\"repository\": \"repo\"}";
        pair.grpcurl_as(identity, true, &["-d", message], &[&format!("assay.v1.{method}")])
    };
    let refused = call("pki/source", "RestoreService/OpenRestore");
    assert!(refused.stderr.contains("this call needs the role restore"), "{refused:?}");
    for method in ["TargetService/ListGenerations", "ReplicationService/OpenRun"] {
        let refused = call("pki/restore-bob", method);
        assert!(refused.code != 0 && refused.stderr.contains("this call needs the role"), "{refused:?}");
    }
    // Being listed for one repository says nothing of the others.
    let path = pair.path("target.toml");
    let text = fs::read_to_string(&path).expect("read");
    let other = "[[repository]]\nname = \"other\"\nsource = \"other\"\nsource_key = \"pki/source-signing.pub\"\n\
                 profile = \"generic\"\nvars = { check = [\"ls\"] }\nrestore = [\"eve\"]\n";
    fs::write(&path, text + other).expect("write");
    pair.kill("target");
    pair.start("target");
    for (identity, repository, why) in [
        (
            "restore-bob",
            "other",
            "there is no repository \"other\" on this target that restore 'bob' may restore",
        ),
        (
            "restore-eve",
            "repo",
            "there is no repository \"repo\" on this target that restore 'eve' may restore",
        ),
        ("restore-eve", "other", "no generation of other has passed its check"),
    ] {
        let done = restore_as(&pair, identity, &pair.path("back"), &[repository]);
        assert!(done.code != 0 && done.stderr.contains(why), "{identity}, {repository}: {done:?}");
        assert!(!pair.path("back").exists());
    }
    let unknown = restore(&pair, &pair.path("back"), &["--generation", "9"]);
    assert!(unknown.code == 2 && unknown.stderr.contains("repo has no generation 9"), "{unknown:?}");
}

/// Bytes that are not what was sealed do not come back, and the rest does; a manifest or a verdict that is not the one that was signed
/// stops it before anything is written.
#[test]
fn what_the_target_does_not_have_any_longer_is_named() {
    let pair = pair();
    fs::write(pair.root(0).join("good"), crate::noise(1, 100_000)).expect("write");
    fs::write(pair.root(0).join("rotten"), crate::noise(2, 300_000)).expect("write");
    pair.run(0);
    let tree = pair.generation("000001");
    let mut content = fs::read(tree.join("rotten")).expect("read");
    content[200_000] ^= 4;
    fs::write(tree.join("rotten"), content).expect("write");
    let back = pair.path("back");
    fs::create_dir(&back).expect("mkdir");
    fs::write(back.join("rotten"), "an older one").expect("write");
    let done = restore(&pair, &back, &["--onto-existing"]);
    assert_eq!(done.code, 1, "{done:?}");
    let report = json(done.stdout.lines().last().expect("a line"));
    assert_eq!((&report["lostFiles"], &report["lost"][0]["path"]), (&1.into(), &"rotten".into()), "{report}");
    assert!(
        report["lost"][0]["why"].as_str().is_some_and(|why| why.contains("is not what was sealed")),
        "{report}"
    );
    assert_eq!(fs::read(back.join("rotten")).expect("there"), b"an older one");
    assert_eq!(fs::read(back.join("good")).expect("there"), crate::noise(1, 100_000));

    let other = restore(&pair, &pair.path("nowhere"), &["--target-key", "pki/source-signing.pub"]);
    assert!(other.code == 4 && other.stderr.contains("is not believed"), "{other:?}");
    let manifest = pair.path("store/repo/generations/000001/manifest");
    let text = fs::read(&manifest).expect("read");
    let at = text.windows(4).rposition(|window| window == b"good").expect("the name");
    let mut changed = text.clone();
    changed[at] = b'f';
    fs::remove_file(&manifest).expect("remove");
    fs::write(&manifest, changed).expect("write");
    let forged = restore(&pair, &pair.path("nowhere"), &[]);
    assert!(forged.code == 4 && forged.stderr.contains("nothing was written"), "{forged:?}");
    assert!(!pair.path("nowhere").exists());
}

/// A generation that no check has passed comes back when that is said.
#[test]
fn what_was_not_verified_is_restored_on_request_only() {
    let pair = Pair::with_profile(
        "[[check]]\nname = \"judge\"\nargv = [\"sh\", \"-c\", \"grep -qx good {root}/file\"]\nfail_exit = [1]\n",
        "",
    );
    fs::write(pair.root(0).join("file"), "good").expect("write");
    pair.run(0);
    fs::write(pair.root(0).join("file"), "bad, and longer").expect("write");
    pair.run(1);
    let to = |name: &str| pair.path(name).to_str().expect("text").to_owned();
    let done = pair.target(&["restore", "--to", &to("newest")]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(fs::read(pair.path("newest/file")).expect("there"), b"good");
    let refused = pair.target(&["restore", "--generation", "2", "--to", &to("second")]);
    assert!(refused.code == 4 && refused.stderr.contains("its verdict is FAIL damage-found"), "{refused:?}");
    assert!(!pair.path("second").exists());
    let done = pair.target(&["restore", "--generation", "2", "--unverified", "--to", &to("second")]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(fs::read(pair.path("second/file")).expect("there"), b"bad, and longer");
}

/// A disk that is full is named; the same command goes on when there is room.
#[test]
fn a_full_disk_is_named_and_the_restore_goes_on_later() {
    let pair = pair();
    for number in 0..4 {
        fs::write(pair.root(0).join(format!("file{number}")), crate::noise(number, 1_000_000))
            .expect("write");
    }
    pair.run(0);
    let small = pair.path("small");
    fs::create_dir(&small).expect("mkdir");
    let mount = |options: &str| {
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&small).status();
        assert!(status.is_ok_and(|status| status.success()));
    };
    mount("size=2500k");
    let _unmounted = Unmount(&small);
    let done = restore(&pair, &small.join("back"), &[]);
    assert!(done.code == 4 && done.stderr.contains("make room and run the same command again"), "{done:?}");
    mount("remount,size=20m");
    let again = restored(&pair, &small.join("back"), &[]);
    assert!(again["fetchedBytes"].as_u64().is_some_and(|bytes| bytes < 3_000_000), "{again}");
    rsync_finds_no_difference(&pair.latest(), &small.join("back"));
}

/// A file system that takes nothing is named, with what to do, by both ways to restore.
#[test]
fn a_destination_that_cannot_be_written_to_is_named() {
    let pair = pair();
    fs::write(pair.root(0).join("file"), "x").expect("write");
    pair.run(0);
    let mounted = pair.path("read-only");
    fs::create_dir(&mounted).expect("mkdir");
    let mount = |options: &str| {
        let status =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&mounted).status();
        assert!(status.is_ok_and(|status| status.success()));
    };
    mount("size=1m");
    let _unmounted = Unmount(&mounted);
    fs::create_dir(mounted.join("empty")).expect("mkdir");
    mount("remount,ro,size=1m");
    for name in ["new", "empty"] {
        let to = mounted.join(name);
        for done in [restore(&pair, &to, &[]), pair.target(&["restore", "--to", to.to_str().expect("text")])]
        {
            assert_eq!(done.code, 4, "{name}: {done:?}");
            for part in [to.to_str().expect("text"), "Read-only file system", "HINT: ", "mounted read-only"] {
                assert!(done.stderr.contains(part), "{name}: {part:?} is not in {done:?}");
            }
        }
    }
}

struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(self.0).status());
    }
}
