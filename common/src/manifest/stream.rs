//! Reading and writing manifests as streams of bytes.

use std::{
    fs::File,
    io::{self, BufReader, Read, Write},
    os::unix::fs::FileExt as _,
};

use prost::Message as _;
use serde::{Deserialize, Serialize};

use super::{Entry, EntryFault};
use crate::{
    digest::{MANIFEST_CONTEXT, RootDigest},
    limits::{MAX_HEADER_BYTES, MAX_RECORD_BYTES},
};

/// First bytes of a manifest; the number is the version of the format.
pub const MAGIC: &[u8] = b"ASSAY-MANIFEST 1\n";

/// What went wrong with a manifest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// Reading or writing failed.
    #[error("the manifest cannot be read or written")]
    Io(#[from] io::Error),
    /// The first bytes are not [`MAGIC`].
    #[error("this is not a manifest of version 1")]
    Magic,
    /// The file ends inside a record.
    #[error("the manifest is cut off inside a record")]
    CutOff,
    /// A record claims to be longer than any may be.
    #[error("the manifest has a record of {bytes} bytes; at most {limit} are allowed")]
    RecordTooLong {
        /// As claimed.
        bytes: u64,
        /// What is allowed.
        limit: usize,
    },
    /// The header is not what it should be.
    #[error("the manifest's header is not understood")]
    Header(#[source] serde_json::Error),
    /// A record is not an entry.
    #[error("the manifest has a record that is not an entry")]
    Record(#[from] prost::DecodeError),
    /// An entry breaks a rule.
    #[error(transparent)]
    Entry(#[from] EntryFault),
}

/// What stands before the entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// The repository's roots.
    pub roots: Vec<Root>,
}

/// One root folder of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    /// Its name in the configuration.
    pub name: String,
    /// Its absolute path on the live host.
    pub live_path: String,
    /// The folder below the tree that holds it; empty when the repository has one root, which then is the tree.
    pub subdirectory: String,
}

impl Header {
    /// As it stands in the file.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a header of strings is always JSON")
    }

    /// Parses what [`Header::to_json`] made and checks the names.
    ///
    /// # Errors
    /// When it is not such JSON, or when a name, path or folder could not stand in a configuration.
    pub fn from_json(text: &str) -> Result<Self, ManifestError> {
        if text.len() > MAX_HEADER_BYTES {
            return Err(ManifestError::RecordTooLong { bytes: text.len() as u64, limit: MAX_HEADER_BYTES });
        }
        let header: Self = serde_json::from_str(text).map_err(ManifestError::Header)?;
        let several = header.roots.len() > 1;
        let sound = !header.roots.is_empty()
            && header.roots.iter().all(|root| {
                root.live_path.starts_with('/')
                    && !root.live_path.contains(['\0', '\n'])
                    && root.live_path.len() < 4096
                    && !root.name.is_empty()
                    && root.name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
                    && root.subdirectory == if several { root.name.as_str() } else { "" }
            });
        if sound {
            Ok(header)
        } else {
            Err(ManifestError::Header(serde::de::Error::custom("a root's name, path or folder is not valid")))
        }
    }
}

/// Bytes that are hashed at a time: single records are much shorter, and hashed at a fifth of the pace.
const HASHED_BYTES: usize = 64 * 1024;

/// The root digest of what has been read or written.
struct Digesting {
    hasher: blake3::Hasher,
    /// What is not hashed yet.
    waiting: Vec<u8>,
}

impl Digesting {
    fn new() -> Self {
        Self { hasher: blake3::Hasher::new_derive_key(MANIFEST_CONTEXT), waiting: Vec::new() }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.waiting.extend_from_slice(bytes);
        if self.waiting.len() >= HASHED_BYTES {
            self.hasher.update(&self.waiting);
            self.waiting.clear();
        }
    }

    fn digest(&self) -> RootDigest {
        RootDigest(*self.hasher.clone().update(&self.waiting).finalize().as_bytes())
    }
}

