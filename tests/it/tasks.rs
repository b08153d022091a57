//! Tasks whose output is not prose: labels with probabilities, boxes on the original image, fields of a schema, and the
//! comparison. Each through the whole fleet; what is no answer fails with its own reason.

use anyhow::{Context, Result, bail, ensure};
use medfleet_proto::v1::{
    self, ClassifyTask, CompareTask, DecodingParameters, ExtractTask, FailureReason, JobState,
    LocaliseTask, SubmitJobRequest, result::Output, task::Kind,
};
use medfleet_tests::client::{Client, inline, task};
use medfleet_tests::fleet::{Fleet, Model, Options, binary};
use medfleet_tests::picture;

const SCHEMA: &str = r#"{"type": "object", "properties": {"side": {"enum": ["left", "right"]},
    "count": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["side", "count"], "additionalProperties": false}"#;

/// A picture of which its sender says that it is a radiograph.
fn film(picture: Vec<u8>) -> v1::Input {
    v1::Input {
        modality: "DX".to_owned(),
        ..inline(picture)
    }
}

fn request(kind: Kind, images: Vec<Vec<u8>>, max_tokens: u32) -> SubmitJobRequest {
    SubmitJobRequest {
        decoding: Some(DecodingParameters {
            max_tokens,
            ..Default::default()
        }),
        ..task(kind, images.into_iter().map(film).collect())
    }
}

/// The result of a job that completes, checked for what holds for every task.
async fn complete(client: &Client, request: SubmitJobRequest) -> Result<v1::Result> {
    let images = request.inputs.len();
    let job = client.submit(request).await?;
    let seen = client.watch_completed(&job.name).await?;
    let result = client.result(&job.name).await?;
    let text = match result.output.as_ref().context("an output")? {
        Output::Report(report) => report.text.as_str(),
        Output::Answer(answer) => &answer.text,
        Output::Classification(classification) => &classification.text,
        Output::Localisation(localisation) => &localisation.text,
        Output::Extraction(extraction) => &extraction.json,
        Output::Embeddings(_) | Output::ZeroShot(_) => "",
    };
    ensure!(text == seen.text, "the streamed text is the result's");
    ensure!(result.draft && result.frames.len() == images, "{result:?}");
    ensure!(
        result.frames.iter().all(|frame| frame.placement.is_some()),
        "every frame has its geometry"
    );
    ensure!(
        result
            .frames
            .iter()
            .all(|frame| frame.modality == "DX"
                && frame.notes.contains(&"MODALITY_AS_GIVEN".to_owned())),
        "every frame says what it was said to be: {:?}",
        result.frames
    );
    Ok(result)
}

async fn classify(client: &Client) -> Result<()> {
    let labels = ["cardiomegaly", "pleural effusion", "mass"].map(str::to_owned);
    let kind = || {
        let labels = labels.to_vec();
        Kind::Classify(ClassifyTask { labels })
    };
    let image = picture::png(96, 1)?;
    let result = complete(client, request(kind(), vec![image.clone()], 0)).await?;
    let Some(Output::Classification(found)) = &result.output else {
        bail!("no labels: {result:?}")
    };
    let names: Vec<&str> = found.labels.iter().map(|l| l.label.as_str()).collect();
    ensure!(names == labels, "{names:?}");
    for label in &found.labels {
        ensure!(
            label.probability > 0.0 && label.probability < 1.0,
            "{label:?}"
        );
        ensure!(label.applies == (label.probability > 0.5), "{label:?}");
    }
    ensure!(found.text.lines().count() == 3, "{}", found.text);
    ensure!(result.sentences.is_empty(), "labels are no sentences");
    let usage = result.usage.context("usage")?;
    ensure!(
        usage.output_tokens > 0 && usage.image_tokens > 0,
        "{usage:?}"
    );
    let again = complete(client, request(kind(), vec![image], 0)).await?;
    let Some(Output::Classification(again)) = &again.output else {
        bail!("no labels: {again:?}")
    };
    ensure!(again.text == found.text, "a result replays");
    // The second time the prompt is mostly in memory: equal to within the tolerance of the logits.
    ensure!(distance(found, again) < 1e-4, "{found:?} and {again:?}");
    let other = complete(client, request(kind(), vec![picture::png(96, 2)?], 0)).await?;
    let Some(Output::Classification(other)) = &other.output else {
        bail!("no labels: {other:?}")
    };
    ensure!(distance(found, other) > 1e-3, "{found:?} and {other:?}");
    Ok(())
}

