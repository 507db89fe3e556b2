//! Steps in the walk's order: those behind a file that is still being read wait here.

use std::collections::VecDeque;

use tokio::sync::oneshot::error::TryRecvError;

use super::spool::{SpoolError, SpoolWriter, Step};

/// Steps that wait: enough for the walk to run well ahead of the readers, little enough to hold.
const MAX_WAITING: usize = 4096;

/// What the walk puts its steps into.
pub(super) struct StepQueue {
    waiting: VecDeque<Step>,
    spool: SpoolWriter,
}

impl StepQueue {
    /// Steps go to `spool`.
    pub(super) fn new(spool: SpoolWriter) -> Self {
        Self { waiting: VecDeque::new(), spool }
    }

    /// Takes the next step. Waits for a file only when very many steps wait for it already.
    ///
    /// # Errors
    /// When the spool cannot be written to, or a reader has stopped.
    pub(super) fn push(&mut self, step: Step) -> Result<(), SpoolError> {
        self.waiting.push_back(step);
        while let Some(step) = self.next_ready() {
            self.spool.push(step)?;
        }
        if self.waiting.len() > MAX_WAITING
            && let Some(step) = self.waiting.pop_front()
        {
            self.spool.push(step)?;
        }
        Ok(())
    }

    /// The first step, unless its file is being read.
    fn next_ready(&mut self) -> Option<Step> {
        if let Step::File { outcome, linked } = self.waiting.front_mut()? {
            let linked = *linked;
            let outcome = match outcome.try_recv() {
                Err(TryRecvError::Empty) => return None,
                Ok(outcome) => Some(outcome),
                Err(TryRecvError::Closed) => None,
            };
            self.waiting.pop_front();
            return Some(Step::Done { outcome, linked });
        }
        self.waiting.pop_front()
    }

    /// Waits for all files, and ends the spool. Returns how many entries were kept and dropped.
    ///
    /// # Errors
    /// When the spool cannot be written to, or a reader has stopped.
    pub(super) fn finish(mut self) -> Result<(u64, u64), SpoolError> {
        for step in self.waiting {
            self.spool.push(step)?;
        }
        self.spool.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replicate::{basis::Seen, reader::Outcome};
    use assay_common::manifest::Entry;
    use assay_proto::v1::{ManifestStep, PutEntry, manifest_step::Kind};
    use prost::Message as _;
    use tokio::sync::oneshot;

    fn read(name: &str) -> Outcome {
        let entry = Entry { path: name.as_bytes().to_vec(), ..Default::default() };
        Outcome::Read(Box::new((PutEntry { entry: Some(entry), ..Default::default() }, Seen::default())))
    }

    fn file(linked: bool) -> (oneshot::Sender<Outcome>, Step) {
        let (sender, outcome) = oneshot::channel();
        (sender, Step::File { outcome, linked })
    }

    /// Whenever the files are read, the steps are in the walk's order.
    #[test]
    fn steps_keep_their_order() {
        let folder = tempfile::tempdir().expect("temp");
        let mut queue = StepQueue::new(SpoolWriter::create(folder.path()).expect("a spool"));
        let (first, step) = file(false);
        queue.push(step).expect("taken");
        queue.push(Step::Keep).expect("taken");
        let (second, step) = file(false);
        queue.push(step).expect("taken");
        let (gone, step) = file(false);
        queue.push(step).expect("taken");
        second.send(read("second")).expect("it is waited for");
        queue.push(Step::Keep).expect("taken");
        assert_eq!(queue.waiting.len(), 5, "the first is not read");
        first.send(read("first")).expect("it is waited for");
        queue.push(Step::Keep).expect("taken");
        assert_eq!(queue.waiting.len(), 3, "the third is not read");
        gone.send(Outcome::Vanished).expect("it is waited for");
        assert_eq!(queue.finish().expect("written"), (3, 0));
        let steps = std::fs::read(folder.path().join("steps")).expect("the steps");
        let (mut rest, mut found) = (&steps[..], Vec::new());
        while !rest.is_empty() {
            found.push(match ManifestStep::decode_length_delimited(&mut rest).expect("a step").kind {
                Some(Kind::Put(put)) => String::from_utf8(put.entry.expect("an entry").path).expect("text"),
                kind => format!("{kind:?}"),
            });
        }
        assert_eq!(found, ["first", "Some(Keep(1))", "second", "Some(Keep(2))"]);
    }

    /// A reader that stops, or a file that lost the name that others are links to, is found wherever it is waited for.
    #[test]
    fn what_cannot_be_told_is_an_error() {
        let stopped = |step| {
            let folder = tempfile::tempdir().expect("temp");
            let mut queue = StepQueue::new(SpoolWriter::create(folder.path()).expect("a spool"));
            let pushed = queue.push(step);
            pushed.and_then(|()| queue.finish()).expect_err("it is told")
        };
        let (sender, step) = file(false);
        drop(sender);
        assert!(matches!(stopped(step), SpoolError::Stopped));
        let (sender, step) = file(true);
        sender.send(Outcome::Vanished).expect("it is waited for");
        assert!(matches!(stopped(step), SpoolError::LinksChanged));
    }

    /// However long a file takes, no more than so many steps wait for it.
    #[test]
    fn the_walk_waits_for_a_file_that_takes_long() {
        let folder = tempfile::tempdir().expect("temp");
        let mut queue = StepQueue::new(SpoolWriter::create(folder.path()).expect("a spool"));
        let (slow, step) = file(false);
        queue.push(step).expect("taken");
        for _ in 1..MAX_WAITING {
            queue.push(Step::Keep).expect("taken");
        }
        assert_eq!(queue.waiting.len(), MAX_WAITING);
        slow.send(read("slow")).expect("it is waited for");
        queue.push(Step::Drop).expect("taken");
        assert!(queue.waiting.is_empty());
        assert_eq!(queue.finish().expect("written"), (MAX_WAITING as u64 - 1, 1));
    }
}
