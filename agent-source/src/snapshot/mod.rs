//! Snapshots: the file system's own picture of one moment, made for one run and copied instead of the live files. Nothing in it changes while it is
//! read, and the engine's mark is held only until it is there.
//!
//! A note in the state folder says that there is a snapshot, from before it is made until it is removed. What a killed run left is removed at the
//! next start of the agent, or by the next run.

mod section;

use std::{
    ffi::OsString,
    fs::File,
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use assay_common::{
    confined::Folder,
    durable::{sync_folder, write_durable},
    error::{IoContext as _, PathError},
    path::{TreePath, display_bytes},
    profile::{FileRules, Scope, TemplateError},
};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{
    file_system::{FileSystem, mounts_below},
    mark::command::{self, Call, CommandError},
    replicate::basis::file_clock,
};

use section::Way;
pub(crate) use section::{Settings, SnapshotSection};

/// The inode of a subvolume's root on btrfs: BTRFS_FIRST_FREE_OBJECTID.
pub(crate) const SUBVOLUME_INODE: u64 = 256;
/// What names of snapshots begin with.
const PREFIX: &str = "assay-";
/// How often the lock of a command that is waited for is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Why there is no snapshot, or why it is still there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    #[error("snapshot: {0}")]
    Command(#[from] CommandError),
    #[error("snapshot: {0}")]
    Template(#[from] TemplateError),
    #[error("snapshot: {0}")]
    Io(#[from] PathError),
    #[error("snapshot: the roots {first} and {other} are not on one file system, and a snapshot is of one")]
    Several { first: PathBuf, other: PathBuf },
    #[error("snapshot: {path} is mounted in the root {root}, and a snapshot does not have what is mounted")]
    Mounted { root: PathBuf, path: String },
    #[error("snapshot: {path} is on a file system of the kind {kind}, not btrfs")]
    NotBtrfs { path: PathBuf, kind: String },
    #[error("snapshot: {path} is no subvolume of btrfs, but a folder of one that is mounted there")]
    NoSubvolume { path: PathBuf },
    #[error("snapshot: the folder {folder} is in the root {root}, and is not excluded")]
    Inside { folder: PathBuf, root: PathBuf },
    #[error("snapshot: {free} % of the file system of {path} is free, less than min_free_percent = {wanted}")]
    Full { path: PathBuf, free: u64, wanted: u8 },
    #[error("snapshot: {path} is not the root {root}, but something else")]
    Other { path: PathBuf, root: PathBuf },
    #[error("snapshot: {path} is the live root itself")]
    Live { path: PathBuf },
    #[error("snapshot: the folder {folder} is on another file system than when the snapshot was made")]
    NotMounted { folder: PathBuf },
    #[error("snapshot: the note {path} is not one that this agent wrote: {why}")]
    Note { path: PathBuf, why: String },
    #[error("snapshot: a command of an earlier run still works on the snapshot {name}")]
    Busy { name: String },
    #[error("snapshot: {what} is still there after it was removed")]
    StillThere { what: String },
}

impl SnapshotError {
    /// What to do about it.
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::Several { .. } => {
                "make a repository of each, or put them on one file system; nothing was copied"
            }
            Self::Mounted { .. } => {
                "exclude it, say one_file_system = true for the root, or make it a repository of its own; nothing was copied"
            }
            Self::NotBtrfs { .. } | Self::NoSubvolume { .. } => {
                "correct repository.snapshot, or the root's path; docs/SNAPSHOTS.md says what each kind needs; nothing was copied"
            }
            Self::Inside { .. } => {
                "name it in the repository's exclude, or choose another folder; nothing was copied"
            }
            Self::Full { .. } => {
                "make room on the live file system: a snapshot keeps what is overwritten meanwhile; nothing was copied"
            }
            Self::Other { .. } => {
                "compare repository.snapshot (volume, path) with what is mounted at the root; nothing was copied"
            }
            Self::Live { .. } => {
                "correct repository.snapshot.path: it must lead to the snapshot; nothing was copied"
            }
            Self::NotMounted { .. } => {
                "mount it: a snapshot of a run that was killed is there, and has to be removed first"
            }
            Self::Note { .. } => {
                "remove snapshots whose names begin with \"assay-\" from the folder, volume or dataset of repository.snapshot, then remove the note"
            }
            Self::Command(CommandError::TimeOut { .. }) => {
                "look whether it still works (ps; state D: in the kernel), and whether the file system is frozen or busy; repository.snapshot.timeout is how \
                 long it may take"
            }
            Self::Io(_) => {
                "create the folder, name its real path, or mount its file system; nothing was copied"
            }
            Self::Busy { .. } => "look why it does not end (ps), or end it; nothing was copied",
            Self::Command(_) | Self::Template(_) | Self::StillThere { .. } => {
                "run the command by hand as the agent's user; docs/SNAPSHOTS.md says which rights each kind needs"
            }
        }
    }
}

/// A root of the repository: where it is, and its inode.
pub(crate) struct LiveRoot {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) inode: u64,
}

