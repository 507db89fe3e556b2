//! One merge of two sorted streams, the walk and the basis: what changed falls out of it.

use std::collections::HashMap;

use assay_common::{
    cli::show,
    clock,
    manifest::{Entry, EntryKind},
    path::{TreePath, compare_paths},
    profile::Turn,
    verdict::coverage::length_in_words,
};
use assay_proto::v1::PutEntry;
use rustix::fs::{FileType, Stat};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{
    Counters, Plan, ReplicateError, as_it_is,
    basis::{Seen, changed, file_clock},
    early::{Early, Item, Merged, Taken},
    links::{FileId, First, HeldFiles},
    reader::{BaseFile, Expected, Job, Outcome, ReadError},
    readings::{Rereading, Share, Standing},
    scan::{Found, ScanError, describe},
    spool::{SpoolError, Step},
    step_queue::{Further, Planned, StepQueue},
};

/// A file to read, and where its entry is waited for.
pub(super) struct ReadJob {
    pub job: Job,
    pub outcome: oneshot::Sender<Outcome>,
}

/// A file that is read after everything else.
pub(super) enum LateJob {
    File(Box<Job>),
    /// A further name of one, or one that is a further name.
    Further(Box<Further>),
}

impl LateJob {
    pub(super) fn path(&self) -> &TreePath {
        match self {
            Self::File(job) => &job.path,
            Self::Further(further) => &further.found.path,
        }
    }
}

/// What the merge leaves.
pub(super) struct Compared {
    /// With their numbers, in the order in which they are read.
    pub late_jobs: Vec<(u64, LateJob)>,
    pub gone: u64,
    pub basis_entries: u64,
    pub vanished: u64,
    pub standing: Standing,
    /// Files whose path is gone and that stand at another.
    pub moved: u64,
}

