//! One run, from its trigger to its verdict. Read `Attempt::go` first: it is the whole story.

mod fault;
mod fetch;
pub mod plan;
mod progress;
mod reread;
mod roots;

use std::{collections::HashSet, path::PathBuf, sync::Arc, time::Duration};

use assay_common::{
    digest::RootDigest,
    error::IoContext as _,
    fault::{Point, at},
    id::{GenerationNumber, RunId},
    ledger::EntryId,
    limits::{
        MAX_ANSWER_BYTES, MAX_MANIFEST_BYTES, MAX_MESSAGE_BYTES, MAX_PROGRESS_MESSAGES, MAX_STEP_BYTES,
    },
    manifest::Header,
    path::display_bytes,
    rpc_status::fault_from_status,
    signing::{SigningKey, VerifyingKey},
    tls::WireCounter,
    verdict::{
        self, Counts as StatementCounts, HexDigest, Mark as VerdictMark, Outcome, SourceStatement,
        VerifiedVerdict, sign_source_statement, timestamp_to_proto, verify_verdict,
    },
};
use assay_proto::v1::{
    AbandonRunRequest, CheckRunRequest, Counts, FetchManifestRequest, Mark as MarkMessage, OpenRunRequest,
    OpenRunResponse, Phase, ReadAgain, ReportReadingsRequest, Run, RunCheckProgress, SealFinish,
    SealRunRequest, SealRunResponse, SealStart, TransferStart,
    replication_service_client::ReplicationServiceClient, seal_run_request::Kind as SealKind,
};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming, transport::Channel};
use tracing::Instrument as _;

use crate::{
    config::Repository,
    mark::{Mark, Marker},
    replicate::{
        Counters, Plan, ReplicateError, Replicated, replicate, spool,
        transfer::{TransferError, TransferOptions, is_cut},
    },
    state::RepositoryState,
    target::Target,
};

pub use fault::Fault;
pub use progress::Progress;

/// Version of the replication protocol that this agent speaks.
pub const PROTOCOL: u32 = 3;
/// How long the target may take to note a run that was given up, before the source stops waiting for it.
const ABANDON_WAIT: Duration = Duration::from_secs(20);
/// How often the connection may be lost while a check runs on the target: the check itself goes on there.
const CHECK_ATTEMPTS: u32 = 6;
/// How often content is sent from its start in one run: anew when the target agent was started anew, or has lost what a file was
/// to share with the base.
const ATTEMPTS: usize = 5;
/// Pause before a seal is asked for again, at first.
const SEAL_PAUSE: Duration = Duration::from_millis(200);
/// Pause before the check is asked after again.
const CHECK_PAUSE: Duration = Duration::from_secs(5);

/// What the operator asked for, for this one run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Read every file.
    pub full_read: bool,
    /// Let it drop more entries than the configuration allows.
    pub allow_mass_drop: bool,
    /// Let it read other root folders than last time.
    pub allow_new_root: bool,
}

/// What every run of a repository needs.
pub struct Context {
    /// The repository.
    pub repository: Repository,
    /// What the agent remembers of it.
    pub state: RepositoryState,
    /// The other agent.
    pub target: Target,
    /// For the source's statements.
    pub signing_key: SigningKey,
    /// The target's pinned key.
    pub target_key: VerifyingKey,
    /// Files read side by side.
    pub threads: usize,
    /// Content held in memory, in bytes.
    pub memory_bytes: usize,
    /// How content is sent.
    pub transfer: TransferOptions,
}

impl Context {
    /// Makes the marks of this repository.
    ///
    /// # Errors
    /// When the profile's databases have no valid paths.
    pub fn marker(&self) -> Result<Marker, Fault> {
        let repository = &self.repository;
        let databases = repository.profile.databases(&repository.vars).map_err(Fault::configuration)?;
        let first = &repository.header.roots[0];
        Ok(Marker::new(
            repository.profile.clone(),
            repository.scope(),
            databases,
            (PathBuf::from(&first.live_path), first.subdirectory.clone()),
            self.state.mark_folder(),
        ))
    }
}

/// One run that is under way.
pub struct Attempt {
    context: Arc<Context>,
    id: RunId,
    options: Options,
    progress: Progress,
    cancel: CancellationToken,
    counters: Arc<Counters>,
    overrides: Vec<String>,
}

