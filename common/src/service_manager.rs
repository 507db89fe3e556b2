//! What systemd is told, when it started us: that we serve, what we do, that we are alive, and that we end.
//!
//! Without `NOTIFY_SOCKET` nothing is said and nothing fails. The watchdog is fed by a task of the same runtime that serves: when
//! no thread of it comes round any more, the feeding ends, and systemd starts the agent anew.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use sd_notify::NotifyState;

/// What was said last, so that the same line is not said again and again.
static STATUS: Mutex<String> = Mutex::new(String::new());

/// Feeds the watchdog for as long as it lives.
#[derive(Debug)]
pub struct Service(Option<tokio::task::JoinHandle<()>>);

/// The service can be used: units that wait for it may start.
pub fn ready(status: &str) -> Service {
    say(&[NotifyState::Ready]);
    // Unless more has been said already.
    if STATUS.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
        self::status(status);
    }
    let feeding = watchdog_interval().map(|interval| {
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(interval);
            loop {
                tick.tick().await;
                say(&[NotifyState::Watchdog]);
            }
        })
    });
    Service(feeding)
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(feeding) = &self.0 {
            feeding.abort();
        }
    }
}

/// The line in `systemctl status`.
pub fn status(text: &str) {
    let mut last = STATUS.lock().unwrap_or_else(PoisonError::into_inner);
    if *last != text {
        text.clone_into(&mut last);
        say(&[NotifyState::Status(text)]);
    }
}

/// The service is about to end.
pub fn stopping() {
    say(&[NotifyState::Stopping, NotifyState::Status("told to stop")]);
}

/// Half of what systemd allows, as sd_watchdog_enabled(3) advises. `None` when it is not asked for, or not of this process.
fn watchdog_interval() -> Option<Duration> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().ok());
    let is_ours = number("WATCHDOG_PID").is_none_or(|id| id == Some(std::process::id().into()));
    let microseconds = number("WATCHDOG_USEC")?.filter(|microseconds| is_ours && *microseconds > 0)?;
    Some(Duration::from_micros(microseconds / 2).max(Duration::from_millis(1)))
}

fn say(words: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, words) {
        tracing::warn!(%error, "systemd cannot be told how the service stands");
    }
}
