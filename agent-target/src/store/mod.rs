//! What the target keeps of one repository, and where:
//!
//! ```text
//! generations/000042/tree/ manifest manifest.b3 record.json     sealed, never written to again
//! generations/000042/manifest.positions   where in the manifest each entry starts: 8 bytes each, little-endian
//! verified -> generations/000041     newest generation with a PASS
//! latest   -> generations/000042
//! staging/000043/                    the generation being received
//! ahead/                             the next tree, laid out between the runs
//! copies/                            large files that change often, copied between the runs
//! ledger/                            verdicts, chained
//! receipts/                          the source's receipts for verdicts, one file each
//! control.json                       the newest negative control, signed
//! told.json                          the newest verdict that was told
//! workspaces/                        throw-away views for checks
//! trash/                             pruned generations on their way out
//! heal/                              a file that takes a rotten one's place
//! scrub.json                         what scrubs found
//! pins.json                          generations that operators hold on to
//! usage.json                         how much content the generations hold together
//! ledger.reserve                     room for a verdict on a disk that is full
//! index.redb                         hints where chunks are; can be thrown away
//! format                             version of the form of all this
//! lock                               held by the agent that serves this repository
//! ```

pub mod index;
mod piece_list;
mod record;
mod staging;
mod usage;
mod whole;

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::unix::{ffi::OsStrExt as _, fs::symlink},
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock, PoisonError},
};

use assay_common::{
    closed,
    confined::Folder,
    digest::ContentDigest,
    durable::{create_durable, remove_temporary, write_durable},
    error::{IoContext as _, PathError},
    fault::{self, Point},
    format::{self, FormatError},
    id::GenerationNumber,
    ledger::EntryId,
    verdict::receipt_name,
};

pub use piece_list::{add_to_piece_list, piece_list_digest};
pub use record::{FolderCost, MarkRecord, Record};
pub use staging::{MANIFEST, MANIFEST_B3, PLAN, POSITIONS, RECORD, Staged, Staging, TREE};
use usage::Usage;
pub(crate) use usage::{FILE_BYTES, FOLDER_BYTES};
pub use usage::{Held, file_system_bytes, free_bytes, inodes};
pub use whole::{Original, Promised};

/// Version of the form of all this: [`assay_common::format`].
const FORMAT: u32 = 1;
/// The source's receipts for verdicts.
pub(crate) const RECEIPTS: &str = "receipts";
/// The folder of acknowledgements, in a repository's store.
pub(crate) const ACKNOWLEDGEMENTS: &str = "acknowledgements";
/// The folder of operators' notes, in a repository's store.
pub(crate) const NOTES: &str = "notes";
/// The newest verdict that was told.
const TOLD: &str = "told.json";
/// The newest negative control.
const CONTROL: &str = "control.json";
/// What check the newest negative control was made of.
const CONTROL_OF: &str = "control.of";

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A file or folder of the store.
    #[error(transparent)]
    Io(#[from] PathError),
    /// Another process serves this repository.
    #[error("{}: another assay-target serves this store", path.display())]
    Locked {
        /// The lock's file.
        path: PathBuf,
    },
    /// A newer version wrote it.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A record is not what this version wrote.
    #[error("{}: not a generation's record: {source}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
}

/// The store of one repository, held by its lock.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    ahead: Mutex<()>,
    trash: Mutex<()>,
    usage: OnceLock<Usage>,
    _lock: File,
}

