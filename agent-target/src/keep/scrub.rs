//! Reads sealed generations again against their manifests.
//!
//! 1. Each manifest is hashed: its digest must be the one in the record, which must be the one of the signed verdict. A manifest
//!    that is not what it was says nothing about files; its generation is told as rotten.
//! 2. All manifests are walked side by side, path by path. Files of one path that are one inode are read once, for all the
//!    generations that share it, from the disk and not from the page cache.
//! 3. What differs is written down ([`Rot`](super::rot::Rot)) before anything is done about it; from here on its generations are
//!    not `verified`.
//! 4. It is healed where that can be done (`heal.rs`), and what was written down is taken back.
//!
//! A run that is opened ends a scrub; it is taken up again at the path that it had come to. A crash costs no more: the place is
//! noted every 4 GiB.
//!
//! Read are contents, lengths, kinds and the texts of links. Owners, modes and times are not.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs::File,
    io::{self, BufReader},
};

use assay_common::{
    confined::Folder,
    digest::{ContentDigest, MANIFEST_CONTEXT},
    error::{IoContext as _, PathError},
    id::GenerationNumber,
    manifest::{Entry, EntryKind, ManifestReader, validate_entry},
    path::{TreePath, compare_paths},
    uncached,
};
use jiff::Timestamp;
use rustix::fs::Advice;
use tokio_util::sync::CancellationToken;

use super::{heal, rot::LastScrub};
use crate::{
    repository::Repository,
    store::{MANIFEST, StoreError, TREE},
};

/// Generations that are walked side by side: each costs two descriptors and a buffer.
const SIDE_BY_SIDE: usize = 64;
/// Bytes that are read at a time.
const BLOCK_BYTES: usize = 1024 * 1024;
/// Bytes after which it is noted how far a scrub has come.
const NOTE_BYTES: u64 = 4 << 30;

/// What to look at.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// These generations; those of them that are there.
    pub generations: BTreeSet<GenerationNumber>,
    /// Only these paths; then it is no scrub to be recorded, but an attempt to heal.
    pub only: Option<HashSet<Vec<u8>>>,
    /// From the place at which an earlier one was ended.
    pub after: Option<Vec<u8>>,
}

/// What a scrub has to say while it goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// So many bytes have been read.
    Read(u64),
    /// Something is not what it was.
    Rotten {
        /// Where, made printable.
        path: String,
        /// In which generations.
        generations: BTreeSet<GenerationNumber>,
        /// In which way.
        what: String,
        /// It was put right.
        healed: bool,
    },
}

/// A generation that is being read.
struct Walk {
    number: GenerationNumber,
    manifest: ManifestReader<BufReader<File>>,
    tree: Folder,
    entry: Option<Entry>,
}

/// An inode, and who shares it. `file` is none when it cannot be opened as a file.
pub(super) struct Shared {
    pub generations: BTreeSet<GenerationNumber>,
    pub entry: Entry,
    pub file: Option<File>,
    identity: Option<(u64, u64)>,
}

struct Scrub<'a> {
    repository: &'a Repository,
    wanted: &'a Wanted,
    cancel: &'a CancellationToken,
    told: &'a dyn Fn(Told),
    last: LastScrub,
    read: BTreeSet<GenerationNumber>,
    noted: u64,
}

/// Scrubs. `None` when it was cancelled, and is to be taken up again.
///
/// # Errors
/// When the store cannot be read, or what was found cannot be written down.
pub fn run(
    repository: &Repository,
    wanted: &Wanted,
    cancel: &CancellationToken,
    told: &dyn Fn(Told),
) -> Result<Option<LastScrub>, StoreError> {
    let there = repository.store.generations()?;
    repository.rot().forget_all_but(&there)?;
    let numbers: Vec<_> = there.into_iter().filter(|number| wanted.generations.contains(number)).collect();
    let before = repository.rot().last().cloned().filter(|_| wanted.after.is_some());
    let mut last = before.unwrap_or_else(|| LastScrub { started: Timestamp::now(), ..Default::default() });
    last.generations = numbers.len() as u64;
    let mut scrub =
        Scrub { repository, wanted, cancel, told, last, read: numbers.iter().copied().collect(), noted: 0 };
    let mut after = wanted.after.clone();
    let whole = wanted.only.is_none();
    // Newest first: what is restored most often is looked at first. Neighbours share most.
    for batch in numbers.rchunks(SIDE_BY_SIDE) {
        let held: Vec<_> = batch.iter().map(|number| repository.holds.hold(*number)).collect();
        let done = scrub.batch(batch, after.take())?;
        drop(held);
        repository.settle()?;
        if !done {
            return Ok(None);
        }
        // What is left is one batch less.
        let done = batch.iter().copied().collect();
        scrub.read.retain(|number| !batch.contains(number));
        let now = Timestamp::now();
        if scrub.read.is_empty() {
            scrub.last.finished = Some(now);
        }
        if whole {
            repository.rot().note_scrubbed(scrub.last.clone(), &done, &scrub.read, now)?;
        }
    }
    Ok(Some(scrub.last))
}

