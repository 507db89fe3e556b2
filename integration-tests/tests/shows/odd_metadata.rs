//! Metadata that is seldom seen, on every file system that a tree, a store or a restored tree may be on; and restores to places that
//! cannot hold it, or by a user who may not give it.

use std::{
    ffi::OsStr,
    fs::{self, File, Permissions},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{MetadataExt as _, PermissionsExt as _, chown, symlink},
    },
    path::Path,
    process::Command,
    time::Duration,
};

use assay_common::pki::{Party, Role, issue};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags, lsetxattr, utimensat};

use crate::{
    exact::described,
    file_systems::{Kind, Mounted},
    pair::{Done, Pair, copy_program, done, json, rsync_finds_no_difference},
};

fn setfacl(arguments: &[&str], path: &Path) {
    let status = Command::new("setfacl").args(arguments).arg(path).status();
    assert!(status.is_ok_and(|status| status.success()), "setfacl {arguments:?} {}", path.display());
}

fn set_time(path: &Path, seconds: i64, nanos: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("utimens");
}

/// Fills `live` with what every one of the file systems holds.
fn fill(live: &Path) {
    let at = |name: &str| live.join(name);
    fs::create_dir(at("deep")).expect("mkdir");
    for name in ["plain", "deep/file", "masked", "capable", "before-1970", "sticky-file", "attributes"] {
        fs::write(at(name), name).expect("write");
    }
    // Names of 255 bytes that are not UTF-8, and a link as long as links are.
    fs::write(live.join(OsStr::from_bytes(&[0xfe; 255])), "longest").expect("write");
    symlink("x".repeat(1000), at("long-link")).expect("symlink");
    symlink("plain", at("old-link")).expect("symlink");
    set_time(&at("old-link"), 86_400, 0);
    // The group's bits are the mask where there is an ACL.
    setfacl(&["-m", "u:7:rwx,g:8:r-x,m::r--"], &at("masked"));
    fs::create_dir(at("inherits")).expect("mkdir");
    setfacl(&["-m", "d:u:9:rwx,d:m::r-x"], &at("inherits"));
    // A folder that gives its group to what is made in it, with a file of another group.
    fs::create_dir(at("grouped")).expect("mkdir");
    chown(at("grouped"), Some(3), Some(4321)).expect("chown");
    fs::set_permissions(at("grouped"), Permissions::from_mode(0o3775)).expect("chmod");
    fs::write(at("grouped/of-root"), "x").expect("write");
    chown(at("grouped/of-root"), Some(0), Some(0)).expect("chown");
    fs::create_dir(at("grouped/inner")).expect("mkdir");
    chown(at("grouped/inner"), Some(5), Some(6)).expect("chown");
    fs::set_permissions(at("grouped/inner"), Permissions::from_mode(0o700)).expect("chmod");
    // Capabilities of the third version, which belong to the root of a namespace.
    let capability: Vec<u8> =
        [0x0300_0001u32, 1 << 13, 0, 0, 0, 1000].iter().flat_map(|word| word.to_le_bytes()).collect();
    lsetxattr(at("capable"), "security.capability", &capability, XattrFlags::empty()).expect("xattr");
    lsetxattr(at("attributes"), "user.empty", b"", XattrFlags::empty()).expect("xattr");
    lsetxattr(at("attributes"), "user.bytes", b"\0\xff\n", XattrFlags::empty()).expect("xattr");
    lsetxattr(at("old-link"), "trusted.of-a-link", b"1", XattrFlags::empty()).expect("xattr");
    set_time(&at("before-1970"), -1, 0);
    fs::set_permissions(at("sticky-file"), Permissions::from_mode(0o1644)).expect("chmod");
    // Longer than what it takes on the disk.
    File::create(at("sparse")).and_then(|file| file.set_len(1 << 30)).expect("length");
    // A folder whose time is older than what was made in it, at every depth.
    fs::create_dir_all(at("old/older")).expect("mkdir");
    fs::write(at("old/older/new"), "new").expect("write");
    set_time(&at("old/older"), 100, 0);
    set_time(&at("old"), 200, 0);
}

/// Gives everything a time without fractions, and some seconds in the past: a file whose time is the second in which it is copied would
/// look to the check like one that was written to since.
fn cut_off_fractions(folder: &Path) {
    for entry in fs::read_dir(folder).expect("read").flatten() {
        let stat = entry.metadata().expect("stat");
        if stat.is_dir() {
            cut_off_fractions(&entry.path());
        }
        set_time(&entry.path(), stat.mtime() - 10, 0);
    }
    set_time(folder, fs::metadata(folder).expect("stat").mtime(), 0);
}

