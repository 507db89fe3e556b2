//! The frame of every page, the overview, and the wall.
//!
//! Text from elsewhere is escaped twice: as HTML by maud, and control characters and signs that turn the direction of text by
//! [`safe`], as on a terminal. [`finish`] makes sure of the second for a page as a whole.

use assay_common::cli::{
    screen::{harmless, safe},
    show,
};
use jiff::Timestamp;
use maud::{DOCTYPE, Markup, html};

use super::{
    row::{Facts, Level, Row},
    strip,
};

/// How often the wall loads itself again, in seconds.
const WALL_REFRESH_SECONDS: u32 = 30;

/// A page whose every character is harmless.
pub(super) fn finish(page: Markup) -> String {
    let page = page.into_string();
    harmless(&page).into_owned()
}

/// What a frame needs.
pub(super) struct Frame<'a> {
    /// Title of the page.
    pub(super) title: &'a str,
    /// Name of the agent.
    pub(super) agent: &'a str,
    /// When the page was made.
    pub(super) now: Timestamp,
    /// Loads itself again after so many seconds, and has no links.
    pub(super) refresh: Option<u32>,
    /// Who looks at it; none on the page to log in.
    pub(super) who: Option<&'a str>,
}

pub(super) fn time(time: Timestamp) -> Markup {
    html! { time datetime=(time.strftime("%Y-%m-%dT%H:%M:%SZ")) { (time.strftime("%Y-%m-%d %H:%M:%SZ")) } }
}

/// The frame around `body`.
pub(super) fn frame(frame: &Frame<'_>, body: Markup) -> String {
    let is_wall = frame.refresh.is_some();
    finish(html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                @if let Some(seconds) = frame.refresh {
                    meta http-equiv="refresh" content=(seconds);
                }
                title { (safe(frame.title)) }
                link rel="icon" href="/icon.svg" type="image/svg+xml";
                link rel="stylesheet" href="/style.css";
            }
            body .wall[is_wall] {
                (strip::patterns())
                header .top {
                    @if is_wall {
                        p .brand { (mark()) "Assay" }
                    } @else {
                        a .brand href="/" { (mark()) "Assay" }
                    }
                    p .agent { (safe(frame.agent)) }
                    @if !is_wall && frame.who.is_some() {
                        nav { a href="/" { "Repositories" } a href="/wall" { "Wall" } a href="/status.json" { "JSON" } }
                    }
                    p .as-of { "as of " (time(frame.now)) }
                    @if let Some(who) = frame.who.filter(|_| !is_wall) {
                        form .logout method="post" action="/logout" { span .muted { (safe(who)) } " " button type="submit" { "Log out" } }
                    }
                }
                main { (body) }
                @if !is_wall {
                    footer {
                        "assay-target " (env!("CARGO_PKG_VERSION"))
                        ". This page shows what " code { "assay-target status" } " and " code { "explain" } " say, and changes nothing."
                    }
                }
            }
        }
    })
}

/// The sign beside the name: a coin under a touchstone's stroke.
fn mark() -> Markup {
    html! {
        svg .mark viewBox="0 0 20 20" aria-hidden="true" {
            circle cx="10" cy="10" r="8.5" {}
            path d="M5.8 10.4l2.9 2.9 5.6-6.2" {}
        }
    }
}

fn counted_levels(rows: &[Row]) -> Markup {
    let count = |level: Level| rows.iter().filter(|row| row.level == level).count();
    html! {
        p .totals {
            @for level in [Level::Bad, Level::Warn, Level::Good] {
                @let count = count(level);
                span class=(if count == 0 { "total zero" } else { "total" }) {
                    i class=(format!("dot {}", level.class())) {} b { (count) } " " (level.word())
                }
            }
        }
    }
}

/// All repositories, the most urgent first.
pub(super) fn overview(rows: &[Row], troubles: &[String], checks: Option<&str>) -> Markup {
    html! {
        div .summary {
            h1 { "When was each repository last proven good?" }
            (counted_levels(rows))
        }
        @if !troubles.is_empty() {
            section .troubles {
                h2 { "Trouble of the agent itself" }
                ul { @for trouble in troubles { li { (safe(trouble)) } } }
            }
        }
        @if let Some(checks) = checks { p .muted { (checks) } }
        (strip::legend())
        @for row in rows { (one(row)) }
        @if rows.is_empty() { p { "This target has no repository yet." } }
    }
}

/// The path of a repository's page. Names have letters, digits, '-' and '_' alone; whatever else there were would be no path.
pub(super) fn path_of(name: &str) -> String {
    let plain: String =
        name.chars().filter(|it| it.is_ascii_alphanumeric() || matches!(it, '-' | '_')).collect();
    format!("/repository/{plain}")
}

