//! Marks of SQLite databases: each is copied page by page, by SQLite's own online backup, in one read transaction.
//!
//! In WAL mode writers go on meanwhile. Pages are copied as they are, damaged ones too: `VACUUM INTO` would make indexes
//! anew and so hide what the check is there to find. One step copies everything, because a backup in several steps starts
//! again whenever another process writes, which under a steady load is for ever.
//!
//! Nothing is written to a live database. It is opened for reading only, so SQLite does not roll back a journal that a dead
//! writer left: the database and its journal are copied, and rolled back there. A database in WAL mode that no process has open
//! is copied with its log, and opened there: SQLite would make files beside the live one. Of a write-ahead log that has lost
//! committed transactions, SQLite would copy what is left without a word: then database and log are copied as they are, for the
//! check to find the damage.

mod discover;
mod usage;

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, Metadata, Permissions},
    io::{self, BufReader, Read as _},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use assay_common::{
    error::{IoContext as _, PathError},
    path::TreePath,
    profile::FileRules,
    sqlite::{JOURNAL_HEADER, SIDE_FILES, Wal, WalIndex, looks_encrypted, read_wal},
};
use rusqlite::{
    Connection, OpenFlags,
    backup::{Backup, StepResult},
    config::DbConfig,
};
use rustix::fs::OFlags;

/// How long SQLite waits for another process' lock at a time. Its pauses between two looks become longer while it waits, so a writer that
/// holds the lock most of the time is met in many short waits rather than in a long one.
const BUSY: Duration = Duration::from_millis(50);
/// How long a mark waits for a moment without a writer's exclusive lock (rollback-journal mode only).
const LOCK_WAIT: Duration = Duration::from_secs(60);
/// Tries to copy a database and its journal while nobody writes to them, and to read a log twice with the same result.
const RAW_TRIES: u32 = 10;

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
    #[error("{path}: writers held it locked for {} seconds", LOCK_WAIT.as_secs())]
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
    /// Its journal is hot, and database or journal change all the time.
    #[error(
        "{path}: a journal is left beside it whose writer is gone, and the files change while they are copied"
    )]
    Journal {
        /// The database, relative to the root.
        path: String,
    },
    /// A file operation.
    #[error(transparent)]
    Io(#[from] PathError),
}

impl SqliteError {
    /// What to do about it.
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::Locked { .. } => {
                "put the database into WAL mode (PRAGMA journal_mode = wal), in which readers wait for no writer; nothing was copied"
            }
            Self::Empty { .. } => {
                "restore the database, or exclude the file when it is none; nothing was copied"
            }
            Self::Journal { .. } => {
                "open the database with its application, which rolls the journal back, and run again; nothing was copied"
            }
            Self::Io(_) => "mend what the error names and run again; nothing was copied",
            Self::Sqlite { .. } => {
                "look at the live database with PRAGMA integrity_check; nothing was copied"
            }
        }
    }
}

/// The databases to copy.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Those that the configuration names, in the first root. They must be there.
    pub(super) named: Vec<TreePath>,
    /// Each root, live, and where its copies go. The first comes first.
    pub(super) roots: Vec<(PathBuf, PathBuf)>,
    /// What is not copied.
    pub(super) rules: FileRules,
}

/// One of them.
struct Database {
    path: TreePath,
    live: PathBuf,
    copy: PathBuf,
    is_named: bool,
}

impl Wanted {
    fn all(&self) -> Result<Vec<Database>, SqliteError> {
        let mut all = Vec::new();
        let mut add = |path: &TreePath, (live, copies): &(PathBuf, PathBuf), is_named| {
            let relative = Path::new(OsStr::from_bytes(path.as_bytes()));
            let (live, copy) = (live.join(relative), copies.join(relative));
            all.push(Database { path: path.clone(), live, copy, is_named });
        };
        if let Some(first) = self.roots.first() {
            self.named.iter().for_each(|path| add(path, first, true));
        }
        for root in &self.roots {
            // Files that the configuration names are excluded from the copy, so they are not found again.
            let live = fs::canonicalize(&root.0).at("open", &root.0)?;
            for path in discover::databases(&live, &self.rules).at("look for databases in", &live)? {
                add(&path, &(live.clone(), root.1.clone()), false);
            }
        }
        Ok(all)
    }
}

