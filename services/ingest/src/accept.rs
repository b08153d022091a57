//! Accepts a job: everything durable before the answer, and each crash point healed by a repeat or by the sweep.
//!
//! Order: inputs and study manifest stored → pending entry → record created (the idempotency) → accepted event and audit →
//! intake message confirmed → pending entry removed → answer. Whoever finds the pending entry later finishes the rest.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{try_join, try_join_all};
use medfleet_core::{
    BlobKind, Chunks, Digest, JobId, JobKey, JobRecord, JobState, Move, Stage, Starts, TenantId,
    Times, UnixMillis, UploadId, WorkUnit,
};
use medfleet_proto::v1;
use medfleet_proto::work::v1::{AuditEntry, StudyInput, StudyManifest};
use medfleet_queue::{Created, Headers, Queue};
use medfleet_runtime::exit::chain;
use medfleet_runtime::{Clock, Random, telemetry};
use prost::Message;
use tokio::time::Instant;
use tracing::Span;

use crate::blobs::Blobs;
use crate::config::Config;
use crate::error::Refusal;
use crate::keys::{self, Keys, SentHalf};
use crate::metrics::Figures;
use crate::tokens::Caller;
use crate::validate::{self, Plan, Source};

/// Who acts in the audit stream when the sweep finishes an accept.
const SWEEP: &str = "medfleet";
/// The header that carries a trace.
const TRACEPARENT: &str = "traceparent";

const UPLOAD_GONE: Refusal = Refusal::NotFound {
    what: "upload, or it has expired",
};

/// What accepting needs.
#[derive(Debug, Clone)]
pub(crate) struct Acceptor {
    pub(crate) config: Arc<Config>,
    pub(crate) queue: Queue,
    pub(crate) blobs: Blobs,
    pub(crate) keys: Keys,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) figures: Figures,
}

/// What a job will rely on, stored, and the record that it will have.
#[derive(Debug)]
struct Stored {
    record: JobRecord,
    blobs: Vec<(BlobKind, Digest)>,
}

/// A job that is accepted.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) id: JobId,
    pub(crate) record: JobRecord,
    /// Whether the request id was known.
    pub(crate) already: bool,
}

impl Acceptor {
    /// Accepts a job, or finds the one that was accepted under the same request id.
    pub(crate) async fn accept(
        &self,
        caller: &Caller,
        mut request: v1::SubmitJobRequest,
    ) -> Result<Accepted, Refusal> {
        let request_id = request.request_id.clone();
        let plan = validate::plan(request.clone(), &self.config)?;
        request.request_id.clear();
        let sent = self.keys.sent(&caller.tenant, &request.encode_to_vec());
        let is_named = !request_id.is_empty();
        let job = match is_named {
            true => self.keys.job_id(&caller.tenant, &request_id),
            false => JobId::from_bytes(self.random.id()),
        };
        let key = JobKey {
            tenant: caller.tenant.clone(),
            job,
        };
        if is_named && let Some((record, _)) = self.queue.record(&key).await? {
            // The same bytes need no look at uploads, which may have expired since.
            if keys::is_same_request(&record.body, sent) {
                return self.finish(caller, key, record, true).await;
            }
        }
        let stored = self.store(&key, plan, sent).await?;
        let accepted = self.create(caller, key.clone(), stored).await;
        if accepted.is_err() && !is_named {
            self.withdraw(&key).await;
        }
        accepted
    }

    /// Makes inputs and study durable and says what the record will be.
    async fn store(&self, key: &JobKey, plan: Plan, sent: SentHalf) -> Result<Stored, Refusal> {
        let tenant = &key.tenant;
        let sources = plan.sources.iter().enumerate();
        let inputs =
            try_join_all(sources.map(|(index, source)| self.input(tenant, index, source))).await?;
        let most = self.config.limits.study_bytes_max;
        if inputs.iter().map(|input| input.size_bytes).sum::<u64>() > most.get() {
            return Err(Refusal::TooLarge {
                what: "the inputs of a job together",
                allowed: most.to_string(),
            });
        }
        let mut blobs = part_digests(&inputs)?;
        let image_count = u32::try_from(inputs.len()).unwrap_or(u32::MAX);
        let study = StudyManifest {
            inputs,
            task: Some(plan.task),
            decoding: Some(plan.decoding),
        };
        let study = Bytes::from(study.encode_to_vec());
        let ttl_millis = i64::try_from(plan.time_to_live.as_millis()).unwrap_or(i64::MAX);
        let ttl_bytes = ttl_millis.to_le_bytes();
        let meaning: [&[u8]; 4] = [
            &study,
            plan.class.as_str().as_bytes(),
            plan.model.as_bytes(),
            &ttl_bytes,
        ];
        let body = self.keys.body(sent, &meaning);
        let study = self.blobs.put(tenant, BlobKind::Study, study).await?;
        blobs.push((BlobKind::Study, study));
        let now = self.clock.now();
        let record = JobRecord {
            state: JobState::Accepted,
            epoch: 0,
            attempt: 0,
            starts: Starts::default(),
            chunks: Chunks::default(),
            pool: plan.pool,
            class: plan.class,
            task: plan.kind,
            image_count,
            body,
            study,
            frames: None,
            result: None,
            failure: None,
            times: Times {
                accepted: now,
                ..Times::default()
            },
            expires: UnixMillis(now.0.saturating_add(ttl_millis)),
            traceparent: traceparent(&telemetry::inject(&Span::current())),
            model: plan.model,
        };
        Ok(Stored { record, blobs })
    }

