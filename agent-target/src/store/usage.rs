//! How much content the generations of one repository hold: counted as they come and go, not measured.
//!
//! A seal adds the data of its new contents, holes left out; a generation that is deleted takes away what no other has. After a
//! crash between a seal and its count the generation's record is added; what a generation takes away is noted before it is deleted.
//! Without the file the count starts at the most that the records can stand for.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use assay_common::{confined::Folder, durable::write_durable, error::PathError};
use rustix::fs::FileType;
use serde::{Deserialize, Serialize};

use super::Record;

/// The count, and where it is kept.
#[derive(Debug)]
pub(super) struct Usage {
    path: PathBuf,
    count: Mutex<Count>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Count {
    bytes: u64,
    /// The newest generation that is counted.
    up_to: u64,
    /// What goes with folders of the trash that are being deleted, by name.
    #[serde(default)]
    leaving: BTreeMap<String, u64>,
}

impl Usage {
    /// Takes the count up again. `records` are of all generations that there are, oldest first.
    pub(super) fn load(path: &Path, records: impl Iterator<Item = Record>) -> Self {
        let kept = fs::read(path).ok().and_then(|bytes| serde_json::from_slice::<Count>(&bytes).ok());
        let mut first = kept.is_none();
        let mut count = kept.unwrap_or_default();
        let known = count.up_to;
        for record in records.filter(|record| record.generation > known) {
            // What the oldest shares with generations that are gone, it has alone.
            let alone = std::mem::take(&mut first) && record.base_generation.is_some();
            let bytes = if alone { record.total_bytes } else { record.stored_bytes() };
            count.bytes = count.bytes.saturating_add(bytes);
            count.up_to = record.generation;
        }
        Self { path: path.to_owned(), count: Mutex::new(count) }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.count().bytes
    }

    /// A generation was sealed.
    pub(super) fn add(&self, record: &Record) -> Result<(), PathError> {
        self.change(|count| {
            if record.generation > count.up_to {
                count.bytes = count.bytes.saturating_add(record.stored_bytes());
                count.up_to = record.generation;
            }
        })
    }

    /// A folder of the trash is about to be deleted. How much goes with it is measured when that begins, not when a crash has
    /// left the half of it.
    pub(super) fn leaving(&self, name: &str, measure: impl FnOnce() -> u64) -> Result<(), PathError> {
        if self.count().leaving.contains_key(name) {
            return Ok(());
        }
        let bytes = measure();
        self.change(|count| {
            count.leaving.insert(name.to_owned(), bytes);
        })
    }

    /// Of what was leaving, all but these folders has left.
    pub(super) fn left(&self, still_there: &[Vec<u8>]) -> Result<(), PathError> {
        let there = |name: &str| still_there.iter().any(|there| there == name.as_bytes());
        if self.count().leaving.keys().all(|name| there(name)) {
            return Ok(());
        }
        self.change(|count| {
            let gone: u64 =
                count.leaving.iter().filter(|(name, _)| !there(name)).map(|(_, bytes)| *bytes).sum();
            count.leaving.retain(|name, _| there(name));
            count.bytes = count.bytes.saturating_sub(gone);
        })
    }

    fn count(&self) -> MutexGuard<'_, Count> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Count)) -> Result<(), PathError> {
        let mut count = self.count();
        change(&mut count);
        let text = serde_json::to_vec(&*count).expect("two numbers");
        write_durable(&self.path, &text, 0o600)
    }
}

/// Bytes of the files below `folder` that are nowhere else: on disk, as far as they belong to the content. What cannot be read
/// is not counted.
pub(super) fn sole_bytes(folder: &Folder) -> u64 {
    let (mut sum, mut linked) = (0, HashMap::new());
    add_sole_bytes(folder, &mut sum, &mut linked);
    linked
        .values()
        .filter(|(further, _)| *further == 0)
        .fold(sum, |sum, (_, bytes)| sum.saturating_add(*bytes))
}

/// Adds what has one name to `sum`; in `linked` stands by inode how many names of a file have not been seen, and its bytes.
fn add_sole_bytes(folder: &Folder, sum: &mut u64, linked: &mut HashMap<u64, (u64, u64)>) {
    for name in folder.names().unwrap_or_default() {
        let Ok(stat) = folder.stat(&name) else { continue };
        let blocks = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
        let bytes = u64::try_from(stat.st_size).unwrap_or(0).min(blocks);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                if let Ok(below) = folder.open_folder(&name) {
                    add_sole_bytes(&below, sum, linked);
                }
            }
            FileType::RegularFile if stat.st_nlink == 1 => *sum = sum.saturating_add(bytes),
            // All its names may be below this folder.
            FileType::RegularFile => {
                let further = &mut linked.entry(stat.st_ino).or_insert((stat.st_nlink, bytes)).0;
                *further = further.saturating_sub(1);
            }
            _ => {}
        }
    }
}

/// Free bytes for this process on a folder's file system.
pub fn free_bytes(folder: &Path) -> Option<u64> {
    rustix::fs::statvfs(folder).ok().map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::record;

    #[test]
    fn seals_add_and_deletions_take_away_and_a_restart_knows() {
        let folder = tempfile::tempdir().expect("temp");
        let path = folder.path().join("usage.json");
        let usage = Usage::load(&path, [].into_iter());
        usage.add(&record(1, None, 100, 100)).expect("write");
        usage.add(&record(2, Some(1), 120, 20)).expect("write");
        usage.add(&record(2, Some(1), 120, 20)).expect("it is counted once");
        usage.leaving("000001", || 30).expect("write");
        usage.leaving("000001", || panic!("a crash has left the half of it")).expect("nothing to write");
        let names = [b"000001".to_vec()];
        usage.left(&names).expect("it is still there");
        assert_eq!(usage.bytes(), 120);
        Usage::load(&path, [].into_iter()).left(&[]).expect("after a restart");
        let usage = Usage::load(&path, [].into_iter());
        usage.left(&[]).expect("once");
        assert_eq!(usage.bytes(), 90);
        let records =
            || [record(1, None, 100, 100), record(2, Some(1), 120, 20), record(3, Some(2), 130, 10)];
        assert_eq!(Usage::load(&path, records().into_iter()).bytes(), 100, "one seal was not counted");
        fs::write(&path, "cut o").expect("write");
        assert_eq!(Usage::load(&path, records().into_iter()).bytes(), 130);
        let pruned = records().into_iter().skip(1);
        assert_eq!(Usage::load(&path, pruned).bytes(), 130, "the oldest has all that it holds");
    }

    #[test]
    fn only_what_has_no_further_name_elsewhere_is_freed() {
        let folder = tempfile::tempdir().expect("temp");
        let (tree, other) = (folder.path().join("tree"), folder.path().join("other"));
        fs::create_dir_all(tree.join("below")).expect("mkdir");
        fs::write(tree.join("below/sole"), vec![1; 10_000]).expect("write");
        fs::write(tree.join("twice"), vec![1; 3000]).expect("write");
        fs::hard_link(tree.join("twice"), tree.join("below/again")).expect("link");
        fs::write(&other, vec![1; 500]).expect("write");
        fs::hard_link(&other, tree.join("shared")).expect("link");
        let sparse = fs::File::create(tree.join("sparse")).expect("create");
        sparse.set_len(1 << 30).expect("grow");
        assert_eq!(sole_bytes(&Folder::open(&tree).expect("open")), 13_000);
    }
}
