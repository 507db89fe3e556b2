//! Who may see the pages: links that are used once, sessions, users, a proxy; and everybody else sees none.

use std::{fs, os::unix::fs::PermissionsExt as _};

use crate::{
    pair::{Pair, json},
    site::{Answer, HOST, Site},
};

/// Sends a form.
fn post(site: &Site, path: &str, headers: &str, form: &str) -> Answer {
    site.send(
        "POST",
        path,
        &format!("{HOST}{headers}Content-Type: application/x-www-form-urlencoded\r\n"),
        form,
    )
}

/// The cookie that an answer sets, as a browser sends it back.
fn cookie(answer: &Answer) -> String {
    answer.header("set-cookie").split(';').next().unwrap_or_default().to_owned()
}

/// The secret of a new link.
fn link(site: &Site) -> String {
    let done = site.pair.target(&["--json", "web", "login"]);
    assert_eq!(done.code, 0, "{done:?}");
    let url = json(&done.stdout)["url"].as_str().expect("an address").to_owned();
    let (address, secret) = url.rsplit_once("/login/").expect("a link");
    assert_eq!(address, format!("http://127.0.0.1:{}", site.port));
    secret.to_owned()
}

/// Everything but the way in is for those who have logged in.
#[test]
fn a_stranger_sees_nothing() {
    let site = Site::new(Pair::plain(1));
    for headers in [
        "",
        "Cookie: assay-session=\r\n",
        "Cookie: assay-session=0000000000000000000000000000000000000000000000000000000000000000\r\n",
        "Cookie: assay-session=../../x; assay-session=\"\r\n",
        "X-Remote-User: operator\r\nX-Forwarded-User: operator\r\n",
        "Authorization: Basic b3BlcmF0b3I6eA==\r\n",
    ] {
        for path in [
            "/",
            "/wall",
            "/status.json",
            "/repository/repo",
            "/repository/repo/verdict/000000001",
            "/nothing",
        ] {
            let answer = site.ask("GET", path, &format!("{HOST}{headers}"));
            assert_eq!(answer.code, 401, "{headers} {path}: {answer:?}");
            assert!(!answer.text.contains("repo<") && !answer.text.contains("proven"), "{path}: {answer:?}");
            assert!(answer.text.contains("assay-target web login"), "{path}: {answer:?}");
        }
    }
    for path in ["/style.css", "/icon.svg", "/login"] {
        assert_eq!(site.ask("GET", path, HOST).code, 200, "{path}");
    }
}

/// A link opens one session. It is shown without being used, a wrong one and a used one open nothing, and after the logout a copy of the
/// cookie is worth nothing.
#[test]
fn a_link_opens_one_session_and_logout_ends_it() {
    let site = Site::new(Pair::plain(1));
    let secret = link(&site);
    for _ in 0..2 {
        let shown = site.ask("GET", &format!("/login/{secret}"), HOST);
        assert!(shown.code == 200 && shown.text.contains("Open the session"), "{shown:?}");
        assert_eq!(shown.header("set-cookie"), "");
    }
    for wrong in ["", "x", &"0".repeat(64), &secret.to_uppercase(), &secret[..63], &format!("{secret}0")] {
        let refused = post(&site, "/login", "", &format!("link={wrong}"));
        assert!(wrong == secret || refused.code == 401, "{wrong}: {refused:?}");
        assert_eq!(refused.header("set-cookie"), "", "{refused:?}");
    }
    assert_eq!(site.ask("GET", "/login/%3Cscript%3Ealert(1)%3C%2Fscript%3E", HOST).code, 404);
    let opened = post(&site, "/login", "", &format!("link={secret}"));
    assert_eq!((opened.code, opened.header("location")), (303, "/"), "{opened:?}");
    for word in ["HttpOnly", "SameSite=Strict", "Max-Age=43200", "Path=/"] {
        assert!(opened.header("set-cookie").contains(word), "{word}: {opened:?}");
    }
    let again = post(&site, "/login", "", &format!("link={secret}"));
    assert!(again.code == 401 && again.text.contains("was used before"), "{again:?}");
    let session = format!("{HOST}Cookie: {}\r\n", cookie(&opened));
    let page = site.ask("GET", "/", &session);
    assert!(page.code == 200 && page.text.contains("operator") && page.text.contains("Log out"), "{page:?}");
    // A page of elsewhere can neither log in nor out.
    for path in ["/login", "/logout"] {
        let refused = site.send("POST", path, &format!("{session}Origin: http://evil.example\r\n"), "");
        assert_eq!(refused.code, 403, "{refused:?}");
    }
    let closed = site.send("POST", "/logout", &format!("{session}Origin: http://localhost\r\n"), "");
    assert_eq!((closed.code, closed.header("location")), (303, "/login"), "{closed:?}");
    assert!(closed.header("set-cookie").contains("Max-Age=0"), "{closed:?}");
    assert_eq!(site.ask("GET", "/", &session).code, 401, "a copy of the cookie");
    let large = post(&site, "/login", "", &"x".repeat(5_000));
    assert_eq!(large.code, 413, "{large:?}");
    // A restart ends all sessions.
    let before = site.session();
    site.pair.kill("target");
    site.pair.start("target");
    assert_eq!(site.ask("GET", "/", &format!("{HOST}Cookie: {before}\r\n")).code, 401);
}

