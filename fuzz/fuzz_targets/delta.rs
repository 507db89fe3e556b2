//! Steps against a base: what comes out is in order, each path once, every folder before what is in it.
#![no_main]

use assay_common::manifest::{DeltaFault, DeltaMerger};
use assay_common::path::compare_paths;
use assay_fuzz::base_entries;
use assay_proto::v1::ManifestDelta;
use libfuzzer_sys::fuzz_target;
use prost::Message as _;

fuzz_target!(|data: &[u8]| {
    let Ok(delta) = ManifestDelta::decode(data) else { return };
    let mut base = base_entries().into_iter();
    let mut merger = DeltaMerger::new(|| Ok(base.next()), 1000);
    let mut merged = Vec::new();
    for step in delta.steps {
        let applied = merger.apply(step, &mut |entry, _| {
            merged.push(entry);
            Ok::<_, DeltaFault>(())
        });
        if applied.is_err() {
            break;
        }
    }
    drop(merger.finish());
    for pair in merged.windows(2) {
        assert!(compare_paths(&pair[0].path, &pair[1].path).is_lt());
    }
    for entry in merged.iter().filter(|entry| !entry.path.is_empty()) {
        let parent =
            entry.path.iter().rposition(|byte| *byte == b'/').map_or(&b""[..], |at| &entry.path[..at]);
        let folder = merged.iter().find(|other| other.path == parent).expect("its folder is there");
        assert_eq!(folder.kind(), assay_common::manifest::EntryKind::Directory);
    }
});
