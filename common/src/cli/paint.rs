//! Colour for people: words of outcomes and findings, and how long ago something was proven good. NO_COLOR and `--color` decide.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _},
};

use anstyle::{AnsiColor, Style};

/// When output has colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Colour {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Colour {
    /// From now on, for everything that this process prints.
    pub fn install(self) {
        let choice = match self {
            Self::Auto => anstream::ColorChoice::Auto,
            Self::Always => anstream::ColorChoice::AlwaysAnsi,
            Self::Never => anstream::ColorChoice::Never,
        };
        choice.write_global();
    }
}

/// Whether standard output has colours.
pub(super) fn is_coloured() -> bool {
    anstream::AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never
}

/// The columns of the terminal on standard output; `None` where it is none.
pub(super) fn width() -> Option<usize> {
    const LEAST: u16 = 40;
    if !io::stdout().is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok();
    Some(
        size.map(|size| size.ws_col)
            .filter(|columns| *columns >= LEAST)
            .map_or(super::screen::COLUMNS, usize::from),
    )
}

const fn style(colour: AnsiColor) -> Style {
    Style::new().fg_color(Some(anstyle::Color::Ansi(colour)))
}

const GOOD: Style = style(AnsiColor::Green);
const DOUBTFUL: Style = style(AnsiColor::Yellow);
const WRONG: Style = style(AnsiColor::Red).bold();

/// What a line of a checker's or a peer's begins with: no word of it is ours.
const QUOTE: &str = "| ";

fn style_of(word: &str) -> Option<Style> {
    Some(match word {
        "PASS" | "OK" | "TRUSTED" => GOOD,
        "INCONCLUSIVE" | "NOT_RUN" | "WARN" | "WARNING" | "OVERDUE" | "CHANGED" | "STOP" | "TROUBLE"
        | "NOT PROVEN" => DOUBTFUL,
        "FAIL" | "BAD" | "ROTTEN" | "WRONG" | "UNVERIFIED" => WRONG,
        "NOT ENOUGH" | "NOT SOUND" | "NOT HEALED" | "NOT TRUSTED" | "NOT RESTORED" | "NOT VALID" => WRONG,
        _ => return None,
    })
}

/// The text with colours.
pub(super) fn painted(text: &str) -> String {
    let mut painted = String::with_capacity(text.len() + 64);
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    for (index, line) in lines.iter().enumerate() {
        if line.trim_start().starts_with(QUOTE) {
            painted.push_str(line);
            continue;
        }
        let below = lines[index + 1..].iter().take_while(|line| line.starts_with(' '));
        let is_overdue = below.into_iter().any(|line| line.trim_start().starts_with("OVERDUE"));
        match age(line) {
            Some((before, age, after)) => {
                words(before, &mut painted);
                let style = match (age.starts_with("never"), is_overdue) {
                    (true, _) => WRONG,
                    (false, true) => DOUBTFUL,
                    (false, false) => GOOD,
                };
                let _ = write!(painted, "{style}{age}{style:#}");
                words(after, &mut painted);
            }
            None => words(line, &mut painted),
        }
    }
    painted
}

/// A line around "proven good … ago", or around "never proven good".
fn age(line: &str) -> Option<(&str, &str, &str)> {
    const NEVER: &str = "never proven good";
    let (from, length) = match line.find(NEVER) {
        Some(from) => (from, NEVER.len()),
        None => {
            let from = line.find("proven good ")?;
            (from, line[from..].find(" ago")? + " ago".len())
        }
    };
    Some((&line[..from], &line[from..from + length], &line[from + length..]))
}

fn words(text: &str, painted: &mut String) {
    let is_word = |it: char| it.is_ascii_uppercase() || it == '_';
    let mut rest = text;
    while let Some(from) = rest.find(is_word) {
        let (before, after) = rest.split_at(from);
        painted.push_str(before);
        // In the middle of another word it is none.
        let stands_alone = !before.ends_with(|it: char| it.is_alphanumeric() || "-_/.".contains(it));
        let mut end = after.find(|it: char| !is_word(it)).unwrap_or(after.len());
        if &after[..end] == "NOT" && after[end..].starts_with(' ') {
            let more = after[end + 1..].find(|it: char| !is_word(it)).unwrap_or(after.len() - end - 1);
            end += if more > 0 { 1 + more } else { 0 };
        }
        let (word, next) = after.split_at(end);
        let is_whole =
            stands_alone && !next.starts_with(|it: char| it.is_alphanumeric() || "-_/.".contains(it));
        match style_of(word).filter(|_| is_whole) {
            Some(style) => {
                let _ = write!(painted, "{style}{word}{style:#}");
            }
            None => painted.push_str(word),
        }
        rest = next;
    }
    painted.push_str(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a terminal shows it, with marks for the colours.
    fn shown(text: &str) -> String {
        let mut shown = painted(text);
        for (style, mark) in [(GOOD, "{g"), (DOUBTFUL, "{y"), (WRONG, "{r")] {
            shown = shown.replace(&style.render().to_string(), mark);
        }
        shown.replace(&GOOD.render_reset().to_string(), "}")
    }

    #[test]
    fn words_of_outcomes_and_findings_have_colours_and_others_have_none() {
        for (text, expected) in [
            ("PASS  check-passed\n", "{gPASS}  check-passed\n"),
            ("BAD   app: key\nOK    store\n", "{rBAD}   app: key\n{gOK}    store\n"),
            ("1 BAD, 4 WARN, 8 OK\n", "1 {rBAD}, 4 {yWARN}, 8 {gOK}\n"),
            ("room  3 GB free: NOT ENOUGH\n", "room  3 GB free: {rNOT ENOUGH}\n"),
            ("NOT_RUN mass-drop\n", "{yNOT_RUN} mass-drop\n"),
            ("the checker is NOT TRUSTED: x\n", "the checker is {rNOT TRUSTED}: x\n"),
            ("  CHECKER NOT PROVEN: x\n", "  CHECKER {yNOT PROVEN}: x\n"),
            ("/srv/PASS/x BYPASS PASSED PASS-1 NOT so\n", "/srv/PASS/x BYPASS PASSED PASS-1 NOT so\n"),
            ("  | FAIL says the checker\n", "  | FAIL says the checker\n"),
        ] {
            assert_eq!(shown(text), expected);
        }
    }

    #[test]
    fn the_age_of_the_last_proof_has_a_colour_of_its_own() {
        let text = "app: proven good 3 h ago, at\n  OVERDUE    there\nold: proven good 5 min ago, at\nnew: never proven good\n";
        let expected = "app: {yproven good 3 h ago}, at\n  {yOVERDUE}    there\nold: {gproven good 5 min ago}, at\nnew: {rnever proven good}\n";
        assert_eq!(shown(text), expected);
    }

    #[test]
    fn without_colours_the_text_is_what_it_was() {
        let text = "PASS BAD app: proven good 3 h ago\n";
        let plain = painted(text).replace("\u{1b}", "");
        assert!(plain.len() > text.len());
        let bare = anstream::adapter::strip_str(&painted(text)).to_string();
        assert_eq!(bare, text);
    }
}
