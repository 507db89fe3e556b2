//! Reads the pieces that a restore wants out of a generation's tree.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use assay_common::{
    confined::Folder,
    digest::ContentDigest,
    manifest::{Entry, EntryKind, Piece, content_pieces, entry_at, validate_entry},
    path::TreePath,
    restore::{MAX_PART_BYTES, Part, SupplyError, Want},
    uncached,
};
use tokio::sync::mpsc::{Receiver, Sender, error::TryRecvError};

/// A part is sent when it has this much content, in bytes.
const PART_BYTES: usize = 1024 * 1024;
/// Level of compression: restoring is to be fast, and the link most often is.
const LEVEL: i32 = 1;
/// A part with less content is not worth compressing, in bytes.
const MIN_COMPRESSED_BYTES: usize = 256;

const _: () = assert!(
    PART_BYTES + assay_common::chunking::MAX_CHUNK_BYTES <= MAX_PART_BYTES,
    "a part takes one more piece"
);

/// The content of one sealed generation.
#[derive(Debug)]
pub struct Content {
    manifest: File,
    positions: File,
    tree: Folder,
}

impl Content {
    pub(super) fn new(manifest: File, positions: File, tree: Folder) -> Self {
        Self { manifest, positions, tree }
    }

    /// Answers what is wanted, in order, until nobody wants anything any longer or nobody listens. Blocks.
    pub fn answer(&self, mut wants: Receiver<Want>, parts: &Sender<Result<Part, SupplyError>>) {
        let mut out = Out { parts, raw: Vec::with_capacity(PART_BYTES), pieces: 0 };
        loop {
            let want = match wants.try_recv() {
                Ok(want) => Some(want),
                Err(TryRecvError::Disconnected) => None,
                // Whoever waits for what is read already gets it before we wait.
                Err(TryRecvError::Empty) => {
                    if out.flush().is_err() {
                        return;
                    }
                    wants.blocking_recv()
                }
            };
            let answered = match want {
                Some(want) => self.file(&want, &mut out),
                None => {
                    // Nobody is there to be told when this fails.
                    drop(out.flush());
                    return;
                }
            };
            match answered {
                Ok(()) => {}
                Err(Stop::Gone) => return,
                Err(Stop::Bad(why)) => {
                    drop(parts.blocking_send(Err(SupplyError::Cut(why))));
                    return;
                }
            }
        }
    }

    fn file(&self, want: &Want, out: &mut Out<'_>) -> Result<(), Stop> {
        let (path, entry) =
            self.entry(want.entry).ok_or_else(|| Stop::Bad("there is no such file".to_owned()))?;
        let file = self.tree.open_file_below(&path).and_then(|file| {
            if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no regular file")) }
        });
        if let Ok(file) = &file {
            uncached::read_once(file);
        }
        let mut wanted = want.pieces.iter().copied().peekable();
        let all = want.pieces.is_empty();
        let data = content_pieces(&entry).filter_map(|(offset, piece, digest)| match piece {
            Piece::Data { bytes } => Some((offset, bytes as usize, digest?)),
            Piece::Hole { .. } => None,
        });
        for (number, (offset, bytes, digest)) in (0u32..).zip(data) {
            if !all && wanted.next_if_eq(&number).is_none() {
                continue;
            }
            let read = match &file {
                Ok(file) => out.take(file, offset, bytes, digest)?,
                Err(error) => Some(format!("the target's file cannot be opened: {error}")),
            };
            if let Some(lost) = read {
                tracing::error!(%path, offset, lost, "a sealed file cannot be given back as it was sealed");
                out.lost(lost)?;
            }
        }
        if wanted.peek().is_some() {
            return Err(Stop::Bad("a file does not have that many pieces".to_owned()));
        }
        Ok(())
    }

    fn entry(&self, place: u64) -> Option<(TreePath, Entry)> {
        let mut word = [0; 8];
        self.positions.read_exact_at(&mut word, place.checked_mul(8)?).ok()?;
        let entry = entry_at(&self.manifest, u64::from_le_bytes(word)).ok()?;
        let path = validate_entry(&entry).ok()?;
        (entry.kind() == EntryKind::File).then_some((path, entry))
    }
}

/// Why no more is answered.
enum Stop {
    /// Nobody listens.
    Gone,
    /// What is wanted cannot be.
    Bad(String),
}

/// The part that is being filled.
struct Out<'a> {
    parts: &'a Sender<Result<Part, SupplyError>>,
    raw: Vec<u8>,
    pieces: u32,
}

impl Out<'_> {
    /// Reads a piece behind the others; says why it is not what was sealed.
    fn take(
        &mut self,
        file: &File,
        offset: u64,
        bytes: usize,
        digest: ContentDigest,
    ) -> Result<Option<String>, Stop> {
        let start = self.raw.len();
        self.raw.resize(start + bytes, 0);
        let got = uncached::read_full_at(file, &mut self.raw[start..], offset);
        let lost = match got {
            Err(error) => Some(format!("the target cannot read it at byte {offset}: {error}")),
            Ok(got) if got != bytes => {
                Some(format!("the target's file ends before byte {}", offset + bytes as u64))
            }
            Ok(_) if ContentDigest::of(&self.raw[start..]) != digest => Some(format!(
                "the target's file is not what was sealed at bytes {offset} to {}",
                offset + bytes as u64 - 1
            )),
            Ok(_) => None,
        };
        if lost.is_some() {
            self.raw.truncate(start);
            return Ok(lost);
        }
        self.pieces += 1;
        if self.raw.len() >= PART_BYTES {
            self.flush()?;
        }
        Ok(None)
    }

    fn lost(&mut self, why: String) -> Result<(), Stop> {
        self.flush()?;
        self.send(Part { pieces: 1, raw_bytes: 0, data: bytes::Bytes::new(), lost: why })
    }

    fn flush(&mut self) -> Result<(), Stop> {
        if self.pieces == 0 {
            return Ok(());
        }
        let raw_bytes = u32::try_from(self.raw.len()).expect("a part is small");
        let packed = (self.raw.len() >= MIN_COMPRESSED_BYTES)
            .then(|| zstd::bulk::compress(&self.raw, LEVEL).ok())
            .flatten();
        let data = match packed {
            Some(packed) if packed.len() < self.raw.len() => packed,
            _ => self.raw.clone(),
        };
        let pieces = std::mem::take(&mut self.pieces);
        self.raw.clear();
        self.send(Part { pieces, raw_bytes, data: data.into(), lost: String::new() })
    }

    fn send(&self, part: Part) -> Result<(), Stop> {
        self.parts.blocking_send(Ok(part)).map_err(|_| Stop::Gone)
    }
}
