//! What operators hold on to: `pins.json`, written whole each time.
//!
//! A file that cannot be read or understood is no empty list: then nothing is pruned until it is put right.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use assay_common::{durable::write_durable, error::PathError, id::GenerationNumber};
use serde::{Deserialize, Serialize};

/// Longest note, in bytes.
pub const MAX_NOTE_BYTES: usize = 500;

/// Why pins cannot be read or kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PinError {
    /// The file.
    #[error(transparent)]
    Io(#[from] PathError),
    /// The file is none of ours.
    #[error("{}: not a list of pins: {source}", path.display())]
    NotPins {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A note that cannot be shown on a line.
    #[error("a note has up to {MAX_NOTE_BYTES} bytes and no control characters")]
    Note,
}

/// One pin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// Why, in the operator's words; may be empty.
    pub note: String,
    /// Since when.
    pub since: jiff::Timestamp,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    version: u32,
    pins: BTreeMap<GenerationNumber, Pin>,
}

/// All pins of a repository.
#[derive(Debug)]
pub struct Pins {
    path: PathBuf,
    pins: BTreeMap<GenerationNumber, Pin>,
}

impl Pins {
    /// Reads the file; none is no pins.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub fn load(path: &Path) -> Result<Self, PinError> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { path: path.to_owned(), pins: BTreeMap::new() });
            }
            Err(error) => return Err(PathError::new("read", path, error).into()),
        };
        let not_pins = |source| PinError::NotPins { path: path.to_owned(), source };
        let kept: Kept = serde_json::from_slice(&text).map_err(not_pins)?;
        if kept.version != 1 {
            let error = serde::de::Error::custom(format!("version {} is not known", kept.version));
            return Err(not_pins(error));
        }
        Ok(Self { path: path.to_owned(), pins: kept.pins })
    }

    /// The pin of a generation.
    pub fn get(&self, number: GenerationNumber) -> Option<&Pin> {
        self.pins.get(&number)
    }

    /// Pins a generation, or gives its pin another note.
    ///
    /// # Errors
    /// When that cannot be kept: then nothing has changed.
    pub fn pin(
        &mut self,
        number: GenerationNumber,
        note: &str,
        now: jiff::Timestamp,
    ) -> Result<(), PinError> {
        if note.len() > MAX_NOTE_BYTES || note.chars().any(char::is_control) {
            return Err(PinError::Note);
        }
        let mut pins = self.pins.clone();
        let since = pins.get(&number).map_or(now, |pin| pin.since);
        pins.insert(number, Pin { note: note.to_owned(), since });
        self.keep(pins)
    }

    /// Takes a pin away. False when there was none.
    ///
    /// # Errors
    /// When that cannot be kept: then nothing has changed.
    pub fn unpin(&mut self, number: GenerationNumber) -> Result<bool, PinError> {
        let mut pins = self.pins.clone();
        let was = pins.remove(&number).is_some();
        if was {
            self.keep(pins)?;
        }
        Ok(was)
    }

    fn keep(&mut self, pins: BTreeMap<GenerationNumber, Pin>) -> Result<(), PinError> {
        let kept = Kept { version: 1, pins };
        let mut text = serde_json::to_vec_pretty(&kept)
            .map_err(|source| PinError::NotPins { path: self.path.clone(), source })?;
        text.push(b'\n');
        write_durable(&self.path, &text, 0o600)?;
        self.pins = kept.pins;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_kept_and_a_damaged_file_is_no_empty_list() {
        let folder = tempfile::tempdir().expect("temp");
        let path = folder.path().join("pins.json");
        let (number, now) = (GenerationNumber(7), jiff::Timestamp::UNIX_EPOCH);
        let mut pins = Pins::load(&path).expect("none");
        assert!(!pins.unpin(number).expect("nothing to do"));
        pins.pin(number, "before the upgrade", now).expect("pin");
        pins.pin(number, "the year's end", jiff::Timestamp::now()).expect("another note");
        assert!(matches!(pins.pin(number, "two\nlines", now), Err(PinError::Note)));
        let mut pins = Pins::load(&path).expect("read");
        let pin = Pin { note: "the year's end".into(), since: now };
        assert_eq!(pins.get(number), Some(&pin));
        assert!(pins.unpin(number).expect("unpin"));
        assert_eq!(Pins::load(&path).expect("read").get(number), None);
        for damage in ["", "{}", "{\"version\":2,\"pins\":{}}", "{\"version\":1,\"pins\":{\"x\":{}}}"] {
            std::fs::write(&path, damage).expect("write");
            assert!(matches!(Pins::load(&path), Err(PinError::NotPins { .. })), "{damage}");
        }
    }
}
