//! What fits a terminal that nobody has widened: rows of two columns, and text from elsewhere without what a terminal would obey.

use std::{borrow::Cow, fmt::Write as _};

use crate::path::{display_bytes, is_harmful};

/// Columns of such a terminal.
pub const COLUMNS: usize = 80;
/// Where the second column begins.
const INDENT: usize = 13;

/// Text that came from elsewhere, its control characters escaped.
pub fn safe(text: &str) -> String {
    display_bytes(text.as_bytes())
}

/// A text of several lines whose harmful characters are escaped. Whatever part of a program prints, it prints through this.
pub fn harmless(text: &str) -> Cow<'_, str> {
    let is_harmless = |it: char| it == '\n' || it == '\t' || !is_harmful(it);
    if text.chars().all(is_harmless) {
        return Cow::Borrowed(text);
    }
    let mut harmless = String::with_capacity(text.len());
    for character in text.chars() {
        match is_harmless(character) {
            true => harmless.push(character),
            false => harmless.extend(character.escape_default()),
        }
    }
    Cow::Owned(harmless)
}

/// Makes JSON harmless for a terminal by its own escapes. Only strings hold such characters, so the values stay what they are.
pub fn harmless_json(text: &str) -> Cow<'_, str> {
    let is_harmless = |it: char| it.is_ascii() && it != '\u{7f}' || !is_harmful(it);
    if text.chars().all(is_harmless) {
        return Cow::Borrowed(text);
    }
    let mut harmless = String::with_capacity(text.len());
    for character in text.chars() {
        if is_harmless(character) {
            harmless.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                let _ = write!(harmless, "\\u{unit:04x}");
            }
        }
    }
    Cow::Owned(harmless)
}

/// A count with its word: `1 file`, `2 files`.
pub fn counted(count: u64, one: &str, several: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { several })
}

/// Adds a row: a name, and a value that is wrapped at its spaces. A word that is wider than the column is left whole: paths are there
/// to be copied.
pub fn row(text: &mut String, name: &str, value: &str) {
    // Spaces at the front pad a number.
    let inner = value.trim_start_matches(' ');
    let (mut name, mut line) = (name, " ".repeat(value.len() - inner.len()));
    for (index, word) in inner.split(' ').enumerate() {
        if index > 0 && INDENT + line.chars().count() + 1 + word.chars().count() > COLUMNS {
            let _ = writeln!(text, "{name:<INDENT$}{}", line.trim_end());
            (name, line) = ("", word.to_owned());
            continue;
        }
        if index > 0 {
            line.push(' ');
        }
        line.push_str(word);
    }
    let _ = writeln!(text, "{name:<INDENT$}{}", line.trim_end());
}

/// Adds a text of several lines: the first beside `name`, the others below it.
pub fn lines(text: &mut String, name: &str, value: &str) {
    for (index, line) in value.lines().enumerate() {
        row(text, if index == 0 { name } else { "" }, &safe(line));
    }
}

/// Lines of at most `columns`, what is left of one two columns further in. A word that does not fit stays whole,
/// and so does a command.
pub(super) fn folded(text: &str, columns: usize) -> String {
    let mut folded = String::new();
    for line in text.lines() {
        let inner = line.trim_start_matches(' ');
        if inner.starts_with("assay-source ") || inner.starts_with("assay-target ") {
            // A command is there to be copied.
            let _ = writeln!(folded, "{line}");
            continue;
        }
        let indent = line.len() - inner.len();
        let mut column = indent;
        folded.push_str(&line[..indent]);
        for (index, word) in inner.split(' ').enumerate() {
            let width = word.chars().count();
            if index > 0 && column + 1 + width > columns && width > 0 {
                let _ = write!(folded, "\n{:1$}{word}", "", indent + 2);
                column = indent + 2 + width;
                continue;
            }
            if index > 0 {
                folded.push(' ');
                column += 1;
            }
            folded.push_str(word);
            column += width;
        }
        folded.push('\n');
    }
    folded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_wrapped_at_words_and_keep_their_columns() {
        let mut text = String::new();
        row(&mut text, "short", "one two");
        row(&mut text, "", "    4.1 kB  base/1");
        row(&mut text, "long", &"word ".repeat(40));
        lines(&mut text, "told", "a \u{1b}[2J b\nHINT: c");
        assert!(
            text.starts_with("short        one two\n                 4.1 kB  base/1\nlong         word word"),
            "{text}"
        );
        assert!(text.lines().all(|line| line.chars().count() <= COLUMNS), "{text}");
        assert_eq!(text.matches("word").count(), 40);
        assert!(!text.contains('\u{1b}') && text.ends_with("\n             HINT: c\n"), "{text}");
    }

    /// Escape sequences, links, carriage returns, signs without width or against the direction: none comes through, in text and
    /// in JSON, and what JSON says stays the same.
    #[test]
    fn nothing_that_a_terminal_obeys_is_printed() {
        let text = "FAIL \u{1b}[2J\u{1b}]8;;http://x\u{7}here\u{1b}]8;;\u{7}\rPASS\u{9b}8m\u{202e}\u{200b}\u{2028}\u{e0041}\nnext\tcolumn";
        let shown = harmless(text);
        assert!(shown.chars().all(|it| it == '\n' || it == '\t' || !is_harmful(it)), "{shown:?}");
        assert_eq!(shown.lines().count(), 2);
        assert!(shown.contains("\\rPASS\\u{9b}8m\\u{202e}"), "{shown}");
        assert!(matches!(harmless("plain: Zoë\n"), Cow::Borrowed(_)));
        let value = serde_json::json!({ "text": text });
        let line = value.to_string();
        let shown = harmless_json(&line);
        assert!(!shown.chars().any(is_harmful), "{shown:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).expect("JSON"), value);
    }

    #[test]
    fn one_is_one() {
        let words = [0, 1, 2].map(|count| counted(count, "entry", "entries"));
        assert_eq!(words, ["0 entries", "1 entry", "2 entries"]);
    }

    #[test]
    fn long_lines_are_folded_at_words() {
        let long = format!("  {}end", "word ".repeat(20));
        let folded = folded(&format!("short  line\n{long}\n"), COLUMNS);
        let lines: Vec<_> = folded.lines().collect();
        assert_eq!(lines[0], "short  line");
        assert!(lines.iter().all(|line| line.chars().count() <= COLUMNS), "{folded}");
        assert!(
            lines.len() == 3 && lines[2].starts_with("    word") && lines[2].ends_with(" end"),
            "{folded}"
        );
        let path = format!("  {}", "/folder".repeat(20));
        assert_eq!(super::folded(&path, COLUMNS), format!("{path}\n"));
    }
}
