//! What a step is given for the parts that it is to check now: `{parts}` of its command.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt as _,
};

use assay_common::{path::TreePath, profile::Scope};

/// More arguments, or bytes of arguments, than this do not go to one run of a command: the kernel takes 2 MiB with the environment, and 128 KiB
/// of one argument.
const MAX_ARGUMENTS: usize = 2000;
const MAX_BYTES: usize = 512 * 1024;

/// What stands for a part in a step's command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartArgument {
    /// A text.
    Text(String),
    /// A file, which the step sees where its root is.
    File {
        /// The root's name.
        root: String,
        /// Where it is in the root.
        path: TreePath,
    },
}

impl PartArgument {
    /// The argument itself.
    pub(super) fn expand(&self, scope: &Scope) -> OsString {
        match self {
            Self::Text(text) => text.into(),
            Self::File { root, path } => {
                let root = scope.roots.iter().find(|(name, _)| name == root);
                let root = root.map(|(_, path)| path.clone()).unwrap_or_default();
                root.join(OsStr::from_bytes(path.as_bytes())).into()
            }
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            // The root's place is not known yet, and is short beside the limit.
            Self::File { path, .. } => path.as_bytes().len() + 256,
        }
    }
}

/// Cuts the arguments into as many as one run of a command takes.
pub(super) fn batches(arguments: &[PartArgument]) -> Vec<Vec<PartArgument>> {
    let mut batches: Vec<Vec<PartArgument>> = Vec::new();
    let mut bytes = 0;
    for argument in arguments {
        match batches.last_mut() {
            Some(batch) if batch.len() < MAX_ARGUMENTS && bytes + argument.bytes() <= MAX_BYTES => {
                bytes += argument.bytes();
                batch.push(argument.clone());
            }
            _ => {
                bytes = argument.bytes();
                batches.push(vec![argument.clone()]);
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_argument_is_in_one_batch_and_no_batch_is_too_large() {
        let text = |length: usize| PartArgument::Text("x".repeat(length));
        for (arguments, sizes) in [
            (vec![], vec![]),
            (vec![text(1); MAX_ARGUMENTS], vec![MAX_ARGUMENTS]),
            (vec![text(1); MAX_ARGUMENTS + 1], vec![MAX_ARGUMENTS, 1]),
            (vec![text(MAX_BYTES / 2); 5], vec![2, 2, 1]),
            (vec![text(MAX_BYTES + 1), text(1)], vec![1, 1]),
        ] {
            let found: Vec<_> = batches(&arguments).iter().map(Vec::len).collect();
            assert_eq!(found, sizes);
        }
    }

    #[test]
    fn a_file_is_named_where_the_step_sees_its_root() {
        let scope = Scope {
            roots: vec![("a".into(), "/srv/a".into()), ("b".into(), "/srv/b".into())],
            ..Default::default()
        };
        let path = TreePath::parse(b"deep/file\xff").expect("a path");
        let file = PartArgument::File { root: "b".into(), path };
        assert_eq!(file.expand(&scope).as_bytes(), b"/srv/b/deep/file\xff");
    }
}
