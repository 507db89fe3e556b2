//! How steps are started on this host: in a sandbox, as another user, within limits, as far as there is any of it. What there is
//! not is said in the report.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use assay_common::{
    confined::open_beneath,
    path::TreePath,
    profile::{Scope, Value},
};
use rustix::fs::{Mode, OFlags};

use super::{
    CheckContext, CheckReport, Identity, Isolation, SEARCH_PATH, Session,
    cgroup::Group,
    etc,
    judge::Judgement,
    limits::Bounds,
    output,
    process::{self, Launch},
    sandbox, seccomp,
};
use crate::userns::IdMap;

/// How steps are started on this host.
pub(super) struct Launcher {
    /// Bubblewrap, when steps run in a sandbox.
    sandbox: Option<PathBuf>,
    /// setpriv(1), which changes the user and forbids new privileges.
    pub(super) setpriv: Option<PathBuf>,
    /// prlimit(1), which forbids core dumps.
    prlimit: Option<PathBuf>,
    privileged: bool,
    pub(super) bounds: Bounds,
    /// The kernel's limits, or no check.
    must_limit: bool,
    /// The filter of system calls, in a sandbox.
    filter: Option<Vec<u8>>,
}

impl Launcher {
    /// Finds out what this host can do, and says in the report what it does and does not.
    pub(super) fn find(session: &Session<'_>, report: &mut CheckReport) -> Result<Self, Judgement> {
        let context = session.context;
        let privileged = rustix::process::geteuid().is_root();
        let setpriv = process::find_program(OsStr::new("setpriv"));
        let refusal = match context.isolation {
            Isolation::None => Some("switched off in the configuration".to_owned()),
            Isolation::Auto | Isolation::Require => {
                let map = session.workspace.id_map();
                match probe(&context.sandbox_program, setpriv.as_deref(), privileged, map) {
                    Ok(()) if privileged && map.is_none() => {
                        Some("no user namespace with numbers of its own can be made".to_owned())
                    }
                    probed => probed.err(),
                }
            }
        };
        if let (Isolation::Require, Some(why)) = (context.isolation, &refusal) {
            return Err(Judgement::inconclusive("isolation-unavailable", why.clone()));
        }
        let limits = context.limits.or(session.profile.limits);
        let mut launcher = Self {
            sandbox: process::find_program(context.sandbox_program.as_os_str()).filter(|_| refusal.is_none()),
            setpriv,
            prlimit: process::find_program(OsStr::new("prlimit")),
            privileged,
            bounds: Bounds::of(&limits),
            must_limit: limits.require == Some(true),
            filter: None,
        };
        let namespaces =
            ["mount", "pid", "network", "uts", "ipc", "user"].map(|name| format!("{name}-namespace"));
        let whole = namespaces.into_iter().chain(["live-paths".to_owned()]);
        match &refusal {
            None => report.isolation.extend(whole),
            Some(why) => report.not_isolated.extend(whole.map(|name| format!("{name}: {why}"))),
        }
        if launcher.sandbox.is_some() {
            report.isolation.push("capabilities-dropped".into());
        }
        if launcher.setpriv.is_some() {
            report.isolation.push("no-new-privileges".into());
        } else {
            report.not_isolated.push("no-new-privileges: setpriv is not installed".into());
        }
        launcher.confine(session.context, report)?;
        for check in &session.profile.checks {
            let isolated = format!("user:{}", session.identity(check, launcher.is_sandbox())?.outside.uid);
            if !report.isolation.contains(&isolated) {
                report.isolation.push(isolated);
            }
        }
        Ok(launcher)
    }

