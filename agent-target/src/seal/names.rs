//! A file may have a limited number of names (ext4: 65 000, btrfs: 65 535), and each generation that shares a file takes as many of them
//! as the tree has names for it. Before the names run out, a tree gets a file of its own; a run never ends for want of names.

use std::{io, os::unix::fs::FileExt as _};

use assay_common::{
    confined::{CannotHold, Folder},
    fidelity::most_names,
    manifest::{Entry, EntryKind},
};
use rustix::{
    fs::{FileType, Stat},
    io::Errno,
};

/// A name in `folder` that nothing has: a copy has it until it takes the place of what it is a copy of.
fn free_name(folder: &Folder) -> io::Result<Vec<u8>> {
    for number in 0..u32::MAX {
        let name = format!(".assay-own-file-{number}").into_bytes();
        match folder.stat(&name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(name),
            found => drop(found?),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// True when a file has as many names as its file system allows.
pub(super) fn is_full(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::MLINK.raw_os_error())
}

/// Makes under `name` in `new` what `base` has there, without its metadata.
pub(super) fn copy_special_or_file(
    base: &Folder,
    new: &Folder,
    name: &[u8],
    entry: &Entry,
) -> io::Result<()> {
    match entry.kind() {
        EntryKind::File => copy_file(base, name, new, name),
        _ => new.create_special(name, entry),
    }
}

/// Gives all names that the tree at `root` has for the file `name` in `folder` to a copy of it, which no other generation shares. Folders
/// keep their times.
pub(super) fn give_group_its_own_file(root: &Folder, folder: &Folder, name: &[u8]) -> io::Result<()> {
    let shared = folder.stat(name)?;
    let is_shared = |stat: &Stat| (stat.st_dev, stat.st_ino) == (shared.st_dev, shared.st_ino);
    let copy = free_name(root)?;
    let root_times = root.stat_self()?;
    let entry = described(folder, name, &shared)?;
    match entry.kind() {
        EntryKind::File => copy_file(folder, name, root, &copy)?,
        _ => root.create_special(&copy, &entry)?,
    }
    root.set_metadata(&copy, &entry)?;
    let replaced = for_each_folder(root, &mut |folder| {
        let times = folder.stat_self()?;
        let mut is_changed = false;
        for name in folder.names()? {
            if !is_shared(&folder.stat(&name)?) {
                continue;
            }
            // A link cannot take the place of a name in one step, and the tree is not sealed yet.
            folder.remove_file(&name)?;
            root.link(&copy, folder, &name).map_err(|error| match is_full(&error) {
                true => CannotHold(format!(
                    "the names of a file: the tree alone has more than {}",
                    shared.st_nlink
                ))
                .into(),
                false => error,
            })?;
            is_changed = true;
        }
        if is_changed { folder.set_own_times(&times) } else { Ok(()) }
    });
    let removed = root.remove_file(&copy);
    replaced?;
    removed?;
    root.set_own_times(&root_times)
}

/// The entry of a file that is in the tree already, as far as its metadata goes.
fn described(folder: &Folder, name: &[u8], stat: &Stat) -> io::Result<Entry> {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => EntryKind::File,
        FileType::Symlink => EntryKind::Symlink,
        FileType::Fifo => EntryKind::Fifo,
        FileType::Socket => EntryKind::Socket,
        FileType::CharacterDevice => EntryKind::CharDevice,
        FileType::BlockDevice => EntryKind::BlockDevice,
        _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no file")),
    };
    Ok(Entry {
        kind: kind.into(),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime_seconds: stat.st_mtime,
        mtime_nanos: stat.st_mtime_nsec as u32,
        device_major: rustix::fs::major(stat.st_rdev),
        device_minor: rustix::fs::minor(stat.st_rdev),
        link_target: if kind == EntryKind::Symlink { folder.read_link(name)? } else { Vec::new() },
        xattrs: folder.xattrs(name)?,
        ..Default::default()
    })
}

/// How many names the file `name` in `folder` has.
pub(super) fn count_names(folder: &Folder, name: &[u8]) -> io::Result<u64> {
    #[allow(clippy::useless_conversion, reason = "it is shorter on other processors")]
    Ok(u64::from(folder.stat(name)?.st_nlink))
}

/// Puts a copy of the file `name` in `folder`, with the metadata of `entry`, in its place, if fewer than `further` names of it would fit:
/// its other names stay as they are.
pub(crate) fn make_room_for_names(
    folder: &Folder,
    name: &[u8],
    entry: &Entry,
    further: u64,
) -> io::Result<()> {
    if count_names(folder, name)?.saturating_add(further) <= most_names(folder)? {
        return Ok(());
    }
    let copy = free_name(folder)?;
    copy_file(folder, name, folder, &copy)?;
    folder.set_metadata(&copy, entry)?;
    folder.open_file(&copy)?.sync_all()?;
    folder.replace(&copy, folder, name)
}

/// Calls `visit` for `root` and every folder below it, one descriptor a level.
fn for_each_folder(root: &Folder, visit: &mut dyn FnMut(&Folder) -> io::Result<()>) -> io::Result<()> {
    let folders = |folder: &Folder| {
        let mut folders = folder.names()?;
        folders.retain(|name| {
            folder.stat(name).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
        });
        Ok::<_, io::Error>(folders)
    };
    let root = root.try_clone()?;
    visit(&root)?;
    let inner = folders(&root)?;
    let mut levels = vec![(root, inner)];
    while let Some((folder, inner)) = levels.last_mut() {
        let Some(name) = inner.pop() else {
            levels.pop();
            continue;
        };
        let folder = folder.open_folder(&name)?;
        visit(&folder)?;
        let inner = folders(&folder)?;
        levels.push((folder, inner));
    }
    Ok(())
}

/// Copies the content of a file, holes included.
fn copy_file(base: &Folder, name: &[u8], new: &Folder, new_name: &[u8]) -> io::Result<()> {
    let (from, to) = (base.open_file(name)?, new.create_file(new_name)?);
    if rustix::fs::ioctl_ficlone(&to, &from).is_ok() {
        return Ok(());
    }
    to.set_len(from.metadata()?.len())?;
    let (mut offset, mut buffer) = (0, vec![0; 256 * 1024]);
    loop {
        let count = from.read_at(&mut buffer, offset)?;
        if count == 0 {
            return Ok(());
        }
        if buffer[..count].iter().any(|byte| *byte != 0) {
            to.write_all_at(&buffer[..count], offset)?;
        }
        offset += count as u64;
    }
}