impl Scrub<'_> {
    /// False when it was cancelled.
    fn batch(&mut self, numbers: &[GenerationNumber], after: Option<Vec<u8>>) -> Result<bool, StoreError> {
        let mut walks = Vec::new();
        for number in numbers {
            if self.cancel.is_cancelled() {
                self.note(after.unwrap_or_default())?;
                return Ok(false);
            }
            let opened = self.open(*number);
            let wrong = opened.as_ref().err().cloned();
            if let Some(what) = &wrong {
                self.last.found += 1;
                let generations = BTreeSet::from([*number]);
                self.tell(MANIFEST.to_owned(), generations, what.clone(), false);
            }
            self.repository.rot().note_manifest(*number, wrong)?;
            self.repository.settle()?;
            walks.extend(opened.ok());
        }
        let mut done = after.clone().unwrap_or_default();
        loop {
            let next = walks.iter().filter_map(|walk| Some(&walk.entry.as_ref()?.path));
            let Some(path) = next.min_by(|left, right| compare_paths(left, right)).cloned() else {
                return Ok(true);
            };
            let mut same = Vec::new();
            for walk in &mut walks {
                if walk.entry.as_ref().is_some_and(|entry| entry.path == path) {
                    let following = walk.manifest.next_entry();
                    // It was hashed just now: a fault of the disk at this very moment.
                    let following =
                        following.map_err(io::Error::other).at("read", self.repository.store.path())?;
                    let entry = std::mem::replace(&mut walk.entry, following).expect("it is this one");
                    same.push((walk.number, entry, &walk.tree));
                }
            }
            let wanted = self.wanted.only.as_ref().is_none_or(|only| only.contains(&path))
                && after.as_ref().is_none_or(|after| compare_paths(&path, after).is_gt());
            if !wanted {
                continue;
            }
            if self.cancel.is_cancelled() || !self.path(&path, same)? {
                self.note(done)?;
                return Ok(false);
            }
            done = path;
        }
    }

    /// Opens a generation for walking, when its manifest is what was sealed.
    fn open(&self, number: GenerationNumber) -> Result<Walk, String> {
        let store = &self.repository.store;
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let record = store.record(number).map_err(|error| format!("its record is damaged: {error}"))?;
        let signed = self.repository.last_verdict(number).and_then(|(_, verdict)| verdict.root);
        if signed.is_some_and(|signed| signed.to_string() != record.root_digest) {
            return Err("its record has another root digest than its signed verdict".to_owned());
        }
        let path = store.generation_path(number).join(MANIFEST);
        let open = || File::open(&path).at("open", &path);
        let mut hasher = blake3::Hasher::new_derive_key(MANIFEST_CONTEXT);
        let mut file = open().map_err(|error| text(&error))?;
        drop_cached(&file);
        io::copy(&mut file, &mut hasher).at("read", &path).map_err(|error| text(&error))?;
        if hasher.finalize().to_hex().as_str() != record.root_digest {
            return Err("its manifest is not the one that was sealed".to_owned());
        }
        let tree = store.generation_path(number).join(TREE);
        let tree = Folder::open(&tree).at("open", &tree).map_err(|error| text(&error))?;
        let manifest = BufReader::with_capacity(64 * 1024, open().map_err(|error| text(&error))?);
        let mut manifest = ManifestReader::open(manifest).map_err(|error| text(&error))?;
        let entry = manifest.next_entry().map_err(|error| text(&error))?;
        Ok(Walk { number, manifest, tree, entry })
    }

    /// Looks at one path in all the generations that have it. False when it was cancelled.
    fn path(
        &mut self,
        path: &[u8],
        same: Vec<(GenerationNumber, Entry, &Folder)>,
    ) -> Result<bool, StoreError> {
        let read: BTreeSet<_> = same.iter().map(|(number, ..)| *number).collect();
        let (files, others): (Vec<_>, Vec<_>) =
            same.into_iter().partition(|(_, entry, _)| entry.kind() == EntryKind::File);
        let mut rotten: Vec<(BTreeSet<GenerationNumber>, String, Option<usize>)> = Vec::new();
        for (number, entry, tree) in others {
            if let Some(what) = other(tree, &entry) {
                rotten.push((BTreeSet::from([number]), what.to_owned(), None));
            }
        }
        let shared = share(files);
        for (index, inode) in shared.iter().enumerate() {
            let what = match &inode.file {
                None => Some("is not there, or is no file".to_owned()),
                Some(file) => match self.compare(file, &inode.entry) {
                    Ok(what) => what,
                    Err(Cancelled) => return Ok(false),
                },
            };
            self.last.files += 1;
            self.last.bytes += inode.entry.size;
            if let Some(what) = what {
                rotten.push((inode.generations.clone(), what, Some(index)));
            }
        }
        let mut noted: Vec<_> =
            rotten.iter().map(|(generations, what, _)| (generations.clone(), what.clone())).collect();
        self.repository.rot().note_file(path, &read, &noted, Timestamp::now())?;
        if rotten.is_empty() {
            if self.last.bytes - self.noted >= NOTE_BYTES {
                self.note(path.to_vec())?;
            }
            return Ok(true);
        }
        self.repository.settle()?;
        let bad: HashSet<usize> = rotten.iter().filter_map(|(.., index)| *index).collect();
        let sound = |index: &usize| !bad.contains(index);
        let siblings: Vec<&Shared> = (0..shared.len()).filter(sound).map(|index| &shared[index]).collect();
        for (generations, what, index) in rotten {
            self.last.found += 1;
            let healed = match index {
                None => BTreeSet::new(),
                Some(index) => heal::heal(self.repository, &shared[index], &siblings).unwrap_or_else(|why| {
                    let path = assay_common::path::display_bytes(path);
                    tracing::error!(repository = self.repository.config.name, path, why, "not healed");
                    BTreeSet::new()
                }),
            };
            let whole = healed == generations;
            self.last.healed += u64::from(whole);
            self.tell(assay_common::path::display_bytes(path), generations.clone(), what, whole);
            for (left, _) in noted.iter_mut().filter(|(noted, _)| *noted == generations) {
                left.retain(|number| !healed.contains(number));
            }
        }
        noted.retain(|(left, _)| !left.is_empty());
        self.repository.rot().note_file(path, &read, &noted, Timestamp::now())?;
        self.repository.settle()?;
        Ok(true)
    }

    fn tell(&self, path: String, generations: BTreeSet<GenerationNumber>, what: String, healed: bool) {
        let numbers: Vec<_> = generations.iter().map(ToString::to_string).collect();
        let numbers = numbers.join(", ");
        let repository = &self.repository.config.name;
        tracing::error!(repository, path, generations = numbers, what, healed, "bit rot");
        (self.told)(Told::Rotten { path, generations, what, healed });
    }

    fn note(&mut self, after: Vec<u8>) -> Result<(), PathError> {
        self.noted = self.last.bytes;
        if self.wanted.only.is_some() {
            return Ok(());
        }
        self.repository.rot().note_place(self.last.clone(), &self.read, after)
    }

    /// What is different about a file; `None` when it is what its entry says.
    fn compare(&self, file: &File, entry: &Entry) -> Result<Option<String>, Cancelled> {
        match file.metadata() {
            Ok(metadata) if metadata.len() != entry.size => {
                return Ok(Some(format!("has {} bytes where there were {}", metadata.len(), entry.size)));
            }
            Ok(_) => {}
            Err(error) => return Ok(Some(format!("cannot be looked at: {error}"))),
        }
        drop_cached(file);
        let mut hasher = blake3::Hasher::new();
        let mut block = vec![0; BLOCK_BYTES.min(usize::try_from(entry.size).unwrap_or(BLOCK_BYTES)).max(1)];
        let (mut offset, mut told) = (0, 0);
        while offset < entry.size {
            if self.cancel.is_cancelled() {
                return Err(Cancelled);
            }
            match uncached::read_full_at(file, &mut block, offset) {
                Ok(0) => break,
                Ok(got) => {
                    hasher.update(&block[..got]);
                    offset += got as u64;
                    if offset - told >= 256 << 20 {
                        told = offset;
                        (self.told)(Told::Read(self.last.bytes + offset));
                    }
                }
                Err(error) => return Ok(Some(format!("cannot be read at {offset}: {error}"))),
            }
        }
        let same = *hasher.finalize().as_bytes() == entry.digest[..];
        Ok((!same).then(|| "its content is not what arrived".to_owned()))
    }
}

