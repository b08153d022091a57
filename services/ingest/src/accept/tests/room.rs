//! Submits over a real server that has no room for a part of them.

use std::time::Duration;

use medfleet_core::Stage;
use medfleet_core::setting::ByteSize;
use medfleet_queue::{
    AUDIT_STREAM, INTAKE_STREAM, JOBS_STREAM, PENDING_STREAM, QueueConfig, StreamUsage,
};
use medfleet_runtime::ManualClock;
use medfleet_store::Relied;
use medfleet_testkit::NatsServer;

use super::*;
use crate::room::FULL_FOR;

/// Of a stream without room for anything.
const LEAST: ByteSize = ByteSize::from_bytes(1);

/// What accepts jobs for a queue, with a store of its own.
fn ingest_of(queue: &Queue) -> Acceptor {
    let store = BlobStore::in_memory(FleetKey::new([1; 32]));
    acceptor(queue.clone(), store)
}

/// A queue whose streams are made, or changed, to be so.
async fn queue_with(server: &NatsServer, change: impl Fn(&mut QueueConfig)) -> Queue {
    let mut config = kit::config(&server.url());
    change(&mut config);
    kit::queue(&config).await.expect("a queue")
}

fn report(request_id: &str) -> v1::SubmitJobRequest {
    v1::SubmitJobRequest {
        request_id: request_id.to_owned(),
        ..request(b"film")
    }
}

/// All jobs: how many there are, and how many of them wait to be done.
async fn jobs(queue: &Queue) -> (usize, usize) {
    let found = queue.list_records(&kit::tenant(), None, 10, &[]).await;
    let found = found.expect("lists");
    let is_open = |(_, record): &&(JobId, JobRecord)| record.state == JobState::Accepted;
    (found.len(), found.iter().filter(is_open).count())
}

/// Units that wait for release.
async fn waiting(queue: &Queue) -> u64 {
    let waiting = queue.waiting_for_release(Stage::Preprocess).await;
    waiting.expect("counts")
}

/// Entries that the sweep would find, when the accepts have all ended.
async fn pending(acceptor: &Acceptor) -> usize {
    acceptor.pad.close().await;
    let pending = acceptor.queue.list_pending(Duration::ZERO).await;
    pending.expect("lists").len()
}

async fn audit_lines(queue: &Queue) -> u64 {
    let streams = queue.usage().await.expect("lists");
    let audit = streams.iter().find(|stream| stream.stream == AUDIT_STREAM);
    audit.expect("it is there").messages
}

fn is_full(refused: &Result<Accepted, Refusal>) -> bool {
    matches!(refused, Err(Refusal::Queue(QueueError::Full { .. })))
}

#[tokio::test]
async fn nothing_is_left_of_a_submit_that_the_audit_has_no_room_for() {
    let server = NatsServer::start().await.expect("a server");
    let full = queue_with(&server, |config| config.stream_bytes_max.audit = LEAST).await;
    let caller = Caller::of(&kit::tenant());
    let ingest = ingest_of(&full);
    for id in ["a", ""] {
        let refused = ingest.accept(&caller, report(id)).await;
        assert!(is_full(&refused), "{refused:?}");
    }
    assert_eq!((jobs(&full).await, waiting(&full).await), ((0, 0), 0));
    assert_eq!(pending(&ingest).await, 0);

    let roomy = queue_with(&server, |_| ()).await;
    let accepted = ingest_of(&roomy).accept(&caller, report("a")).await;
    assert!(!accepted.expect("there is room").already);
    assert_eq!((jobs(&roomy).await, waiting(&roomy).await), ((1, 1), 1));
    assert_eq!(audit_lines(&roomy).await, 1);
}

