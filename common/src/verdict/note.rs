//! Notes: what an operator signs, with the target's key, about a verdict, a generation or a missed slot, for whoever reads the report. A
//! note explains; it changes nothing. What it is about counts for what it counted before.

use std::{fmt, path::Path};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{HexDigest, VerdictError, acknowledgement::keep_numbered, check_subject, parse, sign};
use crate::{
    dsse::{Envelope, IN_TOTO_PAYLOAD_TYPE},
    error::PathError,
    ledger::EntryId,
    path::is_harmful,
    signing::{SigningKey, VerifyingKey},
};

/// Predicate type of a note.
pub const NOTE_TYPE: &str = "https://assay.dev/note/v1";
const NOTE_PART: &str = "note";
/// Longest text of a note, in bytes.
pub const MAX_NOTE_BYTES: usize = 1024;
/// Longest name of who signs it, in bytes.
pub const MAX_NOTE_BY_BYTES: usize = 128;
/// Longest file of a note, in bytes: text and name in JSON and base64, and what stands around them.
pub const MAX_NOTE_FILE_BYTES: u64 = 16 * 1024;
/// Notes about one thing.
pub const MAX_NOTES_OF_ONE: usize = 20;

/// What a note is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NoteSubject {
    /// A verdict, by its place in the ledger.
    Verdict(u64),
    /// A generation, by its number.
    Generation(u64),
    /// The slot of the schedule in which this moment lies.
    Slot(Timestamp),
}

impl NoteSubject {
    /// True when it is this verdict, or the generation that the verdict is about.
    pub fn is_verdict(&self, sequence: u64, generation: Option<u64>) -> bool {
        match *self {
            Self::Verdict(own) => own == sequence,
            Self::Generation(own) => generation == Some(own),
            Self::Slot(_) => false,
        }
    }
}

impl fmt::Display for NoteSubject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Verdict(sequence) => write!(formatter, "verdict {}", EntryId(*sequence)),
            Self::Generation(number) => write!(formatter, "generation {number}"),
            Self::Slot(time) => write!(formatter, "the slot at {}", time.strftime("%Y-%m-%d %H:%M:%SZ")),
        }
    }
}

/// An entry of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NotedEntry {
    /// Its place.
    pub sequence: u64,
    /// The digest by which the next entry names it.
    pub digest: HexDigest,
}

/// What an operator says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Note {
    /// The repository.
    pub repository: String,
    /// Who says it.
    pub by: String,
    /// When, by the target host's clock.
    pub time: Timestamp,
    /// The text.
    pub text: String,
    /// What it is about.
    pub about: NoteSubject,
    /// What ties it to the ledger: the verdict; of a generation its newest verdict; of a slot the newest entry when the note was signed.
    pub entry: NotedEntry,
}

impl Note {
    /// What is wrong with its texts.
    fn fault(&self) -> Option<String> {
        let texts = [("by", &self.by, MAX_NOTE_BY_BYTES), ("text", &self.text, MAX_NOTE_BYTES)];
        let mut faults =
            texts.into_iter().filter_map(|(name, text, most)| Some((name, note_fault(text, most)?)));
        faults.next().map(|(name, fault)| format!("{name}: {fault}"))
    }
}

/// What is wrong with a text of a note: it is one line, and nothing that a terminal obeys.
pub fn note_fault(text: &str, most_bytes: usize) -> Option<String> {
    if text.trim().is_empty() || text.len() > most_bytes {
        return Some(format!("must be a text of 1 to {most_bytes} bytes"));
    }
    text.chars().any(is_harmful).then(|| {
        "must be one line without control characters and without signs that are not shown or change the direction of text".to_owned()
    })
}

/// Signs a note.
///
/// # Panics
/// Never: these types are always JSON.
pub fn sign_note(note: &Note, key: &SigningKey) -> Envelope {
    sign(NOTE_TYPE, None, note, key)
}

