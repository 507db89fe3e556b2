//! Mail, by SMTP to the host's own server or another.

use std::{path::PathBuf, time::Duration};

use lettre::{
    AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor,
    message::{Mailbox, header::ContentType},
    transport::smtp::{AsyncSmtpTransportBuilder, authentication::Credentials},
};

use super::Notice;
use crate::{outbox::DeliveryError, signing::read_private};

/// How mail is sent.
pub(super) struct Mail {
    transport: AsyncSmtpTransportBuilder,
    from: Mailbox,
    to: Vec<Mailbox>,
    login: Option<(String, PathBuf)>,
}

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
        timeout: Duration,
    ) -> Result<Self, String> {
        if smtp.contains('@') {
            return Err("smtp: the login belongs in username and password_file, not in the URL".to_owned());
        }
        let transport = AsyncSmtpTransport::<Tokio1Executor>::from_url(smtp)
            .map_err(|error| format!("smtp: {error}: smtp://HOST or smtps://HOST was expected"))?;
        if login.is_some() && !smtp.starts_with("smtps://") && !smtp.contains("tls=required") {
            return Err("username: a password goes over TLS only: use smtps:// or ?tls=required".to_owned());
        }
        let mailbox = |key: &str, text: &str| {
            text.parse::<Mailbox>().map_err(|_| format!("{key}: {text:?}: not a mail address"))
        };
        let to = to.iter().map(|to| mailbox("to", to)).collect::<Result<_, _>>()?;
        Ok(Self { transport: transport.timeout(Some(timeout)), from: mailbox("from", from)?, to, login })
    }

    pub(super) async fn tell(&self, notice: &Notice) -> Result<(), DeliveryError> {
        let lasting = |error: &dyn std::fmt::Display| DeliveryError::lasting(error.to_string());
        let mut message = Message::builder()
            .from(self.from.clone())
            .subject(format!("[assay] {}", notice.summary))
            .header(ContentType::TEXT_PLAIN);
        for to in &self.to {
            message = message.to(to.clone());
        }
        let message = message.body(notice.text()).map_err(|error| lasting(&error))?;
        let mut transport = self.transport.clone();
        if let Some((name, file)) = &self.login {
            let bytes = read_private(file).map_err(|error| lasting(&error))?;
            let password = String::from_utf8_lossy(&bytes).trim().to_owned();
            transport = transport.credentials(Credentials::new(name.clone(), password));
        }
        match transport.build().send(message).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_permanent() => Err(lasting(&chain(&error))),
            Err(error) => Err(DeliveryError::transient(chain(&error))),
        }
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
