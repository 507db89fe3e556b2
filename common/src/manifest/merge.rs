//! A manifest made from the one before it and the steps that lead to the new one, validated as a whole.
//!
//! This is the one place where entries from the other side are accepted: whatever they bring, what leaves
//! [`DeltaMerger`] is a sorted tree in which every entry's folder comes before it (the fault behind CVE-2024-12087 was
//! lists that were merged and not validated again).

use super::{Entry, EntryFault, EntryKind, ManifestError, reuse, validate_entry};
use crate::path::{TreePath, display_short};
use assay_proto::v1::{ManifestStep, manifest_step};

/// Why steps do not make a manifest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeltaFault {
    /// An entry breaks a rule of its own.
    #[error(transparent)]
    Entry(#[from] EntryFault),
    /// The entry does not come after the one before it.
    #[error("the entry {path:?} is out of order or stands twice")]
    Order {
        /// The path, made printable.
        path: String,
    },
    /// The entry's folder is not a folder of this manifest.
    #[error("the entry {path:?} is in no folder of this manifest")]
    NoFolder {
        /// The path, made printable.
        path: String,
    },
    /// The first entry is not the root folder.
    #[error("the manifest does not start with the root folder")]
    NoRoot,
    /// The steps take over or leave out more entries than the base has.
    #[error("the steps go beyond the end of the base")]
    BeyondBase,
    /// The steps end before the base does.
    #[error("the steps leave entries of the base undecided")]
    BaseLeft,
    /// The entry shares pieces with one that was not left out just before.
    #[error("the entry {path:?} reuses pieces of an entry that was not left out just before it")]
    NoReuse {
        /// The path, made printable.
        path: String,
    },
    /// A hard link whose first name is not there, or is nothing that can have further names.
    #[error("the entry {path:?} is a hard link to {target:?}, which is no file of this manifest")]
    NoFirstName {
        /// The path, made printable.
        path: String,
        /// What it is said to be a further name of, made printable.
        target: String,
    },
    /// A step of no known kind, or one without effect.
    #[error("a step is empty")]
    EmptyStep,
    /// More entries than allowed.
    #[error("the manifest has more than {limit} entries")]
    TooMany {
        /// What is allowed.
        limit: u64,
    },
    /// The base cannot be read.
    #[error("the base's manifest: {0}")]
    Base(#[from] ManifestError),
}

/// Checks that entries come sorted and that each lies in a folder that came before it.
#[derive(Default)]
pub struct OrderValidator {
    /// Folders above the place where the walk stands, from the root down.
    folders: Vec<TreePath>,
    last: Option<TreePath>,
}

impl OrderValidator {
    /// Takes the next entry.
    ///
    /// # Errors
    /// Says which rule of the order or of the entry itself is broken.
    pub fn check(&mut self, entry: &Entry) -> Result<TreePath, DeltaFault> {
        let path = validate_entry(entry)?;
        match &self.last {
            None if !path.is_root() || entry.kind() != EntryKind::Directory => {
                return Err(DeltaFault::NoRoot);
            }
            Some(last) if *last >= path => return Err(DeltaFault::Order { path: path.short() }),
            _ => {}
        }
        if let Some(parent) = path.parent() {
            while self.folders.last().is_some_and(|folder| folder.as_bytes() != parent) {
                self.folders.pop();
            }
            if self.folders.is_empty() {
                return Err(DeltaFault::NoFolder { path: path.short() });
            }
        }
        if entry.kind() == EntryKind::Directory {
            self.folders.push(path.clone());
        }
        self.last = Some(path.clone());
        Ok(path)
    }
}

/// Where a merged entry comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The base has the same entry.
    Base,
    /// It was put; its content, if it is a file, has this number.
    Put {
        /// As in `PutEntry.content`.
        content: u64,
    },
}

/// Applies steps to a base and hands each entry of the result to a sink, in order.
pub struct DeltaMerger<B> {
    base: B,
    validator: OrderValidator,
    entries: u64,
    limit: u64,
    dropped: u64,
    /// The entry that was dropped last: an entry of the same path may be told by what it shares with it.
    dropped_last: Option<Entry>,
}

