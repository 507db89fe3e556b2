//! SQLite databases in WAL mode under several writers, and files beside them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use assay_common::verdict::Outcome;
use rusqlite::{Connection, functions::FunctionFlags};

use crate::{
    live::{self, Damage, Live, Writers, overwrite, replace, run},
    pair::Pair,
};

const PAGE_BYTES: usize = 4096;

fn open(path: &Path) -> Connection {
    let connection = Connection::open(path).expect("open");
    connection.busy_timeout(Duration::from_secs(60)).expect("timeout");
    connection
}

struct Sqlite {
    writers: Writers,
    pair: Pair,
}

impl Sqlite {
    /// `app.db` under writers, which keep a sum in two tables; `data/side.db`, which nobody writes; a file.
    fn start() -> Self {
        let pair = Pair::engine(
            "sqlite",
            "vars = { databases = [\"app.db\", \"data/side.db\", \"*\"], foreign_keys = \"fail\" }\n",
        );
        let root = pair.root(0);
        fs::create_dir(root.join("data")).expect("mkdir");
        fs::write(root.join("data/picture"), "beside the databases").expect("write");
        open(&root.join("app.db"))
            .execute_batch(&format!(
                "pragma page_size = {PAGE_BYTES}; pragma journal_mode = wal;
                 create table cold (a text); create index cold_by_a on cold (a);
                 insert into cold with recursive n(i) as (select 1 union all select i + 1 from n where i < 3000)
                 select 'cold-row-' || printf('%06d', i) || hex(zeroblob(40)) from n;
                 create table account (id integer primary key, balance int);
                 insert into account values (1, 0), (2, 0);
                 create table moved (a int, b text); create index moved_by_b on moved (b);"
            ))
            .expect("fill");
        open(&root.join("data/side.db"))
            .execute_batch(
                "create table parent (id integer primary key);
                 create table child (id integer primary key, parent_id int references parent(id));
                 insert into parent values (1), (2); insert into child values (1, 1), (2, 2);
                 create table note (a text); insert into note values ('as it was written');",
            )
            .expect("fill");
        let mut live = Self { writers: Writers::new(), pair };
        for _ in 0..3 {
            let connection = open(&root.join("app.db"));
            live.writers.start(move |number| {
                let done = connection.execute_batch(&format!(
                    "begin immediate; update account set balance = balance - {number} where id = 1;
                     update account set balance = balance + {number} where id = 2;
                     insert into moved values ({number}, hex(randomblob(60))); commit;"
                ));
                // On a machine with much to do, another writer or a checkpoint can be in the way for longer than it waits.
                if done.is_err() && !connection.is_autocommit() {
                    connection.execute_batch("rollback").expect("it has begun");
                }
                done.is_ok()
            });
        }
        live
    }

    /// The same, and whatever else applications do to their databases: VACUUM, checkpoints, tables and indexes that come and go,
    /// full-text and spatial indexes, and further databases.
    fn start_busy() -> Self {
        let mut live = Self::start();
        let root = live.pair.root(0);
        for (name, journal) in [("data/search", "wal"), ("data/other.sqlite", "delete")] {
            let connection = open(&root.join(name));
            connection
                .execute_batch(&format!(
                    "pragma journal_mode = {journal};
                     create virtual table words using fts5(body); create virtual table place using rtree(id, low, high);
                     create table t (a integer primary key, b text); create index by_b on t (b);"
                ))
                .expect("fill");
            live.writers.start(move |number| {
                let step = match number % 8 {
                    0 => "vacuum".to_owned(),
                    1 => "pragma wal_checkpoint(truncate)".to_owned(),
                    2 => "create table if not exists more (x); create index if not exists by_x on more (x);
                          insert into more values (random())"
                        .to_owned(),
                    3 => "drop table if exists more".to_owned(),
                    4 => "insert into words (words) values ('optimize'); reindex".to_owned(),
                    5 => "delete from words where rowid % 3 = 0; delete from t where a % 3 = 0".to_owned(),
                    _ => format!(
                        "begin immediate; insert into words values ('word{number} and more words');
                         insert into place values ({number}, {number}, {number} + 1);
                         insert into t (b) values (hex(randomblob(200))); commit"
                    ),
                };
                // Another connection may be in the way, the mark's among them.
                let done = connection.execute_batch(&step).is_ok();
                if !done && !connection.is_autocommit() {
                    connection.execute_batch("rollback").expect("it has begun");
                }
                done
            });
        }
        // The cold rows stay where they are, so it is not vacuumed.
        let connection = open(&root.join("app.db"));
        live.writers.start(move |number| {
            let mode = ["passive", "full", "restart", "truncate"][number as usize % 4];
            connection.query_row(&format!("pragma wal_checkpoint({mode})"), [], |_| Ok(())).is_ok()
        });
        live
    }

