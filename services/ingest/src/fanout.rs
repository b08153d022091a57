//! One events consumer and one text subscription for the whole process, fanned out in memory to whoever watches a job.
//! A signal is a hint with content: who misses one starts over from durable state, so nothing here needs to be complete; what
//! `heard` has of a job is.

mod heard;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use medfleet_core::{JobKey, chain};
use medfleet_proto::work::v1::{JobEvent, TextChunk};
use medfleet_queue::{Queue, QueueError};
use medfleet_runtime::Shutdown;
use tokio::sync::{broadcast, mpsc};

use crate::open::OpenJobs;
use crate::status::Recent;
use crate::watch::Finished;
use heard::Heard;
pub(crate) use heard::Told;

/// Pause before a broken subscription is made again.
const AGAIN: Duration = Duration::from_millis(250);

/// What a watcher is told.
#[derive(Debug, Clone)]
pub(crate) enum Signal {
    /// A durable event with its sequence.
    Event(u64, JobEvent),
    Text(Arc<TextChunk>),
    /// Events may have been missed: read durable state.
    Missed,
}

/// What the watchers of one job share.
#[derive(Debug)]
pub(crate) struct Topic {
    signals: broadcast::Sender<Signal>,
    /// How the job ended, read once for all of them.
    pub(crate) finished: tokio::sync::Mutex<Option<Arc<Finished>>>,
    /// Whose watching the audit has, for as long as anybody watches.
    pub(crate) audited: tokio::sync::Mutex<HashSet<String>>,
}

/// The fan-out. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Fanout {
    shared: Arc<Mutex<Shared>>,
    signals_max: usize,
    open: OpenJobs,
}

#[derive(Debug, Default)]
struct Shared {
    /// Topic and number of its watchers.
    topics: HashMap<JobKey, (Arc<Topic>, usize)>,
    observer: Option<mpsc::Sender<(JobKey, JobEvent)>>,
    recent: Recent,
    heard: Heard,
}

/// A watcher's place at a topic; leaves it when dropped.
#[derive(Debug)]
pub(crate) struct Subscription {
    fanout: Fanout,
    key: JobKey,
    pub(crate) topic: Arc<Topic>,
    pub(crate) signals: broadcast::Receiver<Signal>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut shared = self.fanout.lock();
        if let Some((_, watchers)) = shared.topics.get_mut(&self.key) {
            *watchers -= 1;
            if *watchers == 0 {
                shared.topics.remove(&self.key);
            }
        }
    }
}

impl Fanout {
    /// With room for so many signals per job; what it hears of jobs the ledger of open jobs hears too.
    pub(crate) fn new(signals_max: usize, open: OpenJobs) -> Self {
        Self {
            shared: Arc::default(),
            signals_max,
            open,
        }
    }

    /// Begins to listen to a job. Subscribe first, then read durable state, and no event falls in between.
    pub(crate) fn subscribe(&self, key: &JobKey) -> Subscription {
        let mut shared = self.lock();
        let (topic, watchers) = shared.topics.entry(key.clone()).or_insert_with(|| {
            let (signals, _) = broadcast::channel(self.signals_max);
            (
                Arc::new(Topic {
                    signals,
                    finished: tokio::sync::Mutex::default(),
                    audited: tokio::sync::Mutex::default(),
                }),
                0,
            )
        });
        *watchers += 1;
        let topic = Arc::clone(topic);
        let signals = topic.signals.subscribe();
        Subscription {
            fanout: self.clone(),
            key: key.clone(),
            topic,
            signals,
        }
    }

    /// Everything that is told of a job so far, for who has subscribed to it: what comes to be told is a signal. None where it
    /// must be read. `losses`: of the connection so far.
    pub(crate) fn heard(&self, key: &JobKey, losses: u64) -> Option<Vec<Told>> {
        self.lock().heard.of(key, losses)
    }

    /// The jobs that moved last, the latest first.
    pub(crate) fn recent(&self) -> Vec<(JobKey, JobEvent)> {
        self.lock().recent.latest_first()
    }

    /// All durable events of all jobs, for the dispatcher. What it is too slow for is dropped: they are hints.
    /// A new observer replaces the one before.
    pub(crate) fn observe(&self, capacity: usize) -> mpsc::Receiver<(JobKey, JobEvent)> {
        let (sender, receiver) = mpsc::channel(capacity);
        self.lock().observer = Some(sender);
        receiver
    }

