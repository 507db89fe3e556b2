//! A control group for one step: where this host lets us have one, the kernel itself limits memory and processes, says
//! whether it had to, and knows every process of the step wherever it went.
//!
//! Version 2 is used where an ancestor of the agent's own group hands memory and pids down to its children (under systemd:
//! the slice of the agent's service), version 1 where its hierarchies are mounted. Nobody but the step is moved.
//!
//! A group is named `assay-check-PID-…` after the agent's process. [`sweep`] removes those whose agent is gone, with the
//! processes that are still in them.

use std::{
    ffi::OsStr,
    fs::{self, File},
    hash::{BuildHasher as _, Hasher as _, RandomState},
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal};

use super::limits::{Bounds, Limit};

const PREFIX: &str = "assay-check-";
/// Where control groups are mounted.
const MOUNT: &str = "/sys/fs/cgroup";
/// How long the kernel may take to let go of killed processes.
const GRACE: Duration = Duration::from_secs(10);

/// A control group. Dropped, it is removed with all that is in it.
#[derive(Debug)]
pub(super) struct Group {
    memory: PathBuf,
    /// The same folder as `memory` in version 2.
    pids: PathBuf,
    is_v2: bool,
}

/// Where groups can be made.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    V2(PathBuf),
    V1 { memory: PathBuf, pids: PathBuf },
}

impl Group {
    /// Makes a group with these limits, or says why there is none.
    pub(super) fn create(bounds: &Bounds) -> Result<Self, String> {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let place =
            place(Path::new(MOUNT), &own).ok_or("no control group hands memory and pids down to us")?;
        let random = RandomState::new().build_hasher().finish();
        let name = format!("{PREFIX}{}-{random:016x}", std::process::id());
        let group = match place {
            Place::V2(parent) => Self { memory: parent.join(&name), pids: parent.join(&name), is_v2: true },
            Place::V1 { memory, pids } => {
                Self { memory: memory.join(&name), pids: pids.join(&name), is_v2: false }
            }
        };
        group.fill(bounds).map_err(|error| format!("no control group can be made: {error}"))?;
        Ok(group)
    }

    fn fill(&self, bounds: &Bounds) -> io::Result<()> {
        let bytes = bounds.memory.to_string();
        fs::create_dir(&self.memory)?;
        if self.is_v2 {
            fs::write(self.memory.join("memory.max"), &bytes)?;
            // Without them some of the step is left, which its end takes with it, or it is slow and not limited.
            fs::write(self.memory.join("memory.oom.group"), "1").ok();
            fs::write(self.memory.join("memory.swap.max"), "0").ok();
        } else {
            fs::create_dir(&self.pids)?;
            fs::write(self.memory.join("memory.limit_in_bytes"), &bytes)?;
            // There only where swap is accounted for.
            fs::write(self.memory.join("memory.memsw.limit_in_bytes"), &bytes).ok();
        }
        fs::write(self.pids.join("pids.max"), bounds.processes.to_string())
    }

    /// The files by which a process enters, when it writes 0 to each.
    pub(super) fn entrances(&self) -> [PathBuf; 2] {
        let second = if self.is_v2 { PathBuf::from("/dev/null") } else { self.pids.join("cgroup.procs") };
        [self.memory.join("cgroup.procs"), second]
    }

    /// Which limit the kernel had to enforce, if any.
    pub(super) fn hit(&self) -> Option<Limit> {
        let memory = if self.is_v2 { "memory.events" } else { "memory.oom_control" };
        let count = |file: PathBuf, key: &str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            let of_key =
                |line: &str| line.split_once(' ').filter(|(name, _)| *name == key)?.1.parse::<u64>().ok();
            text.lines().find_map(of_key).unwrap_or(0)
        };
        if count(self.memory.join(memory), "oom_kill") > 0 {
            Some(Limit::Memory)
        } else if count(self.pids.join("pids.events"), "max") > 0 {
            Some(Limit::Processes)
        } else {
            None
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for folder in [&self.memory, &self.pids] {
            if let Err(error) = clear(folder) {
                tracing::warn!(folder = %folder.display(), %error, "a control group is left over");
            }
        }
    }
}

/// Kills what is in a group and removes it.
fn clear(folder: &Path) -> io::Result<()> {
    let patience = Instant::now() + GRACE;
    loop {
        let processes = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        for pid in processes.lines().filter_map(|it| it.parse().ok()).filter_map(Pid::from_raw) {
            // Held, and looked at again, so that the number cannot have passed to someone else.
            let Ok(held) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { continue };
            let still = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            if still.lines().any(|line| line.parse() == Ok(pid.as_raw_nonzero().get())) {
                rustix::process::pidfd_send_signal(&held, Signal::KILL).ok();
            }
        }
        match fs::remove_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < patience => {
                std::thread::park_timeout(Duration::from_millis(10));
            }
            done => return done,
        }
    }
}

/// Removes what agents left that are gone, with the processes in it. Says how many groups there were.
pub(crate) fn sweep() -> usize {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    match place(Path::new(MOUNT), &own) {
        Some(Place::V2(parent)) => sweep_below(&parent),
        Some(Place::V1 { memory, pids }) => sweep_below(&memory) + sweep_below(&pids),
        None => 0,
    }
}

