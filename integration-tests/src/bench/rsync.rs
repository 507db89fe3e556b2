//! rsync, over ssh and to its daemon.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    discard::discard,
    measure::{Sample, TIME_FORMAT, cpu_seconds, read_time_file},
    network::{Ends, Network},
    process::{Background, free_port, succeed},
    proxy::Proxy,
};

/// rsync's exit code when files vanished while it read: no failure where the source lives.
const VANISHED: i32 = 24;

/// How rsync is called.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    /// What it is called in the report.
    pub name: &'static str,
    flags: &'static [&'static str],
    daemon: bool,
}

/// What everybody knows, and what all demands are made against.
pub const PLAIN: Variant = Variant { name: "rsync -az (ssh)", flags: &["-az"], daemon: false };

const ZSTD: &[&str] = &["-az", "--zc=zstd", "--zl=1"];

/// What Assay is held against at each speed of a link: what everybody knows, and the fastest where the link is fast or slow.
pub const LINK_VARIANTS: [Variant; 4] = [
    PLAIN,
    Variant { name: "rsync -a (daemon)", flags: &["-a"], daemon: true },
    Variant { name: "rsync -az (daemon)", flags: &["-az"], daemon: true },
    Variant { name: "rsync -az zstd -1 (daemon)", flags: ZSTD, daemon: true },
];

/// All variants.
pub const VARIANTS: [Variant; 5] = [
    PLAIN,
    Variant { name: "rsync -a (ssh)", flags: &["-a"], daemon: false },
    Variant { name: "rsync -az zstd -1 (ssh)", flags: ZSTD, daemon: false },
    Variant { name: "rsync -a (daemon)", flags: &["-a"], daemon: true },
    Variant { name: "rsync -az zstd -1 (daemon)", flags: ZSTD, daemon: true },
];

/// An sshd and an rsync daemon of our own, on loopback.
#[derive(Debug)]
pub struct Servers {
    folder: PathBuf,
    sshd: Background,
    daemon: Background,
    ssh_port: u16,
    daemon_port: u16,
    /// The network of their host, when it has one of its own.
    network: Option<Rc<Network>>,
}

impl Servers {
    /// Starts both on loopback. The daemon writes below `destinations` only.
    ///
    /// # Errors
    ///
    /// When one does not start.
    pub fn start(folder: &Path, destinations: &Path) -> Result<Self> {
        Self::start_in(None, folder, destinations)
    }

    /// Starts both on the host of a network.
    ///
    /// # Errors
    ///
    /// When one does not start.
    pub fn start_in(network: Option<Rc<Network>>, folder: &Path, destinations: &Path) -> Result<Self> {
        let ends = network.as_deref().map_or(Ends::LOOPBACK, Ends::apart);
        let address = ends.far_address();
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        for key in ["host_key", "user_key"] {
            succeed(
                Command::new("ssh-keygen")
                    .args(["-q", "-t", "ed25519", "-N", "", "-f", key])
                    .current_dir(folder),
            )?;
        }
        let read = |name: &str| fs::read_to_string(folder.join(name)).with_context(|| name.to_owned());
        let write =
            |name: &str, text: String| fs::write(folder.join(name), text).with_context(|| name.to_owned());
        let (ssh_port, daemon_port) = (free_port()?, free_port()?);
        let path = folder.display();
        write("authorized_keys", read("user_key.pub")?)?;
        write("known_hosts", format!("bench {}", read("host_key.pub")?))?;
        write(
            "sshd_config",
            format!(
                "ListenAddress {address}:{ssh_port}\nHostKey {path}/host_key\nAuthorizedKeysFile {path}/authorized_keys\n\
                 PidFile none\nUsePAM no\nStrictModes no\nPermitRootLogin prohibit-password\n\
                 PasswordAuthentication no\nKbdInteractiveAuthentication no\nCompression no\nPrintMotd no\n"
            ),
        )?;
        write(
            "ssh_config",
            format!(
                "Host *\nHostKeyAlias bench\nUserKnownHostsFile {path}/known_hosts\nGlobalKnownHostsFile none\n\
                 StrictHostKeyChecking yes\nIdentityFile {path}/user_key\nIdentitiesOnly yes\nIdentityAgent none\n\
                 BatchMode yes\nCompression no\nLogLevel ERROR\n"
            ),
        )?;
        write(
            "rsyncd.conf",
            format!(
                "use chroot = no\nmax verbosity = 0\nlog file = {path}/rsyncd.log\nuid = 0\ngid = 0\n\
                 [bench]\npath = {}\nread only = no\n",
                destinations.display()
            ),
        )?;
        // sshd wants it, and without a service manager nobody has made it.
        fs::create_dir_all("/run/sshd").context("/run/sshd")?;
        // It starts itself anew for each connection, and insists on a full path for that.
        let mut sshd = Background::start(
            ends.far_command("/usr/sbin/sshd").args(["-D", "-e", "-f"]).arg(folder.join("sshd_config")),
            "sshd",
            &folder.join("sshd.log"),
        )?;
        let mut daemon = Background::start(
            ends.far_command("rsync")
                .args([
                    "--daemon",
                    "--no-detach",
                    &format!("--address={address}"),
                    &format!("--port={daemon_port}"),
                    "--config",
                ])
                .arg(folder.join("rsyncd.conf")),
            "the rsync daemon",
            &folder.join("daemon.log"),
        )?;
        let answers = |port: u16| std::net::TcpStream::connect((address, port)).is_ok();
        sshd.wait_until(|| answers(ssh_port))
            .with_context(|| fs::read_to_string(folder.join("sshd.log")).unwrap_or_default())?;
        daemon
            .wait_until(|| answers(daemon_port))
            .with_context(|| fs::read_to_string(folder.join("daemon.log")).unwrap_or_default())?;
        Ok(Self { folder: folder.to_owned(), sshd, daemon, ssh_port, daemon_port, network })
    }

