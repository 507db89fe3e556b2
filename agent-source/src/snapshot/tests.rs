use std::{fs, os::unix::fs::PermissionsExt as _};

use super::*;

/// A folder of programs that stand for those of LVM and ZFS: this kernel may have neither. They write down how they were called.
struct Programs {
    folder: tempfile::TempDir,
}

impl Programs {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("temp") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A program that runs `script` after it has written down its arguments.
    fn add(&self, name: &str, script: &str) -> String {
        let (program, calls) = (self.path(name), self.path("calls"));
        fs::write(&program, format!("#!/bin/sh\necho {name} \"$@\" >> {}\n{script}\n", calls.display()))
            .expect("write");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("chmod");
        program.display().to_string()
    }

    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

fn settings(way: Way) -> Settings {
    Settings { way, timeout: Duration::from_secs(60), min_free_percent: 0 }
}

/// One live root with a file, and the folder that snapshots go to.
fn live(programs: &Programs) -> (LiveRoot, PathBuf) {
    let (path, to) = (programs.path("live"), programs.path("to"));
    fs::create_dir_all(&path).expect("mkdir");
    fs::create_dir_all(&to).expect("mkdir");
    fs::write(path.join("file"), "content").expect("write");
    let inode = path.metadata().expect("stat").ino();
    (LiveRoot { name: "main".to_owned(), path, inode }, to)
}

/// What comes of making a snapshot, and of removing it.
async fn made_and_removed(
    programs: &Programs,
    way: Way,
    cancel: &CancellationToken,
) -> (Result<String, SnapshotError>, Result<(), SnapshotError>) {
    let ((root, to), note) = (live(programs), programs.path("note"));
    let mut held = None;
    let made = make((&settings(way), &note), "app-1", ("/".into(), &[root]), &mut held, cancel).await;
    assert!(note.exists(), "it is noted whatever comes of it");
    let made = made.map(|snapshot| {
        assert_eq!(snapshot.folders[0].names().expect("list"), [b"file"]);
        assert_eq!(fs::read_dir(&to).expect("list").count(), 1);
        snapshot.description
    });
    (made, remove(held.expect("it was begun"), &note).await)
}

/// A token that is cancelled as soon as the file exists, and the task that looks for it.
fn cancel_once_there_is(file: PathBuf) -> (CancellationToken, tokio::task::JoinHandle<()>) {
    let cancel = CancellationToken::new();
    let token = cancel.clone();
    let watch = tokio::spawn(async move {
        while !file.exists() {
            tokio::task::yield_now().await;
        }
        token.cancel();
    });
    (cancel, watch)
}

fn copying(programs: &Programs) -> Way {
    let to = programs.path("to");
    Way::Command {
        create: vec![
            programs.add("create", "cp -a \"$2\" \"$3/$1\""),
            "{mark_id}".into(),
            "{root}".into(),
            to.display().to_string(),
        ],
        remove: vec![
            programs.add("remove", "rm -rf \"$2/$1\""),
            "{mark_id}".into(),
            to.display().to_string(),
        ],
        path: format!("{}/{{mark_id}}", to.display()),
    }
}

#[tokio::test]
async fn a_command_makes_it_and_another_removes_it() {
    let programs = Programs::new();
    let way = copying(&programs);
    let (made, removed) = made_and_removed(&programs, way, &CancellationToken::new()).await;
    assert_eq!(made.expect("made"), "command snapshot assay-app-1");
    removed.expect("removed");
    let (live, to) = (programs.path("live"), programs.path("to"));
    let calls = [
        format!("create assay-app-1 {} {}", live.display(), to.display()),
        format!("remove assay-app-1 {}", to.display()),
    ];
    assert_eq!(programs.calls(), calls);
    assert!(!programs.path("note").exists() && fs::read_dir(to).expect("list").next().is_none());
}

/// The agent removes a part of a snapshot, too, and deletes the note only when nothing is left.
#[tokio::test]
async fn a_snapshot_that_failed_half_way_is_removed() {
    let programs = Programs::new();
    let mut way = copying(&programs);
    let Way::Command { create, remove: take_away, .. } = &mut way else { unreachable!() };
    create[0] = programs.add("half", "cp -a \"$2\" \"$3/$1\"; echo no room >&2; exit 5");
    let removing = take_away[0].clone();
    let go_on = CancellationToken::new();
    let (made, removed) = made_and_removed(&programs, way.clone(), &go_on).await;
    removed.expect("removed");
    let error = made.expect_err("exit 5").to_string();
    assert!(error.contains("no room") && error.contains("exit status: 5"), "{error}");
    assert!(!programs.path("note").exists());
    assert!(fs::read_dir(programs.path("to")).expect("list").next().is_none());
    // The removal fails as well.
    let Way::Command { remove: take_away, .. } = &mut way else { unreachable!() };
    take_away[0] = programs.add("stuck", "exit 7");
    let (_, removed) = made_and_removed(&programs, way, &go_on).await;
    removed.expect_err("it is stuck");
    let note = programs.path("note");
    assert!(note.exists(), "it is still there, and noted");
    let error = remove_left_over(&note).await.expect_err("still stuck").to_string();
    assert!(error.contains("exit status: 7") && note.exists(), "{error}");
    // The operator mends it.
    fs::copy(removing, programs.path("stuck")).expect("copy");
    remove_left_over(&note).await.expect("removed");
    assert!(!note.exists() && fs::read_dir(programs.path("to")).expect("list").next().is_none());
    remove_left_over(&note).await.expect("nothing to do");
}

/// A signal does not end a command that is at work in the kernel: its snapshot appears later, and the agent removes it.
#[tokio::test]
async fn a_snapshot_that_appears_after_its_command_was_killed_is_removed() {
    let programs = Programs::new();
    let mut way = copying(&programs);
    let Way::Command { create, .. } = &mut way else { unreachable!() };
    // A child in a group of its own is not killed with the command. It works until the test lets it go.
    let (started, go) = (programs.path("started"), programs.path("go"));
    let child = format!("while ! [ -e {} ]; do :; done; cp -a $2 $3/$1", go.display());
    let script = format!("setsid sh -c '{child}' sh \"$1\" \"$2\" \"$3\" & : > {}; wait", started.display());
    create[0] = programs.add("slow", &script);
    let ((root, to), note) = (live(&programs), programs.path("note"));
    let (cancel, watch) = cancel_once_there_is(started);
    let mut held = None;
    let given_up = make((&settings(way), &note), "app-1", ("/".into(), &[root]), &mut held, &cancel).await;
    assert!(given_up.is_err() && fs::read_dir(&to).expect("list").next().is_none());
    watch.await.expect("no panic");
    let removing = tokio::spawn({
        let note = note.clone();
        async move { remove(held.expect("begun"), &note).await }
    });
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!removing.is_finished() && note.exists());
    fs::write(go, "").expect("write");
    removing.await.expect("no panic").expect("removed");
    assert!(!note.exists() && fs::read_dir(&to).expect("list").next().is_none());
}

