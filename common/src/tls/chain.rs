//! The certificates that a connection hangs on: the usable members of a bundle of CAs, and the first end on the way from the own
//! certificate to one of them.

use std::path::Path;

use jiff::Timestamp;
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

use super::{
    credentials::{TlsError, no_certificate},
    revocation::Anchor,
};
use crate::{path::display_bytes, pem, signing::read_public};

/// What matters of one certificate.
#[derive(Debug, Clone)]
pub(super) struct Link {
    /// Its own name, and its issuer's, as they are encoded.
    subject: Vec<u8>,
    issuer: Vec<u8>,
    /// Its own name for a person, shown safely.
    pub(super) name: String,
    pub(super) not_before: Timestamp,
    pub(super) not_after: Timestamp,
}

impl Link {
    pub(super) fn of(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let time = |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).ok();
        Some(Self {
            subject: certificate.subject().as_raw().to_vec(),
            issuer: certificate.issuer().as_raw().to_vec(),
            name: display_bytes(certificate.subject().to_string().as_bytes()),
            not_before: time(certificate.validity().not_before)?,
            not_after: time(certificate.validity().not_after)?,
        })
    }

    pub(super) fn check(&self, path: &Path, now: Timestamp) -> Result<(), TlsError> {
        if now < self.not_before {
            return Err(TlsError::NotYetValid { path: path.to_owned(), when: self.not_before });
        }
        if now > self.not_after {
            return Err(TlsError::Expired { path: path.to_owned(), when: self.not_after });
        }
        Ok(())
    }
}

/// A file of CAs.
#[derive(Debug)]
pub(super) struct Bundle {
    /// The members that can be used now.
    pub(super) roots: RootCertStore,
    pub(super) links: Vec<Link>,
    /// The same members, to be told apart.
    pub(super) anchors: Vec<Anchor>,
    /// A sentence about each member that cannot.
    pub(super) unusable: Vec<String>,
}

impl Bundle {
    /// Reads the file. A member that has expired, is not valid yet or cannot be read takes nothing from the others: after a CA was
    /// replaced its predecessor stands in the file for a while. A CA that has expired vouches for nobody.
    pub(super) fn load(path: &Path, now: Timestamp) -> Result<Self, TlsError> {
        let bytes = read_public(path)?;
        let pem = pem::normal(&bytes).ok_or_else(|| no_certificate(path))?;
        let (roots, links, anchors) = (RootCertStore::empty(), Vec::new(), Vec::new());
        let mut bundle = Self { roots, links, anchors, unusable: Vec::new() };
        let mut first_fault = None;
        for member in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let fault = match member {
                Ok(member) => bundle.add(member, path, now).err(),
                Err(_) => Some(no_certificate(path)),
            };
            if let Some(fault) = fault {
                bundle.unusable.push(fault.to_string());
                first_fault.get_or_insert(fault);
            }
        }
        if bundle.links.is_empty() {
            return Err(first_fault.unwrap_or_else(|| no_certificate(path)));
        }
        Ok(bundle)
    }

    fn add(&mut self, member: CertificateDer<'static>, path: &Path, now: Timestamp) -> Result<(), TlsError> {
        let link = Link::of(&member).ok_or_else(|| no_certificate(path))?;
        link.check(path, now)?;
        let anchor = Anchor::of(&member);
        self.roots.add(member).map_err(|source| TlsError::Library { path: path.to_owned(), source })?;
        self.links.push(link);
        self.anchors.extend(anchor);
        Ok(())
    }
}

/// The first end on the way from the own certificate over the intermediates in its file to a CA, with the name of the certificate
/// that ends then. Of several certificates with one name the one that ends last counts: the others are not needed.
pub(super) fn first_end(chain: &[Link], authorities: &[Link]) -> Option<(Timestamp, String)> {
    let (own, intermediates) = chain.split_first()?;
    let mut end = (own.not_after, own.name.clone());
    let mut issuer = &own.issuer;
    let newest = |links: &'_ [Link], subject: &[u8]| {
        links.iter().filter(|link| link.subject == subject).max_by_key(|link| link.not_after).cloned()
    };
    let mut links = Vec::new();
    // Each intermediate is passed once at most.
    for _ in 0..=intermediates.len() {
        if let Some(authority) = newest(authorities, issuer) {
            links.push(authority);
            break;
        }
        let Some(next) =
            intermediates.iter().filter(|link| link.subject == *issuer).max_by_key(|link| link.not_after)
        else {
            // Our own CA is not in the file: the peers' are, and the one that ends last is enough.
            links.extend(authorities.iter().max_by_key(|link| link.not_after).cloned());
            break;
        };
        links.push(next.clone());
        issuer = &next.issuer;
    }
    for link in links {
        if link.not_after < end.0 {
            end = (link.not_after, link.name);
        }
    }
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(subject: &str, issuer: &str, end: i64) -> Link {
        Link {
            subject: subject.into(),
            issuer: issuer.into(),
            name: subject.to_owned(),
            not_before: Timestamp::UNIX_EPOCH,
            not_after: Timestamp::from_second(end).expect("a time"),
        }
    }

    fn end(chain: &[Link], authorities: &[Link]) -> (i64, String) {
        let (time, name) = first_end(chain, authorities).expect("an end");
        (time.as_second(), name)
    }

    #[test]
    fn the_first_end_on_the_way_to_the_authority_counts() {
        let root = [link("root", "root", 900)];
        assert_eq!(end(&[link("leaf", "root", 400)], &root), (400, "leaf".into()));
        assert_eq!(end(&[link("leaf", "root", 950)], &root), (900, "root".into()));
        let chain = [link("leaf", "inter", 400), link("inter", "root", 3)];
        assert_eq!(end(&chain, &root), (3, "inter".into()));
        // One that is not on the way, and an older one of the same name, do not count.
        let chain = [
            link("leaf", "inter", 400),
            link("other", "root", 1),
            link("inter", "root", 3),
            link("inter", "root", 500),
        ];
        assert_eq!(end(&chain, &root), (400, "leaf".into()));
        // Nor does an authority that nobody uses.
        let bundle = [link("old", "old", 5), link("root", "root", 900)];
        assert_eq!(end(&[link("leaf", "root", 400)], &bundle), (400, "leaf".into()));
        // Two intermediates that name each other do not go round for ever.
        let circle = [link("leaf", "a", 400), link("a", "b", 300), link("b", "a", 200)];
        assert_eq!(end(&circle, &root).0, 200);
    }
}
