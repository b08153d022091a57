//! Fleets with limits of their own, and the command line, which learns of them from refusals.

use std::path::Path;
use std::process::Output;

use anyhow::{Result, ensure};
use medfleet_tests::fleet::Fleet;
use medfleet_tests::picture;
use toml::toml;

/// Side of a picture of which two are more than the command line sends within a request.
const SIDE: u32 = 600;

async fn report(fleet: &Fleet, study: &Path, flags: &[&str]) -> Result<Output> {
    let study = study.display().to_string();
    let submit = ["submit", &study, "--task", "report"];
    fleet
        .command("st-mary", &[&submit[..], flags].concat())
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_that_takes_little_within_a_request_is_sent_uploads() -> Result<()> {
    let fleet = Fleet::with_ingest(toml! {
        [limits]
        inline_bytes_max = "1B"
    })
    .await?;
    let folder = tempfile::tempdir()?;
    let film = folder.path().join("film.png");
    std::fs::write(&film, picture::png(64, 1)?)?;
    let output = report(&fleet, &film, &[]).await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    ensure!(said.contains("uploaded input 0"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_fleet_refuses_is_refused_before_files_are_sent() -> Result<()> {
    let fleet = Fleet::with_ingest(toml! {
        [limits]
        images_max = 2
    })
    .await?;
    let folder = tempfile::tempdir()?;
    let add = |seed: u32| -> Result<()> {
        let path = folder.path().join(format!("{seed}.png"));
        std::fs::write(path, picture::noise(SIDE, seed)?)?;
        Ok(())
    };
    add(1)?;
    add(2)?;
    let check = async |flags: &[&str], reason: &str| -> Result<()> {
        let output = report(&fleet, folder.path(), flags).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(2), "{said}");
        ensure!(said.contains(reason), "{said}");
        ensure!(
            !said.contains("upload") && !said.contains("inputs[0]"),
            "{said}"
        );
        Ok(())
    };
    check(&["--model", "unknown"], "model: one of ").await?;
    check(&["--time-to-live", "8d"], "time_to_live: above 0 up to 7d").await?;
    let output = report(&fleet, folder.path(), &[]).await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    ensure!(said.contains("uploaded input 1"), "{said}");
    add(3)?;
    check(&[], "report takes 1 to 2 images; found 3").await
}
