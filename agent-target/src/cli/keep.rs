//! `prune`, `pin`, `unpin`, `scrub`: what is kept, and whether it is still what it was.

use std::{fmt::Write as _, process::ExitCode};

use assay_common::{
    cli::{CommandError, print, print_json, screen, show},
    json::to_output,
};
use assay_proto::v1::{
    DiscardAbandonedRequest, DiscardAbandonedResponse, PinGenerationRequest, PruneGenerationsRequest,
    PruneGenerationsResponse, ScrubGenerationsRequest, ScrubProgress, ScrubStatus, UnpinGenerationRequest,
    target_service_client::TargetServiceClient,
};
use tonic::{Status, transport::Channel};

use super::Which;

/// What is kept, and whether it is still what it was.
#[derive(Debug, clap::Subcommand)]
pub(super) enum KeepCommand {
    /// Remove the generations that no rule of [repository.retention] keeps, and say why the others stay
    Prune {
        #[command(flatten)]
        which: Which,
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Remove what runs left that did not come to their end; the next run sends it again
    Discard {
        #[command(flatten)]
        which: Which,
    },
    /// Hold on to a generation: it is never pruned
    Pin {
        /// Repository; may be left out when there is one only
        #[arg(default_value = "", hide_default_value = true)]
        repository: String,
        /// Number of the generation; the newest verified one when it is left out
        #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "NUMBER")]
        generation: u64,
        /// Note: why it is pinned
        #[arg(long, default_value = "", hide_default_value = true)]
        note: String,
    },
    /// Let go of a pinned generation
    Unpin {
        /// Repository; may be left out when there is one only
        #[arg(default_value = "", hide_default_value = true)]
        repository: String,
        /// Number of the generation
        #[arg(long, value_name = "NUMBER")]
        generation: u64,
    },
    /// Read sealed generations again against their manifests, and heal what can be healed
    ///
    /// Exit codes: 0 everything is what it was, 1 something is not, 4 a run ended it (it is taken up again afterwards).
    Scrub {
        #[command(flatten)]
        which: Which,
        /// Only the generations that were read longest ago, this share of them
        #[arg(long, value_name = "PERCENT", conflicts_with = "generation",
            value_parser = clap::value_parser!(u32).range(1..=100))]
        share: Option<u32>,
        /// Only this generation
        #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "NUMBER")]
        generation: u64,
    },
}

impl KeepCommand {
    /// True if it is asked for all repositories.
    pub(super) fn is_of_all(&self) -> bool {
        match self {
            Self::Prune { which, .. } | Self::Discard { which } | Self::Scrub { which, .. } => which.all,
            Self::Pin { .. } | Self::Unpin { .. } => false,
        }
    }

    /// The same for one repository.
    pub(super) fn of_one(&self, repository: &str) -> Self {
        let which = Which::one(repository);
        match self {
            Self::Prune { dry_run, .. } => Self::Prune { which, dry_run: *dry_run },
            Self::Scrub { share, generation, .. } => {
                Self::Scrub { which, share: *share, generation: *generation }
            }
            _ => Self::Discard { which },
        }
    }
}

