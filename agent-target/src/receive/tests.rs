//! The receiver against sources that follow the protocol, and against sources that do not.

mod copied;

use std::sync::{Arc, Mutex};

use assay_common::{config::Size, limits::MAX_FILE_BYTES, manifest::Piece};
use assay_proto::v1::{FilePart, Reuse};

use super::{base::BaseFile, *};
use crate::store::{Store, index::ChunkIndex};

struct Bench {
    _folder: tempfile::TempDir,
    staging: Arc<Staging>,
    receiver: Receiver,
    store: Arc<Store>,
    index: Arc<Mutex<ChunkIndex>>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("temp");
        let store = Arc::new(Store::open_or_create(folder.path()).expect("store"));
        let index = ChunkIndex::open_or_create(&folder.path().join("index.redb")).expect("index");
        let index = Arc::new(Mutex::new(index));
        let staging = Arc::new(store.open_staging().expect("staging"));
        let receiver = Self::receiver(&store, &staging, &index);
        Self { _folder: folder, staging, receiver, store, index }
    }

    fn receiver(store: &Arc<Store>, staging: &Arc<Staging>, index: &Arc<Mutex<ChunkIndex>>) -> Receiver {
        let places = PlaceReader::new(Arc::clone(store), Arc::clone(staging), Arc::clone(index), None);
        let copies = Arc::new(Copies::open(&store.path().join("copies")).expect("copies"));
        let allowance = Allowance::new(None, 0, Size(0), (Arc::clone(staging), copies));
        Receiver::new(Arc::clone(staging), places, None, allowance)
    }

    /// The run is taken up again over a new connection.
    fn reconnect(&mut self) {
        self.receiver.interrupt().expect("index");
        self.staging = Arc::new(self.store.open_staging().expect("staging"));
        self.receiver = Self::receiver(&self.store, &self.staging, &self.index);
    }

    fn content(&self, content: u64) -> Vec<u8> {
        std::fs::read(self.staging.content_path(content)).expect("content")
    }
}

fn part(content: u64, offset: u64, chunks: &[&[u8]], last: bool) -> FilePart {
    FilePart {
        content,
        offset,
        pieces: chunks.iter().map(|chunk| (chunk.len() as u64) << 1).collect(),
        digests: chunks.iter().flat_map(|chunk| ContentDigest::of(chunk).0).collect(),
        last,
        ..Default::default()
    }
}

fn offer(batch: u64, parts: Vec<FilePart>) -> Offer {
    Offer { batch, parts }
}

fn pack(batch: u64, content: &[u8]) -> Pack {
    Pack { batch, raw_bytes: content.len() as u64, zstd: false, data: content.to_vec().into() }
}

#[test]
fn what_is_wanted_is_sent_once_and_found_afterwards() {
    let bench = Bench::new();
    let response = bench.receiver.offer(&offer(1, vec![part(1, 0, &[b"aaa", b"bb"], true)])).expect("offer");
    assert_eq!(response.wanted, [0b11]);
    bench.receiver.pack(&pack(1, b"aaabb")).expect("pack");
    assert_eq!(bench.content(1), b"aaabb");
    let response = bench.receiver.offer(&offer(2, vec![part(2, 0, &[b"bb", b"c"], true)])).expect("offer");
    assert_eq!(response.wanted, [0b10]);
    bench.receiver.pack(&pack(2, b"c")).expect("pack");
    assert_eq!(bench.content(2), b"bbc");
    bench.receiver.finish().expect("whole");
}

/// No chunk that had arrived is sent again, and what is on disk is not written a second time.
#[test]
fn a_resumed_run_finds_what_earlier_sessions_brought() {
    let mut bench = Bench::new();
    bench.receiver.offer(&offer(1, vec![part(1, 0, &[b"aaa", b"bb"], false)])).expect("offer");
    bench.receiver.pack(&pack(1, b"aaabb")).expect("pack");
    bench.reconnect();
    let parts = vec![part(7, 0, &[b"aaa", b"bb", b"new"], true)];
    let response = bench.receiver.offer(&offer(1, parts)).expect("offer");
    assert_eq!(response.wanted, [0b100]);
    bench.receiver.pack(&pack(1, b"new")).expect("pack");
    bench.receiver.finish().expect("whole");
    assert_eq!(bench.content(7), b"aaabbnew");
    assert!(!bench.staging.path().join("content-1/0/1").exists(), "it was taken over, not copied");
}

