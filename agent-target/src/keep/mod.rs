//! What is kept, for how long, and whether it is still what it was.
//!
//! `retention` decides, `prune` removes, `pins` holds on to what an operator named, `holds` to what is being used;
//! `scrub` reads sealed generations again, `heal` puts right what it can of what has rotted, and `rot` remembers the rest.
//! Nothing here is asked by a source: all of it is decided on the target, by its configuration and its operators.

mod heal;
pub mod holds;
pub mod pins;
pub mod prune;
pub mod retention;
pub mod rot;
pub mod scrub;

#[cfg(test)]
pub(crate) mod bench;
