//! Random work beside that of [`crate::nasty`]: what leaves little trace, or none where times are coarse.

use std::{
    fs::{self, File},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::{FileExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    process::Command,
};

use rand::{Rng as _, rngs::StdRng};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, Mode, OFlags, Timespec, Timestamps, XattrFlags, fallocate, ioctl_ficlone,
    linkat, lremovexattr, lsetxattr, openat, utimensat,
};

use crate::{
    mapped::{MAPPINGS, Mapper},
    nasty, noise,
};

/// The capability to bind low ports, as the kernel keeps it: revision 2, effective.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// One piece of random work somewhere below `root`.
pub(crate) fn edit(root: &Path, random: &mut StdRng, mapper: &mut Mapper) {
    if random.random_range(0..3) == 0 {
        return nasty::edit(root, random);
    }
    let entries = nasty::below(root);
    let of = |keep: fn(&fs::Metadata) -> bool, random: &mut StdRng| -> Option<PathBuf> {
        let some: Vec<_> =
            entries.iter().filter(|path| path.symlink_metadata().is_ok_and(|it| keep(&it))).collect();
        (!some.is_empty()).then(|| some[random.random_range(0..some.len())].clone())
    };
    let (file, other) = (of(fs::Metadata::is_file, random), of(fs::Metadata::is_file, random));
    let folder = of(fs::Metadata::is_dir, random).unwrap_or_else(|| root.to_owned());
    let new = folder.join(format!("n{}", random.random_range(0..40)));
    let key = random.random_range(0..MAPPINGS);
    let (at, data) = (random.random_range(0..300_000), noise(random.random(), random.random_range(1..2000)));
    match (random.random_range(0..20), file) {
        (0, _) => acl(&["-m", "d:u:1234:rwx,d:g:7:r-x,u:5:rw"], &folder),
        (1, _) => acl(&["-k"], &folder),
        (2, Some(file)) => acl(&["-m", &format!("u:{}:r", random.random_range(1..4))], &file),
        (3, Some(file)) => acl(&["-b"], &file),
        (4, Some(file)) => {
            lsetxattr(file, "security.capability", &CAPABILITY, XattrFlags::empty()).expect("capability");
        }
        (5, Some(file)) => {
            // It may have none.
            lremovexattr(file, "security.capability").ok();
        }
        (6, Some(file)) => {
            let name = ["trusted.a", "trusted.b", "trusted.c"][random.random_range(0..3)];
            lsetxattr(file, name, &data[..data.len().min(200)], XattrFlags::empty()).expect("xattr");
        }
        (7..=8, Some(file)) => mapper.map(key, &file),
        (9..=11, _) => mapper.write(key, at, &data),
        (12, _) => mapper.sync(key),
        (13, _) => mapper.drop_mapping(key),
        // Written to, and its time set back.
        (14, Some(file)) => {
            let stat = file.metadata().expect("stat");
            File::options()
                .write(true)
                .open(&file)
                .expect("open")
                .write_all_at(&data, at % 5000)
                .expect("write");
            let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
            let times = Timestamps {
                last_access: time(stat.atime(), stat.atime_nsec()),
                last_modification: time(stat.mtime(), stat.mtime_nsec()),
            };
            utimensat(CWD, &file, &times, AtFlags::empty()).expect("utimens");
        }
        // Cut off and written again to the same length, within a tick of the clock.
        (15, Some(file)) => {
            let length = file.metadata().expect("stat").len().min(300_000);
            let data = noise(random.random(), usize::try_from(length).expect("small"));
            // Without O_CREAT: in a sticky folder the kernel refuses it for a file of somebody else, even to root.
            File::options()
                .write(true)
                .truncate(true)
                .open(&file)
                .expect("open")
                .write_all_at(&data, 0)
                .expect("write");
        }
        // Holes come, and content moves, below the same times of a tick.
        (16, Some(file)) => {
            let file = File::options().write(true).open(file).expect("open");
            let length = file.metadata().expect("stat").len();
            let (from, size) = (at % 20 * 4096, 4096 * random.random_range(1..5));
            let kind = match random.random_range(0..3) {
                0 => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                1 if from + size < length => FallocateFlags::COLLAPSE_RANGE,
                1 => FallocateFlags::empty(),
                _ => FallocateFlags::ZERO_RANGE,
            };
            // Not every file system knows all of them.
            fallocate(&file, kind, from, size).ok();
        }
        // The blocks of another file, where the file system can.
        (17, Some(file)) => {
            let from = other.map(|other| File::open(other).expect("open"));
            let to = File::options().write(true).open(file).expect("open");
            from.and_then(|from| ioctl_ficlone(to.as_fd(), from.as_fd()).ok());
        }
        // A file that had no name while it was written.
        (18, _) => {
            nasty::remove(&new);
            let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
            if let Ok(file) = openat(CWD, &folder, flags, Mode::from_raw_mode(0o640)) {
                let file = File::from(file);
                file.write_all_at(&data, 0).expect("write");
                let from = format!("/proc/self/fd/{}", file.as_raw_fd());
                linkat(CWD, from, CWD, &new, AtFlags::SYMLINK_FOLLOW).expect("link");
            }
        }
        // A name of a file with several is replaced.
        (19, Some(file)) => {
            let beside = file.with_file_name(".new");
            fs::write(&beside, &data).expect("write");
            if random.random() && !new.is_dir() {
                nasty::remove(&new);
                fs::hard_link(&beside, &new).expect("link");
            }
            fs::rename(beside, file).expect("rename");
        }
        _ => {}
    }
}

fn acl(arguments: &[&str], path: &Path) {
    let done = Command::new("setfacl").args(arguments).arg(path).status();
    assert!(done.is_ok_and(|done| done.success()), "setfacl {arguments:?} {}", path.display());
}
