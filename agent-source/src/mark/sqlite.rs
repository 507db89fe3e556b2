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
    confined::copy_xattrs,
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
use tokio_util::sync::CancellationToken;

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
                "put the database into WAL mode (PRAGMA journal_mode = wal) with PRAGMA locking_mode = normal, in which readers wait for no \
                 writer; nothing was copied"
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

/// Copies the databases and returns a text that names the state copied. What is `cancel`led waits for no lock any more.
pub(super) fn snapshot(wanted: &Wanted, cancel: &CancellationToken) -> Result<String, SqliteError> {
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
        let state = match copy_database(&database, cancel) {
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
        make_alike(copy, live, &metadata)?;
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

/// Gives a copy the owner, the mode, the ACL and the extended attributes of the live file. Its time is that of the mark: the live file's
/// says nothing about a state that is in its log as well.
fn make_alike(copy: &Path, live: &Path, metadata: &Metadata) -> Result<(), PathError> {
    let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    if (metadata.uid(), metadata.gid()) != own {
        chown(copy, Some(metadata.uid()), Some(metadata.gid())).at("set the owner of", copy)?;
    }
    // One that came from the folder of the copies. What the live file has comes last: an ACL's mask is the mode's group.
    match rustix::fs::removexattr(copy, "system.posix_acl_access") {
        Ok(()) | Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => {}
        Err(error) => return Err(io::Error::from(error)).at("remove the ACL of", copy),
    }
    let mode = Permissions::from_mode(metadata.mode() & 0o7777);
    fs::set_permissions(copy, mode).at("set the mode of", copy)?;
    let from = open_file(&fs::canonicalize(live).at("open", live)?).at("open", live)?;
    let to = open_file(copy).at("open", copy)?;
    copy_xattrs(&from, &to).at("copy the attributes of", live)
}

/// Copies one database, and says which state.
fn copy_database(database: &Database, cancel: &CancellationToken) -> Result<String, SqliteError> {
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
        match back_up(live, copy, || !cancel.is_cancelled() && began.elapsed() < LOCK_WAIT) {
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
        make_alike(&to, &from, &fs::metadata(&from).at("open", &from)?)?;
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
mod tests;
