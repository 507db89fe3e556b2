//! `note add` and `note list`: what operators say of exceptions, signed. The store of this host is read and written; no agent is asked.

use std::process::ExitCode;

use assay_common::{
    audit::notes,
    cli::{CommandError, all, print, print_json},
    config::no_such_repository,
    error::Hint as _,
    keyring::Keyring,
    ledger::{EntryId, Ledger, LedgerError},
    signing::{KeyError, SigningKey},
    verdict::{
        MAX_NOTE_BY_BYTES, MAX_NOTE_BYTES, MAX_NOTES_OF_ONE, Note, NoteSubject, NotedEntry, keep_note,
        link_digest, note_fault, sign_note, unverified_verdict,
    },
};
use jiff::Timestamp;

use super::{Which, restore::own_keys};
use crate::{
    config::{Config, Repository},
    store::NOTES,
};

/// Notes on exceptions.
#[derive(Debug, clap::Subcommand)]
pub(super) enum NoteCommand {
    /// Sign a note on a verdict, a generation or a missed slot; exit codes: 0 noted, 2 usage, 4 it cannot be written
    ///
    /// The note is signed with the target's key and kept beside the ledger. `verdict show`, `explain` and the report show it. It
    /// changes no outcome, and cannot be changed. The same note again is kept once.
    Add {
        /// Repository; may be left out when there is one only
        #[arg(default_value = "", hide_default_value = true)]
        repository: String,
        #[command(flatten)]
        about: About,
        /// Who says it
        #[arg(long, value_name = "NAME")]
        by: String,
        /// The note, one line
        #[arg(long, value_name = "TEXT")]
        text: String,
    },
    /// List the notes, oldest first; exit codes: 0 all verify, 1 one does not, 2 usage, 4 they cannot be read
    List {
        #[command(flatten)]
        which: Which,
    },
}

/// What a note is about: one of these.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct About {
    /// A verdict, as `verdict list` gives it
    #[arg(long, value_name = "ID", value_parser = sequence)]
    verdict: Option<u64>,
    /// A generation that has a verdict
    #[arg(long, value_name = "NUMBER")]
    generation: Option<u64>,
    /// A moment in a slot of the schedule, for example 2026-11-24T03:00:00Z
    #[arg(long, value_name = "TIME")]
    slot: Option<Timestamp>,
}

fn sequence(text: &str) -> Result<u64, &'static str> {
    let number = text.parse::<u64>().ok().filter(|number| *number > 0);
    number.ok_or("must be the number of a verdict, as `assay-target verdict list` gives it")
}

fn key_error(error: KeyError) -> CommandError {
    CommandError { hint: error.hint(), ..CommandError::usage(error.to_string()) }
}

fn unreadable(error: LedgerError) -> CommandError {
    CommandError { hint: error.hint(), ..CommandError::not_run(error.to_string()) }
}

/// Does it.
pub(super) fn run(command: NoteCommand, config: &Config, json: bool) -> Result<ExitCode, CommandError> {
    match command {
        NoteCommand::Add { repository, about, by, text } => {
            add(config, named(config, &repository)?, &about, by, text, json)
        }
        NoteCommand::List { which } if which.all => {
            let mut each = all::Each::new(json);
            for repository in &config.repositories {
                each.begin(&repository.name);
                each.end(list(config, repository, json));
            }
            Ok(each.code())
        }
        NoteCommand::List { which } => list(config, named(config, &which.repository)?, json),
    }
}

/// The repository with this name or alias, or the only one.
pub(super) fn named<'a>(config: &'a Config, name: &str) -> Result<&'a Repository, CommandError> {
    let mut known = config.repositories.iter();
    let repository = match (name, config.repositories.len()) {
        ("", 1) => known.next(),
        (name, _) => known.find(|repository| repository.name == all::real_name(name)),
    };
    repository.ok_or_else(|| {
        let names: Vec<_> = config.repositories.iter().map(|repository| repository.name.as_str()).collect();
        CommandError::usage(no_such_repository(name, "in the configuration"))
            .hint(format!("its repositories are: {}", names.join(", ")))
    })
}

