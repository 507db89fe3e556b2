//! Changes one setting in a configuration file of a workspace, never of a generation.
//!
//! AccuRev wants `KEY = VALUE` with white space on both sides of `=` and none after the value, so exactly
//! that is written whatever stood there. The file is handled as bytes: its other lines stay as they are,
//! UTF-8 or not. Owner, group, mode, extended attributes and the line's own line end are kept. The time is
//! changed and never put back: an edit of the same length and time would survive the next `rsync -a
//! --delete`.
//!
//! The new file is written beside the old one and renamed over it, so a crash leaves either. Workspaces are
//! thrown away: nothing is flushed.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{AsFd, OwnedFd},
};

use assay_common::{
    confined::{copy_xattrs, open_beneath, temporary_name},
    path::TreePath,
};
use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, Uid};

/// No configuration file is larger; what is larger is something else.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// Why a setting was not changed. Says places, never what the file holds.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PatchError {
    /// The key stands in no line.
    #[error("the key '{key}' stands nowhere in {file}")]
    KeyMissing {
        /// The file.
        file: TreePath,
        /// The key.
        key: String,
    },
    /// The key stands in several lines, and nothing says which of them counts.
    #[error("the key '{key}' stands more than once in {file}: in lines {}", lines.iter().map(ToString::to_string)
        .collect::<Vec<_>>().join(", "))]
    KeyTwice {
        /// The file.
        file: TreePath,
        /// The key.
        key: String,
        /// The lines, from 1.
        lines: Vec<usize>,
    },
    /// The key's line has a carriage return in its middle: it may be several lines by another system's rules.
    #[error("line {line} of {file} has a carriage return within it")]
    LineEnd {
        /// The file.
        file: TreePath,
        /// From 1.
        line: usize,
    },
    /// The key cannot be a key.
    #[error("'{}' cannot be a key", key.escape_debug())]
    BadKey {
        /// The key.
        key: String,
    },
    /// The value cannot be written so that it is read back as what it is.
    #[error("the value for '{key}' is empty, has a blank at an end or holds a control character")]
    BadValue {
        /// The key.
        key: String,
    },
    /// The file is not a regular file.
    #[error("{file} is not a regular file")]
    NotAFile {
        /// The file.
        file: TreePath,
    },
    /// The file is larger than a configuration file can be.
    #[error("{file} has {bytes} bytes; a configuration file may have at most {MAX_FILE_BYTES}")]
    TooLarge {
        /// The file.
        file: TreePath,
        /// Its size.
        bytes: u64,
    },
    /// What was read back is not what was written.
    #[error("{file} does not hold what was written to it")]
    ReadBack {
        /// The file.
        file: TreePath,
    },
    /// The file system refused.
    #[error("{file}: {source}")]
    Io {
        /// The file.
        file: TreePath,
        /// Why.
        source: io::Error,
    },
}

impl PatchError {
    /// The reason for an INCONCLUSIVE verdict.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::KeyMissing { .. } => "key-missing",
            Self::KeyTwice { .. } => "key-twice",
            Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => "configuration-missing",
            _ => "patch-failed",
        }
    }
}

/// A change that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatchRecord {
    /// The file, relative to its root.
    pub file: TreePath,
    /// The key.
    pub key: String,
    /// Its value now.
    pub value: String,
    /// Its line ends with carriage return and line feed, as it did before.
    pub ends_with_return: bool,
    /// BLAKE3 of the file before, in hexadecimal digits.
    pub digest_before: String,
    /// BLAKE3 of the file after.
    pub digest_after: String,
}

