//! A file told as what it shares with an entry of the base, and the rest: what is said about a large file follows what
//! changed in it, not its size.
//!
//! [`Reuser`] finds the shared pieces while a file is read; [`expand`] puts the whole list together again on the other side.

use std::collections::HashMap;

use assay_proto::v1::Reuse;

use super::{Entry, EntryFault, Piece, content_pieces};
use crate::{
    digest::{ContentDigest, DIGEST_BYTES},
    limits::{MAX_PIECES, MAX_RECORD_BYTES},
    path::display_short,
};

/// A piece and, for data, its digest.
pub type DigestedPiece = (Piece, Option<ContentDigest>);

/// The pieces of an entry of the base, by position and by digest.
#[derive(Debug)]
pub struct Reuser {
    pieces: Vec<DigestedPiece>,
    /// Where each of them begins, in bytes.
    offsets: Vec<u64>,
    positions: HashMap<ContentDigest, usize>,
    /// Where the last piece that was found stands: what follows it most often follows here too.
    next: usize,
}

impl Reuser {
    /// For a file of the base. The entry is valid.
    pub fn new(base: &Entry) -> Self {
        let (offsets, pieces): (Vec<_>, Vec<DigestedPiece>) =
            content_pieces(base).map(|(offset, piece, digest)| (offset, (piece, digest))).unzip();
        let digests =
            pieces.iter().enumerate().filter_map(|(position, (_, digest))| Some(((*digest)?, position)));
        let positions = digests.collect();
        Self { pieces, offsets, positions, next: 0 }
    }

    /// The position in the base's entry of a piece that is the same, if there is one: `place`, if it is there, else what follows the last
    /// one, else wherever it is.
    pub fn find(&mut self, piece: DigestedPiece, place: Option<usize>) -> Option<usize> {
        let is_at = |position: &usize| self.pieces.get(*position) == Some(&piece);
        let position = match place.into_iter().chain([self.next]).find(is_at) {
            Some(position) => position,
            // A hole is shared only where it follows what is shared: alone it costs nothing to say.
            None => Some(*self.positions.get(&piece.1?)?).filter(is_at)?,
        };
        self.next = position + 1;
        Some(position)
    }

    /// Pieces that the base's entry has.
    pub fn piece_count(&self) -> usize {
        self.pieces.len()
    }

    /// The pieces of data that follow the last one that was found, up to a hole or the end. The pieces right before those end where
    /// they end for other reasons than their content, and are left out.
    pub fn follows(&self) -> impl Iterator<Item = BasePiece> + '_ {
        (self.next..self.pieces.len().saturating_sub(1)).map_while(|position| {
            self.data(position + 1)?;
            self.data(position)
        })
    }

    /// The piece of data that begins at `offset`.
    pub fn at(&self, offset: u64) -> Option<BasePiece> {
        self.data(self.offsets.binary_search(&offset).ok()?)
    }

    fn data(&self, position: usize) -> Option<BasePiece> {
        match self.pieces.get(position)? {
            (Piece::Data { bytes }, Some(digest)) => {
                let (offset, bytes, digest) = (self.offsets[position], *bytes as usize, *digest);
                Some(BasePiece { position, offset, bytes, digest })
            }
            _ => None,
        }
    }
}

/// A piece of data of an entry of the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BasePiece {
    /// Its position among the entry's pieces, holes counted.
    pub position: usize,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length.
    pub bytes: usize,
    /// Its digest.
    pub digest: ContentDigest,
}

/// The other form of a list of pieces: what is new, and runs of what is reused.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct PieceList {
    /// New pieces as words ([`Piece::to_wire`]).
    pub pieces: Vec<u64>,
    /// Digests of the new data pieces.
    pub digests: Vec<u8>,
    /// Runs of reused pieces.
    pub reuse: Vec<Reuse>,
}

impl PieceList {
    /// Appends a new piece.
    pub fn push(&mut self, (piece, digest): DigestedPiece) {
        self.pieces.push(piece.to_wire());
        if let Some(digest) = digest {
            self.digests.extend_from_slice(&digest.0);
        }
    }

