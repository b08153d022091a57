//! One connected trace per job, with every stage and what each says of itself, without a word about the patient: received
//! straight from the services, and through a collector of others that makes batches of its own.

use anyhow::{Context, Result, ensure};
use medfleet_proto::v1::job_service_client::JobServiceClient;
use medfleet_proto::v1::{Job, SubmitJobRequest, task};
use medfleet_tests::client::{PATIENCE, inline, pictures, report, uploaded};
use medfleet_tests::collector::{Collector, Received, roots};
use medfleet_tests::config::POOL;
use medfleet_tests::fleet::{Fleet, Model, Options, Role};
use medfleet_tests::picture;
use medfleet_tests::rotel::Rotel;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::span::{Link, SpanKind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use tonic::Request;
use tonic::transport::Channel;

use crate::dead::failed;

const TENANT: &str = "st-mary";
/// What the job is asked with and about.
const SECRETS: [&str; 6] = [
    "SECRET",
    "Secretname",
    "horse",
    "CompressedSamples",
    "RG1",
    "Philips",
];

/// Where the model writes.
const CHAT: [(&str, &str); 2] = [
    ("service.name", "medfleet-decode"),
    ("gen_ai.operation.name", "chat"),
];

/// A job that has ended, of a fleet that has ended in order: whatever is said of it has been said.
struct Ended {
    job: Job,
    text: String,
    logs: Vec<String>,
}

async fn ended_job(otlp_endpoint: String) -> Result<Ended> {
    let fleet = Fleet::start(Options {
        model: Model::Tiny,
        otlp_endpoint: Some(otlp_endpoint),
        ..Options::default()
    })
    .await?;
    let client = fleet.client(TENANT).await?;
    let upload = client.upload(&picture::radiograph("RG1_UNCR.dcm")?).await?;
    let images = vec![uploaded(&upload), inline(picture::png(64, 1)?)];
    let job = client.submit(secret(report(images))).await?;
    ensure!(job.trace_id.len() == 32, "{job:?}");
    let text = client.watch_to_end(&job.name).await?.text;
    stop(&fleet).await?;
    let logs = fleet.logs()?;
    Ok(Ended { job, text, logs })
}

/// Ends every role in order, after which it has sent all its spans.
async fn stop(fleet: &Fleet) -> Result<()> {
    for role in Role::ALL {
        let code = fleet.stop_role(role).await?;
        ensure!(code == Some(0), "{role:?} ended with {code:?}");
    }
    Ok(())
}

/// The request with words that are nobody's business.
fn secret(mut request: SubmitJobRequest) -> SubmitJobRequest {
    request.request_id = "ACC-SECRET-4711".into();
    if let Some(task::Kind::Report(task)) = request.task.as_mut().and_then(|t| t.kind.as_mut()) {
        task.clinical_context = "Jane Secretname, fall from horse".into();
    }
    request
}

/// The call is the root of everything, and every stage is there with what it says of itself.
fn is_one_tree(trace: &[Received], job: &Job) -> Result<()> {
    let roots = roots(trace);
    ensure!(roots.len() == 1, "not one root: {roots:?}");
    let call = [
        ("service.name", "medfleet-ingest"),
        ("medfleet.role", "ingest"),
        ("rpc.system", "grpc"),
        ("rpc.method", "SubmitJob"),
    ];
    let root = one_with(trace, SpanKind::Server, &call)?;
    ensure!(root.span.name == roots[0], "the root is {roots:?}");
    let release = [
        ("service.name", "medfleet-ingest"),
        ("messaging.system", "nats"),
        ("messaging.operation.name", "release"),
    ];
    one_with(trace, SpanKind::Producer, &release)?;
    for stage in &Role::ALL[1..] {
        has_stage(trace, stage.name(), job)?;
    }
    let embeddings = [
        ("service.name", "medfleet-encode"),
        ("gen_ai.operation.name", "embeddings"),
    ];
    one_with(trace, SpanKind::Internal, &embeddings)?;
    one_with(trace, SpanKind::Internal, &CHAT)?;
    Ok(())
}

/// A unit of the stage is done, and linked to who released it, as the conventions for messaging have it.
fn has_stage(trace: &[Received], stage: &str, job: &Job) -> Result<()> {
    let id = job.name.strip_prefix("jobs/").context("a job's name")?;
    let (service, subject) = (format!("medfleet-{stage}"), format!("work.{stage}.{POOL}"));
    let unit = [
        ("service.name", service.as_str()),
        ("messaging.system", "nats"),
        ("messaging.operation.type", "process"),
        ("messaging.destination.name", subject.as_str()),
        ("medfleet.tenant", TENANT),
        ("medfleet.job", id),
        ("medfleet.verdict", "done"),
    ];
    let span = &one_with(trace, SpanKind::Consumer, &unit)?.span;
    let parent = |link: &Link| link.span_id == span.parent_span_id;
    ensure!(
        span.links.iter().any(parent),
        "{stage} does not link to who sent its unit"
    );
    Ok(())
}

/// A span of this kind that says all of this.
fn one_with<'a>(
    trace: &'a [Received],
    kind: SpanKind,
    said: &[(&str, &str)],
) -> Result<&'a Received> {
    let says = |received: &Received, key: &str, text: &str| {
        received.attribute(key) == Some(&Value::StringValue(text.to_owned()))
    };
    let found = trace.iter().find(|received| {
        received.span.kind() == kind && said.iter().all(|(key, text)| says(received, key, text))
    });
    found.with_context(|| {
        let names: Vec<&str> = trace.iter().map(|other| other.span.name.as_str()).collect();
        format!("no {kind:?} says {said:?} among {names:?}")
    })
}

