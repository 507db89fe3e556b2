//! The source agent: marks the live repository, sends what changed, and believes a verdict only with its signature.
//!
//! The folders show how a run flows: `schedule` and `service` trigger it, `agent` lets one run at a time, `run` is its
//! story, `mark` speaks with the engine, `snapshot` with the file system, `replicate` reads and sends.

pub mod agent;
pub mod app;
pub mod cli;
pub mod config;
pub mod file_system;
pub mod mark;
pub mod observe;
pub mod replicate;
pub mod run;
pub mod schedule;
pub mod service;
mod snapshot;
pub mod state;
pub mod target;
pub mod turns;
