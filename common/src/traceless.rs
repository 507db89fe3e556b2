//! Content that changed although size, times and inode did not: it rotted below the file system, or a program wrote without a trace.

use std::fmt::Write as _;

use assay_proto::v1;
use jiff::Timestamp;

use crate::{
    cli::show,
    verdict::{Readings, timestamp_to_proto},
};

/// Paths that are remembered of one run.
const MOST_PATHS: usize = 20;
/// Paths that a line names.
const NAMED: usize = 3;

/// What one run found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traceless {
    /// Files.
    pub files: u64,
    /// Some of them, below the tree, made printable.
    pub paths: Vec<String>,
}

/// What the newest run found that found any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The run.
    pub run_id: String,
    /// Its generation.
    pub generation: Option<u64>,
    /// When it ended.
    pub time: Timestamp,
    /// What it found.
    pub traceless: Traceless,
}

impl Traceless {
    /// Of a run, as the source tells of it.
    pub fn of_run(run: &v1::Run) -> Self {
        let files = run.counts.as_ref().map_or(0, |counts| counts.files_changed_without_trace);
        Self::new(files, &run.changed_without_trace)
    }

    /// Of a source's statement.
    pub fn of_readings(readings: Option<&Readings>) -> Self {
        readings.map_or_else(Self::default, |readings| {
            Self::new(readings.changed_without_trace_total, &readings.changed_without_trace)
        })
    }

    fn new(files: u64, paths: &[String]) -> Self {
        Self { files, paths: paths.iter().take(MOST_PATHS).cloned().collect() }
    }

    /// In one line: how many files, and the first of them.
    pub fn line(&self) -> String {
        let mut text = show::counted(self.files, "file");
        if !self.paths.is_empty() {
            let named = self.paths.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
            let more = if self.files > NAMED as u64 { ", ..." } else { "" };
            let _ = write!(text, " ({named}{more})");
        }
        text
    }

    /// For a person, with a remedy.
    pub fn text(&self) -> String {
        let mut text = format!("the content of {} changed, and size, times and inode did not", self.line());
        for path in self.paths.iter().skip(NAMED) {
            let _ = write!(text, "\n  {path}");
        }
        text.push_str(
            "\nThe bytes rotted below the file system, or a program wrote and left no trace. The run copied what it read.\n\
             HINT: look at the host's disks and memory (dmesg, smartctl); an older generation may hold the content as it was: \
             assay-target generations",
        );
        text
    }
}

impl From<&Found> for v1::ChangedWithoutTrace {
    fn from(found: &Found) -> Self {
        Self {
            run_id: found.run_id.clone(),
            generation: found.generation.unwrap_or_default(),
            time: Some(timestamp_to_proto(found.time)),
            files: found.traceless.files,
            paths: found.traceless.paths.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_and_a_remedy_is_told() {
        let paths: Vec<String> = (0..30).map(|number| format!("f{number}")).collect();
        let found = Traceless::new(40, &paths);
        assert_eq!(found.line(), "40 files (f0, f1, f2, ...)");
        let text = found.text();
        assert!(text.contains("\n  f3\n") && text.contains("f19") && !text.contains("f20"), "{text}");
        assert!(text.contains("HINT: "), "{text}");
        assert_eq!(Traceless::new(1, &paths[..1]).line(), "1 file (f0)");
        assert_eq!(Traceless::of_readings(None), Traceless::default());
    }
}
