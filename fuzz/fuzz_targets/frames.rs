//! The messages of a transfer and of a seal, into a real staging area upon a real base. The first byte says whether digests are put
//! right and wanted chunks are sent, so that what comes after the digest's comparison is reached too.
#![no_main]

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock},
};

use agent_target::{
    ahead::copies::Copies,
    receive::{Allowance, Base, PlaceReader, Receiver},
    seal,
    store::{Store, index::ChunkIndex},
};
use assay_common::{config::Size, id::GenerationNumber, manifest::Piece};
use assay_fuzz::{base_content, base_manifest, folder};
use assay_proto::v1::{ManifestDelta, Offer, Pack, TransferRequest, transfer_request::Kind};
use libfuzzer_sys::{Corpus, fuzz_target};
use prost::Message as _;

struct Site {
    path: PathBuf,
    store: Arc<Store>,
    index: Arc<Mutex<ChunkIndex>>,
}

fn site() -> &'static Site {
    static SITE: OnceLock<Site> = OnceLock::new();
    SITE.get_or_init(|| {
        let path = folder("store");
        let store = Store::open_or_create(&path).expect("a store");
        let (manifest, positions) = base_manifest();
        let base = path.join("generations/000001");
        std::fs::create_dir_all(base.join("tree/d")).expect("mkdir");
        std::fs::write(base.join("tree/a"), base_content()).expect("write");
        std::fs::write(base.join("manifest"), manifest).expect("write");
        std::fs::write(base.join("manifest.positions"), positions).expect("write");
        let index = ChunkIndex::open_or_create(&path.join("index.redb")).expect("an index");
        Site { path, store: Arc::new(store), index: Arc::new(Mutex::new(index)) }
    })
}

/// Bytes that stand for a chunk of this length.
fn chunk(bytes: u64) -> Vec<u8> {
    vec![bytes as u8; bytes as usize]
}

/// Gives every piece the digest of the bytes that stand for it. The lengths in order.
fn put_right(offer: &mut Offer) -> Vec<u64> {
    let mut lengths = Vec::new();
    for part in &mut offer.parts {
        let mut digests = Vec::new();
        for word in &part.pieces {
            if let Some(Piece::Data { bytes }) =
                Piece::from_wire(*word).filter(|piece| piece.bytes() < 1 << 20)
            {
                digests.extend_from_slice(blake3::hash(&chunk(bytes)).as_bytes());
                lengths.push(bytes);
            }
        }
        part.digests = digests;
        if part.last && !part.reuse.is_empty() && part.digest.is_empty() {
            part.digest = vec![7; 32];
        }
    }
    lengths
}

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((help, mut rest)) = data.split_first() else { return Corpus::Reject };
    let site = site();
    drop(std::fs::remove_dir_all(site.path.join("staging/000002")));
    let staging = Arc::new(site.store.open_staging().expect("staging"));
    let number = GenerationNumber(1);
    let places = PlaceReader::new(
        Arc::clone(&site.store),
        Arc::clone(&staging),
        Arc::clone(&site.index),
        Some(number),
    );
    let base = Base::open(&site.store, number, Default::default()).expect("the base");
    // None is ever made: the base's files are short.
    let copies = Arc::new(Copies::open(&site.path.join("copies")).expect("copies"));
    let allowance = Allowance::new(None, 0, Size(0), (Arc::clone(&staging), Arc::clone(&copies)));
    let receiver = Receiver::new(Arc::clone(&staging), places, Some((base, copies)), allowance);
    let mut messages = 0;
    while let Ok(request) = TransferRequest::decode_length_delimited(&mut rest) {
        messages += 1;
        match request.kind {
            None | Some(Kind::Start(_)) => {}
            Some(Kind::Offer(mut offer)) => {
                let lengths = if help & 1 == 1 { put_right(&mut offer) } else { Vec::new() };
                let Ok(accepted) = receiver.accept(&offer) else { break };
                // Long ones take their time and are like short ones.
                let holes =
                    offer.parts.iter().flat_map(|part| &part.pieces).filter_map(
                        |word| match Piece::from_wire(*word) {
                            Some(Piece::Hole { bytes }) => Some(bytes),
                            _ => None,
                        },
                    );
                if holes.fold(0, u64::saturating_add) > 1 << 24 {
                    break;
                }
                let Ok(answer) = receiver.settle(accepted) else { break };
                if help & 1 == 1 && !answer.stored {
                    let wanted = |index: &usize| {
                        answer.wanted.get(index / 8).is_some_and(|byte| byte >> (index % 8) & 1 == 1)
                    };
                    let content: Vec<u8> = lengths
                        .iter()
                        .enumerate()
                        .filter(|(index, _)| wanted(index))
                        .flat_map(|(_, bytes)| chunk(*bytes))
                        .collect();
                    let raw_bytes = content.len() as u64;
                    let zstd = help & 2 == 2;
                    let data =
                        if zstd { zstd::bulk::compress(&content, 1).expect("compress") } else { content };
                    drop(receiver.pack(&Pack {
                        batch: answer.batch,
                        data: data.into(),
                        raw_bytes,
                        zstd,
                        ..Default::default()
                    }));
                }
            }
            Some(Kind::Pack(pack)) => drop(receiver.pack(&pack)),
        }
        if messages == 16 {
            break;
        }
    }
    drop(receiver.finish());
    if let Ok(delta) = ManifestDelta::decode(rest) {
        drop(seal::steps(&staging, delta));
    }
    Corpus::Keep
});
