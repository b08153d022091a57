//! How long the handle of an upload lives: over a real server, at a time that the test sets.

use futures::stream;
use medfleet_core::setting::{ByteSize, Secret};
use medfleet_runtime::{ManualClock, Metrics, SeededRandom};
use medfleet_store::{BackendConfig, BlobStore, FleetKey, StoreConfig, StoreError};
use medfleet_testkit::NatsServer;

use super::*;
use crate::config::{Quota, QuotasConfig, sample};

const PART_BYTES: usize = 1024;
const PARTS: usize = 3;
/// Most of the hour that a handle lives.
const MOST_OF_ITS_TIME: std::time::Duration = std::time::Duration::from_secs(50 * 60);

struct Setup {
    _server: NatsServer,
    uploads: Uploads,
    clock: Arc<ManualClock>,
}

impl Setup {
    async fn new() -> Self {
        let (server, queue) = medfleet_testkit::start().await.expect("a queue");
        let clock = Arc::new(ManualClock::at(medfleet_testkit::clock()()));
        let part = format!("limits.upload_part_bytes={PART_BYTES} B");
        let config = sample::with(&[
            part.as_str(),
            "limits.input_bytes_max=3 KiB",
            "limits.study_bytes_max=3 KiB",
        ]);
        let retry_after = config.limits.retry_after.get();
        let uploads = Uploads {
            quotas: Quotas::new(config.quotas.clone(), retry_after, clock.clone()),
            config: Arc::new(config),
            queue,
            blobs: Blobs::new(BlobStore::in_memory(FleetKey::new([1; 32]))),
            clock: clock.clone(),
            random: Arc::new(SeededRandom::new(1)),
            figures: Figures::new(&Metrics::new()),
            shutdown: Shutdown::new(std::time::Duration::ZERO),
            places: Places::new(8),
        };
        Self {
            _server: server,
            uploads,
            clock,
        }
    }

    /// From now on every tenant has this quota.
    fn allow(&mut self, default: Quota) {
        let quotas = QuotasConfig {
            default,
            ..QuotasConfig::default()
        };
        let retry_after = self.uploads.config.limits.retry_after.get();
        self.uploads.quotas = Quotas::new(quotas, retry_after, self.clock.clone());
    }

    /// One stream: opens an upload, or goes on with one, and sends so many parts, each most of an hour after what was before.
    async fn send(&self, upload: &str, from: usize, parts: usize) -> Result<v1::Upload, Refusal> {
        let start = v1::UploadStart {
            upload: upload.to_owned(),
            offset: (from * PART_BYTES) as u64,
            total_bytes: (PARTS * PART_BYTES) as u64,
        };
        let chunks = (0..parts).map(|_| {
            self.clock.advance(MOST_OF_ITS_TIME);
            Content::Chunk(Bytes::from_static(&[7; PART_BYTES]))
        });
        let contents = std::iter::once(Content::Start(start)).chain(chunks);
        let messages = contents.map(|content| {
            Ok(v1::UploadInputRequest {
                content: Some(content),
            })
        });
        let tenant = TenantId::new("st-mary").expect("a name");
        self.uploads.take(tenant, stream::iter(messages)).await
    }
}

fn is_gone(refused: &Result<v1::Upload, Refusal>) -> bool {
    matches!(refused, Err(Refusal::NotFound { .. }))
}

#[tokio::test]
async fn a_handle_lives_on_from_each_part_and_not_from_its_opening() {
    let setup = Setup::new().await;
    let sent = setup.send("", 0, PARTS).await.expect("slow, and going on");
    assert!(sent.complete);
    // The first files of a study wait for the last one.
    for _ in 0..2 {
        setup.clock.advance(MOST_OF_ITS_TIME);
        let kept = setup.send(&sent.name, PARTS, 0).await;
        assert!(kept.expect("it is resumed").complete);
    }
    setup.clock.advance(MOST_OF_ITS_TIME * 2);
    assert!(is_gone(&setup.send(&sent.name, PARTS, 0).await));
}

