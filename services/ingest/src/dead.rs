//! Dead letters as a tenant sees them: its own, each with its reason; started over, or put away.

use medfleet_core::{Class, JobId, JobKey, JobRecord, JobState, Move, TenantId, UnixMillis};
use medfleet_proto::v1::{self, dead_letter_service_server::DeadLetterService};
use medfleet_proto::work::v1 as work;
use medfleet_queue::{Applied, QueueError};
use medfleet_store::StoreError;
use tokio::time::timeout;
use tonic::Request;

use crate::accept::Acceptor;
use crate::calls::{Calls, Reply, page_size};
use crate::convert::{self, LetterName};
use crate::error::Refusal;
use crate::metrics::Method;
use crate::tokens::Caller;

/// What the audit calls a replay.
const REPLAY: &str = "replay";

const GONE: Refusal = Refusal::NotFound {
    what: "dead letter",
};

#[derive(Debug)]
pub(crate) struct DeadLetters {
    pub(crate) calls: Calls,
    pub(crate) acceptor: Acceptor,
}

#[tonic::async_trait]
impl DeadLetterService for DeadLetters {
    async fn list_dead_letters(
        &self,
        request: Request<v1::ListDeadLettersRequest>,
    ) -> Reply<v1::ListDeadLettersResponse> {
        let list = async |caller: Caller, request| self.list(&caller.tenant, request).await;
        self.calls
            .answer(Method::ListDeadLetters, request, list)
            .await
    }

    async fn get_dead_letter(
        &self,
        request: Request<v1::GetDeadLetterRequest>,
    ) -> Reply<v1::GetDeadLetterResponse> {
        let get = async |caller: Caller, request: v1::GetDeadLetterRequest| {
            let name = convert::letter_name(&request.name)?;
            let (sequence, letter) = self.find(&caller.tenant, &name).await?;
            Ok(v1::GetDeadLetterResponse {
                dead_letter: Some(convert::dead_letter(sequence, &letter)),
            })
        };
        self.calls.answer(Method::GetDeadLetter, request, get).await
    }

    async fn replay_dead_letter(
        &self,
        request: Request<v1::ReplayDeadLetterRequest>,
    ) -> Reply<v1::ReplayDeadLetterResponse> {
        let replay = async |caller: Caller, request: v1::ReplayDeadLetterRequest| {
            let name = convert::letter_name(&request.name)?;
            let (id, record) = match self.find(&caller.tenant, &name).await {
                Ok((sequence, letter)) => {
                    let started_over = self.replay(&caller, &letter).await?;
                    let key = job_of(&caller.tenant, &letter)?;
                    self.discard(&key, sequence, &letter).await?;
                    started_over
                }
                Err(Refusal::NotFound { .. }) => self.replayed(&caller.tenant, name).await?,
                Err(refusal) => return Err(refusal),
            };
            Ok(v1::ReplayDeadLetterResponse {
                job: Some(convert::job(&id, &record)),
            })
        };
        self.calls
            .answer(Method::ReplayDeadLetter, request, replay)
            .await
    }

    async fn discard_dead_letter(
        &self,
        request: Request<v1::DiscardDeadLetterRequest>,
    ) -> Reply<v1::DiscardDeadLetterResponse> {
        let discard = async |caller: Caller, request: v1::DiscardDeadLetterRequest| {
            let name = convert::letter_name(&request.name)?;
            match self.find(&caller.tenant, &name).await {
                Ok((sequence, letter)) => {
                    let key = job_of(&caller.tenant, &letter)?;
                    let audit = self.acceptor.audit_act(&key, "discard", &caller);
                    audit.await?;
                    self.discard(&key, sequence, &letter).await?;
                }
                Err(Refusal::NotFound { .. }) => {}
                Err(refusal) => return Err(refusal),
            }
            Ok(v1::DiscardDeadLetterResponse {})
        };
        self.calls
            .answer(Method::DiscardDeadLetter, request, discard)
            .await
    }
}

impl DeadLetters {
    async fn list(
        &self,
        tenant: &TenantId,
        request: v1::ListDeadLettersRequest,
    ) -> Result<v1::ListDeadLettersResponse, Refusal> {
        let size = page_size(request.page_size)?;
        let after = match request.page_token.as_str() {
            "" => 0,
            token => token.parse().map_err(|_| {
                Refusal::invalid("page_token", "the next_page_token of the page before")
            })?,
        };
        let queue = &self.acceptor.queue;
        // One more than asked for tells whether there is another page.
        let mut found = queue.dead_letters(Some(tenant), after, size + 1).await?;
        let is_last = found.len() <= size;
        found.truncate(size);
        let next_page_token = match found.last() {
            Some((sequence, _)) if !is_last => sequence.to_string(),
            _ => String::new(),
        };
        let letters = found
            .iter()
            .map(|(sequence, letter)| convert::dead_letter(*sequence, letter));
        Ok(v1::ListDeadLettersResponse {
            dead_letters: letters.collect(),
            next_page_token,
        })
    }

    /// The tenant's letter of this name; another's is as if it did not exist.
    async fn find(
        &self,
        tenant: &TenantId,
        name: &LetterName,
    ) -> Result<(u64, work::DeadLetter), Refusal> {
        let queue = &self.acceptor.queue;
        let found = match name {
            LetterName::Of(job, epoch) => {
                let key = JobKey::new(tenant.clone(), job.clone());
                queue.dead_letter_of(&key, *epoch).await?
            }
            LetterName::Place(sequence) => {
                let letter = queue.dead_letter(*sequence).await?;
                letter.map(|letter| (*sequence, letter))
            }
        };
        found
            .filter(|(_, letter)| {
                let unit = letter.unit.as_ref();
                unit.is_some_and(|unit| unit.tenant == tenant.as_str())
            })
            .ok_or(GONE)
    }

