//! A repository of a test's own, whose generations are sealed from trees in memory.

use std::{collections::BTreeMap, os::unix::fs::FileExt as _, path::Path, sync::Arc};

use assay_common::{
    digest::{ContentDigest, RootDigest},
    id::GenerationNumber,
    manifest::{Entry, EntryKind, Header, ManifestWriter, Piece, Root, content_pieces},
    profile::{Profile, Value},
    signing::SigningKey,
    verdict::{Counts, HexDigest, Mark, Readings, SourceStatement, sign_source_statement},
};
use assay_proto::v1::{ManifestStep, PutEntry, manifest_step::Kind};

use super::retention::Retention;
use crate::{
    config,
    repository::Repository,
    seal::{Draft, Provenance, open_manifest, seal},
    store::{MarkRecord, Record, TREE, piece_list_digest},
};

/// Bytes of a piece in these trees.
pub(crate) const PIECE_BYTES: usize = 4096;

/// Names and contents.
pub(crate) type Tree<'a> = BTreeMap<&'a str, &'a [u8]>;

pub(crate) struct Bench {
    folder: tempfile::TempDir,
    source: Arc<SigningKey>,
    pub(crate) repository: Arc<Repository>,
}

impl Bench {
    pub(crate) fn new(retention: Option<Retention>) -> Self {
        let folder = tempfile::tempdir().expect("temp");
        let source_key = folder.path().join("source.pub");
        let source = Arc::new(SigningKey::generate());
        source.verifying_key().save(&source_key).expect("key");
        let repository = Self::open(&folder, retention);
        Self { folder, source, repository: Arc::new(repository) }
    }

    /// With another configuration.
    pub(crate) fn configured(self, change: impl FnOnce(&mut config::Repository)) -> Self {
        let Self { folder, source, repository } = self;
        let mut repository = Arc::into_inner(repository).expect("nobody else has it");
        change(&mut repository.config);
        Self { folder, source, repository: Arc::new(repository) }
    }

    /// With this profile, whose steps run outside of a sandbox.
    pub(crate) fn with_profile(text: &str) -> Self {
        let profile = Profile::parse(Path::new("x.toml"), text).unwrap_or_else(|error| panic!("{error}"));
        Self::new(None).configured(|config| {
            config.vars.clear();
            config.profile = profile;
            config.isolation = config::IsolationPolicy::None;
        })
    }

    /// With a check that runs the program at `path`, outside of a sandbox.
    pub(crate) fn checked_by(path: &Path) -> Self {
        let program = path.to_str().expect("UTF-8").to_owned();
        Self::new(None).configured(|config| {
            config.vars.insert("check".to_owned(), Value::List(vec![program]));
            config.isolation = config::IsolationPolicy::None;
        })
    }

    fn open(folder: &tempfile::TempDir, retention: Option<Retention>) -> Repository {
        let text = "[agent]\nname = \"t\"\nlisten = \"127.0.0.1:1\"\nstore = \"store\"\nsigning_key = \"k\"\n[tls]\nca = \"c\"\n\
                    cert = \"c\"\nkey = \"k\"\n[[repository]]\nname = \"r\"\nsource = \"s\"\nsource_key = \"source.pub\"\n\
                    profile = \"generic\"\nvars = { check = [\"true\"] }\n";
        let path = folder.path().join("target.toml");
        std::fs::write(&path, text).expect("write");
        let mut config = config::load(&path).expect("configuration").repositories.remove(0);
        config.retention = retention;
        let key = SigningKey::generate();
        let own = key.verifying_key().into();
        Repository::open(&folder.path().join("store"), config, Arc::new(key), &own).expect("open")
    }

    /// As after a crash: nothing is told to the one that was open.
    pub(crate) fn reopen(self) -> Self {
        let Self { folder, source, repository } = self;
        let retention = repository.config.retention.clone();
        drop(Arc::into_inner(repository).expect("nobody else has it"));
        let repository = Arc::new(Self::open(&folder, retention));
        Self { folder, source, repository }
    }

    /// Seals the next generation upon the newest: what is the same is kept. Its files are old.
    pub(crate) fn seal(&self, tree: &Tree<'_>) -> Record {
        self.seal_written(tree, 1_000_000)
    }

