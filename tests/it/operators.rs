//! What an operator touches: admin ports, TLS, a certificate that ends, a queue that is away, a worker that is told to stop.

use std::ffi::OsStr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use medfleet_proto::v1::JobState;
use medfleet_testkit::wait_until;
use medfleet_tests::alerts;
use medfleet_tests::client::{Client, PATIENCE, inline, refused, report};
use medfleet_tests::config::job_key;
use medfleet_tests::fleet::{Fleet, Options, Role, Up, http_get};
use medfleet_tests::picture;
use tokio::process::Command;
use toml::{Table, Value, toml};

#[tokio::test(flavor = "multi_thread")]
async fn every_role_has_its_admin_port() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let client = fleet.client("st-mary").await?;
    let job = client.submit_picture(picture::png(32, 1)?).await?;
    client.watch_to_end(&job.name).await?;
    for role in Role::ALL {
        for path in ["/healthz", "/readyz", "/metrics"] {
            let (status, body) = http_get(fleet.admin(role), path).await?;
            ensure!(status == 200, "{role:?}{path}: {status} {body}");
            ensure!(
                path != "/metrics" || body.contains("medfleet_"),
                "{role:?}: {body}"
            );
            ensure!(
                !body.contains(job.name.trim_start_matches("jobs/")),
                "{role:?}: a job id is a label"
            );
        }
    }
    Ok(())
}

/// Without its queue no role can work, and none is helped by a restart.
#[tokio::test(flavor = "multi_thread")]
async fn without_its_queue_a_role_is_alive_and_not_ready() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let becomes = async |role: Role, expected: (u16, &str)| {
        wait_until(PATIENCE, "what a role says of itself", async || {
            let (status, body) = http_get(fleet.admin(role), "/readyz").await.ok()?;
            ((status, body.as_str()) == expected).then_some(())
        })
        .await
        .with_context(|| format!("{role:?} never said {expected:?}"))
    };
    fleet.kill_nats().await?;
    for role in Role::ALL {
        becomes(role, (503, "queue")).await?;
        let (status, body) = http_get(fleet.admin(role), "/healthz").await?;
        ensure!(status == 200, "{role:?}: {status} {body}");
    }
    fleet.restart_nats().await?;
    for role in Role::ALL {
        becomes(role, (200, "ready")).await?;
    }
    Ok(())
}

/// NATS away: a submit to a fleet whose queue is gone says so and accepts nothing; a service that is started exits 3 with what it
/// tried, and so does the command line where no fleet is.
#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_queue_is_named() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let client = fleet.client("st-mary").await?;
    fleet.kill_nats().await?;
    let picture = picture::png(32, 1)?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("picture.png");
    std::fs::write(&file, &picture)?;
    let request = report(vec![inline(picture)]);
    let refused = refused(client.submit(request).await, tonic::Code::Unavailable);
    refused.with_context(|| fleet.log_end(Role::Ingest))?;
    fleet.kill9(Role::Preprocess).await?;
    let started = fleet.start_role(Role::Preprocess).await.err();
    let ended = format!("{:#}", started.context("it started without a queue")?);
    ensure!(
        ended.contains("exit status: 3")
            && ended.contains("no NATS server answered at nats://127."),
        "{ended}"
    );

    let file = file.display().to_string();
    let nowhere = ["--server", "http://127.0.0.1:1", "--token", "mf_x"];
    let submit = ["submit", &file, "--task", "report"];
    let submit = [&submit[..], &nowhere[..]].concat();
    let output = fleet.command("st-mary", &submit).await?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.code() == Some(3),
        "{:?}: {text}",
        output.status
    );
    ensure!(
        text.contains("127.0.0.1:1"),
        "what was tried is named: {text}"
    );
    ensure!(
        text.contains("--request-id cli-"),
        "the job may be there: {text}"
    );
    Ok(())
}

/// Has decoders that are started from now on take so long for a step, and hand back a second after they were told to stop, with
/// all the time that they need to end in order.
pub(crate) fn configure_decode(fleet: &Fleet, decode_step: &str) -> Result<()> {
    let file = fleet.tokens_file().with_file_name("decode.toml");
    let mut config: Table = std::fs::read_to_string(&file)?.parse()?;
    let hand_back = toml! { hand_back_before = "119s" };
    for (section, key, value) in [
        ("process", "drain", Value::from("120s")),
        ("decode", "worker", hand_back.into()),
        ("model", "decode_step", decode_step.into()),
    ] {
        let section = config.get_mut(section).and_then(Value::as_table_mut);
        let section = section.context("a section of the file")?;
        section.insert(key.to_owned(), value);
    }
    Ok(std::fs::write(&file, config.to_string())?)
}

