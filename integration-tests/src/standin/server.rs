//! `accurev_server`: writes transactions until it is told to stop, and answers the client between them.
//!
//! One thread owns the store. Connections and signals only send it events, so a mark always falls between two
//! transactions. The protocol is one request line (`MARK`, `SLICES`, `INFO`), an answer that begins with a line
//! `OK` or `ERR`, and the end of the connection.
//!
//! A crash loses at most the transaction under way; the next start cuts its traces off (see [`super::store`]).

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::Failure;
use super::database::Database;
use super::layout::{Cnf, Installation, PidFile, SlicesTable};
use super::store::{Repository, replace};
use super::texts::fill;

/// The file that quiesces the server while it is there.
pub const PAUSE_FILE: &str = "acserver.command.pause";
/// Where the server says which port it serves.
pub const PORT_FILE: &str = "server.port";
/// The real one looks once a second; tests wait for it.
const PAUSE_POLL: Duration = Duration::from_millis(100);
/// A client that says nothing shall not keep the others waiting for long.
const CLIENT_PATIENCE: Duration = Duration::from_secs(5);
const LINES_PER_LOG: u32 = 200;
const KEPT_LOGS: usize = 5;
const STATUS_EVERY: u64 = 10;

/// How the server is run.
#[derive(Debug, Clone, Default)]
pub struct ServerOptions {
    /// Transactions a second; 0 writes none.
    pub write_rate: f64,
    /// Stops writing after so many, and goes on serving.
    pub max_transactions: Option<u64>,
}

/// What the owner of the store is told.
#[derive(Debug)]
pub enum Event {
    /// A client asks; the answer goes back whole.
    Request(String, SyncSender<String>),
    /// The end.
    Stop,
}

/// A server that holds the lock and the port, ready to run.
#[derive(Debug)]
pub struct Server {
    repository: Repository,
    database: Option<Database>,
    site_slice: PathBuf,
    options: ServerOptions,
    paused_text: String,
    host: String,
    address: SocketAddr,
    log: Log,
    pid_file: File,
    events: Receiver<Event>,
    sender: SyncSender<Event>,
}

impl Server {
    /// Checks the licence, takes the lock, opens the store and listens. Nothing is written into the depots yet.
    ///
    /// # Errors
    /// Configuration, licence, lock, store or port: each with its own text and exit code.
    pub fn start(installation: &Installation, options: ServerOptions) -> Result<Self, Failure> {
        let texts = &installation.texts;
        let cnf = installation.server_cnf("accurev_server")?;
        let (site_slice, host, port) = (cnf.site_slice()?, cnf.host()?, cnf.port()?);
        check_licence(installation, &site_slice, &host, &port)?;
        let cannot_serve = |reason: String| Failure {
            text: fill(&texts.text.cannot_serve, &[("reason", &reason)]),
            exit: texts.exit.cannot_serve,
        };
        let in_site = |error: io::Error| cannot_serve(format!("{}: {error}", site_slice.display()));
        let Some(pid_file) = PidFile::claim(&site_slice).map_err(in_site)? else {
            let path = site_slice.display().to_string();
            let values = [("program", "accurev_server"), ("path", path.as_str())];
            return Err(Failure {
                text: fill(&texts.text.server_running, &values),
                exit: texts.exit.server_running,
            });
        };
        let wanted = format!("{}:{port}", texts.net.listen);
        let cannot_listen = |error: io::Error| {
            let values = [("address", wanted.as_str()), ("reason", &error.to_string())];
            Failure { text: fill(&texts.text.cannot_listen, &values), exit: texts.exit.cannot_serve }
        };
        let listener = TcpListener::bind(&wanted).map_err(cannot_listen)?;
        let address = listener.local_addr().map_err(cannot_listen)?;
        let database = installation.has_database().then(|| Database::of(installation));
        if let Some(database) = &database {
            database.require_up(installation, "accurev_server")?;
        }
        let tables = |number, location: &Path| installation.tables(number, location);
        let resolve = |path: &Path| installation.resolve(path);
        let repository = Repository::open_tables(&site_slice, resolve, tables, now().as_secs())
            .map_err(|error| cannot_serve(format!("{error:#}")))?;
        let mut log = Log::open(&site_slice.join("logs")).map_err(in_site)?;
        log.line("Server locale is C").map_err(in_site)?;
        log.line(&format!("Stand-in server started on port {}", address.port())).map_err(in_site)?;
        replace(&site_slice.join(PORT_FILE), format!("{}\n", address.port()).as_bytes(), false)
            .map_err(in_site)?;

        let (sender, events) = sync_channel(16);
        let from_clients = sender.clone();
        thread::spawn(move || accept(&listener, &from_clients));
        let paused_text = texts.text.paused.clone();
        Ok(Self {
            repository,
            database,
            site_slice,
            options,
            paused_text,
            host,
            address,
            log,
            pid_file,
            events,
            sender,
        })
    }

