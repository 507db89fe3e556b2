//! What both agents mean by the same words: paths, chunks, digests, manifests, profiles, identities and verdicts.
//!
//! Rules without input or output come first; the few shared edges (TLS, configuration files, durable writes, logs) are
//! modules of their own. Nothing here knows of a run, a store or an engine.

pub mod audit;
pub mod chunking;
pub mod cli;
pub mod clock;
pub mod closed;
pub mod config;
pub mod confined;
pub mod descriptors;
pub mod dial;
pub mod digest;
pub mod dsse;
pub mod durable;
pub mod error;
pub mod fault;
pub mod fidelity;
pub mod format;
pub mod id;
pub mod json;
pub mod keyring;
pub mod ledger;
pub mod limits;
pub mod listen;
pub mod manifest;
pub mod memory;
pub mod merge_join;
pub mod metrics;
pub mod notify;
pub mod outbox;
pub mod path;
pub mod pem;
pub mod pki;
pub mod profile;
pub mod restore;
pub mod rpc_status;
pub mod serve;
pub mod service_manager;
pub mod signing;
pub mod sqlite;
pub mod supervise;
pub mod telemetry;
pub mod tls;
pub mod traceless;
pub mod traces;
pub mod trouble;
pub mod uncached;
pub mod verdict;
pub mod watch;
pub mod writable;
