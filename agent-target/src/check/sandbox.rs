//! The world that a check step sees: built by bubblewrap out of namespaces of its own.
//!
//! The step sees `/usr`, `/bin`, `/sbin` and `/lib*` read-only, a list of `/etc` ([`super::etc`]), what the profile adds, a
//! fresh and read-only `/proc`, fresh `/dev`, `/tmp` and `/run`, and the roots of its workspace, writable, **at the absolute
//! paths that they have on the live server**. It sees no network but its own `lo`, no process but its own, no `/sys`, and
//! never the store.
//!
//! # Live paths
//!
//! A source says where its roots are live, and may have been taken over. Its word is taken for a path that nothing of the
//! check is at, above or below: not `/usr` (but for folders of `/usr/local` that this host does not have), not `/etc`, not
//! what the profile shows, not what the sandbox makes. A path that the target's configuration names (`live_paths`) may also be
//! below what is shown, where this host has nothing.
//!
//! The top of that world is an empty tmpfs, so every live path can be made. A live path below something that
//! is shown read-only (`/usr/local/svn`) is made by showing the folders above it entry by entry instead of
//! whole.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    path::{Component, Path, PathBuf},
};

use assay_common::pki::authority;

/// What is shown of the host without being asked for.
const BASES: [&str; 8] = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store"];
/// Where programs and what they load are looked for, there or not: no root of a source can be here.
const PROGRAMS: [&str; 22] = [
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/nix/store",
    "/usr/bin",
    "/usr/sbin",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/libx32",
    "/usr/libexec",
    "/usr/share",
    "/usr/games",
    "/usr/local/bin",
    "/usr/local/sbin",
    "/usr/local/lib",
    "/usr/local/lib64",
    "/usr/local/libexec",
    "/usr/local/share",
];
/// Folders of `/usr/local` beside those of [`PROGRAMS`] that programs look into: no root that only the source names.
const LOCAL: [&str; 4] = ["/usr/local/etc", "/usr/local/include", "/usr/local/games", "/usr/local/ssl"];
/// What no profile shows, nor anything that holds it: a step could read keys, or reach this host.
const SECRETS: [&str; 22] = [
    "/etc/shadow",
    "/etc/shadow-",
    "/etc/gshadow",
    "/etc/gshadow-",
    "/etc/ssh",
    "/etc/ssl/private",
    "/etc/pki/tls/private",
    "/etc/letsencrypt",
    "/etc/assay",
    "/etc/sudoers",
    "/etc/sudoers.d",
    "/etc/krb5.keytab",
    "/etc/machine-id",
    "/root",
    "/boot",
    "/proc",
    "/sys",
    "/dev",
    "/run",
    "/var/run",
    "/var/lib/assay",
    authority::STORE,
];
/// What the sandbox makes itself: no root can be there.
const OWN: [&str; 5] = ["/proc", "/dev", "/sys", SCRATCH, HELPER];
/// A folder with more entries than this is not shown entry by entry.
const MAX_ENTRIES: usize = 4000;

/// `{scratch}` in the sandbox.
pub(crate) const SCRATCH: &str = "/run/assay-scratch";
/// `{helper}` in the sandbox.
pub(super) const HELPER: &str = "/run/assay-helper";

/// What a sandbox is made of. All paths are absolute.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// The roots of the workspace.
    pub(super) roots: Vec<LiveRoot>,
    /// Shown read-only beside [`BASES`], where it exists.
    pub(super) visible: Vec<PathBuf>,
    /// Files that are made for the step, and where it sees them in `/etc`.
    pub(super) etc: Vec<(PathBuf, PathBuf)>,
    /// Shown as [`SCRATCH`].
    pub(super) scratch: PathBuf,
    /// Shown as [`HELPER`].
    pub(super) helper: Option<PathBuf>,
    /// The name of the host that the step believes to be on.
    pub(super) host_name: Option<String>,
    /// The folder in which the step starts.
    pub(super) working_directory: PathBuf,
    /// True when this process is root: then what starts the step in the sandbox enters a user namespace that is there,
    /// otherwise bubblewrap makes one.
    pub(super) privileged: bool,
    /// Bytes that each file system in memory may hold at most.
    pub(super) memory: u64,
}

/// A root.
#[derive(Clone, Debug)]
pub(super) struct LiveRoot {
    /// Where it is in the workspace.
    pub(super) workspace: PathBuf,
    /// Where it is on the live server, and where the step sees it.
    pub(super) live: PathBuf,
    /// The target's configuration names this path, and not the source alone.
    pub(super) is_pinned: bool,
}

