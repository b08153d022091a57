//! Accepts a job: everything is durable before the answer, and after a crash at any point a repeat of the call or the sweep
//! finishes the accept.
//!
//! Order: inputs, study manifest, references, pending entry and audit → record created (the idempotency) → intake message and
//! accepted event → answer; then another accept may overwrite the pending entry (`pad`). The sweep finds entries of accepts that
//! broke off. Nothing is done of a job that has no line in the audit.
//!
//! A job that has events but no record has lost it, and begins in a new epoch, as a replayed one does.

mod beyond;

use std::convert::Infallible;
use std::sync::Arc;

use futures::future::{join, join3, try_join};
use medfleet_core::{
    Class, JobId, JobKey, JobRecord, JobState, Move, TenantId, WorkUnit, chain, protocol,
};
use medfleet_proto::v1;
use medfleet_proto::work::v1::AuditEntry;
use medfleet_queue::{Applied, Created, Headers, Published, Queue, QueueError, Revision};
use medfleet_runtime::{Clock, OnFailure, OnShutdown, Random, TaskKind, TaskSet};
use medfleet_store::StoreError;
use prost::Message;
use tokio::time::Instant;

use crate::blobs::Blobs;
use crate::config::Config;
use crate::error::Refusal;
use crate::keys::{self, Keys};
use crate::metrics::Figures;
use crate::open::OpenJobs;
use crate::pad::{Noted, Pad};
use crate::quota::Quotas;
use crate::room::Room;
use crate::stored::Held;
use crate::study::Study;
use crate::tokens::Caller;
use crate::validate::{self, Plan};

/// The header that carries a trace.
pub(crate) const TRACEPARENT: &str = "traceparent";

/// An upload that is not there, or not any more.
pub(crate) const UPLOAD_GONE: Refusal = Refusal::NotFound {
    what: "upload, or it has expired; send the file again",
};

/// What the audit calls an accept.
pub(crate) const SUBMIT: &str = "submit";

const FORGET: TaskKind = TaskKind {
    name: "pending replay removal",
    on_failure: OnFailure::Log,
    on_shutdown: OnShutdown::Wait,
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
    pub(crate) tasks: TaskSet,
    pub(crate) figures: Figures,
    pub(crate) quotas: Quotas,
    pub(crate) open: OpenJobs,
    pub(crate) pad: Pad,
    pub(crate) room: Room,
}

/// A job that is accepted.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) id: JobId,
    pub(crate) record: JobRecord,
    /// Whether the request id was known.
    pub(crate) already: bool,
}

/// What a request brings along.
#[derive(Debug, Clone, Copy)]
struct Brought {
    /// Bytes of the files inside it.
    inline: u64,
    /// Whether it has files, and all of them were uploaded before.
    is_uploaded: bool,
}

/// How a new job was let in.
#[derive(Debug)]
struct LetIn {
    /// Room for what it brings.
    held: Held,
    /// Why it is refused, unless one of its uploads is good for it (`beyond`).
    beyond: Option<Refusal>,
    /// Whether its caller can name it, should the answer be lost.
    is_named: bool,
}