/// What a collector is asked for that keeps the traces of what went wrong.
fn is_error(received: &Received) -> bool {
    let status = received.span.status.as_ref();
    status.is_some_and(|status| status.code() == StatusCode::Error)
}

/// What is counted arrives as a number, which can be compared and added up.
fn numbers_are_numbers(trace: &[Received]) -> Result<()> {
    let chat = one_with(trace, SpanKind::Internal, &CHAT)?;
    for key in ["gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"] {
        let count = chat.attribute(key);
        let is_count = matches!(count, Some(Value::IntValue(0..)));
        ensure!(is_count, "{key} is {count:?}");
    }
    for attribute in trace.iter().flat_map(|each| &each.span.attributes) {
        let value = attribute.value.as_ref();
        let value = value.and_then(|value| value.value.as_ref());
        let is_number_as_text =
            matches!(value, Some(Value::StringValue(text)) if text.parse::<i64>().is_ok());
        ensure!(!is_number_as_text, "{attribute:?} came as text");
    }
    Ok(())
}

fn says_nothing_of_the_patient(collector: &Collector, ended: &Ended) -> Result<()> {
    for span in collector.texts() {
        for secret in SECRETS {
            ensure!(!span.contains(secret), "{secret:?} is in a span: {span}");
        }
        ensure!(
            ended.text.len() < 8 || !span.contains(ended.text.trim()),
            "the draft is in a span: {span}"
        );
    }
    for log in &ended.logs {
        for secret in SECRETS {
            ensure!(!log.contains(secret), "{secret:?} is in a log: {log}");
        }
    }
    Ok(())
}

