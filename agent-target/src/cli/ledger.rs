//! `ledger verify` and `ledger head`, on the store of this host or on a copy of the ledger's folder. No agent is asked.

use std::{collections::BTreeSet, fs::File, io, path::PathBuf, process::ExitCode};

use assay_common::{
    audit::{Expected, Finding, audit},
    cli::{AuditArgs, Beside, CommandError, all, print, print_head, print_json, show},
    digest::MANIFEST_CONTEXT,
    error::Hint as _,
    id::GenerationNumber,
    keyring::{Keyring, load_if_given},
    ledger::{EntryId, Ledger, LedgerError},
    signing::{KeyError, SigningKey},
    verdict::{
        AcknowledgedVerdict, Acknowledgement, HexDigest, MAX_ACKNOWLEDGED_BYTES, keep_acknowledgement,
        link_digest, parse_verdicts, sign_acknowledgement,
    },
};

use super::{Which, note::named, restore::own_keys};
use crate::{
    config::{Config, Repository},
    store::{ACKNOWLEDGEMENTS, MANIFEST, NOTES, RECEIPTS},
};

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
    /// Say that the times of verdicts are not true because a clock was wrong; exit codes: 0 noted, 2 usage, 4 it cannot be written
    ///
    /// The acknowledgement is signed with the target's key and kept beside the ledger. `ledger verify` shows it from then on, and does
    /// not call these times wrong. It covers no broken chain, no signature and no missing verdict.
    Acknowledge {
        /// Repository; may be left out when there is one only
        #[arg(default_value = "", hide_default_value = true)]
        repository: String,
        /// The verdicts whose times are not true: a number, or two with '-' between; may be given several times
        #[arg(long = "verdict", value_name = "N[-M]", required = true, value_parser = parse_verdicts)]
        verdicts: Vec<std::ops::RangeInclusive<u64>>,
        /// Who says so
        #[arg(long, value_name = "NAME")]
        by: String,
        /// What had happened
        #[arg(long, value_name = "TEXT")]
        why: String,
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
    #[command(flatten)]
    which: Which,
    /// A copy of a ledger's folder, instead of the one in the store; then --key is needed
    #[arg(long, value_name = "DIR", conflicts_with = "all")]
    folder: Option<PathBuf>,
    /// The target's public signing key; never taken from the ledger. May be given several times, oldest first
    #[arg(long, value_name = "PUB", requires = "folder")]
    key: Vec<PathBuf>,
    /// The source's public signing key, to check its embedded statements too. May be given several times, oldest first
    #[arg(long, value_name = "PUB", requires = "folder")]
    source_key: Vec<PathBuf>,
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
        LedgerCommand::Acknowledge { repository, verdicts, by, why } => {
            return acknowledge(&load()?, &repository, &verdicts, by, why, json);
        }
        LedgerCommand::Verify { place, audit } => (place, Some(audit)),
        LedgerCommand::Head { place } => (place, None),
    };
    if let Some(folder) = &place.folder {
        let ledger = open(folder)?;
        let Some(audit) = audit else { return print_head(&ledger) };
        if place.key.is_empty() {
            return Err(CommandError::usage("--key is missing: a key is never taken from the ledger itself")
                .hint("give the target's public signing key from where you trust it, for example pki/target-signing.pub"));
        }
        let keys = Keyring::load_all(&place.key).map_err(key_error)?;
        let source_keys = load_if_given(&place.source_key).map_err(key_error)?;
        return audit.run(&ledger, &keys, source_keys.as_ref(), None, Beside::default(), json);
    }
    let config = load()?;
    if !place.which.all {
        return look(&config, named(&config, &place.which.repository)?, audit.as_ref(), json);
    }
    let mut each = all::Each::new(json);
    for repository in &config.repositories {
        each.begin(&repository.name);
        each.end(look(&config, repository, audit.as_ref(), json));
    }
    Ok(each.code())
}

