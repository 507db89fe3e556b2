//! git repositories under pushes, while everything is packed anew over and over.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, MutexGuard},
};

use assay_common::verdict::Outcome;

use crate::{
    live::{
        self, Broken, Damage, Live, Writers, add, flip, middle, only_file, replace, run, without_program,
    },
    pair::Pair,
};

fn git(folder: &Path) -> Command {
    let mut command = Command::new("git");
    command
        .args(["-c", "user.name=Writer", "-c", "user.email=writer@example.org", "-c", "gc.auto=0", "-C"])
        .arg(folder)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .stdin(Stdio::null());
    command
}

/// Runs git, which may fail: a push at the same moment may be in the way.
fn quietly(repository: &Path, arguments: &[&str]) {
    drop(git(repository).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status());
}

/// Packs all objects, unreachable ones too. Without `-k`, `git repack` deletes unreachable objects, and git itself can lose commits: a push that
/// is retried does not write objects that it finds, and `git repack` deletes them before the branch refers to them.
const PACK: &[&str] = &["repack", "-adkq"];
const PACK_WITH_CACHES: &[&str] = &["repack", "-adkq", "--write-midx", "--write-bitmap-index"];

/// True while nothing is to be packed.
type Paused = Arc<Mutex<bool>>;

struct Git {
    writers: Writers,
    paused: Paused,
    pair: Pair,
}

impl Git {
    /// A bare repository with two clones that push, delete branches and make new ones, and somebody who packs.
    fn start() -> Self {
        Self::start_with(&["--bare"])
    }

    fn start_with(options: &[&str]) -> Self {
        let pair = Pair::engine("git", "");
        let repository = pair.root(0);
        run(git(&repository).args(["init", "-q", "-b", "main"]).args(options).arg("."));
        let mut live = Self { writers: Writers::new(), paused: Arc::default(), pair };
        for writer in 0..2 {
            let clone = live.pair.path(&format!("clone{writer}"));
            fs::create_dir(&clone).expect("mkdir");
            run(git(&clone).args(["init", "-q", "-b", &format!("writer{writer}"), "."]));
            run(git(&clone).args(["remote", "add", "origin"]).arg(&repository));
            // The first is there before anything else is.
            push(&clone, writer, 0);
            live.writers.start(move |number| push(&clone, writer, number + 1));
        }
        let paused = Arc::clone(&live.paused);
        live.writers.start(move |number| {
            let paused = lock(&paused);
            if *paused {
                drop(paused);
                std::thread::yield_now();
                return false;
            }
            quietly(&repository, PACK);
            if number % 3 == 0 {
                quietly(&repository, &["pack-refs", "--all"]);
            }
            false
        });
        live
    }

    /// The same, and whatever else people and their git do to a repository: garbage collection, caches, working trees that come
    /// and go, notes, replacements, objects of git LFS.
    fn start_busy() -> Self {
        let mut live = Self::start();
        let (repository, paused) = (live.pair.root(0), Arc::clone(&live.paused));
        let tree = live.pair.path("further-tree").display().to_string();
        live.writers.start(move |number| {
            let paused = lock(&paused);
            if *paused {
                drop(paused);
                std::thread::yield_now();
                return false;
            }
            let quiet = |arguments: &[&str]| quietly(&repository, arguments);
            match number % 6 {
                0 => quiet(&["gc", "-q", "--prune=1.hour.ago"]),
                1 => {
                    quiet(&["worktree", "add", "-q", "--detach", &tree, "writer0"]);
                    quiet(&["worktree", "remove", "--force", &tree]);
                }
                2 => quiet(&["notes", "add", "-f", "-m", &format!("note {number}"), "writer1"]),
                3 => {
                    quiet(&["replace", "-f", "writer0", "writer1"]);
                    quiet(&["replace", "-d", "writer0"]);
                }
                4 => {
                    quiet(PACK_WITH_CACHES);
                    quiet(&["commit-graph", "write", "--reachable"]);
                }
                _ => {
                    let whole = repository.join("lfs/tmp/large");
                    fs::create_dir_all(whole.parent().expect("has one")).expect("mkdir");
                    fs::write(&whole, format!("large file {number}\n").repeat(500)).expect("write");
                    let name = run(Command::new("sha256sum").arg(&whole))[..64].to_owned();
                    let folder = repository.join("lfs/objects").join(&name[..2]).join(&name[2..4]);
                    fs::create_dir_all(&folder).expect("mkdir");
                    fs::rename(&whole, folder.join(&name)).expect("rename");
                }
            }
            true
        });
        live
    }

