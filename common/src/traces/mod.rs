//! OpenTelemetry traces: the course of a run as a tree of spans, one part of it from each agent.
//!
//! A trace is written down when the run, or the check, has ended, from the same record as notices, metrics and the command line
//! ([`Ended`]). Nothing is measured for it. Both agents derive the identifiers from the run's id, so that their spans meet in one
//! trace without a word between them about it.

mod config;
mod otlp;
mod spans;

use std::{sync::Arc, time::Duration};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;

use crate::{
    outbox::{self, Counts, DeliveryError, Outbox},
    watch::Ended,
};

pub use config::{Collector, TracesSection};
use otlp::Otlp;

/// The longest that a try may take.
const MAX_TIMEOUT: Duration = Duration::from_secs(60);

/// Who speaks.
#[derive(Debug, Clone)]
pub struct Speaker {
    /// "source" or "target".
    pub role: &'static str,
    /// Name of the agent.
    pub agent: String,
    /// Its version.
    pub version: &'static str,
}

/// What is sent of one end.
#[derive(Debug)]
struct Trace {
    run_id: String,
    request: ExportTraceServiceRequest,
}

impl outbox::Message for Trace {
    const KIND: &'static str = "trace";

    fn run_id(&self) -> &str {
        &self.run_id
    }
}

/// Sends traces, if there is somebody to send them to. Clones are of the same one.
#[derive(Debug, Clone, Default)]
pub struct Tracer(Option<Arc<(Speaker, Outbox<Otlp>)>>);

impl Tracer {
    /// Starts a task for the collector. Needs a runtime.
    pub fn start(collector: Option<Collector>, speaker: Speaker) -> Self {
        Self(collector.map(|collector| Arc::new((speaker, Outbox::start(Otlp(collector))))))
    }

    /// Sends what there is to tell of an end. Returns at once.
    pub fn trace(&self, repository: &str, ended: &Ended) {
        if let Some((speaker, outbox)) = self.0.as_deref() {
            let request = spans::request(speaker, repository, ended);
            outbox.post(Arc::new(Trace { run_id: ended.run_id.clone(), request }));
        }
    }

    /// What has become of the traces; `None` when nobody gets any.
    pub fn counts(&self) -> Option<&Counts> {
        self.0.as_deref().map(|(_, outbox)| outbox.counts())
    }

    /// Waits until nothing waits to be sent, for `patience` at most.
    pub async fn drain(&self, patience: Duration) {
        if let Some((_, outbox)) = self.0.as_deref() {
            outbox.drain(patience).await;
        }
    }
}

impl Collector {
    /// Tries whether traces arrive, by sending one without spans.
    ///
    /// # Errors
    /// Why they would not.
    pub async fn probe(self) -> Result<(), DeliveryError> {
        let request = ExportTraceServiceRequest::default();
        outbox::Way::send(&Otlp(self), &Trace { run_id: String::new(), request }).await
    }
}

#[cfg(test)]
mod tests;
