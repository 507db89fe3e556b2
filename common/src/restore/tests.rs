use super::*;
use crate::{
    chunking::MAX_CHUNK_BYTES,
    digest::{ContentDigest, RootDigest},
    manifest::{Entry, EntryKind, Header, ManifestWriter, Root},
};

fn path(text: &str) -> TreePath {
    TreePath::parse(text.as_bytes()).expect("valid")
}

fn header(live: &std::path::Path) -> Header {
    let live_path = live.to_str().expect("text").to_owned();
    Header { roots: vec![Root { name: "main".to_owned(), live_path, subdirectory: String::new() }] }
}

fn folder_entry(path: &str) -> Entry {
    Entry {
        path: path.as_bytes().to_vec(),
        kind: EntryKind::Directory.into(),
        mode: 0o755,
        ..Default::default()
    }
}

fn file_entry(path: &str, content: &[u8]) -> Entry {
    Entry {
        path: path.as_bytes().to_vec(),
        kind: EntryKind::File.into(),
        mode: 0o644,
        size: content.len() as u64,
        digest: ContentDigest::of(content).0.to_vec(),
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        ..Default::default()
    }
}

fn manifest(entries: &[Entry]) -> (std::fs::File, RootDigest) {
    let file = tempfile::tempfile().expect("temp");
    let mut writer =
        ManifestWriter::create(file, &header(std::path::Path::new("/live/of/another/host"))).expect("write");
    for entry in entries {
        writer.push(entry).expect("write");
    }
    let (mut file, root, _) = writer.finish().expect("write");
    std::io::Seek::rewind(&mut file).expect("rewind");
    (file, root)
}

#[test]
fn what_is_asked_for_is_told_from_what_is_above_it() {
    let asked = [path("a/b"), path("top")];
    for (entry, expected) in [
        ("", Selection::Above),
        ("a", Selection::Above),
        ("a/b", Selection::Wanted),
        ("a/b/c", Selection::Wanted),
        ("a/bc", Selection::Not),
        ("a.b", Selection::Not),
        ("top", Selection::Wanted),
        ("other", Selection::Not),
    ] {
        assert_eq!(Selection::of(&path(entry), &asked), expected, "{entry:?}");
        assert_eq!(Selection::of(&path(entry), &[]), Selection::Wanted);
        assert_eq!(Selection::of(&path(entry), &[TreePath::root()]), Selection::Wanted);
    }
}

/// The whole manifest is judged before anything is written.
#[test]
fn a_manifest_that_is_no_tree_or_another_is_refused() {
    let number = GenerationNumber(1);
    let sound = [folder_entry(""), file_entry("a", b"x")];
    let (file, root) = manifest(&sound);
    assert_eq!(Checked::check(file, number, root, &[]).expect("sound").files, 1);
    let (file, _) = manifest(&sound);
    assert!(matches!(
        Checked::check(file, number, RootDigest([7; 32]), &[]),
        Err(RestoreError::OtherManifest)
    ));
    let (file, root) = manifest(&sound);
    assert!(matches!(Checked::check(file, number, root, &[path("b")]), Err(RestoreError::NoSuchPath { .. })));
    let linked = Entry {
        path: b"b".to_vec(),
        kind: EntryKind::Hardlink.into(),
        link_target: b"a".to_vec(),
        ..Default::default()
    };
    let (file, root) = manifest(&[folder_entry(""), file_entry("a", b"x"), linked]);
    assert!(matches!(
        Checked::check(file, number, root, &[path("b")]),
        Err(RestoreError::LinkWithoutFirst { .. })
    ));
    let planted = Entry {
        path: b"link".to_vec(),
        kind: EntryKind::Symlink.into(),
        mode: 0o777,
        link_target: b"/etc".to_vec(),
        ..Default::default()
    };
    for broken in [
        vec![file_entry("a", b"x")],
        vec![folder_entry(""), file_entry("b", b"x"), file_entry("a", b"x")],
        vec![folder_entry(""), file_entry("a/b", b"x")],
        vec![folder_entry(""), planted, file_entry("link/passwd", b"x")],
        vec![folder_entry(""), file_entry("../x", b"x")],
    ] {
        let (file, root) = manifest(&broken);
        assert!(Checked::check(file, number, root, &[]).is_err(), "{broken:?}");
    }
}

fn pieces(parts: Vec<Part>) -> Pieces {
    let (sender, receiver) = tokio::sync::mpsc::channel(parts.len().max(1));
    for part in parts {
        sender.try_send(Ok(part)).expect("there is room");
    }
    Pieces::new(receiver)
}

fn part(pieces: u32, raw: &[u8], data: Vec<u8>) -> Part {
    Part {
        pieces,
        raw_bytes: u32::try_from(raw.len()).expect("small"),
        data: data.into(),
        lost: String::new(),
    }
}

/// What a target may send instead of the content: each is told, none becomes content.
#[test]
fn parts_that_are_not_what_was_wanted_are_refused() {
    let content = vec![5; 1000];
    let digest = ContentDigest::of(&content);
    let packed = zstd::bulk::compress(&content, 1).expect("compress");
    let mut good = pieces(vec![part(1, &content, content.clone()), part(1, &content, packed.clone())]);
    for _ in 0..2 {
        assert_eq!(good.next(1000, digest).expect("good").expect("there"), content);
    }
    assert!(matches!(good.next(1000, digest), Err(SupplyError::Cut(_))));
    let bomb = zstd::bulk::compress(&vec![0; 3 * MAX_CHUNK_BYTES], 1).expect("compress");
    let mut other = content.clone();
    other[500] ^= 1;
    for (name, bad) in [
        ("other bytes", part(1, &content, other)),
        ("too short", part(1, &content[1..], content[1..].to_vec())),
        ("too long", part(1, &[0; 1001], [&content[..], &[0]].concat())),
        ("no piece", part(0, &content, content.clone())),
        ("a bomb", part(1, &content, bomb)),
        ("longer than it says", part(1, &content[..900], packed)),
        ("not packed", part(1, &content, vec![1; 999])),
        ("over the limit", Part { raw_bytes: u32::MAX, ..part(1, &content, content.clone()) }),
        ("two lost", Part { lost: "gone".to_owned(), ..part(2, &[], Vec::new()) }),
    ] {
        let mut bad = pieces(vec![bad]);
        let error = bad.next(1000, digest).map(|piece| piece.map(<[u8]>::to_vec));
        assert!(matches!(error, Err(SupplyError::Other(_))), "{name}: {error:?}");
    }
}

