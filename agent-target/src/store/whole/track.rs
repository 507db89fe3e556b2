//! How far the digest of one content has come, and what waits for its turn.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use assay_common::{
    digest::{BLOCK_BYTES, BlockHasher, BlockList},
    uncached,
};
use bytes::Bytes;

/// Bytes that are read at a time of what waits in its file.
const READ_BYTES: usize = 1024 * 1024;

/// Reads a content's own bytes, from an offset.
pub(super) type ReadContent<'a> = &'a dyn Fn(&mut [u8], u64) -> io::Result<()>;

/// How far the digest of one content has come.
#[derive(Debug)]
pub(super) struct Track {
    pub(super) next: u64,
    /// `None`: somebody is hashing what comes next, and will go on with what waits by then.
    pub(super) hasher: Option<BlockHasher>,
    pub(super) waiting: BTreeMap<u64, Segment>,
    pub(super) length: Option<u64>,
    pub(super) given_up: bool,
    pub(super) original: Option<Arc<Original>>,
}

impl Track {
    /// What has its turn now, with its offset. Of what is as it was, whole blocks, if more of it may come: a block is known as a
    /// whole only.
    pub(super) fn next_segment(&mut self) -> Option<(u64, Segment)> {
        let (&offset, segment) =
            self.waiting.first_key_value().filter(|(offset, _)| **offset == self.next)?;
        let Segment::Kept(bytes) = *segment else {
            return self.waiting.pop_first();
        };
        let mut end = offset + bytes;
        self.waiting.remove(&offset);
        while let Some(Segment::Kept(more)) = self.waiting.get(&end) {
            let more = *more;
            self.waiting.remove(&end);
            end += more;
        }
        let is_all = self.length == Some(end) || self.waiting.contains_key(&end);
        let now = if is_all { end } else { end / BLOCK_BYTES * BLOCK_BYTES };
        if now < end {
            self.waiting.insert(now.max(offset), Segment::Kept(end - now.max(offset)));
        }
        (now > offset).then_some((offset, Segment::Kept(now.saturating_sub(offset))))
    }
}

/// The file that a content is a copy of, until something is written to it.
#[derive(Debug)]
pub struct Original {
    /// The sealed file.
    pub file: File,
    /// Its blocks: they add up to its digest.
    pub blocks: BlockList,
}

impl Default for Track {
    fn default() -> Self {
        let hasher = Some(BlockHasher::default());
        Self { next: 0, hasher, waiting: BTreeMap::new(), length: None, given_up: false, original: None }
    }
}

#[derive(Debug)]
pub(super) enum Segment {
    Bytes(Bytes),
    Hole(u64),
    /// So many bytes that stand in the file.
    Written(u64),
    /// So many bytes that are as they are in the original.
    Kept(u64),
}

impl Segment {
    pub(super) fn waiting_bytes(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Hole(_) | Self::Written(_) | Self::Kept(_) => 0,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Hole(bytes) | Self::Written(bytes) | Self::Kept(bytes) => *bytes,
        }
    }

    /// Hashes what stands at `offset`.
    pub(super) fn hash(
        &self,
        hasher: &mut BlockHasher,
        offset: u64,
        (read, original): (ReadContent<'_>, Option<&Original>),
        stopped: &AtomicBool,
    ) -> io::Result<()> {
        static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
        let go_on = || match stopped.load(Ordering::Relaxed) {
            true => Err(io::Error::other("the run was given up")),
            false => Ok(()),
        };
        match self {
            Self::Bytes(bytes) => hasher.update(bytes),
            Self::Hole(bytes) => {
                let mut rest = *bytes;
                while rest > 0 {
                    go_on()?;
                    let step = rest.min(ZEROS.len() as u64);
                    hasher.update(&ZEROS[..step as usize]);
                    rest -= step;
                }
            }
            Self::Written(bytes) => {
                let mut buffer = vec![0; READ_BYTES.min(*bytes as usize)];
                let mut done = 0;
                while done < *bytes {
                    go_on()?;
                    let step = (bytes - done).min(buffer.len() as u64) as usize;
                    read(&mut buffer[..step], offset + done)?;
                    hasher.update(&buffer[..step]);
                    done += step as u64;
                }
            }
            Self::Kept(bytes) => {
                let original =
                    original.ok_or_else(|| io::Error::other("nothing is known of the original"))?;
                let (mut at, end, mut buffer) = (offset, offset + bytes, Vec::new());
                while at < end {
                    go_on()?;
                    let step = (BLOCK_BYTES - at % BLOCK_BYTES).min(end - at);
                    let known = original.blocks.value(at / BLOCK_BYTES).filter(|_| step == BLOCK_BYTES);
                    if !known.is_some_and(|value| hasher.update_block(value)) {
                        buffer.resize(step as usize, 0);
                        if uncached::read_full_at(&original.file, &mut buffer, at)? != buffer.len() {
                            return Err(io::ErrorKind::UnexpectedEof.into());
                        }
                        hasher.update(&buffer);
                    }
                    at += step;
                }
            }
        }
        Ok(())
    }
}
