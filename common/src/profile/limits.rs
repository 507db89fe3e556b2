//! `[limits]`: what one step of a check may use of the target.

use serde::Deserialize;

use crate::config::Size;

/// `[limits]` of a profile, and `[repository.limits]` of the target's configuration, which comes first.
///
/// A step that reaches one is ended, and its outcome is INCONCLUSIVE whatever it said: `memory-limit`, `process-limit`,
/// `disk-limit`, `disk-full` or `output-limit`. Its time has a limit of its own, [`Check::timeout`](super::Check::timeout).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Memory of all processes of the step together, with what they put into `/tmp` and the like. Three quarters of the
    /// host's memory when it is not set.
    pub memory: Option<Size>,
    /// Processes and threads of the step. 4096 when it is not set.
    pub processes: Option<u32>,
    /// How much the workspace may grow. When it is not set, until `disk_reserve` is reached.
    pub disk: Option<Size>,
    /// What must stay free on the file system of the workspace. 64 MiB when it is not set.
    pub disk_reserve: Option<Size>,
    /// How much the step may print, on both streams together. 512 MiB when it is not set.
    pub output: Option<Size>,
    /// True: memory and processes are limited by the kernel (a control group), or the check is INCONCLUSIVE. Otherwise they
    /// are watched where there is no control group, and the verdict says so.
    pub require: Option<bool>,
}

impl Limits {
    /// The smallest limit on memory: less would end any program before it begins.
    pub const MIN_MEMORY: Size = Size(16 << 20);
    /// The smallest limit on processes: the sandbox has some of its own.
    pub const MIN_PROCESSES: u32 = 16;

    /// These, and where one is not set, the other's.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            memory: self.memory.or(other.memory),
            processes: self.processes.or(other.processes),
            disk: self.disk.or(other.disk),
            disk_reserve: self.disk_reserve.or(other.disk_reserve),
            output: self.output.or(other.output),
            require: self.require.or(other.require),
        }
    }

    /// What is wrong with them: the key, and what its value must be.
    pub fn faults(&self) -> impl Iterator<Item = (&'static str, String)> {
        let memory = self.memory.filter(|it| *it < Self::MIN_MEMORY);
        let memory = memory.map(|_| ("memory", format!("must be at least {}", Self::MIN_MEMORY)));
        let few = self.processes.filter(|it| *it < Self::MIN_PROCESSES);
        let few = few.map(|_| ("processes", format!("must be at least {}", Self::MIN_PROCESSES)));
        let nothing = [("disk", self.disk), ("output", self.output)]
            .into_iter()
            .filter(|(_, size)| size.is_some_and(|size| size.0 == 0))
            .map(|(key, _)| (key, "must be greater than zero".to_owned()));
        memory.into_iter().chain(few).chain(nothing)
    }
}
