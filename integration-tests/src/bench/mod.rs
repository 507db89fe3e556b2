//! The benchmark of Assay against rsync.
//!
//! Both copy the same changing data over loopback, in turns, and every figure is a ratio of the same repetition: what
//! else the machine does meets both. It is for comparing two programs on one machine. Its absolute times say little
//! about another machine.
//!
//! What must hold: every tool sees the same change before it is measured, each into a destination of its own, and what
//! Assay has sealed is compared with the source after each workload.

pub mod assay;
pub mod data;
pub mod discard;
pub mod hosts;
pub mod isolate;
mod links;
mod live;
pub mod measure;
pub mod network;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod real;
pub mod report;
pub mod rsync;
pub mod sparse;
pub mod stats;
pub mod workloads;
