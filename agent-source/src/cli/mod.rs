//! The operators' command line of the source.

mod detect;
mod doctor;
mod follow;
mod init;
mod keys;
mod live;
mod ops;
mod plan;
mod refusals;
mod restore;
mod status;

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use assay_common::{
    cli::{
        Colour, CommandError, Connection, PkiCommand, VerifyArgs, all, end, outcome_code, print,
        print_as_json, print_json, screen, show, without_connection,
    },
    id::RunId,
    json::to_output,
    keyring::Keyring,
    memory,
    pki::Role,
    signing::SigningKey,
    telemetry,
    tls::{Credentials, TlsFiles, revocation},
    verdict::{Outcome, unverified_verdict},
};
use assay_proto::v1::{
    CancelRunRequest, GetStatusRequest, ListRunsRequest, PlanRunRequest, StartRunRequest, WatchRunRequest,
    source_service_client::SourceServiceClient,
};
use tonic::{Status, transport::Channel};

use follow::Followed;

use crate::{
    app,
    config::{self, AgentSection, Config},
    state::{RepositoryState, StateError},
};

/// Where the configuration is when the line does not say.
const DEFAULT_CONFIG: &str = "/etc/assay/source.toml";
/// What `config init` writes.
const SAMPLE: &str = include_str!("sample.toml");
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// Marks the live repository, sends what changed, and has the copy checked on the target.
///
/// Exit codes: 0 PASS or done, 1 FAIL, 2 usage or configuration, 3 INCONCLUSIVE, 4 could not reach or run.
#[derive(Debug, clap::Parser)]
#[command(name = "assay-source", version)]
struct Cli {
    /// Configuration file
    #[arg(long, global = true, value_name = "FILE", env = "ASSAY_SOURCE_CONFIG", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Print JSON, one object a line
    #[arg(long, global = true)]
    json: bool,
    /// When output has colours; NO_COLOR is honoured
    #[arg(long, global = true, value_name = "WHEN", value_enum, default_value_t)]
    color: Colour,
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Run the service
    Serve {
        /// Threads that read, cut and compress, instead of the configuration's
        #[arg(long, value_name = "N")]
        threads: Option<std::num::NonZeroUsize>,
    },
    /// Start a run
    Run {
        /// Repository; may be left out when there is one only
        #[arg(default_value = "", hide_default_value = true)]
        repository: String,
        /// Stay until it has ended; the exit code is that of its outcome
        #[arg(long)]
        follow: bool,
        /// Read every file again, whether it seems changed or not
        #[arg(long)]
        full_read: bool,
        /// Let this run drop more entries than max_drop_percent allows; stands in the verdict
        #[arg(long)]
        allow_mass_drop: bool,
        /// Let this run read a root that is not the folder of last time; stands in the verdict
        #[arg(long)]
        allow_new_root: bool,
        /// Go on from what the target has, although this source knows another history
        #[arg(long)]
        accept_history: bool,
        /// Check every part of the copy, also those that have not changed since they passed
        #[arg(long)]
        full_check: bool,
    },
    /// Say what a run would read, send, drop and check, and what would stop it; nothing is done
    ///
    /// Exit codes: 0 it would come to its check, 4 something would stop it before.
    Plan {
        /// Repository; may be left out when there is one only
        #[arg(default_value = "", hide_default_value = true)]
        repository: String,
        /// As if every file were read again
        #[arg(long)]
        full_read: bool,
    },
    /// Follow a run to its end; the exit code is that of its outcome. Without a run: all repositories, live, until Ctrl-C
    Watch {
        /// Id of the run. When it is left out: a live view of all repositories on a terminal; else the run under way, or the newest
        #[arg(default_value = "", hide_default_value = true)]
        run_id: String,
    },
    /// Show when each repository was last proven good, and what is being done
    Status {
        /// Only this repository
        repository: Option<String>,
    },
    /// List the runs, newest first
    Runs {
        /// Repository; all when it is left out
        #[arg(default_value = "", hide_default_value = true)]
        repository: String,
        /// At most this many
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// Ask a run to stop
    Cancel {
        /// Id of the run
        run_id: String,
    },
    /// Say in plain words how a run ended, by the verdict that this host has kept if there is one, and what to do next
    Explain {
        /// Id of the run, or name of a repository for its newest run; the newest of all when it is left out
        #[arg(default_value = "", hide_default_value = true)]
        run_id: String,
    },
    Restore(restore::Restore),
    /// List, show and check the verdicts that this host has kept
    #[command(subcommand)]
    Verdict(VerdictCommand),
    /// List the keys that this source believes and signs with, and take new ones
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Write and check configurations
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Make certificates and keys
    #[command(subcommand)]
    Pki(PkiCommand),
    #[command(flatten)]
    Ops(ops::OpsCommand),
}

#[derive(Debug, clap::Subcommand)]
enum VerdictCommand {
    /// List the verdicts, newest first
    List {
        /// Repository; all when it is left out
        repository: Option<String>,
    },
    /// Show one verdict
    Show {
        /// Id of its run
        run_id: String,
        /// Print the signed envelope as it is stored
        #[arg(long)]
        envelope: bool,
    },
    /// Check a verdict file against pinned keys, offline
    Verify(VerifyArgs),
}

#[derive(Debug, clap::Subcommand)]
enum ConfigCommand {
    /// Write a commented configuration to start from
    Init {
        /// The file; nothing is overwritten
        file: PathBuf,
    },
    /// Check the configuration and every file that it names
    Check,
}

/// Commands that ask no agent.
const OFFLINE: &[&str] = &[
    "serve",
    "verdict",
    "keys",
    "config",
    "pki",
    "init",
    "add",
    "acceptance",
    "doctor",
    "notify",
    "completions",
    "man",
    "explain",
];

/// The definition of the command line.
fn definition() -> clap::Command {
    without_connection(<Cli as clap::CommandFactory>::command(), OFFLINE)
}

/// The same for manual pages, without the commands that only print help.
fn definition_of_pages() -> clap::Command {
    without_connection(<Cli as clap::CommandFactory>::command().disable_help_subcommand(true), OFFLINE)
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let cli: Cli = assay_common::cli::parse(definition());
    // What these print is no answer: a script for a shell, pages, and the lines that a checker says.
    let is_answer =
        !matches!(&cli.command, Command::Serve { .. } | Command::Ops(ops::OpsCommand::Completions { .. }));
    print_as_json(cli.json && is_answer);
    cli.color.install();
    end(run(cli))
}

fn load(path: &Path) -> Result<Config, CommandError> {
    let loaded = config::load(path).inspect(|config| {
        // Also for those that this command calls.
        revocation::install(config.revoked.clone());
        all::know_aliases(config.repositories.iter().map(|repository| (&repository.alias, &repository.name)));
    });
    loaded.map_err(|error| {
        let error = CommandError::usage(error.to_string());
        if path.exists() {
            error
        } else {
            error.hint("assay-source config init FILE writes one to start from")
        }
    })
}

fn runtime() -> Result<tokio::runtime::Runtime, CommandError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| CommandError::not_run(format!("the runtime cannot be started: {error}")))
}