/// Largest difference between the probabilities of two results; what is no number is above all.
fn distance(one: &v1::Classification, other: &v1::Classification) -> f32 {
    let pairs = one.labels.iter().zip(&other.labels);
    let differences = pairs.map(|(one, other)| (one.probability - other.probability).abs());
    differences.max_by(f32::total_cmp).unwrap_or(0.0)
}

/// Whatever boxes the model writes, or none; where a model that means them puts them is in `meaning.rs`.
async fn localise(client: &Client, may_ramble: bool) -> Result<()> {
    let kind = Kind::Localise(LocaliseTask {
        target: "the heart".into(),
    });
    let job = request(kind, vec![picture::png(120, 3)?], 1000);
    let job = client.submit(job).await?;
    let last = client.wait_final(&job.name).await?;
    if last.state() == JobState::Failed {
        // A model of meaningless text may write boxes until the limit: then it says so, and gives none.
        ensure!(may_ramble, "{last:?}");
        let unusable = FailureReason::AnswerUnusable;
        client.wait_failed(&job.name, unusable).await?;
        return Ok(());
    }
    let result = client.result(&job.name).await?;
    let Some(Output::Localisation(found)) = &result.output else {
        bail!("no boxes: {result:?}")
    };
    for b in &found.boxes {
        let within = 0.0 <= b.left_pixels
            && b.left_pixels < b.right_pixels
            && b.right_pixels <= 120.0
            && 0.0 <= b.top_pixels
            && b.top_pixels < b.bottom_pixels
            && b.bottom_pixels <= 120.0;
        ensure!(within, "{b:?}");
    }
    let written: serde_json::Value = serde_json::from_str(&found.text)?;
    let written = written.as_array().context("a list")?.len();
    ensure!(
        written == found.boxes.len() || !result.warnings.is_empty(),
        "a box that was left out is said"
    );
    Ok(())
}

async fn extract(client: &Client) -> Result<()> {
    let kind = |schema: &str| {
        Kind::Extract(ExtractTask {
            json_schema: schema.to_owned(),
        })
    };
    let image = picture::png(64, 4)?;
    let result = complete(client, request(kind(SCHEMA), vec![image.clone()], 200)).await?;
    let Some(Output::Extraction(found)) = &result.output else {
        bail!("no fields: {result:?}")
    };
    let value: serde_json::Value = serde_json::from_str(&found.json)?;
    ensure!(
        ["left", "right"].contains(&value["side"].as_str().unwrap_or_default()),
        "{value}"
    );
    ensure!(value["count"].as_u64().is_some_and(|n| n <= 9), "{value}");

    let cut = client
        .submit(request(kind(SCHEMA), vec![image.clone()], 3))
        .await?;
    let unusable = FailureReason::AnswerUnusable;
    let failure = client.wait_failed(&cut.name, unusable).await?;
    ensure!(failure.message.contains("raise max_tokens"), "{failure:?}");
    let unsupported = r#"{"type": "array", "secret": 1, "uniqueItems": true}"#;
    let refused = client
        .submit(request(kind(unsupported), vec![image], 50))
        .await?;
    let reason = FailureReason::InputRefused;
    let failure = client.wait_failed(&refused.name, reason).await?;
    ensure!(
        failure.message.contains("uniqueItems") && !failure.message.contains("secret"),
        "{failure:?}"
    );
    Ok(())
}

async fn compare(client: &Client) -> Result<()> {
    let kind = || {
        Kind::Compare(CompareTask {
            clinical_context: "cough".into(),
        })
    };
    let (prior, current) = (picture::png(64, 5)?, picture::png(64, 6)?);
    let there = vec![prior.clone(), current.clone()];
    let result = complete(client, request(kind(), there, 12)).await?;
    let swapped = complete(client, request(kind(), vec![current, prior], 12)).await?;
    ensure!(
        matches!(result.output, Some(Output::Answer(_))),
        "{result:?}"
    );
    let of = |result: &v1::Result| {
        let sentences = result.sentences.iter();
        sentences
            .map(|sentence| sentence.mean_log_probability)
            .collect::<Vec<_>>()
    };
    ensure!(
        of(&result) != of(&swapped),
        "prior and current are told apart"
    );
    // Which is which.
    for result in [&result, &swapped] {
        let inputs: Vec<u32> = result.frames.iter().map(|f| f.input_index).collect();
        ensure!(inputs == [0, 1], "{inputs:?}");
    }
    let digest = |result: &v1::Result, at: usize| result.frames[at].frame_digest.clone();
    ensure!(
        digest(&result, 0) == digest(&swapped, 1) && digest(&result, 1) == digest(&swapped, 0),
        "{result:?} {swapped:?}"
    );
    Ok(())
}

