//! What a copy keeps of the metadata of a tree, and what the target's file system can hold of it.
//!
//! Nothing is changed in silence: what cannot be held ends a run (or a restore) with a reason of its own, before the content is
//! copied, unless the repository has declared that it does not need it.
//!
//! - [`FsLimits`]: what a file system holds, found by trying it out ([`FsLimits::probe`]);
//! - [`CopyRules`]: what a target takes from a source, by a list of what is allowed;
//! - [`Filter`]: what a source leaves out of an entry, and the first thing of it that the target does not take or hold.

mod filter;
mod fold;
mod limits;
mod probe;
mod rules;

pub use filter::{Filter, LeftOut, Refused, remedies};
pub use fold::{FoldedName, folded_name};
pub use limits::{FsLimits, Place};
pub use probe::most_names;
pub use rules::{CopyRules, SpecialFile, is_pattern, matches_pattern};

/// The reason of a run whose tree has something that the target does not take, or that its file system cannot hold.
pub const CANNOT_HOLD: &str = "target-cannot-hold";
/// What an operator may do about it.
pub const CANNOT_HOLD_HINT: &str = "keep the store on a file system that holds it (assay-target doctor says what this one holds), exclude the \
     entry, or declare that this repository does not need it: ignore_attributes or clamp_times at the source, docs/CONFIGURATION.md";
