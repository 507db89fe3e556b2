//! Every SQLite database below a root, by its first bytes, whatever its name is.

use std::{io, path::Path};

use assay_common::{
    confined::Folder,
    path::TreePath,
    profile::FileRules,
    sqlite::{is_database, may_be_database},
};
use rustix::fs::{FileType, Stat};

/// The databases below `root` that the rules do not exclude, sorted.
///
/// Links are not followed, those neither that come in the way of a folder meanwhile, and what goes away meanwhile is no fault.
///
/// # Errors
/// When a folder or a file cannot be read.
pub(crate) fn databases(root: &Path, rules: &FileRules) -> io::Result<Vec<TreePath>> {
    let root = Folder::open(root)?;
    let mut found = Vec::new();
    let mut folders = vec![TreePath::root()];
    while let Some(path) = folders.pop() {
        let Some(folder) = unless_gone(root.open_folder_below(&path))? else { continue };
        for name in folder.names()? {
            // A path that is too long is the scan's to refuse.
            let Ok(path) = path.join(&name) else { continue };
            if rules.is_excluded(&path) {
                continue;
            }
            let Some(stat) = unless_gone(folder.stat(&name))? else { continue };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => folders.push(path),
                FileType::RegularFile if begins_as_database(&folder, &name, &stat)? => found.push(path),
                _ => {}
            }
        }
    }
    found.sort_by(|one, other| one.as_bytes().cmp(other.as_bytes()));
    Ok(found)
}

/// True for a file that begins as a database does; false for one that is gone, or no file any more.
fn begins_as_database(folder: &Folder, name: &[u8], stat: &Stat) -> io::Result<bool> {
    if !may_be_database(stat.st_size.unsigned_abs()) {
        return Ok(false);
    }
    match unless_gone(folder.open_file(name))? {
        Some(file) => Ok(file.metadata()?.is_file() && is_database(file)?),
        None => Ok(false),
    }
}

fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        // A link in place of what was a file or a folder a moment ago.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
    }
}
