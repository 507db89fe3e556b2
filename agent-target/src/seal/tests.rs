//! Seals that must fail leave nothing that a reader sees, and the next attempt starts clean.

use std::os::unix::fs::FileExt as _;

use super::*;
use assay_common::manifest::{ManifestWriter, Root};
use assay_proto::v1::{ManifestStep, PutEntry, manifest_step::Kind};

fn header() -> Header {
    Header {
        roots: vec![Root { name: "main".into(), live_path: "/srv/x".into(), subdirectory: String::new() }],
    }
}

fn own(kind: EntryKind, path: &str) -> Entry {
    Entry {
        path: path.as_bytes().to_vec(),
        kind: kind.into(),
        mode: 0o755,
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        mtime_seconds: 1_000_000,
        mtime_nanos: 7,
        ..Default::default()
    }
}

fn file(path: &str, content: &[u8]) -> Entry {
    let digest = ContentDigest::of(content).0.to_vec();
    Entry { size: content.len() as u64, digest, ..own(EntryKind::File, path) }
}

fn root_of(entries: &[Entry]) -> RootDigest {
    let mut writer = ManifestWriter::create(Vec::new(), &header()).expect("memory");
    entries.iter().for_each(|entry| writer.push(entry).expect("memory"));
    writer.finish().expect("memory").1
}

struct Bench {
    _folder: tempfile::TempDir,
    store: Store,
    index: Arc<Mutex<ChunkIndex>>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("temp");
        let store = Store::open_or_create(folder.path()).expect("store");
        let index = ChunkIndex::open_or_create(&folder.path().join("index.redb")).expect("index");
        Self { _folder: folder, store, index: Arc::new(Mutex::new(index)) }
    }

    /// Seals a tree of `entries` whose contents, numbered from 1 in order of the files, are `contents`.
    fn seal(
        &self,
        base: Option<GenerationNumber>,
        steps: Vec<Kind>,
        contents: &[&[u8]],
        root: RootDigest,
    ) -> Result<Record, SealError> {
        let staging = self.store.open_staging()?;
        for (number, content) in (1..).zip(contents) {
            staging.open_content(number)?.write_all_at(content, 0).expect("write");
        }
        let mut draft = Draft::create(&self.store, &staging, base, &header().to_json())?;
        for kind in steps {
            draft.apply(ManifestStep { kind: Some(kind) })?;
        }
        let provenance = Provenance {
            repository: "r".into(),
            run_id: "20261122T224501Z-7f3a9c".into(),
            mark: MarkRecord { id: "m".into(), time: jiff::Timestamp::UNIX_EPOCH },
            overrides: Vec::new(),
            counts: serde_json::Value::Null,
            source_statement: serde_json::Value::Null,
        };
        seal(&self.store, &staging, &self.index, draft, root, provenance)
    }
}

fn put(entry: &Entry, content: u64) -> Kind {
    Kind::Put(PutEntry { entry: Some(entry.clone()), content })
}

#[test]
fn a_sealed_tree_is_what_its_manifest_says_and_shares_with_its_base() {
    use std::os::unix::fs::MetadataExt as _;
    let bench = Bench::new();
    let (root, a, b) = (own(EntryKind::Directory, ""), file("a", b"aaa"), file("b", b"bbb"));
    let link = Entry { link_target: b"../../etc".to_vec(), mode: 0o777, ..own(EntryKind::Symlink, "c") };
    let entries = [root.clone(), a.clone(), b.clone(), link.clone()];
    let steps = vec![put(&root, 0), put(&a, 1), put(&b, 2), put(&link, 0)];
    let record = bench.seal(None, steps, &[b"aaa", b"bbb"], root_of(&entries)).expect("seal");
    assert_eq!((record.generation, record.entries, record.new_bytes), (1, 4, 6));
    let first = bench.store.generation_path(GenerationNumber(1));
    let stat = std::fs::metadata(first.join("tree/a")).expect("stat");
    assert_eq!((stat.mode() & 0o7777, stat.mtime(), stat.mtime_nsec()), (0o755, 1_000_000, 7));

    // The next one drops `a`, changes `b`, keeps the rest.
    let b = file("b", b"BBBB");
    let entries = [root.clone(), b.clone(), link];
    let steps = vec![Kind::Keep(1), Kind::Drop(2), put(&b, 1), Kind::Keep(1)];
    let base = Some(GenerationNumber(1));
    let record = bench.seal(base, steps, &[b"BBBB"], root_of(&entries)).expect("seal");
    assert_eq!((record.generation, record.new_bytes), (2, 4));
    let second = bench.store.generation_path(GenerationNumber(2));
    assert!(!second.join("tree/a").exists());
    assert_eq!(std::fs::read(second.join("tree/b")).expect("read"), b"BBBB");
    assert_eq!(std::fs::read(first.join("tree/b")).expect("read"), b"bbb");
    let inode = |path: std::path::PathBuf| std::fs::symlink_metadata(path).expect("stat").ino();
    assert_eq!(inode(first.join("tree/c")), inode(second.join("tree/c")));
}

