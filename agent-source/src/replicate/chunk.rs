//! The content of a piece that has been offered: held, or let go because the target's base has it.
//!
//! Of what an hour's run reads most is in the base. To hold it until the target has looked would bind the budget for a round
//! trip each time, and memory that the next block could be read into while a core still has it in its cache. In the rare case
//! that the target cannot find a piece that was let go (its disk has not kept it), it is read again.

use std::sync::Arc;

use assay_common::{
    confined::Folder,
    digest::ContentDigest,
    fault::{Point, at},
    path::TreePath,
    uncached,
};
use bytes::Bytes;

/// The content of a piece of data.
pub enum Chunk {
    /// In memory.
    Held(Bytes),
    /// Where it was read.
    LetGo(Place),
}

impl Chunk {
    /// The bytes that were offered.
    ///
    /// # Errors
    /// When they are not in the file any more.
    pub fn content(&self) -> Result<Bytes, Changed> {
        match self {
            Self::Held(bytes) => Ok(bytes.clone()),
            Self::LetGo(place) => place.read(),
        }
    }
}

/// A file that pieces can be read from again.
pub struct Origin {
    /// Where it is in the tree.
    pub path: TreePath,
    /// The folder that holds it.
    pub folder: Arc<Folder>,
    /// Its name there.
    pub name: Vec<u8>,
}

/// Where a piece was read, and what it was.
pub struct Place {
    /// The file.
    pub origin: Arc<Origin>,
    /// Where it begins there, in bytes.
    pub offset: u64,
    /// Its length.
    pub bytes: usize,
    /// Its digest, which was offered.
    pub digest: ContentDigest,
}

/// A file no longer has what was read from it and let go, or cannot be read.
#[derive(Debug)]
pub struct Changed(pub TreePath);

impl Place {
    fn read(&self) -> Result<Bytes, Changed> {
        let Origin { path, folder, name } = &*self.origin;
        let mut piece = vec![0; self.bytes];
        let read = at(Point::ReadBlock)
            .and_then(|()| folder.open_file(name))
            .and_then(|file| uncached::read_full_at(&file, &mut piece, self.offset));
        match read {
            Ok(got) if got == self.bytes && ContentDigest::of(&piece) == self.digest => Ok(piece.into()),
            // Why does not matter: it is read anew with all of its file, and that read tells what is wrong with it.
            _ => Err(Changed(path.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_let_go_is_what_it_was_or_nothing() {
        let folder = tempfile::tempdir().expect("temp");
        let file = folder.path().join("file");
        std::fs::write(&file, b"some of it, and the rest").expect("write");
        let origin = Arc::new(Origin {
            path: TreePath::parse(b"root/file").expect("valid"),
            folder: Arc::new(Folder::open(folder.path()).expect("open")),
            name: b"file".to_vec(),
        });
        let chunk =
            Chunk::LetGo(Place { origin, offset: 8, bytes: 11, digest: ContentDigest::of(b"it, and the") });
        assert_eq!(chunk.content().expect("it is there"), &b"it, and the"[..]);
        for other in [&b"some of it, and THE rest"[..], b"some of it, and th", b""] {
            std::fs::write(&file, other).expect("write");
            assert_eq!(chunk.content().expect_err("it is another").0.as_bytes(), b"root/file");
        }
        std::fs::remove_file(&file).expect("remove");
        assert!(chunk.content().is_err());
    }
}
