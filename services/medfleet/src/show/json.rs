//! The API's messages as JSON: field names as in the `.proto`, enums as their words, times as RFC 3339, durations in seconds.

use medfleet_proto::v1::{
    DeadLetter, DecodingParameters, EraseJobResponse, Failure, FrameUsed, Job, LabelScore,
    Provenance, Result as Draft, SubmitJobResponse, Timings, Usage, Window, ZeroShotImage,
    ZeroShotScore, result::Output,
};
use prost_types::{Duration, Timestamp};
use serde_json::{Value, json};

use super::words::{class_word, failure_word, finish_word, state_word, task_word};
use crate::client::Event;

/// These fields of a message, under their names.
macro_rules! fields {
    ($message:ident: $($name:ident),+) => {
        json!({$((stringify!($name)): $message.$name),+})
    };
}

/// `{"event": "accepted", …}`
pub(crate) fn accepted_json(response: &SubmitJobResponse, request_id: &str) -> Value {
    json!({
        "event": "accepted",
        "already_accepted": response.already_accepted,
        "request_id": request_id,
        "job": response.job.as_ref().map(job_json),
    })
}

/// `{"event": "progress" | "text" | "reset" | "final", …}`
pub(crate) fn event_json(event: &Event) -> Value {
    match event {
        Event::Progress {
            sequence,
            time,
            progress,
        } => json!({
            "event": "progress",
            "sequence": sequence,
            "time": time_json(time.as_ref()),
            "state": state_word(progress.state),
            "chunks_total": progress.chunks_total,
            "chunks_done": progress.chunks_done,
        }),
        Event::Text {
            attempt,
            offset_bytes,
            text,
        } => {
            json!({"event": "text", "attempt": attempt, "offset_bytes": offset_bytes, "text": text})
        }
        Event::Reset { attempt } => json!({"event": "reset", "attempt": attempt}),
        Event::Final {
            sequence,
            time,
            job,
        } => json!({
            "event": "final",
            "sequence": sequence,
            "time": time_json(time.as_ref()),
            "job": job_json(job),
        }),
    }
}

pub(crate) fn job_json(job: &Job) -> Value {
    json!({
        "name": job.name,
        "state": state_word(job.state),
        "class": class_word(job.class),
        "class_asked": class_word(job.class_asked),
        "task": task_word(job.task),
        "model": job.model,
        "create_time": time_json(job.create_time.as_ref()),
        "update_time": time_json(job.update_time.as_ref()),
        "expire_time": time_json(job.expire_time.as_ref()),
        "failure": job.failure.as_ref().map(failure_json),
        "image_count": job.image_count,
        "chunks_total": job.chunks_total,
        "chunks_done": job.chunks_done,
        "trace_id": job.trace_id,
        "attempt": job.attempt,
        "cancel_wanted": job.cancel_wanted,
        "erase_time": time_json(job.erase_time.as_ref()),
    })
}

fn failure_json(failure: &Failure) -> Value {
    json!({"reason": failure_word(failure.reason), "message": failure.message})
}

/// What an erasure left, field names as in the `.proto`.
pub(crate) fn erased_json(erased: &EraseJobResponse) -> Value {
    json!({
        "job": erased.job.as_ref().map(job_json),
        "objects_removed": erased.objects_removed,
        "objects_shared": erased.objects_shared,
    })
}

/// A dead letter that was put away: its name, and that it is.
pub(crate) fn discarded_json(name: &str) -> Value {
    json!({"name": name, "discarded": true})
}

/// A dead letter, field names as in the `.proto`.
pub(crate) fn dead_letter_json(letter: &DeadLetter) -> Value {
    json!({
        "name": letter.name,
        "job": letter.job,
        "stage": letter.stage,
        "unit": letter.unit,
        "pool": letter.pool,
        "epoch": letter.epoch,
        "failure": letter.failure.as_ref().map(failure_json),
        "create_time": time_json(letter.create_time.as_ref()),
    })
}

