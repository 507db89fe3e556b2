//! What one entry may say: every length and number that the other side chose is bounded here, before it is used.

use super::{Entry, EntryKind, Piece};
use crate::{
    digest::{ContentDigest, DIGEST_BYTES},
    limits::{
        MAX_CHUNK_BYTES, MAX_FILE_BYTES, MAX_LINK_BYTES, MAX_XATTR_BYTES, MAX_XATTR_NAME_BYTES, MAX_XATTRS,
    },
    path::{PathFault, TreePath, compare_paths, display_short},
};

/// Why an entry is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EntryFault {
    /// The path is none.
    #[error("the path {path:?} {fault}")]
    Path {
        /// The path, made printable.
        path: String,
        /// What is wrong with it.
        fault: PathFault,
    },
    /// Some field breaks a rule of its kind.
    #[error("the entry {path:?} {rule}")]
    Field {
        /// The path, made printable.
        path: String,
        /// The rule.
        rule: &'static str,
    },
}

/// Checks that every field of `entry` is within its bounds and used by its kind only, and returns its path.
///
/// # Errors
/// Names the entry and the rule that it breaks.
pub fn validate_entry(entry: &Entry) -> Result<TreePath, EntryFault> {
    let path = TreePath::parse(&entry.path)
        .map_err(|fault| EntryFault::Path { path: display_short(&entry.path), fault })?;
    match broken_rule(entry) {
        None => Ok(path),
        Some(rule) => Err(EntryFault::Field { path: path.short(), rule }),
    }
}

fn broken_rule(entry: &Entry) -> Option<&'static str> {
    use EntryKind as Kind;
    let kind = entry.kind();
    if kind == Kind::Unspecified {
        return Some("has no kind");
    }
    if entry.mode > 0o7777 {
        return Some("has mode bits beyond 07777");
    }
    if entry.mtime_nanos >= 1_000_000_000 {
        return Some("has a time of more than 999999999 nanoseconds");
    }
    if kind != Kind::File
        && (entry.size != 0
            || !entry.digest.is_empty()
            || !entry.pieces.is_empty()
            || !entry.piece_digests.is_empty()
            || entry.unstable)
    {
        return Some("has content and is not a file");
    }
    if !matches!(kind, Kind::CharDevice | Kind::BlockDevice)
        && (entry.device_major != 0 || entry.device_minor != 0)
    {
        return Some("has a device number and is not a device");
    }
    match kind {
        Kind::Symlink if entry.link_target.is_empty() || entry.link_target.len() > MAX_LINK_BYTES => {
            return Some("is a symbolic link without a text of 1 to 4095 bytes");
        }
        Kind::Symlink if entry.link_target.contains(&0) => return Some("is a symbolic link with a NUL byte"),
        Kind::Hardlink => {
            if TreePath::parse(&entry.link_target).map_or(true, |first| first.is_root())
                || compare_paths(&entry.link_target, &entry.path).is_ge()
            {
                return Some("is a hard link whose first name does not come before it");
            }
            if entry.mode | entry.uid | entry.gid | entry.mtime_nanos != 0
                || entry.mtime_seconds != 0
                || !entry.xattrs.is_empty()
            {
                return Some("is a hard link with metadata of its own");
            }
        }
        Kind::Symlink => {}
        _ if !entry.link_target.is_empty() => return Some("has a link target and is not a link"),
        _ => {}
    }
    broken_xattr_rule(entry).or_else(|| if kind == Kind::File { broken_content_rule(entry) } else { None })
}

fn broken_xattr_rule(entry: &Entry) -> Option<&'static str> {
    if entry.xattrs.len() > MAX_XATTRS {
        return Some("has more than 8192 extended attributes");
    }
    let mut total = 0usize;
    for (index, attribute) in entry.xattrs.iter().enumerate() {
        if attribute.name.is_empty()
            || attribute.name.len() > MAX_XATTR_NAME_BYTES
            || attribute.name.contains(&0)
        {
            return Some("has an extended attribute without a name of 1 to 255 bytes");
        }
        if index > 0 && entry.xattrs[index - 1].name >= attribute.name {
            return Some("has extended attributes that are not sorted by name");
        }
        total = total.saturating_add(attribute.name.len()).saturating_add(attribute.value.len());
    }
    (total > MAX_XATTR_BYTES).then_some("has more than 16 MiB of extended attributes")
}