/// Gives `key` the `value` in the configuration file `file` below the folder `root`, following no link on the
/// way.
///
/// # Errors
/// [`PatchError`]; then the file is as it was.
pub fn apply(root: impl AsFd, file: &TreePath, key: &str, value: &str) -> Result<PatchRecord, PatchError> {
    check(key, value)?;
    let io_error = |source: io::Error| PatchError::Io { file: file.clone(), source };
    let parent = TreePath::parse(file.parent().unwrap_or_default()).unwrap_or_default();
    let folder = open_beneath(root.as_fd(), &parent, OFlags::RDONLY | OFlags::DIRECTORY).map_err(io_error)?;
    let (old, before) = read(&folder, file)?;
    let after = rewrite(&before, key, value).map_err(|fault| fault.of(file, key))?;
    replace(&folder, file.name(), &old, &after).map_err(io_error)?;
    let (_, found) = read(&folder, file)?;
    if found != after {
        return Err(PatchError::ReadBack { file: file.clone() });
    }
    Ok(PatchRecord {
        file: file.clone(),
        key: key.into(),
        value: value.into(),
        ends_with_return: after
            .split_inclusive(|byte| *byte == b'\n')
            .any(|line| sets(line, key) && line.ends_with(b"\r\n")),
        digest_before: blake3::hash(&before).to_hex().to_string(),
        digest_after: blake3::hash(&after).to_hex().to_string(),
    })
}

fn check(key: &str, value: &str) -> Result<(), PatchError> {
    let plain = |text: &str| !text.is_empty() && !text.chars().any(char::is_control);
    if !plain(key) || key.starts_with('#') || key.contains(|it: char| it == '=' || it.is_whitespace()) {
        return Err(PatchError::BadKey { key: key.into() });
    }
    if !plain(value) || value.trim() != value {
        return Err(PatchError::BadValue { key: key.into() });
    }
    Ok(())
}

fn read(folder: &OwnedFd, file: &TreePath) -> Result<(File, Vec<u8>), PatchError> {
    let io_error = |source: io::Error| PatchError::Io { file: file.clone(), source };
    // Non-blocking, so that a FIFO in the place of the file does not hold us.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut opened =
        File::from(fs::openat(folder, file.name(), flags, Mode::empty()).map_err(|it| io_error(it.into()))?);
    let stat = opened.metadata().map_err(io_error)?;
    if !stat.is_file() {
        return Err(PatchError::NotAFile { file: file.clone() });
    }
    if stat.len() > MAX_FILE_BYTES {
        return Err(PatchError::TooLarge { file: file.clone(), bytes: stat.len() });
    }
    let mut bytes = Vec::new();
    (&mut opened).take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(io_error)?;
    Ok((opened, bytes))
}

fn replace(folder: &OwnedFd, name: &[u8], old: &File, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary_name(name);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut new = File::from(fs::openat(folder, &temporary, flags, Mode::from_raw_mode(0o600))?);
    let written = (|| {
        new.write_all(bytes)?;
        keep_metadata(old, &new)?;
        Ok(fs::renameat(folder, &temporary, folder, name)?)
    })();
    if written.is_err() {
        let _ = fs::unlinkat(folder, &temporary, AtFlags::empty());
    }
    written
}

/// Owner first, because changing it clears bits of the mode; an ACL before the mode, because it changes the
/// mode.
fn keep_metadata(old: &File, new: &File) -> io::Result<()> {
    let stat = fs::fstat(old)?;
    let now = fs::fstat(new)?;
    if (stat.st_uid, stat.st_gid) != (now.st_uid, now.st_gid) {
        fs::fchown(new, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    }
    copy_xattrs(old, new)?;
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    debug_assert_eq!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile);
    Ok(fs::fchmod(new, mode)?)
}

#[derive(Debug, PartialEq, Eq)]
enum Fault {
    Missing,
    Twice(Vec<usize>),
    LineEnd(usize),
}

impl Fault {
    fn of(self, file: &TreePath, key: &str) -> PatchError {
        let (file, key) = (file.clone(), key.to_owned());
        match self {
            Self::Missing => PatchError::KeyMissing { file, key },
            Self::Twice(lines) => PatchError::KeyTwice { file, key, lines },
            Self::LineEnd(line) => PatchError::LineEnd { file, line },
        }
    }
}

