//! One merge of two sorted streams, the walk and the basis: what changed falls out of it.

use std::collections::HashMap;

use assay_common::{
    manifest::{Entry, EntryKind},
    path::{TreePath, compare_paths},
    profile::Turn,
};
use assay_proto::v1::PutEntry;
use rustix::fs::Stat;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{
    Counters, Plan, ReplicateError, as_it_is,
    basis::{BasisReader, Seen, file_clock},
    early::{Early, Item, Merged, Taken},
    reader::{BaseFile, Job, Outcome, ReadError},
    scan::{Found, ScanError, describe},
    spool::{SpoolError, Step},
    step_queue::StepQueue,
};

/// A file to read, and where its entry is waited for.
pub(super) struct ReadJob {
    pub job: Job,
    pub outcome: oneshot::Sender<Outcome>,
}

/// What the merge leaves.
pub(super) struct Compared {
    /// With their numbers, in the order in which they are read.
    pub late_jobs: Vec<(u64, Job)>,
    pub gone: u64,
    pub basis_entries: u64,
    pub vanished: u64,
}

/// Walks the roots beside the basis and gives out steps and jobs.
pub(super) fn compare(
    plan: &Plan,
    early: Early,
    steps: &mut StepQueue,
    jobs: &crossbeam_channel::Sender<ReadJob>,
    counters: &Counters,
    stop: &CancellationToken,
) -> Result<Compared, ReplicateError> {
    let basis = plan.basis.as_ref().map_or_else(|| Ok(BasisReader::empty()), BasisReader::open);
    let mut basis = basis.map_err(SpoolError::from)?;
    // Another set of roots is another tree: nothing of the basis says anything about it.
    let same_roots = basis.header().is_some_and(|header| *header == plan.header);
    plan.filter.forget_names();
    let mut walk = Merged::new(plan, early);
    let mut firsts: HashMap<(u64, u64), TreePath> = HashMap::new();
    let mut late_jobs = Vec::new();
    let mut result = Compared { late_jobs: Vec::new(), gone: 0, basis_entries: 0, vanished: 0 };
    let mut give = |step| steps.push(step).map_err(ReplicateError::from);
    while let Some(Item { found, taken }) = walk.next_item()? {
        if stop.is_cancelled() {
            return Err(ReplicateError::Cancelled);
        }
        counters.scanned.add(1);
        while basis.peek().is_some_and(|(old, _)| compare_paths(&old.path, found.path.as_bytes()).is_lt()) {
            let old = basis.take().map_err(SpoolError::from)?;
            result.basis_entries += 1;
            result.gone += u64::from(old.is_some_and(|(old, _)| counts_as_gone(plan, &walk, &old)));
            give(Step::Drop)?;
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
                    && old.as_ref().is_some_and(|(old, _)| Some(old) == put.0.entry.as_ref())
                {
                    give(Step::Keep)?;
                } else {
                    if old.is_some() {
                        give(Step::Drop)?;
                    }
                    give(Step::Put(put))?;
                }
                continue;
            }
            Some(Taken::Held(held)) => Some(held.file),
            None => None,
        };
        let first = first_name(&mut firsts, &found);
        if let (Some((old, Some(seen))), Some(stat), true, false) =
            (&old, &found.stat, same_roots, plan.full_read)
            && seen.still_holds(stat)
            && !plan.rotten.contains(found.path.as_bytes())
            && old.link_target_if_hardlink() == first.as_ref().map(TreePath::as_bytes)
            && as_it_is::is_as_filtered(plan, &found, old)?
        {
            give(Step::Keep)?;
            continue;
        }
        let step = match first {
            Some(first) => {
                as_it_is::count_name(plan, &found)?;
                let mut entry = Entry {
                    path: found.path.as_bytes().to_vec(),
                    link_target: first.into_bytes(),
                    ..Default::default()
                };
                entry.set_kind(EntryKind::Hardlink);
                whole(entry, &found)
            }
            None => {
                let mut entry = describe(&found);
                if entry.kind() == EntryKind::File {
                    as_it_is::look(plan, &found)?;
                    let place = found.place.clone().expect("a file is in a folder");
                    let in_root = walk.in_root(&found.path);
                    if old.is_some() {
                        give(Step::Drop)?;
                    }
                    let position = result.basis_entries.saturating_sub(1);
                    let base = old
                        .map(|(entry, _)| entry)
                        .filter(|entry| entry.kind() == EntryKind::File && entry.size > 0)
                        .map(|entry| BaseFile { position, entry });
                    let mut job = Job::new(plan, &in_root, found.path.clone(), place, base);
                    if let Some(file) = held {
                        job.hold(file);
                    }
                    if matches!(plan.rules.turn(&in_root), Turn::Last(_)) {
                        give(Step::Late { job: late_jobs.len() as u64 })?;
                        late_jobs.push(job);
                    } else {
                        let (sender, outcome) = oneshot::channel();
                        let linked = found.stat.as_ref().is_some_and(|stat| stat.st_nlink > 1);
                        give(Step::File { outcome, linked })?;
                        jobs.send(ReadJob { job, outcome: sender }).map_err(|_| ReadError::Stopped)?;
                    }
                    continue;
                }
                match found.complete(&mut entry) {
                    Ok(()) => plan.filter.apply(&mut entry)?,
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                        counters.vanished.add(1);
                        if old.is_some() {
                            give(Step::Drop)?;
                        }
                        continue;
                    }
                    Err(source) => {
                        return Err(ScanError::Entry { path: found.path.to_string(), source }.into());
                    }
                }
                // Nothing to read: the entry itself tells whether it changed.
                whole(entry, &found)
            }
        };
        if old.is_some() {
            give(Step::Drop)?;
        }
        give(step)?;
    }
    while let Some((old, _)) = basis.take().map_err(SpoolError::from)? {
        result.basis_entries += 1;
        result.gone += u64::from(counts_as_gone(plan, &walk, &old));
        give(Step::Drop)?;
    }
    let mut late: Vec<_> = (0..).zip(std::mem::take(&mut late_jobs)).collect();
    late.sort_by_key(|(_, job)| match plan.rules.turn(&walk.in_root(&job.path)) {
        Turn::Last(turn) => turn,
        _ => 0,
    });
    result.late_jobs = late;
    result.vanished = walk.vanished();
    Ok(result)
}

