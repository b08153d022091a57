//! A whole study, from stored inputs to its frames, without the queue.

use std::time::Duration;

use medfleet_core::{BlobKind, JobId, JobKey, PoolName};
use medfleet_runtime::Metrics;
use medfleet_store::FleetKey;

use super::*;
use crate::puts::FramesInFlight;

const PICTURE: &[u8] = include_bytes!("../../../../crates/imaging/tests/golden/mono2-8bit.png");
/// A CT of seven slices.
const VOLUME: &[u8] =
    include_bytes!("../../../../crates/imaging/tests/golden/formats/ct-left-back-up.nii");
const SLICES: u32 = 7;
/// Of what hangs when it is wrong, on a loaded machine too.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a study of these files becomes.
async fn study(files: &[&'static [u8]], frames_max: u32) -> Result<Study, PreprocessError> {
    let store = BlobStore::in_memory(FleetKey::new([1; 32]));
    let key = JobKey {
        tenant: "a".parse().expect("a tenant"),
        job: JobId::from_bytes([1; 16]),
    };
    let mut inputs = Vec::new();
    for &file in files {
        let bytes = Bytes::from_static(file);
        let digest = store.digest(&key.tenant, &bytes).await;
        inputs.push(wire::StudyInput {
            part_digests: vec![Bytes::copy_from_slice(digest.as_bytes())],
            size_bytes: bytes.len() as u64,
            ..wire::StudyInput::default()
        });
        let put = store.put_named(&key.tenant, BlobKind::Input, &digest, bytes);
        put.await.expect("stored");
    }
    let pool: PoolName = "tiny-main".parse().expect("a pool");
    let config = Config {
        frames_max,
        ..Config::new(&pool, 64)
    };
    let codecs = crate::frames::codecs(&config);
    let metrics = PreprocessMetrics::register(&Metrics::new());
    let studies = Studies::new(&config, store.clone(), codecs, metrics).expect("settings");
    let puts = Puts::new(store, key.clone(), &FramesInFlight::default());
    let manifest = wire::StudyManifest {
        inputs,
        ..wire::StudyManifest::default()
    };
    let job = Job {
        tenant: &key.tenant,
        puts: &puts,
        study: &manifest,
    };
    let made = tokio::time::timeout(PATIENCE, studies.whole(job)).await;
    made.expect("it ends")
}

#[tokio::test]
async fn a_volume_and_pictures_are_shown_up_to_the_limit() {
    let files = [PICTURE, VOLUME, PICTURE];
    let study = study(&files, SLICES + 2).await.expect("frames");
    assert_eq!(study.frames.len(), SLICES as usize + 2);
}

/// Pictures and volume are each within the limit, so that only the sum tells. The volume goes beyond it with slices to spare:
/// a thread that waits for somebody to take the next ones would never end.
#[tokio::test]
async fn a_volume_that_goes_beyond_the_limit_with_other_frames_is_refused() {
    let files = [PICTURE, PICTURE, PICTURE, PICTURE, VOLUME];
    let refused = study(&files, SLICES).await.err().expect("too many");
    assert!(
        matches!(refused, PreprocessError::Frames { max: SLICES }),
        "{refused}"
    );
    assert!(refused.to_string().contains("TOO_MANY_FRAMES"));
}
