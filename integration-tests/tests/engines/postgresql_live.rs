//! PostgreSQL under pgbench and under statements that make, rewrite and remove relations, databases and tablespaces, for the matrix and the
//! soak. Its tables `cold` and `cold_*` are written by nobody, so that a page that is damaged on disk stays damaged.

use std::{fs, fs::File, os::unix::fs::FileExt as _, path::PathBuf};

use assay_common::verdict::Outcome;

use crate::{
    live::{self, Broken, Damage, Live, Writers, add, flip, overwrite, run},
    pair::Pair,
    postgresql::{Cluster, Load, agents, major},
};

const PAGE_BYTES: u64 = 8192;
/// Statements after which files have other names, other lengths, or are gone. Each round makes its objects anew, and leaves the host a moment for
/// the checks.
const CHURN: &str = "
DROP TABLE IF EXISTS churn;
CREATE TABLE churn (n int PRIMARY KEY, t text, words text[], r int4range, EXCLUDE USING gist (r WITH &&));
INSERT INTO churn SELECT n, repeat(md5(n::text), 100), ARRAY[md5(n::text)], int4range(n, n + 1) FROM generate_series(1, 500) n;
CREATE INDEX churn_words ON churn USING gin (words);
CREATE INDEX churn_hash ON churn USING hash (n);
CREATE INDEX churn_brin ON churn USING brin (n);
CREATE INDEX churn_spgist ON churn USING spgist (t);
CREATE INDEX churn_lower ON churn (lower(t)) WHERE n % 2 = 0;
CREATE MATERIALIZED VIEW churn_seen AS SELECT count(*) AS n FROM churn;
UPDATE churn SET t = t || 'x' WHERE n % 3 = 0;
DELETE FROM churn WHERE n > 300;
VACUUM churn;
VACUUM FULL churn;
REINDEX TABLE churn;
REINDEX TABLE CONCURRENTLY churn;
CLUSTER churn USING churn_pkey;
REFRESH MATERIALIZED VIEW churn_seen;
CREATE TEMP TABLE churn_temp AS SELECT * FROM churn;
CREATE UNLOGGED TABLE churn_unlogged AS SELECT * FROM churn;
DROP TABLE churn_unlogged;
SELECT lo_unlink(l) FROM lo_from_bytea(0, decode(repeat('00ff', 20000), 'hex')) l;
BEGIN; UPDATE churn SET n = -n WHERE n < 10; PREPARE TRANSACTION 'churn';
COMMIT PREPARED 'churn';
TRUNCATE churn;
INSERT INTO churn SELECT n, 't' FROM generate_series(1, 2000) n;
CREATE DATABASE churn_database;
DROP DATABASE churn_database;
DROP TABLE churn CASCADE;
SELECT pg_sleep(1);
";
/// The same with a tablespace, which a cluster can have within its data directory from 15 on.
const CHURN_SPACE: &str = "
SET allow_in_place_tablespaces = on;
CREATE TABLESPACE churn_space LOCATION '';
CREATE TABLE churn_aside TABLESPACE churn_space AS SELECT n FROM generate_series(1, 1000) n;
CREATE INDEX ON churn_aside (n) TABLESPACE churn_space;
ALTER TABLE churn_aside SET TABLESPACE pg_default;
DROP TABLE churn_aside;
DROP TABLESPACE churn_space;
SELECT pg_sleep(1);
";
/// Tables that nobody writes. `cold_words` is a GIN index of several pages, `cold_deleted` has a visibility map without bits, `cold_late` has rows
/// that are not frozen.
const COLD: &str = "
CREATE TABLE cold AS SELECT n, repeat('x', 100) AS filler FROM generate_series(1, 3000) n;
CREATE INDEX cold_by_n ON cold (n); CREATE SEQUENCE cold_numbers;
CREATE TABLE cold_other AS SELECT n FROM generate_series(3001, 6000) n;
CREATE INDEX cold_other_by_n ON cold_other (n);
CREATE INDEX cold_words ON cold USING gin ((ARRAY[md5(n::text), filler]));
CREATE TABLE cold_hashed AS SELECT n, repeat('x', 100) AS filler FROM generate_series(1, 3000) n;
CREATE INDEX cold_hashed_by_n ON cold_hashed USING hash (n);
CREATE TABLE cold_long AS SELECT n, repeat('x', 1000) FROM generate_series(1, 3000) n;
CREATE TABLE cold_deleted WITH (autovacuum_enabled = off) AS SELECT n, repeat('x', 100) AS filler FROM generate_series(1, 3000) n;
CREATE TABLE cold_values (n int, t text); ALTER TABLE cold_values ALTER t SET STORAGE external;
INSERT INTO cold_values SELECT n, repeat(md5(n::text), 300) FROM generate_series(1, 100) n;
CREATE TABLE cold_late WITH (autovacuum_enabled = off) AS SELECT n FROM generate_series(1, 1000) n;
CREATE COLLATION german (provider = icu, locale = 'de'); CREATE COLLATION swedish (provider = icu, locale = 'sv');
CREATE COLLATION of_the_host (provider = libc, locale = 'C.UTF-8');
CREATE TABLE cold_sorted (v text COLLATE german, w text COLLATE of_the_host);
INSERT INTO cold_sorted SELECT p || n, p || n FROM generate_series(1, 500) n, unnest(ARRAY['ä', 'b', 'z', 'a']) p;
CREATE INDEX cold_sorted_v ON cold_sorted (v); CREATE INDEX cold_sorted_w ON cold_sorted (w);
CREATE SCHEMA words; CREATE FUNCTION words.fold(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT lower($1)';
SELECT count(lo_from_bytea(0, decode(repeat('00ff', 10000), 'hex'))) FROM generate_series(1, 40) n;
";
/// Transactions enough that those of the tables above are in a page of the commit log that nobody writes any more.
const MANY_TRANSACTIONS: &str = "
CREATE TEMP TABLE gone (n int);
DO $$ BEGIN FOR n IN 1..34000 LOOP BEGIN INSERT INTO gone VALUES (n); EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$;
";

struct Postgresql {
    _load: Load,
    /// Makes and removes whole relations, databases and tablespaces meanwhile.
    _churn: Writers,
    cluster: Cluster,
    pair: Pair,
}

impl Postgresql {
    fn start() -> Self {
        let (pair, mut cluster) = agents(&["--data-checksums", "--wal-segsize=1"]);
        cluster.query("ALTER SYSTEM SET max_prepared_transactions = 5");
        cluster.stop("-INT");
        cluster.start_again(&[]);
        run(&mut cluster.pgbench(&["-i", "-s", "1"]));
        cluster.query(COLD);
        cluster.query(MANY_TRANSACTIONS);
        // Nothing is left to be written to their files later. The map of `cold_deleted` has bits no more, the rows of `cold_late` their marks.
        cluster.query("VACUUM (FREEZE) cold, cold_other, cold_long, cold_deleted, cold_values, cold_hashed, cold_sorted, pg_largeobject");
        cluster.query("DELETE FROM cold_deleted WHERE n % 2 = 0; SELECT count(*) FROM cold_deleted; SELECT count(*) FROM cold_late");
        cluster.query("CHECKPOINT");
        let load =
            Load(cluster.pgbench(&["-n", "-c", "4", "-R", "60", "-T", "36000"]).spawn().expect("starts"));
        let mut churn = Writers::new();
        for (name, statements) in [("churn", CHURN), ("space", CHURN_SPACE)] {
            if name == "space" && major() < 15 {
                continue;
            }
            let file = pair.path(name);
            fs::write(&file, statements).expect("write");
            let client = cluster.client();
            // A statement may meet another's lock on a template or a tablespace: the next round begins anew.
            churn.start(move |_| client.run_file(&file));
        }
        Self { _load: load, _churn: churn, cluster, pair }
    }

    /// How a finding names a relation and its file.
    fn named(&self, relation: &str) -> String {
        let file = self.cluster.query(&format!("SELECT pg_relation_filepath('{relation}')"));
        format!("{relation}\" (file {file}")
    }

    /// The file of a relation that nobody writes.
    fn file(&self, relation: &str) -> PathBuf {
        self.cluster.file_of(relation)
    }

    /// Takes the pages of a relation from `block` on.
    fn cut(&self, relation: &str, block: u64, said: impl Into<String>) -> Broken {
        let file = self.file(relation);
        let opened = File::options().write(true).open(&file).expect("open");
        let lost = fs::read(&file).expect("read").split_off((block * PAGE_BYTES) as usize);
        assert!(!lost.is_empty(), "{relation} ends before block {block}");
        opened.set_len(block * PAGE_BYTES).expect("cut");
        Broken::new(said, move || opened.write_all_at(&lost, block * PAGE_BYTES).expect("write"))
    }

    /// Damage that statements take out again.
    fn undone_by(&self, said: &str, statements: &'static str) -> Broken {
        let (client, file) = (self.cluster.client(), self.pair.path("undo"));
        Broken::new(said, move || {
            fs::write(&file, statements).expect("write");
            assert!(client.run_file(&file), "{statements}");
        })
    }

    fn blank(&self, relation: &str, block: u64) -> Broken {
        overwrite(&self.file(relation), block * PAGE_BYTES, &[0; PAGE_BYTES as usize], self.named(relation))
    }
}

impl Live for Postgresql {
    const ENGINE: &'static str = "PostgreSQL";
    const DAMAGES: &'static [Damage<Self>] = &[
        Damage {
            name: "a bit of a heap page (with checksums)",
            outcome: Outcome::Fail,
            names: "the table",
            put_in: |live| flip(&live.file("cold"), 2 * PAGE_BYTES + 5000, "cold"),
        },
        Damage {
            name: "an index that disagrees with its table, each page sound",
            outcome: Outcome::Fail,
            names: "the index",
            put_in: |live| {
                // The other's pages have good checksums for their block numbers.
                let other = fs::read(live.file("cold_other_by_n")).expect("read");
                overwrite(&live.file("cold_by_n"), 0, &other, "cold_by_n")
            },
        },
        Damage {
            name: "a bit of a sequence (with checksums)",
            outcome: Outcome::Fail,
            names: "the file",
            put_in: |live| {
                let file = live.file("cold_numbers");
                let name = file.file_name().expect("a name").to_string_lossy().into_owned();
                flip(&file, 2000, name)
            },
        },
        Damage {
            name: "no file for a table",
            outcome: Outcome::Fail,
            names: "the file",
            put_in: |live| {
                let file = live.file("cold_other");
                let name = file.file_name().expect("a name").to_string_lossy().into_owned();
                // The server keeps it open, so the file itself must come back.
                let kept = live.pair.path("aside");
                fs::hard_link(&file, &kept).expect("link");
                fs::remove_file(&file).expect("remove");
                Broken::new(name, move || fs::rename(kept, file).expect("rename"))
            },
        },
        Damage {
            name: "a table that lost its last pages",
            outcome: Outcome::Fail,
            names: "table, index and file",
            put_in: |live| live.cut("cold", 10, live.named("cold")),
        },
        Damage {
            name: "a table without a B-tree that lost its last pages",
            outcome: Outcome::Fail,
            names: "table, index and file",
            put_in: |live| live.cut("cold_hashed", 10, live.named("cold_hashed")),
        },
        Damage {
            name: "a segment behind one that is missing",
            outcome: Outcome::Fail,
            names: "table and file",
            put_in: |live| {
                let file = live.file("cold");
                let name = file.file_name().expect("a name").to_string_lossy().into_owned();
                add(&file.with_file_name(format!("{name}.2")), "x", live.named("cold"))
            },
        },
        Damage {
            name: "a page of zeros within a table",
            outcome: Outcome::Fail,
            names: "table and file",
            put_in: |live| live.blank("cold", 5),
        },
        Damage {
            name: "a page of zeros within a GIN index",
            outcome: Outcome::Fail,
            names: "index and file",
            put_in: |live| live.blank("cold_words", 3),
        },
        Damage {
            name: "an empty file for a GIN index",
            outcome: Outcome::Fail,
            names: "index and file",
            put_in: |live| live.cut("cold_words", 0, live.named("cold_words")),
        },
        Damage {
            name: "a visibility map that says of deleted rows that all see them",
            outcome: Outcome::Fail,
            names: "table and map",
            put_in: |live| {
                // The map of another table, whose checksum is good.
                let map = |relation: &str| PathBuf::from(format!("{}_vm", live.file(relation).display()));
                let other = fs::read(map("cold")).expect("read");
                overwrite(
                    &map("cold_deleted"),
                    0,
                    &other,
                    "visibility map of table \"postgres.public.cold_deleted\"",
                )
            },
        },
        Damage {
            name: "a visibility map that names pages which are not there",
            outcome: Outcome::Fail,
            names: "table and file",
            put_in: |live| {
                let map = |relation: &str| PathBuf::from(format!("{}_vm", live.file(relation).display()));
                let longer = fs::read(map("cold_long")).expect("read");
                overwrite(&map("cold"), 0, &longer, live.named("cold"))
            },
        },
        Damage {
            name: "a duplicate key of a unique index",
            outcome: Outcome::Fail,
            names: "table, index and file",
            put_in: |live| {
                let unique = |is: bool| {
                    format!(
                        "SET allow_system_table_mods = on; UPDATE pg_index SET indisunique = {is} WHERE indexrelid = 'twice_n'::regclass"
                    )
                };
                live.cluster.query(
                    "CREATE TABLE twice AS SELECT n FROM generate_series(1, 100) n; CREATE UNIQUE INDEX twice_n ON twice (n)",
                );
                live.cluster.query(&unique(false));
                live.cluster.query("INSERT INTO twice VALUES (7)");
                live.cluster.query(&unique(true));
                live.undone_by("has a duplicate key", "DROP TABLE twice")
            },
        },
        Damage {
            name: "a row of the catalogue that is gone",
            outcome: Outcome::Fail,
            names: "the row",
            put_in: |live| {
                live.cluster.query("CREATE SEQUENCE forgotten");
                live.cluster.query(
                    "SET allow_system_table_mods = on; DELETE FROM pg_sequence WHERE seqrelid = 'forgotten'::regclass",
                );
                live.undone_by(
                    "pg_sequence lacks the row of \"public.forgotten\"",
                    "SET allow_system_table_mods = on; INSERT INTO pg_sequence VALUES ('forgotten'::regclass, 20, 1, 1, 1000, 1, 1, false); \
                     DROP SEQUENCE forgotten",
                )
            },
        },
        Damage {
            name: "another major version",
            outcome: Outcome::Inconclusive,
            names: "the version",
            put_in: |live| overwrite(&live.pair.root(0).join("PG_VERSION"), 0, b"99", "99"),
        },
    ];

    fn pair(&self) -> &Pair {
        &self.pair
    }

    fn written(&self) -> u64 {
        let count = self.cluster.query("SELECT xact_commit FROM pg_stat_database WHERE datname = 'postgres'");
        count.parse().expect("a number")
    }
}

#[test]
fn postgresql_comes_out_as_the_matrix_says() {
    live::compare_with_matrix(&Postgresql::start());
}

#[test]
fn soak_postgresql() {
    live::soak(&Postgresql::start());
}
