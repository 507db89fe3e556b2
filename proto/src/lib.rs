//! The wire contract of Assay: `assay.v1`, generated from `proto/assay/v1/*.proto`. No logic lives here
//! but the codec, which bounds what a message may cost before it is decoded.

pub mod bounded;

/// Messages, clients and servers of `assay.v1`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod v1 {
    tonic::include_proto!("assay.v1");
}

/// The encoded `FileDescriptorSet` of the contract, for gRPC reflection and for printing messages as JSON.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/assay.v1.descriptors.bin"));
