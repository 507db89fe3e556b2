//! Somebody at a URL: who that is, how to be sure of it, and what to show to it.

use std::path::{Path, PathBuf};

use http::{HeaderValue, Uri};
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, pem::PemObject as _};

use super::DeliveryError;
use crate::{dial, signing::read_private};

/// Where, and as whom. The files are read for each message, so that renewed ones are taken up.
#[derive(Debug)]
pub struct Peer {
    /// Its address. May hold a secret in its path.
    pub uri: Uri,
    /// Name or address, an IPv6 address without its brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Whether TLS is spoken.
    pub is_tls: bool,
    token_file: Option<PathBuf>,
    ca: Option<PathBuf>,
}

impl Peer {
    /// The peer at `url`, which stands at `key` of the configuration; `form` says what must stand there, and `ports` are those of http and
    /// https.
    ///
    /// # Errors
    /// What is wrong, beginning with the key. The URL itself may hold a secret, and is not shown.
    pub fn new(
        (key, url): (&str, &str),
        form: &str,
        ports: (u16, u16),
        token_file: Option<PathBuf>,
        ca: Option<PathBuf>,
    ) -> Result<Self, String> {
        let fault = || format!("{key}: must be {form}");
        let uri: Uri = url.parse().map_err(|_| fault())?;
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(fault()),
        };
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(fault)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(format!("{key}: a password belongs in token_file, not in the URL"));
        }
        let port = uri.port_u16().unwrap_or(if is_tls { ports.1 } else { ports.0 });
        let is_here = host == "localhost"
            || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
        if token_file.is_some() && !is_tls && !is_here {
            return Err(format!("{key}: must be https: token_file would be sent where others can read it"));
        }
        if ca.is_some() && !is_tls {
            return Err("ca: of use with https only".to_owned());
        }
        Ok(Self { uri, host, port, is_tls, token_file, ca })
    }

    /// Host and port, for messages: the path may hold a secret.
    pub fn label(&self) -> String {
        dial::authority(&self.host, self.port)
    }

    /// What to show it as `Authorization`, when it wants to see anything.
    ///
    /// # Errors
    /// When the token's file cannot be read, or others can read it too.
    pub fn bearer(&self) -> Result<Option<HeaderValue>, DeliveryError> {
        let Some(file) = &self.token_file else {
            return Ok(None);
        };
        let bytes = read_private(file).map_err(|error| DeliveryError::lasting(error.to_string()))?;
        let token = String::from_utf8_lossy(&bytes);
        let mut value = HeaderValue::try_from(format!("Bearer {}", token.trim()))
            .map_err(|_| DeliveryError::lasting(format!("{}: not a token", file.display())))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    /// The certificate authorities that may vouch for it.
    ///
    /// # Errors
    /// When there are none.
    pub fn roots(&self) -> Result<RootCertStore, DeliveryError> {
        match &self.ca {
            Some(file) => authorities(file),
            None => system_roots(),
        }
    }
}

/// The certificate authorities of this system.
///
/// # Errors
/// When there are none.
pub fn system_roots() -> Result<RootCertStore, DeliveryError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err(DeliveryError::lasting(
            "this system has no certificate authorities: install ca-certificates, or set ca",
        ));
    }
    Ok(roots)
}

fn authorities(file: &Path) -> Result<RootCertStore, DeliveryError> {
    let fault =
        |error: &dyn std::fmt::Display| DeliveryError::lasting(format!("{}: {error}", file.display()));
    let bytes = std::fs::read(file).map_err(|error| fault(&error))?;
    let mut roots = RootCertStore::empty();
    // One member that cannot be used does not take the others away.
    let mut unusable = None;
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        match certificate {
            Ok(certificate) => {
                unusable = roots.add(certificate).err().map(|error| error.to_string()).or(unusable)
            }
            Err(_) => unusable = Some("not a certificate in PEM".to_owned()),
        }
    }
    if roots.is_empty() {
        return Err(fault(&unusable.unwrap_or_else(|| "it holds no certificate in PEM".to_owned())));
    }
    Ok(roots)
}
