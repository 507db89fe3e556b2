//! `engine subversion-check`: `svnadmin verify` over the revisions of a copied repository.
//!
//! | exit code | what it means |
//! | --- | --- |
//! | 0 | nothing is wrong |
//! | 1 | damage: lines `damage: …` say what |
//! | 10 | the repository is of a format that this Subversion does not know |
//! | 12 | Subversion could not do its work |
//! | 13 | the folder is not a repository |
//! | 14 | Subversion is not there |
//!
//! Subversion obeys `db/fsfs.conf` of the repository that it opens: cache servers, and to fail when they do not answer. It works
//! in a folder of our own whose `db` leads to the copy's files, with an empty `fsfs.conf` and without hooks.

pub(crate) mod layout;
mod words;

use std::{
    fs,
    io::{self, BufRead as _, BufReader},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::SystemTime,
};

use self::{
    layout::{Revisions, join},
    words::Meaning,
};
use super::report::{self, Report};
use crate::check::obstacles::obstacle;

/// What to check, and where.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The copied repository: the folder that has format and db
    #[arg(long)]
    repository: PathBuf,
    /// An empty folder of this step
    #[arg(long)]
    scratch: PathBuf,
    /// The svnadmin program
    #[arg(long, default_value = "svnadmin")]
    program: PathBuf,
    /// What the mark is called: it says whether db/current went back since the last backup's
    #[arg(long, default_value = "", hide_default_value = true)]
    mark: String,
    /// The revisions to verify, as FIRST:LAST; all when there are none
    #[arg(long, num_args(0..), value_name = "FIRST:LAST")]
    ranges: Vec<Revisions>,
}

/// What kept the check from looking.
#[derive(Debug)]
enum Unable {
    Version(String),
    Checker(String),
    NotARepository(String),
    Missing(String),
}

impl Unable {
    fn code(&self) -> u8 {
        match self {
            Self::Version(_) => 10,
            Self::Checker(_) => 12,
            Self::NotARepository(_) => 13,
            Self::Missing(_) => 14,
        }
    }

    fn message(&self) -> &str {
        match self {
            Self::Version(it) | Self::Checker(it) | Self::NotARepository(it) | Self::Missing(it) => it,
        }
    }
}

/// Runs the check. Its exit code is that of the table above.
pub fn check(arguments: &Arguments) -> ExitCode {
    let mut report = Report::new();
    match run(arguments, &mut report) {
        _ if report.is_damaged() => {
            report.done("subversion: damaged");
            ExitCode::from(1)
        }
        Ok(()) => {
            report.done("subversion: checked");
            ExitCode::SUCCESS
        }
        Err(unable) => {
            report::unable(unable.message());
            ExitCode::from(unable.code())
        }
    }
}

fn run<W: io::Write>(arguments: &Arguments, report: &mut Report<W>) -> Result<(), Unable> {
    let program = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => {
            Unable::Missing(format!("{} cannot be run: {error}", arguments.program.display()))
        }
        _ => Unable::Checker(format!("{}: {error}", arguments.program.display())),
    };
    let version =
        Command::new(&arguments.program).args(["--version", "--quiet"]).output().map_err(program)?;
    report.engine(&format!("Subversion {}", String::from_utf8_lossy(&version.stdout).trim()));
    let view = arguments.scratch.join("repository");
    make_view(&arguments.repository, &view)?;
    let mut verified = 0;
    if arguments.ranges.is_empty() {
        verified = verify(arguments, &view, None, report)?;
    }
    for range in join(arguments.ranges.clone()) {
        verified += verify(arguments, &view, Some(range), report)?;
    }
    report.checked(verified, "revisions");
    if !report.is_damaged() && !tell_of_mark(&arguments.mark, report) {
        tell_of_current(&arguments.repository, report);
    }
    Ok(())
}

