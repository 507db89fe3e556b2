//! `maintain dbcheck`: looks at the files themselves, inside the marked length, and changes nothing.
//!
//! The order of the checks is documented up to the host name: licence there, host fits, then the data. Between them
//! comes "is a server running on these files". Each has a text and an exit code of its own, because a check that
//! could not do its work has not found damage.
//!
//! Of each slice only what `valid_sizes_backup` covers is looked at: records beyond the mark, and containers that only
//! they name, do not count. Without that file, in any slice, whole files are checked.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::database;
use super::layout::{HeldOff, Installation, PidFile, SlicesTable, depot_name};
use super::server::licence_missing;
use super::store::{
    ContainerRef, DEPOT_TABLES, INDEX_ENTRY_BYTES, Mark, SITE_TABLES, Scan, ValidSizes, container_path,
    index_entry, scan, short_digest,
};
use super::texts::fill;
use super::{Failure, Outcome};

const PROGRAM: &str = "maintain";

/// Runs the command with its arguments.
pub fn run(installation: &Installation, arguments: &[String]) -> Outcome {
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    let checked = match words[..] {
        ["dbcheck"]
        | ["dbcheck", _]
        | ["restore", _, _]
        | ["server_properties", "update", _]
        | ["concheck", "site", _]
            if installation.has_database() =>
        {
            ready(installation).and_then(|held| {
                let done = database::maintain(installation, &words, &mut io::stdin().lock());
                drop(held);
                done
            })
        }
        ["dbcheck"] => dbcheck(installation, None),
        ["dbcheck", depot] if !depot.starts_with('-') => dbcheck(installation, Some(depot)),
        _ => Err(Failure {
            text: installation.texts.text.maintain_usage.clone(),
            exit: installation.texts.exit.usage,
        }),
    };
    checked.unwrap_or_else(Outcome::from)
}

/// Licence, host, and that no server runs; none can start while the result is held.
fn ready(installation: &Installation) -> Result<HeldOff, Failure> {
    let texts = &installation.texts;
    let cnf = installation.server_cnf(PROGRAM)?;
    let site_slice = cnf.site_slice()?;
    check_licence_is_there(installation, &site_slice)?;
    check_host(installation, &cnf.host()?)?;
    let held = PidFile::hold_off(&site_slice)
        .map_err(|error| installation.unreadable(PROGRAM, &site_slice, &error))?;
    if let HeldOff::Running { .. } = held {
        let path = site_slice.display().to_string();
        let values = [("program", PROGRAM), ("path", path.as_str())];
        return Err(Failure {
            text: fill(&texts.text.server_running, &values),
            exit: texts.exit.server_running,
        });
    }
    Ok(held)
}

fn dbcheck(installation: &Installation, depot: Option<&str>) -> Result<Outcome, Failure> {
    let texts = &installation.texts;
    let held = ready(installation)?;
    let site_slice = installation.server_cnf(PROGRAM)?.site_slice()?;
    let table_path = site_slice.join(SlicesTable::FILE);
    let table = SlicesTable::read(&table_path)
        .map_err(|error| installation.unreadable(PROGRAM, &table_path, &error))?;
    let chosen: Vec<_> = table
        .slices
        .iter()
        .filter(|(number, location)| depot.is_none_or(|name| *number != 0 && depot_name(location) == name))
        .collect();
    if let (Some(depot), true) = (depot, chosen.is_empty()) {
        let text = fill(&texts.text.unknown_depot, &[("depot", depot)]);
        return Err(Failure { text, exit: texts.exit.usage });
    }
    let mut report = Report::default();
    for (number, recorded) in chosen {
        let dir = if *number == 0 { site_slice.clone() } else { installation.resolve(recorded) };
        let shown = recorded.strip_prefix(&table.install).unwrap_or(recorded).to_path_buf();
        let mut slice = SliceCheck { dir, shown, number: *number, report: &mut report };
        if let Err(error) = slice.check() {
            report.unreadable.push(error);
        }
    }
    drop(held);
    Ok(report.outcome(installation))
}

fn check_licence_is_there(installation: &Installation, site_slice: &Path) -> Result<(), Failure> {
    let path = site_slice.join(installation.licence());
    match fs::metadata(&path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(licence_missing(installation, PROGRAM, &path))
        }
        Err(error) => Err(installation.unreadable(PROGRAM, &path, &error)),
    }
}

fn check_host(installation: &Installation, configured: &str) -> Result<(), Failure> {
    let names = installation.host_names();
    if names.iter().any(|name| name == configured) {
        return Ok(());
    }
    let texts = &installation.texts;
    let shown = configured.escape_debug().to_string();
    let actual = names.first().map_or("", String::as_str);
    let values = [("program", PROGRAM), ("configured", shown.as_str()), ("actual", actual)];
    Err(Failure { text: fill(&texts.text.host_error, &values), exit: texts.exit.host_error })
}

#[derive(Debug)]
struct Finding {
    file: PathBuf,
    offset: u64,
    transaction: u64,
    problem: String,
}

