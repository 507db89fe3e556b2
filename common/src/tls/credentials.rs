//! An agent's own certificate, its key and the CA that it trusts, checked when they are loaded.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    chain::{Bundle, Link, first_end},
    revocation::{self, Anchor},
};
use crate::{
    error::{Hint, ShowPath},
    pem::{self, Unusable},
    pki::{IdentityError, PeerIdentity, Role},
    signing::{KeyError, read_private, read_public},
};
use jiff::Timestamp;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore,
    ServerConfig, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    server::{
        NoServerSessionStorage, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _};
use serde::Deserialize;

/// Where an agent's TLS files are.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The CA that issues every certificate that is accepted, PEM.
    pub ca: PathBuf,
    /// The own certificate, PEM, followed by intermediate ones where there are any.
    pub cert: PathBuf,
    /// Its private key, PEM, mode 0600.
    pub key: PathBuf,
}

/// Why the own TLS files cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read, or others can read the key.
    #[error(transparent)]
    File(#[from] KeyError),
    /// No certificate in the file.
    #[error("{} does not hold a certificate (PEM): {what}", ShowPath(path))]
    NoCertificate {
        /// The file.
        path: PathBuf,
        /// What it holds.
        what: Unusable,
    },
    /// No private key in the file.
    #[error("{} does not hold a private key (PEM) that TLS can use: {what}", ShowPath(path))]
    NoKey {
        /// The file.
        path: PathBuf,
        /// What it holds.
        what: Unusable,
    },
    /// The certificate or the CA has expired.
    #[error("the certificate {} expired on {when}", ShowPath(path))]
    Expired {
        /// The file.
        path: PathBuf,
        /// Its last moment.
        when: Timestamp,
    },
    /// The certificate or the CA is not valid yet.
    #[error("the certificate {} is valid only from {when} on", ShowPath(path))]
    NotYetValid {
        /// The file.
        path: PathBuf,
        /// Its first moment.
        when: Timestamp,
    },
    /// Certificate and key are not a pair.
    #[error("the key {} does not belong to the certificate {}", ShowPath(key), ShowPath(cert))]
    KeyMismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The own certificate does not say who we are.
    #[error("{}: {source}", ShowPath(path))]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: IdentityError,
    },
    /// The own certificate is for something else.
    #[error("the certificate {} has the role {found}, expected {}", ShowPath(path), list(expected))]
    WrongRole {
        /// The file.
        path: PathBuf,
        /// Its role.
        found: Role,
        /// The roles that fit here.
        expected: Vec<Role>,
    },
    /// The TLS library refuses the CA.
    #[error("{} cannot be used as a CA: {source}", ShowPath(path))]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::server::VerifierBuilderError,
    },
    /// The TLS library refuses the files for another reason.
    #[error("{}: {source}", ShowPath(path))]
    Library {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

impl Hint for TlsError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::File(error) => error.hint(),
            Self::Expired { .. } => Some(
                "issue a new certificate (`assay-target pki issue`), put it in place of the old one, \
                 and check this host's clock"
                    .to_owned(),
            ),
            Self::NotYetValid { .. } => Some("check this host's clock".to_owned()),
            Self::KeyMismatch { .. } => Some("name the key that was made with the certificate".to_owned()),
            Self::Identity { .. } => {
                Some("issue one with the name urn:assay:ROLE:NAME (`assay-target pki issue`)".to_owned())
            }
            Self::WrongRole { expected, .. } => {
                Some(format!("name a certificate that was issued with the role {}", list(expected)))
            }
            Self::NoCertificate { what: Unusable { remedy: Some(remedy), .. }, .. }
            | Self::NoKey { what: Unusable { remedy: Some(remedy), .. }, .. } => Some(remedy.clone()),
            Self::NoCertificate { .. } | Self::NoKey { .. } | Self::Authority { .. } => {
                Some("`assay-target pki init` makes a set of files that fit".to_owned())
            }
            Self::Library { .. } => None,
        }
    }
}

/// Roles for a text.
pub(super) fn list(roles: &[Role]) -> String {
    roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(" or ")
}

