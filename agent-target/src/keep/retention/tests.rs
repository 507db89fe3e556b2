//! Properties against a slow oracle, and the cases that an operator would ask about.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).expect("a time")
}

/// 2026-01-01 00:00 UTC, a Thursday.
const START: i64 = 1_767_225_600;
const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

fn nothing() -> Retention {
    Retention {
        last: 0,
        hourly: 0,
        daily: 0,
        weekly: 0,
        monthly: 0,
        within: None,
        failed_last: 0,
        failed_within: Duration::ZERO,
    }
}

fn good(number: u64, time: i64) -> Candidate {
    Candidate {
        number: GenerationNumber(number),
        sealed: at(time),
        mark: at(time),
        state: State::Verified,
        pinned: false,
        in_use: false,
    }
}

fn kept(decisions: &[Decision]) -> Vec<u64> {
    decisions.iter().filter(|it| !it.is_prune()).map(|it| it.number.0).collect()
}

/// One an hour for thirty days, and the keepers of a usual policy.
#[test]
fn a_usual_policy_keeps_what_people_expect() {
    let candidates: Vec<_> = (0..30 * 24).map(|hour| good(hour as u64 + 1, START + hour * HOUR)).collect();
    let policy = Retention { last: 2, hourly: 6, daily: 3, weekly: 2, monthly: 2, ..nothing() };
    let now = at(START + 30 * DAY);
    let decisions = decide(&policy, &candidates, None, now);
    // Number 720 is of 2026-01-30 23:00 (a Friday), the newest of its hour, day, week and month; Sunday the 25th ended at 600.
    assert_eq!(kept(&decisions), [600, 672, 696, 715, 716, 717, 718, 719, 720]);
    let reasons = |number: u64| decisions[number as usize - 1].keep.clone();
    assert_eq!(
        reasons(720),
        [
            Reason::Latest,
            Reason::NewestPass,
            Reason::Last,
            Reason::Hourly,
            Reason::Daily,
            Reason::Weekly,
            Reason::Monthly
        ]
    );
    assert_eq!(reasons(600), [Reason::Weekly]);
    assert_eq!(reasons(672), [Reason::Daily]);
    let policy = Retention { within: Some(Duration::from_secs(2 * 3600)), ..nothing() };
    assert_eq!(kept(&decide(&policy, &candidates, None, now)), [718, 719, 720]);
}

/// A week of failures does not push out the last good generations; of the failures the first and the newest stay, the newest
/// for a time.
#[test]
fn failures_do_not_count_and_leave_evidence() {
    let mut candidates: Vec<_> = (1..=10).map(|day| good(day, START + day as i64 * DAY)).collect();
    candidates[4..].iter_mut().for_each(|it| it.state = State::Failed);
    let policy =
        Retention { last: 2, failed_last: 2, failed_within: Duration::from_secs(3 * 86_400), ..nothing() };
    let decisions = decide(&policy, &candidates, None, at(START + 10 * DAY));
    assert_eq!(kept(&decisions), [3, 4, 5, 9, 10]);
    assert_eq!(decisions[4].keep, [Reason::FirstFail]);
    // They pass again: the old failures go when they are old, the newest ones with them.
    candidates.extend([good(11, START + 11 * DAY), good(12, START + 30 * DAY)]);
    assert_eq!(kept(&decide(&policy, &candidates, None, at(START + 30 * DAY))), [11, 12]);
}

/// What could not be checked is kept until something newer has passed, and then as long as a failure.
#[test]
fn what_is_not_judged_is_not_pruned_for_it() {
    let mut candidates: Vec<_> = (1..=40).map(|day| good(day, START + day as i64 * DAY)).collect();
    candidates[2..].iter_mut().for_each(|it| it.state = State::Unproven);
    let policy = Retention { last: 1, ..nothing() };
    let all_but_first: Vec<_> = (2..=40).collect();
    assert_eq!(kept(&decide(&policy, &candidates, None, at(START + 41 * DAY))), all_but_first);
    candidates[39].state = State::Verified;
    assert_eq!(kept(&decide(&policy, &candidates, None, at(START + 41 * DAY))), [40]);
}

