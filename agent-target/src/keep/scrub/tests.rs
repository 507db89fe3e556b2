//! Bit rot of every kind that a test can make, and what becomes of it.

use std::{
    cell::RefCell,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::Path,
};

use assay_common::verdict::Outcome;

use super::*;
use crate::keep::bench::{Bench, PIECE_BYTES};

/// Changes one byte in place and leaves the times as they were.
fn flip(path: &Path, offset: u64) {
    let time = std::fs::metadata(path).expect("stat").modified().expect("time");
    let file = File::options().read(true).write(true).open(path).expect("open");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("read");
    file.write_all_at(&[byte[0] ^ 1], offset).expect("write");
    file.set_modified(time).expect("utimes");
}

fn noise(seed: u8, pieces: usize) -> Vec<u8> {
    let mut bytes = vec![0; pieces * PIECE_BYTES];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

fn scrub(bench: &Bench) -> (LastScrub, Vec<Told>) {
    let told = RefCell::new(Vec::new());
    let generations = bench.numbers().into_iter().map(GenerationNumber).collect();
    let wanted = Wanted { generations, only: None, after: None };
    let cancel = CancellationToken::new();
    let done = run(&bench.repository, &wanted, &cancel, &|it| told.borrow_mut().push(it)).expect("scrub");
    (done.expect("to its end"), told.into_inner())
}

fn passed(bench: &Bench) {
    for number in bench.numbers() {
        bench.repository.set_standing(GenerationNumber(number), Outcome::Pass);
    }
}

fn numbers(generations: &[u64]) -> BTreeSet<GenerationNumber> {
    generations.iter().copied().map(GenerationNumber).collect()
}

/// Three generations that share `same`; `grows` is another file in each, with pieces of the one before.
fn three() -> (Bench, Vec<u8>) {
    let bench = Bench::new(None);
    let (same, long) = (noise(1, 5), noise(2, 6));
    for pieces in 4..=6 {
        bench.seal(&[("grows", &long[..pieces * PIECE_BYTES]), ("same", &same[..])].into());
    }
    passed(&bench);
    (bench, long)
}

#[test]
fn sound_generations_are_read_once_for_all_that_share_them() {
    let (bench, _) = three();
    let (last, told) = scrub(&bench);
    assert!(told.is_empty(), "{told:?}");
    // `same` once, `grows` three times.
    assert_eq!((last.generations, last.files), (3, 4));
    assert_eq!(last.bytes as usize, (5 + 4 + 5 + 6) * PIECE_BYTES);
    assert!(last.finished.is_some() && bench.repository.rot().scrubbed(GenerationNumber(2)).is_some());
    assert_eq!(bench.repository.store.verified(), Some(GenerationNumber(3)));
}

/// What a sibling still has puts a file right, under all its names and with all its metadata.
#[test]
fn rot_is_healed_from_siblings() {
    let (bench, long) = three();
    let path = bench.path(2, "grows");
    let (before, parent) = (std::fs::metadata(&path).expect("stat"), std::fs::metadata(bench.path(2, "")));
    // The last piece of this one: generation 3 has it.
    flip(&path, 4 * PIECE_BYTES as u64 + 9);
    let (last, told) = scrub(&bench);
    assert_eq!((last.found, last.healed), (1, 1), "{told:?}");
    let what = "its content is not what arrived".to_owned();
    let generations = numbers(&[2]);
    assert_eq!(told, [Told::Rotten { path: "grows".into(), generations, what, healed: true }]);
    assert_eq!(std::fs::read(&path).expect("read"), long[..5 * PIECE_BYTES]);
    let after = std::fs::metadata(&path).expect("stat");
    let seen = |it: &std::fs::Metadata| (it.mode(), it.uid(), it.gid(), it.mtime(), it.mtime_nsec());
    assert_eq!(seen(&after), seen(&before));
    assert_ne!(after.ino(), before.ino(), "the rotten file itself is never written to");
    assert_eq!(seen(&std::fs::metadata(bench.path(2, "")).expect("stat")), seen(&parent.expect("stat")));
    assert_eq!(bench.repository.rot().unhealed(), 0);
    assert_eq!(scrub(&bench).0.found, 0);
}

/// What nobody else has is told, for every generation that shares it; none of them is verified, and no run takes it over.
#[test]
fn rot_that_cannot_be_healed_stands_until_the_source_brings_it() {
    let (bench, long) = three();
    flip(&bench.path(3, "same"), 17);
    let (last, told) = scrub(&bench);
    assert_eq!((last.found, last.healed), (1, 0));
    assert!(
        matches!(&told[..], [Told::Rotten { generations, healed: false, .. }] if *generations == numbers(&[1, 2, 3])),
        "{told:?}"
    );
    let repository = &bench.repository;
    assert_eq!(repository.store.verified(), None);
    let (base, rotten) = repository.next_base().expect("base").expect("there is one");
    assert_eq!((base, rotten), (GenerationNumber(3), HashSet::from([b"same".to_vec()])));
    // It is remembered over a restart.
    let bench = bench.reopen();
    passed(&bench);
    assert_eq!(bench.repository.store.verified(), None);
    // A run brings it: as content, because nobody may keep it.
    let mut same = noise(1, 5);
    same[0] ^= 1;
    bench.seal(&[("grows", &long[..]), ("same", &same[..])].into());
    same[0] ^= 1;
    bench.seal(&[("grows", &long[..]), ("same", &same[..])].into());
    assert_eq!(bench.repository.rot().unhealed(), 1);
    heal_known(&bench.repository);
    assert_eq!(bench.repository.rot().unhealed(), 0);
    for number in 1..=3 {
        assert_eq!(std::fs::read(bench.path(number, "same")).expect("read"), same, "{number}");
    }
    let inode = |number| std::fs::metadata(bench.path(number, "same")).expect("stat").ino();
    assert_eq!(inode(1), inode(3), "they share it as before");
    assert_eq!(bench.repository.store.verified(), Some(GenerationNumber(3)));
    assert_eq!(scrub(&bench).0.found, 0);
}

/// Kept rot is refused at the seal, whatever a source says.
#[test]
#[should_panic(expected = "Rotten")]
fn no_seal_takes_rot_over() {
    let (bench, long) = three();
    flip(&bench.path(3, "same"), 17);
    scrub(&bench);
    bench.seal(&[("grows", &long[..4]), ("same", &noise(1, 5)[..])].into());
}

#[test]
fn a_damaged_manifest_or_record_is_told_and_not_built_upon() {
    let (bench, _) = three();
    flip(&bench.repository.store.generation_path(GenerationNumber(3)).join(MANIFEST), 200);
    let (last, told) = scrub(&bench);
    assert_eq!((last.found, last.healed), (1, 0));
    assert!(matches!(&told[..], [Told::Rotten { path, .. }] if path == MANIFEST), "{told:?}");
    assert_eq!(bench.repository.store.verified(), Some(GenerationNumber(2)));
    let base = bench.repository.next_base().expect("base").map(|(number, _)| number);
    assert_eq!(base, Some(GenerationNumber(2)));
    std::fs::write(bench.repository.store.generation_path(GenerationNumber(2)).join("record.json"), "{")
        .expect("write");
    assert_eq!(scrub(&bench).0.found, 2);
    assert_eq!(bench.repository.store.verified(), Some(GenerationNumber(1)));
}

/// A run ends it, and it goes on where it was: nothing is read twice.
#[test]
fn a_scrub_that_is_ended_is_taken_up_again() {
    let (bench, _) = three();
    flip(&bench.path(1, "grows"), 1);
    let generations = bench.numbers().into_iter().map(GenerationNumber).collect();
    let cancel = CancellationToken::new();
    // Ended while it looks at `grows`, after that was found and healed.
    let told = |_| cancel.cancel();
    let wanted = Wanted { generations, only: None, after: None };
    assert_eq!(run(&bench.repository, &wanted, &cancel, &told).expect("scrub"), None);
    let wanted = unfinished(&bench.repository).expect("it is to be taken up again");
    assert_eq!(wanted.generations, numbers(&[1, 2, 3]));
    let last = run(&bench.repository, &wanted, &CancellationToken::new(), &|_| {}).expect("scrub");
    let last = last.expect("to its end");
    assert_eq!((last.found, last.healed, last.files), (1, 1, 4));
    assert!(unfinished(&bench.repository).is_none());
}

/// Somebody reads the rotten generation: it is not touched under his hands.
#[test]
fn what_is_held_is_healed_later() {
    let (bench, long) = three();
    flip(&bench.path(2, "grows"), 1);
    let held = bench.repository.holds.hold(GenerationNumber(2));
    assert_eq!(scrub(&bench).0.healed, 0);
    assert!(bench.repository.rot().has(GenerationNumber(2)));
    drop(held);
    heal_known(&bench.repository);
    assert_eq!(std::fs::read(bench.path(2, "grows")).expect("read"), long[..5 * PIECE_BYTES]);
}

#[test]
fn a_missing_file_is_found_and_put_back() {
    let (bench, long) = three();
    std::fs::remove_file(bench.path(2, "grows")).expect("remove");
    assert_eq!(scrub(&bench).0.healed, 1);
    assert_eq!(std::fs::read(bench.path(2, "grows")).expect("read"), long[..5 * PIECE_BYTES]);
}
