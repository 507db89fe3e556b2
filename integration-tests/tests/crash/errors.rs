//! Errors instead of crashes: every place in turn says that the disk fails, or that it is full; and a disk that really is full.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use assay_common::fault::Point;

use crate::{
    disk::Kind,
    long,
    rig::{Rig, Victim},
    table,
};

/// Runs by one pair of agents, each of which meets the next error, until none is left. The agents stay up; the run after the last
/// error passes.
fn gauntlet(victim: Victim, error: &str) -> BTreeMap<Point, String> {
    let mut rig = Rig::new(None, false, 7);
    let points: Vec<_> = Point::ALL.iter().filter(|point| Victim::of(**point).contains(&victim)).collect();
    let mut seen = BTreeMap::new();
    let mut struck = BTreeSet::new();
    rig.forget_basis();
    let trace = rig.start_gauntlet(
        victim,
        &points.iter().map(|point| format!("{}={error}", point.name())).collect::<Vec<_>>(),
    );
    let mut read = 0;
    for run in 0..3 * points.len() {
        let outcome = rig.gauntlet_run(victim);
        let lines = fs::read_to_string(&trace).unwrap_or_default();
        let names: Vec<_> = lines[read..].lines().filter_map(|line| line.strip_suffix('!')).collect();
        let hit: Vec<_> = points.iter().filter(|point| names.contains(&point.name())).collect();
        read = lines.len();
        for point in &hit {
            struck.insert(point.name());
            seen.entry(***point).or_insert_with(|| outcome.clone());
        }
        if hit.is_empty() && outcome == "PASS" && run > 0 {
            break;
        }
    }
    let missed: Vec<_> =
        points.iter().map(|point| point.name()).filter(|name| !struck.contains(name)).collect();
    assert!(missed.is_empty(), "{} {error}: no run passes {missed:?}", victim.role());
    rig.end_gauntlet();
    rig.clean_run(&format!("after {error} everywhere in the {}", victim.role()));
    seen
}

/// A disk that fails, or is full, at any write and read: the run says so and is no FAIL, the agents stay up, the next run passes.
#[test]
fn an_error_at_any_place_ends_a_run_at_most() {
    let mut all: BTreeMap<Point, BTreeSet<String>> = BTreeMap::new();
    let (mut errors, kinds) = (0, ["eio", "enospc"]);
    for victim in [Victim::Source, Victim::Target] {
        for error in kinds {
            for (point, outcome) in gauntlet(victim, error) {
                errors += 1;
                all.entry(point).or_default().insert(outcome);
            }
        }
    }
    println!("{errors} errors at {} places", all.len());
    let text = |outcomes: BTreeSet<String>| outcomes.into_iter().collect::<Vec<_>>().join(", ");
    table::note_errors(all.into_iter().map(|(point, outcomes)| (point, text(outcomes))).collect());
}

/// A disk with room for ever more of a run: wherever it is full, nothing is lost, and with room again the next run passes.
#[test]
fn a_disk_may_be_full_at_any_write() {
    let mut rig = Rig::new(Some(Kind::Ext4), false, 11);
    let steps: u64 = if long() { 60 } else { 8 };
    let (mut full, mut passed) = (0, 0);
    for step in 0..steps {
        let room = step * 640 * 1024 / steps;
        match rig.run_with_room(room) {
            0 => passed += 1,
            // NOT_RUN, or, when there was room to seal and none to check, INCONCLUSIVE.
            3 | 4 => full += 1,
            code => panic!("with {room} bytes free the run ends with {code}"),
        }
        rig.clean_run(&format!("with room again, after {room} bytes"));
    }
    println!("{full} runs found the disk full, {passed} had room enough");
    assert!(full > 0 && passed > 0, "{full} full, {passed} passed");
}
