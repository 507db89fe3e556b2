//! Bugs instead of crashes: a thread of the target panics at every place in turn, and the process lives on.

use std::{collections::BTreeMap, fs};

use assay_common::fault::Point;

use crate::{
    pair::{LIST, Pair},
    rig::{Rig, Victim},
};

/// Runs at most: each meets the next panic.
const RUNS_PER_POINT: usize = 3;
/// Stands for a run's outcome where the start of the agent met the panic.
const AT_START: &str = "at the start of the agent";

/// Wherever the target panics — while it opens a run, receives, seals, checks, prepares the next run — that costs a run at most: the
/// same process admits the next run, and after the last panic a run passes.
#[test]
fn a_panic_at_any_place_leaves_the_repository_to_the_next_run() {
    let points: Vec<_> =
        Point::ALL.iter().filter(|point| Victim::of(**point).contains(&Victim::Target)).collect();
    let plans: Vec<_> = points.iter().map(|point| format!("{}=panic", point.name())).collect();
    let mut rig = Rig::new(None, false, 13);
    rig.forget_basis();
    let trace = rig.start_gauntlet(Victim::Target, &plans);
    let process = rig.pair.process("target");
    let mut outcomes: BTreeMap<&str, String> = BTreeMap::new();
    let struck_by = |text: &str| {
        let names: Vec<_> = text.lines().filter_map(|line| line.strip_suffix('!')).collect();
        points.iter().map(|point| point.name()).filter(|name| names.contains(name)).collect::<Vec<_>>()
    };
    let mut read = fs::read_to_string(&trace).unwrap_or_default().len();
    for point in struck_by(&fs::read_to_string(&trace).unwrap_or_default()) {
        outcomes.insert(point, AT_START.to_owned());
    }
    for run in 0..RUNS_PER_POINT * points.len() {
        let outcome = rig.gauntlet_run(Victim::Target);
        let text = fs::read_to_string(&trace).unwrap_or_default();
        let hit = struck_by(&text[read..]);
        read = text.len();
        println!("run {}: {outcome}, panicked at {hit:?}", run + 1);
        for point in &hit {
            outcomes.entry(point).or_insert_with(|| outcome.clone());
        }
        // A copy is taken by the run after the one that made it: a run that meets no panic is not the last.
        if outcomes.len() == points.len() {
            break;
        }
    }
    let missed: Vec<_> = points.iter().map(|it| it.name()).filter(|it| !outcomes.contains_key(it)).collect();
    assert!(missed.is_empty(), "no run passes {missed:?}");
    rig.end_gauntlet_of(process);
    let log = rig.pair.logs();
    let counted = log.matches("the agent has a bug: a task panicked").count();
    println!("{} places, {counted} panics in the log, one process, and the last run passes", outcomes.len());
    // A place that the start of an agent passes panics before there is a log.
    let at_start = outcomes.values().filter(|outcome| *outcome == AT_START).count();
    assert!(counted + at_start >= points.len(), "{at_start} places at the start\n{log}");
}

/// An operator's check and control, and a control by the clock: the repository is free after the panic of each.
#[test]
fn a_panic_of_an_operators_work_leaves_the_repository_to_the_next_run() {
    let pair = Pair::with_profile(LIST, "").unproved();
    fs::write(pair.root(0).join("file"), "content").expect("write");
    pair.run(0);
    let trace = pair.path("trace");
    let start_with = |plan: &str| {
        pair.kill("target");
        drop(fs::remove_file(&trace));
        let trace = trace.to_string_lossy().into_owned();
        pair.set_environment("target", &[("ASSAY_FAULTS", plan.to_owned()), ("ASSAY_FAULTS_TRACE", trace)]);
        assert!(pair.start_doomed("target"), "{plan}: it does not start\n{}", pair.logs());
    };
    let has_struck =
        || fs::read_to_string(&trace).unwrap_or_default().lines().any(|line| line.ends_with('!'));
    // A scrub passes no place that the start of an agent does not pass as well: the unit tests have its lease.
    for (number, (command, plan)) in
        [("verify", "workspace.create=panic"), ("control", "workspace.create=panic")].into_iter().enumerate()
    {
        start_with(plan);
        assert!(!has_struck(), "{plan} strikes before anybody asks");
        let process = pair.process("target");
        let done = pair.target(&[command]);
        assert!(has_struck(), "{command}: {done:?}");
        assert_ne!(done.code, 0, "{command}: {done:?}");
        let again = pair.target(&[command]);
        assert_eq!(again.code, 0, "{command} again: {again:?}\n{}", pair.logs());
        fs::write(pair.root(0).join("file"), format!("content {number}")).expect("write");
        pair.run(0);
        assert_eq!(pair.process("target"), process, "{command}: one process");
        println!(
            "{command} with {plan}: exit code {}; again: exit code 0; the next run: PASS\n{}",
            done.code,
            done.stderr.trim()
        );
    }
    // By the clock: the first control follows the next PASS, panics, and its turn comes again.
    fs::remove_file(pair.path("store/repo/control.json")).expect("the operator's control");
    pair.configure("target", "control_every = \"never\"", "control_every = \"2s\"");
    start_with("workspace.create=panic");
    pair.eventually("a control by the clock panics", has_struck);
    pair.eventually("the next control comes to its end", || pair.path("store/repo/control.json").exists());
    pair.run(0);
    println!(
        "by the clock with workspace.create=panic: the next control comes to its end; the next run: PASS"
    );
}