/// How old the newest proof is, as the largest words of a row.
pub(super) fn proven(facts: Option<&Facts>) -> Markup {
    let Some(facts) = facts else { return html! { p .age { b { "unknown" } } } };
    let status = &facts.status;
    html! {
        @if facts.is_proven {
            p .age { "proven good " b { (show::age(status.last_pass_age_seconds)) } " ago" }
            p .muted .when {
                @if let Some(verified) = &status.verified {
                    "mark " (show::time(verified.mark.as_ref().and_then(|mark| mark.time.as_ref())))
                    ", generation " (verified.number)
                }
                @if status.overdue_after_seconds > 0 { ", limit " (show::age(status.overdue_after_seconds)) }
                @else { ", no limit is set (max_age)" }
            }
        } @else {
            p .age { b { "never" } " proven good" }
            @if status.overdue_after_seconds > 0 { p .muted .when { "limit " (show::age(status.overdue_after_seconds)) } }
        }
    }
}

/// What came out last, and what is under way.
pub(super) fn newest(facts: &Facts, now: Timestamp) -> Markup {
    let status = &facts.status;
    let since: Vec<_> =
        [("FAIL", facts.since[0]), ("INCONCLUSIVE", facts.since[1]), ("NOT_RUN", facts.since[2])]
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .map(|(word, count)| format!("{count} {word}"))
            .collect();
    html! {
        @match &facts.newest {
            Some(newest) => {
                @let (word, class) = strip::OUTCOMES[strip::place(newest.outcome)];
                p .outcome {
                    span class=(format!("badge {class}")) { (word) } " " (safe(&newest.reason))
                }
                p .muted {
                    @if let Some(generation) = newest.generation { "generation " (generation) ", " }
                    (show::ago(Some(&assay_common::verdict::timestamp_to_proto(newest.signed)), now))
                }
            }
            None => p .outcome .muted { "no verdict yet" },
        }
        @if !since.is_empty() { p { "since the newest proof: " b { (since.join(", ")) } } }
        @if !status.doing.is_empty() { p { "now: " (safe(&status.doing)) } }
        @if let Some(wait) = &status.check_wait { p { "waits for a check slot, " (show::queued(wait.before as usize)) } }
    }
}

pub(super) fn plots(facts: &Facts) -> Markup {
    html! {
        div .plots {
            (strip::plot("size", &facts.sizes, &|value| show::bytes(value as u64)))
            (strip::plot("check", &facts.checks, &|value| show::took(value as u64)))
        }
    }
}

pub(super) fn whys(row: &Row) -> Markup {
    html! {
        @if !row.why.is_empty() { ul .why { @for why in &row.why { li { (why) } } } }
    }
}

pub(super) fn sure(facts: &Facts) -> Markup {
    html! {
        dl .sure {
            @for (name, value) in &facts.sure { div { dt { (name) } dd { (value) } } }
        }
    }
}

fn state(row: &Row) -> Markup {
    html! {
        span class=(format!("state {}", row.level.class())) { i class=(format!("dot {}", row.level.class())) {} (row.level.word()) }
    }
}

/// The head of a row: its name, its state, and the age of its proof.
pub(super) fn head(row: &Row, link: bool) -> Markup {
    let name = safe(&row.name);
    html! {
        div .name-line {
            @if link { h2 { a href=(path_of(&row.name)) { (name) } } }
            @else { h1 { (name) } }
            (state(row))
        }
        @if let Some(alias) = &row.alias { p .muted { "alias " (safe(alias)) } }
        (proven(row.facts.as_ref()))
    }
}

fn one(row: &Row) -> Markup {
    html! {
        article class=(format!("row {}", row.level.class())) {
            div .left { (head(row, true)) (whys(row)) }
            @if let Some(facts) = &row.facts {
                div .middle { (strip::strip(&facts.days, row.now, false)) (sure(facts)) }
                div .right { (newest(facts, row.now)) (plots(facts)) }
            }
        }
    }
}

/// The wall: what can be read from across a room. No links.
pub(super) fn wall(rows: &[Row]) -> Markup {
    html! {
        (counted_levels(rows))
        div .tiles {
            @for row in rows {
                section class=(format!("tile {}", row.level.class())) {
                    h2 { (safe(&row.name)) }
                    @match &row.facts {
                        Some(facts) => {
                            p .age {
                                @if facts.is_proven { (show::age(facts.status.last_pass_age_seconds)) } @else { "never" }
                            }
                            p .outcome {
                                (row.level.word())
                                @if let Some(newest) = &facts.newest { " · " (strip::OUTCOMES[strip::place(newest.outcome)].0) }
                            }
                            (strip::strip(&facts.days, row.now, false))
                        }
                        None => p .age { "?" },
                    }
                }
            }
        }
    }
}

/// The wall's own frame.
pub(super) fn wall_frame(agent: &str, now: Timestamp) -> Frame<'_> {
    Frame { title: "Assay: wall", agent, now, refresh: Some(WALL_REFRESH_SECONDS), who: None }
}

/// A page that says why there is no page.
pub(super) fn message(title: &str, text: &str) -> Markup {
    html! { section .message { h1 { (title) } p { (text) } p { a href="/" { "All repositories" } } } }
}
