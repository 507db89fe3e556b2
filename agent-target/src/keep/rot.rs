//! What scrubs found: `scrub.json`, written whole each time, before anything is healed.
//!
//! As long as a file of a generation stands here the generation is not `verified`, and no run takes that file over from it.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::{Path, PathBuf},
};

use assay_common::{durable::write_durable, error::PathError, id::GenerationNumber, path::display_bytes};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Rotten files that are listed. A disk that has more is to be replaced: then no run builds upon such a generation at all.
pub const MAX_FILES: usize = 10_000;

/// A file that is not what its manifest says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RottenFile {
    /// Its path below the tree, its bytes in hexadecimal digits.
    #[serde(with = "digits")]
    pub path: Vec<u8>,
    /// The same, made printable.
    pub shown: String,
    /// The generations that share it.
    pub generations: BTreeSet<GenerationNumber>,
    /// In which way it is not what it was.
    pub what: String,
    /// When it was found.
    pub found: Timestamp,
}

/// Paths, which may be no UTF-8, in hexadecimal digits.
mod digits {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        hex::decode(text).map_err(D::Error::custom)
    }
}

/// The newest scrub.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LastScrub {
    /// When it began; for one that was taken up again, the first time.
    pub started: Timestamp,
    /// When it came to its end; none while it is under way, or waits to be taken up again.
    pub finished: Option<Timestamp>,
    /// Generations that it looks at.
    pub generations: u64,
    /// Files that were read; one that generations share, once.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Rotten files and manifests that were found.
    pub found: u64,
    /// Of these, put right.
    pub healed: u64,
}

/// A scrub that was ended by a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unfinished {
    /// What it was to look at.
    pub generations: BTreeSet<GenerationNumber>,
    /// Everything up to this path has been read.
    #[serde(with = "digits")]
    pub after: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    version: u32,
    files: Vec<RottenFile>,
    /// Generations whose manifest or record is damaged, or that have more rotten files than are listed.
    unusable: BTreeMap<GenerationNumber, String>,
    /// When each was last read to its end.
    scrubbed: BTreeMap<GenerationNumber, Timestamp>,
    last: Option<LastScrub>,
    unfinished: Option<Unfinished>,
}

/// What is known of a repository's rot.
#[derive(Debug)]
pub struct Rot {
    path: PathBuf,
    kept: Kept,
}

impl Rot {
    /// Reads the file. One that is damaged is put aside, and nothing is known until the next scrub.
    pub fn load(path: &Path) -> Self {
        let none = Kept {
            version: 1,
            files: Vec::new(),
            unusable: BTreeMap::new(),
            scrubbed: BTreeMap::new(),
            last: None,
            unfinished: None,
        };
        let kept = match std::fs::read(path) {
            Err(_) => none,
            Ok(text) => match serde_json::from_slice::<Kept>(&text) {
                Ok(kept) if kept.version == 1 => kept,
                _ => {
                    tracing::error!(path = %path.display(), "what scrubs found cannot be read: run assay-target scrub");
                    drop(std::fs::rename(path, path.with_extension("json.damaged")));
                    none
                }
            },
        };
        Self { path: path.to_owned(), kept }
    }

    fn change(&mut self, change: impl FnOnce(&mut Kept)) -> Result<(), PathError> {
        let mut kept = self.kept.clone();
        change(&mut kept);
        kept.files.retain(|file| !file.generations.is_empty());
        // What cannot be written down is true all the same.
        self.kept = kept;
        let mut text = serde_json::to_vec_pretty(&self.kept).expect("plain data");
        text.push(b'\n');
        write_durable(&self.path, &text, 0o600)
    }

    /// True when something of a generation is not what it was.
    pub fn has(&self, number: GenerationNumber) -> bool {
        self.is_unusable(number) || self.kept.files.iter().any(|file| file.generations.contains(&number))
    }

    /// True when nothing can be built upon a generation.
    pub fn is_unusable(&self, number: GenerationNumber) -> bool {
        self.kept.unusable.contains_key(&number)
    }

    /// The rotten files of a generation, and what else is wrong with it.
    pub fn of(&self, number: GenerationNumber) -> Vec<String> {
        let files = self.kept.files.iter().filter(|file| file.generations.contains(&number));
        let files = files.map(|file| format!("{}: {}", file.shown, file.what));
        self.kept.unusable.get(&number).cloned().into_iter().chain(files).collect()
    }

