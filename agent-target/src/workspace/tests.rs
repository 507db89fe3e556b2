use super::*;
use assay_common::manifest::{Entry, EntryKind, ExtendedAttribute};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

fn path(text: &str) -> TreePath {
    TreePath::parse(text.as_bytes()).expect("valid")
}

/// A temporary folder whose name holds what mount options are made of.
fn temp() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("a,b:c\\d e").tempdir().expect("temp")
}

fn options(temp: &Path, preference: Preference) -> WorkspaceOptions {
    let tree = temp.join("tree");
    fs::create_dir_all(tree.join("one/bin")).expect("mkdir");
    fs::create_dir_all(tree.join("two")).expect("mkdir");
    fs::write(tree.join("one/bin/file"), "old").expect("write");
    fs::write(tree.join("one/long"), "0123456789").expect("write");
    fs::hard_link(tree.join("one/long"), tree.join("one/hard")).expect("link");
    symlink("bin/file", tree.join("one/link")).expect("symlink");
    fs::set_permissions(&tree, fs::Permissions::from_mode(0o2750)).expect("chmod");
    let root = |name: &str| RootView {
        name: name.into(),
        live_path: Path::new("/opt").join(name),
        subdirectory: name.into(),
    };
    WorkspaceOptions {
        generation_tree: tree,
        roots: vec![root("one"), root("two")],
        directory: temp.join("workspaces"),
        preference,
        account: Account::DEFAULT,
        oddities: Oddities::default(),
        special_files: false,
    }
}

/// Everything that a check could notice or change, as text.
fn image(tree: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut folders = vec![tree.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("list") {
            let path = entry.expect("entry").path();
            let stat = fs::symlink_metadata(&path).expect("stat");
            let content = if stat.is_file() { fs::read(&path).expect("read") } else { Vec::new() };
            if stat.is_dir() {
                folders.push(path.clone());
            }
            let relative = path.strip_prefix(tree).expect("below");
            lines.push(format!(
                "{} {:o} {} {} {} {:?}",
                relative.display(),
                stat.mode(),
                stat.uid(),
                stat.mtime_nsec(),
                stat.nlink(),
                content
            ));
        }
    }
    let stat = fs::metadata(tree).expect("stat");
    lines.push(format!(". {:o} {} {}", stat.mode(), stat.uid(), stat.gid()));
    lines.sort();
    lines
}

/// The same, of a tree whose first root has the owner that a check is.
fn seen(tree: &Path) -> Vec<String> {
    let mut lines = image(tree);
    if rustix::process::geteuid().is_root() {
        let stat = fs::metadata(tree).expect("stat");
        let Account { uid, gid } = Account::DEFAULT;
        *lines.iter_mut().find(|line| line.starts_with(". ")).expect("the top") =
            format!(". {:o} {uid} {gid}", stat.mode());
    }
    lines
}

fn can_mount() -> bool {
    let temp = temp();
    let able = Workspace::create(&options(temp.path(), Preference::Overlay)).is_ok();
    if !able {
        eprintln!("overlays cannot be mounted here: what needs one is not tested");
    }
    able
}

/// A sealed generation is never written to, whatever the check does in its workspace.
#[test]
fn the_generation_stays_as_it_was() {
    for preference in [Preference::Auto, Preference::Copy] {
        let temp = temp();
        let options = options(temp.path(), preference);
        let sealed = image(&options.generation_tree);
        let mut workspace = Workspace::create(&options).expect("workspace");
        if preference == Preference::Copy {
            assert_eq!(workspace.kind(), WorkspaceKind::Copy);
        } else if can_mount() {
            assert_eq!(workspace.kind(), WorkspaceKind::Overlay);
        }
        let without_times = |lines: &[String]| -> Vec<String> {
            lines.iter().filter(|line| line.starts_with(['.'])).cloned().collect()
        };
        assert_eq!(
            without_times(&image(&workspace.path())),
            without_times(&seen(&options.generation_tree)),
            "the top folder's metadata"
        );
        let root = workspace.root_path("one").expect("root");
        fs::write(root.join("bin/file"), "new").expect("write");
        fs::set_permissions(root.join("bin"), fs::Permissions::from_mode(0o700)).expect("chmod");
        File::options().write(true).open(root.join("hard")).expect("open").set_len(3).expect("truncate");
        fs::remove_file(root.join("link")).expect("unlink");
        fs::write(workspace.path().join("two/new"), "new").expect("create");
        fs::rename(root.join("long"), workspace.path().join("moved")).expect("rename");
        fs::set_permissions(workspace.path(), fs::Permissions::from_mode(0o777)).expect("chmod");
        let source = temp.path().join("licence");
        fs::write(&source, "licence").expect("write");
        workspace.lay_file("one", &path("bin/file"), &source).expect("laid");
        assert_eq!(image(&options.generation_tree), sealed);
        workspace.remove().expect("removed");
        assert_eq!(image(&options.generation_tree), sealed);
        assert_eq!(fs::read_dir(temp.path().join("workspaces")).expect("list").count(), 0);
    }
}

