//! A throw-away writable view of a sealed generation, in which configuration is patched and the check runs.
//!
//! Best is an overlay mount: it costs nothing and the generation below it cannot be written through it. Where
//! overlays cannot be mounted it is a reflink copy, else a full copy. A workspace lives in its own folder:
//!
//! ```text
//! DIRECTORY/ws-XXXXXXXXXXXXXXXX/tree/      the view
//!                               upper/     what was changed (overlay only)
//!                               work/      the kernel's own (overlay only)
//!                               scratch/   for the check and those who run it
//! ```
//!
//! Nothing in it is worth keeping: nothing is flushed, and [`sweep`] removes what a killed agent left.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, DirBuilder, File},
    hash::{BuildHasher as _, Hasher as _, RandomState},
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd},
        unix::{
            ffi::{OsStrExt as _, OsStringExt as _},
            fs::DirBuilderExt as _,
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use assay_common::{
    confined::{copy_xattrs, open_beneath, temporary_name},
    fault::{self, Point},
    path::TreePath,
};
use rustix::{
    fs::{AtFlags, Mode, OFlags},
    mount::{MountFlags, UnmountFlags},
};

const PREFIX: &str = "ws-";

/// Why there is no workspace, or why something could not be done in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkspaceError {
    /// None of the ways that were allowed worked.
    #[error("no workspace could be made: {}", tried.join("; "))]
    NoWay {
        /// What was tried, and what was said to it.
        tried: Vec<String>,
    },
    /// The generation has no such root folder, or a link in its place.
    #[error("the generation's folder '{}' for the root '{name}' cannot be opened: {source}", subdirectory.escape_debug())]
    Root {
        /// The root's name.
        name: String,
        /// Its folder in the tree.
        subdirectory: String,
        /// Why not.
        source: io::Error,
    },
    /// No root has this name.
    #[error("there is no root named '{}'", name.escape_debug())]
    NoSuchRoot {
        /// The name.
        name: String,
    },
    /// A file or folder of the workspace's own.
    #[error("{}: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A mount that could not be taken away. What is in it is left alone.
    #[error("{}: cannot be unmounted: {source}", path.display())]
    Unmount {
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn told(path: &Path) -> impl FnOnce(io::Error) -> WorkspaceError {
    move |source| WorkspaceError::Io { path: path.to_owned(), source }
}

/// How a workspace is to be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preference {
    /// Overlay, else reflink copy, else full copy.
    #[default]
    Auto,
    /// Only an overlay mount.
    Overlay,
    /// Only a reflink copy.
    Reflink,
    /// Only a full copy.
    Copy,
}

/// How a workspace was made. Stands in the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkspaceKind {
    /// An overlay mount.
    Overlay,
    /// A copy that shares its blocks with the generation.
    Reflink,
    /// A full copy.
    Copy,
}

impl WorkspaceKind {
    /// The word for it in verdicts and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::Reflink => "reflink",
            Self::Copy => "copy",
        }
    }
}

/// One root folder of the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootView {
    /// The root's name.
    pub name: String,
    /// The absolute path that it has on the live server.
    pub live_path: PathBuf,
    /// Its folder in the generation's tree; empty for a repository with a single root, which is the tree
    /// itself.
    pub subdirectory: String,
}

/// What a workspace is made of.
#[derive(Clone, Debug)]
pub struct WorkspaceOptions {
    /// The sealed tree.
    pub generation_tree: PathBuf,
    /// The roots in it, in the order of the configuration.
    pub roots: Vec<RootView>,
    /// The folder for workspaces; created where it is missing. An overlay needs a file system with extended
    /// attributes here, and a reflink copy that of the generation.
    pub directory: PathBuf,
    /// How to make it.
    pub preference: Preference,
}

/// A workspace. Dropped without [`Workspace::remove`], it is removed as well as can be.
#[derive(Debug)]
pub struct Workspace {
    directory: PathBuf,
    kind: WorkspaceKind,
    roots: Vec<RootView>,
    removed: bool,
}

/// A file that was laid over the workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaidFile {
    /// The root that it is in.
    pub root: String,
    /// The path in the root.
    pub path: TreePath,
    /// BLAKE3 of the file, in hexadecimal digits.
    pub digest: String,
    /// Its size.
    pub bytes: u64,
}

