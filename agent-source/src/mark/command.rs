//! Commands that make and end marks and snapshots. They run directly, never through a shell, with a time limit.

use std::{ffi::OsString, fs::File, io, path::PathBuf, process::Stdio, time::Duration};

use assay_common::profile::{Mark, TemplateError, template::Scope};
use tokio::{io::AsyncReadExt as _, process::Command};
use tokio_util::sync::CancellationToken;

/// Output of a command that is looked at, in bytes; the rest is read and dropped.
const OUTPUT_BYTES: usize = 64 * 1024;
/// A mark's id is its output's first line, up to this many characters.
const ID_CHARACTERS: usize = 200;

/// Why a command did not do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The program cannot be started.
    #[error("the command {program:?} cannot be started: {source}")]
    Start {
        /// The program.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// It ended with another exit code than those of success.
    #[error("the command {program:?} ended with {status}: {output}")]
    Failed {
        /// The program.
        program: String,
        /// How it ended.
        status: String,
        /// The end of its output.
        output: String,
    },
    /// It took too long and was killed.
    #[error("the command {program:?} was not done after {}", humantime::format_duration(*limit))]
    TimeOut {
        /// The program.
        program: String,
        /// The limit.
        limit: Duration,
    },
    /// Its output lacks what the profile wants to see.
    #[error("the command {program:?} ended well, but no line of its output matches {pattern:?}")]
    Unexpected {
        /// The program.
        program: String,
        /// The pattern.
        pattern: String,
    },
    /// The run was cancelled, and the command was killed.
    #[error("the command {program:?} was cancelled")]
    Cancelled {
        /// The program.
        program: String,
    },
    /// A placeholder has no value here.
    #[error("mark: {0}")]
    Template(#[from] TemplateError),
}

/// Runs the begin command and returns the mark's id.
pub(super) async fn begin(
    mark: &Mark,
    scope: &Scope,
    cancel: &CancellationToken,
) -> Result<String, CommandError> {
    let (program, output) = run(call(mark, &mark.begin, scope)?, &mark.pass_exit, cancel).await?;
    for pattern in &mark.must_match {
        if !output.split(|byte| *byte == b'\n').any(|line| pattern.regex().is_match(line)) {
            return Err(CommandError::Unexpected { program, pattern: pattern.as_str().to_owned() });
        }
    }
    let text = match &mark.id_pattern {
        Some(pattern) => {
            let found = pattern.regex().captures(&output);
            let group =
                found.and_then(|found| found.get(1).or_else(|| found.get(0)).map(|group| group.as_bytes()));
            group.ok_or_else(|| CommandError::Unexpected { program, pattern: pattern.as_str().to_owned() })?
        }
        None => output.split(|byte| *byte == b'\n').next().unwrap_or_default(),
    };
    let id: String = String::from_utf8_lossy(text)
        .chars()
        .map(|character| if character.is_control() { ' ' } else { character })
        .take(ID_CHARACTERS)
        .collect();
    let id = id.trim();
    Ok(if id.is_empty() { "(the mark command said nothing)".to_owned() } else { id.to_owned() })
}

/// Runs the end command.
pub(super) async fn end(mark: &Mark, scope: &Scope) -> Result<(), CommandError> {
    run(call(mark, &mark.end, scope)?, &mark.pass_exit, &CancellationToken::new()).await.map(drop)
}

/// A program that is to be run.
#[derive(Debug, Default)]
pub(crate) struct Call {
    /// The program and its arguments.
    pub(crate) argv: Vec<OsString>,
    /// Variables beside the agent's own environment.
    pub(crate) environment: Vec<(String, OsString)>,
    /// Where it is run; in the agent's own folder when there is none.
    pub(crate) folder: Option<PathBuf>,
    /// What it reads as its standard input; nothing when there is none.
    pub(crate) input: Option<File>,
    /// How long it may take.
    pub(crate) limit: Duration,
}

fn call(mark: &Mark, argv: &[String], scope: &Scope) -> Result<Call, CommandError> {
    let environment = mark.env.iter().map(|(name, value)| Ok((name.clone(), scope.expand(value)?)));
    let folder = match &mark.working_directory {
        Some(folder) => Some(PathBuf::from(scope.expand(folder)?)),
        None => scope.roots.first().map(|(_, root)| root.clone()),
    };
    Ok(Call {
        argv: scope.expand_list(argv)?,
        environment: environment.collect::<Result<_, TemplateError>>()?,
        folder,
        input: None,
        limit: mark.timeout.0,
    })
}

/// Runs a program to its end, and gives its name and its output.
///
/// # Errors
/// When it cannot be started, ends with none of the exit codes in `pass_exit`, takes too long or is cancelled. Its processes are killed then.
pub(crate) async fn run(
    call: Call,
    pass_exit: &[i32],
    cancel: &CancellationToken,
) -> Result<(String, Vec<u8>), CommandError> {
    let Call { argv, environment, folder, input, limit } = call;
    let program = argv.first().map(|program| program.to_string_lossy().into_owned()).unwrap_or_default();
    let mut command = Command::new(argv.first().map_or_else(OsString::new, Clone::clone));
    command
        .args(argv.iter().skip(1))
        .stdin(input.map_or_else(Stdio::null, Stdio::from))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.kill_on_drop(true).process_group(0);
    command.envs(environment);
    if let Some(folder) = folder {
        command.current_dir(folder);
    }
    let start = |source| CommandError::Start { program: program.clone(), source };
    let mut child = command.spawn().map_err(start)?;
    let group = Group(child.id());
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let work = async {
        let (out, err, status) = tokio::join!(read(stdout), read(stderr), child.wait());
        (out, err, status)
    };
    let (mut output, errors, status) = tokio::select! {
        done = work => done,
        () = tokio::time::sleep(limit) => {
            return Err(CommandError::TimeOut { program, limit });
        }
        () = cancel.cancelled() => return Err(CommandError::Cancelled { program }),
    };
    group.ended();
    let status = status.map_err(start)?;
    output.extend_from_slice(&errors);
    if !status.code().is_some_and(|code| pass_exit.contains(&code)) {
        let text = String::from_utf8_lossy(&output);
        let lines: Vec<_> = text.lines().rev().take(3).collect();
        let output = lines.into_iter().rev().collect::<Vec<_>>().join("; ").replace(char::is_control, " ");
        let output = if output.is_empty() { "it said nothing".to_owned() } else { output };
        return Err(CommandError::Failed { program, status: status.to_string(), output });
    }
    Ok((program, output))
}

/// The processes of a command, which are killed with it when it is given up.
struct Group(Option<u32>);

impl Group {
    /// The command has ended by itself; what it left running is the engine's.
    fn ended(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let leader = self.0.and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
        if let Some(leader) = leader {
            // Nobody has waited for the leader yet, so that the number is still its own. There may be nothing left to kill.
            rustix::process::kill_process_group(leader, rustix::process::Signal::KILL).ok();
        }
    }
}

/// Reads to the end and keeps the front.
async fn read(stream: Option<impl tokio::io::AsyncRead + Unpin>) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(mut stream) = stream else {
        return kept;
    };
    let mut buffer = vec![0; 8192];
    while let Ok(count) = stream.read(&mut buffer).await
        && count > 0
    {
        let room = OUTPUT_BYTES - kept.len();
        kept.extend_from_slice(&buffer[..count.min(room)]);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(begin: &[&str]) -> Mark {
        Mark { begin: begin.iter().map(ToString::to_string).collect(), ..Default::default() }
    }

    async fn begun(mark: &Mark) -> Result<String, CommandError> {
        begin(mark, &Scope::default(), &CancellationToken::new()).await
    }

    #[tokio::test]
    async fn the_first_line_is_the_id_and_control_characters_go() {
        assert_eq!(begun(&mark(&["printf", r"mark 7\tdone\nmore"])).await.expect("runs"), "mark 7 done");
        assert!(begun(&mark(&["true"])).await.expect("runs").contains("said nothing"));
    }

    #[tokio::test]
    async fn each_way_to_fail_is_told_apart() {
        let failed = begun(&mark(&["sh", "-c", "echo no server answers >&2; exit 3"])).await;
        let text = failed.expect_err("exit 3").to_string();
        assert!(text.contains("no server answers") && text.contains('3'), "{text}");
        assert!(matches!(begun(&mark(&["/no/such/program"])).await, Err(CommandError::Start { .. })));
        let mut slow = mark(&["sleep", "infinity"]);
        slow.timeout.0 = Duration::from_millis(50);
        assert!(matches!(begun(&slow).await, Err(CommandError::TimeOut { .. })));
        let cancel = CancellationToken::new();
        cancel.cancel();
        let cancelled = begin(&mark(&["sleep", "infinity"]), &Scope::default(), &cancel).await;
        assert!(matches!(cancelled, Err(CommandError::Cancelled { .. })));
    }

    /// A command that is given up takes what it had started with it: none of it works on behind the run's back.
    #[tokio::test]
    async fn nothing_of_a_command_that_took_too_long_is_left() {
        let folder = tempfile::tempdir().expect("temp");
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .expect("fifo");
        let (reader, started) = (pipe.clone(), folder.path().join("started"));
        let script =
            format!("(echo > {}; exec sleep infinity) > {} & wait", started.display(), pipe.display());
        // Reading ends when nobody has the pipe open for writing any longer: when the child of the child is gone.
        let read = tokio::task::spawn_blocking(move || std::fs::read(reader));
        let cancel = CancellationToken::new();
        let watch = {
            let (cancel, started) = (cancel.clone(), started.clone());
            tokio::spawn(async move {
                while !started.exists() {
                    tokio::task::yield_now().await;
                }
                cancel.cancel();
            })
        };
        let given_up = begin(&mark(&["sh", "-c", &script]), &Scope::default(), &cancel).await;
        assert!(matches!(given_up, Err(CommandError::Cancelled { .. })), "{given_up:?}");
        watch.await.expect("no panic");
        read.await.expect("no panic").expect("the pipe was closed");
    }
}
