//! The state of a job and the one function that changes it.
//! Every service changes a record by [`JobRecord::apply`] and a compare-and-set; what this function refuses cannot happen.

use crate::guard::Guard;
use crate::{
    Class, Cost, Digest, Failure, JobId, PoolName, Pseudonyms, Stage, TaskKind, closed_set,
};

mod accepted;
mod forward;

pub use accepted::NewJob;
pub use forward::{Ended, Forwarded, Outcome};

/// Most encode chunks a job can have: one bit each in the record.
pub const CHUNKS_MAX: u32 = 32;

/// Unix time in milliseconds; passed in, never read from a clock here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UnixMillis(pub i64);

closed_set!(
    /// Where a job stands.
    pub enum JobState, "job state", {
        /// Durably accepted, waiting for its turn.
        Accepted = "accepted",
        /// A preprocess worker took it.
        Released = "released",
        /// Frames are ready.
        Preprocessed = "preprocessed",
        /// Chunks are being encoded, or all are.
        Encoding = "encoding",
        /// Text is being written.
        Decoding = "decoding",
        /// At a hospital's edge: handed on to the hub, which does it, or what of it the edge's own stages have not done.
        Forwarded = "forwarded",
        /// Final: there is a result.
        Completed = "completed",
        /// Final: with a reason.
        Failed = "failed",
        /// Final: by the tenant's wish.
        Cancelled = "cancelled",
        /// Final: not finished in time.
        Expired = "expired",
    }
);

impl JobState {
    /// Whether the state is final (only a replay, which begins a new epoch, can follow).
    pub const fn is_final(self) -> bool {
        matches!(
            self,
            Self::Completed | Self::Failed | Self::Cancelled | Self::Expired
        )
    }
}

/// The chunks of a job and which of them are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Chunks {
    /// Chunks in all, at most [`CHUNKS_MAX`].
    pub total: u32,
    /// Bit i is set when chunk i is encoded.
    pub done_bitmap: u32,
}

impl Chunks {
    pub const fn done(self) -> u32 {
        self.done_bitmap.count_ones()
    }

    /// Whether chunk `chunk` is encoded.
    pub const fn is_done(self, chunk: u32) -> bool {
        chunk < CHUNKS_MAX && self.done_bitmap & (1 << chunk) != 0
    }

    /// Whether every chunk is encoded; true for a job without images.
    pub const fn all_done(self) -> bool {
        self.done() == self.total
    }
}

/// Starts of units that were not handed back, per stage; encode counts all chunks together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Starts {
    pub preprocess: u32,
    /// Starts of encode, all chunks together.
    pub encode: u32,
    pub decode: u32,
}

impl Starts {
    fn of(&mut self, stage: Stage) -> &mut u32 {
        match stage {
            Stage::Preprocess => &mut self.preprocess,
            Stage::Encode => &mut self.encode,
            Stage::Decode => &mut self.decode,
        }
    }
}

/// When a job reached each of its steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Times {
    pub accepted: UnixMillis,
    /// Taken by preprocess for the first time.
    pub released: Option<UnixMillis>,
    /// Frames ready.
    pub preprocessed: Option<UnixMillis>,
    /// Last chunk encoded.
    pub encoded: Option<UnixMillis>,
    /// Latest decode attempt started.
    pub decoding: Option<UnixMillis>,
    /// Final state reached.
    pub finished: Option<UnixMillis>,
}

/// The state of a job. Stored as `medfleet.work.v1.JobRecord`, at most 1 KiB.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct JobRecord {
    /// Where it stands.
    pub state: JobState,
    /// Bumped when a job is replayed; work of an older epoch is dropped.
    pub epoch: u32,
    /// Decode attempts started: the fence of the text.
    pub attempt: u32,
    /// Starts that were not handed back.
    pub starts: Starts,
    pub chunks: Chunks,
    /// Whose workers serve it.
    pub pool: PoolName,
    /// The class it is served in.
    pub class: Class,
    /// The class that was asked for: above `class` when its tenant's budget of STAT jobs was used up.
    pub class_asked: Class,
    pub task: TaskKind,
    pub image_count: u32,
    /// Digest of the submitted body: another body under the same request id is refused.
    pub body: Digest,
    /// Study manifest.
    pub study: Digest,
    /// By which patient and studies it can be found, as its client said; an erased job's stay, so that it is found again.
    pub pseudonyms: Pseudonyms,
    /// Frames manifest, once preprocessed.
    pub frames: Option<Digest>,
    /// Result, once completed.
    pub result: Option<Digest>,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// When it reached each step.
    pub times: Times,
    /// When it becomes expired.
    pub expires: UnixMillis,
    /// W3C traceparent of the accept.
    pub traceparent: String,
    /// Model alias as asked for.
    pub model: String,
    /// When everything that was stored for it was erased: the record is then the tombstone.
    pub erased: Option<UnixMillis>,
    /// What it is expected to take.
    pub cost: Cost,
    /// At a hospital's edge: the hub's job, once it was handed on.
    pub forwarded: Option<Forwarded>,
}

