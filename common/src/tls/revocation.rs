//! Certificates that are not accepted any longer although they have not expired: a stolen operator's key, a source that is gone.
//!
//! `[tls] revoked` in the configuration names them by their serial number or by the SHA-256 of their public key, in a list or in a file with
//! one a line. It is read again while the agent runs, within some seconds and without a restart; a list that cannot be understood is
//! refused with a loud log, and the one before it is kept. It holds in both directions: for those who call this agent, in the handshake and
//! with each call on a connection that stands, and for the servers that it calls.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use rustls_pki_types::CertificateDer;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::FromDer as _;

use crate::{config, error::ShowPath, supervise};

/// How often the list is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Digits of a key's SHA-256.
const KEY_DIGITS: usize = 64;
/// Digits of the longest serial number.
const SERIAL_DIGITS: usize = 40;
/// Longest file, in bytes.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// `[tls] revoked`: a list, or a file.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum RevokedSetting {
    /// Serial numbers and keys.
    List(Vec<String>),
    /// A file with one a line.
    File(PathBuf),
}

/// What a certificate is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprints {
    /// Its serial number, hexadecimal, without leading zeros.
    pub serial: String,
    /// SHA-256 of its public key (SubjectPublicKeyInfo), hexadecimal.
    pub key: String,
    /// SHA-256 of the whole certificate, hexadecimal: what tools call its fingerprint.
    pub certificate: String,
}

impl Fingerprints {
    /// Those of a certificate in DER; `None` when it is none.
    pub fn of(der: &[u8]) -> Option<Self> {
        let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(der).ok()?;
        let hex = |bytes: &[u8]| {
            bytes.iter().fold(String::new(), |mut text, byte| {
                let _ = write!(text, "{byte:02x}");
                text
            })
        };
        let serial = without_zeros(&hex(certificate.raw_serial())).to_owned();
        let key = hex(&Sha256::digest(certificate.public_key().raw));
        Some(Self { serial, key, certificate: hex(&Sha256::digest(der)) })
    }
}

fn without_zeros(digits: &str) -> &str {
    match digits.trim_start_matches('0') {
        "" => "0",
        rest => rest,
    }
}

/// What is revoked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revoked {
    serials: BTreeSet<String>,
    /// SHA-256 of keys, and of whole certificates: nobody can make one that is the other.
    keys: BTreeSet<String>,
}

impl Revoked {
    /// Reads what a configuration says. `path` is the configuration's.
    ///
    /// # Errors
    /// A sentence about the entry that is none, or about the file that cannot be read.
    pub fn load(path: &Path, setting: Option<&RevokedSetting>) -> Result<Self, String> {
        match setting {
            None => Ok(Self::default()),
            Some(RevokedSetting::List(entries)) => Self::parse(entries.iter().map(String::as_str)),
            Some(RevokedSetting::File(file)) => {
                let file = config::resolve(path, file);
                let shown = ShowPath(&file).to_string();
                let read = || -> std::io::Result<String> {
                    if fs::metadata(&file)?.len() > MAX_BYTES {
                        return Err(std::io::ErrorKind::FileTooLarge.into());
                    }
                    fs::read_to_string(&file)
                };
                let text = read().map_err(|error| format!("{shown}: {error}"))?;
                let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
                Self::parse(lines.filter(|line| !line.trim().is_empty()))
                    .map_err(|fault| format!("{shown}: {fault}"))
            }
        }
    }

    fn parse<'a>(entries: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let mut revoked = Self::default();
        for entry in entries {
            let text = entry.trim().to_ascii_lowercase();
            // `openssl x509 -serial` and `-fingerprint -sha256` print a word and '=' before the digits.
            let (kind, digits) =
                text.rsplit_once('=').or_else(|| text.split_once(' ')).unwrap_or(("", &text));
            let kind = if kind == "sha256 fingerprint" { "key" } else { kind };
            let digits: String = digits.chars().filter(|it| !matches!(it, ':' | ' ')).collect();
            let is_hex = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            match (kind, digits.len()) {
                ("" | "key", KEY_DIGITS) if is_hex => drop(revoked.keys.insert(digits)),
                ("" | "serial", 1..=SERIAL_DIGITS) if is_hex => {
                    revoked.serials.insert(without_zeros(&digits).to_owned());
                }
                _ => {
                    return Err(format!(
                        "{:?} is neither a serial number (up to {SERIAL_DIGITS} hexadecimal digits) nor the SHA-256 of a key or certificate ({KEY_DIGITS})",
                        crate::path::display_bytes(entry.as_bytes())
                    ));
                }
            }
        }
        Ok(revoked)
    }

    /// True for a certificate that is named.
    pub fn holds(&self, of: &Fingerprints) -> bool {
        self.serials.contains(&of.serial)
            || self.keys.contains(&of.key)
            || self.keys.contains(&of.certificate)
    }
}

