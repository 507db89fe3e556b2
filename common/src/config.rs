//! Configuration files: TOML with units, where a fault is told with file, line and column and unknown keys are errors.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, de};

mod files;
pub use files::{ConfigText, FileText, further_folder};

/// The reason of a run whose two ends do not have one history.
pub const HISTORY_DIFFERS: &str = "history-differs";

/// What to say of a repository's name that is none; `place` is where it was looked for.
pub fn no_such_repository(name: &str, place: &str) -> String {
    match name {
        "" => "there are several repositories: name one".to_owned(),
        name => format!("there is no repository {name:?} {place}"),
    }
}

/// What is wrong with the aliases of repositories, which are given with their names.
pub fn alias_faults<'a>(repositories: impl Iterator<Item = (&'a str, Option<&'a str>)>) -> Vec<String> {
    let all: Vec<_> = repositories.collect();
    let mut faults = Vec::new();
    for (place, (name, alias)) in all.iter().enumerate() {
        let Some(alias) = alias else { continue };
        if !crate::id::is_plain_name(alias) {
            faults.push(format!(
                "repository {name}: alias: {alias:?}: a name has 1 to 64 letters, digits, '-' or '_'"
            ));
        }
        let is_taken = all.iter().enumerate().any(|(other, (name, theirs))| {
            name == alias || (other != place && theirs.as_ref() == Some(alias))
        });
        if is_taken {
            faults.push(format!("repository {name}: alias: {alias:?} is the name of a repository already"));
        }
    }
    faults
}

/// Why a configuration is not accepted. Shows places and expectations, never the file's content.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not TOML of the right shape.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What the value must be.
        message: String,
    },
    /// The shape is right and the values are not.
    #[error("{}", list(faults))]
    Values {
        /// All that is wrong.
        faults: Vec<ValueFault>,
    },
}

/// A value that is not accepted.
#[derive(Debug)]
pub struct ValueFault {
    /// The file that it is in.
    pub path: PathBuf,
    /// What is wrong, naming the key.
    pub message: String,
}

impl ValueFault {
    /// Those of one file.
    pub fn all(path: &Path, messages: impl IntoIterator<Item = String>) -> impl Iterator<Item = Self> {
        messages.into_iter().map(|message| Self { path: path.to_owned(), message })
    }
}

fn list(faults: &[ValueFault]) -> String {
    let lines = faults.iter().map(|fault| format!("{}: {}", fault.path.display(), fault.message));
    lines.collect::<Vec<_>>().join("\n")
}

/// Reads a TOML file into `T`.
///
/// # Errors
/// [`ConfigError::Read`] or [`ConfigError::Shape`].
pub fn load<T: de::DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    parse(path, &read(path)?)
}

/// Reads the text of a configuration file.
///
/// # Errors
/// [`ConfigError::Read`].
pub fn read(path: &Path) -> Result<String, ConfigError> {
    fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}

/// Line and column of the byte `offset` of `text`, both from 1.
pub fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or("");
    let column = before.chars().rev().take_while(|character| *character != '\n').count() + 1;
    (before.matches('\n').count() + 1, column)
}

/// Parses TOML text that came from `path`.
///
/// # Errors
/// [`ConfigError::Shape`].
pub fn parse<T: de::DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let (line, column) = position(text, error.span().map_or(0, |span| span.start));
        ConfigError::Shape {
            path: path.to_owned(),
            line,
            column,
            message: error.message().replace('\n', "; "),
        }
    })
}

/// A file named in a configuration, as an absolute path: what systemd hands to this service under the same name
/// (`LoadCredential=`), so that a key that is named may stay root's; else relative names start at the folder of the configuration file.
pub fn resolve(config: &Path, file: &Path) -> PathBuf {
    if let Some(path) = handed_over(std::env::var_os(CREDENTIALS).as_deref(), file) {
        return path;
    }
    let path = config.parent().unwrap_or(Path::new(".")).join(file);
    // It fails without a current folder only; then the relative path is as good as any.
    std::path::absolute(&path).unwrap_or(path)
}

/// The variable in which systemd names the folder of a service's credentials (systemd.exec(5), "Credentials").
pub(crate) const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

