//! kill -9 of the server, and cut links: everything fails in time, resumes by itself, and loses and repeats nothing.

use std::time::Duration;

use anyhow::{Context, Error, Result, ensure};
use futures::StreamExt;
use medfleet_core::setting::DurationText;
use medfleet_core::{Class, Stage, Verdict, WorkUnit};
use medfleet_queue::{Published, Queue};
use medfleet_testkit::{self as kit, FaultyLink, NatsServer, wait_until};
use serde_json::json;

use crate::units::{is_settled, next};
use crate::upgrade::call;
use crate::{PATIENCE, short, start, start_with};

fn unit(seed: u8) -> WorkUnit {
    kit::unit(&kit::record(seed, 1).0, Stage::Encode, Class::Routine, 0)
}

async fn wait_connected(queue: &Queue) -> Result<()> {
    wait_until(PATIENCE, "the connection", async || {
        queue.is_connected().then_some(())
    })
    .await
}

#[tokio::test]
async fn operations_fail_in_time_while_the_server_is_away() -> Result<()> {
    let (mut server, patient) = start().await?;
    let (key, record) = kit::record(1, 1);
    let unit = unit(1);
    // A disk that is busy takes its time for this.
    patient.create_record(&key, &record).await?;
    let mut config = kit::config(&server.url());
    config.request_timeout = short(500);
    let queue = Queue::connect(&config, kit::clock()).await?;
    server.kill9().await?;
    let headers = Vec::new();
    let all = async {
        futures::join!(
            async { queue.publish_work(&unit, &headers).await.map(|_| ()) },
            async { queue.record(&key).await.map(|_| ()) },
            async { queue.list_pending(Duration::ZERO).await.map(|_| ()) },
            async { queue.dead_letters(None, 0, 3).await.map(|_| ()) },
            async { queue.intake(Stage::Encode).await.map(|_| ()) },
        )
    };
    // Intake makes several requests, each with its own limit. Where nothing is said a client waits for ten seconds.
    let results = tokio::time::timeout(Duration::from_secs(9), all).await?;
    for result in [results.0, results.1, results.2, results.3, results.4] {
        let error = result.err().context("it worked without a server")?;
        ensure!(error.is_transient(), "{error:?}");
    }
    ensure!(!queue.is_connected());
    server.restart().await?;
    wait_connected(&queue).await?;
    let found = wait_until(PATIENCE, "the record", async || {
        queue.record(&key).await.ok()
    })
    .await?;
    ensure!(found.is_some_and(|(found, _)| found == record));
    Ok(())
}

#[tokio::test]
async fn feeds_resume_without_loss_or_repeat() -> Result<()> {
    let (mut server, queue) = start_with(|config| config.request_timeout = short(2000)).await?;
    let (mut intake, mut events) = (queue.intake(Stage::Encode).await?, queue.events().await?);
    let mut expected = Vec::new();
    let (mut entered, mut told) = (Vec::new(), Vec::new());
    for round in 0..3_u8 {
        for seed in round * 10..round * 10 + 10 {
            let (key, record) = kit::record(seed, 1);
            expected.push(key.clone());
            // Published again until confirmed, as every caller does.
            wait_until(PATIENCE, "publishing", async || {
                queue.publish_intake(&unit(seed), &Vec::new()).await.ok()?;
                queue.publish_event(&key, &record).await.ok()
            })
            .await?;
            if seed % 10 == 6 {
                server.restart().await?;
            }
        }
        while entered.len() < expected.len() {
            let entry = tokio::time::timeout(PATIENCE, intake.next()).await?;
            entered.push(entry.context("intake ended")??.unit.key);
        }
        while told.len() < expected.len() {
            let event = tokio::time::timeout(PATIENCE, events.next()).await?;
            told.push(event.context("events ended")??.0);
        }
        server.restart().await?;
    }
    ensure!(entered == expected, "intake: {entered:?}");
    ensure!(told == expected, "events: {told:?}");
    Ok(())
}

