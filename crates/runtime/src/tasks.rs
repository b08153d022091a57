//! Every task of a process starts here, under a kind that declares what its failure means and what happens to it on shutdown.
//! A panic is a failure with a name. Nothing is detached: joining the set waits for every task, and not longer than the deadline.

use std::any::Any;
use std::collections::BTreeMap;
use std::error::Error;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use medfleet_core::chain;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::instrument::WithSubscriber;

use crate::Shutdown;
use crate::exit::{Exit, Stop};

/// What the failure of a task means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// The process can't go on: begin the ordered shutdown, and end as failed.
    Shutdown,
    Log,
}

/// What happens to a task when the shutdown begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnShutdown {
    /// It watches the shutdown itself and is waited for until the deadline.
    Wait,
    /// It is dropped at its next await.
    Abort,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskKind {
    /// Its name in logs.
    pub name: &'static str,
    pub on_failure: OnFailure,
    /// What becomes of it on shutdown.
    pub on_shutdown: OnShutdown,
}

type BoxError = Box<dyn Error + Send + Sync>;

/// How a set of tasks ended other than well.
#[derive(Debug, thiserror::Error)]
pub enum TaskFailure {
    /// A task that the process can't live without returned an error.
    #[error("task {kind} failed")]
    Failed {
        kind: &'static str,
        source: BoxError,
    },
    #[error("still running at the drain deadline: {kinds}")]
    DeadlineMissed {
        /// Their kinds with numbers.
        kinds: String,
    },
}

impl TaskFailure {
    /// How the process ends then: by [`Exit::DeadlineMissed`] where tasks were still running, else by [`Exit::Failed`].
    #[must_use]
    pub fn into_stop(self) -> Stop {
        match self {
            Self::DeadlineMissed { .. } => Stop::new(Exit::DeadlineMissed, self),
            Self::Failed { .. } => Stop::new(Exit::Failed, self),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("panicked: {message}")]
struct Panicked {
    message: String,
}

/// How one task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It returned without an error.
    Done,
    /// It returned an error or panicked.
    Failed,
    /// It was dropped: by its handle, the shutdown or the deadline.
    Aborted,
}

/// A handle on a running task. Dropping it changes nothing.
#[derive(Debug, Clone)]
pub struct Task {
    abort: CancellationToken,
    ended: watch::Receiver<Option<Ended>>,
}

impl Task {
    /// Drops the task at its next await. A thread can't be dropped; it only stops being waited for.
    pub fn abort(&self) {
        self.abort.cancel();
    }

    pub async fn ended(&self) -> Ended {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(value) => (*value).unwrap_or(Ended::Aborted),
            // The sender is gone without a word only when the whole runtime was dropped.
            Err(_) => Ended::Aborted,
        }
    }
}

/// The tasks of a process or of one of its parts. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct TaskSet {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shutdown: Shutdown,
    tracker: TaskTracker,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    running: BTreeMap<&'static str, usize>,
    first_failure: Option<TaskFailure>,
}

impl TaskSet {
    /// An empty set that ends with the given shutdown.
    pub fn new(shutdown: Shutdown) -> Self {
        let (tracker, state) = (TaskTracker::new(), Mutex::default());
        Self {
            inner: Arc::new(Inner {
                shutdown,
                tracker,
                state,
            }),
        }
    }

    /// The shutdown that ends this set.
    pub fn shutdown(&self) -> &Shutdown {
        &self.inner.shutdown
    }

    /// How many tasks run now.
    pub fn running(&self) -> usize {
        self.inner.tracker.len()
    }

