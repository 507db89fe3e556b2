//! The last stage: brings each entry into the destination, in the order of the manifest.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, ErrorKind},
    sync::{Arc, mpsc::Receiver},
};

use rustix::fs::FileType;

use super::{
    Destination, Options, Pieces, Progress, Report, RestoreError, SET_ASIDE, Selection,
    compare::{Action, From, Job},
    destination::{SCRATCH, is_of_file_system},
    entry_error,
    fit::Fit,
    part,
};
use crate::{
    confined::Folder,
    digest::ContentDigest,
    error::without_codes,
    manifest::{Entry, EntryKind, Piece, content_pieces},
    path::{TreePath, display_bytes},
    uncached,
};

/// Entries that the comparison may be ahead by.
pub(super) const JOBS_AHEAD: usize = 256;
/// What SQLite keeps beside a database: its write-ahead log with an index of it, and a rollback journal.
const SIDE_FILES: [&str; 3] = ["-wal", "-shm", "-journal"];
/// Lost files that are named.
const NAMED: usize = 100;

const IN_ITS_PLACE: &str = "a folder with content stands in its place: say --delete to remove it";

const ONLY_ROOT: &str = "only root can make a device: run the restore as root";

/// A folder above the place where the walk stands.
struct Level {
    path: TreePath,
    entry: Entry,
    folder: Arc<Folder>,
    /// It gets its metadata: it is asked for, or was not there.
    ours: bool,
    /// It is asked for with all that is in it: these are its names.
    names: Option<Vec<Vec<u8>>>,
    /// Files in it that are there now as they were sealed.
    restored: Vec<Vec<u8>>,
}

struct Apply<'a> {
    destination: &'a Destination,
    options: &'a Options,
    pieces: Pieces,
    levels: Vec<Level>,
    report: Report,
    /// Files that are not there as they were sealed: no further name is given to what stands in their place.
    not_made: HashSet<Vec<u8>>,
    fit: Fit,
}

