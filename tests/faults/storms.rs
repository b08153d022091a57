//! Short seeds of what `make chaos` runs long: jobs of five tenants while processes, links, NATS and the disk break.

use std::io::Write;
use std::time::Duration;

use anyhow::Result;
use medfleet_tests::chaos::disk::Kind;
use medfleet_tests::chaos::run::{Options, run};

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
