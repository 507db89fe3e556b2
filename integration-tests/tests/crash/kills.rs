//! Kills and power cuts, place by place and at random moments.

use std::collections::BTreeMap;

use assay_common::fault::Point;

use crate::{
    disk::Kind,
    long,
    rig::{Outcome, Rig, Victim},
    seed,
    table::{self, Seen},
};

/// Kills and cuts in a row, before a run must pass again.
const CHAIN: usize = 5;
/// Rows of kills by one pair of agents: generations add up, and each is read again by the judge after each kill.
const CHAINS_OF_A_RIG: usize = 6;
/// Random kills and cuts on each file system, in the long mode.
const RANDOM_KILLS: u64 = 240;
const RANDOM_CUTS: u64 = 40;

/// One thing that is done to the agents.
#[derive(Debug, Clone)]
enum Blow {
    Kill(Victim, Point, u64),
    KillAnywhere(Victim),
    KillByProgress(Victim),
    Cut(Point, u64),
    CutAnywhere,
}

/// How often a run passes each point, by agent.
struct Passed {
    by_source: BTreeMap<String, u64>,
    by_target: BTreeMap<String, u64>,
}

impl Passed {
    fn see(rig: &mut Rig) -> Self {
        Self { by_source: rig.trace(Victim::Source), by_target: rig.trace(Victim::Target) }
    }

    fn by(&self, victim: Victim) -> &BTreeMap<String, u64> {
        match victim {
            Victim::Source => &self.by_source,
            Victim::Target => &self.by_target,
        }
    }

    fn times(&self, victim: Victim, point: Point) -> u64 {
        // What is passed only after something went wrong before is passed once then.
        self.by(victim).get(point.name()).copied().unwrap_or(1)
    }

    fn all(&self, victim: Victim) -> u64 {
        self.by(victim).values().sum()
    }
}

/// The blows at places: in the long mode at every place, the first time that it is passed, in the middle and the last time.
/// In the short mode at every place once, each on one of the file systems.
fn at_places(kind: Kind, passed: &Passed, rig: &mut Rig) -> Vec<Blow> {
    let mut blows = Vec::new();
    for (index, point) in Point::ALL.iter().enumerate() {
        for victim in Victim::of(*point) {
            let times = passed.times(victim, *point);
            if long() {
                let mut choices = vec![1, times.div_ceil(2), times];
                choices.dedup();
                blows.extend(choices.into_iter().map(|time| Blow::Kill(victim, *point, time)));
                if victim == Victim::Target {
                    blows.push(Blow::Cut(*point, times.div_ceil(2)));
                }
            } else if index % Kind::ALL.len() == kind as usize {
                blows.push(Blow::Kill(victim, *point, 1 + rig.dice(times)));
            }
        }
    }
    blows
}