/// Walks the roots beside the basis and gives out steps and jobs.
pub(super) fn compare(
    plan: &Plan,
    early: Early,
    steps: &mut StepQueue,
    jobs: &crossbeam_channel::Sender<ReadJob>,
    counters: &Counters,
    held_files: &HeldFiles,
    stop: &CancellationToken,
) -> Result<Compared, ReplicateError> {
    let mut basis = plan.read_basis().map_err(SpoolError::from)?;
    // Another set of roots is another tree: nothing of the basis says anything about it.
    let same_roots = basis.header().is_some_and(|header| *header == plan.header);
    let mut share = match &plan.basis {
        Some(basis) if same_roots && !plan.full_read => {
            Share::of(basis, &plan.rereading).map_err(SpoolError::from)?
        }
        _ => Share::default(),
    };
    if let Some(basis) = plan.basis.as_ref().filter(|_| plan.full_read && counters.tree_bytes.get() == 0) {
        // About as much as there was.
        counters.tree_bytes.add(Share::of(basis, &plan.rereading).map_err(SpoolError::from)?.total);
    }
    if share.is_overdue {
        counters.warn(overdue(&share, &plan.rereading));
    }
    let warnings = [plan.rereading.is_too_slow_for(share.total), plan.rereading.clock.warning()];
    warnings.into_iter().flatten().for_each(|warning| counters.warn(warning));
    plan.filter.forget_names();
    let mut walk = Merged::new(plan, early);
    // Whether each file with several names is read after everything else.
    let mut firsts: HashMap<FileId, Option<usize>> = HashMap::new();
    // With the turns in which they are read.
    let mut late_jobs: Vec<(usize, LateJob)> = Vec::new();
    let standing = plan.rereading.end(0.0);
    let mut result =
        Compared { late_jobs: Vec::new(), gone: 0, basis_entries: 0, vanished: 0, standing, moved: 0 };
    let mut moves = Moves::default();
    // Files that changed in the future, and one of them.
    let mut ahead: Option<(u64, String)> = None;
    let mut give = |planned| steps.push(planned);
    while let Some(Item { mut found, taken }) = walk.next_item()? {
        if stop.is_cancelled() {
            return Err(ReplicateError::Cancelled);
        }
        counters.scanned.add(1);
        plan.filter.tell_apart(found.path.as_bytes())?;
        while basis.peek().is_some_and(|(old, _)| compare_paths(&old.path, found.path.as_bytes()).is_lt()) {
            let old = basis.take().map_err(SpoolError::from)?;
            result.basis_entries += 1;
            if let Some((old, seen)) = old {
                result.gone += u64::from(counts_as_gone(plan, &walk, &old));
                moves.gone(&old, seen);
            }
            give(Planned::Ready(Step::Drop))?;
        }
        let old = match basis.peek() {
            Some((old, _)) if old.path == found.path.as_bytes() => {
                result.basis_entries += 1;
                basis.take().map_err(SpoolError::from)?
            }
            _ => None,
        };
        let held = match taken {
            Some(Taken::Read(put) | Taken::Folder(put)) => {
                // Read again, and perhaps the same: then nothing has to be said of it. A full run sends it all the same, because
                // what the target keeps of it is only compared when it is sent.
                if same_roots
                    && !plan.full_read
                    && !plan.rotten.contains(found.path.as_bytes())
                    && old.as_ref().is_some_and(|(old, seen)| {
                        // A file that was not at rest when it was read last is remembered as it is now, else it would never be.
                        let is_remembered =
                            seen.as_ref().is_some_and(Seen::is_trusted) || !put.1.is_trusted();
                        Some(old) == put.0.entry.as_ref() && (old.kind() != EntryKind::File || is_remembered)
                    })
                {
                    let is_file = put.0.entry.as_ref().is_some_and(|entry| entry.kind() == EntryKind::File);
                    let entry = result.basis_entries.saturating_sub(1);
                    give(Planned::Ready(if is_file { Step::ReadAgain { entry } } else { Step::Keep }))?;
                } else {
                    if let Some((old, Some(seen))) = &old
                        && same_roots
                        && has_changed_without_trace(old, seen, &put)
                    {
                        counters.note_change_without_trace(&found.path);
                    }
                    if old.is_some() {
                        give(Planned::Ready(Step::Drop))?;
                    }
                    give(Planned::Ready(Step::Put(put)))?;
                }
                continue;
            }
            Some(Taken::Held(held)) => Some(held.file),
            None => None,
        };
        let in_root = walk.in_root(&found.path);
        let is_file = describe(&found).kind() == EntryKind::File;
        if is_file && found.stat.as_ref().is_some_and(|stat| is_ahead(stat, &plan.rereading)) {
            ahead.get_or_insert_with(|| (0, found.path.short())).0 += 1;
        }
        // What it should be when its size, times and inode say that it has not changed.
        let mut expected = match (&old, &found.stat) {
            (Some((old, Some(seen))), Some(stat)) if same_roots && seen.still_holds(stat) => {
                Some(Expected { seen: *seen, digest: old.digest.clone(), compare: false })
            }
            _ => None,
        };
        let shows_each_change =
            found.stat.as_ref().is_some_and(|stat| plan.ground.file_systems.shows_each_change(stat));
        let holds = expected.is_some()
            && shows_each_change
            && !plan.full_read
            && !plan.rotten.contains(found.path.as_bytes())
            && match &old {
                Some((old, _)) => as_it_is::is_as_filtered(plan, &found, old)?,
                None => false,
            };
        let turn = match plan.rules.turn(&in_root) {
            Turn::Last(turn) if is_file => Some(turn),
            _ => None,
        };
        let file = found.stat.as_ref().and_then(id_of_several);
        let earlier = file.and_then(|id| match firsts.entry(id) {
            std::collections::hash_map::Entry::Occupied(first) => Some(*first.get()),
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(turn.filter(|_| !holds));
                None
            }
        });
        let position = result.basis_entries.saturating_sub(1);
        let old = old.map(|(entry, _)| entry);
        let was_file = old.as_ref().is_some_and(|old| old.kind() == EntryKind::File);
        let mut has_its_turn = false;
        if holds
            && earlier.is_none()
            && was_file
            && let Some(expected) = &mut expected
        {
            let (read, size) = (expected.seen.read(), expected.seen.size());
            has_its_turn = share.takes(read, size);
            expected.compare = has_its_turn;
        }
        let expected = expected.filter(|_| was_file);
        let job = |found: &Found, base: Option<Entry>, held: Option<Option<std::fs::File>>| {
            let place = found.place.clone().expect("a file is in a folder");
            let base = base
                .filter(|entry| entry.kind() == EntryKind::File && entry.size > 0)
                .map(|entry| BaseFile { position, entry });
            let mut job = Job::new(plan, &in_root, found.path.clone(), place, base);
            job.expected = expected.clone();
            job.size = size_of(found);
            if let Some(file) = held {
                job.hold(file);
            }
            job
        };
        if let Some(turn_of_first) = earlier {
            // Which file it is a name of is told when the earlier names have been read.
            let turn = turn.filter(|_| !holds).max(turn_of_first);
            as_it_is::count_name(plan, &found)?;
            let job = is_file.then(|| job(&found, old.clone(), held));
            let further = Box::new(Further { found, job, old, holds });
            match turn {
                None => give(Planned::Further(further))?,
                Some(turn) => {
                    if further.old.is_some() {
                        give(Planned::Ready(Step::Drop))?;
                    }
                    give(Planned::Ready(Step::Late { job: late_jobs.len() as u64 }))?;
                    late_jobs.push((turn, LateJob::Further(further)));
                }
            }
            continue;
        }
        // A link that was one to another name is a file of its own now.
        if holds && old.as_ref().is_some_and(|old| old.kind() != EntryKind::Hardlink) {
            let first = match (file, &found.stat, &old) {
                (Some(_), Some(stat), Some(old)) => {
                    let seen = Seen::new(stat, file_clock());
                    Some(First::new(found.path.clone(), seen, old.digest.clone(), true, seen.names()))
                }
                _ => None,
            };
            if has_its_turn {
                let (sender, outcome) = oneshot::channel();
                let kept = Some(Box::new((position, first)));
                give(Planned::File { outcome, replaces: true, kept })?;
                let job = job(&found, old, held);
                counters.to_read.add(job.size);
                jobs.send(ReadJob { job, outcome: sender }).map_err(|_| ReadError::Stopped)?;
                continue;
            }
            match first {
                Some(first) => give(Planned::Kept(Box::new(first)))?,
                None => give(Planned::Ready(Step::Keep))?,
            }
            continue;
        }
        if is_file {
            as_it_is::look(plan, &found)?;
            let replaces = old.is_some();
            if !replaces {
                moves.came(found.stat.as_ref());
            }
            let job = job(&found, old, held);
            if let Some(turn) = turn {
                if replaces {
                    give(Planned::Ready(Step::Drop))?;
                }
                give(Planned::Ready(Step::Late { job: late_jobs.len() as u64 }))?;
                counters.to_read.add(job.size);
                late_jobs.push((turn, LateJob::File(Box::new(job))));
            } else {
                let (sender, outcome) = oneshot::channel();
                give(Planned::File { outcome, replaces, kept: None })?;
                counters.to_read.add(job.size);
                jobs.send(ReadJob { job, outcome: sender }).map_err(|_| ReadError::Stopped)?;
            }
            continue;
        }
        if let (Some(_), Some(stat), Some((folder, name))) = (file, &found.stat, &found.place)
            && !seen_of(&found).is_trusted()
        {
            held_files.keep_node(folder, name, stat);
        }
        // Nothing to read: the entry itself tells whether it changed.
        let put = match found.complete() {
            Ok(Some(mut entry)) => {
                plan.filter.apply(&mut entry)?;
                Some(whole(entry, &found))
            }
            // It was a link or a device and is a file by now.
            Ok(None) => {
                let replaces = old.is_some();
                let (sender, outcome) = oneshot::channel();
                give(Planned::File { outcome, replaces, kept: None })?;
                let job = job(&found, old, held);
                counters.to_read.add(job.size);
                jobs.send(ReadJob { job, outcome: sender }).map_err(|_| ReadError::Stopped)?;
                continue;
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                counters.vanished.add(1);
                None
            }
            Err(source) => {
                return Err(ScanError::Entry { path: found.path.to_string(), source }.into());
            }
        };
        if old.is_some() {
            give(Planned::Ready(Step::Drop))?;
        }
        if let Some(put) = put {
            give(Planned::Ready(put))?;
        }
    }
    while let Some((old, seen)) = basis.take().map_err(SpoolError::from)? {
        moves.gone(&old, seen);
        result.basis_entries += 1;
        result.gone += u64::from(counts_as_gone(plan, &walk, &old));
        give(Planned::Ready(Step::Drop))?;
    }
    if let Some((files, path)) = ahead {
        counters.warn(format!(
            "{} changed in the future by this host's clock, for example {path}: such files are read in every run until then",
            show::counted(files, "file")
        ));
    }
    counters.is_walked.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut late: Vec<_> = (0..).zip(late_jobs).collect();
    late.sort_by_key(|(_, (turn, _))| *turn);
    result.late_jobs = late.into_iter().map(|(number, (_, job))| (number, job)).collect();
    result.vanished = walk.vanished();
    result.standing = plan.rereading.end(share.credit());
    result.moved = moves.count();
    Ok(result)
}

