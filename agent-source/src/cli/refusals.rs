//! What the target would refuse of the live trees, for `doctor`: its file system may not hold an entry, or its configuration not take it.

use std::{path::Path, sync::Arc, time::Duration};

use assay_common::{
    cli::doctor::Report,
    confined::Folder,
    fidelity::{Filter, remedies},
    limits::MAX_ANSWER_BYTES,
};
use assay_proto::v1::{GetOutlookRequest, Outlook, replication_service_client::ReplicationServiceClient};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, transport::Channel};

use crate::{
    config::Repository,
    replicate::{ReplicateError, preflight::preflight},
    run::PROTOCOL,
};

/// How long the target may take to tell its outlook.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long doctor walks one repository: a plan walks all of it, however long that takes.
const WALK: Duration = Duration::from_secs(20);

/// Asks the target what it takes of `repository`, and walks the roots for what it would refuse.
pub(super) async fn look(report: &mut Report, repository: &Repository, channel: Channel) {
    let what = format!("{}: what the target takes", repository.name);
    let outlook = match ask(repository, channel).await {
        Ok(outlook) => outlook,
        Err(status) if status.code() == Code::Unimplemented => return,
        Err(status) => {
            return report.bad(
                &what,
                format!("the target does not say: {}", status.message()),
                "compare the repository's name, source and source_key in the target's configuration",
            );
        }
    };
    let filter = Filter::new(repository.ignore_attributes.clone(), repository.clamp_times).for_target(
        outlook.store_holds.as_ref().map(Into::into),
        outlook.copy_rules.as_ref().map(Into::into),
    );
    let filter = Arc::new(filter);
    let walked = walk(repository, Arc::clone(&filter)).await;
    match (filter.refused(), walked) {
        ((named, all), _) if all > 0 => {
            let list: Vec<_> = named.iter().map(ToString::to_string).collect();
            let more =
                if all > named.len() as u64 { format!("{all} entries, among them ") } else { String::new() };
            report.bad(&what, format!("it would refuse {more}{}", list.join("; ")), remedies(&named));
        }
        (_, Ok(None)) => {}
        (_, Ok(Some(true))) => report.ok(&what, "everything that is in the roots"),
        (_, Ok(Some(false))) => report.ok(
            &what,
            format!(
                "everything that was found in {} s; assay-source plan looks at the whole tree",
                WALK.as_secs()
            ),
        ),
        // A root that cannot be walked has a finding of its own, or ends the plan.
        (_, Err(error)) => {
            report.warn(&what, error.to_string(), "assay-source plan says what a run would do")
        }
    }
}

async fn ask(repository: &Repository, channel: Channel) -> Result<Outlook, Status> {
    let mut client = ReplicationServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
    let request = GetOutlookRequest { repository: repository.name.clone(), protocol: PROTOCOL };
    let asked = tokio::time::timeout(PATIENCE, client.get_outlook(request)).await;
    asked.map_err(|_| Status::deadline_exceeded("it does not answer"))?.map(tonic::Response::into_inner)
}

/// Walks the roots. False if the time was up before the end, `None` if a root cannot be opened.
async fn walk(repository: &Repository, filter: Arc<Filter>) -> Result<Option<bool>, ReplicateError> {
    let (header, rules, ground) =
        (repository.header.clone(), Arc::new(repository.rules()), repository.ground());
    // A root that cannot be opened has a finding of its own.
    let folders: Option<Vec<_>> =
        header.roots.iter().map(|root| Folder::open(Path::new(&root.live_path)).ok().map(Arc::new)).collect();
    let Some(folders) = folders else { return Ok(None) };
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let walk = tokio::task::spawn_blocking(move || {
        preflight(&header, &folders, rules, (&filter, &ground), &stopped)
    });
    let timer = tokio::spawn(async move {
        tokio::time::sleep(WALK).await;
        stop.cancel();
    });
    let walked = walk.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
    timer.abort();
    match walked {
        Ok(_) => Ok(Some(true)),
        Err(ReplicateError::Cancelled) => Ok(Some(false)),
        Err(error) => Err(error),
    }
}
