//! The folder that a generation is restored into, and what must not be one.

use std::{
    ffi::OsStr,
    fs,
    io::{self, ErrorKind},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::RestoreError;
use crate::{
    confined::Folder,
    digest::RootDigest,
    durable::write_durable,
    error::{IoContext as _, PathError},
    id::GenerationNumber,
    manifest::Header,
};

/// Where files are put together, in the destination.
pub(super) const SCRATCH: &str = ".assay-restore";
/// What is being restored, in there.
const PLAN: &str = "plan.json";

/// A destination that may be written to.
#[derive(Debug)]
pub struct Destination {
    path: PathBuf,
    pub(super) root: Folder,
    pub(super) scratch: Folder,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Plan {
    generation: GenerationNumber,
    root_digest: String,
}

/// What the operator allows.
#[derive(Debug, Clone, Default)]
pub struct Allowed {
    /// The destination may have content.
    pub onto_existing: bool,
    /// This live root may be written over.
    pub over_live_root: Option<PathBuf>,
}

impl Destination {
    /// Opens `path`, which is created when it is not there, for this generation.
    ///
    /// # Errors
    /// [`RestoreError::Refused`] for a folder that something else lives in, unless `allowed` names it.
    pub fn open(
        path: &Path,
        header: &Header,
        generation: GenerationNumber,
        root_digest: RootDigest,
        allowed: &Allowed,
    ) -> Result<Self, RestoreError> {
        let refused = |why: String| RestoreError::Refused { path: path.to_owned(), why };
        let parent = path.parent().filter(|_| path.is_absolute());
        let (Some(parent), Some(name)) = (parent, path.file_name()) else {
            return Err(refused(
                "a destination is an absolute path of a folder, not the root of the file system".to_owned(),
            ));
        };
        let parent = fs::canonicalize(parent).at("find", parent)?;
        let path = parent.join(name);
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_symlink() => {
                return Err(refused("it is a symbolic link; name the folder that it points at".to_owned()));
            }
            Ok(found) if !found.is_dir() => return Err(refused("it is no folder".to_owned())),
            _ => {}
        }
        if let Some(store) = path.ancestors().find(|folder| is_store(folder)) {
            return Err(refused(format!("it is in {}, where sealed generations are kept", store.display())));
        }
        let empty = is_empty(&path)?;
        let begun = path.join(SCRATCH).join(PLAN);
        let plan = Plan { generation, root_digest: root_digest.to_string() };
        let taken_up = match fs::read(&begun) {
            Ok(bytes) => serde_json::from_slice::<Plan>(&bytes).is_ok_and(|begun| begun == plan),
            Err(_) => false,
        };
        if !empty {
            if let Some(live) = live_root(&path, header)
                && allowed.over_live_root.as_deref() != Some(live.as_path())
            {
                return Err(refused(format!(
                    "{} is where the live repository is, and is not empty: stop the server, and say --over-live-root {0}",
                    live.display()
                )));
            }
            if !taken_up && !allowed.onto_existing {
                return Err(refused(
                    "it is not empty: name a new folder, or say --onto-existing to put right what differs in this one".to_owned(),
                ));
            }
        }
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            made => made.at("create", &path)?,
        }
        let root = Folder::open(&path).at("open", &path)?;
        let scratch_path = path.join(SCRATCH);
        let at =
            |result: io::Result<Folder>| -> Result<Folder, PathError> { result.at("open", &scratch_path) };
        let scratch = if taken_up {
            at(root.open_folder(SCRATCH.as_bytes()))?
        } else {
            match root.remove_all(SCRATCH.as_bytes()) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(at(Err(error)).expect_err("it is one").into());
                }
                _ => {}
            }
            let scratch = at(root.create_folder(SCRATCH.as_bytes()))?;
            let text = serde_json::to_vec(&plan).expect("numbers and text");
            write_durable(&begun, &text, 0o600)?;
            scratch
        };
        Ok(Self { path, root, scratch })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes all of it durable, and clears away what helped to put it together.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn finish(&self) -> Result<(), RestoreError> {
        let before = self.root.stat_self().at("look at", &self.path)?;
        self.root.remove_all(SCRATCH.as_bytes()).at("remove", &self.path.join(SCRATCH))?;
        // The folder has had its time, and has just lost a name.
        self.root.set_own_times(&before).at("set the times of", &self.path)?;
        Ok(self.root.sync_file_system().at("flush", &self.path)?)
    }

    /// The same for a restore that lacks something: it can be taken up.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn flush(&self) -> Result<(), RestoreError> {
        Ok(self.root.sync_file_system().at("flush", &self.path)?)
    }
}

fn is_empty(path: &Path) -> Result<bool, PathError> {
    match fs::read_dir(path) {
        Ok(mut names) => Ok(names.next().is_none()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error).at("read", path),
    }
}

/// The folder of a repository in some target's store.
fn is_store(folder: &Path) -> bool {
    ["generations", "ledger", "staging"].iter().all(|name| folder.join(OsStr::new(name)).is_dir())
}

/// The live root that `path` is, lies in or holds. A live root that is a link is where it points.
fn live_root(path: &Path, header: &Header) -> Option<PathBuf> {
    header.roots.iter().map(|root| PathBuf::from(&root.live_path)).find(|live| {
        let real = fs::canonicalize(live).unwrap_or_else(|_| live.clone());
        path.starts_with(&real) || real.starts_with(path)
    })
}
