//! Subversion repositories under committers with working copies of their own.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use assay_common::verdict::Outcome;

use crate::{
    file_systems::{Kind, change_below},
    live::{self, Damage, Live, Writers, add, flip, middle, replace, run, without_program},
    matrix,
    pair::Pair,
};

/// Revisions that were there before the writers, of which the damage is in one.
const COLD: u32 = 6;

fn svn() -> Command {
    let mut command = Command::new("svn");
    command.args(["--non-interactive", "--quiet"]).env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    command
}

fn url(repository: &Path) -> String {
    format!("file://{}", repository.display())
}

struct Subversion {
    writers: Writers,
    pair: Pair,
    /// Revisions of a shard, where the cold ones are packed.
    shard: Option<u32>,
}

impl Subversion {
    /// A repository with a hook that would tell, revisions of some size, and two committers.
    fn start() -> Self {
        Self::start_with(|_| {})
    }

    /// The same. Revisions are packed while there are commits, properties are changed, and
    /// paths are locked and unlocked.
    fn start_busy() -> Self {
        let mut live = Self::start_packed();
        let repository = live.pair.root(0);
        let message = live.pair.path("message");
        live.writers.start(move |number| {
            let path = |writer: u64| format!("{}/dir{writer}/file0", url(&repository));
            let quiet = |command: &mut Command| {
                // A damaged repository may refuse, and so may a path that is not there yet.
                command.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("svn").success()
            };
            match number % 8 {
                0 => quiet(svn().args(["lock", "--force", "-m", "mine", &path(0)])),
                1 => quiet(svn().args(["unlock", "--force", &path(0)])),
                // A run that is under way is void then.
                2 if number % 64 == 2 => {
                    quiet(Command::new("svnadmin").args(["pack", "-q"]).arg(&repository))
                }
                _ => {
                    // Not of the cold revisions: damage may be there.
                    let revision = (u64::from(COLD) + 2 + number % 2).to_string();
                    fs::write(&message, format!("changed {number}\n").repeat(1 + number as usize % 50))
                        .expect("write");
                    let mut change = Command::new("svnadmin");
                    change.args(["setlog", "--bypass-hooks", "-r", &revision]).arg(&repository).arg(&message);
                    quiet(&mut change)
                }
            }
        });
        live
    }

    /// Cold revisions and their properties in packs.
    fn start_packed() -> Self {
        const SHARD: u32 = 4;
        let mut live = Self::start_with(|repository| set_shard(repository, SHARD));
        live.shard = Some(SHARD);
        run(Command::new("svnadmin").args(["pack", "-q"]).arg(live.pair.root(0)));
        live
    }

    /// Holds the lock that everything which writes to the repository waits for. Which kind of lock that is depends on how APR was
    /// built, and neither kind is seen by the other.
    fn lock_commits(&self) -> fs::File {
        let lock = fs::File::options().write(true).open(self.file("db/write-lock")).expect("open");
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("lock");
        rustix::fs::fcntl_lock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("lock");
        lock
    }

    /// Where a cold revision or its properties lie: `revs` or `revprops`.
    fn place(&self, kind: &str, revision: u32) -> String {
        match (self.shard, kind) {
            (None, _) => format!("db/{kind}/0/{revision}"),
            (Some(shard), "revs") => format!("db/revs/{}.pack/pack", revision / shard),
            // The properties of revision 0 are never packed.
            (Some(shard), _) => {
                let first = (revision / shard * shard).max(1);
                format!("db/{kind}/{}.pack/{first}.0", revision / shard)
            }
        }
    }

    /// What a verdict says of damage there.
    fn said(&self, revision: u32) -> String {
        self.shard.map_or_else(|| format!("revision {revision}"), |_| String::new())
    }

    fn start_with(prepare: impl FnOnce(&Path)) -> Self {
        // Packing makes one file of many.
        Self::start_in(Pair::engine("subversion", "max_drop_percent = 100\n"), prepare)
    }

    fn start_in(pair: Pair, prepare: impl FnOnce(&Path)) -> Self {
        let repository = pair.root(0);
        run(Command::new("svnadmin").arg("create").arg(&repository));
        prepare(&repository);
        for revision in 1..=COLD {
            let file = pair.path("file");
            let content: String = (0..400).map(|line| format!("{revision}: {}\n", line * line)).collect();
            fs::write(&file, content).expect("write");
            let name = format!("{}/cold{revision}", url(&repository));
            run(svn().args(["import", "-m", "cold"]).arg(&file).arg(name));
        }
        let mut live = Self { writers: Writers::new(), pair, shard: None };
        for writer in 0..2 {
            let (copy, folder) =
                (live.pair.path(&format!("copy{writer}")), format!("{}/dir{writer}", url(&repository)));
            run(svn().args(["mkdir", "-m", "folder"]).arg(&folder));
            run(svn().args(["checkout"]).arg(&folder).arg(&copy));
            live.writers.start(move |number| {
                let file = copy.join(format!("file{}", number % 20));
                let is_new = !file.exists();
                fs::write(&file, format!("{number}\n").repeat(300)).expect("write");
                if is_new {
                    run(svn().arg("add").arg(&file));
                }
                // A damaged repository may refuse.
                svn()
                    .args(["commit", "-m", "more"])
                    .arg(&copy)
                    .stderr(Stdio::null())
                    .status()
                    .expect("svn")
                    .success()
            });
        }
        live
    }