/// The destination's rules, each with what would break without it.
#[test]
fn destinations_that_hold_something_else_are_refused() {
    let folder = tempfile::tempdir().expect("temp");
    let base = std::fs::canonicalize(folder.path()).expect("real");
    let live = base.join("live");
    std::fs::create_dir_all(live.join("data")).expect("mkdir");
    std::os::unix::fs::symlink(&live, base.join("link-to-live")).expect("symlink");
    for name in ["generations", "ledger", "staging"] {
        std::fs::create_dir_all(base.join("store/repo").join(name)).expect("mkdir");
    }
    let header = header(&live);
    let open = |to: &std::path::Path, allowed: &Allowed| {
        Destination::open(to, &header, GenerationNumber(3), RootDigest([1; 32]), allowed)
    };
    let onto = Allowed { onto_existing: true, ..Default::default() };
    for refused in [
        live.clone(),
        live.join("data").join(".."),
        base.clone(),
        base.join("link-to-live"),
        base.join("store/repo/generations/000001"),
        base.join("store/repo"),
        base.join("store"),
        PathBuf::from("/"),
        PathBuf::from("relative"),
    ] {
        assert!(matches!(open(&refused, &onto), Err(RestoreError::Refused { .. })), "{}", refused.display());
    }
    std::fs::write(live.join("data/x"), "x").expect("write");
    assert!(open(&live.join("data"), &onto).is_err(), "inside of a live root");
    let said = Allowed { onto_existing: true, over_live_roots: vec![live.clone()], ..Default::default() };
    drop(open(&live, &said).expect("said in words"));
    let new = base.join("new");
    drop(open(&new, &Allowed::default()).expect("a new folder"));
    // The same restore takes it up; another one does not.
    drop(open(&new, &Allowed::default()).expect("taken up"));
    let other =
        Destination::open(&new, &header, GenerationNumber(4), RootDigest([1; 32]), &Allowed::default());
    assert!(matches!(other, Err(RestoreError::Refused { .. })));
}

/// A folder that looks as if this restore had been begun in it is taken up when it is this user's own and nobody else's to enter; and of its parts
/// those that have no other name, and nothing in their holes.
#[test]
fn what_was_planted_is_not_taken_up() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    const BYTES: usize = 8192;
    let folder = tempfile::tempdir().expect("temp");
    let base = std::fs::canonicalize(folder.path()).expect("real");
    let content = vec![7; BYTES];
    let data = [&content[..], &[0; BYTES]].concat();
    let sparse = Entry {
        size: 2 * BYTES as u64,
        digest: ContentDigest::of(&data).0.to_vec(),
        pieces: vec![(BYTES as u64) << 1, (BYTES as u64) << 1 | 1],
        piece_digests: ContentDigest::of(&content).0.to_vec(),
        ..file_entry("sparse", &data)
    };
    let entries = [folder_entry(""), file_entry("linked", &content), sparse];
    let number = GenerationNumber(3);
    let back = base.join("back");
    let open = |root| {
        let header = header(&base.join("live"));
        Destination::open(&back, &header, number, root, &Allowed::default())
    };
    let (file, root) = manifest(&entries);
    drop(open(root).expect("a new folder"));
    let scratch = back.join(destination::SCRATCH);
    std::fs::set_permissions(&scratch, std::fs::Permissions::from_mode(0o770)).expect("chmod");
    assert!(matches!(open(root), Err(RestoreError::Refused { .. })), "others may have put anything there");
    std::fs::set_permissions(&scratch, std::fs::Permissions::from_mode(0o700)).expect("chmod");

    let destination = open(root).expect("taken up");
    let victim = base.join("victim");
    std::fs::write(&victim, &content).expect("write");
    for place in 0..4 {
        let part = scratch.join(apply::part_name(place));
        // One of them is the place of the file with one piece, and one that of the sparse one.
        let planted = if place % 2 == 1 {
            std::fs::hard_link(&victim, part)
        } else {
            std::fs::write(part, [&content[..], &[9; BYTES]].concat())
        };
        planted.expect("plant");
    }
    let checked = Checked::check(file, number, root, &[]).expect("sound");
    let (wants, _wanted) = tokio::sync::mpsc::channel(8);
    let (supply, parts) = tokio::sync::mpsc::channel(8);
    for _ in 0..2 {
        supply.try_send(Ok(part(1, &content, content.clone()))).expect("room");
    }
    let options = Options::default();
    let report = restore(&destination, &checked, &options, wants, parts, &mut |_| {}).expect("restored");
    assert_eq!(report.files_made, 2);
    assert_eq!(std::fs::read(back.join("linked")).expect("there"), content);
    assert_eq!(std::fs::read(back.join("sparse")).expect("there"), data);
    let [ours, theirs] = [back.join("linked"), victim].map(|path| std::fs::metadata(path).expect("stat"));
    assert!(ours.ino() != theirs.ino() && ours.nlink() == 1, "the other name's file is not ours");
}
