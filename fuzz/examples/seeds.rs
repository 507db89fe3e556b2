//! Writes the seeds: `cargo run --release --example seeds`, in this folder.

use std::{fs, path::Path};

use assay_fuzz::{base_entries, base_manifest, chain};
use assay_proto::v1::{
    FilePart, ManifestDelta, ManifestStep, Offer, PutEntry, TransferRequest, manifest_step::Kind as StepKind,
    transfer_request::Kind,
};
use prost::Message as _;

fn write(target: &str, name: &str, bytes: &[u8]) {
    let folder = Path::new("seeds").join(target);
    fs::create_dir_all(&folder).expect("mkdir");
    fs::write(folder.join(name), bytes).expect("write");
}

fn main() {
    write("manifest", "base", &base_manifest().0);
    let put = |index: usize, content| {
        StepKind::Put(PutEntry { entry: Some(base_entries()[index].clone()), content, ..Default::default() })
    };
    let delta = |kinds: Vec<StepKind>| ManifestDelta {
        steps: kinds.into_iter().map(|kind| ManifestStep { kind: Some(kind) }).collect(),
        ..Default::default()
    };
    let kept = delta(vec![StepKind::Keep(5)]);
    let changed = delta(vec![StepKind::Keep(1), StepKind::Drop(1), put(1, 1), StepKind::Keep(3)]);
    for (name, delta) in [("kept", &kept), ("changed", &changed)] {
        write("delta", name, &delta.encode_to_vec());
    }
    let offer = |batch, parts| TransferRequest { kind: Some(Kind::Offer(Offer { batch, parts })) };
    let part = |content, offset, pieces: Vec<u64>, last| FilePart {
        content,
        offset,
        pieces,
        last,
        ..Default::default()
    };
    for (name, help) in [("plain", 1), ("packed", 3)] {
        let mut bytes = vec![help];
        for message in [
            offer(1, vec![part(1, 0, vec![2000, 4001, 600], true), part(2, 0, vec![100], false)]),
            offer(2, vec![part(2, 50, vec![100_000, 3], true)]),
        ] {
            bytes.extend(message.encode_length_delimited_to_vec());
        }
        bytes.extend(changed.encode_to_vec());
        write("frames", name, &bytes);
    }
    for (number, envelope) in chain().iter().enumerate() {
        write("verdict", &format!("{number}"), envelope);
    }
    for (name, text) in [
        ("plain", "MASTER_SERVER\0copy\0# c\nMASTER_SERVER = live \nPORT = 5050\n"),
        ("windows", "K\0v\0A = 1\r\nK=old\r\n"),
        ("twice", "K\0v\0K = 1\n K = 2\n"),
    ] {
        write("patch", name, text.as_bytes());
    }
    for (name, edits) in
        [("byte", &[0, 4, 1, 65][..]), ("swap", &[0, 1, 0, 1]), ("gone", &[2, 0, 0, 0]), ("none", &[])]
    {
        write("ledger", name, edits);
    }
    for name in assay_common::profile::Profile::builtin_names() {
        let text = assay_common::profile::Profile::builtin_text(name).expect("it is built in");
        write("profile", name, text.as_bytes());
    }
}