    fn file(&self, name: &str) -> PathBuf {
        self.pair.root(0).join(name)
    }

    /// The places of a text in the file of `app.db`: nobody writes where it is, and it left the WAL before there were writers.
    fn places(&self, text: &str) -> Vec<usize> {
        let content = fs::read(self.file("app.db")).expect("read");
        content
            .windows(text.len())
            .enumerate()
            .filter(|(_, at)| *at == text.as_bytes())
            .map(|(at, _)| at)
            .collect()
    }
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    PathBuf::from(format!("{}{ending}", path.display()))
}

/// Makes a database at `made` with a log of 50 commits, and copies these files of it to `file` while it is open.
fn put_beside(made: &Path, file: &Path, endings: &[&str]) {
    {
        let writer = open(made);
        writer
            .execute_batch("pragma journal_mode = wal; pragma wal_autocheckpoint = 0; create table t (a)")
            .expect("fill");
        for number in 0..50 {
            writer.execute("insert into t values (?1)", [number]).expect("insert");
        }
        for ending in endings {
            fs::copy(beside(made, ending), beside(file, ending)).expect("copy");
        }
    }
    fs::remove_file(made).expect("remove");
}

impl Live for Sqlite {
    const ENGINE: &'static str = "SQLite";
    const DAMAGES: &'static [Damage<Self>] = &[
        Damage {
            name: "a page of zeros",
            outcome: Outcome::Fail,
            names: "the page",
            put_in: |live| {
                let page = live.places("cold-row-001500")[0] / PAGE_BYTES;
                let file = live.file("app.db");
                overwrite(&file, (page * PAGE_BYTES) as u64, &[0; PAGE_BYTES], format!("age {}", page + 1))
            },
        },
        Damage {
            name: "a key of an index that its table does not have",
            outcome: Outcome::Fail,
            names: "the index",
            put_in: |live| {
                let text = "cold-row-002000";
                let places = live.places(text);
                assert_eq!(places.len(), 2, "one in the table, one in the index");
                overwrite(&live.file("app.db"), places[1] as u64, b"cold-row-001999", "index cold_by_a")
            },
        },
        Damage {
            name: "a row that refers to none",
            outcome: Outcome::Fail,
            names: "table and row",
            put_in: |live| {
                let file = live.file("data/side.db");
                open(&file)
                    .execute_batch("pragma foreign_keys = off; insert into child values (3, 99)")
                    .expect("insert");
                live::Broken::new("child row 3 refers to parent", move || {
                    open(&file).execute_batch("delete from child where id = 3").expect("delete");
                })
            },
        },
        Damage {
            name: "a frame in the middle of a write-ahead log",
            outcome: Outcome::Fail,
            names: "the log and the frame",
            put_in: |live| {
                let (made, file) = (live.pair.path("log.db"), live.file("data/log.db"));
                put_beside(&made, &file, &["", "-wal"]);
                let log = beside(&file, "-wal");
                let mut content = fs::read(&log).expect("read");
                let middle = content.len() / 2;
                content[middle..middle + 64].fill(0xff);
                fs::write(&log, content).expect("write");
                live::Broken::new("data/log.db-wal: frame ", move || {
                    for ending in ["", "-wal", "-shm"] {
                        drop(fs::remove_file(beside(&file, ending)));
                    }
                })
            },
        },
        Damage {
            name: "a write-ahead log that is cut between two frames",
            outcome: Outcome::Fail,
            names: "the log and how many frames are missing",
            put_in: |live| {
                let (made, file) = (live.pair.path("log.db"), live.file("data/log.db"));
                put_beside(&made, &file, &["", "-wal", "-shm"]);
                let log = fs::File::options().write(true).open(beside(&file, "-wal")).expect("open");
                log.set_len(32 + 20 * (24 + PAGE_BYTES as u64)).expect("cut");
                live::Broken::new("data/log.db-wal: the file ends after frame 20", move || {
                    for ending in ["", "-wal", "-shm"] {
                        drop(fs::remove_file(beside(&file, ending)));
                    }
                })
            },
        },
        Damage {
            name: "a page of zeros in a database that the configuration does not name",
            outcome: Outcome::Fail,
            names: "the database",
            put_in: |live| {
                let file = live.file("data/second");
                open(&file)
                    .execute_batch(
                        "create table t (a text); create index by_a on t (a);
                         insert into t with recursive n(i) as (select 1 union all select i + 1 from n where i < 2000)
                         select 'row ' || i from n;",
                    )
                    .expect("fill");
                let done = overwrite(&file, 4 * PAGE_BYTES as u64, &[0; PAGE_BYTES], "data/second: ");
                done.then(move || fs::remove_file(file).expect("remove"))
            },
        },
        Damage {
            name: "an index that misses entries",
            outcome: Outcome::Fail,
            names: "the index",
            put_in: |live| {
                let file = live.file("data/index");
                open(&file)
                    .execute_batch(
                        "create table t (a int); insert into t values (1), (2), (3);
                         create index by_a on t (a) where a > 1; pragma writable_schema = on;
                         update sqlite_schema set sql = 'create index by_a on t (a)' where name = 'by_a';",
                    )
                    .expect("fill");
                live::Broken::new("row 1 missing from index by_a", move || {
                    fs::remove_file(file).expect("remove");
                })
            },
        },
        Damage {
            name: "a list of free pages that is not as long as its header says",
            outcome: Outcome::Fail,
            names: "the list",
            put_in: |live| overwrite(&live.file("data/side.db"), 36, &[0, 0, 0, 3], "reelist"),
        },
        Damage {
            name: "a spatial index (R-Tree) that lost a row",
            outcome: Outcome::Fail,
            names: "the table",
            put_in: |live| {
                let file = live.file("data/places");
                open(&file)
                    .execute_batch(
                        "create virtual table place using rtree(id, low, high);
                         insert into place with recursive n(i) as (select 1 union all select i + 1 from n where i < 500)
                         select i, i, i + 1 from n;
                         delete from place_rowid where rowid = 7;",
                    )
                    .expect("fill");
                live::Broken::new("place", move || fs::remove_file(file).expect("remove"))
            },
        },
        Damage {
            name: "a hot journal, whose writer died",
            outcome: Outcome::Pass,
            names: "",
            put_in: |live| {
                let (made, file) = (live.pair.path("hot.db"), live.file("data/hot"));
                let writer = open(&made);
                writer
                    .execute_batch(
                        "pragma cache_size = 5; create table t (a);
                         insert into t with recursive n(i) as (select 1 union all select i + 1 from n where i < 3000)
                         select 'old' || hex(zeroblob(50)) from n;
                         begin; update t set a = 'new' || a;",
                    )
                    .expect("fill");
                let both = ["", "-journal"].map(|ending| {
                    fs::copy(beside(&made, ending), beside(&file, ending)).expect("copy");
                    (fs::read(beside(&file, ending)).expect("read"), beside(&file, ending))
                });
                drop(writer);
                fs::remove_file(&made).expect("remove");
                live::Broken::new("", move || {
                    for (content, path) in both {
                        assert!(
                            fs::read(&path).expect("it is there") == content,
                            "{} was written",
                            path.display()
                        );
                        fs::remove_file(path).expect("remove");
                    }
                })
            },
        },
        Damage {
            name: "a full-text index (FTS5) that finds nothing",
            outcome: Outcome::Fail,
            names: "the table",
            put_in: |live| {
                let file = live.file("data/text");
                open(&file)
                    .execute_batch(
                        "create virtual table ft using fts5(body);
                         insert into ft with recursive n(i) as (select 1 union all select i + 1 from n where i < 2000)
                         select 'hello world ' || i from n;
                         update ft_data set block = zeroblob(length(block)) where id > 10;",
                    )
                    .expect("fill");
                live::Broken::new("FTS5 table main.ft", move || fs::remove_file(file).expect("remove"))
            },
        },
        Damage {
            name: "an index over `lower()`, to which the application gives a meaning of its own",
            outcome: Outcome::Inconclusive,
            names: "the index and the function",
            put_in: |live| {
                let file = live.file("data/application");
                let connection = open(&file);
                let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
                let lower =
                    |context: &rusqlite::functions::Context<'_>| Ok(context.get::<String>(0)?.to_lowercase());
                connection.create_scalar_function("lower", 1, flags, lower).expect("function");
                connection
                    .execute_batch("create table t (x text); insert into t values ('ÄÖÜ'); create index i on t (lower(x));")
                    .expect("fill");
                live::Broken::new("index i; the function lower() may be the application's own", move || {
                    fs::remove_file(file).expect("remove");
                })
            },
        },
        Damage {
            name: "a row that breaks a `CHECK` constraint",
            outcome: Outcome::Fail,
            names: "the table",
            put_in: |live| {
                let file = live.file("data/checked");
                let connection = open(&file);
                connection
                    .execute_batch(
                        "create table account (balance, check (balance >= 0)); pragma ignore_check_constraints = on;
                         insert into account values (-5)",
                    )
                    .expect("fill");
                live::Broken::new("CHECK constraint failed in account", move || {
                    fs::remove_file(file).expect("remove");
                })
            },
        },
        Damage {
            name: "a table `WITHOUT ROWID` in the order of a collation of the application's own",
            outcome: Outcome::Pass,
            names: "",
            put_in: |live| {
                let file = live.file("data/ordered");
                let connection = open(&file);
                let by_length = |one: &str, other: &str| one.len().cmp(&other.len()).then(one.cmp(other));
                connection.create_collation("by_length", by_length).expect("a collation");
                connection
                    .execute_batch(
                        "create table t (k text collate by_length primary key, v) without rowid; create index i on t (v);
                         with n(n) as (select 1 union all select n + 1 from n where n < 300) insert into t select n, n % 5 from n",
                    )
                    .expect("fill");
                live::Broken::new("", move || fs::remove_file(file).expect("remove"))
            },
        },
        Damage {
            name: "a word in a value that no index has",
            outcome: Outcome::Pass,
            names: "",
            put_in: |live| {
                let file = live.file("data/side.db");
                let text = b"as it was written";
                let content = fs::read(&file).expect("read");
                let at = content.windows(text.len()).position(|at| at == text).expect("there");
                overwrite(&file, at as u64, b"so", "")
            },
        },
        Damage {
            name: "a database cut in half",
            outcome: Outcome::NotRun,
            names: "the database",
            put_in: |live| {
                let file = live.file("data/side.db");
                let content = fs::read(&file).expect("read");
                replace(
                    &file,
                    Some(&content[..content.len() / 2]),
                    "data/side.db: database disk image is malformed",
                )
            },
        },
        Damage {
            name: "the header of a database",
            outcome: Outcome::NotRun,
            names: "the database",
            put_in: |live| {
                overwrite(&live.file("data/side.db"), 0, &[0xa5; 100], "data/side.db: file is not a database")
            },
        },
        Damage {
            name: "an empty file for a database",
            outcome: Outcome::NotRun,
            names: "the database",
            put_in: |live| replace(&live.file("data/side.db"), Some(b""), "data/side.db: it is empty"),
        },
    ];

    fn pair(&self) -> &Pair {
        &self.pair
    }

    fn written(&self) -> u64 {
        self.writers.written()
    }
}

