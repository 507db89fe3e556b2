//! A real browser: Debian's Chromium without a screen, driven by its own driver over WebDriver (W3C), which is JSON over HTTP.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::Duration,
};

use base64::Engine as _;
use serde_json::{Value, json};

use crate::pair::{eventually, free_port};

/// The key under which WebDriver names an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// How the browser looks at pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Look {
    /// Pixels of CSS.
    pub(crate) width: u32,
    /// The reader prefers dark.
    pub(crate) dark: bool,
}

/// The looks in which every page must be readable.
pub(crate) const LOOKS: [Look; 4] = [
    Look { width: 1280, dark: false },
    Look { width: 1280, dark: true },
    Look { width: 390, dark: false },
    Look { width: 390, dark: true },
];

/// A browser with a session of its own.
pub(crate) struct Browser {
    driver: Child,
    port: u16,
    session: String,
    _home: tempfile::TempDir,
}

impl Browser {
    /// Starts one.
    pub(crate) fn start(look: Look) -> Self {
        let port = free_port();
        let home = tempfile::Builder::new().prefix("assay-browser-").tempdir().expect("temp");
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .env("HOME", home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromium-driver is installed by ./test web");
        let mut browser = Self { driver, port, session: String::new(), _home: home };
        eventually("the driver takes connections", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        // Its own sandbox needs a user that is not root; what it shows is our own.
        let mut arguments = vec![
            "--headless=new".to_owned(),
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--hide-scrollbars".to_owned(),
            format!("--window-size={},1600", look.width),
        ];
        if look.dark {
            arguments.push("--force-dark-mode".to_owned());
        }
        let mut options = json!({ "args": arguments });
        if look.width < 600 {
            options["mobileEmulation"] = json!({ "deviceMetrics": { "width": look.width, "height": 844, "pixelRatio": 2.0, "mobile": true } });
        }
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": { "browser": "ALL" },
        }}});
        let session = browser.ask("POST", "/session", &wanted);
        browser.session = session["sessionId"].as_str().expect("a session").to_owned();
        browser
    }

    /// One request of WebDriver; its value.
    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("the driver runs");
        stream.set_read_timeout(Some(Duration::from_secs(120))).expect("a limit");
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.port,
            body.len()
        )
        .expect("write");
        // The driver keeps its connections: the answer ends where it says.
        let (mut answer, mut part) = (Vec::new(), [0; 65_536]);
        let text = loop {
            let read = stream.read(&mut part).expect("an answer");
            assert!(read > 0, "{path}: the driver has hung up: {}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&part[..read]);
            let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
            let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
            let length =
                head.lines().find_map(|line| line.strip_prefix("content-length:")).expect("a length");
            let body = &answer[end + 4..];
            if body.len() >= length.trim().parse().expect("a number") {
                break String::from_utf8(body.to_vec()).expect("UTF-8");
            }
        };
        let value: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"));
        assert!(value["value"]["error"].is_null(), "{method} {path}: {value}");
        value["value"].clone()
    }

    fn in_session(&self, method: &str, path: &str, body: &Value) -> Value {
        self.ask(method, &format!("/session/{}{path}", self.session), body)
    }

    /// Opens an address.
    pub(crate) fn open(&self, url: &str) {
        self.in_session("POST", "/url", &json!({ "url": url }));
    }

    /// Where it is.
    pub(crate) fn address(&self) -> String {
        self.in_session("GET", "/url", &Value::Null).as_str().expect("an address").to_owned()
    }

    /// Runs a script of the test's in the page, which may run none of its own.
    pub(crate) fn script(&self, script: &str) -> Value {
        self.in_session("POST", "/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// The text that a reader sees.
    pub(crate) fn text(&self) -> String {
        self.script("return document.body.innerText").as_str().expect("text").to_owned()
    }

    /// Clicks on the first element of this kind.
    pub(crate) fn click(&self, css: &str) {
        let found = self.in_session("POST", "/element", &json!({ "using": "css selector", "value": css }));
        let element = found[ELEMENT].as_str().expect("an element").to_owned();
        self.in_session("POST", &format!("/element/{element}/click"), &json!({}));
    }

    /// The cookies of this page, as the browser keeps them.
    pub(crate) fn cookies(&self) -> Vec<Value> {
        self.in_session("GET", "/cookie", &Value::Null).as_array().expect("a list").clone()
    }

    /// Gives the browser a cookie.
    pub(crate) fn set_cookie(&self, name: &str, value: &str) {
        self.in_session("POST", "/cookie", &json!({ "cookie": { "name": name, "value": value } }));
    }

    /// What the browser has complained of since it was asked last: violations of the policy are among it.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let all = self.in_session("POST", "/se/log", &json!({ "type": "browser" }));
        let all = all.as_array().expect("a list").iter();
        all.filter(|one| one["level"] != "INFO").map(|one| one["message"].to_string()).collect()
    }

    /// A picture of the whole page, as PNG.
    pub(crate) fn picture(&self) -> Vec<u8> {
        let metrics = json!({ "cmd": "Page.getLayoutMetrics", "params": {} });
        let size = self.in_session("POST", "/goog/cdp/execute", &metrics)["cssContentSize"].clone();
        let clip = json!({ "x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1 });
        let parameters = json!({ "format": "png", "captureBeyondViewport": true, "clip": clip });
        let command = json!({ "cmd": "Page.captureScreenshot", "params": parameters });
        let picture = self.in_session("POST", "/goog/cdp/execute", &command);
        let picture = picture["data"].as_str().expect("a picture");
        base64::engine::general_purpose::STANDARD.decode(picture).expect("base64")
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Its browser goes with the session; a test that panics must not panic again here.
        if !std::thread::panicking() && !self.session.is_empty() {
            self.in_session("DELETE", "", &Value::Null);
        }
        drop(self.driver.kill());
        drop(self.driver.wait());
    }
}
