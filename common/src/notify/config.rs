//! `[[notify]]`: one way out, checked when the configuration is read.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use super::{Event, Notice, command, mail, webhook};
use crate::{
    config::Span,
    id::is_plain_name,
    outbox::{self, DeliveryError},
};

/// How long one try may take when the file does not say.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest that a try may take: others wait in the queue behind it.
const MAX_TIMEOUT: Duration = Duration::from_secs(300);

/// `[[notify]]`: tells somebody when a run fails, and when all is well again.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NotifySection {
    /// `"command"`, `"webhook"` or `"mail"`.
    kind: Kind,
    /// Name in the log and the metrics. Default: the kind.
    name: Option<String>,
    /// What is told: `"fail"`, `"inconclusive"`, `"not-run"`, `"recovery"`, `"overdue"`,
    /// `"changed-without-trace"`, `"coverage"`, `"certificate"`, `"trouble"`, `"pass"`. Default: all of them but `"pass"`.
    on: Option<Vec<Event>>,
    /// Repositories of which is told. Default: all of them.
    repositories: Option<Vec<String>>,
    /// How long one try may take; three are made. Default: 10s.
    timeout: Option<Span>,
    /// command: the program and its arguments, as they stand: there is no shell. It gets the record as JSON on its standard input.
    argv: Option<Vec<String>>,
    /// webhook: `https://…` or `http://…`, which gets the notice by POST.
    url: Option<String>,
    /// webhook: `"post"`, or `"get"`, for heartbeats: the agent requests the URL and sends no body. Default: `"post"`.
    method: Option<Method>,
    /// webhook: the body of a POST: `"record"`, the notice as JSON; `"text"`, the text of a mail; or `"slack"`, JSON with the summary as `text`. Default: `"record"`.
    body: Option<Body>,
    /// webhook: a file with a token that is sent as `Authorization: Bearer`.
    token_file: Option<PathBuf>,
    /// webhook: certificate authorities (PEM) for `https`. Default: those of the system.
    ca: Option<PathBuf>,
    /// mail: `smtp://localhost`, `smtps://host` (TLS from the start) or `smtp://host?tls=required` (STARTTLS).
    smtp: Option<String>,
    /// mail: the sender.
    from: Option<String>,
    /// mail: the receivers.
    to: Option<Vec<String>>,
    /// mail: the name to log in with. Default: no login.
    username: Option<String>,
    /// mail: a file with its password.
    password_file: Option<PathBuf>,
}

impl NotifySection {
    /// Files that hold a token or a password, as they stand in the configuration.
    pub fn secret_files(&self) -> impl Iterator<Item = &Path> {
        [&self.token_file, &self.password_file].into_iter().flatten().map(PathBuf::as_path)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Command,
    Webhook,
    Mail,
}

/// The HTTP method of a webhook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Method {
    Post,
    Get,
}

/// The body that a webhook receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Body {
    Record,
    Text,
    Slack,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Webhook => "webhook",
            Self::Mail => "mail",
        }
    }
}

#[derive(Debug)]
enum Outlet {
    Command(Vec<String>),
    Webhook(webhook::Webhook, Method, Body),
    Mail(mail::Mail),
}

/// A way out that was checked.
#[derive(Debug)]
pub struct Way {
    /// Its name.
    pub name: String,
    on: Option<Vec<Event>>,
    repositories: Option<Vec<String>>,
    timeout: Duration,
    outlet: Outlet,
}

impl Way {
    /// Checks the sections of the configuration file `path`; what is wrong is added to `faults`, each naming its key.
    pub fn all(
        path: &Path,
        sections: &[NotifySection],
        known: &[&str],
        faults: &mut Vec<String>,
    ) -> Vec<Self> {
        let mut names = HashSet::new();
        let mut ways = Vec::new();
        for section in sections {
            let name = section.name.clone().unwrap_or_else(|| section.kind.as_str().to_owned());
            if !is_plain_name(&name) || !names.insert(name.clone()) {
                faults.push(format!(
                    "notify.name: {name:?} is not valid (1 to 64 letters, digits, '-' or '_'), or is defined twice"
                ));
            }
            for repository in section.repositories.iter().flatten() {
                if !known.contains(&repository.as_str()) {
                    faults
                        .push(format!("notify {name}: repositories: there is no repository {repository:?}"));
                }
            }
            let timeout = section.timeout.map_or(DEFAULT_TIMEOUT, |span| span.0);
            if timeout.is_zero() || timeout > MAX_TIMEOUT {
                faults.push(format!("notify {name}: timeout: must be greater than zero and at most 5m"));
            }
            section.foreign_keys(&name, faults);
            match section.outlet(path) {
                Ok(outlet) => ways.push(Self {
                    name,
                    on: section.on.clone(),
                    repositories: section.repositories.clone(),
                    timeout,
                    outlet,
                }),
                Err(fault) => faults.push(format!("notify {name}: {fault}")),
            }
        }
        ways
    }

