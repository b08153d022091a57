//! What each task asks the model, and what the text means that comes back. Pure: nothing is guessed, and a text that is
//! no answer to its task is an error.

use std::time::Duration;

use medfleet_engine::{
    Alternative, Done, Finish, Match, PromptSize, Question, TokenSpan, choose_among, sections,
};
use medfleet_proto::v1;
use medfleet_proto::v1::result::Output;
use medfleet_proto::v1::task::Kind;
use serde::Deserialize;

use crate::error::DecodeError;

/// Tokens for the answer to one label: more than the form can take, even in tokens of single characters.
pub(crate) const LABEL_TOKENS_MAX: u32 = 32;
/// Alternatives that are asked for at each token of such an answer; the constraint on its form leaves fewer.
pub(crate) const LABEL_ALTERNATIVES: u32 = 20;
/// What the answer to a label begins with, and how it ends: the form of the prompts.
const LEAD: &str = "Final Answer: ";
const YES_OR_NO: [&str; 2] = ["yes", "no"];
/// What a box's coordinates are relative to: this is the whole side of the square.
const BOX_UNITS: f64 = 1000.0;

/// What a task asks.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asks {
    /// One question whose text is the answer, or becomes it.
    One(Question),
    /// A question for each label.
    Labels(Vec<String>),
}

/// What a task asks the model about this many frames.
pub(crate) fn asks(task: &v1::Task, frames: usize) -> Result<Asks, DecodeError> {
    let exactly = |task, expected| {
        let found = frames;
        if found == expected {
            return Ok(());
        }
        Err(DecodeError::Frames {
            task,
            expected,
            found,
        })
    };
    let question = match task.kind.clone() {
        Some(Kind::Report(v1::ReportTask { clinical_context })) => {
            Question::Report { clinical_context }
        }
        Some(Kind::Answer(v1::AnswerTask { question })) => Question::Answer { question },
        Some(Kind::Compare(v1::CompareTask { clinical_context })) => {
            exactly("compare", 2)?;
            Question::Compare { clinical_context }
        }
        Some(Kind::Localise(v1::LocaliseTask { target })) => {
            exactly("localise", 1)?;
            Question::Localise { target }
        }
        Some(Kind::Extract(v1::ExtractTask { json_schema })) => Question::Extract { json_schema },
        Some(Kind::Classify(v1::ClassifyTask { labels })) => return Ok(Asks::Labels(labels)),
        Some(Kind::Embed(_) | Kind::ZeroShot(_)) => {
            return Err(DecodeError::Model {
                needs: "compares images with texts (MedSigLIP)",
            });
        }
        None => return Err(DecodeError::Task),
    };
    Ok(Asks::One(question))
}

/// What a task asks of a model that compares.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Compares {
    /// The images' embeddings by themselves.
    Nothing,
    /// The images with these texts.
    Labels(Vec<String>),
}

/// What a task asks of a model that compares.
pub(crate) fn compares(task: &v1::Task) -> Result<Compares, DecodeError> {
    match &task.kind {
        Some(Kind::Embed(v1::EmbedTask {})) => Ok(Compares::Nothing),
        Some(Kind::ZeroShot(v1::ZeroShotTask { labels })) => Ok(Compares::Labels(labels.clone())),
        Some(_) => Err(DecodeError::Model {
            needs: "writes text (MedGemma)",
        }),
        None => Err(DecodeError::Task),
    }
}

/// The embeddings, one for each image.
pub(crate) fn embeddings(embeddings: Vec<Vec<f32>>) -> Output {
    let embeddings = embeddings.into_iter();
    let embeddings = embeddings.map(|values| v1::Embedding { values }).collect();
    Output::Embeddings(v1::Embeddings { embeddings })
}