/// After a power cut the index may know of a session whose folder never came to the disk, and of one that has not been yet.
#[test]
fn a_session_that_a_power_cut_took_away_is_no_obstacle() {
    let mut bench = Bench::new();
    bench.receiver.offer(&offer(1, vec![part(1, 0, &[b"aaa", b"bb"], true)])).expect("offer");
    bench.receiver.pack(&pack(1, b"aaabb")).expect("pack");
    bench.reconnect();
    std::fs::remove_dir_all(bench.staging.path().join("content-1")).expect("the power cut");
    let response = bench.receiver.offer(&offer(1, vec![part(1, 0, &[b"aaa", b"bb"], true)])).expect("offer");
    assert_eq!(response.wanted, [0b11], "it is sent again");
    bench.receiver.pack(&pack(1, b"aaabb")).expect("pack");
    bench.receiver.finish().expect("whole");
    assert_eq!(bench.content(1), b"aaabb");
    assert!(!bench.staging.path().join("content-1").exists(), "nothing is made of it");
}

/// A longer old file that is taken over is cut to its new length, and a hole in it is made.
#[test]
fn a_file_that_is_taken_over_keeps_nothing_of_its_old_content() {
    let mut bench = Bench::new();
    bench.receiver.offer(&offer(1, vec![part(1, 0, &[b"aaa", b"secret-tail"], true)])).expect("offer");
    bench.receiver.pack(&pack(1, b"aaasecret-tail")).expect("pack");
    bench.reconnect();
    let mut new = part(1, 0, &[b"aaa"], true);
    new.pieces.push(4 << 1 | 1);
    assert!(bench.receiver.offer(&offer(1, vec![new])).expect("offer").wanted.is_empty());
    bench.receiver.finish().expect("whole");
    assert_eq!(bench.content(1), b"aaa\0\0\0\0");
}

/// The messages of one content are settled in any order: nothing of the old file may come back after its end was cut and its holes
/// were made.
#[test]
fn a_file_is_taken_over_before_anything_of_its_content_is_settled() {
    let mut bench = Bench::new();
    bench.receiver.offer(&offer(1, vec![part(1, 0, &[b"aaa", b"secret-tail"], true)])).expect("offer");
    bench.receiver.pack(&pack(1, b"aaasecret-tail")).expect("pack");
    bench.reconnect();
    let mut end = part(1, 3, &[], true);
    end.pieces.push(4 << 1 | 1);
    let first = bench.receiver.accept(&offer(1, vec![part(1, 0, &[b"aaa"], false)])).expect("first");
    let last = bench.receiver.accept(&offer(2, vec![end])).expect("last");
    assert!(bench.receiver.settle(last).expect("settled first").wanted.is_empty());
    assert!(bench.receiver.settle(first).expect("settled last").wanted.is_empty());
    bench.receiver.finish().expect("whole");
    assert_eq!(bench.content(1), b"aaa\0\0\0\0");
    let digest = bench.staging.whole().digest(1, 7);
    assert_eq!(digest, Some(ContentDigest::of(b"aaa\0\0\0\0")));
}

#[test]
fn a_file_that_changed_while_it_was_read_starts_anew() {
    let bench = Bench::new();
    let mut given_up = part(1, 0, &[b"old-old-old"], true);
    given_up.abandoned = true;
    bench.receiver.offer(&offer(1, vec![given_up])).expect("offer");
    bench.receiver.offer(&offer(2, vec![part(2, 0, &[b"new"], true)])).expect("offer");
    bench.receiver.pack(&pack(2, b"new")).expect("pack");
    // The answer to the first reading comes late and goes where nobody looks.
    bench.receiver.pack(&pack(1, b"old-old-old")).expect("pack");
    bench.receiver.finish().expect("whole");
    assert_eq!(bench.content(2), b"new");
}