fn sweep_below(parent: &Path) -> usize {
    let is_left = |name: &OsStr| {
        let agent = name.to_str()?.strip_prefix(PREFIX)?.split_once('-')?.0.parse::<u32>().ok()?;
        // A number that has passed to someone else only keeps an empty folder.
        (agent != std::process::id() && !Path::new("/proc").join(agent.to_string()).exists()).then_some(())
    };
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let left = entries.filter(|entry| is_left(&entry.file_name()).is_some());
    left.filter(|entry| clear(&entry.path()).is_ok()).count()
}

/// Where groups can be made, given the text of `/proc/self/cgroup`.
fn place(mount: &Path, own: &str) -> Option<Place> {
    let lines = || {
        own.lines().filter_map(|line| {
            let (_, rest) = line.split_once(':')?;
            rest.split_once(':')
        })
    };
    let below = |mount: PathBuf, path: &str| mount.join(path.trim_start_matches('/'));
    if let Some((_, path)) = lines().find(|(controllers, _)| controllers.is_empty()) {
        // Its own group holds the agent, and a group that holds processes hands nothing down.
        let own = below(mount.to_owned(), path);
        let handing = own.ancestors().take_while(|it| it.starts_with(mount)).find(|folder| {
            let down = fs::read_to_string(folder.join("cgroup.subtree_control")).unwrap_or_default();
            ["memory", "pids"].iter().all(|wanted| down.split_whitespace().any(|it| it == *wanted))
        });
        if let Some(folder) = handing.filter(|folder| is_writable(folder)) {
            return Some(Place::V2(folder.to_owned()));
        }
    }
    let v1 = |controller: &str| {
        let (_, path) = lines().find(|(controllers, _)| controllers.split(',').any(|it| it == controller))?;
        let folder = below(mount.join(controller), path);
        is_writable(&folder).then_some(folder)
    };
    Some(Place::V1 { memory: v1("memory")?, pids: v1("pids")? })
}

fn is_writable(folder: &Path) -> bool {
    let writable = |folder: &Path| {
        rustix::fs::access(folder, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).is_ok()
    };
    writable(folder) && File::open(folder.join("cgroup.procs")).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("has one")).expect("mkdir");
        fs::write(path, text).expect("write");
    }

    /// Under systemd the service's own group hands nothing down, and its slice does.
    #[test]
    fn a_group_is_made_beside_the_agents_own() {
        let mount = tempfile::tempdir().expect("temp");
        let own = "0::/system.slice/assay-target.service\n";
        assert_eq!(place(mount.path(), own), None);
        write(mount.path(), "system.slice/assay-target.service/cgroup.subtree_control", "");
        write(mount.path(), "system.slice/cgroup.subtree_control", "cpu memory pids\n");
        write(mount.path(), "system.slice/cgroup.procs", "");
        write(mount.path(), "cgroup.subtree_control", "memory pids\n");
        assert_eq!(place(mount.path(), own), Some(Place::V2(mount.path().join("system.slice"))));
        write(mount.path(), "system.slice/cgroup.subtree_control", "cpu memory\n");
        write(mount.path(), "cgroup.procs", "");
        assert_eq!(place(mount.path(), own), Some(Place::V2(mount.path().to_owned())));
    }

    #[test]
    fn version_1_is_used_where_version_2_hands_nothing_down() {
        let mount = tempfile::tempdir().expect("temp");
        let own = "8:pids:/\n4:cpu,memory:/a/b\n0::/\n";
        write(mount.path(), "cgroup.subtree_control", "hugetlb\n");
        write(mount.path(), "memory/a/b/cgroup.procs", "");
        assert_eq!(place(mount.path(), own), None, "both are needed");
        write(mount.path(), "pids/cgroup.procs", "");
        let memory = mount.path().join("memory/a/b");
        assert_eq!(place(mount.path(), own), Some(Place::V1 { memory, pids: mount.path().join("pids/") }));
    }

    #[test]
    fn what_the_kernel_had_to_do_is_read() {
        let folder = tempfile::tempdir().expect("temp");
        let at = folder.path().join("group");
        let group = Group { memory: at.clone(), pids: at.clone(), is_v2: true };
        group
            .fill(&Bounds { memory: 1 << 30, processes: 99, disk: None, disk_reserve: 0, output: 1 })
            .expect("filled");
        assert_eq!(fs::read_to_string(at.join("memory.max")).expect("read"), "1073741824");
        assert_eq!(fs::read_to_string(at.join("pids.max")).expect("read"), "99");
        assert_eq!(group.entrances(), [at.join("cgroup.procs"), "/dev/null".into()]);
        assert_eq!(group.hit(), None);
        write(&at, "memory.events", "low 0\nmax 7\noom 0\noom_kill 0\n");
        write(&at, "pids.events", "max 3\n");
        assert_eq!(group.hit(), Some(Limit::Processes));
        write(&at, "memory.events", "max 7\noom 1\noom_kill 1\n");
        assert_eq!(group.hit(), Some(Limit::Memory));
        fs::remove_dir_all(&at).expect("remove");
    }

    #[test]
    fn groups_of_agents_that_are_gone_are_swept() {
        let parent = tempfile::tempdir().expect("temp");
        let own = format!("{PREFIX}{}-1", std::process::id());
        for name in ["assay-check-999999999-1", own.as_str(), "other-999999999-1"] {
            fs::create_dir(parent.path().join(name)).expect("mkdir");
        }
        assert_eq!(sweep_below(parent.path()), 1);
        assert!(!parent.path().join("assay-check-999999999-1").exists());
        assert!(parent.path().join(own).exists());
    }
}
