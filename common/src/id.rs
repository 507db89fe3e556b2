//! Names that agents give to things: runs and generations.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A run, for example `20261122T224501Z-7f3a9c`: when it was triggered, the hexadecimal digits being the fraction of the
/// second. So ids sort by time, and an agent, which triggers one run of a repository at a time, never gives one twice.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunId(String);

impl RunId {
    /// A new id for a run that starts now.
    pub fn generate(now: jiff::Timestamp) -> Self {
        let nanoseconds = now.as_nanosecond().rem_euclid(1_000_000_000);
        let fraction = (nanoseconds << 24) / 1_000_000_000;
        Self(format!("{}-{fraction:06x}", now.strftime("%Y%m%dT%H%M%SZ")))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The text is not an id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("an id looks like 20261122T224501Z-7f3a9c")]
pub struct IdFault;

impl FromStr for RunId {
    type Err = IdFault;

    fn from_str(text: &str) -> Result<Self, IdFault> {
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        let sound = text.len() == 23
            && text.is_ascii()
            && digits(&text[..8])
            && &text[8..9] == "T"
            && digits(&text[9..15])
            && &text[15..17] == "Z-"
            && text[17..].bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if sound { Ok(Self(text.to_owned())) } else { Err(IdFault) }
    }
}

impl TryFrom<String> for RunId {
    type Error = IdFault;

    fn try_from(text: String) -> Result<Self, IdFault> {
        text.parse()
    }
}

impl From<RunId> for String {
    fn from(id: RunId) -> Self {
        id.0
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Number of a generation, from 1. Its folder's name has six digits or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GenerationNumber(pub u64);

impl GenerationNumber {
    /// The folder's name.
    pub fn folder(self) -> String {
        format!("{:06}", self.0)
    }

    /// From a folder's name; `None` for any other name.
    pub fn from_folder(name: &str) -> Option<Self> {
        let number = name.parse().ok().filter(|number| *number > 0).map(Self)?;
        (number.folder() == name).then_some(number)
    }
}

impl fmt::Display for GenerationNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, formatter)
    }
}

/// True for a name that a repository, an agent or a root may have: letters, digits, `-` and `_`, 1 to 64 of them, and a
/// letter or digit first, so that it can stand in a path, an address or a label as it is.
pub fn is_plain_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        && name.as_bytes()[0].is_ascii_alphanumeric()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_ids_are_read_back_and_nothing_else_is() {
        let id = RunId::generate(jiff::Timestamp::UNIX_EPOCH);
        assert_eq!(id.as_str().parse(), Ok(id.clone()));
        assert!(id.as_str().starts_with("19700101T000000Z-"));
        for text in
            ["", "../../etc/passwd", "20261122T224501Z-7F3A9C", "20261122T224501Z-7f3a9c/", "ééééééééééé"]
        {
            assert_eq!(text.parse::<RunId>(), Err(IdFault));
        }
    }

    /// Lists and "the newest" go by the order of ids.
    #[test]
    fn run_ids_sort_by_time() {
        let times = [(5, 0), (5, 60), (5, 500_000_000), (5, 999_999_999), (6, 0), (6, 1_000)];
        let ids = times.map(|(second, nanosecond)| {
            RunId::generate(jiff::Timestamp::new(second, nanosecond).expect("a time"))
        });
        assert!(ids.is_sorted_by(|left, right| left < right), "{ids:?}");
    }

    #[test]
    fn generation_folders_sort_and_parse() {
        assert_eq!(GenerationNumber(42).folder(), "000042");
        assert_eq!(GenerationNumber::from_folder("000042"), Some(GenerationNumber(42)));
        for name in ["42", "0000042", "000000", "+00042", "tree"] {
            assert_eq!(GenerationNumber::from_folder(name), None);
        }
    }
}
