//! The pages without a browser: what they say, what they refuse, and what hostile text becomes on them.

use std::fs;

use assay_common::verdict::Outcome;
use jiff::{SignedDuration, Timestamp};

use crate::{
    pair::{Pair, json},
    past::Planned,
    site::{HOST, Site},
};

/// A verdict an hour for so many hours, until two hours ago.
fn hourly(hours: i64) -> Vec<Planned> {
    let now = Timestamp::now();
    (0..hours).map(|index| Planned::pass(now - SignedDuration::from_hours(hours + 1 - index))).collect()
}

/// What must be on no page, wherever its text comes from.
fn assert_harmless(page: &str) {
    let bad = page
        .chars()
        .find(|it| (it.is_control() && *it != '\n' && *it != '\t') || ('\u{202a}'..='\u{202e}').contains(it));
    assert_eq!(bad, None, "{page}");
    for word in ["<script", "style=", "onerror=", "javascript:", "<img", "http-equiv=\"refresh\" content=\"0"]
    {
        assert!(!page.to_lowercase().contains(word), "{word}: {page}");
    }
}

/// The page, the wall, `status` and its JSON say the same of a repository that has passed, and of one that has failed since.
#[test]
fn the_page_says_what_status_says() {
    let pair = Pair::plain(1);
    fs::write(pair.root(0).join("file"), "content").expect("write");
    pair.run(0);
    let site = Site::new(pair);
    let page = site.page("/");
    for word in [
        "repo",
        "proven good",
        "generation 1",
        "check-passed",
        ">PASS<",
        "mark 20",
        "found the damage of its negative control",
    ] {
        assert!(page.contains(word), "{word}: {page}");
    }
    assert_harmless(&page);
    let (web, own) =
        (json(&site.page("/status.json")), json(&site.pair.target(&["--json", "status"]).stdout));
    let strip = |mut value: serde_json::Value| {
        value.as_object_mut().expect("an object").remove("now");
        let all = value["repositories"].as_array_mut().expect("a list");
        all.iter_mut().filter_map(|one| one.as_object_mut()).for_each(|one| {
            one.remove("lastPassAgeSeconds");
            one.remove("freeBytes");
        });
        value
    };
    assert_eq!(strip(web), strip(own));
    let one = site.page("/repository/repo");
    let explained = site.pair.target(&["explain"]).stdout;
    let first = explained.lines().next().expect("a line");
    for word in [
        first,
        "What it rests on",
        "nothing is ever pruned",
        "000000001",
        "verified",
        "all of 1 file in that run",
    ] {
        assert!(one.contains(word), "{word}: {one}");
    }
    site.pair.eventually("the ledger is verified", || site.page("/repository/repo").contains(">sound<"));
    assert!(site.page("/repository/repo").contains("(mark) and 20"), "the interval of its time");
    assert!(site.page("/repository/repo/verdict/000000001").contains("What it says"));
    let wall = site.page("/wall");
    assert!(!wall.contains("<a ") && wall.contains("http-equiv=\"refresh\" content=\"30\""), "{wall}");
    // Its check fails on everything. A restart ends all sessions.
    site.forget_session();
    site.pair.restart_with("target", "ls -la .", "ls -la . && false");
    let source = site.pair.path("source.toml");
    let text = fs::read_to_string(&source).expect("read").replace("ls -la .", "ls -la . && false");
    fs::write(&source, text).expect("write");
    site.pair.kill("source");
    site.pair.start("source");
    site.pair.run_to_any_end();
    let page = site.page("/");
    for word in ["row bad", "since the newest proof: <b>1 FAIL", "the newest verdict is FAIL"] {
        assert!(page.contains(word), "{word}: {page}");
    }
}

