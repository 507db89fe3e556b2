//! Marks of PostgreSQL: a non-exclusive backup, started before the copy and stopped near its end, in one session.
//!
//! ```text
//! begin        a temporary slot keeps the WAL; pg_backup_start; empty files for what is not known yet
//!   copy       the data files, in any order and while they change; global/pg_control last of them
//! before_late  pg_backup_stop; backup_label, tablespace_map and the WAL from start to stop take the empty files' place
//!   copy       these
//! end          the session is closed, and the slot goes with it
//! ```
//!
//! The walk lists names while the backup is under way, and the names of the WAL segments are known only when it is over.
//! So an empty file stands for every segment that may come, and those that did not come are left out of the generation.
//!
//! The server ends a backup and drops a temporary slot by itself when their session ends, so nothing has to be undone after
//! a crash of this agent.

use std::{
    collections::HashSet,
    fs::{self, Permissions},
    io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    str::FromStr as _,
    time::Duration,
};

use assay_common::{
    error::{IoContext as _, PathError},
    path::TreePath,
};
use tokio::{sync::Mutex, task::JoinHandle};
use tokio_postgres::{Client, Config, NoTls, Row, config::Host, types::PgLsn};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

/// The first version with backups that are not exclusive and functions that say `wal` instead of `xlog`.
const OLDEST_VERSION: i32 = 100_000;
/// From here on `pg_backup_start` and `pg_backup_stop` are the names, and exclusive backups are no more.
const NEW_NAMES: i32 = 150_000;
/// How often the tablespaces are listed while some are dropped.
const LISTING_TRIES: u32 = 10;
/// What the server shows of us, and the backup's label.
const LABEL: &str = "assay";
/// How long the server may take to accept a connection on a local socket.
const CONNECT: Duration = Duration::from_secs(10);
/// Files of the mark beside the WAL.
const BACKUP_LABEL: &str = "backup_label";
const TABLESPACE_MAP: &str = "tablespace_map";

/// Why a server could not be marked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PostgresqlError {
    /// The connection string is none, or is not for a local server.
    #[error("postgresql.connection: {why}")]
    Connection {
        /// What the value must be.
        why: String,
    },
    /// The server cannot be reached, or refuses something.
    #[error("the PostgreSQL server refuses {doing}: {}", server_text(source))]
    Server {
        /// What was asked of it.
        doing: &'static str,
        /// What it said.
        source: tokio_postgres::Error,
    },
    /// The server did not answer in time.
    #[error("the PostgreSQL server was not done with {doing} after {}", humantime::format_duration(*limit))]
    TimeOut {
        /// What was asked of it.
        doing: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// It is older than Assay can mark.
    #[error("the PostgreSQL server has version {version}; it must be 10 or newer")]
    Version {
        /// As `server_version_num` has it.
        version: i32,
    },
    /// It follows another server.
    #[error("the PostgreSQL server is in recovery: it is a standby, or has not come up yet")]
    Standby,
    /// The root is another cluster's folder, or none.
    #[error("the server's data directory is {}, and the repository's first root is {}", actual.display(), root.display())]
    DataDirectory {
        /// As the server has it.
        actual: PathBuf,
        /// As the configuration has it.
        root: PathBuf,
    },
    /// An exclusive backup is under way.
    #[error("another backup of the server is under way in exclusive mode")]
    ForeignBackup,
    /// Folders outside every root.
    #[error("these folders of the server are in no root of the repository: {}", folders.join(", "))]
    NotCovered {
        /// What each is, and where.
        folders: Vec<String>,
    },
    /// More WAL came than there is room for.
    #[error(
        "the server wrote {written} WAL segments while the copy was made, and postgresql.wal_segments is {limit}"
    )]
    TooMuchWal {
        /// Segments from start to stop.
        written: u64,
        /// The most segments that may be kept.
        limit: u32,
    },
    /// A segment that the backup needs is gone, or is not whole.
    #[error("the WAL segment {name} is needed and cannot be copied: {source}")]
    Wal {
        /// The segment.
        name: String,
        /// What the file system said.
        source: io::Error,
    },
    /// The server answered what it never should.
    #[error("the PostgreSQL server's answer is not understood: {what}")]
    Answer {
        /// What was looked for.
        what: &'static str,
    },
    /// The copy ended and the backup was never stopped.
    #[error("the copy ended before the backup was stopped, so that it has no backup_label")]
    NotStopped,
    /// A file of the mark or of the configuration.
    #[error(transparent)]
    Io(#[from] PathError),
    /// The run was cancelled meanwhile.
    #[error("the run was cancelled while the mark was made")]
    Cancelled,
}

