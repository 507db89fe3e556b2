//! Damage on purpose, for tests and demonstrations. A server may go on writing meanwhile.
//!
//! The place is always in the first half of what is committed (and marked) now, so that every later mark covers it.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

use super::Surroundings;
use super::layout::{HeldOff, Installation, PidFile, SlicesTable};
use super::store::{
    CONTAINER_TABLE, INDEX_ENTRY_BYTES, Located, Record, ValidSizes, container_path, index_entry, scan,
};

/// What to damage, always in the first depot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Damage {
    /// Flip a bit inside a record of a table
    FlipRecord,
    /// Cut a table off in the middle of a record
    TruncateTable,
    /// Remove a container file that a record names
    MissingContainer,
    /// Flip a bit inside a container file
    FlipContainer,
    /// Exchange two transaction numbers, with good checksums and a good index
    NonMonotonic,
    /// Append rubbish beyond the marked length: must NOT be found
    BeyondMark,
}

/// Does it to the installation in `dir`, never to the place that `dir` was copied from, and says what it did.
///
/// # Errors
/// There is nothing to damage, or a file cannot be changed.
pub fn damage(dir: &Path, kind: Damage) -> anyhow::Result<String> {
    let root = dir.canonicalize().with_context(|| dir.display().to_string())?;
    let surroundings = Surroundings { relocate: true, ..Surroundings::default() };
    let installation =
        Installation::open(&root, surroundings).map_err(|failure| anyhow::anyhow!(failure.text))?;
    let site_slice = root.join("storage/site_slice");
    let table = SlicesTable::read(&site_slice.join(SlicesTable::FILE)).context("slices table")?;
    let recorded = table.slices.iter().find(|(number, _)| *number == 1).context("no depot")?.1.clone();
    let depot = installation.resolve(&recorded);
    let target = Target::open(installation.tables(1, &depot), depot)?;
    match kind {
        Damage::FlipRecord => target.flip_record(),
        Damage::TruncateTable => target.truncate_table(),
        Damage::MissingContainer => target.missing_container(),
        Damage::FlipContainer => target.flip_container(),
        Damage::NonMonotonic => target.non_monotonic(),
        Damage::BeyondMark => {
            let running = matches!(PidFile::hold_off(&site_slice)?, HeldOff::Running { .. });
            ensure!(
                target.marked || running,
                "no mark has been set and no server runs: everything would count"
            );
            target.beyond_mark()
        }
    }
}

struct Target {
    /// Where its tables are.
    tables: PathBuf,
    depot: PathBuf,
    /// The records of the first half.
    records: Vec<Located>,
    marked: bool,
}

impl Target {
    fn open(tables: PathBuf, depot: PathBuf) -> anyhow::Result<Self> {
        let read = |name| {
            ValidSizes::read(&tables.join(name)).with_context(|| format!("{name} in {}", tables.display()))
        };
        let (live, marked) = (read(ValidSizes::LIVE)?, read(ValidSizes::BACKUP)?);
        let name = format!("{CONTAINER_TABLE}.ndb");
        let valid =
            [&live, &marked].into_iter().flatten().filter_map(|sizes| sizes.files.get(&name).copied()).min();
        let path = tables.join(&name);
        let mut bytes = fs::read(&path).with_context(|| path.display().to_string())?;
        bytes.truncate(usize::try_from(valid.context("no valid sizes")?)?);
        let mut records = scan(&bytes).records;
        records.truncate(records.len().div_ceil(2));
        ensure!(!records.is_empty(), "{} has no records", path.display());
        Ok(Self { tables, depot, records, marked: marked.is_some() })
    }

    fn table(&self) -> PathBuf {
        self.tables.join(format!("{CONTAINER_TABLE}.ndb"))
    }

    fn middle(&self) -> &Located {
        &self.records[self.records.len() / 2]
    }

    fn flip_record(&self) -> anyhow::Result<String> {
        let at = self.middle();
        // In the note: the framing and the transaction number stay readable.
        let offset = at.offset + at.length - 20;
        flip(&self.table(), offset as u64)?;
        Ok(format!(
            "flipped a bit: {} offset {offset} (transaction {})",
            self.table().display(),
            at.transaction
        ))
    }

    fn truncate_table(&self) -> anyhow::Result<String> {
        let at = self.middle();
        let length = at.offset + at.length / 2;
        OpenOptions::new().write(true).open(self.table())?.set_len(length as u64)?;
        Ok(format!(
            "truncated: {} to {length} bytes (transaction {})",
            self.table().display(),
            at.transaction
        ))
    }

    fn missing_container(&self) -> anyhow::Result<String> {
        let (path, transaction) = self.container()?;
        fs::remove_file(&path).with_context(|| path.display().to_string())?;
        Ok(format!("removed: {} (transaction {transaction})", path.display()))
    }

    fn flip_container(&self) -> anyhow::Result<String> {
        let (path, transaction) = self.container()?;
        let offset = fs::metadata(&path)?.len() / 2;
        flip(&path, offset)?;
        Ok(format!("flipped a bit: {} offset {offset} (transaction {transaction})", path.display()))
    }

    /// A container that is not empty, as near to the middle as there is one.
    fn container(&self) -> anyhow::Result<(PathBuf, u64)> {
        let from_middle = self.records[self.records.len() / 2..].iter().chain(&self.records);
        for record in from_middle.filter_map(|at| at.record.as_ref()) {
            if let Some(container) = record.container.as_ref().filter(|container| container.bytes > 0) {
                return Ok((self.depot.join(container_path(container.number)), record.transaction));
            }
        }
        bail!("no record names a container that is not empty")
    }

    fn non_monotonic(&self) -> anyhow::Result<String> {
        let start = (self.records.len() / 2).min(self.records.len().saturating_sub(2));
        let [first, second] = self.records.get(start..start + 2).context("too few records")? else {
            bail!("too few records");
        };
        let table = OpenOptions::new().write(true).open(self.table())?;
        let index = OpenOptions::new().write(true).open(self.table().with_extension("ndx"))?;
        for (turn, (at, other)) in [(first, second), (second, first)].into_iter().enumerate() {
            let record = at.record.clone().context("the record is damaged already")?;
            let changed = Record { transaction: other.transaction, ..record };
            table.write_all_at(&changed.encode(), at.offset as u64)?;
            let entry = index_entry(changed.transaction, at.offset as u64);
            index.write_all_at(&entry, ((start + turn) * INDEX_ENTRY_BYTES) as u64)?;
        }
        let (table, offset) = (self.table(), second.offset);
        Ok(format!(
            "exchanged transactions {} and {}: {} offset {offset}, checksums and index made good",
            first.transaction,
            second.transaction,
            table.display()
        ))
    }

    fn beyond_mark(&self) -> anyhow::Result<String> {
        let rubbish = [0xA5; 777];
        let mut file = OpenOptions::new().append(true).open(self.table())?;
        let offset = file.metadata()?.len();
        // A server writes at the length that counts, so it overwrites this; it is never part of a mark.
        file.write_all(&rubbish)?;
        Ok(format!(
            "appended {} bytes beyond the mark: {} offset {offset}",
            rubbish.len(),
            self.table().display()
        ))
    }
}

fn flip(path: &Path, offset: u64) -> anyhow::Result<()> {
    let file =
        OpenOptions::new().read(true).write(true).open(path).with_context(|| path.display().to_string())?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset)?;
    file.write_all_at(&[byte[0] ^ 0x10], offset)?;
    Ok(())
}
