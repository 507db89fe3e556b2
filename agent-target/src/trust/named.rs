//! Which files of a generation a check's findings name.
//!
//! Findings are text for people. A word of theirs names a file when it is the file's path in its root or below the tree, its
//! live path, or the end of its path at a slash; a bare file name counts only when it has a dot in it, so that a word of the
//! sentence is not taken for one. To name none is fine: then all files are looked at that may hold the fault.

use std::collections::HashSet;

use assay_common::{manifest::Root, path::TreePath};

/// Words of a text that are longer than this are no paths.
const MAX_WORD_BYTES: usize = 4096;

/// The words of findings that may name files.
#[derive(Debug, Default)]
pub struct Named {
    words: HashSet<Vec<u8>>,
}

impl Named {
    /// Of these texts, about a repository with these roots.
    pub fn new<'a>(texts: impl IntoIterator<Item = &'a str>, roots: &[Root]) -> Self {
        let mut words = HashSet::new();
        for text in texts {
            let separators = |it: char| it.is_whitespace() || "\"'`()[]{}<>,;=|".contains(it);
            for word in text.split(separators) {
                let word = word.trim_matches(|it: char| ":.!?".contains(it));
                // `path:12` and `path:12:5`.
                let word = word.split(':').next().unwrap_or(word).trim_end_matches('/');
                if word.len() < 3 || word.len() > MAX_WORD_BYTES || !word.contains(['/', '.']) {
                    continue;
                }
                for root in roots {
                    let below = word.strip_prefix(&root.live_path).and_then(|rest| rest.strip_prefix('/'));
                    if let Some(below) = below.filter(|below| !below.is_empty()) {
                        let folder = root.subdirectory.as_str();
                        let inner =
                            if folder.is_empty() { below.to_owned() } else { format!("{folder}/{below}") };
                        words.insert(inner.into_bytes());
                    }
                }
                words.insert(word.trim_start_matches("./").as_bytes().to_vec());
            }
        }
        Self { words }
    }

    /// True when no word can be a file's.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Whether the words name this file.
    pub fn names(&self, path: &TreePath) -> bool {
        let bytes = path.as_bytes();
        let starts = std::iter::once(0)
            .chain(bytes.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at + 1));
        starts.into_iter().any(|start| self.words.contains(&bytes[start..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(texts: &[&str]) -> Named {
        let root = |name: &str, path: &str| Root {
            name: name.into(),
            live_path: path.into(),
            subdirectory: name.into(),
        };
        Named::new(texts.iter().copied(), &[root("a", "/srv/a"), root("b", "/srv/b")])
    }

    #[test]
    fn paths_in_findings_name_their_files_and_words_do_not() {
        for (text, path, is_named) in [
            ("storage/depot/element.ndb offset 12: checksum mismatch", "a/storage/depot/element.ndb", true),
            ("element.ndb: bad", "a/storage/depot/element.ndb", true),
            ("error in file \"base/5/16384\": short", "a/base/5/16384", true),
            ("/srv/b/base/5/1, block 3", "b/base/5/1", true),
            ("/srv/b/base/5/1, block 3", "a/base/5/1", false),
            ("/srv/b/x.db:12: bad", "b/x.db", true),
            ("the file is damaged", "a/file", false),
            ("ement.ndb: bad", "a/storage/depot/element.ndb", false),
            ("see 1.2.3", "a/1.2", false),
        ] {
            let path = TreePath::parse(path.as_bytes()).expect("path");
            assert_eq!(named(&[text]).names(&path), is_named, "{text}: {path}");
        }
    }
}
