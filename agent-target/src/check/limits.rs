//! What a step may use, and the eye that is kept on it while it runs.
//!
//! Memory and processes are limited by a control group where there is one (see [`cgroup`](super::cgroup)); elsewhere the
//! processes of the sandbox are counted every now and then. The disk is always watched: how much the workspace has grown,
//! and what is left of its file system, because a checker that finds no room may well call that damage.
//!
//! A limit that was reached is the end of the step, and INCONCLUSIVE whatever the step said.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use assay_common::profile::Limits;
use rustix::process::Pid;

use super::cgroup::Group;

const DEFAULT_PROCESSES: u32 = 4096;
const DEFAULT_DISK_RESERVE: u64 = 64 << 20;
/// More than any check says that somebody could read, and searched in seconds.
const DEFAULT_OUTPUT: u64 = 512 << 20;
/// How often the processes of a sandbox without a control group are counted.
const COUNT_EVERY: Duration = Duration::from_millis(100);
/// How often the workspace is measured at most. Measuring a large one takes a twentieth of the time at most.
const MEASURE_EVERY: Duration = Duration::from_millis(200);
const MEASURE_SHARE: u32 = 20;

/// A limit that a step can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    Memory,
    Processes,
    Disk,
    DiskReserve,
    Output,
}

impl Limit {
    /// The reason for the verdict.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Memory => "memory-limit",
            Self::Processes => "process-limit",
            Self::Disk => "disk-limit",
            Self::DiskReserve => "disk-full",
            Self::Output => "output-limit",
        }
    }

    /// What happened, and what the operator may do.
    pub(super) fn message(self, bounds: &Bounds) -> String {
        match self {
            Self::Memory => {
                format!("it used more than {} of memory: raise limits.memory", size(bounds.memory))
            }
            Self::Processes => {
                format!("it made more than {} processes: raise limits.processes", bounds.processes)
            }
            Self::Disk => {
                let disk = size(bounds.disk.unwrap_or_default());
                format!("its workspace grew by more than {disk}: raise limits.disk")
            }
            Self::Output => {
                format!("it printed more than {}: raise limits.output", size(bounds.output))
            }
            Self::DiskReserve => {
                let reserve = size(bounds.disk_reserve);
                format!(
                    "the file system of the store has less than {reserve} left: make room, or lower limits.disk_reserve"
                )
            }
        }
    }
}

fn size(bytes: u64) -> assay_common::config::Size {
    assay_common::config::Size(bytes)
}

/// The limits of a step, all decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Bytes.
    pub(super) memory: u64,
    pub(super) processes: u32,
    /// Bytes by which the workspace may grow.
    pub(super) disk: Option<u64>,
    /// Bytes that stay free.
    pub(super) disk_reserve: u64,
    /// Bytes on both streams together.
    pub(super) output: u64,
}

impl Bounds {
    pub(super) fn of(limits: &Limits) -> Self {
        let host = rustix::system::sysinfo();
        let memory = u64::from(host.mem_unit).saturating_mul(host.totalram) / 4 * 3;
        Self {
            memory: limits.memory.map_or(memory.max(Limits::MIN_MEMORY.0), |it| it.0),
            processes: limits.processes.unwrap_or(DEFAULT_PROCESSES),
            disk: limits.disk.map(|it| it.0),
            disk_reserve: disk_reserve(limits),
            output: limits.output.map_or(DEFAULT_OUTPUT, |it| it.0),
        }
    }
}

/// Bytes that a check leaves free.
pub fn disk_reserve(limits: &Limits) -> u64 {
    limits.disk_reserve.map_or(DEFAULT_DISK_RESERVE, |it| it.0)
}

/// Keeps an eye on a step.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) bounds: Bounds,
    /// The hard limits; nothing where this host has none.
    pub(super) group: Option<Group>,
    /// Everything that the step can write to on the disk.
    folders: Vec<PathBuf>,
    /// What was in them before the first step.
    before: u64,
    counted: Option<Instant>,
    measured: Option<(Instant, Duration)>,
}

impl Watch {
    pub(super) fn new(bounds: Bounds, group: Option<Group>, folders: Vec<PathBuf>, before: u64) -> Self {
        Self { bounds, group, folders, before, counted: None, measured: None }
    }

    /// Looks whether a limit is reached. `init` is the first process of the step's PID namespace.
    pub(super) fn look(&mut self, init: Option<Pid>) -> Option<Limit> {
        let of_group = self.group.as_ref().and_then(Group::hit);
        of_group.or_else(|| self.count(init)).or_else(|| self.room()).or_else(|| self.measure(false))
    }