/// The only good generation is rotten: it is the best that there is.
#[test]
fn rot_does_not_make_the_best_one_go() {
    let mut candidates = vec![good(1, START), good(2, START + 100 * DAY), good(3, START + 200 * DAY)];
    candidates[0].state = State::Rotten;
    candidates[1].state = State::Failed;
    candidates[2].state = State::Failed;
    let policy = Retention { last: 1, ..nothing() };
    assert_eq!(kept(&decide(&policy, &candidates, None, at(START + 200 * DAY))), [1, 2, 3]);
}

/// The clock jumps ahead by a year for one run, and back: nothing goes that would not have gone.
#[test]
fn a_clock_that_jumped_costs_nothing() {
    let mut candidates: Vec<_> = (1..=10).map(|day| good(day, START + day as i64 * DAY)).collect();
    let policy = Retention { within: Some(Duration::from_secs(5 * 86_400)), ..nothing() };
    let usual = [5, 6, 7, 8, 9, 10];
    assert_eq!(kept(&decide(&policy, &candidates, None, at(START + 10 * DAY))), usual);
    // Now alone is wrong, in both directions.
    assert_eq!(kept(&decide(&policy, &candidates, None, at(START + 400 * DAY))), usual);
    assert_eq!(kept(&decide(&policy, &candidates, None, at(0))).len(), 10);
    // The newest was sealed by a clock a year ahead: its mark tells.
    candidates[9].sealed = at(START + 375 * DAY);
    assert_eq!(kept(&decide(&policy, &candidates, None, at(START + 375 * DAY))), usual);
    // An old one was: it stays for longer, and nothing else goes for it.
    candidates[9].sealed = at(START + 10 * DAY);
    candidates[1].sealed = at(START + 375 * DAY);
    assert_eq!(kept(&decide(&policy, &candidates, None, at(START + 10 * DAY))), [2, 5, 6, 7, 8, 9, 10]);
    // An old one was sealed at the start of time: its mark tells.
    candidates[1].sealed = at(START + 2 * DAY);
    candidates[6].sealed = at(7);
    assert_eq!(kept(&decide(&policy, &candidates, None, at(START + 10 * DAY))), usual);
}

fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
    let state = prop_oneof![
        4 => Just(State::Verified),
        1 => Just(State::Rotten),
        2 => Just(State::Failed),
        1 => Just(State::Unproven)
    ];
    // Steps of half an hour to ten days, and now and then a clock that is anywhere.
    let step = prop_oneof![6 => 1800..10 * DAY, 1 => -400 * DAY..400 * DAY];
    let skew = prop_oneof![8 => Just(0i64), 1 => -400 * DAY..400 * DAY];
    let one = (state, step, skew, prop::bool::weighted(0.05), prop::bool::weighted(0.05), 1..4u64);
    prop::collection::vec(one, 0..60).prop_map(|steps| {
        let (mut number, mut time) = (0, START);
        let mut all = Vec::new();
        for (state, step, skew, pinned, in_use, gap) in steps {
            number += gap;
            time += step;
            all.push(Candidate {
                number: GenerationNumber(number),
                sealed: at(time),
                mark: at(time - 60 + skew),
                state,
                pinned,
                in_use,
            });
        }
        all
    })
}

fn policies() -> impl Strategy<Value = Retention> {
    let within = prop::option::of(0..60 * DAY);
    (0..5u32, 0..5u32, 0..5u32, 0..5u32, 0..5u32, within, 0..4u32, 0..60 * DAY).prop_map(
        |(last, hourly, daily, weekly, monthly, within, failed_last, failed_within)| Retention {
            last,
            hourly,
            daily,
            weekly,
            monthly,
            within: within.map(|within| Duration::from_secs(within as u64)),
            failed_last,
            failed_within: Duration::from_secs(failed_within as u64),
        },
    )
}