/// SIGTERM in the middle of a job, which would last longer than the worker may: it ends in time with code 0, its start does not
/// count, and another one finishes the job.
#[tokio::test(flavor = "multi_thread")]
async fn a_drained_worker_hands_back() -> Result<()> {
    let fleet = Fleet::start(Options {
        // Longer than a test waits: what is not handed back comes to no other.
        queue: toml! { ack_wait = "1h" },
        ..Options::default()
    })
    .await?;
    fleet.stop_role(Role::Decode).await?;
    // Sixteen words: half a minute, also for a test that is late to see that they are written.
    configure_decode(&fleet, "2s")?;
    fleet.start_role(Role::Decode).await?;
    let client = fleet.client("st-mary").await?;
    let job = client.submit_picture(picture::png(32, 1)?).await?;
    client.wait_state(&job.name, JobState::Decoding).await?;
    let code = fleet.stop_role(Role::Decode).await?;
    ensure!(code == Some(0), "drained with {code:?}");
    let key = job_key("st-mary", &job.name)?;
    let record = fleet.queue().await?.record(&key).await?;
    let (record, _) = record.context("a record")?;
    ensure!(
        !record.state.is_final() && record.starts.decode == 0,
        "it was not handed back: {record:?}"
    );
    configure_decode(&fleet, "0ms")?;
    fleet.start_role(Role::Decode).await?;
    let completed = client.wait_completed(&job.name).await;
    completed.context("the job was lost")?;
    Ok(())
}

/// TLS by configuration: a client that trusts the certificate walks through, one that does not, and one without TLS, are refused.
#[tokio::test(flavor = "multi_thread")]
async fn the_public_api_speaks_tls() -> Result<()> {
    let own = rcgen::generate_simple_self_signed(vec!["localhost".into()])?;
    let other = rcgen::generate_simple_self_signed(vec!["localhost".into()])?;
    let tls = Some((own.cert.pem(), own.signing_key.serialize_pem()));
    let fleet = Fleet::start(Options {
        tls,
        ..Options::default()
    })
    .await?;
    let token = fleet.token("st-mary");
    let client = Client::connect_tls(fleet.api(), &token, &own.cert.pem()).await?;
    let job = client.submit_picture(picture::png(32, 1)?).await?;
    client.watch_to_end(&job.name).await?;
    let distrusted = Client::connect_tls(fleet.api(), &token, &other.cert.pem()).await;
    ensure!(distrusted.is_err(), "an unknown certificate was trusted");
    let plain = match fleet.client("st-mary").await {
        Ok(client) => client.list(1, "").await.is_err(),
        Err(_) => true,
    };
    ensure!(plain, "plain HTTP/2 was answered");
    Ok(())
}

/// The same certificate on the tokens' way: a decoder that knows the encoder by it is sent the tokens, one that does not reads
/// the store, and completes the job all the same.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_fetched_over_tls() -> Result<()> {
    let own = rcgen::generate_simple_self_signed(vec!["localhost".into()])?;
    let other = rcgen::generate_simple_self_signed(vec!["localhost".into()])?;
    let fleet = Fleet::start(Options {
        tls: Some((own.cert.pem(), own.signing_key.serialize_pem())),
        ..Options::default()
    })
    .await?;
    let token = fleet.token("st-mary");
    let client = Client::connect_tls(fleet.api(), &token, &own.cert.pem()).await?;
    tokens_come_from("encoder", &fleet, &client).await?;
    // From now on decode trusts somebody else. Encode has read its own certificate already.
    let code = fleet.stop_role(Role::Decode).await?;
    ensure!(code == Some(0), "ended with {code:?}");
    let file = fleet.tokens_file().with_file_name("tls.crt");
    std::fs::write(file, other.cert.pem())?;
    fleet.start_role(Role::Decode).await?;
    tokens_come_from("store", &fleet, &client).await
}

/// Whoever scrapes the addresses that `medfleet up` prints hears of it too.
#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_in_one_process_tells_when_its_certificate_ends() -> Result<()> {
    let end = medfleet_testkit::clock()().0 / 1000 + 1_000_000;
    let (folder, (certificate, key)) = (tempfile::tempdir()?, ending(end)?);
    let mut flags = vec!["--simulate".to_owned()];
    for (name, pem) in [("cert", certificate), ("key", key)] {
        let file = folder.path().join(name);
        std::fs::write(&file, pem)?;
        flags.push(format!("--set=ingest.tls.{name}=\"{}\"", file.display()));
    }
    let flags: Vec<&OsStr> = flags.iter().map(OsStr::new).collect();
    let up = Up::told(&flags).await?;
    let log = std::fs::read_to_string(up.folder().join("up.log"))?;
    let printed = log.lines().find_map(|line| {
        let page = line.strip_prefix("ingest")?.trim();
        page.strip_prefix("http://")?.strip_suffix("/metrics")
    });
    let admin = printed.context("the page of ingest")?.parse()?;
    let series = "medfleet_certificate_end_time_seconds{setting=\"ingest.tls.cert\"}";
    let told = alerts::told(admin, series).await?;
    ensure!(told == end, "{told} is not {end}");
    up.stop().await
}