/// Where the folder's file system is not mounted, the snapshot does not show, and is there.
#[tokio::test]
async fn a_snapshot_on_a_file_system_that_is_not_mounted_stays_noted() {
    let programs = Programs::new();
    let (root, to) = live(&programs);
    let note = programs.path("note");
    for (folder, folder_is_on) in [
        (to.clone(), "fsid:btrfs:0000000000000001".to_owned()),
        (programs.path("gone"), "fsid:btrfs:0000000000000001".to_owned()),
    ] {
        let held = Held {
            name: "assay-app-1".into(),
            settings: settings(Way::Btrfs { folder }),
            top: "/".into(),
            first_root: root.path.clone(),
            folder_is_on: Some(folder_is_on),
            lock: None,
        };
        fs::write(&note, serde_json::to_vec(&held).expect("text")).expect("write");
        remove_left_over(&note).await.expect_err("it cannot be seen");
        assert!(note.exists());
    }
}

/// A path that leads to the live files is no snapshot, whatever the command did.
#[tokio::test]
async fn the_live_root_is_no_snapshot_of_itself() {
    let programs = Programs::new();
    let way =
        Way::Command { create: vec!["true".into()], remove: vec!["true".into()], path: "{root}".into() };
    let (root, _) = live(&programs);
    let (mut held, note) = (None, programs.path("note"));
    let (settings, cancel) = (settings(way), CancellationToken::new());
    let made = make((&settings, &note), "app-1", ("/".into(), &[root]), &mut held, &cancel).await;
    assert!(matches!(made, Err(SnapshotError::Live { .. })), "{made:?}");
    remove(held.expect("begun"), &note).await.expect("removed");
}

