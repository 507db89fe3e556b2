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

use super::{
    CommandError, EXIT_NOT_RUN, EXIT_USAGE, print, print_json,
    screen::{counted, safe},
    show,
};
use crate::{
    digest::RootDigest,
    error::{Hint as _, ShowPath},
    fidelity::{LeftOut, is_pattern},
    id::GenerationNumber,
    keyring::{Keyring, load_if_given},
    path::TreePath,
    restore::{
        Allowed, Checked, Destination, Options, Part, Report, RestoreError, SupplyError, Want, preflight,
        restore,
    },
    signing::KeyError,
    verdict::{
        HexDigest, NegativeControl, Outcome, SourceSignature, Trust, VerifiedVerdict, verify_verdict_with,
    },
};

/// Requests that are ahead of the content.
const WANTS_AHEAD: usize = 4096;
/// Parts that wait to be written: 1 MiB each, mostly.
const PARTS_AHEAD: usize = 8;

/// Where the source's key is to be had.
const SOURCE_KEY_HINT: &str = "the source's host has it as source-signing.pub beside its signing_key, and the target's as source_key of the \
                               repository: bring it here by a way that you trust; or say --unverified to take the target's word alone";
/// What to do when the target's word is all there is.
const DOUBT_HINT: &str = "do not restore from this target before you know why. --source-key names the key of the source that made this generation \
                          (an earlier one, where the source was set up anew); --unverified takes the target's word alone";

/// What to do about a verdict of another key.
const OTHER_KEY_HINT: &str = "when the target had another key when it signed this, give both, oldest first (--target-key OLD.pub --target-key \
                              NEW.pub at the source; former-0001-NAME.pub in the keys.d folder beside the key's file does it for good); when it \
                              had not, do not restore from this target before you know why";

/// What to take back, and where to.
#[derive(Debug, clap::Args)]
pub struct RestoreArgs {
    /// Repository; may be left out when there is one only
    #[arg(default_value = "", hide_default_value = true)]
    pub repository: String,
    /// Folder that the tree goes into; made when it is not there
    #[arg(long, value_name = "FOLDER")]
    pub to: PathBuf,
    /// Number of the generation; when it is left out: the newest verified one, or the newest that passed while none is verified
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
    /// Leave out this attribute, for example user.big or security.*; may be given several times
    #[arg(long = "ignore-attribute", value_name = "NAME", value_parser = pattern)]
    pub ignore_attributes: Vec<String>,
    /// Give a file whose time the destination cannot hold the nearest time that it can
    #[arg(long)]
    pub clamp_times: bool,
    /// Without root: accept that set-user-id bits, system attributes and devices are missing. Owner and group alone are never a fault
    #[arg(long)]
    pub as_this_user: bool,
    /// Take a generation that no check has passed, or one for which the source's signature is not there or not checked
    #[arg(long)]
    pub unverified: bool,
    /// The source's public signing key (source-signing.pub), instead of the configuration's; may be given several times, oldest first
    #[arg(long, value_name = "PUB")]
    pub source_key: Vec<PathBuf>,
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
    /// The target calls it verified: a negative control vouches for its checker.
    pub is_verified: bool,
}

/// What is vouched for.
#[derive(Debug)]
pub struct Vouched {
    /// A line for the operator.
    pub text: String,
    /// Why what is restored is not vouched for by both agents and a check, where `--unverified` was said.
    pub unverified: Option<String>,
    /// What is not known of the check that it passed, where no negative control vouches for that.
    pub unproven: Option<&'static str>,
    /// A newer generation that passed, whose checker no negative control had proven: it is known at the source's host.
    pub passed_over: Option<GenerationNumber>,
}

impl Vouched {
    /// Notes, and says in its text, that a newer generation was passed over.
    #[must_use]
    pub fn passing_over(mut self, newer: Option<GenerationNumber>) -> Self {
        if let Some(newer) = newer {
            self.text += &format!("\n{}", passed_over(newer));
        }
        self.passed_over = newer;
        self
    }
}

fn passed_over(newer: GenerationNumber) -> String {
    format!(
        "PASSED OVER generation {newer}: it passed too, by a checker that no negative control had proven; --generation {newer} restores it"
    )
}

/// What to say of a checker that nobody has seen find damage.
const NO_CONTROL: &str = "no negative control had shown that its check finds damage when the verdict was signed: both agents vouch for the bytes, \
                          and nobody for what they mean";
