//! Who is told what: one record for a command and a webhook, and nothing that hangs holds up a run.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
};

use crate::pair::{EVENTS, Pair, json, plain_check_and};

/// The check fails while there is a file called `bad`.
fn check() -> String {
    format!("vars = {{ check = {} }}\nmax_drop_percent = 100\n", plain_check_and("test ! -e bad"))
}

/// Lets the agent of `role` write each notice to a file, a line each: those of [`EVENTS`] unless `further` begins with `on`.
pub(crate) fn with_command(pair: &Pair, role: &str, further: &str) {
    let file = pair.path(&format!("{role}-notices"));
    let script = format!("(cat; echo) >> {}", file.display());
    let on = if further.starts_with("on = ") { "" } else { EVENTS };
    let section = format!(
        "[[notify]]\nkind = \"command\"\nargv = [\"/bin/sh\", \"-c\", {script:?}]\n{on}{further}[[repository]]"
    );
    pair.restart_with(role, "[[repository]]", &section);
}

pub(crate) fn notices(pair: &Pair, role: &str) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(pair.path(&format!("{role}-notices"))).unwrap_or_default();
    text.lines().filter(|line| line.ends_with('}')).map(json).collect()
}

fn wait_for(pair: &Pair, role: &str, count: usize) -> Vec<serde_json::Value> {
    pair.eventually("the notices", || notices(pair, role).len() >= count);
    notices(pair, role)
}

#[test]
fn both_agents_tell_of_a_failure_and_of_the_recovery() {
    let pair = Pair::engine("generic", &check());
    with_command(&pair, "source", &heartbeats(&pair, "source"));
    with_command(&pair, "target", &format!("on = [\"fail\", \"recovery\"]\n{}", heartbeats(&pair, "target")));
    fs::write(pair.root(0).join("file"), "good").expect("write");
    pair.run(0);
    // The first one whose checker is known to find damage when it ends.
    let proven = pair.run(0);
    fs::write(pair.root(0).join("bad"), "x").expect("write");
    let failed = pair.run(1);
    fs::remove_file(pair.root(0).join("bad")).expect("remove");
    let passed = pair.run(0);
    for role in ["source", "target"] {
        let told = wait_for(&pair, role, 2);
        // The first PASS is told to nobody.
        assert_eq!(told.len(), 2, "{told:?}");
        for (notice, (event, run)) in told.iter().zip([("fail", &failed), ("recovery", &passed)]) {
            assert_eq!((&notice["event"], &notice["run_id"]), (&event.into(), &run["id"]), "{notice}");
            assert_eq!((&notice["repository"], &notice["role"]), (&"repo".into(), &role.into()), "{notice}");
            assert_eq!(notice["generation"], run["generation"], "{notice}");
        }
        assert_eq!(told[0]["last_pass"]["generation"], 2, "{}", told[0]);
        assert_eq!(told[1]["last_pass"]["generation"], 4, "{}", told[1]);
        assert_eq!(told[0]["id"], format!("repo/{}/fail", failed["id"].as_str().expect("an id")));
        let beats = || passed_runs(&pair, role);
        pair.eventually("the heartbeat of the newest PASS", || {
            beats().last() == passed["id"].as_str().map(str::to_owned).as_ref()
        });
        let ids = [&proven, &passed].map(|run| run["id"].as_str().expect("an id").to_owned());
        assert!(beats().ends_with(&ids) && beats().len() <= 3, "{role}: {:?}", beats());
    }
}

/// A `[[notify]]` section that receives each `pass`.
fn heartbeats(pair: &Pair, role: &str) -> String {
    let script = format!("(cat; echo) >> {}", pair.path(&format!("{role}-beats")).display());
    format!(
        "[[notify]]\nname = \"beats\"\nkind = \"command\"\nargv = [\"/bin/sh\", \"-c\", {script:?}]\non = [\"pass\"]\n"
    )
}

