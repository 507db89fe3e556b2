//! A record as spans: pure, no input or output.
//!
//! The source's root span is the run; its phases are below it. The target's span is below the run as well, with its phases and the
//! steps of the check.

use std::time::Duration;

use jiff::Timestamp;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, SpanFlags, Status, span::SpanKind, status::StatusCode},
};

use super::Speaker;
use crate::{
    verdict::Outcome,
    watch::{Ended, PhaseTaken},
};

/// Contexts of the identifiers: the trace's, and those of the spans in it.
const TRACE_CONTEXT: &str = "assay v1 trace id";
const SPAN_CONTEXT: &str = "assay v1 span id";
/// Bit 0 of the flags of W3C Trace Context: the trace is recorded.
const SAMPLED: u32 = 1;

/// Identifier of a run's trace: the same wherever it is asked for.
pub(super) fn trace_id(run_id: &str) -> [u8; 16] {
    *blake3::derive_key(TRACE_CONTEXT, run_id.as_bytes()).first_chunk().expect("32 bytes")
}

/// Identifier of the span at `place` of a run's trace. The root's place is empty.
pub(super) fn span_id(run_id: &str, place: &[&str]) -> [u8; 8] {
    let name = [&[run_id], place].concat().join("\0");
    *blake3::derive_key(SPAN_CONTEXT, name.as_bytes()).first_chunk().expect("32 bytes")
}

/// The spans of `ended`, as they are sent.
pub(super) fn request(speaker: &Speaker, repository: &str, ended: &Ended) -> ExportTraceServiceRequest {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let attributes = vec![
        text("service.name", &format!("assay-{}", speaker.role)),
        text("service.instance.id", &speaker.agent),
        text("service.version", speaker.version),
        text("host.name", &host),
    ];
    let spans =
        if speaker.role == "source" { of_run(repository, ended) } else { of_check(repository, ended) };
    let scope = InstrumentationScope {
        name: "assay".to_owned(),
        version: speaker.version.to_owned(),
        ..Default::default()
    };
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource { attributes, ..Default::default() }),
            scope_spans: vec![ScopeSpans { scope: Some(scope), spans, ..Default::default() }],
            ..Default::default()
        }],
    }
}

/// A run, as its source tells of it.
fn of_run(repository: &str, ended: &Ended) -> Vec<Span> {
    let from = ended.started.unwrap_or(ended.finished);
    let mut root = span(ended, &[], None, "run", (from, ended.finished));
    root.attributes = about(repository, ended);
    if let Some(counts) = &ended.counts {
        root.attributes.extend([
            number("assay.files", counts.files),
            number("assay.content_bytes", counts.total_bytes),
            number("assay.files_read", counts.files_read),
            number("assay.bytes_read", counts.bytes_read),
            number("assay.bytes_sent", counts.bytes_sent),
            number("assay.wire_bytes_out", counts.wire_bytes_out),
            number("assay.wire_bytes_in", counts.wire_bytes_in),
            number("assay.entries_dropped", counts.entries_dropped),
            number("assay.reconnects", counts.reconnects),
        ]);
    }
    root.status = Some(status(ended));
    let mut spans = vec![root];
    spans.extend(phases(ended, &["source"], &[]));
    spans
}

/// A check, as its target tells of it. A generation may be checked again: the verdict tells one from the other.
fn of_check(repository: &str, ended: &Ended) -> Vec<Span> {
    let place = ["target", ended.verdict_id.as_str()];
    let from = ended.phases.first().map_or(ended.finished, |first| first.from);
    let mut top = span(ended, &place, Some(&[]), "verdict", (from, ended.finished));
    top.flags |= SpanFlags::ContextHasIsRemoteMask as u32 | SpanFlags::ContextIsRemoteMask as u32;
    top.attributes = about(repository, ended);
    top.status = Some(status(ended));
    let mut spans = vec![top];
    spans.extend(phases(ended, &place, &place));
    spans
}

/// The phases, each at a place of its own below `place`, as children of the span at `parent`.
fn phases(ended: &Ended, place: &[&str], parent: &[&str]) -> Vec<Span> {
    let mut spans = Vec::new();
    for (number, phase) in ended.phases.iter().enumerate() {
        let number = number.to_string();
        let place = [place, &[number.as_str()]].concat();
        spans.push(span(ended, &place, Some(parent), phase.name, (phase.from, end(phase.from, phase.took))));
        spans.extend(steps(ended, phase, &place));
    }
    spans
}

/// The steps of a check, one after the other from its start: what is between them (patching, cleaning up) stands behind the last.
fn steps(ended: &Ended, phase: &PhaseTaken, parent: &[&str]) -> Vec<Span> {
    let (mut from, mut spans) = (phase.from, Vec::new());
    for (index, step) in phase.steps.iter().enumerate() {
        let to = end(from, step.took);
        let index = index.to_string();
        let place = [parent, &[index.as_str()]].concat();
        let mut span = span(ended, &place, Some(parent), &step.name, (from, to));
        span.attributes = vec![
            text("assay.outcome", &step.outcome.to_string()),
            number("assay.attempt", step.attempt.into()),
        ];
        let code = if step.outcome == Outcome::Pass { StatusCode::Ok } else { StatusCode::Error };
        span.status = Some(Status { code: code as i32, message: String::new() });
        spans.push(span);
        from = to;
    }
    spans
}

fn end(from: Timestamp, took: Duration) -> Timestamp {
    from.checked_add(took).unwrap_or(from)
}

fn span(
    ended: &Ended,
    place: &[&str],
    parent: Option<&[&str]>,
    name: &str,
    (from, to): (Timestamp, Timestamp),
) -> Span {
    Span {
        trace_id: trace_id(&ended.run_id).to_vec(),
        span_id: span_id(&ended.run_id, place).to_vec(),
        parent_span_id: parent.map(|place| span_id(&ended.run_id, place).to_vec()).unwrap_or_default(),
        flags: SAMPLED | if parent.is_some() { SpanFlags::ContextHasIsRemoteMask as u32 } else { 0 },
        name: name.to_owned(),
        kind: SpanKind::Internal as i32,
        start_time_unix_nano: nanoseconds(from),
        // A clock that was set back meanwhile: a span never ends before it starts.
        end_time_unix_nano: nanoseconds(to.max(from)),
        ..Default::default()
    }
}

fn about(repository: &str, ended: &Ended) -> Vec<KeyValue> {
    let mut attributes = vec![
        text("assay.repository", repository),
        text("assay.run_id", &ended.run_id),
        text("assay.outcome", &ended.outcome.to_string()),
        text("assay.reason", &ended.reason),
    ];
    if !ended.verdict_id.is_empty() {
        attributes.push(text("assay.verdict_id", &ended.verdict_id));
    }
    attributes.extend(ended.generation.map(|generation| number("assay.generation", generation)));
    attributes
}

fn status(ended: &Ended) -> Status {
    match ended.outcome {
        Outcome::Pass => Status { code: StatusCode::Ok as i32, message: String::new() },
        _ => {
            Status { code: StatusCode::Error as i32, message: format!("{}: {}", ended.reason, ended.message) }
        }
    }
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, any_value::Value::StringValue(value.to_owned()))
}

fn number(key: &str, value: u64) -> KeyValue {
    attribute(key, any_value::Value::IntValue(i64::try_from(value).unwrap_or(i64::MAX)))
}

fn attribute(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..Default::default() }
}

fn nanoseconds(time: Timestamp) -> u64 {
    u64::try_from(time.as_nanosecond()).unwrap_or(0)
}
