//! The one module whose file-system calls take names that came from elsewhere: from the other agent, from a manifest or
//! from the tree that is scanned.
//!
//! Every call starts at a held descriptor ([`Folder`]) and takes either one component (checked by [`check_component`])
//! or a [`TreePath`], which the kernel resolves with `openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)`. Links are data:
//! none is ever followed, so no name can reach beyond the folder that was opened. The rule for each call comes from the
//! faults of other tools (rsync CVE-2026-29518, -43619, -53799 and their kin: `open` was confined, and chmod, chown,
//! utimes, rename, link, mkdir and the attribute calls were not).

mod metadata;
mod node;

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps};

pub use metadata::{CannotHold, cannot_hold, is_acl_mirror, is_host_label};
pub use node::{Node, xattrs_of};

use crate::{
    manifest::{Entry, EntryKind},
    path::{TreePath, check_component},
};

/// A folder that is held open.
#[derive(Debug)]
pub struct Folder(OwnedFd);

const FOLDER_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn component(name: &[u8]) -> io::Result<&[u8]> {
    check_component(name)
        .map_err(|fault| io::Error::new(io::ErrorKind::InvalidInput, format!("the name {fault}")))?;
    Ok(name)
}

impl Folder {
    /// Opens a folder by a path that this host's administrator chose. The last component may not be a symbolic link.
    ///
    /// # Errors
    /// As the kernel says; `ENOTDIR` or `ELOOP` for what is no folder.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(fs::open(path, FOLDER_FLAGS, Mode::empty())?))
    }

    /// Opens the folder `name` in this one.
    ///
    /// # Errors
    /// As the kernel says; `ENOTDIR` for what is no folder, a link included.
    pub fn open_folder(&self, name: &[u8]) -> io::Result<Self> {
        Ok(Self(fs::openat(&self.0, component(name)?, FOLDER_FLAGS, Mode::empty())?))
    }

    /// Opens a folder anywhere below this one.
    ///
    /// # Errors
    /// As the kernel says; `ELOOP` when a link is on the way.
    pub fn open_folder_below(&self, path: &TreePath) -> io::Result<Self> {
        Ok(Self(open_beneath(&self.0, path, FOLDER_FLAGS)?))
    }

    /// Opens a file anywhere below this one for reading. FIFOs and devices do not block and should not be read.
    ///
    /// # Errors
    /// As the kernel says; `ELOOP` when a link is on the way.
    pub fn open_file_below(&self, path: &TreePath) -> io::Result<File> {
        Ok(open_beneath(&self.0, path, OFlags::RDONLY | OFlags::NONBLOCK)?.into())
    }

    /// The content of a small regular file anywhere below this one.
    ///
    /// # Errors
    /// As the kernel says; for what is no regular file, and for one of more than `most` bytes.
    pub fn read_small_below(&self, path: &TreePath, most: u64) -> io::Result<Vec<u8>> {
        let file = self.open_file_below(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let mut content = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, most.saturating_add(1)), &mut content)?;
        if content.len() as u64 > most {
            return Err(io::Error::other("it is too long"));
        }
        Ok(content)
    }

    /// Opens the regular file `name` in this folder for reading, without changing its access time where that is allowed.
    ///
    /// # Errors
    /// As the kernel says; `ELOOP` for a link.
    pub fn open_file(&self, name: &[u8]) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match fs::openat(&self.0, component(name)?, flags | OFlags::NOATIME, Mode::empty()) {
            // Only the owner and root may leave the access time alone.
            Err(rustix::io::Errno::PERM) => Ok(fs::openat(&self.0, name, flags, Mode::empty())?.into()),
            result => Ok(result?.into()),
        }
    }

    /// Creates the file `name`, mode 0600, for reading and writing. It may not exist.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn create_file(&self, name: &[u8]) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(fs::openat(&self.0, component(name)?, flags, Mode::from_raw_mode(0o600))?.into())
    }

    /// Opens the file `name` for writing and creates it, mode 0600, when it is not there.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn open_or_create_file(&self, name: &[u8]) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(fs::openat(&self.0, component(name)?, flags, Mode::from_raw_mode(0o600))?.into())
    }

    /// Opens the file `name`, which is there, for reading and writing. FIFOs and devices do not block and should not be written to.
    ///
    /// # Errors
    /// As the kernel says; `ELOOP` for a link.
    pub fn open_file_to_write(&self, name: &[u8]) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(fs::openat(&self.0, component(name)?, flags, Mode::empty())?.into())
    }

    /// Creates the folder `name`, mode 0700, and opens it. It may not exist.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn create_folder(&self, name: &[u8]) -> io::Result<Self> {
        fs::mkdirat(&self.0, component(name)?, Mode::from_raw_mode(0o700))?;
        self.open_folder(name)
    }

    /// Gives `name` in this folder the further name `new_name` in `to`. A link is linked, not followed.
    ///
    /// # Errors
    /// As the kernel says; `EMLINK` when the file has as many names as its file system allows.
    pub fn link(&self, name: &[u8], to: &Self, new_name: &[u8]) -> io::Result<()> {
        Ok(fs::linkat(&self.0, component(name)?, &to.0, component(new_name)?, AtFlags::empty())?)
    }

    /// Moves `name` in this folder to `new_name` in `to`, which may not exist.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn rename(&self, name: &[u8], to: &Self, new_name: &[u8]) -> io::Result<()> {
        let flags = fs::RenameFlags::NOREPLACE;
        Ok(fs::renameat_with(&self.0, component(name)?, &to.0, component(new_name)?, flags)?)
    }

    /// Moves `name` in this folder to `new_name` in `to`, in the place of the file that may be there: whoever opens that name finds
    /// the one or the other.
    ///
    /// # Errors
    /// As the kernel says; `EISDIR` for a folder in the place.
    pub fn replace(&self, name: &[u8], to: &Self, new_name: &[u8]) -> io::Result<()> {
        Ok(fs::renameat(&self.0, component(name)?, &to.0, component(new_name)?)?)
    }

    /// Gives this folder the times that it had.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn set_own_times(&self, before: &fs::Stat) -> io::Result<()> {
        let last_access = Timespec { tv_sec: before.st_atime, tv_nsec: before.st_atime_nsec as _ };
        let last_modification = Timespec { tv_sec: before.st_mtime, tv_nsec: before.st_mtime_nsec as _ };
        Ok(fs::futimens(&self.0, &Timestamps { last_access, last_modification })?)
    }

    /// Creates what `entry` describes under `name`, if it is a symbolic link, a FIFO, a socket or a device. Metadata is set
    /// apart, by [`Folder::set_metadata`].
    ///
    /// # Errors
    /// As the kernel says; `EPERM` for devices where this process is not privileged.
    pub fn create_special(&self, name: &[u8], entry: &Entry) -> io::Result<()> {
        let name = component(name)?;
        let kind = match entry.kind() {
            EntryKind::Symlink => {
                return Ok(fs::symlinkat(entry.link_target.as_slice(), &self.0, name)?);
            }
            EntryKind::Fifo => FileType::Fifo,
            EntryKind::Socket => FileType::Socket,
            EntryKind::CharDevice => FileType::CharacterDevice,
            EntryKind::BlockDevice => FileType::BlockDevice,
            _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a special entry")),
        };
        let device = fs::makedev(entry.device_major, entry.device_minor);
        Ok(fs::mknodat(&self.0, name, kind, Mode::from_raw_mode(0o600), device)?)
    }

    /// What `name` is. A link is not followed.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn stat(&self, name: &[u8]) -> io::Result<fs::Stat> {
        Ok(fs::statat(&self.0, component(name)?, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// What this folder itself is.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn stat_self(&self) -> io::Result<fs::Stat> {
        Ok(fs::fstat(&self.0)?)
    }

    /// The text of the symbolic link `name`.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn read_link(&self, name: &[u8]) -> io::Result<Vec<u8>> {
        Ok(fs::readlinkat(&self.0, component(name)?, Vec::new())?.into_bytes())
    }

    /// The names in this folder, sorted by their bytes.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn names(&self) -> io::Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        for entry in fs::Dir::read_from(&self.0)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Removes the file, link or special entry `name`.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn remove_file(&self, name: &[u8]) -> io::Result<()> {
        Ok(fs::unlinkat(&self.0, component(name)?, AtFlags::empty())?)
    }

    /// Removes `name`, and all that is in it if it is a folder. Links are removed, not followed; folders are entered one at a
    /// time, so that the depth costs neither stack nor descriptors beyond one each.
    ///
    /// # Errors
    /// As the kernel says. What has been removed by then is gone.
    pub fn remove_all(&self, name: &[u8]) -> io::Result<()> {
        match self.remove_file(name) {
            // What unlinkat says of a folder (POSIX: EPERM, Linux: EISDIR).
            Err(error)
                if matches!(
                    error.raw_os_error().map(rustix::io::Errno::from_raw_os_error),
                    Some(rustix::io::Errno::ISDIR | rustix::io::Errno::PERM)
                ) => {}
            removed => return removed,
        }
        let mut levels = vec![(self.open_to_remove(name)?, name.to_vec())];
        while let Some((folder, _)) = levels.last() {
            let mut inner = None;
            for name in folder.names()? {
                match fs::unlinkat(&folder.0, component(&name)?, AtFlags::empty()) {
                    Err(rustix::io::Errno::ISDIR | rustix::io::Errno::PERM) => {
                        inner = Some((folder.open_to_remove(&name)?, name));
                        break;
                    }
                    removed => removed?,
                }
            }
            match inner {
                Some(inner) => levels.push(inner),
                None => {
                    let (_, name) = levels.pop().expect("it is the last");
                    let parent = levels.last().map_or(self, |(parent, _)| parent);
                    fs::unlinkat(&parent.0, component(&name)?, AtFlags::REMOVEDIR)?;
                }
            }
        }
        Ok(())
    }

    /// Opens what could not be removed as a file: a folder, most likely. What is none is a file that may not be removed.
    fn open_to_remove(&self, name: &[u8]) -> io::Result<Self> {
        use rustix::io::Errno;
        self.open_folder(name).map_err(|error| match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOTDIR | Errno::LOOP) => Errno::PERM.into(),
            _ => error,
        })
    }

    /// Makes the names in this folder durable.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn sync(&self) -> io::Result<()> {
        Ok(fs::fsync(&self.0)?)
    }

    /// Makes everything on this folder's file system durable: one call for a whole new generation, where one for each
    /// file would cost a journal commit each. Errors of earlier write-back are reported (Linux 5.8 and later).
    ///
    /// # Errors
    /// As the kernel says.
    pub fn sync_file_system(&self) -> io::Result<()> {
        Ok(fs::syncfs(&self.0)?)
    }

    /// What its file system is.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn file_system(&self) -> io::Result<fs::StatFs> {
        Ok(fs::fstatfs(&self.0)?)
    }

    /// What its file system has free, and the longest name there.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn room(&self) -> io::Result<fs::StatVfs> {
        Ok(fs::fstatvfs(&self.0)?)
    }

    /// Gives `name` a time of modification. A link is not followed.
    ///
    /// # Errors
    /// As the kernel says; a time that the file system cannot hold is no error.
    pub fn set_time(&self, name: &[u8], seconds: i64, nanos: u32) -> io::Result<()> {
        let time = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
        let times = Timestamps { last_access: time, last_modification: time };
        Ok(fs::utimensat(&self.0, component(name)?, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// The descriptor, for calls that take no name.
    pub fn as_descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// A second descriptor of the same folder.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// A path for the attribute calls, which take no folder descriptor: the kernel resolves it through the held one.
    fn proc_path(&self, name: &[u8]) -> PathBuf {
        use std::os::unix::ffi::OsStrExt as _;
        let mut path = PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()));
        path.push(std::ffi::OsStr::from_bytes(name));
        path
    }
}

