//! Checks whose cost follows the change: what a run carries, that damage is found beside it, and that no result grows too old.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::{
    live::{flip, middle, newest_verdict, overwrite, run},
    pair::{Pair, wrong_clock},
    postgresql::{Cluster, agents_with},
};

/// Parts that the run's PASS checked, and parts whose result it carried.
fn counts(run: &Value) -> (u64, u64) {
    assert_eq!(run["outcome"], "OUTCOME_PASS", "{run}");
    let count = |name: &str| run["claims"][name].as_u64().unwrap_or_default();
    (count("partsChecked"), count("partsCarried"))
}

fn sentence(run: &Value) -> &str {
    run["sentence"].as_str().expect("a sentence")
}

/// The path of a repository with shards of four revisions and eleven revisions, the first shards packed.
fn subversion(pair: &Pair) -> PathBuf {
    let repository = pair.root(0);
    run(Command::new("svnadmin").arg("create").arg(&repository));
    let format = repository.join("db/format");
    let text = fs::read_to_string(&format).expect("read");
    fs::write(&format, text.replace("sharded 1000", "sharded 4")).expect("write");
    for number in 1..=11 {
        commit(pair, &repository, &format!("file{number}"));
    }
    run(Command::new("svnadmin").args(["pack", "-q"]).arg(&repository));
    repository
}

fn commit(pair: &Pair, repository: &Path, name: &str) {
    let file = pair.path("file");
    let content: String = (0..400).map(|line| format!("{name}: {}\n", line * line)).collect();
    fs::write(&file, content).expect("write");
    let url = format!("file://{}/{name}", repository.display());
    run(Command::new("svn").args(["import", "-q", "-m", "more"]).arg(&file).arg(url));
}

#[test]
fn a_subversion_check_follows_the_change_and_finds_damage_anywhere() {
    let pair = Pair::engine("subversion", "max_drop_percent = 100\n");
    let repository = subversion(&pair);
    let first = pair.run(0);
    assert_eq!(counts(&first), (0, 0), "nothing is carried: {first}");
    // Revisions 0 to 3, 4 to 7 and 8 to 11; the next commit begins a range.
    commit(&pair, &repository, "more");
    let second = pair.run(0);
    println!("{}", sentence(&second));
    assert_eq!(counts(&second), (2, 2), "the new range, and the one whose turn it is: {second}");
    assert!(sentence(&second).contains("2 of 4 parts checked now, the rest between "), "{second}");
    // Whatever the width of the lines.
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let explained = words(&pair.target(&["explain"]).stdout);
    println!("{explained}");
    assert!(
        explained.contains(
            "The check looked at 2 of 4 parts now. The rest has not changed since it passed, between"
        ) && explained.contains("for 1 verdict (000000001). Each part is checked again within 7 days"),
        "{explained}"
    );
    for (text, part) in [
        (pair.source(&["explain"]).stdout, "2 of 4 parts checked now"),
        (pair.target(&["status"]).stdout, "2 of 4 parts checked now"),
        (pair.target(&["generations"]).stdout, "checked now: 2 of 4 parts, the rest since 20"),
    ] {
        assert!(words(&text).contains(part), "{text}");
    }

    // A control has damage in parts that any check would carry.
    pair.prove();
    let control = pair.target(&["--json", "control"]).stdout;
    println!("{control}");
    assert!(control.contains("db/revs/"), "{control}");
    assert_eq!(counts(&pair.run(0)), (1, 3));

    // Damage on the live side in a part that was carried: its content is another one, and so it is checked.
    for place in ["db/revs/0.pack/pack", "db/revs/3/12"] {
        let file = repository.join(place);
        let broken = flip(&file, middle(&file), place);
        let failed = pair.run(1);
        assert_eq!(failed["reason"], "damage-found", "{place}: {failed}");
        broken.mend();
        assert_eq!(counts(&pair.run(0)), (0, 0), "after a FAIL all is checked");
        assert_eq!(counts(&pair.run(0)), (1, 3));
    }

    // What is asked for looks at all.
    let full = pair.source(&["--json", "run", "--follow", "--full-check"]);
    let full: Value = serde_json::from_str(full.stdout.lines().last().expect("a run")).expect("JSON");
    assert_eq!(counts(&full), (0, 0), "{full}");
    let verified = pair.target(&["--json", "verify"]);
    let verified: Value =
        serde_json::from_str(verified.stdout.lines().last().expect("a verdict")).expect("JSON");
    assert_eq!(counts(&verified), (0, 0), "{verified}");
    assert_eq!(counts(&pair.run(0)), (1, 3));
}

