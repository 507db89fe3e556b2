//! What errors of every module share: a path with each failed file operation, and a hint for the operator.
//!
//! An error's own text says what failed and on which object; what the operator may try comes from [`Hint`]
//! and is printed on a line of its own, so that scripts can tell the two apart.

use std::{
    error::Error,
    fmt, io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use rustix::io::Errno;

use crate::path::display_bytes;

/// A text without the numbers of the operating system's errors, which the text beside them says: "(os error 28)".
pub fn without_codes(text: &str) -> String {
    const BEGIN: &str = " (os error ";
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(BEGIN) {
        let after = &rest[at + BEGIN.len()..];
        let digits =
            after.len() - after.trim_start_matches(|it: char| it.is_ascii_digit() || it == '-').len();
        match after[digits..].strip_prefix(')').filter(|_| digits > 0) {
            Some(end) => {
                plain.push_str(&rest[..at]);
                rest = end;
            }
            None => {
                plain.push_str(&rest[..at + BEGIN.len()]);
                rest = after;
            }
        }
    }
    plain.push_str(rest);
    plain
}

/// A file operation failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {}", ShowPath(path), without_codes(&source.to_string()))]
pub struct PathError {
    /// The file or folder.
    pub path: PathBuf,
    /// What was tried, as a verb that fits after 'cannot'.
    pub action: &'static str,
    /// Why it failed.
    pub source: io::Error,
}

impl PathError {
    /// An error of `action`, a verb that fits after 'cannot', on `path`.
    pub fn new(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self { path: path.to_owned(), action, source: source.into() }
    }
}

impl Hint for PathError {
    fn hint(&self) -> Option<String> {
        let path = ShowPath(&self.path);
        match self.source.kind() {
            io::ErrorKind::PermissionDenied => {
                Some(format!("check the owner and the mode of {path} and its folders"))
            }
            io::ErrorKind::StorageFull if has_no_inodes(&self.path) => {
                Some(format!("the file system of {path} has no inodes left (df -i): remove some files there"))
            }
            io::ErrorKind::StorageFull => Some(format!("free some space on the file system of {path}")),
            io::ErrorKind::QuotaExceeded => {
                Some(format!("raise the quota on the file system of {path}, or remove what counts against it"))
            }
            io::ErrorKind::ReadOnlyFilesystem => {
                Some(format!("the file system of {path} is mounted read-only"))
            }
            io::ErrorKind::NotFound => Some(format!("check that {path} and the folders above it exist")),
            _ => match self.source.raw_os_error().map(Errno::from_raw_os_error)? {
                Errno::IO => Some(format!("the disk of {path} may be failing: the kernel's log says more")),
                Errno::MFILE => Some(
                    "this process has too many files open: raise its limit (LimitNOFILE of the unit, ulimit -n)"
                        .to_owned(),
                ),
                Errno::NFILE => {
                    Some("this host has too many files open: raise the sysctl fs.file-max".to_owned())
                }
                _ => None,
            },
        }
    }
}

/// A file system that is full has blocks left and no inodes. The path, or the folder that it is in, says which one that is.
fn has_no_inodes(path: &Path) -> bool {
    let found = path.ancestors().take(2).find_map(|place| rustix::fs::statvfs(place).ok());
    // Some file systems make inodes as they need them, and have 0 of 0.
    found.is_some_and(|found| found.f_files > 0 && found.f_favail == 0 && found.f_bavail > 0)
}

/// Gives a failed file operation its path.
pub trait IoContext<T> {
    /// Says what was tried (`action` is a verb that fits after 'cannot') and on which path.
    ///
    /// # Errors
    /// The same error, with its context.
    fn at(self, action: &'static str, path: &Path) -> Result<T, PathError>;
}

impl<T, E: Into<io::Error>> IoContext<T> for Result<T, E> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, PathError> {
        self.map_err(|error| PathError::new(action, path, error))
    }
}

/// What the operator may try about an error.
pub trait Hint {
    /// One or two sentences without a full stop at the end, or nothing when we know no better than the
    /// error's text.
    fn hint(&self) -> Option<String>;
}

/// The text of an error as a command line prints it: the error, then its `HINT:` line where there is one.
pub fn report<E: Error + Hint>(error: &E) -> String {
    match error.hint() {
        Some(hint) => format!("{error}\nHINT: {hint}"),
        None => error.to_string(),
    }
}

/// Shows a path on one line, whatever its bytes are.
pub struct ShowPath<'a>(pub &'a Path);

impl fmt::Display for ShowPath<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&display_bytes(self.0.as_os_str().as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_errors_are_left_out_and_nothing_else_is() {
        let text = "a: No space left on device (os error 28): b (os error -1), c (os error x) d (os error ";
        assert_eq!(without_codes(text), "a: No space left on device: b, c (os error x) d (os error ");
        assert_eq!(without_codes("plain"), "plain");
    }

    #[test]
    fn each_way_in_which_a_disk_refuses_has_its_remedy() {
        for (errno, remedy) in [
            (Errno::NOSPC, "free some space"),
            (Errno::ROFS, "mounted read-only"),
            (Errno::DQUOT, "raise the quota"),
            (Errno::IO, "may be failing"),
            (Errno::MFILE, "LimitNOFILE"),
            (Errno::NFILE, "fs.file-max"),
            (Errno::ACCESS, "owner and the mode"),
        ] {
            let hint = PathError::new("write", Path::new("/tmp/a"), errno).hint();
            assert!(hint.as_ref().is_some_and(|hint| hint.contains(remedy)), "{errno:?}: {hint:?}");
        }
    }

    #[test]
    fn a_failed_operation_names_its_path_and_hints_on_a_line_of_its_own() {
        let error = std::fs::read("/nonexistent/a\nb")
            .at("read", Path::new("/nonexistent/a\nb"))
            .expect_err("absent");
        assert_eq!(
            report(&error),
            "cannot read /nonexistent/a\\nb: No such file or directory\n\
             HINT: check that /nonexistent/a\\nb and the folders above it exist"
        );
    }
}
