//! Processes that a check has left: found by the mark in their environment, or by what they use of a workspace, and killed.

use std::{
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    process::{Pid, PidfdFlags, Signal},
};

/// Marks the processes of a step that has no PID namespace, so that stragglers can be found.
pub(crate) const MARKER: &str = "ASSAY_CHECK_STEP";

/// Kills what steps without a PID namespace left in the workspaces of `directory`, which nobody else uses.
pub(crate) fn kill_left(directory: &Path) {
    let prefix = [directory.as_os_str().as_bytes(), b"/"].concat();
    kill_all(|pid| is_marked(pid, |found| found.starts_with(&prefix)) || uses(pid, &prefix));
}

/// Kills what a step without a PID namespace left, wherever it moved: found by the environment that it
/// inherited.
pub(crate) fn kill_marked(is_wanted: impl Fn(&[u8]) -> bool) {
    kill_all(|pid| is_marked(pid, &is_wanted));
}

fn is_marked(pid: Pid, is_wanted: impl Fn(&[u8]) -> bool) -> bool {
    let name = [MARKER.as_bytes(), b"="].concat();
    let environment = fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|entry| entry.strip_prefix(&name[..]).is_some_and(&is_wanted))
}

/// Whether a process is in a folder with this prefix, runs a program of it, or has a file of it open. Not for somebody who looks
/// around in it: what a check left has no terminal.
fn uses(pid: Pid, prefix: &[u8]) -> bool {
    let folder = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
    let stat = fs::read_to_string(folder.join("stat")).unwrap_or_default();
    // After the program's name, which may hold anything: state, parent, group, session, terminal.
    let terminal = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(4));
    if terminal != Some("0") || pid == rustix::process::getpid() {
        return false;
    }
    let own = ["cwd", "root", "exe"].map(|name| folder.join(name));
    let open = fs::read_dir(folder.join("fd")).into_iter().flatten().flatten().map(|entry| entry.path());
    let below =
        |link: PathBuf| fs::read_link(link).is_ok_and(|it| it.as_os_str().as_bytes().starts_with(prefix));
    own.into_iter().chain(open).any(below)
}

fn kill_all(is_wanted: impl Fn(Pid) -> bool) {
    // A straggler that forks while it is looked for is found in the next round.
    for _ in 0..10 {
        let mut killed = 0;
        let Ok(entries) = fs::read_dir("/proc") else {
            return;
        };
        for entry in entries.flatten() {
            let number =
                entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
            let Some(pid) = number.filter(|pid| is_wanted(*pid)) else {
                continue;
            };
            // Held first and looked at again, so that the number cannot have passed to someone else.
            if let Ok(held) = rustix::process::pidfd_open(pid, PidfdFlags::empty())
                && is_wanted(pid)
            {
                killed += 1;
                let _ = rustix::process::pidfd_send_signal(&held, Signal::KILL);
                let grace = Timespec { tv_sec: 2, tv_nsec: 0 };
                let _ = rustix::event::poll(&mut [PollFd::new(&held, PollFlags::IN)], Some(&grace));
            }
        }
        if killed == 0 {
            return;
        }
    }
}