/// Checks the signature of a note with one of the target's `keys`: gives the note and the place of the key. Whether the ledger has its
/// entry is the caller's to see.
///
/// # Errors
/// [`VerdictError`].
pub fn verify_note_among(json: &[u8], keys: &[VerifyingKey]) -> Result<(Note, usize), VerdictError> {
    let (payload, place) = Envelope::parse(json)
        .and_then(|envelope| envelope.verify_among(IN_TOTO_PAYLOAD_TYPE, keys))
        .map_err(|source| VerdictError::Note { source })?;
    let (subject, note): (_, Note) = parse(&payload, NOTE_PART, NOTE_TYPE)?;
    check_subject(&subject, None)?;
    match note.fault() {
        Some(fault) => Err(VerdictError::NoteText { fault }),
        None => Ok((note, place)),
    }
}

/// Keeps a note in `folder`, and replaces none.
///
/// # Errors
/// When it cannot be written.
pub fn keep_note(folder: &Path, envelope: &Envelope) -> Result<std::path::PathBuf, PathError> {
    keep_numbered(folder, envelope)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note() -> Note {
        Note {
            repository: "acc".to_owned(),
            by: "alice".to_owned(),
            time: "2026-11-25T00:00:00Z".parse().expect("time"),
            text: "the disk was replaced".to_owned(),
            about: NoteSubject::Verdict(2),
            entry: NotedEntry { sequence: 2, digest: HexDigest([7; 32]) },
        }
    }

    #[test]
    fn a_note_is_the_target_keys_alone_and_comes_back() {
        let key = SigningKey::generate();
        let keys = [SigningKey::generate().verifying_key(), key.verifying_key()];
        let slot = NoteSubject::Slot("2026-11-24T03:00:00Z".parse().expect("time"));
        for about in [NoteSubject::Verdict(2), NoteSubject::Generation(7), slot] {
            let note = Note { about, ..note() };
            let json = sign_note(&note, &key).to_json();
            assert_eq!(verify_note_among(json.as_bytes(), &keys).expect("it is signed"), (note, 1));
            assert!(verify_note_among(json.as_bytes(), &keys[..1]).is_err());
            let edited = json.replacen("\"payload\":\"", "\"payload\":\"e", 1);
            assert!(verify_note_among(edited.as_bytes(), &keys).is_err());
        }
        // Nor is a statement of another kind one.
        let other = sign("https://assay.dev/acknowledgement/v1", None, &note(), &key).to_json();
        assert!(matches!(verify_note_among(other.as_bytes(), &keys), Err(VerdictError::OtherType { .. })));
    }

    /// The key may have been stolen: what it signs is bounded and plain, too.
    #[test]
    fn a_note_with_a_text_that_could_not_be_given_is_refused() {
        let key = SigningKey::generate();
        let keys = [key.verifying_key()];
        let long = "x".repeat(MAX_NOTE_BYTES);
        let verify = |by: &str, text: &str| {
            let note = Note { by: by.to_owned(), text: text.to_owned(), ..note() };
            verify_note_among(sign_note(&note, &key).to_json().as_bytes(), &keys).map(drop)
        };
        assert!(verify("alice", &long).is_ok() && verify("Ålice Ünder", "ünïcode 漢字").is_ok());
        let longest = "x".repeat(MAX_NOTE_BY_BYTES + 1);
        for (by, text) in [
            ("alice", ""),
            ("alice", "  "),
            ("alice", &*format!("{long}x")),
            ("alice", "two\nlines"),
            ("alice", "\u{1b}[2J"),
            ("alice", "right\u{202e}left"),
            ("", "text"),
            (longest.as_str(), "text"),
            ("al\u{0}ice", "text"),
        ] {
            let error = verify(by, text).expect_err("it is none");
            assert!(matches!(error, VerdictError::NoteText { .. }), "{error}");
        }
        let note = Note { by: "y".repeat(MAX_NOTE_BY_BYTES), text: long, ..note() };
        assert!((sign_note(&note, &key).to_json().len() as u64) < MAX_NOTE_FILE_BYTES / 2);
    }

    #[test]
    fn a_note_on_a_generation_is_one_on_each_of_its_verdicts() {
        let (verdict, generation) = (NoteSubject::Verdict(3), NoteSubject::Generation(3));
        assert!(verdict.is_verdict(3, None) && !verdict.is_verdict(4, Some(3)));
        assert!(generation.is_verdict(9, Some(3)) && !generation.is_verdict(3, None));
        assert!(!NoteSubject::Slot(Timestamp::UNIX_EPOCH).is_verdict(3, Some(3)));
    }
}
