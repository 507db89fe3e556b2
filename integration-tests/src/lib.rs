//! What the tests and the benchmark of Assay share.

pub mod bench;
pub mod evil;
pub mod standin;
