//! Whether a submitted job can be one: pure, before anything is stored. Everything wrong is named at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use medfleet_core::{
    Class, GivenModality, PoolName, STOP_BYTES_MAX, STOPS_MAX, TaskKind, UploadId,
};
use medfleet_proto::v1::{self, task::Kind};

use crate::config::{Config, Limits, Travels};
use crate::convert;
use crate::error::{Refusal, Violation};
use crate::pseudonym::Given;

/// Longest request id, in bytes; part of the public contract.
const REQUEST_ID_BYTES_MAX: usize = 128;
/// Highest temperature; part of the public contract.
const TEMPERATURE_MAX: f32 = 2.0;
/// Highest repetition penalty; part of the public contract.
const REPETITION_PENALTY_MAX: f32 = 10.0;
/// Most labels, and the longest, in bytes; part of the public contract.
const LABELS_MAX: usize = 64;
const LABEL_BYTES_MAX: usize = 256;

/// Most violations that a refusal names: it comes in headers, of which libraries take 8 KiB and more.
const VIOLATIONS_MAX: usize = 12;
/// How a refusal of too much content within a request ends, and no other does: by these words the command line, and edges of other
/// releases, know that they have to upload.
pub const UPLOAD_INSTEAD: &str = "of content in one request; upload larger files";

/// What the report's prompt has every report begin with: a stop string that is found in it leaves nothing.
const REPORT_BEGINS: &str = "Findings: ";

/// A job that can be accepted, with every default filled in.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) kind: TaskKind,
    pub(crate) task: v1::Task,
    pub(crate) class: Class,
    /// The alias, resolved.
    pub(crate) model: String,
    pub(crate) pool: PoolName,
    pub(crate) decoding: v1::DecodingParameters,
    pub(crate) time_to_live: Duration,
    pub(crate) sources: Vec<Source>,
    /// Of each source, what the caller says that it shows.
    pub(crate) modalities: Vec<String>,
    /// Images that the only input stands for, being an encoded study of a hospital's edge; 0 for image files.
    pub(crate) encoded_images: u32,
    /// Whose it is, as the caller says.
    pub(crate) whose: Given,
}

/// Where the bytes of an input are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    Upload(UploadId),
    Content(Bytes),
}

impl Source {
    pub(crate) const fn upload(&self) -> Option<&UploadId> {
        match self {
            Self::Upload(id) => Some(id),
            Self::Content(_) => None,
        }
    }
}

/// Checks a request against the limits and the models of the fleet.
pub(crate) fn plan(request: v1::SubmitJobRequest, config: &Config) -> Result<Plan, Refusal> {
    let limits = &config.limits;
    let mut wrong = Vec::new();
    let Some(kind) = request.task.as_ref().and_then(|task| task.kind.as_ref()) else {
        let kinds = TaskKind::ALL
            .iter()
            .map(|kind| kind.as_str())
            .collect::<Vec<_>>()
            .join(", ");
        return Err(Refusal::invalid(
            "task",
            format!("is required, one of {kinds}"),
        ));
    };
    let task_kind = convert::task_kind(kind);
    if config.models_for(task_kind).0.is_empty() {
        return Err(Refusal::TaskUnavailable { task: task_kind });
    }
    check_texts(kind, limits, &mut wrong);
    if request.request_id.len() > REQUEST_ID_BYTES_MAX {
        wrong.push(Violation::new(
            "request_id",
            format!("at most {REQUEST_ID_BYTES_MAX} bytes"),
        ));
    }
    let (images, encoded_images) = images(&request.inputs, task_kind, &mut wrong);
    check_count(task_kind, images, limits, &mut wrong);
    let whose = Given::of(&request, &mut wrong);
    let class = convert::class_from(request.class);
    if class.is_none() {
        let allowed = "one of CLASS_STAT, CLASS_URGENT, CLASS_ROUTINE, CLASS_BULK";
        wrong.push(Violation::new("class", allowed));
    }
    let decoding = decoding(
        request.decoding.unwrap_or_default(),
        task_kind,
        limits,
        &mut wrong,
    );
    let time_to_live = time_to_live(request.time_to_live, limits, &mut wrong);
    let model = model(request.model, config.models_for(task_kind), &mut wrong);
    // A list over the limit is refused as a whole, not input by input.
    let (modalities, sources) = if wrong.iter().any(|v| v.field == "inputs") {
        (Vec::new(), Vec::new())
    } else {
        (
            modalities(&request.inputs, &mut wrong),
            sources(request.inputs, limits, &mut wrong),
        )
    };
    match (class, model, request.task) {
        (Some(class), Some((model, pool)), Some(task)) if wrong.is_empty() => Ok(Plan {
            kind: task_kind,
            task,
            class,
            model,
            pool,
            decoding,
            time_to_live,
            sources,
            modalities,
            encoded_images,
            whose,
        }),
        _ => Err(refused(wrong)),
    }
}