fn is_exact_on(root: Kind, store: Kind) {
    let pair = Pair::on(root, store);
    let live = pair.root(0);
    fill(&live);
    let set_times = || {
        if store == Kind::Ext4Small {
            cut_off_fractions(&live);
        }
    };
    set_times();
    for change in ["none", "all"] {
        let run = pair.run(0);
        assert_eq!(run["outcome"], "OUTCOME_PASS", "{root:?} to {store:?}, {change}: {run}");
        assert_eq!(described(&live), described(&pair.latest()), "{root:?} to {store:?}, {change}");
        pair.eventually("the next tree is laid out", || pair.path("store/repo/ahead/of").exists());
        // The metadata changes and the content does not.
        setfacl(&["-b"], &live.join("masked"));
        setfacl(&["-k"], &live.join("inherits"));
        fs::set_permissions(live.join("grouped"), Permissions::from_mode(0o755)).expect("chmod");
        rustix::fs::lremovexattr(live.join("attributes"), "user.empty").ok();
        rustix::fs::lremovexattr(live.join("capable"), "security.capability").ok();
        set_times();
    }
    let back = Mounted::new(root, &pair.path("back"));
    let to = pair.path("back/tree");
    let restored = pair.target(&["restore", "--generation", "1", "--to", to.to_str().expect("text")]);
    assert_eq!(restored.code, 0, "{root:?} to {store:?}: {restored:?}");
    assert_eq!(described(&pair.generation("000001")), described(&to), "{root:?} to {store:?}");
    drop(back);
}

#[test]
fn odd_metadata_is_exact_on_ext4_and_with_small_inodes() {
    is_exact_on(Kind::Ext4, Kind::Ext4);
    is_exact_on(Kind::Ext4Small, Kind::Ext4Small);
    is_exact_on(Kind::Xfs, Kind::Ext4Small);
}

#[test]
fn odd_metadata_is_exact_on_xfs_btrfs_and_tmpfs() {
    is_exact_on(Kind::Xfs, Kind::Xfs);
    is_exact_on(Kind::Btrfs, Kind::Btrfs);
    is_exact_on(Kind::Tmpfs, Kind::Tmpfs);
    is_exact_on(Kind::Btrfs, Kind::Ext4);
}

/// XFS holds a file of 8 EiB less a byte. Nobody reads its zeros: the run ends before.
#[test]
fn a_file_that_is_too_long_for_any_copy_is_refused_before_it_is_read() {
    let pair = Pair::on(Kind::Xfs, Kind::Xfs);
    fs::write(pair.root(0).join("file"), "x").expect("write");
    let make = || {
        let file = File::create(pair.root(0).join("huge")).expect("create");
        file.set_len(i64::MAX as u64).expect("length");
    };
    for base in ["none", "one"] {
        make();
        let run = pair.run(4);
        assert_eq!(run["reason"], "target-cannot-hold", "{base}: {run}");
        let message = run["message"].as_str().expect("text");
        assert!(message.contains("huge is 9223372036854775807 bytes long"), "{base}: {message}");
        assert_eq!(pair.source(&["plan"]).code, 4, "{base}");
        fs::remove_file(pair.root(0).join("huge")).expect("remove");
        pair.run(0);
    }
}

