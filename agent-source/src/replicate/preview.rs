//! What a replication would do, found out by the walk and the basis alone: no file is opened, nothing is sent or written.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap, HashSet},
    sync::Arc,
};

use assay_common::{
    confined::Folder,
    fidelity::Filter,
    manifest::{EntryKind, Header},
    path::{TreePath, compare_paths, display_bytes},
    profile::FileRules,
};
use assay_proto::v1::{PlannedFile, PlannedWork};
use rustix::fs::Stat;
use tokio_util::sync::CancellationToken;

use super::{
    ReplicateError,
    basis::{BasisFolder, BasisReader, Seen, file_clock},
    compare::id_of_several,
    links::FileId,
    preflight,
    readings::{Rereading, Share},
    scan::{Found, Ground, Scan, describe},
    spool::SpoolError,
};

/// Files that are named, of those that would be read.
const LARGEST: usize = 5;
/// Files that went and files that came that are remembered, to tell which of them were moved. Beyond that they count as new:
/// a plan takes some 100 MB at most.
const MAX_REMEMBERED: usize = 500_000;

/// What is looked at.
pub struct Look {
    /// Header of the new manifest.
    pub header: Header,
    /// The roots, open, in the header's order.
    pub roots: Vec<Arc<Folder>>,
    /// What is copied.
    pub rules: Arc<FileRules>,
    /// The file systems that it is on.
    pub ground: Ground,
    /// The basis, when it is the target's base.
    pub basis: Option<BasisFolder>,
    /// Every file would be read.
    pub full_read: bool,
    /// How files that have not changed are read again.
    pub rereading: Rereading,
    /// Files that the mark makes from live ones, and how long they become at most, in bytes.
    pub made: BTreeMap<TreePath, u64>,
    /// What is left out of the entries, and what the target takes.
    pub filter: Arc<Filter>,
    /// The basis was filtered by another filter than this.
    pub filtered_otherwise: bool,
    /// The mark makes files of its own, too, and says which when it is made.
    pub makes_own: bool,
}

/// The work of a run, and how it was found.
#[derive(Debug)]
pub struct Preview {
    /// What a run would do.
    pub work: PlannedWork,
    /// Unchanged files that have their turn to be read again.
    pub files_again: u64,
    /// Their content, in bytes.
    pub bytes_again: u64,
}

/// Walks the roots beside the basis. As with a run: what is held open, or read first, counts as what the walk finds.
///
/// # Errors
/// When a root or the basis cannot be read, or `stop` says so.
pub fn preview(look: &Look, stop: &CancellationToken) -> Result<Preview, ReplicateError> {
    let open = |basis| BasisReader::open(basis, look.rereading.clock);
    let basis = look.basis.as_ref().map_or_else(|| Ok(BasisReader::empty()), open);
    let mut basis = basis.map_err(SpoolError::from)?;
    // The live files are walked here, whatever a run copies.
    let origin = look.basis.as_ref().and_then(BasisFolder::origin);
    let is_of_snapshot = origin.is_some_and(|origin| origin.snapshot.is_some());
    let same_roots = basis.header().is_some_and(|header| *header == look.header);
    let mut scan = Scan::new(&look.header, &look.roots, None, Arc::clone(&look.rules), &look.ground);
    let mut firsts: HashSet<FileId> = HashSet::new();
    let share = match &look.basis {
        Some(basis) if same_roots && !look.full_read => {
            Share::of(basis, &look.rereading).map_err(SpoolError::from)?
        }
        _ => Share::default(),
    };
    let mut tally = Tally { full_read: look.full_read, made: look.made.clone(), share, ..Default::default() };
    while let Some(found) = scan.next_entry()? {
        if stop.is_cancelled() {
            return Err(ReplicateError::Cancelled);
        }
        tally.work.entries += 1;
        preflight::tell_apart(&look.filter, &found);
        while basis.peek().is_some_and(|(old, _)| compare_paths(&old.path, found.path.as_bytes()).is_lt()) {
            gone(&mut basis, look, &scan, &mut tally)?;
        }
        let old = match basis.peek() {
            Some((old, _)) if old.path == found.path.as_bytes() => {
                tally.work.base_entries += 1;
                basis.take().map_err(SpoolError::from)?
            }
            _ => None,
        };
        let is_further = found.stat.as_ref().and_then(id_of_several).is_some_and(|id| !firsts.insert(id));
        let holds = match (&old, &found.stat) {
            (Some((_, Some(seen))), Some(stat)) => {
                let looks_the_same = if is_of_snapshot {
                    seen.is_trusted() && seen.looks_like_on_any_device(stat)
                } else {
                    seen.still_holds(stat)
                };
                same_roots && looks_the_same && look.ground.file_systems.shows_each_change(stat)
            }
            _ => false,
        };
        // What the basis has may be what the target takes no longer.
        let is_as_filtered = !look.filtered_otherwise
            && old.as_ref().is_none_or(|(entry, _)| look.filter.is_as_filtered(entry));
        if !holds || !is_as_filtered {
            preflight::look(&look.filter, &found)?;
        }
        let is_file = !is_further && describe(&found).kind() == EntryKind::File;
        if let Some((_, Some(seen))) = old.as_ref().filter(|_| is_file && holds) {
            tally.has_a_turn(seen);
        }
        match &found.stat {
            Some(stat) if is_file => tally.file(&found, stat, old.is_some(), holds),
            _ => tally.work.kept_entries += u64::from(holds),
        }
    }
    while basis.peek().is_some() {
        gone(&mut basis, look, &scan, &mut tally)?;
    }
    for (path, size) in std::mem::take(&mut tally.made) {
        tally.made(&path, size, false);
    }
    let (files_again, bytes_again) = tally.again;
    Ok(Preview { files_again, bytes_again, work: tally.end() })
}

