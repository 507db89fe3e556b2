//! Metadata is exact in both directions, on every file system that a tree or a store may be on.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::Path,
    process::Command,
};

use rustix::fs::{XattrFlags, lgetxattr, llistxattr, lsetxattr};

use crate::{file_systems::Kind, pair::Pair};

fn setfacl(arguments: &[&str], path: &Path) {
    let done =
        Command::new("setfacl").args(arguments).arg(path).output().expect("setfacl is installed by ./test");
    assert!(done.status.success(), "setfacl {arguments:?}: {done:?}");
}

/// Every entry with its mode, owner, time and attributes, ACLs among them. Without the names under which XFS lists its ACLs again:
/// they are there because it is XFS.
pub(crate) fn described(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let stat = path.symlink_metadata().expect("stat");
        let mut names = vec![0; 64 * 1024];
        let length = llistxattr(&path, names.as_mut_slice()).unwrap_or(0);
        let mut attributes = Vec::new();
        for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let mut value = vec![0; 64 * 1024];
            if let (false, Ok(length)) =
                (name.starts_with(b"trusted.SGI_ACL"), lgetxattr(&path, name, value.as_mut_slice()))
            {
                let value = blake3::hash(&value[..length]).to_hex();
                attributes.push(format!("{}={value}", String::from_utf8_lossy(name)));
            }
        }
        attributes.sort();
        lines.push(format!(
            "{:?} {:o} {}:{} {}.{:09} {attributes:?}",
            path.strip_prefix(root).expect("below"),
            stat.mode(),
            stat.uid(),
            stat.gid(),
            stat.mtime(),
            stat.mtime_nsec()
        ));
        if stat.is_dir() {
            open.extend(fs::read_dir(&path).expect("read").map(|entry| entry.expect("entry").path()));
        }
    }
    lines.sort();
    lines
}

fn is_exact(pair: &Pair) {
    assert_eq!(described(&pair.root(0)), described(&pair.latest()));
}

/// Waits until the next tree is laid out: a run changes that one then.
fn wait_for_next_tree(pair: &Pair) {
    pair.eventually("the next tree is laid out", || pair.path("store/repo/ahead/of").exists());
}

/// ACLs come, change, go and are inherited, at the source, in the store and where a generation is restored, and none is in a
/// generation or in a restored tree that is not at the source.
fn acls_are_exact(root: Kind, store: Kind) {
    let pair = Pair::on(root, store);
    let live = pair.root(0);
    let at = |name: &str| live.join(name);
    // Whatever is made in the store inherits this.
    setfacl(&["-R", "-m", "d:u:1234:rwx,u:1234:rwx"], &pair.path("store"));
    for folder in ["shared", "shared/inner", "plain", "salaries"] {
        fs::create_dir(at(folder)).expect("mkdir");
        fs::write(at(folder).join("file"), folder).expect("write");
    }
    fs::set_permissions(at("salaries"), Permissions::from_mode(0o750)).expect("chmod");
    setfacl(&["-m", "d:u:99:rwx,u:99:rwx,g:7:r-x"], &at("shared"));
    setfacl(&["-m", "u:7:rw"], &at("plain/file"));
    fs::hard_link(at("plain/file"), at("plain/name")).expect("link");
    lsetxattr(at("plain"), "user.note", b"a", XattrFlags::empty()).expect("xattr");
    assert_eq!(pair.run(0)["outcome"], "OUTCOME_PASS");
    is_exact(&pair);

    wait_for_next_tree(&pair);
    // A folder that moves below a default ACL keeps its own; new ones are stripped of what they inherit.
    fs::rename(at("salaries"), at("shared/salaries")).expect("rename");
    fs::create_dir(at("shared/private")).expect("mkdir");
    fs::write(at("shared/private/key"), "secret").expect("write");
    fs::write(at("shared/inherits"), "x").expect("write");
    setfacl(&["-R", "-b", "-k"], &at("shared/private"));
    fs::set_permissions(at("shared/private/key"), Permissions::from_mode(0o600)).expect("chmod");
    setfacl(&["-b"], &at("plain/file"));
    setfacl(&["-m", "u:8:r"], &at("plain"));
    assert_eq!(pair.run(0)["outcome"], "OUTCOME_PASS");
    is_exact(&pair);

    wait_for_next_tree(&pair);
    setfacl(&["-b", "-k"], &at("shared"));
    setfacl(&["-b"], &at("plain"));
    setfacl(&["-m", "d:g:5:rx"], &at("plain"));
    rustix::fs::lremovexattr(at("plain"), "user.note").expect("xattr");
    chown(at("shared/inherits"), Some(5), Some(6)).expect("chown");
    assert_eq!(pair.run(0)["outcome"], "OUTCOME_PASS");
    is_exact(&pair);

    // Restored below a default ACL, and over a tree whose ACLs are others.
    let back = pair.path("back");
    fs::create_dir(&back).expect("mkdir");
    setfacl(&["-m", "d:u:55:rwx,u:55:rwx"], &back);
    let to = back.join("tree");
    let restore = |further: &[&str]| {
        let place = to.to_str().expect("text");
        let done = pair.target(&[&["restore", "--to", place], further].concat());
        assert_eq!(done.code, 0, "{done:?}");
        assert_eq!(described(&live), described(&to));
    };
    restore(&[]);
    setfacl(&["-m", "d:u:56:rwx,u:56:rwx"], &to.join("plain"));
    setfacl(&["-R", "-m", "u:56:rwx"], &to.join("shared"));
    lsetxattr(to.join("shared"), "user.more", b"a", XattrFlags::empty()).expect("xattr");
    fs::remove_file(to.join("plain/file")).expect("remove");
    restore(&["--onto-existing", "--delete"]);
}