/// The refusal, short enough to arrive: a client that cannot read it takes the connection for broken, and asks again for ever.
fn refused(mut wrong: Vec<Violation>) -> Refusal {
    if wrong.len() > VIOLATIONS_MAX {
        let more = wrong.split_off(VIOLATIONS_MAX);
        let first = more.first().map(|violation| violation.field.clone());
        let allowed = format!("not right either, and {} more", more.len() - 1);
        wrong.push(Violation::new(first.unwrap_or_default(), allowed));
    }
    Refusal::Invalid(wrong)
}

/// Whether an edge can hand a job on in the way that its tenant's jobs travel.
pub(crate) fn can_travel(plan: &Plan, travels: Travels) -> Result<(), Refusal> {
    if travels == Travels::Files {
        return Ok(());
    }
    if plan.kind.compares() {
        let allowed = format!(
            "no {} here: the images of this tenant stay at the hospital, and what travels in their place is of another encoder",
            plan.kind
        );
        return Err(Refusal::invalid("task", allowed));
    }
    if plan.encoded_images > 0 {
        let allowed = "0 here: what an edge is sent are images";
        return Err(Refusal::invalid("inputs[0].encoded_images", allowed));
    }
    is_searched(&plan.decoding)
}

/// Checks that a job whose images stay names no texts but those that are searched for names.
pub(crate) fn is_searched(decoding: &v1::DecodingParameters) -> Result<(), Refusal> {
    if decoding.stop.is_empty() {
        return Ok(());
    }
    let allowed = "none here: the images of this tenant stay at the hospital, and these texts are not searched for names as the task's are";
    Err(Refusal::invalid("decoding.stop", allowed))
}

/// How many images the inputs are, and how many of these an encoded study stands for.
fn images(inputs: &[v1::Input], kind: TaskKind, wrong: &mut Vec<Violation>) -> (usize, u32) {
    let encoded = match inputs {
        [only] => only.encoded_images,
        inputs => {
            if inputs.iter().any(|input| input.encoded_images > 0) {
                let allowed = "no encoded study beside other inputs";
                wrong.push(Violation::new("inputs", allowed));
            }
            0
        }
    };
    if encoded > 0 && kind.compares() {
        let allowed = format!("0 with {kind}: its model takes no tokens of an edge's encoder");
        wrong.push(Violation::new("inputs[0].encoded_images", allowed));
    }
    match encoded {
        0 => (inputs.len(), 0),
        encoded => (encoded as usize, encoded),
    }
}

/// Refuses before the size of the reason grows with the request.
fn check_count(kind: TaskKind, count: usize, limits: &Limits, wrong: &mut Vec<Violation>) {
    let (least, most) = kind.images();
    let most = most.unwrap_or(limits.images_max);
    let fits = u32::try_from(count).is_ok_and(|count| (least..=most).contains(&count));
    if !fits {
        let allowed = match (least, most) {
            (least, most) if least == most => format!("{kind} takes exactly {least} images"),
            (least, most) => format!("{kind} takes {least} to {most} images"),
        };
        wrong.push(Violation::new(
            "inputs",
            format!("{allowed}; found {count}"),
        ));
    }
}

fn check_texts(kind: &Kind, limits: &Limits, wrong: &mut Vec<Violation>) {
    let mut text = |field: &str, text: &str, required: bool| {
        let most = limits.text_bytes_max;
        if text.len() as u64 > most.get() {
            wrong.push(Violation::new(field, format!("at most {most} of text")));
        }
        if required && !says_something(text) {
            wrong.push(Violation::new(
                field,
                format!("is required, up to {most} of text with at least one letter or digit"),
            ));
        }
    };
    match kind {
        Kind::Report(task) => text(
            "task.report.clinical_context",
            &task.clinical_context,
            false,
        ),
        Kind::Answer(task) => text("task.answer.question", &task.question, true),
        Kind::Localise(task) => text("task.localise.target", &task.target, true),
        Kind::Compare(task) => text(
            "task.compare.clinical_context",
            &task.clinical_context,
            false,
        ),
        Kind::Extract(task) => {
            text("task.extract.json_schema", &task.json_schema, false);
            check_schema(&task.json_schema, wrong);
        }
        Kind::Classify(task) => {
            let as_asked = |label: &str| label.trim().to_owned();
            check_labels("task.classify.labels", &task.labels, as_asked, wrong);
        }
        Kind::ZeroShot(task) => {
            check_labels("task.zero_shot.labels", &task.labels, as_compared, wrong);
        }
        Kind::Embed(v1::EmbedTask {}) => {}
    }
}

