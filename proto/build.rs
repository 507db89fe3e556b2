//! Compiles the wire contract with protox, so that no `protoc` is needed on the machine.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    let files =
        ["common", "source", "target", "replication", "restore"].map(|name| format!("assay/v1/{name}.proto"));
    println!("cargo::rerun-if-changed=assay");
    let descriptors = protox::compile(files, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("assay.v1.descriptors.bin"), descriptors.encode_to_vec())?;
    let mut config = tonic_prost_build::Config::new();
    // The codec finds a message's descriptor by its name.
    config.enable_type_names();
    tonic_prost_build::configure()
        .codec_path("crate::bounded::BoundedCodec")
        .bytes(".assay.v1.Pack.data")
        .bytes(".assay.v1.ManifestPart.data")
        .bytes(".assay.v1.ContentPart.data")
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}
