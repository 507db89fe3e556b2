//! Every SQLite database below a root, by its first bytes, whatever its name is.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _},
    path::Path,
};

use assay_common::{
    path::TreePath,
    profile::FileRules,
    sqlite::{is_database, may_be_database},
};
use rustix::fs::OFlags;

/// The databases below `root` that the rules do not exclude, sorted.
///
/// Links are not followed, and what goes away meanwhile is no fault.
///
/// # Errors
/// When a folder or a file cannot be read.
pub(crate) fn databases(root: &Path, rules: &FileRules) -> io::Result<Vec<TreePath>> {
    let mut found = Vec::new();
    let mut folders = vec![TreePath::root()];
    while let Some(folder) = folders.pop() {
        let live = root.join(Path::new(std::ffi::OsStr::from_bytes(folder.as_bytes())));
        let Some(entries) = unless_gone(fs::read_dir(&live))? else { continue };
        for entry in entries {
            let entry = entry?;
            // A path that is too long is the scan's to refuse.
            let Ok(path) = folder.join(entry.file_name().as_bytes()) else { continue };
            let Some(metadata) = unless_gone(entry.metadata())? else { continue };
            if rules.is_excluded(&path) {
                continue;
            }
            if metadata.is_dir() {
                folders.push(path);
            } else if metadata.is_file()
                && may_be_database(metadata.len())
                && begins_as_database(&entry.path())?
            {
                found.push(path);
            }
        }
    }
    found.sort_by(|one, other| one.as_bytes().cmp(other.as_bytes()));
    Ok(found)
}

/// True for a file that begins as a database does; false for one that is gone.
fn begins_as_database(path: &Path) -> io::Result<bool> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let opened = OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(path);
    match unless_gone(opened)? {
        Some(file) => is_database(file),
        None => Ok(false),
    }
}

fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        // A link in place of what was a file a moment ago.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
    }
}
