//! A walk before a first copy: what the target would not take ends the run before anything is read, sent or marked.

use std::{collections::HashSet, sync::Arc};

use assay_common::{confined::Folder, fidelity::Filter, manifest::Header, profile::FileRules};
use tokio_util::sync::CancellationToken;

use super::{
    ReplicateError,
    as_it_is::{names, whole},
    compare::{id_of_several, size_of},
    scan::{Found, Ground, Scan},
};

/// Walks the roots, and returns how much content they have, in bytes. What is refused is in the filter then.
///
/// # Errors
/// When a root cannot be walked, or `stop` says so.
pub fn preflight(
    header: &Header,
    roots: &[Arc<Folder>],
    rules: Arc<FileRules>,
    (filter, ground): (&Filter, &Ground),
    stop: &CancellationToken,
) -> Result<u64, ReplicateError> {
    let (mut bytes, mut several) = (0_u64, HashSet::new());
    filter.forget_names();
    let mut scan = Scan::new(header, roots, None, rules, ground);
    while let Some(found) = scan.next_entry()? {
        if stop.is_cancelled() {
            return Err(ReplicateError::Cancelled);
        }
        tell_apart(filter, &found);
        look(filter, &found)?;
        if found.stat.as_ref().and_then(id_of_several).is_none_or(|id| several.insert(id)) {
            bytes = bytes.saturating_add(size_of(&found));
        }
    }
    filter.forget_names();
    Ok(bytes)
}

/// Remembers an entry whose name is another one's on the target's file system.
pub(super) fn tell_apart(filter: &Filter, found: &Found) {
    if let Err(refused) = filter.tell_apart(found.path.as_bytes()) {
        filter.remember(refused);
    }
}

/// Looks at everything of `found` but its content; what is refused is remembered.
pub(super) fn look(filter: &Filter, found: &Found) -> Result<(), ReplicateError> {
    if let Some((file, names)) = found.stat.as_ref().and_then(names)
        && let Err(refused) = filter.count_name(file, names, found.path.as_bytes())
    {
        filter.remember(refused);
    }
    if let Some(entry) = whole(found)? {
        filter.look(entry);
    }
    Ok(())
}
