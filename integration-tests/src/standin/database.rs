//! AccuRev 5 and later, in small: the tables are in a database of their own, `storage/db`, that is read and written only
//! while a database server is up.
//!
//! | documented | guessed, or made up for the stand-in |
//! | --- | --- |
//! | `backup FILE`, an error for `backup mark`; the state of that moment, nothing else | the file's form; an existing file is refused |
//! | `acserverctl dbstart`, `dbstop`; `maintain dbcheck` needs the database up and the server stopped | one process with a lock; that a fresh database is made by `postgresql/bin/initdb` |
//! | `maintain restore FILE ADMIN` by name, `concheck site ADMIN` | their prompts, texts and exit codes; a restore into a database that is not empty is refused |
//! | `server_properties update ADMIN`: password prompt, then y or n | it takes the host of `acserver.cnf`, and only when this host bears it |
//! | dbcheck: schema versions, transaction numbers and element-IDs grow | it reads neither records whole nor containers |
//!
//! ```text
//! storage/db/PG_VERSION          made by initdb
//!            administrator       name and digest of the password
//!            postmaster.pid      its lock is held by the database server
//!            server_properties   HOST:PORT of the server that the repository belongs to
//!            base/N/             the tables of slice N
//! ```

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::layout::{HeldOff, Installation, PidFile, SlicesTable, depot_name};
use super::server::timestamp;
use super::store::{DEPOT_TABLES, SITE_TABLES, ValidSizes, replace, scan};
use super::texts::fill;
use super::{Failure, Outcome};

const PROGRAM: &str = "maintain";
const BACKUP_HEAD: &str = "ACCUREV-STANDIN-BACKUP 5";
const PROPERTIES: &str = "server_properties";

/// The database of an installation.
#[derive(Debug, Clone)]
pub struct Database {
    /// `storage/db`.
    pub dir: PathBuf,
}

impl Database {
    /// Where it is.
    pub fn of(installation: &Installation) -> Self {
        Self { dir: installation.root.join("storage/db") }
    }

    /// The tables of a slice.
    pub fn tables(&self, slice: u32) -> PathBuf {
        self.dir.join("base").join(slice.to_string())
    }

    /// Whether a database server runs on it.
    ///
    /// # Errors
    /// The lock cannot be looked at.
    pub fn is_up(&self) -> io::Result<bool> {
        Ok(matches!(PidFile::hold_off_in(&self.dir, "postmaster.pid")?, HeldOff::Running { .. }))
    }

    /// Fails unless a database server runs.
    pub(super) fn require_up(&self, installation: &Installation, program: &str) -> Result<(), Failure> {
        let texts = &installation.texts;
        let up = self.is_up().map_err(|error| installation.unreadable(program, &self.dir, &error))?;
        let text = || fill(&texts.text.database_down, &[("program", program)]);
        up.then_some(()).ok_or_else(|| Failure { text: text(), exit: texts.exit.database_down })
    }