impl Workspace {
    /// Makes a workspace of a sealed generation.
    ///
    /// # Errors
    /// [`WorkspaceError`]; then nothing is left of it.
    pub fn create(options: &WorkspaceOptions) -> Result<Self, WorkspaceError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(&options.directory)
            .map_err(told(&options.directory))?;
        // Resolved once, so that what the kernel says of mounts can be compared with it.
        let parent = fs::canonicalize(&options.directory).map_err(told(&options.directory))?;
        fault::at(Point::WorkspaceCreate).map_err(told(&parent))?;
        // No collision is likely, and where one is, creation fails.
        let directory = parent.join(format!("{PREFIX}{:016x}", RandomState::new().build_hasher().finish()));
        // Others may pass, because a check without a sandbox runs as another user, and the name cannot be
        // listed.
        DirBuilder::new().mode(0o711).create(&directory).map_err(told(&directory))?;
        let mut workspace =
            Self { directory, kind: WorkspaceKind::Copy, roots: options.roots.clone(), removed: false };
        let scratch = workspace.scratch();
        DirBuilder::new().mode(0o711).create(&scratch).map_err(told(&scratch))?;
        workspace.kind = workspace.fill(&options.generation_tree, options.preference)?;
        fault::at(Point::WorkspaceMade).map_err(told(&workspace.directory))?;
        for root in &workspace.roots {
            workspace.root_folder(&root.name)?;
        }
        Ok(workspace)
    }

    fn fill(&self, tree: &Path, preference: Preference) -> Result<WorkspaceKind, WorkspaceError> {
        let kinds: &[WorkspaceKind] = match preference {
            Preference::Auto => &[WorkspaceKind::Overlay, WorkspaceKind::Reflink, WorkspaceKind::Copy],
            Preference::Overlay => &[WorkspaceKind::Overlay],
            Preference::Reflink => &[WorkspaceKind::Reflink],
            Preference::Copy => &[WorkspaceKind::Copy],
        };
        let mut tried = Vec::new();
        for kind in kinds {
            let result = match kind {
                WorkspaceKind::Overlay => self.mount_overlay(tree),
                WorkspaceKind::Reflink => self.copy(tree, "--reflink=always"),
                WorkspaceKind::Copy => self.copy(tree, "--reflink=auto"),
            };
            match result {
                Ok(()) => return Ok(*kind),
                Err(error) => {
                    tracing::debug!(kind = kind.as_str(), %error, "this kind of workspace cannot be made");
                    tried.push(format!("{}: {error}", kind.as_str()));
                    for name in ["tree", "upper", "work"] {
                        let path = self.directory.join(name);
                        remove_tree(&path).map_err(told(&path))?;
                    }
                }
            }
        }
        Err(WorkspaceError::NoWay { tried })
    }

    fn mount_overlay(&self, lower: &Path) -> io::Result<()> {
        let make = |name: &str| -> io::Result<OwnedFd> {
            let path = self.directory.join(name);
            DirBuilder::new().mode(0o700).create(&path)?;
            open_folder(&path)
        };
        let (lower, upper, work, tree) = (open_folder(lower)?, make("upper")?, make("work")?, make("tree")?);
        // The view's top folder has the metadata of the upper one, which must therefore be that of the
        // generation.
        let stat = rustix::fs::fstat(&lower)?;
        let (owner, group) = (rustix::fs::Uid::from_raw(stat.st_uid), rustix::fs::Gid::from_raw(stat.st_gid));
        rustix::fs::fchown(&upper, Some(owner), Some(group))?;
        copy_xattrs(&lower, &upper)?;
        rustix::fs::fchmod(&upper, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        // Paths through descriptors: a comma, a colon or a backslash in a path would have a meaning in these
        // options.
        let way = |folder: &OwnedFd| format!("/proc/self/fd/{}", folder.as_raw_fd());
        let options = format!("lowerdir={},upperdir={},workdir={}", way(&lower), way(&upper), way(&work));
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        let mount = |options: String| {
            let options = std::ffi::CString::new(options).expect("made of digits and names above");
            rustix::mount::mount("overlay", way(&tree), "overlay", flags, options.as_c_str())
        };
        // Volatile leaves out every flush of what is thrown away anyway; Linux knows it from 5.10 on.
        mount(format!("{options},volatile")).or_else(|_| mount(options))?;
        Ok(())
    }

    fn copy(&self, from: &Path, reflink: &str) -> io::Result<()> {
        let output = Command::new("cp")
            .args(["-a", "--no-target-directory", reflink, "--"])
            .arg(from)
            .arg(self.path())
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .output()?;
        if output.status.success() {
            return Ok(());
        }
        let said = assay_common::path::display_bytes(
            output.stderr.split(|it| *it == b'\n').next().unwrap_or_default(),
        );
        Err(io::Error::other(format!("cp ended with {}: {said}", output.status)))
    }

    /// How it was made.
    pub fn kind(&self) -> WorkspaceKind {
        self.kind
    }

    /// The writable tree.
    pub fn path(&self) -> PathBuf {
        self.directory.join("tree")
    }

    /// A folder beside the tree, for whoever runs the check. Only root may list it.
    pub fn scratch(&self) -> PathBuf {
        self.directory.join("scratch")
    }

    /// The folders in which a check can write on the disk.
    pub(crate) fn writable(&self) -> Vec<PathBuf> {
        let written =
            if self.kind == WorkspaceKind::Overlay { self.directory.join("upper") } else { self.path() };
        vec![written, self.scratch()]
    }

    /// The roots, in the order of the configuration.
    pub fn roots(&self) -> &[RootView] {
        &self.roots
    }

    /// Where a root's folder is in the workspace.
    ///
    /// # Errors
    /// [`WorkspaceError::NoSuchRoot`].
    pub fn root_path(&self, name: &str) -> Result<PathBuf, WorkspaceError> {
        let root = self.root(name)?;
        Ok(if root.subdirectory.is_empty() { self.path() } else { self.path().join(&root.subdirectory) })
    }

    fn root(&self, name: &str) -> Result<&RootView, WorkspaceError> {
        let found = self.roots.iter().find(|root| root.name == name);
        found.ok_or_else(|| WorkspaceError::NoSuchRoot { name: name.into() })
    }

    /// Opens a root's folder. A link in its place, which a hostile source could send, is an error. Hold it
    /// shortly: the workspace cannot be unmounted meanwhile.
    ///
    /// # Errors
    /// [`WorkspaceError::NoSuchRoot`], [`WorkspaceError::Root`].
    pub fn root_folder(&self, name: &str) -> Result<OwnedFd, WorkspaceError> {
        let root = self.root(name)?;
        let failed = |source| WorkspaceError::Root {
            name: root.name.clone(),
            subdirectory: root.subdirectory.clone(),
            source,
        };
        let below = TreePath::parse(root.subdirectory.as_bytes())
            .map_err(|fault| failed(io::Error::new(io::ErrorKind::InvalidInput, format!("it {fault}"))))?;
        let tree = open_folder(&self.path()).map_err(failed)?;
        open_beneath(tree.as_fd(), &below, OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed)
    }

    /// Lays `source`, a file of the target's operator, over the workspace at `path` in a root. It gets the
    /// owner of the root folder and mode 0600. Its folder must be there.
    ///
    /// # Errors
    /// [`WorkspaceError`]; then what was there is still there.
    pub fn lay_file(
        &mut self,
        root: &str,
        path: &TreePath,
        source: &Path,
    ) -> Result<LaidFile, WorkspaceError> {
        let mut from = File::open(source).map_err(told(source))?;
        if !from.metadata().map_err(told(source))?.is_file() {
            return Err(told(source)(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a regular file was expected",
            )));
        }
        let folder = self.root_folder(root)?;
        let shown = self.root_path(root)?.join(OsStr::from_bytes(path.as_bytes()));
        let (digest, bytes) = lay(&folder, path, &mut from).map_err(told(&shown))?;
        Ok(LaidFile { root: root.into(), path: path.clone(), digest, bytes })
    }

    /// The digest of a regular file in a root, or nothing when there is none.
    ///
    /// # Errors
    /// [`WorkspaceError`]; a link on the way is one.
    pub fn digest_of(&self, root: &str, path: &TreePath) -> Result<Option<LaidFile>, WorkspaceError> {
        let folder = self.root_folder(root)?;
        let shown = self.root_path(root)?.join(OsStr::from_bytes(path.as_bytes()));
        let mut file = match open_beneath(folder.as_fd(), path, OFlags::RDONLY | OFlags::NONBLOCK) {
            Ok(file) => File::from(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(told(&shown)(error)),
        };
        if !file.metadata().map_err(told(&shown))?.is_file() {
            return Ok(None);
        }
        let mut hasher = blake3::Hasher::new();
        let bytes = io::copy(&mut file, &mut hasher).map_err(told(&shown))?;
        let digest = hasher.finalize().to_hex().to_string();
        Ok(Some(LaidFile { root: root.into(), path: path.clone(), digest, bytes }))
    }

    /// Takes the workspace away.
    ///
    /// # Errors
    /// [`WorkspaceError`]; [`sweep`] tries again.
    pub fn remove(mut self) -> Result<(), WorkspaceError> {
        self.removed = true;
        fault::at(Point::WorkspaceRemove).map_err(told(&self.directory))?;
        discard(&self.directory)
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if !self.removed
            && let Err(error) = discard(&self.directory)
        {
            tracing::warn!(%error, "a workspace is left over");
        }
    }
}