    /// Starts a task. It logs under the caller's subscriber.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that starts tasks"
    )]
    pub fn start<F, E>(&self, kind: TaskKind, future: F) -> Task
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let abort = CancellationToken::new();
        let (tell, ended) = watch::channel(None);
        let inner = Arc::clone(&self.inner);
        inner
            .lock()
            .running
            .entry(kind.name)
            .and_modify(|n| *n += 1)
            .or_insert(1);
        let task = Task {
            abort: abort.clone(),
            ended,
        };
        let supervised = async move {
            let outcome = supervise(kind, future, &inner.shutdown, &abort).await;
            let end = inner.finish(kind, outcome);
            tell.send_replace(Some(end));
        };
        tokio::spawn(
            self.inner
                .tracker
                .track_future(supervised.with_current_subscriber()),
        );
        task
    }

    /// Runs a closure on an operating system thread of its own and waits for it as for a task.
    /// The closure must watch the shutdown itself (or the closing of its channel): a thread can't be dropped.
    pub fn start_thread<F, E>(&self, kind: TaskKind, work: F) -> std::io::Result<Task>
    where
        F: FnOnce() -> Result<(), E> + Send + 'static,
        E: Into<BoxError>,
    {
        let (tell, result) = oneshot::channel();
        let dispatch = tracing::dispatcher::get_default(Clone::clone);
        std::thread::Builder::new()
            .name(kind.name.to_owned())
            .spawn(move || {
                let work = || tracing::dispatcher::with_default(&dispatch, work);
                let outcome = std::panic::catch_unwind(AssertUnwindSafe(work));
                // Nobody listens when the set gave up waiting; the thread ends all the same.
                drop(tell.send(flatten(outcome)));
            })?;
        Ok(self.start(kind, async move {
            match result.await {
                Ok(outcome) => outcome,
                // The sender is dropped without a word only if the thread was killed from outside.
                Err(closed) => Err(closed.into()),
            }
        }))
    }

    /// Waits until the shutdown has begun and every task has ended, or the deadline has passed.
    ///
    /// # Errors
    /// The first failure that was to stop the process; otherwise the kinds that missed the deadline.
    pub async fn join(&self) -> Result<(), TaskFailure> {
        let inner = &self.inner;
        inner.shutdown.begun().await;
        inner.tracker.close();
        tokio::select! {
            biased;
            () = inner.tracker.wait() => {}
            () = inner.shutdown.expired() => {}
        }
        let mut state = inner.lock();
        if let Some(failure) = state.first_failure.take() {
            return Err(failure);
        }
        if state.running.is_empty() {
            return Ok(());
        }
        let kinds = state
            .running
            .iter()
            .map(|(kind, count)| format!("{kind} ({count})"));
        Err(TaskFailure::DeadlineMissed {
            kinds: kinds.collect::<Vec<_>>().join(", "),
        })
    }
}

/// How a supervised future ended.
enum Outcome {
    Returned(Result<(), BoxError>),
    Aborted,
    Overdue,
}

async fn supervise<F, E>(
    kind: TaskKind,
    future: F,
    shutdown: &Shutdown,
    abort: &CancellationToken,
) -> Outcome
where
    F: Future<Output = Result<(), E>>,
    E: Into<BoxError>,
{
    let stopped = async {
        match kind.on_shutdown {
            OnShutdown::Abort => shutdown.begun().await,
            OnShutdown::Wait => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = abort.cancelled() => Outcome::Aborted,
        outcome = AssertUnwindSafe(future).catch_unwind() => Outcome::Returned(flatten(outcome)),
        () = stopped => Outcome::Aborted,
        () = shutdown.expired() => Outcome::Overdue,
    }
}

/// A panic becomes an error like any other.
fn flatten<E: Into<BoxError>>(
    outcome: Result<Result<(), E>, Box<dyn Any + Send>>,
) -> Result<(), BoxError> {
    match outcome {
        Ok(result) => result.map_err(Into::into),
        Err(payload) => {
            let text = payload
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned());
            let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
            Err(Panicked {
                message: text.unwrap_or_else(|| "no message".to_owned()),
            }
            .into())
        }
    }
}

