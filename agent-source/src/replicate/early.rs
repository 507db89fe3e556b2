//! What is taken before the walk: files that are read first, and files that are held open.
//!
//! An engine's metadata (`first`) points at its bulk, and bulk may be moved meanwhile (`hold`): git packs loose objects,
//! and deletes packs whose objects are in a newer one. So the bulk is looked at, the metadata is read, and the bulk is looked
//! at again. Each look opens what it finds and has not been copied before. When everything that the first look found is
//! still there in the second, all of it was there at the moment at which the metadata was read, and stays readable through
//! what was opened. Else all of it is done again. A look takes as long as a walk, whatever the files hold.
//!
//! What was taken stands in the copy as it was then, whatever the walk finds later ([`Merged`]).

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io,
    sync::Arc,
};

use assay_common::{
    confined::Folder,
    manifest::EntryKind,
    path::{TreePath, compare_paths},
    profile::Turn,
};
use assay_proto::v1::PutEntry;
use rustix::fs::Stat;
use tokio_util::sync::CancellationToken;

use super::{
    Plan, ReplicateError,
    basis::{Seen, file_clock},
    compare::size_of,
    open::open_live,
    reader::{Job, Outcome, Reader},
    scan::{Found, Scan, ScanError, describe},
    spool::SpoolError,
};

/// How often the looks are repeated: each time takes as long as two walks, and a repository that is packed over and over
/// must be met between two packings.
const LOOKS: usize = 200;
/// Descriptors that are left for everything else.
const SPARE_DESCRIPTORS: u64 = 512;

/// What was taken of one path.
pub(super) enum Taken {
    /// A folder on the way to another, as it was.
    Folder(Box<(PutEntry, Seen)>),
    /// A file that was read, or a link.
    Read(Box<(PutEntry, Seen)>),
    /// A file that is held.
    Held(Held),
}

/// A file that is held.
pub(super) struct Held {
    pub place: (Arc<Folder>, Vec<u8>),
    pub stat: Stat,
    /// Open; `None` for one that has not changed since the basis, and for one too many.
    pub file: Option<File>,
}

/// What was taken, in the order of the tree.
#[derive(Default)]
pub(super) struct Early(BTreeMap<TreePath, Taken>);

/// What a walk found, or what was taken before.
pub(super) struct Item {
    pub found: Found,
    pub taken: Option<Taken>,
}

fn scan(plan: &Plan) -> Scan {
    Scan::new(&plan.header, &plan.roots, plan.mark.clone(), Arc::clone(&plan.rules), &plan.ground)
}

/// Takes what the engine wants to be taken before all else.
pub(super) fn take(
    plan: &Plan,
    reader: &mut Reader,
    stop: &CancellationToken,
) -> Result<Early, ReplicateError> {
    if !plan.rules.has_first() && !plan.rules.has_held() {
        return Ok(Early::default());
    }
    let mut gone = String::new();
    for _ in 0..LOOKS {
        if stop.is_cancelled() {
            return Err(ReplicateError::Cancelled);
        }
        match attempt(plan, reader, stop)? {
            Ok(early) => return Ok(early),
            Err(path) => gone = path.to_string(),
        }
    }
    Err(ReplicateError::NeverStill { path: gone })
}

/// One attempt; the inner error is the path that went away.
fn attempt(
    plan: &Plan,
    reader: &mut Reader,
    stop: &CancellationToken,
) -> Result<Result<Early, TreePath>, ReplicateError> {
    let mut look = match Look::take(plan, HashMap::new(), stop)? {
        Ok(look) => look,
        Err(gone) => return Ok(Err(gone)),
    };
    let mut early = Early::default();
    look.firsts.sort_by(|left, right| (left.0, &left.1.path).cmp(&(right.0, &right.1.path)));
    for (_, mut found, in_root) in std::mem::take(&mut look.firsts) {
        let taken = match (describe(&found).kind(), &found.place) {
            (EntryKind::File, Some((folder, name))) => {
                let place = (Arc::clone(folder), name.clone());
                let mut job = Job::new(plan, &in_root, found.path.clone(), place, None);
                job.size = size_of(&found);
                reader.expect(job.size);
                match reader.read(&job)? {
                    Outcome::Read(read) => Some(Taken::Read(read)),
                    Outcome::Same(_) | Outcome::Vanished => None,
                }
            }
            _ => whole(plan, &mut found)?.map(Taken::Read),
        };
        match taken {
            Some(taken) => drop(early.0.insert(found.path, taken)),
            // Nothing is known of where it went. Without files to hold there is nothing to gain by looking again.
            None if plan.rules.has_held() => return Ok(Err(found.path)),
            None => {}
        }
    }
    if plan.rules.has_held() {
        // What is open stays open.
        let (mut folders, before) = (look.folders, look.held);
        let names: Vec<_> = before.iter().map(|(path, held)| (path.clone(), identity(&held.stat))).collect();
        let after = match Look::take(plan, before, stop)? {
            Ok(look) => look,
            Err(gone) => return Ok(Err(gone)),
        };
        let is_there =
            |(path, id): &(TreePath, _)| after.held.get(path).is_some_and(|held| identity(&held.stat) == *id);
        if let Some((path, _)) = names.into_iter().find(|name| !is_there(name)) {
            return Ok(Err(path));
        }
        early.0.extend(after.held.into_iter().map(|(path, held)| (path, Taken::Held(held))));
        folders.extend(after.folders);
        look.folders = folders;
    }
    for (path, folder) in look.folders {
        early.0.entry(path).or_insert(Taken::Folder(folder));
    }
    Ok(Ok(early))
}

