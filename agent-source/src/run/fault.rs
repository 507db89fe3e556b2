//! Why a run ended without a verdict, in the words that operators, scripts and the ledger get.

use std::{io, path::Path, sync::Arc, time::Duration};

use assay_common::{
    cli::screen::counted,
    config::HISTORY_DIFFERS,
    error::without_codes,
    error::{Hint as _, PathError},
    fidelity::{CANNOT_HOLD, Refused, remedies},
    rpc_status::{BUSY, TOO_MANY_FAILED_RUNS, fault_from_status},
    tls::{ConnectError, connect_error_of},
    verdict::Outcome,
};
use tonic::{Code, Status};

use crate::{
    mark::{CommandError, MarkError, PostgresqlError},
    replicate::{
        ReplicateError, reader::ReadError, scan::ScanError, spool::SpoolError, transfer::TransferError,
    },
    snapshot::SnapshotError,
    state::StateError,
};

/// The end of a run that has no verdict.
#[derive(Debug)]
pub struct Fault {
    /// NOT_RUN, or INCONCLUSIVE when a check ran and its verdict cannot be believed.
    pub outcome: Outcome,
    /// A short stable word.
    pub reason: &'static str,
    /// What happened, to what.
    pub message: String,
    /// What the operator may try.
    pub hint: Option<String>,
    /// True when the target never opened the run: there is nothing to tell it.
    pub was_not_opened: bool,
}

impl Fault {
    /// A run that ended before its check.
    pub fn not_run(reason: &'static str, message: impl Into<String>) -> Self {
        let message = without_codes(&message.into());
        Self { outcome: Outcome::NotRun, reason, message, hint: None, was_not_opened: false }
    }

    /// With what the operator may try.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Message and hint, as people read them.
    pub fn text(&self) -> String {
        match &self.hint {
            Some(hint) => format!("{}\nHINT: {hint}", self.message),
            None => self.message.clone(),
        }
    }

    pub(super) fn configuration(message: String) -> Self {
        Self::not_run("configuration", message)
    }

    pub(super) fn cancelled() -> Self {
        Self::not_run("cancelled", "the run was cancelled")
    }

    pub(super) fn protocol(rule: &str) -> Self {
        Self::not_run("protocol", format!("the target does not keep to the protocol: {rule}"))
            .hint("check that both agents are of the same version")
    }

    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        PathError { path: path.to_owned(), action, source }.into()
    }

    pub(super) fn verdict_not_trusted(why: String) -> Self {
        let message = format!("the target's verdict is not believed: {why}");
        Self { outcome: Outcome::Inconclusive, ..Self::not_run("verdict-not-trusted", message) }
            .hint("compare target.signing_key in the configuration with the target's public signing key")
    }

    /// Entries that the target would not take, of which some are named.
    pub(super) fn refused(named: &[Refused], all: u64) -> Self {
        let mut text = named.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        if all > named.len() as u64 {
            text = format!("{all} entries cannot be copied as they are, among them: {text}");
        }
        Self::not_run(CANNOT_HOLD, text).hint(remedies(named))
    }

    pub(super) fn mass_drop(gone: u64, of: u64, limit: u8, moved: u64) -> Self {
        let mut text =
            format!("{gone} of {of} entries of the last generation are gone, more than {limit} per cent");
        let hint = if moved == 0 {
            "check that everything is mounted; if it is right, run once with --allow-mass-drop"
        } else {
            let files = counted(moved, "file is at another path", "files are at other paths");
            text.push_str(&format!("; of them {files} now, as when a folder was moved"));
            "if they were moved on purpose, run once with --allow-mass-drop; their content is not sent again"
        };
        Self::not_run("mass-drop", text).hint(hint)
    }

    /// From the target's answer.
    fn remote(reason: &'static str, doing: &str, status: &Status) -> Self {
        let fault = fault_from_status(status);
        let cut =
            matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled);
        if fault.reason.is_empty() && cut {
            // No agent said this: the connection did.
            let text = format!("{doing}: the connection to the target was lost ({})", fault.message);
            return Self::not_run("connection-lost", text)
                .hint("check that the target agent runs; what has arrived there is kept and not sent again");
        }
        let reason = match status.code() {
            _ if fault.reason == BUSY && reason == "target-refused" => "target-busy",
            Code::Unavailable if reason != "not-sealed" => "target-unreachable",
            Code::PermissionDenied | Code::Unauthenticated => "target-refused",
            Code::DeadlineExceeded if fault.reason.is_empty() => "target-stalled",
            Code::Aborted => "target-busy",
            Code::ResourceExhausted if fault.reason == "quota-exceeded" => "quota-exceeded",
            Code::ResourceExhausted if fault.reason == TOO_MANY_FAILED_RUNS => TOO_MANY_FAILED_RUNS,
            Code::ResourceExhausted => "target-full",
            _ if fault.reason == CANNOT_HOLD => CANNOT_HOLD,
            _ if fault.reason == HISTORY_DIFFERS => HISTORY_DIFFERS,
            _ => reason,
        };
        let mut error = Self::not_run(reason, format!("{doing}: {}", fault.message));
        error.hint = fault.hint;
        error
    }

    pub(super) fn opening(status: Status) -> Self {
        // The connection that others had made was gone, and no other could be made.
        if let Some(error) = connect_error_of(&status) {
            return Self::from(error);
        }
        let fault = Self::remote("target-refused", "the target does not open the run", &status);
        Self { was_not_opened: true, ..fault }
    }

    pub(super) fn sealing(status: Status) -> Self {
        Self::remote("not-sealed", "the target does not seal the generation", &status)
    }

    pub(super) fn checking(status: Status) -> Self {
        Self::remote("check-lost", "the check's verdict did not arrive", &status)
    }
}

