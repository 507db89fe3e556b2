//! The engine's own check, run on a workspace.
//!
//! [`run_check`] lays the operator's files, patches the configuration, runs the profile's steps and reads
//! what they say. A check that cannot do its work is a successful call with the outcome
//! [`Outcome::Inconclusive`] and a reason: nothing here returns an error, and nothing that is not understood
//! is ever PASS.
//!
//! # Reasons
//!
//! | reason | what happened |
//! | --- | --- |
//! | `check-passed` | every step passed |
//! | `damage-found`, or the profile's word | a step named damage |
//! | `check-timeout`, `check-cancelled`, `check-killed` | a step was ended from outside |
//! | `memory-limit`, `process-limit`, `disk-limit`, `disk-full`, `output-limit` | a step reached a limit |
//! | `network-refused`, `access-refused`, `checker-error` | FAIL by the exit code alone, and words of something that was in the way |
//! | `program-missing` | the program is not there or cannot be executed |
//! | `check-not-started` | the step could not be started for another reason |
//! | `unexpected-exit`, `unexpected-output` | the profile does not know what the step said |
//! | `output-too-long` | a line of more than 1 MiB could not be searched whole |
//! | `output-incomplete` | some process kept the output open after the check's end |
//! | `host-name-error` | no candidate for a patched value was accepted |
//! | `carriage-return` | the same, and the patched line ends with a carriage return: it may count as part of the value |
//! | `key-missing`, `key-twice`, `configuration-missing`, `patch-failed` | a patch could not be made |
//! | `no-candidate` | the target has none of the names that a patch needs |
//! | `overlay-missing`, or the profile's word | a file of the target's own is not there |
//! | `overlay-failed` | such a file could not be laid |
//! | `isolation-unavailable` | isolation is required and this host cannot give it |
//! | `isolation-failed` | the sandbox or the change of user failed; the step never ran |
//! | `live-path-unusable` | a root cannot appear at its live path in the sandbox |
//! | `nothing-to-check` | no file of the copy matches what the profile calls a part |
//! | `workspace-failed` | something in the workspace could not be read or made |
//! | `configuration` | the profile and the repository's configuration do not fit |
//!
//! # What stays on disk and in memory
//!
//! Nothing on disk but in the workspace. Of each output stream the profile's `output_limit` is kept; all of
//! it is searched and digested, so much output is no fault.

pub(crate) mod beforehand;
mod cgroup;
mod coverage;
mod etc;
mod judge;
pub(crate) mod known;
mod launch;
mod limits;
pub(crate) mod obstacles;
mod output;
mod parts;
mod passage;
mod priority;
mod process;
mod report;
pub(crate) mod sandbox;
mod seccomp;

pub(crate) use cgroup::sweep as sweep_groups;
pub(crate) use process::find_program;
pub(crate) use sandbox::is_shown;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    os::unix::fs::{DirBuilderExt as _, chown},
    path::{Path, PathBuf},
    sync::Arc,
};

use assay_common::{
    path::TreePath,
    profile::{Check, Patch, Profile, RunAs, Scope, TemplateError, Value},
};

pub use output::{Captured, MAX_LINE_BYTES};
pub use parts::PartArgument;
pub use priority::{IoClass, Priority};
pub use report::{
    AppliedPatch, CheckContext, CheckReport, Isolation, NotCovered, Outcome, OverlayRecord, PartsChecked,
    Progress, StepEnd, StepReport,
};

use crate::{
    patch,
    userns::{Account, IdMap},
    workspace::Workspace,
};
use judge::{Judgement, judge};
use launch::Launcher;
use limits::Watch;
pub use limits::disk_reserve;
use output::Patterns;
use passage::Passage;
use process::End;

/// Where a step's programs are looked for.
pub(crate) const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const HOST_NAME_ERROR: &str = "host-name-error";
/// The reason for what is not covered because no workspace has it.
pub(crate) const SPECIAL_FILE: &str = "special-file";

