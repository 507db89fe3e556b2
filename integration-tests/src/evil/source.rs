//! A source that lies: a run as a list of messages, each of which a test may change.

use std::{collections::HashMap, path::Path};

use assay_common::{
    digest::{ContentDigest, RootDigest},
    id::{GenerationNumber, RunId},
    manifest::{Entry, EntryKind, Header, ManifestWriter, Root},
    rpc_status::{RpcFault, fault_from_status},
    signing::SigningKey,
    tls::{ConnectError, ConnectOptions, Role, TlsFiles, connect},
    verdict::{
        Counts, HexDigest, Mark, SourceStatement, sign_source_statement, timestamp_to_proto, verify_verdict,
    },
};
use assay_proto::v1::{
    self, FilePart, ManifestDelta, ManifestStep, Offer, OpenRunRequest, OpenRunResponse, Pack, PutEntry,
    SealFinish, SealRunRequest, SealStart, TransferRequest, TransferResponse, TransferStart,
    manifest_step::Kind as StepKind, replication_service_client::ReplicationServiceClient,
    seal_run_request::Kind as SealKind, transfer_request::Kind as TransferKind,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

/// Version of the protocol that it speaks.
pub const PROTOCOL: u32 = 3;

/// A tree that it says it has read: what the manifest lists, the steps that lead there, and the content.
#[derive(Debug, Clone)]
pub struct Tree {
    /// Generation that the steps are against; 0 for none.
    pub base: u64,
    /// The roots.
    pub header: Header,
    /// Steps, in order.
    pub steps: Vec<ManifestStep>,
    /// The whole manifest that the signed root digest is of.
    pub listed: Vec<Entry>,
    /// What is offered: number and bytes.
    pub contents: Vec<(u64, Vec<u8>)>,
}

/// The root folder's entry.
pub fn folder(path: &str) -> Entry {
    Entry { path: path.into(), kind: EntryKind::Directory.into(), mode: 0o755, ..Default::default() }
}

/// A file's entry.
pub fn file(path: impl Into<Vec<u8>>, content: &[u8]) -> Entry {
    Entry {
        path: path.into(),
        kind: EntryKind::File.into(),
        mode: 0o644,
        size: content.len() as u64,
        digest: ContentDigest::of(content).0.to_vec(),
        ..Default::default()
    }
}

/// A symbolic or hard link's entry.
pub fn link(path: &str, kind: EntryKind, target: &str) -> Entry {
    let mode = if kind == EntryKind::Symlink { 0o777 } else { 0 };
    Entry { path: path.into(), kind: kind.into(), mode, link_target: target.into(), ..Default::default() }
}

/// A step.
pub fn step(kind: StepKind) -> ManifestStep {
    ManifestStep { kind: Some(kind) }
}

impl Tree {
    /// Nothing yet, upon `base`.
    pub fn upon(base: u64, live: &Path) -> Self {
        let live_path = live.to_str().expect("tests have plain paths").to_owned();
        let root = Root { name: "root0".to_owned(), live_path, subdirectory: String::new() };
        let header = Header { roots: vec![root] };
        Self { base, header, steps: Vec::new(), listed: Vec::new(), contents: Vec::new() }
    }

    /// The tree that every honest run of the tests has. Content numbers start at 1.
    pub fn honest(live: &Path) -> Self {
        let mut tree = Self::upon(0, live);
        tree.put(folder(""), None);
        tree.put(file("a", b"first"), Some(b"first"));
        tree.put(link("b", EntryKind::Hardlink, "a"), None);
        tree.put(folder("folder"), None);
        tree.put(file("folder/inner", b"second"), Some(b"second"));
        tree.put(link("link", EntryKind::Symlink, "folder"), None);
        tree.put(file("z", b"last"), Some(b"last"));
        tree
    }

    /// The same tree again, upon a generation that is the same.
    pub fn kept(base: u64, live: &Path) -> Self {
        let honest = Self::honest(live);
        let mut tree = Self::upon(base, live);
        tree.steps = vec![step(StepKind::Keep(honest.listed.len() as u64))];
        tree.listed = honest.listed;
        tree
    }

    /// Puts an entry at the end.
    pub fn put(&mut self, entry: Entry, content: Option<&[u8]>) {
        let number = content.map_or(0, |_| self.contents.len() as u64 + 1);
        self.contents.extend(content.map(|content| (number, content.to_vec())));
        self.steps.push(step(StepKind::Put(PutEntry {
            entry: Some(entry.clone()),
            content: number,
            reuse: Vec::new(),
        })));
        self.listed.push(entry);
    }

    /// The root digest of what is listed, whatever that is.
    pub fn root(&self) -> RootDigest {
        let mut writer = ManifestWriter::create(Vec::new(), &self.header).expect("memory");
        for entry in &self.listed {
            writer.push(entry).expect("memory");
        }
        writer.finish().expect("memory").1
    }
}

/// What is done on the stream of content.
#[derive(Debug, Clone)]
pub enum Act {
    /// Offers, waits for the answer, and sends what is wanted.
    Offer(Offer),
    /// Sends a message, and waits for nothing.
    Say(Option<TransferKind>),
    /// Waits for an answer.
    Hear,
    /// Does something else before the next one.
    Meanwhile(Meanwhile),
}

/// Something that happens in the middle of a stream.
#[derive(Clone)]
pub struct Meanwhile(pub std::sync::Arc<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for Meanwhile {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Meanwhile")
    }
}

/// A run, message by message.
pub struct Script {
    /// The first call.
    pub open: OpenRunRequest,
    /// The stream of content.
    pub acts: Vec<Act>,
    /// What becomes of a pack before it is sent.
    pub pack: fn(Pack) -> Pack,
    /// The stream of names.
    pub seal: Vec<Option<SealKind>>,
    chunks: HashMap<ContentDigest, Vec<u8>>,
}

/// A part of an offer that is a whole small content.
pub fn part(number: u64, content: &[u8]) -> FilePart {
    FilePart {
        content: number,
        pieces: if content.is_empty() { Vec::new() } else { vec![(content.len() as u64) << 1] },
        digests: if content.is_empty() { Vec::new() } else { ContentDigest::of(content).0.to_vec() },
        last: true,
        ..Default::default()
    }
}

/// How a run ended.
#[derive(Debug)]
pub enum End {
    /// The generation was sealed, and this is the verdict's envelope.
    Verdict(String),
    /// The target said no: in which call, and what.
    Refused(&'static str, RpcFault),
}

impl End {
    /// The fault, which must be one.
    pub fn fault(self) -> (&'static str, RpcFault) {
        match self {
            Self::Refused(call, fault) => (call, fault),
            Self::Verdict(envelope) => panic!("the target sealed it: {envelope}"),
        }
    }
}

/// The source itself: valid certificate, valid key.
pub struct EvilSource {
    /// Its repository.
    pub repository: String,
    /// Its signing key.
    pub key: SigningKey,
    /// The way to the target.
    pub client: ReplicationServiceClient<Channel>,
    /// For its second-finest run ids.
    runs: std::sync::atomic::AtomicU32,
}

impl EvilSource {
    /// Connects as the source whose files are in the folder `pki`.
    ///
    /// # Errors
    /// When the target does not take it.
    pub async fn connect(pki: &Path, url: &str) -> Result<Self, ConnectError> {
        Self::connect_as(pki, "source", url).await
    }

    /// The same with the certificate `name`.
    ///
    /// # Errors
    /// When the target does not take it.
    pub async fn connect_as(pki: &Path, name: &str, url: &str) -> Result<Self, ConnectError> {
        let files = TlsFiles {
            ca: pki.join("ca.crt"),
            cert: pki.join(format!("{name}.crt")),
            key: pki.join(format!("{name}.key")),
        };
        let (channel, _) =
            connect(url, Role::Target, &files, &[Role::Source], &ConnectOptions::default()).await?;
        let client = ReplicationServiceClient::new(channel).max_encoding_message_size(256 << 20);
        Ok(Self {
            repository: "repo".to_owned(),
            key: SigningKey::load(&pki.join("source-signing.key")).expect("the tests made it"),
            client,
            runs: Default::default(),
        })
    }

    /// The same, with run ids after this one.
    #[must_use]
    pub fn after(self, run: &RunId) -> Self {
        let count = u32::from_str_radix(&run.as_str()[17..], 16).expect("it has the form");
        self.runs.store(count + 1, std::sync::atomic::Ordering::SeqCst);
        self
    }

    /// A run id that nobody had before.
    pub fn run_id(&self) -> RunId {
        let count = self.runs.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        format!("20200101T000000Z-{count:06x}").parse().expect("it has the form")
    }

    /// Opens a run.
    ///
    /// # Errors
    /// What the target says.
    pub async fn open(&self, request: OpenRunRequest) -> Result<OpenRunResponse, RpcFault> {
        let opened = self.client.clone().open_run(request).await;
        Ok(opened.map_err(|status| fault_from_status(&status))?.into_inner())
    }

    /// The request that opens `run`.
    pub fn opening(&self, run: &RunId) -> OpenRunRequest {
        OpenRunRequest {
            repository: self.repository.clone(),
            run_id: run.to_string(),
            protocol: PROTOCOL,
            ..Default::default()
        }
    }

    /// The messages that bring and seal `tree` in `run`, whose generation will be `generation`.
    pub fn script(&self, run: &RunId, generation: u64, tree: &Tree) -> Script {
        let start = TransferStart { repository: self.repository.clone(), run_id: run.to_string() };
        let mut acts = vec![Act::Say(Some(TransferKind::Start(start)))];
        let parts: Vec<FilePart> = tree.contents.iter().map(|(number, bytes)| part(*number, bytes)).collect();
        if !parts.is_empty() {
            acts.push(Act::Offer(Offer { batch: 1, parts }));
        }
        let start = SealStart {
            repository: self.repository.clone(),
            run_id: run.to_string(),
            generation,
            base_generation: tree.base,
            manifest_header: tree.header.to_json(),
        };
        let finish = self.finish(run, tree, |_| {});
        let delta = ManifestDelta { steps: tree.steps.clone(), ..Default::default() };
        Script {
            open: self.opening(run),
            acts,
            pack: |pack| pack,
            seal: vec![
                Some(SealKind::Start(start)),
                Some(SealKind::Delta(delta)),
                Some(SealKind::Finish(finish)),
            ],
            chunks: tree
                .contents
                .iter()
                .map(|(_, bytes)| (ContentDigest::of(bytes), bytes.clone()))
                .collect(),
        }
    }

    /// The last message of a seal, with a statement that `change` may have changed before it was signed.
    pub fn finish(&self, run: &RunId, tree: &Tree, change: impl FnOnce(&mut SourceStatement)) -> SealFinish {
        let root = tree.root();
        let time = jiff::Timestamp::from_second(1_600_000_000).expect("a time");
        let mark = Mark { id: "mark".to_owned(), time };
        let mut statement = SourceStatement {
            not_copied: Vec::new(),
            repository: self.repository.clone(),
            run_id: run.clone(),
            mark: mark.clone(),
            root: Some(HexDigest(root.0)),
            base_generation: (tree.base > 0).then_some(GenerationNumber(tree.base)),
            counts: Counts::default(),
            overrides: Vec::new(),
            source_version: "evil".to_owned(),
            nonce: None,
            readings: None,
        };
        change(&mut statement);
        SealFinish {
            root_digest: root.0.to_vec(),
            mark: Some(v1::Mark { id: mark.id, time: Some(timestamp_to_proto(time)) }),
            counts: Some(v1::Counts::default()),
            source_statement: sign_source_statement(&statement, &self.key).to_json(),
            overrides: Vec::new(),
        }
    }

    /// Does what the script says, to the end or to the first refusal.
    pub async fn play(&self, script: Script) -> End {
        match self.try_play(script).await {
            Ok(envelope) => End::Verdict(envelope),
            Err((call, fault)) => End::Refused(call, fault),
        }
    }

    async fn try_play(&self, script: Script) -> Result<String, (&'static str, RpcFault)> {
        let Script { open, acts, pack, seal, chunks } = script;
        self.open(open).await.map_err(|fault| ("OpenRun", fault))?;
        self.transfer(acts, pack, &chunks).await.map_err(|fault| ("Transfer", fault))?;
        self.seal(seal).await.map_err(|fault| ("SealRun", fault))
    }

    /// The stream of content alone.
    ///
    /// # Errors
    /// What the target says.
    pub async fn transfer(
        &self,
        acts: Vec<Act>,
        change: fn(Pack) -> Pack,
        chunks: &HashMap<ContentDigest, Vec<u8>>,
    ) -> Result<(), RpcFault> {
        let (requests, queue) = mpsc::channel::<TransferRequest>(4);
        let mut client = self.client.clone();
        let calling = tokio::spawn(async move { client.transfer(ReceiverStream::new(queue)).await });
        let mut responses: Option<Streaming<TransferResponse>> = None;
        let mut calling = Some(calling);
        let fault = |status: tonic::Status| fault_from_status(&status);
        let mut hear = async || -> Result<Option<TransferResponse>, RpcFault> {
            if let Some(calling) = calling.take() {
                let called = calling.await.expect("no panic");
                responses = Some(called.map_err(fault)?.into_inner());
            }
            responses.as_mut().expect("it was called").message().await.map_err(fault)
        };
        for act in acts {
            let say = async |kind: Option<TransferKind>| {
                // The target's own error tells more than a closed queue does.
                requests.send(TransferRequest { kind }).await.ok();
            };
            match act {
                Act::Say(kind) => say(kind).await,
                Act::Hear => drop(hear().await?),
                Act::Meanwhile(happens) => tokio::task::block_in_place(|| (happens.0)()),
                Act::Offer(offer) => {
                    say(Some(TransferKind::Offer(offer.clone()))).await;
                    let answer = hear().await?.unwrap_or_default();
                    if answer.stored {
                        continue;
                    }
                    let digests = offer.parts.iter().flat_map(|part| part.digests.chunks_exact(32));
                    let wanted = digests.enumerate().filter(|(index, _)| {
                        answer.wanted.get(index / 8).is_some_and(|byte| byte >> (index % 8) & 1 == 1)
                    });
                    let chunk = |digest| &chunks[&ContentDigest::from_slice(digest).expect("32 bytes")];
                    let data: Vec<u8> = wanted.flat_map(|(_, digest)| chunk(digest)).copied().collect();
                    let pack = Pack {
                        batch: offer.batch,
                        raw_bytes: data.len() as u64,
                        zstd: false,
                        data: data.into(),
                    };
                    say(Some(TransferKind::Pack(change(pack)))).await;
                    hear().await?;
                }
            }
        }
        drop(requests);
        while hear().await?.is_some() {}
        Ok(())
    }

    /// The stream of names alone, to the verdict.
    ///
    /// # Errors
    /// What the target says.
    pub async fn seal(&self, messages: Vec<Option<SealKind>>) -> Result<String, RpcFault> {
        let (requests, queue) = mpsc::channel(4);
        tokio::spawn(async move {
            for kind in messages {
                if requests.send(SealRunRequest { kind }).await.is_err() {
                    break;
                }
            }
        });
        let fault = |status: tonic::Status| fault_from_status(&status);
        let mut answers =
            self.client.clone().seal_run(ReceiverStream::new(queue)).await.map_err(fault)?.into_inner();
        let mut envelope = String::new();
        while let Some(answer) = answers.message().await.map_err(fault)? {
            envelope = answer.check.map(|check| check.envelope).unwrap_or_default();
        }
        Ok(envelope)
    }

    /// An honest run with `tree`, which must be sealed; returns its generation. The verdict must be signed by `target`, about
    /// this run, and PASS.
    pub async fn honest_run(&self, tree: &Tree, target: &assay_common::signing::VerifyingKey) -> u64 {
        let run = self.run_id();
        let opened = self.open(self.opening(&run)).await.expect("an honest run is opened");
        match self.play(self.script(&run, opened.generation, tree)).await {
            End::Refused(call, fault) => panic!("an honest run is refused in {call}: {fault:?}"),
            End::Verdict(envelope) => {
                let verified = verify_verdict(envelope.as_bytes(), target, Some(&self.key.verifying_key()));
                let verdict = verified.expect("it is the target's").verdict;
                assert_eq!(verdict.run_id, run);
                assert_eq!(verdict.outcome, assay_common::verdict::Outcome::Pass, "{}", verdict.message);
            }
        }
        opened.generation
    }
}
