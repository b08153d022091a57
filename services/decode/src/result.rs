//! What a result says besides its text: how sure the model was, what it saw, what made it, and where the time went.

use std::time::Duration;

use medfleet_core::{Digest, JobRecord, UnixMillis};
use medfleet_engine::{Description, Finish, sentences};
use medfleet_proto::v1;
use medfleet_proto::v1::result::Output;
use medfleet_proto::work::v1::FramesManifest;
use medfleet_queue::wire::class_to_wire;

use crate::gather::Gathered;
use crate::task::Written;
use crate::unit::{masked_warning, misnamed_warning};

/// Shown with every rendering of a result.
const NOTICE: &str = "Draft written by a machine-learning model. Not a report: a physician has to review, correct and sign it.";

/// Everything that a result is made of.
pub(crate) struct Parts<'a> {
    pub(crate) job: String,
    pub(crate) record: &'a JobRecord,
    pub(crate) gathered: Gathered,
    pub(crate) model: &'a Description,
    pub(crate) decoding: v1::DecodingParameters,
    pub(crate) prompt_version: &'a str,
    pub(crate) prompt_digest: Digest,
    pub(crate) written: Written,
    /// When the engine was asked, and now.
    pub(crate) asked: UnixMillis,
    pub(crate) now: UnixMillis,
}

/// Puts a result together.
pub(crate) fn result(parts: Parts<'_>) -> v1::Result {
    let warnings = warnings(&parts);
    let timings = timings(&parts);
    let provenance = provenance(&parts);
    let Parts {
        job,
        record,
        gathered,
        written,
        ..
    } = parts;
    let sentences = sentences(prose(&written.output), &written.tokens)
        .into_iter()
        .map(|sentence| v1::Sentence {
            start_bytes: sentence.start,
            end_bytes: sentence.end,
            mean_log_probability: sentence.mean_log_probability,
            min_log_probability: sentence.min_log_probability,
        });
    let frames = gathered
        .manifest
        .frames
        .iter()
        .zip(&gathered.digests)
        .map(|(frame, tokens)| {
            let info = frame.info.clone().unwrap_or_default();
            v1::FrameUsed {
                token_digest: tokens.to_string(),
                ..info
            }
        });
    let finish = match written.finish {
        Finish::Stop => v1::FinishReason::Stop,
        Finish::Length => v1::FinishReason::Length,
    };
    v1::Result {
        job,
        draft: true,
        notice: NOTICE.to_owned(),
        sentences: sentences.collect(),
        frames: frames.collect(),
        files_refused: gathered.manifest.files_refused.clone(),
        warnings,
        finish_reason: finish.into(),
        provenance: Some(provenance),
        timings: Some(timings),
        usage: Some(v1::Usage {
            prompt_tokens: written.prompt.tokens,
            image_tokens: written.prompt.image_tokens,
            output_tokens: written.output_tokens,
        }),
        output: Some(written.output),
        class: class_to_wire(record.class).into(),
        class_asked: class_to_wire(record.class_asked).into(),
    }
}

/// The text of an output, where it is prose.
fn prose(output: &Output) -> &str {
    match output {
        Output::Report(report) => &report.text,
        Output::Answer(answer) => &answer.text,
        Output::Classification(_)
        | Output::Localisation(_)
        | Output::Extraction(_)
        | Output::Embeddings(_)
        | Output::ZeroShot(_) => "",
    }
}

/// What made the text: jobs with the same provenance have the same text where it is reproducible.
fn provenance(parts: &Parts<'_>) -> v1::Provenance {
    let (model, manifest) = (parts.model, &parts.gathered.manifest);
    v1::Provenance {
        input_digests: manifest
            .input_digests
            .iter()
            .map(|digest| hex(digest))
            .collect(),
        preprocessing_version: manifest.preprocessing_version.clone(),
        prompt_version: parts.prompt_version.to_owned(),
        prompt_digest: parts.prompt_digest.to_string(),
        model: model.model.clone(),
        model_digest: model.model_digest.to_string(),
        encoder_digest: model.encoder_digest.to_string(),
        decoding: Some(parts.decoding.clone()),
        code_version: env!("CARGO_PKG_VERSION").to_owned(),
        device: model.device.clone(),
        dtype: model.dtype.as_str().to_owned(),
        weights: model.weights.clone(),
        encoder_device: encoder_device(manifest),
        frames_cached: parts.gathered.cached,
        encoder_devices: parts.gathered.encoder_devices.clone(),
        settings_digest: model.settings_digest.to_string(),
        reproducible: model.reproducible,
    }
}

/// The kind of device that encoded the images of an encoded study; empty for images that were encoded here.
fn encoder_device(manifest: &FramesManifest) -> String {
    let encoded = manifest.encoded.as_ref();
    encoded.map_or_else(String::new, |encoded| encoded.device.clone())
}

fn warnings(parts: &Parts<'_>) -> Vec<String> {
    let mut warnings = parts.written.warnings.clone();
    if parts.written.finish == Finish::Length {
        warnings.push("the token limit cut the text: it is incomplete".to_owned());
    }
    if parts.model.is_simulated() {
        warnings.push("no model wrote this text: the fleet runs a simulation".to_owned());
    }
    let manifest = &parts.gathered.manifest;
    warnings.extend(misnamed_warning(
        &manifest.frames,
        prose(&parts.written.output),
    ));
    warnings.extend(masked_warning(manifest));
    if !manifest.files_refused.is_empty() {
        warnings.push("some files were not used".to_owned());
    }
    warnings
}

fn timings(parts: &Parts<'_>) -> v1::Timings {
    let times = &parts.record.times;
    let between = |from: Option<UnixMillis>, to: Option<UnixMillis>| {
        from.zip(to)
            .and_then(|(from, to)| duration(Duration::from_millis(millis(from, to))))
    };
    let first_token = Duration::from_millis(match times.encoded {
        Some(encoded) => millis(encoded, parts.asked),
        None => 0,
    }) + parts.written.time_to_first_token;
    v1::Timings {
        queued: between(Some(times.accepted), times.released),
        preprocess: between(times.released, times.preprocessed),
        encode: between(times.preprocessed, times.encoded),
        time_to_first_token: duration(first_token),
        decode: duration(parts.written.decode),
        total: between(Some(times.accepted), Some(parts.now)),
    }
}

/// Milliseconds between two times; none where the clocks of two machines make it negative.
fn millis(from: UnixMillis, to: UnixMillis) -> u64 {
    u64::try_from(to.0.saturating_sub(from.0)).unwrap_or(0)
}

/// A duration on the wire; left out beyond the format's 10,000 years.
fn duration(duration: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(duration).ok()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
