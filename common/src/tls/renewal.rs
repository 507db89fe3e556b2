//! Certificates that are renewed while an agent runs, and a warning before they expire.
//!
//! The files are looked at twice a minute and on SIGHUP. What is new and sound is used for every connection from then on;
//! what is not sound is refused with a loud log, and the certificate that was good is kept. Connections that stand are not
//! touched. The calling side reads its files anew for each connection ([`super::connect`]).

use std::{
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::{Timestamp, ToSpan as _};
use rustls::ServerConfig;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use super::credentials::{Credentials, TlsError, TlsFiles};
use crate::{
    error::Hint as _,
    supervise,
    trouble::{self, Kind},
};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// How long before its end a certificate is warned of.
pub const WARN_DAYS: i64 = 30;
/// How often it is warned of.
const WARN_EVERY: Duration = Duration::from_secs(24 * 3600);

/// When this agent's certificate, an intermediate that it needs, or the CA's expires; whichever comes first. An agent has one certificate.
static EXPIRES: Mutex<Option<Timestamp>> = Mutex::new(None);

/// When the certificate expires that this process serves with, or its CA's; `None` when it serves nothing.
pub fn expires() -> Option<Timestamp> {
    *EXPIRES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A sentence about a certificate that expires within [`WARN_DAYS`].
pub fn warning(expires: Timestamp, now: Timestamp) -> Option<String> {
    let hours = expires.since(now).ok()?.total(jiff::Unit::Hour).ok()?;
    if hours > (24 * WARN_DAYS) as f64 {
        return None;
    }
    let left = match hours {
        ..0.0 => "has expired".to_owned(),
        ..48.0 => format!("expires in {hours:.0} hours"),
        _ => format!("expires in {:.0} days", hours / 24.0),
    };
    Some(format!(
        "this agent's certificate, one that it needs, or its CA's {left}, on {}: issue a new one (assay-target pki issue) and put it in its place",
        expires.strftime("%Y-%m-%d %H:%M:%SZ")
    ))
}

/// The metric and the answers to operators follow what is in use.
fn note_end(credentials: &Credentials) {
    *EXPIRES.lock().unwrap_or_else(PoisonError::into_inner) = Some(credentials.expires());
}

fn warn_of_unusable(credentials: &Credentials) {
    for fault in credentials.unusable_authorities() {
        tracing::warn!("a CA in the file is left out: {fault}");
    }
}

/// What to serve with, from now on. Must be called within a tokio runtime.
///
/// # Errors
/// [`TlsError`] for what is there now.
pub fn renewed(credentials: &Credentials) -> Result<watch::Receiver<Arc<ServerConfig>>, TlsError> {
    let (sender, receiver) = watch::channel(credentials.server_config()?);
    note_end(credentials);
    warn_of_unusable(credentials);
    let renewal = Renewal { sender, stamp: Stamp::of(credentials), current: credentials.clone() };
    supervise::spawn_with("certificates", renewal, |renewal| Box::pin(renewal.run()));
    Ok(receiver)
}

/// How the three files looked: any change of content or name changes it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp([Option<(u64, u64, i64, i64)>; 3]);

impl Stamp {
    fn of(credentials: &Credentials) -> Self {
        let look = |path: &Path| {
            let stat = std::fs::metadata(path).ok()?;
            Some((stat.ino(), stat.size(), stat.ctime(), stat.ctime_nsec()))
        };
        let files = credentials.files();
        Self([look(&files.ca), look(&files.cert), look(&files.key)])
    }
}

struct Renewal {
    sender: watch::Sender<Arc<ServerConfig>>,
    stamp: Stamp,
    current: Credentials,
}

impl Renewal {
    async fn run(&mut self) {
        let mut told = match signal(SignalKind::hangup()) {
            Ok(told) => Some(told),
            Err(error) => {
                tracing::warn!(%error, "SIGHUP cannot be waited for; certificates are looked at by the clock only");
                None
            }
        };
        let (mut warned, mut tried) = (None::<tokio::time::Instant>, None::<Timestamp>);
        loop {
            note_end(&self.current);
            if let Some(text) = warning(self.current.expires(), Timestamp::now())
                && warned.is_none_or(|warned| warned.elapsed() >= WARN_EVERY)
            {
                tracing::warn!(certificate = self.current.expires_first(), "{text}");
                warned = Some(tokio::time::Instant::now());
            }
            let hangup = async {
                match &mut told {
                    Some(told) => told.recv().await,
                    None => std::future::pending().await,
                }
            };
            let asked = tokio::select! {
                _ = hangup => true,
                () = tokio::time::sleep(LOOK_EVERY) => false,
                () = self.sender.closed() => return,
            };
            let stamp = Stamp::of(&self.current);
            // A CA that has ended since it was loaded vouches for nobody any more.
            let ended = self.current.authorities_end();
            let has_ended = Timestamp::now() > ended && tried != Some(ended);
            if (asked || has_ended || stamp != self.stamp) && self.renew() {
                warned = None;
            }
            tried = has_ended.then_some(ended).or(tried);
            self.stamp = stamp;
        }
    }

    /// Takes what is there now, if it is sound and says that we are who we were.
    fn renew(&mut self) -> bool {
        let identity = self.current.identity().clone();
        let loaded = Credentials::load(self.current.files(), &[identity.role]);
        let loaded = loaded.and_then(|loaded| Ok((loaded.server_config()?, loaded)));
        match loaded {
            Ok((_, loaded)) if *loaded.identity() != identity => {
                refuse(&format!(
                    "it is somebody else's, the {}'s, and this is the {identity}",
                    loaded.identity()
                ));
                false
            }
            Ok((config, loaded)) => {
                note_end(&loaded);
                tracing::info!(%identity, expires = %loaded.expires(), "the certificate was reloaded");
                warn_of_unusable(&loaded);
                trouble::clear(Kind::RenewalRefused, "");
                self.current = loaded;
                self.sender.send_replace(config);
                true
            }
            Err(error) => {
                let hint = error.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
                refuse(&format!("{error}{hint}"));
                false
            }
        }
    }
}

fn refuse(why: &str) {
    let text = format!("the renewed certificate is REFUSED, and the one before it kept: {why}");
    tracing::error!("{text}");
    trouble::note(Kind::RenewalRefused, "", text);
}

/// [`WARN_DAYS`] before its end, for tests and texts.
pub fn warned_from(expires: Timestamp) -> Timestamp {
    expires.checked_sub((24 * WARN_DAYS).hours()).unwrap_or(Timestamp::MIN)
}

/// A hash of what stands in the files now. One that cannot be read is told when it is used.
pub(super) fn content_of(files: &TlsFiles) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new();
    for file in [&files.ca, &files.cert, &files.key] {
        let content = std::fs::read(file).unwrap_or_default();
        hasher.update(&(content.len() as u64).to_le_bytes()).update(&content);
    }
    hasher
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_warned_of_thirty_days_before() {
        let end = Timestamp::from_second(1_800_000_000).expect("a time");
        let from = warned_from(end);
        assert_eq!(warning(end, from - 1.hours()), None);
        let text = warning(end, from + 1.hours()).expect("it is near");
        assert!(text.contains("expires in 30 days, on 2027-01-15") && text.contains("pki issue"), "{text}");
        assert!(warning(end, end + 1.hours()).expect("it is over").contains("has expired"));
    }
}
