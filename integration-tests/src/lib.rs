//! What the tests of Assay share.

pub mod standin;
