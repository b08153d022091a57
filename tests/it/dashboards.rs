//! Where a Prometheus with the shipped rules scrapes a fleet at work, every query of a dashboard and of the chart has data, and so
//! has every series, with the labels that it is chosen by, that a rule asks for; and what is exported is what the reference of
//! metrics lists, in both directions.

use anyhow::{Context, Result, ensure};
use medfleet_proto::v1::{Class, JobState};
use medfleet_testkit::wait_until;
use medfleet_tests::client::{Client, PATIENCE};
use medfleet_tests::fleet::{Fleet, Model, OPERATOR, Options, Pace, Role};
use medfleet_tests::picture;
use medfleet_tests::prometheus::Prometheus;
use toml::toml;

/// What the dashboards show beside work that goes well, each above zero once it was provoked.
const PROVOKED: [&str; 5] = [
    "sum(medfleet:units:rate5m{verdict=\"retry\"}) > 0",
    "sum(medfleet:units:rate5m{verdict=\"reject\"}) > 0",
    "sum(medfleet:redeliveries:rate5m) > 0",
    "max(medfleet_dead_letters) > 0",
    "sum(rate(medfleet_encode_frame_looks_total{outcome=\"hit\"}[5m])) > 0",
];

/// A job is given up on because its study was damaged; another is tried again until its study can be read. That one is erased
/// then: whoever makes room under a quota has what is stored counted at once.
async fn trouble(fleet: &Fleet, prometheus: &Prometheus, clients: [&Client; 2]) -> Result<()> {
    let [mary, john] = clients;
    fleet.stop_role(Role::Preprocess).await?;
    let damaged = mary.submit_picture(picture::png(64, 1)?).await?;
    fleet.damage_one_blob("study")?;
    let hidden = john.submit_picture(picture::png(64, 1)?).await?;
    let show = fleet.hide_study()?;
    fleet.start_role(Role::Preprocess).await?;
    prometheus
        .wait_for("sum(medfleet_preprocess_units_total{verdict=\"retry\"}) > 0")
        .await?;
    show()?;
    for (client, job, expected) in [
        (mary, &damaged, JobState::Failed),
        (john, &hidden, JobState::Completed),
    ] {
        let job = client.wait_final(&job.name).await?;
        ensure!(job.state() == expected, "{job:?}");
    }
    john.erase(&hidden.name).await?;
    Ok(())
}

/// One tenant shows a new picture, twice. Another's job stays open, as soon as what is held back is known
/// to the dispatcher.
async fn work(clients: [&Client; 2], round: u32) -> Result<()> {
    let [mary, john] = clients;
    john.submit_picture(picture::png(64, round)?).await?;
    for _ in 0..2 {
        let job = mary.submit_picture(picture::png(64, round)?).await?;
        mary.wait_completed(&job.name).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_query_has_data_and_the_reference_lists_what_is_exported() -> Result<()> {
    let pace = Pace {
        encode_millis: 20,
        prefill_millis: 20,
        step_millis: 10,
    };
    let ingest = toml! {
        [quotas.default]
        stored_bytes_max = "1GiB"
    };
    let fleet = Fleet::start(Options {
        model: Model::Simulated(pace),
        ingest,
        ..Options::default()
    })
    .await?;
    // What rises before it is seen for the first time has not risen.
    let prometheus = Prometheus::watching(&fleet).await?;
    let (mary, john) = (
        fleet.client("st-mary").await?,
        fleet.client("st-john").await?,
    );
    let clients = [&mary, &john];
    trouble(&fleet, &prometheus, clients).await?;
    let operator = fleet.client(OPERATOR).await?;
    operator.pause("st-john", Class::Unspecified).await?;

    let (mut round, mut amiss) = (1, Vec::new());
    let asked = wait_until(PATIENCE, "data for every query", async || {
        round += 1;
        let asked = async {
            work(clients, round).await?;
            prometheus.amiss().await
        };
        match asked.await {
            Ok(found) => amiss = found,
            Err(error) => return Some(Err(error)),
        }
        amiss.is_empty().then_some(Ok(()))
    });
    let asked = asked.await.and_then(|asked| asked);
    asked.with_context(|| format!("amiss:\n{}", amiss.join("\n")))?;
    for provoked in PROVOKED {
        prometheus.wait_for(provoked).await?;
    }
    Ok(())
}