/// Whether it is a JSON object; whether it can be enforced only the model's worker knows.
fn check_schema(schema: &str, wrong: &mut Vec<Violation>) {
    let field = "task.extract.json_schema";
    match serde_json::from_str::<serde_json::Value>(schema) {
        _ if schema.trim().is_empty() => wrong.push(Violation::new(field, "is required")),
        Ok(serde_json::Value::Object(keywords)) if keywords.is_empty() => {
            let allowed = "a schema with at least one keyword: an empty one asks for nothing";
            wrong.push(Violation::new(field, allowed));
        }
        Ok(serde_json::Value::Object(_)) => {}
        Ok(_) => wrong.push(Violation::new(field, "a JSON object")),
        Err(error) => {
            let (line, column) = (error.line(), error.column());
            let allowed = format!("JSON; it is not at line {line} column {column}");
            wrong.push(Violation::new(field, allowed));
        }
    }
}

/// Whether there is anything in a text that a model could read: blanks, punctuation and invisible characters are nothing.
fn says_something(text: &str) -> bool {
    text.contains(char::is_alphanumeric)
}

/// A label as MedSigLIP reads it: without case, ASCII punctuation, and blanks beyond one.
fn as_compared(label: &str) -> String {
    let label = label
        .to_lowercase()
        .replace(|c: char| c.is_ascii_punctuation(), "");
    label.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// `as_read` is what the task's model is shown of a label: two labels that are the same there have the same answer.
fn check_labels(
    field: &str,
    labels: &[String],
    as_read: impl Fn(&str) -> String,
    wrong: &mut Vec<Violation>,
) {
    if !(1..=LABELS_MAX).contains(&labels.len()) {
        let allowed = format!("1 to {LABELS_MAX} labels; found {}", labels.len());
        wrong.push(Violation::new(field, allowed));
        return;
    }
    let mut read = BTreeSet::new();
    for (index, label) in labels.iter().enumerate() {
        let fits = says_something(label)
            && label.len() <= LABEL_BYTES_MAX
            && !label.contains(char::is_control);
        if !fits {
            let allowed = format!(
                "one line of 1 to {LABEL_BYTES_MAX} bytes with at least one letter or digit"
            );
            wrong.push(Violation::new(format!("{field}[{index}]"), allowed));
        } else if !read.insert(as_read(label)) {
            let allowed = "different from the labels before it, as the model reads them";
            wrong.push(Violation::new(format!("{field}[{index}]"), allowed));
        }
    }
}

fn decoding(
    sent: v1::DecodingParameters,
    task: TaskKind,
    limits: &Limits,
    wrong: &mut Vec<Violation>,
) -> v1::DecodingParameters {
    let most = limits.max_tokens_max;
    if sent.max_tokens > most {
        wrong.push(Violation::new(
            "decoding.max_tokens",
            format!("1 to {most}, or 0 for the default"),
        ));
    }
    if !(0.0..=TEMPERATURE_MAX).contains(&sent.temperature) {
        wrong.push(Violation::new(
            "decoding.temperature",
            format!("0 to {TEMPERATURE_MAX}"),
        ));
    }
    if !(0.0..=1.0).contains(&sent.top_p) {
        wrong.push(Violation::new(
            "decoding.top_p",
            "above 0 up to 1, or 0 for 1",
        ));
    }
    if !(0.0..=1.0).contains(&sent.min_p) {
        wrong.push(Violation::new("decoding.min_p", "0 to 1"));
    }
    if !(0.0..=REPETITION_PENALTY_MAX).contains(&sent.repetition_penalty) {
        let allowed = format!("above 0 up to {REPETITION_PENALTY_MAX}, or 0 for 1");
        wrong.push(Violation::new("decoding.repetition_penalty", allowed));
    }
    check_stop(&sent.stop, task, wrong);
    if has_form(task) && sent.think {
        let allowed = format!("false with {task}");
        wrong.push(Violation::new("decoding.think", allowed));
    }
    let max_tokens = if sent.max_tokens == 0 {
        limits.max_tokens_default
    } else {
        sent.max_tokens
    };
    let one = |value: f32| if value == 0.0 { 1.0 } else { value };
    v1::DecodingParameters {
        max_tokens,
        top_p: one(sent.top_p),
        repetition_penalty: one(sent.repetition_penalty),
        ..sent
    }
}

/// Whether the text of a task has a form that nothing may cut or come before; or there is none.
fn has_form(task: TaskKind) -> bool {
    let formed = [TaskKind::Classify, TaskKind::Localise, TaskKind::Extract];
    task.compares() || formed.contains(&task)
}

fn check_stop(stop: &[String], task: TaskKind, wrong: &mut Vec<Violation>) {
    let field = "decoding.stop";
    let long = |stop: &String| !(1..=STOP_BYTES_MAX).contains(&stop.len());
    let leaves_nothing = |stop: &String| REPORT_BEGINS.contains(stop.as_str());
    if stop.len() > STOPS_MAX || stop.iter().any(long) {
        let allowed = format!("up to {STOPS_MAX} strings of 1 to {STOP_BYTES_MAX} bytes");
        wrong.push(Violation::new(field, allowed));
    } else if task == TaskKind::Report && stop.iter().any(leaves_nothing) {
        let allowed = format!(
            "strings that are not found in {REPORT_BEGINS:?}, with which a report begins: nothing would be left of it"
        );
        wrong.push(Violation::new(field, allowed));
    }
    if has_form(task) && !stop.is_empty() {
        wrong.push(Violation::new(field, format!("none with {task}")));
    }
}

fn time_to_live(
    sent: Option<prost_types::Duration>,
    limits: &Limits,
    wrong: &mut Vec<Violation>,
) -> Duration {
    let Some(sent) = sent else {
        return limits.time_to_live_default.get();
    };
    let most = limits.time_to_live_max;
    // The library's conversion panics at the lowest of all numbers, as it takes the sign away.
    let length = (sent.seconds >= 0).then(|| Duration::try_from(sent));
    match length {
        Some(Ok(duration)) if duration >= Duration::from_millis(1) && duration <= most.get() => {
            duration
        }
        _ => {
            wrong.push(Violation::new(
                "time_to_live",
                format!("above 0 up to {most}"),
            ));
            limits.time_to_live_default.get()
        }
    }
}

/// The alias and pool of a job, from the models that do its task.
fn model(
    sent: String,
    (models, default): (&BTreeMap<String, PoolName>, Option<&str>),
    wrong: &mut Vec<Violation>,
) -> Option<(String, PoolName)> {
    let alias = if sent.is_empty() {
        default.unwrap_or_default().to_owned()
    } else {
        sent
    };
    let pool = models.get(&alias).cloned();
    if pool.is_none() {
        let known = models
            .keys()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(", ");
        wrong.push(Violation::new(
            "model",
            format!("one of {known}, or empty for the default"),
        ));
    }
    pool.map(|pool| (alias, pool))
}

/// What the caller says that inputs show, one word each; an empty one says nothing.
fn modalities(inputs: &[v1::Input], wrong: &mut Vec<Violation>) -> Vec<String> {
    for (index, input) in inputs.iter().enumerate() {
        if input.modality.is_empty() {
            continue;
        }
        if let Err(unknown) = input.modality.parse::<GivenModality>() {
            wrong.push(Violation::new(
                format!("inputs[{index}].modality"),
                format!("one of {}, or nothing", unknown.allowed),
            ));
        }
    }
    inputs.iter().map(|input| input.modality.clone()).collect()
}

fn sources(inputs: Vec<v1::Input>, limits: &Limits, wrong: &mut Vec<Violation>) -> Vec<Source> {
    let most = limits.inline_bytes_max;
    let mut inline_bytes = 0;
    let mut sources = Vec::with_capacity(inputs.len());
    for (index, input) in inputs.into_iter().enumerate() {
        match input.source {
            None => {
                wrong.push(Violation::new(
                    format!("inputs[{index}]"),
                    "needs an upload or content",
                ));
            }
            Some(v1::input::Source::Content(content)) if content.is_empty() => {
                wrong.push(Violation::new(
                    format!("inputs[{index}].content"),
                    "must not be empty",
                ));
            }
            Some(v1::input::Source::Content(content)) => {
                inline_bytes += content.len() as u64;
                sources.push(Source::Content(content));
            }
            Some(v1::input::Source::Upload(name)) => {
                match convert::upload_id(&format!("inputs[{index}].upload"), &name) {
                    Ok(id) => sources.push(Source::Upload(id)),
                    Err(Refusal::Invalid(violations)) => wrong.extend(violations),
                    Err(_) => wrong.push(Violation::new(
                        format!("inputs[{index}].upload"),
                        "uploads/{id}",
                    )),
                }
            }
        }
    }
    if inline_bytes > most.get() {
        let allowed = format!("at most {most} {UPLOAD_INSTEAD}");
        wrong.push(Violation::new("inputs", allowed));
    }
    sources
}

#[cfg(test)]
mod tests;