/// Asks the agent.
pub(super) async fn ask(
    command: KeepCommand,
    mut client: TargetServiceClient<Channel>,
    url: &str,
    json: bool,
) -> Result<ExitCode, CommandError> {
    let failed = |status: Status| CommandError::from_status(&status, url);
    let generation = match command {
        KeepCommand::Prune { which: Which { repository, .. }, dry_run } => {
            let request = PruneGenerationsRequest { repository, dry_run };
            let answer = client.prune_generations(request).await.map_err(failed)?.into_inner();
            if json {
                answer
                    .decisions
                    .iter()
                    .for_each(|decision| print_json(&to_output("PruneDecision", decision)));
            } else {
                print(&decisions(&answer, dry_run));
            }
            return Ok(ExitCode::SUCCESS);
        }
        KeepCommand::Discard { which: Which { repository, .. } } => {
            let request = DiscardAbandonedRequest { repository };
            let answer = client.discard_abandoned(request).await.map_err(failed)?.into_inner();
            if json {
                print_json(&to_output("DiscardAbandonedResponse", &answer));
            } else {
                print(&discarded(&answer));
            }
            return Ok(ExitCode::SUCCESS);
        }
        KeepCommand::Scrub { which: Which { repository, .. }, share, generation } => {
            let request =
                ScrubGenerationsRequest { repository, number: generation, share_percent: share.unwrap_or(0) };
            let mut progress = client.scrub_generations(request).await.map_err(failed)?.into_inner();
            while let Some(message) = progress.message().await.map_err(failed)? {
                if json {
                    print_json(&to_output("ScrubProgress", &message));
                } else {
                    print(&scrubbing(&message));
                }
                if let Some(ended) = message.ended {
                    return Ok(scrub_code(&ended));
                }
            }
            return Err(CommandError::not_run(format!("{url}: the scrub ended without a result")));
        }
        KeepCommand::Pin { repository, generation, note } => {
            let request = PinGenerationRequest { repository, number: generation, note };
            client.pin_generation(request).await.map_err(failed)?.into_inner()
        }
        KeepCommand::Unpin { repository, generation } => {
            let request = UnpinGenerationRequest { repository, number: generation };
            client.unpin_generation(request).await.map_err(failed)?.into_inner()
        }
    };
    if json {
        print_json(&to_output("Generation", &generation));
    } else {
        print(&show::generations(&[generation]));
    }
    Ok(ExitCode::SUCCESS)
}

fn decisions(answer: &PruneGenerationsResponse, dry_run: bool) -> String {
    let mut text = format!("{:>6}  {:<20}  {}\n", "GEN", "SEALED", "KEPT BY");
    let mut gone = 0;
    for decision in &answer.decisions {
        let why = match (decision.keep.is_empty(), decision.pruned) {
            (false, _) => decision.keep.join(", "),
            (true, true) => "- pruned".to_owned(),
            (true, false) if dry_run => "- would be pruned".to_owned(),
            (true, false) => "- in use: pruned next time".to_owned(),
        };
        gone += usize::from(decision.keep.is_empty());
        let sealed = show::time(decision.sealed.as_ref());
        let _ = writeln!(text, "{:>6}  {sealed:<20}  {why}", decision.generation);
    }
    let word = if dry_run { "would be pruned" } else { "pruned" };
    let _ = writeln!(text, "{gone} of {} {word}", answer.decisions.len());
    text
}

fn discarded(answer: &DiscardAbandonedResponse) -> String {
    let repository = screen::safe(&answer.repository);
    match answer.bytes {
        0 => format!("{repository}: no run left anything behind\n"),
        bytes => format!("{repository}: {} freed: the next run sends it again\n", show::bytes(bytes)),
    }
}

fn scrub_code(ended: &ScrubStatus) -> ExitCode {
    ExitCode::from(match (ended.unhealed, &ended.finished) {
        (1.., _) => 1,
        (0, Some(_)) => 0,
        (0, None) => 4,
    })
}

fn scrubbing(message: &ScrubProgress) -> String {
    if let Some(rotten) = &message.rotten {
        let numbers: Vec<_> = rotten.generations.iter().map(u64::to_string).collect();
        let end = if rotten.healed { "healed" } else { "NOT HEALED" };
        return format!(
            "ROTTEN {} in generation {}: {}: {end}\n",
            rotten.path,
            numbers.join(", "),
            rotten.what
        );
    }
    let Some(ended) = &message.ended else {
        return format!("{} read\n", show::bytes(message.bytes_read));
    };
    scrub_status(ended)
}

/// A scrub in a few lines.
pub(super) fn scrub_status(status: &ScrubStatus) -> String {
    let when = match &status.finished {
        Some(finished) => format!("ended {}", show::time(Some(finished))),
        None => "not at its end: it is taken up again when no run is under way".to_owned(),
    };
    let mut text = format!(
        "scrub of {}: {}, {} read, {} rotten, {} healed; {when}\n",
        screen::counted(status.generations, "generation", "generations"),
        screen::counted(status.files, "file", "files"),
        show::bytes(status.bytes),
        status.found,
        status.healed
    );
    if status.unhealed > 0 {
        text.push_str(&format!(
            "  damaged now: {}: assay-target generations shows where; the next run brings what the source still has\n",
            status.unhealed
        ));
    }
    text
}
