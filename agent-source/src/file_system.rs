//! What is known of the file systems under a root: which one it is whatever number its device has today, whether it leaves a trace of
//! every write, and whether there are files on it at all.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs, io,
    os::{
        fd::AsFd,
        unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    },
    path::Path,
    sync::{Mutex, PoisonError},
};

use rustix::fs::Stat;

/// One file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSystem {
    /// The same after a reboot, and another for every other file system: `fsid:…`, `uuid:…`, `source:…` for a share, or `device:…`
    /// where nothing better is known. [`is_same`] compares them.
    pub id: String,
    /// What kind it is, as `mount` names it where that is known.
    pub kind: String,
    /// False: a program that has a file mapped changes it without a new time, for as long as it likes (tmpfs).
    pub leaves_trace: bool,
    /// Each inode has a time of change that no program can set. vfat and exFAT have none, and what a FUSE server has nobody knows: the
    /// kernel shows the time of the last write in its place, which any program sets back.
    pub has_change_times: bool,
    /// The kernel makes its files up when they are read: there is nothing to copy (procfs, sysfs).
    pub is_pseudo: bool,
}

/// `f_type` of statfs(2), how `mount` names it, and whether the kernel makes its files up.
const KINDS: [(u64, &str, bool); 44] = [
    (0xef53, "ext4", false),
    (0x5846_5342, "xfs", false),
    (0x9123_683e, "btrfs", false),
    (0xf2f5_2010, "f2fs", false),
    (0x2fc1_2fc1, "zfs", false),
    (VFAT, "vfat", false),
    (EXFAT, "exfat", false),
    (0x7366_746e, "ntfs3", false),
    (0x794c_7630, "overlay", false),
    (0x6969, "nfs", false),
    (0xff53_4d42, "cifs", false),
    (0xfe53_4d42, "smb3", false),
    (FUSE, "fuse", false),
    (0xca45_1a4e, "bcachefs", false),
    (0x00c3_6400, "ceph", false),
    (0x0bd0_0bd0, "lustre", false),
    (0x0116_1970, "gfs2", false),
    (0x7461_636f, "ocfs2", false),
    (0x0102_1997, "9p", false),
    (0x5346_414f, "afs", false),
    (0x5265_4973, "reiserfs", false),
    (0x3153_464a, "jfs", false),
    (0x3434, "nilfs2", false),
    (0x7371_7368, "squashfs", false),
    (0xe0f5_e1e2, "erofs", false),
    (0x9660, "iso9660", false),
    (TMPFS, "tmpfs", false),
    (RAMFS, "ramfs", false),
    (HUGETLBFS, "hugetlbfs", false),
    (0x9fa0, "proc", true),
    (0x6265_6572, "sysfs", true),
    (0x27_e0eb, "cgroup", true),
    (0x6367_7270, "cgroup2", true),
    (0x1cd1, "devpts", true),
    (0x6462_6720, "debugfs", true),
    (0x7472_6163, "tracefs", true),
    (0x7363_6673, "securityfs", true),
    (0xf97c_ff8c, "selinuxfs", true),
    (0xcafe_4a11, "bpf", true),
    (0x6165_676c, "pstore", true),
    (0xde5e_81e4, "efivarfs", true),
    (0x6265_6570, "configfs", true),
    (0x1980_0202, "mqueue", true),
    (0x6e73_6673, "nsfs", true),
];
const TMPFS: u64 = 0x0102_1994;
const RAMFS: u64 = 0x8584_58f6;
const HUGETLBFS: u64 = 0x9584_58f6;
const XFS: u64 = 0x5846_5342;
const VFAT: u64 = 0x4d44;
const EXFAT: u64 = 0x2011_bab0;
const FUSE: u64 = 0x6573_5546;
/// What is mounted by FUSE and passes on the times of change that a file system behind it has.
const PASSED_ON: [&str; 5] = ["virtiofs", "fuse.glusterfs", "fuse.mergerfs", "fuse.ceph-fuse", "fuse.bindfs"];

