//! Which files are copied, and when a copy is not used.

use std::os::unix::fs::MetadataExt as _;

use assay_common::digest::BLOCK_BYTES;

use super::*;
use crate::keep::bench::{Bench, Tree};

const ALL: Room = Room { most: u64::MAX, reserve: 0 };

fn content(seed: u8, bytes: u64) -> Vec<u8> {
    (0..bytes).map(|place| (place >> 11) as u8 ^ seed).collect()
}

/// A repository whose newest generation has these files, written now.
fn bench(tree: &Tree<'_>) -> Bench {
    let bench = Bench::new(None);
    bench.seal_written(tree, jiff::Timestamp::now().as_second());
    bench
}

fn prepare(bench: &Bench, number: u64, room: Room) {
    let copies = &bench.repository.copies;
    let turn = copies.begin();
    copies.prepare(&bench.repository.store, GenerationNumber(number), room, &turn).expect("prepare");
}

/// What is held by path, and the files that are there.
fn held(bench: &Bench) -> (Vec<String>, usize) {
    let copies = &bench.repository.copies;
    let mut paths: Vec<String> = copies.state().held.keys().map(|key| display_bytes(&key.path)).collect();
    paths.sort();
    let files = fs::read_dir(&copies.folder).expect("read").flatten();
    (paths, files.filter(|file| file.file_name() != OF).count())
}

#[test]
fn large_files_that_were_written_lately_are_copied_as_far_as_there_is_room() {
    let (large, other) = (content(1, LEAST_BYTES + 5), content(2, 6 * BLOCK_BYTES));
    let mut holes = vec![0; 8 << 20];
    holes[..9].copy_from_slice(b"some data");
    let tree = Tree::from([
        ("a", &large[..]),
        ("b", &other[..]),
        ("c", b"small"),
        ("d", &large[..LEAST_BYTES as usize - 1]),
    ]);
    let bench = bench(&tree);
    prepare(&bench, 1, Room { most: LEAST_BYTES + 4, reserve: 0 });
    assert_eq!(held(&bench), (vec![], 0), "too large for the room");
    fs::remove_file(bench.repository.copies.folder.join(OF)).expect("of");
    prepare(&bench, 1, Room { most: u64::MAX, reserve: u64::MAX });
    assert_eq!(held(&bench), (vec![], 0), "all room is to be kept free");
    fs::remove_file(bench.repository.copies.folder.join(OF)).expect("of");
    prepare(&bench, 1, Room { most: 7 << 20, reserve: 0 });
    assert_eq!(held(&bench), (vec!["a".to_owned()], 1), "no room for both");
    fs::remove_file(bench.repository.copies.folder.join(OF)).expect("of");
    prepare(&bench, 1, ALL);
    assert_eq!(held(&bench), (vec!["a".to_owned(), "b".to_owned()], 2));

    // Of files that are as they were the copy stays what it is, and others go.
    let inode = |number: u64| {
        fs::metadata(bench.repository.copies.folder.join(number.to_string())).map(|file| file.ino())
    };
    let before = inode(1).expect("the copy of a");
    let newer = content(3, 5 * BLOCK_BYTES);
    bench.seal_written(
        &Tree::from([("a", &large[..]), ("b", &newer[..])]),
        jiff::Timestamp::now().as_second(),
    );
    prepare(&bench, 2, ALL);
    assert_eq!(held(&bench), (vec!["a".to_owned(), "b".to_owned()], 2));
    assert_eq!(inode(1).expect("the same"), before);
    assert!(inode(2).is_err(), "of what b was before");
    // What has not been written for days will not be soon.
    bench.seal(&Tree::from([("a", &large[..])]));
    prepare(&bench, 3, ALL);
    assert_eq!(held(&bench), (vec![], 0));
}

#[test]
fn a_copy_is_taken_once_and_its_blocks_are_those_of_its_file() {
    let large = content(1, 5 * BLOCK_BYTES + 77);
    let bench = bench(&Tree::from([("a", &large[..])]));
    prepare(&bench, 1, ALL);
    let folder = tempfile::tempdir_in(bench.repository.store.path()).expect("temp");
    let to = Folder::open(folder.path()).expect("open");
    let (copies, digest) = (&bench.repository.copies, ContentDigest::of(&large));
    assert!(copies.take(b"a", ContentDigest::of(b"other"), &to, b"1").is_none());
    assert!(copies.take(b"b", digest, &to, b"1").is_none());
    let blocks = copies.take(b"a", digest, &to, b"1").expect("it is there");
    assert!(BlockList::of(blocks.values().to_vec(), large.len() as u64, digest).is_some());
    assert_eq!(fs::read(folder.path().join("1")).expect("moved"), large);
    assert!(copies.take(b"a", digest, &to, b"2").is_none(), "it is another's now");
    assert_eq!(held(&bench), (vec![], 0));
    // The next generation may be the same as this one.
    prepare(&bench, 1, ALL);
    assert_eq!(held(&bench), (vec!["a".to_owned()], 1));
}

#[test]
fn what_rotted_what_was_stopped_and_what_an_agent_left_is_no_copy() {
    let large = content(1, 5 * BLOCK_BYTES);
    let bench = bench(&Tree::from([("a", &large[..]), ("b", &large[..])]));
    let (copies, store) = (&bench.repository.copies, &bench.repository.store);
    let turn = copies.begin();
    copies.begin();
    copies.prepare(store, GenerationNumber(1), ALL, &turn).expect("the turn is another's");
    assert_eq!(held(&bench), (vec![], 0));

    let path = bench.path(1, "a");
    let damaged = File::options().write(true).open(&path).expect("open");
    damaged.write_all_at(b"x", 3_000_000).expect("damage");
    prepare(&bench, 1, ALL);
    assert_eq!(held(&bench), (vec!["b".to_owned()], 1));
    damaged.set_len(17).expect("shorten");
    fs::remove_file(copies.folder.join(OF)).expect("of");
    prepare(&bench, 1, ALL);
    assert_eq!(held(&bench), (vec!["b".to_owned()], 1));

    assert!(copies.forget().expect("forget") && !copies.forget().expect("nothing is left"));
    assert_eq!(held(&bench), (vec![], 0));
    prepare(&bench, 1, ALL);
    assert_eq!(held(&bench).1, 1);
    let bench = bench.reopen();
    assert_eq!(held(&bench), (vec![], 0));
    assert!(!bench.repository.copies.folder.join(OF).exists());
}
