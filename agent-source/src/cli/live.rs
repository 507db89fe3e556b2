//! `watch` without a run, on a terminal: all repositories on one screen, renewed twice a second until Ctrl-C.

use std::{
    collections::HashMap,
    io,
    time::{Duration, Instant},
};

use assay_common::{
    cli::{
        CommandError, coloured,
        screen::{counted, safe},
        show,
    },
    verdict::timestamp_from_proto,
};
use assay_proto::v1::{
    GetStatusRequest, GetStatusResponse, Phase, RepositoryStatus, Run,
    source_service_client::SourceServiceClient,
};
use console::{Term, measure_text_width, truncate_str};
use jiff::Timestamp;
use tonic::{Status, transport::Channel};

use super::follow::{Rate, seconds_left, shown_bytes, step_name};

/// Often enough for the eye; an answer has about a kilobyte a repository.
const EVERY: Duration = Duration::from_millis(500);
/// Columns of a bar.
const BAR: usize = 16;
/// Columns that are used where the terminal does not say how many it has.
const COLUMNS: usize = 80;
/// Lines of a repository.
const LINES: usize = 2;

/// Shows the view until Ctrl-C.
///
/// # Errors
/// When the agent cannot be asked, or the terminal not be written to.
pub(super) async fn watch(
    client: &mut SourceServiceClient<Channel>,
    failed: impl Fn(Status) -> CommandError,
) -> Result<(), CommandError> {
    let broken =
        |error: io::Error| CommandError::not_run(format!("the terminal cannot be written to: {error}"));
    let term = Term::stdout();
    let mut rates = HashMap::new();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    term.clear_screen().map_err(broken)?;
    term.hide_cursor().map_err(broken)?;
    let ended = loop {
        tokio::select! {
            _ = ticks.tick() => {}
            interrupted = tokio::signal::ctrl_c() => break interrupted.map_err(broken),
        }
        let status = match client.get_status(GetStatusRequest {}).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => break Err(failed(status)),
        };
        let (rows, columns) = term
            .size_checked()
            .map_or((usize::MAX, COLUMNS), |(rows, columns)| (usize::from(rows), usize::from(columns)));
        let lines = frame(&status, &mut rates, Instant::now(), (rows, columns));
        if let Err(error) = draw(&term, &lines) {
            break Err(broken(error));
        }
    };
    term.show_cursor().map_err(broken)?;
    ended
}

/// Writes each line over the one that is there, so that nothing flickers.
fn draw(term: &Term, lines: &[String]) -> io::Result<()> {
    term.move_cursor_to(0, 0)?;
    for line in lines {
        term.clear_line()?;
        term.write_line(&coloured(line))?;
    }
    term.clear_to_end_of_screen()
}

/// What is on the screen: at most as many lines and columns as there are, the last line of the screen left free for the cursor.
fn frame(
    status: &GetStatusResponse,
    rates: &mut HashMap<String, Rate>,
    now: Instant,
    (rows, columns): (usize, usize),
) -> Vec<String> {
    let time = status.now.as_ref().and_then(timestamp_from_proto).unwrap_or_else(Timestamp::now);
    let head = format!("{} (assay-source {})", safe(&status.agent), safe(&status.version));
    let clock = format!("{}  Ctrl-C leaves, runs go on", time.strftime("%H:%M:%SZ"));
    let mut lines = vec![spread(&head, &clock, columns)];
    let troubles: Vec<_> =
        status.troubles.iter().map(|trouble| format!("TROUBLE {}", safe(trouble))).collect();
    let room = rows.saturating_sub(2 + troubles.len().min(3));
    let shown = match status.repositories.len() * LINES <= room {
        true => status.repositories.len(),
        // One line says how many there are beside.
        false => (room.saturating_sub(1) / LINES).max(1),
    };
    for repository in status.repositories.iter().take(shown) {
        let rate = rates.entry(repository.repository.clone()).or_default();
        lines.extend(one(repository, rate, time, now, columns));
    }
    if shown < status.repositories.len() {
        lines.push(format!("... and {} more: assay-source status", status.repositories.len() - shown));
    }
    lines.extend(troubles.into_iter().take(3));
    let mut lines: Vec<_> =
        lines.into_iter().map(|line| truncate_str(&line, columns, "...").into_owned()).collect();
    lines.truncate(rows.saturating_sub(1).max(1));
    lines
}

/// Two texts at the ends of a line, the second left out where both do not fit.
fn spread(left: &str, right: &str, columns: usize) -> String {
    let used = measure_text_width(left) + measure_text_width(right);
    match columns.checked_sub(used) {
        Some(free) if free > 1 => format!("{left}{}{right}", " ".repeat(free)),
        _ => left.to_owned(),
    }
}

