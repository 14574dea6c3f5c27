//! Generates the types of `proto/`: prost messages, tonic services, the JSON mapping (pbjson) and the descriptors that
//! gRPC reflection serves. protox compiles the files, so no `protoc` is needed.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const PUBLIC: [&str; 3] = ["temperd/v1/inference.proto", "temperd/v1/control.proto", "temperd/v1/telemetry.proto"];
const ENGINE: &str = "temperd/engine/v1/engine.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let public = protox::compile(PUBLIC, ["proto"])?;
    let descriptors = public.encode_to_vec();
    fs::write(out.join("temperd.v1.bin"), &descriptors)?;
    // Messages know their full name, by which `wire::strict` finds their descriptors.
    let mut named = tonic_prost_build::Config::new();
    named.enable_type_names();
    tonic_prost_build::configure().bytes(".").compile_fds_with_config(public, named)?;
    pbjson_build::Builder::new()
        .register_descriptors(&descriptors)?
        .preserve_proto_field_names()
        .emit_fields()
        .build(&[".temperd.v1"])?;

    let engine = protox::compile([ENGINE], ["proto"])?;
    tonic_prost_build::configure().compile_fds(engine)?;
    Ok(())
}