/// Writes a manifest and computes its root digest on the way.
pub struct ManifestWriter<W> {
    output: W,
    root: Digesting,
    record: Vec<u8>,
    entries: u64,
    position: u64,
}

impl<W: Write> ManifestWriter<W> {
    /// Starts a manifest with this header.
    ///
    /// # Errors
    /// When `output` cannot be written to.
    pub fn create(output: W, header: &Header) -> Result<Self, ManifestError> {
        let root = Digesting::new();
        let mut writer = Self { output, root, record: Vec::new(), entries: 0, position: 0 };
        writer.write_all(MAGIC)?;
        let header = header.to_json();
        let mut length = Vec::new();
        prost::encoding::encode_varint(header.len() as u64, &mut length);
        writer.write_all(&length)?;
        writer.write_all(header.as_bytes())?;
        Ok(writer)
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.root.update(bytes);
        self.position += bytes.len() as u64;
        self.output.write_all(bytes)
    }

    /// Where the next entry's record starts in the file, for [`entry_at`].
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Appends an entry. The caller keeps the order.
    ///
    /// # Errors
    /// When the output cannot be written to.
    pub fn push(&mut self, entry: &Entry) -> Result<(), ManifestError> {
        let mut record = std::mem::take(&mut self.record);
        record.clear();
        entry.encode_length_delimited(&mut record).expect("a vector grows as needed");
        let result = self.write_all(&record);
        self.record = record;
        self.entries += 1;
        Ok(result?)
    }

    /// Ends the manifest and returns the output, the root digest and the number of entries.
    ///
    /// # Errors
    /// When the output cannot be flushed.
    pub fn finish(mut self) -> Result<(W, RootDigest, u64), ManifestError> {
        self.output.flush()?;
        Ok((self.output, self.root.digest(), self.entries))
    }
}

/// Reads a manifest, entry by entry, and computes its root digest on the way. Entries are decoded, not validated.
pub struct ManifestReader<R> {
    input: R,
    root: Digesting,
    header: Header,
    record: Vec<u8>,
}

impl<R: Read> ManifestReader<R> {
    /// Reads the header. `input` should be buffered.
    ///
    /// # Errors
    /// When this is not a manifest of a version that we know.
    pub fn open(mut input: R) -> Result<Self, ManifestError> {
        let mut root = Digesting::new();
        let mut magic = [0; MAGIC.len()];
        read_whole(&mut input, &mut magic)?;
        if magic != MAGIC {
            return Err(ManifestError::Magic);
        }
        root.update(&magic);
        let length = read_length(&mut input, MAX_HEADER_BYTES, &mut |byte| root.update(byte))?
            .ok_or(ManifestError::CutOff)?;
        let mut record = vec![0; length];
        read_whole(&mut input, &mut record)?;
        root.update(&record);
        let text = std::str::from_utf8(&record)
            .map_err(|_| ManifestError::Header(serde::de::Error::custom("it is not UTF-8")))?;
        let header = Header::from_json(text)?;
        Ok(Self { input, root, header, record })
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The next entry, or `None` at the end.
    ///
    /// # Errors
    /// When the file is cut off or a record is not an entry.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ManifestError> {
        let Self { input, root, record, .. } = self;
        read_entry(input, record, &mut |bytes| root.update(bytes))
    }

    /// The root digest of what was read: of the whole manifest once [`ManifestReader::next_entry`] has given `None`.
    pub fn root_digest(&self) -> RootDigest {
        self.root.digest()
    }
}

/// Reads the one entry whose record starts at `position`. It is decoded, not validated.
///
/// # Errors
/// When there is no record of an entry at that place.
pub fn entry_at(manifest: &File, position: u64) -> Result<Entry, ManifestError> {
    let mut input = BufReader::with_capacity(4096, At { file: manifest, position });
    read_entry(&mut input, &mut Vec::new(), &mut |_| {})?.ok_or(ManifestError::CutOff)
}

