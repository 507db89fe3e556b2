//! `run --follow`: a progress bar on a terminal, plain lines elsewhere, JSON where that is asked for. Who stops watching stops no run.

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use assay_common::{
    cli::{
        print, print_error, print_json,
        screen::{counted, safe},
        show,
    },
    json::to_output,
};
use assay_proto::v1::{Phase, Run, source_service_client::SourceServiceClient};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};
use tonic::{Status, transport::Channel};

/// How watching a run ended.
pub(super) enum Followed {
    /// With the run's end.
    Ended(Box<Run>),
    /// With Ctrl-C: the run goes on.
    Left,
}

/// Shows a run as it goes on, and returns it when it has ended.
pub(super) async fn follow(
    client: &mut SourceServiceClient<Channel>,
    run_id: String,
    json: bool,
) -> Result<Followed, Status> {
    // From now on: a run whose beginning has been seen can be left.
    let interrupts = signal(SignalKind::interrupt());
    let mut interrupts = interrupts.map_err(|error| Status::internal(error.to_string()))?;
    let mut states = client.watch_run(super::watch(run_id)).await?.into_inner();
    let mut view = View::new(json);
    let mut last: Option<Run> = None;
    loop {
        let run = tokio::select! {
            run = states.message() => run?,
            _ = interrupts.recv() => {
                view.leave(last.as_ref());
                return Ok(Followed::Left);
            }
        };
        let Some(run) = run else { break };
        view.show(&run);
        last = Some(run);
    }
    let run = last
        .filter(|run| run.phase() == Phase::Done)
        .ok_or_else(|| Status::unavailable("the agent ended before the run did"))?;
    view.end(&run);
    Ok(Followed::Ended(Box::new(run)))
}

enum View {
    Json,
    Lines { phase: Phase, step: String, waiting: String },
    Bar(Box<Bar>),
}

impl View {
    fn new(json: bool) -> Self {
        if json {
            return Self::Json;
        }
        if !std::io::stderr().is_terminal() {
            return Self::Lines { phase: Phase::Unspecified, step: String::new(), waiting: String::new() };
        }
        let bar = ProgressBar::new_spinner();
        bar.set_style(spinner());
        bar.enable_steady_tick(Duration::from_millis(120));
        Self::Bar(Box::new(Bar {
            bar,
            phase: Phase::Unspecified,
            step: String::new(),
            step_began: Instant::now(),
            pace: Pace::default(),
        }))
    }

    fn show(&mut self, run: &Run) {
        match self {
            Self::Json => print_json(&to_output("Run", run)),
            Self::Lines { phase, step, waiting } => {
                if *phase != run.phase() && run.phase() != Phase::Done {
                    *phase = run.phase();
                    print(&format!("{}{}\n", show::phase(*phase), detail(run)));
                }
                if *waiting != run.waiting {
                    run.waiting.clone_into(waiting);
                    if !waiting.is_empty() {
                        print(&format!("waiting {}\n", safe(waiting)));
                    }
                }
                if *step != run.check_step && !run.check_step.is_empty() {
                    run.check_step.clone_into(step);
                    print(&format!("checking: {}\n", safe(step)));
                }
            }
            Self::Bar(bar) => bar.show(run, Instant::now()),
        }
    }

    fn end(self, run: &Run) {
        match self {
            Self::Json => {}
            Self::Lines { .. } => print(&show::run(run)),
            Self::Bar(bar) => {
                bar.bar.finish_and_clear();
                print(&show::run(run));
            }
        }
    }

    /// Nobody watches any more.
    fn leave(self, run: Option<&Run>) {
        if let Self::Bar(bar) = self {
            bar.bar.finish_and_clear();
        }
        print_error(&left(run.map(|run| run.id.as_str())));
    }
}

/// What somebody reads who has stopped watching.
fn left(run_id: Option<&str>) -> String {
    match run_id {
        None => "the run goes on: watch it with assay-source watch\n".to_owned(),
        Some(id) => format!(
            "\nrun {id} goes on\n  watch it:   assay-source watch {id}\n  cancel it:  assay-source cancel {id}\n"
        ),
    }
}

/// A bar below the phases that have ended.
struct Bar {
    bar: ProgressBar,
    phase: Phase,
    step: String,
    step_began: Instant,
    pace: Pace,
}

