//! The contract has not moved: every committed sample decodes to the values it was written with.

mod messages;

use std::fs;
use std::path::Path;

#[test]
fn every_committed_sample_still_reads() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples");
    let samples = messages::all();
    for sample in &samples {
        let name = sample.name;
        let path = folder.join(format!("{name}.binpb"));
        let stored = fs::read(&path).unwrap_or_else(|error| {
            panic!(
                "{}: {error}; write it with `cargo run -p medfleet-proto --example write_samples`",
                path.display()
            )
        });
        let again = (sample.again)(&stored).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(
            again, stored,
            "{name}: a field of the stored message is no longer read"
        );
        assert_eq!(
            sample.bytes, stored,
            "{name}: this version writes the same values differently"
        );
    }
    let files = fs::read_dir(&folder).expect("the folder exists").count();
    assert_eq!(
        files,
        samples.len(),
        "a sample without a message, or a message without a sample"
    );
}
