//! How far one reading of a file has come: what has been cut, what of it the base has, and the digests.

use std::{ops::Range, sync::Arc};

use assay_common::{
    chunking::Cut,
    digest::{BLOCK_BYTES, BlockHasher, ContentDigest},
    manifest::{
        Entry, Piece,
        reuse::{BasePiece, DigestedPiece, PieceList, Reuser},
    },
};
use assay_proto::v1::{FilePart, PutEntry};
use bytes::Bytes;
use rayon::prelude::*;

use super::{
    super::{
        block_memory::{BlockMemory, Fingerprint, Known},
        chunk::{Chunk, Origin, Place},
    },
    Job, Shared,
};

/// A part of a block that is to be a piece.
pub(super) struct Slice {
    /// Where it lies in the block.
    pub(super) range: Range<usize>,
    /// The position of the base's piece that it is likely to be.
    place: Option<usize>,
    /// Its digest, where it is known to be that piece.
    digest: Option<ContentDigest>,
    /// Where it is known.
    fingerprint: Option<Fingerprint>,
}

impl Slice {
    fn new(range: Range<usize>) -> Self {
        Self { range, place: None, digest: None, fingerprint: None }
    }
}

/// What came of holding bytes against a piece of the base.
struct Compared {
    /// `None`: only the digest could tell.
    is_same: Option<bool>,
    fingerprint: Option<Fingerprint>,
}

impl Compared {
    fn slice(self, piece: &BasePiece, range: Range<usize>) -> Slice {
        let digest = (self.is_same == Some(true)).then_some(piece.digest);
        Slice { range, place: Some(piece.position), digest, fingerprint: self.fingerprint }
    }
}

/// A piece of data that was cut from a block.
pub(super) struct CutPiece {
    /// Where it lies in the block.
    pub(super) range: Range<usize>,
    /// Where it begins in its file, in bytes.
    offset: u64,
    digest: ContentDigest,
    /// The base's file has it.
    known: bool,
}

impl CutPiece {
    /// What is new is copied: it would hold the block.
    pub(super) fn let_go_if_known(&self, block: &Bytes, origin: &Arc<Origin>) -> Chunk {
        let CutPiece { ref range, offset, digest, known } = *self;
        if known {
            Chunk::LetGo(Place { origin: Arc::clone(origin), offset, bytes: range.len(), digest })
        } else {
            Chunk::Held(Bytes::copy_from_slice(&block[range.clone()]))
        }
    }
}

/// True when at least half of the bytes are in the base: then to copy the others is cheaper than to hold all.
pub(super) fn is_mostly_known(pieces: &[CutPiece]) -> bool {
    let bytes = |known| {
        let of_kind = pieces.iter().filter(move |piece| piece.known == known);
        of_kind.map(|piece| piece.range.len()).sum::<usize>()
    };
    bytes(true) >= bytes(false)
}

/// How far one reading of a file has come.
pub(super) struct Progress {
    content: u64,
    /// Where what the base has can be read again; `None` when all is held.
    pub(super) origin: Option<Arc<Origin>>,
    base_entry: u64,
    reuser: Option<Reuser>,
    /// Length of the base's first piece of data: pages keep the size that they had.
    base_piece_bytes: Option<u64>,
    whole: BlockHasher,
    /// Of the whole, when it has been summed up.
    digest: Option<ContentDigest>,
    /// What is known of the base's file. Then `whole` gets what is read at once, else when it has been cut.
    pub(super) before: Option<Known>,
    /// Fingerprints of the pieces so far, of a file of which they are to be remembered.
    pub(super) fingerprints: Option<Vec<Fingerprint>>,
    /// The newest run of blocks that are as they were.
    unmoved: Range<u64>,
    /// The only piece so far, whose digest may be the file's own.
    only: Option<DigestedPiece>,
    pieces: u64,
    list: PieceList,
    part: PieceList,
    part_offset: u64,
    pub(super) offset: u64,
    pub(super) last: bool,
    pub(super) abandoned: bool,
}

impl Progress {
    pub(super) fn new(content: u64, job: &Job, shared: &Shared) -> Self {
        let base = job.base.as_ref();
        let reuser = base.map(|base| Reuser::new(&base.entry));
        let mut before = base.and_then(|base| shared.memory.find(&base.entry.digest, base.entry.size));
        if let (Some(known), Some(reuser)) = (&mut before, &reuser)
            && (!shared.fingerprints || job.rotten || known.fingerprints.len() != reuser.piece_count())
        {
            known.fingerprints.clear();
        }
        Self {
            content,
            // The name of a file that is held may be gone.
            origin: (base.is_some() && job.held.is_none() && !job.rotten).then(|| {
                let (path, folder, name) = (job.path.clone(), Arc::clone(&job.folder), job.name.clone());
                Arc::new(Origin { path, folder, name })
            }),
            base_entry: base.map_or(0, |base| base.position),
            reuser,
            base_piece_bytes: base.and_then(|base| {
                base.entry.pieces.iter().find_map(|word| match Piece::from_wire(*word)? {
                    Piece::Data { bytes } => Some(bytes),
                    Piece::Hole { .. } => None,
                })
            }),
            whole: BlockHasher::default(),
            digest: None,
            before,
            fingerprints: None,
            unmoved: 0..0,
            only: None,
            pieces: 0,
            list: PieceList::default(),
            part: PieceList::default(),
            part_offset: 0,
            offset: 0,
            last: false,
            abandoned: false,
        }
    }

