//! Ed25519 keys that sign statements, and the reading of every private key file.
//!
//! Private keys are PKCS#8 PEM, public keys SPKI PEM: `openssl pkey` reads both. A private key file that
//! others can read, or that is a symbolic link, is refused. Errors name files and never show what is in them.

use std::{
    fmt, fs,
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use ed25519_dalek::{
    Signature, Signer as _,
    pkcs8::{
        DecodePrivateKey as _, DecodePublicKey as _, EncodePrivateKey as _, EncodePublicKey as _,
        KeypairBytes,
    },
};
use rand::{TryRngCore as _, rngs::OsRng};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

use crate::{
    config::CREDENTIALS,
    durable::create_durable,
    error::{Hint, IoContext as _, PathError, ShowPath},
    limits::MAX_KEY_FILE_BYTES,
    pem::{self, Unusable},
};

/// Context of a key's id, so that the id stands for nothing else.
pub const KEY_ID_CONTEXT: &str = "assay v1 key id";

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] PathError),
    /// A new key would replace what is there.
    #[error("{} already exists, and keys are never replaced", ShowPath(path))]
    Exists {
        /// The file in the way.
        path: PathBuf,
    },
    /// Group or others may read a private key.
    #[error("the private key {} can be read by others (its mode is {mode:04o})", ShowPath(path))]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Somebody else owns a private key, or its folder, or anybody may write there: they could put another key in its place.
    #[error("{} can be replaced by others ({why})", ShowPath(path))]
    Replaceable {
        /// The key or its folder.
        path: PathBuf,
        /// Who can.
        why: String,
    },
    /// A private key's name is a symbolic link.
    #[error("the private key {} is a symbolic link", ShowPath(path))]
    Link {
        /// The link.
        path: PathBuf,
    },
    /// A key's name is not that of a regular file, or the file is far too large.
    #[error("{} is not a key file", ShowPath(path))]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// A public key in a folder of further keys has a name that does not say what it is.
    #[error("{} has a name that does not say whether it is a former or an announced key", ShowPath(path))]
    Misnamed {
        /// The file.
        path: PathBuf,
    },
    /// The same key in two places.
    #[error("{} holds a key that is given twice", ShowPath(path))]
    Twice {
        /// The second file.
        path: PathBuf,
    },
    /// More keys than one agent can have.
    #[error("{} has more than {limit} keys", ShowPath(path))]
    TooMany {
        /// The folder.
        path: PathBuf,
        /// How many may be there.
        limit: usize,
    },
    /// The ledger goes on with another key than the agent's own.
    #[error("the ledger goes on with key {ledger} since its entry {entry}, and this agent's key is {own}")]
    Replaced {
        /// Id of the agent's key.
        own: String,
        /// Id of the key that the ledger names.
        ledger: String,
        /// The entry that names it.
        entry: String,
    },
    /// No key was named.
    #[error("no public key was given")]
    NoKeys,
    /// The content is not a key of the kind that is wanted.
    #[error("{} does not hold {expected}: {what}", ShowPath(path))]
    Format {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
        /// What it holds.
        what: Unusable,
    },
}

impl Hint for KeyError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::File(error) => error.hint(),
            Self::Exists { path } => {
                Some(format!("move {} away first, or choose another folder", ShowPath(path)))
            }
            Self::Exposed { path, .. } => {
                Some(format!("chmod 600 {} (and if others may have read it, make a new key)", ShowPath(path)))
            }
            Self::Replaceable { path, .. } => Some(format!(
                "let root or the agent's own user own {} and nobody else write to it (and if others could have used the key, \
                 make a new one)",
                ShowPath(path)
            )),
            Self::Link { path } => {
                Some(format!("name the key file itself, and chmod 600 it, instead of {}", ShowPath(path)))
            }
            Self::NotAFile { .. } | Self::NoKeys | Self::TooMany { .. } => None,
            Self::Replaced { .. } => Some(
                "when a change of keys was cut short, assay-target keys rotate goes on with it; when the configuration has come from a backup, let \
                 agent.signing_key name the newer key; when that is lost, assay-target keys rotate --lost PUB makes another"
                    .to_owned(),
            ),
            Self::Misnamed { path } => Some(format!(
                "call it former-NNNN-NAME.pub or next-NNNN-NAME.pub, or move {} away",
                ShowPath(path)
            )),
            Self::Twice { .. } => Some("give each key once, the oldest first".to_owned()),
            Self::Format { expected, what, .. } => {
                Some(what.remedy.clone().unwrap_or_else(|| format!("name a file that holds {expected}")))
            }
        }
    }
}

