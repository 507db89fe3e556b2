//! The AccuRev stand-in, all programs in one: it acts by the name that it is called by.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use integration_tests::standin::damage::{Damage, damage};
use integration_tests::standin::install::{InstallOptions, install};
use integration_tests::standin::layout::Installation;
use integration_tests::standin::server::{Event, Server, ServerOptions};
use integration_tests::standin::store::replace;
use integration_tests::standin::texts::fill;
use integration_tests::standin::{Failure, Outcome, Surroundings, client, control, database, maintain};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// A stand-in for AccuRev (this is not AccuRev)
#[derive(Parser)]
#[command(name = "accurev-standin", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make an installation with filled depots in an empty directory
    Install(InstallArguments),
    /// Damage the first depot of an installation, and say what was done
    Damage {
        /// The installation
        dir: PathBuf,
        /// What to do
        kind: Damage,
    },
    /// Act as one of the programs of an installation
    Run {
        /// The installation
        dir: PathBuf,
        /// accurev, accurev_server, maintain, acserverctl, accurev_db or initdb
        program: String,
        /// Its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

#[derive(Args)]
struct InstallArguments {
    /// Where to
    dir: PathBuf,
    /// Name of the live host [default: the name of this host]
    #[arg(long)]
    host: Option<String>,
    /// Port of the server; 0 chooses a free one
    #[arg(long, default_value_t = 5050)]
    port: u16,
    /// Number of depots
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..1000))]
    depots: u32,
    /// What the contents depend on
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of transactions that are there from the start
    #[arg(long, default_value_t = 300)]
    transactions: u64,
    /// 4, or 5 for a repository in a database
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(4..=5))]
    major: u8,
    /// Put the depots there instead of below storage
    #[arg(long)]
    depots_at: Option<PathBuf>,
}

/// The AccuRev server of the stand-in (this is not AccuRev); in the foreground until SIGTERM
#[derive(Parser)]
#[command(name = "accurev_server", version)]
struct ServerArguments {
    /// Transactions a second; 0 writes none
    #[arg(long, default_value_t = 20.0, value_parser = write_rate)]
    write_rate: f64,
    /// Written, with process number and port, once the server serves
    #[arg(long)]
    ready_file: Option<PathBuf>,
    /// Stop writing after so many transactions, and go on serving
    #[arg(long)]
    max_transactions: Option<u64>,
}

fn write_rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|error| format!("{error}"))?;
    // More than a microsecond apart: the pace is kept in a duration that must not become nothing.
    if rate == 0.0 || (0.001..=1e6).contains(&rate) {
        Ok(rate)
    } else {
        Err("not 0, nor from 0.001 to 1000000".into())
    }
}

fn main() -> ExitCode {
    let called: Vec<_> = std::env::args_os().collect();
    let name = called.first().map(Path::new).and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    let outcome =
        if let "accurev" | "accurev_server" | "maintain" | "acserverctl" | "accurev_db" | "initdb" = &*name {
            own_installation(&name).map(|root| act_as(&name, &root, &called[1..]))
        } else {
            match Cli::parse().command {
                Command::Install(arguments) => make(arguments),
                Command::Damage { dir, kind } => damage(&dir, kind).map(Outcome::done),
                Command::Run { dir, program, arguments } => Ok(act_as(&program, &dir, &arguments)),
            }
        };
    let outcome =
        outcome.unwrap_or_else(|error| Failure { text: format!("stand-in: {error:#}"), exit: 70 }.into());
    // Whoever does not read the output still gets the exit status.
    std::io::stdout().write_all(outcome.stdout.as_bytes()).ok();
    std::io::stderr().write_all(outcome.stderr.as_bytes()).ok();
    ExitCode::from(outcome.exit)
}

/// The directory above the `bin` that this program lies in; `acserverctl` listens to `ACCUREV_BIN` too, as the real one.
fn own_installation(name: &str) -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("where am I?")?;
    // initdb is in postgresql/bin.
    let above = if name == "initdb" { 3 } else { 2 };
    let root = program.ancestors().nth(above).context("this program lies in no directory")?;
    Ok(root.to_path_buf())
}

fn act_as(program: &str, root: &Path, arguments: &[OsString]) -> Outcome {
    let elsewhere = std::env::var_os("ACCUREV_BIN").filter(|_| program == "acserverctl").map(PathBuf::from);
    let root = elsewhere.as_deref().and_then(Path::parent).unwrap_or(root);
    let installation = match Installation::open(root, Surroundings::from_env()) {
        Ok(installation) => installation,
        Err(failure) => return failure.into(),
    };
    let words = || arguments.iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>();
    match program {
        "accurev" => client::run(&installation, &words()),
        "maintain" => maintain::run(&installation, &words()),
        "acserverctl" => control::run(&installation, arguments),
        "initdb" => database::initdb(&installation, &words()),
        "accurev_db" => serve_database(&installation).unwrap_or_else(Outcome::from),
        "accurev_server" => {
            let name = OsString::from("accurev_server");
            let options = ServerArguments::parse_from([name].iter().chain(arguments));
            serve(&installation, options).unwrap_or_else(Outcome::from)
        }
        other => Failure { text: format!("stand-in: no program {other:?}"), exit: 2 }.into(),
    }
}

fn make(arguments: InstallArguments) -> anyhow::Result<Outcome> {
    let defaults = InstallOptions::default();
    let options = InstallOptions {
        host: arguments.host.unwrap_or(defaults.host),
        port: arguments.port,
        depots: arguments.depots,
        seed: arguments.seed,
        transactions: arguments.transactions,
        depots_at: arguments.depots_at,
        major: arguments.major,
        program: Some(std::env::current_exe()?),
    };
    let installation = install(&arguments.dir, &options)?;
    Ok(Outcome::done(format!("AccuRev stand-in installed in {}", installation.root.display())))
}

fn serve_database(installation: &Installation) -> Result<Outcome, Failure> {
    let ready = || {
        let mut stdout = std::io::stdout();
        writeln!(stdout, "{}", installation.texts.text.database_ready).ok();
        stdout.flush().ok();
    };
    let mut signals = Signals::new([SIGTERM, SIGINT])
        .map_err(|error| Failure { text: format!("stand-in: {error}"), exit: 70 })?;
    database::serve(installation, ready, || {
        signals.forever().next();
    })?;
    Ok(Outcome::done(""))
}

fn serve(installation: &Installation, arguments: ServerArguments) -> Result<Outcome, Failure> {
    let texts = &installation.texts;
    let cannot = |error: std::io::Error| Failure {
        text: fill(&texts.text.cannot_serve, &[("reason", &error.to_string())]),
        exit: texts.exit.cannot_serve,
    };
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(cannot)?;
    let options =
        ServerOptions { write_rate: arguments.write_rate, max_transactions: arguments.max_transactions };
    let server = Server::start(installation, options)?;
    let stop = server.sender();
    std::thread::spawn(move || {
        for _ in signals.forever() {
            stop.send(Event::Stop).ok();
        }
    });
    let port = server.port().to_string();
    if let Some(path) = arguments.ready_file {
        replace(&path, format!("{} {port}\n", std::process::id()).as_bytes(), false).map_err(cannot)?;
    }
    // The only line: whoever started the server may stop reading after it.
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{}", fill(&texts.text.server_ready, &[("port", &port)])).ok();
    stdout.flush().ok();
    server.run().map_err(cannot)?;
    Ok(Outcome::done(""))
}