    async fn input(
        &self,
        tenant: &TenantId,
        index: usize,
        source: &Source,
    ) -> Result<StudyInput, Refusal> {
        match source {
            Source::Content(content) => {
                let digest = self
                    .blobs
                    .put(tenant, BlobKind::Input, content.clone())
                    .await?;
                let part_digests = vec![Bytes::copy_from_slice(digest.as_bytes())];
                Ok(StudyInput {
                    part_digests,
                    size_bytes: content.len() as u64,
                })
            }
            Source::Upload(id) => self.uploaded(tenant, index, id).await,
        }
    }

    /// A complete upload.
    async fn uploaded(
        &self,
        tenant: &TenantId,
        index: usize,
        id: &UploadId,
    ) -> Result<StudyInput, Refusal> {
        let (record, _) = match self.queue.upload(tenant, id).await? {
            Some(found) if found.0.expire_unix_millis > self.clock.now().0 => found,
            _ => return Err(UPLOAD_GONE),
        };
        if record.committed_bytes != record.total_bytes {
            let allowed = format!(
                "must name a complete upload; {} of {} bytes are stored",
                record.committed_bytes, record.total_bytes
            );
            return Err(Refusal::invalid(format!("inputs[{index}].upload"), allowed));
        }
        Ok(StudyInput {
            part_digests: record.part_digests,
            size_bytes: record.total_bytes,
        })
    }

    /// The study and its inputs stay for as long as the job does.
    async fn reference(&self, key: &JobKey, stored: &Stored) -> Result<(), Refusal> {
        let blobs = &stored.blobs;
        if self.blobs.reference(&key.tenant, &key.job, blobs).await? {
            Ok(())
        } else {
            // Only a part of an upload can be gone: everything else was stored by this call.
            Err(UPLOAD_GONE)
        }
    }

    /// Creates the record, or meets one that another call created under the same request id.
    async fn create(
        &self,
        caller: &Caller,
        key: JobKey,
        stored: Stored,
    ) -> Result<Accepted, Refusal> {
        let begun = Instant::now();
        let pending = async { Ok::<_, Refusal>(self.queue.put_pending(&key).await?) };
        try_join(self.reference(&key, &stored), pending).await?;
        let record = stored.record;
        let created = self.queue.create_record(&key, &record).await?;
        if begun.elapsed() > self.config.accept.pending_after.get() / 2 {
            // So late that the sweep may have dropped the entry of an accept it took for abandoned.
            self.queue.put_pending(&key).await?;
        }
        match created {
            Created::Created(_) => {
                self.figures.accepted.inc();
                self.finish(caller, key, record, false).await
            }
            Created::Exists(found, _) => {
                let is_same = keys::is_same_meaning(&found.body, &record.body);
                // The pending entry may also be the other call's, so its accept is finished before the entry goes.
                let accepted = self.finish(caller, key.clone(), found, true).await?;
                self.forget_pending(&key).await;
                if is_same {
                    Ok(accepted)
                } else {
                    Err(Refusal::OtherBody)
                }
            }
        }
    }

    /// What follows the record, each step safe to repeat. A job that has moved on needs none of it.
    async fn finish(
        &self,
        caller: &Caller,
        key: JobKey,
        record: JobRecord,
        already: bool,
    ) -> Result<Accepted, Refusal> {
        if record.state == JobState::Accepted {
            let audit = self.audit(&key, "submit", &caller.actor);
            try_join(audit, self.queue.publish_event(&key, &record)).await?;
            publish_intake(&self.queue, &key, &record).await?;
            self.forget_pending(&key).await;
        }
        Ok(Accepted {
            id: key.job,
            record,
            already,
        })
    }

