//! The manifest as it came, and what of it is asked for.

use std::{
    fs::File,
    io::{BufReader, Seek as _},
};

use super::RestoreError;
use crate::{
    digest::RootDigest,
    error::{IoContext as _, PathError},
    id::GenerationNumber,
    manifest::{Entry, EntryKind, Header, ManifestReader, OrderValidator},
    path::TreePath,
};

/// A manifest that is the one that was vouched for, and a sound tree.
#[derive(Debug)]
pub struct Checked {
    file: File,
    header: Header,
    /// The generation that it is of.
    pub generation: GenerationNumber,
    /// Entries that are asked for.
    pub entries: u64,
    /// Files among them.
    pub files: u64,
    /// Their content in bytes.
    pub bytes: u64,
}

/// What of a tree is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection {
    /// It is, with all that is in it.
    Wanted,
    /// A folder on the way to something that is.
    Above,
    /// It is not.
    Not,
}

impl Selection {
    /// Of `path`, when `paths` are asked for.
    pub fn of(path: &TreePath, paths: &[TreePath]) -> Self {
        let inside = |inner: &TreePath, outer: &TreePath| {
            outer.is_root()
                || inner
                    .as_bytes()
                    .strip_prefix(outer.as_bytes())
                    .is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
        };
        if paths.is_empty() || paths.iter().any(|wanted| inside(path, wanted)) {
            Self::Wanted
        } else if paths.iter().any(|wanted| inside(wanted, path)) {
            Self::Above
        } else {
            Self::Not
        }
    }
}

impl Checked {
    /// Reads all of `file` and holds it against the root digest, its own rules, and what is asked for. Nothing is written before.
    ///
    /// # Errors
    /// [`RestoreError::OtherManifest`], [`RestoreError::Manifest`], [`RestoreError::Tree`], [`RestoreError::NoSuchPath`].
    pub fn check(
        file: File,
        generation: GenerationNumber,
        root: RootDigest,
        paths: &[TreePath],
    ) -> Result<Self, RestoreError> {
        let mut reader = ManifestReader::open(BufReader::with_capacity(256 * 1024, &file))?;
        let mut order = OrderValidator::default();
        let mut missing: Vec<_> = paths.to_vec();
        let (mut entries, mut files, mut bytes) = (0, 0, 0u64);
        while let Some(entry) = reader.next_entry()? {
            let path = order.check(&entry)?;
            missing.retain(|wanted| *wanted != path);
            if Selection::of(&path, paths) == Selection::Wanted {
                if entry.kind() == EntryKind::Hardlink {
                    let first = TreePath::parse(&entry.link_target).expect("the entry was validated");
                    if Selection::of(&first, paths) != Selection::Wanted {
                        return Err(RestoreError::LinkWithoutFirst { path, first });
                    }
                }
                entries += 1;
                if entry.kind() == EntryKind::File {
                    files += 1;
                    bytes = bytes.saturating_add(entry.size);
                }
            }
        }
        if reader.root_digest() != root {
            return Err(RestoreError::OtherManifest);
        }
        if let Some(path) = missing.pop() {
            return Err(RestoreError::NoSuchPath { path, generation });
        }
        let header = reader.header().clone();
        Ok(Self { file, header, generation, entries, files, bytes })
    }

    /// The repository's roots.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// All entries, in order, once more.
    ///
    /// # Errors
    /// When the file cannot be read again.
    pub fn entries(&self) -> Result<Entries, RestoreError> {
        let failed = |error: std::io::Error| -> PathError {
            Err::<(), _>(error).at("read", std::path::Path::new("manifest")).expect_err("it is one")
        };
        let mut file = self.file.try_clone().map_err(failed)?;
        file.rewind().map_err(failed)?;
        let reader = ManifestReader::open(BufReader::with_capacity(256 * 1024, file))?;
        Ok(Entries { reader, order: OrderValidator::default(), place: 0 })
    }
}

/// The entries of a manifest that was checked.
pub struct Entries {
    reader: ManifestReader<BufReader<File>>,
    order: OrderValidator,
    place: u64,
}

impl Entries {
    /// The next entry with its place, from 0, and its path.
    ///
    /// # Errors
    /// When the file cannot be read, or is not what was checked.
    pub fn next_entry(&mut self) -> Result<Option<(u64, TreePath, Entry)>, RestoreError> {
        let Some(entry) = self.reader.next_entry()? else { return Ok(None) };
        let path = self.order.check(&entry)?;
        self.place += 1;
        Ok(Some((self.place - 1, path, entry)))
    }
}
