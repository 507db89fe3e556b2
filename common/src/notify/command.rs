//! A command of the operator's: its arguments as they stand, never a shell; the notice as JSON on its standard input.

use std::{
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{ChildStderr, ChildStdin, Command},
};

use crate::outbox::DeliveryError;

/// What is kept of the command's errors, in bytes.
const ERRORS_BYTES: usize = 2048;
/// How long its errors are read after the command has ended: they are in the pipe, unless a process that it left behind has it too.
const AFTERWARDS: Duration = Duration::from_millis(200);

/// Kills the command with all that it started, unless it has ended.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // It fails when nothing of it is left.
            kill_process_group(pid, Signal::KILL).ok();
        }
    }
}

/// Runs it to its end. When this is dropped half-way (its time is up), everything that it started is killed.
pub(super) async fn tell(argv: &[String], json: &str) -> Result<(), DeliveryError> {
    let (program, arguments) = argv.split_first().ok_or_else(|| DeliveryError::lasting("argv is empty"))?;
    let spawned = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn();
    let mut child = spawned.map_err(|error| DeliveryError::lasting(format!("{program}: {error}")))?;
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
    let errors = Arc::new(Mutex::new(Vec::new()));
    let mut talk = std::pin::pin!(talk(
        child.stdin.take(),
        child.stderr.take(),
        json.as_bytes().to_vec(),
        Arc::clone(&errors)
    ));
    // The command's own end counts. A process that it left behind may hold the pipes for as long as it lives.
    let status = tokio::select! {
        status = child.wait() => {
            // What the command has written is in the pipe by now.
            tokio::time::timeout(AFTERWARDS, &mut talk).await.ok();
            status
        }
        () = &mut talk => child.wait().await,
    };
    let status = status.map_err(|error| DeliveryError::transient(format!("{program}: {error}")))?;
    // Reaped: its number may be another's now.
    group.0 = None;
    if status.success() {
        return Ok(());
    }
    let errors = errors.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Err(DeliveryError::transient(format!("{program}: {status}{}", first_line(&errors))))
}

/// Writes the notice and reads the command's errors, side by side: neither may wait for the other.
async fn talk(
    stdin: Option<ChildStdin>,
    stderr: Option<ChildStderr>,
    json: Vec<u8>,
    errors: Arc<Mutex<Vec<u8>>>,
) {
    let write = async move {
        if let Some(mut stdin) = stdin {
            // A command that does not read is no error.
            drop(stdin.write_all(&json).await);
        }
    };
    let read = async move {
        let Some(mut stderr) = stderr else { return };
        let mut block = [0; 1024];
        while let Ok(bytes @ 1..) = stderr.read(&mut block).await {
            let mut errors = errors.lock().unwrap_or_else(PoisonError::into_inner);
            // The rest is read and forgotten, so that the command does not wait for a reader.
            let room = ERRORS_BYTES.saturating_sub(errors.len());
            errors.extend_from_slice(&block[..bytes.min(room)]);
        }
    };
    tokio::join!(write, read);
}

fn first_line(errors: &[u8]) -> String {
    match errors.split(|byte| *byte == b'\n').find(|line| !line.is_empty()) {
        Some(line) => format!(": {}", crate::path::display_bytes(line)),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Vec<String> {
        ["/bin/sh", "-c", script].map(str::to_owned).to_vec()
    }

    /// What a command leaves behind does not count: its own exit code does. Without that the call would not end here.
    #[tokio::test]
    async fn a_command_that_leaves_a_process_behind_has_ended() {
        let left_behind = shell("sleep 600 & echo $! >&2; exit 0");
        assert!(tell(&left_behind, "{}").await.is_ok());
        let error = tell(&shell("sleep 600 & echo $! >&2; exit 3"), "{}").await.expect_err("it failed");
        assert!(error.transient && error.message.contains("exit status: 3"), "{error}");
        let pid: i32 = error.message.rsplit(' ').next().expect("its number").parse().expect("a number");
        kill_process_group(rustix::process::Pid::from_raw(pid).expect("a process"), Signal::KILL).ok();
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).expect("a process"), Signal::KILL)
            .expect("it is left alone");
    }

    #[tokio::test]
    async fn a_command_that_ends_by_a_signal_is_tried_again() {
        for (signal, name) in [("KILL", "SIGKILL"), ("TERM", "SIGTERM"), ("SEGV", "SIGSEGV")] {
            let error = tell(&shell(&format!("kill -{signal} $$")), "{}").await.expect_err("it failed");
            assert!(error.transient && error.message.contains(name), "{error}");
        }
    }

    #[tokio::test]
    async fn a_command_that_neither_reads_nor_is_short_of_words_is_heard() {
        let talks = shell("head -c 300000 /dev/zero | tr '\\0' x >&2; exit 1");
        let error = tell(&talks, &"x".repeat(300_000)).await.expect_err("it failed");
        assert!(error.message.contains("exit status: 1") && error.message.len() < 4096, "{error}");
    }
}
