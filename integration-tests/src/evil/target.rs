//! A target that lies: it stands between a source and the real target, with the target's certificate, and changes one answer.

use std::{
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use assay_common::tls::{
    ConnectOptions, Credentials, IncomingLimits, Role, TlsFiles, connect, incoming, server_builder,
};
use assay_proto::v1::{
    AbandonRunRequest, AbandonRunResponse, AcknowledgeVerdictRequest, AcknowledgeVerdictResponse,
    CheckRunRequest, ContentPart, ContentRequest, FetchManifestRequest, GetOutlookRequest, ManifestPart,
    OpenRestoreRequest, OpenRestoreResponse, OpenRunRequest, OpenRunResponse, Outlook, ReportReadingsRequest,
    ReportReadingsResponse, ReportRestoreRequest, ReportRestoreResponse, RunCheckProgress, SealRunRequest,
    SealRunResponse, SecondReading, TransferRequest, TransferResponse,
    replication_service_client::ReplicationServiceClient,
    replication_service_server::{ReplicationService, ReplicationServiceServer},
    restore_service_client::RestoreServiceClient,
    restore_service_server::{RestoreService, RestoreServiceServer},
};
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Code, Request, Response, Status, Streaming, transport::Channel};

/// What becomes of one answer of a stream: any number of answers, or an end.
pub type Change<T> = Box<dyn Fn(T) -> Result<Vec<T>, Status> + Send + Sync>;
/// What becomes of the answer of a call.
pub type ChangeOne<T> = Box<dyn Fn(T) -> Result<T, Status> + Send + Sync>;

/// The one message that is changed.
#[derive(Default)]
pub enum Lie {
    /// None is.
    #[default]
    None,
    /// The answer to OpenRun.
    Open(ChangeOne<OpenRunResponse>),
    /// The parts of a manifest.
    Manifest(Change<ManifestPart>),
    /// The answers to offers and packs.
    Transfer(Change<TransferResponse>),
    /// What is said of the seal and of the check.
    Seal(Change<SealRunResponse>),
    /// The verdict on a run that was given up.
    Abandon(ChangeOne<AbandonRunResponse>),
    /// The answer to OpenRestore: which generation it is, and what is vouched for.
    Restore(ChangeOne<OpenRestoreResponse>),
    /// The parts of the manifest of a sealed generation, for a restore.
    SealedManifest(Change<ManifestPart>),
    /// The content of a sealed generation, for a restore.
    Content(Change<ContentPart>),
    /// No answer at all to the call of this name, on a connection that stands.
    Silence(&'static str),
}

/// The server in between.
pub struct EvilTarget {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    lie: Mutex<Arc<Lie>>,
    readings: Mutex<Vec<SecondReading>>,
    honest: ReplicationServiceClient<Channel>,
    restores: Option<RestoreServiceClient<Channel>>,
}

impl EvilTarget {
    /// Serves on a port of its own, between sources and the target at `url`. The certificates are in the folder `pki`.
    ///
    /// # Panics
    /// When it cannot.
    pub async fn start(pki: &Path, url: &str) -> Self {
        let files = |name: &str| TlsFiles {
            ca: pki.join("ca.crt"),
            cert: pki.join(format!("{name}.crt")),
            key: pki.join(format!("{name}.key")),
        };
        let options = ConnectOptions::default();
        let connected = connect(url, Role::Target, &files("source"), &[Role::Source], &options).await;
        let (channel, _) = connected.expect("the target serves");
        let honest = ReplicationServiceClient::new(channel).max_encoding_message_size(64 << 20);
        // Only where a restore's certificate was made.
        let restores = if pki.join("restore-bob.crt").exists() {
            let connected =
                connect(url, Role::Target, &files("restore-bob"), &[Role::Restore], &options).await;
            Some(RestoreServiceClient::new(connected.expect("the target serves").0))
        } else {
            None
        };
        let shared = Arc::new(Shared { lie: Mutex::default(), readings: Mutex::default(), honest, restores });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let credentials = Credentials::load(&files("target"), &[Role::Target]).expect("the tests made them");
        let config = credentials.server_config().expect("the tests made them");
        let connections = incoming(listener, config, IncomingLimits::default());
        let service = ReplicationServiceServer::from_arc(Arc::new(Between(Arc::clone(&shared))))
            .max_decoding_message_size(64 << 20)
            .max_encoding_message_size(64 << 20);
        let restores = RestoreServiceServer::from_arc(Arc::new(Between(Arc::clone(&shared))));
        tokio::spawn(
            server_builder().add_service(service).add_service(restores).serve_with_incoming(connections),
        );
        Self { port, shared }
    }

