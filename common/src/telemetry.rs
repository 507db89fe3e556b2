//! Logs of the services: to standard error, plain or JSON. Every line of a run has its id, from a span ([`of_run`]) that whoever works for
//! the run is in; threads and tasks do not inherit it.
//!
//! A log is best effort. Lines go through a bounded queue to a thread of their own, so that neither a full disk nor a reader that hangs
//! or has left holds anything up. Lines that are lost are counted ([`lost_lines`]).

use std::{
    io::{self, IsTerminal as _, Write},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::Deserialize;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use crate::{
    cli::screen,
    trouble::{self, Kind},
};

/// Lines that wait for a slow reader, at most.
const MAX_WAITING_LINES: usize = 4096;
/// The variable with the level.
const LEVEL: &str = "ASSAY_LOG";

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// A line for a person.
    #[default]
    Plain,
    /// A JSON object a line.
    Json,
}

/// What waits goes out when this is dropped.
static WAITING: Mutex<Option<(WorkerGuard, ErrorCounter)>> = Mutex::new(None);
/// Lines that could not be written.
static UNWRITTEN: AtomicU64 = AtomicU64::new(0);

/// Installs the subscriber of this process. The level comes from `ASSAY_LOG` (for example `debug`, or
/// `agent_target=debug`), else it is `info`.
pub fn install(format: LogFormat) {
    let (filter, fault) = filter(std::env::var(LEVEL).ok().as_deref());
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(MAX_WAITING_LINES)
        .thread_name("log")
        .finish(BestEffort {
            out: io::stderr(),
            format,
            colours: format == LogFormat::Plain && io::stderr().is_terminal(),
        });
    let counter = writer.error_counter();
    *WAITING.lock().unwrap_or_else(PoisonError::into_inner) = Some((guard, counter));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        // The library would say on standard error that it cannot be written, and panic.
        .log_internal_errors(false);
    // A second subscriber (in a test) is not an error worth ending for.
    drop(match format {
        LogFormat::Plain => builder.with_ansi(io::stderr().is_terminal()).with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_span_list(false).try_init(),
    });
    if let Some(fault) = fault {
        tracing::warn!("{fault}");
    }
}

/// The filter for the text of `ASSAY_LOG`, and what is wrong with it. No text makes the log silent, unless it says `off`.
fn filter(text: Option<&str>) -> (EnvFilter, Option<String>) {
    let text = text.map(str::trim).filter(|text| !text.is_empty()).unwrap_or("info");
    let parts = || text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let is_level = |part: &str| part.parse::<LevelFilter>().is_ok();
    // A lone word that is no level would be taken for the name of a module, and all others would be silent.
    let nonsense = parts().find(|part| !part.contains(['=', '[']) && !is_level(part));
    let has_level = parts().any(is_level);
    let whole = if has_level { text.to_owned() } else { format!("info,{text}") };
    let parsed = EnvFilter::try_new(whole).map_err(|error| error.to_string());
    let fault = match (&parsed, nonsense) {
        (Err(error), _) => error.clone(),
        (Ok(_), Some(word)) => format!("{word:?} is no level"),
        (Ok(_), None) => return (parsed.unwrap_or_else(|_| EnvFilter::new("info")), None),
    };
    let told = format!(
        "{LEVEL}={text:?} is not understood ({fault}): the level is info; \
         it must be error, warn, info, debug, trace or off, or MODULE=LEVEL, with commas between"
    );
    (EnvFilter::new("info"), Some(told))
}

/// Lines of the log that were lost since the process started: too many waited, or they could not be written.
pub fn lost_lines() -> u64 {
    let waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
    let dropped = waiting.as_ref().map_or(0, |(_, counter)| counter.dropped_lines() as u64);
    dropped + UNWRITTEN.load(Ordering::Relaxed)
}

/// Notes it when lines were dropped since the last look: the reader of the log is too slow, or hangs. The next line that is written clears
/// that.
pub fn look_for_dropped() {
    static SEEN: AtomicU64 = AtomicU64::new(0);
    let dropped = lost_lines().saturating_sub(UNWRITTEN.load(Ordering::Relaxed));
    if dropped > SEEN.swap(dropped, Ordering::Relaxed) {
        let text = format!(
            "the reader of the log hangs or is too slow: {dropped} lines were dropped since the start"
        );
        trouble::note(Kind::LogUnwritable, "", text);
    }
}

/// Writes the lines that wait, for a second at most. For the end of the process.
pub fn flush() {
    let waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner).take();
    drop(waiting);
}

/// A writer that never fails: what it cannot write it counts. It gets one whole line at a time.
struct BestEffort<W> {
    out: W,
    format: LogFormat,
    /// The library writes its own colours, as escape sequences. It escapes those of values.
    colours: bool,
}

