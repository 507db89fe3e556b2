//! `assay-target`: the service beside the backups, and its operators' command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    agent_target::cli::main()
}