    /// Where it serves.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// From now on this is changed.
    pub fn tell(&self, lie: Lie) {
        *self.shared.lie.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(lie);
    }

    /// What sources have reported when they were asked to read files again.
    pub fn readings(&self) -> Vec<SecondReading> {
        self.shared.readings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The service.
struct Between(Arc<Shared>);

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Between {
    fn lie(&self) -> Arc<Lie> {
        Arc::clone(&self.0.lie.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn maybe_silent(&self, call: &str) {
        if matches!(&*self.lie(), Lie::Silence(silent) if *silent == call) {
            std::future::pending::<()>().await;
        }
    }
}

/// Passes a stream on, changed.
fn changed<T: Send + 'static>(
    lie: Arc<Lie>,
    mut honest: Streaming<T>,
    pick: fn(&Lie) -> Option<&Change<T>>,
) -> Response<BoxStream<T>> {
    let (sender, queue) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Some(answer) = honest.next().await {
            let answers = match (answer, pick(&lie)) {
                (Ok(answer), Some(change)) => change(answer),
                (Ok(answer), None) => Ok(vec![answer]),
                (Err(status), _) => Err(status),
            };
            let ended = answers.is_err();
            let answers: Vec<_> = match answers {
                Ok(answers) => answers.into_iter().map(Ok).collect(),
                // No fault: the stream just ends.
                Err(status) if status.code() == Code::Ok => Vec::new(),
                Err(status) => vec![Err(status)],
            };
            for answer in answers {
                if sender.send(answer).await.is_err() {
                    return;
                }
            }
            if ended {
                return;
            }
        }
    });
    Response::new(Box::pin(ReceiverStream::new(queue)))
}

/// What a source says, for as long as it says something.
fn told<T: Send + 'static>(requests: Streaming<T>) -> impl Stream<Item = T> + Send + 'static {
    requests.take_while(Result::is_ok).filter_map(Result::ok)
}

#[tonic::async_trait]
impl ReplicationService for Between {
    async fn open_run(&self, request: Request<OpenRunRequest>) -> Result<Response<OpenRunResponse>, Status> {
        self.maybe_silent("OpenRun").await;
        let opened = self.0.honest.clone().open_run(request.into_inner()).await?.into_inner();
        Ok(Response::new(match &*self.lie() {
            Lie::Open(change) => change(opened)?,
            _ => opened,
        }))
    }

    type FetchManifestStream = BoxStream<ManifestPart>;

    async fn fetch_manifest(
        &self,
        request: Request<FetchManifestRequest>,
    ) -> Result<Response<Self::FetchManifestStream>, Status> {
        let honest = self.0.honest.clone().fetch_manifest(request.into_inner()).await?.into_inner();
        Ok(changed(self.lie(), honest, |lie| match lie {
            Lie::Manifest(change) => Some(change),
            _ => None,
        }))
    }

    type TransferStream = BoxStream<TransferResponse>;

    async fn transfer(
        &self,
        request: Request<Streaming<TransferRequest>>,
    ) -> Result<Response<Self::TransferStream>, Status> {
        self.maybe_silent("Transfer").await;
        let honest = self.0.honest.clone().transfer(told(request.into_inner())).await?.into_inner();
        Ok(changed(self.lie(), honest, |lie| match lie {
            Lie::Transfer(change) => Some(change),
            _ => None,
        }))
    }

