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
    live::{self, Damage, Live, Writers, flip, middle, replace, run, without_program},
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
}

impl Subversion {
    /// A repository with a hook that would tell, revisions of some size, and two committers.
    fn start() -> Self {
        Self::start_with(|_| {})
    }

    fn start_with(prepare: impl FnOnce(&Path)) -> Self {
        let pair = Pair::engine("subversion", "");
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
        let mut live = Self { writers: Writers::new(), pair };
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

impl Live for Subversion {
    const ENGINE: &'static str = "Subversion";
    const DAMAGES: &'static [Damage<Self>] = &[
        Damage {
            name: "a bit of a revision",
            outcome: Outcome::Fail,
            names: "revision file and place",
            put_in: |live| {
                let file = live.file("db/revs/0/3");
                flip(&file, middle(&file), "db/revs/0/3")
            },
        },
        Damage {
            name: "a revision cut in half",
            outcome: Outcome::Fail,
            names: "revision",
            put_in: |live| {
                let file = live.file("db/revs/0/4");
                let content = fs::read(&file).expect("read");
                replace(&file, Some(&content[..content.len() / 2]), "revision 4")
            },
        },
        Damage {
            name: "a revision that is gone",
            outcome: Outcome::Fail,
            names: "revision",
            put_in: |live| replace(&live.file("db/revs/0/5"), None, "revision 5"),
        },
        Damage {
            name: "another revision in its place",
            outcome: Outcome::Fail,
            names: "revision",
            put_in: |live| {
                let other = fs::read(live.file("db/revs/0/2")).expect("read");
                replace(&live.file("db/revs/0/3"), Some(&other), "revision 3")
            },
        },
        Damage {
            name: "properties of a revision cut in half",
            outcome: Outcome::Fail,
            names: "revision",
            put_in: |live| {
                let file = live.file("db/revprops/0/2");
                let content = fs::read(&file).expect("read");
                replace(&file, Some(&content[..content.len() / 2]), "revision 2")
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
                // Nobody commits over it: the lock of committers is held until it is mended.
                let lock = fs::File::options().write(true).open(live.file("db/write-lock")).expect("open");
                rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("lock");
                replace(&live.file("db/current"), Some(b"many\n"), "'many").then(move || drop(lock))
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

#[test]
fn subversion_comes_out_as_the_matrix_says() {
    live::compare_with_matrix(&Subversion::start());
}

#[test]
fn soak_subversion() {
    live::soak(&Subversion::start());
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
    let mut live = Subversion::start_with(|repository| {
        let format = repository.join("db/format");
        let text = fs::read_to_string(&format).expect("read");
        assert!(text.contains("sharded 1000"), "{text}");
        fs::write(&format, text.replace("sharded 1000", "sharded 4")).expect("write");
    });
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