/// Files that went and files that came: which of them are the same, at another path.
#[derive(Default)]
struct Moves {
    gone: HashMap<FileId, Seen>,
    came: Vec<Seen>,
}

impl Moves {
    /// Beyond so many they count as gone.
    const MOST: usize = 500_000;

    fn gone(&mut self, old: &Entry, seen: Option<Seen>) {
        if let Some(seen) = seen
            && old.kind() == EntryKind::File
            && self.gone.len() < Self::MOST
        {
            self.gone.insert(seen.file(), seen);
        }
    }

    fn came(&mut self, stat: Option<&Stat>) {
        if let Some(stat) = stat
            && self.came.len() < Self::MOST
        {
            self.came.push(Seen::new(stat, file_clock()));
        }
    }

    fn count(&self) -> u64 {
        let is_moved = |came: &&Seen| self.gone.get(&came.file()).is_some_and(|gone| gone.is_moved_to(came));
        self.came.iter().filter(is_moved).count() as u64
    }
}

/// True when a file that was read before the walk has another content than the basis says, and looks as it did.
fn has_changed_without_trace(old: &Entry, seen: &Seen, put: &(PutEntry, Seen)) -> bool {
    let entry = put.0.entry.as_ref();
    seen.is_trusted()
        && put.1.is_trusted()
        && seen.is_same_as(&put.1)
        && old.kind() == EntryKind::File
        && entry.is_some_and(|entry| entry.kind() == EntryKind::File && entry.digest != old.digest)
}