/// A snapshot that may be there, or a part of one, as it stands in the note.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Held {
    name: String,
    settings: Settings,
    /// The mount point or subvolume that the roots are in.
    top: PathBuf,
    first_root: PathBuf,
    /// The file system of the folder for snapshots, where the snapshot lies in it.
    folder_is_on: Option<String>,
    /// The note, locked, which each command gets as its standard input. A killed agent leaves a command that works on; the lock
    /// tells the next start.
    #[serde(skip)]
    lock: Option<File>,
}

/// A snapshot that is there.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// What a mark says of it.
    pub(crate) description: String,
    /// The roots in it, open, in the order in which they were asked for.
    pub(crate) folders: Vec<Arc<Folder>>,
    /// When its making began, as time since 1970: what was changed before is in it, with its time.
    pub(crate) begun: Duration,
}

impl Settings {
    /// What a plan and a report call it.
    pub(crate) fn description(&self) -> String {
        format!("{} snapshot", self.way.name())
    }

    /// The program that makes the snapshot.
    pub(crate) fn program(&self) -> &str {
        match &self.way {
            Way::Btrfs { .. } => "btrfs",
            Way::Lvm { .. } => "lvcreate",
            Way::Zfs { .. } => "zfs",
            Way::Command { create, .. } => create.first().map_or("", String::as_str),
        }
    }

    /// Looks whether a snapshot can be made of these roots, and gives the mount point or subvolume that they are in.
    ///
    /// # Errors
    /// The first thing that is in the way.
    pub(crate) fn look(
        &self,
        roots: &[LiveRoot],
        rules: &FileRules,
        one_file_system: &[bool],
    ) -> Result<PathBuf, SnapshotError> {
        let mut top: Option<(PathBuf, u64)> = None;
        for root in roots {
            let device = root.path.symlink_metadata().at("look at", &root.path)?.dev();
            match &top {
                Some((_, first)) if *first != device => {
                    let (first, other) = (roots[0].path.clone(), root.path.clone());
                    return Err(SnapshotError::Several { first, other });
                }
                Some((top, _)) if !root.path.starts_with(top) => {
                    let (first, other) = (roots[0].path.clone(), root.path.clone());
                    return Err(SnapshotError::Several { first, other });
                }
                Some(_) => {}
                None => top = Some((top_of(&root.path).at("look at", &root.path)?, device)),
            }
        }
        let (top, _) = top.unwrap_or_default();
        if let Way::Btrfs { folder } = &self.way {
            for path in [&top, folder] {
                let kind = file_system_of(path)?.kind;
                if kind != "btrfs" {
                    return Err(SnapshotError::NotBtrfs { path: path.clone(), kind });
                }
            }
            if top.symlink_metadata().at("look at", &top)?.ino() != SUBVOLUME_INODE {
                return Err(SnapshotError::NoSubvolume { path: top });
            }
        }
        for (root, one) in roots.iter().zip(one_file_system) {
            if let Some(folder) = self.way.folder()
                && let Ok(below) = folder.strip_prefix(&root.path)
                && !is_excluded_with_its_folder(below.as_os_str().as_encoded_bytes(), rules)
            {
                return Err(SnapshotError::Inside { folder: folder.to_owned(), root: root.path.clone() });
            }
            // A command may be one that takes what is mounted with it.
            let is_alone = !matches!(self.way, Way::Command { .. });
            let missing = mounts_below(&root.path).into_iter().find(|mount| {
                is_alone && !(*one && mount.is_other) && !is_excluded_with_its_folder(&mount.path, rules)
            });
            if let Some(mount) = missing {
                return Err(SnapshotError::Mounted {
                    root: root.path.clone(),
                    path: display_bytes(&mount.path),
                });
            }
        }
        self.room(&top)?;
        Ok(top)
    }

    fn room(&self, top: &Path) -> Result<(), SnapshotError> {
        let room = rustix::fs::statvfs(top).map_err(io::Error::from).at("look at", top)?;
        let free = room.f_bavail.saturating_mul(100).checked_div(room.f_blocks).unwrap_or(100);
        if free < u64::from(self.min_free_percent) {
            return Err(SnapshotError::Full { path: top.to_owned(), free, wanted: self.min_free_percent });
        }
        Ok(())
    }
}

