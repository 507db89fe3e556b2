//! The store: append-only tables with checksums, container files beside them, and the file that says how much counts.
//!
//! A slice (the site slice, or one depot) has for each table `T.ndb` with the records and `T.ndx` with an index, and
//! one `valid_sizes`, replaced by a rename after each transaction: it is the commit. What lies beyond it in a table
//! belongs to a transaction that never ended; a server that starts cuts it off.
//!
//! A transaction is written in this order, so that everything that `valid_sizes` covers is there:
//!
//! 1. the container file, when it has one;
//! 2. a record in every table;
//! 3. an entry in every index;
//! 4. `valid_sizes`.
//!
//! The mark saves `valid_sizes` as `valid_sizes_backup`, flushed, with its number and time. A copy made afterwards
//! holds at least as much, and the check reads no further.
//!
//! A record, in little-endian numbers. The length comes early so that a damaged record can be passed over:
//!
//! | offset | bytes | what |
//! | --- | --- | --- |
//! | 0 | 4 | `NDB4` |
//! | 4 | 4 | length of the whole record |
//! | 8 | 8 | transaction |
//! | 16 | 8 | time, seconds since 1970 |
//! | 24 | 8 | container number, 0 for none |
//! | 32 | 8 | container bytes |
//! | 40 | 16 | start of the container's BLAKE3 digest |
//! | 56 | n | a note |
//! | 56+n | 16 | start of the BLAKE3 digest of everything before |
//!
//! An index entry: transaction, offset of its record, the first 8 bytes of the BLAKE3 digest of both.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::layout::{SlicesTable, depot_name};

const MAGIC: &[u8; 4] = b"NDB4";
const HEADER_BYTES: usize = 56;
const CHECKSUM_BYTES: usize = 16;
/// Far more than any note needs: a length beyond it is no length.
const MAX_RECORD_BYTES: usize = 64 << 10;
/// Size of an index entry.
pub const INDEX_ENTRY_BYTES: usize = 24;
/// Every so many transactions of the repository the site slice gets one too.
const SITE_EVERY: u64 = 16;

/// A reference to a container file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerRef {
    /// Its number, from 1.
    pub number: u64,
    /// Its size.
    pub bytes: u64,
    /// The start of its BLAKE3 digest.
    pub digest: [u8; 16],
}

impl ContainerRef {
    /// Describes a content.
    pub fn new(number: u64, content: &[u8]) -> Self {
        Self { number, bytes: content.len() as u64, digest: short_digest(content) }
    }
}

/// Where a container file lies below its slice: number 123456 is `data/12/34/56.sto`.
pub fn container_path(number: u64) -> PathBuf {
    PathBuf::from(format!("data/{:02}/{:02}/{:02}.sto", number / 10_000, number / 100 % 100, number % 100))
}

/// One record of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The transaction that wrote it: strictly growing within a table.
    pub transaction: u64,
    /// When, in seconds since 1970.
    pub time: u64,
    /// The container file that it brought.
    pub container: Option<ContainerRef>,
    /// What it was about.
    pub note: String,
}

impl Record {
    /// The bytes of the record, with their checksum.
    pub fn encode(&self) -> Vec<u8> {
        let length = HEADER_BYTES + self.note.len() + CHECKSUM_BYTES;
        let none = ContainerRef { number: 0, bytes: 0, digest: [0; 16] };
        let container = self.container.as_ref().unwrap_or(&none);
        let mut out = Vec::with_capacity(length);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&(length as u32).to_le_bytes());
        for number in [self.transaction, self.time, container.number, container.bytes] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&container.digest);
        out.extend_from_slice(self.note.as_bytes());
        out.extend_from_slice(&short_digest(&out));
        out
    }

    /// Reads a whole record; `None` when the checksum does not fit.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, checksum) = bytes.split_at(bytes.len() - CHECKSUM_BYTES);
        let number = number_at(body, 24);
        let digest = body[40..HEADER_BYTES].try_into().ok()?;
        let container = (number != 0).then(|| ContainerRef { number, bytes: number_at(body, 32), digest });
        let note = String::from_utf8_lossy(&body[HEADER_BYTES..]).into_owned();
        let record = Self { transaction: number_at(body, 8), time: number_at(body, 16), container, note };
        (short_digest(body) == checksum).then_some(record)
    }
}

