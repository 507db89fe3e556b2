//! `restore`, as far as it is the same at both ends: what is believed, where it goes, and how it is shown.

use std::{
    fs::File,
    io::IsTerminal as _,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::{CommandError, EXIT_NOT_RUN, EXIT_USAGE, print, print_json, show};
use crate::{
    digest::RootDigest,
    error::{Hint as _, ShowPath},
    id::GenerationNumber,
    path::TreePath,
    restore::{
        Allowed, Checked, Destination, Options, Part, Report, RestoreError, SupplyError, Want, restore,
    },
    signing::VerifyingKey,
    verdict::{HexDigest, Outcome, verify_verdict},
};

/// Requests that are ahead of the content.
const WANTS_AHEAD: usize = 4096;
/// Parts that wait to be written: 1 MiB each, mostly.
const PARTS_AHEAD: usize = 8;

/// What to take back, and where to.
#[derive(Debug, clap::Args)]
pub struct RestoreArgs {
    /// Repository; may be left out when there is one only
    #[arg(default_value = "")]
    pub repository: String,
    /// Folder that the tree goes into; made when it is not there
    #[arg(long, value_name = "FOLDER")]
    pub to: PathBuf,
    /// Number of the generation; the newest verified one when it is left out
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "NUMBER")]
    pub generation: u64,
    /// Only this file or folder, relative to the tree; may be given several times
    #[arg(long = "path", value_name = "PATH")]
    pub paths: Vec<std::ffi::OsString>,
    /// Put right what differs in a folder that has content already; what is right is not fetched
    #[arg(long)]
    pub onto_existing: bool,
    /// Remove what the folder has and the generation has not
    #[arg(long)]
    pub delete: bool,
    /// Take a generation that no check has passed
    #[arg(long)]
    pub unverified: bool,
    /// Write over the live repository at this path: its server must have been stopped; may be given several times
    #[arg(long, value_name = "PATH")]
    pub over_live_root: Vec<PathBuf>,
    /// Live roots of all repositories of this host's configuration.
    #[arg(skip)]
    pub live_roots: Vec<PathBuf>,
    /// Stores of this host's configuration.
    #[arg(skip)]
    pub stores: Vec<PathBuf>,
}

/// What the target says that it has.
#[derive(Debug)]
pub struct Offered {
    /// Repository that was asked for.
    pub repository: String,
    /// The generation.
    pub generation: GenerationNumber,
    /// Root digest of its manifest.
    pub root: RootDigest,
    /// The newest verdict on it that is PASS or FAIL.
    pub verdict: Option<Vec<u8>>,
}

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    /// What was done.
    pub report: Report,
    /// Files that were asked for, and their content in bytes.
    pub asked: (u64, u64),
    /// From the start to the last byte made durable.
    pub took: Duration,
}

impl Ended {
    /// Everything that was asked for is there and right.
    pub fn is_complete(&self) -> bool {
        self.report.lost_files == 0
    }
}

impl From<RestoreError> for CommandError {
    fn from(error: RestoreError) -> Self {
        let exit = match &error {
            RestoreError::NoSuchPath { .. }
            | RestoreError::LinkWithoutFirst { .. }
            | RestoreError::Refused { .. } => EXIT_USAGE,
            _ => EXIT_NOT_RUN,
        };
        Self { exit, hint: error.hint(), message: error.to_string() }
    }
}

impl RestoreArgs {
    /// The paths that are asked for.
    ///
    /// # Errors
    /// When one could not stand in a tree.
    pub fn options(&self) -> Result<Options, CommandError> {
        use std::os::unix::ffi::OsStrExt as _;
        let parse = |path: &std::ffi::OsString| {
            let bytes = path.as_bytes();
            let bytes = bytes.strip_suffix(b"/").unwrap_or(bytes);
            TreePath::parse(bytes).map_err(|fault| {
                CommandError::usage(format!("--path {}: the path {fault}", path.to_string_lossy()))
                    .hint("paths are relative to the tree, for example storage/depots/amber")
            })
        };
        Ok(Options { paths: self.paths.iter().map(parse).collect::<Result<_, _>>()?, delete: self.delete })
    }

    /// Holds what is offered against the pinned key. Says what is vouched for.
    ///
    /// # Errors
    /// When the verdict is not valid, or is about something else, or is no PASS and `--unverified` was not said.
    pub fn believe(&self, offered: &Offered, key: &VerifyingKey) -> Result<String, CommandError> {
        let generation = offered.generation;
        let insist = |why: String| {
            if self.unverified {
                Ok(format!("generation {generation}: {why}, and is restored all the same"))
            } else {
                let hint = "name another by --generation, or say --unverified to take it all the same";
                Err(CommandError::not_run(format!("generation {generation}: {why}")).hint(hint))
            }
        };
        let Some(envelope) = &offered.verdict else {
            return insist("no check has passed it".to_owned());
        };
        let doubt = |why: String| {
            CommandError::not_run(format!("the verdict on generation {generation} is not believed: {why}"))
                .hint("do not restore from this target before you know why; the key must be the target's, pinned")
        };
        let verdict = verify_verdict(envelope, key, None).map_err(|error| doubt(error.to_string()))?.verdict;
        if verdict.repository != offered.repository || verdict.generation != Some(generation) {
            return Err(doubt("it is about another generation".to_owned()));
        }
        if verdict.root != Some(HexDigest::from(offered.root)) {
            return Err(doubt("it is about another tree".to_owned()));
        }
        let mark =
            verdict.mark.map_or_else(|| "no mark".to_owned(), |mark| format!("the mark of {}", mark.time));
        if verdict.outcome != Outcome::Pass {
            return insist(format!("its verdict is {} {}", verdict.outcome, verdict.reason));
        }
        Ok(format!("generation {generation}: PASS, {mark}, verdict {:09}", verdict.sequence))
    }

