//! Logging in and out: the only routes that take anything.

use std::{sync::Arc, time::Instant};

use axum::{
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use maud::{Markup, html};

use super::{Site, access, of_html, page, plain};

/// Bytes of a form at most.
pub(super) const MAX_FORM_BYTES: usize = 4096;

fn form(is_wrong: Option<&'static str>, link: Option<&str>, has_users: bool) -> Markup {
    html! {
        section .message .login {
            h1 { "Log in" }
            @if let Some(why) = is_wrong { p .fault { (why) } }
            @match link {
                Some(link) => {
                    p { "This link opens one session in this browser. It lasts twelve hours, and shows without changing anything." }
                    form method="post" action="/login" {
                        input type="hidden" name="link" value=(link);
                        button type="submit" { "Open the session" }
                    }
                }
                None => {
                    p { "On the target's host, as an operator, " code { "assay-target web login" } " prints a link that can be used once, within five minutes." }
                    @if has_users {
                        form method="post" action="/login" {
                            label { "Name" input type="text" name="name" autocomplete="username" required maxlength="256"; }
                            label { "Password" input type="password" name="password" autocomplete="current-password" required maxlength="72"; }
                            button type="submit" { "Log in" }
                        }
                    }
                }
            }
        }
    }
}

impl Site {
    fn login_page(&self, status: StatusCode, is_wrong: Option<&'static str>, link: Option<&str>) -> Response {
        let body = form(is_wrong, link, self.access.users.is_some());
        let frame = page::Frame { who: None, ..self.frame("Log in: Assay", jiff::Timestamp::now(), None) };
        of_html(status, page::frame(&frame, body))
    }

    /// What a stranger is told.
    pub(super) fn stranger(&self, path: &str) -> Response {
        match path {
            // For a program.
            "/status.json" => {
                plain(StatusCode::UNAUTHORIZED, "log in first: assay-target web login prints a link\n")
            }
            _ => self.login_page(StatusCode::UNAUTHORIZED, None, None),
        }
    }

    fn opened(&self, session: &str, who: &str) -> Response {
        tracing::info!(who = assay_common::cli::screen::safe(who), "a session of the web page was opened");
        let mut response = (StatusCode::SEE_OTHER, [(header::LOCATION, "/")]).into_response();
        self.set_cookie(&mut response, session);
        response
    }

    fn set_cookie(&self, response: &mut Response, session: &str) {
        if let Some(cookie) = access::cookie(session, self.is_secure) {
            response.headers_mut().insert(header::SET_COOKIE, cookie);
        }
    }
}

/// The form for a name and a password.
pub(super) async fn by_name(State(site): State<Site>) -> Response {
    site.login_page(StatusCode::OK, None, None)
}

/// The form of a link. To look at it uses nothing up: programs that look at links before people do are many.
pub(super) async fn by_link(State(site): State<Site>, Path(link): Path<String>) -> Response {
    let is_link = link.len() == 64 && link.bytes().all(|it| it.is_ascii_hexdigit());
    if !is_link {
        return site.login_page(
            StatusCode::NOT_FOUND,
            Some("This is no link that assay-target web login printed."),
            None,
        );
    }
    site.login_page(StatusCode::OK, None, Some(&link))
}

/// Opens a session.
pub(super) async fn open(State(site): State<Site>, body: Bytes) -> Response {
    let (mut link, mut name, mut password) = (None, String::new(), String::new());
    for (key, value) in form_urlencoded::parse(&body) {
        match &*key {
            "link" => link = Some(value.into_owned()),
            "name" => name = value.into_owned(),
            "password" => password = value.into_owned(),
            _ => {}
        }
    }
    if let Some(link) = link {
        return match site.access.sessions.redeem(&link, Instant::now()) {
            Some((session, who)) => site.opened(&session, &who),
            None => {
                tracing::warn!("a link of the web page was wrong, used before, or too old");
                let why = "This link is wrong, was used before, or is older than five minutes.";
                site.login_page(StatusCode::UNAUTHORIZED, Some(why), None)
            }
        };
    }
    // A few at a time: a password costs a tenth of a second, so that guessing costs more.
    let access = Arc::clone(&site.access);
    let Ok(turn) = Arc::clone(&site.passwords).acquire_owned().await else {
        return plain(StatusCode::SERVICE_UNAVAILABLE, "the agent ends\n");
    };
    let asked = name.clone();
    let is_user = tokio::task::spawn_blocking(move || {
        let is_user = access.is_user(&asked, &password);
        drop(turn);
        is_user
    });
    if is_user.await.unwrap_or(false) {
        let session = site.access.sessions.open(&name, Instant::now());
        return site.opened(&session, &name);
    }
    tracing::warn!(
        name = assay_common::path::display_short(name.as_bytes()),
        "a login to the web page was refused"
    );
    site.login_page(StatusCode::UNAUTHORIZED, Some("No such name and password."), None)
}

/// Ends the session of whoever asks.
pub(super) async fn close(State(site): State<Site>, headers: HeaderMap) -> Response {
    if let Some(who) =
        access::secret(&headers).and_then(|secret| site.access.sessions.end(&secret, Instant::now()))
    {
        tracing::info!(who = assay_common::cli::screen::safe(&who), "a session of the web page was closed");
    }
    let mut response = (StatusCode::SEE_OTHER, [(header::LOCATION, "/login")]).into_response();
    site.set_cookie(&mut response, "");
    response.headers_mut().insert("clear-site-data", HeaderValue::from_static("\"cache\""));
    response
}
