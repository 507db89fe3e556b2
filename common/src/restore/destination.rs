//! The folder that a generation is restored into, and what must not be one.

use std::{
    ffi::OsStr,
    fs,
    io::{self, ErrorKind, Read as _, Write as _},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirBuilderExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{RestoreError, part};
use crate::{
    confined::Folder,
    digest::RootDigest,
    error::{IoContext as _, PathError},
    id::GenerationNumber,
    manifest::Header,
};

/// Where files are put together, in the destination.
pub(super) const SCRATCH: &str = ".assay-restore";
/// What is being restored, in there.
const PLAN: &str = "plan.json";
/// A longer one is none: it has a number and a digest.
const MAX_PLAN_BYTES: u64 = 4096;

/// A destination that may be written to.
#[derive(Debug)]
pub struct Destination {
    path: PathBuf,
    pub(super) root: Folder,
    pub(super) scratch: Folder,
    /// The folder was not there before.
    is_new: bool,
    /// An earlier attempt at the same restore had begun here.
    is_taken_up: bool,
    /// The folder as it was before anything was made in it.
    before: rustix::fs::Stat,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Plan {
    generation: GenerationNumber,
    root_digest: String,
}

/// What the operator allows.
#[derive(Debug, Clone, Default)]
pub struct Allowed {
    /// The destination may have content.
    pub onto_existing: bool,
    /// These live roots may be written over.
    pub over_live_roots: Vec<PathBuf>,
    /// Further folders that something lives in, by this host's configuration: live roots of all its repositories.
    pub live_roots: Vec<PathBuf>,
    /// Folders that are never written to: the store of a target.
    pub stores: Vec<PathBuf>,
}

impl Destination {
    /// Opens `path`, which is created when it is not there, for this generation.
    ///
    /// # Errors
    /// [`RestoreError::Refused`] for a folder that something else lives in, unless `allowed` names it.
    pub fn open(
        path: &Path,
        header: &Header,
        generation: GenerationNumber,
        root_digest: RootDigest,
        allowed: &Allowed,
    ) -> Result<Self, RestoreError> {
        let refused = |why: String| RestoreError::Refused { path: path.to_owned(), why };
        let parent = path.parent().filter(|_| path.is_absolute());
        let (Some(parent), Some(name)) = (parent, path.file_name()) else {
            return Err(refused(
                "a destination is an absolute path of a folder, not the root of the file system".to_owned(),
            ));
        };
        let parent = fs::canonicalize(parent).at("find", parent)?;
        let path = parent.join(name);
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_symlink() => {
                return Err(refused("it is a symbolic link; name the folder that it points at".to_owned()));
            }
            Ok(found) if !found.is_dir() => return Err(refused("it is no folder".to_owned())),
            _ => {}
        }
        let store = path.ancestors().find(|folder| is_store(folder)).map(Path::to_owned);
        let configured = || allowed.stores.iter().map(|store| real(store)).find(|store| touch(&path, store));
        if let Some(store) = store.or_else(|| store_below(&path)).or_else(configured) {
            return Err(refused(format!(
                "it is, holds or is in {}, where sealed generations are kept",
                store.display()
            )));
        }
        if let Some(mounted) = mounted_below(&path) {
            return Err(refused(format!(
                "{} is mounted in it: unmount that, and restore what belongs there by --path into a folder of its own",
                mounted.display()
            )));
        }
        let empty = is_empty(&path)?;
        let plan = Plan { generation, root_digest: root_digest.to_string() };
        let left_behind = Folder::open(&path).ok().and_then(|root| left_behind(&root, &plan));
        if !empty {
            if let Some(live) = live_root(&path, header, allowed) {
                return Err(refused(format!(
                    "{} is where the live repository is, and is not empty: stop the server, and say --over-live-root {0}",
                    live.display()
                )));
            }
            if left_behind.is_none() && !allowed.onto_existing {
                return Err(refused(
                    "it is not empty: name a new folder, or say --onto-existing to put right what differs in this one".to_owned(),
                ));
            }
        }
        let is_new = match fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
            made => made.at("create", &path).map(|()| true)?,
        };
        let is_taken_up = left_behind.is_some();
        let root = Folder::open(&path).at("open", &path)?;
        let before = root.stat_self().at("look at", &path)?;
        let scratch = match left_behind {
            Some(scratch) => scratch,
            None => begin(&root, &plan).at("begin in", &path.join(SCRATCH))?,
        };
        Ok(Self { path, root, scratch, is_new, is_taken_up, before })
    }

    /// The folder in which files are put together.
    pub(super) fn scratch_path(&self) -> PathBuf {
        self.path.join(SCRATCH)
    }

    /// Removes what opening has made. A restore that was interrupted stays, to be taken up again.
    ///
    /// # Errors
    /// When what was made cannot be removed.
    pub fn abandon(self) -> Result<(), RestoreError> {
        if self.is_taken_up {
            return Ok(());
        }
        self.root.remove_all(SCRATCH.as_bytes()).at("remove", &self.scratch_path())?;
        if self.is_new {
            return Ok(fs::remove_dir(&self.path).at("remove", &self.path)?);
        }
        Ok(self.root.set_own_times(&self.before).at("set the times of", &self.path)?)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes all of it durable, and clears away what helped to put it together.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn finish(&self) -> Result<(), RestoreError> {
        let before = self.root.stat_self().at("look at", &self.path)?;
        self.root.remove_all(SCRATCH.as_bytes()).at("remove", &self.path.join(SCRATCH))?;
        // The folder has had its time, and has just lost a name.
        self.root.set_own_times(&before).at("set the times of", &self.path)?;
        Ok(self.root.sync_file_system().at("flush", &self.path)?)
    }

    /// The same for a restore that lacks something: it can be taken up.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn flush(&self) -> Result<(), RestoreError> {
        Ok(self.root.sync_file_system().at("flush", &self.path)?)
    }
}