/// Reads some entries of a manifest, in order: what is near each other is read at once.
pub struct EntryPicker {
    input: BufReader<File>,
    at: u64,
    record: Vec<u8>,
}

impl EntryPicker {
    /// Of the manifest in `file`, which stands at its start.
    pub fn new(file: File) -> Self {
        Self { input: BufReader::with_capacity(256 * 1024, file), at: 0, record: Vec::new() }
    }

    /// The entry whose record starts at `position`, behind those that were read before. It is decoded, not validated.
    ///
    /// # Errors
    /// When there is no record of an entry at that place.
    pub fn entry_at(&mut self, position: u64) -> Result<Entry, ManifestError> {
        let forward = position.checked_sub(self.at).and_then(|forward| i64::try_from(forward).ok());
        self.input.seek_relative(forward.ok_or(ManifestError::CutOff)?)?;
        self.at = position;
        let Self { input, at, record } = self;
        read_entry(input, record, &mut |bytes| *at += bytes.len() as u64)?.ok_or(ManifestError::CutOff)
    }
}

/// A file, read from a position of its own.
struct At<'a> {
    file: &'a File,
    position: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

fn read_whole(input: &mut impl Read, buffer: &mut [u8]) -> Result<(), ManifestError> {
    input.read_exact(buffer).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => ManifestError::CutOff,
        _ => ManifestError::Io(error),
    })
}

/// Reads a record and its entry; `None` at a clean end of the input. `seen` is shown all bytes of it.
fn read_entry(
    input: &mut impl Read,
    record: &mut Vec<u8>,
    seen: &mut impl FnMut(&[u8]),
) -> Result<Option<Entry>, ManifestError> {
    let Some(length) = read_length(input, MAX_RECORD_BYTES, seen)? else {
        return Ok(None);
    };
    // Grown as bytes arrive: a false length costs no memory.
    record.clear();
    if input.take(length as u64).read_to_end(record)? != length {
        return Err(ManifestError::CutOff);
    }
    seen(record);
    Ok(Some(Entry::decode(record.as_slice())?))
}

