//! One connected trace per job, received by a real OTLP collector, without a word about the patient.

use anyhow::{Result, ensure};
use medfleet_tests::client::{PATIENCE, inline, report, uploaded};
use medfleet_tests::collector::{Collector, roots};
use medfleet_tests::fleet::{Fleet, Model, Options};
use medfleet_tests::picture;
use opentelemetry_proto::tonic::trace::v1::{Span, span::Link};

/// What must be in every job's trace: the accept, the three stages, and the way between them.
const STAGES: [&str; 4] = ["SubmitJob", "preprocess", "encode", "decode"];

/// Who takes a unit also links to who released it, as the conventions for messaging have it.
fn stages_are_linked(spans: &[Span]) -> Result<()> {
    for stage in &STAGES[1..] {
        let linked = spans.iter().any(|span| {
            let parent = |link: &Link| link.span_id == span.parent_span_id;
            span.name.contains(stage) && span.links.iter().any(parent)
        });
        ensure!(linked, "{stage} does not link to who sent its unit");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_one_connected_trace_without_patient_data() -> Result<()> {
    let collector = Collector::start().await?;
    let options = Options {
        model: Model::Tiny,
        otlp_endpoint: Some(collector.endpoint()),
        ..Options::default()
    };
    let fleet = Fleet::start(options).await?;
    let client = fleet.client("st-mary").await?;
    let upload = client.upload(&picture::radiograph("RG1_UNCR.dcm")?).await?;
    let mut request = report(vec![uploaded(&upload), inline(picture::png(64, 1)?)]);
    request.request_id = "ACC-SECRET-4711".into();
    if let Some(medfleet_proto::v1::task::Kind::Report(task)) =
        request.task.as_mut().and_then(|t| t.kind.as_mut())
    {
        task.clinical_context = "Jane Secretname, fall from horse".into();
    }
    let job = client.submit(request).await?;
    ensure!(job.trace_id.len() == 32, "{job:?}");
    let text = client.watch_to_end(&job.name).await?.text;

    let whole = || {
        let names: Vec<String> = collector
            .trace(&job.trace_id)
            .into_iter()
            .map(|span| span.name)
            .collect();
        STAGES
            .iter()
            .all(|stage| names.iter().any(|name| name.contains(stage)))
            .then_some(names)
    };
    medfleet_testkit::wait_until(PATIENCE, "all spans of the job", async || whole()).await?;
    // Late spans may still come in: connected means that in the end one root explains all of them.
    let connected = || {
        let found = roots(&collector.trace(&job.trace_id));
        (found.len() == 1).then_some(found)
    };
    let root =
        medfleet_testkit::wait_until(PATIENCE, "one root span", async || connected()).await?;
    ensure!(
        root[0].contains("SubmitJob"),
        "the trace begins at the RPC: {root:?}"
    );

    stages_are_linked(&collector.trace(&job.trace_id))?;

    let secrets = [
        "SECRET",
        "Secretname",
        "horse",
        "CompressedSamples",
        "RG1",
        "Philips",
    ];
    for span in collector.texts() {
        for secret in secrets {
            ensure!(!span.contains(secret), "{secret:?} is in a span: {span}");
        }
        ensure!(
            text.len() < 8 || !span.contains(text.trim()),
            "the draft is in a span: {span}"
        );
    }
    for log in fleet.logs()? {
        for secret in secrets {
            ensure!(!log.contains(secret), "{secret:?} is in a log: {log}");
        }
    }
    Ok(())
}
