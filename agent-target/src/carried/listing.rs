//! The parts of a check, and what each of them depends on, from the manifest of a generation.

use std::{fs::File, io::BufReader, path::PathBuf, time::Duration};

use assay_common::{
    digest::RootDigest,
    id::GenerationNumber,
    manifest::{Entry, EntryKind, ManifestReader, Root, validate_entry},
    path::TreePath,
    profile::{PartFiles, PartsKind, Profile},
    sqlite::{SIDE_FILES, may_be_database},
    verdict::HexDigest,
};

use super::{
    inputs::{Inputs, content_digest, entry_digest, settings},
    revisions::RevisionParts,
};
use crate::{
    check::{
        PartArgument,
        known::{Known, KnownFile},
    },
    repository::Repository,
    store::{MANIFEST, Record, TREE},
};

/// With more parts than this in a step no result is carried: the record of all of them would be too large.
pub(super) const MAX_PARTS: usize = 50_000;

/// With more files of relations than this no result is carried either: what a step is told is held in memory.
const MAX_FILES: usize = 100_000;

/// A part of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// What it is called; no other part of the step is called so.
    pub(crate) name: String,
    /// What the step is given for it.
    pub(crate) argument: PartArgument,
    /// Digest of all that its result depends on; `None` where that is not known.
    pub(crate) inputs: Option<HexDigest>,
}

/// The parts of one step.
#[derive(Clone, Debug)]
pub(crate) struct StepParts {
    /// The step's name in the profile.
    pub(crate) step: String,
    /// How long a part keeps its PASS, as the profile says.
    pub(crate) recheck_within: Duration,
    /// The parts in their order; `None`: they cannot be told apart, and all is checked as one.
    pub(crate) parts: Option<Vec<Part>>,
    /// What the step is told when its engine finds the parts; then there are none here.
    pub(crate) known: Option<Known>,
}

/// Finds the parts of one step while the manifest is read.
enum Finder<'a> {
    Files {
        files: PartFiles,
        common: Box<Inputs>,
        parts: Vec<Part>,
        is_certain: bool,
        roots: &'a [Root],
    },
    Revisions(Box<RevisionParts>),
    /// The step itself finds the parts of this kind, among the files of the generation.
    Engine(Known, PartsKind),
}

/// Lists the parts of all steps that have any. `altered`: a file of the tree that is taken to have another content than the manifest says.
///
/// # Errors
/// When the manifest cannot be read, or is not that of the generation.
pub(crate) fn list(
    repository: &Repository,
    checker: HexDigest,
    record: &Record,
    altered: Option<&TreePath>,
) -> Result<Vec<StepParts>, String> {
    let profile = &repository.config.profile;
    if !has_parts(profile) {
        return Ok(Vec::new());
    }
    let settings = settings(&repository.config, checker, &record.roots);
    let generation = repository.store.generation_path(GenerationNumber(record.generation));
    let mut finders = Vec::new();
    for check in &profile.checks {
        let Some(parts) = &check.parts else { continue };
        let finder = match parts.kind {
            Some(PartsKind::SubversionRevisions) => {
                let root = record.roots.first().ok_or("the generation has no root")?;
                let folder: PathBuf = generation.join(TREE).join(&root.subdirectory);
                Finder::Revisions(Box::new(RevisionParts::of(&folder, settings)))
            }
            Some(kind @ (PartsKind::PostgresqlRelations | PartsKind::SqliteDatabases)) => {
                Finder::Engine(known(kind, settings, &check.name), kind)
            }
            None => Finder::Files {
                files: PartFiles::new(parts)?,
                common: Box::new(Inputs::new()),
                parts: Vec::new(),
                is_certain: true,
                roots: &record.roots,
            },
        };
        finders.push((check.name.clone(), parts.recheck_within.0, finder));
    }
    let path = generation.join(MANIFEST);
    let fault = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let file = File::open(&path).map_err(|error| fault(&error))?;
    let mut reader = ManifestReader::open(BufReader::new(file)).map_err(|error| fault(&error))?;
    while let Some(entry) = reader.next_entry().map_err(|error| fault(&error))? {
        let path = validate_entry(&entry).map_err(|error| fault(&error))?;
        let is_altered = altered == Some(&path);
        let Some((root, in_root)) = place(&record.roots, &path) else { continue };
        let digest = entry_digest(&entry, is_altered);
        for (_, _, finder) in &mut finders {
            match finder {
                Finder::Revisions(revisions) if root == 0 => {
                    revisions.take(&in_root, &entry, digest, is_altered);
                }
                Finder::Engine(known, kind) if root == 0 => {
                    let digest = match kind {
                        PartsKind::SqliteDatabases => content_digest(&entry, is_altered),
                        PartsKind::PostgresqlRelations | PartsKind::SubversionRevisions => digest,
                    };
                    if let Some((path, file)) = known_file(*kind, &in_root, &entry, digest) {
                        known.files.insert(path, file);
                    }
                }
                Finder::Revisions(_) | Finder::Engine(..) => {}
                // Folders hold the files, and say nothing beside them.
                Finder::Files { .. } if entry.kind() == EntryKind::Directory => {}
                Finder::Files { files, common, parts, is_certain, roots } => {
                    if files.is_part(&in_root) {
                        // A further name of a file has its content elsewhere.
                        *is_certain &= entry.kind() == EntryKind::File;
                        parts.push(Part {
                            name: path.to_string(),
                            argument: PartArgument::File {
                                root: roots[root].name.clone(),
                                path: in_root.clone(),
                            },
                            inputs: Some(digest),
                        });
                    } else if !files.is_not_read(&in_root) {
                        *is_certain &= entry.kind() != EntryKind::Hardlink;
                        common.add(&digest.0);
                    }
                }
            }
        }
    }
    if RootDigest::from_hex(&record.root_digest) != Some(reader.root_digest()) {
        return Err(fault(
            &"it is not the manifest that the generation's root digest names; HINT: assay-target scrub",
        ));
    }
    let finish = |(step, recheck_within, finder)| {
        let mut known = None;
        let parts = match finder {
            Finder::Revisions(revisions) => revisions.finish(),
            Finder::Engine(mut files, _) => {
                if files.files.len() > MAX_FILES {
                    files.files.clear();
                }
                known = Some(files);
                None
            }
            Finder::Files { common, parts, is_certain, .. } => {
                let is_known = is_certain && parts.len() <= MAX_PARTS;
                Some(finish_files(settings, &common, parts, is_known))
            }
        };
        StepParts { step, recheck_within, parts, known }
    };
    Ok(finders.into_iter().map(finish).collect())
}

