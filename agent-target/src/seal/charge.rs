//! What a seal takes of a run's allowance: the manifest, and what the tree takes beside content. Both follow from the manifest, and some
//! kilobytes of it, packed, stand for gigabytes and for hundreds of thousands of files: each entry is claimed before it is written.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use assay_common::manifest::{Entry, EntryKind};
use prost::Message as _;

use crate::{
    receive::{Allowance, ReceiveError},
    store::{FILE_BYTES, FOLDER_BYTES},
};

/// What an entry takes in the manifest beside itself, in the plan and in the list of positions, in bytes.
const BESIDE_ENTRY_BYTES: u64 = 24;
/// What a file takes in `manifest.b3` beside its path, in bytes.
const SUM_LINE_BYTES: u64 = 80;

/// What an entry takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Cost {
    /// In the files beside the tree, in bytes.
    pub(super) listed: u64,
    /// In the tree, beside content, in bytes.
    pub(super) made: u64,
    /// Files and folders.
    pub(super) inodes: u64,
}

impl Cost {
    /// Of an entry that is shared with the base, where that can be, or not.
    pub(super) fn of(entry: &Entry, is_kept: bool) -> Self {
        let kind = entry.kind();
        let path = entry.path.len() as u64;
        let sum = if kind == EntryKind::File { SUM_LINE_BYTES + 2 * path } else { 0 };
        let listed = entry.encoded_len() as u64 + BESIDE_ENTRY_BYTES + sum;
        let attributes =
            || entry.xattrs.iter().map(|it| (it.name.len() + it.value.len()) as u64).sum::<u64>();
        match kind {
            EntryKind::Directory => Self { listed, made: FOLDER_BYTES + attributes(), inodes: 1 },
            EntryKind::Hardlink => Self { listed, made: 0, inodes: 0 },
            _ if is_kept => Self { listed, made: 0, inodes: 0 },
            _ => Self { listed, made: FILE_BYTES + attributes(), inodes: 1 },
        }
    }

    /// What of it was claimed when the content came: a file of its own.
    fn claimed_before(entry: &Entry, is_kept: bool) -> (u64, u64) {
        if entry.kind() == EntryKind::File && !is_kept { (FILE_BYTES, 1) } else { (0, 0) }
    }
}

/// What one seal has claimed.
#[derive(Debug, Clone)]
pub struct Charge {
    allowance: Arc<Allowance>,
    claimed: Arc<(AtomicU64, AtomicU64)>,
}

impl Charge {
    /// Claims from this allowance.
    pub fn on(allowance: Arc<Allowance>) -> Self {
        Self { allowance, claimed: Arc::default() }
    }

    pub(super) fn claim(&self, bytes: u64, inodes: u64) -> Result<(), ReceiveError> {
        self.claimed.0.fetch_add(bytes, Ordering::Relaxed);
        self.claimed.1.fetch_add(inodes, Ordering::Relaxed);
        self.allowance.claim(bytes)?;
        self.allowance.claim_entries(inodes)
    }

    pub(super) fn claim_entry(&self, cost: Cost, entry: &Entry, is_kept: bool) -> Result<(), ReceiveError> {
        let (bytes, inodes) = Cost::claimed_before(entry, is_kept);
        self.claim((cost.listed + cost.made).saturating_sub(bytes), cost.inodes.saturating_sub(inodes))
    }

    /// Gives all of it back: what it was claimed for has been removed.
    pub fn give_back(&self) {
        let (bytes, inodes) =
            (self.claimed.0.swap(0, Ordering::Relaxed), self.claimed.1.swap(0, Ordering::Relaxed));
        self.allowance.give_back(bytes, inodes);
    }
}
