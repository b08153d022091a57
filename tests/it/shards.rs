//! A fleet whose records are in eight shards: every job ends, and a new ingest and an operator know all of them.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use medfleet_tests::fleet::{Fleet, OPERATOR, Options, Role};
use medfleet_tests::picture;
use toml::toml;

/// Of so many jobs hardly any shard has none.
const JOBS: u32 = 24;

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_every_shard_end_and_a_new_ingest_knows_them() -> Result<()> {
    let fleet = Fleet::start(Options {
        queue: toml! { record_shards = 8 },
        ..Options::default()
    })
    .await?;
    let client = fleet.client("st-mary").await?;
    // So none of them ends before all are counted.
    fleet.stop_role(Role::Preprocess).await?;
    let mut jobs = BTreeSet::new();
    for seed in 0..JOBS {
        let job = client.submit_picture(picture::png(32, seed)?).await?;
        jobs.insert(job.name);
    }
    fleet.kill9(Role::Ingest).await?;
    fleet.start_role(Role::Ingest).await?;

    let client = fleet.client("st-mary").await?;
    let operator = fleet.client(OPERATOR).await?;
    let (open, _) = operator.requeue().await?;
    ensure!(open == JOBS, "{open} open jobs were found");
    fleet.start_role(Role::Preprocess).await?;
    for job in &jobs {
        client.wait_completed(job).await?;
    }
    let (listed, _) = client.list(100, "").await?;
    let listed: BTreeSet<_> = listed.into_iter().map(|job| job.name).collect();
    ensure!(listed == jobs, "{listed:?}");
    Ok(())
}
