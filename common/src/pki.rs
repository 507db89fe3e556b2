//! Roles in certificates, and a small certificate authority for those who have none.
//!
//! A certificate says who its holder is in one URI among its subject alternative names,
//! `urn:assay:ROLE:NAME`. The common name is for people and decides nothing. Keys are ECDSA P-256, statements
//! are signed with Ed25519 keys of their own. Whoever holds `ca.key` can be anybody: [`authority`] says where it lies.

pub mod authority;

use std::{
    fmt, fs,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber, SubjectPublicKeyInfo,
    string::Ia5String,
};
use serde::{Deserialize, Serialize};
use x509_parser::{extensions::GeneralName, prelude::FromDer as _};

use crate::{
    durable::write_durable,
    error::{Hint, PathError, ShowPath},
    id::is_plain_name,
    signing::{KeyError, SigningKey, create_private, create_public, read_private, read_public},
    tls::revocation::Fingerprints,
};

/// How every identity starts.
const URN_PREFIX: &str = "urn:assay:";
/// Certificates are valid from a little before they are made, because the two hosts' clocks differ.
const CLOCK_SLACK: Duration = Duration::from_secs(3600);
/// How long certificates are valid unless said otherwise: five quarters of a year, so that an agent whose clock is a year ahead is heard and
/// told of. [`renew`] makes new ones with one command, and a stolen one is revoked.
pub const DEFAULT_VALIDITY_DAYS: u32 = 455;
/// The same.
pub const DEFAULT_VALIDITY: Duration = Duration::from_secs(DEFAULT_VALIDITY_DAYS as u64 * DAY_SECONDS);
/// How long the CA is valid unless said otherwise: ten years.
pub const DEFAULT_CA_VALIDITY: Duration = Duration::from_secs(3652 * DAY_SECONDS);
const DAY_SECONDS: u64 = 86_400;

/// What a certificate's holder may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The source agent: sends generations, serves operators.
    Source,
    /// The target agent: receives and checks generations, serves operators.
    Target,
    /// A person or program that operates both.
    Operator,
    /// Whoever may take generations back.
    Restore,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Source, Self::Target, Self::Operator, Self::Restore];

    /// The word in the certificate.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
            Self::Operator => "operator",
            Self::Restore => "restore",
        }
    }

    /// True for the two agents, which serve as well as call.
    fn serves(self) -> bool {
        matches!(self, Self::Source | Self::Target)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// The text is not a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a role is source, target, operator or restore")]
pub struct NoRole;

impl FromStr for Role {
    type Err = NoRole;

    fn from_str(text: &str) -> Result<Self, NoRole> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or(NoRole)
    }
}

/// Who a certificate's holder is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerIdentity {
    /// What it may do.
    pub role: Role,
    /// Its name, a plain one.
    pub name: String,
}

/// A certificate does not say who its holder is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// Not X.509.
    #[error("the certificate cannot be parsed")]
    Unreadable,
    /// No identity, or several.
    #[error("the certificate has {found} names urn:assay:ROLE:NAME, expected exactly 1")]
    Count {
        /// How many.
        found: usize,
    },
    /// The identity is not `urn:assay:ROLE:NAME`.
    #[error("the certificate's name is not urn:assay:ROLE:NAME with a known role and a plain name")]
    Malformed,
}

impl PeerIdentity {
    /// Reads who a certificate's holder is. Does not check who issued it.
    ///
    /// # Errors
    /// [`IdentityError`] unless there is exactly one identity.
    pub fn from_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        let (rest, certificate) = x509_parser::certificate::X509Certificate::from_der(der)
            .map_err(|_| IdentityError::Unreadable)?;
        if !rest.is_empty() {
            return Err(IdentityError::Unreadable);
        }
        let names = certificate.subject_alternative_name().map_err(|_| IdentityError::Unreadable)?;
        let names = names.map_or(&[][..], |extension| &extension.value.general_names);
        let uris: Vec<&str> = names
            .iter()
            .filter_map(|name| match name {
                GeneralName::URI(uri) if is_ours(uri) => Some(*uri),
                _ => None,
            })
            .collect();
        match uris.as_slice() {
            [uri] => uri.parse(),
            all => Err(IdentityError::Count { found: all.len() }),
        }
    }
}

/// Counts what somebody might take for an identity, also in capital letters, which are not accepted.
fn is_ours(uri: &str) -> bool {
    uri.get(..URN_PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(URN_PREFIX))
}

impl FromStr for PeerIdentity {
    type Err = IdentityError;