/// Starts the input of a step that finds its parts itself; the files are added later.
fn known(kind: PartsKind, settings: HexDigest, step: &str) -> Known {
    let kind: &[u8] = if kind == PartsKind::SqliteDatabases { b"databases" } else { b"relations" };
    let mut common = Inputs::new();
    common.add(kind).add(&settings.0).add(step.as_bytes());
    Known { common: common.finish().to_string(), ..Default::default() }
}

/// An entry of the manifest as such a step gets it, if a part may depend on it. The step always checks what it does not find in this list, such
/// as the second name of a hard-linked file.
fn known_file(
    kind: PartsKind,
    path: &TreePath,
    entry: &Entry,
    digest: HexDigest,
) -> Option<(String, KnownFile)> {
    let name = std::str::from_utf8(path.as_bytes()).ok()?;
    let is_wanted = match kind {
        PartsKind::SqliteDatabases => {
            may_be_database(entry.size) || SIDE_FILES.iter().any(|side| name.ends_with(side))
        }
        PartsKind::PostgresqlRelations | PartsKind::SubversionRevisions => {
            ["base/", "global/"].iter().any(|folder| name.starts_with(folder))
        }
    };
    let written = (entry.mtime_seconds, entry.mtime_nanos);
    (entry.kind() == EntryKind::File && is_wanted)
        .then(|| (name.to_owned(), KnownFile { digest, size: entry.size, written }))
}

/// True for a profile with a check whose results can be carried.
pub(crate) fn has_parts(profile: &Profile) -> bool {
    profile.checks.iter().any(|check| check.parts.is_some())
}

/// Puts into each part's inputs what all parts depend on.
fn finish_files(settings: HexDigest, common: &Inputs, mut parts: Vec<Part>, is_known: bool) -> Vec<Part> {
    let common = common.finish();
    for part in &mut parts {
        part.inputs = part.inputs.filter(|_| is_known).map(|own| {
            let mut inputs = Inputs::new();
            inputs.add(b"file").add(&settings.0).add(&common.0).add(&own.0).finish()
        });
    }
    parts
}

/// The root that a path of the tree is in, by its number, and the path in it.
fn place(roots: &[Root], path: &TreePath) -> Option<(usize, TreePath)> {
    roots.iter().enumerate().find_map(|(number, root)| {
        let inner = match root.subdirectory.as_bytes() {
            b"" => path.as_bytes(),
            folder if path.as_bytes() == folder => b"",
            folder => path.as_bytes().strip_prefix(folder)?.strip_prefix(b"/")?,
        };
        Some((number, TreePath::parse(inner).ok()?))
    })
}
