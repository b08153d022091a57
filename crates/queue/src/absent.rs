//! What an accept asks before its job is stored: whether anything of that name is there. Hardly ever is there any, so those that
//! are asked while an answer is under way go together in the next request, and one answer that there is nothing is good for all.

use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};

use medfleet_core::{JobKey, JobRecord, chain};
use tokio::sync::oneshot;

use crate::api::{Api, BATCH_MAX};
use crate::bucket::stream_of;
use crate::{Queue, QueueError, Result, Revision, subject};

/// The looks of all accepts of a process.
#[derive(Debug)]
pub(crate) struct Absent {
    /// Of each shard.
    records: Vec<Looks>,
    events: Looks,
    dead: Looks,
}

impl Absent {
    pub(crate) fn new(record_shards: u8) -> Self {
        let buckets = subject::record_buckets(record_shards);
        Self {
            records: buckets
                .map(|bucket| Looks::new(stream_of(&bucket)))
                .collect(),
            events: Looks::new(subject::EVENTS),
            dead: Looks::new(subject::DEAD),
        }
    }
}

impl Queue {
    /// As [`Queue::record`], for who expects that there is none.
    ///
    /// # Errors
    /// As [`Queue::record`].
    pub async fn rare_record(&self, key: &JobKey) -> Result<Option<(JobRecord, Revision)>> {
        let name = self.jobs.of(&key.job).subject(&key.to_string());
        let looks = &self.absent.records[self.jobs.place(&key.job)];
        if looks.is_nothing(&self.api, name).await? {
            return Ok(None);
        }
        self.record(key).await
    }

    /// Whether there may be something for [`Queue::last_epoch`] to find. False only where there is nothing; true also where
    /// nobody knows, as where the server does not answer.
    pub async fn may_be_told(&self, key: &JobKey) -> bool {
        let Absent { events, dead, .. } = &*self.absent;
        let said = events.is_nothing(&self.api, subject::events_of(key));
        let buried = dead.is_nothing(&self.api, subject::dead_of_job(key));
        !matches!(futures::join!(said, buried), (Ok(true), Ok(true)))
    }
}

/// The looks into one stream.
#[derive(Debug)]
struct Looks {
    stream: String,
    waiting: Mutex<Vec<Look>>,
    /// Who holds it asks for all that wait.
    turn: tokio::sync::Mutex<()>,
}

/// A look that waits.
#[derive(Debug)]
struct Look {
    /// What is looked for; it may have wildcards.
    subject: String,
    /// Told whether there is nothing; `None` where the server did not answer.
    answer: oneshot::Sender<Option<bool>>,
}

impl Looks {
    fn new(stream: impl Into<String>) -> Self {
        Self {
            stream: stream.into(),
            waiting: Mutex::new(Vec::new()),
            turn: tokio::sync::Mutex::new(()),
        }
    }

    /// Whether the stream has nothing under this subject. The request is sent after the call, so that it is as good as a look of
    /// its own. Of another answer than that one cannot tell whose it is: false says no more than to look by oneself, as it does
    /// on a cluster, where the stream's leader alone is sure to know our own latest write.
    async fn is_nothing(&self, api: &Api, subject: String) -> Result<bool> {
        const LOOK: &str = "look whether a job is known";
        if !api.any_server_is_current {
            return Ok(false);
        }
        let (answer, mut answered) = oneshot::channel();
        self.lock().push(Look { subject, answer });
        loop {
            let turn = tokio::select! {
                biased;
                answered = &mut answered => return match answered {
                    Ok(Some(is_nothing)) => Ok(is_nothing),
                    Ok(None) => Err(QueueError::unavailable(LOOK)),
                    // Whoever asked for it was dropped half-way.
                    Err(_) => Ok(false),
                },
                turn = self.turn.lock() => turn,
            };
            // Its own is among them, or a later turn's where too many came before.
            self.ask(api).await;
            drop(turn);
        }
    }

    /// Asks for those that have waited longest.
    async fn ask(&self, api: &Api) {
        let looks = self.take();
        let (subjects, answers): (Vec<_>, Vec<_>) = looks
            .into_iter()
            .map(|look| (look.subject, look.answer))
            .unzip();
        if subjects.is_empty() {
            return;
        }
        let asked = api.has_none(&self.stream, &subjects).await;
        let is_nothing = match asked {
            Ok(is_nothing) => Some(is_nothing),
            Err(error) => {
                tracing::debug!(
                    stream = self.stream.as_str(),
                    error = chain(&error),
                    "it is not known whether jobs are known"
                );
                None
            }
        };
        for answer in answers {
            // Who wanted to know may be gone.
            let _ = answer.send(is_nothing);
        }
    }

    fn take(&self) -> Vec<Look> {
        let mut waiting = self.lock();
        waiting.retain(|look| !look.answer.is_closed());
        let most = waiting.len().min(BATCH_MAX);
        let later = waiting.split_off(most);
        mem::replace(&mut *waiting, later)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Look>> {
        // Changed in single steps: whole after a panic elsewhere.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
