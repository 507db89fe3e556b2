//! Who asks for a page: by a session's cookie, by the word of a proxy that the configuration names, or by a name and a password.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

use assay_common::signing::read_private;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use cookie::{Cookie, SameSite};

use super::session::{SESSION_LIFE, Sessions};

/// The session's cookie.
const COOKIE: &str = "assay-session";
/// Longest name that a proxy or a user may have, in bytes.
const MAX_NAME_BYTES: usize = 256;
/// What is verified where there is no such user, so that the answer takes as long: of a password that nobody knows.
const NOBODY: &str = "$2b$10$abcdefghijklmnopqrstuuP1JPTzW9lt.YZGITaj6wS3E5HeS/vbC";

/// A proxy that has asked who it is.
#[derive(Debug, Clone)]
pub(super) struct Proxy {
    /// The header in which it says who.
    pub(super) header: HeaderName,
    /// From where it connects.
    pub(super) addresses: Vec<IpAddr>,
}

/// Who may see the pages.
#[derive(Debug, Default)]
pub(super) struct Access {
    pub(super) sessions: Arc<Sessions>,
    pub(super) proxy: Option<Proxy>,
    /// A file of names and bcrypt hashes, `NAME:HASH` a line, as `htpasswd -B` writes it.
    pub(super) users: Option<PathBuf>,
}

impl Access {
    /// Who asks; `None` for a stranger.
    pub(super) fn who(&self, headers: &HeaderMap, peer: SocketAddr, now: Instant) -> Option<String> {
        self.by_proxy(headers, peer).or_else(|| self.sessions.who(&secret(headers)?, now))
    }

    /// The word of the proxy, from its address and from no other.
    fn by_proxy(&self, headers: &HeaderMap, peer: SocketAddr) -> Option<String> {
        let proxy = self.proxy.as_ref()?;
        if !proxy.addresses.contains(&peer.ip().to_canonical()) {
            return None;
        }
        let mut values = headers.get_all(&proxy.header).iter();
        // Two of them: one is somebody else's.
        let (Some(value), None) = (values.next(), values.next()) else { return None };
        let name = value.to_str().ok()?.trim();
        (!name.is_empty() && name.len() <= MAX_NAME_BYTES).then(|| name.to_owned())
    }

    /// Whether this is the password of this user. Takes a tenth of a second: off the runtime's threads.
    pub(super) fn is_user(&self, name: &str, password: &str) -> bool {
        let Some(path) = &self.users else { return false };
        let text = match read_private(path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) => {
                tracing::error!(%error, "the web page's users cannot be read: nobody can log in by name");
                return false;
            }
        };
        let lines = text.lines().filter_map(|line| line.trim().split_once(':'));
        let hash =
            lines.into_iter().find(|(known, _)| *known == name && !name.is_empty()).map(|(_, hash)| hash);
        // A longer password than bcrypt's 72 bytes is refused, not cut.
        let fits = bcrypt::non_truncating_verify(password, hash.unwrap_or(NOBODY)).unwrap_or(false);
        fits && hash.is_some()
    }
}

/// The session's secret that a browser sends.
pub(super) fn secret(headers: &HeaderMap) -> Option<String> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut cookies = all.flat_map(Cookie::split_parse).filter_map(Result::ok);
    cookies.find(|cookie| cookie.name() == COOKIE).map(|cookie| cookie.value().to_owned())
}

/// The cookie of a session; of none when `secret` is empty, so that the browser forgets it.
pub(super) fn cookie(secret: &str, is_secure: bool) -> Option<HeaderValue> {
    let life = if secret.is_empty() { 0 } else { i64::try_from(SESSION_LIFE.as_secs()).unwrap_or(0) };
    let cookie = Cookie::build((COOKIE, secret))
        .http_only(true)
        .same_site(SameSite::Strict)
        .secure(is_secure)
        .path("/")
        .max_age(cookie::time::Duration::seconds(life))
        .build();
    HeaderValue::try_from(cookie.to_string()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in all {
            headers.append(*name, HeaderValue::from_str(value).expect("a value"));
        }
        headers
    }

    #[test]
    fn a_proxy_is_believed_from_its_own_address_alone() {
        let proxy = Proxy {
            header: HeaderName::from_static("x-remote-user"),
            addresses: vec!["192.0.2.9".parse().expect("an address")],
        };
        let access = Access { proxy: Some(proxy), ..Access::default() };
        let now = Instant::now();
        let who = |all: &[(&'static str, &str)], peer: &str| {
            access.who(&headers(all), peer.parse().expect("an address"), now)
        };
        let ann = [("x-remote-user", "ann")];
        assert_eq!(who(&ann, "192.0.2.9:1").as_deref(), Some("ann"));
        assert_eq!(who(&ann, "[::ffff:192.0.2.9]:1").as_deref(), Some("ann"));
        assert_eq!(who(&ann, "192.0.2.10:1"), None);
        assert_eq!(who(&[("x-remote-user", "")], "192.0.2.9:1"), None);
        assert_eq!(who(&[("x-remote-user", "ann"), ("x-remote-user", "root")], "192.0.2.9:1"), None);
        assert_eq!(who(&[("x-remote-user", &"a".repeat(300))], "192.0.2.9:1"), None);
        assert_eq!(who(&[("x-other", "ann")], "192.0.2.9:1"), None);
        // Without a proxy the header means nothing.
        let none = Access::default();
        assert_eq!(none.who(&headers(&ann), "192.0.2.9:1".parse().expect("an address"), now), None);
    }

    #[test]
    fn a_cookie_is_the_servers_alone_and_of_this_site() {
        let access = Access::default();
        let now = Instant::now();
        let session = access.sessions.open("ann", now);
        let set = cookie(&session, true).expect("a cookie");
        let set = set.to_str().expect("text");
        for word in ["HttpOnly", "SameSite=Strict", "Secure", "Path=/", "Max-Age=43200"] {
            assert!(set.contains(word), "{word}: {set}");
        }
        assert!(cookie("", false).expect("a cookie").to_str().expect("text").contains("Max-Age=0"));
        let peer = "127.0.0.1:1".parse().expect("an address");
        let sent = format!("theme=dark; {COOKIE}={session}; x");
        assert_eq!(access.who(&headers(&[("cookie", &sent)]), peer, now).as_deref(), Some("ann"));
        for wrong in
            [format!("{COOKIE}="), format!("{COOKIE}={}", "0".repeat(64)), format!("other={session}")]
        {
            assert_eq!(access.who(&headers(&[("cookie", &wrong)]), peer, now), None, "{wrong}");
        }
    }

    #[test]
    fn a_user_has_the_password_of_the_file() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().expect("temp");
        let path = folder.path().join("users");
        let hash = bcrypt::hash("a good password", 4).expect("a hash");
        std::fs::write(&path, format!("ann:{hash}\nbroken\nbob:x\n:{hash}\n")).expect("write");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("chmod");
        let access = Access { users: Some(path.clone()), ..Access::default() };
        assert!(access.is_user("ann", "a good password"));
        let long = format!("a good password{}", "x".repeat(80));
        for (name, password) in [
            ("ann", "another"),
            ("ann", ""),
            ("bob", "x"),
            ("", "a good password"),
            ("eve", "x"),
            ("ann", &long),
        ] {
            assert!(!access.is_user(name, password), "{name} {password}");
        }
        // A file that others can read is no secret.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("chmod");
        assert!(!access.is_user("ann", "a good password"));
        assert!(!Access::default().is_user("ann", "a good password"));
    }
}