/// The same rules, each by itself, as slowly as one likes: from the words of the documentation.
fn oracle(
    policy: &Retention,
    all: &[Candidate],
    verified: Option<GenerationNumber>,
    now: Timestamp,
) -> BTreeSet<u64> {
    let mut kept = BTreeSet::new();
    let of = |state: State| all.iter().filter(move |it| it.state == state);
    let newest_good = of(State::Verified).map(|it| it.number).max();
    for it in all {
        let newer = |state: State| of(state).filter(|other| other.number > it.number);
        let is_newest = all.iter().all(|other| other.number <= it.number);
        let after_good = newest_good.is_none_or(|good| it.number > good);
        let anchor = |newest: Option<GenerationNumber>| {
            let newest = all.iter().find(|other| Some(other.number) == newest).expect("there is one");
            [newest.sealed, newest.mark, now].into_iter().min().expect("three")
        };
        let younger = |anchor: Timestamp, span: Duration| {
            let span = i64::try_from(span.as_secs()).expect("small");
            it.sealed.max(it.mark).as_second() >= anchor.as_second() - span
        };
        let newest = all.iter().map(|other| other.number).max();
        let good = it.state == State::Verified && {
            // It is the newest of its period, and fewer periods than are kept have a newer one as their newest.
            let heads = |label: fn(Timestamp) -> String| {
                let own = label(it.sealed);
                let newer: Vec<_> = newer(State::Verified).map(|other| label(other.sealed)).collect();
                let periods: BTreeSet<_> = newer.iter().collect();
                (!newer.contains(&own)).then_some(periods.len())
            };
            let rule = |count: u32, label| heads(label).is_some_and(|newer: usize| newer < count as usize);
            Some(it.number) == newest_good
                || newer(State::Verified).count() < policy.last as usize
                || rule(policy.hourly, |time| time.strftime("%Y-%m-%d %H").to_string())
                || rule(policy.daily, |time| time.strftime("%Y-%m-%d").to_string())
                || rule(policy.weekly, |time| time.strftime("%G week %V").to_string())
                || rule(policy.monthly, |time| time.strftime("%Y-%m").to_string())
                || policy.within.is_some_and(|within| younger(anchor(newest_good), within))
        };
        let failed = it.state == State::Failed && {
            let first = after_good
                && of(State::Failed).all(|other| {
                    other.number >= it.number || newest_good.is_some_and(|good| other.number < good)
                });
            let recent = newer(State::Failed).count() < policy.failed_last as usize;
            first || recent && younger(anchor(newest), policy.failed_within)
        };
        let unknown = matches!(it.state, State::Rotten | State::Unproven)
            && (after_good || younger(anchor(newest), policy.failed_within));
        if is_newest || Some(it.number) == verified || it.pinned || it.in_use || good || failed || unknown {
            kept.insert(it.number.0);
        }
    }
    kept
}

proptest! {
    #[test]
    fn the_decision_is_the_oracles(
        policy in policies(), all in candidates(), pick in any::<prop::sample::Index>(), now in -DAY..800 * DAY,
    ) {
        let verified = (!all.is_empty()).then(|| all[pick.index(all.len())].number);
        let now = at(START + now);
        let decisions = decide(&policy, &all, verified, now);
        prop_assert_eq!(decisions.len(), all.len());
        prop_assert!(decisions.is_sorted_by_key(|it| it.number));
        let kept: BTreeSet<_> = kept(&decisions).into_iter().collect();
        prop_assert_eq!(kept, oracle(&policy, &all, verified, now));
    }

    /// Whatever the policy and the clocks: what must never go does not go.
    #[test]
    fn what_must_stay_stays(policy in policies(), all in candidates(), now in any::<i32>()) {
        let decisions = decide(&policy, &all, None, at(i64::from(now)));
        let gone = |number: GenerationNumber| decisions.iter().any(|it| it.number == number && it.is_prune());
        if let Some(newest) = all.last() {
            prop_assert!(!gone(newest.number));
        }
        if let Some(pass) = all.iter().rfind(|it| it.state == State::Verified) {
            prop_assert!(!gone(pass.number));
        }
        for it in all.iter().filter(|it| it.pinned || it.in_use) {
            prop_assert!(!gone(it.number));
        }
        let last: Vec<_> = all.iter().rev().filter(|it| it.state == State::Verified).take(policy.last as usize).collect();
        prop_assert!(last.iter().all(|it| !gone(it.number)));
    }

    /// Whatever the present clock or the source's clock says, no more goes than by the target's clock at the seals.
    #[test]
    fn no_other_clock_makes_more_go(policy in policies(), all in candidates(), now in any::<i32>(), skew in -400 * DAY..400 * DAY) {
        let mut calm = all.clone();
        calm.iter_mut().for_each(|it| it.mark = it.sealed);
        let usual = decide(&policy, &calm, None, Timestamp::MAX);
        let mut skewed = all;
        skewed.iter_mut().for_each(|it| it.mark = at(it.mark.as_second() + skew));
        let decisions = decide(&policy, &skewed, None, at(i64::from(now)));
        let usual: BTreeSet<_> = kept(&usual).into_iter().collect();
        let kept: BTreeSet<_> = kept(&decisions).into_iter().collect();
        prop_assert!(usual.is_subset(&kept), "{:?} and then {:?}", usual, kept);
    }

    /// To prune what was decided and to decide again prunes nothing more.
    #[test]
    fn a_second_decision_prunes_nothing(policy in policies(), all in candidates(), now in -DAY..800 * DAY) {
        let now = at(START + now);
        let kept: BTreeSet<_> = kept(&decide(&policy, &all, None, now)).into_iter().collect();
        let mut left = all;
        left.retain(|it| kept.contains(&it.number.0));
        prop_assert!(decide(&policy, &left, None, now).iter().all(|it| !it.is_prune()));
    }
}

