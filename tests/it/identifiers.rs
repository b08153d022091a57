//! What a header says about the patient, planted and asked about: it reaches no log, trace, metric, message, event, record, result
//! and no prompt of the model. Everything is on that could repeat it: debug logs, traces, and nats-server's own log of all payloads.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use medfleet_proto::v1::{self, JobState, SubmitJobRequest, task::Kind};
use medfleet_tests::client::{Client, inline, task};
use medfleet_tests::collector::Collector;
use medfleet_tests::fleet::{Fleet, Model, Options, Role, binary, http_get};
use medfleet_tests::picture;
use tokio::process::Command;

/// What is planted: tag, value representation, value. Invented, and words of no language.
const PLANTED: &[([u16; 2], &[u8; 2], &str)] = &[
    ([0x0010, 0x0010], b"PN", "Qorvex^Wylat"),
    ([0x0010, 0x0020], b"LO", "PX99-731842"),
    ([0x0010, 0x0030], b"DA", "19510312"),
    ([0x0008, 0x0050], b"SH", "ZK5519034"),
    ([0x0008, 0x0090], b"PN", "Umbrexil^Tavo"),
];
/// As they stand in texts, in other spellings than the header's too.
pub(crate) const SECRETS: &[&str] = &[
    "Qorvex",
    "Wylat",
    "PX99-731842",
    "PX99731842",
    "19510312",
    "12.03.1951",
    "ZK5519034",
    "Umbrexil",
];
pub(crate) const QUESTION: &str = "QORVEX, Wylat (PX99731842, born 12.03.1951, acc. zk5519034, ref. Dr Umbrexil): is there an effusion?";
const MASKED: &str = "[name], [name] ([number], born [date of birth], acc. [number], ref. Dr [name]): is there an effusion?";

/// A file with one element after another given its planted value.
pub(crate) fn planted(mut bytes: Vec<u8>, extra: &[([u16; 2], &[u8; 2], &str)]) -> Result<Vec<u8>> {
    for ([group, element], vr, value) in PLANTED.iter().chain(extra) {
        let tag = [group.to_le_bytes(), element.to_le_bytes()].concat();
        let head = [tag.as_slice(), vr.as_slice()].concat();
        let at = bytes.windows(6).position(|window| window == head);
        let at = at.with_context(|| format!("no element {group:04x},{element:04x}"))?;
        let length = usize::from(u16::from_le_bytes([bytes[at + 6], bytes[at + 7]]));
        let padded = format!("{value}{}", " ".repeat(value.len() % 2));
        let written = [&(padded.len() as u16).to_le_bytes(), padded.as_bytes()].concat();
        bytes.splice(at + 6..at + 8 + length, written);
    }
    Ok(bytes)
}

/// A phantom's radiograph as `medfleet phantom` writes it.
pub(crate) async fn phantom(folder: &Path) -> Result<Vec<u8>> {
    let made = Command::new(binary("medfleet")?)
        .args([
            "phantom", "--count", "1", "--seed", "5", "--size", "96", "--out",
        ])
        .arg(folder)
        .output()
        .await?;
    ensure!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let mut files = std::fs::read_dir(folder.join("images"))?;
    let file = files.next().context("no phantom")??;
    Ok(std::fs::read(file.path())?)
}

pub(crate) fn answer(question: &str, image: Vec<u8>) -> SubmitJobRequest {
    let question = question.to_owned();
    task(
        Kind::Answer(v1::AnswerTask { question }),
        vec![inline(image)],
    )
}

/// Submits, watches to the end, and gives the result and everything that the client was told on the way.
async fn asked(client: &Client, request: SubmitJobRequest) -> Result<(v1::Result, String)> {
    let job = client.submit(request).await?;
    let seen = client.watch_to_end(&job.name).await?;
    let result = client.result(&job.name).await?;
    let told = format!("{job:?} {seen:?} {result:?}");
    Ok((result, told))
}

fn digest(result: &v1::Result) -> Result<String> {
    let provenance = result.provenance.as_ref().context("no provenance")?;
    Ok(provenance.prompt_digest.clone())
}

pub(crate) fn holds(bytes: &[u8], secret: &str) -> bool {
    let (bytes, secret) = (bytes.to_ascii_lowercase(), secret.to_ascii_lowercase());
    bytes
        .windows(secret.len())
        .any(|window| window == secret.as_bytes())
}

