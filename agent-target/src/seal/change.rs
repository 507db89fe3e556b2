//! Turns a copy of the base's tree into the new one: what was dropped goes, what is new comes, and nothing else is touched.

use std::{collections::HashSet, io, sync::Arc};

use assay_common::{
    confined::Folder,
    error::IoContext as _,
    fidelity::most_names,
    manifest::{Entry, EntryKind, ManifestError},
    path::{TreePath, compare_paths},
};

use super::{
    PlannedEntries, SealError, Source,
    build::{Places, Trust},
    named,
};
use crate::store::{Staging, TREE};

/// A folder above the place where the walk stands.
struct Level {
    path: TreePath,
    entry: Entry,
    /// Opened when something in it changes.
    new: Option<Arc<Folder>>,
    base: Option<Folder>,
    /// Its entry, or something in it, has changed: it gets its metadata when the walk leaves it.
    touched: bool,
}

/// Walks the base's manifest, which `old` gives, beside the new one and changes `staging/N/tree` accordingly. `base` is
/// the base's own tree: what another name has to be given for is linked from there.
///
/// # Errors
/// Names the entry that cannot be changed.
pub(super) fn change_tree(
    staging: &Staging,
    base: Folder,
    trust: Trust,
    mut old: impl FnMut() -> Result<Option<Entry>, ManifestError>,
) -> Result<(), SealError> {
    let root_path = staging.path().join(TREE);
    let root = Arc::new(Folder::open(&root_path).at("open", &root_path)?);
    let most_names = most_names(&root).at("look at", &root_path)?;
    let (levels, replaced) = (Vec::new(), HashSet::new());
    let mut walk = Walk { staging, root, base, trust, most_names, levels, replaced, removed: None };
    let mut planned = PlannedEntries::open(staging)?;
    let (mut before, mut after) = (old()?, planned.next_entry()?);
    loop {
        let order = match (&before, &after) {
            (None, None) => break,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(before), Some((after, _))) => compare_paths(&before.path, &after.path),
        };
        let gone = if order.is_le() { std::mem::replace(&mut before, old()?) } else { None };
        let come = if order.is_ge() { std::mem::replace(&mut after, planned.next_entry()?) } else { None };
        match (gone, come) {
            (Some(gone), None) => walk.drop(&gone)?,
            (gone, Some((entry, source))) => walk.put(gone, entry, source)?,
            (None, None) => {}
        }
    }
    while !walk.levels.is_empty() {
        walk.leave()?;
    }
    Ok(())
}

struct Walk<'a> {
    staging: &'a Staging,
    root: Arc<Folder>,
    base: Folder,
    trust: Trust,
    most_names: u64,
    levels: Vec<Level>,
    /// Files that are others than before: hard links to them are made anew.
    replaced: HashSet<Vec<u8>>,
    /// The folder that was removed last, with all that was in it.
    removed: Option<Vec<u8>>,
}

impl Walk<'_> {
    /// Leaves the folders that `path` is not in.
    fn go_to(&mut self, path: &TreePath) -> Result<(), SealError> {
        let parent = path.parent();
        while self.levels.last().is_some_and(|level| Some(level.path.as_bytes()) != parent) {
            self.leave()?;
        }
        Ok(())
    }

    fn leave(&mut self) -> Result<(), SealError> {
        if !self.levels.last().is_some_and(|level| level.touched) {
            self.levels.pop();
            return Ok(());
        }
        let folder = self.open_last()?;
        let level = self.levels.pop().expect("the caller looked");
        folder.set_own_metadata(&level.entry).map_err(|source| named(&level.path, source))
    }

    /// The folder where the walk stands, in the new tree.
    fn open_last(&mut self) -> Result<Arc<Folder>, SealError> {
        let level = self.levels.last_mut().expect("every folder comes before what is in it");
        if let Some(folder) = &level.new {
            return Ok(Arc::clone(folder));
        }
        let folder = self.root.open_folder_below(&level.path).map_err(|source| named(&level.path, source))?;
        let folder = Arc::new(folder);
        level.new = Some(Arc::clone(&folder));
        Ok(folder)
    }

    fn drop(&mut self, gone: &Entry) -> Result<(), SealError> {
        let inside = |removed: &Vec<u8>| {
            gone.path.strip_prefix(removed.as_slice()).is_some_and(|rest| rest.starts_with(b"/"))
        };
        if self.removed.as_ref().is_some_and(inside) {
            return Ok(());
        }
        let path = TreePath::parse(&gone.path).expect("the base was validated");
        self.go_to(&path)?;
        self.remove(&path)?;
        if gone.kind() == EntryKind::Directory {
            self.removed = Some(gone.path.clone());
        }
        Ok(())
    }

    fn remove(&mut self, path: &TreePath) -> Result<(), SealError> {
        self.open_last()?.remove_all(path.name()).map_err(|source| named(path, source))?;
        self.levels.last_mut().expect("it was opened").touched = true;
        Ok(())
    }

    fn put(&mut self, gone: Option<Entry>, entry: Entry, source: Source) -> Result<(), SealError> {
        let path = TreePath::parse(&entry.path).expect("the draft was validated");
        self.go_to(&path)?;
        let is_folder = entry.kind() == EntryKind::Directory;
        let was_folder = gone.as_ref().is_some_and(|gone| gone.kind() == EntryKind::Directory);
        let new_link = entry.kind() == EntryKind::Hardlink && self.replaced.contains(&entry.link_target);
        let kept = source == Source::Base && !new_link;
        if kept && !is_folder {
            return Ok(());
        }
        if gone.is_some() && !(is_folder && was_folder) {
            self.remove(&path)?;
            if was_folder {
                self.removed = Some(entry.path.clone());
            }
        }
        if is_folder {
            let new = if was_folder || path.is_root() {
                None
            } else {
                let parent = self.open_last()?;
                self.levels.last_mut().expect("it was opened").touched = true;
                Some(Arc::new(parent.create_folder(path.name()).map_err(|source| named(&path, source))?))
            };
            self.levels.push(Level { path, entry, new, base: None, touched: !kept });
            return Ok(());
        }
        let new = self.open_last()?;
        let level = self.levels.last_mut().expect("it was opened");
        level.touched = true;
        if source == Source::Base && level.base.is_none() {
            level.base = self.base.open_folder_below(&level.path).ok();
        }
        let places = Places {
            staging: Some(self.staging),
            root: &self.root,
            new: &new,
            base: level.base.as_ref(),
            trust: self.trust,
            most_names: self.most_names,
        };
        places.put(path.name(), &entry, source).map_err(|source: io::Error| named(&path, source))?;
        // Whatever it is: a further name of it is a name of this.
        self.replaced.insert(entry.path);
        Ok(())
    }
}
