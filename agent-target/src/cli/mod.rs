//! The operators' command line of the target.

mod doctor;
mod examine;
mod init;
mod keep;
mod keys;
mod ledger;
mod note;
mod ops;
mod report;
mod restore;
mod shares;
mod status;
mod web;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use assay_common::{
    cli::{
        Colour, CommandError, Connection, PkiCommand, RestoreArgs, VerifyArgs, all, end, outcome_code, print,
        print_as_json, print_json, screen, show, without_connection,
    },
    json::to_output,
    keyring::Keyring,
    memory,
    pki::Role,
    telemetry,
    tls::{Credentials, TlsFiles, revocation},
    verdict::Outcome,
};
use assay_proto::v1::{
    BisectRequest, GetTargetStatusRequest, GetVerdictRequest, ListGenerationsRequest, ListVerdictsRequest,
    RunControlRequest, VerifyGenerationRequest, target_service_client::TargetServiceClient,
};
use tonic::{Status, transport::Channel};

use crate::{
    app,
    config::{self, Config},
    engine::{git, postgresql, sqlite, subversion},
};

/// Where the configuration is when the line does not say.
const DEFAULT_CONFIG: &str = "/etc/assay/target.toml";
/// What `config init` writes.
const SAMPLE: &str = include_str!("sample.toml");
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// Receives backups, seals them, runs the engine's own check on each, and signs what came out.
///
/// Exit codes: 0 PASS or done, 1 FAIL, 2 usage or configuration, 3 INCONCLUSIVE, 4 could not reach or run.
#[derive(Debug, clap::Parser)]
#[command(name = "assay-target", version)]
struct Cli {
    /// Configuration file
    #[arg(long, global = true, value_name = "FILE", env = "ASSAY_TARGET_CONFIG", default_value = DEFAULT_CONFIG)]
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
    Serve,
    /// Show what is proven good, and what is being done
    Status {
        /// Only this repository
        repository: Option<String>,
    },
    /// List the sealed generations, newest first
    Generations {
        #[command(flatten)]
        which: Which,
    },
    /// Run the engine's check on a sealed generation again
    Verify {
        #[command(flatten)]
        which: Which,
        /// Number of the generation; the newest when it is left out
        #[arg(
            long,
            default_value_t = 0,
            hide_default_value = true,
            value_name = "NUMBER",
            conflicts_with = "all"
        )]
        generation: u64,
    },
    /// Damage a verified generation in a workspace, on purpose: the check must find it
    ///
    /// Exit codes: 0 it did, 1 it passed damaged data, 3 it could not do its work.
    Control {
        #[command(flatten)]
        which: Which,
    },
    /// Find the first bad generation between the last that passed and the first that failed, and list what changed in it
    Bisect {
        /// Repository; may be left out when there is one only
        #[arg(default_value = "", hide_default_value = true)]
        repository: String,
    },
    /// Say in plain words what a verdict means, where the fault came in, and what to do next
    Explain {
        /// As `verdict list` gives it, or the name of a repository for its newest; the newest when it is left out
        #[arg(default_value = "", hide_default_value = true)]
        id: String,
        /// Repository; may be left out when there is one only
        #[arg(long, default_value = "", hide_default_value = true)]
        repository: String,
    },
    /// Take a generation back out of the store on this host, whether the agent runs or not
    ///
    /// Exit codes: 0 everything is there and right, 1 some files are not in the store as they were sealed, 2 usage, 4 it could not be done.
    Restore(RestoreArgs),
    #[command(flatten)]
    Keep(keep::KeepCommand),
    /// List, show and check verdicts
    #[command(subcommand)]
    Verdict(VerdictCommand),
    /// Check the ledger as a whole, here or as a copy
    #[command(subcommand)]
    Ledger(ledger::LedgerCommand),
    /// Sign notes on exceptions, for whoever reads the report, and list them
    #[command(subcommand)]
    Note(note::NoteCommand),
    /// Print what was proven in a period, as evidence for those who did not see it
    ///
    /// It is read from the store of this host, whether the agent runs or not, and says how to verify it without this program.
    /// Exit codes: 0 every ledger is sound, 1 one is not, 2 usage, 4 one cannot be read.
    Report(report::ReportArgs),
    /// List and replace the key with which this target signs verdicts
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Write and check configurations
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Checks of engines, as profiles call them
    #[command(subcommand, hide = true)]
    Engine(EngineCommand),
    /// Make certificates and keys
    #[command(subcommand)]
    Pki(PkiCommand),
    /// Log in to the page for a browser
    #[command(subcommand)]
    Web(web::WebCommand),
    #[command(flatten)]
    Ops(ops::OpsCommand),
}

