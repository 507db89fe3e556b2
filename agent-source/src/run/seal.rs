//! The end of a run: the manifest that is sealed, the check that is waited for, and the verdict.

use std::{sync::Arc, time::Duration};

use assay_common::{
    digest::RootDigest,
    error::IoContext as _,
    fault::{Point, at},
    fidelity::LeftOut,
    id::GenerationNumber,
    keyring::Keyring,
    ledger::EntryId,
    limits::{MAX_PROGRESS_MESSAGES, MAX_STEP_BYTES},
    manifest::Header,
    path::{display_bytes, display_short},
    rpc_status::fault_from_status,
    verdict::{
        self, Counts as StatementCounts, HexDigest, MAX_LISTED, Mark as VerdictMark, NotCovered, Readings,
        SourceStatement, sign_source_statement, timestamp_to_proto,
    },
};
use assay_proto::v1::{
    CheckRunRequest, OpenRunResponse, ReadAgain, ReportReadingsRequest, RunCheckProgress, SealFinish,
    SealRunRequest, SealStart, seal_run_request::Kind as SealKind,
};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tracing::Instrument as _;

use super::{Attempt, Check, Client, Fault, fault, mark_message, reread, roots};
use crate::{
    mark::Mark,
    replicate::{
        Counters, Replicated,
        readings::{Moment, Summary},
        spool,
        transfer::is_cut,
    },
};

/// Why a file that never held still is not covered.
const UNSTABLE: &str = "unstable";
/// How often the connection may be lost while a check runs on the target: the check itself goes on there.
const CHECK_ATTEMPTS: u32 = 6;
/// Pause before a seal is asked for again, at first.
const SEAL_PAUSE: Duration = Duration::from_millis(200);
/// Pause before the check is asked after again.
const CHECK_PAUSE: Duration = Duration::from_secs(5);

