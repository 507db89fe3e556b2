//! The steps of a manifest as they come over the wire, unpacked and with what the source leaves out.

use assay_common::{
    digest::ContentDigest,
    limits::{MAX_CONTENT, MAX_MESSAGE_BYTES},
    path::display_bytes,
};
use assay_proto::bounded::{Refusal, look_over};
use assay_proto::v1::{Entry, EntryKind, ManifestDelta, ManifestStep, PutEntry, manifest_step::Kind};
use prost::Message as _;

use super::{SealError, read_back};
use crate::store::Staging;

/// The steps of `delta`, each whole.
///
/// # Errors
/// When it cannot be unpacked, or names a content that is not there.
pub fn steps(staging: &Staging, delta: ManifestDelta) -> Result<Vec<ManifestStep>, SealError> {
    let mut steps = unpacked(delta)?;
    for step in &mut steps {
        if let Some(Kind::Put(PutEntry { entry: Some(entry), content: content @ 1.., .. })) = &mut step.kind
            && entry.kind() == EntryKind::File
            && entry.digest.is_empty()
        {
            entry.digest = digest(staging, entry, *content)?.0.to_vec();
        }
    }
    Ok(steps)
}

fn unpacked(delta: ManifestDelta) -> Result<Vec<ManifestStep>, SealError> {
    let refused = |rule| Err(SealError::Packed { rule });
    if delta.packed.is_empty() {
        return Ok(delta.steps);
    }
    if !delta.steps.is_empty() {
        return refused("steps are packed or plain");
    }
    // No message that is not packed may be larger either.
    if delta.packed_raw_bytes > MAX_MESSAGE_BYTES as u64 {
        return refused("packed steps are at most as large as a message");
    }
    // No more than was announced is ever decompressed.
    let plain = zstd::bulk::decompress(&delta.packed, delta.packed_raw_bytes as usize).ok();
    let Some(plain) = plain.filter(|plain| plain.len() as u64 == delta.packed_raw_bytes) else {
        return refused("packed steps are one zstd frame of the announced length");
    };
    if look_over::<ManifestDelta>(&plain) == Err(Refusal::TooMuch) {
        return refused("packed steps take at most 128 MiB of memory beside their own bytes");
    }
    match ManifestDelta::decode(plain.as_slice()) {
        Ok(inner) if inner.packed.is_empty() => Ok(inner.steps),
        _ => refused("packed steps are steps"),
    }
}

/// The digest of a content: as it was computed when its pieces came, else from the file.
fn digest(staging: &Staging, entry: &Entry, content: u64) -> Result<ContentDigest, SealError> {
    if content > MAX_CONTENT {
        return Err(SealError::ContentMissing { path: display_bytes(&entry.path), content });
    }
    if let Some(digest) = staging.whole().digest(content, entry.size) {
        return Ok(digest);
    }
    let path = display_bytes(&entry.path);
    let (bytes, digest) = read_back(staging, &path, entry.size, content)?;
    if bytes != entry.size {
        return Err(SealError::LengthMismatch { path, expected: entry.size, actual: bytes });
    }
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keep(count: u64) -> ManifestStep {
        ManifestStep { kind: Some(Kind::Keep(count)) }
    }

    fn packed(inner: &ManifestDelta) -> ManifestDelta {
        let plain = inner.encode_to_vec();
        ManifestDelta {
            steps: Vec::new(),
            packed: zstd::bulk::compress(&plain, 3).expect("compress"),
            packed_raw_bytes: plain.len() as u64,
        }
    }

    #[test]
    fn packed_steps_are_those_that_were_packed() {
        let plain = ManifestDelta { steps: vec![keep(1), keep(2)], ..Default::default() };
        assert_eq!(unpacked(packed(&plain)).expect("packed"), plain.steps);
        assert_eq!(unpacked(plain.clone()).expect("plain"), plain.steps);
    }

    #[test]
    fn what_is_not_packed_steps_is_refused() {
        let good = packed(&ManifestDelta { steps: vec![keep(1)], ..Default::default() });
        let bomb = zstd::bulk::compress(&vec![0; 50_000_000], 3).expect("compress");
        let bad = [
            ("both", ManifestDelta { steps: vec![keep(1)], ..good.clone() }),
            ("announced too short", ManifestDelta { packed_raw_bytes: 1, ..good.clone() }),
            ("announced too long", ManifestDelta { packed_raw_bytes: 100, ..good.clone() }),
            ("more than may come", ManifestDelta { packed_raw_bytes: u64::MAX, ..good.clone() }),
            ("a bomb", ManifestDelta { packed: bomb, packed_raw_bytes: 1000, ..Default::default() }),
            (
                "no frame",
                ManifestDelta { packed: b"abc".to_vec(), packed_raw_bytes: 3, ..Default::default() },
            ),
            ("packed twice", packed(&good)),
        ];
        for (name, delta) in bad {
            assert!(matches!(unpacked(delta), Err(SealError::Packed { .. })), "{name}");
        }
    }
}
