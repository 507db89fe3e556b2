//! The public keys of one agent through time: those that it had before, the one that it signs with, and those that were announced.
//!
//! A key is pinned by an operator, and by nobody else: no file, no ledger and no peer adds one. Which of the pinned keys may sign what
//! follows from the ledger ([`crate::ledger`]), in which the old key names the new one.
//!
//! On disk a keyring is the file that the configuration names, `NAME.pub`, which holds the key that signs, and a folder beside it that
//! need not be there:
//!
//! ```text
//! pki/target-signing.pub                                    the key that signs
//! pki/target-signing.keys.d/former-0001-1a2b3c4d5e6f7081.pub  the first key; it verifies what it signed in its time
//! pki/target-signing.keys.d/next-0001-9f8e7d6c5b4a3021.pub    announced: it may follow the one that signs
//! ```

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use crate::{
    error::IoContext as _,
    signing::{KeyError, VerifyingKey, create_public},
};

/// Keys of one agent, at most: one a month for twenty years.
const MAX_KEYS: usize = 256;
/// How the names of former keys begin.
const FORMER: &str = "former-";
/// How the names of announced keys begin.
const NEXT: &str = "next-";
/// Ending of a public key's name.
const SUFFIX: &str = ".pub";

/// The public keys of one agent, oldest first; one of them is the key that signs now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keyring {
    keys: Vec<VerifyingKey>,
    current: usize,
}

impl From<VerifyingKey> for Keyring {
    fn from(key: VerifyingKey) -> Self {
        Self { keys: vec![key], current: 0 }
    }
}

impl Keyring {
    /// Reads `file`, the key that signs now, and the folder of further keys beside it.
    ///
    /// # Errors
    /// [`KeyError`]: a file is absent, no key, misnamed, or the same key twice.
    pub fn load(file: &Path) -> Result<Self, KeyError> {
        Self::around(VerifyingKey::load(file)?, file)
    }

    /// The keys around `current`, whose file is `file`: its own, or that of its private half.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn around(current: VerifyingKey, file: &Path) -> Result<Self, KeyError> {
        let folder = further_keys(file);
        let (mut former, mut next) = (Vec::new(), Vec::new());
        for name in names(&folder)? {
            let list = match () {
                () if name.starts_with(FORMER) => &mut former,
                () if name.starts_with(NEXT) => &mut next,
                () => return Err(KeyError::Misnamed { path: folder.join(name) }),
            };
            list.push(folder.join(name));
        }
        let mut ring = Self { keys: Vec::new(), current: 0 };
        for path in &former {
            ring.add(VerifyingKey::load(path)?, path)?;
        }
        ring.current = ring.keys.len();
        ring.add(current, file)?;
        for path in &next {
            let key = VerifyingKey::load(path)?;
            // One that signs by now may be announced still.
            if key != *ring.current() {
                ring.add(key, path)?;
            }
        }
        Ok(ring)
    }

    /// Reads the keys that an operator names one by one, oldest first; the last one signs now. A file brings the further keys beside it.
    ///
    /// # Errors
    /// [`KeyError`]; and when there is none.
    pub fn load_all(files: &[PathBuf]) -> Result<Self, KeyError> {
        let mut ring: Option<Self> = None;
        for file in files {
            let one = Self::load(file)?;
            let Some(ring) = &mut ring else {
                ring = Some(one);
                continue;
            };
            let current = one.current().clone();
            for key in one.keys {
                // Two files may have the same history beside them.
                if ring.position(&key).is_none() {
                    ring.add(key, file)?;
                }
            }
            match ring.position(&current) {
                Some(place) if place > ring.current => ring.current = place,
                _ => return Err(KeyError::Twice { path: file.clone() }),
            }
        }
        ring.ok_or(KeyError::NoKeys)
    }

    fn add(&mut self, key: VerifyingKey, path: &Path) -> Result<(), KeyError> {
        if self.keys.contains(&key) {
            return Err(KeyError::Twice { path: path.to_owned() });
        }
        if self.keys.len() >= MAX_KEYS {
            return Err(KeyError::TooMany { path: further_keys(path), limit: MAX_KEYS });
        }
        self.keys.push(key);
        Ok(())
    }

    /// The key that signs now.
    pub fn current(&self) -> &VerifyingKey {
        &self.keys[self.current]
    }

    /// Its place among all.
    pub fn current_place(&self) -> usize {
        self.current
    }

    /// All keys, oldest first.
    pub fn all(&self) -> &[VerifyingKey] {
        &self.keys
    }

    /// The keys before the one that signs now, oldest first.
    pub fn former(&self) -> &[VerifyingKey] {
        &self.keys[..self.current]
    }

    /// The keys that were announced, in their order.
    pub fn announced(&self) -> &[VerifyingKey] {
        &self.keys[self.current + 1..]
    }

    /// The place of a key among all.
    pub fn position(&self, key: &VerifyingKey) -> Option<usize> {
        self.keys.iter().position(|known| known == key)
    }

    /// The ids of all keys, for a message.
    pub fn ids(&self) -> String {
        self.keys.iter().map(VerifyingKey::key_id).collect::<Vec<_>>().join(" or ")
    }
}