#[tokio::test]
async fn a_job_is_not_begun_before_the_audit_has_its_line() {
    let server = NatsServer::start().await.expect("a server");
    let full = queue_with(&server, |config| config.stream_bytes_max.audit = LEAST).await;
    let (key, record) = kit::record(1, 1);
    full.create_record(&key, &record).await.expect("stores");
    let announced = ingest_of(&full)
        .announce(&key, &record, SUBMIT, "medfleet")
        .await;
    let is_full = matches!(announced, Err(QueueError::Full { .. }));
    assert!(is_full, "{announced:?}");
    assert_eq!(waiting(&full).await, 0);
}

#[tokio::test]
async fn who_finds_no_room_is_told_of_the_job_and_nothing_is_left_of_those_right_after() {
    let server = NatsServer::start().await.expect("a server");
    let full = queue_with(&server, |config| config.stream_bytes_max.intake = LEAST).await;
    let caller = Caller::of(&kit::tenant());
    let clock = Arc::new(ManualClock::at(kit::clock()()));
    let ingest = Acceptor {
        clock: clock.clone(),
        ..ingest_of(&full)
    };
    let refused = ingest.accept(&caller, report("first")).await;
    let Err(Refusal::Unfinished { job, source }) = refused else {
        panic!("{refused:?}");
    };
    assert!(matches!(source, QueueError::Full { .. }), "{source:?}");
    assert_eq!(job, ingest.keys.job_id(&caller.tenant, "first"));
    // It is known by now.
    let again = ingest.accept(&caller, report("first")).await;
    assert!(
        matches!(again, Err(Refusal::Unfinished { .. })),
        "{again:?}"
    );
    for id in ["second", ""] {
        let refused = ingest.accept(&caller, report(id)).await;
        assert!(is_full(&refused), "{refused:?}");
    }
    assert_eq!(jobs(&full).await, (1, 1));

    // Later one tries. Without a request id its job is withdrawn, and its caller told of none.
    clock.advance(FULL_FOR);
    let refused = ingest.accept(&caller, report("")).await;
    assert!(is_full(&refused), "{refused:?}");
    assert_eq!(jobs(&full).await, (2, 1));

    let roomy = queue_with(&server, |_| ()).await;
    let later = ingest_of(&roomy);
    let accepted = later.accept(&caller, report("first")).await;
    let accepted = accepted.expect("there is room");
    assert!(accepted.already && accepted.id == job, "{accepted:?}");
    assert_eq!(waiting(&roomy).await, 1);
}

/// Clients come again and again for as long as there is no room, in the records, for their pending entries, or in the intake.
#[tokio::test]
async fn who_comes_again_while_there_is_no_room_adds_no_line_to_the_audit() {
    let without_room: [fn(&mut QueueConfig); 3] = [
        |config| config.stream_bytes_max.records = LEAST,
        |config| config.stream_bytes_max.small = LEAST,
        |config| config.stream_bytes_max.intake = LEAST,
    ];
    for change in without_room {
        let server = NatsServer::start().await.expect("a server");
        let full = queue_with(&server, change).await;
        let caller = Caller::of(&kit::tenant());
        let clock = Arc::new(ManualClock::at(kit::clock()()));
        let ingest = Acceptor {
            clock: clock.clone(),
            ..ingest_of(&full)
        };
        for lines in 1..=2 {
            for _ in 0..5 {
                let refused = ingest.accept(&caller, report("a")).await;
                let is_full = matches!(
                    refused,
                    Err(Refusal::Queue(QueueError::Full { .. })
                        | Refusal::Unfinished {
                            source: QueueError::Full { .. },
                            ..
                        })
                );
                assert!(is_full, "{refused:?}");
            }
            assert_eq!(audit_lines(&full).await, lines);
            // Then one tries.
            clock.advance(FULL_FOR);
        }
    }
}

/// There is none for its line in the audit; or there is none in the intake, and its job, which nobody could name, is withdrawn.
#[tokio::test]
async fn who_was_refused_for_want_of_room_has_its_stat_budget_when_there_is_some() {
    refused_and_then_let_in("a", |config| config.stream_bytes_max.audit = LEAST).await;
    refused_and_then_let_in("", |config| config.stream_bytes_max.intake = LEAST).await;
}