/// Creates six databases, one of them in WAL mode.
fn databases(pair: &Pair) -> Vec<PathBuf> {
    let mut made = Vec::new();
    for number in 0..6 {
        let path = pair.root(0).join(format!("app{number}.db"));
        sqlite(
            &path,
            &format!(
                "PRAGMA journal_mode = {}; CREATE TABLE t (n INTEGER PRIMARY KEY, a TEXT UNIQUE, b REFERENCES t);
                 WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 2000)
                 INSERT INTO t SELECT i, 'row ' || (i * i), NULL FROM c;",
                if number == 0 { "wal" } else { "delete" }
            ),
        );
        made.push(path);
    }
    made
}

fn sqlite(database: &Path, statements: &str) {
    rusqlite::Connection::open(database).expect("open").execute_batch(statements).expect("SQL");
}

/// Each of two steps has a part for each database.
#[test]
fn a_sqlite_check_follows_the_change_and_finds_damage_anywhere() {
    let pair = Pair::engine("sqlite", "max_drop_percent = 100\n");
    let databases = databases(&pair);
    assert_eq!(counts(&pair.run(0)), (0, 0), "nothing is carried");
    let second = pair.run(0);
    println!("{}", sentence(&second));
    assert_eq!(counts(&second), (2, 10), "nothing has changed, and each step looks at one: {second}");
    assert!(sentence(&second).contains("2 of 12 parts checked now, the rest between "), "{second}");
    sqlite(&databases[3], "UPDATE t SET a = 'changed' WHERE n = 7");
    assert_eq!(counts(&pair.run(0)), (2, 10));
    // The step checks a database with a note each time: the next verdict would not repeat the note.
    sqlite(&databases[4], "PRAGMA foreign_keys = off; UPDATE t SET b = 99999 WHERE n = 8");
    assert_eq!(counts(&pair.run(0)), (2, 10));
    assert_eq!(counts(&pair.run(0)), (2, 10), "the foreign keys of that one, and the integrity of one");
    sqlite(&databases[4], "UPDATE t SET b = NULL");
    assert_eq!(counts(&pair.run(0)), (2, 10));

    // A control damages a part that other checks would carry.
    pair.prove();
    let control = pair.target(&["--json", "control"]).stdout;
    assert!(control.contains(".db"), "{control}");
    assert_eq!(counts(&pair.run(0)), (2, 10));

    // Live damage in a part that was carried.
    let broken = flip(&databases[2], 4096 + 3, "app2.db");
    let failed = pair.run(1);
    assert_eq!(failed["reason"], "damage-found", "{failed}");
    broken.mend();
    assert_eq!(counts(&pair.run(0)), (0, 0), "after a FAIL all is checked");
    // One database is removed, and one is new.
    fs::remove_file(&databases[5]).expect("remove");
    sqlite(&pair.root(0).join("new.db"), "CREATE TABLE t (n)");
    assert_eq!(counts(&pair.run(0)), (2, 10));
    let full = pair.source(&["--json", "run", "--follow", "--full-check"]);
    let full: Value = serde_json::from_str(full.stdout.lines().last().expect("a run")).expect("JSON");
    assert_eq!(counts(&full), (0, 0), "{full}");
}

/// Tables with an index and values that are stored apart.
const TABLES: &str = "
DO $$ BEGIN FOR t IN 1..8 LOOP
    EXECUTE format('CREATE TABLE t%s (n int PRIMARY KEY, filler text, far text)', t);
    EXECUTE format('ALTER TABLE t%s ALTER far SET STORAGE external', t);
    EXECUTE format('INSERT INTO t%s SELECT n, repeat(''x'', 300), repeat(md5(n::text), 100) FROM generate_series(1, 300) n', t);
