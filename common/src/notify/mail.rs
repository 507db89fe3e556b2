//! Mail, by SMTP to the host's own server or another.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::SystemTime,
};

use http::Uri;
use lettre::{
    Address, AsyncSmtpTransport, Message, Tokio1Executor,
    address::Envelope,
    message::{
        Mailbox,
        header::{ContentType, HeaderName, HeaderValue, MIME_VERSION_1_0},
    },
    transport::smtp::{
        authentication::{Credentials, DEFAULT_MECHANISMS},
        client::{AsyncSmtpConnection, AsyncTokioStream, TlsParameters},
        extension::ClientId,
    },
};
use rustls::{ClientConfig, crypto::ring};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Instant,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::Notice;
use crate::{
    dial::{self, EstablishError},
    outbox::{DeliveryError, system_roots},
    signing::read_private,
};

/// When TLS begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encryption {
    /// Never.
    Never,
    /// After STARTTLS, if the server offers it.
    Offered,
    /// After STARTTLS.
    Required,
    /// With the first byte.
    FromTheStart,
}

/// How mail is sent.
pub(super) struct Mail {
    host: String,
    port: u16,
    encryption: Encryption,
    hello: ClientId,
    from: Mailbox,
    to: Vec<Mailbox>,
    login: Option<(String, PathBuf)>,
    /// Who has a notice that others do not have yet, by its id.
    reached: Mutex<HashMap<String, HashSet<Address>>>,
}

/// Notices that are remembered as having reached some of their recipients.
const MAX_REACHED: usize = 1000;

impl std::fmt::Debug for Mail {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Mail").field("from", &self.from).field("to", &self.to).finish_non_exhaustive()
    }
}

impl Mail {
    pub(super) fn new(
        smtp: &str,
        from: &str,
        to: &[String],
        login: Option<(String, PathBuf)>,
    ) -> Result<Self, String> {
        if smtp.contains('@') {
            return Err("smtp: the login belongs in username and password_file, not in the URL".to_owned());
        }
        // The library's own reading of the URL says whether it is one.
        AsyncSmtpTransport::<Tokio1Executor>::from_url(smtp)
            .map_err(|error| format!("smtp: {error}: must be smtp://HOST or smtps://HOST"))?;
        let fault = || "smtp: must be smtp://HOST or smtps://HOST".to_owned();
        let uri: Uri = smtp.parse().map_err(|_| fault())?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(fault)?;
        let (encryption, port) = match (uri.scheme_str(), uri.query().unwrap_or_default()) {
            (Some("smtps"), _) => (Encryption::FromTheStart, 465),
            (_, query) if query.contains("tls=required") => (Encryption::Required, 587),
            (_, query) if query.contains("tls=opportunistic") => (Encryption::Offered, 587),
            _ => (Encryption::Never, 25),
        };
        let hello = match uri.path().trim_matches('/') {
            "" => ClientId::default(),
            name => ClientId::Domain(name.to_owned()),
        };
        if login.is_some() && !smtp.starts_with("smtps://") && !smtp.contains("tls=required") {
            return Err("username: a password goes over TLS only: use smtps:// or ?tls=required".to_owned());
        }
        let mailbox = |key: &str, text: &str| {
            text.parse::<Mailbox>().map_err(|_| format!("{key}: {text:?}: not a mail address"))
        };
        let to = to.iter().map(|to| mailbox("to", to)).collect::<Result<_, _>>()?;
        Ok(Self {
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: uri.port_u16().unwrap_or(port),
            encryption,
            hello,
            from: mailbox("from", from)?,
            to,
            login,
            reached: Mutex::default(),
        })
    }

    /// The mail: with all header fields that receivers insist on (RFC 5322, 2045, 3834). Each try has the same `Message-ID`, so that
    /// a mail that arrives twice is filed once.
    fn message(&self, notice: &Notice) -> Result<Message, lettre::error::Error> {
        let id = blake3::hash(format!("{} {} {}", notice.id, notice.time, notice.host).as_bytes());
        let domain = self.from.email.domain();
        let mut message = Message::builder()
            .from(self.from.clone())
            .date(SystemTime::from(notice.time))
            .message_id(Some(format!("<assay-{}@{domain}>", &id.to_hex()[..32])))
            .subject(format!("[assay] {}", notice.summary))
            .header(MIME_VERSION_1_0)
            .header(ContentType::TEXT_PLAIN);
        for to in &self.to {
            message = message.to(to.clone());
        }
        let mut message = message.body(notice.text())?;
        let name = HeaderName::new_from_ascii_str("Auto-Submitted");
        message.headers_mut().insert_raw(HeaderValue::new(name, "auto-generated".to_owned()));
        Ok(message)
    }