    fn file(&self, name: &str) -> PathBuf {
        self.pair.root(0).join(name)
    }

    /// A blob that no pack has, and its branch; nothing is packed until it is mended.
    fn loose_blob(&self) -> (String, PathBuf, impl FnOnce() + 'static) {
        let unpause = self.pause();
        let clone = self.pair.path("cold");
        if !clone.exists() {
            fs::create_dir(&clone).expect("mkdir");
            run(git(&clone).args(["init", "-q", "-b", "cold", "."]));
            run(git(&clone).args(["remote", "add", "origin"]).arg(self.pair.root(0)));
        }
        let content = format!("{:?}", std::time::SystemTime::now()).repeat(50);
        fs::write(clone.join("blob"), content).expect("write");
        run(git(&clone).args(["add", "."]));
        run(git(&clone).args(["commit", "-q", "-m", "cold"]));
        run(git(&clone).args(["push", "-q", "origin", "cold"]));
        let name = run(git(&clone).args(["rev-parse", "HEAD:blob"])).trim().to_owned();
        let file = self.file("objects").join(&name[..2]).join(&name[2..]);
        assert!(file.exists(), "{}", file.display());
        (name, file, unpause)
    }

    /// Waits for whoever packs now; what is returned lets it go on.
    fn pause(&self) -> impl FnOnce() + 'static {
        *lock(&self.paused) = true;
        let paused = Arc::clone(&self.paused);
        move || *lock(&paused) = false
    }
}

fn lock(paused: &Paused) -> MutexGuard<'_, bool> {
    paused.lock().expect("no panic")
}

/// One commit, pushed; every fourth also as a branch of its own, which goes away with the next.
fn push(clone: &Path, writer: u32, number: u64) -> bool {
    fs::write(clone.join(format!("file{}", number % 30)), format!("{writer} {number}\n").repeat(200))
        .expect("write");
    run(git(clone).args(["add", "."]));
    run(git(clone).args(["commit", "-q", "-m", "more"]));
    let mut push = git(clone);
    push.args(["push", "-q", "origin", &format!("HEAD:writer{writer}")]);
    let branch = format!("short{writer}/{}", number / 4);
    match number % 4 {
        0 => drop(push.arg(format!("HEAD:refs/heads/{branch}"))),
        1 if number > 1 => drop(push.arg(format!(":refs/heads/{branch}"))),
        _ => {}
    }
    // Whoever packs the refs holds their lock for a moment, and a damaged repository may refuse.
    push.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("git").success()
}

