//! PostgreSQL under pgbench, for the matrix and the soak. Its tables `cold` and `cold_*` are written by nobody, so that a page
//! that is damaged on disk stays damaged.

use std::path::PathBuf;

use assay_common::verdict::Outcome;

use crate::{
    live::{self, Broken, Damage, Live, flip, overwrite, run},
    pair::Pair,
    postgresql::{Cluster, Load, agents},
};

const PAGE_BYTES: u64 = 8192;

struct Postgresql {
    _load: Load,
    cluster: Cluster,
    pair: Pair,
}

impl Postgresql {
    fn start() -> Self {
        let (pair, cluster) = agents(&["--data-checksums", "--wal-segsize=1"]);
        run(&mut cluster.pgbench(&["-i", "-s", "1"]));
        cluster.query(
            "CREATE TABLE cold AS SELECT n, repeat('x', 100) AS filler FROM generate_series(1, 3000) n;
             CREATE INDEX cold_by_n ON cold (n); CREATE SEQUENCE cold_numbers;
             CREATE TABLE cold_other AS SELECT n FROM generate_series(3001, 6000) n;
             CREATE INDEX cold_other_by_n ON cold_other (n)",
        );
        // Nothing is left to be written to their files later.
        cluster.query("VACUUM (FREEZE) cold, cold_other");
        cluster.query("CHECKPOINT");
        let load = Load(cluster.pgbench(&["-n", "-c", "4", "-T", "36000"]).spawn().expect("starts"));
        Self { _load: load, cluster, pair }
    }

    /// The file of a relation that nobody writes.
    fn file(&self, relation: &str) -> PathBuf {
        self.cluster.file_of(relation)
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
                let other = std::fs::read(live.file("cold_other_by_n")).expect("read");
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
                std::fs::hard_link(&file, &kept).expect("link");
                std::fs::remove_file(&file).expect("remove");
                Broken::new(name, move || std::fs::rename(kept, file).expect("rename"))
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