/// After a cut a batch is offered again: what had arrived is not wanted again, and what had not is, once.
#[test]
fn a_batch_that_is_offered_again_is_wanted_only_where_it_is_missing() {
    let bench = Bench::new();
    let offers = [
        offer(1, vec![part(1, 0, &[b"aaa"], false)]),
        offer(2, vec![part(1, 3, &[b"bb"], false)]),
        offer(3, vec![part(1, 5, &[b"c"], true)]),
    ];
    bench.receiver.offer(&offers[0]).expect("offer");
    bench.receiver.offer(&offers[1]).expect("offer");
    bench.receiver.pack(&pack(1, b"aaa")).expect("pack");
    bench.receiver.interrupt().expect("cut");
    let answers = offers.each_ref().map(|offer| bench.receiver.offer(offer).expect("again"));
    assert!(answers[0].stored && answers[0].wanted.is_empty());
    assert_eq!((&answers[1].wanted[..], &answers[2].wanted[..]), (&[1][..], &[1][..]));
    bench.receiver.pack(&pack(2, b"bb")).expect("pack");
    assert!(bench.receiver.finish().is_err(), "the last one has not come");
    bench.receiver.pack(&pack(3, b"c")).expect("pack");
    bench.receiver.finish().expect("whole");
    assert_eq!(bench.content(1), b"aaabbc");
    assert_eq!(bench.receiver.stats().received, 3);
}

/// Pieces of a file of the base that is known to have rotted are taken each after its digest has been compared: what is not what it
/// was is wanted.
#[test]
fn what_is_reused_comes_from_the_base_and_is_verified() {
    let folder = tempfile::tempdir().expect("temp");
    let chunks: Vec<Vec<u8>> =
        (0..6).map(|number| vec![b'a' + number; 40_000 + usize::from(number)]).collect();
    let file = folder.path().join("file");
    std::fs::write(&file, chunks.concat()).expect("write");
    let mut offset = 0;
    let pieces = chunks
        .iter()
        .map(|chunk| {
            let piece = Piece::Data { bytes: chunk.len() as u64 };
            offset += chunk.len() as u64;
            (offset - chunk.len() as u64, (piece, Some(ContentDigest::of(chunk))))
        })
        .collect();
    let base = Arc::new(BaseFile {
        position: 3,
        path: b"file".to_vec(),
        digest: ContentDigest::of(b""),
        size: 0,
        pieces,
        file: std::fs::File::open(&file).ok(),
        is_doubted: true,
    });
    // The fifth chunk is damaged.
    let damaged = std::fs::OpenOptions::new().write(true).open(&file).expect("open");
    std::os::unix::fs::FileExt::write_all_at(&damaged, b"x", 170_000).expect("damage");
    let bench = Bench::new();
    // New first, then the base's second to sixth, so that nothing stands where it stood.
    let (mut items, mut offset) = (Vec::new(), 0);
    let new = b"new".to_vec();
    for (position, chunk) in std::iter::once(&new).chain(&chunks[1..]).enumerate() {
        let target = Target {
            content: 1,
            offset,
            bytes: chunk.len(),
            digest: ContentDigest::of(chunk),
            alone: false,
            in_one_message: false,
        };
        items.push(match position {
            0 => Item::Data(target),
            position => Item::Reused(target, Arc::clone(&base), position),
        });
        offset += chunk.len() as u64;
    }
    let ends = vec![End { content: 1, length: offset, ends_in_data: true, alone: false, promised: None }];
    let accepted = Accepted { items, ends, ..Accepted::new(1) };
    let answer = bench.receiver.settle(accepted).expect("settle");
    assert_eq!(answer.wanted, [0b10001]);
    bench.receiver.pack(&pack(1, &[&new[..], &chunks[4]].concat())).expect("pack");
    let content = [&new[..], &chunks[1..].concat()].concat();
    assert_eq!(bench.content(1), content);
    let digest = bench.staging.whole().digest(1, content.len() as u64);
    assert_eq!(digest, Some(ContentDigest::of(&content)), "nothing need be read back");
}

/// A hint that does not hold is a wanted chunk, never wrong bytes.
#[test]
fn a_chunk_that_rotted_on_disk_is_wanted_again() {
    let bench = Bench::new();
    bench.receiver.offer(&offer(1, vec![part(1, 0, &[b"aaa"], true)])).expect("offer");
    bench.receiver.pack(&pack(1, b"aaa")).expect("pack");
    std::fs::write(bench.staging.content_path(1), b"aab").expect("damage");
    let response = bench.receiver.offer(&offer(2, vec![part(2, 0, &[b"aaa"], true)])).expect("offer");
    assert_eq!(response.wanted, [1]);
}

#[test]
fn compressed_packs_are_bounded_by_what_was_wanted() {
    let bench = Bench::new();
    let content = vec![7u8; 100_000];
    bench.receiver.offer(&offer(1, vec![part(1, 0, &[&content], true)])).expect("offer");
    let bomb = zstd::bulk::compress(&vec![7u8; 50_000_000], 3).expect("compress");
    let pack = Pack { batch: 1, raw_bytes: 100_000, zstd: true, data: bomb.into() };
    assert!(matches!(bench.receiver.pack(&pack), Err(ReceiveError::Protocol { .. })));
}

