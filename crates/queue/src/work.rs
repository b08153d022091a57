//! Units of work on their way: into intake, out of it by sequence, into a stage's queue.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use medfleet_core::{Class, PoolName, Stage, UnixMillis, WorkUnit, protocol};
use medfleet_proto::work::v1 as wire;
use serde::Deserialize;
use serde_json::json;

use crate::api::{Operation, Which, code, from_headers, is_code, once, repeatable, to_headers};
use crate::feed::{Feed, FeedMessage};
use crate::wire::{decode, encode, unit_from_wire, unit_to_wire};
use crate::{Headers, Queue, QueueError, Result, subject};

/// What became of a publish of which one at most may live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// It is durable now.
    Stored,
    /// The same was there already; nothing was stored.
    AlreadyThere,
}

/// A unit that waits for release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntakeEntry {
    pub unit: WorkUnit,
    /// Its place among the waiting units of its stage, for [`Queue::remove_intake`].
    pub sequence: u64,
    /// Trace context.
    pub headers: Headers,
    /// When it was accepted.
    pub stored_at: UnixMillis,
}

/// Units of one class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backlog {
    /// Released, not yet with a worker.
    pub waiting: u64,
    /// With a worker.
    pub in_flight: u64,
}

/// Released, unfinished units of one (stage, pool).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outstanding {
    pub stat: Backlog,
    pub urgent: Backlog,
    pub routine: Backlog,
    pub bulk: Backlog,
}

impl Outstanding {
    pub const fn of(&self, class: Class) -> Backlog {
        match class {
            Class::Stat => self.stat,
            Class::Urgent => self.urgent,
            Class::Routine => self.routine,
            Class::Bulk => self.bulk,
        }
    }

    /// Waiting and in flight, of all classes together.
    pub fn total(&self) -> u64 {
        Class::ALL
            .iter()
            .map(|class| self.of(*class))
            .map(|backlog| backlog.waiting + backlog.in_flight)
            .sum()
    }
}

/// Units of older epochs that one publish takes out at most: more late publishers of one unit than that do not exist.
const REPLACED_MAX: u32 = 16;
/// Pause before a unit is put again that is said to be there and is not, times the tries before.
const AGAIN: Duration = Duration::from_millis(5);

#[derive(Deserialize)]
struct ConsumerInfo {
    #[serde(default)]
    num_pending: u64,
    #[serde(default)]
    num_ack_pending: u64,
    #[serde(default)]
    ack_floor: AckFloor,
    #[serde(default)]
    config: ConsumerLimits,
}

#[derive(Deserialize, Default)]
struct AckFloor {
    /// What the consumer has of its stream up to here is done with, and is never delivered again.
    #[serde(default)]
    stream_seq: u64,
}

#[derive(Deserialize, Default)]
struct ConsumerLimits {
    /// Less than one for no limit.
    #[serde(default)]
    max_ack_pending: i64,
}

#[derive(Deserialize)]
struct StreamInfo {
    state: StreamState,
}

#[derive(Deserialize)]
struct StreamState {
    messages: u64,
}

impl Queue {
    /// Units of a stage that wait for release, of all pools together.
    pub async fn waiting_for_release(&self, stage: Stage) -> Result<u64> {
        const INFO: Operation = repeatable("look at a stream");
        let stream = subject::intake_stream(stage);
        let method = format!("STREAM.INFO.{stream}");
        let info: StreamInfo = self.api.call(INFO, &method, &json!({})).await?;
        Ok(info.state.messages)
    }

    /// Puts a unit where it waits for release.
    ///
    /// # Errors
    /// [`QueueError::Full`] at the limit of waiting units, and transient ones: publish again, at most one is stored.
    pub async fn publish_intake(&self, unit: &WorkUnit, headers: &Headers) -> Result<Published> {
        let stream = subject::intake_stream(unit.stage);
        self.publish_unit(stream, &subject::intake(unit), unit, headers)
            .await
    }