    /// True when it is to be told of this.
    pub fn wants(&self, notice: &Notice) -> bool {
        let event = match &self.on {
            Some(on) => on.contains(&notice.event),
            // An hourly mail for each PASS would hide the others.
            None => notice.event != Event::Pass,
        };
        // What concerns all of the agent concerns each of its repositories.
        let all = notice.repository.is_empty();
        let repository =
            all || self.repositories.as_ref().is_none_or(|wanted| wanted.contains(&notice.repository));
        event && repository
    }
}

impl outbox::Way for Way {
    type Message = Notice;

    fn name(&self) -> &str {
        &self.name
    }

    async fn send(&self, notice: &Notice) -> Result<(), DeliveryError> {
        let json =
            || serde_json::to_string(notice).map_err(|error| DeliveryError::lasting(error.to_string()));
        let limit = self.timeout;
        let deadline = tokio::time::Instant::now() + limit;
        let told = async {
            match &self.outlet {
                Outlet::Command(argv) => command::tell(argv, &json()?).await,
                Outlet::Webhook(webhook, method, body) => {
                    let message = match (method, body) {
                        (Method::Get, _) => webhook::Message::Get,
                        (Method::Post, Body::Record) => webhook::Message::Json(json()?),
                        (Method::Post, Body::Slack) => webhook::Message::Json(notice.slack()),
                        (Method::Post, Body::Text) => webhook::Message::Text(notice.text()),
                    };
                    webhook.tell(message, deadline).await
                }
                Outlet::Mail(mail) => mail.tell(notice, deadline).await,
            }
        };
        tokio::time::timeout_at(deadline, told)
            .await
            .unwrap_or_else(|_| Err(DeliveryError::transient(format!("no answer within {limit:?}"))))
    }
}

impl NotifySection {
    /// Keys of another kind would be silently without effect.
    fn foreign_keys(&self, name: &str, faults: &mut Vec<String>) {
        let keys = [
            ("argv", Kind::Command, self.argv.is_some()),
            ("url", Kind::Webhook, self.url.is_some()),
            ("token_file", Kind::Webhook, self.token_file.is_some()),
            ("ca", Kind::Webhook, self.ca.is_some()),
            ("method", Kind::Webhook, self.method.is_some()),
            ("body", Kind::Webhook, self.body.is_some()),
            ("smtp", Kind::Mail, self.smtp.is_some()),
            ("from", Kind::Mail, self.from.is_some()),
            ("to", Kind::Mail, self.to.is_some()),
            ("username", Kind::Mail, self.username.is_some()),
            ("password_file", Kind::Mail, self.password_file.is_some()),
        ];
        for (key, kind, _) in keys.into_iter().filter(|(_, kind, given)| *given && *kind != self.kind) {
            faults.push(format!(
                "notify {name}: {key} belongs to kind \"{}\", and this is a {}",
                kind.as_str(),
                self.kind.as_str()
            ));
        }
    }

    fn outlet(&self, path: &Path) -> Result<Outlet, String> {
        let file = |file: &Option<PathBuf>| file.as_ref().map(|file| crate::config::resolve(path, file));
        match self.kind {
            Kind::Command => match self.argv.as_deref() {
                Some([program, ..]) if Path::new(program).is_absolute() => {
                    Ok(Outlet::Command(self.argv.clone().unwrap_or_default()))
                }
                _ => Err("argv: must be a program by its absolute path, then its arguments".to_owned()),
            },
            Kind::Webhook => {
                let url = self.url.as_deref().ok_or("url is missing")?;
                let (method, body) = (self.method.unwrap_or(Method::Post), self.body);
                if method == Method::Get && body.is_some() {
                    return Err("body: must not be set with method = \"get\", which sends none".to_owned());
                }
                let webhook = webhook::Webhook::new(url, file(&self.token_file), file(&self.ca))?;
                Ok(Outlet::Webhook(webhook, method, body.unwrap_or(Body::Record)))
            }
            Kind::Mail => {
                let smtp = self.smtp.as_deref().ok_or("smtp is missing")?;
                let from = self.from.as_deref().ok_or("from is missing")?;
                let to = self.to.as_deref().filter(|to| !to.is_empty()).ok_or("to is missing")?;
                let login = match (&self.username, file(&self.password_file)) {
                    (Some(name), Some(file)) => Some((name.clone(), file)),
                    (None, None) => None,
                    _ => return Err("username and password_file must be set together".to_owned()),
                };
                mail::Mail::new(smtp, from, to, login).map(Outlet::Mail)
            }
        }
    }
}