    /// Carries events until the shutdown.
    pub(crate) async fn carry_events(self, queue: Queue, shutdown: Shutdown) {
        let carry = async {
            // Said once, not at every try for as long as the queue is away.
            let mut is_told = false;
            loop {
                let carried = self.carry_some_events(&queue, &mut is_told).await;
                if let Err(error) = carried
                    && !std::mem::replace(&mut is_told, true)
                {
                    tracing::warn!(error = chain(&error), "the events consumer broke");
                }
                self.tell_all_missed();
                tokio::time::sleep(AGAIN).await;
            }
        };
        tokio::select! {
            () = carry => {}
            () = shutdown.begun() => {}
        }
    }

    /// `is_told`: whether it was said that there is no consumer; not any more once there is one.
    async fn carry_some_events(&self, queue: &Queue, is_told: &mut bool) -> Result<(), QueueError> {
        let mut events = queue.events().await?;
        *is_told = false;
        // What happened before this consumer existed is found by reading.
        self.tell_all_missed();
        while let Some(event) = events.next().await {
            let (key, sequence, event) = event?;
            self.open.take(&key, &event);
            {
                let mut shared = self.lock();
                shared.recent.note(&key, &event);
                // Before the signal: whoever subscribes in between has one of the two.
                let told = (sequence, event.clone());
                shared.heard.note(&key, told, queue.losses());
            }
            self.tell(&key, || Signal::Event(sequence, event.clone()));
            if let Some(observer) = &self.lock().observer {
                // Full or gone: the dispatcher recounts by itself every second.
                drop(observer.try_send((key, event)));
            }
        }
        Ok(())
    }

    /// Carries text until the shutdown.
    pub(crate) async fn carry_texts(self, queue: Queue, shutdown: Shutdown) {
        let carry = async {
            // As for events.
            let mut is_told = false;
            loop {
                match queue.texts().await {
                    Ok(mut texts) => {
                        is_told = false;
                        while let Some((key, chunk)) = texts.next().await {
                            self.tell(&key, || Signal::Text(Arc::new(chunk)));
                        }
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut is_told, true) {
                            tracing::warn!(error = chain(&error), "the text subscription broke");
                        }
                    }
                }
                tokio::time::sleep(AGAIN).await;
            }
        };
        tokio::select! {
            () = carry => {}
            () = shutdown.begun() => {}
        }
    }

    /// `signal`: made only where somebody watches the job.
    fn tell(&self, key: &JobKey, signal: impl FnOnce() -> Signal) {
        if let Some((topic, _)) = self.lock().topics.get(key) {
            // No receiver left: the last one is leaving right now.
            drop(topic.signals.send(signal()));
        }
    }

    fn tell_all_missed(&self) {
        self.open.missed();
        let mut shared = self.lock();
        shared.heard.forget_all();
        for (topic, _) in shared.topics.values() {
            // As above.
            drop(topic.signals.send(Signal::Missed));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // Maps and counts, changed in single steps: whole after a panic elsewhere.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use medfleet_testkit::key;

    use super::*;

    #[tokio::test]
    async fn every_watcher_of_a_job_is_told_and_no_other() {
        let fanout = Fanout::new(4, OpenJobs::default());
        let (mut first, mut second, mut other) = (
            fanout.subscribe(&key(1)),
            fanout.subscribe(&key(1)),
            fanout.subscribe(&key(2)),
        );
        fanout.tell(&key(1), || Signal::Event(7, JobEvent::default()));
        for watcher in [&mut first, &mut second] {
            assert!(matches!(
                watcher.signals.try_recv(),
                Ok(Signal::Event(7, _))
            ));
        }
        assert!(other.signals.try_recv().is_err());
        fanout.tell_all_missed();
        assert!(matches!(other.signals.try_recv(), Ok(Signal::Missed)));
    }

    #[tokio::test]
    async fn a_slow_watcher_learns_that_it_missed_something() {
        let fanout = Fanout::new(2, OpenJobs::default());
        let mut slow = fanout.subscribe(&key(1));
        for sequence in 1..=5 {
            fanout.tell(&key(1), || Signal::Event(sequence, JobEvent::default()));
        }
        assert!(matches!(
            slow.signals.try_recv(),
            Err(broadcast::error::TryRecvError::Lagged(_))
        ));
    }

    #[tokio::test]
    async fn nobody_watching_costs_nothing() {
        let fanout = Fanout::new(2, OpenJobs::default());
        let first = fanout.subscribe(&key(1));
        let second = fanout.subscribe(&key(1));
        drop(first);
        assert_eq!(fanout.lock().topics.len(), 1);
        drop(second);
        assert!(fanout.lock().topics.is_empty());
        fanout.tell(&key(1), || Signal::Missed);
    }
}