impl Attempt {
    /// Has the generation sealed. When the connection is cut meanwhile it is asked for again: a target that had sealed it
    /// says so, and one that had not is told everything anew.
    pub(super) async fn seal(
        &self,
        client: &Client,
        opened: &OpenRunResponse,
        basis_known: bool,
        mark: Mark,
        replicated: Replicated,
    ) -> Result<(RootDigest, Check), Fault> {
        let replicated = Arc::new(replicated);
        let (started, mut pause) = (std::time::Instant::now(), SEAL_PAUSE);
        loop {
            let ended =
                self.seal_once(client.clone(), opened, basis_known, &mark, Arc::clone(&replicated)).await;
            let status = match ended {
                Ok(sealed) => return Ok(sealed),
                Err(SealEnd::Fault(fault)) => return Err(fault),
                Err(SealEnd::Status(status)) => status,
            };
            // Busy: with sealing what the stream that was cut had told it to the end.
            let again = is_cut(&status) || fault_from_status(&status).reason == "busy";
            if !again || started.elapsed() + pause > self.context.transfer.retry {
                return Err(Fault::sealing(status));
            }
            tracing::warn!(error = status.message(), "the connection was lost; the seal is asked for again");
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(CHECK_PAUSE),
                () = self.cancel.cancelled() => return Err(Fault::cancelled()),
            }
        }
    }

    async fn seal_once(
        &self,
        mut client: Client,
        opened: &OpenRunResponse,
        basis_known: bool,
        mark: &Mark,
        replicated: Arc<Replicated>,
    ) -> Result<(RootDigest, Check), SealEnd> {
        let context = Arc::clone(&self.context);
        let (requests, queue) = mpsc::channel(8);
        let header: Header = context.repository.header.clone();
        let start = SealStart {
            repository: context.repository.name.clone(),
            run_id: self.id.to_string(),
            generation: opened.generation,
            base_generation: if basis_known { opened.base_generation } else { 0 },
            manifest_header: header.to_json(),
        };
        let patience = context.transfer.patience;
        let (id, overrides, base) = (self.id.clone(), self.overrides.clone(), start.base_generation);
        let (nonce, knows_coverage) = (self.nonce, opened.statements > 0);
        let mut counts = self.progress.get().counts.unwrap_or_default();
        let mark = mark.clone();
        // A target that does not say what it takes is one that does not know this part of the statement.
        let not_copied = if opened.copy_rules.is_some() { self.filter.left_out() } else { Vec::new() };
        let declared: Vec<_> = not_copied.iter().filter(|left_out| left_out.is_declared()).cloned().collect();
        let (counters, rereading) = (Arc::clone(&self.counters), replicated.readings.rereading);
        let max_reading_age = context.repository.max_reading_age;
        let telling = tokio::task::spawn_blocking(move || {
            let send = |kind| requests.blocking_send(SealRunRequest { kind: Some(kind) }).ok();
            send(SealKind::Start(start)).ok_or(spool::SpoolError::Stopped)?;
            let basis = basis_known.then(|| context.state.basis());
            counts.entries_kept = replicated.kept;
            counts.entries_dropped = replicated.gone;
            let (root, readings) = spool::tell(
                &context.state.work(),
                &header,
                basis.as_ref(),
                &context.state.next_basis(),
                (&replicated.late, &replicated.readings),
                &mut counts,
                |delta| send(SealKind::Delta(delta)),
            )?;
            let statement = SourceStatement {
                repository: context.repository.name.clone(),
                run_id: id,
                mark: VerdictMark { id: mark.id.clone(), time: mark.time },
                root: Some(HexDigest(root.0)),
                base_generation: (base > 0).then_some(GenerationNumber(base)),
                counts: StatementCounts::from(&counts),
                overrides: overrides.clone(),
                not_copied,
                source_version: env!("CARGO_PKG_VERSION").to_owned(),
                nonce: knows_coverage.then_some(nonce),
                // An older target refuses fields that it does not know.
                readings: knows_coverage.then(|| stated(&readings, &counters, &declared, max_reading_age)),
            };
            let envelope = sign_source_statement(&statement, &context.signing_key);
            let finish = SealFinish {
                root_digest: root.0.to_vec(),
                mark: Some(mark_message(&mark)),
                counts: Some(counts),
                source_statement: envelope.to_json(),
                overrides,
            };
            send(SealKind::Finish(finish)).ok_or(spool::SpoolError::Stopped)?;
            Ok::<_, spool::SpoolError>((root, counts, readings))
        });
        let sealed = async {
            let mut answers = client.seal_run(ReceiverStream::new(queue)).await?.into_inner();
            let sealed = answers.message().await?;
            Ok((
                sealed.ok_or_else(|| Status::unavailable("the seal's stream ended without an answer"))?,
                answers,
            ))
        };
        let sealed = tokio::select! {
            sealed = sealed => sealed,
            () = tokio::time::sleep(patience) => Err(fault::silent(patience)),
            () = self.cancel.cancelled() => Err(Status::cancelled("the run was cancelled")),
        };
        let told = telling.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        // The target's own error says more than the broken stream that follows from it.
        let (sealed, answers) = match (sealed, &told) {
            (Ok(sealed), _) => sealed,
            (Err(_), Err(error)) if !matches!(error, spool::SpoolError::Stopped) => {
                told?;
                return Err(Fault::protocol("the seal ends with an answer").into());
            }
            (Err(status), _) => return Err(SealEnd::Status(status)),
        };
        let (root, counts, readings) = told?;
        if let Some(late) = rereading.is_late(&readings) {
            self.counters.warn(late);
        }
        self.progress.update(|run| {
            run.counts = Some(counts);
            run.oldest_reading = time_of(readings.oldest).map(timestamp_to_proto);
        });
        if sealed.root_digest != root.0 || sealed.generation != opened.generation {
            return Err(Fault::protocol("the sealed generation is the one that was sent").into());
        }
        Ok((root, answers))
    }

    /// Waits for the check, and believes its verdict only with the target's signature on it and our own inside.
    pub(super) async fn verdict(
        &self,
        client: &mut Client,
        check: Check,
        root: RootDigest,
        generation: u64,
        roots: &roots::OpenRoots,
    ) -> Result<verdict::Verdict, Fault> {
        let (verdict_id, envelope) = self.await_check(client, check, roots).await?;
        let own_key = Keyring::from(self.context.signing_key.verifying_key());
        let verified = self.verify(&envelope, Some(&own_key))?;
        let verdict = verified.verdict.clone();
        let about_this_run = verdict.run_id == self.id
            && verdict.repository == self.context.repository.name
            && verdict.generation == Some(GenerationNumber(generation))
            && verdict.root == Some(HexDigest(root.0))
            && verdict_id == EntryId(verdict.sequence).to_string();
        if !about_this_run {
            return Err(Fault::verdict_not_trusted("it is about another run or another tree".to_owned()));
        }
        self.check_link(&verdict, &envelope)?;
        self.note_target_key(&verified);
        let step = |point| at(point).at("write", &self.context.state.verdicts());
        self.keep_receipt(&verdict, &verdict_id, &envelope);
        step(Point::VerdictSave)?;
        self.context.state.save_verdict(&self.id, &envelope)?;
        step(Point::VerdictSaved)?;
        self.send_receipts(client).await;
        self.progress.update(|run| run.verdict_id = verdict_id);
        Ok(verdict)
    }

    async fn await_check(
        &self,
        client: &mut Client,
        check: Check,
        roots: &roots::OpenRoots,
    ) -> Result<(String, String), Fault> {
        let mut attempt = 1;
        // Once, however often the connection is lost: it goes on beside the check, and ends with the run.
        let mut second_reading = tokio::task::JoinSet::new();
        let reader = client.clone();
        let mut read_again = |wanted| {
            if second_reading.is_empty() {
                second_reading.spawn(self.read_again(reader.clone(), wanted, roots).in_current_span());
            }
        };
        let answers = check.map_ok(|answer| answer.check.unwrap_or_default());
        let mut followed = self.follow_check(answers, &mut read_again).await;
        loop {
            match followed {
                Err(status) if is_cut(&status) && attempt < CHECK_ATTEMPTS => {
                    tracing::warn!(error = status.message(), "the connection was lost; the check goes on");
                    attempt += 1;
                    tokio::select! {
                        () = tokio::time::sleep(CHECK_PAUSE) => {}
                        () = self.cancel.cancelled() => return Err(Fault::cancelled()),
                    }
                }
                Err(status) => return Err(Fault::checking(status)),
                Ok(Some(verdict)) => return Ok(verdict),
                Ok(None) => return Err(Fault::cancelled()),
            }
            followed = self.take_up_check(client, &mut read_again).await;
        }
    }

    async fn take_up_check(
        &self,
        client: &mut Client,
        read_again: &mut impl FnMut(Vec<ReadAgain>),
    ) -> Result<Option<(String, String)>, Status> {
        let request =
            CheckRunRequest { repository: self.context.repository.name.clone(), run_id: self.id.to_string() };
        self.follow_check(client.check_run(request).await?.into_inner(), read_again).await
    }

    /// `None` when the run was cancelled.
    async fn follow_check(
        &self,
        mut answers: impl Stream<Item = Result<RunCheckProgress, Status>> + Unpin,
        read_again: &mut impl FnMut(Vec<ReadAgain>),
    ) -> Result<Option<(String, String)>, Status> {
        for _ in 0..MAX_PROGRESS_MESSAGES {
            let answer = tokio::select! {
                answer = answers.next() => answer.transpose()?,
                () = self.cancel.cancelled() => return Ok(None),
            };
            match answer {
                None => return Err(Status::unavailable("the check's stream ended without a verdict")),
                Some(answer) if !answer.envelope.is_empty() => {
                    return Ok(Some((answer.verdict_id, answer.envelope)));
                }
                Some(answer) => {
                    let mut step = display_bytes(answer.step.as_bytes());
                    let end =
                        (0..=MAX_STEP_BYTES.min(step.len())).rev().find(|end| step.is_char_boundary(*end));
                    step.truncate(end.unwrap_or(0));
                    self.progress.update(|run| {
                        run.check_step = step;
                        (run.check_step_number, run.check_steps) = (answer.step_number, answer.steps);
                    });
                    if !answer.read_again.is_empty() {
                        read_again(answer.read_again);
                    }
                }
            }
        }
        let text = format!("the target sends more than {MAX_PROGRESS_MESSAGES} messages about one check");
        Err(Status::failed_precondition(text))
    }

    /// What answers the target, which is about to say FAIL and asks for a second reading.
    fn read_again(
        &self,
        client: Client,
        wanted: Vec<ReadAgain>,
        roots: &roots::OpenRoots,
    ) -> impl Future<Output = ()> + Send + 'static {
        let repository = &self.context.repository;
        let places = reread::Places {
            header: repository.header.clone(),
            roots: roots.folders.clone(),
            rules: repository.rules(),
        };
        let about = ReportReadingsRequest {
            repository: repository.name.clone(),
            run_id: self.id.to_string(),
            ..Default::default()
        };
        reread::answer(client, about, wanted, places, self.cancel.child_token())
    }
}