/// A row for each image, with what was found of each label.
pub(crate) fn zero_shot(labels: &[String], found: Vec<Vec<Match>>) -> Output {
    let images = found.into_iter().map(|row| {
        let scores = labels
            .iter()
            .zip(row)
            .map(|(label, found)| v1::ZeroShotScore {
                label: label.clone(),
                logit: found.logit,
                probability: found.probability,
            });
        v1::ZeroShotImage {
            labels: scores.collect(),
        }
    });
    Output::ZeroShot(v1::ZeroShot {
        images: images.collect(),
    })
}

/// What was compared: no text, no tokens.
pub(crate) fn compared(output: Output, warnings: Vec<String>, took: Duration) -> Written {
    Written {
        output,
        warnings,
        finish: Finish::Stop,
        tokens: Vec::new(),
        output_tokens: 0,
        prompt: PromptSize::default(),
        time_to_first_token: Duration::ZERO,
        decode: took,
    }
}

/// What was written, and what it means.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) output: Output,
    pub(crate) warnings: Vec<String>,
    pub(crate) finish: Finish,
    /// Of the text, where it is prose.
    pub(crate) tokens: Vec<TokenSpan>,
    pub(crate) output_tokens: u32,
    pub(crate) prompt: PromptSize,
    pub(crate) time_to_first_token: Duration,
    pub(crate) decode: Duration,
}

/// The meaning of one question's text. `frame` says where its image lies in the padded square, for boxes.
pub(crate) fn written(
    question: &Question,
    text: String,
    done: Done,
    frame: Option<&v1::FrameUsed>,
) -> Result<Written, DecodeError> {
    let mut warnings = Vec::new();
    let cut = done.finish == Finish::Length;
    let output = match question {
        Question::Report { .. } => {
            let found = sections(&text);
            if found.findings.is_empty() || found.impression.is_empty() {
                let warning = "the text has not both a findings and an impression section";
                warnings.push(warning.to_owned());
            }
            let (findings, impression) = (found.findings, found.impression);
            Output::Report(v1::Report {
                text,
                findings,
                impression,
            })
        }
        Question::Answer { .. } | Question::Compare { .. } => {
            if text.trim().is_empty() {
                // A viewer's empty box must not look like an answer that was not displayed.
                let warning = "there is no text, as the model or a stop string ended it at once: the question is not answered";
                warnings.push(warning.to_owned());
            }
            Output::Answer(v1::Answer { text })
        }
        Question::Localise { .. } => {
            let boxes = boxes(&text, cut, frame, &mut warnings)?;
            Output::Localisation(v1::Localisation { text, boxes })
        }
        Question::Extract { .. } => {
            let json: Result<serde::de::IgnoredAny, _> = serde_json::from_str(&text);
            // A number that was cut after its first digits is still valid JSON, but another number.
            if cut || json.is_err() {
                return Err(unusable(cut));
            }
            Output::Extraction(v1::Extraction { json: text })
        }
        Question::Classify { .. } => return Err(DecodeError::Task),
    };
    Ok(Written {
        output,
        warnings,
        finish: done.finish,
        output_tokens: count(&done.tokens),
        tokens: done.tokens,
        prompt: done.prompt,
        time_to_first_token: done.time_to_first_token,
        decode: done.decode,
    })
}

const fn unusable(cut: bool) -> DecodeError {
    DecodeError::Answer(if cut {
        "the token limit cut the JSON that the model wrote, so there is no answer; raise max_tokens"
    } else {
        "the model did not write JSON of the form that was asked for, so there is no answer"
    })
}

fn count(tokens: &[TokenSpan]) -> u32 {
    u32::try_from(tokens.len()).unwrap_or(u32::MAX)
}

/// A box as the model writes it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Found {
    /// y0, x0, y1, x1.
    box_2d: [u32; 4],
    label: String,
}