    /// The port it serves.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Sends it events, a stop above all.
    pub fn sender(&self) -> SyncSender<Event> {
        self.sender.clone()
    }

    /// Writes and answers until it is told to stop.
    ///
    /// # Errors
    /// A file cannot be written: a store that cannot be trusted is not written any further.
    pub fn run(mut self) -> io::Result<()> {
        let interval =
            (self.options.write_rate > 0.0).then(|| Duration::from_secs_f64(1.0 / self.options.write_rate));
        let mut due = Instant::now();
        let mut written = 0;
        let mut paused = false;
        loop {
            let now_paused = self.site_slice.join(PAUSE_FILE).exists();
            if now_paused != paused {
                paused = now_paused;
                self.log.line(if paused { "paused" } else { "resumed" })?;
            }
            let writing = !paused && self.options.max_transactions.is_none_or(|most| written < most);
            let wait = match interval {
                Some(_) if writing => due.saturating_duration_since(Instant::now()).min(PAUSE_POLL),
                _ => PAUSE_POLL,
            };
            match self.events.recv_timeout(wait) {
                Ok(Event::Request(request, answer)) => {
                    let text = self.answer(&request)?;
                    // The client may have gone: that is its own affair.
                    answer.try_send(text).ok();
                    continue;
                }
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            let Some(interval) = interval.filter(|_| writing && Instant::now() >= due) else {
                continue;
            };
            self.transact()?;
            written += 1;
            // After a pause or a slow disk it goes on at its pace; it does not catch up.
            due = (due + interval).max(Instant::now());
        }
        self.log.line("Stand-in server stopped")?;
        PidFile::release(self.pid_file)?;
        // Wakes the thread that accepts, so that it sees that nobody listens to it any more.
        drop(self.events);
        TcpStream::connect_timeout(&self.address, CLIENT_PATIENCE).ok();
        Ok(())
    }

    fn transact(&mut self) -> io::Result<()> {
        let written = self.repository.transact(now().as_secs())?;
        self.log.line(&format!("transaction {} in depot {}", written.transaction, written.depot))?;
        let transactions = self.repository.transactions();
        if transactions.is_multiple_of(STATUS_EVERY) {
            let status = format!("transactions {transactions}\ntime {}\n", now().as_secs());
            replace(&self.site_slice.join("server.status"), status.as_bytes(), false)?;
        }
        Ok(())
    }

    fn answer(&mut self, request: &str) -> io::Result<String> {
        if self.site_slice.join(PAUSE_FILE).exists() {
            return Ok(format!("ERR {}\n", self.paused_text));
        }
        let request = request.trim_end();
        if let (Some(database), Some(name)) = (&self.database, request.strip_prefix("BACKUP ")) {
            let file = self.site_slice.join("backup").join(name);
            let time = now();
            return Ok(match database.backup(&file, &self.repository.slice_numbers(), time.as_secs()) {
                Ok(()) => format!("OK {}|{}\n", timestamp(time), file.display()),
                Err(error) => format!("ERR {}: {error}\n", file.display()),
            });
        }
        match request {
            "MARK" if self.database.is_none() => {
                let mark = self.repository.mark(now().as_secs())?;
                let (slices, transactions) = (self.repository.slices(), self.repository.transactions());
                self.log.line(&format!("backup mark {}", mark.number))?;
                Ok(format!(
                    "OK {} {} {slices} {transactions}\n",
                    mark.number,
                    timestamp(Duration::from_secs(mark.time))
                ))
            }
            "SLICES" => {
                let mut answer = "OK\nSlice#  Location\n".to_owned();
                for (number, location) in SlicesTable::read(&self.site_slice.join(SlicesTable::FILE))?.slices
                {
                    answer.push_str(&format!("{number:<7} {}\n", location.display()));
                }
                Ok(answer)
            }
            "INFO" => Ok(format!(
                "OK\nServer name:    {}\nPort:           {}\nVersion:        {} (stand-in, not AccuRev)\nSite slice:     {}\n\
                 Transactions:   {}\n",
                self.host,
                self.port(),
                if self.database.is_some() { "5.x" } else { "4.x" },
                self.site_slice.display(),
                self.repository.transactions()
            )),
            other => Ok(format!("ERR unknown request {other:?}\n")),
        }
    }
}

/// Takes one connection after the other until the owner of the store is gone.
fn accept(listener: &TcpListener, owner: &SyncSender<Event>) {
    for connection in listener.incoming() {
        let request = connection.and_then(|stream| {
            stream.set_read_timeout(Some(CLIENT_PATIENCE))?;
            stream.set_write_timeout(Some(CLIENT_PATIENCE))?;
            let mut line = String::new();
            BufReader::new(&stream).take(4096).read_line(&mut line)?;
            Ok((stream, line))
        });
        // A client that breaks off concerns nobody else.
        let Ok((mut stream, line)) = request else { continue };
        let (answer, answered) = sync_channel(1);
        if owner.send(Event::Request(line, answer)).is_err() {
            return;
        }
        if let Ok(text) = answered.recv() {
            stream.write_all(text.as_bytes()).ok();
        }
    }
}

/// The licence is bound to host and port, and the server insists; `maintain` only wants the file to be there.
fn check_licence(
    installation: &Installation,
    site_slice: &Path,
    host: &str,
    port: &str,
) -> Result<(), Failure> {
    let texts = &installation.texts;
    let path = site_slice.join(installation.licence());
    let licence = match Cnf::read(&path) {
        Ok(licence) => licence,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(licence_missing(installation, "accurev_server", &path));
        }
        Err(error) => return Err(installation.unreadable("accurev_server", &path, &error)),
    };
    let part = |key| licence.get(key).unwrap_or("nobody");
    let (licensed, actual) = (format!("{}:{}", part("HOST"), part("PORT")), format!("{host}:{port}"));
    if licensed == actual {
        return Ok(());
    }
    let values = [("licensed", licensed.as_str()), ("actual", actual.as_str())];
    Err(Failure { text: fill(&texts.text.licence_mismatch, &values), exit: texts.exit.licence_mismatch })
}

