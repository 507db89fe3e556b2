//! What a target that was taken over, or whoever writes to its store, puts into a generation: a restore as root brings back exactly what the signed
//! manifest says, or nothing of it.

use std::{
    fs,
    os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink},
    path::Path,
    process::Command,
};

use assay_common::manifest::{Entry, EntryKind, ManifestReader, ManifestWriter};
use assay_proto::v1::{ContentPart, ManifestPart};
use integration_tests::evil::target::{EvilTarget, Lie};

use crate::{
    ground::target_url,
    pair::{Pair, rsync_finds_no_difference},
    restores::{pair, restore, restore_from},
};

/// A part that says that it stands for more pieces than it has.
const FOR_ALL: &str = "for all pieces";
/// Size of the file with a hole.
const SPARSE_BYTES: u64 = 4 << 20;

/// Agents with a generation of several kinds of files, and the live root of it.
fn pair_with_a_tree() -> Pair {
    let pair = pair();
    let root = pair.root(0);
    fs::write(root.join("plain"), "a plain file").expect("write");
    fs::write(root.join("first"), "a file with two names").expect("write");
    fs::hard_link(root.join("first"), root.join("second")).expect("link");
    fs::create_dir(root.join("folder")).expect("mkdir");
    fs::write(root.join("folder/inner"), vec![7; 300_000]).expect("write");
    symlink("folder/inner", root.join("link")).expect("symlink");
    let sparse = fs::File::create(root.join("sparse")).expect("create");
    sparse.set_len(SPARSE_BYTES).expect("extend");
    sparse.write_all_at(b"the end", SPARSE_BYTES - 7).expect("write");
    pair.run(0);
    pair
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("stat").permissions().mode() & 0o7777
}

fn make(arguments: &[&str], path: &Path) {
    let program = Command::new(arguments[0]).arg(path).args(&arguments[1..]).status();
    assert!(program.expect("it starts").success(), "{arguments:?}");
}

/// What the manifest does not say stays in the store: modes, owners, attributes, further names, devices, bytes in holes.
#[test]
fn what_was_added_in_the_store_does_not_come_back() {
    let pair = pair_with_a_tree();
    let tree = pair.latest();
    fs::set_permissions(tree.join("plain"), fs::Permissions::from_mode(0o6777)).expect("chmod");
    fs::set_permissions(tree.join("folder"), fs::Permissions::from_mode(0o7777)).expect("chmod");
    chown(tree.join("folder/inner"), Some(4242), Some(4242)).expect("chown");
    make(&["setfattr", "-n", "user.evil", "-v", "x"], &tree.join("plain"));
    fs::hard_link(tree.join("plain"), tree.join("another-name")).expect("link");
    fs::write(tree.join("backdoor"), "* * * * * root sh").expect("write");
    symlink("/etc", tree.join("folder/etc")).expect("symlink");
    make(&["mknod", "b", "8", "0"], &tree.join("disk"));
    make(&["mkfifo"], &tree.join("fifo"));
    let sparse = fs::File::options().write(true).open(tree.join("sparse")).expect("open");
    sparse.write_all_at(&[0x5a; 8192], 1 << 20).expect("write");
    // More names of one file, and one fewer of another.
    fs::remove_file(tree.join("second")).expect("remove");
    fs::write(tree.join("second"), "a file with two names").expect("write");
    let root = pair.root(0);
    for (name, done) in [
        ("over the network", restore(&pair, &pair.path("over the network"), &[])),
        ("at the target", {
            let to = pair.path("at the target");
            pair.target(&["--json", "restore", "--to", to.to_str().expect("text")])
        }),
    ] {
        assert_eq!(done.code, 0, "{name}: {done:?}");
        let to = pair.path(name);
        rsync_finds_no_difference(&root, &to);
        for file in ["plain", "folder"] {
            assert_eq!(mode(&to.join(file)), mode(&root.join(file)), "{name}, {file}");
        }
        let (plain, first, second) =
            ["plain", "first", "second"].map(|file| fs::metadata(to.join(file)).expect("stat")).into();
        assert_eq!((plain.nlink(), plain.uid(), first.ino() == second.ino()), (1, 0, true), "{name}");
        assert_eq!(fs::read_dir(&to).expect("list").count(), fs::read_dir(&root).expect("list").count());
    }
    // A folder that an attacker has prepared: the same content under another mode, owner and name.
    let to = pair.path("prepared");
    fs::create_dir(&to).expect("mkdir");
    fs::write(to.join("plain"), "a plain file").expect("write");
    let outside = pair.path("outside");
    fs::hard_link(to.join("plain"), &outside).expect("link");
    fs::set_permissions(to.join("plain"), fs::Permissions::from_mode(0o6755)).expect("chmod");
    fs::write(to.join("sparse"), vec![1; usize::try_from(SPARSE_BYTES).expect("small")]).expect("write");
    symlink("/etc", to.join("folder")).expect("symlink");
    make(&["mkfifo"], &to.join("first"));
    let done = restore(&pair, &to, &["--onto-existing", "--delete"]);
    assert_eq!(done.code, 0, "{done:?}");
    rsync_finds_no_difference(&root, &to);
    assert_eq!(fs::metadata(to.join("plain")).expect("stat").nlink(), 1);
    assert_eq!(mode(&outside), 0o6755, "what has its name elsewhere is not touched");
}

