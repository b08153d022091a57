//! A tenant cannot see, name, guess or stop what belongs to another.

use anyhow::{Result, ensure};
use medfleet_tests::client::{Seen, report, uploaded};
use medfleet_tests::fleet::{Fleet, Options};
use medfleet_tests::picture;
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn another_tenants_job_does_not_exist() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let (owner, other) = (
        fleet.client("st-mary").await?,
        fleet.client("st-john").await?,
    );
    let picture = picture::png(64, 1)?;
    let job = owner.submit_picture(picture.clone()).await?;
    owner.watch_to_end(&job.name).await?;
    let upload = owner.upload(&picture).await?;

    let unknown = other
        .get("jobs/00000000000000000000000000000000")
        .await
        .expect_err("no such job");
    let answers = [
        other.get(&job.name).await.err(),
        other.result(&job.name).await.err(),
        other.cancel(&job.name).await.err(),
        other.get_upload(&upload).await.err(),
        other.submit(report(vec![uploaded(&upload)])).await.err(),
        match other.watch(&job.name, &Seen::default()).await {
            Err(status) => Some(status),
            Ok(mut stream) => stream.message().await.err(),
        },
    ];
    for (index, answer) in answers.into_iter().enumerate() {
        ensure!(
            answer.as_ref().map(tonic::Status::code) == Some(Code::NotFound),
            "call {index}: {answer:?}"
        );
    }
    let foreign = other.get(&job.name).await.expect_err("not theirs");
    ensure!(
        foreign.message().replace(&job.name, "")
            == unknown
                .message()
                .replace("jobs/00000000000000000000000000000000", ""),
        "a foreign job can be told from one that never was: {foreign:?} {unknown:?}"
    );
    ensure!(
        other.list(100, "").await?.0.is_empty(),
        "the other tenant sees jobs"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_token_no_answer() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let stranger = fleet.client_with_token("mf_wrong").await?;
    let refused = stranger.list(10, "").await.expect_err("not a token");
    ensure!(refused.code() == Code::Unauthenticated, "{refused:?}");
    let tokens = std::fs::read_to_string(fleet.tokens_file())?;
    ensure!(
        !tokens.contains(&fleet.token("st-mary")),
        "the tokens file holds a token, not its hash"
    );
    Ok(())
}

/// The same picture of two tenants is stored twice, under names that tell neither of the other.
#[tokio::test(flavor = "multi_thread")]
async fn equal_content_has_different_names() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    for tenant in ["st-mary", "st-john"] {
        let client = fleet.client(tenant).await?;
        let job = client.submit_picture(picture::png(64, 4)?).await?;
        client.watch_to_end(&job.name).await?;
    }
    let (mary, john) = (fleet.stored("st-mary")?, fleet.stored("st-john")?);
    ensure!(
        !mary.is_empty() && !john.is_empty(),
        "both stored something"
    );
    ensure!(mary.is_disjoint(&john), "two tenants share a blob name");
    Ok(())
}