    fn from_str(uri: &str) -> Result<Self, IdentityError> {
        let (role, name) = uri
            .strip_prefix(URN_PREFIX)
            .and_then(|rest| rest.split_once(':'))
            .ok_or(IdentityError::Malformed)?;
        let role = role.parse().map_err(|_| IdentityError::Malformed)?;
        if !is_plain_name(name) {
            return Err(IdentityError::Malformed);
        }
        Ok(Self { role, name: name.to_owned() })
    }
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} '{}'", self.role, self.name)
    }
}

/// The holder of a certificate to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Party {
    /// A plain name.
    pub name: String,
    /// Host names and addresses under which the others reach it. An agent needs one at least.
    pub hosts: Vec<String>,
}

/// What `pki init` makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PkiOptions {
    /// Organisation (O=) in every certificate, for people.
    pub organisation: String,
    /// The source agent.
    pub source: Party,
    /// The target agent.
    pub target: Party,
    /// The first operator; [`issue`] makes more.
    pub operator: Party,
    /// How long the certificates are valid.
    pub validity: Duration,
    /// How long the CA is valid.
    pub ca_validity: Duration,
    /// Make signing keys for the two agents as well.
    pub signing_keys: bool,
}

/// Why no certificates were made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PkiError {
    /// A file cannot be read or written, or is in the way.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A name cannot stand in a certificate.
    #[error("'{name}' cannot be the name of a {role}")]
    Name {
        /// The name, shown safely.
        name: String,
        /// Whose.
        role: Role,
    },
    /// A host is neither a host name nor an address.
    #[error("'{host}' is neither a host name nor an IP address")]
    Host {
        /// The text, shown safely.
        host: String,
    },
    /// An agent without a host cannot be called.
    #[error("the {role} '{name}' has no host name or address")]
    NoHost {
        /// Which agent.
        role: Role,
        /// Its name.
        name: String,
    },
    /// The CA's files do not hold a CA.
    #[error("{} and ca.key are not the certificate and the key of a CA", ShowPath(path))]
    Authority {
        /// The CA's certificate.
        path: PathBuf,
    },
    /// The CA's private key is at none of the places where it is looked for.
    #[error("the private key of the CA in {} is in none of: {}", ShowPath(ca), shown_list(places))]
    NoAuthority {
        /// The CA's certificate.
        ca: PathBuf,
        /// The folders.
        places: Vec<PathBuf>,
    },
    /// The user has no folder for a CA.
    #[error("there is no place for a CA: neither XDG_DATA_HOME nor HOME is set")]
    NoHome,
    /// An agent can read the CA's private key.
    #[error(
        "the certificate authority's private key lies below this agent's configuration, where whoever takes the agent over can read it: {}",
        ShowPath(&key.path)
    )]
    KeyInReach {
        /// The key.
        key: authority::ReachableKey,
    },
    /// A certificate that is not one of ours.
    #[error("{} is not a certificate of an agent, operator or restore", ShowPath(path))]
    NotOurs {
        /// The file.
        path: PathBuf,
    },
    /// The certificate library failed.
    #[error("cannot make the certificate of the {role}: {source}")]
    Certificate {
        /// Whose.
        role: &'static str,
        /// Why.
        source: rcgen::Error,
    },
}

fn shown_list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| ShowPath(path).to_string()).collect::<Vec<_>>().join(", ")
}

impl Hint for PkiError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Key(error) => error.hint(),
            Self::Name { .. } => {
                Some("use 1 to 64 letters, digits, '-' and '_', a letter or digit first".to_owned())
            }
            Self::Host { .. } => Some("for example backup.example.org, 192.0.2.7 or 2001:db8::7".to_owned()),
            Self::NoHost { .. } => {
                Some("name every host name and address under which the others reach it".to_owned())
            }
            Self::Authority { .. } => Some("name the folder that has the CA's ca.crt and ca.key".to_owned()),
            Self::NoAuthority { .. } => {
                Some("--ca-folder DIR names the folder that has ca.crt and ca.key".to_owned())
            }
            Self::NoHome => Some("name a folder for it: --ca-folder DIR".to_owned()),
            Self::KeyInReach { key } => Some(key.remedy()),
            Self::NotOurs { .. } => Some("name one that `pki init` or `pki issue` made".to_owned()),
            Self::Certificate { .. } => None,
        }
    }
}

/// The two files of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuedFiles {
    /// The certificate, PEM.
    pub cert: PathBuf,
    /// Its private key, PKCS#8 PEM, mode 0600.
    pub key: PathBuf,
}

