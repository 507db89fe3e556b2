//! The sorted walk over a repository's roots: every entry once, in tree order, through held folders.
//!
//! The walk also sees the mark's own files (a database's snapshot, a `backup_label`): they lie in a folder of the same
//! shape as the tree and take the place of live files of the same path.

use std::{collections::VecDeque, io, sync::Arc};

use assay_common::{
    confined::Folder,
    fault::{Point, at},
    manifest::{Entry, EntryKind, Header},
    path::{PathFault, TreePath},
    profile::FileRules,
    sqlite,
};
use rustix::fs::{FileType, Stat};

use crate::file_system::FileSystems;

/// How often a name is looked at that is another kind of thing each time.
const LOOKS: usize = 5;

/// An entry that the walk found.
#[derive(Debug)]
pub struct Found {
    /// Where it is in the tree.
    pub path: TreePath,
    /// The folder that holds it, and the name in it. The root folder of the tree has neither.
    pub place: Option<(Arc<Folder>, Vec<u8>)>,
    /// What it is; `None` for a folder that exists in the tree only (above several roots).
    pub stat: Option<Stat>,
    /// A folder itself, as it was opened.
    pub own_folder: Option<Arc<Folder>>,
}

impl Found {
    /// The entry as it is now, whatever kind of thing it is, without content.
    ///
    /// # Errors
    /// When it cannot be looked at, or when it is gone.
    pub fn look(&self) -> io::Result<Entry> {
        let mut entry = describe(self);
        if let Some(folder) = &self.own_folder {
            entry.xattrs = folder.xattrs(b"")?;
        } else if let Some((folder, name)) = &self.place {
            let held = folder.hold(name)?;
            describe_stat(&mut entry, &held.stat()?);
            if entry.kind() == EntryKind::Symlink {
                entry.link_target = held.read_link()?;
            }
            entry.xattrs = held.xattrs()?;
        }
        Ok(entry)
    }

    /// The entry of a thing without content, as it is now, with a link's text and its extended attributes. All of it is of one and
    /// the same thing, whatever its name leads to meanwhile; `stat` says which that was. `None` for a file, which is to be read.
    ///
    /// # Errors
    /// When it cannot be looked at, or when it is gone.
    pub fn complete(&mut self) -> io::Result<Option<Entry>> {
        let mut entry = describe(self);
        if let Some(folder) = &self.own_folder {
            entry.xattrs = folder.xattrs(b"")?;
            return Ok(Some(entry));
        }
        let Some((folder, name)) = &self.place else {
            return Ok(Some(entry));
        };
        let held = folder.hold(name)?;
        let stat = held.stat()?;
        self.stat = Some(stat);
        entry = describe(self);
        match entry.kind() {
            EntryKind::File => return Ok(None),
            // What is in it was not walked.
            EntryKind::Directory => return Err(io::ErrorKind::NotFound.into()),
            EntryKind::Symlink => entry.link_target = held.read_link()?,
            _ => {}
        }
        entry.xattrs = held.xattrs()?;
        Ok(Some(entry))
    }
}

/// What a walk goes by beside names.
#[derive(Debug, Clone, Default)]
pub struct Ground {
    /// The file systems that are met.
    pub file_systems: Arc<FileSystems>,
    /// For each root, in the header's order: what is mounted below it is left out. Empty: all of it is copied.
    pub one_file_system: Vec<bool>,
    /// The live roots, in the header's order, when a snapshot is walked. Empty: the live roots are walked.
    pub live: Vec<Arc<Folder>>,
}

/// Why the walk cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScanError {
    /// An entry cannot be read.
    #[error("{path}: {source}")]
    Entry {
        /// The entry.
        path: String,
        /// What the file system said.
        source: io::Error,
    },
    /// Something is mounted there that holds no files.
    #[error(
        "{path}: a file system of the kind {kind} is mounted there, whose files the kernel makes up when they are read"
    )]
    Pseudo {
        /// The folder.
        path: String,
        /// The kind, as `mount` names it.
        kind: String,
    },
    /// A snapshot has an empty folder there.
    #[error(
        "{path}: this is a subvolume of its own, and a snapshot of the subvolume around it does not have its content"
    )]
    Subvolume {
        /// The folder.
        path: String,
    },
    /// A name that no manifest can hold.
    #[error("{path}: the path {fault}")]
    Path {
        /// The folder of the name.
        path: String,
        /// What is wrong with it.
        fault: PathFault,
    },
}

struct Level {
    path: TreePath,
    live: Option<Arc<Folder>>,
    mark: Option<Arc<Folder>>,
    names: VecDeque<Vec<u8>>,
    /// The device of the live folder.
    device: u64,
    /// Folders on other devices are not entered.
    one_file_system: bool,
}