/// Without the page there is no link, and the command says what to do.
#[test]
fn a_target_without_a_page_has_no_links() {
    let pair = Pair::plain(1);
    let done = pair.target(&["web", "login"]);
    assert_eq!(done.code, 4, "{done:?}");
    assert!(done.stderr.contains("serves no page") && done.stderr.contains("HINT: add [web]"), "{done:?}");
}

/// Users of a file log in by name and password; nobody else does, and no password is cut.
#[test]
fn users_of_the_file_log_in_by_password() {
    let pair = Pair::plain(1);
    let users = pair.path("web-users");
    // As `htpasswd -nbB ann 'a good password'` writes it.
    fs::write(&users, format!("ann:{HASH}\nbob:{{SHA}}x\n")).expect("write");
    fs::set_permissions(&users, fs::Permissions::from_mode(0o600)).expect("chmod");
    let site = Site::with_keys(pair, "users = \"web-users\"\n");
    let good = "name=ann&password=a+good+password";
    let opened = post(&site, "/login", "", good);
    assert_eq!(opened.code, 303, "{opened:?}");
    assert_eq!(site.ask("GET", "/", &format!("{HOST}Cookie: {}\r\n", cookie(&opened))).code, 200);
    for wrong in [
        "name=ann&password=another",
        "name=ann&password=",
        "name=&password=",
        "name=bob&password=x",
        "name=eve&password=x",
        "",
    ] {
        let refused = post(&site, "/login", "", wrong);
        assert!(refused.code == 401 && refused.header("set-cookie").is_empty(), "{wrong}: {refused:?}");
    }
    // A file that others may read is not believed.
    fs::set_permissions(&users, fs::Permissions::from_mode(0o644)).expect("chmod");
    assert_eq!(post(&site, "/login", "", good).code, 401);
}

/// The header of a proxy counts from its address, and from no other.
#[test]
fn a_proxy_is_believed_from_its_address_alone() {
    for (address, code) in [("127.0.0.1", 200), ("192.0.2.9", 401)] {
        let keys = format!("proxy_header = \"X-Remote-User\"\nproxy_addresses = [{address:?}]\n");
        let site = Site::with_keys(Pair::plain(1), &keys);
        let answer = site.ask("GET", "/", &format!("{HOST}X-Remote-User: ann\r\n"));
        assert_eq!(answer.code, code, "{address}: {answer:?}");
        for headers in [
            "X-Remote-User: \r\n",
            "X-Remote-User: ann\r\nX-Remote-User: bob\r\n",
            "X-Remote-Users: ann\r\n",
            "",
        ] {
            let answer = site.ask("GET", "/", &format!("{HOST}{headers}"));
            assert_eq!(answer.code, 401, "{address} {headers}: {answer:?}");
        }
    }
}

/// bcrypt of "a good password", cost 5.
const HASH: &str = "$2b$05$abcdefghijklmnopqrstuudPLndKqNxTJdyGgy8u1tt1GUFSmbwZS";
