//! Gives an entry the metadata of its manifest, and nothing beside it.
//!
//! A new file is not empty of metadata: a default ACL of the folder that it is made in, a property of the file system and a label of
//! the kernel's security module come with it. What the manifest lacks is taken away, what it has is set, and what the file system
//! has made of it is looked at afterwards: a time out of its range is changed without an error.

use std::{io, os::fd::AsRawFd as _, path::Path};

use rustix::{
    fs::{self, AtFlags, Mode, OFlags, Stat, StatVfsMountFlags, Timespec, Timestamps, XattrFlags},
    io::Errno,
};

use super::{Folder, component};
use crate::{
    manifest::{Entry, EntryKind, ExtendedAttribute},
    path::display_bytes,
};

/// Free bytes beyond which `ENOSPC` of an attribute means that the inode has no place for it.
const SOME_ROOM_BYTES: u64 = 4 * 1024 * 1024;
/// `f_type` of XFS (statfs(2)).
const XFS: i64 = 0x5846_5342;

/// A file system cannot hold a part of an entry as it is: there is no room for it in an inode, or no place at all. Stands inside of
/// an [`io::Error`]; [`cannot_hold`] finds it.
#[derive(Debug, thiserror::Error)]
#[error("this file system cannot hold {0}")]
pub struct CannotHold(pub String);

/// What of an entry the file system cannot hold, if that is what `error` is about.
pub fn cannot_hold(error: &io::Error) -> Option<&CannotHold> {
    error.get_ref()?.downcast_ref()
}

impl From<CannotHold> for io::Error {
    fn from(error: CannotHold) -> Self {
        Self::new(io::ErrorKind::Unsupported, error)
    }
}

/// True for what XFS lists a second time: the ACLs, in its own form and under its own names.
pub fn is_acl_mirror(name: &[u8]) -> bool {
    matches!(name, b"trusted.SGI_ACL_FILE" | b"trusted.SGI_ACL_DEFAULT")
}

/// True for a label of the kernel's security module, or of its integrity measurement: those belong to a host, not to a tree, and no
/// process may take them away while the module is at work.
pub fn is_host_label(name: &[u8]) -> bool {
    name.starts_with(b"security.SMACK64")
        || matches!(
            name,
            b"security.selinux"
                | b"security.apparmor"
                | b"security.ima"
                | b"security.evm"
                | b"security.landlock"
        )
}

