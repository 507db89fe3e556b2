//! A file system is tried out: on files of our own, in a folder that goes again.

use std::{io, path::Path};

use rustix::{
    fs::{self, FileType, StatFs, XattrFlags},
    io::Errno,
    process::{Resource, getrlimit},
};

use super::limits::{FsLimits, one_footprint};
use crate::{
    confined::Folder,
    limits::{MAX_FILE_BYTES, MAX_LINK_BYTES, MAX_XATTR_BYTES},
    manifest::{Entry, EntryKind},
};

/// Below this nothing is tried out, in bytes: a full disk says no to everything.
const LEAST_FREE_BYTES: u64 = 16 * 1024 * 1024;
/// Longest value that Linux has (XATTR_SIZE_MAX), in bytes.
const XATTR_SIZE_MAX: usize = 65_536;
/// A file system whose inodes hold more than this has no bound that a tree meets, in bytes.
const ENOUGH_ATTRIBUTES_BYTES: u64 = 512 * 1024;
const FILE: &[u8] = b"file";

/// Magic numbers of statfs(2), names, and how many names a file may have (the kernel's `*_LINK_MAX`).
const FILE_SYSTEMS: [(i64, &str, u64); 10] = [
    (0xef53, "ext4", 65_000),
    (0x5846_5342, "xfs", 2_147_483_647),
    (0x9123_683e, "btrfs", 65_535),
    (0x0102_1994, "tmpfs", u64::MAX),
    (0xf2f5_2010, "f2fs", u64::MAX),
    (0x2fc1_2fc1, "zfs", u64::MAX),
    (0xca45_1a4e, "bcachefs", u64::MAX),
    (0x794c_7630, "overlay", u64::MAX),
    (0x6969, "nfs", u64::MAX),
    (0x4d44, "vfat", 1),
];

impl FsLimits {
    /// Tries out the file system of the folder at `path`, in a folder `name` in it that is made and removed. `None` when there is too
    /// little room to try anything.
    ///
    /// # Errors
    /// When nothing can be made there.
    pub fn probe(path: &Path, name: &str) -> io::Result<Option<Self>> {
        let folder = Folder::open(path)?;
        let room = folder.room()?;
        if room.f_bavail.saturating_mul(room.f_frsize) < LEAST_FREE_BYTES
            || (room.f_files > 0 && room.f_favail < 16)
        {
            return Ok(None);
        }
        match folder.remove_all(name.as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let scratch = folder.create_folder(name.as_bytes())?;
        let tried = try_out(&scratch, room.f_namemax);
        drop(scratch);
        folder.remove_all(name.as_bytes())?;
        tried.map(Some)
    }
}

/// How many names a file may have on the file system of `folder`; `u64::MAX` where no limit is known.
///
/// # Errors
/// As the kernel says.
pub fn most_names(folder: &Folder) -> io::Result<u64> {
    let StatFs { f_type, .. } = folder.file_system()?;
    Ok(FILE_SYSTEMS.iter().find(|(magic, ..)| *magic == f_type).map_or(u64::MAX, |(_, _, names)| *names))
}

fn try_out(folder: &Folder, name_bytes: u64) -> io::Result<FsLimits> {
    let StatFs { f_type, .. } = folder.file_system()?;
    let known = FILE_SYSTEMS.iter().find(|(magic, ..)| *magic == f_type);
    let file = folder.create_file(FILE)?;
    let (seconds, granularity) = times(folder);
    let has = |name: &str, value: &[u8]| {
        let is_set = fs::fsetxattr(&file, name, value, XattrFlags::empty()).is_ok();
        if is_set {
            fs::fremovexattr(&file, name).ok();
        }
        is_set
    };
    let attribute_bytes = attribute_bytes(&file);
    let device =
        Entry { kind: EntryKind::CharDevice.into(), device_major: 1, device_minor: 3, ..Default::default() };
    Ok(FsLimits {
        file_system: known
            .map_or_else(|| format!("file system {f_type:#x}"), |(_, name, _)| (*name).to_owned()),
        attribute_bytes: attribute_bytes as u64,
        attributes_bytes: if attribute_bytes == 0 { 0 } else { attributes_bytes(&file, attribute_bytes) },
        acls: has("system.posix_acl_access", &acl()),
        trusted: has("trusted.assay", b"x"),
        capabilities: has("security.capability", &capability()),
        seconds,
        granularity,
        name_bytes: if name_bytes == 0 { u64::MAX } else { name_bytes },
        link_bytes: largest(MAX_LINK_BYTES as u64, |bytes| {
            let text = vec![b'x'; usize::try_from(bytes).unwrap_or(0)];
            let link = Entry { kind: EntryKind::Symlink.into(), link_target: text, ..Default::default() };
            let is_made = folder.create_special(b"link", &link).is_ok();
            if is_made {
                drop(folder.remove_file(b"link"));
            }
            is_made
        }),
        names: known.map_or(u64::MAX, |(_, _, names)| *names),
        file_bytes: file_bytes(&file),
        devices: folder.create_special(b"device", &device).is_ok()
            && folder
                .stat(b"device")
                .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice),
        folds_names: folder.stat(FILE.to_ascii_uppercase().as_slice()).is_ok(),
        no_owners: keeps_no_owners(folder)?,
    })
}