fn all_is_well(collector: &Collector, ended: &Ended) -> Result<()> {
    let trace = collector.trace(&ended.job.trace_id);
    is_one_tree(&trace, &ended.job)?;
    ensure!(!trace.iter().any(is_error), "a job that went well failed");
    numbers_are_numbers(&trace)?;
    says_nothing_of_the_patient(collector, ended)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_one_connected_trace_without_patient_data() -> Result<()> {
    let collector = Collector::start().await?;
    let ended = ended_job(collector.endpoint()).await?;
    all_is_well(&collector, &ended)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_is_as_whole_through_a_collector_of_others() -> Result<()> {
    let collector = Collector::start().await?;
    let between = Rotel::start(&collector.http_endpoint()).await?;
    let ended = ended_job(between.endpoint()).await?;
    let whole = || is_one_tree(&collector.trace(&ended.job.trace_id), &ended.job);
    let arrived = medfleet_testkit::wait_until(PATIENCE, "the whole trace", async || {
        whole().is_ok().then_some(())
    });
    arrived
        .await
        .or_else(|error| whole().context(error.to_string()))?;
    // What comes last must not be a second root.
    between.stop().await?;
    all_is_well(&collector, &ended)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unit_that_fails_its_job_is_an_error_and_the_job_started_over_stays_one_trace()
-> Result<()> {
    let collector = Collector::start().await?;
    let fleet = Fleet::start(Options {
        otlp_endpoint: Some(collector.endpoint()),
        ..Options::default()
    })
    .await?;
    let client = fleet.client(TENANT).await?;
    let (name, letter) = failed(&fleet, &client).await?;
    client.replay(&letter.name).await?;
    let job = client.wait_completed(&name).await?;
    stop(&fleet).await?;

    let trace = collector.trace(&job.trace_id);
    ensure!(roots(&trace).len() == 1, "{:?}", roots(&trace));
    let said = |each: &Received| {
        let of = |key: &str| each.attribute(key).cloned();
        (of("medfleet.verdict"), of("medfleet.epoch"))
    };
    let expected = |verdict: &str, epoch: i64| {
        let verdict = Value::StringValue(verdict.to_owned());
        (Some(verdict), Some(Value::IntValue(epoch)))
    };
    let errors: Vec<_> = trace
        .iter()
        .filter(|each| is_error(each))
        .map(said)
        .collect();
    ensure!(errors == [expected("reject", 0)], "{errors:?}");
    let decoded = [
        ("service.name", "medfleet-decode"),
        ("medfleet.verdict", "done"),
    ];
    let again = one_with(&trace, SpanKind::Consumer, &decoded)?;
    ensure!(said(again) == expected("done", 1), "{again:?}");
    Ok(())
}

/// Submits a report within a trace of the caller's.
async fn submitted_within(fleet: &Fleet, traceparent: &str) -> Result<Job> {
    let channel = Channel::from_shared(fleet.url())?.connect().await?;
    let mut request = Request::new(pictures(&[1])?);
    let metadata = request.metadata_mut();
    let token = format!("Bearer {}", fleet.token(TENANT));
    metadata.insert("authorization", token.parse()?);
    metadata.insert("traceparent", traceparent.parse()?);
    let answer = JobServiceClient::new(channel).submit_job(request).await?;
    answer.into_inner().job.context("no job")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_on_with_its_callers_trace_through_every_service() -> Result<()> {
    const SAMPLED: &str = "0c6e1f2a9b384d57a1e0f3c5b7d92846";
    const UNSAMPLED: &str = "7d20b9c41ea653f80c92d4e1ab7f3865";
    const CALLER: [u8; 8] = [0x5a, 0x11, 0xe4, 0x07, 0x9c, 0x32, 0xbd, 0x68];
    let caller: String = CALLER.iter().map(|byte| format!("{byte:02x}")).collect();
    let collector = Collector::start().await?;
    let fleet = Fleet::start(Options {
        otlp_endpoint: Some(collector.endpoint()),
        ..Options::default()
    })
    .await?;
    let client = fleet.client(TENANT).await?;
    let mut jobs = Vec::new();
    for (trace, flags) in [(SAMPLED, "01"), (UNSAMPLED, "00")] {
        let traceparent = format!("00-{trace}-{caller}-{flags}");
        let job = submitted_within(&fleet, &traceparent).await?;
        ensure!(job.trace_id == trace, "{job:?}");
        client.wait_completed(&job.name).await?;
        jobs.push(job.name);
    }
    stop(&fleet).await?;

    let trace = collector.trace(SAMPLED);
    let root = &one_with(&trace, SpanKind::Server, &[("rpc.method", "SubmitJob")])?.span;
    ensure!(roots(&trace) == [root.name.as_str()], "{:?}", roots(&trace));
    ensure!(root.parent_span_id == CALLER, "{root:?}");
    for role in Role::ALL {
        let service = Value::StringValue(format!("medfleet-{}", role.name()));
        let mut names = trace.iter().map(|each| each.attribute("service.name"));
        let is_there = names.any(|name| name == Some(&service));
        ensure!(is_there, "{role:?} has no span in it");
    }
    // Who wants no spans gets none, neither in that trace nor in one that begins half way.
    ensure!(collector.trace(UNSAMPLED).is_empty());
    let spans_of = |job: &str| {
        let id = job.trim_start_matches("jobs/");
        let spans = collector.texts().into_iter();
        spans
            .filter(|span| span.contains(id) && span.contains("messaging.system"))
            .count()
    };
    let [told, untold] = [spans_of(&jobs[0]), spans_of(&jobs[1])];
    ensure!(told > 0 && untold == 0, "{told} and {untold} spans");
    Ok(())
}
