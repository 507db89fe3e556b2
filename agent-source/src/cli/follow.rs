//! `run --follow`: a progress bar on a terminal, plain lines elsewhere, JSON where that is asked for.

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use assay_common::{
    cli::{print, print_json, screen::safe, show},
    json::to_json,
};
use assay_proto::v1::{Phase, Run, source_service_client::SourceServiceClient};
use indicatif::{ProgressBar, ProgressStyle};
use tonic::{Status, transport::Channel};

/// Shows a run as it goes on, and returns it when it has ended.
pub(super) async fn follow(
    client: &mut SourceServiceClient<Channel>,
    run_id: String,
    json: bool,
) -> Result<Run, Status> {
    let mut states = client.watch_run(super::watch(run_id)).await?.into_inner();
    let mut view = View::new(json);
    let mut last = None;
    while let Some(run) = states.message().await? {
        view.show(&run);
        last = Some(run);
    }
    let run = last
        .filter(|run| run.phase() == Phase::Done)
        .ok_or_else(|| Status::unavailable("the agent ended before the run did"))?;
    view.end(&run);
    Ok(run)
}

enum View {
    Json,
    Lines { phase: Phase, step: String, waiting: String },
    Bar { bar: ProgressBar, phase: Phase, pace: Pace },
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
        Self::Bar { bar, phase: Phase::Unspecified, pace: Pace::default() }
    }

    fn show(&mut self, run: &Run) {
        match self {
            Self::Json => print_json(&to_json("Run", run)),
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
            Self::Bar { bar, phase, pace } => {
                if *phase != run.phase() {
                    *phase = run.phase();
                    bar.set_prefix(show::phase(*phase));
                    // Times are of the phase: what is left of a copy is not told by how long the mark took.
                    bar.reset();
                }
                // How far the walk has come is known when there is a base to compare with.
                let counts = run.counts.unwrap_or_default();
                if run.phase() == Phase::Replicating && run.base_entries > 0 {
                    bar.set_length(run.base_entries.max(counts.entries_scanned));
                    bar.set_position(counts.entries_scanned);
                    bar.set_style(measured());
                } else {
                    bar.set_style(spinner());
                }
                bar.set_message(match run.phase() {
                    _ if !run.waiting.is_empty() => format!("waiting {}", safe(&run.waiting)),
                    Phase::Replicating => progress(run, pace, Instant::now()),
                    Phase::Checking => safe(&run.check_step),
                    _ => detail(run).trim_start_matches(": ").to_owned(),
                });
            }
        }
    }

    fn end(self, run: &Run) {
        match self {
            Self::Json => {}
            Self::Lines { .. } => print(&show::run(run)),
            Self::Bar { bar, .. } => {
                bar.finish_and_clear();
                print(&show::run(run));
            }
        }
    }
}

/// How fast something grows, over the last seconds: a rate since the start says little of now.
#[derive(Debug, Default)]
struct Rate {
    /// Values with their times, oldest first.
    seen: std::collections::VecDeque<(Instant, u64)>,
}

impl Rate {
    const WINDOW: Duration = Duration::from_secs(10);

    /// Per second, when it has come to `value` at `now`; 0 until there are two times to compare.
    fn of(&mut self, value: u64, now: Instant) -> u64 {
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
    style("{spinner} {prefix:<11} {elapsed:>4} [{bar:16}] {percent:>3}% of {human_len} entries\n  {wide_msg}")
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

/// How fast a copy gets on.
#[derive(Debug, Default)]
struct Pace {
    entries: Rate,
    read: Rate,
    sent: Rate,
}

impl Pace {
    /// Seconds until all entries are looked at and what was read of them is sent, at the pace of the last seconds; `None` while that
    /// is not known. The walk runs ahead of the sending, so the slower of the two counts. What the target turns out to have already
    /// makes it less.
    fn left(run: &Run, entries: u64, sent: u64) -> Option<u64> {
        let counts = run.counts.unwrap_or_default();
        let walk = run.base_entries.saturating_sub(counts.entries_scanned);
        let walk = if walk == 0 { 0 } else { walk.checked_div(entries)? };
        // What is packed and has not gone out: nothing waits when nothing goes. Where it is compressed, it is less.
        let waiting = counts.bytes_sent.saturating_sub(counts.wire_bytes_out);
        Some(walk.max(waiting.checked_div(sent).unwrap_or(0)))
    }
}

fn progress(run: &Run, pace: &mut Pace, now: Instant) -> String {
    let counts = run.counts.unwrap_or_default();
    let entries = pace.entries.of(counts.entries_scanned, now);
    let (read, sent) = (pace.read.of(counts.bytes_read, now), pace.sent.of(counts.wire_bytes_out, now));
    let left = Pace::left(run, entries, sent).filter(|_| run.base_entries > 0);
    let left = left.map_or_else(String::new, |left| format!("about {} left; ", show::age(left)));
    format!(
        "{left}{} read at {}/s, {} sent at {}/s  {}",
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
            format!(": {} sent in {} chunks", show::bytes(counts.bytes_sent), counts.chunks_sent)
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

    #[test]
    fn what_is_slower_says_how_long_it_takes() {
        let counts = |entries_scanned, bytes_sent, wire_bytes_out| Run {
            base_entries: 1000,
            counts: Some(assay_proto::v1::Counts {
                entries_scanned,
                bytes_sent,
                wire_bytes_out,
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(Pace::left(&counts(500, 100, 100), 50, 0), Some(10));
        assert_eq!(Pace::left(&counts(1000, 900, 300), 50, 20), Some(30));
        assert_eq!(Pace::left(&counts(500, 900, 300), 50, 20), Some(30));
        // The walk stands still, or has only begun.
        assert_eq!(Pace::left(&counts(500, 0, 0), 0, 0), None);
    }
}