fn broken_content_rule(entry: &Entry) -> Option<&'static str> {
    if entry.digest.len() != DIGEST_BYTES {
        return Some("has no content digest of 32 bytes");
    }
    if entry.size > MAX_FILE_BYTES {
        return Some("is longer than 16 TiB, and no file may be");
    }
    if entry.pieces.is_empty() {
        if !entry.piece_digests.is_empty() {
            return Some("has digests of pieces and no pieces");
        }
        if entry.size > MAX_CHUNK_BYTES as u64 {
            return Some("is one piece and longer than a chunk may be");
        }
        return None;
    }
    let (mut total, mut data) = (0u64, 0usize);
    for word in &entry.pieces {
        let Some(piece) = Piece::from_wire(*word) else {
            return Some("has an empty piece or a chunk that is too long");
        };
        total = match total.checked_add(piece.bytes()) {
            Some(total) if total <= MAX_FILE_BYTES => total,
            _ => return Some("has pieces that are longer than 16 TiB, and no file may be"),
        };
        data += usize::from(matches!(piece, Piece::Data { .. }));
    }
    if total != entry.size {
        return Some("has pieces that do not add up to its size");
    }
    if entry.piece_digests.len() != data * DIGEST_BYTES {
        return Some("does not have one digest for each piece of data");
    }
    if entry.pieces.len() == 1 && data == 1 {
        return Some("is one piece of data and lists it");
    }
    None
}

/// The pieces of a file with their offsets in bytes, and for data the digests, in order. The entry is a valid FILE.
pub fn content_pieces(entry: &Entry) -> impl Iterator<Item = (u64, Piece, Option<ContentDigest>)> + '_ {
    let single = (entry.pieces.is_empty() && entry.size > 0).then_some(entry.size << 1);
    let digests = if single.is_some() { &entry.digest } else { &entry.piece_digests };
    let mut digests = digests.chunks_exact(DIGEST_BYTES);
    let mut offset = 0;
    single.into_iter().chain(entry.pieces.iter().copied()).filter_map(move |word| {
        let piece = Piece::from_wire(word)?;
        let digest = match piece {
            Piece::Data { .. } => Some(ContentDigest::from_slice(digests.next()?)?),
            Piece::Hole { .. } => None,
        };
        let start = offset;
        offset += piece.bytes();
        Some((start, piece, digest))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Entry {
        Entry {
            path: b"a/b".to_vec(),
            kind: EntryKind::File.into(),
            mode: 0o644,
            size: 3,
            digest: ContentDigest::of(b"abc").0.to_vec(),
            ..Default::default()
        }
    }

    #[test]
    fn each_broken_field_is_refused() {
        assert!(validate_entry(&file()).is_ok());
        type Change = fn(&mut Entry);
        let changes: [(&str, Change); 14] = [
            ("path", |e| e.path = b"../b".to_vec()),
            ("kind", |e| e.kind = 0),
            ("unknown kind", |e| e.kind = 99),
            ("mode", |e| e.mode = 0o10000),
            ("nanos", |e| e.mtime_nanos = 1_000_000_000),
            ("digest", |e| e.digest.truncate(31)),
            ("size", |e| e.size = u64::MAX),
            ("one long piece", |e| e.size = 2 << 20),
            ("empty piece", |e| e.pieces = vec![0, 6]),
            ("sum", |e| (e.pieces, e.piece_digests) = (vec![2, 2], vec![0; 64])),
            ("overflow", |e| e.pieces = vec![u64::MAX, u64::MAX, u64::MAX]),
            ("digest count", |e| (e.pieces, e.piece_digests) = (vec![2, 4], vec![0; 32])),
            ("device", |e| e.device_major = 1),
            ("link", |e| e.link_target = b"a".to_vec()),
        ];
        for (name, change) in changes {
            let mut entry = file();
            change(&mut entry);
            assert!(validate_entry(&entry).is_err(), "{name} was let through");
        }
        let link = |target: &[u8]| Entry {
            path: b"b".to_vec(),
            kind: EntryKind::Hardlink.into(),
            link_target: target.to_vec(),
            ..Default::default()
        };
        assert!(validate_entry(&link(b"a")).is_ok());
        for target in [&b"b"[..], b"c", b"", b"../a", b"/a"] {
            assert!(validate_entry(&link(target)).is_err());
        }
    }

    #[test]
    fn pieces_carry_their_offsets_and_digests() {
        let mut entry = file();
        let single: Vec<_> = content_pieces(&entry).collect();
        assert_eq!(single, [(0, Piece::Data { bytes: 3 }, Some(ContentDigest::of(b"abc")))]);
        entry.size = 10;
        entry.pieces = vec![3 << 1, 5 << 1 | 1, 2 << 1];
        entry.piece_digests = [ContentDigest::of(b"abc").0, ContentDigest::of(b"de").0].concat();
        assert!(validate_entry(&entry).is_ok());
        let offsets: Vec<_> = content_pieces(&entry).map(|(offset, piece, _)| (offset, piece)).collect();
        assert_eq!(
            offsets,
            [(0, Piece::Data { bytes: 3 }), (3, Piece::Hole { bytes: 5 }), (8, Piece::Data { bytes: 2 })]
        );
    }
}
