//! What was given up on can be found, looked at, started over and put away; by its own tenant only.

use anyhow::{Context, Result, bail, ensure};
use medfleet_proto::v1::{DeadLetter, FailureReason, JobState};
use medfleet_tests::client::{Client, refused};
use medfleet_tests::fleet::{Fleet, Options, Role};
use tonic::Code;

use crate::fail_closed::encoded;

/// Fails a job by losing its tokens, and returns its name and its letter.
pub(crate) async fn failed(fleet: &Fleet, client: &Client) -> Result<(String, DeadLetter)> {
    let job = encoded(fleet, client, &[1]).await?;
    fleet.remove_tokens()?;
    fleet.start_role(Role::Encode).await?;
    fleet.start_role(Role::Decode).await?;
    client
        .wait_failed(&job, FailureReason::ImageMissing)
        .await?;
    let letter = client.wait_letter().await?;
    let (letters, next) = client.dead_letters(10, "").await?;
    ensure!(next.is_empty() && letters.len() == 1, "{letters:?}");
    ensure!(letter.job == job && letter.stage == "decode");
    Ok((job, letter))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_started_over_and_completes() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let client = fleet.client("st-mary").await?;
    let (job, letter) = failed(&fleet, &client).await?;
    let failure = letter.failure.as_ref().context("a letter says why")?;
    ensure!(failure.reason() == FailureReason::ImageMissing);
    ensure!(client.dead_letter(&letter.name).await? == letter);
    // As an earlier release named it.
    ensure!(client.dead_letter("deadLetters/1").await? == letter);

    let again = client.replay(&letter.name).await?;
    ensure!(again.name == job && again.failure.is_none(), "{again:?}");
    client.wait_completed(&job).await?;
    client.result(&job).await?;
    let seen = client.watch_to_end(&job).await?;
    ensure!(!seen.text.is_empty(), "a watcher sees the new text");
    ensure!(client.dead_letters(10, "").await?.0.is_empty());
    // The first answer may have been lost: it is the same job, and goes on as it was.
    let asked_again = client.replay(&letter.name).await?;
    ensure!(asked_again == client.get(&job).await?, "{asked_again:?}");
    ensure!(asked_again.state() == JobState::Completed);
    refused(client.dead_letter(&letter.name).await, Code::NotFound)?;
    Ok(())
}

/// As an operator at a terminal, or a script, has it.
#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_shows_letters_starts_over_and_puts_away() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let client = fleet.client("st-mary").await?;
    let json = async |arguments: &[&str]| fleet.command_json("st-mary", arguments).await;
    let (job, letter) = failed(&fleet, &client).await?;
    let watched = fleet.command("st-mary", &["watch", &job, "--json"]).await?;
    let told = String::from_utf8_lossy(&watched.stdout);
    ensure!(
        watched.status.code() == Some(1) && told.contains("IMAGE_MISSING"),
        "{watched:?}"
    );
    let listed = json(&["dead", "list", "--json"]).await?;
    ensure!(
        listed == json(&["dead", "show", &letter.name, "--json"]).await?,
        "{listed:?}"
    );
    let [shown] = listed.as_slice() else {
        bail!("{listed:?}");
    };
    ensure!(
        shown["name"] == letter.name
            && shown["job"] == job
            && shown["stage"] == "decode"
            && shown["failure"]["reason"] == "IMAGE_MISSING",
        "{shown}"
    );
    let again = json(&["dead", "replay", &letter.name, "--json"]).await?;
    ensure!(again.len() == 1 && again[0]["name"] == job, "{again:?}");
    client.wait_completed(&job).await?;
    json(&["watch", &job, "--json"]).await?;
    ensure!(json(&["dead", "list", "--json"]).await?.is_empty());

    let (job, letter) = failed(&fleet, &client).await?;
    json(&["dead", "discard", &letter.name, "--json"]).await?;
    ensure!(json(&["dead", "list", "--json"]).await?.is_empty());
    ensure!(client.get(&job).await?.state() == JobState::Failed);
    // Of many that a script asks for, which one it was.
    let asked = ["dead", "show", &letter.name];
    let gone = fleet.command("st-mary", &asked).await?;
    let said = String::from_utf8_lossy(&gone.stderr);
    ensure!(
        gone.status.code() == Some(1) && said.contains(&letter.name),
        "{gone:?}"
    );
    let nobodys = format!("jobs/{}", "0".repeat(32));
    let unknown = fleet.command("st-mary", &["get", &nobodys]).await?;
    let said = String::from_utf8_lossy(&unknown.stderr);
    ensure!(
        unknown.status.code() == Some(1) && said.contains(&nobodys),
        "{unknown:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_are_their_tenants_own() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let owner = fleet.client("st-mary").await?;
    let (job, letter) = failed(&fleet, &owner).await?;
    let other = fleet.client("st-john").await?;
    ensure!(other.dead_letters(10, "").await?.0.is_empty());
    refused(other.dead_letter(&letter.name).await, Code::NotFound)?;
    refused(other.replay(&letter.name).await, Code::NotFound)?;
    // Answers as if it were gone, and takes nothing away.
    other.discard(&letter.name).await?;
    ensure!(owner.dead_letter(&letter.name).await? == letter);

    owner.discard(&letter.name).await?;
    owner.discard(&letter.name).await?;
    ensure!(owner.dead_letters(10, "").await?.0.is_empty());
    refused(owner.replay(&letter.name).await, Code::NotFound)?;
    ensure!(owner.get(&job).await?.state() == JobState::Failed);
    let wrong = owner.dead_letter("deadLetters/x").await;
    refused(wrong, Code::InvalidArgument)?;
    Ok(())
}