#[test]
fn what_a_killed_agent_left_is_swept_and_nothing_else() {
    let temp = temp();
    let options = options(temp.path(), Preference::Auto);
    let sealed = image(&options.generation_tree);
    std::mem::forget(Workspace::create(&options).expect("workspace"));
    std::mem::forget(Workspace::create(&WorkspaceOptions {
        preference: Preference::Copy,
        ..options.clone()
    }));
    let directory = temp.path().join("workspaces");
    symlink(&options.generation_tree, directory.join("ws-link")).expect("symlink");
    fs::write(directory.join("other"), "kept").expect("write");
    assert_eq!(sweep(&directory).expect("swept"), 3);
    assert_eq!(
        mounts_below(&fs::canonicalize(temp.path()).expect("real")).expect("mounts"),
        [] as [PathBuf; 0]
    );
    let left: Vec<_> =
        fs::read_dir(&directory).expect("list").map(|it| it.expect("entry").file_name()).collect();
    assert_eq!(left, ["other"]);
    assert_eq!(image(&options.generation_tree), sealed);
    assert_eq!(sweep(&temp.path().join("none")).expect("nothing to do"), 0);
}

/// A check that ends takes its workspace away while the agent, told to stop, takes all of them away.
#[test]
fn a_workspace_that_two_remove_at_a_time_is_gone_and_no_error() {
    let temp = temp();
    let options = options(temp.path(), Preference::Auto);
    let directory = temp.path().join("workspaces");
    for _ in 0..20 {
        let workspace = Workspace::create(&options).expect("workspace");
        let (removed, swept) = std::thread::scope(|scope| {
            let removed = scope.spawn(|| workspace.remove());
            let swept = scope.spawn(|| sweep(&directory));
            (removed.join().expect("no panic"), swept.join().expect("no panic"))
        });
        removed.expect("removed");
        swept.expect("swept");
        assert_eq!(fs::read_dir(&directory).expect("list").count(), 0);
    }
}

#[test]
fn a_workspace_that_is_dropped_leaves_nothing() {
    let temp = temp();
    drop(Workspace::create(&options(temp.path(), Preference::Auto)).expect("workspace"));
    assert_eq!(fs::read_dir(temp.path().join("workspaces")).expect("list").count(), 0);
}

#[test]
fn an_overlay_file_belongs_to_the_roots_owner_and_only_to_it() {
    let temp = temp();
    let options = options(temp.path(), Preference::Auto);
    let mut owner =
        Account { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
    if owner.uid == 0 {
        std::os::unix::fs::chown(options.generation_tree.join("one"), Some(1234), Some(4321)).expect("chown");
        owner = Account::DEFAULT;
    }
    let mut workspace = Workspace::create(&options).expect("workspace");
    let source = temp.path().join("licence");
    fs::write(&source, "licence").expect("write");
    let laid = workspace.lay_file("one", &path("bin/keys.txt"), &source).expect("laid");
    assert_eq!(laid.digest, blake3::hash(b"licence").to_hex().as_str());
    assert_eq!(workspace.digest_of("one", &path("bin/keys.txt")).expect("there"), Some(laid));
    let stat = fs::metadata(workspace.path().join("one/bin/keys.txt")).expect("stat");
    assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o7777), (owner.uid, owner.gid, 0o600));
    assert!(workspace.lay_file("one", &path("none/keys.txt"), &source).is_err(), "its folder must be there");
    assert!(workspace.lay_file("one", &path("bin"), &source).is_err(), "a folder is not replaced");
    assert!(workspace.lay_file("three", &path("keys.txt"), &source).is_err());
    assert_eq!(workspace.digest_of("one", &path("none")).expect("not there"), None);
    workspace.remove().expect("removed");
}

/// A hostile source could send a link where a root folder is expected.
#[test]
fn a_link_is_no_root_and_no_way_to_one() {
    let temp = temp();
    let options = options(temp.path(), Preference::Auto);
    fs::remove_dir(options.generation_tree.join("two")).expect("rmdir");
    symlink("/etc", options.generation_tree.join("two")).expect("symlink");
    assert!(matches!(Workspace::create(&options), Err(WorkspaceError::Root { name, .. }) if name == "two"));
    assert_eq!(fs::read_dir(temp.path().join("workspaces")).expect("list").count(), 0);
}