END LOOP; END $$;
CREATE FUNCTION fold(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT pg_catalog.lower($1)';
";

/// A cluster with agents beside it, in which nothing is written but by the test.
struct Still {
    cluster: Cluster,
    pair: Pair,
    /// Tables of a check in which all tables of `TABLES` are carried.
    always: u64,
}

impl Still {
    fn start() -> Self {
        let (pair, cluster) = agents_with(&["--data-checksums", "--wal-segsize=1"], |keys| {
            Pair::engine("postgresql", &format!("{keys}max_drop_percent = 100\n"))
        });
        cluster.query("ALTER SYSTEM SET autovacuum = off");
        cluster.query("SELECT pg_reload_conf()");
        cluster.query(TABLES);
        cluster.query("VACUUM (FREEZE)");
        let first = pair.run(0);
        assert_eq!(counts(&first), (0, 0), "nothing is carried: {first}");
        let all = tables(&pair);
        let still = Self { cluster, pair, always: all - 8 };
        let second = still.pair.run(0);
        println!("{}", sentence(&second));
        assert!(counts(&second).1 > 8, "{second}");
        assert_eq!(tables(&still.pair), still.always, "nothing has changed");
        still
    }

    /// Carries statements out, has a check, and says how many tables of the application it looked at.
    fn checked_after(&self, statements: &str) -> u64 {
        // VACUUM cannot be one of several.
        for statement in statements.split("; ").filter(|it| !it.is_empty()) {
            self.cluster.query(statement);
        }
        let run = self.pair.run(0);
        assert_eq!(run["outcome"], "OUTCOME_PASS", "{statements}: {run}");
        tables(&self.pair) - self.always
    }
}

/// How many tables amcheck looked at, by the newest verdict.
fn tables(pair: &Pair) -> u64 {
    let verdict = newest_verdict(pair);
    let step = verdict.steps.iter().find(|step| step.name == "amcheck").expect("the step");
    step.checked.iter().find(|it| it.kind == "tables").map_or(0, |it| it.count)
}

#[test]
fn a_postgresql_check_follows_the_change() {
    let still = Still::start();
    let changes = "UPDATE t1 SET filler = 'y' WHERE n = 7; ALTER TABLE t2 RENAME TO renamed; \
         ALTER TABLE t3 ALTER n SET STATISTICS 50; TRUNCATE t4";
    assert_eq!(still.checked_after(changes), 4);
    // While a transaction is open, nobody knows what becomes of its rows: its end is in the commit log alone. Rows that several transactions have
    // locked at once depend on the lists of transactions, and what a function of the application's own gives is known to nobody.
    let open = still.cluster.begin("INSERT INTO t7 VALUES (1000, '', '')");
    let locks = ["SELECT FROM t8 WHERE n = 1 FOR SHARE"; 2].map(|lock| still.cluster.begin(lock));
    locks.into_iter().for_each(crate::postgresql::Open::commit);
    let changes = "VACUUM t1; VACUUM FULL t3; INSERT INTO t4 VALUES (1, '', ''); DROP TABLE t5; \
         CREATE INDEX ON t6 (fold(filler)); CREATE TABLE t9 AS SELECT n FROM generate_series(1, 1000) n; \
         CREATE INDEX ON t9 (n); CHECKPOINT";
    assert_eq!(still.checked_after(changes), 7, "t1, t3, t4, t6, t7, t8, t9");
    assert_eq!(still.checked_after(""), 3, "t6, t7 and t8, whose files are as they were");
    open.commit();
    let changes =
        "DROP INDEX t6_fold_idx; CREATE INDEX ON t6 (lower(filler)) WHERE n > 5; VACUUM (FREEZE) t8";
    assert_eq!(still.checked_after(changes), 3, "t6, t7, whose rows count now, and t8");
    assert_eq!(still.checked_after(""), 0);
    // What an operator of the cluster's own does is said by rows on which all tables depend.
    assert_eq!(still.checked_after("ALTER FUNCTION pg_catalog.btint4cmp(int, int) COST 2"), 8);
}

/// Damage on the live side in tables that were carried, and in the commit log on which their rows depend.
#[test]
fn damage_in_a_carried_table_of_postgresql_is_found() {
    let mut still = Still::start();
    let file = still.cluster.file_of("t1_pkey");
    let broken = flip(&file, middle(&file), "t1_pkey");
    let failed = still.pair.run(1);
    assert_eq!(failed["reason"], "damage-found", "{failed}");
    broken.mend();
    assert_eq!(still.checked_after("UPDATE t3 SET filler = 'z'; SELECT count(*) FROM t3"), 8, "after a FAIL");
    // What the server holds of the log in its memory goes to the file when it stops.
    let transaction: u64 = still.cluster.query("SELECT xmin FROM t3 LIMIT 1").parse().expect("a number");
    still.cluster.stop("-INT");
    let log = still.cluster.data.join("pg_xact/0000");
    let at = transaction / 4;
    let byte = fs::read(&log).expect("read")[at as usize];
    let without = byte & !(3 << (2 * (transaction % 4)));
    let broken = overwrite(&log, at, &[without], "pg_xact/0000");
    still.cluster.start_again(&[]);
    let failed = still.pair.run(1);
    assert!(failed["message"].as_str().is_some_and(|text| text.contains("commit log")), "{failed}");
    still.cluster.stop("-INT");
    broken.mend();
    still.cluster.start_again(&[]);
    assert_eq!(still.checked_after(""), 8, "after a FAIL all is checked");
    assert_eq!(still.checked_after(""), 0);
}

/// Eight days later by both clocks, no result may be carried; then the clocks are put right, and what was dated ahead counts for nothing.
#[test]
fn carried_results_have_a_deadline_and_survive_no_clock_that_jumps() {
    let pair = Pair::engine("subversion", "max_drop_percent = 100\n");
    subversion(&pair);
    pair.run(0);
    assert_eq!(counts(&pair.run(0)), (1, 2));
    let at = |by: Option<&str>| {
        for role in ["source", "target"] {
            pair.kill(role);
            pair.set_environment(role, &by.map(wrong_clock).unwrap_or_default());
        }
        pair.start("target");
        pair.start("source");
    };
    // Certificates of tests are valid for a day, so that the results are made old sooner.
    pair.configure("target", "source_key = ", "recheck_within = \"4h\"\nsource_key = ");
    at(Some("+5h"));
    let late = pair.run(0);
    assert_eq!(counts(&late), (0, 0), "all results are older than four hours: {late}");
    assert_eq!(counts(&pair.run(0)), (1, 2));
    at(None);
    let right = pair.run(0);
    assert_eq!(counts(&right), (0, 0), "the last check is dated in the future: {right}");
    assert_eq!(counts(&pair.run(0)), (1, 2));
}

/// A command of an operator's own that looks at each file for itself.
const BOOKS: &str = r#"
[[check]]
name = "look"
depth = "L1"
argv = ["sh", "-c", '''
for book in "$@"; do
    if [ "$(head -n -1 "$book" | cksum)" != "$(tail -n 1 "$book")" ]; then echo "CORRUPT $book"; bad=1; fi
done
echo "checked $# books"; [ -z "$bad" ]
''', "look", "{parts}"]
fail_exit = [1]
fail_patterns = [{ pattern = '^CORRUPT (.*)$', reason = "damage-found" }]
parts_checked = '^checked (\d+) (.*)$'
parts = { for_each_changed = ["*.book"], not_read = ["*.log"] }

[[control]]
files = "*.book"
damage = "flip-byte"
places = 2
"#;

fn write_book(pair: &Pair, name: &str, text: &str) {
    let sum = Command::new("sh").args(["-c", "printf '%s\n' \"$0\" | cksum", text]).output().expect("cksum");
    let sum = String::from_utf8(sum.stdout).expect("text");
    fs::write(pair.root(0).join(name), format!("{text}\n{sum}")).expect("write");
}

#[test]
fn a_command_of_an_operators_own_looks_at_the_files_that_changed() {
    let pair = Pair::with_profile(BOOKS, "max_drop_percent = 100\n");
    fs::write(pair.root(0).join("day.log"), "one").expect("write");
    let empty = pair.run(3);
    assert_eq!(empty["reason"], "nothing-to-check", "{empty}");
    for number in 0..20 {
        write_book(&pair, &format!("{number} of 20.book"), &format!("book {number}"));
    }
    let first = pair.run(0);
    assert_eq!(counts(&first), (0, 0), "{first}");
    write_book(&pair, "7 of 20.book", "another story");
    fs::write(pair.root(0).join("day.log"), "two").expect("write");
    let second = pair.run(0);
    assert_eq!(counts(&second), (2, 18), "{second}");
    let envelope = pair.target(&["verdict", "show", "--envelope"]).stdout;
    let verdict = assay_common::verdict::unverified_verdict(envelope.as_bytes()).expect("a verdict");
    assert_eq!(verdict.steps[0].argv.last().map(String::as_str), Some("{parts}"));
    assert_eq!(verdict.steps[0].checked[0].count, 2, "it looked at no more");
    // A check of another kind of damage: the neighbours are carried.
    let file = pair.root(0).join("3 of 20.book");
    let broken = flip(&file, 2, "3 of 20.book");
    let failed = pair.run(1);
    assert!(failed["message"].as_str().is_some_and(|text| text.contains("3 of 20.book")), "{failed}");
    broken.mend();
    assert_eq!(counts(&pair.run(0)), (0, 0), "after a FAIL");
    // A file that is no part, and that the profile does not call unread, is of all parts.
    fs::write(pair.root(0).join("shelf.version"), "3").expect("write");
    assert_eq!(counts(&pair.run(0)), (0, 0));
    assert_eq!(counts(&pair.run(0)), (1, 19));
}