async fn refused_and_then_let_in(request_id: &str, without_room: fn(&mut QueueConfig)) {
    let server = NatsServer::start().await.expect("a server");
    let caller = Caller::of(&kit::tenant());
    let stat = || v1::SubmitJobRequest {
        class: v1::Class::Stat.into(),
        ..report(request_id)
    };
    let full = queue_with(&server, without_room).await;
    let mut ingest = ingest_of(&full);
    let quotas = QuotasConfig {
        default: Quota {
            stat_per_minute: Some(1),
            ..Quota::default()
        },
        ..QuotasConfig::default()
    };
    ingest.quotas = Quotas::new(quotas, Duration::ZERO, ingest.clock.clone());
    let refused = ingest.accept(&caller, stat()).await;
    assert!(is_full(&refused), "{refused:?}");

    let roomy = queue_with(&server, |_| ()).await;
    let later = Acceptor {
        quotas: ingest.quotas.clone(),
        // No job has the name of one before it.
        random: ingest.random.clone(),
        ..ingest_of(&roomy)
    };
    let accepted = later.accept(&caller, stat()).await;
    let class = accepted.expect("there is room").record.class;
    assert_eq!(class, Class::Stat);
    let second = v1::SubmitJobRequest {
        request_id: "b".to_owned(),
        ..stat()
    };
    let accepted = later.accept(&caller, second).await;
    let class = accepted.expect("there is room").record.class;
    assert_eq!(class, Class::Urgent, "the budget is one");
    assert_eq!(later.figures.stat_demoted.get(), 1);
}

/// The names that `room` knows are those of the streams.
#[tokio::test]
async fn a_new_job_is_refused_where_only_a_reserve_is_left() {
    let server = NatsServer::start().await.expect("a server");
    let queue = queue_with(&server, |_| ()).await;
    let caller = Caller::of(&kit::tenant());
    for name in [AUDIT_STREAM, JOBS_STREAM, PENDING_STREAM] {
        let ingest = ingest_of(&queue);
        let mut usage = queue.usage().await.expect("lists");
        let stream = usage.iter_mut().find(|stream| stream.stream == name);
        let stream = stream.expect("it is there");
        stream.bytes = stream.bytes_max.expect("a limit") - 1;
        ingest.room.look(&usage);
        let refused = ingest.accept(&caller, report(name)).await;
        assert!(is_full(&refused), "{refused:?}");
        ingest.room.look(&queue.usage().await.expect("lists"));
        let accepted = ingest.accept(&caller, report(name)).await;
        assert!(!accepted.expect("there is room").already);
    }
    assert_eq!(audit_lines(&queue).await, 3);
}

/// Which shard a job is in nobody chooses.
#[tokio::test]
async fn a_new_job_is_refused_where_one_shard_of_the_records_has_only_its_reserve_left() {
    let server = NatsServer::start().await.expect("a server");
    let queue = queue_with(&server, |config| config.record_shards = 8).await;
    let caller = Caller::of(&kit::tenant());
    let ingest = ingest_of(&queue);
    let mut usage = queue.usage().await.expect("lists");
    let mut streams = usage.iter_mut();
    let shard = streams.find(|stream| stream.stream == "KV_JOBS_5_OF_8");
    let shard = shard.expect("it is there");
    shard.bytes = shard.bytes_max.expect("a limit") - 1;
    ingest.room.look(&usage);
    let refused = ingest.accept(&caller, report("a")).await;
    assert!(is_full(&refused), "{refused:?}");
    assert_eq!(jobs(&queue).await, (0, 0));
    ingest.room.look(&queue.usage().await.expect("lists"));
    let accepted = ingest.accept(&caller, report("a")).await;
    assert!(!accepted.expect("there is room").already);
    assert_eq!(jobs(&queue).await, (1, 1));
}

