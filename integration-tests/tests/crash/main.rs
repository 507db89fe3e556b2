//! Agents that are killed at every named place and at any moment, disks that lose their power, fill up and fail, connections that
//! break: after each, a judge that knows only the formats holds the store against all that anybody had been told.
//!
//! `./test crash` takes a part of it, another seed each time that `ASSAY_CRASH_SEED` says so; `./test crash --long` all.

mod disk;
mod errors;
#[path = "../shows/file_systems.rs"]
#[allow(dead_code)]
mod file_systems;
mod judge;
mod kills;
mod leaks;
#[path = "../shows/link.rs"]
#[allow(dead_code, reason = "the other suites use the rest of it")]
mod link;
mod network;
mod oom;
#[path = "../shows/pair.rs"]
#[allow(dead_code, reason = "the other suites use the rest of it")]
mod pair;
mod panics;
mod rig;
mod starve;
mod table;

/// Bytes that look random and are the same on every run.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// True for `./test crash --long`.
fn long() -> bool {
    std::env::var_os("ASSAY_CRASH_LONG").is_some_and(|value| value == "1")
}

/// What the dice of this run start from. Printed, so that what was seen once can be seen again.
fn seed() -> u64 {
    std::env::var("ASSAY_CRASH_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_123)
}
