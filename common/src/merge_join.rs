//! Two sequences in the order of the tree, joined by their paths: a walk and a basis, two manifests, a base and its plan.

use std::cmp::Ordering;

use crate::{
    manifest::Entry,
    path::{TreePath, compare_paths},
};

/// An item of a sequence that is sorted by [`compare_paths`].
pub trait HasPath {
    /// Its path.
    fn path(&self) -> &[u8];
}

impl HasPath for Entry {
    fn path(&self) -> &[u8] {
        &self.path
    }
}

impl<T> HasPath for (Entry, T) {
    fn path(&self) -> &[u8] {
        &self.0.path
    }
}

impl<T> HasPath for (TreePath, T) {
    fn path(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// What stands at one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joined<L, R> {
    /// The left sequence alone has it.
    Left(L),
    /// The right sequence alone has it.
    Right(R),
    /// Both have it.
    Both(L, R),
}

impl<L, R> Joined<L, R> {
    /// The item of each sequence.
    pub fn split(self) -> (Option<L>, Option<R>) {
        match self {
            Self::Left(left) => (Some(left), None),
            Self::Right(right) => (None, Some(right)),
            Self::Both(left, right) => (Some(left), Some(right)),
        }
    }
}

/// The next item of a sequence, read one ahead.
#[derive(Debug)]
enum Ahead<T> {
    Unread,
    Item(T),
    End,
}

impl<T> Ahead<T> {
    fn read<E>(&mut self, next: impl FnOnce() -> Result<Option<T>, E>) -> Result<Option<&T>, E> {
        if matches!(self, Self::Unread) {
            *self = next()?.map_or(Self::End, Self::Item);
        }
        match self {
            Self::Item(item) => Ok(Some(item)),
            Self::Unread | Self::End => Ok(None),
        }
    }

    fn take(&mut self) -> Option<T> {
        match std::mem::replace(self, Self::Unread) {
            Self::Item(item) => Some(item),
            other => {
                // A sequence that has ended is not read again.
                *self = other;
                None
            }
        }
    }
}

/// A merge of two sequences. It holds one item of each and no sequence: whoever merges can use both between two steps.
#[derive(Debug)]
pub struct MergeJoin<L, R> {
    left: Ahead<L>,
    right: Ahead<R>,
}

impl<L, R> Default for MergeJoin<L, R> {
    fn default() -> Self {
        Self { left: Ahead::Unread, right: Ahead::Unread }
    }
}

impl<L: HasPath, R: HasPath> MergeJoin<L, R> {
    /// What stands at the next path, in order; `None` when both sequences have ended. `left` and `right` give the next item of each.
    ///
    /// # Errors
    /// Those of `left` and `right`.
    pub fn next<E>(
        &mut self,
        left: impl FnOnce() -> Result<Option<L>, E>,
        right: impl FnOnce() -> Result<Option<R>, E>,
    ) -> Result<Option<Joined<L, R>>, E> {
        let order = match (self.left.read(left)?, self.right.read(right)?) {
            (None, None) => return Ok(None),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(left), Some(right)) => compare_paths(left.path(), right.path()),
        };
        let left = if order.is_le() { self.left.take() } else { None };
        let right = if order.is_ge() { self.right.take() } else { None };
        Ok(match (left, right) {
            (Some(left), Some(right)) => Some(Joined::Both(left, right)),
            (Some(left), None) => Some(Joined::Left(left)),
            (None, right) => right.map(Joined::Right),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn path(text: &str) -> TreePath {
        TreePath::parse(text.as_bytes()).expect("a path")
    }

    fn join(left: &[&str], right: &[&str]) -> Vec<(Option<String>, Option<String>)> {
        let items = |paths: &[&str]| {
            let mut paths: Vec<_> = paths.iter().map(|text| (path(text), (*text).to_owned())).collect();
            paths.sort();
            paths.into_iter()
        };
        let (mut left, mut right) = (items(left), items(right));
        let mut join = MergeJoin::default();
        let mut joined = Vec::new();
        while let Some(next) = join.next(|| Ok::<_, ()>(left.next()), || Ok(right.next())).expect("no error")
        {
            let (left, right) = next.split();
            joined.push((left.map(|it| it.1), right.map(|it| it.1)));
        }
        joined
    }

    /// In the order of the tree, in which a folder comes right before what it holds.
    #[test]
    fn each_path_comes_once_with_what_both_have_there() {
        let both = |text: &str| (Some(text.to_owned()), Some(text.to_owned()));
        assert_eq!(
            join(&["a", "a/b", "a-b"], &["a", "a-b", "c"]),
            [both("a"), (Some("a/b".into()), None), both("a-b"), (None, Some("c".into()))]
        );
        assert_eq!(join(&[], &[]), []);
        assert_eq!(join(&["a"], &[]), [(Some("a".into()), None)]);
        assert_eq!(join(&[], &["a"]), [(None, Some("a".into()))]);
    }

    /// An error ends the merge where it stands; an item that was read before it is not lost.
    #[test]
    fn an_error_loses_nothing() {
        let mut join: MergeJoin<(TreePath, ()), (TreePath, ())> = MergeJoin::default();
        let item = |text| Ok::<_, &str>(Some((path(text), ())));
        assert_eq!(join.next(|| item("a"), || Err("broken")), Err("broken"));
        let after = join.next(|| unreachable!("it is held"), || item("b"));
        assert_eq!(after, Ok(Some(Joined::Left((path("a"), ())))));
    }

    /// A sequence that has ended is asked once.
    #[test]
    fn an_end_is_an_end() {
        let mut join: MergeJoin<(TreePath, ()), (TreePath, ())> = MergeJoin::default();
        let mut asked = 0;
        for text in ["a", "b", "c"] {
            let next = join.next(
                || {
                    asked += 1;
                    Ok::<_, ()>(None)
                },
                || Ok(Some((path(text), ()))),
            );
            assert_eq!(next, Ok(Some(Joined::Right((path(text), ())))));
        }
        assert_eq!(asked, 1);
    }

    proptest! {
        /// Against two maps.
        #[test]
        fn any_two_trees_are_joined(
            left in proptest::collection::btree_set("[a-c]{1,2}(/[a-c])?", 0..12),
            right in proptest::collection::btree_set("[a-c]{1,2}(/[a-c])?", 0..12),
        ) {
            let texts = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>();
            let (lefts, rights) = (texts(&left), texts(&right));
            let joined = join(
                &lefts.iter().map(String::as_str).collect::<Vec<_>>(),
                &rights.iter().map(String::as_str).collect::<Vec<_>>(),
            );
            let all: BTreeMap<TreePath, &String> = left.union(&right).map(|text| (path(text), text)).collect();
            let expected: Vec<_> = all
                .into_values()
                .map(|text| (left.get(text).cloned(), right.get(text).cloned()))
                .collect();
            prop_assert_eq!(joined, expected);
        }
    }
}