#[derive(Debug)]
struct Unreadable {
    path: PathBuf,
    error: io::Error,
}

/// What the check saw.
#[derive(Debug, Default)]
struct Report {
    slices: u64,
    transactions: u64,
    containers: u64,
    marks: BTreeSet<Option<u64>>,
    findings: Vec<Finding>,
    unreadable: Vec<Unreadable>,
}

impl Report {
    fn outcome(self, installation: &Installation) -> Outcome {
        let (text, exit) = (&installation.texts.text, &installation.texts.exit);
        let mut stdout = String::new();
        for finding in &self.findings {
            let (file, offset) = (finding.file.display().to_string(), finding.offset.to_string());
            let transaction = finding.transaction.to_string();
            let values = [
                ("file", file.as_str()),
                ("offset", offset.as_str()),
                ("transaction", transaction.as_str()),
                ("problem", finding.problem.as_str()),
            ];
            stdout.push_str(&fill(&text.finding, &values));
            stdout.push('\n');
        }
        let failures = self
            .unreadable
            .iter()
            .map(|at| installation.unreadable(PROGRAM, &at.path, &at.error).text + "\n");
        let stderr: String = failures.collect();
        // Damage that was seen is damage, whatever else could not be read; what was not read is never called good.
        let exit = match (self.findings.is_empty(), self.unreadable.is_empty()) {
            (false, _) => exit.problems,
            (true, false) => exit.unreadable,
            (true, true) => 0,
        };
        if !self.findings.is_empty() {
            stdout.push_str(&fill(&text.check_failed, &[("problems", &self.findings.len().to_string())]));
            stdout.push('\n');
        } else if self.unreadable.is_empty() {
            let (slices, containers) = (self.slices.to_string(), self.containers.to_string());
            let transactions = self.transactions.to_string();
            let values = [
                ("slices", slices.as_str()),
                ("transactions", transactions.as_str()),
                ("containers", containers.as_str()),
            ];
            stdout.push_str(&fill(&text.check_passed, &values));
            stdout.push('\n');
        }
        Outcome { stdout, stderr, exit }
    }
}

/// The check of one slice.
struct SliceCheck<'a> {
    dir: PathBuf,
    /// The slice as messages name it: below the installation, or absolute.
    shown: PathBuf,
    number: u32,
    report: &'a mut Report,
}

