//! Operators' notes beside a ledger. One that is not signed with the target's key, or that is about something else than the ledger has,
//! is shown nowhere and is a finding.

use std::{
    cell::OnceCell,
    fs,
    io::{ErrorKind, Read as _},
    path::Path,
};

use jiff::Timestamp;

use super::Finding;
use crate::{
    durable::TEMPORARY_PREFIX,
    error::IoContext as _,
    keyring::Keyring,
    ledger::{Chain, EntryId, Ledger, LedgerError},
    path::display_bytes,
    verdict::{
        MAX_NOTE_FILE_BYTES, Note, NoteSubject, link_digest, unverified_key_change, unverified_verdict,
        verify_note_among,
    },
};

/// A note that verifies.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Noted {
    /// What it is about.
    #[serde(flatten)]
    pub about: NoteSubject,
    /// Who says it.
    pub by: String,
    /// When, by the target host's clock.
    pub time: Timestamp,
    /// The text.
    pub text: String,
}

impl Noted {
    /// A line for a person.
    pub fn line(&self) -> String {
        format!("note on {} by {}", self.about, self.words())
    }

    /// The same without what it is about.
    pub fn words(&self) -> String {
        let (by, text) = (display_bytes(self.by.as_bytes()), display_bytes(self.text.as_bytes()));
        format!("{by}, {}: {text}", self.time.strftime("%Y-%m-%d %H:%M:%SZ"))
    }
}

/// For the wire.
impl From<&Noted> for assay_proto::v1::Note {
    fn from(noted: &Noted) -> Self {
        Self {
            about: noted.about.to_string(),
            by: noted.by.clone(),
            time: Some(crate::verdict::timestamp_to_proto(noted.time)),
            text: noted.text.clone(),
        }
    }
}

/// The notes in `folder`, oldest first, and what is wrong with the others.
///
/// # Errors
/// When the ledger or the folder cannot be read.
pub fn notes(
    ledger: &Ledger,
    target_keys: &Keyring,
    source_keys: Option<&Keyring>,
    folder: &Path,
) -> Result<(Vec<Noted>, Vec<Finding>), LedgerError> {
    let chain = OnceCell::new();
    // A key that has no other beside it is in time. The times of several stand in the ledger.
    let is_in_time = |place: usize, id: EntryId| {
        let known = || ledger.check(target_keys, source_keys).ok();
        target_keys.all().len() == 1
            || chain
                .get_or_init(known)
                .as_ref()
                .is_some_and(|chain: &Chain| chain.is_in_time_of_target(place, id))
    };
    read(ledger, target_keys, &is_in_time, folder)
}

/// The same; `is_in_time` says whether the time of the key at a place of the keyring had not ended before an entry.
pub(super) fn read(
    ledger: &Ledger,
    target_keys: &Keyring,
    is_in_time: &dyn Fn(usize, EntryId) -> bool,
    folder: &Path,
) -> Result<(Vec<Noted>, Vec<Finding>), LedgerError> {
    let (mut known, mut findings) = (Vec::new(), Vec::new());
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok((known, findings)),
        entries => entries.at("list", folder)?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.at("list", folder)?.path());
    }
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        if name.starts_with(TEMPORARY_PREFIX.as_bytes()) {
            continue;
        }
        let name = display_bytes(name);
        let mut bytes = Vec::new();
        let file = fs::File::open(&path).at("read", &path)?;
        file.take(MAX_NOTE_FILE_BYTES + 1).read_to_end(&mut bytes).at("read", &path)?;
        match checked(ledger, target_keys, is_in_time, &bytes) {
            Ok(Note { about, by, time, text, .. }) => known.push(Noted { about, by, time, text }),
            Err(what) => findings.push(Finding::Note { name, what }),
        }
    }
    known.sort_by_key(|note| note.time);
    Ok((known, findings))
}

fn checked(
    ledger: &Ledger,
    target_keys: &Keyring,
    is_in_time: &dyn Fn(usize, EntryId) -> bool,
    bytes: &[u8],
) -> Result<Note, String> {
    if bytes.len() as u64 > MAX_NOTE_FILE_BYTES {
        return Err(format!("it has more than {MAX_NOTE_FILE_BYTES} bytes"));
    }
    let (note, key) = verify_note_among(bytes, target_keys.all()).map_err(|error| error.to_string())?;
    let id = EntryId(note.entry.sequence);
    if !is_in_time(key, id) {
        return Err(format!("it is signed with a key whose time had ended before entry {id}"));
    }
    let entry = ledger.get(&id.to_string()).ok().filter(|entry| link_digest(entry) == note.entry.digest);
    let entry = entry.ok_or_else(|| format!("the ledger has no such entry {id}"))?;
    let fits = match note.about {
        NoteSubject::Verdict(sequence) => sequence == id.sequence() && unverified_key_change(&entry).is_err(),
        NoteSubject::Generation(number) => unverified_verdict(&entry)
            .is_ok_and(|verdict| verdict.generation.is_some_and(|generation| generation.0 == number)),
        NoteSubject::Slot(_) => true,
    };
    if fits { Ok(note) } else { Err(format!("it is about {}, and entry {id} is not", note.about)) }
}
