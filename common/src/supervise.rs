//! Tasks that must not end: each is watched, started again when it panics, and ends the process when that does not help.
//!
//! A panic anywhere in the process is counted and logged ([`watch_panics`]), also in a thread that nobody watches.

use std::{
    panic::PanicHookInfo,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use crate::{
    telemetry,
    trouble::{self, Kind},
};

/// Pause before a task is started again, at first; doubled with each panic that follows soon.
const PAUSE: Duration = Duration::from_secs(1);
/// A task that has run for so long has recovered.
const RECOVERED: Duration = Duration::from_secs(60);
/// Panics one soon after another that are borne: systemd does the rest.
const MAX_PANICS: u32 = 5;
/// How long `status` shows a panic.
const SHOWN: Duration = Duration::from_secs(24 * 3600);
/// The process's exit code when a task cannot be kept alive.
const EXIT_PANICS: i32 = 4;

static PANICS: AtomicU64 = AtomicU64::new(0);

/// Panics since the process started.
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// From now on each panic is counted and logged as an error, with its place.
pub fn watch_panics() {
    std::panic::set_hook(Box::new(|panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        let thread = std::thread::current();
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let (thread, text) = (thread.name().unwrap_or("unnamed"), text_of(panic));
        tracing::error!(thread, place, "the agent has a bug: a task panicked: {text}");
        // Threads that nobody supervises are told of, too: a check's, a scrub's.
        let text = format!("a task of the thread {thread} panicked at {place}: the log says more");
        trouble::happened_if_free(Kind::TaskPanicked, "", SHOWN, text);
    }));
}

fn text_of<'a>(panic: &'a PanicHookInfo<'_>) -> &'a str {
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("it gave no reason")
}

/// Starts a task that is to run for as long as the process. When it panics it is started again.
pub fn spawn<F, T>(name: &'static str, make: F)
where
    F: Fn() -> T + Send + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    tokio::spawn(async move {
        let mut panics = 0;
        loop {
            let started = Instant::now();
            match tokio::spawn(make()).await {
                Err(error) if error.is_panic() => {}
                // It has nothing to do, or the process ends.
                _ => return,
            }
            panics = if started.elapsed() > RECOVERED { 1 } else { panics + 1 };
            if panics > MAX_PANICS {
                give_up(name, panics);
            }
            let text = format!("the task {name} panicked and was started again: the log says where");
            trouble::amend(Kind::TaskPanicked, "", SHOWN, text);
            tokio::time::sleep(PAUSE * 2_u32.pow(panics - 1)).await;
        }
    });
}

/// [`spawn`] for a task whose state outlives a panic: the next start goes on with it. The state must make sense after a panic at any place.
pub fn spawn_with<S, F>(name: &'static str, state: S, run: F)
where
    S: Send + 'static,
    F: for<'a> Fn(&'a mut S) -> futures::future::BoxFuture<'a, ()> + Clone + Send + Sync + 'static,
{
    // Not poisoned by a panic.
    let state = std::sync::Arc::new(tokio::sync::Mutex::new(state));
    spawn(name, move || {
        let (state, run) = (std::sync::Arc::clone(&state), run.clone());
        async move { run(&mut *state.lock().await).await }
    });
}

fn give_up(name: &str, panics: u32) -> ! {
    tracing::error!(task = name, panics, "the task cannot be kept alive: the agent ends, to be restarted");
    telemetry::flush();
    std::process::exit(EXIT_PANICS);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_is_counted_told_and_started_again() {
        watch_panics();
        let before = panics();
        let (starts, (done, is_done)) = (Arc::new(AtomicU64::new(0)), tokio::sync::oneshot::channel());
        let done = Arc::new(std::sync::Mutex::new(Some(done)));
        spawn("of-this-test", {
            let starts = Arc::clone(&starts);
            move || {
                let (start, done) = (starts.fetch_add(1, Ordering::SeqCst), Arc::clone(&done));
                async move {
                    assert!(start >= 2, "on purpose");
                    if let Some(done) = done.lock().expect("nobody panicked here").take() {
                        done.send(()).expect("somebody waits");
                    }
                }
            }
        });
        is_done.await.expect("the third start succeeds");
        assert_eq!(starts.load(Ordering::SeqCst), 3);
        assert!(panics() >= before + 2);
        let told = trouble::all();
        assert!(told.iter().any(|trouble| trouble.message.contains("of-this-test")), "{told:?}");
    }
}
