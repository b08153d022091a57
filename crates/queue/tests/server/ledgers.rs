//! Pending accepts, uploads, leases, dead letters by the page, audit.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use medfleet_core::{Class, Failure, FailureReason, Stage, TenantId, UploadId};
use medfleet_proto::work::v1::{AuditEntry, UploadRecord};
use medfleet_queue::{AUDIT_STREAM, QueueConfig, Updated};
use medfleet_testkit::{self as kit, FaultyLink, NatsServer, wait_until};
use serde_json::json;

use crate::upgrade::call;
use crate::{PATIENCE, short, start, start_with};

/// Longer than a test may take, in milliseconds.
const HOUR: u64 = 3_600_000;

#[tokio::test]
async fn the_server_says_what_time_it_is() -> Result<()> {
    let (_server, queue) = start().await?;
    let before = kit::clock()();
    let said = queue.time().await?;
    let after = kit::clock()();
    // It has this machine's clock.
    ensure!(
        before <= said && said <= after,
        "{before:?}, {said:?}, {after:?}"
    );
    Ok(())
}

#[tokio::test]
async fn accepts_are_swept_by_age() -> Result<()> {
    let (_server, queue) = start().await?;
    ensure!(queue.list_pending(Duration::ZERO).await?.is_empty());
    let keys: Vec<_> = (0..300_u16)
        .map(|n| {
            let mut key = kit::record(0, 1).0;
            let mut bytes = [0; 16];
            bytes[..2].copy_from_slice(&n.to_be_bytes());
            key.job = medfleet_core::JobId::from_bytes(bytes);
            key
        })
        .collect();
    let mut noted = Vec::new();
    for key in &keys {
        noted.push(queue.put_pending(key).await?);
    }
    let again = queue.put_pending(&keys[0]).await?;
    ensure!(again > noted[0]);
    // The note of one accept; the one that came after it stays.
    let losses = queue.losses();
    queue.remove_pending(noted[0], losses).await?;
    let hour = Duration::from_secs(3600);
    ensure!(queue.list_pending(hour).await?.is_empty());
    queue.remove_pending(noted[7], losses).await?;
    queue.remove_pending(noted[7], losses).await?;
    let mut found = wait_until(PATIENCE, "the accepts", async || {
        let found = queue.list_pending(Duration::ZERO).await.ok()?;
        (found.len() == 299).then_some(found)
    })
    .await?;
    found.sort();
    let found_keys: Vec<_> = found.iter().map(|(key, _)| key).collect();
    ensure!(!found_keys.contains(&&keys[7]) && found[0] == (keys[0].clone(), again));
    Ok(())
}

