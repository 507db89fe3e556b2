//! `engine sqlite-check`: SQLite's own checks over copied databases, by the SQLite that this program brings.
//!
//! | exit code | what it means |
//! | --- | --- |
//! | 0 | nothing is wrong |
//! | 1 | damage: lines `damage: …` say what |
//! | 10 | the database is of a newer SQLite than this program knows |
//! | 12 | SQLite could not do its work |
//! | 13 | a database that must be there is not |
//! | 14 | a complaint that depends on functions or collations of the application |
//! | 15 | a database that must be looked at is encrypted |
//!
//! A database is opened read-only and unchangeable: no journal, no log and no settings file beside it is read or written, and no
//! extension is loaded. What the rows of `PRAGMA integrity_check` mean stands in `words`; it also calls the checks of full-text
//! and spatial tables. Databases that the configuration does not name are looked at as well; they never decide the outcome.

mod carried;
mod reading;
mod schema;
mod words;

use std::{
    fmt::Write as _,
    fs::{self, OpenOptions},
    io,
    os::unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use assay_common::{
    path::display_bytes,
    sqlite::{SIDE_FILES, WalIndex, is_database, looks_encrypted, may_be_database, read_wal},
};
use rusqlite::{Connection, ErrorCode, OpenFlags, config::DbConfig};
use rustix::fs::OFlags;

use self::{
    carried::{Part, Parts},
    reading::Reading,
    schema::{Own, Schema},
};
use super::report::{self, Report};

/// Rows that break a foreign key and are told, of one database.
const MAX_KEYS: u64 = 100;

/// What to check, and how.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The step
    #[arg(value_enum)]
    step: Step,
    /// The folder that the databases are in
    #[arg(long)]
    root: PathBuf,
    /// Further folders with databases
    #[arg(long, num_args = 0..)]
    further_roots: Vec<PathBuf>,
    /// What a row means that refers to none
    #[arg(long, value_enum, default_value_t = Keys::Report)]
    foreign_keys: Keys,
    /// The scratch folder of the step
    #[arg(long)]
    scratch: Option<PathBuf>,
    /// Read from standard input which results may be carried, and write to the scratch folder which databases passed
    #[arg(long, requires = "scratch")]
    known_parts: bool,
    /// The databases, relative to the folder; * stands for all that are found
    #[arg(required = true)]
    databases: Vec<PathBuf>,
}

/// A step of the check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Step {
    /// `PRAGMA integrity_check`
    Integrity,
    /// `PRAGMA foreign_key_check`
    ForeignKeys,
}

/// What is done about foreign keys. SQLite enforces them only where the application asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Keys {
    /// They are not looked at
    Off,
    /// A row that refers to none is told
    Report,
    /// A row that refers to none is damage
    Fail,
}

/// What kept the check from looking.
#[derive(Debug)]
enum Unable {
    Version(String),
    Checker(String),
    Absent(String),
    Application(String),
    Encrypted(String),
}

impl Unable {
    fn code(&self) -> u8 {
        match self {
            Self::Version(_) => 10,
            Self::Checker(_) => 12,
            Self::Absent(_) => 13,
            Self::Application(_) => 14,
            Self::Encrypted(_) => 15,
        }
    }

    fn message(&self) -> &str {
        match self {
            Self::Version(it) | Self::Checker(it) | Self::Absent(it) => it,
            Self::Application(it) | Self::Encrypted(it) => it,
        }
    }
}

/// Runs the check. Its exit code is that of the table above.
pub fn check(arguments: &Arguments) -> ExitCode {
    let mut report = Report::new();
    match run(arguments, &mut report) {
        _ if report.is_damaged() => {
            report.done("sqlite: damaged");
            ExitCode::from(1)
        }
        Ok(()) => {
            report.done("sqlite: checked");
            ExitCode::SUCCESS
        }
        Err(unable) => {
            report::unable(unable.message());
            ExitCode::from(unable.code())
        }
    }
}

fn run<W: io::Write>(arguments: &Arguments, report: &mut Report<W>) -> Result<(), Unable> {
    let mut parts = arguments.known_parts.then(Parts::read).transpose()?;
    check_databases(arguments, parts.as_mut(), report)?;
    match (parts, &arguments.scratch) {
        (Some(parts), Some(scratch)) => parts.write(scratch),
        _ => Ok(()),
    }
}

