//! Records: idempotent create, compare-and-set under contention, events of moves, paging.

use std::fs;

use anyhow::{Result, bail, ensure};
use futures::future::join_all;
use futures::{FutureExt, StreamExt};
use medfleet_core::{
    Class, Digest, Failure, FailureReason, JobId, JobKey, JobState, Move, Refused, Stage, TenantId,
    WorkUnit,
};
use medfleet_queue::{Applied, Changed, Created, Queue, QueueError, Replicas, Seen, Updated, wire};
use medfleet_testkit as kit;
use serde_json::json;

use crate::upgrade::call;
use crate::{PATIENCE, start};

fn begin(stage: Stage) -> Move {
    Move::Start {
        stage,
        unit: 0,
        retries_max: 3,
    }
}

async fn step(queue: &Queue, key: &JobKey, step: Move) -> Result<Applied> {
    Ok(queue.apply(key, Some(0), &step, kit::clock()()).await?)
}

#[tokio::test]
async fn a_fleet_has_records_from_its_first_job_on() -> Result<()> {
    let server = kit::NatsServer::start().await?;
    let queue = Queue::connect(&kit::config(&server.url()), kit::clock()).await?;
    ensure!(!queue.has_records().await?, "nothing was made yet");
    queue.ensure(&[kit::pool()]).await?;
    ensure!(!queue.has_records().await?, "nothing was accepted yet");
    let (key, record) = kit::record(1, 1);
    queue.create_record(&key, &record).await?;
    ensure!(queue.has_records().await?);
    Ok(())
}

#[tokio::test]
async fn jobs_that_nobody_knows_are_looked_for_together_and_one_that_is_there_is_found()
-> Result<()> {
    let server = kit::NatsServer::start_with(kit::NATS_DEFAULT, true).await?;
    let queue = kit::queue(&kit::config(&server.url())).await?;
    let jobs: Vec<_> = (1..=16).map(|seed| kit::record(seed, 1)).collect();
    let look = async || join_all(jobs.iter().map(|(key, _)| queue.rare_record(key))).await;
    for found in look().await {
        ensure!(found?.is_none());
    }
    let log = fs::read_to_string(server.log())?;
    let is_look = |line: &&str| line.contains("[PUB $JS.API.DIRECT.GET.KV_JOBS_0 ");
    let looks = log.lines().filter(is_look).count();
    ensure!(
        looks == 2,
        "the first by itself, all others together: {looks}"
    );
    let (key, record) = &jobs[7];
    queue.create_record(key, record).await?;
    for (found, (job, _)) in look().await.into_iter().zip(&jobs) {
        let found = found?.map(|(record, _)| record);
        ensure!(
            found.as_ref() == Some(record).filter(|_| job == key),
            "{found:?}"
        );
    }
    queue.publish_event(key, record).await?;
    let told = join_all(jobs.iter().map(|(key, _)| queue.may_be_told(key))).await;
    // The others were asked for with it, and each has to look for itself.
    ensure!(!told[0] && told[7], "{told:?}");
    Ok(())
}

