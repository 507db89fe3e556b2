//! Logs of the services: to standard error, plain or JSON. Every line of a run has its id, from a span ([`of_run`]) that whoever works for
//! the run is in; threads and tasks do not inherit it.

use std::io::{self, IsTerminal as _};

use serde::Deserialize;
use tracing_subscriber::EnvFilter;

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// A line for a person.
    #[default]
    Plain,
    /// A JSON object a line.
    Json,
}

/// Installs the subscriber of this process. The level comes from `ASSAY_LOG` (for example `debug`, or
/// `info,agent_target=debug`), else it is `info`.
pub fn install(format: LogFormat) {
    let filter = EnvFilter::try_from_env("ASSAY_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    // A second subscriber (in a test) is not an error worth ending for.
    drop(match format {
        LogFormat::Plain => builder.with_ansi(io::stderr().is_terminal()).with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_span_list(false).try_init(),
    });
}

/// The span of everything that is done for a run: `run{run_id=…}` in plain lines, `span.run_id` in JSON.
pub fn of_run(id: &impl std::fmt::Display) -> tracing::Span {
    tracing::info_span!("run", run_id = %id)
}
