use std::{collections::HashSet, path::Path};

use jiff::Timestamp;
use opentelemetry_proto::tonic::trace::v1::Span;
use serde::Deserialize;

use super::*;
use crate::{
    config,
    verdict::Outcome,
    watch::{PhaseTaken, StepTaken},
};

const RUN: &str = "20261122T224501Z-7f3a9c";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).expect("a time")
}

fn ended(phases: Vec<PhaseTaken>, verdict_id: &str) -> Ended {
    Ended {
        run_id: RUN.to_owned(),
        outcome: Outcome::Fail,
        reason: "damage-found".to_owned(),
        sentence: String::new(),
        claims: None,
        message: "page 7".to_owned(),
        generation: Some(3),
        verdict_id: verdict_id.to_owned(),
        started: Some(at(0)),
        finished: at(60),
        mark: None,
        phases,
        counts: None,
        traceless: Default::default(),
        oldest_reading: None,
    }
}

fn phase(name: &'static str, from: i64, took: u64, steps: Vec<StepTaken>) -> PhaseTaken {
    PhaseTaken { name, from: at(from), took: Duration::from_secs(took), steps }
}

fn step(name: &str, took: u64, outcome: Outcome) -> StepTaken {
    StepTaken { name: name.to_owned(), attempt: 0, took: Duration::from_secs(took), outcome }
}

fn spans(role: &'static str, ended: &Ended) -> Vec<Span> {
    let speaker = Speaker { role, agent: "a".to_owned(), version: "1" };
    let mut request = spans::request(&speaker, "repo", ended);
    request.resource_spans.remove(0).scope_spans.remove(0).spans
}

/// Two agents of different versions must still meet in one trace: these values never change.
#[test]
fn identifiers_come_from_the_run_alone() {
    assert_eq!(hex::encode(spans::trace_id(RUN)), "b309159999343be0654f7fb73e726e6d");
    assert_eq!(hex::encode(spans::span_id(RUN, &[])), "9a52c601da0fba80");
}

#[test]
fn what_both_agents_send_is_one_tree() {
    let source = ended(vec![phase("marking", 0, 2, vec![]), phase("checking", 2, 50, vec![])], "v1");
    let steps = vec![step("verify", 10, Outcome::Pass), step("verify", 5, Outcome::Fail)];
    let target = ended(vec![phase("receiving", 1, 9, vec![]), phase("checking", 10, 20, steps)], "v1");
    let again = Ended { verdict_id: "v2".to_owned(), ..target.clone() };
    let all: Vec<Span> = [("source", &source), ("target", &target), ("target", &again)]
        .iter()
        .flat_map(|(role, ended)| spans(role, ended))
        .collect();
    let ids: HashSet<_> = all.iter().map(|span| span.span_id.clone()).collect();
    assert_eq!(ids.len(), all.len(), "no two are the same");
    assert_eq!(all.len(), 3 + 5 + 5);
    let by_id = |id: &[u8]| all.iter().find(|span| span.span_id == id);
    let mut roots = 0;
    for span in &all {
        assert_eq!(span.trace_id, spans::trace_id(RUN));
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
        match by_id(&span.parent_span_id) {
            Some(parent) => {
                assert!(parent.start_time_unix_nano <= span.start_time_unix_nano, "{span:?}");
                assert!(parent.end_time_unix_nano >= span.end_time_unix_nano, "{span:?}");
            }
            None => {
                assert!(span.parent_span_id.is_empty(), "{span:?}");
                roots += 1;
            }
        }
    }
    assert_eq!(roots, 1);
    let failed = all.iter().filter(|span| span.status.as_ref().is_some_and(|status| status.code == 2));
    let failed: Vec<_> = failed.map(|span| span.name.as_str()).collect();
    assert_eq!(failed, ["run", "verdict", "verify", "verdict", "verify"]);
    assert_eq!(all[0].status.as_ref().map(|status| status.message.as_str()), Some("damage-found: page 7"));
}

/// A clock may be set back while a run is under way.
#[test]
fn no_span_ends_before_it_starts() {
    let mut ended = ended(Vec::new(), "");
    ended.finished = at(-5);
    let spans = spans("source", &ended);
    assert_eq!(spans[0].start_time_unix_nano, spans[0].end_time_unix_nano);
}

#[derive(Debug, Deserialize)]
struct File {
    traces: Option<TracesSection>,
}

#[test]
fn an_endpoint_is_checked_when_the_configuration_is_read() {
    let path = Path::new("/etc/assay/source.toml");
    for (text, told) in [
        ("endpoint = 'localhost:4317'", "traces.endpoint: must be http://HOST:4317"),
        ("endpoint = 'grpc://localhost:4317'", "traces.endpoint: must be http://HOST:4317"),
        ("endpoint = 'http://localhost:4318/v1/traces'", "without a path"),
        ("endpoint = 'http://me:secret@localhost'", "traces.endpoint: a password belongs in token_file"),
        ("endpoint = 'http://localhost'\nca = 'ca.crt'", "traces.ca: of use with https only"),
        ("endpoint = 'http://localhost'\ntimeout = '0s'", "traces.timeout: "),
        ("endpoint = 'http://localhost'\ntimeout = '2m'", "traces.timeout: "),
    ] {
        let file: File = config::parse(path, &format!("[traces]\n{text}")).expect("the right shape");
        let mut faults = Vec::new();
        Collector::new(path, file.traces.as_ref(), &mut faults);
        assert!(
            faults.len() == 1 && faults[0].starts_with("traces.") && faults[0].contains(told),
            "{text}: {faults:?}"
        );
        assert!(!faults[0].contains("secret"), "{faults:?}");
    }
    for text in ["", "[traces]\nendpoint = 'https://[::1]:4317/'\nca = 'ca.crt'\ntimeout = '1m'"] {
        let file: File = config::parse(path, text).expect("the right shape");
        let mut faults = Vec::new();
        let collector = Collector::new(path, file.traces.as_ref(), &mut faults);
        assert_eq!((collector.is_some(), faults.len()), (!text.is_empty(), 0), "{faults:?}");
    }
    let unknown = config::parse::<File>(path, "[traces]\nendpoint = 'http://a'\nprotocol = 'http'");
    assert!(unknown.expect_err("unknown").to_string().contains("protocol"));
}
