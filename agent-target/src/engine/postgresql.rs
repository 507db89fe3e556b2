//! `engine postgresql-check`: starts the copied cluster on a server of its own, and lets PostgreSQL's own tools read it.
//!
//! | exit code | what it means |
//! | --- | --- |
//! | 0 | nothing is wrong |
//! | 1 | damage: lines `damage: …` say what |
//! | 10 | the server's programs are not there, or of another major version |
//! | 11 | the copy's server did not start: lines `server: …` say why |
//! | 12 | a tool could not do its work |
//! | 13 | without a sandbox, links of the copy would lead to live files |
//! | 14 | only indexes are out of order, and the C library here sorts otherwise than the live one's |
//!
//! The copied server must do nothing to the world: no network, no archive, no preloaded library, no worker of an extension or of
//! a subscription. What the copy's own `postgresql.auto.conf` says is overruled on the command line, which is the only place
//! that is stronger; what roles and databases set for themselves is overruled by `PGOPTIONS`.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::mpsc::{Receiver, sync_channel},
    thread,
};

use rustix::process::{Pid, Signal};

use crate::check::sandbox::SCRATCH;

/// What the server says when it accepts connections. `lc_messages` is C.
const READY: &str = "LOG:  database system is ready to accept connections";
/// Each line of the server's log begins so.
const LOG_PREFIX: &str = "server: ";
/// Room for the server's own memory: enough for a check, little enough for any host.
const SHARED_BUFFERS: &str = "128MB";
/// For sessions, over what roles and databases set for themselves.
const SESSION_OPTIONS: &str = "-c session_preload_libraries= -c local_preload_libraries= -c statement_timeout=0 \
     -c lock_timeout=0 -c default_transaction_read_only=off -c search_path=pg_catalog -c role=none";
/// Texts of a tool that could not look, which `pg_amcheck` reports with the exit code of damage.
const NOT_DAMAGE: [&str; 8] = [
    "could not access file",
    "could not load library",
    "could not find function",
    "out of memory",
    "No space left on device",
    "out of shared memory",
    "canceling statement",
    "could not resize shared memory",
];

/// What to check, and where.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The step
    #[arg(value_enum)]
    step: Step,
    /// The copied data directory
    #[arg(long)]
    data: PathBuf,
    /// An empty folder of this step
    #[arg(long)]
    scratch: PathBuf,
    /// Folder of the server's programs; %v stands for the major version
    #[arg(long)]
    programs: String,
    /// A superuser of the cluster
    #[arg(long)]
    superuser: String,
    /// Whether the step is wanted at all
    #[arg(long, value_enum, default_value_t = Wanted::Yes)]
    wanted: Wanted,
}

/// A step of the check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Step {
    /// Starts the server and runs `pg_amcheck`
    Amcheck,
    /// Runs `pg_checksums` where the cluster has checksums
    Checksums,
    /// Starts the server and dumps every database to nowhere
    Dump,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Wanted {
    Yes,
    No,
}

/// Why a check did not find the copy good.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the copy is damaged")]
    Damage,
    #[error("{0}")]
    Version(String),
    #[error("the copy's server did not start: it ended with {0}")]
    NotStarted(String),
    #[error("{0}")]
    Tool(String),
    #[error("{0}: without a sandbox this link of the copy leads to live files")]
    Isolation(String),
    #[error(
        "only indexes are out of order, and the C library here sorts otherwise than the one of the live host; \
         check the copy where that library is the same"
    )]
    Collation,
}

impl End {
    fn code(&self) -> u8 {
        match self {
            Self::Damage => 1,
            Self::Version(_) => 10,
            Self::NotStarted(_) => 11,
            Self::Tool(_) => 12,
            Self::Isolation(_) => 13,
            Self::Collation => 14,
        }
    }
}

