//! An entry that is held, whatever becomes of its name meanwhile: what is learnt of it is about one and the same thing.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
};

use rustix::fs::{self, Mode, OFlags, Stat};

use super::{Folder, component};
use crate::manifest::ExtendedAttribute;

/// A link, FIFO, device, folder or file that is held by a descriptor which neither reads nor writes it.
#[derive(Debug)]
pub struct Node(OwnedFd);

impl Folder {
    /// Holds what `name` in this folder is now. A link is held itself, and FIFOs and devices are not touched.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn hold(&self, name: &[u8]) -> io::Result<Node> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Node(fs::openat(&self.0, component(name)?, flags, Mode::empty())?))
    }
}

impl Node {
    /// What it is.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn stat(&self) -> io::Result<Stat> {
        Ok(fs::fstat(&self.0)?)
    }

    /// The text of a symbolic link.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn read_link(&self) -> io::Result<Vec<u8>> {
        Ok(fs::readlinkat(&self.0, "", Vec::new())?.into_bytes())
    }

    /// Its extended attributes, as [`xattrs_of`] gives them.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn xattrs(&self) -> io::Result<Vec<ExtendedAttribute>> {
        xattrs_of(&self.0)
    }
}

/// The extended attributes of what a descriptor holds, as [`Folder::xattrs`] has them. The descriptor may be one that reads nothing.
///
/// # Errors
/// As the kernel says; none for a file system without such attributes.
pub fn xattrs_of(held: impl AsFd) -> io::Result<Vec<ExtendedAttribute>> {
    // The kernel takes no descriptor that was opened for nothing, but takes its path, and does not follow a link that it holds.
    super::metadata::xattrs_at(
        format!("/proc/self/fd/{}", held.as_fd().as_raw_fd()).as_ref(),
        super::metadata::Follow::Held,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::FileType;

    /// The name is another thing's by the time that it is looked at.
    #[test]
    fn what_is_held_stays_what_it_was() {
        let folder = tempfile::tempdir().expect("temp");
        let path = folder.path().join("name");
        let held = Folder::open(folder.path()).expect("open");
        std::os::unix::fs::symlink("first", &path).expect("symlink");
        let link = held.hold(b"name").expect("held");
        std::fs::remove_file(&path).expect("remove");
        std::fs::write(&path, "a file").expect("write");
        let kind = |node: &Node| FileType::from_raw_mode(node.stat().expect("stat").st_mode);
        assert_eq!(kind(&link), FileType::Symlink);
        assert_eq!(link.read_link().expect("its text"), b"first");
        assert!(link.xattrs().expect("attributes").is_empty());
        let file = held.hold(b"name").expect("held");
        assert_eq!(kind(&file), FileType::RegularFile);
        assert!(file.read_link().is_err());
        fs::setxattr(&path, "user.a", b"1", fs::XattrFlags::empty()).expect("xattr");
        std::fs::remove_file(&path).expect("remove");
        std::fs::write(&path, "another").expect("write");
        let attributes = file.xattrs().expect("attributes");
        assert_eq!(attributes.iter().map(|it| it.name.as_slice()).collect::<Vec<_>>(), [b"user.a"]);
        assert!(held.hold(b"../name").is_err());
        assert!(held.hold(b"nothing").is_err());
    }
}
