//! The place for blobs that a configuration names: whether it answers, and how much room there is.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::StreamExt;
use medfleet_core::chain;
use medfleet_runtime::config::{Sources, load};
use medfleet_store::backend::Folder;
use medfleet_store::{BackendConfig, S3Config, StoreConfig};

use super::{Finding, checks};
use crate::exit::Fault;

const CHECK: &str = "store";
/// Longest wait for a bucket's answer, tries of the client included.
const ANSWER_MAX: Duration = Duration::from_secs(15);

/// The one table of a service's configuration that is needed here.
#[derive(Debug, serde::Deserialize)]
struct Configured {
    store: Option<StoreConfig>,
}

/// The place that the file names; `None` where it names none.
pub(super) async fn look(file: PathBuf) -> Result<Option<Finding>, Fault> {
    let sources = Sources::of_process(Some(file), Vec::new());
    let configured: Configured = load(&sources).map_err(Fault::usage)?;
    Ok(match &configured.store {
        Some(store) => Some(finding(store, ANSWER_MAX).await),
        None => None,
    })
}

async fn finding(store: &StoreConfig, answer_max: Duration) -> Finding {
    if let Err(error) = store.check() {
        return Finding::fail(CHECK, chain(&error), "correct the setting");
    }
    match &store.backend {
        BackendConfig::Folder { path } => folder(path),
        BackendConfig::Jetstream { bucket, .. } => {
            Finding::ok(CHECK, format!("NATS keeps it, as {bucket}: see streams"))
        }
        BackendConfig::S3(S3Config { bucket, .. }) => {
            let asked = Instant::now();
            match answers(store, answer_max).await {
                Ok(()) => Finding::ok(
                    CHECK,
                    format!(
                        "bucket {bucket} answers in {} ms",
                        asked.elapsed().as_millis()
                    ),
                ),
                Err(error) => Finding::fail(
                    CHECK,
                    format!("bucket {bucket}: {error:#}"),
                    "is its address right, may this key list it, and is the authority of its certificate in store.backend.ca?",
                ),
            }
        }
    }
}

/// Nothing is written, and what running services are about to write is left alone.
fn folder(path: &Path) -> Finding {
    match Folder::is_untouched(path) {
        Ok(false) => checks::room(CHECK, path, "free space or make the volume larger"),
        Ok(true) => Finding::warn(
            CHECK,
            format!("nothing of a fleet is in {}", path.display()),
            "right before the first start; later, mount the disk with the blobs there",
        ),
        Err(error) => Finding::fail(
            CHECK,
            format!("{}: {}", path.display(), chain(&error)),
            "name a folder that this user may read",
        ),
    }
}

/// Whether the bucket tells what is in it.
async fn answers(store: &StoreConfig, answer_max: Duration) -> Result<()> {
    let backend = store.open_backend()?;
    let mut entries = backend.list("");
    let first = tokio::time::timeout(answer_max, entries.next());
    first.await.context("it does not answer")?.transpose()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::doctor::Verdict;
    use medfleet_core::setting::{ByteSize, Secret};

    fn store(backend: BackendConfig) -> StoreConfig {
        StoreConfig {
            backend,
            key: Secret::new("a1".repeat(32)),
            blob_bytes_max: ByteSize::from_mib(64),
            capacity_bytes: None,
        }
    }

    async fn check(store: &StoreConfig, answer_max: Duration, expected: Verdict, part: &str) {
        let found = finding(store, answer_max).await;
        assert_eq!(found.verdict, expected, "{found}");
        assert!(found.found.contains(part), "{found}");
    }

    #[tokio::test]
    async fn a_folder_is_looked_at_and_left_as_it_is() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let path = root.path().join("blobs");
        let named = store(BackendConfig::Folder { path: path.clone() });
        check(&named, ANSWER_MAX, Verdict::Warn, "nothing of a fleet").await;
        assert!(!path.exists(), "it was only looked at");
        named.open().expect("opens");
        let found = finding(&named, ANSWER_MAX).await;
        assert!(found.found.contains("free"), "{found}");
    }

    #[tokio::test]
    async fn a_bucket_that_is_away_and_a_wrong_key_are_told() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
        let nobody = format!("http://{}", listener.local_addr().expect("has an address"));
        drop(listener);
        let mut away = store(BackendConfig::S3(S3Config {
            bucket: "blobs".to_owned(),
            region: "us-east-1".to_owned(),
            endpoint: Some(nobody),
            access_key_id: Some(Secret::new("id")),
            secret_access_key: Some(Secret::new("key")),
            ca: None,
            allow_http: true,
        }));
        let soon = Duration::from_millis(200);
        check(&away, soon, Verdict::Fail, "bucket blobs").await;
        away.key = Secret::new("short");
        check(&away, soon, Verdict::Fail, "store.key").await;
    }
}
