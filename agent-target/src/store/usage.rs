//! How much content the generations of one repository hold: counted as they come and go, not measured.
//!
//! A seal adds the data of its new contents, holes left out; a generation that is deleted takes away what no other has. After a
//! crash between a seal and its count the generation's record is added. After one while a generation was deleted the count
//! stays too high by what had been deleted of it. Without the file the count starts at the most that the records can stand for.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use assay_common::{durable::write_durable, error::PathError};
use serde::{Deserialize, Serialize};

use super::Record;

/// The count, and where it is kept.
#[derive(Debug)]
pub(super) struct Usage {
    path: PathBuf,
    count: Mutex<Count>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Count {
    bytes: u64,
    /// The newest generation that is counted.
    up_to: u64,
}

impl Usage {
    /// Takes the count up again. `records` are of all generations that there are, oldest first.
    pub(super) fn load(path: &Path, records: impl Iterator<Item = Record>) -> Self {
        let kept = fs::read(path).ok().and_then(|bytes| serde_json::from_slice::<Count>(&bytes).ok());
        let mut count = kept.unwrap_or_default();
        let mut first = kept.is_none();
        for record in records.filter(|record| kept.is_none_or(|kept| record.generation > kept.up_to)) {
            // What the oldest shares with generations that are gone, it has alone.
            let alone = std::mem::take(&mut first) && record.base_generation.is_some();
            let bytes = if alone { record.total_bytes } else { record.stored_bytes() };
            count = Count { bytes: count.bytes.saturating_add(bytes), up_to: record.generation };
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

    /// So much is no longer there.
    pub(super) fn remove(&self, bytes: u64) -> Result<(), PathError> {
        self.change(|count| count.bytes = count.bytes.saturating_sub(bytes))
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
pub(super) fn sole_bytes(folder: &Path) -> u64 {
    let (mut sum, mut linked) = (0u64, HashMap::<u64, (u64, u64)>::new());
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(stat) = entry.metadata() else { continue };
            let bytes = stat.len().min(stat.blocks().saturating_mul(512));
            if stat.is_dir() {
                folders.push(entry.path());
            } else if stat.is_file() && stat.nlink() == 1 {
                sum = sum.saturating_add(bytes);
            } else if stat.is_file() {
                // All its names may be below this folder.
                linked.entry(stat.ino()).or_insert((stat.nlink(), bytes)).0 -= 1;
            }
        }
    }
    linked
        .values()
        .filter(|(further, _)| *further == 0)
        .fold(sum, |sum, (_, bytes)| sum.saturating_add(*bytes))
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
        usage.remove(30).expect("write");
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
        assert_eq!(sole_bytes(&tree), 13_000);
        assert_eq!(sole_bytes(&folder.path().join("not there")), 0);
    }
}
