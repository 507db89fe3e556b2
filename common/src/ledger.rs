//! The append-only chain of verdicts: one envelope file each, `000000001.json` first, each naming the digest
//! of the one before it.
//!
//! An entry that was removed, edited or moved shows in [`Ledger::verify`]. What a chain cannot show is that
//! its newest entries are gone: for that the source keeps a copy of each verdict.
//!
//! Beside verdicts a ledger has entries that say which key signs from there on ([`crate::verdict::KeyChange`]): [`Ledger::check`] follows
//! them.
//!
//! | who meets whom | what makes it safe |
//! | --- | --- |
//! | two writers, in one process or two | the lock on the folder; a new file never replaces one |
//! | a writer and a reader | an entry gets its name when it is whole and on disk |
//! | a writer and the cleaning at [`Ledger::open`] | the same lock; without it nothing is cleaned |
//!
//! A crash can lose the entry that was being written, never a part of one.

mod keys;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use crate::{
    closed,
    dsse::{Envelope, MAX_ENVELOPE_BYTES},
    durable::{TEMPORARY_PREFIX, create_durable, remove_temporary, sync_folder},
    error::{Hint, IoContext as _, PathError, ShowPath},
    fault::{self, Point},
    keyring::Keyring,
    signing::VerifyingKey,
    verdict::{HexDigest, KeyOwner, VerdictError, link_digest},
};

pub use self::keys::KeyPeriod;

/// Digits of an entry's id.
const ID_DIGITS: usize = 9;
/// Ending of an entry's file name.
const SUFFIX: &str = ".json";

/// Why the ledger cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] PathError),
    /// No entry has this id.
    #[error("the ledger {} has no verdict {id}", ShowPath(folder))]
    Unknown {
        /// The ledger.
        folder: PathBuf,
        /// The id that was asked for, shown safely.
        id: String,
    },
    /// The new entry could not be made.
    #[error(transparent)]
    Build(#[from] VerdictError),
    /// The newest entry cannot be linked to.
    #[error("{} is too large for a verdict", ShowPath(path))]
    TooLong {
        /// The entry's file.
        path: PathBuf,
    },
}

impl Hint for LedgerError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::File(error) => error.hint(),
            Self::Unknown { .. } => Some("`assay-target verdict list` shows the ids".to_owned()),
            Self::Build(error) => error.hint(),
            Self::TooLong { .. } => Some("compare the file with the source's copy of it".to_owned()),
        }
    }
}

/// Place of an entry, from 1. Its id is the number in nine digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId(pub u64);

impl EntryId {
    /// The number.
    pub fn sequence(self) -> u64 {
        self.0
    }

    /// From an id's text; nothing for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        let id = Self(text.parse().ok().filter(|number| *number > 0)?);
        (id.to_string() == text).then_some(id)
    }

    fn from_file_name(name: &str) -> Option<Self> {
        Self::parse(name.strip_suffix(SUFFIX)?)
    }

    fn file_name(self) -> String {
        format!("{self}{SUFFIX}")
    }
}

impl std::fmt::Display for EntryId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:0width$}", self.0, width = ID_DIGITS)
    }
}