/// Why a sandbox cannot show what it should.
#[derive(Debug, thiserror::Error)]
pub(super) enum PlanError {
    /// A root cannot appear at its live path.
    #[error("the live path {} cannot be shown in the sandbox: {why}", path.display())]
    LivePath { path: PathBuf, why: &'static str },
    /// A folder of the host cannot be listed.
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl Plan {
    /// The arguments for `bwrap`, up to and without the command.
    pub(super) fn arguments(&self) -> Result<Vec<OsString>, PlanError> {
        let mut roots: Vec<&LiveRoot> = self.roots.iter().collect();
        // Outer before inner, because a mount covers what is below it.
        roots.sort_by_key(|root| root.live.components().count());
        let live: Vec<&Path> = roots.iter().map(|root| root.live.as_path()).collect();
        check_live_paths(&roots, &self.visible)?;

        let mut list = Arguments::default();
        list.add([
            "--unshare-pid",
            "--unshare-net",
            "--unshare-uts",
            "--unshare-ipc",
            "--unshare-cgroup-try",
        ]);
        list.add(["--die-with-parent", "--new-session"]);
        if let Some(name) = &self.host_name {
            list.add(["--hostname", name]);
        }
        if self.privileged {
            // Enough to start in a folder of the workspace. Entering the user namespace takes none.
            list.add(["--cap-drop", "ALL", "--cap-add", "CAP_DAC_READ_SEARCH"]);
        } else {
            list.add(["--unshare-user"]);
        }
        for base in BASES {
            list.show(Path::new(base), &live)?;
        }
        for path in super::etc::SHOWN {
            list.show(Path::new(path), &live)?;
        }
        for (file, path) in &self.etc {
            list.parents(path);
            list.add(["--ro-bind"]).add([file, path]);
        }
        // Read-only as a whole: what stands in it is the kernel's, and mostly this host's.
        list.add(["--proc", "/proc", "--remount-ro", "/proc", "--dev", "/dev"]);
        list.add(["--perms", "0755", "--dir", "/var"]);
        for (mode, path) in [("1777", "/dev/shm"), ("1777", "/tmp"), ("0755", "/run"), ("1777", "/var/tmp")] {
            // The limit on memory is reached before such a file system is full.
            list.add(["--perms", mode, "--size", &self.memory.max(1 << 20).to_string(), "--tmpfs", path]);
        }
        for path in &self.visible {
            list.show(path, &live)?;
        }
        list.add(["--perms", "0755", "--dir", SCRATCH, "--bind"])
            .add([self.scratch.as_os_str(), OsStr::new(SCRATCH)]);
        if let Some(helper) = &self.helper {
            list.add(["--ro-bind"]).add([helper.as_os_str(), OsStr::new(HELPER)]);
        }
        for (index, LiveRoot { workspace, live, .. }) in roots.iter().enumerate() {
            // The folder for a root within another root is one of the workspace, and exists there (see
            // `make_nested`).
            if !roots[..index].iter().any(|outer| live.starts_with(&outer.live)) {
                list.parents(live);
                list.add(["--perms", "0755", "--dir"]).add([live]);
            }
            list.add(["--bind"]).add([workspace, live]);
        }
        // What is left of it is a file system in memory that nothing bounds, and that belongs to the step where the agent is not root.
        list.add(["--remount-ro", "/dev", "--remount-ro", "/"]);
        list.add(["--chdir"]).add([&self.working_directory]);
        Ok(list.0)
    }

    /// Pairs of roots of which the second lies in the first on the live server: the path of the first in the
    /// workspace, and the way from it to the second.
    pub(super) fn nested(&self) -> impl Iterator<Item = (&Path, &Path)> {
        let outer = |inner: &PathBuf| {
            let holds = |root: &&LiveRoot| *inner != root.live && inner.starts_with(&root.live);
            // The innermost of those that hold it, because that is the one that is seen there.
            self.roots.iter().filter(holds).max_by_key(|root| root.live.components().count())
        };
        self.roots.iter().filter_map(move |inner| {
            let found = outer(&inner.live)?;
            Some((found.workspace.as_path(), inner.live.strip_prefix(&found.live).ok()?))
        })
    }
}

/// Whether a step in a sandbox sees what this host has at `path`; `visible` is what the profile adds.
pub(crate) fn is_shown(path: &Path, visible: &[PathBuf]) -> bool {
    let bases = BASES.iter().chain(&["/etc"]).map(Path::new);
    bases.chain(visible.iter().map(PathBuf::as_path)).any(|shown| path.starts_with(shown))
}

/// Why a profile may not show a path of this host to a check, if so: it holds, or is in, what no check may see. `hidden` are the
/// store, the keys and the configuration.
pub(crate) fn reaches(path: &Path, hidden: &[PathBuf]) -> Option<String> {
    let secrets = SECRETS.map(PathBuf::from);
    let both = |path: &Path| [Some(path.to_owned()), fs::canonicalize(path).ok()].into_iter().flatten();
    for shown in both(path) {
        if shown.parent().is_none() {
            return Some(format!("{} is the whole file system of this host", path.display()));
        }
        for secret in hidden.iter().chain(&secrets) {
            if both(secret).any(|secret| shown.starts_with(&secret) || secret.starts_with(&shown)) {
                let (path, secret) = (path.display(), secret.display());
                return Some(format!("{path} would show {secret}, which no check may see"));
            }
        }
    }
    None
}

/// Symbolic links that are followed on the way to a file, as the kernel does.
const MAX_LINKS: usize = 40;

/// Where a step finds the file of this host at `path`, and the shown folder or file through which. `Err` is the place on the way to it
/// that no step sees.
pub(crate) fn locate(path: &Path, visible: &[PathBuf]) -> Result<(PathBuf, PathBuf), PathBuf> {
    let fixed = BASES.iter().chain(&super::etc::SHOWN).map(Path::new);
    let shown: Vec<&Path> = fixed.chain(visible.iter().map(PathBuf::as_path)).collect();
    let mut path = normal(path);
    for _ in 0..MAX_LINKS {
        let through =
            shown.iter().filter(|shown| path.starts_with(shown)).max_by_key(|it| it.as_os_str().len());
        let Some(through) = through else {
            return Err(path);
        };
        let ways: Vec<_> = path.ancestors().take_while(|part| part.starts_with(through)).collect();
        let link = ways.into_iter().rev().find_map(|part| Some((part, fs::read_link(part).ok()?)));
        let Some((link, target)) = link else {
            return Ok((path.clone(), through.to_path_buf()));
        };
        let rest = path.strip_prefix(link).unwrap_or(Path::new(""));
        path = normal(&link.parent().unwrap_or(link).join(target).join(rest));
    }
    Err(path)
}

/// `path` without `.` and `..`. What stands before a `..` is no symbolic link.
fn normal(path: &Path) -> PathBuf {
    let mut whole = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                whole.pop();
            }
            Component::CurDir => {}
            part => whole.push(part),
        }
    }
    whole
}