type Client = ReplicationServiceClient<Channel>;
/// What the target says of the check that follows a seal.
type Check = Streaming<SealRunResponse>;

impl Attempt {
    /// A run that is about to start.
    pub fn new(
        context: Arc<Context>,
        id: RunId,
        options: Options,
        progress: Progress,
        cancel: CancellationToken,
    ) -> Self {
        let counters = Arc::default();
        Self { context, id, options, progress, cancel, counters, overrides: Vec::new() }
    }

    /// Runs to the end, whatever it is: the outcome is in the progress, and on disk, when this returns.
    pub async fn run(mut self) {
        tracing::info!(repository = %self.context.repository.name, "the run starts");
        let ended = match self.context.target.connect().await {
            Err(error) => Err(Fault::from(error)),
            Ok((channel, wire)) => {
                let client = ReplicationServiceClient::new(channel)
                    .max_decoding_message_size(MAX_ANSWER_BYTES)
                    .max_encoding_message_size(MAX_MESSAGE_BYTES);
                let ended = self.go(client.clone(), &wire).await;
                self.count_wire(&wire);
                if let Err(fault) = &ended {
                    self.abandon(client, fault).await;
                }
                ended
            }
        };
        self.progress.update(|run| {
            run.overrides = self.overrides.clone();
            match &ended {
                Ok(verdict) => {
                    run.outcome = assay_proto::v1::Outcome::from(verdict.outcome).into();
                    (run.reason, run.message) = (verdict.reason.clone(), verdict.message.clone());
                    run.attribution = verdict.attribution.as_ref().map(Into::into);
                }
                Err(fault) => {
                    run.outcome = assay_proto::v1::Outcome::from(fault.outcome).into();
                    (run.reason, run.message) = (fault.reason.to_owned(), fault.text());
                }
            }
            run.finished = Some(timestamp_to_proto(jiff::Timestamp::now()));
            run.current_path.clear();
            run.check_step.clear();
            run.set_phase(Phase::Done);
        });
        let run = self.progress.get();
        if let Err(error) = self.context.state.save_run(&self.id, &run) {
            tracing::error!(%error, "the run's record cannot be kept");
        }
        self.context.state.forget_old_runs();
        let outcome = run.outcome().as_str_name();
        tracing::info!(outcome, reason = run.reason, message = run.message, "the run has ended");
    }

    /// The story of a run.
    async fn go(&mut self, mut client: Client, wire: &WireCounter) -> Result<verdict::Verdict, Fault> {
        let context = Arc::clone(&self.context);
        // The target's lock comes first: a mark that nobody copies would be made for nothing.
        self.progress.phase(Phase::Opening);
        let opened = self.open(&client).await?;
        // Roots before the mark, too: an unmounted one ends the run before the engine is asked for anything.
        let roots = self.open_roots()?;
        let basis_known = self.prepare_basis(&mut client, &opened).await?;

        self.progress.phase(Phase::Marking);
        let mut marker = context.marker()?;
        // One that a killed run left would be in the way of this one's.
        marker.end_left_over().await?;
        let marked = marker.begin(&self.cancel).await.map_err(Fault::from);
        let replicated = match marked {
            Err(fault) => Err(fault),
            Ok(mark) => {
                self.progress.update(|run| run.mark = Some(mark_message(&mark)));
                tracing::info!(mark = mark.id, "the mark holds");
                self.progress.phase(Phase::Replicating);
                let replicated =
                    self.replicate_all(&client, &opened, &marker, &roots, basis_known, wire).await;
                replicated.map(|replicated| (mark, replicated))
            }
        };
        let replicated = replicated.and_then(|done| {
            marker.still_holds()?;
            Ok(done)
        });
        // The mark is held for as long as it is read under, and ended on every way out.
        let ended = marker.end().await;
        marker.discard_files();
        let (mark, replicated) = replicated?;
        ended?;
        self.check_drops(&replicated)?;

        self.progress.phase(Phase::Sealing);
        let sealed = self.seal(&client, &opened, basis_known, mark, replicated).await;
        if sealed.is_err() {
            // Whatever was wrong, the next run starts from what the target says.
            drop(context.state.basis().clear());
        }
        let (root, check) = sealed?;
        context.state.next_basis().replace(&context.state.basis())?;
        context.state.save_roots(&roots.identities)?;
        self.progress.update(|run| {
            run.generation = opened.generation;
            run.root_digest = root.to_string();
        });
        self.count_wire(wire);
        tracing::info!(generation = opened.generation, %root, "the generation is sealed");

        self.progress.phase(Phase::Checking);
        self.verdict(&mut client, check, root, opened.generation, &roots).await
    }