/// The stream that stalled may store what was on the line after its client has asked how far it came.
#[tokio::test]
async fn who_resumes_behind_an_older_stream_is_told_to_ask_again() {
    let setup = Setup::new().await;
    let upload = setup.send("", 0, 2).await.expect("two parts").name;
    let behind = setup.send(&upload, 1, 1).await;
    assert!(matches!(behind, Err(Refusal::Moved)), "{behind:?}");
    let ahead = setup.send(&upload, 3, 0).await;
    assert!(matches!(ahead, Err(Refusal::Invalid(_))), "{ahead:?}");
    let whole = setup.send(&upload, 2, 1).await.expect("from where it is");
    assert!(whole.complete);
}

#[test]
fn a_message_that_is_too_large_is_not_taken_for_silence() {
    let check = |status: &Status, expected| {
        let refusal = broken(status);
        assert_eq!(matches!(refusal, Refusal::Invalid(_)), expected);
    };
    check(&Status::out_of_range("message length too large"), true);
    check(&Status::cancelled("the client is gone"), false);
    check(&Status::internal("unexpected end of the stream"), false);
}

#[tokio::test]
async fn a_handle_of_which_no_part_comes_ends_in_its_time() {
    let setup = Setup::new().await;
    let upload = setup.send("", 0, 1).await.expect("a part").name;
    setup.clock.advance(MOST_OF_ITS_TIME * 2);
    assert!(is_gone(&setup.send(&upload, 1, 1).await));
}

/// Who breaks off many uploads, and then goes on with all of them, has no more than it may.
#[tokio::test]
async fn an_upload_that_goes_on_needs_room_for_the_rest() {
    let mut setup = Setup::new().await;
    let (part, all) = (PART_BYTES as u64, (PARTS * PART_BYTES) as u64);
    let default = Quota {
        stored_bytes_max: Some(ByteSize::from_bytes(all)),
        ..Quota::default()
    };
    setup.allow(default);
    let is_over = |refused: Result<v1::Upload, Refusal>| {
        assert!(
            matches!(refused, Err(Refusal::Stored { .. })),
            "{refused:?}"
        );
    };
    let upload = setup.send("", 0, 1).await.expect("there is room").name;
    let tenant = TenantId::new("st-mary").expect("a name");
    let other = setup.uploads.quotas.hold(&tenant, all - part);
    let other = other.expect("the rest of the upload is not kept free");
    is_over(setup.send(&upload, 1, 0).await);
    drop(other);
    let whole = setup.send(&upload, 1, PARTS - 1).await;
    assert!(whole.expect("just fits").complete);
    is_over(setup.send("", 0, 0).await);
    // It brings nothing more.
    let kept = setup.send(&upload, PARTS, 0).await;
    assert!(kept.expect("it is whole").complete);
}

/// Who comes back until there is room.
#[tokio::test]
async fn an_upload_that_finds_no_room_costs_its_tenant_nothing() {
    let mut setup = Setup::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let room = ByteSize::from_bytes(PART_BYTES as u64);
    let store = StoreConfig {
        backend: BackendConfig::Folder {
            path: folder.path().to_owned(),
        },
        key: Secret::new("01".repeat(32)),
        blob_bytes_max: room,
        capacity_bytes: Some(room),
    };
    setup.uploads.blobs = Blobs::new(store.open().expect("a folder"));
    let bytes = (PARTS * PART_BYTES) as u64;
    let default = Quota {
        bytes_per_minute: Some(ByteSize::from_bytes(bytes)),
        ..Quota::default()
    };
    setup.allow(default);
    for _ in 0..2 {
        let refused = setup.send("", 0, 0).await;
        assert!(
            matches!(refused, Err(Refusal::Store(StoreError::Full { .. }))),
            "{refused:?}"
        );
    }
    let tenant = TenantId::new("st-mary").expect("a name");
    let counted = setup.uploads.quotas.bytes(&tenant, bytes);
    assert!(counted.is_ok(), "{counted:?}");
}