fn time_of(moment: Option<Moment>) -> Option<jiff::Timestamp> {
    jiff::Timestamp::from_millisecond(moment?).ok()
}

/// What the source's statement says of its readings.
fn stated(
    summary: &Summary,
    counters: &Counters,
    declared: &[LeftOut],
    max_reading_age: Option<Duration>,
) -> Readings {
    let changed = counters.changed_without_trace();
    let torn = counters.never_still();
    let torn_parts = torn.iter().map(|path| NotCovered {
        part: display_short(path),
        reason: UNSTABLE.to_owned(),
        message: "changed on every try while the source read it".to_owned(),
    });
    // What the operator has declared not to need is in no copy, and nobody looks at it.
    let not_covered = torn_parts.chain(declared.iter().map(LeftOut::not_covered)).take(MAX_LISTED);
    Readings {
        files_total: summary.files,
        bytes_total: summary.bytes,
        files_read_now: summary.files_now,
        bytes_read_now: summary.bytes_now,
        oldest_reading: time_of(summary.oldest),
        newest_carried_reading: time_of(summary.newest),
        files_of_unknown_age: summary.files_unknown,
        changed_without_trace: changed.iter().take(MAX_LISTED).map(|path| display_short(path)).collect(),
        changed_without_trace_total: changed.len() as u64,
        not_covered: not_covered.collect(),
        not_covered_total: (torn.len() + declared.len()) as u64,
        max_reading_age_seconds: max_reading_age.map(|age| age.as_secs()),
    }
}

/// Why a generation was not sealed.
enum SealEnd {
    /// Whatever was wrong, it is final.
    Fault(Fault),
    /// What the target, or the connection, says.
    Status(Status),
}

impl<E: Into<Fault>> From<E> for SealEnd {
    fn from(error: E) -> Self {
        Self::Fault(error.into())
    }
}