/// The ids of the runs in those notices.
fn passed_runs(pair: &Pair, role: &str) -> Vec<String> {
    let text = fs::read_to_string(pair.path(&format!("{role}-beats"))).unwrap_or_default();
    let told = text.lines().filter(|line| line.ends_with('}')).map(json);
    told.map(|notice| {
        assert_eq!(notice["event"], "pass", "{notice}");
        notice["run_id"].as_str().expect("an id").to_owned()
    })
    .collect()
}

/// Nobody accepts at this address, the kernel does: what is sent there is never answered.
#[test]
fn a_webhook_that_hangs_holds_up_neither_the_run_nor_the_command() {
    let pair = Pair::engine("generic", &check());
    let silent = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = silent.local_addr().expect("an address");
    let webhook =
        format!("[[notify]]\nkind = \"webhook\"\nurl = \"http://{address}/\"\ntimeout = \"200ms\"\n");
    with_command(&pair, "source", &webhook);
    fs::write(pair.root(0).join("bad"), "x").expect("write");
    let failed = pair.run(1);
    assert_eq!(wait_for(&pair, "source", 1)[0]["run_id"], failed["id"]);
    let tried = pair.source(&["notify", "test"]);
    assert_eq!(tried.code, 4, "{tried:?}");
    assert!(tried.stdout.contains("command: arrived\n"), "{tried:?}");
    assert!(tried.stdout.contains("webhook: no answer within 200ms\n"), "{tried:?}");
    assert!(tried.stderr.contains("HINT:"), "{tried:?}");
    drop(silent);
}

#[test]
fn a_webhook_gets_the_record_as_json_with_its_token() {
    let pair = Pair::engine("generic", &check());
    let server = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = server.local_addr().expect("an address");
    let token = pair.path("pki/token");
    fs::write(&token, "s3cret\n").expect("write");
    rustix::fs::chmod(&token, rustix::fs::Mode::from_raw_mode(0o600)).expect("chmod");
    let section = format!(
        "[[notify]]\nkind = \"webhook\"\nurl = \"http://{address}/hook?to=me\"\ntoken_file = \"pki/token\"\n[[repository]]"
    );
    pair.configure("target", "[[repository]]", &section);
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = server.accept().expect("a connection");
        let mut request = String::new();
        let mut buffer = [0; 4096];
        while !request.contains('}') {
            let length = stream.read(&mut buffer).expect("read");
            assert!(length > 0, "the end came early: {request}");
            request.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").expect("write");
        request
    });
    let tried = pair.target(&["notify", "test"]);
    assert_eq!((tried.code, tried.stdout.as_str()), (0, "webhook: arrived\n"), "{tried:?}");
    let request = answering.join().expect("no panic");
    let (head, body) = request.split_once("\r\n\r\n").expect("a body");
    assert!(head.starts_with("POST /hook?to=me HTTP/1.1\r\n"), "{head}");
    assert!(head.to_ascii_lowercase().contains("authorization: bearer s3cret\r\n"), "{head}");
    assert_eq!((&json(body)["event"], &json(body)["role"]), (&"test".into(), &"target".into()), "{body}");
}

/// A source that says nothing at all is noticed by the target: silence grows old.
#[test]
fn a_target_tells_that_a_proof_is_overdue_when_the_source_is_gone() {
    let pair = Pair::plain(1);
    fs::write(pair.root(0).join("file"), "x").expect("write");
    pair.run(0);
    pair.kill("source");
    pair.configure("target", "profile = ", "max_age = \"1s\"\nprofile = ");
    with_command(&pair, "target", "");
    let told = wait_for(&pair, "target", 1);
    assert_eq!(
        (&told[0]["event"], &told[0]["last_pass"]["generation"]),
        (&"overdue".into(), &1.into()),
        "{told:?}"
    );
}

