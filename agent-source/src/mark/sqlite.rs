//! Marks of SQLite databases: each is copied page by page, by SQLite's own online backup, in one read transaction.
//!
//! In WAL mode writers go on meanwhile. Pages are copied as they are, damaged ones too: `VACUUM INTO` would make indexes
//! anew and so hide what the check is there to find. One step copies everything, because a backup in several steps starts
//! again whenever another process writes, which under a steady load is for ever.

use std::{
    fs::{self, Permissions},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{MetadataExt as _, PermissionsExt as _, chown},
    },
    path::Path,
    time::Duration,
};

use assay_common::{
    error::{IoContext as _, PathError},
    path::TreePath,
};
use rusqlite::{
    Connection, OpenFlags,
    backup::{Backup, StepResult},
    config::DbConfig,
};

/// How long SQLite waits for another process' lock, which is only held for moments.
const BUSY: Duration = Duration::from_secs(5);
/// Tries to get a moment without a writer's exclusive lock (rollback-journal mode only).
const TRIES: u32 = 60;

/// Why a database could not be copied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SqliteError {
    /// SQLite says no.
    #[error("{path}: {source}")]
    Sqlite {
        /// The database, relative to the root.
        path: String,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// Writers held it locked all the time.
    #[error("{path}: it stayed locked by a writer; put it into WAL mode, in which readers do not wait")]
    Locked {
        /// The database, relative to the root.
        path: String,
    },
    /// It has no page: nothing was ever written to it, or it was cut to nothing.
    #[error("{path}: it is empty, so it is no database, or none any more")]
    Empty {
        /// The database, relative to the root.
        path: String,
    },
    /// A file operation.
    #[error(transparent)]
    Io(#[from] PathError),
}

/// Copies `databases` of `root` to the same paths below `folder` and returns a text that names the state copied.
pub(super) fn snapshot(databases: &[TreePath], root: &Path, folder: &Path) -> Result<String, SqliteError> {
    let mut states = Vec::new();
    for path in databases {
        let relative = Path::new(std::ffi::OsStr::from_bytes(path.as_bytes()));
        let (live, copy) = (root.join(relative), folder.join(relative));
        let parent = copy.parent().unwrap_or(folder);
        fs::create_dir_all(parent).at("create", parent)?;
        let metadata = fs::metadata(&live).at("open", &live)?;
        let pages = copy_database(&live, &copy)
            .map_err(|source| SqliteError::Sqlite { path: path.to_string(), source })?
            .ok_or_else(|| SqliteError::Locked { path: path.to_string() })?;
        // SQLite takes an empty file for a sound database without tables.
        if pages == 0 {
            return Err(SqliteError::Empty { path: path.to_string() });
        }
        let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        if (metadata.uid(), metadata.gid()) != own {
            chown(&copy, Some(metadata.uid()), Some(metadata.gid())).at("set the owner of", &copy)?;
        }
        fs::set_permissions(&copy, Permissions::from_mode(metadata.mode() & 0o7777))
            .at("set the mode of", &copy)?;
        states.push(format!("{path}: {pages} pages"));
    }
    Ok(states.join(", "))
}

fn copy_database(live: &Path, copy: &Path) -> rusqlite::Result<Option<i32>> {
    // Read-write, so that SQLite may take part in the WAL as any reader does; nothing is ever written.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let from = Connection::open_with_flags(live, flags)?;
    from.busy_timeout(BUSY)?;
    // The last connection of a database would otherwise move its WAL into it.
    from.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    let mut to = Connection::open(copy)?;
    // The copy is read once and thrown away: making it durable would only cost the live host's disk.
    to.pragma_update(None, "synchronous", "off")?;
    to.pragma_update(None, "journal_mode", "off")?;
    let backup = Backup::new(&from, &mut to)?;
    for _ in 0..TRIES {
        // Busy or locked otherwise: a writer in rollback-journal mode is in the middle of its commit.
        if backup.step(-1)? == StepResult::Done {
            return Ok(Some(backup.progress().pagecount));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The copy is one committed state, whatever another connection is in the middle of.
    #[test]
    fn the_copy_is_a_committed_state() {
        let folder = tempfile::tempdir().expect("temp");
        let live = folder.path().join("app.db");
        let mut writer = Connection::open(&live).expect("open");
        writer.pragma_update(None, "journal_mode", "wal").expect("wal");
        writer.execute_batch("create table t(a); insert into t values (1), (2)").expect("fill");
        let open = writer.transaction().expect("begin");
        open.execute_batch("insert into t values (3)").expect("insert");
        let copies = folder.path().join("copies");
        let path = TreePath::parse(b"app.db").expect("valid");
        let id = snapshot(&[path], folder.path(), &copies).expect("snapshot");
        assert!(id.starts_with("app.db: "), "{id}");
        open.commit().expect("commit");
        let copy = Connection::open(copies.join("app.db")).expect("open copy");
        let rows: i64 = copy.query_row("select count(*) from t", [], |row| row.get(0)).expect("query");
        assert_eq!(rows, 2);
    }

    /// What is in the WAL only is in the copy, and stays in the WAL: the live files are as they were.
    #[test]
    fn the_live_files_are_left_alone() {
        let folder = tempfile::tempdir().expect("temp");
        let (live, wal) = (folder.path().join("app.db"), folder.path().join("app.db-wal"));
        let writer = Connection::open(&live).expect("open");
        writer.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).expect("set");
        writer.pragma_update(None, "journal_mode", "wal").expect("wal");
        writer.execute_batch("create table t(a); insert into t values (1), (2)").expect("fill");
        drop(writer);
        let read = || (fs::read(&live).expect("read"), fs::read(&wal).expect("read"));
        let before = read();
        assert!(!before.1.is_empty());
        let copies = folder.path().join("copies");
        snapshot(&[TreePath::parse(b"app.db").expect("valid")], folder.path(), &copies).expect("snapshot");
        assert!(before == read());
        let copy = Connection::open(copies.join("app.db")).expect("open copy");
        let rows: i64 = copy.query_row("select count(*) from t", [], |row| row.get(0)).expect("query");
        assert_eq!(rows, 2);
    }

    #[test]
    fn what_is_no_database_is_named() {
        let folder = tempfile::tempdir().expect("temp");
        for (name, content, said) in [
            ("empty.db", "", "empty.db: it is empty"),
            ("text.db", "just a text, and long enough to be looked at", "text.db: file is not a database"),
        ] {
            fs::write(folder.path().join(name), content).expect("write");
            let path = TreePath::parse(name.as_bytes()).expect("valid");
            let error = snapshot(&[path], folder.path(), &folder.path().join("copies")).expect_err(name);
            assert!(error.to_string().starts_with(said), "{error}");
        }
    }

    #[test]
    fn a_database_that_is_not_there_is_named_and_not_created() {
        let folder = tempfile::tempdir().expect("temp");
        let path = TreePath::parse(b"none.db").expect("valid");
        let error = snapshot(&[path], folder.path(), &folder.path().join("copies")).expect_err("absent");
        assert!(error.to_string().contains("none.db"), "{error}");
        assert!(!folder.path().join("none.db").exists());
    }
}