#[tokio::test]
async fn a_tenant_that_cancels_job_after_job_leaves_room_for_erasures_and_operators() {
    let server = NatsServer::start().await.expect("a server");
    let queue = queue_with(&server, |_| ()).await;
    let ingest = ingest_of(&queue);
    let usage = queue.usage().await.expect("lists");
    let leave = |part: u64| {
        let mut usage = usage.clone();
        let mut streams = usage.iter_mut();
        let audit = streams.find(|stream| stream.stream == AUDIT_STREAM);
        let audit = audit.expect("it is there");
        let most = audit.bytes_max.expect("a limit");
        audit.bytes = most - most / part;
        ingest.room.look(&usage);
    };
    let (key, record) = kit::record(1, 1);
    let created = queue.create_record(&key, &record).await;
    created.expect("stores");
    let client = Caller::of(&key.tenant);
    let mut operator = client.clone();
    operator.is_operator = true;

    leave(20);
    let cancelled = ingest.audit_act(&key, "cancel", &client).await;
    cancelled.expect("the first half of the reserve");
    leave(32);
    let refused = ingest.audit_act(&key, "cancel", &client).await;
    let is_full = matches!(refused, Err(QueueError::Full { .. }));
    assert!(is_full, "{refused:?}");
    assert_eq!(audit_lines(&queue).await, 1);
    let cancelled = ingest.audit_act(&key, "cancel", &operator).await;
    cancelled.expect("operators have room");
    let mut relied = Relied::default();
    let erased = ingest.erase(&client, &key, &mut relied).await;
    erased.expect("so has an erasure");
    assert_eq!(audit_lines(&queue).await, 3);
}

#[tokio::test]
async fn of_a_submit_that_is_refused_before_its_record_no_entry_waits_for_the_sweep() {
    let server = NatsServer::start().await.expect("a server");
    let queue = queue_with(&server, |_| ()).await;
    let caller = Caller::of(&kit::tenant());
    let ingest = ingest_of(&queue);
    // As it is when its record is past its retention.
    let key = JobKey::new(
        caller.tenant.clone(),
        ingest.keys.job_id(&caller.tenant, "erased"),
    );
    ingest.blobs.bury(&key).await.expect("leaves a tombstone");
    let refused = ingest.accept(&caller, report("erased")).await;
    let is_erased = matches!(refused, Err(Refusal::Store(StoreError::JobErased)));
    assert!(is_erased, "{refused:?}");
    assert_eq!(pending(&ingest).await, 0);
}

/// How full the streams would be if next to nothing were left of the intake.
async fn with_full_intake(queue: &Queue) -> Vec<StreamUsage> {
    let mut usage = queue.usage().await.expect("lists");
    let mut streams = usage.iter_mut();
    let intake = streams.find(|stream| stream.stream == INTAKE_STREAM);
    let intake = intake.expect("it is there");
    intake.bytes = intake.bytes_max.expect("a limit") - 1;
    usage
}

/// A tenant without a budget calls everything STAT.
#[tokio::test]
async fn a_flood_of_stat_leaves_room_for_a_neighbours() {
    let server = NatsServer::start().await.expect("a server");
    let queue = queue_with(&server, |_| ()).await;
    let mut ingest = ingest_of(&queue);
    let (key, record) = kit::record(1, 1);
    ingest.open.take_record(&key, &record);
    ingest.room.look(&with_full_intake(&queue).await);
    let stat = |request_id: &str| v1::SubmitJobRequest {
        class: v1::Class::Stat.into(),
        ..report(request_id)
    };
    let flood = Caller::of(&key.tenant);
    let refused = ingest.accept(&flood, stat("a")).await;
    assert!(is_full(&refused), "{refused:?}");
    let neighbour = Caller::of(&TenantId::new("st-john").expect("a tenant"));
    let accepted = ingest.accept(&neighbour, stat("b")).await;
    let class = accepted.expect("room is kept for it").record.class;
    assert_eq!(class, Class::Stat);
    // A budget bounds it as well.
    let quotas = QuotasConfig {
        default: Quota {
            stat_per_minute: Some(1),
            ..Quota::default()
        },
        ..QuotasConfig::default()
    };
    ingest.quotas = Quotas::new(quotas, Duration::ZERO, ingest.clock.clone());
    let accepted = ingest.accept(&flood, stat("a")).await;
    assert!(!accepted.expect("it is within its budget").already);
    assert_eq!(waiting(&queue).await, 2);
}

