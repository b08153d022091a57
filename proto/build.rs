//! Compiles the `.proto` files with a pure-Rust compiler, so that building needs no protoc.

use std::{env, error::Error, fs, path::PathBuf};

const FILES: [&str; 7] = [
    "medfleet/v1/job.proto",
    "medfleet/v1/result.proto",
    "medfleet/v1/job_service.proto",
    "medfleet/v1/dead_letter_service.proto",
    "medfleet/v1/operator_service.proto",
    "medfleet/work/v1/work.proto",
    "medfleet/work/v1/token_service.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=medfleet");
    #[expect(
        clippy::disallowed_methods,
        reason = "how cargo tells a build script where to write"
    )]
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut compiler = protox::Compiler::new(["."])?;
    compiler
        .include_source_info(true)
        .include_imports(true)
        .open_files(FILES)?;
    // The bytes carry the comments: the API reference is generated from them.
    fs::write(
        out.join("medfleet.binpb"),
        compiler.encode_file_descriptor_set(),
    )?;
    tonic_prost_build::configure()
        .bytes(".")
        .build_client(true)
        .build_server(true)
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
