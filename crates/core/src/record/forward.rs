//! The part of a hospital's edge: a job that is handed on to the hub, and what comes back.
//!
//! It is handed on as it was accepted, with its files; or, where its images stay at the edge, once all of them are encoded.

use super::{Chunks, JobRecord, JobState, Refused, UnixMillis};
use crate::guard::Guard;
use crate::{Class, Digest, Failure, JobId};

/// The hub's job, and what the edge owes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Forwarded {
    /// The hub's job.
    pub job: JobId,
    /// When it was handed on.
    pub at: UnixMillis,
    /// Its tenant has cancelled it: the hub is to be told.
    pub is_cancel_wanted: bool,
    /// The hub has erased it.
    pub is_erased: bool,
}

/// How the hub's job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub outcome: Outcome,
    /// The attempt that its text belongs to.
    pub attempt: u32,
    pub chunks: Chunks,
}

/// The outcome of the hub's job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// There is a result, and it is stored here under this digest.
    Completed(Digest),
    /// It failed.
    Failed(Failure),
    /// It was cancelled.
    Cancelled,
    /// It was not finished in time.
    Expired,
}

impl JobRecord {
    /// Whether the hub still has what was erased here.
    pub fn owes_erasure(&self) -> bool {
        let forwarded = self.forwarded.as_ref();
        self.erased.is_some() && forwarded.is_some_and(|forwarded| !forwarded.is_erased)
    }

    /// Whether its images were encoded at the edge, so that the hub has their tokens alone.
    pub const fn is_encoded_here(&self) -> bool {
        self.frames.is_some()
    }

    /// Whether the edge may hand it on: as it was accepted, or with every image encoded and no text begun.
    pub fn is_ready_to_forward(&self) -> bool {
        match self.state {
            JobState::Accepted => true,
            JobState::Preprocessed | JobState::Encoding => self.is_ready_to_decode(),
            _ => false,
        }
    }

    pub(super) fn cancel(&mut self, now: UnixMillis) {
        match &mut self.forwarded {
            Some(forwarded) => forwarded.is_cancel_wanted = true,
            None => self.finish(JobState::Cancelled, now),
        }
    }

    /// The hub ends what it does itself: it may have a result that this side has not heard of yet.
    pub(super) fn expire(&mut self, now: UnixMillis) -> Result<(), Refused> {
        if Guard::ExpireHere.acts(self.state == JobState::Forwarded) {
            return Err(self.illegal("expire"));
        }
        self.finish(JobState::Expired, now);
        Ok(())
    }

    pub(super) fn forward(
        &mut self,
        job: &JobId,
        class: Class,
        now: UnixMillis,
    ) -> Result<(), Refused> {
        if self.forwarded.as_ref().is_some_and(|has| has.job == *job) {
            return Ok(());
        }
        if Guard::Forward.acts(!self.is_ready_to_forward()) {
            return Err(self.illegal("forward"));
        }
        self.state = JobState::Forwarded;
        self.class = class;
        self.forwarded = Some(Forwarded {
            job: job.clone(),
            at: now,
            is_cancel_wanted: false,
            is_erased: false,
        });
        Ok(())
    }

    pub(super) fn end(&mut self, ended: &Ended, now: UnixMillis) -> Result<(), Refused> {
        if Guard::EndAtHub.acts(self.state != JobState::Forwarded) {
            return Err(self.illegal("end as the hub did"));
        }
        self.attempt = self.attempt.max(ended.attempt);
        if !self.is_encoded_here() {
            self.chunks = ended.chunks;
        }
        let state = match &ended.outcome {
            Outcome::Completed(result) => {
                self.result = Some(*result);
                JobState::Completed
            }
            Outcome::Failed(failure) => {
                self.failure = Some(failure.clone());
                JobState::Failed
            }
            Outcome::Cancelled => JobState::Cancelled,
            Outcome::Expired => JobState::Expired,
        };
        self.finish(state, now);
        Ok(())
    }

    /// The hub keeps what it was sent until it is told to erase it.
    pub(super) fn found_at_hub(&self, job: &JobId, now: UnixMillis) -> Result<Self, Refused> {
        if Guard::FoundOfEnded.acts(!self.state.is_final()) {
            return Err(self.illegal("find at the hub"));
        }
        let mut next = self.clone();
        next.forwarded.get_or_insert_with(|| Forwarded {
            job: job.clone(),
            at: now,
            is_cancel_wanted: false,
            is_erased: false,
        });
        Ok(next)
    }

    pub(super) fn erased_at_hub(&self) -> Result<Self, Refused> {
        let mut next = self.clone();
        let is_kept = self.erased.is_none();
        match &mut next.forwarded {
            Some(forwarded) if !Guard::ErasedAtHub.acts(is_kept) => forwarded.is_erased = true,
            _ => return Err(self.illegal("erase at the hub")),
        }
        Ok(next)
    }
}