fn tool(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> End {
    move |error| End::Tool(format!("{what}: {error}"))
}

/// Runs the step. Its exit code is that of the table above.
pub fn check(arguments: &Arguments) -> ExitCode {
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(end) => {
            eprintln!("{end}");
            ExitCode::from(end.code())
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), End> {
    if arguments.wanted == Wanted::No {
        println!("{}: not asked for", step_name(arguments.step));
        return Ok(());
    }
    let cluster = Cluster::find(arguments)?;
    match arguments.step {
        Step::Amcheck => {
            let server = Server::start(&cluster)?;
            let checked = cluster.amcheck();
            // Stopped before it is judged: the next step needs the pages on the disk.
            let stopped = server.stop();
            checked?;
            stopped?;
            println!("amcheck: no damage found");
        }
        Step::Checksums => cluster.checksums()?,
        Step::Dump => {
            let server = Server::start(&cluster)?;
            let dumped = cluster.dump();
            let stopped = server.stop();
            dumped?;
            stopped?;
            println!("dump: done");
        }
    }
    Ok(())
}

fn step_name(step: Step) -> &'static str {
    match step {
        Step::Amcheck => "amcheck",
        Step::Checksums => "checksums",
        Step::Dump => "dump",
    }
}

/// The copy, and the programs for it.
#[derive(Debug)]
struct Cluster {
    data: PathBuf,
    scratch: PathBuf,
    programs: PathBuf,
    superuser: String,
    major: u32,
    control: String,
}

impl Cluster {
    fn find(arguments: &Arguments) -> Result<Self, End> {
        let file = arguments.data.join("PG_VERSION");
        let text = fs::read_to_string(&file).map_err(tool(file.display()))?;
        let major: u32 = text.trim().parse().map_err(|_| {
            End::Version(format!("{}: a major version was expected: {:?}", file.display(), text.trim()))
        })?;
        let programs = PathBuf::from(arguments.programs.replace("%v", &major.to_string()));
        for name in ["postgres", "pg_controldata", "pg_amcheck", "pg_checksums", "pg_dump", "psql"] {
            if !programs.join(name).is_file() {
                let program = programs.join(name);
                return Err(End::Version(format!(
                    "{} is not there: install PostgreSQL {major} on this host, or set the variable 'programs'",
                    program.display()
                )));
            }
        }
        let said = output(Command::new(programs.join("postgres")).arg("--version"))?;
        if major_of(&said) != Some(major) {
            return Err(End::Version(format!(
                "the copy is of version {major}, the programs: {}",
                said.trim()
            )));
        }
        refuse_links_outside(arguments)?;
        for name in ["standby.signal", "recovery.signal", "recovery.conf"] {
            if arguments.data.join(name).exists() {
                return Err(End::Tool(format!(
                    "{name} is in the copy: it is of a server that follows another"
                )));
            }
        }
        let control = output(Command::new(programs.join("pg_controldata")).arg("-D").arg(&arguments.data))?;
        Ok(Self {
            data: arguments.data.clone(),
            scratch: arguments.scratch.clone(),
            programs,
            superuser: arguments.superuser.clone(),
            major,
            control,
        })
    }

    /// A number that `pg_controldata` shows.
    fn control_number(&self, label: &str) -> Option<u64> {
        let line = self.control.lines().find_map(|line| line.strip_prefix(label)?.strip_prefix(':'))?;
        line.trim().parse().ok()
    }

    fn socket_folder(&self) -> PathBuf {
        self.scratch.join("socket")
    }

    /// A client program of the right version, for the copy's server.
    fn client(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.stdin(Stdio::null());
        command.env("PGHOST", self.socket_folder()).env("PGPORT", "5432").env("PGUSER", &self.superuser);
        command.env("PGCONNECT_TIMEOUT", "60").env("PGAPPNAME", "assay").env_remove("PGDATABASE");
        let triggers = if self.major >= 17 { " -c event_triggers=off" } else { "" };
        command.env("PGOPTIONS", format!("{SESSION_OPTIONS}{triggers}"));
        command
    }

    fn amcheck(&self) -> Result<(), End> {
        let mut command = self.client("pg_amcheck");
        command.args(["--all", "--install-missing", "--heapallindexed", "--parent-check", "--jobs=2"]);
        let mut child = command.stdout(Stdio::piped()).spawn().map_err(tool("pg_amcheck"))?;
        let stdout = child.stdout.take().ok_or_else(|| End::Tool("pg_amcheck has no output".to_owned()))?;
        let mut reports = Reports::default();
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.map_err(tool("pg_amcheck"))?;
            if let Some(report) = reports.line(&String::from_utf8_lossy(&line)) {
                report.print();
            }
        }
        if let Some(report) = reports.end() {
            report.print();
        }
        let status = child.wait().map_err(tool("pg_amcheck"))?;
        match status.code() {
            Some(0) if reports.damaged == 0 && reports.not_looked == 0 => Ok(()),
            // Damage counts, even where something else could not be looked at.
            Some(2) if reports.damaged > 0 => {
                if reports.only_order && self.sorts_otherwise()? {
                    Err(End::Collation)
                } else {
                    Err(End::Damage)
                }
            }
            Some(2) => Err(End::Tool("pg_amcheck could not look at everything".to_owned())),
            _ => Err(End::Tool(format!("pg_amcheck ended with {status}"))),
        }
    }

    /// True when a database was last sorted by another version of the C library than there is here.
    fn sorts_otherwise(&self) -> Result<bool, End> {
        if self.major < 15 {
            // It does not keep the version.
            return Ok(false);
        }
        let query = "SELECT count(*) FROM pg_database WHERE datcollversion IS NOT NULL \
             AND datcollversion IS DISTINCT FROM pg_database_collation_actual_version(oid)";
        Ok(self.query(query)?.trim() != "0")
    }

    fn query(&self, query: &str) -> Result<String, End> {
        output(self.client("psql").args([
            "-X",
            "-A",
            "-t",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            "template1",
            "-c",
            query,
        ]))
    }

    fn checksums(&self) -> Result<(), End> {
        match self.control_number("Data page checksum version") {
            Some(0) => {
                println!("checksums: not enabled in this cluster");
                return Ok(());
            }
            Some(_) => {}
            None => {
                return Err(End::Tool("pg_controldata does not say whether there are checksums".to_owned()));
            }
        }
        let mut command = Command::new(self.programs.join("pg_checksums"));
        command.args(["--check", "-D"]).arg(&self.data).stdin(Stdio::null());
        let done = command.output().map_err(tool("pg_checksums"))?;
        let (out, errors) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        print!("{out}");
        eprint!("{errors}");
        let bad =
            out.lines().find_map(|line| line.strip_prefix("Bad checksums:")?.trim().parse::<u64>().ok());
        for line in errors.lines().filter(|line| line.contains("checksum verification failed")) {
            println!("damage: {}", line.trim_start_matches("pg_checksums: error: "));
        }
        match (bad, done.status.code()) {
            (Some(0), Some(0)) => {
                println!("checksums: all good");
                Ok(())
            }
            (Some(bad), _) if bad > 0 => Err(End::Damage),
            _ => Err(End::Tool(format!("pg_checksums ended with {}", done.status))),
        }
    }

    fn dump(&self) -> Result<(), End> {
        let names = self.query("SELECT datname FROM pg_database WHERE datallowconn ORDER BY 1")?;
        for name in names.lines() {
            println!("dump: database {name}");
            // As a connection string, a name with '=' in it would be something else.
            let quoted = name.replace('\\', r"\\").replace('\'', r"\'");
            let mut command = self.client("pg_dump");
            command.args(["--file", "/dev/null", "--dbname", &format!("dbname='{quoted}'")]);
            let status = command.status().map_err(tool("pg_dump"))?;
            if !status.success() {
                return Err(End::Tool(format!("pg_dump of the database {name:?} ended with {status}")));
            }
        }
        Ok(())
    }

    /// The server's command line. Named here is what could reach out, what could hide damage, and what the copy's recovery needs.
    fn server_settings(&self) -> Vec<String> {
        let scratch = |name: &str| self.scratch.join(name).display().to_string();
        let least = |label: &str, least: u64| self.control_number(label).unwrap_or(0).max(least).to_string();
        let mut settings: Vec<(&str, String)> = vec![
            ("config_file", scratch("postgresql.conf")),
            ("hba_file", scratch("pg_hba.conf")),
            ("ident_file", scratch("pg_ident.conf")),
            ("external_pid_file", String::new()),
            ("unix_socket_directories", quoted(&self.socket_folder().display().to_string())),
            ("shared_buffers", SHARED_BUFFERS.to_owned()),
            // Prepared transactions of the copy come back only when there is room for them.
            ("max_prepared_transactions", least("max_prepared_xacts setting", 0)),
            ("max_locks_per_transaction", least("max_locks_per_xact setting", 64)),
            ("log_line_prefix", LOG_PREFIX.to_owned()),
        ];
        let fixed = [
            ("listen_addresses", ""),
            ("port", "5432"),
            ("unix_socket_group", ""),
            ("unix_socket_permissions", "0700"),
            ("ssl", "off"),
            ("bonjour", "off"),
            ("archive_mode", "off"),
            ("archive_command", "/bin/false"),
            ("restore_command", ""),
            ("archive_cleanup_command", ""),
            ("recovery_end_command", ""),
            ("primary_conninfo", ""),
            ("recovery_target", ""),
            ("recovery_target_lsn", ""),
            ("recovery_target_name", ""),
            ("recovery_target_time", ""),
            ("recovery_target_xid", ""),
            ("synchronous_standby_names", ""),
            ("shared_preload_libraries", ""),
            ("session_preload_libraries", ""),
            ("local_preload_libraries", ""),
            ("max_logical_replication_workers", "0"),
            ("max_wal_senders", "0"),
            ("wal_level", "replica"),
            ("autovacuum", "off"),
            ("event_source", "PostgreSQL"),
            ("zero_damaged_pages", "off"),
            ("ignore_checksum_failure", "off"),
            ("ignore_invalid_pages", "off"),
            ("ignore_system_indexes", "off"),
            ("fsync", "off"),
            ("huge_pages", "off"),
            ("jit", "off"),
            ("max_connections", "20"),
            ("temp_tablespaces", ""),
            ("logging_collector", "off"),
            ("log_destination", "stderr"),
            ("log_min_messages", "warning"),
            ("log_min_error_statement", "panic"),
            ("log_statement", "none"),
            ("log_connections", "off"),
            ("log_disconnections", "off"),
            ("lc_messages", "C"),
        ];
        settings.extend(fixed.map(|(name, value)| (name, value.to_owned())));
        if self.major >= 15 {
            settings.push(("archive_library", String::new()));
        }
        settings.into_iter().flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]).collect()
    }
}

