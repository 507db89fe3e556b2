//! A sparse file, for what its holes cost.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use rand::Rng as _;

use super::data::numbers;

/// A file with a little data far apart, and holes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sparse {
    /// What the data depends on.
    pub seed: u64,
    /// Its length in bytes, 100 MB at least: the holes are to be longer than the data.
    pub bytes: u64,
}

impl Sparse {
    /// Stretches of data.
    const STRETCHES: u64 = 32;
    /// Bytes of each.
    const STRETCH_BYTES: usize = 1 << 20;

    /// Offset and content of each stretch of data. The file begins with one and ends with a hole.
    fn stretches(self) -> impl Iterator<Item = (u64, Vec<u8>)> {
        let apart = self.bytes / Self::STRETCHES;
        (0..Self::STRETCHES).map(move |number| {
            let mut content = vec![0; Self::STRETCH_BYTES];
            numbers(self.seed, "stretch", number).fill(&mut content[..]);
            (number * apart, content)
        })
    }

    /// Makes the file.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn make(self, path: &Path) -> Result<()> {
        let write = || -> io::Result<()> {
            let file = File::create_new(path)?;
            for (offset, content) in self.stretches() {
                file.write_all_at(&content, offset)?;
            }
            file.set_len(self.bytes)
        };
        fs::create_dir_all(path.parent().unwrap_or(path)).with_context(|| path.display().to_string())?;
        write().with_context(|| path.display().to_string())
    }

    /// Looks at a copy: its length, its data, and that nothing but data takes room. To read all of it would take minutes.
    ///
    /// # Errors
    ///
    /// When it is not what was made.
    pub fn verify(self, path: &Path) -> Result<()> {
        let shown = path.display();
        let file = File::open(path).with_context(|| shown.to_string())?;
        let metadata = file.metadata().with_context(|| shown.to_string())?;
        ensure!(metadata.len() == self.bytes, "{shown} has {} bytes", metadata.len());
        let data = Self::STRETCHES * Self::STRETCH_BYTES as u64;
        let taken = metadata.blocks() * 512;
        ensure!(taken < 2 * data, "{shown} takes {taken} bytes of the disk for {data} of data");
        for (offset, content) in self.stretches() {
            let mut read = vec![0; content.len()];
            file.read_exact_at(&mut read, offset).with_context(|| shown.to_string())?;
            ensure!(read == content, "{shown} is another at {offset}");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sparse_file_is_told_from_others() {
        let folder = tempfile::tempdir().expect("temp");
        let (path, sparse) = (folder.path().join("a/b"), Sparse { seed: 1, bytes: 200 << 20 });
        sparse.make(&path).expect("made");
        sparse.verify(&path).expect("as made");
        let file = File::options().write(true).open(&path).expect("open");
        file.write_all_at(b"another", 200 << 19).expect("write");
        assert!(
            sparse.verify(&path).is_err_and(|error| error.to_string().contains("is another at 104857600"))
        );
        file.set_len(1).expect("length");
        assert!(sparse.verify(&path).is_err(), "cut off");
        assert!(sparse.make(&path).is_err(), "it is there");
    }
}