/// Verifies a range of revisions, or all of them, and says how many were verified.
fn verify<W: io::Write>(
    arguments: &Arguments,
    view: &Path,
    range: Option<Revisions>,
    report: &mut Report<W>,
) -> Result<u64, Unable> {
    let program = |error: io::Error| Unable::Checker(format!("{}: {error}", arguments.program.display()));
    let mut verify = Command::new(&arguments.program);
    // Errors and progress in the order in which they come.
    verify.args(["verify", "--keep-going"]).current_dir(&arguments.scratch).stdin(Stdio::null());
    if let Some(range) = range {
        verify.args(["-r", &range.to_string()]);
    }
    verify.arg(view);
    verify.env("LC_ALL", "C.UTF-8").stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = verify.spawn().map_err(program)?;
    let (sender, lines) = std::sync::mpsc::sync_channel(1024);
    let streams: [Option<Box<dyn io::Read + Send>>; 2] =
        [child.stdout.take().map(|it| Box::new(it) as _), child.stderr.take().map(|it| Box::new(it) as _)];
    for stream in streams.into_iter().flatten() {
        let sender = sender.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
            }
        });
    }
    drop(sender);
    let mut said = Said::default();
    let prefix = format!("{}/", view.display());
    for line in lines {
        said.take(&line.replace(&prefix, ""));
    }
    let ended = child.wait().map_err(|error| Unable::Checker(format!("svnadmin verify: {error}")))?;
    said.tell(ended.success(), &ended.to_string(), report)?;
    let all = range.map(|range| range.last - range.first + 1);
    match all.filter(|all| said.damage.is_empty() && *all != said.verified) {
        None => Ok(said.verified),
        Some(all) => Err(Unable::Checker(format!(
            "svnadmin verified {} of {all} revisions, and says no more",
            said.verified
        ))),
    }
}

/// A repository of our own whose database leads to the copy's.
fn make_view(root: &Path, view: &Path) -> Result<(), Unable> {
    for needed in ["format", "db"] {
        if fs::symlink_metadata(root.join(needed)).is_err() {
            return Err(Unable::NotARepository(format!("{needed} is missing")));
        }
    }
    if !fs::symlink_metadata(root.join("format")).is_ok_and(|found| found.is_file()) {
        return Err(Unable::NotARepository("format is not a regular file".to_owned()));
    }
    no_links(root, Path::new("db"))?;
    let made = |error: io::Error| Unable::Checker(format!("{}: {error}", view.display()));
    // Subversion would look for the files of the other kind, and say that they are missing.
    let kind = fs::read(root.join("db/fs-type")).unwrap_or_default();
    let kind = String::from_utf8_lossy(&kind).trim().to_owned();
    if !kind.is_empty() && kind != "fsfs" {
        return Err(Unable::Version(format!(
            "the repository's files are of the kind \"{}\" (db/fs-type), and this check knows fsfs",
            kind.chars().take(40).collect::<String>()
        )));
    }
    for folder in ["", "db", "hooks", "conf", "locks"] {
        fs::create_dir(view.join(folder)).map_err(made)?;
    }
    fs::write(view.join("locks/db.lock"), "").map_err(made)?;
    fs::write(view.join("db/fsfs.conf"), "").map_err(made)?;
    symlink(root.join("format"), view.join("format")).map_err(made)?;
    for entry in fs::read_dir(root.join("db")).map_err(made)? {
        let entry = entry.map_err(made)?;
        // The cache of representations is no part of the repository, and may know of revisions that are not in it.
        let name = entry.file_name();
        if name != "fsfs.conf" && !name.to_string_lossy().starts_with("rep-cache.db") {
            symlink(entry.path(), view.join("db").join(name)).map_err(made)?;
        }
    }
    Ok(())
}

/// Refuses links and special files below a folder of the repository: what a link leads to is not in the copy, and svnadmin waits at a FIFO.
fn no_links(root: &Path, folder: &Path) -> Result<(), Unable> {
    let failed = |error: io::Error| Unable::Checker(format!("{}: {error}", folder.display()));
    if fs::symlink_metadata(root.join(folder)).map_err(failed)?.is_symlink() {
        return Err(Unable::Checker(format!(
            "{} is a link: its content is not in the copy",
            folder.display()
        )));
    }
    for entry in fs::read_dir(root.join(folder)).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let (path, kind) = (folder.join(entry.file_name()), entry.file_type().map_err(failed)?);
        if kind.is_dir() {
            no_links(root, &path)?;
        } else if kind.is_symlink() {
            return Err(Unable::Checker(format!(
                "{} is a link: its content is not in the copy",
                path.display()
            )));
        } else if !kind.is_file() {
            return Err(Unable::Checker(format!("{} is neither a file nor a folder", path.display())));
        }
    }
    Ok(())
}