impl Bar {
    fn show(&mut self, run: &Run, now: Instant) {
        let step = step_name(run);
        if self.step != step {
            if !self.step.is_empty() {
                self.keep(&format!("  {}", self.step), now.duration_since(self.step_began), "");
            }
            (self.step, self.step_began) = (step, now);
        }
        if self.phase != run.phase() {
            if let Some(ended) = run.phase_times.iter().rfind(|ended| ended.phase() == self.phase) {
                let took = Duration::from_millis(ended.milliseconds);
                self.keep(show::phase(self.phase), took, &came_of(self.phase, run));
            }
            self.phase = run.phase();
            self.bar.set_prefix(show::phase(self.phase));
            // Times are of the phase: what is left of a copy is not told by how long the mark took.
            self.bar.reset();
        }
        let is_measured = run.phase() == Phase::Replicating && run.bytes_to_read > 0;
        if is_measured {
            self.bar.set_length(run.bytes_to_read);
            self.bar.set_position(shown_bytes(run));
            self.bar.set_style(measured());
        } else {
            self.bar.set_style(spinner());
        }
        self.bar.set_message(match run.phase() {
            _ if !run.waiting.is_empty() => format!("waiting {}", safe(&run.waiting)),
            Phase::Replicating => progress(run, &mut self.pace, now),
            Phase::Checking => self.step.clone(),
            _ => detail(run).trim_start_matches(": ").to_owned(),
        });
    }

    /// A line that stays on the screen.
    fn keep(&self, what: &str, took: Duration, came_of: &str) {
        self.bar.println(kept_line(what, took, came_of));
    }
}

fn kept_line(what: &str, took: Duration, came_of: &str) -> String {
    let took = match took.as_secs() {
        0..=59 => format!("{:.1} s", took.as_secs_f64()),
        seconds => show::age(seconds),
    };
    format!("  {what:<22} {took:>8}  {came_of}").trim_end().to_owned()
}

/// What came of a phase that has ended.
fn came_of(phase: Phase, run: &Run) -> String {
    let counts = run.counts.unwrap_or_default();
    match phase {
        Phase::Marking => match run.mark.as_ref().map(|mark| mark.id.as_str()) {
            None | Some("" | "none") => String::new(),
            Some(mark) => safe(mark),
        },
        Phase::Replicating => {
            format!("{} read, {} sent", show::bytes(counts.bytes_read), show::bytes(counts.wire_bytes_out))
        }
        Phase::Sealing if run.generation > 0 => format!("generation {}", run.generation),
        _ => String::new(),
    }
}

/// The step of the check that runs, and which of how many it is.
pub(super) fn step_name(run: &Run) -> String {
    match (run.check_step_number, run.check_steps) {
        (0, _) | (_, 0..=1) => safe(&run.check_step),
        (number, steps) => format!("{} ({number} of {steps})", safe(&run.check_step)),
    }
}

/// Bytes of the bar: not all of them before the phase has ended, because what has been read is still being sent.
pub(super) fn shown_bytes(run: &Run) -> u64 {
    run.bytes_done.min(run.bytes_to_read - run.bytes_to_read / 100)
}

/// How fast something grows, over the last seconds: a rate since the start says little of now.
#[derive(Debug, Default)]
pub(super) struct Rate {
    /// Values with their times, oldest first.
    seen: std::collections::VecDeque<(Instant, u64)>,
}

impl Rate {
    const WINDOW: Duration = Duration::from_secs(10);

    /// Per second, when it has come to `value` at `now`; 0 until there are two times to compare.
    pub(super) fn of(&mut self, value: u64, now: Instant) -> u64 {
        while self.seen.len() > 1 && self.seen.front().is_some_and(|(time, _)| now - *time > Self::WINDOW) {
            self.seen.pop_front();
        }
        self.seen.push_back((now, value));
        let (from, before) = self.seen[0];
        let millis = u64::try_from((now - from).as_millis()).unwrap_or(u64::MAX);
        value.saturating_sub(before).saturating_mul(1000).checked_div(millis).unwrap_or(0)
    }
}

fn spinner() -> ProgressStyle {
    style("{spinner} {prefix:<11} {elapsed:>4}\n  {wide_msg}")
}

