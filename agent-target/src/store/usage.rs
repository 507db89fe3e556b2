//! How much the generations of one repository hold: counted as they come and go, not measured.
//!
//! A seal adds the data of its new contents, holes left out, and what it takes beside: its manifest, attributes, and a rate for each new file
//! and folder ([`FILE_BYTES`], [`FOLDER_BYTES`]), because a source can make us hold millions of those without a byte of content. A generation that is deleted takes away what no other has. After a
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

use super::{MANIFEST, MANIFEST_B3, POSITIONS, RECORD, Record, TREE};

/// What a file, link, FIFO or device takes beside its content, in bytes: its inode and its name.
pub(crate) const FILE_BYTES: u64 = 512;
/// What a folder takes, in bytes: a block.
pub(crate) const FOLDER_BYTES: u64 = 4096;

/// What is held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Held {
    /// Content, in bytes.
    pub content: u64,
    /// What it takes beside content, in bytes.
    #[serde(default)]
    pub overhead: u64,
    /// Files and folders.
    #[serde(default)]
    pub inodes: u64,
}

impl Held {
    /// Content and what is beside it, in bytes.
    pub fn bytes(self) -> u64 {
        self.content.saturating_add(self.overhead)
    }

    /// With more.
    #[must_use]
    pub fn and(self, more: Self) -> Self {
        Self {
            content: self.content.saturating_add(more.content),
            overhead: self.overhead.saturating_add(more.overhead),
            inodes: self.inodes.saturating_add(more.inodes),
        }
    }
}

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
    #[serde(default, skip_serializing_if = "is_zero")]
    overhead: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    inodes: u64,
    /// The newest generation that is counted.
    up_to: u64,
    /// What goes with folders of the trash that are being deleted, by name.
    #[serde(default)]
    leaving: BTreeMap<String, Leaving>,
}

/// Version 0.1 noted content alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Leaving {
    Content(u64),
    Held(Held),
}

impl Leaving {
    fn held(self) -> Held {
        match self {
            Self::Content(content) => Held { content, ..Held::default() },
            Self::Held(held) => held,
        }
    }
}