/// What is revoked for this process, which has one configuration.
static CURRENT: RwLock<Option<Arc<Revoked>>> = RwLock::new(None);

/// From now on these are not accepted.
pub fn install(revoked: Revoked) {
    *CURRENT.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(revoked));
}

fn current() -> Option<Arc<Revoked>> {
    CURRENT.read().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Of the list, so that a change shows.
pub(super) fn digest() -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    if let Some(revoked) = current() {
        for (kind, entries) in [(b's', &revoked.serials), (b'k', &revoked.keys)] {
            for entry in entries {
                hasher.update(&[kind]).update(entry.as_bytes()).update(b"\n");
            }
        }
    }
    *hasher.finalize().as_bytes()
}

/// True for a certificate that is revoked.
pub fn is_revoked(of: &Fingerprints) -> bool {
    current().is_some_and(|revoked| revoked.holds(of))
}

/// True when any certificate of a chain is revoked, or is none.
pub(super) fn is_any_revoked<'a>(chain: impl Iterator<Item = &'a [u8]>) -> bool {
    let Some(revoked) = current() else { return false };
    let mut chain = chain.map(Fingerprints::of);
    chain.any(|it| it.is_none_or(|it| revoked.holds(&it)))
}

/// A CA of the file of those that are trusted.
#[derive(Debug, Clone)]
pub(super) struct Anchor {
    der: CertificateDer<'static>,
    subject: Vec<u8>,
    fingerprints: Fingerprints,
}

impl Anchor {
    pub(super) fn of(der: &CertificateDer<'static>) -> Option<Self> {
        let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject().as_raw().to_vec();
        Some(Self { der: der.clone(), subject, fingerprints: Fingerprints::of(der)? })
    }
}

/// The CAs that are not revoked, if any of them is; `None` when none is.
pub(super) fn anchors_left(anchors: &[Anchor]) -> Option<Vec<CertificateDer<'static>>> {
    let revoked = current()?;
    let left: Vec<_> = anchors.iter().filter(|anchor| !revoked.holds(&anchor.fingerprints)).collect();
    (left.len() < anchors.len()).then(|| left.into_iter().map(|anchor| anchor.der.clone()).collect())
}

/// The CAs that this process trusts, as they were read last.
static KNOWN: RwLock<Option<Arc<[Anchor]>>> = RwLock::new(None);

pub(super) fn know(anchors: &Arc<[Anchor]>) {
    *KNOWN.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(anchors));
}

/// Those that vouch for the first certificate of a chain that was verified: the rest of the chain, and the CA, where only one has its name.
pub(super) fn vouching(chain: &[CertificateDer<'_>]) -> Vec<Fingerprints> {
    let mut vouching: Vec<_> = chain.iter().skip(1).filter_map(|it| Fingerprints::of(it)).collect();
    let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner).clone();
    for certificate in chain {
        let Ok((_, parsed)) = x509_parser::certificate::X509Certificate::from_der(certificate) else {
            continue;
        };
        let issuer = parsed.issuer().as_raw();
        let mut issuers =
            known.iter().flat_map(|known| known.iter()).filter(|anchor| anchor.subject == issuer);
        if let (Some(anchor), None) = (issuers.next(), issuers.next()) {
            vouching.push(anchor.fingerprints.clone());
        }
    }
    vouching
}

/// What of a configuration matters here.
#[derive(Deserialize)]
struct File {
    tls: Section,
}

#[derive(Deserialize)]
struct Section {
    revoked: Option<RevokedSetting>,
}

/// How a file looked: any change of content or name changes it.
type Stamp = Option<(u64, u64, i64, i64)>;

fn stamp(path: &Path) -> Stamp {
    let stat = fs::metadata(path).ok()?;
    Some((stat.ino(), stat.size(), stat.ctime(), stat.ctime_nsec()))
}

