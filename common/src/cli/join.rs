//! How a source joins a target: two pieces of text that an operator carries from one host to the other.
//!
//! 1. `assay-target invite NAME` writes an **invitation**: the CA's certificate, a certificate with its key for the source, one for
//!    whoever operates the source, where the target is, and the target's public verdict key. It holds private keys, so it is
//!    a file of mode 0600 and travels by `scp`.
//! 2. `assay-source init --join FILE` makes the source's **signing key**, which never leaves its host, and prints an **acceptance**:
//!    one line with the public half and what the repository is. It holds no secret, and is pasted into
//! 3. `assay-target accept LINE`, which pins the key and adds the repository.
//!
//! The signing key is not made at the target, though that would save the third step: two parties vouch for two things, and
//! neither may be able to speak for the other. Whoever steals an invitation can connect as that source until its certificate
//! is replaced, but cannot sign for it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use super::CommandError;
use crate::{
    error::Hint as _,
    id::is_plain_name,
    pki::create_signing_key,
    signing::{KeyError, VerifyingKey, create_private, create_public, read_private},
};

/// How an acceptance starts.
const ACCEPTANCE_PREFIX: &str = "assay-accept-1.";

impl From<KeyError> for CommandError {
    fn from(error: KeyError) -> Self {
        let hint = error.hint();
        Self { hint, ..Self::usage(error.to_string()) }
    }
}

/// What the target gives to a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invitation {
    /// 1.
    pub version: u32,
    /// Name of the source agent, as in its certificate.
    pub source: String,
    /// `https://HOST:PORT` of the target.
    pub target_url: String,
    /// The CA's certificate, PEM.
    pub ca: String,
    /// The source's certificate and private key, PEM.
    pub cert: String,
    /// See `cert`.
    pub key: String,
    /// A certificate and private key for the source's operators, PEM.
    pub operator_cert: String,
    /// See `operator_cert`.
    pub operator_key: String,
    /// The target's public verdict key, PEM.
    pub target_signing_key: String,
}

impl Invitation {
    /// Reads one.
    ///
    /// # Errors
    /// When the file cannot be read, or is not an invitation.
    pub fn load(file: &Path) -> Result<Self, CommandError> {
        // It holds private keys: a copy that others could have read is worth nothing.
        let text = read_private(file)?;
        let invitation: Self =
            serde_json::from_slice(&text).map_err(|error| not_one(file, &error.to_string()))?;
        if invitation.version != 1 {
            return Err(not_one(
                file,
                &format!("its version is {}, and this program knows 1", invitation.version),
            ));
        }
        if !is_plain_name(&invitation.source) || !invitation.target_url.starts_with("https://") {
            return Err(not_one(file, "its names are not valid"));
        }
        if VerifyingKey::from_pem(&invitation.target_signing_key).is_none() {
            return Err(not_one(file, "the target's verdict key is damaged"));
        }
        Ok(invitation)
    }
}

impl Invitation {
    /// Writes the invitation to a new file of mode 0600.
    ///
    /// # Errors
    /// When it exists, or cannot be written.
    pub fn save(&self, file: &Path) -> Result<(), CommandError> {
        let json = serde_json::to_vec_pretty(self).expect("names and texts are JSON");
        Ok(create_private(file, &json)?)
    }

    /// Lays its keys and certificates out in `folder`, which must not have them yet, and makes the source's signing key there.
    /// Where a target has its files in the same folder, those that both have get names of the source's own.
    /// Gives the public half, PEM, and the names.
    ///
    /// # Errors
    /// When a file is in the way or cannot be written; then nothing has been written.
    pub fn unpack(&self, folder: &Path) -> Result<(String, Unpacked), CommandError> {
        let own = if folder.join("target.key").exists() { "source-" } else { "" };
        let names = Unpacked {
            ca: format!("{own}ca.crt"),
            operator_cert: format!("{own}operator.crt"),
            operator_key: format!("{own}operator.key"),
            target_signing_key: format!("{own}target-signing.pub"),
        };
        let private = [("source.key", &self.key), (&*names.operator_key, &self.operator_key)];
        let public = [
            (&*names.ca, &self.ca),
            ("source.crt", &self.cert),
            (&*names.operator_cert, &self.operator_cert),
            (&*names.target_signing_key, &self.target_signing_key),
        ];
        let signing = ["source-signing.key", "source-signing.pub"];
        let all = private.iter().chain(&public).map(|(name, _)| *name).chain(signing);
        refuse_what_is_there(all.map(|name| folder.join(name)))?;
        make_folder(folder)?;
        for (name, pem) in private {
            create_private(&folder.join(name), pem.as_bytes())?;
        }
        for (name, pem) in public {
            create_public(&folder.join(name), pem.as_bytes())?;
        }
        Ok((create_signing_key(folder, "source-signing")?.verifying_key().to_pem(), names))
    }
}