#[tokio::test]
async fn a_run_that_is_cancelled_leaves_none() {
    let programs = Programs::new();
    let mut way = copying(&programs);
    let Way::Command { create, .. } = &mut way else { unreachable!() };
    let started = programs.path("started");
    create[0] = programs
        .add("slow", &format!("cp -a \"$2\" \"$3/$1\"; : > {}; exec sleep infinity", started.display()));
    let (cancel, watch) = cancel_once_there_is(started);
    let (given_up, removed) = made_and_removed(&programs, way, &cancel).await;
    assert!(matches!(given_up, Err(SnapshotError::Command(CommandError::Cancelled { .. }))), "{given_up:?}");
    removed.expect("removed");
    let (note, to) = (programs.path("note"), programs.path("to"));
    watch.await.expect("no panic");
    assert!(!note.exists() && fs::read_dir(to).expect("list").next().is_none());
}

/// A command outlives the agent that started it: what it makes is removed when it has ended, and not before it is there.
#[tokio::test]
async fn a_command_that_outlives_its_agent_is_waited_for() {
    let programs = Programs::new();
    let (root, to) = live(&programs);
    let note = programs.path("note");
    let held = Held {
        name: "assay-app-1".into(),
        settings: settings(copying(&programs)),
        top: "/".into(),
        first_root: root.path.clone(),
        folder_is_on: None,
        lock: None,
    };
    fs::write(&note, serde_json::to_vec(&held).expect("text")).expect("write");
    let lock = File::open(&note).expect("open");
    flock(&lock, FlockOperation::LockShared).expect("lock");
    // The agent is gone, and the command is not done.
    let go = programs.path("go");
    let made = to.join("assay-app-1");
    let script = format!("while ! [ -e {} ]; do :; done; mkdir {}", go.display(), made.display());
    let mut command = std::process::Command::new("sh").args(["-c", &script]).stdin(lock).spawn().expect("sh");
    let waiting = tokio::spawn({
        let note = note.clone();
        async move { remove_left_over(&note).await }
    });
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!waiting.is_finished() && note.exists());
    fs::write(&go, "").expect("write");
    waiting.await.expect("no panic").expect("removed");
    assert!(command.wait().expect("wait").success());
    assert!(!made.exists() && !note.exists());
}

#[tokio::test]
async fn a_note_of_somebody_else_removes_nothing() {
    let programs = Programs::new();
    let note = programs.path("note");
    let kept = |name: &str| Held {
        name: name.to_owned(),
        settings: settings(copying(&programs)),
        top: "/".into(),
        first_root: "/srv".into(),
        folder_is_on: None,
        lock: None,
    };
    let texts = [
        "{".to_owned(),
        "[]".to_owned(),
        serde_json::to_string(&kept("../live")).expect("text"),
        serde_json::to_string(&kept("assay-/../../live")).expect("text"),
    ];
    for text in texts {
        fs::write(&note, &text).expect("write");
        let error = remove_left_over(&note).await.expect_err(&text);
        assert!(matches!(error, SnapshotError::Note { .. }) && note.exists(), "{text}: {error}");
    }
    assert!(programs.calls().is_empty());
}

#[test]
fn the_top_of_a_root_is_where_its_file_system_is_mounted() {
    assert_eq!(top_of(Path::new("/proc/sys/kernel")).expect("stat"), Path::new("/proc"));
    assert_eq!(top_of(Path::new("/")).expect("stat"), Path::new("/"));
    assert!(top_of(Path::new("/no/such/folder")).is_err());
}

/// The commands of LVM and ZFS, as their manuals have them.
#[test]
fn each_kind_says_where_a_root_is_in_its_snapshot() {
    let root = |path: &str| LiveRoot { name: "main".into(), path: path.into(), inode: 2 };
    let held = |way| Held {
        name: "assay-a-1".into(),
        settings: settings(way),
        top: "/srv".into(),
        first_root: "/srv/a".into(),
        folder_is_on: None,
        lock: None,
    };
    let lvm =
        held(Way::Lvm { volume: "vg0/data".into(), size: "1g".into(), folder: "/run/snapshots".into() });
    let zfs = held(Way::Zfs { dataset: "tank/srv".into() });
    let btrfs = held(Way::Btrfs { folder: "/srv/.snapshots".into() });
    for (held, path, expected) in [
        (&lvm, "/srv/a/b", "/run/snapshots/assay-a-1/a/b"),
        (&lvm, "/srv", "/run/snapshots/assay-a-1"),
        (&zfs, "/srv/a", "/srv/.zfs/snapshot/assay-a-1/a"),
        (&btrfs, "/srv/a", "/srv/.snapshots/assay-a-1/a"),
        (&btrfs, "/srv", "/srv/.snapshots/assay-a-1"),
    ] {
        let found = held.path_of(&root(path)).expect("a path");
        assert_eq!(found.as_os_str(), expected, "{path}");
    }
    assert_eq!(lvm.device("vg0/data"), Path::new("/dev/vg0/assay-a-1"));
}
