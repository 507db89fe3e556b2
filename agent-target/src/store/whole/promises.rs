//! What contents must turn out to be: of a file that shares pieces with the base the source says the digest of the whole, and the pieces are not
//! compared one by one (docs/adr/0012). A promise is held until the digest of what was put together is known.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use assay_common::digest::ContentDigest;

/// Promises of which it is not known whether they were kept.
const MAX_OPEN: usize = 256 * 1024;
/// At most so many files are named when promises are broken.
const MAX_BROKEN: usize = 16;

/// What a content must turn out to be: a part of it was taken from the base, and is not compared by itself.
#[derive(Debug, Clone, Copy)]
pub struct Promised {
    /// The digest of the whole.
    pub digest: ContentDigest,
    /// Its length in bytes.
    pub length: u64,
    /// Position in the base of the file that the part was taken from.
    pub base_entry: u64,
}

/// The promises of one session.
#[derive(Debug, Default)]
pub struct Promises {
    /// By content, until it is known whether they were kept.
    open: Mutex<HashMap<u64, Promised>>,
    /// Files of the base from which pieces were taken for contents that turned out to be others.
    broken: Mutex<BTreeSet<u64>>,
}

impl Promises {
    fn all(&self) -> MutexGuard<'_, HashMap<u64, Promised>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes down what contents must turn out to be, before their ends are told. False when that would be more than there may be.
    pub fn add(&self, promised: &[(u64, Promised)]) -> bool {
        let mut open = self.all();
        let fits = open.len() + promised.len() <= MAX_OPEN;
        if fits {
            open.extend(promised.iter().copied());
        }
        fits
    }

    /// Those of which it is not known whether they were kept.
    pub fn open(&self) -> Vec<(u64, Promised)> {
        self.all().iter().map(|(content, promised)| (*content, *promised)).collect()
    }

    /// Files of the base, by their positions, from which pieces were taken for contents that turned out to be others than was promised.
    pub fn broken(&self) -> BTreeSet<u64> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Holds what a content turned out to be against what was promised of it, if anything was.
    pub fn hold(&self, content: u64, length: u64, digest: ContentDigest) {
        let promised = self.all().remove(&content);
        if let Some(promised) =
            promised.filter(|promised| (promised.digest, promised.length) != (digest, length))
        {
            let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
            if broken.len() < MAX_BROKEN {
                broken.insert(promised.base_entry);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_is_held_once_and_a_broken_one_names_its_file() {
        let digest = ContentDigest::of(b"as promised");
        let promised = |base_entry| Promised { digest, length: 11, base_entry };
        let promises = Promises::default();
        assert!(promises.add(&[(1, promised(5)), (2, promised(6)), (3, promised(7)), (4, promised(6))]));
        promises.hold(1, 11, digest);
        promises.hold(9, 11, ContentDigest::of(b"nothing was promised"));
        assert!(promises.broken().is_empty());
        promises.hold(2, 11, ContentDigest::of(b"another"));
        promises.hold(3, 12, digest);
        assert_eq!(promises.broken(), BTreeSet::from([6, 7]));
        assert_eq!(promises.open().iter().map(|(content, _)| *content).collect::<Vec<_>>(), [4]);
        promises.hold(2, 11, digest);
        assert_eq!(promises.broken().len(), 2, "it stays broken");
    }

    #[test]
    fn neither_promises_nor_names_grow_without_bounds() {
        let promised = |base_entry| Promised { digest: ContentDigest::of(b""), length: 0, base_entry };
        let promises = Promises::default();
        let many: Vec<_> = (0..MAX_OPEN as u64).map(|number| (number, promised(number))).collect();
        assert!(promises.add(&many) && !promises.add(&[(u64::MAX, promised(0))]));
        many.iter().for_each(|(content, _)| promises.hold(*content, 1, ContentDigest::of(b"a")));
        assert_eq!((promises.open().len(), promises.broken().len()), (0, MAX_BROKEN));
    }
}