    async fn open(&mut self, client: &Client) -> Result<OpenRunResponse, Fault> {
        let opened = self.open_again(client.clone()).await?;
        self.progress.update(|run| {
            run.base_generation = opened.base_generation;
            run.base_entries = opened.base_entries;
        });
        Ok(opened)
    }

    fn open_roots(&mut self) -> Result<roots::OpenRoots, Fault> {
        let known = self.context.state.roots()?;
        let (roots, overridden) =
            roots::open(&self.context.repository.header, known.as_deref(), self.options.allow_new_root)?;
        if overridden {
            self.overrides.push("allow_new_root".to_owned());
        }
        Ok(roots)
    }

    /// Makes sure that the local basis is the target's base. False when there is none.
    async fn prepare_basis(&self, client: &mut Client, opened: &OpenRunResponse) -> Result<bool, Fault> {
        let state = &self.context.state;
        state.next_basis().clear()?;
        if opened.base_generation == 0 {
            return Ok(false);
        }
        let base = RootDigest::from_slice(&opened.base_root_digest)
            .ok_or_else(|| Fault::protocol("the base's root digest has 32 bytes"))?;
        let basis = state.basis();
        if tokio::task::block_in_place(|| state.has_basis_of(base)) {
            return Ok(true);
        }
        tracing::info!(generation = opened.base_generation, "the base's manifest is fetched");
        basis.clear()?;
        let request = FetchManifestRequest {
            repository: self.context.repository.name.clone(),
            generation: opened.base_generation,
        };
        let patience = self.context.transfer.patience;
        let path = basis.manifest();
        let fetching = async {
            let parts = tokio::time::timeout(patience, client.fetch_manifest(request)).await;
            let parts = parts.unwrap_or_else(|_| Err(fault::silent(patience))).map_err(Fault::opening)?;
            fetch::manifest(parts.into_inner(), &path, base, MAX_MANIFEST_BYTES, patience).await
        };
        tokio::select! {
            fetched = fetching => fetched?,
            () = self.cancel.cancelled() => return Err(Fault::cancelled()),
        }
        basis.set_root_digest(base)?;
        Ok(true)
    }

    /// Replicates, and begins again when the target agent was started anew meanwhile, or lacks what was let go here and has
    /// changed: files are read again then, and what had arrived is found in the staging area and not sent again.
    async fn replicate_all(
        &self,
        client: &Client,
        opened: &OpenRunResponse,
        marker: &Marker,
        roots: &roots::OpenRoots,
        basis_known: bool,
        wire: &WireCounter,
    ) -> Result<Replicated, Fault> {
        let mut rotten: HashSet<Vec<u8>> = opened.rotten.iter().cloned().collect();
        // A full run takes nobody's word.
        let mut fingerprints = !self.options.full_read;
        for _ in 0..ATTEMPTS {
            match self
                .replicate(client.clone(), (&rotten, fingerprints), marker, roots, basis_known, wire)
                .await
            {
                Err(ReplicateError::Transfer(TransferError::TargetRestarted)) => {
                    tracing::warn!("the target was started anew; the run is taken up again");
                }
                // It compares every piece when the run is opened again.
                Err(ReplicateError::Transfer(TransferError::BaseRotten(status))) => {
                    tracing::warn!(status = status.message(), "the run is taken up again");
                    // Or it was a piece that only looked like one of the base.
                    fingerprints = false;
                }
                Err(ReplicateError::Transfer(TransferError::Changed { path })) => {
                    tracing::warn!(%path, "the target's disk has not kept it, and it has changed: the run is taken up again");
                    rotten.insert(path.into_bytes());
                }
                Err(ReplicateError::Cancelled) if self.cancel.is_cancelled() => {
                    return Err(Fault::cancelled());
                }
                ended => return Ok(ended?),
            }
            let again = self.open_again(client.clone()).await?;
            let same =
                again.generation == opened.generation && again.base_root_digest == opened.base_root_digest;
            if !same {
                let text = "the target's store changed while content was sent";
                return Err(Fault::not_run("target-changed", text));
            }
            rotten.extend(again.rotten);
        }
        let text = format!("the run was taken up {ATTEMPTS} times and did not come to its end");
        Err(Fault::not_run("target-unstable", text)
            .hint("the target's log says why: it was started anew, or its disk loses what was sealed"))
    }

