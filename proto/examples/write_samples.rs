//! Writes the samples of messages that have none yet; a stored one is never overwritten.

use std::fs;
use std::path::Path;

fn main() -> std::io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples");
    for (name, bytes) in medfleet_proto::samples::all() {
        let path = folder.join(format!("{name}.binpb"));
        if !path.exists() {
            fs::write(path, bytes)?;
        }
    }
    Ok(())
}
