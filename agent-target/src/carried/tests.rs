//! Whole checks of a small repository: what they carry, and that nothing makes them carry what they should not.

use std::{collections::BTreeMap, fs, path::PathBuf};

use assay_common::verdict::{NegativeControl, Outcome, Verdict, unverified_verdict};
use assay_proto::v1::{ReadAgain, ReportReadingsRequest};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    check_queue::Wanted,
    keep::bench::Bench,
    store::Record,
    verify::{AskedBy, Teller, check_unless_cancelled},
};

/// Each book is looked at for itself; a `stop` file has the check end in its middle.
const BOOKS: &str = r#"
name = "books"
description = "books"
version = "1"
depth = "L1"
[[check]]
name = "look"
argv = ["sh", "-c", '''
echo "engine: $(cat engine)"
for book in "$@"; do
    if [ -e stop ]; then kill -9 $$; fi
    case "$(cat "$book")" in
        bad*) echo "damage: $book"; exit 1 ;;
        odd*) echo "not covered: $book: nobody can read it" ;;
    esac
done
echo "checked $# books"
''', "sh", "{parts}"]
fail_exit = [1]
engine_version = '^engine: (.*)$'
parts_checked = '^checked (\d+) (.*)$'
not_covered_patterns = [{ pattern = '^not covered: ([^:]+): (.*)$', reason = "not-covered" }]
parts = { for_each_changed = ["*.book"], not_read = ["*.log", "engine", "stop"] }
"#;

struct Books {
    bench: Bench,
    tree: BTreeMap<String, Vec<u8>>,
}

impl Books {
    /// Ten books that have passed twice, with a control between.
    fn passed() -> Self {
        let books = Self::sealed();
        assert_eq!(books.check().outcome, Outcome::Pass);
        books.control(Outcome::Fail);
        books
    }

    fn sealed() -> Self {
        let mut books = Self { bench: Bench::with_profile(BOOKS), tree: BTreeMap::new() };
        for number in 0..10 {
            books.put(&format!("{number}.book"), "good");
        }
        books.put("engine", "1");
        books.put("shared", "by all");
        books.put("day.log", "nothing");
        books.seal();
        books
    }

    fn put(&mut self, name: &str, content: &str) {
        self.tree.insert(name.to_owned(), content.as_bytes().to_vec());
    }

    fn seal(&self) -> Record {
        let tree = self.tree.iter().map(|(name, content)| (name.as_str(), content.as_slice())).collect();
        self.bench.seal(&tree)
    }

    /// A run with this tree, as far as the target has to do with it.
    fn run(&self) -> Verdict {
        self.seal();
        self.check()
    }

    fn check(&self) -> Verdict {
        self.check_as(AskedBy::Source)
    }

    /// Checks the newest generation.
    fn check_as(&self, asked_by: AskedBy) -> Verdict {
        let repository = &self.bench.repository;
        let latest = repository.store.latest().expect("list").expect("one");
        let record = repository.store.record(latest).expect("record");
        let id = record.run_id.parse().expect("an id");
        let teller = Teller {
            step: &|_| {},
            // The source has nothing to say.
            read_again: &|_: Vec<ReadAgain>| {
                let report = ReportReadingsRequest { last: true, ..Default::default() };
                repository.desk.report(&id, report).expect("it is waited for");
            },
            cancel: CancellationToken::new(),
            wanted: Wanted::Now,
        };
        let recorded =
            check_unless_cancelled(repository, &id, &record, asked_by, &teller).expect("a verdict");
        unverified_verdict(recorded.expect("not cancelled").1.as_bytes()).expect("a verdict")
    }

    fn control(&self, outcome: Outcome) {
        let control = NegativeControl {
            outcome,
            time: Timestamp::now(),
            generation: None,
            message: String::new(),
            seed: None,
            profile: None,
            damages: Vec::new(),
        };
        self.bench.repository.record_control(&control).expect("kept");
    }

    /// Parts that the plan for the newest generation would carry at this time.
    fn would_carry(&self, now: Timestamp) -> u64 {
        let repository = &self.bench.repository;
        let latest = repository.store.latest().expect("list").expect("one");
        let record = repository.store.record(latest).expect("record");
        let plan = Plan::carrying(repository, repository.checker(), &record, now).expect("a plan");
        plan.carried().map_or(0, |carried| carried.parts)
    }

    fn carries_now(&self) -> u64 {
        self.would_carry(Timestamp::now())
    }

    fn store(&self) -> PathBuf {
        self.bench.repository.store.path().to_owned()
    }
}

/// Parts that were checked and parts that were carried.
fn counts(verdict: &Verdict) -> (u64, u64) {
    assert_eq!(verdict.outcome, Outcome::Pass, "{}: {}", verdict.reason, verdict.message);
    let check = &verdict.coverage.as_ref().expect("a coverage").check;
    let checked = check.parts_checked.iter().map(|parts| parts.count).sum();
    match &check.carried {
        Some(carried) => {
            assert_eq!(carried.parts_checked_now, checked);
            (checked, carried.parts)
        }
        None => (checked, 0),
    }
}

