//! `keys`: the key with which this target signs verdicts, and the one after it.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::ExitCode,
};

use assay_common::{
    cli::{CommandError, checked_why, print, show_keys},
    dsse::Envelope,
    durable::write_durable,
    error::{Hint as _, IoContext as _, PathError, ShowPath},
    keyring::{self, Keyring, Place},
    ledger::{Ledger, LedgerError},
    signing::{KeyError, SigningKey, VerifyingKey},
    verdict::{HexDigest, KeyChange, KeyOwner, sign_key_change, unverified_key_change},
};

use super::restore::own_keys;
use crate::{config::Config, repository::keys::LastKeys};

/// The key with which this target signs verdicts.
#[derive(Debug, clap::Subcommand)]
pub(super) enum KeysCommand {
    /// List this target's keys, and those that are pinned for each source
    Show,
    /// Make the key that is to follow, so that sources can pin it beforehand; nothing is signed with it yet
    Next,
    /// Replace the key: in each ledger the old key names the new one, and is removed. The agent must have been stopped
    Rotate {
        /// The old key's public half, where the private one is lost or was replaced by hand: the new key alone says so in the ledgers
        #[arg(long, value_name = "PUB")]
        lost: Option<PathBuf>,
        /// What the ledgers say of the reason
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        why: String,
    },
}

