//! What the source agent remembers of a repository between runs, as plain files:
//!
//! ```text
//! STATE/format                        see [`assay_common::format`]
//! STATE/REPOSITORY/runs/ID.json       every run, newest ids last in the alphabet
//! STATE/REPOSITORY/verdicts/ID.json   the target's envelope for a run, as it was signed
//! STATE/REPOSITORY/basis/             see [`crate::replicate::basis`]
//! STATE/REPOSITORY/roots.json         identity of the roots at the last sealed run
//! STATE/REPOSITORY/filtered.json      what of the metadata the newest sealed generation does not have
//! STATE/REPOSITORY/schedule.json      the last slot that was served or counted as missed
//! STATE/REPOSITORY/history.json       see [`crate::run::history`]
//! STATE/REPOSITORY/told.json          the newest run whose end was told
//! STATE/.notices/WAY/                 notices that have not arrived yet
//! ```

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use assay_common::{
    closed,
    digest::RootDigest,
    durable::{remove_temporary, write_durable},
    error::{Hint as _, IoContext as _, PathError},
    fidelity::LeftOut,
    format::{self, FormatError},
    id::RunId,
    json,
    ledger::EntryId,
    trouble::{self, Kind},
    verdict::HexDigest,
};
use assay_proto::v1::Run;
use serde::{Deserialize, Serialize};

use crate::{file_system::is_same, replicate::basis::BasisFolder, run::history::History};

/// Version of the form of the state folder: [`assay_common::format`].
/// The file of a repository's state that says that there is a snapshot.
pub(crate) const SNAPSHOT_NOTE: &str = "snapshot.json";

const FORMAT: u32 = 1;
/// Runs that are kept; older ones are forgotten, their verdicts are not.
const KEPT_RUNS: usize = 1000;

/// Why the state cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// A file or folder.
    #[error(transparent)]
    Io(#[from] PathError),
    /// Another agent uses it.
    #[error("{}: another assay-source uses this state folder", path.display())]
    Locked {
        /// The lock's file.
        path: PathBuf,
    },
    /// A newer version wrote it.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A file that this version did not write.
    #[error("{}: not understood: {source}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// Which folder a root was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootIdentity {
    /// Its live path.
    pub path: String,
    /// Device and inode.
    pub device: u64,
    /// Inode.
    pub inode: u64,
    /// What its file system is called for good; absent where a version before this one wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_system: Option<String>,
}

impl RootIdentity {
    /// True for the same folder, whatever number its device has today: that may be another after each boot.
    pub fn is_same(&self, other: &Self) -> bool {
        let is_same_file_system = match (&self.file_system, &other.file_system) {
            (Some(ours), Some(theirs)) => is_same((ours, self.device), (theirs, other.device)),
            _ => self.device == other.device,
        };
        self.path == other.path && self.inode == other.inode && is_same_file_system
    }
}

/// What the newest sealed generation was filtered by, and what it does not have because of that.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filtered {
    /// [`assay_common::fidelity::Filter::fingerprint`].
    pub by: String,
    /// What is left out.
    pub left_out: Vec<LeftOut>,
}

/// Where the schedule stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleState {
    /// The newest slot that was served or counted as missed.
    pub last_slot: Option<jiff::Timestamp>,
    /// Slots that passed without a run.
    pub missed: u64,
    /// Runs since the last one that read all files.
    pub runs_since_full_read: u32,
}

/// The state of one repository.
#[derive(Debug)]
pub struct RepositoryState {
    path: PathBuf,
    basis_looked_at: AtomicBool,
    schedule: Mutex<Option<ScheduleState>>,
    history: Mutex<Option<History>>,
    /// Runs that the disk has not taken yet, in their order.
    unsaved: Mutex<Vec<(RunId, Run)>>,
    /// The runs, oldest first; `None` until they are asked for.
    order: Mutex<Option<Vec<RunId>>>,
}

