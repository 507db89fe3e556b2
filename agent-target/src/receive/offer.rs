//! What an offer says, held against the rules: in the order of arrival, and without touching a file but to begin one.

use std::sync::Arc;

use assay_common::{
    digest::{ContentDigest, DIGEST_BYTES},
    error::IoContext as _,
    limits::{
        MAX_BATCH_BYTES, MAX_CONTENT, MAX_FILE_BYTES, MAX_OFFER_PIECES, MAX_OPEN_CONTENTS,
        MAX_OUTSTANDING_BATCHES, MAX_RUN_HOLE_BYTES,
    },
    manifest::{
        Piece,
        reuse::{self, in_order},
    },
};
use assay_proto::v1::{FilePart, Offer, TransferResponse};

use super::{ReceiveError, Receiver, State, base::BaseFile, error::protocol, seen::Refused};
use crate::store::{Promised, add_to_piece_list};

/// A piece of data and where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) content: u64,
    pub(super) offset: u64,
    pub(super) bytes: usize,
    pub(super) digest: ContentDigest,
    /// It is all that its content has.
    pub(super) alone: bool,
    /// All of its content is in one message: nothing else of it is settled meanwhile.
    pub(super) in_one_message: bool,
}

impl Target {
    /// True when what the base's file has for this piece needs no look of its own: the digest of the whole tells. Of a piece that is
    /// alone its own digest is that of the whole.
    pub(super) fn is_trusted_to(&self, base: &BaseFile) -> bool {
        !self.alone && !base.is_doubted
    }
}

/// What an offer says of one piece.
pub(super) enum Item {
    Hole {
        content: u64,
        offset: u64,
        bytes: u64,
    },
    Data(Target),
    /// Data that the base's file has at this position of its pieces.
    Reused(Target, Arc<BaseFile>, usize),
    /// Data that the content has had since it began.
    Kept(Target),
}

impl Item {
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Hole { bytes, .. } => *bytes,
            Self::Data(target) | Self::Reused(target, ..) | Self::Kept(target) => target.bytes as u64,
        }
    }
}

/// The end of a content.
pub(super) struct End {
    pub(super) content: u64,
    pub(super) length: u64,
    pub(super) ends_in_data: bool,
    /// Its only piece of data says all of it.
    pub(super) alone: bool,
    /// What it must turn out to be, where that was said.
    pub(super) promised: Option<Promised>,
}

/// An offer that keeps to the rules.
pub struct Accepted {
    pub(super) batch: u64,
    pub(super) items: Vec<Item>,
    pub(super) ends: Vec<End>,
    /// What is known already, of a batch that is offered again.
    pub(super) answer: Option<TransferResponse>,
    /// Contents that came to an end without belonging to a file.
    pub(super) abandoned: Vec<u64>,
}

impl Accepted {
    pub(super) fn new(batch: u64) -> Self {
        let (items, ends, abandoned) = Default::default();
        Self { batch, items, ends, answer: None, abandoned }
    }
}

/// A content whose end has not been offered.
#[derive(Default)]
pub(super) struct Open {
    /// Offset of the next part.
    pub(super) next: u64,
    /// The digest of its list of pieces so far: [`crate::store::piece_list_digest`].
    pub(super) list: Box<blake3::Hasher>,
    /// Position of the base's file that it began as a copy of.
    pub(super) copy_of: Option<u64>,
    /// Position of a file of the base that it takes pieces from.
    pub(super) reuses: Option<u64>,
    /// Some of those pieces are not compared by themselves.
    pub(super) trusts: bool,
}

impl Receiver {
    pub(super) fn accept_offer(&self, state: &mut State, offer: &Offer) -> Result<Accepted, ReceiveError> {
        let batch = offer.batch;
        if batch > 0 && batch <= state.last_batch {
            // Offered again after a cut: what is wanted of it is known.
            let answer = match state.wanted.get(&batch) {
                Some(waiting) => TransferResponse { batch, wanted: waiting.bitmap.clone(), stored: false },
                None => TransferResponse { batch, wanted: Vec::new(), stored: true },
            };
            return Ok(Accepted { answer: Some(answer), ..Accepted::new(batch) });
        }
        if batch != state.last_batch + 1 {
            return protocol("batches are numbered 1, 2, 3 ...");
        }
        let counted = offer.parts.iter().try_fold(0u64, |total, part| {
            let reused = part.reuse.iter().try_fold(0u64, |total, run| total.checked_add(run.count))?;
            total.checked_add(part.pieces.len() as u64)?.checked_add(reused)
        });
        if counted.is_none_or(|pieces| pieces > MAX_OFFER_PIECES as u64) {
            return protocol("an offer has at most 262144 pieces");
        }
        if state.wanted.len() >= MAX_OUTSTANDING_BATCHES {
            return protocol("at most 65536 batches are on their way");
        }
        let mut accepted = Accepted::new(batch);
        for part in &offer.parts {
            self.accept_part(state, part, &mut accepted)?;
        }
        let data = accepted.items.iter().map(|item| match item {
            Item::Data(target) | Item::Reused(target, ..) | Item::Kept(target) => target.bytes as u64,
            Item::Hole { .. } => 0,
        });
        if data.sum::<u64>() > MAX_BATCH_BYTES {
            return protocol("an offer is of at most 8 MiB of content");
        }
        let holes = accepted.items.iter().map(|item| match item {
            Item::Hole { bytes, .. } => *bytes,
            Item::Data(_) | Item::Reused(..) | Item::Kept(_) => 0,
        });
        state.hole_bytes = holes.fold(state.hole_bytes, u64::saturating_add);
        if state.hole_bytes > MAX_RUN_HOLE_BYTES {
            return protocol("the holes of a run are of at most 32 TiB together");
        }
        let promised: Vec<_> =
            accepted.ends.iter().filter_map(|end| Some((end.content, end.promised?))).collect();
        if !self.staging.whole().promises().add(&promised) {
            return protocol("at most 262144 contents that reuse pieces are on their way");
        }
        state.last_batch = batch;
        Ok(accepted)
    }

