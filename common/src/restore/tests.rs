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

/// A tree of one file of two pieces with a hole between them, its content, and the manifest's place of it.
fn one_file() -> (Vec<Entry>, Vec<u8>, u64) {
    one_file_of(&[7; 1000])
}

/// The same with a first piece of 1000 bytes.
fn one_file_of(first: &[u8]) -> (Vec<Entry>, Vec<u8>, u64) {
    let content = [first, &[0; 8192], &[9; 500]].concat();
    let piece_digests = [&content[..1000], &content[9192..]].map(|piece| ContentDigest::of(piece).0).concat();
    let pieces = vec![1000 << 1, 8192 << 1 | 1, 500 << 1];
    let file = Entry { pieces, piece_digests, ..file_entry("file", &content) };
    (vec![folder_entry(""), file], content, 1)
}

/// Restores the tree of [`one_file`]; the bytes that were fetched.
fn restored(destination: &Destination, entries: &[Entry], content: &[u8]) -> u64 {
    let report = restored_with(&Options::default(), destination, entries, content);
    assert_eq!((report.files_made, report.lost_files), (1, 0), "{report:?}");
    report.progress.fetched_bytes
}

fn restored_with(options: &Options, destination: &Destination, entries: &[Entry], content: &[u8]) -> Report {
    let (file, root) = manifest(entries);
    let checked = Checked::check(file, GenerationNumber(1), root, &[]).expect("sound");
    let (wants_out, mut wants) = tokio::sync::mpsc::channel::<Want>(4);
    let (parts_out, parts) = tokio::sync::mpsc::channel(4);
    let pieces = [&content[..1000], &content[9192..]];
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while let Some(want) = wants.blocking_recv() {
                let all = if want.pieces.is_empty() { vec![0, 1] } else { want.pieces };
                for piece in all.into_iter().map(|number| pieces[number as usize]) {
                    drop(parts_out.blocking_send(Ok(part(1, piece, piece.to_vec()))));
                }
            }
        });
        restore(destination, &checked, options, wants_out, parts, &mut |_| ()).expect("restored")
    })
}

/// What lies beside a database belongs to the one that stood there before: SQLite would apply it to the restored one, and spoil it. Nothing
/// is lost, and what only looks like it stays.
#[test]
fn what_sqlite_would_apply_to_a_restored_database_is_set_aside() {
    let mut first = [7; 1000];
    let names = |to: &std::path::Path| {
        let mut names: Vec<String> = std::fs::read_dir(to)
            .expect("read")
            .map(|entry| entry.expect("read").file_name().into_string().expect("utf-8"))
            .collect();
        names.sort();
        names
    };
    for (database, delete) in [(true, false), (true, true), (false, false)] {
        let folder = tempfile::tempdir().expect("temp");
        let to = folder.path().join("to");
        if database {
            first[..16].copy_from_slice(b"SQLite format 3\0");
        } else {
            first[..16].fill(7);
        }
        let (entries, content, _) = one_file_of(&first);
        let (_, root) = manifest(&entries);
        std::fs::create_dir(&to).expect("mkdir");
        for name in ["file", "file-wal", "file-shm", "file-journal", "file-wal.before-restore", "other-wal"] {
            std::fs::write(to.join(name), name).expect("write");
        }
        let allowed = Allowed { onto_existing: true, ..Allowed::default() };
        let live = header(std::path::Path::new("/live/of/another/host"));
        let destination = Destination::open(&to, &live, GenerationNumber(1), root, &allowed).expect("open");
        let options = Options { delete, ..Options::default() };
        let report = restored_with(&options, &destination, &entries, &content);
        destination.finish().expect("finished");
        assert!(std::fs::read(to.join("file")).expect("read") == content);
        let aside: &[&str] =
            if database && !delete { &["file-journal", "file-shm", "file-wal"] } else { &[] };
        let mut told: Vec<String> = report.set_aside.iter().map(|(before, _)| before.to_string()).collect();
        told.sort();
        assert_eq!(told, aside);
        assert!(report.set_aside.iter().all(|(_, now)| to.join(now.to_string()).exists()), "{report:?}");
        let expected: &[&str] = match (database, delete) {
            (true, false) => &[
                "file",
                "file-journal.before-restore",
                "file-shm.before-restore",
                "file-wal.before-restore",
                "file-wal.before-restore.before-restore",
                "other-wal",
            ],
            (true, true) => &["file"],
            (false, _) => {
                &["file", "file-journal", "file-shm", "file-wal", "file-wal.before-restore", "other-wal"]
            }
        };
        assert_eq!(names(&to), expected);
        // A second time everything is right already, and stays.
        let again = Destination::open(&to, &live, GenerationNumber(1), root, &allowed).expect("open");
        let report = restored_with(&options, &again, &entries, &content);
        assert_eq!((report.files_right, report.set_aside.len()), (1, 0), "{report:?}");
        assert_eq!(
            names(&to).iter().filter(|name| *name != ".assay-restore").collect::<Vec<_>>(),
            expected.iter().collect::<Vec<_>>()
        );
    }
}

