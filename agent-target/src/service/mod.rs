//! The gRPC services: thin handlers that check who asks, decode, call, encode.

mod keeping;
pub mod operator;
mod outlook;
pub mod replication;
pub mod restore;

use std::{collections::BTreeMap, sync::Arc};

use assay_common::rpc_status::RpcFault;
use tonic::Code;

use crate::repository::Repository;

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
        self.by_name.get(name).ok_or_else(|| {
            let known = self.by_name.keys().cloned().collect::<Vec<_>>().join(", ");
            RpcFault::new(
                Code::NotFound,
                "no-such-repository",
                format!("there is no repository {name:?} on this target"),
            )
            .with_hint(format!("its repositories are: {known}"))
        })
    }
}

/// What to ask for when a name, number or id is none that could exist.
pub(crate) fn invalid(message: impl Into<String>) -> RpcFault {
    RpcFault::invalid(message)
}

/// An error of ours: the peer hears little, the log everything.
pub(crate) fn internal(doing: &str, error: &dyn std::error::Error) -> RpcFault {
    let mut chain = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !chain.contains(&text) {
            chain = format!("{chain}: {text}");
        }
        source = cause.source();
    }
    tracing::error!(doing, error = chain, "failed");
    RpcFault::new(Code::Internal, "target-failed", format!("{doing} failed on the target: {chain}"))
        .with_hint("the target agent's log has the details")
}
