//! What a newer version has written is refused by name, and left as it is.

use std::{fs, path::Path};

use crate::pair::Pair;

/// The names below a folder, with what is in the files that say how things stand.
fn listing(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder).expect("list").map(|entry| entry.expect("an entry"));
    let mut found: Vec<_> = entries
        .map(|entry| {
            (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).unwrap_or_default())
        })
        .collect();
    found.sort();
    found
}

#[test]
fn a_store_and_a_state_of_a_newer_version_are_refused() {
    let pair = Pair::plain(1);
    fs::write(pair.root(0).join("file"), "x").expect("write");
    pair.run(0);
    for (role, folder, what) in [("target", "store/repo", "store"), ("source", "state", "state")] {
        pair.kill(role);
        let folder = pair.path(folder);
        let file = folder.join("format");
        let own = fs::read_to_string(&file).expect("the agent has written it");
        assert!(own.contains(&format!("\"what\":\"{what}\"")) && own.contains("\"version\":1"), "{own}");
        fs::write(
            &file,
            own.replace("\"version\":1", "\"version\":7").replace("\"written_by\":\"", "\"written_by\":\"9."),
        )
        .expect("write");
        let before = listing(&folder);
        let refused = pair.refused_start(role);
        assert_eq!(refused.code, 4, "{refused:?}");
        let path = file.display().to_string();
        for word in [path.as_str(), "assay 9.", "version 7", "versions up to 1", "HINT: install assay 9."] {
            assert!(refused.stderr.contains(word), "{word:?} is missing in: {}", refused.stderr);
        }
        assert_eq!(listing(&folder), before, "nothing is changed");
        fs::write(&file, "half of it").expect("write");
        let damaged = pair.refused_start(role);
        assert!(damaged.code == 4 && damaged.stderr.contains("HINT: "), "{damaged:?}");
        // Written before there was such a file.
        fs::remove_file(&file).expect("remove");
        pair.start(role);
        assert_eq!(fs::read_to_string(&file).expect("written again"), own);
    }
    pair.run(0);
}