    fn accept_part(
        &self,
        state: &mut State,
        part: &FilePart,
        accepted: &mut Accepted,
    ) -> Result<(), ReceiveError> {
        let content = part.content;
        if content == 0 || content > MAX_CONTENT {
            return protocol("contents are numbered from 1 to 2^38");
        }
        let data = part.pieces.iter().filter(|word| **word & 1 == 0).count();
        if part.digests.len() != data * DIGEST_BYTES {
            return protocol("a part has one digest of 32 bytes for each data piece");
        }
        let mut open = match state.open.remove(&content) {
            None if part.offset == 0 => {
                if state.open.len() >= MAX_OPEN_CONTENTS {
                    return protocol("at most 1024 contents are open at a time");
                }
                match state.seen.insert(content) {
                    Ok(()) => {}
                    Err(Refused::Twice) => return protocol("a content is offered once"),
                    Err(Refused::Scattered) => {
                        return protocol("contents are numbered one after the other");
                    }
                }
                Open::default()
            }
            Some(open) if open.next == part.offset => open,
            _ => return protocol("a content's parts come without gaps, from its start"),
        };
        let promised = match (ContentDigest::from_slice(&part.digest), part.last && !part.abandoned) {
            (Some(digest), true) => Some(digest),
            (None, _) if part.digest.is_empty() => None,
            _ => return protocol("the digest of a content has 32 bytes, and comes with its last part"),
        };
        let base = match (&self.base, part.reuse.is_empty()) {
            (_, true) => None,
            (Some((base, _)), false) => Some(base.file(part.base_entry)?),
            (None, false) => return protocol("nothing is reused where there is no base"),
        };
        if let Some(base) = &base {
            open.reuses = Some(base.position);
        }
        let count =
            part.reuse.iter().fold(part.pieces.len() as u64, |count, run| count.saturating_add(run.count));
        let in_one_message = part.offset == 0 && part.last;
        let (alone, first_item) = (in_one_message && count == 1, accepted.items.len());
        if part.offset == 0
            && !alone
            && let Some(base) = &base
        {
            open.copy_of = self.begin_as_copy(content, base)?;
        }
        let digests = part.digests.as_chunks::<DIGEST_BYTES>().0;
        let (mut offset, mut digest, mut fault, mut ends_in_data) = (part.offset, 0, None, false);
        let base_count = base.as_ref().map_or(0, |base| base.pieces.len());
        let walked = in_order(part.pieces.len(), &part.reuse, base_count, |place| {
            let (piece, known) = match (place, &base) {
                (reuse::Place::New(position), _) => match Piece::from_wire(part.pieces[position]) {
                    Some(piece @ Piece::Hole { .. }) => (piece, None),
                    Some(piece) => {
                        digest += 1;
                        (piece, Some(ContentDigest(digests[digest - 1])))
                    }
                    None => return fault = Some("a piece has at least 1 byte, and a chunk at most 1 MiB"),
                },
                (reuse::Place::Reused(position), Some(base)) => base.pieces[position].1,
                (reuse::Place::Reused(_), None) => return,
            };
            let bytes = piece.bytes();
            ends_in_data = known.is_some();
            add_to_piece_list(&mut open.list, piece, known);
            accepted.items.push(match (known, place, &base) {
                (None, ..) => Item::Hole { content, offset, bytes },
                (Some(digest), place, base) => {
                    let bytes = bytes as usize;
                    let target = Target { content, offset, bytes, digest, alone, in_one_message };
                    match (place, base) {
                        (reuse::Place::Reused(position), Some(base))
                            if open.copy_of == Some(base.position) && base.pieces[position].0 == offset =>
                        {
                            Item::Kept(target)
                        }
                        (reuse::Place::Reused(position), Some(base)) => {
                            open.trusts |= target.is_trusted_to(base);
                            Item::Reused(target, Arc::clone(base), position)
                        }
                        _ => Item::Data(target),
                    }
                }
            });
            match offset.checked_add(bytes).filter(|end| *end <= MAX_FILE_BYTES) {
                Some(end) => offset = end,
                None => fault = Some("a content is at most 16 TiB long"),
            }
        });
        if let Some(rule) = fault {
            return protocol(rule);
        }
        if walked.is_err() {
            return protocol("what is reused stands in the base, in order");
        }
        if part.offset == 0
            && !part.last
            && let Some(Item::Data(first)) = accepted.items.get(first_item)
        {
            self.adopt_first(first)?;
        }
        if part.last {
            // Of a content that is one piece of data its digest says all.
            if !(alone && ends_in_data) {
                let noted = self.staging.whole().note_list(content, *open.list.finalize().as_bytes());
                noted.at("write", self.staging.path())?;
            }
            if !part.abandoned {
                let promised = match (open.reuses, promised) {
                    (Some(base_entry), Some(digest)) => Some(Promised { digest, length: offset, base_entry }),
                    (_, None) if open.trusts => {
                        return protocol("a content that reuses pieces says its digest with its last part");
                    }
                    (None, Some(_)) => {
                        return protocol("only a content that reuses pieces says its digest");
                    }
                    (_, None) => None,
                };
                let alone = alone && ends_in_data;
                accepted.ends.push(End { content, length: offset, ends_in_data, alone, promised });
            } else {
                accepted.abandoned.push(content);
            }
        } else {
            state.open.insert(content, Open { next: offset, ..open });
        }
        Ok(())
    }
}
