//! Folders and files that no other user of this host may enter or read: mode 0700 and 0600 from their first instant, whatever the
//! process's umask, and closed again where an earlier version left them open.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use crate::error::{IoContext as _, PathError};

/// Mode of a closed folder.
pub const FOLDER_MODE: u32 = 0o700;
/// Mode of a closed file.
pub const FILE_MODE: u32 = 0o600;
/// What group and others may do, and set-id bits.
const OPEN: u32 = 0o7077;

/// Creates the folder and those above it that are missing, closed. A folder that exists stays as it is.
///
/// # Errors
/// As the kernel says.
pub fn create_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(path)
}

/// Creates the folder, closed, in one that exists. As `fs::create_dir`.
///
/// # Errors
/// As the kernel says; when the folder exists, too.
pub fn create_one_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(FOLDER_MODE).create(path)
}

/// Options for opening a file that is closed if this creates it.
pub fn options() -> OpenOptions {
    let mut options = File::options();
    options.mode(FILE_MODE);
    options
}

/// Creates the file, closed, or cuts off the one that exists. As `File::create`.
///
/// # Errors
/// As the kernel says.
pub fn create_file(path: &Path) -> io::Result<File> {
    options().write(true).create(true).truncate(true).open(path)
}

/// Writes a file, closed. As `fs::write`.
///
/// # Errors
/// As the kernel says.
pub fn write(path: &Path, bytes: impl AsRef<[u8]>) -> io::Result<()> {
    use std::io::Write as _;
    create_file(path)?.write_all(bytes.as_ref())
}

/// Takes from group and others what they may do with the file or folder, if it is one and if they may do anything. A link is left alone,
/// and so is what is not there.
///
/// # Errors
/// Names the path, for instance when it belongs to another user.
pub fn close(path: &Path) -> Result<(), PathError> {
    let stat = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        stat => stat.at("examine", path)?,
    };
    if !(stat.is_dir() || stat.is_file()) || stat.mode() & OPEN == 0 {
        return Ok(());
    }
    fs::set_permissions(path, Permissions::from_mode(stat.mode() & 0o700)).at("close the mode of", path)
}

/// Closes a folder, what is in it, and what is in its folders down to `depth` levels. What `skip` names (by its name in its folder) is
/// left as it is, and what is below it too. The folder itself is closed first, so that nobody exchanges a name meanwhile.
///
/// # Errors
/// Names the path.
pub fn close_below(folder: &Path, depth: usize, skip: &[&str]) -> Result<(), PathError> {
    close(folder)?;
    if depth == 0 {
        return Ok(());
    }
    for entry in list(folder, skip)? {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => close_below(&entry.path(), depth - 1, skip)?,
            Ok(kind) if kind.is_file() => close(&entry.path())?,
            _ => {}
        }
    }
    Ok(())
}

/// What is in a folder but for the names in `skip`; nothing if the folder is not there.
fn list(folder: &Path, skip: &[&str]) -> Result<Vec<fs::DirEntry>, PathError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.at("list", folder)?,
    };
    let entries: Vec<_> = entries.collect::<io::Result<_>>().at("list", folder)?;
    let is_skipped = |entry: &fs::DirEntry| skip.iter().any(|skipped| *skipped == entry.file_name());
    Ok(entries.into_iter().filter(|entry| !is_skipped(entry)).collect())
}

/// Refuses a folder that has a FIFO, a socket or a device where a file of ours belongs, in itself or in its folders down to `depth` levels:
/// whoever opens a FIFO waits for ever. What `skip` names is not looked at.
///
/// # Errors
/// Names the path.
pub fn refuse_special_files(folder: &Path, depth: usize, skip: &[&str]) -> Result<(), PathError> {
    for entry in list(folder, skip)? {
        let (path, kind) = (entry.path(), entry.file_type().at("examine", folder)?);
        if kind.is_dir() && depth > 0 {
            refuse_special_files(&path, depth - 1, skip)?;
        } else if !kind.is_dir() && !kind.is_file() && !kind.is_symlink() {
            let why = "it is a FIFO, a socket or a device, and no agent makes one here: remove it";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why)).at("use", &path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifo_in_the_place_of_a_file_is_refused_by_name() {
        let temp = tempfile::tempdir().expect("temp");
        let folder = temp.path().join("a");
        create_folder(&folder.join("tree")).expect("create");
        let make = |path: &Path| {
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).expect("mkfifo");
        };
        make(&folder.join("tree/fifo"));
        refuse_special_files(temp.path(), 1, &["tree"]).expect("what is skipped may have one");
        refuse_special_files(&temp.path().join("none"), 1, &[]).expect("nothing is there");
        make(&folder.join("lock"));
        let error = refuse_special_files(temp.path(), 1, &["tree"]).expect_err("a FIFO").to_string();
        assert!(error.contains("a/lock") && error.contains("remove it"), "{error}");
        refuse_special_files(temp.path(), 0, &[]).expect("it is deeper");
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).expect("stat").mode() & 0o7777
    }

    #[test]
    fn what_is_created_is_closed_whatever_the_umask() {
        let temp = tempfile::tempdir().expect("temp");
        let folder = temp.path().join("a/b");
        create_folder(&folder).expect("create");
        write(&folder.join("file"), b"x").expect("write");
        options().append(true).create(true).open(folder.join("log")).expect("open");
        assert_eq!((mode(&temp.path().join("a")), mode(&folder)), (0o700, 0o700));
        assert_eq!((mode(&folder.join("file")), mode(&folder.join("log"))), (0o600, 0o600));
    }

    #[test]
    fn what_was_left_open_is_closed_and_what_is_skipped_is_not() {
        let temp = tempfile::tempdir().expect("temp");
        let open = |path: &str, bits: u32| {
            let path = temp.path().join(path);
            fs::create_dir_all(path.parent().expect("has one")).expect("mkdir");
            if !path.exists() {
                fs::write(&path, "").expect("write");
            }
            fs::set_permissions(&path, Permissions::from_mode(bits)).expect("chmod");
        };
        for (path, bits) in
            [("n/file", 0o644), ("n/tree/data", 0o755), ("n/deep/er/file", 0o666), ("lock", 0o4755)]
        {
            open(path, bits);
        }
        for folder in ["n", "n/tree", "n/deep", "n/deep/er"] {
            open(folder, 0o755);
        }
        std::os::unix::fs::symlink("/etc/passwd", temp.path().join("link")).expect("symlink");
        close_below(temp.path(), 3, &["tree"]).expect("closed");
        let mode = |path: &str| mode(&temp.path().join(path));
        assert_eq!((mode("n"), mode("n/file"), mode("lock")), (0o700, 0o600, 0o700));
        assert_eq!((mode("n/tree"), mode("n/tree/data")), (0o755, 0o755));
        assert_eq!((mode("n/deep/er"), mode("n/deep/er/file")), (0o700, 0o666));
    }
}
