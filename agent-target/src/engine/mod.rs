//! Checks that this program brings itself, for engines whose own tools need a server around them.
//!
//! A profile calls them as `{helper} engine …`, so they run in the sandbox of a check step, as its user, and know nothing of the
//! agent: no configuration, no store. They print what they find; the profile says what it means.

pub mod git;
mod known_parts;
pub mod postgresql;
mod report;
pub mod sqlite;
pub mod subversion;
