//! `run --follow`: a progress bar on a terminal, plain lines elsewhere, JSON where that is asked for.

use std::io::IsTerminal as _;

use assay_common::{
    cli::{print, print_json, show},
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
    Lines { phase: Phase, step: String },
    Bar(ProgressBar),
}

impl View {
    fn new(json: bool) -> Self {
        if json {
            return Self::Json;
        }
        if !std::io::stderr().is_terminal() {
            return Self::Lines { phase: Phase::Unspecified, step: String::new() };
        }
        let bar = ProgressBar::new_spinner();
        bar.set_style(spinner());
        bar.enable_steady_tick(std::time::Duration::from_millis(120));
        Self::Bar(bar)
    }

    fn show(&mut self, run: &Run) {
        match self {
            Self::Json => print_json(&to_json("Run", run)),
            Self::Lines { phase, step } => {
                if *phase != run.phase() && run.phase() != Phase::Done {
                    *phase = run.phase();
                    print(&format!("{}{}\n", show::phase(*phase), detail(run)));
                }
                if *step != run.check_step && !run.check_step.is_empty() {
                    run.check_step.clone_into(step);
                    print(&format!("checking: {step}\n"));
                }
            }
            Self::Bar(bar) => {
                bar.set_prefix(show::phase(run.phase()));
                // How far the walk has come is known when there is a base to compare with.
                let scanned = run.counts.as_ref().map_or(0, |counts| counts.entries_scanned);
                if run.phase() == Phase::Replicating && run.base_entries > 0 {
                    bar.set_length(run.base_entries.max(scanned));
                    bar.set_position(scanned);
                    bar.set_style(measured());
                } else {
                    bar.set_style(spinner());
                }
                bar.set_message(match run.phase() {
                    Phase::Replicating => progress(run),
                    Phase::Checking => run.check_step.clone(),
                    _ => detail(run).trim_start_matches(": ").to_owned(),
                });
            }
        }
    }

    fn end(self, run: &Run) {
        match self {
            Self::Json => {}
            Self::Lines { .. } => print(&show::run(run)),
            Self::Bar(bar) => {
                bar.finish_and_clear();
                print(&show::run(run));
            }
        }
    }
}

fn spinner() -> ProgressStyle {
    style("{spinner} {prefix:<11} {elapsed:>4}  {wide_msg}")
}

fn measured() -> ProgressStyle {
    style("{spinner} {prefix:<11} {elapsed:>4} [{bar:16}] {percent:>3}%  {wide_msg}")
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn progress(run: &Run) -> String {
    let Some(counts) = &run.counts else {
        return String::new();
    };
    format!(
        "{} files read, {} read, {} sent  {}",
        counts.files_read,
        show::bytes(counts.bytes_read),
        show::bytes(counts.wire_bytes_out),
        run.current_path
    )
}

/// What a phase starts from.
fn detail(run: &Run) -> String {
    match run.phase() {
        Phase::Replicating => {
            let mark = run.mark.as_ref().map(|mark| mark.id.clone()).unwrap_or_default();
            let base = match run.base_generation {
                0 => "a full copy".to_owned(),
                base => format!("changes since generation {base}"),
            };
            format!(": {base}; mark {mark:?}")
        }
        Phase::Sealing => run.counts.as_ref().map_or_else(String::new, |counts| {
            format!(": {} sent in {} chunks", show::bytes(counts.bytes_sent), counts.chunks_sent)
        }),
        Phase::Checking => format!(": generation {}", run.generation),
        _ => String::new(),
    }
}