/// One thing that is wrong with the chain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerFault {
    /// An entry is not there although a later one is.
    #[error("verdict {id} is missing")]
    Gap {
        /// Its place.
        id: EntryId,
    },
    /// An entry is not a verdict that the target signed.
    #[error("verdict {id}: {source}")]
    Entry {
        /// Its place.
        id: EntryId,
        /// What is wrong with it.
        source: VerdictError,
    },
    /// An entry cannot be read.
    #[error("verdict {id}: {source}")]
    Unreadable {
        /// Its place.
        id: EntryId,
        /// Why not.
        source: LedgerError,
    },
    /// An entry stands in another one's place.
    #[error("verdict {id} was signed as number {signed}")]
    Moved {
        /// Where it stands.
        id: EntryId,
        /// Where it belongs.
        signed: u64,
    },
    /// An entry follows another one than the one that stands before it.
    #[error("verdict {id} does not follow the one before it, which was edited or replaced")]
    BrokenLink {
        /// Its place.
        id: EntryId,
    },
    /// An entry of another repository's ledger.
    #[error("verdict {id} is about another repository than the first one")]
    OtherRepository {
        /// Its place.
        id: EntryId,
    },
    /// A key signed after its time.
    #[error("entry {id} was signed with key {key}, whose time ended with entry {ended}")]
    FormerKey {
        /// The entry's place.
        id: EntryId,
        /// The key's id.
        key: String,
        /// The last entry of its time.
        ended: EntryId,
    },
    /// A key signs that the one before it has not named.
    #[error("key {new} signs from entry {id} on, and key {former} has not named it")]
    Unannounced {
        /// The first entry that it signs.
        id: EntryId,
        /// The key before it.
        former: String,
        /// The key.
        new: String,
    },
    /// The ledger names a key that nobody has pinned.
    #[error("entry {id}: the {owner}'s key {key} takes over, and it is not among the keys that were given")]
    Unpinned {
        /// The entry that names it.
        id: EntryId,
        /// Whose key.
        owner: KeyOwner,
        /// Its id.
        key: String,
    },
    /// A key change that is none.
    #[error("entry {id}: its key change does not count: {what}")]
    WrongChange {
        /// The entry's place.
        id: EntryId,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The source's statement in a verdict is signed with a key whose time had ended.
    #[error("verdict {id}: the source's statement is signed with key {key}, whose time ended before")]
    FormerSourceKey {
        /// The verdict's place.
        id: EntryId,
        /// The key's id.
        key: String,
    },
    /// The newest key that was given signs nothing.
    #[error(
        "the ledger does not come to key {key}, the newest that was given: its newest entries are gone, or it is a copy of before"
    )]
    NotReached {
        /// The key's id.
        key: String,
    },
    /// A file that has no place in a ledger.
    #[error("{} does not belong into a ledger", ShowPath(path))]
    Stray {
        /// The file.
        path: PathBuf,
    },
}

/// A repository's verdicts.
#[derive(Debug)]
pub struct Ledger {
    folder: PathBuf,
    reserve: Option<PathBuf>,
}

/// Room for the verdict that says that the disk is full, in bytes: an envelope has a few kilobytes, and a disk that is full wants blocks for
/// the folder as well.
const RESERVE_BYTES: u64 = 1024 * 1024;

impl Ledger {
    /// Opens the ledger in `folder`, which is created when it is absent, and removes what a crash left
    /// unfinished.
    ///
    /// # Errors
    /// [`LedgerError::File`].
    pub fn open(folder: &Path) -> Result<Self, LedgerError> {
        match closed::create_one_folder(folder) {
            Ok(()) => sync_folder(folder.parent().unwrap_or(Path::new(".")))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(PathError::new("create", folder, error).into()),
        }
        let ledger = Self { folder: folder.to_owned(), reserve: None };
        if let Some(_lock) = ledger.lock(FlockOperation::NonBlockingLockExclusive)? {
            // Who may only read need not clean up.
            match remove_temporary(folder) {
                Err(error) if error.source.kind() != io::ErrorKind::PermissionDenied => {
                    return Err(error.into());
                }
                _ => {}
            }
        }
        Ok(ledger)
    }