/// Does it.
pub(super) fn run(command: KeysCommand, config: &Config, json: bool) -> Result<ExitCode, CommandError> {
    let path = &config.agent.signing_key;
    match command {
        KeysCommand::Show => {
            show_keys(&format!("target {}", config.agent.name), path, &own_keys(config)?, json);
            let mut shown = Vec::new();
            for repository in &config.repositories {
                if !shown.contains(&&repository.source_key) {
                    let owner = format!("source {}", repository.source);
                    show_keys(&owner, &repository.source_key, &Keyring::load(&repository.source_key)?, json);
                    shown.push(&repository.source_key);
                }
            }
        }
        KeysCommand::Next => {
            let own = own_keys(config)?;
            let next = next_key(path)?;
            let file = keyring::keep(path, Place::Next, &next.verifying_key())?;
            print(&format!(
                "the key that is to follow is {}; {} signs until then\n\
                 its public half: {file}\n\
                 next: bring that file to every source, and there: assay-source keys add FILE\n\
                 then here: stop assay-target; assay-target keys rotate; start assay-target\n",
                next.key_id(),
                own.current().key_id(),
                file = file.display(),
            ));
        }
        KeysCommand::Rotate { lost, why } => {
            checked_why(&why)?;
            let _stopped = hold_stores(config)?;
            rotate(config, lost.as_deref(), &why)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The private key that is to follow, which is made when it is not there.
fn next_key(path: &Path) -> Result<SigningKey, KeyError> {
    let next = next_path(path);
    if !next.exists() {
        SigningKey::generate().save(&next)?;
    }
    SigningKey::load(&next)
}

fn next_path(path: &Path) -> PathBuf {
    path.with_extension("next.key")
}

fn ledger_error(error: LedgerError) -> CommandError {
    CommandError { hint: error.hint(), ..CommandError::not_run(error.to_string()) }
}

fn file_error(error: PathError) -> CommandError {
    CommandError { hint: error.hint(), ..CommandError::not_run(error.to_string()) }
}

/// The locks of all stores, which an agent that runs holds: it would go on signing with the old key.
fn hold_stores(config: &Config) -> Result<Vec<File>, CommandError> {
    let mut held = Vec::new();
    for repository in &config.repositories {
        let path = config.agent.store.join(&repository.name).join("lock");
        let file = match File::open(&path) {
            // Nothing was received yet.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            file => file.at("open", &path).map_err(file_error)?,
        };
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            match error {
                rustix::io::Errno::WOULDBLOCK => CommandError::not_run(
                    "assay-target runs, and signs with the old key; nothing was changed",
                )
                .hint("stop it (systemctl stop assay-target), do this again, and start it"),
                error => file_error(PathError::new("lock", &path, error)),
            }
        })?;
        held.push(file);
    }
    Ok(held)
}

fn raw(key: &VerifyingKey) -> HexDigest {
    HexDigest(key.to_bytes())
}

/// Replaces the key:
///
/// 1. The new one is made, or is the one that was announced. A crash leaves it, and the next attempt takes it.
/// 2. In each ledger an entry names it. From here on the agent does not start with the old key; the next attempt goes on.
/// 3. The new private key takes the place of the old one, which is gone.
/// 4. The old public key is kept among the former ones, and the new one takes its place.
fn rotate(config: &Config, lost: Option<&Path>, why: &str) -> Result<(), CommandError> {
    let path = &config.agent.signing_key;
    let public = path.with_extension("pub");
    if let Some(done) = unfinished(config, path)? {
        let (former, new) = done;
        settle(path, &public, &former, &new)?;
        return told(config, &public, &former, &new);
    }
    let own = SigningKey::load(path);
    let next = next_path(path);
    let is_there = own.is_ok() && lost.is_some();
    let (former, new, signer) = match lost {
        None => {
            let own = own?;
            let new = next_key(path)?;
            (own.verifying_key(), new, Some(own))
        }
        Some(lost) => {
            let former = VerifyingKey::load(lost)?;
            match own {
                Ok(own) if own.verifying_key() == former => {
                    return Err(CommandError::usage(format!(
                        "{} is not lost: it is agent.signing_key",
                        ShowPath(lost)
                    ))
                    .hint("leave --lost out: the old key signs that the new one follows it"));
                }
                // It was replaced by hand.
                Ok(own) => (former, own, None),
                Err(_) => (former, next_key(path)?, None),
            }
        }
    };
    let new_public = new.verifying_key();
    for repository in &config.repositories {
        let folder = config.agent.store.join(&repository.name).join("ledger");
        if folder.is_dir() {
            note_change(&repository.name, &Ledger::at(&folder), (&former, &new, signer.as_ref()), why)?;
        }
    }
    if !is_there && next.exists() {
        use std::os::unix::fs::{MetadataExt as _, chown};
        if let Ok(stat) = fs::metadata(path) {
            chown(&next, Some(stat.uid()), Some(stat.gid()))
                .at("change the owner of", &next)
                .map_err(file_error)?;
        }
        fs::rename(&next, path).at("replace", path).map_err(file_error)?;
    }
    settle(path, &public, &former, &new_public)?;
    told(config, &public, &former, &new_public)
}

/// A rotation that ended between its third and its fourth step: the old key and the new one.
fn unfinished(config: &Config, path: &Path) -> Result<Option<(VerifyingKey, VerifyingKey)>, CommandError> {
    let Ok(own) = SigningKey::load(path) else { return Ok(None) };
    let own = own.verifying_key();
    for repository in &config.repositories {
        let folder = config.agent.store.join(&repository.name).join("ledger");
        if !folder.is_dir() {
            continue;
        }
        let last = LastKeys::read(&Ledger::at(&folder)).map_err(ledger_error)?;
        if let Some((_, change)) = last.target.filter(|(_, change)| change.new_key == raw(&own))
            && let Some(former) = change.former()
        {
            let is_kept = Keyring::around(own.clone(), path)?.former().contains(&former);
            return Ok((!is_kept).then_some((former, own)));
        }
    }
    Ok(None)
}

/// Puts the public keys where they belong.
fn settle(path: &Path, public: &Path, former: &VerifyingKey, new: &VerifyingKey) -> Result<(), CommandError> {
    keyring::keep(path, Place::Former, former)?;
    write_durable(public, new.to_pem().as_bytes(), 0o644).map_err(file_error)?;
    Ok(keyring::forget_announced(path, new)?)
}

/// Appends the entry to one ledger, unless it is there.
fn note_change(
    repository: &str,
    ledger: &Ledger,
    (former, new, signer): (&VerifyingKey, &SigningKey, Option<&SigningKey>),
    why: &str,
) -> Result<(), CommandError> {
    let last = LastKeys::read(ledger).map_err(ledger_error)?;
    let new_key = new.verifying_key();
    let (former_id, new_id) = (former.key_id(), new_key.key_id());
    let names_new = last.target.as_ref().is_some_and(|(_, change)| change.new_key == raw(&new_key));
    if names_new {
        return Ok(());
    }
    let (since, before) = goes_on_with(ledger, &new_id)?;
    // Where the new key has signed everything, there is nothing to say of another.
    let Some(before) = before else { return Ok(()) };
    if before != former_id || (since.is_some() && signer.is_some()) {
        return Err(CommandError::not_run(format!(
            "the ledger of {repository} has entries of key {before}, and not of {former_id} alone; nothing was signed in it"
        ))
        .hint("give the public half of the key that it had before: --lost PUB"));
    }
    let generation = newest_generation(ledger);
    let without_former_key = signer.is_none();
    ledger
        .append(|sequence, previous| {
            let change = KeyChange {
                repository: repository.to_owned(),
                sequence,
                previous,
                owner: KeyOwner::Target,
                former_key: raw(former),
                new_key: raw(&new_key),
                since: if without_former_key { since.unwrap_or(sequence) } else { sequence + 1 },
                generation,
                without_former_key,
                time: jiff::Timestamp::now(),
                why: why.to_owned(),
            };
            sign_key_change(&change, signer.unwrap_or(new))
        })
        .map_err(ledger_error)?;
    Ok(())
}

/// The first entry at the end of a ledger from which on the key `new` has signed all, and the id of the key that signs before it.
fn goes_on_with(ledger: &Ledger, new: &str) -> Result<(Option<u64>, Option<String>), CommandError> {
    let mut since = None;
    for id in ledger.entries().map_err(ledger_error)? {
        let bytes = ledger.get(&id.to_string()).map_err(ledger_error)?;
        let signer = Envelope::parse(&bytes).map(|envelope| envelope.claimed_key_id().to_owned());
        let signer = signer.unwrap_or_default();
        if signer == new {
            since = Some(id.sequence());
            continue;
        }
        // The key that a change names signs behind it.
        let named = unverified_key_change(&bytes).ok().filter(|change| change.owner == KeyOwner::Target);
        let named = named.and_then(|change| change.successor()).map(|key| key.key_id());
        return Ok((since, Some(named.unwrap_or(signer))));
    }
    Ok((since, None))
}

/// The newest sealed generation beside a ledger; 0 for none.
fn newest_generation(ledger: &Ledger) -> u64 {
    let latest = fs::read_link(ledger.folder().with_file_name("latest")).ok();
    let number = latest
        .as_deref()
        .and_then(Path::file_name)
        .and_then(|name| assay_common::id::GenerationNumber::from_folder(name.to_str()?));
    number.map_or(0, |number| number.0)
}

fn told(
    config: &Config,
    public: &Path,
    former: &VerifyingKey,
    new: &VerifyingKey,
) -> Result<(), CommandError> {
    let mut sources: Vec<_> = config.repositories.iter().map(|repository| &*repository.source).collect();
    sources.sort_unstable();
    sources.dedup();
    print(&format!(
        "this target signs with key {new} from now on, and no longer with {former}; its ledgers say so\n\
         its public half: {public}\n\
         next: start assay-target. A source that has not announced it (assay-source keys add FILE) believes no verdict until it has; the \
         sources are: {sources}\n\
         whoever verifies ledgers elsewhere needs the new public key beside the old one\n",
        new = new.key_id(),
        former = former.key_id(),
        public = public.display(),
        sources = sources.join(", "),
    ));
    Ok(())
}