impl FileSystem {
    /// The one that `held` is on; `device` is what its `stat` says.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn of(held: impl AsFd, device: u64) -> io::Result<Self> {
        let statfs = rustix::fs::fstatfs(&held)?;
        // The numbers of the kernel have 32 bits; the field may be a signed one.
        let number = statfs.f_type as u64 & 0xffff_ffff;
        let known = KINDS.iter().find(|(kind, ..)| *kind == number);
        let kind = known.map_or_else(|| format!("type {number:#x}"), |(_, name, _)| (*name).to_owned());
        let id = match rustix::fs::fstatvfs(&held)?.f_fsid {
            // XFS makes it from the number of its device.
            fsid if fsid != 0 && number != XFS => format!("fsid:{kind}:{fsid:016x}"),
            _ => match (uuid(device), source(device)) {
                (Some(uuid), _) => format!("uuid:{uuid}"),
                (None, Some(source)) if rustix::fs::major(device) == 0 => format!("source:{kind}:{source}"),
                _ => device_id(device),
            },
        };
        Ok(Self {
            id,
            kind,
            has_change_times: match number {
                VFAT | EXFAT => false,
                FUSE => mount_type(device).is_some_and(|kind| PASSED_ON.contains(&kind.as_str())),
                _ => known.is_some(),
            },
            leaves_trace: !matches!(number, TMPFS | RAMFS | HUGETLBFS),
            is_pseudo: known.is_some_and(|(.., is_pseudo)| *is_pseudo),
        })
    }
}

/// What stands for a file system of which nothing but its number is known.
fn device_id(device: u64) -> String {
    format!("device:{}:{}", rustix::fs::major(device), rustix::fs::minor(device))
}

/// True when two names stand for one file system. Names of different kinds say nothing of each other (udev was not there when one of
/// them was made): then its device number decides.
pub fn is_same(left: (&str, u64), right: (&str, u64)) -> bool {
    fn scheme(id: &str) -> &str {
        id.split_once(':').map_or("", |(scheme, _)| scheme)
    }
    if scheme(left.0) == scheme(right.0) { left.0 == right.0 } else { left.1 == right.1 }
}

/// The UUID of what is on a block device, as udev knows it.
fn uuid(device: u64) -> Option<String> {
    if rustix::fs::major(device) == 0 {
        return None;
    }
    let links = fs::read_dir("/dev/disk/by-uuid").ok()?;
    let is_it = |link: &fs::DirEntry| fs::metadata(link.path()).is_ok_and(|it| it.rdev() == device);
    let name = links.flatten().find(is_it)?.file_name();
    name.into_string().ok()
}

/// Something that is mounted below a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    /// Its path below that folder.
    pub path: Vec<u8>,
    /// What is mounted, as `mount` names its kind.
    pub kind: String,
    /// The kernel makes its files up.
    pub is_pseudo: bool,
    /// It is another file system than that of the folder.
    pub is_other: bool,
}

/// What is mounted below `root`, in the order of the paths. Nothing where the kernel does not say.
pub fn mounts_below(root: &Path) -> Vec<MountPoint> {
    let Ok(table) = fs::read("/proc/self/mountinfo") else {
        return Vec::new();
    };
    let device = fs::symlink_metadata(root).ok().map(|folder| folder.dev());
    let mut found = mounts_in(&table, root.as_os_str().as_bytes());
    for mount in &mut found {
        let path = root.join(OsStr::from_bytes(&mount.path));
        mount.is_other = fs::symlink_metadata(path).ok().map(|folder| folder.dev()) != device;
    }
    found
}

fn mounts_in(table: &[u8], root: &[u8]) -> Vec<MountPoint> {
    let root = root.strip_suffix(b"/").unwrap_or(root);
    let mount = |line: &[u8]| {
        let mut words = line.split(|byte| *byte == b' ');
        let path = unescaped(words.nth(4)?);
        let below = path.strip_prefix(root)?.strip_prefix(b"/")?;
        let kind = words.skip_while(|word| *word != b"-").nth(1)?;
        let kind = String::from_utf8_lossy(kind).into_owned();
        let is_pseudo = KINDS.iter().any(|(_, name, is_pseudo)| *is_pseudo && *name == kind);
        (!below.is_empty()).then(|| MountPoint { path: below.to_vec(), kind, is_pseudo, is_other: true })
    };
    let mut found: Vec<_> = table.split(|byte| *byte == b'\n').filter_map(mount).collect();
    found.sort_by(|left, right| left.path.cmp(&right.path));
    // Of several that are mounted over each other the last one is seen.
    let mut seen: Vec<MountPoint> = Vec::new();
    for mount in found {
        seen.retain(|before| before.path != mount.path);
        seen.push(mount);
    }
    seen
}

