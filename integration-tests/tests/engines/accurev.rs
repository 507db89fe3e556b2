//! The AccuRev stand-in under its own writers: as 4.x with tables in files, and as 5 with a database.

use std::{
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use assay_common::verdict::Outcome;

use crate::{
    file_systems::Kind,
    live::{self, Broken, Damage, Live, add, flip, replace, run},
    pair::{Pair, program},
};

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn quiet(mut command: Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the server starts")
}

struct Accurev {
    _servers: Vec<Server>,
    pair: Pair,
}

impl Accurev {
    fn start() -> Self {
        Self::start_as(4, "accurev-4", "settle = \"0s\"\n")
    }

    fn start_as(major: u8, profile: &str, keys: &str) -> Self {
        Self::start_in(Pair::engine(profile, keys), major)
    }

    fn start_in(pair: Pair, major: u8) -> Self {
        let root = pair.root(0);
        let options = ["--port", "0", "--major", &major.to_string()].map(str::to_owned);
        run(Command::new(program("accurev-standin")).arg("install").arg(&root).args(options));
        let mut servers = Vec::new();
        if major >= 5 {
            servers.push(Server(quiet(Command::new(root.join("bin/accurev_db")))));
            let up =
                || run(Command::new(root.join("bin/acserverctl")).arg("dbstatus")).contains("is running");
            pair.eventually("the database serves", up);
        }
        let ready = pair.path("ready");
        let mut server = Command::new(root.join("bin/accurev_server"));
        server.args(["--write-rate", "200", "--ready-file"]).arg(&ready);
        servers.push(Server(quiet(server)));
        pair.eventually("the stand-in serves", || ready.exists());
        Self { _servers: servers, pair }
    }

    fn damage(&self, kind: &str) -> String {
        run(Command::new(program("accurev-standin")).arg("damage").arg(self.pair.root(0)).arg(kind))
    }

    /// Flips a bit; flipped again it is as it was.
    fn flipped(&self, kind: &str) -> Broken {
        let said = self.damage(kind);
        let (path, rest) = said
            .strip_prefix("flipped a bit: ")
            .and_then(|rest| rest.split_once(" offset "))
            .expect("it says where");
        let offset: u64 =
            rest.split_whitespace().next().and_then(|text| text.parse().ok()).expect("an offset");
        let path = Path::new(path).to_owned();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        Broken::new(name, move || {
            let file = fs::File::options().read(true).write(true).open(&path).expect("open");
            let mut byte = [0];
            file.read_exact_at(&mut byte, offset).expect("read");
            file.write_all_at(&[byte[0] ^ 0x10], offset).expect("write");
        })
    }

    fn no_master_server(&self) -> Broken {
        let cnf = self.pair.root(0).join("bin/acserver.cnf");
        let text = fs::read_to_string(&cnf).expect("read");
        let at = text.find("MASTER_SERVER").expect("there") as u64;
        flip(&cnf, at, "MASTER_SERVER")
    }

    /// The tables only ever grow.
    fn table_bytes(&self) -> u64 {
        let mut folders = vec![self.pair.root(0).join("storage")];
        let mut bytes = 0;
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "ndb") {
                    bytes += fs::metadata(&path).map_or(0, |stat| stat.len());
                }
            }
        }
        bytes
    }
}

impl Live for Accurev {
    const ENGINE: &'static str = "AccuRev 4 (stand-in)";
    const DAMAGES: &'static [Damage<Self>] = &[
        Damage {
            name: "a bit of a record",
            outcome: Outcome::Fail,
            names: "table and offset",
            put_in: |live| live.flipped("flip-record"),
        },
        Damage {
            name: "a bit of a container",
            outcome: Outcome::Fail,
            names: "container",
            put_in: |live| live.flipped("flip-container"),
        },
        Damage {
            name: "bytes beyond the mark",
            outcome: Outcome::Pass,
            names: "",
            put_in: |live| {
                live.damage("beyond-mark");
                Broken::new("", || {})
            },
        },
        Damage {
            name: "no licence",
            outcome: Outcome::Inconclusive,
            names: "the licence",
            put_in: |live| replace(&live.pair.root(0).join("storage/site_slice/keys.txt"), None, "keys.txt"),
        },
        Damage {
            name: "no `MASTER_SERVER`",
            outcome: Outcome::Inconclusive,
            names: "the key",
            put_in: Self::no_master_server,
        },
    ];

    fn pair(&self) -> &Pair {
        &self.pair
    }

    fn written(&self) -> u64 {
        self.table_bytes()
    }
}

