use super::*;
use crate::{
    id::GenerationNumber,
    signing::SigningKey,
    verdict::{sign_verdict, tests::Example, verify_verdict},
};

fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

/// The mark of all cases.
fn mark() -> Timestamp {
    at("2026-11-29T12:00:00Z")
}

/// Of ten files seven were read now, the rest between a week and a day before the mark.
fn partly() -> Readings {
    Readings {
        files_total: 10,
        bytes_total: 1000,
        files_read_now: 7,
        bytes_read_now: 700,
        oldest_reading: Some(at("2026-11-22T12:00:00Z")),
        newest_carried_reading: Some(at("2026-11-28T12:00:00Z")),
        ..Default::default()
    }
}

fn all_read() -> Readings {
    Readings {
        files_read_now: 10,
        bytes_read_now: 1000,
        oldest_reading: None,
        newest_carried_reading: None,
        ..partly()
    }
}

fn carried() -> CheckCoverage {
    CheckCoverage {
        parts_checked: vec![PartsChecked { kind: "relations".into(), count: 3 }],
        carried: Some(Carried {
            parts: 9,
            parts_checked_now: 3,
            verdicts: vec![CarriedFrom { sequence: 2, parts: 5 }, CarriedFrom { sequence: 4, parts: 4 }],
            verdicts_total: 2,
            oldest: at("2026-11-25T12:00:00Z"),
            newest: at("2026-11-28T12:00:00Z"),
            limit_seconds: Some(7 * 86_400),
        }),
        parts_record: None,
    }
}

fn torn() -> Vec<NotCovered> {
    ["a", "b", "c", "d"]
        .map(|part| NotCovered { part: part.into(), reason: "unstable".into(), message: "changed".into() })
        .to_vec()
}

const GOOD: &str = "this backup is good, and the live repository was good at the mark";
const AS_READ: &str =
    "the copy is what was read; its content was not checked by a checker that is known to find damage";
const PARTLY: &str = "7 of 10 files now, the rest between 2026-11-22 12:00Z and 2026-11-28 12:00Z";
const CARRIED: &str = "3 of 12 parts checked now, the rest between 2026-11-25 12:00Z and 2026-11-28 12:00Z";
const TORN: &str = "; not covered: a, b, c and 1 more";

/// What is changed in the grounds of a case: every file was read, L1, trusted, nothing carried, nothing left out.
#[derive(Default)]
struct Case {
    depth: Option<Depth>,
    no_depth: bool,
    trust: Option<Option<Trust>>,
    reading: Option<Option<Readings>>,
    is_first: bool,
    limit_days: Option<u64>,
    check: CheckCoverage,
    not_covered: Vec<NotCovered>,
}

impl Case {
    fn claims(&self) -> Claims {
        let reading = self.reading.clone().unwrap_or_else(|| Some(all_read()));
        claims(&Grounds {
            outcome: Outcome::Pass,
            depth: if self.no_depth { None } else { self.depth.or(Some(Depth::L1)) },
            trust: self.trust.unwrap_or(Some(Trust::Trusted)),
            reading: reading.as_ref(),
            is_first: self.is_first,
            mark: Some(mark()),
            max_reading_age: self.limit_days.map(|days| Duration::from_secs(days * 86_400)),
            check: &self.check,
            not_covered: (self.not_covered.len() as u64, &self.not_covered),
        })
    }
}

