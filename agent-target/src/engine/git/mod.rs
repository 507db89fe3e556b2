//! `engine git-check`: git's own check over the objects and references of a copied repository.
//!
//! | exit code | what it means |
//! | --- | --- |
//! | 0 | nothing is wrong |
//! | 1 | damage: lines `damage: …` say what |
//! | 10 | the repository is of a format that git or this check does not know |
//! | 11 | objects of the repository are not in the copy |
//! | 12 | git could not do its work |
//! | 13 | the folder is not a repository |
//! | 14 | git is not there |
//! | 15 | the repository's configuration cannot be read |
//!
//! git never sees the copy's configuration, hooks or caches: it works in a `View`. What its words mean stands in `words`.
//! Objects of git LFS, and the repositories of submodules, are checked as well.

mod lfs;
mod places;
mod view;
mod words;

use std::{
    collections::BTreeSet,
    fs,
    io::{self, BufRead as _, BufReader, Read},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::mpsc::{SyncSender, sync_channel},
    thread,
};

use self::{view::View, words::Meaning};
use super::report::{self, Report};
use crate::check::obstacles::obstacle;

/// Lines of damage whose objects are looked for in the history, and that are kept for it.
const MAX_KEPT: usize = 2000;
/// Names that one line of output lists.
const LISTED: usize = 3;

/// What to check, and where.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The copied repository: the folder that has HEAD and objects
    #[arg(long)]
    repository: PathBuf,
    /// An empty folder of this step
    #[arg(long)]
    scratch: PathBuf,
    /// The git program
    #[arg(long, default_value = "git")]
    program: PathBuf,
    /// What the mark is called: it names the references that are gone since the last backup's
    #[arg(long, default_value = "", hide_default_value = true)]
    mark: String,
}

/// What kept the check from looking.
#[derive(Debug)]
enum Unable {
    Version(String),
    Elsewhere(String),
    Checker(String),
    NotARepository(String),
    Missing(String),
    Configuration(String),
}

impl Unable {
    fn code(&self) -> u8 {
        match self {
            Self::Version(_) => 10,
            Self::Elsewhere(_) => 11,
            Self::Checker(_) => 12,
            Self::NotARepository(_) => 13,
            Self::Missing(_) => 14,
            Self::Configuration(_) => 15,
        }
    }

    fn message(&self) -> &str {
        match self {
            Self::Version(it) | Self::Elsewhere(it) | Self::Checker(it) => it,
            Self::NotARepository(it) | Self::Missing(it) | Self::Configuration(it) => it,
        }
    }
}

/// The git program, without any configuration of this host.
#[derive(Debug)]
struct Git {
    program: PathBuf,
    scratch: PathBuf,
}

impl Git {
    /// A call that knows of no repository.
    fn plain(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.current_dir(&self.scratch).stdin(Stdio::null());
        for (name, value) in [
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_ATTR_NOSYSTEM", "1"),
            ("GIT_NO_LAZY_FETCH", "1"),
            ("GIT_OPTIONAL_LOCKS", "0"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_NO_REPLACE_OBJECTS", "1"),
            ("GIT_PAGER", "cat"),
        ] {
            command.env(name, value);
        }
        command.env("GIT_CEILING_DIRECTORIES", &self.scratch);
        command
    }

    /// A call in a view.
    fn command(&self, view: &View) -> Command {
        let mut command = self.plain();
        for setting in [
            "safe.directory=*",
            "core.fsmonitor=false",
            "core.hooksPath=/dev/null",
            "core.alternateRefsCommand=false",
        ] {
            command.args(["-c", setting]);
        }
        let mut folder = std::ffi::OsString::from("--git-dir=");
        folder.push(&view.path);
        command.args(["--no-pager", "--no-replace-objects"]).arg(folder);
        command
    }

    fn not_started(&self, error: &io::Error) -> Unable {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => {
                Unable::Missing(format!("{} cannot be run: {error}", self.program.display()))
            }
            _ => Unable::Checker(format!("{}: {error}", self.program.display())),
        }
    }

    /// What a call in a view prints, if it succeeds.
    fn ask(&self, view: &View, arguments: &[&str]) -> Result<Option<String>, Unable> {
        let output = self.command(view).args(arguments).output().map_err(|error| self.not_started(&error))?;
        Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
    }
}

/// Runs the check. Its exit code is that of the table above.
pub fn check(arguments: &Arguments) -> ExitCode {
    let mut report = Report::new();
    match run(arguments, &mut report) {
        _ if report.is_damaged() => {
            report.done("git: damaged");
            ExitCode::from(1)
        }
        Ok(()) => {
            report.done("git: checked");
            ExitCode::SUCCESS
        }
        Err(unable) => {
            report::unable(unable.message());
            ExitCode::from(unable.code())
        }
    }
}