/// The own side of every connection, checked.
#[derive(Debug, Clone)]
pub struct Credentials {
    roots: Arc<RootCertStore>,
    anchors: Arc<[Anchor]>,
    key: Arc<SingleCertAndKey>,
    identity: PeerIdentity,
    not_after: Timestamp,
    expires: Timestamp,
    expires_first: String,
    authorities_end: Timestamp,
    unusable: Vec<String>,
    files: TlsFiles,
}

impl Credentials {
    /// Loads and checks the files, for an agent or a command that may have one of `roles`.
    ///
    /// # Errors
    /// [`TlsError`], which names the file and the remedy.
    pub fn load(files: &TlsFiles, roles: &[Role]) -> Result<Self, TlsError> {
        let now = Timestamp::now();
        let Bundle { roots, links: authorities, anchors, unusable } = Bundle::load(&files.ca, now)?;
        let chain = certificates(&files.cert)?;
        let links: Vec<_> = chain.iter().map_while(|certificate| Link::of(certificate)).collect();
        let own = links.first().ok_or_else(|| no_certificate(&files.cert))?;
        own.check(&files.cert, now)?;
        let not_after = own.not_after;
        let (expires, expires_first) =
            first_end(&links, &authorities).unwrap_or_else(|| (not_after, own.name.clone()));
        if now > expires {
            return Err(TlsError::Expired { path: files.cert.clone(), when: expires });
        }
        let authorities_end = authorities.iter().map(|link| link.not_after).min().unwrap_or(Timestamp::MAX);
        let identity = PeerIdentity::from_certificate(&chain[0])
            .map_err(|source| TlsError::Identity { path: files.cert.clone(), source })?;
        if !roles.contains(&identity.role) {
            let (path, found) = (files.cert.clone(), identity.role);
            return Err(TlsError::WrongRole { path, found, expected: roles.to_vec() });
        }
        let bytes = read_private(&files.key)?;
        let no_key = || {
            let wanted = ["PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY"];
            TlsError::NoKey { path: files.key.clone(), what: pem::explain(&bytes, &wanted) }
        };
        let text = pem::normal(&bytes).ok_or_else(no_key)?;
        let key = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|_| no_key())?;
        let key = provider().key_provider.load_private_key(key).map_err(|_| no_key())?;
        let certified = CertifiedKey::new(chain, key);
        certified.keys_match().map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                TlsError::KeyMismatch { cert: files.cert.clone(), key: files.key.clone() }
            }
            source => TlsError::Library { path: files.cert.clone(), source },
        })?;
        let anchors: Arc<[Anchor]> = anchors.into();
        revocation::know(&anchors);
        Ok(Self {
            roots: Arc::new(roots),
            anchors,
            key: Arc::new(SingleCertAndKey::from(certified)),
            identity,
            not_after,
            expires,
            expires_first,
            authorities_end,
            unusable,
            files: files.clone(),
        })
    }

    /// Who we are.
    pub fn identity(&self) -> &PeerIdentity {
        &self.identity
    }

    /// Until when the own certificate is valid.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// Until when connections can be made with it: the own certificate, the intermediates that it needs and the CA are valid.
    pub fn expires(&self) -> Timestamp {
        self.expires
    }

    /// The name of the certificate that ends at [`Self::expires`].
    pub fn expires_first(&self) -> &str {
        &self.expires_first
    }

    /// When the first of the CAs that are used now ends: from then on it vouches for nobody, and the file must be read anew.
    pub fn authorities_end(&self) -> Timestamp {
        self.authorities_end
    }

    /// A sentence about each member of the file of CAs that cannot be used.
    pub fn unusable_authorities(&self) -> &[String] {
        &self.unusable
    }

    /// Where it was loaded from.
    pub fn files(&self) -> &TlsFiles {
        &self.files
    }

    /// What a server needs that asks every client for a certificate with an identity.
    ///
    /// # Errors
    /// [`TlsError::Authority`] or [`TlsError::Library`].
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let inner = WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), provider())
            .build()
            .map_err(|source| TlsError::Authority { path: self.files.ca.clone(), source })?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|source| self.library(source))?
            .with_client_cert_verifier(Arc::new(IdentifiedClient {
                inner,
                anchors: Arc::clone(&self.anchors),
            }))
            .with_cert_resolver(Arc::clone(&self.key) as _);
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    /// What a client needs that calls a server of the role `expected`.
    ///
    /// # Errors
    /// [`TlsError::Authority`] or [`TlsError::Library`].
    pub fn client_config(&self, expected: Role) -> Result<Arc<ClientConfig>, TlsError> {
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::clone(&self.roots), provider())
            .build()
            .map_err(|source| TlsError::Authority { path: self.files.ca.clone(), source })?;
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|source| self.library(source))?
            // Its word for a verifier of one's own. This one checks more than the library's, not less.
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ServerOfRole {
                inner,
                expected,
                anchors: Arc::clone(&self.anchors),
            }))
            .with_client_cert_resolver(Arc::clone(&self.key) as _);
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }

    fn library(&self, source: rustls::Error) -> TlsError {
        TlsError::Library { path: self.files.cert.clone(), source }
    }
}