fn number_at(bytes: &[u8], offset: usize) -> u64 {
    bytes[offset..offset + 8].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The first 16 bytes of the BLAKE3 digest.
pub fn short_digest(content: &[u8]) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&blake3::hash(content).as_bytes()[..16]);
    out
}

/// A place in a table where a record stands.
#[derive(Debug, Clone)]
pub struct Located {
    /// Where it begins.
    pub offset: usize,
    /// Its length.
    pub length: usize,
    /// The transaction as it is written there, right or wrong.
    pub transaction: u64,
    /// The record, unless its checksum does not fit.
    pub record: Option<Record>,
}

/// What a walk over a table found.
#[derive(Debug, Default)]
pub struct Scan {
    /// The records in their order.
    pub records: Vec<Located>,
    /// Where the walk had to stop because no record begins there, or none that ends.
    pub lost_at: Option<usize>,
}

/// Walks over the records of a table.
pub fn scan(bytes: &[u8]) -> Scan {
    let mut found = Scan::default();
    let mut offset = 0;
    while offset < bytes.len() {
        let rest = &bytes[offset..];
        let framed = rest.len() >= HEADER_BYTES && rest.starts_with(MAGIC);
        let length =
            if framed { u32::from_le_bytes([rest[4], rest[5], rest[6], rest[7]]) as usize } else { 0 };
        if !(HEADER_BYTES + CHECKSUM_BYTES..=MAX_RECORD_BYTES).contains(&length) || length > rest.len() {
            found.lost_at = Some(offset);
            break;
        }
        let transaction = number_at(rest, 8);
        found.records.push(Located { offset, length, transaction, record: Record::decode(&rest[..length]) });
        offset += length;
    }
    found
}

/// The index entry for a record.
pub fn index_entry(transaction: u64, offset: u64) -> [u8; INDEX_ENTRY_BYTES] {
    let mut out = [0; INDEX_ENTRY_BYTES];
    out[..8].copy_from_slice(&transaction.to_le_bytes());
    out[8..16].copy_from_slice(&offset.to_le_bytes());
    let digest = short_digest(&out[..16]);
    out[16..].copy_from_slice(&digest[..8]);
    out
}

/// A mark: the point that a backup stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Counts from 1.
    pub number: u64,
    /// When, in seconds since 1970.
    pub time: u64,
}

/// How much of each file of a slice counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ValidSizes {
    /// The number of the slice.
    pub slice: u32,
    /// The last transaction.
    pub transaction: u64,
    /// The last container number given away.
    pub container: u64,
    /// The mark, in `valid_sizes_backup`.
    pub mark: Option<Mark>,
    /// Valid length of each table and index file.
    pub files: BTreeMap<String, u64>,
}

impl ValidSizes {
    /// What is committed.
    pub const LIVE: &str = "valid_sizes";
    /// What was committed at the last mark.
    pub const BACKUP: &str = "valid_sizes_backup";

    fn render(&self) -> String {
        let mut out =
            format!("slice {}\ntransaction {}\ncontainer {}\n", self.slice, self.transaction, self.container);
        if let Some(mark) = self.mark {
            out.push_str(&format!("mark {}\ntime {}\n", mark.number, mark.time));
        }
        for (name, bytes) in &self.files {
            out.push_str(&format!("{name} {bytes}\n"));
        }
        out.push_str(&format!("checksum {}\n", blake3::hash(out.as_bytes()).to_hex()));
        out
    }

    fn parse(text: &str) -> Option<Self> {
        let (body, _) = text.split_at(text.rfind("checksum ")?);
        let mut numbers = BTreeMap::new();
        for line in body.lines() {
            let (name, number) = line.split_once(' ')?;
            numbers.insert(name.to_owned(), number.parse::<u64>().ok()?);
        }
        let mut take = |name| numbers.remove(name);
        let slice = take("slice")?.try_into().ok()?;
        let (transaction, container) = (take("transaction")?, take("container")?);
        let mark = take("mark").zip(take("time")).map(|(number, time)| Mark { number, time });
        let read = Self { slice, transaction, container, mark, files: numbers };
        (read.render() == text).then_some(read)
    }