/// What stands for an answer of a target that gave none for so long.
pub(super) fn silent(patience: Duration) -> Status {
    TransferError::Stalled { patience }.into_status()
}

impl From<Arc<ConnectError>> for Fault {
    fn from(error: Arc<ConnectError>) -> Self {
        Self::from(&*error)
    }
}

impl From<&ConnectError> for Fault {
    fn from(error: &ConnectError) -> Self {
        let mut fault = Self::not_run("target-unreachable", error.to_string());
        fault.hint = error.hint();
        Self { was_not_opened: true, ..fault }
    }
}

impl From<PathError> for Fault {
    fn from(error: PathError) -> Self {
        let mut fault = Self::not_run("state-unusable", error.to_string());
        fault.hint = error.hint();
        fault
    }
}

impl From<StateError> for Fault {
    fn from(error: StateError) -> Self {
        Self::not_run("state-unusable", error.to_string())
    }
}

impl From<MarkError> for Fault {
    fn from(error: MarkError) -> Self {
        match error {
            MarkError::Cancelled | MarkError::Command(CommandError::Cancelled { .. }) => Self::cancelled(),
            MarkError::Foreign { .. } => Self::not_run("foreign-mark", error.to_string())
                .hint("run again; when it comes back, look for another backup job, or for maintenance at the same time"),
            MarkError::NotThere { .. } => Self::not_run("not-a-repository", error.to_string())
                .hint("correct the first root's path, or the profile"),
            MarkError::Postgresql(PostgresqlError::Cancelled) => Self::cancelled(),
            MarkError::Postgresql(error) => {
                Self::not_run("mark-failed", error.to_string()).hint(error.hint())
            }
            MarkError::Sqlite(error) => Self::not_run("mark-failed", error.to_string()).hint(error.hint()),
            error => Self::not_run("mark-failed", error.to_string())
                .hint("run the profile's mark command by hand as the agent's user; nothing was copied"),
        }
    }
}

impl From<SnapshotError> for Fault {
    fn from(error: SnapshotError) -> Self {
        match error {
            SnapshotError::Command(CommandError::Cancelled { .. }) => Self::cancelled(),
            error => Self::not_run("mark-failed", error.to_string()).hint(error.hint()),
        }
    }
}

impl From<SpoolError> for Fault {
    fn from(error: SpoolError) -> Self {
        Self::not_run("state-unusable", error.to_string())
    }
}

impl From<ReplicateError> for Fault {
    fn from(error: ReplicateError) -> Self {
        match error {
            ReplicateError::Cancelled | ReplicateError::Read(ReadError::Stopped) => Self::cancelled(),
            ReplicateError::Mark(error) => error.into(),
            ReplicateError::Spool(error) => error.into(),
            ReplicateError::Transfer(TransferError::Rpc(status)) => {
                Self::remote("transfer-failed", "the transfer broke off", &status)
            }
            ReplicateError::Transfer(error @ TransferError::Stalled { .. }) => {
                Self::not_run("target-stalled", error.to_string())
                    .hint("look for what holds the target up; target.patience is how long it may be silent")
            }
            ReplicateError::Transfer(error) => Self::not_run("protocol", error.to_string()),
            error @ (ReplicateError::NeverStill { .. } | ReplicateError::Read(ReadError::Moved { .. })) => {
                Self::not_run("changed-under-scan", error.to_string()).hint(
                    "run again when the repository is not being packed; where it has very many files, pack it, or let the \
                     agent open more (LimitNOFILE=)",
                )
            }
            ReplicateError::Refused(refused) | ReplicateError::Read(ReadError::Refused(refused)) => {
                Self::refused(&[refused], 1)
            }
            ReplicateError::Scan(error @ ScanError::Path { .. }) => {
                Self::not_run("path-too-long", error.to_string()).hint(
                    "Linux opens no path of more than 4095 bytes, and rsync copies none: shorten a name on the way, give the folder as a \
                     root of its own, or exclude it",
                )
            }
            error @ (ReplicateError::Read(_) | ReplicateError::Scan(_)) => {
                let hint = read_hint(&error);
                Self::not_run("read-failed", error.to_string()).hint(hint)
            }
        }
    }
}