fn check_live_paths(roots: &[&LiveRoot], visible: &[PathBuf]) -> Result<(), PlanError> {
    let real = visible.iter().filter_map(|path| fs::canonicalize(path).ok());
    let shown: Vec<PathBuf> = visible.iter().cloned().chain(real).collect();
    for (index, LiveRoot { live: path, is_pinned, .. }) in roots.iter().enumerate() {
        let refused = |why| Err(PlanError::LivePath { path: path.clone(), why });
        let normal = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
        if !path.is_absolute() || !path.components().all(normal) {
            return refused("it must be an absolute path without '..'");
        }
        if path.parent().is_none() {
            return refused("the whole file system cannot be a root");
        }
        let holds_or_is_below = |other: &Path| path.starts_with(other) || other.starts_with(path);
        if BASES.iter().any(|base| Path::new(base).starts_with(path)) {
            return refused("the check's programs are there");
        }
        if PROGRAMS.iter().any(|programs| path.starts_with(programs)) {
            return refused("programs are looked for there, and the source's would take their place");
        }
        if shown.iter().any(|shown| shown.starts_with(path)) {
            return refused(
                "the profile shows this host's files there, and the source's would take their place",
            );
        }
        if OWN.iter().any(|own| holds_or_is_below(Path::new(own))) {
            return refused("the sandbox itself uses it");
        }
        if ["/tmp", "/var", "/var/tmp", "/etc"].iter().any(|own| *path == Path::new(own)) {
            return refused("the sandbox itself uses it");
        }
        let is_below = |others: &[&str]| others.iter().any(|other| path.starts_with(other));
        let is_in_what_is_shown =
            is_below(&BASES) || is_below(&["/etc"]) || shown.iter().any(|it| path.starts_with(it));
        if is_in_what_is_shown && fs::symlink_metadata(path).is_ok() {
            return refused("this host has something there, and the source's would take its place");
        }
        let is_local = path.starts_with("/usr/local")
            && !is_below(&LOCAL)
            && !shown.iter().any(|it| path.starts_with(it));
        if is_in_what_is_shown && !is_local && !is_pinned {
            return refused(
                "the check reads this host's files there, and only the source says that the root is live there: \
                 name it in live_paths of the target's configuration",
            );
        }
        if roots[..index].iter().any(|other| other.live == *path) {
            return refused("two roots have it");
        }
    }
    Ok(())
}

