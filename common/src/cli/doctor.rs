//! `doctor`: everything that would make a run INCONCLUSIVE or NOT_RUN, found beforehand. It reads and asks, and changes nothing.

use std::{
    fmt::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use jiff::Timestamp;
use serde::Serialize;

use super::{print_json, show};
use crate::{
    error::{Hint as _, without_codes},
    pki::{Role, authority},
    tls::{Credentials, TlsFiles},
    verdict::timestamp_to_proto,
};

/// Certificates that end sooner are told of.
const CERTIFICATE_DAYS: i64 = 21;
/// Shares of a file system, in per cent, below which its room is told of, and below which it is bad.
const LITTLE_ROOM: (u64, u64) = (10, 2);

/// How a finding counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Level {
    /// As it should be.
    Ok,
    /// A run can pass; only recommended settings are missing.
    Warn,
    /// A run would end INCONCLUSIVE or NOT_RUN.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How it counts.
    pub level: Level,
    /// What was looked at, in a word or two.
    pub what: String,
    /// What was found.
    pub found: String,
    /// What to do; empty when nothing is.
    pub remedy: String,
}

/// All findings, in the order in which they were made.
#[derive(Debug, Clone, Default)]
pub struct Report(Vec<Finding>);

impl Report {
    fn add(&mut self, level: Level, what: &str, found: impl Into<String>, remedy: impl Into<String>) {
        let (found, remedy) = (without_codes(&found.into()), remedy.into());
        self.0.push(Finding { level, what: what.to_owned(), found, remedy });
    }

    /// As it should be.
    pub fn ok(&mut self, what: &str, found: impl Into<String>) {
        self.add(Level::Ok, what, found, "");
    }

    /// Something is missing.
    pub fn warn(&mut self, what: &str, found: impl Into<String>, remedy: impl Into<String>) {
        self.add(Level::Warn, what, found, remedy);
    }

    /// A run would not pass.
    pub fn bad(&mut self, what: &str, found: impl Into<String>, remedy: impl Into<String>) {
        self.add(Level::Bad, what, found, remedy);
    }

    /// The findings.
    pub fn findings(&self) -> &[Finding] {
        &self.0
    }

    /// Prints them. 0: all is as it should be; 3: there are warnings; 1: a run would not pass.
    pub fn end(&self, json: bool) -> ExitCode {
        if json {
            for finding in &self.0 {
                print_json(&serde_json::to_value(finding).unwrap_or_default());
            }
        } else {
            super::print(&self.text());
        }
        ExitCode::from(match self.worst() {
            Level::Ok => 0,
            Level::Warn => 3,
            Level::Bad => 1,
        })
    }

    fn worst(&self) -> Level {
        self.0.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for Finding { level, what, found, remedy } in &self.0 {
            let word = match level {
                Level::Ok => "OK",
                Level::Warn => "WARN",
                Level::Bad => "BAD",
            };
            let _ = writeln!(text, "{word:<4}  {what}: {found}");
            if !remedy.is_empty() {
                let _ = writeln!(text, "      -> {remedy}");
            }
        }
        let count = |level| self.0.iter().filter(|finding| finding.level == level).count();
        let _ =
            writeln!(text, "{} BAD, {} WARN, {} OK", count(Level::Bad), count(Level::Warn), count(Level::Ok));
        text
    }

    /// Certificate and private key, for an agent or operator of one of these roles.
    pub fn certificate(&mut self, what: &str, files: &TlsFiles, roles: &[Role], now: Timestamp) {
        match Credentials::load(files, roles) {
            Err(error) => self.bad(what, error.to_string(), error.hint().unwrap_or_default()),
            Ok(credentials) => {
                let end = credentials.expires();
                let days = now.duration_until(end).as_hours() / 24;
                let left = show::until(Some(&timestamp_to_proto(end)), now);
                let found =
                    format!("{}, until {} ({left})", credentials.identity(), end.strftime("%Y-%m-%d"));
                for fault in credentials.unusable_authorities() {
                    self.warn(
                        what,
                        fault.clone(),
                        "remove that CA from the file when nobody uses it any more",
                    );
                }
                if days < CERTIFICATE_DAYS {
                    let found = format!("{found}: {} ends first", credentials.expires_first());
                    self.warn(what, found, "issue a new one: pki issue");
                } else {
                    self.ok(what, found);
                }
            }
        }
    }

    /// The CA's private key, wherever this agent can read it and whatever the file is called.
    pub fn ca_key(&mut self, files: &TlsFiles, config: &Path) {
        for key in authority::reachable_keys(files, config) {
            let found = format!("{} lies where the agent can read it", key.path.display());
            let remedy = format!("whoever reads it can be anybody: {}", key.remedy());
            match key.is_refused {
                true => self.bad("CA key", format!("{found}: the agent does not start"), remedy),
                false => self.warn("CA key", found, remedy),
            }
        }
    }

    /// Room and inodes of the file system of a folder that is there.
    pub fn room(&mut self, what: &str, folder: &Path) {
        let stat = match rustix::fs::statvfs(folder) {
            Ok(stat) => stat,
            Err(error) => {
                self.bad(
                    what,
                    format!("{}: {error}", folder.display()),
                    "make the folder, or check the path",
                );
                return;
            }
        };
        let bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
        let share = |free: u64, all: u64| free.saturating_mul(100).checked_div(all).unwrap_or(100);
        let (room, inodes) = (share(stat.f_bavail, stat.f_blocks), share(stat.f_favail, stat.f_files));
        let found = format!(
            "{}: {} free ({room} %), {inodes} % of the inodes",
            folder.display(),
            super::show::bytes(bytes)
        );
        match room.min(inodes) {
            least if least < LITTLE_ROOM.1 => self.bad(what, found, "free some room"),
            least if least < LITTLE_ROOM.0 => self.warn(what, found, "free some room"),
            _ => self.ok(what, found),
        }
    }

    /// A program that is run, by its path or by its name in `PATH`.
    pub fn program(&mut self, what: &str, program: &Path, remedy: &str) -> bool {
        match find_program(program) {
            Some(path) => {
                self.ok(what, path.display().to_string());
                true
            }
            None => {
                self.bad(what, format!("{} is not there, or cannot be run", program.display()), remedy);
                false
            }
        }
    }
}

/// Where a program is: as it stands when it has a slash, else in `PATH`.
pub fn find_program(program: &Path) -> Option<PathBuf> {
    let can_run = |path: &Path| {
        path.metadata()
            .is_ok_and(|stat| stat.is_file() && stat.permissions().mode() & 0o111 != 0 && stat.nlink() > 0)
    };
    if program.components().count() > 1 {
        return can_run(program).then(|| program.to_owned());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|path| can_run(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_finding_counts_and_each_has_its_remedy() {
        let mut report = Report::default();
        assert_eq!(report.worst(), Level::Ok);
        report.ok("one", "good");
        report.warn("two", "so so", "do this");
        assert_eq!(report.worst(), Level::Warn);
        report.bad("three", "broken", "do that");
        assert_eq!(report.worst(), Level::Bad);
        let text = report.text();
        assert!(text.contains("BAD   three: broken\n      -> do that\n"), "{text}");
        assert!(text.ends_with("1 BAD, 1 WARN, 1 OK\n"), "{text}");
    }

    #[test]
    fn programs_are_found_as_a_command_would_find_them() {
        assert!(find_program(Path::new("sh")).is_some());
        assert!(find_program(Path::new("/bin/sh")).is_some());
        assert!(find_program(Path::new("/etc/passwd")).is_none());
        assert!(find_program(Path::new("no-such-program-anywhere")).is_none());
    }
}
