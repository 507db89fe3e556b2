//! Where things are in an installation, and how its configuration files are read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::database::Database;
use super::texts::{Texts, fill};
use super::{Failure, Surroundings};

/// The directory of one installation, with its texts.
#[derive(Debug, Clone)]
pub struct Installation {
    /// The directory that holds `bin` and `storage`.
    pub root: PathBuf,
    /// What was read from `bin/standin.toml`.
    pub texts: Texts,
    surroundings: Surroundings,
    /// Where the installation was made, as its own slices table says; only asked for when relocating.
    original: Option<PathBuf>,
}

impl Installation {
    /// Opens the installation at `root`.
    ///
    /// # Errors
    /// `bin/standin.toml` is there but cannot be used.
    pub fn open(root: &Path, surroundings: Surroundings) -> Result<Self, Failure> {
        let texts = Texts::load(&root.join("bin/standin.toml")).map_err(|error| Failure {
            text: format!("stand-in: {error:#}"),
            exit: Texts::default().exit.unreadable,
        })?;
        let own = root.join("storage/site_slice").join(SlicesTable::FILE);
        let original = if surroundings.relocate {
            SlicesTable::read(&own).ok().map(|table| table.install)
        } else {
            None
        };
        Ok(Self { root: root.to_path_buf(), texts, surroundings, original })
    }

    /// A file in `bin`.
    pub fn bin(&self, name: &str) -> PathBuf {
        self.root.join("bin").join(name)
    }

    /// Reads `bin/acserver.cnf` for one of the programs.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn server_cnf(&self, program: &'static str) -> Result<ServerCnf<'_>, Failure> {
        let path = self.bin("acserver.cnf");
        let mut cnf = Cnf::read(&path).map_err(|error| self.unreadable(program, &path, &error))?;
        if self.texts.version.carriage_return_ends_lines != 0 {
            cnf.drop_carriage_returns();
        }
        Ok(ServerCnf { installation: self, program, cnf })
    }

    /// The path to use for an absolute path of the live server: the same, unless relocating.
    pub fn resolve(&self, recorded: &Path) -> PathBuf {
        match self.original.as_ref().and_then(|original| recorded.strip_prefix(original).ok()) {
            Some(below) => self.root.join(below),
            None => recorded.to_path_buf(),
        }
    }

    /// True in the mode of 5 and later.
    pub fn has_database(&self) -> bool {
        self.texts.version.major >= 5
    }

    /// Where the licence is, below the site slice.
    pub fn licence(&self) -> &'static str {
        if self.has_database() { "accurev.lic" } else { "keys.txt" }
    }

    /// Where the tables of a slice are that lies at `location`.
    pub fn tables(&self, number: u32, location: &Path) -> PathBuf {
        if self.has_database() { Database::of(self).tables(number) } else { location.to_path_buf() }
    }

    /// The names and addresses that this host answers to.
    pub fn host_names(&self) -> Vec<String> {
        self.surroundings.host_names.clone().unwrap_or_else(own_host_names)
    }

    /// The failure "cannot read".
    pub fn unreadable(&self, program: &str, path: &Path, reason: &dyn std::fmt::Display) -> Failure {
        let (path, reason) = (path.display().to_string(), reason.to_string());
        let values = [("program", program), ("path", path.as_str()), ("reason", reason.as_str())];
        Failure { text: fill(&self.texts.text.unreadable, &values), exit: self.texts.exit.unreadable }
    }
}

/// `acserver.cnf` as one of the programs asks for it.
#[derive(Debug)]
pub struct ServerCnf<'a> {
    installation: &'a Installation,
    program: &'static str,
    cnf: Cnf,
}

impl ServerCnf<'_> {
    /// The host that the server is meant to run on, byte for byte. A replica says it in `LOCAL_SERVER` (inferred).
    ///
    /// # Errors
    /// Neither key is there.
    pub fn host(&self) -> Result<String, Failure> {
        match self.cnf.get("LOCAL_SERVER") {
            Some(host) => Ok(host.to_owned()),
            None => Ok(self.require("MASTER_SERVER")?.to_owned()),
        }
    }

    /// The port as it is written, of the same server as [`ServerCnf::host`].
    ///
    /// # Errors
    /// The key is not there.
    pub fn port(&self) -> Result<String, Failure> {
        match self.cnf.get("LOCAL_PORT") {
            Some(port) => Ok(port.trim_end().to_owned()),
            None => Ok(self.require("PORT")?.trim_end().to_owned()),
        }
    }

    /// The site slice to use.
    ///
    /// # Errors
    /// The key is not there.
    pub fn site_slice(&self) -> Result<PathBuf, Failure> {
        Ok(self.installation.resolve(Path::new(self.require("SITE_SLICE_LOC")?.trim_end())))
    }

    fn require(&self, key: &str) -> Result<&str, Failure> {
        self.cnf.get(key).ok_or_else(|| {
            let texts = &self.installation.texts;
            let values = [("program", self.program), ("file", "acserver.cnf"), ("key", key)];
            Failure { text: fill(&texts.text.key_missing, &values), exit: texts.exit.key_missing }
        })
    }
}