fn lay(root: &OwnedFd, path: &TreePath, from: &mut File) -> io::Result<(String, u64)> {
    let stat = rustix::fs::fstat(root)?;
    let parent = TreePath::parse(path.parent().unwrap_or_default()).unwrap_or_default();
    let folder = open_beneath(root.as_fd(), &parent, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let temporary = temporary_name(path.name());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut new = File::from(rustix::fs::openat(&folder, &temporary, flags, Mode::from_raw_mode(0o600))?);
    let written = (|| {
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; 64 * 1024];
        let mut bytes = 0;
        loop {
            let read = from.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
            new.write_all(&buffer[..read])?;
            bytes += read as u64;
        }
        let now = rustix::fs::fstat(&new)?;
        if (stat.st_uid, stat.st_gid) != (now.st_uid, now.st_gid) {
            let (owner, group) =
                (rustix::fs::Uid::from_raw(stat.st_uid), rustix::fs::Gid::from_raw(stat.st_gid));
            rustix::fs::fchown(&new, Some(owner), Some(group))?;
        }
        rustix::fs::fchmod(&new, Mode::from_raw_mode(0o600))?;
        rustix::fs::renameat(&folder, &temporary, &folder, path.name())?;
        Ok((hasher.finalize().to_hex().to_string(), bytes))
    })();
    if written.is_err() {
        let _ = rustix::fs::unlinkat(&folder, &temporary, AtFlags::empty());
    }
    written
}

fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Removes all workspaces that an agent left in `directory`, mounts first. For the start of the agent, when
/// it alone uses the directory. Says how many there were.
///
/// # Errors
/// The first thing that cannot be removed; the others are removed nevertheless.
pub fn sweep(directory: &Path) -> Result<usize, WorkspaceError> {
    let directory = match fs::canonicalize(directory) {
        Ok(directory) => directory,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(told(directory)(error)),
    };
    let mut count = 0;
    let mut first_error = Ok(());
    for entry in fs::read_dir(&directory).map_err(told(&directory))? {
        let entry = entry.map_err(told(&directory))?;
        if !entry.file_name().as_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        count += 1;
        crate::leftover::kill_left(&entry.path());
        let result = discard(&entry.path());
        first_error = first_error.and(result);
    }
    first_error.map(|()| count)
}

/// Unmounts what is mounted below a workspace's folder and removes it. Nothing is removed through a mount.
fn discard(directory: &Path) -> Result<(), WorkspaceError> {
    for mount in mounts_below(directory)? {
        let unmount = |flags| rustix::mount::unmount(&mount, flags | UnmountFlags::NOFOLLOW);
        // A straggler may still hold it; detached, it is gone for everyone else.
        unmount(UnmountFlags::empty())
            .or_else(|_| unmount(UnmountFlags::DETACH))
            .map_err(|error| WorkspaceError::Unmount { path: mount.clone(), source: error.into() })?;
    }
    if let Some(path) = mounts_below(directory)?.into_iter().next() {
        return Err(WorkspaceError::Unmount { path, source: io::Error::other("it is mounted still") });
    }
    remove_tree(directory).map_err(told(directory))
}

/// The mount points strictly below `directory`, the latest first.
fn mounts_below(directory: &Path) -> Result<Vec<PathBuf>, WorkspaceError> {
    let table = Path::new("/proc/self/mountinfo");
    let text = fs::read(table).map_err(told(table))?;
    let mut mounts: Vec<_> = text
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(unescape)
        .filter(|mount| mount.starts_with(directory) && mount != directory)
        .collect();
    mounts.reverse();
    Ok(mounts)
}

/// Undoes the octal escapes in which the kernel writes blanks and the like.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, after)) = rest.split_first() {
        let octal = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) if *byte == b'\\' => {
                bytes.push(escaped);
                rest = &after[3..];
            }
            _ => {
                bytes.push(*byte);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// Removes a file or a folder with all that is in it, following no link. What is not there is fine.
fn remove_tree(path: &Path) -> io::Result<()> {
    let attempt = || match fs::symlink_metadata(path) {
        Ok(stat) if stat.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    let result = match attempt() {
        // A copy made by an unprivileged agent can hold folders that nobody may write.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Command::new("chmod")
                .args(["-R", "u+rwX", "--"])
                .arg(path)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()?;
            attempt()
        }
        result => result,
    };
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