fn identity(stat: &Stat) -> (u64, u64, i64) {
    (stat.st_dev, stat.st_ino, stat.st_size)
}

/// One look at the tree.
struct Look {
    firsts: Vec<(usize, Found, TreePath)>,
    held: HashMap<TreePath, Held>,
    /// Folders on the way to them.
    folders: HashMap<TreePath, Box<(PutEntry, Seen)>>,
}

impl Look {
    /// Looks at everything, and opens the files to be held that the basis does not have as they are. `open` are those that an
    /// earlier look opened.
    fn take(
        plan: &Plan,
        mut open: HashMap<TreePath, Held>,
        stop: &CancellationToken,
    ) -> Result<Result<Self, TreePath>, ReplicateError> {
        let mut basis = plan.read_basis().map_err(SpoolError::from)?;
        let usable = !plan.full_read && basis.header().is_some_and(|header| *header == plan.header);
        let mut room = descriptors().saturating_sub(open.values().filter(|it| it.file.is_some()).count());
        let mut look = Self { firsts: Vec::new(), held: HashMap::new(), folders: HashMap::new() };
        let mut walk = scan(plan);
        // The folders that the walk is in.
        let mut way: Vec<Found> = Vec::new();
        while let Some(found) = walk.next_entry()? {
            while way.last().is_some_and(|folder| !is_below(&found.path, &folder.path)) {
                way.pop();
            }
            let kind = describe(&found).kind();
            if kind == EntryKind::Directory {
                way.push(found);
                continue;
            }
            let in_root = walk.in_root(&found.path);
            if let Turn::First(turn) = plan.rules.turn(&in_root) {
                look.note_folders(plan, &mut way)?;
                look.firsts.push((turn, found, in_root));
            } else if kind == EntryKind::File && plan.rules.is_held(&in_root) {
                let (Some(stat), Some(place)) = (found.stat, found.place) else { continue };
                while basis
                    .peek()
                    .is_some_and(|(old, _)| compare_paths(&old.path, found.path.as_bytes()).is_lt())
                {
                    basis.take().map_err(SpoolError::from)?;
                }
                let unchanged = usable
                    && basis.peek().is_some_and(|(old, seen)| {
                        old.path == found.path.as_bytes() && seen.is_some_and(|seen| seen.still_holds(&stat))
                    });
                let known = open.remove(&found.path).filter(|held| identity(&held.stat) == identity(&stat));
                let file = match known.and_then(|held| held.file) {
                    Some(file) => Some(file),
                    None if unchanged || room == 0 => None,
                    None => {
                        room -= 1;
                        match open_live(&place.0, &place.1, stop) {
                            Ok(file) if is_same(&file, &stat) => Some(file),
                            Ok(_) => return Ok(Err(found.path)),
                            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                                return Ok(Err(found.path));
                            }
                            Err(source) => {
                                return Err(ScanError::Entry { path: found.path.to_string(), source }.into());
                            }
                        }
                    }
                };
                look.note_folders(plan, &mut way)?;
                look.held.insert(found.path, Held { place, stat, file });
            }
        }
        // A look finds what an earlier one found, or the caller says which was gone.
        Ok(open.into_keys().next().map_or(Ok(look), Err))
    }

    fn note_folders(&mut self, plan: &Plan, way: &mut [Found]) -> Result<(), ReplicateError> {
        for folder in way.iter_mut().rev().filter(|folder| !folder.path.is_root()) {
            if self.folders.contains_key(&folder.path) {
                break;
            }
            // One that is gone by now still holds what was found in it.
            let entry = match whole(plan, folder)? {
                Some(entry) => entry,
                None => Box::new((
                    PutEntry { entry: Some(describe(folder)), ..Default::default() },
                    Seen::default(),
                )),
            };
            self.folders.insert(folder.path.clone(), entry);
        }
        Ok(())
    }
}