/// Every row of the table in docs/VERDICTS.md, and how rows combine.
#[test]
fn a_pass_claims_what_was_looked_at_and_no_more() {
    use BackupClaim::{AsRead, Good as Backup, GoodAsCovered as Partial};
    use LiveClaim::{Good as Live, GoodAsCovered as Limited, Nothing};
    let unknown_age = Readings { files_of_unknown_age: 2, ..partly() };
    let no_times = Readings { oldest_reading: None, newest_carried_reading: None, ..partly() };
    let future = Readings { newest_carried_reading: Some(at("2026-11-29T12:00:01Z")), ..partly() };
    let nothing_said =
        |why: &str| format!("this backup is good; nothing is said of the live repository, because {why}");
    let old = nothing_said("its oldest reading is 7 days old, and 6 days is the limit");
    let old_result = CheckCoverage {
        carried: Some(Carried { limit_seconds: Some(3 * 86_400), ..carried().carried.expect("some") }),
        ..carried()
    };
    let reading = |reading: Readings| Some(Some(reading));
    let cases: Vec<(Case, BackupClaim, LiveClaim, String)> = vec![
        // Every file read in this run, checker trusted, depth L1 or more.
        (Case::default(), Backup, Live, GOOD.into()),
        (Case { depth: Some(Depth::L2), ..Default::default() }, Backup, Live, GOOD.into()),
        (
            Case { depth: Some(Depth::L3), limit_days: Some(1), ..Default::default() },
            Backup,
            Live,
            GOOD.into(),
        ),
        (Case { reading: reading(Readings::default()), ..Default::default() }, Backup, Live, GOOD.into()),
        (Case { reading: Some(None), is_first: true, ..Default::default() }, Backup, Live, GOOD.into()),
        // Unchanged files not read again.
        (
            Case { reading: reading(partly()), ..Default::default() },
            Backup,
            Limited,
            format!("{GOOD}, as far as it was read: {PARTLY}"),
        ),
        (
            Case { reading: reading(partly()), limit_days: Some(7), ..Default::default() },
            Backup,
            Limited,
            format!("{GOOD}, as far as it was read: {PARTLY}"),
        ),
        // Results carried.
        (
            Case { check: carried(), ..Default::default() },
            Backup,
            Limited,
            format!("{GOOD}, as far as it was read: {CARRIED}"),
        ),
        (
            Case { check: carried(), reading: reading(partly()), ..Default::default() },
            Backup,
            Limited,
            format!("{GOOD}, as far as it was read: {PARTLY}; {CARRIED}"),
        ),
        // The oldest reading or carried result is older than the limit.
        (
            Case { reading: reading(partly()), limit_days: Some(6), ..Default::default() },
            Backup,
            Nothing,
            old.clone(),
        ),
        (
            Case { check: old_result, ..Default::default() },
            Backup,
            Nothing,
            nothing_said("the oldest result that was carried over is 4 days old, and 3 days is the limit"),
        ),
        // It is not known how old a reading is.
        (
            Case { reading: Some(None), ..Default::default() },
            Backup,
            Nothing,
            nothing_said("the source does not say when it read the files that had not changed"),
        ),
        (
            Case { reading: reading(unknown_age), ..Default::default() },
            Backup,
            Nothing,
            nothing_said("it is not known when 2 of its files were read last"),
        ),
        (
            Case { reading: reading(no_times), ..Default::default() },
            Backup,
            Nothing,
            nothing_said("it is not known when 3 of its files were read last"),
        ),
        (
            Case { reading: reading(future), ..Default::default() },
            Backup,
            Nothing,
            nothing_said("it is not known when 3 of its files were read last"),
        ),
        // Depth L0, or no negative control has passed.
        (Case { depth: Some(Depth::L0), ..Default::default() }, AsRead, Nothing, AS_READ.into()),
        (Case { no_depth: true, ..Default::default() }, AsRead, Nothing, AS_READ.into()),
        (Case { trust: Some(None), ..Default::default() }, AsRead, Nothing, AS_READ.into()),
        (Case { trust: Some(Some(Trust::Unknown)), ..Default::default() }, AsRead, Nothing, AS_READ.into()),
        (
            Case { trust: Some(Some(Trust::NotTrusted)), ..Default::default() },
            AsRead,
            Nothing,
            AS_READ.into(),
        ),
        (
            Case {
                depth: Some(Depth::L0),
                trust: Some(None),
                reading: reading(partly()),
                ..Default::default()
            },
            AsRead,
            Nothing,
            AS_READ.into(),
        ),
        // Something was not covered.
        (Case { not_covered: torn(), ..Default::default() }, Partial, Limited, format!("{GOOD}{TORN}")),
        (
            Case { not_covered: torn(), reading: reading(partly()), ..Default::default() },
            Partial,
            Limited,
            format!("{GOOD}, as far as it was read: {PARTLY}{TORN}"),
        ),
        (
            Case {
                not_covered: torn(),
                reading: reading(partly()),
                limit_days: Some(6),
                ..Default::default()
            },
            Partial,
            Nothing,
            format!("{old}{TORN}"),
        ),
        (
            Case { not_covered: torn(), trust: Some(None), ..Default::default() },
            AsRead,
            Nothing,
            format!("{AS_READ}{TORN}"),
        ),
    ];
    for (case, backup, live, text) in cases {
        let claims = case.claims();
        assert_eq!((claims.backup, claims.live), (backup, live), "{text}");
        assert_eq!(sentence(Outcome::Pass, &claims), text);
        let full = text == GOOD;
        assert_eq!(claims.because.is_empty(), full, "{claims:?}");
        let trust = case.trust.unwrap_or(Some(Trust::Trusted));
        assert_eq!(claims.to_proto(Outcome::Pass, trust).proven, trust == Some(Trust::Trusted));
    }
}

