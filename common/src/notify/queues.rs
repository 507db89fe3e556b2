//! The folder with an agent's queues, which is one agent's alone.
//!
//! Two agents may have one store between them, each with other repositories. Each would send what waits in a common folder, and put its own
//! notices in the place of the other's.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

use crate::closed;

/// Agents of one name in one folder that have queues of their own.
const MAX_AGENTS: u32 = 16;

/// A folder, held for as long as this is there.
#[derive(Debug)]
pub(super) struct Queues {
    /// Where it is; `None` when nothing can be kept.
    pub(super) folder: Option<PathBuf>,
    _lock: Option<File>,
}

impl Queues {
    /// None on disk.
    pub(super) fn none() -> Self {
        Self { folder: None, _lock: None }
    }

    /// Those of `agent`: at `place`, unless another agent has that. Then they are beside it, and stay there.
    pub(super) fn of(place: &Path, agent: &str) -> Self {
        let beside = |end: &str| {
            let mut name = place.as_os_str().to_owned();
            name.push(format!("-{agent}{end}"));
            PathBuf::from(name)
        };
        let own = beside("");
        let first = own.is_dir().then(|| own.clone());
        let further = (2..=MAX_AGENTS).map(|number| beside(&format!("-{number}")));
        for folder in first.into_iter().chain([place.to_owned(), own]).chain(further) {
            match hold(&folder) {
                Ok(Some(lock)) => return Self { folder: Some(folder), _lock: Some(lock) },
                Ok(None) => {
                    tracing::warn!(folder = %folder.display(), "another agent has its notices there: those of this one are kept beside it");
                }
                // A full disk, or a file system without locks: the mailboxes say what becomes of notices there.
                Err(error) => {
                    tracing::warn!(folder = %folder.display(), %error, "the folder of notices cannot be locked");
                    return Self { folder: Some(folder), _lock: None };
                }
            }
        }
        Self::none()
    }
}

/// `None` when another process has it.
fn hold(folder: &Path) -> std::io::Result<Option<File>> {
    closed::create_folder(folder)?;
    let lock = File::open(folder)?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(lock)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_agent_has_queues_of_its_own_and_finds_them_again() {
        let temp = tempfile::tempdir().expect("temp");
        let place = temp.path().join(".notices");
        let at = |queues: &Queues| {
            let folder = queues.folder.as_ref().expect("a folder");
            folder.file_name().expect("a name").to_string_lossy().into_owned()
        };
        let one = Queues::of(&place, "one");
        let two = Queues::of(&place, "two");
        let same = Queues::of(&place, "two");
        assert_eq!([at(&one), at(&two), at(&same)], [".notices", ".notices-two", ".notices-two-2"]);
        // All have ended, and start in another order.
        drop((one, two, same));
        let two = Queues::of(&place, "two");
        let one = Queues::of(&place, "one");
        assert_eq!([at(&one), at(&two)], [".notices", ".notices-two"]);
    }
}
