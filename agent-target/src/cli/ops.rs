//! What an administrator does around the service: set it up, look whether it can do its work, and fit it into the host.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use assay_common::{
    cli::{CommandError, Connection, health, pages},
    pki::Role,
};
use clap::CommandFactory as _;

use super::{Cli, endpoint, load, runtime};

/// Commands around the service.
#[derive(Debug, clap::Subcommand)]
pub(super) enum OpsCommand {
    /// Ask the agent over gRPC whether it serves; the exit code is 0 when it does
    Health,
    /// Print the completions for a shell
    Completions {
        /// The shell
        shell: pages::Shell,
    },
    /// Write manual pages
    Man {
        /// Folder for the pages
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

/// Does it.
pub(super) fn run(
    command: OpsCommand,
    config: &Path,
    connection: &Connection,
    json: bool,
) -> Result<ExitCode, CommandError> {
    match command {
        OpsCommand::Health => {
            let configured = if connection.is_whole() { None } else { Some(endpoint(&load(config)?)) };
            runtime()?.block_on(health(connection, Role::Target, configured, json))
        }
        OpsCommand::Completions { shell } => Ok(pages::completions(Cli::command(), shell)),
        OpsCommand::Man { out } => pages::man(Cli::command(), &out),
    }
}