/// Reads a private key file of any kind, refusing one that others could have read.
///
/// # Errors
/// [`KeyError`], which never quotes content.
pub fn read_private(path: &Path) -> Result<Vec<u8>, KeyError> {
    // NONBLOCK: a FIFO in the key's place must not hang the agent.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => fs::File::from(file),
        Err(Errno::LOOP) if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink()) => {
            return Err(KeyError::Link { path: path.to_owned() });
        }
        Err(error) => return Err(PathError::new("open", path, error).into()),
    };
    let metadata = file.metadata().at("read", path)?;
    if !metadata.is_file() || metadata.len() > MAX_KEY_FILE_BYTES {
        return Err(KeyError::NotAFile { path: path.to_owned() });
    }
    let mode = metadata.mode() & 0o7777;
    // A credential of systemd is root's, and an ACL lets the service's user read it: its mask stands in the group's bits.
    let handed_over =
        std::env::var_os(CREDENTIALS).is_some_and(|folder| path.parent() == Some(Path::new(&folder)));
    let others = if handed_over { 0o037 } else { 0o077 };
    if mode & others != 0 {
        return Err(KeyError::Exposed { path: path.to_owned(), mode });
    }
    check_owner(path, &metadata)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    check_owner(folder, &fs::metadata(folder).at("read", folder)?)?;
    let mut bytes = Vec::new();
    file.take(MAX_KEY_FILE_BYTES).read_to_end(&mut bytes).at("read", path)?;
    Ok(bytes)
}

