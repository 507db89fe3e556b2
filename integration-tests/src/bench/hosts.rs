//! Two hosts out of one: half of the processors is the live host's, the other half the backup host's.
//!
//! What a copy costs the live host can only be told when the other host's work does not run on the live host's processors. What is
//! started inside [`on`] stays on the processors of its host, and so does all that it starts. Nor may the other host's writing keep the
//! live host's disk busy: the backup host has a [`Disk`] in memory. Memory and the kernel's own threads are still one.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Context as _, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::process::succeed;

/// The processors of both hosts: those that this process had at first.
static BOTH: OnceLock<CpuSet> = OnceLock::new();

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// Where the repository lives.
    Live,
    /// Where the copies go.
    Backup,
}

/// Does `work` on the processors of a host, from wherever this thread is. On a machine with one processor both hosts have that.
///
/// # Errors
///
/// When the kernel does not let this thread go there.
pub fn on<T>(host: Host, work: impl FnOnce() -> T) -> Result<T> {
    let before = sched_getaffinity(None).context("the processors of this thread")?;
    let host = part(BOTH.get_or_init(|| before), host);
    sched_setaffinity(None, &host).context("stay on some processors")?;
    let done = work();
    sched_setaffinity(None, &before).context("go back to where it was")?;
    Ok(done)
}

/// The processors of a host: the larger half is the live one's.
fn part(all: &CpuSet, host: Host) -> CpuSet {
    let processors: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|number| all.is_set(*number)).collect();
    let (live, backup) = processors.split_at(processors.len().div_ceil(2));
    let chosen = if host == Host::Live || backup.is_empty() { live } else { backup };
    let mut part = CpuSet::new();
    chosen.iter().for_each(|number| part.set(*number));
    part
}

/// A file system in memory, which goes away with this.
#[derive(Debug)]
pub struct Disk(PathBuf);

impl Disk {
    /// Mounts one on a new folder.
    ///
    /// # Errors
    ///
    /// When that is not permitted.
    pub fn mount(folder: &Path) -> Result<Self> {
        fs::create_dir(folder).with_context(|| folder.display().to_string())?;
        succeed(Command::new("mount").args(["-t", "tmpfs", "-o", "mode=711", "assay-bench"]).arg(folder))?;
        Ok(Self(folder.to_owned()))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // With namespaces of its own the driver takes it along when it ends.
        drop(succeed(Command::new("umount").arg("--lazy").arg(&self.0)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(numbers: &[usize]) -> CpuSet {
        let mut set = CpuSet::new();
        numbers.iter().for_each(|number| set.set(*number));
        set
    }

    #[test]
    fn every_processor_belongs_to_one_host() {
        let of = |numbers: &[usize], host| part(&set(numbers), host);
        assert_eq!(of(&[0, 1], Host::Live), set(&[0]));
        assert_eq!(of(&[0, 1], Host::Backup), set(&[1]));
        assert_eq!(of(&[1, 3, 6], Host::Live), set(&[1, 3]));
        assert_eq!(of(&[1, 3, 6], Host::Backup), set(&[6]));
        assert_eq!(of(&[5], Host::Live), of(&[5], Host::Backup), "there is only one");
    }

    #[test]
    fn what_is_started_stays_there_and_the_caller_comes_back() {
        let own = || sched_getaffinity(None).expect("affinity");
        let before = own();
        let (inside, inherited) =
            on(Host::Backup, || (own(), std::thread::spawn(own).join().expect("no panic")))
                .expect("permitted");
        assert_eq!((inside, inherited), (part(&before, Host::Backup), part(&before, Host::Backup)));
        assert_eq!(own(), before);
        let nested = on(Host::Live, || on(Host::Backup, own).expect("permitted")).expect("permitted");
        assert_eq!(nested, inside, "from the one to the other");
    }
}