impl Store {
    /// Opens the store below `path` and makes what is missing.
    ///
    /// # Errors
    /// When another agent holds it, a newer version wrote it, or it cannot be made.
    pub fn open_or_create(path: &Path) -> Result<Self, StoreError> {
        format::check(path, "store", FORMAT)?;
        closed::create_folder(path).at("create", path)?;
        // Before anything in it is opened. The folder of all repositories is closed too where version 0.1 made it, to be passed by all.
        close_own(closed::close(path));
        if let Some(parent) = path.parent().filter(|parent| passable_by_all(parent)) {
            close_own(closed::close(parent));
        }
        for folder in ["generations", "staging", "ledger", RECEIPTS, "ahead", "workspaces", "trash"] {
            let folder = path.join(folder);
            closed::create_folder(&folder).at("create", &folder)?;
        }
        closed::refuse_special_files(path, 1, &["generations", "staging", "workspaces", "trash", TREE])?;
        let lock_path = path.join("lock");
        let lock = closed::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .at("open", &lock_path)?;
        if let Err(error) = rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            return Err(match error {
                rustix::io::Errno::WOULDBLOCK => StoreError::Locked { path: lock_path },
                error => {
                    Err::<(), _>(io::Error::from(error)).at("lock", &lock_path).expect_err("it is one").into()
                }
            });
        }
        format::check_and_note(path, "store", FORMAT)?;
        // Earlier versions left some of it open. The trees have the modes of the live repositories, behind folders that are closed.
        close_own(closed::close_below(path, 4, &[TREE, "workspaces"]));
        Ok(Self {
            path: path.to_owned(),
            ahead: Mutex::default(),
            trash: Mutex::default(),
            usage: OnceLock::new(),
            _lock: lock,
        })
    }

    /// Removes what a crash left of files that were being written; the ledger does so for its own.
    ///
    /// # Errors
    /// When a folder cannot be read, or a file not be removed.
    pub fn remove_unfinished(&self) -> Result<(), StoreError> {
        for folder in [self.path.clone(), self.path.join("ahead"), self.receipts()] {
            remove_temporary(&folder)?;
        }
        for link in ["latest", "verified"] {
            let link = self.path.join(format!(".{link}.new"));
            match fs::remove_file(&link) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).at("remove", &link)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The folder of this repository.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Held by whoever lays out the next tree, or takes it.
    pub fn ahead(&self) -> &Mutex<()> {
        &self.ahead
    }

    /// The folder of a generation.
    pub fn generation_path(&self, number: GenerationNumber) -> PathBuf {
        self.path.join("generations").join(number.folder())
    }

    /// All sealed generations, oldest first.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn generations(&self) -> Result<Vec<GenerationNumber>, StoreError> {
        numbers(&self.path.join("generations"))
    }

    /// The newest sealed generation.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn latest(&self) -> Result<Option<GenerationNumber>, StoreError> {
        Ok(self.generations()?.pop())
    }

    /// The generation that `verified` points at.
    pub fn verified(&self) -> Option<GenerationNumber> {
        let target = fs::read_link(self.path.join("verified")).ok()?;
        let number = GenerationNumber::from_folder(target.file_name()?.to_str()?)?;
        self.generation_path(number).is_dir().then_some(number)
    }

    /// Points `verified` at a generation that passed.
    ///
    /// # Errors
    /// When the link cannot be moved; it then stays where it was.
    pub fn set_verified(&self, number: GenerationNumber) -> Result<(), StoreError> {
        self.point("verified", number)
    }

    /// Takes `verified` away: no generation is proven good any longer.
    ///
    /// # Errors
    /// When the link cannot be removed.
    pub fn clear_verified(&self) -> Result<(), StoreError> {
        let link = self.path.join("verified");
        fs::remove_file(&link).at("remove", &link)?;
        Folder::open(&self.path).and_then(|folder| folder.sync()).at("sync", &self.path)?;
        Ok(())
    }

    /// The newest verdict that was told, by its id; empty before the first, `None` in a store of an older version.
    pub fn told(&self) -> Option<String> {
        serde_json::from_slice(&fs::read(self.path.join(TOLD)).ok()?).ok()
    }

    /// A verdict has been told: it is in the queues of all who want to hear of it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn note_told(&self, id: &str) -> Result<(), PathError> {
        let text = serde_json::to_vec(id).unwrap_or_default();
        write_durable(&self.path.join(TOLD), &text, closed::FILE_MODE)
    }

    /// The newest negative control, as it was kept.
    pub fn control(&self) -> Option<Vec<u8>> {
        fs::read(self.path.join(CONTROL)).ok()
    }

    /// Whether the newest negative control is of the check with this digest.
    pub fn has_control_of(&self, check: ContentDigest) -> bool {
        fs::read(self.path.join(CONTROL_OF)).is_ok_and(|known| known == check.0)
    }

    /// Keeps a negative control of the check with this digest in the place of the one before. A crash between the two files leaves a
    /// control that is of no check: it counts for nothing until there is another.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_control(&self, envelope: &[u8], check: ContentDigest) -> Result<(), StoreError> {
        let of = self.path.join(CONTROL_OF);
        write_durable(&of, b"none", closed::FILE_MODE)?;
        write_durable(&self.path.join(CONTROL), envelope, closed::FILE_MODE)?;
        Ok(write_durable(&of, &check.0, closed::FILE_MODE)?)
    }

    /// The folder of the source's receipts.
    pub fn receipts(&self) -> PathBuf {
        self.path.join(RECEIPTS)
    }

    /// The folder of operators' acknowledgements.
    pub fn acknowledgements(&self) -> PathBuf {
        self.path.join(ACKNOWLEDGEMENTS)
    }

    /// The folder of operators' notes.
    pub fn notes(&self) -> PathBuf {
        self.path.join(NOTES)
    }

    /// Keeps the source's receipt for a verdict. False when there is another one already, which stays.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add_receipt(&self, id: EntryId, receipt: &[u8]) -> Result<bool, StoreError> {
        let path = self.receipts().join(receipt_name(id));
        match create_durable(&path, receipt, closed::FILE_MODE) {
            Ok(()) => Ok(true),
            Err(error) if error.source.kind() == io::ErrorKind::AlreadyExists => {
                Ok(fs::read(&path).is_ok_and(|known| known == receipt))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Points `latest` at a sealed generation.
    ///
    /// # Errors
    /// When the link cannot be moved; it then stays where it was.
    pub fn set_latest(&self, number: GenerationNumber) -> Result<(), StoreError> {
        self.point("latest", number)
    }

    /// 1. The new link is made beside the old one; a crash leaves its name, which opening the repository removes.
    /// 2. It is renamed over the old one: a crash shows the old one or the new one.
    /// 3. The folder is synced.
    fn point(&self, name: &str, number: GenerationNumber) -> Result<(), StoreError> {
        let (link, new) = (self.path.join(name), self.path.join(format!(".{name}.new")));
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).at("remove", &new)?,
            _ => {}
        }
        symlink(Path::new("generations").join(number.folder()), &new).at("create", &new)?;
        fault::at(Point::LinkMade).at("replace", &link)?;
        fs::rename(&new, &link).at("replace", &link)?;
        fault::at(Point::LinkRenamed).at("sync", &self.path)?;
        Folder::open(&self.path).and_then(|folder| folder.sync()).at("sync", &self.path)?;
        Ok(())
    }

    /// The record of a sealed generation.
    ///
    /// # Errors
    /// When it cannot be read or is not one.
    pub fn record(&self, number: GenerationNumber) -> Result<Record, StoreError> {
        let path = self.generation_path(number).join(RECORD);
        let text = fs::read_to_string(&path).at("read", &path)?;
        serde_json::from_str(&text).map_err(|source| StoreError::Record { path, source })
    }

    /// Opens the staging area of the next generation and keeps what an unfinished run left there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open_staging(&self) -> Result<Staging, StoreError> {
        let number = GenerationNumber(self.latest()?.map_or(1, |latest| latest.0 + 1));
        let staging = self.path.join("staging");
        for stale in numbers(&staging)?.into_iter().filter(|stale| *stale != number) {
            let stale = staging.join(stale.folder());
            fs::remove_dir_all(&stale).at("remove", &stale)?;
        }
        Staging::open(&staging.join(number.folder()), number)
    }

    /// What [`Self::forget_staged`] would remove.
    pub fn staged(&self) -> Staged {
        let staging = self.path.join("staging");
        let mut held = Staged::default();
        for number in numbers(&staging).unwrap_or_default() {
            let (bytes, entries) = staging::content_held(&staging.join(number.folder()));
            held.bytes = held.bytes.saturating_add(bytes);
            held.entries = held.entries.saturating_add(entries);
        }
        held
    }

    /// Removes the content that unfinished runs left.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn forget_staged(&self) -> Result<(), StoreError> {
        let staging = self.path.join("staging");
        for number in numbers(&staging)? {
            staging::remove_sessions(&staging.join(number.folder()), |_| true)?;
        }
        Ok(())
    }

    /// Makes a complete staging area the newest generation:
    ///
    /// 1. everything in staging is on disk (`syncfs`) — a crash before step 2 leaves staging, which the next run clears or
    ///    takes up again;
    /// 2. `staging/N` is renamed to `generations/N` — from here on the generation exists, whole;
    /// 3. both folders are synced; a crash in between shows either state, and both are sound;
    /// 4. `latest` is moved. Opening the agent moves it again when a crash kept it from being moved.
    ///
    /// # Errors
    /// When a step fails. Before step 2 nothing has changed for any reader.
    pub fn publish(&self, staging: &Staging) -> Result<(), StoreError> {
        let (generations, stagings) = (self.path.join("generations"), self.path.join("staging"));
        let from = Folder::open(&stagings).at("open", &stagings)?;
        let to = Folder::open(&generations).at("open", &generations)?;
        let step = |point| fault::at(point).at("seal", staging.path());
        step(Point::PublishSync)?;
        from.sync_file_system().at("sync", &stagings)?;
        step(Point::PublishRename)?;
        let name = staging.number().folder();
        from.rename(name.as_bytes(), &to, name.as_bytes()).at("seal", staging.path())?;
        step(Point::PublishRenamed)?;
        to.sync().at("sync", &generations)?;
        from.sync().at("sync", &stagings)?;
        step(Point::PublishLatest)?;
        self.set_latest(staging.number())?;
        Ok(step(Point::PublishTold)?)
    }

    /// Takes a generation out of sight: it is renamed into the trash, whole. Whoever has it open goes on reading it.
    ///
    /// # Errors
    /// When it cannot be renamed; it then stays as it is.
    pub fn discard(&self, number: GenerationNumber) -> Result<(), StoreError> {
        let (generations, trash) = (self.path.join("generations"), self.path.join("trash"));
        let from = Folder::open(&generations).at("open", &generations)?;
        let to = Folder::open(&trash).at("open", &trash)?;
        let name = number.folder();
        Ok(from.rename(name.as_bytes(), &to, name.as_bytes()).at("prune", &self.generation_path(number))?)
    }

    /// Holds a generation's folder against all others, if nobody holds it: a restore holds what it reads, with a shared lock.
    pub fn alone(&self, number: GenerationNumber) -> Option<File> {
        let folder = File::open(self.generation_path(number)).ok()?;
        rustix::fs::flock(&folder, rustix::fs::FlockOperation::NonBlockingLockExclusive).ok()?;
        Some(folder)
    }

    /// Makes it durable what was discarded. Only then may it be deleted.
    ///
    /// # Errors
    /// When a folder cannot be synced.
    pub fn settle_trash(&self) -> Result<(), StoreError> {
        for folder in ["trash", "generations"] {
            let folder = self.path.join(folder);
            Folder::open(&folder).and_then(|folder| folder.sync()).at("sync", &folder)?;
        }
        Ok(())
    }

    /// Deletes what is in the trash, and waits for who is doing that. No other lock is held meanwhile.
    ///
    /// # Errors
    /// When something cannot be deleted. The rest of the trash is deleted all the same.
    pub fn clear_trash(&self) -> Result<(), StoreError> {
        let _turn = self.trash.lock().unwrap_or_else(PoisonError::into_inner);
        // A rename that was not made durable could bring back what is deleted here in part.
        self.settle_trash()?;
        let path = self.path.join("trash");
        let trash = Folder::open(&path).at("open", &path)?;
        let told = |noted: Result<(), PathError>| {
            if let Err(error) = noted {
                tracing::warn!(%error, "the count of stored bytes cannot be noted");
            }
        };
        let names = || trash.names().at("read", &path);
        // A crash may have come between.
        told(self.usage().left(&names()?));
        let mut first = Ok(());
        for name in names()? {
            let measure =
                || trash.open_folder(&name).map_or(Held::default(), |folder| usage::leaves(&folder));
            told(self.usage().leaving(&String::from_utf8_lossy(&name), measure));
            let removed = trash.remove_all(&name).at("delete", &path.join(OsStr::from_bytes(&name)));
            first = first.and(removed);
            told(self.usage().left(&names()?));
        }
        Ok(first?)
    }

    /// Free bytes for this process on the store's file system.
    pub fn free_bytes(&self) -> u64 {
        free_bytes(&self.path).unwrap_or(0)
    }

    /// What all generations hold together: what quotas are held against.
    pub fn held(&self) -> Held {
        self.usage().held()
    }

    /// Counts a generation that was sealed.
    pub fn count(&self, record: &Record) {
        // The generation stands, and is counted from its record when the agent starts again.
        if let Err(error) = self.usage().add(record) {
            tracing::warn!(%error, "the count of stored bytes cannot be noted");
        }
    }

    fn usage(&self) -> &Usage {
        self.usage.get_or_init(|| {
            let numbers = self.generations().unwrap_or_default();
            let records = numbers.into_iter().filter_map(|number| self.record(number).ok());
            Usage::load(&self.path.join("usage.json"), records)
        })
    }
}