/// A PASS lists each age that exceeds its limit, whether or not the checker is trusted. Other outcomes list none.
#[test]
fn a_pass_lists_the_ages_that_exceed_their_limits() {
    let reading = "its oldest reading is 7 days old, and 6 days is the limit";
    let parts = "the oldest result that was carried over is 4 days old, and 3 days is the limit";
    let with = |outcome, max_days: Option<u64>, carried_days: u64, trust: bool| {
        let (mut verdict, _) = covered(|statement, _| statement.readings = Some(partly()));
        verdict.outcome = outcome;
        verdict.mark.as_mut().expect("a mark").time = mark();
        let mut check = carried();
        check.carried.as_mut().expect("carried").limit_seconds = Some(carried_days * 86_400);
        let coverage = verdict.coverage.as_mut().expect("a coverage");
        coverage.max_reading_age_seconds = max_days.map(|days| days * 86_400);
        coverage.check = check;
        if !trust {
            verdict.negative_control = None;
        }
        let claims = verdict.claims_proto();
        assert_eq!(claims.too_old, verdict.too_old());
        assert_eq!(verdict.says_under(Some(Trust::Trusted)).1.too_old, verdict.too_old());
        if outcome == Outcome::Pass && trust && !claims.too_old.is_empty() {
            assert_eq!((claims.live.as_str(), &claims.because), ("nothing", &claims.too_old));
        }
        claims.too_old
    };
    for (max_days, carried_days, expected) in [
        (None, 7, &[][..]),
        (Some(7), 4, &[][..]),
        (Some(6), 7, &[reading][..]),
        (None, 3, &[parts]),
        (Some(6), 3, &[reading, parts]),
    ] {
        for trust in [true, false] {
            assert_eq!(with(Outcome::Pass, max_days, carried_days, trust), expected, "{max_days:?} {trust}");
        }
    }
    for outcome in [Outcome::Fail, Outcome::Inconclusive, Outcome::NotRun] {
        assert!(with(outcome, Some(6), 3, true).is_empty(), "{outcome}");
    }
}

/// Of what did not pass nothing is claimed, whatever the rest is.
#[test]
fn what_did_not_pass_claims_nothing() {
    for outcome in [Outcome::Fail, Outcome::Inconclusive, Outcome::NotRun] {
        let (reading, check) = (all_read(), CheckCoverage::default());
        let claims = claims(&Grounds {
            outcome,
            depth: Some(Depth::L3),
            trust: Some(Trust::Trusted),
            reading: Some(&reading),
            is_first: true,
            mark: Some(mark()),
            max_reading_age: None,
            check: &check,
            not_covered: (0, &[]),
        });
        assert_eq!((claims.backup, claims.live), (BackupClaim::Nothing, LiveClaim::Nothing));
        assert!(!sentence(outcome, &claims).contains("good"), "{outcome}");
    }
}

#[test]
fn long_names_are_shortened_in_a_sentence() {
    let clause = |part: String| {
        let part = NotCovered { part, reason: String::new(), message: String::new() };
        not_covered_clause((7, &[part])).expect("some")
    };
    let path = clause("x".repeat(100) + "/end");
    assert!(path.len() < 120 && path.ends_with("/end and 6 more"), "{path}");
    let examples = format!("12 brin indexes of database \"shop\" ({}, ...)", "an_index, ".repeat(9));
    assert_eq!(clause(examples), "not covered: 12 brin indexes of database \"shop\" and 6 more");
    let words = clause(format!("the index {}", "of a table ".repeat(9)));
    assert!(words.starts_with("not covered: the index of") && words.ends_with("... and 6 more"), "{words}");
    assert_eq!(not_covered_clause((2, &[])).expect("some"), "not covered: 2 parts");
}

