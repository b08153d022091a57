//! Generates code from `medfleet.binpb`, the description of the `.proto` files that `cargo xtask proto` makes and compares
//! with them: building needs no compiler of `.proto` files, neither protoc nor one in Rust.

use std::{error::Error, fs};

use prost::Message;
use prost_types::FileDescriptorSet;

const IMAGE: &str = "medfleet.binpb";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={IMAGE}");
    let files = FileDescriptorSet::decode(fs::read(IMAGE)?.as_slice())?;
    tonic_prost_build::configure()
        .bytes(".")
        .build_client(true)
        .build_server(true)
        .compile_fds(files)?;
    Ok(())
}
