//! Files with several names: which of them are one file is told by what was opened, never by what the walk saw.
//!
//! An inode's number alone says little: a name may be another file's by the time that it is read, and the number a new file's when the
//! old one is gone. So a further name is made a link only to a file that was read, or known to be as it was, and only when the name
//! still leads to it: its times are those of then, or it is held open here, which keeps its number from being given away, and the
//! content is the same.

use std::{
    collections::HashMap,
    fmt,
    fs::File,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use assay_common::{confined::Folder, path::TreePath};
use rustix::fs::Stat;

use super::basis::Seen;

/// Files that are held open for their further names, at most.
const MAX_HELD: usize = 512;
/// The share of the descriptors that this process may have which go into that.
const SHARE_OF_DESCRIPTORS: u64 = 4;

/// Device and inode.
pub(super) type FileId = (u64, u64);

/// What keeps an inode: a file that a reader opened, or a link or a device that is held without being opened.
type Held = Box<dyn fmt::Debug + Send + Sync>;

/// Files, links and devices with several names, kept open so that their inode numbers are not used again during the run.
#[derive(Debug, Default)]
pub struct HeldFiles(Mutex<HashMap<FileId, Held>>);

impl HeldFiles {
    /// Keeps a file open, when it has more names and there is room.
    pub(super) fn keep(&self, file: &Arc<File>, stat: &Stat) {
        if stat.st_nlink > 1 {
            self.insert(stat, Arc::clone(file));
        }
    }

    /// Holds an entry without content (a symbolic link, a device) when its name still leads to it. When such an entry changed within the
    /// clock's tick, nothing else tells whether a further name is the same entry.
    pub(super) fn keep_node(&self, folder: &Folder, name: &[u8], stat: &Stat) {
        let is_same = |now: &Stat| Seen::new(now, Duration::ZERO).looks_like(stat);
        if let Ok(node) = folder.hold(name)
            && node.stat().is_ok_and(|now| is_same(&now))
        {
            self.insert(stat, node);
        }
    }

    fn insert(&self, stat: &Stat, what: impl fmt::Debug + Send + Sync + 'static) {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let share = usize::try_from(limit.unwrap_or(u64::MAX) / SHARE_OF_DESCRIPTORS).unwrap_or(usize::MAX);
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if held.len() < share.min(MAX_HELD) {
            held.insert((stat.st_dev, stat.st_ino), Box::new(what));
        }
    }

    fn has(&self, id: FileId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&id)
    }

    fn release(&self, id: FileId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}

/// A file whose first name is in the manifest.
#[derive(Debug, Clone)]
pub(super) struct First {
    pub(super) path: TreePath,
    /// As it was when it was read, or when the walk found that it had not changed.
    pub(super) seen: Seen,
    /// The digest of its content; empty for what has none, and for what was not read.
    pub(super) digest: Vec<u8>,
    /// It was not read: it is as the basis has it.
    pub(super) is_kept: bool,
    /// Names that have not come yet.
    names_left: u64,
}

impl First {
    pub(super) fn new(path: TreePath, seen: Seen, digest: Vec<u8>, is_kept: bool, names: u64) -> Self {
        Self { path, seen, digest, is_kept, names_left: names.saturating_sub(1) }
    }
}

/// What a further name turns out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kinship {
    /// The same file, as it was.
    Same,
    /// The same file, which has changed in some way since it was read.
    SameInode,
    /// Nothing that is known.
    Other,
}

/// The first names so far.
#[derive(Debug, Default)]
pub(super) struct Links {
    firsts: HashMap<FileId, First>,
    held: Arc<HeldFiles>,
}

impl Links {
    pub(super) fn new(held: Arc<HeldFiles>) -> Self {
        Self { firsts: HashMap::new(), held }
    }

    /// Takes note of a first name.
    pub(super) fn add(&mut self, first: First) {
        let id = first.seen.file();
        if let std::collections::hash_map::Entry::Vacant(place) = self.firsts.entry(id) {
            place.insert(first);
        }
    }