    type SealRunStream = BoxStream<SealRunResponse>;

    async fn seal_run(
        &self,
        request: Request<Streaming<SealRunRequest>>,
    ) -> Result<Response<Self::SealRunStream>, Status> {
        self.maybe_silent("SealRun").await;
        let honest = self.0.honest.clone().seal_run(told(request.into_inner())).await?.into_inner();
        Ok(changed(self.lie(), honest, |lie| match lie {
            Lie::Seal(change) => Some(change),
            _ => None,
        }))
    }

    type CheckRunStream = BoxStream<RunCheckProgress>;

    async fn check_run(
        &self,
        request: Request<CheckRunRequest>,
    ) -> Result<Response<Self::CheckRunStream>, Status> {
        let honest = self.0.honest.clone().check_run(request.into_inner()).await?.into_inner();
        Ok(changed(self.lie(), honest, |_| None))
    }

    async fn report_readings(
        &self,
        request: Request<ReportReadingsRequest>,
    ) -> Result<Response<ReportReadingsResponse>, Status> {
        let report = request.into_inner();
        self.0.readings.lock().unwrap_or_else(PoisonError::into_inner).extend(report.readings);
        Ok(Response::new(ReportReadingsResponse {}))
    }

    async fn acknowledge_verdict(
        &self,
        request: Request<AcknowledgeVerdictRequest>,
    ) -> Result<Response<AcknowledgeVerdictResponse>, Status> {
        self.0.honest.clone().acknowledge_verdict(request.into_inner()).await
    }

    async fn get_outlook(&self, request: Request<GetOutlookRequest>) -> Result<Response<Outlook>, Status> {
        self.0.honest.clone().get_outlook(request.into_inner()).await
    }

    async fn abandon_run(
        &self,
        request: Request<AbandonRunRequest>,
    ) -> Result<Response<AbandonRunResponse>, Status> {
        let abandoned = self.0.honest.clone().abandon_run(request.into_inner()).await?.into_inner();
        Ok(Response::new(match &*self.lie() {
            Lie::Abandon(change) => change(abandoned)?,
            _ => abandoned,
        }))
    }
}

impl Between {
    fn restores(&self) -> RestoreServiceClient<Channel> {
        self.0.restores.clone().expect("the test has made a restore's certificate")
    }
}

#[tonic::async_trait]
impl RestoreService for Between {
    async fn open_restore(
        &self,
        request: Request<OpenRestoreRequest>,
    ) -> Result<Response<OpenRestoreResponse>, Status> {
        let opened = self.restores().open_restore(request.into_inner()).await?.into_inner();
        Ok(Response::new(match &*self.lie() {
            Lie::Restore(change) => change(opened)?,
            _ => opened,
        }))
    }

    type FetchSealedManifestStream = BoxStream<ManifestPart>;

    async fn fetch_sealed_manifest(
        &self,
        request: Request<FetchManifestRequest>,
    ) -> Result<Response<Self::FetchSealedManifestStream>, Status> {
        let honest = self.restores().fetch_sealed_manifest(request.into_inner()).await?.into_inner();
        Ok(changed(self.lie(), honest, |lie| match lie {
            Lie::SealedManifest(change) => Some(change),
            _ => None,
        }))
    }

    type FetchContentStream = BoxStream<ContentPart>;

    async fn fetch_content(
        &self,
        request: Request<Streaming<ContentRequest>>,
    ) -> Result<Response<Self::FetchContentStream>, Status> {
        let honest = self.restores().fetch_content(told(request.into_inner())).await?.into_inner();
        Ok(changed(self.lie(), honest, |lie| match lie {
            Lie::Content(change) => Some(change),
            _ => None,
        }))
    }

    async fn report_restore(
        &self,
        request: Request<ReportRestoreRequest>,
    ) -> Result<Response<ReportRestoreResponse>, Status> {
        self.restores().report_restore(request.into_inner()).await
    }
}
