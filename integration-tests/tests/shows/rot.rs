//! Bytes that change below a mounted file system, and leave no trace: a run claims no more of them than when it read them, finds
//! them when they have their turn, and tells everybody. Time passes in what the source remembers, not in this test.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::Path,
    process::Command,
};

use crate::{
    file_systems::{Kind, change_below},
    metrics::{get, with_metrics},
    noise,
    notify::{notices, with_command},
    pair::{Pair, json, rsync_finds_no_difference},
};

const DAY: i64 = 24 * 3_600_000;
const COLD: usize = 100_000;

/// Flips a byte of a file on the block device below the file system of `root0`.
fn rot(pair: &Pair, name: &str, offset: u64) {
    change_below(&pair.path("root0.img"), &pair.root(0).join(name), offset);
}

fn count(value: &serde_json::Value) -> u64 {
    value.as_str().and_then(|text| text.parse().ok()).or(value.as_u64()).unwrap_or(0)
}

/// One line of a command's output.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Runs until nothing is read that has not its turn: what was written just now is read once more.
fn settle(pair: &Pair) {
    for _ in 0..5 {
        let run = pair.run(0);
        if count(&run["counts"]["filesRead"]) == count(&run["counts"]["filesReread"]) {
            return;
        }
    }
    panic!("files are read again and again");
}

/// Lets time pass since the last run, in what the source remembers: its clock, and the clock that nobody sets if `both`.
fn pass(pair: &Pair, milliseconds: i64, both: bool) {
    let basis = pair.path("state/repo/basis");
    let text = fs::read_to_string(basis.join("standing")).expect("read");
    let mut standing = json(&text);
    let back =
        |value: &serde_json::Value| serde_json::json!(value.as_i64().expect("a number") - milliseconds);
    standing["time"] = back(&standing["time"]);
    if both {
        standing["steady"]["milliseconds"] = back(&standing["steady"]["milliseconds"]);
    }
    fs::write(basis.join("standing"), standing.to_string()).expect("write");
    let moments = fs::read(basis.join("read")).expect("read");
    let moments = moments.chunks_exact(8).flat_map(|moment| {
        let moment = i64::from_le_bytes(moment.try_into().expect("eight bytes"));
        (if moment > 0 { moment - milliseconds } else { moment }).to_le_bytes()
    });
    let moments: Vec<u8> = moments.collect();
    // A further name of the basis before it: not written into.
    fs::remove_file(basis.join("read")).expect("remove");
    fs::write(basis.join("read"), moments).expect("write");
}

