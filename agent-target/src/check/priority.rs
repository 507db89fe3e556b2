//! How the processes of a check stand beside others of this host: their niceness, and the class of their reads and writes.

use std::ffi::{OsStr, OsString};

use serde::Deserialize;

use super::process::find_program;

/// What the configuration says; `None`: as the agent itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Priority {
    /// Niceness.
    pub nice: Option<u8>,
    /// Class of reads and writes.
    pub io: Option<IoClass>,
}

/// A class of reads and writes, as the kernel has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IoClass {
    /// Only when nobody else has any.
    Idle,
    /// Last of the usual class.
    BestEffort,
}

impl Priority {
    /// The beginning of a command that runs with this priority: nice(1) and ionice(1), which become what follows them.
    pub(super) fn command(self) -> Vec<OsString> {
        let mut command = Vec::new();
        let own = rustix::process::getpriority_process(None).unwrap_or(0);
        // Relative to the thread that starts it. Only root could make it less nice.
        let further = self.nice.map_or(0, |nice| i32::from(nice) - own);
        if further > 0 || (further < 0 && rustix::process::geteuid().is_root()) {
            command.extend(begins("nice", &["-n", &further.to_string()]));
        }
        match self.io {
            None => {}
            Some(IoClass::Idle) => command.extend(begins("ionice", &["-c", "3"])),
            Some(IoClass::BestEffort) => command.extend(begins("ionice", &["-c", "2", "-n", "7"])),
        }
        command
    }
}

fn begins(program: &str, arguments: &[&str]) -> Vec<OsString> {
    let Some(found) = find_program(OsStr::new(program)) else {
        tracing::warn!(program, "not installed: checks run with the agent's own priority");
        return Vec::new();
    };
    std::iter::once(found.into_os_string()).chain(arguments.iter().map(OsString::from)).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// What a program that is started this way is, by its own word.
    fn started(priority: Priority, script: &str) -> String {
        let mut command = priority.command();
        command.extend(["sh", "-c", script].map(OsString::from));
        let output = Command::new(&command[0]).args(&command[1..]).output().expect("it runs");
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    #[test]
    fn a_check_has_the_niceness_and_the_class_that_are_set() {
        let nice = Priority { nice: Some(19), io: None };
        assert_eq!(started(nice, "nice"), "19");
        let idle = Priority { nice: None, io: Some(IoClass::Idle) };
        assert_eq!(started(idle, "ionice"), "idle");
        let both = Priority { nice: Some(19), io: Some(IoClass::BestEffort) };
        assert_eq!(started(both, "nice; ionice"), "19\nbest-effort: prio 7");
        assert!(Priority::default().command().is_empty());
    }
}