/// A wish to change a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Move {
    /// A worker takes a unit of this stage; refused when it was started too often.
    Start {
        stage: Stage,
        /// Which of the stage's units, as [`crate::WorkUnit::unit`]. A chunk that is done is not started again.
        unit: u32,
        /// Starts allowed beyond one a unit.
        retries_max: u32,
    },
    /// A worker gives a unit back unfinished, by its own wish (drain): the start does not count.
    HandBack { stage: Stage },
    /// Frames are durable.
    Preprocessed {
        /// Frames manifest.
        frames: Digest,
        /// Chunks to encode, 0 for a job without images.
        chunks: u32,
        /// Frames in all chunks together: corrects what the job is expected to take.
        frame_count: u32,
    },
    /// The tokens of a chunk are durable.
    ChunkEncoded { chunk: u32 },
    /// The result is durable: the commit point of the job.
    Complete { attempt: u32, result: Digest },
    /// The job cannot be done.
    Fail(Failure),
    /// The tenant wants no more of it. A job that the hub does is ended by the hub: the wish is remembered until then.
    Cancel,
    /// Its time is over.
    Expire,
    /// Start over from the beginning in a new epoch, after a failure.
    Replay {
        /// New end of its time to live.
        expires: UnixMillis,
    },
    /// What was stored for an ended job is to be erased: the record names it no more, and nothing brings the job back.
    /// A job that the hub does ends by this.
    Erase,
    /// The hub has accepted the job.
    Forward {
        /// The hub's job.
        job: JobId,
        /// The class that the hub serves it in.
        class: Class,
    },
    /// The hub's job has ended, and what is left of it is durable here.
    End(Ended),
    /// The hub has erased its job too.
    ErasedAtHub,
    /// The hub turned out to have a job that has ended here, of which the record did not say so.
    FoundAtHub {
        /// The hub's job.
        job: JobId,
    },
}

/// Why a move is refused. The record is unchanged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the job is final: {state}")]
    Final { state: JobState },
    /// The move does not fit the state; the work was already done, or comes too early.
    #[error("{step} is not possible in state {state}")]
    Illegal { step: &'static str, state: JobState },
    #[error("attempt {yours} was replaced by attempt {current}")]
    Fenced { yours: u32, current: u32 },
    #[error("{stage} was started {starts} times without finishing; {allowed} are allowed")]
    Exhausted {
        stage: Stage,
        starts: u32,
        allowed: u32,
    },
    /// A chunk number or count outside the job's.
    #[error("chunk {chunk} is not one of {total}")]
    Chunk {
        chunk: u32,
        /// What the job, or the format, has.
        total: u32,
    },
    #[error("the job was erased")]
    Erased,
}

impl JobRecord {
    /// The record after `step`, or why it cannot be taken. Pure: the caller stores the result by compare-and-set.
    ///
    /// # Errors
    /// [`Refused`]; the caller decides whether that means drop, fail or stop.
    pub fn apply(&self, step: &Move, now: UnixMillis) -> Result<Self, Refused> {
        match step {
            Move::Replay { expires } => return self.replayed(*expires, now),
            Move::Erase => return self.erased(now),
            Move::ErasedAtHub => return self.erased_at_hub(),
            Move::FoundAtHub { job } => return self.found_at_hub(job, now),
            _ => {}
        }
        if Guard::Final.acts(self.state.is_final()) {
            return Err(Refused::Final { state: self.state });
        }
        let mut next = self.clone();
        match step {
            Move::Start {
                stage,
                unit,
                retries_max,
            } => next.start((*stage, *unit), *retries_max, now)?,
            Move::HandBack { stage } => {
                let starts = next.starts.of(*stage);
                *starts = starts.saturating_sub(1);
            }
            Move::Preprocessed {
                frames,
                chunks,
                frame_count,
            } => {
                next.preprocessed(*frames, *chunks, now)?;
                next.cost = next.cost.with_frames(*frame_count);
            }
            Move::ChunkEncoded { chunk } => next.chunk_encoded(*chunk, now)?,
            Move::Complete { attempt, result } => {
                if Guard::Fence.acts(self.state != JobState::Decoding) {
                    return Err(self.illegal("complete"));
                }
                if Guard::Fence.acts(*attempt != self.attempt) {
                    return Err(Refused::Fenced {
                        yours: *attempt,
                        current: self.attempt,
                    });
                }
                next.result = Some(*result);
                next.finish(JobState::Completed, now);
            }
            Move::Fail(failure) => {
                next.failure = Some(failure.clone());
                next.finish(JobState::Failed, now);
            }
            Move::Cancel => next.cancel(now),
            Move::Expire => next.expire(now)?,
            Move::Forward { job, class } => next.forward(job, *class, now)?,
            Move::End(ended) => next.end(ended, now)?,
            Move::Replay { .. } | Move::Erase | Move::ErasedAtHub | Move::FoundAtHub { .. } => {
                unreachable!("handled above")
            }
        }
        Ok(next)
    }

    /// Whether a decode may start: every declared image is encoded.
    pub(crate) fn is_ready_to_decode(&self) -> bool {
        match self.state {
            JobState::Preprocessed => self.chunks.total == 0,
            JobState::Encoding | JobState::Decoding => self.chunks.all_done(),
            _ => false,
        }
    }