impl Live for Git {
    const ENGINE: &'static str = "git";
    const DAMAGES: &'static [Damage<Self>] = &[
        Damage {
            name: "a bit of a loose blob",
            outcome: Outcome::Fail,
            names: "the object",
            put_in: |live| {
                let (name, file, unpause) = live.loose_blob();
                let mut permissions = fs::metadata(&file).expect("stat").permissions();
                std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o644);
                fs::set_permissions(&file, permissions).expect("chmod");
                flip(&file, middle(&file), name).then(unpause)
            },
        },
        Damage {
            name: "an object that is gone",
            outcome: Outcome::Fail,
            names: "the object, a path and a commit that need it",
            put_in: |live| {
                let (name, file, unpause) = live.loose_blob();
                replace(&file, None, format!("missing blob {name}: the path blob of commit ")).then(unpause)
            },
        },
        Damage {
            name: "a bit of a pack",
            outcome: Outcome::Fail,
            names: "the pack",
            put_in: |live| {
                let unpause = live.pause();
                run(git(&live.pair.root(0)).args(PACK));
                let pack = only_file(&live.file("objects/pack"), ".pack");
                let name = pack.file_name().expect("a name").to_string_lossy().into_owned();
                let mut content = fs::read(&pack).expect("read");
                let middle = content.len() / 2;
                content[middle] ^= 0x10;
                replace(&pack, Some(&content), name).then(unpause)
            },
        },
        Damage {
            name: "a pack that is gone, with its index there",
            outcome: Outcome::Fail,
            names: "the pack",
            put_in: |live| {
                let unpause = live.pause();
                run(git(&live.pair.root(0)).args(PACK));
                let pack = only_file(&live.file("objects/pack"), ".pack");
                let index = pack.with_extension("idx");
                let name = index.file_name().expect("a name").to_string_lossy().into_owned();
                replace(&pack, None, name).then(unpause)
            },
        },
        Damage {
            name: "a branch at an object that is not there",
            outcome: Outcome::Fail,
            names: "the branch",
            put_in: |live| {
                let unpause = live.pause();
                add(&live.file("refs/heads/nowhere"), &format!("{}\n", "12".repeat(20)), "refs/heads/nowhere")
                    .then(unpause)
            },
        },
        Damage {
            name: "a line of `packed-refs` that is none",
            outcome: Outcome::Fail,
            names: "the line",
            put_in: |live| {
                let unpause = live.pause();
                run(git(&live.pair.root(0)).args(["pack-refs", "--all"]));
                let file = live.file("packed-refs");
                let mut content = fs::read(&file).expect("read");
                content.extend_from_slice(b"not a ref at all\n");
                replace(&file, Some(&content), "not a ref at all").then(unpause)
            },
        },
        Damage {
            name: "an object that is gone, and settings that tell `git fsck` to skip it",
            outcome: Outcome::Fail,
            names: "the object",
            put_in: |live| {
                let (name, file, unpause) = live.loose_blob();
                let config = live.file("config");
                let before = fs::read(&config).expect("read");
                fs::write(live.file("skip"), format!("{name}\n")).expect("write");
                let skip = live.file("skip").display().to_string();
                run(git(&live.pair.root(0)).args(["config", "fsck.skipList", &skip]));
                let skip = live.file("skip");
                replace(&file, None, format!("missing blob {name}")).then(move || {
                    fs::write(config, before).expect("write");
                    fs::remove_file(skip).expect("remove");
                    unpause();
                })
            },
        },
        Damage {
            name: "an object of git LFS that is cut",
            outcome: Outcome::Fail,
            names: "the object",
            put_in: |live| {
                let name = "9b".repeat(32);
                let folder = live.file("lfs/objects/9b/9b");
                fs::create_dir_all(&folder).expect("mkdir");
                add(&folder.join(&name), "the start of something larger", name)
            },
        },
        Damage {
            name: "an object of git LFS that is gone",
            outcome: Outcome::Pass,
            names: "the object, as not covered",
            put_in: |live| {
                let unpause = live.pause();
                let repository = live.pair.root(0);
                let name = "7c".repeat(32);
                let file = live.pair.path("pointer");
                let version = "version https://git-lfs.github.com/spec/v1";
                fs::write(&file, format!("{version}\noid sha256:{name}\nsize 30000\n")).expect("write");
                let mut hash = git(&repository);
                let blob = run(hash.args(["hash-object", "-w", "--no-filters"]).arg(&file)).trim().to_owned();
                run(git(&repository).args(["update-ref", "refs/tags/large", &blob]));
                Broken::new(name, move || {
                    run(git(&repository).args(["update-ref", "-d", "refs/tags/large"]));
                    // `git prune` would take objects of pushes that are under way.
                    let file = repository.join("objects").join(&blob[..2]).join(&blob[2..]);
                    fs::remove_file(file).expect("nothing packs it");
                    unpause();
                })
            },
        },
        Damage {
            name: "a branch that is gone, with its reflog there",
            outcome: Outcome::Pass,
            names: "the branch, as not covered",
            put_in: |live| {
                let folder = live.file("logs/refs/heads");
                fs::create_dir_all(&folder).expect("mkdir");
                let head = run(git(&live.pair.root(0)).args(["rev-parse", "writer0"])).trim().to_owned();
                let line = format!("{} {head} A <a@b> 1259452800 +0000\tpush\n", "0".repeat(40));
                add(&folder.join("lost"), &line, "refs/heads/lost: its reflog is there")
            },
        },
        Damage {
            name: "a multi-pack index and a bitmap that are broken",
            outcome: Outcome::Pass,
            names: "the caches, as a note",
            put_in: |live| {
                let unpause = live.pause();
                let folder = live.file("objects/pack");
                let caches = ["multi-pack-index", "pack-1234.bitmap"].map(|name| folder.join(name));
                caches.iter().for_each(|cache| fs::write(cache, "MIDX, or not").expect("write"));
                Broken::new("bitmaps, multi-pack index", move || {
                    caches.iter().for_each(|cache| fs::remove_file(cache).expect("remove"));
                    unpause();
                })
            },
        },
        Damage {
            name: "an old commit with the time zone `-700`",
            outcome: Outcome::Pass,
            names: "the commit, as a note",
            put_in: |live| {
                let repository = live.pair.root(0);
                let tree = run(git(&repository).args(["mktree"])).trim().to_owned();
                let text = format!(
                    "tree {tree}\nauthor A <a@b> 1259452800 +0000\ncommitter A <a@b> 1287367363 -700\n\nimport\n"
                );
                let file = live.pair.path("commit");
                fs::write(&file, text).expect("write");
                let mut hash = git(&repository);
                hash.args(["hash-object", "-t", "commit", "-w", "--literally"]).arg(&file);
                let name = run(&mut hash).trim().to_owned();
                run(git(&repository).args(["update-ref", "refs/imported", &name]));
                Broken::new(format!("{name}: badTimezone"), move || {
                    run(git(&repository).args(["update-ref", "-d", "refs/imported"]));
                })
            },
        },
        Damage {
            name: "a commit-graph that names a pruned commit",
            outcome: Outcome::Pass,
            names: "",
            put_in: |live| {
                let unpause = live.pause();
                let repository = live.pair.root(0);
                let tree = run(git(&repository).args(["mktree"])).trim().to_owned();
                let name =
                    run(git(&repository).args(["commit-tree", "-m", "topic", &tree])).trim().to_owned();
                run(git(&repository).args(["update-ref", "refs/topic", &name]));
                run(git(&repository).args(["commit-graph", "write", "--reachable"]));
                run(git(&repository).args(["update-ref", "-d", "refs/topic"]));
                let file = live.file("objects").join(&name[..2]).join(&name[2..]);
                fs::remove_file(file).expect("the pruned commit");
                let graph = live.file("objects/info/commit-graph");
                Broken::new("", move || {
                    fs::remove_file(graph).expect("remove");
                    unpause();
                })
            },
        },
        Damage {
            name: "a symbolic reference that leads nowhere",
            outcome: Outcome::Pass,
            names: "the reference, as a note",
            put_in: |live| {
                let repository = live.pair.root(0);
                let name = "refs/remotes/origin/HEAD";
                run(git(&repository).args(["symbolic-ref", name, "refs/remotes/origin/gone"]));
                Broken::new(
                    format!("{name} leads to refs/remotes/origin/gone, which is not there"),
                    move || {
                        run(git(&repository).args(["symbolic-ref", "--delete", name]));
                    },
                )
            },
        },
        Damage {
            name: "`HEAD` outside `refs/heads`",
            outcome: Outcome::Pass,
            names: "the reference, as a note",
            put_in: |live| {
                let repository = live.pair.root(0);
                run(git(&repository).args(["update-ref", "refs/meta/config", "refs/heads/writer0"]));
                run(git(&repository).args(["symbolic-ref", "HEAD", "refs/meta/config"]));
                Broken::new("HEAD leads to refs/meta/config", move || {
                    run(git(&repository).args(["symbolic-ref", "HEAD", "refs/heads/main"]));
                    run(git(&repository).args(["update-ref", "-d", "refs/meta/config"]));
                })
            },
        },
        Damage {
            name: "objects borrowed from elsewhere",
            outcome: Outcome::Inconclusive,
            names: "where they are",
            put_in: |live| {
                let other = live.pair.path("elsewhere");
                if !other.exists() {
                    fs::create_dir(&other).expect("mkdir");
                }
                let unpause = live.pause();
                add(&live.file("objects/info/alternates"), &format!("{}\n", other.display()), "elsewhere")
                    .then(unpause)
            },
        },
        Damage {
            name: "rubbish in `HEAD`",
            outcome: Outcome::Inconclusive,
            names: "the repository",
            put_in: |live| replace(&live.file("HEAD"), Some(b"rubbish\n"), "not a git repository"),
        },
        Damage {
            name: "no `HEAD`",
            outcome: Outcome::NotRun,
            names: "the file",
            put_in: |live| replace(&live.file("HEAD"), None, "has no HEAD"),
        },
    ];

    fn pair(&self) -> &Pair {
        &self.pair
    }

    fn written(&self) -> u64 {
        self.writers.written()
    }

    fn check_live_data(&self) -> String {
        format!("{:?}", git(&self.pair.root(0)).args(["fsck", "--full", "--no-dangling"]).output())
    }
}

