//! `pki`: certificates and keys for those who have no authority of their own.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use super::{CommandError, print, show::counted};
use crate::{
    error::Hint as _,
    pki::{
        Certificate, DEFAULT_VALIDITY_DAYS, Party, PkiError, PkiOptions, Role, add_authority, authority,
        init_pki, issue, renew,
    },
};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Make certificates and keys
#[derive(Debug, clap::Subcommand)]
pub enum PkiCommand {
    /// Make a CA in a folder apart, certificates for source, target and operator, and signing keys (private ones mode 0600)
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
        /// Folder for the CA; /var/lib/assay-ca/KEY when it is left out, and ~/.local/share/assay-ca/KEY for other users than root
        #[arg(long, value_name = "DIR")]
        ca_folder: Option<PathBuf>,
        /// Organisation (O=) in every certificate
        #[arg(long, default_value = "Assay", value_name = "TEXT")]
        organisation: String,
        /// How long the certificates are valid
        #[arg(long, default_value_t = DEFAULT_VALIDITY_DAYS, value_name = "DAYS")]
        days: u32,
        /// Make certificates alone: the agents keep the signing keys that they have
        #[arg(long)]
        without_signing_keys: bool,
    },
    /// Make a new CA that is believed beside the one of the folder, so that all certificates can be replaced without a gap
    NewCa {
        /// Folder with the certificates and the CA's ca.crt: one that `init` or `pki init` made
        folder: PathBuf,
        /// Folder for the new CA; /var/lib/assay-ca/KEY when it is left out, and ~/.local/share/assay-ca/KEY for other users than root
        #[arg(long, value_name = "DIR")]
        ca_folder: Option<PathBuf>,
        /// Organisation (O=) in the new CA's certificate
        #[arg(long, default_value = "Assay", value_name = "TEXT")]
        organisation: String,
        /// How long the new CA is valid
        #[arg(long, default_value_t = 3650, value_name = "DAYS")]
        days: u32,
    },
    /// Make one more certificate with the CA of the folder
    Issue {
        /// Folder for the files, with the CA's ca.crt: one that `init` or `pki init` made
        folder: PathBuf,
        /// Folder of the CA; the folder itself, or the place where `pki init` put it, when it is left out
        #[arg(long, value_name = "DIR")]
        ca_folder: Option<PathBuf>,
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
        #[arg(long, default_value_t = DEFAULT_VALIDITY_DAYS, value_name = "DAYS")]
        days: u32,
    },
    /// Make new certificates with the CA in the place of those that are there, for the same holders, hosts and keys
    ///
    /// Fit for a timer: `assay-target pki renew FOLDER --within 30` does nothing until an end is near. An agent takes a new certificate within
    /// half a minute.
    Renew {
        /// Folder with the certificates and the CA's ca.crt: one that `init` or `pki init` made
        folder: PathBuf,
        /// Folder of the CA; the folder itself, or the place where `pki init` put it, when it is left out
        #[arg(long, value_name = "DIR")]
        ca_folder: Option<PathBuf>,
        /// Certificates to renew; all of ours in the folder when none is named
        #[arg(value_name = "CRT")]
        certificates: Vec<PathBuf>,
        /// Only those that end within so many days
        #[arg(long, value_name = "DAYS")]
        within: Option<u32>,
        /// How long the new ones are valid
        #[arg(long, default_value_t = DEFAULT_VALIDITY_DAYS, value_name = "DAYS")]
        days: u32,
        /// Make new private keys too, in the place of NAME.key beside NAME.crt
        #[arg(long)]
        new_keys: bool,
    },
    /// Say whose certificates these are, until when, and their serial numbers and keys, as `tls.revoked` takes them
    Show {
        /// Certificates
        #[arg(required = true, value_name = "CRT")]
        certificates: Vec<PathBuf>,
    },
}

/// One line for a certificate.
fn shown(path: &Path, certificate: &Certificate) -> String {
    let Certificate { identity, fingerprints, not_after, .. } = certificate;
    format!(
        "{}: {identity}, until {}\n  serial {}\n  key {}\n",
        path.display(),
        not_after.strftime("%Y-%m-%d"),
        fingerprints.serial,
        fingerprints.key
    )
}

/// The certificates of ours in a folder.
fn ours(folder: &Path) -> Result<Vec<PathBuf>, CommandError> {
    let failed = |error: std::io::Error| CommandError::usage(format!("{}: {error}", folder.display()));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|end| end == "crt") && Certificate::read(&path).is_ok() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The CA's folder: the one that was named, or the one that belongs to the ca.crt in `folder`.
fn authority_of(named: Option<&Path>, folder: &Path) -> Result<PathBuf, CommandError> {
    named.map_or_else(|| authority::find(folder).map_err(fault), |folder| Ok(folder.to_owned()))
}

