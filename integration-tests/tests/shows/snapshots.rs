//! A snapshot of the file system that is copied instead of the live files: btrfs for real, LVM and ZFS by programs that stand for theirs and write
//! down how they were called.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::Command,
};

use assay_common::verdict::Outcome;

use crate::{
    file_systems::{Kind, Mounted},
    pair::{LIST, Pair, json},
};

const FILES: usize = 40;

fn run(program: &str, arguments: &[&str]) {
    let done = Command::new(program).args(arguments).output().expect("./test installs it");
    assert!(done.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

fn count(value: &serde_json::Value) -> u64 {
    value.as_str().and_then(|text| text.parse().ok()).or(value.as_u64()).unwrap_or(0)
}

/// A live tree of `kind`, under a mark whose end command changes the live files: `end` is a line of shell in the root.
fn marked(kind: Kind, end: &str) -> Pair {
    let end = format!("echo ended >> ../marks; {end}");
    let tables = format!(
        "[mark]\nkind = \"command\"\nbegin = [\"sh\", \"-c\", \"echo begun >> ../marks; echo mark-1\"]\n\
         end = [\"sh\", \"-c\", {end:?}]\n{LIST}"
    );
    let keys = "exclude = [\"/.snapshots\", \"/.zfs\"]\nmax_drop_percent = 100\n";
    let pair = Pair::with_profile_on(kind, &tables, keys);
    for number in 0..FILES {
        fs::write(pair.root(0).join(format!("cold{number}")), "cold").expect("write");
    }
    fs::write(pair.root(0).join("file"), "before").expect("write");
    pair
}

/// Gives the repository a snapshot of these keys.
fn configure(pair: &Pair, keys: &str) {
    pair.restart_with(
        "source",
        "[[repository.root]]",
        &format!("[repository.snapshot]\n{keys}\n[[repository.root]]"),
    );
}

fn on_btrfs(end: &str) -> Pair {
    let pair = marked(Kind::Btrfs, end);
    let folder = pair.root(0).join(".snapshots");
    fs::create_dir(&folder).expect("mkdir");
    configure(&pair, &format!("kind = \"btrfs\"\nfolder = {folder:?}"));
    pair
}

fn assert_none_left(pair: &Pair, told: &str) {
    let left: Vec<_> = fs::read_dir(pair.root(0).join(".snapshots")).expect("list").flatten().collect();
    assert!(left.is_empty(), "{told}: {left:?}");
    assert!(!pair.path("state/repo/snapshot.json").exists(), "{told}");
}

fn marks(pair: &Pair) -> String {
    fs::read_to_string(pair.path("marks")).unwrap_or_default()
}

/// A program that is found before those of the host: `script` runs before the real one is called, if `calls` says so.
fn stand_in(pair: &Pair, name: &str, script: &str) {
    let folder = pair.path("programs");
    fs::create_dir_all(&folder).expect("mkdir");
    let program = folder.join(name);
    let calls = pair.path("calls");
    fs::write(&program, format!("#!/bin/sh\necho {name} \"$@\" >> {}\n{script}\n", calls.display()))
        .expect("write");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("chmod");
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").expect("a path"));
    pair.set_environment("source", &[("PATH", path)]);
}

/// The end of the mark comes after the snapshot and before the copy: what it changes is not in the generation.
#[test]
fn a_snapshot_is_copied_and_the_mark_ends_before_the_copy() {
    let pair = on_btrfs("echo after > file; rm cold0; touch late");
    let run = pair.run(0);
    let mark = run["mark"]["id"].as_str().expect("an id");
    assert!(mark.starts_with("mark-1; btrfs snapshot assay-repo-"), "{run}");
    assert_eq!(fs::read_to_string(pair.latest().join("file")).expect("read"), "before");
    assert!(pair.latest().join("cold0").exists() && !pair.latest().join("late").exists());
    assert!(!pair.latest().join(".snapshots").exists());
    assert_eq!(marks(&pair), "begun\nended\n");
    assert_none_left(&pair, "after a run");
    pair.assert_ledger(&[Outcome::Pass]);
}

/// Each snapshot has another device number and each file is the same: only what changed is read. The same holds when snapshots come and go in the
/// configuration.
#[test]
fn unchanged_files_are_not_read_again_from_the_next_snapshot() {
    let pair = on_btrfs("true");
    // Minutes after the runs before, in what the source remembers: what was written right before a snapshot is read once more.
    let later = |pair: &Pair| {
        pass_an_hour(pair);
        read(pair)
    };
    let all = FILES as u64 + 1;
    assert_eq!((read(&pair), read(&pair), later(&pair)), (all, all, 0));
    let plan = json(&pair.source(&["--json", "plan"]).stdout);
    assert_eq!(plan["mark"], "command, then btrfs snapshot", "{plan}");
    let changed = count(&plan["work"]["changedFiles"]) + count(&plan["work"]["newFiles"]);
    assert_eq!(changed, 0, "{plan}");
    fs::write(pair.root(0).join("cold7"), "changed").expect("write");
    assert_eq!(later(&pair), 1);
    assert_is_exact(&pair);
    let with = fs::read_to_string(pair.path("source.toml")).expect("read");
    let section = with.split_once("[repository.snapshot]").expect("a section").1;
    let section = section.split_once("[[repository.root]]").expect("a root").0;
    pair.restart_with("source", &format!("[repository.snapshot]{section}"), "");
    assert_eq!(later(&pair), 0, "the live files are those of the snapshot");
    assert!(pair.run(0)["mark"]["id"] == "mark-1");
    configure(&pair, section.trim());
    assert_eq!(read(&pair), 0, "and those of the next one");
    // Of a basis that does not say where it is from, or that says what is no origin, everything is read.
    let origin = pair.path("state/repo/basis/origin");
    for text in [None, Some(""), Some("{\"devices\":[1,2],\"snapshot\":null}")] {
        match text {
            None => fs::remove_file(&origin).expect("remove"),
            Some(text) => fs::write(&origin, text).expect("write"),
        }
        assert_eq!((read(&pair), later(&pair)), (all, 0), "{text:?}");
    }
}

/// Files that a run reads because they have changed, or may have.
fn read(pair: &Pair) -> u64 {
    let run = pair.run(0);
    count(&run["counts"]["filesRead"]) - count(&run["counts"]["filesReread"])
}

/// Lets time pass between the last files that were written and the last snapshot.
fn pass_an_hour(pair: &Pair) {
    let path = pair.path("state/repo/basis/origin");
    let mut origin = json(&fs::read_to_string(&path).expect("read"));
    let seconds = origin["snapshot"]["secs"].as_u64().expect("a snapshot");
    origin["snapshot"]["secs"] = serde_json::json!(seconds + 3600);
    fs::write(path, origin.to_string()).expect("write");
}

/// Files are written to while snapshots are made, each once, and not again: a snapshot may have a file's new time and not its new content. The next
/// run has it all.
#[test]
fn what_is_written_while_a_snapshot_is_made_is_in_the_next_one() {
    const WRITTEN: usize = 200;
    let pair = on_btrfs("true");
    let file = |number: usize| pair.root(0).join(format!("written{number}"));
    for number in 0..WRITTEN {
        fs::write(file(number), vec![0; 8192]).expect("write");
    }
    pair.run(0);
    for round in 1..=4u8 {
        std::thread::scope(|scope| {
            let run = scope.spawn(|| pair.run(0));
            let mut number = 0;
            while !run.is_finished() {
                if number < WRITTEN {
                    let open = fs::File::options().write(true).open(file(number)).expect("open");
                    std::os::unix::fs::FileExt::write_all_at(&open, &[round; 512], 4096).expect("write");
                    number += 1;
                }
                // Spread over the run, whatever it takes: a write, then the machine's other work.
                std::thread::park_timeout(std::time::Duration::from_millis(1));
            }
            run.join().expect("the run ends");
        });
        pair.run(0);
        assert_is_exact(&pair);
    }
}

/// The referee, who does not look at the folder that is left out.
fn assert_is_exact(pair: &Pair) {
    let [live, copy] = [pair.root(0), pair.latest()].map(|folder| format!("{}/", folder.display()));
    let words = [
        "-aHAXn",
        "--checksum",
        "--delete",
        "--itemize-changes",
        "--modify-window=-1",
        "--exclude=/.snapshots",
    ];
    let done = Command::new("rsync").args(words).args([live, copy]).output().expect("./test installs it");
    assert!(done.status.success() && done.stdout.is_empty(), "{}", String::from_utf8_lossy(&done.stdout));
}

/// A kill before and after each command, and while the snapshot is there.
#[test]
fn a_kill_at_each_step_leaves_no_snapshot() {
    let pair = on_btrfs("if [ \"$(cat ../kill)\" = held ]; then kill -9 $PPID; fi");
    let kill = pair.path("kill");
    let is = |step: &str| format!("[ \"$(cat {})\" = \"$2-{step}\" ]", kill.display());
    let script = format!(
        "if {}; then kill -9 $PPID; exit 1; fi\nPATH={} btrfs \"$@\"\nstatus=$?\nif {}; then kill -9 $PPID; fi\nexit $status",
        is("before"),
        std::env::var("PATH").expect("a path"),
        is("after")
    );
    stand_in(&pair, "btrfs", &script);
    fs::write(pair.path("kill"), "never").expect("write");
    pair.kill("source");
    pair.start("source");
    pair.run(0);
    let steps = ["snapshot-before", "snapshot-after", "held", "delete-before", "delete-after"];
    for step in steps {
        fs::write(pair.path("kill"), step).expect("write");
        pair.source(&["run"]);
        pair.eventually(step, || !pair.is_alive("source"));
        pair.reap("source");
        assert!(pair.path("state/repo/snapshot.json").exists(), "{step}: it is noted");
        fs::write(pair.path("kill"), "never").expect("write");
        pair.start("source");
        pair.eventually(step, || !pair.path("state/repo/snapshot.json").exists());
        assert_none_left(&pair, step);
        let run = pair.run(0);
        assert_eq!(run["outcome"], "OUTCOME_PASS", "{step}: {run}");
    }
    assert!(marks(&pair).ends_with("begun\nended\n"), "{}", marks(&pair));
}

/// A snapshot has an empty folder where another subvolume or file system is: it is refused by name, not copied as empty.
#[test]
fn what_a_snapshot_does_not_have_is_named() {
    let pair = on_btrfs("true");
    pair.run(0);
    let nested = pair.root(0).join("folder/nested");
    fs::create_dir(pair.root(0).join("folder")).expect("mkdir");
    run("btrfs", &["subvolume", "create", nested.to_str().expect("text")]);
    fs::write(nested.join("file"), "content").expect("write");
    let refused = pair.run(4);
    let message = refused["message"].as_str().expect("text");
    assert_eq!(refused["reason"], "read-failed", "{refused}");
    assert!(
        message.contains("folder/nested: this is a subvolume of its own") && message.contains("exclude it"),
        "{message}"
    );
    assert_none_left(&pair, "after a refusal");
    pair.restart_with("source", "\"/.zfs\"", "\"/.zfs\", \"/folder/nested\"");
    pair.run(0);
    assert!(pair.latest().join("folder").exists() && !pair.latest().join("folder/nested").exists());
    // The folder that stands for it, in a live tree that was a snapshot once, is an empty folder as any other.
    let stub = pair.root(0).join("folder/copy");
    run("btrfs", &["subvolume", "delete", nested.to_str().expect("text")]);
    run("btrfs", &["subvolume", "create", nested.to_str().expect("text")]);
    run("btrfs", &["subvolume", "create", nested.join("inner").to_str().expect("text")]);
    run("btrfs", &["subvolume", "snapshot", nested.to_str().expect("text"), stub.to_str().expect("text")]);
    let refused = pair.run(4);
    assert!(
        refused["message"].as_str().expect("text").contains("folder/copy: this is a subvolume"),
        "{refused}"
    );
    run("btrfs", &["subvolume", "delete", stub.to_str().expect("text")]);
    let place = pair.root(0).join("mounted");
    let mounted = Mounted::new(Kind::Tmpfs, &place);
    let refused = pair.run(4);
    let message = refused["message"].as_str().expect("text");
    assert_eq!(refused["reason"], "mark-failed", "{refused}");
    assert!(
        message.contains("mounted is mounted in the root") && message.contains("one_file_system"),
        "{message}"
    );
    let plan = json(&pair.source(&["--json", "plan"]).stdout);
    assert!(plan["stops"].to_string().contains("mounted is mounted in the root"), "{plan}");
    let doctor = pair.source(&["doctor"]);
    assert!(doctor.code != 0 && doctor.stdout.contains("mounted is mounted in the root"), "{doctor:?}");
    drop(mounted);
    fs::remove_dir(place).expect("rmdir");
    pair.run(0);
}

#[test]
fn what_is_in_the_way_of_a_snapshot_is_said_before_it_is_made() {
    let pair = on_btrfs("true");
    let folder = pair.root(0).join(".snapshots");
    let keys = |from: &str, to: &str| pair.restart_with("source", from, to);
    let refused = |told: &str| {
        let run = pair.run(4);
        assert_eq!(run["reason"], "mark-failed", "{run}");
        assert!(run["message"].as_str().expect("text").contains(told), "{told}: {run}");
        assert!(run["message"].as_str().expect("text").contains("HINT: "), "{run}");
        assert!(!pair.path("state/repo/snapshot.json").exists());
    };
    keys("\"/.snapshots\", ", "");
    refused("is in the root");
    keys("exclude = [", "exclude = [\"/.snapshots\", ");
    keys(&format!("{folder:?}"), &format!("{:?}", pair.path("state")));
    refused("not btrfs");
    keys(&format!("{:?}", pair.path("state")), &format!("{folder:?}\nmin_free_percent = 90"));
    let filler = fs::File::create(pair.root(0).join("filler")).expect("create");
    rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), 0, 200 << 20).expect("room");
    refused("% of the file system");
    fs::remove_file(pair.root(0).join("filler")).expect("remove");
    run("sync", &["-f", folder.to_str().expect("text")]);
    keys("min_free_percent = 90", "min_free_percent = 1");
    pair.run(0);
}

