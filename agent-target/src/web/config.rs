//! `[web]` of the configuration.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use assay_common::config;
use axum::http::{HeaderName, Uri, uri::Scheme};
use serde::Deserialize;

use super::access::Proxy;

/// `[web]`: a page for a browser, read-only. Without this section nothing is served.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebSection {
    /// Address and port of the page, plain HTTP: of the loopback alone, unless a proxy is named below.
    pub listen: SocketAddr,
    /// Where browsers find it, for example `"https://assay.example.com"`; `assay-target web login` prints it. Default: `http://` and `listen`.
    url: Option<String>,
    /// Users who log in by name and password: a file that nobody else may read, `NAME:HASH` a line with bcrypt, as `htpasswd -B` writes it.
    /// Read at each login. Default: none, people log in by the link of `assay-target web login`.
    users: Option<PathBuf>,
    /// Header in which a proxy says who asks, for example `"X-Remote-User"`; the proxy must remove it from what browsers send. Needs
    /// `proxy_addresses`. Default: none, no header is believed.
    proxy_header: Option<String>,
    /// Addresses from which that proxy connects, for example `["192.0.2.9"]`; nobody else's header is believed. Default: none.
    proxy_addresses: Option<Vec<IpAddr>>,
}

impl WebSection {
    /// The address that browsers are told, without a slash at its end.
    pub fn url(&self) -> String {
        let own = || format!("http://{}", self.listen);
        self.url.as_deref().map_or_else(own, |url| url.trim_end_matches('/').to_owned())
    }

    /// Host of [`Self::url`], where the configuration says it.
    pub(super) fn host(&self) -> Option<String> {
        let url: Uri = self.url.as_ref()?.parse().ok()?;
        Some(url.host()?.to_ascii_lowercase())
    }

    /// Whether browsers come over TLS.
    pub(super) fn is_secure(&self) -> bool {
        self.url.as_ref().is_some_and(|url| url.starts_with("https://"))
    }

    /// The proxy whose word counts.
    pub(super) fn proxy(&self) -> Option<Proxy> {
        let header = self.proxy_header.as_ref()?.parse::<HeaderName>().ok()?;
        Some(Proxy { header, addresses: self.proxy_addresses.clone()? })
    }

    /// The file of users.
    pub(super) fn users(&self) -> Option<PathBuf> {
        self.users.clone()
    }

    /// Relative paths start at the folder of `file`.
    pub fn resolved(self, file: &Path) -> Self {
        Self { users: self.users.map(|users| config::resolve(file, &users)), ..self }
    }

    /// The file of passwords, which no check may see.
    pub fn secret_file(&self) -> Option<&Path> {
        self.users.as_deref()
    }

    /// What is wrong with it.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if !self.listen.ip().is_loopback() && self.proxy_header.is_none() {
            faults.push(format!(
                "web.listen: {} must be an address of the loopback, for example 127.0.0.1:{}: the page is plain HTTP. For other hosts put a \
                 proxy with TLS in front of it (docs/WEB.md), or use a tunnel: ssh -L {1}:127.0.0.1:{1} HOST",
                self.listen,
                self.listen.port()
            ));
        }
        if let Some(url) = &self.url {
            let is_good = url.parse::<Uri>().is_ok_and(|url| {
                (url.scheme() == Some(&Scheme::HTTPS) || url.scheme() == Some(&Scheme::HTTP))
                    && url.host().is_some()
                    && url.path() == "/"
                    && url.query().is_none()
            });
            if !is_good {
                faults.push(format!("web.url: {url:?} must be http:// or https:// and a host, for example \"https://assay.example.com\""));
            }
        }
        match (&self.proxy_header, self.proxy_addresses.as_deref()) {
            (None, None) => {}
            (Some(header), Some([_, ..])) => {
                if header.parse::<HeaderName>().is_err() {
                    faults.push(format!("web.proxy_header: {header:?} must be the name of a header, for example \"X-Remote-User\""));
                }
            }
            (Some(_), _) => faults.push(
                "web.proxy_addresses: must name the addresses that the proxy connects from: without them anybody could send its header"
                    .to_owned(),
            ),
            (None, Some(_)) => faults.push("web.proxy_header: must be there beside proxy_addresses".to_owned()),
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> String {
        let section: WebSection = toml::from_str(text).expect("TOML of the right form");
        section.faults().join("\n")
    }

    #[test]
    fn only_the_loopback_is_listened_on_unless_a_proxy_asks_who_it_is() {
        for (listen, is_good) in [
            ("127.0.0.1:7480", true),
            ("[::1]:7480", true),
            ("0.0.0.0:7480", false),
            ("[::]:7480", false),
            ("192.0.2.7:7480", false),
        ] {
            let found = faults(&format!("listen = {listen:?}"));
            assert_eq!(found.is_empty(), is_good, "{listen}: {found}");
            let proxy = "proxy_header = \"X-Remote-User\"\nproxy_addresses = [\"192.0.2.9\"]";
            assert_eq!(faults(&format!("listen = {listen:?}\n{proxy}")), "", "{listen}");
        }
    }

    #[test]
    fn a_proxy_and_a_url_are_whole() {
        for (text, word) in [
            ("proxy_header = \"X-User\"", "web.proxy_addresses"),
            ("proxy_header = \"X-User\"\nproxy_addresses = []", "web.proxy_addresses"),
            ("proxy_addresses = [\"::1\"]", "web.proxy_header"),
            ("proxy_header = \"X User\"\nproxy_addresses = [\"::1\"]", "web.proxy_header"),
            ("url = \"assay.example.com\"", "web.url"),
            ("url = \"ftp://assay.example.com\"", "web.url"),
            ("url = \"https://assay.example.com/path\"", "web.url"),
        ] {
            let found = faults(&format!("listen = \"127.0.0.1:7480\"\n{text}"));
            assert!(found.contains(word), "{text}: {found}");
        }
        let text = "listen = \"127.0.0.1:7480\"\nurl = \"https://Assay.example.com/\"";
        let section: WebSection = toml::from_str(text).expect("TOML");
        assert_eq!(section.faults(), Vec::<String>::new());
        assert_eq!(section.url(), "https://Assay.example.com");
        assert_eq!(section.host().as_deref(), Some("assay.example.com"));
        assert!(section.is_secure());
    }
}