/// Makes certificates for the two agents and an operator, and, where `options` say so, signing keys for the two agents, in `folder`, and a CA in a folder apart: in
/// `apart`, or in one of its own in [`authority::store`]. Folders are created (mode 0700) when they are absent. Replaces no file: when one is
/// in the way nothing is written. Gives the CA's folder.
///
/// # Errors
/// [`PkiError`].
pub fn init_pki(
    folder: &Path,
    apart: Option<&Path>,
    options: &PkiOptions,
    now: Timestamp,
) -> Result<PathBuf, PkiError> {
    let parties = [
        (Role::Source, &options.source),
        (Role::Target, &options.target),
        (Role::Operator, &options.operator),
    ];
    create_folder(folder)?;
    let mut names: Vec<String> = vec!["ca.crt".into(), "ca.key".into()];
    for (role, party) in parties {
        check_party(role, party)?;
        names.extend([format!("{role}.crt"), format!("{role}.key")]);
        if role.serves() && options.signing_keys {
            names.extend([format!("{role}-signing.key"), format!("{role}-signing.pub")]);
        }
    }
    for path in names.iter().map(|name| folder.join(name)) {
        if fs::symlink_metadata(&path).is_ok() {
            return Err(KeyError::Exists { path }.into());
        }
    }

    let (issuer, certificate, ca) = make_authority(apart, &options.organisation, options.ca_validity, now)?;
    if ca != folder {
        create_public(&folder.join("ca.crt"), certificate.as_bytes())?;
    }
    for (role, party) in parties {
        write_leaf(
            folder,
            role.as_str(),
            &issuer,
            role,
            party,
            &options.organisation,
            now,
            options.validity,
        )?;
        if role.serves() && options.signing_keys {
            create_signing_key(folder, &format!("{role}-signing"))?;
        }
    }
    Ok(ca)
}

/// Makes a CA, `ca.crt` and `ca.key`, in `apart`, or in a folder of its own in [`authority::store`], which is created (mode 0700) when it is
/// absent. Replaces no file. Gives the folder.
///
/// # Errors
/// [`PkiError`].
pub fn create_authority(
    apart: Option<&Path>,
    organisation: &str,
    validity: Duration,
    now: Timestamp,
) -> Result<PathBuf, PkiError> {
    make_authority(apart, organisation, validity, now).map(|(_, _, folder)| folder)
}

/// Makes a new CA for the certificates in `folder`, in `apart` or in a folder of its own, and puts its certificate before those in
/// `folder`/ca.crt: both are believed from then on, and new certificates are of the new one. Gives the new CA's folder.
///
/// # Errors
/// [`PkiError`].
pub fn add_authority(
    folder: &Path,
    apart: Option<&Path>,
    organisation: &str,
    validity: Duration,
    now: Timestamp,
) -> Result<PathBuf, PkiError> {
    let bundle = folder.join("ca.crt");
    let before = read_public(&bundle)?;
    let (_, certificate, ca) = make_authority(apart, organisation, validity, now)?;
    let both = [certificate.as_bytes(), &before].concat();
    write_durable(&bundle, &both, 0o644).map_err(KeyError::from)?;
    Ok(ca)
}

fn make_authority(
    apart: Option<&Path>,
    organisation: &str,
    validity: Duration,
    now: Timestamp,
) -> Result<(Issuer<'static, KeyPair>, String, PathBuf), PkiError> {
    let failed = |source| PkiError::Certificate { role: "CA", source };
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // Two CAs of one organisation have different names, so that a mistake shows as 'unknown CA', not as a bad
    // signature.
    let common_name = format!("Assay CA {:08x}", rand::random::<u32>());
    params.distinguished_name = subject(organisation, &common_name);
    params.distinguished_name.push(DnType::OrganizationalUnitName, authority::KEPT_APART);
    set_validity(&mut params, now, validity);
    let certificate = params.self_signed(&key).map_err(failed)?;
    let folder = match apart {
        Some(folder) => folder.to_owned(),
        None => {
            let store = authority::store().ok_or(PkiError::NoHome)?;
            create_folder(&store)?;
            store.join(authority::folder_name(certificate.der()).ok_or(PkiError::NoHome)?)
        }
    };
    create_folder(&folder)?;
    create_private(&folder.join("ca.key"), key.serialize_pem().as_bytes())?;
    create_public(&folder.join("ca.crt"), certificate.pem().as_bytes())?;

    Ok((Issuer::new(params, key), certificate.pem(), folder))
}