fn is_same(file: &File, stat: &Stat) -> bool {
    rustix::fs::fstat(file).is_ok_and(|open| identity(&open) == identity(stat))
}

/// How many files may be held: what the process may open, less what it needs for itself.
fn descriptors() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    usize::try_from(limit.unwrap_or(u64::MAX).saturating_sub(SPARE_DESCRIPTORS)).unwrap_or(usize::MAX)
}

/// The entry of a thing without content; `None` when it is gone, or a file by now.
fn whole(plan: &Plan, found: &mut Found) -> Result<Option<Box<(PutEntry, Seen)>>, ReplicateError> {
    let mut entry = match found.complete() {
        Ok(Some(entry)) => entry,
        Ok(None) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(ScanError::Entry { path: found.path.to_string(), source }.into()),
    };
    plan.filter.apply(&mut entry)?;
    let seen = found.stat.as_ref().map_or_else(Seen::default, |stat| Seen::new(stat, file_clock()));
    Ok(Some(Box::new((PutEntry { entry: Some(entry), ..Default::default() }, seen))))
}

/// True when `path` is below `folder`.
fn is_below(path: &TreePath, folder: &TreePath) -> bool {
    folder.is_root()
        || path.as_bytes().strip_prefix(folder.as_bytes()).is_some_and(|rest| rest.first() == Some(&b'/'))
}

/// The walk and what was taken before it, as one sorted stream. What was taken counts.
pub(super) struct Merged<'a> {
    plan: &'a Plan,
    walk: Scan,
    early: BTreeMap<TreePath, Taken>,
    next: Option<Found>,
    /// A file that was taken: what is below that path now is of another time.
    file: Option<TreePath>,
}

impl<'a> Merged<'a> {
    pub(super) fn new(plan: &'a Plan, early: Early) -> Self {
        Self { plan, walk: scan(plan), early: early.0, next: None, file: None }
    }

    pub(super) fn in_root(&self, path: &TreePath) -> TreePath {
        self.walk.in_root(path)
    }

    pub(super) fn vanished(&self) -> u64 {
        self.walk.vanished()
    }

    pub(super) fn next_item(&mut self) -> Result<Option<Item>, ScanError> {
        let found = match self.next.take() {
            Some(found) => Some(found),
            None => self.next_found()?,
        };
        let Some(found) = found else {
            return Ok(self.early.pop_first().map(|(path, taken)| self.item(path, taken)));
        };
        match self.early.first_key_value() {
            Some((path, _)) if *path < found.path => {
                self.next = Some(found);
                Ok(self.early.pop_first().map(|(path, taken)| self.item(path, taken)))
            }
            Some((path, _)) if *path == found.path => {
                let (path, taken) = self.early.pop_first().expect("it was there");
                Ok(Some(self.item(path, taken)))
            }
            _ => Ok(Some(Item { found, taken: None })),
        }
    }

    /// The next that the walk finds, without what is of another time than what was taken.
    fn next_found(&mut self) -> Result<Option<Found>, ScanError> {
        while let Some(found) = self.walk.next_entry()? {
            if self.file.as_ref().is_some_and(|file| is_below(&found.path, file)) {
                continue;
            }
            let (in_root, kind) = (self.walk.in_root(&found.path), describe(&found).kind());
            let is_late = match self.plan.rules.turn(&in_root) {
                Turn::First(_) => kind != EntryKind::Directory,
                Turn::Middle | Turn::Last(_) => kind == EntryKind::File && self.plan.rules.is_held(&in_root),
            };
            if !is_late || self.early.contains_key(&found.path) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn item(&mut self, path: TreePath, taken: Taken) -> Item {
        if !matches!(taken, Taken::Folder(_)) {
            self.file = Some(path.clone());
        }
        let (place, stat) = match &taken {
            Taken::Held(held) => (Some(held.place.clone()), Some(held.stat)),
            Taken::Folder(_) | Taken::Read(_) => (None, None),
        };
        Item { found: Found { path, place, stat, own_folder: None }, taken: Some(taken) }
    }
}

#[cfg(test)]
mod tests;