#[test]
fn sqlite_comes_out_as_the_matrix_says() {
    live::compare_with_matrix(&Sqlite::start());
}

#[test]
fn soak_sqlite() {
    live::soak(&Sqlite::start_busy());
}

/// Each copy is one state that the database has had, with everything that was committed before the run, and only it stands in
/// the generation: no WAL of the live one beside it, which would be applied to it.
#[test]
fn each_copy_is_one_committed_state() {
    let live = Sqlite::start();
    for generation in 1..=3 {
        let before: i64 = open(&live.file("app.db"))
            .query_row("select count(*) from moved", [], |row| row.get(0))
            .expect("count");
        live.pair.eventually("the writers have a WAL", || live.file("app.db-wal").exists());
        let run_done = live.pair.run(0);
        assert_eq!(run_done["generation"], generation, "{run_done}");
        let tree = live.pair.latest();
        let mut names: Vec<_> = ["", "data"]
            .iter()
            .flat_map(|folder| fs::read_dir(tree.join(folder)).expect("read"))
            .map(|entry| entry.expect("entry").file_name().into_string().expect("utf-8"))
            .collect();
        names.sort();
        assert_eq!(names, ["app.db", "data", "picture", "side.db"]);
        // Restored, another program of SQLite's own reads it.
        let back = live.pair.restored(&format!("back{generation}"));
        let said = run(Command::new("sqlite3").arg(back.join("app.db")).arg(
            "pragma integrity_check; select sum(balance) from account;
             select balance = (select sum(a) from moved) from account where id = 2; select count(*) from moved;",
        ));
        let said: Vec<_> = said.lines().collect();
        assert_eq!(said[..3], ["ok", "0", "1"], "money was lost on the way: {said:?}");
        assert!(said[3].parse::<i64>().expect("a number") >= before, "{said:?} {before}");
    }
}

