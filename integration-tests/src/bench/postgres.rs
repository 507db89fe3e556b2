//! A PostgreSQL cluster of our own, for its data folder and for its load.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write},
    ops::Range,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use super::{
    data::{PAGE_BYTES, visit},
    process::{Background, succeed},
};

/// PostgreSQL refuses to run as root.
const USER: &str = "postgres";
/// Where Debian has the servers, one folder for each version.
const SERVERS: &str = "/usr/lib/postgresql";
const CLIENTS: &str = "4";

/// A cluster, which runs or not.
#[derive(Debug)]
pub struct Cluster {
    bin: PathBuf,
    folder: PathBuf,
    server: Option<Background>,
}

impl Cluster {
    /// Makes a cluster in a new folder, with pgbench's tables of this scale, and leaves it running.
    ///
    /// # Errors
    ///
    /// When PostgreSQL is not there or refuses.
    pub fn create(folder: &Path, scale: u32) -> Result<Self> {
        let versions = fs::read_dir(SERVERS).with_context(|| format!("{SERVERS}: install postgresql"))?;
        let newest = versions
            .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
            .filter(|bin| bin.join("initdb").exists())
            .max_by_key(|bin| bin.parent().and_then(|path| path.file_name()?.to_str()?.parse::<u32>().ok()));
        let bin = newest.with_context(|| format!("no server is in {SERVERS}: install postgresql"))?;
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        // The driver's own folder is closed to others, and this user has to come through. Its names are not to be read.
        let parent = folder.parent().context("the cluster is in a folder")?;
        fs::set_permissions(parent, fs::Permissions::from_mode(0o711)).context("open the folder")?;
        succeed(Command::new("chown").arg(USER).arg(folder))?;
        let mut cluster = Self { bin, folder: folder.to_owned(), server: None };
        succeed(
            cluster
                .command("initdb")
                .args(["--auth=trust", "--locale=C", "--encoding=UTF8", "--no-sync", "-D"])
                .arg(cluster.data()),
        )?;
        cluster.start()?;
        succeed(cluster.command("pgbench").args(["-i", "-q", "-s", &scale.to_string(), USER]))?;
        Ok(cluster)
    }

    /// The data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", USER, "--regid", USER, "--init-groups"])
            .arg(self.bin.join(program))
            .current_dir(&self.folder)
            .env("PGHOST", &self.folder)
            .env("PGUSER", USER);
        command
    }

    /// Starts the server and waits until it serves.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub fn start(&mut self) -> Result<()> {
        let log = self.folder.join("log");
        let mut server = Background::start(
            self.command("postgres")
                .arg("-D")
                .arg(self.data())
                .args(["-c", "listen_addresses="])
                .arg("-c")
                .arg(format!("unix_socket_directories={}", self.folder.display())),
            "postgres",
            &log,
        )?;
        server
            .wait_until(|| succeed(&mut self.command("pg_isready")).is_ok())
            .with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        self.server = Some(server);
        Ok(())
    }

    /// Writes everything to the tables' files and ends the server.
    ///
    /// # Errors
    ///
    /// When it does not end.
    pub fn stop(&mut self) -> Result<()> {
        succeed(self.command("psql").args(["-qc", "CHECKPOINT", USER]))?;
        // "Fast": it ends its clients and shuts down in order.
        self.server.take().context("the cluster does not run")?.end(Signal::INT)
    }

    /// Loads a table of files from lines as COPY reads them: a path, a tab, the content.
    ///
    /// # Errors
    ///
    /// When the server refuses.
    pub fn load_files(&self, rows: &Path) -> Result<()> {
        let copy = format!("\\copy files from '{}'", rows.display());
        succeed(self.command("psql").args(["-q", "-v", "ON_ERROR_STOP=1", "-c"]).args([
            "CREATE TABLE files(path text PRIMARY KEY, content bytea)",
            "-c",
            &copy,
            USER,
        ]))?;
        Ok(())
    }

    /// Runs a number of pgbench's transactions for each of its clients.
    ///
    /// # Errors
    ///
    /// When pgbench fails.
    pub fn transactions(&self, each: u32, seed: u64) -> Result<()> {
        succeed(self.command("pgbench").args(["-n", "-c", CLIENTS, "-j", "2"]).args([
            format!("--random-seed={seed}"),
            format!("-t{each}"),
            USER.to_owned(),
        ]))?;
        Ok(())
    }

    /// Runs pgbench for some seconds, and does `work` again and again until it ends.
    ///
    /// # Errors
    ///
    /// When pgbench fails, and what `work` returns.
    pub fn load(
        &self,
        seconds: u32,
        seed: u64,
        mut work: impl FnMut() -> Result<()>,
    ) -> Result<Transactions> {
        let logs = self.folder.join("transactions");
        fs::create_dir(&logs).with_context(|| logs.display().to_string())?;
        succeed(Command::new("chown").arg(USER).arg(&logs))?;
        let mut child = self
            .command("pgbench")
            .args(["-n", "-c", CLIENTS, "-j", "2", "--log"])
            .arg(format!("--log-prefix={}", logs.join("log").display()))
            .args([format!("--random-seed={seed}"), format!("-T{seconds}"), USER.to_owned()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("pgbench does not start")?;
        while child.try_wait().context("wait for pgbench")?.is_none() {
            work()?;
        }
        let output = child.wait_with_output().context("wait for pgbench")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "pgbench ended with {}:\n{said}", output.status);
        let mut ends = Vec::new();
        visit(&logs, &mut |path, _| {
            let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
            for line in text.lines() {
                ends.push(end_of(line).with_context(|| format!("{}: {line}", path.display()))?);
            }
            Ok(())
        })?;
        fs::remove_dir_all(&logs).with_context(|| logs.display().to_string())?;
        Ok(Transactions::new(ends))
    }
}