/// Its record is of a time when there was no room, and others with a record wait there already.
#[tokio::test]
async fn a_job_that_is_asked_for_again_takes_no_place_of_the_intakes_reserve() {
    let server = NatsServer::start().await.expect("a server");
    let full = queue_with(&server, |config| config.stream_bytes_max.intake = LEAST).await;
    let caller = Caller::of(&kit::tenant());
    let refused = ingest_of(&full).accept(&caller, report("a")).await;
    let is_begun = matches!(refused, Err(Refusal::Unfinished { .. }));
    assert!(is_begun, "{refused:?}");

    let roomy = queue_with(&server, |_| ()).await;
    let ingest = ingest_of(&roomy);
    let accepted = ingest.accept(&caller, report("b")).await;
    assert!(!accepted.expect("there is room").already);
    ingest.room.look(&with_full_intake(&roomy).await);
    let refused = ingest.accept(&caller, report("a")).await;
    let is_full = matches!(
        refused,
        Err(Refusal::Unfinished {
            source: QueueError::Full { .. },
            ..
        })
    );
    assert!(is_full, "{refused:?}");
    let accepted = ingest.accept(&caller, report("b")).await;
    assert!(accepted.expect("it waits there already").already);
    assert_eq!((jobs(&roomy).await, waiting(&roomy).await), ((2, 2), 1));

    ingest.room.look(&roomy.usage().await.expect("lists"));
    let accepted = ingest.accept(&caller, report("a")).await;
    assert!(accepted.expect("there is room").already);
    assert_eq!(waiting(&roomy).await, 2);
}

/// A tenant without a quota has filled the intake with its routine work.
#[tokio::test]
async fn stat_is_let_in_where_only_the_intakes_reserve_is_left() {
    let server = NatsServer::start().await.expect("a server");
    let queue = queue_with(&server, |config| config.intake_messages_max = 4).await;
    let mut ingest = ingest_of(&queue);
    let quotas = QuotasConfig {
        default: Quota {
            stat_per_minute: Some(1),
            ..Quota::default()
        },
        ..QuotasConfig::default()
    };
    ingest.quotas = Quotas::new(quotas, Duration::ZERO, ingest.clock.clone());
    let caller = Caller::of(&kit::tenant());
    let usage = with_full_intake(&queue).await;
    let mut streams = usage.iter();
    let intake = streams.find(|stream| stream.stream == INTAKE_STREAM);
    let intake = intake.expect("it is there");
    assert_eq!(intake.messages_max, Some(4), "what it was made with");
    ingest.room.look(&usage);
    let submit = async |request_id: &str, class: v1::Class| {
        let request = v1::SubmitJobRequest {
            class: class.into(),
            ..report(request_id)
        };
        ingest.accept(&caller, request).await
    };
    let refused = submit("a", v1::Class::Urgent).await;
    assert!(is_full(&refused), "{refused:?}");
    let accepted = submit("b", v1::Class::Stat).await;
    let class = accepted.expect("room is kept for it").record.class;
    assert_eq!(class, Class::Stat);
    // It would be an urgent one.
    let refused = submit("c", v1::Class::Stat).await;
    assert!(is_full(&refused), "{refused:?}");
    assert_eq!((jobs(&queue).await, waiting(&queue).await), ((1, 1), 1));
}