#[test]
fn escapes_of_the_mount_table_are_undone() {
    assert_eq!(unescape(b"/a\\040b\\134c"), Path::new("/a b\\c"));
    assert_eq!(unescape(b"/a\\"), Path::new("/a\\"));
}

/// No other user enters the folder of workspaces, also where an earlier version left it open, and what is in a workspace is
/// on a mount on which no program changes its user and no device works.
#[test]
fn workspaces_are_closed_and_tame() {
    let temp = temp();
    let options = options(temp.path(), Preference::Auto);
    let mode = |path: &Path| fs::metadata(path).expect("stat").mode() & 0o7777;
    fs::create_dir(&options.directory).expect("mkdir");
    fs::set_permissions(&options.directory, fs::Permissions::from_mode(0o711)).expect("chmod");
    sweep(&options.directory).expect("swept");
    assert_eq!(mode(&options.directory), 0o700);
    for preference in [Preference::Auto, Preference::Copy] {
        fs::set_permissions(&options.directory, fs::Permissions::from_mode(0o711)).expect("chmod");
        let workspace =
            Workspace::create(&WorkspaceOptions { preference, ..options.clone() }).expect("workspace");
        assert_eq!(mode(&options.directory), 0o700);
        assert_eq!(mode(&workspace.directory), 0o700);
        if rustix::process::geteuid().is_root() {
            for folder in workspace.writable().into_iter().chain([workspace.path()]) {
                let flags = rustix::fs::statvfs(&folder).expect("statvfs").f_flag;
                let wanted = rustix::fs::StatVfsMountFlags::NOSUID | rustix::fs::StatVfsMountFlags::NODEV;
                assert!(flags.contains(wanted), "{}: {flags:?}", folder.display());
            }
        }
        workspace.remove().expect("removed");
    }
}

/// What a copy has of set-id bits, devices, FIFOs and sockets is not in a workspace, whichever kind it is.
#[test]
fn special_files_and_set_id_bits_stay_out() {
    let temp = temp();
    let options = options(temp.path(), Preference::Auto);
    let tree = options.generation_tree.join("one");
    let mut oddities = Oddities::default();
    let mut make = |name: &str, kind: FileType, entry: EntryKind, device: (u32, u32)| {
        let number = rustix::fs::makedev(device.0, device.1);
        rustix::fs::mknodat(rustix::fs::CWD, tree.join(name), kind, Mode::from_raw_mode(0o666), number)
            .expect("mknod");
        let (device_major, device_minor) = device;
        let entry = Entry { kind: entry.into(), device_major, device_minor, ..Default::default() };
        oddities.add(&path(&format!("one/{name}")), &entry);
    };
    make("fifo", FileType::Fifo, EntryKind::Fifo, (0, 0));
    make("socket", FileType::Socket, EntryKind::Socket, (0, 0));
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        make("null", FileType::CharacterDevice, EntryKind::CharDevice, (1, 3));
    }
    fs::hard_link(tree.join("fifo"), tree.join("fifo-2")).expect("link");
    let link =
        Entry { kind: EntryKind::Hardlink.into(), link_target: b"one/fifo".to_vec(), ..Default::default() };
    oddities.add(&path("one/fifo-2"), &link);
    fs::write(tree.join("shell"), "x").expect("write");
    fs::set_permissions(tree.join("shell"), fs::Permissions::from_mode(0o6755)).expect("chmod");
    let sealed = image(&options.generation_tree);
    for preference in [Preference::Auto, Preference::Copy] {
        for special_files in [false, true] {
            let options =
                WorkspaceOptions { preference, oddities: oddities.clone(), special_files, ..options.clone() };
            let workspace = Workspace::create(&options).expect("workspace");
            let root = workspace.root_path("one").expect("root");
            for name in ["fifo", "fifo-2", "socket"] {
                assert_eq!(
                    root.join(name).symlink_metadata().is_ok(),
                    special_files,
                    "{preference:?} {name}"
                );
            }
            let null_is_there = root.join("null").exists();
            assert!(!null_is_there || special_files && workspace.kind() == WorkspaceKind::Overlay);
            assert!(root.join("bin/file").exists());
            if workspace.kind() == WorkspaceKind::Copy {
                assert_eq!(fs::metadata(root.join("shell")).expect("stat").mode() & 0o7777, 0o755);
            }
            workspace.remove().expect("removed");
        }
    }
    assert_eq!(image(&options.generation_tree), sealed);
}

