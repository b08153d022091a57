//! Bad input gets a clear error that names the field and what is allowed, and leaves nothing half-done.

use anyhow::{Context, Result, ensure};
use medfleet_fuzz::dicom::{EXPLICIT, Header, JPEG_2000, encapsulated, file, head};
use medfleet_proto::v1::{
    self, FailureReason, JobState, SubmitJobRequest, result::Output, task::Kind,
};
use medfleet_testkit::tar;
use medfleet_tests::chaos::load::film_of;
use medfleet_tests::chaos::oracle::{self, Question};
use medfleet_tests::client::{Client, inline, pictures, refused, report, task, uploaded};
use medfleet_tests::fleet::{Fleet, Options};
use medfleet_tests::picture;
use toml::toml;
use tonic::Code;
use tonic_types::StatusExt;

const SMALL_CODESTREAM: &[u8] = include_bytes!("../../crates/fuzz/seeds/deep12.j2k");

async fn is_refused(
    client: &Client,
    request: SubmitJobRequest,
    code: Code,
    field: &str,
) -> Result<()> {
    let status = refused(client.submit(request).await, code).with_context(|| field.to_owned())?;
    if code == Code::InvalidArgument {
        let violations = status
            .get_error_details()
            .bad_request()
            .context("no BadRequest detail")?
            .field_violations
            .clone();
        let named = violations
            .iter()
            .any(|violation| violation.field.contains(field) && !violation.description.is_empty());
        ensure!(named, "{field} is not named in {violations:?}");
    }
    ensure!(
        client.list(10, "").await?.0.is_empty(),
        "{field}: a refused request left a job"
    );
    Ok(())
}

/// Requests that are no jobs, with the code and the field that the answer must name.
fn impossible() -> Result<Vec<(SubmitJobRequest, Code, &'static str)>> {
    use Code::InvalidArgument;
    let picture = || picture::png(32, 1).map(inline);
    let one = || pictures(&[1]);
    let many = (0..=2048).map(|_| inline(vec![1])).collect();
    let question = Kind::Answer(v1::AnswerTask::default());
    let comparison = Kind::Compare(v1::CompareTask::default());
    let hot = v1::DecodingParameters {
        temperature: 9.0,
        ..Default::default()
    };
    let nowhere = uploaded("uploads/00000000000000000000000000000000");
    Ok(vec![
        (
            SubmitJobRequest {
                task: None,
                ..one()?
            },
            InvalidArgument,
            "task",
        ),
        (report(vec![]), InvalidArgument, "inputs"),
        (
            task(comparison, vec![picture()?]),
            InvalidArgument,
            "inputs",
        ),
        (report(many), InvalidArgument, "inputs"),
        (task(question, vec![]), InvalidArgument, "question"),
        (
            SubmitJobRequest {
                class: 99,
                ..one()?
            },
            InvalidArgument,
            "class",
        ),
        (
            SubmitJobRequest {
                model: "gpt".into(),
                ..one()?
            },
            InvalidArgument,
            "model",
        ),
        (
            SubmitJobRequest {
                request_id: "x".repeat(129),
                ..one()?
            },
            InvalidArgument,
            "request_id",
        ),
        (
            SubmitJobRequest {
                decoding: Some(hot),
                ..one()?
            },
            InvalidArgument,
            "temperature",
        ),
        (report(vec![inline(Vec::new())]), InvalidArgument, "inputs"),
        (report(vec![nowhere]), Code::NotFound, "upload"),
        (
            task(Kind::Embed(v1::EmbedTask {}), vec![picture()?]),
            Code::Unimplemented,
            "task",
        ),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_cannot_be_jobs() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let client = fleet.client("st-mary").await?;
    for (request, code, field) in impossible()? {
        is_refused(&client, request, code, field).await?;
    }
    Ok(())
}

/// A model folder that is not whole is refused by the tensor's name, with what was expected.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_model_folder_names_the_tensor() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for entry in std::fs::read_dir(picture::tiny_model())? {
        let path = entry?.path();
        std::fs::copy(
            &path,
            folder.path().join(path.file_name().context("a file name")?),
        )?;
    }
    // Another hidden size than the weights have: every tensor of the text tower is misshapen.
    let config = folder.path().join("config.json");
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&config)?)?;
    let size = &mut json["text_config"]["intermediate_size"];
    *size = serde_json::json!(size.as_u64().context("a size")? + 16);
    std::fs::write(&config, json.to_string())?;
    let output = tokio::process::Command::new(medfleet_tests::fleet::binary("medfleet")?)
        .args(["infer", "--prompt", "x", "--model"])
        .arg(folder.path())
        .output()
        .await?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "a misshapen model was loaded");
    ensure!(text.contains("mlp.") && text.contains("expected"), "{text}");
    Ok(())
}

/// What only decoding can find out fails the job, with the refusal's code, and never gives a draft.
#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_not_images_fail_the_job() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let client = fleet.client("st-mary").await?;
    let whole = picture::png(64, 1)?;
    let radiograph = picture::radiograph("RG1_UNCR.dcm")?;
    let cases = [
        ("text", b"this is not an image at all".to_vec()),
        ("half a picture", whole[..whole.len() / 2].to_vec()),
        (
            "half a radiograph",
            radiograph[..radiograph.len() / 2].to_vec(),
        ),
    ];
    for (what, bytes) in cases {
        let upload = client.upload(&bytes).await?;
        let job = client
            .submit(report(vec![inline(whole.clone()), uploaded(&upload)]))
            .await?;
        let seen = client.watch_to_end(&job.name).await?;
        let last = seen.last.context("a final job")?;
        ensure!(last.state() == JobState::Failed, "{what}: {last:?}");
        let failure = last.failure.context("a failure")?;
        ensure!(
            failure.reason() == FailureReason::InputRefused,
            "{what}: {failure:?}"
        );
        ensure!(
            failure.message.contains("input 1 "),
            "{what}: the input is not named: {failure:?}"
        );
        ensure!(seen.text.is_empty(), "{what}: a draft was written");
    }
    Ok(())
}

