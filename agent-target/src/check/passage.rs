//! The way into a workspace for a check without a sandbox that runs as another user: the store is closed to all users, so the folders on
//! the way get an ACL entry that lets this one user pass, and lose it when the step has ended.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

const ACL: &str = "system.posix_acl_access";
/// Version and entries of an ACL as the kernel takes it: tag, permissions, id.
const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
const NO_ID: u32 = u32::MAX;

/// A workspace's own folder, that of all workspaces, the repository's and the store's are this many levels above the scratch folder.
const LEVELS: usize = 5;

/// Who may pass which folder now, how many times over, and the mode that it had: several checks can run at the same time.
static OPEN: Mutex<BTreeMap<PathBuf, Passed>> = Mutex::new(BTreeMap::new());

#[derive(Debug, Default)]
struct Passed {
    mode: u32,
    users: BTreeMap<u32, usize>,
}

/// Folders that one more user may pass for as long as this lives.
#[derive(Debug)]
pub(super) struct Passage {
    uid: u32,
    folders: Vec<PathBuf>,
}

impl Passage {
    /// Lets `uid` pass the scratch folder of a workspace and those folders of the store above it that are closed.
    ///
    /// # Errors
    /// When a folder cannot be examined, or the file system has no ACLs.
    pub(super) fn open(scratch: &Path, uid: u32) -> io::Result<Self> {
        let own = rustix::process::geteuid().as_raw();
        let mut passage = Self { uid, folders: Vec::new() };
        if uid == own {
            return Ok(passage);
        }
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        for folder in scratch.ancestors().take(LEVELS) {
            let stat = fs::symlink_metadata(folder)?;
            let known = open.get(folder).is_some();
            if stat.uid() != own || !stat.is_dir() || !known && stat.mode() & 0o077 != 0 {
                continue;
            }
            let passed = open
                .entry(folder.to_owned())
                .or_insert_with(|| Passed { mode: stat.mode() & 0o7777, users: BTreeMap::new() });
            *passed.users.entry(uid).or_default() += 1;
            passage.folders.push(folder.to_owned());
            set(folder, passed)?;
        }
        Ok(passage)
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        for folder in &self.folders {
            let Some(passed) = open.get_mut(folder) else { continue };
            if let Some(times) = passed.users.get_mut(&self.uid) {
                *times -= 1;
            }
            passed.users.retain(|_, times| *times > 0);
            if let Err(error) = set(folder, passed) {
                tracing::error!(path = %folder.display(), %error, "this folder stays open to the user of a check");
            }
            if passed.users.is_empty() {
                open.remove(folder);
            }
        }
    }
}

/// Gives the folder the ACL that lets these users pass, and none when there are no users.
fn set(folder: &Path, passed: &Passed) -> io::Result<()> {
    if !passed.users.is_empty() {
        let acl = acl(passed.mode, passed.users.keys().copied());
        return Ok(rustix::fs::setxattr(folder, ACL, &acl, rustix::fs::XattrFlags::empty())?);
    }
    match rustix::fs::removexattr(folder, ACL) {
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) | Ok(()) => {}
        Err(error) => return Err(error.into()),
    }
    // The mode last: with an ACL, its group bits are the mask.
    fs::set_permissions(folder, Permissions::from_mode(passed.mode))
}

/// The owner as before, these users may pass, nobody else may do anything.
fn acl(mode: u32, users: impl Iterator<Item = u32>) -> Vec<u8> {
    let owner = u16::try_from(mode >> 6 & 7).expect("three bits");
    let mut bytes = VERSION.to_le_bytes().to_vec();
    let mut entry = |tag: u16, permissions: u16, id: u32| {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    };
    entry(USER_OBJ, owner, NO_ID);
    users.for_each(|uid| entry(USER, 1, uid));
    entry(GROUP_OBJ, 0, NO_ID);
    entry(MASK, 1, NO_ID);
    entry(OTHER, 0, NO_ID);
    bytes
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn one_user_passes_while_a_step_runs_and_nobody_afterwards() {
        assert!(rustix::process::geteuid().is_root(), "this test becomes another user: run it as root");
        let temp = tempfile::tempdir().expect("temp");
        let inner = temp.path().join("store/workspaces");
        assay_common::closed::create_folder(&inner).expect("mkdir");
        fs::write(inner.join("file"), "x").expect("write");
        fs::set_permissions(inner.join("file"), Permissions::from_mode(0o644)).expect("chmod");
        let reads = |uid: &str| {
            let (user, group) = (format!("--reuid={uid}"), format!("--regid={uid}"));
            let mut command = Command::new("setpriv");
            command.args([&user, &group, "--clear-groups", "--", "cat"]).arg(inner.join("file"));
            command.output().expect("started").status.success()
        };
        assert!(!reads("4711"));
        let passage = Passage::open(&inner, 4711).expect("opened");
        assert!(reads("4711"));
        assert!(!reads("4712"));
        let other = Passage::open(&inner, 4712).expect("opened");
        drop(passage);
        assert!(!reads("4711"));
        assert!(reads("4712"));
        drop(other);
        assert!(!reads("4712"));
        for folder in [&inner, &temp.path().join("store")] {
            assert_eq!(fs::metadata(folder).expect("stat").mode() & 0o7777, 0o700);
        }
    }
}
