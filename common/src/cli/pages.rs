//! Shell completions and manual pages, made from the command line's own definition.

use std::{fs, path::Path, process::ExitCode};

pub use clap_complete::Shell;

use super::{CommandError, print};

/// Prints the completions of `command` for a shell.
pub fn completions(mut command: clap::Command, shell: Shell) -> ExitCode {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    super::print_raw(&String::from_utf8_lossy(&script));
    ExitCode::SUCCESS
}

/// Writes a page for `command` and one for each of its subcommands into the folder `out`, which is made when it is absent.
///
/// # Errors
/// When a page cannot be written.
pub fn man(command: clap::Command, out: &Path) -> Result<ExitCode, CommandError> {
    let failed = |error| CommandError::not_run(format!("{}: {error}", out.display()));
    fs::create_dir_all(out).map_err(failed)?;
    let name = command.get_name().to_owned();
    clap_mangen::generate_to(command, out).map_err(failed)?;
    print(&format!("wrote {name}.1 and the pages of its subcommands to {}\n", out.display()));
    Ok(ExitCode::SUCCESS)
}
