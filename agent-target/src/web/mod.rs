//! A page for a browser: what `status` and `explain` say, rendered here, without scripts. It changes nothing: no route but those that log in
//! and out takes anything but GET and HEAD, and nobody sees anything who has not logged in.
//!
//! Everything comes from [`crate::status`] and the ledger, as the command line's answers do. What one repository has that is broken stands
//! in its own row.

mod access;
mod config;
mod ledgers;
mod login;
mod page;
mod repository;
mod row;
mod session;
mod strip;

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use assay_common::{
    cli::{json_line, show},
    json::to_output,
    ledger::EntryId,
    listen::{self, HttpLimits, serve_http},
    supervise,
};
use axum::{
    Extension, Router,
    extract::{DefaultBodyLimit, Path, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use hyper_util::service::TowerToHyperService;
use jiff::Timestamp;
use tokio::{net::TcpListener, sync::Semaphore};

use crate::{
    service::Repositories,
    status,
    web::{
        access::Access,
        ledgers::Ledgers,
        page::Frame,
        row::Row,
        session::{LINK_LIFE, Sessions},
    },
};

pub use config::WebSection;

/// What browsers may have.
const LIMITS: HttpLimits = HttpLimits { connections: 64, lifetime: Duration::from_secs(300) };
/// Pages that are made at a time: they must not take the checks' cores.
const PAGES: usize = 2;
/// How long an answer may take, the body of a form included.
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);
const STYLE: &str = include_str!("style.css");
const ICON: &str = include_str!("icon.svg");

/// What every answer says to a browser. Nothing is loaded from elsewhere, no script runs, no other page may frame or read it, and nothing
/// of it is kept.
const HEADERS: [(HeaderName, &str); 8] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    // With "no-referrer" browsers would not say that a form is of this page.
    (header::REFERRER_POLICY, "same-origin"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("permissions-policy"), "camera=(), geolocation=(), microphone=()"),
];

/// Why no page is served.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    /// The address cannot be listened on.
    #[error(
        "{address} cannot be listened on for the web page: {source}\nHINT: {}",
        listen::hint(source, "web.listen")
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The operating system's error.
        source: io::Error,
    },
}

/// A listening socket that serves nothing yet.
#[derive(Debug)]
pub struct WebServer {
    listener: TcpListener,
    section: WebSection,
    sessions: Arc<Sessions>,
}

/// Links that open sessions, for those who have shown elsewhere that they operate this agent.
#[derive(Debug, Clone)]
pub struct Links {
    url: String,
    sessions: Arc<Sessions>,
}

impl Links {
    /// The address of a link for `who` that can be used once, and until when.
    pub fn create(&self, who: &str) -> (String, Timestamp) {
        let secret = self.sessions.link(who, Instant::now());
        let until = Timestamp::now().checked_add(LINK_LIFE).unwrap_or(Timestamp::MAX);
        (format!("{}/login/{secret}", self.url), until)
    }
}

impl WebServer {
    /// Takes the address.
    ///
    /// # Errors
    /// When it cannot be had.
    pub async fn bind(section: WebSection) -> Result<Self, WebError> {
        let address = section.listen;
        let listener =
            TcpListener::bind(address).await.map_err(|source| WebError::Listen { address, source })?;
        Ok(Self { listener, section, sessions: Arc::default() })
    }

    /// Where its links come from.
    pub fn links(&self) -> Links {
        Links { url: self.section.url(), sessions: Arc::clone(&self.sessions) }
    }

    /// Serves the pages of these repositories of the agent called `agent`, for as long as the process runs.
    pub fn start(self, repositories: &Arc<Repositories>, agent: &str) {
        let ledgers = Arc::new(Ledgers::default());
        supervise::spawn("ledgers", {
            let (ledgers, repositories) = (Arc::clone(&ledgers), Arc::clone(repositories));
            move || Arc::clone(&ledgers).keep_verified(Arc::clone(&repositories))
        });
        let section = &self.section;
        let site = Site {
            repositories: Arc::clone(repositories),
            agent: agent.into(),
            ledgers,
            turns: Arc::new(Semaphore::new(PAGES)),
            passwords: Arc::new(Semaphore::new(1)),
            host: section.host().map(Into::into),
            is_secure: section.is_secure(),
            access: Arc::new(Access {
                sessions: self.sessions,
                proxy: section.proxy(),
                users: section.users(),
            }),
        };
        let (listener, routes) = (Arc::new(self.listener), routes(site));
        supervise::spawn("web", move || serve(Arc::clone(&listener), routes.clone()));
    }
}

async fn serve(listener: Arc<TcpListener>, routes: Router) {
    let service = |peer| TowerToHyperService::new(routes.clone().layer(Extension(Peer(peer))));
    serve_http(&listener, "the web page", LIMITS, service).await;
}