    /// The filter of system calls and the limits: what there is of them, and what not.
    fn confine(&mut self, context: &CheckContext, report: &mut CheckReport) -> Result<(), Judgement> {
        let filter = match &self.sandbox {
            Some(_) => seccomp::filter().map_err(str::to_owned),
            None => Err("there is no sandbox".to_owned()),
        };
        match filter {
            Ok(filter) => {
                self.filter = Some(filter);
                report.isolation.push("system-call-filter".into());
            }
            Err(why) if context.isolation == Isolation::Require => {
                let message = format!("no filter of system calls: {why}");
                return Err(Judgement::inconclusive("isolation-unavailable", message));
            }
            Err(why) => report.not_isolated.push(format!("system-call-filter: {why}")),
        }
        report.isolation.push("disk-limit".into());
        // Made and thrown away: every step gets one of its own.
        let group = if context.control_groups {
            Group::create(&self.bounds)
        } else {
            Err("control groups are switched off".to_owned())
        };
        let limits = ["memory-limit", "process-limit"];
        match group {
            Ok(_) => report.isolation.extend(limits.map(str::to_owned)),
            Err(why) if self.must_limit => {
                let message =
                    format!("limits.require is set, and memory and processes cannot be limited: {why}");
                return Err(Judgement::inconclusive("isolation-unavailable", message));
            }
            Err(why) => {
                let instead = if self.sandbox.is_some() { "only watched" } else { "not limited" };
                report.not_isolated.extend(limits.map(|limit| format!("{limit}: {instead}: {why}")));
            }
        }
        Ok(())
    }

    /// Whether steps run in a sandbox.
    pub(super) fn is_sandbox(&self) -> bool {
        self.sandbox.is_some()
    }

    /// A control group for a step, where this host lets us have one.
    pub(super) fn group(&self, context: &CheckContext) -> Result<Option<Group>, Judgement> {
        if !context.control_groups {
            return Ok(None);
        }
        match Group::create(&self.bounds) {
            Err(why) if self.must_limit => Err(Judgement::inconclusive("isolation-unavailable", why)),
            made => Ok(made.ok()),
        }
    }