/// Which repository.
#[derive(Debug, Clone, Default, clap::Args)]
struct Which {
    /// Repository; may be left out when there is one only
    #[arg(default_value = "", hide_default_value = true)]
    repository: String,
    /// All repositories, one after the other; the exit code is the worst
    #[arg(long, conflicts_with = "repository")]
    all: bool,
}

impl Which {
    fn one(repository: &str) -> Self {
        Self { repository: repository.to_owned(), all: false }
    }
}

impl Command {
    /// True if it is asked for all repositories.
    fn is_of_all(&self) -> bool {
        match self {
            Self::Generations { which } | Self::Verify { which, .. } | Self::Control { which } => which.all,
            Self::Keep(command) => command.is_of_all(),
            _ => false,
        }
    }

    /// The same for one repository.
    fn of_one(&self, repository: &str) -> Self {
        let which = Which::one(repository);
        match self {
            Self::Verify { generation, .. } => Self::Verify { which, generation: *generation },
            Self::Control { .. } => Self::Control { which },
            Self::Keep(command) => Self::Keep(command.of_one(repository)),
            _ => Self::Generations { which },
        }
    }
}

#[derive(Debug, clap::Subcommand)]
enum VerdictCommand {
    /// List the ledger, newest first
    List {
        /// Repository; may be left out when there is one only
        #[arg(default_value = "", hide_default_value = true)]
        repository: String,
        /// At most this many
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// Show one verdict
    Show {
        /// As the list gives it; the newest when it is left out
        #[arg(default_value = "", hide_default_value = true)]
        id: String,
        /// Repository; may be left out when there is one only
        #[arg(long, default_value = "", hide_default_value = true)]
        repository: String,
        /// Print the signed envelope as it is stored
        #[arg(long)]
        envelope: bool,
    },
    /// Check a verdict file against pinned keys, offline
    Verify(VerifyArgs),
}

#[derive(Debug, clap::Subcommand)]
#[allow(clippy::enum_variant_names, reason = "they are the names of the commands")]
enum EngineCommand {
    /// Check a copied PostgreSQL cluster on a server of its own
    PostgresqlCheck(postgresql::Arguments),
    /// Check a copied git repository with a directory of our own over its objects and references
    GitCheck(git::Arguments),
    /// Check copied SQLite databases
    SqliteCheck(sqlite::Arguments),
    /// Verify a copied Subversion repository without its own settings
    SubversionCheck(subversion::Arguments),
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
    "verdict verify",
    "ledger",
    "note",
    "report",
    "keys",
    "config",
    "pki",
    "init",
    "invite",
    "accept",
    "doctor",
    "notify",
    "completions",
    "man",
    "restore",
    "engine",
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
    let is_answer = !matches!(
        &cli.command,
        Command::Serve | Command::Ops(ops::OpsCommand::Completions { .. }) | Command::Engine(_)
    );
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
            error.hint("assay-target config init FILE writes one to start from")
        }
    })
}

fn runtime() -> Result<tokio::runtime::Runtime, CommandError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| CommandError::not_run(format!("the runtime cannot be started: {error}")))
}