impl Folder {
    /// Gives `name` to this user and group. A link is not followed.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn set_owner(&self, name: &[u8], (user, group): (u32, u32)) -> io::Result<()> {
        let (user, group) = (fs::Uid::from_raw(user), fs::Gid::from_raw(group));
        Ok(fs::chownat(&self.0, component(name)?, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Gives `name` the owner, extended attributes, mode and times of `entry`, in this order: a change of owner clears
    /// set-user-id bits and capabilities, an ACL changes mode bits, and everything changes times. Attributes and ACLs that the entry
    /// does not have are removed.
    ///
    /// # Errors
    /// Says which of them failed. [`cannot_hold`] tells when the file system is the reason.
    pub fn set_metadata(&self, name: &[u8], entry: &Entry) -> io::Result<()> {
        let name = component(name)?;
        let stat = fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if stat.st_uid != entry.uid || stat.st_gid != entry.gid {
            let (owner, group) = (fs::Uid::from_raw(entry.uid), fs::Gid::from_raw(entry.gid));
            fs::chownat(&self.0, name, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| explain(error, "its owner cannot be set"))?;
        }
        self.set_xattrs(&self.proc_path(name), entry)?;
        if entry.kind() != EntryKind::Symlink {
            // Only a descriptor says for certain what is changed, and only O_PATH opens FIFOs and devices unharmed.
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let held = fs::openat(&self.0, name, flags, Mode::empty())?;
            let path = format!("/proc/self/fd/{}", held.as_raw_fd());
            fs::chmod(path, Mode::from_raw_mode(entry.mode))
                .map_err(|error| explain(error, "its mode cannot be set"))?;
        }
        fs::utimensat(&self.0, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| explain(error, "its times cannot be set"))?;
        is_held(entry, &fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// The same for a folder that has no name in this one: the root of a tree.
    ///
    /// # Errors
    /// Says which of them failed. [`cannot_hold`] tells when the file system is the reason.
    pub fn set_own_metadata(&self, entry: &Entry) -> io::Result<()> {
        let stat = fs::fstat(&self.0)?;
        if stat.st_uid != entry.uid || stat.st_gid != entry.gid {
            fs::fchown(&self.0, Some(fs::Uid::from_raw(entry.uid)), Some(fs::Gid::from_raw(entry.gid)))
                .map_err(|error| explain(error, "its owner cannot be set"))?;
        }
        self.set_xattrs(&self.proc_path(b"."), entry)?;
        fs::fchmod(&self.0, Mode::from_raw_mode(entry.mode))
            .map_err(|error| explain(error, "its mode cannot be set"))?;
        fs::futimens(&self.0, &times(entry)).map_err(|error| explain(error, "its times cannot be set"))?;
        is_held(entry, &fs::fstat(&self.0)?)
    }

    /// Whether `name` has the owner, attributes, mode and time of `entry`. What this process cannot take away does not count.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn has_metadata(&self, name: &[u8], entry: &Entry) -> io::Result<bool> {
        let stat = fs::statat(&self.0, component(name)?, AtFlags::SYMLINK_NOFOLLOW)?;
        if is_held(entry, &stat).is_err() {
            return Ok(false);
        }
        let is_of_entry = |attribute: &&ExtendedAttribute| {
            !is_host_label(&attribute.name) && !is_acl_mirror(&attribute.name)
        };
        let there = self.xattrs(name)?;
        Ok(there.iter().filter(is_of_entry).eq(entry.xattrs.iter().filter(is_of_entry)))
    }

    /// Gives what is at `path`, which is in this folder, the extended attributes and ACLs of `entry`, and no others.
    fn set_xattrs(&self, path: &Path, entry: &Entry) -> io::Result<()> {
        let wanted = |name: &[u8]| entry.xattrs.iter().any(|attribute| attribute.name == name);
        let listed = list(path, Follow::Never)?;
        let names = || listed.split(|byte| *byte == 0).filter(|name| is_of_tree(name));
        let has_mirror =
            names().chain(entry.xattrs.iter().map(|wanted| wanted.name.as_slice())).any(is_acl_mirror);
        // There the mirror is the ACL itself: it comes and goes with it.
        let mirrors = has_mirror && fs::fstatfs(&self.0)?.f_type as i64 == XFS;
        for name in names().filter(|name| !(wanted(name) || mirrors && is_acl_mirror(name))) {
            match fs::lremovexattr(path, name) {
                Ok(()) | Err(Errno::NODATA) => {}
                Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP) if is_host_label(name) => {}
                Err(error) => {
                    return Err(explain(
                        error,
                        &format!("its attribute {} cannot be removed", display_bytes(name)),
                    ));
                }
            }
        }
        for attribute in entry.xattrs.iter().filter(|attribute| !(mirrors && is_acl_mirror(&attribute.name)))
        {
            fs::lsetxattr(path, attribute.name.as_slice(), &attribute.value, XattrFlags::empty())
                .map_err(|error| self.refused_xattr(attribute, error))?;
        }
        Ok(())
    }

    /// Why an attribute could not be set: the disk is full, this process may not, or this file system has no place for it.
    fn refused_xattr(&self, attribute: &ExtendedAttribute, error: Errno) -> io::Error {
        let name = display_bytes(&attribute.name);
        let what = match attribute.name.as_slice() {
            b"system.posix_acl_access" => "its ACL".to_owned(),
            b"system.posix_acl_default" => "its default ACL".to_owned(),
            _ => format!("its attribute {name} of {} bytes", attribute.value.len()),
        };
        match error {
            Errno::NOSPC if self.has_little_room() => explain(error, &format!("{what} cannot be set")),
            Errno::TOOBIG => CannotHold(format!("{what}: it is too large there")).into(),
            Errno::NOSPC | Errno::RANGE => {
                CannotHold(format!("{what}: an inode has no room for it beside its other attributes")).into()
            }
            Errno::OPNOTSUPP => CannotHold(format!("{what}: it has none of this kind")).into(),
            error => explain(error, &format!("{what} cannot be set")),
        }
    }

    fn has_little_room(&self) -> bool {
        fs::fstatvfs(&self.0).is_ok_and(|free| {
            free.f_bavail.saturating_mul(free.f_frsize) < SOME_ROOM_BYTES
                || (free.f_files > 0 && free.f_favail == 0)
                || free.f_flag.contains(StatVfsMountFlags::RDONLY)
        })
    }

    /// The extended attributes of `name` (of this folder for an empty name) that a copy keeps: all but the kernel's own in
    /// `system.`, of which only the ACLs are kept. Sorted by name.
    ///
    /// # Errors
    /// As the kernel says; none for a file system without such attributes.
    pub fn xattrs(&self, name: &[u8]) -> io::Result<Vec<ExtendedAttribute>> {
        let path = if name.is_empty() { self.proc_path(b".") } else { self.proc_path(component(name)?) };
        xattrs_at(&path, Follow::Never)
    }
}

/// Whether the last component of a path is followed: the kernel's own link to what a descriptor holds must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Follow {
    Never,
    Held,
}

/// The extended attributes of what is at `path`, as [`Folder::xattrs`] has them.
pub(super) fn xattrs_at(path: &Path, follow: Follow) -> io::Result<Vec<ExtendedAttribute>> {
    let mut attributes = Vec::new();
    for name in list(path, follow)?.split(|byte| *byte == 0).filter(|name| is_of_tree(name)) {
        let mut value = Vec::with_capacity(256);
        loop {
            let room = rustix::buffer::spare_capacity(&mut value);
            let got = match follow {
                Follow::Never => fs::lgetxattr(path, name, room),
                Follow::Held => fs::getxattr(path, name, room),
            };
            match got {
                Ok(_) => {
                    attributes.push(ExtendedAttribute { name: name.to_vec(), value });
                    break;
                }
                Err(Errno::RANGE) if value.capacity() < 128 * 1024 => {
                    value = Vec::with_capacity(value.capacity() * 8);
                }
                // Gone since it was listed.
                Err(Errno::NODATA) => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    attributes.sort_unstable_by(|left, right| left.name.cmp(&right.name));
    Ok(attributes)
}

/// True for an attribute that a tree may have: not for those in `system.` that are a file system's own, beside the ACLs.
fn is_of_tree(name: &[u8]) -> bool {
    !name.is_empty() && (!name.starts_with(b"system.") || name.starts_with(b"system.posix_acl_"))
}

/// The names of the attributes of what is at `path`, each with a NUL behind it.
fn list(path: &Path, follow: Follow) -> io::Result<Vec<u8>> {
    let mut names = Vec::with_capacity(512);
    loop {
        let room = rustix::buffer::spare_capacity(&mut names);
        let listed = match follow {
            Follow::Never => fs::llistxattr(path, room),
            Follow::Held => fs::listxattr(path, room),
        };
        match listed {
            Ok(_) => return Ok(names),
            Err(Errno::RANGE) if names.capacity() < 128 * 1024 => {
                names = Vec::with_capacity(names.capacity() * 8);
            }
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
    }
}

fn times(entry: &Entry) -> Timestamps {
    let time = Timespec { tv_sec: entry.mtime_seconds, tv_nsec: entry.mtime_nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// Compares what the file system has made of it with the entry.
fn is_held(entry: &Entry, stat: &Stat) -> io::Result<()> {
    let (seconds, nanos) = (stat.st_mtime, stat.st_mtime_nsec as u32);
    if (seconds, nanos) != (entry.mtime_seconds, entry.mtime_nanos) {
        let time = |seconds: i64, nanos: u32| {
            let time = jiff::Timestamp::new(seconds, nanos as i32).ok();
            time.map_or_else(|| format!("{seconds}.{nanos:09} s since 1970"), |time| time.to_string())
        };
        let (wanted, there) = (time(entry.mtime_seconds, entry.mtime_nanos), time(seconds, nanos));
        return Err(CannotHold(format!("its time of modification: {wanted} becomes {there}")).into());
    }
    let mode = stat.st_mode & 0o7777;
    if entry.kind() != EntryKind::Symlink && mode != entry.mode {
        return Err(not_taken(format!("its mode: {:04o} becomes {mode:04o}", entry.mode)));
    }
    if (stat.st_uid, stat.st_gid) != (entry.uid, entry.gid) {
        let text = format!("its owner: {}:{} becomes {}:{}", entry.uid, entry.gid, stat.st_uid, stat.st_gid);
        return Err(not_taken(text));
    }
    Ok(())
}

/// Owners and modes are the file system's fault only where this process may set all of them.
fn not_taken(what: String) -> io::Error {
    if rustix::process::geteuid().is_root() {
        CannotHold(what).into()
    } else {
        io::Error::new(io::ErrorKind::PermissionDenied, format!("this user cannot set {what}"))
    }
}

fn explain(error: Errno, what: &str) -> io::Error {
    let error = io::Error::from(error);
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

#[cfg(test)]
mod tests;
