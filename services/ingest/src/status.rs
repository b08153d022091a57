//! The status page: how the fleet stands, as HTML and as JSON, on the admin port; for the people who run it, where there is
//! no dashboard. It shows counts, times, names of stages, pools and streams, and ids that are hashes; no tenant, no patient,
//! no text of a job. Everything is asked anew at each call, at once, and what does not answer says so.

mod page;
mod recent;

use std::sync::Arc;
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use medfleet_core::setting::ByteSize;
use medfleet_core::{BlobKind, Class, Digest, PoolName, Stage, TenantId, chain};
use medfleet_queue::{DEAD_STREAM, Queue, QueueError, StreamUsage};
use medfleet_runtime::{Clock, Page, Pages};
use medfleet_store::BlobStore;
use serde::Serialize;
use tokio::time::Instant;

use crate::convert;
use crate::fanout::Fanout;
use crate::leader::LEASE;
use crate::metrics::Figures;
use crate::quota::Quotas;
use crate::roster::Roster;

pub(crate) use recent::Recent;

/// How long a store that had no room for a call counts as full, as long as the alert says so.
const FULL_FOR: Duration = Duration::from_secs(15 * 60);
/// Dead letters shown.
const LETTERS_MAX: usize = 10;
/// Places of the stream in which they are looked for, from its end.
const LETTERS_BEHIND: u64 = 50;

/// What the page needs.
#[derive(Debug, Clone)]
pub(crate) struct Status {
    pub(crate) queue: Queue,
    pub(crate) store: BlobStore,
    pub(crate) quotas: Quotas,
    pub(crate) pools: Vec<PoolName>,
    pub(crate) roster: Roster,
    pub(crate) fanout: Fanout,
    pub(crate) figures: Figures,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) holder: String,
}

/// How the fleet stands.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// When, in UTC.
    time: String,
    version: &'static str,
    queue: Part,
    store: Part,
    dispatcher: Leader,
    backlog: Vec<Row>,
    workers: Vec<Worker>,
    streams: Vec<Stream>,
    dead_letters: DeadLetters,
    recent_jobs: Vec<Job>,
    /// What could not be asked, and why.
    troubles: Vec<String>,
}

/// Something outside this process that is needed.
#[derive(Debug, Default, Serialize)]
struct Part {
    is_well: bool,
    what: String,
}

#[derive(Debug, Default, Serialize)]
struct Leader {
    /// This process is it.
    is_here: bool,
    /// The start of its holder's name, which each process draws anew.
    holder: Option<String>,
}

/// The units of one (stage, pool, class).
#[derive(Debug, Default, Serialize)]
struct Row {
    stage: &'static str,
    pool: String,
    class: &'static str,
    /// Held back in the intake; known where the dispatcher is.
    held: Option<u64>,
    /// Released, and in nobody's hands.
    waiting: u64,
    /// In a worker's hands.
    in_flight: u64,
    /// Age of the oldest.
    oldest_seconds: Option<u64>,
}

impl Row {
    /// Where the dispatcher is another process, only its oldest tells of what is held back.
    fn is_shown(&self) -> bool {
        let units = self.held.unwrap_or(0) + self.waiting + self.in_flight;
        units > 0 || self.oldest_seconds.is_some() || self.class == Class::Routine.as_str()
    }
}

#[derive(Debug, Default, Serialize)]
struct Worker {
    worker: String,
    stage: &'static str,
    pool: String,
    slots: u32,
    busy: u32,
    version: String,
    is_draining: bool,
}

#[derive(Debug, Default, Serialize)]
struct Stream {
    stream: String,
    messages: u64,
    bytes: u64,
    bytes_max: Option<u64>,
    full_percent: Option<u64>,
}

#[derive(Debug, Default, Serialize)]
struct DeadLetters {
    /// None where their stream was not told of.
    total: Option<u64>,
    last: Vec<Letter>,
}

#[derive(Debug, Default, Serialize)]
struct Letter {
    time: String,
    job: String,
    stage: String,
    reason: String,
}

#[derive(Debug, Default, Serialize)]
struct Job {
    time: String,
    job: String,
    state: String,
    chunks_done: u32,
    chunks_total: u32,
    attempt: u32,
}

impl Status {
    /// Puts the page on the admin port, as `/status` and `/status.json`.
    pub(crate) fn add_to(self, pages: &Pages) {
        let other = self.clone();
        pages.add("/status", move || {
            let status = self.clone();
            async move {
                Page {
                    content_type: "text/html; charset=utf-8",
                    body: page::html(&status.report().await),
                }
            }
        });
        pages.add("/status.json", move || {
            let status = other.clone();
            async move {
                let report = status.report().await;
                Page {
                    content_type: "application/json",
                    body: serde_json::to_string_pretty(&report)
                        .unwrap_or_else(|error| format!("{{\"troubles\":[\"{error}\"]}}")),
                }
            }
        });
    }

