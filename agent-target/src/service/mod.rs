//! The gRPC services: thin handlers that check who asks, decode, call, encode.

pub(crate) mod keeping;
pub mod operator;
mod outlook;
pub mod replication;
pub mod restore;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use assay_common::{
    config::no_such_repository,
    rpc_status::{BUSY, RpcFault},
};
use tonic::Code;

use crate::repository::{
    Repository,
    occupancy::{Busy, Refusal},
};

/// All repositories of this agent.
pub struct Repositories {
    by_name: BTreeMap<String, Arc<Repository>>,
}

impl Repositories {
    /// These.
    pub fn new(repositories: impl IntoIterator<Item = Arc<Repository>>) -> Self {
        let by_name = repositories.into_iter().map(|repository| (repository.config.name.clone(), repository));
        Self { by_name: by_name.collect() }
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Repository>> {
        self.by_name.values()
    }

    /// The one with this name; an empty name is the only one's.
    pub fn get(&self, name: &str) -> Result<&Arc<Repository>, RpcFault> {
        if name.is_empty() && self.by_name.len() == 1 {
            return Ok(self.by_name.values().next().expect("there is one"));
        }
        let by_alias = || {
            let mut all = self.by_name.values();
            all.find(|it| !name.is_empty() && it.config.alias.as_deref() == Some(name))
        };
        self.by_name.get(name).or_else(by_alias).ok_or_else(|| {
            // It must be named: to look for it again would not help.
            let code = if name.is_empty() { Code::InvalidArgument } else { Code::NotFound };
            let known = self.by_name.keys().cloned().collect::<Vec<_>>().join(", ");
            RpcFault::new(code, "no-such-repository", no_such_repository(name, "on this target"))
                .with_hint(format!("its repositories are: {known}"))
        })
    }
}

/// What to ask for when a name, number or id is none that could exist.
pub(crate) fn invalid(message: impl Into<String>) -> RpcFault {
    RpcFault::invalid(message)
}

/// When a source may come back whose repository has other work: it takes seconds, or hours.
const COME_BACK: Duration = Duration::from_secs(5);

/// The fault of a request that may not begin now.
pub(crate) fn busy(refusal: Refusal) -> RpcFault {
    let fault = |text| RpcFault::new(Code::Aborted, BUSY, text);
    match refusal {
        Refusal::Busy { run, why } => {
            let hint = match why {
                Busy::WaitsForSource => {
                    "its source makes its mark, or has lost its connection; a run that is started there takes the place of one that is given up"
                }
                _ => "wait for it to end; assay-target status shows it",
            };
            let fault = fault(format!("run {run} {}", why.text())).with_run_id(run.as_str()).with_hint(hint);
            match why {
                // That ends by itself.
                Busy::UnderWay | Busy::SealedOrChecked => fault.with_retry_after(COME_BACK),
                Busy::WaitsForSource | Busy::SealedAlready | Busy::NotReadyToSeal => fault,
            }
        }
        Refusal::NoSuchRun | Refusal::NotNow => {
            fault("a run, a check or another scrub is under way".to_owned())
                .with_hint("wait for it to end; assay-target status shows it")
        }
    }
}

/// The fault of an error that nobody expected; of a full disk, whatever met it, the one that says so.
pub(crate) fn internal(doing: &str, error: &(dyn std::error::Error + 'static)) -> RpcFault {
    let causes = || std::iter::successors(Some(error), |error| error.source());
    let mut chain = String::new();
    for text in causes().map(ToString::to_string) {
        if chain.is_empty() {
            chain = text;
        } else if !chain.contains(&text) {
            chain = format!("{chain}: {text}");
        }
    }
    if causes().any(is_full) {
        return full(&chain);
    }
    tracing::error!(doing, error = chain, "failed");
    RpcFault::new(Code::Internal, "target-failed", format!("{doing} failed on the target: {chain}"))
        .with_hint("the target agent's log has the details")
}

fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::{
        Error,
        ErrorKind::{QuotaExceeded, StorageFull},
    };
    error.downcast_ref::<Error>().is_some_and(|error| matches!(error.kind(), StorageFull | QuotaExceeded))
}

/// The fault of a target that has no room.
pub(crate) fn full(said: &str) -> RpcFault {
    RpcFault::new(Code::ResourceExhausted, "store-full", format!("the target's disk is full: {said}"))
        .with_hint("free some space on the target; what has arrived is kept and not sent again")
}

#[cfg(test)]
mod tests {
    use std::io;

    use assay_common::{error::IoContext as _, manifest::ManifestError};

    use super::*;
    use crate::{receive::ReceiveError, seal::SealError, store::index::IndexError};

    /// Whatever meets the end of the disk first: a file, the manifest or the index.
    #[test]
    fn a_full_disk_is_told_apart_wherever_it_is_met() {
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
            let error = || io::Error::from(kind);
            let file = Err::<(), _>(error()).at("write", "file".as_ref()).expect_err("an error");
            let index = IndexError::new("index", redb::Error::Io(error()));
            let errors: [Box<dyn std::error::Error>; 3] = [
                Box::new(ReceiveError::Io(file)),
                Box::new(ReceiveError::Index(index)),
                Box::new(SealError::Manifest(ManifestError::Io(error()))),
            ];
            for met in errors {
                assert_eq!(&*internal("working", &*met).reason, "store-full", "{met:?}");
            }
        }
        let other = io::Error::from(io::ErrorKind::PermissionDenied);
        let fault =
            internal("working", &ReceiveError::Index(IndexError::new("index", redb::Error::Io(other))));
        assert_eq!(&*fault.reason, "target-failed");
        assert!(fault.message.contains("permission denied"), "{}", fault.message);
    }
}