pub(super) fn apply(
    (destination, fit): (&Destination, Fit),
    options: &Options,
    jobs: Receiver<Job>,
    pieces: Pieces,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, RestoreError> {
    let mut apply = Apply {
        destination,
        options,
        pieces,
        levels: Vec::new(),
        report: Report::default(),
        not_made: HashSet::new(),
        fit,
    };
    for job in jobs {
        apply.take(job)?;
        apply.report.progress.fetched_bytes = apply.pieces.fetched_bytes();
        progress(apply.report.progress);
    }
    while !apply.levels.is_empty() {
        apply.leave()?;
    }
    apply.report.beyond_user = apply.fit.beyond_user();
    apply.report.left_out = apply.fit.left_out();
    Ok(apply.report)
}

impl Apply<'_> {
    /// Notes an entry that the kernel does not let this process make or change, and goes on: a flag of the file system (chattr +i), or
    /// another owner. False when it was noted.
    fn unless_denied(
        &mut self,
        path: &TreePath,
        done: Result<bool, RestoreError>,
    ) -> Result<bool, RestoreError> {
        match done {
            Err(RestoreError::Entry { source, .. }) if source.kind() == ErrorKind::PermissionDenied => {
                let why = if self.fit.is_limited() {
                    format!("{source}: this user may not change it")
                } else {
                    format!(
                        "{source}: lsattr may show a flag that keeps it as it is, which chattr -i -a takes away"
                    )
                };
                self.lose(path, why);
                Ok(false)
            }
            done => done,
        }
    }

    fn take(&mut self, job: Job) -> Result<(), RestoreError> {
        let job = Job { entry: self.fit.fit(job.entry), ..job };
        let parent = job.path.parent();
        while self.levels.last().is_some_and(|level| Some(level.path.as_bytes()) != parent) {
            self.leave()?;
        }
        if parent.is_some_and(<[u8]>::is_empty) && job.path.name() == SCRATCH.as_bytes() {
            return Err(RestoreError::Scratch);
        }
        if let Some(Level { names: Some(names), .. }) = self.levels.last_mut() {
            names.push(job.path.name().to_vec());
        }
        let wanted = job.selection == Selection::Wanted;
        if job.entry.kind() == EntryKind::Directory {
            self.enter(job)?;
        } else {
            let folder = Arc::clone(&self.levels.last().expect("the root comes first").folder);
            let size = job.entry.size;
            match job.action {
                Action::Right => {
                    let done = put_right(&folder, &job.path, &job.entry).map(|()| true);
                    if self.unless_denied(&job.path, done)? {
                        self.restored(&job.path);
                        self.report.files_right += 1;
                    }
                    self.report.progress.bytes += size;
                }
                Action::Make(from) => {
                    if self.make(&folder, job.place, &job.path, &job.entry, &from)? {
                        self.restored(&job.path);
                        self.report.files_made += 1;
                        self.report.progress.bytes += size;
                    }
                }
                Action::Other if job.entry.kind() == EntryKind::Hardlink => {
                    let done = self.link(&folder, &job.path, &job.entry).map(|()| true);
                    self.unless_denied(&job.path, done)?;
                }
                Action::Other
                    if self.fit.is_limited()
                        && matches!(job.entry.kind(), EntryKind::BlockDevice | EntryKind::CharDevice) =>
                {
                    self.lose(&job.path, ONLY_ROOT.to_owned());
                }
                Action::Other => {
                    let done = self.special(&folder, &job.path, &job.entry).map(|()| true);
                    self.unless_denied(&job.path, done)?;
                }
            }
        }
        self.report.progress.entries += u64::from(wanted);
        Ok(())
    }

    fn restored(&mut self, path: &TreePath) {
        self.levels.last_mut().expect("the root comes first").restored.push(path.name().to_vec());
    }

    /// SQLite applies a log that lies beside a database to it (sqlite.org/lockingv3.html, "hot journals"; sqlite.org/wal.html), and what is
    /// left of the database that stood here before would spoil the one that was restored. Such files are not lost: they get other names.
    fn set_aside(&mut self, level: &Level) -> Result<(), RestoreError> {
        if level.restored.is_empty() {
            return Ok(());
        }
        let fault = || entry_error(&level.path);
        for name in level.folder.names().map_err(fault())? {
            let has = |names: &Vec<Vec<u8>>, name: &[u8]| {
                names.binary_search_by(|known| known.as_slice().cmp(name)).is_ok()
            };
            let Some(database) = SIDE_FILES.iter().find_map(|end| name.strip_suffix(end.as_bytes())) else {
                continue;
            };
            let is_sealed =
                has(&level.restored, &name) || level.names.as_ref().is_some_and(|names| has(names, &name));
            if is_sealed
                || !has(&level.restored, database)
                || !is_sqlite(&level.folder, database).map_err(fault())?
            {
                continue;
            }
            if self.options.delete && level.names.is_some() {
                // It goes with all that the generation has not.
                continue;
            }
            let mut aside = [&name, SET_ASIDE.as_bytes()].concat();
            while level.folder.stat(&aside).is_ok() && aside.len() < 200 {
                aside.extend_from_slice(SET_ASIDE.as_bytes());
            }
            level.folder.rename(&name, &level.folder, &aside).map_err(fault())?;
            if let (Ok(before), Ok(now)) = (level.path.join(&name), level.path.join(&aside)) {
                self.report.set_aside.push((before, now));
            }
        }
        Ok(())
    }

    /// Makes or opens a folder. Its metadata comes when the walk leaves it.
    fn enter(&mut self, job: Job) -> Result<(), RestoreError> {
        let Job { path, entry, selection, .. } = job;
        let mut ours = selection == Selection::Wanted;
        let folder = match self.levels.last() {
            None => Arc::new(self.destination.root.try_clone().map_err(entry_error(&path))?),
            Some(level) => {
                let above = Arc::clone(&level.folder);
                let name = path.name();
                match above.stat(name) {
                    Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {}
                    Ok(_) => {
                        above.remove_file(name).map_err(entry_error(&path))?;
                        ours = true;
                    }
                    Err(error) if error.kind() == ErrorKind::NotFound => ours = true,
                    Err(error) => return Err(entry_error(&path)(error)),
                }
                let folder = match above.create_folder(name) {
                    Err(error) if error.kind() == ErrorKind::AlreadyExists => above.open_folder(name),
                    created => created,
                };
                Arc::new(folder.map_err(entry_error(&path))?)
            }
        };
        let names = (selection == Selection::Wanted).then(Vec::new);
        self.levels.push(Level { path, entry, folder, ours, names, restored: Vec::new() });
        Ok(())
    }

    /// Deals with what the deepest folder has beyond the generation, and gives it its metadata.
    fn leave(&mut self) -> Result<(), RestoreError> {
        let mut level = self.levels.pop().expect("the caller looked");
        level.restored.sort_unstable();
        level.names.iter_mut().for_each(|names| names.sort_unstable());
        self.set_aside(&level)?;
        if let Some(names) = level.names {
            for name in level.folder.names().map_err(entry_error(&level.path))? {
                let is_scratch = level.path.is_root() && name == SCRATCH.as_bytes();
                let is_given = level.path.is_root() && is_of_file_system(self.destination.path(), &name);
                if is_scratch || is_given || names.binary_search(&name).is_ok() {
                    continue;
                }
                if self.options.delete {
                    let path = level.path.join(&name).unwrap_or_else(|_| level.path.clone());
                    let done = level.folder.remove_all(&name).map(|()| true).map_err(entry_error(&path));
                    self.report.deleted += u64::from(self.unless_denied(&path, done)?);
                } else {
                    self.report.left_over += 1;
                }
            }
        }
        if level.ours {
            let done = level.folder.set_own_metadata(&level.entry).map(|()| true);
            self.unless_denied(&level.path, done.map_err(entry_error(&level.path)))?;
        }
        Ok(())
    }

    /// Puts a file together and lets it take its name. False when the target has lost some of it: then nothing is changed.
    fn make(
        &mut self,
        folder: &Folder,
        place: u64,
        path: &TreePath,
        entry: &Entry,
        from: &[From],
    ) -> Result<bool, RestoreError> {
        let failed = |error| entry_error(path)(error);
        let scratch = &self.destination.scratch;
        let name = part::part_name(place);
        let part = if from.contains(&From::Part) {
            part::take_up(scratch, place, entry)
        } else {
            part::create(scratch, place, entry)
        };
        let part = part.map_err(failed)?;
        let changes = || failed(io::Error::other("it changes while it is restored"));
        let mut old = None;
        let mut from = from.iter();
        let mut lost = None;
        for (offset, piece, digest) in content_pieces(entry) {
            let (Piece::Data { bytes }, Some(digest)) = (piece, digest) else { continue };
            let bytes = bytes as usize;
            match from.next().copied().unwrap_or(From::Supply) {
                // What was found when it was compared is held against its digest once more: from here on nothing else looks at it.
                From::Part => drop(read(&part, offset, bytes, digest).ok_or_else(changes)?),
                From::Old => {
                    if old.is_none() {
                        old = Some(folder.open_file(path.name()).map_err(failed)?);
                    }
                    let content = old.as_ref().and_then(|old| read(old, offset, bytes, digest));
                    let content = content.ok_or_else(changes)?;
                    uncached::write_all_at(&part, &content, offset).map_err(failed)?;
                }
                From::Supply => match self.pieces.next(bytes, digest)? {
                    Ok(content) => uncached::write_all_at(&part, content, offset).map_err(failed)?,
                    Err(why) => lost = Some(told(&why)),
                },
            }
        }
        if lost.is_none() {
            let room = self.make_room(folder, path, true);
            let is_denied = matches!(&room, Err(RestoreError::Entry { source, .. }) if source.kind() == ErrorKind::PermissionDenied);
            if is_denied {
                scratch.remove_file(&name).map_err(failed)?;
                return self.unless_denied(path, room);
            }
            if !room? {
                lost = Some(IN_ITS_PLACE.to_owned());
            }
        }
        if let Some(why) = lost {
            scratch.remove_file(&name).map_err(failed)?;
            self.lose(path, why);
            return Ok(false);
        }
        scratch.set_metadata(&name, entry).map_err(failed)?;
        let replaced = scratch.replace(&name, folder, path.name()).map(|()| true).map_err(failed);
        let is_there = self.unless_denied(path, replaced)?;
        if !is_there {
            scratch.remove_file(&name).map_err(failed)?;
        }
        Ok(is_there)
    }

    /// A further name of a file that came before.
    fn link(&mut self, folder: &Folder, path: &TreePath, entry: &Entry) -> Result<(), RestoreError> {
        let failed = |error| entry_error(path)(error);
        let first = TreePath::parse(&entry.link_target).expect("the entry was validated");
        if self.not_made.contains(first.as_bytes()) {
            self.lose(path, format!("it is a further name of {first}, which is not there as it was sealed"));
            return Ok(());
        }
        let above = TreePath::parse(first.parent().expect("not the root")).expect("a prefix of a path");
        let above = self.destination.root.open_folder_below(&above).map_err(failed)?;
        let wanted = above.stat(first.name()).map_err(failed)?;
        if let Ok(found) = folder.stat(path.name()) {
            if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino) {
                return Ok(());
            }
            if !self.make_room(folder, path, false)? {
                self.lose(path, IN_ITS_PLACE.to_owned());
                return Ok(());
            }
        }
        above.link(first.name(), folder, path.name()).map_err(failed)
    }

    /// Notes an entry that is not restored.
    fn lose(&mut self, path: &TreePath, why: String) {
        self.not_made.insert(path.as_bytes().to_vec());
        self.report.lost_files += 1;
        if self.report.lost.len() < NAMED {
            self.report.lost.push((path.clone(), without_codes(&why)));
        }
    }

    /// Clears away what has the name of `path` and is something else; a file may stay where another is to be moved over it. False
    /// for a folder with content, which goes only when the operator has said that what does not belong goes.
    fn make_room(&self, folder: &Folder, path: &TreePath, for_a_move: bool) -> Result<bool, RestoreError> {
        let failed = |error| entry_error(path)(error);
        let found = match folder.stat(path.name()) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
            found => FileType::from_raw_mode(found.map_err(failed)?.st_mode),
        };
        if found != FileType::Directory {
            return if for_a_move {
                Ok(true)
            } else {
                folder.remove_file(path.name()).map(|()| true).map_err(failed)
            };
        }
        let empty =
            folder.open_folder(path.name()).and_then(|inner| inner.names()).map_err(failed)?.is_empty();
        if !empty && !self.options.delete {
            return Ok(false);
        }
        folder.remove_all(path.name()).map(|()| true).map_err(failed)
    }

    /// A symbolic link, a FIFO, a socket or a device.
    fn special(&mut self, folder: &Folder, path: &TreePath, entry: &Entry) -> Result<(), RestoreError> {
        let failed = |error| entry_error(path)(error);
        if is_same_special(folder, path, entry) {
            return put_right(folder, path, entry);
        }
        if !self.make_room(folder, path, false)? {
            self.lose(path, IN_ITS_PLACE.to_owned());
            return Ok(());
        }
        folder
            .create_special(path.name(), entry)
            .and_then(|()| folder.set_metadata(path.name(), entry))
            .map_err(failed)
    }
}

