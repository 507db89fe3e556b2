//! What can be wrong with a profile, and where in its text it stands.

use std::{fmt, path::PathBuf};

use toml::de::{DeTable, DeValue};

use crate::config::ConfigError;

/// Why a profile is not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// The file cannot be read, or is not TOML of a profile's shape.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The shape is right and the meaning is not.
    #[error("{}", list(path, faults))]
    Meaning {
        /// The file.
        path: PathBuf,
        /// All that is wrong, in the order of the text.
        faults: Vec<Fault>,
    },
    /// There is no built-in profile of this name.
    #[error("there is no built-in profile '{}'; there are: {}", name.escape_default(), known())]
    NoSuchBuiltin {
        /// The name.
        name: String,
    },
}

fn known() -> String {
    super::Profile::builtin_names().collect::<Vec<_>>().join(", ")
}

fn list(path: &std::path::Path, faults: &[Fault]) -> String {
    faults.iter().map(|fault| format!("{}:{fault}", path.display())).collect::<Vec<_>>().join("\n")
}

/// One fault of meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// From 1.
    pub line: usize,
    /// From 1.
    pub column: usize,
    /// The key, for example `check[0].argv`.
    pub key: String,
    /// What the value must be.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}: {}: {}", self.line, self.column, self.key, self.message)
    }
}

/// A step on the way to a key.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

impl From<&str> for Step {
    fn from(key: &str) -> Self {
        Self::Key(key.into())
    }
}

impl From<usize> for Step {
    fn from(index: usize) -> Self {
        Self::Index(index)
    }
}

/// Shows the way as `check[0].argv`.
pub(super) fn key_text(way: &[Step]) -> String {
    let mut text = String::new();
    for step in way {
        match step {
            Step::Key(key) if text.is_empty() => text.push_str(key),
            Step::Key(key) => text.extend([".", key]),
            Step::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}

/// Line and column of the value at the end of `way`, or of the nearest thing above it that the text has.
pub(super) fn place(text: &str, way: &[Step]) -> (usize, usize) {
    let mut start = 0;
    if let Ok(table) = DeTable::parse(text) {
        let whole = DeValue::Table(table.into_inner());
        let mut value = &whole;
        for step in way {
            let next = match step {
                Step::Key(key) => value.get(key.as_str()),
                Step::Index(index) => value.get(*index),
            };
            let Some(next) = next else { break };
            start = next.span().start;
            value = next.get_ref();
        }
    }
    let before = text.get(..start).unwrap_or("");
    let column = before.chars().rev().take_while(|character| *character != '\n').count() + 1;
    (before.matches('\n').count() + 1, column)
}