/// The failure "license file not found".
pub(super) fn licence_missing(installation: &Installation, program: &str, path: &Path) -> Failure {
    let texts = &installation.texts;
    let path = path.display().to_string();
    let values = [("program", program), ("path", path.as_str())];
    Failure { text: fill(&texts.text.licence_missing, &values), exit: texts.exit.licence_missing }
}

/// `logs/acserver.log`, renamed at a start and when it has grown; of the renamed ones only the last few stay.
#[derive(Debug)]
struct Log {
    dir: PathBuf,
    file: File,
    lines: u32,
}

impl Log {
    const FILE: &str = "acserver.log";

    fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        if dir.join(Self::FILE).exists() {
            Self::rotate(dir)?;
        }
        Ok(Self { dir: dir.to_path_buf(), file: Self::create(dir)?, lines: 0 })
    }

    fn create(dir: &Path) -> io::Result<File> {
        OpenOptions::new().create(true).append(true).open(dir.join(Self::FILE))
    }

    fn line(&mut self, text: &str) -> io::Result<()> {
        if self.lines == LINES_PER_LOG {
            Self::rotate(&self.dir)?;
            self.file = Self::create(&self.dir)?;
            self.lines = 0;
        }
        self.lines += 1;
        writeln!(self.file, "{} {text}", timestamp(now()))
    }

    fn rotate(dir: &Path) -> io::Result<()> {
        let stamp = timestamp(now());
        let stamp = stamp.split('.').next().unwrap_or_default().replace(['/', ':', ' '], "-");
        // Two in the same second are told apart by a number.
        let free = (0..)
            .map(|turn| if turn == 0 { String::new() } else { format!("-{turn:03}") })
            .map(|turn| dir.join(format!("acserver-{stamp}{turn}.log")))
            .find(|path| !path.exists());
        if let Some(free) = free {
            fs::rename(dir.join(Self::FILE), free)?;
        }
        let mut old = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("acserver-") {
                old.push(entry.path());
            }
        }
        old.sort();
        old.iter().rev().skip(KEPT_LOGS).try_for_each(fs::remove_file)
    }
}

/// The time since 1970.
pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// As in the documented log line, always in UTC: `2011/12/20 14:33:41.329+00:00`.
pub fn timestamp(time: Duration) -> String {
    let seconds = time.as_secs();
    // Days to a civil date, with years that begin in March: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!(
        "{year:04}/{month:02}/{day:02} {hour:02}:{minute:02}:{second:02}.{:03}+00:00",
        time.subsec_millis()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_the_documented_log_line() {
        assert_eq!(timestamp(Duration::from_millis(1_324_391_621_329)), "2011/12/20 14:33:41.329+00:00");
        assert_eq!(timestamp(Duration::from_secs(951_782_400)), "2000/02/29 00:00:00.000+00:00");
        assert_eq!(timestamp(Duration::ZERO), "1970/01/01 00:00:00.000+00:00");
    }

    #[test]
    fn only_the_last_rotated_logs_stay() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..KEPT_LOGS + 4 {
            Log::open(dir.path()).unwrap().line("x").unwrap();
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), KEPT_LOGS + 1);
    }
}
