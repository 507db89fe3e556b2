//! A pair whose target serves pages, and what a client without a browser sees of them.

use std::{
    cell::RefCell,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use assay_common::signing::SigningKey;

use crate::{
    pair::{Pair, free_port, json},
    past::{self, Planned},
};

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Its status.
    pub(crate) code: u16,
    /// Its headers, as they came.
    pub(crate) headers: String,
    /// Its text.
    pub(crate) text: String,
}

impl Answer {
    /// The value of a header; empty when there is none.
    pub(crate) fn header(&self, name: &str) -> &str {
        let lines = self.headers.lines().filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
    }
}

/// Asks for this host, as any client does.
pub(crate) const HOST: &str = "Host: localhost\r\n";

/// A pair whose target serves pages.
pub(crate) struct Site {
    pub(crate) pair: Pair,
    pub(crate) port: u16,
    /// The cookie of a session, as a browser sends it; empty before the first page is asked for.
    session: RefCell<String>,
}

impl Site {
    /// The target of `pair` serves pages from its next start on, which is now.
    pub(crate) fn new(pair: Pair) -> Self {
        Self::with_keys(pair, "")
    }

    /// The same, with further keys of `[web]`.
    pub(crate) fn with_keys(pair: Pair, keys: &str) -> Self {
        let port = free_port();
        pair.restart_with("target", "[tls]", &format!("[web]\nlisten = \"127.0.0.1:{port}\"\n{keys}[tls]"));
        Self { pair, port, session: RefCell::default() }
    }

    /// The same as [`Self::new`], with a past of repository "repo".
    pub(crate) fn with_past(pair: Pair, past: &[Planned]) -> Self {
        pair.kill("target");
        write_past(&pair, "repo", past);
        Self::new(pair)
    }

    /// The address of a link that opens a session.
    pub(crate) fn link(&self) -> String {
        let done = self.pair.target(&["--json", "web", "login"]);
        assert_eq!(done.code, 0, "{done:?}\n{}", self.pair.logs());
        json(&done.stdout)["url"].as_str().expect("an address").to_owned()
    }

    /// The cookie of a session, which is opened when there is none yet.
    pub(crate) fn session(&self) -> String {
        let mut session = self.session.borrow_mut();
        if session.is_empty() {
            let link = self.link();
            let (_, secret) = link.rsplit_once('/').expect("a link");
            let opened = self.send("POST", "/login", HOST, &format!("link={secret}"));
            assert_eq!(opened.code, 303, "{opened:?}");
            *session = opened.header("set-cookie").split(';').next().unwrap_or_default().to_owned();
        }
        session.clone()
    }

    /// The target was started again: the next page is asked for with another session.
    pub(crate) fn forget_session(&self) {
        self.session.borrow_mut().clear();
    }

    /// One request, as any client makes it.
    pub(crate) fn ask(&self, method: &str, path: &str, headers: &str) -> Answer {
        self.send(method, path, headers, "")
    }

    /// The same, with a body.
    pub(crate) fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a limit");
        let length =
            if method == "POST" { format!("Content-Length: {}\r\n", body.len()) } else { String::new() };
        // A server that refuses what it is told may have hung up before the end of it.
        drop(write!(stream, "{method} {path} HTTP/1.1\r\nConnection: close\r\n{headers}{length}\r\n{body}"));
        let mut answer = Vec::new();
        drop(stream.read_to_end(&mut answer));
        let answer = String::from_utf8(answer).expect("UTF-8");
        let (headers, text) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {answer}"));
        let code = headers.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        Answer { code, headers: headers.to_owned(), text: text.to_owned() }
    }

    /// One GET of somebody who has logged in.
    pub(crate) fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &format!("{HOST}Cookie: {}\r\n", self.session()))
    }

    /// The text of a page that there must be.
    pub(crate) fn page(&self, path: &str) -> String {
        let answer = self.get(path);
        assert_eq!(answer.code, 200, "{path}: {answer:?}\n{}", self.pair.logs());
        answer.text
    }
}

/// Writes verdicts of the past for a repository of a target that does not run.
pub(crate) fn write_past(pair: &Pair, repository: &str, past: &[Planned]) {
    let key = |name: &str| SigningKey::load(&pair.path(name)).expect("a key");
    let (target, source) = (key("pki/target-signing.key"), key("pki/source-signing.key"));
    let store = pair.path(&format!("store/{repository}"));
    past::write(&store.join("ledger"), repository, (&target, &source), past);
    // Nobody is to be told of all that now.
    fs::remove_file(store.join("told.json")).expect("it was started before");
}
