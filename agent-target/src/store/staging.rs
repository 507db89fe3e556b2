//! The generation that is being received.
//!
//! Content lies under numbers, not names (`content-SESSION/SHARD/NUMBER`), until the whole manifest is known and
//! validated. A session is one connection's worth of it: a run that is taken up again numbers its contents anew, and finds
//! what earlier sessions brought through the chunk index.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use assay_common::{
    closed,
    confined::Folder,
    error::{IoContext as _, PathError},
    fault::{self, Point},
    id::GenerationNumber,
};

use super::whole::Whole;
use super::{StoreError, index::ContentKey};

/// The exact copy.
pub const TREE: &str = "tree";
/// The manifest.
pub const MANIFEST: &str = "manifest";
/// Where in the manifest each entry starts, 8 bytes each, little-endian: for finding an entry by its number.
pub const POSITIONS: &str = "manifest.positions";
/// File digests in the form that `b3sum --check` takes.
pub const MANIFEST_B3: &str = "manifest.b3";
/// Where each entry of the manifest comes from, while a seal is under way.
pub const PLAN: &str = "plan";
/// The record.
pub const RECORD: &str = "record.json";
/// Contents in one folder: as many as any file system handles well.
const SHARD_CONTENTS: u64 = 4096;

/// A staging area and the session that fills it.
#[derive(Debug)]
pub struct Staging {
    path: PathBuf,
    number: GenerationNumber,
    session: u16,
    shares_blocks: bool,
    whole: Whole,
    shards: Mutex<HashMap<(u16, u64), Arc<Folder>>>,
    /// Folders for content that were made and not asked about yet.
    new_shards: AtomicU64,
}

impl Staging {
    pub(super) fn open(path: &Path, number: GenerationNumber) -> Result<Self, StoreError> {
        fault::at(Point::StagingOpen).at("create", path)?;
        closed::create_folder(path).at("create", path)?;
        // Half a seal of an earlier session is made again from scratch: its links and folders cost little.
        remove_half(path)?;
        let before = sessions(path)?.last().copied().unwrap_or(0);
        let session = before.checked_add(1).ok_or_else(|| io::Error::from(io::ErrorKind::QuotaExceeded));
        let session = session.at("count the sessions of", path)?;
        let own = path.join(format!("content-{session}"));
        closed::create_one_folder(&own).at("create", &own)?;
        let shares_blocks = can_share_blocks(&own);
        let records = path.join("whole");
        let mut options = closed::options();
        options.read(true).write(true).create(true).truncate(true);
        let whole = Whole::new(options.open(&records).at("create", &records)?);
        // It lives as long as it is open.
        fs::remove_file(&records).at("remove", &records)?;
        let (shards, new_shards) = Default::default();
        Ok(Self { path: path.to_owned(), number, session, shares_blocks, whole, shards, new_shards })
    }

    /// Removes manifest, plan and tree of a seal that was refused. The next attempt makes them anew, so nothing needs them; content that
    /// arrived stays for it. Nothing is there any longer of a staging area that was sealed.
    ///
    /// # Errors
    /// When one of them cannot be removed.
    pub fn remove_half_made(&self) -> Result<(), StoreError> {
        remove_half(&self.path)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number that the generation will have.
    pub fn number(&self) -> GenerationNumber {
        self.number
    }

    /// The digests of whole contents of this session, as far as they are known.
    pub fn whole(&self) -> &Whole {
        &self.whole
    }

    /// True when files on this file system can share blocks (XFS, btrfs).
    pub fn shares_blocks(&self) -> bool {
        self.shares_blocks
    }

    /// The session that fills it, from 1.
    pub fn session(&self) -> u16 {
        self.session
    }

    /// The key of a content of this session.
    pub fn key(&self, content: u64) -> ContentKey {
        ContentKey { generation: self.number.0, session: self.session, content }
    }

    /// The folder and the name in it of a content of any session. Folders are made for this one only.
    ///
    /// # Errors
    /// When its folder cannot be opened or made.
    pub fn locate(&self, session: u16, content: u64) -> Result<(Arc<Folder>, Vec<u8>), PathError> {
        let shard = content / SHARD_CONTENTS;
        let name = content.to_string().into_bytes();
        let mut shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(folder) = shards.get(&(session, shard)) {
            return Ok((Arc::clone(folder), name));
        }
        let path = self.path.join(format!("content-{session}")).join(shard.to_string());
        if session == self.session {
            match closed::create_one_folder(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(error).at("create", &path);
                }
                Ok(()) => drop(self.new_shards.fetch_add(1, Ordering::Relaxed)),
                Err(_) => {}
            }
        }
        let folder = Arc::new(Folder::open(&path).at("open", &path)?);
        // A folder costs a descriptor: keep those that are in use now.
        if shards.len() >= 64 {
            shards.clear();
        }
        shards.insert((session, shard), Arc::clone(&folder));
        Ok((folder, name))
    }