/// An archive is one input: what of it is left out is listed, and the rest is shown.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_without_an_image_leaves_the_others_of_its_archive() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let client = fleet.client("st-mary").await?;
    let no_image = file(EXPLICIT, &head(&Header::default()));
    let archive = tar(&[("1", &picture::png(64, 1)?), ("2", &no_image)]);
    let upload = client.upload(&archive).await?;
    let job = client.submit(report(vec![uploaded(&upload)])).await?;
    client.wait_completed(&job.name).await?;
    let result = client.result(&job.name).await?;
    let left_out = result.files_refused.iter();
    let left_out: Vec<(u32, &str)> = left_out
        .map(|refused| (refused.input_index, refused.reason.as_str()))
        .collect();
    ensure!(left_out == [(0, "NO_PIXEL_DATA")], "{left_out:?}");
    let shown = result.frames.iter().map(|frame| frame.input_index);
    ensure!(shown.eq([0_u32]), "{:?}", result.frames);
    Ok(())
}

/// A JPEG 2000 image that ends its decoder, and not by an error that it could report, fails its job alone: the role that asked
/// for it lives on and makes frames of the next one. (Nobody starts a role again here.) Its unit waits for a person to look at.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_ends_its_decoder_fails_alone() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let client = fleet.client("st-mary").await?;
    let deadly = picture::deadly();
    let good = Header::of_stream(SMALL_CODESTREAM).context("a codestream")?;
    let good = encapsulated(&good, JPEG_2000, SMALL_CODESTREAM);
    let job = client
        .submit(report(vec![uploaded(&client.upload(&deadly).await?)]))
        .await?;
    let exhausted = FailureReason::AttemptsExhausted;
    let failure = client.wait_failed(&job.name, exhausted).await?;
    ensure!(failure.message.contains("DECODER_CRASHED"), "{failure:?}");
    let letter = client.wait_letter().await?;
    ensure!(letter.job == job.name && letter.stage == "preprocess");
    let job = client
        .submit(report(vec![uploaded(&client.upload(&good).await?)]))
        .await?;
    client.wait_completed(&job.name).await?;
    Ok(())
}

/// A broken upload resumes from the committed offset, and is the file that was sent; a wrong offset and an oversized file are
/// refused.
#[tokio::test(flavor = "multi_thread")]
async fn uploads_resume_and_are_bounded() -> Result<()> {
    // So that some parts of the first half are whole.
    let parts = toml! {
        [limits]
        upload_part_bytes = "1 MiB"
    };
    let fleet = Fleet::with_ingest(parts).await?;
    let client = fleet.client("st-mary").await?;
    let bytes = picture::radiograph("RG1_UNCR.dcm")?;
    let total = bytes.len() as u64;
    let half = bytes.len() / 2;
    let upload = client.upload_part("", 0, total, &bytes[..half]).await?;
    ensure!(!upload.complete, "{upload:?}");
    let early = client
        .submit(report(vec![uploaded(&upload.name)]))
        .await
        .expect_err("not complete");
    ensure!(
        matches!(
            early.code(),
            Code::FailedPrecondition | Code::InvalidArgument
        ),
        "{early:?}"
    );
    let known = client.get_upload(&upload.name).await?;
    ensure!(
        (1..half as u64).contains(&known.committed_bytes),
        "{known:?}"
    );
    let wrong = known.committed_bytes + 1;
    let wrong = client.upload_part(&upload.name, wrong, total, &bytes[half..]);
    refused(wrong.await, Code::InvalidArgument).context("a wrong offset")?;
    let rest = &bytes[usize::try_from(known.committed_bytes)?..];
    let whole = client
        .upload_part(&upload.name, known.committed_bytes, total, rest)
        .await?;
    ensure!(
        whole.complete && whole.committed_bytes == total,
        "{whole:?}"
    );
    let job = client.submit(report(vec![uploaded(&upload.name)])).await?;
    client.wait_completed(&job.name).await?;
    let result = client.result(&job.name).await?;
    let (_, pixels) = film_of(bytes.clone())?;
    let expected = oracle::text(&Question::Report(String::new()), &[pixels], 0);
    let is_of_the_file =
        matches!(&result.output, Some(Output::Report(found)) if found.text == expected);
    ensure!(is_of_the_file, "{:?} for {expected:?}", result.output);

    let huge = client
        .upload_part("", 0, 1 << 40, b"x")
        .await
        .expect_err("a terabyte");
    ensure!(
        matches!(huge.code(), Code::ResourceExhausted | Code::InvalidArgument),
        "{huge:?}"
    );
    ensure!(
        huge.message().contains("512"),
        "the limit is named: {huge:?}"
    );
    let longer = client.upload_part("", 0, 4, b"more than four").await;
    refused(longer, Code::InvalidArgument)?;
    Ok(())
}
