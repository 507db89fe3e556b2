//! One run, from its trigger to its verdict. Read `Attempt::go` first: it is the whole story.

mod fault;
mod fetch;
mod filter;
pub mod history;
pub mod plan;
mod progress;
mod receipt;
mod replication;
mod reread;
mod roots;
mod seal;
pub mod target_keys;
mod waiting;

use std::{path::PathBuf, sync::Arc, time::Duration};

use assay_common::{
    fidelity::Filter,
    id::RunId,
    ledger::EntryId,
    limits::{MAX_ANSWER_BYTES, MAX_MESSAGE_BYTES},
    path::display_short,
    rpc_status::fault_from_status,
    signing::SigningKey,
    tls::{Meter, MeteredChannel},
    verdict::{self, HexDigest, MAX_LISTED, Outcome, coverage::meaning, timestamp_to_proto},
};
use assay_proto::v1::{
    AbandonRunRequest, Counts, Mark as MarkMessage, OpenRunResponse, Phase, Run, SealRunResponse,
    replication_service_client::ReplicationServiceClient,
};
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use crate::{
    config::Repository,
    mark::{Mark, Marker, NO_MARK},
    replicate::{Counters, Memory, Replicated, basis::Origin, transfer::TransferOptions},
    snapshot::{self, Snapshot},
    state::RepositoryState,
    target::Target,
    turns::{Turn, Turns},
};

pub use fault::Fault;
pub use progress::Progress;
pub use target_keys::TargetKeys;
pub use waiting::Due;

/// Version of the replication protocol that this agent speaks.
pub const PROTOCOL: u32 = 3;
/// How long the target may take to note a run that was given up, before the source stops waiting for it.
const ABANDON_WAIT: Duration = Duration::from_secs(20);

/// What the operator asked for, for this one run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Read every file.
    pub full_read: bool,
    /// Let it drop more entries than the configuration allows.
    pub allow_mass_drop: bool,
    /// Let it read other root folders than last time.
    pub allow_new_root: bool,
    /// Let it go on from what the target has, although this source knows another history.
    pub accept_history: bool,
    /// Have every part of the copy checked.
    pub full_check: bool,
}

impl std::fmt::Display for Options {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { full_read, allow_mass_drop, allow_new_root, accept_history, full_check } = *self;
        let all = [
            (full_read, "full_read"),
            (allow_mass_drop, "allow_mass_drop"),
            (allow_new_root, "allow_new_root"),
            (accept_history, "accept_history"),
            (full_check, "full_check"),
        ];
        let named: Vec<_> = all.into_iter().filter_map(|(is_set, name)| is_set.then_some(name)).collect();
        formatter.write_str(if named.is_empty() { "none" } else { "" })?;
        formatter.write_str(&named.join(","))
    }
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
    /// The target's pinned keys.
    pub target_keys: TargetKeys,
    /// Files read side by side.
    pub threads: usize,
    /// What content is held in, of all runs of the agent.
    pub memory: Memory,
    /// Which of them is next.
    pub turns: Arc<Turns>,
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
        )
        .excluding(repository.exclude.clone()))
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
    /// What the verdict of this run must name, so that it was not made before.
    nonce: HexDigest,
    /// The newest form of statements that the target knows.
    target_statements: u32,
    filter: Arc<Filter>,
    filtered_otherwise: bool,
    due: Due,
}

