//! Where the private key of the certificate authority lies: apart from the agents.
//!
//! `init` and `pki init` put it into a folder of its own below [`STORE`], and no unit, no check and no profile reaches that. A certificate of
//! such an authority says so ([`KEPT_APART`]): an agent that finds the key below its own configuration does not start. Authorities that an
//! earlier version made, and those of other programs, lie where they lie: there the agent warns.

use std::{
    collections::{BTreeSet, VecDeque},
    fs,
    io::Read as _,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rcgen::KeyPair;
use x509_parser::prelude::FromDer as _;

use super::PkiError;
use crate::{
    pem,
    signing::read_public,
    tls::{TlsFiles, revocation::Fingerprints},
};

/// Folder of the authorities that root makes, one folder each.
pub const STORE: &str = "/var/lib/assay-ca";
/// Organisational unit in the certificate of an authority whose key was put apart from the agents when it was made.
pub const KEPT_APART: &str = "Assay CA, key kept apart";
/// Entries that are looked at in one folder, and in all.
const MAX_FOLDER_ENTRIES: usize = 4096;
const MAX_ENTRIES: usize = 16 * 1024;
/// Files that are read in all, below a folder in which live data may be.
const MAX_READ: usize = 256;
/// Folders below folders that are searched.
const MAX_DEPTH: usize = 4;
/// Lengths of files that may be a key, in bytes.
const KEY_BYTES: std::ops::RangeInclusive<u64> = 64..=64 * 1024;
/// A store and a state folder have a file of this name: nobody keeps keys in there, and there are many files.
const OWN_FORMAT: &str = "format";
/// Digits of a key's SHA-256 in the name of its folder.
const NAME_DIGITS: usize = 16;

/// A private key of an agent's authority that the agent can read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReachableKey {
    /// The file.
    pub path: PathBuf,
    /// True if the agent must not start with the key there, rather than warn: the authority was made with its key apart, and somebody
    /// brought it below the agent's configuration.
    pub is_refused: bool,
    /// Where it belongs.
    pub belongs: PathBuf,
}

impl ReachableKey {
    /// The commands that move the key away.
    pub fn remedy(&self) -> String {
        let (path, folder) = (self.path.display(), self.belongs.display());
        if self.path.starts_with(STORE) || self.path.starts_with(&self.belongs) {
            return format!(
                "move {path} to another host until the next certificate, or start the agent by its unit, which hides {STORE}"
            );
        }
        let certificate = self.path.with_file_name("ca.crt");
        format!(
            "another host is best; on this one: install -d -m 0700 {folder} && cp {} {folder}/ca.crt && mv {path} {folder}/ca.key",
            certificate.display()
        )
    }
}

/// The folder of authorities of the user who runs this program; `None` for a user without a home.
pub fn store() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from(STORE));
    }
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let data = absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")));
    Some(data?.join("assay-ca"))
}

/// The name of an authority's folder, from its certificate in DER.
pub(super) fn folder_name(der: &[u8]) -> Option<String> {
    let key = Fingerprints::of(der)?.key;
    Some(key.get(..NAME_DIGITS)?.to_owned())
}

/// An authority's certificate.
struct Authority {
    key: Vec<u8>,
    name: String,
    is_kept_apart: bool,
}

/// The authorities of a bundle (PEM); none when it cannot be read.
fn authorities(ca: &Path) -> Vec<Authority> {
    let Some(text) = read_public(ca).ok().and_then(|bytes| pem::normal(&bytes)) else { return Vec::new() };
    let certificates = x509_parser::pem::Pem::iter_from_buffer(text.as_bytes()).filter_map(Result::ok);
    certificates
        .filter_map(|pem| {
            let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(&pem.contents).ok()?;
            let mut units = parsed.subject().iter_organizational_unit();
            Some(Authority {
                key: parsed.public_key().subject_public_key.data.to_vec(),
                name: folder_name(&pem.contents)?,
                is_kept_apart: units.any(|unit| unit.as_str() == Ok(KEPT_APART)),
            })
        })
        .collect()
}

/// Finds the folder with the private key of the authority whose certificate is `folder`/ca.crt: the folder itself, where earlier
/// versions put it, or the one that `init` made.
///
/// # Errors
/// [`PkiError::NoAuthority`].
pub fn find(folder: &Path) -> Result<PathBuf, PkiError> {
    find_key_of(&folder.join("ca.crt"), &[folder])
}

/// Finds the folder with the private key of the authority in the file `ca`: one of `earlier`, or the one that `init` made. Of several
/// authorities in the file the first one that has its key here is taken: it is the newest.
///
/// # Errors
/// [`PkiError::NoAuthority`].
pub fn find_key_of(ca: &Path, earlier: &[&Path]) -> Result<PathBuf, PkiError> {
    let (known, store) = (authorities(ca), store());
    let mut places = Vec::new();
    for authority in &known {
        let is_of = |folder: &&&Path| {
            let own = authorities(&folder.join("ca.crt"));
            own.first().is_some_and(|first| first.key == authority.key)
        };
        places.extend(earlier.iter().filter(is_of).map(|folder| (*folder).to_owned()));
        places.extend(store.iter().map(|store| store.join(&authority.name)));
    }
    // Where the certificate beside it cannot be read, opening it says so.
    places.extend(earlier.iter().map(|folder| (*folder).to_owned()));
    places.dedup();
    let found = places.iter().find(|folder| fs::symlink_metadata(folder.join("ca.key")).is_ok());
    found.cloned().ok_or_else(|| PkiError::NoAuthority { ca: ca.to_owned(), places: places.clone() })
}

