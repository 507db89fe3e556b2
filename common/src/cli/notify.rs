//! `notify test`: tells each way once that notices arrive, and says which do; and whether traces do.

use std::process::ExitCode;

use super::{CommandError, print, print_json};
use crate::{
    notify::{Notice, Way},
    outbox::{DeliveryError, Way as _},
    traces::Collector,
};

/// Test the configured notifications
#[derive(Debug, Clone, Copy, clap::Subcommand)]
pub enum NotifyCommand {
    /// Send a test notice on every way, whatever it is told of otherwise, and an empty trace to the collector; the exit code is 0
    /// when all arrive
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
        collector: Option<Collector>,
        role: &'static str,
        agent: &str,
        json: bool,
    ) -> Result<ExitCode, CommandError> {
        if ways.is_empty() && collector.is_none() {
            return Err(CommandError::usage("the configuration has neither [[notify]] nor [traces]")
                .hint("docs/MONITORING.md shows a command, a webhook and mail"));
        }
        let notice = Notice::test(role, agent);
        let mut lost = Vec::new();
        let mut tell = |way: &str, told: Result<(), DeliveryError>| {
            let error = told.as_ref().err().map(ToString::to_string);
            if json {
                print_json(&serde_json::json!({ "way": way, "arrived": told.is_ok(), "error": error }));
            } else {
                print(&format!("{way}: {}\n", error.as_deref().unwrap_or("arrived")));
            }
            if told.is_err() {
                lost.push(way.to_owned());
            }
        };
        for way in ways {
            tell(way.name(), way.send(&notice).await);
        }
        if let Some(collector) = collector {
            tell("traces", collector.probe().await);
        }
        match lost.as_slice() {
            [] => Ok(ExitCode::SUCCESS),
            lost => Err(CommandError::not_run(format!("did not arrive by: {}", lost.join(", "))).hint(
                "what a run sends is tried three times; its loss is in the log, in assay_notices_total and in assay_traces_total",
            )),
        }
    }
}
