//! A manifest file: whatever is read to its end is written again, byte for byte.
#![no_main]

use assay_common::manifest::{ManifestReader, ManifestWriter};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(mut reader) = ManifestReader::open(data) else { return };
    let header = reader.header().clone();
    let mut entries = Vec::new();
    loop {
        match reader.next_entry() {
            Ok(Some(entry)) => entries.push(entry),
            Ok(None) => break,
            Err(_) => return,
        }
    }
    let mut writer = ManifestWriter::create(Vec::new(), &header).expect("it was a header");
    for entry in &entries {
        writer.push(entry).expect("it was an entry");
    }
    let (again, root, _) = writer.finish().expect("memory takes it");
    let mut second = ManifestReader::open(again.as_slice()).expect("what was written is read");
    for entry in &entries {
        assert_eq!(second.next_entry().expect("it is whole").as_ref(), Some(entry));
    }
    assert!(second.next_entry().expect("it ends").is_none());
    assert_eq!(second.root_digest(), root);
});
