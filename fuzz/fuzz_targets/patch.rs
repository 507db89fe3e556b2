//! A configuration file to patch: key, value and text, parted by zero bytes. Only the key's line changes, and a second time nothing.
#![no_main]

use std::{fs::File, sync::OnceLock};

use agent_target::patch::apply;
use assay_common::path::TreePath;
use assay_fuzz::folder;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    static FOLDER: OnceLock<std::path::PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| folder("patch"));
    let mut parts = data.splitn(3, |byte| *byte == 0);
    let (Some(key), Some(value), Some(text)) = (parts.next(), parts.next(), parts.next()) else { return };
    let (Ok(key), Ok(value)) = (std::str::from_utf8(key), std::str::from_utf8(value)) else { return };
    let path = folder.join("file");
    std::fs::write(&path, text).expect("write");
    let (root, file) = (File::open(folder).expect("open"), TreePath::parse(b"file").expect("a path"));
    let applied = apply(&root, &file, key, value);
    let after = std::fs::read(&path).expect("read");
    let names = std::fs::read_dir(folder).expect("list").count();
    assert_eq!(names, 1, "nothing stays beside it");
    if applied.is_err() {
        assert_eq!(after, text, "a patch that fails changes nothing");
        return;
    }
    let lines = |text: &[u8]| text.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect::<Vec<_>>();
    let (old, new) = (lines(text), lines(&after));
    assert_eq!(old.len(), new.len());
    assert!(old.iter().zip(&new).filter(|(old, new)| old != new).count() <= 1);
    let wanted = format!("{key} = {value}");
    assert_eq!(new.iter().filter(|line| line.trim_ascii_end() == wanted.trim_end().as_bytes()).count(), 1);
    apply(&root, &file, key, value).expect("a second time");
    assert_eq!(std::fs::read(&path).expect("read"), after);
});
