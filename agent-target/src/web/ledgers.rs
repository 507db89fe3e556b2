//! Verification of the repositories' ledgers for the pages. It takes seconds for ten thousand verdicts, so a background task does it, and a page
//! shows the newest result.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use assay_common::audit::Audit;
use jiff::Timestamp;
use tokio::sync::Notify;

use crate::{repository::Repository, service::Repositories};

/// How old a result may become.
const EVERY: Duration = Duration::from_secs(3600);
/// How old it may become while somebody looks at the repository's page.
const EVERY_WHEN_ASKED: Duration = Duration::from_secs(60);
/// How often the task checks whether a ledger is due.
const TICK: Duration = Duration::from_secs(30);

/// The result of verifying a ledger.
#[derive(Debug)]
pub(super) struct Verification {
    /// When it was verified.
    pub(super) time: Timestamp,
    /// The audit, or the error of reading the ledger.
    pub(super) audit: Result<Audit, String>,
}

impl Verification {
    fn at(repository: &Repository, time: Timestamp) -> Self {
        let audit = repository.audit_ledger().map_err(|error| error.to_string());
        if let Some(fault) = Self::fault_of(&audit) {
            let repository = &repository.config.name;
            tracing::error!(
                repository,
                fault,
                "the ledger does not verify: assay-target ledger verify says more"
            );
        }
        Self { time, audit }
    }

    fn fault_of(audit: &Result<Audit, String>) -> Option<String> {
        match audit {
            Ok(audit) => audit.findings.first().map(ToString::to_string),
            Err(error) => Some(error.clone()),
        }
    }

    /// The first finding; `None` when the ledger is sound.
    pub(super) fn fault(&self) -> Option<String> {
        Self::fault_of(&self.audit)
    }
}

/// The newest result for each repository.
#[derive(Debug, Default)]
pub(super) struct Ledgers {
    results: Mutex<BTreeMap<String, Arc<Verification>>>,
    /// The repository whose page somebody looks at.
    asked: Mutex<Option<String>>,
    wake: Notify,
}

impl Ledgers {
    fn results(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Verification>>> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn asked(&self) -> MutexGuard<'_, Option<String>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest result for a repository; `None` before the first.
    pub(super) fn of(&self, repository: &str) -> Option<Arc<Verification>> {
        self.results().get(repository).cloned()
    }

    /// Asks for a new result, because somebody looks at the repository's page.
    pub(super) fn ask(&self, repository: &str) {
        *self.asked() = Some(repository.to_owned());
        self.wake.notify_one();
    }

    /// The repository whose ledger is verified next.
    fn due(&self, names: &[&str], now: Timestamp) -> Option<String> {
        let asked = self.asked().take();
        let results = self.results();
        let is_older = |name: &str, limit: Duration| {
            results.get(name).is_none_or(|result| {
                // A clock that was set back must not keep it young for ever.
                Duration::try_from(result.time.duration_until(now)).is_ok_and(|age| age > limit)
                    || result.time > now
            })
        };
        let asked = asked.filter(|name| names.contains(&name.as_str()) && is_older(name, EVERY_WHEN_ASKED));
        asked.or_else(|| names.iter().find(|name| is_older(name, EVERY)).map(|name| (*name).to_owned()))
    }

    /// Verifies ledgers, one at a time, for ever.
    pub(super) async fn keep_verified(self: Arc<Self>, repositories: Arc<Repositories>) {
        loop {
            let names: Vec<_> = repositories.iter().map(|it| it.config.name.as_str()).collect();
            let Some(name) = self.due(&names, Timestamp::now()) else {
                drop(tokio::time::timeout(TICK, self.wake.notified()).await);
                continue;
            };
            let Some(repository) = repositories.iter().find(|it| it.config.name == name).cloned() else {
                continue;
            };
            let verify = move || Verification::at(&repository, Timestamp::now());
            let result = tokio::task::spawn_blocking(verify).await.unwrap_or_else(|_| Verification {
                time: Timestamp::now(),
                audit: Err(
                    "the agent has a bug: verifying the ledger panicked, and its log says where".to_owned()
                ),
            });
            self.results().insert(name, Arc::new(result));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_without_a_result_is_next_and_a_requested_one_comes_first() {
        let ledgers = Ledgers::default();
        let at = |seconds: i64| Timestamp::from_second(1_800_000_000 + seconds).expect("a time");
        let verify = |name: &str, seconds| {
            let result = Verification { time: at(seconds), audit: Err("x".to_owned()) };
            ledgers.results().insert(name.to_owned(), Arc::new(result));
        };
        let names = ["a", "b", "c"];
        assert_eq!(ledgers.due(&names, at(0)).as_deref(), Some("a"));
        verify("a", 0);
        ledgers.ask("c");
        assert_eq!(ledgers.due(&names, at(1)).as_deref(), Some("c"));
        verify("c", 1);
        assert_eq!(ledgers.due(&names, at(1)).as_deref(), Some("b"));
        verify("b", 2);
        assert_eq!(ledgers.due(&names, at(3)), None);
        ledgers.ask("b");
        assert_eq!(ledgers.due(&names, at(30)), None, "it is young enough");
        ledgers.ask("b");
        assert_eq!(ledgers.due(&names, at(90)).as_deref(), Some("b"));
        ledgers.ask("<script>");
        assert_eq!(ledgers.due(&names, at(90)), None);
        // Its clock was ahead.
        assert_eq!(ledgers.due(&names, at(-5)).as_deref(), Some("a"));
        assert_eq!(ledgers.due(&names, at(3700)).as_deref(), Some("a"));
    }
}
