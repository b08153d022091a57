//! What a worker service is given ready-made, and how its main makes it from the configuration.

use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use medfleet_core::{Digest, JobId, JobKey, PoolName, Stage, TenantId};
use medfleet_queue::{ConnectError, Queue, QueueConfig, QueueError, Replicas};
use medfleet_runtime::{
    Clock, Exit, Health, Metrics, OnFailure, OnShutdown, Part, Process, Stop, TaskKind, TaskSet,
};
use medfleet_store::{BackendConfig, BlobStore, FleetKey, OpenError, StoreConfig};
use tokio::task::spawn_blocking;

use crate::config::WorkerConfig;
use crate::metrics::{WorkerMetrics, register_connection, register_store};
use crate::slot::Worker;
use crate::watch;

/// How often the connection to the queue is looked at.
const CONNECTION_EVERY: Duration = Duration::from_millis(500);

const CONNECTION: TaskKind = TaskKind {
    name: "queue connection",
    on_failure: OnFailure::Shutdown,
    on_shutdown: OnShutdown::Abort,
};

const ERASURES: TaskKind = TaskKind {
    name: "erasure hints",
    on_failure: OnFailure::Shutdown,
    on_shutdown: OnShutdown::Abort,
};

/// What a worker service runs with. Several services of one process share it.
#[derive(Debug, Clone)]
pub struct Dependencies {
    pub queue: Queue,
    pub store: BlobStore,
    pub clock: Arc<dyn Clock>,
    /// Where tasks start; its shutdown ends the service.
    pub tasks: TaskSet,
    /// Where metrics are registered.
    pub metrics: Metrics,
    /// Where the service reports that it is ready.
    pub health: Health,
}