/// A list setting splits at commas and blanks, but not within double quotes.
fn quoted(path: &str) -> String {
    format!("\"{}\"", path.replace('"', "\"\""))
}

/// From `postgres (PostgreSQL) 15.8 (Debian …)`, `17beta1` and the like.
fn major_of(version: &str) -> Option<u32> {
    let number = version.split_once(") ")?.1;
    number.split(|it: char| !it.is_ascii_digit()).next()?.parse().ok()
}

/// In the sandbox a link leads to a copied root or to nothing. Without one it leads wherever it does on this host, and a server that
/// recovers there writes there.
fn refuse_links_outside(arguments: &Arguments) -> Result<(), End> {
    if arguments.scratch == Path::new(SCRATCH) {
        return Ok(());
    }
    let spaces = arguments.data.join("pg_tblspc");
    let links = fs::read_dir(&spaces).map_err(tool(spaces.display()))?;
    let mut links = links.collect::<io::Result<Vec<_>>>().map_err(tool(spaces.display()))?;
    links.retain(|link| link.file_type().map_or(true, |kind| kind.is_symlink()));
    let wal = arguments.data.join("pg_wal");
    let found = links.first().map(fs::DirEntry::path).or_else(|| wal.is_symlink().then_some(wal));
    match found {
        Some(path) => Err(End::Isolation(path.display().to_string())),
        // The server makes its links anew from the map.
        None if arguments.data.join("tablespace_map").exists() => {
            Err(End::Isolation("tablespace_map".into()))
        }
        None => Ok(()),
    }
}

