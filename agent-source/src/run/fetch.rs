//! The base's manifest as the target tells it, for a source that has lost its own copy. What comes is bounded, and it is used only
//! when it is the one that was named and a valid one: entries of it become steps of the next manifest.

use std::{io::BufReader, path::Path, time::Duration};

use assay_common::{
    closed,
    digest::{MANIFEST_CONTEXT, RootDigest},
    fault::{Point, at},
    manifest::{ManifestReader, OrderValidator},
};
use assay_proto::v1::ManifestPart;
use futures::{Stream, StreamExt as _};
use tokio::io::AsyncWriteExt as _;
use tonic::Status;

use super::fault::{Fault, silent};

/// Writes the manifest to `path`. At most `limit` bytes are taken, and each part may take `patience`.
pub(super) async fn manifest(
    mut parts: impl Stream<Item = Result<ManifestPart, Status>> + Unpin,
    path: &Path,
    root: RootDigest,
    limit: u64,
    patience: Duration,
) -> Result<(), Fault> {
    let mut hasher = blake3::Hasher::new_derive_key(MANIFEST_CONTEXT);
    let write = |error| Fault::io("write", path, error);
    let mut file = tokio::fs::File::from_std(closed::create_file(path).map_err(write)?);
    let mut bytes = 0u64;
    loop {
        let next = tokio::time::timeout(patience, parts.next()).await;
        let Some(part) = next.unwrap_or_else(|_| Some(Err(silent(patience)))) else { break };
        let part = part.map_err(Fault::opening)?;
        bytes = bytes.saturating_add(part.data.len() as u64);
        if bytes > limit {
            return Err(Fault::protocol(&format!("a manifest has at most {limit} bytes")));
        }
        hasher.update(&part.data);
        at(Point::BasisFetch).map_err(write)?;
        file.write_all(&part.data).await.map_err(write)?;
    }
    file.flush().await.map_err(write)?;
    if hasher.finalize() != root.0 {
        return Err(Fault::protocol("the base's manifest has its root digest"));
    }
    let path = path.to_owned();
    let valid = tokio::task::spawn_blocking(move || validate(&path)).await;
    valid.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

fn validate(path: &Path) -> Result<(), Fault> {
    let refused = |why: String| Fault::protocol(&format!("the base's manifest is valid: {why}"));
    let file = std::fs::File::open(path).map_err(|error| Fault::io("open", path, error))?;
    let file = BufReader::with_capacity(256 * 1024, file);
    let mut reader = ManifestReader::open(file).map_err(|error| refused(error.to_string()))?;
    let mut order = OrderValidator::default();
    while let Some(entry) = reader.next_entry().map_err(|error| refused(error.to_string()))? {
        order.check(&entry).map_err(|error| refused(error.to_string()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use assay_common::manifest::{Entry, EntryKind, Header, ManifestWriter, Root};

    use super::*;

    fn written(names: &[&str]) -> (Vec<u8>, RootDigest) {
        let root = Root { name: "x".into(), live_path: "/x".into(), subdirectory: String::new() };
        let mut writer = ManifestWriter::create(Vec::new(), &Header { roots: vec![root] }).expect("memory");
        for name in names {
            let kind = EntryKind::Directory.into();
            writer
                .push(&Entry { path: name.as_bytes().to_vec(), kind, ..Default::default() })
                .expect("memory");
        }
        let (bytes, root, _) = writer.finish().expect("memory");
        (bytes, root)
    }

    async fn fetched(bytes: &[u8], root: RootDigest, limit: u64) -> Result<(), String> {
        let folder = tempfile::tempdir().expect("temp");
        let parts = bytes.chunks(7).map(|data| Ok(ManifestPart { data: data.to_vec().into() }));
        let parts: Vec<Result<ManifestPart, Status>> = parts.collect();
        let parts = futures::stream::iter(parts);
        let path = folder.path().join("manifest");
        manifest(parts, &path, root, limit, Duration::from_secs(60)).await.map_err(|fault| fault.text())
    }

    #[tokio::test]
    async fn a_manifest_is_bounded_named_and_valid() {
        let (bytes, root) = written(&["", "a", "a/b"]);
        let length = bytes.len() as u64;
        assert_eq!(fetched(&bytes, root, length).await, Ok(()));
        let refused = async |bytes: &[u8], root, limit, word: &str| {
            let text = fetched(bytes, root, limit).await.expect_err("it is refused");
            assert!(text.contains(word), "{text}");
        };
        refused(&bytes, root, length - 1, &format!("at most {} bytes", length - 1)).await;
        refused(&bytes[..bytes.len() - 1], root, length, "has its root digest").await;
        let (bytes, root) = written(&["", "b", "a"]);
        refused(&bytes, root, length, "out of order").await;
        let (bytes, root) = written(&["", "../a"]);
        refused(&bytes, root, length, "'.' or '..'").await;
    }

    /// A target that stops in the middle is not waited for. The clock of the test stands still but for waiting.
    #[tokio::test(start_paused = true)]
    async fn a_silent_target_is_given_up() {
        let folder = tempfile::tempdir().expect("temp");
        let parts = futures::stream::pending::<Result<ManifestPart, Status>>();
        let path = folder.path().join("manifest");
        let ended = manifest(parts, &path, RootDigest([0; 32]), 100, Duration::from_secs(60)).await;
        let text = ended.expect_err("it is given up").text();
        assert!(text.contains("target.patience"), "{text}");
    }
}
