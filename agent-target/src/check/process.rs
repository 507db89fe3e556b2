//! Runs one command to its end, or to the end of its time, and leaves nothing of it behind.
//!
//! This blocks; the caller runs it on a thread for blocking work. The sandbox dies with the thread that
//! started it (`--die-with-parent`), so that a killed agent leaves no check behind either.

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::{self, Read},
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        process::{CommandExt as _, ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use assay_common::fault::{self, Point};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions},
};
use tokio_util::sync::CancellationToken;

use super::{
    cgroup::Group,
    limits::{Limit, Watch},
    output::{Capture, Captured, Found, Patterns},
};
use crate::leftover;

/// How often a wait looks whether it was cancelled.
const CANCEL_POLL: Duration = Duration::from_millis(50);
/// How long what was killed may take to be gone. Only a process that hangs in the kernel takes longer.
const GRACE: Duration = Duration::from_secs(10);

/// A command, ready to run.
#[derive(Debug)]
pub(super) struct Launch {
    /// Program and arguments.
    pub(super) argv: Vec<OsString>,
    /// The whole environment.
    pub(super) env: Vec<(OsString, OsString)>,
    /// What its processes are found by where there is no PID namespace: its folder in the workspace.
    pub(super) marker: PathBuf,
    /// Where it starts, if it is not the sandbox that decides this.
    pub(super) working_directory: Option<PathBuf>,
    /// Set when `argv` is bubblewrap: the file to which it reports.
    pub(super) sandbox_status: Option<PathBuf>,
    /// The filter of system calls that bubblewrap loads.
    pub(super) filter: Option<PathBuf>,
    /// The user namespace that the command in the sandbox enters, as descriptor 5.
    pub(super) namespace: Option<PathBuf>,
    /// What its standard input is; nothing when it is not set.
    pub(super) stdin: Option<PathBuf>,
    /// User and group, where `argv` does not change them itself.
    pub(super) user: Option<(u32, u32)>,
    /// The time limit.
    pub(super) timeout: Duration,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    Exited(i32),
    Signalled(i32),
    TimedOut,
    Cancelled,
    /// It was killed because it reached a limit.
    Limited,
    /// It could not be started.
    NotStarted(String),
    /// The sandbox was not built, so the command never ran.
    SandboxFailed,
}

/// What a command did.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) end: End,
    /// The limit that it reached, whether it was killed for it or ended by itself.
    pub(super) limit: Option<Limit>,
    pub(super) stdout: Captured,
    pub(super) stderr: Captured,
    pub(super) found: Found,
    /// Someone still holds the output open, so there may be more of it.
    pub(super) output_open: bool,
    pub(super) duration: Duration,
}

enum Event {
    Ended,
    Closed,
}

/// Runs `launch`, and kills it and all that it started when it ends, when its time is over, or when it is
/// cancelled.
pub(super) fn run(
    launch: &Launch,
    watch: &mut Watch,
    patterns: &Arc<Patterns>,
    limit: usize,
    cancel: &CancellationToken,
) -> Ran {
    let started = Instant::now();
    let captures = [(); 2].map(|()| Arc::new(Mutex::new(Capture::new(Arc::clone(patterns), limit))));
    let (end, limit, output_open) = match run_captured(launch, watch, &captures, cancel, started) {
        Ok(ended) => ended,
        Err(error) => (End::NotStarted(error.to_string()), None, false),
    };
    let [out, err] = captures.map(|it| it.lock().unwrap_or_else(PoisonError::into_inner).finish());
    Ran {
        end,
        limit,
        stdout: out.0,
        stderr: err.0,
        found: out.1.merge(err.1),
        output_open,
        duration: started.elapsed(),
    }
}