/// What an earlier attempt is said to have left counts by its bytes alone: what else it may be is neither followed nor written to, and
/// nothing of it stays in the file.
#[test]
fn what_is_planted_among_the_parts_is_not_taken_up() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
    type Plant = fn(&std::path::Path, &std::path::Path, &[u8]);
    let folder = tempfile::tempdir().expect("temp");
    let (entries, content, place) = one_file();
    let (_, root) = manifest(&entries);
    let write = |path: &std::path::Path, bytes: &[u8]| std::fs::write(path, bytes).expect("write");
    let cases: [(&str, u64, Plant); 9] = [
        ("nothing", 1500, |_, _, _| ()),
        ("a link", 1500, |part, outside, _| symlink(outside, part).expect("symlink")),
        ("a link to nothing", 1500, |part, outside, _| {
            symlink(outside.with_extension("new"), part).expect("symlink");
        }),
        ("a further name", 1500, |part, outside, _| std::fs::hard_link(outside, part).expect("link")),
        ("a folder", 1500, |part, _, _| std::fs::create_dir_all(part.join("inner")).expect("mkdir")),
        ("a FIFO", 1500, |part, _, _| {
            let entry = Entry { kind: EntryKind::Fifo.into(), ..Default::default() };
            let folder = crate::confined::Folder::open(part.parent().expect("a folder")).expect("open");
            folder.create_special(b"part-1", &entry).expect("mkfifo");
        }),
        ("bytes in the hole", 1500, |part, _, content| {
            let mut content = content.to_vec();
            content[9000] = 1;
            std::fs::write(part, content).expect("write");
        }),
        ("a sound one, with more behind its end, and rights", 0, |part, _, content| {
            std::fs::write(part, [content, b"more"].concat()).expect("write");
            std::fs::set_permissions(part, std::fs::Permissions::from_mode(0o4777)).expect("chmod");
        }),
        ("half of one", 500, |part, _, content| std::fs::write(part, &content[..9500]).expect("write")),
    ];
    for (case, fetched, plant) in cases {
        let base = folder.path().join(case);
        let (to, outside) = (base.join("to"), base.join("outside"));
        std::fs::create_dir(&base).expect("mkdir");
        // Were it taken for a part, all of its pieces would be right, and its end would be cut off.
        write(&outside, &[&content[..], b"precious"].concat());
        let header = header(std::path::Path::new("/live/of/another/host"));
        let open =
            || Destination::open(&to, &header, GenerationNumber(1), root, &Allowed::default()).expect(case);
        drop(open());
        plant(&to.join(format!(".assay-restore/part-{place}")), &outside, &content);
        let destination = open();
        assert_eq!(restored(&destination, &entries, &content), fetched, "{case}");
        destination.finish().expect("finished");
        let made = std::fs::symlink_metadata(to.join("file")).expect("there");
        assert!(made.is_file() && made.nlink() == 1 && made.mode() & 0o7777 == 0o644, "{case}: {made:?}");
        assert!(std::fs::read(to.join("file")).expect("read") == content, "{case}: other bytes");
        assert!(std::fs::read(&outside).expect("read") == [&content[..], b"precious"].concat(), "{case}");
        assert!(!outside.with_extension("new").exists(), "{case}: written through a link");
        assert!(!to.join(".assay-restore").exists(), "{case}");
    }
}