/// The databases that the configuration does not name and that a mark copies as well, in one root.
///
/// # Errors
/// When a folder or a file cannot be read.
pub(crate) fn found(root: &Path, rules: &FileRules) -> io::Result<Vec<TreePath>> {
    discover::databases(root, rules)
}

/// Copies the databases and returns a text that names the state copied.
pub(super) fn snapshot(wanted: &Wanted) -> Result<String, SqliteError> {
    let mut states = Vec::new();
    for database in wanted.all()? {
        let Database { path, live, copy, is_named } = &database;
        // Nobody named it, so no link that has come in its way meanwhile may lead to another one.
        if !is_named && fs::canonicalize(live).is_ok_and(|resolved| resolved != *live) {
            continue;
        }
        let parent = copy.parent().unwrap_or(copy);
        fs::create_dir_all(parent).at("create", parent)?;
        let metadata = match fs::metadata(live) {
            // It was found a moment ago: it goes as it came.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !is_named => continue,
            metadata => metadata.at("open", live)?,
        };
        let state = match copy_database(&database) {
            Ok(state) => state,
            Err(error) if error.says_that_it_is_no_database() && (!is_named || is_encrypted(live)) => {
                // It only begins as one does, or is encrypted. The check names it.
                let copied =
                    open_file(live).and_then(|mut from| io::copy(&mut from, &mut File::create(copy)?));
                copied.at("copy", live)?;
                "as a file".to_owned()
            }
            Err(error) => return Err(error),
        };
        make_alike(copy, &metadata)?;
        states.push(format!("{path}: {state}"));
    }
    Ok(states.join(", "))
}

fn is_encrypted(live: &Path) -> bool {
    open_file(live).and_then(|file| looks_encrypted(&file)).unwrap_or(false)
}

impl SqliteError {
    fn says_that_it_is_no_database(&self) -> bool {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        match self {
            Self::Sqlite { source, .. } => {
                source.sqlite_error_code().is_some_and(|it| matches!(it, DatabaseCorrupt | NotADatabase))
            }
            _ => false,
        }
    }
}

/// Gives a copy the owner and the mode of the live file.
fn make_alike(copy: &Path, live: &Metadata) -> Result<(), PathError> {
    let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    if (live.uid(), live.gid()) != own {
        chown(copy, Some(live.uid()), Some(live.gid())).at("set the owner of", copy)?;
    }
    fs::set_permissions(copy, Permissions::from_mode(live.mode() & 0o7777)).at("set the mode of", copy)
}

/// Copies one database, and says which state.
fn copy_database(database: &Database) -> Result<String, SqliteError> {
    let Database { path, copy, .. } = database;
    // SQLite's files stand beside the file that a link leads to.
    let live = &fs::canonicalize(&database.live).at("open", &database.live)?;
    let path = || path.to_string();
    refuse_odd_side_files(live)?;
    // Before this process has the database open: closing another descriptor of its files would end the locks that SQLite holds.
    if let Some(loss) = log_loss(live).at("read the log of", live)? {
        tracing::error!(database = %live.display(), loss, "the write-ahead log is damaged");
        // With what its users have agreed on, which the check compares the log with.
        copy_raw(live, copy, &["-wal", "-shm"])?;
        let log = beside(copy, "-wal");
        if !log.exists() {
            // It is gone on the live host. An empty one says to the check that there must be one.
            File::create(&log).at("create", &log)?;
        }
        return Ok(format!("with its write-ahead log, in which {loss}"));
    }
    let sqlite = |source| SqliteError::Sqlite { path: path(), source };
    let pages = if copy_unused(live, copy)? {
        back_up_in_place(copy).map_err(sqlite)?
    } else {
        let began = Instant::now();
        match back_up(live, copy, || began.elapsed() < LOCK_WAIT) {
            Err(error) if needs_rollback(&error) => {
                roll_back_copy(live, copy, &path)?;
                back_up_in_place(copy).map_err(sqlite)?
            }
            pages => pages.map_err(sqlite)?.ok_or_else(|| SqliteError::Locked { path: path() })?,
        }
    };
    // SQLite takes an empty file for a sound database without tables.
    if pages == 0 {
        return Err(SqliteError::Empty { path: path() });
    }
    Ok(format!("{pages} pages"))
}