/// Refuses a folder for a new CA that is, or lies in, the folder of an agent's files.
///
/// # Errors
/// When it does.
pub fn refuse_below(ca: &Path, folder: &Path) -> Result<(), CommandError> {
    // Neither has to be there yet: the part that is there is followed through its links.
    let real = |path: &Path| {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let there = path.ancestors().find(|part| part.exists()).unwrap_or(Path::new("/"));
        let rest = path.strip_prefix(there).unwrap_or(Path::new(""));
        std::fs::canonicalize(there).map_or_else(|_| path.clone(), |there| there.join(rest))
    };
    if !real(ca).starts_with(real(folder)) {
        return Ok(());
    }
    let fault = format!("{} is below {}, where an agent has its files", ca.display(), folder.display());
    Err(CommandError::usage(fault)
        .hint("name a folder elsewhere, best on another host, or leave --ca-folder out"))
}

impl PkiCommand {
    /// Does it.
    ///
    /// # Errors
    /// When a file is in the way or cannot be written.
    pub fn run(self) -> Result<ExitCode, CommandError> {
        let now = jiff::Timestamp::now();
        match self {
            Self::Init {
                folder,
                source,
                source_host,
                target,
                target_host,
                operator,
                ca_folder,
                organisation,
                days,
                without_signing_keys,
            } => {
                if let Some(ca) = &ca_folder {
                    refuse_below(ca, &folder)?;
                }
                let options = PkiOptions {
                    organisation,
                    source: Party { name: source, hosts: source_host },
                    target: Party { name: target, hosts: target_host },
                    operator: Party { name: operator, hosts: Vec::new() },
                    validity: DAY * days,
                    ca_validity: DAY * days.max(3650),
                    signing_keys: !without_signing_keys,
                };
                let ca = init_pki(&folder, ca_folder.as_deref(), &options, now).map_err(fault)?;
                let (keys, of_source, of_target) = match without_signing_keys {
                    false => (
                        ", and two signing keys",
                        " source-signing.key target-signing.pub",
                        " target-signing.key source-signing.pub",
                    ),
                    true => ("", "", ""),
                };
                print(&format!(
                    "made certificates for source, target and operator{keys} in {}, and a CA in {}\n\
                     source host:  ca.crt source.crt source.key{of_source} operator.*\n\
                     target host:  ca.crt target.crt target.key{of_target} operator.*\n\
                     The CA's ca.key is needed for new certificates only: keep it on another host, and never below an agent's configuration\n",
                    folder.display(),
                    ca.display()
                ));
                for path in ours(&folder)? {
                    print(&shown(&path, &Certificate::read(&path).map_err(fault)?));
                }
            }
            Self::NewCa { folder, ca_folder, organisation, days } => {
                if let Some(ca) = &ca_folder {
                    refuse_below(ca, &folder)?;
                }
                let ca = add_authority(&folder, ca_folder.as_deref(), &organisation, DAY * days, now);
                let (ca, bundle) = (ca.map_err(fault)?, folder.join("ca.crt"));
                print(&format!(
                    "made a new CA in {ca}; {bundle} has its certificate before that of the old one\n\
                     1. put {bundle} in the place of ca.crt on every host: agents take it within half a minute\n\
                     2. renew every certificate: assay-target pki renew {folder}, and for those of other hosts the same with their files\n\
                     3. when all are renewed, put {ca}/ca.crt in the place of ca.crt on every host: the old CA is believed no longer\n",
                    ca = ca.display(),
                    bundle = bundle.display(),
                    folder = folder.display(),
                ));
            }
            Self::Renew { folder, ca_folder, certificates, within, days, new_keys } => {
                let all = if certificates.is_empty() { ours(&folder)? } else { certificates };
                let mut text = String::new();
                for path in all {
                    let old = Certificate::read(&path).map_err(fault)?;
                    let left = old.not_after.duration_since(now).as_hours();
                    if within.is_some_and(|days| left > 24 * i64::from(days)) {
                        let days = left.unsigned_abs() / 24;
                        text += &format!("{}: not renewed, {} left\n", path.display(), counted(days, "day"));
                        continue;
                    }
                    let ca = authority_of(ca_folder.as_deref(), &folder)?;
                    let key = new_keys.then(|| path.with_extension("key"));
                    let renewed = renew(&ca, &path, key.as_deref(), DAY * days, now).map_err(fault)?;
                    text += &shown(&path, &renewed);
                }
                print(&text);
            }
            Self::Show { certificates } => {
                for path in certificates {
                    print(&shown(&path, &Certificate::read(&path).map_err(fault)?));
                }
            }
            Self::Issue { folder, ca_folder, role, name, host, days } => {
                let ca = authority_of(ca_folder.as_deref(), &folder)?;
                let party = Party { name, hosts: host };
                let issued = issue(&folder, &ca, role, &party, DAY * days, now).map_err(fault)?;
                print(&format!("made {} and {}\n", issued.cert.display(), issued.key.display()));
                print(&shown(&issued.cert, &Certificate::read(&issued.cert).map_err(fault)?));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn fault(error: PkiError) -> CommandError {
    let hint = error.hint();
    CommandError { hint, ..CommandError::usage(error.to_string()) }
}
