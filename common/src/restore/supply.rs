//! What gives the content, and how its answers are taken apart.

use std::io;

use tokio::sync::mpsc::Receiver;

use crate::{chunking::MAX_CHUNK_BYTES, digest::ContentDigest};

/// Content of one part before compression, in bytes, at most.
pub const MAX_PART_BYTES: usize = 2 * 1024 * 1024;

/// Pieces of one file that are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// Place of the file's entry in the manifest, from 0.
    pub entry: u64,
    /// Which of its pieces of data, from 0, ascending; all of them when there is none.
    pub pieces: Vec<u32>,
}

/// Some of the wanted pieces, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// How many.
    pub pieces: u32,
    /// Their bytes before compression.
    pub raw_bytes: u32,
    /// Compressed when shorter than `raw_bytes`.
    pub data: bytes::Bytes,
    /// Why the one piece that this stands for cannot be had; empty when it is there.
    pub lost: String,
}

/// Why no more content comes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SupplyError {
    /// The connection, or the other side.
    #[error("the target stopped sending: {0}")]
    Cut(String),
    /// What came is not what was asked for.
    #[error("the target sent something else than was asked for: {0}")]
    Other(&'static str),
}

/// The wanted pieces, one by one.
pub struct Pieces {
    parts: Receiver<Result<Part, SupplyError>>,
    raw: Vec<u8>,
    taken: usize,
    left: u32,
    lost: String,
    fetched_bytes: u64,
}

impl Pieces {
    /// Out of `parts`.
    pub fn new(parts: Receiver<Result<Part, SupplyError>>) -> Self {
        Self { parts, raw: Vec::new(), taken: 0, left: 0, lost: String::new(), fetched_bytes: 0 }
    }

    /// Bytes of content that came.
    pub fn fetched_bytes(&self) -> u64 {
        self.fetched_bytes
    }

    /// The next piece, which must have this length and digest; `Err` inside says why the target does not have it any longer.
    ///
    /// # Errors
    /// When something else comes, or nothing.
    pub fn next(
        &mut self,
        bytes: usize,
        digest: ContentDigest,
    ) -> Result<Result<&[u8], String>, SupplyError> {
        if self.left == 0 {
            let part = self.parts.blocking_recv();
            self.open(part.ok_or_else(|| SupplyError::Cut("it ended too early".to_owned()))??)?;
        }
        self.left -= 1;
        if !self.lost.is_empty() {
            return Ok(Err(std::mem::take(&mut self.lost)));
        }
        let end = self.taken.checked_add(bytes).filter(|end| *end <= self.raw.len());
        let end = end.ok_or(SupplyError::Other("a piece is shorter than the manifest says"))?;
        let piece = &self.raw[self.taken..end];
        if self.left == 0 && end != self.raw.len() {
            return Err(SupplyError::Other("a part is longer than its pieces"));
        }
        if ContentDigest::of(piece) != digest {
            return Err(SupplyError::Other("a piece has not the digest that the manifest names"));
        }
        self.taken = end;
        self.fetched_bytes += bytes as u64;
        Ok(Ok(piece))
    }

    fn open(&mut self, part: Part) -> Result<(), SupplyError> {
        let raw_bytes = part.raw_bytes as usize;
        if raw_bytes > MAX_PART_BYTES || part.data.len() > raw_bytes {
            return Err(SupplyError::Other("a part is longer than any may be"));
        }
        if part.pieces == 0 || (!part.lost.is_empty() && part.pieces != 1) {
            return Err(SupplyError::Other("a part stands for no piece"));
        }
        self.raw.clear();
        if part.data.len() == raw_bytes {
            self.raw.extend_from_slice(&part.data);
        } else {
            // Bounded by what was checked above: a part that decompresses to more is refused.
            let raw = zstd::bulk::decompress(&part.data, raw_bytes)
                .map_err(|_: io::Error| SupplyError::Other("a part cannot be decompressed"))?;
            if raw.len() != raw_bytes {
                return Err(SupplyError::Other("a part is shorter than it says"));
            }
            self.raw = raw;
        }
        (self.taken, self.left, self.lost) = (0, part.pieces, part.lost);
        Ok(())
    }
}

const _: () = assert!(MAX_CHUNK_BYTES <= MAX_PART_BYTES, "every piece fits into a part");