/// The text of a file that may be a private key. It is read without waiting for whoever holds it.
fn private_key_text(path: &Path) -> Option<String> {
    let nonblock = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).ok()?;
    let file = fs::OpenOptions::new().read(true).custom_flags(nonblock).open(path).ok()?;
    let stat = file.metadata().ok()?;
    if !stat.is_file() || !KEY_BYTES.contains(&stat.len()) {
        return None;
    }
    let mut text = Vec::new();
    file.take(*KEY_BYTES.end()).read_to_end(&mut text).ok()?;
    pem::normal(&text).filter(|text| text.contains("PRIVATE KEY"))
}

/// The authority whose private key is in a file.
fn owner<'a>(path: &Path, authorities: &'a [Authority]) -> Option<&'a Authority> {
    let text = private_key_text(path)?;
    // Certificates may stand before it.
    let begin = text.match_indices("-----BEGIN ").map(|(at, _)| &text[at..]);
    let mut keys = begin.filter_map(|block| KeyPair::from_pem(block).ok());
    keys.find_map(|key| authorities.iter().find(|authority| authority.key == key.public_key_raw()))
}

/// How much of a folder is searched.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Search {
    /// Every file of the folder itself.
    Folder,
    /// Files below it that nobody else may read, or that are named like a key: live data may be there, which is left alone.
    KeysBelow,
    /// Every file below it.
    AllBelow,
}

/// Calls `each` for files that may be keys.
fn search(folder: &Path, how: Search, each: &mut impl FnMut(&Path)) {
    let mut seen = BTreeSet::new();
    let (mut entries, mut read) = (0, 0);
    let mut queue = VecDeque::from([(folder.to_owned(), 0)]);
    while let Some((folder, depth)) = queue.pop_front() {
        let Ok(stat) = fs::metadata(&folder) else { continue };
        let is_own = how == Search::KeysBelow && depth > 0 && folder.join(OWN_FORMAT).is_file();
        if is_own || !seen.insert((stat.dev(), stat.ino())) {
            continue;
        }
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten().take(MAX_FOLDER_ENTRIES) {
            entries += 1;
            if entries > MAX_ENTRIES {
                return;
            }
            let path = entry.path();
            let Ok(stat) = fs::metadata(&path) else { continue };
            if stat.is_dir() && how != Search::Folder && depth < MAX_DEPTH {
                queue.push_back((path, depth + 1));
            } else if stat.is_file() && KEY_BYTES.contains(&stat.len()) {
                let is_named = path.extension().is_some_and(|end| end == "key" || end == "pem");
                if how != Search::KeysBelow {
                    each(&path);
                } else if (is_named || stat.mode() & 0o077 == 0) && read < MAX_READ {
                    read += 1;
                    each(&path);
                }
            }
        }
    }
}

fn real(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// Private keys of an agent's authority, whatever they are called, that the agent can read: beside its TLS files, below the folder of its
/// configuration, and where `init` puts them.
pub fn reachable_keys(files: &TlsFiles, config: &Path) -> Vec<ReachableKey> {
    let authorities = authorities(&files.ca);
    if authorities.is_empty() {
        return Vec::new();
    }
    let belonging =
        |authority: &Authority| store().unwrap_or_else(|| PathBuf::from(STORE)).join(&authority.name);
    let stores: BTreeSet<_> = [Some(PathBuf::from(STORE)), store()].into_iter().flatten().collect();
    let mut found = BTreeSet::new();
    let mut note = |path: &Path| {
        if let Some(authority) = owner(path, &authorities) {
            let path = real(path);
            let is_in_store = stores.iter().any(|store| path.starts_with(real(store)));
            let is_refused = authority.is_kept_apart && !is_in_store;
            found.insert(ReachableKey { path, is_refused, belongs: belonging(authority) });
        }
    };
    let parent = |file: &Path| match file.parent() {
        Some(folder) if folder.as_os_str().is_empty() => PathBuf::from("."),
        Some(folder) => folder.to_owned(),
        None => PathBuf::from("/"),
    };
    for file in [&files.ca, &files.cert, &files.key] {
        search(&parent(file), Search::Folder, &mut note);
    }
    search(&parent(config), Search::Folder, &mut note);
    search(&config.with_file_name("ca"), Search::Folder, &mut note);
    search(&parent(config), Search::KeysBelow, &mut note);
    for authority in &authorities {
        for store in &stores {
            search(&store.join(&authority.name), Search::Folder, &mut note);
        }
    }
    found.into_iter().collect()
}

/// A private key of the authority in `ca` that is, or lies in, what a check would be shown.
pub fn key_below(ca: &Path, shown: &Path) -> Option<PathBuf> {
    let authorities = authorities(ca);
    let mut found = None;
    if fs::metadata(shown).is_ok_and(|stat| stat.is_file()) {
        return owner(shown, &authorities).map(|_| shown.to_owned());
    }
    search(shown, Search::AllBelow, &mut |path| {
        if found.is_none() && owner(path, &authorities).is_some() {
            found = Some(path.to_owned());
        }
    });
    found
}

/// Refuses to serve with a key that was brought below the agent's configuration, and warns of the others.
///
/// # Errors
/// [`PkiError::KeyInReach`].
pub fn refuse_or_warn(keys: &[ReachableKey]) -> Result<(), PkiError> {
    if let Some(key) = keys.iter().find(|key| key.is_refused) {
        return Err(PkiError::KeyInReach { key: key.clone() });
    }
    for key in keys {
        tracing::warn!(
            key = %key.path.display(),
            remedy = key.remedy(),
            "the certificate authority's private key lies where this agent can read it: whoever takes the agent over can be anybody. Move it to \
             another host, or to a folder that the agent cannot enter"
        );
    }
    Ok(())
}