fn is_zero(count: &u64) -> bool {
    *count == 0
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
            count.add_overhead(&record);
            count.up_to = record.generation;
        }
        Self { path: path.to_owned(), count: Mutex::new(count) }
    }

    pub(super) fn held(&self) -> Held {
        let count = self.count();
        Held { content: count.bytes, overhead: count.overhead, inodes: count.inodes }
    }

    /// A generation was sealed.
    pub(super) fn add(&self, record: &Record) -> Result<(), PathError> {
        self.change(|count| {
            if record.generation > count.up_to {
                count.bytes = count.bytes.saturating_add(record.stored_bytes());
                count.add_overhead(record);
                count.up_to = record.generation;
            }
        })
    }

    /// A folder of the trash is about to be deleted. How much goes with it is measured when that begins, not when a crash has
    /// left the half of it.
    pub(super) fn leaving(&self, name: &str, measure: impl FnOnce() -> Held) -> Result<(), PathError> {
        if self.count().leaving.contains_key(name) {
            return Ok(());
        }
        let held = measure();
        self.change(|count| {
            count.leaving.insert(name.to_owned(), Leaving::Held(held));
        })
    }

    /// Of what was leaving, all but these folders has left.
    pub(super) fn left(&self, still_there: &[Vec<u8>]) -> Result<(), PathError> {
        let there = |name: &str| still_there.iter().any(|there| there == name.as_bytes());
        if self.count().leaving.keys().all(|name| there(name)) {
            return Ok(());
        }
        self.change(|count| {
            let gone = count.leaving.iter().filter(|(name, _)| !there(name));
            let gone = gone.fold(Held::default(), |sum, (_, leaving)| sum.and(leaving.held()));
            count.leaving.retain(|name, _| there(name));
            count.bytes = count.bytes.saturating_sub(gone.content);
            count.overhead = count.overhead.saturating_sub(gone.overhead);
            count.inodes = count.inodes.saturating_sub(gone.inodes);
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

impl Count {
    /// What was not noted for generations of earlier versions is not counted, and does not come off either.
    fn add_overhead(&mut self, record: &Record) {
        self.overhead = self.overhead.saturating_add(record.overhead_bytes.unwrap_or(0));
        self.inodes = self.inodes.saturating_add(record.inodes.unwrap_or(0));
    }
}

/// What goes with a generation's folder. What cannot be read is not counted.
pub(super) fn leaves(generation: &Folder) -> Held {
    let tree = generation.open_folder(TREE.as_bytes());
    let held = tree.map_or(Held::default(), |tree| sole(&tree));
    let record = generation.open_file(RECORD.as_bytes()).ok();
    let record =
        record.and_then(|file| serde_json::from_reader::<_, Record>(std::io::BufReader::new(file)).ok());
    if record.is_none_or(|record| record.overhead_bytes.is_none()) {
        return Held { content: held.content, ..Held::default() };
    }
    let files = [MANIFEST, POSITIONS, MANIFEST_B3].into_iter().filter_map(|name| {
        let stat = generation.stat(name.as_bytes()).ok()?;
        // A generation without changes shares them with its base.
        (stat.st_nlink == 1).then(|| u64::try_from(stat.st_size).unwrap_or(0))
    });
    held.and(Held { overhead: files.sum(), ..Held::default() })
}

/// What of the tree in `folder` is nowhere else; of content, as far as it is on disk.
fn sole(folder: &Folder) -> Held {
    let mut sum =
        Held { overhead: FOLDER_BYTES + attributes_bytes(folder, b""), inodes: 1, ..Held::default() };
    let mut linked = HashMap::new();
    add_sole(folder, &mut sum, &mut linked);
    linked.values().filter(|(further, _)| *further == 0).fold(sum, |sum, (_, held)| sum.and(*held))
}

fn attributes_bytes(folder: &Folder, name: &[u8]) -> u64 {
    let attributes = folder.xattrs(name).unwrap_or_default();
    attributes.iter().map(|attribute| (attribute.name.len() + attribute.value.len()) as u64).sum()
}

/// Adds what has one name to `sum`; in `linked` stands by inode how many names of a file have not been seen, and what it takes.
fn add_sole(folder: &Folder, sum: &mut Held, linked: &mut HashMap<u64, (u64, Held)>) {
    for name in folder.names().unwrap_or_default() {
        let Ok(stat) = folder.stat(&name) else { continue };
        let blocks = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
        let kind = FileType::from_raw_mode(stat.st_mode);
        let content = match kind {
            FileType::RegularFile => u64::try_from(stat.st_size).unwrap_or(0).min(blocks),
            _ => 0,
        };
        if kind == FileType::Directory {
            let overhead = FOLDER_BYTES.saturating_add(attributes_bytes(folder, &name));
            *sum = sum.and(Held { content: 0, overhead, inodes: 1 });
            if let Ok(below) = folder.open_folder(&name) {
                add_sole(&below, sum, linked);
            }
            continue;
        }
        let held = || Held {
            content,
            overhead: FILE_BYTES.saturating_add(attributes_bytes(folder, &name)),
            inodes: 1,
        };
        if stat.st_nlink == 1 {
            *sum = sum.and(held());
        } else {
            // All its names may be below this folder.
            let further = &mut linked.entry(stat.st_ino).or_insert_with(|| (stat.st_nlink, held())).0;
            *further = further.saturating_sub(1);
        }
    }
}

/// How many files and folders a folder's file system can hold, and how many more this process may make; none where it sets no number.
pub fn inodes(folder: &Path) -> Option<(u64, u64)> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    (stat.f_files > 0).then_some((stat.f_files, stat.f_favail))
}

/// Bytes that a folder's file system has in all.
pub fn file_system_bytes(folder: &Path) -> Option<u64> {
    rustix::fs::statvfs(folder).ok().map(|stat| stat.f_blocks.saturating_mul(stat.f_frsize))
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
        usage.leaving("000001", || Held { content: 30, ..Held::default() }).expect("write");
        usage.leaving("000001", || panic!("a crash has left the half of it")).expect("nothing to write");
        let names = [b"000001".to_vec()];
        usage.left(&names).expect("it is still there");
        assert_eq!(usage.held().content, 120);
        Usage::load(&path, [].into_iter()).left(&[]).expect("after a restart");
        let usage = Usage::load(&path, [].into_iter());
        usage.left(&[]).expect("once");
        assert_eq!(usage.held().content, 90);
        let records =
            || [record(1, None, 100, 100), record(2, Some(1), 120, 20), record(3, Some(2), 130, 10)];
        assert_eq!(Usage::load(&path, records().into_iter()).held().content, 100, "one seal was not counted");
        fs::write(&path, "cut o").expect("write");
        assert_eq!(Usage::load(&path, records().into_iter()).held().content, 130);
        let pruned = records().into_iter().skip(1);
        assert_eq!(Usage::load(&path, pruned).held().content, 130, "the oldest has all that it holds");
        // As version 0.1 wrote it.
        fs::write(&path, r#"{"bytes":100,"up_to":3,"leaving":{"000001":30}}"#).expect("write");
        let usage = Usage::load(&path, records().into_iter());
        let mut newer = record(4, Some(3), 130, 10);
        (newer.overhead_bytes, newer.inodes) = (Some(5000), Some(7));
        usage.add(&newer).expect("write");
        usage.left(&[]).expect("it has left");
        assert_eq!(usage.held(), Held { content: 80, overhead: 5000, inodes: 7 });
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
        let held = sole(&Folder::open(&tree).expect("open"));
        // Two folders; "sole", "twice" and "sparse"; "shared" is elsewhere, too.
        let overhead = 2 * FOLDER_BYTES + 3 * FILE_BYTES;
        assert_eq!(held, Held { content: 13_000, overhead, inodes: 5 });
    }
}