impl PostgresqlError {
    /// What the operator may try.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Connection { .. } => {
                "for example \"host=/var/run/postgresql user=assay dbname=postgres\", and the password in a file of its own"
            }
            Self::Server { source, .. } if source.as_db_error().is_none() => {
                "check that the server runs, and that the agent's user can connect: psql with the same connection string"
            }
            Self::Server { .. } => {
                "the role needs LOGIN, REPLICATION, pg_read_all_settings and EXECUTE on the two backup functions; the server \
                 needs wal_level = replica and a free replication slot"
            }
            Self::TimeOut { .. } => "the first step makes a checkpoint: raise mark.timeout in the profile",
            Self::Version { .. } => "mark it by commands of your own, in a profile with kind = \"command\"",
            Self::Standby => "run the agent on the primary server's host",
            Self::DataDirectory { .. } => {
                "give the server's data directory, by its real path, as the first root; or correct the connection"
            }
            Self::ForeignBackup => {
                "wait for the other backup; if there is none any more, run SELECT pg_stop_backup()"
            }
            Self::NotCovered { .. } => {
                "give each of them, by its real path, as a further [[repository.root]]"
            }
            Self::TooMuchWal { .. } => "raise wal_segments in the profile, or run when less is written",
            Self::Wal { .. } => {
                "check max_slot_wal_keep_size on the server: WAL was removed that a slot still needs"
            }
            Self::Answer { .. } | Self::NotStopped => "report this as a fault of Assay",
            Self::Io(_) => "check the file's owner and mode, and the room on its disk",
            Self::Cancelled => "run again",
        }
    }
}

impl PostgresqlError {
    /// True if the server did not find a file.
    fn is_missing_file(&self) -> bool {
        matches!(self, Self::Server { source, .. }
            if source.code() == Some(&tokio_postgres::error::SqlState::UNDEFINED_FILE))
    }
}

/// The server's own words, which the driver's text leaves out.
fn server_text(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(said) => {
            let detail = said.detail().map(|detail| format!(" ({detail})")).unwrap_or_default();
            format!("{}{detail}", said.message())
        }
        None => match std::error::Error::source(error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        },
    }
}

/// A root as the mark needs it.
#[derive(Debug, Clone)]
pub(super) struct MarkedRoot {
    /// On the live host.
    pub(super) live: PathBuf,
    /// Its folder in the tree; empty when it is the tree.
    pub(super) subdirectory: String,
}

/// What a server is marked with.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// As libpq has it.
    pub(super) connection: String,
    /// The file with the password.
    pub(super) password_file: Option<PathBuf>,
    /// Segments that may come.
    pub(super) wal_segments: u32,
    /// For each step that waits for the server.
    pub(super) timeout: Duration,
    /// All roots; the first is the data directory.
    pub(super) roots: Vec<MarkedRoot>,
    /// The folder of the mark's files, of the shape of the tree.
    pub(super) folder: PathBuf,
}

/// A backup that is under way on the server, for as long as this lives.
#[derive(Debug)]
pub struct Session {
    settings: Settings,
    version: i32,
    start: PgLsn,
    wal: Wal,
    /// Files that have no content before the backup is stopped.
    late: HashSet<TreePath>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    link: Option<Link>,
    /// Files that came, when the backup was stopped.
    stopped: Option<HashSet<TreePath>>,
}