#[tokio::test]
async fn work_goes_on_after_a_restart_and_is_done_once_acknowledged() -> Result<()> {
    let (mut server, queue) = start_with(|config| config.ack_wait = short(2000)).await?;
    let mut puller = queue.puller(Stage::Encode, kit::pool());
    for seed in 0..10 {
        queue.publish_work(&unit(seed), &Vec::new()).await?;
    }
    let mut done = std::collections::BTreeSet::new();
    // Acknowledged without an answer: such a unit comes again only if the server has not heard it.
    let mut perhaps_done = std::collections::BTreeSet::new();
    let mut held = 0;
    loop {
        let settled = done.union(&perhaps_done).count();
        let over = wait_until(PATIENCE, "nothing outstanding", async || {
            is_settled(&queue).await.ok().filter(|()| settled == 10)
        });
        let delivery = tokio::select! {
            over = over => break over?,
            delivery = puller.next() => delivery?,
        };
        held += 1;
        if held % 4 == 2 {
            // The server dies with the unit in our hands.
            server.restart().await?;
        }
        let seed = delivery.unit.key.job.as_str()[..2].to_owned();
        match delivery.settle(Verdict::Done).await {
            Ok(()) => ensure!(done.insert(seed), "acknowledged, and came again"),
            Err(error) => {
                ensure!(error.is_transient(), "{error:?}");
                perhaps_done.insert(seed);
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_idle_puller_survives_a_restart() -> Result<()> {
    let (mut server, queue) = start_with(|config| config.request_timeout = short(2000)).await?;
    let mut puller = queue.puller(Stage::Encode, kit::pool());
    let idle = tokio::time::timeout(Duration::from_millis(200), puller.next()).await;
    ensure!(idle.is_err());
    server.restart().await?;
    let published = wait_until(PATIENCE, "publishing", async || {
        queue.publish_work(&unit(1), &Vec::new()).await.ok()
    });
    let (delivery, published) =
        futures::join!(tokio::time::timeout(PATIENCE, puller.next()), published);
    // A publish whose confirmation was lost is found to be there already.
    ensure!(matches!(
        published?,
        Published::Stored | Published::AlreadyThere
    ));
    delivery??.settle(Verdict::Done).await?;
    Ok(())
}

#[tokio::test]
async fn a_cut_link_is_like_a_restart() -> Result<()> {
    let server = NatsServer::start().await?;
    let link = FaultyLink::to(server.address()).await?;
    let queue = kit::queue(&kit::config(&link.nats_url())).await?;
    let mut intake = queue.intake(Stage::Encode).await?;
    queue.publish_intake(&unit(1), &Vec::new()).await?;
    link.cut();
    wait_until(PATIENCE, "the loss to be noticed", async || {
        (!queue.is_connected()).then_some(())
    })
    .await?;
    let error = queue
        .publish_intake(&unit(2), &Vec::new())
        .await
        .err()
        .context("it worked through a cut link")?;
    ensure!(error.is_transient(), "{error:?}");
    link.mend();
    wait_connected(&queue).await?;
    wait_until(PATIENCE, "publishing", async || {
        queue.publish_intake(&unit(2), &Vec::new()).await.ok()
    })
    .await?;
    for seed in [1, 2] {
        let entry = tokio::time::timeout(PATIENCE, intake.next()).await?;
        let entry = entry.context("intake ended")??;
        ensure!(entry.unit == unit(seed), "{entry:?}");
    }
    // Slow, but working.
    link.delay(Duration::from_millis(20));
    ensure!(queue.publish_intake(&unit(3), &Vec::new()).await? == Published::Stored);
    Ok(())
}

/// Its server has forgotten the latest writes, as one that did not sync does, and has given their places to others.
#[tokio::test]
async fn a_removal_whose_answer_was_lost_takes_nothing_that_came_since() -> Result<()> {
    let server = NatsServer::start().await?;
    let link = FaultyLink::to(server.address()).await?;
    let mut config = kit::config(&link.nats_url());
    config.request_timeout = DurationText::from_secs(PATIENCE.as_secs());
    let queue = kit::queue(&config).await?;
    let other = kit::queue(&kit::config(&server.url())).await?;
    let client = async_nats::connect(server.url()).await?;
    queue.publish_intake(&unit(1), &Vec::new()).await?;
    link.lose_answers();
    let forgets = async {
        wait_until(PATIENCE, "the removal", async || {
            let waiting = other.waiting_for_release(Stage::Encode).await.ok()?;
            (waiting == 0).then_some(())
        })
        .await?;
        call(&client, "STREAM.DELETE.INTAKE_ENCODE", &json!({})).await?;
        other.ensure(&[kit::pool()]).await?;
        let stored = other.publish_intake(&unit(2), &Vec::new()).await?;
        ensure!(stored == Published::Stored);
        ensure!(other.intake_end(Stage::Encode).await? == 1);
        link.mend();
        Ok::<_, Error>(())
    };
    let (removed, forgotten) = futures::join!(queue.remove_intake(Stage::Encode, 1), forgets);
    forgotten?;
    let error = removed.err().context("it was asked for again")?;
    ensure!(error.is_transient(), "{error:?}");
    ensure!(other.waiting_for_release(Stage::Encode).await? == 1);
    Ok(())
}

/// A killed server may come back so: the consumer's state was on disk already, the removal from the stream was not.
#[tokio::test]
async fn a_unit_that_its_consumer_has_done_with_keeps_out_no_other() -> Result<()> {
    let (server, queue) = start().await?;
    let client = async_nats::connect(server.url()).await?;
    let unit = unit(1);
    ensure!(!queue.is_queued(&unit).await?);
    queue.publish_intake(&unit, &Vec::new()).await?;
    ensure!(queue.is_queued(&unit).await? && !queue.is_released(&unit).await?);
    queue.publish_work(&unit, &Vec::new()).await?;
    queue.remove_intake(Stage::Encode, 1).await?;
    ensure!(queue.is_queued(&unit).await?, "it waits for a worker");

    let consumer = format!("{}_{}", kit::pool(), unit.class);
    let reset = format!("CONSUMER.RESET.WORK_ENCODE.{consumer}");
    call(&client, &reset, &json!({ "seq": 2 })).await?;
    is_settled(&queue).await?;
    ensure!(!queue.is_queued(&unit).await?, "nobody is ever given it");
    queue.publish_work(&unit, &Vec::new()).await?;
    call(&client, &reset, &json!({ "seq": 3 })).await?;
    is_settled(&queue).await?;
    ensure!(queue.publish_work(&unit, &Vec::new()).await? == Published::Stored);
    ensure!(queue.publish_work(&unit, &Vec::new()).await? == Published::AlreadyThere);
    let mut puller = queue.puller(Stage::Encode, kit::pool());
    let delivery = next(&mut puller).await?;
    ensure!(delivery.unit == unit);
    ensure!(queue.is_released(&unit).await?, "a worker has it");
    delivery.settle(Verdict::Done).await?;
    ensure!(!queue.is_queued(&unit).await?);
    Ok(())
}