/// Done of total in one line of 80 columns; rates and the time that is left below it.
fn measured() -> ProgressStyle {
    style(
        "{spinner} {prefix:<11} {elapsed:>4} [{bar:16}] {percent:>3}% of {decimal_total_bytes}\n  {wide_msg}",
    )
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

/// How fast a copy gets on.
#[derive(Debug, Default)]
struct Pace {
    done: Rate,
    read: Rate,
    sent: Rate,
}

/// Seconds until everything has been read, at the pace of the last seconds; `None` while that is not known. Reading waits for sending.
pub(super) fn seconds_left(run: &Run, per_second: u64) -> Option<u64> {
    let rest = run.bytes_to_read.checked_sub(run.bytes_done).filter(|_| run.bytes_to_read > 0)?;
    rest.checked_div(per_second)
}

fn progress(run: &Run, pace: &mut Pace, now: Instant) -> String {
    let counts = run.counts.unwrap_or_default();
    let done = pace.done.of(run.bytes_done, now);
    let (read, sent) = (pace.read.of(counts.bytes_read, now), pace.sent.of(counts.wire_bytes_out, now));
    let before = match (run.bytes_to_read, seconds_left(run, done)) {
        // The walk has not come to its end.
        (0, _) if run.base_entries > 0 => {
            let entries = run.base_entries.max(counts.entries_scanned);
            format!("{} of {entries} entries looked at; ", counts.entries_scanned)
        }
        (0, _) => format!("{} looked at; ", counted(counts.entries_scanned, "entry", "entries")),
        (_, None) => String::new(),
        (_, Some(left)) => format!("about {} left; ", show::age(left)),
    };
    format!(
        "{before}{} read at {}/s, {} sent at {}/s  {}",
        show::bytes(counts.bytes_read),
        show::bytes(read),
        show::bytes(counts.wire_bytes_out),
        show::bytes(sent),
        safe(&run.current_path)
    )
}

/// What a phase starts from.
fn detail(run: &Run) -> String {
    match run.phase() {
        Phase::Replicating => {
            // A profile without a mark has none to show.
            let mark = match run.mark.as_ref().map(|mark| mark.id.as_str()) {
                None | Some("" | "none") => String::new(),
                Some(mark) => format!("; mark {mark:?}"),
            };
            let base = match run.base_generation {
                0 => "a full copy".to_owned(),
                base => format!("changes since generation {base}"),
            };
            format!(": {base}{mark}")
        }
        Phase::Sealing => run.counts.as_ref().map_or_else(String::new, |counts| {
            let chunks = counted(counts.chunks_sent, "chunk", "chunks");
            format!(": {} sent in {chunks}", show::bytes(counts.bytes_sent))
        }),
        Phase::Checking => format!(": generation {}", run.generation),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_shown_where_there_is_one() {
        let run = |id: &str| {
            let mark = Some(assay_proto::v1::Mark { id: id.to_owned(), time: None });
            Run { phase: Phase::Replicating.into(), mark, ..Default::default() }
        };
        assert_eq!(detail(&run("none")), ": a full copy");
        assert_eq!(detail(&run("lsn 7")), ": a full copy; mark \"lsn 7\"");
    }

    #[test]
    fn a_rate_is_that_of_the_last_seconds() {
        let (start, mut rate) = (Instant::now(), Rate::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(rate.of(0, at(0)), 0);
        assert_eq!(rate.of(5000, at(5)), 1000);
        // A stall: what came before it is forgotten after a while.
        for second in 6..=30 {
            rate.of(5000, at(second));
        }
        assert_eq!(rate.of(5000, at(31)), 0);
        // A run that is taken up again counts anew.
        assert_eq!(rate.of(0, at(32)), 0);
    }

    /// 40 of 3042 files have changed, and they are large: entries say nothing of what is left.
    #[test]
    fn progress_counts_bytes_and_not_entries() {
        let counts = assay_proto::v1::Counts { entries_scanned: 3042, bytes_read: 500, ..Default::default() };
        let run = Run {
            phase: Phase::Replicating.into(),
            base_entries: 3042,
            bytes_to_read: 2000,
            bytes_done: 500,
            counts: Some(counts),
            ..Default::default()
        };
        assert_eq!((shown_bytes(&run), seconds_left(&run, 100)), (500, Some(15)));
        assert_eq!(seconds_left(&run, 0), None, "it stands still");
        let all = Run { bytes_done: 2000, ..run.clone() };
        assert_eq!(shown_bytes(&all), 1980, "what has been read is still being sent");
        let unknown = Run { bytes_to_read: 0, bytes_done: 0, ..run };
        assert_eq!(seconds_left(&unknown, 100), None);
        let text = progress(&unknown, &mut Pace::default(), Instant::now());
        assert!(text.starts_with("3042 of 3042 entries looked at; 500 B read"), "{text}");
    }

    #[test]
    fn phases_and_steps_that_have_ended_stay_and_who_leaves_is_told_how_to_come_back() {
        let run = Run {
            check_step: "integrity".to_owned(),
            check_step_number: 1,
            check_steps: 2,
            generation: 7,
            ..Default::default()
        };
        assert_eq!(step_name(&run), "integrity (1 of 2)");
        assert_eq!(step_name(&Run { check_steps: 1, ..run.clone() }), "integrity");
        let line = kept_line("sealing", Duration::from_millis(1230), &came_of(Phase::Sealing, &run));
        assert_eq!(line, "  sealing                   1.2 s  generation 7");
        let text = left(Some("20261130T000000Z-000001"));
        assert!(
            text.contains("goes on") && text.contains("watch 2026") && text.contains("cancel 2026"),
            "{text}"
        );
    }
}