/// The names of those files of an invitation that a target on the same host has as well.
#[derive(Debug)]
pub struct Unpacked {
    /// The CA's certificate.
    pub ca: String,
    /// The operator's certificate.
    pub operator_cert: String,
    /// Its private key.
    pub operator_key: String,
    /// The target's public signing key.
    pub target_signing_key: String,
}

/// Nothing is overwritten: when one of these is there, nothing is begun.
///
/// # Errors
/// Names the first that is there.
pub fn refuse_what_is_there(paths: impl IntoIterator<Item = PathBuf>) -> Result<(), CommandError> {
    match paths.into_iter().find(|path| path.symlink_metadata().is_ok()) {
        None => Ok(()),
        Some(path) => Err(CommandError::usage(format!("{} is there already", path.display()))
            .hint("nothing was changed: move it away, or let another file be written")),
    }
}

/// Makes a folder for keys, mode 0700, unless it is there.
///
/// # Errors
/// When it cannot be made.
pub fn make_folder(folder: &Path) -> Result<(), CommandError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| CommandError::not_run(format!("{}: {error}", folder.display())))
}

/// A text as TOML has it, with its quotes.
pub fn quoted(text: impl Into<String>) -> String {
    toml::Value::from(text.into()).to_string()
}

/// `vars = { … }` of a repository, or nothing when there are none.
pub fn vars_line(vars: &BTreeMap<String, toml::Value>) -> String {
    if vars.is_empty() {
        return String::new();
    }
    // Names and values are quoted where they have to be: some come from the other host.
    let table = vars.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    format!("vars = {}\n", toml::Value::Table(table))
}

fn not_one(file: &Path, why: &str) -> CommandError {
    CommandError::usage(format!("{}: not an invitation: {why}", file.display()))
        .hint("name the file that assay-target invite wrote, whole and unchanged")
}

/// What the source tells the target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acceptance {
    /// Name of the source agent.
    pub source: String,
    /// Its public signing key, PEM.
    pub source_key: String,
    /// The repository.
    pub repository: String,
    /// Its engine.
    pub profile: String,
    /// Variables of the profile that the target must have, too.
    pub vars: BTreeMap<String, toml::Value>,
}

impl Acceptance {
    /// As one line.
    pub fn to_line(&self) -> String {
        let json = serde_json::to_vec(self).expect("names and texts are JSON");
        format!("{ACCEPTANCE_PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
    }

    /// From one line.
    ///
    /// # Errors
    /// When it is not one, or was cut.
    pub fn from_line(line: &str) -> Result<Self, CommandError> {
        let refused = |why: &str| {
            CommandError::usage(format!("this is not the line that assay-source init or add printed: {why}"))
                .hint("copy the whole line; a terminal may have broken it")
        };
        // What a terminal or a mail may have put in.
        let line: String = line.split_whitespace().collect();
        let coded = line.strip_prefix(ACCEPTANCE_PREFIX).ok_or_else(|| refused("it starts otherwise"))?;
        let json = URL_SAFE_NO_PAD.decode(coded).map_err(|_| refused("it was cut or changed"))?;
        let acceptance: Self = serde_json::from_slice(&json).map_err(|_| refused("it was cut or changed"))?;
        let names = [&acceptance.source, &acceptance.repository].into_iter().chain(acceptance.vars.keys());
        if !names.into_iter().all(|name| is_plain_name(name)) {
            return Err(refused("its names are not valid"));
        }
        if VerifyingKey::from_pem(&acceptance.source_key).is_none() {
            return Err(refused("its key is damaged"));
        }
        Ok(acceptance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signing::SigningKey;

    #[test]
    fn an_acceptance_survives_a_terminal_and_no_change() {
        let acceptance = Acceptance {
            source: "db1".to_owned(),
            source_key: SigningKey::generate().verifying_key().to_pem(),
            repository: "accurev".to_owned(),
            profile: "accurev-4".to_owned(),
            vars: BTreeMap::from([("check".to_owned(), toml::Value::from(vec!["true"]))]),
        };
        let line = acceptance.to_line();
        let broken = format!(" {}\n  {}\n", &line[..40], &line[40..]);
        assert_eq!(Acceptance::from_line(&broken).expect("the same"), acceptance);
        for wrong in [&line[1..], &line[..line.len() - 8], ""] {
            assert!(Acceptance::from_line(wrong).expect_err("refused").hint.is_some());
        }
        let forged = Acceptance { repository: "../x".to_owned(), ..acceptance.clone() };
        assert!(Acceptance::from_line(&forged.to_line()).is_err());
        let name = "x = 1 }\n[[notify]]\nkind = \"command\"\nargv = [\"/bin/sh\"]\n#";
        let vars = BTreeMap::from([(name.to_owned(), toml::Value::from(1))]);
        // Quoted, and refused before that.
        let line: toml::Table = toml::from_str(&vars_line(&vars)).expect("one table");
        assert_eq!(line["vars"].as_table().map(|vars| vars.len()), Some(1), "{line}");
        assert_eq!(line.len(), 1, "{line}");
        assert!(Acceptance::from_line(&Acceptance { vars, ..acceptance }.to_line()).is_err());
    }
}
