//! Connections in one process, on port 0, with the health service as the call.

use std::{fs, path::Path, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use rustls::{ClientConfig, ServerConfig};
use tokio::{io::AsyncReadExt as _, net::TcpListener, sync::oneshot, task::JoinHandle};
use tonic::{Code, Request, Status, service::interceptor::InterceptedService, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::{client::Dialer, credentials::provider, *};
use crate::{
    error::report,
    pki::{DEFAULT_VALIDITY, Party, init_pki, issue, tests::options},
    rpc_status::fault_from_status,
    signing::KeyError,
};

fn pki() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("folder");
    init_pki(folder.path(), Some(folder.path()), &options(), Timestamp::now()).expect("init");
    folder
}

fn files(folder: &Path, stem: &str) -> TlsFiles {
    TlsFiles {
        ca: folder.join("ca.crt"),
        cert: folder.join(format!("{stem}.crt")),
        key: folder.join(format!("{stem}.key")),
    }
}

/// A certificate that expired a year ago.
fn expired(folder: &Path, role: Role) -> TlsFiles {
    let party = Party { name: "old".into(), hosts: vec!["localhost".into()] };
    let then = Timestamp::now() - SignedDuration::from_hours(2 * 366 * 24);
    issue(folder, folder, role, &party, Duration::from_secs(86_400), then).expect("issue");
    files(folder, &format!("{role}-old"))
}

/// A server without the checks that [`Credentials::load`] makes of the own side.
fn unchecked_server_config(files: &TlsFiles) -> Arc<ServerConfig> {
    use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&files.ca).expect("CA")).expect("CA");
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .expect("CA");
    let chain = vec![CertificateDer::from_pem_file(&files.cert).expect("certificate")];
    let key = PrivateKeyDer::from_pem_file(&files.key).expect("key");
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("versions")
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .expect("certificate");
    Arc::new(config)
}

/// A client without those checks, with or without a certificate.
fn unchecked_client_config(ca: &Path, own: Option<&TlsFiles>) -> Arc<ClientConfig> {
    use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).expect("CA")).expect("CA");
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("versions")
        .with_root_certificates(roots);
    Arc::new(match own {
        None => builder.with_no_client_auth(),
        Some(files) => {
            let chain = vec![CertificateDer::from_pem_file(&files.cert).expect("certificate")];
            let key = PrivateKeyDer::from_pem_file(&files.key).expect("key");
            builder.with_client_auth_cert(chain, key).expect("certificate")
        }
    })
}

/// A health service that operators and sources may call.
struct TestServer {
    port: u16,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl TestServer {
    async fn start(config: Arc<ServerConfig>) -> Self {
        Self::start_with(config, IncomingLimits::default()).await
    }

    async fn start_with(config: Arc<ServerConfig>, limits: IncomingLimits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let port = listener.local_addr().expect("address").port();
        let (_, health) = tonic_health::server::health_reporter();
        let service = InterceptedService::new(health, |request: Request<()>| -> Result<_, Status> {
            require_role(&request, &[Role::Operator, Role::Source])?;
            Ok(request)
        });
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            server_builder()
                .add_service(service)
                .serve_with_incoming_shutdown(incoming(listener, config, limits), async {
                    drop(stopped.await);
                })
                .await
                .expect("serve");
        });
        Self { port, stop, task }
    }

    fn url(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    async fn connect(
        &self,
        files: &TlsFiles,
    ) -> Result<(HealthClient<Channel>, Arc<WireCounter>), ConnectError> {
        let options = ConnectOptions::default();
        let (channel, counter) = connect(&self.url(), Role::Target, files, &Role::ALL, &options).await?;
        Ok((HealthClient::new(channel), counter))
    }

    async fn refusal(&self, files: &TlsFiles) -> ConnectError {
        self.connect(files).await.map(drop).expect_err("refused")
    }

    /// What a client hears that has a configuration of its own.
    async fn refusal_with(&self, config: Arc<ClientConfig>, files: &TlsFiles) -> ConnectError {
        let options = ConnectOptions::default();
        let dialer = Dialer::new(&self.url(), Role::Target, files, &Role::ALL, &options).expect("dialer");
        dialer.dial_with(config).await.map(drop).expect_err("refused")
    }
}