/// Reads the keys that an operator names one by one; nothing where none is named.
///
/// # Errors
/// [`KeyError`].
pub fn load_if_given(files: &[PathBuf]) -> Result<Option<Keyring>, KeyError> {
    if files.is_empty() { Ok(None) } else { Keyring::load_all(files).map(Some) }
}

/// The folder of further keys beside a key's file.
pub fn further_keys(file: &Path) -> PathBuf {
    file.with_extension("keys.d")
}

/// The names of keys in a folder, sorted; none where there is no folder.
fn names(folder: &Path) -> Result<Vec<String>, KeyError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.at("list", folder)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.at("list", folder)?.file_name().to_string_lossy().into_owned();
        // An editor's or a package manager's copy is no key; a key under another name must not be passed over.
        if name.ends_with(SUFFIX) {
            names.push(name);
        }
    }
    if names.len() > MAX_KEYS {
        return Err(KeyError::TooMany { path: folder.to_owned(), limit: MAX_KEYS });
    }
    names.sort();
    Ok(names)
}

/// What a key is, in the folder beside the one that signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// It signed before.
    Former,
    /// It was announced.
    Next,
}

/// Puts `key` into the folder beside `file`, after those of its kind that are there. Gives its file, or the one in which it is already.
///
/// # Errors
/// [`KeyError`].
pub fn keep(file: &Path, place: Place, key: &VerifyingKey) -> Result<PathBuf, KeyError> {
    let folder = further_keys(file);
    let prefix = match place {
        Place::Former => FORMER,
        Place::Next => NEXT,
    };
    match fs::create_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => {
            made.at("create", &folder)?;
            // The agent may be another user than the operator who pins a key.
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).at("open", &folder)?;
        }
    }
    let mut last = 0;
    for name in names(&folder)?.iter().filter(|name| name.starts_with(prefix)) {
        let path = folder.join(name);
        if VerifyingKey::load(&path)? == *key {
            return Ok(path);
        }
        let number = name[prefix.len()..].split('-').next().and_then(|number| number.parse::<u32>().ok());
        last = last.max(number.unwrap_or(0));
    }
    let path = folder.join(format!("{prefix}{:04}-{}{SUFFIX}", last + 1, key.key_id()));
    create_public(&path, key.to_pem().as_bytes())?;
    Ok(path)
}

/// Removes `key` from the announced ones beside `file`, if it is among them.
///
/// # Errors
/// [`KeyError`].
pub fn forget_announced(file: &Path, key: &VerifyingKey) -> Result<(), KeyError> {
    let folder = further_keys(file);
    for name in names(&folder)?.iter().filter(|name| name.starts_with(NEXT)) {
        let path = folder.join(name);
        if VerifyingKey::load(&path)? == *key {
            fs::remove_file(&path).at("remove", &path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{error::report, signing::SigningKey};

    fn key() -> VerifyingKey {
        SigningKey::generate().verifying_key()
    }

    #[test]
    fn former_and_announced_keys_stand_around_the_one_that_signs() {
        let folder = tempfile::tempdir().expect("temp");
        let file = folder.path().join("target-signing.pub");
        let [first, second, current, next] = std::array::from_fn(|_| key());
        current.save(&file).expect("save");
        assert_eq!(Keyring::load(&file).expect("one key"), Keyring::from(current.clone()));
        keep(&file, Place::Former, &first).expect("kept");
        keep(&file, Place::Former, &second).expect("kept");
        let announced = keep(&file, Place::Next, &next).expect("kept");
        assert_eq!(keep(&file, Place::Next, &next).expect("kept once"), announced);
        let ring = Keyring::load(&file).expect("a keyring");
        assert_eq!(ring.former(), [first.clone(), second]);
        assert_eq!((ring.current(), ring.announced()), (&current, &[next.clone()][..]));
        assert_eq!(ring.position(&next), Some(3));
        // What is no key of a known kind is not passed over, and no key is there twice.
        let odd = further_keys(&file).join("key.pub");
        next.save(&odd).expect("save");
        let text = report(&Keyring::load(&file).expect_err("it is refused"));
        assert!(text.contains("key.pub") && text.contains("HINT: "), "{text}");
        fs::remove_file(odd).expect("remove");
        fs::copy(&announced, further_keys(&file).join("former-0009-x.pub")).expect("copy");
        let text = report(&Keyring::load(&file).expect_err("it is refused"));
        assert!(text.contains("twice"), "{text}");
    }

    #[test]
    fn keys_that_are_named_one_by_one_are_oldest_first() {
        let folder = tempfile::tempdir().expect("temp");
        let file = |name: &str| folder.path().join(name);
        let (old, new) = (key(), key());
        old.save(&file("old.pub")).expect("save");
        new.save(&file("new.pub")).expect("save");
        let ring = Keyring::load_all(&[file("old.pub"), file("new.pub")]).expect("two keys");
        assert_eq!((ring.former(), ring.current()), (&[old.clone()][..], &new));
        // The newest may have the older ones beside it.
        keep(&file("new.pub"), Place::Former, &old).expect("kept");
        assert_eq!(Keyring::load_all(&[file("new.pub")]).expect("two keys"), ring);
        assert_eq!(Keyring::load_all(&[file("old.pub"), file("new.pub")]).expect("two keys"), ring);
        assert!(Keyring::load_all(&[file("old.pub"), file("old.pub")]).is_err());
        assert!(Keyring::load_all(&[]).is_err());
    }
}