/// The whole way: said to be old before its turn; then sent, checked and told everywhere, once.
fn silent_rot_is_found(kind: Kind) {
    let pair = Pair::on(kind, Kind::Ext4);
    let ports = with_metrics(&pair);
    for role in ["source", "target"] {
        with_command(&pair, role, "");
    }
    let live = pair.root(0);
    fs::create_dir(live.join("db")).expect("mkdir");
    for name in ["cold", "db/other"] {
        fs::write(live.join(name), noise(7, COLD)).expect("write");
    }
    settle(&pair);
    let before = fs::metadata(live.join("cold")).expect("stat");
    rot(&pair, "cold", 70_000);
    let after = fs::metadata(live.join("cold")).expect("stat");
    let shape =
        |it: &fs::Metadata| (it.ino(), it.len(), it.mtime(), it.mtime_nsec(), it.ctime(), it.ctime_nsec());
    assert_eq!(shape(&before), shape(&after), "it leaves no trace");

    // Before its turn.
    let run = pair.run(0);
    assert_eq!(count(&run["counts"]["filesChangedWithoutTrace"]), 0, "{run}");
    let sentence = run["sentence"].as_str().expect("a sentence").to_owned();
    assert!(!sentence.contains("the live repository was good at the mark"), "{sentence}");
    let explained = words(&pair.source(&["explain"]).stdout);
    let parts = [
        "The source read 0 of 2 files in this run",
        "It read the rest, which has not changed since, between",
    ];
    assert!(parts.iter().all(|part| explained.contains(part)), "{explained}");
    assert!(run["oldestReading"].is_string(), "{run}");
    println!("before its turn: {sentence}\n{}", pair.source(&["explain"]).stdout);

    // Its turn has come.
    pass(&pair, 8 * DAY, true);
    let planned = pair.source(&["plan"]).stdout;
    assert!(
        words(&planned).contains("read again 2 unchanged files, 200.0 kB: every byte within 7 days"),
        "{planned}"
    );
    let run = pair.run(0);
    assert_eq!(count(&run["counts"]["filesChangedWithoutTrace"]), 1, "{run}");
    assert_eq!(count(&run["counts"]["filesReread"]), 1, "the other one is what it was: {run}");
    assert!(count(&run["counts"]["bytesSent"]) > 0, "{run}");
    assert_eq!(run["changedWithoutTrace"], serde_json::json!(["cold"]), "{run}");
    rsync_finds_no_difference(&live, &pair.latest());
    let id = run["id"].as_str().expect("an id");
    let warning = "WARNING: the content of 1 file changed although size, times and inode did not.";
    for explained in [pair.source(&["explain", id]), pair.target(&["explain"])] {
        let text = words(&explained.stdout);
        assert!(text.contains(warning) && text.contains(" file cold "), "{explained:?}");
    }
    println!("in its turn:\n{}", pair.source(&["explain", id]).stdout);
    let shown = pair.source(&["--json", "verdict", "show", id]);
    assert!(shown.code == 0, "{shown:?}");
    for role in ["source", "target"] {
        let command = |arguments: &[&str]| match role {
            "source" => pair.source(arguments),
            _ => pair.target(arguments),
        };
        // Told of by the time that the next command is answered, or a moment later.
        pair.eventually("the status tells", || command(&["status"]).stdout.contains("without a trace"));
        let text = command(&["status"]).stdout;
        let line = words(&text);
        assert!(
            line.contains("CHANGED 1 file without a trace, ") && line.contains(&format!("in run {id} cold")),
            "{text}"
        );
        println!("{role}'s status:\n{text}");
        let status = json(&command(&["--json", "status"]).stdout);
        let found = &status["repositories"][0]["changedWithoutTrace"];
        assert_eq!(
            (&found["runId"], &found["paths"]),
            (&id.into(), &serde_json::json!(["cold"])),
            "{status}"
        );
        let told = || {
            let all = notices(&pair, role).into_iter();
            all.filter(|notice| notice["event"] == "changed-without-trace").collect::<Vec<_>>()
        };
        pair.eventually("the notice", || !told().is_empty());
        let told = told();
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0]["id"], format!("repo/{id}/changed-without-trace"));
        let summary = told[0]["summary"].as_str().expect("text");
        assert!(
            summary.contains("1 file (cold)") && summary.starts_with("CHANGED WITHOUT A TRACE: repo on "),
            "{summary}"
        );
        println!("{role}'s notice: {}", told[0]);
    }
    for port in ports {
        let page = get(port, "/metrics");
        for sample in [
            "assay_changed_without_trace_files{repository=\"repo\"} 1",
            "assay_changed_without_trace_timestamp_seconds{repository=\"repo\"} 1",
        ] {
            assert!(page.contains(sample), "{sample}: {page}");
        }
    }

    // The next run finds nothing new, and an agent that is restarted remembers.
    for role in ["source", "target"] {
        pair.kill(role);
        pair.start(role);
    }
    let run = pair.run(0);
    assert_eq!(count(&run["counts"]["filesChangedWithoutTrace"]), 0, "{run}");
    assert!(pair.source(&["status"]).stdout.contains("without a trace"));
    assert!(pair.target(&["status"]).stdout.contains("without a trace"));
    assert_eq!(
        notices(&pair, "source").iter().filter(|it| it["event"] == "changed-without-trace").count(),
        1
    );
}

#[test]
fn silent_rot_is_found_on_ext4() {
    silent_rot_is_found(Kind::Ext4);
}

#[test]
fn silent_rot_is_found_on_xfs() {
    silent_rot_is_found(Kind::Xfs);
}

