//! Commands that must succeed, and processes that end with their owner.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

/// How long something may take that should take a moment: patience for a busy machine, not a measurement.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a command to its end and returns what it printed.
///
/// # Errors
///
/// When it does not end with 0: with what it printed.
pub fn succeed(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("{command:?} does not start"))?;
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{command:?} ended with {}:\n{out}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(out)
}

/// A process that is killed when this goes away.
#[derive(Debug)]
pub struct Background {
    child: Child,
    name: String,
}

impl Background {
    /// Starts a process with its output in a log.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn start(command: &mut Command, name: &str, log: &Path) -> Result<Self> {
        let log = File::create(log).with_context(|| log.display().to_string())?;
        let out = log.try_clone().context("the log")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(log)
            .spawn()
            .with_context(|| format!("{command:?} does not start"))?;
        Ok(Self { child, name: name.to_owned() })
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Polls until `ready`, as long as the process lives.
    ///
    /// # Errors
    ///
    /// When the process has ended or it takes too long.
    pub fn wait_until(&mut self, mut ready: impl FnMut() -> bool) -> Result<()> {
        let start = Instant::now();
        while !ready() {
            if let Some(status) = self.child.try_wait().context("wait")? {
                bail!("{} has ended with {status}", self.name);
            }
            ensure!(start.elapsed() < PATIENCE, "{} is not ready in {PATIENCE:?}", self.name);
            std::thread::park_timeout(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Waits until it has no children: only then their times count as its own.
    ///
    /// # Errors
    ///
    /// As of [`Self::wait_until`].
    pub fn wait_for_children(&mut self) -> Result<()> {
        let path = format!("/proc/{0}/task/{0}/children", self.pid());
        self.wait_until(|| fs::read_to_string(&path).is_ok_and(|text| text.trim().is_empty()))
    }

    /// Asks it to end, and waits for that.
    ///
    /// # Errors
    ///
    /// When it takes too long.
    pub fn end(mut self, signal: rustix::process::Signal) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).with_context(|| format!("end {}", self.name))?;
        let start = Instant::now();
        while self.child.try_wait().context("wait")?.is_none() {
            ensure!(start.elapsed() < PATIENCE, "{} does not end in {PATIENCE:?}", self.name);
            std::thread::park_timeout(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // Whatever became of it, it is gone afterwards.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A port that is free now.
///
/// # Errors
///
/// When there is none.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no port is free")?;
    Ok(listener.local_addr().context("the port")?.port())
}
