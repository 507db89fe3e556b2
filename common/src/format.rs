//! The version of what a folder holds: a small file called `format`, so that a program older than the one that wrote the folder says so
//! instead of misreading it.
//!
//! A folder without the file is new, or was written before there was one: both are version 1 and get it. The number changes only when an
//! older program could no longer read what a newer one writes.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    durable::write_durable,
    error::{IoContext as _, PathError},
};

/// The file's name.
const NAME: &str = "format";
/// Larger than any such file.
const MAX_BYTES: u64 = 4096;

/// Why a folder is not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// A newer program wrote it.
    #[error(
        "{}: assay {written_by} has written this {what}, in version {found} of its form; this is assay {}, which knows versions up to {known}\n\
         HINT: install assay {written_by} or a newer one; nothing was changed",
        path.display(),
        env!("CARGO_PKG_VERSION")
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// What the folder is.
        what: &'static str,
        /// The form's version.
        found: u32,
        /// The newest that this program knows.
        known: u32,
        /// Version of the program that wrote it.
        written_by: String,
    },
    /// It is a folder of another kind, or the file is damaged.
    #[error(
        "{}: this is not the version of {what}\nHINT: check that the configuration names the right folder; if it does, bring the file back \
         from a backup, or remove it when no newer assay ever wrote here",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the folder should be.
        what: &'static str,
    },
    /// The file cannot be read or written.
    #[error(transparent)]
    Io(#[from] PathError),
}

/// What stands in the file. Keys that a newer program adds are left alone.
#[derive(Debug, Serialize, Deserialize)]
struct Format {
    /// What the folder is.
    what: String,
    /// Version of its form.
    version: u32,
    /// Version of the program that wrote it first in this form.
    written_by: String,
}

/// Looks whether the folder, which need not exist, is a `what` that this program knows up to version `known`. Changes nothing. True when
/// the folder says so itself.
///
/// # Errors
/// [`FormatError`].
pub fn check(folder: &Path, what: &'static str, known: u32) -> Result<bool, FormatError> {
    let path = folder.join(NAME);
    let text = match fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Ok(stat) if stat.is_file() && stat.len() <= MAX_BYTES => {
            fs::read_to_string(&path).at("read", &path)?
        }
        Ok(_) => return Err(FormatError::Damaged { path, what }),
        Err(error) => return Err(PathError::new("read", &path, error).into()),
    };
    let found: Format = match serde_json::from_str(&text) {
        Ok(found) => found,
        Err(_) => return Err(FormatError::Damaged { path, what }),
    };
    if found.what != what || found.version == 0 {
        return Err(FormatError::Damaged { path, what });
    }
    if found.version > known {
        let written_by = crate::path::display_bytes(found.written_by.as_bytes());
        return Err(FormatError::Newer { path, what, found: found.version, known, written_by });
    }
    Ok(true)
}

/// As [`check`], and notes the version in a folder that does not say it. For whoever holds the folder's lock.
///
/// # Errors
/// [`FormatError`].
pub fn check_and_note(folder: &Path, what: &'static str, known: u32) -> Result<(), FormatError> {
    if check(folder, what, known)? {
        return Ok(());
    }
    let format =
        Format { what: what.to_owned(), version: known, written_by: env!("CARGO_PKG_VERSION").to_owned() };
    let text = serde_json::to_string(&format).expect("names and numbers are JSON");
    Ok(write_durable(&folder.join(NAME), format!("{text}\n").as_bytes(), 0o600)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_a_newer_program_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().expect("temp");
        let (path, what) = (folder.path(), "store");
        assert!(!check(&path.join("absent"), what, 1).expect("none yet"));
        assert!(!check(path, what, 1).expect("none yet"));
        assert!(fs::read_dir(path).expect("list").next().is_none(), "a check changes nothing");
        check_and_note(path, what, 1).expect("written");
        assert!(check(path, what, 1).expect("known"));
        assert!(check(path, what, 2).expect("an older one"));
        let newer = r#"{"what":"store","version":3,"written_by":"2.5.0","further":[1]}"#;
        fs::write(path.join(NAME), newer).expect("write");
        let error = check_and_note(path, what, 2).expect_err("newer").to_string();
        for word in ["assay 2.5.0", "version 3", "versions up to 2", "\nHINT: install assay 2.5.0"] {
            assert!(error.contains(word), "{word}: {error}");
        }
        assert_eq!(fs::read_to_string(path.join(NAME)).expect("read"), newer);
        for damaged in ["", "{", "1", r#"{"what":"state","version":1,"written_by":"1"}"#] {
            fs::write(path.join(NAME), damaged).expect("write");
            let error = check_and_note(path, what, 2).expect_err("damaged");
            assert!(matches!(error, FormatError::Damaged { .. }), "{damaged}: {error}");
            assert_eq!(fs::read_to_string(path.join(NAME)).expect("read"), damaged);
        }
    }
}
