//! The check itself is checked: images are swapped behind the fleet's back, in ways that every digest agrees with, and
//! the answer must be called wrong.

use anyhow::{Context, Result, ensure};
use medfleet_core::{BlobKind, Digest, JobKey};
use medfleet_proto::work::v1::TokensManifest;
use medfleet_store::BlobStore;
use medfleet_testkit::wait_until;
use medfleet_tests::chaos::check::answer_is_right;
use medfleet_tests::chaos::disk::Kind;
use medfleet_tests::chaos::herd::{Herd, HerdOptions};
use medfleet_tests::chaos::load::{Accepted, jobs};
use medfleet_tests::chaos::oracle;
use medfleet_tests::client::PATIENCE;
use medfleet_tests::config;
use medfleet_tests::fleet::{Pace, Role};
use medfleet_worker::handed_key;
use prost::Message;

/// What is put in the place of the tokens of a job's first image.
#[derive(Debug, Clone, Copy)]
enum Plant {
    Nothing,
    /// Those of its second, and the other way round.
    Swap,
    /// Those of another tenant's image, copied into this tenant's part of the store.
    Foreign,
}

/// The tokens manifests of a job's chunks.
struct Manifests<'a> {
    store: &'a BlobStore,
    job: JobKey,
    frames: Digest,
}

impl Manifests<'_> {
    fn key(&self, chunk: u32) -> Vec<u8> {
        // It was started once.
        handed_key((&self.job.job, 0), &self.frames, chunk)
    }

    async fn read(&self, chunk: u32) -> Result<TokensManifest> {
        let (kind, key) = (BlobKind::TokensOfChunk, self.key(chunk));
        let stored = self.store.get_mutable(&self.job.tenant, kind, &key);
        let bytes = stored.await?.context("a manifest of the chunk")?;
        Ok(TokensManifest::decode(bytes)?)
    }

    async fn write(&self, chunk: u32, manifest: &TokensManifest) -> Result<()> {
        let (kind, key) = (BlobKind::TokensOfChunk, self.key(chunk));
        let bytes = manifest.encode_to_vec().into();
        let stored = self.store.put_mutable(&self.job.tenant, kind, &key, bytes);
        stored.await?;
        Ok(())
    }
}

async fn verdict(plant: Plant) -> Result<Result<()>> {
    let herd = Herd::start(HerdOptions {
        nodes: 1,
        instances: 1,
        record_shards: 1,
        disk: Kind::Plain,
        pace: Pace::default(),
        ack_wait: config::ACK_WAIT,
    })
    .await?;
    herd.drain((Role::Decode, 0)).await?;
    let clients = herd.clients()?;
    let mut two = jobs(5, 64, std::time::Duration::ZERO)?;
    two.retain(|asked| asked.images.len() > 1);
    let mine = two.first().context("a job of several images")?.clone();
    let other = two.iter().find(|asked| asked.tenant != mine.tenant);
    let other = other.context("a job of another tenant")?.clone();
    let store = config::store(&herd.disk().blobs())?;
    let queue = herd.probe().await?;
    let mut manifests = Vec::new();
    let mut accepted = Vec::new();
    for asked in [mine, other] {
        let name = clients.submit(&asked).await?;
        let key = config::job_key(asked.tenant, &name)?;
        let frames = wait_until(PATIENCE, "every image to be encoded", async || {
            let (record, _) = queue.record(&key).await.ok()??;
            record.frames.filter(|_| record.chunks.all_done())
        })
        .await?;
        manifests.push(Manifests {
            store: &store,
            job: key,
            frames,
        });
        accepted.push(Accepted { name, asked });
    }
    let (mine, other) = (&manifests[0], &manifests[1]);
    let (mut first, mut second) = (mine.read(0).await?, mine.read(1).await?);
    match plant {
        Plant::Nothing => {}
        Plant::Swap => {
            std::mem::swap(&mut first.tokens[0].digest, &mut second.tokens[0].digest);
            mine.write(0, &first).await?;
            mine.write(1, &second).await?;
        }
        Plant::Foreign => {
            let digest = Digest::from_slice(&other.read(0).await?.tokens[0].digest)?;
            let tokens = store
                .get(&other.job.tenant, BlobKind::Tokens, &digest)
                .await?;
            let digest = store
                .put(&mine.job.tenant, BlobKind::Tokens, tokens)
                .await?;
            first.tokens[0].digest = digest.as_bytes().to_vec().into();
            mine.write(0, &first).await?;
        }
    }
    herd.start_service((Role::Decode, 0)).await?;
    let name = &accepted[0].name;
    let get = async |client: medfleet_tests::client::Client| client.get(name).await;
    wait_until(PATIENCE, "the job to end", async || {
        let job = clients.call(accepted[0].asked.tenant, get).await.ok()?;
        (job.state() >= medfleet_proto::v1::JobState::Completed).then_some(())
    })
    .await?;
    Ok(answer_is_right(&clients, &accepted[0]).await)
}

fn ensure_wrong(verdict: Result<()>) -> Result<()> {
    let error = verdict.err().context("a planted image was not noticed")?;
    let text = error.to_string();
    ensure!(text.contains("about other images"), "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_untouched_answer_is_right() -> Result<()> {
    verdict(Plant::Nothing).await?
}

#[tokio::test(flavor = "multi_thread")]
async fn swapped_images_are_noticed() -> Result<()> {
    ensure_wrong(verdict(Plant::Swap).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_image_is_noticed() -> Result<()> {
    ensure_wrong(verdict(Plant::Foreign).await?)
}

#[test]
fn a_missing_image_gives_another_text() -> Result<()> {
    let jobs = jobs(5, 64, std::time::Duration::ZERO)?;
    let asked = jobs.iter().find(|asked| asked.images.len() > 1);
    let asked = asked.context("a job of several images")?;
    let without = oracle::text(&asked.question, &asked.images[1..], 0);
    ensure!(without != oracle::text(&asked.question, &asked.images, 0));
    Ok(())
}