#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn add<T: AsRef<OsStr>>(&mut self, items: impl IntoIterator<Item = T>) -> &mut Self {
        self.0.extend(items.into_iter().map(|item| item.as_ref().to_owned()));
        self
    }

    /// The folders above `path`, readable for everyone: bubblewrap would make them for root alone.
    fn parents(&mut self, path: &Path) {
        let above: Vec<_> = path.ancestors().skip(1).filter(|it| it.parent().is_some()).collect();
        for folder in above.into_iter().rev() {
            self.add(["--perms", "0755", "--dir"]).add([folder]);
        }
    }

    /// Shows `path` of the host, read-only, and leaves room for the live paths below it.
    fn show(&mut self, path: &Path, live: &[&Path]) -> Result<(), PlanError> {
        let Ok(stat) = fs::symlink_metadata(path) else {
            return Ok(());
        };
        if live.iter().any(|root| path.starts_with(root)) {
            // A root is there, and its own content counts.
            return Ok(());
        }
        let inner = live.iter().find(|root| root.starts_with(path));
        if stat.is_symlink() {
            if let Some(root) = inner {
                let why = "a folder above it is a symbolic link on this host";
                return Err(PlanError::LivePath { path: root.to_path_buf(), why });
            }
            let target =
                fs::read_link(path).map_err(|source| PlanError::Io { path: path.to_owned(), source })?;
            self.parents(path);
            self.add(["--symlink"]).add([target.as_path(), path]);
            return Ok(());
        }
        self.parents(path);
        if inner.is_none() || !stat.is_dir() {
            self.add(["--ro-bind"]).add([path, path]);
            return Ok(());
        }
        self.add(["--perms", "0755", "--dir"]).add([path]);
        let failed = |source| PlanError::Io { path: path.to_owned(), source };
        let mut entries =
            fs::read_dir(path).map_err(failed)?.collect::<io::Result<Vec<_>>>().map_err(failed)?;
        if entries.len() > MAX_ENTRIES {
            let path = inner.map_or(path, |root| *root).to_owned();
            return Err(PlanError::LivePath {
                path,
                why: "a folder above it has too many entries to be shown one by one",
            });
        }
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            self.show(&entry.path(), live)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(live: &[&str]) -> Result<Vec<String>, PlanError> {
        plan_with(live, false, &[])
    }

    fn plan_with(live: &[&str], is_pinned: bool, visible: &[&Path]) -> Result<Vec<String>, PlanError> {
        let root = |live: &&str| LiveRoot { workspace: "/ws".into(), live: live.into(), is_pinned };
        let plan = Plan {
            roots: live.iter().map(root).collect(),
            visible: visible.iter().map(PathBuf::from).collect(),
            scratch: "/s".into(),
            working_directory: "/".into(),
            ..Default::default()
        };
        Ok(plan.arguments()?.into_iter().map(|it| it.into_string().expect("UTF-8")).collect())
    }

    fn binds(arguments: &[String]) -> Vec<(&str, &str)> {
        let ways = arguments.windows(3).filter(|it| it[0] == "--ro-bind" || it[0] == "--bind");
        ways.map(|it| (it[1].as_str(), it[2].as_str())).collect()
    }

    #[test]
    fn roots_that_cannot_be_where_they_are_live_are_refused() {
        let refused =
            ["/", "/usr", "/etc", "/proc/x", "/dev", "/tmp", "/run", "opt/x", "/opt/../etc", SCRATCH, HELPER];
        for path in refused {
            assert!(matches!(plan(&[path]), Err(PlanError::LivePath { .. })), "{path}");
        }
        // Where programs and what they load come from: a source names its own roots.
        for path in [
            "/usr/bin",
            "/usr/lib/x86_64-linux-gnu",
            "/usr/lib/nowhere",
            "/bin/nowhere",
            "/usr/local/bin",
            "/usr/local",
            "/lib64",
            "/etc/ssl",
            "/etc/alternatives",
            "/nix/store/x",
        ] {
            assert!(matches!(plan(&[path]), Err(PlanError::LivePath { .. })), "{path}");
        }
        assert!(plan(&["/usr/local/nowhere"]).is_ok());
        assert!(plan(&["/opt/x", "/opt/x"]).is_err());
        assert!(plan(&["/opt/accurev", "/tmp/a/b", "/srv/x y", "/home/u", "/var/lib/x"]).is_ok());
    }

    /// A source that was taken over names its roots itself: none of them is at, above or below what the check runs or reads.
    #[test]
    fn a_source_names_no_root_over_what_the_check_reads() {
        let host = tempfile::tempdir().expect("temp");
        fs::create_dir_all(host.path().join("tools/bin")).expect("mkdir");
        std::os::unix::fs::symlink(host.path().join("tools"), host.path().join("current")).expect("symlink");
        let (tools, current) = (host.path().join("tools"), host.path().join("current"));
        let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
        for visible in [&tools, &current] {
            for path in [
                &text(visible),
                &text(&tools),
                &text(&tools.join("bin")),
                &text(host.path()),
                &text(&tools.join("lib")),
            ] {
                let refused = plan_with(&["/opt/main", path], false, &[visible]);
                assert!(
                    matches!(refused, Err(PlanError::LivePath { .. })),
                    "{path} over {}",
                    visible.display()
                );
            }
            // The operator may put a root below what the profile shows, where this host has nothing.
            assert!(plan_with(&["/opt/main", &text(&tools.join("lib"))], true, &[visible]).is_ok());
            assert!(plan_with(&["/opt/main", &text(&tools.join("bin"))], true, &[visible]).is_err());
            assert!(plan_with(&["/opt/main", &text(host.path())], true, &[visible]).is_err());
        }
        for path in [
            "/etc/nowhere",
            "/etc/subversion",
            "/etc/ld.so.conf.d/x",
            "/usr/local/etc",
            "/usr/nowhere",
            "/usr/local/ssl/x",
        ] {
            assert!(plan(&[path]).is_err(), "{path}");
        }
        assert!(plan_with(&["/etc/assay-nowhere"], true, &[]).is_ok());
        assert!(plan_with(&["/usr/bin"], true, &[]).is_err() && plan_with(&["/etc/ssl"], true, &[]).is_err());
    }

    /// A profile shows neither keys nor the store nor this host's kernel, under no name and not as a part of more.
    #[test]
    fn paths_that_no_check_may_see_are_refused_by_name() {
        let host = tempfile::tempdir().expect("temp");
        fs::create_dir_all(host.path().join("keys")).expect("mkdir");
        fs::create_dir_all(host.path().join("tools")).expect("mkdir");
        fs::write(host.path().join("keys/agent.key"), "secret").expect("write");
        std::os::unix::fs::symlink(host.path().join("keys"), host.path().join("link")).expect("symlink");
        let hidden = [host.path().join("keys/agent.key"), host.path().join("store")];
        for name in ["", "keys", "link", "keys/agent.key", "store", "store/repo"] {
            assert!(reaches(&host.path().join(name), &hidden).is_some(), "{name}");
        }
        for path in [
            "/",
            "/etc",
            "/etc/ssl",
            "/etc/ssh",
            "/etc/assay/ca",
            "/proc",
            "/proc/sys",
            "/sys",
            "/dev",
            "/run/postgresql",
            "/root",
        ] {
            assert!(reaches(Path::new(path), &[]).is_some(), "{path}");
        }
        assert_eq!(reaches(&host.path().join("tools"), &hidden), None);
        assert_eq!(reaches(Path::new("/opt/pgsql"), &hidden), None);
    }

    #[test]
    fn a_live_path_below_what_is_shown_opens_the_folders_above_it() {
        let arguments = plan(&["/usr/local/nowhere/repository"]).expect("possible");
        let binds = binds(&arguments);
        assert!(binds.contains(&("/ws", "/usr/local/nowhere/repository")));
        assert!(!binds.contains(&("/usr", "/usr")) && !binds.contains(&("/usr/local", "/usr/local")));
        assert!(binds.contains(&("/usr/bin", "/usr/bin")));
    }

    #[test]
    fn nested_roots_are_mounted_from_the_outside_in() {
        let arguments = plan(&["/opt/a/storage", "/opt/a"]).expect("possible");
        let roots: Vec<_> = binds(&arguments).into_iter().filter(|(from, _)| *from == "/ws").collect();
        assert_eq!(roots, [("/ws", "/opt/a"), ("/ws", "/opt/a/storage")]);
    }
}
