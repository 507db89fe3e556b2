//! Opens a repository's roots and makes sure that they are what they were: a root that is empty, unmounted or resolves to
//! another folder than last time must not look like a repository in which everything was deleted.

use std::{io, path::Path, sync::Arc};

use assay_common::{
    confined::Folder,
    manifest::{Header, Root},
};

use super::Fault;
use crate::{
    file_system::FileSystem,
    replicate::{basis::Origin, scan::Ground},
    snapshot::{LiveRoot, Snapshot},
    state::RootIdentity,
};

/// The roots, held open for the whole run.
#[derive(Debug)]
pub(super) struct OpenRoots {
    /// In the header's order.
    pub folders: Vec<Arc<Folder>>,
    /// Who they are.
    pub identities: Vec<RootIdentity>,
}

impl OpenRoots {
    /// The live roots as a snapshot has to have them.
    pub(super) fn of(&self, header: &Header) -> Vec<LiveRoot> {
        let roots = header.roots.iter().zip(&self.identities);
        let live = |(root, identity): (&Root, &RootIdentity)| LiveRoot {
            name: root.name.clone(),
            path: root.live_path.clone().into(),
            inode: identity.inode,
        };
        roots.map(live).collect()
    }
}

/// The folders that a run copies: the live roots, or those of a snapshot.
#[derive(Debug)]
pub(super) struct Copied {
    /// In the header's order.
    pub folders: Vec<Arc<Folder>>,
    /// What the walk goes by.
    pub ground: Ground,
    /// Where the run looks at its files.
    pub origin: Origin,
}

impl Copied {
    /// The roots in `snapshot`, or the live ones without one. `ground` is that of the live ones.
    pub(super) fn of(live: &OpenRoots, snapshot: Option<&Snapshot>, ground: Ground) -> Result<Self, Fault> {
        let folders = snapshot.map_or(&live.folders, |snapshot| &snapshot.folders).clone();
        let devices = folders.iter().map(|folder| Ok(folder.stat_self()?.st_dev)).collect::<io::Result<_>>();
        let devices = devices.map_err(|error| {
            Fault::not_run("root-missing", format!("a root cannot be looked at: {error}"))
        })?;
        Ok(Self {
            folders,
            ground: Ground { live: snapshot.map_or_else(Vec::new, |_| live.folders.clone()), ..ground },
            origin: Origin { devices, snapshot: snapshot.map(|snapshot| snapshot.begun) },
        })
    }
}

/// Opens the roots. The second value is true when a changed root was let through by the operator's word.
pub(super) fn open(
    header: &Header,
    known: Option<&[RootIdentity]>,
    allow_new_root: bool,
) -> Result<(OpenRoots, bool), Fault> {
    let mut open = OpenRoots { folders: Vec::new(), identities: Vec::new() };
    let mut overridden = false;
    for root in &header.roots {
        let path = Path::new(&root.live_path);
        let folder = Folder::open(path).map_err(|error| root_error(&root.live_path, &error))?;
        let stat = folder.stat_self().map_err(|error| root_error(&root.live_path, &error))?;
        if folder.names().map_err(|error| root_error(&root.live_path, &error))?.is_empty() {
            return Err(Fault::not_run("root-empty", format!("the root {path:?} is an empty folder")).hint(
                "check that its file system is mounted; an empty repository is never copied over a backup",
            ));
        }
        let file_system = FileSystem::of(folder.as_descriptor(), stat.st_dev)
            .map_err(|error| root_error(&root.live_path, &error))?;
        let identity = RootIdentity {
            path: root.live_path.clone(),
            device: stat.st_dev,
            inode: stat.st_ino,
            file_system: Some(file_system.id),
        };
        let before = known.and_then(|known| known.iter().find(|known| known.path == identity.path));
        // The number of a device may change with a reboot; what a file system is called, and the inode, do not.
        if let Some(before) = before
            && !before.is_same(&identity)
        {
            if !allow_new_root {
                let what = if before.inode == identity.inode { "file system" } else { "inode" };
                let text = format!("the root {path:?} is not the folder that it was: it has another {what}");
                return Err(Fault::not_run("root-changed", text)
                    .hint("check what is mounted there; if it is right, run once with --allow-new-root"));
            }
            overridden = true;
        }
        open.folders.push(Arc::new(folder));
        open.identities.push(identity);
    }
    Ok((open, overridden))
}

fn root_error(path: &str, error: &io::Error) -> Fault {
    let hint = match error.kind() {
        io::ErrorKind::NotFound => "check the path in the configuration, and that its file system is mounted",
        io::ErrorKind::PermissionDenied => "run the agent as a user who may read the repository",
        _ => "a root is a folder, named by its real path: not a file and not a symbolic link",
    };
    Fault::not_run("root-missing", format!("the root {path:?} cannot be opened: {error}")).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_a_missing_and_a_changed_root_each_stop_the_run() {
        let folder = tempfile::tempdir().expect("temp");
        let live = folder.path().join("live");
        let header = Header {
            roots: vec![Root {
                name: "main".into(),
                live_path: live.display().to_string(),
                subdirectory: String::new(),
            }],
        };
        assert_eq!(open(&header, None, true).expect_err("missing").reason, "root-missing");
        std::fs::create_dir(&live).expect("mkdir");
        assert_eq!(open(&header, None, true).expect_err("empty").reason, "root-empty");
        std::fs::write(live.join("file"), "x").expect("write");
        let (roots, overridden) = open(&header, None, false).expect("sound");
        assert!(!overridden);
        let mut known = roots.identities.clone();
        assert!(open(&header, Some(&known), false).is_ok());
        known[0].device += 1;
        assert!(open(&header, Some(&known), false).is_ok(), "as after a reboot");
        known[0].file_system = None;
        assert!(open(&header, Some(&known), false).is_err(), "an older version knew the number alone");
        known[0] = roots.identities[0].clone();
        known[0].file_system = Some("fsid:other:1".to_owned());
        let other = open(&header, Some(&known), false).expect_err("another file system");
        assert!(
            roots.identities[0].file_system.as_ref().is_some_and(|id| !id.starts_with("fsid"))
                || other.reason == "root-changed"
        );
        known[0] = roots.identities[0].clone();
        known[0].inode += 1;
        assert_eq!(open(&header, Some(&known), false).expect_err("changed").reason, "root-changed");
        assert!(open(&header, Some(&known), true).expect("allowed").1);
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&live, &link).expect("symlink");
        let mut header = header;
        header.roots[0].live_path = link.display().to_string();
        assert_eq!(open(&header, None, true).expect_err("a link").reason, "root-missing");
    }
}
