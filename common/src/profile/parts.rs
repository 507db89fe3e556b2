//! `[check.parts]`: the parts of a check whose results can be carried over from earlier verdicts.

use std::time::Duration;

use globset::GlobSet;
use serde::Deserialize;

use super::files::{candidate, set};
use crate::{config::Span, path::TreePath};

/// How long a part keeps its PASS where the profile does not say.
const RECHECK_WITHIN: Duration = Duration::from_secs(7 * 24 * 3600);

/// `[check.parts]`: what the parts of a step are, and what each of them depends on.
///
/// A part that passed keeps its PASS for as long as nothing that it depends on has changed, `recheck_within` at most. `{parts}` in the
/// command stands for the parts that are to be checked now.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parts {
    /// Parts that Assay knows how to find.
    pub kind: Option<PartsKind>,
    /// File patterns, as in `[copy]`: each file that matches is a part, and `{parts}` is the list of their paths. Only for a command
    /// that looks at each of these files for itself. A change of any other file has all parts checked.
    #[serde(default)]
    pub for_each_changed: Vec<String>,
    /// Patterns of files that the command of `for_each_changed` does not read at all: a change there changes nothing.
    #[serde(default)]
    pub not_read: Vec<String>,
    /// How long a part keeps its PASS at most. A share of the parts is checked again in each run, so that none becomes older.
    #[serde(default = "recheck_within")]
    pub recheck_within: Span,
}

fn recheck_within() -> Span {
    Span(RECHECK_WITHIN)
}

/// Parts that Assay knows how to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PartsKind {
    /// Ranges of revisions of a Subversion repository in the first root; `{parts}` is `FIRST:LAST` of each.
    SubversionRevisions,
    /// The relations of a PostgreSQL cluster whose data directory is the first root. The step finds them itself: `{parts}` has it read from its
    /// standard input what it may carry.
    PostgresqlRelations,
    /// The SQLite databases in the first root. The step finds them itself and reads its standard input, as with `postgresql-relations`.
    SqliteDatabases,
}

impl PartsKind {
    /// True if the step finds its parts itself, and reads from its standard input which results it may carry.
    pub fn is_found_by_the_step(self) -> bool {
        matches!(self, Self::PostgresqlRelations | Self::SqliteDatabases)
    }
}

/// The patterns of [`Parts`], ready to be asked about paths in a root.
#[derive(Debug)]
pub struct PartFiles {
    parts: GlobSet,
    not_read: GlobSet,
}

impl PartFiles {
    /// The patterns of `parts`.
    ///
    /// # Errors
    /// Names the pattern that is none, which reading the profile has ruled out.
    pub fn new(parts: &Parts) -> Result<Self, String> {
        Ok(Self { parts: set(&parts.for_each_changed)?, not_read: set(&parts.not_read)? })
    }

    /// True for a file that is a part of its own.
    pub fn is_part(&self, path: &TreePath) -> bool {
        self.parts.is_match_candidate(&candidate(path))
    }

    /// True for a file, which is no part, that the command does not read.
    pub fn is_not_read(&self, path: &TreePath) -> bool {
        self.not_read.is_match_candidate(&candidate(path))
    }
}