/// What is not there as it was sealed is named, and nothing stands in its place.
#[test]
fn what_was_exchanged_in_the_store_is_named_and_not_restored() {
    let pair = pair_with_a_tree();
    let tree = pair.latest();
    type Spoil<'a> = (&'a str, &'a str, &'a dyn Fn(&Path));
    let spoil: [Spoil<'_>; 7] = [
        ("cut", "plain", &|path| {
            fs::File::options().write(true).open(path).expect("open").set_len(3).expect("cut")
        }),
        ("longer, and other bytes", "plain", &|path| {
            fs::write(path, "A plain file, and more").expect("write")
        }),
        ("other bytes", "sparse", &|path| {
            let file = fs::File::options().write(true).open(path).expect("open");
            file.write_all_at(b"THE END", SPARSE_BYTES - 7).expect("write");
        }),
        ("a link that leads out", "plain", &|path| symlink("/etc/passwd", path).expect("symlink")),
        ("a FIFO", "plain", &|path| make(&["mkfifo"], path)),
        ("a device", "plain", &|path| make(&["mknod", "c", "1", "5"], path)),
        ("a folder", "folder/inner", &|path| fs::create_dir(path).expect("mkdir")),
    ];
    for (at, (name, file, change)) in spoil.into_iter().enumerate() {
        let (path, kept) = (tree.join(file), pair.path("kept"));
        fs::rename(&path, &kept).expect("rename");
        if ["cut", "other bytes"].contains(&name) {
            let copied = Command::new("cp").args(["-a", "--sparse=always"]).args([&kept, &path]).status();
            assert!(copied.expect("it starts").success());
        }
        change(&path);
        let to = pair.path(&format!("back-{at}"));
        let done = restore(&pair, &to, &[]);
        assert_eq!(done.code, 1, "{name}: {done:?}");
        assert!(done.stdout.contains(file) && !to.join(file).exists(), "{name}: {done:?}");
        assert_eq!(fs::read(to.join("file")).expect("the rest is there"), b"good", "{name}");
        if path.is_dir() && !path.is_symlink() {
            fs::remove_dir(&path).expect("remove");
        }
        fs::rename(&kept, &path).expect("rename");
    }
}

/// Parts of an honest manifest, with other entries. It is one message: the tree is small.
fn rewritten(part: &ManifestPart, change: &dyn Fn(&mut Vec<Entry>)) -> ManifestPart {
    let mut reader = ManifestReader::open(&part.data[..]).expect("a manifest");
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry().expect("an entry") {
        entries.push(entry);
    }
    change(&mut entries);
    let mut writer = ManifestWriter::create(Vec::new(), reader.header()).expect("memory");
    entries.iter().for_each(|entry| writer.push(entry).expect("memory"));
    ManifestPart { data: writer.finish().expect("memory").0.into() }
}

fn named<'a>(entries: &'a mut [Entry], path: &str) -> &'a mut Entry {
    entries.iter_mut().find(|entry| entry.path == path.as_bytes()).expect("it is there")
}

type EditEntries = Box<dyn Fn(&mut Vec<Entry>) + Send + Sync>;
type EditPart = Box<dyn Fn(ContentPart) -> Vec<ContentPart> + Send + Sync>;