    /// Every unit of a stage that waits for release, in order from the oldest, then each new one as it comes. Goes on
    /// after a restart of the server without losing or repeating one. Ends only with the connection.
    ///
    /// # Errors
    /// When the stream cannot be read at all; later trouble is logged and retried, never yielded. What is yielded as
    /// [`QueueError::NoIntake`] is one message that cannot be read.
    pub async fn intake(&self, stage: Stage) -> Result<BoxStream<'static, Result<IntakeEntry>>> {
        let stream = subject::intake_stream(stage);
        let feed = Feed::open(&self.api, stream, Some(1)).await?;
        let entries = feed.stream();
        Ok(entries
            .map(move |message| intake_entry(stream, message))
            .boxed())
    }

    /// The sequence of the latest unit that came to wait at a stage, whether it still does; 0 before the first.
    pub async fn intake_end(&self, stage: Stage) -> Result<u64> {
        self.api.last_sequence(subject::intake_stream(stage)).await
    }

    /// Removes a unit from intake after its release is confirmed; one that is gone is fine.
    ///
    /// # Errors
    /// Transient ones: remove again.
    pub async fn remove_intake(&self, stage: Stage, sequence: u64) -> Result<()> {
        self.api
            .delete(subject::intake_stream(stage), sequence)
            .await
    }

    /// Removes every waiting unit of a stage whose sequence is below this one: who calls it has read all of them, and each is
    /// released or not wanted any more. Not asked for again when its answer is lost: what a server that lost writes has
    /// stored since could have the same sequences.
    ///
    /// # Errors
    /// Transient ones, which leave open whether it was done: read the intake anew.
    pub async fn remove_intake_below(&self, stage: Stage, sequence: u64) -> Result<()> {
        const PURGE: Operation = once("remove released units");
        let method = format!("STREAM.PURGE.{}", subject::intake_stream(stage));
        let body = json!({ "seq": sequence });
        self.api
            .call::<serde::de::IgnoredAny>(PURGE, &method, &body)
            .await
            .map(drop)
    }

    /// Releases a unit to the workers of its stage and pool, and hints to idle ones. A live unit of an older epoch in its
    /// place is replaced, as is a message that nobody would ever be given ([`Queue::is_released`]).
    ///
    /// # Errors
    /// [`QueueError::Full`], and transient ones: publish again, at most one is live.
    pub async fn publish_work(&self, unit: &WorkUnit, headers: &Headers) -> Result<Published> {
        let published = self.put_work(unit, headers).await?;
        self.hint(unit).await;
        Ok(published)
    }

    /// As [`Queue::publish_work`], without the hint: who releases many units hints once for all of them.
    ///
    /// # Errors
    /// As [`Queue::publish_work`].
    pub async fn put_work(&self, unit: &WorkUnit, headers: &Headers) -> Result<Published> {
        let (stream, subject) = (subject::work_stream(unit.stage), subject::work(unit));
        let put = || self.publish_unit(stream, &subject, unit, headers);
        match put().await? {
            // What keeps it out may have been done with all along.
            Published::AlreadyThere if !self.is_released(unit).await? => put().await,
            published => Ok(published),
        }
    }

    /// Whether a unit of this name waits for its release, or is with the workers as [`Queue::is_released`] says.
    ///
    /// # Errors
    /// As [`Queue::is_released`].
    pub async fn is_queued(&self, unit: &WorkUnit) -> Result<bool> {
        let (stream, subject) = (subject::intake_stream(unit.stage), subject::intake(unit));
        let which = Which::Last {
            last_by_subj: &subject,
        };
        // In this order: it leaves the intake when it is with the workers.
        Ok(self.api.get(stream, which).await?.is_some() || self.is_released(unit).await?)
    }

    /// Whether a unit of this name is with the workers of its stage: released, and neither done nor set aside.
    ///
    /// One that its consumer has done with is taken away and counts as gone. A server that is killed may keep such a message, as
    /// the state of a consumer and its stream are written one after the other: it would never be delivered again, and keep out
    /// every further unit of its name.
    ///
    /// # Errors
    /// Transient ones: ask again.
    pub async fn is_released(&self, unit: &WorkUnit) -> Result<bool> {
        let losses = self.losses();
        let (stream, subject) = (subject::work_stream(unit.stage), subject::work(unit));
        let which = Which::Last {
            last_by_subj: &subject,
        };
        let Some(live) = self.api.get(stream, which).await? else {
            return Ok(false);
        };
        let done_with = match consumer_info(&self.api, unit.stage, &unit.pool, unit.class).await {
            Ok(info) => info.ack_floor.stream_seq,
            // It waits until the operator names the pool again.
            Err(QueueError::UnknownPool { .. }) => 0,
            Err(error) => return Err(error),
        };
        if live.sequence > done_with {
            return Ok(true);
        }
        let sequence = live.sequence;
        let still = self.api.get(stream, which).await?;
        if still.is_none_or(|still| still.sequence != sequence) {
            // It was done with after it was read.
            return Ok(false);
        }
        self.take_out(stream, sequence, losses).await?;
        tracing::info!(job = %unit.key.job, stage = %unit.stage, sequence, done_with, "a unit that its consumer had done with was still there, and was removed");
        Ok(false)
    }

    /// Removes a message of a stream that was read when the connection had been lost so often. What was read before a loss may be
    /// another's by now.
    ///
    /// # Errors
    /// Transient ones: read again.
    async fn take_out(&self, stream: &str, sequence: u64, losses: u64) -> Result<()> {
        if self.losses() != losses {
            return Err(QueueError::unavailable("take out a unit"));
        }
        self.api.delete(stream, sequence).await
    }

    /// Tells idle workers that there are units of this one's stage, pool and class; once for any number of them, after the
    /// last was published.
    pub async fn hint(&self, unit: &WorkUnit) {
        const HINT: Operation = repeatable("hint that work is ready");
        let hint = subject::ready(unit.stage, &unit.pool);
        let class = Bytes::from_static(unit.class.as_str().as_bytes());
        if self.api.tell(HINT, hint, class).await.is_err() {
            // The units are durable; without the hint an idle worker finds them a second later.
            tracing::debug!("a ready hint was not sent");
        }
    }

    async fn publish_unit(
        &self,
        stream: &str,
        subject: &str,
        unit: &WorkUnit,
        headers: &Headers,
    ) -> Result<Published> {
        const PUBLISH: Operation = repeatable("publish a unit");
        let payload = encode(&unit_to_wire(unit));
        // Again after an older epoch's unit was taken out: a late publisher may put another one in its place.
        for tried in 0..REPLACED_MAX {
            let headers = to_headers(headers);
            let stored = self
                .api
                .publish(PUBLISH, subject, Some(headers), payload.clone())
                .await;
            match stored {
                Ok(_) => return Ok(Published::Stored),
                Err(error) if is_code(&error, code::STORE_FAILED) => {}
                Err(error) => return Err(error),
            }
            let losses = self.losses();
            match self.live_unit(stream, subject).await? {
                // This very message: what may have taken its place meanwhile is newer.
                Some((sequence, Some(live))) if protocol::replaces(unit, &live) => {
                    self.take_out(stream, sequence, losses).await?;
                }
                Some(_) => return Ok(Published::AlreadyThere),
                // It was taken and settled just now, and one more is no harm; or a leader refused ours for one that was never
                // stored: what it had only promised, a cluster loses with it.
                None => tokio::time::sleep(AGAIN * tried).await,
            }
        }
        Err(QueueError::Contended {
            tries: REPLACED_MAX,
        })
    }

    /// Where the message of this subject is, and its unit unless this version cannot read it.
    async fn live_unit(
        &self,
        stream: &str,
        subject: &str,
    ) -> Result<Option<(u64, Option<WorkUnit>)>> {
        let which = Which::Last {
            last_by_subj: subject,
        };
        let Some(live) = self.api.get(stream, which).await? else {
            return Ok(None);
        };
        let queued = decode::<wire::WorkUnit>("a work unit", live.payload);
        let queued = queued.and_then(|queued| unit_from_wire(&queued));
        Ok(Some((live.sequence, queued.ok())))
    }

    /// Released, unfinished units of a (stage, pool), from the consumers' own counts.
    ///
    /// # Errors
    /// [`QueueError::UnknownPool`] when the pool was not ensured, and transient ones.
    pub async fn outstanding(&self, stage: Stage, pool: &PoolName) -> Result<Outstanding> {
        self.outstanding_of(stage, pool, Class::ALL).await
    }

    /// As [`Queue::outstanding`], of these classes alone: of the others it says that there is nothing. Costs a request for each.
    ///
    /// # Errors
    /// As [`Queue::outstanding`].
    pub async fn outstanding_of(
        &self,
        stage: Stage,
        pool: &PoolName,
        classes: &[Class],
    ) -> Result<Outstanding> {
        let of = |class: Class| async move {
            if classes.contains(&class) {
                self.backlog(stage, pool, class).await
            } else {
                Ok(Backlog::default())
            }
        };
        let (stat, urgent, routine, bulk) = futures::try_join!(
            of(Class::Stat),
            of(Class::Urgent),
            of(Class::Routine),
            of(Class::Bulk)
        )?;
        Ok(Outstanding {
            stat,
            urgent,
            routine,
            bulk,
        })
    }

    /// Units of one (stage, pool, class) with workers, those handed back for later included, and how many may be; `None` for any
    /// number.
    ///
    /// # Errors
    /// As [`Queue::outstanding`].
    pub(crate) async fn places(&self, unit: &WorkUnit) -> Result<(u64, Option<u64>)> {
        let info = consumer_info(&self.api, unit.stage, &unit.pool, unit.class).await?;
        let most = u64::try_from(info.config.max_ack_pending).ok();
        Ok((info.num_ack_pending, most.filter(|most| *most > 0)))
    }

    async fn backlog(&self, stage: Stage, pool: &PoolName, class: Class) -> Result<Backlog> {
        let info = consumer_info(&self.api, stage, pool, class).await?;
        Ok(Backlog {
            waiting: info.num_pending,
            in_flight: info.num_ack_pending,
        })
    }
}