/// A path as it was: the kernel writes blanks and the like as `\\040`.
fn unescaped(word: &[u8]) -> Vec<u8> {
    let (mut path, mut at) = (Vec::new(), 0);
    while let Some(byte) = word.get(at) {
        let digits = word.get(at + 1..at + 4).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) if *byte == b'\\' => {
                path.push(escaped);
                at += 4;
            }
            _ => {
                path.push(*byte);
                at += 1;
            }
        }
    }
    path
}

/// What the kernel says of the mount of a device: its type, its source and its options.
fn mounted(device: u64) -> Option<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounted_in(&table, device).map(str::to_owned)
}

fn mounted_in(table: &str, device: u64) -> Option<&str> {
    let number = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let line = table.lines().find(|line| line.split(' ').nth(2) == Some(&number))?;
    line.split_once(" - ").map(|(_, right)| right)
}

/// The type of what is mounted there, as `mount -t` has it.
fn mount_type(device: u64) -> Option<String> {
    mounted(device)?.split(' ').next().map(str::to_owned)
}

/// What is mounted there, as the mount was asked for: a server's share, for example.
fn source(device: u64) -> Option<String> {
    let mounted = mounted(device)?;
    let source = mounted.split(' ').nth(1)?;
    // `none` and the kind's own name say nothing.
    source.contains(['/', ':']).then(|| source.to_owned())
}

/// The file systems that a run has met, by the numbers of their devices.
#[derive(Debug, Default)]
pub struct FileSystems(Mutex<HashMap<u64, FileSystem>>);