    async fn report(&self) -> Report {
        let now = self.clock.now();
        let mut report = Report {
            time: convert::timestamp(now).to_string(),
            version: env!("CARGO_PKG_VERSION"),
            workers: self.workers(),
            recent_jobs: self.recent_jobs(),
            ..Report::default()
        };
        let (writable, holder, usage, rows, store) = futures::join!(
            self.queue.try_write(&self.holder),
            self.queue.lease_holder(LEASE),
            self.queue.usage(),
            self.rows(),
            self.look_at_store(),
        );
        report.store = store;
        report.queue = match &writable {
            Ok(()) => Part {
                is_well: true,
                what: format!("nats-server {} takes writes", self.queue.server_version()),
            },
            Err(error) if self.queue.is_connected() => Part {
                is_well: false,
                what: format!("connected, but takes no writes: {}", chain(error)),
            },
            Err(_) => Part {
                is_well: false,
                what: "not connected".to_owned(),
            },
        };
        let mut troubles = Vec::new();
        let holder = or_trouble(&mut troubles, "who the dispatcher is", holder).flatten();
        report.dispatcher = Leader {
            is_here: self.figures.leader.get() == 1,
            holder: holder.map(|name| name.chars().take(8).collect()),
        };
        let usage = or_trouble(&mut troubles, "how full the streams are", usage);
        report.backlog = or_trouble(&mut troubles, "what waits", rows).unwrap_or_default();
        let usage = usage.unwrap_or_default();
        let letters = self.letters(&usage).await;
        let letters = or_trouble(&mut troubles, "the dead letters", letters);
        report.dead_letters = letters.unwrap_or_default();
        report.streams = usage.into_iter().map(Stream::from).collect();
        report.streams.sort_by(|a, b| a.stream.cmp(&b.stream));
        report.troubles = troubles;
        report
    }

    /// Whether the store answers: asks for a blob that nobody has.
    async fn look_at_store(&self) -> Part {
        let asked = async {
            let tenant = TenantId::new("status-page").ok()?;
            let nothing = Digest::new([0; 32]);
            let found = self.store.exists(&tenant, BlobKind::Study, &nothing);
            Some(found.await)
        };
        match asked.await {
            Some(Err(error)) => Part {
                is_well: false,
                what: chain(&error),
            },
            _ => of_store(self.figures.since_full(), &stored(&self.quotas)),
        }
    }

    async fn rows(&self) -> Result<Vec<Row>, QueueError> {
        let lanes = Stage::ALL
            .iter()
            .flat_map(|stage| self.pools.iter().map(|pool| (*stage, pool)));
        let lanes = lanes.map(|(stage, pool)| self.rows_of(stage, pool));
        Ok(try_join_all(lanes).await?.into_iter().flatten().collect())
    }

    /// The classes of one lane that have anything; the usual class also when it has not.
    async fn rows_of(&self, stage: Stage, pool: &PoolName) -> Result<Vec<Row>, QueueError> {
        let now = self.clock.now();
        let outstanding = self.queue.outstanding(stage, pool).await?;
        let rows = Class::ALL.iter().map(|class| async {
            let released = outstanding.of(*class);
            let all = self.figures.backlog(stage, pool, *class);
            let all = all.and_then(|all| u64::try_from(all).ok());
            let out = released.waiting + released.in_flight;
            let oldest = match self.queue.oldest(stage, pool, *class).await {
                Ok(oldest) => oldest,
                Err(error) => return Err(error),
            };
            let age = oldest.map(|since| u64::try_from((now.0 - since.0) / 1000).unwrap_or(0));
            Ok(Row {
                stage: stage.as_str(),
                pool: pool.to_string(),
                class: class.as_str(),
                held: all.map(|all| all.saturating_sub(out)),
                waiting: released.waiting,
                in_flight: released.in_flight,
                oldest_seconds: age,
            })
        });
        let rows = join_all(rows).await.into_iter();
        let rows = rows.collect::<Result<Vec<Row>, QueueError>>()?;
        Ok(rows.into_iter().filter(Row::is_shown).collect())
    }

    fn workers(&self) -> Vec<Worker> {
        let members = self.roster.members(Instant::now()).into_iter();
        let mut workers: Vec<Worker> = members
            .map(|(name, member)| Worker {
                worker: name.chars().take(8).collect(),
                stage: member.stage.as_str(),
                pool: member.pool.to_string(),
                slots: member.slots,
                busy: member.busy,
                version: member.version,
                is_draining: member.is_draining,
            })
            .collect();
        let place = |worker: &Worker| {
            let stage = Stage::ALL.iter().position(|s| s.as_str() == worker.stage);
            (worker.pool.clone(), stage, worker.worker.clone())
        };
        workers.sort_by_key(place);
        workers
    }

