//! Two encoders of one site over one store and a real nats-server: who encodes, who waits, and for how long.

use futures::future::try_join_all;
use medfleet_core::{Class, JobKey};
use medfleet_engine::SimulatedTiming;
use medfleet_proto::work::v1::TokensManifest;
use medfleet_queue::QueueConfig;
use medfleet_runtime::{DurationText, Metrics};
use medfleet_store::BlobStore;
use medfleet_testkit::{self as kit, Member, NODE, NatsServer, wait_until};

use super::*;
use crate::error::EncodeError;
use crate::frames::missing;
use crate::frames::tests::{among, job, looked, own, provide_as, store};
use crate::work::Encode;

/// Longest wait for anything that must come.
const PATIENCE: Duration = Duration::from_secs(60);
/// Claims of the dead are over soon, but not before somebody has met them on a loaded machine.
const SHORT: Duration = Duration::from_secs(3);
/// Over at once, for a test in which nobody waits for one.
const BRIEF: Duration = Duration::from_millis(500);
/// Longer than a test may take.
const LONG: Duration = Duration::from_secs(600);
/// Long enough for another encoder to come while a frame is being encoded, on a loaded machine too.
const FRAME: Duration = Duration::from_secs(1);

struct Site {
    server: NatsServer,
    store: BlobStore,
    encoders: [Encode; 2],
}

/// Two encoders whose claims last so long without renewal.
async fn site(ttl: Duration) -> Site {
    let server = NatsServer::start().await.expect("starts");
    let config = config(&server, ttl);
    let store = store();
    let a = encoder(&config, &store, ("http://a", FRAME)).await;
    let b = encoder(&config, &store, ("http://b", FRAME)).await;
    Site {
        server,
        store,
        encoders: [a, b],
    }
}

fn config(server: &NatsServer, ttl: Duration) -> QueueConfig {
    let mut config = kit::config(&server.url());
    config.lease_ttl = DurationText::from_millis(u64::try_from(ttl.as_millis()).expect("short"));
    config
}

/// An encoder under this address that takes so long for a frame.
async fn encoder(
    config: &QueueConfig,
    store: &BlobStore,
    (url, encode_frame): (&str, Duration),
) -> Encode {
    let queue = kit::queue(config).await.expect("connects");
    let timing = SimulatedTiming {
        encode_frame,
        ..SimulatedTiming::default()
    };
    let metrics = EncodeMetrics::register(&Metrics::new());
    let elsewhere = Elsewhere::new(Some(queue.claims()), metrics.clone());
    elsewhere.open().await;
    among((store, url), timing, metrics, elsewhere)
}

/// Does this while these encoders live.
async fn alive<T>(encoders: &[&Encode], work: impl Future<Output = T>) -> T {
    let never = CancellationToken::new();
    let keeping = encoders
        .iter()
        .map(|encoder| encoder.elsewhere.keep(&never));
    tokio::select! {
        done = work => done,
        _ = join_all(keeping) => panic!("nobody told them to stop"),
    }
}

async fn unit(
    encoder: &Encode,
    (job, class): (&JobKey, Class),
    pictures: &[u8],
) -> Result<TokensManifest, EncodeError> {
    let wanted = looked(encoder, job, pictures).await?;
    provide_as(encoder, (job, class), wanted).await
}

/// The frames that these pictures are.
async fn names(encoder: &Encode, job: &JobKey, pictures: &[u8]) -> HashSet<Digest> {
    missing(&looked(encoder, job, pictures).await.expect("looks"))
}

fn frames(encoders: &[Encode; 2]) -> u64 {
    encoders.iter().map(|of| of.metrics.frames.get()).sum()
}

#[tokio::test]
async fn an_image_that_comes_to_two_encoders_at_once_is_encoded_once() {
    let site = site(LONG).await;
    let [a, b] = &site.encoders;
    let jobs: Vec<JobKey> = (1..=6).map(|byte| job("a", byte)).collect();
    let units = jobs.iter().zip([a, b].into_iter().cycle());
    let units = units.map(|(job, at)| unit(at, (job, Class::Routine), &[1]));
    let made = alive(&[a, b], try_join_all(units)).await.expect("encodes");
    assert_eq!(frames(&site.encoders), 1);
    let held = a.metrics.claims()[1] + b.metrics.claims()[1];
    // The rest wait here; one of them may come before the claim of the one before it is given up.
    assert!(held >= 1, "none has waited for the other encoder");
    let ends = [a, b].map(|of| of.metrics.held());
    assert_eq!(ends[0][0] + ends[1][0], held, "{ends:?}");
    let made_for = jobs.iter().zip(&made);
    let made_for = made_for.flat_map(|(job, list)| own(&site.store, job, list));
    assert_eq!(made_for.filter(|own| *own).count(), 1);
    for list in &made {
        assert_eq!(list.tokens[0].digest, made[0].tokens[0].digest);
        assert_eq!(list.encoder_url, made[0].encoder_url);
    }
    // Another tenant's is another image.
    let foreign = job("b", 1);
    let foreign = unit(b, (&foreign, Class::Routine), &[1]).await;
    foreign.expect("encodes");
    assert_eq!(frames(&site.encoders), 2);
}

