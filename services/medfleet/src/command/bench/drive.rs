//! Clients of a fleet: each submits a job, follows it to its end and goes on with the next one.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::stream;
use futures::{StreamExt, TryStreamExt};
use medfleet_proto::v1::Class;
use tokio::task::JoinSet;

use super::job::Asked;
use super::simulated::picture;
use crate::client::{Client, Event, Fleet, Retry};

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

/// Connections to a fleet, over which its clients share.
pub(super) struct Clients {
    connections: Vec<Arc<Client>>,
}

impl Clients {
    /// Over so many connections.
    pub(super) fn new(fleet: &Fleet, connections: usize) -> Result<Self> {
        let connections = (0..connections.max(1)).map(|_| {
            let client = Client::new(fleet, Retry::PATIENT)?;
            Ok(Arc::new(client))
        });
        Ok(Self {
            connections: connections.collect::<Result<_>>()?,
        })
    }

    /// Runs the jobs of these numbers from `clients` clients at a time. Every one has to complete with a text.
    pub(super) async fn run(&self, numbers: Range<u64>, clients: usize) -> Result<Driven> {
        let begun = Instant::now();
        let every = self.connections.len();
        let mut running = JoinSet::new();
        for (first, client) in self.connections.iter().enumerate() {
            let client = Arc::clone(client);
            let own = numbers.clone().skip(first).step_by(every);
            let at_once = clients.div_ceil(every).max(1);
            running.spawn(async move {
                let jobs = stream::iter(own).map(|number| one_job(&client, number));
                jobs.buffer_unordered(at_once).try_collect::<Vec<_>>().await
            });
        }
        let mut turnarounds = Vec::new();
        while let Some(own) = running.join_next().await {
            turnarounds.extend(own.context("a client broke")??);
        }
        Ok(Driven {
            took: begun.elapsed(),
            turnarounds,
        })
    }
}

/// From submit to the end.
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