    /// One measured copy of `root` with a variant.
    ///
    /// # Errors
    ///
    /// When rsync fails.
    fn copy(&mut self, rsync: &Rsync) -> Result<Sample> {
        let network = self.network.clone();
        let ends = network.as_deref().map_or(Ends::LOOPBACK, Ends::apart);
        let far = ends.far_address();
        let (client_times, server_times) = (self.folder.join("client.time"), self.folder.join("server.time"));
        let mut command = Command::new("time");
        command.args(["-f", TIME_FORMAT, "-o"]).arg(&client_times).arg("rsync").args(rsync.variant.flags);
        command.args(rsync.durable.then_some("--fsync"));
        command.arg("--delete").arg(format!("{}/", rsync.root.display()));
        if rsync.variant.daemon {
            let name = rsync.destination.file_name().context("a destination has a name")?.to_string_lossy();
            command.arg(format!("rsync://{far}:{}/bench/{name}/", self.daemon_port));
        } else {
            let port = rsync.link.as_ref().map_or(self.ssh_port, Proxy::port);
            // By env, because "time" alone is a word of some shells.
            command
                .arg("-e")
                .arg(format!("ssh -F {}/ssh_config -p {port}", self.folder.display()))
                .arg(format!("--rsync-path=env time -f '{TIME_FORMAT}' -o {} rsync", server_times.display()))
                .arg(format!("{far}:{}/", rsync.destination.display()));
        }
        let server = if rsync.variant.daemon { &mut self.daemon } else { &mut self.sshd };
        server.wait_for_children()?;
        let (cpu, wire) = (cpu_seconds(server.pid())?, ends.wire_bytes()?);
        let start = Instant::now();
        let output = command.output().with_context(|| format!("{command:?} does not start"))?;
        let wall = start.elapsed().as_secs_f64();
        ensure!(
            output.status.success() || rsync.live && output.status.code() == Some(VANISHED),
            "{command:?} ended with {}:\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        // Only children that were waited for count.
        server.wait_for_children()?;
        let (source_cpu, source_peak) = read_time_file(&client_times)?;
        let target_peak = if rsync.variant.daemon { None } else { Some(read_time_file(&server_times)?.1) };
        Ok(Sample {
            wall,
            source_cpu,
            target_cpu: cpu_seconds(server.pid())? - cpu,
            source_peak,
            target_peak,
            wire: ends.wire_bytes()? - wire,
            phases: Vec::new(),
        })
    }

    /// rsync of `root` to a folder, through a proxy where there is a delay.
    ///
    /// # Errors
    ///
    /// When the proxy does not start.
    pub fn rsync(
        &self,
        variant: Variant,
        root: &Path,
        destination: &Path,
        delay: Option<Duration>,
    ) -> Result<Rsync> {
        let link = delay.map(|delay| Proxy::start(self.ssh_port, delay)).transpose()?;
        Ok(Rsync {
            variant,
            root: root.to_owned(),
            destination: destination.to_owned(),
            link,
            live: false,
            durable: false,
        })
    }
}

/// One variant with its destination.
#[derive(Debug)]
pub struct Rsync {
    /// How it is called.
    pub variant: Variant,
    root: PathBuf,
    destination: PathBuf,
    link: Option<Proxy>,
    /// Whether the source lives, so that files may vanish.
    pub live: bool,
    /// Whether a copy ends when it is on the disk, as Assay's does.
    pub durable: bool,
}

impl Rsync {
    /// One measured copy.
    ///
    /// # Errors
    ///
    /// When rsync fails.
    pub fn run(&mut self, servers: &mut Servers) -> Result<Sample> {
        servers.copy(self)
    }

    /// Empties the destination.
    ///
    /// # Errors
    ///
    /// When that fails.
    pub fn reset(&mut self) -> Result<()> {
        self.remove()?;
        fs::create_dir_all(&self.destination).with_context(|| self.destination.display().to_string())
    }

    /// Moves the destination out of the way.
    ///
    /// # Errors
    ///
    /// When that fails.
    pub fn remove(&mut self) -> Result<()> {
        discard(&self.destination)
    }
}

/// The referee: rsync, which prints what it would have to change.
///
/// # Errors
///
/// When the copy is not the source.
pub fn assert_equal(source: &Path, copy: &Path) -> Result<()> {
    let difference = succeed(
        Command::new("rsync")
            .args(["-aHAXn", "--checksum", "--delete", "--itemize-changes"])
            .args([format!("{}/", source.display()), format!("{}/", copy.display())]),
    )?;
    ensure!(
        difference.is_empty(),
        "{} is not what {} is; rsync would change:\n{difference}",
        copy.display(),
        source.display()
    );
    Ok(())
}
