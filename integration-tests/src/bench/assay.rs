//! A pair of agents, used as an operator would: by their command lines.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    discard::discard,
    hosts::{self, Host},
    measure::{Sample, TIME_FORMAT, cpu_seconds, peak_bytes, read_time_file, reset_peak},
    network::{Ends, Network},
    process::{Background, free_port, succeed},
    proxy::Proxy,
};

/// How long the target may take to lay out its next tree.
const AHEAD_PATIENCE: Duration = Duration::from_secs(300);

/// The check reads nothing: rsync has none, and what it would cost is the engine's. Of the trees here only a PostgreSQL
/// data folder has files in folders of these names; their pages are PostgreSQL's.
const PROFILE: &str = r#"
name = "bench"
description = "a tree of files, for measuring"
version = "1"
depth = "L0"

[mark]
kind = "none"

[copy]
pages = ["/base/**", "/global/*", "/pg_wal/*"]
page_bytes = 8192

[[check]]
name = "check"
argv = ["true"]
fail_exit = [1]
"#;

/// Two agents for one folder, with everything of theirs in another.
#[derive(Debug)]
pub struct Assay {
    bin: PathBuf,
    folder: PathBuf,
    root: PathBuf,
    delay: Option<Duration>,
    /// The disk of the target agent's host, when it has one of its own.
    pub apart: Option<PathBuf>,
    /// The network of the target agent's host, when it has one of its own.
    pub network: Option<Rc<Network>>,
    agents: Option<Agents>,
}

/// Fields go away in this order: the source first, so that it does not look for its target.
#[derive(Debug)]
struct Agents {
    source: Background,
    target: Background,
    _link: Option<Proxy>,
}

impl Assay {
    /// Agents that copy `root` and have their all in `folder`. With a delay they talk through a proxy.
    pub fn new(bin: &Path, folder: &Path, root: &Path, delay: Option<Duration>) -> Self {
        let (bin, folder, root) = (bin.to_owned(), folder.to_owned(), root.to_owned());
        Self { bin, folder, root, delay, apart: None, network: None, agents: None }
    }

    /// Ends the agents, forgets everything, and starts anew with an empty store.
    ///
    /// # Errors
    ///
    /// When an agent does not start.
    pub fn reset(&mut self) -> Result<()> {
        self.remove()?;
        fs::create_dir_all(&self.folder).with_context(|| self.folder.display().to_string())?;
        let far = self.ends().far_address().to_string();
        // Apart from the agents, which do not start beside it, and needed no more.
        let authority = self.folder.with_extension("ca");
        succeed(
            Command::new(self.bin.join("assay-target"))
                .args([
                    "pki",
                    "init",
                    "pki",
                    "--source-host",
                    "127.0.0.1",
                    "--target-host",
                    &far,
                    "--ca-folder",
                ])
                .arg(&authority)
                .current_dir(&self.folder),
        )?;
        discard(&authority)?;
        let (source_port, target_port) = (free_port()?, free_port()?);
        let link = self.delay.map(|delay| Proxy::start(target_port, delay)).transpose()?;
        let through = link.as_ref().map_or(target_port, Proxy::port);
        let tls = |role: &str| {
            format!(
                "[tls]\nca = \"pki/ca.crt\"\ncert = \"pki/{role}.crt\"\nkey = \"pki/{role}.key\"\n\
                 [operator]\ncert = \"pki/operator.crt\"\nkey = \"pki/operator.key\"\n"
            )
        };
        fs::write(self.folder.join("bench.toml"), PROFILE).context("bench.toml")?;
        let profile = "profile = \"./bench.toml\"\n";
        let source = format!(
            "[agent]\nname = \"source\"\nlisten = \"127.0.0.1:{source_port}\"\nstate = \"state\"\n\
             signing_key = \"pki/source-signing.key\"\n{}[target]\nurl = \"https://{far}:{through}\"\n\
             signing_key = \"pki/target-signing.pub\"\n[[repository]]\nname = \"repo\"\n{profile}\
             max_drop_percent = 100\n[[repository.root]]\nname = \"root\"\npath = {:?}\n",
            tls("source"),
            self.root
        );
        let target = format!(
            "[agent]\nname = \"target\"\nlisten = \"{far}:{target_port}\"\nstore = {:?}\n\
             signing_key = \"pki/target-signing.key\"\n{}[[repository]]\nname = \"repo\"\nsource = \"source\"\n\
             source_key = \"pki/source-signing.pub\"\n{profile}",
            self.store(),
            tls("target")
        );
        fs::write(self.folder.join("source.toml"), source).context("source.toml")?;
        fs::write(self.folder.join("target.toml"), target).context("target.toml")?;
        let target = self.serve("target")?;
        let source = self.serve("source")?;
        self.agents = Some(Agents { source, target, _link: link });
        Ok(())
    }

