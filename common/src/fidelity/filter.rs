//! What a source leaves out of the entries of a tree, and which entry the target would not take.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::{CopyRules, FoldedName, FsLimits, folded_name, matches_pattern};
use crate::{
    confined::is_host_label,
    limits::MAX_FILE_BYTES,
    manifest::{Entry, EntryKind},
    path::{display_bytes, display_short},
    verdict::coverage::NotCovered,
};

/// Kinds of things that are remembered as left out: attributes have few names.
const MAX_KINDS: usize = 64;
/// Refused entries that are named.
const NAMED: usize = 5;

/// Something that a copy does not have, although the live tree has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct LeftOut {
    /// The attribute's name, or `times`.
    pub what: String,
    /// Why it is left out.
    pub why: String,
    /// An entry that has it.
    pub example: String,
}

/// Why an attribute that the configuration names is left out.
const IGNORED: &str = "ignore_attributes: this repository does not need it";
/// Why a time is another one than at the source.
const CLAMPED: &str = "clamp_times: the target's file system holds the nearest to them";

impl LeftOut {
    /// True for what the operator has declared not to need; else it is the live host's own.
    pub fn is_declared(&self) -> bool {
        self.why == IGNORED || self.why == CLAMPED
    }

    /// What is left out, as a part of the live repository that nobody looks at.
    pub fn not_covered(&self) -> NotCovered {
        let part =
            if self.why == CLAMPED { self.what.clone() } else { format!("the attribute {}", self.what) };
        let message = format!("{} (for example of {})", self.why, self.example);
        NotCovered { part, reason: "declared".to_owned(), message }
    }
}

/// An entry that the target would not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path} {what}")]
pub struct Refused {
    /// The entry, made printable.
    pub path: String,
    /// What of it, and what the target takes.
    pub what: String,
    /// What an operator may do about it.
    pub remedy: String,
}

/// What is left out of the entries of a tree, by this repository's declaration and by the target's word.
#[derive(Debug, Default)]
pub struct Filter {
    /// Attributes that the repository does not need.
    ignore: Vec<String>,
    /// Times may be brought to what the target holds.
    clamp_times: bool,
    /// What the target's file system holds, when the target says so.
    limits: Option<FsLimits>,
    /// What the target takes, when it says so.
    rules: Option<CopyRules>,
    /// What was left out.
    left_out: Mutex<BTreeMap<String, LeftOut>>,
    /// Names of the files that have more of them than the target's file system holds.
    names: Mutex<HashMap<(u64, u64), u64>>,
    /// Paths that were seen, where the target's file system takes names that differ in case only for one.
    folded: Mutex<HashSet<FoldedName>>,
    /// What was refused: the first of it, and how much there is.
    refused: Mutex<(Vec<Refused>, u64)>,
}

impl Filter {
    /// A filter by a repository's own declaration, for a target that says nothing of itself.
    pub fn new(ignore: Vec<String>, clamp_times: bool) -> Self {
        Self { ignore, clamp_times, ..Default::default() }
    }

    /// The same, for a target that holds and takes this.
    pub fn for_target(self, limits: Option<FsLimits>, rules: Option<CopyRules>) -> Self {
        Self { limits, rules, ..self }
    }

    /// A filter that has left out this before.
    pub fn with_left_out(mut self, before: Vec<LeftOut>) -> Self {
        let before = before.into_iter().map(|left_out| (left_out.what.clone(), left_out)).collect();
        self.left_out = Mutex::new(before);
        self
    }

    /// Takes out of `entry` what is not copied.
    ///
    /// # Errors
    /// When the target would not take what is left, or could not hold it.
    pub fn apply(&self, entry: &mut Entry) -> Result<(), Refused> {
        if !entry.xattrs.is_empty() {
            let mut kept = std::mem::take(&mut entry.xattrs);
            kept.retain(|attribute| match self.why_not(&attribute.name) {
                None => true,
                Some(why) => {
                    self.note(&display_bytes(&attribute.name), why, &entry.path);
                    false
                }
            });
            entry.xattrs = kept;
        }
        if let (true, Some(limits)) = (self.clamp_times, &self.limits) {
            let clamped = limits.clamp((entry.mtime_seconds, entry.mtime_nanos));
            if clamped != (entry.mtime_seconds, entry.mtime_nanos) {
                self.note("times", CLAMPED, &entry.path);
                (entry.mtime_seconds, entry.mtime_nanos) = clamped;
            }
        }
        if entry.kind() == EntryKind::File && entry.size > MAX_FILE_BYTES {
            let what =
                format!("is {} bytes long, and a file of a copy has {MAX_FILE_BYTES} at most", entry.size);
            return Err(Refused { path: shown(&entry.path), what, remedy: "exclude the file".to_owned() });
        }
        if let Some(rules) = &self.rules
            && let Some(what) = rules.fault(entry)
        {
            return Err(Refused { path: shown(&entry.path), what, remedy: rules.remedy(entry) });
        }
        if let Some(limits) = &self.limits
            && let Some(what) = limits.fault(entry)
        {
            return Err(Refused { path: shown(&entry.path), what, remedy: limits.remedy(entry) });
        }
        Ok(())
    }