/// A run that reads all finds it at once: in files that are read first, held, or last, and under a name of several.
#[test]
fn a_full_read_finds_rot_at_once_wherever_a_file_is_read() {
    let tables = format!(
        "[copy]\nfirst = [\"first\"]\nlast = [\"last\"]\nhold = [\"held/**\"]\n{}",
        crate::pair::LIST
    );
    let pair = Pair::with_profile_on(Kind::Ext4, &tables, "max_drop_percent = 100\n");
    let live = pair.root(0);
    fs::create_dir(live.join("held")).expect("mkdir");
    let names = ["first", "last", "held/pack", "plain", "linked"];
    for name in names {
        fs::write(live.join(name), noise(7, COLD)).expect("write");
    }
    fs::hard_link(live.join("linked"), live.join("z-name")).expect("link");
    let first_is_read_always = 1;
    for _ in 0..3 {
        pair.run(0);
    }
    for name in names {
        rot(&pair, name, 50_000);
    }
    let run = pair.run(0);
    assert!(count(&run["counts"]["filesChangedWithoutTrace"]) <= first_is_read_always, "{run}");
    let run = json(
        pair.source(&["--json", "run", "--follow", "--full-read"]).stdout.lines().last().expect("a run"),
    );
    assert_eq!(
        run["changedWithoutTrace"],
        serde_json::json!(["held/pack", "last", "linked", "plain"]),
        "{run}"
    );
    rsync_finds_no_difference(&live, &pair.latest());
}

/// A file that is read first is read in each run, and what has rotted of it is told by the first that does.
#[test]
fn rot_of_a_file_that_is_read_first_is_told() {
    let tables = format!("[copy]\nfirst = [\"first\"]\n{}", crate::pair::LIST);
    let pair = Pair::with_profile_on(Kind::Xfs, &tables, "max_drop_percent = 100\n");
    fs::write(pair.root(0).join("first"), noise(7, COLD)).expect("write");
    for _ in 0..2 {
        pair.run(0);
    }
    rot(&pair, "first", 1);
    assert_eq!(pair.run(0)["changedWithoutTrace"], serde_json::json!(["first"]));
    assert!(pair.run(0)["changedWithoutTrace"].is_null());
}

/// Day by day: each run reads its share and no more, and says how old the oldest reading is; within the week the rot is found.
#[test]
fn rot_is_found_within_the_time_in_which_every_byte_is_read_and_no_run_reads_more_than_its_share() {
    const FILES: u64 = 35;
    let pair = Pair::on(Kind::Ext4, Kind::Ext4);
    for file in 0..FILES {
        fs::write(pair.root(0).join(format!("c{file:02}")), noise(file, COLD)).expect("write");
    }
    // It is rotten under each of its names.
    fs::hard_link(pair.root(0).join("c34"), pair.root(0).join("z-name")).expect("link");
    settle(&pair);
    rot(&pair, "c34", 99_999);
    let total = FILES * COLD as u64;
    for day in 1..=8 {
        pass(&pair, DAY, true);
        let before = read_bytes(&pair);
        let run = pair.run(0);
        let (again, all) = (count(&run["counts"]["bytesReread"]), count(&run["counts"]["bytesRead"]));
        if count(&run["counts"]["filesChangedWithoutTrace"]) == 1 {
            println!("found on day {day}");
            assert_eq!(run["changedWithoutTrace"], serde_json::json!(["c34"]), "{run}");
            rsync_finds_no_difference(&pair.root(0), &pair.latest());
            return;
        }
        // A file is read whole; beside that the agent reads what it remembers.
        let share = total / 7 + COLD as u64;
        assert!(
            again > 0 && again == all && again <= share,
            "day {day}: {again} of {all}, the share is {share}: {run}"
        );
        let by_kernel = read_bytes(&pair) - before;
        assert!(
            by_kernel <= share + 1_000_000,
            "day {day}: the process read {by_kernel} bytes, its share is {share}"
        );
        assert!(
            !run["sentence"].as_str().expect("text").contains("live repository was good at the mark"),
            "{run}"
        );
    }
    panic!("it is not found within the week");
}