#[test]
fn the_cost_of_a_check_follows_the_change() {
    let mut books = Books::passed();
    books.put("3.book", "good, and longer");
    let verdict = books.run();
    // The changed one, and the one whose turn it is for the time that has gone by.
    assert_eq!(counts(&verdict), (2, 8));
    let carried = verdict.coverage.as_ref().expect("some").check.carried.as_ref().expect("some").clone();
    assert_eq!((carried.verdicts_total, carried.verdicts[0].sequence, carried.verdicts[0].parts), (1, 1, 8));
    assert_eq!(carried.limit_seconds, Some(7 * 24 * 3600));
    assert!(
        verdict.sentence().contains("2 of 10 parts checked now, the rest between"),
        "{}",
        verdict.sentence()
    );
    // A file that the check does not read changes nothing, one that all read changes all.
    books.put("day.log", "something");
    let verdict = books.run();
    assert_eq!(counts(&verdict), (1, 9));
    let carried = verdict.coverage.expect("some").check.carried.expect("some");
    assert_eq!(carried.verdicts_total, 2, "from both: {carried:?}");
    books.put("shared", "by all, and other");
    assert_eq!(counts(&books.run()), (10, 0));
    // A part that appears, one that vanishes, one under another name, two that change places.
    books.put("new.book", "good, too");
    assert_eq!(counts(&books.run()), (2, 9));
    books.tree.remove("new.book");
    assert_eq!(counts(&books.run()), (1, 9));
    let moved = books.tree.remove("9.book").expect("there");
    books.tree.insert("renamed.book".to_owned(), moved);
    assert_eq!(counts(&books.run()), (2, 8));
    books.put("1.book", "first");
    books.put("2.book", "second");
    books.run();
    books.put("1.book", "second");
    books.put("2.book", "first");
    assert_eq!(counts(&books.run()), (3, 7));
}

/// Damage is in a file, so the file's digest is another one, and the part that depends on it is checked.
#[test]
fn damage_is_found_beside_parts_that_are_carried() {
    let mut books = Books::passed();
    books.put("7.book", "bad");
    let verdict = books.run();
    assert_eq!(
        (verdict.outcome, verdict.reason.as_str()),
        (Outcome::Fail, "damage-found"),
        "{}",
        verdict.message
    );
    assert!(verdict.coverage.is_some_and(|it| it.check.carried.is_none() && it.check.parts_record.is_none()));
    // After a FAIL nothing is carried until all has passed again.
    books.put("7.book", "good");
    assert_eq!(counts(&books.run()), (10, 0));
    assert_eq!(counts(&books.run()), (1, 9));
}

#[test]
fn a_check_that_is_killed_in_its_middle_leaves_what_was_remembered() {
    let mut books = Books::passed();
    assert_eq!(counts(&books.run()), (1, 9));
    books.put("4.book", "good, and killed");
    books.put("stop", "");
    let verdict = books.run();
    assert_eq!(verdict.outcome, Outcome::Inconclusive, "{}", verdict.message);
    books.tree.remove("stop");
    let verdict = books.run();
    assert_eq!(counts(&verdict), (2, 8), "the changed book has never passed");
}

/// What the verdict lists as not covered is looked at again each time: its sentence may not become better.
#[test]
fn a_part_that_was_not_covered_is_never_carried() {
    let mut books = Books::passed();
    books.put("5.book", "odd");
    for _ in 0..2 {
        let verdict = books.run();
        assert_eq!(verdict.coverage.as_ref().expect("some").not_covered_total, 1);
        assert!(verdict.sentence().contains("5.book"), "{}", verdict.sentence());
        assert!(matches!(counts(&verdict), (1 | 2, 8 | 9)), "{:?}", counts(&verdict));
    }
}

#[test]
fn a_check_on_request_carries_nothing() {
    let books = Books::passed();
    assert_eq!(counts(&books.check()), (1, 9));
    assert_eq!(counts(&books.check_as(AskedBy::Operator)), (10, 0));
    assert_eq!(books.carries_now(), 9);
    let books = Books {
        bench: books.bench.configured(|config| {
            config.recheck_within = Some(std::time::Duration::ZERO);
        }),
        tree: books.tree,
    };
    assert_eq!(books.carries_now(), 0, "no result may be carried");
}