/// What `medfleet embed` says of pictures and texts, without any fleet: each line it prints.
async fn embed_alone(images: &[Vec<u8>], texts: &[String]) -> Result<Vec<serde_json::Value>> {
    let folder = tempfile::tempdir()?;
    let mut command = tokio::process::Command::new(binary("medfleet")?);
    command.arg("embed").arg("--json").arg("--model");
    command.arg(picture::tiny_embedder());
    for (index, image) in images.iter().enumerate() {
        let path = folder.path().join(format!("{index}.png"));
        std::fs::write(&path, image)?;
        command.arg("--image").arg(path);
    }
    for text in texts {
        command.args(["--text", text]);
    }
    let output = command.output().await?;
    ensure!(output.status.success(), "{output:?}");
    let lines = std::str::from_utf8(&output.stdout)?.lines();
    lines.map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// Embeddings and scores through all four services are those of the model alone.
#[tokio::test(flavor = "multi_thread")]
async fn embeddings_and_zero_shot_scores_are_the_models_own() -> Result<()> {
    let fleet = Fleet::with_model(Model::Embedder).await?;
    let client = fleet.client("st-mary").await?;
    // As large as the model's pictures: nothing is resized on either way.
    let images = vec![picture::png(448, 1)?, picture::png(448, 2)?];
    let labels = ["a clear lung", "a pleural effusion"]
        .map(str::to_owned)
        .to_vec();
    let alone = embed_alone(&images, &labels).await?;
    let of_kind = |kind: &str| -> Vec<&serde_json::Value> {
        let lines = alone.iter().filter(|line| line["kind"] == kind);
        lines.collect()
    };

    let embed = Kind::Embed(v1::EmbedTask {});
    let result = complete(&client, request(embed, images.clone(), 0)).await?;
    let Some(Output::Embeddings(found)) = &result.output else {
        bail!("no embeddings: {result:?}")
    };
    let expected = of_kind("image");
    ensure!(found.embeddings.len() == 2 && expected.len() == 2);
    for (found, expected) in found.embeddings.iter().zip(expected) {
        let expected: Vec<f32> = serde_json::from_value(expected["embedding"].clone())?;
        ensure!(found.values == expected, "{found:?} and {expected:?}");
    }

    let kind = Kind::ZeroShot(v1::ZeroShotTask {
        labels: labels.clone(),
    });
    let result = complete(&client, request(kind, images, 0)).await?;
    let Some(Output::ZeroShot(found)) = &result.output else {
        bail!("no scores: {result:?}")
    };
    let found: Vec<&v1::ZeroShotScore> = found.images.iter().flat_map(|i| &i.labels).collect();
    let expected = of_kind("pair");
    ensure!(found.len() == 4 && expected.len() == 4, "{found:?}");
    for (found, expected) in found.iter().zip(expected) {
        ensure!(found.label == expected["text"], "{found:?} and {expected}");
        let logit = expected["logit"].as_f64().context("a logit")? as f32;
        ensure!(found.logit == logit, "{found:?} and {expected}");
    }
    Ok(())
}

/// With the simulated model, whose text has the form by the same library.
#[tokio::test(flavor = "multi_thread")]
async fn labels_boxes_fields_and_comparisons_from_the_simulated_model() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let client = fleet.client("st-mary").await?;
    classify(&client).await?;
    localise(&client, false).await?;
    extract(&client).await?;
    compare(&client).await
}

/// With real, if tiny, probabilities.
#[tokio::test(flavor = "multi_thread")]
async fn labels_boxes_fields_and_comparisons_from_the_tiny_model() -> Result<()> {
    let fleet = Fleet::with_model(Model::Tiny).await?;
    let client = fleet.client("st-mary").await?;
    classify(&client).await?;
    localise(&client, true).await?;
    extract(&client).await?;
    compare(&client).await
}