    /// Makes an empty one.
    ///
    /// # Errors
    /// There is something already, or it cannot be written.
    pub fn init(&self, administrator: &str, password: &str) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        if fs::read_dir(&self.dir)?.next().is_some() {
            return Err(io::Error::other(format!("{} is not empty", self.dir.display())));
        }
        fs::write(self.dir.join("administrator"), credentials(administrator, password))?;
        fs::write(self.dir.join("postmaster.pid"), "")?;
        fs::write(self.dir.join("PG_VERSION"), "9\n")
    }

    /// Says which server the repository belongs to.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn set_identity(&self, host: &str, port: &str) -> io::Result<()> {
        replace(&self.dir.join(PROPERTIES), format!("{host}:{port}\n").as_bytes(), false)
    }

    fn identity(&self) -> io::Result<String> {
        Ok(fs::read_to_string(self.dir.join(PROPERTIES))?.trim_end_matches('\n').to_owned())
    }

    /// Writes everything that is committed now into a new file. The store must stand still meanwhile.
    ///
    /// # Errors
    /// The file is there already, or something cannot be read or written.
    pub fn backup(&self, file: &Path, slices: &[u32], now: u64) -> io::Result<()> {
        let mut out = format!("{BACKUP_HEAD}\ntime {now}\nidentity {}\n", self.identity()?).into_bytes();
        for slice in slices {
            let dir = self.tables(*slice);
            let sizes = ValidSizes::read(&dir.join(ValidSizes::LIVE))?.ok_or(io::ErrorKind::NotFound)?;
            for (name, valid) in &sizes.files {
                let mut bytes = fs::read(dir.join(name))?;
                if (bytes.len() as u64) < *valid {
                    return Err(io::Error::other(format!("{slice}/{name} ends at {}", bytes.len())));
                }
                bytes.truncate(usize::try_from(*valid).map_err(io::Error::other)?);
                put(&mut out, &format!("{slice}/{name}"), &bytes);
            }
            put(&mut out, &format!("{slice}/{}", ValidSizes::LIVE), &fs::read(dir.join(ValidSizes::LIVE))?);
        }
        let end = format!("end {}\n", blake3::hash(&out).to_hex());
        out.extend_from_slice(end.as_bytes());
        let mut new = File::create_new(file)?;
        new.write_all(&out)?;
        new.sync_all()
    }

    /// Puts the content of a backup file into the empty database. `None`: the file is damaged.
    fn restore(&self, backup: &[u8]) -> io::Result<Option<()>> {
        let Some((identity, files)) = unpack(backup) else { return Ok(None) };
        for (name, bytes) in files {
            let path = self.dir.join("base").join(name);
            fs::create_dir_all(path.parent().unwrap_or(&self.dir))?;
            fs::write(path, bytes)?;
        }
        fs::write(self.dir.join(PROPERTIES), format!("{identity}\n"))?;
        Ok(Some(()))
    }
}

fn put(out: &mut Vec<u8>, name: &str, bytes: &[u8]) {
    out.extend_from_slice(format!("file {name} {}\n", bytes.len()).as_bytes());
    out.extend_from_slice(bytes);
}

/// Names and contents.
type Files<'a> = Vec<(String, &'a [u8])>;

/// The identity, and each file with its name.
fn unpack(backup: &[u8]) -> Option<(String, Files<'_>)> {
    let end = backup.len().checked_sub("end ".len() + 64 + 1)?;
    let (body, last) = backup.split_at(end);
    if last != format!("end {}\n", blake3::hash(body).to_hex()).as_bytes() {
        return None;
    }
    let mut rest = body;
    let line = |rest: &mut &[u8]| -> Option<String> {
        let at = rest.iter().position(|byte| *byte == b'\n')?;
        let line = String::from_utf8(rest[..at].to_vec()).ok()?;
        *rest = &rest[at + 1..];
        Some(line)
    };
    (line(&mut rest)? == BACKUP_HEAD).then_some(())?;
    line(&mut rest)?.strip_prefix("time ")?.parse::<u64>().ok()?;
    let identity = line(&mut rest)?.strip_prefix("identity ")?.to_owned();
    let mut files = Vec::new();
    while !rest.is_empty() {
        let head = line(&mut rest)?;
        let (name, length) = head.strip_prefix("file ")?.rsplit_once(' ')?;
        let (bytes, after) = rest.split_at_checked(length.parse().ok()?)?;
        files.push((name.to_owned(), bytes));
        rest = after;
    }
    Some((identity, files))
}

fn credentials(administrator: &str, password: &str) -> String {
    format!("{administrator} {}\n", blake3::hash(password.as_bytes()).to_hex())
}