    /// Reads one of the two files; `None` when it is not there.
    ///
    /// # Errors
    /// It cannot be read; [`io::ErrorKind::InvalidData`] when it makes no sense.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Puts a small file in the place of another: a reader sees the one or the other, never a half.
///
/// # Errors
/// It cannot be written or renamed.
pub fn replace(path: &Path, content: &[u8], durable: bool) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    if durable {
        file.sync_all()?;
    }
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(parent) if durable => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

/// The tables of the site slice.
pub const SITE_TABLES: &[&str] = &["user"];
/// The tables of a depot. Each transaction stands in both.
pub const DEPOT_TABLES: &[&str] = &["element", "transaction"];

/// The table that brings the containers, and that damage is done to.
pub const CONTAINER_TABLE: &str = "element";

#[derive(Debug)]
struct Table {
    name: &'static str,
    records: File,
    index: File,
}

impl Table {
    fn records_name(&self) -> String {
        format!("{}.ndb", self.name)
    }

    fn index_name(&self) -> String {
        format!("{}.ndx", self.name)
    }
}

/// One slice, open for writing.
#[derive(Debug)]
pub struct SliceWriter {
    /// The tables.
    dir: PathBuf,
    /// The container files.
    data: PathBuf,
    name: String,
    tables: Vec<Table>,
    sizes: ValidSizes,
}

impl SliceWriter {
    /// Opens the slice, or makes an empty one, and cuts off what was never committed.
    fn open(dir: &Path, data: &Path, slice: u32) -> io::Result<Self> {
        let found = ValidSizes::read(&dir.join(ValidSizes::LIVE))?;
        let mut sizes = found.unwrap_or_else(|| ValidSizes { slice, ..ValidSizes::default() });
        let mut tables = Vec::new();
        for name in if slice == 0 { SITE_TABLES } else { DEPOT_TABLES } {
            let mut open = |file: String| {
                let valid = *sizes.files.entry(file.clone()).or_default();
                let opened = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(dir.join(file))?;
                // A file that is shorter than it should be is left alone: that is damage, and it shall be found.
                if opened.metadata()?.len() > valid {
                    opened.set_len(valid)?;
                }
                io::Result::Ok(opened)
            };
            let (records, index) = (open(format!("{name}.ndb"))?, open(format!("{name}.ndx"))?);
            tables.push(Table { name, records, index });
        }
        Ok(Self { dir: dir.to_path_buf(), data: data.to_path_buf(), name: depot_name(data), tables, sizes })
    }

    /// Writes one transaction, all but the commit.
    fn append(&mut self, time: u64, seed: u64) -> io::Result<u64> {
        let transaction = self.sizes.transaction + 1;
        let mut dice = Dice::new(seed, &self.name, transaction);
        let has_containers = self.tables.iter().any(|table| table.name == CONTAINER_TABLE);
        let container =
            if has_containers && transaction % 3 == 1 { Some(self.add_container(&mut dice)?) } else { None };
        let action = ["keep", "promote", "add", "move", "defunct"][dice.below(5)];
        let note = format!(
            "{action} element {} stream {} by user{:02}",
            dice.below(5000),
            dice.below(40),
            dice.below(25)
        );
        for table in &self.tables {
            let container = container.clone().filter(|_| table.name == CONTAINER_TABLE);
            let bytes = Record { transaction, time, container, note: note.clone() }.encode();
            let end = self.sizes.files.entry(table.records_name()).or_default();
            // Written at the length that counts, not at the end of the file: see `open`.
            table.records.write_all_at(&bytes, *end)?;
            let entry = index_entry(transaction, *end);
            *end += bytes.len() as u64;
            let end = self.sizes.files.entry(table.index_name()).or_default();
            table.index.write_all_at(&entry, *end)?;
            *end += entry.len() as u64;
        }
        self.sizes.transaction = transaction;
        Ok(transaction)
    }

    fn add_container(&mut self, dice: &mut Dice) -> io::Result<ContainerRef> {
        self.sizes.container += 1;
        let content = dice.content();
        let path = self.data.join(container_path(self.sizes.container));
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, &content)?;
        Ok(ContainerRef::new(self.sizes.container, &content))
    }