/// With one_file_system the folder of a subvolume is copied as it is, and nothing in it: the empty one of the snapshot is another.
#[test]
fn the_folder_of_a_subvolume_that_is_left_out_is_the_live_one() {
    let pair = on_btrfs("true");
    pair.restart_with("source", "name = \"root0\"", "one_file_system = true\nname = \"root0\"");
    let nested = pair.root(0).join("nested");
    run("btrfs", &["subvolume", "create", nested.to_str().expect("text")]);
    fs::write(nested.join("file"), "content").expect("write");
    run("chown", &["1234:1234", nested.to_str().expect("text")]);
    run("chmod", &["700", nested.to_str().expect("text")]);
    run("setfattr", &["-n", "user.k", "-v", "v", nested.to_str().expect("text")]);
    pair.run(0);
    let copy = pair.latest().join("nested");
    assert!(fs::read_dir(&copy).expect("list").next().is_none());
    let look = |path: &Path| {
        let stat = path.metadata().expect("stat");
        let mut value = [0; 1];
        rustix::fs::getxattr(path, "user.k", &mut value).expect("an attribute");
        (stat.mode(), stat.uid(), stat.gid(), stat.mtime(), stat.mtime_nsec(), value)
    };
    assert_eq!(look(&copy), look(&nested));
    pair.run(0);
    pass_an_hour(&pair);
    let again = pair.run(0);
    assert_eq!(again["counts"]["entriesKept"], again["baseEntries"], "{again}");
}

