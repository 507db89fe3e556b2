//! What makes a verdict worth its name: where a fault came in, whether the checker finds damage at all, and which
//! generation was the first bad one.

pub mod attribute;
pub mod bisect;
pub mod control;
mod damage;
pub mod difference;
pub mod named;
pub(crate) mod programs;
pub mod readback;
pub mod schedule;
pub mod second;
