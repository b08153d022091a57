//! Short seeds of what `make chaos` runs long: jobs of five tenants while processes, links, NATS and the disk break.

use std::io::Write;
use std::time::Duration;

use anyhow::{Result, ensure};
use medfleet_core::BlobKind;
use medfleet_testkit::tenant;
use medfleet_tests::chaos::disk::{Disk, Kind};
use medfleet_tests::chaos::run::{Options, run};
use medfleet_tests::config;

/// The means are checked first: fleets are right however little a fault does.
#[tokio::test]
async fn a_store_that_cannot_be_written_to_takes_nothing_until_it_can() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = Disk::make(folder.path().join("disk"), Kind::Plain)?;
    let store = config::store(&disk.blobs())?;
    let tenant = tenant();
    let put = async |content: &'static str| {
        let kind = BlobKind::Tokens;
        store.put(&tenant, kind, content.into()).await
    };
    let first = put("first").await?;
    disk.forbid_writes()?;
    let refused = put("second").await.err();
    ensure!(refused.is_some(), "it was written");
    let kept = store.get(&tenant, BlobKind::Tokens, &first).await?;
    ensure!(kept == "first", "{kept:?}");
    disk.allow_writes()?;
    put("second").await?;
    Ok(())
}

/// One of each that go on beside each other: fewer are no storm.
const FAULTS_MIN: u64 = 3;

async fn storm(seed: u64, nodes: usize) -> Result<()> {
    let options = Options {
        jobs: 32,
        horizon: Duration::from_secs(6),
        nodes,
        instances: 2,
        disk: Kind::Plain,
    };
    let report = run(seed, &options).await?;
    writeln!(std::io::stderr(), "{report:?}")?;
    let faults: u64 = report.faults.values().map(|(times, _)| times).sum();
    ensure!(faults >= FAULTS_MIN, "{report:?}");
    Ok(())
}

macro_rules! storms {
    ($($name:ident: $seed:literal over $nodes:literal,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() -> Result<()> {
                storm($seed, $nodes).await
            }
        )*
    };
}

storms! {
    seed_101: 101 over 1,
    seed_102: 102 over 1,
    seed_103: 103 over 1,
    seed_104: 104 over 1,
    seed_105: 105 over 1,
    seed_106: 106 over 1,
    seed_107: 107 over 1,
    seed_108_on_a_cluster: 108 over 3,
}