/// The folder in which an earlier attempt at the same has put files together. None when it is about something else, or when others than
/// this user could have written to it: then it goes with all that is in it.
fn left_behind(root: &Folder, plan: &Plan) -> Option<Folder> {
    let scratch = root.open_folder(SCRATCH.as_bytes()).ok()?;
    let stat = scratch.stat_self().ok()?;
    if stat.st_uid != rustix::process::geteuid().as_raw() || stat.st_mode & 0o077 != 0 {
        return None;
    }
    let file = scratch.open_file(PLAN.as_bytes()).ok()?;
    if !part::is_alone(&file.metadata().ok()?) {
        return None;
    }
    let mut text = Vec::new();
    file.take(MAX_PLAN_BYTES).read_to_end(&mut text).ok()?;
    (serde_json::from_slice::<Plan>(&text).ok()? == *plan).then_some(scratch)
}

/// A new folder to put files together in. What has its name goes; a link is not followed.
fn begin(root: &Folder, plan: &Plan) -> io::Result<Folder> {
    match root.remove_all(SCRATCH.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let scratch = root.create_folder(SCRATCH.as_bytes())?;
    // A plan that a crash has cut off is another one than is looked for.
    let mut file = scratch.create_file(PLAN.as_bytes())?;
    file.write_all(&serde_json::to_vec(plan).expect("numbers and text"))?;
    file.sync_all()?;
    scratch.sync()?;
    Ok(scratch)
}

/// A store in this folder or in one of its own, as far down as a store's root has its repositories.
fn store_below(path: &Path) -> Option<PathBuf> {
    let folders = |path: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect()
    };
    let mut level = folders(path);
    for _ in 0..3 {
        if let Some(store) = level.iter().find(|folder| is_store(folder)) {
            return Some(store.clone());
        }
        level = level.iter().flat_map(|folder| folders(folder)).collect();
    }
    None
}

/// A file system that is mounted below `path`.
fn mounted_below(path: &Path) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt as _;
    let mounts = fs::read("/proc/self/mountinfo").ok()?;
    mounts.split(|byte| *byte == b'\n').find_map(|line| {
        let at = line.split(|byte| *byte == b' ').nth(4)?;
        let at = PathBuf::from(std::ffi::OsString::from_vec(unescaped(at)));
        (at.starts_with(path) && at != path).then_some(at)
    })
}

/// The kernel writes blanks, tabs, line ends and backslashes of a path as octal numbers.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        let octal =
            after.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                rest = &after[3..];
            }
            None => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    plain
}

fn real(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// One is the other, or in the other.
fn touch(one: &Path, other: &Path) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

fn is_empty(path: &Path) -> Result<bool, PathError> {
    match fs::read_dir(path) {
        Ok(names) => {
            let names: Vec<_> = names.collect::<Result<_, _>>().at("read", path)?;
            Ok(names.iter().all(|entry| is_of_file_system(path, entry.file_name().as_bytes())))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error).at("read", path),
    }
}

/// True for `lost+found` in the root of a file system: it belongs to that (mke2fs makes it), and neither a restore nor `--delete` has
/// anything to do with it.
pub(super) fn is_of_file_system(root: &Path, name: &[u8]) -> bool {
    let device = |path: &Path| fs::symlink_metadata(path).map(|found| found.dev());
    let is_mounted = || match (device(root), device(&root.join(".."))) {
        (Ok(inner), Ok(outer)) => inner != outer,
        _ => false,
    };
    name == LOST_AND_FOUND.as_bytes()
        && fs::symlink_metadata(root.join(LOST_AND_FOUND)).is_ok_and(|found| found.is_dir())
        && is_mounted()
}

/// What `fsck` puts into a folder that it makes for that.
const LOST_AND_FOUND: &str = "lost+found";

/// The folder of a repository in some target's store.
fn is_store(folder: &Path) -> bool {
    ["generations", "ledger", "staging"].iter().all(|name| folder.join(OsStr::new(name)).is_dir())
}

/// A live root that `path` is, lies in or holds, and that the operator has not named. A live root that is a link is where it points.
fn live_root(path: &Path, header: &Header, allowed: &Allowed) -> Option<PathBuf> {
    let of_generation = header.roots.iter().map(|root| PathBuf::from(&root.live_path));
    of_generation
        .chain(allowed.live_roots.iter().cloned())
        .find(|live| touch(path, &real(live)) && !allowed.over_live_roots.iter().any(|named| named == live))
}