/// A line of the log as it is written: whatever a terminal would obey, and whatever would begin a further line, is escaped.
fn safe_line(line: &[u8], format: LogFormat, colours: bool) -> Vec<u8> {
    let text = crate::error::without_codes(&String::from_utf8_lossy(line));
    let (text, end) = text.strip_suffix('\n').map_or((&*text, ""), |text| (text, "\n"));
    let safe = match format {
        LogFormat::Json => screen::harmless_json(text).into_owned(),
        LogFormat::Plain if colours => safe_beside_colours(text),
        LogFormat::Plain => screen::safe(text),
    };
    format!("{safe}{end}").into_bytes()
}

/// Escapes everything but colours.
fn safe_beside_colours(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let mut safe = parts.next().map(screen::safe).unwrap_or_default();
    for part in parts {
        let digits = part.trim_start_matches(|it: char| it.is_ascii_digit() || it == ';');
        safe.push_str(if digits.starts_with('m') { "\u{1b}[" } else { "\\u{1b}[" });
        safe.push_str(&screen::safe(part));
    }
    safe
}

impl<W: Write> Write for BestEffort<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.out.write_all(&safe_line(line, self.format, self.colours)) {
            Ok(()) => trouble::clear(Kind::LogUnwritable, ""),
            Err(error) => {
                UNWRITTEN.fetch_add(1, Ordering::Relaxed);
                trouble::note(Kind::LogUnwritable, "", format!("the log cannot be written: {error}"));
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        drop(self.out.flush());
        Ok(())
    }
}

/// The span of everything that is done for a run: `run{run_id=…}` in plain lines, `span.run_id` in JSON.
pub fn of_run(id: &impl std::fmt::Display) -> tracing::Span {
    tracing::info_span!("run", run_id = %id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_silences_the_log_by_mistake() {
        for (text, expected, is_fault) in [
            (None, "info", false),
            (Some(""), "info", false),
            (Some("debug"), "debug", false),
            (Some("WARN"), "warn", false),
            (Some("off"), "off", false),
            (Some("nonsense"), "info", true),
            (Some("info,nonsense"), "info", true),
            (Some("agent_target=loud"), "info", true),
            (Some("=,="), "info", true),
        ] {
            let (filter, fault) = filter(text);
            assert_eq!(filter.to_string(), expected, "{text:?}");
            assert_eq!(fault.is_some(), is_fault, "{text:?}: {fault:?}");
        }
        let (filter, fault) = filter(Some("agent_target=debug"));
        assert!(filter.to_string().contains("info") && fault.is_none(), "{filter}");
    }

    fn best_effort<W>(out: W) -> BestEffort<W> {
        BestEffort { out, format: LogFormat::Plain, colours: false }
    }

    /// What a checker, a peer or a file's name says can neither begin a line of the log nor drive the terminal that shows it.
    #[test]
    fn a_value_cannot_forge_a_line_of_the_log() {
        let line = "ERROR told: a\nINFO all is good\r\u{1b}[2J\u{202e}\n".as_bytes();
        let mut writer = best_effort(Vec::new());
        writer.write_all(line).expect("it never fails");
        let shown = r"ERROR told: a\nINFO all is good\r\u{1b}[2J\u{202e}";
        assert_eq!(String::from_utf8_lossy(&writer.out), format!("{shown}\n"));
        let with_colours =
            safe_line("\u{1b}[31mERROR\u{1b}[0m a\u{1b}[2J\u{1b}]8;;\n".as_bytes(), LogFormat::Plain, true);
        assert_eq!(
            String::from_utf8_lossy(&with_colours),
            "\u{1b}[31mERROR\u{1b}[0m a\\u{1b}[2J\\u{1b}]8;;\n"
        );
        let json = safe_line("{\"a\":\"\u{202e}\"}\n".as_bytes(), LogFormat::Json, false);
        assert_eq!(String::from_utf8_lossy(&json), "{\"a\":\"\\u202e\"}\n");
    }

    #[test]
    fn a_writer_that_fails_is_counted_and_never_fails() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::StorageFull.into())
            }
        }
        let before = UNWRITTEN.load(Ordering::Relaxed);
        let mut writer = best_effort(Full);
        assert_eq!(writer.write(b"a line\n").expect("it never fails"), 7);
        writer.flush().expect("it never fails");
        assert!(UNWRITTEN.load(Ordering::Relaxed) > before);
        assert!(trouble::all().iter().any(|trouble| trouble.kind == Kind::LogUnwritable));
        assert_eq!(best_effort(Vec::new()).write(b"a line\n").expect("it never fails"), 7);
        assert!(trouble::all().iter().all(|trouble| trouble.kind != Kind::LogUnwritable));
    }
}