/// False for what may have been moved to another file: it is in the nature of such files that most go away at once.
fn counts_as_gone(plan: &Plan, walk: &Merged<'_>, old: &Entry) -> bool {
    !plan.rules.has_held()
        || !TreePath::parse(&old.path).is_ok_and(|path| plan.rules.is_held(&walk.in_root(&path)))
}

/// For a further name of a file that has been seen in this walk: its first name.
pub(super) fn first_name(firsts: &mut HashMap<(u64, u64), TreePath>, found: &Found) -> Option<TreePath> {
    let stat = found.stat.as_ref()?;
    let is_folder = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory;
    if stat.st_nlink < 2 || is_folder {
        return None;
    }
    match firsts.entry((stat.st_dev, stat.st_ino)) {
        std::collections::hash_map::Entry::Occupied(first) => Some(first.get().clone()),
        std::collections::hash_map::Entry::Vacant(place) => {
            place.insert(found.path.clone());
            None
        }
    }
}

/// A step for an entry that has no content to read.
fn whole(entry: Entry, found: &Found) -> Step {
    Step::Put(Box::new((PutEntry { entry: Some(entry), ..Default::default() }, seen_of(found))))
}

fn seen_of(found: &Found) -> Seen {
    found.stat.as_ref().map_or_else(Seen::default, |stat: &Stat| Seen::new(stat, file_clock()))
}

trait LinkTarget {
    /// The first name of a hard link; `None` for everything else.
    fn link_target_if_hardlink(&self) -> Option<&[u8]>;
}

impl LinkTarget for Entry {
    fn link_target_if_hardlink(&self) -> Option<&[u8]> {
        (self.kind() == EntryKind::Hardlink).then_some(self.link_target.as_slice())
    }
}
