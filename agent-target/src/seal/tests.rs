//! Seals that must fail leave nothing that a reader sees, and the next attempt starts clean.

use std::os::unix::fs::FileExt as _;

use std::collections::BTreeMap;

use super::*;
use assay_common::manifest::{ManifestWriter, Piece, Root};
use assay_proto::v1::{ExtendedAttribute, ManifestStep, PutEntry, manifest_step::Kind};
use proptest::prelude::*;

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
    /// What is known of the first content: its length and digest.
    noted: Option<(u64, ContentDigest)>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("temp");
        let store = Store::open_or_create(folder.path()).expect("store");
        let index = ChunkIndex::open_or_create(&folder.path().join("index.redb")).expect("index");
        Self { _folder: folder, store, index: Arc::new(Mutex::new(index)), noted: None }
    }

    /// Seals a tree of `entries` whose contents, numbered from 1 in order of the files, are `contents`.
    fn seal(
        &self,
        base: Option<GenerationNumber>,
        steps: Vec<Kind>,
        contents: &[&[u8]],
        root: RootDigest,
    ) -> Result<Record, SealError> {
        self.seal_received(base, steps, contents, root, &[])
    }

    /// The same, with contents that were received in these pieces.
    fn seal_received(
        &self,
        base: Option<GenerationNumber>,
        steps: Vec<Kind>,
        contents: &[&[u8]],
        root: RootDigest,
        pieces: &[(Piece, Option<ContentDigest>)],
    ) -> Result<Record, SealError> {
        let staging = self.store.open_staging()?;
        for (number, content) in (1..).zip(contents) {
            staging.open_content(number)?.write_all_at(content, 0).expect("write");
            let list = piece_list_digest(pieces.iter().copied());
            staging.whole().note_list(number, list).expect("write");
        }
        if let Some((length, digest)) = self.noted {
            staging.whole().note(1, length, digest).expect("write");
        }
        let mut draft = Draft::create(&self.store, &staging, base, &header().to_json())?;
        for kind in steps {
            draft.apply(ManifestStep { kind: Some(kind) })?;
        }
        let provenance = Provenance {
            repository: "r".into(),
            run_id: "20261122T224501Z-7f3a9c".into(),
            opened: jiff::Timestamp::now(),
            statements: 2,
            full_check: false,
            mark: MarkRecord { id: "m".into(), time: jiff::Timestamp::UNIX_EPOCH },
            overrides: Vec::new(),
            counts: serde_json::Value::Null,
            source_statement: serde_json::Value::Null,
        };
        seal(&self.store, &staging, &self.index, draft, root, provenance)
    }
}