/// Runs the check of `profile` in `workspace`.
///
/// It blocks for as long as the check takes, and must stay on one thread: the sandbox dies with it.
pub fn run_check(
    profile: &Profile,
    workspace: &mut Workspace,
    context: &CheckContext,
    progress: &mut dyn FnMut(Progress),
) -> CheckReport {
    let mut report = CheckReport {
        outcome: Outcome::Inconclusive,
        reason: String::new(),
        message: String::new(),
        depth: None,
        steps: Vec::new(),
        patches: Vec::new(),
        overlay_files: Vec::new(),
        workspace: workspace.kind(),
        isolation: Vec::new(),
        not_isolated: Vec::new(),
    };
    let left_out = workspace.left_out();
    let special_files = not_in_the_workspace(workspace);
    let judgement = Session { profile, workspace, context, progress, used_before: 0 }
        .run(&mut report)
        .unwrap_or_else(|it| it);
    report.depth =
        report.steps.iter().filter(|it| it.outcome != Outcome::Inconclusive).map(|it| it.depth).max();
    report.outcome = judgement.outcome;
    report.reason = judgement.reason;
    report.message = judgement.message;
    if let Some(step) = report.steps.last_mut().filter(|_| judgement.outcome == Outcome::Pass) {
        step.not_covered.extend(special_files);
    }
    if report.outcome != Outcome::Pass
        && let Some(left_out) = left_out
    {
        report.message.push_str("; ");
        report.message.push_str(&left_out);
    }
    report
}

/// Special files of the tree that no step can see.
fn not_in_the_workspace(workspace: &Workspace) -> Vec<NotCovered> {
    let (count, named) = workspace.special_files_left_out();
    let entry = |part: String| NotCovered {
        part,
        reason: SPECIAL_FILE.to_owned(),
        message: "a device, a FIFO or a socket, which is not in the workspace of a check".to_owned(),
    };
    let further = count.saturating_sub(named.len() as u64);
    let names = named.iter().map(|name| output::quote(name.as_bytes()));
    names.chain((further > 0).then(|| format!("{further} further special files"))).map(entry).collect()
}

/// Makes the smallest sandbox that a check would run in on this host, and says why it cannot be made.
///
/// # Errors
/// The reason.
pub(crate) fn probe_host(account: Option<Account>) -> Result<(), String> {
    let is_root = rustix::process::geteuid().is_root();
    let account = account.unwrap_or(Account::DEFAULT);
    let map =
        is_root.then(|| IdMap::create(account, account)).transpose().map_err(|error| error.to_string())?;
    let setpriv = process::find_program(std::ffi::OsStr::new("setpriv"));
    launch::probe(Path::new("bwrap"), setpriv.as_deref(), is_root, map.as_ref())
}

struct Session<'a> {
    profile: &'a Profile,
    workspace: &'a mut Workspace,
    context: &'a CheckContext,
    progress: &'a mut dyn FnMut(Progress),
    /// Bytes in the workspace before the first step.
    used_before: u64,
}

/// One run of a step.
struct StepRun<'a> {
    check: &'a Check,
    name: String,
    vars: BTreeMap<String, Value>,
    /// What the parts are that it checks; `None` for a step that has none.
    parts: Option<Vec<PartArgument>>,
}

/// Who a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    /// As it sees itself.
    inside: Account,
    /// On this host.
    outside: Account,
}