    /// Puts a letter of the job away.
    async fn discard(
        &self,
        key: &JobKey,
        sequence: u64,
        letter: &work::DeadLetter,
    ) -> Result<(), QueueError> {
        let queue = &self.acceptor.queue;
        queue.discard_dead(key, epoch_of(letter), sequence).await
    }

    /// The job of a letter that is gone, if it has been started over since: who did so may have lost the answer, and asks again.
    /// That of a letter that was put away stays as it is.
    async fn replayed(
        &self,
        tenant: &TenantId,
        name: LetterName,
    ) -> Result<(JobId, JobRecord), Refusal> {
        let LetterName::Of(job, epoch) = name else {
            return Err(GONE);
        };
        let key = JobKey::new(tenant.clone(), job);
        self.started_over(key, epoch).await?.ok_or(GONE)
    }

    /// The job, if it is in a later epoch.
    async fn started_over(
        &self,
        key: JobKey,
        epoch: u32,
    ) -> Result<Option<(JobId, JobRecord)>, Refusal> {
        let found = self.acceptor.queue.record(&key).await?;
        let later = found.filter(|(record, _)| record.epoch > epoch);
        Ok(later.map(|(record, _)| (key.job, record)))
    }

    /// Starts the letter's job over, in an epoch of its own. The pending entry comes first: whatever breaks after the record
    /// has changed, the sweep finishes. So where there is no room, a repeat only says what was done.
    async fn replay(
        &self,
        caller: &Caller,
        letter: &work::DeadLetter,
    ) -> Result<(JobId, JobRecord), Refusal> {
        let key = job_of(&caller.tenant, letter)?;
        let epoch = epoch_of(letter);
        let Acceptor { queue, clock, .. } = &self.acceptor;
        let now = clock.now();
        if let Err(full) = self.acceptor.room.check(now, class_of(letter)) {
            let done = self.started_over(key, epoch).await?;
            return done.ok_or(Refusal::Queue(full));
        }
        let time_to_live = self.acceptor.config.limits.time_to_live_default.get();
        let millis = i64::try_from(time_to_live.as_millis()).unwrap_or(i64::MAX);
        let expires = UnixMillis(now.0.saturating_add(millis));
        let losses = queue.losses();
        let noted = queue.put_pending(&key).await?;
        let step = Move::Replay { expires };
        // Of the letter's own epoch: an old letter does not start a job over that has failed anew since.
        // In time, or not at all: the sweep takes an entry that is old and whose job has not started over for abandoned.
        let in_time = self.acceptor.config.accept.pending_after.get() / 2;
        let applied = timeout(in_time, queue.apply(&key, Some(epoch), &step, now)).await;
        let applied = applied.map_err(|_| QueueError::unavailable("start a job over"))?;
        match applied? {
            Applied::Applied { record, .. } => {
                self.acceptor
                    .announce(&key, &record, REPLAY, &caller.actor)
                    .await?;
                self.acceptor.forget_pending(noted, losses);
                Ok((key.job, record))
            }
            Applied::Refused { record, .. } | Applied::OtherEpoch { record } => {
                if record.epoch > epoch {
                    // Somebody was faster, or this is the repeat of a call that broke; whoever it was may have come no further
                    // than the record.
                    if record.state == JobState::Accepted {
                        self.acceptor
                            .announce(&key, &record, REPLAY, &caller.actor)
                            .await?;
                    }
                    self.acceptor.forget_pending(noted, losses);
                    return Ok((key.job, record));
                }
                self.acceptor.forget_pending(noted, losses);
                Err(not_started_over(&record))
            }
            Applied::Missing => {
                self.acceptor.forget_pending(noted, losses);
                Err(Refusal::NotFound {
                    what: "job any more: its record has expired",
                })
            }
        }
    }
}

/// Why a job is not started over. The letter of one that was erased is there for a moment, and for as long as its erasure is
/// broken.
fn not_started_over(record: &JobRecord) -> Refusal {
    match record.erased {
        Some(_) => Refusal::Store(StoreError::JobErased),
        None => Refusal::WrongState {
            state: record.state,
            wanted: "only a failed one is started over",
        },
    }
}

fn epoch_of(letter: &work::DeadLetter) -> u32 {
    letter.unit.as_ref().map_or(0, |unit| unit.epoch)
}

/// The class in which the job is served; of a letter that does not say one that no room is kept for.
fn class_of(letter: &work::DeadLetter) -> Class {
    let class = letter.unit.as_ref().map(|unit| unit.class.parse::<Class>());
    class.and_then(Result::ok).unwrap_or(Class::Routine)
}

fn job_of(tenant: &TenantId, letter: &work::DeadLetter) -> Result<JobKey, Refusal> {
    let id = letter.unit.as_ref().map_or("", |unit| unit.job.as_str());
    let job = JobId::new(id).map_err(|_| Refusal::Broken {
        what: "a dead letter",
    })?;
    Ok(JobKey::new(tenant.clone(), job))
}

#[cfg(test)]
mod tests;