/// What the target says of what it has lost, on one line and not too long.
fn told(why: &str) -> String {
    display_bytes(why.as_bytes()).chars().take(300).collect()
}

/// The piece of `file` at `offset`, if it has this digest.
fn read(file: &File, offset: u64, bytes: usize, digest: ContentDigest) -> Option<Vec<u8>> {
    let mut content = vec![0; bytes];
    let got = uncached::read_full_at(file, &mut content, offset).ok()?;
    (got == bytes && ContentDigest::of(&content) == digest).then_some(content)
}

fn is_same_special(folder: &Folder, path: &TreePath, entry: &Entry) -> bool {
    let Ok(stat) = folder.stat(path.name()) else { return false };
    let device = rustix::fs::makedev(entry.device_major, entry.device_minor);
    match (entry.kind(), FileType::from_raw_mode(stat.st_mode)) {
        (EntryKind::Symlink, FileType::Symlink) => {
            folder.read_link(path.name()).is_ok_and(|text| text == entry.link_target)
        }
        (EntryKind::Fifo, FileType::Fifo) | (EntryKind::Socket, FileType::Socket) => stat.st_nlink == 1,
        (EntryKind::CharDevice, FileType::CharacterDevice)
        | (EntryKind::BlockDevice, FileType::BlockDevice) => stat.st_rdev == device && stat.st_nlink == 1,
        _ => false,
    }
}

/// Gives what is otherwise right its attributes, owner, mode and times.
fn put_right(folder: &Folder, path: &TreePath, entry: &Entry) -> Result<(), RestoreError> {
    folder.set_metadata(path.name(), entry).map_err(entry_error(path))
}

/// Whether a file is a SQLite database, by its header (sqlite.org/fileformat2.html, 1.3).
fn is_sqlite(folder: &Folder, name: &[u8]) -> io::Result<bool> {
    const MAGIC: &[u8; 16] = b"SQLite format 3\0";
    let mut head = [0; MAGIC.len()];
    let got = uncached::read_full_at(&folder.open_file(name)?, &mut head, 0)?;
    Ok(got == head.len() && head == *MAGIC)
}