impl Acceptor {
    /// Accepts a job, or finds the one that was accepted under the same request id.
    pub(crate) async fn accept(
        &self,
        caller: &Caller,
        mut request: v1::SubmitJobRequest,
    ) -> Result<Accepted, Refusal> {
        let plan = self.plan(&caller.tenant, request.clone());
        let request_id = std::mem::take(&mut request.request_id);
        let sent = self.keys.sent(&caller.tenant, &request.encode_to_vec());
        let brought = Brought::of(&request);
        // What no plan has of it may be large, and is not held while others are asked.
        drop(request);
        if request_id.is_empty() {
            let job = JobId::from_bytes(self.random.id());
            let key = JobKey::new(caller.tenant.clone(), job);
            let plan = plan?;
            let let_in = LetIn {
                is_named: false,
                ..self.count(&key.tenant, brought, plan.class)?
            };
            let study = self.study(&key.tenant, plan, sent).await?;
            return self.create_within_budget(caller, key, study, let_in).await;
        }
        let job = self.keys.job_id(&caller.tenant, &request_id);
        let key = JobKey::new(caller.tenant.clone(), job);
        // Asked together, as nearly always there is neither. A record that another call stores meanwhile is found by the create.
        let (known, may_be_told) = (self.queue.rare_record(&key), self.queue.may_be_told(&key));
        let (known, may_be_told) = join(known, may_be_told).await;
        match known?.map(|(record, _)| record) {
            None => {
                let plan = plan?;
                let let_in = self.count(&key.tenant, brought, plan.class)?;
                let study = self.study(&key.tenant, plan, sent);
                let epoch = self.first_epoch(&key, may_be_told);
                let (mut study, (epoch, attempt)) = try_join(study, epoch).await?;
                (study.record.epoch, study.record.attempt) = (epoch, attempt);
                self.create_within_budget(caller, key, study, let_in).await
            }
            // The same bytes as before: neither its uploads, which may have expired since, nor this fleet's settings matter any
            // more.
            Some(known) if keys::is_same_request(&known.body, sent) => {
                self.finish(caller, key, known, None).await
            }
            Some(known) => {
                let study = self.study(&key.tenant, plan?, sent).await?;
                if keys::is_same_meaning(&known.body, &study.record.body) {
                    self.finish(caller, key, known, None).await
                } else {
                    Err(Refusal::OtherBody)
                }
            }
        }
    }

    /// What a request asks for, if this fleet does it.
    fn plan(&self, tenant: &TenantId, request: v1::SubmitJobRequest) -> Result<Plan, Refusal> {
        let plan = validate::plan(request, &self.config)?;
        if let Some(edge) = &self.config.edge {
            validate::can_travel(&plan, edge.travels(tenant))?;
        }
        Ok(plan)
    }

    /// The epoch in which a job without a record begins, and the attempt that it counts on from. Where the record was lost, units,
    /// events and the memory of replicas may still name the job's last epoch and attempt; with the next epoch and higher attempts
    /// nothing of the new job is taken for a part of the old one. `may_be_told`: whether there may be events of the job; without
    /// any nothing has to be read.
    async fn first_epoch(&self, key: &JobKey, may_be_told: bool) -> Result<(u32, u32), Refusal> {
        if !may_be_told {
            return Ok((0, 0));
        }
        let last = self.queue.last_epoch(key).await?;
        Ok(last.map_or((0, 0), |(epoch, attempt)| {
            (epoch.saturating_add(1), attempt)
        }))
    }

    /// Counts a new job towards its tenant's quotas, unless the queue had no room for one just now. Takes room for the files inside
    /// its request. Uploaded files took their room when their uploads began, so a job of these alone is not refused right away for
    /// what the tenant has stored by now.
    fn count(&self, tenant: &TenantId, brought: Brought, asked: Class) -> Result<LetIn, Refusal> {
        let Brought {
            inline,
            is_uploaded,
        } = brought;
        // The budget is counted once the job is known to be whole, so that one that comes at once with others may be urgent then.
        let class = self.quotas.class_now(tenant, asked);
        self.room.check(self.clock.now(), class)?;
        let is_bounded = class != Class::Stat || self.quotas.bound_stat(tenant);
        if !is_bounded && !self.open.has_few(tenant) {
            self.room.check_unbounded()?;
        }
        self.quotas
            .one_more(tenant, self.open.count(tenant), class)?;
        let (held, beyond) = match self.quotas.hold(tenant, inline) {
            Err(full @ Refusal::Stored { .. }) if is_uploaded => {
                (self.quotas.hold_nothing(tenant), Some(full))
            }
            held => (held?, None),
        };
        self.quotas.job(tenant, inline, class)?;
        Ok(LetIn {
            held,
            beyond,
            is_named: true,
        })
    }

