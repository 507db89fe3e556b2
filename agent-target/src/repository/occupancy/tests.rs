//! The table of states and requests, and leases that end by themselves.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc,
};

use super::*;
use crate::{
    keep::bench::Bench,
    receive::{Allowance, PlaceReader},
};

/// Every request of run A in every state; `.A` and `.B` say whose the state is. `begin`, `wait` and `follow` are admissions, `none` is
/// "no such run", `later` is "not now", and the others say in which way the run is busy.
const TABLE: &str = "
                 free   opening.A opening.B waiting.A waiting.B receiving.A receiving.B sealing.A sealing.B sealed.A sealed.B checking.A checking.B examining.A examining.B pruning
OpenRun          begin  wait      wait      begin     begin     begin       under-way   ending    ending    already  begin    ending     ending     ending      ending      wait
Transfer         none   none      none      begin     none      begin       none        none      none      none     none     none       none       none        none        none
SealRun          none   not-ready none      begin     none      not-ready   none        not-ready none      not-ready none    not-ready  none       not-ready   none        none
CheckRun         begin  under-way under-way under-way under-way under-way   under-way   under-way under-way begin    under-way follow    under-way  under-way   under-way   wait
AbandonRun       none   wait      wait      begin     none      begin       none        ending    none      begin    none     ending     none       ending      none        wait
Verify           begin  under-way under-way silent    silent    under-way   under-way   under-way under-way begin    begin    under-way  under-way  under-way   under-way   wait
Examine          begin  under-way under-way silent    silent    under-way   under-way   under-way under-way begin    begin    under-way  under-way  under-way   under-way   wait
Prune            begin  under-way under-way under-way under-way under-way   under-way   under-way under-way begin    begin    under-way  under-way  under-way   under-way   wait
Discard          begin  later     later     begin     begin     under-way   under-way   under-way under-way begin    begin    under-way  under-way  under-way   under-way   later
Background       begin  later     later     later     later     later       later       later     later     later    later    later      later      later       later       wait
InsistentControl begin  begin     begin     begin     begin     begin       begin       begin     begin     begin    begin    begin      begin      begin       begin       begin
CopyAhead        begin  later     later     later     later     later       later       later     later     later    later    later      later      later       later       wait
";

fn run(letter: &str) -> RunId {
    let end = if letter == "A" { "7f3a9c" } else { "000000" };
    format!("20261122T224501Z-{end}").parse().expect("an id")
}

fn activity(name: &str) -> Activity {
    let (what, of) = name.split_once('.').unwrap_or((name, "A"));
    let run = run(of);
    match what {
        "free" => Activity::Free,
        "opening" => Activity::Opening(run),
        "waiting" => Activity::WaitingForSource(run),
        "receiving" => Activity::Receiving(run),
        "sealing" => Activity::Sealing(run),
        "sealed" => Activity::Sealed(run),
        "checking" => Activity::Checking(run),
        "examining" => Activity::Examining(run),
        "pruning" => Activity::Pruning,
        other => panic!("no state is called {other}"),
    }
}

fn request<'a>(name: &str, run: &'a RunId) -> Request<'a> {
    let all = all_requests(run);
    let named = all.into_iter().find(|request| format!("{request:?}").split('(').next() == Some(name));
    named.unwrap_or_else(|| panic!("no request is called {name}"))
}

fn all_requests(run: &RunId) -> [Request<'_>; 12] {
    [
        Request::OpenRun(run),
        Request::Transfer(run),
        Request::SealRun(run),
        Request::CheckRun(run),
        Request::AbandonRun(run),
        Request::Verify,
        Request::Examine,
        Request::Prune,
        Request::Discard,
        Request::Background,
        Request::InsistentControl,
        Request::CopyAhead,
    ]
}

fn word(admission: &Admission) -> &'static str {
    match admission {
        Admission::Begin => "begin",
        Admission::Follow => "follow",
        Admission::Wait => "wait",
        Admission::Refuse(Refusal::NoSuchRun) => "none",
        Admission::Refuse(Refusal::NotNow) => "later",
        Admission::Refuse(Refusal::Busy { why, .. }) => match why {
            Busy::UnderWay => "under-way",
            Busy::WaitsForSource => "silent",
            Busy::SealedOrChecked => "ending",
            Busy::SealedAlready => "already",
            Busy::NotReadyToSeal => "not-ready",
        },
    }
}

