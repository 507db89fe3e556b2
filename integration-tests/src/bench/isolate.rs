//! The driver in namespaces of its own.
//!
//! With a network of its own nothing else counts as bytes on the wire. With process numbers of its own, the kernel
//! ends every process that the benchmark has started when the driver ends, however that happens. What mounts the
//! agents make go the same way.

use std::{
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process_group};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

const UNSHARE: [&str; 7] =
    ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"];

/// Whether this process may have namespaces of its own.
pub fn is_permitted() -> bool {
    let tried = Command::new(UNSHARE[0])
        .args(&UNSHARE[1..])
        .args(["ip", "link", "set", "lo", "up"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    tried.is_ok_and(|status| status.success())
}

/// How the inner driver ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this exit code.
    Code(i32),
    /// A signal told this process to end, and it was ended for that.
    Signal(i32),
}

/// Runs a program with these arguments, in namespaces of its own where that is permitted, until it ends or this
/// process is told to.
///
/// # Errors
///
/// When it cannot be started.
pub fn run(isolated: bool, program: &std::path::Path, arguments: &[std::ffi::OsString]) -> Result<Ended> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("signals")?;
    let mut command = if isolated {
        let mut command = Command::new(UNSHARE[0]);
        command.args(&UNSHARE[1..]).arg(program);
        command
    } else {
        Command::new(program)
    };
    // A group of its own: Ctrl-C comes to this process alone, which then ends the group.
    let mut child = command.args(arguments).process_group(0).spawn().context("unshare does not start")?;
    let group = Pid::from_child(&child);
    let told = Arc::new(AtomicI32::new(0));
    let handle = signals.handle();
    let watcher = std::thread::spawn({
        let told = Arc::clone(&told);
        move || {
            for signal in signals.forever() {
                told.store(signal, Ordering::SeqCst);
                // It may have ended in the meantime: then there is nothing to do.
                kill_process_group(group, Signal::KILL).ok();
            }
        }
    });
    let status = child.wait().context("wait for the driver")?;
    handle.close();
    watcher.join().ok();
    match told.load(Ordering::SeqCst) {
        0 => Ok(Ended::Code(status.code().unwrap_or(1))),
        signal => Ok(Ended::Signal(signal)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_passed_on() {
        let ended = run(false, std::path::Path::new("sh"), &["-c".into(), "exit 7".into()]).expect("runs");
        assert_eq!(ended, Ended::Code(7));
    }
}
