//! SQLite databases in WAL mode under several writers, and files beside them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use assay_common::verdict::Outcome;
use rusqlite::Connection;

use crate::{
    live::{self, Damage, Live, Writers, overwrite, replace, run, without_program},
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
        let pair = Pair::engine("sqlite", "vars = { databases = [\"app.db\", \"data/side.db\"] }\n");
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
                connection
                    .execute_batch(&format!(
                        "begin immediate; update account set balance = balance - {number} where id = 1;
                         update account set balance = balance + {number} where id = 2;
                         insert into moved values ({number}, hex(randomblob(60))); commit;"
                    ))
                    .expect("the writer writes");
                true
            });
        }
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
    live::soak(&Sqlite::start());
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

#[test]
fn without_sqlite_it_is_inconclusive() {
    let live = Sqlite::start();
    without_program(&live.pair, "sqlite", "sqlite3");
}
