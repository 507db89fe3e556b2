//! Folders that are no longer needed are moved aside, and removed only when room is needed.
//!
//! ext4 does not give an inode out again within a minute after its file was removed, and looks for another one for as long as
//! there are such inodes near by: creating 60 000 files right after 60 000 others were removed takes several times as long
//! as otherwise. Removing between the measurements would measure that, of whichever tool happens to come next.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result};

const PREFIX: &str = "discarded-";
/// Room that the next measurements need, in bytes.
const ROOM_BYTES: u64 = 25_000_000_000;
/// As long as ext4 avoids the inodes of removed files (RECENTCY_MIN of fs/ext4/ialloc.c), and a little.
const PAUSE: Duration = Duration::from_secs(65);

static NEXT: AtomicU64 = AtomicU64::new(0);

/// Moves a folder, if it is there, aside.
///
/// # Errors
///
/// When it cannot be moved.
pub fn discard(folder: &Path) -> Result<()> {
    if folder.exists() {
        let name = format!("{PREFIX}{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let aside = folder.parent().context("a folder is in a folder")?.join(name);
        fs::rename(folder, &aside).with_context(|| folder.display().to_string())?;
    }
    Ok(())
}

/// Removes what lies aside in these folders when room is short, and waits until that is forgotten.
///
/// # Errors
///
/// When something cannot be removed.
#[allow(clippy::disallowed_methods, reason = "the file system has no event for what is waited for")]
pub fn make_room(folders: &[&Path]) -> Result<()> {
    let stat = rustix::fs::statvfs(folders[0]).with_context(|| folders[0].display().to_string())?;
    if stat.f_bavail * stat.f_frsize >= ROOM_BYTES {
        return Ok(());
    }
    let mut removed = false;
    for folder in folders {
        for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(PREFIX) {
                let path = entry.path();
                fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
                removed = true;
            }
        }
    }
    if removed {
        rustix::fs::sync();
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_discarded_is_out_of_the_way() {
        let folder = tempfile::tempdir().expect("temp");
        let copy = folder.path().join("copy");
        for _ in 0..2 {
            fs::create_dir(&copy).expect("it is free again");
            discard(&copy).expect("discard");
        }
        discard(&copy).expect("nothing to discard");
        assert_eq!(fs::read_dir(folder.path()).expect("read").count(), 2);
    }
}