/// Copies a database by SQLite's online backup and says how many pages it has; `None` when writers kept it locked until `goes_on`, which is
/// asked after each wait in vain, said no.
fn back_up(live: &Path, copy: &Path, mut goes_on: impl FnMut() -> bool) -> rusqlite::Result<Option<i32>> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let from = Connection::open_with_flags(live, flags)?;
    // The last connection of a database would otherwise move its WAL into it.
    from.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    let mut to = Connection::open(copy)?;
    // The copy is read once and thrown away: making it durable would only cost the live host's disk.
    to.pragma_update(None, "synchronous", "off")?;
    to.pragma_update(None, "journal_mode", "off")?;
    let backup = Backup::new(&from, &mut to)?;
    loop {
        // Each time anew: a connection that has waited in vain once does not wait again until it runs a statement, and a backup runs none.
        from.busy_timeout(BUSY)?;
        // Busy or locked otherwise: a writer in rollback-journal mode is in the middle of its commit.
        if backup.step(-1)? == StepResult::Done {
            return Ok(Some(backup.progress().pagecount));
        }
        if !goes_on() {
            return Ok(None);
        }
    }
}

/// True for what SQLite says to a reader who finds a journal whose writer is gone.
fn needs_rollback(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|it| it.extended_code == rusqlite::ffi::SQLITE_READONLY_ROLLBACK)
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Refuses a log or a journal that is no file. SQLite makes only files. A FIFO would be waited for without an end, and a link
/// would lead to a file that is not the database's.
fn refuse_odd_side_files(live: &Path) -> Result<(), PathError> {
    for ending in SIDE_FILES {
        let path = beside(live, ending);
        if fs::symlink_metadata(&path).is_ok_and(|found| !found.is_file()) {
            let text = "it stands where SQLite keeps a file of its own, and is no regular file; remove it";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text)).at("read", &path);
        }
    }
    Ok(())
}

/// Opens a file for reading, and neither follows a link nor waits for a FIFO that has come in its place.
fn open_file(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    File::options().read(true).custom_flags(flags).open(path)
}

/// Copies a database with those of these files beside it that are there, as they are.
fn copy_raw(live: &Path, copy: &Path, endings: &[&str]) -> Result<(), PathError> {
    for ending in [""].iter().chain(endings) {
        let (from, to) = (beside(live, ending), beside(copy, ending));
        match fs::copy(&from, &to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !ending.is_empty() => continue,
            copied => copied.at("copy", &from)?,
        };
        make_alike(&to, &fs::metadata(&from).at("open", &from)?)?;
    }
    Ok(())
}

/// Removes the copies of a try that was in vain, so that the next one's are not mixed with them.
fn remove_copies(copy: &Path, endings: &[&str]) -> Result<(), PathError> {
    for ending in [""].iter().chain(endings) {
        let old = beside(copy, ending);
        match fs::remove_file(&old) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).at("remove", &old),
            _ => {}
        }
    }
    Ok(())
}

/// Sizes and times of files; `None` for one that is not there.
type State = Vec<Option<(u64, u64, i64, i64)>>;

fn state(live: &Path, endings: &[&str]) -> State {
    let state = |ending: &&str| {
        let found = fs::symlink_metadata(beside(live, ending)).ok()?;
        Some((found.ino(), found.size(), found.ctime(), found.ctime_nsec()))
    };
    [""].iter().chain(endings).map(state).collect()
}