/// `postgresql/bin/initdb -D DIR -U ADMIN --pwfile=FILE`.
pub fn initdb(installation: &Installation, arguments: &[String]) -> Outcome {
    let texts = &installation.texts;
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    let ["-D", dir, "-U", administrator, password] = words[..] else {
        return Failure { text: texts.text.initdb_usage.clone(), exit: texts.exit.usage }.into();
    };
    let made = (|| {
        let file = password.strip_prefix("--pwfile=").ok_or(io::ErrorKind::InvalidInput)?;
        let text = fs::read_to_string(file)?;
        let password = text.lines().next().unwrap_or_default();
        Database { dir: PathBuf::from(dir) }.init(administrator, password)
    })();
    match made {
        Ok(()) => Outcome::done("Success. You can now start the database server."),
        Err(error) => Failure {
            text: fill(&texts.text.initdb_failed, &[("reason", &error.to_string())]),
            exit: texts.exit.control_failed,
        }
        .into(),
    }
}

/// `accurev_db`: holds the lock until it is told to stop. `ready` is called once it does.
///
/// # Errors
/// There is no database, or another server runs on it.
pub fn serve(installation: &Installation, ready: impl FnOnce(), wait: impl FnOnce()) -> Result<(), Failure> {
    let texts = &installation.texts;
    let database = Database::of(installation);
    let failed = |reason: String| Failure {
        text: fill(&texts.text.database_failed, &[("reason", &reason)]),
        exit: texts.exit.control_failed,
    };
    if !database.dir.join("PG_VERSION").is_file() {
        return Err(failed(format!("{} is not a database directory", database.dir.display())));
    }
    let lock =
        PidFile::claim_in(&database.dir, "postmaster.pid").map_err(|error| failed(error.to_string()))?;
    let lock = lock.ok_or_else(|| failed("another server runs on it".to_owned()))?;
    ready();
    wait();
    PidFile::release(lock).map_err(|error| failed(error.to_string()))
}

/// The commands of `maintain` that only 5 and later has, `dbcheck` among them. Licence and host have been looked at, and
/// no AccuRev server runs.
pub(super) fn maintain(
    installation: &Installation,
    words: &[&str],
    input: &mut dyn io::BufRead,
) -> Result<Outcome, Failure> {
    let database = Database::of(installation);
    database.require_up(installation, PROGRAM)?;
    match words {
        ["restore", file, administrator] => {
            ask_password(installation, &database, administrator, input)?;
            restore(installation, &database, Path::new(file))
        }
        ["server_properties", "update", administrator] => {
            ask_password(installation, &database, administrator, input)?;
            update_properties(installation, &database, input)
        }
        ["concheck", "site", administrator] => {
            ask_password(installation, &database, administrator, input)?;
            require_repository(installation, &database)?;
            Ok(Outcome::done(&installation.texts.text.connection_good))
        }
        _ => dbcheck(installation, &database, words.get(1).copied()),
    }
}

fn ask_password(
    installation: &Installation,
    database: &Database,
    administrator: &str,
    input: &mut dyn io::BufRead,
) -> Result<(), Failure> {
    let texts = &installation.texts;
    let password = prompt(&texts.text.password_prompt, input);
    let path = database.dir.join("administrator");
    let known = fs::read_to_string(&path).map_err(|error| installation.unreadable(PROGRAM, &path, &error))?;
    let fits = known == credentials(administrator, &password);
    let text = || fill(&texts.text.password_wrong, &[("user", administrator)]);
    fits.then_some(()).ok_or_else(|| Failure { text: text(), exit: texts.exit.password_wrong })
}

fn prompt(text: &str, input: &mut dyn io::BufRead) -> String {
    print!("{text}");
    io::stdout().flush().ok();
    let mut line = String::new();
    input.read_line(&mut line).ok();
    println!();
    line.trim_end_matches('\n').to_owned()
}

fn restore(installation: &Installation, database: &Database, file: &Path) -> Result<Outcome, Failure> {
    let texts = &installation.texts;
    let backup = fs::read(file).map_err(|error| installation.unreadable(PROGRAM, file, &error))?;
    if database.dir.join("base").exists() {
        return Err(Failure { text: texts.text.restore_exists.clone(), exit: texts.exit.restore_refused });
    }
    let restored =
        database.restore(&backup).map_err(|error| installation.unreadable(PROGRAM, file, &error))?;
    let shown = file.display().to_string();
    if restored.is_none() {
        let text = fill(&texts.text.restore_damaged, &[("file", &shown)]);
        return Err(Failure { text, exit: texts.exit.problems });
    }
    Ok(Outcome::done(fill(&texts.text.restore_done, &[("file", &shown)])))
}

