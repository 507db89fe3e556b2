//! Takes a sealed generation back into a folder: a new one, or one whose content is damaged, of which only what is wrong is
//! fetched and replaced.
//!
//! Nothing that comes from the other side is believed. The manifest counts when it has the root digest that the verdict names, and
//! it is validated as a whole before the first write; a piece of content counts when it has the digest that the manifest names.
//! A file is put together under a name of its own in `.assay-restore` and takes the place of the old one by a rename, so that what
//! stands in the destination is at every moment either what was there or what was sealed. Links are data: none is followed.
//!
//! The work goes through three stages that run beside each other:
//!
//! ```text
//! compare ──wants──► supply (the target, or the store on this host)
//!    └──jobs──► apply ◄──parts──┘
//! ```
//!
//! What was cut off is taken up by the same command: what is right already is found right, and the pieces of the file that was
//! being put together are found in `.assay-restore`.

mod ahead;
mod apply;
mod compare;
mod destination;
mod fit;
mod manifest;
mod part;
mod supply;

use std::{io, path::PathBuf};

use crate::fidelity::LeftOut;

use crate::{
    error::{PathError, without_codes},
    id::GenerationNumber,
    manifest::{DeltaFault, ManifestError},
    path::TreePath,
};

use destination::SCRATCH;
pub use destination::{Allowed, Destination};
pub use fit::Misfit;
pub use manifest::{Checked, Entries, Selection};
pub use supply::{MAX_PART_BYTES, Part, Pieces, SupplyError, Want};

/// What the operator wants.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Only these, and what is in them; everything when there is none.
    pub paths: Vec<TreePath>,
    /// What the destination has beyond the generation goes.
    pub delete: bool,
    /// Attributes that are not needed: names, or beginnings of names with `*` behind them.
    pub ignore_attributes: Vec<String>,
    /// A time that the destination's file system cannot hold becomes the nearest that it can.
    pub clamp_times: bool,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Entries that were done, of those that were asked for.
    pub entries: u64,
    /// Content that is in place, in bytes, fetched or found right.
    pub bytes: u64,
    /// Content that was fetched, in bytes.
    pub fetched_bytes: u64,
}

/// What the name of a file that was set aside ends with.
const SET_ASIDE: &str = ".before-restore";

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// How much.
    pub progress: Progress,
    /// Files whose content was right already.
    pub files_right: u64,
    /// Files that were put together anew.
    pub files_made: u64,
    /// Entries that lack more than their owner and group, which only root can restore: a set-user-id bit, an attribute of the system.
    pub beyond_user: u64,
    /// What the restored entries lack, one of each kind with an example.
    pub left_out: Vec<LeftOut>,
    /// Names that the generation does not have, and that went.
    pub deleted: u64,
    /// Names that the generation does not have, and that were left.
    pub left_over: u64,
    /// Files that SQLite would have applied to a database that was restored beside them, and what they are called now.
    pub set_aside: Vec<(TreePath, TreePath)>,
    /// Entries that are not restored: their content is not on the target as it was sealed, or the destination does not take them. They are
    /// as they were before. The first hundred, with the reason.
    pub lost: Vec<(TreePath, String)>,
    /// All of them.
    pub lost_files: u64,
}

