//! The AccuRev stand-in under its own writers.

use std::{
    fs,
    os::unix::fs::FileExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use assay_common::verdict::Outcome;

use crate::{
    live::{self, Broken, Damage, Live, flip, replace, run},
    pair::{Pair, program},
};

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

struct Accurev {
    _server: Server,
    pair: Pair,
}

impl Accurev {
    fn start() -> Self {
        let pair = Pair::engine("accurev-4", "settle = \"0s\"\n");
        let root = pair.root(0);
        run(Command::new(program("accurev-standin")).arg("install").arg(&root).args(["--port", "0"]));
        let ready = pair.path("ready");
        let server = Command::new(root.join("bin/accurev_server"))
            .args(["--write-rate", "200", "--ready-file"])
            .arg(&ready)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the server starts");
        let server = Server(server);
        pair.eventually("the stand-in serves", || ready.exists());
        Self { _server: server, pair }
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
            put_in: |live| {
                let cnf = live.pair.root(0).join("bin/acserver.cnf");
                let text = fs::read_to_string(&cnf).expect("read");
                let at = text.find("MASTER_SERVER").expect("there") as u64;
                flip(&cnf, at, "MASTER_SERVER")
            },
        },
    ];

    fn pair(&self) -> &Pair {
        &self.pair
    }

    fn written(&self) -> u64 {
        let table = |path: &Path| fs::metadata(path).map_or(0, |stat| stat.len());
        let mut folders = vec![self.pair.root(0).join("storage")];
        let mut bytes = 0;
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "ndb") {
                    bytes += table(&path);
                }
            }
        }
        bytes
    }
}

#[test]
fn the_stand_in_comes_out_as_the_matrix_says() {
    live::compare_with_matrix(&Accurev::start());
}

#[test]
fn soak_accurev() {
    live::soak(&Accurev::start());
}
