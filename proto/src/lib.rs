//! The wire contract: code generated from the `.proto` files beside it, and nothing else.
//! Wire types become domain types where they enter a crate (`queue` for work messages, `ingest` for the API).

/// The public API.
pub mod v1 {
    #![allow(missing_debug_implementations, clippy::all, clippy::pedantic)]
    tonic::include_proto!("medfleet.v1");
}

/// What the services of one fleet tell each other.
pub mod work {
    /// Version 1.
    pub mod v1 {
        #![allow(missing_debug_implementations, clippy::all, clippy::pedantic)]
        tonic::include_proto!("medfleet.work.v1");
    }
}

/// The encoded `FileDescriptorSet` of all `.proto` files with their comments, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("../medfleet.binpb");
