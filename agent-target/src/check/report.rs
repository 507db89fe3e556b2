//! What a check is given and what it tells.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use assay_common::profile::{Depth, Limits, RunAs, TargetNames, Value};
use tokio_util::sync::CancellationToken;

use super::{
    Captured, PartArgument, Priority,
    known::{Found, Known},
};
use crate::{
    patch::PatchRecord,
    userns::Account,
    workspace::{LaidFile, WorkspaceKind},
};

/// What came out of a check, or of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// No damage was found by a check that did its work.
    Pass,
    /// Damage was found.
    Fail,
    /// The check could not do its work.
    Inconclusive,
}

/// Whether steps run in a sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// In a sandbox where this host can make one; the report says where it could not.
    Auto,
    /// In a sandbox or not at all.
    #[default]
    Require,
    /// Without one, on the workspace's own paths.
    None,
}

/// What a check must know beside the profile and the workspace.
#[derive(Clone, Debug)]
pub struct CheckContext {
    /// The names under which this host is known.
    pub target: TargetNames,
    /// The variables, as [`Profile::bind`](assay_common::profile::Profile::bind) gave them.
    pub vars: BTreeMap<String, Value>,
    /// What each step is given for its parts, by the step's name; a step that is not named checks all that there is.
    pub parts: BTreeMap<String, Vec<PartArgument>>,
    /// What a step is told whose engine finds its parts, by the step's name.
    pub(crate) known: BTreeMap<String, Known>,
    /// Values to try instead of the profile's, by the patch's key. They may hold the placeholders of patch
    /// values.
    pub patch_values: BTreeMap<String, Vec<String>>,
    /// The operator's files, by the path of the profile's overlay.
    pub overlay_files: BTreeMap<String, PathBuf>,
    /// What the mark of the generation is called.
    pub mark_id: String,
    /// Who the steps are on this host, where the agent is root.
    pub account: Account,
    /// Live paths that the target's configuration names, by the root's name; `None`: they are the source's.
    pub live_paths: Option<BTreeMap<String, PathBuf>>,
    /// Who the steps see themselves as, instead of what the profile says.
    pub run_as: Option<RunAs>,
    /// Whether they run in a sandbox.
    pub isolation: Isolation,
    /// What a step may use, before what the profile says.
    pub limits: Limits,
    /// False: memory and processes are only watched, as on a host without control groups.
    pub control_groups: bool,
    /// Paths of this host that the sandbox shows read-only beside the profile's.
    pub visible: Vec<PathBuf>,
    /// Paths of this host that no sandbox may show: the store, keys, configuration.
    pub hidden: Vec<PathBuf>,
    /// Bubblewrap: a name or an absolute path.
    pub sandbox_program: PathBuf,
    /// How the steps' processes stand beside others of this host.
    pub priority: Priority,
    /// Ends the check.
    pub cancel: CancellationToken,
}

impl Default for CheckContext {
    fn default() -> Self {
        Self {
            target: TargetNames::default(),
            vars: BTreeMap::new(),
            parts: BTreeMap::new(),
            known: BTreeMap::new(),
            patch_values: BTreeMap::new(),
            overlay_files: BTreeMap::new(),
            mark_id: String::new(),
            account: Account::DEFAULT,
            live_paths: None,
            run_as: None,
            isolation: Isolation::default(),
            limits: Limits::default(),
            control_groups: true,
            visible: Vec::new(),
            hidden: Vec::new(),
            priority: Priority::default(),
            sandbox_program: "bwrap".into(),
            cancel: CancellationToken::new(),
        }
    }
}

/// How a check goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// A setting was changed.
    Patched {
        /// From 0: which of the candidates.
        attempt: usize,
        /// The key.
        key: String,
        /// Its value now.
        value: String,
    },
    /// A step begins.
    StepStarted {
        /// From 0: which of the candidates.
        attempt: usize,
        /// Its name.
        name: String,
        /// From 0.
        index: usize,
        /// How many steps there are.
        count: usize,
    },
    /// A step has ended.
    StepEnded {
        /// Its name.
        name: String,
        /// What came out of it.
        outcome: Outcome,
        /// Why.
        reason: String,
    },
}

/// A patch that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppliedPatch {
    /// The root that the file is in.
    pub root: String,
    /// From 0: which of the candidates.
    pub attempt: usize,
    /// What was changed.
    pub record: PatchRecord,
}

/// A file of the target's own that the check had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayRecord {
    /// The file.
    pub file: LaidFile,
    /// True for the operator's file; false for the one that was copied from the live server, which was
    /// allowed to do.
    pub from_operator: bool,
}

/// How a step's process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepEnd {
    /// By itself, with this code.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
    /// Killed when its time was over.
    TimedOut,
    /// Killed because the check was cancelled.
    Cancelled,
    /// Killed because it reached a limit.
    Limited,
    /// It never ran.
    NotStarted,
}

/// How many parts of one kind a step looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartsChecked {
    /// The kind, in the plural: `relations`, `objects`.
    pub kind: String,
    /// How many.
    pub count: u64,
}

/// A part of the copy that a step did not look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotCovered {
    /// The part, as the checker names it.
    pub part: String,
    /// A short stable word.
    pub reason: String,
    /// One line for people: why it was not looked at.
    pub message: String,
}

/// What one step did.
#[derive(Clone, Debug)]
pub struct StepReport {
    /// Its name; for a step that runs for each member of a list, with the member.
    pub name: String,
    /// Its name in the profile.
    pub check: String,
    /// From 0: which of the candidates for patched values was in place.
    pub attempt: usize,
    /// The command, placeholders filled, control characters escaped.
    pub argv: Vec<String>,
    /// What came out of it.
    pub outcome: Outcome,
    /// A short stable word.
    pub reason: String,
    /// One line for people.
    pub message: String,
    /// How its process ended.
    pub end: StepEnd,
    /// How deep it looks.
    pub depth: Depth,
    /// The findings that it named, at most 200.
    pub findings: Vec<String>,
    /// How many more it named.
    pub findings_dropped: u64,
    /// The checker's name and version, as it said.
    pub engine: Option<String>,
    /// What it looked at, by kind.
    pub checked: Vec<PartsChecked>,
    /// What it did not look at; at most 200 parts, and one entry that counts the rest.
    pub not_covered: Vec<NotCovered>,
    /// The parts that its engine found, if it was told of parts and passed.
    pub(crate) found: Option<Found>,
    /// Its standard output.
    pub stdout: Captured,
    /// Its standard error.
    pub stderr: Captured,
    /// How long it took.
    pub duration: Duration,
    /// The numeric user that it ran as.
    pub uid: u32,
}

/// What a check did.
#[derive(Clone, Debug)]
pub struct CheckReport {
    /// What came out of it.
    pub outcome: Outcome,
    /// A short stable word; see the list at the top of this module.
    pub reason: String,
    /// One line for people.
    pub message: String,
    /// How deep the deepest step looked that came to PASS or FAIL.
    pub depth: Option<Depth>,
    /// Every step that ran, in order; several times where several candidates were tried.
    pub steps: Vec<StepReport>,
    /// Every patch that was made, in order.
    pub patches: Vec<AppliedPatch>,
    /// The target's own files that the check had.
    pub overlay_files: Vec<OverlayRecord>,
    /// How the workspace was made.
    pub workspace: WorkspaceKind,
    /// What the steps were kept from, for example `network-namespace`.
    pub isolation: Vec<String>,
    /// What they were not kept from, and why.
    pub not_isolated: Vec<String>,
}
