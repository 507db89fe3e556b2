//! File systems of a test's own, in files, mounted where its folders are. They need root, as the agents' fidelity does.

use std::{
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
}

/// A mounted file system. It is unmounted when this is dropped.
#[derive(Debug)]
pub(crate) struct Mounted(PathBuf);

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
            return Self(at.to_owned());
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
            Kind::Tmpfs => unreachable!("it has no image"),
        };
        run(program, &[options, &[image]].concat());
        run("mount", &["-o", "loop", image, place]);
        Self(at.to_owned())
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
