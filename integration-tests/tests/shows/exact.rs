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