/// The boxes in the text, on the original image. A box that has no area there is left out with a warning.
fn boxes(
    text: &str,
    cut: bool,
    frame: Option<&v1::FrameUsed>,
    warnings: &mut Vec<String>,
) -> Result<Vec<v1::Box>, DecodeError> {
    let found: Vec<Found> = serde_json::from_str(text).map_err(|_| unusable(cut))?;
    let within = |found: &Found| found.box_2d.iter().all(|at| f64::from(*at) <= BOX_UNITS);
    if !found.iter().all(within) {
        return Err(unusable(false));
    }
    let geometry = frame.and_then(|frame| Some((frame, frame.placement.as_ref()?)));
    let Some((frame, placement)) = geometry else {
        return Err(DecodeError::Manifest("the geometry of the image"));
    };
    let all = found.len();
    let boxes: Vec<v1::Box> = found
        .into_iter()
        .filter_map(|found| on_original(found, frame, placement))
        .collect();
    let left_out = all - boxes.len();
    if left_out > 0 {
        warnings.push(format!(
            "{left_out} of {all} boxes had no area on the image and were left out"
        ));
    }
    Ok(boxes)
}

/// From thousandths of the padded square to pixels of the original; nothing where no area is left.
fn on_original(found: Found, frame: &v1::FrameUsed, placement: &v1::Placement) -> Option<v1::Box> {
    let side = f64::from(placement.padded_side_pixels);
    let [y0, x0, y1, x1] = found.box_2d.map(|at| f64::from(at) / BOX_UNITS * side);
    let x = |at: f64| {
        (at - f64::from(placement.pad_left_pixels)).clamp(0.0, frame.original_width.into())
    };
    let y = |at: f64| {
        (at - f64::from(placement.pad_top_pixels)).clamp(0.0, frame.original_height.into())
    };
    let found = v1::Box {
        label: found.label,
        left_pixels: x(x0),
        top_pixels: y(y0),
        right_pixels: x(x1),
        bottom_pixels: y(y1),
    };
    let area = found.left_pixels < found.right_pixels && found.top_pixels < found.bottom_pixels;
    area.then_some(found)
}

/// Whether a label applies, from the text that was written about it.
pub(crate) fn score(
    label: &str,
    text: &str,
    tokens: &[TokenSpan],
    alternatives: &[Vec<Alternative>],
) -> Result<v1::LabelScore, DecodeError> {
    let undecided = DecodeError::Answer("the model answered neither yes nor no about a label");
    let shares = choose_among(LEAD, &YES_OR_NO, text, tokens, alternatives).ok_or(undecided)?;
    // Of two options, the first.
    let probability = shares.first().copied().unwrap_or(0.0);
    Ok(v1::LabelScore {
        label: label.to_owned(),
        applies: probability > 0.5,
        probability: probability as f32,
    })
}

/// The line about a label that watchers see. It leaves out the probability, whose last digits depend on how the prompt was cut
/// into passes.
pub(crate) fn line(score: &v1::LabelScore) -> String {
    let answer = if score.applies { "yes" } else { "no" };
    format!("{}: {answer}\n", score.label)
}

/// All labels together: token counts and times add up, and the time to the first token is the first label's.
pub(crate) fn classified(text: String, labels: Vec<(v1::LabelScore, Done)>) -> Written {
    let add = |sum: PromptSize, done: &Done| PromptSize {
        tokens: sum.tokens.saturating_add(done.prompt.tokens),
        image_tokens: sum.image_tokens.saturating_add(done.prompt.image_tokens),
    };
    let done = || labels.iter().map(|(_, done)| done);
    let first = done().next().map(|done| done.time_to_first_token);
    let time_to_first_token = first.unwrap_or_default();
    let whole: Duration = done()
        .map(|done| done.time_to_first_token + done.decode)
        .sum();
    Written {
        warnings: Vec::new(),
        finish: Finish::Stop,
        tokens: Vec::new(),
        output_tokens: done().map(|done| count(&done.tokens)).sum(),
        prompt: done().fold(PromptSize::default(), add),
        time_to_first_token,
        decode: whole.saturating_sub(time_to_first_token),
        output: Output::Classification(v1::Classification {
            text,
            labels: labels.into_iter().map(|(score, _)| score).collect(),
        }),
    }
}

#[cfg(test)]
mod tests;
