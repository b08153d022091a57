//! Watches over a real server, and what ends one.

use futures::StreamExt;
use medfleet_core::setting::DurationText;
use medfleet_core::{Failure, FailureReason, JobId, Move};
use medfleet_runtime::{Metrics, SeededRandom, SystemClock};
use medfleet_store::{BlobStore, FleetKey};
use medfleet_testkit::wait_until;
use tonic::metadata::MetadataMap;

use super::*;
use crate::open::OpenJobs;
use crate::tokens::{TokensFile, create_token};

const PATIENCE: Duration = Duration::from_secs(60);
const OFTEN: DurationText = DurationText::from_millis(5);

/// The tokens of a file with one new token, and who calls with it.
async fn new_token(path: &std::path::Path, key: &JobKey, seed: u64) -> (Tokens, Caller) {
    // Files of another length each, for file systems that tell no two moments of a second apart.
    let name = "v".repeat(usize::try_from(seed).expect("few"));
    let (token, entry) = create_token(&name, &key.tenant, &SeededRandom::new(seed));
    let file = TokensFile {
        tokens: vec![entry],
    };
    std::fs::write(path, file.to_toml().expect("writes")).expect("a writable folder");
    let tokens = Tokens::load(path).await.expect("it is good");
    let mut metadata = MetadataMap::new();
    let value = format!("Bearer {}", token.expose());
    metadata.insert("authorization", value.parse().expect("a header value"));
    let caller = tokens.caller(&metadata).expect("it is known");
    (tokens, caller)
}

/// A file for tokens, and its folder, which goes with the value.
fn tokens_file() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("tokens.toml");
    (folder, file)
}

/// Of those who look often at durable state.
fn watching(queue: Queue, tokens: Tokens) -> Watching {
    let config = WatchConfig {
        reread_every: OFTEN,
        ..WatchConfig::default()
    };
    Watching {
        fanout: Fanout::new(config.signals_max, OpenJobs::default()),
        config,
        queue,
        blobs: Blobs::new(BlobStore::in_memory(FleetKey::new([1; 32]))),
        tokens,
        clock: Arc::new(SystemClock),
        figures: Figures::new(&Metrics::new()),
        shutdown: Shutdown::new(Duration::ZERO),
    }
}

/// A job that has no record and whose accept was told when somebody heard it.
async fn heard_job(queue: &Queue, fanout: &Fanout) -> JobKey {
    let (mut jobs, mut told) = (0_u128.., Vec::new());
    let heard = wait_until(PATIENCE, "an accept to be heard", async || {
        let (mut key, record) = medfleet_testkit::record(0, 1);
        key.job = JobId::from_bytes(jobs.next()?.to_be_bytes());
        queue.publish_event(&key, &record).await.ok()?;
        told.push(key);
        let is_heard = |key: &&JobKey| fanout.heard(key, queue.losses()).is_some();
        told.iter().find(is_heard).cloned()
    });
    heard.await.expect("events are followed")
}

#[tokio::test]
async fn a_watch_begins_with_what_was_heard_and_looks_soon_whether_it_holds() {
    let (_server, queue) = medfleet_testkit::start().await.expect("a queue");
    let (_folder, file) = tokens_file();
    let any = medfleet_testkit::record(0, 1).0;
    let (tokens, caller) = new_token(&file, &any, 1).await;
    let watching = watching(queue.clone(), tokens);
    let forever = Shutdown::new(Duration::ZERO);
    let carry = watching.fanout.clone().carry_events(queue.clone(), forever);
    let watched = async {
        let key = heard_job(&queue, &watching.fanout).await;
        let request = v1::WatchJobRequest::default();
        let watch = Watch::begin(Arc::new(watching), (caller, key), &request).await;
        let mut stream = Box::pin(watch.expect("it was heard").into_stream());
        let told = stream.next().await.expect("more than an end");
        let told = told.expect("an event").event;
        let is_accepted = matches!(
            &told,
            Some(Event::Progress(progress)) if progress.state() == v1::JobState::Accepted
        );
        assert!(is_accepted, "{told:?}");
        let told = stream.next().await.expect("more than an end");
        let refused = told.expect_err("there is no such job");
        assert_eq!(refused.code(), tonic::Code::NotFound);
    };
    tokio::select! {
        watched = tokio::time::timeout(PATIENCE, watched) => watched.expect("in time"),
        () = carry => panic!("nobody stops it"),
    }
}

