//! What systemd is told, when it started us: that we serve, what we do, that we are alive, and that we end.
//!
//! Without `NOTIFY_SOCKET` nothing is said and nothing fails. The watchdog is fed for as long as every loop that must go on has shown
//! that it does ([`beat`]): the schedules first of all. When one of them hangs the feeding ends, and systemd restarts the agent.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
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
                match silent(Instant::now()) {
                    None => say(&[NotifyState::Watchdog]),
                    Some(name) => tracing::error!(
                        name,
                        "a loop of the agent hangs: the watchdog is not fed, and systemd restarts the agent"
                    ),
                }
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

/// A loop that is silent for so long hangs. Each shows itself every few seconds.
const SILENT: Duration = Duration::from_secs(30);

/// When each loop has shown itself last.
static PULSES: Mutex<BTreeMap<String, Instant>> = Mutex::new(BTreeMap::new());

/// The loop `name` goes on.
pub fn beat(name: &str) {
    let mut pulses = PULSES.lock().unwrap_or_else(PoisonError::into_inner);
    match pulses.get_mut(name) {
        Some(pulse) => *pulse = Instant::now(),
        None => drop(pulses.insert(name.to_owned(), Instant::now())),
    }
}

/// Sleeps until `left` is over, and shows meanwhile that the loop `name` goes on. Returns earlier, after some seconds, for the caller to
/// look around.
pub async fn sleep(name: &str, left: Duration) {
    beat(name);
    tokio::time::sleep(left.min(Duration::from_secs(5))).await;
    beat(name);
}

/// A loop that hangs.
pub fn silent(now: Instant) -> Option<String> {
    let pulses = PULSES.lock().unwrap_or_else(PoisonError::into_inner);
    pulses
        .iter()
        .find(|(_, pulse)| now.saturating_duration_since(**pulse) > SILENT)
        .map(|(name, _)| name.clone())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_shows_itself_no_longer_is_found() {
        beat("loop-of-this-test");
        assert_eq!(silent(Instant::now()), None);
        let late = Instant::now() + SILENT + Duration::from_secs(1);
        assert!(silent(late).is_some());
        beat("loop-of-this-test");
        assert_eq!(silent(Instant::now()), None);
    }
}