impl Inner {
    fn finish(&self, kind: TaskKind, outcome: Outcome) -> Ended {
        let mut state = self.lock();
        // An overdue task stays counted, so that the join can name its kind.
        if !matches!(outcome, Outcome::Overdue) {
            match state.running.get_mut(kind.name) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(state.running.remove(kind.name)),
            }
        }
        match outcome {
            Outcome::Returned(Ok(())) => Ended::Done,
            Outcome::Aborted | Outcome::Overdue => Ended::Aborted,
            Outcome::Returned(Err(source)) => {
                let error = chain(source.as_ref());
                match kind.on_failure {
                    OnFailure::Log => {
                        tracing::warn!(kind = kind.name, error, "task failed");
                    }
                    OnFailure::Shutdown => {
                        tracing::error!(kind = kind.name, error, "task failed, stopping");
                        let failure = TaskFailure::Failed {
                            kind: kind.name,
                            source,
                        };
                        state.first_failure.get_or_insert(failure);
                        self.shutdown.begin();
                    }
                }
                Ended::Failed
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Counters and one option: whole after a panic elsewhere.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::io;
    use std::time::Duration;

    use super::*;

    const WORK: TaskKind = TaskKind {
        name: "work",
        on_failure: OnFailure::Shutdown,
        on_shutdown: OnShutdown::Wait,
    };
    const HINT: TaskKind = TaskKind {
        name: "hint",
        on_failure: OnFailure::Log,
        on_shutdown: OnShutdown::Abort,
    };

    fn set() -> TaskSet {
        TaskSet::new(Shutdown::new(Duration::from_secs(10)))
    }

    #[tokio::test(start_paused = true)]
    async fn joining_waits_for_those_that_wait_and_drops_the_others() {
        let tasks = set();
        let shutdown = tasks.shutdown().clone();
        let waiting = tasks.start(WORK, {
            let shutdown = shutdown.clone();
            async move {
                shutdown.begun().await;
                tokio::time::sleep(Duration::from_secs(5)).await;
                Ok::<_, Infallible>(())
            }
        });
        let hint = tasks.start(HINT, std::future::pending::<Result<(), Infallible>>());
        assert_eq!(tasks.running(), 2);
        shutdown.begin();
        tasks.join().await.expect("all ended in time");
        assert_eq!(waiting.ended().await, Ended::Done);
        assert_eq!(hint.ended().await, Ended::Aborted);
        assert_eq!(shutdown.remaining(), Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn missing_the_deadline_names_the_kind() {
        let tasks = set();
        tasks.start(WORK, std::future::pending::<Result<(), Infallible>>());
        tasks.shutdown().begin();
        let failure = tasks.join().await.expect_err("the task never ends");
        assert_eq!(
            failure.to_string(),
            "still running at the drain deadline: work (1)"
        );
        assert_eq!(failure.into_stop().exit, Exit::DeadlineMissed);
    }

    #[tokio::test]
    async fn a_failure_or_panic_stops_the_process_when_declared_so() {
        let tasks = set();
        let hint = tasks.start(HINT, async { Err::<(), _>(io::Error::other("no matter")) });
        assert_eq!(hint.ended().await, Ended::Failed);
        assert!(!tasks.shutdown().has_begun());
        let task = tasks.start(WORK, async {
            assert!(tokio::task::try_id().is_none(), "boom");
            Ok::<_, Infallible>(())
        });
        assert_eq!(task.ended().await, Ended::Failed);
        let failure = tasks.join().await.expect_err("the panic stops the process");
        assert_eq!(chain(&failure), "task work failed: panicked: boom");
        assert_eq!(failure.into_stop().exit, Exit::Failed);
    }

    #[tokio::test]
    async fn threads_are_tasks() {
        let tasks = set();
        let good = tasks
            .start_thread(HINT, || Ok::<_, Infallible>(()))
            .expect("starts");
        assert_eq!(good.ended().await, Ended::Done);
        let bad = tasks.start_thread(WORK, || Err::<(), _>(io::Error::other("no memory")));
        assert_eq!(bad.expect("starts").ended().await, Ended::Failed);
        let failure = tasks
            .join()
            .await
            .expect_err("the thread's failure stops the process");
        assert_eq!(chain(&failure), "task work failed: no memory");
    }

    #[tokio::test]
    async fn a_handle_aborts_its_task_only() {
        let tasks = set();
        let first = tasks.start(WORK, std::future::pending::<Result<(), Infallible>>());
        let second = tasks.start(WORK, std::future::pending::<Result<(), Infallible>>());
        first.abort();
        assert_eq!(first.ended().await, Ended::Aborted);
        assert!(second.ended.borrow().is_none());
        second.abort();
        tasks.shutdown().begin();
        tasks.join().await.expect("both were aborted before");
    }
}
