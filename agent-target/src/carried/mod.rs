//! Carried results: a part of a check whose inputs are byte for byte those of a part that passed keeps its PASS for a while, so that the
//! cost of a check follows the change (docs/adr/0029).
//!
//! - [`listing`]: the parts of a check and a digest of what each depends on, from the manifest of a generation;
//! - [`memory`]: what earlier verdicts of this repository say of parts, believed only as far as signatures and the ledger hold;
//! - [`choice`]: which parts are checked now, and which results are carried;
//! - [`record`]: the record of the parts that have passed, whose digest the verdict names;
//! - [`plan`]: all of it together, for one check.
//!
//! **When in doubt a part is checked.** Nothing here makes a result better: a part is carried only from a PASS, and a check that does not
//! pass leaves what is remembered as it was, or has all of it forgotten. A crash at any step loses at most what one check would have
//! carried.

mod choice;
mod inputs;
pub(crate) mod listing;
mod memory;
mod plan;
mod record;
mod revisions;

pub(crate) use plan::{Plan, Undamaged};

use assay_common::verdict::HexDigest;

use crate::store::Store;

/// Removes the records that no verdict needs any more: the newest one that names a record names `keep`.
pub(crate) fn keep_record(store: &Store, keep: HexDigest) {
    record::remove_others(store.path(), Some(keep));
}

/// Forgets all parts that have passed: the next check carries nothing.
pub(crate) fn forget(store: &Store) {
    record::remove_others(store.path(), None);
}

#[cfg(test)]
mod tests;