    const fn illegal(&self, step: &'static str) -> Refused {
        Refused::Illegal {
            step,
            state: self.state,
        }
    }

    fn start(
        &mut self,
        (stage, unit): (Stage, u32),
        retries_max: u32,
        now: UnixMillis,
    ) -> Result<(), Refused> {
        let (guard, step, units, legal) = match stage {
            Stage::Preprocess => (
                Guard::PreprocessStart,
                "start preprocess",
                1,
                matches!(self.state, JobState::Accepted | JobState::Released),
            ),
            Stage::Encode => {
                let legal = matches!(self.state, JobState::Preprocessed | JobState::Encoding)
                    && !self.chunks.all_done();
                (Guard::EncodeStart, "start encode", self.chunks.total, legal)
            }
            Stage::Decode => (
                Guard::DecodeStart,
                "start decode",
                1,
                self.is_ready_to_decode(),
            ),
        };
        if guard.acts(!legal) {
            return Err(self.illegal(step));
        }
        // A chunk that is done already: starting it again would use up starts of the others. With every chunk done, no start is
        // legal anyway.
        let is_again =
            stage == Stage::Encode && self.chunks.is_done(unit) && !self.chunks.all_done();
        if Guard::ChunkOpen.acts(is_again) {
            return Err(self.illegal("start a chunk again"));
        }
        let allowed = units.saturating_add(retries_max);
        let starts = self.starts.of(stage);
        if Guard::Starts.acts(*starts >= allowed) {
            return Err(Refused::Exhausted {
                stage,
                starts: *starts,
                allowed,
            });
        }
        *starts += 1;
        match stage {
            Stage::Preprocess => {
                self.state = JobState::Released;
                self.times.released.get_or_insert(now);
            }
            Stage::Encode => self.state = JobState::Encoding,
            Stage::Decode => {
                self.state = JobState::Decoding;
                self.attempt += 1;
                self.times.decoding = Some(now);
            }
        }
        Ok(())
    }

    fn preprocessed(
        &mut self,
        frames: Digest,
        chunks: u32,
        now: UnixMillis,
    ) -> Result<(), Refused> {
        if Guard::FramesOnce.acts(self.state != JobState::Released) {
            return Err(self.illegal("finish preprocess"));
        }
        if Guard::ChunkCount.acts(chunks > CHUNKS_MAX) {
            return Err(Refused::Chunk {
                chunk: chunks,
                total: CHUNKS_MAX,
            });
        }
        self.state = JobState::Preprocessed;
        self.frames = Some(frames);
        self.chunks = Chunks {
            total: chunks,
            done_bitmap: 0,
        };
        self.times.preprocessed = Some(now);
        if chunks == 0 {
            self.times.encoded = Some(now);
        }
        Ok(())
    }

    fn chunk_encoded(&mut self, chunk: u32, now: UnixMillis) -> Result<(), Refused> {
        let early_enough = matches!(self.state, JobState::Preprocessed | JobState::Encoding);
        if Guard::ChunkBeforeDecode.acts(!early_enough) {
            return Err(self.illegal("finish a chunk"));
        }
        if Guard::ChunkNumber.acts(chunk >= self.chunks.total) {
            return Err(Refused::Chunk {
                chunk,
                total: self.chunks.total,
            });
        }
        self.state = JobState::Encoding;
        self.chunks.done_bitmap |= 1 << chunk;
        if self.chunks.all_done() {
            self.times.encoded.get_or_insert(now);
        }
        Ok(())
    }

    fn finish(&mut self, state: JobState, now: UnixMillis) {
        self.state = state;
        self.times.finished = Some(now);
    }

    fn erased(&self, now: UnixMillis) -> Result<Self, Refused> {
        let mut ended = self.clone();
        if self.state == JobState::Forwarded {
            // Whatever the hub still makes of it, nobody here wants to see it any more.
            ended.finish(JobState::Cancelled, now);
        }
        if Guard::EraseOfEnded.acts(!ended.state.is_final()) {
            return Err(self.illegal("erase"));
        }
        Ok(Self {
            frames: None,
            result: None,
            erased: self.erased.or(Some(now)),
            ..ended
        })
    }

    fn replayed(&self, expires: UnixMillis, now: UnixMillis) -> Result<Self, Refused> {
        if Guard::ReplayOfFailed.acts(self.state != JobState::Failed) {
            return Err(self.illegal("replay"));
        }
        if Guard::ReplayOfErased.acts(self.erased.is_some()) {
            return Err(Refused::Erased);
        }
        Ok(Self {
            state: JobState::Accepted,
            epoch: self.epoch + 1,
            // Attempts keep counting across epochs: watchers of the last epoch tell texts apart by their attempt.
            starts: Starts::default(),
            chunks: Chunks::default(),
            frames: None,
            result: None,
            failure: None,
            forwarded: None,
            times: Times {
                accepted: now,
                ..Times::default()
            },
            expires,
            ..self.clone()
        })
    }
}

#[cfg(test)]
pub(crate) mod tests;