/// Copies a database in WAL mode with its log, if no process has it open and neither file changes meanwhile. To open it where it
/// lies would make a log and a `-shm` beside it, or write to those that are there.
fn copy_unused(live: &Path, copy: &Path) -> Result<bool, PathError> {
    if !usage::is_in_wal_mode(live).at("open", live)? {
        return Ok(false);
    }
    let endings = ["-wal", "-shm"];
    for _ in 0..RAW_TRIES {
        if usage::is_open(live).at("look who uses", live)? {
            return Ok(false);
        }
        let before = state(live, &endings);
        if usage::has_just_changed(live) {
            // A further write would not be seen by the time of the file. Only time helps.
            std::thread::park_timeout(usage::TIME_STEP);
            continue;
        }
        copy_raw(live, copy, &["-wal"])?;
        if state(live, &endings) == before && !usage::is_open(live).at("look who uses", live)? {
            return Ok(true);
        }
        remove_copies(copy, &["-wal"])?;
    }
    Ok(false)
}

/// Copies a database and its hot journal, while neither changes, and lets SQLite roll the copy back.
fn roll_back_copy(live: &Path, copy: &Path, path: &dyn Fn() -> String) -> Result<(), SqliteError> {
    let journal = beside(live, "-journal");
    for _ in 0..RAW_TRIES {
        let before = state(live, &["-journal"]);
        remove_copies(copy, &["-journal"])?;
        if before.contains(&None) {
            continue;
        }
        let mut start = [0; JOURNAL_HEADER.len()];
        let mut open = open_file(&journal).at("open", &journal)?;
        let is_hot = open.read_exact(&mut start).is_ok() && start == JOURNAL_HEADER;
        copy_raw(live, copy, &["-journal"])?;
        if is_hot && state(live, &["-journal"]) == before {
            return Ok(());
        }
    }
    Err(SqliteError::Journal { path: path() })
}