/// Root or this process's user owns it, and nobody else may write to it; in a folder with the sticky bit they may, because
/// what is there stays its owner's.
fn check_owner(path: &Path, metadata: &fs::Metadata) -> Result<(), KeyError> {
    let own = rustix::process::geteuid().as_raw();
    let refused = |why: String| Err(KeyError::Replaceable { path: path.to_owned(), why });
    if metadata.uid() != 0 && metadata.uid() != own {
        return refused(format!("it belongs to the user {}", metadata.uid()));
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o002 != 0 && mode & 0o1000 == 0 {
        return refused(format!("its mode is {mode:04o}"));
    }
    Ok(())
}

/// Reads a public key or a certificate.
///
/// # Errors
/// [`KeyError::File`] or [`KeyError::NotAFile`].
pub fn read_public(path: &Path) -> Result<Vec<u8>, KeyError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = fs::File::from(rustix::fs::open(path, flags, Mode::empty()).at("open", path)?);
    let metadata = file.metadata().at("read", path)?;
    if !metadata.is_file() || metadata.len() > MAX_KEY_FILE_BYTES {
        return Err(KeyError::NotAFile { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    file.take(MAX_KEY_FILE_BYTES).read_to_end(&mut bytes).at("read", path)?;
    Ok(bytes)
}

/// Creates a key file with mode 0600 that was never readable by others and replaces nothing.
pub(crate) fn create_private(path: &Path, bytes: &[u8]) -> Result<(), KeyError> {
    create(path, bytes, 0o600)
}

/// Creates a file for everybody to read that replaces nothing.
pub(crate) fn create_public(path: &Path, bytes: &[u8]) -> Result<(), KeyError> {
    create(path, bytes, 0o644)
}

fn create(path: &Path, bytes: &[u8], mode: u32) -> Result<(), KeyError> {
    create_durable(path, bytes, mode).map_err(|error| match error.source.kind() {
        io::ErrorKind::AlreadyExists => KeyError::Exists { path: path.to_owned() },
        _ => KeyError::File(error),
    })
}

/// A private Ed25519 key.
pub struct SigningKey(ed25519_dalek::SigningKey);

impl SigningKey {
    /// A new key from the operating system's randomness.
    ///
    /// # Panics
    /// When the operating system has no randomness to give.
    pub fn generate() -> Self {
        let mut seed = [0; 32];
        OsRng.try_fill_bytes(&mut seed).expect("the operating system gives randomness");
        Self(ed25519_dalek::SigningKey::from_bytes(&seed))
    }

    /// Reads a PKCS#8 PEM file.
    ///
    /// # Errors
    /// [`KeyError`]: absent, readable by others, a link, or not such a key.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let bytes = read_private(path)?;
        pem::normal(&bytes)
            .and_then(|pem| ed25519_dalek::SigningKey::from_pkcs8_pem(&pem).ok())
            .map(Self)
            .ok_or_else(|| KeyError::Format {
                path: path.to_owned(),
                expected: "an Ed25519 private key (PKCS#8 PEM)",
                what: pem::explain(&bytes, &["PRIVATE KEY"]),
            })
    }

    /// Creates a PKCS#8 PEM file with mode 0600, from its first instant. Replaces nothing.
    ///
    /// # Errors
    /// [`KeyError::Exists`] or [`KeyError::File`].
    pub fn save(&self, path: &Path) -> Result<(), KeyError> {
        // Without the public part: OpenSSL before 3.2 does not read PKCS#8 version 2.
        let bytes = KeypairBytes { secret_key: self.0.to_bytes(), public_key: None };
        let pem = bytes.to_pkcs8_pem(Default::default()).expect("a key of fixed size always encodes");
        create_private(path, pem.as_bytes())
    }

    /// The public key that belongs to this one.
    pub fn verifying_key(&self) -> VerifyingKey {
        VerifyingKey(self.0.verifying_key())
    }

    /// Id of the key pair.
    pub fn key_id(&self) -> String {
        self.verifying_key().key_id()
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SigningKey({})", self.key_id())
    }
}

/// A public Ed25519 key.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifyingKey(ed25519_dalek::VerifyingKey);

impl VerifyingKey {
    /// Reads an SPKI PEM file.
    ///
    /// # Errors
    /// [`KeyError`]: absent, or not such a key.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let bytes = read_public(path)?;
        pem::normal(&bytes).and_then(|pem| Self::from_pem(&pem)).ok_or_else(|| KeyError::Format {
            path: path.to_owned(),
            expected: "an Ed25519 public key (SPKI PEM)",
            what: pem::explain(&bytes, &["PUBLIC KEY"]),
        })
    }

    /// Creates an SPKI PEM file for everybody to read. Replaces nothing.
    ///
    /// # Errors
    /// [`KeyError::Exists`] or [`KeyError::File`].
    pub fn save(&self, path: &Path) -> Result<(), KeyError> {
        create_public(path, self.to_pem().as_bytes())
    }

    /// From SPKI PEM text; nothing for any other text, and for a weak key.
    pub fn from_pem(pem: &str) -> Option<Self> {
        ed25519_dalek::VerifyingKey::from_public_key_pem(pem).ok().filter(|key| !key.is_weak()).map(Self)
    }

    /// From the raw 32 bytes; nothing when they are no key, or a weak one.
    pub fn from_bytes(bytes: &[u8; 32]) -> Option<Self> {
        ed25519_dalek::VerifyingKey::from_bytes(bytes).ok().filter(|key| !key.is_weak()).map(Self)
    }

    /// SPKI PEM text.
    ///
    /// # Panics
    /// Never: a key of fixed size always encodes.
    pub fn to_pem(&self) -> String {
        self.0.to_public_key_pem(Default::default()).expect("a key of fixed size always encodes")
    }

    /// The raw 32 bytes.
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// Names the key: 16 hexadecimal digits of the BLAKE3 digest of the raw public key, in the context
    /// [`KEY_ID_CONTEXT`]. Helps to find the right key; it proves nothing.
    pub fn key_id(&self) -> String {
        hex::encode(&blake3::derive_key(KEY_ID_CONTEXT, self.0.as_bytes())[..8])
    }

    /// True when `signature` is this key's over `message`.
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        Signature::from_slice(signature)
            .is_ok_and(|signature| self.0.verify_strict(message, &signature).is_ok())
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "VerifyingKey({})", self.key_id())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;
    use crate::error::report;

    #[test]
    fn keys_come_back_from_their_files() {
        let folder = tempfile::tempdir().expect("folder");
        let (private, public) = (folder.path().join("k.key"), folder.path().join("k.pub"));
        let key = SigningKey::generate();
        key.save(&private).expect("save");
        key.verifying_key().save(&public).expect("save");
        assert_eq!(fs::metadata(&private).expect("metadata").mode() & 0o777, 0o600);
        let (key_again, public_again) =
            (SigningKey::load(&private).expect("load"), VerifyingKey::load(&public));
        assert_eq!(key_again.verifying_key(), key.verifying_key());
        let public_again = public_again.expect("load");
        assert_eq!(public_again.key_id(), key.key_id());
        assert_eq!(key.key_id().len(), 16);
        assert!(public_again.verifies(b"message", &key_again.sign(b"message")));
        assert!(!public_again.verifies(b"massage", &key_again.sign(b"message")));
    }

    #[test]
    fn a_key_is_never_replaced() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("k.key");
        SigningKey::generate().save(&path).expect("save");
        let before = fs::read(&path).expect("read");
        let text = report(&SigningKey::generate().save(&path).expect_err("exists"));
        assert!(text.contains("k.key already exists") && text.contains("HINT: move "), "{text}");
        assert_eq!(fs::read(&path).expect("read"), before);
    }

    /// A key, or its folder, that somebody else owns or may write to. Only root can make one.
    #[test]
    fn a_key_that_others_can_replace_is_refused_with_the_remedy() {
        use std::os::unix::fs::{PermissionsExt as _, chown};
        let folder = tempfile::tempdir().expect("temp");
        let path = folder.path().join("a.key");
        SigningKey::generate().save(&path).expect("save");
        let refused = |place: &Path, why: &str| {
            let error = SigningKey::load(&path).expect_err("it is refused");
            assert!(matches!(&error, KeyError::Replaceable { path, .. } if path == place), "{error}");
            assert!(error.to_string().contains(why), "{error}");
            assert!(error.hint().expect("a remedy").contains("root or the agent's own user"));
        };
        let mode =
            |mode| fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).expect("chmod");
        mode(0o777);
        refused(folder.path(), "its mode is 0777");
        mode(0o1777);
        SigningKey::load(&path).expect("the sticky bit protects it");
        mode(0o755);
        if rustix::process::geteuid().is_root() {
            chown(&path, Some(1), None).expect("chown");
            refused(&path, "it belongs to the user 1");
            chown(&path, Some(0), None).expect("chown");
            chown(folder.path(), Some(1), None).expect("chown");
            refused(folder.path(), "it belongs to the user 1");
            chown(folder.path(), Some(0), None).expect("chown");
        }
        SigningKey::load(&path).expect("it is ours again");
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_remedy() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("k.key");
        SigningKey::generate().save(&path).expect("save");
        for mode in [0o640, 0o604, 0o610, 0o602] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
            let text = report(&SigningKey::load(&path).expect_err("exposed"));
            assert!(text.contains(&format!("{mode:04o}")) && text.contains("HINT: chmod 600 "), "{text}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).expect("chmod");
        SigningKey::load(&path).expect("0400 is fine");
    }

    #[test]
    fn links_folders_and_fifos_are_refused_as_private_keys() {
        let folder = tempfile::tempdir().expect("folder");
        let (path, link) = (folder.path().join("k.key"), folder.path().join("link.key"));
        SigningKey::generate().save(&path).expect("save");
        symlink(&path, &link).expect("link");
        let error = SigningKey::load(&link).expect_err("link");
        assert!(matches!(error, KeyError::Link { .. }) && report(&error).contains("chmod 600"), "{error}");
        assert!(matches!(SigningKey::load(folder.path()), Err(KeyError::NotAFile { .. })));
        let fifo = folder.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RUSR, 0).expect("fifo");
        assert!(matches!(SigningKey::load(&fifo), Err(KeyError::NotAFile { .. })));
    }

    /// What editors on other systems do to a key.
    #[test]
    fn a_key_with_other_line_ends_is_read() {
        let folder = tempfile::tempdir().expect("folder");
        let (private, public) = (folder.path().join("k.key"), folder.path().join("k.pub"));
        let key = SigningKey::generate();
        key.save(&private).expect("save");
        key.verifying_key().save(&public).expect("save");
        for path in [&private, &public] {
            let text = fs::read_to_string(path).expect("read");
            fs::write(path, format!("\u{feff}{}", text.replace('\n', "\r\n"))).expect("write");
        }
        assert_eq!(SigningKey::load(&private).expect("load").verifying_key(), key.verifying_key());
        assert_eq!(VerifyingKey::load(&public).expect("load"), key.verifying_key());
        fs::set_permissions(&public, fs::Permissions::from_mode(0o600)).expect("chmod");
        let text = report(&SigningKey::load(&public).expect_err("it is the public one"));
        assert!(
            text.contains("k.pub does not hold an Ed25519 private key")
                && text.contains("it holds a public key"),
            "{text}"
        );
        assert!(text.contains("HINT: "), "{text}");
    }

    #[test]
    fn errors_never_quote_content() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("k.key");
        create_private(&path, b"-----BEGIN PRIVATE KEY-----\nsecretsecret\n-----END PRIVATE KEY-----\n")
            .expect("write");
        let error = SigningKey::load(&path).expect_err("not a key");
        assert!(!format!("{error:?} {}", report(&error)).contains("secretsecret"));
    }

    /// The promise that a verdict can be checked by hand.
    #[test]
    fn openssl_reads_both_files() {
        let folder = tempfile::tempdir().expect("folder");
        let (private, public) = (folder.path().join("k.key"), folder.path().join("k.pub"));
        let key = SigningKey::generate();
        key.save(&private).expect("save");
        key.verifying_key().save(&public).expect("save");
        let output =
            std::process::Command::new("openssl").args(["pkey", "-pubout", "-in"]).arg(&private).output();
        let Ok(output) = output else {
            return; // No openssl on this machine.
        };
        assert!(output.status.success());
        assert_eq!(output.stdout, fs::read(&public).expect("read"));
    }
}