/// What the pages are made from.
#[derive(Clone)]
struct Site {
    repositories: Arc<Repositories>,
    agent: Arc<str>,
    ledgers: Arc<Ledgers>,
    turns: Arc<Semaphore>,
    /// Passwords are verified one at a time.
    passwords: Arc<Semaphore>,
    access: Arc<Access>,
    /// The name by which browsers may ask for the page, beside the loopback's.
    host: Option<Arc<str>>,
    /// Browsers come over TLS.
    is_secure: bool,
}

/// From where a connection comes.
#[derive(Debug, Clone, Copy)]
struct Peer(SocketAddr);

/// Who asks for a page.
#[derive(Debug, Clone)]
struct Who(Arc<str>);

fn routes(site: Site) -> Router {
    Router::new()
        .route("/", get(overview))
        .route("/wall", get(wall))
        .route("/status.json", get(status_json))
        .route("/repository/{name}", get(one))
        .route("/repository/{name}/verdict/{id}", get(verdict))
        .route("/style.css", get(|| async { ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], STYLE) }))
        .route("/icon.svg", get(|| async { ([(header::CONTENT_TYPE, "image/svg+xml")], ICON) }))
        .route("/login", get(login::by_name).post(login::open))
        .route("/login/{link}", get(login::by_link))
        .route("/logout", post(login::close))
        .fallback(nothing)
        .layer(DefaultBodyLimit::max(login::MAX_FORM_BYTES))
        .layer(middleware::from_fn_with_state(site.clone(), guard))
        .with_state(site)
}

/// Refuses what no page is for and who has not logged in, and says to the browser what it may do with an answer.
async fn guard(State(site): State<Site>, mut request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let is_form = request.method() == Method::POST && matches!(path, "/login" | "/logout");
    let is_read = request.method() == Method::GET || request.method() == Method::HEAD;
    let is_for_all =
        is_form || matches!(path, "/style.css" | "/icon.svg" | "/login") || path.starts_with("/login/");
    let peer = request.extensions().get::<Peer>().copied();
    let who = peer.and_then(|peer| site.access.who(request.headers(), peer.0, Instant::now()));
    let mut response = if !is_read && !is_form {
        plain(StatusCode::METHOD_NOT_ALLOWED, "this page only shows: GET and HEAD\n")
    } else if !site.is_asked_for_by_name(request.headers()) {
        // A page of elsewhere whose name leads to this address would be read by that page.
        plain(
            StatusCode::MISDIRECTED_REQUEST,
            "ask for this page as localhost, by its address, or by web.url\n",
        )
    } else if is_form && !is_of_this_page(request.headers()) {
        plain(StatusCode::FORBIDDEN, "another page has sent this form\n")
    } else if who.is_none() && !is_for_all {
        site.stranger(path)
    } else {
        if let Some(who) = who {
            request.extensions_mut().insert(Who(who.into()));
        }
        match tokio::time::timeout(ANSWER_PATIENCE, next.run(request)).await {
            Ok(response) => response,
            Err(_) => plain(StatusCode::SERVICE_UNAVAILABLE, "this took too long: try again\n"),
        }
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// The name by which a request asks for its host, without the port.
fn asked_host(headers: &HeaderMap) -> &str {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|it| it.is_ascii_digit()));
    name.map_or(host, |(name, _)| name)
}

/// True for a name of the loopback, which nobody else can have.
fn is_loopback(name: &str) -> bool {
    name.eq_ignore_ascii_case("localhost")
        || name
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse()
            .is_ok_and(|it: std::net::IpAddr| it.is_loopback())
}

/// False if the browser says that a form was sent by another page than one of this host.
fn is_of_this_page(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    headers.get(header::ORIGIN).is_none_or(|origin| {
        let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
        origin.is_some_and(|(_, of)| of.eq_ignore_ascii_case(host))
    })
}

fn plain(status: StatusCode, text: &'static str) -> Response {
    (status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}

fn of_html(status: StatusCode, page: String) -> Response {
    (status, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], page).into_response()
}

impl Site {
    /// Makes an answer on a thread that may wait for a disk, a few at a time.
    async fn make(&self, make: impl FnOnce(&Self, Timestamp) -> Response + Send + 'static) -> Response {
        let Ok(turn) = Arc::clone(&self.turns).acquire_owned().await else {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "the agent ends\n");
        };
        let site = self.clone();
        let made = tokio::task::spawn_blocking(move || {
            let made = make(&site, Timestamp::now());
            drop(turn);
            made
        });
        made.await.unwrap_or_else(|_| {
            plain(StatusCode::INTERNAL_SERVER_ERROR, "the agent has a bug: its log tells where\n")
        })
    }

    fn rows(&self, now: Timestamp) -> Vec<Row> {
        let mut rows: Vec<_> = self.repositories.iter().map(|it| Row::of(it, &self.ledgers, now)).collect();
        // They come by name, which stays the order of those that are equally urgent.
        rows.sort_by_key(|row| row.level);
        rows
    }

    fn frame<'a>(&'a self, title: &'a str, now: Timestamp, who: Option<&'a Who>) -> Frame<'a> {
        Frame { title, agent: &self.agent, now, refresh: None, who: who.map(|who| &*who.0) }
    }

    /// True if the browser asked for this host by a name that is this page's.
    fn is_asked_for_by_name(&self, headers: &HeaderMap) -> bool {
        let name = asked_host(headers);
        is_loopback(name) || self.host.as_deref().is_some_and(|host| host.eq_ignore_ascii_case(name))
    }

    fn missing(&self, title: &str, text: &str, now: Timestamp, who: &Who) -> Response {
        let page = page::frame(&self.frame(title, now, Some(who)), page::message(title, text));
        of_html(StatusCode::NOT_FOUND, page)
    }
}