    async fn open_again(&self, mut client: Client) -> Result<OpenRunResponse, Fault> {
        let patience = self.context.transfer.patience;
        let request = OpenRunRequest {
            repository: self.context.repository.name.clone(),
            run_id: self.id.to_string(),
            protocol: PROTOCOL,
        };
        let opened = tokio::select! {
            opened = client.open_run(request) => opened,
            () = tokio::time::sleep(patience) => Err(fault::silent(patience)),
            () = self.cancel.cancelled() => return Err(Fault::cancelled()),
        };
        Ok(opened.map_err(Fault::opening)?.into_inner())
    }

    async fn replicate(
        &self,
        client: Client,
        (rotten, fingerprints): (&HashSet<Vec<u8>>, bool),
        marker: &Marker,
        roots: &roots::OpenRoots,
        basis_known: bool,
        wire: &WireCounter,
    ) -> Result<Replicated, ReplicateError> {
        let context = &self.context;
        let mark = match marker.files() {
            None => None,
            Some(path) => {
                let folder = assay_common::confined::Folder::open(path).at("open", path);
                Some(Arc::new(folder.map_err(spool::SpoolError::from)?))
            }
        };
        let plan = Plan {
            header: context.repository.header.clone(),
            roots: roots.folders.clone(),
            mark,
            late_files: marker.late_files(),
            rules: Arc::new(context.repository.rules()),
            basis: basis_known.then(|| context.state.basis()),
            full_read: self.options.full_read,
            rotten: rotten.clone(),
            fingerprints,
            work: context.state.work(),
            threads: context.threads,
            budget_bytes: context.memory_bytes,
            transfer: context.transfer.clone(),
        };
        let start =
            TransferStart { repository: context.repository.name.clone(), run_id: self.id.to_string() };
        let work = replicate(client, start, plan, Arc::clone(&self.counters), self.cancel.clone());
        tokio::pin!(work);
        let mut tick = tokio::time::interval(progress::TICK);
        loop {
            tokio::select! {
                done = &mut work => {
                    self.count(wire);
                    return done;
                }
                _ = tick.tick() => self.count(wire),
            }
        }
    }

    fn count(&self, wire: &WireCounter) {
        let (counts, current) = (self.counters.counts(), self.counters.current());
        self.progress.update(|run| {
            run.counts =
                Some(Counts { wire_bytes_out: wire.bytes_out(), wire_bytes_in: wire.bytes_in(), ..counts });
            run.current_path = current;
        });
    }

    fn count_wire(&self, wire: &WireCounter) {
        self.progress.update(|run| {
            let counts = run.counts.get_or_insert_default();
            (counts.wire_bytes_out, counts.wire_bytes_in) = (wire.bytes_out(), wire.bytes_in());
        });
    }

    /// The safety stop: a run that drops most of the tree is more likely an unmounted folder or a disaster than work.
    fn check_drops(&mut self, replicated: &Replicated) -> Result<(), Fault> {
        let limit = self.context.repository.max_drop_percent;
        if replicated.gone * 100 > replicated.basis_entries * u64::from(limit) {
            if !self.options.allow_mass_drop {
                return Err(Fault::mass_drop(replicated.gone, replicated.basis_entries, limit));
            }
            self.overrides.push("allow_mass_drop".to_owned());
        }
        Ok(())
    }