#[test]
fn spans_are_told_in_their_two_largest_units() {
    for (seconds, text) in [
        (1, "1 second"),
        (60, "1 minute"),
        (3600, "1 hour"),
        (5400, "1 hour and 30 minutes"),
        (86_400, "1 day"),
        (7 * 86_400 + 3601, "7 days and 1 hour"),
    ] {
        assert_eq!(length_in_words(Duration::from_secs(seconds)), text);
    }
}

/// A verdict with a coverage, and the statement that it embeds.
fn covered(change: impl FnOnce(&mut SourceStatement, &mut Verdict)) -> (Verdict, SigningKey) {
    let source = SigningKey::generate();
    let mut statement = Example::default().statement();
    statement.nonce = Some(HexDigest([9; 32]));
    statement.readings = Some(Readings {
        oldest_reading: Some(at("2026-11-20T00:00:00Z")),
        newest_carried_reading: Some(at("2026-11-21T00:00:00Z")),
        max_reading_age_seconds: Some(30 * 86_400),
        ..partly()
    });
    let mut verdict = Example::default().verdict(&source, 1, HexDigest::ZERO);
    verdict.nonce = statement.nonce;
    verdict.steps[0].engine = Some("Engine 1.2".into());
    verdict.steps[0].checked = vec![PartsChecked { kind: "tables".into(), count: 12 }];
    change(&mut statement, &mut verdict);
    verdict.source_statement = Some(crate::verdict::sign_source_statement(&statement, &source));
    let checker = HexDigest([6; 32]);
    let limit = Some(Duration::from_secs(40 * 86_400));
    verdict.coverage = Some(Coverage::new(&verdict, &statement, checker, limit, PartResults::default()));
    (verdict, source)
}

#[test]
fn a_coverage_is_signed_and_comes_back() {
    let target = SigningKey::generate();
    let (verdict, source) = covered(|_, _| {});
    let json = sign_verdict(&verdict, &target).expect("sound").to_json();
    let read = verify_verdict(json.as_bytes(), &target.verifying_key(), Some(&source.verifying_key()));
    let read = read.expect("valid").verdict;
    assert_eq!(read, verdict);
    let coverage = read.coverage.as_ref().expect("there");
    assert_eq!(coverage.max_reading_age_seconds, Some(30 * 86_400), "the lower limit counts");
    assert_eq!(coverage.check.parts_checked[0].count, 12);
    assert!(read.sentence().contains("7 of 10 files now"), "{}", read.sentence());
}

/// A target that was taken over cannot claim more than the parts of its verdict back.
#[test]
fn a_coverage_that_says_something_else_than_its_parts_is_refused() {
    let target = SigningKey::generate();
    type Change = fn(&mut Verdict);
    let cases: [(&str, Change); 9] = [
        ("claims", |it| {
            let claims = &mut it.coverage.as_mut().expect("some").claims;
            (claims.live, claims.because) = (LiveClaim::Good, Vec::new());
        }),
        ("readings", |it| {
            it.coverage.as_mut().expect("some").reading.as_mut().expect("some").files_read_now = 10
        }),
        ("no readings", |it| it.coverage.as_mut().expect("some").reading = None),
        ("limit", |it| it.coverage.as_mut().expect("some").max_reading_age_seconds = None),
        ("parts", |it| it.coverage.as_mut().expect("some").check.parts_checked.clear()),
        ("depth", |it| it.depth = Some(Depth::L0)),
        ("control", |it| it.negative_control = None),
        ("left out", |it| {
            it.steps[0].not_covered = torn();
        }),
        ("nonce", |it| it.nonce = None),
    ];
    for (name, change) in cases {
        let (mut verdict, _) = covered(|_, _| {});
        change(&mut verdict);
        assert!(sign_verdict(&verdict, &target).is_err(), "{name}");
    }
}