    /// As [`Acceptor::create`], within the tenant's budget of STAT jobs. One of which nothing came is given back: who comes again and
    /// again while the fleet has no room would find the budget spent when it has.
    async fn create_within_budget(
        &self,
        caller: &Caller,
        key: JobKey,
        study: Study,
        let_in: LetIn,
    ) -> Result<Accepted, Refusal> {
        let asked = study.record.class;
        let study = self.within_budget(&key.tenant, study);
        let (is_stat, is_named) = (study.record.class == Class::Stat, let_in.is_named);
        let is_demoted = asked == Class::Stat && !is_stat;
        let created = match self.create(caller, key.clone(), study, let_in).await {
            Err(refusal) if !is_named => Err(self.withdrawn(&key, refusal).await),
            created => created,
        };
        let has_come = match &created {
            Ok(accepted) => !accepted.already,
            Err(Refusal::Unfinished { .. }) => true,
            Err(_) => false,
        };
        if is_stat && !has_come {
            self.quotas.stat_unspent(&key.tenant);
        }
        if is_demoted && has_come {
            self.figures.stat_demoted.inc();
        }
        created
    }

    /// Makes a STAT job beyond its tenant's budget an urgent one. The meaning of its request, by which repeats are recognised,
    /// stays.
    fn within_budget(&self, tenant: &TenantId, mut study: Study) -> Study {
        let record = &mut study.record;
        if record.class == Class::Stat && !self.quotas.stat(tenant) {
            record.class = Class::Urgent;
        }
        study
    }

    /// Stores everything and creates the record, or meets one that another call has just created.
    async fn create(
        &self,
        caller: &Caller,
        key: JobKey,
        study: Study,
        let_in: LetIn,
    ) -> Result<Accepted, Refusal> {
        let Study {
            record,
            contents,
            parts,
            uploads,
        } = study;
        let LetIn {
            mut held, beyond, ..
        } = let_in;
        if let Some(full) = beyond {
            self.let_in_beyond(&key, &uploads, full).await?;
        }
        let begun = Instant::now();
        let audited = self.audit(&key, SUBMIT, &caller.actor);
        let kept = async {
            // Only parts of uploads can be missing: everything else is stored by this call.
            match self.blobs.keep(&key, contents, &parts).await? {
                true => Ok(()),
                false => Err(UPLOAD_GONE),
            }
        };
        held.begin_all();
        let (kept, noted, audited) = join3(kept, self.pad.note(&key), audited).await;
        // Counted as stored also after a failure, as a part of it may be there.
        drop(held);
        if let Err(refusal) = kept.and(audited.map_err(|source| self.refused(source))) {
            if let Ok(noted) = noted {
                // There is nothing for the sweep to finish.
                self.pad.done(noted);
            }
            return Err(refusal);
        }
        let mut noted = noted.map_err(|source| self.refused(source))?;
        let created = self.queue.create_record(&key, &record).await;
        let created = created.map_err(|source| self.refused(source))?;
        if begun.elapsed() > self.config.accept.pending_after.get() / 2 {
            // It took so long that the sweep may have taken the accept for abandoned and removed its entry.
            let again = self.pad.note_again(&mut noted, &key).await;
            again.map_err(|source| self.unfinished(&key, source))?;
        }
        match created {
            Created::Created(_) => {
                self.figures.accepted.inc();
                if record.epoch > 0 {
                    tracing::warn!(
                        job = %key.job,
                        epoch = record.epoch,
                        "a job whose record was lost, or is past its retention, begins anew"
                    );
                }
                let accepted = self.finish(caller, key, record, Some(noted)).await?;
                Ok(Accepted {
                    already: false,
                    ..accepted
                })
            }
            Created::Exists(found, _) => {
                let is_same = keys::is_same_meaning(&found.body, &record.body);
                // The other call may still fail, so this one answers only after it has finished the accept itself.
                let accepted = self.finish(caller, key, found, Some(noted)).await?;
                if is_same {
                    Ok(accepted)
                } else {
                    Err(Refusal::OtherBody)
                }
            }
        }
    }