/// The connection. Dropped without `close` it is cut, which makes the server abort the backup at once.
#[derive(Debug)]
struct Link {
    client: Option<Client>,
    driver: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Link {
    fn client(&self) -> &Client {
        self.client.as_ref().expect("taken by close only, which takes the link")
    }

    /// Ends the session as the protocol has it, and waits until it has ended.
    async fn close(mut self, limit: Duration) {
        drop(self.client.take());
        if tokio::time::timeout(limit, &mut self.driver).await.is_err() {
            tracing::warn!("the PostgreSQL server is slow to end the session, which is cut");
        }
    }
}

/// Where WAL is and how its files are called.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wal {
    live: PathBuf,
    mark: PathBuf,
    tree: TreePath,
    timeline: u32,
    segment_bytes: u64,
}

impl Wal {
    fn segment_of(&self, position: u64) -> u64 {
        position / self.segment_bytes
    }

    /// A stop position at a segment's start belongs to the segment that it ends.
    fn segment_before(&self, position: u64) -> u64 {
        position.saturating_sub(1) / self.segment_bytes
    }

    /// As XLogFileName in the server's xlog_internal.h.
    fn name(&self, segment: u64) -> String {
        let in_file_id = 0x1_0000_0000 / self.segment_bytes;
        format!("{:08X}{:08X}{:08X}", self.timeline, segment / in_file_id, segment % in_file_id)
    }

    fn path(&self, segment: u64) -> TreePath {
        self.tree.join(self.name(segment).as_bytes()).expect("digits are a name")
    }
}

/// Starts a backup.
pub(super) async fn begin(
    settings: Settings,
    cancel: &CancellationToken,
) -> Result<(Session, super::Mark), PostgresqlError> {
    tokio::select! {
        // Dropping the work cuts the connection.
        begun = begin_impl(settings) => begun,
        () = cancel.cancelled() => Err(PostgresqlError::Cancelled),
    }
}

async fn begin_impl(settings: Settings) -> Result<(Session, super::Mark), PostgresqlError> {
    let config = config(&settings)?;
    let link = within(CONNECT, "the connection", async {
        let (client, connection) = config.connect(NoTls).await?;
        let driver = async move {
            if let Err(error) = connection.await {
                tracing::warn!(%error, "the connection to the PostgreSQL server has ended");
            }
        };
        let driver = tokio::spawn(driver.in_current_span());
        Ok(Link { client: Some(client), driver })
    })
    .await?;
    let limit = settings.timeout;
    let ask = |doing, query| one(link.client(), limit, doing, query);
    let version: i32 =
        get(&ask("its version", "SELECT current_setting('server_version_num')::int").await?, "the version")?;
    if version < OLDEST_VERSION {
        return Err(PostgresqlError::Version { version });
    }
    // A role or a database may have limits of its own, and this session waits for hours on purpose.
    let idle = if version >= 140_000 { "SET idle_session_timeout = 0;" } else { "" };
    let set =
        format!("SET statement_timeout = 0; SET lock_timeout = 0; SET search_path = pg_catalog; {idle}");
    within(limit, "the session's settings", link.client().batch_execute(&set)).await?;
    if get(&ask("its state", "SELECT pg_is_in_recovery()").await?, "recovery")? {
        return Err(PostgresqlError::Standby);
    }
    let directory: String = get(
        &ask("its data directory", "SELECT current_setting('data_directory')").await?,
        "the data directory",
    )?;
    same_folder(Path::new(&directory), &settings.roots[0].live)?;
    if version < NEW_NAMES && get(&ask("its state", "SELECT pg_is_in_backup()").await?, "a backup")? {
        return Err(PostgresqlError::ForeignBackup);
    }
    let bytes: i64 = get(
        &ask("its segment size", "SELECT pg_size_bytes(current_setting('wal_segment_size'))").await?,
        "the segment size",
    )?;
    let segment_bytes = u64::try_from(bytes).ok().filter(|bytes| bytes.is_power_of_two());
    let segment_bytes = segment_bytes.ok_or(PostgresqlError::Answer { what: "the segment size" })?;
    let wal = covered(link.client(), &settings, segment_bytes).await?;
    // Reserved from the last checkpoint on, which is before the backup's start. Temporary: it ends with the session.
    let slot = "SELECT pg_create_physical_replication_slot('assay_' || pg_backend_pid(), true, true)::text";
    ask("a temporary replication slot", slot).await?;
    let start = if version >= NEW_NAMES {
        "SELECT pg_backup_start($1, true)"
    } else {
        "SELECT pg_start_backup($1, true, false)"
    };
    let started = link.client().query_one(start, &[&LABEL]);
    let start: PgLsn = get(&within(limit, "the start of a backup", started).await?, "the start")?;
    let query = "SELECT pg_walfile_name($1), (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
    let place = within(limit, "its clock", link.client().query_one(query, &[&start])).await?;
    let name: String = get(&place, "the WAL file's name")?;
    let timeline = name.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok());
    let timeline = timeline.ok_or(PostgresqlError::Answer { what: "the timeline" })?;
    let clock: i64 = place.try_get(1).map_err(|_| PostgresqlError::Answer { what: "the clock" })?;
    let time = jiff::Timestamp::from_microsecond(clock)
        .map_err(|_| PostgresqlError::Answer { what: "the clock" })?;
    let wal = Wal { timeline, ..wal };
    let late = lay_empty_files(&settings, &wal, start)?;
    let mark = super::Mark { id: format!("timeline {timeline}, {start}"), time };
    let state = Mutex::new(State { link: Some(link), stopped: None });
    Ok((Session { settings, version, start, wal, late, state }, mark))
}

