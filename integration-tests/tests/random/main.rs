//! Random work on live trees, on every kind of file system, in both roles: after each round the newest generation is the tree, and
//! rsync is the referee.
//!
//! A series of rounds has a seed, a pair of agents and file systems of its own: the same seed does the same work on the live tree.
//! `./test random` takes a few rounds on each file system, `./test random --long` ten thousand. `ASSAY_RANDOM_SEED=N ./test random`
//! repeats the series with that seed, and nothing else.

mod edits;
#[path = "../shows/file_systems.rs"]
#[allow(dead_code)]
mod file_systems;
#[path = "../shows/link.rs"]
#[allow(dead_code, reason = "the other suites use the rest of it")]
mod link;
mod mapped;
mod meanwhile;
#[path = "../shows/nasty.rs"]
#[allow(dead_code, reason = "the other suites use the rest of it")]
mod nasty;
#[path = "../shows/pair.rs"]
#[allow(dead_code, reason = "the other suites use the rest of it")]
mod pair;
mod series;

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use file_systems::Kind;

/// The live tree's file system and the store's. The seed of a series chooses one.
const PLACES: [(Kind, Kind); 6] = [
    (Kind::Ext4, Kind::Btrfs),
    (Kind::Ext4Small, Kind::Ext4Small),
    (Kind::Xfs, Kind::Xfs),
    (Kind::Btrfs, Kind::Ext4),
    (Kind::Tmpfs, Kind::Tmpfs),
    (Kind::Ext4, Kind::Xfs),
];
/// Seeds of the short mode begin here: one for each of [`PLACES`].
const FIRST_SEED: u64 = 20_261_130;
/// Rounds of a series in the short mode.
const FEW_ROUNDS: u64 = 3;
/// Rounds of a series in the long mode, and where a seed is repeated.
const MANY_ROUNDS: u64 = 50;
/// Rounds of the long mode in all.
const LONG_ROUNDS: u64 = 10_000;
/// Series that run side by side in the long mode: some of them wait for the clock.
const LANES: u64 = 6;

/// Bytes that look random and are the same on every run.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn is_long() -> bool {
    std::env::var_os("ASSAY_RANDOM_LONG").is_some_and(|value| value == "1")
}

/// The series of the short mode on one of [`PLACES`].
fn few(place: u64) {
    if number("ASSAY_RANDOM_SEED").is_none() && !is_long() {
        let places = PLACES.len() as u64;
        let seed = (FIRST_SEED..).find(|seed| seed % places == place).expect("a seed");
        series::run(seed, FEW_ROUNDS);
    }
}

#[test]
fn ext4_to_btrfs() {
    few(0);
}

#[test]
fn ext4_with_whole_seconds() {
    few(1);
}

#[test]
fn xfs() {
    few(2);
}

#[test]
fn btrfs_to_ext4() {
    few(3);
}

#[test]
fn tmpfs() {
    few(4);
}

#[test]
fn ext4_to_xfs() {
    few(5);
}

/// The series with a seed that was printed; nothing where none is asked for.
#[test]
fn one_seed_again() {
    if let Some(seed) = number("ASSAY_RANDOM_SEED") {
        series::run(seed, number("ASSAY_RANDOM_ROUNDS").unwrap_or(MANY_ROUNDS));
    }
}

/// Ten thousand rounds, or as many as `ASSAY_RANDOM_ROUNDS` says; `ASSAY_RANDOM_MINUTES` ends them earlier.
#[test]
fn many_rounds() {
    if !is_long() || number("ASSAY_RANDOM_SEED").is_some() {
        return;
    }
    let rounds = number("ASSAY_RANDOM_ROUNDS").unwrap_or(LONG_ROUNDS);
    let end =
        number("ASSAY_RANDOM_MINUTES").map(|minutes| Instant::now() + Duration::from_secs(minutes * 60));
    let first = number("ASSAY_RANDOM_FIRST_SEED").unwrap_or(FIRST_SEED);
    let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| {
                loop {
                    let series = next.fetch_add(1, Ordering::Relaxed);
                    if series * MANY_ROUNDS >= rounds || end.is_some_and(|end| Instant::now() > end) {
                        return;
                    }
                    let seed = first + series;
                    match std::panic::catch_unwind(|| series::run(seed, MANY_ROUNDS)) {
                        Ok(()) => {
                            let done = done.fetch_add(MANY_ROUNDS, Ordering::Relaxed) + MANY_ROUNDS;
                            println!("{done} rounds");
                        }
                        Err(_) => failed.lock().expect("no panic here").push(seed),
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("no panic here");
    println!(
        "{} rounds ended, and nothing differed; seeds of series that failed: {failed:?}",
        done.into_inner()
    );
    assert!(failed.is_empty(), "ASSAY_RANDOM_SEED=N ./test random repeats one of {failed:?}");
}