/// `{"event": "result", "result": {…}, "trace_id": …}`
pub(crate) fn draft_json(draft: &Draft, job: &Job) -> Value {
    let mut value = json!({
        "job": draft.job,
        "draft": draft.draft,
        "notice": draft.notice,
        "sentences": draft.sentences.iter().map(|sentence| {
            fields!(sentence: start_bytes, end_bytes, mean_log_probability, min_log_probability)
        }).collect::<Vec<_>>(),
        "frames": draft.frames.iter().map(frame_json).collect::<Vec<_>>(),
        "files_refused": draft.files_refused.iter().map(|file| {
            fields!(file: input_index, reason, message)
        }).collect::<Vec<_>>(),
        "warnings": draft.warnings,
        "finish_reason": finish_word(draft.finish_reason),
        "provenance": draft.provenance.as_ref().map(provenance_json),
        "timings": draft.timings.as_ref().map(timings_json),
        "usage": draft.usage.as_ref().map(usage_json),
        "class": class_word(draft.class),
        "class_asked": class_word(draft.class_asked),
    });
    match &draft.output {
        Some(Output::Report(report)) => {
            value["report"] = fields!(report: text, findings, impression);
        }
        Some(Output::Answer(answer)) => value["answer"] = fields!(answer: text),
        Some(Output::Classification(found)) => {
            let label = |score: &LabelScore| fields!(score: label, applies, probability);
            let labels: Vec<Value> = found.labels.iter().map(label).collect();
            value["classification"] = json!({"text": found.text, "labels": labels});
        }
        Some(Output::Localisation(found)) => {
            let boxes: Vec<Value> = found.boxes.iter().map(box_json).collect();
            value["localisation"] = json!({"text": found.text, "boxes": boxes});
        }
        Some(Output::Extraction(found)) => value["extraction"] = fields!(found: json),
        Some(Output::Embeddings(found)) => {
            let values = found.embeddings.iter();
            value["embeddings"] = values.map(|found| fields!(found: values)).collect();
        }
        Some(Output::ZeroShot(found)) => {
            let label = |score: &ZeroShotScore| fields!(score: label, logit, probability);
            let labels = |image: &ZeroShotImage| -> Value {
                json!({"labels": image.labels.iter().map(label).collect::<Vec<_>>()})
            };
            value["zero_shot"] =
                json!({"images": found.images.iter().map(labels).collect::<Vec<_>>()});
        }
        None => {}
    }
    json!({"event": "result", "trace_id": job.trace_id, "result": value})
}

fn box_json(found: &medfleet_proto::v1::Box) -> Value {
    fields!(found: label, left_pixels, top_pixels, right_pixels, bottom_pixels)
}

fn frame_json(frame: &FrameUsed) -> Value {
    json!({
        "input_index": frame.input_index,
        "frame_index": frame.frame_index,
        "modality": frame.modality,
        "window": frame.window.as_ref().map(window_json),
        "frame_digest": frame.frame_digest,
        "token_digest": frame.token_digest,
        "original_width": frame.original_width,
        "original_height": frame.original_height,
        "notes": frame.notes,
        "channel_windows": frame.channel_windows.iter().map(window_json).collect::<Vec<_>>(),
        "placement": frame.placement.as_ref().map(|placement| {
            fields!(placement: pad_left_pixels, pad_top_pixels, padded_side_pixels)
        }),
    })
}

fn window_json(window: &Window) -> Value {
    fields!(window: center, width, function)
}

fn provenance_json(provenance: &Provenance) -> Value {
    json!({
        "input_digests": provenance.input_digests,
        "preprocessing_version": provenance.preprocessing_version,
        "prompt_version": provenance.prompt_version,
        "prompt_digest": provenance.prompt_digest,
        "model": provenance.model,
        "model_digest": provenance.model_digest,
        "encoder_digest": provenance.encoder_digest,
        "decoding": provenance.decoding.as_ref().map(decoding_json),
        "code_version": provenance.code_version,
        "device": provenance.device,
        "dtype": provenance.dtype,
        "weights": provenance.weights,
        "encoder_device": provenance.encoder_device,
        "frames_cached": provenance.frames_cached,
        "encoder_devices": provenance.encoder_devices,
        "settings_digest": provenance.settings_digest,
        "reproducible": provenance.reproducible,
    })
}

fn decoding_json(decoding: &DecodingParameters) -> Value {
    fields!(
        decoding: max_tokens, temperature, top_k, top_p, seed, min_p, repetition_penalty, stop, think
    )
}