    /// A ledger to be read where it is, a copy perhaps. Nothing is created or cleaned.
    pub fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), reserve: None }
    }

    /// Keeps a file of some room, which is given up when an entry finds the disk full: what happened is told all the same.
    pub fn with_reserve(self, path: PathBuf) -> Self {
        let ledger = Self { reserve: Some(path), ..self };
        ledger.keep_reserve();
        ledger
    }

    /// Makes the reserve where there is none. A disk without room for it has none for a run either.
    fn keep_reserve(&self) {
        let Some(path) = &self.reserve else { return };
        if fs::metadata(path).is_ok_and(|stat| stat.len() == RESERVE_BYTES) {
            return;
        }
        let made = closed::create_file(path).and_then(|file| {
            Ok(rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, RESERVE_BYTES)?)
        });
        if made.is_err() {
            fs::remove_file(path).ok();
        }
    }

    /// True when there was a reserve to give up.
    fn give_up_reserve(&self) -> bool {
        self.reserve.as_ref().is_some_and(|path| fs::remove_file(path).is_ok())
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Appends the envelope that `build` makes from its place in the chain and the digest to link to. The
    /// file is on disk when this returns, and replaces nothing.
    ///
    /// 1. Under the folder's lock the newest entry is read and linked to.
    /// 2. The entry is written under a temporary name and synced. A crash leaves that name, which the next
    ///    [`Ledger::open`] removes: the entry was never there.
    /// 3. It gets its own name, which replaces none. A crash here shows it, whole, or not at all.
    /// 4. The folder is synced. From here on it is there for good, and only now is anybody told of it.
    ///
    /// # Errors
    /// [`LedgerError`]; then nothing was appended, unless only the last sync of the folder failed.
    pub fn append(
        &self,
        build: impl FnOnce(u64, HexDigest) -> Result<Envelope, VerdictError>,
    ) -> Result<EntryId, LedgerError> {
        let _lock = self.lock(FlockOperation::LockExclusive)?;
        let (id, previous) = match self.entries()?.first() {
            Some(last) => (EntryId(last.0 + 1), link_digest(&self.read(*last)?)),
            None => (EntryId(1), HexDigest::ZERO),
        };
        let envelope = build(id.0, previous)?;
        fault::at(Point::LedgerAppend).at("create", &self.path(id))?;
        let text = envelope.to_json();
        let create = || create_durable(&self.path(id), text.as_bytes(), closed::FILE_MODE);
        let is_full = |error: &PathError| {
            matches!(error.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        };
        match create() {
            Err(error) if is_full(&error) && self.give_up_reserve() => create()?,
            created => {
                created?;
                self.keep_reserve();
            }
        }
        Ok(id)
    }

    /// Ids of all entries, newest first.
    ///
    /// # Errors
    /// [`LedgerError::File`].
    pub fn entries(&self) -> Result<Vec<EntryId>, LedgerError> {
        let mut ids: Vec<_> =
            self.names()?.iter().filter_map(|name| EntryId::from_file_name(name.to_str()?)).collect();
        ids.sort_unstable_by(|left, right| right.cmp(left));
        Ok(ids)
    }

    /// The envelope with this id, its bytes as they were stored.
    ///
    /// # Errors
    /// [`LedgerError::Unknown`] for what is not the id of an entry, and [`LedgerError::File`].
    pub fn get(&self, id: &str) -> Result<Vec<u8>, LedgerError> {
        let unknown = || LedgerError::Unknown {
            folder: self.folder.clone(),
            id: crate::path::display_bytes(id.as_bytes()),
        };
        match self.read(EntryId::parse(id).ok_or_else(unknown)?) {
            Err(LedgerError::File(error)) if error.source.kind() == io::ErrorKind::NotFound => Err(unknown()),
            result => result,
        }
    }

    /// Checks the whole chain with one key of each agent, and gives all that is wrong with it, oldest first.
    ///
    /// # Errors
    /// [`LedgerError::File`] when the folder cannot be listed.
    pub fn verify(
        &self,
        target_key: &VerifyingKey,
        source_key: Option<&VerifyingKey>,
    ) -> Result<Vec<LedgerFault>, LedgerError> {
        let source = source_key.cloned().map(Keyring::from);
        Ok(self.check(&Keyring::from(target_key.clone()), source.as_ref())?.faults)
    }

    /// Checks the whole chain with the pinned keys of both agents, and follows the changes from one key to the next.
    ///
    /// # Errors
    /// [`LedgerError::File`] when the folder cannot be listed.
    pub fn check(&self, target: &Keyring, source: Option<&Keyring>) -> Result<Chain, LedgerError> {
        let mut faults = Vec::new();
        let mut expected = 1;
        let mut repository: Option<String> = None;
        let mut keys = keys::Keys::new(target, source);
        // The digest that the next entry must name; nothing when that cannot be known.
        let mut link = Some(HexDigest::ZERO);
        for id in self.entries()?.into_iter().rev() {
            if id.0 != expected {
                faults.extend(
                    (expected..id.0).take(MAX_GAPS).map(|number| LedgerFault::Gap { id: EntryId(number) }),
                );
                link = None;
            }
            expected = id.0 + 1;
            let bytes = match self.read(id) {
                Ok(bytes) => bytes,
                Err(source) => {
                    faults.push(LedgerFault::Unreadable { id, source });
                    link = None;
                    continue;
                }
            };
            let linked = link.replace(link_digest(&bytes));
            match keys.read(&bytes) {
                Err(source) => faults.push(LedgerFault::Entry { id, source }),
                Ok(entry) => {
                    let is_its_place = entry.sequence() == id.0;
                    if !is_its_place {
                        faults.push(LedgerFault::Moved { id, signed: entry.sequence() });
                    }
                    let follows = linked.is_none_or(|linked| linked == entry.previous());
                    if !follows {
                        faults.push(LedgerFault::BrokenLink { id });
                    }
                    let first = repository.get_or_insert_with(|| entry.repository().to_owned());
                    let is_ours = first == entry.repository();
                    if !is_ours {
                        faults.push(LedgerFault::OtherRepository { id });
                    }
                    // A key change counts only in the ledger and at the place that it was signed for.
                    if is_its_place && follows && is_ours {
                        faults.extend(keys.follow(id, &entry));
                    }
                }
            }
        }
        faults.extend(keys.end());
        for name in self.names()? {
            let known = name.to_str().is_some_and(|name| {
                EntryId::from_file_name(name).is_some() || name.starts_with(TEMPORARY_PREFIX)
            });
            if !known {
                faults.push(LedgerFault::Stray { path: self.folder.join(name) });
            }
        }
        let (target_ends, source_ends) = keys.last_entries();
        let key_changes = std::mem::take(&mut keys.changes);
        Ok(Chain { faults, key_changes, target_ends, source_ends, periods: keys.into_periods() })
    }

    fn names(&self) -> Result<Vec<std::ffi::OsString>, LedgerError> {
        let entries = fs::read_dir(&self.folder).at("list", &self.folder)?;
        let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
        Ok(names.collect::<io::Result<Vec<_>>>().at("list", &self.folder)?)
    }

    fn path(&self, id: EntryId) -> PathBuf {
        self.folder.join(id.file_name())
    }

    fn read(&self, id: EntryId) -> Result<Vec<u8>, LedgerError> {
        let path = self.path(id);
        let length = fs::metadata(&path).at("read", &path)?.len();
        if length > MAX_ENVELOPE_BYTES as u64 {
            return Err(LedgerError::TooLong { path });
        }
        Ok(fs::read(&path).at("read", &path)?)
    }

    /// Locks the folder until the file is dropped; nothing when another one has the lock and we are not to
    /// wait.
    fn lock(&self, operation: FlockOperation) -> Result<Option<fs::File>, LedgerError> {
        let folder = fs::File::open(&self.folder).at("open", &self.folder)?;
        loop {
            return match flock(&folder, operation) {
                Ok(()) => Ok(Some(folder)),
                Err(Errno::INTR) => continue,
                Err(Errno::WOULDBLOCK) => Ok(None),
                Err(error) => Err(PathError::new("lock", &self.folder, error).into()),
            };
        }
    }
}

/// What came out of a check of the whole chain.
#[derive(Debug)]
pub struct Chain {
    /// All that is wrong with it, oldest first; what only the end shows comes last.
    pub faults: Vec<LedgerFault>,
    /// The entries that are key changes and no verdicts, oldest first.
    pub key_changes: Vec<EntryId>,
    /// The times of the keys, the target's first.
    pub periods: Vec<KeyPeriod>,
    target_ends: Vec<Option<u64>>,
    source_ends: Vec<Option<u64>>,
}

impl Chain {
    /// True if the time of the target's key at `place` of its keyring had not ended before entry `id`.
    pub fn is_in_time_of_target(&self, place: usize, id: EntryId) -> bool {
        self.target_ends.get(place).copied().flatten().is_none_or(|last| id.0 <= last)
    }

    /// The same of the source's key.
    pub fn is_in_time_of_source(&self, place: usize, id: EntryId) -> bool {
        self.source_ends.get(place).copied().flatten().is_none_or(|last| id.0 <= last)
    }
}

/// How many missing entries in a row are listed one by one: a file `999999999.json` must not fill the memory.
const MAX_GAPS: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        signing::SigningKey,
        verdict::{sign_verdict, tests::Example},
    };

    struct TestLedger {
        _folder: tempfile::TempDir,
        ledger: Ledger,
        target: SigningKey,
        source: SigningKey,
    }

    impl TestLedger {
        fn with_entries(count: usize) -> Self {
            let folder = tempfile::tempdir().expect("folder");
            let ledger = Ledger::open(&folder.path().join("ledger")).expect("open");
            let test = Self {
                _folder: folder,
                ledger,
                target: SigningKey::generate(),
                source: SigningKey::generate(),
            };
            for _ in 0..count {
                test.append(&Example::default());
            }
            test
        }

        fn append(&self, example: &Example) -> EntryId {
            let build = |sequence, previous| {
                sign_verdict(&example.verdict(&self.source, sequence, previous), &self.target)
            };
            self.ledger.append(build).expect("append")
        }

        fn faults(&self) -> Vec<String> {
            let faults = self.ledger.verify(&self.target.verifying_key(), Some(&self.source.verifying_key()));
            faults.expect("verify").iter().map(ToString::to_string).collect()
        }

        fn file(&self, number: u64) -> PathBuf {
            self.ledger.path(EntryId(number))
        }
    }

    #[test]
    fn a_chain_of_own_entries_has_no_faults() {
        let test = TestLedger::with_entries(4);
        assert_eq!(test.faults(), [""; 0]);
        let ids: Vec<_> = test.ledger.entries().expect("list").iter().map(ToString::to_string).collect();
        assert_eq!(ids, ["000000004", "000000003", "000000002", "000000001"]);
        assert_eq!(test.ledger.get("000000002").expect("there"), fs::read(test.file(2)).expect("read"));
    }

    #[test]
    fn an_edited_entry_and_its_broken_link_are_found() {
        let test = TestLedger::with_entries(3);
        let text = fs::read_to_string(test.file(2)).expect("read");
        // One letter of the base64 payload.
        let place = text.find("payload\":\"").expect("payload") + 60;
        let letter = if &text[place..=place] == "A" { "B" } else { "A" };
        fs::write(test.file(2), format!("{}{letter}{}", &text[..place], &text[place + 1..])).expect("write");
        let faults = test.faults();
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults[0].starts_with("verdict 000000002: verdict: the signature is wrong"), "{faults:?}");
        assert!(faults[1].starts_with("verdict 000000003 does not follow"), "{faults:?}");
    }

    /// Even white space, which no signature covers.
    #[test]
    fn an_entry_that_was_only_reformatted_breaks_the_link() {
        let test = TestLedger::with_entries(2);
        let text = fs::read_to_string(test.file(1)).expect("read");
        fs::write(test.file(1), text + "\n").expect("write");
        let faults = test.faults();
        assert!(
            faults.len() == 1 && faults[0].starts_with("verdict 000000002 does not follow"),
            "{faults:?}"
        );
    }

    #[test]
    fn a_missing_middle_entry_is_a_gap_and_stays_one() {
        let test = TestLedger::with_entries(3);
        fs::remove_file(test.file(2)).expect("remove");
        assert_eq!(test.faults(), ["verdict 000000002 is missing"]);
        assert_eq!(test.append(&Example::default()), EntryId(4));
        assert_eq!(test.faults(), ["verdict 000000002 is missing"]);
    }

    #[test]
    fn a_gap_that_is_closed_by_renaming_is_found() {
        let test = TestLedger::with_entries(3);
        fs::rename(test.file(3), test.file(2)).expect("rename");
        let faults = test.faults();
        assert_eq!(faults[0], "verdict 000000002 was signed as number 3");
        assert!(faults[1].starts_with("verdict 000000002 does not follow"), "{faults:?}");
    }

    #[test]
    fn swapped_entries_are_found() {
        let test = TestLedger::with_entries(3);
        let (two, three) = (fs::read(test.file(2)).expect("read"), fs::read(test.file(3)).expect("read"));
        fs::write(test.file(2), three).expect("write");
        fs::write(test.file(3), two).expect("write");
        let faults = test.faults();
        assert!(faults.contains(&"verdict 000000002 was signed as number 3".to_owned()), "{faults:?}");
        assert!(faults.contains(&"verdict 000000003 was signed as number 2".to_owned()), "{faults:?}");
    }

    #[test]
    fn truncated_and_empty_entries_are_found() {
        let test = TestLedger::with_entries(2);
        for length in [0, 100] {
            fs::File::options()
                .write(true)
                .open(test.file(2))
                .expect("open")
                .set_len(length)
                .expect("truncate");
            let faults = test.faults();
            assert!(faults.len() == 1 && faults[0].contains("not a DSSE envelope"), "{faults:?}");
        }
    }

    #[test]
    fn entries_of_another_key_or_repository_are_found() {
        let test = TestLedger::with_entries(1);
        test.append(&Example { repository: "other", ..Default::default() });
        assert_eq!(test.faults(), ["verdict 000000002 is about another repository than the first one"]);
        let faults = test.ledger.verify(&SigningKey::generate().verifying_key(), None).expect("verify");
        assert_eq!(faults.len(), 2);
    }

    #[test]
    fn what_a_crash_left_is_removed_at_open_and_was_never_an_entry() {
        let test = TestLedger::with_entries(1);
        let half = test.ledger.folder().join(format!("{TEMPORARY_PREFIX}0123"));
        fs::write(&half, "{\"payl").expect("write");
        assert_eq!(test.ledger.entries().expect("list"), [EntryId(1)]);
        assert_eq!(test.faults(), [""; 0]);
        Ledger::open(test.ledger.folder()).expect("open");
        assert!(!half.exists());
    }

    /// A reader that opens the ledger must not take the file of a writer that is at work.
    #[test]
    fn open_leaves_the_file_of_a_writer_at_work() {
        let test = TestLedger::with_entries(0);
        let half = test.ledger.folder().join(format!("{TEMPORARY_PREFIX}0123"));
        fs::write(&half, "{\"payl").expect("write");
        let lock = test.ledger.lock(FlockOperation::LockExclusive).expect("lock");
        Ledger::open(test.ledger.folder()).expect("open");
        assert!(half.exists());
        drop(lock);
    }

    #[test]
    fn a_build_that_fails_appends_nothing() {
        let test = TestLedger::with_entries(1);
        let failed = test.ledger.append(|_, previous| {
            sign_verdict(&Example::default().verdict(&test.source, 0, previous), &test.target)
        });
        assert!(matches!(failed, Err(LedgerError::Build(_))));
        assert_eq!(test.ledger.entries().expect("list").len(), 1);
    }

    #[test]
    fn two_writers_make_one_chain() {
        let test = TestLedger::with_entries(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5 {
                        test.append(&Example::default());
                    }
                });
            }
        });
        assert_eq!(test.ledger.entries().expect("list").len(), 20);
        assert_eq!(test.faults(), [""; 0]);
    }

    #[test]
    fn ids_are_not_paths() {
        let test = TestLedger::with_entries(1);
        for id in ["../ledger/000000001", "1", "000000000", "+00000001", "000000002", "000000001.json", ""] {
            assert!(matches!(test.ledger.get(id), Err(LedgerError::Unknown { .. })), "{id}");
        }
    }

    /// The first id is 1, and an id has nine digits or more.
    #[test]
    fn an_id_is_the_text_of_a_place_and_nothing_else() {
        for (text, number) in [("000000001", 1), ("999999999", 999_999_999), ("1000000000", 1_000_000_000)] {
            assert_eq!(EntryId::parse(text), Some(EntryId(number)), "{text}");
            assert_eq!(EntryId(number).to_string(), text);
            assert_eq!(EntryId(number).sequence(), number);
        }
        for text in ["000000000", "0000000001", "00000001", "-00000001", "00000000a", "18446744073709551616"]
        {
            assert_eq!(EntryId::parse(text), None, "{text}");
        }
    }

    /// An entry that is there and cannot be read is no verdict that is missing, and the next one is not linked past it.
    #[test]
    fn an_entry_that_cannot_be_read_is_told_as_that() {
        let test = TestLedger::with_entries(2);
        fs::remove_file(test.file(2)).expect("remove");
        fs::create_dir(test.file(2)).expect("mkdir");
        assert!(matches!(test.ledger.get("000000002"), Err(LedgerError::File(_))));
        let appended =
            test.ledger.append(|_, _| panic!("nothing is built upon an entry that cannot be read"));
        assert!(matches!(appended, Err(LedgerError::File(_))), "{appended:?}");
        let faults = test.ledger.verify(&test.target.verifying_key(), None).expect("verify");
        assert!(matches!(faults[..], [LedgerFault::Unreadable { id: EntryId(2), .. }]), "{faults:?}");
    }

    /// An entry of 16 MiB is read, one of a byte more is refused by its length alone.
    #[test]
    fn an_entry_has_a_largest_size() {
        let test = TestLedger::with_entries(1);
        let file = fs::File::options().write(true).open(test.file(1)).expect("open");
        file.set_len(MAX_ENVELOPE_BYTES as u64).expect("grow");
        assert_eq!(test.ledger.get("000000001").expect("it is read").len(), MAX_ENVELOPE_BYTES);
        file.set_len(MAX_ENVELOPE_BYTES as u64 + 1).expect("grow");
        assert!(matches!(test.ledger.get("000000001"), Err(LedgerError::TooLong { .. })));
    }

    /// The reserve has its size, is made again when it is gone or was cut, and is given up once.
    #[test]
    fn the_reserve_is_kept_until_it_is_given_up() {
        let test = TestLedger::with_entries(0);
        let path = test.ledger.folder().with_extension("reserve");
        let bytes = || fs::metadata(&path).map_or(0, |stat| stat.len());
        let ledger = Ledger::at(test.ledger.folder()).with_reserve(path.clone());
        assert_eq!(bytes(), RESERVE_BYTES);
        assert!(ledger.give_up_reserve() && bytes() == 0);
        assert!(!ledger.give_up_reserve(), "there is none left");
        let append = || {
            let build = |sequence, previous| {
                sign_verdict(&Example::default().verdict(&test.source, sequence, previous), &test.target)
            };
            ledger.append(build).expect("append");
        };
        append();
        assert_eq!(bytes(), RESERVE_BYTES, "an entry that had room makes it again");
        fs::write(&path, "short").expect("write");
        append();
        assert_eq!(bytes(), RESERVE_BYTES, "one that was cut as well");
        assert_eq!(test.faults(), [""; 0]);
    }

    /// A gap of any length costs no memory; what stands after it is not said to have a broken link as well.
    #[test]
    fn a_long_gap_is_listed_up_to_a_limit() {
        let test = TestLedger::with_entries(2);
        fs::rename(test.file(2), test.file(5000)).expect("rename");
        let faults = test.ledger.verify(&test.target.verifying_key(), None).expect("verify");
        let gaps = faults.iter().filter(|fault| matches!(fault, LedgerFault::Gap { .. })).count();
        assert_eq!(gaps, MAX_GAPS);
        assert!(matches!(faults[0], LedgerFault::Gap { id: EntryId(2) }));
        assert!(
            matches!(faults[MAX_GAPS..], [LedgerFault::Moved { id: EntryId(5000), signed: 2 }]),
            "{:?}",
            faults.last()
        );
    }

    #[test]
    fn strangers_in_the_folder_are_told() {
        let test = TestLedger::with_entries(1);
        fs::write(test.ledger.folder().join("1.json"), "").expect("write");
        assert!(test.faults()[0].ends_with("1.json does not belong into a ledger"));
    }
}
