//! The world that a check step sees: built by bubblewrap out of namespaces of its own.
//!
//! The step sees `/usr`, `/bin`, `/sbin`, `/lib*` and `/etc` read-only, what the profile and the agent's
//! configuration add, fresh `/proc`, `/dev`, `/tmp` and `/run`, and the roots of its workspace, writable,
//! **at the absolute paths that they have on the live server**. It sees no network but its own `lo`, no
//! process but its own, and never the store.
//!
//! The top of that world is an empty tmpfs, so every live path can be made. A live path below something that
//! is shown read-only (`/usr/local/svn`) is made by showing the folders above it entry by entry instead of
//! whole.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
};

/// What is shown of the host without being asked for.
const BASES: [&str; 9] =
    ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/nix/store"];
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
/// What is covered of [`BASES`] in any case: a step that runs as root could read them.
const SECRETS: [&str; 5] = ["/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/gshadow-", "/etc/ssh"];
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
    /// Where each root is in the workspace, and where the step sees it.
    pub(super) roots: Vec<(PathBuf, PathBuf)>,
    /// Shown read-only beside [`BASES`], where it exists.
    pub(super) visible: Vec<PathBuf>,
    /// Covered by emptiness, for example the store and the agent's keys.
    pub(super) hidden: Vec<PathBuf>,
    /// Shown as [`SCRATCH`].
    pub(super) scratch: PathBuf,
    /// Shown as [`HELPER`].
    pub(super) helper: Option<PathBuf>,
    /// Shown as `/etc/hosts`.
    pub(super) hosts: Option<PathBuf>,
    /// The name of the host that the step believes to be on.
    pub(super) host_name: Option<String>,
    /// The folder in which the step starts.
    pub(super) working_directory: PathBuf,
    /// True when this process is root: then the sandbox drops capabilities, otherwise it needs a user
    /// namespace.
    pub(super) privileged: bool,
    /// Bytes that each file system in memory may hold at most.
    pub(super) memory: u64,
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
        let mut roots: Vec<&(PathBuf, PathBuf)> = self.roots.iter().collect();
        // Outer before inner, because a mount covers what is below it.
        roots.sort_by_key(|(_, live)| live.components().count());
        let live: Vec<&Path> = roots.iter().map(|(_, live)| live.as_path()).collect();
        check_live_paths(&live)?;

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
            // Enough to read and write any file of the workspace and to become its owner; not to mount, to
            // trace or to make devices.
            list.add(["--cap-drop", "ALL"]);
            for capability in
                ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP"]
            {
                list.add(["--cap-add".into(), format!("CAP_{capability}")]);
            }
        } else {
            list.add(["--unshare-user"]);
        }
        for base in BASES {
            list.show(Path::new(base), &live)?;
        }
        list.add(["--proc", "/proc", "--dev", "/dev"]);
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
        if let Some(hosts) = &self.hosts
            && fs::symlink_metadata("/etc/hosts").is_ok_and(|stat| stat.is_file())
        {
            list.add(["--ro-bind"]).add([hosts.as_os_str(), OsStr::new("/etc/hosts")]);
        }
        for hidden in self.hidden.iter().map(PathBuf::as_path).chain(SECRETS.map(Path::new)) {
            list.hide(hidden, self.visible.iter().map(PathBuf::as_path));
        }
        for (index, (workspace, live)) in roots.iter().enumerate() {
            // The folder for a root within another root is one of the workspace, and exists there (see
            // `make_nested`).
            if !roots[..index].iter().any(|(_, outer)| live.starts_with(outer)) {
                list.parents(live);
                list.add(["--perms", "0755", "--dir"]).add([live]);
            }
            list.add(["--bind"]).add([workspace, live]);
        }
        list.add(["--chdir"]).add([&self.working_directory]);
        Ok(list.0)
    }

    /// Pairs of roots of which the second lies in the first on the live server: the path of the first in the
    /// workspace, and the way from it to the second.
    pub(super) fn nested(&self) -> impl Iterator<Item = (&Path, &Path)> {
        let outer = |inner: &PathBuf| {
            let holds = |(_, live): &&(PathBuf, PathBuf)| inner != live && inner.starts_with(live);
            // The innermost of those that hold it, because that is the one that is seen there.
            let found = self.roots.iter().filter(holds).max_by_key(|(_, live)| live.components().count())?;
            Some((found.0.as_path(), found.1.clone()))
        };
        self.roots.iter().filter_map(move |(_, inner)| {
            let (workspace, live) = outer(inner)?;
            Some((workspace, inner.strip_prefix(live).ok()?))
        })
    }
}

fn check_live_paths(live: &[&Path]) -> Result<(), PlanError> {
    for (index, path) in live.iter().enumerate() {
        let refused = |why| Err(PlanError::LivePath { path: path.to_path_buf(), why });
        let normal = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
        if !path.is_absolute() || !path.components().all(normal) {
            return refused("an absolute path without '..' was expected");
        }
        if path.parent().is_none() {
            return refused("the whole file system cannot be a root");
        }
        if BASES.iter().any(|base| Path::new(base).starts_with(path)) {
            return refused("the check's programs are there");
        }
        if PROGRAMS.iter().any(|programs| path.starts_with(programs)) {
            return refused("programs are looked for there, and the source's would take their place");
        }
        if BASES.iter().any(|base| path.starts_with(base)) && fs::symlink_metadata(path).is_ok() {
            return refused("this host has something there, and the source's would take its place");
        }
        if OWN.iter().any(|own| path.starts_with(own) || Path::new(own).starts_with(path)) {
            return refused("the sandbox itself uses it");
        }
        if ["/tmp", "/var", "/var/tmp"].iter().any(|own| *path == Path::new(own)) {
            return refused("the sandbox itself uses it");
        }
        if live[..index].contains(path) {
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

    /// Covers what is shown at `path` by something empty. A key is renewed by renaming another over it, and that takes the
    /// cover off: where nobody but its owner may enter the folder around it, the folder is covered.
    fn hide<'a>(&mut self, path: &Path, visible: impl Iterator<Item = &'a Path>) {
        let Ok(mut real) = fs::canonicalize(path) else { return };
        let shown = BASES.iter().map(Path::new).chain(visible).any(|base| real.starts_with(base));
        if real.is_file()
            && let Some(folder) = real.parent()
            && fs::metadata(folder).is_ok_and(|stat| stat.mode() & 0o077 == 0)
        {
            real = folder.to_owned();
        }
        match fs::metadata(&real) {
            Ok(stat) if shown && stat.is_dir() => self.add(["--perms", "0755", "--tmpfs"]).add([real]),
            Ok(_) if shown => self.add(["--ro-bind", "/dev/null"]).add([real]),
            _ => self,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(live: &[&str]) -> Result<Vec<String>, PlanError> {
        let roots = live.iter().map(|live| (PathBuf::from("/ws"), PathBuf::from(live))).collect();
        let plan = Plan { roots, scratch: "/s".into(), working_directory: "/".into(), ..Default::default() };
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
        assert!(plan(&["/usr/local/nowhere", "/etc/nowhere"]).is_ok());
        assert!(plan(&["/opt/x", "/opt/x"]).is_err());
        assert!(plan(&["/opt/accurev", "/tmp/a/b", "/srv/x y", "/home/u", "/var/lib/x"]).is_ok());
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
