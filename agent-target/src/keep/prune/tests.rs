//! Pruning as an operator and a crash meet it.

use assay_common::verdict::Outcome;

use super::*;
use crate::keep::{bench::Bench, retention::Retention};

fn last(count: u32) -> Option<Retention> {
    Some(Retention {
        last: count,
        hourly: 0,
        daily: 0,
        weekly: 0,
        monthly: 0,
        within: None,
        failed_last: 0,
        failed_within: std::time::Duration::ZERO,
    })
}

fn five(retention: Option<Retention>) -> Bench {
    let bench = Bench::new(retention);
    for content in 1..=5u8 {
        bench.seal(&[("changes", &[content][..]), ("same", b"always")].into());
    }
    for number in 1..=4 {
        bench.repository.set_standing(GenerationNumber(number), Outcome::Pass);
    }
    bench
}

fn trash(bench: &Bench) -> usize {
    std::fs::read_dir(bench.repository.store.path().join("trash")).expect("trash").count()
}

#[test]
fn what_goes_is_gone_and_what_stays_is_whole() {
    let bench = five(last(1));
    let repository = &bench.repository;
    let asked = prune(repository, Timestamp::now(), true).expect("dry");
    assert_eq!((asked.gone.len(), bench.numbers()), (0, vec![1, 2, 3, 4, 5]));
    let pruned = prune(repository, Timestamp::now(), false).expect("prune");
    assert_eq!(pruned.gone, [1, 2, 3].map(GenerationNumber));
    assert_eq!((bench.numbers(), trash(&bench)), (vec![4, 5], 3));
    repository.store.clear_trash().expect("clear");
    assert_eq!(trash(&bench), 0);
    for number in [4, 5] {
        assert_eq!(std::fs::read(bench.path(number, "same")).expect("read"), b"always");
        assert_eq!(std::fs::read(bench.path(number, "changes")).expect("read"), [number as u8]);
    }
    assert_eq!(repository.store.verified(), Some(GenerationNumber(4)));
    // The next one builds upon what is there, and numbers go on.
    assert_eq!(bench.seal(&[("same", &b"always"[..])].into()).generation, 6);
}

#[test]
fn without_a_retention_nothing_goes() {
    let bench = five(None);
    assert!(matches!(prune(&bench.repository, Timestamp::now(), false), Err(PruneError::NoRetention { .. })));
    after_verdict(&bench.repository);
    assert_eq!(bench.numbers(), [1, 2, 3, 4, 5]);
}

#[test]
fn what_is_held_or_pinned_stays_and_a_run_keeps_all() {
    let bench = five(last(1));
    let repository = &bench.repository;
    repository.pins().as_mut().expect("pins").pin(GenerationNumber(2), "", Timestamp::now()).expect("pin");
    let held = repository.holds.hold(GenerationNumber(1));
    let run_id: RunId = "20261122T224501Z-7f3a9c".parse().expect("an id");
    let opening = repository.occupancy.examine(&run_id).expect("nothing is under way");
    let refused = prune(repository, Timestamp::now(), false);
    assert!(matches!(refused, Err(PruneError::Busy(id)) if id == run_id));
    assert_eq!(bench.numbers(), [1, 2, 3, 4, 5]);
    drop(opening);
    prune(repository, Timestamp::now(), false).expect("prune");
    assert_eq!(bench.numbers(), [1, 2, 4, 5]);
    drop(held);
    prune(repository, Timestamp::now(), false).expect("prune");
    assert_eq!(bench.numbers(), [2, 4, 5]);
}

#[test]
fn unknown_pins_keep_all() {
    let bench = five(last(1));
    std::fs::write(bench.repository.store.path().join("pins.json"), "{").expect("write");
    let bench = bench.reopen();
    assert!(matches!(prune(&bench.repository, Timestamp::now(), false), Err(PruneError::Pins(_))));
    assert_eq!(bench.numbers(), [1, 2, 3, 4, 5]);
}

/// A generation whose record is not to be read is not understood, so it stays.
#[test]
fn what_is_not_understood_stays() {
    let bench = five(last(1));
    let record =
        |number| bench.repository.store.generation_path(GenerationNumber(number)).join("record.json");
    std::fs::write(record(1), "{}").expect("write");
    std::fs::copy(record(3), record(2)).expect("copy");
    prune(&bench.repository, Timestamp::now(), false).expect("prune");
    assert_eq!(bench.numbers(), [1, 2, 4, 5]);
}

/// Killed before the rename, after it, and half-way through the deletion.
#[test]
fn a_crash_at_each_step_leaves_whole_generations() {
    let bench = five(last(1));
    bench.repository.store.discard(GenerationNumber(1)).expect("discard");
    bench.repository.store.discard(GenerationNumber(2)).expect("discard");
    let half = bench.repository.store.path().join("trash/000002/tree/same");
    std::fs::remove_file(half).expect("half-way");
    let bench = bench.reopen();
    assert_eq!(bench.numbers(), [3, 4, 5]);
    clear_trash(&bench.repository);
    assert_eq!((bench.numbers(), trash(&bench)), (vec![3, 4, 5], 0));
}