/// The host names and addresses in a certificate (PEM), in their order; none when it cannot be read.
pub fn hosts_of(pem: &[u8]) -> Vec<String> {
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(pem) else {
        return Vec::new();
    };
    let names = pem.parse_x509().ok().and_then(|certificate| {
        let names = certificate.subject_alternative_name().ok()??.value.general_names.iter();
        let hosts = names.filter_map(|name| match name {
            GeneralName::DNSName(host) => Some((*host).to_owned()),
            GeneralName::IPAddress(bytes) => match bytes.len() {
                4 => Some(IpAddr::from(<[u8; 4]>::try_from(*bytes).ok()?).to_string()),
                16 => Some(IpAddr::from(<[u8; 16]>::try_from(*bytes).ok()?).to_string()),
                _ => None,
            },
            _ => None,
        });
        Some(hosts.collect())
    });
    names.unwrap_or_default()
}

/// Makes one more certificate with the CA in `ca`: `ROLE-NAME.crt` and `ROLE-NAME.key` in `folder`.
///
/// # Errors
/// [`PkiError`].
pub fn issue(
    folder: &Path,
    ca: &Path,
    role: Role,
    party: &Party,
    validity: Duration,
    now: Timestamp,
) -> Result<IssuedFiles, PkiError> {
    check_party(role, party)?;
    let (issuer, organisation) = open_authority(ca)?;
    write_leaf(folder, &format!("{role}-{}", party.name), &issuer, role, party, &organisation, now, validity)
}

/// The CA in `folder`, and the organisation in its name.
fn open_authority(folder: &Path) -> Result<(Issuer<'static, KeyPair>, String), PkiError> {
    let path = folder.join("ca.crt");
    let (certificate, key) = (read_public(&path)?, read_private(&folder.join("ca.key"))?);
    let authority = || -> Option<(Issuer<'static, KeyPair>, String)> {
        let certificate = std::str::from_utf8(&certificate).ok()?;
        let key = KeyPair::from_pem(std::str::from_utf8(&key).ok()?).ok()?;
        let (_, pem) = x509_parser::pem::parse_x509_pem(certificate.as_bytes()).ok()?;
        let parsed = pem.parse_x509().ok()?;
        if !parsed.is_ca() || parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return None;
        }
        let organisation = parsed.subject().iter_organization().next().and_then(|name| name.as_str().ok());
        let organisation = organisation.unwrap_or_default().to_owned();
        Some((Issuer::from_ca_cert_pem(certificate, key).ok()?, organisation))
    };
    authority().ok_or(PkiError::Authority { path })
}

/// A certificate, as people and lists of what is revoked know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Whose it is.
    pub identity: PeerIdentity,
    /// Host names and addresses in it.
    pub hosts: Vec<String>,
    /// Its serial number and its key.
    pub fingerprints: Fingerprints,
    /// Its last moment.
    pub not_after: Timestamp,
    /// Its public key in DER.
    key: Vec<u8>,
}

impl Certificate {
    /// Reads a file (PEM).
    ///
    /// # Errors
    /// [`PkiError`]: it cannot be read, or is not a certificate of ours.
    pub fn read(path: &Path) -> Result<Self, PkiError> {
        let pem = read_public(path)?;
        let foreign = || PkiError::NotOurs { path: path.to_owned() };
        let (_, parsed) = x509_parser::pem::parse_x509_pem(&pem).map_err(|_| foreign())?;
        let certificate = parsed.parse_x509().map_err(|_| foreign())?;
        let not_after = Timestamp::from_second(certificate.validity().not_after.timestamp());
        Ok(Self {
            identity: PeerIdentity::from_certificate(&parsed.contents).map_err(|_| foreign())?,
            hosts: hosts_of(&pem),
            fingerprints: Fingerprints::of(&parsed.contents).ok_or_else(foreign)?,
            not_after: not_after.map_err(|_| foreign())?,
            key: certificate.public_key().raw.to_vec(),
        })
    }
}

/// Makes a new certificate of the CA in the folder `ca` in the place of the one at `path`: for the same holder and hosts, and for the same key
/// unless `new_key` is set, which must then be the key's file. A reader sees the old file or the new one.
///
/// # Errors
/// [`PkiError`]; then the old certificate is there as it was.
pub fn renew(
    ca: &Path,
    path: &Path,
    new_key: Option<&Path>,
    validity: Duration,
    now: Timestamp,
) -> Result<Certificate, PkiError> {
    let old = Certificate::read(path)?;
    let Certificate { identity: PeerIdentity { role, name }, hosts, key, .. } = old;
    let party = Party { name, hosts };
    check_party(role, &party)?;
    let (issuer, organisation) = open_authority(ca)?;
    let failed = |source| PkiError::Certificate { role: role.as_str(), source };
    let params = leaf(role, &party, &organisation, now, validity)?;
    let write = |path: &Path, bytes: &[u8], mode| write_durable(path, bytes, mode).map_err(KeyError::from);
    let certificate = match new_key {
        None => {
            let key = SubjectPublicKeyInfo::from_der(&key).map_err(failed)?;
            params.signed_by(&key, &issuer).map_err(failed)?
        }
        Some(file) => {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
            let certificate = params.signed_by(&key, &issuer).map_err(failed)?;
            // An agent that looks between the two finds a pair that does not fit, and keeps the one that it has.
            write(file, key.serialize_pem().as_bytes(), 0o600)?;
            certificate
        }
    };
    write(path, certificate.pem().as_bytes(), 0o644)?;
    Certificate::read(path)
}