type Client = ReplicationServiceClient<MeteredChannel>;
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
        due: Due,
    ) -> Self {
        Self {
            context,
            id,
            options,
            progress,
            cancel,
            counters: Arc::default(),
            overrides: Vec::new(),
            filter: Arc::default(),
            filtered_otherwise: false,
            nonce: HexDigest::random(),
            target_statements: 0,
            due,
        }
    }

    /// Runs to the end, whatever it is: the outcome is in the progress, and on disk, when this returns.
    pub async fn run(mut self) {
        tracing::info!(repository = %self.context.repository.name, "the run starts");
        let ended = self.in_turn().await;
        self.progress.update(|run| {
            run.waiting.clear();
            run.overrides = self.overrides.clone();
            run.warnings = self.counters.warnings();
            let changed = self.counters.changed_without_trace();
            run.changed_without_trace =
                changed.iter().take(MAX_LISTED).map(|path| display_short(path)).collect();
            match &ended {
                Ok(verdict) => {
                    run.outcome = assay_proto::v1::Outcome::from(verdict.outcome).into();
                    (run.reason, run.message) = (verdict.reason.clone(), verdict.message.clone());
                    run.attribution = verdict.attribution.as_ref().map(Into::into);
                    run.sentence = verdict.sentence();
                    run.claims = Some(verdict.claims_proto());
                }
                Err(fault) => {
                    run.outcome = assay_proto::v1::Outcome::from(fault.outcome).into();
                    run.sentence = meaning(fault.outcome).to_owned();
                    (run.reason, run.message) = (fault.reason.to_owned(), fault.text());
                }
            }
            run.finished = Some(timestamp_to_proto(jiff::Timestamp::now()));
            run.current_path.clear();
            run.check_step.clear();
            (run.check_step_number, run.check_steps) = (0, 0);
            run.set_phase(Phase::Done);
        });
        let run = self.progress.get();
        self.context.state.save_run(&self.id, &run);
        self.context.state.forget_old_runs();
        let outcome = run.outcome().as_str_name();
        let (reason, message) = (run.reason.as_str(), run.message.replace('\n', "; "));
        match run.outcome() {
            assay_proto::v1::Outcome::Pass => tracing::info!(outcome, reason, message, "the run has ended"),
            assay_proto::v1::Outcome::Fail => tracing::error!(outcome, reason, message, "the run has ended"),
            _ => tracing::warn!(outcome, reason, message, "the run has ended"),
        }
    }

    /// Waits for its turn and the target, and goes.
    async fn in_turn(&mut self) -> Result<verdict::Verdict, Fault> {
        let mut turn = self.wait_for_turn().await?;
        let channel = self.connect().await?;
        let wire = channel.meter();
        let client = ReplicationServiceClient::new(channel)
            .max_decoding_message_size(MAX_ANSWER_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let ended = self.go(client.clone(), &wire, &mut turn).await;
        self.count_wire(&wire);
        if let Err(fault) = &ended {
            self.abandon(client, fault).await;
        }
        ended
    }

    /// The story of a run.
    async fn go(
        &mut self,
        mut client: Client,
        wire: &Meter,
        turn: &mut Turn,
    ) -> Result<verdict::Verdict, Fault> {
        let context = Arc::clone(&self.context);
        // The target's lock comes first: a mark that nobody copies would be made for nothing.
        self.progress.phase(Phase::Opening);
        let opened = self.open(&client).await?;
        self.check_history(&opened)?;
        // Roots before the mark, too: an unmounted one ends the run before the engine is asked for anything.
        let roots = self.open_roots()?;
        let basis_known = self.prepare_basis(&mut client, &opened).await?;
        self.set_filter(&opened, basis_known);
        if !basis_known {
            self.preflight(&roots).await?;
        }

        self.progress.phase(Phase::Marking);
        let mut marker = context.marker()?;
        // What a killed run left would be in the way of this one.
        marker.end_left_over().await?;
        let note = context.state.snapshot_note();
        snapshot::remove_left_over(&note).await?;
        let mut held = None;
        let marked = match marker.begin(&self.cancel).await {
            Err(error) => Err(error.into()),
            Ok(mark) => self.take_snapshot(&mut marker, mark, &roots, &mut held).await,
        };
        let replicated = match marked {
            Err(fault) => Err(fault),
            Ok((mark, made)) => {
                self.progress.update(|run| run.mark = Some(mark_message(&mark)));
                tracing::info!(mark = mark.id, "the mark holds");
                self.progress.phase(Phase::Replicating);
                let copied = (&roots, made.as_ref());
                let replicated =
                    self.replicate_from(copied, (&client, &opened), &marker, basis_known, wire).await;
                replicated.map(|replicated| (mark, replicated))
            }
        };
        let replicated = replicated.and_then(|done| {
            marker.still_holds()?;
            Ok(done)
        });
        // The mark is held for as long as it is read under, and ended on every way out.
        let ended = marker.end().await;
        if let Some(held) = held
            && let Err(error) = snapshot::remove(held, &note).await
        {
            // The copy is good. The next run removes it, or says that it cannot.
            tracing::error!(%error, "a snapshot is left over");
            self.counters.warn(error.to_string());
        }
        marker.discard_files();
        let (mark, (replicated, origin)) = replicated?;
        ended?;
        self.check_drops(&replicated)?;

        self.progress.phase(Phase::Sealing);
        let sealed = self.seal(&client, &opened, basis_known, mark, replicated).await;
        if sealed.is_err() {
            // Whatever was wrong, the next run starts from what the target says.
            drop(context.state.basis().clear());
        }
        let (root, check) = sealed?;
        context.state.next_basis().set_origin(&origin)?;
        context.state.next_basis().replace(&context.state.basis())?;
        self.keep_filtered()?;
        context.state.save_roots(&roots.identities)?;
        marker.remember()?;
        self.note_sealed(opened.generation, root);
        self.progress.update(|run| {
            run.generation = opened.generation;
            run.root_digest = root.to_string();
        });
        self.count_wire(wire);
        tracing::info!(generation = opened.generation, %root, "the generation is sealed");

        // A check takes nothing of this host: the next run may copy.
        turn.end_copying();
        self.progress.phase(Phase::Checking);
        self.verdict(&mut client, check, root, opened.generation, &roots).await
    }

    /// Makes the snapshot that is copied, where the configuration has one, and ends the engine's mark: the snapshot stands for it.
    async fn take_snapshot(
        &self,
        marker: &mut Marker,
        mark: Mark,
        roots: &roots::OpenRoots,
        held: &mut Option<snapshot::Held>,
    ) -> Result<(Mark, Option<Snapshot>), Fault> {
        let repository = &self.context.repository;
        let Some(settings) = &repository.snapshot else { return Ok((mark, None)) };
        let live = roots.of(&repository.header);
        let top = settings.look(&live, &repository.rules(), &repository.one_file_system)?;
        let note = self.context.state.snapshot_note();
        let name = format!("{}-{}", repository.name, self.id);
        let snapshot = snapshot::make((settings, &note), &name, (top, &live), held, &self.cancel).await;
        let snapshot = snapshot.map_err(|error| match self.cancel.is_cancelled() {
            true => Fault::cancelled(),
            false => error.into(),
        })?;
        let time = jiff::Timestamp::now();
        marker.end_for_snapshot().await?;
        let id = match mark.id.as_str() {
            NO_MARK => snapshot.description.clone(),
            id => format!("{id}; {}", snapshot.description),
        };
        Ok((Mark { id, time }, Some(snapshot)))
    }

    /// Replicates the live roots, or those in the snapshot. Beside what was replicated: where its files were looked at.
    async fn replicate_from(
        &self,
        (roots, snapshot): (&roots::OpenRoots, Option<&Snapshot>),
        (client, opened): (&Client, &OpenRunResponse),
        marker: &Marker,
        basis_known: bool,
        wire: &Meter,
    ) -> Result<(Replicated, Origin), Fault> {
        let copied = roots::Copied::of(roots, snapshot, self.context.repository.ground())?;
        if basis_known {
            tokio::task::block_in_place(|| self.context.state.basis().translate_to(&copied.origin))?;
        }
        let replicated = self.replicate_all(client, opened, marker, &copied, basis_known, wire).await?;
        Ok((replicated, copied.origin))
    }

    async fn open(&mut self, client: &Client) -> Result<OpenRunResponse, Fault> {
        let opened = self.open_again(client.clone()).await?;
        self.meet(client, &opened).await;
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

    fn count(&self, wire: &Meter) {
        let (counts, current) = (self.counters.counts(), self.counters.current());
        let (bytes_to_read, bytes_done) = self.counters.work();
        self.progress.update(|run| {
            (run.bytes_to_read, run.bytes_done) = (bytes_to_read, bytes_done);
            run.counts =
                Some(Counts { wire_bytes_out: wire.bytes_out(), wire_bytes_in: wire.bytes_in(), ..counts });
            run.current_path = current;
        });
    }

    fn count_wire(&self, wire: &Meter) {
        self.progress.update(|run| {
            let counts = run.counts.get_or_insert_default();
            (counts.wire_bytes_out, counts.wire_bytes_in) = (wire.bytes_out(), wire.bytes_in());
        });
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
                let valid = self.verify(&response.envelope, None);
                // The word for this run's end, and not one that the target gave for another.
                let nonce = (self.target_statements > 0).then_some(self.nonce);
                let ours = valid.ok().filter(|verified| {
                    let verdict = &verified.verdict;
                    verdict.run_id == self.id
                        && verdict.repository == self.context.repository.name
                        && verdict.outcome == Outcome::NotRun
                        && verdict.nonce == nonce
                        && response.verdict_id == EntryId(verdict.sequence).to_string()
                        && self.check_link(verdict, &response.envelope).is_ok()
                });
                match ours {
                    None => tracing::warn!("the target's verdict on the end of the run is not believed"),
                    Some(verified) => {
                        self.note_target_key(&verified);
                        let verdict = verified.verdict;
                        self.keep_receipt(&verdict, &response.verdict_id, &response.envelope);
                        if self.context.state.save_verdict(&self.id, &response.envelope).is_ok() {
                            self.send_receipts(&client).await;
                            self.progress.update(|run| run.verdict_id = response.verdict_id);
                        }
                    }
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