/// What the source's process has read by any call, as the kernel counts.
fn read_bytes(pair: &Pair) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/io", pair.process("source"))).expect("io");
    let line = text.lines().find_map(|line| line.strip_prefix("rchar: ")).expect("a line");
    line.parse().expect("a number")
}

/// A run without a change opens no file of the tree but those that have their turn.
#[test]
fn a_run_without_a_change_opens_nothing() {
    let pair = Pair::plain(1);
    for file in 0..50 {
        fs::write(pair.root(0).join(format!("unchanged{file}")), noise(file, 10_000)).expect("write");
    }
    settle(&pair);
    let traced = pair.path("opened");
    let process = pair.process("source").to_string();
    let arguments = ["-f", "-qq", "-e", "trace=openat,openat2,open,read,pread64,preadv2,mmap", "-y", "-o"];
    let mut tracer = Command::new("strace")
        .args(arguments)
        .arg(&traced)
        .args(["-p", &process])
        .spawn()
        .expect("strace is installed by ./test");
    pair.eventually("strace is attached", || {
        let status = fs::read_to_string(format!("/proc/{process}/status")).expect("status");
        status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|pid| pid.trim() != "0"))
    });
    let run = pair.run(0);
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(i32::try_from(tracer.id()).expect("small")).expect("a process"),
        rustix::process::Signal::INT,
    )
    .expect("it runs");
    tracer.wait().expect("it ends");
    assert_eq!(count(&run["counts"]["filesRead"]), 0, "{run}");
    let text = String::from_utf8_lossy(&fs::read(&traced).expect("a trace")).into_owned();
    let opened: Vec<_> = text.lines().filter(|line| line.contains("unchanged")).collect();
    assert!(text.contains("root0") && opened.is_empty(), "{opened:?}");
}

/// The clock of the last run was two hours ahead of today's: no reading counts as later than it was, and what may be written at the
/// same time once more is read again.
#[test]
fn a_clock_that_was_set_back_is_told_and_nothing_counts_as_at_rest() {
    let pair = Pair::plain(1);
    for name in ["one", "two"] {
        fs::write(pair.root(0).join(name), noise(1, COLD)).expect("write");
    }
    settle(&pair);
    let hours = |count: i64| count * 3_600_000;
    let oldest = |run: &serde_json::Value| -> jiff::Timestamp {
        run["oldestReading"].as_str().and_then(|time| time.parse().ok()).unwrap_or_else(|| panic!("{run}"))
    };
    let before = oldest(&pair.run(0));
    pass(&pair, -hours(2), false);
    let run = pair.run(0);
    let warnings = run["warnings"].to_string();
    // Less than a second of the two hours has passed since, or a little more.
    let told =
        ["2 h", "119 min"].map(|by| format!("this host's clock was set back by {by} since the last run"));
    assert!(told.iter().any(|told| warnings.contains(told)), "{run}");
    let moved = before.duration_until(oldest(&run)).as_secs();
    assert!(moved.abs() <= 1, "what was read at {before} counts as read at {}", oldest(&run));
    println!("{warnings}");
    // A boot in between: nobody knows how far it was set back.
    settle(&pair);
    pass(&pair, -hours(3), false);
    let basis = pair.path("state/repo/basis/standing");
    let mut standing = json(&fs::read_to_string(&basis).expect("read"));
    standing["steady"]["boot"] = serde_json::json!(1);
    fs::write(&basis, standing.to_string()).expect("write");
    let run = pair.run(0);
    let warnings = run["warnings"].to_string();
    assert!(warnings.contains("the ages of all readings are unknown"), "{run}");
    assert_eq!(count(&run["counts"]["filesRead"]), 2, "they changed since the boot: {run}");
    settle(&pair);
    let run = pair.run(0);
    assert!(run["warnings"].is_null(), "{run}");
}