/// True when the walk does not come to this path.
fn is_excluded_with_its_folder(path: &[u8], rules: &FileRules) -> bool {
    let ends = path.iter().enumerate().filter_map(|(at, byte)| (*byte == b'/').then_some(at));
    ends.chain([path.len()])
        .any(|end| TreePath::parse(&path[..end]).is_ok_and(|path| rules.is_excluded(&path)))
}

/// The highest folder above `path` that is on the same device: a mount point, or a subvolume.
fn top_of(path: &Path) -> io::Result<PathBuf> {
    let device = path.symlink_metadata()?.dev();
    let mut top = path;
    while let Some(parent) = top.parent() {
        if parent.symlink_metadata()?.dev() != device {
            break;
        }
        top = parent;
    }
    Ok(top.to_owned())
}

/// Makes a snapshot of the roots for a run. `held` is what the caller has to [`remove`] afterwards, whatever comes of it.
///
/// # Errors
/// When the snapshot cannot be made, or when it is not of these roots.
pub(crate) async fn make(
    (settings, note): (&Settings, &Path),
    name: &str,
    (top, roots): (PathBuf, &[LiveRoot]),
    held: &mut Option<Held>,
    cancel: &CancellationToken,
) -> Result<Snapshot, SnapshotError> {
    let first_root = roots.first().map(|root| root.path.clone()).unwrap_or_default();
    let (name, settings) = (format!("{PREFIX}{name}"), settings.clone());
    let folder_is_on = match &settings.way {
        Way::Btrfs { folder } => Some(file_system_of(folder)?.id),
        Way::Lvm { .. } | Way::Zfs { .. } | Way::Command { .. } => None,
    };
    let made = Held { name, settings, top, first_root, folder_is_on, lock: None };
    let text = serde_json::to_vec(&made).expect("paths of the configuration are text");
    write_durable(note, &text, 0o600)?;
    let held = held.insert(made);
    let lock = File::open(note).at("open", note)?;
    flock(&lock, FlockOperation::NonBlockingLockShared).at("lock", note)?;
    held.lock = Some(lock);
    let begun = file_clock();
    held.create(cancel).await?;
    let description = format!("{} snapshot {}", held.settings.way.name(), held.name);
    Ok(Snapshot { description, folders: held.open(roots)?, begun })
}

/// Removes a snapshot, or whatever there is of one, and its note. No folder in it may be open.
///
/// # Errors
/// When it is still there; it is noted then, and the next run tries again.
pub(crate) async fn remove(mut held: Held, note: &Path) -> Result<(), SnapshotError> {
    // A command that took too long was killed, and may still be at work in the kernel.
    held.lock = None;
    held.remove_noted(note).await
}

/// Removes what a run left that was killed.
///
/// # Errors
/// When it is still there.
pub(crate) async fn remove_left_over(note: &Path) -> Result<(), SnapshotError> {
    let text = match std::fs::read(note) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Err::<(), _>(error).at("read", note).expect_err("it is one").into()),
    };
    let unknown = |why: String| SnapshotError::Note { path: note.to_owned(), why };
    let held: Held = serde_json::from_slice(&text).map_err(|error| unknown(error.to_string()))?;
    if !held.name.starts_with(PREFIX) || held.name.contains(['/', '@', '\0']) {
        return Err(unknown(format!("no snapshot of Assay is called {:?}", held.name)));
    }
    let name = held.name.clone();
    held.remove_noted(note).await?;
    tracing::warn!(snapshot = name, "a snapshot was left over by a run that was killed, and is removed");
    Ok(())
}

/// Says what is wrong with the note of a snapshot, if there is one.
///
/// # Errors
/// When it is not one that this agent wrote.
pub(crate) fn look_at_note(note: &Path) -> Result<(), SnapshotError> {
    match std::fs::read(note) {
        Ok(text) => match serde_json::from_slice::<Held>(&text) {
            Ok(_) => Ok(()),
            Err(error) => Err(SnapshotError::Note { path: note.to_owned(), why: error.to_string() }),
        },
        Err(_) => Ok(()),
    }
}

fn file_system_of(folder: &Path) -> Result<FileSystem, PathError> {
    let held = Folder::open(folder).at("open", folder)?;
    let device = held.stat_self().at("look at", folder)?.st_dev;
    FileSystem::of(held.as_descriptor(), device).at("look at", folder)
}

