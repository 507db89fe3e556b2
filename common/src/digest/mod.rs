//! Digests. Content (chunks and whole files) is named by plain BLAKE3, so that `b3sum` can check it; everything that
//! says more than "these bytes" has a context of its own, so that a digest of one kind never stands in for another.

mod blocks;

use std::fmt;

pub use blocks::{BLOCK_BYTES, BlockHasher, BlockList};

/// Context of a manifest's root digest; `b3sum --derive-key` with this text computes it from the manifest file.
pub const MANIFEST_CONTEXT: &str = "assay v1 manifest root";

/// Length of every digest, in bytes. Fixed by the protocol version, never negotiated.
pub const DIGEST_BYTES: usize = 32;

/// BLAKE3 of content: a chunk or a whole file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentDigest(pub [u8; DIGEST_BYTES]);

impl ContentDigest {
    /// Digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Takes exactly 32 bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for ContentDigest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ContentDigest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "ContentDigest({})", hex::encode(&self.0[..6]))
    }
}

/// Digest of a whole manifest, which names a tree.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RootDigest(pub [u8; DIGEST_BYTES]);

impl RootDigest {
    /// Takes exactly 32 bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Takes 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        Self::from_slice(&hex::decode(text).ok()?)
    }
}

impl fmt::Display for RootDigest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for RootDigest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "RootDigest({})", hex::encode(&self.0[..6]))
    }
}
