//! What both command lines share: exit codes, errors with their `HINT:` line, `pki`, `verdict verify`, and how things
//! read for a person.

pub mod all;
pub mod coverage;
pub mod doctor;
mod explain;
mod health;
pub mod join;
mod keys;
mod ledger;
mod notify;
mod output;
pub mod pages;
mod paint;
mod pki;
pub mod remedies;
mod restore;
pub mod screen;
pub mod show;
mod verify;

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    sync::{Mutex, PoisonError},
};

use tonic::{Code, Status, transport::Channel};

use crate::{
    error::{Hint, PathError, without_codes},
    pki::PkiError,
    rpc_status::RpcFault,
    signing::KeyError,
    tls::{ConnectError, ConnectOptions, Role, TlsError, TlsFiles, connect, explain_rpc_error},
    verdict::Outcome,
};

pub use explain::{explain, explain_run};
pub use health::{HealthAnswer, ask_health, health};
pub use keys::{checked_why, show_keys};
pub use ledger::{AuditArgs, Beside, print_head};
pub use notify::NotifyCommand;
pub use output::{print_as_json, schema as output_schema};
pub use paint::Colour;
pub use pki::{PkiCommand, refuse_below};
pub use restore::{Ended, Offered, RestoreArgs, Vouched};
pub use verify::VerifyArgs;

/// Usage or configuration.
pub const EXIT_USAGE: u8 = 2;
/// The agent could not be reached, or the run did not come to its check.
pub const EXIT_NOT_RUN: u8 = 4;

/// Why a command did not do what it was asked to.
#[derive(Debug)]
pub struct CommandError {
    /// The exit code.
    pub exit: u8,
    /// What happened, to what.
    pub message: String,
    /// What the operator may try.
    pub hint: Option<String>,
}

impl CommandError {
    /// A mistake in what was asked for, or in the configuration.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { exit: EXIT_USAGE, message: message.into(), hint: None }
    }

    /// Something that could not be reached or run.
    pub fn not_run(message: impl Into<String>) -> Self {
        Self { exit: EXIT_NOT_RUN, message: message.into(), hint: None }
    }

    /// With what the operator may try.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// From what kept a service from starting or going on, outermost first; `message` is all of it.
    pub fn not_served<'a>(
        message: String,
        chain: impl IntoIterator<Item = &'a (dyn std::error::Error + 'static)>,
    ) -> Self {
        let mut is_misplaced_key = false;
        let hint = chain.into_iter().find_map(|error| {
            let tls = error.downcast_ref::<TlsError>().and_then(Hint::hint);
            let key = error.downcast_ref::<KeyError>().and_then(Hint::hint);
            let pki = error.downcast_ref::<PkiError>();
            is_misplaced_key |= matches!(pki, Some(PkiError::KeyInReach { .. }));
            let pki = pki.and_then(Hint::hint);
            tls.or(key).or(pki).or_else(|| error.downcast_ref::<PathError>().and_then(Hint::hint))
        });
        // That does not go away by trying again, and the units do not.
        let error = if is_misplaced_key { Self::usage(message) } else { Self::not_run(message) };
        Self { hint, ..error }
    }

    /// From an agent's answer.
    pub fn from_status(status: &Status, peer: &str) -> Self {
        explain_rpc_error(status, peer).into()
    }
}

impl From<RpcFault> for CommandError {
    fn from(fault: RpcFault) -> Self {
        let exit = match fault.code {
            Code::InvalidArgument | Code::NotFound => EXIT_USAGE,
            _ => EXIT_NOT_RUN,
        };
        Self { exit, message: fault.message, hint: fault.hint }
    }
}

impl From<ConnectError> for CommandError {
    fn from(error: ConnectError) -> Self {
        let hint = error.hint();
        Self { exit: EXIT_NOT_RUN, message: error.to_string(), hint }
    }
}

/// Ends the process: prints an error if there is one, and gives the exit code.
pub fn end(result: Result<ExitCode, CommandError>) -> ExitCode {
    // What the log still holds comes before the last word.
    crate::telemetry::flush();
    match result {
        Ok(code) => {
            let fault = OUTPUT_FAULT.lock().unwrap_or_else(PoisonError::into_inner).take();
            let (code, text) = after_output(code, fault);
            if let Some(text) = text {
                print_error(&text);
            }
            code
        }
        Err(error) => {
            show_error(&error);
            ExitCode::from(error.exit)
        }
    }
}

