//! Tells of verdicts in the order of the ledger, one after the other.
//!
//! Two verdicts can be recorded at the same time: a run that its source gives up, and a check by the clock. Each thread would tell of its own,
//! and the later verdict could be told first: then `told.json` ends on the earlier one, and the next start tells the later one again.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use assay_common::watch::Ended;

/// Verdicts that are in the ledger and were not told yet, in its order.
#[derive(Debug, Default)]
pub(super) struct Untold {
    queue: Mutex<VecDeque<Ended>>,
    /// Held by the thread that tells.
    telling: Mutex<()>,
}

impl Untold {
    pub(super) fn of(ended: Vec<Ended>) -> Self {
        Self { queue: Mutex::new(ended.into()), telling: Mutex::default() }
    }

    /// Adds a verdict. Whoever appends to the ledger calls this before another can append.
    pub(super) fn push(&self, ended: Ended) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(ended);
    }

    /// Gives each new verdict to `tell`, the oldest first. Verdicts that were added before this call have been told when it returns.
    pub(super) fn tell_each(&self, tell: impl Fn(Ended)) {
        let _alone = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let next = self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(ended) = next else { return };
            tell(ended);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use assay_common::{
        id::RunId,
        verdict::{Outcome, Verdict},
    };

    use crate::{
        keep::bench::Bench,
        repository::{Repository, times_now},
        verify,
    };

    const VERDICTS: u32 = 8;

    fn record(repository: &Repository, number: u32) {
        let id: RunId = format!("20261122T220000Z-{number:06x}").parse().expect("an id");
        let recorded = repository.record_verdict(|sequence, previous| Verdict {
            repository: repository.config.name.clone(),
            run_id: id,
            sequence,
            previous,
            outcome: Outcome::NotRun,
            reason: "cancelled".to_owned(),
            message: String::new(),
            generation: None,
            root: None,
            mark: None,
            depth: None,
            profile: None,
            steps: Vec::new(),
            patches: Vec::new(),
            overlay_files: Vec::new(),
            workspace: None,
            attribution: None,
            negative_control: None,
            overrides: Vec::new(),
            times: times_now(),
            versions: verify::versions(None),
            source_statement: None,
            coverage: None,
            nonce: None,
        });
        recorded.expect("recorded");
    }

    /// Several verdicts are in the ledger before the first is told: what was told last is the newest, whichever thread tells first.
    #[test]
    fn verdicts_that_end_together_are_told_in_the_order_of_the_ledger() {
        let bench = Bench::new(None);
        let repository = &*bench.repository;
        let count = || repository.verdicts().count();
        let newest = || repository.verdicts().next().map(|(id, _)| id);
        thread::scope(|scope| {
            let telling = repository.untold.telling.lock().expect("no panic");
            for number in 1..=VERDICTS {
                scope.spawn(move || record(repository, number));
                while count() < number as usize {
                    thread::yield_now();
                }
            }
            assert_eq!(repository.store.told().as_deref(), Some(""));
            drop(telling);
        });
        assert_eq!((newest().as_deref(), repository.store.told()), (Some("000000008"), newest()));
        let standing = repository.watch.standing();
        assert_eq!(
            (standing.last.map(|last| last.verdict_id), standing.ends[3]),
            (newest(), VERDICTS.into())
        );
    }

    /// A verdict that arrives while another is told waits for it, and the thread that tells takes it over.
    #[test]
    fn a_verdict_that_arrives_meanwhile_is_told_after_the_one_that_is_told() {
        let bench = Bench::new(None);
        let ended = |id: &str| {
            record(&bench.repository, 1);
            let last = bench.repository.watch.standing().last.expect("an end");
            super::Ended { verdict_id: id.to_owned(), ..last }
        };
        let (first, second) = (ended("1"), ended("2"));
        let untold = super::Untold::of(vec![first]);
        let told = std::sync::Mutex::new(Vec::new());
        untold.tell_each(|ended| {
            if ended.verdict_id == "1" {
                untold.push(second.clone());
            }
            told.lock().expect("no panic").push(ended.verdict_id);
        });
        assert_eq!(*told.lock().expect("no panic"), ["1", "2"]);
    }
}
