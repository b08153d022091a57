//! The walk: a study in at one end, a draft out at the other, through four processes and NATS.

use anyhow::{Result, ensure};
use medfleet_proto::v1::{self, DecodingParameters, JobState, SubmitJobRequest, result::Output};
use medfleet_tests::alerts::told;
use medfleet_tests::chaos::load::film_of;
use medfleet_tests::chaos::oracle::{self, Pixels, Question};
use medfleet_tests::client::{inline, report, uploaded};
use medfleet_tests::fleet::{Fleet, Model, Options, Role};
use medfleet_tests::picture;

/// What a result has to repeat.
const SEED: u64 = 77;

/// The real chest radiograph through the real (tiny) model.
#[tokio::test(flavor = "multi_thread")]
async fn a_chest_radiograph_becomes_a_draft() -> Result<()> {
    let fleet = Fleet::with_model(Model::Tiny).await?;
    let client = fleet.client("st-mary").await?;
    let upload = client.upload(&picture::radiograph("RG1_UNCR.dcm")?).await?;
    let decoding = DecodingParameters {
        seed: SEED,
        ..DecodingParameters::default()
    };
    let request = SubmitJobRequest {
        decoding: Some(decoding),
        ..report(vec![uploaded(&upload)])
    };
    let job = client.submit(request).await?;
    let seen = client.watch_completed(&job.name).await?;
    let states: Vec<JobState> = seen.progress.iter().map(|(_, state, _)| *state).collect();
    for state in [
        JobState::Accepted,
        JobState::Released,
        JobState::Preprocessed,
        JobState::Encoding,
        JobState::Decoding,
    ] {
        ensure!(states.contains(&state), "no {state:?} in {states:?}");
    }

    let result = client.result(&job.name).await?;
    ensure!(
        result.draft && !result.notice.is_empty(),
        "a result is a marked draft"
    );
    let Some(Output::Report(output)) = &result.output else {
        anyhow::bail!("not a report: {result:?}")
    };
    ensure!(
        output.text == seen.text,
        "the streamed text is the result's"
    );
    ensure!(
        result.frames.len() == 1 && result.frames[0].modality == "CR",
        "{:?}",
        result.frames
    );
    ensure!(
        (
            result.frames[0].original_width,
            result.frames[0].original_height
        ) == (1841, 1955),
        "{:?}",
        result.frames
    );
    says_what_made_it(&result)?;
    let usage = result.usage.as_ref().expect("every result has one");
    ensure!(
        usage.image_tokens > 0 && usage.output_tokens > 0,
        "{usage:?}"
    );
    Ok(())
}

/// What whoever replays it, or doubts it, has to know.
fn says_what_made_it(result: &v1::Result) -> Result<()> {
    let provenance = result.provenance.as_ref().expect("every result has one");
    for (name, digest) in [
        ("input", &provenance.input_digests[0]),
        ("prompt", &provenance.prompt_digest),
        ("model", &provenance.model_digest),
        ("settings", &provenance.settings_digest),
        ("encoder", &provenance.encoder_digest),
        ("frame", &result.frames[0].frame_digest),
        ("token", &result.frames[0].token_digest),
    ] {
        ensure!(digest.len() == 64, "the {name} digest is {digest:?}");
    }
    for (name, said) in [
        ("preprocessing", &provenance.preprocessing_version),
        ("prompt", &provenance.prompt_version),
        ("code", &provenance.code_version),
        ("model", &provenance.model),
        ("device", &provenance.device),
    ] {
        ensure!(!said.is_empty(), "no {name}: {provenance:?}");
    }
    ensure!(provenance.dtype == "f32", "{provenance:?}");
    ensure!(provenance.reproducible, "{provenance:?}");
    let decoding = provenance.decoding.as_ref();
    ensure!(
        decoding.is_some_and(|decoding| decoding.max_tokens > 0 && decoding.seed == SEED),
        "{provenance:?}"
    );
    ensure!(
        provenance.encoder_devices == [provenance.device.as_str()],
        "one machine did all of it: {provenance:?}"
    );
    Ok(())
}

/// The same study twice is the same text: a result replays. Its images are encoded once.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_study_gives_the_same_draft() -> Result<()> {
    let fleet = Fleet::with_model(Model::Tiny).await?;
    let client = fleet.client("st-mary").await?;
    let mut texts = Vec::new();
    for seed in [1, 1, 2] {
        let job = client.submit_picture(picture::png(64, seed)?).await?;
        texts.push(client.watch_to_end(&job.name).await?.text);
    }
    ensure!(texts[0] == texts[1], "the same image gave two texts");
    ensure!(texts[0] != texts[2], "two images gave one text");
    for (series, wanted) in [
        ("medfleet_encode_frames_total", 2),
        ("medfleet_encode_chunks_found_total", 1),
    ] {
        let found = told(fleet.admin(Role::Encode), series).await?;
        ensure!(found == wanted, "{series} {found}");
    }
    Ok(())
}

/// More than a job has chunks, so that some share one.
const MANY: u32 = 40;

#[tokio::test(flavor = "multi_thread")]
async fn images_that_share_their_chunks_come_to_the_model_in_their_order() -> Result<()> {
    let fleet = Fleet::start(Options::default()).await?;
    let client = fleet.client("st-mary").await?;
    let (mut inputs, mut images) = (Vec::new(), Vec::new());
    for seed in 0..MANY {
        let (file, pixels) = film_of(picture::png(oracle::SIDE, seed)?)?;
        inputs.push(inline(file));
        images.push(Pixels {
            is_film: false,
            ..pixels
        });
    }
    let job = client.submit(report(inputs)).await?;
    let job = client.wait_completed(&job.name).await?;
    ensure!(job.chunks_total < MANY, "{job:?}");
    let result = client.result(&job.name).await?;
    let Some(Output::Report(output)) = &result.output else {
        anyhow::bail!("not a report: {result:?}")
    };
    let expected = oracle::text(&Question::Report(String::new()), &images, 0);
    ensure!(output.text == expected, "{output:?} for {expected:?}");
    Ok(())
}

/// The whole fleet in one process, as `medfleet up` starts it, driven by `medfleet submit`.
#[tokio::test(flavor = "multi_thread")]
async fn up_and_submit_from_the_command_line() -> Result<()> {
    let up = medfleet_tests::fleet::Up::start().await?;
    let path = up.folder().join("picture.png");
    std::fs::write(&path, picture::png(96, 3)?)?;
    let path = path.display().to_string();
    let submit = ["submit", &path, "--task", "report", "--json"];
    let lines = up.run(&submit).await?;
    let last: serde_json::Value = serde_json::from_str(lines.lines().last().unwrap_or_default())?;
    ensure!(last.to_string().contains("\"draft\":true"), "{last}");
    let listed = up.run(&["list", "--json"]).await?;
    ensure!(listed.contains("jobs/"), "list shows the job");
    up.stop().await
}