/// Each cell of the table is what the code decides, and each pair has its cell.
#[test]
fn every_request_in_every_state_is_decided_by_the_table() {
    let mut lines = TABLE.lines().filter(|line| !line.is_empty());
    let states: Vec<&str> = lines.next().expect("a head").split_whitespace().collect();
    assert_eq!(states.len(), 16, "nine states, seven of them of run A and of run B");
    let (own, mut cells, mut rows) = (run("A"), 0, 0);
    for line in lines {
        let mut words = line.split_whitespace();
        let name = words.next().expect("a request");
        rows += 1;
        for state in &states {
            let activity = activity(state);
            let admission = admit(&activity, Background::None, request(name, &own));
            assert_eq!(Some(word(&admission)), words.next(), "{name} while {state}");
            if let Admission::Refuse(Refusal::Busy { run, .. }) = &admission {
                assert_eq!(Some(run), activity.run(), "{name} while {state}: whose it is");
            }
            cells += 1;
        }
        assert_eq!(words.next(), None, "{name}: more cells than states");
    }
    assert_eq!(rows, all_requests(&own).len());
    println!("{cells} cells: {rows} requests in {} states\n{TABLE}", states.len());
}

/// Background work keeps nobody waiting: it is preempted, or goes on beside. There is one piece of it at a time.
#[test]
fn background_work_changes_no_answer_but_to_other_background_work() {
    let own = run("A");
    let states = ["free", "waiting.A", "waiting.B", "receiving.A", "sealed.A", "checking.A", "pruning"];
    for background in [Background::Preemptible, Background::Insistent] {
        for (state, request) in states.iter().flat_map(|state| all_requests(&own).map(|it| (state, it))) {
            let with = admit(&activity(state), background, request);
            match request {
                Request::Background | Request::InsistentControl => {
                    assert_eq!(with, Admission::Refuse(Refusal::NotNow), "{request:?} while {state}");
                }
                _ => assert_eq!(with, admit(&activity(state), Background::None, request)),
            }
        }
    }
    let preempted = |background| all_requests(&own).into_iter().filter(move |it| preempts(*it, background));
    let names = |background| {
        preempted(background)
            .map(|it| format!("{it:?}").split('(').next().expect("a name").to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(Background::Preemptible), ["OpenRun", "CheckRun", "Verify", "Examine"]);
    assert_eq!(names(Background::Insistent), ["Verify", "Examine"]);
    assert!(names(Background::None).is_empty());
}

fn reception(bench: &Bench) -> Reception {
    let repository = &bench.repository;
    let staging = Arc::new(repository.store.open_staging().expect("staging"));
    let allowance = Allowance::new(
        None,
        0,
        assay_common::config::Size(0),
        (Arc::clone(&staging), Arc::clone(&repository.copies)),
    );
    let places = PlaceReader::new(
        Arc::clone(&repository.store),
        Arc::clone(&staging),
        Arc::clone(&repository.index),
        None,
    );
    let receiver = Arc::new(Receiver::new(Arc::clone(&staging), places, None, allowance));
    let opened = Opened { time: jiff::Timestamp::now(), nonce: None, statements: 0, full_check: false };
    Reception { staging, base: None, receiver, opened }
}

fn opened(bench: &Bench, run: &RunId) -> Occupancy {
    let occupancy = Occupancy::default();
    let lease = occupancy.open(run).expect("it is free");
    lease.receive(run.clone(), reception(bench));
    occupancy
}

fn doing(occupancy: &Occupancy) -> String {
    occupancy.now().map_or_else(|| "nothing".to_owned(), |now| now.doing)
}

/// The panic of a piece of work that has a lease.
fn panic_with<P: Phase>(lease: Lease<P>) {
    let panicked = catch_unwind(AssertUnwindSafe(move || {
        let _lease = lease;
        std::panic::panic_any("on purpose");
    }));
    assert!(panicked.is_err());
}

/// Whatever panics, the repository is as it was before, and the next run is admitted.
#[test]
fn a_panic_in_any_phase_puts_back_what_was_before() {
    let bench = Bench::new(None);
    let (own, other) = (run("A"), run("B"));
    let next_run_begins = |occupancy: &Occupancy| {
        occupancy
            .open(&other)
            .unwrap_or_else(|refusal| panic!("{refusal:?}"))
            .receive(other.clone(), reception(&bench));
        assert_eq!(occupancy.now().map(|now| now.run), Some(other.clone()));
    };
    let free = Occupancy::default();
    panic_with(free.open(&own).expect("open"));
    assert_eq!(doing(&free), "nothing");
    next_run_begins(&free);

    // A run that is being taken up again is open as it was before.
    let occupancy = opened(&bench, &own);
    panic_with(occupancy.open(&own).expect("taken up"));
    assert_eq!(doing(&occupancy), "waiting for its source");
    next_run_begins(&occupancy);

    let occupancy = opened(&bench, &own);
    panic_with(occupancy.attach(&own).expect("attach"));
    assert_eq!(doing(&occupancy), "waiting for its source");
    next_run_begins(&occupancy);

    let occupancy = opened(&bench, &own);
    panic_with(occupancy.seal(&own).expect("seal"));
    assert_eq!(doing(&occupancy), "waiting for its source");
    next_run_begins(&occupancy);

    let occupancy = opened(&bench, &own);
    occupancy.seal(&own).expect("seal").sealed();
    let Ok(CheckAdmission::Begin(lease, states)) = occupancy.check(&own) else { panic!("it is sealed") };
    panic_with(lease);
    assert_eq!(doing(&occupancy), "sealed, not checked yet");
    let told = states.borrow().done.clone().expect("who follows is told");
    assert!(told.is_err_and(|text| text.contains("panicked")));
    next_run_begins(&occupancy);

    let occupancy = Occupancy::default();
    panic_with(occupancy.verify(&own).expect("verify").0);
    panic_with(occupancy.examine(&own).expect("examine"));
    panic_with(occupancy.prune().expect("prune"));
    panic_with(occupancy.begin_background().expect("the clock"));
    panic_with(occupancy.begin_background().expect("the clock again"));
    panic_with(occupancy.begin_copying_ahead(CancellationToken::new).expect("ahead"));
    assert_eq!(doing(&occupancy), "nothing");
    next_run_begins(&occupancy);
}

/// A thread that cannot be started drops its lease with its body.
#[test]
fn a_lease_that_is_dropped_unused_puts_back_what_was_before() {
    let bench = Bench::new(None);
    let own = run("A");
    let occupancy = opened(&bench, &own);
    occupancy.seal(&own).expect("seal").sealed();
    let Ok(CheckAdmission::Begin(lease, _)) = occupancy.check(&own) else { panic!("it is sealed") };
    let body = move || drop(lease);
    drop(body);
    let Ok(CheckAdmission::Begin(lease, states)) = occupancy.check(&own) else {
        panic!("it is sealed still")
    };
    lease.done(Ok(("000000001".to_owned(), "{}".to_owned())));
    assert!(states.borrow().done.clone().is_some_and(|done| done.is_ok()));
    assert_eq!(doing(&occupancy), "nothing");
}

/// An operator's check of another generation does not make a sealed run's check unnecessary.
#[test]
fn a_sealed_run_is_sealed_still_after_an_operators_check() {
    let bench = Bench::new(None);
    let (own, other) = (run("A"), run("B"));
    let occupancy = opened(&bench, &own);
    occupancy.seal(&own).expect("seal").sealed();
    let (lease, _) = occupancy.verify(&other).expect("verify");
    assert_eq!(occupancy.now().map(|now| now.run), Some(other));
    lease.done(Err("no verdict".to_owned()));
    assert_eq!(doing(&occupancy), "sealed, not checked yet");
    let (lease, _) = occupancy.verify(&own).expect("verify");
    lease.done(Ok(("000000001".to_owned(), "{}".to_owned())));
    assert_eq!(doing(&occupancy), "nothing");
}

/// The older of two streams ends, and its end does not detach the younger.
#[test]
fn a_stream_takes_the_place_of_an_older_one() {
    let bench = Bench::new(None);
    let own = run("A");
    let occupancy = opened(&bench, &own);
    let older = occupancy.attach(&own).expect("attach");
    let younger = occupancy.attach(&own).expect("attach");
    assert!(older.token().is_cancelled() && !younger.token().is_cancelled());
    drop(older);
    assert_eq!(doing(&occupancy), "receiving");
    assert!(matches!(occupancy.open(&run("B")), Err(Refusal::Busy { why: Busy::UnderWay, .. })));
    // Opened again while it is attached: the stream ends, and the run is open whether or not that succeeds.
    drop(occupancy.open(&own).expect("taken up"));
    assert!(younger.token().is_cancelled());
    assert_eq!(doing(&occupancy), "waiting for its source");
    let newest = occupancy.attach(&own).expect("attach");
    assert!(occupancy.abandon(&own).expect("given up").is_some());
    assert!(newest.token().is_cancelled());
    drop(newest);
    assert_eq!(doing(&occupancy), "nothing");
}

/// A run that is opened while generations are pruned preempts the pruning, and begins when that has ended.
#[test]
fn a_run_preempts_a_pruning_and_waits_for_its_end() {
    let occupancy = Occupancy::default();
    let pruning = occupancy.prune().expect("prune");
    assert!(!pruning.is_preempted());
    let (begun, is_begun) = mpsc::sync_channel(1);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let lease = occupancy.open(&run("A")).expect("after the pruning");
            begun.send(()).expect("somebody listens");
            drop(lease);
        });
        while !pruning.is_preempted() {
            std::thread::yield_now();
        }
        assert!(is_begun.try_recv().is_err(), "not before the pruning has ended");
        drop(pruning);
        is_begun.recv().expect("it begins");
    });
}

/// A run that is being opened keeps `status` and metrics from nothing.
#[test]
fn nobody_waits_for_a_lease_to_look() {
    let occupancy = Occupancy::default();
    let _opening = occupancy.open(&run("A")).expect("open");
    assert_eq!(doing(&occupancy), "opening");
    assert!(matches!(occupancy.verify(&run("B")), Err(Refusal::Busy { .. })));
    assert!(matches!(occupancy.attach(&run("A")), Err(Refusal::NoSuchRun)));
    assert!(occupancy.begin_background().is_none() && !occupancy.may_be_sealed(&run("A")));
}