fn timings_json(timings: &Timings) -> Value {
    json!({
        "queued_seconds": seconds_json(timings.queued.as_ref()),
        "preprocess_seconds": seconds_json(timings.preprocess.as_ref()),
        "encode_seconds": seconds_json(timings.encode.as_ref()),
        "time_to_first_token_seconds": seconds_json(timings.time_to_first_token.as_ref()),
        "decode_seconds": seconds_json(timings.decode.as_ref()),
        "total_seconds": seconds_json(timings.total.as_ref()),
    })
}

fn usage_json(usage: &Usage) -> Value {
    fields!(usage: prompt_tokens, image_tokens, output_tokens)
}

fn time_json(time: Option<&Timestamp>) -> Value {
    time.map_or(Value::Null, |time| Value::String(time.to_string()))
}

fn seconds_json(duration: Option<&Duration>) -> Value {
    duration.map_or(Value::Null, |duration| {
        json!(duration.seconds as f64 + f64::from(duration.nanos) / 1e9)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use medfleet_proto::FILE_DESCRIPTOR_SET;
    use medfleet_proto::v1::{JobProgress, JobState, Report, TaskKind};
    use prost::Message;
    use prost_types::FileDescriptorSet;

    /// That a value has every field of a message of the contract but those of a oneof, and no other.
    fn check(message: &str, value: &Value) {
        let files = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("it was made of files");
        let public = files
            .file
            .iter()
            .filter(|file| file.package() == "medfleet.v1");
        let found = public
            .flat_map(|file| &file.message_type)
            .find(|found| found.name() == message)
            .expect("the contract has it");
        let fields = found
            .field
            .iter()
            .filter(|field| field.oneof_index.is_none());
        let expected: BTreeSet<_> = fields.map(|field| field.name()).collect();
        let shown = value.as_object().expect("an object").keys();
        // A duration is shown in seconds, and says so.
        let shown: BTreeSet<_> = shown
            .map(|name| name.strip_suffix("_seconds").unwrap_or(name))
            .collect();
        assert_eq!(shown, expected, "{message}");
    }

    #[test]
    fn nothing_of_the_contract_is_left_out() {
        check("Job", &job_json(&Job::default()));
        let result = draft_json(&Draft::default(), &Job::default());
        check("Result", &result["result"]);
        check("FrameUsed", &frame_json(&FrameUsed::default()));
        check("Window", &window_json(&Window::default()));
        check("Provenance", &provenance_json(&Provenance::default()));
        let decoding = DecodingParameters::default();
        check("DecodingParameters", &decoding_json(&decoding));
        check("Timings", &timings_json(&Timings::default()));
        check("Usage", &usage_json(&Usage::default()));
        check("DeadLetter", &dead_letter_json(&DeadLetter::default()));
        let erased = EraseJobResponse::default();
        check("EraseJobResponse", &erased_json(&erased));
    }

    #[test]
    fn events_are_flat_objects() {
        let progress = JobProgress {
            state: JobState::Encoding.into(),
            chunks_total: 4,
            chunks_done: 1,
        };
        let time = Some(Timestamp {
            seconds: 1_700_000_000,
            nanos: 0,
        });
        assert_eq!(
            event_json(&Event::Progress {
                sequence: 3,
                time,
                progress
            }),
            json!({"event": "progress", "sequence": 3, "time": "2023-11-14T22:13:20Z",
                   "state": "ENCODING", "chunks_total": 4, "chunks_done": 1})
        );
    }

    #[test]
    fn a_result_keeps_its_draft_mark_and_trace() {
        let output = Some(Output::Report(Report {
            text: "t".into(),
            findings: String::new(),
            impression: String::new(),
        }));
        let total = Some(Duration {
            seconds: 1,
            nanos: 500_000_000,
        });
        let timings = Some(Timings {
            total,
            ..Timings::default()
        });
        let draft = Draft {
            draft: true,
            output,
            timings,
            ..Draft::default()
        };
        let job = Job {
            trace_id: "ab".into(),
            task: TaskKind::Report.into(),
            ..Job::default()
        };
        let value = draft_json(&draft, &job);
        assert_eq!(value["event"], "result");
        assert_eq!(value["trace_id"], "ab");
        assert_eq!(value["result"]["draft"], true);
        assert_eq!(value["result"]["report"]["text"], "t");
        assert_eq!(value["result"]["timings"]["total_seconds"], 1.5);
    }
}