    /// Has the generation sealed. When the connection is cut meanwhile it is asked for again: a target that had sealed it
    /// says so, and one that had not is told everything anew.
    async fn seal(
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
        let mut counts = self.progress.get().counts.unwrap_or_default();
        let mark = mark.clone();
        let telling = tokio::task::spawn_blocking(move || {
            let send = |kind| requests.blocking_send(SealRunRequest { kind: Some(kind) }).ok();
            send(SealKind::Start(start)).ok_or(spool::SpoolError::Stopped)?;
            let basis = basis_known.then(|| context.state.basis());
            counts.entries_kept = replicated.kept;
            counts.entries_dropped = replicated.gone;
            let root = spool::tell(
                &context.state.work(),
                &header,
                basis.as_ref(),
                &context.state.next_basis(),
                &replicated.late,
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
                source_version: env!("CARGO_PKG_VERSION").to_owned(),
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
            Ok::<_, spool::SpoolError>((root, counts))
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
        let (root, counts) = told?;
        self.progress.update(|run| run.counts = Some(counts));
        if sealed.root_digest != root.0 || sealed.generation != opened.generation {
            return Err(Fault::protocol("the sealed generation is the one that was sent").into());
        }
        Ok((root, answers))
    }

    /// Waits for the check, and believes its verdict only with the target's signature on it and our own inside.
    async fn verdict(
        &self,
        client: &mut Client,
        check: Check,
        root: RootDigest,
        generation: u64,
        roots: &roots::OpenRoots,
    ) -> Result<verdict::Verdict, Fault> {
        let (verdict_id, envelope) = self.await_check(client, check, roots).await?;
        let own_key = self.context.signing_key.verifying_key();
        let verified = verify_verdict(envelope.as_bytes(), &self.context.target_key, Some(&own_key))
            .map_err(|error| Fault::verdict_not_trusted(error.to_string()))?;
        let verdict = verified.verdict;
        let about_this_run = verdict.run_id == self.id
            && verdict.repository == self.context.repository.name
            && verdict.generation == Some(GenerationNumber(generation))
            && verdict.root == Some(HexDigest(root.0))
            && verdict_id == EntryId(verdict.sequence).to_string();
        if !about_this_run {
            return Err(Fault::verdict_not_trusted("it is about another run or another tree".to_owned()));
        }
        let step = |point| at(point).at("write", &self.context.state.verdicts());
        step(Point::VerdictSave)?;
        self.context.state.save_verdict(&self.id, &envelope)?;
        step(Point::VerdictSaved)?;
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
                    self.progress.update(|run| run.check_step = step);
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

    /// Tells the target that the run has ended without a check, so that its ledger says so too.
    async fn abandon(&self, mut client: Client, fault: &Fault) {
        if fault.outcome != Outcome::NotRun || fault.was_not_opened {
            return;
        }
        let request = AbandonRunRequest {
            repository: self.context.repository.name.clone(),
            run_id: self.id.to_string(),
            reason: fault.reason.to_owned(),
            message: fault.text(),
            mark: self.progress.get().mark,
        };
        match tokio::time::timeout(ABANDON_WAIT, client.abandon_run(request)).await {
            Ok(Ok(response)) => {
                let response = response.into_inner();
                let valid = verify_verdict(response.envelope.as_bytes(), &self.context.target_key, None);
                // The word for this run's end, and not one that the target gave for another.
                let ours = valid.is_ok_and(|VerifiedVerdict { verdict, .. }| {
                    verdict.run_id == self.id
                        && verdict.repository == self.context.repository.name
                        && verdict.outcome == Outcome::NotRun
                        && response.verdict_id == EntryId(verdict.sequence).to_string()
                });
                if !ours {
                    tracing::warn!("the target's verdict on the end of the run is not believed");
                } else if self.context.state.save_verdict(&self.id, &response.envelope).is_ok() {
                    self.progress.update(|run| run.verdict_id = response.verdict_id);
                }
            }
            Ok(Err(status)) => {
                let error = fault_from_status(&status).message;
                tracing::warn!(error, "the target did not note the end of the run");
            }
            Err(_) => tracing::warn!("the target did not note the end of the run in time"),
        }
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

fn mark_message(mark: &Mark) -> MarkMessage {
    MarkMessage { id: mark.id.clone(), time: Some(timestamp_to_proto(mark.time)) }
}

/// A run that has just been triggered.
pub fn new_run(id: &RunId, repository: &str, trigger: assay_proto::v1::Trigger) -> Run {
    Run {
        id: id.to_string(),
        repository: repository.to_owned(),
        trigger: trigger.into(),
        phase: Phase::Opening.into(),
        started: Some(timestamp_to_proto(jiff::Timestamp::now())),
        ..Default::default()
    }
}
