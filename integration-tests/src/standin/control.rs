//! `acserverctl`: starts, stops and pauses the server. The real one is a shell script.

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::database::Database;
use super::layout::{HeldOff, Installation, PidFile};
use super::server::PAUSE_FILE;
use super::texts::fill;
use super::{Failure, Outcome};

const STOP_PATIENCE: Duration = Duration::from_secs(30);
const STOP_POLL: Duration = Duration::from_millis(20);

/// Runs the command. What follows `start` is handed to `accurev_server`.
pub fn run(installation: &Installation, arguments: &[OsString]) -> Outcome {
    try_run(installation, arguments).unwrap_or_else(Outcome::from)
}

fn try_run(installation: &Installation, arguments: &[OsString]) -> Result<Outcome, Failure> {
    let text = &installation.texts.text;
    let site_slice = installation.server_cnf("acserverctl")?.site_slice()?;
    let io = |error: io::Error| failed(installation, &format!("{}: {error}", site_slice.display()));
    let command = arguments.first().map_or("help".into(), |word| word.to_string_lossy());
    match (&*command, arguments.len()) {
        ("start", _) => start(installation, &site_slice, &arguments[1..]),
        ("stop", 1) => stop(installation, &site_slice, PidFile::FILE, &text.stopped),
        ("status", 1) => match PidFile::hold_off(&site_slice).map_err(io)? {
            HeldOff::Running { pid } => Ok(running(installation, pid)),
            HeldOff::Quiet(_) => {
                Ok(Outcome { exit: installation.texts.exit.not_running, ..Outcome::done(&text.not_running) })
            }
        },
        ("pause", 1) => {
            fs::write(site_slice.join(PAUSE_FILE), "").map_err(io)?;
            Ok(Outcome::done(&text.pause_asked))
        }
        ("resume", 1) => match fs::remove_file(site_slice.join(PAUSE_FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io(error)),
            _ => Ok(Outcome::done(&text.resume_asked)),
        },
        ("dbstart", 1) if installation.has_database() => start_database(installation),
        ("dbstop", 1) if installation.has_database() => {
            let database = Database::of(installation);
            stop(installation, &database.dir, "postmaster.pid", &text.database_stopped)
        }
        ("dbstatus", 1) if installation.has_database() => {
            let up = Database::of(installation).is_up().map_err(io)?;
            Ok(Outcome::done(if up { &text.database_up } else { &text.database_stopped }))
        }
        ("help", _) => Ok(Outcome::done(&text.control_usage)),
        _ => Err(Failure { text: text.control_usage.clone(), exit: installation.texts.exit.usage }),
    }
}

fn failed(installation: &Installation, reason: &str) -> Failure {
    let texts = &installation.texts;
    Failure { text: fill(&texts.text.control_failed, &[("reason", reason)]), exit: texts.exit.control_failed }
}

fn running(installation: &Installation, pid: Option<i32>) -> Outcome {
    let pid = pid.map_or("unknown".to_owned(), |pid| pid.to_string());
    Outcome::done(fill(&installation.texts.text.running, &[("pid", &pid)]))
}

/// Starts the server in a process group of its own and waits for its one line on standard output.
fn start(installation: &Installation, site_slice: &Path, arguments: &[OsString]) -> Result<Outcome, Failure> {
    let program = installation.bin("accurev_server");
    if let Ok(HeldOff::Running { pid }) = PidFile::hold_off(site_slice) {
        return Ok(running(installation, pid));
    }
    let pid = spawn_and_wait(installation, &program, arguments)?;
    Ok(running(installation, pid))
}

fn start_database(installation: &Installation) -> Result<Outcome, Failure> {
    if !Database::of(installation).is_up().unwrap_or(false) {
        spawn_and_wait(installation, &installation.bin("accurev_db"), &[])?;
    }
    Ok(Outcome::done(&installation.texts.text.database_up))
}

fn spawn_and_wait(
    installation: &Installation,
    program: &Path,
    arguments: &[OsString],
) -> Result<Option<i32>, Failure> {
    let because =
        |reason: &dyn std::fmt::Display| failed(installation, &format!("{}: {reason}", program.display()));
    let mut server = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|error| because(&error))?;
    let mut line = String::new();
    if let Some(stdout) = server.stdout.take() {
        BufReader::new(stdout).read_line(&mut line).map_err(|error| because(&error))?;
    }
    if !line.is_empty() {
        return Ok(i32::try_from(server.id()).ok());
    }
    let mut reason = String::new();
    if let Some(mut stderr) = server.stderr.take() {
        stderr.read_to_string(&mut reason).map_err(|error| because(&error))?;
    }
    server.wait().map_err(|error| because(&error))?;
    Err(failed(installation, reason.trim_end()))
}

/// Asks the server to end and waits until its lock is gone.
fn stop(installation: &Installation, folder: &Path, file: &str, stopped: &str) -> Result<Outcome, Failure> {
    let texts = &installation.texts;
    let look =
        || PidFile::hold_off_in(folder, file).map_err(|error| failed(installation, &error.to_string()));
    let HeldOff::Running { pid } = look()? else {
        return Ok(Outcome::done(&texts.text.not_running));
    };
    let Some(pid) = pid.and_then(Pid::from_raw) else {
        return Err(failed(installation, "the server has not written its process number"));
    };
    kill_process(pid, Signal::TERM).map_err(|error| failed(installation, &error.to_string()))?;
    let (_open, nothing) = sync_channel::<()>(0);
    let give_up = Instant::now() + STOP_PATIENCE;
    while Instant::now() < give_up {
        if matches!(look()?, HeldOff::Quiet(_)) {
            return Ok(Outcome::done(stopped));
        }
        nothing.recv_timeout(STOP_POLL).ok();
    }
    Err(failed(installation, "the server did not stop in time"))
}