impl<B: FnMut() -> Result<Option<Entry>, ManifestError>> DeltaMerger<B> {
    /// `base` gives the base's entries one by one; at most `limit` entries are accepted.
    pub fn new(base: B, limit: u64) -> Self {
        Self { base, validator: OrderValidator::default(), entries: 0, limit, dropped: 0, dropped_last: None }
    }

    /// Applies one step. The sink's own error ends the merge as it is.
    ///
    /// # Errors
    /// [`DeltaFault`] when the step does not fit, or the sink's error.
    pub fn apply<E: From<DeltaFault>>(
        &mut self,
        step: ManifestStep,
        sink: &mut impl FnMut(Entry, Origin) -> Result<(), E>,
    ) -> Result<(), E> {
        match step.kind.ok_or(DeltaFault::EmptyStep)? {
            manifest_step::Kind::Keep(count) => {
                for _ in 0..nonzero(count)? {
                    let entry = (self.base)().map_err(DeltaFault::from)?.ok_or(DeltaFault::BeyondBase)?;
                    self.emit(entry, Origin::Base, sink)?;
                }
                Ok(())
            }
            manifest_step::Kind::Drop(count) => {
                for _ in 0..nonzero(count)? {
                    let entry = (self.base)().map_err(DeltaFault::from)?.ok_or(DeltaFault::BeyondBase)?;
                    self.dropped += 1;
                    self.dropped_last = Some(entry);
                }
                Ok(())
            }
            manifest_step::Kind::Put(put) => {
                let mut entry = put.entry.ok_or(DeltaFault::EmptyStep)?;
                if !put.reuse.is_empty() {
                    let base = self.dropped_last.take().filter(|base| base.path == entry.path);
                    let base =
                        base.ok_or_else(|| DeltaFault::NoReuse { path: display_short(&entry.path) })?;
                    reuse::expand(&mut entry, &put.reuse, &base).map_err(DeltaFault::from)?;
                }
                self.emit(entry, Origin::Put { content: put.content }, sink)
            }
        }
    }

    fn emit<E: From<DeltaFault>>(
        &mut self,
        entry: Entry,
        origin: Origin,
        sink: &mut impl FnMut(Entry, Origin) -> Result<(), E>,
    ) -> Result<(), E> {
        self.validator.check(&entry)?;
        self.entries += 1;
        if self.entries > self.limit {
            return Err(DeltaFault::TooMany { limit: self.limit }.into());
        }
        sink(entry, origin)
    }

    /// Ends the merge: every entry of the base must have been kept or dropped. Returns how many were dropped.
    ///
    /// # Errors
    /// When entries of the base are left, or when there is no entry at all.
    pub fn finish(mut self) -> Result<u64, DeltaFault> {
        if self.entries == 0 {
            return Err(DeltaFault::NoRoot);
        }
        if (self.base)()?.is_some() {
            return Err(DeltaFault::BaseLeft);
        }
        Ok(self.dropped)
    }
}

