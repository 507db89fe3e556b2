//! `assay-source`: the service beside the live repository, and its operators' command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    agent_source::cli::main()
}
