//! OpenTelemetry traces, received by the standard's own service.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::Span,
};
use tonic::{
    Request, Response, Status,
    transport::{Identity, Server, ServerTlsConfig},
};

use crate::pair::{Pair, eventually};

/// What arrived: who sent it, what it showed, and the spans.
type Arrived = Arc<Mutex<Vec<(String, Option<String>, Vec<Span>)>>>;

struct Collector {
    arrived: Arrived,
    refuse: bool,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let shown = request.metadata().get("authorization").map(|it| it.to_str().expect("ASCII").to_owned());
        for resource in request.into_inner().resource_spans {
            let service = text(&resource.resource.expect("a resource").attributes, "service.name");
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans).collect();
            self.arrived.lock().expect("no panic").push((service, shown.clone(), spans));
        }
        let partial_success = self
            .refuse
            .then(|| ExportTracePartialSuccess { rejected_spans: 1, error_message: "too\nold".to_owned() });
        Ok(Response::new(ExportTraceServiceResponse { partial_success }))
    }
}

/// Starts a collector that stays until the test's process ends.
fn collector(identity: Option<Identity>, refuse: bool) -> (SocketAddr, Arrived) {
    let arrived = Arrived::default();
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    listener.set_nonblocking(true).expect("non-blocking");
    let address = listener.local_addr().expect("an address");
    let service = TraceServiceServer::new(Collector { arrived: Arc::clone(&arrived), refuse });
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            let mut server = Server::builder();
            if let Some(identity) = identity {
                server = server.tls_config(ServerTlsConfig::new().identity(identity)).expect("TLS");
            }
            server.add_service(service).serve_with_incoming(incoming).await.expect("serve");
        });
    });
    (address, arrived)
}

fn value<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Value> {
    attributes.iter().find(|it| it.key == key)?.value.as_ref()?.value.as_ref()
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    match value(attributes, key) {
        Some(Value::StringValue(text)) => text.clone(),
        other => panic!("{key}: {other:?}"),
    }
}

fn send_to(pair: &Pair, role: &str, section: &str) {
    pair.restart_with(role, "[tls]", &format!("[traces]\n{section}\n[tls]"));
}

/// Source and target send their parts on their own, one of them over TLS with a token; they are one tree.
#[test]
fn both_agents_send_their_parts_of_one_trace() {
    let pair = Pair::engine(
        "generic",
        "vars = { check = [\"test\", \"!\", \"-e\", \"bad\"] }\nmax_drop_percent = 100\n",
    );
    let (plain, from_source) = collector(None, false);
    let key = rcgen::KeyPair::generate().expect("a key");
    let own = rcgen::CertificateParams::new(["localhost".to_owned()])
        .and_then(|parameters| parameters.self_signed(&key))
        .expect("a certificate");
    fs::write(pair.path("pki/collector.crt"), own.pem()).expect("write");
    fs::write(pair.path("pki/token"), "s3cret\n").expect("write");
    rustix::fs::chmod(pair.path("pki/token"), rustix::fs::Mode::from_raw_mode(0o600)).expect("chmod");
    let (secret, from_target) = collector(Some(Identity::from_pem(own.pem(), key.serialize_pem())), false);
    send_to(&pair, "source", &format!("endpoint = \"http://{plain}\""));
    let section = format!(
        "endpoint = \"https://localhost:{}\"\nca = \"pki/collector.crt\"\ntoken_file = \"pki/token\"",
        secret.port()
    );
    send_to(&pair, "target", &section);
    for role in ["source", "target"] {
        let arguments = ["notify", "test"];
        let tried = if role == "source" { pair.source(&arguments) } else { pair.target(&arguments) };
        assert_eq!((tried.code, tried.stdout.as_str()), (0, "traces: arrived\n"), "{tried:?}");
    }

    fs::write(pair.root(0).join("file"), "good").expect("write");
    let passed = pair.run(0);
    fs::write(pair.root(0).join("bad"), "x").expect("write");
    let failed = pair.run(1);
    for (number, run) in [passed, failed].iter().enumerate() {
        let part = |arrived: &Arrived| {
            pair.eventually("the trace", || arrived.lock().expect("no panic").len() > number);
            arrived.lock().expect("no panic")[number].clone()
        };
        let ((service, shown, source), (of_target, bearer, target)) =
            (part(&from_source), part(&from_target));
        assert_eq!((service.as_str(), shown), ("assay-source", None));
        assert_eq!((of_target.as_str(), bearer.as_deref()), ("assay-target", Some("Bearer s3cret")));
        let names = |spans: &[Span]| spans.iter().map(|span| span.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&source), ["run", "opening", "marking", "replicating", "sealing", "checking"]);
        assert_eq!(names(&target)[..3], ["verdict", "receiving", "checking"]);
        assert!(target.len() > 3, "the steps of the check: {target:?}");
        let root = &source[0];
        assert_eq!(text(&root.attributes, "assay.run_id"), run["id"].as_str().expect("an id"));
        assert_eq!(text(&root.attributes, "assay.verdict_id"), run["verdictId"].as_str().expect("an id"));
        assert!(root.parent_span_id.is_empty());
        assert_eq!(target[0].parent_span_id, root.span_id, "the verdict is below the run");
        for span in source.iter().chain(&target) {
            assert_eq!((span.trace_id.len(), &span.trace_id), (16, &root.trace_id));
            // One host, one clock.
            assert!(span.start_time_unix_nano >= root.start_time_unix_nano, "{span:?}");
        }
        let code = if number == 0 { 1 } else { 2 };
        for span in [root, &target[0]] {
            assert_eq!(span.status.as_ref().map(|status| status.code), Some(code), "{span:?}");
        }
    }
}

/// Neither silence nor refusal reaches a run: they are in the log and in the counts.
#[test]
fn a_collector_that_hangs_or_refuses_holds_up_no_run() {
    let pair = Pair::plain(1);
    let silent = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = silent.local_addr().expect("an address");
    send_to(&pair, "source", &format!("endpoint = \"http://{address}\"\ntimeout = \"200ms\""));
    let (address, arrived) = collector(None, true);
    send_to(&pair, "target", &format!("endpoint = \"http://{address}\""));
    fs::write(pair.root(0).join("file"), "good").expect("write");
    pair.run(0);
    let log = |role: &str| fs::read_to_string(pair.path(&format!("{role}.log"))).expect("a log");
    eventually("the source gives up for now", || log("source").contains("no answer within 200ms"));
    eventually("the target is refused", || log("target").contains("1 spans were refused: tooold"));
    assert_eq!(arrived.lock().expect("no panic").len(), 1, "what was refused is not sent again");
    let tried = pair.source(&["notify", "test"]);
    assert_eq!(tried.code, 4, "{tried:?}");
    assert!(tried.stdout.contains("traces: ") && tried.stdout.contains("no answer within"), "{tried:?}");
    assert!(tried.stderr.contains("HINT:"), "{tried:?}");
    drop(silent);
}
