//! Peers that have been taken over: they have valid certificates and keys, speak the real protocol, and change one message.
//!
//! Used by the tests in `tests/hostile`, against the real agents as processes.

pub mod source;
pub mod target;