fn run<W: io::Write>(arguments: &Arguments, report: &mut Report<W>) -> Result<(), Unable> {
    let git = Git { program: arguments.program.clone(), scratch: arguments.scratch.clone() };
    let version = git.plain().arg("--version").output().map_err(|error| git.not_started(&error))?;
    let version = String::from_utf8_lossy(&version.stdout);
    report.engine(&format!("git {}", version.trim().trim_start_matches("git version ")));
    let view = arguments.scratch.join("view");
    let view =
        Repository { git: &git, root: &arguments.repository, label: String::new() }.check(view, report)?;
    if !report.is_damaged() {
        tell_of_gone(&git, &view, &arguments.mark, report);
    }
    let (modules, links) = modules(&arguments.repository);
    for name in links {
        report.not_covered(
            &name,
            "it is a link: a repository of a submodule may be where it leads, out of the copy",
        );
    }
    for (number, (name, root)) in modules.into_iter().enumerate() {
        let view = arguments.scratch.join(format!("view-{number}"));
        let module = Repository { git: &git, root: &root, label: format!("{name}/") };
        match module.check(view, report) {
            Ok(_) => report.checked(1, "repositories of submodules"),
            Err(Unable::Checker(message)) => return Err(Unable::Checker(format!("{name}: {message}"))),
            Err(unable) => report.not_covered(&name, unable.message()),
        }
    }
    Ok(())
}

/// Says which references are gone since the last backup's mark. One whose commits are in another reference was merged, as a rule.
/// Of the others nobody can say whether they were deleted or lost.
fn tell_of_gone<W: io::Write>(git: &Git, view: &View, mark: &str, report: &mut Report<W>) {
    for part in mark.split("; ") {
        if let Some(count) = part.strip_suffix(" more gone") {
            report.note(&format!("{count} further references are gone since the last backup's mark"));
        }
        let Some((name, object)) = part.strip_prefix("gone ").and_then(|it| it.split_once(' ')) else {
            continue;
        };
        if !matches!(object.len(), 40 | 64) || !object.bytes().all(|it| it.is_ascii_hexdigit()) {
            continue;
        }
        let left_out = git.ask(view, &["rev-list", "--objects", object, "--not", "--all"]);
        if left_out.is_ok_and(|it| it.is_some_and(|commits| commits.trim().is_empty())) {
            report.note(&format!(
                "{name} is gone since the last backup's mark; other references have what it led to"
            ));
        } else {
            let why = format!(
                "it was there at the last backup's mark, at {object}, and is gone: it was deleted or lost, and no other reference \
                 has what it led to"
            );
            report.not_covered(name, &why);
        }
    }
}

/// The repositories of submodules, by their paths in the root, and the links in whose place there may be more. Each linked work
/// tree has submodules of its own, and so has a submodule.
fn modules(root: &Path) -> (Vec<(String, PathBuf)>, Vec<String>) {
    let (mut found, mut links) = (Vec::new(), Vec::new());
    let mut folders = vec![("modules".to_owned(), root.join("modules"))];
    let worktrees = |name: &str, root: &Path| -> Vec<_> {
        let entries = fs::read_dir(root.join("worktrees")).into_iter().flatten().flatten();
        let names = entries.map(|it| format!("worktrees/{}/modules", it.file_name().to_string_lossy()));
        names.map(|it| (format!("{name}{it}"), root.join(&it))).collect()
    };
    folders.extend(worktrees("", root));
    while let Some((name, folder)) = folders.pop() {
        let is_folder = |path: &Path| fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
        if !is_folder(&folder) {
            if fs::symlink_metadata(&folder).is_ok_and(|found| found.is_symlink()) {
                links.push(name);
            }
            continue;
        }
        if is_folder(&folder.join("objects")) && folder.join("HEAD").symlink_metadata().is_ok() {
            folders.push((format!("{name}/modules"), folder.join("modules")));
            folders.extend(worktrees(&format!("{name}/"), &folder));
            found.push((name, folder));
            continue;
        }
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            folders.push((format!("{name}/{}", entry.file_name().to_string_lossy()), entry.path()));
        }
    }
    found.sort();
    links.sort();
    (found, links)
}

/// One copied repository.
struct Repository<'a> {
    git: &'a Git,
    root: &'a Path,
    /// What its paths begin with: nothing, or the path of a submodule's repository and a slash.
    label: String,
}

/// What `git fsck` said, line by line.
#[derive(Debug, Default)]
struct Said {
    damage: Vec<String>,
    notes: Vec<String>,
    /// Bits of the exit code that notes explain.
    explained: i32,
    /// The reason of an obstacle, and its line.
    obstacle: Option<String>,
    /// The last line that says that something is wrong and is not known.
    unknown: Option<String>,
}