#[test]
fn git_comes_out_as_the_matrix_says() {
    live::compare_with_matrix(&Git::start());
}

#[test]
fn soak_git() {
    live::soak(&Git::start_busy());
}

/// Whatever is packed, deleted and made meanwhile, a copy has every commit that was pushed before its run, on its branch.
#[test]
fn each_copy_has_every_branch_as_it_was() {
    let live = Git::start();
    for generation in 1..=8 {
        let heads = |repository: &Path| {
            let list = run(git(repository).args([
                "-c",
                "safe.directory=*",
                "for-each-ref",
                "--format=%(objectname) %(refname)",
                "refs/heads/writer*",
            ]));
            list.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        let before = heads(&live.pair.root(0));
        assert_eq!(before.len(), 2, "{before:?}");
        let done = live.pair.run(0);
        assert_eq!(done["generation"], generation, "{done}");
        let restored = live.pair.path(&format!("restored{generation}"));
        run(Command::new("cp").arg("-a").arg(live.pair.latest()).arg(&restored));
        let after = heads(&restored);
        assert_eq!(after.len(), 2, "{after:?}");
        for (then, copied) in before.iter().zip(&after) {
            let (then, copied) = (&then[..40], &copied[..40]);
            run(git(&restored).args(["merge-base", "--is-ancestor", then, copied]));
        }
        assert!(!restored.join("gc.pid").exists());
    }
}

/// Refs in tables that are compacted: they are held as objects are.
#[test]
fn a_repository_with_reftables_passes() {
    let known = Command::new("git").args(["init", "-h"]).output().expect("git");
    if !String::from_utf8_lossy(&known.stdout).contains("--ref-format") {
        println!("this git knows no reftables: nothing to see");
        return;
    }
    let live = Git::start_with(&["--bare", "--ref-format=reftable"]);
    for _ in 0..3 {
        let done = live.pair.run(0);
        assert_eq!(done["outcome"], "OUTCOME_PASS", "{done}");
    }
}

/// The `.git` of a working tree, with reflogs and an index, and everything in its configuration that runs programs.
#[test]
fn nothing_that_the_copy_names_is_run() {
    let pair = Pair::engine("git", "");
    let tree = pair.path("tree");
    fs::create_dir(&tree).expect("mkdir");
    run(git(&tree).args(["init", "-q", "-b", "main", "."]));
    let told = pair.path("told");
    let tell = pair.path("tell");
    fs::write(&tell, format!("#!/bin/sh\ntouch {}\n", told.display())).expect("write");
    run(Command::new("chmod").arg("+x").arg(&tell));
    for number in 0..3 {
        fs::write(tree.join("file"), number.to_string()).expect("write");
        run(git(&tree).args(["add", "."]));
        run(git(&tree).args(["commit", "-q", "-m", "more"]));
    }
    let tell = tell.to_str().expect("utf-8");
    for key in [
        "core.fsmonitor",
        "core.sshCommand",
        "core.pager",
        "core.editor",
        "core.alternateRefsCommand",
        "diff.external",
    ] {
        run(git(&tree).args(["config", key, tell]));
    }
    let hooks = pair.path("hooks");
    fs::create_dir(&hooks).expect("mkdir");
    for hook in ["post-index-change", "reference-transaction", "pre-auto-gc"] {
        fs::copy(tell, hooks.join(hook)).expect("copy");
    }
    run(git(&tree).args(["config", "core.hooksPath", hooks.to_str().expect("utf-8")]));
    run(git(&tree).args(["config", "include.path", "/nowhere/included"]));
    fs::remove_dir(pair.root(0)).expect("remove");
    fs::rename(tree.join(".git"), pair.root(0)).expect("rename");
    for isolation in ["require", "none"] {
        if isolation == "none" {
            pair.restart_with("target", "profile = \"git\"\n", "profile = \"git\"\nisolation = \"none\"\n");
        }
        let done = pair.run(0);
        assert_eq!(done["outcome"], "OUTCOME_PASS", "{done}");
        assert!(!told.exists(), "{isolation}");
    }
    // The negative control: this is what the copy does when it is used.
    let mut status = git(&tree);
    status.env("GIT_DIR", pair.root(0)).env("GIT_WORK_TREE", &tree).arg("status");
    drop(status.output().expect("git"));
    assert!(told.exists());
    // Reflogs and the index are read with the refs.
    let broken = replace(&pair.root(0).join("index"), Some(b"DIRC, or not"), "");
    assert_eq!(pair.run(1)["reason"], "damage-found");
    Broken::mend(broken);
    assert_eq!(pair.run(0)["outcome"], "OUTCOME_PASS");
}

#[test]
fn without_git_it_is_inconclusive() {
    let live = Git::start();
    without_program(&live.pair, "git", "git");
}

/// The folder above, which is easily mistaken for the repository, is told before anything is copied.
#[test]
fn a_working_tree_is_refused() {
    let pair = Pair::engine("git", "");
    run(git(&pair.root(0)).args(["init", "-q", "."]));
    let refused = pair.run(4);
    assert_eq!(refused["reason"], "not-a-repository", "{refused}");
    let message = refused["message"].as_str().expect("text");
    assert!(message.contains("has no HEAD") && message.contains("the .git folder"), "{message}");
}

/// Two packs, the larger one first by its name. The source is held in the middle of the larger one, and both are packed into
/// one meanwhile.
fn repacked_in_the_middle(profile: &str) -> (Pair, i32) {
    let pair = Pair::engine("git", "");
    let repository = pair.root(0);
    run(git(&repository).args(["init", "-q", "--bare", "-b", "main", "."]));
    let clone = pair.path("clone");
    run(Command::new("git").args(["clone", "-q"]).arg(&repository).arg(&clone).stderr(Stdio::null()));
    let packs = || {
        let entries = fs::read_dir(repository.join("objects/pack")).expect("read").flatten();
        let mut packs: Vec<_> = entries
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "pack"))
            .collect();
        packs.sort();
        packs
    };
    let push = |number: u64, bytes: usize| {
        // Nothing that can be packed smaller.
        let mut content = vec![0; bytes];
        blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut content);
        fs::write(clone.join(format!("file{number}")), content).expect("write");
        run(git(&clone).args(["add", "."]));
        run(git(&clone).args(["commit", "-q", "-m", "more"]));
        run(git(&clone).args(["push", "-q", "origin", "HEAD:main"]));
        let before = packs();
        run(git(&repository).args(["repack", "-dq"]));
        packs().into_iter().find(|pack| !before.contains(pack)).expect("a new pack")
    };
    let large = push(0, 40_000_000);
    // By their names, which are digests, every second one comes after it; few do when its own is high.
    (1..1000).find(|number| push(*number, 1000) > large).expect("a pack that comes after the large one");
    let keys = "state = \"state\"\nmemory_mib = 8\nthreads = 1\n";
    pair.kill("source");
    pair.configure("source", "profile = \"git\"", &format!("profile = {profile:?}"));
    pair.restart_with("source", "state = \"state\"\n", keys);
    pair.link().hold_after(10_000_000);
    let started = pair.source(&["run"]);
    assert_eq!(started.code, 0, "{started:?}");
    pair.link().wait_until_held();
    run(git(&repository).args(["repack", "-adq"]));
    assert_eq!(packs().len(), 1);
    pair.link().go_on();
    let ended = pair.source(&["watch"]);
    (pair, ended.code)
}

/// What `copy.hold` is for: the same repository and the same moment, with it and without it.
#[test]
fn what_is_repacked_in_the_middle_is_lost_without_hold_and_not_with_it() {
    let (pair, code) = repacked_in_the_middle("git");
    assert_eq!((code, live::newest_verdict(&pair).outcome), (0, Outcome::Pass));
    drop(pair);
    let text = assay_common::profile::Profile::builtin_text("git").expect("built in");
    let hold = text.lines().find(|line| line.starts_with("hold = ")).expect("it holds");
    let without = std::env::temp_dir().join(format!("assay-git-without-hold-{}.toml", std::process::id()));
    fs::write(&without, text.replace(hold, "")).expect("write");
    let (pair, code) = repacked_in_the_middle(without.to_str().expect("utf-8"));
    fs::remove_file(&without).expect("remove");
    let verdict = live::newest_verdict(&pair);
    assert_eq!((code, verdict.outcome, verdict.reason.as_str()), (1, Outcome::Fail, "damage-found"));
}