    fn has_reached(&self, notice: &Notice, to: &Address) -> bool {
        let reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        reached.get(&notice.id).is_some_and(|reached| reached.contains(to))
    }

    fn remember(&self, notice: &Notice, to: &Address) {
        let mut reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        if reached.len() >= MAX_REACHED {
            // Somebody may get a mail twice: it has the same Message-ID then.
            reached.clear();
        }
        reached.entry(notice.id.clone()).or_default().insert(to.clone());
    }

    fn forget(&self, notice: &Notice) {
        self.reached.lock().unwrap_or_else(PoisonError::into_inner).remove(&notice.id);
    }

    /// Sends the notice, by `deadline`: to each recipient for itself, so that one whom the server refuses takes it from nobody else. A
    /// further try goes to those who have not had it.
    pub(super) async fn tell(&self, notice: &Notice, deadline: Instant) -> Result<(), DeliveryError> {
        let lasting = |error: &dyn std::fmt::Display| DeliveryError::lasting(error.to_string());
        let message = self.message(notice).map_err(|error| lasting(&error))?;
        let credentials = match &self.login {
            Some((name, file)) => {
                let bytes = read_private(file).map_err(|error| lasting(&error))?;
                let password = String::from_utf8_lossy(&bytes).trim().to_owned();
                Some(Credentials::new(name.clone(), password))
            }
            None => None,
        };
        let (formatted, mut connection) = (message.formatted(), None);
        let (mut refusals, mut may_help): (Vec<String>, bool) = (Vec::new(), false);
        for to in self.to.iter().map(|to| &to.email).filter(|to| !self.has_reached(notice, to)) {
            let mut open = match connection.take() {
                Some(open) => open,
                None => self.open(deadline, credentials.as_ref()).await?,
            };
            let envelope = Envelope::new(Some(self.from.email.clone()), vec![to.clone()]);
            let envelope = envelope.map_err(|error| lasting(&error))?;
            match open.send(&envelope, &formatted).await {
                Ok(_) => {
                    self.remember(notice, to);
                    connection = Some(open);
                }
                // The library has closed the connection.
                Err(error) => {
                    let error = refused(&error);
                    may_help |= error.transient;
                    refusals.push(format!("{to}: {error}"));
                }
            }
        }
        if let Some(mut connection) = connection {
            // The server has the mail; a goodbye that fails changes nothing.
            connection.quit().await.ok();
        }
        if refusals.is_empty() {
            self.forget(notice);
            return Ok(());
        }
        let partly = refusals.len() < self.to.len();
        let others = if partly { "; the other recipients have it" } else { "" };
        if !may_help {
            self.forget(notice);
        }
        let message = format!("{}: {}{others}", self.host, refusals.join("; "));
        Err(DeliveryError { message, transient: may_help, partly })
    }

    /// A connection to the first address that greets.
    async fn connect(&self, deadline: Instant) -> Result<AsyncSmtpConnection, DeliveryError> {
        let transient =
            |error: &dyn std::fmt::Display| DeliveryError::transient(format!("{}: {error}", self.host));
        let tls = match self.encryption {
            Encryption::FromTheStart => Some(self.tls()?),
            _ => None,
        };
        let addresses = dial::resolve(&self.host, self.port).await.map_err(|error| transient(&error))?;
        let greeted = dial::establish(&addresses, deadline, |stream| {
            let tls = tls.clone();
            async move {
                let stream: Box<dyn AsyncTokioStream> = match tls {
                    None => Box::new(stream),
                    Some((connector, name)) => {
                        let stream = connector.connect(name, stream).await;
                        Box::new(Encrypted(stream.map_err(|error| transient(&error))?))
                    }
                };
                AsyncSmtpConnection::connect_with_transport(stream, &self.hello)
                    .await
                    .map_err(|error| refused(&error))
            }
        });
        greeted.await.map_err(|error| match error {
            EstablishError::Dial(error) => transient(&error),
            EstablishError::Handshake(error) => error,
            EstablishError::Late => transient(&"it takes the connection and says nothing"),
        })
    }