/// True where root cannot give a file to another user. Where there is no such user (in a namespace), nothing is known.
fn keeps_no_owners(folder: &Folder) -> io::Result<bool> {
    const OTHER: (u32, u32) = (65_533, 65_532);
    if !rustix::process::geteuid().is_root() {
        return Ok(false);
    }
    let file = b"owned";
    drop(folder.create_file(file)?);
    Ok(match folder.set_owner(file, OTHER) {
        Ok(()) => folder.stat(file).is_ok_and(|stat| (stat.st_uid, stat.st_gid) != OTHER),
        Err(error) => error.raw_os_error() != Some(Errno::INVAL.raw_os_error()),
    })
}

/// The largest number up to `most` that fits.
fn largest(most: u64, fits: impl Fn(u64) -> bool) -> u64 {
    if fits(most) {
        return most;
    }
    let (mut good, mut bad) = (0, most);
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if fits(middle) { good = middle } else { bad = middle }
    }
    good
}

/// The first and last second, and the step of times in nanoseconds.
fn times(folder: &Folder) -> ((i64, i64), u32) {
    let set = |seconds: i64, nanos: u32| {
        folder.set_time(FILE, seconds, nanos).ok()?;
        let stat = folder.stat(FILE).ok()?;
        Some((stat.st_mtime, stat.st_mtime_nsec as u32))
    };
    let first = set(i64::MIN, 0).map_or(i64::MIN, |(seconds, _)| seconds);
    let last = set(i64::MAX, 0).map_or(i64::MAX, |(seconds, _)| seconds);
    // A second that no step of two divides.
    let (seconds, nanos) = (1_000_000_001, 123_456_789);
    let step = match set(seconds, nanos) {
        Some((kept, _)) if kept != seconds => 2_000_000_000,
        Some((_, kept)) => [1, 100, 1000, 1_000_000, 10_000_000, 1_000_000_000]
            .into_iter()
            .find(|step| nanos - nanos % step == kept)
            .unwrap_or(1),
        None => 1,
    };
    ((first, last), step)
}

fn attribute_bytes(file: &std::fs::File) -> usize {
    let fits = |bytes: u64| {
        let value = vec![b'x'; usize::try_from(bytes).unwrap_or(0)];
        fs::fsetxattr(file, "user.assay", &value, XattrFlags::empty()).is_ok()
    };
    let most = largest(XATTR_SIZE_MAX as u64, fits);
    let is_there = fs::fremovexattr(file, "user.assay").is_ok();
    if is_there { usize::try_from(most).unwrap_or(0) } else { 0 }
}

/// What the attributes of one inode may take together: values that become smaller are added until the smallest does not fit.
fn attributes_bytes(file: &std::fs::File, one: usize) -> u64 {
    let (mut all, mut bytes, mut names) = (0, (one / 2).clamp(1, 4000), Vec::new());
    while all < ENOUGH_ATTRIBUTES_BYTES.min(MAX_XATTR_BYTES as u64) {
        let name = format!("user.{:04}", names.len());
        match fs::fsetxattr(file, &name, &vec![b'x'; bytes], XattrFlags::empty()) {
            Ok(()) => {
                all += one_footprint(name.as_bytes(), bytes);
                names.push(name);
            }
            Err(Errno::NOSPC | Errno::TOOBIG | Errno::RANGE) if bytes > 1 => bytes /= 2,
            Err(_) => break,
        }
    }
    for name in &names {
        fs::fremovexattr(file, name).ok();
    }
    if all >= ENOUGH_ATTRIBUTES_BYTES.min(MAX_XATTR_BYTES as u64) { u64::MAX } else { all }
}

fn file_bytes(file: &std::fs::File) -> u64 {
    // A process that makes a file longer than this is killed.
    let most = getrlimit(Resource::Fsize).current.unwrap_or(u64::MAX).min(MAX_FILE_BYTES);
    let bytes = largest(most, |bytes| fs::ftruncate(file, bytes).is_ok());
    fs::ftruncate(file, 0).ok();
    bytes
}

/// One that no mode stands for: a user of its own.
fn acl() -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in
        [(1u16, 6u16, u32::MAX), (2, 4, 1), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)]
    {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// `cap_net_raw=p`, in the second version of `struct vfs_cap_data`.
fn capability() -> Vec<u8> {
    [0x0200_0000u32, 1 << 13, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the file system is: what the probe says that it holds it holds, and nothing of the probe stays.
    #[test]
    fn a_probe_says_what_holds_and_leaves_nothing() {
        let temp = tempfile::tempdir().expect("temp");
        let limits = FsLimits::probe(temp.path(), "probe").expect("tried").expect("there is room");
        assert_eq!(std::fs::read_dir(temp.path()).expect("read").count(), 0);
        let folder = Folder::open(temp.path()).expect("open");
        let file = folder.create_file(b"f").expect("create");
        let value = vec![b'y'; usize::try_from(limits.attribute_bytes).expect("small")];
        if limits.attribute_bytes > 0 {
            fs::fsetxattr(&file, "user.assay", &value, XattrFlags::empty()).expect("as said");
        }
        for seconds in [limits.seconds.0, limits.seconds.1] {
            folder.set_time(b"f", seconds, 0).expect("set");
            assert_eq!(folder.stat(b"f").expect("stat").st_mtime, seconds);
        }
        for nanos in [0, 123_456_789] {
            folder.set_time(b"f", 1_700_000_001, nanos).expect("set");
            let stat = folder.stat(b"f").expect("stat");
            assert_eq!((stat.st_mtime, stat.st_mtime_nsec as u32), limits.clamp((1_700_000_001, nanos)));
        }
        // Once more, where a killed probe has left something.
        std::fs::create_dir(temp.path().join("probe")).expect("mkdir");
        assert_eq!(FsLimits::probe(temp.path(), "probe").expect("tried"), Some(limits));
    }
}