/// A configuration file: `KEY = value`, one a line, `#` in front of a comment.
///
/// Blanks around `=` are needed, everything after them belongs to the value: a trailing blank and a carriage return
/// too. The first of several lines counts.
#[derive(Debug, Clone)]
pub struct Cnf {
    settings: Vec<(String, String)>,
}

impl Cnf {
    /// Reads the file.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(path: &Path) -> io::Result<Self> {
        Ok(Self::parse(&String::from_utf8_lossy(&fs::read(path)?)))
    }

    /// Reads the settings; lines that are none are passed over.
    pub fn parse(text: &str) -> Self {
        let blank = [' ', '\t'];
        let setting = |line: &str| {
            let (key, rest) = line.split_once(blank)?;
            let value = rest.trim_start_matches(blank).strip_prefix('=')?;
            let bare = value.trim_start_matches(blank);
            (!key.starts_with('#') && !bare.is_empty() && bare.len() < value.len())
                .then(|| (key.to_owned(), bare.to_owned()))
        };
        Self { settings: text.split('\n').filter_map(setting).collect() }
    }

    /// Takes a carriage return at the end of a value as the end of its line.
    fn drop_carriage_returns(&mut self) {
        for (_, value) in &mut self.settings {
            value.truncate(value.strip_suffix('\r').map_or(value.len(), str::len));
        }
    }

    /// The value of a key, byte for byte.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.settings.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }
}

/// The slices table of the site slice: where the installation was made, and where each slice is, in absolute paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlicesTable {
    /// The directory of the installation that the slices belong to.
    pub install: PathBuf,
    /// Number and location of each slice; number 0 is the site slice.
    pub slices: Vec<(u32, PathBuf)>,
}

impl SlicesTable {
    /// Its name in the site slice.
    pub const FILE: &str = "slices";

    /// The file's content.
    pub fn render(&self) -> String {
        let mut out = format!("INSTALL {}\n", self.install.display());
        for (number, location) in &self.slices {
            out.push_str(&format!("{number} {}\n", location.display()));
        }
        out
    }

    /// Reads it.
    ///
    /// # Errors
    /// It cannot be read, or a line makes no sense.
    pub fn read(path: &Path) -> io::Result<Self> {
        let text = fs::read_to_string(path)?;
        let bad = |line: &str| io::Error::other(format!("not a line of a slices table: {line:?}"));
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default();
        let install = PathBuf::from(first.strip_prefix("INSTALL ").ok_or_else(|| bad(first))?);
        let slices = lines
            .map(|line| {
                let (number, location) = line.split_once(' ').ok_or_else(|| bad(line))?;
                Ok((number.parse().map_err(|_| bad(line))?, PathBuf::from(location)))
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { install, slices })
    }
}

/// The name of a depot: the last part of its location.
pub fn depot_name(location: &Path) -> String {
    location.file_name().unwrap_or(location.as_os_str()).to_string_lossy().into_owned()
}

/// `site_slice/server.pid`: whoever holds its lock is the server. Its content only helps to find the process.
#[derive(Debug)]
pub struct PidFile;

impl PidFile {
    /// Its name in the site slice.
    pub const FILE: &str = "server.pid";

    /// Becomes the server: `None` when there is one, or when somebody checks the data. Keep the file open.
    ///
    /// # Errors
    /// The file cannot be opened, locked or written.
    pub fn claim(site_slice: &Path) -> io::Result<Option<File>> {
        Self::claim_in(site_slice, Self::FILE)
    }

    /// The same with a file of another name: the database's server has one of its own.
    ///
    /// # Errors
    /// As [`PidFile::claim`].
    pub fn claim_in(folder: &Path, file: &str) -> io::Result<Option<File>> {
        let path = folder.join(file);
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                file.set_len(0)?;
                writeln!(file, "{}", std::process::id())?;
                Ok(Some(file))
            }
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Says goodbye: the file stays, empty, because removing it would race with the next server.
    pub fn release(mut file: File) -> io::Result<()> {
        file.rewind()?;
        file.set_len(0)
    }