/// Prints an error to standard error, and to standard output as well when that is JSON.
fn show_error(error: &CommandError) {
    let (message, hint) = (without_codes(&error.message), error.hint.as_deref());
    if output::is_json() {
        print_json(&output::error(&message, hint, error.exit));
    }
    let mut text = format!("error: {message}\n");
    if let Some(hint) = hint {
        let _ = writeln!(text, "HINT: {hint}");
    }
    print_error(&text);
}

/// The definition of a command line in which commands that ask no agent do not show how one is reached. `offline` are their names, with
/// a space between those of a command of a group; the commands below them are meant as well.
pub fn without_connection(mut command: clap::Command, offline: &[&str]) -> clap::Command {
    fn hide(command: clap::Command) -> clap::Command {
        let names: Vec<_> = command.get_subcommands().map(|it| it.get_name().to_owned()).collect();
        let command = command.mut_args(|argument| match argument.get_help_heading() {
            Some(CONNECTION) => argument.hide(true),
            _ => argument,
        });
        names.into_iter().fold(command, |command, name| command.mut_subcommand(name, hide))
    }
    command.build();
    offline.iter().fold(command, |command, name| match name.split_once(' ') {
        None => command.mut_subcommand(*name, hide),
        Some((group, name)) => command.mut_subcommand(group, |group| group.mut_subcommand(name, hide)),
    })
}

/// Parses the command line. A mistake in it ends the process, with an object where JSON was asked for.
pub fn parse<C: clap::Parser>(command: clap::Command) -> C {
    let parsed = command.try_get_matches().and_then(|matches| C::from_arg_matches(&matches));
    parsed.unwrap_or_else(|error| {
        let is_json =
            std::env::args_os().skip(1).take_while(|word| word != "--").any(|word| word == "--json");
        if is_json && error.use_stderr() {
            let text = error.to_string();
            let message = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
            print_json(&output::error(message, None, EXIT_USAGE));
        }
        error.exit()
    })
}

/// The exit code of an outcome.
pub fn outcome_code(outcome: Option<Outcome>) -> ExitCode {
    // Unknown means failure.
    ExitCode::from(outcome.map_or(EXIT_NOT_RUN, Outcome::exit_code))
}

/// The heading of the options below.
const CONNECTION: &str = "Connection (instead of the configuration)";

/// How a command line reaches its agent: what the configuration says, or what stands on the line.
#[derive(Debug, Clone, clap::Args)]
pub struct Connection {
    /// Address of the agent, https://HOST:PORT, instead of the one in the configuration
    #[arg(long, global = true, help_heading = CONNECTION, value_name = "URL", env = "ASSAY_SERVER")]
    pub server: Option<String>,
    /// Certificate authority (PEM), instead of the configuration's
    #[arg(long, global = true, help_heading = CONNECTION, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Operator's certificate (PEM), instead of the configuration's
    #[arg(long, global = true, help_heading = CONNECTION, value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// Operator's private key (PEM), instead of the configuration's
    #[arg(long = "cert-key", alias = "key", global = true, help_heading = CONNECTION, value_name = "FILE")]
    pub key: Option<PathBuf>,
}

impl Connection {
    /// True when the line says everything, so that no configuration is needed.
    pub fn is_whole(&self) -> bool {
        self.server.is_some() && self.ca.is_some() && self.cert.is_some() && self.key.is_some()
    }

    /// Connects to the agent of role `role`. Returns the channel and the agent's address for messages.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn open(
        &self,
        role: Role,
        configured: Option<(String, TlsFiles)>,
    ) -> Result<(Channel, String), CommandError> {
        self.open_as(&[Role::Operator], role, configured).await
    }

    /// As [`Self::open`], with a certificate of one of the roles `own`.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn open_as(
        &self,
        own: &[Role],
        role: Role,
        configured: Option<(String, TlsFiles)>,
    ) -> Result<(Channel, String), CommandError> {
        let (url, files) = match (configured, self.is_whole()) {
            (Some((url, files)), _) => (self.server.clone().unwrap_or(url), Some(files)),
            (None, true) => (self.server.clone().unwrap_or_default(), None),
            (None, false) => {
                return Err(CommandError::usage(
                    "without a configuration, --server, --ca, --cert and --cert-key are needed",
                ));
            }
        };
        let pick = |given: &Option<PathBuf>, configured: Option<&PathBuf>| {
            given.clone().or_else(|| configured.cloned()).unwrap_or_default()
        };
        let files = TlsFiles {
            ca: pick(&self.ca, files.as_ref().map(|files| &files.ca)),
            cert: pick(&self.cert, files.as_ref().map(|files| &files.cert)),
            key: pick(&self.key, files.as_ref().map(|files| &files.key)),
        };
        let (channel, _) = connect(&url, role, &files, own, &ConnectOptions::default()).await?;
        Ok((channel, url))
    }
}