    /// Appends a piece that stands at `position` in the base's entry.
    pub fn push_reused(&mut self, position: usize) {
        let (after, position) = (self.pieces.len() as u32, position as u64);
        match self.reuse.last_mut() {
            Some(run) if run.after == after && run.first + run.count == position => run.count += 1,
            _ => self.reuse.push(Reuse { after, first: position, count: 1 }),
        }
    }

    /// True when nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.reuse.is_empty()
    }
}

/// Why a list with reused pieces makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("reuses pieces that its base does not have, or out of order")]
pub struct ReuseFault;

/// Walks a list in its order: new pieces by their position in `new`, reused ones by their position in the base.
///
/// `piece_count` is the number of new pieces, `base_count` the number of pieces of the base's entry.
///
/// # Errors
/// When a run is empty, goes beyond the base, or stands before the one in front of it.
pub fn in_order(
    piece_count: usize,
    reuse: &[Reuse],
    base_count: usize,
    mut visit: impl FnMut(Place),
) -> Result<(), ReuseFault> {
    let mut next = 0;
    for run in reuse {
        let after = run.after as usize;
        let end =
            run.first.checked_add(run.count).and_then(|end| usize::try_from(end).ok()).ok_or(ReuseFault)?;
        if after < next || after > piece_count || run.count == 0 || end > base_count {
            return Err(ReuseFault);
        }
        (next..after).for_each(|position| visit(Place::New(position)));
        (run.first as usize..end).for_each(|position| visit(Place::Reused(position)));
        next = after;
    }
    (next..piece_count).for_each(|position| visit(Place::New(position)));
    Ok(())
}

/// Where a piece of a list stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Position among the new pieces.
    New(usize),
    /// Position in the base's entry.
    Reused(usize),
}

/// Pieces that a record can have, each with a length of one byte and a digest: what does not fit a record is not unfolded either.
const LARGEST_LIST: u64 = MAX_RECORD_BYTES as u64 / (1 + DIGEST_BYTES as u64);

