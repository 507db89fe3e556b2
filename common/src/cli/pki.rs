//! `pki`: certificates and keys for those who have no authority of their own.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use super::{CommandError, print};
use crate::{
    error::Hint as _,
    pki::{Party, PkiError, PkiOptions, Role, init_pki, issue},
};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Make certificates and keys
#[derive(Debug, clap::Subcommand)]
pub enum PkiCommand {
    /// Make a CA, certificates for source, target and operator, and signing keys (private ones mode 0600)
    Init {
        /// Folder for the files
        folder: PathBuf,
        /// Name of the source agent
        #[arg(long, default_value = "source", value_name = "NAME")]
        source: String,
        /// Host name or address of the source; may be given several times
        #[arg(long, required = true, value_name = "HOST")]
        source_host: Vec<String>,
        /// Name of the target agent
        #[arg(long, default_value = "target", value_name = "NAME")]
        target: String,
        /// Host name or address of the target; may be given several times
        #[arg(long, required = true, value_name = "HOST")]
        target_host: Vec<String>,
        /// Name of the operator
        #[arg(long, default_value = "operator", value_name = "NAME")]
        operator: String,
        /// Stands in every certificate
        #[arg(long, default_value = "Assay", value_name = "TEXT")]
        organisation: String,
        /// How long the certificates are valid
        #[arg(long, default_value_t = 825, value_name = "DAYS")]
        days: u32,
    },
    /// Make one more certificate with the CA in the folder
    Issue {
        /// Folder that `pki init` made
        folder: PathBuf,
        /// What its holder may do: source, target, operator or restore
        #[arg(long, value_name = "ROLE")]
        role: Role,
        /// Name of its holder
        #[arg(long, value_name = "NAME")]
        name: String,
        /// Host name or address of its holder, needed for source and target; may be given several times
        #[arg(long, value_name = "HOST")]
        host: Vec<String>,
        /// How long it is valid
        #[arg(long, default_value_t = 825, value_name = "DAYS")]
        days: u32,
    },
}

impl PkiCommand {
    /// Does it.
    ///
    /// # Errors
    /// When a file is in the way or cannot be written.
    pub fn run(self) -> Result<ExitCode, CommandError> {
        let now = jiff::Timestamp::now();
        match self {
            Self::Init { folder, source, source_host, target, target_host, operator, organisation, days } => {
                let options = PkiOptions {
                    organisation,
                    source: Party { name: source, hosts: source_host },
                    target: Party { name: target, hosts: target_host },
                    operator: Party { name: operator, hosts: Vec::new() },
                    validity: DAY * days,
                    ca_validity: DAY * days.max(3650),
                };
                init_pki(&folder, &options, now).map_err(fault)?;
                print(&format!(
                    "made a CA, certificates for source, target and operator, and two signing keys in {}\n\
                     source host:  ca.crt source.crt source.key source-signing.key target-signing.pub operator.*\n\
                     target host:  ca.crt target.crt target.key target-signing.key source-signing.pub operator.*\n\
                     keep ca.key on neither of them\n",
                    folder.display()
                ));
            }
            Self::Issue { folder, role, name, host, days } => {
                let issued =
                    issue(&folder, role, &Party { name, hosts: host }, DAY * days, now).map_err(fault)?;
                print(&format!("made {} and {}\n", issued.cert.display(), issued.key.display()));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn fault(error: PkiError) -> CommandError {
    let hint = error.hint();
    CommandError { hint, ..CommandError::usage(error.to_string()) }
}