async fn overview(State(site): State<Site>, Extension(who): Extension<Who>) -> Response {
    site.make(move |site, now| {
        let rows = site.rows(now);
        let checks = site
            .repositories
            .iter()
            .next()
            .map(|it| &it.checks)
            .filter(|checks| !checks.waiting().is_empty());
        let checks = checks.map(|checks| {
            let (running, waiting) = (checks.running(), checks.waiting().len());
            format!(
                "{} running, {waiting} waiting, {} at a time",
                show::counted(running as u64, "check"),
                checks.at_a_time()
            )
        });
        let body = page::overview(&rows, &assay_common::trouble::lines(), checks.as_deref());
        of_html(StatusCode::OK, page::frame(&site.frame("Assay", now, Some(&who)), body))
    })
    .await
}

async fn wall(State(site): State<Site>) -> Response {
    site.make(|site, now| {
        let body = page::wall(&site.rows(now));
        of_html(StatusCode::OK, page::frame(&page::wall_frame(&site.agent, now), body))
    })
    .await
}

/// The record as `assay-target status --json` prints it.
async fn status_json(State(site): State<Site>) -> Response {
    site.make(|site, now| {
        let status = status::of_target(&site.repositories, &site.agent, now);
        let text = json_line(&to_output("GetTargetStatusResponse", &status));
        ([(header::CONTENT_TYPE, "application/json")], text).into_response()
    })
    .await
}

async fn one(
    State(site): State<Site>,
    Extension(who): Extension<Who>,
    Path(name): Path<String>,
    uri: Uri,
) -> Response {
    let before = uri.query().and_then(|query| EntryId::parse(query.strip_prefix("before=")?));
    site.make(move |site, now| {
        let Some(repository) = site.repositories.iter().find(|it| it.config.name == name) else {
            return site.missing(
                "No such repository",
                "This target has no repository of this name.",
                now,
                &who,
            );
        };
        site.ledgers.ask(&name);
        let row = Row::of(repository, &site.ledgers, now);
        let body = repository::whole(repository, &row, before, now);
        of_html(StatusCode::OK, page::frame(&site.frame(&format!("{name}: Assay"), now, Some(&who)), body))
    })
    .await
}

async fn verdict(
    State(site): State<Site>,
    Extension(who): Extension<Who>,
    Path((name, id)): Path<(String, String)>,
) -> Response {
    site.make(move |site, now| {
        let repository = site.repositories.iter().find(|it| it.config.name == name);
        let (Some(repository), Some(id)) = (repository, EntryId::parse(&id)) else {
            return site.missing("No such verdict", "This target has no such verdict.", now, &who);
        };
        match repository::read(repository, id) {
            (id, Ok(verdict)) => {
                let notes = repository.notes_on(verdict.sequence, verdict.generation);
                let body = repository::verdict_page(&name, &id, &verdict, &notes);
                of_html(
                    StatusCode::OK,
                    page::frame(&site.frame(&format!("{name} {id}: Assay"), now, Some(&who)), body),
                )
            }
            (_, Err(error)) => {
                site.missing("This verdict is not shown", &assay_common::cli::screen::safe(&error), now, &who)
            }
        }
    })
    .await
}

async fn nothing(State(site): State<Site>, Extension(who): Extension<Who>) -> Response {
    site.make(move |site, now| site.missing("Nothing is here", "There is no such page.", now, &who)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page of elsewhere cannot have its own name lead here and read what is shown.
    #[test]
    fn only_names_that_nobody_else_can_have_are_this_host() {
        for (host, is_ours) in [
            ("localhost", true),
            ("LOCALHOST:7480", true),
            ("127.0.0.1:7480", true),
            ("127.8.8.8", true),
            ("[::1]:7480", true),
            ("[::1]", true),
            ("evil.example:7480", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("192.0.2.1", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static(host));
            assert_eq!(is_loopback(asked_host(&headers)), is_ours, "{host}");
        }
        assert!(!is_loopback(asked_host(&HeaderMap::new())));
    }

    #[test]
    fn a_form_of_another_page_is_refused() {
        let of = |origin: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static("127.0.0.1:7480"));
            origin.map(|origin| headers.insert(header::ORIGIN, HeaderValue::from_static(origin)));
            is_of_this_page(&headers)
        };
        assert!(of(None) && of(Some("http://127.0.0.1:7480")));
        for origin in ["null", "http://evil.example", "http://127.0.0.1:7481", "http://127.0.0.1", ""] {
            assert!(!of(Some(origin)), "{origin}");
        }
    }
}