/// The setting as the configuration has it now.
fn setting(config: &Path) -> Result<Option<RevokedSetting>, String> {
    let text = fs::read_to_string(config).map_err(|error| error.to_string())?;
    let file: File = toml::from_str(&text).map_err(|error| error.message().to_owned())?;
    Ok(file.tls.revoked)
}

/// Reads the list again whenever the configuration, or the file that it names, has changed. Must be called within a tokio runtime.
pub fn watch(config: PathBuf) {
    supervise::spawn("revocation", move || {
        let config = config.clone();
        async move {
            let named = |setting: &Option<RevokedSetting>| match setting {
                Some(RevokedSetting::File(file)) => Some(config::resolve(&config, file)),
                _ => None,
            };
            let mut file = setting(&config).ok().as_ref().and_then(named);
            let look = |file: &Option<PathBuf>| (stamp(&config), file.as_deref().and_then(stamp));
            // What the agent started with was read a moment ago: it is read once more, so that nothing falls in between.
            let mut seen = None;
            loop {
                let now = look(&file);
                if seen != Some(now) {
                    seen = Some(now);
                    let read = setting(&config).and_then(|setting| {
                        let revoked = Revoked::load(&config, setting.as_ref())?;
                        Ok((named(&setting), revoked))
                    });
                    match read {
                        Ok((named, revoked)) => {
                            if current().as_deref() != Some(&revoked) {
                                let (serials, keys) = (revoked.serials.len(), revoked.keys.len());
                                tracing::warn!(
                                    serials,
                                    keys,
                                    "the list of revoked certificates was reloaded"
                                );
                                install(revoked);
                            }
                            if named != file {
                                file = named;
                                seen = Some(look(&file));
                            }
                        }
                        Err(error) => tracing::error!(
                            error,
                            "the list of revoked certificates is REFUSED, and the one before it kept: correct tls.revoked"
                        ),
                    }
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serials_and_keys_are_known_in_the_forms_that_tools_print() {
        let key = "AB".repeat(32);
        let colons = ["AB"; 32].join(":");
        let of = |serial: &str, key: &str| Fingerprints {
            serial: serial.to_owned(),
            key: key.to_owned(),
            certificate: "cd".repeat(32),
        };
        for entry in [key.as_str(), &colons, &format!("key {key}")] {
            let revoked = Revoked::parse([entry].into_iter()).expect("a key");
            assert!(revoked.holds(&of("1", &key.to_lowercase())) && !revoked.holds(&of("ab", "")));
        }
        for entry in ["CD".repeat(32), format!("SHA256 Fingerprint={}", ["CD"; 32].join(":"))] {
            let revoked = Revoked::parse([entry.as_str()].into_iter()).expect("a certificate's fingerprint");
            assert!(revoked.holds(&of("1", "")), "{entry}");
        }
        for entry in ["0A:0b", "a0b", "serial 00A0B", "serial=00A0B", "  SERIAL a0b\t"] {
            let revoked = Revoked::parse([entry].into_iter()).expect("a serial");
            assert!(revoked.holds(&of("a0b", "")), "{entry}");
        }
        for wrong in [
            "",
            "xyz",
            "key ab",
            "serial",
            "serial=",
            "SHA1 Fingerprint=ab",
            "serial = ",
            "0xab",
            "-1",
            &"a".repeat(41),
            &"a".repeat(65),
        ] {
            Revoked::parse([wrong].into_iter()).expect_err(wrong);
        }
    }

    #[test]
    fn a_file_has_one_a_line_and_comments() {
        let folder = tempfile::tempdir().expect("temp");
        let config = folder.path().join("target.toml");
        fs::write(folder.path().join("revoked.txt"), "# who left\n\nab # alice\n cd\n").expect("write");
        let setting = RevokedSetting::File("revoked.txt".into());
        let revoked = Revoked::load(&config, Some(&setting)).expect("read");
        assert_eq!(revoked.serials, BTreeSet::from(["ab".to_owned(), "cd".to_owned()]));
        fs::write(folder.path().join("revoked.txt"), "ab\nalice\n").expect("write");
        let fault = Revoked::load(&config, Some(&setting)).expect_err("no number");
        assert!(fault.contains("revoked.txt") && fault.contains("alice"), "{fault}");
        fs::remove_file(folder.path().join("revoked.txt")).expect("remove");
        Revoked::load(&config, Some(&setting)).expect_err("what is named must be there");
    }
}