/// Standard output of a command that must succeed.
fn output(command: &mut Command) -> Result<String, End> {
    let program = command.get_program().to_string_lossy().into_owned();
    let done = command.env("LC_ALL", "C").stdin(Stdio::null()).output().map_err(tool(&program))?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    eprint!("{}", String::from_utf8_lossy(&done.stderr));
    Err(End::Tool(format!("{program} ended with {}", done.status)))
}

/// What `pg_amcheck` prints: a line that names a relation, then indented lines that say what is wrong with it.
#[derive(Debug)]
struct Reports {
    head: String,
    body: Vec<String>,
    damaged: u64,
    not_looked: u64,
    /// So far every damage was an index whose entries are in another order than expected.
    only_order: bool,
}

impl Default for Reports {
    fn default() -> Self {
        Self { head: String::new(), body: Vec::new(), damaged: 0, not_looked: 0, only_order: true }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Report {
    Damage(String),
    NotLooked(String),
}

impl Report {
    fn print(&self) {
        match self {
            Self::Damage(text) => println!("damage: {text}"),
            Self::NotLooked(text) => println!("not checked: {text}"),
        }
    }
}

impl Reports {
    fn line(&mut self, line: &str) -> Option<Report> {
        if line.starts_with(char::is_whitespace) {
            self.body.push(line.trim().to_owned());
            return None;
        }
        let before = self.end();
        line.clone_into(&mut self.head);
        before
    }

    fn end(&mut self) -> Option<Report> {
        let (head, body) = (std::mem::take(&mut self.head), std::mem::take(&mut self.body).join(" "));
        if head.trim().is_empty() && body.is_empty() {
            return None;
        }
        let text = format!("{} {body}", head.trim_end());
        if NOT_DAMAGE.iter().any(|words| body.contains(words)) {
            self.not_looked += 1;
            return Some(Report::NotLooked(text));
        }
        self.damaged += 1;
        // "item order" within a page, "high key" and "cross page" between pages; a heap row that is not found is found by its key.
        let order = ["invariant violated for index", "lacks matching index tuple"];
        self.only_order &= head.starts_with("btree index") && order.iter().any(|words| body.contains(words));
        Some(Report::Damage(text))
    }
}

/// The copy's server. Dropped without `stop` it is killed.
struct Server {
    child: Child,
    log: Option<thread::JoinHandle<()>>,
}

impl Server {
    /// Starts it and waits until it has recovered and accepts connections. The step's time limit is the limit.
    fn start(cluster: &Cluster) -> Result<Self, End> {
        let write = |name: &str, text: &str| {
            let path = cluster.scratch.join(name);
            fs::write(&path, text).map_err(tool(path.display()))
        };
        write("postgresql.conf", "# Everything stands on the command line.\n")?;
        write("pg_hba.conf", "local all all trust\n")?;
        write("pg_ident.conf", "")?;
        let socket = cluster.socket_folder();
        fs::create_dir(&socket).map_err(tool(socket.display()))?;
        let mut command = Command::new(cluster.programs.join("postgres"));
        command.arg("-D").arg(&cluster.data).args(cluster.server_settings());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(tool("postgres"))?;
        let stderr = child.stderr.take().ok_or_else(|| End::Tool("the server has no log".to_owned()))?;
        let (log, ready) = follow_log(stderr);
        let mut server = Self { child, log: Some(log) };
        if ready.recv().is_ok() {
            return Ok(server);
        }
        let status = server.child.wait().map_err(tool("postgres"))?;
        Err(End::NotStarted(status.to_string()))
    }

    /// Stops it as an operator would: sessions are ended, and everything is written.
    fn stop(mut self) -> Result<(), End> {
        rustix::process::kill_process(Pid::from_child(&self.child), Signal::INT)
            .map_err(|error| End::Tool(format!("the server cannot be stopped: {error}")))?;
        let status = self.child.wait().map_err(tool("postgres"))?;
        if let Some(log) = self.log.take() {
            // A panic there has been printed.
            drop(log.join());
        }
        if status.success() {
            Ok(())
        } else {
            Err(End::Tool(format!("the server did not stop well: {status}")))
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its own children see that it is gone, and end.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Shows the server's log on standard error, and tells once that it accepts connections.
fn follow_log(log: impl io::Read + Send + 'static) -> (thread::JoinHandle<()>, Receiver<()>) {
    let (sender, ready) = sync_channel(1);
    let follow = move || {
        let mut sender = Some(sender);
        let mut reader = BufReader::new(log);
        let mut line = Vec::new();
        // A line has an end, even where the server prints a query.
        while reader.by_ref().take(64 * 1024).read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
            let text = String::from_utf8_lossy(&line);
            eprint!("{text}");
            if text.strip_prefix(LOG_PREFIX).is_some_and(|text| text.trim_end() == READY)
                && let Some(sender) = sender.take()
            {
                let _ = sender.send(());
            }
            line.clear();
        }
    };
    (thread::spawn(follow), ready)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reports(text: &str) -> (Vec<Report>, Reports) {
        let mut reports = Reports::default();
        let mut found: Vec<_> = text.lines().filter_map(|line| reports.line(line)).collect();
        found.extend(reports.end());
        (found, reports)
    }

    /// Texts as pg_amcheck 15 prints them.
    #[test]
    fn damage_is_told_from_what_could_not_be_looked_at() {
        let (found, counts) = reports(
            "heap table \"app.public.t\", block 3, offset 2, attribute 1:\n    attribute starts at offset 99\n\
             btree index \"app.public.i\":\n    ERROR:  could not access file \"$libdir/postgis-3\": No such file\n",
        );
        let damage =
            "heap table \"app.public.t\", block 3, offset 2, attribute 1: attribute starts at offset 99";
        assert_eq!(found[0], Report::Damage(damage.to_owned()));
        assert!(matches!(&found[1], Report::NotLooked(text) if text.contains("postgis")));
        assert_eq!((counts.damaged, counts.not_looked, counts.only_order), (1, 1, false));
        let (_, counts) = reports(
            "btree index \"app.public.i\":\n    ERROR:  item order invariant violated for index \"i\"\n    DETAIL:  x\n",
        );
        assert!(counts.only_order && counts.damaged == 1);
        assert_eq!(reports("").0, []);
    }

    #[test]
    fn versions_are_read() {
        assert_eq!(major_of("postgres (PostgreSQL) 15.8 (Debian 15.8-0+deb12u1)\n"), Some(15));
        assert_eq!(major_of("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(major_of("something else"), None);
    }

    /// A log that ends without the line is a server that did not start; the line in another's text does not count.
    #[test]
    fn only_the_servers_own_line_says_that_it_is_ready() {
        let ready = |text: String| follow_log(io::Cursor::new(text)).1.recv().is_ok();
        assert!(ready(format!("{LOG_PREFIX}LOG:  starting\n{LOG_PREFIX}{READY}\n")));
        assert!(!ready(format!("{LOG_PREFIX}FATAL:  could not start\n")));
        assert!(!ready(format!("{LOG_PREFIX}LOG:  statement: {READY}\n")));
    }
}