    /// All rotten files.
    pub fn files(&self) -> &[RottenFile] {
        &self.kept.files
    }

    /// What no run may take over from a generation.
    pub fn paths(&self, number: GenerationNumber) -> HashSet<Vec<u8>> {
        let files = self.kept.files.iter().filter(|file| file.generations.contains(&number));
        files.map(|file| file.path.clone()).collect()
    }

    /// When a generation was last read to its end.
    pub fn scrubbed(&self, number: GenerationNumber) -> Option<Timestamp> {
        self.kept.scrubbed.get(&number).copied()
    }

    /// The newest scrub.
    pub fn last(&self) -> Option<&LastScrub> {
        self.kept.last.as_ref()
    }

    /// What is to be taken up again.
    pub fn unfinished(&self) -> Option<&Unfinished> {
        self.kept.unfinished.as_ref()
    }

    /// Rotten files and manifests that have not been put right.
    pub fn unhealed(&self) -> u64 {
        (self.kept.files.len() + self.kept.unusable.len()) as u64
    }

    /// A file was read in these generations; where it is rotten, and how. What was known of it there counts no longer.
    pub(super) fn note_file(
        &mut self,
        path: &[u8],
        read: &BTreeSet<GenerationNumber>,
        rotten: &[(BTreeSet<GenerationNumber>, String)],
        now: Timestamp,
    ) -> Result<(), PathError> {
        if rotten.is_empty() && !self.kept.files.iter().any(|file| file.path == path) {
            return Ok(());
        }
        self.change(|kept| {
            for file in kept.files.iter_mut().filter(|file| file.path == path) {
                file.generations.retain(|number| !read.contains(number));
            }
            for (generations, what) in rotten {
                if kept.files.len() >= MAX_FILES {
                    let text = format!("more than {MAX_FILES} files are rotten");
                    kept.unusable.extend(generations.iter().map(|number| (*number, text.clone())));
                    continue;
                }
                kept.files.push(RottenFile {
                    path: path.to_vec(),
                    shown: display_bytes(path),
                    generations: generations.clone(),
                    what: what.clone(),
                    found: now,
                });
            }
        })
    }

    /// A manifest was read: what is wrong with it, if anything is.
    pub(super) fn note_manifest(
        &mut self,
        number: GenerationNumber,
        wrong: Option<String>,
    ) -> Result<(), PathError> {
        if wrong.is_none() && !self.is_unusable(number) {
            return Ok(());
        }
        self.change(|kept| {
            kept.unusable.remove(&number);
            kept.unusable.extend(wrong.map(|wrong| (number, wrong)));
        })
    }

    /// How far a scrub has come with what is left of it.
    pub(super) fn note_place(
        &mut self,
        last: LastScrub,
        left: &BTreeSet<GenerationNumber>,
        after: Vec<u8>,
    ) -> Result<(), PathError> {
        self.change(|kept| {
            kept.unfinished = Some(Unfinished { generations: left.clone(), after });
            kept.last = Some(last);
        })
    }

    /// These generations were read whole, and so many are left.
    pub(super) fn note_scrubbed(
        &mut self,
        last: LastScrub,
        read: &BTreeSet<GenerationNumber>,
        left: &BTreeSet<GenerationNumber>,
        now: Timestamp,
    ) -> Result<(), PathError> {
        self.change(|kept| {
            kept.scrubbed.extend(read.iter().map(|number| (*number, now)));
            kept.unfinished =
                (!left.is_empty()).then(|| Unfinished { generations: left.clone(), after: Vec::new() });
            kept.last = Some(last);
        })
    }

    /// Generations that are not there any longer are forgotten.
    pub(super) fn forget_all_but(&mut self, there: &[GenerationNumber]) -> Result<(), PathError> {
        let gone = |number: &GenerationNumber| !there.contains(number);
        let kept = &self.kept;
        let numbers = kept.files.iter().flat_map(|file| &file.generations).chain(kept.unusable.keys());
        if !numbers.chain(kept.scrubbed.keys()).any(gone) {
            return Ok(());
        }
        self.change(|kept| {
            kept.files.iter_mut().for_each(|file| file.generations.retain(|number| !gone(number)));
            kept.unusable.retain(|number, _| !gone(number));
            kept.scrubbed.retain(|number, _| !gone(number));
        })
    }
}
