//! Clients of a fleet: each submits a job, follows it to its end and goes on with the next one.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use medfleet_core::chain;
use medfleet_proto::v1::Class;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::job::Asked;
use super::simulated::picture;
use crate::client::{Client, ClientError, Event, Fleet, Retry};

/// Tokens that each job may write: as many as the simulated model has words.
const TOKENS_MAX: u32 = 4;

/// What clients saw.
#[derive(Debug, Default)]
pub(super) struct Driven {
    /// From the first submit to the last end.
    pub(super) took: Duration,
    /// Of each job, from its submit to its end.
    pub(super) turnarounds: Vec<Duration>,
}

/// Clients that share connections to a fleet. They have one thread, as its services do: several would wake one another, and what
/// leaves over a connection leaves it in fewer writes.
pub(super) struct Clients {
    asked: mpsc::Sender<Asking>,
}

/// Jobs to do, and who waits for them.
struct Asking {
    numbers: Range<u64>,
    clients: usize,
    driven: oneshot::Sender<Result<Driven>>,
}

impl Clients {
    /// Over so many connections.
    pub(super) fn new(fleet: &Fleet, connections: usize) -> Result<Self> {
        let (asked, asking) = mpsc::channel(1);
        let fleet = fleet.clone();
        std::thread::Builder::new()
            .name("clients".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                // Without one nobody answers, which whoever asks finds out.
                if let Ok(runtime) = runtime {
                    runtime.block_on(answer(asking, &fleet, connections));
                }
            })
            .context("cannot start the clients")?;
        Ok(Self { asked })
    }

    /// Runs the jobs of these numbers from `clients` clients at a time. Every one has to complete with a text.
    pub(super) async fn run(&self, numbers: Range<u64>, clients: usize) -> Result<Driven> {
        let (driven, answer) = oneshot::channel();
        let asking = Asking {
            numbers,
            clients,
            driven,
        };
        let asked = self.asked.send(asking).await;
        asked.ok().context("the clients' thread did not start")?;
        answer.await.context("the clients' thread broke")?
    }
}

/// Does what is asked for until nobody can ask any more.
async fn answer(mut asking: mpsc::Receiver<Asking>, fleet: &Fleet, connections: usize) {
    // Here, as this is the thread that keeps them going.
    let connected: Result<Vec<Arc<Client>>, ClientError> = (0..connections.max(1))
        .map(|_| Client::new(fleet, Retry::PATIENT).map(Arc::new))
        .collect();
    while let Some(asking) = asking.recv().await {
        let driven = match &connected {
            Ok(connected) => drive(connected, asking.numbers, asking.clients).await,
            Err(error) => Err(anyhow!(chain(error))),
        };
        // Whoever asked may have given up.
        drop(asking.driven.send(driven));
    }
}

async fn drive(connected: &[Arc<Client>], numbers: Range<u64>, clients: usize) -> Result<Driven> {
    let begun = Instant::now();
    let job = |client: Arc<Client>, number| async move { one_job(&client, number).await };
    let turnarounds = side_by_side(numbers, clients, connected, job).await?;
    Ok(Driven {
        took: begun.elapsed(),
        turnarounds,
    })
}

/// Does the jobs of these numbers, exactly `at_once` of them at a time, over these connections in turn.
pub(super) async fn side_by_side<C, T, F>(
    numbers: Range<u64>,
    at_once: usize,
    connections: &[Arc<C>],
    job: impl Fn(Arc<C>, u64) -> F + Clone + Send + 'static,
) -> Result<Vec<T>>
where
    C: Send + Sync + 'static,
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let next = Arc::new(AtomicU64::new(numbers.start));
    let mut running = JoinSet::new();
    for connection in connections.iter().cycle().take(at_once.max(1)) {
        let (connection, next) = (Arc::clone(connection), Arc::clone(&next));
        let (job, end) = (job.clone(), numbers.end);
        running.spawn(async move {
            let mut done = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= end {
                    return Ok::<_, anyhow::Error>(done);
                }
                done.push(job(Arc::clone(&connection), number).await?);
            }
        });
    }
    let mut all = Vec::new();
    while let Some(done) = running.join_next().await {
        all.extend(done.context("a client broke")??);
    }
    Ok(all)
}

async fn one_job(client: &Client, number: u64) -> Result<Duration> {
    let asked = Asked {
        request_id: format!("bench-{number}"),
        picture: picture(number)?,
        class: Class::Unspecified,
        tokens_max: TOKENS_MAX,
    };
    let (begun, mut has_text) = (Instant::now(), false);
    let mut seen = |event: &Event| has_text |= matches!(event, Event::Text { .. });
    asked.complete(client, &mut seen).await?;
    ensure!(has_text, "job {number} completed without a word");
    Ok(begun.elapsed())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[tokio::test]
    async fn as_many_jobs_are_under_way_as_was_asked_for() {
        let connections: Vec<_> = (0..4).map(|_| Arc::new(())).collect();
        for at_once in [1, 5, 8] {
            let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            let job = {
                let most = Arc::clone(&most);
                move |_: Arc<()>, number: u64| {
                    let (running, most) = (Arc::clone(&running), Arc::clone(&most));
                    async move {
                        let now = running.fetch_add(1, Ordering::Relaxed) + 1;
                        most.fetch_max(now, Ordering::Relaxed);
                        tokio::task::yield_now().await;
                        running.fetch_sub(1, Ordering::Relaxed);
                        Ok(number)
                    }
                }
            };
            let done = side_by_side(10..50, at_once, &connections, job).await;
            let mut done = done.expect("every job is done");
            done.sort_unstable();
            assert_eq!(done, (10..50).collect::<Vec<_>>());
            assert_eq!(most.load(Ordering::Relaxed), at_once);
        }
    }
}