fn everything(kind: Kind) {
    println!("{}: seed {}", kind.name(), seed());
    let rig_seed = seed().wrapping_add(kind as u64);
    let mut rig = Rig::new(Some(kind), false, rig_seed);
    let passed = Passed::see(&mut rig);
    let mut blows = at_places(kind, &passed, &mut rig);
    if long() {
        for number in 0..RANDOM_KILLS {
            let victim = if number % 2 == 0 { Victim::Target } else { Victim::Source };
            blows.push(if number % 3 == 0 {
                Blow::KillByProgress(victim)
            } else {
                Blow::KillAnywhere(victim)
            });
        }
        blows.extend((0..RANDOM_CUTS).map(|_| Blow::CutAnywhere));
    } else {
        blows.extend([
            Blow::KillByProgress(Victim::Target),
            Blow::KillAnywhere(Victim::Source),
            Blow::CutAnywhere,
        ]);
        for point in [Point::PublishRenamed, Point::LedgerAppended] {
            blows.push(Blow::Cut(point, 1));
        }
    }
    // In no order of the run: each crash meets what another has left.
    for place in (1..blows.len()).rev() {
        let other = usize::try_from(rig.dice(place as u64 + 1)).expect("it is small");
        blows.swap(place, other);
    }
    let mut seen = Seen::new();
    let (mut kills, mut cuts, mut judged) = (0, 0, (0, 0));
    for (number, chain) in blows.chunks(CHAIN).enumerate() {
        if number > 0 && number % CHAINS_OF_A_RIG == 0 {
            judged = (judged.0 + rig.judged.0, judged.1 + rig.judged.1);
            // In every other one the source's state is on the disk that loses its power.
            let both = number / CHAINS_OF_A_RIG % 2 == 1;
            drop(rig);
            rig = Rig::new(Some(kind), both, rig_seed.wrapping_add(1000 * number as u64));
        }
        for blow in chain {
            strike(&mut rig, blow, &passed, &mut seen, (&mut kills, &mut cuts));
        }
        rig.clean_run(&format!("{}: after {chain:?}", kind.name()));
        if number % 10 == 9 {
            println!("{}: {kills} kills and {cuts} power cuts so far", kind.name());
            table::note(kind, &std::mem::take(&mut seen));
        }
    }
    judged = (judged.0 + rig.judged.0, judged.1 + rig.judged.1);
    table::note(kind, &seen);
    table::print();
    println!(
        "{}: {kills} kills and {cuts} power cuts; the store was judged {} times, {} files were compared, and nothing was lost",
        kind.name(),
        judged.1,
        judged.0
    );
}

/// Does it, and notes what came of it. A place that is not passed at that count is tried again at its first.
fn strike(rig: &mut Rig, blow: &Blow, passed: &Passed, seen: &mut Seen, (kills, cuts): (&mut u64, &mut u64)) {
    match blow {
        Blow::Kill(victim, point, time) => {
            let mut outcome =
                rig.kill_by_plan(*victim, &format!("{}=kill@{time}", point.name()), Some(*point));
            if outcome == Outcome::NotReached {
                rig.clean_run("after a place that was not passed");
                outcome = rig.kill_by_plan(*victim, &format!("{}=kill", point.name()), Some(*point));
            }
            assert_ne!(outcome, Outcome::NotReached, "no run passes {}", point.name());
            let cell = seen.entry(*point).or_default();
            cell.kills += 1;
            cell.outcomes.insert(outcome);
            *kills += 1;
        }
        Blow::KillAnywhere(victim) => {
            let time = 1 + rig.dice(passed.all(*victim));
            let outcome = rig.kill_by_plan(*victim, &format!("*=kill@{time}"), None);
            *kills += u64::from(outcome != Outcome::NotReached);
        }
        Blow::KillByProgress(victim) => {
            let messages = 1 + rig.dice(6);
            let outcome = rig.kill_by_progress(*victim, messages);
            *kills += u64::from(outcome != Outcome::NotReached);
        }
        Blow::Cut(point, time) => {
            let mut outcome = rig.cut_by_plan(&format!("{}=pause@{time}", point.name()));
            if outcome == Outcome::NotReached {
                rig.clean_run("after a place that was not passed");
                outcome = rig.cut_by_plan(&format!("{}=pause", point.name()));
            }
            assert_ne!(outcome, Outcome::NotReached, "no run passes {}", point.name());
            let cell = seen.entry(*point).or_default();
            cell.cuts += 1;
            cell.outcomes.insert(outcome);
            *cuts += 1;
        }
        Blow::CutAnywhere => {
            let time = 1 + rig.dice(passed.all(Victim::Target));
            let outcome = rig.cut_by_plan(&format!("*=pause@{time}"));
            *cuts += u64::from(outcome != Outcome::NotReached);
        }
    }
}

#[test]
fn nothing_is_lost_on_ext4() {
    everything(Kind::Ext4);
}

#[test]
fn nothing_is_lost_on_xfs() {
    everything(Kind::Xfs);
}

#[test]
fn nothing_is_lost_on_btrfs() {
    everything(Kind::Btrfs);
}