/// Of a job that waits, there is nothing new until somebody looks at the token again.
#[tokio::test]
async fn a_watch_ends_with_its_token() {
    let (_server, queue) = medfleet_testkit::start().await.expect("a queue");
    let (key, record) = medfleet_testkit::record(1, 1);
    queue.create_record(&key, &record).await.expect("a job");
    let (_folder, file) = tokens_file();
    let (tokens, caller) = new_token(&file, &key, 1).await;
    let watching = watching(queue, tokens.clone());
    let request = v1::WatchJobRequest::default();
    let watch = Watch::begin(Arc::new(watching), (caller, key.clone()), &request).await;
    let mut stream = Box::pin(watch.expect("the job is there").into_stream());
    let early = tokio::time::timeout(Duration::from_millis(100), stream.next()).await;
    assert!(early.is_err(), "nothing is to be told yet: {early:?}");
    // Another takes its place in the file.
    new_token(&file, &key, 2).await;
    let following = tokens.follow(OFTEN.get(), Shutdown::new(Duration::ZERO));
    let told = tokio::select! {
        told = tokio::time::timeout(PATIENCE, stream.next()) => told.expect("in time"),
        () = following => panic!("nobody stops it"),
    };
    let refused = told.expect("more than an end").expect_err("withdrawn");
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
}

/// Of a job without a result nothing else tells it.
#[tokio::test]
async fn a_text_that_arrives_behind_the_end_is_told_before_it() {
    let (_server, queue) = medfleet_testkit::start().await.expect("a queue");
    let (key, record) = medfleet_testkit::record(1, 1);
    queue.create_record(&key, &record).await.expect("a job");
    let (_folder, file) = tokens_file();
    let (tokens, caller) = new_token(&file, &key, 1).await;
    let watching = watching(queue.clone(), tokens);
    let forever = Shutdown::new(Duration::ZERO);
    let carry = watching.fanout.clone().carry_texts(queue.clone(), forever);
    let watched = async {
        let request = v1::WatchJobRequest::default();
        let watch = Watch::begin(Arc::new(watching), (caller, key.clone()), &request).await;
        let watch = watch.expect("the job is there");
        let step = Move::Fail(Failure::new(FailureReason::InputRefused, "x"));
        let now = medfleet_testkit::clock()();
        let failed = queue.apply(&key, Some(0), &step, now).await;
        failed.expect("is stored");
        let chunk = TextChunk {
            attempt: 1,
            text: "no answer".to_owned(),
            ..TextChunk::default()
        };
        let heard = wait_until(PATIENCE, "the text to be heard", async || {
            queue.publish_text(&key, &chunk).await.ok()?;
            (!watch.subscription.signals.is_empty()).then_some(())
        });
        heard.await.expect("texts are carried");
        let told: Vec<_> = watch.into_stream().collect().await;
        let told = told.into_iter().map(|told| told.expect("no refusal").event);
        told.collect::<Vec<_>>()
    };
    let told = tokio::select! {
        watched = tokio::time::timeout(PATIENCE, watched) => watched.expect("in time"),
        () = carry => panic!("nobody stops it"),
    };
    let [.., Some(Event::Text(delta)), Some(Event::Final(_))] = &told[..] else {
        panic!("{told:?}");
    };
    assert_eq!(delta.text, "no answer");
}

/// As a client sends it whose numbers have a sign, for none: only the end is left to be told.
#[tokio::test]
async fn a_watch_from_the_highest_sequence_on_tells_the_end() {
    let (_server, queue) = medfleet_testkit::start().await.expect("a queue");
    let (key, record) = medfleet_testkit::record(1, 1);
    queue.create_record(&key, &record).await.expect("a job");
    let now = medfleet_testkit::clock()();
    let cancelled = queue.apply(&key, Some(0), &Move::Cancel, now).await;
    cancelled.expect("is stored");
    let (_folder, file) = tokens_file();
    let (tokens, caller) = new_token(&file, &key, 1).await;
    let request = v1::WatchJobRequest {
        after_sequence: u64::MAX,
        ..v1::WatchJobRequest::default()
    };
    let watching = Arc::new(watching(queue, tokens));
    let watch = Watch::begin(watching, (caller, key), &request).await;
    let told = watch.expect("the job is there").into_stream();
    let told = tokio::time::timeout(PATIENCE, told.collect::<Vec<_>>()).await;
    let told = told.expect("in time");
    let [Ok(only)] = &told[..] else {
        panic!("{told:?}");
    };
    assert!(matches!(only.event, Some(Event::Final(_))), "{only:?}");
}

#[test]
fn an_end_of_before_a_replay_is_no_end() {
    let (_, record) = medfleet_testkit::record(1, 1);
    let check = |epoch, state, erased, expected| {
        let record = JobRecord {
            epoch,
            state,
            erased,
            ..record.clone()
        };
        assert_eq!(still_stands(0, &record), expected, "{record:?}");
    };
    check(0, JobState::Failed, None, Some(false));
    check(0, JobState::Failed, Some(UnixMillis(1)), Some(true));
    // It was started over, and may have ended anew.
    check(1, JobState::Accepted, None, None);
    check(1, JobState::Completed, None, None);
    // An outdated server says so.
    check(0, JobState::Decoding, None, None);
}