fn nonzero(count: u64) -> Result<u64, DeltaFault> {
    if count == 0 { Err(DeltaFault::EmptyStep) } else { Ok(count) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use assay_proto::v1::PutEntry;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn folder(path: &str) -> Entry {
        Entry { path: path.as_bytes().to_vec(), kind: EntryKind::Directory.into(), ..Default::default() }
    }

    fn keep(count: u64) -> ManifestStep {
        ManifestStep { kind: Some(manifest_step::Kind::Keep(count)) }
    }

    fn drop_step(count: u64) -> ManifestStep {
        ManifestStep { kind: Some(manifest_step::Kind::Drop(count)) }
    }

    fn put(entry: Entry) -> ManifestStep {
        ManifestStep {
            kind: Some(manifest_step::Kind::Put(PutEntry { entry: Some(entry), ..Default::default() })),
        }
    }

    fn merge(base: &[Entry], steps: Vec<ManifestStep>) -> Result<Vec<Entry>, DeltaFault> {
        let mut base = base.iter().cloned();
        let mut merger = DeltaMerger::new(move || Ok(base.next()), 100);
        let mut merged = Vec::new();
        for step in steps {
            merger.apply(step, &mut |entry, _| -> Result<(), DeltaFault> {
                merged.push(entry);
                Ok(())
            })?;
        }
        merger.finish()?;
        Ok(merged)
    }

    #[test]
    fn steps_that_do_not_make_a_tree_are_refused() {
        let base = [folder(""), folder("a"), folder("a/b")];
        assert_eq!(merge(&base, vec![keep(3)]).expect("same"), base);
        let put = |path: &str| put(folder(path));
        let file_as_folder =
            Entry { kind: EntryKind::Fifo.into(), path: b"b".to_vec(), ..Default::default() };
        for (steps, name) in [
            (vec![], "nothing"),
            (vec![keep(2)], "base left"),
            (vec![keep(4)], "beyond base"),
            (vec![keep(0)], "empty step"),
            (vec![ManifestStep { kind: None }], "no step"),
            (vec![put("a"), drop_step(3)], "no root"),
            (vec![keep(3), put("a/a")], "not sorted"),
            (vec![keep(3), put("a/b")], "twice"),
            (vec![keep(1), drop_step(1), keep(1)], "kept below a dropped folder"),
            (vec![keep(3), put("c/d")], "no such folder"),
            (vec![keep(3), super::tests::put(file_as_folder), put("b/x")], "below a thing that is no folder"),
        ] {
            assert!(merge(&base, steps).is_err(), "{name} was let through");
        }
        let fifo = Entry { kind: EntryKind::Fifo.into(), ..Default::default() };
        assert!(matches!(merge(&[], vec![super::tests::put(fifo)]), Err(DeltaFault::NoRoot)));
        let put_again = |steps: Vec<ManifestStep>| merge(&[], [vec![put("")], steps].concat());
        assert_eq!(
            put_again((1..100).map(|n| put(&format!("x{n:03}"))).collect()).expect("the limit").len(),
            100
        );
        let many = (0..101).map(|n| put(&format!("x{n:03}")));
        let steps = std::iter::once(put("")).chain(many).collect();
        assert!(matches!(merge(&[], steps), Err(DeltaFault::TooMany { limit: 100 })));
    }

    /// A file shares pieces with the entry of its own path that was dropped just before it, and with no other.
    #[test]
    fn pieces_are_shared_with_the_entry_that_was_dropped_just_before() {
        let file = |path: &str| Entry {
            path: path.as_bytes().to_vec(),
            kind: EntryKind::File.into(),
            ..Default::default()
        };
        let base = [folder(""), file("a"), file("b")];
        let sharing = |path: &str| ManifestStep {
            kind: Some(manifest_step::Kind::Put(PutEntry {
                entry: Some(file(path)),
                reuse: vec![Default::default()],
                ..Default::default()
            })),
        };
        for (steps, name) in [
            (vec![keep(1), drop_step(2), sharing("a")], "another entry was dropped since"),
            (vec![keep(1), drop_step(1), sharing("b")], "the path is another"),
            (vec![keep(1), sharing("a")], "nothing was dropped"),
        ] {
            assert!(matches!(merge(&base, steps), Err(DeltaFault::NoReuse { .. })), "{name}");
        }
    }

    proptest! {
        /// Against a slow oracle: two maps and their difference.
        #[test]
        fn any_two_trees_are_joined_by_their_steps(
            old in proptest::collection::btree_map("[a-d]{1,2}", 0u32..3, 0..12),
            new in proptest::collection::btree_map("[a-d]{1,2}", 0u32..3, 0..12),
        ) {
            let tree = |map: &BTreeMap<String, u32>| -> Vec<Entry> {
                std::iter::once(folder(""))
                    .chain(map.iter().map(|(name, mode)| Entry { mode: *mode, ..folder(name) }))
                    .collect()
            };
            let (old, new) = (tree(&old), tree(&new));
            let mut steps = Vec::new();
            let mut left = old.iter().peekable();
            for entry in &new {
                while left.peek().is_some_and(|old| old.path < entry.path) {
                    left.next();
                    steps.push(drop_step(1));
                }
                match left.peek() {
                    Some(old) if *old == entry => { left.next(); steps.push(keep(1)); }
                    Some(old) if old.path == entry.path => {
                        left.next();
                        steps.extend([drop_step(1), put(entry.clone())]);
                    }
                    _ => steps.push(put(entry.clone())),
                }
            }
            steps.extend(left.map(|_| drop_step(1)));
            prop_assert_eq!(merge(&old, steps).expect("valid steps"), new);
        }
    }
}