/// Why it cannot go on. What had been done by then is there, and right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The manifest is not the one that the verdict is about.
    #[error("the manifest that came has not the root digest that is vouched for: nothing was written")]
    OtherManifest,
    /// The manifest breaks a rule.
    #[error("the manifest is refused: {0}: nothing was written")]
    Manifest(#[from] ManifestError),
    /// Its entries do not make a tree.
    #[error("the manifest is refused: {0}: nothing was written")]
    Tree(#[from] DeltaFault),
    /// A path that was asked for.
    #[error("generation {generation} has no {path}: nothing was written")]
    NoSuchPath {
        /// As asked for.
        path: TreePath,
        /// Of it.
        generation: GenerationNumber,
    },
    /// A further name of a file is asked for, and its first name is not.
    #[error("{path} is a further name of {first}, which is not asked for: nothing was written")]
    LinkWithoutFirst {
        /// As asked for.
        path: TreePath,
        /// The name that the content has in the manifest.
        first: TreePath,
    },
    /// The tree has an entry where files are put together.
    #[error(
        "the generation has a {SCRATCH} of its own, where this restore puts files together: nothing of it was written"
    )]
    Scratch,
    /// The destination must not be written to.
    #[error("{}: {why}", path.display())]
    Refused {
        /// The destination.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The file system of the destination cannot hold entries as they are.
    #[error("{}: {}", path.display(), misfits(named, *all))]
    Misfit {
        /// The destination.
        path: PathBuf,
        /// The first of them.
        named: Vec<Misfit>,
        /// How many there are.
        all: u64,
    },
    /// Something of the destination.
    #[error("{path}: {}", without_codes(&source.to_string()))]
    Entry {
        /// Below the destination.
        path: TreePath,
        /// What the file system said.
        source: io::Error,
    },
    /// A file of this host.
    #[error(transparent)]
    Io(#[from] PathError),
    /// What should give the content does not.
    #[error(transparent)]
    Supply(#[from] SupplyError),
}

impl crate::error::Hint for RestoreError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::OtherManifest | Self::Manifest(_) | Self::Tree(_) => {
                "the target's copy of this generation is damaged, or the target is not what it was: restore another generation, and look \
                 at the target"
                    .to_owned()
            }
            Self::NoSuchPath { .. } => {
                "paths are relative to the tree: the manifest.b3 beside it on the target lists its files".to_owned()
            }
            Self::Scratch => "an interrupted restore into the live folder has left it: copy the generation's tree with rsync -aHAX, or \
                              restore what you need with --path"
                .to_owned(),
            Self::Misfit { .. } => "restore to a file system that holds it, leave it out (--ignore-attribute NAME, --clamp-times), or name \
                                    what you need with --path"
                .to_owned(),
            Self::LinkWithoutFirst { first, .. } => format!("say --path {first} too"),
            Self::Entry { source, .. } if source.raw_os_error() == Some(rustix::io::Errno::NOSPC.raw_os_error()) => {
                "make room and run the same command again: what is there already is not fetched again".to_owned()
            }
            Self::Entry { source, .. } | Self::Io(PathError { source, .. })
                if source.kind() == io::ErrorKind::ReadOnlyFilesystem =>
            {
                "the destination is on a file system that is mounted read-only: name a folder that can be written to".to_owned()
            }
            Self::Entry { source, .. }
                if source.kind() == io::ErrorKind::PermissionDenied && rustix::process::geteuid().is_root() =>
            {
                "look for an attribute that keeps it as it is (lsattr shows i or a; chattr -i -a takes it away), then run the same command \
                 again"
                    .to_owned()
            }
            Self::Entry { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "this user may not write there: name another folder, or run the restore as root".to_owned()
            }
            Self::Supply(SupplyError::Cut(_)) => {
                "run the same command again: what is there already is not fetched again".to_owned()
            }
            _ => return None,
        })
    }
}

fn misfits(named: &[Misfit], all: u64) -> String {
    let list: Vec<_> = named.iter().map(|misfit| format!("{} {}", misfit.path, misfit.what)).collect();
    let list = list.join("; ");
    match all {
        1 => format!("{list}: nothing was written"),
        _ => format!("{all} entries cannot be restored as they are, among them: {list}: nothing was written"),
    }
}

fn entry_error(path: &TreePath) -> impl FnOnce(io::Error) -> RestoreError + '_ {
    |source| RestoreError::Entry { path: path.clone(), source }
}

/// Holds what `options` ask for against what the destination's file system holds, and against what this user may do. Returns what the
/// restored entries will lack because of this user: nothing for root.
///
/// # Errors
/// [`RestoreError::Misfit`], before anything but the folder for parts was made.
pub fn preflight(
    destination: &Destination,
    checked: &Checked,
    options: &Options,
) -> Result<(u64, Vec<LeftOut>), RestoreError> {
    let mut fit = fit::Fit::new(destination, options)?;
    fit.check(destination.path(), checked, &options.paths)?;
    Ok((fit.beyond_user(), fit.left_out()))
}

/// Restores what `options` ask for from the checked manifest into the destination. `wants` goes to the supply, `parts` comes from it;
/// `progress` hears how far it is, often. Blocks; to be called on a thread that may.
///
/// # Errors
/// [`RestoreError`]. Files that the target has lost are no error: they are in the report.
pub fn restore(
    destination: &Destination,
    checked: &Checked,
    options: &Options,
    wants: tokio::sync::mpsc::Sender<Want>,
    parts: tokio::sync::mpsc::Receiver<Result<Part, SupplyError>>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, RestoreError> {
    let fit = fit::Fit::new(destination, options)?;
    let (jobs_out, jobs_in) = std::sync::mpsc::sync_channel(apply::JOBS_AHEAD);
    std::thread::scope(|scope| {
        let comparing =
            scope.spawn(move || compare::compare(destination, checked, options, &wants, &jobs_out));
        let applied = apply::apply((destination, fit), options, jobs_in, Pieces::new(parts), progress);
        let compared = comparing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // Of two errors the first cause is the one of the stage whose channel was not closed by the other.
        match (compared, applied) {
            (Err(error), _) | (Ok(()), Err(error)) => Err(error),
            (Ok(()), Ok(report)) => Ok(report),
        }
    })
}

#[cfg(test)]
mod tests;