/// Completes the first job of the decode process that runs, whose one image comes from `source`.
async fn tokens_come_from(source: &str, fleet: &Fleet, client: &Client) -> Result<()> {
    let job = client.submit_picture(picture::png(32, 1)?).await?;
    client.watch_to_end(&job.name).await?;
    let (_, metrics) = http_get(fleet.admin(Role::Decode), "/metrics").await?;
    let line = format!("medfleet_decode_images_total{{source=\"{source}\"}} 1\n");
    ensure!(
        metrics.contains(&line),
        "not from the {source}; {}",
        fleet.log_end(Role::Decode)
    );
    Ok(())
}

/// A certificate and its key that end so many seconds after 1970 began.
fn ending(seconds: i64) -> Result<(String, String)> {
    let key = rcgen::KeyPair::generate()?;
    let mut parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()])?;
    parameters.not_after =
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(seconds)?);
    let certificate = parameters.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// Thirteen days before the certificate of the public API ends the alert fires, and goes on when there is a new file, until ingest
/// has been started with it; fifteen days before it is silent.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_ends_soon_is_told() -> Result<()> {
    const ALERT: &str = "MedfleetCertificateEnding";
    const SERIES: &str = "medfleet_certificate_end_time_seconds{setting=\"ingest.tls.cert\"}";
    const DAY: i64 = 86_400;
    let now = medfleet_testkit::clock()().0 / 1000;
    let fleet = Fleet::start(Options {
        tls: Some(ending(now + 13 * DAY)?),
        ..Options::default()
    })
    .await?;
    let left = async || {
        Ok::<_, anyhow::Error>(alerts::told(fleet.admin(Role::Ingest), SERIES).await? - now)
    };
    let old = left().await?;
    ensure!(old == 13 * DAY, "{old} s are left of 13 days");
    alerts::expect(ALERT, true, &[(SERIES, (old, old))]).await?;

    let (certificate, key) = ending(now + 15 * DAY)?;
    for (name, pem) in [("tls.crt", certificate), ("tls.key", key)] {
        std::fs::write(fleet.tokens_file().with_file_name(name), pem)?;
    }
    let unread = left().await?;
    ensure!(unread == old, "{unread} s are left without a start");
    let code = fleet.stop_role(Role::Ingest).await?;
    ensure!(code == Some(0), "ended with {code:?}");
    fleet.start_role(Role::Ingest).await?;
    let new = left().await?;
    ensure!(new == 15 * DAY, "{new} s are left of 15 days");
    alerts::expect(ALERT, false, &[(SERIES, (new, new))]).await
}

/// What an integrator without the `.proto` files finds: reflection lists the service, and health needs no token.
#[tokio::test(flavor = "multi_thread")]
async fn reflection_and_health_answer() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let buf = medfleet_testkit::cache_dir()?.join("bin/buf-1.75.0");
    ensure!(
        buf.is_file(),
        "{} is missing; run `cargo xtask fetch`",
        buf.display()
    );
    let curl = async |arguments: &[&str]| {
        let output = Command::new(&buf)
            .args(["curl", "--protocol", "grpc", "--http2-prior-knowledge"])
            .args(arguments)
            .output()
            .await
            .context("run buf curl")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok::<_, anyhow::Error>(text)
    };
    let methods = curl(&[&fleet.url(), "--list-methods"]).await?;
    ensure!(
        methods.contains("medfleet.v1.JobService/WatchJob"),
        "{methods}"
    );
    let check = format!("{}/grpc.health.v1.Health/Check", fleet.url());
    let health = async || curl(&["-d", "{}", &check]).await;
    let told = health().await?;
    ensure!(
        told.contains("SERVING") && !told.contains("NOT_SERVING"),
        "{told}"
    );
    // Whoever spreads calls over replicas sends none to one that cannot answer them.
    fleet.kill_nats().await?;
    let gone = wait_until(PATIENCE, "its health to go", async || {
        let told = health().await.ok()?;
        told.contains("NOT_SERVING").then_some(())
    });
    gone.await
}