    async fn forget_pending(&self, key: &JobKey) {
        if let Err(error) = self.queue.remove_pending(key).await {
            // The sweep removes it; until then it costs one look.
            tracing::warn!(error = chain(&error), "a pending accept stays listed");
        }
    }

    /// A job without a request id whose accept broke would run without anyone knowing it: cancel it if it is there.
    async fn withdraw(&self, key: &JobKey) {
        if let Err(error) = self.blobs.release(key).await {
            // Its blobs then stay until the job's record is erased.
            tracing::warn!(
                error = chain(&error),
                "an accept broke and its blobs stay referenced"
            );
        }
        let withdrawn = self
            .queue
            .apply(key, None, &Move::Cancel, self.clock.now())
            .await;
        if let Err(error) = withdrawn {
            let error = chain(&error);
            tracing::warn!(
                error,
                "an accept broke and could not be withdrawn; the job may run unseen"
            );
        }
    }
}

/// The parts of the inputs, as blobs.
fn part_digests(inputs: &[StudyInput]) -> Result<Vec<(BlobKind, Digest)>, Refusal> {
    let parts = inputs.iter().flat_map(|input| &input.part_digests);
    let digests =
        parts.map(|part| Digest::from_slice(part).map(|digest| (BlobKind::Input, digest)));
    digests
        .collect::<Result<_, _>>()
        .map_err(|_| Refusal::Broken {
            what: "an upload's record",
        })
}

/// The traceparent among headers; empty without telemetry.
fn traceparent(headers: &Headers) -> String {
    let found = headers.iter().find(|(name, _)| name == TRACEPARENT);
    found.map(|(_, value)| value.clone()).unwrap_or_default()
}

/// Puts the first unit of an accepted job into the intake. Safe to repeat.
pub(crate) async fn publish_intake(
    queue: &Queue,
    key: &JobKey,
    record: &JobRecord,
) -> Result<(), medfleet_queue::QueueError> {
    let unit = WorkUnit {
        key: key.clone(),
        stage: Stage::Preprocess,
        pool: record.pool.clone(),
        class: record.class,
        unit: 0,
        epoch: record.epoch,
        expires: record.expires,
    };
    let headers = match record.traceparent.as_str() {
        "" => Headers::new(),
        traceparent => vec![(TRACEPARENT.to_owned(), traceparent.to_owned())],
    };
    queue.publish_intake(&unit, &headers).await.map(drop)
}

/// Finishes accepts whose process died between record and intake message, for as long as the service runs.
pub(crate) async fn sweep(acceptor: Acceptor, shutdown: medfleet_runtime::Shutdown) {
    let (every, age) = (
        acceptor.config.accept.sweep_every.get(),
        acceptor.config.accept.pending_after.get(),
    );
    loop {
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = shutdown.begun() => return,
        }
        if let Err(error) = acceptor.sweep_once(age).await {
            tracing::warn!(
                error = chain(&error),
                "the sweep of accepts could not finish"
            );
        }
    }
}

impl Acceptor {
    /// Adds a line to the tenant's audit stream.
    pub(crate) async fn audit(
        &self,
        key: &JobKey,
        action: &'static str,
        actor: &str,
    ) -> Result<(), medfleet_queue::QueueError> {
        let entry = AuditEntry {
            time_unix_millis: self.clock.now().0,
            action: action.to_owned(),
            job: key.job.to_string(),
            actor: actor.to_owned(),
        };
        self.queue.audit(&key.tenant, &entry).await
    }

    /// One pass over the accepts that began longer than `age` ago.
    async fn sweep_once(&self, age: Duration) -> Result<(), medfleet_queue::QueueError> {
        for key in self.queue.list_pending(age).await? {
            if let Some((record, _)) = self.queue.record(&key).await?
                && record.state == JobState::Accepted
            {
                // Who asked is not known here any more; that it was accepted is.
                let audit = self.audit(&key, "submit", SWEEP);
                try_join(audit, self.queue.publish_event(&key, &record)).await?;
                publish_intake(&self.queue, &key, &record).await?;
                self.figures.swept.inc();
            }
            // Without a record nobody was told that the job exists.
            self.queue.remove_pending(&key).await?;
        }
        Ok(())
    }
}