#[tokio::test]
async fn chunks_that_share_images_do_not_wait_for_each_other() {
    let site = site(LONG).await;
    let [a, b] = &site.encoders;
    let (one, two) = (job("a", 1), job("a", 2));
    let both = async {
        tokio::try_join!(
            unit(a, (&one, Class::Routine), &[1, 2, 3, 1]),
            unit(b, (&two, Class::Routine), &[4, 3, 2, 1]),
        )
    };
    let (one, two) = alive(&[a, b], both).await.expect("encodes");
    assert_eq!(frames(&site.encoders), 4);
    assert_eq!(one.tokens[0].digest, one.tokens[3].digest);
    for (mine, theirs) in [(0, 3), (1, 2), (2, 1)] {
        assert_eq!(one.tokens[mine].digest, two.tokens[theirs].digest);
    }
}

#[tokio::test]
async fn what_a_dead_encoder_has_claimed_is_taken_over() {
    let site = site(SHORT).await;
    let [dead, living] = &site.encoders;
    let job = job("a", 1);
    let turn = dead.elsewhere.claim(&names(dead, &job, &[1]).await).await;
    assert_eq!(turn.own.len(), 1);
    // It gives nothing up, and nobody renews it.
    std::mem::forget(turn);
    let taken = unit(living, (&job, Class::Routine), &[1]);
    let taken = alive(&[living], taken).await;
    taken.expect("encodes");
    assert_eq!(living.metrics.frames.get(), 1);
    assert_eq!(living.metrics.claims(), [1, 1, 0]);
    assert_eq!(living.metrics.held(), [0, 1, 0]);
}

#[tokio::test]
async fn what_an_encoder_gives_up_is_taken_over_at_once() {
    let site = site(LONG).await;
    let [a, b] = &site.encoders;
    let job = job("a", 1);
    let turn = a.elsewhere.claim(&names(a, &job, &[1]).await).await;
    let giving_up = async {
        wait_until(PATIENCE, "the other to wait", async || {
            (b.metrics.claims()[1] == 1).then_some(())
        })
        .await
        .expect("waits");
        drop(turn);
    };
    let both = async { tokio::join!(unit(b, (&job, Class::Routine), &[1]), giving_up) };
    let both = tokio::time::timeout(PATIENCE, alive(&[a, b], both)).await;
    let (taken, ()) = both.expect("it does not wait for the claim's end");
    taken.expect("encodes");
    assert_eq!(b.metrics.claims(), [1, 1, 0]);
    assert_eq!(b.metrics.held(), [0, 1, 0]);
}

#[tokio::test]
async fn what_is_found_is_given_up_before_the_rest_is_encoded() {
    let site = site(LONG).await;
    let [a, _] = &site.encoders;
    let config = config(&site.server, LONG);
    let slow = encoder(&config, &site.store, ("http://slow", LONG)).await;
    let (one, two) = (job("a", 1), job("a", 2));
    // Neither of the two is there when it looks for the first time.
    let wanted = looked(&slow, &two, &[1, 2]).await.expect("looks");
    let names = names(a, &two, &[1]).await;
    let made = async {
        let made = unit(a, (&one, Class::Routine), &[1]).await;
        made.expect("encodes");
        let now = Instant::now();
        a.elsewhere.freed(&names, (now, now + PATIENCE)).await;
    };
    alive(&[a], made).await;
    let given_up = async {
        let claimed = async || (slow.metrics.claims()[0] == 2).then_some(());
        let claimed = wait_until(PATIENCE, "both to be claimed", claimed);
        claimed.await.expect("claims both");
        let taken = async || (a.elsewhere.claim(&names).await.own == names).then_some(());
        let taken = wait_until(PATIENCE, "what is there to be given up", taken);
        taken.await.expect("others need not wait");
    };
    let both = async {
        tokio::select! {
            made = provide_as(&slow, (&two, Class::Routine), wanted) => panic!("{made:?}"),
            () = given_up => {}
        }
    };
    alive(&[a, &slow], both).await;
}

#[tokio::test]
async fn what_is_given_up_last_is_free_when_the_encoder_has_ended() {
    let site = site(LONG).await;
    let [a, b] = &site.encoders;
    let names = names(a, &job("a", 1), &[1]).await;
    drop(a.elsewhere.claim(&names).await);
    let settled = CancellationToken::new();
    settled.cancel();
    a.elsewhere.keep(&settled).await;
    assert_eq!(b.elsewhere.claim(&names).await.own, names);
}