/// The folder of parts is taken up when nobody else could have written to it, and never through a link.
#[test]
fn a_folder_of_parts_that_others_could_have_made_is_not_taken_up() {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    type Plant = fn(&std::path::Path, &std::path::Path);
    let folder = tempfile::tempdir().expect("temp");
    let (entries, content, _) = one_file();
    let (_, root) = manifest(&entries);
    let mut cases: Vec<(&str, Plant)> = vec![
        ("a link to one", |scratch, outside| {
            std::fs::rename(scratch, outside).expect("rename");
            symlink(outside, scratch).expect("symlink");
        }),
        ("open to others", |scratch, _| {
            std::fs::set_permissions(scratch, std::fs::Permissions::from_mode(0o770)).expect("chmod");
        }),
        ("a plan behind a link", |scratch, outside| {
            std::fs::rename(scratch.join("plan.json"), outside).expect("rename");
            symlink(outside, scratch.join("plan.json")).expect("symlink");
        }),
        ("a plan with a further name", |scratch, outside| {
            std::fs::hard_link(scratch.join("plan.json"), outside).expect("link");
        }),
        ("half of a plan", |scratch, _| std::fs::write(scratch.join("plan.json"), "{").expect("write")),
    ];
    if rustix::process::geteuid().is_root() {
        cases.push(("somebody else's", |scratch, _| {
            std::os::unix::fs::chown(scratch, Some(1), None).expect("chown");
        }));
    }
    for (case, plant) in cases {
        let base = folder.path().join(case);
        let (to, outside) = (base.join("to"), base.join("outside"));
        std::fs::create_dir(&base).expect("mkdir");
        let header = header(std::path::Path::new("/live/of/another/host"));
        let open = |allowed: &Allowed| Destination::open(&to, &header, GenerationNumber(1), root, allowed);
        drop(open(&Allowed::default()).expect("new"));
        drop(open(&Allowed::default()).expect("taken up while it is as it was left"));
        std::fs::write(to.join(".assay-restore/part-1"), &content).expect("write");
        plant(&to.join(".assay-restore"), &outside);
        let before = outside.is_dir().then(|| std::fs::read_dir(&outside).expect("read").count());
        let refused = open(&Allowed::default()).expect_err(case);
        assert!(matches!(refused, RestoreError::Refused { .. }), "{case}: {refused}");
        let destination = open(&Allowed { onto_existing: true, ..Default::default() }).expect(case);
        assert_eq!(restored(&destination, &entries, &content), 1500, "{case}: all is fetched");
        destination.finish().expect("finished");
        assert!(std::fs::read(to.join("file")).expect("read") == content, "{case}");
        assert_eq!(
            outside.is_dir().then(|| std::fs::read_dir(&outside).expect("read").count()),
            before,
            "{case}"
        );
    }
}

/// Names that the destination takes for one, and more names of a file than it allows, are found before anything is written.
#[test]
fn names_that_the_destination_cannot_tell_apart_do_not_fit() {
    use crate::fidelity::FsLimits;
    let folder = tempfile::tempdir().expect("temp");
    let sound = FsLimits::probe(folder.path(), "probe").expect("tried").expect("room");
    let further = |path: &str| Entry {
        path: path.as_bytes().to_vec(),
        kind: EntryKind::Hardlink.into(),
        link_target: b"File".to_vec(),
        ..Default::default()
    };
    let entries =
        [folder_entry(""), file_entry("File", b"x"), file_entry("file", b"y"), further("m"), further("n")];
    let (file, root) = manifest(&entries);
    let checked = Checked::check(file, GenerationNumber(1), root, &[]).expect("sound");
    let check = |limits: &FsLimits| {
        let mut fit = fit::Fit::with(&Options::default(), Some(limits.clone()), None);
        fit.check(folder.path(), &checked, &[])
    };
    check(&sound).expect("all of it fits");
    for (limits, what) in [
        (FsLimits { folds_names: true, ..sound.clone() }, "file differs from another name in case only"),
        (
            FsLimits { names: 2, ..sound.clone() },
            "n is one more name of a file than the 2 that the destination's",
        ),
    ] {
        let refused = check(&limits).expect_err(what).to_string();
        assert!(refused.contains(what) && refused.ends_with("nothing was written"), "{refused}");
    }
    let checked_other = |paths: &[TreePath]| {
        let limits = FsLimits { folds_names: true, ..sound.clone() };
        fit::Fit::with(&Options::default(), Some(limits), None).check(folder.path(), &checked, paths)
    };
    checked_other(&[path("file")]).expect("what is not asked for does not count");
}