impl Held {
    /// Waits until no command of an earlier run works on the snapshot, and gives the note's lock.
    async fn wait_for_commands(&self, note: &Path) -> Result<File, SnapshotError> {
        let lock = File::open(note).at("open", note)?;
        let until = tokio::time::Instant::now() + self.settings.timeout;
        loop {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(lock),
                Err(Errno::WOULDBLOCK) if tokio::time::Instant::now() < until => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                Err(Errno::WOULDBLOCK) => return Err(SnapshotError::Busy { name: self.name.clone() }),
                Err(error) => {
                    return Err(Err::<(), _>(error).at("lock", note).expect_err("it is one").into());
                }
            }
        }
    }

    /// Where a root is in the snapshot.
    fn path_of(&self, root: &LiveRoot) -> Result<PathBuf, SnapshotError> {
        let below = root.path.strip_prefix(&self.top).unwrap_or(Path::new(""));
        let at = |folder: PathBuf| if below.as_os_str().is_empty() { folder } else { folder.join(below) };
        Ok(match &self.settings.way {
            Way::Btrfs { folder } | Way::Lvm { folder, .. } => at(folder.join(&self.name)),
            Way::Zfs { .. } => at(self.top.join(".zfs/snapshot").join(&self.name)),
            Way::Command { path, .. } => {
                let scope = Scope { roots: vec![(root.name.clone(), root.path.clone())], ..self.scope() };
                PathBuf::from(scope.expand(path)?)
            }
        })
    }

    fn scope(&self) -> Scope {
        Scope {
            roots: vec![(String::new(), self.first_root.clone())],
            mark_id: Some(self.name.clone()),
            ..Scope::default()
        }
    }

    /// The block device of a logical volume's snapshot.
    fn device(&self, volume: &str) -> PathBuf {
        let group = volume.split_once('/').map_or(volume, |(group, _)| group);
        Path::new("/dev").join(group).join(&self.name)
    }

    async fn create(&self, cancel: &CancellationToken) -> Result<(), SnapshotError> {
        match &self.settings.way {
            Way::Btrfs { folder } => {
                let to = folder.join(&self.name);
                let words = ["btrfs", "subvolume", "snapshot", "-r"].map(OsString::from).into_iter();
                self.run(words.chain([self.top.clone().into(), to.into()]), cancel).await
            }
            Way::Lvm { volume, size, folder } => {
                let words = ["lvcreate", "--yes", "--snapshot", "--size", size, "--name", &self.name, volume];
                self.run(words.map(OsString::from), cancel).await?;
                let at = folder.join(&self.name);
                std::fs::create_dir_all(&at).at("create", &at)?;
                let kind = file_system_of(&self.top)?.kind;
                // XFS mounts no second file system of one UUID.
                let options = if kind == "xfs" { "ro,nouuid" } else { "ro" };
                let words = ["mount", "-o", options].map(OsString::from).into_iter();
                self.run(words.chain([self.device(volume).into(), at.into()]), cancel).await
            }
            Way::Zfs { dataset } => {
                self.run(["zfs", "snapshot", &format!("{dataset}@{}", self.name)].map(OsString::from), cancel)
                    .await
            }
            Way::Command { create, .. } => {
                let words = self.scope().expand_list(create)?;
                self.run(words, cancel).await
            }
        }
    }

    /// Opens the roots in it. Each must be the live one of the same inode: anything else is a snapshot of something else. A command may also have
    /// made a copy.
    fn open(&self, roots: &[LiveRoot]) -> Result<Vec<Arc<Folder>>, SnapshotError> {
        let is_same_file_system = !matches!(self.settings.way, Way::Command { .. });
        let open = |root: &LiveRoot| {
            let path = self.path_of(root)?;
            let folder = Folder::open(&path).at("open", &path)?;
            let stat = folder.stat_self().at("look at", &path)?;
            let inode = stat.st_ino;
            let live = root.path.symlink_metadata().at("look at", &root.path)?;
            if !is_same_file_system && (stat.st_dev, inode) == (live.dev(), live.ino()) {
                return Err(SnapshotError::Live { path });
            }
            let is_empty = folder.names().at("read", &path)?.is_empty();
            if is_empty || (is_same_file_system && inode != root.inode) {
                return Err(SnapshotError::Other { path, root: root.path.clone() });
            }
            Ok(Arc::new(folder))
        };
        roots.iter().map(open).collect()
    }

    /// Removes it, whether it was made or not, and then the note.
    async fn remove_noted(mut self, note: &Path) -> Result<(), SnapshotError> {
        let lock = self.wait_for_commands(note).await?;
        let is_same = |note: &Path| Ok((note.metadata()?.ino(), lock.metadata()?.ino()));
        match is_same(note).map_err(|error: io::Error| error.kind()) {
            // Somebody else has removed it meanwhile.
            Ok((now, locked)) if now != locked => return Ok(()),
            Err(io::ErrorKind::NotFound) => return Ok(()),
            Ok(_) | Err(_) => {}
        }
        self.lock = Some(lock);
        self.remove().await?;
        std::fs::remove_file(note).at("remove", note)?;
        Ok(sync_folder(note.parent().unwrap_or(Path::new("/")))?)
    }

    async fn remove(&self) -> Result<(), SnapshotError> {
        // A removal is not given up when the run is.
        let go_on = CancellationToken::new();
        match &self.settings.way {
            Way::Btrfs { folder } => {
                // Where it is not mounted, nothing is there, and the snapshot is.
                let on = file_system_of(folder)?.id;
                if self.folder_is_on.as_ref().is_some_and(|noted| *noted != on) {
                    return Err(SnapshotError::NotMounted { folder: folder.clone() });
                }
                let path = folder.join(&self.name);
                if is_there(&path)? {
                    let words = ["btrfs", "subvolume", "delete", "--commit-after"].map(OsString::from);
                    self.run(words.into_iter().chain([path.clone().into()]), &go_on).await?;
                }
                gone(&path)
            }
            Way::Lvm { volume, folder, .. } => {
                let at = folder.join(&self.name);
                if is_there(&at)? {
                    if is_mount_point(&at)? {
                        self.run([OsString::from("umount"), at.clone().into()], &go_on).await?;
                    }
                    std::fs::remove_dir(&at).at("remove", &at)?;
                }
                let group = volume.split_once('/').map_or("", |(group, _)| group);
                let snapshot = format!("{group}/{}", self.name);
                let listed = ["lvs", "--noheadings", "--options", "lv_name", &snapshot].map(OsString::from);
                if self.is_listed(listed, "Failed to find logical volume").await? {
                    self.run(["lvremove", "--yes", &snapshot].map(OsString::from), &go_on).await?;
                }
                Ok(())
            }
            Way::Zfs { dataset } => {
                let snapshot = format!("{dataset}@{}", self.name);
                // A pool that is not imported has no datasets, and keeps its snapshots.
                self.run(["zfs", "list", "-H", "-o", "name", dataset].map(OsString::from), &go_on).await?;
                let listed = ["zfs", "list", "-H", "-o", "name", "-t", "snapshot", &snapshot];
                if self.is_listed(listed.map(OsString::from), "does not exist").await? {
                    self.run(["zfs", "destroy", &snapshot].map(OsString::from), &go_on).await?;
                }
                Ok(())
            }
            Way::Command { remove, .. } => {
                let words = self.scope().expand_list(remove)?;
                self.run(words, &go_on).await
            }
        }
    }

    /// Whether a program lists the snapshot. `none` is what it says when there is none, which its exit code alone does not tell.
    async fn is_listed(
        &self,
        words: impl IntoIterator<Item = OsString>,
        none: &str,
    ) -> Result<bool, SnapshotError> {
        match self.run(words, &CancellationToken::new()).await {
            Ok(()) => Ok(true),
            Err(SnapshotError::Command(CommandError::Failed { output, .. })) if output.contains(none) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    async fn run(
        &self,
        words: impl IntoIterator<Item = OsString>,
        cancel: &CancellationToken,
    ) -> Result<(), SnapshotError> {
        // The messages that are looked for are the untranslated ones.
        let environment = vec![("LC_ALL".to_owned(), OsString::from("C.UTF-8"))];
        let input = self.lock.as_ref().and_then(|lock| lock.try_clone().ok());
        let call = Call {
            argv: words.into_iter().collect(),
            input,
            environment,
            limit: self.settings.timeout,
            ..Call::default()
        };
        Ok(command::run(call, &[0], cancel).await.map(drop)?)
    }
}

fn is_there(path: &Path) -> Result<bool, SnapshotError> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Err::<(), _>(error).at("look at", path).expect_err("it is one").into()),
    }
}

fn gone(path: &Path) -> Result<(), SnapshotError> {
    if is_there(path)? {
        return Err(SnapshotError::StillThere { what: path.display().to_string() });
    }
    Ok(())
}

fn is_mount_point(path: &Path) -> Result<bool, SnapshotError> {
    let device = |path: &Path| path.symlink_metadata().map(|stat| stat.dev());
    let above = path.parent().unwrap_or(Path::new("/"));
    Ok(device(path).at("look at", path)? != device(above).at("look at", above)?)
}

#[cfg(test)]
mod tests;