#[test]
fn a_chunk_with_another_digest_is_not_kept() {
    let bench = Bench::new();
    bench.receiver.offer(&offer(1, vec![part(1, 0, &[b"aaa", b"bbb"], true)])).expect("offer");
    let error = bench.receiver.pack(&pack(1, b"aaabbX")).expect_err("wrong bytes");
    assert!(matches!(error, ReceiveError::ChunkMismatch { .. }));
    assert!(!bench.staging.content_path(1).exists());
    assert!(bench.receiver.finish().is_err(), "it is still wanted");
}

#[test]
fn messages_that_break_the_protocol_are_refused() {
    type Break = fn(&Receiver) -> Result<(), ReceiveError>;
    let cases: [(&str, Break); 18] = [
        ("a content twice", |r| {
            r.offer(&offer(1, vec![part(1, 0, &[b"a"], true)]))?;
            r.offer(&offer(2, vec![part(1, 0, &[b"b"], true)])).map(drop)
        }),
        ("batch out of order", |r| r.offer(&offer(2, vec![])).map(drop)),
        ("content zero", |r| r.offer(&offer(1, vec![part(0, 0, &[b"a"], true)])).map(drop)),
        ("huge content number", |r| r.offer(&offer(1, vec![part(u64::MAX, 0, &[b"a"], true)])).map(drop)),
        ("part of no content", |r| r.offer(&offer(1, vec![part(1, 5, &[b"a"], true)])).map(drop)),
        ("gap", |r| {
            r.offer(&offer(1, vec![part(1, 0, &[b"a"], false), part(1, 2, &[b"b"], true)])).map(drop)
        }),
        ("digest missing", |r| {
            let mut part = part(1, 0, &[b"a"], true);
            part.digests.pop();
            r.offer(&offer(1, vec![part])).map(drop)
        }),
        ("empty piece", |r| {
            let mut part = part(1, 0, &[b"a"], true);
            part.pieces[0] = 0;
            r.offer(&offer(1, vec![part])).map(drop)
        }),
        ("huge chunk", |r| {
            let mut part = part(1, 0, &[b"a"], true);
            part.pieces[0] = u64::MAX - 1;
            r.offer(&offer(1, vec![part])).map(drop)
        }),
        ("pack that nobody wanted", |r| r.pack(&pack(9, b"x")).map(drop)),
        ("too much in one offer", |r| {
            let chunk = vec![0; 1 << 20];
            r.offer(&offer(1, vec![part(1, 0, &[&chunk[..]; 9], true)])).map(drop)
        }),
        ("too many pieces", |r| {
            r.offer(&offer(1, vec![part(1, 0, &vec![&b"a"[..]; 300_000], true)])).map(drop)
        }),
        ("holes of three longest files", |r| {
            let hole = |content| {
                let mut part = part(content, 0, &[], true);
                part.pieces = vec![(MAX_FILE_BYTES - 1) << 1 | 1];
                part
            };
            r.accept(&offer(1, vec![hole(1), hole(2), hole(3)])).map(drop)
        }),
        ("a digest before the end", |r| {
            let digest = vec![1; 32];
            r.offer(&offer(1, vec![FilePart { digest, ..part(1, 0, &[b"a"], false) }])).map(drop)
        }),
        ("half a digest", |r| {
            let digest = vec![1; 16];
            r.offer(&offer(1, vec![FilePart { digest, ..part(1, 0, &[b"a"], true) }])).map(drop)
        }),
        ("reuse without a base", |r| {
            let mut part = part(1, 0, &[], true);
            part.reuse = vec![Reuse { after: 0, first: 0, count: 1 }];
            r.offer(&offer(1, vec![part])).map(drop)
        }),
        ("reuse that counts beyond all numbers", |r| {
            let mut part = part(1, 0, &[], true);
            part.reuse = vec![Reuse { after: 0, first: 0, count: u64::MAX }; 2];
            r.offer(&offer(1, vec![part])).map(drop)
        }),
        ("end in the middle of a content", |r| {
            r.offer(&offer(1, vec![part(1, 0, &[], false)])).map(drop)?;
            r.finish()
        }),
    ];
    for (name, message) in cases {
        let result = message(&Bench::new().receiver);
        assert!(matches!(result, Err(ReceiveError::Protocol { .. })), "{name} was let through");
    }
}
