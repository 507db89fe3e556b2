//! File systems of their own on loop devices: to lose their power, and to fill up.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::judge::mounts_below;

/// A kind of file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Ext4,
    Xfs,
    Btrfs,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Btrfs];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "XFS",
            Self::Btrfs => "btrfs",
        }
    }

    /// Bytes of its image, which is mostly holes: as few as the kind takes.
    fn bytes(self) -> u64 {
        match self {
            Self::Ext4 => 640 << 20,
            Self::Xfs => 480 << 20,
            Self::Btrfs => 400 << 20,
        }
    }

    fn make(self, image: &Path) {
        let image = image.to_str().expect("a plain path");
        let made = match self {
            // Everything is written at once: nothing goes on in the kernel afterwards. Nothing is kept back for root.
            Self::Ext4 => run(
                "mkfs.ext4",
                &["-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", image],
            ),
            Self::Xfs => run("mkfs.xfs", &["-q", "-f", image]),
            Self::Btrfs => run("mkfs.btrfs", &["-q", "-f", image]),
        };
        drop(made);
    }
}

/// Runs a command that must succeed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}: it is installed by ./test"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A mounted file system, which goes away with this.
pub(crate) struct Disk {
    folder: PathBuf,
    mounted_at: PathBuf,
    device: String,
    image: PathBuf,
    cuts: u64,
}

impl Disk {
    /// Makes one, and mounts it at `at`. Its image is in `folder`.
    pub(crate) fn mount(folder: &Path, kind: Kind, at: &Path) -> Self {
        Self::mount_sized(folder, kind, at, kind.bytes())
    }

    /// The same, of a size.
    pub(crate) fn mount_sized(folder: &Path, kind: Kind, at: &Path, bytes: u64) -> Self {
        let image = folder.join("disk-0.img");
        fs::File::create(&image).and_then(|file| file.set_len(bytes)).expect("an image");
        kind.make(&image);
        fs::create_dir_all(at).expect("mkdir");
        let mut disk = Self {
            folder: folder.to_owned(),
            mounted_at: at.to_owned(),
            device: String::new(),
            image,
            cuts: 0,
        };
        disk.attach();
        disk
    }

    fn attach(&mut self) {
        let image = self.image.to_str().expect("a plain path");
        self.device = run("losetup", &["--find", "--show", image]).trim().to_owned();
        // Mounting replays the journal, or fails.
        run("mount", &[&self.device, self.mounted_at.to_str().expect("a plain path")]);
    }

    fn detach(&mut self) {
        for mount in mounts_below(&self.mounted_at).into_iter().rev() {
            drop(Command::new("umount").arg("--lazy").arg(mount).output());
        }
        let start = std::time::Instant::now();
        // Until the last process that was killed has let go, and the sandbox of a check, which has mounts of its own.
        let umount = || Command::new("umount").arg(&self.mounted_at).output();
        let mut is_mounted = true;
        loop {
            is_mounted = is_mounted && !umount().is_ok_and(|done| done.status.success());
            if !is_mounted && self.is_free() {
                break;
            }
            assert!(start.elapsed().as_secs() < 120, "{} cannot be unmounted", self.mounted_at.display());
            std::thread::park_timeout(std::time::Duration::from_millis(5));
        }
        run("losetup", &["--detach", &self.device]);
        self.device.clear();
    }

    /// True when nobody has the device mounted, in whatever namespace.
    fn is_free(&self) -> bool {
        use rustix::fs::{Mode, OFlags, open};
        open(self.device.as_str(), OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC, Mode::empty()).is_ok()
    }

    /// Requests that the kernel has sent to the device and seen done, and those that it waits for.
    fn writes(&self) -> (String, String) {
        let name = self.device.trim_start_matches("/dev/");
        let stat = fs::read_to_string(format!("/sys/block/{name}/stat")).expect("counts of the device");
        let field = |number| stat.split_whitespace().nth(number).expect("a count").to_owned();
        (field(4), field(8))
    }

    /// Takes what is on the disk at this moment: all that the kernel has written to it, and nothing that it still holds in
    /// memory. Nobody may write to the file system meanwhile; the kernel itself may, and then the copy is made again, because
    /// one that was written to while it was read would be of no moment at all.
    pub(crate) fn snapshot(&self) -> PathBuf {
        let copy = self.folder.join(format!("disk-{}.img", self.cuts + 1));
        for _ in 0..200 {
            let before = self.writes();
            run(
                "cp",
                &[
                    "--reflink=never",
                    "--sparse=always",
                    &self.image.display().to_string(),
                    &copy.display().to_string(),
                ],
            );
            if before.1 == "0" && before == self.writes() {
                return copy;
            }
        }
        panic!("the kernel does not stop writing");
    }

    /// Puts a snapshot in the place of the disk: the power is back. Nobody may use the file system now.
    pub(crate) fn cut_to(&mut self, snapshot: PathBuf) {
        self.detach();
        fs::remove_file(&self.image).expect("the image");
        self.image = snapshot;
        self.cuts += 1;
        self.attach();
    }

    /// Free bytes for anybody.
    pub(crate) fn free_bytes(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.mounted_at).expect("mounted");
        stat.f_bavail * stat.f_frsize
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if std::thread::panicking() {
            drop(Command::new("umount").arg("--lazy").arg(&self.mounted_at).output());
            drop(Command::new("losetup").args(["--detach", &self.device]).output());
        } else if !self.device.is_empty() {
            self.detach();
        }
        drop(fs::remove_file(&self.image));
    }
}