    /// How this file is cut: decided once, when its first block is at hand.
    pub(super) fn cut(&self, job: &Job, length: u64, head: &[u8]) -> Cut {
        let head = if self.offset == 0 { head } else { &[] };
        Cut::choose(head, length, job.page_bytes, self.base_piece_bytes)
    }

    /// Takes what was read at `position` into the digest of the whole, and sees whether the block that ends with it is as it was.
    pub(super) fn note_block(&mut self, read: &[u8], position: u64) {
        self.whole.update(read);
        let end = position + read.len() as u64;
        let (Some(known), Some((number, value))) = (&self.before, self.whole.whole_block()) else {
            return;
        };
        if end != (number + 1) * BLOCK_BYTES || !known.blocks.has(number, &value) {
            return;
        }
        let start = number * BLOCK_BYTES;
        self.unmoved = if self.unmoved.end == start { self.unmoved.start..end } else { start..end };
    }

    /// Cuts the front of `block`, which begins at a cut point, and says of each slice what is known of it. Unless the file `ended` the
    /// rest stays uncut.
    pub(super) fn cut_up(&self, cut: Cut, block: &[u8], ended: bool) -> Vec<Slice> {
        match cut {
            Cut::Pages { .. } => self.pages(cut, block, ended),
            Cut::Content { .. } => {
                let mut slices = self.as_before(block);
                let known = slices.last().map_or(0, |slice| slice.range.end);
                let rest = cut.ranges(&block[known..], ended).into_iter();
                slices.extend(rest.map(|range| Slice::new(known + range.start..known + range.end)));
                slices
            }
        }
    }

    /// Pages stay where they are: each is held against the base's in its place.
    fn pages(&self, cut: Cut, block: &[u8], ended: bool) -> Vec<Slice> {
        let slice = |range: Range<usize>| {
            let offset = self.offset + range.start as u64;
            let before = self.reuser.as_ref().and_then(|reuser| reuser.at(offset));
            match before.filter(|piece| piece.bytes == range.len()) {
                Some(piece) => self.compare(&piece, offset, &block[range.clone()]).slice(&piece, range),
                None => Slice::new(range),
            }
        };
        cut.ranges(block, ended).into_iter().map(slice).collect()
    }

    /// The pieces at the start of `block` that are as they were in the base: cut where they were cut then, without looking for
    /// the places again. Where both were cut by content that is where they would be found: a cut point depends on what comes before it in
    /// its piece.
    fn as_before(&self, block: &[u8]) -> Vec<Slice> {
        let (mut slices, mut start) = (Vec::new(), 0usize);
        for piece in self.reuser.iter().flat_map(Reuser::follows) {
            let end = start.checked_add(piece.bytes).filter(|end| *end <= block.len());
            let Some(range) = end.map(|end| start..end) else { break };
            let bytes = &block[range.clone()];
            let mut compared = self.compare(&piece, self.offset + start as u64, bytes);
            let is_same = *compared.is_same.get_or_insert_with(|| ContentDigest::of(bytes) == piece.digest);
            if !is_same {
                break;
            }
            start = range.end;
            slices.push(compared.slice(&piece, range));
        }
        slices
    }

    /// Holds `bytes`, which stand at `offset`, against a piece of the base. What lies in blocks that are as they were needs no digest of its
    /// own; for the rest a fingerprint does, when one is known.
    fn compare(&self, piece: &BasePiece, offset: u64, bytes: &[u8]) -> Compared {
        let is_unmoved = piece.offset == offset
            && self.unmoved.start <= offset
            && offset + bytes.len() as u64 <= self.unmoved.end;
        let known = self.before.as_ref().and_then(|known| known.fingerprints.get(piece.position)).copied();
        match known {
            _ if is_unmoved => Compared { is_same: Some(true), fingerprint: known },
            Some(known) => {
                let found = fingerprint(bytes);
                Compared { is_same: Some(found == known), fingerprint: Some(found) }
            }
            None => Compared { is_same: None, fingerprint: None },
        }
    }