    fn file(&self, name: &str) -> PathBuf {
        self.pair.root(0).join(name)
    }
}

/// Makes the shards of a repository without revisions smaller than they are by default.
fn set_shard(repository: &Path, revisions: u32) {
    let format = repository.join("db/format");
    let text = fs::read_to_string(&format).expect("read");
    assert!(text.contains("sharded 1000"), "{text}");
    fs::write(&format, text.replace("sharded 1000", &format!("sharded {revisions}"))).expect("write");
}

impl Live for Subversion {
    const ENGINE: &'static str = "Subversion";
    const VOID: &'static [&'static str] = &["foreign-mark"];
    const DAMAGES: &'static [Damage<Self>] = &[
        Damage {
            name: "a bit of a revision",
            outcome: Outcome::Fail,
            names: "revision file and place",
            put_in: |live| {
                let place = live.place("revs", 3);
                let file = live.file(&place);
                flip(&file, middle(&file), place)
            },
        },
        Damage {
            name: "a revision cut in half",
            outcome: Outcome::Fail,
            names: "revision",
            put_in: |live| {
                let file = live.file(&live.place("revs", 4));
                let content = fs::read(&file).expect("read");
                replace(&file, Some(&content[..content.len() / 2]), live.said(4))
            },
        },
        Damage {
            name: "a revision that is gone",
            outcome: Outcome::Fail,
            names: "revision",
            put_in: |live| replace(&live.file(&live.place("revs", 5)), None, live.said(5)),
        },
        Damage {
            name: "another revision in its place",
            outcome: Outcome::Fail,
            names: "revision",
            put_in: |live| {
                let other = fs::read(live.file(&live.place("revs", 5))).expect("read");
                replace(&live.file(&live.place("revs", 3)), Some(&other), live.said(3))
            },
        },
        Damage {
            name: "properties of a revision cut in half",
            outcome: Outcome::Fail,
            names: "revision",
            put_in: |live| {
                let file = live.file(&live.place("revprops", 2));
                let content = fs::read(&file).expect("read");
                // What is verified first differs from run to run: the revision, or the metadata of the whole.
                replace(
                    &file,
                    Some(&content[..content.len() / 2]),
                    live.shard.map_or("revprops for r2", |_| ""),
                )
            },
        },
        Damage {
            name: "a letter of a log message",
            outcome: Outcome::Pass,
            names: "",
            put_in: |live| {
                let file = live.file("db/revprops/0/2");
                let text = fs::read_to_string(&file).expect("read");
                assert!(text.contains("\ncold\n"));
                replace(&file, Some(text.replace("\ncold\n", "\ngold\n").as_bytes()), "")
            },
        },
        Damage {
            name: "rubbish in `db/current`",
            outcome: Outcome::Fail,
            names: "what stands there",
            put_in: |live| {
                // Nobody commits over it.
                let lock = live.lock_commits();
                replace(&live.file("db/current"), Some(b"many\n"), "'many").then(move || drop(lock))
            },
        },
        Damage {
            name: "an old `db/current`, set back behind revisions that are there",
            outcome: Outcome::Pass,
            names: "the revisions, as not covered",
            put_in: |live| {
                let lock = live.lock_commits();
                replace(&live.file("db/current"), Some(b"4\n"), "revisions 5 to ").then(move || drop(lock))
            },
        },
        Damage {
            name: "a cache server in `db/fsfs.conf` that does not answer",
            outcome: Outcome::Pass,
            names: "",
            put_in: |live| {
                let settings = "[memcached-servers]\nkey = 127.0.0.1:1\n[caches]\nfail-stop = true\n";
                // Nobody commits meanwhile: Subversion itself would ask that server.
                let lock = live.lock_commits();
                replace(&live.file("db/fsfs.conf"), Some(settings.as_bytes()), "").then(move || drop(lock))
            },
        },
        Damage {
            name: "rubbish in the cache `db/rep-cache.db`",
            outcome: Outcome::Pass,
            names: "",
            put_in: |live| {
                let lock = live.lock_commits();
                replace(&live.file("db/rep-cache.db"), Some(&[0xa5; 8192]), "").then(move || drop(lock))
            },
        },
        Damage {
            name: "what is left of a transaction that was never committed",
            outcome: Outcome::Pass,
            names: "",
            put_in: |live| {
                let folder = live.file("db/transactions/3-abc.txn");
                fs::create_dir(&folder).expect("mkdir");
                fs::write(folder.join("changes"), "half of a li").expect("write");
                let file = live.file("db/txn-protorevs/3-abc.rev");
                add(&file, "half of a revision", "").then(move || fs::remove_dir_all(folder).expect("remove"))
            },
        },
        Damage {
            name: "a format that is not known",
            outcome: Outcome::Inconclusive,
            names: "the format",
            put_in: |live| replace(&live.file("db/format"), Some(b"99\n"), "found format '99'"),
        },
        Damage {
            name: "no `db/fs-type`",
            outcome: Outcome::NotRun,
            names: "the file",
            put_in: |live| replace(&live.file("db/fs-type"), None, "has no db/fs-type"),
        },
    ];

    fn pair(&self) -> &Pair {
        &self.pair
    }

    fn written(&self) -> u64 {
        self.writers.written()
    }
}

