//! File systems of a test's own, in files, mounted where its folders are. They need root, as the agents' fidelity does.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
};

/// A kind of file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// As mkfs makes it.
    Ext4,
    /// With inodes of 128 bytes: whole seconds, up to 2038.
    Ext4Small,
    Xfs,
    Btrfs,
    Tmpfs,
    /// By FUSE: no owners, no modes, no links, times of two seconds at best and none of change, and names in any case are one.
    ExFat,
}

/// A mounted file system. It is unmounted when this is dropped.
#[derive(Debug)]
pub(crate) struct Mounted(PathBuf, Option<LoopDevice>);

/// A device that the test itself has to give back.
#[derive(Debug)]
struct LoopDevice(String);

impl LoopDevice {
    fn of(image: &str) -> Self {
        let done = Command::new("losetup").args(["--find", "--show", image]).output();
        let done = done.expect("losetup comes with mount");
        assert!(done.status.success(), "losetup {image}: {}", String::from_utf8_lossy(&done.stderr));
        Self(String::from_utf8_lossy(&done.stdout).trim().to_owned())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        drop(Command::new("losetup").args(["-d", &self.0]).output());
    }
}

fn run(program: &str, arguments: &[&str]) {
    let done = Command::new(program).args(arguments).output();
    let done = done.unwrap_or_else(|error| panic!("{program}: {error}; ./test installs it"));
    assert!(done.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

impl Mounted {
    /// Makes a file system in a sparse file beside `at`, and mounts it there.
    pub(crate) fn new(kind: Kind, at: &Path) -> Self {
        std::fs::create_dir_all(at).expect("mkdir");
        let place = at.to_str().expect("a plain path");
        if kind == Kind::Tmpfs {
            run("mount", &["-t", "tmpfs", "-o", "size=300m", "assay-test", place]);
            return Self(at.to_owned(), None);
        }
        let image = at.with_extension("img");
        let file = std::fs::File::create(&image).expect("create");
        file.set_len(600 << 20).expect("length");
        let image = image.to_str().expect("a plain path");
        let (program, options): (&str, &[&str]) = match kind {
            Kind::Ext4 => ("mkfs.ext4", &["-q", "-F"]),
            Kind::Ext4Small => ("mkfs.ext4", &["-q", "-F", "-I", "128"]),
            Kind::Xfs => ("mkfs.xfs", &["-q", "-f"]),
            Kind::Btrfs => ("mkfs.btrfs", &["-q", "-f"]),
            Kind::ExFat => ("mkfs.exfat", &[]),
            Kind::Tmpfs => unreachable!("it has no image"),
        };
        run(program, &[options, &[image]].concat());
        if kind == Kind::ExFat {
            let device = LoopDevice::of(image);
            run("mount.exfat-fuse", &[&device.0, place]);
            return Self(at.to_owned(), Some(device));
        }
        run("mount", &["-o", "loop", image, place]);
        Self(at.to_owned(), None)
    }
}

impl Mounted {
    /// Unmounts it, lets `work` have its image, and mounts it again.
    pub(crate) fn remount(&self, work: impl FnOnce(&Path)) {
        let (place, image) = (self.0.to_str().expect("a plain path"), self.0.with_extension("img"));
        run("umount", &[place]);
        // The device keeps what it has read for as long as it is there.
        let is_attached = || {
            let done =
                Command::new("losetup").arg("-j").arg(&image).output().expect("losetup comes with mount");
            !done.stdout.is_empty()
        };
        let start = std::time::Instant::now();
        while is_attached() {
            assert!(start.elapsed().as_secs() < 60, "{} is still attached", image.display());
            std::thread::park_timeout(std::time::Duration::from_millis(20));
        }
        work(&image);
        run("mount", &["-o", "loop", image.to_str().expect("a plain path"), place]);
    }

    /// Where it is mounted.
    pub(crate) fn place(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let place = self.0.as_os_str();
        let done = Command::new("umount").arg(place).output();
        if !done.is_ok_and(|done| done.status.success()) {
            drop(Command::new("umount").arg("-l").arg(place).output());
        }
    }
}

/// Flips a byte of `file` on the block device below its file system, which is in `image`. The file system does not notice.
pub(crate) fn change_below(image: &Path, file: &Path, offset: u64) {
    File::open(file).and_then(|file| file.sync_all()).expect("sync");
    let done = Command::new("filefrag").arg("-v").arg(file).output();
    let done = done.unwrap_or_else(|error| panic!("filefrag: {error}; it comes with mkfs.ext4"));
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    // "Filesystem type is: ...", "File size of NAME is N (B blocks of 4096 bytes)", a head, then
    // "   0:        0..      24:      34816..     34840:     25:             last,eof".
    let numbers = |line: &str| -> Vec<u64> {
        line.split(|letter: char| !letter.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect()
    };
    let size = text.lines().find(|line| line.starts_with("File size of ")).and_then(|line| {
        line.rsplit_once(" of ").and_then(|(_, end)| end.split(' ').next()?.parse::<u64>().ok())
    });
    let size = size.unwrap_or_else(|| panic!("no size of blocks: {text}"));
    let place = text.lines().filter(|line| line.contains("..")).map(numbers).find_map(|extent| {
        let (first, last, on_disk) = (extent[1], extent[2], extent[3]);
        let block = offset / size;
        (first..=last).contains(&block).then(|| (on_disk + block - first) * size + offset % size)
    });
    let place = place.unwrap_or_else(|| panic!("{offset} is on no block: {text}"));
    let (mut on_disk, mut in_file) = ([0], [0]);
    let live = File::open(file).expect("open");
    live.read_exact_at(&mut in_file, offset).expect("read");
    let image = File::options().read(true).write(true).open(image).expect("open");
    image.read_exact_at(&mut on_disk, place).expect("read");
    assert_eq!(on_disk, in_file, "the byte is not where {text} says");
    image.write_all_at(&[on_disk[0] ^ 1], place).expect("write");
    forget(file);
    live.read_exact_at(&mut in_file, offset).expect("read");
    assert_ne!(on_disk, in_file, "the file is still in memory");
}

/// Lets the kernel forget what it has of a file in memory.
pub(crate) fn forget(file: &Path) {
    let file = File::open(file).expect("open");
    file.sync_all().expect("sync");
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("fadvise");
}