fn handed_over(folder: Option<&std::ffi::OsStr>, file: &Path) -> Option<PathBuf> {
    let path = Path::new(folder?).join(file.file_name()?);
    path.is_file().then_some(path)
}

/// A length of time with its unit, as in `"1h 30m"`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl fmt::Debug for Span {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", humantime::format_duration(self.0))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map(Self).map_err(|_| {
            de::Error::custom("must be a length of time with its unit, for example \"30s\" or \"1h 30m\"")
        })
    }
}

/// A length of time, or the word `"never"`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SpanOrNever {
    /// Each time that this has passed.
    Every(Span),
    /// Not by the clock.
    Never,
}

impl<'de> Deserialize<'de> for SpanOrNever {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "never" {
            return Ok(Self::Never);
        }
        humantime::parse_duration(&text).map(|span| Self::Every(Span(span))).map_err(|_| {
            de::Error::custom("must be a length of time with its unit, for example \"7d\", or \"never\"")
        })
    }
}

/// A number of bytes with its unit, as in `"512MiB"`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// Units of a size, the largest first.
const UNITS: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl fmt::Display for Size {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, bytes): &&(&str, u64)| self.0 >= *bytes && self.0.is_multiple_of(*bytes);
        let (unit, bytes) = UNITS.iter().find(fits).unwrap_or(&("B", 1));
        write!(formatter, "{}{unit}", self.0 / bytes)
    }
}

impl fmt::Debug for Size {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Size;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a size with its unit (B, KiB, MiB, GiB, TiB), for example \"512MiB\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                let unit = UNITS.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, bytes)));
                let size = unit
                    .and_then(|(number, bytes)| number.trim_end().parse::<u64>().ok()?.checked_mul(*bytes));
                size.map(Size).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// What is said of a limit that is none.
pub const LIMIT_RULE: &str = "must be greater than zero and at most a year; 0 does not mean 'unlimited'";

/// True for a length of time that can limit something.
pub fn is_limit(span: Duration) -> bool {
    !span.is_zero() && span <= Duration::from_secs(366 * 24 * 3600)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        #[derive(Deserialize, Debug)]
        struct Sized {
            size: Size,
        }
        let size = |text: &str| parse::<Sized>(Path::new("a.toml"), &format!("size = {text}"));
        for (text, bytes) in [("'512MiB'", 512 << 20), ("'4 GiB'", 4 << 30), ("'7B'", 7), ("'0B'", 0)] {
            assert_eq!(size(text).expect("a size").size, Size(bytes), "{text}");
        }
        for text in ["'512'", "512", "'MiB'", "'-1MiB'", "'99999999999TiB'", "'1MB'"] {
            let fault = size(text).expect_err("no size").to_string();
            assert!(fault.contains("a size with its unit (B, KiB"), "{fault}");
        }
        assert_eq!(Size(512 << 20).to_string(), "512MiB");
        assert_eq!((Size(1025).to_string(), Size(0).to_string()), ("1025B".into(), "0B".into()));
    }

    #[derive(Deserialize, Debug)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[allow(dead_code)]
        every: Span,
    }

    #[test]
    fn faults_tell_file_line_and_the_rule() {
        let fault = |text: &str| parse::<Sample>(Path::new("a.toml"), text).expect_err("bad").to_string();
        assert!(fault("\nevry = '1h'").starts_with("a.toml:2:1: unknown field `evry`"));
        assert!(
            fault("every = '1 lightyear'").starts_with("a.toml:1:9: must be a length of time with its unit")
        );
        assert!(fault("every = ").starts_with("a.toml:1:"));
        assert!(parse::<Sample>(Path::new("a.toml"), "every = '1h 30m'").is_ok());
    }

    #[test]
    fn a_key_that_systemd_hands_over_goes_before_the_one_that_is_named() {
        let folder = tempfile::tempdir().expect("folder");
        let key = folder.path().join("source.key");
        fs::write(&key, "").expect("written");
        let folder = Some(folder.path().as_os_str());
        assert_eq!(handed_over(folder, Path::new("pki/source.key")), Some(key));
        assert_eq!(handed_over(folder, Path::new("pki/other.key")), None);
        assert_eq!(handed_over(folder, Path::new("..")), None);
        assert_eq!(handed_over(None, Path::new("pki/source.key")), None);
    }
}