/// Only GET and HEAD, only for this host, and every answer says to the browser what it may do.
#[test]
fn the_page_changes_nothing_and_is_for_this_host_alone() {
    let site = Site::new(Pair::plain(1));
    let session = format!("{HOST}Cookie: {}\r\n", site.session());
    for path in ["/", "/wall", "/status.json", "/repository/repo", "/style.css", "/nothing"] {
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            let answer = site.ask(method, path, &session);
            assert_eq!(answer.code, 405, "{method} {path}: {answer:?}");
        }
        let head = site.ask("HEAD", path, &session);
        assert!(head.text.is_empty() && [200, 404].contains(&head.code), "{path}: {head:?}");
        for host in ["Host: evil.example\r\n", "Host: localhost.evil.example\r\n", ""] {
            let answer = site.ask("GET", path, &session.replace(HOST, host));
            assert!([400, 421].contains(&answer.code), "{host} {path}: {answer:?}");
        }
        let answer = site.get(path);
        let policy = answer.header("content-security-policy");
        assert!(
            policy.starts_with("default-src 'none'; style-src 'self'") && !policy.contains("unsafe"),
            "{policy}"
        );
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "same-origin"),
            ("cache-control", "no-store"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
        ] {
            assert_eq!(answer.header(name), value, "{path}: {answer:?}");
        }
    }
    for (path, code) in [
        ("/nothing", 404),
        ("/repository/%3Cscript%3Ealert(1)%3C%2Fscript%3E", 404),
        ("/repository/..%2f..%2fetc", 404),
        ("/repository/repo/verdict/000000009", 404),
        ("/repository/repo/verdict/..%2f..%2f..%2fetc%2fpasswd", 404),
        ("/repository/repo?before=x", 200),
        ("/repository/repo?before=999999999", 200),
    ] {
        let answer = site.get(path);
        assert_eq!(answer.code, code, "{path}: {answer:?}");
        assert_harmless(&answer.text);
    }
}