impl FileSystems {
    /// The one that `held` is on. It is looked at once.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn of(&self, held: impl AsFd, device: u64) -> io::Result<FileSystem> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get(&device) {
            return Ok(known.clone());
        }
        let found = FileSystem::of(held, device)?;
        known.insert(device, found.clone());
        Ok(found)
    }

    /// False where a program may change a mapped file without a new time.
    pub fn leaves_trace(&self, held: impl AsFd, device: u64) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get(&device) {
            return known.leaves_trace;
        }
        drop(known);
        self.of(held, device).is_ok_and(|found| found.leaves_trace)
    }

    /// True when whatever is done to the entry shows in its `stat`. Where nobody knows whether there are times of change, one that differs
    /// from the time of the last write is one.
    pub fn shows_each_change(&self, stat: &Stat) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let has_own = (stat.st_ctime, stat.st_ctime_nsec) != (stat.st_mtime, stat.st_mtime_nsec);
        has_own || known.get(&stat.st_dev).is_none_or(|known| known.has_change_times)
    }

    /// True for what stands in a snapshot of btrfs, or in a subvolume that was one, for another subvolume: an empty folder, with the
    /// inode BTRFS_EMPTY_SUBVOL_DIR_OBJECTID.
    pub fn is_in_place_of_subvolume(&self, stat: &Stat) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        stat.st_ino == 2 && known.get(&stat.st_dev).is_some_and(|known| known.kind == "btrfs")
    }

    /// What the file system with this device number is called for good. One that no folder has been seen on goes by its number.
    pub fn id(&self, device: u64) -> String {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&device).map_or_else(|| device_id(device), |known| known.id.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &str) -> FileSystem {
        let folder = fs::File::open(path).expect("open");
        let device = folder.metadata().expect("stat").dev();
        FileSystem::of(&folder, device).expect("statfs")
    }

    /// On vfat a program writes to a file and sets its time back, and nothing tells.
    #[test]
    fn a_time_of_change_that_is_the_time_of_writing_is_none_where_there_may_be_none() {
        let temp = tempfile::tempdir().expect("temp");
        let file = fs::File::create(temp.path().join("file")).expect("create");
        let mut stat = rustix::fs::fstat(&file).expect("stat");
        let systems = FileSystems::default();
        let own = systems.of(&file, stat.st_dev).expect("statfs");
        let put = |has_change_times| {
            let own = FileSystem { has_change_times, ..own.clone() };
            systems.0.lock().expect("no panic").insert(stat.st_dev, own);
        };
        (stat.st_ctime, stat.st_ctime_nsec) = (stat.st_mtime, stat.st_mtime_nsec);
        put(true);
        assert!(systems.shows_each_change(&stat));
        put(false);
        assert!(!systems.shows_each_change(&stat));
        stat.st_ctime += 2;
        assert!(systems.shows_each_change(&stat), "it has a time of its own");
    }

    #[test]
    fn pseudo_file_systems_differ_from_those_with_files() {
        let proc = of("/proc");
        assert_eq!((proc.kind.as_str(), proc.is_pseudo), ("proc", true));
        let temp = tempfile::tempdir().expect("temp");
        let temp = of(temp.path().to_str().expect("text"));
        assert!(!temp.is_pseudo);
        assert_eq!(temp.leaves_trace, temp.kind != "tmpfs");
        if fs::metadata("/dev/shm").is_ok() {
            assert!(!of("/dev/shm").leaves_trace || of("/dev/shm").kind != "tmpfs");
        }
    }

    #[test]
    fn the_type_of_a_mount_is_found_by_its_device() {
        let table = "22 1 254:0 / / rw - ext4 /dev/root rw\n40 22 0:51 / /mnt rw shared:1 - fuse.sshfs host:/srv rw\n";
        let of = |major, minor| mounted_in(table, rustix::fs::makedev(major, minor));
        assert_eq!(of(254, 0), Some("ext4 /dev/root rw"));
        assert_eq!(of(0, 51), Some("fuse.sshfs host:/srv rw"));
        assert_eq!(of(0, 5), None);
    }

    #[test]
    fn mount_points_below_a_folder_are_found() {
        let table = b"22 1 254:0 / / rw - ext4 /dev/root rw\n\
            30 22 0:5 / /srv/proc rw,nosuid shared:4 - proc none rw\n\
            31 22 8:1 / /srv/with\\040blank rw - ext4 /dev/sda1 rw\n\
            32 22 8:2 / /srv/with\\040blank rw - xfs /dev/sda2 rw\n\
            33 22 8:2 / /srvother rw - xfs /dev/sda2 rw\n\
            34 22 8:2 / /srv rw - xfs /dev/sda2 rw\n";
        let found = |root: &str| {
            let mounts = mounts_in(table, root.as_bytes());
            let text = |mount: MountPoint| {
                format!("{} {} {}", String::from_utf8_lossy(&mount.path), mount.kind, mount.is_pseudo)
            };
            mounts.into_iter().map(text).collect::<Vec<_>>()
        };
        assert_eq!(found("/srv"), ["proc proc true", "with blank xfs false"]);
        assert_eq!(
            found("/"),
            ["srv xfs false", "srv/proc proc true", "srv/with blank xfs false", "srvother xfs false"]
        );
        assert!(found("/srv/proc").is_empty());
        assert!(mounts_below(Path::new("/")).iter().any(|mount| mount.path == b"proc" && mount.is_other));
    }

    #[test]
    fn a_device_number_decides_only_where_names_cannot() {
        assert!(is_same(("fsid:btrfs:1", 40), ("fsid:btrfs:1", 43)), "mounted again");
        assert!(!is_same(("fsid:btrfs:1", 40), ("fsid:btrfs:2", 40)), "another one under its number");
        assert!(is_same(("device:8:1", 2049), ("uuid:a-b", 2049)), "udev came later");
        assert!(!is_same(("device:8:1", 2049), ("uuid:a-b", 2050)));
        assert!(is_same(("device:8:1", 2049), ("device:8:1", 2049)));
    }
}