/// What to say of one that has passed damaged data.
const FAILED_CONTROL: &str = "its check has passed data that was damaged on purpose: both agents vouch for the bytes, and nobody for what they mean";

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    /// What was done.
    pub report: Report,
    /// Files that were asked for, and their content in bytes.
    pub asked: (u64, u64),
    /// From the start to the last byte made durable.
    pub took: Duration,
    /// What only root can restore is not asked for.
    pub as_this_user: bool,
}

impl Ended {
    /// Everything that was asked for is there and right.
    pub fn is_complete(&self) -> bool {
        self.report.lost_files == 0 && (self.as_this_user || self.report.beyond_user == 0)
    }
}

impl From<RestoreError> for CommandError {
    fn from(error: RestoreError) -> Self {
        let exit = match &error {
            RestoreError::NoSuchPath { .. }
            | RestoreError::LinkWithoutFirst { .. }
            | RestoreError::Misfit { .. }
            | RestoreError::Refused { .. } => EXIT_USAGE,
            _ => EXIT_NOT_RUN,
        };
        Self { exit, hint: error.hint(), message: error.to_string() }
    }
}

/// The name of an attribute, or the beginning of one with `*` behind it.
fn pattern(text: &str) -> Result<String, &'static str> {
    if is_pattern(text) {
        Ok(text.to_owned())
    } else {
        Err("must be the name of an attribute, for example user.big, or the beginning of one and *")
    }
}

/// A path as people type it, `./a//b/`, as it stands in a tree: `a/b`. What begins at the root stays as it is.
fn normal(path: &[u8]) -> Vec<u8> {
    if path.starts_with(b"/") {
        return path.to_vec();
    }
    let parts = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
    parts.collect::<Vec<_>>().join(&b'/')
}

impl RestoreArgs {
    /// The paths that are asked for.
    ///
    /// # Errors
    /// When one could not stand in a tree.
    pub fn options(&self) -> Result<Options, CommandError> {
        use std::os::unix::ffi::OsStrExt as _;
        let parse = |path: &std::ffi::OsString| {
            let bytes = normal(path.as_bytes());
            if bytes.is_empty() {
                return Err(CommandError::usage(format!("--path {path:?} names nothing in the tree"))
                    .hint("name a file or a folder, or leave --path out to restore all of it"));
            }
            TreePath::parse(&bytes).map_err(|fault| {
                CommandError::usage(format!("--path {}: the path {fault}", path.to_string_lossy()))
                    .hint("paths are relative to the tree, for example storage/depots/amber")
            })
        };
        Ok(Options {
            paths: self.paths.iter().map(parse).collect::<Result<_, _>>()?,
            delete: self.delete,
            ignore_attributes: self.ignore_attributes.clone(),
            clamp_times: self.clamp_times,
        })
    }

    /// The source's keys, without which a restore believes the target alone: those of `--source-key`, else the configured ones.
    ///
    /// # Errors
    /// When it cannot be read, or is not given and `--unverified` was not said. The network has not been asked by then.
    pub fn source_keys(
        &self,
        configured: impl FnOnce() -> Option<Result<Keyring, KeyError>>,
    ) -> Result<Option<Keyring>, CommandError> {
        let given = load_if_given(&self.source_key).transpose();
        match given.or_else(configured) {
            Some(Ok(keys)) => Ok(Some(keys)),
            // What is configured may be out of reach; nothing takes the place of a file that was named.
            Some(Err(error)) if self.unverified && self.source_key.is_empty() => {
                tracing::warn!(%error, "the source's key cannot be read");
                Ok(None)
            }
            Some(Err(error)) => Err(CommandError {
                hint: error.hint().or_else(|| Some(SOURCE_KEY_HINT.to_owned())),
                ..CommandError::usage(format!("the source's key: {error}"))
            }),
            None if self.unverified => Ok(None),
            None => Err(CommandError::usage(
                "--source-key is not given, and there is no configuration that says it: a target alone is not believed",
            )
            .hint(SOURCE_KEY_HINT)),
        }
    }

