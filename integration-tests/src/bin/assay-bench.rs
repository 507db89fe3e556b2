//! Measures Assay against rsync on this machine. `./bench` builds it and what it needs.

use std::{ffi::OsString, fs::File, io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use integration_tests::bench::{
    data::Plan,
    isolate::{self, Ended},
    network::Speed,
    real::Set,
    report,
    sparse::Sparse,
    workloads::{Bench, Options, Workload},
};

/// Measures Assay against rsync, in turns, on data made from a seed.
///
/// Exit codes: 0 all was measured and every copy was right, 1 something failed, 2 usage. Whether demands were met is in
/// the table and not in the exit code.
#[derive(Debug, Parser)]
#[command(name = "assay-bench", version)]
struct Cli {
    /// Small data, three repetitions: a few minutes
    #[arg(long)]
    quick: bool,
    /// Only these workloads
    #[arg(long, value_name = "WORKLOAD", value_delimiter = ',', value_enum)]
    only: Vec<Workload>,
    /// Copy a million tiny files too
    #[arg(long)]
    million: bool,
    /// Copy a sparse file of 100 GB too
    #[arg(long)]
    sparse: bool,
    /// Of `links`: only these sets of data [default: all]
    #[arg(long, value_name = "SET", value_delimiter = ',', value_enum)]
    set: Vec<Set>,
    /// Of `links`: only these speeds, in Mbit/s; 0 is no limit [default: 0,10000,1000,100]
    #[arg(long, value_name = "MBIT", value_delimiter = ',')]
    speed: Vec<u32>,
    /// How often each workload is repeated [default: 5, with --quick 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    repetitions: Option<u16>,
    /// What the data depends on
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Factor for the amount of data
    #[arg(long, value_name = "F", default_value_t = 1.0, value_parser = scale)]
    scale: f64,
    /// Write the results to this file too, one JSON object a line
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where a temporary folder for everything is made [default: TMPDIR]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Leave the temporary folder there
    #[arg(long)]
    keep: bool,
    /// The folder that the outer process has made for this one
    #[arg(long, hide = true)]
    inside: Option<PathBuf>,
}

fn scale(text: &str) -> Result<f64, String> {
    let factor: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if (0.001..=100.0).contains(&factor) { Ok(factor) } else { Err("not from 0.001 to 100".into()) }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.inside.clone() {
        Some(folder) => measure(&cli, folder).map(|()| ExitCode::SUCCESS),
        None => isolated(&cli),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// Makes the folder, runs the driver in namespaces of its own, and cleans up however that ended.
fn isolated(cli: &Cli) -> Result<ExitCode> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "owners are copied too, and only root can do that: run it as root"
    );
    if let Some(file) = &cli.json {
        File::create(file).with_context(|| format!("--json {}", file.display()))?;
    }
    let parent = cli.folder.clone().unwrap_or_else(std::env::temp_dir);
    let mut folder = tempfile::Builder::new()
        .prefix("assay-bench.")
        .tempdir_in(&parent)
        .with_context(|| format!("a folder in {}", parent.display()))?;
    folder.disable_cleanup(cli.keep);
    let permitted = isolate::is_permitted();
    if !permitted {
        println!("namespaces are not permitted here: bytes on the wire count whatever else uses loopback");
    }
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    arguments.extend(["--inside".into(), folder.path().canonicalize().context("the folder")?.into()]);
    let ended = isolate::run(permitted, &std::env::current_exe().context("own path")?, &arguments)?;
    if cli.keep {
        println!("kept: {}", folder.path().display());
    } else {
        folder.close().context("the temporary folder cannot be removed")?;
    }
    match ended {
        Ended::Code(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
        Ended::Signal(signal) => {
            eprintln!("interrupted: every process was ended");
            Ok(ExitCode::from(u8::try_from(128 + signal).unwrap_or(1)))
        }
    }
}

fn measure(cli: &Cli, folder: PathBuf) -> Result<()> {
    // In a network of its own nothing is up. Elsewhere it is, and this changes nothing.
    integration_tests::bench::process::succeed(
        std::process::Command::new("ip").args(["link", "set", "lo", "up"]),
    )?;
    let own = std::env::current_exe().context("own path")?;
    let bin = own.parent().context("this program is in no folder")?.to_owned();
    for name in ["assay-source", "assay-target"] {
        ensure!(
            bin.join(name).exists(),
            "{} is not there: build it with cargo build --bins",
            bin.join(name).display()
        );
    }
    let (plan, link_plan, pgbench_scale, usual) = if cli.quick {
        let plan = Plan::quick(cli.seed, cli.scale);
        (plan, Plan::quick(cli.seed, cli.scale * 0.2), 2.0, Workload::QUICK.to_vec())
    } else {
        let plan = Plan::full(cli.seed, cli.scale);
        (plan, plan, 20.0, Workload::USUAL.to_vec())
    };
    let mut workloads = if cli.only.is_empty() { usual } else { cli.only.clone() };
    if cli.million {
        workloads.push(Workload::Million);
    }
    if cli.sparse {
        workloads.push(Workload::Sparse);
    }
    let speed = |megabits: &u32| if *megabits == 0 { Speed::Unlimited } else { Speed::Megabits(*megabits) };
    let of_set = if cli.quick { 40e6 } else { 400e6 } * cli.scale;
    let options = Options {
        sets: if cli.set.is_empty() { Set::ALL.to_vec() } else { cli.set.clone() },
        set_bytes: (of_set as u64).max(1_000_000),
        // As many bytes as a real set has: the plan of the other workloads has 2.9 GB.
        set_plan: Plan::full(cli.seed, of_set / 2.9e9),
        speeds: if cli.speed.is_empty() {
            Speed::ALL.to_vec()
        } else {
            cli.speed.iter().map(speed).collect()
        },
        workloads,
        repetitions: usize::from(cli.repetitions.unwrap_or(if cli.quick { 3 } else { 5 })),
        plan,
        link_plan,
        pgbench_scale: ((pgbench_scale * cli.scale) as u32).max(1),
        tiny_files: ((1e6 * cli.scale) as u32).max(1000),
        sparse: Sparse { seed: cli.seed, bytes: ((100e9 * cli.scale) as u64).max(100_000_000) },
        folder,
        bin,
    };
    let rows = Bench::start(options)?.run()?;
    println!("\n{}", report::table(&rows));
    if let Some(path) = &cli.json {
        let mut file = File::create(path).with_context(|| format!("--json {}", path.display()))?;
        for line in rows.iter().flat_map(report::Row::json_lines) {
            writeln!(file, "{line}").with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}