fn put(entry: &Entry, content: u64) -> Kind {
    Kind::Put(PutEntry { entry: Some(entry.clone()), content, ..Default::default() })
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

/// A first name that has become a link, or anything else, is what its further names are of.
#[test]
fn a_further_name_is_of_what_its_first_name_is_now() {
    use std::os::unix::fs::MetadataExt as _;
    let bench = Bench::new();
    let (root, a) = (own(EntryKind::Directory, ""), file("a", b"aaa"));
    let (path, link_target) = (b"b".to_vec(), b"a".to_vec());
    let b = Entry { path, link_target, kind: EntryKind::Hardlink.into(), ..Default::default() };
    let link = Entry { link_target: b"elsewhere".to_vec(), mode: 0o777, ..own(EntryKind::Symlink, "a") };
    let entries = [root.clone(), a.clone(), b.clone()];
    let steps = vec![put(&root, 0), put(&a, 1), put(&b, 0)];
    bench.seal(None, steps, &[b"aaa"], root_of(&entries)).expect("seal");
    for number in [2, 3] {
        // Built from nothing, then by changing the tree that was laid out.
        let (from, to) = if number == 2 { (1, &link) } else { (2, &a) };
        if number == 3 {
            tree::prepare(&bench.store, GenerationNumber(from)).expect("prepare");
        }
        let steps = vec![Kind::Keep(1), Kind::Drop(1), put(to, u64::from(number == 3)), Kind::Keep(1)];
        let contents: &[&[u8]] = if number == 3 { &[b"aaa"] } else { &[] };
        let entries = [root.clone(), to.clone(), b.clone()];
        bench.seal(Some(GenerationNumber(from)), steps, contents, root_of(&entries)).expect("seal");
    }
    // And the other way round: a file that becomes a link, in a tree that was laid out.
    tree::prepare(&bench.store, GenerationNumber(3)).expect("prepare");
    let steps = vec![Kind::Keep(1), Kind::Drop(1), put(&link, 0), Kind::Keep(1)];
    let entries = [root, link, b];
    bench.seal(Some(GenerationNumber(3)), steps, &[], root_of(&entries)).expect("seal");
    for number in 2..=4 {
        let tree = bench.store.generation_path(GenerationNumber(number)).join(TREE);
        let [a, b] = ["a", "b"].map(|name| std::fs::symlink_metadata(tree.join(name)).expect("stat"));
        assert_eq!((a.ino(), a.is_symlink()), (b.ino(), number != 3), "generation {number}");
    }
}

/// The right bytes under another list of pieces: a restore by that list would bring something else.
#[test]
fn pieces_that_were_not_received_are_not_sealed() {
    let piece = |bytes: &[u8]| (Piece::Data { bytes: bytes.len() as u64 }, Some(ContentDigest::of(bytes)));
    let received = [piece(b"aa"), piece(b"a"), (Piece::Hole { bytes: 2 }, None)];
    let with = |pieces: &[(Piece, Option<ContentDigest>)]| Entry {
        pieces: pieces.iter().map(|(piece, _)| piece.to_wire()).collect(),
        piece_digests: pieces.iter().filter_map(|(_, digest)| *digest).flat_map(|digest| digest.0).collect(),
        ..file("a", b"aaa\0\0")
    };
    let bench = Bench::new();
    let try_seal = |entry: &Entry, content: &[u8]| {
        let root = own(EntryKind::Directory, "");
        let steps = vec![put(&root, 0), put(entry, 1)];
        let digest = root_of(&[root, entry.clone()]);
        bench.seal_received(None, steps, &[content], digest, &received)
    };
    for other in [
        vec![(Piece::Hole { bytes: 3 }, None), received[2]],
        vec![(received[0].0, Some(ContentDigest::of(b"xx"))), received[1], received[2]],
        vec![piece(b"aaa"), received[2]],
        vec![received[0], received[1], piece(b"\0\0")],
    ] {
        let error = try_seal(&with(&other), b"aaa\0\0").expect_err("another list");
        assert!(matches!(error, SealError::PiecesMismatch { .. }), "{other:?}: {error}");
    }
    let error = try_seal(&with(&received), b"aaa\0\0 and more").expect_err("a longer file");
    assert!(matches!(error, SealError::LengthMismatch { .. }), "{error}");
    try_seal(&with(&received), b"aaa\0\0").expect("as received");
}

/// The digest of a content of one piece is that of the piece. What its file, which was there before, has behind that is seen all the same.
#[test]
fn a_file_of_one_piece_that_kept_an_old_tail_is_not_sealed() {
    let mut bench = Bench::new();
    bench.noted = Some((3, ContentDigest::of(b"aaa")));
    let (root, a) = (own(EntryKind::Directory, ""), file("a", b"aaa"));
    let digest = root_of(&[root.clone(), a.clone()]);
    let steps = || vec![put(&root, 0), put(&a, 1)];
    let error = bench.seal(None, steps(), &[b"aaa and what was there"], digest).expect_err("a longer file");
    assert!(matches!(error, SealError::LengthMismatch { .. }), "{error}");
    bench.seal(None, steps(), &[b"aaa"], digest).expect("as it should be");
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
        ("longer content", steps(), &[b"aaaa"], good, |e| matches!(e, SealError::LengthMismatch { .. })),
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
    assert!(error.to_string().contains("which is no file of this manifest"), "{error}");
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

const PATHS: [&str; 12] =
    ["a", "a/1", "a/2", "a/2/x", "a/2/x/deep", "b", "b/1", "b/2", "b/2/x", "c", "d", "d/1"];

/// A valid tree from choices, one for each path: 0 nothing, 1 to 3 folders, 4 to 7 files, 8 and 9 links, 10 and 11 further
/// names of the file that came last.
fn tree(choices: &[u8]) -> Vec<Entry> {
    let mut entries: BTreeMap<TreePath, Entry> = BTreeMap::new();
    let path = |path: &str| TreePath::parse(path.as_bytes()).expect("valid");
    entries.insert(path(""), own(EntryKind::Directory, ""));
    let mut sorted: Vec<_> =
        PATHS.into_iter().zip(choices).map(|(name, choice)| (path(name), name, choice)).collect();
    sorted.sort();
    let mut last_file = None;
    for (tree_path, name, choice) in sorted {
        let parent = TreePath::parse(tree_path.parent().expect("not the root")).expect("valid");
        if entries.get(&parent).is_none_or(|parent| parent.kind() != EntryKind::Directory) {
            continue;
        }
        let mut entry = match choice {
            1..=3 => own(EntryKind::Directory, name),
            4..=7 => file(name, format!("content {choice}").as_bytes()),
            8 | 9 => Entry { link_target: vec![*choice], mode: 0o777, ..own(EntryKind::Symlink, name) },
            _ => match (&last_file, choice) {
                (Some(first), 10..) => Entry {
                    path: name.into(),
                    kind: EntryKind::Hardlink.into(),
                    link_target: Vec::clone(first),
                    ..Default::default()
                },
                _ => continue,
            },
        };
        if entry.kind() == EntryKind::File {
            last_file = Some(entry.path.clone());
        }
        if entry.kind() != EntryKind::Hardlink {
            entry.mtime_nanos = (*choice).into();
        }
        entries.insert(tree_path, entry);
    }
    entries.into_values().collect()
}

/// The steps from one tree to the other, and the contents that go with them.
fn steps(before: &[Entry], after: &[Entry]) -> (Vec<Kind>, Vec<Vec<u8>>) {
    let (mut steps, mut contents) = (Vec::new(), Vec::new());
    let mut before = before.iter().peekable();
    let order = |left: &Entry, right: &Entry| assay_common::path::compare_paths(&left.path, &right.path);
    for entry in after {
        while before.next_if(|old| order(old, entry).is_lt()).is_some() {
            steps.push(Kind::Drop(1));
        }
        match before.next_if(|old| old.path == entry.path) {
            Some(old) if old == entry => steps.push(Kind::Keep(1)),
            old => {
                steps.extend(old.map(|_| Kind::Drop(1)));
                if entry.kind() == EntryKind::File {
                    contents.push(format!("content {}", entry.mtime_nanos).into_bytes());
                }
                let content = if entry.kind() == EntryKind::File { contents.len() as u64 } else { 0 };
                steps.push(put(entry, content));
            }
        }
    }
    steps.extend(before.map(|_| Kind::Drop(1)));
    (steps, contents)
}

/// What a tree on disk is: names, kinds, modes, times, contents, and which names are of one file.
fn listing(tree: &std::path::Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt as _;
    let (mut lines, mut open, mut firsts) = (Vec::new(), vec![tree.to_owned()], BTreeMap::new());
    while let Some(path) = open.pop() {
        let stat = std::fs::symlink_metadata(&path).expect("stat");
        let name = path.strip_prefix(tree).expect("below").display().to_string();
        let content = match stat.file_type() {
            kind if kind.is_dir() => {
                let mut inner: Vec<_> = std::fs::read_dir(&path)
                    .expect("read")
                    .map(|entry| entry.expect("entry").path())
                    .collect();
                inner.sort();
                open.extend(inner.into_iter().rev());
                "folder".to_owned()
            }
            kind if kind.is_symlink() => format!("{:?}", std::fs::read_link(&path).expect("link")),
            _ => {
                let first = firsts.entry(stat.ino()).or_insert_with(|| name.clone());
                format!("{} {first}", std::fs::read_to_string(&path).expect("text"))
            }
        };
        lines.push(format!("{name} {:o} {}.{} {content}", stat.mode(), stat.mtime(), stat.mtime_nsec()));
    }
    lines
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    /// Changing the tree that was laid out ahead gives the same tree as building it from nothing, and the base's own tree
    /// is not touched.
    #[test]
    fn a_changed_tree_is_the_tree_that_would_be_built(
        choices in prop::collection::vec(prop::collection::vec(0u8..12, PATHS.len()), 2..4),
    ) {
        let (ahead_bench, plain) = (Bench::new(), Bench::new());
        let (mut before, mut base): (Vec<Entry>, _) = (Vec::new(), None);
        for choices in choices {
            let after = tree(&choices);
            let mut sealed = Vec::new();
            for bench in [&ahead_bench, &plain] {
                let (steps, contents) = steps(&before, &after);
                let contents: Vec<&[u8]> = contents.iter().map(Vec::as_slice).collect();
                let was = base.map(|base| listing(&bench.store.generation_path(base).join(TREE)));
                let record = bench.seal(base, steps, &contents, root_of(&after)).expect("seal");
                let now = base.map(|base| listing(&bench.store.generation_path(base).join(TREE)));
                prop_assert_eq!(was, now);
                sealed.push(GenerationNumber(record.generation));
            }
            let trees = [(&ahead_bench, sealed[0]), (&plain, sealed[1])]
                .map(|(bench, number)| listing(&bench.store.generation_path(number).join(TREE)));
            prop_assert_eq!(&trees[0], &trees[1]);
            tree::prepare(&ahead_bench.store, sealed[0]).expect("prepare");
            prop_assert!(!ahead_bench.store.path().join("ahead/tree").join("ahead").exists());
            (before, base) = (after, Some(sealed[0]));
        }
    }
}

/// A generation without changes shares the base's manifest, and a later attempt in the same place never writes into it.
#[test]
fn a_seal_without_changes_shares_what_the_base_has_and_leaves_it_alone() {
    let bench = Bench::new();
    let first = tree(&[4, 1, 8, 1, 10, 5, 2, 0, 11, 4, 0, 3]);
    let (steps_of, contents) = steps(&[], &first);
    let contents: Vec<&[u8]> = contents.iter().map(Vec::as_slice).collect();
    let root = root_of(&first);
    let base = Some(GenerationNumber(bench.seal(None, steps_of, &contents, root).expect("seal").generation));
    let path = |number| bench.store.generation_path(GenerationNumber(number));
    let manifest = std::fs::read(path(1).join(MANIFEST)).expect("manifest");
    let keep = || vec![Kind::Keep(first.len() as u64)];
    let refused = bench.seal(base, keep(), &[], RootDigest([7; 32])).expect_err("another root");
    assert!(matches!(refused, SealError::RootMismatch { .. }), "{refused}");
    for (number, ahead) in [(2, false), (3, true)] {
        let base = GenerationNumber(number - 1);
        if ahead {
            tree::prepare(&bench.store, base).expect("prepare");
        }
        let record = bench.seal(Some(base), keep(), &[], root).expect("nothing has changed");
        assert_eq!((record.generation, record.entries, record.new_bytes), (number, first.len() as u64, 0));
        assert_eq!(listing(&path(number).join(TREE)), listing(&path(1).join(TREE)));
        assert_eq!(std::fs::read(path(number).join(MANIFEST)).expect("manifest"), manifest);
    }
    // A step behind the last entry of the base: it was not all, after all.
    let mut more = first.clone();
    more.push(file("z", b"content 4"));
    let last = more.last_mut().expect("it was pushed");
    last.mtime_nanos = 4;
    let steps_of = vec![Kind::Keep(first.len() as u64), put(last, 1)];
    let root = root_of(&more);
    let record = bench.seal(Some(GenerationNumber(3)), steps_of, &[b"content 4"], root).expect("one more");
    assert_eq!(record.entries, more.len() as u64);
    // A draft that begins where another had linked the base's files.
    let staging = bench.store.open_staging().expect("staging");
    std::fs::hard_link(path(1).join(MANIFEST), staging.path().join(MANIFEST)).expect("link");
    drop(Draft::create(&bench.store, &staging, None, &header().to_json()).expect("draft"));
    assert_eq!(std::fs::read(path(1).join(MANIFEST)).expect("manifest"), manifest);
}

/// The record says whether a check must look for entries that mean something to an overlay, of kept entries as well as of new ones.
#[test]
fn the_record_says_whether_a_tree_is_plain() {
    let bench = Bench::new();
    let (root, a) = (own(EntryKind::Directory, ""), file("a", b"aaa"));
    let odd = [
        own(EntryKind::Fifo, "b"),
        Entry {
            xattrs: vec![ExtendedAttribute { name: b"user.overlay.opaque".to_vec(), value: b"y".to_vec() }],
            ..own(EntryKind::Directory, "b")
        },
    ];
    let plain = [root.clone(), a.clone()];
    let seal = |base: u64, steps: Vec<Kind>, contents: &[&[u8]], entries: &[Entry]| {
        let base = (base > 0).then_some(GenerationNumber(base));
        let record = bench.seal(base, steps, contents, root_of(entries)).expect("seal");
        let manifest = bench.store.generation_path(GenerationNumber(record.generation)).join(MANIFEST);
        let read = crate::workspace::Oddities::read(&manifest).expect("a manifest");
        assert_eq!(record.is_plain, Some(read == crate::workspace::Oddities::default()));
        (record.generation, record.is_plain)
    };
    let (first, is_plain) = seal(0, vec![put(&root, 0), put(&a, 1)], &[b"aaa"], &plain);
    assert_eq!(is_plain, Some(true));
    for odd in odd {
        let entries = [root.clone(), a.clone(), odd.clone()];
        let (added, is_plain) = seal(first, vec![Kind::Keep(2), put(&odd, 0)], &[], &entries);
        assert_eq!(is_plain, Some(false), "put");
        let (kept, is_plain) = seal(added, vec![Kind::Keep(3)], &[], &entries);
        assert_eq!(is_plain, Some(false), "nothing has changed");
        let changed = [root.clone(), file("a", b"AAA"), odd];
        let steps = vec![Kind::Keep(1), Kind::Drop(1), put(&changed[1], 1), Kind::Keep(1)];
        let (changed, is_plain) = seal(kept, steps, &[b"AAA"], &changed);
        assert_eq!(is_plain, Some(false), "kept");
        let (_, is_plain) =
            seal(changed, vec![Kind::Keep(2), Kind::Drop(1)], &[], &[root.clone(), file("a", b"AAA")]);
        assert_eq!(is_plain, Some(true), "dropped");
    }
}

/// A tree that was laid out only in part, or for another generation, is not used.
#[test]
fn only_a_whole_tree_of_the_base_is_taken() {
    let bench = Bench::new();
    let trees = [tree(&[4; 12]), tree(&[5; 12])];
    let (steps_of, contents) = steps(&[], &trees[0]);
    let contents: Vec<&[u8]> = contents.iter().map(Vec::as_slice).collect();
    bench.seal(None, steps_of, &contents, root_of(&trees[0])).expect("seal");
    let ahead = bench.store.path().join("ahead");
    let staging = bench.store.open_staging().expect("staging");
    let root = root_of(&trees[0]);
    std::fs::create_dir(ahead.join("tree")).expect("half a tree");
    assert!(!tree::take(&bench.store, &staging, root).expect("nothing to take"));
    tree::prepare(&bench.store, GenerationNumber(1)).expect("prepare");
    assert_eq!(
        listing(&ahead.join("tree")),
        listing(&bench.store.generation_path(GenerationNumber(1)).join(TREE))
    );
    assert!(!tree::take(&bench.store, &staging, root_of(&trees[1])).expect("another's"));
    assert!(tree::take(&bench.store, &staging, root).expect("take"));
    assert!(!ahead.join("of").exists() && !ahead.join("tree").exists());
}