/// Where the revisions lie in packs.
const PACKED: &[Damage<Subversion>] = &[
    Damage {
        name: "a bit of a packed shard",
        outcome: Outcome::Fail,
        names: "the pack and the place",
        put_in: |live| {
            let pack = live.file(&live.place("revs", 2));
            flip(&pack, middle(&pack), "db/revs/0.pack/pack")
        },
    },
    Damage {
        name: "packed properties of revisions cut in half",
        outcome: Outcome::Fail,
        names: "revision",
        put_in: |live| {
            let file = live.file(&live.place("revprops", 2));
            let content = fs::read(&file).expect("read");
            replace(&file, Some(&content[..content.len() / 2]), "evision ")
        },
    },
];

#[test]
fn subversion_comes_out_as_the_matrix_says() {
    let (mut rows, version) = live::rows(&Subversion::start(), Subversion::DAMAGES);
    let (packed, _) = live::rows(&Subversion::start_packed(), PACKED);
    // The sound one is there already.
    rows.extend(packed.into_iter().skip(1));
    matrix::compare(Subversion::ENGINE, &rows, version.as_deref());
}

#[test]
fn a_live_subversion_is_copied_from_snapshots() {
    let pair = Pair::engine_on(Kind::Btrfs, "subversion", "max_drop_percent = 100\n");
    live::copied_from_snapshots(&Subversion::start_in(pair, |_| {}));
}

#[test]
fn soak_subversion() {
    live::soak(&Subversion::start_busy());
}

/// A restored generation is a repository that goes on: everything up to its youngest revision is there, nothing of what was
/// not committed, and whatever lies beyond is written over.
#[test]
fn a_restored_generation_takes_commits() {
    let live = Subversion::start();
    let hooks = live.file("hooks/post-commit");
    let told = live.pair.path("told");
    fs::write(&hooks, format!("#!/bin/sh\ntouch {}\n", told.display())).expect("write");
    let youngest = |repository: &Path| -> u64 {
        let said = run(Command::new("svnlook").arg("youngest").arg(repository));
        said.trim().parse().expect("a number")
    };
    let before = youngest(&live.pair.root(0));
    assert_eq!(live.pair.run(0)["outcome"], "OUTCOME_PASS");
    let restored = live.pair.path("restored");
    run(Command::new("cp").arg("-a").arg(live.pair.latest()).arg(&restored));
    assert!(youngest(&restored) >= before);
    for empty in ["db/transactions", "db/txn-protorevs"] {
        assert!(fs::read_dir(restored.join(empty)).expect("there").next().is_none(), "{empty}");
    }
    assert!(!restored.join("db/rep-cache.db").exists());
    assert!(!told.exists(), "a hook has run");
    // A revision that came after db/current was read: no commit may trip over it.
    let at = youngest(&restored);
    fs::copy(restored.join(format!("db/revs/0/{at}")), restored.join(format!("db/revs/0/{}", at + 1)))
        .expect("copy");
    run(Command::new("svnadmin").args(["verify", "-q"]).arg(&restored));
    fs::remove_file(restored.join("hooks/post-commit")).expect("remove");
    run(svn().args(["mkdir", "-m", "goes on"]).arg(format!("{}/goes-on", url(&restored))));
    assert_eq!(youngest(&restored), at + 1);
    run(Command::new("svnadmin").args(["verify", "-q"]).arg(&restored));
}