impl Session {
    /// To be asked before a file is read that the profile wants read last. Stops the backup before the first of the mark's own
    /// files. False when there is no such file after all.
    ///
    /// # Errors
    /// When the server does not stop the backup, or its WAL is not there.
    pub(super) async fn before_late(&self, path: &TreePath) -> Result<bool, PostgresqlError> {
        if !self.late.contains(path) {
            return Ok(true);
        }
        let mut state = self.state.lock().await;
        if state.stopped.is_none() {
            let link = state.link.as_ref().ok_or(PostgresqlError::NotStopped)?;
            state.stopped = Some(self.stop(link.client()).await?);
        }
        Ok(state.stopped.as_ref().is_some_and(|came| came.contains(path)))
    }

    async fn stop(&self, client: &Client) -> Result<HashSet<TreePath>, PostgresqlError> {
        // The server ends the segment by itself, so what is needed is whole on its disk. Nobody waits for the archive: the WAL
        // is taken from where it was written.
        let query = if self.version >= NEW_NAMES {
            "SELECT lsn, labelfile, spcmapfile FROM pg_backup_stop(false)"
        } else {
            "SELECT lsn, labelfile, spcmapfile FROM pg_stop_backup(false, false)"
        };
        let row = one(client, self.settings.timeout, "the end of the backup", query).await?;
        let stop: PgLsn = get(&row, "the stop")?;
        let label: String = row.try_get(1).map_err(|_| PostgresqlError::Answer { what: "the label" })?;
        let map: Option<String> = row.try_get(2).ok();
        let (settings, wal, start) = (self.settings.clone(), self.wal.clone(), self.start);
        let work = tokio::task::spawn_blocking(move || fill(&settings, &wal, (start, stop), &label, map));
        work.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    /// Ends the session. A backup that was not stopped is aborted by the server.
    ///
    /// # Errors
    /// [`PostgresqlError::NotStopped`].
    pub(super) async fn end(&self) -> Result<(), PostgresqlError> {
        let mut state = self.state.lock().await;
        if let Some(link) = state.link.take() {
            link.close(CONNECT).await;
        }
        if state.stopped.is_some() { Ok(()) } else { Err(PostgresqlError::NotStopped) }
    }
}

fn config(settings: &Settings) -> Result<Config, PostgresqlError> {
    let told = |why: String| PostgresqlError::Connection { why };
    let mut config = Config::from_str(&settings.connection)
        .map_err(|_| told("this is no connection string in libpq's form".to_owned()))?;
    if config.get_hosts().is_empty() || config.get_hosts().iter().any(|host| !matches!(host, Host::Unix(_))) {
        return Err(told(
            "host must be the folder of a Unix socket: the agent runs beside the server".into(),
        ));
    }
    if config.get_password().is_some() {
        return Err(told("it must not contain a password: name a password_file instead".to_owned()));
    }
    if let Some(file) = &settings.password_file {
        let password = fs::read_to_string(file).at("read", file)?;
        config.password(password.trim_end_matches(['\r', '\n']));
    }
    config.application_name(LABEL);
    Ok(config)
}

async fn within<T>(
    limit: Duration,
    doing: &'static str,
    work: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, PostgresqlError> {
    let done = tokio::time::timeout(limit, work).await;
    done.map_err(|_| PostgresqlError::TimeOut { doing, limit })?
        .map_err(|source| PostgresqlError::Server { doing, source })
}

async fn one(
    client: &Client,
    limit: Duration,
    doing: &'static str,
    query: &str,
) -> Result<Row, PostgresqlError> {
    within(limit, doing, client.query_one(query, &[])).await
}

/// The first column of an answer.
fn get<'row, T: tokio_postgres::types::FromSql<'row>>(
    row: &'row Row,
    what: &'static str,
) -> Result<T, PostgresqlError> {
    row.try_get(0).map_err(|_| PostgresqlError::Answer { what })
}

/// By device and inode: the server may name its folder by another way to it.
fn same_folder(actual: &Path, root: &Path) -> Result<(), PostgresqlError> {
    let identity = |path: &Path| fs::metadata(path).map(|stat| (stat.dev(), stat.ino())).ok();
    let (of_server, of_root) = (identity(actual), identity(root));
    if of_server.is_some() && of_server == of_root {
        return Ok(());
    }
    Err(PostgresqlError::DataDirectory { actual: actual.to_owned(), root: root.to_owned() })
}

/// Makes sure that every folder of the server is in a root, and says where the WAL is.
async fn covered(client: &Client, settings: &Settings, segment_bytes: u64) -> Result<Wal, PostgresqlError> {
    let query = "SELECT spcname::text, pg_tablespace_location(oid) FROM pg_tablespace ORDER BY 1";
    let mut tries = 0;
    let rows = loop {
        tries += 1;
        match within(settings.timeout, "its tablespaces", client.query(query, &[])).await {
            // One was dropped after the server had listed it.
            Err(error) if tries < LISTING_TRIES && error.is_missing_file() => {}
            done => break done?,
        }
    };
    let mut outside = Vec::new();
    for row in &rows {
        let name: String = get(row, "a tablespace")?;
        let place: String = row.try_get(1).map_err(|_| PostgresqlError::Answer { what: "a tablespace" })?;
        // A relative one is below the data directory; the two of every server have none.
        if place.starts_with('/') && root_of(&settings.roots, Path::new(&place)).is_none() {
            outside.push(format!("{place} (tablespace {name})"));
        }
    }
    // initdb --waldir makes a link of it.
    let named = settings.roots[0].live.join("pg_wal");
    let live = fs::canonicalize(&named).at("resolve", &named)?;
    let place = root_of(&settings.roots, &live);
    if place.is_none() {
        outside.push(format!("{} (pg_wal)", live.display()));
    }
    let (Some((root, below)), true) = (place, outside.is_empty()) else {
        return Err(PostgresqlError::NotCovered { folders: outside });
    };
    let tree = tree_path(root, &below)?;
    let mark = settings.folder.join(&root.subdirectory).join(&below);
    Ok(Wal { live, mark, tree, timeline: 0, segment_bytes })
}

/// The innermost root that holds `path`, and the way from there.
fn root_of<'roots>(roots: &'roots [MarkedRoot], path: &Path) -> Option<(&'roots MarkedRoot, PathBuf)> {
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let holding = roots.iter().filter_map(|root| {
        let live = fs::canonicalize(&root.live).unwrap_or_else(|_| root.live.clone());
        Some((root, live.components().count(), real.strip_prefix(&live).ok()?.to_owned()))
    });
    holding.max_by_key(|(_, depth, _)| *depth).map(|(root, _, below)| (root, below))
}

fn tree_path(root: &MarkedRoot, below: &Path) -> Result<TreePath, PostgresqlError> {
    let way = Path::new(&root.subdirectory).join(below);
    TreePath::parse(way.as_os_str().as_encoded_bytes())
        .map_err(|_| PostgresqlError::Answer { what: "a path that a tree can hold" })
}

/// Lays an empty file for each that will have content when the backup is stopped.
fn lay_empty_files(
    settings: &Settings,
    wal: &Wal,
    start: PgLsn,
) -> Result<HashSet<TreePath>, PostgresqlError> {
    let data = &settings.roots[0];
    let mut late = HashSet::new();
    for name in [BACKUP_LABEL, TABLESPACE_MAP] {
        write_owned(settings, &settings.folder.join(&data.subdirectory).join(name), b"")?;
        late.insert(tree_path(data, Path::new(name))?);
    }
    fs::create_dir_all(&wal.mark).at("create", &wal.mark)?;
    let first = wal.segment_of(start.into());
    for segment in first..first + u64::from(settings.wal_segments) {
        write_owned(settings, &wal.mark.join(wal.name(segment)), b"")?;
        late.insert(wal.path(segment));
    }
    Ok(late)
}

/// Gives the files their content, and says which there are.
fn fill(
    settings: &Settings,
    wal: &Wal,
    (start, stop): (PgLsn, PgLsn),
    label: &str,
    map: Option<String>,
) -> Result<HashSet<TreePath>, PostgresqlError> {
    let data = &settings.roots[0];
    let mut came = HashSet::new();
    let map = map.unwrap_or_default();
    for (name, text) in [(BACKUP_LABEL, label), (TABLESPACE_MAP, map.as_str())] {
        if !text.is_empty() {
            write_owned(settings, &settings.folder.join(&data.subdirectory).join(name), text.as_bytes())?;
            came.insert(tree_path(data, Path::new(name))?);
        }
    }
    let (first, last) = (wal.segment_of(start.into()), wal.segment_before(stop.into()));
    let written = (last + 1).saturating_sub(first);
    if written > u64::from(settings.wal_segments) {
        return Err(PostgresqlError::TooMuchWal { written, limit: settings.wal_segments });
    }
    for segment in first..=last {
        let name = wal.name(segment);
        let (from, to) = (wal.live.join(&name), wal.mark.join(&name));
        let copied = fs::copy(&from, &to).and_then(|bytes| {
            if bytes == wal.segment_bytes {
                Ok(())
            } else {
                let text = format!("it has {bytes} bytes and must have {}", wal.segment_bytes);
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, text))
            }
        });
        copied.map_err(|source| PostgresqlError::Wal { name, source })?;
        give(settings, &to)?;
        came.insert(wal.path(segment));
    }
    Ok(came)
}