impl Repository<'_> {
    fn check<W: io::Write>(&self, path: PathBuf, report: &mut Report<W>) -> Result<View, Unable> {
        let view = View::make(self.git, self.root, path)?;
        let mut damage: Vec<_> = view
            .lonely_indexes
            .iter()
            .map(|name| format!("no corresponding .pack: objects/pack/{name}"))
            .collect();
        let stored = lfs::stored(self.root)?;
        let ended = self.fsck(&view, &mut damage, report);
        damage.extend(stored.damage.iter().cloned());
        self.tell_damage(&view, &damage, report);
        ended?;
        if !damage.is_empty() {
            return Ok(view);
        }
        let listed = lfs::list(self.git, &view)?;
        report.checked(listed.objects, "objects");
        let references = self.git.ask(&view, &["for-each-ref", "--format=%(refname)"])?.unwrap_or_default();
        let references: BTreeSet<_> = references.lines().collect();
        report.checked(references.len() as u64, "references");
        report.checked(stored.names.len() as u64, "LFS objects");
        self.tell_not_covered(&view, &stored, &listed, &references, report);
        Ok(view)
    }

    /// Runs `git fsck`. With a broken index it gives up before it has looked at anything else, so it runs again without.
    fn fsck<W: io::Write>(
        &self,
        view: &View,
        damage: &mut Vec<String>,
        report: &mut Report<W>,
    ) -> Result<(), Unable> {
        let mut said = Said::default();
        let mut code = self.fsck_once(view, &mut said)?;
        if code >= 128 && said.damage.iter().any(|line| line.contains("index file")) {
            drop(fs::remove_file(view.path.join("index")));
            code = self.fsck_once(view, &mut said)?;
        }
        for note in &said.notes {
            report.note(&format!("{}{note}", self.label));
        }
        let is_damaged = !said.damage.is_empty();
        damage.append(&mut said.damage);
        if is_damaged || !damage.is_empty() {
            return Ok(());
        }
        // Next to an unknown complaint, a known one explains nothing.
        let is_unknown = code != 0 && said.unknown.is_some();
        let line = said.unknown.map(|line| format!(": {line}")).unwrap_or_default();
        if let Some(obstacle) = said.obstacle {
            return Err(Unable::Checker(obstacle));
        }
        if is_unknown || code >= 128 || code & !said.explained != 0 {
            let message =
                format!("git fsck ended with exit code {code}, and no word of it is known as damage{line}");
            let is_format = ["repo version", "repository extension", "repository format"];
            return Err(match line {
                line if is_format.iter().any(|it| line.contains(it)) => Unable::Version(message),
                line if line.contains("not a git repository") => Unable::NotARepository(message),
                _ => Unable::Checker(message),
            });
        }
        Ok(())
    }

    fn fsck_once(&self, view: &View, said: &mut Said) -> Result<i32, Unable> {
        let mut command = self.git.command(view);
        command.args(["fsck", "--full", "--no-dangling", "--no-progress"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| self.git.not_started(&error))?;
        let (sender, lines) = sync_channel(1024);
        for stream in [child.stdout.take().map(boxed), child.stderr.take().map(boxed)].into_iter().flatten() {
            forward(stream, sender.clone());
        }
        drop(sender);
        for line in lines {
            self.take(view, &view.shorten(&line), said)?;
        }
        let ended = child.wait().map_err(|error| Unable::Checker(format!("git fsck: {error}")))?;
        ended.code().ok_or_else(|| Unable::Checker(format!("git fsck was ended by a signal: {ended}")))
    }

    /// Puts a line where it belongs.
    fn take(&self, view: &View, line: &str, said: &mut Said) -> Result<(), Unable> {
        let is_message = ["error: ", "fatal: ", "warning: "].iter().any(|it| line.starts_with(it));
        if is_message && obstacle(line.as_bytes()).is_some() {
            said.obstacle.get_or_insert_with(|| line.to_owned());
            return Ok(());
        }
        let keep = |list: &mut Vec<String>, text: String| {
            if list.len() < MAX_KEPT {
                list.push(text);
            }
        };
        let (meaning, bits) = match words::meaning(line) {
            Some(found) => found,
            None => {
                if !line.trim().is_empty() {
                    said.unknown = Some(line.to_owned());
                }
                return Ok(());
            }
        };
        let note = match meaning {
            Meaning::Silent => return Ok(()),
            Meaning::Continues => {
                if let Some(last) = said.damage.last_mut().filter(|it| it.starts_with("broken link")) {
                    last.push(' ');
                    last.push_str(&squeeze(line));
                }
                return Ok(());
            }
            Meaning::Damage => None,
            Meaning::Note => {
                Some(line.trim_start_matches("error in ").trim_start_matches("warning in ").to_owned())
            }
            Meaning::Reference => self.about_reference(view, line)?,
            Meaning::StrangeHead => match words::strange_target(line) {
                Some(target) if self.exists(view, target)? => {
                    Some(format!("HEAD leads to {target}, outside refs/heads"))
                }
                _ => None,
            },
        };
        match note {
            Some(note) => {
                said.explained |= bits;
                keep(&mut said.notes, note);
            }
            None => keep(&mut said.damage, squeeze(line)),
        }
        Ok(())
    }

    /// What is said of a reference that `fsck` cannot follow, when it is no damage.
    fn about_reference(&self, view: &View, line: &str) -> Result<Option<String>, Unable> {
        let Some((name, _)) = words::reference(line) else { return Ok(None) };
        if self.git.ask(view, &["check-ref-format", "--allow-onelevel", name])?.is_none() {
            return Ok(Some(format!("{name} is not a name for a reference, so git does not use this file")));
        }
        let target = self.git.ask(view, &["symbolic-ref", "--quiet", name])?;
        Ok(target.map(|target| format!("{name} leads to {}, which is not there", target.trim())))
    }

    fn exists(&self, view: &View, name: &str) -> Result<bool, Unable> {
        Ok(self.git.ask(view, &["rev-parse", "--verify", "--quiet", "--end-of-options", name])?.is_some())
    }

    fn tell_damage<W: io::Write>(&self, view: &View, damage: &[String], report: &mut Report<W>) {
        let places = places::find(self.git, view, &places::objects(damage));
        // The object that is missing comes before the links that lead to it.
        let is_link = |line: &&String| line.starts_with("broken link");
        for line in damage.iter().filter(|it| !is_link(it)).chain(damage.iter().filter(is_link)) {
            let objects = places::objects([line]);
            let place = objects.iter().find_map(|it| places.get(it));
            let place = place.map(|it| format!(": {it}")).unwrap_or_default();
            report.damage(&format!("{}{line}{place}", self.label));
        }
    }

    fn tell_not_covered<W: io::Write>(
        &self,
        view: &View,
        stored: &lfs::Stored,
        listed: &lfs::Listed,
        references: &BTreeSet<&str>,
        report: &mut Report<W>,
    ) {
        let part = |name: &str| format!("{}{name}", self.label);
        if !view.caches.is_empty() {
            let caches = view.caches.join(", ");
            // Nothing that was promised: the objects that they are made from were checked.
            report.note(&part(&format!("caches were not looked at ({caches}): git rebuilds them")));
        }
        for (name, why) in &view.unfinished {
            report.not_covered(&part(name), why);
        }
        if view.is_partial {
            report.not_covered(&part("promised objects"), "a remote has them, and the copy does not");
        }
        let missing: Vec<_> = listed.pointers.keys().filter(|it| !stored.names.contains(*it)).collect();
        if !missing.is_empty() {
            let first = missing.iter().take(LISTED).map(|it| it.as_str()).collect::<Vec<_>>().join(", ");
            let why = format!(
                "pointer files name {} LFS objects, and {} of them are not in the copy: {first}{}",
                listed.pointers.len(),
                missing.len(),
                if missing.len() > LISTED { " …" } else { "" }
            );
            report.not_covered(&part("LFS objects"), &why);
        }
        for stray in &stored.strays {
            report.not_covered(&part(stray), "it is not an object of git LFS");
        }
        if self.root.join("annex/objects").is_dir() {
            report.not_covered(&part("annex/objects"), "git annex fsck checks these files");
        }
        if view.has_loose_refs {
            for name in reflogs(&self.root.join("logs")) {
                // A symbolic reference that leads nowhere is not listed, and is there.
                let is_there = references.contains(name.as_str()) || self.root.join(&name).exists();
                if name.starts_with("refs/") && !is_there {
                    report.not_covered(
                        &part(&name),
                        "its reflog is there, and the reference is not: it may have been lost",
                    );
                }
            }
        }
    }
}

/// The references that have a reflog with something in it.
fn reflogs(logs: &Path) -> Vec<String> {
    let (mut found, mut folders) = (Vec::new(), vec![(String::new(), logs.to_owned())]);
    while let Some((name, folder)) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let name = format!("{name}{}", entry.file_name().to_string_lossy());
            match entry.metadata() {
                Ok(it) if it.is_dir() => folders.push((format!("{name}/"), entry.path())),
                Ok(it) if it.is_file() && it.len() > 0 => found.push(name),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

/// A line with single spaces.
fn squeeze(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn boxed(stream: impl Read + Send + 'static) -> Box<dyn Read + Send> {
    Box::new(stream)
}

/// Sends the lines of a stream.
fn forward(stream: Box<dyn Read + Send>, sender: SyncSender<String>) {
    thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
}

#[cfg(test)]
mod tests;
