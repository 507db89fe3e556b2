//! The alert rules in a real Prometheus, which scrapes real agents.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::{
    metrics::{get, repository, with_metrics},
    pair::{Pair, free_port, json},
};

/// A Prometheus of this test's own.
struct Prometheus {
    server: Child,
    port: u16,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.server.kill().ok();
        self.server.wait().ok();
    }
}

impl Prometheus {
    /// Scrapes `ports` and evaluates the rules every second.
    fn start(pair: &Pair, ports: [u16; 2]) -> Self {
        let rules =
            fs::read_to_string(repository().join("deploy/prometheus/assay.rules.yml")).expect("rules");
        // What is patient for good reason is quick here.
        let late = "time() - last_over_time(assay_next_run_timestamp_seconds[7d]) > ";
        assert!(
            rules.contains(&format!("{late}600\n")) && rules.contains("for: 5m"),
            "the rules have changed"
        );
        let rules =
            rules.replace(&format!("{late}600\n"), &format!("{late}3\n")).replace("for: 5m", "for: 1s");
        fs::write(pair.path("assay.rules.yml"), rules).expect("write");
        let targets = ports.map(|port| format!("127.0.0.1:{port}"));
        let config = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nrule_files: [assay.rules.yml]\n\
             scrape_configs:\n  - job_name: assay\n    static_configs: [{{ targets: {targets:?} }}]\n"
        );
        fs::write(pair.path("prometheus.yml"), config).expect("write");
        let port = free_port();
        let log = fs::File::create(pair.path("prometheus.log")).expect("log");
        let server = Command::new("prometheus")
            .arg(format!("--config.file={}", pair.path("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", pair.path("tsdb").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("prometheus is installed by ./test");
        let own = Self { server, port };
        pair.eventually("prometheus serves", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
                && get(port, "/-/ready").starts_with("HTTP/1.1 200")
        });
        own
    }

    /// A page's JSON.
    fn ask(&self, path: &str) -> serde_json::Value {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a limit");
        // HTTP/1.0: an answer in one piece.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").expect("write");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        json(answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no body: {answer}")).1)
    }

    /// The alerts that fire, by name.
    fn firing(&self) -> Vec<serde_json::Value> {
        let answer = self.ask("/api/v1/alerts");
        let alerts = answer["data"]["alerts"].as_array().cloned().unwrap_or_default();
        alerts.into_iter().filter(|alert| alert["state"] == "firing").collect()
    }

    fn fires(&self, name: &str) -> bool {
        self.firing().iter().any(|alert| alert["labels"]["alertname"] == name)
    }

    /// How many samples of a metric have been scraped.
    fn samples(&self, metric: &str) -> usize {
        let answer = self.ask(&format!("/api/v1/query?query={metric}%5B1h%5D"));
        answer["data"]["result"][0]["values"].as_array().map_or(0, Vec::len)
    }
}

/// The agent dies, its slot passes, and nobody is there to say so: the alert fires on what was known. When the agent is back, it stands
/// for what it missed, and the alert ends.
#[test]
fn a_missed_slot_fires_in_a_real_prometheus() {
    let pair = Pair::plain(1);
    let ports = with_metrics(&pair);
    fs::write(pair.root(0).join("file"), "x").expect("write");
    pair.restart_with("source", "profile = ", "schedule = { every = \"2s\" }\nprofile = ");
    let prometheus = Prometheus::start(&pair, ports);
    let passed = "assay_runs_total{repository=\"repo\",outcome=\"pass\"} ";
    pair.eventually("a scheduled run passes", || {
        let page = get(ports[0], "/metrics");
        page.lines().any(|line| line.strip_prefix(passed).is_some_and(|count| count != "0"))
    });
    pair.eventually("prometheus has scraped the next slot", || {
        prometheus.samples("assay_next_run_timestamp_seconds") > 2
    });
    assert!(!prometheus.fires("AssaySlotMissed"), "{:?}", prometheus.firing());
    pair.kill("source");
    pair.eventually("the alert on the slot fires", || prometheus.fires("AssaySlotMissed"));
    pair.eventually("the alert on the silence fires", || prometheus.fires("AssaySilent"));
    let firing = prometheus.firing();
    let missed =
        firing.iter().find(|alert| alert["labels"]["alertname"] == "AssaySlotMissed").expect("it fires");
    assert_eq!(missed["labels"]["repository"], "repo", "{missed}");
    let summary = missed["annotations"]["summary"].as_str().unwrap_or_default();
    assert_eq!(summary, "the scheduled run of repo did not start", "{missed}");
    println!("fired: {missed}");
    pair.start("source");
    pair.eventually("the alert on the slot ends", || !prometheus.fires("AssaySlotMissed"));
    pair.eventually("the agent tells of what it missed", || prometheus.fires("AssaySlotsSkipped"));
}
