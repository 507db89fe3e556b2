//! How long restores took: one JSON object a line in the repository's store, the newest last.

use std::{fs, io::Write as _, path::Path};

use assay_common::{
    closed,
    durable::write_durable,
    error::{IoContext as _, PathError},
    id::GenerationNumber,
};
use serde::{Deserialize, Serialize};

const FILE: &str = "restores.jsonl";
/// Beyond this length, in bytes, the older half goes.
const MAX_BYTES: u64 = 256 * 1024;

/// A restore that was done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Done {
    /// When it ended.
    pub time: jiff::Timestamp,
    /// What was restored.
    pub generation: GenerationNumber,
    /// From the command to the last byte made durable.
    pub seconds: f64,
    /// Files that were asked for.
    pub files: u64,
    /// Their content in bytes.
    pub total_bytes: u64,
    /// Content that was fetched, in bytes.
    pub received_bytes: u64,
    /// Everything that was asked for is there and right.
    pub complete: bool,
    /// Who did it.
    pub by: String,
    /// Why what was restored was not vouched for by both agents and a check. Absent when it was, and from earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unverified: Option<String>,
    /// No negative control had shown by then that the check that passed it finds damage. Absent when one had, and from earlier versions.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unproven: bool,
}

/// Notes a restore.
///
/// # Errors
/// When the file cannot be written.
pub fn note(repository: &Path, done: &Done) -> Result<(), PathError> {
    let path = repository.join(FILE);
    let mut line = serde_json::to_string(done).expect("numbers and text");
    line.push('\n');
    if fs::metadata(&path).is_ok_and(|metadata| metadata.len() > MAX_BYTES) {
        let text = fs::read_to_string(&path).at("read", &path)?;
        let lines: Vec<_> = text.lines().collect();
        let mut kept = lines[lines.len() / 2..].join("\n");
        kept.push('\n');
        kept.push_str(&line);
        return write_durable(&path, kept.as_bytes(), closed::FILE_MODE);
    }
    // A crash may have cut the last line off.
    let cut_off = fs::read(&path).is_ok_and(|text| text.last().is_some_and(|byte| *byte != b'\n'));
    if cut_off {
        line.insert(0, '\n');
    }
    let mut file = closed::options().append(true).create(true).open(&path).at("open", &path)?;
    file.write_all(line.as_bytes()).at("write", &path)?;
    file.sync_data().at("flush", &path)
}

/// The newest one. Lines that are none (a crash cut one off) are passed over.
pub fn last(repository: &Path) -> Option<Done> {
    newest(repository, |_| true)
}

/// The newest one that is complete.
pub fn last_complete(repository: &Path) -> Option<Done> {
    newest(repository, |done| done.complete)
}

fn newest(repository: &Path, wanted: impl Fn(&Done) -> bool) -> Option<Done> {
    let text = fs::read_to_string(repository.join(FILE)).ok()?;
    text.lines().rev().filter_map(|line| serde_json::from_str(line).ok()).find(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_whole_line_counts_and_the_file_stays_small() {
        let folder = tempfile::tempdir().expect("temp");
        assert_eq!(last(folder.path()), None);
        let mut done = Done {
            time: jiff::Timestamp::UNIX_EPOCH,
            generation: GenerationNumber(1),
            seconds: 1.5,
            files: 2,
            total_bytes: 3,
            received_bytes: 3,
            complete: true,
            by: "x".repeat(1000),
            unverified: None,
            unproven: false,
        };
        for number in 1..=600 {
            done.generation = GenerationNumber(number);
            note(folder.path(), &done).expect("note");
        }
        let path = folder.path().join(FILE);
        assert!(fs::metadata(&path).expect("stat").len() < 2 * MAX_BYTES);
        fs::File::options()
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(b"{\"time\":"))
            .expect("cut off");
        assert_eq!(last(folder.path()).expect("there").generation, GenerationNumber(600));
        done.generation = GenerationNumber(601);
        note(folder.path(), &done).expect("after a crash");
        assert_eq!(last(folder.path()).expect("there").generation, GenerationNumber(601));
    }
}