/// When a transaction ended, of a line of pgbench's log: `client transaction latency script seconds microseconds`.
fn end_of(line: &str) -> Option<Duration> {
    let mut fields = line.split(' ').skip(4);
    let mut number = || fields.next()?.parse().ok();
    Some(Duration::from_secs(number()?) + Duration::from_micros(number()?))
}

/// When each of pgbench's transactions ended, since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transactions(Vec<Duration>);

impl Transactions {
    pub(super) fn new(mut ends: Vec<Duration>) -> Self {
        ends.sort_unstable();
        Self(ends)
    }

    /// How many ended in a stretch of time.
    pub fn within(&self, time: &Range<Duration>) -> usize {
        let before = |moment: Duration| self.0.partition_point(|end| *end < moment);
        before(time.end).saturating_sub(before(time.start))
    }

    /// All of them.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// When the last one ended.
    pub fn end(&self) -> Duration {
        self.0.last().copied().unwrap_or_default()
    }
}

/// What differs between two states of a folder, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Pages that are new or different.
    pub pages: u64,
    /// Their bytes, compressed together with zstd -3.
    pub compressed_bytes: u64,
}

/// Compares two states of a folder page by page; a page is known by its file and its place.
///
/// # Errors
///
/// When a file cannot be read.
pub fn changed_pages(before: &Path, after: &Path) -> Result<Changed> {
    let mut pages = 0;
    let mut encoder = zstd::Encoder::new(Counter(0), 3).context("zstd")?;
    let (mut old_page, mut new_page) = (Vec::new(), Vec::new());
    visit(after, &mut |path, _| {
        let name = path.strip_prefix(after).context("it is below")?;
        let mut compare = || -> io::Result<()> {
            let mut new = File::open(path)?;
            let mut old = match File::open(before.join(name)) {
                Ok(file) => Some(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
            loop {
                read_page(&mut new, &mut new_page)?;
                if new_page.is_empty() {
                    return Ok(());
                }
                old_page.clear();
                if let Some(old) = &mut old {
                    read_page(old, &mut old_page)?;
                }
                if new_page != old_page {
                    pages += 1;
                    encoder.write_all(&new_page)?;
                }
            }
        };
        compare().with_context(|| path.display().to_string())
    })?;
    let counter = encoder.finish().context("zstd")?;
    Ok(Changed { pages, compressed_bytes: counter.0 })
}

fn read_page(file: &mut File, page: &mut Vec<u8>) -> io::Result<()> {
    page.clear();
    file.take(PAGE_BYTES).read_to_end(page).map(drop)
}

/// Counts what is written to it.
struct Counter(u64);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_that_differ_count() {
        let folder = tempfile::tempdir().expect("temp");
        let (before, after) = (folder.path().join("before"), folder.path().join("after"));
        for path in [&before, &after] {
            fs::create_dir(path).expect("mkdir");
            fs::write(path.join("same"), vec![1; 3 * PAGE_BYTES as usize]).expect("write");
        }
        assert_eq!(changed_pages(&before, &after).expect("readable").pages, 0);
        let mut pages = vec![2; 4 * PAGE_BYTES as usize];
        fs::write(before.join("table"), &pages).expect("write");
        pages[PAGE_BYTES as usize] = 3;
        pages.push(4);
        fs::write(after.join("table"), &pages).expect("write");
        fs::write(after.join("new"), "short").expect("write");
        let changed = changed_pages(&before, &after).expect("readable");
        assert_eq!(changed.pages, 3, "one that differs, one that was appended, one of a new file");
        assert!((1..PAGE_BYTES).contains(&changed.compressed_bytes), "{changed:?}");
    }

    #[test]
    fn transactions_are_counted_by_when_they_ended() {
        let lines = ["0 1 1500 0 1700000002 7", "1 1 900 0 1700000001 999999", "0 2 77 0 1700000003 0"];
        let transactions = Transactions::new(lines.iter().filter_map(|line| end_of(line)).collect());
        let at = |micros| Duration::from_secs(1_700_000_000) + Duration::from_micros(micros);
        assert_eq!((transactions.count(), transactions.end()), (3, at(3_000_000)));
        let within = |from, to| transactions.within(&(at(from)..at(to)));
        assert_eq!(
            [within(0, 2_000_007), within(1_999_999, 2_000_008), within(3_000_001, 9_000_000)],
            [1, 2, 0]
        );
        assert_eq!(end_of("progress: 1.0 s"), None);
    }
}