/// A file that changed in the future, by this host's clock, is read in every run, and that is said.
#[test]
fn a_file_that_changed_in_the_future_is_read_in_every_run() {
    let pair = Pair::on(Kind::Ext4, Kind::Ext4);
    for name in ["ahead", "other"] {
        fs::write(pair.root(0).join(name), noise(1, COLD)).expect("write");
    }
    settle(&pair);
    pair.remount(0, |image| {
        // In 2031.
        let done = Command::new("debugfs")
            .args(["-w", "-R", "set_inode_field /ahead ctime @1930000000"])
            .arg(image)
            .output()
            .expect("debugfs comes with mkfs.ext4");
        assert!(done.status.success(), "{done:?}");
    });
    for _ in 0..3 {
        let run = pair.run(0);
        let warnings = run["warnings"].to_string();
        assert!(
            warnings.contains("1 file changed in the future by this host's clock, for example ahead: "),
            "{run}"
        );
        assert!(count(&run["counts"]["filesRead"]) >= 1, "{run}");
        assert!(run["counts"]["filesUnstable"].is_null(), "a write of now would show: {run}");
    }
    let run = pair.run(0);
    assert_eq!(count(&run["counts"]["filesRead"]), 1, "{run}");
    // Written within the same second of the future, to the same length.
    File::options()
        .write(true)
        .open(pair.root(0).join("ahead"))
        .expect("open")
        .write_all_at(b"x", 5)
        .expect("write");
    pair.run(0);
    rsync_finds_no_difference(&pair.root(0), &pair.latest());
}

/// A rate that is too low for what there is, and a time that is over, are said: by the run, the plan and the doctor.
#[test]
fn a_share_that_cannot_be_read_in_time_is_told() {
    let pair = Pair::plain(1);
    fs::write(pair.root(0).join("file"), noise(1, 3_000_000)).expect("write");
    settle(&pair);
    pair.restart_with(
        "source",
        "profile = ",
        "reread_within = \"1s\"\nreread_mib_per_second = 1\nprofile = ",
    );
    let told = "reading all 3.0 MB again within 1 second takes 3.0 MB a second, and reread_mib_per_second allows 1.0 MB";
    let run = pair.run(0);
    assert!(run["warnings"].to_string().contains(told), "{run}");
    for command in ["plan", "doctor"] {
        let done = pair.source(&[command]);
        assert!(words(&done.stdout).contains(told), "{done:?}");
    }
    pair.restart_with(
        "source",
        "reread_within = \"1s\"\nreread_mib_per_second = 1\n",
        "reread_within = \"off\"\n",
    );
    let doctor = pair.source(&["doctor"]);
    assert!(words(&doctor.stdout).contains("unchanged files are not: reread_within is off"), "{doctor:?}");
}

/// Where reading a rotten block is an error, the run says so and copies nothing.
#[test]
fn btrfs_says_that_a_file_rotted() {
    let pair = Pair::on(Kind::Btrfs, Kind::Ext4);
    fs::write(pair.root(0).join("cold"), noise(7, COLD)).expect("write");
    settle(&pair);
    change_on_disk(&pair.path("root0.img"), &pair.root(0).join("cold"));
    assert_eq!(pair.run(0)["outcome"], "OUTCOME_PASS", "it has not its turn");
    let done = pair.source(&["--json", "run", "--follow", "--full-read"]);
    let run = json(done.stdout.lines().last().expect("a run"));
    assert_eq!((done.code, &run["reason"]), (4, &"read-failed".into()), "{run}");
    assert!(
        run["message"].as_str().is_some_and(|text| text.contains("cold: ") && text.contains("HINT: ")),
        "{run}"
    );
}

/// The same where the file system's checksum tells: what is read afterwards is an error.
fn change_on_disk(image: &Path, file: &Path) {
    // Random content stands once on the disk, or twice: both are changed.
    let needle = noise(7, 64);
    let disk = fs::read(image).expect("read");
    let places: Vec<_> =
        disk.windows(64).enumerate().filter(|(_, it)| *it == needle).map(|(at, _)| at as u64).collect();
    assert!(!places.is_empty(), "it is on the disk");
    let image = File::options().write(true).open(image).expect("open");
    for place in places {
        image.write_all_at(b"rotten", place).expect("write");
    }
    crate::file_systems::forget(file);
}