/// The bytes of a file in which the one line of `key` is `KEY = VALUE`.
fn rewrite(bytes: &[u8], key: &str, value: &str) -> Result<Vec<u8>, Fault> {
    let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    let at: Vec<usize> = (0..lines.len()).filter(|index| sets(lines[*index], key)).collect();
    let [at] = at[..] else {
        return Err(if at.is_empty() {
            Fault::Missing
        } else {
            Fault::Twice(at.iter().map(|it| it + 1).collect())
        });
    };
    let (content, end) = split_end(lines[at]);
    // Carriage returns before the line end are blanks after the value, a fault that is repaired; others are
    // line ends of another system, with settings behind them.
    if content.trim_ascii_end().contains(&b'\r') {
        return Err(Fault::LineEnd(at + 1));
    }
    let line = [key.as_bytes(), b" = ", value.as_bytes(), end].concat();
    Ok([&lines[..at].concat()[..], &line, &lines[at + 1..].concat()].concat())
}

fn split_end(line: &[u8]) -> (&[u8], &[u8]) {
    let end = if line.ends_with(b"\r\n") { 2 } else { usize::from(line.ends_with(b"\n")) };
    line.split_at(line.len() - end)
}

/// True when `line` gives `key` a value. A commented line starts with `#` and so with no key.
fn sets(line: &[u8], key: &str) -> bool {
    let blank = |byte: &u8| *byte == b' ' || *byte == b'\t';
    let start = line.iter().position(|byte| !blank(byte)).unwrap_or(line.len());
    let Some(rest) = line[start..].strip_prefix(key.as_bytes()) else {
        return false;
    };
    rest.iter().find(|byte| !blank(byte)) == Some(&b'=')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    fn rewritten(text: &str) -> Result<String, Fault> {
        rewrite(text.as_bytes(), "MASTER_SERVER", "copy.example")
            .map(|it| String::from_utf8(it).expect("UTF-8"))
    }

    #[test]
    fn what_accurev_would_refuse_is_repaired() {
        for line in [
            "MASTER_SERVER=live",
            "MASTER_SERVER= live",
            "MASTER_SERVER =live",
            "  MASTER_SERVER\t=\tlive \t ",
            "MASTER_SERVER = live\r",
            "MASTER_SERVER =",
            "MASTER_SERVER = copy.example",
        ] {
            for end in ["\n", "\r\n", ""] {
                let others = "# MASTER_SERVER = old\nXMASTER_SERVER = a\nMASTER_SERVER2 = b\r\n";
                let text = format!("{others}{line}{end}");
                // A carriage return right before the line's end is part of that end.
                let end = if line.ends_with('\r') && end == "\n" { "\r\n" } else { end };
                let expected = format!("{others}MASTER_SERVER = copy.example{end}");
                assert_eq!(rewritten(&text).as_deref(), Ok(expected.as_str()), "{line:?} {end:?}");
            }
        }
    }

    #[test]
    fn a_key_that_stands_never_or_twice_is_an_error_with_lines() {
        assert_eq!(rewritten("#MASTER_SERVER = a\nPORT = 1\n"), Err(Fault::Missing));
        assert_eq!(rewritten(""), Err(Fault::Missing));
        assert_eq!(rewritten("MASTER_SERVER = a\n\nMASTER_SERVER=b"), Err(Fault::Twice(vec![1, 3])));
        assert_eq!(rewritten("MASTER_SERVER = a\rPORT = 5050\r"), Err(Fault::LineEnd(1)));
    }

    #[test]
    fn values_that_would_not_be_read_back_are_refused() {
        for value in ["", " a", "a ", "a\nb", "a\u{7f}", "a\t"] {
            assert!(matches!(check("K", value), Err(PatchError::BadValue { .. })), "{value:?}");
        }
        for key in ["", "#K", "K K", "K=", "K\n"] {
            assert!(matches!(check(key, "v"), Err(PatchError::BadKey { .. })), "{key:?}");
        }
    }

    fn tree() -> (tempfile::TempDir, File) {
        let folder = tempfile::tempdir().expect("temp");
        std::fs::create_dir(folder.path().join("bin")).expect("mkdir");
        let root = File::open(folder.path()).expect("open");
        (folder, root)
    }

    fn path(text: &str) -> TreePath {
        TreePath::parse(text.as_bytes()).expect("valid")
    }

    #[test]
    fn owner_and_mode_stay_and_the_time_does_not() {
        let (folder, root) = tree();
        let file = folder.path().join("bin/acserver.cnf");
        std::fs::write(&file, b"A = \xff\r\nK=v\r\n").expect("write");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).expect("chmod");
        let privileged = rustix::process::geteuid().is_root();
        if privileged {
            std::os::unix::fs::chown(&file, Some(1234), Some(4321)).expect("chown");
        }
        let opened = File::options().write(true).open(&file).expect("open");
        let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        opened.set_modified(old).expect("times");
        let record = apply(&root, &path("bin/acserver.cnf"), "K", "w").expect("patched");
        assert_eq!(std::fs::read(&file).expect("read"), b"A = \xff\r\nK = w\r\n");
        assert_eq!(record.digest_before, blake3::hash(b"A = \xff\r\nK=v\r\n").to_hex().as_str());
        assert_eq!(record.digest_after, blake3::hash(b"A = \xff\r\nK = w\r\n").to_hex().as_str());
        let stat = std::fs::metadata(&file).expect("stat");
        assert_eq!(stat.mode() & 0o7777, 0o640);
        assert!(stat.modified().expect("time") > old);
        if privileged {
            assert_eq!((stat.uid(), stat.gid()), (1234, 4321));
        }
        assert_eq!(std::fs::read_dir(folder.path().join("bin")).expect("list").count(), 1);
    }

    /// A copied tree comes from elsewhere: its links lead nowhere.
    #[test]
    fn no_link_is_followed_and_errors_show_no_content() {
        let (folder, root) = tree();
        std::fs::write(folder.path().join("secret"), "K = secret\nK = secret\n").expect("write");
        symlink("../secret", folder.path().join("bin/link")).expect("symlink");
        symlink("bin", folder.path().join("way")).expect("symlink");
        assert!(matches!(apply(&root, &path("bin/link"), "K", "w"), Err(PatchError::Io { .. })));
        assert!(matches!(apply(&root, &path("way/link"), "K", "w"), Err(PatchError::Io { .. })));
        assert!(matches!(apply(&root, &path("bin"), "K", "w"), Err(PatchError::NotAFile { .. })));
        let missing = apply(&root, &path("bin/none"), "K", "w").expect_err("not there");
        assert_eq!(missing.reason(), "configuration-missing");
        let twice = apply(&root, &path("secret"), "K", "w").expect_err("twice");
        assert_eq!(twice.reason(), "key-twice");
        assert_eq!(twice.to_string(), "the key 'K' stands more than once in secret: in lines 1, 2");
    }

    /// The reason is what the operator acts upon, and each fault has its own.
    #[test]
    fn each_fault_has_its_reason() {
        let (folder, root) = tree();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("write");
        write("none", "PORT = 1\n");
        write("twice", "K = 1\nK = 2\n");
        write("mac", "K = 1\rPORT = 2\r");
        let reason = |file: &str, key: &str, value: &str| {
            apply(&root, &path(file), key, value).expect_err(file).reason()
        };
        assert_eq!(reason("none", "K", "w"), "key-missing");
        assert_eq!(reason("twice", "K", "w"), "key-twice");
        assert_eq!(reason("mac", "K", "w"), "patch-failed");
        assert_eq!(reason("absent", "K", "w"), "configuration-missing");
        assert_eq!(reason("no-folder/absent", "K", "w"), "configuration-missing");
        assert_eq!(reason("bin", "K", "w"), "patch-failed");
        assert_eq!(reason("none", "#K", "w"), "patch-failed");
        assert_eq!(reason("none", "K", ""), "patch-failed");
        // A patch that failed leaves no temporary file.
        assert_eq!(std::fs::read_dir(folder.path()).expect("list").count(), 4);
    }

    /// A configuration file has at most 4 MiB: one of exactly that is patched, one byte more is refused unread.
    #[test]
    fn a_file_of_more_than_the_limit_is_refused() {
        let (folder, root) = tree();
        let file = folder.path().join("large");
        let line = b"K = v\n";
        let mut text = vec![b'#'; usize::try_from(MAX_FILE_BYTES).expect("fits") - line.len() - 1];
        text.push(b'\n');
        text.extend_from_slice(line);
        std::fs::write(&file, &text).expect("write");
        assert!(apply(&root, &path("large"), "K", "w").is_ok());
        text.push(b'\n');
        std::fs::write(&file, &text).expect("write");
        match apply(&root, &path("large"), "K", "w") {
            Err(PatchError::TooLarge { bytes, .. }) => assert_eq!(bytes, MAX_FILE_BYTES + 1),
            other => panic!("{other:?}"),
        }
    }

    /// A FIFO in the place of the file is named at once: nobody waits for a writer.
    #[test]
    fn a_fifo_in_place_of_the_file_is_refused() {
        let (folder, root) = tree();
        rustix::fs::mknodat(&root, "fifo", FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("mkfifo");
        assert!(matches!(apply(&root, &path("fifo"), "K", "w"), Err(PatchError::NotAFile { .. })));
        drop(folder);
    }

    /// The engine may depend on attributes and ACLs of its configuration.
    #[test]
    fn attributes_and_acls_stay() {
        let (folder, root) = tree();
        let file = folder.path().join("acserver.cnf");
        std::fs::write(&file, "K = v\n").expect("write");
        rustix::fs::setxattr(&file, "user.note", b"kept", rustix::fs::XattrFlags::empty())
            .expect("attribute");
        // Version 2, then tag, permissions and id of each entry: user rw, user 1234 r, group r, mask r, others nothing.
        let acl: Vec<u8> = [
            &2u32.to_le_bytes()[..],
            &[1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff],
            &[2, 0, 4, 0, 0xd2, 0x04, 0, 0],
            &[4, 0, 4, 0, 0xff, 0xff, 0xff, 0xff],
            &[16, 0, 4, 0, 0xff, 0xff, 0xff, 0xff],
            &[32, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
        ]
        .concat();
        rustix::fs::setxattr(&file, "system.posix_acl_access", &acl, rustix::fs::XattrFlags::empty())
            .expect("ACL");
        apply(&root, &path("acserver.cnf"), "K", "w").expect("patched");
        let get = |name: &str| {
            let mut value = vec![0; 256];
            let length = rustix::fs::getxattr(&file, name, value.as_mut_slice()).expect("attribute");
            value.truncate(length);
            value
        };
        assert_eq!(get("user.note"), b"kept");
        assert_eq!(get("system.posix_acl_access"), acl);
        assert_eq!(std::fs::metadata(&file).expect("stat").mode() & 0o7777, 0o640);
    }

    proptest! {
        /// Only the key's line changes, and a second application changes nothing.
        #[test]
        fn one_line_changes_once(
            before in proptest::collection::vec("[A-Z#= \u{e9}]{0,9}(\n|\r\n)", 0..5),
            line in "[ \t]{0,2}KEY[ \t]{0,2}=[ a-z]{0,5}",
            end in "(\n|\r\n|\n\n)",
            after in proptest::collection::vec("[A-Z#= ]{0,9}(\n|\r\n)", 0..5),
            tail in "[A-Z]{0,3}",
            value in "[a-z][a-z. ]{0,8}[a-z]",
        ) {
            let others = |text: &str| !text.split('\n').any(|it| it.trim_start().starts_with("KEY"));
            let (before, after) = (before.concat(), after.concat() + &tail);
            prop_assume!(others(&before) && others(&after));
            let text = format!("{before}{line}{end}{after}");
            let once = rewrite(text.as_bytes(), "KEY", &value).expect("stands once");
            let expected = format!("{before}KEY = {value}{end}{after}").into_bytes();
            prop_assert_eq!(&once, &expected);
            prop_assert_eq!(rewrite(&once, "KEY", &value).expect("still once"), once);
        }
    }
}