async fn consumer_info(
    api: &crate::api::Api,
    stage: Stage,
    pool: &PoolName,
    class: Class,
) -> Result<ConsumerInfo> {
    const INFO: Operation = repeatable("look at a consumer");
    let (stream, durable) = (subject::work_stream(stage), subject::durable(pool, class));
    let method = format!("CONSUMER.INFO.{stream}.{durable}");
    match api.call(INFO, &method, &json!({})).await {
        Err(error)
            if is_code(&error, code::CONSUMER_NOT_FOUND)
                || is_code(&error, code::STREAM_NOT_FOUND) =>
        {
            Err(QueueError::UnknownPool {
                stage,
                pool: pool.clone(),
                class,
            })
        }
        other => other,
    }
}

/// Fails with [`QueueError::UnknownPool`] when the server is up and knows no such consumer.
pub(crate) async fn check_consumer(
    api: &crate::api::Api,
    stage: Stage,
    pool: &PoolName,
    class: Class,
) -> Result<()> {
    consumer_info(api, stage, pool, class).await.map(|_| ())
}

fn intake_entry(stream: &'static str, message: FeedMessage) -> Result<IntakeEntry> {
    let sequence = message.sequence;
    let unit = decode::<wire::WorkUnit>("a work unit", message.payload)
        .and_then(|unit| unit_from_wire(&unit))
        .map_err(|source| QueueError::NoIntake {
            stream,
            sequence,
            source: Box::new(source),
        })?;
    Ok(IntakeEntry {
        unit,
        sequence,
        headers: from_headers(message.headers.as_ref()),
        stored_at: message.stored_at,
    })
}