async fn check(client: &mut HealthClient<Channel>) -> Result<(), Status> {
    client.check(HealthCheckRequest { service: String::new() }).await.map(drop)
}

async fn target(pki: &Path) -> TestServer {
    TestServer::start(server_config(&files(pki, "target"), Role::Target).expect("config")).await
}

#[tokio::test]
async fn the_right_certificates_work_and_the_wire_is_counted() {
    let pki = pki();
    let server = target(pki.path()).await;
    let (mut client, counter) = server.connect(&files(pki.path(), "operator")).await.expect("connect");
    check(&mut client).await.expect("call");
    let (read, written) = (counter.bytes_in(), counter.bytes_out());
    assert!(read > 500 && written > 500, "a handshake with certificates: {read} in, {written} out");
    check(&mut client).await.expect("call");
    assert!(counter.bytes_in() > read && counter.bytes_out() > written);

    let by_address = format!("https://127.0.0.1:{}", server.port);
    let files = files(pki.path(), "source");
    connect(&by_address, Role::Target, &files, &[Role::Source], &ConnectOptions::default())
        .await
        .expect("connect");
}

#[tokio::test]
async fn a_role_that_may_not_call_is_told_which_one_may() {
    let pki = pki();
    let server = target(pki.path()).await;
    let party = Party { name: "bob".into(), hosts: vec![] };
    issue(pki.path(), pki.path(), Role::Restore, &party, DEFAULT_VALIDITY, Timestamp::now()).expect("issue");
    let (mut client, _) = server.connect(&files(pki.path(), "restore-bob")).await.expect("connect");
    let fault = explain_rpc_error(&check(&mut client).await.expect_err("refused"), "localhost");
    assert_eq!((fault.code, &*fault.reason), (Code::PermissionDenied, "role-not-allowed"));
    assert_eq!(
        report(&fault),
        "this call needs the role operator or source, the caller is the restore 'bob'\n\
         HINT: use a certificate that was issued with the role operator or source"
    );
}

#[test]
fn a_request_without_identity_is_not_authenticated() {
    let status = require_role(&Request::new(()), &[Role::Operator]).expect_err("refused");
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(fault_from_status(&status).reason, "no-identity");
}