fn write_owned(settings: &Settings, path: &Path, content: &[u8]) -> Result<(), PathError> {
    fs::write(path, content).at("write", path)?;
    give(settings, path)
}

/// The server refuses files that are not its own, and the copy keeps owners.
fn give(settings: &Settings, path: &Path) -> Result<(), PathError> {
    let live = &settings.roots[0].live;
    let owner = fs::metadata(live).at("examine", live)?;
    fs::set_permissions(path, Permissions::from_mode(0o600)).at("set the mode of", path)?;
    let own = fs::metadata(path).at("examine", path)?;
    if (own.uid(), own.gid()) == (owner.uid(), owner.gid()) {
        return Ok(());
    }
    chown(path, Some(owner.uid()), Some(owner.gid())).at("change the owner of", path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wal(segment_bytes: u64) -> Wal {
        let tree = TreePath::parse(b"pg_wal").expect("a path");
        Wal { live: "/live".into(), mark: "/mark".into(), tree, timeline: 2, segment_bytes }
    }

    /// Names and borders as `pg_walfile_name` gives them, for the usual and the smallest size of segments.
    #[test]
    fn segments_are_named_as_the_server_names_them() {
        let usual = wal(16 << 20);
        assert_eq!(usual.name(usual.segment_of(0x5_AB00_0028)), "0000000200000005000000AB");
        assert_eq!(usual.path(1).as_bytes(), b"pg_wal/000000020000000000000001");
        assert_eq!(usual.name(usual.segment_before(0x1_0000_0000)), "0000000200000000000000FF");
        assert_eq!(usual.name(usual.segment_of(0x1_0000_0000)), "000000020000000100000000");
        let small = wal(1 << 20);
        assert_eq!(small.name(small.segment_of(0x1_0010_0000)), "000000020000000100000001");
    }

    fn settings(connection: &str) -> Settings {
        Settings {
            connection: connection.to_owned(),
            password_file: None,
            wal_segments: 2,
            timeout: Duration::from_secs(60),
            roots: Vec::new(),
            folder: PathBuf::new(),
        }
    }

    #[test]
    fn only_a_local_socket_without_a_password_in_the_text_is_accepted() {
        assert!(config(&settings("host=/run/postgresql user=assay")).is_ok());
        for refused in
            ["", "user=assay", "host=db.example.com", "host=127.0.0.1", "host=/run password=secret", "host"]
        {
            let error = config(&settings(refused)).expect_err(refused).to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    /// A folder outside every root is named, the innermost root wins, and a name that only begins alike does not count.
    #[test]
    fn folders_belong_to_the_innermost_root() {
        let root = |live: &str, name: &str| MarkedRoot { live: live.into(), subdirectory: name.into() };
        let roots = [root("/nowhere/data", "main"), root("/nowhere/data/space", "space")];
        let place = |path: &str| {
            root_of(&roots, Path::new(path)).map(|(root, below)| (root.subdirectory.clone(), below))
        };
        assert_eq!(place("/nowhere/data/pg_wal"), Some(("main".into(), "pg_wal".into())));
        assert_eq!(place("/nowhere/data/space/x"), Some(("space".into(), "x".into())));
        assert_eq!(place("/nowhere/database"), None);
    }

    /// What the run would miss at a restore is an error: too many segments, one that is gone, one that is cut.
    #[test]
    fn wal_that_is_not_whole_is_an_error() {
        let folder = tempfile::tempdir().expect("temp");
        let (live, mark) = (folder.path().join("live"), folder.path().join("mark"));
        fs::create_dir_all(&live).expect("mkdir");
        fs::create_dir_all(&mark).expect("mkdir");
        let roots = vec![MarkedRoot { live: live.clone(), subdirectory: String::new() }];
        let settings = Settings { roots, folder: mark.clone(), ..settings("") };
        let wal = Wal { live: live.clone(), mark, ..wal(1 << 20) };
        let fill = |stop: u64| {
            super::fill(&settings, &wal, (PgLsn::from(1 << 20), PgLsn::from(stop)), "label", None)
        };
        assert!(matches!(fill(4 << 20), Err(PostgresqlError::TooMuchWal { written: 3, limit: 2 })));
        assert!(matches!(fill(2 << 20), Err(PostgresqlError::Wal { .. })), "it is not there");
        fs::write(live.join(wal.name(1)), vec![7; 1000]).expect("write");
        let cut = fill(2 << 20).expect_err("cut").to_string();
        assert!(cut.contains("1000 bytes"), "{cut}");
        fs::write(live.join(wal.name(1)), vec![7; 1 << 20]).expect("write");
        let came = fill((2 << 20) + 40).expect_err("the second is not there").to_string();
        assert!(came.contains(&wal.name(2)), "{came}");
        fs::write(live.join(wal.name(2)), vec![8; 1 << 20]).expect("write");
        let came = fill((2 << 20) + 40).expect("whole");
        assert!(came.contains(&wal.path(1)) && came.contains(&wal.path(2)) && came.len() == 3, "{came:?}");
        assert_eq!(fs::read(wal.mark.join(wal.name(2))).expect("read"), vec![8; 1 << 20]);
        // A stop at a segment's very end is in that segment.
        let came = fill(2 << 20).expect("whole");
        assert!(came.contains(&wal.path(1)) && came.len() == 2, "{came:?}");
    }
}