    fn recent_jobs(&self) -> Vec<Job> {
        let jobs = self.fanout.recent().into_iter();
        let jobs = jobs.map(|(key, event)| Job {
            time: time(event.time_unix_millis),
            job: key.job.to_string(),
            state: word(event.state().as_str_name(), "JOB_STATE_"),
            chunks_done: event.chunks_done,
            chunks_total: event.chunks_total,
            attempt: event.attempt,
        });
        jobs.collect()
    }

    async fn letters(&self, usage: &[StreamUsage]) -> Result<DeadLetters, QueueError> {
        // A server of a cluster leaves out a stream that has no leader at the moment.
        let Some(stream) = usage.iter().find(|stream| stream.stream == DEAD_STREAM) else {
            return Err(QueueError::Unavailable {
                operation: "look for their stream",
            });
        };
        let mut last = Vec::new();
        if stream.messages > 0 {
            let after = stream.last_sequence.saturating_sub(LETTERS_BEHIND);
            let places = usize::try_from(LETTERS_BEHIND).unwrap_or(LETTERS_MAX);
            last = self.queue.dead_letters(None, after, places).await?;
        }
        let last = last.into_iter().rev().take(LETTERS_MAX);
        let last = last.map(|(_, letter)| {
            let reason = word(letter.reason().as_str_name(), "FAILURE_REASON_");
            let unit = letter.unit.unwrap_or_default();
            Letter {
                time: time(letter.time_unix_millis),
                job: unit.job,
                stage: unit.stage,
                reason,
            }
        });
        Ok(DeadLetters {
            total: Some(stream.messages),
            last: last.collect(),
        })
    }
}

impl From<StreamUsage> for Stream {
    fn from(usage: StreamUsage) -> Self {
        Self {
            full_percent: usage.percent(),
            stream: usage.stream,
            messages: usage.messages,
            bytes: usage.bytes,
            bytes_max: usage.bytes_max,
        }
    }
}

/// A store that answers, and how long ago it had no room for a call of this process.
fn of_store(since_full: Option<Duration>, stored: &str) -> Part {
    match since_full.filter(|since| *since < FULL_FOR) {
        Some(since) => Part {
            is_well: false,
            what: format!(
                "answers, and had no room for a call {} s ago{stored}",
                since.as_secs()
            ),
        },
        None => Part {
            is_well: true,
            what: format!("answers{stored}"),
        },
    }
}

/// What the store holds, by the last count, and how many tenants have as much as they may; nothing before the first.
fn stored(quotas: &Quotas) -> String {
    let stored = quotas.stored().all();
    let Some(stored) = stored.filter(|stored| !stored.is_empty()) else {
        return String::new();
    };
    let bytes = stored.values().copied().fold(0, u64::saturating_add);
    let bytes = ByteSize::from_bytes(bytes).rounded();
    let tenants = stored.len();
    let is_full = |(tenant, bytes): &(&TenantId, &u64)| {
        let most = quotas.stored_bytes_max(tenant);
        most.is_some_and(|most| **bytes >= most)
    };
    let full = stored.iter().filter(is_full).count();
    format!(
        "; when it was counted last it held {bytes} of {tenants} tenants, {full} of them at their quota"
    )
}

fn or_trouble<T>(
    troubles: &mut Vec<String>,
    what: &str,
    asked: Result<T, QueueError>,
) -> Option<T> {
    match asked {
        Ok(answer) => Some(answer),
        Err(error) => {
            troubles.push(format!("{what}: {}", chain(&error)));
            None
        }
    }
}

fn time(unix_millis: i64) -> String {
    convert::timestamp(medfleet_core::UnixMillis(unix_millis / 1000 * 1000)).to_string()
}

/// `JOB_STATE_COMPLETED` as people say it.
fn word(name: &str, prefix: &str) -> String {
    let name = name.strip_prefix(prefix).unwrap_or(name);
    name.to_lowercase().replace('_', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_had_no_room_is_not_well_for_a_while() {
        let check = |since_full, is_well, what: &str| {
            let part = of_store(since_full, "; so much");
            assert_eq!((part.is_well, part.what.as_str()), (is_well, what));
        };
        check(None, true, "answers; so much");
        check(Some(FULL_FOR), true, "answers; so much");
        let told = "answers, and had no room for a call 7 s ago; so much";
        check(Some(Duration::from_secs(7)), false, told);
    }

    #[test]
    fn a_class_of_which_all_is_held_back_is_shown_by_every_replica() {
        let check = |class: Class, held, oldest_seconds, expected| {
            let row = Row {
                class: class.as_str(),
                held,
                oldest_seconds,
                ..Row::default()
            };
            assert_eq!(row.is_shown(), expected, "{row:?}");
        };
        check(Class::Bulk, Some(3), Some(60), true);
        check(Class::Bulk, None, Some(60), true);
        check(Class::Bulk, Some(0), None, false);
        check(Class::Bulk, None, None, false);
        check(Class::Routine, None, None, true);
    }
}
