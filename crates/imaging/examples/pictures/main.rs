//! Writes the pictures of `docs/imaging.md`: `cargo run -p medfleet-imaging --example pictures -- ~/.cache/medfleet/pydicom-data-1.0.0`.

mod list;

use std::path::Path;

fn main() {
    let corpora = std::env::args()
        .nth(1)
        .expect("where pydicom-data 1.0.0 is unpacked");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = root.join("../../docs/imaging");
    std::fs::create_dir_all(&out).expect("docs can be written");
    for (name, png) in list::pictures(&root.join("tests"), Path::new(&corpora)) {
        std::fs::write(out.join(name), png).expect("docs can be written");
    }
}