/// An address that others reach is refused before anything is served, and a port that is taken is named.
#[test]
fn other_addresses_than_the_loopback_are_refused_with_a_remedy() {
    let pair = Pair::plain(1);
    pair.kill("target");
    pair.configure("target", "[tls]", "[web]\nlisten = \"0.0.0.0:7480\"\n[tls]");
    let done = pair.refused_start("target");
    assert_eq!(done.code, 2, "{done:?}");
    for word in ["web.listen: 0.0.0.0:7480 must be an address of the loopback", "127.0.0.1:7480", "ssh -L"] {
        assert!(done.stderr.contains(word), "{word}: {done:?}");
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address").to_string();
    pair.configure("target", "0.0.0.0:7480", &address);
    let done = pair.refused_start("target");
    assert_eq!(done.code, 4, "{done:?}");
    assert!(done.stderr.contains(&address) && done.stderr.contains("change web.listen"), "{done:?}");
}

/// What a check prints, what a source says and what an operator names are text on the page, and nothing else.
#[test]
fn hostile_text_stays_text() {
    let attack = "<script>alert(1)</script>";
    let pair = Pair::plain(1);
    fs::write(pair.root(0).join("<img src=x onerror=alert(1)>"), "x").expect("write");
    let mut past = hourly(3);
    past[1].outcome = Outcome::Fail;
    past[1].message = format!("{attack}\u{1b}[2J\u{202e}desrever\r\n<b onclick=x>");
    past[2].outcome = Outcome::Inconclusive;
    past[2].message = format!("</pre>{attack}");
    past[2].reason = "<script>reason</script>";
    // No repository is called so: a name has letters, digits, '-' and '_' alone.
    let named = format!("alias = {attack:?}\nsource = \"source\"\n");
    pair.configure("target", "source = \"source\"\n", &named);
    let done = pair.refused_start("target");
    assert!(done.code == 2 && done.stderr.contains("a name has 1 to 64 letters"), "{done:?}");
    pair.configure("target", &named, "source = \"source\"\n");
    pair.start("target");
    let site = Site::with_past(pair, &past);
    for path in [
        "/",
        "/wall",
        "/repository/repo",
        "/repository/repo/verdict/000000002",
        "/repository/repo/verdict/000000003",
    ] {
        let page = site.page(path);
        assert_harmless(&page);
        assert!(!page.contains("<b onclick"), "{path}: {page}");
    }
    let one = site.page("/repository/repo/verdict/000000002");
    assert!(one.contains("&lt;script&gt;alert(1)&lt;/script&gt;") && one.contains("\\u{202e}"), "{one}");
    assert!(site.page("/").contains("&lt;script&gt;reason&lt;/script&gt;"));
    assert!(site.page("/repository/repo").contains("log/&lt;script&gt;alert(1)&lt;/script&gt;.log"));
}

/// A ledger that somebody has edited is red, with the reason, and so is an entry that is no verdict. All else is shown.
#[test]
fn a_ledger_that_does_not_verify_is_red_and_the_rest_is_shown() {
    let pair = Pair::plain(1);
    fs::write(pair.root(0).join("file"), "content").expect("write");
    pair.kill("target");
    crate::site::write_past(&pair, "repo", &hourly(30));
    let entry = |number: u64| pair.path(&format!("store/repo/ledger/{number:09}.json"));
    fs::copy(entry(4), entry(5)).expect("copy");
    fs::write(entry(7), "{ no verdict").expect("write");
    fs::write(entry(8), [0xff, 0, 1]).expect("write");
    // A verdict whose signature is another's: its text may be anybody's.
    let text = fs::read_to_string(entry(9)).expect("read");
    let (head, signature) = text.split_once("\"sig\":\"").expect("a signature");
    let other = if signature.starts_with('A') { "B" } else { "A" };
    fs::write(entry(9), format!("{head}\"sig\":\"{other}{}", &signature[1..])).expect("write");
    let site = Site::new(pair);
    site.pair.run(0);
    site.pair.eventually("the ledger is verified", || site.page("/").contains("the ledger does not verify"));
    let page = site.page("/");
    for word in ["row bad", "proven good", "verdict 000000005", "verified"] {
        assert!(page.contains(word), "{word}: {page}");
    }
    let one = site.page("/repository/repo");
    for word in [
        "NOT SOUND",
        "entry 000000007 cannot be read",
        "entry 000000008 cannot be read",
        "What it says",
        "000000030",
    ] {
        assert!(one.contains(word), "{word}: {one}");
    }
    assert_harmless(&one);
    for number in ["000000005", "000000007", "000000008", "000000009"] {
        let answer = site.get(&format!("/repository/repo/verdict/{number}"));
        assert_eq!(answer.code, 404, "{answer:?}");
        assert_harmless(&answer.text);
    }
}

/// Ten thousand verdicts are on pages of a hundred, and the strip has all of its days.
#[test]
fn ten_thousand_verdicts_are_shown_a_page_at_a_time() {
    // The older ones say little, so that an agent that is not optimised reads them in time.
    let mut all = hourly(10_000);
    for planned in all.iter_mut().take(9_000) {
        (planned.outcome, planned.reason) = (Outcome::NotRun, "target-full");
    }
    let site = Site::with_past(Pair::plain(1), &all);
    let one = site.page("/repository/repo");
    assert_eq!(one.matches("/repository/repo/verdict/").count(), 100);
    assert!(one.contains("?before=000009901#ledger"), "{one}");
    assert!(one.len() < 1_000_000, "{}", one.len());
    let older = site.page("/repository/repo?before=000009901");
    assert!(older.contains("/verdict/000009900\"") && older.contains("?before=000009801"), "{older}");
    let last = site.page("/repository/repo?before=000000050");
    assert!(last.contains("/verdict/000000001\"") && !last.contains("older than"), "{last}");
    let page = site.page("/");
    assert!(page.len() < 200_000, "{}", page.len());
    assert!(page.contains("90 days: 1000 PASS, 0 FAIL, 0 INCONCLUSIVE, 11"), "{page}");
    site.pair.eventually("the ledger is verified", || {
        site.page("/repository/repo").contains("10000 verdicts, every signature and link verified")
    });
}