fn run_captured(
    launch: &Launch,
    limits: &mut Watch,
    captures: &[Arc<Mutex<Capture>>; 2],
    cancel: &CancellationToken,
    started: Instant,
) -> io::Result<(End, Option<Limit>, bool)> {
    let marker = &launch.marker;
    fault::at(Point::CheckSpawn)?;
    let mut child = command(launch, limits).and_then(|mut command| command.spawn())?;
    let (sender, events) = sync_channel(3);
    let watched = fault::at(Point::CheckRuns).and_then(|()| watch(&mut child, captures, &sender));
    drop(sender);
    let forced = match watched {
        Ok(()) => wait(&events, launch, limits, captures, cancel, started),
        // Without its threads the command cannot be supervised.
        Err(error) => Err(Stop::End(End::NotStarted(error.to_string()))),
    };
    let forced = forced.err();
    // Its leader is not reaped yet, so the group's number cannot stand for anyone else.
    let group = Pid::from_child(&child);
    let _ = rustix::process::kill_process_group(group, Signal::KILL);
    let status = child.wait()?;
    let mut closed = 0;
    let end = match &launch.sandbox_status {
        Some(file) => {
            let report = SandboxReport::read(file);
            if let Some(init) = report.init {
                wait_until_gone(init);
            }
            match report.exit_code {
                Some(code) => from_shell_code(code),
                None => End::SandboxFailed,
            }
        }
        None => {
            leftover::kill_marked(|found| found == marker.as_os_str().as_bytes());
            status.code().map_or_else(|| End::Signalled(status.signal().unwrap_or(0)), End::Exited)
        }
    };
    // Those who held the output are dead, so its end comes at once.
    let patience = Instant::now() + GRACE;
    let expected = 2 + usize::from(forced.is_some());
    while closed < expected {
        match events.recv_timeout(patience.saturating_duration_since(Instant::now())) {
            Ok(Event::Closed | Event::Ended) => closed += 1,
            Err(_) => break,
        }
    }
    let output_open = closed < expected && captures.iter().any(|capture| Arc::strong_count(capture) > 1);
    Ok(match forced {
        Some(Stop::End(end)) => (end, None, output_open),
        Some(Stop::Limit(limit)) => (End::Limited, Some(limit), output_open),
        None => (end, limits.last_look().or_else(|| printed_too_much(captures, limits)), output_open),
    })
}

fn printed_too_much(captures: &[Arc<Mutex<Capture>>; 2], limits: &Watch) -> Option<Limit> {
    let bytes = captures.iter().map(|it| it.lock().unwrap_or_else(PoisonError::into_inner).bytes());
    (bytes.sum::<u64>() > limits.bounds.output).then_some(Limit::Output)
}

/// Enters the control group and opens what bubblewrap reports to and loads, and the user namespace; everything else is passed
/// through untouched.
const WRAPPER: &str = r#"status=$1 filter=$2 namespace=$3 first=$4 second=$5; shift 5
{ echo 0 >"$first" && echo 0 >"$second"; } || exit 126
exec "$@" 3>"$status" 4<"$filter" 5<"$namespace""#;

fn command(launch: &Launch, limits: &Watch) -> io::Result<Command> {
    let nowhere = || PathBuf::from("/dev/null");
    let mut command = if launch.sandbox_status.is_some() || limits.group.is_some() {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", WRAPPER, "sh"]);
        shell.arg(launch.sandbox_status.clone().unwrap_or_else(nowhere));
        shell.arg(launch.filter.clone().unwrap_or_else(nowhere));
        shell.arg(launch.namespace.clone().unwrap_or_else(nowhere));
        shell.args(limits.group.as_ref().map_or_else(|| [nowhere(), nowhere()], Group::entrances));
        shell.args(&launch.argv);
        shell
    } else {
        let mut direct = Command::new(&launch.argv[0]);
        direct.args(&launch.argv[1..]);
        direct
    };
    command.env_clear().envs(launch.env.iter().map(|(name, value)| (name, value)));
    if launch.sandbox_status.is_none() {
        command.env(leftover::MARKER, &launch.marker);
    }
    if let Some(folder) = &launch.working_directory {
        command.current_dir(folder);
    }
    if let Some((uid, gid)) = launch.user {
        command.gid(gid).uid(uid);
    }
    let stdin = match &launch.stdin {
        Some(file) => Stdio::from(fs::File::open(file)?),
        None => Stdio::null(),
    };
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    Ok(command)
}

