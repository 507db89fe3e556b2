//! A server of the check's own over the copy. It does nothing to the world, and obeys none of the copy's settings.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Read as _},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal};

use super::{
    End,
    cluster::Cluster,
    meaning::{LogMeaning, start_line},
    report::one_line,
    tool,
};

/// What the server says when it accepts connections. `lc_messages` is C.
const READY: &str = "LOG:  database system is ready to accept connections";
/// Each line of the server's log begins so.
const LOG_PREFIX: &str = "server: ";
/// Room for the server's own memory: enough for a check, little enough for any host.
const SHARED_BUFFERS: &str = "128MB";
/// The file in which `ALTER SYSTEM` keeps its settings.
const AUTO_CONF: &str = "postgresql.auto.conf";

/// How long a server may take to stop. One that was asked in the middle of its recovery from a crash may never end.
const STOP: Duration = Duration::from_secs(300);

/// The copy's server. Dropped without `stop` it is killed.
pub(super) struct Server {
    child: Child,
    log: Option<thread::JoinHandle<()>>,
    /// The first line that means damage with which the server gave up after it had accepted connections.
    damage: Arc<Mutex<Option<String>>>,
}

/// What the log said before the server accepted connections.
enum Start {
    Ready,
    Means(LogMeaning, String),
    /// A line with which it may have given up.
    GaveUp(String),
}

impl Server {
    /// Starts it and waits until it has recovered and accepts connections. The step's time limit is the limit.
    pub(super) fn start(cluster: &Cluster) -> Result<Self, End> {
        let write = |name: &str, text: &str| {
            let path = cluster.scratch.join(name);
            fs::write(&path, text).map_err(tool(path.display()))
        };
        write("postgresql.conf", "# Everything stands on the command line.\n")?;
        write("pg_hba.conf", "local all all trust\n")?;
        write("pg_ident.conf", "")?;
        let socket = cluster.socket_folder();
        if !socket.exists() {
            fs::create_dir(&socket).map_err(tool(socket.display()))?;
        }
        // The server reads this one file from the data directory whatever the command line says. In the workspace it is empty.
        let auto = cluster.data.join(AUTO_CONF);
        if auto.exists() {
            fs::write(&auto, "").map_err(tool(auto.display()))?;
        }
        let mut command = Command::new(cluster.programs.join("postgres"));
        command.arg("-D").arg(&cluster.data).args(settings(cluster));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(tool("postgres"))?;
        let stderr = child.stderr.take().ok_or_else(|| End::Tool("the server has no log".to_owned()))?;
        let damage = Arc::default();
        let (log, start) = follow_log(stderr, Arc::clone(&damage));
        let mut server = Self { child, log: Some(log), damage };
        let (mut found, mut gave_up) = (None, None);
        while let Ok(said) = start.recv() {
            match said {
                Start::Ready => return Ok(server),
                Start::Means(meaning, line) => found = found.or(Some((meaning, line))),
                Start::GaveUp(line) => gave_up = gave_up.or(Some(line)),
            }
        }
        let status = server.child.wait().map_err(tool("postgres"))?;
        match found {
            Some((LogMeaning::NotRestorable, line)) => {
                println!("not restorable: {}", one_line(&line));
                Err(End::Damage)
            }
            Some((LogMeaning::Damage, line)) => {
                println!("damage: the server does not start: {}", one_line(&line));
                Err(End::Damage)
            }
            None => {
                let line = gave_up.map(|line| format!(": {line}")).unwrap_or_default();
                Err(End::NotStarted(format!("{status}{line}")))
            }
        }
    }