impl SliceCheck<'_> {
    fn check(&mut self) -> Result<(), Unreadable> {
        // A slice that is not there was not copied, or is not mounted: nothing is known about its data.
        fs::read_dir(&self.dir).map_err(|error| Unreadable { path: self.dir.clone(), error })?;
        let sizes = self.marked_sizes()?;
        self.compare_mark(sizes.as_ref().and_then(|sizes| sizes.mark));
        let mut known = BTreeMap::new();
        for name in if self.number == 0 { SITE_TABLES } else { DEPOT_TABLES } {
            let scanned = self.check_table(name, sizes.as_ref())?;
            known.insert(*name, scanned);
        }
        if let (Some(Some(elements)), Some(Some(transactions))) =
            (known.get("element"), known.get("transaction"))
        {
            self.compare_tables(elements, transactions);
        }
        if self.number != 0 {
            let counted = known.values().flatten().map(|scan| scan.records.len() as u64).max();
            self.report.transactions += counted.unwrap_or_default();
        }
        self.report.slices += 1;
        Ok(())
    }

    fn find(&mut self, file: &str, offset: u64, transaction: u64, problem: impl Into<String>) {
        let file = self.shown.join(file);
        self.report.findings.push(Finding { file, offset, transaction, problem: problem.into() });
    }

    fn marked_sizes(&mut self) -> Result<Option<ValidSizes>, Unreadable> {
        let path = self.dir.join(ValidSizes::BACKUP);
        match ValidSizes::read(&path) {
            Ok(sizes) if sizes.as_ref().is_none_or(|sizes| sizes.slice == self.number) => Ok(sizes),
            Ok(_) => {
                self.find(ValidSizes::BACKUP, 0, 0, "belongs to another slice");
                Ok(None)
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.find(ValidSizes::BACKUP, 0, 0, "valid sizes are damaged");
                Ok(None)
            }
            Err(error) => Err(Unreadable { path, error }),
        }
    }

    /// All slices bear the same mark, or the copy was made while a mark was being set.
    fn compare_mark(&mut self, mark: Option<Mark>) {
        let number = mark.map(|mark| mark.number);
        self.report.marks.insert(number);
        if let (Some(first), true) = (self.report.marks.first().copied(), self.report.marks.len() > 1) {
            let say = |mark: Option<u64>| mark.map_or("no mark".to_owned(), |mark| format!("mark {mark}"));
            let other = if first == number { self.report.marks.last().copied().flatten() } else { first };
            self.find(
                ValidSizes::BACKUP,
                0,
                0,
                format!("{} here, {} in another slice", say(number), say(other)),
            );
        }
    }

    /// Reads the part of a file that counts; a finding when there is less.
    fn read_valid(&mut self, name: &str, sizes: Option<&ValidSizes>) -> Result<Option<Vec<u8>>, Unreadable> {
        let path = self.dir.join(name);
        let valid = sizes.map(|sizes| sizes.files.get(name).copied().unwrap_or_default());
        let read = File::open(&path).and_then(|file| {
            let mut bytes = Vec::new();
            file.take(valid.unwrap_or(u64::MAX)).read_to_end(&mut bytes)?;
            Ok(bytes)
        });
        match read {
            Ok(bytes) => {
                let length = bytes.len() as u64;
                if let Some(valid) = valid.filter(|valid| length < *valid) {
                    self.find(
                        name,
                        length,
                        0,
                        format!("file ends {} bytes before its marked length", valid - length),
                    );
                }
                Ok(Some(bytes))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.find(name, 0, 0, "file is missing");
                Ok(None)
            }
            Err(error) => Err(Unreadable { path, error }),
        }
    }

    /// Gives the records when all of them could be walked over.
    fn check_table(&mut self, name: &str, sizes: Option<&ValidSizes>) -> Result<Option<Scan>, Unreadable> {
        let file = format!("{name}.ndb");
        let Some(bytes) = self.read_valid(&file, sizes)? else {
            return Ok(None);
        };
        let scanned = scan(&bytes);
        let mut last = 0;
        for at in &scanned.records {
            let offset = at.offset as u64;
            let Some(record) = &at.record else {
                self.find(&file, offset, at.transaction, "checksum mismatch");
                continue;
            };
            if record.transaction <= last {
                self.find(
                    &file,
                    offset,
                    record.transaction,
                    format!("transaction number does not grow after {last}"),
                );
            }
            last = record.transaction;
            if let Some(container) = &record.container {
                self.check_container(container, record.transaction)?;
            }
        }
        if let Some(offset) = scanned.lost_at {
            self.find(&file, offset as u64, last + 1, "no whole record begins here");
        }
        self.check_index(name, &scanned, sizes)?;
        Ok(scanned.lost_at.is_none().then_some(scanned))
    }

    fn check_container(&mut self, container: &ContainerRef, transaction: u64) -> Result<(), Unreadable> {
        let name = container_path(container.number);
        let path = self.dir.join(&name);
        let name = name.display().to_string();
        let content = match fs::read(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.find(&name, 0, transaction, "container file is missing");
                return Ok(());
            }
            Err(error) => return Err(Unreadable { path, error }),
        };
        self.report.containers += 1;
        if content.len() as u64 != container.bytes {
            let problem = format!("container has {} bytes, recorded are {}", content.len(), container.bytes);
            self.find(&name, 0, transaction, problem);
        } else if short_digest(&content) != container.digest {
            self.find(&name, 0, transaction, "container checksum mismatch");
        }
        Ok(())
    }

    /// The index says where each record begins. Inside the mark it has an entry for every record; without a mark it
    /// may lag behind the table. Entries for records that were not reached say nothing.
    fn check_index(
        &mut self,
        name: &str,
        table: &Scan,
        sizes: Option<&ValidSizes>,
    ) -> Result<(), Unreadable> {
        let file = format!("{name}.ndx");
        let Some(bytes) = self.read_valid(&file, sizes)? else {
            return Ok(());
        };
        for (turn, (entry, at)) in bytes.chunks_exact(INDEX_ENTRY_BYTES).zip(&table.records).enumerate() {
            // What the table itself says is wrong is not reported twice.
            let Some(record) = &at.record else { continue };
            if *entry != index_entry(record.transaction, at.offset as u64) {
                self.find(
                    &file,
                    (turn * INDEX_ENTRY_BYTES) as u64,
                    record.transaction,
                    "index does not agree with the table",
                );
            }
        }
        let entries = bytes.len() / INDEX_ENTRY_BYTES;
        if sizes.is_some() && table.lost_at.is_none() && entries < table.records.len() {
            let missing = table.records[entries].transaction;
            self.find(&file, bytes.len() as u64, missing, "index ends before the table");
        }
        Ok(())
    }

    /// Every transaction stands in both tables.
    fn compare_tables(&mut self, elements: &Scan, transactions: &Scan) {
        let numbers = |scan: &Scan| scan.records.iter().map(|at| at.transaction).collect::<BTreeSet<_>>();
        // A number out of a damaged record is no number to search for.
        let damaged = |scan: &Scan| scan.records.iter().any(|at| at.record.is_none());
        if damaged(elements) || damaged(transactions) {
            return;
        }
        let (left, right) = (numbers(elements), numbers(transactions));
        for number in left.difference(&right) {
            self.find("transaction.ndb", 0, *number, "transaction is missing, element.ndb has it");
        }
        for number in right.difference(&left) {
            self.find("element.ndb", 0, *number, "transaction is missing, transaction.ndb has it");
        }
    }
}