    /// What follows the record, each step safe to repeat. A job that has moved on needs none of it. A job that was erased is
    /// refused, as its caller would wait for it in vain.
    async fn finish(
        &self,
        caller: &Caller,
        key: JobKey,
        record: JobRecord,
        noted: Option<Noted>,
    ) -> Result<Accepted, Refusal> {
        if record.state == JobState::Accepted {
            if noted.is_none() {
                // Refused before the audit gets a line, where the queue would refuse it again.
                let room = self.room_again(&key, &record).await;
                let job = key.job.clone();
                room.map_err(|source| Refusal::Unfinished { job, source })?;
            }
            let announced = match &noted {
                // This call has written its line of the audit already.
                Some(_) => self.go_on(&key, &record).await,
                None => self.announce(&key, &record, SUBMIT, &caller.actor).await,
            };
            announced.map_err(|source| self.unfinished(&key, source))?;
        }
        if let Some(noted) = noted {
            self.pad.done(noted);
        }
        if record.erased.is_some() {
            return Err(Refusal::Store(StoreError::JobErased));
        }
        Ok(Accepted {
            id: key.job,
            record,
            already: true,
        })
    }

    /// Whether there may be room for what follows a record that was there before. One that does not wait in the intake yet must not
    /// take the place that is kept there for a STAT job.
    async fn room_again(&self, key: &JobKey, record: &JobRecord) -> Result<(), QueueError> {
        self.room.check_again(self.clock.now())?;
        let Err(full) = self.room.check_intake(record.class) else {
            return Ok(());
        };
        match protocol::first(key, record) {
            Some(unit) if !self.queue.is_queued(&unit).await? => Err(full),
            _ => Ok(()),
        }
    }

    /// Why the submit of a job without a record is refused. A full stream is remembered, so that submits right after are refused
    /// before anything of theirs is stored, including a line in the audit.
    fn refused(&self, source: QueueError) -> Refusal {
        self.room.note(&source, self.clock.now());
        Refusal::Queue(source)
    }

    /// Why the submit of a job that has a record is refused: the job may still run.
    fn unfinished(&self, key: &JobKey, source: QueueError) -> Refusal {
        self.room.note(&source, self.clock.now());
        let job = key.job.clone();
        Refusal::Unfinished { job, source }
    }

    /// Writes a line of the audit (action and actor), and then sends what makes an accepted job go on.
    pub(crate) async fn announce(
        &self,
        key: &JobKey,
        record: &JobRecord,
        action: &'static str,
        actor: &str,
    ) -> Result<(), QueueError> {
        self.audit(key, action, actor).await?;
        self.go_on(key, record).await
    }

    /// Sends what makes an accepted job go on. The event is sent before the intake message, so that no later event of the job can
    /// be stored ahead of it.
    pub(crate) async fn go_on(&self, key: &JobKey, record: &JobRecord) -> Result<(), QueueError> {
        let event = self.queue.publish_event(key, record);
        try_join(event, self.publish_intake(key, record)).await?;
        Ok(())
    }

    /// Removes the pending entry of a replay, in a task of its own: the caller need not wait for it. `losses`: of the connection before
    /// it was written.
    pub(crate) fn forget_pending(&self, noted: Revision, losses: u64) {
        let queue = self.queue.clone();
        self.tasks.start(FORGET, async move {
            if let Err(error) = queue.remove_pending(noted, losses).await {
                // The sweep removes it, and until then looks at it once more than needed.
                tracing::debug!(error = chain(&error), "a pending replay stays listed");
            }
            Ok::<_, Infallible>(())
        });
    }

