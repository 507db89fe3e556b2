//! A stand-in for AccuRev 4.x, and in another mode ([`database`]) for 5 and later: not AccuRev, and named a stand-in everywhere.
//!
//! AccuRev cannot be shipped, so the tests bring a program that behaves like it where it matters to a hot backup: an
//! append-only store with checksums under a server process that keeps writing, `accurev backup mark`, an
//! `acserver.cnf` read as strictly as the real one, a licence bound to host and port, and a `maintain dbcheck` that
//! really reads the data and finds real damage.
//!
//! What is known and what is guessed (the facts and their sources are in ACCUREV.md beside the design):
//!
//! | documented | guessed, or made up for the stand-in |
//! | --- | --- |
//! | `backup mark` before 5.0, a usage error for `backup FILE` | what the mark prints and its exit status |
//! | copy, set `MASTER_SERVER`, `maintain dbcheck` on the copy | what dbcheck prints, its depth and its exit codes |
//! | no licence file: exit; other host: host name error | the exact texts; the name `site_slice/keys.txt` |
//! | blanks around `=` are needed, none after the host name | a carriage return counts as part of the host name |
//! | tables are mostly append-only, transactions are atomic | the record format, `*.ndb`, `*.ndx`, `valid_sizes_backup` |
//! | `storage/depots/NAME/data/12/34/56.sto`, absolute slices | the form of the slices table |
//! | `acserver.command.pause` quiesces the server | while it is paused, client commands are refused at once |
//! | the first `SERVERS` line of `acclient.cnf` names the server | the line protocol on loopback |
//!
//! Every text and exit code that nobody published stands in `bin/standin.toml` and is read at run time.
//!
//! The environment is read in one place, [`Surroundings::from_env`]:
//! `ACCUREV_STANDIN_HOSTNAMES` (comma separated) replaces the names and addresses of this host, and
//! `ACCUREV_STANDIN_RELOCATE=1` makes a copy at another place use its own files. Without it a copy follows the
//! absolute paths of the live server, as the real one does, even when they lead to the live data.
//!
//! What one process may do while another works on the same files:
//!
//! | who | meets | kept apart by |
//! | --- | --- | --- |
//! | server | server, `maintain` | `flock` on `site_slice/server.pid`: a stale pid file in a copy is no running server |
//! | mark | transactions | both are done by the same thread, one after the other |
//! | copy | transactions | files only grow, are added, or are replaced by a rename; the mark says how much counts |
//! | copy | mark | nothing: do not do it. `dbcheck` reports slices that bear different marks |

pub mod client;
pub mod control;
pub mod damage;
pub mod database;
pub mod install;
pub mod layout;
pub mod maintain;
pub mod server;
pub mod store;
pub mod texts;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_of_5;

use std::ffi::OsString;

/// What a program of the stand-in has to say, and the status that it ends with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Text for standard output, with its line ends.
    pub stdout: String,
    /// Text for standard error, with its line ends.
    pub stderr: String,
    /// The exit status.
    pub exit: u8,
}

impl Outcome {
    /// Success, with text for standard output.
    pub fn done(text: impl Into<String>) -> Self {
        Self { stdout: with_line_end(text.into()), stderr: String::new(), exit: 0 }
    }
}

impl From<Failure> for Outcome {
    fn from(failure: Failure) -> Self {
        Self { stdout: String::new(), stderr: with_line_end(failure.text), exit: failure.exit }
    }
}

/// Why a program could not do its work: the text for standard error and the exit status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The text, already filled in.
    pub text: String,
    /// The exit status.
    pub exit: u8,
}

fn with_line_end(mut text: String) -> String {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// What the programs take from the world around them, read once and handed in.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Replaces every name and address of this host.
    pub host_names: Option<Vec<String>>,
    /// Maps paths below the original installation to this one.
    pub relocate: bool,
}

impl Surroundings {
    /// Replaces the names of this host: comma separated, taken byte for byte.
    pub const HOSTNAMES: &str = "ACCUREV_STANDIN_HOSTNAMES";
    /// `1`: a copy uses its own files in place of the absolute paths of the live server.
    pub const RELOCATE: &str = "ACCUREV_STANDIN_RELOCATE";

    /// Reads the two variables.
    pub fn from_env() -> Self {
        let names = |value: OsString| value.to_string_lossy().split(',').map(str::to_owned).collect();
        Self {
            host_names: std::env::var_os(Self::HOSTNAMES).map(names),
            relocate: std::env::var_os(Self::RELOCATE).is_some_and(|value| value == "1"),
        }
    }
}
