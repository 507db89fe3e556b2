//! Promises name their tests, and the tests are there.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Every row of these pages' tables that has a column for tests.
const PAGES: [&str; 2] = ["docs/HOSTILE-PEERS.md", "docs/SECURITY.md"];

#[test]
fn every_test_that_a_promise_names_is_there() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace");
    let (mut rows, mut faults) = (0, Vec::new());
    for page in PAGES {
        let text = fs::read_to_string(workspace.join(page)).expect("read");
        let mut has_tests = false;
        for line in text.lines() {
            let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
            if !line.starts_with('|') || cells.iter().all(|cell| cell.chars().all(|it| it == '-')) {
                has_tests &= line.starts_with('|');
                continue;
            }
            let last = cells[cells.len() - 1];
            if last == "test" || !has_tests {
                has_tests = last == "test";
                continue;
            }
            rows += 1;
            let named: Vec<_> = last.split('`').filter_map(|word| word.split_once(".rs::")).collect();
            if named.is_empty() {
                faults.push(format!("{page}: no test in: {line}"));
            }
            for (file, test) in named {
                let path = workspace.join(format!("{file}.rs"));
                let text = fs::read_to_string(path).unwrap_or_default();
                if !text.contains(&format!("fn {test}(")) {
                    faults.push(format!("{page}: {file}.rs has no test {test}"));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(rows > 60, "only {rows} rows were found");
}

/// The pages of a folder, and of those below it.
fn pages(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("list") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            pages(&path, found);
        } else if path.extension().is_some_and(|end| end == "md") {
            found.push(path);
        }
    }
}

/// `path/to/file.rs::name` in any page is a test that `cargo test` runs.
#[test]
fn every_test_that_any_page_names_is_run() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace");
    let mut all = ["README.md", "CHANGELOG.md", "docker/README.md"].map(|page| workspace.join(page)).to_vec();
    pages(&workspace.join("docs"), &mut all);
    let (mut named, mut faults) = (0, Vec::new());
    for page in all {
        let text = fs::read_to_string(&page).expect("read");
        for (file, test) in text.split('`').filter_map(|word| word.split_once(".rs::")) {
            named += 1;
            let source = fs::read_to_string(workspace.join(format!("{file}.rs"))).unwrap_or_default();
            let is_run = source.match_indices(&format!("fn {test}(")).any(|(at, _)| {
                // The attributes, up to the end of what stands before them.
                let before = source[..at].rsplit("\n\n").next().unwrap_or_default();
                before.contains("#[test]") || before.contains("#[tokio::test") || source.contains("proptest!")
            });
            if !is_run {
                faults.push(format!("{}: {file}.rs has no test {test}", page.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(named > 200, "only {named} tests were found");
}