impl Session<'_> {
    /// The way of a check. An `Err` is an end before its time.
    fn run(&mut self, report: &mut CheckReport) -> Result<Judgement, Judgement> {
        if self.workspace.roots().is_empty() {
            return Err(Judgement::inconclusive("configuration", "the repository has no root"));
        }
        self.lay_overlays(report)?;
        let candidates = self.candidates()?;
        let launcher = Launcher::find(self, report)?;
        if !launcher.is_sandbox() && rustix::process::geteuid().is_root() {
            self.workspace.expose(self.context.account).map_err(Judgement::workspace)?;
        }
        self.used_before = limits::measure(&self.workspace.writable());
        let attempts = candidates.iter().map(Vec::len).max().unwrap_or(1);
        let mut tried = Vec::new();
        for attempt in 0..attempts {
            tried.extend(self.patch(&candidates, attempt, report)?);
            let judgement = self.steps(&launcher, attempt, report);
            if judgement.reason != HOST_NAME_ERROR {
                return Ok(judgement);
            }
            if attempt + 1 == attempts {
                let message = format!("{}; tried: {}", judgement.message, tried.join(", "));
                let with_returns = report.patches.iter().find(|patch| patch.record.ends_with_return);
                return Ok(match with_returns {
                    Some(patch) => {
                        let file = &patch.record.file;
                        let message =
                            format!("{message}; the lines of {file} end with a carriage return (CRLF)");
                        Judgement::inconclusive("carriage-return", message)
                    }
                    None => Judgement { message, ..judgement },
                });
            }
        }
        Err(Judgement::inconclusive("configuration", "there is nothing to try"))
    }

    fn first_root(&self) -> String {
        self.workspace.roots()[0].name.clone()
    }

    fn lay_overlays(&mut self, report: &mut CheckReport) -> Result<(), Judgement> {
        let known = |path: &String| self.profile.overlays.iter().any(|overlay| overlay.path == *path);
        if let Some(path) = self.context.overlay_files.keys().find(|path| !known(path)) {
            let message = format!("the profile '{}' has no overlay '{path}'", self.profile.name);
            return Err(Judgement::inconclusive("configuration", message));
        }
        for overlay in &self.profile.overlays {
            let root = overlay.root.clone().unwrap_or_else(|| self.first_root());
            let path = TreePath::parse(overlay.path.as_bytes()).map_err(Judgement::workspace)?;
            if let Some(source) = self.context.overlay_files.get(&overlay.path) {
                let file = self.workspace.lay_file(&root, &path, source);
                let file =
                    file.map_err(|error| Judgement::inconclusive("overlay-failed", error.to_string()))?;
                report.overlay_files.push(OverlayRecord { file, from_operator: true });
                continue;
            }
            let copied = self.workspace.digest_of(&root, &path).map_err(Judgement::workspace)?;
            match copied {
                Some(file) if overlay.copied_allowed => {
                    report.overlay_files.push(OverlayRecord { file, from_operator: false });
                }
                _ if overlay.required => {
                    let message = format!("{path} is missing: {}", overlay.meaning);
                    return Err(Judgement::inconclusive(&overlay.missing_reason, message));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The values of each patch that this target can fill, in order and each once.
    fn candidates(&self) -> Result<Vec<Vec<String>>, Judgement> {
        let scope = Scope {
            vars: self.context.vars.clone(),
            target: self.context.target.clone(),
            ..Default::default()
        };
        let mut all = Vec::new();
        for patch in &self.profile.patches {
            let templates = self.context.patch_values.get(&patch.key).unwrap_or(&patch.values);
            let mut values: Vec<String> = Vec::new();
            for template in templates {
                let expanded = match scope.expand_list(std::slice::from_ref(template)) {
                    Ok(expanded) => expanded,
                    Err(TemplateError::Unavailable(_)) => continue,
                    Err(error) => return Err(Judgement::configuration(&error)),
                };
                for value in expanded.into_iter().filter_map(|value| value.into_string().ok()) {
                    if !values.contains(&value) {
                        values.push(value);
                    }
                }
            }
            if values.is_empty() {
                let message = format!("this target has no value for the key '{}'", patch.key);
                return Err(Judgement::inconclusive("no-candidate", message));
            }
            all.push(values);
        }
        Ok(all)
    }

    fn patch(
        &mut self,
        candidates: &[Vec<String>],
        attempt: usize,
        report: &mut CheckReport,
    ) -> Result<Vec<String>, Judgement> {
        let mut tried = Vec::new();
        for (patch, values) in self.profile.patches.iter().zip(candidates) {
            let Patch { root, file, key, .. } = patch;
            // A patch with fewer candidates keeps its last.
            let value = &values[attempt.min(values.len() - 1)];
            let root = root.clone().unwrap_or_else(|| self.first_root());
            let file = TreePath::parse(file.as_bytes()).map_err(Judgement::workspace)?;
            let folder = self.workspace.root_folder(&root).map_err(Judgement::workspace)?;
            let record = patch::apply(&folder, &file, key, value)
                .map_err(|error| Judgement::inconclusive(error.reason(), error.to_string()))?;
            (self.progress)(Progress::Patched { attempt, key: key.clone(), value: value.clone() });
            tried.push(format!("{key} = {value}"));
            report.patches.push(AppliedPatch { root, attempt, record });
        }
        Ok(tried)
    }

    fn steps(&mut self, launcher: &Launcher, attempt: usize, report: &mut CheckReport) -> Judgement {
        let runs = match step_runs(self.profile, self.context) {
            Ok(runs) => runs,
            Err(judgement) => return judgement,
        };
        let count = runs.len();
        for (index, run) in runs.into_iter().enumerate() {
            let name = run.name.clone();
            (self.progress)(Progress::StepStarted { attempt, name, index, count });
            let mut step = match self.step(launcher, run, report.steps.len()) {
                Ok(step) => step,
                Err(judgement) => return judgement,
            };
            step.attempt = attempt;
            let judgement = Judgement {
                outcome: step.outcome,
                reason: step.reason.clone(),
                message: step.message.clone(),
            };
            (self.progress)(Progress::StepEnded {
                name: step.name.clone(),
                outcome: step.outcome,
                reason: step.reason.clone(),
            });
            report.steps.push(step);
            if judgement.outcome != Outcome::Pass {
                return judgement;
            }
        }
        if count == 0 {
            return Judgement::inconclusive("configuration", "the check has no step");
        }
        let message = format!("{count} {} passed", if count == 1 { "step" } else { "steps" });
        Judgement { outcome: Outcome::Pass, reason: "check-passed".into(), message }
    }

    fn step(
        &self,
        launcher: &Launcher,
        StepRun { check, name, vars, parts }: StepRun<'_>,
        number: usize,
    ) -> Result<StepReport, Judgement> {
        let identity = self.identity(check, launcher.is_sandbox())?;
        let scratch = self.workspace.scratch().join(format!("step-{number}"));
        make_scratch(&scratch, identity.outside)
            .map_err(|error| Judgement::workspace(format!("{}: {error}", scratch.display())))?;
        let mut scope = launcher.scope(self, vars, &scratch)?;
        // The verdict counts the parts, and does not list them.
        scope.parts = parts.is_some().then(|| vec!["{parts}".into()]);
        let shown = scope.expand_list(&check.argv).map_err(|error| Judgement::configuration(&error))?;
        scope.parts = parts.map(|parts| parts.iter().map(|part| part.expand(&scope)).collect());
        let expand = |text: &str| scope.expand(text).map_err(|error| Judgement::configuration(&error));
        let argv = scope.expand_list(&check.argv).map_err(|error| Judgement::configuration(&error))?;
        let folder = check.working_directory.as_deref().unwrap_or("{root}");
        let folder = PathBuf::from(expand(folder)?);
        let inner_scratch = scope.scratch.clone().unwrap_or_default();
        let mut env: Vec<(OsString, OsString)> = vec![
            ("PATH".into(), SEARCH_PATH.into()),
            ("HOME".into(), inner_scratch.clone().into()),
            ("TMPDIR".into(), inner_scratch.into()),
            ("LC_ALL".into(), "C.UTF-8".into()),
        ];
        for (name, value) in &check.env {
            env.push((name.into(), expand(value)?));
        }
        let patterns = Arc::new(
            Patterns::new(check).map_err(|it| Judgement::inconclusive("configuration", it.to_string()))?,
        );
        let mut launch = launcher.launch(self, identity, &argv, env, folder, &scratch, check.timeout.0)?;
        let known = self.context.known.get(&check.name);
        let known = known.map(|known| serde_json::to_vec(known).expect("these types are always JSON"));
        let text = check.stdin.as_ref().map(|text| expand(text)).transpose()?;
        if let Some(text) = known.or(text.map(OsString::into_encoded_bytes)) {
            let file = scratch.with_extension("stdin");
            fs::write(&file, text)
                .map_err(|error| Judgement::workspace(format!("{}: {error}", file.display())))?;
            launch.stdin = Some(file);
        }
        let group = launcher.group(self.context)?;
        let mut watch = Watch::new(launcher.bounds, group, self.workspace.writable(), self.used_before);
        let limit = usize::try_from(check.output_limit).unwrap_or(usize::MAX);
        // Closed folders stop whoever runs outside of a sandbox as another user.
        let needs_way = launch.sandbox_status.is_none() && !self.workspace.is_exposed();
        let way_in = needs_way.then(|| self.workspace.scratch());
        let _passage = way_in.map(|folder| Passage::open(&folder, identity.outside.uid)).transpose().map_err(|error| {
            let text = "without a sandbox, the step's user cannot be let into the workspace (the store's file system needs ACLs)";
            Judgement::workspace(format!("{text}: {error}"))
        })?;
        let ran = process::run(&launch, &mut watch, &patterns, limit, &self.context.cancel);
        let judgement = judge(check, &patterns, &ran, &launcher.bounds, launcher.setpriv.is_some());
        let is_of_copy = check.argv.first().is_some_and(|program| program.contains("{root"));
        let judgement = match argv.first() {
            Some(program) if launcher.is_sandbox() && !is_of_copy => {
                judge::name_hidden_program(judgement, Path::new(program))
            }
            _ => judgement,
        };
        let end = match ran.end {
            End::Exited(code) => StepEnd::Exited(code),
            End::Signalled(signal) => StepEnd::Signalled(signal),
            End::TimedOut => StepEnd::TimedOut,
            End::Cancelled => StepEnd::Cancelled,
            End::Limited => StepEnd::Limited,
            End::NotStarted(_) | End::SandboxFailed => StepEnd::NotStarted,
        };
        let coverage = ran.found.coverage(check);
        let is_told = self.context.known.contains_key(&check.name) && judgement.outcome == Outcome::Pass;
        let found = is_told.then(|| known::read(&scratch)).flatten();
        Ok(StepReport {
            name,
            check: check.name.clone(),
            attempt: 0,
            argv: process::shown(&shown),
            outcome: judgement.outcome,
            reason: judgement.reason,
            message: judgement.message,
            end,
            depth: if check.repair {
                assay_common::profile::Depth::L0
            } else {
                check.depth.unwrap_or(self.profile.depth)
            },
            findings: ran.found.findings,
            findings_dropped: ran.found.findings_dropped,
            engine: coverage.engine,
            checked: coverage.checked,
            not_covered: coverage.not_covered,
            found,
            stdout: ran.stdout,
            stderr: ran.stderr,
            duration: ran.duration,
            uid: identity.outside.uid,
        })
    }

    /// Where each root is in the workspace, and where a step in a sandbox sees it.
    fn live_roots(&self) -> Result<Vec<sandbox::LiveRoot>, Judgement> {
        let mut roots = Vec::new();
        for root in self.workspace.roots() {
            let workspace = self.workspace.root_path(&root.name).map_err(Judgement::workspace)?;
            let (live, is_pinned) = match &self.context.live_paths {
                None => (root.live_path.clone(), false),
                Some(pinned) => match pinned.get(&root.name) {
                    Some(live) => (live.clone(), true),
                    None => {
                        let message = format!(
                            "live_paths in the target's configuration names no root '{}', which the source has at {}",
                            root.name,
                            root.live_path.display()
                        );
                        return Err(Judgement::inconclusive("live-path-unusable", message));
                    }
                },
            };
            roots.push(sandbox::LiveRoot { workspace, live, is_pinned });
        }
        Ok(roots)
    }

    /// Who a step is. No number of the tree and none of the profile says who it is on this host: an agent that is root has
    /// steps run as the configured user, and any other agent as itself. What a step sees itself as is decided in its user
    /// namespace alone.
    fn identity(&self, check: &Check, is_sandboxed: bool) -> Result<Identity, Judgement> {
        let own =
            Account { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
        if own.uid != 0 {
            return Ok(Identity { inside: own, outside: own });
        }
        let (true, Some(map)) = (is_sandboxed, self.workspace.id_map()) else {
            return Ok(Identity { inside: self.context.account, outside: self.context.account });
        };
        let inside = match self.context.run_as.unwrap_or(check.run_as) {
            RunAs::Root => Account { uid: 0, gid: 0 },
            RunAs::Uid(number) => Account { uid: number, gid: number },
            RunAs::Owner => map.inside(),
        };
        let outside = map.uid_outside(inside.uid).zip(map.gid_outside(inside.gid));
        let (uid, gid) = outside.ok_or_else(|| {
            let message = format!(
                "the step '{}' cannot be shown the user {}: it is 2^31 or more",
                check.name, inside.uid
            );
            Judgement::inconclusive("configuration", message)
        })?;
        Ok(Identity { inside, outside: Account { uid, gid } })
    }
}

/// The runs of all steps, in their order: one of each step, or one for each member of its list, or as many as its parts take.
fn step_runs<'a>(profile: &'a Profile, context: &CheckContext) -> Result<Vec<StepRun<'a>>, Judgement> {
    let mut runs = Vec::new();
    for check in &profile.checks {
        let run = |name: String| StepRun {
            check,
            name,
            vars: context.vars.clone(),
            parts: check.parts.as_ref().map(|_| Vec::new()),
        };
        if let Some(name) = &check.for_each {
            for member in context.vars.get(name).map(Value::texts).unwrap_or_default() {
                let mut run = run(format!("{} {member}", check.name));
                run.vars.insert(name.clone(), Value::Text(member.clone()));
                runs.push(run);
            }
            continue;
        }
        let of_whole = check.parts.as_ref().is_some_and(|parts| parts.kind.is_some());
        let batches = match context.parts.get(&check.name) {
            None if of_whole || check.parts.is_none() => {
                runs.push(run(check.name.clone()));
                continue;
            }
            parts => parts::batches(parts.map(Vec::as_slice).unwrap_or_default()),
        };
        let count = batches.len();
        for (at, parts) in batches.into_iter().enumerate() {
            let name = match count {
                1 => check.name.clone(),
                _ => format!("{} {} of {count}", check.name, at + 1),
            };
            runs.push(StepRun { parts: Some(parts), ..run(name) });
        }
        if count == 0 {
            let text = format!(
                "no file of the copy matches for_each_changed of the step '{}', so that it would look at nothing",
                check.name
            );
            return Err(Judgement::inconclusive("nothing-to-check", text));
        }
    }
    Ok(runs)
}

fn make_scratch(path: &Path, owner: Account) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(path)?;
    if rustix::process::geteuid().is_root() { chown(path, Some(owner.uid), Some(owner.gid)) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
