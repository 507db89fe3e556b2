//! How steps are started on this host: in a sandbox, as another user, within limits, as far as there is any of it. What there is
//! not is said in the report.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use assay_common::{
    confined::open_beneath,
    path::TreePath,
    profile::{Scope, TargetNames, Value},
};
use rustix::fs::{Mode, OFlags};

use super::{
    CheckContext, CheckReport, Identity, Isolation, SEARCH_PATH, Session,
    cgroup::Group,
    judge::Judgement,
    limits::Bounds,
    output,
    process::{self, Launch},
    sandbox, seccomp,
};

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
                probe(&context.sandbox_program, setpriv.as_deref(), privileged).err()
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
        let namespaces = ["mount", "pid", "network", "uts", "ipc"].map(|name| format!("{name}-namespace"));
        let whole = namespaces.into_iter().chain(["live-paths".to_owned()]);
        match &refusal {
            None => report.isolation.extend(whole),
            Some(why) => report.not_isolated.extend(whole.map(|name| format!("{name}: {why}"))),
        }
        if launcher.sandbox.is_some() {
            report.isolation.push(if privileged { "capabilities-dropped" } else { "user-namespace" }.into());
        }
        if launcher.setpriv.is_some() {
            report.isolation.push("no-new-privileges".into());
        } else {
            report.not_isolated.push("no-new-privileges: setpriv is not installed".into());
        }
        launcher.confine(session.context, report)?;
        for check in &session.profile.checks {
            let uid = session.identity(check)?.uid;
            let isolated = format!("user:{uid}");
            let open = format!("user: the step '{}' runs as root", check.name);
            if uid != 0 && !report.isolation.contains(&isolated) {
                report.isolation.push(isolated);
            } else if uid == 0 && !report.not_isolated.contains(&open) {
                report.not_isolated.push(open);
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
        for root in session.workspace.roots() {
            let path = match self.sandbox {
                Some(_) => root.live_path.clone(),
                None => session.workspace.root_path(&root.name).map_err(Judgement::workspace)?,
            };
            roots.push((root.name.clone(), path));
        }
        let scratch =
            if self.sandbox.is_some() { PathBuf::from(sandbox::SCRATCH) } else { scratch.to_owned() };
        let target = session.context.target.clone();
        let helper = match self.sandbox {
            Some(_) => own_program().map(|_| PathBuf::from(sandbox::HELPER)),
            None => own_program(),
        };
        Ok(Scope { roots, vars, target, scratch: Some(scratch), helper, ..Default::default() })
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
        let change = self.privileged && self.setpriv.is_none() && identity.uid != 0;
        let user = change.then_some((identity.uid, identity.gid));
        let mut launch = Launch {
            argv: command,
            env,
            marker: scratch.to_owned(),
            working_directory: None,
            sandbox_status: None,
            filter: None,
            stdin: None,
            user,
            timeout,
        };
        let Some(program) = &self.sandbox else {
            launch.working_directory = Some(folder);
            return Ok(launch);
        };
        let hosts = scratch.with_extension("hosts");
        let host_name = rustix::system::uname().nodename().to_str().unwrap_or("localhost").to_owned();
        write_hosts(&hosts, &host_name, &session.context.target)
            .map_err(|error| Judgement::workspace(format!("{}: {error}", hosts.display())))?;
        let mut roots = Vec::new();
        for root in session.workspace.roots() {
            let path = session.workspace.root_path(&root.name).map_err(Judgement::workspace)?;
            roots.push((path, root.live_path.clone()));
        }
        let plan = sandbox::Plan {
            roots,
            visible: session
                .profile
                .sandbox
                .visible
                .iter()
                .chain(&session.context.visible)
                .cloned()
                .collect(),
            hidden: session.context.hidden.clone(),
            scratch: scratch.to_owned(),
            helper: own_program(),
            hosts: Some(hosts),
            host_name: Some(host_name),
            working_directory: folder,
            privileged: self.privileged,
            memory: self.bounds.memory,
        };
        let arguments = plan
            .arguments()
            .map_err(|error| Judgement::inconclusive("live-path-unusable", error.to_string()))?;
        for (outer, way) in plan.nested() {
            make_nested(outer, way).map_err(|error| {
                let message = format!("the folder {} for a root within a root: {error}", way.display());
                Judgement::inconclusive("live-path-unusable", message)
            })?;
        }
        let mut whole = vec![program.clone().into_os_string(), "--json-status-fd".into(), "3".into()];
        if let Some(filter) = &self.filter {
            let file = scratch.with_extension("filter");
            fs::write(&file, filter)
                .map_err(|error| Judgement::workspace(format!("{}: {error}", file.display())))?;
            launch.filter = Some(file);
            whole.extend(["--seccomp".into(), "4".into()]);
        }
        whole.extend(arguments);
        whole.push("--".into());
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
        if self.privileged && identity.uid != 0 {
            command.push(format!("--reuid={}", identity.uid).into());
            command.push(format!("--regid={}", identity.gid).into());
            command.extend(["--clear-groups", "--inh-caps=-all", "--bounding-set=-all"].map(OsString::from));
        }
        command.push("--".into());
        command
    }
}

/// This program, which brings checks of its own; nothing when it was replaced while it runs.
pub(super) fn own_program() -> Option<PathBuf> {
    std::env::current_exe().ok().filter(|path| path.is_file())
}

/// How often a sandbox is tried before it is said that none can be made. The root is bound with all that is mounted below it,
/// and fails when a workspace of another check is unmounted at that moment: this check is not to run without a
/// sandbox for that.
const PROBES: usize = 5;

/// Makes the smallest sandbox that has all that the steps will need, and says why it cannot be made.
pub(super) fn probe(program: &Path, setpriv: Option<&Path>, privileged: bool) -> Result<(), String> {
    let mut probed = probe_once(program, setpriv, privileged);
    for _ in 1..PROBES {
        if probed.is_ok() {
            break;
        }
        probed = probe_once(program, setpriv, privileged);
    }
    probed
}

fn probe_once(program: &Path, setpriv: Option<&Path>, privileged: bool) -> Result<(), String> {
    let bwrap = process::find_program(program.as_os_str()).ok_or("bubblewrap (bwrap) is not installed")?;
    let setpriv = setpriv.ok_or("setpriv is not installed")?;
    let mut command = Command::new(bwrap);
    command.args(["--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-ipc", "--die-with-parent"]);
    if !privileged {
        command.arg("--unshare-user");
    }
    command.args([
        "--ro-bind",
        "/",
        "/",
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--perms",
        "1777",
        "--tmpfs",
        "/tmp",
        "--",
    ]);
    command.arg(setpriv).arg("--no-new-privs");
    if privileged {
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

/// The host's names lead to an address even without a network.
fn write_hosts(path: &Path, host_name: &str, target: &TargetNames) -> io::Result<()> {
    let mut names: Vec<&str> = Vec::new();
    for name in target.fqdn.iter().chain(&target.host).map(String::as_str).chain([host_name]) {
        let plain =
            !name.is_empty() && !name.contains(|it: char| it.is_whitespace() || it.is_control() || it == '#');
        if plain && !names.contains(&name) {
            names.push(name);
        }
    }
    let address =
        target.address.as_deref().filter(|it| it.parse::<std::net::IpAddr>().is_ok()).unwrap_or("127.0.1.1");
    let mut file = fs::File::create(path)?;
    write!(
        file,
        "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{address} {}\n",
        names.join(" ")
    )
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