/// A walk that is under way.
pub struct Scan {
    rules: Arc<FileRules>,
    /// Roots by the folder of the tree that they are, and whether each is copied without what is mounted below it.
    roots: Vec<(String, Arc<Folder>, bool)>,
    /// The live roots by the same folders, when a snapshot is walked.
    live_roots: Vec<(String, Arc<Folder>)>,
    file_systems: Arc<FileSystems>,
    mark: Option<Arc<Folder>>,
    levels: Vec<Level>,
    started: bool,
    vanished: u64,
}

impl Scan {
    /// A walk over `roots`, which are open in the order of the header.
    pub fn new(
        header: &Header,
        roots: &[Arc<Folder>],
        mark: Option<Arc<Folder>>,
        rules: Arc<FileRules>,
        ground: &Ground,
    ) -> Self {
        let names = header.roots.iter().map(|root| root.subdirectory.clone());
        let live_roots = names.clone().zip(ground.live.iter().cloned()).collect();
        let one = ground.one_file_system.iter().copied().chain(std::iter::repeat(false));
        let mut roots: Vec<_> =
            names.zip(roots.iter().cloned()).zip(one).map(|((name, root), one)| (name, root, one)).collect();
        roots.sort_by(|left, right| left.0.cmp(&right.0));
        let file_systems = Arc::clone(&ground.file_systems);
        Self { rules, roots, live_roots, file_systems, mark, levels: Vec::new(), started: false, vanished: 0 }
    }

    /// Entries that were listed and gone when they were looked at.
    pub fn vanished(&self) -> u64 {
        self.vanished
    }

    /// The next entry, or `None` at the end.
    ///
    /// # Errors
    /// When a folder cannot be read: what cannot be seen cannot be called backed up.
    pub fn next_entry(&mut self) -> Result<Option<Found>, ScanError> {
        if !self.started {
            self.started = true;
            return self.start().map(Some);
        }
        loop {
            let Some(level) = self.levels.last_mut() else {
                return Ok(None);
            };
            let Some(name) = level.names.pop_front() else {
                self.levels.pop();
                continue;
            };
            if let Some(found) = self.visit(name)? {
                return Ok(Some(found));
            }
        }
    }

    /// The path relative to its root, as the profile's patterns have it.
    pub fn in_root(&self, path: &TreePath) -> TreePath {
        if self.roots.len() == 1 && self.roots[0].0.is_empty() {
            return path.clone();
        }
        let rest = path.as_bytes().splitn(2, |byte| *byte == b'/').nth(1).unwrap_or_default();
        TreePath::parse(rest).expect("the end of a path is a path")
    }

    fn start(&mut self) -> Result<Found, ScanError> {
        let path = TreePath::root();
        let mark = self.mark.clone();
        let single = self.roots.len() == 1 && self.roots[0].0.is_empty();
        if single {
            let (_, live, one_file_system) = self.roots[0].clone();
            let stat = live.stat_self().map_err(|source| entry_error(&path, source))?;
            self.look_at(&path, &live, &stat)?;
            self.enter(path.clone(), Some(Arc::clone(&live)), mark, (stat.st_dev, one_file_system))?;
            return Ok(Found { path, place: None, stat: Some(stat), own_folder: Some(live) });
        }
        let names = self.roots.iter().map(|(name, ..)| name.clone().into_bytes()).collect();
        let (device, one_file_system) = (0, false);
        self.levels.push(Level { path: path.clone(), live: None, mark, names, device, one_file_system });
        Ok(Found { path, place: None, stat: None, own_folder: None })
    }

    /// Takes note of the file system that a folder is on. What is no place for files is an error.
    fn look_at(&self, path: &TreePath, live: &Folder, stat: &Stat) -> Result<(), ScanError> {
        let found = self
            .file_systems
            .of(live.as_descriptor(), stat.st_dev)
            .map_err(|source| entry_error(path, source))?;
        if found.is_pseudo {
            return Err(ScanError::Pseudo { path: path.to_string(), kind: found.kind });
        }
        Ok(())
    }

    /// True for the empty folder of a snapshot of btrfs that stands for a subvolume of the live tree. In the live tree there are such folders as
    /// well, where it began as a snapshot itself: those are copied as they are.
    fn lacks_subvolume(&self, path: &TreePath, stat: &Stat) -> Result<bool, ScanError> {
        if self.live_roots.is_empty() || !self.file_systems.is_in_place_of_subvolume(stat) {
            return Ok(false);
        }
        let look = |root: &Folder| root.open_folder_below(&self.in_root(path))?.stat_self();
        match self.live_root(path).map(look) {
            Some(Ok(live)) => Ok(live.st_ino != stat.st_ino),
            // It is gone by now, and was there when the snapshot was made.
            None => Ok(true),
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Some(Err(source)) => Err(entry_error(path, source)),
        }
    }