/// A verdict says what it carried from which verdicts before it, as counts that add up; nothing else is signed.
#[test]
fn carried_results_that_cannot_be_are_refused() {
    let target = SigningKey::generate();
    let sound = || {
        let (mut verdict, _) = covered(|_, verdict| verdict.sequence = 5);
        verdict.times.check_started = Some(at("2026-11-29T12:10:00Z"));
        let parts = PartResults { carried: carried().carried, record: Some(HexDigest([8; 32])) };
        let source = verdict.source_statement.as_ref().expect("some");
        let statement = unverified_source_statement(source).expect("a statement");
        let limit = Some(Duration::from_secs(30 * 86_400));
        verdict.coverage = Some(Coverage::new(&verdict, &statement, HexDigest([6; 32]), limit, parts));
        verdict
    };
    let verdict = sound();
    sign_verdict(&verdict, &target).expect("sound");
    assert!(verdict.sentence().contains(CARRIED), "{}", verdict.sentence());
    let proto = verdict.claims_proto();
    assert_eq!((proto.parts_checked, proto.parts_carried), (3, 9));
    type Change = fn(&mut Carried);
    let cases: [(&str, Change); 11] = [
        ("nothing carried", |it| (it.parts, it.verdicts, it.verdicts_total) = (0, Vec::new(), 0)),
        ("nothing checked", |it| it.parts_checked_now = 0),
        ("a sum too low", |it| it.parts = 8),
        ("a sum too high", |it| it.parts = 10),
        ("a total too low", |it| it.verdicts_total = 1),
        ("a total without more parts", |it| it.verdicts_total = 3),
        ("from itself", |it| it.verdicts[1].sequence = 5),
        ("from no verdict", |it| it.verdicts[0].sequence = 0),
        ("out of order", |it| it.verdicts.swap(0, 1)),
        ("times exchanged", |it| std::mem::swap(&mut it.oldest, &mut it.newest)),
        ("from the future", |it| it.newest = at("2026-11-29T12:10:01Z")),
    ];
    for (name, change) in cases {
        let mut verdict = sound();
        change(verdict.coverage.as_mut().expect("some").check.carried.as_mut().expect("some"));
        assert!(sign_verdict(&verdict, &target).is_err(), "{name}");
    }
    let mut failed = sound();
    failed.outcome = Outcome::Fail;
    assert!(sign_verdict(&failed, &target).is_err(), "a record of parts that passed");
}

/// What nobody looked at is collected from the source and from the steps that count.
#[test]
fn what_was_not_covered_is_collected_from_both_sides() {
    let (verdict, _) = covered(|statement, verdict| {
        let readings = statement.readings.as_mut().expect("some");
        (readings.not_covered, readings.not_covered_total) = (torn(), 300);
        verdict.steps[0].not_covered = vec![NotCovered {
            part: "public.t".into(),
            reason: "locale".into(),
            message: "no locale".into(),
        }];
        let mut refused = verdict.steps[0].clone();
        refused.outcome = Outcome::Inconclusive;
        verdict.steps[0].attempt = 1;
        verdict.steps.insert(0, refused);
    });
    let coverage = verdict.coverage.expect("some");
    assert_eq!((coverage.not_covered.len(), coverage.not_covered_total), (5, 301));
    assert_eq!(
        coverage.check.parts_checked[0].count, 12,
        "a candidate that was refused is not counted twice"
    );
    assert_eq!(coverage.claims.backup, BackupClaim::GoodAsCovered);
    // An older source counts them and names none.
    let (verdict, _) = covered(|statement, _| {
        statement.readings = None;
        statement.counts.files_unstable = 2;
        statement.base_generation = None;
    });
    assert!(
        verdict.sentence().ends_with("not covered: 2 files that changed while being read"),
        "{}",
        verdict.sentence()
    );
    assert_eq!(verdict.generation, Some(GenerationNumber(42)));
}

/// A source that was taken over gets no escape sequences, no endless lists and no impossible counts into a verdict.
#[test]
fn readings_that_cannot_be_are_refused() {
    type Change = fn(&mut Readings);
    let cases: [(&str, Change); 7] = [
        ("more files", |it| it.files_read_now = 11),
        ("more in sum", |it| it.files_of_unknown_age = 4),
        ("overflow", |it| it.files_of_unknown_age = u64::MAX),
        ("more bytes", |it| it.bytes_read_now = 1001),
        ("total", |it| it.not_covered = torn()),
        ("escape", |it| {
            it.changed_without_trace = vec!["a\u{1b}[2J".into()];
            it.changed_without_trace_total = 1;
        }),
        ("long list", |it| {
            it.changed_without_trace = vec!["a".into(); 201];
            it.changed_without_trace_total = 201;
        }),
    ];
    assert!(partly().check().is_ok() && all_read().check().is_ok());
    for (name, change) in cases {
        let mut readings = partly();
        change(&mut readings);
        assert!(matches!(readings.check(), Err(VerdictError::Readings { .. })), "{name}");
    }
}