fn update_properties(
    installation: &Installation,
    database: &Database,
    input: &mut dyn io::BufRead,
) -> Result<Outcome, Failure> {
    let texts = &installation.texts;
    require_repository(installation, database)?;
    let cnf = installation.server_cnf(PROGRAM)?;
    let (host, port) = (cnf.host()?, cnf.port()?);
    let values = [("host", host.as_str()), ("port", port.as_str())];
    if prompt(&fill(&texts.text.properties_prompt, &values), input) != "y" {
        return Err(Failure {
            text: texts.text.properties_refused.clone(),
            exit: texts.exit.restore_refused,
        });
    }
    database
        .set_identity(&host, &port)
        .map_err(|error| installation.unreadable(PROGRAM, &database.dir, &error))?;
    Ok(Outcome::done(fill(&texts.text.properties_done, &values)))
}

fn require_repository(installation: &Installation, database: &Database) -> Result<(), Failure> {
    let texts = &installation.texts;
    let there = database.dir.join("base").is_dir();
    let missing =
        || Failure { text: texts.text.repository_missing.clone(), exit: texts.exit.repository_missing };
    there.then_some(()).ok_or_else(missing)
}

/// Connectivity, schema, and that numbers grow: no more than is documented.
fn dbcheck(
    installation: &Installation,
    database: &Database,
    depot: Option<&str>,
) -> Result<Outcome, Failure> {
    let texts = &installation.texts;
    require_repository(installation, database)?;
    let cnf = installation.server_cnf(PROGRAM)?;
    let wanted = format!("{}:{}", cnf.host()?, cnf.port()?);
    let found =
        database.identity().map_err(|error| installation.unreadable(PROGRAM, &database.dir, &error))?;
    if wanted != found {
        let values = [("recorded", found.as_str()), ("configured", wanted.as_str())];
        return Err(Failure { text: fill(&texts.text.identity_error, &values), exit: texts.exit.host_error });
    }
    let path = cnf.site_slice()?.join(SlicesTable::FILE);
    let table = SlicesTable::read(&path).map_err(|error| installation.unreadable(PROGRAM, &path, &error))?;
    let mut stdout = String::new();
    let (mut problems, mut slices, mut transactions) = (0, 0, 0);
    for (number, location) in &table.slices {
        let name = if *number == 0 { "site".to_owned() } else { depot_name(location) };
        if depot.is_some_and(|wanted| wanted != name) {
            continue;
        }
        slices += 1;
        for table in if *number == 0 { SITE_TABLES } else { DEPOT_TABLES } {
            let path = database.tables(*number).join(format!("{table}.ndb"));
            let bytes = fs::read(&path).map_err(|error| installation.unreadable(PROGRAM, &path, &error))?;
            let mut last = 0;
            for at in scan(&bytes).records {
                if at.transaction <= last {
                    let (transaction, last) = (at.transaction.to_string(), last.to_string());
                    let values = [
                        ("depot", name.as_str()),
                        ("table", table),
                        ("transaction", &transaction),
                        ("last", &last),
                    ];
                    stdout.push_str(&fill(&texts.text.not_monotonic, &values));
                    stdout.push('\n');
                    problems += 1;
                }
                last = at.transaction;
            }
            transactions += if *table == "transaction" { last } else { 0 };
        }
    }
    let values = [
        ("slices", slices.to_string()),
        ("transactions", transactions.to_string()),
        ("problems", problems.to_string()),
        ("time", timestamp(super::server::now())),
    ];
    let values = values.each_ref().map(|(name, value)| (*name, value.as_str()));
    let (line, exit) = match problems {
        0 => (&texts.text.check_5_passed, 0),
        _ => (&texts.text.check_failed, texts.exit.problems),
    };
    stdout.push_str(&fill(line, &values));
    stdout.push('\n');
    Ok(Outcome { stdout, stderr: String::new(), exit })
}
