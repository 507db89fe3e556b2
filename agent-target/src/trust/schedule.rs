//! What a target does by the clock: negative controls, checking again what was last checked long ago, and reading again what was
//! last read long ago.
//!
//! One thing at a time, on a thread of its own, and behind runs: it begins only while nothing is under way, and a run that
//! is opened ends it. What was ended that way is not recorded and comes again.

use std::{sync::Arc, time::Duration};

use assay_common::{
    id::{GenerationNumber, RunId},
    service_manager,
    verdict::{Outcome, Trust},
};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::control;
use crate::{
    check_queue::Wanted,
    keep::{prune, scrub},
    repository::Repository,
    verify::{self, AskedBy, Teller},
};

/// When a control that could not do its work is tried again, at the latest.
const RETRY_CONTROL: Duration = Duration::from_secs(3600);

/// How often the loop shows that it goes on.
const BEAT: Duration = Duration::from_secs(5);

/// How often it is looked whether something is due, at most.
const TICK: Duration = Duration::from_secs(30);

/// A time that is so far in the future is not a clock that is put right by little steps.
const FUTURE: Duration = Duration::from_secs(600);

/// What is due.
#[derive(Debug, Clone)]
enum Due {
    Control,
    Verify(GenerationNumber),
    Scrub(scrub::Wanted),
}

/// Looks after one repository, for ever.
pub async fn run(repository: Arc<Repository>) {
    let config = &repository.config;
    let spans = [config.control_every, config.reverify_after, config.scrub_every];
    // Without any of them: a scrub that a run ended is taken up again.
    let shortest = spans.into_iter().flatten().min().unwrap_or(TICK);
    let mut tick = tokio::time::interval(shortest.clamp(Duration::from_secs(1), TICK));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let pulse = format!("clock of {}", config.name);
    loop {
        let mut waiting = std::pin::pin!(tick.tick());
        while tokio::time::timeout(BEAT, &mut waiting).await.is_err() {
            service_manager::beat(&pulse);
        }
        service_manager::beat(&pulse);
        let (ended, mut end) = tokio::sync::oneshot::channel();
        let repository = Arc::clone(&repository);
        // A thread, not a task: the sandbox dies with the thread that started it.
        let body = move || {
            once(&repository, Timestamp::now());
            ended.send(()).ok();
        };
        match std::thread::Builder::new().name("by-the-clock".to_owned()).spawn(body) {
            // What is due may take hours, and has limits of its own.
            Ok(_) => {
                while tokio::time::timeout(BEAT, &mut end).await.is_err() {
                    service_manager::beat(&pulse);
                }
            }
            Err(error) => tracing::warn!(%error, "no thread for what is due"),
        }
    }
}

/// After a verdict: the first control follows the first PASS by itself, and one that is due does not wait for the next tick.
pub fn after_verdict(repository: &Arc<Repository>) {
    if !control_due(repository, Timestamp::now()) {
        return;
    }
    let held = Arc::clone(repository);
    let body = move || run_control(&held);
    if let Err(error) = std::thread::Builder::new().name("control".to_owned()).spawn(body) {
        tracing::warn!(%error, "no thread for the negative control");
    }
}

/// Runs a control, unless something else has the turn.
fn run_control(repository: &Repository) {
    let Some(lease) = repository.occupancy.begin_control() else {
        return;
    };
    // One that waited for too long has lost its turn, too.
    let slot = repository.check_slot(Wanted::ByTheClock, lease.token(), &|_| {});
    let done = match &slot {
        Ok(_) => control::run(repository, control::new_seed(), lease.token(), &|_| {}),
        Err(_) => Ok(None),
    };
    drop((slot, lease));
    match done {
        Ok(Some(_)) => repository.occupancy.control_had_its_turn(),
        Ok(None) => repository.occupancy.control_lost_its_turn(),
        Err(error) => {
            tracing::error!(repository = repository.config.name, error, "the negative control was not done");
        }
    }
}