/// A server that did not sync may have given its place to the note of another job.
#[tokio::test]
async fn a_note_that_was_listed_before_a_loss_stays() -> Result<()> {
    let (mut server, queue) = start().await?;
    let (key, read_at) = (kit::record(1, 1).0, queue.losses());
    let noted = queue.put_pending(&key).await?;
    server.restart().await?;
    wait_until(PATIENCE, "the connection to be back", async || {
        (queue.losses() > read_at && queue.is_connected()).then_some(())
    })
    .await?;
    queue.remove_pending(noted, read_at).await?;
    let listed = wait_until(PATIENCE, "an answer", async || {
        queue.list_pending(Duration::ZERO).await.ok()
    });
    ensure!(listed.await? == [(key, noted)]);
    queue.remove_pending(noted, queue.losses()).await?;
    ensure!(queue.list_pending(Duration::ZERO).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn an_accept_is_noted_over_the_one_before_on_its_sheet() -> Result<()> {
    let (_server, queue) = start().await?;
    let (first, second) = (kit::record(1, 1).0, kit::record(2, 1).0);
    let before = queue.note_accept(("0a", 1), &first).await?;
    let after = queue.note_accept(("0a", 1), &second).await?;
    let noted = [(second, after)];
    ensure!(queue.list_pending(Duration::ZERO).await? == noted);
    // Whoever has listed the one before removes nothing.
    queue.remove_pending(before, queue.losses()).await?;
    ensure!(queue.list_pending(Duration::ZERO).await? == noted);
    let hour = Duration::from_secs(3600);
    ensure!(queue.list_pending(hour).await?.is_empty());
    ensure!(queue.list_aside(Duration::ZERO).await?.is_empty());
    // Of another process, and of a replay.
    queue.note_accept(("0b", 1), &first).await?;
    queue.put_pending(&first).await?;
    ensure!(queue.list_pending(Duration::ZERO).await?.len() == 3);
    Ok(())
}

#[tokio::test]
async fn an_upload_grows_by_compare_and_set() -> Result<()> {
    let (_server, queue) = start().await?;
    let (tenant, id) = (kit::tenant(), UploadId::from_bytes([5; 16]));
    let mut record = UploadRecord {
        total_bytes: 10,
        ..UploadRecord::default()
    };
    ensure!(queue.upload(&tenant, &id).await?.is_none());
    let first = queue.create_upload(&tenant, &id, &record).await?;
    ensure!(queue.create_upload(&tenant, &id, &record).await.is_err());
    record.committed_bytes = 4;
    record.part_digests.push(vec![7; 32].into());
    let updated = queue.update_upload(&tenant, &id, &record, first).await?;
    let Updated::Updated(second) = updated else {
        anyhow::bail!("{updated:?}");
    };
    ensure!(queue.update_upload(&tenant, &id, &record, first).await? == Updated::Conflict);
    ensure!(queue.upload(&tenant, &id).await? == Some((record, second)));
    Ok(())
}

#[tokio::test]
async fn an_upload_is_forgotten_in_its_time() -> Result<()> {
    let (_server, queue) = start_with(|config| config.upload_ttl = short(500)).await?;
    let (tenant, id) = (kit::tenant(), UploadId::from_bytes([5; 16]));
    let record = UploadRecord::default();
    queue.create_upload(&tenant, &id, &record).await?;
    wait_until(PATIENCE, "the upload to be forgotten", async || {
        queue
            .upload(&tenant, &id)
            .await
            .ok()?
            .is_none()
            .then_some(())
    })
    .await
}

#[tokio::test]
async fn a_lease_has_one_holder_until_it_is_given_up() -> Result<()> {
    let (_server, queue) = start_with(|config| config.lease_ttl = short(HOUR)).await?;
    let first = queue.try_lease("dispatch", "a").await?;
    let mut first = first.context("nobody holds it")?;
    ensure!(queue.try_lease("dispatch", "b").await?.is_none());
    ensure!(first.renew().await?);
    ensure!(queue.try_lease("dispatch", "b").await?.is_none());
    first.release().await?;
    ensure!(queue.try_lease("dispatch", "b").await?.is_some());
    Ok(())
}

/// A server that did not sync may have given it to another meanwhile.
#[tokio::test]
async fn a_lease_from_before_a_loss_ends_by_itself() -> Result<()> {
    let (mut server, queue) = start_with(|config| config.lease_ttl = short(HOUR)).await?;
    let held = queue.try_lease("dispatch", "a").await?;
    let (held, before) = (held.context("nobody holds it")?, queue.losses());
    server.restart().await?;
    wait_until(PATIENCE, "the connection to be back", async || {
        (queue.losses() > before && queue.is_connected()).then_some(())
    })
    .await?;
    held.release().await?;
    let asked = wait_until(PATIENCE, "an answer", async || {
        queue.try_lease("dispatch", "b").await.ok()
    });
    ensure!(asked.await?.is_none(), "it was taken from whoever has it");
    Ok(())
}

/// As a cluster does when most of its servers were started again before they had caught up: who is connected to the others
/// hears nothing of it.
#[tokio::test]
async fn a_lease_that_was_forgotten_takes_nothing_from_another_name() -> Result<()> {
    let (server, queue) = start_with(|config| config.lease_ttl = short(HOUR)).await?;
    let lost = queue.try_lease("keeper", "a").await?;
    let lost = lost.context("nobody holds it")?;
    let client = async_nats::connect(server.url()).await?;
    call(&client, "STREAM.DELETE.KV_LEASES", &json!({})).await?;
    queue.ensure(&[]).await?;
    // It has the sequence that the lost one had.
    let held = queue.try_lease("dispatch", "b").await?;
    let mut held = held.context("nobody holds it")?;
    lost.release().await?;
    ensure!(queue.try_lease("dispatch", "c").await?.is_none());
    ensure!(held.renew().await?);
    Ok(())
}

#[tokio::test]
async fn a_lease_that_is_not_renewed_passes_on() -> Result<()> {
    let (_server, queue) = start_with(|config| config.lease_ttl = short(500)).await?;
    let first = queue.try_lease("dispatch", "a").await?;
    let mut first = first.context("nobody holds it")?;
    let mut second = wait_until(PATIENCE, "the lease to end", async || {
        queue.try_lease("dispatch", "b").await.ok()?
    })
    .await?;
    ensure!(!first.renew().await?, "two holders");
    // Giving up what was lost takes nothing from the new holder; its own time may be over by now.
    first.release().await?;
    let third = queue.try_lease("dispatch", "c").await?;
    ensure!(third.is_none() || !second.renew().await?);
    Ok(())
}

/// Sequence of a lease's latest writing.
async fn written(client: &async_nats::Client, name: &str) -> Option<u64> {
    let last = json!({ "last_by_subj": format!("$KV.LEASES.{name}") });
    let found = call(client, "STREAM.MSG.GET.KV_LEASES", &last).await.ok()?;
    found["message"]["seq"].as_u64()
}

#[tokio::test]
async fn a_lease_whose_renewal_lost_its_answer_is_renewed_anew() -> Result<()> {
    let (server, queue) = start_with(|config| config.lease_ttl = short(HOUR)).await?;
    let held = queue.try_lease("dispatch", "a").await?;
    let mut held = held.context("nobody holds it")?;
    let client = async_nats::connect(server.url()).await?;
    // As the lost one has written it.
    client.publish("$KV.LEASES.dispatch", "a".into()).await?;
    client.flush().await?;
    let lost = wait_until(PATIENCE, "the lost renewal", async || {
        written(&client, "dispatch").await.filter(|last| *last > 1)
    })
    .await?;
    ensure!(held.renew().await?);
    // It lasts from now on, and not from when the lost one was written.
    ensure!(written(&client, "dispatch").await == Some(lost + 1));
    ensure!(held.renew().await?);
    Ok(())
}

/// With request timeouts as long as by default, half of what a lease lasts.
#[tokio::test]
async fn one_lost_renewal_gives_no_lease_away() -> Result<()> {
    let server = NatsServer::start().await?;
    let link = FaultyLink::to(server.address()).await?;
    let queue = kit::queue(&QueueConfig {
        lease_ttl: short(6_000),
        request_timeout: short(3_000),
        ..kit::config(&link.nats_url())
    })
    .await?;
    let held = queue.try_lease("dispatch", "a").await?;
    let mut held = held.context("nobody holds it")?;
    let client = async_nats::connect(server.url()).await?;
    let begun = written(&client, "dispatch").await.context("it is held")?;
    let renewed = async |after: u64| {
        wait_until(PATIENCE, "a renewal", async || {
            written(&client, "dispatch")
                .await
                .filter(|last| *last > after)
        })
        .await
    };
    link.lose_answers();
    let goes_on = async {
        let lost = renewed(begun).await?;
        link.mend();
        renewed(lost).await
    };
    tokio::select! {
        () = held.hold() => bail!("it was given up"),
        again = goes_on => again.map(drop),
    }
}

#[tokio::test]
async fn dead_letters_come_in_pages() -> Result<()> {
    let (_server, queue) = start().await?;
    let failure = Failure::new(FailureReason::InputRefused, "x");
    for seed in 0..7 {
        let unit = kit::unit(&kit::record(seed, 1).0, Stage::Decode, Class::Bulk, 0);
        let letter = medfleet_queue::dead_letter(&unit, &failure, 1);
        queue.publish_dead(&letter).await?;
    }
    let mut sequences = Vec::new();
    loop {
        let after = sequences.last().copied().unwrap_or(0);
        let page = queue.dead_letters(None, after, 3).await?;
        if page.is_empty() {
            break;
        }
        sequences.extend(page.into_iter().map(|(sequence, _)| sequence));
    }
    ensure!(sequences == [1, 2, 3, 4, 5, 6, 7], "{sequences:?}");
    Ok(())
}

/// It names its job by its subject, and hides no other.
#[tokio::test]
async fn a_dead_letter_that_cannot_be_read_is_listed_and_discarded() -> Result<()> {
    let (server, queue) = start().await?;
    let (broken, _) = kit::record(1, 1);
    let client = async_nats::connect(server.url()).await?;
    let garbage: &[u8] = &[0x0a, 0xff];
    let stored = client
        .request(format!("dead.{broken}.3"), garbage.into())
        .await?;
    let stored = String::from_utf8_lossy(&stored.payload).into_owned();
    ensure!(stored.contains("\"seq\""), "{stored}");
    let whole = kit::unit(&kit::record(2, 1).0, Stage::Decode, Class::Bulk, 0);
    let failure = Failure::new(FailureReason::InputRefused, "x");
    let letter = medfleet_queue::dead_letter(&whole, &failure, 1);
    queue.publish_dead(&letter).await?;

    let letters = queue.dead_letters(Some(&broken.tenant), 0, 10).await?;
    let [(first, unreadable), (_, last)] = &letters[..] else {
        anyhow::bail!("{letters:?}");
    };
    ensure!(*last == letter, "{last:?}");
    ensure!(unreadable.message.contains("cannot be read"));
    let unit = unreadable.unit.as_ref().context("its subject has one")?;
    ensure!(unit.tenant == broken.tenant.as_str() && unit.job == broken.job.as_str());
    ensure!(unit.epoch == 3, "{unit:?}");
    ensure!(queue.dead_letter(*first).await?.as_ref() == Some(unreadable));
    ensure!(queue.dead_letter_of(&broken, 3).await?.as_ref() == letters.first());
    ensure!(queue.dead_letter_of(&broken, 2).await?.is_none());
    queue.discard_dead(&broken, 3, *first).await?;
    ensure!(queue.dead_letters(None, 0, 10).await?.len() == 1);
    Ok(())
}

/// A server that did not sync has forgotten it while it was being put away, and has given its place to another job's.
#[tokio::test]
async fn a_dead_letter_that_was_forgotten_takes_no_other_with_it() -> Result<()> {
    let (server, queue) = start().await?;
    let keys = [1, 2].map(|seed| kit::record(seed, 1).0);
    let client = async_nats::connect(server.url()).await?;
    let failure = Failure::new(FailureReason::InputRefused, "x");
    for key in &keys {
        call(&client, "STREAM.DELETE.DEAD", &json!({})).await?;
        queue.ensure(&[]).await?;
        let unit = kit::unit(key, Stage::Decode, Class::Bulk, 0);
        let letter = medfleet_queue::dead_letter(&unit, &failure, 1);
        queue.publish_dead(&letter).await?;
    }
    let [forgotten, other] = &keys;
    for _ in 0..2 {
        queue.discard_dead(forgotten, 0, 1).await?;
    }
    let left = queue.dead_letter_of(other, 0).await?;
    ensure!(left.is_some_and(|(sequence, _)| sequence == 1));
    Ok(())
}

#[tokio::test]
async fn the_audit_takes_entries() -> Result<()> {
    let (_server, queue) = start().await?;
    let entry = AuditEntry {
        action: "submit".to_owned(),
        ..AuditEntry::default()
    };
    for _ in 0..3 {
        queue.audit(&kit::tenant(), &entry).await?;
    }
    Ok(())
}

/// As shipped no tenant, and no four of them, fill it up to where submits are refused.
#[tokio::test]
async fn the_audits_of_four_tenants_leave_the_reserve_alone() -> Result<()> {
    let (_server, queue) = start().await?;
    let tenant = TenantId::new("university-hospital-east")?;
    let (key, record) = kit::record(1, 1);
    let entry = AuditEntry {
        time_unix_millis: record.expires.0,
        action: "read_result".to_owned(),
        job: key.job.to_string(),
        actor: "workstation-of-radiology-reading-room-12".to_owned(),
        ..AuditEntry::default()
    };
    for _ in 0..10 {
        queue.audit(&tenant, &entry).await?;
    }
    let usage = queue.usage().await?;
    let audit = usage.iter().find(|stream| stream.stream == AUDIT_STREAM);
    let mut audit = audit.context("no audit")?.clone();
    ensure!(audit.messages == 10, "{audit:?}");
    let lines = 4 * QueueConfig::default().audit_lines();
    audit.bytes = audit.bytes / audit.messages * lines;
    ensure!(!audit.is_at_reserve(), "{lines} lines: {audit:?}");
    Ok(())
}