/// What `svnadmin verify` said.
#[derive(Debug, Default)]
struct Said {
    verified: u64,
    /// The revision that the errors are about.
    unverified: Option<String>,
    damage: Vec<String>,
    unable: Option<Unable>,
    unknown: Option<String>,
}

impl Said {
    fn take(&mut self, line: &str) {
        if line.starts_with("svnadmin: ") && obstacle(line.as_bytes()).is_some() {
            self.unable.get_or_insert(Unable::Checker(words::shorten(line)));
            return;
        }
        match words::meaning(line) {
            Meaning::Silent => {}
            Meaning::Verified => {
                self.verified += 1;
                self.unverified = None;
            }
            Meaning::Unverified => self.unverified = Some(words::shorten(line)),
            Meaning::Version => {
                self.unable.get_or_insert(Unable::Version(words::shorten(line)));
            }
            Meaning::NotARepository => {
                self.unable.get_or_insert(Unable::NotARepository(words::shorten(line)));
            }
            Meaning::Damage => {
                let place = self.unverified.as_ref().map(|it| format!("{it} ")).unwrap_or_default();
                self.damage.push(format!("{place}{}", words::shorten(line)));
            }
            // The first says what happened, but for advice; those behind it say what could not be done because of it.
            Meaning::Unknown => {
                if self.unknown.as_ref().is_none_or(|kept| kept.starts_with("E205000")) {
                    self.unknown = Some(words::shorten(line));
                }
            }
        }
    }

    fn tell<W: io::Write>(
        &mut self,
        is_success: bool,
        ended: &str,
        report: &mut Report<W>,
    ) -> Result<(), Unable> {
        if let Some(unable) = self.unable.take() {
            return Err(unable);
        }
        self.damage.iter().for_each(|line| report.damage(line));
        if self.damage.is_empty() && (!is_success || self.verified == 0) {
            let line = self.unknown.take().or(self.unverified.take()).unwrap_or_default();
            return Err(Unable::Checker(format!(
                "svnadmin verify ended with {ended}, and no word is known as damage: {line}"
            )));
        }
        Ok(())
    }
}

/// Says when `db/current` is behind the last backup's, as the mark says.
fn tell_of_mark<W: io::Write>(mark: &str, report: &mut Report<W>) -> bool {
    let went_back = mark.split("; ").find_map(|part| part.strip_prefix("went back db/current "));
    let numbers = went_back.and_then(|it| it.split_once(' '));
    let Some((Ok(old), Ok(new))) = numbers.map(|(old, new)| (old.parse::<u64>(), new.parse::<u64>())) else {
        return false;
    };
    let why = format!(
        "db/current named revision {old} at the last backup's mark and names {new} now: they are no part of the repository any more"
    );
    report.not_covered(&format!("revisions {} to {old}", new.saturating_add(1)), &why);
    true
}

/// Says when `db/current` names an older revision than the repository once had.
///
/// A revision that was committed while the copy was made lies beyond `db/current` too. Its file is younger than `db/current`,
/// because commits wait for each other and the file's last write comes after the earlier commit's.
fn tell_of_current<W: io::Write>(root: &Path, report: &mut Report<W>) {
    let current = root.join("db/current");
    let number =
        fs::read_to_string(&current).ok().and_then(|it| it.split_whitespace().next()?.parse::<u64>().ok());
    let time = |path: &Path| fs::metadata(path).and_then(|it| it.modified()).ok();
    let (Some(number), Some(written)) = (number, time(&current)) else { return };
    let mut beyond: Vec<(u64, SystemTime)> = Vec::new();
    for shard in fs::read_dir(root.join("db/revs")).into_iter().flatten().flatten() {
        let files = fs::read_dir(shard.path()).into_iter().flatten().flatten().map(|it| it.path());
        // Without shards the revisions lie here.
        for file in files.chain([shard.path()]).filter(|it| it.is_file()) {
            let name = file.file_name().and_then(|it| it.to_str()).and_then(|it| it.parse().ok());
            if let (Some(name), Some(time)) = (name, time(&file)) {
                beyond.extend((name > number && time < written).then_some((name, time)));
            }
        }
    }
    if let Some((last, _)) = beyond.iter().max() {
        let why = format!(
            "db/current names revision {number}, and was written after them: it went backwards, so they are no part of the repository any more"
        );
        report.not_covered(&format!("revisions {} to {last}", number + 1), &why);
    }
}

#[cfg(test)]
mod tests;