/// What to do about something that cannot be read.
fn read_hint(error: &ReplicateError) -> String {
    let source = match error {
        ReplicateError::Scan(ScanError::Pseudo { .. }) => {
            return "name it in exclude, or say one_file_system = true for this root: assay-source plan lists what is mounted in it"
                .to_owned();
        }
        ReplicateError::Scan(ScanError::Subvolume { .. }) => {
            return "exclude it, say one_file_system = true for this root, or make it a repository of its own".to_owned();
        }
        ReplicateError::Scan(ScanError::Path { .. }) => {
            return "rename it on the live system, or name its folder in exclude".to_owned();
        }
        ReplicateError::Scan(ScanError::Entry { source, .. })
        | ReplicateError::Read(ReadError::File { source, .. }) => source,
        _ => return String::new(),
    };
    use rustix::io::Errno;
    let hint = match source.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::ACCESS | Errno::PERM) => {
            "let the agent's user read it (root, or CAP_DAC_READ_SEARCH in the unit), or name it in exclude"
        }
        Some(Errno::WOULDBLOCK) => {
            "a program holds a lease on it and did not give it up in /proc/sys/fs/lease-break-time seconds (Samba's kernel \
             oplocks, an NFS delegation; /proc/locks names its process): end that program, or name the file in exclude"
        }
        Some(Errno::IO | Errno::UCLEAN | Errno::BADMSG | Errno::NODATA | Errno::NXIO) => {
            "its disk or file system does not give it back: look at the kernel's log (dmesg); the live copy is damaged, \
             and the newest generation with a PASS has the file as it was (assay-source restore)"
        }
        Some(Errno::STALE) => {
            "the file server has exported something else since it was mounted: mount it again, and run again"
        }
        Some(
            Errno::NOTCONN
            | Errno::TIMEDOUT
            | Errno::HOSTDOWN
            | Errno::HOSTUNREACH
            | Errno::CONNREFUSED
            | Errno::CONNRESET
            | Errno::SHUTDOWN,
        ) => "the file server does not answer: check the mount, and run again",
        Some(Errno::NOKEY | Errno::KEYREJECTED | Errno::KEYEXPIRED | Errno::KEYREVOKED) => {
            "the folder is encrypted and its key is not loaded: unlock it for the agent, or name it in exclude"
        }
        Some(Errno::MFILE | Errno::NFILE) => "let the agent open more files (LimitNOFILE= in its unit)",
        Some(Errno::NOMEM) => "the host is out of memory: lower agent.memory_mib or free some, and run again",
        Some(Errno::NAMETOOLONG) => "rename it on the live system, or name its folder in exclude",
        _ => {
            "repair what keeps it from being read, or name it in exclude: a backup without it would not be whole"
        }
    };
    hint.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each cause has its own remedy.
    #[test]
    fn a_file_that_cannot_be_read_comes_with_a_remedy_for_its_cause() {
        let hint = |code: i32| {
            let source = io::Error::from_raw_os_error(code);
            let error = ReplicateError::from(ReadError::File { path: "a/b".to_owned(), source });
            let fault = Fault::from(error);
            assert_eq!((fault.outcome, fault.reason), (Outcome::NotRun, "read-failed"));
            assert!(fault.message.starts_with("a/b: cannot be read: "), "{}", fault.message);
            fault.hint.expect("a remedy")
        };
        use rustix::io::Errno;
        for (code, word) in [
            (Errno::ACCESS, "CAP_DAC_READ_SEARCH"),
            (Errno::WOULDBLOCK, "lease"),
            (Errno::IO, "dmesg"),
            (Errno::STALE, "mount it again"),
            (Errno::NOTCONN, "does not answer"),
            (Errno::MFILE, "LimitNOFILE"),
            (Errno::NOKEY, "encrypted"),
            (Errno::TXTBSY, "exclude"),
        ] {
            assert!(hint(code.raw_os_error()).contains(word), "{code:?}");
        }
        let pseudo = ScanError::Pseudo { path: "proc".to_owned(), kind: "proc".to_owned() };
        let fault = Fault::from(ReplicateError::from(pseudo));
        assert!(fault.text().contains("one_file_system = true"), "{}", fault.text());
    }

    #[test]
    fn a_tree_that_was_moved_is_told_from_one_that_is_gone() {
        assert!(Fault::mass_drop(9, 10, 50, 0).text().contains("is mounted"));
        let moved = Fault::mass_drop(9, 10, 50, 8).text();
        assert!(
            moved.contains("of them 8 files are at other paths now") && moved.contains("--allow-mass-drop")
        );
    }
}
