//! A chain of three verdicts that somebody edits: edits are found, and nothing that was not signed is in a chain without fault. The
//! input is a list of edits of four bytes: which entry, what, where, with what.
#![no_main]

use std::sync::OnceLock;

use assay_common::{ledger::Ledger, signing::VerifyingKey};
use assay_fuzz::{chain, folder, key};
use libfuzzer_sys::fuzz_target;

fn known() -> &'static (VerifyingKey, Vec<Vec<u8>>) {
    static KNOWN: OnceLock<(VerifyingKey, Vec<Vec<u8>>)> = OnceLock::new();
    KNOWN.get_or_init(|| (key().verifying_key(), chain()))
}

fuzz_target!(|data: &[u8]| {
    let (key, whole) = known();
    let mut edited: Vec<Option<Vec<u8>>> = whole.iter().cloned().map(Some).collect();
    for edit in data.chunks_exact(4).take(8) {
        let entry = usize::from(edit[0]) % edited.len();
        let place = usize::from(u16::from_le_bytes([edit[1], edit[2]])) >> 4;
        match (edit[1] & 7, &mut edited[entry]) {
            (0, _) => edited[entry] = None,
            (1, _) => edited.swap(entry, usize::from(edit[3]) % 3),
            (2, Some(bytes)) => bytes.truncate(place % (bytes.len() + 1)),
            (3, Some(bytes)) => bytes.insert(place % (bytes.len() + 1), edit[3]),
            (_, Some(bytes)) if !bytes.is_empty() => {
                let length = bytes.len();
                bytes[place % length] = edit[3];
            }
            _ => {}
        }
    }
    let folder = folder("ledger");
    drop(std::fs::remove_dir_all(&folder));
    std::fs::create_dir(&folder).expect("mkdir");
    for (number, bytes) in edited.iter().enumerate() {
        if let Some(bytes) = bytes {
            std::fs::write(folder.join(format!("{:09}.json", number + 1)), bytes).expect("write");
        }
    }
    let faults = Ledger::open(&folder).expect("a folder").verify(key, None).expect("a folder");
    let left: Vec<_> = edited.iter().flatten().collect();
    // Entries may be gone from the end: that the source's copies tell. The last of those that are left is linked to by none.
    let untouched = edited.iter().zip(whole).take_while(|(now, then)| now.as_ref() == Some(*then)).count();
    if faults.is_empty() {
        assert!(left.len() <= untouched + 1, "an edit is not found: {edited:?}");
        let payload = |bytes: &[u8]| {
            assay_common::verdict::unverified_verdict(bytes).map(|verdict| verdict.message).ok()
        };
        for (now, then) in left.iter().zip(whole) {
            assert_eq!(payload(now), payload(then), "what nobody signed is taken");
        }
    }
});