    /// Cancels a job without a request id whose accept failed, as it would run without anyone knowing its name. Gives the caller's
    /// answer, which names the job where it may still run.
    async fn withdrawn(&self, key: &JobKey, refusal: Refusal) -> Refusal {
        let cancelled = self
            .queue
            .apply(key, None, &Move::Cancel, self.clock.now())
            .await;
        let is_gone = match cancelled {
            Ok(Applied::Applied { .. } | Applied::Missing) => true,
            Ok(Applied::Refused { .. } | Applied::OtherEpoch { .. }) => false,
            Err(error) => {
                tracing::warn!(
                    error = chain(&error),
                    job = %key.job,
                    "an accept broke and was not withdrawn; the job may run"
                );
                false
            }
        };
        if is_gone && let Err(error) = self.blobs.release(key).await {
            // They stay until the job is erased.
            tracing::warn!(
                error = chain(&error),
                job = %key.job,
                "blobs of a withdrawn accept stay referenced"
            );
        }
        match refusal {
            Refusal::Unfinished { source, .. } if is_gone => Refusal::Queue(source),
            refusal => refusal,
        }
    }

    /// Puts the first unit of an accepted job into the intake. Safe to repeat; does nothing for a job that has moved on.
    pub(crate) async fn publish_intake(
        &self,
        key: &JobKey,
        record: &JobRecord,
    ) -> Result<(), QueueError> {
        let Some(unit) = protocol::first(key, record) else {
            return Ok(());
        };
        let headers = trace_of(record);
        self.queue.publish_intake(&unit, &headers).await.map(drop)
    }

    /// Queues the units that an open job waits for, by its record alone. Gives how many of them were not queued already.
    pub(crate) async fn requeue(
        &self,
        key: &JobKey,
        record: &JobRecord,
    ) -> Result<u32, QueueError> {
        let mut queued = 0;
        for unit in protocol::outstanding(key, record) {
            queued += u32::from(self.requeue_unit(&unit, record).await?);
        }
        Ok(queued)
    }

    /// Queues a unit that a job waits for. True if it was not queued already.
    pub(crate) async fn requeue_unit(
        &self,
        unit: &WorkUnit,
        record: &JobRecord,
    ) -> Result<bool, QueueError> {
        let published = self.queue.publish_intake(unit, &trace_of(record)).await?;
        Ok(published == Published::Stored)
    }

    /// Adds a line about a read to the tenant's audit stream, if more than the stream's reserve is left.
    pub(crate) async fn audit_read(
        &self,
        key: &JobKey,
        action: &'static str,
        actor: &str,
    ) -> Result<(), QueueError> {
        self.room.check_audit()?;
        self.audit(key, action, actor).await
    }

    /// Adds a line about a change of a job other than its erasure. Half of the reserve is kept from clients, so that no tenant can
    /// block erasures and operators.
    pub(crate) async fn audit_act(
        &self,
        key: &JobKey,
        action: &'static str,
        caller: &Caller,
    ) -> Result<(), QueueError> {
        if !caller.is_operator {
            self.room.check_act()?;
        }
        self.audit(key, action, &caller.actor).await
    }

    /// Adds a line to the tenant's audit stream.
    pub(crate) async fn audit(
        &self,
        key: &JobKey,
        action: &'static str,
        actor: &str,
    ) -> Result<(), QueueError> {
        let entry = AuditEntry {
            time_unix_millis: self.clock.now().0,
            action: action.to_owned(),
            job: key.job.to_string(),
            actor: actor.to_owned(),
            ..AuditEntry::default()
        };
        self.queue.audit(&key.tenant, &entry).await
    }
}

impl Brought {
    fn of(request: &v1::SubmitJobRequest) -> Self {
        let inputs = &request.inputs;
        let inline = inputs.iter().map(|input| match &input.source {
            Some(v1::input::Source::Content(content)) => content.len() as u64,
            _ => 0,
        });
        let is_uploaded =
            |input: &v1::Input| matches!(input.source, Some(v1::input::Source::Upload(_)));
        Self {
            inline: inline.sum(),
            is_uploaded: !inputs.is_empty() && inputs.iter().all(is_uploaded),
        }
    }
}

/// The trace that a job is part of.
pub(crate) fn trace_of(record: &JobRecord) -> Headers {
    match record.traceparent.as_str() {
        "" => Headers::new(),
        traceparent => vec![(TRACEPARENT.to_owned(), traceparent.to_owned())],
    }
}

#[cfg(test)]
pub(crate) mod sample;
#[cfg(test)]
mod tests;