/// What the note is about, and the entry of the ledger that ties it to that.
fn subject(ledger: &Ledger, about: &About, now: Timestamp) -> Result<(NoteSubject, EntryId), CommandError> {
    let refused = |fault: String| {
        CommandError::usage(fault)
            .hint("`assay-target verdict list` names the verdicts and their generations")
    };
    let ids = ledger.entries().map_err(unreadable)?;
    let verdict_at = |id: &EntryId| unverified_verdict(&ledger.get(&id.to_string()).ok()?).ok();
    match (about.verdict, about.generation, about.slot) {
        (Some(sequence), ..) => {
            let id = EntryId(sequence);
            match ids.contains(&id).then(|| verdict_at(&id)) {
                None => Err(refused(format!("--verdict: the ledger has no verdict {id}"))),
                Some(None) => Err(refused(format!("--verdict: entry {id} of the ledger is no verdict"))),
                Some(Some(_)) => Ok((NoteSubject::Verdict(sequence), id)),
            }
        }
        (_, Some(number), _) => {
            let is_of = |id: &EntryId| {
                verdict_at(id).and_then(|verdict| verdict.generation).is_some_and(|found| found.0 == number)
            };
            // Newest first.
            let id = ids.iter().copied().find(is_of);
            let id =
                id.ok_or_else(|| refused(format!("--generation: no verdict is about generation {number}")))?;
            Ok((NoteSubject::Generation(number), id))
        }
        (_, _, Some(slot)) => {
            if slot > now {
                return Err(CommandError::usage(format!(
                    "--slot: {slot} is in the future: nothing was missed yet"
                )));
            }
            let head = ids.first().copied();
            let head = head.ok_or_else(|| CommandError::usage("--slot: the ledger has no entry yet"))?;
            Ok((NoteSubject::Slot(slot), head))
        }
        (None, None, None) => Err(CommandError::usage("give --verdict, --generation or --slot")),
    }
}

fn add(
    config: &Config,
    repository: &Repository,
    about: &About,
    by: String,
    text: String,
    json: bool,
) -> Result<ExitCode, CommandError> {
    for (name, text, most) in [("--by", &by, MAX_NOTE_BY_BYTES), ("--text", &text, MAX_NOTE_BYTES)] {
        if let Some(fault) = note_fault(text, most) {
            return Err(CommandError::usage(format!("{name}: {fault}")));
        }
    }
    let store = config.agent.store.join(&repository.name);
    let (ledger, folder, now) = (Ledger::at(&store.join("ledger")), store.join(NOTES), Timestamp::now());
    let (about, id) = subject(&ledger, about, now)?;
    let key = SigningKey::load(&config.agent.signing_key).map_err(key_error)?;
    let (keys, source_keys) =
        (own_keys(config).map_err(key_error)?, Keyring::load(&repository.source_key).map_err(key_error)?);
    let (known, _) = notes(&ledger, &keys, Some(&source_keys), &folder).map_err(unreadable)?;
    let mut of_this = known.iter().filter(|note| note.about == about);
    if of_this.clone().any(|note| note.by == by && note.text == text) {
        match json {
            true => print_json(&serde_json::json!({ "noted": false, "about": about.to_string() })),
            false => print(&format!("noted before: {about}\n")),
        }
        return Ok(ExitCode::SUCCESS);
    }
    if of_this.nth(MAX_NOTES_OF_ONE - 1).is_some() {
        return Err(CommandError::usage(format!("{about} has {MAX_NOTES_OF_ONE} notes, which is the limit")));
    }
    let digest = link_digest(&ledger.get(&id.to_string()).map_err(unreadable)?);
    let entry = NotedEntry { sequence: id.sequence(), digest };
    let note = Note { repository: repository.name.clone(), by, time: now, text, about, entry };
    let path = keep_note(&folder, &sign_note(&note, &key))
        .map_err(|error| CommandError { hint: error.hint(), ..CommandError::not_run(error.to_string()) })?;
    let file = path.display().to_string();
    match json {
        true => print_json(&serde_json::json!({ "noted": true, "about": about.to_string(), "file": file })),
        false => print(&format!("noted: {about}; kept as {file}\n")),
    }
    Ok(ExitCode::SUCCESS)
}

fn list(config: &Config, repository: &Repository, json: bool) -> Result<ExitCode, CommandError> {
    let store = config.agent.store.join(&repository.name);
    let (keys, source_keys) =
        (own_keys(config).map_err(key_error)?, Keyring::load(&repository.source_key).map_err(key_error)?);
    let ledger = Ledger::at(&store.join("ledger"));
    let (known, findings) =
        notes(&ledger, &keys, Some(&source_keys), &store.join(NOTES)).map_err(unreadable)?;
    let findings: Vec<_> = findings.iter().map(ToString::to_string).collect();
    if json {
        print_json(&serde_json::json!({
            "repository": repository.name, "notes": known, "findings": findings,
        }));
    } else if known.is_empty() && findings.is_empty() {
        print("no notes\n");
    } else {
        known.iter().for_each(|note| print(&format!("{}\n", note.line())));
        findings.iter().for_each(|finding| print(&format!("WRONG: {finding}\n")));
    }
    Ok(ExitCode::from(u8::from(!findings.is_empty())))
}