/// Takes an entry of the basis that the tree has not any more.
fn gone(basis: &mut BasisReader, look: &Look, scan: &Scan, tally: &mut Tally) -> Result<(), ReplicateError> {
    let Some((old, seen)) = basis.take().map_err(SpoolError::from)? else {
        return Ok(());
    };
    tally.work.base_entries += 1;
    let path = TreePath::parse(&old.path).ok();
    if let Some(path) = &path
        && let Some(size) = tally.made.remove(path)
    {
        tally.made(path, size, true);
        return Ok(());
    }
    // As the safety stop counts: in the nature of some files is that most go away at once. A mark's own files come with the mark.
    let stays = path.is_some_and(|path| {
        let in_root = scan.in_root(&path);
        look.rules.has_held() && look.rules.is_held(&in_root)
            || look.makes_own && look.rules.is_of_mark(&in_root)
    });
    tally.work.dropped_entries += u64::from(!stays);
    if let Some(seen) = seen
        && old.kind() == EntryKind::File
        && tally.gone.len() < MAX_REMEMBERED
    {
        tally.gone.insert(seen.file(), seen);
    }
    Ok(())
}

#[derive(Default)]
struct Tally {
    work: PlannedWork,
    full_read: bool,
    made: BTreeMap<TreePath, u64>,
    gone: HashMap<(u64, u64), Seen>,
    came: Vec<Seen>,
    seen_came: HashSet<(u64, u64)>,
    largest: BinaryHeap<Reverse<(u64, Vec<u8>)>>,
    share: Share,
    again: (u64, u64),
}

impl Tally {
    /// An unchanged file: it may have its turn to be read again.
    fn has_a_turn(&mut self, seen: &Seen) {
        if self.share.takes(seen.read(), seen.size()) {
            self.again = (self.again.0 + 1, self.again.1 + seen.size());
        }
    }

    fn file(&mut self, found: &Found, stat: &Stat, is_known: bool, holds: bool) {
        let (work, size) = (&mut self.work, u64::try_from(stat.st_size).unwrap_or(0));
        work.total_bytes += size;
        if holds {
            work.kept_entries += 1;
        } else if is_known {
            (work.changed_files, work.changed_bytes) = (work.changed_files + 1, work.changed_bytes + size);
        } else {
            (work.new_files, work.new_bytes) = (work.new_files + 1, work.new_bytes + size);
            let seen = Seen::new(stat, file_clock());
            if self.came.len() < MAX_REMEMBERED && self.seen_came.insert(seen.file()) {
                self.came.push(seen);
            }
        }
        if !holds || self.full_read {
            (work.read_files, work.read_bytes) = (work.read_files + 1, work.read_bytes + size);
        }
        if !holds {
            self.name(&found.path, size);
        }
    }

    /// A file that the mark makes.
    fn made(&mut self, path: &TreePath, size: u64, is_known: bool) {
        let work = &mut self.work;
        work.entries += 1;
        work.total_bytes += size;
        (work.read_files, work.read_bytes) = (work.read_files + 1, work.read_bytes + size);
        let (files, bytes) = match is_known {
            true => (&mut work.changed_files, &mut work.changed_bytes),
            false => (&mut work.new_files, &mut work.new_bytes),
        };
        (*files, *bytes) = (*files + 1, *bytes + size);
        self.name(path, size);
    }

    fn name(&mut self, path: &TreePath, size: u64) {
        self.largest.push(Reverse((size, path.as_bytes().to_vec())));
        if self.largest.len() > LARGEST {
            self.largest.pop();
        }
    }

    fn end(self) -> PlannedWork {
        let mut work = self.work;
        let moved = |seen: &&Seen| self.gone.get(&seen.file()).is_some_and(|gone| gone.is_moved_to(seen));
        for seen in self.came.iter().filter(moved) {
            (work.moved_files, work.moved_bytes) = (work.moved_files + 1, work.moved_bytes + seen.size());
        }
        work.new_files -= work.moved_files;
        work.new_bytes -= work.moved_bytes;
        work.send_bytes = work.new_bytes + work.changed_bytes;
        let largest = self.largest.into_sorted_vec().into_iter();
        work.largest =
            largest.map(|Reverse((size, path))| PlannedFile { path: display_bytes(&path), size }).collect();
        work
    }
}