    /// The file that a stat of a further name speaks of, and whether it is that file.
    pub(super) fn find(&self, stat: &Stat) -> Option<(&First, Kinship)> {
        let id = (stat.st_dev, stat.st_ino);
        let first = self.firsts.get(&id)?;
        let is_held = self.held.has(id);
        let kinship = match first.seen.looks_like(stat) {
            // Of a file that was written to just now the times say nothing: its number may be another's by now.
            true if is_held || first.seen.is_trusted() => Kinship::Same,
            _ if is_held => Kinship::SameInode,
            _ => Kinship::Other,
        };
        Some((first, kinship))
    }

    /// A further name was made a link. After the last one nothing has to be held any more.
    pub(super) fn linked(&mut self, stat: &Stat) {
        let id = (stat.st_dev, stat.st_ino);
        if let Some(first) = self.firsts.get_mut(&id) {
            first.names_left = first.names_left.saturating_sub(1);
            if first.names_left == 0 {
                self.held.release(id);
            }
        }
    }

    /// The name that stood for this inode stands for another file now.
    pub(super) fn replace(&mut self, first: First) {
        let id = first.seen.file();
        self.firsts.insert(id, first);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn stat(file: impl AsFd) -> Stat {
        rustix::fs::fstat(file).expect("stat")
    }

    fn first(stat: &Stat, rested: bool) -> First {
        let changed = std::time::Duration::new(stat.st_ctime as u64, stat.st_ctime_nsec as u32);
        let now = changed + std::time::Duration::from_secs(if rested { 10 } else { 0 });
        let path = TreePath::parse(b"first").expect("valid");
        First::new(path, Seen::new(stat, now), vec![1], false, stat.st_nlink)
    }

    /// The number of an inode, and even its times, can be those of a file that was not there before.
    #[test]
    fn a_number_alone_makes_no_link() {
        let file = tempfile::NamedTempFile::new().expect("temp");
        let further = file.path().with_extension("further");
        std::fs::hard_link(file.path(), &further).expect("link");
        let at_first = stat(file.as_file());
        let held = Arc::<HeldFiles>::default();
        let mut links = Links::new(Arc::clone(&held));
        assert!(links.find(&at_first).is_none());
        links.add(first(&at_first, true));
        let kinship = |links: &Links, stat: &Stat| links.find(stat).map(|found| found.1);
        assert_eq!(kinship(&links, &at_first), Some(Kinship::Same));
        let mut later = at_first;
        later.st_ctime_nsec ^= 1;
        assert_eq!(kinship(&links, &later), Some(Kinship::Other), "another file may have its number");
        let mut another = at_first;
        another.st_ino += 1;
        assert_eq!(kinship(&links, &another), None);
        links.replace(first(&at_first, false));
        assert_eq!(kinship(&links, &at_first), Some(Kinship::Other), "times of this moment say nothing");
        held.keep(&Arc::new(file.reopen().expect("open")), &at_first);
        assert_eq!(kinship(&links, &at_first), Some(Kinship::Same), "its number cannot be given away");
        assert_eq!(kinship(&links, &later), Some(Kinship::SameInode));
        links.linked(&at_first);
        assert_eq!(kinship(&links, &later), Some(Kinship::Other), "its last name has come");
        std::fs::remove_file(further).expect("remove");
    }

    /// A link and its further name that were made at this moment: neither can be opened, and times of this moment say nothing.
    #[test]
    fn a_symbolic_link_of_this_moment_is_known_while_it_is_held() {
        let temp = tempfile::tempdir().expect("temp");
        std::os::unix::fs::symlink("nowhere", temp.path().join("link")).expect("symlink");
        std::fs::hard_link(temp.path().join("link"), temp.path().join("twice")).expect("link");
        std::os::unix::fs::symlink("elsewhere", temp.path().join("other")).expect("symlink");
        let folder = Folder::open(temp.path()).expect("open");
        let at = folder.stat(b"link").expect("stat");
        let held = Arc::<HeldFiles>::default();
        let mut links = Links::new(Arc::clone(&held));
        links.add(first(&at, false));
        let kinship = |links: &Links| {
            let further = folder.stat(b"twice").expect("stat");
            links.find(&further).map(|found| found.1)
        };
        assert_eq!(kinship(&links), Some(Kinship::Other));
        held.keep_node(&folder, b"other", &at);
        held.keep_node(&folder, b"gone", &at);
        assert_eq!(kinship(&links), Some(Kinship::Other), "another file is held, or none");
        held.keep_node(&folder, b"link", &at);
        assert_eq!(kinship(&links), Some(Kinship::Same));
    }
}
