//! Trees made to be nasty, and random work on them.

use std::{
    ffi::OsStr,
    fs::{self, File, Permissions},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileExt as _, PermissionsExt as _, chown, lchown, symlink},
    },
    path::{Path, PathBuf},
    process::Command,
};

use rand::{Rng as _, rngs::StdRng};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, makedev, mknodat};

fn run(program: &str, arguments: &[&str], path: &Path) {
    let status = Command::new(program).args(arguments).arg(path).status();
    assert!(status.is_ok_and(|status| status.success()), "{program} {arguments:?}");
}

/// Fills `root` with one of everything. Needs root, as the agents' own fidelity does.
pub(crate) fn make(root: &Path) {
    let at = |name: &[u8]| root.join(OsStr::from_bytes(name));
    fs::write(at(b"not-utf8-\xff\xfe"), "bytes").expect("write");
    fs::write(at(b"new\nline and \\ and \t and \"quotes\" "), "odd").expect("write");
    fs::write(at("Grüße-ünïcode-日本".as_bytes()), "unicode").expect("write");
    fs::write(at(&[b'x'; 255]), "longest name").expect("write");
    fs::write(at(b"empty"), "").expect("write");
    fs::write(at(b"large"), super::noise(42, 5_000_000)).expect("write");
    fs::write(at(b"-rf"), "looks like an option").expect("write");
    fs::write(at(b".hidden"), "dot").expect("write");
    let mut deep = root.to_owned();
    for level in 0..60 {
        deep.push(format!("level{level}"));
    }
    fs::create_dir_all(&deep).expect("mkdir");
    fs::write(deep.join("bottom"), "deep").expect("write");
    fs::create_dir_all(at(b"empty-folder/inside")).expect("mkdir");
    for (name, mode) in [("suid", 0o4755), ("sgid", 0o2711), ("none", 0), ("all", 0o777)] {
        fs::write(at(name.as_bytes()), name).expect("write");
        fs::set_permissions(at(name.as_bytes()), Permissions::from_mode(mode)).expect("chmod");
    }
    fs::create_dir(at(b"sticky")).expect("mkdir");
    fs::set_permissions(at(b"sticky"), Permissions::from_mode(0o1777)).expect("chmod");
    fs::write(at(b"owned"), "by others").expect("write");
    chown(at(b"owned"), Some(12345), Some(54321)).expect("chown");
    symlink("empty", at(b"link")).expect("symlink");
    symlink("/no/such/place", at(b"dangling")).expect("symlink");
    symlink("../../../../etc", at(b"up")).expect("symlink");
    symlink("sticky", at(b"link-to-folder")).expect("symlink");
    symlink(OsStr::from_bytes(b"bytes-\xfe"), at(b"link-\xff")).expect("symlink");
    lchown(at(b"link"), Some(77), Some(88)).expect("lchown");
    fs::hard_link(at(b"large"), at(b"a-second-name")).expect("link");
    fs::hard_link(at(b"large"), at(b"sticky/a-third-name")).expect("link");
    fs::hard_link(at(b"link"), at(b"link-twice")).expect("link");
    let sparse = File::create(at(b"sparse")).expect("create");
    sparse.set_len(50_000_000).expect("length");
    sparse.write_all_at(b"data", 20_000_000).expect("write");
    File::create(at(b"all-hole")).and_then(|file| file.set_len(1_000_000)).expect("length");
    for (name, kind, device) in [
        ("fifo", FileType::Fifo, 0),
        ("socket", FileType::Socket, 0),
        ("null", FileType::CharacterDevice, makedev(1, 3)),
        ("loop", FileType::BlockDevice, makedev(7, 200)),
    ] {
        mknodat(CWD, at(name.as_bytes()), kind, Mode::from_raw_mode(0o640), device).expect("mknod");
    }
    for (name, value) in [("user.note", &b"text"[..]), ("user.empty", b""), ("trusted.note", b"\0\xff")] {
        lsetxattr(at(b"owned"), name, value, XattrFlags::empty()).expect("xattr");
        lsetxattr(at(b"sticky"), name, value, XattrFlags::empty()).expect("xattr");
    }
    lsetxattr(at(b"dangling"), "trusted.link", b"on a link", XattrFlags::empty()).expect("xattr");
    run("setfacl", &["-m", "u:1234:rw,g:4321:r"], &at(b".hidden"));
    run("setfacl", &["-d", "-m", "u:1234:rwx"], &at(b"empty-folder"));
    run("setcap", &["cap_net_raw+ep"], &at(b"all"));
    let old = |name: &[u8], seconds, nanoseconds| {
        let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, at(name), &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).expect("utimens");
    };
    old(b"large", 1, 123_456_789);
    old(b"empty", -1_000_000, 1);
    old(b"up", 4_000_000_000, 999_999_999);
    old(b"sticky", 1_000_000_000, 5);
}

