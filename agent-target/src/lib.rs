//! The target agent: receives generations, seals them, checks them in a workspace, and signs what came out.
//!
//! The folders show how a run flows: `receive` (content), `store` (where it is kept), `seal` (names, then the seal),
//! `workspace`, `patch` and `check` (the engine's own check in a throw-away view), `verify` (from check to
//! signed verdict), `trust` (where a fault came in, whether the checker finds damage, which generation was the first bad one),
//! `keep` (what is kept for how long, and whether it is still what it was). `status` is the record of how it all stands; `web` shows it to a browser.

pub mod ahead;
pub mod app;
mod buffers;
mod carried;
pub mod check;
pub mod check_queue;
pub mod cli;
pub mod config;
pub mod engine;
mod failed_runs;
pub mod keep;
mod leftover;
pub mod observe;
pub mod patch;
pub mod receive;
mod report;
pub mod repository;
pub mod restore;
pub mod seal;
pub mod service;
pub mod status;
pub mod store;
pub mod trust;
pub mod userns;
pub mod verify;
pub mod web;
pub mod workspace;
