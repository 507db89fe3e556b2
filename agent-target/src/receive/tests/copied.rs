//! Contents that begin as a copy of the base's file come out as those that begin as nothing.

use assay_common::id::GenerationNumber;
use proptest::prelude::*;

use super::*;
use crate::{
    ahead::copies::Room,
    keep::bench::{Bench as Store, PIECE_BYTES, Tree},
    repository::Repository,
};

/// Pieces of the base's file.
const PIECES: usize = 1100;

/// What is done to the file next.
#[derive(Debug, Clone)]
enum Edit {
    Keep(usize),
    Drop(usize),
    Insert(usize),
    Replace(usize),
    Hole(usize),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let edit = prop_oneof![
        4 => (1usize..600).prop_map(Edit::Keep),
        1 => (1usize..300).prop_map(Edit::Drop),
        1 => (1usize..9000).prop_map(Edit::Insert),
        3 => (1usize..3).prop_map(Edit::Replace),
        1 => (1usize..5).prop_map(Edit::Hole),
    ];
    prop::collection::vec(edit, 1..14)
}

fn base_content() -> Vec<u8> {
    let mut bytes = vec![0; PIECES * PIECE_BYTES];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

/// The edited file, and the messages that tell of it: parts of several edits.
fn told(old: &[u8], edits: &[Edit], parts_of: usize) -> (Vec<u8>, Vec<FilePart>) {
    let (mut new, mut at, mut parts) = (Vec::new(), 0, Vec::new());
    for (index, group) in edits.chunks(parts_of).enumerate() {
        let mut part = FilePart { content: 1, offset: new.len() as u64, base_entry: 1, ..Default::default() };
        for edit in group {
            let mut keep = 0;
            let mut put = |part: &mut FilePart, bytes: &[u8]| {
                part.pieces.push((bytes.len() as u64) << 1);
                part.digests = [&part.digests[..], &ContentDigest::of(bytes).0].concat();
                new.extend_from_slice(bytes);
            };
            match *edit {
                Edit::Keep(count) => keep = count.min(PIECES - at),
                Edit::Drop(count) => at = (at + count).min(PIECES),
                Edit::Insert(bytes) => put(&mut part, &noise(index as u8, bytes)),
                Edit::Replace(count) => {
                    for number in 0..count.min(PIECES - at) {
                        put(&mut part, &noise(number as u8 + 7, PIECE_BYTES));
                        at += 1;
                    }
                }
                Edit::Hole(count) => {
                    let bytes = count.min(PIECES - at) * PIECE_BYTES;
                    if bytes > 0 {
                        part.pieces.push((bytes as u64) << 1 | 1);
                        new.resize(new.len() + bytes, 0);
                        at += bytes / PIECE_BYTES;
                    }
                }
            }
            if keep > 0 {
                part.reuse.push(Reuse {
                    after: part.pieces.len() as u32,
                    first: at as u64,
                    count: keep as u64,
                });
                new.extend_from_slice(&old[at * PIECE_BYTES..(at + keep) * PIECE_BYTES]);
                at += keep;
            }
        }
        parts.push(part);
    }
    if let Some(last) = parts.last_mut() {
        last.last = true;
    }
    if parts.iter().any(|part| !part.reuse.is_empty())
        && let Some(last) = parts.last_mut()
    {
        last.digest = ContentDigest::of(&new).0.to_vec();
    }
    (new, parts)
}

fn noise(seed: u8, bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut noise);
    noise
}

/// Makes copies of all that has been sealed.
fn copy_ahead(repository: &Repository) {
    let turn = repository.copies.begin();
    let room = Room { most: u64::MAX, reserve: 0 };
    repository.copies.prepare(&repository.store, GenerationNumber(1), room, &turn).expect("prepare");
}

/// What a content takes beside its bytes: a file, the folder for it, and the place of a piece that is sent.
const BESIDE_BYTES: u64 = 512 + 4096 + crate::store::index::PLACE_HELD_BYTES;

/// A receiver upon the first generation, of which these files are known to be rotten.
fn receiver(repository: &Repository, quota: Option<Size>, rotten: &[&[u8]]) -> (Arc<Staging>, Receiver) {
    let (number, copies) = (GenerationNumber(1), Arc::clone(&repository.copies));
    let staging = Arc::new(repository.store.open_staging().expect("staging"));
    let index = Arc::clone(&repository.index);
    let places = PlaceReader::new(Arc::clone(&repository.store), Arc::clone(&staging), index, Some(number));
    let allowance = Allowance::new(quota, 0, Size(0), (Arc::clone(&staging), Arc::clone(&copies)));
    let base =
        Base::open(&repository.store, number, (false, rotten.iter().map(|path| path.to_vec()).collect()))
            .expect("base");
    (Arc::clone(&staging), Receiver::new(staging, places, Some((base, copies)), allowance))
}