/// Told when it begins and when it is over, and not at the runs between; a run that reads all ends it.
#[test]
fn a_coverage_that_is_too_old_is_told_once_and_so_is_its_end() {
    let pair = Pair::plain(1);
    for name in ["cold", "other"] {
        fs::write(pair.root(0).join(name), name).expect("write");
    }
    // Whatever a run does not read itself is too old, and nothing is read again by the clock.
    pair.configure("source", "profile = ", "max_reading_age = \"1ms\"\nreread_within = \"off\"\nprofile = ");
    for role in ["source", "target"] {
        with_command(&pair, role, "on = [\"fail\", \"coverage\"]\n");
    }
    pair.run(0);
    let too_old = |run: &serde_json::Value| {
        let clauses = run["claims"]["tooOld"].as_array().cloned().unwrap_or_default();
        clauses.first().and_then(|text| text.as_str()).map(str::to_owned)
    };
    // The next run reads a file again that was written right before this one.
    let mut runs = (0..10).map(|_| pair.run(0)).skip_while(|run| too_old(run).is_none());
    let first = runs.next().expect("a run that reads nothing");
    let clause = too_old(&first).expect("it is too old");
    assert!(clause.starts_with("its oldest reading is ") && clause.ends_with(" is the limit"), "{clause}");
    let again = pair.run(0);
    assert!(too_old(&again).is_some(), "{again}");
    // A restart in between does not tell it again.
    for role in ["source", "target"] {
        pair.kill(role);
        pair.start(role);
    }
    assert!(too_old(&pair.run(0)).is_some());
    let done = pair.source(&["run", "--full-read", "--follow"]);
    assert_eq!(done.code, 0, "{done:?}");
    let newest = pair.source(&["--json", "runs"]).stdout;
    let newest = json(newest.lines().next().expect("a run"));
    assert_eq!(too_old(&newest), None, "{newest}");
    for role in ["source", "target"] {
        let told = wait_for(&pair, role, 2);
        let ids: Vec<_> = told.iter().map(|notice| notice["id"].as_str().expect("an id")).collect();
        let of = |run: &serde_json::Value| format!("repo/{}/coverage", run["id"].as_str().expect("an id"));
        assert_eq!(ids, [of(&first), format!("{}/over", of(&newest))], "{role}");
        let summary = told[0]["summary"].as_str().expect("a text");
        assert!(summary.starts_with("COVERAGE: repo on ") && summary.contains(&clause), "{summary}");
        assert!(told[0]["message"].as_str().is_some_and(|text| text.contains("HINT: ")), "{}", told[0]);
        assert!(told[1]["message"].as_str().is_some_and(|text| text.starts_with("over: ")), "{}", told[1]);
    }
}

/// The tests' certificates are for a day: each agent tells of it once, also when it is started again.
#[test]
fn the_end_of_a_certificate_is_told_once() {
    let pair = Pair::engine("generic", &check());
    for role in ["source", "target"] {
        with_command(&pair, role, "on = [\"certificate\", \"fail\"]\n");
        let told = wait_for(&pair, role, 1);
        let notice = &told[0];
        assert_eq!(
            (&notice["event"], &notice["repository"]),
            (&"certificate".into(), &"".into()),
            "{notice}"
        );
        assert_eq!(notice["reason"], "certificate-expires", "{notice}");
        let summary = notice["summary"].as_str().expect("a text");
        assert!(summary.starts_with(&format!("CERTIFICATE: {role} on ")), "{summary}");
        assert!(summary.contains("expires in") && summary.contains("pki issue"), "{summary}");
    }
    for role in ["source", "target"] {
        pair.restart_with(role, "[tls]", "[tls]");
    }
    fs::write(pair.root(0).join("bad"), "x").expect("write");
    pair.run(1);
    for role in ["source", "target"] {
        let events: Vec<_> =
            wait_for(&pair, role, 2).iter().map(|notice| notice["event"].to_string()).collect();
        assert_eq!(events, ["\"certificate\"", "\"fail\""], "{role}");
    }
}
