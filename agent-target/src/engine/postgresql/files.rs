//! Files of relations as they lie on the disk, after the server has stopped: their segments, and their pages in order.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use super::page::PAGE_BYTES;

/// Pages that are read at once.
const BATCH: usize = 64;

/// A file of the data directory, in segments.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Segments {
    /// Bytes of each that follows the one before without a gap.
    sizes: Vec<u64>,
    /// The first that lies behind a gap and has content.
    pub(super) behind_gap: Option<u32>,
    blocks_per_segment: u64,
    path: PathBuf,
}

/// Folders that have been listed.
#[derive(Debug, Default)]
pub(super) struct Folders(HashMap<PathBuf, HashMap<String, u64>>);

impl Folders {
    fn list(&mut self, folder: &Path) -> io::Result<&HashMap<String, u64>> {
        if !self.0.contains_key(folder) {
            let mut files = HashMap::new();
            for entry in fs::read_dir(folder)? {
                let entry = entry?;
                if let Ok(name) = entry.file_name().into_string() {
                    files.insert(name, entry.metadata()?.len());
                }
            }
            self.0.insert(folder.to_owned(), files);
        }
        self.0.get(folder).ok_or_else(|| io::Error::other("the folder was not listed"))
    }

    /// The segments of the file at `path`. `None` when there is no such file.
    pub(super) fn segments(&mut self, path: &Path, blocks_per_segment: u64) -> io::Result<Option<Segments>> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let files = self.list(folder)?;
        let Some(first) = files.get(&name) else { return Ok(None) };
        let full = blocks_per_segment * PAGE_BYTES as u64;
        let mut sizes = vec![*first];
        while let (Some(&last), Some(next)) = (sizes.last(), files.get(&format!("{name}.{}", sizes.len()))) {
            if last < full {
                break;
            }
            sizes.push(*next);
        }
        let follows =
            |file: &String| -> Option<u32> { file.strip_prefix(&name)?.strip_prefix('.')?.parse().ok() };
        let behind_gap = files
            .iter()
            .filter(|(_, bytes)| **bytes > 0)
            .filter_map(|(file, _)| follows(file).filter(|number| *number as usize >= sizes.len()))
            .min();
        Ok(Some(Segments { sizes, behind_gap, blocks_per_segment, path: path.to_owned() }))
    }
}

impl Segments {
    /// As many as the server sees: whole pages, up to the first segment that is not full.
    pub(super) fn blocks(&self) -> u64 {
        self.sizes.iter().map(|bytes| bytes / PAGE_BYTES as u64).sum()
    }

    /// Which segment a block is in.
    pub(super) fn segment_of(&self, block: u64) -> u64 {
        block / self.blocks_per_segment
    }

    /// Reads single pages.
    pub(super) fn pages(&self) -> Pages<'_> {
        Pages { segments: self, open: None }
    }

    /// Reads all pages in order.
    pub(super) fn each_page(&self, mut each: impl FnMut(u64, &[u8])) -> io::Result<()> {
        let mut buffer = vec![0; BATCH * PAGE_BYTES];
        let mut number = 0;
        for (segment, bytes) in self.sizes.iter().enumerate() {
            let path = segment_path(&self.path, segment as u64);
            let file = File::open(&path)?;
            let pages = bytes / PAGE_BYTES as u64;
            let mut page = 0;
            while page < pages {
                let batch = (pages - page).min(BATCH as u64) as usize;
                let part = &mut buffer[..batch * PAGE_BYTES];
                file.read_exact_at(part, page * PAGE_BYTES as u64)?;
                for one in part.chunks_exact(PAGE_BYTES) {
                    each(number, one);
                    number += 1;
                }
                page += batch as u64;
            }
        }
        Ok(())
    }
}

/// Reads pages of a file in any order.
pub(super) struct Pages<'a> {
    segments: &'a Segments,
    /// The segment that was read last.
    open: Option<(u64, File)>,
}

impl Pages<'_> {
    pub(super) fn read(&mut self, block: u64, page: &mut [u8]) -> io::Result<()> {
        let segment = self.segments.segment_of(block);
        let file = match self.open.take().filter(|(number, _)| *number == segment) {
            Some((_, file)) => file,
            None => File::open(segment_path(&self.segments.path, segment))?,
        };
        let (_, file) = self.open.insert((segment, file));
        file.read_exact_at(page, block % self.segments.blocks_per_segment * PAGE_BYTES as u64)
    }
}

/// The first segment has no ending.
pub(super) fn segment_path(path: &Path, segment: u64) -> PathBuf {
    if segment == 0 {
        return path.to_owned();
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{segment}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Segments of two pages each.
    #[test]
    fn segments_end_at_the_first_that_is_not_full() {
        let folder = tempfile::tempdir().expect("temp");
        let path = folder.path().join("16384");
        let page = PAGE_BYTES as u64;
        let write = |name: &str, bytes: u64| {
            fs::write(folder.path().join(name), vec![1; usize::try_from(bytes).expect("small")])
                .expect("write");
        };
        let segments =
            || Folders::default().segments(&path, 2).expect("listed").map(|it| (it.blocks(), it.behind_gap));
        assert_eq!(segments(), None);
        write("16384", 2 * page);
        write("163840.1", page);
        write("16384_vm", page);
        assert_eq!(segments(), Some((2, None)));
        write("16384.1", page + 100);
        assert_eq!(segments(), Some((3, None)));
        // Segments that were truncated stay, empty.
        write("16384.2", 0);
        assert_eq!(segments(), Some((3, None)));
        write("16384.2", page);
        assert_eq!(segments(), Some((3, Some(2))));
        fs::remove_file(folder.path().join("16384.1")).expect("remove");
        assert_eq!(segments(), Some((2, Some(2))));
        let found = Folders::default().segments(&path, 2).expect("listed").expect("there");
        let mut read = 0;
        found.each_page(|number, bytes| read += number as usize + bytes.len()).expect("read");
        assert_eq!(read, 1 + 2 * PAGE_BYTES);
    }
}
