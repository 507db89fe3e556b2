//! Carried results: the step skips a database if the database passed before and none of its files has changed since.
//!
//! The result for a database depends on its file, on the side files (`-wal`, `-shm`, `-journal`), on this program, and on the settings of the
//! step. The target tells the step the digests of the generation's files. The step believes a digest only if the file in the
//! workspace has the size and time of the generation's, and checks a database with a side file that the generation does not have.

use std::{fs, io, path::Path};

use assay_common::{sqlite::SIDE_FILES, verdict::HexDigest};

use super::Unable;
use crate::{
    check::known::{FILE, Found, Known},
    engine::known_parts,
};

/// The databases as parts of the step.
#[derive(Debug)]
pub(super) struct Parts {
    known: Known,
    found: Found,
}

/// A database as a part of the step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    name: String,
    /// Digest of everything that the result depends on; `None`: unknown, so the step always checks it.
    inputs: Option<HexDigest>,
    /// Size of its file in bytes.
    bytes: u64,
}

impl Parts {
    /// Reads from the standard input which results may be carried.
    pub(super) fn read() -> Result<Self, Unable> {
        let known = known_parts::read();
        known.map(Self::of).map_err(|error| Unable::Checker(format!("the standard input: {error}")))
    }

    fn of(known: Known) -> Self {
        Self { known, found: Found::default() }
    }

    /// The part for the database at `path` in the first root.
    pub(super) fn part(&self, root: &Path, path: &Path) -> Part {
        let name = path.to_string_lossy().into_owned();
        let bytes = fs::symlink_metadata(root.join(path)).map_or(0, |there| there.len());
        Part { inputs: self.inputs(root, path), name, bytes }
    }

    /// `None` if a file is not, or may not be, the generation's.
    fn inputs(&self, root: &Path, path: &Path) -> Option<HexDigest> {
        let mut inputs = blake3::Hasher::new_derive_key("assay v1 inputs of a database");
        inputs.update(self.known.common.as_bytes());
        for side in [""].into_iter().chain(SIDE_FILES) {
            let mut name = path.as_os_str().to_owned();
            name.push(side);
            let known = self.known.files.get(name.to_str()?);
            match (fs::symlink_metadata(root.join(&name)), known) {
                (Ok(there), Some(known)) if known.matches(&there) => {
                    inputs.update(&[1]).update(&known.digest.0);
                }
                (Err(error), None) if error.kind() == io::ErrorKind::NotFound && !side.is_empty() => {
                    inputs.update(&[0]);
                }
                _ => return None,
            }
        }
        Some(HexDigest(*inputs.finalize().as_bytes()))
    }

