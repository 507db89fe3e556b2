//! Files that are whole or absent after a crash: written beside their place, synced, renamed, and the folder
//! synced.
//!
//! A crash can leave a temporary file, whose name starts with [`TEMPORARY_PREFIX`]; [`remove_temporary`]
//! clears those. Success is reported only when the name itself is on disk.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, RenameFlags},
    io::Errno,
};

use crate::{
    error::{IoContext as _, PathError},
    fault::{self, Point},
};

/// How the name of every unfinished file starts. No finished file has such a name.
pub const TEMPORARY_PREFIX: &str = ".assay-tmp-";

/// Writes `bytes` to `path`, in place of what may be there. A reader sees the old file or the new one, never
/// a mixture.
///
/// `mode` is that of the new file from its first instant, less the process's umask.
///
/// # Errors
/// Names the path; the old file is then as it was, unless only the last sync of the folder failed.
pub fn write_durable(path: &Path, bytes: &[u8], mode: u32) -> Result<(), PathError> {
    let mut temporary = Temporary::write(path, bytes, mode)?;
    fs::rename(&temporary.path, path).at("replace", path)?;
    temporary.remains = false;
    fault::at(Point::DurableRenamed).at("sync", path)?;
    sync_parent(path)
}

/// Writes `bytes` to `path`, which must not exist; otherwise like [`write_durable`].
///
/// # Errors
/// Names the path; [`io::ErrorKind::AlreadyExists`] when there is something of that name, which stays as it
/// is.
pub fn create_durable(path: &Path, bytes: &[u8], mode: u32) -> Result<(), PathError> {
    let mut temporary = Temporary::write(path, bytes, mode)?;
    match rustix::fs::renameat_with(CWD, &temporary.path, CWD, path, RenameFlags::NOREPLACE) {
        Ok(()) => temporary.remains = false,
        // The file system cannot do that (NFS, some FUSE): a hard link does not replace either.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
            fs::hard_link(&temporary.path, path).at("create", path)?
        }
        Err(error) => return Err(error).at("create", path),
    }
    fault::at(Point::DurableRenamed).at("sync", path)?;
    sync_parent(path)
}

/// Removes what a crash left unfinished in `folder`. The caller makes sure that nobody is writing there.
///
/// # Errors
/// Names the file or the folder.
pub fn remove_temporary(folder: &Path) -> Result<usize, PathError> {
    let mut removed = 0;
    for entry in fs::read_dir(folder).at("list", folder)? {
        let entry = entry.at("list", folder)?;
        if entry.file_name().as_encoded_bytes().starts_with(TEMPORARY_PREFIX.as_bytes()) {
            fs::remove_file(entry.path()).at("remove", &entry.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Makes the names in a folder durable.
///
/// # Errors
/// Names the folder.
pub fn sync_folder(folder: &Path) -> Result<(), PathError> {
    File::open(folder).and_then(|folder| folder.sync_all()).at("sync", folder)
}

fn sync_parent(path: &Path) -> Result<(), PathError> {
    sync_folder(parent(path))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A written and synced file that is removed unless it got its name.
struct Temporary {
    path: PathBuf,
    /// False once the file has its own name.
    remains: bool,
}

impl Temporary {
    fn write(target: &Path, bytes: &[u8], mode: u32) -> Result<Self, PathError> {
        fault::at(Point::DurableWrite).at("create", target)?;
        let name = format!("{TEMPORARY_PREFIX}{:016x}", rand::random::<u64>());
        let path = parent(target).join(name);
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(mode).open(&path).at("create", target)?;
        let temporary = Self { path, remains: true };
        write_and_sync(&mut file, bytes).at("write", target)?;
        fault::at(Point::DurableRename).at("replace", target)?;
        Ok(temporary)
    }
}

fn write_and_sync(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    file.write_all(bytes)?;
    fault::at(Point::DurableFsync)?;
    file.sync_all()
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // The error that brought us here is the one to tell; what stays behind is removed at the next start.
        if self.remains {
            drop(fs::remove_file(&self.path));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("folder");
        entries.map(|entry| entry.expect("entry").file_name().into_string().expect("UTF-8")).collect()
    }

    #[test]
    fn a_file_is_replaced_whole_and_nothing_stays_beside_it() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("record.json");
        write_durable(&path, b"old", 0o600).expect("write");
        write_durable(&path, b"new", 0o600).expect("replace");
        assert_eq!(fs::read(&path).expect("read"), b"new");
        assert_eq!(fs::metadata(&path).expect("metadata").permissions().mode() & 0o777, 0o600);
        assert_eq!(names(folder.path()), ["record.json"]);
    }

    #[test]
    fn create_never_replaces() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("key");
        create_durable(&path, b"first", 0o600).expect("create");
        let error = create_durable(&path, b"second", 0o600).expect_err("exists");
        assert_eq!(error.source.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).expect("read"), b"first");
        assert_eq!(names(folder.path()), ["key"]);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_names_it() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("taken");
        fs::create_dir(&path).expect("folder in the way");
        let error = write_durable(&path, b"new", 0o600).expect_err("a folder is in the way");
        assert_eq!(error.path, path);
        assert_eq!(names(folder.path()), ["taken"]);
    }

    #[test]
    fn leftovers_of_a_crash_are_removed_and_nothing_else() {
        let folder = tempfile::tempdir().expect("folder");
        fs::write(folder.path().join(".assay-tmp-0123"), b"half").expect("write");
        fs::write(folder.path().join(".other"), b"whole").expect("write");
        assert_eq!(remove_temporary(folder.path()).expect("remove"), 1);
        assert_eq!(names(folder.path()), [".other"]);
    }
}
