//! What an engine only adds to, as one mark after the other sees it: numbers that never fall, references that somebody must delete.
//!
//! A lost reference, or a number that was set back, leaves a sound repository with less in it, which no check of one copy can
//! find. So the mark remembers what it saw when the last backup was made, and its id says what is less now. The id is signed in
//! the verdict, and the check reads it (`{mark_id}`):
//!
//! | part of the id | what it means |
//! | --- | --- |
//! | `went back FILE OLD NEW` | the file began with the number OLD, and begins with NEW |
//! | `gone NAME OBJECT` | the reference led to the object, and is not there |
//! | `COUNT more gone` | further references that are not listed |

use std::{collections::BTreeMap, io::Read as _, path::Path};

use assay_common::{confined::Folder, durable::write_durable, error::PathError, path::TreePath, profile};
use rustix::fs::FileType;
use serde::{Deserialize, Serialize};

/// Longer files hold no number, and no list of references that is read here.
const MAX_BYTES: u64 = 64 * 1024 * 1024;
/// References that an id lists.
const LISTED: usize = 10;
/// Bytes that the listed references may take: a target refuses a mark whose id is longer than 4096 bytes.
const LISTED_BYTES: usize = 2048;
/// References that are remembered. Of a repository with more nothing is said.
const MAX_REFERENCES: usize = 200_000;

/// What a mark saw.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Watermarks {
    /// Numbers, by the files that begin with them.
    #[serde(default)]
    numbers: BTreeMap<String, u64>,
    /// Objects, by the references that lead to them. Absent where nobody reads them here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    references: Option<BTreeMap<String, String>>,
}

impl Watermarks {
    /// Looks at what the profile names. What cannot be read is left out: the copy says more about it.
    pub(super) fn look(mark: &profile::Mark, root: &Path) -> Self {
        let mut progress = Self::default();
        let Ok(root) = Folder::open(root) else { return progress };
        for path in &mark.never_back {
            let text = read(&root, path.as_bytes()).unwrap_or_default();
            let number = text.split_whitespace().next().and_then(|word| word.parse().ok());
            progress.numbers.extend(number.map(|number| (path.clone(), number)));
        }
        progress.references = mark.references.then(|| references(&root)).flatten();
        progress
    }

