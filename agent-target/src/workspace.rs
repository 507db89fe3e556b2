//! A throw-away writable view of a sealed generation, in which configuration is patched and the check runs.
//!
//! Best is an overlay mount: it costs nothing and the generation below it cannot be written through it. Where
//! overlays cannot be mounted it is a reflink copy, else a full copy. A workspace lives in its own folder:
//!
//! ```text
//! DIRECTORY/ws-XXXXXXXXXXXXXXXX/tree/            the view
//!                               layers/upper/    what was changed (overlay only)
//!                               layers/work/     the kernel's own (overlay only)
//!                               scratch/         for the check and those who run it
//! ```
//!
//! Nothing in it is worth keeping: nothing is flushed, and [`sweep`] removes what a killed agent left.
//!
//! # What the tree cannot do here
//!
//! * Only root, or the agent's own user, may enter `DIRECTORY`, and what is mounted in it is `nosuid` and `nodev`.
//! * A check runs as the configured user. Where the agent is root, the mounts of a workspace show the owner of the first root
//!   as that user ([`IdMap`]). Where the file system cannot do that, the workspace is a copy that belongs to the user.
//! * Devices, FIFOs and sockets are left out, unless the profile wants FIFOs and sockets: a checker that opens one would wait
//!   for ever. Copies have no set-id bits.
//! * An overlay obeys attributes `trusted.overlay.*` and takes a character device 0/0 for a removal. A tree that has such
//!   entries ([`Oddities`]) is copied instead.

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
    fs::{AtFlags, FileType, Mode, OFlags},
    mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags},
};

pub use self::oddities::Oddities;

use crate::userns::{Account, IdMap};

mod oddities;

const PREFIX: &str = "ws-";
/// Special files that are named when they are left out; all are counted.
const LEFT_OUT_NAMED: usize = 5;

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
    /// Who checks are on this host, where the agent is root.
    pub account: Account,
    /// Entries of the tree that an overlay or a checker must not meet.
    pub oddities: Oddities,
    /// True: FIFOs and sockets of the tree are there. Devices never are.
    pub special_files: bool,
}

