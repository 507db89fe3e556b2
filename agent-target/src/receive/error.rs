//! Why a stream of content cannot go on.

use assay_common::{
    config::Size, digest::ContentDigest, error::PathError, manifest::ManifestError, path::display_short,
    rpc_status::RpcFault,
};

use crate::store::{StoreError, index::IndexError};

/// Why the stream cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// The source does not keep to the protocol.
    #[error("the source's message breaks the protocol: {rule}")]
    Protocol {
        /// The rule.
        rule: &'static str,
    },
    /// A chunk does not have the digest that was offered.
    #[error("a chunk does not match its digest: {expected} was offered, {actual} came")]
    ChunkMismatch {
        /// As offered.
        expected: ContentDigest,
        /// As received.
        actual: ContentDigest,
    },
    /// The disk has not kept these files of the base, or what was made of them: a content that shares pieces with them is not what
    /// it should be.
    #[error("of the generation that the run builds upon, {} was not kept by the disk", shown(paths))]
    BaseRotten {
        /// Their paths.
        paths: Vec<Vec<u8>>,
    },
    /// The repository holds what it may.
    #[error("with this run the repository would hold more than its quota of {quota} on the target")]
    Quota {
        /// The quota.
        quota: Size,
    },
    /// The store's file system has no more room than it is to keep.
    #[error("the store's file system has {free} left, and {reserve} are kept free")]
    Reserve {
        /// What is kept.
        reserve: Size,
        /// What is free.
        free: Size,
    },
    /// The repository holds as many files and folders as it may.
    #[error(
        "with this run the repository would hold more than its quota of {quota} files and folders on the target"
    )]
    QuotaEntries {
        /// The quota.
        quota: u64,
    },
    /// The store's file system has no more room for files than it is to keep.
    #[error("the store's file system can take {free} more files, and {reserve} are kept free")]
    ReserveEntries {
        /// What is kept.
        reserve: u64,
        /// What is free.
        free: u64,
    },
    /// The stream's messages stopped, or cannot be read.
    #[error(transparent)]
    Stream(RpcFault),
    /// The manifest of the generation that the run builds upon.
    #[error("the base's manifest: {0}")]
    Base(#[source] ManifestError),
    /// A file of the store.
    #[error(transparent)]
    Io(#[from] PathError),
    /// What earlier sessions left.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The chunk index.
    #[error(transparent)]
    Index(#[from] IndexError),
}

fn shown(paths: &[Vec<u8>]) -> String {
    paths.iter().map(|path| display_short(path)).collect::<Vec<_>>().join(", ")
}

pub(super) fn protocol<T>(rule: &'static str) -> Result<T, ReceiveError> {
    Err(ReceiveError::Protocol { rule })
}