fn watch(
    child: &mut Child,
    captures: &[Arc<Mutex<Capture>>; 2],
    events: &SyncSender<Event>,
) -> io::Result<()> {
    let pid = Pid::from_child(child);
    let sender = events.clone();
    spawn("check-wait", move || {
        loop {
            // Left unreaped: see `run_captured`.
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            match rustix::process::waitid(WaitId::Pid(pid), options) {
                Err(rustix::io::Errno::INTR) => {}
                _ => break,
            }
        }
        let _ = sender.send(Event::Ended);
    })?;
    let streams: [Option<Box<dyn Read + Send>>; 2] = [
        child.stdout.take().map(|it| Box::new(it) as Box<dyn Read + Send>),
        child.stderr.take().map(|it| Box::new(it) as Box<dyn Read + Send>),
    ];
    for (stream, capture) in streams.into_iter().zip(captures) {
        let mut stream = stream.ok_or_else(|| io::Error::other("the output is not piped"))?;
        let (sender, capture) = (events.clone(), Arc::clone(capture));
        spawn("check-output", move || {
            let mut buffer = vec![0; 64 * 1024];
            loop {
                match stream.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(read) => capture.lock().unwrap_or_else(PoisonError::into_inner).push(&buffer[..read]),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
            drop(capture);
            let _ = sender.send(Event::Closed);
        })?;
    }
    Ok(())
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.into()).spawn(work).map(drop)
}

/// Why a command must be killed.
enum Stop {
    End(End),
    Limit(Limit),
}

/// Waits for the end of the leader. Says why it must be killed, if it must.
fn wait(
    events: &Receiver<Event>,
    launch: &Launch,
    limits: &mut Watch,
    captures: &[Arc<Mutex<Capture>>; 2],
    cancel: &CancellationToken,
    started: Instant,
) -> Result<(), Stop> {
    let mut init = None;
    loop {
        let left = launch.timeout.saturating_sub(started.elapsed());
        if cancel.is_cancelled() {
            return Err(Stop::End(End::Cancelled));
        }
        if left.is_zero() {
            return Err(Stop::End(End::TimedOut));
        }
        match events.recv_timeout(left.min(CANCEL_POLL)) {
            Ok(Event::Ended) => return Ok(()),
            // Closing its output does not end a command.
            Ok(Event::Closed) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        init = init.or_else(|| SandboxReport::read(launch.sandbox_status.as_deref()?).init);
        if let Some(limit) = limits.look(init).or_else(|| printed_too_much(captures, limits)) {
            return Err(Stop::Limit(limit));
        }
    }
}

/// Bubblewrap reports as a shell does.
fn from_shell_code(code: i32) -> End {
    if code > 128 { End::Signalled(code - 128) } else { End::Exited(code) }
}

/// What bubblewrap wrote to its status file.
#[derive(Default)]
struct SandboxReport {
    /// The first process of the PID namespace.
    init: Option<Pid>,
    /// Missing when the command never ran, or did not end by itself.
    exit_code: Option<i32>,
}

impl SandboxReport {
    fn read(file: &Path) -> Self {
        let text = fs::read(file).unwrap_or_default();
        let mut report = Self::default();
        for value in
            serde_json::Deserializer::from_slice(&text).into_iter::<serde_json::Value>().map_while(Result::ok)
        {
            let number = |key: &str| value.get(key)?.as_i64().and_then(|it| i32::try_from(it).ok());
            report.init = report.init.or(number("child-pid").and_then(Pid::from_raw));
            report.exit_code = report.exit_code.or(number("exit-code"));
        }
        report
    }
}

/// Waits for the end of a PID namespace, by its first process: the kernel lets go of it after all others.
fn wait_until_gone(init: Pid) {
    let Ok(held) = rustix::process::pidfd_open(init, PidfdFlags::empty()) else {
        return;
    };
    let grace = Timespec { tv_sec: i64::try_from(GRACE.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
    let mut watched = [PollFd::new(&held, PollFlags::IN)];
    if !matches!(rustix::event::poll(&mut watched, Some(&grace)), Ok(count) if count > 0) {
        tracing::warn!(pid = init.as_raw_nonzero(), "a check's sandbox is slow to die");
    }
}

/// The absolute path of a program of the system.
pub(crate) fn find_program(name: &OsStr) -> Option<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(name)).filter(|path| path.is_file());
    }
    let folders = super::SEARCH_PATH.split(':').map(Path::new);
    folders.map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// Shows a command as one line.
pub(super) fn shown(argv: &[OsString]) -> Vec<String> {
    argv.iter().map(|it| assay_common::path::display_bytes(&it.clone().into_vec())).collect()
}
