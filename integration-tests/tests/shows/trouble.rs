//! Trouble in the middle of a run: files that change under the reader, a peer that stops reading, a disk that fills.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::pair::{Pair, json, rsync_finds_no_difference};

/// What the stand-still half of the tree has.
const STILL_FILES: u64 = 40;

/// Grows, shrinks, replaces, renames and removes files until it is told to stop. The first folder is not touched.
fn churn(folder: &Path, stop: &AtomicBool) -> u64 {
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) {
        let path = |kind: &str| folder.join(format!("{kind}{}", rounds % 7));
        let bytes = crate::noise(rounds, 20_000 + (rounds as usize * 7919) % 200_000);
        if fs::metadata(path("grows")).is_ok_and(|grown| grown.len() > 2_000_000) {
            fs::remove_file(path("grows")).expect("remove");
        }
        let append = File::options().append(true).create(true).open(path("grows"));
        append.and_then(|mut file| file.write_all(&bytes)).expect("append");
        let shrinks = File::create(path("shrinks")).expect("create");
        shrinks
            .set_len(bytes.len() as u64)
            .and_then(|()| shrinks.set_len(bytes.len() as u64 / 3))
            .expect("cut");
        fs::write(folder.join("new"), &bytes).expect("write");
        fs::rename(folder.join("new"), path("replaced")).expect("rename");
        fs::write(path("vanishes"), &bytes).expect("write");
        fs::remove_file(path("vanishes")).expect("remove");
        fs::remove_file(path("link")).ok();
        symlink("replaced0", path("link")).expect("link");
        rounds += 1;
    }
    rounds
}

/// Whatever happens to files while they are read, what is sealed is whole: every file is as its digest says, and what stood
/// still is as it is at the source.
#[test]
fn what_changes_while_it_is_read_is_sealed_whole_or_not_at_all() {
    let pair = Pair::plain(2);
    let (still, busy) = (pair.root(0), pair.root(1));
    for file in 0..STILL_FILES {
        fs::write(still.join(format!("still{file}")), crate::noise(file, 100_000)).expect("write");
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| churn(&busy, &stop));
        for _ in 0..6 {
            let run = pair.run(0);
            let generation = pair.latest();
            let generation = generation.parent().expect("it has one");
            let sums = Command::new("b3sum")
                .args(["--check", "--quiet", "manifest.b3"])
                .current_dir(generation)
                .output()
                .expect("b3sum is installed by ./test");
            assert!(sums.status.success(), "{run}\n{}", String::from_utf8_lossy(&sums.stdout));
        }
        stop.store(true, Ordering::Relaxed);
        println!("{} rounds of changes", writer.join().expect("no panic"));
    });
    pair.run(0);
    let copy = |root: usize| pair.latest().join(format!("root{root}"));
    rsync_finds_no_difference(&still, &copy(0));
    rsync_finds_no_difference(&busy, &copy(1));
}

/// The most memory that an agent has had, in bytes.
fn peak_bytes(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// A target that takes nothing any more: the source holds what its budget allows and no more, and a cancelled run ends.
#[test]
fn a_peer_that_stops_reading_costs_no_memory() {
    let pair = Pair::plain(1);
    pair.restart_with("source", "state = \"state\"", "state = \"state\"\nmemory_mib = 8");
    fs::write(pair.root(0).join("first"), "first").expect("write");
    assert_eq!(pair.source(&["run", "--follow"]).code, 0);
    let before = peak_bytes(pair.process("source"));
    for file in 0..40 {
        fs::write(pair.root(0).join(format!("large{file}")), crate::noise(file, 5_000_000)).expect("write");
    }
    pair.link().hold_after(10_000_000);
    let started = pair.source(&["--json", "run"]);
    assert_eq!(started.code, 0, "{started:?}");
    pair.link().wait_until_held();
    let id = json(started.stdout.lines().next().expect("a line"))["id"].as_str().expect("an id").to_owned();
    let cancelled = pair.source(&["cancel", &id]);
    assert_eq!(cancelled.code, 0, "{cancelled:?}");
    let ended = pair.source(&["--json", "watch"]);
    assert_eq!(ended.code, 4, "{ended:?}");
    let peak = peak_bytes(pair.process("source"));
    println!("{before} bytes at most before, {peak} with 200 MB to send and nobody to take them");
    // Beside the budget: what the connection holds, and a block and a pack for each thread.
    assert!(peak < before + (96 << 20), "{before} bytes, then {peak}");
    pair.link().go_on();
    // Until what was held has arrived, the target takes the run that was given up for one that goes on.
    pair.eventually("the next run passes", || {
        let done = pair.source(&["--json", "run", "--follow"]);
        assert!(done.code == 0 || done.stdout.contains("target-busy"), "{done:?}");
        done.code == 0
    });
    rsync_finds_no_difference(&pair.root(0), &pair.latest());
}

/// A small file system, unmounted with the test.
pub(crate) struct SmallDisk(PathBuf);

impl SmallDisk {
    pub(crate) fn mount(at: &Path, mebibytes: u32) -> Self {
        fs::create_dir_all(at).expect("mkdir");
        let options = format!("size={mebibytes}m");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "assay-test"]).arg(at).status();
        assert!(done.expect("mount is there").success(), "the tests need root to mount a small disk");
        Self(at.to_owned())
    }

    fn grow(&self, mebibytes: u32) {
        let options = format!("remount,size={mebibytes}m");
        let done = Command::new("mount").args(["-o", &options]).arg(&self.0).status();
        assert!(done.expect("mount is there").success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: an agent that is being ended may still be in it.
        drop(Command::new("umount").arg("--lazy").arg(&self.0).status());
    }
}

/// The target's disk is full in the middle of a file: nothing is sealed, what was verified stays, and when there is room
/// the next run sends the rest only.
#[test]
fn a_disk_that_fills_in_the_middle_of_a_file_loses_nothing() {
    let pair = Pair::plain(1);
    pair.kill("target");
    let disk = SmallDisk::mount(&pair.path("small"), 40);
    pair.configure("target", "store = \"store\"", "store = \"small/store\"");
    // A check leaves more room than that by default.
    pair.configure(
        "target",
        "source = \"source\"",
        "source = \"source\"\nreserve = \"0B\"\nlimits = { disk_reserve = \"1MiB\" }",
    );
    pair.start("target");
    fs::write(pair.root(0).join("first"), crate::noise(1, 5_000_000)).expect("write");
    pair.run(0);
    let proven = fs::read_link(pair.path("small/store/repo/verified")).expect("a verified generation");
    let large = 60_000_000;
    fs::write(pair.root(0).join("large"), crate::noise(2, large)).expect("write");
    let run = pair.run(4);
    assert_eq!(run["reason"], "target-full", "{run}");
    assert!(run["message"].as_str().is_some_and(|text| text.contains("free some space")), "{run}");
    assert_eq!(fs::read_link(pair.path("small/store/repo/latest")).expect("latest"), proven);
    assert_eq!(fs::read_link(pair.path("small/store/repo/verified")).expect("verified"), proven);
    disk.grow(400);
    let before = pair.link().bytes();
    pair.run(0);
    let sent = pair.link().bytes() - before;
    println!("{large} bytes of content, {sent} sent when there was room again");
    assert!(sent < large as u64 - 10_000_000, "what had arrived was sent again: {sent}");
    rsync_finds_no_difference(&pair.root(0), &pair.path("small/store/repo/latest/tree"));
    pair.kill("target");
}