/// Receives the parts in the order that `turn` makes of them. The content, and whether its digest is known and right.
fn receive(
    store: &Store,
    copies: bool,
    (new, parts): &(Vec<u8>, Vec<FilePart>),
    turn: usize,
) -> (Vec<u8>, bool) {
    let repository = &store.repository;
    if copies {
        copy_ahead(repository);
    }
    let (staging, receiver) = receiver(repository, None, &[]);
    let mut accepted: Vec<Accepted> = parts
        .iter()
        .enumerate()
        .map(|(index, part)| receiver.accept(&offer(index as u64 + 1, vec![part.clone()])).expect("accept"))
        .collect();
    let begun = receiver.copied.lock().expect("no panic").contains_key(&1);
    // What comes first may be nothing at all. What is one piece is not worth a copy, and its digest says nothing of the rest.
    let is_one_piece = parts.len() == 1 && accepted[0].items.len() == 1;
    let reuses_first = parts.iter().any(|part| part.offset == 0 && !part.reuse.is_empty());
    assert_eq!(begun, copies && reuses_first && !is_one_piece);
    let mut offset = 0;
    let mut wanted = Vec::new();
    for (part, accepted) in parts.iter().zip(&accepted) {
        assert_eq!(part.offset, offset);
        offset += accepted.items.iter().map(Item::bytes).sum::<u64>();
        wanted.push(
            accepted
                .items
                .iter()
                .filter_map(|item| match item {
                    Item::Data(target) => Some(new[target.offset as usize..][..target.bytes].to_vec()),
                    _ => None,
                })
                .collect::<Vec<_>>(),
        );
    }
    let turn = turn % accepted.len();
    accepted.rotate_left(turn);
    for accepted in accepted {
        let batch = accepted.batch;
        let answer = receiver.settle(accepted).expect("settle");
        let data: Vec<&Vec<u8>> = wanted[batch as usize - 1].iter().collect();
        if !answer.stored {
            // What is wanted among the data is what was new and not found.
            let waiting = receiver.state().wanted[&batch].pieces.clone();
            let content: Vec<u8> = waiting
                .iter()
                .flat_map(|piece| new[piece.offset as usize..][..piece.bytes].to_vec())
                .collect();
            assert!(waiting.len() <= data.len());
            receiver.pack(&pack(batch, &content)).expect("pack");
        }
    }
    receiver.finish().expect("whole");
    let content = std::fs::read(staging.content_path(1)).unwrap_or_default();
    let known = staging.whole().digest(1, new.len() as u64) == Some(ContentDigest::of(new));
    staging.remove_content().expect("clear");
    (content, known)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_content_that_began_as_a_copy_is_the_content_that_was_sent(edits in edits(), parts_of in 1usize..6, turn in 0usize..9) {
        let old = base_content();
        let store = Store::new(None);
        store.seal_written(&Tree::from([("file", &old[..])]), jiff::Timestamp::now().as_second());
        let told = told(&old, &edits, parts_of);
        prop_assume!(!told.0.is_empty());
        for copies in [true, false] {
            let (content, known) = receive(&store, copies, &told, turn);
            prop_assert!(content == told.0, "copies: {}, {} bytes came, {} were sent", copies, content.len(), told.0.len());
            // Of a content that is one piece the digest is told another way.
            prop_assert!(known, "copies: {}", copies);
        }
    }
}

/// Of what is as it was nothing is written, whatever the size of the file.
#[test]
fn what_is_kept_is_neither_read_nor_written() {
    let old = base_content();
    let store = Store::new(None);
    store.seal_written(&Tree::from([("file", &old[..])]), jiff::Timestamp::now().as_second());
    let told = told(&old, &[Edit::Keep(1024), Edit::Insert(10)], 2);
    let repository = &store.repository;
    copy_ahead(repository);
    // Room for the copy, and for what is new, and not for one byte more.
    let (staging, receiver) = receiver(repository, Some(Size(old.len() as u64 + 10 + BESIDE_BYTES)), &[]);
    // The base's file is gone from under its name, beyond its first block: nobody looks there.
    let file = std::fs::OpenOptions::new().write(true).open(store.path(1, "file")).expect("open");
    let accepted = receiver.accept(&offer(1, told.1)).expect("accept");
    file.set_len(1 << 20).expect("shorten");
    assert_eq!(
        receiver.settle(accepted).expect("settle").wanted.iter().map(|byte| byte.count_ones()).sum::<u32>(),
        1
    );
    receiver.pack(&pack(1, &told.0[told.0.len() - 10..])).expect("pack");
    assert_eq!(std::fs::read(staging.content_path(1)).expect("content"), told.0);
    let digest = staging.whole().digest(1, told.0.len() as u64);
    assert_eq!(digest, Some(ContentDigest::of(&told.0)));
}