/// Checks all databases but those whose results are carried.
fn check_databases<W: io::Write>(
    arguments: &Arguments,
    mut parts: Option<&mut Parts>,
    report: &mut Report<W>,
) -> Result<(), Unable> {
    report.engine(&format!("SQLite {}", rusqlite::version()));
    let first_root = &arguments.root;
    let is_all = arguments.databases.iter().any(|it| it == Path::new("*"));
    let named = arguments.databases.iter().filter(|it| *it != Path::new("*"));
    let shown = |root: &Path, path: &Path| {
        let shown = if root == first_root { path.to_owned() } else { root.join(path) };
        display_bytes(shown.as_os_str().as_bytes())
    };
    let database = |root: &Path, path: &Path| {
        // The target tells the step of files of the first root only.
        let part = parts.as_deref().filter(|_| root == first_root).map(|parts| parts.part(root, path));
        Database { file: root.join(path), shown: shown(root, path), part, keys: arguments.foreign_keys }
    };
    let mut deciding: Vec<_> = named.clone().map(|path| database(first_root, path)).collect();
    let mut others = Vec::new();
    for root in [first_root].into_iter().chain(&arguments.further_roots) {
        let found =
            databases(root).map_err(|error| Unable::Checker(format!("{}: {error}", root.display())))?;
        for path in found.iter().filter(|path| root != first_root || !named.clone().any(|it| it == *path)) {
            if is_all { &mut deciding } else { &mut others }.push(database(root, path));
        }
    }
    if arguments.step != Step::Integrity {
        // The first step says everything about them.
        others.clear();
    }
    let has_any = !deciding.is_empty();
    if let Some(parts) = parts.as_deref_mut() {
        parts.choose(deciding.iter().chain(&others).filter_map(|database| database.part.as_ref()));
        let is_due = |database: &Database| !database.part.as_ref().is_some_and(|part| parts.carries(part));
        deciding.retain(is_due);
        others.retain(is_due);
    }
    let mut record = |part: Option<Part>, is_silent| {
        if let Some((parts, part)) = parts.as_deref_mut().zip(part) {
            parts.record(part, is_silent);
        }
    };
    let mut first = None;
    let mut checked = 0;
    for database in deciding {
        // Every database is looked at, so that damage is found behind one that cannot be.
        let before = report.said();
        match database.check(arguments.step, report) {
            Ok(()) => {
                checked += 1;
                record(database.part, report.said() == before);
            }
            Err(unable) => {
                first.get_or_insert(unable);
            }
        }
    }
    for database in others {
        let mut own = Report::to(Vec::new());
        let why = match database.check(arguments.step, &mut own) {
            Err(unable) => unable.message().to_owned(),
            Ok(()) if own.is_damaged() => own.first_damage(),
            Ok(()) => {
                record(database.part, own.said() == 0);
                report.repeat(&own.into_inner());
                checked += 1;
                continue;
            }
        };
        let why = format!("{why}; name it in vars.databases to have it decide the outcome");
        report.not_covered(&database.shown, &why);
    }
    if arguments.step == Step::Integrity {
        for root in [first_root].into_iter().chain(&arguments.further_roots) {
            let found =
                encrypted(root).map_err(|error| Unable::Checker(format!("{}: {error}", root.display())))?;
            for path in found.iter().filter(|path| root != first_root || !named.clone().any(|it| it == *path))
            {
                let why = "it looks like an encrypted database: it was copied as a file, while its application may have written to it";
                report.not_covered(&shown(root, path), why);
            }
        }
    }
    let kind = if arguments.step == Step::Integrity { "databases" } else { "databases for foreign keys" };
    report.checked(checked, kind);
    if !has_any {
        return Err(Unable::Absent(format!("no database is in {}", first_root.display())));
    }
    first.map_or(Ok(()), Err)
}

/// Endings of names that databases have.
const ENDINGS: [&str; 6] = ["db", "db3", "sqlite", "sqlite3", "sqlitedb", "sqlcipher"];

/// Files that look like encrypted databases: by their names, or by SQLite's own files beside them, and by their content.
fn encrypted(root: &Path) -> io::Result<Vec<PathBuf>> {
    files(root, |path, _| {
        let ending = path.extension().and_then(|it| it.to_str()).map(str::to_ascii_lowercase);
        let has_side_file = SIDE_FILES.iter().any(|side| {
            let mut name = path.as_os_str().to_owned();
            name.push(side);
            Path::new(&name).is_file()
        });
        let may_be = has_side_file || ending.is_some_and(|it| ENDINGS.contains(&it.as_str()));
        Ok(may_be && !is_database(open(path)?)? && looks_encrypted(&open(path)?)?)
    })
}

/// The databases in a folder, by their first bytes, sorted. Links are not followed.
fn databases(root: &Path) -> io::Result<Vec<PathBuf>> {
    files(root, |path, bytes| Ok(may_be_database(bytes) && is_database(open(path)?)?))
}