    /// The live folder of a subvolume for which an empty one stands in a snapshot, while there is one.
    fn live_subvolume(&self, path: &TreePath, held: &Folder, stat: &Stat) -> io::Result<Option<Folder>> {
        self.file_systems.of(held.as_descriptor(), stat.st_dev)?;
        if !self.file_systems.is_in_place_of_subvolume(stat) {
            return Ok(None);
        }
        match self.live_root(path).map(|root| root.open_folder_below(&self.in_root(path))) {
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(error),
            found => Ok(found.and_then(Result::ok)),
        }
    }

    /// The live root that a path is in, when a snapshot is walked.
    fn live_root(&self, path: &TreePath) -> Option<&Folder> {
        let is_single = self.live_roots.len() == 1 && self.live_roots[0].0.is_empty();
        let first = path.as_bytes().split(|byte| *byte == b'/').next().unwrap_or_default();
        let mut roots = self.live_roots.iter();
        roots.find(|(folder, _)| is_single || folder.as_bytes() == first).map(|(_, root)| &**root)
    }

    fn enter(
        &mut self,
        path: TreePath,
        live: Option<Arc<Folder>>,
        mark: Option<Arc<Folder>>,
        (device, one_file_system): (u64, bool),
    ) -> Result<(), ScanError> {
        let list = |folder: &Option<Arc<Folder>>| match folder {
            Some(folder) => at(Point::WalkFolder)
                .and_then(|()| folder.names())
                .map_err(|source| entry_error(&path, source)),
            None => Ok(Vec::new()),
        };
        let mut names = list(&live)?;
        let of_mark = list(&mark)?;
        if !of_mark.is_empty() {
            names.extend(of_mark);
            names.sort_unstable();
            names.dedup();
        }
        self.levels.push(Level { path, live, mark, names: names.into(), device, one_file_system });
        Ok(())
    }

    fn visit(&mut self, name: Vec<u8>) -> Result<Option<Found>, ScanError> {
        let level = self.levels.last().expect("the caller holds a level");
        let path =
            level.path.join(&name).map_err(|fault| ScanError::Path { path: level.path.short(), fault })?;
        // Above several roots only the roots themselves are there.
        if let (None, true) = (&level.live, level.path.is_root())
            && let Some((_, root, one_file_system)) =
                self.roots.iter().find(|(folder, ..)| folder.as_bytes() == name).cloned()
        {
            let mark = subfolder(level.mark.as_ref(), &name);
            let stat = root.stat_self().map_err(|source| entry_error(&path, source))?;
            self.look_at(&path, &root, &stat)?;
            self.enter(path.clone(), Some(Arc::clone(&root)), mark, (stat.st_dev, one_file_system))?;
            // The parent has no folder of its own: metadata comes from the root's descriptor.
            return Ok(Some(Found { path, place: None, stat: Some(stat), own_folder: Some(root) }));
        }
        let of_mark = level.mark.as_ref().and_then(|mark| Some((Arc::clone(mark), mark.stat(&name).ok()?)));
        let is_folder = |stat: &Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let of_mark = match of_mark {
            // A file of the mark stands for the live one; a folder of the mark only leads to such files.
            Some((mark, stat)) if !is_folder(&stat) => {
                return Ok(Some(Found {
                    path,
                    place: Some((mark, name)),
                    stat: Some(stat),
                    own_folder: None,
                }));
            }
            of_mark => of_mark,
        };
        if self.rules.is_excluded(&self.in_root(&path)) {
            return Ok(None);
        }
        let (level_device, one_file_system) = (level.device, level.one_file_system);
        let (live_level, mark_level) = (level.live.clone(), level.mark.clone());
        for _ in 0..LOOKS {
            let live = live_level.as_ref().map(|live| (live, live.stat(&name)));
            let (folder, stat) = match (live, &of_mark) {
                (Some((live, Ok(stat))), _) => {
                    let is_late = self.rules.has_databases()
                        && is_late_database(mark_level.as_deref(), live, &name, &stat)
                            .map_err(|source| entry_error(&path, source))?;
                    if is_late {
                        break;
                    }
                    (live, stat)
                }
                (_, Some((mark, stat))) => (mark, *stat),
                (Some((_, Err(error))), None) if error.kind() == io::ErrorKind::NotFound => break,
                (Some((_, Err(source))), None) => return Err(entry_error(&path, source)),
                (None, None) => return Ok(None),
            };
            let place = Some((Arc::clone(folder), name.clone()));
            if !is_folder(&stat) {
                return Ok(Some(Found { path, place, stat: Some(stat), own_folder: None }));
            }
            let live = match live_level.as_ref().map(|live| live.open_folder(&name)) {
                None => None,
                Some(Ok(live)) => Some(Arc::new(live)),
                Some(Err(error)) if is_another_kind(&error) && of_mark.is_none() => continue,
                // Gone, or another kind of thing by now: the mark's folder of that name is still there.
                Some(Err(error)) if error.kind() == io::ErrorKind::NotFound || is_another_kind(&error) => {
                    None
                }
                Some(Err(source)) => return Err(entry_error(&path, source)),
            };
            let mark = subfolder(mark_level.as_ref(), &name);
            if live.is_none() && mark.is_none() {
                break;
            }
            // The run copies the file that it opened, whatever had the name before.
            let (stat, live, device) = match live {
                None => (stat, None, level_device),
                Some(live) => {
                    let stat = live.stat_self().map_err(|source| entry_error(&path, source))?;
                    (stat, Some(live), stat.st_dev)
                }
            };
            let (mut stat, mut own_folder) = (stat, live.clone().or_else(|| mark.clone()));
            let mut entered = live;
            if device != level_device
                && let Some(live) = entered.take()
            {
                // As with rsync -x: the folder itself, as it is with what is mounted there, and nothing in it.
                if !one_file_system {
                    self.look_at(&path, &live, &stat)?;
                    if self.lacks_subvolume(&path, &stat)? {
                        return Err(ScanError::Subvolume { path: path.to_string() });
                    }
                    entered = Some(live);
                } else if let Some(folder) =
                    self.live_subvolume(&path, &live, &stat).map_err(|source| entry_error(&path, source))?
                {
                    // What a snapshot has in its place is another folder.
                    stat = folder.stat_self().map_err(|source| entry_error(&path, source))?;
                    own_folder = Some(Arc::new(folder));
                }
            }
            self.enter(path.clone(), entered, mark, (device, one_file_system))?;
            return Ok(Some(Found { path, place, stat: Some(stat), own_folder }));
        }
        self.vanished += 1;
        Ok(None)
    }
}