/// Makes a signing key: `STEM.key` and `STEM.pub` in `folder`. Replaces nothing.
///
/// # Errors
/// [`KeyError`].
pub fn create_signing_key(folder: &Path, stem: &str) -> Result<SigningKey, KeyError> {
    let key = SigningKey::generate();
    key.save(&folder.join(format!("{stem}.key")))?;
    key.verifying_key().save(&folder.join(format!("{stem}.pub")))?;
    Ok(key)
}

fn create_folder(folder: &Path) -> Result<(), KeyError> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| PathError::new("create", folder, error).into())
}

fn check_party(role: Role, party: &Party) -> Result<(), PkiError> {
    if !is_plain_name(&party.name) {
        let name = crate::path::display_bytes(party.name.as_bytes());
        return Err(PkiError::Name { name, role });
    }
    if role.serves() && party.hosts.is_empty() {
        return Err(PkiError::NoHost { role, name: party.name.clone() });
    }
    party.hosts.iter().try_for_each(|host| alternative_name(host).map(drop))
}

/// A host as a certificate has it: an IPv6 address stands in brackets in a URL only.
pub fn without_brackets(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

fn alternative_name(host: &str) -> Result<SanType, PkiError> {
    let fault = || PkiError::Host { host: crate::path::display_bytes(host.as_bytes()) };
    if let Ok(address) = without_brackets(host).parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    rustls_pki_types::DnsName::try_from(host).map_err(|_| fault())?;
    Ok(SanType::DnsName(Ia5String::try_from(host).map_err(|_| fault())?))
}

fn subject(organisation: &str, common_name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    if !organisation.is_empty() {
        subject.push(DnType::OrganizationName, organisation);
    }
    subject.push(DnType::CommonName, common_name);
    subject
}

fn set_validity(params: &mut CertificateParams, now: Timestamp, validity: Duration) {
    let now = Duration::from_secs(u64::try_from(now.as_second()).unwrap_or(0));
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(CLOCK_SLACK);
    params.not_after = epoch + now + validity;
}

/// What a certificate says.
fn leaf(
    role: Role,
    party: &Party,
    organisation: &str,
    now: Timestamp,
    validity: Duration,
) -> Result<CertificateParams, PkiError> {
    let failed = |source| PkiError::Certificate { role: role.as_str(), source };
    let mut params = CertificateParams::default();
    // At random: by default it would follow from the key, and a renewed certificate would be revoked with the one before it.
    let mut serial: [u8; 16] = rand::random();
    serial[0] = serial[0] & 0x3f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = subject(organisation, &party.name);
    let identity = Ia5String::try_from(format!("{URN_PREFIX}{role}:{}", party.name)).map_err(failed)?;
    params.subject_alt_names = vec![SanType::URI(identity)];
    for host in &party.hosts {
        params.subject_alt_names.push(alternative_name(host)?);
    }
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match role.serves() {
        true => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        false => vec![ExtendedKeyUsagePurpose::ClientAuth],
    };
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, now, validity);
    Ok(params)
}

#[allow(clippy::too_many_arguments)] // One private function, called twice.
fn write_leaf(
    folder: &Path,
    stem: &str,
    issuer: &Issuer<'_, KeyPair>,
    role: Role,
    party: &Party,
    organisation: &str,
    now: Timestamp,
    validity: Duration,
) -> Result<IssuedFiles, PkiError> {
    let failed = |source| PkiError::Certificate { role: role.as_str(), source };
    let params = leaf(role, party, organisation, now, validity)?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let certificate = params.signed_by(&key, issuer).map_err(failed)?;
    let files =
        IssuedFiles { cert: folder.join(format!("{stem}.crt")), key: folder.join(format!("{stem}.key")) };
    create_private(&files.key, key.serialize_pem().as_bytes())?;
    create_public(&files.cert, certificate.pem().as_bytes())?;
    Ok(files)
}

#[cfg(test)]
pub(crate) mod tests;
