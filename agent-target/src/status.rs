//! How the target and its repositories stand, as one record: the command line (by gRPC) and the web page are made from it. Metrics and
//! notices have theirs from the same [`assay_common::watch`].

use assay_common::{
    id::GenerationNumber,
    tls::renewal,
    trouble,
    verdict::{Verdict, timestamp_to_proto},
    watch::Ended,
};
use assay_proto::v1::{
    self, CheckQueueStatus, CheckWait, Generation, GetTargetStatusResponse, TargetRepositoryStatus,
};
use jiff::Timestamp;

use crate::{
    check_queue::CheckQueue,
    repository::Repository,
    service::{Repositories, keeping::scrub_status, restore::last_restore},
    store::{Record, TREE},
};

/// How the agent called `agent` and all its repositories stand at `now`.
pub fn of_target(repositories: &Repositories, agent: &str, now: Timestamp) -> GetTargetStatusResponse {
    GetTargetStatusResponse {
        agent: agent.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        now: Some(timestamp_to_proto(now)),
        repositories: repositories.iter().map(|repository| of_repository(repository, now)).collect(),
        certificate_expires: renewal::expires().map(timestamp_to_proto),
        troubles: trouble::lines(),
        checks: repositories.iter().next().map(|repository| checks(&repository.checks)),
    }
}

/// How a repository stands at `now`.
pub fn of_repository(repository: &Repository, now: Timestamp) -> TargetRepositoryStatus {
    let of = |number: GenerationNumber| {
        let record = repository.store.record(number).ok()?;
        Some(of_generation(repository, &record, repository.last_verdict(number)))
    };
    let generations = repository.store.generations().unwrap_or_default();
    let latest = generations.last().copied().and_then(of);
    let standing = repository.watch.standing();
    let work = repository.occupancy.now();
    let (current_run_id, doing) = work.map(|work| (work.run.to_string(), work.doing)).unwrap_or_default();
    TargetRepositoryStatus {
        repository: repository.config.name.clone(),
        current_run_id,
        verified: repository.store.verified().and_then(of),
        generations: generations.len() as u64,
        free_bytes: repository.store.free_bytes(),
        negative_control: repository.control().as_ref().map(Into::into),
        former_control: repository.former_control().map(|control| timestamp_to_proto(control.time)),
        last_restore: last_restore(repository),
        scrub: scrub_status(repository),
        last_pass_age_seconds: standing.age(now).map_or(0, |age| age.as_secs()),
        overdue_after_seconds: repository.watch.max_age().map_or(0, |age| age.as_secs()),
        doing,
        last_verdict: standing.last.as_ref().and_then(|last| newest_verdict(last, latest.as_ref())),
        latest,
        changed_without_trace: standing.traceless.as_ref().map(Into::into),
        check_wait: check_wait(repository),
    }
}

/// The check of a repository that waits for a slot.
fn check_wait(repository: &Repository) -> Option<CheckWait> {
    let waiting = repository.checks.waiting();
    let own = waiting.into_iter().find(|waiting| waiting.repository == repository.config.name)?;
    Some(CheckWait {
        before: u32::try_from(own.before).unwrap_or(u32::MAX),
        since: Some(timestamp_to_proto(own.since)),
    })
}

/// How the queue of all checks stands.
fn checks(queue: &CheckQueue) -> CheckQueueStatus {
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let waiting = queue.waiting();
    CheckQueueStatus {
        running: number(queue.running()),
        at_a_time: number(queue.at_a_time()),
        waiting: number(waiting.len()),
        oldest_since: waiting.iter().map(|waiting| waiting.since).min().map(timestamp_to_proto),
    }
}

/// A generation, with what its newest verdict says of it today.
pub fn of_generation(
    repository: &Repository,
    record: &Record,
    last: Option<(String, Verdict)>,
) -> Generation {
    let number = GenerationNumber(record.generation);
    // What it claims today: a control that came after its verdict counts.
    let says = last.as_ref().map(|(_, verdict)| verdict.says_under(repository.trust_in(verdict)));
    let (sentence, claims) = says.unzip();
    let (verdict_id, outcome, reason) = last.map_or_else(Default::default, |(id, verdict)| {
        (id, v1::Outcome::from(verdict.outcome).into(), verdict.reason)
    });
    let mut rot = repository.rot().of(number);
    rot.truncate(20);
    let pin = repository.pins().as_ref().ok().and_then(|pins| Some(pins.get(number)?.note.clone()));
    Generation {
        repository: record.repository.clone(),
        number: record.generation,
        run_id: record.run_id.clone(),
        sealed: Some(timestamp_to_proto(record.sealed)),
        mark: Some(v1::Mark { id: record.mark.id.clone(), time: Some(timestamp_to_proto(record.mark.time)) }),
        root_digest: record.root_digest.clone(),
        entries: record.entries,
        total_bytes: record.total_bytes,
        new_bytes: record.new_bytes,
        outcome,
        reason,
        verdict_id,
        verified: repository.store.verified() == Some(number),
        path: repository.store.generation_path(number).join(TREE).display().to_string(),
        pinned: pin.is_some(),
        pin_note: pin.unwrap_or_default(),
        rot,
        sentence: sentence.unwrap_or_default(),
        claims,
        proven: repository.is_proven(number),
    }
}

/// A verdict as it is sent; `envelope` is empty in lists.
pub fn of_verdict(id: &str, verdict: &Verdict, envelope: String) -> v1::Verdict {
    v1::Verdict {
        id: id.to_owned(),
        sequence: verdict.sequence,
        repository: verdict.repository.clone(),
        run_id: verdict.run_id.to_string(),
        generation: verdict.generation.map_or(0, |generation| generation.0),
        outcome: v1::Outcome::from(verdict.outcome).into(),
        reason: verdict.reason.clone(),
        message: verdict.message.clone(),
        time: Some(timestamp_to_proto(verdict.times.signed)),
        root_digest: verdict.root.map(|root| root.to_string()).unwrap_or_default(),
        envelope,
        attribution: verdict.attribution.as_ref().map(Into::into),
        negative_control: verdict.negative_control.as_ref().map(Into::into),
        sentence: verdict.sentence(),
        claims: Some(verdict.claims_proto()),
        received: None,
        notes: Vec::new(),
    }
}

/// What the newest verdict says, unless the newest generation says it.
fn newest_verdict(last: &Ended, latest: Option<&Generation>) -> Option<v1::Verdict> {
    if latest.is_some_and(|latest| latest.verdict_id == last.verdict_id) {
        return None;
    }
    Some(v1::Verdict {
        id: last.verdict_id.clone(),
        run_id: last.run_id.clone(),
        generation: last.generation.unwrap_or(0),
        outcome: v1::Outcome::from(last.outcome).into(),
        reason: last.reason.clone(),
        message: last.message.clone(),
        sentence: last.sentence.clone(),
        claims: last.claims.clone(),
        time: Some(timestamp_to_proto(last.finished)),
        ..Default::default()
    })
}
