//! A tenant cannot see, name, guess or stop what belongs to another, nor fill the store for it.

use anyhow::{Context, Result, ensure};
use medfleet_proto::FILE_DESCRIPTOR_SET;
use medfleet_proto::v1::SubmitJobRequest;
use medfleet_testkit::wait_until;
use medfleet_tests::alerts;
use medfleet_tests::client::{Client, PATIENCE, Seen, inline, refused, report, uploaded};
use medfleet_tests::fleet::{Fleet, Options, Role, http_get};
use medfleet_tests::picture;
use prost::Message;
use prost_types::FileDescriptorSet;
use toml::toml;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use crate::slow_request::Nothing;

#[tokio::test(flavor = "multi_thread")]
async fn another_tenants_job_does_not_exist() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let (owner, other) = fleet.two_clients().await?;
    let picture = picture::png(64, 1)?;
    let request = SubmitJobRequest {
        request_id: "accession-19".to_owned(),
        ..report(vec![inline(picture.clone())])
    };
    let job = owner.submit(request).await?;
    owner.watch_to_end(&job.name).await?;
    let (upload, bytes) = (owner.upload(&picture).await?, picture.len() as u64);
    let begun = owner.upload_part("", 0, bytes, &picture[..8]).await?.name;

    let nobodys = format!("jobs/{}", "0".repeat(32));
    let unknown = refused(other.get(&nobodys).await, Code::NotFound)?;
    let answers = [
        other.get(&job.name).await.err(),
        other.get_by_request_id("accession-19").await.err(),
        other.result(&job.name).await.err(),
        other.cancel(&job.name).await.err(),
        other.erase(&job.name).await.err(),
        other.get_upload(&upload).await.err(),
        other.upload_part(&begun, 0, bytes, &picture).await.err(),
        other.submit(report(vec![uploaded(&upload)])).await.err(),
        match other.watch(&job.name, &Seen::default()).await {
            Err(status) => Some(status),
            Ok(mut stream) => stream.message().await.err(),
        },
    ];
    for (index, answer) in answers.into_iter().enumerate() {
        ensure!(
            answer.as_ref().map(Status::code) == Some(Code::NotFound),
            "call {index}: {answer:?}"
        );
    }
    let foreign = refused(other.get(&job.name).await, Code::NotFound)?;
    ensure!(
        foreign.message().replace(&job.name, "") == unknown.message().replace(&nobodys, ""),
        "a foreign job can be told from one that never was: {foreign:?} {unknown:?}"
    );
    ensure!(
        other.list(100, "").await?.0.is_empty(),
        "the other tenant sees jobs"
    );
    // All of it is as it was.
    ensure!(owner.get(&job.name).await?.erase_time.is_none());
    owner.result(&job.name).await?;
    let rest = owner.get_upload(&begun).await?;
    ensure!(!rest.complete, "{rest:?}");
    Ok(())
}

/// Every method of the public API, as the path of a call.
fn methods() -> Result<Vec<String>> {
    let files = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET)?;
    let mut paths = Vec::new();
    for file in &files.file {
        if file.package() != "medfleet.v1" {
            continue;
        }
        for service in &file.service {
            for method in &service.method {
                paths.push(format!("/medfleet.v1.{}/{}", service.name(), method.name()));
            }
        }
    }
    Ok(paths)
}

