//! `ledger verify` and `ledger head`, on the store of this host or on a copy of the ledger's folder. No agent is asked.

use std::{fs::File, io, path::PathBuf, process::ExitCode};

use assay_common::{
    cli::{AuditArgs, CommandError, print_head},
    config::no_such_repository,
    digest::MANIFEST_CONTEXT,
    error::Hint as _,
    id::GenerationNumber,
    ledger::Ledger,
    signing::{KeyError, SigningKey, VerifyingKey},
    verdict::HexDigest,
};

use crate::{config::Config, store::MANIFEST};

/// The ledger as a whole.
#[derive(Debug, clap::Subcommand)]
pub(super) enum LedgerCommand {
    /// Check signatures, chain, times, and the generations that are there; exit codes: 0 sound, 1 not, 2 usage, 4 unreadable
    Verify {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        audit: AuditArgs,
    },
    /// Print the place and the digest of the newest verdict, to be noted elsewhere
    Head {
        #[command(flatten)]
        place: Place,
    },
}

/// Which ledger.
#[derive(Debug, clap::Args)]
pub(super) struct Place {
    /// Repository; may be left out when there is one only
    #[arg(default_value = "")]
    repository: String,
    /// A copy of a ledger's folder, instead of the one in the store; then --key is needed
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// The target's public signing key; never taken from the ledger
    #[arg(long, value_name = "PUB", requires = "folder")]
    key: Option<PathBuf>,
    /// The source's public signing key, to check its embedded statements too
    #[arg(long, value_name = "PUB", requires = "folder")]
    source_key: Option<PathBuf>,
}

fn key_error(error: KeyError) -> CommandError {
    CommandError { hint: error.hint(), ..CommandError::usage(error.to_string()) }
}

fn open(folder: &std::path::Path) -> Result<Ledger, CommandError> {
    match std::fs::read_dir(folder) {
        Ok(_) => Ok(Ledger::at(folder)),
        Err(error) => Err(CommandError::not_run(format!("{}: cannot be read: {error}", folder.display()))),
    }
}

/// Does it; `load` reads the configuration, when it is needed.
pub(super) fn run(
    command: LedgerCommand,
    load: impl FnOnce() -> Result<Config, CommandError>,
    json: bool,
) -> Result<ExitCode, CommandError> {
    let (place, audit) = match command {
        LedgerCommand::Verify { place, audit } => (place, Some(audit)),
        LedgerCommand::Head { place } => (place, None),
    };
    if let Some(folder) = &place.folder {
        let ledger = open(folder)?;
        let Some(audit) = audit else { return print_head(&ledger) };
        let key = place.key.as_deref().ok_or_else(|| {
            CommandError::usage("--key was expected: a key is never taken from the ledger itself")
                .hint("give the target's public signing key from where you trust it, for example pki/target-signing.pub")
        })?;
        let key = VerifyingKey::load(key).map_err(key_error)?;
        let source_key =
            place.source_key.as_deref().map(VerifyingKey::load).transpose().map_err(key_error)?;
        return audit.run(&ledger, &key, source_key.as_ref(), None, None, json);
    }
    let config = load()?;
    let mut known = config.repositories.iter();
    let repository = match (place.repository.as_str(), config.repositories.len()) {
        ("", 1) => known.next(),
        (name, _) => known.find(|repository| repository.name == name),
    };
    let repository = repository.ok_or_else(|| {
        let names: Vec<_> = config.repositories.iter().map(|repository| repository.name.as_str()).collect();
        CommandError::usage(no_such_repository(&place.repository, "in the configuration"))
            .hint(format!("its repositories are: {}", names.join(", ")))
    })?;
    let store = config.agent.store.join(&repository.name);
    let ledger = open(&store.join("ledger"))?;
    let Some(audit) = audit else { return print_head(&ledger) };
    let key = SigningKey::load(&config.agent.signing_key).map_err(key_error)?.verifying_key();
    let source_key = VerifyingKey::load(&repository.source_key).map_err(key_error)?;
    let root_of = |number: GenerationNumber| {
        let folder = store.join("generations").join(number.folder());
        // What was pruned has its verdicts all the same.
        folder.is_dir().then(|| {
            let mut hasher = blake3::Hasher::new_derive_key(MANIFEST_CONTEXT);
            let hashed =
                File::open(folder.join(MANIFEST)).and_then(|mut file| io::copy(&mut file, &mut hasher));
            hashed.map_err(|error| format!("its manifest cannot be read: {error}"))?;
            Ok(HexDigest(*hasher.finalize().as_bytes()))
        })
    };
    let receipts = store.join("receipts");
    audit.run(&ledger, &key, Some(&source_key), Some(&root_of), Some(&receipts), json)
}
