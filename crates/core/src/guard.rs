//! What the protocol refuses, and what it repeats, by name. Each is needed: the model check takes them away one at a
//! time and must find a run that goes wrong, and so does a walk through all moves with those that the model does not meet. Outside this crate's own tests a guard cannot be taken away.

macro_rules! guards {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// One condition on which the protocol rests.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Guard { $($(#[$doc])* $name),+ }

        #[cfg(test)]
        impl Guard {
            /// Every guard.
            pub(crate) const ALL: &'static [Self] = &[$(Self::$name),+];
        }
    };
}

guards! {
    /// A final record stays as it is.
    Final,
    /// A preprocess starts only before there are frames.
    PreprocessStart,
    /// A chunk is encoded only while chunks are open.
    EncodeStart,
    /// A chunk that is done is not started again.
    ChunkOpen,
    /// A decode starts when every declared image is encoded.
    DecodeStart,
    /// A unit that keeps failing is given up on.
    Starts,
    /// A job is completed only by its latest attempt.
    Fence,
    /// Frames are recorded once.
    FramesOnce,
    /// A job has as many chunks as the record can tell apart.
    ChunkCount,
    /// A chunk that is done is one of the job's.
    ChunkNumber,
    /// A chunk is done before the decode begins, or not at all.
    ChunkBeforeDecode,
    /// A job is handed on to the hub as it was accepted, or with every image encoded.
    Forward,
    /// Only a failed job starts over.
    ReplayOfFailed,
    /// A move is of the record's epoch.
    EpochOfMove,
    /// A worker that gives up has work of the record's epoch.
    EpochOfChange,
    /// A worker that gives up is the latest attempt.
    AttemptOfChange,
    /// A job does not fail for a unit that somebody else has finished.
    DoneIsNoFailure,
    /// Work of another epoch or attempt stops when it is noticed.
    StopOther,
    /// Work on a job that has ended stops when it is noticed.
    StopOver,
    /// Work that somebody else has finished stops when it is noticed.
    StopDone,
    /// Work on a job whose time is over stops when it is noticed.
    StopExpired,
    /// Who finds its unit done queues what follows.
    RepeatWhatFollows,
    /// The dead letter of a failed job is written again when its unit comes again.
    LetterAgain,
    /// A unit left over from an older epoch gives way.
    OlderGivesWay,
    /// Only a job that has ended is erased.
    EraseOfEnded,
    /// An erased job does not start over.
    ReplayOfErased,
    /// An erased job brings no dead letter.
    LetterOfErased,
    /// Whether the time of a job that the hub does is over the hub says.
    ExpireHere,
    /// Only a job that the hub does ends as the hub's.
    EndAtHub,
    /// What the hub turns out to have has ended here.
    FoundOfEnded,
    /// The hub erases only what is erased here.
    ErasedAtHub,
}

impl Guard {
    /// Whether the guard acts on what was found.
    #[cfg(not(test))]
    pub(crate) const fn acts(self, found: bool) -> bool {
        found
    }

    /// Whether the guard acts on what was found; never when the test has taken it away.
    #[cfg(test)]
    pub(crate) fn acts(self, found: bool) -> bool {
        found && tests::BROKEN.get() != Some(self)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    use super::Guard;

    thread_local! {
        pub(super) static BROKEN: Cell<Option<Guard>> = const { Cell::new(None) };
    }

    /// Runs a check on this thread without one guard.
    pub(crate) fn without<T>(guard: Guard, check: impl FnOnce() -> T) -> T {
        BROKEN.set(Some(guard));
        let found = check();
        BROKEN.set(None);
        found
    }
}