    fn commit(&self) -> io::Result<()> {
        replace(&self.dir.join(ValidSizes::LIVE), self.sizes.render().as_bytes(), false)
    }

    fn mark(&self, mark: Mark) -> io::Result<()> {
        for table in &self.tables {
            table.records.sync_data()?;
            table.index.sync_data()?;
        }
        let marked = ValidSizes { mark: Some(mark), ..self.sizes.clone() };
        replace(&self.dir.join(ValidSizes::BACKUP), marked.render().as_bytes(), true)
    }
}

/// What one transaction did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Where.
    pub depot: String,
    /// Its number in that depot.
    pub transaction: u64,
}

/// Every slice of an installation, open for writing. Only the server, or who makes the installation, has one.
#[derive(Debug)]
pub struct Repository {
    site: SliceWriter,
    depots: Vec<SliceWriter>,
    seed: u64,
}

impl Repository {
    /// Opens the slices that the table in `site_slice` names, each at the place that `resolve` gives.
    ///
    /// # Errors
    /// A slice cannot be opened.
    pub fn open(site_slice: &Path, resolve: impl Fn(&Path) -> PathBuf, seed: u64) -> anyhow::Result<Self> {
        Self::open_tables(site_slice, resolve, |_, location| location.to_path_buf(), seed)
    }

    /// The same, with the tables of each slice where `tables` says.
    ///
    /// # Errors
    /// A slice cannot be opened.
    pub fn open_tables(
        site_slice: &Path,
        resolve: impl Fn(&Path) -> PathBuf,
        tables: impl Fn(u32, &Path) -> PathBuf,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let table = site_slice.join(SlicesTable::FILE);
        let slices = SlicesTable::read(&table).with_context(|| table.display().to_string())?.slices;
        let open = |(number, location): &(u32, PathBuf)| {
            let dir = if *number == 0 { site_slice.to_path_buf() } else { resolve(location) };
            let tables = tables(*number, &dir);
            fs::create_dir_all(&tables).with_context(|| tables.display().to_string())?;
            SliceWriter::open(&tables, &dir, *number).with_context(|| dir.display().to_string())
        };
        let mut opened = slices.iter().map(open).collect::<anyhow::Result<Vec<_>>>()?;
        let Some(site) = opened.iter().position(|slice| slice.sizes.slice == 0) else {
            bail!("no site slice")
        };
        let site = opened.swap_remove(site);
        opened.sort_by_key(|slice| slice.sizes.slice);
        if opened.is_empty() {
            bail!("no depots");
        }
        Ok(Self { site, depots: opened, seed })
    }

    /// Writes one transaction into the next depot in turn.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn transact(&mut self, time: u64) -> io::Result<Written> {
        let written = self.transact_uncommitted(time)?;
        let turn = self.turn_of(&written);
        self.depots[turn].commit()?;
        self.site.commit()?;
        Ok(written)
    }

    /// Writes many, committing once: for a new installation, which nobody reads yet.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn fill(&mut self, transactions: u64, mut time: impl FnMut(u64) -> u64) -> io::Result<()> {
        for count in 0..transactions {
            self.transact_uncommitted(time(count))?;
        }
        self.depots.iter().try_for_each(SliceWriter::commit)?;
        self.site.commit()
    }

    fn transact_uncommitted(&mut self, time: u64) -> io::Result<Written> {
        let seed = self.seed;
        if self.transactions().is_multiple_of(SITE_EVERY) {
            self.site.append(time, seed)?;
        }
        let Some(depot) = self.depots.iter_mut().min_by_key(|depot| depot.sizes.transaction) else {
            return Err(io::Error::other("no depots"));
        };
        Ok(Written { transaction: depot.append(time, seed)?, depot: depot.name.clone() })
    }

    fn turn_of(&self, written: &Written) -> usize {
        self.depots.iter().position(|depot| depot.name == written.depot).unwrap_or_default()
    }

    /// Sets the next mark in every slice, the site slice last: its mark says that all the others are there.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn mark(&mut self, time: u64) -> io::Result<Mark> {
        let last = ValidSizes::read(&self.site.dir.join(ValidSizes::BACKUP))?.and_then(|sizes| sizes.mark);
        let mark = Mark { number: last.map_or(1, |mark| mark.number + 1), time };
        for slice in self.depots.iter().chain([&self.site]) {
            slice.mark(mark)?;
        }
        Ok(mark)
    }

    /// How many transactions the depots hold.
    pub fn transactions(&self) -> u64 {
        self.depots.iter().map(|depot| depot.sizes.transaction).sum()
    }

    /// The numbers of the slices.
    pub fn slice_numbers(&self) -> Vec<u32> {
        self.depots.iter().chain([&self.site]).map(|slice| slice.sizes.slice).collect()
    }

    /// How many slices there are.
    pub fn slices(&self) -> usize {
        self.depots.len() + 1
    }
}

