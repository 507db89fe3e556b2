//! Peers that have been taken over, against the real agents as processes: one message is changed at a time, and nothing is
//! believed, sealed or touched that should not be.

mod certificates;
mod closed;
mod confinement;
mod documents;
mod exchanged_checker;
#[path = "../shows/file_systems.rs"]
#[allow(dead_code)]
mod file_systems;
mod ground;
mod holding;
#[path = "../shows/link.rs"]
#[allow(dead_code, reason = "the other suite uses the rest of it")]
mod link;
#[path = "../shows/pair.rs"]
#[allow(dead_code, reason = "the other suite uses the rest of it")]
mod pair;
mod prisoner;
mod receipts;
mod restored_trees;
mod restores;
mod roles;
mod source_calls;
mod source_messages;
mod stolen_keys;
mod target_messages;
