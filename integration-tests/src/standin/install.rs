//! Makes a whole installation of the stand-in: programs, configuration, licence and filled depots.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

use super::Surroundings;
use super::database::Database;
use super::layout::{Installation, SlicesTable};
use super::store::Repository;
use super::texts::Texts;

const DEPOT_NAMES: &[&str] = &["amber", "basalt", "cobalt", "dune", "ember", "flint", "granite", "heath"];

/// The first transaction of a prefilled depot: the day of the article that Assay is built on.
const PREFILL_START: u64 = 1_244_160_000;

/// What to make.
#[derive(Debug, Clone)]
pub struct InstallOptions {
    /// The name in `MASTER_SERVER`, `SERVERS` and the licence.
    pub host: String,
    /// The port; 0 chooses a free one.
    pub port: u16,
    /// How many depots.
    pub depots: u32,
    /// What the contents depend on.
    pub seed: u64,
    /// How many transactions are there from the start.
    pub transactions: u64,
    /// Puts the depots somewhere else than below `storage`.
    pub depots_at: Option<PathBuf>,
    /// 4, or 5 for a repository in a database.
    pub major: u8,
    /// The program to copy into `bin`; without it `bin` has only configuration.
    pub program: Option<PathBuf>,
}

impl Default for InstallOptions {
    fn default() -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self {
            host,
            port: 5050,
            depots: 2,
            seed: 1,
            transactions: 300,
            depots_at: None,
            major: 4,
            program: None,
        }
    }
}

/// The programs of `bin`: one file under several names.
pub const PROGRAMS: &[&str] = &["accurev_server", "accurev", "maintain", "acserverctl", "accurev_db"];

/// Makes the installation in a directory that is empty or not there yet.
///
/// # Errors
/// The directory is in use, or something cannot be written.
pub fn install(dir: &Path, options: &InstallOptions) -> anyhow::Result<Installation> {
    fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let root = dir.canonicalize().with_context(|| dir.display().to_string())?;
    ensure!(fs::read_dir(&root)?.next().is_none(), "{} is not empty", root.display());
    let site_slice = root.join("storage/site_slice");
    let depots_default = match &options.depots_at {
        Some(at) => {
            fs::create_dir_all(at).with_context(|| at.display().to_string())?;
            at.canonicalize()?
        }
        None => root.join("storage/depots"),
    };
    for sub in
        [root.join("bin"), site_slice.join("logs"), site_slice.join("triggers"), depots_default.clone()]
    {
        fs::create_dir_all(&sub).with_context(|| sub.display().to_string())?;
    }
    let port = if options.port == 0 { free_port()? } else { options.port };
    if let Some(program) = &options.program {
        put_programs(&root.join("bin"), program)?;
    }
    let mut texts = Texts::default();
    texts.version.major = options.major;
    fs::create_dir_all(site_slice.join("backup"))?;
    put_configuration(&root, &site_slice, &depots_default, &options.host, port, &texts)?;
    let installation = Installation::open(&root, Surroundings::default())
        .map_err(|failure| anyhow::anyhow!(failure.text))?;
    if installation.has_database() {
        put_database(&installation, &options.host, port)?;
    }

    let mut slices = vec![(0, site_slice.clone())];
    for number in 1..=options.depots {
        let turn = number as usize - 1;
        let name = match DEPOT_NAMES.get(turn) {
            Some(name) => (*name).to_owned(),
            None => format!("depot{number}"),
        };
        let depot = depots_default.join(name);
        fs::create_dir_all(depot.join("data"))?;
        fs::write(depot.join("pre-keep-trig"), "/usr/local/bin/pre-keep.pl\n")?;
        slices.push((number, depot));
    }
    fs::write(site_slice.join(SlicesTable::FILE), SlicesTable { install: root.clone(), slices }.render())?;

    let tables = |number, location: &Path| installation.tables(number, location);
    let mut repository = Repository::open_tables(&site_slice, Path::to_path_buf, tables, options.seed)?;
    repository.fill(options.transactions, |count| PREFILL_START + count * 60)?;
    Ok(installation)
}

/// The live database, and the program by which another one is made.
fn put_database(installation: &Installation, host: &str, port: u16) -> anyhow::Result<()> {
    let database = Database::of(installation);
    database.init("postgres", "the live password")?;
    database.set_identity(host, &port.to_string())?;
    let programs = installation.root.join("postgresql/bin");
    fs::create_dir_all(&programs)?;
    let server = installation.bin(PROGRAMS[0]);
    if server.exists() {
        fs::hard_link(&server, programs.join("initdb"))?;
    }
    Ok(())
}

fn put_programs(bin: &Path, program: &Path) -> anyhow::Result<()> {
    let first = bin.join(PROGRAMS[0]);
    fs::copy(program, &first).with_context(|| program.display().to_string())?;
    fs::set_permissions(&first, fs::Permissions::from_mode(0o755))?;
    for name in &PROGRAMS[1..] {
        fs::hard_link(&first, bin.join(name)).with_context(|| format!("{name} in {}", bin.display()))?;
    }
    Ok(())
}

fn put_configuration(
    root: &Path,
    site_slice: &Path,
    depots: &Path,
    host: &str,
    port: u16,
    texts: &Texts,
) -> anyhow::Result<()> {
    let server = format!(
        "# AccuRev server configuration (stand-in)\nMASTER_SERVER = {host}\nPORT = {port}\n\
         SITE_SLICE_LOC = {}\nDEPOTS_DEFAULT = {}\n# log level 2 or 3 is recommended\n#LOG_LEVEL = 2\n",
        site_slice.display(),
        depots.display()
    );
    fs::write(root.join("bin/acserver.cnf"), server)?;
    fs::write(root.join("bin/acclient.cnf"), format!("SERVERS = {host}:{port}\n"))?;
    fs::write(root.join("bin/standin.toml"), texts.render())?;
    let key = blake3::hash(format!("{host}:{port}").as_bytes()).to_hex();
    let licence = site_slice.join(if texts.version.major >= 5 { "accurev.lic" } else { "keys.txt" });
    fs::write(
        &licence,
        format!("# Licence of the AccuRev stand-in\nHOST = {host}\nPORT = {port}\nKEY = {key}\n"),
    )?;
    fs::set_permissions(&licence, fs::Permissions::from_mode(0o600))?;
    fs::write(site_slice.join("triggers/server_admin_trig.sample"), "#!/bin/sh\nexit 0\n")?;
    Ok(())
}

/// A port that nobody listens on, below those that the kernel hands out by itself.
fn free_port() -> anyhow::Result<u16> {
    for _ in 0..200 {
        let port = rand::random_range(10_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port found")
}
