//! Promises name their tests, and the tests are there.

use std::{fs, path::Path};

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
