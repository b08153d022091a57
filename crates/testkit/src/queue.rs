//! A queue on a nats-server of the test's own, and records and units to put into it.

use std::sync::Arc;

use anyhow::Result;
use medfleet_core::setting::DurationText;
use medfleet_core::{
    Class, Cost, Digest, JobId, JobKey, JobRecord, NewJob, PoolName, Pseudonyms, Stage, TaskKind,
    TenantId, UnixMillis, WorkUnit,
};
use medfleet_queue::{Clock, Queue, QueueConfig};

use crate::NatsServer;

/// A server of one's own and a [`queue`] on it; keep both for as long as the test lasts.
pub async fn start() -> Result<(NatsServer, Queue)> {
    start_with(|_| {}).await
}

/// As [`start`], with settings that `change` makes of those of [`config`].
pub async fn start_with(change: impl FnOnce(&mut QueueConfig)) -> Result<(NatsServer, Queue)> {
    let server = NatsServer::start().await?;
    let mut config = config(&server.url());
    change(&mut config);
    let queue = queue(&config).await?;
    Ok((server, queue))
}

/// The machine's clock.
pub fn clock() -> Clock {
    Arc::new(|| {
        #[expect(
            clippy::disallowed_methods,
            reason = "tests of a real server need the real time"
        )]
        let now = std::time::SystemTime::now();
        let since = now.duration_since(std::time::UNIX_EPOCH);
        UnixMillis(since.map_or(0, |since| {
            i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
        }))
    })
}

/// Settings with waits that suit a test.
pub fn config(url: &str) -> QueueConfig {
    QueueConfig {
        ack_wait: DurationText::from_secs(30),
        request_timeout: DurationText::from_secs(5),
        ..QueueConfig::at(url)
    }
}

/// A connected queue with everything made, for the pool of [`pool`].
pub async fn queue(config: &QueueConfig) -> Result<Queue> {
    let queue = Queue::connect(config, clock()).await?;
    queue.ensure(&[pool()]).await?;
    Ok(queue)
}

pub fn pool() -> PoolName {
    PoolName::new("tiny-here").expect("1 to 32 letters")
}

pub fn tenant() -> TenantId {
    TenantId::new("st-mary").expect("1 to 32 letters")
}

/// The key of a job, made of `seed`.
pub fn key(seed: u8) -> JobKey {
    JobKey::new(tenant(), JobId::from_bytes([seed; 16]))
}

/// A newly accepted job with `images` images, and its key made of `seed`.
pub fn record(seed: u8, images: u32) -> (JobKey, JobRecord) {
    let now = clock()();
    let record = JobRecord::accepted(NewJob {
        pool: pool(),
        class: Class::Routine,
        task: TaskKind::Report,
        image_count: images,
        body: Digest::new([seed; 32]),
        study: Digest::new([seed.wrapping_add(1); 32]),
        pseudonyms: Pseudonyms::default(),
        accepted: now,
        expires: UnixMillis(now.0 + 3_600_000),
        traceparent: String::new(),
        model: "tiny".to_owned(),
        cost: cost(),
    });
    (key(seed), record)
}

/// A unit of a job.
pub fn unit(key: &JobKey, stage: Stage, class: Class, unit: u32) -> WorkUnit {
    WorkUnit {
        key: key.clone(),
        stage,
        pool: pool(),
        class,
        unit,
        epoch: 0,
        expires: UnixMillis(i64::MAX),
        cost: cost(),
    }
}

/// What the fixtures are expected to take: one frame, one second a stage.
const fn cost() -> Cost {
    Cost {
        preprocess_millis: 1_000,
        frames: 1,
        encode_millis_per_frame: 1_000,
        decode_millis_per_frame: 0,
        decode_millis: 1_000,
    }
}