/// Leaves the live server its processors. Before any other thread exists: threads take over what they are started with.
fn step_back(agent: &AgentSection) {
    if let Err(error) = rustix::process::setpriority_process(None, agent.nice()) {
        tracing::warn!(%error, nice = agent.nice(), "the agent cannot be made nicer");
    }
    if let Err(error) = rayon::ThreadPoolBuilder::new().num_threads(agent.threads()).build_global() {
        tracing::warn!(%error, "the number of threads is the machine's");
    }
}

fn run(cli: Cli) -> Result<ExitCode, CommandError> {
    match cli.command {
        Command::Serve { threads } => {
            let mut config = load(&cli.config)?;
            config.agent.threads = threads.map(std::num::NonZeroUsize::get).or(config.agent.threads);
            telemetry::install(config.agent.log);
            memory::bound_arenas();
            step_back(&config.agent);
            let runtime = runtime()?;
            let served = runtime.block_on(app::serve(config, &cli.config));
            // A mark's end command gets its chance; what still runs after that is cut off.
            runtime.shutdown_timeout(std::time::Duration::from_secs(10));
            served.map_err(|error| CommandError::not_served(format!("{error:#}"), error.chain()))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Restore(restore) => {
            let config = if cli.config.exists() { Some(load(&cli.config)?) } else { None };
            runtime()?.block_on(restore.run(config.as_ref(), &cli.connection, cli.json))
        }
        Command::Pki(command) => command.run(),
        Command::Ops(command) => ops::run(command, &cli.config, &cli.connection, cli.json),
        Command::Verdict(VerdictCommand::Verify(arguments)) => arguments.run(cli.json),
        Command::Verdict(command) => verdict(&load(&cli.config)?, command, cli.json),
        Command::Explain { run_id } => {
            let config = load(&cli.config)?;
            let text = explained(&config, &all::real_name(&run_id))?;
            print(&text);
            Ok(ExitCode::SUCCESS)
        }
        Command::Keys(command) => keys::run(command, &load(&cli.config)?, cli.json),
        Command::Config(ConfigCommand::Init { file }) => config_init(&file),
        Command::Config(ConfigCommand::Check) => config_check(&cli.config, cli.json),
        command => {
            let configured =
                if cli.connection.is_whole() { None } else { Some(endpoint(&load(&cli.config)?)) };
            runtime()?.block_on(ask(command, &cli.connection, configured, cli.json))
        }
    }
}

/// Where the operators' command line finds the agent of this configuration.
fn endpoint(config: &Config) -> (String, TlsFiles) {
    (assay_common::cli::local_url(config.agent.listen), config.operator_tls.clone())
}

fn config_init(file: &Path) -> Result<ExitCode, CommandError> {
    assay_common::cli::write_new(file, SAMPLE)?;
    print(&format!("wrote {}: edit it, then run assay-source config check --config {0}\n", file.display()));
    Ok(ExitCode::SUCCESS)
}

fn config_check(path: &Path, json: bool) -> Result<ExitCode, CommandError> {
    let config = load(path)?;
    let mut faults = config.never.clone();
    faults.extend(Credentials::load(&config.tls, &[Role::Source]).err().map(|error| error.to_string()));
    faults.extend(SigningKey::load(&config.signing_key).err().map(|error| error.to_string()));
    faults.extend(Keyring::load(&config.target.signing_key).err().map(|error| error.to_string()));
    for repository in &config.repositories {
        for root in repository.header.roots.iter().filter(|root| !Path::new(&root.live_path).is_dir()) {
            faults.push(format!("repository {}: root {}: no such folder", repository.name, root.live_path));
        }
    }
    if !faults.is_empty() {
        return Err(CommandError::usage(faults.join("\nerror: ")));
    }
    let names: Vec<_> = config.repositories.iter().map(|repository| repository.name.as_str()).collect();
    if json {
        let config = path.display().to_string();
        print_json(&serde_json::json!({ "config": config, "good": true, "repositories": names }));
    } else {
        print(&format!("{}: good; repositories: {}\n", path.display(), names.join(", ")));
    }
    Ok(ExitCode::SUCCESS)
}

/// The verdicts that this host has kept, newest first, by repository: read from its own disk, so that they are there when no
/// agent is.
fn kept_verdicts(config: &Config) -> Result<Vec<(String, PathBuf)>, CommandError> {
    let mut kept = Vec::new();
    for repository in &config.repositories {
        let state = RepositoryState::open(&config.agent.state, &repository.name)
            .map_err(|error| CommandError::not_run(error.to_string()))?;
        let files = std::fs::read_dir(state.verdicts()).into_iter().flatten().flatten();
        kept.extend(files.map(|file| (repository.name.clone(), file.path())));
    }
    kept.sort_by(|left, right| right.1.file_name().cmp(&left.1.file_name()));
    Ok(kept)
}

/// A run in plain words, by its verdict if one is kept; without an id the newest that has ended, with a verdict or without.
fn explained(config: &Config, run_id: &str) -> Result<String, CommandError> {
    let fault = |error: StateError| CommandError::not_run(error.to_string());
    let kept = kept_verdicts(config)?;
    let mut runs: Vec<(RunId, RepositoryState)> = Vec::new();
    let of_repository = config.repositories.iter().any(|repository| repository.name == run_id);
    let (kept, repositories): (Vec<_>, Vec<_>) = (
        kept.into_iter().filter(|(name, _)| !of_repository || name == run_id).collect(),
        config.repositories.iter().filter(|it| !of_repository || it.name == run_id).collect(),
    );
    // Of these, the newest.
    let run_id = if of_repository { "" } else { run_id };
    for repository in repositories {
        let open = || RepositoryState::open(&config.agent.state, &repository.name).map_err(fault);
        for id in open()?.run_ids().map_err(fault)? {
            if run_id.is_empty() || id.to_string() == run_id {
                runs.push((id, open()?));
            }
        }
    }
    runs.sort_by(|left, right| right.0.cmp(&left.0));
    for (id, state) in runs {
        if kept.iter().any(|(_, path)| path.file_stem().is_some_and(|name| name == id.as_str())) {
            return explained_verdict(&kept, id.as_str());
        }
        let run = state.run(&id).map_err(fault)?;
        if run.finished.is_some() || !run_id.is_empty() {
            return Ok(assay_common::cli::explain_run(&run));
        }
    }
    // The runs themselves are kept for a shorter time.
    explained_verdict(&kept, run_id)
}

fn explained_verdict(kept: &[(String, PathBuf)], run_id: &str) -> Result<String, CommandError> {
    let (_, bytes) = kept_verdict(kept, run_id)?;
    let verdict = unverified_verdict(&bytes).map_err(|error| CommandError::not_run(error.to_string()))?;
    Ok(assay_common::cli::explain(&verdict))
}

/// The verdict of a run; of the newest when it is not named.
fn kept_verdict(kept: &[(String, PathBuf)], run_id: &str) -> Result<(PathBuf, Vec<u8>), CommandError> {
    let file = format!("{run_id}.json");
    let is_wanted =
        |path: &Path| run_id.is_empty() || path.file_name().is_some_and(|name| name == file.as_str());
    let Some((_, path)) = kept.iter().find(|(_, path)| is_wanted(path)) else {
        let what = if run_id.is_empty() { String::new() } else { format!(" of run {run_id:?}") };
        return Err(CommandError::usage(format!("no verdict{what} is kept here"))
            .hint("assay-source verdict list shows those that are"));
    };
    let bytes =
        std::fs::read(path).map_err(|error| CommandError::not_run(format!("{}: {error}", path.display())))?;
    Ok((path.clone(), bytes))
}

fn verdict(config: &Config, command: VerdictCommand, json: bool) -> Result<ExitCode, CommandError> {
    let kept = kept_verdicts(config)?;
    match command {
        VerdictCommand::List { repository } => {
            if !json {
                print(&format!(
                    "{:<24} {:<13} {:<22} {:>5}  {}\n",
                    "RUN", "OUTCOME", "REASON", "GEN", "REPOSITORY"
                ));
            }
            for (name, path) in kept
                .iter()
                .filter(|(name, _)| repository.as_ref().is_none_or(|wanted| all::real_name(wanted) == *name))
            {
                let Some(verdict) =
                    std::fs::read(path).ok().and_then(|bytes| unverified_verdict(&bytes).ok())
                else {
                    continue;
                };
                if json {
                    print_json(&serde_json::to_value(&verdict).unwrap_or_default());
                } else {
                    let generation =
                        verdict.generation.map_or_else(|| "-".to_owned(), |number| number.to_string());
                    print(&format!(
                        "{:<24} {:<13} {:<22} {generation:>5}  {name}\n",
                        verdict.run_id.as_str(),
                        verdict.outcome.to_string(),
                        screen::safe(&verdict.reason)
                    ));
                    if verdict.outcome == Outcome::Pass {
                        print(&show::claim_lines(&verdict.claims_proto()));
                    }
                }
            }
            Ok(ExitCode::SUCCESS)
        }
        VerdictCommand::Show { run_id, envelope } => {
            let (path, bytes) = kept_verdict(&kept, &run_id)?;
            let verdict =
                unverified_verdict(&bytes).map_err(|error| CommandError::not_run(error.to_string()))?;
            if envelope {
                assay_common::cli::print_raw(&String::from_utf8_lossy(&bytes));
            } else if json {
                print_json(&show::verdict_json(&verdict));
            } else {
                print(&format!("{}  {}\n", path.display(), show::verdict(&verdict)));
            }
            Ok(ExitCode::SUCCESS)
        }
        VerdictCommand::Verify(_) => unreachable!("it was done before"),
    }
}

async fn ask(
    command: Command,
    connection: &Connection,
    configured: Option<(String, TlsFiles)>,
    json: bool,
) -> Result<ExitCode, CommandError> {
    let (channel, url): (Channel, String) = connection.open(Role::Source, configured).await?;
    let mut client = SourceServiceClient::new(channel);
    let failed = |status: Status| CommandError::from_status(&status, &url);
    let timed = |message: &str| CommandError::not_run(format!("{url} did not answer in time: {message}"));
    match command {
        Command::Run {
            repository,
            follow,
            full_read,
            allow_mass_drop,
            allow_new_root,
            accept_history,
            full_check,
        } => {
            let request = StartRunRequest {
                repository,
                full_read,
                allow_mass_drop,
                allow_new_root,
                accept_history,
                full_check,
            };
            let started = client.start_run(request).await.map_err(failed)?.into_inner();
            let run =
                started.run.ok_or_else(|| CommandError::not_run(format!("{url}: no run was started")))?;
            if follow {
                let followed = follow::follow(&mut client, run.id, json).await.map_err(failed)?;
                return Ok(followed_code(&followed));
            }
            if json {
                print_json(&to_output("Run", &run));
            } else {
                print(&format!("run {} has started; follow it with: assay-source watch {0}\n", run.id));
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Plan { repository, full_read } => {
            plan::plan(&mut client, PlanRunRequest { repository, full_read }, &url, json).await
        }
        Command::Watch { run_id } if run_id.is_empty() && !json && std::io::stdout().is_terminal() => {
            live::watch(&mut client, failed).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Watch { run_id } => {
            let followed = follow::follow(&mut client, run_id, json).await.map_err(failed)?;
            Ok(followed_code(&followed))
        }
        Command::Status { repository } => {
            let call = client.get_status(GetStatusRequest {});
            let answer = tokio::time::timeout(PATIENCE, call).await.map_err(|_| timed("status"))?;
            let mut status = answer.map_err(failed)?.into_inner();
            if let Some(wanted) = repository.as_deref().map(all::real_name) {
                let known = all::names(status.repositories.iter().map(|it| &*it.repository));
                status.repositories.retain(|it| it.repository == wanted);
                all::refuse_unknown(&wanted, "on this source", &known)?;
            }
            if json {
                print_json(&to_output("GetStatusResponse", &status));
            } else {
                print(&status::text(&status));
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Runs { repository, limit } => {
            let call = client.list_runs(ListRunsRequest { repository, limit });
            let answer = tokio::time::timeout(PATIENCE, call).await.map_err(|_| timed("runs"))?;
            let list = answer.map_err(failed)?.into_inner().runs;
            if json {
                list.iter().for_each(|run| print_json(&to_output("Run", run)));
            } else {
                print(&show::runs(&list));
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Cancel { run_id } => {
            let run = client.cancel_run(CancelRunRequest { run_id }).await.map_err(failed)?.into_inner();
            if json {
                print_json(&to_output("Run", &run));
            } else {
                print(&format!("run {} was told to stop\n", run.id));
            }
            Ok(ExitCode::SUCCESS)
        }
        _ => unreachable!("commands that need no agent were done before"),
    }
}

/// What a shell says of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

fn followed_code(followed: &Followed) -> ExitCode {
    match followed {
        Followed::Ended(run) => outcome_code(Outcome::try_from(run.outcome()).ok()),
        Followed::Left => ExitCode::from(INTERRUPTED),
    }
}

/// The request that follows a run.
fn watch(run_id: String) -> WatchRunRequest {
    WatchRunRequest { run_id }
}
