//! What other users of a host get of the store and of the source's state: nothing.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::Command,
};

use crate::pair::{Done, Pair, done};

/// Runs a command as a user who owns nothing.
fn as_nobody(arguments: &[&str]) -> Done {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).args(arguments);
    done(&mut command)
}

/// Everything below `folder` that its mode lets others into; trees have the modes of the live repositories, links have none.
fn open_to_others(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("list") {
        let entry = entry.expect("entry");
        let stat = entry.metadata().expect("stat");
        if stat.is_symlink() || ["tree", "workspaces"].iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        if stat.mode() & 0o077 != 0 {
            found.push(format!("{:o} {}", stat.mode() & 0o7777, entry.path().display()));
        }
        if stat.is_dir() {
            open_to_others(&entry.path(), found);
        }
    }
}

/// As version 0.1 left it.
fn leave_open(pair: &Pair) {
    let chmod = |path: &str, mode| {
        fs::set_permissions(pair.path(path), fs::Permissions::from_mode(mode)).expect("chmod");
    };
    for folder in ["store", "store/repo", "store/repo/workspaces"] {
        chmod(folder, 0o711);
    }
    for folder in
        ["store/repo/generations/000001", "state", "state/repo", "state/repo/runs", "state/repo/basis"]
    {
        chmod(folder, 0o755);
    }
    for file in [
        "store/repo/lock",
        "store/repo/index.redb",
        "store/repo/index.journal",
        "store/repo/generations/000001/manifest",
        "store/repo/generations/000001/record.json",
        "state/lock",
        "state/repo/basis/manifest",
    ] {
        chmod(file, 0o644);
    }
}

#[test]
fn nobody_else_reads_the_store_or_holds_its_lock() {
    assert!(rustix::process::geteuid().is_root(), "this test becomes another user: run it as root");
    let pair = Pair::plain(1);
    // The way to the store is open; what is looked at is the store.
    fs::set_permissions(pair.path("."), fs::Permissions::from_mode(0o755)).expect("chmod");
    fs::write(pair.root(0).join("secret"), "a name that is not to leak").expect("write");
    pair.run(0);
    let attack = || {
        let mut open = Vec::new();
        open_to_others(&pair.path("store"), &mut open);
        open_to_others(&pair.path("state"), &mut open);
        assert!(open.is_empty(), "open to others: {open:#?}");
        for lock in ["store/repo/lock", "state/lock"] {
            let path = pair.path(lock).display().to_string();
            let held = as_nobody(&["flock", "--nonblock", &path, "true"]);
            assert!(held.code != 0 && held.stderr.contains("Permission denied"), "{lock}: {held:?}");
        }
        for path in [
            "store",
            "store/repo",
            "store/repo/index.redb",
            "store/repo/workspaces",
            "state/repo/basis/manifest",
        ] {
            let path = pair.path(path).display().to_string();
            let listed = as_nobody(&["cat", &path]);
            assert!(
                listed.stdout.is_empty() && listed.stderr.contains("Permission denied"),
                "{path}: {listed:?}"
            );
        }
    };
    attack();
    for role in ["target", "source"] {
        pair.kill(role);
    }
    leave_open(&pair);
    for role in ["target", "source"] {
        pair.start(role);
    }
    attack();
    pair.run(0);
    attack();
}

/// Whoever opens a FIFO waits for ever: an agent that finds one among its own files does not start, and names it.
#[test]
fn a_fifo_among_an_agents_own_files_is_refused_by_name() {
    let pair = Pair::plain(1);
    fs::write(pair.root(0).join("file"), "x").expect("write");
    pair.run(0);
    for (role, files) in [
        (
            "target",
            &[
                "store/repo/lock",
                "store/repo/index.redb",
                "store/repo/index.journal",
                "store/repo/control.json",
                "store/repo/ledger.reserve",
                "pki/ca.crt",
                "pki/target.key",
            ][..],
        ),
        (
            "source",
            &[
                "state/lock",
                "state/repo/roots.json",
                "state/repo/basis/manifest",
                "state/repo/mark.held",
                "pki/source-signing.key",
            ][..],
        ),
    ] {
        for file in files {
            pair.kill(role);
            let (path, kept) = (pair.path(file), pair.path("kept"));
            let was_there = fs::rename(&path, &kept).is_ok();
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).expect("mkfifo");
            let refused = pair.refused_start(role);
            assert!(
                refused.code != 0 && refused.stderr.contains(&path.display().to_string()),
                "{file}: {refused:?}"
            );
            fs::remove_file(&path).expect("remove");
            if was_there {
                fs::rename(&kept, &path).expect("rename");
            }
            pair.start(role);
        }
    }
    pair.run(0);
}