#[test]
fn acls_are_exact_on_ext4() {
    acls_are_exact(Kind::Ext4, Kind::Ext4);
}

/// XFS lists an ACL twice, and a store on it has the second list although the live tree has none.
#[test]
fn acls_are_exact_on_xfs() {
    acls_are_exact(Kind::Ext4, Kind::Xfs);
    acls_are_exact(Kind::Xfs, Kind::Xfs);
    acls_are_exact(Kind::Xfs, Kind::Ext4);
}

#[test]
fn acls_are_exact_on_btrfs() {
    acls_are_exact(Kind::Btrfs, Kind::Btrfs);
    acls_are_exact(Kind::Xfs, Kind::Btrfs);
}

#[test]
fn acls_are_exact_on_tmpfs() {
    acls_are_exact(Kind::Tmpfs, Kind::Tmpfs);
}

/// One line of a plan, with what belongs to it.
fn plan(pair: &Pair) -> (i32, String) {
    let done = pair.source(&["plan"]);
    (done.code, done.stdout.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// A run that the target would not take ends before anything is copied, and so says the plan; then the repository declares that it
/// does not need it, and the verdict says so.
fn is_refused_until_declared(pair: &Pair, refused: &str, declaration: &str, left_out: &str) {
    let (code, text) = plan(pair);
    assert_eq!(code, 4, "{text}");
    assert!(text.contains("STOP target-cannot-hold") && text.contains(refused), "{text}");
    let run = pair.run(4);
    assert_eq!(
        (&run["outcome"], &run["reason"]),
        (&"OUTCOME_NOT_RUN".into(), &"target-cannot-hold".into()),
        "{run}"
    );
    let message = run["message"].as_str().expect("text").split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(message.contains(refused) && message.contains("HINT: "), "{message}");
    assert_eq!(run["counts"]["bytesSent"].as_u64().unwrap_or(0), 0, "{run}");
    let keys = "max_drop_percent = 100\n";
    pair.restart_with("source", keys, &format!("{keys}{declaration}\n"));
    let (code, text) = plan(pair);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("left out ") && text.contains(left_out), "{text}");
    for _ in 0..2 {
        let run = pair.run(0);
        let envelope = pair.source(&["--json", "verdict", "show", run["id"].as_str().expect("an id")]).stdout;
        let shown = crate::pair::json(&envelope);
        assert!(shown["notCopied"].to_string().contains(left_out), "{shown}");
        // What the operator does not need is in no copy, and each PASS says so.
        let sentence = run["sentence"].as_str().expect("text");
        assert!(sentence.contains("not covered: ") && sentence.contains(left_out), "{sentence}");
        let table = pair.target(&["generations"]).stdout;
        assert!(table.contains("       not covered: 1 part\n"), "{table}");
        assert!(table.contains("       claims: backup "), "{table}");
    }
}

/// An attribute that no inode of the store has room for is not a full disk.
#[test]
fn an_attribute_that_is_too_large_is_refused_before_the_copy_until_it_is_declared() {
    let pair = Pair::on(Kind::Xfs, Kind::Ext4);
    fs::write(pair.root(0).join("bulk"), super::noise(1, 3_000_000)).expect("write");
    fs::write(pair.root(0).join("photo"), "image").expect("write");
    lsetxattr(pair.root(0).join("photo"), "user.big", &[b'x'; 20_000], XattrFlags::empty()).expect("xattr");
    let refused = "photo has the attribute user.big of 20000 bytes, and the target's ext4 holds";
    is_refused_until_declared(&pair, refused, "ignore_attributes = [\"user.big\"]", "user.big");
    assert!(described(&pair.latest()).iter().all(|line| !line.contains("user.big")));
    // Without the declaration it is missed again, although the file has not changed.
    pair.restart_with("source", "ignore_attributes = [\"user.big\"]\n", "");
    assert_eq!(pair.run(4)["reason"], "target-cannot-hold");
}

/// ext4 with small inodes holds whole seconds up to 2038.
#[test]
fn a_time_that_the_store_cannot_hold_is_refused_before_the_copy_until_it_is_declared() {
    let pair = Pair::on(Kind::Ext4, Kind::Ext4Small);
    fs::write(pair.root(0).join("file"), "x").expect("write");
    let far = rustix::fs::Timespec { tv_sec: 2_208_988_800, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: far, last_modification: far };
    let path = pair.root(0).join("file");
    rustix::fs::utimensat(rustix::fs::CWD, &path, &times, rustix::fs::AtFlags::empty()).expect("utimens");
    let refused = "file was modified at 2040-01-01T00:00:00Z, which the target's ext4 would hold as 2038-01-19T03:14:07Z";
    is_refused_until_declared(&pair, refused, "clamp_times = true", "times");
    let stat = fs::metadata(pair.latest().join("file")).expect("stat");
    assert_eq!((stat.mtime(), stat.mtime_nsec()), (2_147_483_647, 0));
    let doctor = pair.target(&["doctor"]);
    assert!(
        doctor.stdout.contains("BAD   store holds: ext4: years 1901 to 2038, whole seconds only"),
        "{doctor:?}"
    );
}

/// XFS holds more names of a file than ext4 does.
#[test]
fn more_names_than_the_store_holds_are_refused_before_the_copy() {
    let pair = Pair::on(Kind::Xfs, Kind::Ext4);
    fs::write(pair.root(0).join("0"), "x").expect("write");
    for name in 1..=65_000 {
        fs::hard_link(pair.root(0).join("0"), pair.root(0).join(format!("n{name}"))).expect("link");
    }
    let run = pair.run(4);
    assert_eq!(run["reason"], "target-cannot-hold", "{run}");
    let (code, text) = plan(&pair);
    assert!(
        code == 4 && text.contains("a file that has 65001, and a file of the target's ext4 has 65000"),
        "{text}"
    );
}

/// A file with many names is shared by as many generations as its names fit (ext4: 65 000). Then a tree gets a file of its own, all of
/// its names lead to that one, and no run ends.
#[test]
fn a_file_of_many_names_is_in_every_generation() {
    let pair = Pair::on(Kind::Xfs, Kind::Ext4);
    fs::write(pair.root(0).join("0"), "x").expect("write");
    let add = |names: std::ops::Range<u32>| {
        for name in names {
            let folder = pair.root(0).join(format!("d{}", name % 3));
            fs::create_dir_all(&folder).expect("mkdir");
            fs::hard_link(pair.root(0).join("0"), folder.join(format!("n{name}"))).expect("link");
        }
    };
    let run = |names: u64| {
        let run = pair.run(0);
        assert_eq!(run["outcome"], "OUTCOME_PASS", "{run}");
        let first = fs::metadata(pair.latest().join("0")).expect("stat");
        let others = fs::metadata(pair.latest().join("d1/n1")).expect("stat");
        assert_eq!(first.ino(), others.ino());
        crate::pair::rsync_finds_no_difference(&pair.root(0), &pair.latest());
        assert!(first.nlink() >= names, "{} names", first.nlink());
    };
    // More than half of what fits: each generation has a file of its own, the trees that are laid out ahead as well.
    add(1..30_000);
    run(30_000);
    wait_for_next_tree(&pair);
    // It is shared, and its new names do not fit beside those of two generations.
    add(30_000..40_000);
    run(40_000);
    wait_for_next_tree(&pair);
    run(40_000);
    fs::write(pair.root(0).join("more"), "more").expect("write");
    run(40_000);
    let inode = |number: &str| fs::metadata(pair.generation(number).join("0")).expect("stat").ino();
    assert_ne!(inode("000002"), inode("000003"));
}

/// A device is copied where an operator says so, and `trusted.` as well. What belongs to the live host or its file system is left
/// out and named, and kept where the target's is of the same kind.
#[test]
fn devices_need_a_word_and_what_is_the_hosts_own_is_left_out() {
    let pair = Pair::on(Kind::Btrfs, Kind::Ext4);
    let live = pair.root(0);
    let device = |name: &str| {
        use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
        mknodat(CWD, live.join(name), FileType::CharacterDevice, Mode::from_raw_mode(0o600), makedev(1, 3))
            .expect("mknod");
    };
    fs::write(live.join("file"), "x").expect("write");
    for (name, value) in
        [("btrfs.compression", &b"zstd"[..]), ("trusted.note", b"t"), ("security.selinux", b"a:b:c")]
    {
        lsetxattr(live.join("file"), name, value, XattrFlags::empty()).expect("xattr");
    }
    device("null");
    let run = pair.run(0);
    assert_eq!(run["outcome"], "OUTCOME_PASS", "{run}");
    let file =
        described(&pair.latest()).into_iter().find(|line| line.starts_with("\"file\"")).expect("a file");
    assert!(file.contains("trusted.note") && !file.contains("btrfs.") && !file.contains("selinux"), "{file}");
    assert!(
        pair.logs().contains("btrfs.compression") && pair.logs().contains("security.selinux"),
        "{}",
        pair.logs()
    );

    let id = run["id"].as_str().expect("an id");
    for arguments in [&["explain"][..], &["explain", "repo"], &["verdict", "show", id]] {
        let shown = pair.source(arguments);
        assert!(shown.stdout.contains("Not copied, 2:"), "{arguments:?}: {shown:?}");
        assert!(shown.stdout.contains("btrfs.compression (for example of file)"), "{arguments:?}: {shown:?}");
    }
    for arguments in [&["explain"][..], &["verdict", "show", "000000001"]] {
        let shown = pair.target(arguments);
        assert!(shown.stdout.contains("Not copied, 2:"), "{arguments:?}: {shown:?}");
    }
    for done in [
        pair.source(&["--json", "verdict", "show", id]),
        pair.target(&["--json", "verdict", "show", "000000001"]),
    ] {
        let shown = crate::pair::json(&done.stdout);
        assert_eq!(shown["notCopied"][0]["what"], "btrfs.compression", "{shown}");
        assert!(shown["claims"]["backup"].is_string() && shown["coverage"].is_object(), "{shown}");
    }
    // What is the host's own is no part that somebody could have looked at.
    assert_eq!(run["claims"]["notCovered"].as_str().unwrap_or("0"), "0", "{run}");

    // The target takes them no longer: what is in the last generation is no reason to take them again.
    pair.restart_with("target", crate::pair::EVERYTHING, "");
    let run = pair.run(4);
    assert_eq!(run["reason"], "target-cannot-hold", "{run}");
    let (_, text) = plan(&pair);
    let doctor = pair.source(&["doctor"]);
    let said = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    for (who, text) in [("plan", &text), ("doctor", &said(&doctor.stdout)), ("run", &said(&run.to_string()))]
    {
        let text = text.replace('\\', "");
        for part in [
            "file has the attribute trusted.note",
            "attributes = [\"trusted.note\"] of its [[repository]]",
            "ignore_attributes = [\"trusted.note\"]",
        ] {
            assert!(text.contains(part), "{who}: {part:?} is missing in {text}");
        }
    }
    assert_eq!(doctor.code, 1, "{doctor:?}");
    rustix::fs::lremovexattr(live.join("file"), "trusted.note").expect("xattr");
    let run = pair.run(4);
    let message = run["message"].as_str().expect("text");
    assert!(message.contains("null is a device"), "{run}{text}");
    assert!(
        message.contains("special_files = [\"fifo\", \"socket\", \"device\"] of its [[repository]]"),
        "{run}"
    );
    fs::remove_file(live.join("null")).expect("remove");
    assert_eq!(pair.run(0)["outcome"], "OUTCOME_PASS");
}

/// A store on btrfs keeps the properties of a live tree on btrfs, and those that it gives new files itself are not in a generation.
#[test]
fn properties_of_btrfs_are_exact_between_two_of_them() {
    let pair = Pair::on(Kind::Btrfs, Kind::Btrfs);
    let live = pair.root(0);
    for folder in ["packed", "plain"] {
        fs::create_dir(live.join(folder)).expect("mkdir");
    }
    lsetxattr(live.join("packed"), "btrfs.compression", b"zstd", XattrFlags::empty()).expect("xattr");
    lsetxattr(pair.path("store/repo"), "btrfs.compression", b"lzo", XattrFlags::empty()).expect("xattr");
    for folder in ["packed", "plain"] {
        fs::write(live.join(folder).join("file"), folder).expect("write");
    }
    for name in ["one", "two"] {
        assert_eq!(pair.run(0)["outcome"], "OUTCOME_PASS");
        is_exact(&pair);
        fs::write(live.join("plain").join(name), name).expect("write");
    }
}

/// As deep as a tree may be, with a file at the bottom: walked, built, changed and restored with held folders.
#[test]
fn a_deep_tree_is_copied_and_a_path_that_is_too_long_is_said_beforehand() {
    use std::os::unix::fs::DirBuilderExt as _;
    let pair = Pair::plain(1);
    let mut deep = pair.root(0);
    let down = |start: &Path, levels: usize, name: &str| {
        let mut folder = assay_common::confined::Folder::open(start).expect("open");
        for _ in 0..levels {
            folder = folder.create_folder(name.as_bytes()).expect("mkdir");
        }
        drop(folder.create_file(b"f").expect("create"));
    };
    deep.push("deep");
    fs::DirBuilder::new().mode(0o755).create(&deep).expect("mkdir");
    down(&deep, 700, "d");
    for name in ["one", "two"] {
        assert_eq!(pair.run(0)["outcome"], "OUTCOME_PASS");
        crate::pair::rsync_finds_no_difference(&pair.root(0), &pair.latest());
        fs::write(pair.root(0).join(name), name).expect("write");
        wait_for_next_tree(&pair);
    }
    let back = pair.path("back");
    let done = pair.target(&["restore", "--generation", "1", "--to", back.to_str().expect("text")]);
    assert_eq!(done.code, 0, "{done:?}");
    crate::pair::rsync_finds_no_difference(&back, &pair.generation("000001"));

    down(&pair.root(0), 20, &"l".repeat(255));
    let (code, text) = plan(&pair);
    assert!(code == 4 && text.contains("STOP path-too-long") && text.contains("4095 bytes"), "{text}");
    assert_eq!(pair.run(4)["reason"], "path-too-long");
}