    /// Chooses the parts whose results are carried: those that have not changed. A verdict needs at least one checked part, so the smallest is
    /// not carried if all could be. The target withholds a part from `known` when its turn to be checked again has come.
    pub(super) fn choose<'a>(&mut self, parts: impl IntoIterator<Item = &'a Part>) {
        let parts: Vec<_> = parts.into_iter().collect();
        let unchanged =
            |part: &&&Part| part.inputs.is_some() && self.known.parts.get(&part.name) == part.inputs.as_ref();
        let mut carried: Vec<_> = parts.iter().filter(unchanged).collect();
        if carried.len() == parts.len() {
            carried.sort_by_key(|part| std::cmp::Reverse((part.bytes, &part.name)));
            carried.pop();
        }
        let carried = carried.into_iter().filter_map(|part| Some((part.name.clone(), part.inputs?)));
        self.found.carried = carried.collect();
    }

    /// True if the result of the part is carried.
    pub(super) fn carries(&self, part: &Part) -> bool {
        self.found.carried.contains_key(&part.name)
    }

    /// Records that the step checked the part. A part with damage, notes or uncovered parts is not carried later: the next verdict would
    /// not repeat them.
    pub(super) fn record(&mut self, part: Part, is_silent: bool) {
        self.found.checked += 1;
        if let Some(inputs) = part.inputs.filter(|_| is_silent) {
            self.found.passed.insert(part.name, inputs);
        }
    }

    /// Writes the results to the scratch folder.
    pub(super) fn write(&self, scratch: &Path) -> Result<(), Unable> {
        known_parts::write(&self.found, scratch).map_err(|error| Unable::Checker(format!("{FILE}: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::known::KnownFile;

    struct Bed {
        folder: tempfile::TempDir,
        known: Known,
    }

    impl Bed {
        /// A folder as the generation has it.
        fn new(files: &[&str]) -> Self {
            let folder = tempfile::tempdir().expect("temp");
            let mut known = Known { common: "settings".to_owned(), ..Known::default() };
            for name in files {
                fs::write(folder.path().join(name), name).expect("write");
                let there = fs::metadata(folder.path().join(name)).expect("metadata");
                let digest = HexDigest(*blake3::hash(name.as_bytes()).as_bytes());
                known.files.insert((*name).to_owned(), KnownFile::of(digest, &there));
            }
            Self { folder, known }
        }

        fn inputs(&self) -> Option<HexDigest> {
            Parts::of(self.known.clone()).part(self.folder.path(), Path::new("app.db")).inputs
        }
    }

    #[test]
    fn a_database_depends_on_its_file_and_those_beside_it() {
        let bed = Bed::new(&["app.db", "app.db-wal", "other.db", "other.db-wal"]);
        let before = bed.inputs().expect("known");
        type Change = fn(&mut Bed);
        let changes: [(&str, Change, bool); 8] = [
            ("another database", |it| it.known.files.get_mut("other.db").expect("it").digest.0[0] ^= 1, true),
            ("its content", |it| it.known.files.get_mut("app.db").expect("it").digest.0[0] ^= 1, false),
            ("its log", |it| it.known.files.get_mut("app.db-wal").expect("it").digest.0[0] ^= 1, false),
            ("the settings", |it| it.known.common.push('x'), false),
            (
                "a log that is gone",
                |it| fs::remove_file(it.folder.path().join("app.db-wal")).expect("it"),
                false,
            ),
            (
                "a journal that is new",
                |it| fs::write(it.folder.path().join("app.db-journal"), "").expect("it"),
                false,
            ),
            (
                "a time that is another",
                |it| it.known.files.get_mut("app.db").expect("it").written.1 ^= 1,
                false,
            ),
            ("a length that is another", |it| it.known.files.get_mut("app.db").expect("it").size += 1, false),
        ];
        for (name, change, is_same) in changes {
            let mut bed = Bed::new(&["app.db", "app.db-wal", "other.db", "other.db-wal"]);
            for (file, known) in &mut bed.known.files {
                // As the first one, whenever this one was written.
                known.digest = HexDigest(*blake3::hash(file.as_bytes()).as_bytes());
            }
            change(&mut bed);
            assert_eq!(bed.inputs() == Some(before), is_same, "{name}");
        }
    }

    #[test]
    fn files_that_are_not_the_generations_are_always_checked() {
        let mut bed = Bed::new(&["app.db"]);
        assert!(bed.inputs().is_some());
        let path = bed.folder.path().join("app.db");
        fs::rename(&path, bed.folder.path().join("elsewhere")).expect("rename");
        assert_eq!(bed.inputs(), None, "gone");
        std::os::unix::fs::symlink("elsewhere", &path).expect("link");
        assert_eq!(bed.inputs(), None, "a link");
        fs::remove_file(&path).expect("remove");
        fs::rename(bed.folder.path().join("elsewhere"), &path).expect("rename");
        assert!(bed.inputs().is_some());
        bed.known.files.clear();
        assert_eq!(bed.inputs(), None, "not in the manifest");
    }

    /// If all parts could be carried, the smallest is checked.
    #[test]
    fn one_part_is_checked_when_all_could_be_carried() {
        let bed = Bed::new(&["app.db", "a.db", "other.db"]);
        let of = |known: &Known| {
            let parts = Parts::of(known.clone());
            let list =
                ["app.db", "a.db", "other.db"].map(|name| parts.part(bed.folder.path(), Path::new(name)));
            (parts, list)
        };
        let (_, list) = of(&bed.known);
        let mut known = bed.known.clone();
        known.parts = list.iter().map(|part| (part.name.clone(), part.inputs.expect("known"))).collect();
        let carried = |known: &Known| {
            let (mut parts, list) = of(known);
            parts.choose(&list);
            list.each_ref().map(|part| parts.carries(part))
        };
        assert_eq!(carried(&known), [true, false, true]);
        // One of the others is checked anyway.
        known.parts.remove("other.db");
        assert_eq!(carried(&known), [true, true, false]);
    }

    #[test]
    fn a_part_is_carried_after_it_passed_without_a_word() {
        let bed = Bed::new(&["app.db", "a.db"]);
        let mut parts = Parts::of(bed.known.clone());
        let [part, small] = ["app.db", "a.db"].map(|name| parts.part(bed.folder.path(), Path::new(name)));
        parts.choose([&part, &small]);
        assert!(!parts.carries(&part));
        parts.record(part.clone(), false);
        assert!(parts.found.passed.is_empty() && parts.found.checked == 1);
        parts.record(part.clone(), true);
        parts.write(bed.folder.path()).expect("written");
        let text = fs::read(bed.folder.path().join(FILE)).expect("read");
        let found: Found = serde_json::from_slice(&text).expect("JSON");
        assert_eq!(found.passed.len(), 1);
        let later = |part: &Part| {
            let mut later = Parts::of(Known { parts: found.passed.clone(), ..bed.known.clone() });
            later.choose([part, &small]);
            (later.carries(part), later.carries(&small))
        };
        assert_eq!(later(&part), (true, false));
        assert_eq!(later(&Part { inputs: Some(HexDigest([7; 32])), ..part.clone() }), (false, false));
        assert_eq!(later(&Part { inputs: None, ..part }), (false, false));
    }
}
