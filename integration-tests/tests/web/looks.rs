//! The pages in a real browser, at the width of a desk and of a telephone, light and dark. `ASSAY_SCREENSHOTS=DIR ./test web` keeps pictures.

use std::fs;

use assay_common::verdict::Outcome;

use crate::{
    browser::{Browser, LOOKS, Look},
    fleet::{self, USUAL},
    pair::Pair,
    past::Planned,
    site::Site,
};

/// Text that a reader can hardly tell from its ground: contrast below 4.5 (WCAG 2.1, level AA), or 3 for large text.
const FAINT: &str = r#"
const rgb = text => (text.match(/[\d.]+/g) || []).map(Number);
const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(it => { it /= 255; return it <= 0.03928 ? it / 12.92 : ((it + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const ground = element => {
    for (; element; element = element.parentElement) {
        const colour = rgb(getComputedStyle(element).backgroundColor);
        if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
};
const faint = [];
for (const element of document.querySelectorAll('body *')) {
    if (element.closest('svg') || ![...element.childNodes].some(it => it.nodeType === 3 && it.textContent.trim())) continue;
    const style = getComputedStyle(element);
    const [one, other] = [light(rgb(style.color)), light(ground(element))].sort((a, b) => b - a);
    const size = parseFloat(style.fontSize);
    const least = size >= 24 || (size >= 18.66 && style.fontWeight >= 600) ? 3 : 4.5;
    const contrast = (one + 0.05) / (other + 0.05);
    if (contrast < least) faint.push(`${contrast.toFixed(2)} ${element.tagName}.${element.className}: ${element.textContent.trim().slice(0, 40)}`);
}
return faint;
"#;

/// What sticks out of the page to the right.
const WIDE: &str = r#"
const most = document.documentElement.clientWidth;
const wide = document.documentElement.scrollWidth > most ? [`the page: ${document.documentElement.scrollWidth}`] : [];
for (const element of document.querySelectorAll('main *, header *, footer *')) {
    if (element.closest('.scroll') || element.closest('svg')) continue;
    const right = element.getBoundingClientRect().right;
    if (right > most + 1) wide.push(`${element.tagName}.${element.className}: ${right}`);
}
return wide;
"#;

fn strings(value: &serde_json::Value) -> Vec<String> {
    value.as_array().expect("a list").iter().map(|it| it.as_str().unwrap_or_default().to_owned()).collect()
}

/// Gives a browser a session.
fn log_in(browser: &Browser, site: &Site) {
    let (name, value) = {
        let session = site.session();
        let (name, value) = session.split_once('=').expect("a cookie");
        (name.to_owned(), value.to_owned())
    };
    browser.open(&format!("http://127.0.0.1:{}/login", site.port));
    browser.set_cookie(&name, &value);
}

/// The page that is open fits its width, can be read, ran no script, and the browser complains of nothing.
fn assert_readable(browser: &Browser, look: Look, path: &str) {
    let faults = [
        ("too wide", strings(&browser.script(WIDE))),
        ("too faint", strings(&browser.script(FAINT))),
        ("complaints", browser.complaints()),
    ];
    for (what, found) in faults {
        assert!(found.is_empty(), "{path} at {look:?}: {what}: {found:#?}");
    }
    assert_eq!(browser.script("return document.scripts.length"), 0, "{path}");
    let dark = browser.script("return matchMedia('(prefers-color-scheme: dark)').matches");
    assert_eq!(dark, look.dark, "{path}");
}

#[test]
fn every_page_is_readable_on_a_desk_and_on_a_telephone_light_and_dark() {
    let site = fleet::site(Pair::plain(1), USUAL);
    for name in ["orders-postgresql", "billing-postgresql"] {
        let is_verified =
            || site.page(&format!("/repository/{name}")).contains("every signature and link verified");
        site.pair.eventually("the ledger is verified", is_verified);
    }
    let pages = [
        ("overview", "/"),
        ("wall", "/wall"),
        ("good", "/repository/orders-postgresql"),
        ("failed", "/repository/billing-postgresql"),
        ("new", "/repository/new-wiki"),
        ("login", "/login"),
        ("missing", "/nothing"),
    ];
    for look in LOOKS {
        let browser = Browser::start(look);
        log_in(&browser, &site);
        drop(browser.complaints());
        for (name, path) in pages {
            browser.open(&format!("http://127.0.0.1:{}{path}", site.port));
            if let Some(folder) = fleet::screenshots() {
                let mode = if look.dark { "dark" } else { "light" };
                fs::write(folder.join(format!("{name}-{}-{mode}.png", look.width)), browser.picture())
                    .expect("write");
            }
            if path == "/nothing" {
                // That it is missing is a complaint of every browser's.
                drop(browser.complaints());
            }
            assert_readable(&browser, look, path);
        }
    }
}

/// The link in a browser: a click opens the session, no script can read its cookie, and a click ends it.
#[test]
fn a_person_logs_in_and_out() {
    let site = Site::new(Pair::plain(1));
    let link = site.link();
    let browser = Browser::start(LOOKS[0]);
    browser.open(&link);
    assert!(browser.text().contains("Open the session"), "{}", browser.text());
    browser.click("button");
    assert_eq!(browser.address(), format!("http://127.0.0.1:{}/", site.port));
    assert!(browser.text().contains("repo"), "{}", browser.text());
    assert_eq!(browser.script("return document.cookie"), "", "no script reads it");
    let cookies = browser.cookies();
    assert!(
        cookies.len() == 1 && cookies[0]["httpOnly"] == true && cookies[0]["sameSite"] == "Strict",
        "{cookies:?}"
    );
    browser.click(".row h2 a");
    assert!(browser.text().contains("Generations"), "{}", browser.text());
    assert_eq!(browser.complaints(), Vec::<String>::new());
    browser.click(".logout button");
    assert!(browser.cookies().is_empty());
    browser.open(&format!("http://127.0.0.1:{}/", site.port));
    assert!(browser.text().contains("assay-target web login"), "{}", browser.text());
    browser.open(&link);
    browser.click("button");
    assert!(browser.text().contains("was used before"), "{}", browser.text());
}

/// What an attacker can bring into a verdict is text in a browser, too: nothing runs, nothing is loaded, nothing turns around.
#[test]
fn hostile_text_does_nothing_in_a_browser() {
    let attack = "</pre><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"><style>*{display:none}</style>";
    let mut planned = Planned::pass(jiff::Timestamp::now());
    planned.outcome = Outcome::Fail;
    planned.reason = "<svg onload=alert(1)>";
    planned.message = format!("{attack}\u{202e}\u{1b}[2J");
    let site = Site::with_past(Pair::plain(1), &[planned]);
    let browser = Browser::start(LOOKS[0]);
    log_in(&browser, &site);
    drop(browser.complaints());
    for path in ["/", "/wall", "/repository/repo", "/repository/repo/verdict/000000001"] {
        browser.open(&format!("http://127.0.0.1:{}{path}", site.port));
        assert_readable(&browser, LOOKS[0], path);
        let title = browser.script("return document.title");
        assert!(title.as_str().is_some_and(|title| title.contains("Assay")), "{title}");
        let made =
            browser.script("return document.querySelectorAll('img, style, [onload], [onerror]').length");
        assert_eq!(made, 0, "{path}");
        assert!(browser.text().contains("repo"), "{path}: {}", browser.text());
    }
    assert!(browser.text().contains("<script>document.title='owned'</script>"), "{}", browser.text());
}