fn check(place: &str, bytes: &[u8]) -> Result<()> {
    for secret in SECRETS {
        ensure!(!holds(bytes, secret), "{secret:?} is in {place}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_header_is_anywhere_but_in_the_blobs_of_what_was_sent() -> Result<()> {
    let collector = Collector::start().await?;
    let fleet = Fleet::start(Options {
        model: Model::Tiny,
        // Over gRPC in `trace`.
        otlp_endpoint: Some(collector.http_endpoint()),
        otlp_protocol: "http/protobuf",
        talkative: true,
        ..Options::default()
    })
    .await?;
    let client = fleet.client("st-mary").await?;
    let folder = tempfile::tempdir()?;
    let file = phantom(folder.path()).await?;
    let image = planted(file.clone(), &[])?;

    let mut request = answer(QUESTION, image.clone());
    // Hospitals use what they have.
    request.request_id = "ZK5519034".to_owned();
    let (result, told) = asked(&client, request).await?;
    check("what the client was told", told.as_bytes())?;
    let warning = "PROMPT_MASKED";
    let warned = result
        .warnings
        .iter()
        .find(|text| text.starts_with(warning));
    let warned = warned.with_context(|| format!("{:?}", result.warnings))?;
    ensure!(
        warned.ends_with("NAME 3, NUMBER 2, BIRTH_DATE 1"),
        "{warned}"
    );

    // The prompt is the one that a caller would have made who masked the question by hand; the digest would show less.
    let (by_hand, ..) = asked(&client, answer(MASKED, image.clone())).await?;
    ensure!(
        digest(&result)? == digest(&by_hand)?,
        "another prompt than the masked one"
    );
    ensure!(
        !by_hand
            .warnings
            .iter()
            .any(|text| text.starts_with(warning))
    );
    let (as_sent, ..) = asked(&client, answer(QUESTION, picture::png(64, 1)?)).await?;
    ensure!(
        digest(&result)? != digest(&as_sent)?,
        "the digest says nothing"
    );

    // A job that fails says why, and nothing else.
    let stated = planted(file, &[([0x0028, 0x0301], b"CS", "YES")])?;
    let failed = client.submit(answer(QUESTION, stated)).await?;
    let failed = client.wait_final(&failed.name).await?;
    ensure!(failed.state == i32::from(JobState::Failed), "{failed:?}");
    let told = format!("{failed:?}");
    ensure!(told.contains("BURNED_IN_ANNOTATION"), "{told}");
    check("a failed job", told.as_bytes())?;

    everything_else(&fleet, &collector).await
}

/// What every role tells of itself while it runs. A number of a metric may have any digits; what is told of it has not.
async fn told(fleet: &Fleet) -> Result<()> {
    for role in Role::ALL {
        for path in ["/metrics", "/status", "/status.json", "/readyz", "/healthz"] {
            let (status, page) = http_get(fleet.admin(role), path).await?;
            let is_there = status == 200 || path.starts_with("/status") && role != Role::Ingest;
            ensure!(is_there, "{role:?}{path} answers {status}");
            for line in page.lines() {
                let series = line.rsplit_once(' ').filter(|_| path == "/metrics");
                let words = series.map_or(line, |(series, _)| series);
                check(&format!("{role:?}{path}"), words.as_bytes())?;
            }
        }
    }
    Ok(())
}

/// Metrics, spans, logs, messages and records, and the blobs that are made of what was sent.
async fn everything_else(fleet: &Fleet, collector: &Collector) -> Result<()> {
    told(fleet).await?;
    // Whoever has ended in order has sent its spans and written its log.
    for role in Role::ALL {
        let code = fleet.stop_role(role).await?;
        ensure!(code == Some(0), "{role:?} ended with {code:?}");
    }
    // The one job without a header was asked with everything in the question; its prompt is not looked at here.
    let spans = collector.texts();
    for role in Role::ALL {
        let service = format!("medfleet-{}", role.name());
        let is_there = spans.iter().any(|span| span.contains(&service));
        ensure!(is_there, "no span of {service}");
    }
    for span in spans {
        check("a span", span.as_bytes())?;
    }
    for log in fleet.logs()? {
        ensure!(log.contains("DEBUG"), "the logs are not at debug level");
        check("a log", log.as_bytes())?;
    }
    let queue = fleet.queue_files().await?;
    let payloads = queue.iter().any(|(_, bytes)| holds(bytes, "MSG_PAYLOAD"));
    ensure!(payloads && queue.len() > 3, "nats-server logs no payloads");
    for (path, bytes) in &queue {
        check(&path.display().to_string(), bytes)?;
    }
    for kind in ["frame", "frames", "tokens", "result"] {
        let blobs = fleet.blobs_of("st-mary", kind)?;
        ensure!(!blobs.is_empty(), "no blobs of kind {kind}");
        for blob in blobs {
            check(kind, &blob)?;
        }
    }
    // It was there, and a search finds it.
    let inputs = fleet.blobs_of("st-mary", "input")?;
    ensure!(
        inputs.iter().any(|blob| holds(blob, "Qorvex^Wylat")),
        "it was never sent"
    );
    let studies = fleet.blobs_of("st-mary", "study")?;
    ensure!(
        studies.iter().any(|blob| holds(blob, "PX99731842")),
        "it was never asked"
    );
    Ok(())
}