/// The scrub is to end here.
struct Cancelled;

/// What the page cache holds may be sound when the disk is not. Nothing of ours writes to it, so its pages are clean.
fn drop_cached(file: &File) {
    rustix::fs::fadvise(file, 0, None, Advice::DontNeed).ok();
    uncached::read_once(file);
}

/// Files of one path by the inode that they are; entries of different contents are never one.
fn share(files: Vec<(GenerationNumber, Entry, &Folder)>) -> Vec<Shared> {
    let mut shared: Vec<Shared> = Vec::new();
    for (number, entry, tree) in files {
        let file = validate_entry(&entry).ok().and_then(|path| tree.open_file_below(&path).ok());
        let file = file.filter(|file| file.metadata().is_ok_and(|metadata| metadata.is_file()));
        let identity = file.as_ref().and_then(|file| {
            use std::os::unix::fs::MetadataExt as _;
            file.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
        });
        let known = shared.iter_mut().find(|it| {
            it.identity.is_some()
                && it.identity == identity
                && it.entry.digest == entry.digest
                && it.entry.size == entry.size
        });
        match known {
            Some(known) => drop(known.generations.insert(number)),
            None => shared.push(Shared { generations: BTreeSet::from([number]), entry, file, identity }),
        }
    }
    shared
}