    /// Keeps servers away while the data is read. Works on a file system that is mounted read-only.
    ///
    /// # Errors
    /// The file cannot be opened or locked.
    pub fn hold_off(site_slice: &Path) -> io::Result<HeldOff> {
        Self::hold_off_in(site_slice, Self::FILE)
    }

    /// The same with a file of another name.
    ///
    /// # Errors
    /// As [`PidFile::hold_off`].
    pub fn hold_off_in(folder: &Path, file: &str) -> io::Result<HeldOff> {
        let file = match File::open(folder.join(file)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(HeldOff::Quiet(None)),
            Err(error) => return Err(error),
        };
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(HeldOff::Quiet(Some(file))),
            Err(Errno::WOULDBLOCK) => Ok(HeldOff::Running { pid: read_pid(file) }),
            Err(error) => Err(error.into()),
        }
    }
}

fn read_pid(mut file: File) -> Option<i32> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// What [`PidFile::hold_off`] found.
#[derive(Debug)]
pub enum HeldOff {
    /// No server runs; none can start while the file is open.
    Quiet(Option<File>),
    /// A server runs.
    Running {
        /// Its process number, when it has written one.
        pid: Option<i32>,
    },
}

/// This host's names and addresses: node name, short name, the names beside them in `/etc/hosts`, addresses.
///
/// Loopback names and addresses are left out: they would fit every host.
fn own_host_names() -> Vec<String> {
    let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let short = node.split('.').next().unwrap_or_default().to_owned();
    let mut names = vec![node.clone(), short];
    for line in fs::read_to_string("/etc/hosts").unwrap_or_default().lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let Some(address) = words.next() else { continue };
        let listed: Vec<_> = words.collect();
        if listed.iter().any(|name| names.iter().any(|own| own == name)) {
            names.push(address.to_owned());
            names.extend(listed.into_iter().map(str::to_owned));
        }
    }
    names.extend(
        (node.as_str(), 0).to_socket_addrs().into_iter().flatten().map(|found| found.ip().to_string()),
    );
    names.extend(local_addresses(&fs::read_to_string("/proc/net/fib_trie").unwrap_or_default()));
    names.retain(|name| {
        let loopback = name.parse().is_ok_and(|address: IpAddr| address.is_loopback());
        !name.is_empty() && !loopback && !name.starts_with("localhost")
    });
    let mut seen = std::collections::HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

/// The addresses of this host's interfaces: in `fib_trie` the line after each says `host LOCAL`.
fn local_addresses(fib_trie: &str) -> Vec<String> {
    let lines: Vec<_> = fib_trie.lines().collect();
    let pairs = lines.windows(2).filter(|pair| pair[1].contains("host LOCAL"));
    pairs
        .filter_map(|pair| pair[0].trim().strip_prefix("|-- ")?.parse::<Ipv4Addr>().ok())
        .map(|address| address.to_string())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_strictly_as_the_article_says() {
        let rows = [
            ("MASTER_SERVER = a.b", Some("a.b")),
            ("MASTER_SERVER=a.b", None),
            ("MASTER_SERVER =a.b", None),
            ("MASTER_SERVER= a.b", None),
            ("MASTER_SERVER = a.b ", Some("a.b ")),
            ("MASTER_SERVER = a.b\r\nPORT = 1\r", Some("a.b\r")),
            ("# MASTER_SERVER = a.b", None),
            ("#MASTER_SERVER = a.b", None),
            ("MASTER_SERVER = ", None),
            ("MASTER_SERVERS = x\nMASTER_SERVER\t=  y\nMASTER_SERVER = z", Some("y")),
        ];
        for (text, expected) in rows {
            assert_eq!(Cnf::parse(text).get("MASTER_SERVER"), expected, "{text:?}");
        }
    }

    #[test]
    fn the_slices_table_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("slices");
        let table = SlicesTable {
            install: "/opt/accurev".into(),
            slices: vec![(0, "/a b/site".into()), (7, "/x".into())],
        };
        fs::write(&path, table.render()).unwrap();
        assert_eq!(SlicesTable::read(&path).unwrap(), table);
    }

    #[test]
    fn interface_addresses_are_found() {
        let text = "     |-- 10.0.0.0\n        /24 link UNICAST\n     |-- 10.0.0.7\n        /32 host LOCAL\n";
        assert_eq!(local_addresses(text), ["10.0.0.7"]);
    }
}