/// A checker that nobody vouches for, or that is another one, starts anew.
#[test]
fn controls_settings_and_engines_start_anew() {
    let books = Books::sealed();
    books.check();
    assert_eq!(books.carries_now(), 0, "no control has passed");
    books.control(Outcome::Fail);
    assert_eq!(books.carries_now(), 9);
    books.control(Outcome::Inconclusive);
    assert_eq!(books.carries_now(), 0, "the control could not do its work");
    books.control(Outcome::Fail);
    assert_eq!(books.carries_now(), 9);
    books.control(Outcome::Pass);
    books.control(Outcome::Fail);
    assert_eq!(books.carries_now(), 0, "it passed damaged data in between");
    assert_eq!(counts(&books.check()), (10, 0));
    assert_eq!(books.carries_now(), 9);
    // Settings of the repository.
    let books = Books {
        bench: books.bench.configured(|config| config.names.host = Some("another".to_owned())),
        tree: books.tree,
    };
    assert_eq!(books.carries_now(), 0, "the settings have changed");
    assert_eq!(counts(&books.check()), (10, 0));
    // Another profile is another checker, for which no control vouches.
    let text = BOOKS.replace("version = \"1\"", "version = \"2\"");
    let profile =
        assay_common::profile::Profile::parse(std::path::Path::new("x.toml"), &text).expect("valid");
    let mut books =
        Books { bench: books.bench.configured(|config| config.profile = profile), tree: books.tree };
    assert_eq!(counts(&books.check()), (10, 0));
    assert_eq!(books.carries_now(), 0);
    books.control(Outcome::Fail);
    assert_eq!(books.carries_now(), 9);
    // The engine says another version than the one that the parts passed with.
    books.put("engine", "2");
    assert_eq!(counts(&books.run()), (10, 0));
    assert_eq!(counts(&books.run()), (1, 9));
}

/// Whoever can write to the store makes no part pass: what is not signed, or does not stand where it was signed for, counts for nothing.
#[test]
fn nothing_that_was_edited_is_believed() {
    let books = Books::passed();
    books.check();
    let carried = books.carries_now();
    assert_eq!(carried, 9);
    let (ledger, parts) = (books.store().join("ledger"), books.store().join("parts"));
    let record = fs::read_dir(&parts).expect("list").next().expect("one").expect("entry").path();
    type Edit<'a> = &'a dyn Fn(Vec<u8>) -> Option<Vec<u8>>;
    let edits: [(&str, PathBuf, Edit<'_>); 5] = [
        ("the record is edited", record.clone(), &|mut it| {
            *it.last_mut().expect("some") = b' ';
            Some(it)
        }),
        ("the record is gone", record, &|_| None),
        ("the verdict is edited", ledger.join("000000002.json"), &|it| {
            let at = it.iter().position(|byte| *byte == b'e').expect("a letter");
            let mut it = it;
            it[at] = b'f';
            Some(it)
        }),
        ("the verdict before it is another one", ledger.join("000000001.json"), &|mut it| {
            it.push(b'\n');
            Some(it)
        }),
        ("the verdict before it is gone", ledger.join("000000001.json"), &|_| None),
    ];
    for (name, path, edit) in edits {
        let before = fs::read(&path).expect("read");
        fs::remove_file(&path).expect("remove");
        if let Some(edited) = edit(before.clone()) {
            fs::write(&path, edited).expect("write");
        }
        assert_eq!(books.carries_now(), 0, "{name}");
        fs::write(&path, before).expect("write");
        assert_eq!(books.carries_now(), carried, "{name}, and is put back");
    }
    // An older verdict in the newest one's place.
    let newest = ledger.join("000000003.json");
    fs::copy(ledger.join("000000002.json"), &newest).expect("copy");
    assert_eq!(books.carries_now(), 0);
    fs::remove_file(&newest).expect("remove");
    // Another target's ledger and record of a repository of the same name.
    let other = Books::passed();
    other.check();
    for (from, to) in [(other.store().join("ledger"), &ledger), (other.store().join("parts"), &parts)] {
        fs::remove_dir_all(to).expect("remove");
        fs::create_dir(to).expect("mkdir");
        for entry in fs::read_dir(from).expect("list").flatten() {
            fs::copy(entry.path(), to.join(entry.file_name())).expect("copy");
        }
    }
    assert_eq!(books.carries_now(), 0);
}

/// The same target, the same key: a verdict counts for its own repository alone.
#[test]
fn another_repositorys_verdict_carries_nothing() {
    let books = Books::passed();
    assert_eq!(books.carries_now(), 9);
    let books =
        Books { bench: books.bench.configured(|config| config.name = "q".to_owned()), tree: books.tree };
    let places = books.bench.repository.newest_places(10);
    let refused = books.bench.repository.verdict_in_place(places[0]).expect_err("of another one");
    assert_eq!(refused, "verdict 000000001 is of another repository");
    assert_eq!(books.carries_now(), 0);
}

/// By a clock of the test's own: a week later all is old, and before the last check nothing is believed.
#[test]
fn results_age_by_the_clock() {
    let books = Books::passed();
    let hours = |hours: i64| Timestamp::now() + jiff::SignedDuration::from_hours(hours);
    assert_eq!(books.would_carry(hours(0)), 9);
    // Ten parts in a week: one every 17 hours, and after two days the oldest three.
    assert_eq!(books.would_carry(hours(48)), 7);
    assert_eq!(books.would_carry(hours(7 * 24 - 1)), 0, "the share of the time that has gone by");
    assert_eq!(books.would_carry(hours(7 * 24)), 0);
    assert_eq!(books.would_carry(hours(-1)), 0, "the last check is in the future");
    let books = Books {
        bench: books.bench.configured(|config| {
            config.full_check_every = Some(std::time::Duration::from_secs(24 * 3600));
        }),
        tree: books.tree,
    };
    assert_eq!(books.would_carry(hours(23)), 8);
    assert_eq!(books.would_carry(hours(25)), 0, "a full check is due");
}