fn once(repository: &Repository, now: Timestamp) {
    let Some(due) = due(repository, now) else {
        return;
    };
    if matches!(due, Due::Control) {
        return run_control(repository);
    }
    let Some(lease) = repository.occupancy.begin_background() else {
        return;
    };
    let done = match &due {
        Due::Control => Ok(()),
        Due::Verify(generation) => verify_again(repository, *generation, lease.token()),
        Due::Scrub(wanted) => {
            rustix::process::setpriority_process(None, 19).ok();
            let scrubbed = scrub::run(repository, wanted, lease.token(), &|_| {});
            scrubbed.map(drop).map_err(|error| error.to_string())
        }
    };
    drop(lease);
    if matches!(due, Due::Verify(_)) {
        prune::after_verdict(repository);
    }
    if let Err(error) = done {
        let due = match due {
            Due::Control => "a negative control".to_owned(),
            Due::Verify(generation) => format!("a check of generation {generation}"),
            Due::Scrub(_) => "a scrub".to_owned(),
        };
        tracing::error!(repository = repository.config.name, due, error, "what was due was not done");
    }
}

/// A control first: what a checker says counts for more when it is known to find damage.
fn due(repository: &Repository, now: Timestamp) -> Option<Due> {
    let is_older = |time: Timestamp, span: Duration| is_older(time, span, now);
    if control_due(repository, now) {
        return Some(Due::Control);
    }
    if let Some(due) = verify_due(repository, &is_older) {
        return Some(due);
    }
    if let Some(wanted) = scrub::unfinished(repository) {
        return Some(Due::Scrub(wanted));
    }
    let every = repository.config.scrub_every?;
    let is_due = |number: &GenerationNumber| {
        let read = repository.rot().scrubbed(*number);
        let time = read.or_else(|| Some(repository.store.record(*number).ok()?.sealed));
        time.is_none_or(|time| is_older(time, every))
    };
    // One that is due has most others read with it, because they share its files.
    let generations = repository.store.generations().ok()?;
    let any = generations.iter().any(is_due);
    any.then(|| {
        Due::Scrub(scrub::Wanted { generations: generations.into_iter().collect(), only: None, after: None })
    })
}

fn is_older(time: Timestamp, span: Duration, now: Timestamp) -> bool {
    // A time in the future was given by a clock that has been put right since: it says nothing.
    let apart = time.duration_until(now).unsigned_abs();
    if time <= now { apart >= span } else { apart >= FUTURE }
}

fn control_due(repository: &Repository, now: Timestamp) -> bool {
    let Some(every) = repository.config.control_every else {
        return false;
    };
    // It damages a copy of a generation that passed.
    if repository.newest_pass().is_none() {
        return false;
    }
    repository.control().is_none_or(|control| match control.trust() {
        Trust::Trusted | Trust::NotTrusted => is_older(control.time, every, now),
        Trust::Unknown => is_older(control.time, every.min(RETRY_CONTROL), now),
    })
}

fn verify_due(repository: &Repository, is_older: &dyn Fn(Timestamp, Duration) -> bool) -> Option<Due> {
    let after = repository.config.reverify_after?;
    let generations = repository.store.generations().ok()?;
    // The one that was checked longest ago; one that never was counts from its seal.
    let checked = generations.into_iter().filter_map(|generation| {
        let time = match repository.last_verdict(generation) {
            Some((_, verdict)) => verdict.times.signed,
            None => repository.store.record(generation).ok()?.sealed,
        };
        Some((time, generation))
    });
    let (time, generation) = checked.min()?;
    is_older(time, after).then_some(Due::Verify(generation))
}

