//! Every process of every service is stopped and started, one after the other, while jobs come in: each ends with exit
//! code 0, every job completes in its first attempt, and a client sees nothing but "connect to the other one".

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use medfleet_tests::chaos::check::check;
use medfleet_tests::chaos::herd::Herd;
use medfleet_tests::chaos::load::jobs;
use medfleet_tests::upgrade::roll::{UPGRADE, roll, two_of_each};

#[tokio::test(flavor = "multi_thread")]
async fn restart_of_everything_under_load() -> Result<()> {
    let herd = Herd::start(two_of_each()).await?;
    let clients = herd.clients()?;
    let jobs = jobs(11, 40, Duration::from_secs(8))?;
    let rolled = roll(&herd, UPGRADE, None);
    let (accepted, rolled) = tokio::join!(clients.send(jobs), rolled);
    rolled?;
    let accepted = accepted.context("a client saw an error")?;
    let found = check(&herd, &clients, &accepted).await?;
    ensure!(found.completed == 40, "{found:?}");
    ensure!(
        found.further_attempts == 0,
        "a drain counted as a start: {found:?}"
    );
    writeln!(std::io::stderr(), "calls made again: {}", clients.retried())?;
    Ok(())
}