/// True for a SQLite database, or a file beside one, that the mark has not copied: it appeared after the mark, which the backup
/// stands for, and read as a plain file it would be torn.
fn is_late_database(mark: Option<&Folder>, live: &Folder, name: &[u8], stat: &Stat) -> io::Result<bool> {
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(false);
    }
    let begins = |name: &[u8]| match live.open_file(name) {
        Ok(file) => sqlite::is_database(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    };
    for ending in sqlite::SIDE_FILES {
        if let Some(database) = name.strip_suffix(ending.as_bytes()).filter(|it| !it.is_empty()) {
            if mark.is_some_and(|mark| mark.stat(database).is_ok()) {
                return Ok(true);
            }
            return begins(database);
        }
    }
    if !u64::try_from(stat.st_size).is_ok_and(sqlite::may_be_database) || !begins(name)? {
        return Ok(false);
    }
    tracing::debug!(name = %String::from_utf8_lossy(name), "a database that the mark has not copied is left out");
    Ok(true)
}

/// What a call for a folder says of something else.
fn is_another_kind(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(rustix::io::Errno::from_raw_os_error),
        Some(rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP)
    )
}

fn subfolder(folder: Option<&Arc<Folder>>, name: &[u8]) -> Option<Arc<Folder>> {
    folder?.open_folder(name).ok().map(Arc::new)
}

fn entry_error(path: &TreePath, source: io::Error) -> ScanError {
    ScanError::Entry { path: path.to_string(), source }
}

/// The entry of a thing that was found, without a file's content and without extended attributes.
pub fn describe(found: &Found) -> Entry {
    let mut entry = Entry { path: found.path.as_bytes().to_vec(), ..Default::default() };
    let Some(stat) = &found.stat else {
        entry.set_kind(EntryKind::Directory);
        entry.mode = 0o755;
        return entry;
    };
    describe_stat(&mut entry, stat);
    entry
}

/// Fills in what a stat says.
pub fn describe_stat(entry: &mut Entry, stat: &Stat) {
    entry.set_kind(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => EntryKind::Directory,
        FileType::Symlink => EntryKind::Symlink,
        FileType::Fifo => EntryKind::Fifo,
        FileType::Socket => EntryKind::Socket,
        FileType::CharacterDevice => EntryKind::CharDevice,
        FileType::BlockDevice => EntryKind::BlockDevice,
        _ => EntryKind::File,
    });
    entry.mode = if entry.kind() == EntryKind::Symlink { 0o777 } else { stat.st_mode & 0o7777 };
    entry.uid = stat.st_uid;
    entry.gid = stat.st_gid;
    entry.mtime_seconds = stat.st_mtime;
    entry.mtime_nanos = stat.st_mtime_nsec as u32;
    if matches!(entry.kind(), EntryKind::CharDevice | EntryKind::BlockDevice) {
        entry.device_major = rustix::fs::major(stat.st_rdev);
        entry.device_minor = rustix::fs::minor(stat.st_rdev);
    }
}