    /// The same with files that were written at this time, in seconds.
    pub(crate) fn seal_written(&self, tree: &Tree<'_>, written: i64) -> Record {
        let store = &self.repository.store;
        let base = store.latest().expect("latest");
        let mut old = Vec::new();
        if let Some(base) = base {
            let mut manifest = open_manifest(store, base).expect("manifest");
            while let Some(entry) = manifest.next_entry().expect("entry") {
                old.push(entry);
            }
        }
        let entries = entries(tree, written);
        let staging = store.open_staging().expect("staging");
        let header = header();
        let mut draft = Draft::create(store, &staging, base, &header.to_json()).expect("draft");
        draft.refuse(base.map(|base| self.repository.rot().paths(base)).unwrap_or_default());
        let mut step =
            |kind| draft.apply(ManifestStep { kind: Some(kind) }).unwrap_or_else(|error| panic!("{error:?}"));
        let (mut old, mut content) = (old.into_iter().peekable(), 0);
        for entry in &entries {
            while old.next_if(|old| old.path < entry.path).is_some() {
                step(Kind::Drop(1));
            }
            match old.next_if(|old| old.path == entry.path) {
                Some(same) if same == *entry => {
                    step(Kind::Keep(1));
                    continue;
                }
                Some(_) => step(Kind::Drop(1)),
                None => {}
            }
            let number = if entry.kind() == EntryKind::File {
                content += 1;
                let bytes = tree[std::str::from_utf8(&entry.path).expect("UTF-8")];
                staging.open_content(content).expect("content").write_all_at(bytes, 0).expect("write");
                let pieces = content_pieces(entry).map(|(_, piece, digest)| (piece, digest));
                staging.whole().note_list(content, piece_list_digest(pieces)).expect("write");
                content
            } else {
                0
            };
            step(Kind::Put(PutEntry { entry: Some(entry.clone()), content: number, ..Default::default() }));
        }
        for _ in old {
            step(Kind::Drop(1));
        }
        let root = root_of(&header, &entries);
        let run_id = format!("20261122T22{:04}Z-7f3a9c", staging.number().0);
        let mark = MarkRecord { id: "m".into(), time: jiff::Timestamp::now() };
        let statement = SourceStatement {
            repository: "r".into(),
            run_id: run_id.parse().expect("an id"),
            mark: Mark { id: mark.id.clone(), time: mark.time },
            root: Some(root.into()),
            base_generation: base,
            counts: Counts::default(),
            overrides: Vec::new(),
            source_version: "0".into(),
            nonce: Some(HexDigest([5; 32])),
            readings: Some(Readings::default()),
            not_copied: Vec::new(),
        };
        let statement = sign_source_statement(&statement, &self.source).to_json();
        let provenance = Provenance {
            repository: "r".into(),
            run_id,
            opened: jiff::Timestamp::now(),
            statements: 2,
            full_check: false,
            mark,
            overrides: Vec::new(),
            counts: serde_json::Value::Null,
            source_statement: serde_json::from_str(&statement).expect("JSON"),
        };
        let index = &self.repository.index;
        seal(store, &staging, index, draft, root, provenance).expect("seal")
    }

    /// A path in the tree of a generation.
    pub(crate) fn path(&self, generation: u64, name: &str) -> std::path::PathBuf {
        self.repository.store.generation_path(GenerationNumber(generation)).join(TREE).join(name)
    }

    /// The generations that are there.
    pub(crate) fn numbers(&self) -> Vec<u64> {
        let numbers = self.repository.store.generations().expect("list");
        numbers.into_iter().map(|number| number.0).collect()
    }
}

fn header() -> Header {
    Header {
        roots: vec![Root { name: "main".into(), live_path: "/srv/x".into(), subdirectory: String::new() }],
    }
}

fn entries(tree: &Tree<'_>, written: i64) -> Vec<Entry> {
    let own = |kind: EntryKind, path: &str| Entry {
        path: path.as_bytes().to_vec(),
        kind: kind.into(),
        mode: if kind == EntryKind::File { 0o640 } else { 0o755 },
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        mtime_seconds: written,
        mtime_nanos: 7,
        ..Default::default()
    };
    let files = tree.iter().map(|(path, bytes)| {
        let mut entry = own(EntryKind::File, path);
        entry.size = bytes.len() as u64;
        entry.digest = ContentDigest::of(bytes).0.to_vec();
        if bytes.len() > PIECE_BYTES {
            for piece in bytes.chunks(PIECE_BYTES) {
                entry.pieces.push(Piece::Data { bytes: piece.len() as u64 }.to_wire());
                entry.piece_digests.extend_from_slice(&ContentDigest::of(piece).0);
            }
        }
        entry
    });
    std::iter::once(own(EntryKind::Directory, "")).chain(files).collect()
}

fn root_of(header: &Header, entries: &[Entry]) -> RootDigest {
    let mut writer = ManifestWriter::create(Vec::new(), header).expect("memory");
    entries.iter().for_each(|entry| writer.push(entry).expect("memory"));
    writer.finish().expect("memory").1
}
