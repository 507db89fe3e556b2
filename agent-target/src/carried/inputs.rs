//! Digests of what a part's result depends on.

use assay_common::{
    digest::ContentDigest,
    manifest::{Entry, EntryKind, Root},
    verdict::HexDigest,
};

use super::record::FORM;
use crate::config::Repository;

/// Context of these digests, so that they are those of nothing else.
const CONTEXT: &str = "assay v1 inputs of a part";

/// A digest that is made of fields, each with its length.
#[derive(Clone)]
pub(super) struct Inputs(blake3::Hasher);

impl Inputs {
    pub(super) fn new() -> Self {
        Self(blake3::Hasher::new_derive_key(CONTEXT))
    }

    pub(super) fn add(&mut self, field: &[u8]) -> &mut Self {
        self.0.update(&(field.len() as u64).to_le_bytes()).update(field);
        self
    }

    pub(super) fn number(&mut self, number: u64) -> &mut Self {
        self.add(&number.to_le_bytes())
    }

    pub(super) fn finish(&self) -> HexDigest {
        HexDigest(*self.0.finalize().as_bytes())
    }
}

/// What the results of all parts depend on: this program and what it runs, the profile, and how the repository is set up. Any change of
/// it starts anew, whether it could have mattered or not.
pub(super) fn settings(config: &Repository, checker: HexDigest, roots: &[Root]) -> HexDigest {
    let mut inputs = Inputs::new();
    inputs.add(env!("CARGO_PKG_VERSION").as_bytes()).number(u64::from(FORM)).add(&checker.0);
    inputs.add(config.name.as_bytes());
    // What these hold is compared, not read.
    let held = format!(
        "{:?}",
        (
            config.isolation,
            config.workspace,
            &config.names,
            &config.live_paths,
            config.limits,
            config.account
        )
    );
    inputs.add(held.as_bytes());
    for (place, file) in &config.overlays {
        inputs.add(place.as_bytes()).add(file.as_os_str().as_encoded_bytes());
        // One that cannot be read is laid over no workspace either.
        let content = std::fs::read(file).map(|content| ContentDigest::of(&content));
        inputs.add(&content.map_or_else(|_| Vec::new(), |digest| digest.0.to_vec()));
    }
    for root in roots {
        inputs.add(root.name.as_bytes()).add(root.live_path.as_bytes()).add(root.subdirectory.as_bytes());
    }
    inputs.finish()
}

/// Digest of an entry of the manifest: of its content and all of its metadata. How the content is cut into pieces is no part of it, nor
/// is the time of a folder, which changes with the names in it.
pub(super) fn entry_digest(entry: &Entry, is_altered: bool) -> HexDigest {
    let mut inputs = Inputs::new();
    let kind = entry.kind();
    inputs.add(&entry.path).add(kind.as_str_name().as_bytes());
    for number in [entry.mode, entry.uid, entry.gid, entry.device_major, entry.device_minor] {
        inputs.number(u64::from(number));
    }
    if kind != EntryKind::Directory {
        inputs.add(&entry.mtime_seconds.to_le_bytes()).number(u64::from(entry.mtime_nanos));
    }
    inputs.number(entry.size).add(&entry.digest).add(&entry.link_target);
    inputs.number(u64::from(entry.unstable)).number(entry.xattrs.len() as u64);
    for attribute in &entry.xattrs {
        inputs.add(&attribute.name).add(&attribute.value);
    }
    // As if it had other content: what a negative control makes of it.
    inputs.number(u64::from(is_altered));
    inputs.finish()
}

/// Digest of a file's content alone. Copies that the SQLite mark makes have the mark's time, so their time says nothing of a change.
pub(super) fn content_digest(entry: &Entry, is_altered: bool) -> HexDigest {
    let mut inputs = Inputs::new();
    inputs.add(b"content").number(entry.size).add(&entry.digest);
    inputs.number(u64::from(entry.unstable)).number(u64::from(is_altered));
    inputs.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use assay_proto::v1::ExtendedAttribute;

    /// Each field counts, but for the pieces of a content and a folder's time.
    #[test]
    fn whatever_an_entry_says_is_in_its_digest() {
        let file = Entry {
            path: b"a".to_vec(),
            kind: EntryKind::File.into(),
            mode: 0o644,
            uid: 1,
            gid: 2,
            mtime_seconds: 3,
            mtime_nanos: 4,
            size: 5,
            digest: vec![6; 32],
            ..Default::default()
        };
        type Change = fn(&mut Entry);
        let changes: [(&str, Change); 12] = [
            ("path", |it| it.path = b"b".to_vec()),
            ("kind", |it| it.kind = EntryKind::Fifo.into()),
            ("mode", |it| it.mode = 0o600),
            ("uid", |it| it.uid = 9),
            ("gid", |it| it.gid = 9),
            ("seconds", |it| it.mtime_seconds = 9),
            ("nanoseconds", |it| it.mtime_nanos = 9),
            ("size", |it| it.size = 9),
            ("digest", |it| it.digest = vec![7; 32]),
            ("link", |it| it.link_target = b"x".to_vec()),
            ("unstable", |it| it.unstable = true),
            ("attribute", |it| {
                it.xattrs.push(ExtendedAttribute { name: b"user.a".to_vec(), value: Vec::new() })
            }),
        ];
        let digest = entry_digest(&file, false);
        assert_ne!(entry_digest(&file, true), digest);
        for (name, change) in changes {
            let mut changed = file.clone();
            change(&mut changed);
            assert_ne!(entry_digest(&changed, false), digest, "{name}");
        }
        let content = content_digest(&file, false);
        assert_ne!(content_digest(&file, true), content);
        for (name, change) in changes {
            let mut changed = file.clone();
            change(&mut changed);
            let counts = ["size", "digest", "unstable"].contains(&name);
            assert_eq!(content_digest(&changed, false) != content, counts, "{name}");
        }
        let mut cut = file.clone();
        (cut.pieces, cut.piece_digests) = (vec![5], vec![6; 32]);
        assert_eq!(entry_digest(&cut, false), digest);
        let folder = Entry { kind: EntryKind::Directory.into(), size: 0, digest: Vec::new(), ..file.clone() };
        let later = Entry { mtime_seconds: 9, ..folder.clone() };
        assert_eq!(entry_digest(&later, false), entry_digest(&folder, false));
    }
}