/// A database that nobody named is copied by the online backup like the others, so its copy is sound under its writer.
#[test]
fn a_database_that_nobody_named_is_copied_whole() {
    let pair = Pair::engine("sqlite", "vars = { databases = [\"app.db\"] }\n");
    let root = pair.root(0);
    open(&root.join("app.db")).execute_batch("create table t (a)").expect("fill");
    let other = open(&root.join("other"));
    other
        .execute_batch(
            "pragma journal_mode = wal; create table t (id integer primary key, k int, v blob); create index i on t (k);
             insert into t (k, v) with recursive n(i) as (select 1 union all select i + 1 from n where i < 20000)
             select random(), randomblob(200) from n;",
        )
        .expect("fill");
    let mut writers = Writers::new();
    writers.start(move |_| {
        let sql = "update t set k = random() where id in (select 1 + abs(random() % 20000) from t limit 40)";
        other.execute_batch(sql).is_ok()
    });
    for _ in 0..3 {
        let before = writers.written();
        pair.eventually("the writer writes", || writers.written() > before);
        let done = pair.run(0);
        let copy = Connection::open(pair.latest().join("other")).expect("open");
        let said: String = copy.query_row("pragma integrity_check", [], |row| row.get(0)).expect("check");
        assert_eq!(said, "ok", "{done}");
        let mark = done["mark"]["id"].as_str().expect("text");
        assert!(mark.contains("app.db: ") && mark.contains("other: "), "{mark}");
    }
}