/// The commands are those of the manuals. Neither LVM nor ZFS is in the kernel that runs this.
#[test]
fn lvm_and_zfs_are_called_as_their_manuals_say() {
    let pair = marked(Kind::Ext4, "echo after > file");
    let (live, to) = (pair.root(0), pair.path("mounts"));
    fs::create_dir(&to).expect("mkdir");
    let bind = "/bin/mount --bind -o ro";
    let listed = |name: &str, none: &str| {
        format!("if [ -e {0} ]; then exit 0; fi; echo '{none}' >&2; exit 5", pair.path(name).display())
    };
    let volume = pair.path("volume").display().to_string();
    stand_in(&pair, "lvcreate", &format!(": > {volume}"));
    stand_in(&pair, "mount", &format!("shift 3; {bind} {} \"$1\"", live.display()));
    stand_in(&pair, "lvs", &listed("volume", "  Failed to find logical volume \"vg0/x\""));
    stand_in(&pair, "lvremove", &format!("rm {volume}"));
    configure(&pair, &format!("kind = \"lvm\"\nvolume = \"vg0/data\"\nsize = \"1g\"\nfolder = {to:?}"));
    let run_lvm = pair.run(0);
    assert!(run_lvm["mark"]["id"].as_str().expect("an id").contains("LVM snapshot assay-repo-"), "{run_lvm}");
    let name = format!("assay-repo-{}", run_lvm["id"].as_str().expect("an id"));
    let calls = |pair: &Pair| {
        let text = fs::read_to_string(pair.path("calls")).expect("it was called");
        fs::remove_file(pair.path("calls")).expect("remove");
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let at = to.join(&name);
    assert_eq!(
        calls(&pair),
        [
            format!("lvcreate --yes --snapshot --size 1g --name {name} vg0/data"),
            format!("mount -o ro /dev/vg0/{name} {}", at.display()),
            format!("lvs --noheadings --options lv_name vg0/{name}"),
            format!("lvremove --yes vg0/{name}"),
        ]
    );
    assert!(fs::read_dir(&to).expect("list").next().is_none() && !pair.path("volume").exists());
    // ZFS shows its snapshots below the mount point.
    let snapshots = live.join(".zfs/snapshot");
    fs::create_dir_all(&snapshots).expect("mkdir");
    let place = snapshots.display();
    let list = listed("volume", "cannot open 'tank/data@x': dataset does not exist");
    stand_in(
        &pair,
        "zfs",
        &format!(
            "case $1 in\nsnapshot) : > {volume}; at={place}/${{2#*@}}; mkdir $at; {bind} {} $at;;\n\
         destroy) at={place}/${{2#*@}}; umount $at; rmdir $at; rm {volume};;\nlist) {list};;\nesac",
            live.display()
        ),
    );
    let lvm = format!("kind = \"lvm\"\nvolume = \"vg0/data\"\nsize = \"1g\"\nfolder = {to:?}");
    pair.restart_with("source", &lvm, "kind = \"zfs\"\nvolume = \"tank/data\"");
    let run_zfs = pair.run(0);
    let name = format!("tank/data@assay-repo-{}", run_zfs["id"].as_str().expect("an id"));
    assert_eq!(
        calls(&pair),
        [
            format!("zfs snapshot {name}"),
            "zfs list -H -o name tank/data".to_owned(),
            format!("zfs list -H -o name -t snapshot {name}"),
            format!("zfs destroy {name}"),
        ]
    );
    assert!(fs::read_dir(snapshots).expect("list").next().is_none());
}

/// The backup mode of PostgreSQL lasts until the last file is copied. git names objects before they are flushed: a snapshot, as a power cut, may
/// leave them empty.
#[test]
fn profiles_that_cannot_use_a_snapshot_say_why() {
    let pair = Pair::plain(1);
    let text = fs::read_to_string(pair.path("source.toml")).expect("read");
    let text = text
        .replace("profile = \"generic\"", "profile = \"postgresql\"")
        .lines()
        .filter(|line| !line.starts_with("vars"))
        .collect::<Vec<_>>()
        .join("\n")
        .replace(
            "[[repository.root]]",
            "[repository.snapshot]\nkind = \"zfs\"\nvolume = \"-r\"\nsize = \"1g\"\n[[repository.root]]",
        );
    fs::write(pair.path("other.toml"), text).expect("write");
    let done = pair.source_without_configuration(&["--config", "other.toml", "config", "check"]);
    assert_eq!(done.code, 2, "{done:?}");
    for told in ["snapshot.volume: \"-r\"", "snapshot.size: kind = \"zfs\" does not use it"] {
        assert!(done.stderr.contains(told), "{told}: {}", done.stderr);
    }
    let text = fs::read_to_string(pair.path("other.toml")).expect("read");
    fs::write(pair.path("other.toml"), text.replace("\"-r\"\nsize = \"1g\"", "\"tank/data\""))
        .expect("write");
    let done = pair.source_without_configuration(&["--config", "other.toml", "config", "check"]);
    assert!(done.code == 2 && done.stderr.contains("the server's own backup mode"), "{done:?}");
    let text = fs::read_to_string(pair.path("other.toml")).expect("read");
    fs::write(pair.path("other.toml"), text.replace("\"postgresql\"", "\"git\"")).expect("write");
    let done = pair.source_without_configuration(&["--config", "other.toml", "config", "check"]);
    assert!(done.code == 2 && done.stderr.contains("(core.fsync)"), "{done:?}");
}
