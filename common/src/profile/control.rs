//! `[[control]]`: the damage that a profile's check must find.

use globset::GlobMatcher;
use serde::Deserialize;

use super::files::{candidate, glob};
use crate::path::TreePath;

/// Damage that is made on purpose in a workspace, to see whether the check finds it.
///
/// Each must be found: a check that says PASS to all the places of one is not trusted. A profile without any gets a few of
/// the program's own, of which the check must find one.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    /// A file pattern, relative to the root, as in `[copy]`. The largest files that match are damaged.
    pub files: String,
    /// What is done to one of them.
    pub damage: DamageKind,
    /// Length of a page in bytes, for the kinds that have pages; a power of two from 512 to 65536.
    #[serde(default = "page_bytes")]
    pub page_bytes: u32,
    /// How many places are tried, one after the other, until the check says FAIL: some places hold nothing that counts, as a
    /// free page of a database. 1 to 10.
    #[serde(default = "places")]
    pub places: u32,
}

fn page_bytes() -> u32 {
    4096
}

fn places() -> u32 {
    3
}

/// The kinds of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DamageKind {
    /// One bit of one byte.
    FlipByte,
    /// A page becomes zeros.
    ZeroPage,
    /// The file ends in its middle.
    Truncate,
    /// Two pages are exchanged.
    SwapPages,
    /// A row's pointer in a heap page of PostgreSQL points to where no row can begin; the page's checksum is made good again.
    PostgresqlItem,
    /// A visibility map of PostgreSQL says of a page that is not there that all see its rows; the map's checksum is made good again.
    PostgresqlVisibility,
    /// A full-text index (FTS5) of a SQLite database loses a part of itself.
    SqliteFullText,
    /// A write-ahead log is put beside a SQLite database, with a damaged frame before further commits.
    SqliteWalFrame,
}

impl DamageKind {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FlipByte => "flip-byte",
            Self::ZeroPage => "zero-page",
            Self::Truncate => "truncate",
            Self::SwapPages => "swap-pages",
            Self::PostgresqlItem => "postgresql-item",
            Self::PostgresqlVisibility => "postgresql-visibility",
            Self::SqliteFullText => "sqlite-full-text",
            Self::SqliteWalFrame => "sqlite-wal-frame",
        }
    }
}

impl Control {
    /// The pattern, ready to be asked about paths in a root. `None` when it is none, which reading the profile has ruled out.
    pub fn matcher(&self) -> Option<impl Fn(&TreePath) -> bool + use<>> {
        let matcher: GlobMatcher = glob(&self.files).ok()?.compile_matcher();
        Some(move |path: &TreePath| matcher.is_match_candidate(&candidate(path)))
    }
}