/// Opens a copy that has its journal or its log beside it, so that SQLite rolls the one back and moves the other into the
/// database, and counts its pages.
fn back_up_in_place(copy: &Path) -> rusqlite::Result<i32> {
    let connection = Connection::open_with_flags(copy, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.pragma_update(None, "synchronous", "off")?;
    connection.query_row("select count(*) from sqlite_schema", [], |_| Ok(()))?;
    connection.query_row("pragma wal_checkpoint(truncate)", [], |_| Ok(()))?;
    let pages = connection.query_row("pragma page_count", [], |row| row.get(0))?;
    connection.close().map_err(|(_, error)| error)?;
    Ok(pages)
}

/// What the write-ahead log of a database has lost.
///
/// A writer goes on while the log is read, so a frame may be read before and the next one after it was written. Such a loss is
/// not there when the log is read again.
fn log_loss(live: &Path) -> io::Result<Option<String>> {
    let mut last: Option<Wal> = None;
    for _ in 0..RAW_TRIES {
        let index = match usage::still_counts(live)? {
            true => read_start(&beside(live, "-shm"), 136)?,
            false => None,
        };
        let index = index.as_deref().and_then(WalIndex::parse);
        let log: Box<dyn io::Read> = match open_file(&beside(live, "-wal")) {
            Ok(log) => Box::new(log),
            // To its users it is lost, as one that was cut to nothing.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Box::new(io::empty()),
            Err(error) => return Err(error),
        };
        let header = read_start(live, 18)?.unwrap_or_default();
        // 1 stands for 65536.
        let page_bytes = header.get(16..18).map_or(0, |it| u32::from(u16::from_be_bytes([it[0], it[1]])));
        let wal = read_wal(
            BufReader::with_capacity(1 << 20, log),
            if page_bytes == 1 { 65536 } else { page_bytes },
        )?;
        let loss = wal.loss(index.as_ref());
        let is_same = |last: &Wal| {
            let place = |it: &Wal| (it.salts, it.broken.as_ref().map(|it| (it.number, it.header)));
            place(last) == place(&wal)
        };
        match loss {
            None => return Ok(None),
            Some(loss) if last.as_ref().is_some_and(is_same) => return Ok(Some(loss)),
            Some(_) => last = Some(wal),
        }
    }
    Ok(None)
}

/// The first bytes of a file, fewer where it has no more; `None` when it is not there.
fn read_start(path: &Path, bytes: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match open_file(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut start = Vec::new();
    file.take(bytes).read_to_end(&mut start)?;
    Ok(Some(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SQLITE: &str = include_str!("../../../profiles/sqlite.toml");

    /// A mark of what is in a folder: these databases by their names, and what is found.
    fn mark(folder: &Path, copies: &Path, named: &[&str]) -> Result<String, SqliteError> {
        let profile = assay_common::profile::Profile::parse(Path::new("sqlite.toml"), SQLITE).expect("valid");
        let given = assay_common::profile::Value::List(named.iter().map(|it| (*it).to_owned()).collect());
        let vars = std::collections::BTreeMap::from([("databases".to_owned(), given)]);
        let vars = profile.bind(&vars, &["main"]).expect("fits");
        snapshot(&Wanted {
            named: profile.databases(&vars).expect("paths"),
            roots: vec![(folder.to_owned(), copies.to_owned())],
            rules: FileRules::new(&profile, &vars, &["left-out".to_owned()]).expect("rules"),
        })
    }

    fn rows(path: &Path) -> i64 {
        let copy = Connection::open(path).expect("open copy");
        copy.query_row("select count(*) from t", [], |row| row.get(0)).expect("query")
    }

    /// Neither a FIFO nor a link in place of a database's own files is opened, and the error names it.
    #[test]
    fn odd_files_beside_a_database_are_refused() {
        for ending in SIDE_FILES {
            for is_link in [false, true] {
                let folder = tempfile::tempdir().expect("temp");
                let live = folder.path().join("app.db");
                for path in [&live, &folder.path().join("named.db")] {
                    Connection::open(path).expect("open").execute_batch("create table t(a)").expect("fill");
                }
                let odd = beside(&live, ending);
                if is_link {
                    std::os::unix::fs::symlink("/etc/passwd", &odd).expect("symlink");
                } else {
                    let mode = rustix::fs::Mode::from_raw_mode(0o600);
                    rustix::fs::mknodat(rustix::fs::CWD, &odd, rustix::fs::FileType::Fifo, mode, 0)
                        .expect("mkfifo");
                }
                let copies = tempfile::tempdir().expect("temp");
                let error = mark(folder.path(), copies.path(), &["named.db"]);
                let error = error.expect_err("it is refused").to_string();
                assert!(error.contains(&format!("app.db{ending}")), "{error}");
                assert!(error.contains("no regular file"), "{error}");
            }
        }
    }

    /// What is looked for is not looked for behind links, and a FIFO is not opened.
    #[test]
    fn links_and_fifos_are_no_databases_that_are_found() {
        let (folder, outside) = (tempfile::tempdir().expect("temp"), tempfile::tempdir().expect("temp"));
        let make = |path: &Path| {
            Connection::open(path).expect("open").execute_batch("create table t(a)").expect("fill");
        };
        make(&outside.path().join("app.db"));
        fs::create_dir(folder.path().join("inner")).expect("mkdir");
        make(&folder.path().join("inner/own.db"));
        make(&folder.path().join("named.db"));
        let link = |to: &Path, name: &str| {
            std::os::unix::fs::symlink(to, folder.path().join(name)).expect("symlink");
        };
        link(&outside.path().join("app.db"), "linked.db");
        link(outside.path(), "linked");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let fifo = folder.path().join("fifo.db");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).expect("mkfifo");
        let copies = tempfile::tempdir().expect("temp");
        let id = mark(folder.path(), copies.path(), &["named.db"]).expect("snapshot");
        assert!(id.contains("inner/own.db: ") && !id.contains("linked"), "{id}");
    }

    /// A writer that has the lock for longer than SQLite waits is waited for again, and one that keeps it ends the mark.
    #[test]
    fn a_locked_database_is_waited_for_more_than_once() {
        let folder = tempfile::tempdir().expect("temp");
        let live = folder.path().join("app.db");
        let writer = Connection::open(&live).expect("open");
        writer.execute_batch("create table t(a); insert into t values (1); begin exclusive").expect("fill");
        let copy = folder.path().join("copy.db");
        let mut waits = 0;
        let pages = back_up(&live, &copy, || {
            waits += 1;
            if waits == 3 {
                writer.execute_batch("rollback").expect("rollback");
            }
            true
        });
        assert_eq!((pages.expect("copied"), waits, rows(&copy)), (Some(2), 3, 1));
        writer.execute_batch("begin exclusive").expect("lock");
        assert_eq!(back_up(&live, &folder.path().join("other.db"), || false).expect("no error"), None);
    }

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
        let copies = tempfile::tempdir().expect("temp");
        let copies = copies.path().join("copies");
        let id = mark(folder.path(), &copies, &["app.db"]).expect("snapshot");
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
        let copies = tempfile::tempdir().expect("temp");
        let copies = copies.path().join("copies");
        mark(folder.path(), &copies, &["app.db"]).expect("snapshot");
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
            let copies = tempfile::tempdir().expect("temp");
            let error = mark(folder.path(), copies.path(), &[name]).expect_err(name);
            assert!(error.to_string().starts_with(said), "{error}");
        }
    }

    /// SQLite cannot tell an encrypted database from rubbish. It is copied as a file, and the check names it.
    #[test]
    fn an_encrypted_database_is_copied_as_a_file() {
        let folder = tempfile::tempdir().expect("temp");
        let mut content = vec![0; 5 * 4096];
        blake3::Hasher::new().finalize_xof().fill(&mut content);
        fs::write(folder.path().join("secret.db"), &content).expect("write");
        let copies = tempfile::tempdir().expect("temp");
        let id = mark(folder.path(), copies.path(), &["secret.db"]).expect("mark");
        assert_eq!(id, "secret.db: as a file");
        assert!(fs::read(copies.path().join("secret.db")).expect("read") == content);
    }

    #[test]
    fn a_database_that_is_not_there_is_named_and_not_created() {
        let folder = tempfile::tempdir().expect("temp");
        let copies = tempfile::tempdir().expect("temp");
        let error = mark(folder.path(), copies.path(), &["none.db"]).expect_err("absent");
        assert!(error.to_string().contains("none.db"), "{error}");
        assert!(!folder.path().join("none.db").exists());
    }

    /// Whatever it is called, and wherever it is: a database is copied by the online backup, so its copy is never torn.
    #[test]
    fn databases_that_nobody_named_are_found_and_copied() {
        let folder = tempfile::tempdir().expect("temp");
        fs::create_dir_all(folder.path().join("deep/er")).expect("mkdir");
        for name in ["app.db", "other.db", "deep/er/no ending", "left-out"] {
            let writer = Connection::open(folder.path().join(name)).expect("open");
            writer
                .execute_batch("pragma journal_mode=wal; create table t(a); insert into t values (1)")
                .expect("fill");
            // Its log stays beside it, with a commit that the file does not have.
            writer.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).expect("set");
        }
        fs::write(folder.path().join("file"), vec![7; 4096]).expect("write");
        let mut almost = b"SQLite format 3\0".to_vec();
        almost.resize(4096, 0xa5);
        fs::write(folder.path().join("almost"), &almost).expect("write");
        std::os::unix::fs::symlink("app.db", folder.path().join("link")).expect("link");
        let copies = tempfile::tempdir().expect("temp");
        for named in [&["app.db"][..], &["*"]] {
            let id = mark(folder.path(), copies.path(), named).expect("mark");
            for name in ["app.db", "other.db", "deep/er/no ending"] {
                assert!(id.contains(&format!("{name}: 2 pages")), "{id}");
                assert_eq!(rows(&copies.path().join(name)), 1);
            }
            assert!(
                id.contains("almost: as a file") && !id.contains("left-out") && !id.contains("link"),
                "{id}"
            );
            assert_eq!(fs::read(copies.path().join("almost")).expect("read"), almost);
            assert!(!copies.path().join("file").exists());
        }
    }

    /// A writer died: its journal is rolled back in the copy, and both live files are as they were.
    #[test]
    fn a_hot_journal_is_rolled_back_in_the_copy() {
        let (made, folder) = (tempfile::tempdir().expect("temp"), tempfile::tempdir().expect("temp"));
        let writer = Connection::open(made.path().join("h.db")).expect("open");
        writer
            .execute_batch(
                "pragma cache_size = 5; create table t(a);
                 insert into t with recursive n(i) as (select 1 union all select i + 1 from n where i < 3000)
                 select 'old' || hex(zeroblob(50)) from n;
                 begin; update t set a = 'new' || a; delete from t where rowid > 10;",
            )
            .expect("fill");
        for ending in ["", "-journal"] {
            fs::copy(made.path().join(format!("h.db{ending}")), folder.path().join(format!("h.db{ending}")))
                .expect("copy");
        }
        let read = || ["h.db", "h.db-journal"].map(|it| fs::read(folder.path().join(it)).expect("read"));
        let before = read();
        let copies = tempfile::tempdir().expect("temp");
        mark(folder.path(), copies.path(), &["h.db"]).expect("mark");
        assert!(before == read());
        assert_eq!(rows(&copies.path().join("h.db")), 3000);
        assert!(!copies.path().join("h.db-journal").exists());
    }

    /// Nothing is made or changed beside a database that nobody uses, whatever lies there, and the copy has what its log holds.
    #[test]
    fn a_database_that_nobody_uses_is_not_touched() {
        let made = tempfile::tempdir().expect("temp");
        let writer = Connection::open(made.path().join("w.db")).expect("open");
        writer
            .execute_batch(
                "pragma journal_mode=wal; pragma wal_autocheckpoint=0; create table t(a); insert into t values (1), (2)",
            )
            .expect("fill");
        for endings in [&["", "-wal"][..], &["", "-wal", "-shm"]] {
            let folder = tempfile::tempdir().expect("temp");
            for ending in endings {
                let name = format!("w.db{ending}");
                fs::copy(made.path().join(&name), folder.path().join(&name)).expect("copy");
            }
            // Closed as it should be: in WAL mode, without a log.
            let closed = Connection::open(folder.path().join("closed.db")).expect("open");
            closed
                .execute_batch("pragma journal_mode=wal; create table t(a); insert into t values (1), (2)")
                .expect("fill");
            drop(closed);
            let look = || {
                let mut files: Vec<_> = fs::read_dir(folder.path())
                    .expect("read")
                    .map(|entry| entry.expect("entry").path())
                    .map(|path| {
                        (
                            fs::read(&path).expect("read"),
                            fs::metadata(&path).expect("stat").mtime_nsec(),
                            path,
                        )
                    })
                    .collect();
                files.sort_by(|one, other| one.2.cmp(&other.2));
                (files, fs::metadata(folder.path()).expect("stat").mtime_nsec())
            };
            let before = look();
            let copies = tempfile::tempdir().expect("temp");
            mark(folder.path(), copies.path(), &["*"]).expect("mark");
            assert!(before == look(), "{endings:?}");
            for name in ["w.db", "closed.db"] {
                assert_eq!(rows(&copies.path().join(name)), 2, "{name}");
            }
            assert_eq!(fs::read_dir(copies.path()).expect("read").count(), 2);
        }
    }

    /// Cut between two frames the log looks whole; what its users have agreed on tells.
    #[test]
    fn a_log_that_was_cut_is_told_by_its_users() {
        let (made, folder) = (tempfile::tempdir().expect("temp"), tempfile::tempdir().expect("temp"));
        let writer = Connection::open(made.path().join("w.db")).expect("open");
        writer
            .execute_batch("pragma journal_mode=wal; pragma wal_autocheckpoint=0; create table t(a)")
            .expect("fill");
        for number in 0..20 {
            writer.execute("insert into t values (?1)", [number]).expect("insert");
        }
        for ending in ["", "-wal", "-shm"] {
            fs::copy(made.path().join(format!("w.db{ending}")), folder.path().join(format!("w.db{ending}")))
                .expect("copy");
        }
        let log = File::options().write(true).open(folder.path().join("w.db-wal")).expect("open");
        for frames in [10_u64, 0] {
            log.set_len(32 + frames * (24 + 4096)).expect("cut");
            let copies = tempfile::tempdir().expect("temp");
            let id = mark(folder.path(), copies.path(), &["w.db"]).expect("mark");
            assert!(id.contains(&format!("the file ends after frame {frames}, and the log has ")), "{id}");
            assert!(copies.path().join("w.db-shm").exists());
        }
        fs::remove_file(folder.path().join("w.db-wal")).expect("remove");
        let copies = tempfile::tempdir().expect("temp");
        mark(folder.path(), copies.path(), &["w.db"]).expect("mark");
        assert_eq!(fs::metadata(copies.path().join("w.db-wal")).expect("there").len(), 0);
        // Nobody has opened it since the host started: a log that is shorter than it was is that of a power cut.
        let old = rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 };
        let shared = File::options().write(true).open(folder.path().join("w.db-shm")).expect("open");
        let times = rustix::fs::Timestamps { last_access: old, last_modification: old };
        rustix::fs::futimens(&shared, &times).expect("times");
        let copies = tempfile::tempdir().expect("temp");
        mark(folder.path(), copies.path(), &["w.db"]).expect("mark");
        assert!(!copies.path().join("w.db-wal").exists());
    }

    /// A damaged frame in the log: database and log are in the mark as they are, for the check to see.
    #[test]
    fn a_log_that_lost_commits_is_copied_as_it_is() {
        let (made, folder) = (tempfile::tempdir().expect("temp"), tempfile::tempdir().expect("temp"));
        let writer = Connection::open(made.path().join("w.db")).expect("open");
        writer
            .execute_batch("pragma journal_mode=wal; pragma wal_autocheckpoint=0; create table t(a)")
            .expect("fill");
        for number in 0..50 {
            writer.execute("insert into t values (?1)", [format!("{number}").repeat(400)]).expect("insert");
        }
        let copy = |ending: &str| {
            fs::copy(made.path().join(format!("w.db{ending}")), folder.path().join(format!("w.db{ending}")))
                .expect("copy");
        };
        let copies = tempfile::tempdir().expect("temp");
        // Sound, first without and then with what living processes have agreed on.
        copy("");
        copy("-wal");
        mark(folder.path(), copies.path(), &["w.db"]).expect("mark");
        assert_eq!(rows(&copies.path().join("w.db")), 50);
        let damaged = || {
            let log = folder.path().join("w.db-wal");
            let mut content = fs::read(&log).expect("read");
            let middle = content.len() / 2;
            content[middle..middle + 64].fill(0xff);
            fs::write(&log, &content).expect("write");
            content
        };
        for endings in [&["", "-wal"][..], &["", "-wal", "-shm"]] {
            drop(fs::remove_file(folder.path().join("w.db-shm")));
            endings.iter().for_each(|ending| copy(ending));
            let content = damaged();
            let copies = tempfile::tempdir().expect("temp");
            let id = mark(folder.path(), copies.path(), &["w.db"]).expect("mark");
            assert!(id.contains("in which frame ") && id.contains(" is damaged"), "{id}");
            assert!(fs::read(copies.path().join("w.db-wal")).expect("read") == content);
            assert!(fs::read(folder.path().join("w.db-wal")).expect("read") == content);
        }
    }
}