/// Takes the state folder for this process. The lock goes with the returned file.
///
/// # Errors
/// When another agent has it, or a newer version wrote it.
pub fn lock(state: &Path) -> Result<File, StateError> {
    format::check(state, "state", FORMAT)?;
    closed::create_folder(state).at("create", state)?;
    // Whoever can open the lock can hold it.
    if let Err(error) = closed::close_below(state, 1, &[]) {
        tracing::error!(%error, "other users of this host may be able to read or lock the state: give it to the agent's user, mode 0700");
    }
    closed::refuse_special_files(state, 2, &["mark"])?;
    let path = state.join("lock");
    let lock = closed::options().create(true).truncate(false).write(true).open(&path).at("open", &path)?;
    match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            format::check_and_note(state, "state", FORMAT)?;
            Ok(lock)
        }
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StateError::Locked { path }),
        Err(error) => {
            Err(Err::<(), _>(io::Error::from(error)).at("lock", &path).expect_err("it is one").into())
        }
    }
}

/// Where notes of snapshots may be: of every repository that has a folder here, also of one that the configuration does not have any longer.
///
/// # Errors
/// When the state folder cannot be read.
pub(crate) fn snapshot_notes(state: &Path) -> io::Result<Vec<PathBuf>> {
    let folders =
        fs::read_dir(state)?.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(folders.map(|folder| folder.path().join(SNAPSHOT_NOTE)).collect())
}

impl RepositoryState {
    /// Opens the state of `repository` and makes what is missing.
    ///
    /// # Errors
    /// When a folder cannot be made.
    pub fn open(state: &Path, repository: &str) -> Result<Self, StateError> {
        let path = state.join(repository);
        for folder in ["runs", "verdicts", "receipts"] {
            let folder = path.join(folder);
            closed::create_folder(&folder).at("create", &folder)?;
        }
        // Earlier versions left files here with the process's umask. A mark's own files have the modes that the engine wants.
        if let Err(error) = closed::close_below(&path, 2, &["mark"]) {
            tracing::error!(%error, "other users of this host may be able to read the state: give it to the agent's user, mode 0700");
        }
        Ok(Self {
            path,
            basis_looked_at: AtomicBool::new(false),
            schedule: Mutex::default(),
            history: Mutex::default(),
            unsaved: Mutex::default(),
            order: Mutex::default(),
        })
    }

    /// Removes what a crash left of files that were being written. For the agent, which holds the state's lock.
    ///
    /// # Errors
    /// When a folder cannot be read, or a file not be removed.
    pub fn remove_unfinished(&self) -> Result<(), StateError> {
        remove_temporary(&self.path)?;
        for folder in ["runs", "verdicts", "receipts"] {
            remove_temporary(&self.path.join(folder))?;
        }
        Ok(())
    }

    /// The basis of the last sealed generation.
    pub fn basis(&self) -> BasisFolder {
        BasisFolder::new(self.path.join("basis"))
    }

    /// True when the basis is that of the tree `root`, and all there. Its manifest is read once in the life of this process: what
    /// was written since is as it was written.
    pub fn has_basis_of(&self, root: RootDigest) -> bool {
        let basis = self.basis();
        basis.root_digest() == Some(root)
            && (self.basis_looked_at.swap(true, Ordering::Relaxed) || basis.is_whole(root))
    }

    /// The basis that a run is making.
    pub fn next_basis(&self) -> BasisFolder {
        BasisFolder::new(self.path.join("basis.next"))
    }