/// Says what of the store stays open to other users, because another user owns it: the agent can do its work all the same.
fn close_own(closed: Result<(), PathError>) {
    if let Err(error) = closed {
        tracing::error!(%error, "other users of this host may be able to read or lock this store: give it to the agent's user, mode 0700");
    }
}

/// True for the mode that earlier versions gave to the folder of all repositories.
fn passable_by_all(folder: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    fs::symlink_metadata(folder).is_ok_and(|stat| stat.is_dir() && stat.mode() & 0o7777 == 0o711)
}

fn numbers(folder: &Path) -> Result<Vec<GenerationNumber>, StoreError> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(folder).at("read", folder)? {
        let entry = entry.at("read", folder)?;
        numbers.extend(entry.file_name().to_str().and_then(GenerationNumber::from_folder));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn record(generation: u64, base: Option<u64>, total: u64, stored: u64) -> Record {
        let mark = MarkRecord { id: "mark".to_owned(), time: jiff::Timestamp::UNIX_EPOCH };
        Record {
            copy_rules: None,
            version: 1,
            repository: "repo".to_owned(),
            generation,
            run_id: format!("run-{generation}"),
            base_generation: base,
            opened: None,
            statements: None,
            full_check: false,
            sealed: mark.time,
            mark,
            root_digest: String::new(),
            roots: Vec::new(),
            entries: 1,
            files: 1,
            total_bytes: total,
            new_bytes: stored,
            stored_bytes: Some(stored),
            overhead_bytes: None,
            inodes: None,
            folders: None,
            not_in_manifest_b3: 0,
            is_plain: None,
            overrides: Vec::new(),
            counts: serde_json::Value::Null,
            source_statement: serde_json::Value::Null,
        }
    }

    /// Modes below `folder` that let anybody else in, trees and links left out.
    fn open_to_others(folder: &Path, found: &mut Vec<String>) {
        use std::os::unix::fs::MetadataExt as _;
        for entry in fs::read_dir(folder).expect("list") {
            let entry = entry.expect("entry");
            let stat = entry.metadata().expect("stat");
            if stat.is_symlink() || entry.file_name() == "tree" {
                continue;
            }
            if stat.mode() & 0o077 != 0 {
                found.push(format!("{} {:o}", entry.path().display(), stat.mode() & 0o7777));
            }
            if stat.is_dir() {
                open_to_others(&entry.path(), found);
            }
        }
    }

    /// A store as version 0.1 left it: the folders could be passed, and lock, index, journal and records were everybody's to read.
    #[test]
    fn a_store_that_an_earlier_version_left_open_is_closed_when_it_is_opened() {
        use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
        let folder = tempfile::tempdir().expect("temp");
        let (all, own) = (folder.path().join("store"), folder.path().join("store/repository"));
        for path in
            ["generations/000001/tree/data", "staging/000002/content-1/0", "ledger", "trash", "workspaces"]
        {
            fs::create_dir_all(own.join(path)).expect("mkdir");
        }
        let chmod =
            |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
        for path in ["lock", "index.redb", "index.journal", "restores.jsonl", "ledger/000000001.json"]
            .into_iter()
            .chain([
                "generations/000001/manifest",
                "generations/000001/record.json",
                "generations/000001/tree/file",
            ])
        {
            fs::write(own.join(path), "").expect("write");
            chmod(&own.join(path), 0o644);
        }
        for folder in
            ["generations", "generations/000001", "staging", "staging/000002", "staging/000002/content-1"]
        {
            chmod(&own.join(folder), 0o755);
        }
        for folder in [&all, &own, &own.join("workspaces")] {
            chmod(folder, 0o711);
        }
        let store = Store::open_or_create(&own).expect("open");
        let mut open = Vec::new();
        open_to_others(&all, &mut open);
        open.retain(|path| !path.contains("workspaces"));
        assert!(open.is_empty(), "{open:#?}");
        assert_eq!(fs::metadata(&all).expect("stat").mode() & 0o7777, 0o700);
        // What was sealed has the modes of the live repository.
        let tree = store.generation_path(GenerationNumber(1)).join(TREE);
        assert_eq!(fs::metadata(tree.join("file")).expect("stat").mode() & 0o7777, 0o644);
    }

    /// Whoever can open a lock can hold it.
    #[test]
    fn what_a_new_store_has_is_closed_and_so_is_its_lock() {
        let folder = tempfile::tempdir().expect("temp");
        let store = Store::open_or_create(&folder.path().join("store")).expect("open");
        let index = index::ChunkIndex::open_or_create(&store.path().join("index.redb")).expect("index");
        let staging = store.open_staging().expect("staging");
        staging.open_content(5000).expect("content");
        let mut open = Vec::new();
        open_to_others(folder.path(), &mut open);
        assert!(open.is_empty(), "{open:#?}");
        drop(index);
    }

    #[test]
    fn a_second_agent_cannot_open_the_store() {
        let folder = tempfile::tempdir().expect("temp");
        let store = Store::open_or_create(folder.path()).expect("first");
        assert!(matches!(Store::open_or_create(folder.path()), Err(StoreError::Locked { .. })));
        drop(store);
        Store::open_or_create(folder.path()).expect("after the first has gone");
    }

    #[test]
    fn publishing_moves_staging_as_a_whole_and_points_latest() {
        let folder = tempfile::tempdir().expect("temp");
        let store = Store::open_or_create(folder.path()).expect("open");
        let staging = store.open_staging().expect("staging");
        fs::create_dir(staging.path().join(TREE)).expect("mkdir");
        store.publish(&staging).expect("publish");
        assert_eq!(store.latest().expect("latest"), Some(GenerationNumber(1)));
        assert!(folder.path().join("latest/tree").is_dir());
        assert_eq!(store.verified(), None);
        store.set_verified(GenerationNumber(1)).expect("point");
        assert_eq!(store.verified(), Some(GenerationNumber(1)));
        assert_eq!(store.open_staging().expect("next").number(), GenerationNumber(2));
    }

    /// What an unfinished run left for another generation is cleared.
    #[test]
    fn stale_staging_is_cleared_and_the_current_one_kept() {
        let folder = tempfile::tempdir().expect("temp");
        let store = Store::open_or_create(folder.path()).expect("open");
        fs::create_dir_all(folder.path().join("staging/000009/content-1")).expect("mkdir");
        fs::create_dir_all(folder.path().join("staging/000001/content-1")).expect("mkdir");
        let staging = store.open_staging().expect("staging");
        assert_eq!((staging.number(), staging.session()), (GenerationNumber(1), 2));
        assert!(!folder.path().join("staging/000009").exists());
        assert!(folder.path().join("staging/000001/content-1").exists());
    }
}