/// When it was last proven good and when it runs again; below that what is being done, or how it ended.
fn one(
    repository: &RepositoryStatus,
    rate: &mut Rate,
    time: Timestamp,
    now: Instant,
    columns: usize,
) -> [String; LINES] {
    let name = safe(&repository.repository);
    let proven = match &repository.last_pass {
        None => "never proven good".to_owned(),
        Some(run) => {
            let age = show::age(repository.last_pass_age_seconds);
            format!("proven good {age} ago, generation {}", run.generation)
        }
    };
    let max_age = repository.max_age_seconds;
    let is_overdue =
        max_age > 0 && repository.last_pass.is_some() && repository.last_pass_age_seconds > max_age;
    let overdue = if is_overdue { "  OVERDUE" } else { "" };
    let next = match &repository.next_run {
        Some(next) => format!("next run {}", show::until(Some(next), time)),
        None => "not scheduled".to_owned(),
    };
    let below = match (&repository.current_run, &repository.last_run) {
        (Some(run), _) => under_way(run, rate, now),
        (None, Some(run)) => {
            let ended = show::ago(run.finished.as_ref(), time);
            format!("{} {}, {ended}", show::outcome(run.outcome()), safe(&run.reason))
        }
        (None, None) => "no run yet".to_owned(),
    };
    [spread(&format!("{name}: {proven}{overdue}"), &next, columns), format!("  {below}")]
}

fn under_way(run: &Run, rate: &mut Rate, now: Instant) -> String {
    let phase = show::phase(run.phase());
    if !run.waiting.is_empty() {
        return format!("{phase}: waiting {}", safe(&run.waiting));
    }
    match run.phase() {
        Phase::Replicating if run.bytes_to_read > 0 => {
            let done = shown_bytes(run);
            let left = seconds_left(run, rate.of(run.bytes_done, now));
            let left = left.map_or_else(String::new, |left| format!(", about {} left", show::age(left)));
            let filled = usize::try_from(done.saturating_mul(BAR as u64) / run.bytes_to_read).unwrap_or(BAR);
            let bar = format!("{}{}", "#".repeat(filled.min(BAR)), "-".repeat(BAR - filled.min(BAR)));
            let percent = done.saturating_mul(100) / run.bytes_to_read;
            format!("{phase} [{bar}] {percent:>2}% of {}{left}", show::bytes(run.bytes_to_read))
        }
        Phase::Replicating => {
            let counts = run.counts.unwrap_or_default();
            format!("{phase}: {} looked at", counted(counts.entries_scanned, "entry", "entries"))
        }
        Phase::Checking => format!("{phase}: {}", step_name(run)),
        _ => phase.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use assay_common::verdict::timestamp_to_proto;
    use assay_proto::v1::Outcome;

    use super::*;

    fn time(text: &str) -> Option<prost_types::Timestamp> {
        text.parse::<Timestamp>().ok().map(timestamp_to_proto)
    }

    fn status(count: usize) -> GetStatusResponse {
        let mut failed = Run {
            reason: "damage-found".to_owned(),
            finished: time("2026-11-30T05:58:00Z"),
            ..Default::default()
        };
        failed.set_outcome(Outcome::Fail);
        let mut copying =
            Run { bytes_to_read: 2_000_000_000, bytes_done: 1_000_000_000, ..Default::default() };
        copying.set_phase(Phase::Replicating);
        let passed = Run { generation: 41, ..Default::default() };
        let one = |number: usize| RepositoryStatus {
            repository: format!("app{number}"),
            last_pass: (number > 0).then(|| passed.clone()),
            last_pass_age_seconds: 10_810,
            max_age_seconds: 7200,
            last_run: Some(failed.clone()),
            current_run: (number == 1).then(|| copying.clone()),
            next_run: time("2026-11-30T06:43:00Z"),
            ..Default::default()
        };
        GetStatusResponse {
            agent: "live".to_owned(),
            version: "1".to_owned(),
            now: time("2026-11-30T06:00:00Z"),
            repositories: (0..count).map(one).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn each_repository_has_its_age_its_work_and_its_next_run() {
        let lines = frame(&status(2), &mut HashMap::new(), Instant::now(), (24, 80));
        let wide = |left: &str, right: &str| spread(left, right, 80);
        assert_eq!(
            lines,
            [
                wide("live (assay-source 1)", "06:00:00Z  Ctrl-C leaves, runs go on"),
                wide("app0: never proven good", "next run in 43 min"),
                "  FAIL damage-found, 2 min ago".to_owned(),
                wide("app1: proven good 3 h ago, generation 41  OVERDUE", "next run in 43 min"),
                "  replicating [########--------] 50% of 2.0 GB".to_owned(),
            ]
        );
    }

    #[test]
    fn nothing_runs_past_the_screen() {
        for (rows, columns) in [(24, 80), (10, 40), (5, 20), (3, 200), (60, 120)] {
            let lines = frame(&status(30), &mut HashMap::new(), Instant::now(), (rows, columns));
            assert!(lines.len() < rows, "{rows}: {lines:#?}");
            assert!(lines.iter().all(|line| measure_text_width(line) <= columns), "{columns}: {lines:#?}");
        }
        let lines = frame(&status(30), &mut HashMap::new(), Instant::now(), (24, 80));
        assert!(lines.last().is_some_and(|line| line.starts_with("... and 20 more")), "{lines:#?}");
    }
}