/// True when a file changed in the future, by more than a clock beside this one may be ahead.
fn is_ahead(stat: &Stat, rereading: &Rereading) -> bool {
    i128::try_from(changed(stat).as_millis()).unwrap_or(i128::MAX)
        > i128::from(rereading.started) + clock::SLACK.as_millis()
}

/// A run that reads everything again says why.
fn overdue(share: &Share, rereading: &Rereading) -> String {
    format!(
        "all {} are read again: more than reread_within ({}) has passed since the last run",
        show::bytes(share.total),
        length_in_words(rereading.within)
    )
}

/// False for what may have been moved to another file: it is in the nature of such files that most go away at once.
fn counts_as_gone(plan: &Plan, walk: &Merged<'_>, old: &Entry) -> bool {
    !plan.rules.has_held()
        || !TreePath::parse(&old.path).is_ok_and(|path| plan.rules.is_held(&walk.in_root(&path)))
}

/// The length of a regular file; 0 of everything else.
pub(super) fn size_of(found: &Found) -> u64 {
    let file = found.stat.as_ref().filter(|_| describe(found).kind() == EntryKind::File);
    file.map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0))
}

/// Device and inode of what may have several names.
pub(super) fn id_of_several(stat: &Stat) -> Option<FileId> {
    let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    (stat.st_nlink > 1 && !is_folder).then_some((stat.st_dev, stat.st_ino))
}

/// A step for an entry that has no content to read.
fn whole(entry: Entry, found: &Found) -> Step {
    Step::Put(Box::new((PutEntry { entry: Some(entry), ..Default::default() }, seen_of(found))))
}

fn seen_of(found: &Found) -> Seen {
    found.stat.as_ref().map_or_else(Seen::default, |stat: &Stat| Seen::new(stat, file_clock()))
}