/// One piece of random work somewhere below `root`.
pub(crate) fn edit(root: &Path, random: &mut StdRng) {
    let entries = below(root);
    let folders: Vec<_> = std::iter::once(root.to_owned())
        .chain(entries.iter().filter(|path| is_folder(path)).cloned())
        .collect();
    let folder = folders[random.random_range(0..folders.len())].clone();
    let new = folder.join(format!("n{}", random.random_range(0..40)));
    let some = (!entries.is_empty()).then(|| entries[random.random_range(0..entries.len())].clone());
    let file = some.clone().filter(|path| path.symlink_metadata().is_ok_and(|metadata| metadata.is_file()));
    match (random.random_range(0..14), some, file) {
        (0..=2, _, _) => {
            remove(&new);
            let length = [0, 1, 5000, 40_000, 300_000][random.random_range(0..5)];
            fs::write(&new, super::noise(random.random(), length)).expect("write");
        }
        (3, _, _) => {
            remove(&new);
            fs::create_dir(&new).expect("mkdir");
        }
        (4, _, _) => {
            remove(&new);
            symlink(format!("n{}", random.random_range(0..40)), &new).expect("symlink");
        }
        (5, _, Some(file)) => {
            let file = File::options().write(true).open(file).expect("open");
            let offset = random.random_range(0..200_000);
            file.write_all_at(&super::noise(random.random(), 3000), offset).expect("write");
        }
        (6, _, Some(file)) => {
            let file = File::options().write(true).open(file).expect("open");
            let length = file.metadata().expect("stat").len();
            file.set_len(random.random_range(0..=length + 100_000)).expect("truncate");
        }
        (7, Some(some), _) if !new.starts_with(&some) && !some.starts_with(&new) => {
            remove(&new);
            fs::rename(some, new).expect("rename");
        }
        (8, Some(some), _) => remove(&some),
        (9, Some(some), _) if !some.is_symlink() => {
            let mode = random.random_range(0..0o10000);
            fs::set_permissions(some, Permissions::from_mode(mode)).expect("chmod");
        }
        (10, Some(some), _) => {
            lchown(some, Some(random.random_range(0..5)), Some(random.random_range(0..5))).expect("chown");
        }
        (11, _, Some(file)) if !new.exists() && !new.is_symlink() => fs::hard_link(file, new).expect("link"),
        (12, Some(some), _) => {
            // Another kind of thing under the same name.
            remove(&some);
            if random.random() {
                fs::create_dir(some).expect("mkdir");
            } else {
                mknodat(CWD, some, FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("mkfifo");
            }
        }
        (13, _, Some(file)) => {
            let value = super::noise(random.random(), 20);
            lsetxattr(file, "user.note", &value, XattrFlags::empty()).expect("xattr");
        }
        _ => {}
    }
}

fn is_folder(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir())
}

pub(crate) fn remove(path: &Path) {
    if is_folder(path) {
        fs::remove_dir_all(path).expect("remove");
    } else if path.symlink_metadata().is_ok() {
        fs::remove_file(path).expect("remove");
    }
}

/// All entries below `root` but the anchor, sorted so that the same seed does the same work.
pub(crate) fn below(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        let mut entries: Vec<_> =
            fs::read_dir(folder).expect("read").map(|entry| entry.expect("entry").path()).collect();
        entries.sort();
        open.extend(entries.iter().filter(|path| is_folder(path)).cloned());
        found.extend(entries.into_iter().filter(|path| path.file_name() != Some(OsStr::new("anchor"))));
    }
    found
}