    /// Restores. `manifest` holds the manifest as it came; `supply` starts what answers the requests.
    ///
    /// # Errors
    /// [`RestoreError`], as a command's.
    pub fn run(
        &self,
        offered: &Offered,
        manifest: File,
        began: Instant,
        quiet: bool,
        supply: impl FnOnce(Receiver<Want>, Sender<Result<Part, SupplyError>>),
    ) -> Result<Ended, CommandError> {
        let options = self.options()?;
        let checked = Checked::check(manifest, offered.generation, offered.root, &options.paths)?;
        let allowed = Allowed {
            onto_existing: self.onto_existing,
            over_live_roots: self.over_live_root.clone(),
            live_roots: self.live_roots.clone(),
            stores: self.stores.clone(),
        };
        let to = std::path::absolute(&self.to)
            .map_err(|error| CommandError::usage(format!("--to {}: {error}", self.to.display())))?;
        let destination =
            Destination::open(&to, checked.header(), offered.generation, offered.root, &allowed)?;
        let (wants_out, wants_in) = channel(WANTS_AHEAD);
        let (parts_out, parts_in) = channel(PARTS_AHEAD);
        supply(wants_in, parts_out);
        let bar = if quiet || !std::io::stderr().is_terminal() {
            ProgressBar::hidden()
        } else {
            bar(checked.bytes)
        };
        let done = restore(&destination, &checked, &options, wants_out, parts_in, &mut |progress| {
            bar.set_position(progress.bytes);
            bar.set_message(format!("{} fetched", show::bytes(progress.fetched_bytes)));
        });
        bar.finish_and_clear();
        let report = done?;
        if report.lost_files == 0 {
            destination.finish()?
        } else {
            destination.flush()?
        }
        Ok(Ended { report, asked: (checked.files, checked.bytes), took: began.elapsed() })
    }

    /// Shows how it ended.
    pub fn show(&self, offered: &Offered, ended: &Ended, json: bool) -> ExitCode {
        let Ended { report, asked: (files, bytes), took } = ended;
        let seconds = took.as_secs_f64();
        if json {
            print_json(&serde_json::json!({
                "generation": offered.generation.0,
                "root": offered.root.to_string(),
                "to": ShowPath(&self.to).to_string(),
                "complete": ended.is_complete(),
                "seconds": seconds,
                "files": files,
                "totalBytes": bytes,
                "fetchedBytes": report.progress.fetched_bytes,
                "filesRight": report.files_right,
                "filesMade": report.files_made,
                "deleted": report.deleted,
                "leftOver": report.left_over,
                "lostFiles": report.lost_files,
                "lost": report.lost.iter().map(|(path, why)| serde_json::json!({"path": path.to_string(), "why": why})).collect::<Vec<_>>(),
            }));
        } else {
            let mut text = format!(
                "restored generation {} to {} in {seconds:.1} s\n  {files} files of {}: {} were right already, {} were put together, {} fetched\n",
                offered.generation,
                ShowPath(&self.to),
                show::bytes(*bytes),
                report.files_right,
                report.files_made,
                show::bytes(report.progress.fetched_bytes),
            );
            if report.deleted > 0 {
                text += &format!("  {} names that the generation has not were removed\n", report.deleted);
            }
            for (before, now) in &report.set_aside {
                text += &format!(
                    "  {before} is {now} now: SQLite would have applied it to the restored database\n"
                );
            }
            if report.left_over > 0 {
                text += &format!(
                    "  {} names that the generation has not were left: say --delete to remove such\n",
                    report.left_over
                );
            }
            for (path, why) in &report.lost {
                text += &format!("  NOT RESTORED {path}: {why}\n");
            }
            if !ended.is_complete() {
                text += &format!(
                    "  {} files were not restored: take them from another generation\n",
                    report.lost_files
                );
            }
            print(&text);
        }
        if ended.is_complete() { ExitCode::SUCCESS } else { ExitCode::from(Outcome::Fail.exit_code()) }
    }
}

fn bar(bytes: u64) -> ProgressBar {
    let bar = ProgressBar::new(bytes);
    let style = "restoring {bar:24} {bytes}/{total_bytes} {bytes_per_sec} {eta} left, {msg}";
    bar.set_style(ProgressStyle::with_template(style).expect("the template is valid"));
    bar
}