    /// What an earlier mark saw.
    pub(super) fn load(path: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    /// Remembers what this mark saw.
    pub(super) fn save(&self, path: &Path) -> Result<(), PathError> {
        let text = serde_json::to_vec(self).expect("numbers and names");
        write_durable(path, &text, 0o600)
    }

    /// What is less than it was, for the mark's id; `None` when nothing is.
    pub(super) fn less_than(&self, last: &Self) -> Option<String> {
        let mut parts = Vec::new();
        for (path, old) in &last.numbers {
            if let Some(new) = self.numbers.get(path).filter(|new| *new < old) {
                parts.push(format!("went back {path} {old} {new}"));
            }
        }
        if let (Some(now), Some(then)) = (&self.references, &last.references) {
            let gone: Vec<_> = then.iter().filter(|(name, _)| !now.contains_key(*name)).collect();
            let mut room = LISTED_BYTES;
            let texts = gone.iter().take(LISTED).map(|(name, object)| format!("gone {name} {object}"));
            let texts: Vec<_> = texts
                .take_while(|text| {
                    let fits = text.len() <= room;
                    room = room.saturating_sub(text.len());
                    fits
                })
                .collect();
            let listed = texts.len();
            parts.extend(texts);
            if gone.len() > listed {
                parts.push(format!("{} more gone", gone.len() - listed));
            }
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

fn read(root: &Folder, path: &[u8]) -> Option<String> {
    let file = root.open_file_below(&TreePath::parse(path).ok()?).ok()?;
    let mut content = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut content).ok()?;
    if content.len() as u64 > MAX_BYTES {
        return None;
    }
    String::from_utf8(content).ok()
}

/// The references of a git repository that are files or lines of `packed-refs`, loose ones first, because a reference that is
/// packed meanwhile is in the list before its file goes away. `None` where they are kept otherwise, or are too many.
fn references(root: &Folder) -> Option<BTreeMap<String, String>> {
    if root.stat(b"reftable").is_ok() {
        return None;
    }
    let is_object =
        |word: &str| matches!(word.len(), 40 | 64) && word.bytes().all(|it| it.is_ascii_hexdigit());
    let mut found = BTreeMap::new();
    let mut folders = vec![TreePath::parse(b"refs").ok()?];
    while let Some(path) = folders.pop() {
        let Ok(folder) = root.open_folder_below(&path) else { continue };
        for name in folder.names().unwrap_or_default() {
            let (Ok(path), Ok(stat)) = (path.join(&name), folder.stat(&name)) else { continue };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => folders.push(path),
                FileType::RegularFile if !name.ends_with(b".lock") => {
                    let text = read(root, path.as_bytes()).unwrap_or_default();
                    if let (Ok(name), true) = (std::str::from_utf8(path.as_bytes()), is_object(text.trim())) {
                        found.insert(name.to_owned(), text.trim().to_owned());
                    }
                }
                _ => {}
            }
        }
        if found.len() > MAX_REFERENCES {
            return None;
        }
    }
    let is_there = root.stat(b"packed-refs").is_ok();
    let packed = read(root, b"packed-refs");
    if is_there && packed.is_none() {
        return None;
    }
    for line in packed.unwrap_or_default().lines() {
        if let Some((object, name)) = line.split_once(' ')
            && is_object(object)
            && name.starts_with("refs/")
        {
            found.entry(name.to_owned()).or_insert_with(|| object.to_owned());
        }
    }
    (found.len() <= MAX_REFERENCES).then_some(found)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const ID: &str = "1234567890123456789012345678901234567890";

    fn mark() -> profile::Mark {
        profile::Mark { never_back: vec!["db/current".to_owned()], references: true, ..Default::default() }
    }

    #[test]
    fn lost_references_and_falling_numbers_are_reported() {
        let folder = tempfile::tempdir().expect("temp");
        let put = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("has one")).expect("mkdir");
            fs::write(path, text).expect("write");
        };
        put("db/current", "60\n");
        put("refs/heads/main", &format!("{ID}\n"));
        put("refs/remotes/origin/HEAD", "ref: refs/remotes/origin/main\n");
        put(
            "packed-refs",
            &format!("# pack-refs with: peeled\n{ID} refs/heads/old\n^{ID}\n{ID} refs/tags/v1\n"),
        );
        let last = Watermarks::look(&mark(), folder.path());
        assert_eq!(last.less_than(&last), None);
        let kept = folder.path().join("kept");
        last.save(&kept).expect("save");
        assert_eq!(Watermarks::load(&kept), Some(last.clone()));
        // Packed meanwhile, moved, raised: nothing is less.
        put("db/current", "61\n");
        fs::remove_file(folder.path().join("refs/heads/main")).expect("remove");
        put("packed-refs", &format!("{ID} refs/heads/main\n{ID} refs/heads/old\n{ID} refs/tags/v1\n"));
        assert_eq!(Watermarks::look(&mark(), folder.path()).less_than(&last), None);
        put("db/current", "57\n");
        put("packed-refs", &format!("{ID} refs/heads/main\n"));
        assert_eq!(
            Watermarks::look(&mark(), folder.path()).less_than(&last).as_deref(),
            Some(&*format!("went back db/current 60 57; gone refs/heads/old {ID}; gone refs/tags/v1 {ID}"))
        );
        // Rubbish is the check's to find.
        put("db/current", "many\n");
        put(
            "packed-refs",
            &(0..30).map(|number| format!("{ID} refs/heads/{number:02}\n")).collect::<String>(),
        );
        let many = Watermarks::look(&mark(), folder.path());
        put("packed-refs", "");
        let told = Watermarks::look(&mark(), folder.path()).less_than(&many).expect("30 are gone");
        assert!(told.ends_with("; 20 more gone") && !told.contains("went back"), "{told}");
    }
}
