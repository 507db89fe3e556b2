//! Redis servers under clients: with a snapshot alone, and with append-only files that are rewritten meanwhile.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use assay_common::verdict::Outcome;

use crate::{
    live::{self, Damage, Live, Writers, flip, middle, only_file, overwrite, replace, without_program},
    pair::Pair,
};

/// Keys that were there before the writers, with values of which the damage is in one.
const COLD: u32 = 3000;

/// A client of the server: one command at a time.
struct Client(BufReader<UnixStream>);

impl Client {
    fn connect(socket: &Path) -> std::io::Result<Self> {
        UnixStream::connect(socket).map(|stream| Self(BufReader::new(stream)))
    }

    /// What the server answers: a status, a number, or a text. (RESP2, redis.io "Redis serialization protocol".)
    fn ask(&mut self, words: &[&str]) -> std::io::Result<String> {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request += &format!("${}\r\n{word}\r\n", word.len());
        }
        self.0.get_mut().write_all(request.as_bytes())?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let (kind, rest) = line.trim_end().split_at_checked(1).ok_or(std::io::ErrorKind::UnexpectedEof)?;
        match kind {
            "$" if rest != "-1" => {
                let length: usize = rest.parse().map_err(std::io::Error::other)?;
                let mut text = vec![0; length + 2];
                self.0.read_exact(&mut text)?;
                text.truncate(length);
                Ok(String::from_utf8_lossy(&text).into_owned())
            }
            "-" => Err(std::io::Error::other(rest.to_owned())),
            _ => Ok(rest.to_owned()),
        }
    }
}