    fn store(&self) -> PathBuf {
        self.apart.as_ref().unwrap_or(&self.folder).join("store")
    }

    fn ends(&self) -> Ends<'_> {
        self.network.as_deref().map_or(Ends::LOOPBACK, Ends::apart)
    }

    fn command(&self, role: &str) -> Command {
        let program = self.bin.join(format!("assay-{role}"));
        let mut command =
            if role == "target" { self.ends().far_command(program) } else { Command::new(program) };
        command.args(["--config", &format!("{role}.toml")]).current_dir(&self.folder);
        command
    }

    fn serve(&self, role: &str) -> Result<Background> {
        let name = format!("assay-{role}");
        let log = self.folder.join(format!("{role}.log"));
        let start = || Background::start(self.command(role).arg("serve"), &name, &log);
        let mut agent =
            if self.apart.is_some() && role == "target" { hosts::on(Host::Backup, start)? } else { start() }?;
        agent
            .wait_until(|| succeed(self.command(role).arg("status")).is_ok())
            .with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        Ok(agent)
    }

    /// Ends the agents and moves all that is theirs out of the way.
    ///
    /// # Errors
    ///
    /// When something cannot be removed.
    pub fn remove(&mut self) -> Result<()> {
        self.agents = None;
        discard(&self.folder)
    }

    /// The tree of the newest generation.
    pub fn latest(&self) -> PathBuf {
        self.store().join("repo/latest/tree")
    }

    /// One measured run, to its verdict.
    ///
    /// # Errors
    ///
    /// When the run does not end with PASS.
    pub fn run(&mut self) -> Result<Sample> {
        let agents = self.agents.as_ref().context("the agents were not started")?;
        let (source, target) = (agents.source.pid(), agents.target.pid());
        reset_peak(source)?;
        reset_peak(target)?;
        let time_file = self.folder.join("time");
        let before = (cpu_seconds(source)?, cpu_seconds(target)?, self.ends().wire_bytes()?);
        let start = Instant::now();
        let mut child = Command::new("time")
            .args(["-f", TIME_FORMAT, "-o"])
            .arg(&time_file)
            .arg(self.bin.join("assay-source"))
            .args(["--config", "source.toml", "--json", "run", "--follow"])
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("time does not start")?;
        let mut phases: Vec<(String, Instant)> = Vec::new();
        let mut last = String::new();
        for line in BufReader::new(child.stdout.take().context("its output")?).lines() {
            last = line.context("its output")?;
            let phase = phase_of(&last);
            if phases.last().is_none_or(|(known, _)| *known != phase) {
                phases.push((phase, Instant::now()));
            }
        }
        let output = child.wait_with_output().context("wait")?;
        let wall = start.elapsed().as_secs_f64();
        ensure!(
            output.status.success(),
            "the run ended with {}: {last}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        let (command_cpu, _) = read_time_file(&time_file)?;
        let wire = self.ends().wire_bytes()? - before.2;
        self.wait_for_the_next_tree(&last)?;
        Ok(Sample {
            wall,
            // The operator's command line works on the source's host too.
            source_cpu: cpu_seconds(source)? - before.0 + command_cpu,
            target_cpu: cpu_seconds(target)? - before.1,
            source_peak: peak_bytes(source)?,
            target_peak: Some(peak_bytes(target)?),
            wire,
            phases: phases
                .windows(2)
                .map(|pair| (pair[0].0.clone(), (pair[1].1 - pair[0].1).as_secs_f64()))
                .collect(),
        })
    }
}

impl Assay {
    /// Waits until the target has laid out the tree of the run's generation for the next one, and copied what is likely to
    /// change: that is work that the run left behind. It counts as the target's, and it does not disturb what is measured next.
    #[allow(clippy::disallowed_methods, reason = "a short poll, outside of what is measured")]
    fn wait_for_the_next_tree(&self, run: &str) -> Result<()> {
        let run: serde_json::Value = serde_json::from_str(run).context("the run's last line")?;
        let root = run["rootDigest"].as_str().context("the run has no rootDigest")?.to_owned();
        let start = Instant::now();
        for of in ["ahead/of", "copies/of"] {
            let of = self.store().join("repo").join(of);
            while fs::read_to_string(&of).unwrap_or_default().split_whitespace().next() != Some(root.as_str())
            {
                ensure!(start.elapsed() < AHEAD_PATIENCE, "the target did not prepare its next run: {root}");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }
}

fn phase_of(line: &str) -> String {
    let run: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
    run["phase"].as_str().unwrap_or_default().trim_start_matches("PHASE_").to_lowercase()
}
