//! The manifest: the sorted list of every entry of a tree. Its root digest names the tree.
//!
//! A manifest file is [`MAGIC`], then a header, then the entries in tree order; header and entries are each a length
//! (protobuf varint) and that many bytes. The header is JSON ([`Header`]); an entry is an [`Entry`] message whose fields
//! are filled in one way only, so that equal trees have equal bytes. Nothing in it depends on when, where or in which run
//! it was made. The root digest is BLAKE3 in derive-key mode over the whole file
//! (`b3sum --derive-key 'assay v1 manifest root' manifest`).
//!
//! Entries stream: neither reading, writing, validating nor merging holds more than the entry at hand and the folders
//! above it. A cut-off file is not noticed by its form but by its root digest.

mod entry;
mod merge;
pub mod reuse;
mod stream;

pub use entry::{EntryFault, content_pieces, validate_entry};
pub use merge::{DeltaFault, DeltaMerger, OrderValidator, Origin};
pub use stream::{EntryPicker, Header, MAGIC, ManifestError, ManifestReader, ManifestWriter, Root, entry_at};

pub use assay_proto::v1::{Entry, EntryKind, ExtendedAttribute};

/// A piece of a file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// Bytes with a digest of their own.
    Data {
        /// Length in bytes, 1 to [`crate::chunking::MAX_CHUNK_BYTES`].
        bytes: u64,
    },
    /// A hole: reads as zeros, takes no room.
    Hole {
        /// Length in bytes, at least 1.
        bytes: u64,
    },
}

impl Piece {
    /// Length in bytes.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Data { bytes } | Self::Hole { bytes } => bytes,
        }
    }

    /// As it stands on the wire: twice the length, plus one for a hole.
    pub fn to_wire(self) -> u64 {
        match self {
            Self::Data { bytes } => bytes << 1,
            Self::Hole { bytes } => bytes << 1 | 1,
        }
    }

    /// From the wire; `None` for an empty piece or a chunk that is too long.
    pub fn from_wire(word: u64) -> Option<Self> {
        let bytes = word >> 1;
        match word & 1 {
            _ if bytes == 0 => None,
            0 if bytes > crate::chunking::MAX_CHUNK_BYTES as u64 => None,
            0 => Some(Self::Data { bytes }),
            _ => Some(Self::Hole { bytes }),
        }
    }
}
