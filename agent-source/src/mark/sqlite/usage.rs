//! Whether a process has a database open, and whether what such processes have agreed on still counts.
//!
//! Every process that has a database in WAL mode open holds a lock on one byte of its `-shm` file. To ask who holds it takes no
//! lock and writes nothing. (SQLite: os_unix.c, `UNIX_SHM_DMS`.)

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::Duration,
};

use rustix::process::{Flock, FlockOffsetType, FlockType, fcntl_getlk};

use super::{beside, open_file};

/// The byte that every user of a database in WAL mode holds a lock on.
const USERS_BYTE: u64 = 128;
/// The header says here which format readers and writers of the database must know: 2 stands for a write-ahead log.
const FORMATS: std::ops::Range<usize> = 18..20;
/// Two writes that lie further apart than this have different times on every file system that databases are kept on.
pub(super) const TIME_STEP: Duration = Duration::from_millis(50);

/// True for a database in WAL mode.
pub(super) fn is_in_wal_mode(live: &Path) -> io::Result<bool> {
    let mut header = Vec::new();
    open_file(live)?.take(FORMATS.end as u64).read_to_end(&mut header)?;
    Ok(header.get(FORMATS) == Some(&[2, 2]))
}

/// True if a process has the database open in WAL mode.
pub(super) fn is_open(live: &Path) -> io::Result<bool> {
    Ok(open_shared(live)?.is_some_and(|shared| is_locked(&shared)))
}

/// True if what stands in the `-shm` file is about the log as it must be now: a process has it open, or one had since this host
/// started. After a power cut the log may rightly be shorter, because SQLite need not wait for the disk at each commit.
pub(super) fn still_counts(live: &Path) -> io::Result<bool> {
    let Some(shared) = open_shared(live)? else { return Ok(false) };
    Ok(is_locked(&shared) || shared.metadata()?.mtime() > started())
}

/// True if the database or its log was written a moment ago.
pub(super) fn has_just_changed(live: &Path) -> bool {
    let is_young = |ending: &str| {
        let found = fs::symlink_metadata(beside(live, ending)).ok()?;
        let changed = jiff::Timestamp::new(found.ctime(), i32::try_from(found.ctime_nsec()).ok()?).ok()?;
        Some(changed.duration_until(jiff::Timestamp::now()).unsigned_abs() < TIME_STEP)
    };
    ["", "-wal"].into_iter().any(|ending| is_young(ending).unwrap_or(false))
}

fn open_shared(live: &Path) -> io::Result<Option<File>> {
    match open_file(&beside(live, "-shm")) {
        Ok(shared) => Ok(Some(shared)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// True if a process holds the lock, and where the file system does not say.
fn is_locked(shared: &File) -> bool {
    let asked = Flock {
        start: USERS_BYTE,
        length: 1,
        pid: None,
        typ: FlockType::WriteLock,
        offset_type: FlockOffsetType::Set,
    };
    !fcntl_getlk(shared, &asked).is_ok_and(|holder| holder.is_none())
}

/// When this host started, in seconds since 1970; 0 when it does not say so.
fn started() -> i64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("btime "));
    line.and_then(|seconds| seconds.trim().parse().ok()).unwrap_or(0)
}