    /// The digests of the slices of `data`, all of which also goes into the digest of the whole.
    pub(super) fn digests(
        &mut self,
        data: &[u8],
        slices: &[Slice],
        to_the_end: bool,
        shared: &Shared,
    ) -> Vec<ContentDigest> {
        let of =
            |slice: &Slice| slice.digest.unwrap_or_else(|| ContentDigest::of(&data[slice.range.clone()]));
        if let [slice @ Slice { digest: None, .. }] = slices
            && self.pieces == 0
            && to_the_end
        {
            // The piece is the file, and its digest that of the file: see `describe`.
            return vec![of(slice)];
        }
        let new = slices.iter().filter(|slice| slice.digest.is_none()).count();
        let side_by_side = new > 4 && shared.has_idle_processors();
        match (self.before.is_some(), side_by_side) {
            (true, true) => slices.par_iter().map(of).collect(),
            (true, false) => slices.iter().map(of).collect(),
            (false, true) => {
                rayon::join(|| slices.par_iter().map(of).collect(), || self.whole.update(data)).0
            }
            (false, false) => {
                self.whole.update(data);
                slices.iter().map(of).collect()
            }
        }
    }

    /// Takes the next slice of `block`.
    pub(super) fn push_cut(&mut self, block: &[u8], slice: Slice, digest: ContentDigest) -> CutPiece {
        let (offset, Slice { range, place, fingerprint: known, .. }) = (self.offset, slice);
        let position = self.push((Piece::Data { bytes: range.len() as u64 }, Some(digest)), place);
        if let Some(fingerprints) = &mut self.fingerprints {
            fingerprints.push(known.unwrap_or_else(|| fingerprint(&block[range.clone()])));
        }
        CutPiece { range, offset, digest, known: position.is_some() }
    }

    /// Takes the next piece, which the base may have at `place`. Its position in the base's file, if that has it.
    fn push(&mut self, piece: DigestedPiece, place: Option<usize>) -> Option<usize> {
        self.only = (self.pieces == 0).then_some(piece);
        self.pieces += 1;
        self.offset += piece.0.bytes();
        let position = self.reuser.as_mut().and_then(|reuser| reuser.find(piece, place));
        match position {
            Some(position) => {
                self.part.push_reused(position);
                self.list.push_reused(position);
            }
            None => {
                self.part.push(piece);
                self.list.push(piece);
            }
        }
        position
    }

    pub(super) fn hole(&mut self, bytes: u64) {
        static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
        let mut rest = bytes;
        while rest > 0 {
            let step = rest.min(ZEROS.len() as u64);
            self.whole.update(&ZEROS[..step as usize]);
            rest -= step;
        }
        self.push((Piece::Hole { bytes }, None), None);
        if let Some(fingerprints) = &mut self.fingerprints {
            fingerprints.push(0);
        }
    }

    /// What has come since the last part; `None` when nothing has, unless it is the end.
    pub(super) fn take_part(&mut self) -> Option<FilePart> {
        if self.part.is_empty() && !self.last {
            return None;
        }
        let PieceList { pieces, digests, reuse } = std::mem::take(&mut self.part);
        let offset = std::mem::replace(&mut self.part_offset, self.offset);
        Some(FilePart {
            content: self.content,
            offset,
            pieces,
            digests,
            last: self.last,
            abandoned: self.abandoned,
            base_entry: if reuse.is_empty() { 0 } else { self.base_entry },
            reuse,
            digest: match self.digest {
                Some(digest) if !self.list.reuse.is_empty() => digest.0.to_vec(),
                _ => Vec::new(),
            },
        })
    }

    /// All has been read: there is a digest of the whole.
    pub(super) fn sum_up(&mut self, memory: &BlockMemory) {
        self.digest = Some(match self.only {
            // Then its digest is of what was read, and not what the base says of a piece.
            Some((Piece::Data { .. }, Some(digest))) if self.whole.is_empty() => digest,
            _ => {
                let (digest, blocks) = std::mem::take(&mut self.whole).finish();
                if let (Some(blocks), Some(fingerprints)) = (blocks, self.fingerprints.take()) {
                    memory.keep(digest, self.offset, &Known { blocks, fingerprints });
                }
                digest
            }
        });
    }

    /// Fills in size, digest and pieces, when it has been summed up.
    pub(super) fn describe(self, mut entry: Entry) -> PutEntry {
        entry.size = self.offset;
        entry.digest = self.digest.map(|digest| digest.0.to_vec()).unwrap_or_default();
        if let Some((Piece::Data { .. }, Some(_))) = self.only {
            // A file that is one chunk, as most are, says so by its size and digest alone.
            return PutEntry { entry: Some(entry), content: self.content, ..Default::default() };
        }
        entry.pieces = self.list.pieces;
        entry.piece_digests = self.list.digests;
        PutEntry { entry: Some(entry), content: self.content, reuse: self.list.reuse }
    }
}

/// A piece's fingerprint, to be compared with what was remembered. With XXH3 that costs a fraction of what BLAKE3 does.
pub(super) fn fingerprint(piece: &[u8]) -> Fingerprint {
    twox_hash::XxHash3_64::oneshot(piece)
}