    fn tls(&self) -> Result<(TlsConnector, ServerName<'static>), DeliveryError> {
        let lasting =
            |error: &dyn std::fmt::Display| DeliveryError::lasting(format!("{}: {error}", self.host));
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| lasting(&error))?
            .with_root_certificates(system_roots()?)
            .with_no_client_auth();
        let name = ServerName::try_from(self.host.clone()).map_err(|error| lasting(&error))?;
        Ok((TlsConnector::from(Arc::new(config)), name))
    }

    /// A connection that takes mail.
    async fn open(
        &self,
        deadline: Instant,
        credentials: Option<&Credentials>,
    ) -> Result<AsyncSmtpConnection, DeliveryError> {
        let connection = self.connect(deadline).await?;
        self.introduce(connection, credentials).await.map_err(|error| refused(&error))
    }

    async fn introduce(
        &self,
        mut connection: AsyncSmtpConnection,
        credentials: Option<&Credentials>,
    ) -> Result<AsyncSmtpConnection, lettre::transport::smtp::Error> {
        let starts_tls = match self.encryption {
            Encryption::Required => true,
            Encryption::Offered => connection.can_starttls(),
            Encryption::Never | Encryption::FromTheStart => false,
        };
        if starts_tls {
            connection.starttls(TlsParameters::new(self.host.clone())?, &self.hello).await?;
        }
        if let Some(credentials) = credentials {
            connection.auth(DEFAULT_MECHANISMS, credentials).await?;
        }
        Ok(connection)
    }
}

fn refused(error: &lettre::transport::smtp::Error) -> DeliveryError {
    if error.is_permanent() {
        DeliveryError::lasting(chain(error))
    } else {
        DeliveryError::transient(chain(error))
    }
}

/// A stream that speaks TLS from its first byte, as the library wants to have it.
#[derive(Debug)]
struct Encrypted(TlsStream<TcpStream>);

impl AsyncTokioStream for Encrypted {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.0.get_ref().0.peer_addr()
    }
}

impl AsyncRead for Encrypted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Encrypted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{notify::Event, watch::About};

    #[test]
    fn a_mail_has_what_receivers_insist_on_and_each_try_is_the_same() {
        let to = ["admins@example.com".to_owned()];
        let mail = Mail::new("smtp://localhost:26", "assay@example.com", &to, None).expect("a way");
        let about = About { role: "source", agent: "a".to_owned(), repository: "app".to_owned() };
        let mut notice = Notice::new(Event::Fail, &about, None, None, jiff::Timestamp::UNIX_EPOCH);
        notice.message = "K\u{e4}se".to_owned();
        let texts: Vec<_> = (0..2)
            .map(|_| String::from_utf8(mail.message(&notice).expect("a mail").formatted()).expect("ASCII"))
            .collect();
        assert_eq!(texts[0], texts[1]);
        for field in [
            "MIME-Version: 1.0\r\n",
            "Message-ID: <assay-",
            "@example.com>\r\n",
            "Date: Thu, 01 Jan 1970 00:00:00 +0000\r\n",
            "Auto-Submitted: auto-generated\r\n",
            "Content-Transfer-Encoding: ",
        ] {
            assert!(texts[0].contains(field), "{field}: {}", texts[0]);
        }
        notice.id.push('x');
        let other = String::from_utf8(mail.message(&notice).expect("a mail").formatted()).expect("ASCII");
        assert_ne!(other, texts[0]);
        assert_eq!((mail.host.as_str(), mail.port, mail.encryption), ("localhost", 26, Encryption::Never));
        let mail = Mail::new("smtps://[::1]", "assay@example.com", &to, None).expect("a way");
        assert_eq!((mail.host.as_str(), mail.port, mail.encryption), ("::1", 465, Encryption::FromTheStart));
    }
}