/// Revisions and their properties in packs, with properties changed while they are copied.
#[test]
fn a_packed_repository_passes_and_its_packs_are_read() {
    let mut live = Subversion::start_with(|repository| set_shard(repository, 4));
    run(Command::new("svnadmin").args(["pack", "-q"]).arg(live.pair.root(0)));
    let pack = live.file("db/revs/0.pack/pack");
    assert!(pack.exists() && live.file("db/revprops/0.pack/manifest").exists());
    let (repository, file) = (live.pair.root(0), live.pair.path("message"));
    live.writers.start(move |number| {
        fs::write(&file, format!("changed {number}\n").repeat(1 + (number as usize % 50))).expect("write");
        let revision = (1 + number % 3).to_string();
        let mut change = Command::new("svnadmin");
        change.args(["setlog", "--bypass-hooks", "-r", &revision]).arg(&repository).arg(&file);
        run(&mut change);
        true
    });
    for _ in 0..3 {
        let run = live.pair.run(0);
        assert_eq!(run["outcome"], "OUTCOME_PASS", "{run}");
    }
    let broken = flip(&pack, middle(&pack), "");
    let failed = live.pair.run(1);
    assert_eq!(failed["reason"], "damage-found", "{failed}");
    let shown = live.pair.target(&["verdict", "show"]).stdout;
    assert!(shown.contains("db/revs/0.pack/pack"), "{shown}");
    broken.mend();
    assert_eq!(live.pair.run(0)["outcome"], "OUTCOME_PASS");
}

#[test]
fn without_subversion_it_is_inconclusive() {
    let live = Subversion::start();
    without_program(&live.pair, "subversion", "svnadmin");
}

/// What is no repository is told before anything is copied.
#[test]
fn a_folder_that_is_no_repository_is_refused() {
    let pair = Pair::engine("subversion", "");
    fs::write(pair.root(0).join("README"), "a working copy, perhaps").expect("write");
    let refused = pair.run(4);
    assert_eq!(refused["reason"], "not-a-repository", "{refused}");
    assert!(refused["message"].as_str().is_some_and(|text| text.contains("has no format")), "{refused}");
}

/// A byte of a cold revision changes on the disk below the file system, and leaves no trace. Until the file has its turn the PASS says
/// how old its reading is; a run that reads it again is FAIL, and names the file.
#[test]
fn a_cold_revision_that_rots_is_found_when_it_is_read_again() {
    let pair = Pair::engine_on(Kind::Ext4, "subversion", "");
    let repository = pair.path("root0/repo");
    pair.kill("source");
    pair.configure("source", "/root0\"", "/root0/repo\"");
    run(Command::new("svnadmin").arg("create").arg(&repository));
    pair.start("source");
    for revision in 1..=COLD {
        let file = pair.path("file");
        let content: String = (0..400).map(|line| format!("{revision}: {}\n", line * line)).collect();
        fs::write(&file, content).expect("write");
        run(svn()
            .args(["import", "-m", "cold"])
            .arg(&file)
            .arg(format!("{}/cold{revision}", url(&repository))));
    }
    // What was written just now is read twice.
    for _ in 0..3 {
        assert_eq!(pair.run(0)["outcome"], "OUTCOME_PASS");
    }
    let (revision, verify) = (repository.join("db/revs/0/3"), || {
        let done =
            Command::new("svnadmin").args(["verify", "-q"]).arg(&repository).output().expect("svnadmin");
        done.status.success()
    });
    assert!(verify());
    let shape =
        || fs::metadata(&revision).map(|it| (it.len(), it.modified().ok(), it.ctime_nsec())).expect("stat");
    let before = shape();
    change_below(&pair.path("root0.img"), &revision, middle(&revision));
    assert!(before == shape() && !verify(), "the live repository is damaged, and stat says nothing");
    println!("svnadmin verify on the live repository fails; stat is as it was");

    let unread = pair.run(0);
    let sentence = unread["sentence"].as_str().expect("a sentence");
    println!("before its turn: {} {sentence}", unread["outcome"]);
    assert!(
        sentence.contains("as far as it was read: 1 of ") && sentence.contains("the rest between "),
        "{sentence}"
    );
    let explained = pair.source(&["explain"]).stdout;
    println!("{explained}");
    let explained = explained.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(explained.contains("It read the rest, which has not changed since, between"), "{explained}");

    // The smallest unit: all of it has its turn in each run.
    pair.restart_with("source", "profile = ", "reread_within = \"1ms\"\nprofile = ");
    let found = pair.run(1);
    assert_eq!(
        (&found["outcome"], &found["changedWithoutTrace"]),
        (&"OUTCOME_FAIL".into(), &serde_json::json!(["db/revs/0/3"])),
        "{found}"
    );
    let id = found["id"].as_str().expect("an id");
    for text in [
        pair.source(&["explain", id]).stdout,
        pair.source(&["status"]).stdout,
        pair.target(&["status"]).stdout,
    ] {
        println!("{text}");
        assert!(text.contains("db/revs/0/3"), "{text}");
    }
    assert_eq!(pair.target(&["generations"]).stdout.matches("<- verified").count(), 1);
}
