//! The draft for people: the mark first, then the text, then everything needed to judge it.

use std::fmt::Write;
use std::time::Duration;

use medfleet_proto::v1::{
    Embedding, Job, LabelScore, Provenance, Result as Draft, Timings, ZeroShotImage, result::Output,
};

use super::seconds;

/// Said when a result brings no notice of its own.
const NOTICE: &str = "not a report: a radiologist has to read the images and sign";

/// The whole rendering. Its first line says DRAFT, whatever the result holds.
pub(crate) fn draft(draft: &Draft, job: &Job) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _infallible = render(&mut out, draft, job);
    out
}

fn render(out: &mut String, draft: &Draft, job: &Job) -> std::fmt::Result {
    let notice = if draft.notice.is_empty() {
        NOTICE
    } else {
        draft.notice.as_str()
    };
    writeln!(out, "DRAFT  {notice}")?;
    writeln!(out)?;
    match &draft.output {
        Some(Output::Report(report)) => writeln!(out, "{}", report.text.trim_end())?,
        Some(Output::Answer(answer)) => writeln!(out, "{}", answer.text.trim_end())?,
        Some(Output::Classification(found)) => labels(out, &found.labels)?,
        Some(Output::Localisation(found)) => boxes(out, &found.boxes)?,
        Some(Output::Extraction(found)) => writeln!(out, "{}", found.json)?,
        Some(Output::Embeddings(found)) => embeddings(out, &found.embeddings)?,
        Some(Output::ZeroShot(found)) => zero_shot(out, &found.images)?,
        None => writeln!(
            out,
            "(an output that this program does not know; use --json)"
        )?,
    }
    writeln!(out)?;
    for warning in &draft.warnings {
        writeln!(out, "warning      {warning}")?;
    }
    for file in &draft.files_refused {
        writeln!(
            out,
            "not used     input {}: {} ({})",
            file.input_index, file.message, file.reason
        )?;
    }
    for frame in &draft.frames {
        write!(out, "image        input {}", frame.input_index)?;
        if !frame.modality.is_empty() {
            write!(out, ", {}", frame.modality)?;
        }
        write!(
            out,
            ", {} × {}",
            frame.original_width, frame.original_height
        )?;
        if let Some(window) = &frame.window {
            write!(
                out,
                ", window {}/{} {}",
                window.center, window.width, window.function
            )?;
        }
        if !frame.notes.is_empty() {
            write!(out, ", {}", frame.notes.join(" "))?;
        }
        writeln!(out)?;
    }
    if let Some(timings) = &draft.timings {
        writeln!(out)?;
        out.push_str(&timings_table(timings));
    }
    writeln!(out)?;
    facts(out, draft, job)
}

/// A line for each label, the answers one below the other.
fn labels(out: &mut String, labels: &[LabelScore]) -> std::fmt::Result {
    let width = labels.iter().map(|score| score.label.chars().count()).max();
    let width = width.unwrap_or(0);
    for score in labels {
        let answer = if score.applies { "yes" } else { "no" };
        let percent = f64::from(score.probability) * 100.0;
        writeln!(out, "{:<width$}  {answer:<3}  {percent:5.1} %", score.label)?;
    }
    Ok(())
}

/// The first numbers of each embedding; `--json` has all.
fn embeddings(out: &mut String, embeddings: &[Embedding]) -> std::fmt::Result {
    const SHOWN: usize = 4;
    for embedding in embeddings {
        for value in embedding.values.iter().take(SHOWN) {
            write!(out, "{value:.4} ")?;
        }
        writeln!(out, "… ({} numbers)", embedding.values.len())?;
    }
    Ok(())
}

/// Each image with its labels, in their order.
fn zero_shot(out: &mut String, images: &[ZeroShotImage]) -> std::fmt::Result {
    for (index, image) in images.iter().enumerate() {
        if images.len() > 1 {
            writeln!(out, "image {index}")?;
        }
        for score in &image.labels {
            let percent = f64::from(score.probability) * 100.0;
            writeln!(out, "{percent:7.3} %  {}", score.label)?;
        }
    }
    Ok(())
}

/// A line for each box, in pixels of the original.
fn boxes(out: &mut String, boxes: &[medfleet_proto::v1::Box]) -> std::fmt::Result {
    if boxes.is_empty() {
        return writeln!(out, "(no boxes)");
    }
    for found in boxes {
        let (left, top) = (found.left_pixels, found.top_pixels);
        let (width, height) = (found.right_pixels - left, found.bottom_pixels - top);
        writeln!(
            out,
            "box          x {left:.0}, y {top:.0}, {width:.0} × {height:.0} pixels: {}",
            found.label
        )?;
    }
    Ok(())
}

