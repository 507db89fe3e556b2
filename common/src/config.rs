//! Configuration files: TOML with units, where a fault is told with file, line and column and unknown keys are errors.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, de};

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
        /// What was expected.
        message: String,
    },
    /// The shape is right and the values are not.
    #[error("{}", list(path, faults))]
    Values {
        /// The file.
        path: PathBuf,
        /// All that is wrong, each naming its key.
        faults: Vec<String>,
    },
}

fn list(path: &Path, faults: &[String]) -> String {
    faults.iter().map(|fault| format!("{}: {fault}", path.display())).collect::<Vec<_>>().join("\n")
}

/// Reads a TOML file into `T`.
///
/// # Errors
/// [`ConfigError::Read`] or [`ConfigError::Shape`].
pub fn load<T: de::DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text =
        fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse(path, &text)
}

/// Parses TOML text that came from `path`.
///
/// # Errors
/// [`ConfigError::Shape`].
pub fn parse<T: de::DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let before = error.span().map_or("", |span| text.get(..span.start).unwrap_or(""));
        ConfigError::Shape {
            path: path.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before.chars().rev().take_while(|character| *character != '\n').count() + 1,
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
            de::Error::custom(
                "a length of time with its unit was expected, for example \"30s\" or \"1h 30m\"",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize, Debug)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[allow(dead_code)]
        every: Span,
    }

    #[test]
    fn faults_tell_file_line_and_what_was_expected() {
        let fault = |text: &str| parse::<Sample>(Path::new("a.toml"), text).expect_err("bad").to_string();
        assert!(fault("\nevry = '1h'").starts_with("a.toml:2:1: unknown field `evry`"));
        assert!(fault("every = '1 lightyear'").starts_with("a.toml:1:9: a length of time with its unit"));
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