    /// What the newest sealed generation was filtered by; nothing when that is not known.
    pub fn filtered(&self) -> Filtered {
        let text = fs::read(self.path.join("filtered.json")).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Keeps what the newest sealed generation was filtered by.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save_filtered(&self, filtered: &Filtered) -> Result<(), StateError> {
        let text = serde_json::to_vec(filtered).expect("text alone");
        Ok(write_durable(&self.path.join("filtered.json"), &text, 0o600)?)
    }

    /// The folder for a run's spool.
    pub fn work(&self) -> PathBuf {
        self.path.join("basis.next")
    }

    /// The folder for the mark's own files.
    pub fn mark_folder(&self) -> PathBuf {
        self.path.join("mark")
    }

    /// Where it is noted that there is a snapshot.
    pub fn snapshot_note(&self) -> PathBuf {
        self.path.join(SNAPSHOT_NOTE)
    }

    /// The folder of verdicts.
    pub fn verdicts(&self) -> PathBuf {
        self.path.join("verdicts")
    }

    fn run_path(&self, id: &RunId) -> PathBuf {
        self.path.join("runs").join(format!("{id}.json"))
    }

    /// Keeps a run as it is now. A disk that does not take it is told as the trouble that it is; the run is kept in memory then, for as
    /// long as the agent runs.
    pub fn save_run(&self, id: &RunId, run: &Run) {
        self.with_order(|order| {
            if !order.contains(id) {
                order.push(id.clone());
            }
        });
        self.unsaved.lock().unwrap_or_else(PoisonError::into_inner).push((id.clone(), run.clone()));
        if self.save_unsaved() {
            trouble::clear(Kind::StateUnusable, &self.name());
        }
    }

    /// Writes the runs that the disk has not taken yet. True when none is left.
    pub fn save_unsaved(&self) -> bool {
        let mut unsaved = self.unsaved.lock().unwrap_or_else(PoisonError::into_inner);
        // In their order, until one fails.
        while let Some((id, run)) = unsaved.first() {
            let text = json::to_json("Run", run).to_string();
            if let Err(error) = write_durable(&self.run_path(id), text.as_bytes(), 0o600) {
                let name = self.name();
                let hint = error.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
                let text = format!("the state cannot be written: {error}{hint}");
                trouble::raise(Kind::StateUnusable, &name, text);
                break;
            }
            unsaved.remove(0);
        }
        let surplus = unsaved.len().saturating_sub(KEPT_RUNS);
        unsaved.drain(..surplus);
        unsaved.is_empty()
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The number of the next run.
    pub fn next_sequence(&self) -> u64 {
        let newest = self.run_ids().unwrap_or_default().into_iter().find_map(|id| self.run(&id).ok());
        newest.map_or(1, |run| run.sequence + 1)
    }

    /// The runs, newest first, in the order in which they were started. Ids follow the clock, which may have been wrong.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn run_ids(&self) -> Result<Vec<RunId>, StateError> {
        if self.order.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            let order = self.read_order()?;
            self.order.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(order);
        }
        Ok(self.with_order(|order| order.iter().rev().cloned().collect()))
    }