#[cfg(test)]
mod tests {
    use anyhow::ensure;
    use medfleet_testkit::{NatsServer, wait_until};

    use super::*;
    use crate::QueueConfig;
    use crate::wire::samples;

    /// Longest wait for anything that must come.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// A server that did not sync may have given the place of what was read to another job's unit.
    #[tokio::test]
    async fn nothing_is_taken_out_that_was_read_before_a_loss() -> anyhow::Result<()> {
        let mut server = NatsServer::start().await?;
        let config = QueueConfig::at(server.url());
        let clock = std::sync::Arc::new(|| UnixMillis(0));
        let queue = Queue::connect(&config, clock).await?;
        queue.ensure(&[]).await?;
        let unit = samples::unit(Stage::Encode, 0);
        queue.publish_intake(&unit, &Vec::new()).await?;
        let (stream, read_at) = (subject::intake_stream(unit.stage), queue.losses());
        server.restart().await?;
        wait_until(PATIENCE, "the connection to be back", async || {
            (queue.losses() > read_at && queue.is_connected()).then_some(())
        })
        .await?;
        ensure!(queue.take_out(stream, 1, read_at).await.is_err());
        let waiting = wait_until(PATIENCE, "an answer", async || {
            queue.waiting_for_release(unit.stage).await.ok()
        });
        ensure!(waiting.await? == 1);
        queue.take_out(stream, 1, queue.losses()).await?;
        ensure!(queue.waiting_for_release(unit.stage).await? == 0);
        Ok(())
    }
}