/// A caller may be gone while it asks, for itself or for others too.
#[tokio::test]
async fn who_waits_for_the_look_of_one_that_is_dropped_looks_alone() -> Result<()> {
    let (_server, queue) = start().await?;
    let jobs: Vec<_> = (1..=4).map(|seed| kit::record(seed, 1)).collect();
    let (key, record) = &jobs[3];
    queue.create_record(key, record).await?;
    let looks = jobs.iter().map(|(job, _)| queue.rare_record(job).boxed());
    let mut looks: Vec<_> = looks.collect();
    for look in &mut looks {
        ensure!(look.now_or_never().is_none(), "answered without a server");
    }
    drop(looks.remove(0));
    // Now the second one asks, for all that are left.
    let second = looks[0].as_mut().now_or_never();
    ensure!(second.is_none(), "answered without a server");
    drop(looks.remove(0));
    let found = tokio::time::timeout(PATIENCE, join_all(looks)).await?;
    for (found, (job, _)) in found.into_iter().zip(&jobs[2..]) {
        let found = found?.map(|(record, _)| record);
        ensure!(
            found.as_ref() == Some(record).filter(|_| job == key),
            "{found:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn creating_twice_finds_the_first() -> Result<()> {
    let (_server, queue) = start().await?;
    let (key, record) = kit::record(1, 1);
    ensure!(queue.record(&key).await?.is_none());
    let Created::Created(revision) = queue.create_record(&key, &record).await? else {
        bail!("not created");
    };
    let mut other = record.clone();
    other.body = Digest::new([9; 32]);
    let found = queue.create_record(&key, &other).await?;
    ensure!(
        found == Created::Exists(record.clone(), revision),
        "{found:?}"
    );
    ensure!(queue.record(&key).await? == Some((record.clone(), revision)));
    let updated = queue.update_record(&key, &record, revision).await?;
    ensure!(matches!(updated, Updated::Updated(newer) if newer > revision));
    let late = queue.update_record(&key, &record, revision).await?;
    ensure!(late == Updated::Conflict);
    Ok(())
}

#[tokio::test]
async fn a_cluster_is_read_through_its_leader() -> Result<()> {
    let (server, queue) = start().await?;
    let (key, record) = kit::record(1, 1);
    queue.create_record(&key, &record).await?;
    queue.publish_event(&key, &record).await?;
    // One server only, so the streams have one replica; the reads are those of three.
    let mut config = kit::config(&server.url());
    config.replicas = Replicas::Three;
    let reader = Queue::connect(&config, kit::clock()).await?;
    let read = reader.record(&key).await?;
    ensure!(read.is_some_and(|(read, _)| read == record));
    ensure!(reader.record(&kit::record(2, 1).0).await?.is_none());
    let event = reader.next_event(&key, 0).await?;
    ensure!(event.is_some() && event == queue.next_event(&key, 0).await?);
    Ok(())
}

#[tokio::test]
async fn a_record_that_breaks_an_invariant_is_not_stored() -> Result<()> {
    let (_server, queue) = start().await?;
    let (key, mut record) = kit::record(1, 1);
    record.state = JobState::Completed;
    let refused = queue.create_record(&key, &record).await;
    ensure!(
        matches!(refused, Err(QueueError::Internal { .. })),
        "{refused:?}"
    );
    record = kit::record(1, 1).1;
    record.model = "m".repeat(2000);
    let refused = queue.create_record(&key, &record).await;
    ensure!(
        matches!(refused, Err(QueueError::TooLarge { .. })),
        "{refused:?}"
    );
    ensure!(queue.record(&key).await?.is_none());
    Ok(())
}

fn preprocessed() -> Move {
    Move::Preprocessed {
        frames: Digest::new([7; 32]),
        chunks: 2,
        frame_count: 2,
    }
}

#[tokio::test]
async fn moves_are_applied_and_told_once() -> Result<()> {
    let (_server, queue) = start().await?;
    let (key, record) = kit::record(2, 2);
    ensure!(step(&queue, &key, Move::Cancel).await? == Applied::Missing);
    queue.create_record(&key, &record).await?;
    queue.publish_event(&key, &record).await?;
    step(&queue, &key, begin(Stage::Preprocess)).await?;
    // A second start changes the count of starts only: no event.
    step(&queue, &key, begin(Stage::Preprocess)).await?;
    step(&queue, &key, preprocessed()).await?;
    step(&queue, &key, begin(Stage::Encode)).await?;
    for chunk in [1, 0, 1] {
        step(&queue, &key, Move::ChunkEncoded { chunk }).await?;
    }
    step(&queue, &key, begin(Stage::Decode)).await?;
    step(&queue, &key, begin(Stage::Decode)).await?;
    let result = Digest::new([8; 32]);
    let fenced = step(&queue, &key, Move::Complete { attempt: 1, result }).await?;
    ensure!(
        matches!(
            fenced,
            Applied::Refused {
                reason: Refused::Fenced { .. },
                ..
            }
        ),
        "{fenced:?}"
    );
    let done = step(&queue, &key, Move::Complete { attempt: 2, result }).await?;
    let Applied::Applied { record, before, .. } = done else {
        bail!("not completed: {done:?}");
    };
    ensure!((before.state, record.state) == (JobState::Decoding, JobState::Completed));
    let again = step(&queue, &key, Move::Complete { attempt: 2, result }).await?;
    ensure!(
        matches!(
            again,
            Applied::Refused {
                reason: Refused::Final { .. },
                ..
            }
        ),
        "{again:?}"
    );
    // Publishing what was told before changes nothing.
    queue.publish_event(&key, &record).await?;
    let mut told = Vec::new();
    let mut after = 0;
    while let Some((sequence, event)) = queue.next_event(&key, after).await? {
        after = sequence;
        told.push((event.state, event.chunks_done, event.attempt));
    }
    ensure!(
        told == [
            (1, 0, 0),
            (2, 0, 0),
            (3, 0, 0),
            (4, 0, 0),
            (4, 1, 0),
            (4, 2, 0),
            (5, 2, 1),
            (5, 2, 2),
            (6, 2, 2)
        ],
        "{told:?}"
    );
    Ok(())
}

#[tokio::test]
async fn another_epoch_is_left_alone() -> Result<()> {
    let (_server, queue) = start().await?;
    let (key, record) = kit::record(3, 1);
    queue.create_record(&key, &record).await?;
    let failure = Failure::new(FailureReason::Internal, "a defect");
    step(&queue, &key, Move::Fail(failure)).await?;
    let replay = Move::Replay {
        expires: record.expires,
    };
    step(&queue, &key, replay).await?;
    let late = step(&queue, &key, begin(Stage::Preprocess)).await?;
    ensure!(matches!(late, Applied::OtherEpoch { .. }), "{late:?}");
    let now = kit::clock()();
    let any = queue
        .apply(&key, None, &begin(Stage::Preprocess), now)
        .await?;
    ensure!(matches!(any, Applied::Applied { .. }), "{any:?}");
    Ok(())
}

#[tokio::test]
async fn what_was_known_saves_a_read_and_never_a_check() -> Result<()> {
    let (_server, queue) = start().await?;
    let (key, record) = kit::record(5, 2);
    queue.create_record(&key, &record).await?;
    let now = kit::clock()();
    let onto = async |known: &Applied, step: &Move| {
        let Applied::Applied {
            record, revision, ..
        } = known
        else {
            bail!("not applied: {known:?}");
        };
        let seen = Seen::Record(record, *revision);
        Ok(queue.apply_without_event(&key, seen, step, now).await?)
    };
    let started = step(&queue, &key, begin(Stage::Preprocess)).await?;
    let frames = Digest::new([7; 32]);
    let encoding = onto(
        &started,
        &Move::Preprocessed {
            frames,
            chunks: 2,
            frame_count: 2,
        },
    )
    .await?;
    // The second to change what both know finds the first one's chunk.
    let first = onto(&encoding, &Move::ChunkEncoded { chunk: 0 }).await?;
    let second = onto(&encoding, &Move::ChunkEncoded { chunk: 1 }).await?;
    ensure!(
        matches!(&second, Applied::Applied { record, .. } if record.chunks.all_done()),
        "{second:?}"
    );
    // Not even a step that would change nothing is answered from what was known: the job has ended.
    step(&queue, &key, Move::Cancel).await?;
    for known in [&first, &second] {
        let late = onto(known, &Move::ChunkEncoded { chunk: 0 }).await?;
        ensure!(
            matches!(
                late,
                Applied::Refused {
                    reason: Refused::Final { .. },
                    ..
                }
            ),
            "{late:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn thirty_two_chunks_at_once_are_all_counted() -> Result<()> {
    let (_server, queue) = start().await?;
    let (key, record) = kit::record(4, 32);
    queue.create_record(&key, &record).await?;
    step(&queue, &key, begin(Stage::Preprocess)).await?;
    let frames = Digest::new([7; 32]);
    step(
        &queue,
        &key,
        Move::Preprocessed {
            frames,
            chunks: 32,
            frame_count: 32,
        },
    )
    .await?;
    let chunks = (0..32).map(|chunk| step(&queue, &key, Move::ChunkEncoded { chunk }));
    let applied = futures::future::try_join_all(chunks).await?;
    // Exactly one of them completed the set, whoever it was.
    let completed = applied
        .iter()
        .filter(|one| matches!(one, Applied::Applied { record, .. } if record.chunks.all_done()))
        .count();
    ensure!(completed == 1, "{completed}");
    let (record, _) = queue.record(&key).await?.expect("it is there");
    ensure!(record.chunks.done_bitmap == u32::MAX);
    Ok(())
}

/// A worker that stood still for too long comes back when another has begun with its unit.
#[tokio::test]
async fn who_does_not_own_a_job_changes_nothing_and_its_end_is_told_once() -> Result<()> {
    let (_server, queue) = start().await?;
    let (key, record) = kit::record(6, 2);
    queue.create_record(&key, &record).await?;
    for stage in [
        begin(Stage::Preprocess),
        preprocessed(),
        begin(Stage::Encode),
    ] {
        step(&queue, &key, stage).await?;
    }
    for chunk in [0, 1] {
        step(&queue, &key, Move::ChunkEncoded { chunk }).await?;
    }
    for _ in 0..2 {
        step(&queue, &key, begin(Stage::Decode)).await?;
    }
    let (before, revision) = queue.record(&key).await?.expect("it is there");
    ensure!(before.attempt == 2, "{before:?}");
    let unit = kit::unit(&key, Stage::Decode, Class::Routine, 0);
    let replayed = WorkUnit {
        epoch: 1,
        ..unit.clone()
    };
    let nobodys = kit::unit(&kit::record(7, 1).0, Stage::Decode, Class::Routine, 0);
    let fail = Move::Fail(Failure::new(FailureReason::Internal, "a defect"));
    let back = Move::HandBack {
        stage: Stage::Decode,
    };
    let change = async |unit: &WorkUnit, attempt: u32, step: &Move| {
        let now = kit::clock()();
        queue.change(unit, Some(attempt), step, now).await
    };
    for step in [&fail, &back, &Move::Expire] {
        for (unit, attempt) in [(&unit, 1), (&replayed, 2), (&nobodys, 2)] {
            let changed = change(unit, attempt, step).await?;
            ensure!(matches!(changed, Changed::Superseded), "{changed:?}");
        }
    }
    ensure!(queue.record(&key).await? == Some((before, revision)));

    let made = change(&unit, 2, &fail).await?;
    ensure!(matches!(made, Changed::Made), "{made:?}");
    let again = change(&unit, 2, &fail).await?;
    ensure!(
        matches!(&again, Changed::Over(record) if record.state == JobState::Failed),
        "{again:?}"
    );
    let (mut after, mut ends) = (0, 0);
    while let Some((sequence, event)) = queue.next_event(&key, after).await? {
        after = sequence;
        ends += u32::from(event.state == wire::state_to_wire(JobState::Failed) as i32);
    }
    ensure!(ends == 1, "its end was told {ends} times");
    Ok(())
}

#[tokio::test]
async fn changes_that_meet_are_all_made() -> Result<()> {
    let (_server, queue) = start().await?;
    let (key, record) = kit::record(8, 1);
    queue.create_record(&key, &record).await?;
    // The first, and as many again as there may be.
    for _ in 0..4 {
        step(&queue, &key, begin(Stage::Preprocess)).await?;
    }
    let unit = kit::unit(&key, Stage::Preprocess, Class::Routine, 0);
    let back = Move::HandBack {
        stage: Stage::Preprocess,
    };
    let now = kit::clock()();
    let changes = (0..4).map(|_| queue.change(&unit, None, &back, now));
    for changed in join_all(changes).await {
        let changed = changed?;
        ensure!(matches!(changed, Changed::Made), "{changed:?}");
    }
    let (record, _) = queue.record(&key).await?.expect("it is there");
    ensure!(record.starts.preprocess == 0, "{record:?}");
    Ok(())
}

#[tokio::test]
async fn listing_pages_through_a_tenant_and_no_other() -> Result<()> {
    let (_server, queue) = start().await?;
    let stranger = TenantId::new("st-john")?;
    for seed in 0..20 {
        let (mut key, record) = kit::record(seed, 1);
        queue.create_record(&key, &record).await?;
        if seed % 5 == 0 {
            step(&queue, &key, Move::Cancel).await?;
        }
        key.tenant = stranger.clone();
        queue.create_record(&key, &record).await?;
    }
    let tenant = kit::tenant();
    let mut seen: Vec<JobId> = Vec::new();
    loop {
        let page = queue.list_records(&tenant, seen.last(), 7, &[]).await?;
        ensure!(page.len() <= 7);
        if page.is_empty() {
            break;
        }
        seen.extend(page.into_iter().map(|(job, _)| job));
    }
    let expected: Vec<_> = (0..20).map(|seed| kit::record(seed, 1).0.job).collect();
    ensure!(seen == expected, "{seen:?}");
    let cancelled = queue
        .list_records(&tenant, Some(&expected[0]), 2, &[JobState::Cancelled])
        .await?;
    let jobs: Vec<_> = cancelled.into_iter().map(|(job, _)| job).collect();
    ensure!(jobs == [expected[5].clone(), expected[10].clone()]);
    Ok(())
}

/// One record of a later version, or one broken byte, must not take every listing and the dispatcher down.
#[tokio::test]
async fn an_unreadable_record_hides_no_other() -> Result<()> {
    let (server, queue) = start().await?;
    for seed in 0..3 {
        let (key, record) = kit::record(seed, 1);
        queue.create_record(&key, &record).await?;
    }
    let broken = kit::record(1, 1).0;
    let client = async_nats::connect(server.url()).await?;
    let subject = format!("$KV.JOBS_0.{broken}");
    client.request(subject, "not a record".into()).await?;
    let expected: Vec<_> = [0, 2].map(|seed| kit::record(seed, 1).0).into();
    let listed = queue.list_records(&kit::tenant(), None, 10, &[]).await?;
    let jobs: Vec<_> = listed.into_iter().map(|(job, _)| job).collect();
    ensure!(jobs == [expected[0].job.clone(), expected[1].job.clone()]);
    let scanned: Vec<_> = queue.scan_records().collect().await;
    let keys: Vec<_> = scanned.into_iter().flatten().map(|(key, _)| key).collect();
    ensure!(keys == expected, "{keys:?}");
    Ok(())
}

/// A server that did not sync has forgotten a record that was read, and has given its place to another job's.
#[tokio::test]
async fn a_removal_takes_no_other_jobs_record() -> Result<()> {
    let (server, queue) = start().await?;
    let (forgotten, record) = kit::record(1, 1);
    let Created::Created(read_at) = queue.create_record(&forgotten, &record).await? else {
        bail!("nobody else has stored it");
    };
    let client = async_nats::connect(server.url()).await?;
    call(&client, "STREAM.DELETE.KV_JOBS_0", &json!({})).await?;
    queue.ensure(&[]).await?;
    let (other, record) = kit::record(2, 1);
    let created = queue.create_record(&other, &record).await?;
    ensure!(matches!(created, Created::Created(at) if at == read_at));
    queue.remove_record(&forgotten, read_at).await?;
    ensure!(queue.record(&other).await?.is_some(), "another job's");
    Ok(())
}

#[tokio::test]
async fn a_scan_reads_every_record_of_every_tenant_once_and_ends() -> Result<()> {
    let (_server, queue) = start().await?;
    ensure!(queue.scan_records().next().await.is_none());
    let mut expected = std::collections::BTreeSet::new();
    for batch in 0..3_u8 {
        // More than one page in all, over several tenants.
        let creates = (0..120).map(|seed| {
            let (mut key, record) = kit::record(seed, 1);
            key.tenant = TenantId::new(format!("site-{batch}")).expect("a name");
            expected.insert(key.to_string());
            let queue = queue.clone();
            async move { queue.create_record(&key, &record).await.map(drop) }
        });
        futures::future::try_join_all(creates).await?;
    }
    let pages: Vec<_> = queue.scan_records().collect().await;
    ensure!(pages.len() > 1, "{} pages", pages.len());
    let keys: Vec<_> = pages
        .into_iter()
        .flatten()
        .map(|(key, _)| key.to_string())
        .collect();
    ensure!(keys.len() == expected.len());
    ensure!(keys.into_iter().collect::<std::collections::BTreeSet<_>>() == expected);
    Ok(())
}
