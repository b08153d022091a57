//! Writes the samples of messages that have none yet; a stored one is never overwritten.

#[path = "../tests/samples/messages.rs"]
mod messages;

use std::path::Path;
use std::{fs, io};

fn main() -> io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples");
    for sample in messages::all() {
        let path = folder.join(format!("{}.binpb", sample.name));
        if !path.exists() {
            // A sample that cannot be read now never will be.
            (sample.again)(&sample.bytes).map_err(io::Error::other)?;
            fs::write(path, sample.bytes)?;
        }
    }
    Ok(())
}
