//! Entries of a sealed tree that mean something to an overlay, or make a checker wait for ever.

use std::{collections::BTreeSet, fs::File, io::BufReader, path::Path};

use assay_common::{
    manifest::{Entry, EntryKind, ManifestReader, validate_entry},
    path::TreePath,
};

/// What the kernel's overlays put before the names of their own attributes. With `userxattr` it is the other one that counts.
const OVERLAY: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// What was found of such entries in a manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Oddities {
    overlay: Option<String>,
    special: BTreeSet<TreePath>,
}

impl Oddities {
    /// Reads a manifest of the store.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(manifest: &Path) -> Result<Self, String> {
        let told = |error: &dyn std::fmt::Display| error.to_string();
        let file = File::open(manifest).map_err(|error| told(&error))?;
        let mut reader = ManifestReader::open(BufReader::new(file)).map_err(|error| told(&error))?;
        let mut oddities = Self::default();
        while let Some(entry) = reader.next_entry().map_err(|error| told(&error))? {
            let path = validate_entry(&entry).map_err(|error| told(&error))?;
            oddities.add(&path, &entry);
        }
        Ok(oddities)
    }

    /// True for an entry that must be known before a check: without one, nothing is odd about a tree.
    pub fn concerns(entry: &Entry) -> bool {
        is_special(entry) || obeyed_attribute(entry).is_some()
    }

    /// Looks at an entry of the manifest.
    pub fn add(&mut self, path: &TreePath, entry: &Entry) {
        // The first name of a hard link comes before it.
        let is_further_name = || {
            entry.kind() == EntryKind::Hardlink
                && TreePath::parse(&entry.link_target).is_ok_and(|first| self.special.contains(&first))
        };
        if is_special(entry) || is_further_name() {
            self.special.insert(path.clone());
        }
        if self.overlay.is_some() {
            return;
        }
        if entry.kind() == EntryKind::CharDevice && (entry.device_major, entry.device_minor) == (0, 0) {
            self.overlay =
                Some(format!("{path} is a character device 0/0, which an overlay takes for a removal"));
        } else if let Some(name) = obeyed_attribute(entry) {
            let name = assay_common::path::display_bytes(name);
            self.overlay = Some(format!("{path} has the attribute {name}, which an overlay obeys"));
        }
    }

    /// Of a tree whose manifest cannot be read: no overlay may be mounted over it.
    pub fn unknown(error: impl std::fmt::Display) -> Self {
        Self { overlay: Some(format!("nobody knows what an overlay would obey: {error}")), ..Self::default() }
    }

    /// Why no overlay may be mounted over the tree, if so.
    pub fn refuses_overlay(&self) -> Option<&str> {
        self.overlay.as_deref()
    }

    /// Devices, FIFOs and sockets.
    pub fn special_files(&self) -> &BTreeSet<TreePath> {
        &self.special
    }
}

fn is_special(entry: &Entry) -> bool {
    matches!(
        entry.kind(),
        EntryKind::CharDevice | EntryKind::BlockDevice | EntryKind::Fifo | EntryKind::Socket
    )
}

/// The name of an attribute that an overlay would obey.
fn obeyed_attribute(entry: &Entry) -> Option<&[u8]> {
    let is_obeyed = |name: &[u8]| OVERLAY.iter().any(|prefix| name.starts_with(prefix));
    entry.xattrs.iter().map(|attribute| &*attribute.name).find(|name| is_obeyed(name))
}