/// What an overlay would take for its own words is seen as it is: the tree is copied instead.
#[test]
fn no_overlay_is_laid_over_its_own_words() {
    let temp = temp();
    let options = options(temp.path(), Preference::Auto);
    if !can_mount() {
        return;
    }
    let whiteout = Entry { kind: EntryKind::CharDevice.into(), ..Default::default() };
    let attribute = |name: &str| Entry {
        kind: EntryKind::Directory.into(),
        xattrs: vec![ExtendedAttribute { name: name.as_bytes().to_vec(), value: b"y".to_vec() }],
        ..Default::default()
    };
    for entry in [whiteout, attribute("trusted.overlay.opaque"), attribute("user.overlay.whiteout")] {
        let mut oddities = Oddities::default();
        oddities.add(&path("one/x"), &entry);
        let options = WorkspaceOptions { oddities, ..options.clone() };
        let workspace = Workspace::create(&options).expect("workspace");
        assert_ne!(workspace.kind(), WorkspaceKind::Overlay, "{entry:?}");
        drop(workspace);
        let overlay = WorkspaceOptions { preference: Preference::Overlay, ..options };
        let error = Workspace::create(&overlay).expect_err("refused").to_string();
        assert!(error.contains("one/x"), "{error}");
    }
    let mut harmless = Oddities::default();
    harmless.add(&path("one/x"), &attribute("user.mime_type"));
    let workspace =
        Workspace::create(&WorkspaceOptions { oddities: harmless, ..options }).expect("workspace");
    assert_eq!(workspace.kind(), WorkspaceKind::Overlay);
}

/// Whoever owns the root on the disk, the check is its owner in the workspace; others' files are nobody's here.
#[test]
fn owners_are_seen_as_the_check_and_as_nobody() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    for preference in [Preference::Auto, Preference::Copy] {
        let temp = temp();
        let options = options(temp.path(), preference);
        let tree = options.generation_tree.join("one");
        let own =
            |path: &Path, uid, gid| std::os::unix::fs::chown(path, Some(uid), Some(gid)).expect("chown");
        own(&tree, 101, 103);
        own(&tree.join("bin"), 0, 0);
        own(&tree.join("long"), 65_530, 7);
        let workspace = Workspace::create(&options).expect("workspace");
        let root = workspace.root_path("one").expect("root");
        let owner = |name: &str| {
            let stat = fs::symlink_metadata(root.join(name)).expect("stat");
            (stat.uid(), stat.gid())
        };
        let others = 1_u32 << 31;
        assert_eq!(owner(""), (65_530, 65_530), "{preference:?}");
        assert_eq!(owner("bin"), (others, others), "{preference:?}");
        assert_eq!(owner("long"), (others + 65_530, others + 7), "{preference:?}");
    }
}

/// Where a file system maps no owners, what the check sees belongs to it: metadata is copied up by an overlay, and a copy is
/// given away.
#[test]
fn without_mapped_owners_the_workspace_is_the_checks() {
    if !rustix::process::geteuid().is_root() || !can_mount() {
        return;
    }
    let temp = tempfile::tempdir().expect("temp");
    let at = |name: &str| temp.path().join(name);
    for name in ["empty", "upper", "work", "host"] {
        fs::create_dir(at(name)).expect("mkdir");
    }
    // An overlay maps no owners itself.
    let layers = format!(
        "lowerdir={},upperdir={},workdir={}",
        at("empty").display(),
        at("upper").display(),
        at("work").display()
    );
    let layers = std::ffi::CString::new(layers).expect("plain");
    rustix::mount::mount("overlay", at("host"), "overlay", MountFlags::empty(), layers.as_c_str())
        .expect("mount");
    let mut options = options(&at("host"), Preference::Auto);
    std::os::unix::fs::chown(options.generation_tree.join("two"), Some(77), Some(77)).expect("chown");
    let sealed = image(&options.generation_tree);
    let looked = |options: &WorkspaceOptions, expected: WorkspaceKind| {
        let workspace = Workspace::create(options).expect("workspace");
        assert_eq!(workspace.kind(), expected);
        for name in ["", "one/bin/file", "one/link", "two"] {
            let stat = fs::symlink_metadata(workspace.path().join(name)).expect("stat");
            assert_eq!((stat.uid(), stat.gid()), (65_530, 65_530), "{name}");
        }
        let upper = workspace.directory.join("layers/upper/one/bin/file");
        if let Ok(stat) = fs::metadata(upper) {
            assert_eq!(stat.blocks(), 0, "no content is copied up");
        }
    };
    looked(&WorkspaceOptions { directory: at("workspaces"), ..options.clone() }, WorkspaceKind::Overlay);
    looked(&options, WorkspaceKind::Copy);
    assert_eq!(image(&options.generation_tree), sealed);
    options.generation_tree = PathBuf::new();
    rustix::mount::unmount(at("host"), UnmountFlags::DETACH).expect("unmount");
}