    /// The runs on disk, oldest first.
    fn read_order(&self) -> Result<Vec<RunId>, StateError> {
        let path = self.path.join("runs");
        let mut found: Vec<(u64, RunId)> = Vec::new();
        for entry in fs::read_dir(&path).at("read", &path)? {
            let name = entry.at("read", &path)?.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(".json")?.parse::<RunId>().ok());
            // Runs of older versions have no number and are older; one that cannot be read is told by whoever wants it.
            found.extend(id.map(|id| (self.run(&id).map_or(0, |run| run.sequence), id)));
        }
        found.sort_unstable();
        Ok(found.into_iter().map(|(_, id)| id).collect())
    }

    fn with_order<T>(&self, work: impl FnOnce(&mut Vec<RunId>) -> T) -> T {
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        work(order.get_or_insert_with(|| self.read_order().unwrap_or_default()))
    }

    /// One run.
    ///
    /// # Errors
    /// When it is not there.
    pub fn run(&self, id: &RunId) -> Result<Run, StateError> {
        let unsaved = self.unsaved.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, run)) = unsaved.iter().rev().find(|(unsaved, _)| unsaved == id) {
            return Ok(run.clone());
        }
        drop(unsaved);
        let path = self.run_path(id);
        let text = fs::read_to_string(&path).at("read", &path)?;
        json::from_json("Run", &text).map_err(|source| StateError::Content { path, source })
    }

    /// Forgets the oldest runs beyond `KEPT_RUNS`.
    pub fn forget_old_runs(&self) {
        let old = self.with_order(|order| {
            let surplus = order.len().saturating_sub(KEPT_RUNS);
            order.drain(..surplus).collect::<Vec<_>>()
        });
        for id in old {
            drop(fs::remove_file(self.run_path(&id)));
        }
    }

    /// What is known of the history that source and target have in common.
    pub fn history(&self) -> History {
        let mut known = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        known.get_or_insert_with(|| self.read_history()).clone()
    }

    fn read_history(&self) -> History {
        let read = self.read_optional("history.json").unwrap_or_else(|error| {
            tracing::warn!(%error, "the history is known from the runs alone");
            None
        });
        // A state of an older version has its runs.
        read.or_else(|| {
            let mut runs = self.run_ids().ok()?.into_iter().filter_map(|id| Some((self.run(&id).ok()?, id)));
            let (run, id) = runs.find(|(run, _)| run.generation > 0)?;
            let root = HexDigest::parse(&run.root_digest);
            Some(History { generation: run.generation, run_id: Some(id), root, ..Default::default() })
        })
        .unwrap_or_default()
    }

    /// Changes what is known of the common history.
    pub fn update_history(&self, change: impl FnOnce(&mut History)) {
        let mut known = self.history();
        change(&mut known);
        *self.history.lock().unwrap_or_else(PoisonError::into_inner) = Some(known.clone());
        if let Err(error) = self.write("history.json", &known) {
            tracing::warn!(%error, "the history cannot be written; the next start may take the newest generation for another's");
        }
    }

    /// The newest run whose end was told; `None` in a state of an older version.
    pub fn told(&self) -> Option<RunId> {
        self.read_optional("told.json").ok().flatten()
    }

    /// The end of a run has been told: it is in the queues of all who want to hear of it.
    pub fn note_told(&self, id: &RunId) {
        if let Err(error) = self.write("told.json", id) {
            tracing::warn!(run_id = %id, %error, "the end of a run may be told again by the next start");
        }
    }

    /// Keeps a verdict's envelope under its run's id.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save_verdict(&self, id: &RunId, envelope: &str) -> Result<PathBuf, StateError> {
        let path = self.verdicts().join(format!("{id}.json"));
        write_durable(&path, envelope.as_bytes(), 0o600)?;
        Ok(path)
    }

    fn receipt_path(&self, verdict_id: &str) -> PathBuf {
        self.path.join("receipts").join(format!("{verdict_id}.json"))
    }

    /// Keeps a receipt until the target has it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save_receipt(&self, verdict_id: &str, receipt: &str) -> Result<(), StateError> {
        Ok(write_durable(&self.receipt_path(verdict_id), receipt.as_bytes(), 0o600)?)
    }

    /// The receipts that the target does not have yet, by the ids of their verdicts, oldest first, at most `count` of them.
    pub fn unsent_receipts(&self, count: usize) -> Vec<(String, String)> {
        let entries = fs::read_dir(self.path.join("receipts")).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let ids = names.filter_map(|name| EntryId::parse(name.strip_suffix(".json")?));
        let mut ids: Vec<_> = ids.collect();
        ids.sort_unstable();
        let ids = ids.into_iter().take(count).map(|id| id.to_string());
        ids.filter_map(|id| {
            let text = fs::read_to_string(self.receipt_path(&id)).ok()?;
            Some((id, text))
        })
        .collect()
    }

    /// The target has the receipt for this verdict, or will never take it.
    pub fn forget_receipt(&self, verdict_id: &str) {
        drop(fs::remove_file(self.receipt_path(verdict_id)));
    }

    /// The roots of the last sealed run.
    ///
    /// # Errors
    /// When the file is there and not understood.
    pub fn roots(&self) -> Result<Option<Vec<RootIdentity>>, StateError> {
        self.read_optional("roots.json")
    }

    /// Keeps the roots of a sealed run.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save_roots(&self, roots: &[RootIdentity]) -> Result<(), StateError> {
        self.write("roots.json", &roots)
    }

    /// Where the schedule stands. It is read once: from then on memory is ahead of a disk that may be full.
    pub fn schedule(&self) -> ScheduleState {
        self.with_schedule(|known| known.clone())
    }

    /// Changes where the schedule stands.
    ///
    /// # Errors
    /// When it cannot be written. The change holds all the same, until the agent ends.
    pub fn update_schedule(&self, change: impl FnOnce(&mut ScheduleState)) -> Result<(), StateError> {
        self.with_schedule(|known| {
            change(known);
            self.write("schedule.json", known)
        })
    }

    fn with_schedule<T>(&self, work: impl FnOnce(&mut ScheduleState) -> T) -> T {
        let mut known = self.schedule.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.get_or_insert_with(|| {
            self.read_optional("schedule.json")
                .unwrap_or_else(|error| {
                    tracing::warn!(%error, "the schedule's state is reset");
                    None
                })
                .unwrap_or_default()
        });
        work(known)
    }

    fn read_optional<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StateError> {
        let path = self.path.join(name);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.at("read", &path)?,
        };
        serde_json::from_str(&text).map(Some).map_err(|source| StateError::Content { path, source })
    }

    fn write(&self, name: &str, value: &impl Serialize) -> Result<(), StateError> {
        let path = self.path.join(name);
        let text = serde_json::to_string(value)
            .map_err(|source| StateError::Content { path: path.clone(), source })?;
        Ok(write_durable(&path, text.as_bytes(), 0o600)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> RunId {
        text.parse().expect("an id")
    }

    /// The clock was a year ahead for one run: its id sorts behind all others, and it is not the newest run all the same.
    #[test]
    fn runs_have_the_order_in_which_they_were_started() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = RepositoryState::open(folder.path(), "app").expect("a state");
        // One of an older version has no number.
        let (old, ahead, newest) =
            (id("20260101T000000Z-aaaaaa"), id("20271231T000000Z-bbbbbb"), id("20260102T000000Z-cccccc"));
        state.save_run(&old, &Run { id: old.to_string(), ..Default::default() });
        for run in [&ahead, &newest] {
            let sequence = state.next_sequence();
            state.save_run(run, &Run { id: run.to_string(), sequence, ..Default::default() });
        }
        let order = [newest.clone(), ahead, old];
        assert_eq!(state.run_ids().expect("runs"), order);
        let again = RepositoryState::open(folder.path(), "app").expect("a state");
        assert_eq!(again.run_ids().expect("runs"), order);
        assert_eq!((again.next_sequence(), again.told()), (3, None));
        again.note_told(&newest);
        assert_eq!(again.told(), Some(newest));
    }

    /// A disk that takes nothing: runs are there to be seen, and come to disk when it takes something again.
    #[test]
    fn runs_outlast_a_disk_that_takes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = RepositoryState::open(folder.path(), "of-this-test").expect("a state");
        let runs = folder.path().join("of-this-test/runs");
        fs::remove_dir(&runs).expect("removed");
        let (first, second) = (id("20260101T000000Z-aaaaaa"), id("20260102T000000Z-bbbbbb"));
        state.save_run(&first, &Run { id: first.to_string(), sequence: 1, ..Default::default() });
        assert_eq!(state.run(&first).expect("in memory").sequence, 1);
        let is_told = || trouble::all().iter().any(|trouble| trouble.repository == "of-this-test");
        assert!(is_told());
        fs::create_dir(&runs).expect("made");
        state.save_run(&second, &Run { id: second.to_string(), sequence: 2, ..Default::default() });
        assert!(!is_told());
        let again = RepositoryState::open(folder.path(), "of-this-test").expect("a state");
        assert_eq!(again.run_ids().expect("on disk"), [second, first]);
    }
}