/// The address at which a command line on the same host finds an agent that listens on `listen`.
pub fn local_url(listen: std::net::SocketAddr) -> String {
    let ip = match listen.ip() {
        std::net::IpAddr::V4(ip) if ip.is_unspecified() => std::net::Ipv4Addr::LOCALHOST.into(),
        std::net::IpAddr::V6(ip) if ip.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    format!("https://{}", std::net::SocketAddr::new(ip, listen.port()))
}

/// Writes a file that must not exist yet.
///
/// # Errors
/// When it exists, or cannot be written.
pub fn write_new(file: &std::path::Path, text: &str) -> Result<(), CommandError> {
    let failed = |error: std::io::Error| {
        let told = CommandError::usage(format!("{}: {error}", file.display()));
        if error.kind() == std::io::ErrorKind::AlreadyExists {
            told.hint("it is left as it is: name another file, or move it away")
        } else {
            told
        }
    };
    let mut output = std::fs::File::create_new(file).map_err(failed)?;
    output.write_all(text.as_bytes()).map_err(failed)
}

/// Prints a value as JSON on one line.
pub fn print_json(value: &serde_json::Value) {
    write_out(&json_line(value));
}

/// The line that [`print_json`] prints, for those who send it elsewhere.
pub fn json_line(value: &serde_json::Value) -> String {
    let value = output::in_contract(value.clone());
    format!("{}\n", screen::harmless_json(&value.to_string()))
}

/// Why the output is not whole: the first error of standard output.
static OUTPUT_FAULT: Mutex<Option<io::Error>> = Mutex::new(None);

/// Prints text. When it cannot be written the process ends with an error ([`end`]): an output that is not whole must not pass for the
/// truth. A reader that has gone away is told by the exit code alone.
///
/// Text of checkers, peers and file names is among it: whatever a terminal would obey is escaped here, for every command. With `--json` a
/// text is an object, too.
pub fn print(text: &str) {
    if output::is_json() {
        return print_json(&output::message(text));
    }
    let text = screen::harmless(text);
    let text = match paint::width() {
        Some(width) => screen::folded(&text, width).into(),
        None => text,
    };
    if paint::is_coloured() { write_out(&paint::painted(&text)) } else { write_out(&text) }
}

/// The text with colours where standard output has them, without what could control a terminal.
pub fn coloured(text: &str) -> String {
    let text = screen::harmless(text);
    if paint::is_coloured() { paint::painted(&text) } else { text.into_owned() }
}

/// Prints what a program reads or a person copies: as it is, no line folded.
pub fn print_raw(text: &str) {
    if output::is_json() {
        return print_json(&output::message(text));
    }
    write_out(&screen::harmless(text));
}

/// Prints an error, in the same way.
pub fn print_error(text: &str) {
    // A closed standard error leaves the exit code to speak.
    drop(io::stderr().write_all(screen::harmless(text).as_bytes()));
}

fn write_out(text: &str) {
    let mut stdout = io::stdout().lock();
    if let Err(error) = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        OUTPUT_FAULT.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }
}

/// The exit code of a command whose output may have been lost.
fn after_output(code: ExitCode, fault: Option<io::Error>) -> (ExitCode, Option<String>) {
    let Some(error) = fault else { return (code, None) };
    let text = (error.kind() != io::ErrorKind::BrokenPipe).then(|| {
        let why = without_codes(&error.to_string());
        format!("error: the output cannot be written: {why}\nHINT: what was printed is not whole\n")
    });
    // A worse outcome keeps its own code.
    (if code == ExitCode::SUCCESS { ExitCode::from(EXIT_NOT_RUN) } else { code }, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_that_is_not_whole_is_no_success() {
        let full = || Some(io::Error::from(io::ErrorKind::StorageFull));
        let (code, text) = after_output(ExitCode::SUCCESS, full());
        assert_eq!(code, ExitCode::from(EXIT_NOT_RUN));
        assert!(text.expect("a text").starts_with("error: the output cannot be written: no storage space"));
        assert_eq!(after_output(ExitCode::from(1), full()).0, ExitCode::from(1));
        let (_, text) = after_output(ExitCode::SUCCESS, Some(rustix::io::Errno::NOSPC.into()));
        let plain = "error: the output cannot be written: No space left on device\n";
        assert!(text.expect("a text").starts_with(plain));
        let (code, text) = after_output(ExitCode::SUCCESS, Some(io::ErrorKind::BrokenPipe.into()));
        assert_eq!((code, text), (ExitCode::from(EXIT_NOT_RUN), None));
        assert_eq!(after_output(ExitCode::SUCCESS, None), (ExitCode::SUCCESS, None));
    }
}
