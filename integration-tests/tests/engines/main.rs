//! Real engines under write load, from the mark to the verdict, and their backups brought up again.

#[path = "../shows/link.rs"]
#[allow(dead_code, reason = "the other suite uses the rest of it")]
mod link;
#[path = "../shows/pair.rs"]
#[allow(dead_code, reason = "the other suite uses the rest of it")]
mod pair;
mod postgresql;