/// How a call with an empty message is refused.
async fn refusal(channel: &Channel, path: &str, token: Option<&str>) -> Result<Status> {
    let mut call = tonic::client::Grpc::new(channel.clone());
    call.ready().await.context("the server is there")?;
    let mut request = Request::new(());
    if let Some(token) = token {
        let metadata = request.metadata_mut();
        metadata.insert("authorization", format!("Bearer {token}").parse()?);
    }
    // One message and its end are a request of a method of any kind, and a refusal is an answer to it.
    let path_and_query: PathAndQuery = path.parse()?;
    let answer = call.server_streaming(request, path_and_query, Nothing);
    let answer = tokio::time::timeout(PATIENCE, answer).await?;
    answer
        .err()
        .with_context(|| format!("{path} was answered with {token:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_token_no_answer() -> Result<()> {
    const OPERATORS: &str = "/medfleet.v1.OperatorService/";
    let fleet = Fleet::start(Options::default()).await?;
    let tokens = std::fs::read_to_string(fleet.tokens_file())?;
    ensure!(
        !tokens.contains(&fleet.token("st-mary")),
        "the tokens file holds a token, not its hash"
    );
    let channel = Channel::from_shared(fleet.url())?.connect().await?;
    let methods = methods()?;
    for known in ["JobService/WatchJob", "DeadLetterService/GetDeadLetter"] {
        let is_there = methods.iter().any(|path| path.ends_with(known));
        ensure!(is_there, "no {known} among {methods:?}");
    }
    for path in &methods {
        for token in [None, Some("mf_wrong")] {
            let refused = refusal(&channel, path, token).await?;
            let code = refused.code();
            ensure!(code == Code::Unauthenticated, "{path}: {refused:?}");
        }
    }
    // Nor does any tenant's do for what is an operator's.
    let of_operators = methods.iter().filter(|path| path.starts_with(OPERATORS));
    let of_operators: Vec<&String> = of_operators.collect();
    ensure!(!of_operators.is_empty(), "{methods:?}");
    for path in of_operators {
        let refused = refusal(&channel, path, Some(&fleet.token("st-mary"))).await?;
        let code = refused.code();
        ensure!(code == Code::PermissionDenied, "{path}: {refused:?}");
    }
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

/// That neither a job nor an upload of the tenant is taken, for what it has stored.
async fn is_at_its_quota(client: &Client, film: &[u8]) -> Result<()> {
    let refused = [
        client.submit_picture(film.to_vec()).await.err(),
        client.upload(film).await.err(),
    ];
    for refused in refused {
        let refused = refused.context("it has as much as it may")?;
        let details = refused.get_error_details();
        let reason = details.error_info().map(|info| info.reason.as_str());
        ensure!(
            (refused.code(), reason) == (Code::ResourceExhausted, Some("QUOTA")),
            "{refused:?}"
        );
        ensure!(details.retry_info().is_some(), "{refused:?}");
        ensure!(
            refused.message().contains("stored_bytes_max"),
            "{refused:?}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_stored_what_it_may_is_refused_until_some_of_it_is_erased() -> Result<()> {
    let ingest = toml! {
        [quotas.tenants.st-mary]
        stored_bytes_max = "64KiB"
    };
    let fleet = Fleet::with_ingest(ingest).await?;
    let (mary, john) = fleet.two_clients().await?;
    // 40 kB each.
    let (first, second) = (picture::noise(200, 1)?, picture::noise(200, 2)?);
    let request = SubmitJobRequest {
        request_id: "accession-18".to_owned(),
        ..report(vec![inline(first)])
    };
    let job = mary.submit(request.clone()).await?;
    is_at_its_quota(&mary, &second).await?;
    john.submit_picture(second.clone()).await?;
    // What was accepted is done, whatever comes of it, and found again.
    mary.wait_completed(&job.name).await?;
    ensure!(mary.submit(request).await?.name == job.name);

    // Another process has taken in nothing of it: it knows what the store holds.
    fleet.kill9(Role::Ingest).await?;
    fleet.start_role(Role::Ingest).await?;
    let mary = fleet.client("st-mary").await?;
    let page = wait_until(PATIENCE, "the first count", async || {
        let (_, page) = http_get(fleet.admin(Role::Ingest), "/metrics").await.ok()?;
        let counted = "medfleet_stored_bytes{tenant=\"st-mary\"}";
        page.contains(counted).then_some(page)
    })
    .await?;
    let limit = "medfleet_stored_limit_bytes{tenant=\"st-mary\"} 65536";
    ensure!(page.contains(limit), "{page}");
    is_at_its_quota(&mary, &second).await?;

    mary.erase(&job.name).await?;
    let job = wait_until(PATIENCE, "room for another film", async || {
        mary.submit_picture(second.clone()).await.ok()
    })
    .await?;
    mary.wait_completed(&job.name).await?;
    Ok(())
}

/// Whether the alert fires by what ingest tells of a tenant, once it has counted.
async fn is_alerted(fleet: &Fleet, tenant: &str, fires: bool) -> Result<()> {
    let series = ["medfleet_stored_bytes", "medfleet_stored_limit_bytes"];
    let [stored, limit] = series.map(|name| format!("{name}{{tenant=\"{tenant}\"}}"));
    let admin = fleet.admin(Role::Ingest);
    let (has, may_have) = wait_until(PATIENCE, "a count of what is stored", async || {
        let has = alerts::told(admin, &stored).await.ok()?;
        let may_have = alerts::told(admin, &limit).await.ok()?;
        // What was stored while a count was under way may be in it twice, until the next one.
        ((has >= may_have) == fires).then_some((has, may_have))
    })
    .await?;
    let told = [(&*stored, (has, has)), (&*limit, (may_have, may_have))];
    alerts::expect("MedfleetTenantNearlyFull", fires, &told).await
}

/// A film fills the quota to its last byte. Whoever has sent it is not refused for it afterwards. The alert fires for that tenant,
/// and not for one that has as much and may have twice that.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_before_the_quota_was_full_is_done() -> Result<()> {
    let film = picture::noise(200, 1)?;
    let quotas = format!(
        "[quotas.tenants]\nst-mary.stored_bytes_max = \"{} B\"\nst-john.stored_bytes_max = \"{} B\"\n",
        film.len(),
        2 * film.len()
    );
    let fleet = Fleet::with_ingest(toml::from_str(&quotas)?).await?;
    let (mary, john) = fleet.two_clients().await?;
    let upload = mary.upload(&film).await?;
    john.upload(&film).await?;
    is_at_its_quota(&mary, &film).await?;
    is_alerted(&fleet, "st-mary", true).await?;
    is_alerted(&fleet, "st-john", false).await?;
    let job = mary.submit(report(vec![uploaded(&upload)])).await?;
    mary.wait_completed(&job.name).await?;
    is_at_its_quota(&mary, &film).await
}