/// Numbers and contents that depend on nothing but seed, depot and transaction.
struct Dice(blake3::OutputReader);

impl Dice {
    fn new(seed: u64, name: &str, transaction: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).update(&transaction.to_le_bytes()).update(name.as_bytes());
        Self(hasher.finalize_xof())
    }

    fn below(&mut self, limit: usize) -> usize {
        let mut bytes = [0; 4];
        self.0.fill(&mut bytes);
        u32::from_le_bytes(bytes) as usize % limit
    }

    /// A file as a source tree has them: mostly small, now and then empty or large, half of them text.
    fn content(&mut self) -> Vec<u8> {
        let bytes = match self.below(100) {
            0..3 => 0,
            3..80 => 200 + self.below(8 << 10),
            80..98 => 8 << 10 | self.below(56 << 10),
            _ => 256 << 10 | self.below(512 << 10),
        };
        let mut content = vec![0; bytes];
        self.0.fill(&mut content);
        if self.below(2) == 0 {
            let letters = b"etaoin shrdlu\n  {};";
            content.iter_mut().for_each(|byte| *byte = letters[usize::from(*byte) % letters.len()]);
        }
        content
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(transaction: u64) -> Record {
        let container = Some(ContainerRef::new(123_456, b"content"));
        Record { transaction, time: 1, container, note: "keep element 5".into() }
    }

    #[test]
    fn records_read_back() {
        let bytes =
            [record(1).encode(), Record { container: None, note: String::new(), ..record(2) }.encode()]
                .concat();
        let found = scan(&bytes);
        assert_eq!(found.lost_at, None);
        assert_eq!(found.records[0].record, Some(record(1)));
        assert_eq!(found.records[1].record.as_ref().unwrap().container, None);
    }

    #[test]
    fn every_flipped_byte_is_seen() {
        let bytes = [record(1).encode(), record(2).encode()].concat();
        for place in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[place] ^= 0x20;
            let found = scan(&damaged);
            assert!(
                found.lost_at.is_some() || found.records.iter().any(|at| at.record.is_none()),
                "byte {place}"
            );
        }
    }

    #[test]
    fn every_torn_tail_is_seen() {
        let bytes = [record(1).encode(), record(2).encode()].concat();
        let first = record(1).encode().len();
        for length in (1..bytes.len()).filter(|length| *length != first) {
            assert!(scan(&bytes[..length]).lost_at.is_some(), "length {length}");
        }
    }

    #[test]
    fn valid_sizes_notice_any_change() {
        let files = BTreeMap::from([("element.ndb".to_owned(), 8192)]);
        let mark = Some(Mark { number: 3, time: 9 });
        let sizes = ValidSizes { slice: 1, transaction: 12, container: 4, mark, files };
        let text = sizes.render();
        assert_eq!(ValidSizes::parse(&text), Some(sizes));
        assert_eq!(ValidSizes::parse(&text.replace("8192", "8193")), None);
        assert_eq!(ValidSizes::parse(&text[..text.len() - 1]), None);
        assert_eq!(ValidSizes::parse(""), None);
    }

    #[test]
    fn container_numbers_become_paths() {
        assert_eq!(container_path(123_456), Path::new("data/12/34/56.sto"));
        assert_eq!(container_path(7), Path::new("data/00/00/07.sto"));
        assert_eq!(container_path(1_000_000), Path::new("data/100/00/00.sto"));
    }
}