/// Opens what is at `path` below a held folder, following no link and leaving the folder by no way.
///
/// # Errors
/// As the kernel says; `ELOOP` when a link is on the way.
pub fn open_beneath(folder: impl AsFd, path: &TreePath, flags: OFlags) -> io::Result<OwnedFd> {
    let confined = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let path = if path.is_root() { b"." } else { path.as_bytes() };
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // The kernel answers EAGAIN when some rename raced the resolution.
    for _ in 0..16 {
        match fs::openat2(&folder, path, flags, Mode::empty(), confined) {
            Err(rustix::io::Errno::AGAIN) => {}
            result => return Ok(result?),
        }
    }
    Err(rustix::io::Errno::AGAIN.into())
}

/// Copies extended attributes and ACLs of an open file to another, where both file systems have them.
///
/// # Errors
/// As the kernel says.
pub fn copy_xattrs(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    let mut names = Vec::with_capacity(64 * 1024);
    match fs::flistxattr(&from, rustix::buffer::spare_capacity(&mut names)) {
        Ok(_) => {}
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        // What the overlay itself needs, and labels that the system sets, are not ours to carry.
        if name.starts_with(b"trusted.overlay.") || name.starts_with(b"security.selinux") {
            continue;
        }
        let mut value = Vec::with_capacity(64 * 1024);
        match fs::fgetxattr(&from, name, rustix::buffer::spare_capacity(&mut value)) {
            Ok(_) => {}
            Err(rustix::io::Errno::NODATA) => continue,
            Err(error) => return Err(error.into()),
        }
        match fs::fsetxattr(&to, name, &value, fs::XattrFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A name beside `name` that no engine uses, within the length that names may have.
pub fn temporary_name(name: &[u8]) -> Vec<u8> {
    let kept = &name[..name.len().min(200)];
    [b".assay-new-", kept].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn no_call_follows_a_link_or_climbs() {
        let outer = tempfile::tempdir().expect("temp");
        let inner = outer.path().join("inner");
        std::fs::create_dir(&inner).expect("mkdir");
        std::fs::write(outer.path().join("secret"), "x").expect("write");
        symlink("..", inner.join("up")).expect("symlink");
        symlink("../secret", inner.join("file")).expect("symlink");
        let folder = Folder::open(&inner).expect("open");
        let path = |text: &str| TreePath::parse(text.as_bytes()).expect("valid");
        assert!(folder.open_file_below(&path("up/secret")).is_err());
        assert!(folder.open_file_below(&path("file")).is_err());
        assert!(folder.open_file(b"file").is_err());
        assert!(folder.open_folder(b"up").is_err());
        assert!(folder.open_folder(b"..").is_err());
        assert!(folder.open_file(b"../secret").is_err());
        assert!(folder.create_file(b"up/new").is_err());
        assert!(folder.open_or_create_file(b"file").is_err());
        assert!(folder.open_file_to_write(b"file").is_err());
        assert!(folder.open_file_to_write(b"../secret").is_err());
        assert!(folder.create_folder(b"../new").is_err());
        assert!(folder.rename(b"file", &folder, b"../moved").is_err());
        assert!(folder.link(b"../secret", &folder, b"x").is_err());
        assert!(folder.replace(b"file", &folder, b"../secret").is_err());
        assert!(folder.replace(b"up/secret", &folder, b"file").is_err());
        assert!(folder.remove_file(b"../secret").is_err());
        assert!(Folder::open(&inner.join("up")).is_err());
        // Metadata goes to the link itself.
        let entry = Entry {
            kind: EntryKind::Symlink.into(),
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            mtime_seconds: 1,
            ..Default::default()
        };
        folder.set_metadata(b"file", &entry).expect("times of a link");
        assert!(
            std::fs::metadata(outer.path().join("secret")).expect("stat").modified().expect("time")
                > std::time::UNIX_EPOCH + std::time::Duration::from_secs(1000)
        );
        assert_eq!(std::fs::read(outer.path().join("secret")).expect("read"), b"x");
    }
}