/// Reads a varint; `None` at a clean end of the input. `seen` is shown its bytes.
fn read_length(
    input: &mut impl Read,
    limit: usize,
    seen: &mut impl FnMut(&[u8]),
) -> Result<Option<usize>, ManifestError> {
    let mut value = 0u64;
    // Five groups of seven bits say more than any record may be long.
    for group in 0..5 {
        let mut byte = [0];
        match input.read_exact(&mut byte) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return if group == 0 { Ok(None) } else { Err(ManifestError::CutOff) };
            }
            Err(error) => return Err(error.into()),
        }
        seen(&byte);
        value |= u64::from(byte[0] & 0x7f) << (7 * group);
        if byte[0] & 0x80 == 0 {
            return match usize::try_from(value) {
                Ok(length) if length <= limit => Ok(Some(length)),
                _ => Err(ManifestError::RecordTooLong { bytes: value, limit }),
            };
        }
    }
    Err(ManifestError::RecordTooLong { bytes: value, limit })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::EntryKind;

    fn header() -> Header {
        Header {
            roots: vec![Root {
                name: "main".into(),
                live_path: "/srv/x".into(),
                subdirectory: String::new(),
            }],
        }
    }

    fn written(names: &[&str]) -> (Vec<u8>, RootDigest) {
        let mut writer = ManifestWriter::create(Vec::new(), &header()).expect("memory");
        for name in names {
            let entry = Entry {
                path: name.as_bytes().to_vec(),
                kind: EntryKind::Directory.into(),
                mode: 0o755,
                ..Default::default()
            };
            writer.push(&entry).expect("memory");
        }
        let (bytes, root, entries) = writer.finish().expect("memory");
        assert_eq!(entries, names.len() as u64);
        (bytes, root)
    }

    #[test]
    fn what_is_written_is_read_with_the_same_root() {
        let (bytes, root) = written(&["", "a", "a/b"]);
        let mut reader = ManifestReader::open(bytes.as_slice()).expect("sound");
        let mut names = Vec::new();
        while let Some(entry) = reader.next_entry().expect("sound") {
            names.push(String::from_utf8(entry.path).expect("ascii"));
        }
        assert_eq!(names, ["", "a", "a/b"]);
        assert_eq!(reader.root_digest(), root);
        assert_eq!(root.0, blake3::derive_key(MANIFEST_CONTEXT, &bytes));
    }

    #[test]
    fn an_entry_is_found_by_its_position() {
        let mut writer = ManifestWriter::create(tempfile::tempfile().expect("temp"), &header()).expect("new");
        let mut positions = Vec::new();
        for name in ["", "a", "b"] {
            positions.push(writer.position());
            writer.push(&Entry { path: name.into(), ..Default::default() }).expect("push");
        }
        let (file, ..) = writer.finish().expect("finish");
        let paths: Vec<_> = positions.iter().map(|at| entry_at(&file, *at).expect("there").path).collect();
        assert_eq!(paths, [&b""[..], b"a", b"b"]);
        assert!(entry_at(&file, 1 << 30).is_err() && entry_at(&file, 3).is_err());
    }

    /// However the records lie in what is hashed and read at a time.
    #[test]
    fn some_entries_are_picked_and_the_root_digest_is_of_all_bytes() {
        let mut writer = ManifestWriter::create(Vec::new(), &header()).expect("new");
        let mut positions = Vec::new();
        for number in 0..20_000u32 {
            let path = format!("{number:06}").repeat(1 + number as usize % 7).into_bytes();
            positions.push((writer.position(), path.clone()));
            writer.push(&Entry { path, ..Default::default() }).expect("push");
        }
        let (bytes, root, _) = writer.finish().expect("finish");
        let expected = blake3::derive_key(MANIFEST_CONTEXT, &bytes);
        assert!(bytes.len() > 2 * HASHED_BYTES && root == RootDigest(expected));
        let mut reader = ManifestReader::open(bytes.as_slice()).expect("sound");
        while reader.next_entry().expect("sound").is_some() {}
        assert_eq!(reader.root_digest(), root);
        for step in [1, 7, 9_000] {
            let mut file = tempfile::tempfile().expect("temp");
            file.write_all(&bytes).expect("write");
            io::Seek::rewind(&mut file).expect("rewind");
            let mut picker = EntryPicker::new(file);
            for (position, path) in positions.iter().step_by(step) {
                assert_eq!(picker.entry_at(*position).expect("there").path, *path);
            }
            assert!(picker.entry_at(positions[0].0).is_err(), "only forward");
            assert!(picker.entry_at(bytes.len() as u64).is_err(), "the end");
        }
    }

    /// A cut-off or edited manifest never has the root digest of the whole one.
    #[test]
    fn every_cut_and_every_flipped_bit_shows() {
        let (bytes, root) = written(&["", "a"]);
        let digest_of = |bytes: &[u8]| -> Result<RootDigest, ManifestError> {
            let mut reader = ManifestReader::open(bytes)?;
            while reader.next_entry()?.is_some() {}
            Ok(reader.root_digest())
        };
        for length in 0..bytes.len() {
            assert!(digest_of(&bytes[..length]).map_or(true, |digest| digest != root), "cut at {length}");
        }
        for position in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[position] ^= 1;
            assert!(digest_of(&changed).map_or(true, |digest| digest != root), "flipped at {position}");
        }
    }

    #[test]
    fn a_false_length_costs_no_memory() {
        let (mut bytes, _) = written(&[]);
        prost::encoding::encode_varint(200 * 1024 * 1024, &mut bytes);
        let mut reader = ManifestReader::open(bytes.as_slice()).expect("sound header");
        assert!(matches!(reader.next_entry(), Err(ManifestError::CutOff)));
        assert!(reader.record.capacity() < 1024 * 1024);
    }
}
