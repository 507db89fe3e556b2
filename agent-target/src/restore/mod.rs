//! What a restore takes out of the store: a sealed generation, its verdict, and its content. Read-only, and without the agent: at the
//! target itself a restore needs the store's folder only.

mod content;
mod record;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use assay_common::{
    confined::Folder,
    digest::RootDigest,
    error::{IoContext as _, PathError},
    id::GenerationNumber,
    ledger::{Ledger, LedgerError},
    verdict::{Outcome, unverified_key_change, unverified_verdict},
};

use crate::store::{MANIFEST, POSITIONS, RECORD, Record, TREE};

pub use content::Content;
pub use record::{Done, last, last_complete, note};

/// Why a generation cannot be taken out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealedError {
    /// A file or folder of the store.
    #[error(transparent)]
    Io(#[from] PathError),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Nothing has passed.
    #[error("no generation of {repository} has passed its check")]
    NonePassed {
        /// The repository.
        repository: String,
    },
    /// There is none of this number.
    #[error("{repository} has no generation {number}")]
    NoSuch {
        /// The repository.
        repository: String,
        /// As asked for.
        number: GenerationNumber,
    },
    /// A verdict that is newer than any that can be read of the generation.
    #[error("verdict {id} of the ledger cannot be read, and may be about this generation")]
    Verdict {
        /// Its id.
        id: String,
    },
    /// Its record is not one.
    #[error("{}: not a generation's record", path.display())]
    Record {
        /// The file.
        path: PathBuf,
    },
}

impl assay_common::error::Hint for SealedError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NonePassed { .. } => Some(
                "`assay-target generations` lists what is there; name one by --generation, and say --unverified to take what no check has passed"
                    .to_owned(),
            ),
            Self::Verdict { .. } => {
                Some("`assay-target ledger verify` says what is wrong with the ledger".to_owned())
            }
            Self::NoSuch { .. } => Some("`assay-target generations` lists what is there".to_owned()),
            _ => None,
        }
    }
}

/// A sealed generation that is held: it is not pruned while this lives.
///
/// It is held by a lock of the kernel's on its folder, not by [`crate::keep::holds::Hold`]: that one knows of this process only, and a
/// restore at the target is a process of its own, beside an agent or without one. So restores have this way alone, over the network
/// too, and pruning asks for both. Healing need not: it replaces a rotten file by a sound one, and a reader has the one or the other.
#[derive(Debug)]
pub struct Sealed {
    folder: PathBuf,
    /// Locked, shared: whoever removes a generation asks for the lock alone.
    _held: File,
    /// Its record.
    pub record: Record,
    /// The newest verdict on it that is PASS or FAIL, as an envelope.
    pub verdict: Option<Vec<u8>>,
    /// It is the generation that `verified` points to: a negative control vouches for its checker.
    pub is_verified: bool,
}

impl Sealed {
    /// Opens generation `number` of the repository whose store is `repository`. Without a number: the verified one, or, as long as no
    /// negative control vouches for the checker and nothing is verified, the newest that passed.
    ///
    /// # Errors
    /// [`SealedError`].
    pub fn open(repository: &Path, number: Option<GenerationNumber>) -> Result<Self, SealedError> {
        let name = || repository.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let verified = fs::read_link(repository.join("verified"))
            .ok()
            .and_then(|link| GenerationNumber::from_folder(link.file_name()?.to_str()?));
        let number = number
            .or(verified)
            .or_else(|| newest_pass(repository))
            .ok_or_else(|| SealedError::NonePassed { repository: name() })?;
        let folder = repository.join("generations").join(number.folder());
        let held = match File::open(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(SealedError::NoSuch { repository: name(), number });
            }
            held => held.at("open", &folder)?,
        };
        let locked = rustix::fs::flock(&held, rustix::fs::FlockOperation::NonBlockingLockShared);
        locked.map_err(std::io::Error::from).at("hold", &folder)?;
        let path = folder.join(RECORD);
        let text = match fs::read(&path) {
            // It was pruned between the opening and the lock: the folder that is held is in the trash.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !folder.exists() => {
                return Err(SealedError::NoSuch { repository: name(), number });
            }
            text => text.at("read", &path)?,
        };
        let record: Record = serde_json::from_slice(&text).map_err(|_| SealedError::Record { path })?;
        let is_verified = verified == Some(number);
        Ok(Self { verdict: conclusive(repository, number)?, folder, _held: held, record, is_verified })
    }

    /// True when the check that passed it is known to find damage: by the control that its verdict carries, or by one that came later and
    /// moved `verified` to it.
    pub fn is_proven(&self) -> bool {
        let verdict = self.verdict.as_deref().and_then(|envelope| unverified_verdict(envelope).ok());
        self.is_verified || verdict.is_some_and(|verdict| verdict.claims_proto().proven)
    }

    /// Root digest of its manifest, as it was sealed.
    pub fn root_digest(&self) -> Option<RootDigest> {
        RootDigest::from_hex(&self.record.root_digest)
    }

    /// Its manifest.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn manifest(&self) -> Result<File, PathError> {
        let path = self.folder.join(MANIFEST);
        File::open(&path).at("open", &path)
    }

    /// Its content.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn content(&self) -> Result<Content, PathError> {
        let (positions, tree) = (self.folder.join(POSITIONS), self.folder.join(TREE));
        let positions = File::open(&positions).at("open", &positions)?;
        Ok(Content::new(self.manifest()?, positions, Folder::open(&tree).at("open", &tree)?))
    }
}

/// The newest generation that is there and whose newest PASS or FAIL is a PASS.
fn newest_pass(repository: &Path) -> Option<GenerationNumber> {
    let ledger = Ledger::at(&repository.join("ledger"));
    let mut judged = std::collections::BTreeMap::new();
    for id in ledger.entries().ok()? {
        let Some(verdict) =
            ledger.get(&id.to_string()).ok().and_then(|bytes| unverified_verdict(&bytes).ok())
        else {
            continue;
        };
        if let (Some(generation), Outcome::Pass | Outcome::Fail) = (verdict.generation, verdict.outcome) {
            judged.entry(generation).or_insert(verdict.outcome);
        }
    }
    let is_there = |number: &GenerationNumber| repository.join("generations").join(number.folder()).is_dir();
    let passed = judged.into_iter().rev().filter(|(_, outcome)| *outcome == Outcome::Pass);
    passed.map(|(number, _)| number).find(is_there)
}

/// The newest PASS or FAIL on generation `number`.
fn conclusive(repository: &Path, number: GenerationNumber) -> Result<Option<Vec<u8>>, SealedError> {
    let ledger = Ledger::open(&repository.join("ledger"))?;
    for id in ledger.entries()? {
        let envelope = ledger.get(&id.to_string())?;
        // It might be a FAIL: an older PASS is not taken for the last word.
        let verdict = match unverified_verdict(&envelope) {
            Ok(verdict) => verdict,
            Err(_) if unverified_key_change(&envelope).is_ok() => continue,
            Err(_) => return Err(SealedError::Verdict { id: id.to_string() }),
        };
        if verdict.generation == Some(number) && matches!(verdict.outcome, Outcome::Pass | Outcome::Fail) {
            return Ok(Some(envelope));
        }
    }
    Ok(None)
}