#[test]
fn nothing_is_sealed_that_is_not_whole() {
    let (root, a) = (own(EntryKind::Directory, ""), file("a", b"aaa"));
    let good = root_of(&[root.clone(), a.clone()]);
    let steps = || vec![put(&root, 0), put(&a, 1)];
    type Expect = fn(&SealError) -> bool;
    type Case<'a> = (&'a str, Vec<Kind>, &'a [&'a [u8]], RootDigest, Expect);
    let cases: [Case<'_>; 6] = [
        ("another root digest", steps(), &[b"aaa"], RootDigest([0; 32]), |e| {
            matches!(e, SealError::RootMismatch { .. })
        }),
        ("other content", steps(), &[b"aab"], good, |e| matches!(e, SealError::ContentMismatch { .. })),
        ("longer content", steps(), &[b"aaaa"], good, |e| matches!(e, SealError::ContentMismatch { .. })),
        ("no content", steps(), &[], good, |e| matches!(e, SealError::ContentMissing { .. })),
        ("a file without a number", vec![put(&root, 0), put(&a, 0)], &[b"aaa"], good, |e| {
            matches!(e, SealError::Delta(_))
        }),
        (
            "a number without a file",
            vec![put(&root, 1)],
            &[b"aaa"],
            root_of(std::slice::from_ref(&root)),
            |e| matches!(e, SealError::Delta(_)),
        ),
    ];
    let bench = Bench::new();
    for (name, steps, contents, digest, expected) in cases {
        let error = bench.seal(None, steps, contents, digest).expect_err(name);
        assert!(expected(&error), "{name}: {error}");
        assert_eq!(bench.store.latest().expect("latest"), None, "{name}");
    }
    bench.seal(None, steps(), &[b"aaa"], good).expect("after all that, a good one is sealed");
}

/// A hard link whose first name leads through a link is not made.
#[test]
fn hard_links_never_leave_the_tree() {
    let bench = Bench::new();
    let root = own(EntryKind::Directory, "");
    let link = Entry { link_target: b"/etc".to_vec(), mode: 0o777, ..own(EntryKind::Symlink, "a") };
    let mut hard = Entry { path: b"b".to_vec(), link_target: b"a/passwd".to_vec(), ..Default::default() };
    hard.set_kind(EntryKind::Hardlink);
    let entries = [root.clone(), link.clone(), hard.clone()];
    let steps = vec![put(&root, 0), put(&link, 0), put(&hard, 0)];
    let error = bench.seal(None, steps, &[], root_of(&entries)).expect_err("it leads out");
    assert!(matches!(error, SealError::Entry { .. }), "{error}");
    assert_eq!(bench.store.latest().expect("latest"), None);
}

#[test]
fn b3sum_lines_escape_as_b3sum_does() {
    let entry = |path: &[u8]| Entry { path: path.to_vec(), digest: vec![0xab; 32], ..Default::default() };
    let hex = "ab".repeat(32);
    assert_eq!(b3sum_line(&entry(b"a b")), Some(format!("{hex}  tree/a b\n")));
    assert_eq!(b3sum_line(&entry(b"a\n\\b")), Some(format!("\\{hex}  tree/a\\n\\\\b\n")));
    assert_eq!(b3sum_line(&entry(b"a\xff")), None);
}