/// The same server as 5, whose dbcheck is shallow.
struct Accurev5(Accurev);

impl Accurev5 {
    fn start() -> Self {
        Self(Accurev::start_as(5, "accurev-5", ""))
    }

    /// Exchanges the numbers of two transactions, with everything made good that has a checksum.
    fn exchanged(&self) -> Broken {
        // The first halves, in which the damage is; the server writes at the end only.
        let halves = ["ndb", "ndx"].map(|extension| {
            let path = self.0.pair.root(0).join(format!("storage/db/base/1/element.{extension}"));
            let bytes = fs::read(&path).expect("read");
            (path, bytes[..bytes.len() / 2].to_vec())
        });
        let said = self.0.damage("non-monotonic");
        assert!(said.contains("storage/db/base/1/element.ndb"), "{said}");
        Broken::new("table element: transaction", move || {
            for (path, bytes) in &halves {
                let file = fs::File::options().write(true).open(path).expect("open");
                file.write_all_at(bytes, 0).expect("write");
            }
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.pair.root(0).join(name)
    }
}

impl Live for Accurev5 {
    const ENGINE: &'static str = "AccuRev 5 (stand-in)";
    const DAMAGES: &'static [Damage<Self>] = &[
        Damage {
            name: "records whose transaction numbers do not grow",
            outcome: Outcome::Fail,
            names: "depot, table and transaction",
            put_in: Self::exchanged,
        },
        Damage {
            name: "a bit of a container",
            outcome: Outcome::Pass,
            names: "",
            put_in: |live| {
                let broken = live.0.flipped("flip-container");
                Broken::new("", || broken.mend())
            },
        },
        Damage {
            name: "no licence",
            outcome: Outcome::Inconclusive,
            names: "the licence",
            put_in: |live| replace(&live.path("storage/site_slice/accurev.lic"), None, "accurev.lic"),
        },
        Damage {
            name: "no `MASTER_SERVER`",
            outcome: Outcome::Inconclusive,
            names: "the key",
            put_in: |live| live.0.no_master_server(),
        },
        Damage {
            name: "no program that makes a database",
            outcome: Outcome::Inconclusive,
            names: "the program",
            put_in: |live| replace(&live.path("postgresql/bin/initdb"), None, "initdb"),
        },
        Damage {
            name: "a server that writes no backup",
            outcome: Outcome::NotRun,
            names: "what it says",
            put_in: |live| {
                let pause = live.path("storage/site_slice/acserver.command.pause");
                add(&pause, "", "is paused")
            },
        },
    ];

    fn pair(&self) -> &Pair {
        &self.0.pair
    }

    fn written(&self) -> u64 {
        self.0.table_bytes()
    }
}

#[test]
fn the_stand_in_comes_out_as_the_matrix_says() {
    live::compare_with_matrix(&Accurev::start());
}

#[test]
fn the_stand_in_of_5_comes_out_as_the_matrix_says() {
    let live = Accurev5::start();
    live::compare_with_matrix(&live);
    // The mark's file is gone from the live server, and stands in the copy, which never has the live database.
    assert!(!live.path("storage/site_slice/backup/assay.backup").exists());
    let copy = live.0.pair.latest();
    assert!(
        copy.join("storage/site_slice/backup/assay.backup").exists() && !copy.join("storage/db").exists()
    );
    // The checker finds a backup file that is not whole.
    let control = live.0.pair.target(&["control"]);
    assert_eq!(control.code, 0, "{control:?}");
    assert!(control.stdout.contains("assay.backup"), "{control:?}");
    let shown = live.0.pair.target(&["verdict", "show"]);
    assert!(shown.stdout.contains("L1"), "the verdict says that the check is shallow: {shown:?}");
}

/// Its mark is held until there is a snapshot, and removed before the copy.
#[test]
fn a_live_accurev_is_copied_from_snapshots() {
    let pair = Pair::engine_on(Kind::Btrfs, "accurev-4", "settle = \"0s\"\n");
    live::copied_from_snapshots(&Accurev::start_in(pair, 4));
    let pair = Pair::engine_on(Kind::Btrfs, "accurev-5", "");
    live::copied_from_snapshots(&Accurev5(Accurev::start_in(pair, 5)));
}

#[test]
fn soak_accurev_5() {
    live::soak(&Accurev5::start());
}

#[test]
fn soak_accurev() {
    live::soak(&Accurev::start());
}
