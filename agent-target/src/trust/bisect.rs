//! Finds the first bad generation: between the newest that passed and the oldest after it that failed, by halves.
//!
//! What the ledger knows already is not checked again. A generation on which the check can do no work is passed over, and
//! told.

use assay_common::{
    id::{GenerationNumber, RunId},
    verdict::Outcome,
};
use assay_proto::v1::{Bisected, ChangedEntry};

use tokio_util::sync::CancellationToken;

use super::difference::differences;
use crate::{
    check_queue::Wanted,
    repository::Repository,
    verify::{self, AskedBy, Teller},
};

/// Changes that are listed.
const CHANGES: usize = 1000;

/// The next generation to check: the one nearest to the middle of those between `good` and `bad` that are not known to give
/// no answer.
fn next(
    generations: &[GenerationNumber],
    good: Option<GenerationNumber>,
    bad: GenerationNumber,
    unknown: &[GenerationNumber],
) -> Option<GenerationNumber> {
    let between: Vec<_> =
        generations.iter().copied().filter(|it| good.is_none_or(|good| *it > good) && *it < bad).collect();
    let middle = between.len() / 2;
    let open = between.iter().enumerate().filter(|(_, it)| !unknown.contains(it));
    open.min_by_key(|(at, _)| at.abs_diff(middle)).map(|(_, generation)| *generation)
}

/// Bisects. `on_verdict` hears of every check that was made, by its verdict's id and envelope.
///
/// # Errors
/// When nothing has failed, or when a check has no verdict.
pub fn run(
    repository: &Repository,
    on_step: &dyn Fn(GenerationNumber, &str),
    on_verdict: &dyn Fn(String, String),
) -> Result<Bisected, String> {
    let generations = repository.store.generations().map_err(|error| error.to_string())?;
    let newest_pass = |before: GenerationNumber| {
        let mut passed = generations.iter().copied().filter(|it| *it < before);
        passed.rfind(|it| repository.standing(*it) == Some(Outcome::Pass))
    };
    // The newest failure tells which stretch is asked about: an older one that was repaired since is history.
    let newest_fail = generations.iter().copied().rfind(|it| repository.standing(*it) == Some(Outcome::Fail));
    let newest_fail = newest_fail.ok_or("no generation has failed: there is nothing to look for")?;
    let mut good = newest_pass(newest_fail);
    let mut bad = generations
        .iter()
        .copied()
        .find(|it| good.is_none_or(|good| *it > good) && repository.standing(*it) == Some(Outcome::Fail))
        .unwrap_or(newest_fail);
    let mut unknown = Vec::new();
    while let Some(generation) = next(&generations, good, bad, &unknown) {
        match check(repository, generation, on_step, on_verdict)? {
            Outcome::Pass => good = Some(generation),
            Outcome::Fail => bad = generation,
            Outcome::Inconclusive | Outcome::NotRun => unknown.push(generation),
        }
    }
    unknown.retain(|it| good.is_none_or(|good| *it > good) && *it < bad);
    conclude(repository, good, bad, &unknown)
}

fn check(
    repository: &Repository,
    generation: GenerationNumber,
    on_step: &dyn Fn(GenerationNumber, &str),
    on_verdict: &dyn Fn(String, String),
) -> Result<Outcome, String> {
    let record = repository.store.record(generation).map_err(|error| error.to_string())?;
    let id: RunId =
        record.run_id.parse().map_err(|_| format!("the record of generation {generation} is damaged"))?;
    let teller = Teller {
        step: &|step| on_step(generation, step),
        read_again: &|_| {},
        cancel: CancellationToken::new(),
        wanted: Wanted::Now,
    };
    let (verdict_id, envelope) =
        verify::check_and_record(repository, &id, &record, AskedBy::Operator, &teller)?;
    let verdict =
        assay_common::verdict::unverified_verdict(envelope.as_bytes()).map_err(|error| error.to_string())?;
    on_verdict(verdict_id, envelope);
    Ok(verdict.outcome)
}

fn conclude(
    repository: &Repository,
    good: Option<GenerationNumber>,
    bad: GenerationNumber,
    unknown: &[GenerationNumber],
) -> Result<Bisected, String> {
    let (mut changes, mut further) = (Vec::new(), 0);
    let message = match good {
        None => {
            format!("generation {bad} is the oldest that is there, and fails: it came in with it, or before")
        }
        Some(good) => {
            differences(&repository.store, (good, bad), |change| {
                if changes.len() == CHANGES {
                    further += 1;
                    return;
                }
                changes.push(ChangedEntry {
                    path: change.path.to_string(),
                    change: change.kind().to_owned(),
                    size_before: change.before.as_ref().map_or(0, |entry| entry.size),
                    size_after: change.after.as_ref().map_or(0, |entry| entry.size),
                });
            })
            .map_err(|error| error.to_string())?;
            match unknown {
                [] => {
                    format!("generation {good} is the last good one, and generation {bad} the first bad one")
                }
                _ => format!(
                    "generation {good} is the last that passes, and generation {bad} the first that fails; of those in between \
                     nothing is known"
                ),
            }
        }
    };
    Ok(Bisected {
        last_good: good.map_or(0, |good| good.0),
        first_bad: bad.0,
        inconclusive: unknown.iter().map(|it| it.0).collect(),
        changes,
        further_changes: further,
        message,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the first bad one is, it is found, with no more checks than halving needs.
    #[test]
    fn the_first_bad_one_is_found_by_halves() {
        let generations: Vec<_> = (1..=17).map(GenerationNumber).collect();
        for first_bad in 2..=17 {
            let (mut good, mut bad, mut checks) = (GenerationNumber(1), GenerationNumber(17), 0);
            while let Some(middle) = next(&generations, Some(good), bad, &[]) {
                if middle.0 < first_bad {
                    good = middle
                } else {
                    bad = middle
                }
                checks += 1;
            }
            assert_eq!((good.0, bad.0), (first_bad - 1, first_bad));
            assert!(checks <= 4, "{checks} checks");
        }
    }

    #[test]
    fn what_gives_no_answer_is_passed_over() {
        let generations: Vec<_> = [1, 2, 4, 7].map(GenerationNumber).to_vec();
        let between = |unknown: &[u64]| {
            let unknown: Vec<_> = unknown.iter().copied().map(GenerationNumber).collect();
            next(&generations, Some(GenerationNumber(1)), GenerationNumber(7), &unknown).map(|it| it.0)
        };
        assert_eq!(between(&[]), Some(4));
        assert_eq!(between(&[4]), Some(2));
        assert_eq!(between(&[2, 4]), None);
    }
}
