//! Steps in the walk's order: those behind a file that is still being read wait here. In this order it is also told which names are
//! links to one file: whatever comes before a further name has been read by then.

use std::{collections::VecDeque, io};

use assay_common::{
    manifest::{Entry, EntryKind},
    path::TreePath,
};
use assay_proto::v1::PutEntry;
use rustix::fs::Stat;
use tokio::sync::oneshot::{self, error::TryRecvError};

use super::{
    ReplicateError,
    basis::{Seen, file_clock},
    links::{First, Kinship, Links},
    reader::{Job, Outcome, Reader},
    scan::{Found, ScanError},
    spool::{SpoolError, SpoolWriter, Step},
};

/// Steps that wait: enough for the walk to run well ahead of the readers, little enough to hold.
const MAX_WAITING: usize = 4096;

/// A step that may have to wait.
pub(super) enum Planned {
    /// One that waits for nothing.
    Ready(Step),
    /// The basis' next entry is as it was, and other names may be links to it.
    Kept(Box<First>),
    /// A file that is being read.
    File {
        /// Its entry, when it has been read.
        outcome: oneshot::Receiver<Outcome>,
        /// The basis has an entry of this path.
        replaces: bool,
        /// The position of that entry, and what stands for further names, of a file that is read again and may be what it was.
        kept: Option<Box<(u64, Option<First>)>>,
    },
    /// A name that led to the same file as an earlier one when the walk saw it.
    Further(Box<Further>),
}

/// A further name of a file, as the walk saw it.
pub(super) struct Further {
    pub found: Found,
    /// How it is read when it is another file by now; `None` for what has no content.
    pub job: Option<Job>,
    /// The entry of the basis of this path, if there is one.
    pub old: Option<Entry>,
    /// That one has not changed: its times are as they were.
    pub holds: bool,
}

/// What a further name is.
pub(super) enum Named {
    /// A link, as it was.
    Kept,
    /// An entry of its own, or a link.
    Put(Box<(PutEntry, Seen)>),
    Vanished,
}

/// Who reads what turns out to be no link, and what has been read so far.
pub(super) struct Names {
    pub(super) reader: Reader,
    pub(super) links: Links,
}

impl Names {
    /// Takes note of what was read, for names to come.
    pub(super) fn note(&mut self, outcome: &Outcome) {
        let Outcome::Read(read) = outcome else { return };
        if let Some(first) = first_of(read) {
            self.links.add(first);
        }
    }

    /// Looks at a further name again: a link to a file that was read, or a file of its own.
    pub(super) fn resolve(&mut self, mut further: Further) -> Result<Named, ReplicateError> {
        let of_walk = further.found.stat;
        if further.holds
            && let Some((first, _)) = of_walk.as_ref().and_then(|stat| self.links.find(stat))
            && first.is_kept
            && further.links_to(&first.path)
        {
            if let Some(stat) = &of_walk {
                self.links.linked(stat);
            }
            return Ok(Named::Kept);
        }
        let stat = match further.stat() {
            Ok(stat) => stat,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                drop(self.reader.vanished());
                return Ok(Named::Vanished);
            }
            Err(source) => return Err(further.error(source)),
        };
        let path = match self.links.find(&stat) {
            Some((first, Kinship::Same)) => Some((first.path.clone(), true)),
            Some((first, Kinship::SameInode)) => match (&further.job, first.digest.is_empty()) {
                (Some(job), false) if self.reader.has_digest(job, &first.digest)? => {
                    Some((first.path.clone(), false))
                }
                _ => None,
            },
            _ => None,
        };
        if let Some((path, is_as_it_was)) = path {
            self.links.linked(&stat);
            let seen = Seen::new(&stat, file_clock());
            let seen = if is_as_it_was { seen } else { seen.distrusted() };
            return Ok(Named::Put(Box::new((further.link(path), seen))));
        }
        let outcome = match &further.job {
            Some(job) => self.reader.read(job)?,
            None => match further.found.complete() {
                Ok(Some(mut entry)) => {
                    self.reader.filter(&mut entry)?;
                    let seen = further.found.stat.map(|stat| Seen::new(&stat, file_clock()));
                    let put = PutEntry { entry: Some(entry), ..Default::default() };
                    Outcome::Read(Box::new((put, seen.unwrap_or_default())))
                }
                // It was a link or a device, and is a file now: the next run copies that.
                Ok(None) => self.reader.vanished(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.reader.vanished(),
                Err(source) => return Err(further.error(source)),
            },
        };
        match outcome {
            Outcome::Read(read) => {
                if let Some(first) = first_of(&read) {
                    self.links.replace(first);
                }
                Ok(Named::Put(read))
            }
            Outcome::Same(_) => Ok(Named::Kept),
            Outcome::Vanished => Ok(Named::Vanished),
        }
    }
}

/// What stands for further names of what was read; `None` when it had no others.
fn first_of((put, seen): &(PutEntry, Seen)) -> Option<First> {
    let entry = put.entry.as_ref().filter(|_| seen.names() > 1)?;
    let path = TreePath::parse(&entry.path).ok()?;
    Some(First::new(path, *seen, entry.digest.clone(), false, seen.names()))
}