/// Fills the pieces that `entry` shares with `base` into it. The result is not validated here.
///
/// # Errors
/// When the runs make no sense with this base.
pub fn expand(entry: &mut Entry, reuse: &[Reuse], base: &Entry) -> Result<(), EntryFault> {
    if reuse.is_empty() {
        return Ok(());
    }
    let fault = |rule| EntryFault::Field { path: display_short(&entry.path), rule };
    let shared: Vec<DigestedPiece> = content_pieces(base).map(|(_, piece, digest)| (piece, digest)).collect();
    let own = Entry { size: 0, ..entry.clone() };
    let new: Vec<DigestedPiece> = content_pieces(&own).map(|(_, piece, digest)| (piece, digest)).collect();
    // A run may be named many times: what it unfolds to is bounded before it is made.
    let total = reuse.iter().try_fold(new.len() as u64, |total, run| total.checked_add(run.count));
    if new.len() != entry.pieces.len() || total.is_none_or(|total| total > MAX_PIECES.min(LARGEST_LIST)) {
        return Err(fault("reuses more pieces than a file can have, or lists pieces without digests"));
    }
    let mut list = PieceList::default();
    in_order(new.len(), reuse, shared.len(), |place| {
        list.push(match place {
            Place::New(position) => new[position],
            Place::Reused(position) => shared[position],
        });
    })
    .map_err(|ReuseFault| fault("reuses pieces that its base does not have, or out of order"))?;
    if let [word] = list.pieces.as_slice()
        && word & 1 == 0
    {
        // A file that is one chunk says so by its size and digest alone.
        return Ok((entry.pieces, entry.piece_digests) = (Vec::new(), Vec::new()));
    }
    (entry.pieces, entry.piece_digests) = (list.pieces, list.digests);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::EntryKind;
    use proptest::prelude::*;

    fn file(pieces: &[DigestedPiece]) -> Entry {
        let mut list = PieceList::default();
        pieces.iter().for_each(|piece| list.push(*piece));
        let mut entry = Entry { path: b"f".to_vec(), kind: EntryKind::File.into(), ..Default::default() };
        entry.size = pieces.iter().map(|(piece, _)| piece.bytes()).sum();
        (entry.pieces, entry.piece_digests) = (list.pieces, list.digests);
        entry
    }

    fn piece(number: u8) -> DigestedPiece {
        match number % 5 {
            0 => (Piece::Hole { bytes: u64::from(number) + 1 }, None),
            _ => (Piece::Data { bytes: u64::from(number) + 1 }, Some(ContentDigest::of(&[number]))),
        }
    }

    proptest! {
        /// Whatever the two files share, the list that is told unfolds to the new file.
        #[test]
        fn what_is_told_unfolds_to_the_file(base in prop::collection::vec(0u8..30, 2..40),
                                            new in prop::collection::vec(0u8..40, 2..40)) {
            let base = file(&base.into_iter().map(piece).collect::<Vec<_>>());
            let new = file(&new.into_iter().map(piece).collect::<Vec<_>>());
            let mut reuser = Reuser::new(&base);
            let mut list = PieceList::default();
            for (_, piece, digest) in content_pieces(&new) {
                match reuser.find((piece, digest), None) {
                    Some(position) => list.push_reused(position),
                    None => list.push((piece, digest)),
                }
            }
            let mut told = Entry { pieces: list.pieces, piece_digests: list.digests, ..new.clone() };
            expand(&mut told, &list.reuse, &base).expect("it fits");
            prop_assert_eq!(told, new);
        }
    }

    #[test]
    fn a_file_with_one_new_piece_is_told_in_two_runs() {
        let base = file(&(1..=4).map(piece).collect::<Vec<_>>());
        let mut reuser = Reuser::new(&base);
        let mut list = PieceList::default();
        for number in [1, 2, 9, 4] {
            match reuser.find(piece(number), None) {
                Some(position) => list.push_reused(position),
                None => list.push(piece(number)),
            }
        }
        assert_eq!(
            list.reuse,
            [Reuse { after: 0, first: 0, count: 2 }, Reuse { after: 1, first: 3, count: 1 }]
        );
        assert_eq!(list.pieces.len(), 1);
    }

    /// Of pieces with the same content the one that stands in the same place is named, and those behind it are found.
    #[test]
    fn a_piece_in_its_place_comes_before_others_like_it() {
        let base = file(&[1, 2, 1, 5, 1, 3].map(piece));
        let mut reuser = Reuser::new(&base);
        assert_eq!(reuser.find(piece(1), Some(2)), Some(2));
        assert_eq!(reuser.find(piece(5), None), Some(3), "what follows, a hole");
        assert_eq!(reuser.find(piece(1), Some(0)), Some(0));
        assert_eq!(reuser.find(piece(1), Some(99)), Some(4), "no such place");
        let at = |offset| reuser.at(offset).map(|piece| piece.position);
        assert_eq!([at(0), at(2), at(5), at(7)], [Some(0), Some(1), Some(2), None], "a hole is no data");
        assert_eq!([at(3), at(1000)], [None, None], "nothing begins there");
        let second = reuser.at(2).expect("there");
        assert_eq!((second.offset, second.bytes, Some(second.digest)), (2, 3, piece(2).1));
        assert_eq!(reuser.follows().count(), 0, "the last one is left out");
    }

    #[test]
    fn runs_that_make_no_sense_are_refused() {
        let base = file(&[piece(1), piece(2), piece(3)]);
        let run = |after, first, count| Reuse { after, first, count };
        let bombs = vec![run(0, 0, 3); LARGEST_LIST as usize / 3 + 1];
        let cases: [(&str, &[Reuse]); 6] = [
            ("empty", &[run(0, 0, 0)]),
            ("beyond the base", &[run(0, 2, 2)]),
            ("overflow", &[run(0, u64::MAX, 2)]),
            ("after more than there are", &[run(2, 0, 1)]),
            ("out of order", &[run(1, 0, 1), run(0, 0, 1)]),
            ("a bomb", &bombs),
        ];
        for (name, reuse) in cases {
            let mut entry = file(&[piece(7)]);
            (entry.pieces, entry.piece_digests) = (vec![16], ContentDigest::of(&[7]).0.to_vec());
            assert!(expand(&mut entry, reuse, &base).is_err(), "{name} was let through");
        }
    }
}