    /// Holds what is offered against the pinned keys of both agents. Says what is vouched for.
    ///
    /// # Errors
    /// When the target's signature is not valid or the verdict is about something else; and, unless `--unverified` was said, when the
    /// source has not signed this tree or the verdict is no PASS.
    pub fn believe(
        &self,
        offered: &Offered,
        target_keys: &Keyring,
        source_keys: Option<&Keyring>,
    ) -> Result<Vouched, CommandError> {
        let generation = offered.generation;
        let insist = |why: String| {
            if self.unverified {
                let text = format!("generation {generation}: UNVERIFIED: {why}; it is restored all the same");
                Ok(Vouched { text, unverified: Some(why), unproven: None, passed_over: None })
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
        let by_target = verify_verdict_with(envelope, target_keys, None).map_err(|error| {
            let fault = doubt(error.to_string());
            if error.is_of_other_key() { fault.hint(OTHER_KEY_HINT) } else { fault }
        })?;
        let former = (by_target.target_place < target_keys.current_place())
            .then(|| target_keys.all()[by_target.target_place].key_id());
        let verdict = by_target.verdict;
        if verdict.repository != offered.repository || verdict.generation != Some(generation) {
            return Err(doubt("it is about another generation".to_owned()));
        }
        if verdict.root != Some(HexDigest::from(offered.root)) {
            return Err(doubt("it is about another tree".to_owned()));
        }
        let sentence = verdict.sentence();
        let mark =
            verdict.mark.map_or_else(|| "no mark".to_owned(), |mark| format!("the mark of {}", mark.time));
        // The target's word is not enough: whoever took it over signs what it likes. That the source has read this tree, at this mark,
        // is the source's to say.
        let by_source = match source_keys {
            None => Err("the source's signature was not checked, since its key is not known here".to_owned()),
            Some(keys) => match verify_verdict_with(envelope, target_keys, Some(keys)) {
                Ok(VerifiedVerdict { source_signature: SourceSignature::Checked, .. }) => Ok(()),
                Ok(_) => Err("the source has signed no statement about it".to_owned()),
                Err(error) => Err(format!("the source has not signed this tree: {error}")),
            },
        };
        match by_source {
            Ok(()) if verdict.outcome == Outcome::Pass => {}
            Ok(()) => return insist(format!("its verdict is {} {}", verdict.outcome, verdict.reason)),
            Err(why) if self.unverified && verdict.outcome == Outcome::Pass => return insist(why),
            Err(why) if self.unverified => {
                return insist(format!("{why}, and its verdict is {} {}", verdict.outcome, verdict.reason));
            }
            Err(why) => {
                return Err(CommandError::not_run(format!("generation {generation} is not restored: {why}"))
                    .hint(DOUBT_HINT));
            }
        }
        // The signatures decide what may be restored; what the check is worth is said.
        let unproven = match verdict.negative_control.as_ref().map(NegativeControl::trust) {
            _ if offered.is_verified => None,
            Some(Trust::Trusted) => None,
            Some(Trust::NotTrusted) => Some(FAILED_CONTROL),
            Some(Trust::Unknown) | None => Some(NO_CONTROL),
        };
        let mut text = format!(
            "generation {generation}: PASS, {mark}, verdict {:09}, signed by source and target",
            verdict.sequence
        );
        if let Some(former) = former {
            text += &format!("\n  the target has signed it with its former key {former}");
        }
        if let Some(unproven) = unproven {
            text += &format!("\nCHECKER NOT PROVEN: {unproven}");
        }
        text += &format!("\n  when it was signed: {}", safe(&sentence));
        Ok(Vouched { text, unverified: None, unproven, passed_over: None })
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
        let (lacking, left_out) = match preflight(&destination, &checked, &options) {
            Err(error @ RestoreError::Misfit { .. }) => {
                destination.abandon()?;
                return Err(error.into());
            }
            found => found?,
        };
        if lacking > 0 && !self.as_this_user {
            let kinds: Vec<_> = left_out.iter().map(|left_out| left_out.what.as_str()).collect();
            let kinds = kinds.join(", ");
            super::print_error(&format!(
                "WARNING: this user is not root: {} will lack something of the generation ({kinds}). \
                 --as-this-user says that this is wanted\n",
                counted(lacking, "entry", "entries")
            ));
        }
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
        let (asked, as_this_user) = ((checked.files, checked.bytes), self.as_this_user);
        Ok(Ended { report, asked, took: began.elapsed(), as_this_user })
    }

    /// Shows how it ended.
    pub fn show(&self, offered: &Offered, vouched: &Vouched, ended: &Ended, json: bool) -> ExitCode {
        let Ended { report, asked: (files, bytes), took, .. } = ended;
        let seconds = took.as_secs_f64();
        if json {
            print_json(&serde_json::json!({
                "generation": offered.generation.0,
                "root": offered.root.to_string(),
                "to": ShowPath(&self.to).to_string(),
                "complete": ended.is_complete(),
                "verified": vouched.unverified.is_none(),
                "unverified": vouched.unverified,
                "checkerProven": vouched.unverified.is_none() && vouched.unproven.is_none(),
                "passedOver": vouched.passed_over.map(|newer| newer.0),
                "seconds": seconds,
                "files": files,
                "totalBytes": bytes,
                "fetchedBytes": report.progress.fetched_bytes,
                "filesRight": report.files_right,
                "filesMade": report.files_made,
                "deleted": report.deleted,
                "leftOver": report.left_over,
                "entriesBeyondThisUser": report.beyond_user,
                "leftOut": report.left_out,
                "lostFiles": report.lost_files,
                "lost": report.lost.iter().map(|(path, why)| serde_json::json!({"path": path.to_string(), "why": why})).collect::<Vec<_>>(),
            }));
        } else {
            let mut text = format!(
                "restored generation {} to {} in {seconds:.1} s\n  {} of {}: {} already correct, {} restored, {} fetched\n",
                offered.generation,
                ShowPath(&self.to),
                counted(*files, "file", "files"),
                show::bytes(*bytes),
                report.files_right,
                report.files_made,
                show::bytes(report.progress.fetched_bytes),
            );
            if let Some(why) = &vouched.unverified {
                text += &format!("  UNVERIFIED: {}\n", crate::path::display_bytes(why.as_bytes()));
            }
            if let Some(why) = vouched.unproven {
                text += &format!("  CHECKER NOT PROVEN: {why}\n");
            }
            if let Some(newer) = vouched.passed_over {
                text += &format!("  {}\n", passed_over(newer));
            }
            if report.beyond_user > 0 {
                text += &format!(
                    "  {} without something that only root can restore{}\n",
                    counted(report.beyond_user, "entry is", "entries are"),
                    if self.as_this_user { "" } else { ": run the restore as root, or say --as-this-user" }
                );
            }
            for LeftOut { what, why, example } in &report.left_out {
                text += &format!("  LEFT OUT {what} (as of {example}): {why}\n");
            }
            if report.deleted > 0 {
                let names = counted(report.deleted, "name was", "names were");
                text += &format!("  {names} removed that the generation does not have\n");
            }
            for (before, now) in &report.set_aside {
                text += &format!(
                    "  {before} is {now} now: SQLite would have applied it to the restored database\n"
                );
            }
            if report.left_over > 0 {
                text += &format!(
                    "  {} left that the generation does not have: say --delete to remove such\n",
                    counted(report.left_over, "name was", "names were")
                );
            }
            for (path, why) in &report.lost {
                text += &format!("  NOT RESTORED {path}: {why}\n");
            }
            if report.lost_files > 0 {
                text += &format!(
                    "  {} not restored: put right what stands beside each; what the target has lost may be in another \
                     generation\n",
                    counted(report.lost_files, "entry was", "entries were")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        arguments: RestoreArgs,
    }

    fn paths(path: &str) -> Result<Vec<String>, CommandError> {
        use clap::Parser as _;
        let line = Line::try_parse_from(["restore", "--to", "/new", "--path", path]).expect("a command line");
        Ok(line.arguments.options()?.paths.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_path_is_taken_as_people_type_it_and_none_means_none() {
        for typed in ["a/b.txt", "./a/b.txt", "a//b.txt", "a/./b.txt/", ".//a/b.txt"] {
            assert_eq!(paths(typed).expect(typed), ["a/b.txt"], "{typed}");
        }
        for nothing in ["", ".", "./", "./."] {
            let error = paths(nothing).expect_err(nothing);
            assert_eq!(error.exit, EXIT_USAGE);
            assert!(error.message.contains("names nothing in the tree"), "{}", error.message);
        }
        for outside in ["/etc/passwd", "../a", "a/../../b", "/"] {
            assert_eq!(paths(outside).expect_err(outside).exit, EXIT_USAGE, "{outside}");
        }
    }
}
