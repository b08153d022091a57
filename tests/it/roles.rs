//! What `deploy/nats-roles.conf` lets each service do in NATS: enough for the fleet, also where something dies, and no more.

use anyhow::{Result, ensure};
use medfleet_proto::v1::Class;
use medfleet_tests::client::{inline, report};
use medfleet_tests::fleet::{Fleet, OPERATOR, Options, Role};
use medfleet_tests::picture;
use toml::{Table, toml};

async fn start(shards: i64) -> Result<Fleet> {
    let store = toml! {
        kind = "jetstream"
        bucket = "medfleet"
        replicas = 1
    };
    Fleet::start(Options {
        store: Some(store),
        queue: Table::from_iter([("record_shards".into(), shards.into())]),
        roles: true,
        ..Options::default()
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_service_may_what_it_needs() -> Result<()> {
    let fleet = start(1).await?;
    let client = fleet.client("st-mary").await?;
    let first = client.submit(report(vec![inline(picture::png(64, 1)?)]));
    let first = client.wait_completed(&first.await?.name).await?;
    // Others take what a worker had, after the connections of all were lost.
    fleet.kill9(Role::Encode).await?;
    let second = report(vec![inline(picture::png(64, 2)?)]);
    let second = client.submit(second).await?;
    fleet.restart_nats().await?;
    fleet.start_role(Role::Encode).await?;
    client.wait_completed(&second.name).await?;
    let no_picture = client.submit(report(vec![inline(b"no picture".to_vec())]));
    client.wait_final(&no_picture.await?.name).await?;
    let operator = fleet.client(OPERATOR).await?;
    operator.pause("st-mary", Class::Bulk).await?;
    operator.resume("st-mary", Class::Bulk).await?;
    client.erase(&first.name).await?;
    fleet.wait_idle().await?;
    // A worker that ends hands back what it has.
    for (role, subject) in [
        (Role::Preprocess, "ready.preprocess.test-pool"),
        (Role::Encode, "ready.encode.test-pool"),
        // Where no server of a cluster leads them any more.
        (Role::Encode, "$JS.API.STREAM.DELETE.KV_CLAIMS"),
        (Role::Decode, "ready.decode.test-pool"),
    ] {
        let may = fleet.may_publish(role, subject).await?;
        ensure!(may, "{role:?} may not publish to {subject}");
    }
    // A server whose feature flag `js_ack_fc_v2` is set has domain (`_` for none) and account before the stream.
    for (role, stage) in [
        (Role::Preprocess, "PREPROCESS"),
        (Role::Encode, "ENCODE"),
        (Role::Decode, "DECODE"),
    ] {
        let subject = format!("$JS.ACK._.account.WORK_{stage}.test-pool_stat.1.1.1.1.0");
        let may = fleet.may_publish(role, &subject).await?;
        ensure!(may, "{role:?} may not publish to {subject}");
    }
    // An edge hears what is to be ended at its hub.
    for subject in ["cancel.*.*", "erased.*.*"] {
        let may = fleet.may_subscribe(Role::Ingest, subject).await?;
        ensure!(may, "ingest may not listen to {subject}");
    }
    let refusals = fleet.refusals().await?;
    ensure!(refusals.is_empty(), "{refusals:?}");
    Ok(())
}

/// The streams of records are called otherwise then, and the file's head says how.
#[tokio::test(flavor = "multi_thread")]
async fn each_service_may_what_it_needs_with_records_in_shards() -> Result<()> {
    let fleet = start(2).await?;
    let client = fleet.client("st-mary").await?;
    for seed in 0..4 {
        let job = client.submit(report(vec![inline(picture::png(64, seed)?)]));
        client.wait_completed(&job.await?.name).await?;
    }
    let refusals = fleet.refusals().await?;
    ensure!(refusals.is_empty(), "{refusals:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_worker_may_more() -> Result<()> {
    let fleet = start(1).await?;
    for role in [Role::Preprocess, Role::Encode, Role::Decode] {
        let is_let_in = fleet.may_publish(role, "$JS.API.INFO").await?;
        ensure!(is_let_in, "{role:?} may do nothing");
        for subject in [
            "audit.st-mary",
            "work.encode.test-pool.stat.st-mary.job.0",
            "intake.preprocess.test-pool.stat.st-mary.job.0",
            "$KV.PAUSES._.bulk",
            "$KV.LEASES.dispatcher",
            "$KV.UPLOADS.st-mary.upload",
            "$JS.API.STREAM.CREATE.ANOTHER",
            "$JS.API.STREAM.UPDATE.AUDIT",
            "$JS.API.STREAM.DELETE.KV_JOBS_0",
            "$JS.API.STREAM.PURGE.KV_JOBS_0",
            "$JS.API.STREAM.PURGE.DEAD",
            "$JS.API.STREAM.MSG.GET.AUDIT",
            "$JS.API.DIRECT.GET.AUDIT",
            "$JS.API.DIRECT.GET.KV_UPLOADS",
            "$JS.API.DIRECT.GET.AUDIT.audit.st-mary",
            "$JS.API.CONSUMER.CREATE.AUDIT.spy",
        ] {
            let may = fleet.may_publish(role, subject).await?;
            ensure!(!may, "{role:?} may publish to {subject}");
        }
    }
    // Units of another stage.
    for (role, stage) in [
        (Role::Preprocess, "ENCODE"),
        (Role::Encode, "DECODE"),
        (Role::Decode, "PREPROCESS"),
    ] {
        let own = role.name().to_uppercase();
        for subject in [
            format!("$JS.API.CONSUMER.MSG.NEXT.WORK_{stage}.test-pool_stat"),
            // A server looks at the stream alone, and not at what stands in place of the deliveries.
            format!("$JS.ACK.WORK_{stage}.test-pool_stat.WORK_{own}.1.1.1.0"),
            format!("$JS.ACK.WORK_{stage}.test-pool_stat.1.1.1.1.0"),
            format!("$JS.ACK._.account.WORK_{stage}.test-pool_stat.1.1.1.1.0"),
        ] {
            let may = fleet.may_publish(role, &subject).await?;
            ensure!(
                !may,
                "{role:?} may take units of {stage}, or settle them: {subject}"
            );
        }
    }
    Ok(())
}