impl Further {
    fn links_to(&self, first: &TreePath) -> bool {
        self.old
            .as_ref()
            .is_some_and(|old| old.kind() == EntryKind::Hardlink && old.link_target == first.as_bytes())
    }

    /// What the name leads to now, or what is held of it.
    fn stat(&self) -> io::Result<Stat> {
        if let Some(held) = self.job.as_ref().and_then(Job::held_file) {
            return Ok(rustix::fs::fstat(held)?);
        }
        let (folder, name) = self.found.place.as_ref().ok_or(io::ErrorKind::NotFound)?;
        folder.stat(name)
    }

    fn link(&self, first: TreePath) -> PutEntry {
        let mut entry = Entry {
            path: self.found.path.as_bytes().to_vec(),
            link_target: first.into_bytes(),
            ..Default::default()
        };
        entry.set_kind(EntryKind::Hardlink);
        PutEntry { entry: Some(entry), ..Default::default() }
    }

    fn error(&self, source: io::Error) -> ReplicateError {
        ScanError::Entry { path: self.found.path.to_string(), source }.into()
    }
}

/// What the walk puts its steps into.
pub(super) struct StepQueue {
    waiting: VecDeque<Planned>,
    spool: SpoolWriter,
    names: Names,
}

impl StepQueue {
    /// Steps go to `spool`.
    pub(super) fn new(spool: SpoolWriter, names: Names) -> Self {
        Self { waiting: VecDeque::new(), spool, names }
    }

    /// Takes the next step. Waits for a file only when very many steps wait for it already.
    ///
    /// # Errors
    /// When the spool cannot be written to, a name cannot be read, or a reader has stopped.
    pub(super) fn push(&mut self, planned: Planned) -> Result<(), ReplicateError> {
        self.waiting.push_back(planned);
        loop {
            match self.waiting.front_mut() {
                None => return Ok(()),
                Some(Planned::File { outcome, replaces, kept }) => {
                    let replaces = *replaces;
                    let outcome = match outcome.try_recv() {
                        Err(TryRecvError::Empty) => break,
                        Ok(outcome) => Some(outcome),
                        Err(TryRecvError::Closed) => None,
                    };
                    let kept = kept.take();
                    self.waiting.pop_front();
                    self.read(outcome, replaces, kept)?;
                }
                Some(_) => {
                    let planned = self.waiting.pop_front().expect("it is the front");
                    self.take(planned)?;
                }
            }
        }
        if self.waiting.len() > MAX_WAITING
            && let Some(planned) = self.waiting.pop_front()
        {
            self.take(planned)?;
        }
        Ok(())
    }

    /// Takes the first of those that wait, and waits for its file.
    fn take(&mut self, planned: Planned) -> Result<(), ReplicateError> {
        match planned {
            Planned::Ready(step) => {
                if let Step::Put(put) = &step
                    && let Some(first) = first_of(put)
                {
                    self.names.links.add(first);
                }
                Ok(self.spool.push(step)?)
            }
            Planned::Kept(first) => {
                self.names.links.add(*first);
                Ok(self.spool.push(Step::Keep)?)
            }
            Planned::File { outcome, replaces, kept } => {
                self.read(outcome.blocking_recv().ok(), replaces, kept)
            }
            Planned::Further(further) => {
                let replaces = further.old.is_some();
                let named = self.names.resolve(*further)?;
                match named {
                    Named::Kept => Ok(self.spool.push(Step::Keep)?),
                    Named::Put(put) => self.put(put, replaces),
                    Named::Vanished => self.drop_old(replaces),
                }
            }
        }
    }

    /// Takes what came of reading; `None`: the reader has stopped.
    fn read(
        &mut self,
        outcome: Option<Outcome>,
        replaces: bool,
        kept: Option<Box<(u64, Option<First>)>>,
    ) -> Result<(), ReplicateError> {
        let outcome = outcome.ok_or(SpoolError::Stopped)?;
        self.names.note(&outcome);
        match outcome {
            Outcome::Read(read) => self.put(read, replaces),
            Outcome::Same(was_read) => {
                let (position, first) = kept.map_or((None, None), |kept| (Some(kept.0), kept.1));
                if let Some(first) = first {
                    self.names.links.add(first);
                }
                Ok(self.spool.push(match position.filter(|_| was_read) {
                    Some(entry) => Step::ReadAgain { entry },
                    None => Step::Keep,
                })?)
            }
            Outcome::Vanished => self.drop_old(replaces),
        }
    }

    fn put(&mut self, put: Box<(PutEntry, Seen)>, replaces: bool) -> Result<(), ReplicateError> {
        self.drop_old(replaces)?;
        Ok(self.spool.push(Step::Put(put))?)
    }

    fn drop_old(&mut self, replaces: bool) -> Result<(), ReplicateError> {
        if replaces {
            self.spool.push(Step::Drop)?;
        }
        Ok(())
    }

    /// Waits for all files, and ends the spool. Returns how many entries were kept and dropped, and what reads the files that are
    /// read last.
    ///
    /// # Errors
    /// As with [`StepQueue::push`].
    pub(super) fn finish(mut self) -> Result<((u64, u64), Names), ReplicateError> {
        while let Some(planned) = self.waiting.pop_front() {
            self.take(planned)?;
        }
        Ok((self.spool.finish()?, self.names))
    }
}

#[cfg(test)]
mod tests;
