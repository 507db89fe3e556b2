use std::os::unix::fs::MetadataExt as _;

use super::*;

/// An ACL as Linux has it in an attribute: version, then tag, permissions and id of each entry. User 1234 may all, the owner as well,
/// the group and others may read.
fn acl() -> Vec<u8> {
    let none = u32::MAX;
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in
        [(1u16, 7u16, none), (2, 7, 1234), (4, 5, none), (16, 7, none), (32, 5, none)]
    {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

fn entry(kind: EntryKind, mode: u32, xattrs: &[(&str, &[u8])]) -> Entry {
    let attribute = |(name, value): &(&str, &[u8])| ExtendedAttribute {
        name: name.as_bytes().to_vec(),
        value: value.to_vec(),
    };
    Entry {
        kind: kind.into(),
        mode,
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        mtime_seconds: 1_700_000_000,
        mtime_nanos: 123_456_789,
        xattrs: xattrs.iter().map(attribute).collect(),
        ..Default::default()
    }
}

fn names(folder: &Folder, name: &[u8]) -> Vec<String> {
    let xattrs = folder.xattrs(name).expect("list");
    xattrs.iter().map(|attribute| String::from_utf8_lossy(&attribute.name).into_owned()).collect()
}

/// Whatever kind of entry is made in a folder with a default ACL, its ACLs and its mode are those of its manifest.
#[test]
fn an_entry_keeps_nothing_of_the_default_acl_of_its_folder() {
    let temp = tempfile::tempdir().expect("temp");
    let folder = Folder::open(temp.path()).expect("open");
    fs::lsetxattr(temp.path(), "system.posix_acl_default", &acl(), XattrFlags::empty()).expect("default ACL");
    let fifo = entry(EntryKind::Fifo, 0o600, &[]);
    folder.create_file(b"file").expect("create");
    let inner = folder.create_folder(b"folder").expect("create");
    folder.create_special(b"fifo", &fifo).expect("create");
    assert_eq!(names(&folder, b"file"), ["system.posix_acl_access"]);
    assert_eq!(names(&folder, b"folder"), ["system.posix_acl_access", "system.posix_acl_default"]);

    folder.set_metadata(b"file", &entry(EntryKind::File, 0o640, &[])).expect("set");
    folder.set_metadata(b"fifo", &fifo).expect("set");
    inner.set_own_metadata(&entry(EntryKind::Directory, 0o750, &[])).expect("set");
    for name in [&b"file"[..], b"fifo", b"folder"] {
        assert_eq!(names(&folder, name), [] as [&str; 0]);
    }
    let mode = |name: &str| std::fs::metadata(temp.path().join(name)).expect("stat").mode() & 0o7777;
    assert_eq!([mode("file"), mode("fifo"), mode("folder")], [0o640, 0o600, 0o750]);

    // One that has an ACL of its own, and no default ACL.
    let kept = [("system.posix_acl_access", &acl()[..]), ("user.note", b"kept")];
    let second = folder.create_folder(b"second").expect("create");
    second.set_own_metadata(&entry(EntryKind::Directory, 0o775, &kept)).expect("set");
    assert_eq!(names(&folder, b"second"), ["system.posix_acl_access", "user.note"]);
    assert_eq!(folder.xattrs(b"second").expect("list")[0].value, acl());
    assert_eq!(mode("second"), 0o775);
    // The same folder again, without.
    second.set_own_metadata(&entry(EntryKind::Directory, 0o755, &[("user.other", b"x")])).expect("set");
    assert_eq!(names(&folder, b"second"), ["user.other"]);
    assert_eq!(mode("second"), 0o755);
}

/// A time that the file system cuts off is an error, and never another time.
#[test]
fn a_time_is_held_or_refused() {
    let temp = tempfile::tempdir().expect("temp");
    let folder = Folder::open(temp.path()).expect("open");
    folder.create_file(b"file").expect("create");
    for seconds in [i64::MIN / 4, -4_000_000_000, -1, 0, 4_000_000_000, 40_000_000_000, i64::MAX / 4] {
        let wanted = Entry { mtime_seconds: seconds, ..entry(EntryKind::File, 0o600, &[]) };
        match folder.set_metadata(b"file", &wanted) {
            Ok(()) => {
                let stat = folder.stat(b"file").expect("stat");
                assert_eq!((stat.st_mtime, stat.st_mtime_nsec as u32), (seconds, wanted.mtime_nanos));
            }
            Err(error) => assert!(
                cannot_hold(&error).is_some_and(|fault| fault.0.starts_with("its time of modification: ")),
                "{error}"
            ),
        }
    }
}

/// No inode has room for so much, or the file system has no attributes at all: that is not a full disk.
#[test]
fn an_attribute_that_no_inode_holds_is_not_a_full_disk() {
    let temp = tempfile::tempdir().expect("temp");
    let folder = Folder::open(temp.path()).expect("open");
    folder.create_file(b"file").expect("create");
    let large = vec![b'x'; 70_000];
    let error = folder.set_metadata(b"file", &entry(EntryKind::File, 0o600, &[("user.large", &large)]));
    let error = error.expect_err("more than 64 KiB");
    let fault = cannot_hold(&error).unwrap_or_else(|| panic!("{error}"));
    assert!(fault.0.starts_with("its attribute user.large of 70000 bytes"), "{fault}");
}
