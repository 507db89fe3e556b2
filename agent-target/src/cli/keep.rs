//! `prune`, `pin`, `unpin`: what is kept.

use std::{fmt::Write as _, process::ExitCode};

use assay_common::{
    cli::{CommandError, print, print_json, show},
    json::to_json,
};
use assay_proto::v1::{
    PinGenerationRequest, PruneGenerationsRequest, PruneGenerationsResponse, UnpinGenerationRequest,
    target_service_client::TargetServiceClient,
};
use tonic::{Status, transport::Channel};

/// What is kept, and whether it is still what it was.
#[derive(Debug, clap::Subcommand)]
pub(super) enum KeepCommand {
    /// Remove the generations that no rule of [repository.retention] keeps, and say why the others stay
    Prune {
        /// Repository; may be left out when there is one only
        #[arg(default_value = "")]
        repository: String,
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Hold on to a generation: it is never pruned
    Pin {
        /// Repository; may be left out when there is one only
        #[arg(default_value = "")]
        repository: String,
        /// Number of the generation; the newest verified one when it is left out
        #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "NUMBER")]
        generation: u64,
        /// Why, for those who come after
        #[arg(long, default_value = "", hide_default_value = true)]
        note: String,
    },
    /// Let go of a pinned generation
    Unpin {
        /// Repository; may be left out when there is one only
        #[arg(default_value = "")]
        repository: String,
        /// Number of the generation
        #[arg(long, value_name = "NUMBER")]
        generation: u64,
    },
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
        KeepCommand::Prune { repository, dry_run } => {
            let request = PruneGenerationsRequest { repository, dry_run };
            let answer = client.prune_generations(request).await.map_err(failed)?.into_inner();
            if json {
                answer.decisions.iter().for_each(|decision| print_json(&to_json("PruneDecision", decision)));
            } else {
                print(&decisions(&answer, dry_run));
            }
            return Ok(ExitCode::SUCCESS);
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
        print_json(&to_json("Generation", &generation));
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
