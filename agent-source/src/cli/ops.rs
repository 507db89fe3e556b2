//! What an administrator does around the service: set it up, look whether it can do its work, and fit it into the host.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use super::{definition, definition_of_pages, doctor, endpoint, init, load, runtime};
use assay_common::{
    cli::{CommandError, Connection, NotifyCommand, health, pages},
    pki::Role,
};

/// Commands around the service.
#[derive(Debug, clap::Subcommand)]
pub(super) enum OpsCommand {
    /// Set this host up as a source, with what assay-target invite wrote; nothing is overwritten
    Init(init::InitArgs),
    /// Add a further repository to a source that is set up, and print the line for assay-target add
    Add(init::AddArgs),
    /// Print the line for assay-target accept again, for a repository that is set up
    Acceptance(init::AcceptanceArgs),
    /// Look for everything that would keep a run from passing, beforehand; nothing is changed
    ///
    /// Exit codes: 0 all is as it should be, 3 there are warnings, 1 a run would not pass.
    Doctor,
    /// Ask the agent over gRPC whether it serves; the exit code is 0 when it does
    Health,
    /// Test the configured notifications
    #[command(subcommand)]
    Notify(NotifyCommand),
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
        OpsCommand::Init(arguments) => init::init(&arguments, config),
        OpsCommand::Add(arguments) => init::add(&arguments, config),
        OpsCommand::Acceptance(arguments) => init::print_acceptance(&arguments, config),
        OpsCommand::Health => {
            let configured = if connection.is_whole() { None } else { Some(endpoint(&load(config)?)) };
            runtime()?.block_on(health(connection, Role::Source, configured, json))
        }
        OpsCommand::Doctor => Ok(runtime()?.block_on(doctor::examine(&load(config)?, config)).end(json)),
        OpsCommand::Notify(command) => {
            let config = load(config)?;
            runtime()?.block_on(command.run(
                &config.notify,
                config.traces,
                "source",
                &config.agent.name,
                json,
            ))
        }
        OpsCommand::Completions { shell } => Ok(pages::completions(definition(), shell)),
        OpsCommand::Man { out } => pages::man(definition_of_pages(), &out),
    }
}
