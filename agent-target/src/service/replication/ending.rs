//! A run ends: with the verdict of its check, or given up.

use std::sync::Arc;

use assay_common::{
    dsse::Envelope,
    id::RunId,
    limits::{MAX_REASON_BYTES, MAX_REASON_MESSAGE_BYTES},
    rpc_status::RpcFault,
    verdict::{self, Outcome, Verdict},
};
use assay_proto::v1::{AbandonRunRequest, RunCheckProgress};
use tokio::sync::watch;
use tokio_stream::{Stream, StreamExt as _};
use tonic::Code;

use super::{
    super::{internal, invalid},
    joined, no_such_run, refused_for,
    sealing::checked_mark,
};
use crate::{
    repository::{CheckState, Opened, Repository, occupancy::CheckAdmission, times_now},
    verify,
};

fn verdict_of_run(repository: &Repository, id: &RunId) -> Option<(String, String)> {
    let (verdict_id, _) = repository
        .verdicts()
        .find(|(_, verdict)| verdict.run_id == *id && verdict.outcome != Outcome::NotRun)?;
    let envelope = repository.envelope(&verdict_id).ok()?;
    Some((verdict_id, envelope))
}

/// How the check of a run stands: the one that runs, one that starts now, or the end of the one that there was.
pub(super) async fn check_states(
    repository: &Arc<Repository>,
    id: RunId,
) -> Result<watch::Receiver<CheckState>, RpcFault> {
    let repository = Arc::clone(repository);
    let states = tokio::task::spawn_blocking(move || match verdict_of_run(&repository, &id) {
        Some(verdict) => {
            let done = CheckState { done: Some(Ok(verdict)), ..Default::default() };
            Ok(watch::Sender::new(done).subscribe())
        }
        None => start_check(&repository, id),
    });
    joined(states.await)
}

/// What the source is told of a check. It is asked for a second reading once.
pub(super) fn check_answers(
    states: watch::Receiver<CheckState>,
) -> impl Stream<Item = Result<RunCheckProgress, RpcFault>> + Send {
    let mut asked = false;
    verify::follow(states).map(move |state| match state.done {
        None => {
            let read_again = state.read_again.filter(|_| !asked);
            asked |= read_again.is_some();
            let read_again = read_again.map(|files| files.to_vec()).unwrap_or_default();
            let (step_number, steps) = state.step_of.unwrap_or_default();
            Ok(RunCheckProgress { step: state.step, read_again, step_number, steps, ..Default::default() })
        }
        Some(Ok((verdict_id, envelope))) => {
            Ok(RunCheckProgress { verdict_id, envelope, ..Default::default() })
        }
        Some(Err(message)) => Err(RpcFault::new(Code::Internal, "check-failed", message)),
    })
}

/// Starts the check of a run's generation, or joins the one that runs.
fn start_check(repository: &Arc<Repository>, id: RunId) -> Result<watch::Receiver<CheckState>, RpcFault> {
    let (lease, states) = match repository.occupancy.check(&id).map_err(refused_for(&id))? {
        CheckAdmission::Follow(states) => return Ok(states),
        CheckAdmission::Begin(lease, states) => (lease, states),
    };
    let record = repository.generation_of_run(&id).ok_or_else(|| no_such_run(&id))?;
    verify::start(Arc::clone(repository), lease, id, record, verify::AskedBy::Source);
    Ok(states)
}

/// When a run was opened that has sealed a generation since, and the number that its source chose.
fn sealed_when_given_up(
    repository: &Repository,
    id: &RunId,
) -> (Option<jiff::Timestamp>, Option<verdict::HexDigest>) {
    let Some(record) = repository.generation_of_run(id) else { return (None, None) };
    let statement = serde_json::to_vec(&record.source_statement).ok().and_then(|json| {
        let envelope = Envelope::parse(&json).ok()?;
        verdict::verify_source_statement(&envelope, repository.source_keys.current()).ok()
    });
    (record.opened, statement.and_then(|statement| statement.nonce))
}

pub(super) fn abandon(
    repository: &Repository,
    id: RunId,
    request: AbandonRunRequest,
    opened: Option<Opened>,
) -> Result<(String, String), RpcFault> {
    let reason = request.reason;
    let plain = !reason.is_empty()
        && reason.len() <= MAX_REASON_BYTES
        && reason.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    if !plain || request.message.len() > MAX_REASON_MESSAGE_BYTES {
        return Err(invalid("reason: must have up to 64 small letters and '-'; message: up to 4096 bytes"));
    }
    let mark = checked_mark(request.mark.as_ref())?;
    let (opened, nonce) = match opened {
        Some(opened) => (Some(opened.time), opened.nonce),
        None => sealed_when_given_up(repository, &id),
    };
    tracing::warn!(reason, message = request.message, "the source gave the run up");
    let recorded = repository.record_verdict(|sequence, previous| Verdict {
        repository: repository.config.name.clone(),
        run_id: id,
        sequence,
        previous,
        outcome: Outcome::NotRun,
        reason,
        message: request.message,
        generation: None,
        root: None,
        mark,
        depth: None,
        profile: None,
        steps: Vec::new(),
        patches: Vec::new(),
        overlay_files: Vec::new(),
        workspace: None,
        attribution: None,
        negative_control: repository.control(),
        overrides: Vec::new(),
        times: verdict::Times { opened, ..times_now() },
        versions: verify::versions(None),
        source_statement: None,
        coverage: None,
        nonce,
    });
    recorded.map_err(|error| internal("recording the verdict", &error))
}
