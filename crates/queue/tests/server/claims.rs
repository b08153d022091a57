//! Claims: one holder each, over by themselves when they are not renewed, and made possible again after a server lost them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use medfleet_queue::Queue;
use medfleet_testkit::{self as kit, NatsServer, wait_until};

use crate::{PATIENCE, short, start_with};

const HOUR: u64 = 3_600_000;

async fn start(ttl_millis: u64) -> Result<(NatsServer, Queue)> {
    let (server, queue) = start_with(|config| config.lease_ttl = short(ttl_millis)).await?;
    queue.claims().prepare().await?;
    Ok((server, queue))
}

fn names(of: &[&str]) -> Vec<String> {
    of.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test]
async fn a_claim_has_one_holder_until_it_is_given_up() -> Result<()> {
    let (_server, queue) = start(HOUR).await?;
    let claims = queue.claims();
    ensure!(claims.are_free(&names(&["a", "b"])).await?);
    let first = claims.claim("a").await?.context("nobody has it")?;
    ensure!(claims.claim("a").await?.is_none(), "two holders");
    ensure!(!claims.are_free(&names(&["b", "a"])).await?);
    ensure!(claims.are_free(&names(&["b"])).await?);
    let second = claims.claim("b").await?.context("another one")?;
    let renewed = claims.renew("a", first).await?.context("it is held")?;
    // By what it was called before it is neither renewed nor given up.
    ensure!(claims.renew("a", first).await?.is_none());
    claims.release("a", first).await?;
    ensure!(claims.claim("a").await?.is_none());
    claims.release("a", renewed).await?;
    claims.release("b", second).await?;
    ensure!(claims.are_free(&names(&["a", "b"])).await?);
    ensure!(claims.claim("a").await?.is_some());
    Ok(())
}

#[tokio::test]
async fn a_claim_that_is_not_renewed_passes_on() -> Result<()> {
    let (_server, queue) = start(500).await?;
    let claims = queue.claims();
    let first = claims.claim("a").await?.context("nobody has it")?;
    let second = wait_until(PATIENCE, "the claim to end", async || {
        claims.claim("a").await.ok()?
    })
    .await?;
    ensure!(claims.renew("a", first).await?.is_none(), "two holders");
    claims.release("a", first).await?;
    let third = claims.claim("a").await?;
    ensure!(third.is_none() || claims.renew("a", second).await?.is_none());
    Ok(())
}

#[tokio::test]
async fn a_server_that_forgets_them_can_be_asked_again() -> Result<()> {
    let (mut server, queue) = start(HOUR).await?;
    let claims = queue.claims();
    let lost = claims.claim("a").await?.context("nobody has it")?;
    let before = queue.losses();
    server.kill9().await?;
    server.restart().await?;
    wait_until(PATIENCE, "the connection to be back", async || {
        (queue.losses() > before && queue.is_connected()).then_some(())
    })
    .await?;
    // No answer, soon, where there is no bucket any more.
    let asked = tokio::time::timeout(Duration::from_secs(30), claims.claim("a"));
    ensure!(asked.await?.is_err());
    claims.prepare().await?;
    let other = kit::queue(&kit::config(&server.url())).await?.claims();
    let held = other.claim("a").await?.context("it was forgotten")?;
    // Its place in the new bucket is that of the lost one in the old.
    ensure!(claims.renew("a", lost).await?.is_none());
    claims.release("a", lost).await?;
    ensure!(!claims.are_free(&names(&["a"])).await?);
    ensure!(other.renew("a", held).await?.is_some());
    Ok(())
}

/// As a cluster does when most of its servers were started again before they had caught up: who is connected to the others
/// hears nothing of it.
#[tokio::test]
async fn what_was_forgotten_behind_a_connection_takes_nothing_from_others() -> Result<()> {
    let (server, queue) = start(HOUR).await?;
    let claims = queue.claims();
    let lost = claims.claim("a").await?.context("nobody has it")?;
    let before = queue.losses();
    let client = async_nats::connect(server.url()).await?;
    let removed = client.request("$JS.API.STREAM.DELETE.KV_CLAIMS", "".into());
    removed.await?;
    claims.prepare().await?;
    let other = kit::queue(&kit::config(&server.url())).await?.claims();
    // It has the sequence that the lost one had.
    let held = other.claim("b").await?.context("nobody has it")?;
    ensure!(queue.losses() == before, "the connection was to stay");
    ensure!(claims.renew("a", lost).await?.is_none(), "it was forgotten");
    claims.release("a", lost).await?;
    ensure!(!claims.are_free(&names(&["b"])).await?, "another's claim");
    ensure!(other.renew("b", held).await?.is_some());
    Ok(())
}