#[tokio::test]
async fn a_claim_lasts_as_long_as_its_holder_works() {
    // A holder that stands still for so long does not work.
    let ttl = 2 * SHORT;
    let site = site(ttl).await;
    let [a, b] = &site.encoders;
    let job = job("a", 1);
    let names = names(a, &job, &[1]).await;
    let turn = a.elsewhere.claim(&names).await;
    // Longer than it lasts without renewal.
    let now = Instant::now();
    let waited = b.elsewhere.freed(&names, (now, now + ttl + SHORT));
    alive(&[a], waited).await;
    let other = b.elsewhere.claim(&names).await;
    assert!(other.own.is_empty() && other.others == names);
    drop(turn);
}

#[tokio::test]
async fn a_unit_of_stat_waits_for_nobody_whose_encode_may_take_longer_than_its_own() {
    let site = site(LONG).await;
    let [a, b] = &site.encoders;
    let job = job("a", 1);
    let turn = a.elsewhere.claim(&names(a, &job, &[1]).await).await;
    let made = unit(b, (&job, Class::Stat), &[1]);
    alive(&[a, b], made).await.expect("encodes");
    assert_eq!(b.metrics.frames.get(), 1);
    assert_eq!(b.metrics.claims(), [0, 1, 0]);
    assert_eq!(b.metrics.held(), [0, 0, 1]);
    drop(turn);
}

/// A server whose copy of the claims is behind says of each that it is free, while its holder works.
#[tokio::test]
async fn who_hears_too_early_that_claims_are_gone_does_not_ask_all_the_time() {
    let site = site(LONG).await;
    let [a, _] = &site.encoders;
    let free = names(a, &job("a", 1), &[1]).await;
    let asked = Instant::now();
    let since = asked - 2 * PAUSE_SHARE * PAUSE.1;
    a.elsewhere.freed(&free, (since, asked + PATIENCE)).await;
    assert!(asked.elapsed() >= PAUSE.1);
}

#[tokio::test]
async fn without_nats_images_are_encoded_and_after_it_they_are_claimed_again() {
    let mut site = site(SHORT).await;
    let [a, _] = &site.encoders;
    let job = job("a", 1);
    site.server.kill9().await.expect("ends");
    let made = unit(a, (&job, Class::Routine), &[1]);
    alive(&[a], made).await.expect("encodes");
    assert_eq!(a.metrics.frames.get(), 1);
    assert_eq!(a.metrics.claims(), [0, 0, 1]);
    site.server.restart().await.expect("starts");
    let open = wait_until(PATIENCE, "claims to be possible", async || {
        a.elsewhere.lock().is_open.then_some(())
    });
    alive(&[a], open).await.expect("opens");
    let made = unit(a, (&job, Class::Routine), &[2]);
    alive(&[a], made).await.expect("encodes");
    assert_eq!(a.metrics.claims(), [1, 0, 1]);
}

/// As where servers of a cluster lost the claims before they had them from each other again: nobody leads them any more, for good.
#[tokio::test]
async fn claims_that_no_server_leads_are_made_anew() {
    let folder = std::env::temp_dir();
    let members = Member::all(kit::own_address(), 3);
    let started = members.map(|member| NatsServer::start_member(&folder, member));
    let mut servers = try_join_all(started).await.expect("start");
    let mut config = config(&servers[0], BRIEF);
    config.urls = servers.iter().map(NatsServer::url).collect();
    let met = wait_until(PATIENCE, "servers to be a cluster", async || {
        kit::queue(&config).await.ok()
    });
    met.await.expect("meet");
    let store = store();
    let a = encoder(&config, &store, ("http://a", FRAME)).await;
    // The one that has them, as there is one copy, goes for good.
    let leader = wait_until(PATIENCE, "claims to have a leader", async || {
        let info = servers[0].ask("$JS.API.STREAM.INFO.KV_CLAIMS").await.ok()?;
        let info = String::from_utf8(info).ok()?;
        (0..3_usize).find(|node| info.contains(&format!("\"leader\":\"{NODE}{node}\"")))
    });
    let leader = leader.await.expect("is led");
    servers[leader].kill9().await.expect("ends");
    let job = job("a", 1);
    let made = unit(&a, (&job, Class::Routine), &[1]);
    alive(&[&a], made).await.expect("encodes");
    assert_eq!(a.metrics.claims(), [0, 0, 1]);
    let open = wait_until(2 * PATIENCE, "claims to be possible", async || {
        a.elsewhere.lock().is_open.then_some(())
    });
    alive(&[&a], open).await.expect("opens");
    let made = unit(&a, (&job, Class::Routine), &[2]);
    alive(&[&a], made).await.expect("encodes");
    assert_eq!(a.metrics.claims(), [1, 0, 1]);
}