/// Looks at the ledger of one repository; without `audit` at its head alone.
fn look(
    config: &Config,
    repository: &Repository,
    audit: Option<&AuditArgs>,
    json: bool,
) -> Result<ExitCode, CommandError> {
    let store = config.agent.store.join(&repository.name);
    let ledger = open(&store.join("ledger"))?;
    let Some(audit) = audit else { return print_head(&ledger) };
    let keys = own_keys(config).map_err(key_error)?;
    let source_keys = Keyring::load(&repository.source_key).map_err(key_error)?;
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
    let (receipts, acknowledgements) = (store.join(RECEIPTS), store.join(ACKNOWLEDGEMENTS));
    let notes = store.join(NOTES);
    let beside =
        Beside { receipts: Some(&receipts), acknowledgements: Some(&acknowledgements), notes: Some(&notes) };
    audit.run(&ledger, &keys, Some(&source_keys), Some(&root_of), beside, json)
}

/// Signs and keeps what an operator says of verdicts whose times contradict others.
fn acknowledge(
    config: &Config,
    repository: &str,
    verdicts: &[std::ops::RangeInclusive<u64>],
    by: String,
    why: String,
    json: bool,
) -> Result<ExitCode, CommandError> {
    let repository = named(config, repository)?;
    for (name, text) in [("--by", &by), ("--why", &why)] {
        if text.trim().is_empty() || text.len() > MAX_ACKNOWLEDGED_BYTES {
            let fault = format!("{name}: must be a text of 1 to {MAX_ACKNOWLEDGED_BYTES} bytes");
            return Err(CommandError::usage(fault));
        }
    }
    let store = config.agent.store.join(&repository.name);
    let (ledger, folder) = (open(&store.join("ledger"))?, store.join(ACKNOWLEDGEMENTS));
    let key = SigningKey::load(&config.agent.signing_key).map_err(key_error)?;
    let (keys, source_keys) =
        (own_keys(config).map_err(key_error)?, Keyring::load(&repository.source_key).map_err(key_error)?);
    let receipts = store.join(RECEIPTS);
    let expected =
        Expected { receipts: Some(&receipts), acknowledgements: Some(&folder), ..Default::default() };
    let unreadable =
        |error: LedgerError| CommandError { hint: error.hint(), ..CommandError::not_run(error.to_string()) };
    let found = audit(&ledger, &keys, Some(&source_keys), &expected).map_err(unreadable)?;
    let wrong: BTreeSet<u64> = found.findings.iter().flat_map(Finding::wrong_clock).collect();
    let mut named = Vec::new();
    for sequence in verdicts.iter().cloned().flatten().collect::<BTreeSet<u64>>() {
        let id = EntryId(sequence).to_string();
        let bytes = ledger.get(&id).map_err(|error| {
            CommandError::usage(format!("--verdict {sequence}: {error}"))
                .hint("`assay-target ledger verify` names the verdicts whose times contradict others")
        })?;
        named.push(AcknowledgedVerdict { sequence, digest: link_digest(&bytes) });
    }
    if !named.iter().any(|verdict| wrong.contains(&verdict.sequence)) {
        return Err(CommandError::usage("the times of these verdicts contradict no others")
            .hint("`assay-target ledger verify` names the verdicts whose times do; nothing else can be acknowledged"));
    }
    let count = named.len();
    let acknowledgement = Acknowledgement {
        repository: repository.name.clone(),
        by,
        time: jiff::Timestamp::now(),
        why,
        verdicts: named,
    };
    let envelope = sign_acknowledgement(&acknowledgement, &key);
    let path = keep_acknowledgement(&folder, &envelope)
        .map_err(|error| CommandError { hint: error.hint(), ..CommandError::not_run(error.to_string()) })?;
    if json {
        print_json(&serde_json::json!({ "acknowledged": count, "file": path.display().to_string() }));
    } else {
        let verdicts = show::counted(count as u64, "verdict");
        print(&format!("acknowledged: the times of {verdicts}; kept as {}\n", path.display()));
    }
    Ok(ExitCode::SUCCESS)
}