fn run(cli: Cli) -> Result<ExitCode, CommandError> {
    match cli.command {
        Command::Serve => {
            let config = load(&cli.config)?;
            telemetry::install(config.agent.log);
            memory::bound_arenas();
            // What is created below takes its mode from the manifest, not from this process.
            rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
            let served = runtime()?.block_on(app::serve(config, &cli.config));
            served.map_err(|error| CommandError::not_served(format!("{error:#}"), error.chain()))?;
            // Checks that still run are on threads of their own, and their sandboxes die with them.
            Ok(ExitCode::SUCCESS)
        }
        Command::Restore(arguments) => restore::restore(&load(&cli.config)?, arguments, cli.json),
        Command::Pki(command) => command.run(),
        Command::Ops(command) => ops::run(command, &cli.config, &cli.connection, cli.json),
        Command::Engine(EngineCommand::PostgresqlCheck(arguments)) => Ok(postgresql::check(&arguments)),
        Command::Engine(EngineCommand::GitCheck(arguments)) => Ok(git::check(&arguments)),
        Command::Engine(EngineCommand::SqliteCheck(arguments)) => Ok(sqlite::check(&arguments)),
        Command::Engine(EngineCommand::SubversionCheck(arguments)) => Ok(subversion::check(&arguments)),
        Command::Verdict(VerdictCommand::Verify(arguments)) => arguments.run(cli.json),
        Command::Ledger(command) => ledger::run(command, || load(&cli.config), cli.json),
        Command::Note(command) => note::run(command, &load(&cli.config)?, cli.json),
        Command::Report(arguments) => report::run(&arguments, &load(&cli.config)?),
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
    print(&format!("wrote {}: edit it, then run assay-target config check --config {0}\n", file.display()));
    Ok(ExitCode::SUCCESS)
}

fn config_check(path: &Path, json: bool) -> Result<ExitCode, CommandError> {
    let config = load(path)?;
    let mut faults = Vec::new();
    faults.extend(Credentials::load(&config.tls, &[Role::Target]).err().map(|error| error.to_string()));
    faults.extend(restore::own_keys(&config).err().map(|error| error.to_string()));
    for repository in &config.repositories {
        faults.extend(Keyring::load(&repository.source_key).err().map(|error| error.to_string()));
        if let Err(missing) = repository.profile.bind_for_checks(&repository.vars, None) {
            faults
                .extend(missing.into_iter().map(|fault| format!("repository {}: {fault}", repository.name)));
        }
        for file in repository.overlays.values().filter(|file| !file.is_file()) {
            faults.push(format!("repository {}: overlay: {}: no such file", repository.name, file.display()));
        }
        for place in repository.overlays.keys() {
            if !repository.profile.overlays.iter().any(|overlay| overlay.path == *place) {
                let known: Vec<_> =
                    repository.profile.overlays.iter().map(|overlay| overlay.path.as_str()).collect();
                let name = &repository.name;
                faults.push(format!("repository {name}: overlay: {place:?}: the profile has {known:?}"));
            }
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

async fn ask(
    command: Command,
    connection: &Connection,
    configured: Option<(String, TlsFiles)>,
    json: bool,
) -> Result<ExitCode, CommandError> {
    let (channel, url): (Channel, String) = connection.open(Role::Target, configured).await?;
    let client = TargetServiceClient::new(channel).max_decoding_message_size(64 * 1024 * 1024);
    if !command.is_of_all() {
        return ask_one(command, client, &url, json).await;
    }
    let call = client.clone().get_target_status(GetTargetStatusRequest {}).await;
    let status = call.map_err(|status| CommandError::from_status(&status, &url))?.into_inner();
    let mut each = all::Each::new(json);
    for repository in status.repositories {
        each.begin(&repository.repository);
        let one = command.of_one(&repository.repository);
        each.end(ask_one(one, client.clone(), &url, json).await);
    }
    Ok(each.code())
}

async fn ask_one(
    command: Command,
    mut client: TargetServiceClient<Channel>,
    url: &str,
    json: bool,
) -> Result<ExitCode, CommandError> {
    let failed = |status: Status| CommandError::from_status(&status, url);
    let timed = |message: &str| CommandError::not_run(format!("{url} did not answer in time: {message}"));
    match command {
        Command::Status { repository } => {
            let call = client.get_target_status(GetTargetStatusRequest {});
            let answer = tokio::time::timeout(PATIENCE, call).await.map_err(|_| timed("status"))?;
            let mut status = answer.map_err(failed)?.into_inner();
            if let Some(wanted) = repository.as_deref().map(all::real_name) {
                let known = all::names(status.repositories.iter().map(|it| &*it.repository));
                status.repositories.retain(|it| it.repository == wanted);
                all::refuse_unknown(&wanted, "on this target", &known)?;
            }
            if json {
                print_json(&to_output("GetTargetStatusResponse", &status));
            } else {
                print(&status::text(&status));
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Web(command) => {
            let answer = tokio::time::timeout(PATIENCE, command.call(&mut client));
            let login = answer.await.map_err(|_| timed("web login"))?.map_err(failed)?;
            if json {
                print_json(&to_output("WebLogin", &login));
            } else {
                print(&web::text(&login));
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Generations { which: Which { repository, .. } } => {
            let call = client.list_generations(ListGenerationsRequest { repository });
            let answer = tokio::time::timeout(PATIENCE, call).await.map_err(|_| timed("generations"))?;
            let list = answer.map_err(failed)?.into_inner().generations;
            if json {
                list.iter().for_each(|generation| print_json(&to_output("Generation", generation)));
            } else {
                print(&show::generations(&list));
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Verify { which: Which { repository, .. }, generation } => {
            let request = VerifyGenerationRequest { repository, number: generation };
            let mut progress = client.verify_generation(request).await.map_err(failed)?.into_inner();
            while let Some(message) = progress.message().await.map_err(failed)? {
                let Some(verdict) = message.verdict else {
                    if !json && !message.step.is_empty() {
                        print(&format!("checking: {}\n", screen::safe(&message.step)));
                    }
                    continue;
                };
                let outcome = Outcome::try_from(verdict.outcome()).ok();
                show_verdict(&verdict, false, json)?;
                return Ok(outcome_code(outcome));
            }
            Err(CommandError::not_run(format!("{url}: the check ended without a verdict")))
        }
        Command::Control { which: Which { repository, .. } } => {
            let request = RunControlRequest { repository };
            let mut progress = client.run_control(request).await.map_err(failed)?.into_inner();
            while let Some(message) = progress.message().await.map_err(failed)? {
                let Some(control) = message.control else {
                    if !json && !message.step.is_empty() {
                        print(&format!("checking: {}\n", screen::safe(&message.step)));
                    }
                    continue;
                };
                if json {
                    print_json(&to_output("NegativeControl", &control));
                } else {
                    print(&examine::control(&control));
                }
                // The repository is free again when the stream ends.
                while let Ok(Some(_)) = progress.message().await {}
                return Ok(examine::control_code(control.outcome()));
            }
            Err(CommandError::not_run(format!("{url}: the control ended without a result")))
        }
        Command::Bisect { repository } => {
            let request = BisectRequest { repository };
            let mut progress = client.bisect(request).await.map_err(failed)?.into_inner();
            let mut shown = String::new();
            while let Some(message) = progress.message().await.map_err(failed)? {
                if let Some(ended) = message.ended {
                    if json {
                        print_json(&to_output("Bisected", &ended));
                    } else {
                        print(&examine::bisected(&ended));
                    }
                    return Ok(ExitCode::SUCCESS);
                }
                let line = examine::bisecting(&message);
                if !json && line != shown {
                    print(&line);
                    shown = line;
                }
            }
            Err(CommandError::not_run(format!("{url}: the bisection ended without a result")))
        }
        Command::Keep(command) => keep::ask(command, client, url, json).await,
        Command::Explain { id, repository } => {
            // Verdicts have numbers for names.
            let is_name =
                repository.is_empty() && !id.is_empty() && !id.bytes().all(|byte| byte.is_ascii_digit());
            let (id, repository) = if is_name { (String::new(), id) } else { (id, repository) };
            let call = client.get_verdict(GetVerdictRequest { repository, id });
            let answer = tokio::time::timeout(PATIENCE, call).await.map_err(|_| timed("explain"))?;
            let answer = answer.map_err(failed)?.into_inner();
            let verdict = assay_common::verdict::unverified_verdict(answer.envelope.as_bytes())
                .map_err(|error| CommandError::not_run(error.to_string()))?;
            print(&format!("{}{}", assay_common::cli::explain(&verdict), show::notes(&answer.notes)));
            Ok(ExitCode::SUCCESS)
        }
        Command::Verdict(VerdictCommand::List { repository, limit }) => {
            let call = client.list_verdicts(ListVerdictsRequest { repository, limit });
            let answer = tokio::time::timeout(PATIENCE, call).await.map_err(|_| timed("verdict list"))?;
            let list = answer.map_err(failed)?.into_inner().verdicts;
            if json {
                list.iter().for_each(|verdict| print_json(&to_output("Verdict", verdict)));
            } else {
                print(&show::verdicts(&list));
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Verdict(VerdictCommand::Show { id, repository, envelope }) => {
            let call = client.get_verdict(GetVerdictRequest { repository, id });
            let answer = tokio::time::timeout(PATIENCE, call).await.map_err(|_| timed("verdict show"))?;
            show_verdict(&answer.map_err(failed)?.into_inner(), envelope, json)?;
            Ok(ExitCode::SUCCESS)
        }
        _ => unreachable!("commands that need no agent were done before"),
    }
}

fn show_verdict(verdict: &assay_proto::v1::Verdict, envelope: bool, json: bool) -> Result<(), CommandError> {
    if envelope {
        assay_common::cli::print_raw(&verdict.envelope);
    } else if json {
        let mut value = to_output("Verdict", verdict);
        let read = assay_common::verdict::unverified_verdict(verdict.envelope.as_bytes());
        if let (Some(fields), Ok(read)) = (value.as_object_mut(), read) {
            // As they are signed, in the envelope.
            fields.insert("coverage".to_owned(), serde_json::to_value(&read.coverage).unwrap_or_default());
            fields
                .insert("notCopied".to_owned(), serde_json::to_value(read.not_copied()).unwrap_or_default());
        }
        print_json(&value);
    } else {
        let read = assay_common::verdict::unverified_verdict(verdict.envelope.as_bytes())
            .map_err(|error| CommandError::not_run(error.to_string()))?;
        print(&format!("{}{}", show::verdict(&read), show::notes(&verdict.notes)));
    }
    Ok(())
}