/// What the destination cannot hold is said before anything is written, with the switches that leave it out.
#[test]
fn a_restore_says_beforehand_what_the_destination_cannot_hold() {
    let pair = Pair::on(Kind::Xfs, Kind::Xfs);
    fs::write(pair.root(0).join("photo"), "image").expect("write");
    lsetxattr(pair.root(0).join("photo"), "user.big", &[b'x'; 20_000], XattrFlags::empty()).expect("xattr");
    set_time(&pair.root(0).join("photo"), 2_208_988_800, 5);
    pair.run(0);
    let _small = Mounted::new(Kind::Ext4Small, &pair.path("small"));
    let to = pair.path("small/back");
    let restore =
        |further: &[&str]| pair.target(&[&["restore", "--to", to.to_str().expect("text")], further].concat());
    let refused = restore(&[]);
    assert_eq!(refused.code, 2, "{refused:?}");
    for part in [
        "photo was modified at 2040-01-01",
        "which the destination's ext4 would hold as 2038-",
        "nothing was written",
        "--clamp-times",
    ] {
        assert!(refused.stderr.contains(part), "{part:?} is missing in {refused:?}");
    }
    assert!(!to.exists(), "the folder was there only for the look");
    // A folder that was there stays as it was.
    fs::create_dir(&to).expect("mkdir");
    fs::write(to.join("own"), "own").expect("write");
    set_time(&to, 1000, 0);
    let refused = restore(&["--onto-existing", "--clamp-times"]);
    assert_eq!(refused.code, 2, "{refused:?}");
    let attribute = "photo has the attribute user.big of 20000 bytes, and the destination's ext4 holds";
    assert!(
        refused.stderr.contains(attribute) && refused.stderr.contains("--ignore-attribute"),
        "{refused:?}"
    );
    assert_eq!(fs::read_dir(&to).expect("read").count(), 1);
    assert_eq!(fs::metadata(&to).expect("stat").mtime(), 1000);
    let done = restore(&["--onto-existing", "--delete", "--clamp-times", "--ignore-attribute", "user.b*"]);
    assert_eq!(done.code, 0, "{done:?}");
    for part in ["LEFT OUT user.big (as of photo): --ignore-attribute", "LEFT OUT times (as of "] {
        assert!(done.stdout.contains(part), "{part:?} is missing in {done:?}");
    }
    assert_eq!(fs::read(to.join("photo")).expect("read"), b"image");
    assert_eq!(fs::metadata(to.join("photo")).expect("stat").mtime(), 2_147_483_647);
}

/// A file that a flag of the file system protects is named, and the rest is restored.
#[test]
fn a_restore_goes_on_beside_a_file_that_cannot_be_changed() {
    let pair = Pair::plain(1);
    for name in ["a", "fixed", "z"] {
        fs::write(pair.root(0).join(name), name).expect("write");
    }
    pair.run(0);
    let _disk = Mounted::new(Kind::Ext4, &pair.path("disk"));
    let to = pair.path("disk/back");
    let restore = || {
        let words = ["restore", "--to", to.to_str().expect("text"), "--onto-existing", "--delete"];
        pair.target(&words)
    };
    assert_eq!(restore().code, 0);
    for name in ["a", "fixed", "z"] {
        fs::write(to.join(name), "other").expect("write");
    }
    fs::write(to.join("extra"), "extra").expect("write");
    let chattr = |flag: &str, name: &str| {
        let status = Command::new("chattr").arg(flag).arg(to.join(name)).status();
        assert!(status.is_ok_and(|status| status.success()), "chattr {flag}");
    };
    chattr("+i", "fixed");
    chattr("+a", "extra");
    let done = restore();
    chattr("-i", "fixed");
    chattr("-a", "extra");
    assert_eq!(done.code, 1, "{done:?}");
    for part in
        ["NOT RESTORED fixed: ", "NOT RESTORED extra: ", "chattr -i -a", "2 entries were not restored"]
    {
        assert!(done.stdout.contains(part), "{part:?} is missing in {done:?}");
    }
    let read = |name: &str| fs::read_to_string(to.join(name)).expect("read");
    assert_eq!((read("a").as_str(), read("fixed").as_str(), read("z").as_str()), ("a", "other", "z"));
    assert_eq!(restore().code, 0);
    rsync_finds_no_difference(&pair.latest(), &to);
}