/// A server, which is ended when this goes away.
struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    /// Starts a server whose folder is `root`.
    fn start(pair: &Pair, root: &Path, socket: &str, options: &[&str]) -> Self {
        let socket = pair.path(socket);
        let child = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--unixsocket"])
            .arg(&socket)
            .arg("--dir")
            .arg(root)
            .args(options)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server");
        let server = Self { child, socket };
        pair.eventually("the server answers", || server.client().is_ok());
        server
    }

    fn client(&self) -> std::io::Result<Client> {
        let mut client = Client::connect(&self.socket)?;
        client.ask(&["PING"])?;
        Ok(client)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Fields go away in this order: the writers before their server.
struct Redis {
    writers: Writers,
    server: Server,
    pair: Pair,
}

impl Redis {
    /// A server with cold keys, rewritten into the base file where there are append-only files, and two writers.
    fn start(append_only: bool) -> Self {
        let manifests =
            if append_only { ", append_only = \"appendonlydir/appendonly.aof.manifest\"" } else { "" };
        let pair =
            Pair::engine("redis", &format!("vars = {{ connection = [\"-s\", \"SOCKET\"]{manifests} }}\n"));
        let socket = pair.path("socket").display().to_string();
        for role in ["source", "target"] {
            pair.restart_with(role, "SOCKET", &socket);
        }
        // Rewritten when a test says so: the writers are faster than a person.
        let options: &[&str] =
            if append_only { &["--appendonly", "yes", "--auto-aof-rewrite-percentage", "0"] } else { &[] };
        let server = Server::start(&pair, &pair.root(0), "socket", options);
        let mut client = server.client().expect("the server answers");
        for number in 0..COLD {
            let (key, value) = (format!("cold-{number:05}"), format!("value of {number} ").repeat(8));
            client.ask(&["SET", &key, &value]).expect("SET");
        }
        // As on any server that has been up for a while.
        client.ask(&["SAVE"]).expect("SAVE");
        if append_only {
            client.ask(&["BGREWRITEAOF"]).expect("BGREWRITEAOF");
            pair.eventually("the file is rewritten", || {
                let info = client.ask(&["INFO", "persistence"]).expect("INFO");
                info.contains("aof_rewrite_in_progress:0") && !info.contains("aof_rewrites:0")
            });
        }
        let mut live = Self { writers: Writers::new(), server, pair };
        for writer in 0..2 {
            let mut client = live.server.client().expect("the server answers");
            live.writers.start(move |number| {
                let (from, to) = (format!("account-{writer}-a"), format!("account-{writer}-b"));
                let number = (number % 1000).to_string();
                for words in [
                    &["MULTI"][..],
                    &["DECRBY", &from, &number],
                    &["INCRBY", &to, &number],
                    &["RPUSH", "moved", &number],
                    &["EXEC"],
                ] {
                    if client.ask(words).is_err() {
                        return false;
                    }
                }
                true
            });
        }
        live
    }

    fn file(&self, name: &str) -> PathBuf {
        self.pair.root(0).join(name)
    }

    fn base(&self) -> PathBuf {
        only_file(&self.file("appendonlydir"), ".base.rdb")
    }

    fn increment(&self) -> PathBuf {
        only_file(&self.file("appendonlydir"), ".incr.aof")
    }
}

impl Live for Redis {
    const ENGINE: &'static str = "Redis";
    const DAMAGES: &'static [Damage<Self>] = &[
        Damage {
            name: "a bit of the append-only base",
            outcome: Outcome::Fail,
            names: "what the server said",
            put_in: |live| flip(&live.base(), middle(&live.base()), "RDB"),
        },
        Damage {
            name: "an append-only base cut in half",
            outcome: Outcome::Fail,
            names: "what the server said",
            put_in: |live| {
                let content = fs::read(live.base()).expect("read");
                replace(&live.base(), Some(&content[..content.len() / 2]), "Short read")
            },
        },
        Damage {
            name: "an append-only base that is gone",
            outcome: Outcome::Fail,
            names: "the file",
            put_in: |live| {
                let base = live.base();
                let name = base.file_name().expect("a name").to_string_lossy().into_owned();
                replace(&base, None, name)
            },
        },
        Damage {
            name: "rubbish among the commands of an append-only file",
            outcome: Outcome::Fail,
            names: "what the server said",
            put_in: |live| {
                let file = live.increment();
                live.pair
                    .eventually("commands are there", || fs::metadata(&file).expect("stat").len() > 4096);
                overwrite(&file, 1024, &[b'!'; 64], "")
            },
        },
        Damage {
            name: "a word of a value in an append-only file",
            outcome: Outcome::Pass,
            names: "",
            put_in: |live| {
                let file = live.increment();
                let mut client = live.server.client().expect("the server answers");
                client.ask(&["SET", "note", "as it was written"]).expect("SET");
                let text = b"as it was written";
                let place = || fs::read(&file).expect("read").windows(text.len()).position(|it| it == text);
                live.pair.eventually("the value is there", || place().is_some());
                overwrite(&file, place().expect("there") as u64, b"so", "")
            },
        },
        Damage {
            name: "rubbish for a manifest",
            outcome: Outcome::Fail,
            names: "the manifest",
            put_in: |live| {
                let file = live.file("appendonlydir/appendonly.aof.manifest");
                replace(&file, Some(b"not a manifest\n"), "manifest")
            },
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
fn redis_comes_out_as_the_matrix_says() {
    live::compare_with_matrix(&Redis::start(true));
}

#[test]
fn soak_redis() {
    live::soak(&Redis::start(true));
}

/// A snapshot is of one moment: what a transaction moved is in both accounts or in neither.
#[test]
fn a_snapshot_is_one_moment_and_is_brought_up_again() {
    let live = Redis::start(false);
    let generation = live.pair.run(0);
    assert!(generation["mark"]["id"].as_str().is_some_and(|id| id.starts_with("save ")), "{generation}");
    let back = live.pair.restored("back");
    let server = Server::start(&live.pair, &back, "socket-of-the-copy", &[]);
    let mut client = server.client().expect("the copy's server answers");
    let mut moved = 0;
    for writer in 0..2 {
        let mut balance = |side| -> i64 {
            let answer = client.ask(&["GET", &format!("account-{writer}-{side}")]).expect("GET");
            answer.parse().unwrap_or(0)
        };
        let (from, to) = (balance("a"), balance("b"));
        assert_eq!(from + to, 0, "writer {writer}");
        moved += to;
    }
    let summed = client.ask(&["EVAL", "local sum = 0; for _, number in ipairs(redis.call('LRANGE', 'moved', 0, -1)) do sum = sum + number end; return tostring(sum)", "0"]);
    assert_eq!(summed.expect("EVAL"), moved.to_string());
    assert_eq!(client.ask(&["GET", "cold-00007"]).expect("GET"), "value of 7 ".repeat(8));
}

/// Append-only files are rewritten while they are copied: each copy has files that belong together.
#[test]
fn append_only_files_that_are_rewritten_meanwhile_belong_together() {
    let mut live = Redis::start(true);
    let mut client = live.server.client().expect("the server answers");
    live.writers.start(move |_| client.ask(&["BGREWRITEAOF"]).is_ok());
    for _ in 0..3 {
        let run = live.pair.run(0);
        assert_eq!(run["outcome"], "OUTCOME_PASS", "{run}");
    }
}

/// The mark says what is in its way before anything is copied.
#[test]
fn a_mark_that_cannot_be_made_is_not_run() {
    let mut live = Redis::start(false);
    let mut client = live.server.client().expect("the server answers");
    client.ask(&["CONFIG", "SET", "requirepass", "secret"]).expect("CONFIG SET");
    let refused = live.pair.run(4);
    assert!(refused["message"].to_string().contains("NOAUTH"), "{refused}");
    // It writes its snapshots under another name than the one that is copied and checked.
    live.server = Server::start(&live.pair, &live.pair.root(0), "socket-2", &["--dbfilename", "other.rdb"]);
    let (old, new) = (live.pair.path("socket\""), live.pair.path("socket-2\""));
    live.pair.restart_with("source", &old.display().to_string(), &new.display().to_string());
    let refused = live.pair.run(4);
    assert!(refused["message"].to_string().contains("dbfilename is other.rdb and not dump.rdb"), "{refused}");
}

#[test]
fn without_redis_it_is_inconclusive() {
    let live = Redis::start(false);
    without_program(&live.pair, "redis", "redis-check-rdb");
}
