//! `notify test`: tells each way once that notices arrive, and says which do.

use std::process::ExitCode;

use super::{CommandError, print, print_json};
use crate::notify::{Notice, Way};

/// Try the ways out that the configuration names
#[derive(Debug, Clone, Copy, clap::Subcommand)]
pub enum NotifyCommand {
    /// Send a test notice on every way, whatever it is told of otherwise; the exit code is 0 when all arrive
    Test,
}

impl NotifyCommand {
    /// Does it, one way after the other, each once and within its time limit.
    ///
    /// # Errors
    /// When one does not arrive, or there is none.
    pub async fn run(
        self,
        ways: &[Way],
        role: &'static str,
        agent: &str,
        json: bool,
    ) -> Result<ExitCode, CommandError> {
        if ways.is_empty() {
            return Err(CommandError::usage("the configuration has no [[notify]]")
                .hint("docs/MONITORING.md shows a command, a webhook and mail"));
        }
        let notice = Notice::test(role, agent);
        let mut lost = Vec::new();
        for way in ways {
            let told = way.tell(&notice).await;
            let error = told.as_ref().err().map(ToString::to_string);
            if json {
                print_json(&serde_json::json!({ "way": way.name, "arrived": told.is_ok(), "error": error }));
            } else {
                print(&format!("{}: {}\n", way.name, error.as_deref().unwrap_or("arrived")));
            }
            if told.is_err() {
                lost.push(way.name.as_str());
            }
        }
        match lost.as_slice() {
            [] => Ok(ExitCode::SUCCESS),
            lost => Err(CommandError::not_run(format!(
                "a test notice did not arrive by: {}",
                lost.join(", ")
            ))
            .hint("a run's notice is tried three times; its loss is in the log and in assay_notices_total")),
        }
    }
}