    /// What the placeholders stand for in a step.
    pub(super) fn scope(
        &self,
        session: &Session<'_>,
        vars: BTreeMap<String, Value>,
        scratch: &Path,
    ) -> Result<Scope, Judgement> {
        let mut roots = Vec::new();
        if self.is_sandbox() {
            let names = session.workspace.roots().iter().map(|root| root.name.clone());
            roots.extend(names.zip(session.live_roots()?.into_iter().map(|root| root.live)));
        } else {
            for root in session.workspace.roots() {
                let path = session.workspace.shown_root(&root.name).map_err(Judgement::workspace)?;
                roots.push((root.name.clone(), path));
            }
        }
        let scratch = match self.sandbox {
            Some(_) => PathBuf::from(sandbox::SCRATCH),
            None => session.workspace.shown_scratch().join(scratch.file_name().unwrap_or_default()),
        };
        let target = session.context.target.clone();
        let helper = match self.sandbox {
            Some(_) => own_program().map(|_| PathBuf::from(sandbox::HELPER)),
            None => own_program(),
        };
        let mark_id = Some(session.context.mark_id.clone());
        Ok(Scope { roots, vars, target, scratch: Some(scratch), helper, mark_id, ..Default::default() })
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn launch(
        &self,
        session: &Session<'_>,
        identity: Identity,
        argv: &[OsString],
        env: Vec<(OsString, OsString)>,
        folder: PathBuf,
        scratch: &Path,
        timeout: Duration,
    ) -> Result<Launch, Judgement> {
        let mut command = Vec::new();
        if let Some(prlimit) = &self.prlimit {
            // One byte and not none: a dump that goes to a program of the host is only held back by one.
            command.extend([prlimit.clone().into_os_string(), "--core=1:1".into(), "--".into()]);
        }
        command.extend(self.change_user(identity));
        command.extend_from_slice(argv);
        // Without setpriv the change of user is left to the start of the process.
        let change = self.privileged && self.setpriv.is_none();
        let user = change.then_some((identity.outside.uid, identity.outside.gid));
        let mut launch = Launch {
            argv: command,
            env,
            marker: scratch.to_owned(),
            working_directory: None,
            sandbox_status: None,
            filter: None,
            namespace: None,
            stdin: None,
            user,
            timeout,
        };
        let priority = session.context.priority.command();
        let Some(program) = &self.sandbox else {
            launch.working_directory = Some(folder);
            launch.argv = [priority, launch.argv].concat();
            return Ok(launch);
        };
        let host_name = rustix::system::uname().nodename().to_str().unwrap_or("localhost").to_owned();
        let mut etc = Vec::new();
        for (name, text) in [
            ("hosts", etc::hosts(&host_name, &session.context.target)),
            ("passwd", etc::passwd(identity.inside)),
            ("group", etc::group(identity.inside)),
        ] {
            let file = scratch.with_extension(name);
            etc::write(&file, &text)
                .map_err(|error| Judgement::workspace(format!("{}: {error}", file.display())))?;
            etc.push((file, PathBuf::from("/etc").join(name)));
        }
        let unusable =
            |error: sandbox::PlanError| Judgement::inconclusive("live-path-unusable", error.to_string());
        let roots = session.live_roots()?;
        let visible: Vec<_> =
            session.profile.sandbox.visible.iter().chain(&session.context.visible).cloned().collect();
        for path in &visible {
            if let Some(why) = sandbox::reaches(path, &session.context.hidden) {
                return Err(Judgement::inconclusive("configuration", format!("[sandbox] visible: {why}")));
            }
        }
        let plan = sandbox::Plan {
            roots,
            visible,
            etc,
            scratch: scratch.to_owned(),
            helper: own_program(),
            host_name: Some(host_name),
            working_directory: folder,
            privileged: self.privileged,
            memory: self.bounds.memory,
        };
        let arguments = plan.arguments().map_err(unusable)?;
        for (outer, way) in plan.nested() {
            make_nested(outer, way).map_err(|error| {
                let message = format!("the folder {} for a root within a root: {error}", way.display());
                Judgement::inconclusive("live-path-unusable", message)
            })?;
        }
        let mut whole = priority;
        whole.extend([program.clone().into_os_string(), "--json-status-fd".into(), "3".into()]);
        if let Some(filter) = &self.filter {
            let file = scratch.with_extension("filter");
            fs::write(&file, filter)
                .map_err(|error| Judgement::workspace(format!("{}: {error}", file.display())))?;
            launch.filter = Some(file);
            whole.extend(["--seccomp".into(), "4".into()]);
        }
        whole.extend(arguments);
        whole.push("--".into());
        if let Some(map) = session.workspace.id_map() {
            whole.extend(ENTER.map(OsString::from));
            launch.namespace = Some(map.processes_path().into());
        }
        whole.append(&mut launch.argv);
        Ok(Launch {
            argv: whole,
            sandbox_status: Some(scratch.with_extension("status")),
            user: None,
            ..launch
        })
    }

    /// The beginning of a command that runs as `identity`.
    fn change_user(&self, identity: Identity) -> Vec<OsString> {
        let Some(setpriv) = &self.setpriv else {
            return Vec::new();
        };
        let mut command = vec![setpriv.clone().into_os_string(), "--no-new-privs".into()];
        if self.privileged {
            command.push(format!("--reuid={}", identity.inside.uid).into());
            command.push(format!("--regid={}", identity.inside.gid).into());
            // In a sandbox, user 0 is that of the user namespace: it may read and change what the workspace shows, whoever owns
            // it there, and nothing else.
            let kept = if self.is_sandbox() && identity.inside.uid == 0 {
                ",+chown,+dac_override,+fowner,+fsetid"
            } else {
                ""
            };
            command.extend(["--clear-groups", "--inh-caps=-all"].map(OsString::from));
            command.push(format!("--bounding-set=-all{kept}").into());
        }
        command.push("--".into());
        command
    }
}

/// Enters the user namespace that is descriptor 5, as its user 0, and closes the descriptor.
const ENTER: [&str; 7] =
    ["nsenter", "--user=/proc/self/fd/5", "--", "/bin/sh", "-c", r#"exec "$@" 5<&-"#, "sh"];

/// This program, which brings checks of its own; nothing when it was replaced while it runs.
pub(super) fn own_program() -> Option<PathBuf> {
    std::env::current_exe().ok().filter(|path| path.is_file())
}

/// How often a sandbox is tried before it is said that none can be made. The root is bound with all that is mounted below it,
/// and fails when a workspace of another check is unmounted at that moment: this check is not to run without a
/// sandbox for that.
const PROBES: usize = 5;

/// Sandboxes that this process has made: by what program, as root or not, with a user namespace of numbers of its own or not.
static MADE: Mutex<BTreeSet<(PathBuf, bool, bool)>> = Mutex::new(BTreeSet::new());

/// Makes the smallest sandbox that has all that the steps will need, and says why it cannot be made.
pub(super) fn probe(
    program: &Path,
    setpriv: Option<&Path>,
    privileged: bool,
    map: Option<&IdMap>,
) -> Result<(), String> {
    // What could be made once can be made again: a step whose sandbox is not built says so itself.
    let found = process::find_program(program.as_os_str()).filter(|_| setpriv.is_some());
    let way = (found.unwrap_or_default(), privileged, map.is_some());
    if MADE.lock().unwrap_or_else(PoisonError::into_inner).contains(&way) {
        return Ok(());
    }
    let mut probed = probe_once(program, setpriv, privileged, map);
    for _ in 1..PROBES {
        if probed.is_ok() {
            break;
        }
        probed = probe_once(program, setpriv, privileged, map);
    }
    if probed.is_ok() {
        MADE.lock().unwrap_or_else(PoisonError::into_inner).insert(way);
    }
    probed
}

fn probe_once(
    program: &Path,
    setpriv: Option<&Path>,
    privileged: bool,
    map: Option<&IdMap>,
) -> Result<(), String> {
    let bwrap = process::find_program(program.as_os_str()).ok_or("bubblewrap (bwrap) is not installed")?;
    let setpriv = setpriv.ok_or("setpriv is not installed")?;
    let mut command = Command::new("/bin/sh");
    let namespace = map.map_or_else(|| "/dev/null".to_owned(), IdMap::processes_path);
    command.args(["-c", r#"namespace=$1; shift; exec "$@" 5<"$namespace""#, "sh", &namespace]).arg(bwrap);
    command.args(["--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-ipc", "--die-with-parent"]);
    if privileged {
        command.args(["--cap-drop", "ALL"]);
    } else {
        command.arg("--unshare-user");
    }
    command.args(["--ro-bind", "/", "/", "--proc", "/proc", "--remount-ro", "/proc", "--dev", "/dev"]);
    command.args(["--perms", "1777", "--tmpfs", "/tmp", "--"]);
    if map.is_some() {
        command.args(ENTER);
    }
    command.arg(setpriv).arg("--no-new-privs");
    if map.is_some() {
        command.args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--inh-caps=-all",
            "--bounding-set=-all",
        ]);
    }
    let output = command
        .args(["--", "/bin/sh", "-c", "exit 0"])
        .env_clear()
        .env("PATH", SEARCH_PATH)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("bubblewrap cannot be started: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = output.stderr.split(|byte| *byte == b'\n').next().unwrap_or_default();
    Err(format!("bubblewrap cannot make a sandbox here: {}", output::quote(said)))
}

/// Makes the folder, inside a root's workspace, on which another root is mounted. A link on the way is an
/// error.
fn make_nested(outer: &Path, way: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut folder = rustix::fs::open(outer, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    for part in way.components() {
        let name = part.as_os_str();
        match rustix::fs::mkdirat(&folder, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let name = TreePath::parse(std::os::unix::ffi::OsStrExt::as_bytes(name))
            .map_err(|fault| io::Error::new(io::ErrorKind::InvalidInput, fault))?;
        folder = open_beneath(std::os::fd::AsFd::as_fd(&folder), &name, flags)?;
    }
    Ok(())
}
