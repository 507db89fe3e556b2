//! Whether the target takes an entry as it is: asked before its content is read.

use std::io::ErrorKind;

use assay_common::{
    manifest::{Entry, EntryKind},
    path::TreePath,
};
use rustix::fs::{FileType, Stat};

use super::{
    Plan, ReplicateError,
    scan::{Found, ScanError},
};

/// Looks at everything of `found` but its content.
///
/// # Errors
/// When the target would not take it, or it cannot be read.
pub(super) fn look(plan: &Plan, found: &Found) -> Result<(), ReplicateError> {
    count_name(plan, found)?;
    if let Some(mut entry) = whole(found)? {
        plan.filter.apply(&mut entry)?;
    }
    Ok(())
}

/// Counts the names of files that have more of them than the target holds.
pub(super) fn count_name(plan: &Plan, found: &Found) -> Result<(), ReplicateError> {
    if let Some((file, names)) = found.stat.as_ref().and_then(names) {
        plan.filter.count_name(file, names, found.path.as_bytes())?;
    }
    Ok(())
}

/// Device and inode, and how many names there are; `None` for a folder, and for what has one.
pub(super) fn names(stat: &Stat) -> Option<((u64, u64), u64)> {
    let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    #[allow(clippy::useless_conversion, reason = "it is shorter on other processors")]
    (!is_folder && stat.st_nlink > 1).then(|| ((stat.st_dev, stat.st_ino), u64::from(stat.st_nlink)))
}

/// The entry of `found` with its attributes and its length, without content; `None` when it is gone.
pub(super) fn whole(found: &Found) -> Result<Option<Entry>, ScanError> {
    match found.look() {
        Ok(mut entry) => {
            if let (EntryKind::File, Some(stat)) = (entry.kind(), &found.stat) {
                entry.size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
            }
            Ok(Some(entry))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ScanError::Entry { path: TreePath::short(&found.path), source }),
    }
}

/// Whether the basis has the entry as this plan's filter would make it. What has not changed is looked at when the basis was filtered
/// otherwise, else its own attributes tell.
pub(super) fn is_as_filtered(plan: &Plan, found: &Found, old: &Entry) -> Result<bool, ReplicateError> {
    if !plan.filter.is_as_filtered(old) {
        return Ok(false);
    }
    if !plan.filtered_otherwise || old.kind() == EntryKind::Hardlink {
        return Ok(true);
    }
    let Some(mut entry) = whole(found)? else { return Ok(false) };
    plan.filter.apply(&mut entry)?;
    let time = |entry: &Entry| (entry.mtime_seconds, entry.mtime_nanos);
    Ok(entry.xattrs == old.xattrs && time(&entry) == time(old))
}