/// A manifest that says anything else than the one that was signed is refused before anything is made.
#[test]
fn no_entry_of_a_manifest_can_be_changed_for_a_restore() {
    let pair = pair_with_a_tree();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let evil = runtime.block_on(EvilTarget::start(&pair.path("pki"), &target_url(&pair)));
    let edits: Vec<(&str, EditEntries)> = vec![
        ("set-user-id", Box::new(|it| named(it, "plain").mode |= 0o6000)),
        ("an owner", Box::new(|it| named(it, "plain").uid = 4242)),
        ("a time", Box::new(|it| named(it, "plain").mtime_seconds += 1)),
        ("a size", Box::new(|it| named(it, "plain").size += 1)),
        ("a hole for data", Box::new(|it| named(it, "folder/inner").pieces.clear())),
        (
            "a device",
            Box::new(|it| {
                let entry = named(it, "link");
                entry.kind = EntryKind::BlockDevice.into();
                entry.link_target.clear();
                (entry.device_major, entry.device_minor) = (8, 0);
            }),
        ),
        (
            "another file",
            Box::new(|it| {
                let mut entry = named(it, "plain").clone();
                entry.path = b"plain-2".to_vec();
                let at = it.iter().position(|entry| entry.path == b"plain").expect("there");
                it.insert(at + 1, entry);
            }),
        ),
        (
            "a further name",
            Box::new(|it| {
                let entry = named(it, "plain");
                *entry = Entry {
                    path: entry.path.clone(),
                    kind: EntryKind::Hardlink.into(),
                    link_target: b"first".to_vec(),
                    ..Default::default()
                };
            }),
        ),
        ("where a link leads", Box::new(|it| named(it, "link").link_target = b"/etc/passwd".to_vec())),
        ("one entry fewer", Box::new(|it| it.retain(|entry| entry.path != b"plain"))),
        ("nothing", Box::new(Vec::clear)),
    ];
    for (at, (name, edit)) in edits.into_iter().enumerate() {
        evil.tell(Lie::SealedManifest(Box::new(move |part| Ok(vec![rewritten(&part, &*edit)]))));
        let to = pair.path(&format!("back-{at}"));
        let done = restore_from(&pair, &evil.url(), &to);
        assert_eq!(done.code, 4, "{name}: {done:?}");
        assert!(!to.exists(), "{name}: {done:?}");
    }
    for (name, change) in [
        (
            "cut",
            (|part: ManifestPart| part.data[..part.data.len() / 2].to_vec()) as fn(ManifestPart) -> Vec<u8>,
        ),
        ("empty", |_| Vec::new()),
        ("twice", |part| [&part.data[..], &part.data[..]].concat()),
        ("something behind it", |part| [&part.data[..], b"more"].concat()),
    ] {
        evil.tell(Lie::SealedManifest(Box::new(move |part| {
            Ok(vec![ManifestPart { data: change(part).into() }])
        })));
        let to = pair.path(&format!("back-{name}"));
        let done = restore_from(&pair, &evil.url(), &to);
        assert_eq!(done.code, 4, "{name}: {done:?}");
        assert!(!to.exists(), "{name}: {done:?}");
    }
    evil.tell(Lie::None);
    let to = pair.path("back");
    let done = restore_from(&pair, &evil.url(), &to);
    assert_eq!(done.code, 0, "{done:?}");
    rsync_finds_no_difference(&pair.root(0), &to);
}

/// Content that is not what the manifest names becomes no file, whatever is said of it.
#[test]
fn no_part_of_the_content_can_be_changed_for_a_restore() {
    let pair = pair_with_a_tree();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let evil = runtime.block_on(EvilTarget::start(&pair.path("pki"), &target_url(&pair)));
    let zeros = zstd::bulk::compress(&vec![0; 16 << 20], 3).expect("memory");
    let bomb = ContentPart { pieces: 1, raw_bytes: 100_000, data: zeros.into(), lost: String::new() };
    let edits: Vec<(&str, EditPart)> = vec![
        (
            "other bytes",
            Box::new(|part| {
                let data: Vec<u8> = part.data.iter().map(|byte| byte ^ 1).collect();
                vec![ContentPart { data: data.into(), ..part }]
            }),
        ),
        ("longer", Box::new(|part| vec![ContentPart { raw_bytes: part.raw_bytes + 1, ..part }])),
        ("longest", Box::new(|part| vec![ContentPart { raw_bytes: u32::MAX, ..part }])),
        (
            "shorter",
            Box::new(|part| vec![ContentPart { raw_bytes: part.raw_bytes.saturating_sub(1), ..part }]),
        ),
        ("for no piece", Box::new(|part| vec![ContentPart { pieces: 0, ..part }])),
        (FOR_ALL, Box::new(|part| vec![ContentPart { pieces: u32::MAX, ..part }])),
        (
            "lost, for all pieces",
            Box::new(|part| vec![ContentPart { pieces: u32::MAX, lost: "gone".to_owned(), ..part }]),
        ),
        ("more than it says when it is unpacked", Box::new(move |_| vec![bomb.clone()])),
        ("never", Box::new(|_| Vec::new())),
    ];
    for (at, (name, edit)) in edits.into_iter().enumerate() {
        evil.tell(Lie::Content(Box::new(move |part| Ok(edit(part)))));
        let to = pair.path(&format!("back-{at}"));
        let done = restore_from(&pair, &evil.url(), &to);
        if name == FOR_ALL && done.code == 0 {
            // All content came in one part, and each piece of it has its digest.
            rsync_finds_no_difference(&pair.root(0), &to);
            continue;
        }
        assert_eq!(done.code, 4, "{name}: {done:?}");
        // What came before the lie may be there.
        for file in ["file", "plain", "first", "folder/inner", "sparse"] {
            let (made, live) = (fs::read(to.join(file)), fs::read(pair.root(0).join(file)).expect("read"));
            assert!(made.map_or(true, |made| made == live), "{name}, {file}: {done:?}");
        }
    }
    // What the target says that it has lost is named, and its words do nothing to a terminal.
    evil.tell(Lie::Content(Box::new(|part| {
        let lost = ContentPart {
            pieces: 1,
            raw_bytes: 0,
            data: Vec::new().into(),
            lost: "\u{1b}]0;evil\u{7} gone".to_owned(),
        };
        Ok(vec![lost; part.pieces as usize])
    })));
    let to = pair.path("lost");
    let done = restore_from(&pair, &evil.url(), &to);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stdout.contains("gone") && !done.stdout.contains('\u{1b}'), "{done:?}");
    assert!(!to.join("plain").exists() && fs::read_link(to.join("link")).is_ok(), "{done:?}");
}
