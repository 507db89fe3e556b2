//! `restore` from the target, over the network: needs a certificate of the role "restore", and no agent on this host.

use std::{
    fs::File,
    io::{Seek as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use assay_common::{
    cli::{CommandError, Connection, Offered, RestoreArgs, all, print},
    digest::RootDigest,
    error::Hint as _,
    id::GenerationNumber,
    keyring::Keyring,
    restore::{Part, SupplyError, Want},
    signing::{KeyError, SigningKey, VerifyingKey},
    tls::{ConnectOptions, Role, TlsFiles, connect},
    verdict::{Outcome, unverified_verdict, verify_verdict_with},
};
use assay_proto::v1::{
    ContentRequest, ContentStart, FetchManifestRequest, OpenRestoreRequest, ReportRestoreRequest,
    restore_service_client::RestoreServiceClient,
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Status, transport::Channel};

use crate::{config::Config, run::history::History};

/// A manifest that is longer is not fetched, in bytes: twice that of the largest tree that we know of.
const MAX_MANIFEST_BYTES: u64 = 64 * 1024 * 1024 * 1024;
/// Largest answer, in bytes: a part of 2 MiB with room to spare.
const MAX_MESSAGE_BYTES: usize = 8 * 1024 * 1024;

/// Takes a generation back from the target
///
/// What the configuration does not say, or on a host without one, stands on the line: --server (the target), --ca, --cert and --cert-key (of
/// the role "restore"), --target-key, --source-key.
#[derive(Debug, clap::Args)]
pub(super) struct Restore {
    #[command(flatten)]
    what: RestoreArgs,
    /// The target's public signing key, instead of the configuration's `target.signing_key`; may be given several times, oldest first
    #[arg(long, value_name = "PUB")]
    target_key: Vec<PathBuf>,
}

impl Restore {
    pub(super) async fn run(
        mut self,
        config: Option<&Config>,
        connection: &Connection,
        json: bool,
    ) -> Result<ExitCode, CommandError> {
        let began = Instant::now();
        let live = config
            .iter()
            .flat_map(|config| &config.repositories)
            .flat_map(|repository| &repository.header.roots);
        self.what.live_roots = live.map(|root| PathBuf::from(&root.live_path)).collect();
        // Faults of the line come before the network is asked.
        self.what.options()?;
        let missing = |what: &str| {
            CommandError::usage(format!("{what} is not given, and there is no configuration that says it"))
                .hint("assay-source restore --help tells what is needed")
        };
        let url = connection.server.clone().or_else(|| config.map(|config| config.target.url.clone()));
        let url = url.ok_or_else(|| missing("--server"))?;
        let keys = match config {
            Some(config) if self.target_key.is_empty() => Keyring::load(&config.target.signing_key),
            None if self.target_key.is_empty() => return Err(missing("--target-key")),
            _ => Keyring::load_all(&self.target_key),
        };
        let keys = keys
            .map_err(|error| CommandError { hint: error.hint(), ..CommandError::usage(error.to_string()) })?;
        let source_keys = self.what.source_keys(|| config.map(|config| own_keys(&config.signing_key)))?;
        let files = TlsFiles {
            ca: connection
                .ca
                .clone()
                .or_else(|| config.map(|config| config.tls.ca.clone()))
                .ok_or_else(|| missing("--ca"))?,
            cert: connection.cert.clone().ok_or_else(|| needs_certificate("--cert"))?,
            key: connection.key.clone().ok_or_else(|| needs_certificate("--key"))?,
        };
        let (channel, _) =
            connect(&url, Role::Target, &files, &[Role::Restore], &ConnectOptions::default()).await?;
        let mut client = RestoreServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let failed = |status: Status| CommandError::from_status(&status, &url);

        let repository = match config.map(|config| &config.repositories[..]) {
            Some([only]) if self.what.repository.is_empty() => only.name.clone(),
            _ => all::real_name(&self.what.repository),
        };
        if repository.is_empty() {
            return Err(CommandError::usage("the repository is not named"));
        }
        let request = OpenRestoreRequest { repository: repository.clone(), generation: self.what.generation };
        let opened = client.open_restore(request).await.map_err(failed)?.into_inner();
        if self.what.generation > 0 && opened.generation != self.what.generation {
            return Err(CommandError::not_run("the target offers another generation than was asked for"));
        }
        let root = RootDigest(
            opened
                .root_digest
                .as_slice()
                .try_into()
                .map_err(|_| CommandError::not_run("the target's root digest is none"))?,
        );
        let generation = GenerationNumber(opened.generation);
        let verdict = (!opened.verdict.is_empty()).then_some(opened.verdict);
        // An earlier target does not say, and offers by itself what is verified only.
        let is_verified = opened.verified.unwrap_or(self.what.generation == 0);
        let offered = Offered { repository, generation, root, verdict, is_verified };
        let mut passed_over = None;
        if self.what.generation == 0
            && !self.what.unverified
            && let Some(config) = config
        {
            let known = KnownPasses::read(&config.agent.state, &offered.repository, &keys);
            passed_over = known.admit(generation, is_verified)?;
        }
        let vouched = self.what.believe(&offered, &keys, source_keys.as_ref())?.passing_over(passed_over);
        if let Some(config) = config {
            refuse_out_of_time(&config.agent.state, &offered, &keys)?;
        }
        if !json {
            print(&format!("{}\n", vouched.text));
        }
        let manifest = fetch_manifest(&mut client, &offered).await.map_err(|error| match error {
            Fetch::Status(status) => failed(status),
            Fetch::Io(error) => CommandError::not_run(format!("the manifest cannot be kept: {error}")).hint(
                "it is put into TMPDIR while the restore runs: make room there, or name another folder",
            ),
            Fetch::TooLong => CommandError::not_run("the target's manifest is longer than any may be"),
        })?;

        let runtime = tokio::runtime::Handle::current();
        let (line, start) = (client.clone(), content_start(&offered));
        let work = || {
            self.what.run(&offered, manifest, began, json, move |wants, parts| {
                drop(runtime.spawn(supply(line, start, wants, parts)));
            })
        };
        // This thread may block: the connection is served by the others.
        let ended = tokio::task::block_in_place(work)?;
        let report = ReportRestoreRequest {
            repository: offered.repository.clone(),
            generation: generation.0,
            seconds: ended.took.as_secs_f64(),
            files: ended.asked.0,
            total_bytes: ended.asked.1,
            received_bytes: ended.report.progress.fetched_bytes,
            complete: ended.is_complete(),
            unverified: vouched.unverified.clone().unwrap_or_default(),
        };
        if let Err(status) = client.report_restore(report).await {
            tracing::warn!(%status, "the target was not told how long it took");
        }
        Ok(self.what.show(&offered, &vouched, &ended, json))
    }
}

/// Verdicts of this host that are looked through for its newest PASS.
const VERDICTS_LOOKED_AT: usize = 1000;

/// The newest generations that the target has signed a PASS of, as this host's agent keeps them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct KnownPasses {
    /// Whatever the PASS is worth.
    newest: Option<GenerationNumber>,
    /// By a checker that a negative control had proven when the verdict was signed.
    proven: Option<GenerationNumber>,
}

impl KnownPasses {
    /// From passes, newest first: each with whether its checker was proven.
    fn of(passes: impl IntoIterator<Item = (GenerationNumber, bool)>) -> Self {
        let mut known = Self::default();
        for (generation, is_proven) in passes {
            known.newest = known.newest.or(Some(generation));
            if is_proven {
                known.proven = Some(generation);
                break;
            }
        }
        known
    }

    /// From the verdicts in the state of this host's agent; none where they cannot be read.
    fn read(state: &Path, repository: &str, target_keys: &Keyring) -> Self {
        let entries = std::fs::read_dir(state.join(repository).join("verdicts"));
        let mut paths: Vec<_> =
            entries.into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
        // Their names are those of runs, which begin with their time.
        paths.sort_unstable();
        let newest_first = paths.iter().rev().take(VERDICTS_LOOKED_AT);
        Self::of(newest_first.filter_map(|path| {
            let verdict = verify_verdict_with(&std::fs::read(path).ok()?, target_keys, None).ok()?.verdict;
            let is_pass = verdict.outcome == Outcome::Pass && verdict.repository == repository;
            let generation = verdict.generation.filter(|_| is_pass)?;
            Some((generation, verdict.claims_proto().proven))
        }))
    }

    /// Holds a generation that the target offers as its newest against what this host knows: a target that was taken over could have an old
    /// tree restored, since it has all that was signed about it. Gives back a newer PASS that is passed over, because no control had proven its
    /// checker.
    fn admit(
        self,
        offered: GenerationNumber,
        is_verified: bool,
    ) -> Result<Option<GenerationNumber>, CommandError> {
        // The target takes the newest that passed as long as it calls none verified. Without any proof of its own this host expects that too.
        let least = if is_verified { self.proven.or(self.newest) } else { self.newest };
        match least {
            Some(known) if known > offered => Err(CommandError::not_run(format!(
                "the target offers generation {offered} as the newest verified one, and this host has the target's signed PASS of generation {known}"
            ))
            .hint(format!(
                "ask the target's operator what became of generation {known} (rot, a later FAIL, or a checker that no negative control has proven yet); --generation {offered} restores this one all the same"
            ))),
            _ => Ok(self.newest.filter(|newest| *newest > offered)),
        }
    }
}

/// A verdict of a former key of the target must be older than the first that this host got of the key after it, and in the place of one that
/// this host has kept no other counts: whoever has stolen a key could have made it.
fn refuse_out_of_time(state: &Path, offered: &Offered, keys: &Keyring) -> Result<(), CommandError> {
    let Some(envelope) = &offered.verdict else { return Ok(()) };
    let Ok(verified) = verify_verdict_with(envelope, keys, None) else { return Ok(()) };
    let state = state.join(&offered.repository);
    let history = std::fs::read(state.join("history.json")).ok();
    let history: Option<History> = history.and_then(|json| serde_json::from_slice(&json).ok());
    let seen = history.and_then(|history| history.target_key);
    let sequence = verified.verdict.sequence;
    let is_former = seen.and_then(|seen| seen.place(keys)).is_some_and(|place| verified.target_place < place);
    let kept = std::fs::read(state.join("verdicts").join(format!("{}.json", verified.verdict.run_id))).ok();
    let of_another = kept.is_some_and(|kept| {
        kept != *envelope && unverified_verdict(&kept).is_ok_and(|it| it.sequence == sequence)
    });
    let why = if is_former && seen.is_some_and(|seen| sequence >= seen.since) {
        "is signed with a key that the target had replaced by then"
    } else if of_another {
        "is another one than this host has got and kept of that run"
    } else {
        return Ok(());
    };
    Err(CommandError::not_run(format!("verdict {sequence:09} {why}"))
        .hint("do not restore from this target before you know who has signed this; let its operator check the generation again: assay-target verify"))
}

/// The public half of the key that this host's agent signs with, which may be root's to read: the file beside it says it as well. With those
/// that it had before.
pub(super) fn own_keys(private: &Path) -> Result<Keyring, KeyError> {
    let public = private.with_extension("pub");
    let own = SigningKey::load(private)
        .map(|key| key.verifying_key())
        .or_else(|error| VerifyingKey::load(&public).map_err(|_| error))?;
    Keyring::around(own, private)
}

fn needs_certificate(what: &str) -> CommandError {
    CommandError::usage(format!("{what} is not given: a restore has a certificate of its own"))
        .hint("on the host of the certificate authority: assay-target pki issue FOLDER --role restore --name NAME, and NAME in `restore` of the \
               repository in the target's configuration")
}

enum Fetch {
    Status(Status),
    Io(std::io::Error),
    TooLong,
}

/// The manifest, in a file without a name.
async fn fetch_manifest(
    client: &mut RestoreServiceClient<Channel>,
    offered: &Offered,
) -> Result<File, Fetch> {
    let mut file = tempfile::tempfile().map_err(Fetch::Io)?;
    let request =
        FetchManifestRequest { repository: offered.repository.clone(), generation: offered.generation.0 };
    let mut parts = client.fetch_sealed_manifest(request).await.map_err(Fetch::Status)?.into_inner();
    let mut length = 0;
    while let Some(part) = parts.message().await.map_err(Fetch::Status)? {
        length += part.data.len() as u64;
        if length > MAX_MANIFEST_BYTES {
            return Err(Fetch::TooLong);
        }
        file.write_all(&part.data).map_err(Fetch::Io)?;
    }
    file.rewind().map_err(Fetch::Io)?;
    Ok(file)
}

fn content_start(offered: &Offered) -> ContentRequest {
    let start = ContentStart { repository: offered.repository.clone(), generation: offered.generation.0 };
    ContentRequest { start: Some(start), ..Default::default() }
}

/// Passes requests on to the target, and its answers back.
async fn supply(
    mut client: RestoreServiceClient<Channel>,
    start: ContentRequest,
    wants: tokio::sync::mpsc::Receiver<Want>,
    parts: tokio::sync::mpsc::Sender<Result<Part, SupplyError>>,
) {
    let requests = tokio_stream::once(start).chain(
        ReceiverStream::new(wants).map(|Want { entry, pieces }| ContentRequest {
            start: None,
            entry,
            pieces,
        }),
    );
    let cut = |status: Status| SupplyError::Cut(status.message().to_owned());
    let mut answers = match client.fetch_content(requests).await {
        Ok(answers) => answers.into_inner(),
        Err(status) => return drop(parts.send(Err(cut(status))).await),
    };
    loop {
        let part = match answers.message().await {
            Ok(Some(part)) => {
                Ok(Part { pieces: part.pieces, raw_bytes: part.raw_bytes, data: part.data, lost: part.lost })
            }
            Ok(None) => return,
            Err(status) => Err(cut(status)),
        };
        let ended = part.is_err();
        if parts.send(part).await.is_err() || ended {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Generations that passed, newest first, and whether their checker was proven; what is offered, and whether the target calls it verified;
    /// what comes out: refused, taken, or taken with a newer one that is passed over.
    #[test]
    fn the_newest_proven_pass_is_the_least_that_a_target_may_offer() {
        const REFUSED: Option<u64> = None;
        const TAKEN: Option<u64> = Some(0);
        type Case<'a> = (&'a [(u64, bool)], u64, bool, Option<u64>);
        let cases: [Case<'_>; 12] = [
            // Nothing is known here.
            (&[], 3, true, TAKEN),
            (&[], 3, false, TAKEN),
            // The newest is proven: nothing older goes.
            (&[(9, true), (8, true)], 9, true, TAKEN),
            (&[(9, true), (8, true)], 8, true, REFUSED),
            (&[(9, true), (8, true)], 8, false, REFUSED),
            // Newer ones are not proven: the newest that is, or a later one that a control has proven since.
            (&[(9, false), (8, false), (7, true), (6, true)], 7, true, Some(9)),
            (&[(9, false), (8, false), (7, true), (6, true)], 8, true, Some(9)),
            (&[(9, false), (8, false), (7, true), (6, true)], 9, true, TAKEN),
            (&[(9, false), (8, false), (7, true), (6, true)], 6, true, REFUSED),
            // The target calls none verified, so it takes the newest that passed.
            (&[(9, false), (7, true)], 7, false, REFUSED),
            // No control has passed yet, as far as this host knows.
            (&[(9, false), (8, false)], 9, false, TAKEN),
            (&[(9, false), (8, false)], 8, true, REFUSED),
        ];
        for (passes, offered, is_verified, expected) in cases {
            let known =
                KnownPasses::of(passes.iter().map(|(number, proven)| (GenerationNumber(*number), *proven)));
            let admitted = known.admit(GenerationNumber(offered), is_verified);
            let said = admitted.ok().map(|over| over.map_or(0, |number| number.0));
            assert_eq!(said, expected, "{passes:?}, {offered} {is_verified}");
        }
    }
}