/// Something that a worker needs cannot be reached or opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    #[error("cannot connect to the queue")]
    Connect(#[from] ConnectError),
    #[error("cannot prepare the queue for pool {pool}")]
    Ensure { pool: PoolName, source: QueueError },
    #[error("cannot ask the queue whether it has jobs")]
    Jobs(#[source] QueueError),
    #[error("cannot open the blob store")]
    Store(#[from] OpenError),
}

impl Dependencies {
    /// Connects and opens what the configuration names.
    ///
    /// # Errors
    /// With the exit code that fits: 3 for a queue that does not answer, 2 for settings.
    pub async fn connect<C>(
        process: &Process<C>,
        queue: &QueueConfig,
        store: &StoreConfig,
    ) -> Result<Self, Stop> {
        let clock = Arc::clone(&process.clock);
        let now = {
            let clock = Arc::clone(&clock);
            Arc::new(move || clock.now())
        };
        let queue = Queue::connect(queue, now)
            .await
            .map_err(|error| Stop::new(exit(&error), ConnectionError::from(error)))?;
        // Where there are jobs, a store that was never used is the wrong one, or not mounted; only a folder can show it. The queue
        // is asked first: whoever accepted a job by then has left a trace in the folder.
        if matches!(store.backend, BackendConfig::Folder { .. }) {
            let has_jobs = queue.has_records().await;
            if has_jobs.map_err(|error| Stop::unreachable(ConnectionError::Jobs(error)))? {
                let store = store.clone();
                let used = spawn_blocking(move || store.check_used()).await?;
                used.map_err(|error| Stop::usage(ConnectionError::from(error)))?;
            }
        }
        let opened = match &store.backend {
            BackendConfig::Jetstream { bucket, replicas } => {
                let replicas = Replicas::try_from(*replicas).map_err(Stop::usage)?;
                store.open_over(Arc::new(queue.objects(bucket, replicas)))
            }
            // The disk may be slow, or away: the admin port answers meanwhile.
            BackendConfig::Folder { .. } => {
                let store = store.clone();
                spawn_blocking(move || store.open()).await?
            }
            BackendConfig::S3(_) => store.open(),
        };
        Ok(Self {
            store: opened.map_err(|error| Stop::usage(ConnectionError::from(error)))?,
            queue,
            clock,
            tasks: process.tasks.clone(),
            metrics: process.metrics.clone(),
            health: process.health.clone(),
        })
    }

    /// What the slots of a stage run with. Registers the metrics of every worker, makes sure that the pool's streams and
    /// consumers are there, and says from now on, as the part `queue` of the process's health, whether there is a connection; the
    /// limits of streams that are there stay ingest's.
    pub async fn worker(
        &self,
        stage: Stage,
        pool: PoolName,
        config: WorkerConfig,
    ) -> Result<Worker, ConnectionError> {
        let queue = self.queue.clone();
        register_connection(&self.metrics, move || queue.is_connected());
        let store = self.store.clone();
        register_store(&self.metrics, move || store.full_writes());
        let ensured = self.queue.ensure_there(std::slice::from_ref(&pool)).await;
        if let Err(source) = ensured {
            return Err(ConnectionError::Ensure { pool, source });
        }
        let connection = follow_connection(self.queue.clone(), self.health.part("queue"));
        self.tasks.start(CONNECTION, connection);
        Ok(Worker {
            config,
            pool,
            queue: self.queue.clone(),
            clock: Arc::clone(&self.clock),
            tasks: self.tasks.clone(),
            metrics: WorkerMetrics::register(&self.metrics, stage, config.slots.get()),
        })
    }

    /// Ends the process in order when the model that a service works with breaks: as soon as `ended` gives an error, `part` is
    /// dead and the shutdown begins. The task is called `name` in logs.
    pub fn follow_model<E>(
        &self,
        name: &'static str,
        part: Part,
        ended: impl Future<Output = Result<(), E>> + Send + 'static,
    ) where
        E: Error + Send + Sync + 'static,
    {
        let kind = TaskKind {
            name,
            on_failure: OnFailure::Shutdown,
            on_shutdown: OnShutdown::Abort,
        };
        self.tasks.start(
            kind,
            async move { ended.await.inspect_err(|_| part.dead()) },
        );
    }

    /// Calls `forget` with the tenant of every job that is erased, for as long as the process lives, so that the service drops
    /// what it holds of that tenant in memory. After a hint that is missed it stays until newer entries push it out.
    pub fn follow_erasures(&self, forget: impl Fn(&TenantId) + Send + 'static) {
        let hints = watch::follow_erasures(self.queue.clone(), forget);
        self.tasks.start(ERASURES, hints);
    }
}

/// How a process ends that could not connect.
fn exit(error: &ConnectError) -> Exit {
    match error {
        ConnectError::Config(_) | ConnectError::File { .. } => Exit::Usage,
        ConnectError::Unreachable { .. }
        | ConnectError::Unauthorised { .. }
        | ConnectError::TooOld { .. }
        | ConnectError::NoJetStream => Exit::Unreachable,
    }
}

/// A worker without its queue takes nothing, and nothing that it does is confirmed: it is not ready, and not dead either.
async fn follow_connection(queue: Queue, part: Part) -> Result<(), Infallible> {
    loop {
        match queue.is_connected() {
            true => part.ready(),
            false => part.unready(),
        }
        tokio::time::sleep(CONNECTION_EVERY).await;
    }
}

/// The key under which an encode worker stores the tokens manifest of a chunk for decode workers of earlier releases, and where a
/// decode worker looks where an encode worker of an earlier release has left nothing else: frames manifest, chunk and encoder, so
/// that tokens of another encoder are never found.
pub fn chunk_key(frames: &Digest, chunk: u32, encoder: &Digest) -> Vec<u8> {
    let mut key = Vec::with_capacity(68);
    key.extend_from_slice(frames.as_bytes());
    key.extend_from_slice(&chunk.to_le_bytes());
    key.extend_from_slice(encoder.as_bytes());
    key
}

/// The key under which an encode worker leaves the tokens manifest of a chunk for the job's decode worker, or for its hospital's
/// edge, which does not know the encoder. It names the job and its epoch: another job with the same frames, encoded on another
/// device or by another encoder, has another key. Its length differs from that of every [`chunk_key`].
pub fn handed_key((job, epoch): (&JobId, u32), frames: &Digest, chunk: u32) -> Vec<u8> {
    let mut key = handed_key_of_any_job(frames, chunk);
    key.extend_from_slice(&epoch.to_le_bytes());
    key.extend_from_slice(job.as_str().as_bytes());
    key
}

/// As [`handed_key`], as encoders of earlier releases name it: what the latest job with these frames has left.
pub fn handed_key_of_any_job(frames: &Digest, chunk: u32) -> Vec<u8> {
    let mut key = Vec::with_capacity(72);
    key.extend_from_slice(frames.as_bytes());
    key.extend_from_slice(&chunk.to_le_bytes());
    key
}

/// The key under which decode stores the text that its attempts at a job have written so far, and ingest looks for it; each epoch
/// of the job has its own.
pub fn text_key(job: &JobId, epoch: u32) -> Vec<u8> {
    format!("{job}.{epoch}").into_bytes()
}

/// The mark by which image tokens name the job that they were made for: a job recognises its own, and without the fleet's key
/// the mark says nothing.
pub fn made_for(key: &FleetKey, job: &JobKey) -> [u8; 16] {
    let parts = [job.tenant.as_str().as_bytes(), job.job.as_str().as_bytes()];
    // A change of meaning needs a new purpose.
    let hash = key.keyed_hash("tokens made for v1", &parts);
    let mut mark = [0; 16];
    mark.copy_from_slice(&hash.as_bytes()[..16]);
    mark
}

/// The bearer token by which services of one fleet know each other, derived from the fleet key.
pub fn internal_token(key: &FleetKey) -> String {
    // A change of meaning needs a new purpose.
    key.keyed_hash("internal token v1", &[]).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_read_is_a_wrong_setting_and_no_queue_that_is_away() {
        let file = ConnectError::File {
            what: "queue.tls.ca",
            path: "nowhere".into(),
            source: std::io::Error::other("gone"),
        };
        assert_eq!(exit(&file), Exit::Usage);
        assert_eq!(exit(&ConnectError::NoJetStream), Exit::Unreachable);
    }

    #[test]
    fn lists_of_different_jobs_epochs_and_encoders_have_names_of_their_own() {
        let frames = Digest::new([1; 32]);
        let [mine, other] = [1, 2].map(|byte| JobId::from_bytes([byte; 16]));
        let names = [
            handed_key((&mine, 0), &frames, 0),
            handed_key((&mine, 0), &frames, 1),
            handed_key((&mine, 1), &frames, 0),
            handed_key((&other, 0), &frames, 0),
            handed_key_of_any_job(&frames, 0),
            chunk_key(&frames, 0, &frames),
        ];
        for (index, name) in names.iter().enumerate() {
            assert!(!names[..index].contains(name), "{index}");
        }
    }

    #[test]
    fn a_mark_is_of_one_job_of_one_tenant_and_of_one_fleet() {
        let key = FleetKey::new([1; 32]);
        let job = |tenant: &str, byte| {
            JobKey::new(
                TenantId::new(tenant).expect("a good name"),
                JobId::from_bytes([byte; 16]),
            )
        };
        let mine = made_for(&key, &job("a", 1));
        assert_eq!(mine, made_for(&key, &job("a", 1)));
        for other in [
            made_for(&key, &job("a", 2)),
            made_for(&key, &job("b", 1)),
            made_for(&FleetKey::new([2; 32]), &job("a", 1)),
        ] {
            assert_ne!(mine, other);
        }
    }
}
