//! Marks: how the engine of a repository is told of a backup, before the copy, and after it.
//!
//! A mark that was begun is ended on every way out of a run, an error and a cancellation included.

pub(crate) mod command;
mod postgresql;
mod progress;
pub(crate) mod sqlite;

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use assay_common::{
    confined::Folder,
    digest::ContentDigest,
    durable::write_durable,
    error::{IoContext as _, PathError},
    fault::{self, Point},
    path::TreePath,
    profile::{FileRules, MarkKind, Profile, TemplateError, template::Scope},
};
use tokio_util::sync::CancellationToken;

use self::progress::Watermarks;
pub use command::CommandError;
pub use postgresql::{PostgresqlError, Session as PostgresqlSession};
pub use sqlite::SqliteError;

/// A trace is a small file; of a larger one the front tells enough.
const MAX_TRACE_BYTES: u64 = 1024 * 1024;

/// Noted instead of a mark's id from before the begin command until it has given one. No id has control characters.
const UNKNOWN: &str = "\0";

/// The id of a mark of which the engine knows nothing.
pub(crate) const NO_MARK: &str = "none";

/// A mark that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// What the engine calls it.
    pub id: String,
    /// When it was complete.
    pub time: jiff::Timestamp,
}

/// Why there is no mark.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MarkError {
    /// A command of the profile.
    #[error("mark: {0}")]
    Command(#[from] CommandError),
    /// A SQLite database.
    #[error(transparent)]
    Sqlite(#[from] SqliteError),
    /// A PostgreSQL server.
    #[error(transparent)]
    Postgresql(#[from] PostgresqlError),
    /// A placeholder of the profile has no value here.
    #[error("mark: {0}")]
    Template(#[from] TemplateError),
    /// The folder for the mark's files.
    #[error(transparent)]
    Io(#[from] PathError),
    /// A pattern of files is none.
    #[error("{0}")]
    Rules(String),
    /// Another mark was made while the copy was.
    #[error(
        "{path} has changed since the mark: another mark was made while the copy was under way, or the engine moved its files"
    )]
    Foreign {
        /// The file that tells.
        path: String,
    },
    /// The first root is not what the profile is for.
    #[error("{root} has no {path}: the profile is for {what}")]
    NotThere {
        /// The first root.
        root: PathBuf,
        /// What must be in it.
        path: String,
        /// The profile's description.
        what: String,
    },
    /// The run was cancelled meanwhile.
    #[error("the run was cancelled while the mark was made")]
    Cancelled,
}

/// Makes the marks of one repository.
pub struct Marker {
    profile: Profile,
    scope: Scope,
    databases: Vec<TreePath>,
    /// Patterns of files that the repository's configuration leaves out.
    exclude: Vec<String>,
    /// First root, live; and the folder of the tree that it is.
    first_root: (PathBuf, String),
    folder: PathBuf,
    /// Digests of the profile's traces right after the mark; `None` for one that is not there.
    traces: Vec<Option<ContentDigest>>,
    /// What this mark saw of what the engine only adds to.
    watermarks: Option<Watermarks>,
    /// The backup of `mark.kind = "postgresql"`, while it is under way.
    postgresql: Option<Arc<PostgresqlSession>>,
}

/// Says when the files that are read last are read: the mark may end before its own.
#[derive(Debug, Clone)]
pub struct LateFiles {
    postgresql: Option<Arc<PostgresqlSession>>,
    runtime: tokio::runtime::Handle,
}

impl LateFiles {
    /// To be asked before each file that is read last, on a thread that may block. False when there is no such file after all.
    ///
    /// # Errors
    /// When the engine does not end the mark.
    pub fn before(&self, path: &TreePath) -> Result<bool, MarkError> {
        match &self.postgresql {
            Some(session) => Ok(self.runtime.block_on(session.before_late(path))?),
            None => Ok(true),
        }
    }
}

impl Marker {
    /// A marker that may put files of its own into `folder`, which has the shape of the tree.
    pub fn new(
        profile: Profile,
        mut scope: Scope,
        databases: Vec<TreePath>,
        first_root: (PathBuf, String),
        folder: PathBuf,
    ) -> Self {
        scope.mark_dir = Some(folder.join(&first_root.1));
        Self {
            profile,
            scope,
            databases,
            exclude: Vec::new(),
            first_root,
            folder,
            traces: Vec::new(),
            watermarks: None,
            postgresql: None,
        }
    }

    /// Leaves files out that match these patterns, as the copy does.
    #[must_use]
    pub fn excluding(mut self, patterns: Vec<String>) -> Self {
        self.exclude = patterns;
        self
    }

    /// The databases to copy: those that are named, then those that are found, in all roots.
    fn databases_to_copy(&self) -> Result<sqlite::Wanted, MarkError> {
        let rules =
            FileRules::new(&self.profile, &self.scope.vars, &self.exclude).map_err(MarkError::Rules)?;
        let root = |(name, live): &(String, PathBuf)| {
            let is_single = self.first_root.1.is_empty();
            (live.clone(), if is_single { self.folder.clone() } else { self.folder.join(name) })
        };
        Ok(sqlite::Wanted {
            named: self.databases.clone(),
            roots: self.scope.roots.iter().map(root).collect(),
            rules,
        })
    }

    /// Makes the mark, then waits for the profile's settle time.
    ///
    /// # Errors
    /// When the engine did not make it, or when the run was cancelled. A begin command that failed, or was cancelled half-way, is
    /// followed by `end` all the same: nothing tells whether the engine holds anything then.
    pub async fn begin(&mut self, cancel: &CancellationToken) -> Result<Mark, MarkError> {
        self.must_exist()?;
        fault::at(Point::MarkBegin).at("make a mark in", &self.folder)?;
        match std::fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Err::<(), _>(error).at("remove", &self.folder).expect_err("it is one").into());
            }
            _ => {}
        }
        let own = self.folder.join(&self.first_root.1);
        std::fs::create_dir_all(&own).at("create", &own)?;
        if self.profile.mark.kind == MarkKind::Postgresql {
            let (session, mark) = postgresql::begin(self.postgresql_settings()?, cancel).await?;
            self.postgresql = Some(Arc::new(session));
            self.traces = self.read_traces();
            self.settle(cancel).await?;
            return Ok(mark);
        }
        let id = match self.profile.mark.kind {
            // The server was asked for its own above.
            MarkKind::None | MarkKind::Postgresql => NO_MARK.to_owned(),
            MarkKind::Sqlite => {
                let wanted = self.databases_to_copy()?;
                let stop = cancel.clone();
                let work = tokio::task::spawn_blocking(move || sqlite::snapshot(&wanted, &stop));
                match work.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())) {
                    Err(_) if cancel.is_cancelled() => return Err(MarkError::Cancelled),
                    copied => copied?,
                }
            }
            MarkKind::Command => {
                if self.has_end() {
                    // Before the engine is told anything: of a kill between the two, the next start would know nothing.
                    write_durable(&self.held_path(), UNKNOWN.as_bytes(), 0o600)?;
                }
                match command::begin(&self.profile.mark, &self.scope, cancel).await {
                    Ok(id) => id,
                    Err(error) => {
                        if self.has_end() {
                            self.end_uncertain(!matches!(error, CommandError::Start { .. })).await;
                        }
                        return Err(error.into());
                    }
                }
            }
        };
        let id = self.with_watermarks(id);
        let mark = Mark { id, time: jiff::Timestamp::now() };
        self.scope.mark_id = Some(mark.id.clone());
        fault::at(Point::MarkBegun).at("note the mark in", &self.folder)?;
        if self.has_end() {
            write_durable(&self.held_path(), mark.id.as_bytes(), 0o600)?;
        }
        fault::at(Point::MarkHeld).at("note the mark in", &self.folder)?;
        self.traces = self.read_traces();
        self.settle(cancel).await?;
        Ok(mark)
    }

    /// Looks at what the engine only adds to, and adds to the mark's id what is less than at the last backup's mark.
    fn with_watermarks(&mut self, id: String) -> String {
        let mark = &self.profile.mark;
        // The end command gets the id of the engine's own.
        if (mark.never_back.is_empty() && !mark.references) || self.has_end() {
            return id;
        }
        let watermarks = Watermarks::look(mark, &self.first_root.0);
        let less = Watermarks::load(&self.progress_path()).and_then(|last| watermarks.less_than(&last));
        self.watermarks = Some(watermarks);
        match less {
            Some(less) => format!("{id}; {less}"),
            None => id,
        }
    }

    /// Remembers what this mark saw: its backup is sealed.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn remember(&self) -> Result<(), MarkError> {
        if let Some(watermarks) = &self.watermarks {
            watermarks.save(&self.progress_path())?;
        }
        Ok(())
    }

    fn progress_path(&self) -> PathBuf {
        self.folder.with_extension("progress")
    }

    /// Makes sure that the first root is what the profile is for.
    fn must_exist(&self) -> Result<(), MarkError> {
        let root = &self.first_root.0;
        for path in &self.profile.mark.must_exist {
            match std::fs::symlink_metadata(root.join(path)) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    let what = self.profile.description.clone();
                    return Err(MarkError::NotThere { root: root.clone(), path: path.clone(), what });
                }
                Err(error) => {
                    return Err(Err::<(), _>(error)
                        .at("look for", &root.join(path))
                        .expect_err("it is one")
                        .into());
                }
            }
        }
        Ok(())
    }

    async fn settle(&self, cancel: &CancellationToken) -> Result<(), MarkError> {
        let settle = self.profile.mark.settle.0;
        if !settle.is_zero() {
            tokio::select! {
                () = tokio::time::sleep(settle) => {}
                () = cancel.cancelled() => return Err(MarkError::Cancelled),
            }
        }
        Ok(())
    }

    fn postgresql_settings(&self) -> Result<postgresql::Settings, MarkError> {
        let server =
            self.profile.postgresql.as_ref().expect("a profile of this kind has the table, as was checked");
        let text =
            |template: &str| self.scope.expand(template).map(|text| text.to_string_lossy().into_owned());
        let password_file = text(&server.password_file)?;
        let root = |(name, live): &(String, PathBuf)| postgresql::MarkedRoot {
            live: live.clone(),
            // One root is the tree; several have folders of their names in it.
            subdirectory: if self.first_root.1.is_empty() { String::new() } else { name.clone() },
        };
        Ok(postgresql::Settings {
            connection: text(&server.connection)?,
            password_file: (!password_file.is_empty()).then(|| PathBuf::from(password_file)),
            wal_segments: server.wal_segments,
            timeout: self.profile.mark.timeout.0,
            roots: self.scope.roots.iter().map(root).collect(),
            folder: self.folder.clone(),
        })
    }

    /// For whoever reads the files that are read last.
    pub fn late_files(&self) -> LateFiles {
        LateFiles { postgresql: self.postgresql.clone(), runtime: tokio::runtime::Handle::current() }
    }

    /// Makes sure that the mark is still the engine's last one.
    ///
    /// # Errors
    /// When a trace has changed since.
    pub fn still_holds(&self) -> Result<(), MarkError> {
        let changed = self.read_traces().iter().zip(&self.traces).position(|(now, then)| now != then);
        match changed.and_then(|index| self.profile.mark.traces.get(index)) {
            Some(path) => Err(MarkError::Foreign { path: path.clone() }),
            None => Ok(()),
        }
    }

    fn read_traces(&self) -> Vec<Option<ContentDigest>> {
        let root = Folder::open(&self.first_root.0).ok();
        let digest = |path: &String| {
            let path = TreePath::parse(path.as_bytes()).ok()?;
            let mut content = Vec::new();
            let file = root.as_ref()?.open_file_below(&path).ok()?;
            file.take(MAX_TRACE_BYTES).read_to_end(&mut content).ok()?;
            Some(ContentDigest::of(&content))
        };
        self.profile.mark.traces.iter().map(digest).collect()
    }

    /// The folder of the mark's own files, when the mark has some.
    pub fn files(&self) -> Option<&Path> {
        let own = self.folder.join(&self.first_root.1);
        let any = std::fs::read_dir(own).is_ok_and(|mut entries| entries.next().is_some());
        any.then_some(self.folder.as_path())
    }

    /// Ends the mark.
    ///
    /// # Errors
    /// When the engine's end command fails.
    pub async fn end(&self) -> Result<(), MarkError> {
        fault::at(Point::MarkEnd).at("end the mark in", &self.folder)?;
        if let Some(session) = &self.postgresql {
            session.end().await?;
        }
        if self.has_end() && self.scope.mark_id.is_some() {
            command::end(&self.profile.mark, &self.scope).await?;
            let held = self.held_path();
            fault::at(Point::MarkEnded).at("remove", &held)?;
            std::fs::remove_file(&held).at("remove", &held)?;
        }
        Ok(())
    }

    /// Ends the mark before its run does: a snapshot holds what the mark stood for. Nothing that happens to the engine's files from now on
    /// matters.
    ///
    /// # Errors
    /// When another mark was made since, or when the engine's end command fails.
    pub async fn end_for_snapshot(&mut self) -> Result<(), MarkError> {
        self.still_holds()?;
        let ended = self.end().await;
        // It is not tried twice in one run. A mark that is still held is noted, and the next run ends it.
        self.scope.mark_id = None;
        self.traces.clear();
        ended
    }

    /// Ends the mark of a run that was killed, if there is one.
    ///
    /// # Errors
    /// When the engine's end command fails; the mark is then still noted as held.
    pub async fn end_left_over(&mut self) -> Result<(), MarkError> {
        if let Ok(id) = std::fs::read_to_string(self.held_path()) {
            tracing::warn!(mark = id, "a mark was left over by a run that was killed, and is ended now");
            if id == UNKNOWN {
                self.end_uncertain(true).await;
            } else {
                self.scope.mark_id = Some(id);
                self.end().await?;
            }
        }
        Ok(())
    }

    fn has_end(&self) -> bool {
        !self.profile.mark.end.is_empty()
    }

    /// Ends a mark of which nobody knows whether it is there. That nothing was held may be an error to the engine, so that what
    /// comes out decides nothing; it is tried once.
    async fn end_uncertain(&self, begun: bool) {
        if begun && let Err(error) = command::end(&self.profile.mark, &self.scope).await {
            tracing::warn!(%error, "a mark that was begun without success may still be held: look at the engine");
        }
        let held = self.held_path();
        if let Err(error) = std::fs::remove_file(&held) {
            tracing::warn!(path = %held.display(), %error, "the note of a held mark cannot be removed");
        }
    }

    /// Where it is noted that a mark is held: it outlives this process.
    fn held_path(&self) -> PathBuf {
        self.folder.with_extension("held")
    }

    /// Removes the mark's own files: they may be as large as the repository.
    pub fn discard_files(&self) {
        if let Err(error) = std::fs::remove_dir_all(&self.folder)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(folder = %self.folder.display(), %error, "the mark's files cannot be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marker(folder: &Path, mark: &str) -> Marker {
        let text = format!(
            "name = \"test\"\ndescription = \"x\"\nversion = \"1\"\ndepth = \"L0\"\n[mark]\nkind = \"command\"\n{mark}\n\
             [[check]]\nname = \"list\"\nargv = [\"ls\"]\nfail_exit = [1]\n"
        );
        let profile = Profile::parse(Path::new("test.toml"), &text).expect("valid");
        let live = folder.join("live");
        std::fs::create_dir_all(&live).expect("mkdir");
        let scope = Scope { roots: vec![("main".into(), live.clone())], ..Default::default() };
        Marker::new(profile, scope, Vec::new(), (live, String::new()), folder.join("mark"))
    }

    /// A foreign mark that appears while ours is held voids the run; everything else that changes does not.
    #[tokio::test]
    async fn a_foreign_mark_is_seen() {
        let folder = tempfile::tempdir().expect("temp");
        let mark = "begin = [\"sh\", \"-c\", \"echo ours > trace\"]\ntraces = [\"trace\", \"not/there\"]";
        let mut marker = marker(folder.path(), mark);
        marker.begin(&CancellationToken::new()).await.expect("mark");
        marker.still_holds().expect("nothing has changed");
        std::fs::write(folder.path().join("live/other"), "work goes on").expect("write");
        marker.still_holds().expect("only other files have changed");
        std::fs::write(folder.path().join("live/trace"), "theirs").expect("write");
        assert!(matches!(marker.still_holds(), Err(MarkError::Foreign { path }) if path == "trace"));
    }

    /// A path that is mistaken for a repository is told at once, before anything is done.
    #[tokio::test]
    async fn a_root_that_is_something_else_is_named() {
        let folder = tempfile::tempdir().expect("temp");
        let mut marker =
            marker(folder.path(), "begin = [\"touch\", \"begun\"]\nmust_exist = [\"db/current\"]");
        let error = marker.begin(&CancellationToken::new()).await.expect_err("not there").to_string();
        assert!(error.ends_with("live has no db/current: the profile is for x"), "{error}");
        assert!(!folder.path().join("live/begun").exists());
        std::fs::create_dir(folder.path().join("live/db")).expect("mkdir");
        std::fs::write(folder.path().join("live/db/current"), "7").expect("write");
        marker.begin(&CancellationToken::new()).await.expect("mark");
    }

    /// A begin command that does not succeed may have begun all the same.
    #[tokio::test]
    async fn what_was_begun_half_is_ended() {
        let folder = tempfile::tempdir().expect("temp");
        let end = "end = [\"sh\", \"-c\", \"echo ended >> log\"]";
        let log = || std::fs::read_to_string(folder.path().join("live/log")).unwrap_or_default();
        let mut failing = marker(folder.path(), &format!("begin = [\"false\"]\n{end}"));
        let error = failing.begin(&CancellationToken::new()).await.expect_err("fails");
        assert!(matches!(error, MarkError::Command(CommandError::Failed { .. })), "{error}");
        assert_eq!(log(), "ended\n");
        let mut missing = marker(folder.path(), &format!("begin = [\"/no/such/program\"]\n{end}"));
        missing.begin(&CancellationToken::new()).await.expect_err("cannot be started");
        assert_eq!(log(), "ended\n", "nothing was begun");
        // As a kill between the note and the id leaves it.
        std::fs::write(failing.held_path(), UNKNOWN).expect("write");
        failing.end_left_over().await.expect("tried");
        failing.end_left_over().await.expect("nothing to do");
        assert_eq!(log(), "ended\nended\n");
    }

    /// A mark is ended once, by its own id; one that a killed run left is ended by the next.
    #[tokio::test]
    async fn a_mark_that_was_left_over_is_ended() {
        let folder = tempfile::tempdir().expect("temp");
        let mark = "begin = [\"echo\", \"mark 7\"]\nend = [\"sh\", \"-c\", \"echo ended {mark_id} >> log\"]";
        let log = || std::fs::read_to_string(folder.path().join("live/log")).unwrap_or_default();
        let mut killed = marker(folder.path(), mark);
        killed.begin(&CancellationToken::new()).await.expect("mark");
        drop(killed);
        let mut next = marker(folder.path(), mark);
        next.end_left_over().await.expect("ended");
        assert_eq!(log(), "ended mark 7\n");
        let mut third = marker(folder.path(), mark);
        third.end_left_over().await.expect("nothing to do");
        third.begin(&CancellationToken::new()).await.expect("mark");
        third.end().await.expect("ended");
        assert_eq!(log(), "ended mark 7\nended mark 7\n");
    }
}