/// A quota that has no room for the copy may have room for what is sent.
#[test]
fn a_copy_that_the_quota_has_no_room_for_is_not_used() {
    let old = base_content();
    let store = Store::new(None);
    store.seal_written(&Tree::from([("file", &old[..])]), jiff::Timestamp::now().as_second());
    let told = told(&old, &[Edit::Keep(5), Edit::Insert(10)], 2);
    let repository = &store.repository;
    copy_ahead(repository);
    let (staging, receiver) = receiver(repository, Some(Size(told.0.len() as u64 + BESIDE_BYTES)), &[]);
    let accepted = receiver.accept(&offer(1, told.1)).expect("accept");
    assert!(!staging.content_path(1).exists(), "the copy is gone");
    receiver.settle(accepted).expect("settle");
    receiver.pack(&pack(1, &told.0[told.0.len() - 10..])).expect("pack");
    assert_eq!(std::fs::read(staging.content_path(1)).expect("content"), told.0);
}

/// The base's file is read once, as a part of what is made of it. When that turns out to be another, nothing of it is kept for
/// what was sent; once it is known that the file is rotten, what is missing of it is asked for.
#[test]
fn what_the_disk_has_not_kept_is_found_in_the_whole() {
    let old = base_content();
    for (edits, parts_of) in [
        ([Edit::Insert(10), Edit::Keep(1024)], 2),
        ([Edit::Insert(10), Edit::Keep(1024)], 1),
        ([Edit::Keep(5), Edit::Insert(10)], 2),
    ] {
        let store = Store::new(None);
        store.seal_written(&Tree::from([("file", &old[..])]), jiff::Timestamp::now().as_second());
        let (new, parts) = told(&old, &edits, parts_of);
        let file = std::fs::OpenOptions::new().write(true).open(store.path(1, "file")).expect("open");
        std::os::unix::fs::FileExt::write_all_at(&file, &[old[10_000] ^ 1], 10_000).expect("damage");
        let send = |receiver: &Receiver| {
            for (index, part) in parts.iter().enumerate() {
                let batch = index as u64 + 1;
                let accepted = receiver.accept(&offer(batch, vec![part.clone()]))?;
                if !receiver.settle(accepted)?.stored {
                    let waiting = receiver.state().wanted[&batch].pieces.clone();
                    let bytes = waiting.iter().map(|piece| &new[piece.offset as usize..][..piece.bytes]);
                    receiver.pack(&pack(batch, &bytes.collect::<Vec<_>>().concat()))?;
                }
            }
            receiver.finish()
        };
        let (staging, trusting) = receiver(&store.repository, None, &[]);
        let found = send(&trusting);
        assert!(
            matches!(&found, Err(ReceiveError::BaseRotten { paths }) if paths[..] == [b"file".to_vec()]),
            "{found:?}"
        );
        staging.remove_content().expect("clear");
        let (staging, comparing) = receiver(&store.repository, None, &[b"file"]);
        send(&comparing).expect("what is missing is sent");
        assert!(std::fs::read(staging.content_path(1)).expect("content") == new);
        assert!(comparing.stats().received_bytes < 100_000, "{:?}", comparing.stats());
    }
}

/// Without a digest of the whole nothing is taken from the base.
#[test]
fn who_reuses_pieces_says_what_they_become() {
    let old = base_content();
    let store = Store::new(None);
    store.seal_written(&Tree::from([("file", &old[..])]), jiff::Timestamp::now().as_second());
    let (_, mut parts) = told(&old, &[Edit::Insert(10), Edit::Keep(5)], 2);
    parts[0].digest.clear();
    let (_, receiver) = receiver(&store.repository, None, &[]);
    assert!(matches!(receiver.accept(&offer(1, parts)).map(drop), Err(ReceiveError::Protocol { .. })));
}

