//! A command of the operator's: its arguments as they stand, never a shell; the notice as JSON on its standard input.

use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
};

use crate::outbox::DeliveryError;

/// What is kept of the command's errors, in bytes.
const ERRORS_BYTES: u64 = 2048;

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
    let errors = talk(&mut child, json).await;
    let status =
        child.wait().await.map_err(|error| DeliveryError::transient(format!("{program}: {error}")))?;
    // Reaped: its number may be another's now.
    group.0 = None;
    if status.success() {
        return Ok(());
    }
    Err(DeliveryError::transient(format!("{program}: {status}{}", first_line(&errors))))
}

/// Writes the notice and reads what the command says of errors, side by side: neither may wait for the other.
async fn talk(child: &mut Child, json: &str) -> Vec<u8> {
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let write = async move {
        if let Some(mut stdin) = stdin {
            // A command that does not read is no error.
            drop(stdin.write_all(json.as_bytes()).await);
        }
    };
    let read = async move {
        let mut errors = Vec::new();
        if let Some(stderr) = stderr {
            let mut stderr = stderr;
            drop((&mut stderr).take(ERRORS_BYTES).read_to_end(&mut errors).await);
            // The rest is read and forgotten, so that it does not wait for a reader.
            drop(tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await);
        }
        errors
    };
    tokio::join!(write, read).1
}

fn first_line(errors: &[u8]) -> String {
    match errors.split(|byte| *byte == b'\n').find(|line| !line.is_empty()) {
        Some(line) => format!(": {}", crate::path::display_bytes(line)),
        None => String::new(),
    }
}