/// A user who is not root gets what rsync would give him, without programs that run as somebody; the rest is listed, told beforehand,
/// and in the exit code and the target's record until he says that it is wanted.
#[test]
fn a_restore_without_root_is_as_exact_as_rsync_and_says_what_it_lacks() {
    const USER: u32 = 54_321;
    assert!(rustix::process::geteuid().is_root(), "this test becomes another user: run it as root");
    let pair = Pair::plain(1);
    let live = pair.root(0);
    fs::create_dir(live.join("folder")).expect("mkdir");
    for name in ["of-root", "of-user", "folder/of-group", "program", "folder/attributes"] {
        fs::write(live.join(name), name).expect("write");
    }
    chown(live.join("of-user"), Some(USER), Some(USER)).expect("chown");
    chown(live.join("folder/of-group"), Some(0), Some(USER)).expect("chown");
    fs::set_permissions(live.join("of-root"), Permissions::from_mode(0o640)).expect("chmod");
    chown(live.join("of-root"), Some(0), Some(USER)).expect("chown");
    fs::set_permissions(live.join("program"), Permissions::from_mode(0o6755)).expect("chmod");
    lsetxattr(live.join("folder/attributes"), "user.a", b"1", XattrFlags::empty()).expect("xattr");
    lsetxattr(live.join("folder/attributes"), "trusted.b", b"2", XattrFlags::empty()).expect("xattr");
    setfacl(&["-m", "u:7:rwx"], &live.join("folder"));
    symlink("of-root", live.join("link")).expect("symlink");
    set_time(&live.join("link"), 5_000_000, 7);
    fs::hard_link(live.join("of-user"), live.join("second")).expect("link");
    pair.run(0);
    pair.restart_with("target", "source = \"source\"", "source = \"source\"\nrestore = [\"bob\"]");
    let party = Party { name: "bob".to_owned(), hosts: Vec::new() };
    let hour = Duration::from_secs(3600);
    issue(&pair.path("pki"), pair.authority(), Role::Restore, &party, hour, jiff::Timestamp::now())
        .expect("issue");

    // What the user needs, in a folder of his own.
    fs::set_permissions(pair.path("."), Permissions::from_mode(0o755)).expect("chmod");
    let home = pair.path("home");
    fs::create_dir(&home).expect("mkdir");
    for name in ["ca.crt", "restore-bob.crt", "restore-bob.key", "target-signing.pub", "source-signing.pub"] {
        fs::copy(pair.path("pki").join(name), home.join(name)).expect("copy");
        chown(home.join(name), Some(USER), Some(USER)).expect("chown");
    }
    copy_program("assay-source", &home);
    chown(&home, Some(USER), Some(USER)).expect("chown");
    let as_user = |arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        let identity = [format!("--reuid={USER}"), format!("--regid={USER}"), "--clear-groups".to_owned()];
        command.args(identity).arg("--").args(arguments).current_dir(&home);
        done(&mut command)
    };
    let source = fs::read_to_string(pair.path("source.toml")).expect("read");
    let url = source
        .lines()
        .find_map(|line| line.strip_prefix("url = "))
        .expect("a url")
        .trim_matches('"')
        .to_owned();
    let restore = |to: &str, further: &[&str]| -> Done {
        let words = [
            "./assay-source",
            "--json",
            "restore",
            "repo",
            "--server",
            &url,
            "--to",
            to,
            "--ca",
            "ca.crt",
            "--cert",
        ];
        let keys = ["restore-bob.crt", "--key", "restore-bob.key", "--target-key", "target-signing.pub"];
        as_user(&[&words[..], &keys[..], &["--source-key", "source-signing.pub"], further].concat())
    };
    let report = |done: &Done| json(done.stdout.lines().last().expect("a line"));

    let first = restore("back", &[]);
    assert_eq!(first.code, 1, "{first:?}");
    assert!(
        first.stderr.contains("WARNING: this user is not root") && first.stderr.contains("--as-this-user"),
        "{first:?}"
    );
    let told = report(&first);
    assert_eq!((&told["complete"], &told["lostFiles"]), (&false.into(), &0.into()), "{told}");
    let lacks: Vec<_> = told["leftOut"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|it| it["what"].as_str().expect("text"))
        .collect();
    assert_eq!(lacks, ["group", "owner", "set-group-id", "set-user-id", "trusted.b"], "{told}");
    let status = json(&pair.target(&["--json", "status"]).stdout);
    let is_complete = status["repositories"][0]["lastRestore"]["complete"].as_bool();
    assert!(!is_complete.unwrap_or(false), "{status}");

    let said = restore("said", &["--as-this-user"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(!said.stderr.contains("WARNING"), "{said:?}");
    assert_eq!(report(&said)["complete"], true, "{said:?}");

    // The same user's rsync, from a copy that he may read.
    let copied = as_user(&["rsync", "-aHAX", &format!("{}/", live.display()), "rsync/"]);
    let without_set_ids = |lines: Vec<String>| -> Vec<String> {
        let plain = |line: String| match line.starts_with("\"program\"") {
            true => line.replace(" 106755 ", " 100755 ").replace(" 104755 ", " 100755 "),
            false => line,
        };
        lines.into_iter().map(plain).collect()
    };
    assert_eq!(copied.code, 0, "{copied:?}");
    assert_eq!(without_set_ids(described(&home.join("rsync"))), described(&home.join("back")));
    assert_eq!(described(&home.join("said")), described(&home.join("back")));
    let inode = |name: &str| fs::metadata(home.join("back").join(name)).expect("stat").ino();
    assert_eq!(inode("of-user"), inode("second"));
}
