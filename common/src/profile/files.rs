//! The file patterns of a profile, ready to be asked.

use std::{collections::BTreeMap, ffi::OsStr, os::unix::ffi::OsStrExt as _, path::Path};

use globset::{Candidate, Glob, GlobBuilder, GlobSet, GlobSetBuilder};

use super::{MarkKind, Profile, Value, template};
use crate::path::TreePath;

/// When a file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Turn {
    /// Before everything else; the number is that of the pattern.
    First(usize),
    /// Neither first nor last.
    Middle,
    /// After everything else; the number is that of the pattern.
    Last(usize),
}

/// A profile's `[copy]` for one repository. Paths are relative to the root that they are in.
#[derive(Debug)]
pub struct FileRules {
    first: GlobSet,
    last: GlobSet,
    hold: GlobSet,
    /// The mark's own files that have no content before all others have been read.
    of_mark: GlobSet,
    exclude: GlobSet,
    append_only: GlobSet,
    may_change: GlobSet,
    pages: Option<(GlobSet, u32)>,
    has_databases: bool,
}

impl FileRules {
    /// The rules of `profile` with the variables of one repository, as [`Profile::bind`] gave them.
    /// `also_exclude` are the repository's own patterns.
    ///
    /// # Errors
    /// Names the pattern that is none.
    pub fn new(
        profile: &Profile,
        vars: &BTreeMap<String, Value>,
        also_exclude: &[String],
    ) -> Result<Self, String> {
        let mut exclude = profile.copy.exclude.clone();
        exclude.extend_from_slice(also_exclude);
        for database in profile.databases(vars)? {
            let path =
                std::str::from_utf8(database.as_bytes()).map_err(|_| "a database is not named in UTF-8")?;
            // A leading slash, so that a database in the root is not excluded by its name at every depth.
            let literal = format!("/{}", globset::escape(path));
            exclude.extend(["", "-wal", "-shm", "-journal"].map(|tail| format!("{literal}{tail}")));
        }
        let mut of_mark = Vec::new();
        if profile.mark.kind == MarkKind::Postgresql {
            // Segments of live WAL, and what is named after them: what the backup needs are files of the mark. A mark's own files
            // are copied whatever is excluded, and have their content only when all other files have been read.
            let segment = "[0-9A-F]".repeat(24);
            exclude.push(format!("{segment}*"));
            of_mark.extend(["/backup_label".to_owned(), "/tablespace_map".to_owned(), segment]);
        }
        Ok(Self {
            first: set(&profile.copy.first)?,
            last: set(&profile.copy.last)?,
            hold: set(&profile.copy.hold)?,
            of_mark: set(&of_mark)?,
            exclude: set(&exclude)?,
            append_only: set(&profile.copy.append_only)?,
            may_change: set(&profile.copy.may_change)?,
            pages: match profile.copy.page_bytes {
                None => None,
                Some(bytes) => Some((set(&profile.copy.pages)?, bytes)),
            },
            has_databases: profile.mark.kind == MarkKind::Sqlite,
        })
    }

    /// True for what is not copied. What is in an excluded folder is not asked for: the walk does not enter
    /// it.
    pub fn is_excluded(&self, path: &TreePath) -> bool {
        self.exclude.is_match_candidate(&candidate(path))
    }

    /// True for a file of the backup that is no copy of a live file: the engine makes it for the mark.
    pub fn is_of_mark(&self, path: &TreePath) -> bool {
        self.is_excluded(path) || self.of_mark.is_match_candidate(&candidate(path))
    }

    /// True when SQLite databases are among the files: the mark copies each, and none is copied as a plain file.
    pub fn has_databases(&self) -> bool {
        self.has_databases
    }

    /// True for a file that only grows.
    pub fn is_append_only(&self, path: &TreePath) -> bool {
        self.append_only.is_match_candidate(&candidate(path))
    }

    /// True for a file that is read once, whatever happens to it meanwhile.
    pub fn may_change(&self, path: &TreePath) -> bool {
        self.may_change.is_match_candidate(&candidate(path))
    }

    /// The length of its pages in bytes, of a file that is written in pages.
    pub fn page_bytes(&self, path: &TreePath) -> Option<u32> {
        let (files, bytes) = self.pages.as_ref()?;
        files.is_match_candidate(&candidate(path)).then_some(*bytes)
    }

    /// True when some files are to be read before all others.
    pub fn has_first(&self) -> bool {
        !self.first.is_empty()
    }

    /// True when some files are to be held open before anything is read.
    pub fn has_held(&self) -> bool {
        !self.hold.is_empty()
    }

    /// True for a file that is opened before anything is read.
    pub fn is_held(&self, path: &TreePath) -> bool {
        self.hold.is_match_candidate(&candidate(path)) && self.turn(path) == Turn::Middle
    }

    /// When a file is read. `first` wins over `last`, an earlier pattern over a later one, and what a mark needs over both.
    pub fn turn(&self, path: &TreePath) -> Turn {
        let candidate = candidate(path);
        if let Some(index) = self.of_mark.matches_candidate(&candidate).first() {
            return Turn::Last(self.last.len() + index);
        }
        if let Some(index) = self.first.matches_candidate(&candidate).first() {
            return Turn::First(*index);
        }
        self.last.matches_candidate(&candidate).first().map_or(Turn::Middle, |index| Turn::Last(*index))
    }
}

impl Profile {
    /// The paths of `[sqlite]` in the first root, with the variables of one repository. A `*` among them stands for those that
    /// are found, and is left out.
    ///
    /// # Errors
    /// Names the one that is no path inside the root.
    pub fn databases(&self, vars: &BTreeMap<String, Value>) -> Result<Vec<TreePath>, String> {
        let Some(sqlite) = &self.sqlite else {
            return Ok(Vec::new());
        };
        let scope = template::Scope { vars: vars.clone(), ..Default::default() };
        let paths =
            scope.expand_list(&sqlite.databases).map_err(|error| format!("sqlite.databases: {error}"))?;
        let parse = |path: std::ffi::OsString| {
            let told = |what: &dyn std::fmt::Display| format!("the database '{}' {what}", path.display());
            let parsed = TreePath::parse(path.as_bytes()).map_err(|fault| told(&fault))?;
            if parsed.is_root() { Err(told(&"is empty")) } else { Ok(parsed) }
        };
        paths.into_iter().filter(|path| path != "*").map(parse).collect()
    }
}

pub(super) fn candidate(path: &TreePath) -> Candidate<'_> {
    Candidate::new(Path::new(OsStr::from_bytes(path.as_bytes())))
}

pub(super) fn set(patterns: &[String]) -> Result<GlobSet, String> {
    let mut builder = GlobSetBuilder::new();
    for pattern in patterns {
        builder.add(glob(pattern)?);
    }
    builder.build().map_err(|error| error.to_string())
}

/// One pattern by the rules of [`super::Copy`].
pub(super) fn glob(pattern: &str) -> Result<Glob, String> {
    if pattern.is_empty() || pattern.ends_with('/') {
        return Err("must be a file pattern that is not empty and does not end in a slash".into());
    }
    let anchored = match pattern.strip_prefix('/') {
        Some(rest) => rest.to_owned(),
        None if pattern.contains('/') => pattern.to_owned(),
        None => format!("**/{pattern}"),
    };
    GlobBuilder::new(&anchored)
        .literal_separator(true)
        .backslash_escape(true)
        .build()
        .map_err(|error| format!("this is no file pattern: {}", error.kind()))
}