    /// As [`Filter::apply`], for one who looks at the whole tree: what is refused is remembered.
    pub fn look(&self, mut entry: Entry) {
        if let Err(refused) = self.apply(&mut entry) {
            self.remember(refused);
        }
    }

    /// Remembers a refusal for [`Filter::refused`].
    pub fn remember(&self, refused: Refused) {
        let mut all = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        all.1 += 1;
        if all.0.len() < NAMED {
            all.0.push(refused);
        }
    }

    /// The first entries that were refused when they were looked at, and how many there are.
    pub fn refused(&self) -> (Vec<Refused>, u64) {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts a name of a file, by its device and inode; `names` is how many it has, in the tree and elsewhere.
    ///
    /// # Errors
    /// When the tree has more of its names than the target's file system holds.
    pub fn count_name(&self, file: (u64, u64), names: u64, path: &[u8]) -> Result<(), Refused> {
        let Some(limits) = self.limits.as_ref().filter(|limits| names > limits.names) else {
            return Ok(());
        };
        let mut counted = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counted.entry(file).or_default();
        *count += 1;
        if *count != limits.names + 1 {
            return Ok(());
        }
        let (most, store) = (limits.names, &limits.file_system);
        let what = format!(
            "is one more name of a file that has {names}, and a file of the target's {store} has {most} at most"
        );
        let remedy =
            "exclude some of its names, or keep the store on a file system that allows more of them: XFS"
                .to_owned();
        Err(Refused { path: display_short(path), what, remedy })
    }

    /// Looks whether `path` is another entry's on the target's file system. Each path of a walk comes here once.
    ///
    /// # Errors
    /// When it differs in case only from one that came before, and such names are one name there.
    pub fn tell_apart(&self, path: &[u8]) -> Result<(), Refused> {
        let Some(limits) = self.limits.as_ref().filter(|limits| limits.folds_names) else {
            return Ok(());
        };
        let is_new = self.folded.lock().unwrap_or_else(PoisonError::into_inner).insert(folded_name(path));
        if is_new {
            return Ok(());
        }
        let what = format!(
            "has a name that differs from another one in case only, and the target's {} takes both for one name",
            limits.file_system
        );
        let remedy = "rename or exclude one of the two, or keep the store on a file system that tells upper from lower case".to_owned();
        Err(Refused { path: shown(path), what, remedy })
    }

    /// Forgets the names that were counted: the walk begins again.
    pub fn forget_names(&self) {
        self.folded.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.names.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Why an attribute is not copied; `None` when it is.
    fn why_not(&self, name: &[u8]) -> Option<&'static str> {
        if matches_pattern(&self.ignore, name) {
            return Some(IGNORED);
        }
        if is_host_label(name) {
            return Some("it is a label of the live host, and no part of the tree");
        }
        let is_taken = |rules: &CopyRules| matches_pattern(&rules.attributes, name);
        if name.starts_with(b"btrfs.") && !self.rules.as_ref().is_some_and(is_taken) {
            return Some("it is a property of the live file system, which the target's has not");
        }
        None
    }

    /// True when an entry of the basis is as this filter would make it, as far as the entry itself tells.
    pub fn is_as_filtered(&self, entry: &Entry) -> bool {
        entry.xattrs.iter().all(|attribute| self.why_not(&attribute.name).is_none())
            && self.rules.as_ref().is_none_or(|rules| rules.fault(entry).is_none())
    }

    fn note(&self, what: &str, why: &str, path: &[u8]) {
        let mut left_out = self.left_out.lock().unwrap_or_else(PoisonError::into_inner);
        if left_out.contains_key(what) || left_out.len() >= MAX_KINDS {
            return;
        }
        let noted = LeftOut { what: what.to_owned(), why: why.to_owned(), example: shown(path) };
        left_out.insert(what.to_owned(), noted);
    }

    /// What was left out so far, by its name.
    pub fn left_out(&self) -> Vec<LeftOut> {
        self.left_out.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// What decides how entries are filtered: while it is the same, an entry that was filtered once need not be looked at again.
    pub fn fingerprint(&self) -> String {
        let rules = self.rules.as_ref().map(|rules| &rules.attributes);
        let times = self.limits.as_ref().filter(|_| self.clamp_times);
        let times = times.map(|limits| (limits.seconds, limits.granularity));
        format!("1 {:?} {rules:?} {times:?}", self.ignore)
    }
}

/// A path in a message; the root of the tree has no name of its own.
fn shown(path: &[u8]) -> String {
    if path.is_empty() { ".".to_owned() } else { display_short(path) }
}

/// What an operator may do about these entries, each remedy once.
pub fn remedies(refused: &[Refused]) -> String {
    let mut remedies: Vec<&str> = Vec::new();
    for one in refused {
        if !remedies.contains(&one.remedy.as_str()) {
            remedies.push(&one.remedy);
        }
    }
    format!("{}; docs/CONFIGURATION.md", remedies.join("; or "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::ExtendedAttribute;

    fn entry(names: &[&str]) -> Entry {
        let attribute = |name: &&str| ExtendedAttribute { name: name.as_bytes().to_vec(), value: vec![1] };
        Entry {
            path: b"d/f".to_vec(),
            kind: EntryKind::File.into(),
            xattrs: names.iter().map(attribute).collect(),
            ..Default::default()
        }
    }

    fn names(entry: &Entry) -> Vec<String> {
        entry.xattrs.iter().map(|it| String::from_utf8_lossy(&it.name).into_owned()).collect()
    }

    #[test]
    fn what_belongs_to_the_host_and_what_is_declared_is_left_out_and_named() {
        let rules = CopyRules { attributes: vec!["security.capability".into()], special_files: vec![] };
        let filter = Filter { ignore: vec!["user.big*".into()], rules: Some(rules), ..Default::default() };
        let mut some =
            entry(&["btrfs.compression", "security.capability", "security.selinux", "user.a", "user.big1"]);
        filter.apply(&mut some).expect("the rest is taken");
        assert_eq!(names(&some), ["security.capability", "user.a"]);
        let told = filter.left_out();
        let told: Vec<_> = told.iter().map(|it| (it.what.as_str(), it.example.as_str())).collect();
        assert_eq!(told, [("btrfs.compression", "d/f"), ("security.selinux", "d/f"), ("user.big1", "d/f")]);
        let refused = filter.apply(&mut entry(&["trusted.x"])).expect_err("it is neither");
        assert!(refused.to_string().starts_with("d/f has the attribute trusted.x"), "{refused}");
        assert!(refused.remedy.contains("attributes = [\"trusted.x\"]"), "{}", refused.remedy);
        assert!(filter.is_as_filtered(&some) && !filter.is_as_filtered(&entry(&["user.big2"])));
        assert!(!filter.is_as_filtered(&entry(&["trusted.x"])));
    }

    /// Its zeros would be hashed for years.
    #[test]
    fn a_file_that_is_longer_than_any_copy_is_refused() {
        let filter = Filter::default();
        let mut some = entry(&[]);
        some.size = MAX_FILE_BYTES;
        filter.apply(&mut some).expect("as long as can be");
        some.size = 1 << 62;
        let refused = filter.apply(&mut some).expect_err("too long");
        assert!(refused.to_string().starts_with("d/f is 4611686018427387904 bytes long"), "{refused}");
    }

    /// A store on ext4 with casefold holds one of them: the run must say so before it has copied everything.
    #[test]
    fn names_that_differ_in_case_only_are_refused_where_they_are_one() {
        let folds = FsLimits { folds_names: true, ..crate::fidelity::limits::tests::ext4_small() };
        let filter = Filter { limits: Some(folds.clone()), ..Default::default() };
        for _ in 0..2 {
            for path in ["", "Makefile", "d", "d/makefile"] {
                filter.tell_apart(path.as_bytes()).expect("another name");
            }
            let refused = filter.tell_apart(b"makefile").expect_err("one of two");
            assert_eq!(refused.path, "makefile");
            assert!(refused.what.contains("in case only") && refused.remedy.contains("rename"), "{refused}");
            filter.forget_names();
        }
        let exact = Filter { limits: Some(FsLimits { folds_names: false, ..folds }), ..Default::default() };
        exact.tell_apart(b"a").expect("a name");
        exact.tell_apart(b"A").expect("another one");
    }

    /// A target on btrfs says that it takes them.
    #[test]
    fn a_property_of_btrfs_is_kept_where_the_target_has_it() {
        let rules = CopyRules { attributes: vec!["btrfs.compression".into()], special_files: vec![] };
        let filter = Filter { rules: Some(rules), ..Default::default() };
        let mut some = entry(&["btrfs.compression"]);
        filter.apply(&mut some).expect("taken");
        assert_eq!(names(&some), ["btrfs.compression"]);
        assert_eq!(filter.left_out(), []);
    }
}