    /// Opens a content of this session for writing; where it is not there yet, it is made when `claim` agrees.
    ///
    /// # Errors
    /// When it cannot be opened or made, or `claim` does not agree.
    pub fn open_or_create_content<E: From<PathError>>(
        &self,
        content: u64,
        claim: impl FnOnce() -> Result<(), E>,
    ) -> Result<File, E> {
        let (folder, name) = self.locate(self.session, content)?;
        fault::at(Point::StoreCreate).at("open", &self.content_path(content))?;
        match folder.open_file_to_write(&name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => claim()?,
            opened => return Ok(opened.at("open", &self.content_path(content))?),
        }
        // Another thread may have made it meanwhile.
        Ok(folder.open_or_create_file(&name).at("open", &self.content_path(content))?)
    }

    /// Opens a content of this session for writing.
    ///
    /// # Errors
    /// When it cannot be opened or made.
    #[cfg(test)]
    pub fn open_content(&self, content: u64) -> Result<File, PathError> {
        self.open_or_create_content(content, || Ok(()))
    }

    /// Folders for content that were made since this was asked last.
    pub fn take_new_shards(&self) -> u64 {
        self.new_shards.swap(0, Ordering::Relaxed)
    }

    /// The path of a content of this session, for messages.
    pub fn content_path(&self, content: u64) -> PathBuf {
        self.path
            .join(format!("content-{}", self.session))
            .join((content / SHARD_CONTENTS).to_string())
            .join(content.to_string())
    }

    /// Bytes on disk that earlier sessions left.
    pub fn staged_bytes(&self) -> u64 {
        self.staged().0
    }

    /// Bytes on disk that earlier sessions left, and files and folders.
    pub fn staged(&self) -> (u64, u64) {
        let mut sum = (0, 0);
        add_below(&self.path, &mut sum);
        sum
    }

    /// Removes what earlier sessions left: where there is no room for both, what comes now counts.
    ///
    /// # Errors
    /// When a folder cannot be removed.
    pub fn forget_earlier(&self) -> Result<(), StoreError> {
        self.shards.lock().unwrap_or_else(PoisonError::into_inner).clear();
        remove_sessions(&self.path, |session| session != self.session)
    }

    /// Removes all content that did not go into the tree.
    ///
    /// # Errors
    /// When a folder cannot be removed.
    pub fn remove_content(&self) -> Result<(), StoreError> {
        self.shards.lock().unwrap_or_else(PoisonError::into_inner).clear();
        remove_sessions(&self.path, |_| true)
    }
}

/// Adds the bytes on disk below a folder, and its files and folders.
fn add_below(path: &Path, sum: &mut (u64, u64)) {
    use std::os::unix::fs::MetadataExt as _;
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        sum.1 += 1;
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => add_below(&entry.path(), sum),
            Ok(metadata) => sum.0 += metadata.blocks() * 512,
            Err(_) => {}
        }
    }
}

/// What runs left that did not come to their end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Staged {
    /// Bytes on the disk.
    pub bytes: u64,
    /// Files and folders.
    pub entries: u64,
}

/// Bytes on disk of the content of all sessions of the staging area at `path`, and its files and folders.
pub(super) fn content_held(path: &Path) -> (u64, u64) {
    let mut sum = (0, 0);
    for session in sessions(path).unwrap_or_default() {
        sum.1 += 1;
        add_below(&path.join(format!("content-{session}")), &mut sum);
    }
    sum
}

/// What a seal makes beside the content.
fn remove_half(staging: &Path) -> Result<(), StoreError> {
    for half in [TREE, MANIFEST, POSITIONS, MANIFEST_B3, RECORD, PLAN] {
        let half = staging.join(half);
        let removed = if half.is_dir() { fs::remove_dir_all(&half) } else { fs::remove_file(&half) };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).at("remove", &half)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Tries it: whether a file system can depends on how it was made.
fn can_share_blocks(folder: &Path) -> bool {
    let (from, to) = (folder.join("shared"), folder.join("sharing"));
    let shared = closed::write(&from, [1; 4096]).is_ok()
        && File::open(&from)
            .and_then(|from| Ok(rustix::fs::ioctl_ficlone(closed::create_file(&to)?, from)?))
            .is_ok();
    fs::remove_file(&from).and_then(|()| fs::remove_file(&to)).ok();
    shared
}

/// Removes the content of some sessions of the staging area at `path`.
pub(super) fn remove_sessions(path: &Path, which: impl Fn(u16) -> bool) -> Result<(), StoreError> {
    for session in sessions(path)?.into_iter().filter(|session| which(*session)) {
        let path = path.join(format!("content-{session}"));
        fs::remove_dir_all(&path).at("remove", &path)?;
    }
    Ok(())
}

fn sessions(path: &Path) -> Result<Vec<u16>, StoreError> {
    let mut sessions = Vec::new();
    for entry in fs::read_dir(path).at("read", path)? {
        let name = entry.at("read", path)?.file_name();
        sessions.extend(name.to_str().and_then(|name| name.strip_prefix("content-")?.parse::<u16>().ok()));
    }
    sessions.sort_unstable();
    Ok(sessions)
}