/// The files in a folder for which this is true, sorted. It gets the path and the length.
fn files(root: &Path, is_wanted: impl Fn(&Path, u64) -> io::Result<bool>) -> io::Result<Vec<PathBuf>> {
    let (mut found, mut folders) = (Vec::new(), vec![PathBuf::new()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder))? {
            let entry = entry?;
            let (path, metadata) = (folder.join(entry.file_name()), entry.metadata()?);
            if metadata.is_dir() {
                folders.push(path);
            } else if metadata.is_file() && is_wanted(&entry.path(), metadata.len())? {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn open(path: &Path) -> io::Result<fs::File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(path)
}

/// One copied database.
struct Database {
    file: PathBuf,
    /// Its path for people: in the first root, relative to that.
    shown: String,
    /// What it is among the parts, if results may be carried.
    part: Option<Part>,
    keys: Keys,
}

impl Database {
    fn check<W: io::Write>(&self, step: Step, report: &mut Report<W>) -> Result<(), Unable> {
        let (shown, file) = (&self.shown, &self.file);
        match fs::symlink_metadata(file) {
            Ok(found) if found.is_file() => {}
            Ok(_) => return Err(Unable::Absent(format!("{shown} is not a regular file"))),
            Err(error) => return Err(Unable::Absent(format!("{shown}: {error}"))),
        }
        if self.has_lost_log(report)? {
            return Ok(());
        }
        let ended = match step {
            Step::Integrity => self.integrity(file, report),
            Step::ForeignKeys => self.foreign_keys(file, report),
        };
        match ended {
            Ok(ended) => ended,
            Err(error) => self.judge(&error, report),
        }
    }

    /// A mark copies a write-ahead log beside its database only when the log has lost something.
    fn has_lost_log<W: io::Write>(&self, report: &mut Report<W>) -> Result<bool, Unable> {
        let mut name = self.file.clone().into_os_string();
        name.push("-wal");
        let log = match open(Path::new(&name)) {
            Ok(log) => log,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(Unable::Checker(format!("{}-wal: {error}", self.shown))),
        };
        let failed = |error: io::Error| Unable::Checker(format!("{}-wal: {error}", self.shown));
        let mut header = [0; 18];
        io::Read::read_exact(&mut open(&self.file).map_err(failed)?, &mut header).map_err(failed)?;
        let page_bytes = match u16::from_be_bytes([header[16], header[17]]) {
            1 => 65536,
            bytes => u32::from(bytes),
        };
        let wal = read_wal(io::BufReader::with_capacity(1 << 20, log), page_bytes).map_err(failed)?;
        // What the users of the live database had agreed on, which the mark copies with such a log.
        let mut name = self.file.clone().into_os_string();
        name.push("-shm");
        let mut index = Vec::new();
        if let Ok(shared) = open(Path::new(&name)) {
            io::Read::read_to_end(&mut io::Read::take(shared, 136), &mut index).map_err(failed)?;
        }
        let index = WalIndex::parse(&index);
        let loss = wal.loss(index.as_ref());
        if loss.is_none() && wal.broken.is_none() {
            let message = format!(
                "{}-wal lies beside the copied database, and no frame in it is damaged; the mark copies no such log, so somebody may have \
                 opened the database in the store",
                self.shown
            );
            return Err(Unable::Checker(message));
        }
        let number = wal.broken.as_ref().map_or(0, |broken| broken.number);
        let loss = loss.unwrap_or_else(|| format!("frame {number} is damaged"));
        report.damage(&format!("{}-wal: {loss}", self.shown));
        Ok(true)
    }

    fn connect(&self, file: &Path) -> rusqlite::Result<Connection> {
        let mut uri = "file:".to_owned();
        for byte in file.as_os_str().as_bytes() {
            if byte.is_ascii_alphanumeric() || b"/-_.".contains(byte) {
                uri.push(char::from(*byte));
            } else {
                let _ = write!(uri, "%{byte:02x}");
            }
        }
        uri.push_str("?immutable=1");
        let flags =
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(uri, flags)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
        connection.execute_batch(
            "pragma cell_size_check = on; pragma temp_store = memory; pragma query_only = on",
        )?;
        Ok(connection)
    }

    fn integrity<W: io::Write>(
        &self,
        file: &Path,
        report: &mut Report<W>,
    ) -> rusqlite::Result<Result<(), Unable>> {
        let connection = self.connect(file)?;
        let schema = Schema::read(&connection)?;
        let mut reading = Reading::new(self, &schema, report);
        match reading.rows(&connection, &format!("pragma integrity_check({})", i32::MAX)) {
            // One table that this program cannot read keeps it from looking at all of them.
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::Unknown) => {
                reading.by_table(&connection)?
            }
            ended => ended?,
        }
        reading.constraints(&connection)?;
        if let Some(unable) = reading.unable {
            return Ok(Err(unable));
        }
        report.checked(schema.tables, "tables");
        report.checked(schema.indexes, "indexes");
        report.checked(schema.modules, "full-text and spatial indexes");
        self.tell_not_covered(&schema, report);
        Ok(Ok(()))
    }

    fn tell_not_covered<W: io::Write>(&self, schema: &Schema, report: &mut Report<W>) {
        let shown = &self.shown;
        for (kind, list) in
            [("index", &schema.dependent_indexes), ("constraints of table", &schema.dependent_tables)]
        {
            for (name, own) in list {
                if let Own::Unknown(what) = own {
                    report.not_covered(
                        &format!("{shown} {kind} {name}"),
                        &format!("it depends on {what} of the application"),
                    );
                }
            }
        }
        for (table, why) in &schema.unreadable {
            report.not_covered(&format!("{shown} table {table}"), why);
        }
        for table in &schema.external_content {
            let why = "nothing compares the index with the content of the other table";
            report.not_covered(&format!("{shown} full-text index {table}"), why);
        }
    }

    fn foreign_keys<W: io::Write>(
        &self,
        file: &Path,
        report: &mut Report<W>,
    ) -> rusqlite::Result<Result<(), Unable>> {
        if self.keys == Keys::Off {
            return Ok(Ok(()));
        }
        let shown = &self.shown;
        let connection = self.connect(file)?;
        Schema::read(&connection)?;
        let mut statement = connection.prepare(
            "select name from sqlite_schema where type = 'table' and exists (select 1 from pragma_foreign_key_list(name))",
        )?;
        let tables = statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()?;
        for table in tables {
            let mut count = 0_u64;
            let mut look = || -> rusqlite::Result<()> {
                let mut statement = connection
                    .prepare("select coalesce(rowid, '?'), parent from pragma_foreign_key_check(?1)")?;
                let mut rows = statement.query([&table])?;
                while let Some(row) = rows.next()? {
                    let rowid: rusqlite::types::Value = row.get(0)?;
                    let rowid = match rowid {
                        rusqlite::types::Value::Integer(rowid) => rowid.to_string(),
                        _ => "?".to_owned(),
                    };
                    let parent: String = row.get(1)?;
                    count += 1;
                    let text =
                        format!("{shown}: {table} row {rowid} refers to {parent}, which has no such row");
                    match self.keys {
                        Keys::Fail if count <= MAX_KEYS => report.damage(&text),
                        Keys::Report if count <= MAX_KEYS => report.note(&text),
                        _ => {}
                    }
                }
                Ok(())
            };
            match look() {
                Ok(()) => {}
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::Unknown) => {
                    report.not_covered(&format!("{shown} foreign keys of {table}"), &text_of(&error));
                    continue;
                }
                Err(error) => return Err(error),
            }
            if count > 0 && self.keys == Keys::Report {
                let why = format!(
                    "{count} rows refer to rows that are not there, which SQLite allows where keys are not enforced; \
                     vars.foreign_keys = \"fail\" makes that FAIL"
                );
                report.not_covered(&format!("{shown} foreign keys of {table}"), &why);
            }
            report.checked(1, "tables with foreign keys");
        }
        Ok(Ok(()))
    }

    /// What an error of SQLite means.
    fn judge<W: io::Write>(&self, error: &rusqlite::Error, report: &mut Report<W>) -> Result<(), Unable> {
        let text = format!("{}: {}", self.shown, text_of(error));
        match error.sqlite_error_code() {
            // Whatever SQLite says: where the header is plain it says that it does not know the format.
            _ if self.looks_encrypted() => Err(Unable::Encrypted(format!(
                "{text}; it looks encrypted, so nothing is known of its content"
            ))),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) if self.is_newer() => {
                Err(Unable::Version(format!(
                    "{text}; a newer SQLite than {} has written it",
                    rusqlite::version()
                )))
            }
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                report.damage(&text);
                Ok(())
            }
            _ => Err(Unable::Checker(text)),
        }
    }

    fn looks_encrypted(&self) -> bool {
        open(&self.file).and_then(|file| looks_encrypted(&file)).unwrap_or(false)
    }

    /// True for a file whose form a newer SQLite has chosen: its version for readers, or a schema that this one cannot read.
    fn is_newer(&self) -> bool {
        let mut header = [0; 100];
        let read = open(&self.file).and_then(|mut file| io::Read::read_exact(&mut file, &mut header));
        let number =
            |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let own = u32::try_from(rusqlite::version_number()).unwrap_or(u32::MAX);
        // A number that no SQLite has is damage.
        read.is_ok()
            && (own + 1..own + 10_000_000).contains(&number(96))
            && header.starts_with(b"SQLite format 3\0")
    }
}

fn text_of(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqliteFailure(_, Some(message)) => message.clone(),
        rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