/// What is wrong with what is no file.
fn other(tree: &Folder, entry: &Entry) -> Option<&'static str> {
    use rustix::fs::FileType;
    let Ok(path) = TreePath::parse(&entry.path) else { return Some("has no valid name") };
    let parent = path.parent()?;
    let parent = TreePath::parse(parent).ok().and_then(|parent| tree.open_folder_below(&parent).ok());
    let Some(parent) = parent else { return Some("its folder is not there") };
    let Ok(stat) = parent.stat(path.name()) else { return Some("is not there") };
    let expected = match entry.kind() {
        EntryKind::Directory => FileType::Directory,
        EntryKind::Symlink => {
            let same = parent.read_link(path.name()).is_ok_and(|text| text == entry.link_target);
            return (!same).then_some("is no link, or one to another place");
        }
        EntryKind::Fifo => FileType::Fifo,
        EntryKind::Socket => FileType::Socket,
        EntryKind::CharDevice => FileType::CharacterDevice,
        EntryKind::BlockDevice => FileType::BlockDevice,
        // A further name of a file: that one is read under its first name, and must be the same.
        EntryKind::Hardlink => {
            let first =
                TreePath::parse(&entry.link_target).ok().and_then(|path| tree.open_file_below(&path).ok());
            let first = first.and_then(|file| rustix::fs::fstat(&file).ok());
            let same = first.is_some_and(|first| first.st_ino == stat.st_ino && first.st_dev == stat.st_dev);
            return (!same).then_some("is not the same file as its first name");
        }
        _ => return None,
    };
    (FileType::from_raw_mode(stat.st_mode) != expected).then_some("is of another kind")
}

/// What is to be taken up again. When generations have gone since, those that are left are read from the start: they may be
/// walked in other company.
pub fn unfinished(repository: &Repository) -> Option<Wanted> {
    let unfinished = repository.rot().unfinished()?.clone();
    let there = repository.store.generations().ok()?;
    let all_there = unfinished.generations.iter().all(|number| there.contains(number));
    let after = Some(unfinished.after).filter(|after| all_there && !after.is_empty());
    Some(Wanted { generations: unfinished.generations, only: None, after })
}

/// Tries to heal what is known to be rotten: a run may have brought what was lacking.
pub fn heal_known(repository: &Repository) {
    let only: HashSet<_> = repository.rot().files().iter().map(|file| file.path.clone()).collect();
    if only.is_empty() {
        return;
    }
    let generations = repository.store.generations().unwrap_or_default().into_iter().collect();
    let wanted = Wanted { generations, only: Some(only), after: None };
    if let Err(error) = run(repository, &wanted, &CancellationToken::new(), &|_| {}) {
        tracing::error!(repository = repository.config.name, %error, "what has rotted cannot be healed");
    }
}

/// The generations that were read longest ago, `percent` of them and at least one; a time in the future says nothing.
pub fn by_age(
    repository: &Repository,
    percent: u32,
    now: Timestamp,
) -> Result<BTreeSet<GenerationNumber>, StoreError> {
    let mut by_age: BTreeMap<_, Vec<_>> = BTreeMap::new();
    let numbers = repository.store.generations()?;
    let count = (numbers.len() * percent as usize).div_ceil(100);
    for number in numbers {
        let time = repository.rot().scrubbed(number).filter(|time| *time <= now);
        by_age.entry(time).or_default().push(number);
    }
    Ok(by_age.into_values().flatten().take(count).collect())
}

/// The digest of a piece that was read.
pub(super) fn is(bytes: &[u8], digest: ContentDigest) -> bool {
    ContentDigest::of(bytes) == digest
}

#[cfg(test)]
mod tests;