fn facts(out: &mut String, draft: &Draft, job: &Job) -> std::fmt::Result {
    if let Some(usage) = &draft.usage {
        writeln!(
            out,
            "tokens       {} in ({} of images), {} out",
            usage.prompt_tokens, usage.image_tokens, usage.output_tokens
        )?;
    }
    if let Some(provenance) = &draft.provenance {
        writeln!(
            out,
            "model        {} ({}, {}), medfleet {}",
            provenance.model,
            numbers(provenance),
            provenance.device,
            provenance.code_version
        )?;
        if provenance.frames_cached > 0 {
            writeln!(
                out,
                "images       {} of {} encoded before, for another job",
                provenance.frames_cached,
                draft.frames.len()
            )?;
        }
    }
    writeln!(out, "job          {}", draft.job)?;
    writeln!(out, "trace        {}", job.trace_id)
}

/// What a text was computed in: `f32`, or `bf16, matrices q8_0`.
pub(crate) fn numbers(provenance: &Provenance) -> String {
    let Provenance { dtype, weights, .. } = provenance;
    match weights.as_str() {
        "" => dtype.clone(),
        forms => format!("{dtype}, matrices {forms}"),
    }
}

/// One line for each stage, the total last.
fn timings_table(timings: &Timings) -> String {
    let rows = [
        ("queued", &timings.queued),
        ("preprocess", &timings.preprocess),
        ("encode", &timings.encode),
        ("first token", &timings.time_to_first_token),
        ("decode", &timings.decode),
        ("total", &timings.total),
    ];
    let mut out = String::new();
    for (name, time) in rows {
        let text = match time
            .as_ref()
            .and_then(|time| Duration::try_from(*time).ok())
        {
            Some(time) => seconds(time),
            None => "-".to_owned(),
        };
        out.push_str(&format!("{name:<12} {text:>12}\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use medfleet_proto::v1::{FrameUsed, Report, Usage};

    #[test]
    fn the_rendering_is_marked_and_complete() {
        let text = "Findings: clear lungs.\n".to_owned();
        let result = Draft {
            job: "jobs/a".into(),
            notice: "Not for diagnosis.".into(),
            output: Some(Output::Report(Report {
                text,
                findings: String::new(),
                impression: String::new(),
            })),
            warnings: vec!["the token limit cut the text: it is incomplete".into()],
            timings: Some(Timings {
                queued: Some(prost_types::Duration {
                    seconds: 0,
                    nanos: 2_000_000,
                }),
                ..Timings::default()
            }),
            provenance: Some(Provenance {
                dtype: "bf16".into(),
                weights: "q8_0".into(),
                device: "cpu".into(),
                frames_cached: 1,
                ..Provenance::default()
            }),
            frames: vec![FrameUsed::default(); 2],
            usage: Some(Usage {
                prompt_tokens: 300,
                image_tokens: 256,
                output_tokens: 9,
            }),
            ..Draft::default()
        };
        let job = Job {
            trace_id: "ff".into(),
            ..Job::default()
        };
        let shown = draft(&result, &job);
        assert!(shown.starts_with("DRAFT"));
        for part in [
            "Not for diagnosis.",
            "clear lungs",
            "incomplete",
            "2.0 ms",
            "300 in (256 of images)",
            "(bf16, matrices q8_0, cpu)",
            "images       1 of 2 encoded before",
            "trace        ff",
        ] {
            assert!(shown.contains(part), "{part} is missing in\n{shown}");
        }
    }

    #[test]
    fn labels_and_boxes_are_lines() {
        let score = |label: &str, probability| LabelScore {
            label: label.to_owned(),
            applies: probability > 0.5,
            probability,
        };
        let mut out = String::new();
        labels(&mut out, &[score("effusion", 0.875), score("mass", 0.0625)]).expect("a string");
        assert_eq!(out, "effusion  yes   87.5 %\nmass      no     6.2 %\n");
        let fits = |label: &str, probability| medfleet_proto::v1::ZeroShotScore {
            label: label.to_owned(),
            logit: 0.0,
            probability,
        };
        let labels = vec![fits("effusion", 0.875), fits("mass", 0.00001)];
        let mut out = String::new();
        zero_shot(&mut out, &[ZeroShotImage { labels }]).expect("a string");
        assert_eq!(out, " 87.500 %  effusion\n  0.001 %  mass\n");
        let mut out = String::new();
        let values = vec![0.5, -0.5, 0.5, -0.5, 0.0];
        embeddings(&mut out, &[Embedding { values }]).expect("a string");
        assert_eq!(out, "0.5000 -0.5000 0.5000 -0.5000 … (5 numbers)\n");
        let mut out = String::new();
        let heart = medfleet_proto::v1::Box {
            label: "heart".into(),
            left_pixels: 10.0,
            top_pixels: 20.0,
            right_pixels: 40.0,
            bottom_pixels: 25.0,
        };
        boxes(&mut out, &[heart]).expect("a string");
        assert_eq!(out, "box          x 10, y 20, 30 × 5 pixels: heart\n");
    }
}