/// The rules as an operator writes them.
fn configured(retention: &str) -> Result<Option<Retention>, String> {
    let folder = tempfile::tempdir().expect("temp");
    let text = format!(
        "[agent]\nname = \"t\"\nlisten = \"127.0.0.1:1\"\nstore = \"store\"\nsigning_key = \"k\"\n[tls]\nca = \"c\"\n\
         cert = \"c\"\nkey = \"k\"\n[[repository]]\nname = \"r\"\nsource = \"s\"\nsource_key = \"source.pub\"\n\
         profile = \"generic\"\nvars = {{ check = [\"true\"] }}\n{retention}"
    );
    let path = folder.path().join("target.toml");
    std::fs::write(&path, text).expect("write");
    let mut config = crate::config::load(&path).map_err(|error| error.to_string())?;
    Ok(config.repositories.remove(0).retention)
}

/// Each number of `[repository.retention]` is the number of its own rule.
#[test]
fn each_number_of_the_configuration_is_that_of_its_rule() {
    let rules = "retention = { last = 1, hourly = 2, daily = 3, weekly = 4, monthly = 5, within = \"6h\", failed_last = 7, failed_within = \"8d\" }";
    let retention = configured(rules).expect("sound").expect("there is one");
    assert_eq!(
        [
            retention.last,
            retention.hourly,
            retention.daily,
            retention.weekly,
            retention.monthly,
            retention.failed_last
        ],
        [1, 2, 3, 4, 5, 7]
    );
    assert_eq!(retention.within, Some(Duration::from_secs(6 * 3600)));
    assert_eq!(retention.failed_within, Duration::from_secs(8 * 24 * 3600));
    let short = configured("retention = { last = 1 }").expect("sound").expect("there is one");
    assert_eq!((short.failed_last, short.failed_within), (3, Duration::from_secs(14 * 24 * 3600)));
    assert_eq!((short.hourly, short.daily, short.weekly, short.monthly, short.within), (0, 0, 0, 0, None));
    assert!(configured("").expect("sound").is_none());
}

/// Rules that keep nothing are a mistake; each rule by itself keeps something.
#[test]
fn rules_that_keep_nothing_are_refused() {
    for rules in ["", "last = 0", "within = \"0s\"", "failed_last = 9"] {
        assert!(configured(&format!("retention = {{ {rules} }}")).is_err(), "{rules}");
    }
    for rule in ["last = 1", "hourly = 1", "daily = 1", "weekly = 1", "monthly = 1", "within = \"1s\""] {
        configured(&format!("retention = {{ {rule} }}")).unwrap_or_else(|error| panic!("{rule}: {error}"));
    }
}
