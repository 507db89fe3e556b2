//! The digest of a list of pieces.

use assay_common::{digest::ContentDigest, manifest::Piece};

/// The digest of a file's list of pieces, in order: what a manifest says of them is held against what was received.
pub fn piece_list_digest(pieces: impl Iterator<Item = (Piece, Option<ContentDigest>)>) -> [u8; 32] {
    let mut list = blake3::Hasher::new();
    pieces.for_each(|(piece, digest)| add_to_piece_list(&mut list, piece, digest));
    *list.finalize().as_bytes()
}

/// Adds a piece to such a digest.
pub fn add_to_piece_list(list: &mut blake3::Hasher, piece: Piece, digest: Option<ContentDigest>) {
    list.update(&piece.to_wire().to_le_bytes());
    if let Some(digest) = digest {
        list.update(&digest.0);
    }
}