    /// The line that means damage with which it gave up after it had accepted connections. A server that did is not asked to stop: it may be
    /// in the middle of its recovery, and never end.
    pub(super) fn gave_up(&self) -> Option<String> {
        self.damage.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Stops it as an operator would: sessions are ended, and everything is written.
    pub(super) fn stop(mut self) -> Result<(), End> {
        rustix::process::kill_process(Pid::from_child(&self.child), Signal::INT)
            .map_err(|error| End::Tool(format!("the server cannot be stopped: {error}")))?;
        let asked = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().map_err(tool("postgres"))? {
                break status;
            }
            if asked.elapsed() > STOP {
                return Err(End::Tool("the server did not stop when it was asked to".to_owned()));
            }
            thread::park_timeout(Duration::from_millis(20));
        };
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

/// Shows the server's log on standard error, and tells once that it accepts connections, and before that each line that means
/// damage.
fn follow_log(
    log: impl io::Read + Send + 'static,
    damage: Arc<Mutex<Option<String>>>,
) -> (thread::JoinHandle<()>, Receiver<Start>) {
    let (sender, start) = sync_channel(64);
    let follow = move || {
        let mut sender = Some(sender);
        let mut reader = BufReader::new(log);
        let mut line = Vec::new();
        // A line has an end, even where the server prints a query.
        while reader.by_ref().take(64 * 1024).read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
            let text = String::from_utf8_lossy(&line);
            eprint!("{text}");
            let said = text.strip_prefix(LOG_PREFIX).map(str::trim_end);
            if let (Some(said), None) = (said, &sender)
                && said.starts_with("PANIC:")
                && start_line(said).is_some()
            {
                damage.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(said.to_owned());
            }
            if let Some(said) = said
                && let Some(waiting) = &sender
            {
                if said == READY {
                    drop(waiting.send(Start::Ready));
                    sender = None;
                } else if let Some(meaning) = start_line(said) {
                    drop(waiting.try_send(Start::Means(meaning, said.to_owned())));
                } else if said.starts_with("FATAL:") || said.starts_with("PANIC:") {
                    drop(waiting.try_send(Start::GaveUp(said.to_owned())));
                }
            }
            line.clear();
        }
    };
    (thread::spawn(follow), start)
}

/// The server's command line. Named here is what could reach out, what could hide damage, and what the copy's recovery needs.
fn settings(cluster: &Cluster) -> Vec<String> {
    let scratch = |name: &str| cluster.scratch.join(name).display().to_string();
    let least = |label: &str, least: u64| cluster.control_number(label).unwrap_or(0).max(least).to_string();
    let mut settings: Vec<(&str, String)> = vec![
        ("config_file", scratch("postgresql.conf")),
        ("hba_file", scratch("pg_hba.conf")),
        ("ident_file", scratch("pg_ident.conf")),
        ("external_pid_file", String::new()),
        ("unix_socket_directories", quoted(&cluster.socket_folder().display().to_string())),
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
        ("dynamic_library_path", "$libdir"),
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
        ("superuser_reserved_connections", "0"),
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
    if cluster.major >= 15 {
        settings.push(("archive_library", String::new()));
        // Else a server that recovers stops at a tablespace within the data directory.
        settings.push(("allow_in_place_tablespaces", "on".to_owned()));
    }
    if cluster.major >= 16 {
        settings.push(("reserved_connections", "0".to_owned()));
    }
    if cluster.major >= 17 {
        settings.push(("event_triggers", "off".to_owned()));
    }
    if cluster.major >= 18 {
        settings.push(("io_method", "sync".to_owned()));
    }
    settings.into_iter().flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]).collect()
}

/// A list setting splits at commas and blanks, but not within double quotes.
fn quoted(path: &str) -> String {
    format!("\"{}\"", path.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log that ends without the line is a server that did not start; the line in another's text does not count.
    #[test]
    fn only_the_servers_own_line_says_that_it_is_ready() {
        let ready = |text: String| {
            matches!(follow_log(io::Cursor::new(text), Arc::default()).1.recv(), Ok(Start::Ready))
        };
        assert!(ready(format!("{LOG_PREFIX}LOG:  starting\n{LOG_PREFIX}{READY}\n")));
        assert!(!ready(format!("{LOG_PREFIX}FATAL:  could not start\n")));
        assert!(!ready(format!("{LOG_PREFIX}LOG:  statement: {READY}\n")));
    }

    /// Also when the server goes on after such a line: then it is for the check to find.
    #[test]
    fn a_line_that_means_damage_is_told_with_its_text() {
        let text = format!("{LOG_PREFIX}FATAL:  WAL ends before end of online backup\n\tFATAL:  no\n");
        let start = follow_log(io::Cursor::new(text), Arc::default()).1;
        let said: Vec<_> = start.iter().collect();
        assert!(
            matches!(&said[..], [Start::Means(LogMeaning::NotRestorable, line)] if line.ends_with("backup"))
        );
    }
}