    /// The last look, after the step's end: what it did since the one before counts as well.
    pub(super) fn last_look(&mut self) -> Option<Limit> {
        let of_group = self.group.as_ref().and_then(Group::hit);
        of_group.or_else(|| self.room()).or_else(|| self.measure(true))
    }

    fn room(&self) -> Option<Limit> {
        let stat = rustix::fs::statvfs(self.folders.first()?).ok()?;
        (stat.f_bavail.saturating_mul(stat.f_frsize) < self.bounds.disk_reserve).then_some(Limit::DiskReserve)
    }

    fn measure(&mut self, now: bool) -> Option<Limit> {
        let most = self.bounds.disk?;
        let due = self.measured.is_none_or(|(at, pause)| at.elapsed() >= pause);
        if !due && !now {
            return None;
        }
        let begun = Instant::now();
        let used = measure(&self.folders);
        self.measured = Some((Instant::now(), (begun.elapsed() * MEASURE_SHARE).max(MEASURE_EVERY)));
        (used.saturating_sub(self.before) > most).then_some(Limit::Disk)
    }

    fn count(&mut self, init: Option<Pid>) -> Option<Limit> {
        let init = init.filter(|_| self.group.is_none())?;
        if self.counted.is_some_and(|at| at.elapsed() < COUNT_EVERY) {
            return None;
        }
        self.counted = Some(Instant::now());
        let (processes, bytes) = usage(init)?;
        if bytes > self.bounds.memory {
            Some(Limit::Memory)
        } else {
            (processes > u64::from(self.bounds.processes)).then_some(Limit::Processes)
        }
    }
}

/// Bytes on the disk below these folders. What cannot be read is not counted.
pub(super) fn measure(folders: &[PathBuf]) -> u64 {
    let mut bytes = 0;
    let mut left = folders.to_vec();
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(stat) = entry.metadata() else { continue };
            bytes += stat.blocks() * 512;
            if stat.is_dir() {
                left.push(entry.path());
            }
        }
    }
    bytes
}

/// Threads and memory of a PID namespace, by its first process: what its processes have for themselves, and what is in the
/// file systems in memory that the sandbox made for them.
fn usage(init: Pid) -> Option<(u64, u64)> {
    let folder = PathBuf::from(format!("/proc/{}", init.as_raw_nonzero()));
    let namespace = fs::read_link(folder.join("ns/pid")).ok()?;
    if fs::read_link("/proc/self/ns/pid").is_ok_and(|own| own == namespace) {
        return None;
    }
    let page = rustix::param::page_size() as u64;
    let (mut threads, mut bytes) = (0, 0);
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        if fs::read_link(entry.path().join("ns/pid")).is_ok_and(|it| it == namespace) {
            // The number of links of the folder of threads is theirs and two.
            threads +=
                fs::metadata(entry.path().join("task")).map_or(1, |stat| stat.nlink().saturating_sub(2));
            bytes += own_pages(&entry.path()).unwrap_or(0) * page;
        }
    }
    Some((threads, bytes + in_memory(&folder.join("root"))))
}

/// Bytes in the file systems in memory of a sandbox with this root. Until its first process has entered its own root, it
/// sees the host's, whose disk is nothing that the check has used.
fn in_memory(root: &Path) -> u64 {
    let mut bytes = 0;
    for mounted in ["tmp", "var/tmp", "run", "dev/shm"] {
        let place = root.join(mounted);
        let Ok(there) = rustix::fs::stat(&place) else { continue };
        if rustix::fs::stat(Path::new("/").join(mounted)).is_ok_and(|own| own.st_dev == there.st_dev) {
            continue;
        }
        if let Ok(stat) = rustix::fs::statvfs(&place) {
            bytes += stat.f_blocks.saturating_sub(stat.f_bfree) * stat.f_frsize;
        }
    }
    bytes
}

/// Resident pages that are not shared.
fn own_pages(process: &Path) -> Option<u64> {
    let text = fs::read_to_string(process.join("statm")).ok()?;
    let mut fields = text.split(' ').skip(1).map(str::parse::<u64>);
    let (resident, shared) = (fields.next()?.ok()?, fields.next()?.ok()?);
    Some(resident.saturating_sub(shared))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_disk_is_not_memory_of_a_check_that_has_not_entered_its_root() {
        let used = rustix::fs::statvfs("/tmp").map(|stat| stat.f_blocks.saturating_sub(stat.f_bfree));
        assert!(
            used.expect("there is one") > 0,
            "the host's /tmp is on an empty file system: nothing is shown"
        );
        assert_eq!(in_memory(Path::new("/proc/self/root")), 0);
    }
}