fn verify_again(
    repository: &Repository,
    generation: GenerationNumber,
    cancel: &CancellationToken,
) -> Result<(), String> {
    let record = repository.store.record(generation).map_err(|error| error.to_string())?;
    let id: RunId =
        record.run_id.parse().map_err(|_| format!("the record of generation {generation} is damaged"))?;
    let _of_run = assay_common::telemetry::of_run(&id).entered();
    let (step, read_again) = (&|_: &str| {}, &|_| {});
    let teller = Teller { step, read_again, cancel: cancel.clone(), wanted: Wanted::ByTheClock };
    let Some((_, envelope)) =
        verify::check_unless_cancelled(repository, &id, &record, AskedBy::Operator, &teller)?
    else {
        return Ok(());
    };
    let verdict = assay_common::verdict::unverified_verdict(envelope.as_bytes());
    if verdict.is_ok_and(|verdict| verdict.outcome == Outcome::Fail) {
        tracing::error!(repository = repository.config.name, %generation, "a generation fails when it is checked again");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::keep::bench::Bench;

    fn sealed() -> Bench {
        let bench = Bench::new(None);
        let files: BTreeMap<&str, &[u8]> = [("file", b"content".as_slice())].into();
        bench.seal(&files);
        bench
    }

    /// The first control is due as soon as something passed, and not before.
    #[test]
    fn the_first_control_is_due_when_something_has_passed() {
        let bench = sealed();
        let repository = &bench.repository;
        assert!(!control_due(repository, Timestamp::now()), "nothing has passed");
        repository.set_standing(GenerationNumber(1), Outcome::Pass);
        assert!(control_due(repository, Timestamp::now()));
    }

    /// A control that could not do its work comes again after an hour, one that did after the time that is configured.
    #[test]
    fn a_control_comes_again_sooner_when_it_could_not_do_its_work() {
        let bench = sealed();
        let repository = &bench.repository;
        repository.set_standing(GenerationNumber(1), Outcome::Pass);
        let now = Timestamp::now();
        for (outcome, hours) in [(Outcome::Fail, 7 * 24), (Outcome::Pass, 7 * 24), (Outcome::Inconclusive, 1)]
        {
            let control = assay_common::verdict::NegativeControl {
                outcome,
                time: now,
                generation: Some(GenerationNumber(1)),
                message: String::new(),
                seed: None,
                profile: None,
                damages: Vec::new(),
            };
            repository.record_control(&control).expect("kept");
            let after = |hours: u64, seconds: u64| now + Duration::from_secs(hours * 3600 - 1 + seconds);
            assert!(!control_due(repository, after(hours, 0)), "{outcome}");
            assert!(control_due(repository, after(hours, 1)), "{outcome}");
        }
    }

    /// Another program under the same path is another checker: what the control has proven was the one before. The first one again is proven.
    #[test]
    fn a_control_follows_when_the_programs_of_the_check_were_exchanged() {
        let host = tempfile::tempdir().expect("temp");
        let program = host.path().join("check");
        std::fs::write(&program, "finds damage").expect("write");
        let bench = Bench::checked_by(&program);
        let files: BTreeMap<&str, &[u8]> = [("file", b"content".as_slice())].into();
        bench.seal(&files);
        let repository = &bench.repository;
        repository.set_standing(GenerationNumber(1), Outcome::Pass);
        let now = Timestamp::now();
        let control = assay_common::verdict::NegativeControl {
            outcome: Outcome::Fail,
            time: now,
            generation: Some(GenerationNumber(1)),
            message: String::new(),
            seed: None,
            profile: None,
            damages: Vec::new(),
        };
        repository.record_control(&control).expect("kept");
        let checker = repository.checker();
        assert!(!control_due(repository, now) && repository.former_control().is_none());
        assert!(repository.checker_since(checker).1.is_some());
        std::fs::write(&program, "says yes to all").expect("write");
        assert_ne!(repository.checker(), checker);
        assert!(control_due(repository, now) && repository.control().is_none());
        assert_eq!(repository.former_control().map(|it| it.time), Some(now));
        let (mixed, vouched) = repository.checker_since(checker);
        assert!(mixed != checker && mixed != repository.checker() && vouched.is_none());
        std::fs::write(&program, "finds damage").expect("write");
        assert!(repository.checker() == checker && !control_due(repository, now));
    }

    /// With a run under way whenever a control wants to begin, or one that ends it each time, it has its turn in the end.
    #[test]
    fn a_control_is_not_starved_by_runs() {
        let bench = sealed();
        let occupancy = &bench.repository.occupancy;
        let run = "20261122T224501Z-7f3a9c".parse().expect("id");
        // Once it was ended by a run, twice it found one under way.
        let begun = occupancy.begin_control().expect("nothing is under way");
        let opening = occupancy.open(&run).expect("a run may begin");
        assert!(begun.token().is_cancelled());
        drop(begun);
        occupancy.control_lost_its_turn();
        assert!(occupancy.begin_control().is_none());
        assert!(occupancy.begin_control().is_none());
        // Now it goes on beside runs, and only an operator ends it.
        let begun = occupancy.begin_control().expect("it has waited long enough");
        drop(opening);
        let opening = occupancy.open(&run).expect("a run may begin");
        assert!(!begun.token().is_cancelled());
        occupancy.preempt_background();
        assert!(begun.token().is_cancelled());
        drop(begun);
        occupancy.control_had_its_turn();
        assert!(occupancy.begin_control().is_none(), "from here on it waits again");
        drop(opening);
    }
}