/// Rule of desync #343: a wrong CA is refused, in both directions.
#[tokio::test]
async fn a_wrong_ca_is_refused_by_both_sides() {
    let (ours, theirs) = (pki(), pki());
    let server = target(theirs.path()).await;
    let own = files(ours.path(), "operator");
    let error = server.refusal(&own).await;
    assert!(matches!(error, ConnectError::UnknownCa { .. }), "{error}");
    assert!(report(&error).contains("HINT: both agents need certificates of one CA"), "{error}");

    // The client trusts the server's CA, but has a certificate of its own one.
    let error = server.refusal(&TlsFiles { ca: theirs.path().join("ca.crt"), ..own }).await;
    assert!(matches!(error, ConnectError::RefusedUs { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("operator.crt: it was not issued by the CA that the server trusts"), "{text}");
}

#[tokio::test]
async fn an_expired_certificate_is_refused_by_both_sides_and_at_load() {
    let pki = pki();
    let old_target = expired(pki.path(), Role::Target);
    let error = TestServer::start(unchecked_server_config(&old_target))
        .await
        .refusal(&files(pki.path(), "source"))
        .await;
    assert!(matches!(error, ConnectError::PeerExpired { when: Some(_), .. }), "{error}");
    assert!(error.to_string().starts_with("the certificate of the server localhost:"), "{error}");

    let old_source = expired(pki.path(), Role::Source);
    let server = target(pki.path()).await;
    let config = unchecked_client_config(&old_source.ca, Some(&old_source));
    let error = server.refusal_with(config, &old_source).await;
    assert!(
        error.to_string().contains("source-old.crt: it is not valid now, by the server's clock"),
        "{error}"
    );

    let text = report(&server.refusal(&old_source).await);
    assert!(
        text.contains("source-old.crt expired on") && text.contains("HINT: issue a new certificate"),
        "{text}"
    );
    assert!(matches!(server_config(&old_target, Role::Target), Err(TlsError::Expired { .. })));
}

#[tokio::test]
async fn a_client_without_certificate_is_refused_and_told_so() {
    let pki = pki();
    let server = target(pki.path()).await;
    let own = files(pki.path(), "operator");
    let error = server.refusal_with(unchecked_client_config(&own.ca, None), &own).await;
    assert!(error.to_string().ends_with("operator.crt: it got none"), "{error}");
    // The server goes on.
    let (mut client, _) = server.connect(&own).await.expect("connect");
    check(&mut client).await.expect("call");
}

/// Of the right CA, but without identity: for example a web server's.
#[tokio::test]
async fn a_certificate_without_identity_is_refused_by_both_sides() {
    let pki = pki();
    let ca =
        rcgen::KeyPair::from_pem(&fs::read_to_string(pki.path().join("ca.key")).expect("key")).expect("key");
    let ca_pem = fs::read_to_string(pki.path().join("ca.crt")).expect("CA");
    let issuer = rcgen::Issuer::from_ca_cert_pem(&ca_pem, ca).expect("CA");
    let key = rcgen::KeyPair::generate().expect("key");
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("name");
    fs::write(pki.path().join("web.crt"), params.signed_by(&key, &issuer).expect("sign").pem())
        .expect("write");
    crate::signing::create_private(&pki.path().join("web.key"), key.serialize_pem().as_bytes())
        .expect("write");
    let web = files(pki.path(), "web");

    let server = target(pki.path()).await;
    let error = server.refusal_with(unchecked_client_config(&web.ca, Some(&web)), &web).await;
    assert!(error.to_string().contains("it does not name one identity"), "{error}");
    let server = TestServer::start(unchecked_server_config(&web)).await;
    let error = server.refusal(&files(pki.path(), "operator")).await;
    assert!(matches!(error, ConnectError::PeerIdentity { .. }), "{error}");
    assert!(matches!(Credentials::load(&web, &Role::ALL), Err(TlsError::Identity { .. })));
}

#[tokio::test]
async fn a_server_of_another_role_is_refused() {
    let pki = pki();
    let server =
        TestServer::start(server_config(&files(pki.path(), "source"), Role::Source).expect("config")).await;
    let text = report(&server.refusal(&files(pki.path(), "operator")).await);
    assert!(
        text.contains("is the source 'live', expected a target") && text.contains("HINT: check the port"),
        "{text}"
    );
}

/// Rule of CVE-2026-70454: the host name is checked.
#[tokio::test]
async fn a_server_with_another_name_is_refused() {
    let pki = pki();
    let server = target(pki.path()).await;
    let own = files(pki.path(), "operator");
    let call = |name: &str| {
        let options = ConnectOptions { server_name: Some(name.to_owned()), ..Default::default() };
        let (url, own) = (server.url(), own.clone());
        async move { connect(&url, Role::Target, &own, &[Role::Operator], &options).await.map(drop) }
    };
    call("localhost").await.expect("its name");
    for name in ["other.example", "127.0.0.2"] {
        let error = call(name).await.expect_err("not its name");
        assert!(matches!(error, ConnectError::HostName { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(&format!("not for '{name}' but for")) && text.contains("localhost"), "{text}");
    }
}

#[tokio::test]
async fn who_is_not_there_is_told_by_address() {
    let pki = pki();
    let own = files(pki.path(), "operator");
    let options = ConnectOptions::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let url = format!("https://{}", listener.local_addr().expect("address"));
    drop(listener);
    let error =
        connect(&url, Role::Target, &own, &Role::ALL, &options).await.map(drop).expect_err("nobody there");
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("Connection refused"), "{error}");
}

#[tokio::test]
async fn what_does_not_speak_tls_is_told() {
    let pki = pki();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let url = format!("https://{}", listener.local_addr().expect("address"));
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accept");
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"SSH-2.0-OpenSSH_9.9\r\n").await.expect("write");
        stream.read_to_end(&mut Vec::new()).await.ok();
    });
    let own = files(pki.path(), "operator");
    let result = connect(&url, Role::Target, &own, &Role::ALL, &ConnectOptions::default()).await;
    let error = result.map(drop).expect_err("not TLS");
    assert!(matches!(error, ConnectError::NotTls { .. }), "{error}");
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up() {
    let pki = pki();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let url = format!("https://{}", listener.local_addr().expect("address"));
    let own = files(pki.path(), "operator");
    let options = ConnectOptions { timeout: Duration::from_millis(50), ..Default::default() };
    let error = connect(&url, Role::Target, &own, &Role::ALL, &options).await.map(drop).expect_err("silence");
    assert!(matches!(error, ConnectError::Timeout { phase: "TLS handshake", .. }), "{error}");
}

#[test]
fn only_plain_https_urls_are_called() {
    let files = files(Path::new("/nowhere"), "operator");
    let dialer = |url: &str| Dialer::new(url, Role::Target, &files, &[], &ConnectOptions::default());
    for url in
        ["https://host:7443", "https://host:7443/", "https://192.0.2.7:1", "https://[2001:db8::7]:7443"]
    {
        assert!(dialer(url).is_ok(), "{url}");
    }
    for url in [
        "http://host:7443",
        "https://host",
        "https://host:0",
        "https://host:99999",
        "host:7443",
        "https://user@host:7443",
        "https://host:7443/path",
        "https://host:7443/?q",
        "",
        "https://\x1b[2J:1",
    ] {
        let error = dialer(url).map(drop).expect_err(url);
        assert!(matches!(error, ConnectError::Url { .. }) && !error.to_string().contains('\x1b'), "{error}");
    }
}

#[tokio::test]
async fn own_files_are_checked_when_they_are_loaded() {
    let pki = pki();
    let operator = files(pki.path(), "operator");
    let mixed = TlsFiles { key: pki.path().join("source.key"), ..operator.clone() };
    assert!(matches!(Credentials::load(&mixed, &Role::ALL), Err(TlsError::KeyMismatch { .. })));
    let text = report(&Credentials::load(&operator, &[Role::Target]).expect_err("role"));
    assert!(text.contains("operator.crt has the role operator, expected target"), "{text}");
    let absent = TlsFiles { ca: pki.path().join("absent.crt"), ..operator.clone() };
    assert!(matches!(Credentials::load(&absent, &Role::ALL), Err(TlsError::File(KeyError::File(_)))));
    let no_ca = TlsFiles { ca: operator.key.clone(), ..operator.clone() };
    assert!(matches!(Credentials::load(&no_ca, &Role::ALL), Err(TlsError::NoCertificate { .. })));
    let no_key = TlsFiles { key: pki.path().join("source-signing.pub"), ..operator.clone() };
    assert!(Credentials::load(&no_key, &Role::ALL).is_err());

    let party = Party { name: "early".into(), hosts: vec![] };
    let later = Timestamp::now() + SignedDuration::from_hours(48);
    issue(pki.path(), pki.path(), Role::Operator, &party, DEFAULT_VALIDITY, later).expect("issue");
    let early = files(pki.path(), "operator-early");
    assert!(matches!(Credentials::load(&early, &Role::ALL), Err(TlsError::NotYetValid { .. })));

    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(&operator.key, fs::Permissions::from_mode(0o644)).expect("chmod");
    let text = report(&Credentials::load(&operator, &Role::ALL).expect_err("exposed"));
    assert!(text.contains("HINT: chmod 600"), "{text}");
}

/// Rule of CVE-2026-70464: a peer that stalls does not keep others out, and is cut off.
#[tokio::test]
async fn stalled_handshakes_neither_block_others_nor_stay() {
    let pki = pki();
    let config = server_config(&files(pki.path(), "target"), Role::Target).expect("config");
    let limits = IncomingLimits { deadline: Duration::from_secs(1), ..Default::default() };
    let server = TestServer::start_with(config, limits).await;
    let mut stalled = Vec::new();
    for _ in 0..8 {
        stalled.push(tokio::net::TcpStream::connect(("127.0.0.1", server.port)).await.expect("connect"));
    }
    let (mut client, _) = server.connect(&files(pki.path(), "operator")).await.expect("connect");
    check(&mut client).await.expect("call");
    for mut stream in stalled {
        assert_eq!(stream.read(&mut [0]).await.expect("closed"), 0);
    }
    check(&mut client).await.expect("the deadline is for the first frame only");
}

/// The same after the handshake: a valid certificate and then silence.
#[tokio::test]
async fn a_client_that_says_nothing_after_its_handshake_is_cut_off() {
    let pki = pki();
    let config = server_config(&files(pki.path(), "target"), Role::Target).expect("config");
    let limits = IncomingLimits { deadline: Duration::from_secs(1), ..Default::default() };
    let server = TestServer::start_with(config, limits).await;
    let own = files(pki.path(), "operator");
    let dialer = Dialer::new(&server.url(), Role::Target, &own, &Role::ALL, &ConnectOptions::default());
    let config = client_config(&own, &Role::ALL, Role::Target).expect("config");
    let mut stream = dialer.expect("dialer").dial_with(config).await.expect("connect");
    let mut heard = Vec::new();
    // Ends with an error or an end of file, and does end.
    stream.read_to_end(&mut heard).await.ok();
}

#[tokio::test]
async fn unfinished_handshakes_from_one_address_are_bounded() {
    let pki = pki();
    let config = server_config(&files(pki.path(), "target"), Role::Target).expect("config");
    let limits = IncomingLimits { handshakes_per_address: 1, ..Default::default() };
    let server = TestServer::start_with(config, limits).await;
    let stalled = tokio::net::TcpStream::connect(("127.0.0.1", server.port)).await.expect("connect");
    let error = server.refusal(&files(pki.path(), "operator")).await;
    assert!(matches!(error, ConnectError::Closed { .. }), "{error}");
    drop(stalled);
}

/// Sources behind one address that come at once: there is one handshake at a time, and each gets its own.
#[tokio::test]
async fn many_clients_behind_one_address_all_get_in() {
    let pki = pki();
    let config = server_config(&files(pki.path(), "target"), Role::Target).expect("config");
    let limits = IncomingLimits { handshakes_per_address: 2, ..Default::default() };
    let server = TestServer::start_with(config, limits).await;
    let own = files(pki.path(), "source");
    let connected = futures::future::join_all((0..8).map(|_| server.connect(&own))).await;
    for client in connected {
        check(&mut client.expect("it waits for its turn").0).await.expect("call");
    }
}

/// Whoever waits for a handshake is counted as well.
#[tokio::test]
async fn connections_that_wait_for_a_handshake_are_bounded() {
    let pki = pki();
    let config = server_config(&files(pki.path(), "target"), Role::Target).expect("config");
    let limits = IncomingLimits {
        handshakes_per_address: 1,
        deadline: Duration::from_secs(600),
        ..Default::default()
    };
    let server = TestServer::start_with(config, limits).await;
    let stall = || tokio::net::TcpStream::connect(("127.0.0.1", server.port));
    let mut stalled = Vec::new();
    // One handshake that goes on, and four that wait for it.
    for _ in 0..5 {
        stalled.push(stall().await.expect("connect"));
    }
    let mut further = stall().await.expect("connect");
    assert_eq!(further.read(&mut [0]).await.expect("closed at once"), 0);
    // When they go, others come.
    drop(stalled);
}

/// Those who ask at the same time get one connection, and each counts its own.
#[tokio::test]
async fn one_connection_is_shared_until_its_last_user_goes_or_a_file_changes() {
    let pki = pki();
    let config = server_config(&files(pki.path(), "target"), Role::Target).expect("config");
    let limits = IncomingLimits { connections_per_peer: 1, ..Default::default() };
    let server = TestServer::start_with(config, limits).await;
    let own = files(pki.path(), "operator");
    let options = ConnectOptions::default();
    let connections = Connections::new(&server.url(), Role::Target, &own, &Role::ALL, &options);
    let shares = futures::future::join_all((0..20).map(|_| connections.get())).await;
    let shares: Vec<_> = shares.into_iter().map(|share| share.expect("one connection is allowed")).collect();
    for share in &shares {
        let mut client = HealthClient::new(share.clone());
        client.check(tonic_health::pb::HealthCheckRequest::default()).await.expect("call");
        assert!(share.meter().bytes_in() > 0 && share.meter().bytes_out() > 0);
    }
    // A file that is touched is no other certificate, and one that has changed wants a new connection.
    let key = fs::read(&own.key).expect("read");
    assert!(connections.get().await.is_ok());
    fs::write(&own.key, [key.as_slice(), b"\n"].concat()).expect("write");
    let refused = connections.get().await.expect_err("a second one");
    assert!(matches!(&*refused, ConnectError::Closed { .. }), "{refused}");
    drop(shares);
    let mut connected = connections.get().await;
    // The server hears of the end of the first one when it does.
    let until = tokio::time::Instant::now() + Duration::from_secs(60);
    while matches!(connected.as_ref().map_err(|error| &**error), Err(ConnectError::Closed { .. })) {
        assert!(tokio::time::Instant::now() < until, "the first connection is still there");
        connected = connections.get().await;
    }
    connected.expect("a new one");
}

#[tokio::test]
async fn connections_of_one_identity_are_bounded() {
    let pki = pki();
    let config = server_config(&files(pki.path(), "target"), Role::Target).expect("config");
    let limits = IncomingLimits { connections_per_peer: 1, ..Default::default() };
    let server = TestServer::start_with(config, limits).await;
    let (mut client, _) = server.connect(&files(pki.path(), "operator")).await.expect("connect");
    check(&mut client).await.expect("call");
    let error = server.refusal(&files(pki.path(), "operator")).await;
    assert!(
        matches!(error, ConnectError::Closed { phase: "start of HTTP/2" | "check of our certificate", .. }),
        "{error}"
    );
    server.connect(&files(pki.path(), "source")).await.expect("another identity");
}

#[tokio::test]
async fn a_server_that_went_away_is_told_by_the_next_call() {
    let pki = pki();
    let server = target(pki.path()).await;
    let (mut client, _) = server.connect(&files(pki.path(), "operator")).await.expect("connect");
    check(&mut client).await.expect("call");
    server.stop.send(()).expect("serving");
    server.task.await.expect("stopped");
    // The first call may still meet the old connection; the next one has to make a new one.
    let first = explain_rpc_error(&check(&mut client).await.expect_err("gone"), "localhost");
    assert_eq!(first.code, Code::Unavailable, "{first}");
    let text = report(&explain_rpc_error(&check(&mut client).await.expect_err("gone"), "localhost"));
    assert!(
        text.contains("cannot reach localhost:") && text.contains("HINT: check that the agent runs there"),
        "{text}"
    );
}

/// The listener is free again when the stream is dropped.
#[tokio::test]
async fn a_dropped_stream_closes_the_listener() {
    let pki = pki();
    let config = server_config(&files(pki.path(), "target"), Role::Target).expect("config");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let address = listener.local_addr().expect("address");
    drop(incoming(listener, config, IncomingLimits::default()));
    tokio::time::timeout(Duration::from_secs(10), async {
        while tokio::net::TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the port is closed soon");
}

/// A CA whose time is over, as it stands in a bundle after the CA was replaced.
fn old_authority() -> String {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose};
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    (params.not_before, params.not_after) =
        (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2021, 1, 1));
    params.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate").pem()
}

/// The members of a bundle that can be used are used, wherever the others stand; without any the first fault is told.
#[tokio::test]
async fn a_bundle_is_as_good_as_its_usable_members() {
    let pki = pki();
    let good = fs::read_to_string(pki.path().join("ca.crt")).expect("CA");
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for bundle in [format!("{}{good}", old_authority()), format!("{good}{}{broken}", old_authority())] {
        fs::write(pki.path().join("ca.crt"), &bundle).expect("written");
        let credentials = Credentials::load(&files(pki.path(), "source"), &[Role::Source]).expect("usable");
        let told = credentials.unusable_authorities().join("\n");
        assert!(told.contains("ca.crt expired on 2021-01-01"), "{told}");
        assert_eq!(credentials.expires(), credentials.not_after());
        let server = target(pki.path()).await;
        let (mut client, _) = server.connect(&files(pki.path(), "source")).await.expect("connect");
        check(&mut client).await.expect("call");
    }
    fs::write(pki.path().join("ca.crt"), old_authority()).expect("written");
    let error =
        Credentials::load(&files(pki.path(), "source"), &[Role::Source]).expect_err("nobody to trust");
    assert!(matches!(error, TlsError::Expired { .. }), "{error}");
}
