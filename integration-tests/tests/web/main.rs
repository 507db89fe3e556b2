//! What the target shows to a browser.

mod browser;
#[path = "../shows/file_systems.rs"]
#[allow(dead_code, reason = "the other suite uses the rest of it")]
mod file_systems;
mod fleet;
#[path = "../shows/link.rs"]
#[allow(dead_code, reason = "the other suite uses the rest of it")]
mod link;
mod login;
mod looks;
mod page;
#[path = "../shows/pair.rs"]
#[allow(dead_code, reason = "the other suite uses the rest of it")]
mod pair;
mod past;
mod report;
mod site;