/// A workspace. Dropped without [`Workspace::remove`], it is removed as well as can be.
#[derive(Debug)]
pub struct Workspace {
    directory: PathBuf,
    kind: WorkspaceKind,
    roots: Vec<RootView>,
    /// Set where the agent is root.
    id_map: Option<IdMap>,
    /// Special files that were left out: how many, and the first of them.
    left_out: (u64, Vec<String>),
    /// Where the check without a sandbox finds it.
    exposed: Option<PathBuf>,
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
            .mode(0o700)
            .create(&options.directory)
            .map_err(told(&options.directory))?;
        close(&options.directory).map_err(told(&options.directory))?;
        // Resolved once, so that what the kernel says of mounts can be compared with it.
        let parent = fs::canonicalize(&options.directory).map_err(told(&options.directory))?;
        fault::at(Point::WorkspaceCreate).map_err(told(&parent))?;
        // No collision is likely, and where one is, creation fails.
        let directory = parent.join(format!("{PREFIX}{:016x}", RandomState::new().build_hasher().finish()));
        DirBuilder::new().mode(0o700).create(&directory).map_err(told(&directory))?;
        let mut workspace = Self {
            directory,
            kind: WorkspaceKind::Copy,
            roots: options.roots.clone(),
            id_map: None,
            left_out: (0, Vec::new()),
            exposed: None,
            removed: false,
        };
        let is_root = rustix::process::geteuid().is_root();
        if is_root && let Err(error) = tame(&workspace.directory) {
            // Then no overlay can be mounted either, and a copy has neither set-id bits nor devices.
            tracing::debug!(%error, "a workspace's folder cannot be mounted nosuid and nodev");
        }
        let scratch = workspace.scratch();
        DirBuilder::new().mode(0o711).create(&scratch).map_err(told(&scratch))?;
        let mut unmapped = None;
        if is_root {
            match workspace
                .owner_in(&options.generation_tree)
                .and_then(|it| IdMap::create(it, options.account))
            {
                Ok(map) => workspace.id_map = Some(map),
                Err(error) => unmapped = Some(error.to_string()),
            }
        }
        workspace.kind = workspace.fill(options, unmapped)?;
        fault::at(Point::WorkspaceMade).map_err(told(&workspace.directory))?;
        for root in &workspace.roots {
            workspace.root_folder(&root.name)?;
        }
        Ok(workspace)
    }

    /// The owner of the first root's folder, as the source sent it.
    fn owner_in(&self, tree: &Path) -> io::Result<Account> {
        let below = self.roots.first().map(|root| root.subdirectory.clone()).unwrap_or_default();
        let below = TreePath::parse(below.as_bytes()).map_err(|fault| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("a root's folder {fault}"))
        })?;
        let folder = open_beneath(open_folder(tree)?.as_fd(), &below, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let stat = rustix::fs::fstat(&folder)?;
        Ok(Account { uid: stat.st_uid, gid: stat.st_gid })
    }

    fn fill(
        &mut self,
        options: &WorkspaceOptions,
        unmapped: Option<String>,
    ) -> Result<WorkspaceKind, WorkspaceError> {
        let kinds: &[WorkspaceKind] = match options.preference {
            Preference::Auto => &[WorkspaceKind::Overlay, WorkspaceKind::Reflink, WorkspaceKind::Copy],
            Preference::Overlay => &[WorkspaceKind::Overlay],
            Preference::Reflink => &[WorkspaceKind::Reflink],
            Preference::Copy => &[WorkspaceKind::Copy],
        };
        let tree = &options.generation_tree;
        let mut tried = Vec::new();
        for kind in kinds {
            let result = match (kind, &unmapped) {
                (WorkspaceKind::Overlay, Some(why)) => Err(io::Error::other(why.clone())),
                (WorkspaceKind::Overlay, None) => self.overlay(tree, options),
                (WorkspaceKind::Reflink, _) => self.copy(tree, "--reflink=always", options),
                (WorkspaceKind::Copy, _) => self.copy(tree, "--reflink=auto", options),
            };
            match result {
                Ok(left_out) => {
                    let names = options.oddities.special_files().iter().take(LEFT_OUT_NAMED);
                    self.left_out = (left_out, names.map(ToString::to_string).collect());
                    return Ok(*kind);
                }
                Err(error) => {
                    tracing::debug!(kind = kind.as_str(), %error, "this kind of workspace cannot be made");
                    tried.push(format!("{}: {error}", kind.as_str()));
                    for name in ["tree", "layers", "lower"] {
                        let path = self.directory.join(name);
                        unmount_below(&path)?;
                        remove_tree(&path).map_err(told(&path))?;
                    }
                }
            }
        }
        Err(WorkspaceError::NoWay { tried })
    }

    fn overlay(&self, lower: &Path, options: &WorkspaceOptions) -> io::Result<u64> {
        if let Some(why) = options.oddities.refuses_overlay() {
            return Err(io::Error::other(why));
        }
        let mapped = match self.mount_overlay(lower, self.id_map.as_ref()) {
            // From Linux 5.19 on layers can be mapped, on most file systems. Elsewhere every entry is given to the check's user,
            // which copies metadata up and no content.
            Err(error) if self.id_map.is_some() => {
                tracing::debug!(%error, "layers of an overlay cannot be mapped here");
                for name in ["tree", "layers", "lower"] {
                    let path = self.directory.join(name);
                    unmount_below(&path).map_err(io::Error::other)?;
                    remove_tree(&path)?;
                }
                self.mount_overlay(lower, None)?;
                return tame_copy(&open_folder(&self.path())?, options.special_files, Some(options.account));
            }
            mounted => mounted,
        };
        mapped?;
        if options.special_files {
            return Ok(0);
        }
        let tree = open_folder(&self.path())?;
        for path in options.oddities.special_files() {
            let parent = TreePath::parse(path.parent().unwrap_or_default()).unwrap_or_default();
            let folder = open_beneath(tree.as_fd(), &parent, OFlags::RDONLY | OFlags::DIRECTORY)?;
            rustix::fs::unlinkat(&folder, path.name(), AtFlags::empty())?;
        }
        Ok(options.oddities.special_files().len() as u64)
    }

    fn mount_overlay(&self, lower: &Path, map: Option<&IdMap>) -> io::Result<()> {
        let make = |name: &str| -> io::Result<OwnedFd> {
            let path = self.directory.join(name);
            DirBuilder::new().mode(0o700).create(&path)?;
            open_folder(&path)
        };
        let below = open_folder(lower)?;
        make("layers")?;
        let (upper, _, tree) = (make("layers/upper")?, make("layers/work")?, make("tree")?);
        // The view's top folder has the metadata of the upper one, which must therefore be that of the
        // generation.
        let stat = rustix::fs::fstat(&below)?;
        let (owner, group) = (rustix::fs::Uid::from_raw(stat.st_uid), rustix::fs::Gid::from_raw(stat.st_gid));
        rustix::fs::fchown(&upper, Some(owner), Some(group))?;
        copy_xattrs(&below, &upper)?;
        rustix::fs::fchmod(&upper, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        drop(upper);
        let mut lower = below;
        let mut mapped = Vec::new();
        if let Some(map) = map {
            make("lower")?;
            for (from, at) in
                [(lower.as_fd(), "lower"), (open_folder(&self.directory.join("layers"))?.as_fd(), "layers")]
            {
                let at = self.directory.join(at);
                mount_mapped(map, from, &at)?;
                mapped.push(at);
            }
            lower = open_folder(&mapped[0])?;
        }
        let (upper, work) = (
            open_folder(&self.directory.join("layers/upper"))?,
            open_folder(&self.directory.join("layers/work"))?,
        );
        // Paths through descriptors: a comma, a colon or a backslash in a path would have a meaning in these
        // options.
        let way = |folder: &OwnedFd| format!("/proc/self/fd/{}", folder.as_raw_fd());
        let options = format!("lowerdir={},upperdir={},workdir={}", way(&lower), way(&upper), way(&work));
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        let mount = |options: String| {
            let options = std::ffi::CString::new(options).expect("made of digits and names above");
            rustix::mount::mount("overlay", way(&tree), "overlay", flags, options.as_c_str())
        };
        // Metadata alone is copied up where only that changes; what the tree says of such copies is refused (`Oddities`).
        let options = if map.is_none() { format!("{options},metacopy=on") } else { options };
        // Volatile leaves out every flush of what is thrown away anyway; Linux knows it from 5.10 on.
        mount(format!("{options},volatile")).or_else(|_| mount(options))?;
        // The overlay has mounts of its own of them.
        drop((lower, upper, work));
        for at in mapped.iter().rev() {
            rustix::mount::unmount(at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
        }
        Ok(())
    }

    fn copy(&self, from: &Path, reflink: &str, options: &WorkspaceOptions) -> io::Result<u64> {
        let output = Command::new("cp")
            .args(["-a", "--no-target-directory", reflink, "--"])
            .arg(from)
            .arg(self.path())
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .output()?;
        if !output.status.success() {
            let said = assay_common::path::display_bytes(
                output.stderr.split(|it| *it == b'\n').next().unwrap_or_default(),
            );
            return Err(io::Error::other(format!("cp ended with {}: {said}", output.status)));
        }
        let tree = open_folder(&self.path())?;
        if let Some(map) = &self.id_map {
            match mount_mapped(map, tree.as_fd(), &self.path()) {
                Ok(()) => return tame_copy(&tree, options.special_files, None),
                Err(error) => {
                    tracing::debug!(%error, "the workspace's file system maps no owners: the copy gets the check's");
                }
            }
        }
        let account = rustix::process::geteuid().is_root().then_some(options.account);
        tame_copy(&tree, options.special_files, account)
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
        let written = if self.kind == WorkspaceKind::Overlay {
            self.directory.join("layers/upper")
        } else {
            self.path()
        };
        vec![written, self.scratch()]
    }

    /// Who the steps are, inside and outside; nothing where the agent is not root.
    pub(crate) fn id_map(&self) -> Option<&IdMap> {
        self.id_map.as_ref()
    }

    /// Special files of the tree that are not in it: how many, and the first of them.
    pub fn special_files_left_out(&self) -> (u64, &[String]) {
        (self.left_out.0, &self.left_out.1)
    }

    /// Says which special files of the tree are not in it, if any.
    pub fn left_out(&self) -> Option<String> {
        let (count, names) = &self.left_out;
        let more = count.saturating_sub(names.len() as u64);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        (*count > 0).then(|| {
            format!("left out of the workspace as devices, FIFOs or sockets: {}{more}", names.join(", "))
        })
    }

    /// Shows the workspace, under another name, to the user `account`, which may not enter the store. For a check without a
    /// sandbox, where this host mounts at all.
    ///
    /// # Errors
    /// [`WorkspaceError`], when what was begun cannot be taken away.
    pub(crate) fn expose(&mut self, account: Account) -> Result<(), WorkspaceError> {
        let at = exposed(&self.directory);
        DirBuilder::new().mode(0o700).create(&at).map_err(told(&at))?;
        let make = || -> io::Result<()> {
            std::os::unix::fs::chown(&at, None, Some(account.gid))?;
            fs::set_permissions(&at, std::os::unix::fs::PermissionsExt::from_mode(0o710))?;
            for name in ["tree", "scratch"] {
                let place = at.join(name);
                DirBuilder::new().mode(0o700).create(&place)?;
                rustix::mount::mount_bind(self.directory.join(name), &place)?;
            }
            Ok(())
        };
        match make() {
            Ok(()) => self.exposed = Some(at),
            Err(error) => {
                tracing::debug!(%error, "the workspace cannot be mounted for the check's user");
                unmount_exposed(&self.directory)?;
            }
        }
        Ok(())
    }

    /// Whether a check without a sandbox sees it under another name.
    pub(crate) fn is_exposed(&self) -> bool {
        self.exposed.is_some()
    }

    /// Where a check without a sandbox finds a root.
    pub(crate) fn shown_root(&self, name: &str) -> Result<PathBuf, WorkspaceError> {
        let tree = self.exposed.as_ref().map_or_else(|| self.path(), |it| it.join("tree"));
        Ok(tree.join(&self.root(name)?.subdirectory))
    }

    /// Where a check without a sandbox finds the folder beside the tree.
    pub(crate) fn shown_scratch(&self) -> PathBuf {
        self.exposed.as_ref().map_or_else(|| self.scratch(), |it| it.join("scratch"))
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
                "this is not a regular file",
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
    // Before 2026-11-29 others could pass through it.
    close(&directory).map_err(told(&directory))?;
    let mut count = 0;
    let mut first_error = Ok(());
    for entry in fs::read_dir(&directory).map_err(told(&directory))? {
        let entry = entry.map_err(told(&directory))?;
        if !entry.file_name().as_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        count += 1;
        crate::leftover::kill_left(&entry.path());
        crate::leftover::kill_left(&exposed(&entry.path()));
        let result = discard(&entry.path());
        first_error = first_error.and(result);
    }
    first_error.map(|()| count)
}

/// Where a workspace is shown to the user of checks that have no sandbox.
fn exposed(directory: &Path) -> PathBuf {
    let name = directory.file_name().unwrap_or_default();
    Path::new("/tmp").join([OsStr::new("assay-check-"), name].join(OsStr::new("")))
}

/// Takes away what [`Workspace::expose`] made.
fn unmount_exposed(directory: &Path) -> Result<(), WorkspaceError> {
    let shown = exposed(directory);
    let is_ours = |stat: fs::Metadata| stat.is_dir() && std::os::unix::fs::MetadataExt::uid(&stat) == 0;
    if !fs::symlink_metadata(&shown).is_ok_and(is_ours) {
        return Ok(());
    }
    unmount_below(&shown)?;
    for folder in [shown.join("tree"), shown.join("scratch"), shown] {
        match fs::remove_dir(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(told(&folder)(error)),
            _ => {}
        }
    }
    Ok(())
}

/// Unmounts what is mounted at a workspace's folder and below and removes it. Nothing is removed through a mount.
fn discard(directory: &Path) -> Result<(), WorkspaceError> {
    unmount_exposed(directory)?;
    unmount_below(directory)?;
    remove_tree(directory).map_err(told(directory))
}

/// Takes away what is mounted at a folder and below.
fn unmount_below(directory: &Path) -> Result<(), WorkspaceError> {
    for mount in mounts_below(directory)? {
        let unmount = |flags| rustix::mount::unmount(&mount, flags | UnmountFlags::NOFOLLOW);
        // A straggler may still hold it; detached, it is gone for everyone else.
        match unmount(UnmountFlags::empty()).or_else(|_| unmount(UnmountFlags::DETACH)) {
            // Nothing is mounted there: a check that ends while the agent stops takes its own mounts away. The list below tells.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(WorkspaceError::Unmount { path: mount, source: error.into() }),
        }
    }
    if let Some(path) = mounts_below(directory)?.into_iter().next() {
        return Err(WorkspaceError::Unmount { path, source: io::Error::other("it is mounted still") });
    }
    Ok(())
}

/// Closes a folder to everyone but its owner.
fn close(path: &Path) -> io::Result<()> {
    let folder = open_folder(path)?;
    let mode = rustix::fs::fstat(&folder)?.st_mode & 0o7777;
    if mode & 0o077 != 0 {
        rustix::fs::fchmod(&folder, Mode::from_raw_mode(mode & 0o700))?;
    }
    Ok(())
}

/// Mounts a folder upon itself, so that no program in it changes its user and no device in it works.
fn tame(folder: &Path) -> io::Result<()> {
    rustix::mount::mount_bind(folder, folder)?;
    rustix::mount::mount_change(folder, MountPropagationFlags::PRIVATE)?;
    let flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV;
    Ok(rustix::mount::mount_remount(folder, flags, "")?)
}

/// Mounts the folder `from` at `at`, with the owners of a map.
fn mount_mapped(map: &IdMap, from: impl AsFd, at: &Path) -> io::Result<()> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let mount = rustix::mount::open_tree(from, "", flags)?;
    map.apply(mount.as_fd())?;
    rustix::mount::move_mount(&mount, "", rustix::fs::CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

/// Removes special files and set-id bits of a copy, and gives all of it to `account`. Says how many files it removed.
fn tame_copy(folder: &OwnedFd, keeps_special: bool, account: Option<Account>) -> io::Result<u64> {
    let mut removed = 0;
    if let Some(account) = account {
        chown_at(folder, c"", AtFlags::EMPTY_PATH, account)?;
    }
    let mut names = Vec::new();
    // The copy's mode may forbid its owner to read it. An agent that is not root made it, and can change that.
    for entry in rustix::fs::Dir::read_from(folder)? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    for name in names {
        let stat = rustix::fs::statat(folder, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let is_kept = match kind {
            FileType::RegularFile | FileType::Directory | FileType::Symlink => true,
            FileType::Fifo | FileType::Socket => keeps_special,
            _ => false,
        };
        if !is_kept {
            rustix::fs::unlinkat(folder, &name, AtFlags::empty())?;
            removed += 1;
            continue;
        }
        if let (Some(account), true) = (account, kind != FileType::Directory) {
            chown_at(folder, &name, AtFlags::SYMLINK_NOFOLLOW, account)?;
        }
        if kind == FileType::RegularFile && stat.st_mode & 0o6000 != 0 {
            rustix::fs::chmodat(folder, &name, Mode::from_raw_mode(stat.st_mode & 0o1777), AtFlags::empty())?;
        }
        if kind == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(folder, &name, flags, Mode::empty()) {
                Ok(inner) => removed += tame_copy(&inner, keeps_special, account)?,
                // Of an agent that is not root: what it cannot enter, its check cannot either.
                Err(rustix::io::Errno::ACCESS) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(removed)
}

fn chown_at(folder: &OwnedFd, name: &std::ffi::CStr, flags: AtFlags, account: Account) -> io::Result<()> {
    let (user, group) = (rustix::fs::Uid::from_raw(account.uid), rustix::fs::Gid::from_raw(account.gid));
    Ok(rustix::fs::chownat(folder, name, Some(user), Some(group), flags)?)
}

/// The mount points at `directory` and below, the latest first.
fn mounts_below(directory: &Path) -> Result<Vec<PathBuf>, WorkspaceError> {
    let table = Path::new("/proc/self/mountinfo");
    let text = fs::read(table).map_err(told(table))?;
    let mut mounts: Vec<_> = text
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(unescape)
        .filter(|mount| mount.starts_with(directory))
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