/// What could not be hashed while it was written is read when all is there: a promise is never forgotten.
#[test]
fn a_promise_that_was_not_looked_at_is_looked_at_in_the_end() {
    let old = base_content();
    let store = Store::new(None);
    store.seal_written(&Tree::from([("file", &old[..])]), jiff::Timestamp::now().as_second());
    let (new, parts) = told(&old, &[Edit::Insert(10), Edit::Keep(5)], 2);
    for spoiled in [false, true] {
        let (staging, receiver) = receiver(&store.repository, None, &[]);
        let accepted = receiver.accept(&offer(1, parts.clone())).expect("accept");
        receiver.settle(accepted).expect("settle");
        // As if it had been given up: the hash of what is on its way comes to nothing.
        staging.whole().give_up_all();
        receiver.pack(&pack(1, &new[..10])).expect("pack");
        assert_eq!(staging.whole().promises().open().len(), 1);
        if spoiled {
            let file = std::fs::OpenOptions::new().write(true).open(staging.content_path(1)).expect("open");
            std::os::unix::fs::FileExt::write_all_at(&file, &[new[20] ^ 1], 20).expect("damage");
        }
        match receiver.finish() {
            Ok(()) => assert!(!spoiled && staging.whole().promises().open().is_empty()),
            Err(ReceiveError::BaseRotten { paths }) => assert!(spoiled && paths == [b"file"]),
            Err(error) => panic!("{error}"),
        }
        staging.remove_content().expect("clear");
    }
}

/// A file that becomes one piece of what it was: the digest of the piece is that of the whole, and is held against what was said.
#[test]
fn a_piece_that_is_all_of_a_content_is_held_against_the_promise_too() {
    let old = base_content();
    let store = Store::new(None);
    store.seal_written(&Tree::from([("file", &old[..])]), jiff::Timestamp::now().as_second());
    for lies in [false, true] {
        let (new, mut parts) = told(&old, &[Edit::Keep(1)], 1);
        if lies {
            parts[0].digest = ContentDigest::of(b"another piece that has its fingerprint").0.to_vec();
        }
        let (staging, receiver) = receiver(&store.repository, None, &[]);
        let settled = receiver.settle(receiver.accept(&offer(1, parts)).expect("accept"));
        let ended = settled.and_then(|_| receiver.finish());
        assert_eq!(matches!(ended, Err(ReceiveError::BaseRotten { .. })), lies, "{ended:?}");
        assert_eq!(ended.is_ok(), !lies);
        assert_eq!(receiver.doubts_base(), lies);
        assert!(lies || staging.whole().digest(1, new.len() as u64).is_some());
        staging.remove_content().expect("clear");
    }
}

/// What was refused leaves nothing behind that grows: neither promises, nor a receiver that takes more.
#[test]
fn nothing_is_promised_by_an_offer_that_is_refused() {
    let old = base_content();
    let store = Store::new(None);
    store.seal_written(&Tree::from([("file", &old[..])]), jiff::Timestamp::now().as_second());
    let (_, parts) = told(&old, &[Edit::Insert(10), Edit::Keep(5)], 2);
    let (staging, receiver) = receiver(&store.repository, None, &[]);
    let bad = FilePart { content: 2, pieces: vec![0], ..Default::default() };
    let refused = receiver.accept(&offer(1, vec![parts[0].clone(), bad]));
    assert!(matches!(refused.map(drop), Err(ReceiveError::Protocol { .. })));
    assert!(staging.whole().promises().open().is_empty());
    let next = FilePart { content: 3, ..parts[0].clone() };
    let refused = receiver.accept(&offer(1, vec![next]));
    assert!(
        matches!(refused.map(drop), Err(ReceiveError::Protocol { rule }) if rule.contains("after an error"))
    );
}

/// A copy that the disk has not kept breaks the promise of what begins as it; where the base is doubted nothing begins as a copy.
#[test]
fn a_copy_is_of_no_use_where_the_base_is_doubted() {
    let old = base_content();
    let store = Store::new(None);
    store.seal_written(&Tree::from([("file", &old[..])]), jiff::Timestamp::now().as_second());
    let (_, parts) = told(&old, &[Edit::Keep(1024), Edit::Insert(10)], 2);
    for rotten in [&[][..], &[&b"file"[..]]] {
        copy_ahead(&store.repository);
        let (staging, receiver) = receiver(&store.repository, None, rotten);
        drop(receiver.accept(&offer(1, parts.clone())).expect("accept"));
        assert_eq!(receiver.copied.lock().expect("no panic").is_empty(), !rotten.is_empty());
        staging.remove_content().expect("clear");
    }
}
