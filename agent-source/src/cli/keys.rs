//! `keys`: the target's keys that this source believes, and its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use assay_common::{
    cli::{CommandError, join, print, show_keys, write_new},
    durable::write_durable,
    error::{Hint as _, IoContext as _, PathError},
    keyring::{self, Keyring, Place},
    signing::{SigningKey, VerifyingKey},
};

use super::{init::acceptance, restore::own_keys};
use crate::config::Config;

/// The keys that this source believes and signs with.
#[derive(Debug, clap::Subcommand)]
pub(super) enum KeysCommand {
    /// List the target's pinned keys and this source's own
    Show,
    /// Announce the target's next key: it is believed beside the present one, which is refused once the new one has signed a verdict
    Add {
        /// The public key, as `assay-target keys next` or `keys rotate` made it
        file: PathBuf,
        /// It signs already: the present key is refused at once. For a key that was stolen or lost
        #[arg(long)]
        now: bool,
    },
    /// Replace this source's own signing key, and print the line with which the target takes it
    Rotate {
        /// A new file for the line, beside printing it; it holds no secret
        #[arg(long, value_name = "FILE")]
        answer: Option<PathBuf>,
    },
}

/// Does it.
pub(super) fn run(command: KeysCommand, config: &Config, json: bool) -> Result<ExitCode, CommandError> {
    let pinned = &config.target.signing_key;
    match command {
        KeysCommand::Show => {
            show_keys("target", pinned, &Keyring::load(pinned)?, json);
            show_keys(
                &format!("source {}", config.agent.name),
                &config.signing_key,
                &own_keys(&config.signing_key)?,
                json,
            );
        }
        KeysCommand::Add { file, now } => add(pinned, &file, now)?,
        KeysCommand::Rotate { answer } => rotate(config, answer.as_deref())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn file_error(error: PathError) -> CommandError {
    CommandError { hint: error.hint(), ..CommandError::not_run(error.to_string()) }
}

fn add(pinned: &Path, file: &Path, now: bool) -> Result<(), CommandError> {
    let (keys, new) = (Keyring::load(pinned)?, VerifyingKey::load(file)?);
    let (id, current) = (new.key_id(), keys.current().key_id());
    if keys.former().contains(&new) {
        return Err(CommandError::usage(format!("the target's key {id} was replaced before, and is not taken again"))
            .hint("whoever has stolen it could ask for that: let the target make a new key, assay-target keys rotate"));
    }
    if *keys.current() == new {
        print(&format!("the target's key {id} is pinned already\n"));
        return Ok(());
    }
    if now {
        // Whatever was announced before it may have signed as well.
        for key in [keys.current()].into_iter().chain(keys.announced()).filter(|key| **key != new) {
            keyring::keep(pinned, Place::Former, key)?;
        }
        write_durable(pinned, new.to_pem().as_bytes(), 0o644).map_err(file_error)?;
        for key in keys.announced() {
            keyring::forget_announced(pinned, key)?;
        }
        print(&format!(
            "the target's key is {id} from now on: compare it with what assay-target keys show prints there\n\
             new verdicts of an earlier key are refused; those of before stay good\n"
        ));
    } else {
        let kept = keyring::keep(pinned, Place::Next, &new)?;
        print(&format!(
            "announced the target's key {id}: compare it with what assay-target keys show prints there\n\
             it is in {}; key {current} is believed until the first verdict that bears {id}, and refused from then on\n\
             no restart is needed\n",
            kept.display()
        ));
    }
    Ok(())
}

/// Replaces the key with which this source signs:
///
/// 1. The new private key takes the place of the old one, which is gone.
/// 2. The public half of the old key is kept among the former ones, so that old generations can be restored.
/// 3. The new public key takes the place of the old one.
///
/// A rotation that ended after 1 goes on at 2: until 3 the public key tells which key came before.
fn rotate(config: &Config, answer: Option<&Path>) -> Result<(), CommandError> {
    join::refuse_what_is_there(answer.map(Path::to_owned))?;
    let path = &config.signing_key;
    let next = path.with_extension("next.key");
    let (old, new) = match unfinished(path, &next) {
        Some(keys) => keys,
        None => {
            if !next.exists() {
                SigningKey::generate().save(&next)?;
            }
            let new = SigningKey::load(&next)?.verifying_key();
            let old = SigningKey::load(path).map(|key| key.verifying_key());
            let old =
                old.or_else(|error| VerifyingKey::load(&path.with_extension("pub")).map_err(|_| error))?;
            take_over(&next, path)?;
            (old, new)
        }
    };
    keyring::keep(path, Place::Former, &old)?;
    let pem = new.to_pem();
    write_durable(&path.with_extension("pub"), pem.as_bytes(), 0o644).map_err(file_error)?;
    let line = acceptance(config, "")?.to_line();
    if let Some(answer) = answer {
        write_new(answer, &format!("{line}\n"))?;
    }
    print(&format!(
        "this source signs with key {} once it is restarted, and no longer with {}\n\n\
         on the target, as one line:\n\nassay-target accept --replace-key {line}\n\n\
         then restart assay-target, and after that assay-source; a run between the two seals nothing\n",
        new.key_id(),
        old.key_id(),
    ));
    Ok(())
}

/// The old key and the new one of a rotation that ended after the private key was replaced.
fn unfinished(path: &Path, next: &Path) -> Option<(VerifyingKey, VerifyingKey)> {
    let new = SigningKey::load(path).ok()?.verifying_key();
    let old = VerifyingKey::load(&path.with_extension("pub")).ok()?;
    (old != new && !next.exists()).then_some((old, new))
}

/// Puts the new key in the place of the old one, for the user whose the old one was.
fn take_over(next: &Path, path: &Path) -> Result<(), CommandError> {
    use std::os::unix::fs::{MetadataExt as _, chown};
    if let Ok(stat) = fs::metadata(path) {
        chown(next, Some(stat.uid()), Some(stat.gid()))
            .at("change the owner of", next)
            .map_err(file_error)?;
    }
    fs::rename(next, path).at("replace", path).map_err(file_error)
}
