//! Real engines under write load, from the mark to the verdict, and their backups brought up again.

mod accurev;
mod carried;
#[path = "../shows/file_systems.rs"]
#[allow(dead_code)]
mod file_systems;
mod generic;
mod git;
mod honest;
mod hostile_copies;
#[path = "../shows/link.rs"]
#[allow(dead_code, reason = "the other suite uses the rest of it")]
mod link;
mod live;
mod matrix;
#[path = "../shows/pair.rs"]
#[allow(dead_code, reason = "the other suite uses the rest of it")]
mod pair;
mod postgresql;
mod postgresql_kinds;
mod postgresql_live;
mod postgresql_looks;
mod redis;
mod sqlite;
mod subversion;