/// [`Credentials::load`] and [`Credentials::server_config`] in one.
///
/// # Errors
/// [`TlsError`].
pub fn server_config(files: &TlsFiles, role: Role) -> Result<Arc<ServerConfig>, TlsError> {
    Credentials::load(files, &[role])?.server_config()
}

/// [`Credentials::load`] and [`Credentials::client_config`] in one.
///
/// # Errors
/// [`TlsError`].
pub fn client_config(files: &TlsFiles, own: &[Role], expected: Role) -> Result<Arc<ClientConfig>, TlsError> {
    Credentials::load(files, own)?.client_config(expected)
}

/// Never the process's default: which one that is would depend on other libraries.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// At least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read_public(path)?;
    let text = pem::normal(&bytes).ok_or_else(|| no_certificate(path))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(no_certificate(path)),
    }
}

/// The file holds none that can be used; it is read again to say what it holds.
pub(super) fn no_certificate(path: &Path) -> TlsError {
    match read_public(path) {
        Ok(bytes) => {
            TlsError::NoCertificate { path: path.to_owned(), what: pem::explain(&bytes, &["CERTIFICATE"]) }
        }
        Err(error) => error.into(),
    }
}

/// Why a peer's certificate is refused although the CA issued it.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeerFault {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the server is the {found}, expected a {expected}")]
    WrongRole { found: PeerIdentity, expected: Role },
}

impl From<PeerFault> for rustls::Error {
    fn from(fault: PeerFault) -> Self {
        CertificateError::Other(OtherError(Arc::new(fault))).into()
    }
}

/// Whatever the CA says: the configuration names it, or one that vouches for it. A CA of the file may be revoked as well: then `verify` must
/// succeed with those that are not.
fn refuse_revoked(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    anchors: &[Anchor],
    verify: impl FnOnce(RootCertStore) -> Option<()>,
) -> Result<(), rustls::Error> {
    let refused = || Err(CertificateError::Revoked.into());
    let chain = std::iter::once(end_entity).chain(intermediates).map(AsRef::as_ref);
    if revocation::is_any_revoked(chain) {
        return refused();
    }
    let Some(left) = revocation::anchors_left(anchors) else {
        return Ok(());
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(left);
    match verify(roots) {
        Some(()) => Ok(()),
        None => refused(),
    }
}

/// The library's checks of a client, and that it says who it is.
#[derive(Debug)]
struct IdentifiedClient {
    inner: Arc<dyn ClientCertVerifier>,
    anchors: Arc<[Anchor]>,
}

impl ClientCertVerifier for IdentifiedClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        refuse_revoked(end_entity, intermediates, &self.anchors, |roots| {
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build().ok()?;
            verifier.verify_client_cert(end_entity, intermediates, now).ok().map(drop)
        })?;
        PeerIdentity::from_certificate(end_entity).map_err(PeerFault::from)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// The library's checks of a server, and that it has the role that we mean to call.
#[derive(Debug)]
struct ServerOfRole {
    inner: Arc<WebPkiServerVerifier>,
    expected: Role,
    anchors: Arc<[Anchor]>,
}

impl ServerCertVerifier for ServerOfRole {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified =
            self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        refuse_revoked(end_entity, intermediates, &self.anchors, |roots| {
            let verifier =
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build().ok()?;
            let verified =
                verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
            verified.ok().map(drop)
        })?;
        let found = PeerIdentity::from_certificate(end_entity).map_err(PeerFault::from)?;
        if found.role != self.expected {
            return Err(PeerFault::WrongRole { found, expected: self.expected }.into());
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
